//! Problems of attention, by every kernel of both directions.

use super::case::{Case, CheckOutput, CheckRun};
use super::numbers::{halves, stored, unwritten, wide, widened};
use crate::Result;
use crate::cuda::buffer::Buffer;

use crate::cuda::ops::attention::{
    self, AttentionProducts, Inputs, Plan, PlanLimits, Query, Scratch, Sequence, Shape, attention, sm90,
};
use crate::cuda::ops::attention_backward::{self as back, attention_backward};
use crate::cuda::ops::kv::KvLayout;
use crate::dtype::HalfType;
use crate::kv::{BLOCK, BlockId};

/// Queries of two heads: of the kernels for few, some and many rows.
pub(crate) const QUERIES: [usize; 3] = [5, 13, 29];
/// Sizes of heads.
pub(crate) const HEADS: [usize; 3] = [32, 64, 128];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for head in HEADS {
        for queries in QUERIES {
            let name = format!("{queries} queries, heads of {head}");
            let (forward, backward) = (format!("attention_{head}"), Context::backward(head, queries));
            cases.push(Case::of_both("attention", &name, &forward, move |device, storage| {
                Context::new(head).run(device, storage, queries, 1, AttentionProducts::Mma)
            }));
            cases.push(Case::of_both("attention_backward", &name, &backward, move |device, storage| {
                Context::new(head).run_backward(device, storage, queries)
            }));
        }
    }
    cases
}

/// Of Hopper's kernels: items of one tile and, where the same queries are there twice, of two. Those of every card, which take items
/// of few rows, must give the same bits.
pub(super) fn sm90_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for head in HEADS.into_iter().filter(|&head| sm90::fits(&Context::shape(head))) {
        for (queries, copies) in QUERIES.into_iter().map(|queries| (queries, 1)).chain([(QUERIES[2], 2)]) {
            let name = format!("{copies} x {queries} queries, heads of {head}");
            cases.push(Case::of_both("attention_sm90", &name, &format!("attention_{head}"), move |device, storage| {
                Context::new(head).run(device, storage, queries, copies, AttentionProducts::Wgmma)
            }));
        }
        let name = format!("{} queries, heads of {head}, by mma", QUERIES[0]);
        cases.push(Case::of_both("attention_sm90", &name, &format!("attention_{head}"), move |device, storage| {
            Context::new(head).run(device, storage, QUERIES[0], 1, AttentionProducts::Mma)
        }));
    }
    cases
}

/// One sequence whose last positions are queries. Row `i` of everything is the `i`-th from its end, so that the results of
/// fewer queries are the first ones of more.
pub(crate) struct Context {
    pub shape: Shape,
    /// `[LEN, head]`.
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    /// `[29, 2 head]`.
    pub queries: Vec<f32>,
    pub d_out: Vec<f32>,
}

impl Context {
    /// Positions: two chunks.
    pub const LEN: usize = 300;
    /// Blocks, in order of positions.
    const BLOCKS: [BlockId; 5] = [BlockId(3), BlockId(0), BlockId(4), BlockId(1), BlockId(2)];
    const LAYERS: usize = 2;
    const LAYER: usize = 1;
    /// Of the elements of an output, every so many are looked at: no divisor of a tile's sides.
    pub const STEP: usize = 13;
    /// The same of gradients.
    pub const STEP_BACK: usize = 29;

    pub fn new(head: usize) -> Self {
        let shape = Self::shape(head);
        let named = |what: &str| format!("attention {head} {what}");
        let most = QUERIES[2] * shape.heads * head;
        Context {
            shape,
            keys: halves(&named("keys"), Self::LEN * head, 1.0),
            values: halves(&named("values"), Self::LEN * head, 1.0),
            queries: halves(&named("queries"), most, 1.5),
            d_out: halves(&named("d_out"), most, 1.0),
        }
    }

    fn shape(head: usize) -> Shape {
        // A window that leaves one chunk, too.
        let window = (head == 64).then_some(40);
        Shape { heads: 2, kv_heads: 1, head, scale: 1.0 / (head as f32).sqrt(), window }
    }

    /// The name of the results of a backward pass, which depend on how many queries there are.
    pub fn backward(head: usize, queries: usize) -> String {
        format!("attention_backward_{head}_{queries}")
    }

    fn layout(&self) -> KvLayout {
        KvLayout { layers: Self::LAYERS, kv_heads: 1, head: self.shape.head }
    }

    fn pool(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Buffer<u16>> {
        let (layout, head) = (self.layout(), self.shape.head);
        let mut pool = vec![0xffff; Self::BLOCKS.len() * layout.block()];
        for (plane, rows) in [&self.keys, &self.values].into_iter().enumerate() {
            for (position, row) in rows.chunks_exact(head).enumerate() {
                let start = Self::BLOCKS[position / BLOCK].0 as usize * layout.block() + layout.layer(Self::LAYER);
                let at = start + (plane * BLOCK + position % BLOCK) * head;
                for (to, &x) in pool[at..at + head].iter_mut().zip(row) {
                    *to = storage.round(x);
                }
            }
        }
        Buffer::from_slice(device, &pool)
    }

    /// In ascending order of positions; results come from row `first` on.
    fn asked(queries: usize, first: usize) -> Vec<Query> {
        let query = |row: u32| Query { row, out: first as u32 + row, position: Self::LEN as u32 - 1 - row };
        (0..queries as u32).rev().map(query).collect()
    }

    /// The forward pass, of which the backward one takes everything. The same queries so many times, as sequences that share all pages.
    fn forward(
        &self,
        device: &CheckRun<'_>,
        storage: HalfType,
        queries: usize,
        copies: usize,
        products: AttentionProducts,
    ) -> Result<AttentionForward> {
        let width = self.shape.heads * self.shape.head;
        let asked: Vec<Vec<Query>> = (0..copies).map(|copy| Self::asked(queries, copy * queries)).collect();
        let sequences: Vec<Sequence<'_>> =
            asked.iter().map(|queries| Sequence { blocks: &Self::BLOCKS, queries }).collect();
        let mut scratch = Scratch::new(device, &[self.shape], 2 * queries * copies)?;
        let limits = PlanLimits { products, ..scratch.limits(device, &self.shape) };
        let plan = Plan::new(&self.shape, &sequences, limits)?;
        let words = Buffer::from_slice(device, plan.words())?;
        let q = stored(device, storage, &self.queries[..queries * width])?;
        let pool = self.pool(device, storage)?;
        let mut out = unwritten(device, copies * queries * self.shape.width())?;
        let mut lse = unwritten(device, copies * queries * self.shape.heads)?;
        let mut output = attention::Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        let (layout, layer) = (self.layout(), Self::LAYER);
        let inputs = Inputs { storage, q: q.view(), pool: pool.view(), layout, layer };
        attention(device, &mut output, inputs, words.view(), &plan, &mut scratch)?;
        let asked = asked.into_iter().next().unwrap_or_default();
        Ok(AttentionForward { asked, scratch, plan, words, q, pool, out, lse })
    }

    fn run(
        &self,
        device: &CheckRun<'_>,
        storage: HalfType,
        queries: usize,
        copies: usize,
        products: AttentionProducts,
    ) -> Result<Vec<CheckOutput>> {
        let AttentionForward { out, lse, .. } = self.forward(device, storage, queries, copies, products)?;
        let (out, lse) = (widened(storage, &device.finished(&out)?), wide(&device.finished(&lse)?));
        // Of each copy.
        let out = out.chunks_exact(queries * self.shape.width());
        let out = out.map(|out| CheckOutput::new("out", out.to_vec()).every(Self::STEP));
        let lse = lse.chunks_exact(queries * self.shape.heads).map(|lse| CheckOutput::new("lse", lse.to_vec()));
        Ok(out.chain(lse).collect())
    }

    fn run_backward(&self, device: &CheckRun<'_>, storage: HalfType, queries: usize) -> Result<Vec<CheckOutput>> {
        let Shape { heads, head, .. } = self.shape;
        let AttentionForward { asked, mut scratch, plan, words, q, pool, out, lse } =
            self.forward(device, storage, queries, 1, AttentionProducts::Mma)?;
        let (start, len) = ((Self::LEN - queries) as u32, queries as u32);
        let segment = back::KeySegment { blocks: &Self::BLOCKS, start, len, row: 0, queries: &asked };
        let keys = back::Plan::new(&self.shape, &[segment])?;
        let key_words = Buffer::from_slice(device, keys.words())?;
        let d_out = stored(device, storage, &self.d_out[..queries * heads * head])?;
        let inputs = back::Inputs {
            storage,
            q: q.view(),
            pool: pool.view(),
            layout: self.layout(),
            layer: Self::LAYER,
            out: out.view(),
            lse: lse.view(),
            d_out: d_out.view(),
        };
        let mut dq = unwritten(device, queries * heads * head)?;
        let (mut dk, mut dv) = (unwritten(device, queries * head)?, unwritten(device, queries * head)?);
        let mut output = back::Output { q: dq.view_mut(), k: dk.view_mut(), v: dv.view_mut() };
        let work = back::BackwardLists { queries: (&plan, words.view()), keys: (&keys, key_words.view()) };
        let mut deltas = back::Scratch::new(device, heads, queries)?;
        attention_backward(device, &mut output, inputs, work, &mut scratch, &mut deltas)?;
        let of = |name, found: Vec<f32>| CheckOutput::new(name, wide(&found)).every(Self::STEP_BACK);
        Ok(vec![of("dq", device.finished(&dq)?), of("dk", device.finished(&dk)?), of("dv", device.finished(&dv)?)])
    }
}

/// What a forward pass took and gave.
struct AttentionForward {
    asked: Vec<Query>,
    scratch: Scratch,
    plan: Plan,
    words: Buffer<u32>,
    q: Buffer<u16>,
    pool: Buffer<u16>,
    out: Buffer<u16>,
    lse: Buffer<f32>,
}
