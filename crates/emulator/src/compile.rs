//! Compiles the engine with the host's C++ compiler, and kernels to PTX with nvcc.
//!
//! Results are kept beside the test binaries and made again when a source, a header, the flags or the compiler change. A file
//! lock lets test processes share one build.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// `-O3` for the loops over the lanes of a warp, which become vector instructions.
const ENGINE_FLAGS: &[&str] = &["-std=c++17", "-O3", "-g1", "-fPIC", "-Wall", "-Wextra", "-fno-exceptions"];

/// The name that a search for the driver's library is satisfied by.
const LINK_FLAGS: &[&str] = &["-Wl,-soname,libcuda.so", "-lpthread"];

/// As in build/nvcc.rs, but that warnings are none of a test's business.
const NVCC_FLAGS: &[&str] = &["-std=c++17", "-lineinfo", "-O3"];

/// Builds the engine: a library under the name of the driver's. Takes half a minute the first time and milliseconds afterwards.
///
/// # Errors
/// There is no C++ compiler, or a file cannot be written.
pub fn build() -> io::Result<PathBuf> {
    let output = Output::lock()?;
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let version = run(Command::new(&compiler).arg("--version"))?;
    let mut flags = to_strings(ENGINE_FLAGS);
    if ["avx2", "fma", "bmi2", "f16c"].iter().all(|f| cpu_has(f)) {
        flags.push("-march=x86-64-v3".to_owned());
    }
    let inputs = hash_files(&files(&engine, "h")?)?;
    let (mut jobs, mut objects) = (Vec::new(), Vec::new());
    for source in files(&engine, "cc")? {
        let object = output.folder.join(source.file_name().unwrap_or_default()).with_extension("o");
        objects.push(object.clone());
        jobs.push(Job { source, object, flags: flags.clone(), inputs, phase: "-c" });
    }
    run_all(&compiler, &version, &jobs)?;
    let library = output.folder.join("libcuda.so.1");
    let key = hash_of(&(hash_files(&objects)?, LINK_FLAGS, &version)).to_string();
    if !is_current(&library, &key) {
        let fresh = library.with_extension("new");
        run(Command::new(&compiler).arg("-shared").args(&objects).args(LINK_FLAGS).arg("-o").arg(&fresh))?;
        // A new file, not new contents: another process may have the old one loaded.
        fs::rename(&fresh, &library)?;
        fs::write(key_file(&library), key)?;
    }
    Ok(library)
}

/// The nvcc that `NVCC` names, or the one on the path; none with `GGRO_NO_CUDA=1`, as for the build of the product.
pub fn nvcc() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if set("GGRO_NO_CUDA").is_some_and(|value| value != "0") {
        return None;
    }
    let path = set("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc"));
    set("NVCC").map(PathBuf::from).into_iter().chain(on_path).find(|candidate| candidate.is_file())
}

/// The PTX that nvcc makes of all `*.cu` of each directory for a virtual architecture such as `compute_80`: folders for the
/// setting `ptx`, in the order of the directories. Files for Hopper alone (`*_sm90.cu`) are made for `compute_90a` in any case:
/// there is no other code of them, and no other device is asked to run it.
///
/// # Errors
/// nvcc's own words, when it does not start or refuses a source.
pub fn build_ptx(nvcc: &Path, directories: &[impl AsRef<Path>], arch: &str) -> io::Result<Vec<PathBuf>> {
    let output = Output::lock()?;
    let version = run(Command::new(nvcc).arg("--version"))?;
    let (mut jobs, mut folders) = (Vec::new(), Vec::new());
    for directory in directories {
        let directory = directory.as_ref().canonicalize()?;
        let inputs = hash_files(&files(&directory, "cuh")?)?;
        let folder = output.folder.join(format!("{:016x}", hash_of(&directory))).join(arch);
        fs::create_dir_all(&folder)?;
        let mut stale = files(&folder, "ptx")?;
        for source in files(&directory, "cu")? {
            let object = folder.join(source.file_name().unwrap_or_default()).with_extension("ptx");
            let for_hopper = source.file_stem().is_some_and(|name| name.to_string_lossy().ends_with("_sm90"));
            let arch = if for_hopper { "compute_90a" } else { arch };
            let flags = [to_strings(NVCC_FLAGS), vec![format!("-arch={arch}")]].concat();
            stale.retain(|made| *made != object);
            jobs.push(Job { source, object, flags, inputs, phase: "-ptx" });
        }
        // Of a source that is gone: its kernels may be in another one by now.
        stale.into_iter().try_for_each(fs::remove_file)?;
        folders.push(folder);
    }
    run_all(&nvcc.display().to_string(), &version, &jobs)?;
    Ok(folders)
}

/// The folder of results, locked against other processes.
struct Output {
    folder: PathBuf,
    /// Released when dropped.
    _lock: File,
}

impl Output {
    fn lock() -> io::Result<Output> {
        let folder = output_directory()?;
        let lock = File::create(folder.join("lock"))?;
        lock.lock()?;
        Ok(Output { folder, _lock: lock })
    }
}

struct Job {
    source: PathBuf,
    object: PathBuf,
    flags: Vec<String>,
    inputs: u64,
    /// What is made of the source: `-c`, an object.
    phase: &'static str,
}

fn run_all(compiler: &str, version: &str, jobs: &[Job]) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let workers = thread::available_parallelism().map_or(2, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = compile(compiler, version, job) {
                        failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

fn compile(compiler: &str, version: &str, job: &Job) -> io::Result<()> {
    let key = hash_of(&(fs::read(&job.source)?, &job.source, &job.flags, job.inputs, version)).to_string();
    if is_current(&job.object, &key) {
        return Ok(());
    }
    run(Command::new(compiler).args(&job.flags).arg(job.phase).arg(&job.source).arg("-o").arg(&job.object))?;
    fs::write(key_file(&job.object), key)
}

/// The command's output; its own words when it fails.
fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output().map_err(|e| {
        let program = command.get_program().to_string_lossy().into_owned();
        io::Error::new(e.kind(), format!("the emulated device needs a compiler, {program} does not start: {e}"))
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr))))
}

/// `target/<profile>/emulator`, found from the running test binary.
fn output_directory() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let profile = program.ancestors().skip(1).find(|p| !p.ends_with("deps") && !p.ends_with("examples"));
    let directory = profile.map_or_else(std::env::temp_dir, Path::to_path_buf).join("emulator");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn files(directory: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            list.push(path);
        }
    }
    list.sort();
    Ok(list)
}

fn hash_files(paths: &[PathBuf]) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        (path, fs::read(path)?).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn key_file(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".key");
    name.into()
}

fn is_current(target: &Path, key: &str) -> bool {
    target.exists() && fs::read_to_string(key_file(target)).is_ok_and(|old| old == key)
}

fn to_strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[cfg(target_arch = "x86_64")]
fn cpu_has(feature: &str) -> bool {
    match feature {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "bmi2" => is_x86_feature_detected!("bmi2"),
        "f16c" => is_x86_feature_detected!("f16c"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has(_: &str) -> bool {
    false
}
