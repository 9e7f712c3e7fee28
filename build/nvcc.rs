//! Driving nvcc: PTX per virtual architecture, machine code per target, one fat binary per file, and what ptxas said.
//!
//! The steps are taken one by one instead of with `nvcc -fatbin` because of the line table: it would carry the absolute
//! paths of this machine. The PTX is rewritten in between, so that a binary names `kernels/gemm.cu` and nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// How sources are compiled, for every target.
pub const FLAGS: [&str; 4] = ["-std=c++17", "-lineinfo", "-O3", "-Werror=all-warnings"];

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
    /// The fat binary.
    pub path: PathBuf,
    /// What ptxas said.
    pub usage: Vec<Usage>,
    /// Size of the fat binary.
    pub bytes: u64,
    /// Compiled now, not taken from the cache.
    pub fresh: bool,
}

/// The files to compile and how.
pub struct Job {
    nvcc: PathBuf,
    /// Release, as in `13.0`.
    pub version: String,
    identity: String,
    /// `sm_*` for machine code, `compute_*` for PTX.
    pub targets: Vec<String>,
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
    /// Checks the targets and asks the compiler for its version.
    pub fn new(nvcc: PathBuf, targets: &str, sources: &Path, out: &Path) -> Result<Self, String> {
        let targets: Vec<String> = targets.split(',').map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect();
        if targets.is_empty() || targets.iter().any(|t| !t.starts_with("sm_") && !t.starts_with("compute_")) {
            return Err("GGRO_CUDA_TARGETS: a comma-separated list of sm_* and compute_* is expected".into());
        }
        let identity = run(Command::new(&nvcc).arg("--version"))?;
        let release = identity.split("release ").nth(1).and_then(|rest| rest.split(',').next());
        let version = release.ok_or_else(|| format!("{}: no release in --version", nvcc.display()))?.to_string();
        let sources = std::env::current_dir().map_err(|e| e.to_string())?.join(sources);
        Ok(Job { nvcc, version, identity, targets, sources, out: out.to_path_buf() })
    }

    /// Compiles what has changed, on as many cores as cargo allows.
    pub fn run(&self) -> Result<Vec<Image>, String> {
        let mut files: Vec<PathBuf> = listed(&self.sources, "cu")?;
        let mut headers = DefaultHasher::new();
        for header in listed(&self.sources, "cuh")? {
            (header.file_name(), read(&header)?).hash(&mut headers);
        }
        (&self.identity, &self.targets, FLAGS, include_str!("nvcc.rs")).hash(&mut headers);
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
        (&name, read(file)?).hash(&mut hasher);
        let stem = format!("{name}-{:016x}", hasher.finish());
        let path = self.out.join(format!("{stem}.fatbin"));
        let report = self.out.join(format!("{stem}.ptxas"));
        // The report is written last: where it is, the image is whole.
        let fresh = !report.is_file();
        if fresh {
            let kinds = ["fatbin", "ptxas", "ptx"].map(|kind| listed(&self.out, kind));
            for old in kinds.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
                let of = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if of.rsplit_once('-').is_some_and(|(of, _)| of == name) {
                    let _ = std::fs::remove_file(old);
                }
            }
            let said = self.compile(&name, file, &path)?;
            std::fs::write(&report, said).map_err(|e| format!("{}: {e}", report.display()))?;
        }
        let usage = parse(&read(&report)?);
        let bytes = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.len();
        Ok(Image { name, path, usage, bytes, fresh })
    }

    /// Writes the fat binary and returns what ptxas said.
    fn compile(&self, name: &str, file: &Path, image: &Path) -> Result<String, String> {
        let work = self.out.join(format!("{name}.work"));
        std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
        let mut ptx: BTreeMap<&str, PathBuf> = BTreeMap::new();
        let mut said = String::new();
        let mut fatbinary = Command::new(self.beside("fatbinary"));
        fatbinary.arg(format!("--create={}", image.display())).arg("-64");
        for target in &self.targets {
            let (kind, number) = target.split_once('_').unwrap_or(("", target));
            if !ptx.contains_key(number) {
                let text = work.join(format!("{number}.ptx"));
                let mut nvcc = Command::new(&self.nvcc);
                nvcc.args(FLAGS).arg("-ptx").arg(format!("-arch=compute_{number}")).arg("-o").arg(&text).arg(file);
                run(&mut nvcc)?;
                let scrubbed = self.scrub(&read(&text)?);
                std::fs::write(&text, scrubbed).map_err(|e| format!("{}: {e}", text.display()))?;
                ptx.insert(number, text);
            }
            let text = &ptx[number];
            if kind == "compute" {
                fatbinary.arg(format!("--image3=kind=ptx,sm={number},file={}", text.display()));
                continue;
            }
            let code = work.join(format!("{number}.cubin"));
            let mut ptxas = Command::new(self.beside("ptxas"));
            // Where it finds a source by the name in the PTX, the line table gets the time at which that was changed.
            ptxas.current_dir(&work);
            ptxas.arg(format!("-arch=sm_{number}")).args(["-v", "--generate-line-info"]).arg("-o").arg(&code).arg(text);
            let report = run(&mut ptxas)?;
            if let Some(line) = serialised(&report) {
                return Err(format!("{name}.cu for {target}: {line}"));
            }
            said += &report;
            fatbinary.arg(format!("--image3=kind=elf,sm={number},file={}", code.display()));
        }
        run(&mut fatbinary)?;
        // The text, for tests that execute it: in the fat binary it is packed.
        for target in self.targets.iter().filter_map(|target| target.strip_prefix("compute_")) {
            let kept = image.with_extension(format!("{target}.ptx"));
            std::fs::rename(&ptx[target], &kept).map_err(|e| format!("{}: {e}", kept.display()))?;
        }
        let _ = std::fs::remove_dir_all(&work);
        Ok(said)
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

    fn beside(&self, tool: &str) -> PathBuf {
        let real = std::fs::canonicalize(&self.nvcc).unwrap_or_else(|_| self.nvcc.clone());
        let places = [&self.nvcc, &real].map(|nvcc| nvcc.with_file_name(tool));
        let found = places.into_iter().find(|place| place.is_file());
        // Absolute, because it may be run elsewhere.
        found.map_or_else(|| PathBuf::from(tool), |place| std::path::absolute(&place).unwrap_or(place))
    }
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
pub fn table(version: &str, targets: &[String], images: &[Image], stored: bool) -> String {
    let mut text = format!("static COMPILER: &str = {version:?};\nstatic TARGETS: &[&str] = &{targets:?};\n");
    let _ = writeln!(text, "static STORED: bool = {stored};");
    text += "static IMAGES: &[Image] = &[\n";
    for image in images {
        let path = image.path.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(
            text,
            "Image {{ name: {:?}, bytes: &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{path}\"))).0, usage: &[",
            image.name
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
