//! A policy and a reward model behind one set of calls, keyed by [`Role`]; either may be missing.

use super::{
    Gradient, GradientSpan, Logits, Model, PolicyRow, PolicyRows, PolicySpan, RewardSpan, Role, Score, SeqId, Work,
};
use crate::files::config::ModelConfig;
use crate::files::pair::{no_policy, no_reward_model};
use crate::profile::{Phase, Range, range};
use crate::{Error, Result};
use std::time::Instant;

/// What is wanted of both models at once. No sequence is in two of the lists.
#[derive(Clone, Copy, Default)]
pub struct StepBatch<'a> {
    /// As for [`ModelPair::policy_step`].
    pub policy: &'a [PolicySpan<'a>],
    /// As for [`ModelPair::reward_score`].
    pub score: &'a [RewardSpan<'a>],
    /// As for [`ModelPair::reward_gradient`].
    pub gradient: &'a [GradientSpan<'a>],
}

/// Results of a [`StepBatch`]. Each list may fail by itself.
#[derive(Debug)]
pub struct StepOutput {
    /// Of the policy's spans.
    pub policy: Result<Vec<PolicyRow>>,
    /// Of the spans to be scored.
    pub score: Result<Vec<Score>>,
    /// Of the spans to be differentiated.
    pub gradient: Result<Vec<Gradient>>,
    /// How long each took.
    pub seconds: StepTime,
}

/// Seconds that the host waited for each kind of work. A device may work on several at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Policy steps.
    pub policy: f64,
    /// Rewards.
    pub score: f64,
    /// Rewards with gradients.
    pub gradient: f64,
    /// Guesses of the draft model, between the steps.
    pub draft: f64,
}

impl std::ops::AddAssign for StepTime {
    fn add_assign(&mut self, more: StepTime) {
        self.policy += more.policy;
        self.score += more.score;
        self.gradient += more.gradient;
        self.draft += more.draft;
    }
}

/// Runs something and adds the seconds that it took.
pub(crate) fn timed<T>(seconds: &mut f64, run: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = run();
    *seconds += started.elapsed().as_secs_f64();
    result
}

/// A policy and a reward model, or one of them. A call that needs a model which is not there is
/// [`Error::MissingModel`] and says which one is missing.
#[derive(Default)]
pub struct ModelPair {
    /// The language model that writes.
    pub policy: Option<Box<dyn Model>>,
    /// The reward model that scores.
    pub reward: Option<Box<dyn Model>>,
    /// A small language model that guesses what the policy will write. No answer depends on it: none of the calls below
    /// asks it anything, and what it runs is not among the [work](Self::work).
    pub draft: Option<Box<dyn Model>>,
}

impl ModelPair {
    /// Whether the model of a role is there.
    pub fn has(&self, role: Role) -> bool {
        self.get(role).is_some()
    }

    fn get(&self, role: Role) -> Option<&dyn Model> {
        match role {
            Role::Policy => self.policy.as_deref(),
            Role::Reward => self.reward.as_deref(),
        }
    }

    fn get_mut(&mut self, role: Role) -> Option<&mut Box<dyn Model>> {
        match role {
            Role::Policy => self.policy.as_mut(),
            Role::Reward => self.reward.as_mut(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &dyn Model> {
        [Role::Policy, Role::Reward].into_iter().filter_map(|role| self.get(role))
    }

    fn model(&self, role: Role) -> Result<&dyn Model> {
        self.get(role).ok_or_else(|| missing(role))
    }

    fn model_mut(&mut self, role: Role) -> Result<&mut Box<dyn Model>> {
        self.get_mut(role).ok_or_else(|| missing(role))
    }

    /// Shape of a model.
    ///
    /// # Errors
    /// The model is missing.
    pub fn config(&self, role: Role) -> Result<&ModelConfig> {
        Ok(self.model(role)?.config())
    }

    /// Longest sequence, in tokens: the shorter of the two models'.
    pub fn max_len(&self) -> usize {
        self.all().map(Model::max_len).min().unwrap_or(0)
    }

    /// A new, empty sequence of a model.
    ///
    /// # Errors
    /// The model is missing, or as [`Model::create`].
    pub fn create(&mut self, role: Role) -> Result<SeqId> {
        self.model_mut(role)?.create()
    }

    /// As [`Model::fork`].
    ///
    /// # Errors
    /// The sequence is released or shorter than `len`, or there is no room.
    pub fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        self.model_mut(seq.role)?.fork(seq, len)
    }

    /// As [`Model::truncate`].
    ///
    /// # Errors
    /// The sequence is released or shorter than `len`.
    pub fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        self.model_mut(seq.role)?.truncate(seq, len)
    }

    /// As [`Model::release`].
    pub fn release(&mut self, seq: SeqId) {
        if let Some(model) = self.get_mut(seq.role) {
            model.release(seq);
        }
    }

    /// Positions held by a sequence.
    pub fn len(&self, seq: SeqId) -> usize {
        self.get(seq.role).map_or(0, |model| model.len(seq))
    }

    /// Ids that every model of the pair knows are below this.
    fn shared_vocabulary(&self) -> usize {
        self.all().map(|model| model.config().vocab_size).min().unwrap_or(0)
    }

    /// Appends spans to policy sequences and reports the row after each span's last token, behind those that
    /// [`PolicySpan::before`] asks for. Lists of largest logits leave out what the reward model does not know.
    ///
    /// # Errors
    /// The policy is missing, a span is malformed or has no room, or the device fails.
    pub fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> Result<Vec<PolicyRow>> {
        let below = self.shared_vocabulary();
        let policy = self.model_mut(Role::Policy)?;
        let _range = policy_range(spans);
        policy.step(spans, below, &mut || ())
    }

    /// The whole row of logits after the last token of the span that was run last on `seq`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn logits_row(&mut self, seq: SeqId) -> Result<Vec<f32>> {
        self.logits(seq, Logits::All)
    }

    /// What is asked of the same row.
    ///
    /// # Errors
    /// The policy is missing, `seq` was not run since it was made or cut back, or an id is beyond the vocabulary.
    pub fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        self.model_mut(seq.role)?.logits(seq, asked)
    }

    /// The whole row that was reported `back` rows before the last one of the span that was run last on `seq`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits); the span did not report so many rows.
    pub fn logits_row_before(&mut self, seq: SeqId, back: usize) -> Result<Vec<f32>> {
        self.model_mut(seq.role)?.logits_before(seq, back, Logits::All)
    }

    /// Hidden states and logits of every position of `ids`, computed as one sequence of the policy.
    ///
    /// # Errors
    /// As [`policy_step`](Self::policy_step).
    pub fn policy_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        self.model_mut(Role::Policy)?.all_rows(ids)
    }

    /// Appends spans to reward sequences and scores them.
    ///
    /// # Errors
    /// The reward model is missing, a span is malformed or has no room, or the device fails.
    pub fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        let reward = self.model_mut(Role::Reward)?;
        let _range = range(Phase::RewardForward, spans.iter().map(|span| span.span.ids.len()).sum());
        reward.score(spans)
    }

    /// Appends spans to reward sequences, scores them and differentiates the last reward.
    ///
    /// # Errors
    /// As [`reward_score`](Self::reward_score); a slot is outside of its span, or a candidate beyond the vocabulary.
    pub fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        let reward = self.model_mut(Role::Reward)?;
        let _range = range(Phase::RewardBackward, spans.iter().map(|span| span.span.span.ids.len()).sum());
        reward.gradient(spans)
    }

    /// The three of them together: the reward model's work is queued while the policy's runs, where the models can. Empty
    /// lists are not run. The results are those of one after the other.
    pub fn step(&mut self, batch: StepBatch<'_>) -> StepOutput {
        if batch.policy.is_empty() {
            return self.rewards(batch);
        }
        let below = self.shared_vocabulary();
        let Some(mut policy) = self.policy.take() else {
            return StepOutput { policy: Err(missing(Role::Policy)), ..self.rewards(batch) };
        };
        // Around all of the step: the rewards' ranges lie inside it.
        let _range = policy_range(batch.policy);
        let (mut output, mut between) = (None, 0.0);
        let mut rewards = || {
            if output.is_none() {
                output = Some(timed(&mut between, || self.rewards(batch)));
            }
        };
        let started = Instant::now();
        let rows = policy.step(batch.policy, below, &mut rewards);
        let all = started.elapsed().as_secs_f64();
        let during = between;
        let output = output.unwrap_or_else(|| self.rewards(batch));
        self.policy = Some(policy);
        StepOutput { policy: rows, seconds: StepTime { policy: all - during, ..output.seconds }, ..output }
    }

    /// A step without the policy's part.
    fn rewards(&mut self, batch: StepBatch<'_>) -> StepOutput {
        let mut seconds = StepTime::default();
        let score = match batch.score {
            [] => Ok(Vec::new()),
            spans => timed(&mut seconds.score, || self.reward_score(spans)),
        };
        let gradient = match batch.gradient {
            [] => Ok(Vec::new()),
            spans => timed(&mut seconds.gradient, || self.reward_gradient(spans)),
        };
        StepOutput { policy: Ok(Vec::new()), score, gradient, seconds }
    }

    /// An error once a device is lost: no further call can be answered.
    ///
    /// # Errors
    /// A device is lost.
    pub fn alive(&self) -> Result<()> {
        self.all().try_for_each(Model::alive)
    }

    /// Whether the policy's input embedding rows of two ids are equal in every component, compared as numbers.
    pub fn same_embedding(&self, a: u32, b: u32) -> bool {
        a == b || self.policy.as_ref().is_some_and(|policy| policy.same_embedding(a, b))
    }

    /// Work of both models since they were opened.
    pub fn work(&self) -> Work {
        self.all().map(Model::work).fold(Work::default(), |sum, work| sum + work)
    }

    /// Blocks of keys and values of a model that no sequence holds. A model that is missing never runs out.
    pub fn blocks_free(&self, role: Role) -> usize {
        self.get(role).map_or(usize::MAX, Model::blocks_free)
    }

    /// Blocks of keys and values of a model that a sequence holds.
    pub fn blocks_in_use(&self, role: Role) -> usize {
        self.get(role).map_or(0, Model::blocks_in_use)
    }

    /// The most blocks that `count` more positions of a sequence take.
    pub fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        self.get(seq.role).map_or(0, |model| model.blocks_needed(seq, count))
    }

    /// Rows of the policy that cost little more together than one by itself.
    pub fn free_batch_rows(&self) -> usize {
        self.policy.as_ref().map_or(1, |policy| policy.free_batch_rows())
    }

    /// Rows that a policy step can report of one span, at most.
    pub fn span_rows(&self) -> usize {
        self.policy.as_ref().map_or(1, |policy| policy.span_rows())
    }

    /// Whether all logits can be asked for of each of these rows.
    pub fn keeps_span_rows(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.keeps_span_rows())
    }

    /// What one more row of a policy step costs, as a part of what a step of one row costs.
    pub fn row_cost(&self) -> f64 {
        self.policy.as_ref().map_or(1.0, |policy| policy.row_cost())
    }

    /// What a step of the draft model costs, as a part of what a step of the policy costs: the ratio of their weights,
    /// which both read once a step. `None` if one of them is missing.
    pub fn draft_cost(&self) -> Option<f64> {
        let weights = |model: &dyn Model| model.config().num_parameters().max(1) as f64;
        Some(weights(self.draft.as_deref()?) / weights(self.policy.as_deref()?))
    }

    /// Positions of one segment that can be differentiated, at most.
    pub fn gradient_tokens(&self) -> usize {
        self.reward.as_ref().map_or(usize::MAX, |reward| reward.gradient_tokens())
    }
}

/// The range of a policy step, by what most of it is.
fn policy_range(spans: &[PolicySpan<'_>]) -> Range {
    let tokens = spans.iter().map(|span| span.span.ids.len()).sum();
    range(
        if tokens == spans.iter().map(PolicySpan::rows).sum::<usize>() { Phase::Decode } else { Phase::Prefill },
        tokens,
    )
}

/// What needs a model that is not there.
fn missing(role: Role) -> Error {
    match role {
        Role::Policy => no_policy(),
        Role::Reward => no_reward_model(),
    }
}
