//! Builds the emulated device, compiles a directory of kernels to PTX, and prints the variables that put both in front of any
//! program: `env $(cargo run -q -p ggro-emulator --example environment -- kernels checked) ggro kernels test`. In place of a
//! directory of sources, a folder that has PTX already is taken as it is.

use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let kernels = PathBuf::from(arguments.next().unwrap_or_else(|| "kernels".to_owned()));
    let checked = match arguments.next().as_deref() {
        None | Some("plain") => false,
        Some("checked") => true,
        Some(other) => return Err(io::Error::other(format!("plain or checked, not {other}"))),
    };
    // All of it or nothing: half of it would run a program on another device.
    let (library, ptx) = (ggro_emulator::build()?, ptx(&kernels)?);
    println!("LD_LIBRARY_PATH={}", library.with_file_name("").display());
    println!("GGRO_EMU_PTX={}", ptx.display());
    println!("GGRO_EMU_ACCESSES={}", if checked { "observed" } else { "plain" });
    Ok(())
}

fn ptx(kernels: &Path) -> io::Result<PathBuf> {
    for entry in kernels.read_dir()? {
        if entry?.path().extension().is_some_and(|e| e == "ptx") {
            return kernels.canonicalize();
        }
    }
    let nvcc = ggro_emulator::nvcc()
        .ok_or_else(|| io::Error::other("there is no nvcc: NVCC=$(scripts/install-nvcc.sh) names one"))?;
    // As for the card that the device looks like unless it is told otherwise.
    Ok(ggro_emulator::build_ptx(&nvcc, &[kernels], "compute_90a")?.remove(0))
}
