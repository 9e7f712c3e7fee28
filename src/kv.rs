//! Paged key/value bookkeeping: which block of positions belongs to which sequence.
//!
//! Positions are kept in blocks of [`BLOCK`]. A fork shares the full blocks of its origin by reference count and gets a
//! copy of the partial one; a block that two sequences hold is never written: a sequence that was cut back into a shared
//! block gets its own copy of it at the next append. This module moves no data. It says which blocks to copy, and the
//! backend that owns the storage does it before the next write.

use crate::{Error, Result};

/// Positions in one block. It is also the tile of attention over keys, so that shared and private prefixes run alike.
pub const BLOCK: usize = 64;

/// A block of [`BLOCK`] positions in all layers of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(pub u32);

/// The first `positions` positions of `from` have to be copied to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the new block holds nothing until it is copied"]
pub struct BlockCopy {
    /// Source.
    pub from: BlockId,
    /// Destination, held by one sequence only.
    pub to: BlockId,
    /// How many positions count.
    pub positions: usize,
}

/// A sequence of a [`KvPool`]. A handle that was released, or whose slot was reused, is refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvHandle {
    /// Slot in the pool's table.
    pub index: u32,
    /// Distinguishes the sequences that used a slot one after the other.
    pub generation: u32,
}

#[derive(Debug, Default)]
struct TableEntry {
    generation: u32,
    live: bool,
    blocks: Vec<BlockId>,
    len: usize,
}

/// Blocks and sequences of one model.
#[derive(Debug)]
pub struct KvPool {
    /// How many sequences hold each block; 0 is free.
    holders: Vec<u32>,
    free: Vec<BlockId>,
    capacity: usize,
    slots: Vec<TableEntry>,
    free_slots: Vec<u32>,
}

impl KvPool {
    /// A pool of at most `capacity` blocks. Nothing is reserved ahead.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(u32::MAX as usize);
        KvPool { holders: Vec::new(), free: Vec::new(), capacity, slots: Vec::new(), free_slots: Vec::new() }
    }

    /// A new, empty sequence.
    pub fn create(&mut self) -> KvHandle {
        let index = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(TableEntry::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.live = true;
        KvHandle { index, generation: slot.generation }
    }

    /// Positions held by a sequence.
    ///
    /// # Errors
    /// The handle is not live.
    pub fn len(&self, seq: KvHandle) -> Result<usize> {
        Ok(self.slot(seq)?.len)
    }

    /// Blocks of a sequence, in order of positions.
    ///
    /// # Errors
    /// The handle is not live.
    pub fn blocks(&self, seq: KvHandle) -> Result<&[BlockId]> {
        Ok(&self.slot(seq)?.blocks)
    }

    /// Makes room for `count` more positions and counts them as held.
    ///
    /// # Errors
    /// The handle is not live or the pool is full; nothing has changed then.
    pub fn append(&mut self, seq: KvHandle, count: usize) -> Result<Option<BlockCopy>> {
        let slot = self.slot(seq)?;
        let (len, held) = (slot.len, slot.blocks.len());
        let partial = len % BLOCK;
        let shared = (partial != 0).then(|| slot.blocks[held - 1]).filter(|b| self.holders[b.0 as usize] > 1);
        let more = (len + count).div_ceil(BLOCK) - held;
        let shared = shared.filter(|_| count > 0);
        self.check_room(more + usize::from(shared.is_some()))?;
        let copy = shared.map(|from| {
            let to = self.take_block();
            self.holders[from.0 as usize] -= 1;
            self.slots[seq.index as usize].blocks[held - 1] = to;
            BlockCopy { from, to, positions: partial }
        });
        for _ in 0..more {
            let block = self.take_block();
            self.slots[seq.index as usize].blocks.push(block);
        }
        self.slots[seq.index as usize].len = len + count;
        Ok(copy)
    }

    /// A new sequence with the first `len` positions of `seq`: full blocks shared, the partial one to be copied.
    ///
    /// # Errors
    /// The handle is not live, holds fewer than `len` positions, or the pool is full; nothing has changed then.
    pub fn fork(&mut self, seq: KvHandle, len: usize) -> Result<(KvHandle, Option<BlockCopy>)> {
        let slot = self.slot(seq)?;
        if len > slot.len {
            return Err(Error::Backend(format!("fork at position {len} of a sequence of {} positions", slot.len)));
        }
        let (full, partial) = (len / BLOCK, len % BLOCK);
        let from = (partial != 0).then(|| slot.blocks[full]);
        self.check_room(usize::from(from.is_some()))?;
        let child = self.create();
        // The table of the slot's last sequence, which is empty, and its memory.
        let mut blocks = std::mem::take(&mut self.slots[child.index as usize].blocks);
        blocks.reserve(full + 1);
        blocks.extend_from_slice(&self.slots[seq.index as usize].blocks[..full]);
        for block in &blocks {
            self.holders[block.0 as usize] += 1;
        }
        let copy = from.map(|from| {
            let to = self.take_block();
            blocks.push(to);
            BlockCopy { from, to, positions: partial }
        });
        let slot = &mut self.slots[child.index as usize];
        (slot.blocks, slot.len) = (blocks, len);
        Ok((child, copy))
    }

    /// Forgets the positions `len ..`.
    ///
    /// # Errors
    /// The handle is not live or holds fewer than `len` positions.
    pub fn truncate(&mut self, seq: KvHandle, len: usize) -> Result<()> {
        let slot = self.slot(seq)?;
        if len > slot.len {
            return Err(Error::Backend(format!("truncate to {len} of a sequence of {} positions", slot.len)));
        }
        let slot = &mut self.slots[seq.index as usize];
        slot.len = len;
        let mut blocks = std::mem::take(&mut slot.blocks);
        self.give_back(&mut blocks, len.div_ceil(BLOCK));
        self.slots[seq.index as usize].blocks = blocks;
        Ok(())
    }

    /// Ends a sequence. A handle that is not live is ignored.
    pub fn release(&mut self, seq: KvHandle) {
        if self.slot(seq).is_err() {
            return;
        }
        let slot = &mut self.slots[seq.index as usize];
        let mut blocks = std::mem::take(&mut slot.blocks);
        slot.len = 0;
        slot.live = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free_slots.push(seq.index);
        self.give_back(&mut blocks, 0);
        self.slots[seq.index as usize].blocks = blocks;
    }

    /// The most blocks that [`append`](Self::append) takes for `count` more positions.
    ///
    /// # Errors
    /// The handle is not live.
    pub fn blocks_needed(&self, seq: KvHandle, count: usize) -> Result<usize> {
        let slot = self.slot(seq)?;
        let shared = !slot.len.is_multiple_of(BLOCK)
            && slot.blocks.last().is_some_and(|block| self.holders[block.0 as usize] > 1);
        Ok((slot.len + count).div_ceil(BLOCK) - slot.blocks.len() + usize::from(shared && count > 0))
    }

    /// Blocks that can still be handed out.
    pub fn blocks_free(&self) -> usize {
        self.capacity - self.blocks_in_use()
    }

    /// Blocks held by at least one sequence.
    pub fn blocks_in_use(&self) -> usize {
        self.holders.len() - self.free.len()
    }

    /// One more than the largest block number ever handed out: what the storage must hold.
    pub fn high_water(&self) -> usize {
        self.holders.len()
    }

    fn slot(&self, seq: KvHandle) -> Result<&TableEntry> {
        self.slots
            .get(seq.index as usize)
            .filter(|slot| slot.live && slot.generation == seq.generation)
            .ok_or_else(|| Error::Backend(format!("sequence {} was released", seq.index)))
    }

    fn check_room(&self, count: usize) -> Result<()> {
        let available = self.free.len() + (self.capacity - self.holders.len());
        if count > available {
            return Err(Error::Backend(format!(
                "out of key/value memory: {count} blocks of {BLOCK} positions needed, {available} of {} free",
                self.capacity
            )));
        }
        Ok(())
    }

    /// A free block, for one holder. There has to be one.
    fn take_block(&mut self) -> BlockId {
        let block = self.free.pop().unwrap_or_else(|| {
            self.holders.push(0);
            BlockId((self.holders.len() - 1) as u32)
        });
        self.holders[block.0 as usize] = 1;
        block
    }

    /// Takes the blocks from a place on off a table.
    fn give_back(&mut self, blocks: &mut Vec<BlockId>, from: usize) {
        for block in blocks.drain(from..) {
            let holders = &mut self.holders[block.0 as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_fork_shares_full_blocks_and_copies_the_partial_one() {
        let mut pool = KvPool::new(8);
        let a = pool.create();
        assert_eq!(pool.append(a, 2 * BLOCK + 5).unwrap(), None);
        let (b, copy) = pool.fork(a, BLOCK + 3).unwrap();
        let copy = copy.unwrap();
        assert_eq!((copy.from, copy.positions), (pool.blocks(a).unwrap()[1], 3));
        assert_eq!(pool.blocks(b).unwrap(), [pool.blocks(a).unwrap()[0], copy.to]);
        assert_eq!(pool.blocks_in_use(), 4);
        pool.release(a);
        assert_eq!(pool.blocks_in_use(), 2);
        pool.release(b);
        pool.release(b);
        assert_eq!(pool.blocks_in_use(), 0);
    }

    #[test]
    fn a_sequence_cut_into_a_shared_block_copies_it_before_it_writes() {
        let mut pool = KvPool::new(8);
        let a = pool.create();
        assert_eq!(pool.append(a, BLOCK).unwrap(), None);
        let (b, copy) = pool.fork(a, BLOCK).unwrap();
        assert_eq!(copy, None);
        pool.truncate(b, 10).unwrap();
        let copy = pool.append(b, 1).unwrap().unwrap();
        assert_eq!((copy.from, copy.positions), (pool.blocks(a).unwrap()[0], 10));
        assert_eq!(pool.append(a, 1).unwrap(), None);
    }

    #[test]
    fn a_full_pool_refuses_and_changes_nothing() {
        let mut pool = KvPool::new(2);
        let a = pool.create();
        assert_eq!(pool.append(a, BLOCK + 1).unwrap(), None);
        let error = pool.append(a, BLOCK).unwrap_err().to_string();
        assert!(error.contains("1 blocks of 64 positions needed, 0 of 2 free"), "{error}");
        assert_eq!(pool.len(a).unwrap(), BLOCK + 1);
        assert!(pool.fork(a, 3).is_err());
        assert_eq!(pool.blocks_in_use(), 2);
    }

    #[test]
    fn a_released_handle_is_refused_even_when_its_slot_lives_again() {
        let mut pool = KvPool::new(2);
        let a = pool.create();
        pool.release(a);
        let b = pool.create();
        assert_eq!(a.index, b.index);
        assert!(pool.append(a, 1).is_err());
        pool.release(a);
        assert_eq!(pool.append(b, 1).unwrap(), None);
    }

    proptest! {
        /// Random operations against sequences kept as plain vectors: what a sequence would read is what was written.
        #[test]
        fn contents_survive_any_history(ops in prop::collection::vec((0u8..4, 0usize..6, 1usize..150), 1..60)) {
            let mut pool = KvPool::new(1000);
            let mut store: HashMap<BlockId, [u32; BLOCK]> = HashMap::new();
            let mut model: Vec<(KvHandle, Vec<u32>)> = vec![(pool.create(), Vec::new())];
            let mut stamp = 0;
            let run = |copy: Option<BlockCopy>, store: &mut HashMap<BlockId, [u32; BLOCK]>| {
                if let Some(c) = copy {
                    let mut block = [u32::MAX; BLOCK];
                    block[..c.positions].copy_from_slice(&store[&c.from][..c.positions]);
                    store.insert(c.to, block);
                }
            };
            for (op, which, amount) in ops {
                let i = which % model.len();
                let (seq, len) = (model[i].0, model[i].1.len());
                match op {
                    0 => {
                        let copy = pool.append(seq, amount).unwrap();
                        run(copy, &mut store);
                        for position in len..len + amount {
                            stamp += 1;
                            let block = pool.blocks(seq).unwrap()[position / BLOCK];
                            store.entry(block).or_insert([u32::MAX; BLOCK])[position % BLOCK] = stamp;
                            model[i].1.push(stamp);
                        }
                    }
                    1 => {
                        let at = amount.min(len);
                        let (child, copy) = pool.fork(seq, at).unwrap();
                        run(copy, &mut store);
                        let prefix = model[i].1[..at].to_vec();
                        model.push((child, prefix));
                    }
                    2 => {
                        let at = len - amount.min(len);
                        pool.truncate(seq, at).unwrap();
                        model[i].1.truncate(at);
                    }
                    _ if model.len() > 1 => {
                        pool.release(seq);
                        model.swap_remove(i);
                    }
                    _ => {}
                }
                for (seq, expected) in &model {
                    prop_assert_eq!(pool.len(*seq).unwrap(), expected.len());
                    let blocks = pool.blocks(*seq).unwrap();
                    for (position, value) in expected.iter().enumerate() {
                        prop_assert_eq!(store[&blocks[position / BLOCK]][position % BLOCK], *value);
                    }
                }
            }
            for (seq, _) in model {
                pool.release(seq);
            }
            prop_assert_eq!(pool.blocks_in_use(), 0);
        }
    }
}
