//! Sequences in a pool of blocks, and branches of them that are timed: what both directions of attention work on.

use super::numbers::{Random, Values, stored, widened};
use super::timing::Bench;
use crate::Result;
use crate::cuda::ops::attention::{AttentionProducts, PlanLimits, Query, Scratch, Sequence, Shape};
use crate::cuda::ops::kv::KvLayout;
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::kv::{BLOCK, BlockId};

/// Layers of the pool.
const LAYERS: usize = 2;
/// The layer that is asked for; the others hold NaN.
pub const LAYER: usize = 1;

/// How work is spread: what a plan for the device may do, everything in one block per item, everything apart, both of these
/// with items of two tiles, and what a plan for a device with room for three sequences may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    Device,
    Whole,
    Apart,
    Wide,
    WideApart,
    Three,
}

impl Spread {
    /// What a plan of `parts` parts may use.
    pub fn limits(self, device: &Device, scratch: &Scratch, shape: &Shape, parts: usize) -> PlanLimits {
        let products = match self {
            Spread::Wide | Spread::WideApart => AttentionProducts::Both,
            _ => AttentionProducts::Mma,
        };
        match self {
            Spread::Device => scratch.limits(device, shape),
            Spread::Whole | Spread::Wide => PlanLimits { blocks: 1, partials: 0, products },
            Spread::Apart | Spread::WideApart => PlanLimits { blocks: usize::MAX, partials: parts, products },
            Spread::Three => PlanLimits { blocks: 3 * shape.kv_heads, partials: parts, products },
        }
    }
}

/// Keys and values of sequences on the host.
#[derive(Clone)]
pub struct Paged {
    pub storage: HalfType,
    pub layout: KvLayout,
    pub pool: Vec<u16>,
    /// Blocks of each sequence.
    pub blocks: Vec<Vec<BlockId>>,
    free: Vec<u32>,
}

impl Paged {
    /// Room for sequences of these lengths, all of it NaN.
    pub fn new(storage: HalfType, shape: &Shape, lengths: impl Iterator<Item = usize>) -> Self {
        let layout = KvLayout { layers: LAYERS, kv_heads: shape.kv_heads, head: shape.head };
        let most: usize = lengths.map(|len| len.div_ceil(BLOCK)).sum();
        // 0xffff is NaN in both storage types.
        let pool = vec![0xffff; most * layout.block()];
        Paged { storage, layout, pool, blocks: Vec::new(), free: (0..most as u32).collect() }
    }

    /// A sequence that shares its first blocks with another one. Blocks lie in no order.
    pub fn sequence(&mut self, random: &mut Random, mut blocks: Vec<BlockId>, len: usize) {
        while blocks.len() * BLOCK < len {
            blocks.push(BlockId(self.free.swap_remove(random.below(self.free.len()))));
        }
        self.blocks.push(blocks);
    }

    /// Where a key or value of a sequence lies.
    pub fn at(&self, sequence: usize, position: usize, value: bool, head: usize) -> usize {
        let KvLayout { kv_heads, head: size, .. } = self.layout;
        let BlockId(block) = self.blocks[sequence][position / BLOCK];
        let plane = (block as usize * LAYERS + LAYER) * 2 + usize::from(value);
        ((plane * kv_heads + head) * BLOCK + position % BLOCK) * size
    }

    pub fn get(&self, sequence: usize, position: usize, value: bool, head: usize) -> Vec<f32> {
        let at = self.at(sequence, position, value, head);
        widened(self.storage, &self.pool[at..at + self.layout.head])
    }

    fn put(&mut self, sequence: usize, position: usize, value: bool, row: &[u16]) {
        for (head, part) in row.chunks_exact(self.layout.head).enumerate() {
            let at = self.at(sequence, position, value, head);
            self.pool[at..at + part.len()].copy_from_slice(part);
        }
    }

    /// Keys and values of one position. Outliers are among values and, smaller, among keys: scores keep their last bits.
    pub fn draw(&mut self, random: &mut Random, sequence: usize, position: usize, values: Values) {
        let width = self.layout.kv_heads * self.layout.head;
        let keys: Vec<f32> = random.vector(width, values).iter().map(|x| x.clamp(-9.0, 9.0)).collect();
        self.put(sequence, position, false, &stored(self.storage, &keys));
        self.put(sequence, position, true, &stored(self.storage, &random.vector(width, values)));
    }

    /// Copies keys and values of one position.
    pub fn copy(&mut self, from: usize, to: usize, position: usize) {
        for value in [false, true] {
            for head in 0..self.layout.kv_heads {
                let (from, to) = (self.at(from, position, value, head), self.at(to, position, value, head));
                self.pool.copy_within(from..from + self.layout.head, to);
            }
        }
    }

    /// Makes keys and values of these positions NaN.
    pub fn spoil(&mut self, sequence: usize, positions: std::ops::Range<usize>) {
        let row = vec![0xffff; self.layout.kv_heads * self.layout.head];
        for position in positions {
            self.put(sequence, position, false, &row);
            self.put(sequence, position, true, &row);
        }
    }

    /// The same with a copy of every block for each of its sequences.
    pub fn private(&self) -> Self {
        let size = self.layout.block();
        let mut private = Paged { pool: Vec::new(), blocks: Vec::new(), ..self.clone() };
        for blocks in &self.blocks {
            let mut own = Vec::new();
            for block in blocks {
                own.push(BlockId((private.pool.len() / size) as u32));
                private.pool.extend(&self.pool[block.0 as usize * size..][..size]);
            }
            private.blocks.push(own);
        }
        private
    }
}

/// Heads of what is timed.
pub const TIMED: Shape = Shape { heads: 32, kv_heads: 8, head: 128, scale: 0.088, window: None };
/// Its pool.
pub const TIMED_LAYOUT: KvLayout = KvLayout { layers: 1, kv_heads: TIMED.kv_heads, head: TIMED.head };

/// The last positions of each of some branches, which have a prefix in common.
pub struct Branches {
    pub count: usize,
    pub shared: usize,
    pub own: usize,
    pub queries: usize,
    pub blocks: Vec<Vec<BlockId>>,
    /// Of all branches, by branch.
    pub all: Vec<Query>,
}

impl Branches {
    pub fn new(count: usize, shared: usize, own: usize, queries: usize) -> Self {
        let (common, private) = (shared.div_ceil(BLOCK), own.div_ceil(BLOCK));
        let blocks = |branch: usize| (0..common).chain((0..private).map(move |i| common + branch * private + i));
        let query = |i: usize| {
            let row = i as u32;
            Query { row, out: row, position: (shared + own - queries + i % queries) as u32 }
        };
        Branches {
            count,
            shared,
            own,
            queries,
            blocks: (0..count).map(|branch| blocks(branch).map(|block| BlockId(block as u32)).collect()).collect(),
            all: (0..count * queries).map(query).collect(),
        }
    }

    pub fn name(&self) -> String {
        let Branches { count, shared, own, queries, .. } = self;
        format!("bf16 32 heads of 128 over 8, {count} x {queries} of {shared} + {own}")
    }

    pub fn pages(&self) -> usize {
        self.shared.div_ceil(BLOCK) + self.count * self.own.div_ceil(BLOCK)
    }

    pub fn sequences(&self) -> Vec<Sequence<'_>> {
        let queries = self.all.chunks(self.queries);
        self.blocks.iter().zip(queries).map(|(blocks, queries)| Sequence { blocks, queries }).collect()
    }

    /// Keys seen, summed over the queries.
    pub fn seen(&self) -> usize {
        self.all.iter().map(|query| query.position as usize + 1).sum()
    }

    /// Pools of keys and values, together larger than any cache.
    pub fn pools(&self, device: &Bench<'_>) -> Result<Vec<Buffer<u16>>> {
        let drawn = stored(HalfType::Bf16, &Random::named("bench").vector(TIMED_LAYOUT.block(), Values::Normal(1.0)));
        let len = self.pages() * TIMED_LAYOUT.block();
        let pool: Vec<u16> = drawn.iter().copied().cycle().take(len).collect();
        device.sets(2 * len, |_| Buffer::from_slice(device, &pool))
    }

    /// Rows of queries, outputs or their gradients.
    pub fn rows(&self, device: &Bench<'_>, name: &str) -> Result<Buffer<u16>> {
        device.random(&mut Random::named(name), self.all.len() * TIMED.heads * TIMED.head, Values::Normal(1.0))
    }

    pub fn scratch(&self, device: &Bench<'_>) -> Result<Scratch> {
        let parts = self.all.len().min(1024) * (self.shared + self.own).div_ceil(256);
        Scratch::new(device, &[TIMED], parts)
    }
}
