//! How much of a step a task may have.

use super::PlannedTask;
use crate::engine::settings::{Settings, SpeculationWidth};
use crate::engine::step::TaskSpan;
use crate::kv::BLOCK;
use crate::model::{ModelPair, Role};

/// Tasks of a model that are needed.
pub(super) fn needed(tasks: &[PlannedTask], role: Role) -> impl Iterator<Item = &PlannedTask> {
    tasks.iter().filter(move |planned| planned.task.key.role == role && !planned.task.speculative)
}

/// How much of a reward batch with room for so many tokens, of which some are left, a text that can be cut gets. One that does not
/// fit leaves up to half of what is left to the texts behind it. None gets a crumb of less than a block of keys and values; it
/// waits instead, and the oldest one never does.
pub(super) fn reward_piece(wants: usize, room: usize, left: usize, later: usize) -> usize {
    if wants <= left {
        return wants;
    }
    let piece = left.saturating_sub(later).max(left.div_ceil(2));
    if piece < BLOCK.min(room.div_ceil(2)) { 0 } else { piece }
}

/// What is left of a step.
pub(super) struct Budget {
    /// Tokens of the policy batch.
    tokens: usize,
    /// Needed tasks of the policy that have not had their step yet.
    due: usize,
    decoded: usize,
    /// Tokens that a reward batch has room for, of which so many are taken.
    room: usize,
    scored: usize,
    /// Tokens of needed rewards that have not had their step yet.
    wanted: usize,
    /// Whether the reward batch has a span without and with a gradient, which are passes of their own.
    passes: [bool; 2],
    /// Positions that can be differentiated with those already chosen.
    gradient: usize,
    /// Rows and reward tokens up to which speculative tasks cost next to nothing.
    likely_rows: usize,
    likely_tokens: usize,
}

impl Budget {
    /// A step in which these tasks are asked for.
    pub fn new(settings: &Settings, backend: &ModelPair, tasks: &[PlannedTask]) -> Budget {
        let (likely_rows, likely_tokens) = match settings.speculation {
            // Tokens that are guessed for these rows want rows, too. A reward batch grows dearer a little later than a step.
            SpeculationWidth::Auto => {
                let free = backend.free_batch_rows();
                (free.saturating_mul(3).div_ceil(4), free.saturating_mul(5) / 4)
            }
            _ => (usize::MAX, usize::MAX),
        };
        let room = settings.batch_tokens.max(1);
        Budget {
            tokens: room,
            due: needed(tasks, Role::Policy).count(),
            decoded: 0,
            room,
            scored: 0,
            wanted: needed(tasks, Role::Reward).fold(0, |sum, planned| sum.saturating_add(planned.wants)),
            passes: [false; 2],
            gradient: backend.gradient_tokens(),
            likely_rows,
            likely_tokens,
        }
    }

    /// Tokens that a task may run in this step; each task is asked about once, in the order of the step. `turn` is the most
    /// that it may run if tasks take turns.
    pub fn allows(&mut self, planned: &PlannedTask, turn: Option<usize>) -> usize {
        let PlannedTask { task, wants, .. } = planned;
        if task.key.role == Role::Reward && !task.speculative {
            self.wanted = self.wanted.saturating_sub(*wants);
        }
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
            // is speculative only joins a pass that is needed.
            (Role::Reward, true) if !self.passes[usize::from(task.differentiated() > 0)] => 0,
            (Role::Reward, true)
                if self.scored.saturating_add(task.len.saturating_sub(task.fresh)) > self.likely_tokens =>
            {
                0
            }
            (Role::Reward, true) => self.room.saturating_sub(self.scored).max(1),
            // A segment that is longer than the room left for gradients gets a batch of its own; what stands before it is run.
            (Role::Reward, false) if self.passes != [false; 2] && task.differentiated() > self.gradient => {
                self.reward_share(planned, turn).min(wants.saturating_sub(planned.tail()))
            }
            (Role::Reward, false) => self.reward_share(planned, turn),
        }
    }

    fn reward_share(&self, planned: &PlannedTask, turn: Option<usize>) -> usize {
        match turn {
            Some(turn) => turn,
            None if planned.whole() => usize::MAX,
            None => reward_piece(planned.wants, self.room, self.room.saturating_sub(self.scored), self.wanted),
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
                self.passes[usize::from(span.differentiated() > 0)] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reward_piece;

    #[test]
    fn a_text_that_does_not_fit_leaves_room_for_others() {
        // What fits goes whole, whatever comes behind it.
        assert_eq!(reward_piece(300, 2048, 2048, 5000), 300);
        assert_eq!(reward_piece(2048, 2048, 2048, 5000), 2048);
        // All of the room if nobody else wants it, all but what others want, and half at least.
        assert_eq!(reward_piece(5000, 2048, 2048, 0), 2048);
        assert_eq!(reward_piece(5000, 2048, 2048, 300), 1748);
        assert_eq!(reward_piece(5000, 2048, 2048, 9000), 1024);
        // Never a crumb, but for a batch that holds no more.
        assert_eq!(reward_piece(5000, 2048, 127, 9000), 64);
        assert_eq!(reward_piece(5000, 2048, 126, 9000), 0);
        assert_eq!(reward_piece(60, 2048, 50, 0), 0);
        assert_eq!(reward_piece(5000, 8, 8, 9000), 4);
        assert_eq!(reward_piece(5000, 8, 3, 0), 0);
        assert_eq!(reward_piece(5000, 1, 1, 9000), 1);
        for room in 1..200 {
            assert!(reward_piece(1000, room, room, usize::MAX) > 0, "the oldest text goes on");
        }
    }
}
