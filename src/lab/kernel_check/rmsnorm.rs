//! Cases of `rmsnorm`.

use super::case::{Case, Check};
use super::errors::{Errors, SMALLEST, half_unit};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::rows::{Outputs, Rows, batches, first_of, repeated, single};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::rmsnorm::{Deferred, Delta, Norm, Upstream, rmsnorm, rmsnorm_backward, rmsnorm_deferred};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use std::ops::Range;

const OP: &str = "rmsnorm";
const EPS: f32 = 1e-5;

/// What is added to the residual stream. Variants are named in cases, whose names seed their numbers.
#[derive(Clone, Copy, Debug)]
enum ResidualTerm {
    Nothing,
    F32,
    Storage,
}

/// One problem on the host.
struct Problem {
    storage: HalfType,
    d: usize,
    /// Real columns, the first ones.
    columns: usize,
    residual: Vec<f32>,
    added: ResidualTerm,
    delta: Vec<f32>,
    weight: Vec<u16>,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (d, rows) in [(1, 7), (31, 7), (33, 7), (111, 7), (4096, 3), (12_276, 2), (32_000, 2), (128_256, 1)] {
            for (added, values) in [
                (ResidualTerm::Nothing, Values::Normal(1.0)),
                (ResidualTerm::F32, Values::Outliers),
                (ResidualTerm::Storage, Values::Normal(0.02)),
            ] {
                let name = format!("{} [{rows}, {d}] + {added:?}, {values}", storage.name());
                cases.push(Case::seeded(OP, name, rows * d, move |seed, device, check| {
                    let problem = Problem::new(seed, storage, rows, d, added, values);
                    problem.check(device, check)
                }));
            }
        }
        for (d, columns) in [(64, 40), (128, 127), (4096, 4033)] {
            let name = format!("{} [5, {d}] of {columns} columns", storage.name());
            cases.push(Case::new(OP, name, 5 * d, move |device, check| {
                let values = Values::Normal(1.0);
                let problem = Problem::new("padded", storage, 5, d, ResidualTerm::Storage, values).padded(columns);
                problem.check(device, check)
            }));
        }
        for d in [111, 512] {
            let name = format!("{} rows alone and together, d {d}", storage.name());
            cases.push(Case::new(OP, name, 600 * d, move |device, check| {
                let problem = Problem::new("together", storage, 257, d, ResidualTerm::Storage, Values::Outliers);
                problem.alone_and_together(device, check)
            }));
        }
    }
    cases.extend(deferred_cases());
    cases.extend(backward_cases());
    cases
}

/// The last step left to a product.
fn deferred_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (d, columns, rows) in [(64, 40, 5), (128, 127, 7), (2112, 2112, 3), (4096, 4033, 3), (12_288, 12_288, 2)] {
            for (scaled, values) in
                [(false, Values::Normal(1.0)), (true, Values::Outliers), (true, Values::Normal(0.02))]
            {
                let by = if scaled { "the norm before" } else { "itself" };
                let name =
                    format!("{} deferred [{rows}, {d}] of {columns} columns, scaled by {by}, {values}", storage.name());
                cases.push(Case::seeded(OP, name, rows * d, move |seed, device, check| {
                    let problem = Problem::new(seed, storage, rows, d, ResidualTerm::Nothing, values).padded(columns);
                    problem.check_deferred(device, check, scaled)
                }));
            }
        }
        let name = format!("{} deferred, rows that are not finite", storage.name());
        cases.push(Case::new(OP, name, 5 * 128, move |device, check| {
            Problem::new("not finite", storage, 5, 128, ResidualTerm::Nothing, Values::Normal(1.0))
                .not_finite(device, check)
        }));
    }
    cases
}

fn backward_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        let shapes =
            [(1, 1, 7), (31, 31, 7), (64, 40, 5), (111, 111, 7), (4096, 4033, 3), (6144, 6144, 2), (12_276, 12_276, 2)];
        for (d, columns, rows) in shapes {
            for (head, values) in [(false, Values::Normal(1.0)), (false, Values::Outliers), (true, Values::Normal(3.0))]
            {
                let from = if head { "from the head" } else { "in the middle" };
                let name = format!("{} backward [{rows}, {d}] of {columns} columns {from}, {values}", storage.name());
                cases.push(Case::seeded(OP, name, rows * d, move |seed, device, check| {
                    let problem = Problem::new(seed, storage, rows, d, ResidualTerm::F32, values).padded(columns);
                    NormBackward::new(seed, problem, head).check(device, check)
                }));
            }
        }
        for d in [111, 512] {
            let name = format!("{} backward, rows alone and together, d {d}", storage.name());
            cases.push(Case::new(OP, name, 600 * d, move |device, check| {
                let problem = Problem::new("together", storage, 257, d, ResidualTerm::F32, Values::Outliers);
                NormBackward::new("together", problem, false).alone_and_together(device, check)
            }));
        }
    }
    cases
}

impl Problem {
    fn new(seed: &str, storage: HalfType, rows: usize, d: usize, added: ResidualTerm, values: Values) -> Self {
        let mut random = Random::named(seed);
        let residual = random.vector(rows * d, values);
        let delta = random.vector(rows * d, values);
        let delta = match added {
            ResidualTerm::Nothing => vec![0.0; rows * d],
            ResidualTerm::F32 => delta,
            ResidualTerm::Storage => widened(storage, &stored(storage, &delta)),
        };
        let weight = stored(storage, &random.vector(d, Values::Normal(0.5)));
        Problem { storage, d, columns: d, residual, added, delta, weight }
    }

    /// The same with nothing in the columns from `columns` on.
    fn padded(mut self, columns: usize) -> Self {
        let d = self.d;
        let rows = self.residual.chunks_exact_mut(d).chain(self.delta.chunks_exact_mut(d));
        rows.for_each(|row| row[columns..].fill(0.0));
        self.weight[columns..].fill(0);
        Problem { columns, ..self }
    }

    /// Output and updated residual of rows `from .. to`; `shift` moves every buffer off its alignment.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        rows: Range<usize>,
        shift: usize,
    ) -> Result<(Rows<u16>, Rows<f32>)> {
        let range = rows.start * self.d..rows.end * self.d;
        let mut out = Guarded::output(device, range.len(), shift)?;
        let mut residual = Guarded::shifted(device, &self.residual[range.clone()], shift)?;
        let delta_f32 = Guarded::shifted(device, &self.delta[range.clone()], shift)?;
        let delta_16 = Guarded::shifted(device, &stored(self.storage, &self.delta[range]), shift)?;
        let weight = Guarded::shifted(device, &self.weight, shift)?;
        let delta = match self.added {
            ResidualTerm::Nothing => Delta::None,
            ResidualTerm::F32 => Delta::F32(delta_f32.view()),
            ResidualTerm::Storage => Delta::Half(delta_16.view()),
        };
        let norm = Norm { weight: weight.view(), columns: self.columns, eps: EPS };
        rmsnorm(device, self.storage, &mut out.view_mut(), &mut residual.view_mut(), delta, norm)?;
        let out = Rows { name: "out", width: self.d, values: out.read(device, check, "out")? };
        Ok((out, Rows { name: "residual", width: self.d, values: residual.read(device, check, "residual")? }))
    }

    fn rows(&self) -> usize {
        self.residual.len() / self.d
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let found = repeated(check, self.rows(), |check, rows| self.run(device, check, rows, 0))?;
        let shifted = self.run(device, check, 0..self.rows(), 1)?;
        shifted.hold(check, "at an odd address", &found, 0..self.rows());
        let (out, residual) = (found.0.values, found.1.values);
        let sum: Vec<f32> = self.residual.iter().zip(&self.delta).map(|(a, b)| a + b).collect();
        check.same("residual", &residual, &sum);

        let weight = widened(self.storage, &self.weight);
        let mut errors = Errors::default();
        for (row, out) in sum.chunks_exact(self.d).zip(out.chunks_exact(self.d)) {
            let mean = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / self.columns as f64;
            let exact_scale = 1.0 / (mean + f64::from(EPS)).sqrt();
            // The same in f32, summed pairwise instead of by threads.
            let scale = 1.0 / (pairwise(row) / self.columns as f32 + EPS).sqrt();
            for ((&x, &w), &y) in row.iter().zip(&weight).zip(out) {
                let exact = f64::from(x) * exact_scale * f64::from(w);
                let simulated = self.storage.widen(self.storage.round(x * scale * w));
                errors.add(self.storage.widen(y), simulated, exact, exact.abs() + SMALLEST);
            }
        }
        errors.check(check, "out", 2.0, half_unit(self.storage));
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let run = |check: &mut Check, rows| self.run(device, check, rows, 0);
        let all = run(check, 0..self.rows())?;
        batches(check, &all, first_of(self.rows()).chain(single([1, 100, 256])), run)
    }

    /// What is left of rows for a product, and factors and inverse norms side by side.
    fn run_deferred(
        &self,
        device: &Device,
        check: &mut Check,
        rows: Range<usize>,
        before: Option<&[f32]>,
    ) -> Result<(Rows<u16>, Rows<f32>)> {
        let range = rows.start * self.d..rows.end * self.d;
        let residual = Guarded::input(device, &self.residual[range.clone()])?;
        let weight = Guarded::input(device, &self.weight)?;
        let before = before.map(|before| Guarded::input(device, &before[rows.clone()])).transpose()?;
        let mut u = Guarded::output(device, range.len(), 0)?;
        let mut factors = Guarded::output(device, rows.len(), 0)?;
        let mut inverse = Guarded::output(device, rows.len(), 0)?;
        let norm = Norm { weight: weight.view(), columns: self.columns, eps: EPS };
        let mut out = Deferred { u: u.view_mut(), factors: factors.view_mut(), inverse: inverse.view_mut() };
        let before = before.as_ref().map(|before| before.view());
        rmsnorm_deferred(device, self.storage, &mut out, residual.view(), before, norm)?;
        let u = Rows { name: "u", width: self.d, values: u.read(device, check, "u")? };
        let factors = factors.read(device, check, "factors")?;
        let inverse = inverse.read(device, check, "inverse norms")?;
        let values = factors.into_iter().zip(inverse).flat_map(|(factor, inverse)| [factor, inverse]).collect();
        Ok((u, Rows { name: "factors and inverse norms", width: 2, values }))
    }

    /// Rows with an infinite element, with NaN, and with squares beyond f32 become NaN in any product; the others stay as they are.
    fn not_finite(mut self, device: &Device, check: &mut Check) -> Result<()> {
        let before = vec![0.5; self.rows()];
        for before in [None, Some(&before[..])] {
            let sound = self.run_deferred(device, check, 0..self.rows(), before)?;
            let kept = self.residual.clone();
            for (row, x) in [(1, f32::INFINITY), (2, f32::NAN), (3, 1e20)] {
                self.residual[row * self.d + 7] = x;
            }
            let mut unseen = Check::default();
            let found = self.run_deferred(device, &mut unseen, 0..self.rows(), before)?;
            check.join(unseen);
            for row in 0..self.rows() {
                let (u, at) = (&found.0.values[row * self.d..(row + 1) * self.d], 2 * row);
                let factor = found.1.values[at];
                if (1..4).contains(&row) {
                    let sum: f32 = widened(self.storage, u).iter().sum();
                    if !(sum * factor).is_nan() {
                        check.fail(format!("row {row}: {sum} times {factor} is a number"));
                    }
                } else {
                    check.same(&format!("u of row {row}"), u, &sound.0.values[row * self.d..(row + 1) * self.d]);
                    check.same(&format!("factor of row {row}"), &[factor], &sound.1.values[at..at + 1]);
                }
            }
            self.residual = kept;
        }
        Ok(())
    }

    fn check_deferred(&self, device: &Device, check: &mut Check, scaled: bool) -> Result<()> {
        let scale = |row: &[f32]| 1.0 / (pairwise(row) / self.columns as f32 + EPS).sqrt();
        // Some rows have grown since, and others have shrunk.
        let before: Vec<f32> = self
            .residual
            .chunks_exact(self.d)
            .zip([1000.0, 1.0, 0.3].into_iter().cycle())
            .map(|(row, grown)| grown * scale(row))
            .collect();
        let before = scaled.then_some(&before[..]);
        let run = |check: &mut Check, rows| self.run_deferred(device, check, rows, before);
        let found = repeated(check, self.rows(), run)?;
        batches(check, &found, single([0, self.rows() - 1]), run)?;
        let weight = widened(self.storage, &self.weight);
        let (mut errors, mut norms) = (Errors::default(), Errors::default());
        for (row, (x, u)) in self.residual.chunks_exact(self.d).zip(found.0.values.chunks_exact(self.d)).enumerate() {
            let [factor, inverse] = [0, 1].map(|i| found.1.values[2 * row + i]);
            let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / self.columns as f64;
            let exact_scale = 1.0 / (mean + f64::from(EPS)).sqrt();
            norms.add(inverse, scale(x), exact_scale, exact_scale);
            let power = f32::from_bits(before.map_or(inverse, |before| before[row]).to_bits() & 0x7f80_0000) / 16.0;
            if factor != inverse / power {
                check.fail(format!("row {row}: the factor is {factor}, not {inverse} / {power}"));
            }
            for ((&x, &w), &u) in x.iter().zip(&weight).zip(u) {
                let exact = f64::from(x) * exact_scale * f64::from(w);
                let simulated = self.storage.widen(self.storage.round(x * power * w)) * (inverse / power);
                errors.add(self.storage.widen(u) * factor, simulated, exact, exact.abs() + SMALLEST);
            }
        }
        norms.check(check, "inverse norms", 2.0, 1e-6);
        errors.check(check, "u", 2.0, half_unit(self.storage));
        Ok(())
    }
}

/// A problem of the backward pass: the forward one's delta is the gradient of the norm's output.
struct NormBackward {
    problem: Problem,
    grad: Vec<f32>,
    /// The head and its factor, if the norm is the final one.
    head: Option<(Vec<u16>, f32)>,
}

impl NormBackward {
    fn new(seed: &str, problem: Problem, head: bool) -> Self {
        let mut random = Random::named(&format!("{seed}, gradient"));
        let (storage, d) = (problem.storage, problem.d);
        let grad = random.vector(problem.residual.len(), Values::Normal(0.1));
        let head = head.then(|| (stored(storage, &random.vector(d, Values::Normal(0.02))), 64.0));
        NormBackward { problem, grad, head }
    }

    /// The gradient of some of the rows, and its rounding.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        rows: Range<usize>,
        shift: usize,
    ) -> Result<(Rows<f32>, Rows<u16>)> {
        let Problem { storage, d, columns, residual, delta, weight, .. } = &self.problem;
        let range = rows.start * d..rows.end * d;
        // After the final norm there is no gradient to add to.
        let mut grad = match self.head {
            None => Guarded::shifted(device, &self.grad[range.clone()], shift)?,
            Some(_) => Guarded::output(device, range.len(), shift)?,
        };
        let mut rounded = Guarded::output(device, range.len(), shift)?;
        let residual = Guarded::shifted(device, &residual[range.clone()], shift)?;
        let dy = Guarded::shifted(device, &delta[range], shift)?;
        let weight = Guarded::shifted(device, weight, shift)?;
        let head = match &self.head {
            Some((head, factor)) => Some((Guarded::shifted(device, head, shift)?, *factor)),
            None => None,
        };
        let upstream = match &head {
            Some((head, factor)) => Upstream::Head(head.view(), *factor),
            None => Upstream::Rows(dy.view()),
        };
        let norm = Norm { weight: weight.view(), columns: *columns, eps: EPS };
        let (out, out_16) = (&mut grad.view_mut(), &mut rounded.view_mut());
        // The rounding is left away where nothing looks at it.
        let out_16 = (shift == 0).then_some(out_16);
        rmsnorm_backward(device, *storage, out, out_16, upstream, residual.view(), norm)?;
        let grad = Rows { name: "grad", width: *d, values: grad.read(device, check, "grad")? };
        Ok((grad, Rows { name: "rounded", width: *d, values: rounded.read(device, check, "rounded")? }))
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let Problem { storage, d, columns, residual, delta, weight, .. } = &self.problem;
        let rows = self.problem.rows();
        let (grad, rounded) = repeated(check, rows, |check, rows| self.run(device, check, rows, 0))?;
        let shifted = self.run(device, check, 0..rows, 1)?;
        shifted.0.hold(check, "at an odd address", &grad, 0..rows);
        check.same("rounded", &rounded.values, &stored(*storage, &grad.values));

        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let weight = widened(*storage, weight);
        let head = self
            .head
            .as_ref()
            .map(|(head, factor)| widened(*storage, head).into_iter().map(|x| x * factor).collect::<Vec<f32>>());
        let mut errors = Errors::default();
        for (row, found) in grad.values.chunks_exact(*d).enumerate() {
            let range = row * d..(row + 1) * d;
            let (x, dy) = (&residual[range.clone()], head.as_ref().map_or(&delta[range.clone()], |head| head));
            let exact = exact_backward(&wide(dy), &wide(x), &wide(&weight), *columns, EPS);
            let simulated = simulated_backward(dy, x, &weight, *columns, EPS);
            for (i, ((&y, (exact, terms)), simulated)) in found.iter().zip(exact).zip(simulated).enumerate() {
                let before = if head.is_some() { 0.0 } else { self.grad[row * d + i] };
                let (wide, size) = (f64::from(before), f64::from(before.abs()));
                errors.add(y, before + simulated, wide + exact, terms + size + f64::from(f32::MIN_POSITIVE));
            }
        }
        errors.check(check, "grad", 3.0, 4.0 * f64::from(f32::EPSILON));
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let run = |check: &mut Check, rows| Ok(self.run(device, check, rows, 0)?.0);
        let all = run(check, 0..self.problem.rows())?;
        batches(check, &all, first_of(self.problem.rows()).chain(single([100])), run)
    }
}

fn pairwise(x: &[f32]) -> f32 {
    match x {
        [] => 0.0,
        [one] => one * one,
        _ => {
            let (a, b) = x.split_at(x.len() / 2);
            pairwise(a) + pairwise(b)
        }
    }
}

/// `1 / sqrt(sum(x^2) / columns + eps)`.
pub(super) fn inverse_norm(x: &[f64], columns: usize, eps: f32) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / columns as f64 + f64::from(eps)).sqrt()
}

/// RMSNorm of a row.
#[cfg(test)]
fn exact(x: &[f64], weight: &[f64], columns: usize, eps: f32) -> Vec<f64> {
    let r = inverse_norm(x, columns, eps);
    x.iter().zip(weight).map(|(x, w)| x * r * w).collect()
}

/// Its gradient, per element with the magnitudes that it was added up from.
pub fn exact_backward(dy: &[f64], x: &[f64], weight: &[f64], columns: usize, eps: f32) -> Vec<(f64, f64)> {
    let r = inverse_norm(x, columns, eps);
    let products = || dy.iter().zip(weight).zip(x).map(|((dy, w), x)| dy * w * x);
    let along = products().sum::<f64>() / columns as f64 * r * r;
    let size = products().map(f64::abs).sum::<f64>() / columns as f64 * r * r;
    let element =
        |((dy, w), x): ((&f64, &f64), &f64)| (r * (dy * w - x * along), r * ((dy * w).abs() + x.abs() * size));
    dy.iter().zip(weight).zip(x).map(element).collect()
}

/// The same in f32, rounded after every operation, sums from left to right.
pub fn simulated_backward(dy: &[f32], x: &[f32], weight: &[f32], columns: usize, eps: f32) -> Vec<f32> {
    let squares = x.iter().fold(0.0f32, |sum, x| sum + x * x);
    let r = 1.0 / (squares / columns as f32 + eps).sqrt();
    let g: Vec<f32> = dy.iter().zip(weight).map(|(dy, w)| dy * w).collect();
    let along = g.iter().zip(x).fold(0.0f32, |sum, (g, x)| sum + g * x) / columns as f32 * r * r;
    g.iter().zip(x).map(|(g, x)| r * (g - x * along)).collect()
}

pub fn timings() -> Vec<Timed> {
    let case = |rows| format!("bf16 [{rows}, 4096]");
    let mut all = Timed::each("rmsnorm", [1, 64, 2048], case, time);
    all.extend(Timed::each("rmsnorm_backward", [16, 128, 2048], case, time_backward));
    all
}

fn time(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let d = 4096;
    let (elements, bytes) = (rows * d, rows * d * (4 + 2 + 4 + 2));
    let mut random = Random::named("bench");
    let weight = device.random(&mut random, d, Values::Normal(1.0))?;
    let residual = random.vector(elements, Values::Normal(1.0));
    let delta = stored(HalfType::Bf16, &random.vector(elements, Values::Normal(0.01)));
    let mut sets = device.sets(bytes, |_| {
        let out = Buffer::<u16>::uninitialised(device, elements)?;
        Ok((out, Buffer::from_slice(device, &residual)?, Buffer::from_slice(device, &delta)?))
    })?;
    let seconds = device.median(&mut sets, |(out, residual, delta)| {
        let delta = Delta::Half(delta.view());
        let norm = Norm { weight: weight.view(), columns: d, eps: EPS };
        rmsnorm(device, HalfType::Bf16, &mut out.view_mut(), &mut residual.view_mut(), delta, norm)
    })?;
    Ok(Measured::bytes(seconds, bytes))
}

fn time_backward(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let d = 4096;
    let (elements, bytes) = (rows * d, rows * d * (12 + 4 + 2));
    let mut random = Random::named("bench");
    let weight = device.random(&mut random, d, Values::Normal(1.0))?;
    let values = random.vector(elements, Values::Normal(1.0));
    let mut sets = device.sets(bytes, |_| {
        let [grad, dy, residual] = [&values; 3].map(|values| Buffer::from_slice(device, values));
        Ok((grad?, Buffer::<u16>::uninitialised(device, elements)?, dy?, residual?))
    })?;
    let seconds = device.median(&mut sets, |(grad, rounded, dy, residual)| {
        let norm = Norm { weight: weight.view(), columns: d, eps: EPS };
        let (grad, rounded) = (&mut grad.view_mut(), &mut rounded.view_mut());
        let upstream = Upstream::Rows(dy.view());
        rmsnorm_backward(device, HalfType::Bf16, grad, Some(rounded), upstream, residual.view(), norm)
    })?;
    Ok(Measured::bytes(seconds, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::kernel_check::numbers::slopes::{hold, numbers};

    #[test]
    fn the_gradient_is_the_slope() {
        let (x, dy, mut w) = (numbers(12, 7, 11), numbers(12, 5, 13), numbers(12, 3, 7));
        hold(&x, &dy, &exact_backward(&dy, &x, &w, 12, 1e-5), |x| exact(x, &w, 12, 1e-5));
        // Two columns of padding.
        let mut x = x;
        (w[10], w[11], x[10], x[11]) = (0.0, 0.0, 0.0, 0.0);
        hold(&x, &dy, &exact_backward(&dy, &x, &w, 10, 1e-5), |x| exact(x, &w, 10, 1e-5));
    }
}
