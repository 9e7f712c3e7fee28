//! What a turn runs, and what comes back.

use crate::Error;
use crate::model::{Role, SeqId};
use crate::task::{Ask, Row, Scored, Task};

/// A piece of a line to be run.
#[derive(Clone, Debug)]
pub struct Span {
    pub(super) request: u64,
    pub(super) task: Task,
    pub(super) seq: SeqId,
    pub(super) start: usize,
    pub(super) ids: Vec<u32>,
    /// Whether it answers the task, rather than bringing the line closer.
    pub(super) last: bool,
}

impl Span {
    /// Number of the request.
    pub fn request(&self) -> u64 {
        self.request
    }

    /// Tokens that it runs.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that it differentiates.
    pub fn differentiated(&self) -> usize {
        if self.last { tail(&self.task) } else { 0 }
    }
}

/// One policy batch and one reward batch.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Spans of the policy.
    pub policy: Vec<Span>,
    /// Spans of the reward model.
    pub reward: Vec<Span>,
    /// Requests that cannot go on, with the task and the reason.
    pub(super) refused: Vec<(u64, Task, String)>,
}

impl Turn {
    pub(super) fn push(&mut self, span: Span) {
        match span.task.line.role {
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
pub enum Answer {
    /// Of the policy.
    Row(Row),
    /// Of the reward model.
    Scored(Scored),
    /// The span only brought its line closer.
    Closer,
    /// It failed.
    Failed(Error),
}

/// Positions that a task differentiates.
pub(super) fn tail(task: &Task) -> usize {
    match &task.ask {
        Ask::Score { gradient: Some(slope), .. } => task.len - slope.slot.min(task.len),
        _ => 0,
    }
}
