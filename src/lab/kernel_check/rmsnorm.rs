//! Cases of `rmsnorm`.

use super::errors::Errors;
use super::gradients::{norm_backward, norm_backward_simulated};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::{Case, Check, ROWS};
use crate::Result;
use crate::cuda::Device;
use crate::cuda::ops::rmsnorm::{Delta, Norm, Upstream, rmsnorm, rmsnorm_backward};
use crate::dtype::HalfType;

const OP: &str = "rmsnorm";
const EPS: f32 = 1e-5;

#[derive(Clone, Copy, Debug)]
enum Added {
    Nothing,
    F32,
    HalfType,
}

/// One problem on the host.
struct Problem {
    storage: HalfType,
    d: usize,
    /// Real columns, the first ones.
    columns: usize,
    residual: Vec<f32>,
    added: Added,
    delta: Vec<f32>,
    weight: Vec<u16>,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (d, rows) in [(1, 7), (31, 7), (33, 7), (111, 7), (4096, 3), (12_276, 2), (32_000, 2), (128_256, 1)] {
            for (added, values) in [
                (Added::Nothing, Values::Normal(1.0)),
                (Added::F32, Values::Outliers),
                (Added::HalfType, Values::Normal(0.02)),
            ] {
                let name = format!("{} [{rows}, {d}] + {added:?}, {values}", storage.name());
                let seed = name.clone();
                cases.push(Case::new(OP, name, rows * d, move |device, check| {
                    let problem = Problem::new(&seed, storage, rows, d, added, values);
                    problem.check(device, check)
                }));
            }
        }
        for (d, columns) in [(64, 40), (128, 127), (4096, 4033)] {
            let name = format!("{} [5, {d}] of {columns} columns", storage.name());
            cases.push(Case::new(OP, name, 5 * d, move |device, check| {
                let values = Values::Normal(1.0);
                let problem = Problem::new("padded", storage, 5, d, Added::HalfType, values).padded(columns);
                problem.check(device, check)
            }));
        }
        for d in [111, 512] {
            let name = format!("{} rows alone and together, d {d}", storage.name());
            cases.push(Case::new(OP, name, 600 * d, move |device, check| {
                let problem = Problem::new("together", storage, 257, d, Added::HalfType, Values::Outliers);
                problem.alone_and_together(device, check)
            }));
        }
    }
    cases.extend(backward_cases());
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
                let seed = name.clone();
                cases.push(Case::new(OP, name, rows * d, move |device, check| {
                    let problem = Problem::new(&seed, storage, rows, d, Added::F32, values).padded(columns);
                    Backward::new(&seed, problem, head).check(device, check)
                }));
            }
        }
        for d in [111, 512] {
            let name = format!("{} backward, rows alone and together, d {d}", storage.name());
            cases.push(Case::new(OP, name, 600 * d, move |device, check| {
                let problem = Problem::new("together", storage, 257, d, Added::F32, Values::Outliers);
                Backward::new("together", problem, false).alone_and_together(device, check)
            }));
        }
    }
    cases
}

impl Problem {
    fn new(seed: &str, storage: HalfType, rows: usize, d: usize, added: Added, values: Values) -> Self {
        let mut random = Random::named(seed);
        let residual = random.vector(rows * d, values);
        let delta = random.vector(rows * d, values);
        let delta = match added {
            Added::Nothing => vec![0.0; rows * d],
            Added::F32 => delta,
            Added::HalfType => widened(storage, &stored(storage, &delta)),
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
        rows: std::ops::Range<usize>,
        shift: usize,
    ) -> Result<(Vec<u16>, Vec<f32>)> {
        let range = rows.start * self.d..rows.end * self.d;
        let mut out = Guarded::output(device, range.len(), shift)?;
        let mut residual = Guarded::shifted(device, &self.residual[range.clone()], shift)?;
        let delta_f32 = Guarded::shifted(device, &self.delta[range.clone()], shift)?;
        let delta_16 = Guarded::shifted(device, &stored(self.storage, &self.delta[range]), shift)?;
        let weight = Guarded::shifted(device, &self.weight, shift)?;
        let delta = match self.added {
            Added::Nothing => Delta::None,
            Added::F32 => Delta::F32(delta_f32.view()),
            Added::HalfType => Delta::HalfType(delta_16.view()),
        };
        let norm = Norm { weight: weight.view(), columns: self.columns, eps: EPS };
        rmsnorm(device, self.storage, &mut out.view_mut(), &mut residual.view_mut(), delta, norm)?;
        Ok((out.read(device, check, "out")?, residual.read(device, check, "residual")?))
    }

    fn rows(&self) -> usize {
        self.residual.len() / self.d
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (out, residual) = self.run(device, check, 0..self.rows(), 0)?;
        let again = self.run(device, check, 0..self.rows(), 0)?;
        check.same("out, run again", &again.0, &out);
        let shifted = self.run(device, check, 0..self.rows(), 1)?;
        check.same("out, at an odd address", &shifted.0, &out);
        check.same("residual, at an odd address", &shifted.1, &residual);
        let sum: Vec<f32> = self.residual.iter().zip(&self.delta).map(|(a, b)| a + b).collect();
        check.same("residual", &residual, &sum);

        let weight = widened(self.storage, &self.weight);
        let mut errors = (0.0f64, 0.0f64);
        for (row, out) in sum.chunks_exact(self.d).zip(out.chunks_exact(self.d)) {
            let mean = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / self.columns as f64;
            let exact_scale = 1.0 / (mean + f64::from(EPS)).sqrt();
            // The same in f32, summed pairwise instead of by threads.
            let scale = 1.0 / (pairwise(row) / self.columns as f32 + EPS).sqrt();
            for ((&x, &w), &y) in row.iter().zip(&weight).zip(out) {
                let exact = f64::from(x) * exact_scale * f64::from(w);
                let simulated = self.storage.widen(self.storage.round(x * scale * w));
                // Below the smallest normal f16 a rounding is absolute.
                let unit = exact.abs() + 6.2e-5;
                let error = (f64::from(self.storage.widen(y)) - exact).abs() / unit;
                errors.0 = if error.is_nan() { f64::INFINITY } else { errors.0.max(error) };
                errors.1 = errors.1.max((f64::from(simulated) - exact).abs() / unit);
            }
        }
        // A simulation may be exact by luck where an element more or less than a tie is not: half a unit is always fine.
        let half_unit = match self.storage {
            HalfType::Bf16 => 1.0 / 256.0,
            HalfType::F16 => 1.0 / 2048.0,
        };
        check.bound(|| "out".into(), errors.0, (2.0 * errors.1).max(half_unit));
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (all, _) = self.run(device, check, 0..self.rows(), 0)?;
        for rows in ROWS {
            let (some, _) = self.run(device, check, 0..rows, 0)?;
            check.same(&format!("the first {rows} rows"), &some, &all[..rows * self.d]);
        }
        for row in [1, 100, 256] {
            let (one, _) = self.run(device, check, row..row + 1, 0)?;
            check.same(&format!("row {row} alone"), &one, &all[row * self.d..(row + 1) * self.d]);
        }
        Ok(())
    }
}

/// A problem of the backward pass: the forward one's delta is the gradient behind the norm.
struct Backward {
    problem: Problem,
    grad: Vec<f32>,
    /// Behind the final norm.
    head: Option<(Vec<u16>, f32)>,
}

impl Backward {
    fn new(seed: &str, problem: Problem, head: bool) -> Self {
        let mut random = Random::named(&format!("{seed}, gradient"));
        let (storage, d) = (problem.storage, problem.d);
        let grad = random.vector(problem.residual.len(), Values::Normal(0.1));
        let head = head.then(|| (stored(storage, &random.vector(d, Values::Normal(0.02))), 64.0));
        Backward { problem, grad, head }
    }

    /// The gradient of some of the rows, and its rounding.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        rows: std::ops::Range<usize>,
        shift: usize,
    ) -> Result<(Vec<f32>, Vec<u16>)> {
        let Problem { storage, d, columns, residual, delta, weight, .. } = &self.problem;
        let range = rows.start * d..rows.end * d;
        // Behind the final norm nothing is there yet.
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
        let behind = match &head {
            Some((head, factor)) => Upstream::Head(head.view(), *factor),
            None => Upstream::Rows(dy.view()),
        };
        let norm = Norm { weight: weight.view(), columns: *columns, eps: EPS };
        let (out, out_16) = (&mut grad.view_mut(), &mut rounded.view_mut());
        // The rounding is left away where nothing looks at it.
        let out_16 = (shift == 0).then_some(out_16);
        rmsnorm_backward(device, *storage, out, out_16, behind, residual.view(), norm)?;
        Ok((grad.read(device, check, "grad")?, rounded.read(device, check, "rounded")?))
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let Problem { storage, d, columns, residual, delta, weight, .. } = &self.problem;
        let (grad, rounded) = self.run(device, check, 0..self.problem.rows(), 0)?;
        let again = self.run(device, check, 0..self.problem.rows(), 0)?;
        check.same("grad, run again", &again.0, &grad);
        let shifted = self.run(device, check, 0..self.problem.rows(), 1)?;
        check.same("grad, at an odd address", &shifted.0, &grad);
        check.same("rounded", &rounded, &stored(*storage, &grad));

        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let weight = widened(*storage, weight);
        let head = self
            .head
            .as_ref()
            .map(|(head, factor)| widened(*storage, head).into_iter().map(|x| x * factor).collect::<Vec<f32>>());
        let mut errors = Errors::default();
        for (row, found) in grad.chunks_exact(*d).enumerate() {
            let range = row * d..(row + 1) * d;
            let (x, dy) = (&residual[range.clone()], head.as_ref().map_or(&delta[range.clone()], |head| head));
            let exact = norm_backward(&wide(dy), &wide(x), &wide(&weight), *columns, EPS);
            let simulated = norm_backward_simulated(dy, x, &weight, *columns, EPS);
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
        let (rows, d) = (self.problem.rows(), self.problem.d);
        let (all, _) = self.run(device, check, 0..rows, 0)?;
        for rows in ROWS {
            let (some, _) = self.run(device, check, 0..rows, 0)?;
            check.same(&format!("the first {rows} rows"), &some, &all[..rows * d]);
        }
        let (one, _) = self.run(device, check, 100..101, 0)?;
        check.same("row 100 alone", &one, &all[100 * d..101 * d]);
        Ok(())
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
