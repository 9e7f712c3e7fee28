//! The narrow waist: one model ([`Model`]) and a pair of them ([`ModelPair`]), whatever runs them.
//!
//! A batch is a list of *spans*: consecutive tokens appended to one sequence each. The result of a span never depends on
//! the other spans of its batch, on how a sequence was cut into spans, or on whether its prefix was computed or forked.

pub mod cpu;
pub mod cuda;
mod paged;
mod pair;
mod row;
mod signal;
mod spans;
pub mod synthetic;

pub use pair::{ModelPair, StepBatch, StepOutput, StepTime};
pub use row::{RowStats, top_k};
pub use signal::{Signal, Threshold};

pub(crate) use pair::timed;

use crate::files::config::{ModelConfig, ModelKind};
use crate::{Error, Result};

/// Which of the two models a sequence belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The language model that writes.
    Policy,
    /// The reward model that scores.
    Reward,
}

impl Role {
    /// The role of a model with this head.
    pub fn of(kind: ModelKind) -> Role {
        match kind {
            ModelKind::CausalLm => Role::Policy,
            ModelKind::Reward => Role::Reward,
        }
    }

    /// `policy` or `reward`, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Role::Policy => "policy",
            Role::Reward => "reward",
        }
    }
}

/// A sequence of one model, with its keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId {
    /// The model it belongs to.
    pub role: Role,
    /// Slot in the model's table.
    pub index: u32,
    /// Distinguishes sequences that used the same slot one after the other.
    pub generation: u32,
}

/// Tokens appended to a sequence: positions `start .. start + ids.len()`.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The sequence; its length must be `start`.
    pub seq: SeqId,
    /// Position of the first token.
    pub start: usize,
    /// At least one token id.
    pub ids: &'a [u32],
}

/// Whether a policy row also reports its largest logits.
#[derive(Clone, Copy, Debug)]
pub enum TopK {
    /// It reports none.
    Skip,
    /// The `k` largest (all, if the vocabulary is smaller).
    Take(usize),
    /// The `k` largest if the row reaches the threshold. The backend decides, so that no other row pays for its list.
    TakeIf(usize, Threshold),
}

/// A span of the policy and what is asked of its last rows.
#[derive(Clone, Copy, Debug)]
pub struct PolicySpan<'a> {
    /// The tokens.
    pub span: Span<'a>,
    /// Probability floor of [`RowStats::entropy_floored`]; 0 means none.
    pub floor: f64,
    /// Largest logits of the row after the last token.
    pub top_k: TopK,
    /// Those of the rows before it, one for each token before the last whose row is wanted too: `[.., second to last]`.
    /// At most [`Model::span_rows`] rows of a span are reported.
    pub before: &'a [TopK],
}

impl PolicySpan<'_> {
    /// Rows that it reports.
    pub fn rows(&self) -> usize {
        self.before.len() + 1
    }

    /// What is asked of each, in order of positions.
    pub fn asked(&self) -> impl Iterator<Item = TopK> + '_ {
        self.before.iter().copied().chain([self.top_k])
    }
}

/// The policy's next-token row after a token of a span.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRow {
    /// Statistics of the whole row.
    pub stats: RowStats,
    /// `(id, logit)`, largest first, the lower id first on a tie, of the ids below the bound of [`Model::step`]. Empty if
    /// not asked for.
    pub top: Vec<(u32, f32)>,
}

/// Hidden states and logits of every position of a text.
#[derive(Clone, Debug)]
pub struct PolicyRows {
    /// `[positions, hidden]`, after the final norm.
    pub hidden: Vec<f32>,
    /// `[positions, vocabulary]`.
    pub logits: Vec<f32>,
}

/// What is asked of a whole row of logits.
#[derive(Clone, Copy, Debug)]
pub enum Logits<'a> {
    /// All of them.
    All,
    /// Their log-probabilities, in nats: each minus the row's log-sum-exp. NaN everywhere if the row is not finite.
    LogProbabilities,
    /// Those of some ids, in their order; each below the policy's vocabulary.
    Of(&'a [u32]),
}

impl Logits<'_> {
    /// The answer, from a whole row of logits. An id beyond the row gives NaN.
    pub fn of_row(self, row: Vec<f32>) -> Vec<f32> {
        match self {
            Logits::All => row,
            Logits::LogProbabilities => {
                let stats = RowStats::of(&row, 0.0);
                let norm = if stats.finite { stats.log_sum_exp } else { f64::NAN };
                row.iter().map(|&logit| (f64::from(logit) - norm) as f32).collect()
            }
            Logits::Of(ids) => ids.iter().map(|&id| row.get(id as usize).copied().unwrap_or(f32::NAN)).collect(),
        }
    }
}

/// A span of the reward model.
#[derive(Clone, Copy, Debug)]
pub struct RewardSpan<'a> {
    /// The tokens.
    pub span: Span<'a>,
    /// Positions inside the span, besides the last, whose reward is wanted.
    pub also_at: &'a [usize],
}

/// Rewards of a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// At the span's last position.
    pub reward: f32,
    /// At the positions of [`RewardSpan::also_at`], in their order.
    pub also: Vec<f32>,
}

/// A span of the reward model whose last reward is differentiated with respect to input embeddings.
#[derive(Clone, Copy, Debug)]
pub struct GradientSpan<'a> {
    /// The tokens and the rewards asked for.
    pub span: RewardSpan<'a>,
    /// Position inside the span; only positions `slot ..` are differentiated.
    pub slot: usize,
    /// Ids whose embedding rows are multiplied with the gradient at `slot`; each below the reward model's vocabulary.
    pub candidates: &'a [u32],
    /// Also return the gradient at every position `slot ..`.
    pub rows: bool,
}

/// Rewards and first-order candidate scores of a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradient {
    /// Rewards.
    pub score: Score,
    /// `E_R[c] . dR/de_slot` per candidate.
    pub dots: Vec<f32>,
    /// Euclidean norm of `dR/de_slot`.
    pub norm: f32,
    /// `[positions, hidden]` if asked for, else empty.
    pub rows: Vec<f32>,
}

/// Token positions that went through a model, counted where they were computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Work {
    /// Policy token-forwards.
    pub policy_forward: u64,
    /// Reward token-forwards.
    pub reward_forward: u64,
    /// Reward token-backwards.
    pub reward_backward: u64,
}

impl Work {
    /// Positions of one model; those of the policy are never differentiated.
    pub fn of(role: Role, forward: usize, backward: usize) -> Work {
        let (forward, reward_backward) = (forward as u64, backward as u64);
        match role {
            Role::Policy => Work { policy_forward: forward, reward_backward, ..Work::default() },
            Role::Reward => Work { reward_forward: forward, reward_backward, ..Work::default() },
        }
    }

    /// What is left of each kind, at least 0.
    pub fn saturating_sub(self, less: Work) -> Work {
        Work {
            policy_forward: self.policy_forward.saturating_sub(less.policy_forward),
            reward_forward: self.reward_forward.saturating_sub(less.reward_forward),
            reward_backward: self.reward_backward.saturating_sub(less.reward_backward),
        }
    }
}

impl std::ops::Add for Work {
    type Output = Work;
    fn add(self, more: Work) -> Work {
        Work {
            policy_forward: self.policy_forward + more.policy_forward,
            reward_forward: self.reward_forward + more.reward_forward,
            reward_backward: self.reward_backward + more.reward_backward,
        }
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, more: Work) {
        *self = *self + more;
    }
}

impl std::ops::Sub for Work {
    type Output = Work;
    fn sub(self, earlier: Work) -> Work {
        Work {
            policy_forward: self.policy_forward - earlier.policy_forward,
            reward_forward: self.reward_forward - earlier.reward_forward,
            reward_backward: self.reward_backward - earlier.reward_backward,
        }
    }
}

/// One model with its sequences: a language model that can be stepped, or a reward model that can be asked for rewards
/// and their gradients.
///
/// All operations on spans fail without side effects on other sequences if a span is malformed (wrong start, no tokens,
/// an id beyond the model's vocabulary, a sequence beyond [`max_len`](Model::max_len)). What the model has no head for is
/// [`Error::Invalid`].
pub trait Model {
    /// Its shape.
    fn config(&self) -> &ModelConfig;

    /// Longest sequence, in tokens.
    fn max_len(&self) -> usize;

    /// A new, empty sequence.
    fn create(&mut self) -> Result<SeqId>;

    /// A new sequence that shares the first `len` positions of `seq`. The logits of the last span are not inherited.
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId>;

    /// Forgets all positions `len ..`.
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()>;

    /// Gives a sequence's memory back. Releasing twice is harmless.
    fn release(&mut self, seq: SeqId);

    /// Positions held by a sequence.
    fn len(&self, seq: SeqId) -> usize;

    /// Appends spans to a language model's sequences and reports the row after each span's last token, behind those
    /// that [`PolicySpan::before`] asks for. Lists of largest logits have ids below `ids_below` only.
    ///
    /// A model that waits for a device calls `meanwhile` once, between queueing its work and waiting for it, so that the
    /// other model's work can be queued too. One that has nothing to wait for leaves it to the caller.
    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        ids_below: usize,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<PolicyRow>> {
        let _ = (spans, ids_below, meanwhile);
        Err(no_head(self.config()))
    }

    /// What is asked of the logits after the last token of the span that was run last on `seq`.
    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        let _ = (seq, asked);
        Err(no_head(self.config()))
    }

    /// As [`logits`](Model::logits), of the row that was reported `back` rows before the span's last one.
    fn logits_before(&mut self, seq: SeqId, back: usize, asked: Logits<'_>) -> Result<Vec<f32>> {
        if back == 0 {
            return self.logits(seq, asked);
        }
        Err(Error::Backend(format!("the row {back} before the last one is not kept")))
    }

    /// Hidden states and logits of every position of `ids`, computed as one sequence.
    fn all_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        let _ = ids;
        Err(no_head(self.config()))
    }

    /// Appends spans to a reward model's sequences and scores them.
    fn score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        let _ = spans;
        Err(no_head(self.config()))
    }

    /// Appends spans to a reward model's sequences, scores them and differentiates the last reward.
    fn gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        let _ = spans;
        Err(no_head(self.config()))
    }

    /// Whether the input embedding rows of two ids are equal in every component, compared as numbers.
    fn same_embedding(&self, a: u32, b: u32) -> bool;

    /// Work done since the model was opened, in the fields of its role.
    fn work(&self) -> Work;

    /// An error once the device is lost: no further call can be answered.
    fn alive(&self) -> Result<()> {
        Ok(())
    }

    /// Blocks of keys and values that no sequence holds.
    fn blocks_free(&self) -> usize {
        usize::MAX
    }

    /// Blocks of keys and values that a sequence holds. With those that none holds they are all there are: a longer text is refused.
    fn blocks_in_use(&self) -> usize {
        0
    }

    /// The most blocks that `count` more positions of a sequence take.
    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        let _ = (seq, count);
        0
    }

    /// Rows of a step that cost little more together than one by itself, because they share one reading of the weights.
    fn free_batch_rows(&self) -> usize {
        1
    }

    /// Rows that a step can report of one span, at most.
    fn span_rows(&self) -> usize {
        1
    }

    /// Whether all logits can be asked for of each of these rows ([`logits_before`](Model::logits_before)), and not of
    /// the last one alone.
    fn keeps_span_rows(&self) -> bool {
        false
    }

    /// What one more row of a step costs, as a part of what a step of one row costs.
    fn row_cost(&self) -> f64 {
        1.0 / self.free_batch_rows().max(1) as f64
    }

    /// Positions of one segment that can be differentiated, at most.
    fn gradient_tokens(&self) -> usize {
        usize::MAX
    }
}

/// A call that needs the other kind of model.
fn no_head(config: &ModelConfig) -> Error {
    Error::invalid(match config.kind {
        ModelKind::CausalLm => "rewards were asked for of a language model, which has no score head",
        ModelKind::Reward => "logits were asked for of a reward model, which has no language-model head",
    })
}
