//! What the reward model says of a given text: its reward, rewards of its beginnings, and the gradient of its reward.
//!
//! The reward is pooled where Hugging Face pools it: at the rightmost position whose id is not the model's pad id. What comes behind
//! that position cannot change anything, because the model is causal, and is not run; its gradient is zero.

use crate::method::gradient::pool_position;
use crate::model::{Backend, Role, Work};
use crate::task::{Ask, Finished, Generation, LineId, Part, Progress, Row, Scored, Slope, Speculation, Task, Use};
use crate::{Error, Result};
use std::sync::Arc;

/// What is asked of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Question {
    /// The text.
    pub ids: Vec<u32>,
    /// Whether the reward of every beginning is wanted, and not of the whole text alone.
    pub every: bool,
    /// The gradient of the reward with respect to the input embeddings, from this position on.
    pub gradient_from: Option<usize>,
    /// First-order scores: ids that could stand at a position in place of the text's own.
    pub scores: Vec<(usize, Vec<u32>)>,
}

/// What the reward model answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Appraisal {
    /// Reward of the text.
    pub reward: f32,
    /// Position where it is pooled.
    pub pooled_at: usize,
    /// Reward of every beginning, from one token to all that count; empty if not asked for.
    pub every: Vec<f32>,
    /// The gradient, `[positions, hidden]` from the asked position to the end of the text; empty if not asked for.
    pub gradient: Vec<f32>,
    /// Per position of [`Question::scores`] the gradient's products with the ids' embeddings, in their order.
    pub scores: Vec<Vec<f32>>,
    /// What had to be run.
    pub work: Work,
}

/// A slope that is asked for.
#[derive(Clone, Debug)]
struct Asked {
    slope: Slope,
    found: Option<(Vec<f32>, Vec<f32>)>,
}

/// An appraisal in progress.
pub struct Appraiser {
    ids: Vec<u32>,
    /// Positions of the text as it came.
    len: usize,
    every: bool,
    wants_gradient: bool,
    hidden: usize,
    base: Option<Scored>,
    slopes: Vec<Asked>,
    necessary: Work,
    outcome: Option<Result<Appraisal>>,
    ended: bool,
}

/// Positions at which candidates are scored, at most: each is a pass of its own.
pub const MOST_POSITIONS: usize = 64;

/// An appraisal, checked.
///
/// # Errors
/// No ids, too many, an id or a position beyond what there is, too many positions.
pub fn appraiser(backend: &dyn Backend, question: Question, pad: Option<u32>) -> Result<Appraiser> {
    let config = backend.config(Role::Reward);
    let (vocab, limit, len) = (config.vocab_size, backend.max_len(), question.ids.len());
    if len == 0 {
        return Err(Error::invalid("the text is empty"));
    }
    if len > limit {
        return Err(Error::invalid(format!("the text has {len} tokens, and the longest sequence is {limit}")));
    }
    let candidates = question.scores.iter().flat_map(|(_, ids)| ids);
    if let Some(id) = question.ids.iter().chain(candidates).find(|&&id| id as usize >= vocab) {
        return Err(Error::invalid(format!("id {id} is beyond the reward model's vocabulary of {vocab}")));
    }
    if question.scores.len() > MOST_POSITIONS {
        let found = question.scores.len();
        return Err(Error::invalid(format!("candidates may be scored at {MOST_POSITIONS} positions, not at {found}")));
    }
    let positions = question.scores.iter().map(|(position, _)| *position).chain(question.gradient_from);
    if let Some(position) = positions.into_iter().find(|&position| position >= len) {
        return Err(Error::invalid(format!("position {position} is beyond the text of {len} tokens")));
    }
    Ok(Appraiser::new(question, config.hidden_size, pad))
}

impl Appraiser {
    fn new(mut question: Question, hidden: usize, pad: Option<u32>) -> Appraiser {
        let len = question.ids.len();
        question.ids.truncate(pool_position(&question.ids, pad) + 1);
        let rows = question.gradient_from.map(|slot| (slot, Vec::new(), true));
        let scores = question.scores.into_iter().map(|(slot, ids)| (slot, ids, false));
        let slopes = rows.into_iter().chain(scores).map(|(slot, candidates, rows)| {
            let width = candidates.len();
            let slope = Slope { slot, candidates: Arc::from(candidates), rows };
            // Behind the pooled position nothing matters.
            let found = (slot >= question.ids.len()).then(|| (vec![0.0; width], Vec::new()));
            Asked { slope, found }
        });
        Appraiser {
            slopes: slopes.collect(),
            every: question.every,
            wants_gradient: question.gradient_from.is_some(),
            ids: question.ids,
            len,
            hidden,
            base: None,
            necessary: Work::default(),
            outcome: None,
            ended: false,
        }
    }

    /// The one slope that is taken together with the reward, if there is no more than one and nothing is asked before it.
    fn with_base(&self) -> Option<usize> {
        let open = |asked: &Asked| asked.found.is_none();
        let only = self.slopes.iter().filter(|asked| open(asked)).count() == 1 && !self.every;
        self.slopes.iter().position(open).filter(|_| only && self.base.is_none())
    }

    fn end(&mut self, outcome: Result<Appraisal>) {
        self.ended = true;
        self.outcome = Some(outcome);
    }

    fn finish(&mut self) -> Result<Appraisal> {
        let Some(base) = self.base.take() else {
            return Err(Error::Backend("an appraisal without a reward".to_string()));
        };
        let last = self.ids.len() - 1;
        let rewards = base.also.iter().chain([&base.reward]);
        if let Some(position) = rewards.clone().position(|reward| !reward.is_finite()) {
            let position = if self.every { position } else { last };
            return Err(Error::NonFinite { what: "reward", model: "reward", position });
        }
        let every = if self.every { rewards.copied().collect() } else { Vec::new() };
        let (mut gradient, mut scores) = (Vec::new(), Vec::new());
        for (index, Asked { slope, found }) in self.slopes.drain(..).enumerate() {
            let (dots, rows) = found.unwrap_or_default();
            if !dots.iter().chain(&rows).all(|value| value.is_finite()) {
                return Err(Error::NonFinite { what: "reward gradient", model: "reward", position: slope.slot });
            }
            if self.wants_gradient && index == 0 {
                gradient = rows;
                gradient.resize((self.len - slope.slot) * self.hidden, 0.0);
            } else {
                scores.push(dots);
            }
        }
        Ok(Appraisal { reward: base.reward, pooled_at: last, every, gradient, scores, work: self.necessary })
    }
}

impl Generation for Appraiser {
    fn prompt(&self) -> &[u32] {
        &self.ids
    }

    fn tasks(&self, out: &mut Vec<Task>) {
        if self.ended {
            return;
        }
        let (len, trunk) = (self.ids.len(), LineId { role: Role::Reward, number: 0 });
        let task = |line, parent, fresh, also_at, gradient, part| Task {
            line,
            parent,
            len,
            fresh,
            speculative: false,
            ask: Ask::Score { also_at, gradient },
            part,
        };
        if self.base.is_none() {
            let also_at = if self.every { (0..len - 1).collect() } else { Vec::new() };
            let slope = self.with_base().map(|index| self.slopes[index].slope.clone());
            out.push(task(trunk, None, 0, also_at, slope, Part::Base));
            return;
        }
        for (index, asked) in self.slopes.iter().enumerate().filter(|(_, asked)| asked.found.is_none()) {
            let (line, slot) = (LineId { number: index as u32 + 1, ..trunk }, asked.slope.slot);
            let parent = (slot > 0).then_some((trunk, slot));
            out.push(task(line, parent, slot, Vec::new(), Some(asked.slope.clone()), Part::Score(index)));
        }
    }

    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        self.ids[from.min(task.len)..task.len].to_vec()
    }

    fn row(&mut self, _: &Task, _: Row) {}

    fn scored(&mut self, task: &Task, mut scored: Scored) {
        if self.ended {
            return;
        }
        self.necessary.reward_forward += (task.len - task.fresh) as u64;
        let slope = match task.part {
            Part::Base => self.with_base(),
            Part::Score(index) => Some(index),
            Part::Decode(_) | Part::Ahead(_) => None,
        };
        if let Some(asked) = slope.and_then(|index| self.slopes.get_mut(index)) {
            self.necessary.reward_backward += (task.len - asked.slope.slot) as u64;
            let (dots, _) = scored.gradient.take().unwrap_or_default();
            asked.found = Some((dots, std::mem::take(&mut scored.rows)));
        }
        if task.part == Part::Base {
            self.base = Some(scored);
        }
    }

    fn failed(&mut self, _: &Task, error: Error) {
        if !self.ended {
            self.end(Err(error));
        }
    }

    fn advance(&mut self, _: Speculation, _: &dyn Fn(u32, u32) -> bool) {
        if !self.ended && self.base.is_some() && self.slopes.iter().all(|asked| asked.found.is_some()) {
            let outcome = self.finish();
            self.end(outcome);
        }
    }

    fn line(&self, line: LineId) -> Use {
        match line.number.checked_sub(1).and_then(|index| self.slopes.get(index as usize)) {
            Some(asked) if asked.found.is_some() => Use::Dead,
            _ => Use::Necessary,
        }
    }

    fn progress(&mut self) -> Vec<Progress> {
        Vec::new()
    }

    fn ended(&self) -> bool {
        self.ended
    }

    fn necessary(&self) -> Work {
        self.necessary
    }

    fn trunk(&self, role: Role) -> LineId {
        LineId { role, number: 0 }
    }

    fn take(&mut self) -> Option<Result<Finished>> {
        Some(self.outcome.take()?.map(|appraisal| Finished::Appraisal(Box::new(appraisal))))
    }
}
