//! Commands that this build leaves out. They take any arguments, and say which feature brings them.

use crate::Error;
use std::ffi::OsString;

/// Not in this build
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _arguments: Vec<OsString>,
}

fn refused(command: &str, feature: &str) -> anyhow::Error {
    let how = format!("cargo build --release --features {feature}");
    Error::invalid(format!("this build has no `ggro {command}`: it lacks the feature `{feature}` ({how})")).into()
}

/// A module that stands for the one of a command.
macro_rules! missing {
    ($command:ident, $feature:literal) => {
        pub(in crate::cli) mod $command {
            pub(in crate::cli) use crate::cli::missing::Args;

            pub(in crate::cli) fn run(_: &Args) -> anyhow::Result<std::process::ExitCode> {
                Err(crate::cli::missing::refused(stringify!($command), $feature))
            }
        }
    };
}

#[cfg(not(feature = "server"))]
missing!(serve, "server");

#[cfg(not(feature = "lab"))]
pub(super) mod lab {
    missing!(bench, "lab");
    missing!(kernels, "lab");
    missing!(synth, "lab");
    missing!(verify, "lab");
}
