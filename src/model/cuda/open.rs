//! Opening a pair, or one of its models, on a device: what it needs, whether that fits, and bringing it there.

use super::decoder::Decoder;
use super::gradient::GradientPass;
use super::graphs::{self, Graphs, Launches};
use super::head::Head;
use super::memory::{self, MemoryBudget, Needs};
use super::policy::PolicyModel;
use super::reward::RewardModel;
use super::sizes::Sizes;
use super::state::State;
use super::weights::{LoadPlan, LoadReport, Source, Weights};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::files::config::ModelConfig;
use crate::files::pair::{Part, Parts};
use crate::files::tensors::{EMBEDDING, SCORE_BIAS};
use crate::model::paged::{Compute, Paged};
use crate::model::{Model, ModelPair, Role, spans};
use crate::{Error, Result};
use std::sync::Arc;

/// How a pair is run on a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Longest sequence in tokens; `None`: the shorter of what the two models were made for.
    pub max_model_len: Option<usize>,
    /// Type of weights, activations, keys and values; `None`: that of the checkpoints, if it loses nothing.
    pub dtype: Option<HalfType>,
    /// Share of the device's memory that may be in use, by whomever.
    pub memory_utilization: f64,
    /// Most rows that go through the layers together.
    pub batch_tokens: usize,
    /// Most tokens that are differentiated together; a segment may not be longer.
    pub gradient_tokens: usize,
    /// Sequences of full length, at most, that keys and values are kept for.
    pub sequences: usize,
    /// Whether decode steps and rewards with gradients are recorded and launched as CUDA graphs.
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
pub struct Opened {
    /// How the memory is divided.
    pub budget: MemoryBudget,
    /// The models, the policy first and the draft model last.
    pub models: Vec<Loaded>,
    /// The device, on the stream of the first model.
    pub device: Device,
    /// How decode steps and rewards with gradients are launched.
    pub launches: Arc<Launches>,
}

/// A model that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Which one; that of the draft model is the policy's.
    pub role: Role,
    /// Whether it is the draft model.
    pub draft: bool,
    /// Loading it.
    pub report: LoadReport,
    /// Type of its weights, activations, keys and values.
    pub storage: HalfType,
}

/// Shapes, and where the numbers come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// The language model.
    pub policy: Option<(&'a ModelConfig, Source<'a>)>,
    /// The reward model.
    pub reward: Option<(&'a ModelConfig, Source<'a>)>,
    /// The language model that drafts.
    pub draft: Option<(&'a ModelConfig, Source<'a>)>,
}

impl<'a> Sources<'a> {
    /// A pair of random models ([`synthetic`](crate::model::synthetic)), whose weights are made on the device.
    pub fn synthetic([policy, reward]: [&'a ModelConfig; 2], seed: u64) -> Self {
        Sources {
            policy: Some((policy, Source::Drawn(seed))),
            reward: Some((reward, Source::Drawn(!seed))),
            draft: None,
        }
    }
}

impl<'a> From<Parts<'a>> for Sources<'a> {
    fn from(parts: Parts<'a>) -> Self {
        let stored = |part: Option<Part<'a>>| part.map(|(config, checkpoint)| (config, Source::Stored(checkpoint)));
        Sources { policy: stored(parts.policy), reward: stored(parts.reward), draft: stored(parts.draft) }
    }
}

/// What is known of the models before a device is asked for memory.
pub struct Prepared {
    policy: Option<LoadPlan>,
    reward: Option<LoadPlan>,
    draft: Option<LoadPlan>,
    max_len: usize,
    options: CudaOptions,
    layout: WeightLayout,
}

impl Prepared {
    /// Looks all tensors up and works the sizes out, for a device whose products read weights in `layout`
    /// ([`Device::weight_layout`]).
    ///
    /// # Errors
    /// A tensor is missing or has another shape or type, the kernels cannot do the sizes, `max_model_len` is zero or beyond
    /// a model, or no model is given.
    pub fn new<'a>(models: impl Into<Sources<'a>>, options: &CudaOptions, layout: WeightLayout) -> Result<Self> {
        let Sources { policy, reward, draft } = models.into();
        let max_len = spans::longest(policy.map(|of| of.0), reward.map(|of| of.0), options.max_model_len)?;
        if options.batch_tokens == 0 {
            return Err(Error::invalid("batch-tokens is 0; expected at least 1"));
        }
        let plan = |of: Option<(&ModelConfig, Source<'_>)>| {
            of.map(|(config, source)| LoadPlan::of(config, source, options.dtype, layout)).transpose()
        };
        Ok(Prepared {
            policy: plan(policy)?,
            reward: plan(reward)?,
            draft: plan(draft)?,
            max_len,
            options: *options,
            layout,
        })
    }

    /// Rows that go through the layers together, at most.
    fn rows(&self) -> usize {
        self.options.batch_tokens
    }

    /// Rows that are differentiated together, at most.
    fn gradient_rows(&self) -> usize {
        self.options.gradient_tokens.min(self.max_len).min(self.rows())
    }

    /// What the models need of a device's memory.
    pub fn needs(&self) -> Needs {
        let rows = self.rows();
        let model = |plan: &LoadPlan| memory::ModelNeeds::new(plan.sizes(), plan.device_bytes());
        let sizes: Vec<_> = self.plans().map(LoadPlan::sizes).collect();
        let state = |sizes: &&Sizes| State::bytes(sizes, rows) + Decoder::bytes(sizes, rows, self.max_len);
        let of_heads = |bytes: fn(&Sizes, usize) -> u64| -> u64 {
            let language = self.policy.iter().chain(&self.draft);
            language.map(|plan| bytes(plan.sizes(), rows)).fold(0, u64::saturating_add)
        };
        let scratch = sizes.iter().map(|sizes| State::scratch_bytes(sizes, self.layout)).fold(0, u64::saturating_add);
        let graphs = |plan: &Option<LoadPlan>, kind: graphs::GraphKind| {
            plan.as_ref().filter(|_| self.options.graphs).map_or(0, |plan| kind.bytes(plan.sizes().layers))
        };
        let gradient = |plan: &LoadPlan| GradientPass::bytes(plan.sizes(), self.gradient_rows(), self.layout);
        Needs {
            policy: self.policy.as_ref().map(model),
            reward: self.reward.as_ref().map(model),
            draft: self.draft.as_ref().map(model),
            workspace: sizes.iter().map(state).sum::<u64>() + of_heads(Head::bytes),
            scratch: scratch.saturating_add(of_heads(Head::scratch_bytes)),
            graphs: graphs(&self.policy, graphs::STEPS)
                + graphs(&self.reward, graphs::GRADIENTS)
                + graphs(&self.draft, graphs::STEPS),
            gradient: self.reward.as_ref().map_or(0, gradient),
            max_len: self.max_len,
            utilization: self.options.memory_utilization,
            sequences: self.options.sequences,
        }
    }

    /// Bytes that will be read from the files.
    pub fn source_bytes(&self) -> u64 {
        self.plans().map(LoadPlan::source_bytes).sum()
    }

    /// Of the models that are there.
    fn plans(&self) -> impl Iterator<Item = &LoadPlan> {
        self.policy.iter().chain(&self.reward).chain(&self.draft)
    }
}

/// How far opening has come.
#[derive(Debug)]
pub enum Loading<'a> {
    /// It fits, like this; nothing is on the device yet.
    Planned(&'a memory::MemoryBudget),
    /// This many bytes of the files have been read.
    Read(u64),
}

/// Brings a pair, or one of its models, to a device. `progress` is told how the memory will be divided, then how much has
/// been read.
///
/// # Errors
/// As [`Prepared::new`]; the models do not fit the device's memory; an element is not a number of the storage type and no
/// type was asked for; the device fails.
pub fn open<'a>(
    device: Device,
    models: impl Into<Sources<'a>>,
    options: &CudaOptions,
    progress: &mut dyn FnMut(Loading<'_>),
) -> Result<(ModelPair, Opened)> {
    let models = models.into();
    let prepared = Prepared::new(models, options, device.weight_layout())?;
    let budget = prepared.needs().divide(memory::DeviceMemory::of(&device)?)?;
    progress(Loading::Planned(&budget));

    let launches = Arc::new(Launches::new(options.graphs));
    let (rows, gradient_rows) = (prepared.rows(), prepared.gradient_rows());
    let sizes = (rows, budget.blocks, prepared.max_len);
    let (mut pair, mut loaded, mut read) = (ModelPair::default(), Vec::new(), 0);
    let mut load = |device: &Device, (role, draft), config: &ModelConfig, plan: &LoadPlan| -> Result<Decoder> {
        let (weights, report) = Weights::load(device, plan, &mut |bytes| progress(Loading::Read(read + bytes)))?;
        read += plan.source_bytes();
        loaded.push(Loaded { role, draft, report, storage: plan.storage() });
        Decoder::new(device, config, *plan.sizes(), (weights, plan.storage()), sizes)
    };
    let language = |decoder: Decoder, embedding| -> Result<PolicyModel> {
        let head = Head::new(&device, &decoder)?;
        let (device, launches) = (device.clone(), launches.clone());
        Ok(PolicyModel { device, decoder, head, graphs: Graphs::new(graphs::STEPS), launches, embedding })
    };
    if let Some(((config, source), plan)) = models.policy.zip(prepared.policy.as_ref()) {
        let embedding = match source {
            Source::Stored(checkpoint) => Some(checkpoint.load(EMBEDDING, &[config.vocab_size, config.hidden_size])?),
            Source::Drawn(_) => None,
        };
        let decoder = load(&device, (Role::Policy, false), config, plan)?;
        pair.policy = Some(paged(language(decoder, embedding)?, prepared.max_len));
    }
    if let Some(((config, source), plan)) = models.reward.zip(prepared.reward.as_ref()) {
        // One number, which the host adds to what comes back.
        let bias = match source {
            Source::Stored(checkpoint) if config.score_bias => Some(checkpoint.number(SCORE_BIAS)?),
            _ => None,
        };
        // Its passes run beside the policy's, where there is one.
        let device = if pair.policy.is_some() { device.with_new_stream()? } else { device.clone() };
        let decoder = load(&device, (Role::Reward, false), config, plan)?;
        let rewards = Buffer::uninitialised(&device, rows)?;
        let gradient = GradientPass::new(&device, &decoder, gradient_rows, launches.clone())?;
        let model = RewardModel { device, decoder, rewards, gradient, bias };
        pair.reward = Some(paged(model, prepared.max_len));
    }
    if let Some(((config, _), plan)) = models.draft.zip(prepared.draft.as_ref()) {
        // It runs between the policy's steps, on the same stream. Nobody compares its embeddings.
        let decoder = load(&device, (Role::Policy, true), config, plan)?;
        let longest = spans::longest_draft(Some(config), prepared.max_len);
        pair.draft = Some(paged(language(decoder, None)?, longest));
    }
    Ok((pair, Opened { budget, models: loaded, device, launches }))
}

fn paged(model: impl Compute + 'static, max_len: usize) -> Box<dyn Model> {
    Box::new(Paged::new(model, max_len))
}
