//! Turns: however much one request asks for, another one gets its share of every step.
//!
//! Requests that were handed in for one client's request form a group. The n-th task of a group comes after the n-th tasks of
//! all older groups and before every (n+1)-th one. Requests that stand by themselves, with one task at a time, are served in the
//! order of their arrival, as if there were no groups.

use super::budget::{needed, reward_piece};
use super::{Entry, PlannedTask, Scheduler};
use crate::model::{ModelPair, Role};
use crate::task::Task;
use std::collections::BTreeMap;

/// A group of requests, or a request without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Shared(u64),
    Single(u64),
}

impl<T> Entry<T> {
    fn group(&self, id: u64) -> Group {
        self.submitter.group.map_or(Group::Single(id), Group::Shared)
    }

    /// Tokens that a task has to run, unless another request's prompt helps.
    pub(super) fn wants(&self, backend: &ModelPair, task: &Task) -> usize {
        let have = match self.sequences.get(task.key) {
            Some(seq) => backend.len(seq),
            None => match task
                .parent
                .and_then(|(parent, len)| Some((self.sequences.get(parent)?, len.min(task.answered_from()))))
            {
                Some((parent, len)) if backend.len(parent) >= len => len,
                _ => self.own_prompt(backend, task).map_or(0, |(_, len)| len),
            },
        };
        task.len.saturating_sub(have)
    }
}

impl<T> Scheduler<T> {
    /// The request that is let in next: of the group that runs least, the oldest. A group never takes the last places.
    pub(super) fn next_waiting(&self) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        let places = self.settings.max_requests.max(1);
        let most = (places - (places / 4).max(1)).max(1);
        // A request without a group that waits is not among those that run.
        let mut running: BTreeMap<u64, usize> = BTreeMap::new();
        for group in self.running.values().filter_map(|entry| entry.submitter.group) {
            *running.entry(group).or_default() += 1;
        }
        let own = |entry: &Entry<T>| entry.submitter.group.and_then(|group| running.get(&group).copied()).unwrap_or(0);
        let waiting = self.waiting.iter().map(|(&id, entry)| (own(entry), id));
        waiting.filter(|&(own, _)| own < most).min().map(|(_, id)| id)
    }

    /// The most tokens that each task may run in this step, where groups with many tasks would leave none for others; `None`
    /// if there is room for all. `tasks` are in the order of the step.
    pub(super) fn turns(&self, tasks: &[PlannedTask]) -> Option<Vec<usize>> {
        let room = self.settings.batch_tokens.max(1);
        let [policy, mut later] = [Role::Policy, Role::Reward]
            .map(|role| needed(tasks, role).fold(0_usize, |sum, planned| sum.saturating_add(planned.wants)));
        if policy <= room && later <= room {
            return None;
        }
        let mut order = Vec::with_capacity(tasks.len());
        let mut counts: BTreeMap<(Role, Group), usize> = BTreeMap::new();
        for (index, PlannedTask { id, task, .. }) in tasks.iter().enumerate().filter(|(_, each)| !each.task.speculative)
        {
            let group = self.running.get(id).map_or(Group::Single(*id), |entry| entry.group(*id));
            let count = counts.entry((task.key.role, group)).or_default();
            order.push((*count, index));
            *count += 1;
        }
        if order.iter().all(|&(turn, _)| turn == 0) {
            return None;
        }
        order.sort_unstable();
        let mut due = order.iter().filter(|&&(_, index)| tasks[index].task.key.role == Role::Policy).count();
        let (mut tokens, mut scored) = (room, 0_usize);
        let mut allowed = vec![usize::MAX; tasks.len()];
        for (_, index) in order {
            let wants = tasks[index].wants;
            allowed[index] = match tasks[index].task.key.role {
                Role::Policy => {
                    // A prompt is cut so that every task behind it still gets a token.
                    due -= 1;
                    let most = tokens.saturating_sub(due).max(1).min(tokens).min(wants);
                    tokens -= most;
                    most
                }
                Role::Reward => {
                    later = later.saturating_sub(wants);
                    let left = room.saturating_sub(scored);
                    let most = match tasks[index].whole() {
                        true if scored > 0 && wants > left => 0,
                        true => wants,
                        false => reward_piece(wants, room, left, later),
                    };
                    scored = scored.saturating_add(most);
                    if most == wants { usize::MAX } else { most }
                }
            };
        }
        Some(allowed)
    }
}
