//! How much of a step a task may have.

use crate::engine::settings::{Settings, SpeculationWidth};
use crate::engine::step::TaskSpan;
use crate::model::{ModelPair, Role};
use crate::task::Task;

/// What is left of a step.
pub(super) struct Budget {
    /// Tokens of the policy batch.
    tokens: usize,
    /// Needed tasks of the policy that have not had their step yet.
    due: usize,
    decoded: usize,
    scored: usize,
    /// Whether the reward batch has a span.
    scores: bool,
    /// Positions that can be differentiated with those already chosen.
    gradient: usize,
    /// Rows and reward tokens up to which speculative tasks cost next to nothing.
    likely_rows: usize,
    likely_tokens: usize,
}

impl Budget {
    /// A step in which these tasks are asked for.
    pub fn new<'a>(settings: &Settings, backend: &ModelPair, tasks: impl Iterator<Item = &'a Task>) -> Budget {
        let (likely_rows, likely_tokens) = match settings.speculation {
            SpeculationWidth::Auto => (backend.free_batch_rows(), 2 * backend.free_batch_rows()),
            _ => (usize::MAX, usize::MAX),
        };
        Budget {
            tokens: settings.batch_tokens.max(1),
            due: tasks.filter(|task| task.key.role == Role::Policy && !task.speculative).count(),
            decoded: 0,
            scored: 0,
            scores: false,
            gradient: backend.gradient_tokens(),
            likely_rows,
            likely_tokens,
        }
    }

    /// Tokens that a task may run in this step; each task is asked about once, in the order of the step. `turn` is the most
    /// that it may run if tasks take turns.
    pub fn allows(&mut self, task: &Task, turn: Option<usize>) -> usize {
        match (task.key.role, task.speculative) {
            (Role::Policy, false) if turn.is_some() => turn.unwrap_or(0).min(self.tokens),
            (Role::Reward, false) if turn == Some(0) => 0,
            (Role::Policy, false) => {
                // Prompts are cut so that every request after them still gets a token.
                self.due = self.due.saturating_sub(1);
                self.tokens.saturating_sub(self.due).max(1).min(self.tokens)
            }
            (Role::Policy, true) if self.decoded >= self.likely_rows => 0,
            (Role::Policy, true) => self.tokens,
            // A pass of the reward model costs as much as several steps of the policy, however few tokens it is for: what
            // is speculative only joins a batch that is needed.
            (Role::Reward, true) if !self.scores || self.scored >= self.likely_tokens => 0,
            // A segment that is longer than the room left for gradients gets a batch of its own.
            (Role::Reward, _) if !self.scores || task.differentiated() <= self.gradient => usize::MAX,
            (Role::Reward, _) => 0,
        }
    }

    /// A span was chosen.
    pub fn spend(&mut self, span: &TaskSpan) {
        let tokens = span.tokens();
        match span.task.key.role {
            Role::Policy => {
                self.tokens = self.tokens.saturating_sub(tokens);
                self.decoded += tokens;
            }
            Role::Reward => {
                self.gradient = self.gradient.saturating_sub(span.differentiated());
                self.scored += tokens;
                self.scores = true;
            }
        }
    }
}
