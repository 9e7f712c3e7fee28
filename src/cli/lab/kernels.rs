//! `ggro kernels`: are the kernels right, how fast are they, and what did the compiler make of them?

use crate::cli::output::Paths;
use crate::cuda::{Device, images};
use crate::lab::kernel_check::wgmma::{Wgmma, wgmma};
use crate::lab::kernel_check::{self, Finding, Listed, Timing, self_check, vectors};
use crate::lab::time_model;
use crate::model::synthetic;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Test, time, list or record the CUDA kernels
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Compare every kernel with an evaluation in f64; exit code 1 if one is wrong
    Test {
        #[command(flatten)]
        options: KernelsOptions,
        /// Run only cases of at most N elements or multiply-adds, for slow tools
        #[arg(long, value_name = "N")]
        work: Option<u64>,
    },
    /// Time every kernel against the card's own copy rate and matrix peak
    Bench {
        #[command(flatten)]
        options: KernelsOptions,
        /// Run everything once on warm buffers, to check that it runs; the times mean nothing
        #[arg(long)]
        quick: bool,
    },
    /// Record the results of the device's special instructions in FILE, for tests without a device
    Record {
        /// Output file; the tests replay tests/kernels/vectors.safetensors
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Index of the CUDA device
        #[arg(long, default_value_t = 0, value_name = "N")]
        ordinal: usize,
    },
    /// Write the known results of the engine's self-check to FILE; needs no device
    #[command(hide = true)]
    RecordSelfCheck {
        /// Output file; the engine embeds src/cuda/self_check/expected.safetensors
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print registers, shared memory, local memory and occupancy; needs no device. Exit code 1 if a kernel spills
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print what passes and products of Llama-3.1-8B take on Hopper: computed from their launches, not measured; needs no device
    Model,
}

#[derive(Debug, clap::Args)]
struct KernelsOptions {
    /// Run only this op: rmsnorm, gemm, attention, ...; an unknown name lists them all
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    /// Index of the CUDA device
    #[arg(long, default_value_t = 0, value_name = "N")]
    ordinal: usize,
    /// One JSON object per line instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// No device, or none that the kernels run on; standard output cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Test { options, work } => test(options, *work),
        Action::Bench { options, quick } => bench(options, *quick),
        Action::Record { file, ordinal } => record(file, *ordinal),
        Action::RecordSelfCheck { file } => {
            Paths::default().writing("FILE", Some(file)).check()?;
            let bytes = self_check::write(file)?;
            writeln!(std::io::stdout(), "{}: {bytes} bytes", file.display())?;
            Ok(ExitCode::SUCCESS)
        }
        Action::List { json } => list(*json),
        Action::Model => {
            write!(std::io::stdout(), "{}", time_model::table(&synthetic::pair(time_model::MODEL)?))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Names that ops had before, which `--op` still takes.
const FORMER_NAMES: [(&str, &str); 3] =
    [("draw", "random_fill"), ("nudge", "candidate_scores"), ("place", "pad_convert")];

/// The op that is asked for, if it is one of these.
fn known<'a>(op: Option<&'a str>, mut ops: Vec<&str>) -> anyhow::Result<Option<&'a str>> {
    let Some(op) = op else { return Ok(None) };
    let op = FORMER_NAMES.iter().find(|(former, _)| *former == op).map_or(op, |(_, name)| name);
    ops.dedup();
    anyhow::ensure!(ops.contains(&op), crate::Error::invalid(format!("no op {op}; there are {}", ops.join(", "))));
    Ok(Some(op))
}

fn test(options: &KernelsOptions, work: Option<u64>) -> anyhow::Result<ExitCode> {
    let op = known(options.op.as_deref(), kernel_check::cases().iter().map(|case| case.op).collect())?;
    let device = Device::open(options.ordinal)?;
    let mut written = Ok(());
    let findings = kernel_check::test(&device, op, work, |finding| {
        if written.is_ok() {
            written = print_finding(finding, options.json);
        }
    });
    written?;
    let wrong = findings.iter().filter(|finding| !finding.passed()).count();
    if !options.json {
        writeln!(std::io::stdout(), "{} cases on {}, {wrong} wrong", findings.len(), device.name())?;
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_finding(finding: &Finding, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, finding)?;
        return Ok(writeln!(out)?);
    }
    let verdict = if finding.passed() { "ok" } else { "WRONG" };
    writeln!(out, "{verdict:<6}{:<16} {:<60} error / bound {:.3}", finding.op, finding.case, finding.error_over_bound)?;
    for failure in &finding.failures {
        writeln!(out, "      {failure}")?;
    }
    Ok(())
}

fn bench(options: &KernelsOptions, quick: bool) -> anyhow::Result<ExitCode> {
    let op = known(options.op.as_deref(), kernel_check::timed())?;
    let device = Device::open(options.ordinal)?;
    let mut written = Ok(());
    kernel_check::bench(&device, op, quick, |timing| {
        if written.is_ok() {
            written = print_timing(timing, options.json);
        }
    })?;
    written?;
    Ok(ExitCode::SUCCESS)
}

fn record(file: &Path, ordinal: usize) -> anyhow::Result<ExitCode> {
    Paths::default().writing("FILE", Some(file)).check()?;
    let device = Device::open(ordinal)?;
    let wgmma = wgmma(&device)?;
    if let Some(Wgmma { widths_agree, agrees_with_mma }) = wgmma {
        let yes = |is: bool| if is { "yes" } else { "no" };
        writeln!(
            std::io::stdout(),
            "wgmma gives a column the same bits in a product of any width: {}",
            yes(widths_agree)
        )?;
        writeln!(std::io::stdout(), "wgmma gives the bits of mma.sync: {}", yes(agrees_with_mma))?;
    }
    let vectors = vectors::record(&device)?;
    let wgmma = wgmma.map_or("none".to_string(), |wgmma| format!("{wgmma:?}"));
    let about = [
        ("wgmma", wgmma),
        ("device", device.name().to_string()),
        ("capability", device.capability().to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("commit", option_env!("GGRO_BUILD_COMMIT").unwrap_or("unknown").to_string()),
    ];
    let about = about.into_iter().map(|(name, value)| (name.to_string(), value));
    vectors::write(file, &vectors, about.collect())?;
    let names: Vec<&str> = vectors.iter().map(|vectors| vectors.probe.name()).collect();
    writeln!(std::io::stdout(), "{} on {}: {}", file.display(), device.name(), names.join(", "))?;
    Ok(ExitCode::SUCCESS)
}

fn print_timing(timing: &Timing, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, timing)?;
        return Ok(writeln!(out)?);
    }
    let Timing { op, case, seconds, gigabytes_per_second, teraflops, percent } = timing;
    let micros = seconds * 1e6;
    Ok(writeln!(
        out,
        "{op:<18} {case:<58} {micros:>10.1} us {gigabytes_per_second:>8.0} GB/s {teraflops:>7.1} TFLOP/s {percent:>5.1} %"
    )?)
}

fn list(json: bool) -> anyhow::Result<ExitCode> {
    let listed = kernel_check::list();
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, &listed)?;
        writeln!(out)?;
    } else if listed.is_empty() {
        writeln!(out, "this ggro was built without CUDA kernels: no nvcc was found")?;
    } else {
        let (nvcc, ptxas) = (images::compiler(), images::assembler());
        let mut targets = images::targets().to_vec();
        for target in images::embedded().iter().flat_map(|image| image.targets) {
            if !targets.contains(target) {
                targets.push(target);
            }
        }
        writeln!(out, "nvcc {nvcc}, ptxas {ptxas}, targets {}", targets.join(", "))?;
        writeln!(
            out,
            "{:<28} {:<7} {:>7} {:>9} {:>7} {:>7} {:>6} {:>7} {:>10}",
            "kernel", "target", "threads", "registers", "static", "dynamic", "local", "blocks", "occupancy"
        )?;
        for Listed { kernel, target, threads, registers, shared_static, shared_dynamic, local, occupancy } in &listed {
            let (blocks, percent) =
                occupancy.map_or_else(Default::default, |o| (o.blocks.to_string(), format!("{} %", o.percent)));
            writeln!(
                out,
                "{kernel:<28} {target:<7} {threads:>7} {registers:>9} {shared_static:>7} {shared_dynamic:>7} {local:>6} \
                 {blocks:>7} {percent:>10}"
            )?;
        }
    }
    Ok(if listed.iter().all(|kernel| kernel.local == 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
