//! Compiles `kernels/*.cu` into embedded images, one per file, and writes the table that `src/cuda/images.rs` includes;
//! compiles the shim over NVTX where its header is; and tells the binary which commit it was built from.
//!
//! nvcc is looked for in `NVCC`, then `CUDA_HOME` or `CUDA_PATH`, then `PATH`. Without it the images in `build/images` are
//! taken, if they are those of the sources. `GGRO_NO_CUDA=1` hides both, and then the table is empty. `PTXAS` names
//! another assembler than nvcc's, for drivers that are older than it. `GGRO_CUDA_TARGETS` overrides the list of targets, for
//! instance `sm_90a` alone while working on one card; files for Hopper alone (`*_sm90.cu`) have those of it that are
//! Hopper's. `GGRO_IMAGES_OUT` names a folder for a copy of what nvcc made, which `scripts/store-images.py` stores.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/nvtx.rs"]
mod nvtx;
#[path = "build/stored.rs"]
mod stored;

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::time::Instant;

/// Machine code for Ampere, Hopper and Blackwell, and PTX for whatever comes later. The last is what Hopper's machine code is made
/// of: the emulated device executes it.
const TARGETS: [&str; 6] = ["sm_80", "sm_90a", "sm_100", "sm_120", "compute_80", "compute_90a"];

fn main() {
    commit();
    kernels();
}

/// Compiles what has changed and writes the table.
fn kernels() {
    for variable in
        ["NVCC", "PTXAS", "CUDA_HOME", "CUDA_PATH", "PATH", "GGRO_CUDA_TARGETS", "GGRO_NO_CUDA", "GGRO_IMAGES_OUT"]
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for watched in ["kernels", "build.rs", "build"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let table = out.join("images.rs");
    let hidden = std::env::var_os("GGRO_NO_CUDA").is_some_and(|value| !value.is_empty() && value != "0");
    let compiler = if hidden { None } else { nvcc::find() };
    nvtx::compile(compiler.as_deref());
    let Some(nvcc) = compiler else {
        let found = match hidden {
            true => Err("GGRO_NO_CUDA is set".to_string()),
            false => stored::copy(Path::new("kernels"), &out)
                .map_err(|why| format!("no nvcc in NVCC, CUDA_HOME, CUDA_PATH or PATH, and {why}")),
        };
        match found {
            Ok((made, images)) => write(&table, &nvcc::table(&made, &images, true)),
            Err(why) => {
                println!("cargo::warning={why}: building without CUDA kernels");
                write(&table, &nvcc::table(&nvcc::Made::default(), &[], false));
            }
        }
        return;
    };
    let targets = std::env::var("GGRO_CUDA_TARGETS").ok().filter(|list| !list.is_empty());
    let started = Instant::now();
    let kernels = Path::new("kernels");
    let result = nvcc::Job::new(nvcc, targets.as_deref(), &TARGETS, kernels, &out).and_then(|job| {
        let images = job.run()?;
        if let Some(dir) = std::env::var_os("GGRO_IMAGES_OUT").filter(|dir| !dir.is_empty()) {
            stored::write(kernels, Path::new(&dir), &job.made, &images)?;
        }
        Ok((job.made, images))
    });
    match result {
        Ok((made, images)) => {
            write(&table, &nvcc::table(&made, &images, false));
            let compiled = images.iter().filter(|image| image.fresh).count();
            let bytes: u64 = images.iter().map(|image| image.bytes).sum();
            if compiled > 0 {
                println!(
                    "cargo::warning=compiled {compiled} of {} kernel files for {} in {:.1} s: {:.1} MB",
                    images.len(),
                    made.targets.join(", "),
                    started.elapsed().as_secs_f64(),
                    bytes as f64 / 1e6,
                );
            }
        }
        Err(message) => {
            eprintln!("{message}");
            exit(1);
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The commit. Works without git and outside a repository: then the binary does not know.
fn commit() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // A package unpacked inside somebody else's repository is not of that repository's commit.
    let top = git(&root, &["rev-parse", "--show-toplevel"]);
    if top.is_none_or(|top| Path::new(&top).canonicalize().ok() != Path::new(&root).canonicalize().ok()) {
        return;
    }
    if let Some(commit) = git(&root, &["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo::rustc-env=GGRO_BUILD_COMMIT={commit}");
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&root, &["rev-parse", "--git-path", file]) {
            let path = Path::new(&root).join(path);
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
}

fn git(root: &str, args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_string())
}
