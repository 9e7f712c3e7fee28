//! Turns: however much one request asks for, another one gets its share of every step.
//!
//! Requests that were handed in for one client's request form a group. The n-th task of a group comes after the n-th tasks of
//! all older groups and before every (n+1)-th one. Requests that stand by themselves, with one task at a time, are served in the
//! order of their arrival, as if there were no groups.

use super::Scheduler;
use crate::model::{ModelPair, Role};
use crate::task::Task;
use std::collections::BTreeMap;

/// A group of requests, or a request without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Shared(u64),
    Single(u64),
}

impl<T> Scheduler<T> {
    fn group(&self, id: u64) -> Group {
        let entry = self.running.get(&id).or_else(|| self.waiting.get(&id));
        entry.and_then(|entry| entry.submitter.group).map_or(Group::Single(id), Group::Shared)
    }

    /// The request that is let in next: of the group that runs least, the oldest. A group never takes the last places.
    pub(super) fn next_waiting(&self) -> Option<u64> {
        let places = self.settings.max_requests.max(1);
        let most = (places - (places / 4).max(1)).max(1);
        let mut running: BTreeMap<Group, usize> = BTreeMap::new();
        for &id in self.running.keys() {
            *running.entry(self.group(id)).or_default() += 1;
        }
        let waiting = self.waiting.keys().map(|&id| (running.get(&self.group(id)).copied().unwrap_or(0), id));
        waiting.filter(|&(own, _)| own < most).min().map(|(_, id)| id)
    }

    /// The most tokens that each task may run in this step, where groups with many tasks would leave none for others; `None`
    /// if there is room for all. `tasks` are in the order of the step.
    pub(super) fn turns(&self, backend: &ModelPair, tasks: &[(u64, Task)]) -> Option<Vec<usize>> {
        let room = self.settings.batch_tokens.max(1);
        let wants: Vec<usize> = tasks.iter().map(|(id, task)| self.wants(backend, *id, task)).collect();
        let needed = |role: Role| {
            let of = tasks.iter().zip(&wants).filter(|((_, task), _)| task.key.role == role && !task.speculative);
            of.fold(0_usize, |sum, (_, &wants)| sum.saturating_add(wants))
        };
        if [Role::Policy, Role::Reward].into_iter().all(|role| needed(role) <= room) {
            return None;
        }
        let mut order = Vec::with_capacity(tasks.len());
        let mut counts: BTreeMap<(Role, Group), usize> = BTreeMap::new();
        for (index, (id, task)) in tasks.iter().enumerate().filter(|(_, (_, task))| !task.speculative) {
            let count = counts.entry((task.key.role, self.group(*id))).or_default();
            order.push((*count, index));
            *count += 1;
        }
        if order.iter().all(|&(turn, _)| turn == 0) {
            return None;
        }
        order.sort_unstable();
        let mut due = order.iter().filter(|&&(_, index)| tasks[index].1.key.role == Role::Policy).count();
        let (mut tokens, mut scored) = (room, 0);
        let mut allowed = vec![usize::MAX; tasks.len()];
        for (_, index) in order {
            let wants = wants[index];
            allowed[index] = match tasks[index].1.key.role {
                Role::Policy => {
                    // A prompt is cut so that every task behind it still gets a token.
                    due -= 1;
                    let most = tokens.saturating_sub(due).max(1).min(tokens).min(wants);
                    tokens -= most;
                    most
                }
                // Rewards are not cut.
                Role::Reward if scored > 0 && wants > room.saturating_sub(scored) => 0,
                Role::Reward => {
                    scored += wants;
                    usize::MAX
                }
            };
        }
        Some(allowed)
    }

    /// Tokens that a task has to run, unless another request's prompt helps.
    fn wants(&self, backend: &ModelPair, id: u64, task: &Task) -> usize {
        let have = match self.sequences.get((id, task.key)) {
            Some(seq) => backend.len(seq),
            None => match task.parent.and_then(|(parent, len)| Some((self.sequences.get((id, parent))?, len))) {
                Some((parent, len)) if backend.len(parent) >= len => len,
                _ => 0,
            },
        };
        task.len.saturating_sub(have)
    }
}
