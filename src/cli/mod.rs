//! The command line: parses flags, calls the library, prints. It decides nothing but presentation.
//!
//! One file per command, and one each for what they share: which models and device (`models`), how a prompt becomes ids
//! (`prompt`), answers on their way to the terminal (`terminal`), other words for people (`words`), and files that appear whole
//! or not at all (`output`).

mod args;
mod compare;
mod complete;
mod doctor;
mod generate;
mod guard;
mod info;
#[cfg(feature = "lab")]
mod lab;
#[cfg(not(all(feature = "lab", feature = "server")))]
mod missing;
mod models;
mod output;
mod prompt;
mod report;
mod run;
mod score;
mod search;
#[cfg(feature = "server")]
mod serve;
mod summary;
mod terminal;
mod words;

use crate::engine::SpeculationWidth;
use crate::error::{Error, Remedy};
use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};
#[cfg(not(feature = "lab"))]
use missing::lab;
#[cfg(not(feature = "server"))]
use missing::serve;
use std::any::TypeId;
use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};
use words::visible;

const ABOUT: &str = "Gradient-guided reward optimisation: decodes a frozen language model and steers it, at its \
uncertain tokens, with the gradient of a frozen reward model";

const AFTER_HELP: &str = "Every flag can also be set as GGRO_<FLAG>, e.g. GGRO_ENTROPY_THRESHOLD=2.0; the command line wins, and an \
empty variable counts as unset (but not one of a key).\n\
Exit codes: 0 done; 1 internal failure, or a check that failed; 2 unusable input; 3 a number that is not finite; 4 the device was lost while \
serving; 130 a run was interrupted.";

#[derive(Debug, Parser)]
#[command(name = "ggro", version, about = ABOUT, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Generate(Box<args::Generate>),
    Run(Box<run::Args>),
    Report(report::Args),
    Compare(Box<compare::Args>),
    Guard(Box<guard::Args>),
    Score(Box<score::Args>),
    Verify(lab::verify::Args),
    Info(info::Args),
    Doctor(doctor::Args),
    Kernels(lab::kernels::Args),
    Bench(lab::bench::Args),
    Serve(Box<serve::Args>),
    Synth(lab::synth::Args),
}

/// Runs the command that the process was started with.
///
/// # Errors
/// Whatever ended the command; [`report()`] prints it.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut parser = parser();
    let cli = parser
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut parser)));
    let ended = command(cli.unwrap_or_else(|error| of_variable(error).exit()).command);
    // The trace is written even if the command failed.
    let traced = crate::profile::finish();
    let code = ended?;
    traced?;
    Ok(code)
}

/// The parser, in which every flag of every command can also be set by the variable `GGRO_<FLAG>`.
fn parser() -> clap::Command {
    // `run` shares flags with `generate`, and has two of its methods.
    let command = Cli::command().mut_subcommand("run", |run| {
        let method = "ggro or greedy [default: ggro, or greedy without a reward model]";
        run.mut_arg("method", |arg| arg.help(method).long_help(method).hide_possible_values(true))
            .mut_arg("no_baseline", |arg| arg.hide(true))
    });
    with_variables(command)
}

/// The variable that stands for a flag.
fn variable(long: &str) -> String {
    format!("GGRO_{}", long.replace('-', "_").to_uppercase())
}

/// An error that names the variable beside its flag, where the value came from there.
fn of_variable(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg).cloned() else { return error };
    let flag = arg.split([' ', '[', '=']).next().unwrap_or_default();
    let is_given = |word: std::ffi::OsString| {
        let word = word.to_string_lossy();
        word.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    let variable = variable(flag.trim_start_matches('-'));
    if std::env::var_os(&variable).is_some() && !std::env::args_os().any(is_given) {
        error.insert(ContextKind::InvalidArg, ContextValue::String(format!("{arg}, set by {variable}")));
    }
    error
}

fn with_variables(command: clap::Command) -> clap::Command {
    let with_variable = |arg: clap::Arg| {
        let Some(long) = arg.get_long() else { return arg };
        let variable = variable(long);
        // An empty one is what is left of a setting that was taken out. A key that came out empty is another matter: it is the
        // server's to refuse.
        let is_unset =
            !long.starts_with("api-key") && std::env::var_os(&variable).is_some_and(|value| value.is_empty());
        // clap wants names that live as long as the process.
        let arg = if is_unset { arg } else { arg.env(&*variable.leak()) };
        let arg = arg.hide_env(true).hide_env_values(true);
        // A number may begin with a minus, wherever it is then refused.
        let value = arg.get_value_parser().type_id();
        let numbers = [TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<u32>(), TypeId::of::<u16>()];
        let others = [TypeId::of::<f64>(), TypeId::of::<SpeculationWidth>()];
        let arg = arg.allow_hyphen_values(numbers.iter().chain(&others).any(|number| value == *number));
        match arg.get_action() {
            // A switch's variable is 1/0, true/false, yes/no or on/off.
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            _ => arg,
        }
    };
    command.mut_args(with_variable).mut_subcommands(with_variables)
}

fn command(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Generate(args) => generate::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Guard(args) => guard::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Verify(args) => lab::verify::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Kernels(args) => lab::kernels::run(&args),
        Command::Bench(args) => lab::bench::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Synth(args) => lab::synth::run(&args),
    }
}

/// Prints an error with its causes and gives the exit code it stands for. A reader who closed standard output early is no
/// error.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let closed = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
    // A library error names the file it is about, even if its cause is a broken pipe.
    let code =
        error.chain().find_map(|cause| cause.downcast_ref::<Error>()).map(|error| (exit_code(error), hint(error)));
    let (code, hint) = code.unzip();
    if code.is_none() && error.chain().filter_map(|cause| cause.downcast_ref()).any(closed) {
        return ExitCode::SUCCESS;
    }
    // Any other I/O error is one of standard output: the user's choice, so exit code 2.
    let stdout = code.is_none() && error.downcast_ref::<std::io::Error>().is_some();
    let code = code.or(stdout.then_some(2));
    let mut text = if stdout { "standard output".to_string() } else { String::new() };
    for cause in error.chain().map(ToString::to_string) {
        // Some messages already end with their cause.
        if !text.ends_with(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    say(&format!("error: {text}{}", hint.unwrap_or_default()));
    ExitCode::from(code.unwrap_or(1))
}

/// 2 for what the user gave, 3 for numbers that are not finite, 1 otherwise.
fn exit_code(error: &Error) -> u8 {
    match error {
        Error::NonFinite { .. } => 3,
        error if error.is_invalid_input() => 2,
        _ => 1,
    }
}

/// The flags that would help against an error, in brackets.
fn hint(error: &Error) -> String {
    let flag = |remedy: &Remedy| match remedy {
        Remedy::ContextTokens(tokens) => Some(format!("--max-model-len {tokens}")),
        Remedy::FewerGradientTokens | Remedy::MoreGradientTokens => Some("--gradient-tokens".to_string()),
        Remedy::LowerThreshold => Some("--entropy-threshold".to_string()),
        Remedy::MoreMemory => Some("--gpu-memory-utilization".to_string()),
        Remedy::StorageType => Some("--dtype bf16 or f16".to_string()),
        Remedy::Cpu => Some("--device cpu".to_string()),
        Remedy::RewardHead => Some("--reward-head TENSOR".to_string()),
    };
    if let Error::MissingModel { model, .. } = error {
        return format!(" (--{model} MODEL)");
    }
    match error.remedies().iter().filter_map(flag).collect::<Vec<_>>() {
        flags if flags.is_empty() => String::new(),
        flags => format!(" ({})", flags.join(", ")),
    }
}

/// Where lines for standard error go while a server has a log there.
type Sink = Box<dyn Fn(&str) + Send + Sync>;

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Writes a line to standard error, on a terminal with its control characters spelled out. If standard error is closed, the line
/// is lost.
fn say(line: &str) {
    let line = if std::io::stderr().is_terminal() { visible(line) } else { Cow::Borrowed(line) };
    say_painted(&line);
}

/// Writes a line of our own colours to standard error.
fn say_painted(line: &str) {
    match &*SINK.read().unwrap_or_else(PoisonError::into_inner) {
        Some(sink) => sink(line),
        None => drop(writeln!(std::io::stderr(), "{line}")),
    }
}

/// Sends lines for standard error elsewhere; `None`: no longer.
#[cfg(feature = "server")]
fn say_to(sink: Option<Sink>) {
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_consistent() {
        parser().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable() {
        /// Checks a command with those inside it, and counts their flags.
        fn check(command: &clap::Command) -> usize {
            let flags = command.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| long != "help"));
            let checked = flags.map(|arg| {
                let long = arg.get_long().unwrap_or_default();
                let variable = variable(long);
                let found = arg.get_env().map(|v| v.to_string_lossy().into_owned());
                assert_eq!(found, Some(variable), "{} --{long}", command.get_name());
            });
            checked.count() + command.get_subcommands().map(check).sum::<usize>()
        }
        assert_eq!(parser().get_subcommands().map(check).filter(|&flags| flags == 0).count(), 0);
    }
}
