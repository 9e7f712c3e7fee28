//! Driving nvcc: PTX per virtual architecture, machine code or text per target, both in one packed image per file, and what
//! ptxas said. The name of a file says which targets it is for.
//!
//! The steps are taken one by one because the PTX is rewritten in between. Its line table would carry the absolute paths of
//! this machine, and its version would ask for a driver as new as the compiler, though it uses nothing that is new. Machine
//! code is loaded by every driver of the assembler's major release: `PTXAS` may name an older one than nvcc's.

use ruzstd::encoding::CompressionLevel;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// How sources are compiled, for every target.
pub const FLAGS: [&str; 4] = ["-std=c++17", "-lineinfo", "-O3", "-Werror=all-warnings"];

/// The targets of files for Hopper alone: instructions of `sm_90a` are in no later card's code, and neither is the text.
const HOPPER: [&str; 2] = ["sm_90a", "compute_90a"];

/// Targets whose machine code has a table of source lines, in a build for the usual list. The table takes as much room as the code, and
/// the assembler puts the PTX beside it; for Blackwell it does all of that twice.
const WITH_LINES: [&str; 2] = ["sm_80", "sm_90a"];

/// Whether a file is for Hopper alone, by its name without the extension.
pub fn is_for_hopper(name: &str) -> bool {
    name.ends_with("_sm90")
}

/// Those of a build's targets that a file is compiled for.
pub fn targets_of(name: &str, all: &[String]) -> Vec<String> {
    all.iter().filter(|target| !is_for_hopper(name) || HOPPER.contains(&target.as_str())).cloned().collect()
}

/// The texts that the emulated device executes of a file: their targets, and what they are called in its folder. Those in the
/// subfolder `sm_90` are for a device that looks like a Hopper: there kernels wait for those before them, and elsewhere they do not.
pub fn texts_of(name: &str) -> Vec<(&'static str, String)> {
    match is_for_hopper(name) {
        true => vec![(HOPPER[1], name.to_string())],
        false => vec![("compute_80", name.to_string()), (HOPPER[1], format!("sm_90/{name}"))],
    }
}

/// What ptxas reported for one kernel on one target.
#[derive(Clone, Default)]
pub struct Usage {
    kernel: String,
    target: String,
    registers: u32,
    shared: u32,
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
}

/// One compiled file.
pub struct Image {
    /// Name of the source, without its extension.
    pub name: String,
    /// Its targets, in the order of its code; none where the build has none of those that it is for.
    pub targets: Vec<String>,
    /// A file with the code of all targets: a line with their lengths, and then one after the other, in zstd's format. They are
    /// much alike, so they pack well together. What is wanted most is in front.
    pub packed: PathBuf,
    /// What ptxas said.
    pub usage: Vec<Usage>,
    /// Size of that file.
    pub bytes: u64,
    /// Compiled now, not taken from the cache.
    pub fresh: bool,
}

/// Who made the images, and for what.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// Release of the compiler, as in `13.0`.
    pub nvcc: String,
    /// Release of the assembler.
    pub ptxas: String,
    /// `sm_*` for machine code, `compute_*` for PTX. A file is compiled for some of them: see [`targets_of`].
    pub targets: Vec<String>,
}

/// The version that PTX says it is: the first with everything that the kernels use, so that an old driver takes it.
const PTX_VERSION: &str = "8.0";
/// The first that the assembler takes for cards after Hopper.
const PTX_VERSION_BLACKWELL: &str = "8.7";

/// The files to compile and how.
pub struct Job {
    nvcc: PathBuf,
    ptxas: PathBuf,
    /// The two, and the targets.
    pub made: Made,
    identity: [String; 2],
    /// All machine code has a table of lines: the build was told its targets.
    lines_everywhere: bool,
    sources: PathBuf,
    out: PathBuf,
}

/// The compiler that the environment names, or the one on the path.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os("NVCC").filter(|v| !v.is_empty()).map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).filter(|v| !v.is_empty());
    let installed = homes.map(|home| Path::new(&home).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("nvcc")).collect::<Vec<_>>();
    named.into_iter().chain(installed).chain(on_path).find(|candidate| candidate.is_file())
}

impl Job {
    /// Asks the compiler and the assembler for their releases. `targets` is a list with commas between; without one the job has
    /// those of `usual` that the assembler knows.
    pub fn new(
        nvcc: PathBuf,
        targets: Option<&str>,
        usual: &[&str],
        sources: &Path,
        out: &Path,
    ) -> Result<Self, String> {
        let named = std::env::var_os("PTXAS").filter(|v| !v.is_empty());
        let ptxas = named.map_or_else(|| beside(&nvcc, "ptxas"), absolute);
        let identity = [run(Command::new(&nvcc).arg("--version"))?, run(Command::new(&ptxas).arg("--version"))?];
        let release = |said: &str| said.split("release ").nth(1)?.split(',').next().map(str::to_string);
        let [nvcc_release, ptxas_release] = [(&nvcc, &identity[0]), (&ptxas, &identity[1])]
            .map(|(tool, said)| release(said).ok_or_else(|| format!("{}: no release in --version", tool.display())));
        let lines_everywhere = targets.is_some();
        let targets: Vec<String> = match targets {
            Some(list) => list.split(',').map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect(),
            None => {
                let known = run(Command::new(&ptxas).arg("--help"))?;
                let known = |target: &&&str| known.contains(&format!("'{}'", target.replace("sm_", "compute_")));
                usual.iter().filter(known).map(ToString::to_string).collect()
            }
        };
        if targets.is_empty() || targets.iter().any(|t| !t.starts_with("sm_") && !t.starts_with("compute_")) {
            return Err("GGRO_CUDA_TARGETS: a comma-separated list of sm_* and compute_* is expected".into());
        }
        if targets_of("", &targets).is_empty() {
            return Err(format!("GGRO_CUDA_TARGETS: most kernels have no code for {} alone", targets.join(", ")));
        }
        let made = Made { nvcc: nvcc_release?, ptxas: ptxas_release?, targets };
        let sources = std::env::current_dir().map_err(|e| e.to_string())?.join(sources);
        Ok(Job { nvcc, ptxas, made, identity, lines_everywhere, sources, out: out.to_path_buf() })
    }

    /// Compiles what has changed, on as many cores as cargo allows.
    pub fn run(&self) -> Result<Vec<Image>, String> {
        let mut files: Vec<PathBuf> = listed(&self.sources, "cu")?;
        let mut headers = DefaultHasher::new();
        for header in listed(&self.sources, "cuh")? {
            (header.file_name(), read(&header)?).hash(&mut headers);
        }
        (&self.identity, &self.made.targets, self.lines_everywhere, FLAGS, include_str!("nvcc.rs")).hash(&mut headers);
        // The largest file first: it decides how long the whole build takes.
        files.sort_by_key(|file| std::fs::metadata(file).map(|m| std::cmp::Reverse(m.len())).ok());
        let jobs: usize = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
        let (queue, done) = (Mutex::new(files.into_iter()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let Some(file) = queue.lock().unwrap().next() else { return };
                        let image = self.image(&file, headers.clone());
                        done.lock().unwrap().push(image);
                    }
                });
            }
        });
        let mut images = done.into_inner().unwrap().into_iter().collect::<Result<Vec<_>, _>>()?;
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    fn image(&self, file: &Path, mut hasher: DefaultHasher) -> Result<Image, String> {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let targets = targets_of(&name, &self.made.targets);
        (&name, read(file)?).hash(&mut hasher);
        let stem = format!("{name}-{:016x}", hasher.finish());
        let packed = self.out.join(format!("{stem}.zst"));
        let report = self.out.join(format!("{stem}.ptxas"));
        // The report is written last: where it is, the image is whole.
        let fresh = !report.is_file();
        if fresh {
            let old = std::fs::read_dir(&self.out).map_err(|e| format!("{}: {e}", self.out.display()))?;
            for old in old.filter_map(|entry| Some(entry.ok()?.path())) {
                let of = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if old.is_file() && of.rsplit_once('-').is_some_and(|(of, _)| of == name) {
                    let _ = std::fs::remove_file(old);
                }
            }
            let (code, said) = self.compile(&name, &targets, file)?;
            let all = ruzstd::encoding::compress_to_vec(joined(&code).as_slice(), CompressionLevel::Fastest);
            std::fs::write(&packed, all).map_err(|e| format!("{}: {e}", packed.display()))?;
            std::fs::write(&report, said).map_err(|e| format!("{}: {e}", report.display()))?;
        }
        let usage = parse(&read(&report)?);
        let bytes = std::fs::metadata(&packed).map_err(|e| format!("{}: {e}", packed.display()))?.len();
        Ok(Image { name, targets, packed, usage, bytes, fresh })
    }

    /// The code of each target, and what ptxas said.
    fn compile(&self, name: &str, targets: &[String], file: &Path) -> Result<(Vec<Vec<u8>>, String), String> {
        let work = self.out.join(format!("{name}.work"));
        std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
        let mut ptx: BTreeMap<&str, String> = BTreeMap::new();
        let (mut code, mut said) = (Vec::new(), String::new());
        for target in targets {
            let (machine, number) = target.split_once('_').map_or((true, ""), |(kind, n)| (kind == "sm", n));
            let (arch, version) = source_of(number);
            if !ptx.contains_key(arch) {
                let text = work.join(format!("{arch}.ptx"));
                let mut nvcc = Command::new(&self.nvcc);
                nvcc.args(FLAGS).arg("-ptx").arg(format!("-arch=compute_{arch}")).arg("-o").arg(&text).arg(file);
                run(&mut nvcc)?;
                ptx.insert(arch, self.scrub(&read(&text)?));
            }
            let text = with_version(&ptx[arch], version);
            if !machine {
                // The driver reads to the first zero.
                code.push((text + "\0").into_bytes());
                continue;
            }
            let input = work.join(format!("{target}.ptx"));
            std::fs::write(&input, text).map_err(|e| format!("{}: {e}", input.display()))?;
            let mut ptxas = Command::new(&self.ptxas);
            // Where it finds a source by the name in the PTX, the line table gets the time at which that was changed.
            ptxas.current_dir(&work);
            let output = work.join(format!("{target}.cubin"));
            // Without the second it would make the table in any case, of what is in the PTX.
            let lines = self.lines_everywhere || WITH_LINES.contains(&target.as_str());
            let how: &[&str] = if lines { &[] } else { &["--suppress-debug-info"] };
            ptxas.arg(format!("-arch={target}")).args(["-v", "--generate-line-info"]).args(how);
            ptxas.arg("-o").arg(&output).arg(&input);
            let report = run(&mut ptxas)?;
            if let Some(line) = serialised(&report) {
                return Err(format!("{name}.cu for {target}: {line}"));
            }
            said += &report;
            code.push(std::fs::read(&output).map_err(|e| format!("{}: {e}", output.display()))?);
        }
        let _ = std::fs::remove_dir_all(&work);
        Ok((code, said))
    }

    /// The same PTX with file names that are the same on every machine.
    fn scrub(&self, ptx: &str) -> String {
        let parent = self.sources.parent().unwrap_or(&self.sources).display().to_string() + "/";
        let mut text = String::with_capacity(ptx.len());
        for line in ptx.lines() {
            match line.trim_start().strip_prefix(".file") {
                Some(rest) => {
                    let (number, path) = rest.split_once('"').unwrap_or((rest, ""));
                    let path = path.trim_end().trim_end_matches('"');
                    let short = match (path.strip_prefix(&parent), path.rsplit_once("/include/")) {
                        (Some(own), _) => own.to_string(),
                        (None, Some((_, toolkit))) => format!("cuda/{toolkit}"),
                        (None, None) => path.rsplit('/').next().unwrap_or(path).to_string(),
                    };
                    let _ = writeln!(text, ".file{number}\"{short}\"");
                }
                None => {
                    text.push_str(&without_path_hash(line));
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// A tool of the compiler's own folder, else whatever has its name.
fn beside(nvcc: &Path, tool: &str) -> PathBuf {
    let real = std::fs::canonicalize(nvcc).unwrap_or_else(|_| nvcc.to_path_buf());
    let places = [nvcc, &real].map(|nvcc| nvcc.with_file_name(tool));
    places.into_iter().find(|place| place.is_file()).map_or_else(|| PathBuf::from(tool), absolute)
}

/// A path that is right in another folder, too: tools run elsewhere.
fn absolute(path: impl Into<PathBuf>) -> PathBuf {
    let path = path.into();
    std::path::absolute(&path).unwrap_or(path)
}

/// The virtual architecture and the version of the PTX of a target, by its number: cards after Hopper get Ampere's code, which
/// is also what a driver compiles for a card that has no machine code.
fn source_of(number: &str) -> (&str, &'static str) {
    let plain: Option<u32> = number.parse().ok();
    match plain {
        Some(100..) => ("80", PTX_VERSION_BLACKWELL),
        _ => (number, PTX_VERSION),
    }
}

/// The same PTX with a `.version` that is no newer than this.
fn with_version(ptx: &str, most: &str) -> String {
    let parts = |version: &str| -> Option<(u32, u32)> {
        let (major, minor) = version.split_once('.')?;
        Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
    };
    let mut text = String::with_capacity(ptx.len());
    for line in ptx.lines() {
        match line.strip_prefix(".version ") {
            Some(version) if parts(version) > parts(most) => {
                let _ = writeln!(text, ".version {most}");
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// A line without the eight digits in names of internal symbols that nvcc makes of the path of the source: `_INTERNAL_1a2b3c4d_`,
/// as text or as bytes of debug information.
fn without_path_hash(line: &str) -> String {
    const TEXT: &str = "_INTERNAL_";
    const BYTES: &str = "95,73,78,84,69,82,78,65,76,95,";
    let mut done = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((at, marker)) = [TEXT, BYTES].into_iter().filter_map(|m| Some((rest.find(m)?, m))).min() {
        let end = at + marker.len();
        done += &rest[..end];
        rest = &rest[end..];
        let (zeros, length) = match marker {
            TEXT => ("00000000".to_string(), rest.len().min(8)),
            _ => ("48,".repeat(8), rest.match_indices(',').nth(7).map_or(rest.len(), |(comma, _)| comma + 1)),
        };
        done += &zeros;
        rest = rest.get(length..).unwrap_or_default();
    }
    done + rest
}

/// The line, if there is one, in which ptxas says that it made asynchronous matrix instructions wait for each other. That is right
/// and several times slower, and it says so as information: the codes C7510 to C7520 and their neighbours.
pub fn serialised(said: &str) -> Option<&str> {
    let coded = |line: &&str| {
        let code = line.split_once("(C75").and_then(|(_, rest)| rest.split_once(')'));
        code.is_some_and(|(number, _)| number.len() == 2 && number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    said.lines().find(coded)
}

/// Per kernel: `Compiling entry function 'NAME' for 'TARGET'`, then a line of stack and spills, then one of registers.
pub fn parse(said: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut parts = rest.split('\'');
            let kernel = parts.next().unwrap_or_default().to_string();
            let target = parts.nth(1).unwrap_or_default().to_string();
            all.push(Usage { kernel, target, ..Usage::default() });
        }
        let Some(last) = all.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            last.stack = before(line, " bytes stack frame");
            last.spill_stores = before(line, " bytes spill stores");
            last.spill_loads = before(line, " bytes spill loads");
        }
        if line.contains(" registers") {
            last.registers = before(line, " registers");
            last.shared = before(line, " bytes smem");
        }
    }
    all.sort_by(|a, b| (&a.kernel, &a.target).cmp(&(&b.kernel, &b.target)));
    all
}

/// The number that stands right before `words`, 0 if they are absent.
fn before(line: &str, words: &str) -> u32 {
    let Some((front, _)) = line.split_once(words) else { return 0 };
    front.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Rust source of the embedded table.
pub fn table(made: &Made, images: &[Image], stored: bool) -> String {
    let Made { nvcc, ptxas, targets } = made;
    let usual = targets_of("", targets);
    let mut text = format!("static COMPILER: &str = {nvcc:?};\nstatic ASSEMBLER: &str = {ptxas:?};\n");
    let _ = writeln!(text, "static TARGETS: &[&str] = &{usual:?};\nstatic STORED: bool = {stored};");
    text += "static IMAGES: &[Image] = &[\n";
    for image in images {
        let file = image.packed.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(
            text,
            "Image {{ name: {:?}, targets: &{:?}, \
             code: Code::Packed(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\"))), usage: &[",
            image.name, image.targets
        );
        for u in &image.usage {
            let _ = writeln!(
                text,
                "Usage {{ kernel: {:?}, target: {:?}, registers: {}, shared: {}, stack: {}, spill_stores: {}, \
                 spill_loads: {} }},",
                u.kernel, u.target, u.registers, u.shared, u.stack, u.spill_stores, u.spill_loads
            );
        }
        text += "] },\n";
    }
    text + "];\n"
}

/// Code of all targets in one piece.
fn joined(code: &[Vec<u8>]) -> Vec<u8> {
    let lengths: Vec<String> = code.iter().map(|code| code.len().to_string()).collect();
    let mut all = (lengths.join(" ") + "\n").into_bytes();
    all.extend(code.iter().flatten());
    all
}

/// Files of a folder by extension, in order.
pub fn listed(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    Ok(files)
}

/// A file as text.
pub fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Both outputs of a command that succeeded; its own words if it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{said}", output.status));
    }
    Ok(said)
}
