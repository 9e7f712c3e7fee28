//! Blocks of keys and values: which task gets them, and from which request they are taken back.

use super::{Entry, Event, Scheduler};
use crate::engine::sequences::{Key, Source, common};
use crate::engine::step::TaskSpan;
use crate::kv::BLOCK;
use crate::model::{ModelPair, Role, SeqId};
use crate::task::{Liveness, SeqKey, Task};
use std::collections::BTreeMap;

/// What the spans of a step have been given.
#[derive(Default)]
pub(super) struct StepReservations {
    /// Looked through only where blocks are short.
    pub sequences: Vec<Key>,
    /// Blocks of each model that they will take when they are run.
    pub blocks: [usize; 2],
}

impl StepReservations {
    pub fn add(&mut self, backend: &ModelPair, span: &TaskSpan) {
        self.sequences.push((span.request, span.task.key));
        let blocks = &mut self.blocks[span.task.key.role as usize];
        *blocks = blocks.saturating_add(backend.blocks_needed(span.seq, span.ids.len()));
    }

    /// Whether a request has a span in the step.
    pub fn holds(&self, request: u64) -> bool {
        self.sequences.iter().any(|key| key.0 == request)
    }

    /// Whether it has one of this model.
    fn of(&self, request: u64, role: Role) -> bool {
        self.sequences.iter().any(|&(other, key)| other == request && key.role == role)
    }
}

/// A sequence that is not in memory as far as a task goes on from it, and how far that is.
pub(super) type Stem = (SeqKey, usize);

/// What tasks that are needed have in common and is not in memory. That is so after blocks were taken back. It is run
/// first, and once; otherwise each of them would run it again.
pub(super) struct Stems(BTreeMap<Key, Stem>);

impl Stems {
    /// Of the stems of single tasks those that several tasks of a request have, or that another task is about. `about`:
    /// the sequences of all tasks that have more than a token to run.
    pub fn of(all: Vec<(Key, Stem)>, about: &[Key]) -> Stems {
        let mut counts: BTreeMap<Key, usize> = BTreeMap::new();
        for ((id, _), (stem, _)) in &all {
            let stem = (*id, *stem);
            *counts.entry(stem).or_insert_with(|| usize::from(about.contains(&stem))) += 1;
        }
        let several = |(id, _): &Key, (stem, _): &Stem| counts.get(&(*id, *stem)).is_some_and(|&count| count > 1);
        Stems(all.into_iter().filter(|(task, stem)| several(task, stem)).collect())
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// What is to be run before a task of this request and sequence.
    pub fn get(&self, task: Key) -> Option<Stem> {
        self.0.get(&task).copied()
    }
}

/// Where a task can run in this step.
pub(super) enum Allocation {
    /// From this source, which holds the positions before the first of these, up to the second.
    Found(Source, usize, usize),
    /// Not in this step: others hold the blocks.
    NotNow,
    /// Never: more blocks are needed than there are.
    Never,
}

impl<T> Entry<T> {
    /// The request's sequence that holds its prompt, if a task could go on from there, and how far.
    pub(super) fn own_prompt(&self, backend: &ModelPair, task: &Task) -> Option<(SeqId, usize)> {
        let (trunk, len) = (self.request.trunk(task.key.role), self.request.prompt().len());
        let (seq, within) = (self.sequences.get(trunk)?, len <= task.len);
        // What is asked about is run by the task itself.
        let len = len.min(task.answered_from());
        (trunk != task.key && within && len > 0 && backend.len(seq) >= len).then_some((seq, len))
    }

    /// A sequence that a task goes on from and that is not in memory, but will stay there once it is, and how many
    /// positions of it. `None` if there is no room for it beside the task's own.
    pub(super) fn stem(&self, backend: &ModelPair, task: &Task) -> Option<Stem> {
        let held = |key| self.sequences.get(key);
        if held(task.key).is_some() {
            return None;
        }
        let role = task.key.role;
        let trunk = (self.request.trunk(role), self.request.prompt().len());
        let mut stems = [task.parent, Some(trunk)].into_iter().flatten();
        // A sequence that the request has no use for would be forgotten before the task could go on from it.
        let stays = |key| held(key).is_some() || self.request.liveness(key) != Liveness::Dead;
        let (key, len) = stems.find(|&(key, len)| key != task.key && len <= task.len && stays(key))?;
        // What is asked about is run by the task itself.
        let len = len.min(task.answered_from());
        let have = held(key).map_or(0, |seq| backend.len(seq));
        // They share its whole blocks.
        let room = backend.blocks_free(role).saturating_add(have.div_ceil(BLOCK));
        (have < len && room > task.len.div_ceil(BLOCK)).then_some((key, len))
    }
}

impl<T> Scheduler<T> {
    /// Lets waiting requests run, as long as there are blocks for them: of the groups that run least the oldest first.
    pub(super) fn admit(&mut self, backend: &mut ModelPair) {
        while let Some(id) = self.next_waiting()
            && let Some(entry) = self.waiting.get(&id)
        {
            if self.running.len() >= self.settings.max_requests.max(1) || (self.full && !self.running.is_empty()) {
                return;
            }
            let mut tasks = Vec::new();
            entry.request.tasks(&mut tasks);
            for role in [Role::Policy, Role::Reward] {
                let longest = tasks.iter().filter(|t| !t.speculative).map(|t| t.len).max().unwrap_or(0);
                let needed = longest.div_ceil(BLOCK) + 1;
                while !self.running.is_empty() && backend.blocks_free(role) < needed {
                    if !self.prompts.evict(backend, role) {
                        return;
                    }
                }
            }
            let Some(entry) = self.waiting.remove(&id) else { return };
            self.running.insert(id, entry);
            self.events.push(Event::Started(id));
        }
    }

    /// Where a sequence that a task is about comes from.
    fn source(&self, backend: &ModelPair, id: u64, task: &Task) -> Source {
        let Some(entry) = self.running.get(&id) else { return Source::Nothing };
        if let Some(seq) = entry.sequences.get(task.key) {
            return Source::Held(seq);
        }
        let answered_from = task.answered_from();
        if let Some((parent, len)) = task.parent.map(|(parent, len)| (parent, len.min(answered_from)))
            && let Some(seq) = entry.sequences.get(parent)
            && backend.len(seq) >= len
            && len > 0
        {
            return Source::Fork(seq, len);
        }
        // The request's own prompt, where the parent is forgotten.
        if let Some((seq, len)) = entry.own_prompt(backend, task) {
            return Source::Fork(seq, len);
        }
        // The prompt of another request, finished or running. The span has to hold every position that is asked about.
        let (prompt, submitter) = (entry.request.prompt(), entry.submitter);
        let shared = |len: usize, own: bool| match submitter.whole_blocks && !own {
            true => len.min(answered_from) / BLOCK * BLOCK,
            false => len.min(answered_from),
        };
        let cached = self.prompts.find(task.key.role, submitter.cache_salt, prompt);
        let mut best = cached.map(|(seq, len)| (seq, shared(len, false)));
        for (&other, owner) in &self.running {
            if other == id || owner.submitter.cache_salt != submitter.cache_salt {
                continue;
            }
            let mut held = owner.sequences.held().filter(|(key, _)| key.role == task.key.role).peekable();
            if held.peek().is_none() {
                continue;
            }
            let own = submitter.group.is_some() && owner.submitter.group == submitter.group;
            let alike = common(owner.request.prompt(), prompt);
            for (_, seq) in held {
                let len = shared(alike.min(backend.len(seq)), own);
                if len >= BLOCK && best.is_none_or(|(_, most)| len > most) {
                    best = Some((seq, len));
                }
            }
        }
        match best {
            Some((seq, len)) if len >= BLOCK => Source::Fork(seq, len),
            _ => Source::Nothing,
        }
    }

    /// Finds room for a task, taking blocks back for it if it is needed.
    pub(super) fn allocate(
        &mut self,
        backend: &mut ModelPair,
        id: u64,
        task: &Task,
        budget: usize,
        reserved: &StepReservations,
    ) -> Allocation {
        let role = task.key.role;
        let blocks = |len: usize| len.div_ceil(BLOCK);
        // Before a piece of it is run.
        if blocks(task.len) > backend.blocks_free(role).saturating_add(backend.blocks_in_use(role)) {
            return if task.speculative { Allocation::NotNow } else { Allocation::Never };
        }
        self.cut_back(backend, id, task);
        loop {
            let source = self.source(backend, id, task);
            let start = match source {
                Source::Held(seq) => backend.len(seq),
                Source::Fork(_, len) => len,
                Source::Nothing => 0,
            };
            let end = task.span_end(start, budget);
            let needed = match source {
                Source::Held(seq) => backend.blocks_needed(seq, end - start),
                Source::Fork(_, len) => blocks(end) - len / BLOCK,
                Source::Nothing => blocks(end),
            };
            // Speculative tasks leave a block for the next token of every request.
            let reserve = if task.speculative { self.running.len() } else { 0 };
            let promised = reserved.blocks[role as usize];
            if backend.blocks_free(role) >= needed.saturating_add(reserve).saturating_add(promised) {
                return Allocation::Found(source, start, end);
            }
            if self.prompts.evict(backend, role) {
                continue;
            }
            if task.speculative {
                return Allocation::NotNow;
            }
            if self.give_up_speculation(backend, (id, task.key), role, reserved) {
                continue;
            }
            let youngest = self.running.keys().next_back().copied().filter(|&youngest| youngest > id);
            if let Some(youngest) = youngest {
                self.preempt(backend, youngest);
                continue;
            }
            if self.running.keys().next() != Some(&id) {
                return Allocation::NotNow;
            }
            // Only the oldest is left: its other sequences of this model can be computed again. The parent goes last, and the
            // prompt, which stands for a parent that is forgotten.
            let Some(entry) = self.running.get_mut(&id) else { return Allocation::NotNow };
            let trunk = entry.request.trunk(role);
            let held = entry.sequences.held().map(|(key, _)| key);
            let idle = held
                .filter(|&key| key.role == role && key != task.key && !reserved.sequences.contains(&(id, key)))
                .min_by_key(|&key| key == trunk || task.parent.is_some_and(|(parent, _)| parent == key));
            match idle {
                Some(key) => entry.sequences.close(backend, key),
                // Spans of this step have them.
                None if reserved.of(id, role) => return Allocation::NotNow,
                None => return Allocation::Never,
            }
        }
    }

    /// Cuts a task's sequence back to the first position that is asked about. It reaches further if a piece was run of a task that has
    /// come to ask for more since: for the gradient of a candidate that was not needed then.
    fn cut_back(&mut self, backend: &mut ModelPair, id: u64, task: &Task) {
        let Some(entry) = self.running.get_mut(&id) else { return };
        let from = task.answered_from();
        if let Some(seq) = entry.sequences.get(task.key)
            && backend.len(seq) > from
            && backend.truncate(seq, from).is_err()
        {
            entry.sequences.close(backend, task.key);
        }
    }

    /// Releases one speculative sequence, the youngest request's first.
    fn give_up_speculation(
        &mut self,
        backend: &mut ModelPair,
        but: Key,
        role: Role,
        reserved: &StepReservations,
    ) -> bool {
        for (&id, entry) in self.running.iter_mut().rev() {
            let Entry { request, sequences, .. } = entry;
            let found = sequences.held().rev().map(|(key, _)| key).find(|&key| {
                key.role == role
                    && (id, key) != but
                    && request.liveness(key) == Liveness::Speculative
                    && !reserved.sequences.contains(&(id, key))
            });
            if let Some(key) = found {
                sequences.close(backend, key);
                self.stats.given_up += 1;
                return true;
            }
        }
        false
    }

    /// Takes back all blocks of a request, which waits until there are blocks again.
    pub(super) fn preempt(&mut self, backend: &mut ModelPair, id: u64) {
        if let Some(mut entry) = self.running.remove(&id) {
            entry.sequences.close_all(backend);
            entry.stats.preemptions += 1;
            self.stats.preemptions += 1;
            self.full = true;
            self.waiting.insert(id, entry);
        }
    }
}
