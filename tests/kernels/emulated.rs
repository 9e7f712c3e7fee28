//! The emulated device with the project's kernels, opened through the ordinary launch path.

use ggro::cuda::{Code, Device, Image, images, specs};
use ggro_emulator::{Config, STUB_IMAGE};
use std::io::Read;
use std::path::{Path, PathBuf};

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
        let machine = ggro_emulator::Device::install(&ggro_emulator::build(KERNELS).unwrap(), config).unwrap();
        Emulated { device: open(), machine }
    }

    /// The same with the PTX that nvcc makes of the kernels in place of their sources: what is stored with them, or what an nvcc
    /// makes now. None where there is neither.
    pub fn on_ptx(config: Config) -> Option<Self> {
        let emulated = Self::new(config);
        let folder = match (images::stored(), ggro_emulator::nvcc()) {
            (true, _) => stored_ptx(),
            (false, Some(nvcc)) => ggro_emulator::build_ptx(&nvcc, &[KERNELS], "compute_80").unwrap().remove(0),
            (false, None) => {
                eprintln!("not tested: PTX, there is no nvcc (NVCC or PATH), and stored images are of other sources");
                return None;
            }
        };
        emulated.machine.configure(&format!("ptx={}", folder.display()));
        Some(emulated)
    }

    /// No access was wrong, and no launch.
    pub fn assert_clean(&self) {
        let faults = self.machine.faults();
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

/// Opens the device with what nvcc made of the kernels, so that launches are checked against it, or with stubs.
fn open() -> Device {
    if !images::embedded().is_empty() {
        return Device::open(0).unwrap();
    }
    let mut stubs: Vec<Image> = Vec::new();
    for spec in specs() {
        if stubs.iter().all(|stub| stub.name != spec.image) {
            stubs.push(Image { name: spec.image, code: Code::Plain(STUB_IMAGE.to_bytes_with_nul()), usage: &[] });
        }
    }
    Device::open_with(0, &stubs, &["sm_90"]).unwrap()
}

/// The PTX that is stored with the sources, unpacked into a folder. The build has found that it is of these sources.
fn stored_ptx() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptx");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir("build/images").unwrap() {
        let packed = entry.unwrap().path();
        let name = packed.file_name().unwrap().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".80.ptx.zst") else { continue };
        let mut text = Vec::new();
        let file = std::fs::File::open(&packed).unwrap();
        ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_end(&mut text).unwrap();
        // Tests in processes of their own unpack at the same time: a file is there as a whole, or not yet.
        let part = folder.join(format!("{name}.{}", std::process::id()));
        std::fs::write(&part, text).unwrap();
        std::fs::rename(&part, folder.join(format!("{name}.ptx"))).unwrap();
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
    let run = std::process::Command::new(program)
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    print!("{out}");
    eprint!("{err}");
    assert!(run.status.success() && out.contains("1 passed"), "{test} failed in its own process");
}
