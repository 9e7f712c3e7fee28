//! Cases of `attention_backward`.

use super::adder::A100;
use super::case::{Case, Check};
use super::errors::{Errors, SMALLEST, half_unit};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::paged::{Branches, LAYER, Paged, Spread, TIMED, TIMED_LAYOUT};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::attention::{self, Query, Sequence, Shape};
use crate::cuda::ops::attention_backward::{
    BackwardLists, Inputs, KeySegment, Output, Plan, Scratch, attention_backward,
};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::kv::BLOCK;

const OP: &str = "attention_backward";

/// Which of a segment's queries have a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
enum QueryChoice {
    All,
    Last,
    EveryThird,
    None,
}

/// A constant prefix and the positions after it. The first `shared` positions, whole blocks, are those of the first part.
#[derive(Clone, Copy, Debug)]
struct SegmentCase {
    shared: usize,
    prefix: usize,
    len: usize,
    queries: QueryChoice,
}

const fn all(prefix: usize, len: usize) -> SegmentCase {
    SegmentCase { shared: 0, prefix, len, queries: QueryChoice::All }
}

const fn some(prefix: usize, len: usize, queries: QueryChoice) -> SegmentCase {
    SegmentCase { shared: 0, prefix, len, queries }
}

const fn fork(shared: usize, prefix: usize, len: usize) -> SegmentCase {
    SegmentCase { shared, prefix, len, queries: QueryChoice::All }
}

const SMALL: &[SegmentCase] = &[all(60, 5)];
const TWO_CHUNKS: &[SegmentCase] = &[all(254, 3)];
const SHORT: &[SegmentCase] = &[all(0, 1), all(63, 2), all(64, 17), all(250, 9)];
const MIXED: &[SegmentCase] = &[
    all(0, 66),
    some(70, 20, QueryChoice::Last),
    some(40, 33, QueryChoice::EveryThird),
    some(3, 5, QueryChoice::None),
];
const LAST: &[SegmentCase] =
    &[some(500, 70, QueryChoice::Last), some(10, 130, QueryChoice::Last), some(0, 1, QueryChoice::Last)];
const MIDDLE: &[SegmentCase] = &[all(190, 130), all(7, 40)];
const LONG: &[SegmentCase] = &[all(20, 300)];
const LONG_PREFIX: &[SegmentCase] = &[all(3000, 4)];
const FORKS: &[SegmentCase] = &[all(330, 6), fork(320, 325, 4), fork(64, 130, 3), fork(256, 300, 30)];
/// The first two share blocks, and items of the pass over queries.
const TOGETHER: &[SegmentCase] =
    &[all(200, 70), fork(128, 150, 20), all(0, 65), some(129, 20, QueryChoice::EveryThird), all(530, 3)];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |storage: HalfType,
                    (head, group): (usize, usize),
                    window: Option<usize>,
                    (parts, name): (&'static [SegmentCase], &str),
                    values: Values,
                    spread: Spread| {
        let kv_heads = if group == 8 || parts.len() == 1 { 1 } else { 2 };
        let shape = shape(head, group, kv_heads, window);
        let seed = format!("{name}, {} heads of {head} over {kv_heads}", shape.heads);
        let window = window.map_or(String::new(), |window| format!(", window {window}"));
        let case = format!("{} {seed}{window}, {values}, {spread:?}", storage.name());
        cases.push(Case::new(OP, case, work(&shape, parts), move |device, check| {
            Problem::new(&seed, storage, shape, parts, values).check(device, check, spread)
        }));
    };
    const NORMAL: Values = Values::Normal(1.0);
    for storage in HalfType::ALL {
        for sizes in [(32, 1), (32, 3), (64, 4), (64, 8), (128, 1), (128, 4)] {
            push(storage, sizes, None, (SHORT, "short segments"), NORMAL, Spread::Device);
        }
        for sizes in [(32, 8), (64, 3), (128, 4)] {
            push(storage, sizes, None, (MIXED, "all, some and no queries"), Values::Outliers, Spread::Device);
        }
        for sizes in [(32, 4), (128, 3)] {
            push(storage, sizes, None, (LAST, "last queries"), NORMAL, Spread::Device);
        }
        push(storage, (64, 4), None, (MIDDLE, "segments"), NORMAL, Spread::Whole);
        push(storage, (32, 3), None, (FORKS, "forks"), NORMAL, Spread::Device);
        push(storage, (64, 4), Some(90), (FORKS, "forks"), NORMAL, Spread::Apart);
        for sizes in [(32, 1), (32, 3), (64, 1), (128, 4)] {
            push(storage, sizes, Some(40), (SMALL, "one page"), NORMAL, Spread::Device);
        }
        push(storage, (32, 4), None, (TWO_CHUNKS, "two chunks"), NORMAL, Spread::Apart);
    }
    for (storage, sizes, spread) in [
        (HalfType::Bf16, (32, 4), Spread::Device),
        (HalfType::F16, (64, 3), Spread::Apart),
        (HalfType::Bf16, (128, 1), Spread::Whole),
    ] {
        push(storage, sizes, None, (LONG, "a long segment"), NORMAL, spread);
        push(storage, sizes, Some(100), (LONG, "a long segment"), NORMAL, spread);
        push(storage, sizes, None, (LONG_PREFIX, "a long prefix"), NORMAL, spread);
        push(storage, sizes, Some(2000), (LONG_PREFIX, "a long prefix"), NORMAL, spread);
    }
    for sizes in [(32, 4), (64, 1), (128, 3)] {
        for window in [1, 20, 64, 300] {
            push(HalfType::Bf16, sizes, Some(window), (MIXED, "all, some and no queries"), NORMAL, Spread::Device);
        }
        push(HalfType::F16, sizes, Some(70), (MIDDLE, "segments"), NORMAL, Spread::Whole);
    }
    for (storage, head, group, window) in
        [(HalfType::Bf16, 32, 3, None), (HalfType::F16, 64, 4, Some(70)), (HalfType::Bf16, 128, 8, None)]
    {
        let shape = shape(head, group, 1, window);
        let name =
            format!("{} segments alone and together, {group} heads of {head}, window {window:?}", storage.name());
        cases.push(Case::new(OP, name, 12 * work(&shape, TOGETHER), move |device, check| {
            Problem::new("together", storage, shape, TOGETHER, NORMAL).alone_and_together(device, check)
        }));
    }
    for group in [1, 3] {
        let shape = shape(32, group, 1, None);
        let name = format!("finite differences, {group} heads of 32");
        cases.push(Case::new(OP, name, work(&shape, SMALL), move |device, check| {
            Problem::new("differences", HalfType::F16, shape, SMALL, NORMAL).differences(device, check)
        }));
    }
    cases
}

fn shape(head: usize, group: usize, kv_heads: usize, window: Option<usize>) -> Shape {
    Shape { heads: kv_heads * group, kv_heads, head, scale: 1.0 / (head as f32).sqrt(), window }
}

/// Multiply-adds with half-full tiles.
fn work(shape: &Shape, parts: &[SegmentCase]) -> usize {
    let of = |part: &SegmentCase| {
        let queries = if part.queries == QueryChoice::Last { 1 } else { part.len };
        let seen = shape.window.map_or(part.prefix, |window| part.prefix.min(window)) + part.len;
        (queries * 3 * seen + queries * 4 * part.len) * shape.heads * shape.head
    };
    parts.iter().map(of).sum()
}

/// The positions of one sequence that are differentiated.
#[derive(Clone)]
struct Stretch {
    prefix: usize,
    len: usize,
    queries: Vec<QueryRow>,
}

/// A query that has a gradient.
#[derive(Clone)]
struct QueryRow {
    position: usize,
    q: Vec<u16>,
    out: Vec<u16>,
    lse: Vec<f32>,
    d_out: Vec<u16>,
}

/// One problem on the host.
#[derive(Clone)]
struct Problem {
    shape: Shape,
    paged: Paged,
    /// Of each sequence.
    stretches: Vec<Stretch>,
}

/// What a launch gives for one segment: per query, and per position.
#[derive(Debug, PartialEq)]
struct SegmentGradients {
    dq: Vec<Vec<f32>>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Problem {
    fn new(seed: &str, storage: HalfType, shape: Shape, parts: &[SegmentCase], values: Values) -> Self {
        let mut random = Random::named(seed);
        let paged = Paged::new(storage, &shape, parts.iter().map(|part| part.prefix + part.len));
        let mut problem = Problem { shape, paged, stretches: Vec::new() };
        for (index, part) in parts.iter().enumerate() {
            let &SegmentCase { shared, prefix, len, queries } = part;
            let blocks = problem.paged.blocks.first().map_or(Vec::new(), |first| first[..shared / BLOCK].to_vec());
            problem.paged.sequence(&mut random, blocks, prefix + len);
            problem.stretches.push(Stretch { prefix, len, queries: Vec::new() });
            for position in shared..prefix + len {
                problem.paged.draw(&mut random, index, position, values);
            }
            let chosen = |offset: &usize| match queries {
                QueryChoice::All => true,
                QueryChoice::Last => offset + 1 == len,
                QueryChoice::EveryThird => offset % 3 == 1,
                QueryChoice::None => false,
            };
            for offset in (0..len).filter(chosen) {
                let width = shape.heads * shape.head;
                let q = stored(storage, &random.vector(width, Values::Normal(1.5)));
                let d_out = stored(storage, &random.vector(width, Values::Normal(1.0)));
                let mut row = QueryRow { position: prefix + offset, q, out: Vec::new(), lse: Vec::new(), d_out };
                for head in 0..shape.heads {
                    let exact = problem.exact(index, &row, head);
                    row.out.extend(exact.out.iter().map(|&x| storage.round(x as f32)));
                    row.lse.push(exact.lse as f32);
                }
                problem.stretches[index].queries.push(row);
            }
        }
        problem
    }

    fn lowest(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// One query and head in f64.
    fn exact(&self, stretch: usize, row: &QueryRow, head: usize) -> Exact {
        let size = self.shape.head;
        let of = |bits: &[u16]| widened(self.paged.storage, &bits[head * size..(head + 1) * size]);
        let (q, d_out) = (of(&row.q), of(&row.d_out));
        let kv_head = head / (self.shape.heads / self.shape.kv_heads);
        let lowest = self.lowest(row.position);
        let all =
            |value| (lowest..row.position + 1).map(|j| self.paged.get(stretch, j, value, kv_head)).collect::<Vec<_>>();
        Exact::new(q, d_out, lowest, (all(false), all(true)), f64::from(self.shape.scale))
    }

    /// Gradients of some of the segments, in this order, with gaps between their rows.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        chosen: &[usize],
        spread: Spread,
    ) -> Result<Vec<SegmentGradients>> {
        let Shape { heads, kv_heads, head, .. } = self.shape;
        let (width, out_width, kv_width) = (heads * head, self.shape.width(), kv_heads * head);
        let stretches: Vec<&Stretch> = chosen.iter().map(|&index| &self.stretches[index]).collect();
        let rows: usize = stretches.iter().map(|stretch| stretch.len + 3).sum();
        let rows_out: usize = 1 + stretches.iter().map(|stretch| stretch.queries.len()).sum::<usize>();
        let mut q = vec![0xffff; rows * width];
        let (mut out, mut d_out) = (vec![0xffff; rows_out * out_width], vec![0xffff; rows_out * out_width]);
        let mut lse = vec![f32::NAN; rows_out * heads];
        let (mut queries, mut first, mut last_out) = (Vec::new(), Vec::new(), rows_out);
        let mut row = 2;
        for stretch in &stretches {
            first.push(row);
            let mut mine = Vec::new();
            for query in &stretch.queries {
                last_out -= 1;
                let at = row + query.position - stretch.prefix;
                mine.push(Query { row: at as u32, out: last_out as u32, position: query.position as u32 });
                q[at * width..][..width].copy_from_slice(&query.q);
                out[last_out * out_width..][..width].copy_from_slice(&query.out);
                d_out[last_out * out_width..][..width].copy_from_slice(&query.d_out);
                lse[last_out * heads..][..heads].copy_from_slice(&query.lse);
            }
            queries.push(mine);
            row += stretch.len + 3;
        }
        let sequences: Vec<Sequence<'_>> = chosen
            .iter()
            .zip(&queries)
            .filter(|(_, queries)| !queries.is_empty())
            .map(|(&index, queries)| Sequence { blocks: &self.paged.blocks[index], queries })
            .collect();
        let segments = chosen.iter().zip(&queries).zip(&first).map(|((&index, queries), &row)| {
            let Stretch { prefix, len, .. } = self.stretches[index];
            let (start, len) = (prefix as u32, len as u32);
            KeySegment { blocks: &self.paged.blocks[index], start, len, row: row as u32, queries }
        });
        let keys = Plan::new(&self.shape, &segments.collect::<Vec<_>>())?;
        let parts: usize = queries.iter().flatten().map(|query| query.position as usize / 256 + 1).sum();
        let mut states = attention::Scratch::new(device, &[self.shape], parts)?;
        let limits = spread.limits(device, &states, &self.shape, parts);
        let plan = attention::Plan::new(&self.shape, &sequences, limits)?;
        let words = [Guarded::input(device, plan.words())?, Guarded::input(device, keys.words())?];
        let (q, pool) = (Guarded::input(device, &q)?, Guarded::input(device, &self.paged.pool)?);
        let (out, d_out, lse) =
            (Guarded::input(device, &out)?, Guarded::input(device, &d_out)?, Guarded::input(device, &lse)?);
        let inputs = Inputs {
            storage: self.paged.storage,
            q: q.view(),
            pool: pool.view(),
            layout: self.paged.layout,
            layer: LAYER,
            out: out.view(),
            lse: lse.view(),
            d_out: d_out.view(),
        };
        let work = BackwardLists { queries: (&plan, words[0].view()), keys: (&keys, words[1].view()) };
        let mut scratch = Scratch::new(device, heads, rows_out)?;
        let mut launch = |check: &mut Check| -> Result<[Vec<f32>; 3]> {
            let mut dq = Guarded::output(device, rows * width, 0)?;
            let (mut dk, mut dv) =
                (Guarded::output(device, rows * kv_width, 0)?, Guarded::output(device, rows * kv_width, 0)?);
            let mut output = Output { q: dq.view_mut(), k: dk.view_mut(), v: dv.view_mut() };
            attention_backward(device, &mut output, inputs, work, &mut states, &mut scratch)?;
            Ok([dq.read(device, check, "dq")?, dk.read(device, check, "dk")?, dv.read(device, check, "dv")?])
        };
        let [dq, dk, dv] = launch(check)?;
        // Into fresh buffers: the tickets are back at zero.
        let again = launch(check)?;
        for (what, again, found) in [("dq", &again[0], &dq), ("dk", &again[1], &dk), ("dv", &again[2], &dv)] {
            check.same(&format!("{what}, run again"), again, found);
        }
        let mut results = Vec::new();
        let (mut named, mut covered) = (vec![false; rows], vec![false; rows]);
        for ((stretch, queries), &row) in stretches.iter().zip(&queries).zip(&first) {
            covered[row..row + stretch.len].fill(true);
            let of = |all: &[f32]| all[row * kv_width..(row + stretch.len) * kv_width].to_vec();
            let rows = queries.iter().map(|query| query.row as usize);
            let dq = rows.inspect(|&row| named[row] = true).map(|row| dq[row * width..][..width].to_vec()).collect();
            results.push(SegmentGradients { dq, dk: of(&dk), dv: of(&dv) });
        }
        for row in 0..rows {
            let untouched = |all: &[f32], width| all[row * width..][..width].iter().all(|x| x.to_bits() == u32::MAX);
            if !named[row] && !untouched(&dq, width) {
                check.fail(format!("row {row} of dq was written, no query names it"));
            }
            let left_alone = untouched(&dk, kv_width) && untouched(&dv, kv_width);
            if !covered[row] && !left_alone {
                check.fail(format!("row {row} of dk or dv was written, no segment has it"));
            }
        }
        Ok(results)
    }

    fn all(&self) -> Vec<usize> {
        (0..self.stretches.len()).collect()
    }

    fn check(&self, device: &Device, check: &mut Check, spread: Spread) -> Result<()> {
        let found = self.run(device, check, &self.all(), spread)?;
        let [mut dq, mut dk, mut dv] = [Errors::default(), Errors::default(), Errors::default()];
        for (index, found) in found.iter().enumerate() {
            self.compare(index, found, [&mut dq, &mut dk, &mut dv]);
        }
        for (what, errors) in [("dq", dq), ("dk", dk), ("dv", dv)] {
            errors.check(check, what, 2.0, half_unit(self.paged.storage) / 4.0);
        }
        Ok(())
    }

    /// One segment and its simulation against f64.
    fn compare(&self, index: usize, found: &SegmentGradients, [dq, dk, dv]: [&mut Errors; 3]) {
        let Shape { heads, kv_heads, head: size, scale, .. } = self.shape;
        let stretch = &self.stretches[index];
        let group = heads / kv_heads;
        // Large problems are looked at in places.
        let sparse = (stretch.queries.len() * heads / 48).max(1);
        for kv_head in 0..kv_heads {
            let mut exact = Vec::new();
            for (i, query) in stretch.queries.iter().enumerate() {
                for head in kv_head * group..(kv_head + 1) * group {
                    let one = self.exact(index, query, head);
                    let rounded = Rounded::new(self.paged.storage, &one, query, head, scale);
                    if (i * heads + head) % sparse == 0 {
                        let simulated = rounded.dq(&one, scale);
                        let (wanted, terms) = one.dq(f64::from(scale));
                        for d in 0..size {
                            dq.add(found.dq[i][head * size + d], simulated[d], wanted[d], terms[d] + SMALLEST);
                        }
                    }
                    exact.push((one, rounded));
                }
            }
            let sparse = (stretch.len * exact.len() / 2000).max(1);
            for offset in (0..stretch.len).filter(|offset| offset % sparse == 0 || offset + 1 == stretch.len) {
                let position = stretch.prefix + offset;
                let rows: Vec<(usize, &Exact, &Rounded)> = exact
                    .iter()
                    .filter(|(one, _)| (one.lowest..one.lowest + one.p.len()).contains(&position))
                    .map(|(one, rounded)| (position - one.lowest, one, rounded))
                    .collect();
                let p: Vec<f32> = rows.iter().map(|(j, _, rounded)| rounded.p[*j]).collect();
                let ds: Vec<f32> = rows.iter().map(|(j, _, rounded)| rounded.ds[*j]).collect();
                for d in 0..size {
                    let at = (offset * kv_heads + kv_head) * size + d;
                    let column =
                        |of: fn(&Exact) -> &[f32]| rows.iter().map(|(_, one, _)| of(one)[d]).collect::<Vec<_>>();
                    let (q, d_out) = (column(|one| &one.q), column(|one| &one.d_out));
                    let sum =
                        |of: &dyn Fn(usize, &Exact) -> f64| rows.iter().map(|(j, one, _)| of(*j, one)).sum::<f64>();
                    let scale64 = f64::from(scale);
                    let wanted = sum(&|j, one| scale64 * one.ds[j] * f64::from(one.q[d]));
                    let terms = sum(&|j, one| scale64 * one.weight[j] * f64::from(one.q[d].abs()));
                    dk.add(found.dk[at], A100.dot(&ds, &q) * scale, wanted, terms + SMALLEST);
                    let wanted = sum(&|j, one| one.p[j] * f64::from(one.d_out[d]));
                    let terms = sum(&|j, one| one.p[j] * f64::from(one.d_out[d].abs()));
                    dv.add(found.dv[at], A100.dot(&p, &d_out), wanted, terms + SMALLEST);
                }
            }
        }
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let together = self.run(device, check, &self.all(), Spread::Whole)?;
        let compare = |check: &mut Check, found: &SegmentGradients, index: usize, what: &str| {
            for (row, (found, expected)) in found.dq.iter().zip(&together[index].dq).enumerate() {
                check.same(&format!("dq of query {row} of segment {index}, {what}"), found, expected);
            }
            check.same(&format!("dk of segment {index}, {what}"), &found.dk, &together[index].dk);
            check.same(&format!("dv of segment {index}, {what}"), &found.dv, &together[index].dv);
        };
        let reversed: Vec<usize> = self.all().into_iter().rev().collect();
        for spread in [Spread::Device, Spread::Apart, Spread::Three, Spread::Wide, Spread::WideApart] {
            for (index, found) in reversed.iter().zip(self.run(device, check, &reversed, spread)?) {
                compare(check, &found, *index, &format!("reversed, {spread:?}"));
            }
            // The longest alone is what two tiles are for.
            let alone = if [Spread::Device, Spread::Apart].contains(&spread) { self.all() } else { vec![0] };
            for index in alone {
                let found = self.run(device, check, &[index], spread)?;
                compare(check, &found[0], index, &format!("alone, {spread:?}"));
            }
        }
        // A query without a gradient, named or not, changes nothing but its own row.
        let mut quiet = self.clone();
        let silent = |row: &QueryRow| row.position % 5 == 2;
        for row in quiet.stretches.iter_mut().flat_map(|stretch| &mut stretch.queries).filter(|row| silent(row)) {
            row.d_out.fill(0);
        }
        let mut fewer = quiet.clone();
        fewer.stretches.iter_mut().for_each(|stretch| stretch.queries.retain(|row| !silent(row)));
        let named = quiet.run(device, check, &self.all(), Spread::Device)?;
        let unnamed = fewer.run(device, check, &self.all(), Spread::Device)?;
        for (index, (named, unnamed)) in named.iter().zip(&unnamed).enumerate() {
            check.same(&format!("dk of segment {index}, queries not named"), &unnamed.dk, &named.dk);
            check.same(&format!("dv of segment {index}, queries not named"), &unnamed.dv, &named.dv);
            let kept = quiet.stretches[index].queries.iter().zip(&named.dq);
            let kept: Vec<f32> = kept.filter(|(row, _)| !silent(row)).flat_map(|(_, dq)| dq.clone()).collect();
            check.same(&format!("dq of segment {index}, queries not named"), &unnamed.dq.concat(), &kept);
        }
        // Other sequences may hold NaN: it stays with them.
        let mut broken = self.clone();
        let Stretch { prefix, len, .. } = self.stretches[1];
        broken.paged.spoil(1, prefix..prefix + len);
        for spread in [Spread::Device, Spread::Whole] {
            for (index, found) in broken.run(device, check, &self.all(), spread)?.iter().enumerate() {
                if index != 1 {
                    compare(check, found, index, &format!("beside NaN, {spread:?}"));
                }
            }
        }
        Ok(())
    }

    /// The derivative of `sum(d_out * out)` by differences of the forward pass in f64.
    fn differences(&self, device: &Device, check: &mut Check) -> Result<()> {
        const STEP: f64 = 1e-4;
        let found = self.run(device, check, &self.all(), Spread::Device)?;
        let Shape { heads, kv_heads, head: size, scale, .. } = self.shape;
        let (stretch, scale) = (&self.stretches[0], f64::from(scale));
        let group = heads / kv_heads;
        for head in 0..heads {
            let exact: Vec<Exact> = stretch.queries.iter().map(|row| self.exact(0, row, head)).collect();
            for (i, one) in exact.iter().enumerate() {
                for d in (0..size).step_by(5) {
                    let slope = (one.loss(scale, &|_| [d; 3], [STEP, 0.0, 0.0])
                        - one.loss(scale, &|_| [d; 3], [-STEP, 0.0, 0.0]))
                        / (2.0 * STEP);
                    let error = (f64::from(found[0].dq[i][head * size + d]) - slope).abs();
                    check.bound(|| format!("dq of query {i}, element {d}, by differences"), error, 0.01);
                }
            }
        }
        for kv_head in 0..kv_heads {
            let mine = (kv_head * group..(kv_head + 1) * group)
                .flat_map(|head| stretch.queries.iter().map(move |row| self.exact(0, row, head)));
            let mine: Vec<Exact> = mine.collect();
            for offset in 0..stretch.len {
                for d in (0..size).step_by(5) {
                    let position = stretch.prefix + offset;
                    let at = |j: usize| if j == position { [d; 3] } else { [usize::MAX; 3] };
                    let slope = |steps: [f64; 3]| {
                        let back = steps.map(|step| -step);
                        let difference = |one: &Exact| one.loss(scale, &at, steps) - one.loss(scale, &at, back);
                        mine.iter().map(difference).sum::<f64>() / (2.0 * STEP)
                    };
                    let (dk, dv) = (slope([0.0, STEP, 0.0]), slope([0.0, 0.0, STEP]));
                    let index = (offset * kv_heads + kv_head) * size + d;
                    let errors = [(found[0].dk[index], dk, "dk"), (found[0].dv[index], dv, "dv")];
                    for (found, slope, what) in errors {
                        let error = (f64::from(found) - slope).abs();
                        check.bound(
                            || format!("{what} of position {offset}, element {d}, by differences"),
                            error,
                            0.01,
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Attention of one query and head in f64, and what its gradients are made of, per visible position.
pub(super) struct Exact {
    pub q: Vec<f32>,
    pub d_out: Vec<f32>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    pub lowest: usize,
    lse: f64,
    out: Vec<f64>,
    pub p: Vec<f64>,
    pub ds: Vec<f64>,
    /// What `ds` is made of, by magnitude.
    pub weight: Vec<f64>,
}

impl Exact {
    pub fn new(
        q: Vec<f32>,
        d_out: Vec<f32>,
        lowest: usize,
        (keys, values): (Vec<Vec<f32>>, Vec<Vec<f32>>),
        scale: f64,
    ) -> Self {
        let scores: Vec<f64> = keys.iter().map(|key| dot(&q, key) * scale).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
        let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
        let mut out = vec![0.0; q.len()];
        for (p, value) in p.iter().zip(&values) {
            out.iter_mut().zip(value).for_each(|(out, &v)| *out += p * f64::from(v));
        }
        let magnitude = |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(&a, &b)| (f64::from(a) * b).abs()).sum::<f64>();
        let delta: f64 = d_out.iter().zip(&out).map(|(&d, &out)| f64::from(d) * out).sum();
        let delta_weight = magnitude(&d_out, &out);
        let (mut ds, mut weight) = (Vec::new(), Vec::new());
        for (p, value) in p.iter().zip(&values) {
            ds.push(p * (dot(&d_out, value) - delta));
            let dp: f64 = d_out.iter().zip(value).map(|(&a, &b)| f64::from(a * b).abs()).sum();
            weight.push(p * (dp + delta_weight));
        }
        Exact { q, d_out, keys, values, lowest, lse, out, p, ds, weight }
    }

    /// The gradient of the query, and the magnitudes it is made of.
    pub fn dq(&self, scale: f64) -> (Vec<f64>, Vec<f64>) {
        let (mut dq, mut terms) = (vec![0.0; self.q.len()], vec![0.0; self.q.len()]);
        for ((ds, weight), key) in self.ds.iter().zip(&self.weight).zip(&self.keys) {
            for (d, &k) in key.iter().enumerate() {
                dq[d] += scale * ds * f64::from(k);
                terms[d] += scale * weight * f64::from(k.abs());
            }
        }
        (dq, terms)
    }

    /// `sum(d_out * out)` with elements of the query and of the keys and values at the places moved by these steps.
    fn loss(&self, scale: f64, at: &dyn Fn(usize) -> [usize; 3], [q, k, v]: [f64; 3]) -> f64 {
        let moved = |x: &[f32], place: usize, step: f64, d: usize| {
            f64::from(x[d]) + if d == place && step != 0.0 { step } else { 0.0 }
        };
        let scores = self.keys.iter().enumerate().map(|(j, key)| {
            let [of_q, of_k, _] = at(self.lowest + j);
            let terms = (0..key.len()).map(|d| moved(&self.q, of_q, q, d) * moved(key, of_k, k, d));
            terms.sum::<f64>() * scale
        });
        let weights: Vec<f64> = scores.map(f64::exp).collect();
        let sum: f64 = weights.iter().sum();
        let value = |(j, value): (usize, &Vec<f32>)| {
            let place = at(self.lowest + j)[2];
            let dp: f64 = (0..value.len()).map(|d| f64::from(self.d_out[d]) * moved(value, place, v, d)).sum();
            weights[j] / sum * dp
        };
        self.values.iter().enumerate().map(value).sum()
    }
}

/// The same in f32, with sums as the coarser of the cards' adders makes them, and with probabilities and score gradients in the
/// storage type; without chunks.
struct Rounded {
    p: Vec<f32>,
    ds: Vec<f32>,
}

impl Rounded {
    fn new(storage: HalfType, exact: &Exact, row: &QueryRow, head: usize, scale: f32) -> Self {
        let size = exact.q.len();
        let out = widened(storage, &row.out[head * size..(head + 1) * size]);
        let delta: f32 = exact.d_out.iter().zip(&out).map(|(d, out)| d * out).sum();
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        for (key, value) in exact.keys.iter().zip(&exact.values) {
            let probability = (A100.dot(&exact.q, key) * scale - row.lse[head]).exp();
            let gradient = probability * (A100.dot(&exact.d_out, value) - delta);
            p.push(storage.widen(storage.round(probability)));
            ds.push(storage.widen(storage.round(gradient)));
        }
        Rounded { p, ds }
    }

    fn dq(&self, exact: &Exact, scale: f32) -> Vec<f32> {
        let of = |d: usize| {
            let column: Vec<f32> = exact.keys.iter().map(|key| key[d]).collect();
            A100.dot(&self.ds, &column) * scale
        };
        (0..exact.q.len()).map(of).collect()
    }
}

/// Segments of 16 tokens after a prefix: of one candidate, eight, and twenty-five.
pub fn timings() -> Vec<Timed> {
    let timed = |branches| {
        let work = Branches::new(branches, 960, 80, 16);
        Timed::new(OP, work.name(), move |device| time(device, &work))
    };
    [1, 8, 25].map(timed).into()
}

fn time(device: &Bench<'_>, work: &Branches) -> Result<Measured> {
    let mut parts = work.scratch(device)?;
    let rows = work.all.len();
    let mut scratch = Scratch::new(device, TIMED.heads, rows)?;
    let (len, start) = (work.queries, (work.shared + work.own - work.queries) as u32);
    let segments = work.blocks.iter().zip(work.all.chunks(len)).enumerate().map(|(index, (blocks, queries))| {
        let row = (index * len) as u32;
        KeySegment { blocks, start, len: len as u32, row, queries }
    });
    let keys = Plan::new(&TIMED, &segments.collect::<Vec<_>>())?;
    let plan = attention::Plan::new(&TIMED, &work.sequences(), parts.limits(device, &TIMED))?;
    let words = [Buffer::from_slice(device, plan.words())?, Buffer::from_slice(device, keys.words())?];
    let [q, out, d_out] = ["bench q", "bench out", "bench d_out"].map(|name| work.rows(device, name));
    let (q, out, d_out, mut pools) = (q?, out?, d_out?, work.pools(device)?);
    // What the logarithm of a thousand terms of a few units is.
    let lse = Buffer::from_slice(device, &vec![9.0f32; rows * TIMED.heads])?;
    let mut dq = Buffer::<f32>::uninitialised(device, q.len())?;
    let kv = rows * TIMED.kv_heads * TIMED.head;
    let (mut dk, mut dv) = (Buffer::<f32>::uninitialised(device, kv)?, Buffer::<f32>::uninitialised(device, kv)?);
    let seconds = device.median(&mut pools, |pool| {
        let inputs = Inputs {
            storage: HalfType::Bf16,
            q: q.view(),
            pool: pool.view(),
            layout: TIMED_LAYOUT,
            layer: 0,
            out: out.view(),
            lse: lse.view(),
            d_out: d_out.view(),
        };
        let mut output = Output { q: dq.view_mut(), k: dk.view_mut(), v: dv.view_mut() };
        let lists = BackwardLists { queries: (&plan, words[0].view()), keys: (&keys, words[1].view()) };
        attention_backward(device, &mut output, inputs, lists, &mut parts, &mut scratch)
    })?;
    // Keys and values once; queries, outputs and their gradients once; gradients in f32.
    let bytes = 2 * (work.pages() * TIMED_LAYOUT.block() + 3 * q.len()) + 4 * (q.len() + 2 * kv + lse.len());
    // Queries against every key: scores, dp, dq. The segment's own keys against its queries: scores, dp, dk, dv.
    let own = work.count * len * (len + 1) / 2;
    let flops = 2.0 * ((3 * work.seen() + 4 * own) * TIMED.heads * TIMED.head) as f64;
    Ok(Measured::bytes(seconds, bytes).flops(flops))
}
