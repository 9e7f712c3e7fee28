//! Cases of `attention`, and what they share with those of Hopper's kernels.

use super::adder::A100;
use super::case::{Case, Check};
use super::errors::{Errors, SMALLEST, half_unit};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::paged::{Branches, LAYER, Paged, Spread, TIMED, TIMED_LAYOUT};
use super::rows::ROWS;
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::attention::{
    AttentionProducts, Inputs, Output, Plan, PlanLimits, Query, Scratch, Sequence, Shape, attention,
};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::kv::BLOCK;

const OP: &str = "attention";

/// A sequence: how many of its positions are another one's, how many it has, and the last of them that are queries.
#[derive(Clone, Copy, Debug)]
struct TestSequence {
    parent: Option<(usize, usize)>,
    len: usize,
    queries: usize,
}

const fn alone(len: usize, queries: usize) -> TestSequence {
    TestSequence { parent: None, len, queries }
}

const fn fork(parent: usize, at: usize, len: usize, queries: usize) -> TestSequence {
    TestSequence { parent: Some((parent, at)), len, queries }
}

/// Contexts around the sizes of pages and chunks, one new token each.
const DECODE: &[TestSequence] =
    &[alone(1, 1), alone(63, 1), alone(64, 1), alone(65, 1), alone(255, 1), alone(256, 1), alone(257, 1)];
const LONG: &[TestSequence] = &[alone(700, 1), alone(513, 1), alone(20, 1)];
/// Where three are walked at a time, the long one is cut along its keys and the others are not.
const ONE_LONG: &[TestSequence] =
    &[alone(300, 1), alone(300, 1), alone(1500, 1), alone(300, 1), alone(300, 1), alone(300, 1)];
const SEGMENTS: &[TestSequence] = &[alone(65, 5), alone(257, 64), alone(64, 64), alone(300, 1)];
const PREFILL: &[TestSequence] = &[alone(130, 130), alone(3, 3)];
const CONTINUED: &[TestSequence] = &[alone(700, 130)];
/// Branches that part inside a chunk, at and off a block's end, and one that shares nothing.
const FORKS: &[TestSequence] = &[
    alone(330, 1),
    fork(0, 320, 329, 1),
    fork(0, 320, 341, 5),
    fork(0, 128, 330, 1),
    fork(3, 300, 310, 2),
    fork(0, 64, 65, 1),
    alone(330, 1),
];

/// Branches that share one page of a chunk, each with three of its own: an item has many pages that some of its rows do not see.
const MANY_BRANCHES: &[TestSequence] = &{
    let mut branches = [fork(0, 64, 200, 5); 18];
    branches[0] = alone(200, 5);
    branches
};

/// More of them, with fewer queries: the first tile's last page is followed by more pages of the second than a kernel looks ahead,
/// and then their chunk ends.
const MORE_BRANCHES: &[TestSequence] = &{
    let mut branches = [fork(0, 64, 200, 4); 24];
    branches[0] = alone(200, 4);
    branches
};

pub fn cases() -> Vec<Case> {
    cases_of(OP, AttentionProducts::Mma)
}

/// The cases with one way to multiply, those of which there are kernels.
pub fn cases_of(op: &'static str, products: AttentionProducts) -> Vec<Case> {
    let mut cases = Vec::new();
    let has = |head: usize| products == AttentionProducts::Mma || head >= 64;
    let by = match products {
        AttentionProducts::Mma => "",
        AttentionProducts::Both => ", many by wgmma",
        AttentionProducts::Wgmma => ", all by wgmma",
    };
    let mut push = |storage: HalfType,
                    head: usize,
                    group: usize,
                    window: Option<usize>,
                    branches: &'static [TestSequence],
                    name: &str,
                    values: Values,
                    spread: Spread| {
        if !has(head) {
            return;
        }
        // Heads of 8 share one: the rows are many enough.
        let kv_heads = if group == 8 || branches.len() == 1 { 1 } else { 2 };
        let shape = Shape { heads: kv_heads * group, kv_heads, head, scale: 1.0 / (head as f32).sqrt(), window };
        let seed = format!("{name}, {} heads of {head} over {kv_heads}", shape.heads);
        let window = window.map_or(String::new(), |window| format!(", window {window}"));
        let case = format!("{} {seed}{window}, {values}, {spread:?}{by}", storage.name());
        cases.push(Case::new(op, case, work(&shape, branches), move |device, check| {
            Problem::new(&seed, storage, shape, branches, values, products).check(device, check, spread)
        }));
    };
    const NORMAL: Values = Values::Normal(1.0);
    // Two chunks and two pages, small enough for every schedule of a checked device.
    const SMALL: &[TestSequence] = &[alone(300, 1)];
    const TINY: &[TestSequence] = &[alone(65, 5)];
    for storage in HalfType::ALL {
        push(storage, 32, 4, Some(60), SMALL, "two chunks", NORMAL, Spread::Device);
        push(storage, 32, 3, None, TINY, "two pages", NORMAL, Spread::Whole);
        push(storage, 32, 5, None, TINY, "two pages", NORMAL, Spread::Whole);
        push(storage, 32, 12, None, TINY, "two pages", NORMAL, Spread::Whole);
    }
    for storage in HalfType::ALL {
        for (head, group) in [(32, 1), (32, 3), (64, 4), (64, 8), (128, 1), (128, 8)] {
            push(storage, head, group, None, DECODE, "decode", NORMAL, Spread::Device);
        }
        for (head, group) in [(32, 8), (64, 3), (128, 4)] {
            push(storage, head, group, None, LONG, "long contexts", Values::Outliers, Spread::Device);
            push(storage, head, group, None, SEGMENTS, "segments", NORMAL, Spread::Device);
            push(storage, head, group, None, FORKS, "forks", NORMAL, Spread::Device);
            push(storage, head, group, None, PREFILL, "prefill", Values::Outliers, Spread::Whole);
        }
    }
    for (head, group) in [(32, 2), (64, 1), (128, 4)] {
        push(HalfType::Bf16, head, group, None, MANY_BRANCHES, "many branches", NORMAL, Spread::Device);
        push(HalfType::Bf16, head, group, None, MORE_BRANCHES, "more branches", NORMAL, Spread::Device);
    }
    for (head, group) in [(32, 4), (64, 1), (128, 3)] {
        push(HalfType::Bf16, head, group, None, CONTINUED, "prefill behind a prefix", NORMAL, Spread::Whole);
        for window in [1, 20, 64, 300] {
            push(HalfType::Bf16, head, group, Some(window), LONG, "long contexts", NORMAL, Spread::Device);
            push(HalfType::F16, head, group, Some(window), FORKS, "forks", NORMAL, Spread::Device);
        }
        push(HalfType::F16, head, group, Some(20), SEGMENTS, "segments", NORMAL, Spread::Whole);
        push(HalfType::F16, head, group, Some(300), CONTINUED, "prefill behind a prefix", NORMAL, Spread::Apart);
    }
    for (storage, head, group, window) in [
        (HalfType::Bf16, 32, 1, None),
        (HalfType::Bf16, 32, 3, Some(70)),
        (HalfType::F16, 64, 4, None),
        (HalfType::Bf16, 128, 4, None),
    ] {
        let shape = Shape { heads: group, kv_heads: 1, head, scale: 1.0 / (head as f32).sqrt(), window };
        if !has(head) {
            continue;
        }
        let name =
            format!("{} rows alone and together, {group} heads of {head}, window {window:?}{by}", storage.name());
        const TOGETHER: &[TestSequence] = &[alone(330, 330), alone(70, 70)];
        cases.push(Case::new(op, name, 6 * work(&shape, TOGETHER), move |device, check| {
            Problem::new("together", storage, shape, TOGETHER, NORMAL, products).alone_and_together(device, check)
        }));
        let name = format!(
            "{} one long context, whole and cut, {group} heads of {head}, window {window:?}{by}",
            storage.name()
        );
        cases.push(Case::new(op, name, 4 * work(&shape, ONE_LONG), move |device, check| {
            Problem::new("one long", storage, shape, ONE_LONG, NORMAL, products).whole_and_cut(device, check)
        }));
        let name =
            format!("{} shared and private pages, {group} heads of {head}, window {window:?}{by}", storage.name());
        cases.push(Case::new(op, name, 3 * work(&shape, FORKS), move |device, check| {
            Problem::new("shared", storage, shape, FORKS, NORMAL, products).shared_and_private(device, check)
        }));
    }
    cases
}

/// Multiply-adds with whole tiles, of which the emulated device does eight in the time of one element.
fn work(shape: &Shape, branches: &[TestSequence]) -> usize {
    let of = |branch: &TestSequence| {
        let rows = (branch.queries * shape.heads / shape.kv_heads).next_multiple_of(16);
        let seen = shape.window.map_or(branch.len, |w| branch.len.min(w + branch.queries)) + BLOCK;
        rows * seen * shape.kv_heads * shape.head / 4
    };
    branches.iter().map(of).sum()
}

/// One query: its sequence and position.
type QueryPosition = (usize, usize);

/// One problem on the host.
#[derive(Clone)]
struct Problem {
    shape: Shape,
    products: AttentionProducts,
    paged: Paged,
    /// `[heads * head]` per query.
    queries: Vec<(QueryPosition, Vec<u16>)>,
}

impl Problem {
    fn new(
        seed: &str,
        storage: HalfType,
        shape: Shape,
        branches: &[TestSequence],
        values: Values,
        products: AttentionProducts,
    ) -> Self {
        let mut random = Random::named(seed);
        let mut paged = Paged::new(storage, &shape, branches.iter().map(|branch| branch.len));
        let mut queries = Vec::new();
        for (sequence, branch) in branches.iter().enumerate() {
            let (blocks, kept) = match branch.parent {
                Some((parent, at)) => (paged.blocks[parent][..at / BLOCK].to_vec(), at),
                None => (Vec::new(), 0),
            };
            paged.sequence(&mut random, blocks, branch.len);
            if let Some((parent, at)) = branch.parent {
                for position in at / BLOCK * BLOCK..at {
                    paged.copy(parent, sequence, position);
                }
            }
            for position in kept..branch.len {
                paged.draw(&mut random, sequence, position, values);
            }
            for position in branch.len - branch.queries..branch.len {
                let q = stored(storage, &random.vector(shape.heads * shape.head, Values::Normal(1.5)));
                queries.push(((sequence, position), q));
            }
        }
        Problem { shape, products, paged, queries }
    }

    /// `[out, lse]` of some of the queries. Their rows lie in any order and with gaps between them.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        chosen: &[usize],
        spread: Spread,
    ) -> Result<Vec<(Vec<u16>, Vec<f32>)>> {
        let Shape { heads, head, .. } = self.shape;
        let (width, out_width) = (heads * head, self.shape.width());
        let rows = chosen.len() + 2;
        let row = |i: usize| (i * 7 + 3) % rows;
        let (row, out_row) = if rows.is_multiple_of(7) {
            ((0..rows).collect::<Vec<_>>(), (0..rows).rev().collect::<Vec<_>>())
        } else {
            ((0..rows).map(row).collect(), (0..rows).map(|i| row(rows - 1 - i)).collect())
        };
        let mut q = vec![0xffff; rows * width];
        let mut by_sequence: Vec<Vec<Query>> = vec![Vec::new(); self.paged.blocks.len()];
        for (i, &c) in chosen.iter().enumerate() {
            let ((sequence, position), values) = &self.queries[c];
            q[row[i] * width..][..width].copy_from_slice(values);
            let query = Query { row: row[i] as u32, out: out_row[i] as u32, position: *position as u32 };
            by_sequence[*sequence].push(query);
        }
        let sequences =
            self.paged.blocks.iter().zip(&by_sequence).map(|(blocks, queries)| Sequence { blocks, queries });
        let sequences: Vec<Sequence<'_>> = sequences.filter(|sequence| !sequence.queries.is_empty()).collect();
        let parts: usize = chosen.iter().map(|&c| self.queries[c].0.1 / 256 + 1).sum();
        let mut scratch = Scratch::new(device, &[self.shape], parts)?;
        let limits = PlanLimits { products: self.products, ..spread.limits(device, &scratch, &self.shape, parts) };
        let plan = Plan::new(&self.shape, &sequences, limits)?;
        let work = Guarded::input(device, plan.words())?;
        let (q, pool) = (Guarded::input(device, &q)?, Guarded::input(device, &self.paged.pool)?);
        let Paged { storage, layout, .. } = self.paged;
        let inputs = Inputs { storage, q: q.view(), pool: pool.view(), layout, layer: LAYER };
        let mut launch = |check: &mut Check, with_lse: bool| -> Result<(Vec<u16>, Vec<f32>)> {
            let mut out = Guarded::output(device, rows * out_width, 0)?;
            let mut lse = Guarded::output(device, rows * heads, 0)?;
            let mut output = Output { out: out.view_mut(), lse: with_lse.then(|| lse.view_mut()) };
            attention(device, &mut output, inputs, work.view(), &plan, &mut scratch)?;
            Ok((out.read(device, check, "out")?, lse.read(device, check, "lse")?))
        };
        let (out, lse) = launch(check, true)?;
        // Into fresh buffers: the tickets are back at zero.
        let (again, unasked) = launch(check, false)?;
        check.same("out, run again", &again, &out);
        // In a shape that other batches have too.
        let filled = plan.filled(limits);
        let words = Guarded::input(device, filled.words())?;
        let mut in_frame = Guarded::output(device, rows * out_width, 0)?;
        let mut output = Output { out: in_frame.view_mut(), lse: None };
        attention(device, &mut output, inputs, words.view(), &filled, &mut scratch)?;
        let in_frame = in_frame.read(device, check, "out")?;
        check.same("out, filled up", &in_frame, &out);
        if unasked.iter().any(|x| x.to_bits() != u32::MAX) {
            check.fail("lse was written although it was not asked for");
        }
        for unnamed in (0..rows).filter(|r| !out_row[..chosen.len()].contains(r)) {
            if out[unnamed * out_width..][..out_width].iter().any(|&x| x != 0xffff) {
                check.fail(format!("row {unnamed} of out was written, no query names it"));
            }
        }
        let result = out_row[..chosen.len()].iter().map(|&r| {
            let (row, rest) = out[r * out_width..][..out_width].split_at(width);
            if rest.iter().any(|&x| x != 0xffff) {
                check.fail(format!("columns of row {r} beyond {width} were written"));
            }
            (row.to_vec(), lse[r * heads..][..heads].to_vec())
        });
        Ok(result.collect())
    }

    fn all(&self) -> Vec<usize> {
        (0..self.queries.len()).collect()
    }

    fn check(&self, device: &Device, check: &mut Check, spread: Spread) -> Result<()> {
        let found = self.run(device, check, &self.all(), spread)?;
        let (storage, Shape { heads, kv_heads, head, scale, window }) = (self.paged.storage, self.shape);
        let pool = widened(storage, &self.paged.pool);
        let mut errors = Errors::default();
        for (((sequence, position), q), (out, lse)) in self.queries.iter().zip(&found) {
            let lowest = window.map_or(0, |w| (position + 1).saturating_sub(w));
            let q = widened(storage, q);
            for h in 0..heads {
                let q = &q[h * head..(h + 1) * head];
                let rows = |value: bool| -> Vec<&[f32]> {
                    let at = |j| self.paged.at(*sequence, j, value, h / (heads / kv_heads));
                    (lowest..position + 1).map(|j| &pool[at(j)..][..head]).collect()
                };
                let (keys, values) = (rows(false), rows(true));
                let exact = exact(q, &keys, &values, scale);
                let simulated = simulated(storage, q, &keys, &values, scale);
                check.close(|| format!("lse of head {h} at {position}"), f64::from(lse[h]), exact.lse);
                for d in 0..head {
                    let found = storage.widen(out[h * head + d]);
                    errors.add(found, simulated[d], exact.out[d], exact.terms[d] + SMALLEST);
                }
            }
        }
        errors.check(check, "out", 2.0, half_unit(storage));
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let all = self.run(device, check, &self.all(), Spread::Whole)?;
        let compare = |check: &mut Check, chosen: &[usize], spread: Spread, what: &str| -> Result<()> {
            let found = self.run(device, check, chosen, spread)?;
            for (&c, (out, lse)) in chosen.iter().zip(&found) {
                let (_, position) = self.queries[c].0;
                check.same(&format!("out at {position}, {what}, {spread:?}"), out, &all[c].0);
                check.same(&format!("lse at {position}, {what}, {spread:?}"), lse, &all[c].1);
            }
            Ok(())
        };
        compare(check, &self.all(), Spread::Apart, "all together")?;
        for one in [0, 62, 63, 64, 128, 255, 256, 257, 320, 329, 399] {
            compare(check, &[one], Spread::Device, "alone")?;
        }
        for many in ROWS {
            let chosen: Vec<usize> = (0..many).map(|i| (i * 397 + 329) % self.queries.len()).collect();
            let mut sorted = chosen.clone();
            sorted.sort_unstable();
            sorted.dedup();
            compare(check, &sorted, Spread::Device, &format!("{many} together"))?;
        }
        for piece in [63, 64, 65] {
            for (from, spread) in
                (0..330).step_by(piece).zip([Spread::Device, Spread::Apart, Spread::Whole].iter().cycle())
            {
                let chosen: Vec<usize> = (from..(from + piece).min(330)).collect();
                compare(check, &chosen, *spread, &format!("a piece of {piece}"))?;
            }
        }
        Ok(())
    }

    /// However work is spread, and each query alone.
    fn whole_and_cut(&self, device: &Device, check: &mut Check) -> Result<()> {
        let whole = self.run(device, check, &self.all(), Spread::Whole)?;
        let mut compare = |chosen: &[usize], spread: Spread| -> Result<()> {
            let found = self.run(device, check, chosen, spread)?;
            for (&c, (out, lse)) in chosen.iter().zip(&found) {
                check.same(&format!("out of sequence {c} of {}, {spread:?}", chosen.len()), out, &whole[c].0);
                check.same(&format!("lse of sequence {c} of {}, {spread:?}", chosen.len()), lse, &whole[c].1);
            }
            Ok(())
        };
        compare(&self.all(), Spread::Apart)?;
        compare(&self.all(), Spread::Three)?;
        self.all().into_iter().try_for_each(|one| compare(&[one], Spread::Three))
    }

    /// Branches that share pages, the same with private copies of all pages, and in a batch with a sequence of NaN.
    fn shared_and_private(&self, device: &Device, check: &mut Check) -> Result<()> {
        let shared = self.run(device, check, &self.all(), Spread::Device)?;
        let private = Problem { paged: self.paged.private(), ..self.clone() };
        let compare = |check: &mut Check, problem: &Problem, skip: usize, what: &str| -> Result<()> {
            let found = problem.run(device, check, &problem.all(), Spread::Device)?;
            for ((((sequence, position), _), found), expected) in problem.queries.iter().zip(&found).zip(&shared) {
                if *sequence != skip {
                    let at = format!("position {position} of sequence {sequence}, {what}");
                    check.same(&format!("out of {at}"), &found.0, &expected.0);
                    check.same(&format!("lse of {at}"), &found.1, &expected.1);
                }
            }
            Ok(())
        };
        compare(check, &private, usize::MAX, "with private pages")?;
        // What only the third sequence sees becomes NaN.
        let mut broken = self.clone();
        broken.paged.spoil(2, 320..341);
        compare(check, &broken, 2, "beside a sequence of NaN")
    }
}

/// Attention of one query and head in f64.
pub(super) struct Exact {
    pub out: Vec<f64>,
    /// Sums of absolute terms: what rounding is measured by.
    pub terms: Vec<f64>,
    pub lse: f64,
}

pub(super) fn exact(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Exact {
    let dot =
        |k: &&[f32]| q.iter().zip(k.iter()).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() * f64::from(scale);
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let mut exact = Exact { out: vec![0.0; q.len()], terms: vec![0.0; q.len()], lse: top + sum.ln() };
    for (s, value) in scores.iter().zip(values) {
        let p = (s - top).exp() / sum;
        for (d, &v) in value.iter().enumerate() {
            exact.out[d] += p * f64::from(v);
            exact.terms[d] += p * f64::from(v).abs();
        }
    }
    exact
}

/// The same in f32, with sums as the coarser of the cards' adders makes them, and exponentials and output in the storage
/// type; without chunks, and with the maximum known beforehand.
fn simulated(storage: HalfType, q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f32> {
    let scores: Vec<f32> = keys.iter().map(|k| A100.dot(q, k)).collect();
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let p: Vec<f32> = scores.iter().map(|s| ((s - top) * scale).exp()).collect();
    let sum: f32 = p.iter().sum();
    let p: Vec<f32> = p.iter().map(|&p| storage.widen(storage.round(p))).collect();
    let of = |d: usize| {
        let column: Vec<f32> = values.iter().map(|value| value[d]).collect();
        storage.widen(storage.round(A100.dot(&p, &column) / sum))
    };
    (0..q.len()).map(of).collect()
}

pub fn timings() -> Vec<Timed> {
    timings_of(OP, AttentionProducts::Mma)
}

/// Timings with one way to multiply.
pub fn timings_of(op: &'static str, products: AttentionProducts) -> Vec<Timed> {
    let timed = |(branches, shared, own, queries)| {
        let work = Branches::new(branches, shared, own, queries);
        Timed::new(op, work.name(), move |device| time(device, &work, products))
    };
    [(1, 0, 1024, 1), (8, 960, 64, 1), (25, 960, 64, 1), (64, 0, 1024, 1), (8, 960, 64, 16), (1, 0, 2048, 2048)]
        .map(timed)
        .into()
}

fn time(device: &Bench<'_>, work: &Branches, products: AttentionProducts) -> Result<Measured> {
    let mut scratch = work.scratch(device)?;
    let limits = PlanLimits { products, ..scratch.limits(device, &TIMED) };
    let plan = Plan::new(&TIMED, &work.sequences(), limits)?;
    let words = Buffer::from_slice(device, plan.words())?;
    let (q, mut pools) = (work.rows(device, "bench q")?, work.pools(device)?);
    let mut out = Buffer::<u16>::uninitialised(device, q.len())?;
    let seconds = device.median(&mut pools, |pool| {
        let (q, pool) = (q.view(), pool.view());
        let inputs = Inputs { storage: HalfType::Bf16, q, pool, layout: TIMED_LAYOUT, layer: 0 };
        let mut output = Output { out: out.view_mut(), lse: None };
        attention(device, &mut output, inputs, words.view(), &plan, &mut scratch)
    })?;
    let bytes = 2 * (work.pages() * TIMED_LAYOUT.block() + 2 * q.len());
    Ok(Measured::bytes(seconds, bytes).flops(4.0 * (work.seen() * TIMED.heads * TIMED.head) as f64))
}
