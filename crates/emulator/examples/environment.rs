//! Builds the emulated device for a directory of kernels and prints the variables that put it in front of any program:
//! `env $(cargo run -q -p ggro-emulator --example environment -- kernels checked) ggro kernels test`.

use std::io;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let kernels = arguments.next().unwrap_or_else(|| "kernels".to_owned());
    let checked = arguments.next().is_some_and(|a| a == "checked");
    let paths = ggro_emulator::build(kernels)?;
    println!("LD_LIBRARY_PATH={}", paths.libcuda.with_file_name("").display());
    println!("GGRO_EMU_KERNELS={}", if checked { paths.checked } else { paths.plain }.display());
    Ok(())
}
