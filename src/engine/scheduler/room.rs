//! Blocks of keys and values: who gets them, and from whom they are taken back.

use super::{Event, Scheduler};
use crate::engine::lines::{Key, Source, common};
use crate::engine::turn::Span;
use crate::kv::BLOCK;
use crate::model::{Backend, Role};
use crate::task::{Task, Use};
use std::collections::HashSet;

/// What the spans of a turn have been given.
#[derive(Default)]
pub(super) struct Taken {
    pub lines: HashSet<Key>,
    /// Blocks of each model that they will take when they are run.
    pub blocks: [usize; 2],
}

impl Taken {
    pub fn add(&mut self, backend: &dyn Backend, span: &Span) {
        self.lines.insert((span.request, span.task.line));
        let blocks = &mut self.blocks[span.task.line.role as usize];
        *blocks = blocks.saturating_add(backend.blocks_needed(span.seq, span.ids.len()));
    }

    /// Whether a request has a span in the turn.
    pub fn holds(&self, request: u64) -> bool {
        self.lines.iter().any(|key| key.0 == request)
    }
}

/// Room for a task.
pub(super) enum Room {
    /// From this source, and up to this position.
    Found(Source, usize),
    /// Not now.
    NotNow,
    /// Not even with all blocks: how many are needed.
    Never(usize),
}

impl Scheduler {
    /// Lets waiting requests run, in the order of their arrival, as long as there is room for what they have.
    pub(super) fn admit(&mut self, backend: &mut dyn Backend) {
        while let Some((&id, entry)) = self.waiting.first_key_value() {
            if self.running.len() >= self.settings.max_requests.max(1) || (self.full && !self.running.is_empty()) {
                return;
            }
            let mut tasks = Vec::new();
            entry.generation.tasks(&mut tasks);
            for role in [Role::Policy, Role::Reward] {
                let longest = tasks.iter().filter(|t| !t.speculative).map(|t| t.len).max().unwrap_or(0);
                let needed = longest.div_ceil(BLOCK) + 1;
                while !self.running.is_empty() && backend.blocks_free(role) < needed {
                    if !self.lines.evict(backend, role) {
                        return;
                    }
                }
            }
            let Some(entry) = self.waiting.remove(&id) else { return };
            self.running.insert(id, entry);
            self.events.push(Event::Started(id));
        }
    }

    /// Where a line that a task is about comes from.
    fn source(&self, backend: &dyn Backend, id: u64, task: &Task) -> Source {
        let key = (id, task.line);
        if let Some(seq) = self.lines.get(key) {
            return Source::Held(seq);
        }
        if let Some((parent, len)) = task.parent
            && let Some(seq) = self.lines.get((id, parent))
            && backend.len(seq) >= len
            && len > 0
        {
            return Source::Fork(seq, len.min(task.answered_from()));
        }
        let Some(entry) = self.running.get(&id) else { return Source::Nothing };
        // Another request's prompt, finished or running. The span has to hold every position that is asked about.
        let prompt = entry.generation.prompt();
        let mut best = self.lines.cached(task.line.role, prompt);
        for other in self.lines.keys().filter(|other| other.1.role == task.line.role && other.0 != id) {
            let (Some(owner), Some(seq)) = (self.running.get(&other.0), self.lines.get(other)) else { continue };
            let len = common(owner.generation.prompt(), prompt).min(backend.len(seq));
            if len >= BLOCK && best.is_none_or(|(_, most)| len > most) {
                best = Some((seq, len));
            }
        }
        match best {
            Some((seq, len)) if task.answered_from() >= BLOCK => Source::Fork(seq, len.min(task.answered_from())),
            _ => Source::Nothing,
        }
    }

    /// Finds room for a task, taking blocks back for it if it is needed.
    pub(super) fn room(
        &mut self,
        backend: &mut dyn Backend,
        id: u64,
        task: &Task,
        budget: usize,
        taken: &Taken,
    ) -> Room {
        let role = task.line.role;
        loop {
            let source = self.source(backend, id, task);
            let start = match source {
                Source::Held(seq) => backend.len(seq),
                Source::Fork(_, len) => len,
                Source::Nothing => 0,
            };
            let end = task.len.min(start.saturating_add(budget));
            let blocks = |len: usize| len.div_ceil(BLOCK);
            let needed = match source {
                Source::Held(seq) => backend.blocks_needed(seq, end - start),
                Source::Fork(_, len) => blocks(end) - len / BLOCK,
                Source::Nothing => blocks(end),
            };
            // What is not needed leaves a block for everyone's next token.
            let reserve = if task.speculative { self.running.len() } else { 0 };
            let promised = taken.blocks[role as usize];
            if backend.blocks_free(role) >= needed.saturating_add(reserve).saturating_add(promised) {
                return Room::Found(source, end);
            }
            if self.lines.evict(backend, role) {
                continue;
            }
            if task.speculative {
                return Room::NotNow;
            }
            if self.give_up_speculation(backend, (id, task.line), role, taken) {
                continue;
            }
            let youngest = self.running.keys().next_back().copied().filter(|&youngest| youngest > id);
            if let Some(youngest) = youngest {
                self.preempt(backend, youngest);
                continue;
            }
            if self.running.keys().next() != Some(&id) {
                return Room::NotNow;
            }
            // The oldest, alone: its other lines of this model can be computed again. Its parent goes last.
            let own = self.lines.of(id);
            let idle = own.iter().filter(|key| key.1.role == role && key.1 != task.line && !taken.lines.contains(key));
            let parent = |key: &Key| task.parent.is_some_and(|(parent, _)| parent == key.1);
            match idle.min_by_key(|key| parent(key)) {
                Some(&key) => self.lines.close(backend, key),
                None => return Room::Never(needed),
            }
        }
    }

    /// Gives up one speculative line, the youngest request's first.
    fn give_up_speculation(&mut self, backend: &mut dyn Backend, but: Key, role: Role, taken: &Taken) -> bool {
        let speculative = |key: &Key| {
            let entry = self.running.get(&key.0);
            entry.is_some_and(|entry| entry.generation.line(key.1) == Use::Speculative)
        };
        let found = self
            .lines
            .keys()
            .rev()
            .find(|key| key.1.role == role && *key != but && !taken.lines.contains(key) && speculative(key));
        if let Some(key) = found {
            self.lines.close(backend, key);
            self.totals.given_up += 1;
        }
        found.is_some()
    }

    /// Takes all blocks of a request back; it waits until there is room again.
    pub(super) fn preempt(&mut self, backend: &mut dyn Backend, id: u64) {
        self.close_all(backend, id);
        if let Some(mut entry) = self.running.remove(&id) {
            entry.account.preemptions += 1;
            self.totals.preemptions += 1;
            self.full = true;
            self.waiting.insert(id, entry);
        }
    }

    pub(super) fn close_all(&mut self, backend: &mut dyn Backend, id: u64) {
        for key in self.lines.of(id) {
            self.lines.close(backend, key);
        }
    }
}
