//! The emulated device with the project's kernels: the PTX that nvcc made of them, opened through the ordinary launch path.

use crate::{nvcc, stored};
use ggro::cuda::{Code, Device, Image, KernelFamily, images};
use ggro_emulator::{Config, Report};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where the kernels are.
pub const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");

/// The emulated machine and the device that ggro opened on it.
pub struct Emulated {
    // Dropped first: it gives its memory back to the machine.
    pub device: Device,
    pub machine: ggro_emulator::Device,
}

impl Emulated {
    /// Waits for its turn and opens the device.
    pub fn new(config: Config) -> Self {
        let machine = ggro_emulator::Device::install(&ggro_emulator::build().unwrap(), config).unwrap();
        machine.configure(&format!("ptx={}", folder().display()));
        Emulated { device: open(), machine }
    }

    /// The device opened anew, as what the machine looks like now.
    pub fn opened_again(self) -> Self {
        let Emulated { device, machine } = self;
        drop(device);
        Emulated { device: open(), machine }
    }

    /// The device with another family of kernels for products.
    pub fn with_family(self, family: KernelFamily) -> Self {
        let Emulated { device, machine } = self;
        Emulated { device: device.with_family(family).unwrap(), machine }
    }

    /// From here on, these kernels run in place of those of the same names.
    pub fn replace(&self, folder: &Path) {
        self.machine.configure(&format!("ptx={}", folder.display()));
        self.machine.reset();
    }

    /// No access was wrong, and no launch; and what ran was PTX.
    pub fn assert_clean(&self) {
        let Report { kernels, faults, .. } = self.machine.report();
        assert!(faults.is_empty(), "{faults:#?}");
        assert!(kernels.values().all(|counters| counters.instructions > 0), "not run as PTX: {kernels:#?}");
    }
}

/// The binary, to be run with the emulated device in place of a driver. What the device saw goes to the file `report`.
pub fn ggro(report: &Path) -> Command {
    assert!(
        !images::embedded().is_empty(),
        "this build of ggro has no kernels to run: unset GGRO_NO_CUDA, and after a change in kernels/ set NVCC to what \
         scripts/install-nvcc.sh prints"
    );
    let library = ggro_emulator::build().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggro"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GGRO_")) {
        command.env_remove(name);
    }
    command.env("LD_LIBRARY_PATH", library.with_file_name(""));
    // The device is checked once, and not by each command.
    command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command.env("GGRO_EMU_PTX", folder()).env("GGRO_EMU_REPORT", report);
    command
}

/// Opens the device with what nvcc made of the kernels, so that launches are checked against it, or, where the build was told to
/// have no kernels, with PTX alone.
fn open() -> Device {
    if !images::embedded().is_empty() {
        return Device::open(0).unwrap().with_dependent_launches(true);
    }
    let image = |(name, text): &'static (String, String)| {
        let bytes = [text.as_bytes(), b"\0"].concat().leak();
        let targets = nvcc::texts_of(name).into_iter().map(|(target, _)| target).collect::<Vec<_>>();
        Image { name, targets: targets.leak(), code: Code::Plain(bytes), usage: &[] }
    };
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    let images = IMAGES.get_or_init(|| ptx().iter().filter(|(name, _)| source(name) == name).map(image).collect());
    Device::open_with(0, images).unwrap().with_dependent_launches(true)
}

/// The source of a text: `rmsnorm` of `sm_90/rmsnorm`, too.
pub fn source(text: &str) -> &str {
    text.rsplit_once('/').map_or(text, |(_, source)| source)
}

/// The PTX of each source, as `nvcc::texts_of` calls it: that of this build, or, where it was told to have no kernels, what is stored
/// with the sources.
pub fn ptx() -> &'static [(String, String)] {
    static TEXTS: OnceLock<Vec<(String, String)>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let text = |(name, mut bytes): (String, Vec<u8>)| {
            bytes.pop_if(|byte| *byte == 0);
            Ok((name, String::from_utf8(bytes).map_err(|e| e.to_string())?))
        };
        let found = if images::embedded().is_empty() { stored::ptx(Path::new("kernels")) } else { built() };
        found.and_then(|found| found.into_iter().map(text).collect()).unwrap_or_else(|why| {
            panic!(
                "there is no PTX of the kernels to test ({why}): set NVCC to what scripts/install-nvcc.sh prints, and unset \
                 GGRO_NO_CUDA"
            )
        })
    })
}

fn built() -> Result<Vec<(String, Vec<u8>)>, String> {
    // A build for other cards has no code of what is for Hopper alone.
    let images = images::embedded().iter().filter(|image| !image.targets.is_empty());
    let texts = images.flat_map(|image| nvcc::texts_of(image.name).into_iter().map(move |text| (image, text)));
    let code = |(image, (target, place)): (&Image, (&str, String))| {
        let code = image.code_for(target).map_err(|e| format!("{e}: is it in GGRO_CUDA_TARGETS?"))?;
        Ok((place, code.into_owned()))
    };
    texts.map(code).collect()
}

/// The same as files.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder_of("ptx", ptx()))
}

/// A folder with these texts as files, which is written once. Its name begins with `name`, which need not be theirs alone.
pub fn folder_of(name: &str, texts: &[(String, String)]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{:016x}", hasher.finish()));
    if folder.is_dir() {
        return folder;
    }
    // Tests in processes of their own write at the same time: the folder is there as a whole, or not yet.
    let part = folder.with_extension(std::process::id().to_string());
    for (name, text) in texts {
        let file = part.join(format!("{name}.ptx"));
        std::fs::create_dir_all(file.with_file_name("")).unwrap();
        std::fs::write(file, text).unwrap();
    }
    if std::fs::rename(&part, &folder).is_err() {
        assert!(folder.is_dir(), "{} cannot be written", folder.display());
        std::fs::remove_dir_all(part).unwrap();
    }
    folder
}

/// Set in a process that runs one test.
const ALONE: &str = "GGRO_TEST_ALONE";

/// Runs a test, whose name this is, in a process of its own. There is one device in a process, and tests take turns at it: with
/// the longest ones elsewhere the others do not wait for them, and all cores have something to do.
pub fn alone(test: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let program = std::env::current_exe().unwrap();
    let run = Command::new(program)
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    print!("{out}");
    eprint!("{err}");
    assert!(run.status.success() && out.contains("1 passed"), "{test} failed in its own process");
}
