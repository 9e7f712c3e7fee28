//! Rewards of a given text: its reward, rewards of its beginnings, and the gradient of its reward.
//!
//! The reward is pooled where Hugging Face pools it: at the rightmost position whose id is not the model's pad id. What comes after
//! that position cannot change the reward, because the model is causal. It is not run, and its gradient is zero.

use crate::answer::RewardReport;
use crate::error::Limit;
use crate::model::{ModelPair, Role, Work};
use crate::task::{
    Ask, GradientAsk, Liveness, Outcome, PolicyOutput, Progress, Request, RewardOutput, SeqKey, Speculation, Task,
    TaskOrigin, pool_position,
};
use crate::{Error, Result};
use std::sync::Arc;

/// What is asked of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardQuery {
    /// The text.
    pub ids: Vec<u32>,
    /// Whether the reward of every beginning is wanted, and not of the whole text alone.
    pub every: bool,
    /// The gradient of the reward with respect to the input embeddings, from this position on.
    pub gradient_from: Option<usize>,
    /// First-order scores: ids that could stand at a position in place of the text's own.
    pub scores: Vec<(usize, Vec<u32>)>,
}

/// A gradient that is asked for, and what came of it: products with embeddings, and the gradient itself.
#[derive(Clone, Debug)]
struct GradientQuery {
    ask: GradientAsk,
    found: Option<(Vec<f32>, Vec<f32>)>,
}

/// The rewards of a text in progress.
pub struct RewardScorer {
    ids: Vec<u32>,
    /// Positions of the text as it came.
    len: usize,
    every: bool,
    wants_gradient: bool,
    hidden: usize,
    /// Rewards of the beginnings that were asked about so far, if all of them are wanted.
    beginnings: Vec<f32>,
    base: Option<RewardOutput>,
    gradients: Vec<GradientQuery>,
    necessary: Work,
    outcome: Outcome<RewardReport>,
}

/// Positions at which candidates are scored, at most: each is a pass of its own.
pub const MOST_POSITIONS: usize = 64;

/// Beginnings whose rewards are asked for together: the span that answers holds all of them, and so is never cut.
const BEGINNINGS: usize = 512;

/// A request for rewards, checked.
///
/// # Errors
/// There is no reward model; no ids, too many, an id or a position beyond what there is, too many positions.
pub fn scorer(backend: &ModelPair, query: RewardQuery, pad: Option<u32>) -> Result<RewardScorer> {
    let config = backend.config(Role::Reward)?;
    let (vocab, limit, len) = (config.vocab_size, backend.max_len(), query.ids.len());
    if len == 0 {
        return Err(Error::invalid("the text is empty"));
    }
    if len > limit {
        let message = format!("the text has {len} tokens, and the longest sequence is {limit}");
        return Err(Error::TooLong { limit_of: Limit::Context, found: len, limit, message });
    }
    let candidates = query.scores.iter().flat_map(|(_, ids)| ids);
    if let Some(id) = query.ids.iter().chain(candidates).find(|&&id| id as usize >= vocab) {
        return Err(Error::invalid(format!("id {id} is beyond the reward model's vocabulary of {vocab}")));
    }
    if query.scores.len() > MOST_POSITIONS {
        let found = query.scores.len();
        return Err(Error::invalid(format!("candidates may be scored at {MOST_POSITIONS} positions, not at {found}")));
    }
    let positions = query.scores.iter().map(|(position, _)| *position).chain(query.gradient_from);
    if let Some(position) = positions.into_iter().find(|&position| position >= len) {
        return Err(Error::invalid(format!("position {position} is beyond the text of {len} tokens")));
    }
    Ok(RewardScorer::new(query, config.hidden_size, pad))
}

impl RewardScorer {
    fn new(mut query: RewardQuery, hidden: usize, pad: Option<u32>) -> RewardScorer {
        let len = query.ids.len();
        query.ids.truncate(pool_position(&query.ids, &[], pad) + 1);
        let rows = query.gradient_from.map(|slot| (slot, Vec::new(), true));
        let scores = query.scores.into_iter().map(|(slot, ids)| (slot, ids, false));
        let gradients = rows.into_iter().chain(scores).map(|(slot, candidates, rows)| {
            let width = candidates.len();
            let ask = GradientAsk { slot, candidates: Arc::from(candidates), rows };
            // The reward does not depend on what comes after the pooled position.
            let found = (slot >= query.ids.len()).then(|| (vec![0.0; width], Vec::new()));
            GradientQuery { ask, found }
        });
        RewardScorer {
            gradients: gradients.collect(),
            every: query.every,
            wants_gradient: query.gradient_from.is_some(),
            ids: query.ids,
            len,
            hidden,
            beginnings: Vec::new(),
            base: None,
            necessary: Work::default(),
            outcome: Outcome::pending(),
        }
    }

    /// The one gradient that is taken together with the reward, if there is only one and no other rewards are asked for.
    fn with_base(&self) -> Option<usize> {
        let open = |asked: &GradientQuery| asked.found.is_none();
        let only = self.gradients.iter().filter(|asked| open(asked)).count() == 1 && !self.every;
        self.gradients.iter().position(open).filter(|_| only && self.base.is_none())
    }

    fn finish(&mut self) -> Result<RewardReport> {
        let Some(base) = self.base.take() else {
            return Err(Error::Backend("a text without a reward".to_string()));
        };
        let last = self.ids.len() - 1;
        let beginnings = self.beginnings.iter().position(|reward| !reward.is_finite());
        if let Some(position) = beginnings.or((!base.reward.is_finite()).then_some(last)) {
            return Err(Error::NonFinite { what: "reward", model: "reward", position });
        }
        let every = std::mem::take(&mut self.beginnings);
        let (mut gradient, mut scores) = (Vec::new(), Vec::new());
        for (index, GradientQuery { ask, found }) in self.gradients.drain(..).enumerate() {
            let (dots, rows) = found.unwrap_or_default();
            if !dots.iter().chain(&rows).all(|value| value.is_finite()) {
                return Err(Error::NonFinite { what: "reward gradient", model: "reward", position: ask.slot });
            }
            if self.wants_gradient && index == 0 {
                gradient = rows;
                gradient.resize((self.len - ask.slot) * self.hidden, 0.0);
            } else {
                scores.push(dots);
            }
        }
        Ok(RewardReport { reward: base.reward, pooled_at: last, every, gradient, scores, work: self.necessary })
    }
}

impl Request for RewardScorer {
    type Output = RewardReport;

    fn prompt(&self) -> &[u32] {
        &self.ids
    }

    fn tasks(&self, out: &mut Vec<Task>) {
        if self.outcome.ended() {
            return;
        }
        let (len, trunk) = (self.ids.len(), SeqKey { role: Role::Reward, number: 0 });
        let task = |key, parent, fresh, len, also_at, gradient, origin| Task {
            key,
            parent,
            len,
            fresh,
            speculative: false,
            chance: 1.0,
            ask: Ask::Reward { also_at, gradient },
            origin,
        };
        if self.base.is_none() {
            let from = self.beginnings.len();
            let len = if self.every { len.min(from + BEGINNINGS) } else { len };
            let also_at = if self.every { (from..len - 1).collect() } else { Vec::new() };
            let gradient = self.with_base().map(|index| self.gradients[index].ask.clone());
            out.push(task(trunk, None, from, len, also_at, gradient, TaskOrigin::Shared));
            return;
        }
        for (index, asked) in self.gradients.iter().enumerate().filter(|(_, asked)| asked.found.is_none()) {
            let (key, slot) = (SeqKey { number: index as u32 + 1, ..trunk }, asked.ask.slot);
            let parent = (slot > 0).then_some((trunk, slot));
            out.push(task(key, parent, slot, len, Vec::new(), Some(asked.ask.clone()), TaskOrigin::Score(index)));
        }
    }

    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        self.ids[from.min(task.len)..task.len].to_vec()
    }

    fn on_policy(&mut self, _: &Task, _: PolicyOutput) {}

    fn on_reward(&mut self, task: &Task, mut output: RewardOutput) {
        if self.outcome.ended() {
            return;
        }
        self.necessary.reward_forward += (task.len - task.fresh) as u64;
        let gradient = match task.origin {
            TaskOrigin::Shared => self.with_base(),
            TaskOrigin::Score(index) => Some(index),
            TaskOrigin::Decode(_) | TaskOrigin::RunAhead(_) | TaskOrigin::ScoreAhead(_) => None,
        };
        if let Some(asked) = gradient.and_then(|index| self.gradients.get_mut(index)) {
            self.necessary.reward_backward += (task.len - asked.ask.slot) as u64;
            let (dots, _) = output.gradient.take().unwrap_or_default();
            asked.found = Some((dots, std::mem::take(&mut output.rows)));
        }
        if task.origin == TaskOrigin::Shared {
            if self.every {
                self.beginnings.append(&mut output.also);
                self.beginnings.push(output.reward);
            }
            if task.len == self.ids.len() {
                self.base = Some(output);
            }
        }
    }

    fn on_failure(&mut self, _: &Task, error: Error) {
        self.outcome.end(Err(error));
    }

    fn advance(&mut self, _: Speculation, _: &dyn Fn(u32, u32) -> bool) {
        if !self.outcome.ended() && self.base.is_some() && self.gradients.iter().all(|asked| asked.found.is_some()) {
            let outcome = self.finish();
            self.outcome.end(outcome);
        }
    }

    fn liveness(&self, key: SeqKey) -> Liveness {
        match key.number.checked_sub(1).and_then(|index| self.gradients.get(index as usize)) {
            Some(asked) if asked.found.is_some() => Liveness::Dead,
            _ => Liveness::Necessary,
        }
    }

    fn progress(&mut self) -> Vec<Progress> {
        Vec::new()
    }

    fn ended(&self) -> bool {
        self.outcome.ended()
    }

    fn necessary(&self) -> Work {
        self.necessary
    }

    fn trunk(&self, role: Role) -> SeqKey {
        SeqKey { role, number: 0 }
    }

    fn take(&mut self) -> Option<Result<RewardReport>> {
        self.outcome.take()
    }
}
