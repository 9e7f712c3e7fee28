//! Which sequences of the backend hold the sequences of requests, and the prompts kept for later requests.

use crate::Result;
use crate::kv::BLOCK;
use crate::model::{ModelPair, Role, SeqId};
use crate::task::SeqKey;
use std::collections::BTreeMap;

/// A sequence of a request.
pub(super) type Key = (u64, SeqKey);

/// A prompt whose keys and values outlive its request.
struct Cached {
    role: Role,
    salt: u64,
    ids: Vec<u32>,
    seq: SeqId,
    used: u64,
}

/// Sequences that are in memory.
pub(super) struct Sequences {
    held: BTreeMap<Key, SeqId>,
    cache: Vec<Cached>,
    /// Prompts of each model that are kept, at most.
    capacity: usize,
    clock: u64,
}

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

impl Sequences {
    pub fn new(capacity: usize) -> Sequences {
        Sequences { held: BTreeMap::new(), cache: Vec::new(), capacity, clock: 0 }
    }

    pub fn get(&self, key: Key) -> Option<SeqId> {
        self.held.get(&key).copied()
    }

    /// Sequences of a request.
    pub fn of(&self, request: u64) -> Vec<Key> {
        self.held.keys().filter(|key| key.0 == request).copied().collect()
    }

    /// Sequences of all requests.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = Key> + '_ {
        self.held.keys().copied()
    }

    /// Brings a sequence into memory as far as its source goes.
    pub fn open(&mut self, backend: &mut ModelPair, key: Key, source: Source) -> Result<SeqId> {
        let seq = match source {
            Source::Held(seq) => return Ok(seq),
            Source::Fork(seq, len) => {
                self.clock += 1;
                if let Some(cached) = self.cache.iter_mut().find(|cached| cached.seq == seq) {
                    cached.used = self.clock;
                }
                backend.fork(seq, len)?
            }
            Source::Nothing => backend.create(key.1.role)?,
        };
        self.held.insert(key, seq);
        Ok(seq)
    }

    /// Releases a sequence.
    pub fn close(&mut self, backend: &mut ModelPair, key: Key) {
        if let Some(seq) = self.held.remove(&key) {
            backend.release(seq);
        }
    }

    /// The kept prompt of this salt that shares most with `ids`: its sequence, and how many ids.
    pub fn cached(&self, role: Role, salt: u64, ids: &[u32]) -> Option<(SeqId, usize)> {
        let prompts = self.cache.iter().filter(|cached| cached.role == role && cached.salt == salt);
        let common = prompts.map(|cached| (cached.seq, common(&cached.ids, ids)));
        common.filter(|&(_, len)| len >= BLOCK).max_by_key(|&(_, len)| len)
    }

    /// Keeps the prompt of a finished request, which gives up its sequence.
    pub fn keep(&mut self, backend: &mut ModelPair, key: Key, salt: u64, prompt: &[u32]) {
        let role = key.1.role;
        let known = self.cached(role, salt, prompt).is_some_and(|(_, len)| len == prompt.len());
        let Some(&seq) = self.held.get(&key) else { return };
        if self.capacity == 0 || known || prompt.len() < BLOCK || backend.len(seq) < prompt.len() {
            return;
        }
        if backend.truncate(seq, prompt.len()).is_err() {
            return;
        }
        self.held.remove(&key);
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

    /// Releases all sequences.
    pub fn clear(&mut self, backend: &mut ModelPair) {
        for seq in std::mem::take(&mut self.held).into_values() {
            backend.release(seq);
        }
        for cached in self.cache.drain(..) {
            backend.release(cached.seq);
        }
    }
}

/// How many ids two texts begin with alike.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
