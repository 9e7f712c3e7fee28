//! What a response in progress asks of the models, and what it does with the answers.

use super::branch::Branch;
use super::{Intervention, Known};
use crate::Error;
use crate::Result;
use crate::method::gradient::pool_position;
use crate::model::{Role, Work};
use crate::task::{Ask, Finished, Generation, LineId, Part, Progress, Row, Scored, Slope, Speculation, Task, Use};

impl Intervention {
    fn line_of(&self, index: usize, role: Role) -> LineId {
        let number = if index == 0 { self.trunk[role as usize] } else { self.branches[index].number };
        LineId { role, number }
    }

    fn parent_of(&self, index: usize, role: Role) -> Option<(LineId, usize)> {
        let (trunk, slot) = (self.trunk[role as usize], self.slot());
        match self.origin[role as usize] {
            // The trunk itself was not run yet: what is to fork off it forks off where it will fork off.
            Some((number, len)) => Some((LineId { role, number }, len.min(slot))),
            None => (index != 0).then_some((LineId { role, number: trunk }, slot)),
        }
    }

    /// Where the reward of a branch is run from.
    pub(super) fn scored_from(&self, index: usize) -> usize {
        if index == 0 { self.reward_len } else { self.slot() }
    }

    /// Whether forced branches can be scored: what they share has been through the reward model.
    fn shared_is_scored(&self) -> bool {
        self.reward_len >= self.slot() || self.branches[0].scored.is_some()
    }

    /// Whether a gradient is taken of a branch that keeps `kept` tokens, should the walk reach it.
    pub(super) fn differentiates(&self, index: usize, kept: usize) -> bool {
        let proposes = if index == self.current {
            self.walk.will_propose(kept)
        } else {
            // The earliest it can be visited is behind the one that the walk waits for.
            kept > self.offset && self.walk.candidates().len() + 2 < self.fixed.options.max_candidates
        };
        kept > self.offset && (proposes || self.fixed.options.full_trace)
    }

    fn decode_task(&self, index: usize) -> Task {
        let state = &self.branches[index].state;
        let (len, next) = (state.len(), state.generated().len());
        Task {
            line: self.line_of(index, Role::Policy),
            parent: self.parent_of(index, Role::Policy),
            len,
            fresh: if next == 0 { 0 } else { len - 1 },
            speculative: index != self.current,
            ask: self.fixed.ask(len, next, self.offset),
            part: Part::Decode(index),
        }
    }

    fn ahead_task(&self, index: usize, ahead: &Branch) -> Task {
        let (len, next) = (ahead.state.len(), ahead.state.generated().len());
        Task {
            line: self.line_of(index, Role::Policy),
            parent: self.parent_of(index, Role::Policy),
            len,
            fresh: len - 1,
            speculative: true,
            ask: self.fixed.ask(len, next, 0),
            part: Part::Ahead(index),
        }
    }

    fn base_task(&self) -> Task {
        let slot = self.slot();
        let pool = pool_position(&self.base_ids(), self.fixed.options.reward_pad_id);
        // A pool position that was run before has its reward among what is known of the prefix.
        let also_at = [pool].into_iter().filter(|&at| at >= self.reward_len && at + 1 != slot).collect();
        Task {
            line: self.line_of(0, Role::Reward),
            parent: self.parent_of(0, Role::Reward),
            len: slot,
            fresh: self.reward_len,
            speculative: false,
            ask: Ask::Score { also_at, gradient: None },
            part: Part::Base,
        }
    }

    pub(super) fn base_ids(&self) -> Vec<u32> {
        let generated = self.branches[0].state.generated();
        [&self.prefix[..], &generated[..self.offset.min(generated.len())]].concat()
    }

    /// The reward of an ended branch, in one span behind what its line holds. `None`: nothing is new.
    pub(super) fn score_task(&self, index: usize) -> Option<Task> {
        let kept = self.branches[index].state.kept();
        let len = self.prefix.len() + kept.len();
        let start = self.scored_from(index);
        if start == len {
            return None;
        }
        Some(Task {
            line: self.line_of(index, Role::Reward),
            parent: self.parent_of(index, Role::Reward),
            len,
            fresh: start,
            speculative: index != self.current,
            ask: Ask::Score {
                also_at: self.also_at(index),
                gradient: self.differentiates(index, kept.len()).then(|| Slope {
                    slot: self.slot(),
                    candidates: self.candidates.clone(),
                    rows: false,
                }),
            },
            part: Part::Score(index),
        })
    }

    /// Positions besides the last one whose reward is wanted with a branch's. What lies before its span was known before it.
    fn also_at(&self, index: usize) -> Vec<usize> {
        let kept = self.branches[index].state.kept();
        let start = self.scored_from(index);
        let pad = self.fixed.options.reward_pad_id;
        let last = self.prefix.len() + kept.len() - 1;
        let ids = [&self.prefix[..], kept].concat();
        let mut wanted = Vec::new();
        if let Some((a, b)) = self.before_slot(index) {
            wanted.extend([a, b]);
        }
        wanted.push(pool_position(&ids, pad));
        let mut out: Vec<usize> = Vec::new();
        for position in wanted {
            if position >= start && position != last && !out.contains(&position) {
                out.push(position);
            }
        }
        out
    }

    /// Positions of the two rewards up to the slot, if they come with the unforced branch.
    pub(super) fn before_slot(&self, index: usize) -> Option<(usize, usize)> {
        let slot = self.slot();
        let kept = self.branches[index].state.kept().len();
        if index != 0 || slot <= self.scored_from(0) || !self.walk_continues(kept) {
            return None;
        }
        Some((slot - 1, pool_position(&self.base_ids(), self.fixed.options.reward_pad_id)))
    }

    /// Whether the unforced branch, with so many tokens, is followed by forced ones.
    fn walk_continues(&self, kept: usize) -> bool {
        kept > self.offset && self.fixed.options.max_candidates > 1
    }

    /// The branch that would be committed if no other turned out to be better.
    pub(super) fn leader(&self) -> Option<usize> {
        match self.best {
            Some((index, _)) => Some(index),
            None => self.branches[0].ended().then_some(0),
        }
    }

    /// Whether the unforced branch has to wait for what all share.
    pub(super) fn base_waits(&self) -> bool {
        self.base && self.reward_len < self.slot()
    }
}

impl Generation for Intervention {
    fn prompt(&self) -> &[u32] {
        &self.prefix[..self.fixed.prompt_len]
    }

    fn tasks(&self, out: &mut Vec<Task>) {
        if self.ended {
            return;
        }
        if self.base_waits() && self.shortlist.is_some() {
            out.push(self.base_task());
        }
        let order = [self.current].into_iter().chain((0..self.branches.len()).filter(|&i| i != self.current));
        for index in order {
            let branch = &self.branches[index];
            if branch.decodes() {
                out.push(self.decode_task(index));
            } else if branch.ended() && branch.scored.is_none() && branch.failed.is_none() && !branch.retired {
                let ready = if index == 0 { !self.base_waits() } else { self.shared_is_scored() };
                out.extend(self.score_task(index).filter(|_| ready));
            }
        }
        if self.run_ahead
            && let Some(index) = self.leader()
            && let Some(ahead) = self.branches[index].ahead.as_ref().filter(|ahead| ahead.decodes())
        {
            out.push(self.ahead_task(index, ahead));
        }
    }

    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        let tail = match task.part {
            Part::Base => return self.base_ids()[from.min(task.len)..].to_vec(),
            Part::Decode(index) => self.branches[index].state.generated().to_vec(),
            Part::Score(index) => self.branches[index].state.kept().to_vec(),
            Part::Ahead(index) => {
                let branch = &self.branches[index];
                let ahead = branch.ahead.as_ref().map_or(&[][..], |ahead| ahead.state.generated());
                [branch.state.kept(), ahead].concat()
            }
        };
        let all = self.prefix.iter().chain(&tail).copied();
        all.skip(from).take(task.len.saturating_sub(from)).collect()
    }

    fn row(&mut self, task: &Task, row: Row) {
        if self.ended {
            return;
        }
        self.tokens += 1;
        match task.part {
            Part::Decode(index) => {
                self.fixed.push(&mut self.branches[index], row, self.offset);
                if index == 0 {
                    self.origin[0] = None;
                    self.reach_slot();
                }
            }
            Part::Ahead(index) => {
                if let Some(ahead) = &mut self.branches[index].ahead {
                    self.fixed.push(ahead, row, 0);
                }
            }
            Part::Base | Part::Score(_) => {}
        }
    }

    fn scored(&mut self, task: &Task, scored: Scored) {
        let Ask::Score { also_at, .. } = &task.ask else { return };
        if self.ended {
            return;
        }
        match task.part {
            Part::Base => {
                let pooled = match (also_at.first(), scored.also.first()) {
                    (Some(_), Some(&reward)) => reward,
                    _ => {
                        let pool = pool_position(&self.base_ids(), self.fixed.options.reward_pad_id);
                        let inside = pool + 1 == task.len;
                        self.before.filter(|_| !inside).map_or(scored.reward, |known| known.pooled)
                    }
                };
                self.before = Some(Known { last: scored.reward, pooled });
                self.necessary.reward_forward += (task.len - self.reward_len) as u64;
                self.reward_len = task.len;
                self.origin[1] = None;
            }
            Part::Score(index) => {
                if index == 0 {
                    self.origin[1] = None;
                }
                let branch = &mut self.branches[index];
                branch.also_at.clone_from(also_at);
                branch.scored = Some(scored);
            }
            Part::Decode(_) | Part::Ahead(_) => {}
        }
    }

    fn failed(&mut self, task: &Task, error: Error) {
        if self.ended {
            return;
        }
        match task.part {
            Part::Decode(index) | Part::Score(index) => self.branches[index].failed = Some(error),
            Part::Base => self.end(Err(error)),
            Part::Ahead(index) => {
                if let Some(ahead) = &mut self.branches[index].ahead {
                    ahead.failed = Some(error);
                }
            }
        }
    }

    fn advance(&mut self, speculation: Speculation, same: &dyn Fn(u32, u32) -> bool) {
        self.run_ahead = speculation.run_ahead;
        loop {
            if self.ended {
                break;
            }
            match self.step(same) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.end(Err(error)),
            }
        }
        if !self.ended {
            self.spawn(speculation, same);
            // With several branches in flight, what they share is run once, before any of them.
            let forced = self.branches.len() > 1 && self.branches[0].scored.is_none();
            self.base |= forced && self.slot() > self.reward_len;
            if speculation.run_ahead {
                self.start_ahead();
            }
        }
        if self.tokens > 0 {
            self.progress.insert(0, Progress::Tokens(std::mem::take(&mut self.tokens)));
        }
    }

    fn line(&self, line: LineId) -> Use {
        let role = line.role as usize;
        if line.number == self.trunk[role] || self.origin[role].is_some_and(|(number, _)| number == line.number) {
            return Use::Necessary;
        }
        match self.branches.iter().enumerate().find(|(_, branch)| branch.number == line.number) {
            Some((_, branch)) if branch.retired => Use::Dead,
            Some((index, branch)) if index == self.current || branch.visited => Use::Necessary,
            Some(_) => Use::Speculative,
            None => Use::Dead,
        }
    }

    fn progress(&mut self) -> Vec<Progress> {
        std::mem::take(&mut self.progress)
    }

    fn ended(&self) -> bool {
        self.ended
    }

    fn necessary(&self) -> Work {
        self.necessary
    }

    fn trunk(&self, role: Role) -> LineId {
        LineId { role, number: self.trunk[role as usize] }
    }

    fn take(&mut self) -> Option<Result<Finished>> {
        let outcome = self.outcome.take()?;
        Some(outcome.map(|response| Finished::Response(Box::new(response))))
    }
}
