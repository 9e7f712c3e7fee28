//! Opening a pair on a device: what it needs, whether that fits, and bringing it there.

use super::decoder::Decoder;
use super::gradient::GradientPass;
use super::graphs::Graphs;
use super::head::Head;
use super::memory::{self, Budget, Needs};
use super::state::State;
use super::weights::{LoadReport, Plan, Source, Weights};
use super::{Cuda, Parts};
use crate::cuda::{Buffer, Device};
use crate::dtype::DType;
use crate::dtype::HalfType;
use crate::files::checkpoint::{Bytes, Checkpoint};
use crate::files::config::ModelConfig;
use crate::files::pair::Pair;
use crate::model::spans;
use crate::{Error, Result};
use std::collections::HashSet;

/// How a pair is run on a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Longest sequence in tokens; `None`: the shorter of what the two models were made for.
    pub max_model_len: Option<usize>,
    /// HalfType type of weights, activations, keys and values; `None`: that of the checkpoints, if it loses nothing.
    pub dtype: Option<HalfType>,
    /// Share of the device's memory that may be in use, by whomever.
    pub memory_utilization: f64,
    /// Most rows that go through the layers together.
    pub batch_tokens: usize,
    /// Most tokens that are differentiated together; a segment may not be longer.
    pub gradient_tokens: usize,
    /// Sequences of full length, at most, that keys and values are kept for.
    pub sequences: usize,
    /// Whether decode steps are recorded and launched as CUDA graphs.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions {
            max_model_len: None,
            dtype: None,
            memory_utilization: 0.9,
            batch_tokens: 2048,
            gradient_tokens: 1024,
            sequences: memory::SEQUENCES,
            graphs: true,
        }
    }
}

/// What opening did.
#[derive(Clone, Debug)]
pub struct Opened {
    /// How the memory is divided.
    pub budget: Budget,
    /// Loading of policy and reward model.
    pub loads: [LoadReport; 2],
    /// Their storage types.
    pub storage: [HalfType; 2],
}

/// What is known of a pair before a device is asked for anything.
pub struct Prepared {
    plans: [Plan; 2],
    max_len: usize,
    options: CudaOptions,
}

impl Prepared {
    /// Looks all tensors up and works the sizes out.
    ///
    /// # Errors
    /// A tensor is missing or has another shape or type, the kernels cannot do the sizes, or `max_model_len` is zero or beyond
    /// either model.
    pub fn new(
        policy: (&ModelConfig, &Checkpoint),
        reward: (&ModelConfig, &Checkpoint),
        options: &CudaOptions,
    ) -> Result<Self> {
        Self::of((policy.0, Source::Stored(policy.1)), (reward.0, Source::Stored(reward.1)), options)
    }

    /// The same for numbers from anywhere.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(
        policy: (&ModelConfig, Source<'_>),
        reward: (&ModelConfig, Source<'_>),
        options: &CudaOptions,
    ) -> Result<Self> {
        let max_len = spans::longest(policy.0, reward.0, options.max_model_len)?;
        if options.batch_tokens == 0 {
            return Err(Error::invalid("batch-tokens is 0; expected at least 1"));
        }
        let plans = [Plan::of(policy.0, policy.1, options.dtype)?, Plan::of(reward.0, reward.1, options.dtype)?];
        Ok(Prepared { plans, max_len, options: *options })
    }

    /// Rows of a batch: no more than one sequence could ever have in it many times over.
    fn rows(&self) -> usize {
        self.options.batch_tokens
    }

    /// What the pair needs of a device's memory.
    pub fn needs(&self) -> Needs {
        let [policy, reward] = &self.plans;
        let model = |plan: &Plan| memory::Model::new(plan.sizes(), plan.device_bytes());
        let states = State::bytes(policy.sizes(), self.rows()) + State::bytes(reward.sizes(), self.rows());
        Needs {
            policy: model(policy),
            reward: model(reward),
            workspace: states + Head::bytes(policy.sizes().vocab, self.rows()),
            gradient: GradientPass::bytes(
                reward.sizes(),
                self.options.gradient_tokens.min(self.max_len).min(self.rows()),
            ),
            max_len: self.max_len,
            utilization: self.options.memory_utilization,
            sequences: self.options.sequences,
        }
    }

    /// Bytes that will be read from the files.
    pub fn source_bytes(&self) -> u64 {
        self.plans.iter().map(Plan::source_bytes).sum()
    }
}

/// How far opening a pair has come.
#[derive(Debug)]
pub enum Loading<'a> {
    /// It fits, like this; nothing is on the device yet.
    Planned(&'a memory::Budget),
    /// So many bytes of the files have been read.
    Read(u64),
}

impl Cuda {
    /// Brings a pair to a device. `progress` is told how its memory will be divided, then how much has been read.
    ///
    /// # Errors
    /// As [`Prepared::new`]; the pair does not fit the device's memory; an element is not a number of the storage type and no
    /// type was asked for; the device fails.
    pub fn open(
        device: Device,
        pair: &Pair,
        options: &CudaOptions,
        progress: &mut dyn FnMut(Loading<'_>),
    ) -> Result<(Cuda, Opened)> {
        let parts = ((&pair.policy, &pair.policy_weights), (&pair.reward, &pair.reward_weights));
        Self::assemble(device, parts, options, progress)
    }

    /// As [`open`](Self::open), from shapes and weights alone.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn assemble(
        device: Device,
        (policy, reward): Parts<'_>,
        options: &CudaOptions,
        progress: &mut dyn FnMut(Loading<'_>),
    ) -> Result<(Cuda, Opened)> {
        let (policy, reward) = ((policy.0, Source::Stored(policy.1)), (reward.0, Source::Stored(reward.1)));
        Self::of(device, policy, reward, options, progress)
    }

    /// A pair of random models ([`synthetic`](crate::model::synthetic)), whose weights are made on the device.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn synthetic(
        device: Device,
        [policy, reward]: [&ModelConfig; 2],
        seed: u64,
        options: &CudaOptions,
        progress: &mut dyn FnMut(Loading<'_>),
    ) -> Result<(Cuda, Opened)> {
        Self::of(device, (policy, Source::Drawn(seed)), (reward, Source::Drawn(!seed)), options, progress)
    }

    /// A pair whose numbers come from anywhere.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(
        device: Device,
        policy: (&ModelConfig, Source<'_>),
        reward: (&ModelConfig, Source<'_>),
        options: &CudaOptions,
        progress: &mut dyn FnMut(Loading<'_>),
    ) -> Result<(Cuda, Opened)> {
        let prepared = Prepared::of(policy, reward, options)?;
        let embedding = match policy.1 {
            Source::Stored(checkpoint) => {
                let shape = [policy.0.vocab_size, policy.0.hidden_size];
                Some(checkpoint.load("model.embed_tokens.weight", &shape)?)
            }
            Source::Drawn(_) => None,
        };
        Self::build(device, prepared, (policy.0, reward.0), embedding, options, progress)
    }

    fn build(
        device: Device,
        prepared: Prepared,
        (policy, reward): (&ModelConfig, &ModelConfig),
        embedding: Option<(DType, Bytes)>,
        options: &CudaOptions,
        progress: &mut dyn FnMut(Loading<'_>),
    ) -> Result<(Cuda, Opened)> {
        let (free, total) = device.memory()?;
        let budget = prepared.needs().divide(memory::Device { free: free as u64, total: total as u64 })?;
        let rows = prepared.rows();
        let gradient_rows = options.gradient_tokens.min(prepared.max_len).min(rows);
        let Prepared { plans: [policy_plan, reward_plan], max_len, .. } = prepared;

        progress(Loading::Planned(&budget));
        let read = policy_plan.source_bytes();
        let mut progress = |bytes| progress(Loading::Read(bytes));
        let (policy_weights, policy_load) = Weights::load(&device, &policy_plan, &mut progress)?;
        let beside = device.with_new_stream()?;
        let (reward_weights, reward_load) = Weights::load(&beside, &reward_plan, &mut |bytes| progress(read + bytes))?;
        let sizes = (rows, budget.blocks, max_len);
        let decoder = |device: &Device, config, plan: &Plan, weights| {
            Decoder::new(device, config, *plan.sizes(), (weights, plan.storage()), sizes)
        };
        let policy_decoder = decoder(&device, policy, &policy_plan, policy_weights)?;
        let reward_decoder = decoder(&beside, reward, &reward_plan, reward_weights)?;
        let known = policy.vocab_size.min(reward.vocab_size);
        let opened = Opened {
            budget,
            loads: [policy_load, reward_load],
            storage: [policy_plan.storage(), reward_plan.storage()],
        };
        let cuda = Cuda {
            head: Head::new(&device, &policy_decoder, known)?,
            rewards: Buffer::uninitialised(&beside, rows)?,
            gradient: GradientPass::new(&beside, &reward_decoder, gradient_rows)?,
            graphs: options.graphs.then(Graphs::default),
            policy: policy_decoder,
            reward: reward_decoder,
            max_len,
            embedding,
            kept: HashSet::new(),
            device,
            beside,
        };
        Ok((cuda, opened))
    }
}
