//! The `ggro` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    match ggro::cli::run() {
        Ok(code) => code,
        Err(error) => ggro::cli::report(&error),
    }
}
