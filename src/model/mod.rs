//! The narrow waist: what a method or an engine may ask of the two models, whatever runs them.
//!
//! A batch is a list of *spans*: consecutive tokens appended to one sequence each. The result of a span never depends on
//! the other spans of its batch, on how a sequence was cut into spans, or on whether its prefix was computed or forked.

pub mod cpu;
pub mod cuda;
mod row;
mod signal;
mod spans;
pub mod synthetic;

pub use row::{RowStats, top_k};
pub use signal::{Signal, Threshold};

use crate::Result;
use crate::files::config::ModelConfig;

/// Which of the two models a sequence belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The language model that writes.
    Policy,
    /// The reward model that scores.
    Reward,
}

impl Role {
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
    /// Slot in the backend's table.
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

/// A span of the policy and what is asked of its last row.
#[derive(Clone, Copy, Debug)]
pub struct PolicySpan<'a> {
    /// The tokens.
    pub span: Span<'a>,
    /// Probability floor of [`RowStats::entropy_floored`]; 0 means none.
    pub floor: f64,
    /// Largest logits.
    pub top_k: TopK,
}

/// The policy's next-token row after a span's last token.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRow {
    /// Statistics of the whole row.
    pub stats: RowStats,
    /// `(id, logit)`, largest first, the lower id first on a tie; ids that the reward model does not know are left out.
    /// Empty if not asked for.
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

/// What is wanted of both models at once. No sequence is in two of the lists.
#[derive(Clone, Copy, Default)]
pub struct Turn<'a> {
    /// As for [`Backend::policy_step`].
    pub policy: &'a [PolicySpan<'a>],
    /// As for [`Backend::reward_score`].
    pub score: &'a [RewardSpan<'a>],
    /// As for [`Backend::reward_gradient`].
    pub gradient: &'a [GradientSpan<'a>],
}

/// Results of a turn. Each list may fail by itself.
#[derive(Debug)]
pub struct Turned {
    /// Of the policy's spans.
    pub policy: Result<Vec<PolicyRow>>,
    /// Of the spans to be scored.
    pub score: Result<Vec<Score>>,
    /// Of the spans to be differentiated.
    pub gradient: Result<Vec<Gradient>>,
    /// How long each took.
    pub seconds: Seconds,
}

/// Seconds that the host waited for each kind of work. A device may work on several at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Policy steps.
    pub policy: f64,
    /// Rewards.
    pub score: f64,
    /// Rewards with gradients.
    pub gradient: f64,
}

/// The range of a policy step, by what most of it is.
pub(crate) fn policy_range(spans: &[PolicySpan<'_>]) -> crate::profile::Range {
    use crate::profile::{Phase, range};
    let tokens = spans.iter().map(|span| span.span.ids.len()).sum();
    range(if tokens == spans.len() { Phase::Decode } else { Phase::Prefill }, tokens)
}

impl std::ops::AddAssign for Seconds {
    fn add_assign(&mut self, more: Seconds) {
        self.policy += more.policy;
        self.score += more.score;
        self.gradient += more.gradient;
    }
}

/// Runs something and adds the seconds that it took.
pub(crate) fn timed<T>(seconds: &mut f64, run: impl FnOnce() -> T) -> T {
    let started = std::time::Instant::now();
    let result = run();
    *seconds += started.elapsed().as_secs_f64();
    result
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

/// A policy and a reward model that can be stepped, scored, differentiated, forked and rolled back.
///
/// All operations on spans fail without side effects on other sequences if a span is malformed (wrong start, no tokens,
/// an id beyond the model's vocabulary, a sequence beyond [`max_len`](Backend::max_len)).
pub trait Backend {
    /// Shape of a model.
    fn config(&self, role: Role) -> &ModelConfig;

    /// Longest sequence, in tokens.
    fn max_len(&self) -> usize;

    /// A new, empty sequence.
    fn create(&mut self, role: Role) -> Result<SeqId>;

    /// A new sequence that shares the first `len` positions of `seq`. Rows of the last span are not inherited.
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId>;

    /// Forgets all positions `len ..`.
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()>;

    /// Gives a sequence's memory back. Releasing twice is harmless.
    fn release(&mut self, seq: SeqId);

    /// Positions held by a sequence.
    fn len(&self, seq: SeqId) -> usize;

    /// Appends spans to policy sequences and reports the row after each span's last token.
    fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> Result<Vec<PolicyRow>>;

    /// The whole logit row after the last token of the span that was run last on `seq`.
    fn logits_row(&mut self, seq: SeqId) -> Result<Vec<f32>>;

    /// What is asked of the same row, made where the row is.
    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        spans::check_logits(asked, self.config(Role::Policy).vocab_size)?;
        let row = self.logits_row(seq)?;
        Ok(match asked {
            Logits::All => row,
            Logits::LogProbabilities => {
                let stats = RowStats::of(&row, 0.0);
                let norm = if stats.finite { stats.log_sum_exp } else { f64::NAN };
                row.iter().map(|&logit| (f64::from(logit) - norm) as f32).collect()
            }
            Logits::Of(ids) => ids.iter().map(|&id| row.get(id as usize).copied().unwrap_or(f32::NAN)).collect(),
        })
    }

    /// Appends spans to reward sequences and scores them.
    fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>>;

    /// Appends spans to reward sequences, scores them and differentiates the last reward.
    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>>;

    /// The three of them together, where the backend can: the models have nothing in common but the device. Empty lists are not
    /// run. The results are those of one after the other.
    fn turn(&mut self, turn: Turn<'_>) -> Turned {
        let mut seconds = Seconds::default();
        let (policy, score, gradient) = (turn.policy, turn.score, turn.gradient);
        let policy = match policy {
            [] => Ok(Vec::new()),
            spans => timed(&mut seconds.policy, || self.policy_step(spans)),
        };
        let score = match score {
            [] => Ok(Vec::new()),
            spans => timed(&mut seconds.score, || self.reward_score(spans)),
        };
        let gradient = match gradient {
            [] => Ok(Vec::new()),
            spans => timed(&mut seconds.gradient, || self.reward_gradient(spans)),
        };
        Turned { policy, score, gradient, seconds }
    }

    /// An error once the device is lost: nothing that is asked of it can be answered any more.
    fn alive(&self) -> Result<()> {
        Ok(())
    }

    /// Whether the policy's input embedding rows of two ids are equal in every component, compared as numbers.
    fn same_embedding(&self, a: u32, b: u32) -> bool;

    /// Work done since the backend was made.
    fn work(&self) -> Work;

    /// Blocks of keys and values of a model that nobody holds.
    fn blocks_free(&self, role: Role) -> usize {
        let _ = role;
        usize::MAX
    }

    /// Blocks of keys and values of a model that somebody holds.
    fn blocks_in_use(&self, role: Role) -> usize {
        let _ = role;
        0
    }

    /// The most blocks that `count` more positions of a sequence take.
    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        let _ = (seq, count);
        0
    }

    /// Rows of the policy that cost little more together than one alone, because they share one reading of the weights.
    fn cheap_rows(&self) -> usize {
        1
    }

    /// Positions of one segment that can be differentiated, at most.
    fn gradient_tokens(&self) -> usize {
        usize::MAX
    }
}
