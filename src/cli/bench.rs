//! `ggro bench`: how fast whole models are here, and how near the limit.

use super::models::{DeviceArgs, Opened, PairArgs, switch};
use super::say;
use crate::bench::cost::Limits;
use crate::bench::{Asked, Case, Depths, Passes, Responses, latency, responses};
use crate::conformance;
use crate::engine::Width;
use clap::builder::RangedU64ValueParser;
use std::io::Write;
use std::process::ExitCode;

/// Time prefill, decode, reward and gradient, whole answers, or a server
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// The passes of which everything is made, over batch sizes
    ///
    /// Percentages are of what the card was measured to do in the same run: a large copy, products from registers. On CUDA,
    /// decode steps are timed as graphs and launched kernel by kernel.
    Latency(Box<LatencyArgs>),
    /// Whole answers: the method, by speculation, against plain greedy decoding of the same models
    Ggro(Box<GgroArgs>),
    /// A server under load: any that speaks OpenAI's API
    ///
    /// Latencies are those that its clients see; times to the first text are those of a whole segment where the method answers.
    Serve(Box<super::bench_serve::Args>),
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    pair: PairArgs,

    /// Random models of a published shape in place of a pair: llama-3.1-8b, llama-3.2-3b, llama-3.2-1b, qwen3-8b, demo
    #[arg(long, value_name = "SHAPE", help_heading = "Models", conflicts_with_all = ["policy", "reward"])]
    synthetic: Option<String>,

    /// Seed of a synthetic model's weights
    #[arg(long, value_name = "N", help_heading = "Models", default_value_t = 0)]
    weight_seed: u64,

    #[command(flatten)]
    device: DeviceArgs,

    /// One JSON object per line in place of a table
    #[arg(long, env = "GGRO_JSON", hide_env = true, value_parser = switch())]
    json: bool,
}

fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 20)
}

#[derive(Debug, clap::Args)]
struct LatencyArgs {
    #[command(flatten)]
    common: Common,

    /// Rows of decode steps
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,64", value_parser = positive())]
    rows: Vec<usize>,

    /// Positions that stand before each row
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    context: usize,

    /// Tokens of prompts
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "256", value_parser = positive())]
    prefill: Vec<usize>,

    /// Segments that are scored and differentiated together
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,25", value_parser = positive())]
    candidates: Vec<usize>,

    /// Tokens of a segment
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = positive())]
    segment: usize,

    /// Positions before the segments
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    prefix: usize,

    /// Do not measure what the card can do first; without it there are no percentages
    #[arg(long)]
    no_limits: bool,

    /// Timed runs of each case; the median counts
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = positive())]
    runs: usize,
}

#[derive(Debug, clap::Args)]
struct GgroArgs {
    #[command(flatten)]
    common: Common,

    /// Tokens of the prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = positive())]
    prompt: usize,

    /// New tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 96, value_parser = positive())]
    tokens: usize,

    /// Tokens of a segment, on average; the threshold is set to what the model does
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = positive())]
    segment: usize,

    /// Candidates of a segment, at most
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive())]
    candidates: usize,

    /// Candidates at the same time, each measured: off, auto, or a number
    #[arg(long, value_name = "WIDTH,...", value_delimiter = ',', default_value = "off,8,auto")]
    speculation: Vec<Width>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Latency(args) => run_latency(args),
        Action::Ggro(args) => run_ggro(args),
        Action::Serve(args) => super::bench_serve::run(args),
    }
}

impl Common {
    fn open(&self) -> anyhow::Result<Opened> {
        let mut chosen = self.device.choose()?;
        Ok(match &self.synthetic {
            Some(shape) => self.device.open_synthetic(&mut chosen, shape, self.weight_seed, self.pair.max_model_len)?,
            None => self.device.open(&mut chosen, &self.pair.load()?, self.pair.max_model_len)?,
        })
    }
}

/// What the device does at most, measured now; nothing is known of the CPU.
fn limits(opened: &Opened) -> anyhow::Result<Option<Limits>> {
    let Opened::Cuda { cuda, .. } = opened else { return Ok(None) };
    let (bytes, flops) = conformance::limits(cuda.device(), false)?;
    say(&format!("limit: {:.0} GB/s copied, {:.0} TFLOP/s from registers", bytes / 1e9, flops / 1e12));
    Ok(Some(Limits { bytes, flops }))
}

fn run_latency(args: &LatencyArgs) -> anyhow::Result<ExitCode> {
    let mut opened = args.common.open()?;
    let limits = if args.no_limits { None } else { limits(&opened)? };
    let LatencyArgs { rows, context, prefill, candidates, segment, prefix, runs, .. } = args;
    let depths = Depths {
        rows: rows.clone(),
        context: *context,
        prefill: prefill.clone(),
        candidates: candidates.clone(),
        segment: *segment,
        prefix: *prefix,
        runs: *runs,
    };
    let mut written = Ok(());
    let mut print = |case: &Case| {
        if written.is_ok() {
            written = print_case(case, args.common.json);
        }
    };
    if !args.common.json {
        header()?;
    }
    let graphs = matches!(opened, Opened::Cuda { .. }) && !args.common.device.enforce_eager;
    let launch = match &opened {
        Opened::Cpu(_) => "",
        Opened::Cuda { .. } if graphs => "graph",
        Opened::Cuda { .. } => "eager",
    };
    latency(opened.backend(), &depths, Passes::All, limits, &mut |case| {
        let launch = if case.phase == "decode" { launch } else { "" };
        print(&Case { launch, ..case });
    })?;
    if let Opened::Cuda { cuda, .. } = &mut opened
        && graphs
    {
        cuda.use_graphs(false);
        let result = latency(cuda.as_mut(), &depths, Passes::Decode, limits, &mut |case| {
            print(&Case { launch: "eager", ..case });
        });
        result?;
    }
    written?;
    Ok(ExitCode::SUCCESS)
}

fn header() -> anyhow::Result<()> {
    Ok(writeln!(
        std::io::stdout(),
        "| phase | case | launch | ms | least to most | tokens/s | GB/s | TFLOP/s | of the limit |\n\
         |---|---|---|---|---|---|---|---|---|"
    )?)
}

fn print_case(case: &Case, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, case)?;
        return Ok(writeln!(out)?);
    }
    let Case {
        phase, case, launch, seconds, spread, tokens_per_second, gigabytes_per_second, teraflops, percent, ..
    } = case;
    let percent = percent.map_or_else(String::new, |percent| format!("{percent:.1} %"));
    Ok(writeln!(
        out,
        "| {phase} | {case} | {launch} | {:.3} | {:.3} to {:.3} | {tokens_per_second:.0} | {gigabytes_per_second:.0} | \
         {teraflops:.2} | {percent} |",
        1e3 * seconds,
        1e3 * spread[0],
        1e3 * spread[1],
    )?)
}

fn run_ggro(args: &GgroArgs) -> anyhow::Result<ExitCode> {
    let mut opened = args.common.open()?;
    let GgroArgs { prompt, tokens, segment, candidates, .. } = *args;
    let asked = Asked { prompt, tokens, segment, candidates, widths: args.speculation.clone() };
    let mut written = Ok(());
    if !args.common.json {
        writeln!(
            std::io::stdout(),
            "| method | s | tokens/s | over greedy | segments | nudged | visited | reward | ids |\n\
             |---|---|---|---|---|---|---|---|---|"
        )?;
    }
    let all = responses(opened.backend(), &asked, &mut |responses| {
        if written.is_ok() {
            written = print_responses(responses, args.common.json);
        }
    })?;
    written?;
    // The answer never depends on the speculation; if it does, no figure means anything.
    let one = all.iter().skip(1).all(|responses| responses.ids == all[1].ids);
    if !one {
        say("error: the answers differ between speculations");
    }
    Ok(if one { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_responses(responses: &Responses, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, responses)?;
        return Ok(writeln!(out)?);
    }
    let Responses { method, seconds, tokens_per_second, over_greedy, segments, nudges, visited, reward, ids, .. } =
        responses;
    Ok(writeln!(
        out,
        "| {method} | {seconds:.3} | {tokens_per_second:.1} | {over_greedy:.2} | {segments} | {nudges} | {visited} | \
         {reward:.3} | {ids} |"
    )?)
}
