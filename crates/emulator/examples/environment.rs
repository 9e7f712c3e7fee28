//! Builds the emulated device for a directory of kernels and prints the variables that put it in front of any program:
//! `env $(cargo run -q -p ggro-emulator --example environment -- kernels checked) ggro kernels test`. With `ptx`, what nvcc
//! makes of the kernels runs in place of their sources.

use std::io;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let kernels = arguments.next().unwrap_or_else(|| "kernels".to_owned());
    let words: Vec<String> = arguments.collect();
    let asked = |word: &str| words.iter().any(|w| w == word);
    let paths = ggro_emulator::build(&kernels)?;
    println!("LD_LIBRARY_PATH={}", paths.libcuda.with_file_name("").display());
    println!("GGRO_EMU_KERNELS={}", if asked("checked") { paths.checked } else { paths.plain }.display());
    println!("GGRO_EMU_ACCESSES={}", if asked("checked") { "observed" } else { "plain" });
    if asked("ptx") {
        let nvcc = ggro_emulator::nvcc().ok_or_else(|| io::Error::other("there is no nvcc (NVCC or PATH)"))?;
        println!("GGRO_EMU_PTX={}", ggro_emulator::build_ptx(&nvcc, &[kernels], "compute_80")?[0].display());
    }
    Ok(())
}
