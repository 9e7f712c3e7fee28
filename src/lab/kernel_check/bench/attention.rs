//! Attention, forward and backward: 32 heads of 128 over 8.

use super::super::numbers::{Random, Values, stored};
use super::{Bench, Measured, Timed, median};
use crate::Result;
use crate::cuda::Buffer;
use crate::cuda::ops::attention::{self, Plan, Query, Sequence};
use crate::cuda::ops::attention_backward::{self, Segment};
use crate::cuda::ops::kv::KvLayout;
use crate::dtype::HalfType;
use crate::kv::{BLOCK, BlockId};

const SHAPE: attention::Shape = attention::Shape { heads: 32, kv_heads: 8, head: 128, scale: 0.088, window: None };
const LAYOUT: KvLayout = KvLayout { layers: 1, kv_heads: SHAPE.kv_heads, head: SHAPE.head };

pub fn cases() -> Vec<Timed> {
    let mut cases: Vec<Timed> = Vec::new();
    for (branches, shared, own, queries) in
        [(1, 0, 1024, 1), (8, 960, 64, 1), (25, 960, 64, 1), (64, 0, 1024, 1), (8, 960, 64, 16), (1, 0, 2048, 2048)]
    {
        let work = Branches::new(branches, shared, own, queries);
        cases.push(("attention", work.name(), Box::new(move |device| forward(device, &work))));
    }
    // Segments of 16 tokens behind a prefix: of one candidate, eight, and twenty-five.
    for branches in [1, 8, 25] {
        let work = Branches::new(branches, 960, 80, 16);
        cases.push(("attention_backward", work.name(), Box::new(move |device| backward(device, &work))));
    }
    cases
}

/// The last positions of each of some branches, which have a prefix in common.
struct Branches {
    count: usize,
    shared: usize,
    own: usize,
    queries: usize,
    blocks: Vec<Vec<BlockId>>,
    /// Of all branches, by branch.
    all: Vec<Query>,
}

impl Branches {
    fn new(count: usize, shared: usize, own: usize, queries: usize) -> Self {
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

    fn name(&self) -> String {
        let Branches { count, shared, own, queries, .. } = self;
        format!("bf16 32 heads of 128 over 8, {count} x {queries} of {shared} + {own}")
    }

    fn pages(&self) -> usize {
        self.shared.div_ceil(BLOCK) + self.count * self.own.div_ceil(BLOCK)
    }

    fn sequences(&self) -> Vec<Sequence<'_>> {
        let queries = self.all.chunks(self.queries);
        self.blocks.iter().zip(queries).map(|(blocks, queries)| Sequence { blocks, queries }).collect()
    }

    /// Keys seen, summed over the queries.
    fn seen(&self) -> usize {
        self.all.iter().map(|query| query.position as usize + 1).sum()
    }

    /// Pools of keys and values, together larger than any cache.
    fn pools(&self, device: &Bench<'_>) -> Result<Vec<Buffer<u16>>> {
        let drawn = stored(HalfType::Bf16, &Random::named("bench").vector(LAYOUT.block(), Values::Normal(1.0)));
        let len = self.pages() * LAYOUT.block();
        let pool: Vec<u16> = drawn.iter().copied().cycle().take(len).collect();
        (0..device.sets(2 * len)).map(|_| Buffer::from_slice(device, &pool)).collect()
    }

    /// Rows of queries, outputs or their gradients.
    fn rows(&self, device: &Bench<'_>, name: &str) -> Result<Buffer<u16>> {
        let len = self.all.len() * SHAPE.heads * SHAPE.head;
        Buffer::from_slice(device, &stored(HalfType::Bf16, &Random::named(name).vector(len, Values::Normal(1.0))))
    }

    fn scratch(&self, device: &Bench<'_>) -> Result<attention::Scratch> {
        let parts = self.all.len().min(1024) * (self.shared + self.own).div_ceil(256);
        attention::Scratch::new(device, &[SHAPE], parts)
    }
}

fn forward(device: &Bench<'_>, work: &Branches) -> Result<Measured> {
    let mut scratch = work.scratch(device)?;
    let plan = Plan::new(&SHAPE, &work.sequences(), scratch.limits(device, &SHAPE))?;
    let words = Buffer::from_slice(device, plan.words())?;
    let (q, pools) = (work.rows(device, "bench q")?, work.pools(device)?);
    let mut out = Buffer::<u16>::uninitialised(device, q.len())?;
    let seconds = median(device, pools.len(), |i| {
        let pool = pools[i].view();
        let inputs = attention::Inputs { storage: HalfType::Bf16, q: q.view(), pool, layout: LAYOUT, layer: 0 };
        let mut output = attention::Output { out: out.view_mut(), lse: None };
        attention::attention(device, &mut output, inputs, words.view(), &plan, &mut scratch)
    })?;
    let bytes = 2 * (work.pages() * LAYOUT.block() + 2 * q.len());
    Ok((seconds, bytes as f64, 4.0 * (work.seen() * SHAPE.heads * SHAPE.head) as f64))
}

fn backward(device: &Bench<'_>, work: &Branches) -> Result<Measured> {
    let mut parts = work.scratch(device)?;
    let rows = work.all.len();
    let mut scratch = attention_backward::Scratch::new(device, SHAPE.heads, rows)?;
    let (len, start) = (work.queries, (work.shared + work.own - work.queries) as u32);
    let segments = work.blocks.iter().zip(work.all.chunks(len)).enumerate().map(|(index, (blocks, queries))| {
        let row = (index * len) as u32;
        Segment { blocks, start, len: len as u32, row, queries }
    });
    let keys = attention_backward::Plan::new(&SHAPE, &segments.collect::<Vec<_>>())?;
    let plan = Plan::new(&SHAPE, &work.sequences(), parts.limits(device, &SHAPE))?;
    let words = [Buffer::from_slice(device, plan.words())?, Buffer::from_slice(device, keys.words())?];
    let [q, out, d_out] = ["bench q", "bench out", "bench d_out"].map(|name| work.rows(device, name));
    let (q, out, d_out, pools) = (q?, out?, d_out?, work.pools(device)?);
    // What the logarithm of a thousand terms of a few units is.
    let lse = Buffer::from_slice(device, &vec![9.0f32; rows * SHAPE.heads])?;
    let mut dq = Buffer::<f32>::uninitialised(device, q.len())?;
    let kv = rows * SHAPE.kv_heads * SHAPE.head;
    let (mut dk, mut dv) = (Buffer::<f32>::uninitialised(device, kv)?, Buffer::<f32>::uninitialised(device, kv)?);
    let seconds = median(device, pools.len(), |i| {
        let inputs = attention_backward::Inputs {
            storage: HalfType::Bf16,
            q: q.view(),
            pool: pools[i].view(),
            layout: LAYOUT,
            layer: 0,
            out: out.view(),
            lse: lse.view(),
            d_out: d_out.view(),
        };
        let mut output = attention_backward::Output { q: dq.view_mut(), k: dk.view_mut(), v: dv.view_mut() };
        let lists = attention_backward::Work { queries: (&plan, words[0].view()), keys: (&keys, words[1].view()) };
        attention_backward::attention_backward(device, &mut output, inputs, lists, &mut parts, &mut scratch)
    })?;
    // Keys and values once; queries, outputs and their gradients once; gradients in f32.
    let bytes = 2 * (work.pages() * LAYOUT.block() + 3 * q.len()) + 4 * (q.len() + 2 * kv + lse.len());
    // Queries against every key: scores, dp, dq. The segment's own keys against its queries: scores, dp, dk, dv.
    let own = work.count * len * (len + 1) / 2;
    let flops = 2.0 * ((3 * work.seen() + 4 * own) * SHAPE.heads * SHAPE.head) as f64;
    Ok((seconds, bytes as f64, flops))
}
