//! Sequences of a backend that are given back on every path out of a response, errors included.

use crate::Result;
use crate::model::{ModelPair, Role, SeqId};

/// A backend together with the sequences one response holds there.
pub(crate) struct Sequences<'a> {
    pub backend: &'a mut ModelPair,
    held: Vec<SeqId>,
}

impl<'a> Sequences<'a> {
    pub fn new(backend: &'a mut ModelPair) -> Sequences<'a> {
        Sequences { backend, held: Vec::new() }
    }

    pub fn create(&mut self, role: Role) -> Result<SeqId> {
        let seq = self.backend.create(role)?;
        self.held.push(seq);
        Ok(seq)
    }

    pub fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        let fork = self.backend.fork(seq, len)?;
        self.held.push(fork);
        Ok(fork)
    }

    pub fn release(&mut self, seq: SeqId) {
        self.held.retain(|&held| held != seq);
        self.backend.release(seq);
    }
}

impl Drop for Sequences<'_> {
    fn drop(&mut self) {
        for &seq in &self.held {
            self.backend.release(seq);
        }
    }
}
