//! Cases of `rope`.

use super::case::{Case, Check};
use super::errors::{Errors, SMALLEST, half_unit};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::rmsnorm;
use super::rows::{Rows, batches, first_of, repeated, single};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::kv::{KvLayout, KvRows};
use crate::cuda::ops::rope::{Gradients, HeadNorms, HeadOrder, Heads, Inputs, Turns, pair_place, rope, rope_backward};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::kv::BLOCK;
use std::ops::Range;

const OP: &str = "rope";
const EPS: f32 = 1e-6;
/// Of the table.
const POSITIONS: usize = 700;
const LAYERS: usize = 3;
/// The layer that is written.
const LAYER: usize = 1;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (heads, kv_heads, head) in
            [(1, 1, 2), (3, 1, 16), (4, 2, 20), (5, 1, 32), (14, 2, 64), (6, 3, 80), (8, 1, 100), (32, 8, 128)]
        {
            for (normed, values) in
                [(false, Values::Normal(1.0)), (true, Values::Normal(3.0)), (true, Values::Outliers)]
            {
                let padded = Heads::padded(head).unwrap_or(head);
                let heads = Heads { heads, kv_heads, head, padded };
                let norms = if normed { ", norms" } else { "" };
                let name =
                    format!("{} {} + 2 x {kv_heads} heads of {head}{norms}, {values}", storage.name(), heads.heads);
                cases.push(Case::seeded(OP, name, 9 * heads.qkv(), move |seed, device, check| {
                    Problem::new(seed, storage, heads, 9, normed, values).check(device, check)
                }));
                let name = format!(
                    "{} backward, {} + 2 x {kv_heads} heads of {head}{norms}, {values}",
                    storage.name(),
                    heads.heads
                );
                cases.push(Case::seeded(OP, name, 9 * heads.qkv(), move |seed, device, check| {
                    Problem::new(seed, storage, heads, 9, normed, values).check_backward(device, check)
                }));
            }
        }
        // As a projection whose weights are in tiles gives them, with norms or without.
        for (head, normed) in [(18, true), (20, false), (64, true), (80, true), (128, false)] {
            let heads = Heads { heads: 3, kv_heads: 2, head, padded: Heads::padded(head).unwrap_or(head) };
            let name = format!("{} heads of {head} in pairs", storage.name());
            cases.push(Case::seeded(OP, name, 18 * heads.qkv(), move |seed, device, check| {
                let mut problem = Problem::new(seed, storage, heads, 9, normed, Values::Normal(1.0));
                problem.order = HeadOrder::Pairs;
                problem.check(device, check)?;
                problem.check_backward(device, check)
            }));
        }
        for head in [20, 64, 128] {
            let heads = Heads { heads: 3, kv_heads: 1, head, padded: Heads::padded(head).unwrap_or(head) };
            let name = format!("{} rows alone and together, heads of {head}", storage.name());
            cases.push(Case::new(OP, name, 600 * heads.qkv(), move |device, check| {
                let problem = Problem::new("together", storage, heads, 257, true, Values::Outliers);
                problem.alone_and_together(device, check)
            }));
        }
    }
    cases
}

/// One problem on the host.
struct Problem {
    storage: HalfType,
    heads: Heads,
    qkv: Vec<u16>,
    positions: Vec<u32>,
    table: Vec<[f32; 2]>,
    /// For queries and for keys.
    norms: Option<[Vec<u16>; 2]>,
    slots: Vec<u32>,
    /// Of attention, in the order of qkv.
    gradient: Vec<f32>,
    /// How the device gets the columns of queries and keys.
    order: HeadOrder,
}

/// Queries, and the whole pool.
type Outputs = (Vec<u16>, Vec<u16>);

impl Problem {
    fn new(seed: &str, storage: HalfType, heads: Heads, rows: usize, normed: bool, values: Values) -> Self {
        let mut random = Random::named(seed);
        let Heads { head, padded, .. } = heads;
        let mut qkv = stored(storage, &random.vector(rows * heads.qkv(), values));
        let mut norm = || {
            let mut weight = stored(storage, &random.vector(padded, Values::Normal(1.0)));
            weight[head..].fill(0x7fff);
            weight
        };
        let norms = normed.then(|| [norm(), norm()]);
        // NaN, which nothing may read.
        qkv.chunks_exact_mut(padded).for_each(|stored| stored[head..].fill(0x7fff));
        let half = head / 2;
        let angle = |i: usize| (i / half) as f64 * 1e4f64.powf(-((i % half) as f64) / half as f64);
        let table = (0..POSITIONS * half).map(|i| [angle(i).cos() as f32, angle(i).sin() as f32]).collect();
        let mut positions: Vec<u32> = (0..rows).map(|_| random.below(POSITIONS) as u32).collect();
        (positions[0], positions[rows - 1]) = (POSITIONS as u32 - 1, 0);
        // Every other slot, downwards, so that the last block is only partly used.
        let slots = (0..rows).map(|row| (2 * (rows - 1 - row)) as u32).collect();
        let mut gradient = random.vector(qkv.len(), Values::Normal(0.1));
        gradient.chunks_exact_mut(padded).for_each(|stored| stored[head..].fill(f32::NAN));
        Problem { storage, heads, qkv, positions, table, norms, slots, gradient, order: HeadOrder::Halves }
    }

    /// Rows of `qkv` as the device has them, or back from there. Padding that no element comes to is of the same kind.
    fn ordered(&self, rows: &[u16], back: bool) -> Vec<u16> {
        let Heads { heads, kv_heads, head, padded } = self.heads;
        let mut out = rows.to_vec();
        if self.order == HeadOrder::Halves {
            return out;
        }
        for (index, (stored, out)) in rows.chunks_exact(padded).zip(out.chunks_exact_mut(padded)).enumerate() {
            if index % (heads + 2 * kv_heads) >= heads + kv_heads {
                continue;
            }
            // Places of pairs that do not exist are padding.
            let places: Vec<usize> = (0..head).map(|element| pair_place(element, head)).collect();
            let rest = (0..padded).filter(|place| !places.contains(place));
            for (element, place) in places.iter().copied().chain(rest).enumerate() {
                if back {
                    out[element] = stored[place];
                } else {
                    out[place] = stored[element];
                }
            }
        }
        out
    }

    fn layout(&self) -> KvLayout {
        KvLayout { layers: LAYERS, kv_heads: self.heads.kv_heads, head: self.heads.padded }
    }

    fn blocks(&self) -> usize {
        (2 * self.positions.len()).div_ceil(BLOCK)
    }

    fn weights(&self, device: &Device) -> Result<Option<[Guarded<u16>; 2]>> {
        let Some([q, k]) = &self.norms else { return Ok(None) };
        Ok(Some([Guarded::input(device, q)?, Guarded::input(device, k)?]))
    }

    /// What the kernel makes of some of the rows.
    fn run(&self, device: &Device, check: &mut Check, rows: Range<usize>, slots: &[u32]) -> Result<Outputs> {
        let width = self.heads.qkv();
        let qkv = Guarded::input(device, &self.ordered(&self.qkv[rows.start * width..rows.end * width], false))?;
        let positions = Guarded::input(device, &self.positions[rows.clone()])?;
        let table = Guarded::input(device, &self.table)?;
        let slots = Guarded::input(device, slots)?;
        let weights = self.weights(device)?;
        let norms = weights.as_ref().map(|[q, k]| HeadNorms { q: q.view(), k: k.view(), eps: EPS });
        let turns = Turns { positions: positions.view(), table: table.view() };
        let inputs = Inputs { qkv: qkv.view(), turns, norms, order: self.order };
        let mut q = Guarded::output(device, rows.len() * self.heads.heads * self.heads.padded, 0)?;
        let mut pool = Guarded::output(device, self.blocks() * self.layout().block(), 0)?;
        let mut kv = KvRows { pool: pool.view_mut(), layout: self.layout(), layer: LAYER, slots: slots.view() };
        rope(device, self.storage, &mut q.view_mut(), &mut kv, &inputs, self.heads)?;
        Ok((q.read(device, check, "q")?, pool.read(device, check, "pool")?))
    }

    /// Where a key or value head of a slot lies in the pool.
    fn place(&self, slot: u32, head: usize) -> usize {
        let (block, position) = (slot as usize / BLOCK, slot as usize % BLOCK);
        let plane = (block * LAYERS + LAYER) * 2 * self.heads.kv_heads + head;
        (plane * BLOCK + position) * self.heads.padded
    }

    /// A row's heads in the order of qkv, gathered from the outputs; a row that is not kept has no keys and values.
    fn gathered(&self, (q, pool): &Outputs, row: usize, slot: u32) -> Vec<u16> {
        let Heads { heads, kv_heads, padded, .. } = self.heads;
        let mut all = q[row * heads * padded..(row + 1) * heads * padded].to_vec();
        if (slot as usize) < self.blocks() * BLOCK {
            for head in 0..2 * kv_heads {
                let at = self.place(slot, head);
                all.extend(&pool[at..at + padded]);
            }
        }
        all
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let rows = self.positions.len();
        // Two rows are not kept.
        let mut slots = self.slots.clone();
        (slots[2], slots[3]) = (u32::MAX, (self.blocks() * BLOCK) as u32);
        let found = self.run(device, check, 0..rows, &slots)?;
        let again = self.run(device, check, 0..rows, &slots)?;
        check.same("q, run again", &again.0, &found.0);
        check.same("pool, run again", &again.1, &found.1);

        let Heads { heads, kv_heads, head, padded } = self.heads;
        let mut errors = Errors::default();
        let mut untouched = found.1.clone();
        for (row, &slot) in slots.iter().enumerate() {
            for (at, out) in self.gathered(&found, row, slot).chunks_exact(padded).enumerate() {
                if out[head..].iter().any(|&bits| bits != 0) {
                    check.fail(format!("row {row}: the padding of head {at} is {:?}", &out[head..]));
                }
                let start = row * self.heads.qkv() + at * padded;
                let input = &self.qkv[start..start + head];
                if at >= heads + kv_heads {
                    check.same(&format!("row {row}: value head {}", at - heads - kv_heads), &out[..head], input);
                } else {
                    let out = widened(self.storage, &out[..head]);
                    self.compare(&mut errors, &widened(self.storage, input), &out, row, usize::from(at >= heads));
                }
                if at >= heads {
                    let place = self.place(slot, at - heads);
                    untouched[place..place + padded].fill(0xffff);
                }
            }
        }
        errors.check(check, "heads", 2.0, half_unit(self.storage));
        if let Some(at) = untouched.iter().position(|&bits| bits != 0xffff) {
            check.fail(format!("element {at} of the pool, which no row owns, was written"));
        }
        Ok(())
    }

    /// One query or key head.
    fn compare(&self, errors: &mut Errors, x: &[f32], out: &[f32], row: usize, kind: usize) {
        let (e, half) = (x.len(), x.len() / 2);
        let (mut exact, mut simulated) = (x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>(), x.to_vec());
        if let Some(weight) = self.norms.as_ref().map(|norms| widened(self.storage, &norms[kind])) {
            let mean = exact.iter().map(|x| x * x).sum::<f64>() / e as f64;
            let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
            let single = 1.0 / (x.iter().fold(0.0f32, |sum, x| sum + x * x) / e as f32 + EPS).sqrt();
            for i in 0..e {
                exact[i] *= scale * f64::from(weight[i]);
                simulated[i] = simulated[i] * single * weight[i];
            }
        }
        let turns = &self.table[self.positions[row] as usize * half..][..half];
        for (i, &[cos, sin]) in turns.iter().enumerate() {
            let (a, b, c, s) = (exact[i], exact[half + i], f64::from(cos), f64::from(sin));
            let (p, r) = (simulated[i], simulated[half + i]);
            let round = |x: f32| self.storage.widen(self.storage.round(x));
            let (first, second) = ((a * c).abs() + (b * s).abs(), (b * c).abs() + (a * s).abs());
            errors.add(out[i], round(p * cos - r * sin), a * c - b * s, first + SMALLEST);
            errors.add(out[half + i], round(r * cos + p * sin), b * c + a * s, second + SMALLEST);
        }
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (rows, width) = (self.positions.len(), self.heads.qkv());
        // Rows on their own go to another slot.
        let forward = |check: &mut Check, some: Range<usize>| {
            let slots = if some.start > 0 { vec![77] } else { self.slots[some.clone()].to_vec() };
            let found = self.run(device, check, some, &slots)?;
            let values = slots.iter().enumerate().flat_map(|(row, &slot)| self.gathered(&found, row, slot)).collect();
            Ok(Rows { name: "heads", width, values })
        };
        let backward = |check: &mut Check, some| self.run_backward(device, check, some);
        let all = forward(check, 0..rows)?;
        batches(check, &all, first_of(rows), forward)?;
        let gradients = backward(check, 0..rows)?;
        batches(check, &gradients, first_of(rows), backward)?;
        batches(check, &all, single([1, 100, 256]), forward)
    }

    fn run_backward(&self, device: &Device, check: &mut Check, rows: Range<usize>) -> Result<Rows<u16>> {
        let Heads { heads, kv_heads, padded, .. } = self.heads;
        let width = self.heads.qkv();
        let range = rows.start * width..rows.end * width;
        let (first, second) = (heads * padded, (heads + kv_heads) * padded);
        let columns = |from: usize, to: usize| -> Vec<f32> {
            self.gradient[range.clone()].chunks_exact(width).flat_map(|row| row[from..to].iter().copied()).collect()
        };
        let dq = Guarded::input(device, &columns(0, first))?;
        let dk = Guarded::input(device, &columns(first, second))?;
        let dv = Guarded::input(device, &columns(second, width))?;
        let qkv = Guarded::input(device, &self.ordered(&self.qkv[range.clone()], false))?;
        let positions = Guarded::input(device, &self.positions[rows])?;
        let table = Guarded::input(device, &self.table)?;
        let weights = self.weights(device)?;
        let norms = weights.as_ref().map(|[q, k]| HeadNorms { q: q.view(), k: k.view(), eps: EPS });
        let turns = Turns { positions: positions.view(), table: table.view() };
        let inputs = Inputs { qkv: qkv.view(), turns, norms, order: self.order };
        let gradients = Gradients { q: dq.view(), k: dk.view(), v: dv.view() };
        let mut out = Guarded::output(device, range.len(), 0)?;
        rope_backward(device, self.storage, &mut out.view_mut(), &gradients, &inputs, self.heads)?;
        Ok(Rows { name: "d_qkv", width, values: self.ordered(&out.read(device, check, "d_qkv")?, true) })
    }

    fn check_backward(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (rows, width) = (self.positions.len(), self.heads.qkv());
        let Heads { heads, kv_heads, head, padded } = self.heads;
        let run = |check: &mut Check, rows| self.run_backward(device, check, rows);
        let found = repeated(check, rows, run)?;
        batches(check, &found, single([0, 4, rows - 1]), run)?;
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let round = |x: f32| self.storage.widen(self.storage.round(x));
        let mut errors = Errors::default();
        for (at, out) in found.values.chunks_exact(padded).enumerate() {
            let (row, index, start) = (at * padded / width, at * padded % width / padded, at * padded);
            if out[head..].iter().any(|&bits| bits != 0) {
                check.fail(format!("row {row}: the padding of head {index} is {:?}", &out[head..]));
            }
            let (d, out) = (&self.gradient[start..start + head], widened(self.storage, &out[..head]));
            if index >= heads + kv_heads {
                let expected: Vec<f32> = d.iter().map(|&d| round(d)).collect();
                check.same(&format!("row {row}: value head {}", index - heads - kv_heads), &out, &expected);
                continue;
            }
            let half = head / 2;
            let angles = &self.table[self.positions[row] as usize * half..][..half];
            let mut exact = turn(&wide(d), angles, -1.0);
            let mut simulated: Vec<f32> = (0..head)
                .map(|i| match (angles[i % half], d[i], d[(i + half) % head]) {
                    ([cos, sin], own, other) if i < half => own * cos + other * sin,
                    ([cos, sin], own, other) => own * cos - other * sin,
                })
                .collect();
            if let Some(norms) = &self.norms {
                let weight = widened(self.storage, &norms[usize::from(index >= heads)][..head]);
                let x = widened(self.storage, &self.qkv[start..start + head]);
                let turned: Vec<f64> = exact.iter().map(|&(value, _)| value).collect();
                let through = rmsnorm::exact_backward(&turned, &wide(&x), &wide(&weight), head, EPS);
                // What the turn cancelled, scaled as the norm does.
                let r = 1.0 / (wide(&x).iter().map(|x| x * x).sum::<f64>() / head as f64 + f64::from(EPS)).sqrt();
                for ((exact, w), (value, terms)) in exact.iter_mut().zip(&weight).zip(through) {
                    *exact = (value, terms.max(exact.1 * r * f64::from(w.abs())));
                }
                simulated = rmsnorm::simulated_backward(&simulated, &x, &weight, head, EPS);
            }
            for ((&y, simulated), (exact, terms)) in out.iter().zip(simulated).zip(exact) {
                errors.add(y, round(simulated), exact, terms + SMALLEST);
            }
        }
        errors.check(check, "d_qkv", 3.0, half_unit(self.storage));
        Ok(())
    }
}

/// Turns a head's pairs (i, i + half) by their angles, forwards with a direction of 1, back with -1; per element with the
/// magnitudes that it was added up from.
pub(super) fn turn(x: &[f64], angles: &[[f32; 2]], direction: f64) -> Vec<(f64, f64)> {
    let half = angles.len();
    let element = |i: usize| {
        let [cos, sin] = angles[i % half].map(f64::from);
        let (own, other) = (x[i] * cos, x[(i + half) % (2 * half)] * sin * direction);
        (if i < half { own - other } else { own + other }, own.abs() + other.abs())
    };
    (0..2 * half).map(element).collect()
}

/// Heads of what is timed, without norms.
const TIMED: Heads = Heads { heads: 32, kv_heads: 8, head: 128, padded: 128 };
const TIMED_LAYOUT: KvLayout = KvLayout { layers: 1, kv_heads: TIMED.kv_heads, head: TIMED.padded };

pub fn timings() -> Vec<Timed> {
    let case = |rows| format!("bf16 {rows} rows, 32 + 2 x 8 heads");
    let mut all = Timed::each("rope", [16, 128, 2048], case, time);
    all.extend(Timed::each("rope_backward", [16, 128, 2048], case, time_backward));
    all
}

/// Positions, which are slots too, and angles.
fn places(device: &Device, rows: usize) -> Result<(Buffer<u32>, Buffer<[f32; 2]>)> {
    let table = Buffer::from_slice(device, &vec![[0.6f32, 0.8]; rows * TIMED.head / 2])?;
    Ok((Buffer::from_slice(device, &(0..rows as u32).collect::<Vec<_>>())?, table))
}

fn time(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let bytes = rows * TIMED.qkv() * 4;
    let (places, table) = places(device, rows)?;
    let mut sets = device.sets(bytes, |_| {
        let out = Buffer::<u16>::uninitialised(device, rows * TIMED.heads * TIMED.padded)?;
        let pool = Buffer::<u16>::uninitialised(device, rows.div_ceil(BLOCK) * TIMED_LAYOUT.block())?;
        Ok((Buffer::<u16>::zeros(device, rows * TIMED.qkv())?, out, pool))
    })?;
    let seconds = device.median(&mut sets, |(qkv, out, pool)| {
        let turns = Turns { positions: places.view(), table: table.view() };
        let inputs = Inputs { qkv: qkv.view(), turns, norms: None, order: HeadOrder::Halves };
        let mut kv = KvRows { pool: pool.view_mut(), layout: TIMED_LAYOUT, layer: 0, slots: places.view() };
        rope(device, HalfType::Bf16, &mut out.view_mut(), &mut kv, &inputs, TIMED)
    })?;
    Ok(Measured::bytes(seconds, bytes))
}

fn time_backward(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let bytes = rows * TIMED.qkv() * 6;
    let (places, table) = places(device, rows)?;
    let mut sets = device.sets(bytes, |_| {
        let gradients = [TIMED.heads, TIMED.kv_heads, TIMED.kv_heads]
            .map(|count| Buffer::<f32>::zeros(device, rows * count * TIMED.padded));
        let [dq, dk, dv] = gradients;
        let out = Buffer::<u16>::uninitialised(device, rows * TIMED.qkv())?;
        Ok((Buffer::<u16>::zeros(device, rows * TIMED.qkv())?, [dq?, dk?, dv?], out))
    })?;
    let seconds = device.median(&mut sets, |(qkv, [dq, dk, dv], out)| {
        let turns = Turns { positions: places.view(), table: table.view() };
        let inputs = Inputs { qkv: qkv.view(), turns, norms: None, order: HeadOrder::Halves };
        let gradients = Gradients { q: dq.view(), k: dk.view(), v: dv.view() };
        rope_backward(device, HalfType::Bf16, &mut out.view_mut(), &gradients, &inputs, TIMED)
    })?;
    Ok(Measured::bytes(seconds, bytes))
}

#[cfg(test)]
mod tests {
    use super::turn;
    use crate::lab::kernel_check::numbers::slopes::{hold, numbers};

    #[test]
    fn the_gradient_is_the_slope() {
        let (x, dy) = (numbers(6, 5, 11), numbers(6, 4, 7));
        let angles = [[0.8f32, 0.6], [-0.28, 0.96], [1.0, 0.0]];
        let values = |x: &[f64]| turn(x, &angles, 1.0).into_iter().map(|(value, _)| value).collect();
        hold(&x, &dy, &turn(&dy, &angles, -1.0), values);
    }
}
