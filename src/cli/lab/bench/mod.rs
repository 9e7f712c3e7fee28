//! `ggro bench`: how fast whole models are here, and how near the limit.

mod answers;
mod load;
mod model;
mod passes;
mod serve;
mod sink;

use crate::Error;
use crate::batch::output::MadeOn;
use crate::cli::args::seed;
use crate::cli::models::{DeviceArgs, PairArgs, made_on};
use crate::cli::output::Paths;
use crate::files::checkpoint::Checkpoint;
use crate::files::config::ModelConfig;
use crate::files::pair::{Pair, Parts};
use crate::lab::bench::cost::Roofline;
use crate::lab::bench::machine;
use crate::lab::bench::report::{Report, ReportHeader};
use crate::lab::kernel_check;
use crate::model::{ModelPair, Role, synthetic};
use crate::runtime::{Device, Opened};
use clap::builder::RangedU64ValueParser;
use sha2::{Digest, Sha256};
use sink::SinkArgs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Benchmark single passes, many requests, whole answers, loading, or a server
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Time prefill, decode, reward and gradient passes, over batch sizes and contexts
    ///
    /// With --policy or --reward alone, the passes of that model.
    ///
    /// Percentages are of limits measured in the same run: a card's copy rate and its products from registers, or a
    /// processor's read rate over as much memory as the models have and its multiply-adds. On CUDA, decode steps and rewards
    /// with gradients are timed as graphs and launched kernel by kernel.
    Latency(Box<passes::Latency>),
    /// Time many requests at once: greedy answers of a fixed length through the scheduler
    Throughput(Box<passes::Throughput>),
    /// Time whole answers of GGRO, per speculation width, against greedy decoding and Best-of-N
    Ggro(Box<answers::Args>),
    /// Time loading a pair, from a cold and from a warm page cache
    Load(Box<load::Args>),
    /// Compute the least time of each pass on a card, without running it
    Model(Box<model::Args>),
    /// Put load on any server of OpenAI's API
    ///
    /// Latencies are those that clients see. With GGRO, the time to the first text is that of a whole segment.
    Serve(Box<serve::Args>),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Latency(args) => passes::latency_of(args),
        Action::Throughput(args) => passes::throughput_of(args),
        Action::Ggro(args) => answers::run(args),
        Action::Load(args) => load::run(args),
        Action::Model(args) => model::run(args),
        Action::Serve(args) => serve::run(args),
    }
}

/// Which models, where, and how it is told.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    synthetic: SyntheticArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    runs: RunArgs,

    #[command(flatten)]
    sink: SinkArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Models")]
struct SyntheticArgs {
    /// Use random models of a published shape instead of a pair: llama-3.1-8b, llama-3.2-3b, llama-3.2-1b, qwen3-8b, demo
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["policy", "reward"])]
    synthetic: Option<String>,

    /// Seed of a synthetic model's weights
    #[arg(long, value_name = "N", default_value = "0", value_parser = seed)]
    weight_seed: u64,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Runs")]
struct RunArgs {
    /// Timed runs of each case; the median is reported
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive())]
    runs: usize,

    /// Warm-up runs of each case
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,

    /// Do not measure the machine's limits first; the report then has no percentages
    #[arg(long)]
    no_limits: bool,
}

/// Turns with another program, on a machine that is not quiet for long enough to measure one after the other.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Runs")]
struct Turns {
    /// Before every Nth timed run of a case, write the line `ready` to standard error and wait for a line of standard input
    ///
    /// Another program can then be measured in turns with this one. Nothing is waited for after the end of the input.
    #[arg(long, value_name = "N", value_parser = positive())]
    turns: Option<usize>,
}

impl Turns {
    /// Waits for its turn, where a timed run of this number begins one.
    fn before(&self, number: usize) -> crate::Result<()> {
        if self.turns.is_some_and(|runs| number.is_multiple_of(runs)) {
            eprintln!("ready");
            std::io::stdin().read_line(&mut String::new()).map_err(|e| crate::Error::io("standard input", e))?;
        }
        Ok(())
    }
}

fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 20)
}

/// A backend with what its report is headed by.
struct Ready {
    opened: Opened,
    header: ReportHeader,
    limits: Option<Roofline>,
}

impl Common {
    /// Reads what is compared with: a file that is none is found out before anything is measured, as is one that would be written
    /// over.
    fn before(&self) -> crate::Result<Option<Report>> {
        let SinkArgs { compare, chart, .. } = &self.sink;
        let paths = Paths::default().reading(compare).reading(self.pair.paths()).writing("--chart", chart.as_deref());
        paths.writing("--trace-events", self.device.profile.trace_events.as_deref()).check()?;
        self.sink.before()
    }

    fn open(&self, config: &str) -> anyhow::Result<Ready> {
        self.open_with(config, None)
    }

    /// Opens a pair, with a model that guesses beside it.
    fn open_with(&self, config: &str, draft: Option<&PathBuf>) -> anyhow::Result<Ready> {
        if draft.is_some() && self.synthetic.synthetic.is_some() {
            let message = "--draft MODEL: random models are made for --synthetic, and this one would be read";
            return Err(Error::invalid(message).into());
        }
        let mut device = self.device.find()?;
        let (opened, names) = match &self.synthetic.synthetic {
            Some(shape) => {
                let (seed, len) = (self.synthetic.weight_seed, self.pair.max_model_len);
                let name = |role: &str| format!("{shape} {role} (random, seed {seed})");
                let opened = self.device.open_synthetic(&mut device, shape, seed, len)?;
                (opened, [Some(name("policy")), Some(name("reward"))])
            }
            None => {
                let mut pair = self.pair.load()?;
                PairArgs::add_draft(&mut pair, draft)?;
                (self.device.open(&mut device, &pair, self.pair.max_model_len)?, self.pair.names())
            }
        };
        self.ready(opened, &device, names, config)
    }

    /// What was opened on a device, with its report's header.
    fn ready(
        &self,
        mut opened: Opened,
        on: &Device,
        names: [Option<String>; 2],
        config: &str,
    ) -> anyhow::Result<Ready> {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(self.device.threads.unwrap_or(0));
        let threads = threads.build().map_err(|e| Error::Backend(format!("cannot start threads: {e}")))?;
        let limits = if self.runs.no_limits { None } else { Some(limits(&mut opened, &threads)?) };
        let dtype = match opened.cuda().and_then(|cuda| cuda.opened.models.first()) {
            None => "f32 from the stored weights".to_string(),
            Some(model) => model.storage.name().to_string(),
        };
        let (device, units, memory_bytes, driver, clocks_mhz) = match opened.cuda() {
            None => {
                let (name, memory) = machine::described();
                (name, threads.current_num_threads(), memory, None, None)
            }
            Some(cuda) => {
                let device = &cuda.opened.device;
                let memory = device.memory().ok().map(|(_, total)| total as u64);
                let units = device.multiprocessors() as usize;
                (device.name().to_string(), units, memory, device.driver_version(), device.clocks_mhz())
            }
        };
        let backend = opened.backend();
        let [policy, reward] = names;
        let named = |name: Option<String>, role: Role| match (name, backend.config(role)) {
            (Some(name), Ok(config)) => format!("{name}, {} weights", config.num_parameters()),
            _ => format!("no {} model", role.name()),
        };
        let names = [named(policy, Role::Policy), named(reward, Role::Reward)];
        let decided = format!("{config} {names:?} {dtype} {}", backend.max_len());
        let hash: String = Sha256::digest(decided).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let MadeOn { device: kind, kernels } = made_on(on);
        let header = ReportHeader {
            version: env!("CARGO_PKG_VERSION").to_string(),
            commit: option_env!("GGRO_BUILD_COMMIT").unwrap_or("unknown").to_string(),
            date: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            command: std::env::args().skip(1).collect::<Vec<String>>().join(" "),
            device,
            device_kind: Some(kind),
            kernels,
            units,
            driver,
            clocks_mhz,
            memory_bytes,
            models: names,
            dtype,
            limits,
            config_hash: hash,
        };
        Ok(Ready { opened, header, limits })
    }
}

/// What the machine does at most, measured now; a processor with these threads.
fn limits(opened: &mut Opened, threads: &rayon::ThreadPool) -> anyhow::Result<Roofline> {
    if let Some(cuda) = opened.cuda() {
        let (bytes, flops) = kernel_check::limits(&cuda.opened.device, false)?;
        return Ok(Roofline { bytes, flops });
    }
    // What a decode step reads: two bytes a weight of the policy, or of the only model.
    let backend = opened.backend();
    let weights = backend.config(Role::Policy).or(backend.config(Role::Reward))?.num_parameters();
    let bytes = usize::try_from(2 * weights).unwrap_or(usize::MAX);
    Ok(threads.install(|| machine::processor(bytes)))
}

/// Shapes of a policy and a reward model with their names: of a published shape, or read.
fn shapes(pair: &PairArgs, synthetic: &SyntheticArgs) -> anyhow::Result<([Option<ModelConfig>; 2], String)> {
    let (shapes, names) = match &synthetic.synthetic {
        Some(shape) => {
            (synthetic::pair(shape)?.map(Some), [Some(format!("{shape} policy")), Some(format!("{shape} reward"))])
        }
        None => {
            let loaded = pair.load()?;
            let Parts { policy, reward, .. } = loaded.parts();
            ([policy, reward].map(|part| part.map(|(config, _)| config.clone())), pair.names())
        }
    };
    Ok((shapes, names.into_iter().flatten().collect::<Vec<_>>().join(" and ")))
}

/// Files of the models' checkpoints, and their bytes.
fn files_of(parts: Parts<'_>) -> (Vec<PathBuf>, u64) {
    let checkpoints = || [parts.policy, parts.reward].into_iter().flatten().map(|(_, checkpoint)| checkpoint);
    (checkpoints().flat_map(Checkpoint::files).collect(), checkpoints().map(Checkpoint::bytes).sum())
}

/// Opens a pair on a device that was found.
fn reopen(flags: &DeviceArgs, device: &mut Device, pair: &Pair, len: Option<usize>) -> crate::Result<ModelPair> {
    Ok(flags.open(device, pair, len)?.into_backend())
}
