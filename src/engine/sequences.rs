//! Which sequences of the backend hold the sequences of requests, and the prompts kept for later requests.

use crate::Result;
use crate::kv::BLOCK;
use crate::model::{ModelPair, Role, SeqId};
use crate::task::SeqKey;

/// A sequence of a request.
pub(super) type Key = (u64, SeqKey);

/// Where the computation of a sequence can start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It is in memory.
    Held(SeqId),
    /// The first positions of another sequence.
    Fork(SeqId, usize),
    /// Its first position.
    Nothing,
}

/// A sequence of a request that was run.
struct Sequence {
    key: SeqKey,
    /// Positions that were run at least once.
    high: usize,
    /// Where it is in memory.
    held: Option<SeqId>,
}

/// Sequences of one request, by their keys. They are few and are looked up several times a step: a sorted list, not a tree.
#[derive(Default)]
pub(super) struct Sequences(Vec<Sequence>);

impl Sequences {
    fn place(&self, key: SeqKey) -> std::result::Result<usize, usize> {
        self.0.binary_search_by_key(&key, |sequence| sequence.key)
    }

    /// Where a sequence is in memory.
    pub fn get(&self, key: SeqKey) -> Option<SeqId> {
        self.place(key).ok().and_then(|place| self.0[place].held)
    }

    /// Those that are in memory.
    pub fn held(&self) -> impl DoubleEndedIterator<Item = (SeqKey, SeqId)> + '_ {
        self.0.iter().filter_map(|sequence| Some((sequence.key, sequence.held?)))
    }

    /// Notes where a sequence is in memory, and that a step runs it up to `end`. Returns how many of its positions were run before:
    /// at least `fresh`, on its parent.
    pub fn run(&mut self, key: SeqKey, seq: SeqId, fresh: usize, end: usize) -> usize {
        let place = self.place(key).unwrap_or_else(|place| {
            self.0.insert(place, Sequence { key, high: 0, held: None });
            place
        });
        let sequence = &mut self.0[place];
        let known = sequence.high.max(fresh);
        (sequence.high, sequence.held) = (end.max(known), Some(seq));
        known
    }

    /// Notes that a step ran a sequence on from one position to another, beyond what it was to run. Returns how many of
    /// these were run before.
    pub fn run_on(&mut self, key: SeqKey, from: usize, end: usize) -> usize {
        let Ok(place) = self.place(key) else { return 0 };
        let high = &mut self.0[place].high;
        let known = (*high).min(end).saturating_sub(from);
        *high = (*high).max(end);
        known
    }

    /// Takes a sequence out of memory; the caller has it from now on.
    pub fn give(&mut self, key: SeqKey) -> Option<SeqId> {
        let place = self.place(key).ok()?;
        self.0[place].held.take()
    }

    /// Releases a sequence.
    pub fn close(&mut self, backend: &mut ModelPair, key: SeqKey) {
        if let Some(seq) = self.give(key) {
            backend.release(seq);
        }
    }

    /// Releases all of them.
    pub fn close_all(&mut self, backend: &mut ModelPair) {
        for seq in self.0.iter_mut().filter_map(|sequence| sequence.held.take()) {
            backend.release(seq);
        }
    }

    /// Releases and forgets the dead ones.
    pub fn forget(&mut self, backend: &mut ModelPair, dead: impl Fn(SeqKey) -> bool) {
        self.0.retain(|sequence| {
            let dead = dead(sequence.key);
            if let Some(seq) = sequence.held.filter(|_| dead) {
                backend.release(seq);
            }
            !dead
        });
    }
}

/// A prompt whose keys and values outlive its request.
struct Cached {
    role: Role,
    salt: u64,
    ids: Vec<u32>,
    seq: SeqId,
    used: u64,
}

/// Prompts kept for later requests.
pub(super) struct CachedPrompts {
    cache: Vec<Cached>,
    /// Prompts of each model that are kept, at most.
    capacity: usize,
    clock: u64,
}

impl CachedPrompts {
    pub fn new(capacity: usize) -> CachedPrompts {
        CachedPrompts { cache: Vec::new(), capacity, clock: 0 }
    }

    /// Brings a sequence into memory as far as its source goes.
    pub fn open(&mut self, backend: &mut ModelPair, role: Role, source: Source) -> Result<SeqId> {
        match source {
            Source::Held(seq) => Ok(seq),
            Source::Fork(seq, len) => {
                self.clock += 1;
                if let Some(cached) = self.cache.iter_mut().find(|cached| cached.seq == seq) {
                    cached.used = self.clock;
                }
                backend.fork(seq, len)
            }
            Source::Nothing => backend.create(role),
        }
    }

    /// The kept prompt of this salt that shares most with `ids`: its sequence, and how many ids.
    pub fn find(&self, role: Role, salt: u64, ids: &[u32]) -> Option<(SeqId, usize)> {
        let prompts = self.cache.iter().filter(|cached| cached.role == role && cached.salt == salt);
        let common = prompts.map(|cached| (cached.seq, common(&cached.ids, ids)));
        common.filter(|&(_, len)| len >= BLOCK).max_by_key(|&(_, len)| len)
    }

    /// Keeps the prompt of a finished request, which gives up its sequence.
    pub fn keep(&mut self, backend: &mut ModelPair, own: &mut Sequences, key: SeqKey, salt: u64, prompt: &[u32]) {
        let role = key.role;
        let known = self.find(role, salt, prompt).is_some_and(|(_, len)| len == prompt.len());
        let Some(seq) = own.get(key) else { return };
        if self.capacity == 0 || known || prompt.len() < BLOCK || backend.len(seq) < prompt.len() {
            return;
        }
        if backend.truncate(seq, prompt.len()).is_err() {
            return;
        }
        own.give(key);
        self.clock += 1;
        self.cache.push(Cached { role, salt, ids: prompt.to_vec(), seq, used: self.clock });
        while self.cache.iter().filter(|cached| cached.role == role).count() > self.capacity {
            self.evict(backend, role);
        }
    }

    /// Releases the kept prompt that was least recently used. False if there is none.
    pub fn evict(&mut self, backend: &mut ModelPair, role: Role) -> bool {
        let prompts = self.cache.iter().enumerate().filter(|(_, cached)| cached.role == role);
        let Some((index, _)) = prompts.min_by_key(|(_, cached)| cached.used) else { return false };
        backend.release(self.cache.swap_remove(index).seq);
        true
    }

    /// Releases all of them.
    pub fn clear(&mut self, backend: &mut ModelPair) {
        for cached in self.cache.drain(..) {
            backend.release(cached.seq);
        }
    }
}

/// How many ids two texts begin with alike.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
