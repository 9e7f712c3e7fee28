//! Which pair of models, on which device.

use super::say;
use crate::checkpoint::Files;
use crate::cuda::images;
use crate::model::reference::{LoadOptions, Reference};
use crate::pair::Pair;
use crate::{Error, Result, demo};
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Why CUDA cannot be chosen.
pub(super) fn no_cuda() -> &'static str {
    if images::embedded().is_empty() {
        "this build has no CUDA kernels: it was built without nvcc; install CUDA 13 (or run scripts/install-nvcc.sh), set NVCC and \
         build again"
    } else {
        "the CUDA backend is not complete: this build has kernels, but no forward pass on them yet"
    }
}

/// The pair.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Models")]
pub(super) struct PairArgs {
    /// Directory of the policy, the language model that writes (Hugging Face layout) [default: the embedded demo pair]
    ///
    /// Llama 3.x, Mistral, Qwen2, Qwen2.5 or Qwen3: config.json, model.safetensors or shards with their index,
    /// tokenizer.json, tokenizer_config.json and, if present, generation_config.json and chat_template.jinja. Needs --reward.
    #[arg(long, value_name = "DIR", env = "GGRO_POLICY", hide_env = true)]
    pub policy: Option<PathBuf>,

    /// Directory of the reward model, a *ForSequenceClassification with one label [default: the embedded demo pair]
    ///
    /// It must have the policy's tokenizer. Needs --policy.
    #[arg(long, value_name = "DIR", env = "GGRO_REWARD", hide_env = true)]
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

/// Reads a pair of directories.
pub(super) fn load(policy: &Path, reward: &Path) -> Result<Pair> {
    for dir in [policy, reward] {
        let found = std::fs::metadata(dir).map_err(|e| Error::io(dir, e))?;
        if !found.is_dir() {
            return Err(Error::file(dir, "is not a directory"));
        }
    }
    Pair::load(&Files::Dir(policy.to_path_buf()), &Files::Dir(reward.to_path_buf()))
}

/// Longest sequence that both models were made for.
pub(super) fn context(pair: &Pair) -> usize {
    pair.policy.max_position_embeddings.min(pair.reward.max_position_embeddings)
}

/// The device and its arithmetic.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceArgs {
    /// auto, cpu, cuda or cuda:N
    ///
    /// auto says which it takes. The CUDA backend is not complete: cuda is refused, and auto takes the CPU.
    #[arg(long, value_name = "DEVICE", env = "GGRO_DEVICE", hide_env = true, default_value = "auto")]
    pub device: Device,

    /// Arithmetic: auto, f32, bf16 or f16
    ///
    /// The CPU computes in f32 straight from the stored weights, whatever their type, and takes auto and f32 only.
    #[arg(long, value_name = "TYPE", env = "GGRO_DTYPE", hide_env = true, default_value = "auto", value_enum)]
    pub dtype: DType,

    /// Threads of the CPU backend [default: all cores]; results do not depend on it
    #[arg(long, value_name = "N", env = "GGRO_THREADS", hide_env = true,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub threads: Option<usize>,
}

impl DeviceArgs {
    /// Refuses what this build cannot do; says what auto takes.
    pub(super) fn check(&self) -> Result<()> {
        match (self.device, self.dtype) {
            (Device::Cuda(_), _) => {
                Err(Error::invalid(format!("--device {}: {}; or use --device cpu", self.device, no_cuda())))
            }
            (_, DType::Bf16 | DType::F16) => Err(Error::invalid(format!(
                "--dtype {}: the CPU backend computes in f32 from the stored weights, whatever their type; use auto or f32",
                self.dtype.name()
            ))),
            _ => Ok(()),
        }
    }

    /// Says which device `auto` took.
    pub(super) fn announce(&self) {
        if self.device == Device::Auto {
            // Short: it stands above every answer. `ggro info` says what to do about it.
            let why =
                if images::embedded().is_empty() { "no CUDA kernels in this build" } else { "no CUDA backend yet" };
            say(&format!("device: cpu ({why})"));
        }
    }

    /// Opens the backend.
    pub(super) fn open(&self, pair: &Arc<Pair>, max_model_len: Option<usize>) -> Result<Reference> {
        Reference::load(pair, &LoadOptions { max_model_len, threads: self.threads, ..LoadOptions::default() })
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
    fn name(self) -> &'static str {
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
