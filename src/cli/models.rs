//! Which pair of models, on which device.

use super::say;
use crate::cuda::{self, images};
use crate::dtype::HalfType;
use crate::files::checkpoint::{Checkpoint, Files};
use crate::files::demo;
use crate::files::hub::{Hub, Name};
use crate::files::pair::Pair;
use crate::model::Backend;
use crate::model::PolicyRows;
use crate::model::cpu::{LoadOptions, Reference};
use crate::model::cuda::weights::LoadReport;
use crate::model::cuda::{Cuda, CudaOptions, Loading, Prepared, memory};
use crate::model::synthetic;
use crate::profile::{self, Level, Steps, Watch};
use crate::{Error, Result};
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Why there is no CUDA device, in the words of whoever noticed, and what would help.
pub(super) fn no_cuda(why: &Error) -> String {
    let why = why.to_string();
    let help = if images::embedded().is_empty() {
        "; CUDA 13 and scripts/install-nvcc.sh both bring one"
    } else if why.contains("libcuda") {
        "; install NVIDIA's driver, release 580 or later"
    } else {
        ""
    };
    format!("{why}{help}")
}

/// The pair.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Models")]
pub(super) struct PairArgs {
    /// The policy, the language model that writes: a directory, or a name, org/name[@revision] [default: the embedded demo pair]
    ///
    /// A name is looked up in the Hugging Face cache, and downloaded into it if it is not there (HF_HOME, HF_TOKEN, HF_ENDPOINT,
    /// HF_HUB_OFFLINE). A directory has the hub's files.
    /// Llama 3.x, Mistral, Qwen2, Qwen2.5 or Qwen3: config.json, model.safetensors or shards with their index,
    /// tokenizer.json, tokenizer_config.json and, if present, generation_config.json and chat_template.jinja. Needs --reward.
    #[arg(long, value_name = "MODEL", env = "GGRO_POLICY", hide_env = true)]
    pub policy: Option<PathBuf>,

    /// The reward model, a *ForSequenceClassification with one label: a directory or a name [default: the embedded demo pair]
    ///
    /// It must have the policy's tokenizer. Needs --policy.
    #[arg(long, value_name = "MODEL", env = "GGRO_REWARD", hide_env = true)]
    pub reward: Option<PathBuf>,

    /// Longest sequence, prompt and answer together [default: the smaller context of the two models]
    ///
    /// A shorter one bounds the memory of the caches; see `ggro info`.
    #[arg(long, value_name = "TOKENS", env = "GGRO_MAX_MODEL_LEN", hide_env = true,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_model_len: Option<usize>,
}

impl PairArgs {
    /// Whether the pair is the embedded one.
    pub(super) fn is_demo(&self) -> bool {
        self.policy.is_none()
    }

    /// Reads the pair.
    pub(super) fn load(&self) -> Result<Arc<Pair>> {
        let pair = match (&self.policy, &self.reward) {
            (None, None) => Pair::load(&demo::policy(), &demo::reward())?,
            (Some(policy), Some(reward)) => load(policy, reward)?,
            (Some(_), None) => {
                return Err(Error::invalid("--policy needs --reward: the two models are a pair"));
            }
            (None, Some(_)) => {
                return Err(Error::invalid("--reward needs --policy: the two models are a pair"));
            }
        };
        if let Some(len) = self.max_model_len {
            let context = context(&pair);
            if len > context {
                return Err(Error::invalid(format!(
                    "--max-model-len {len} is beyond the pair's context of {context} tokens"
                )));
            }
        }
        Ok(Arc::new(pair))
    }
}

/// The directory that is meant: itself, or that of a model by this name.
fn locate(path: &Path) -> Result<PathBuf> {
    let name = path.to_str().filter(|_| !path.exists()).and_then(Name::parse);
    let Some(name) = name else { return Ok(path.to_path_buf()) };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let found = Hub::from_env().fetch(&name, &mut |downloaded| {
        if bar.message() != downloaded.file {
            bar.set_message(downloaded.file.to_string());
            bar.reset();
        }
        bar.set_length(downloaded.size.unwrap_or(downloaded.bytes));
        bar.set_position(downloaded.bytes);
    });
    bar.finish_and_clear();
    found.map_err(|error| match error {
        Error::Invalid(why) => {
            Error::invalid(format!("there is no directory {}, and as a model's name: {why}", path.display()))
        }
        error => error,
    })
}

/// The files of a directory, or of a model by name.
pub(super) fn files(path: &Path) -> Result<Files> {
    let dir = locate(path)?;
    let found = std::fs::metadata(&dir).map_err(|e| Error::io(&dir, e))?;
    if !found.is_dir() {
        return Err(Error::file(&dir, "is not a directory"));
    }
    Ok(Files::Dir(dir))
}

/// Reads a pair of directories, or of models by name.
pub(super) fn load(policy: &Path, reward: &Path) -> Result<Pair> {
    Pair::load(&files(policy)?, &files(reward)?)
}

/// Longest sequence that both models were made for.
pub(super) fn context(pair: &Pair) -> usize {
    pair.policy.max_position_embeddings.min(pair.reward.max_position_embeddings)
}

/// How much of a device.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(super) struct MemoryArgs {
    /// Share of a CUDA device's memory that may be in use, by whomever
    ///
    /// Weights and workspace come first; keys and values get the rest, as far as sequences of --max-model-len can use it.
    #[arg(long, value_name = "SHARE", env = "GGRO_GPU_MEMORY_UTILIZATION", hide_env = true, default_value = "0.9",
          value_parser = share, allow_negative_numbers = true)]
    pub gpu_memory_utilization: f64,

    /// Longest segment that a CUDA device can differentiate, in tokens
    ///
    /// Its backward pass keeps what the forward pass of that many tokens computed; `ggro info` says how much that takes.
    #[arg(long, value_name = "TOKENS", env = "GGRO_GRADIENT_TOKENS", hide_env = true, default_value_t = 1024,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub gradient_tokens: usize,
}

/// What is shown of what is going on.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Profiling (docs/profiling.md)")]
pub(super) struct ProfileArgs {
    /// Ranges for Nsight, in the domain ggro: off, 1 (phases), 2 (layers too)
    #[arg(
        long,
        value_name = "LEVEL",
        env = "GGRO_NVTX",
        hide_env = true,
        default_value = "off",
        hide_default_value = true
    )]
    pub nvtx: Level,

    /// Let a profiler that waits for it collect from the FIRST to the LAST pass of a model, counted from 1
    #[arg(long, value_name = "FIRST-LAST", env = "GGRO_PROFILE_STEPS", hide_env = true)]
    pub profile_steps: Option<Steps>,

    /// Write the phases of the scheduler and the models to FILE, as a trace that Perfetto shows
    #[arg(long, value_name = "FILE", env = "GGRO_TRACE_EVENTS", hide_env = true)]
    pub trace_events: Option<PathBuf>,
}

impl ProfileArgs {
    /// What is to be watched.
    pub(super) fn watch(&self) -> Watch {
        Watch { nvtx: self.nvtx, steps: self.profile_steps, trace: self.trace_events.clone(), on_request: false }
    }
}

/// The device and its arithmetic.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceArgs {
    /// auto, cpu, cuda or cuda:N
    ///
    /// auto takes the first CUDA device if there is one and the CPU if not, and says which.
    #[arg(long, value_name = "DEVICE", env = "GGRO_DEVICE", hide_env = true, default_value = "auto")]
    pub device: Device,

    /// Arithmetic: auto, f32, bf16 or f16
    ///
    /// The CPU computes in f32 straight from the stored weights, whatever their type, and takes auto and f32 only. CUDA stores
    /// weights, activations, keys and values in 16 bits and accumulates in f32; auto is the checkpoint's type, and bf16 for
    /// weights stored in f32 that lose nothing by it. bf16 and f16 round what they must.
    #[arg(long, value_name = "TYPE", env = "GGRO_DTYPE", hide_env = true, default_value = "auto", value_enum)]
    pub dtype: DType,

    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Launch every CUDA kernel by itself, decode steps too, in place of CUDA graphs
    ///
    /// The results are the same bits; it is slower, and easier to look at with a profiler.
    #[arg(long, env = "GGRO_ENFORCE_EAGER", hide_env = true, value_parser = switch())]
    pub enforce_eager: bool,

    /// Threads of the CPU backend [default: all cores]; results do not depend on it
    #[arg(long, value_name = "N", env = "GGRO_THREADS", hide_env = true,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub threads: Option<usize>,

    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// A device that is there.
pub(super) enum Chosen {
    Cpu,
    /// With the device that was opened to see whether it is there, until it is used.
    Cuda(usize, Option<Box<cuda::Device>>),
}

impl DeviceArgs {
    /// Finds the device and says which one `auto` took.
    pub(super) fn choose(&self) -> Result<Chosen> {
        profile::start(&self.profile.watch())?;
        let chosen = match self.device {
            Device::Cpu => Chosen::Cpu,
            Device::Cuda(index) => self
                .cuda(index)
                .map_err(|why| Error::invalid(format!("--device {}: {why}; or use --device cpu", self.device)))?,
            Device::Auto => self.cuda(0).unwrap_or_else(|why| {
                say(&format!("device: cpu ({why})"));
                Chosen::Cpu
            }),
        };
        match (&chosen, self.dtype) {
            (Chosen::Cpu, DType::Bf16 | DType::F16) => Err(Error::invalid(format!(
                "--dtype {}: the CPU backend computes in f32 from the stored weights, whatever their type; use auto or f32",
                self.dtype.name()
            ))),
            _ => Ok(chosen),
        }
    }

    /// Opens a random pair of a published shape.
    pub(super) fn open_synthetic(
        &self,
        chosen: &mut Chosen,
        shape: &str,
        seed: u64,
        max_model_len: Option<usize>,
    ) -> Result<Opened> {
        let [policy, reward] = synthetic::pair(shape)?;
        // Llama's 131072 positions are more than a table of rotations or a pool has to have here.
        let longest = policy.max_position_embeddings.min(reward.max_position_embeddings);
        let max_model_len = Some(max_model_len.unwrap_or(4096).min(longest));
        match chosen {
            Chosen::Cpu => {
                let checkpoint = |config, seed| -> Result<Checkpoint> {
                    let bytes = synthetic::safetensors(config, seed)?;
                    Checkpoint::of_bytes(shape, bytes)
                };
                let (policy_weights, reward_weights) = (checkpoint(&policy, seed)?, checkpoint(&reward, !seed)?);
                let options = LoadOptions { max_model_len, threads: self.threads, ..LoadOptions::default() };
                let parts = ((&policy, &policy_weights), (&reward, &reward_weights));
                Ok(Opened::Cpu(Box::new(Reference::assemble(parts.0, parts.1, &options)?)))
            }
            Chosen::Cuda(index, device) => {
                let device = device.take().map_or_else(|| cuda::Device::open(*index), |device| Ok(*device))?;
                let options = cuda_options(max_model_len, self.dtype, self.memory);
                let options = CudaOptions { graphs: !self.enforce_eager, ..options };
                let (cuda, opened) = Cuda::synthetic(device, [&policy, &reward], seed, &options, &mut |loading| {
                    if let Loading::Planned(budget) = loading {
                        say(&format!("memory: {budget}"));
                    }
                })?;
                say(&format!("device: cuda:{index} ({}, {shape} with random weights)", cuda.device().name()));
                Ok(Opened::Cuda { cuda: Box::new(cuda), index: *index, storage: opened.storage })
            }
        }
    }

    /// A CUDA device, or why there is none.
    fn cuda(&self, index: usize) -> std::result::Result<Chosen, String> {
        if self.dtype == DType::F32 {
            return Err("--dtype f32 is the CPU's, CUDA stores bf16 or f16".to_string());
        }
        let device = cuda::Device::open(index).map_err(|why| match self.device {
            // Short: it stands above every answer. `ggro info` says what to do about it.
            Device::Auto if images::embedded().is_empty() => "no CUDA kernels in this build".to_string(),
            Device::Auto => why.to_string(),
            _ => no_cuda(&why),
        })?;
        Ok(Chosen::Cuda(index, Some(Box::new(device))))
    }

    /// Opens the backend.
    pub(super) fn open(&self, chosen: &mut Chosen, pair: &Arc<Pair>, max_model_len: Option<usize>) -> Result<Opened> {
        match chosen {
            Chosen::Cpu => {
                let options = LoadOptions { max_model_len, threads: self.threads, ..LoadOptions::default() };
                Ok(Opened::Cpu(Box::new(Reference::load(pair, &options)?)))
            }
            Chosen::Cuda(index, device) => {
                let device = device.take().map_or_else(|| cuda::Device::open(*index), |device| Ok(*device))?;
                let options = cuda_options(max_model_len, self.dtype, self.memory);
                open_cuda(*index, device, pair, &CudaOptions { graphs: !self.enforce_eager, ..options })
            }
        }
    }
}

/// How a pair is run on CUDA.
pub(super) fn cuda_options(max_model_len: Option<usize>, dtype: DType, memory: MemoryArgs) -> CudaOptions {
    let defaults = CudaOptions::default();
    CudaOptions {
        max_model_len,
        dtype: match dtype {
            DType::Bf16 => Some(HalfType::Bf16),
            DType::F16 => Some(HalfType::F16),
            DType::Auto | DType::F32 => None,
        },
        memory_utilization: memory.gpu_memory_utilization,
        gradient_tokens: memory.gradient_tokens,
        batch_tokens: defaults.batch_tokens.max(memory.gradient_tokens),
        ..defaults
    }
}

/// Brings a pair to a device, with a bar on a terminal, and says what became of it.
fn open_cuda(index: usize, device: cuda::Device, pair: &Pair, options: &CudaOptions) -> Result<Opened> {
    let parts = ((&pair.policy, &pair.policy_weights), (&pair.reward, &pair.reward_weights));
    let bytes = Prepared::new(parts.0, parts.1, options)?.source_bytes();
    let name = device.name().to_string();
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("loading {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}") {
        bar.set_style(style);
    }
    let opened = Cuda::open(device, pair, options, &mut |loading| match loading {
        Loading::Planned(budget) => say(&format!("memory: {budget}")),
        Loading::Read(bytes) => bar.set_position(bytes),
    });
    bar.finish_and_clear();
    let (cuda, opened) = opened?;
    for (role, report, storage) in
        [("policy", &opened.loads[0], opened.storage[0]), ("reward model", &opened.loads[1], opened.storage[1])]
    {
        if let Some(note) = note(report, storage) {
            say(&format!("note: {role}: {note}"));
        }
    }
    let [policy, reward] = opened.storage.map(HalfType::name);
    let types = if policy == reward { policy.to_string() } else { format!("{policy} and {reward}") };
    let seconds: f64 = opened.loads.iter().map(|load| load.seconds).sum();
    say(&format!(
        "device: cuda:{index} ({name}, {types}); loaded {} in {seconds:.2} s, {:.1} GB/s",
        memory::bytes(bytes),
        bytes as f64 / seconds.max(1e-9) / 1e9,
    ));
    Ok(Opened::Cuda { cuda: Box::new(cuda), index, storage: opened.storage })
}

/// What became of numbers that were not stored as they are kept.
fn note(report: &LoadReport, storage: HalfType) -> Option<String> {
    let (converted, name) = (report.converted, storage.name());
    match &report.first_inexact {
        Some(tensor) => {
            Some(format!("{} elements were rounded to {name}, the first in tensor `{tensor}`", report.inexact))
        }
        None => (converted > 0).then(|| format!("{converted} elements are kept in {name} and lose nothing by it")),
    }
}

/// A backend, ready.
pub(super) enum Opened {
    Cpu(Box<Reference>),
    Cuda {
        cuda: Box<Cuda>,
        index: usize,
        /// Of policy and reward model.
        storage: [HalfType; 2],
    },
}

impl Opened {
    /// What methods run on.
    pub(super) fn backend(&mut self) -> &mut dyn Backend {
        match self {
            Opened::Cpu(reference) => reference.as_mut(),
            Opened::Cuda { cuda, .. } => cuda.as_mut(),
        }
    }

    /// The same, for an engine to own.
    pub(super) fn into_backend(self) -> Box<dyn Backend> {
        match self {
            Opened::Cpu(reference) => reference,
            Opened::Cuda { cuda, .. } => cuda,
        }
    }

    /// Hidden states and logits of every position of a text.
    pub(super) fn policy_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        match self {
            Opened::Cpu(reference) => reference.policy_rows(ids),
            Opened::Cuda { cuda, .. } => cuda.policy_rows(ids),
        }
    }

    /// What it rounds to, if that is coarser than f32; bf16 if its models differ, as the coarser of the two.
    pub(super) fn rounds_to(&self) -> Option<HalfType> {
        match self {
            Opened::Cpu(_) => None,
            Opened::Cuda { storage, .. } if storage.contains(&HalfType::Bf16) => Some(HalfType::Bf16),
            Opened::Cuda { .. } => Some(HalfType::F16),
        }
    }

    /// The device, as `--device` names it.
    pub(super) fn device(&self) -> Device {
        match self {
            Opened::Cpu(_) => Device::Cpu,
            Opened::Cuda { index, .. } => Device::Cuda(*index),
        }
    }
}

fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a share above 0 and at most 1".to_string()),
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(Device::Cuda(index)),
                _ => Err("expected auto, cpu, cuda or cuda:N".to_string()),
            },
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Arithmetic asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DType {
    Auto,
    F32,
    Bf16,
    F16,
}

impl DType {
    pub(super) fn name(self) -> &'static str {
        match self {
            DType::Auto => "auto",
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        }
    }
}

/// Reads the variable of a switch: 1/0, true/false, yes/no, on/off.
pub(super) fn switch() -> BoolishValueParser {
    BoolishValueParser::new()
}
