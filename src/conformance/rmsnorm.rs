//! Cases of `rmsnorm`.

use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::{Case, Check, ROWS};
use crate::Result;
use crate::cuda::ops::rmsnorm::{Delta, Norm, rmsnorm};
use crate::cuda::{Device, Storage};

const OP: &str = "rmsnorm";
const EPS: f32 = 1e-5;

#[derive(Clone, Copy, Debug)]
enum Added {
    Nothing,
    F32,
    Storage,
}

/// One problem on the host.
struct Problem {
    storage: Storage,
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
    for storage in Storage::ALL {
        for (d, rows) in [(1, 7), (31, 7), (33, 7), (111, 7), (4096, 3), (12_276, 2), (32_000, 2), (128_256, 1)] {
            for (added, values) in [
                (Added::Nothing, Values::Normal(1.0)),
                (Added::F32, Values::Outliers),
                (Added::Storage, Values::Normal(0.02)),
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
                let problem = Problem::new("padded", storage, 5, d, Added::Storage, values).padded(columns);
                problem.check(device, check)
            }));
        }
        for d in [111, 512] {
            let name = format!("{} rows alone and together, d {d}", storage.name());
            cases.push(Case::new(OP, name, 600 * d, move |device, check| {
                let problem = Problem::new("together", storage, 257, d, Added::Storage, Values::Outliers);
                problem.alone_and_together(device, check)
            }));
        }
    }
    cases
}

impl Problem {
    fn new(seed: &str, storage: Storage, rows: usize, d: usize, added: Added, values: Values) -> Self {
        let mut random = Random::named(seed);
        let residual = random.vector(rows * d, values);
        let delta = random.vector(rows * d, values);
        let delta = match added {
            Added::Nothing => vec![0.0; rows * d],
            Added::F32 => delta,
            Added::Storage => widened(storage, &stored(storage, &delta)),
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
            Added::Storage => Delta::Storage(delta_16.view()),
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
            Storage::Bf16 => 1.0 / 256.0,
            Storage::F16 => 1.0 / 2048.0,
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
