//! Compiles the engine and, twice, the kernels with the host's C++ compiler.
//!
//! Objects are kept beside the test binaries and rebuilt when a source, a header, the flags or the compiler change. A
//! file lock lets test processes share one build.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The built libraries.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The engine, under the name of the driver library.
    pub libcuda: PathBuf,
    /// The kernels as they are.
    pub plain: PathBuf,
    /// The kernels with every load and store reported to the engine.
    pub checked: PathBuf,
}

/// `-O3` for the loops over the lanes of a warp, which become vector instructions.
const ENGINE_FLAGS: &[&str] = &["-std=c++17", "-O3", "-g1", "-fPIC", "-Wall", "-Wextra", "-fno-exceptions"];

/// `-ffp-contract=off`: a product and a sum round separately unless the kernel says fma. `-fno-gnu-unique`: statics of
/// templates stay apart in the two libraries.
const KERNEL_FLAGS: &[&str] = &[
    "-x",
    "c++",
    "-std=c++17",
    "-DGGRO_EMU",
    "-O2",
    "-g",
    "-fPIC",
    "-fno-strict-aliasing",
    "-fno-threadsafe-statics",
    "-fno-exceptions",
    "-fno-gnu-unique",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
];

/// As in build/nvcc.rs, but that warnings are none of a test's business.
const NVCC_FLAGS: &[&str] = &["-std=c++17", "-lineinfo", "-O3"];

/// The compiler puts a call before every access; the engine has the functions it calls, libtsan is not linked. Without
/// `-fno-tree-sra` a vector access would be taken apart into scalars, with its alignment and its width.
const CHECKED_FLAGS: &[&str] = &["-fsanitize=thread", "-fno-tree-sra", "-fno-ipa-sra"];

/// Builds the engine and all `*.cu` of a directory. Takes seconds the first time and milliseconds afterwards.
pub fn build(kernels: impl AsRef<Path>) -> io::Result<Paths> {
    let workshop = Workshop::new()?;
    let (mut jobs, engine) = workshop.engine()?;
    let (plain_jobs, plain) = workshop.kernels(kernels.as_ref(), &PLAIN)?;
    let (checked_jobs, checked) = workshop.kernels(kernels.as_ref(), &CHECKED)?;
    jobs.extend(plain_jobs);
    jobs.extend(checked_jobs);
    workshop.run(&jobs)?;
    Ok(Paths { libcuda: workshop.link(&engine)?, plain: workshop.link(&plain)?, checked: workshop.link(&checked)? })
}

/// The plain kernels of many directories at once, in their order; the engine must have been built.
pub fn build_plain(directories: &[impl AsRef<Path>]) -> io::Result<Vec<PathBuf>> {
    build_variant(directories, &PLAIN)
}

/// The checked kernels of many directories at once, in their order; the engine must have been built.
pub fn build_checked(directories: &[impl AsRef<Path>]) -> io::Result<Vec<PathBuf>> {
    build_variant(directories, &CHECKED)
}

fn build_variant(directories: &[impl AsRef<Path>], variant: &Variant) -> io::Result<Vec<PathBuf>> {
    let workshop = Workshop::new()?;
    let (mut jobs, mut libraries) = (Vec::new(), Vec::new());
    for directory in directories {
        let (more, library) = workshop.kernels(directory.as_ref(), variant)?;
        jobs.extend(more);
        libraries.push(library);
    }
    workshop.run(&jobs)?;
    libraries.iter().map(|library| workshop.link(library)).collect()
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
/// setting `ptx`, in the order of the directories. nvcc says what is wrong with a file.
pub fn build_ptx(nvcc: &Path, directories: &[impl AsRef<Path>], arch: &str) -> io::Result<Vec<PathBuf>> {
    let workshop = Workshop::new()?;
    let version = run(Command::new(nvcc).arg("--version"))?;
    let (mut jobs, mut folders) = (Vec::new(), Vec::new());
    for directory in directories {
        let directory = directory.as_ref().canonicalize()?;
        let inputs = hash_files(&files(&directory, "cuh")?)?;
        let folder = workshop.output.join(format!("{:016x}", hash_of(&directory))).join(arch);
        fs::create_dir_all(&folder)?;
        for source in files(&directory, "cu")? {
            let object = folder.join(source.file_name().unwrap_or_default()).with_extension("ptx");
            let flags = [to_strings(NVCC_FLAGS), vec![format!("-arch={arch}")]].concat();
            jobs.push(Job { source, object, flags, inputs, phase: "-ptx" });
        }
        folders.push(folder);
    }
    run_all(&nvcc.display().to_string(), &version, &jobs)?;
    Ok(folders)
}

/// How kernels are compiled.
struct Variant {
    name: &'static str,
    flags: &'static [&'static str],
}

const PLAIN: Variant = Variant { name: "plain", flags: &[] };
const CHECKED: Variant = Variant { name: "checked", flags: CHECKED_FLAGS };

/// A shared object to be linked.
struct Library {
    path: PathBuf,
    objects: Vec<PathBuf>,
    extra: Vec<String>,
}

/// The compiler and the directory of its results, locked against other processes.
struct Workshop {
    output: PathBuf,
    include: PathBuf,
    engine: PathBuf,
    compiler: String,
    version: String,
    common: Vec<String>,
    /// Released when dropped.
    _lock: File,
}

impl Workshop {
    fn new() -> io::Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let include = here.join("include");
        let output = output_directory()?;
        let lock = File::create(output.join("lock"))?;
        lock.lock()?;
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
        let version = run(Command::new(&compiler).arg("--version"))?;
        let mut common = vec![format!("-I{}", include.display())];
        if ["avx2", "fma", "bmi2", "f16c"].iter().all(|f| cpu_has(f)) {
            common.push("-march=x86-64-v3".to_owned());
        }
        Ok(Workshop { output, include, engine: here.join("engine"), compiler, version, common, _lock: lock })
    }

    fn engine(&self) -> io::Result<(Vec<Job>, Library)> {
        let inputs = hash_files(&[files(&self.engine, "h")?, files(&self.include, "h")?].concat())?;
        let (mut jobs, mut objects) = (Vec::new(), Vec::new());
        for source in files(&self.engine, "cc")? {
            let object = self.output.join(source.file_name().unwrap_or_default()).with_extension("o");
            let flags = [to_strings(ENGINE_FLAGS), self.common.clone()].concat();
            objects.push(object.clone());
            jobs.push(Job { source, object, flags, inputs, phase: "-c" });
        }
        let extra = to_strings(&["-Wl,-soname,libcuda.so", "-ldl", "-lrt", "-lpthread"]);
        Ok((jobs, Library { path: self.libcuda(), objects, extra }))
    }

    fn kernels(&self, directory: &Path, variant: &Variant) -> io::Result<(Vec<Job>, Library)> {
        let directory = directory.canonicalize()?;
        let inputs = hash_files(&[files(&directory, "cuh")?, files(&self.include, "h")?].concat())?;
        let place = self.output.join(format!("{:016x}", hash_of(&directory)));
        fs::create_dir_all(&place)?;
        let (mut jobs, mut objects) = (Vec::new(), Vec::new());
        for source in files(&directory, "cu")? {
            let name = format!("{}.{}.o", source.file_stem().unwrap_or_default().to_string_lossy(), variant.name);
            let object = place.join(name);
            let mut flags = [to_strings(KERNEL_FLAGS), to_strings(variant.flags), self.common.clone()].concat();
            flags.push(format!("-I{}", directory.display()));
            flags.extend(["-include".to_owned(), "emu.h".to_owned()]);
            objects.push(object.clone());
            jobs.push(Job { source, object, flags, inputs, phase: "-c" });
        }
        let extra = vec![
            "-Wl,-Bsymbolic".to_owned(),
            format!("-Wl,-T,{}", self.engine.join("kernels.ld").display()),
            // The engine's name in the dynamic section is its SONAME; at run time the loaded engine answers to it.
            self.libcuda().display().to_string(),
            "-lm".to_owned(),
        ];
        Ok((jobs, Library { path: place.join(format!("kernels-{}.so", variant.name)), objects, extra }))
    }

    fn libcuda(&self) -> PathBuf {
        self.output.join("libcuda.so.1")
    }

    fn run(&self, jobs: &[Job]) -> io::Result<()> {
        run_all(&self.compiler, &self.version, jobs)
    }

    fn link(&self, library: &Library) -> io::Result<PathBuf> {
        let Library { path, objects, extra } = library;
        let key = hash_of(&(hash_files(objects)?, extra, &self.version)).to_string();
        if !is_current(path, &key) {
            let fresh = path.with_extension("new");
            run(Command::new(&self.compiler).arg("-shared").args(objects).args(extra).arg("-o").arg(&fresh))?;
            // A new file, not new contents: another process may have the old one loaded.
            fs::rename(&fresh, path)?;
            fs::write(key_file(path), key)?;
        }
        Ok(path.clone())
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
        io::Error::new(e.kind(), format!("the emulated device needs a C++ compiler, {program} does not start: {e}"))
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
