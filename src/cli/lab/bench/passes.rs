//! `ggro bench latency` and `ggro bench throughput`.

use super::{Common, Ready, Turns, positive};
use crate::lab::bench::report::Row;
use crate::lab::bench::{Batches, Depths, Pass, latency, throughput};
use clap::ValueEnum;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Latency {
    /// Kinds of passes to time
    #[arg(long, value_name = "PASS,...", value_delimiter = ',', default_value = "prefill,decode,reward,gradient")]
    #[arg(value_enum, help_heading = "Cases")]
    passes: Vec<Kind>,

    #[command(flatten)]
    depths: DepthArgs,

    #[command(flatten)]
    turns: Turns,

    #[command(flatten)]
    common: Common,
}

/// See [`Pass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Prefill,
    Decode,
    Reward,
    Gradient,
}

impl From<Kind> for Pass {
    fn from(kind: Kind) -> Pass {
        match kind {
            Kind::Prefill => Pass::Prefill,
            Kind::Decode => Pass::Decode,
            Kind::Reward => Pass::Reward,
            Kind::Gradient => Pass::Gradient,
        }
    }
}

/// How large what is run is.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Cases")]
pub(super) struct DepthArgs {
    /// Batch sizes of decode steps
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,64", value_parser = positive())]
    rows: Vec<usize>,

    /// Context lengths of the decode steps
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',', default_value = "256")]
    context: Vec<usize>,

    /// Prompt lengths in tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "256", value_parser = positive())]
    prefill: Vec<usize>,

    /// Prompts per prefill batch
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1", value_parser = positive())]
    prefill_batch: Vec<usize>,

    /// Segments per reward batch, scored and differentiated
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,25", value_parser = positive())]
    candidates: Vec<usize>,

    /// Length of a segment in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = positive())]
    segment: usize,

    /// Context length of the segments
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    prefix: usize,
}

impl DepthArgs {
    pub(super) fn depths(&self, runs: usize, warmup: usize) -> Depths {
        let DepthArgs { rows, context, prefill, prefill_batch, candidates, segment, prefix } = self;
        Depths {
            rows: rows.clone(),
            context: context.clone(),
            prefill: prefill.clone(),
            prompts: prefill_batch.clone(),
            candidates: candidates.clone(),
            segment: *segment,
            prefix: *prefix,
            runs,
            warmup,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Throughput {
    /// Requests at the same time
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,64", value_parser = positive())]
    batch: Vec<usize>,

    /// Prompt lengths in tokens; the prompts share no prefix
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',', default_value = "128", value_parser = positive())]
    prompt: Vec<usize>,

    /// New tokens per request
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = positive())]
    tokens: usize,

    #[command(flatten)]
    common: Common,
}

pub(super) fn latency_of(args: &Latency) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    let before = common.before()?;
    let depths = args.depths.depths(common.runs.runs, common.runs.warmup);
    let Ready { mut opened, header, limits } = common.open(&format!("latency {depths:?}"))?;
    let on_cuda = opened.cuda().is_some();
    let graphs = on_cuda && !common.device.enforce_eager;
    let passes: Vec<Pass> = args.passes.iter().map(|&kind| kind.into()).collect();
    let launched: Vec<Pass> = passes.iter().copied().filter(|pass| pass.is_graph()).collect();
    let backend = opened.backend();
    let cases = passes.iter().filter(|pass| backend.has(pass.role())).map(|&pass| {
        let once = match pass {
            Pass::Prefill => depths.prefill.len() * depths.prompts.len(),
            Pass::Decode => depths.rows.len() * depths.context.len(),
            Pass::Reward | Pass::Gradient => depths.candidates.len(),
        };
        // By graphs and without them.
        if graphs && pass.is_graph() { 2 * once } else { once }
    });
    let cases = cases.sum();
    let before_run = &mut |number| args.turns.before(number);
    let mut sink = common.sink.begin(&header, before, cases)?;
    let launch = match (on_cuda, graphs) {
        (false, _) => "",
        (true, true) => "graph",
        (true, false) => "eager",
    };
    latency(opened.backend(), &depths, &passes, limits, before_run, &mut |row| {
        let launch = if ["decode", "gradient"].contains(&row.phase.as_str()) { launch } else { "" };
        sink.row(Row { launch: launch.to_string(), ..row });
    })?;
    if let Some(cuda) = opened.cuda().filter(|_| graphs) {
        cuda.opened.launches.use_graphs(false);
        latency(opened.backend(), &depths, &launched, limits, before_run, &mut |row| {
            sink.row(Row { launch: "eager".to_string(), ..row });
        })?;
    }
    sink.finish()
}

pub(super) fn throughput_of(args: &Throughput) -> anyhow::Result<ExitCode> {
    let Throughput { common, batch, prompt, tokens } = args;
    common.pair.needs_policy("throughput")?;
    let before = common.before()?;
    let asked = Batches {
        batch: batch.clone(),
        prompt: prompt.clone(),
        tokens: *tokens,
        runs: common.runs.runs,
        warmup: common.runs.warmup,
    };
    let Ready { mut opened, header, limits } = common.open(&format!("throughput {asked:?}"))?;
    let mut sink = common.sink.begin(&header, before, batch.len() * prompt.len())?;
    throughput(opened.backend(), &asked, limits, &mut |row| sink.row(row))?;
    sink.finish()
}
