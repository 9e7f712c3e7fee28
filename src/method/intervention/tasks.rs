//! What a response in progress asks of the models, and what it does with the answers.

use super::ahead::{UNLIKELY, find_mut};
use super::{Intervention, PooledReward};
use crate::answer::Response;
use crate::model::{Role, TopK, Work};
use crate::task::{
    Ask, BranchPath, GradientAsk, Liveness, Outlook, PolicyOutput, Progress, Request, RewardOutput, SeqKey,
    Speculation, Task, TaskOrigin, cut,
};
use crate::{Error, Result};

impl Intervention {
    pub(super) fn key_of(&self, index: usize, role: Role) -> SeqKey {
        let number = if index == 0 { self.trunk[role as usize] } else { self.branches[index].number };
        SeqKey { role, number }
    }

    pub(super) fn parent_of(&self, index: usize, role: Role) -> Option<(SeqKey, usize)> {
        let (trunk, slot) = (self.trunk[role as usize], self.slot());
        match self.fork_from[role as usize] {
            // The trunk itself was not run yet: what is to fork off it forks off where it will fork off.
            Some((number, len)) => Some((SeqKey { role, number }, len.min(slot))),
            None => (index != 0).then_some((SeqKey { role, number: trunk }, slot)),
        }
    }

    /// Where the reward of a branch is run from.
    pub(super) fn scored_from(&self, index: usize) -> usize {
        if index == 0 { self.reward_len } else { self.slot() }
    }

    /// Whether forced branches can be scored: what they share has been through the reward model.
    fn shared_is_scored(&self) -> bool {
        self.reward_len >= self.slot() || self.branches[0].reward.is_some()
    }

    /// Whether a gradient is taken of a branch that keeps `kept` tokens, should the walk reach it.
    pub(super) fn differentiates(&self, index: usize, kept: usize) -> bool {
        let proposes = if index == self.current {
            self.walk.will_propose(kept)
        } else {
            // The earliest it can be visited is behind the one that the walk waits for.
            kept > self.offset && self.walk.candidates().len() + 2 < self.decoding.options.max_candidates
        };
        let options = &self.decoding.options;
        options.proposals.differentiates() && kept > self.offset && (proposes || options.full_trace)
    }

    fn decode_task(&self, index: usize, chance: f64) -> Task {
        let state = &self.branches[index].state;
        let (len, next) = (state.len(), state.generated().len());
        Task {
            key: self.key_of(index, Role::Policy),
            parent: self.parent_of(index, Role::Policy),
            len,
            fresh: if next == 0 { 0 } else { len - 1 },
            speculative: index != self.current,
            chance,
            ask: self.decoding.ask(len, next, self.offset),
            origin: TaskOrigin::Decode(index),
        }
    }

    fn shared_task(&self) -> Task {
        let slot = self.slot();
        let pool = self.pool(self.shared_tail());
        // A pool position that was run before has its reward among what is known of the prefix.
        let also_at = [pool].into_iter().filter(|&at| at >= self.reward_len && at + 1 != slot).collect();
        Task {
            key: self.key_of(0, Role::Reward),
            parent: self.parent_of(0, Role::Reward),
            len: slot,
            fresh: self.reward_len,
            speculative: false,
            chance: 1.0,
            ask: Ask::Reward { also_at, gradient: None },
            origin: TaskOrigin::Shared,
        }
    }

    /// What all branches share after the prefix: the tokens before the slot.
    pub(super) fn shared_tail(&self) -> &[u32] {
        let generated = self.branches[0].state.generated();
        &generated[..self.offset.min(generated.len())]
    }

    /// Whether a branch has a token that its reward sequence does not hold.
    pub(super) fn has_unscored(&self, index: usize) -> bool {
        self.scored_from(index) != self.prefix.len() + self.branches[index].state.kept().len()
    }

    /// The reward of an ended branch, after what its sequence holds. `None` if no token is new.
    fn score_task(&self, index: usize, chance: f64) -> Option<Task> {
        if !self.has_unscored(index) {
            return None;
        }
        let kept = self.branches[index].state.kept();
        let len = self.prefix.len() + kept.len();
        let start = self.scored_from(index);
        Some(Task {
            key: self.key_of(index, Role::Reward),
            parent: self.parent_of(index, Role::Reward),
            len,
            fresh: start,
            speculative: index != self.current,
            chance,
            ask: Ask::Reward {
                also_at: self.also_at(index),
                gradient: self.differentiates(index, kept.len()).then(|| GradientAsk {
                    slot: self.slot(),
                    candidates: self.candidates.clone(),
                    rows: false,
                }),
            },
            origin: TaskOrigin::Score(index),
        })
    }

    /// Positions besides the last one whose reward is wanted with a branch's. What lies before its span was known before it.
    fn also_at(&self, index: usize) -> Vec<usize> {
        let kept = self.branches[index].state.kept();
        let start = self.scored_from(index);
        let last = self.prefix.len() + kept.len() - 1;
        let before = self.before_slot(index).into_iter().flat_map(|(last, pooled)| [last, pooled]);
        let mut out: Vec<usize> = Vec::new();
        for position in before.chain([self.pool(kept)]) {
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
        Some((slot - 1, self.pool(self.shared_tail())))
    }

    /// Whether the unforced branch, with so many tokens, is followed by forced ones.
    fn walk_continues(&self, kept: usize) -> bool {
        kept > self.offset && self.decoding.options.max_candidates > 1
    }

    /// Whether the unforced branch has to wait for what all share.
    pub(super) fn shared_waits(&self) -> bool {
        self.shared_apart && self.reward_len < self.slot()
    }
}

impl Intervention {
    /// Whether a branch can go through the reward model, and has not yet.
    fn can_be_scored(&self, index: usize) -> bool {
        let branch = &self.branches[index];
        let ready = if index == 0 { !self.shared_waits() } else { self.shared_is_scored() };
        ready && branch.ended() && branch.reward.is_none() && branch.failed.is_none() && !branch.retired
    }

    /// What the walk may come to ask for, the likeliest first.
    fn likely(&self) -> Vec<(f64, TaskOrigin)> {
        let mut likely = Vec::new();
        if self.branches.len() == 1 && !self.speculation.run_ahead {
            return likely;
        }
        let chances = self.chances();
        for (index, branch) in self.others() {
            let chance = chances.get(index).copied().unwrap_or_default();
            if branch.decodes() {
                likely.push((chance, TaskOrigin::Decode(index)));
            } else if chance >= UNLIKELY && self.can_be_scored(index) {
                likely.push((chance, TaskOrigin::Score(index)));
            }
        }
        if self.speculation.run_ahead {
            for (chance, index) in self.possible_winners(&chances) {
                self.likely_ahead(BranchPath::new(index), chance, &mut likely);
            }
        }
        likely.sort_by(|a, b| b.0.total_cmp(&a.0));
        likely
    }
}

impl Request for Intervention {
    type Output = Response;

    fn prompt(&self) -> &[u32] {
        &self.prefix[..self.decoding.prompt_len]
    }

    fn tasks(&self, out: &mut Vec<Task>) {
        if self.outcome.ended() {
            return;
        }
        if self.shared_waits() && self.shortlist.is_some() {
            out.push(self.shared_task());
        }
        let Some(current) = self.branches.get(self.current) else { return };
        if current.decodes() {
            out.push(self.decode_task(self.current, 1.0));
        } else if self.can_be_scored(self.current) {
            out.extend(self.score_task(self.current, 1.0));
        }
        let mut rows = self.speculation.rows.saturating_sub(usize::from(current.decodes()));
        for (chance, origin) in self.likely() {
            match origin {
                TaskOrigin::Score(index) => out.extend(self.score_task(index, chance)),
                TaskOrigin::ScoreAhead(path) => out.extend(self.score_ahead(path, chance)),
                _ if rows == 0 => {}
                TaskOrigin::Decode(index) => {
                    out.push(self.decode_task(index, chance));
                    rows -= 1;
                }
                TaskOrigin::RunAhead(path) => {
                    out.extend(self.decode_ahead(path, chance));
                    rows -= 1;
                }
                TaskOrigin::Shared => {}
            }
        }
    }

    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        let mut texts: Vec<&[u32]> = vec![&self.prefix];
        match task.origin {
            TaskOrigin::Shared => texts.push(self.shared_tail()),
            TaskOrigin::Decode(index) => texts.push(self.branches[index].state.generated()),
            TaskOrigin::Score(index) => texts.push(self.branches[index].state.kept()),
            TaskOrigin::RunAhead(path) | TaskOrigin::ScoreAhead(path) => {
                let mut branches = self.branches.get(path.branch());
                let mut places = path.places().iter();
                while let Some(branch) = branches {
                    let next = places.next();
                    texts.push(if next.is_some() { branch.state.kept() } else { branch.state.generated() });
                    branches = next.and_then(|&place| branch.ahead.as_ref()?.branches.get(place));
                }
            }
        }
        cut(texts, from, task.len)
    }

    fn outlook(&self, task: &Task) -> Option<Outlook<'_>> {
        // No sequence grows to the last token of the budget.
        let most = self.decoding.end.saturating_sub(task.len + 1);
        let stop_ids = &self.decoding.options.stop_ids[..];
        let own = match task.origin {
            TaskOrigin::Decode(index) => index,
            TaskOrigin::RunAhead(path) => {
                let (before, own) = path.split()?;
                let others = self.branch_at(before)?.ahead.iter().flat_map(|ahead| ahead.branches.iter().enumerate());
                let others = others.filter(|&(place, _)| place != own);
                let siblings = others.map(|(_, branch)| branch.state.generated()).collect();
                return Some(Outlook { most, stop_ids, siblings });
            }
            TaskOrigin::Shared | TaskOrigin::Score(_) | TaskOrigin::ScoreAhead(_) => return None,
        };
        let others = self.branches.iter().enumerate().filter(|&(index, _)| index != own);
        let siblings = others.map(|(_, branch)| branch.state.generated().get(self.offset..).unwrap_or_default());
        Some(Outlook { most, stop_ids, siblings: siblings.collect() })
    }

    fn top_k_behind(&self, task: &Task, tokens: usize) -> TopK {
        let (generated, offset) = match task.origin {
            TaskOrigin::Decode(index) => (self.branches[index].state.generated().len(), self.offset),
            TaskOrigin::RunAhead(path) => (self.branch_at(path).map_or(0, |ahead| ahead.state.generated().len()), 0),
            TaskOrigin::Shared | TaskOrigin::Score(_) | TaskOrigin::ScoreAhead(_) => return TopK::Skip,
        };
        match self.decoding.ask(task.len + tokens, generated + tokens, offset) {
            Ask::Policy { top_k, .. } => top_k,
            Ask::Reward { .. } => TopK::Skip,
        }
    }

    fn following(&self, task: &Task) -> Option<Task> {
        if self.outcome.ended() {
            return None;
        }
        match task.origin {
            TaskOrigin::Decode(index) => self.branches[index].decodes().then(|| self.decode_task(index, task.chance)),
            TaskOrigin::RunAhead(path) => self.decode_ahead(path, task.chance),
            TaskOrigin::Shared | TaskOrigin::Score(_) | TaskOrigin::ScoreAhead(_) => None,
        }
    }

    fn on_policy(&mut self, task: &Task, output: PolicyOutput) {
        if self.outcome.ended() {
            return;
        }
        self.tokens += 1;
        match task.origin {
            TaskOrigin::Decode(index) => {
                self.decoding.push(&mut self.branches[index], output, self.offset);
                if index == 0 {
                    self.fork_from[0] = None;
                    self.reach_slot();
                }
            }
            TaskOrigin::RunAhead(path) => {
                if let Some(branch) = find_mut(&mut self.branches, path) {
                    self.decoding.push(branch, output, 0);
                }
            }
            TaskOrigin::Shared | TaskOrigin::Score(_) | TaskOrigin::ScoreAhead(_) => {}
        }
    }

    fn on_reward(&mut self, task: &Task, output: RewardOutput) {
        let Ask::Reward { also_at, .. } = &task.ask else { return };
        if self.outcome.ended() {
            return;
        }
        match task.origin {
            TaskOrigin::Shared => {
                let pooled = match (also_at.first(), output.also.first()) {
                    (Some(_), Some(&reward)) => reward,
                    _ => {
                        let pool = self.pool(self.shared_tail());
                        let inside = pool + 1 == task.len;
                        self.before.filter(|_| !inside).map_or(output.reward, |known| known.pooled)
                    }
                };
                self.before = Some(PooledReward { last: output.reward, pooled });
                self.necessary.reward_forward += (task.len - self.reward_len) as u64;
                self.reward_len = task.len;
                self.fork_from[1] = None;
            }
            TaskOrigin::Score(index) => {
                if index == 0 {
                    self.fork_from[1] = None;
                }
                let branch = &mut self.branches[index];
                branch.also_at.clone_from(also_at);
                branch.reward = Some(output);
            }
            TaskOrigin::ScoreAhead(path) => {
                if let Some(branch) = find_mut(&mut self.branches, path) {
                    branch.also_at.clone_from(also_at);
                    branch.reward = Some(output);
                }
                if let Some((before, place)) = path.split()
                    && let Some(ahead) = find_mut(&mut self.branches, before).and_then(|branch| branch.ahead.as_mut())
                {
                    ahead.sort(place, &self.decoding.options);
                }
            }
            TaskOrigin::Decode(_) | TaskOrigin::RunAhead(_) => {}
        }
    }

    fn on_failure(&mut self, task: &Task, error: Error) {
        if self.outcome.ended() {
            return;
        }
        match task.origin {
            TaskOrigin::Decode(index) | TaskOrigin::Score(index) => self.branches[index].failed = Some(error),
            TaskOrigin::Shared => self.end(Err(error)),
            TaskOrigin::RunAhead(path) | TaskOrigin::ScoreAhead(path) => {
                if let Some(branch) = find_mut(&mut self.branches, path) {
                    branch.failed = Some(error);
                }
            }
        }
    }

    fn advance(&mut self, speculation: Speculation, same: &dyn Fn(u32, u32) -> bool) {
        self.speculation = speculation;
        loop {
            if self.outcome.ended() {
                break;
            }
            match self.step(same) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.end(Err(error)),
            }
        }
        if !self.outcome.ended() {
            self.spawn(speculation, same);
            // With several branches in flight, what they share is run once, before any of them.
            let forced = self.branches.len() > 1 && self.branches[0].reward.is_none();
            self.shared_apart |= forced && self.slot() > self.reward_len;
            if speculation.run_ahead {
                self.start_ahead(same);
            }
        }
        if self.tokens > 0 {
            self.progress.insert(0, Progress::Tokens(std::mem::take(&mut self.tokens)));
        }
    }

    fn liveness(&self, key: SeqKey) -> Liveness {
        let role = key.role as usize;
        if key.number == self.trunk[role] || self.fork_from[role].is_some_and(|(number, _)| number == key.number) {
            return Liveness::Necessary;
        }
        match self.branches.iter().enumerate().find(|(_, branch)| branch.number == key.number) {
            Some((_, branch)) if branch.retired => Liveness::Dead,
            Some((index, branch)) if index == self.current || branch.visited => Liveness::Necessary,
            Some((index, _)) if !self.reaches(index) => Liveness::Dead,
            Some(_) => Liveness::Speculative,
            None if self.branches.iter().any(|branch| branch.has(key.number)) => Liveness::Speculative,
            None => Liveness::Dead,
        }
    }

    fn progress(&mut self) -> Vec<Progress> {
        std::mem::take(&mut self.progress)
    }

    fn ended(&self) -> bool {
        self.outcome.ended()
    }

    fn necessary(&self) -> Work {
        self.necessary
    }

    fn trunk(&self, role: Role) -> SeqKey {
        SeqKey { role, number: self.trunk[role as usize] }
    }

    fn take(&mut self) -> Option<Result<Response>> {
        self.outcome.take()
    }
}
