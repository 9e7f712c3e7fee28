//! NVTX, if its header is found: beside nvcc, in `NVTX_INCLUDE`, or where headers of the toolkit usually are.

use std::path::{Path, PathBuf};

const HEADER: &str = "nvtx3/nvToolsExt.h";

/// Compiles `src/profile/nvtx.c` and says so to the crate.
pub fn compile(nvcc: Option<&Path>) {
    println!("cargo::rustc-check-cfg=cfg(nvtx)");
    println!("cargo::rerun-if-env-changed=NVTX_INCLUDE");
    println!("cargo::rerun-if-changed=src/profile/nvtx.c");
    println!("cargo::rerun-if-changed=build/nvtx.rs");
    let Some(include) = include(nvcc) else { return };
    let compiled = cc::Build::new()
        .file("src/profile/nvtx.c")
        .include(&include)
        .warnings(false)
        .cargo_warnings(false)
        .try_compile("ggro_nvtx");
    match compiled {
        Ok(()) => {
            println!("cargo::rustc-cfg=nvtx");
            println!("cargo::rustc-env=GGRO_NVTX_INCLUDE={}", include.display());
        }
        Err(error) => println!("cargo::warning=NVTX does not compile, and is left out: {error}"),
    }
}

fn include(nvcc: Option<&Path>) -> Option<PathBuf> {
    let named = std::env::var_os("NVTX_INCLUDE").filter(|v| !v.is_empty()).map(PathBuf::from);
    // bin/nvcc and include/ lie side by side, in a toolkit and in a Python package alike.
    let beside = nvcc.and_then(|nvcc| Some(nvcc.parent()?.parent()?.join("include")));
    let usual = [PathBuf::from("/usr/local/cuda/include")];
    named.into_iter().chain(beside).chain(usual).find(|folder| folder.join(HEADER).is_file())
}
