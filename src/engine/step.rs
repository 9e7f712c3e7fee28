//! What a step runs, and what comes back.

use super::draft::DraftSource;
use crate::Error;
use crate::model::{PolicyRow, Role, SeqId, TopK};
use crate::task::{PolicyOutput, RewardOutput, Task};

/// A piece of a request's sequence to be run.
#[derive(Clone, Debug)]
pub struct TaskSpan {
    pub(super) request: u64,
    pub(super) task: Task,
    pub(super) seq: SeqId,
    pub(super) start: usize,
    pub(super) ids: Vec<u32>,
    /// Whether it reaches the end of the task and so answers it. A long prompt is run in several spans.
    pub(super) last: bool,
    /// What `ids` go on with behind the end of the task, if anything.
    pub(super) draft: Option<Draft>,
}

/// Tokens of a span that were guessed. Each has a row of its own, which answers what comes behind it if it is right.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// Largest logits that the row behind each of them is asked for.
    pub top_k: Vec<TopK>,
    pub source: DraftSource,
    /// How many ids of the text were found where the guess comes from.
    pub matched: usize,
    /// Of a guess of the draft model, how sure it was of each token.
    pub classes: Vec<usize>,
}

impl TaskSpan {
    /// Number of the request.
    pub fn request(&self) -> u64 {
        self.request
    }

    /// Tokens that it runs.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// How many of them were guessed.
    pub fn drafted(&self) -> usize {
        self.draft.as_ref().map_or(0, |draft| draft.top_k.len())
    }

    /// Those that were guessed.
    pub(super) fn guessed(&self) -> &[u32] {
        &self.ids[self.ids.len().saturating_sub(self.drafted())..]
    }

    /// The same without what was guessed.
    pub(super) fn undrafted(&self) -> TaskSpan {
        let mut plain = TaskSpan { draft: None, ..self.clone() };
        plain.ids.truncate(self.ids.len().saturating_sub(self.drafted()));
        plain
    }

    /// Tokens that it differentiates.
    pub fn differentiated(&self) -> usize {
        if self.last { self.task.differentiated() } else { 0 }
    }
}

/// One policy batch and one reward batch.
#[derive(Debug, Default)]
pub struct Step {
    /// Spans of the policy.
    pub policy: Vec<TaskSpan>,
    /// Spans of the reward model.
    pub reward: Vec<TaskSpan>,
    /// Requests that cannot go on, with the task and the reason.
    pub(super) refused: Vec<(u64, Task, Error)>,
}

impl Step {
    /// An empty one that grows to so many spans of each model without moving them.
    pub(super) fn with_room(policy: usize, reward: usize) -> Step {
        Step { policy: Vec::with_capacity(policy), reward: Vec::with_capacity(reward), refused: Vec::new() }
    }

    pub(super) fn push(&mut self, span: TaskSpan) {
        match span.task.key.role {
            Role::Policy => self.policy.push(span),
            Role::Reward => self.reward.push(span),
        }
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.policy.is_empty() && self.reward.is_empty() && self.refused.is_empty()
    }
}

/// The result of a span.
pub enum SpanOutput {
    /// Of the policy.
    Policy(PolicyOutput),
    /// The same, and the rows behind tokens that were guessed.
    Drafted(PolicyOutput, Vec<PolicyRow>),
    /// Of the reward model.
    Reward(RewardOutput),
    /// The span did not reach the end of its task.
    Partial,
    /// It failed.
    Failed(Error),
}
