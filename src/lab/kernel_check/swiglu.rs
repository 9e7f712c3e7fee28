//! Cases of `swiglu`.

use super::errors::{Errors, SMALLEST, half_unit};
use super::gradients;
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::{Case, Check, ROWS};
use crate::Result;
use crate::cuda::Device;
use crate::cuda::ops::swiglu::{swiglu, swiglu_backward};
use crate::dtype::HalfType;

const OP: &str = "swiglu";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (rows, f) in [(1usize, 8usize), (7, 64), (5, 264), (3, 2056), (2, 4168)] {
            for values in [Values::Normal(1.0), Values::Normal(12.0), Values::Outliers] {
                let name = format!("{} [{rows}, {f}], {values}", storage.name());
                let seed = name.clone();
                cases.push(Case::new(OP, name, rows * f, move |device, check| {
                    Problem::new(&seed, storage, rows, f, values).check(device, check)
                }));
                let name = format!("{} backward [{rows}, {f}], {values}", storage.name());
                let seed = name.clone();
                cases.push(Case::new(OP, name, rows * f, move |device, check| {
                    Problem::new(&seed, storage, rows, f, values).check_backward(device, check)
                }));
            }
        }
        let name = format!("{} rows alone and together, f 72", storage.name());
        cases.push(Case::new(OP, name, 1200 * 72, move |device, check| {
            Problem::new("together", storage, 257, 72, Values::Normal(2.0)).alone_and_together(device, check)
        }));
    }
    cases
}

/// One problem on the host.
struct Problem {
    storage: HalfType,
    f: usize,
    gate_up: Vec<u16>,
    /// Of the backward pass.
    d_act: Vec<f32>,
}

impl Problem {
    fn new(seed: &str, storage: HalfType, rows: usize, f: usize, values: Values) -> Self {
        let mut random = Random::named(seed);
        let gate_up = stored(storage, &random.vector(rows * 2 * f, values));
        Problem { storage, f, gate_up, d_act: random.vector(rows * f, Values::Normal(0.3)) }
    }

    fn run(&self, device: &Device, check: &mut Check, rows: std::ops::Range<usize>) -> Result<Vec<u16>> {
        let gate_up = Guarded::input(device, &self.gate_up[rows.start * 2 * self.f..rows.end * 2 * self.f])?;
        let mut out = Guarded::output(device, rows.len() * self.f, 0)?;
        swiglu(device, self.storage, &mut out.view_mut(), gate_up.view(), self.f)?;
        out.read(device, check, "out")
    }

    fn rows(&self) -> usize {
        self.gate_up.len() / (2 * self.f)
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let out = self.run(device, check, 0..self.rows())?;
        let again = self.run(device, check, 0..self.rows())?;
        check.same("out, run again", &again, &out);
        let mut errors = Errors::default();
        let gate_up = widened(self.storage, &self.gate_up);
        for (row, out) in gate_up.chunks_exact(2 * self.f).zip(out.chunks_exact(self.f)) {
            let (gate, up) = row.split_at(self.f);
            for ((&g, &u), &y) in gate.iter().zip(up).zip(out) {
                let exact = f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u);
                let simulated = self.storage.widen(self.storage.round(g / (1.0 + (-g).exp()) * u));
                errors.add(self.storage.widen(y), simulated, exact, exact.abs() + SMALLEST);
            }
        }
        errors.check(check, "out", 2.0, half_unit(self.storage));
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let all = self.run(device, check, 0..self.rows())?;
        for rows in ROWS {
            let some = self.run(device, check, 0..rows)?;
            check.same(&format!("the first {rows} rows"), &some, &all[..rows * self.f]);
        }
        let (all_back, width) = (self.run_backward(device, check, 0..self.rows())?, 2 * self.f);
        for rows in ROWS {
            let some = self.run_backward(device, check, 0..rows)?;
            check.same(&format!("gradients of the first {rows} rows"), &some, &all_back[..rows * width]);
        }
        let one = self.run(device, check, 100..101)?;
        check.same("row 100 alone", &one, &all[100 * self.f..101 * self.f]);
        Ok(())
    }

    fn run_backward(&self, device: &Device, check: &mut Check, rows: std::ops::Range<usize>) -> Result<Vec<u16>> {
        let gate_up = Guarded::input(device, &self.gate_up[rows.start * 2 * self.f..rows.end * 2 * self.f])?;
        let d_act = Guarded::input(device, &self.d_act[rows.start * self.f..rows.end * self.f])?;
        let mut out = Guarded::output(device, rows.len() * 2 * self.f, 0)?;
        swiglu_backward(device, self.storage, &mut out.view_mut(), d_act.view(), gate_up.view(), self.f)?;
        out.read(device, check, "d_gate_up")
    }

    fn check_backward(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (rows, f) = (self.rows(), self.f);
        let out = self.run_backward(device, check, 0..rows)?;
        let again = self.run_backward(device, check, 0..rows)?;
        check.same("d_gate_up, run again", &again, &out);
        let last = self.run_backward(device, check, rows - 1..rows)?;
        check.same("the last row alone", &last, &out[(rows - 1) * 2 * f..]);
        let mut errors = Errors::default();
        let gate_up = widened(self.storage, &self.gate_up);
        for (at, &d) in self.d_act.iter().enumerate() {
            let gate_at = at / f * 2 * f + at % f;
            let (g, u) = (gate_up[gate_at], gate_up[gate_at + f]);
            let s = 1.0 / (1.0 + (-g).exp());
            let simulated = [d * u * s * (1.0 + g * (1.0 - s)), d * g * s];
            let exact = gradients::swiglu_backward(f64::from(d), f64::from(g), f64::from(u));
            for (half, (simulated, (exact, terms))) in simulated.into_iter().zip(exact).enumerate() {
                let round = |x: f32| self.storage.widen(self.storage.round(x));
                let found = self.storage.widen(out[gate_at + half * f]);
                errors.add(found, round(simulated), exact, terms + SMALLEST);
            }
        }
        errors.check(check, "d_gate_up", 3.0, half_unit(self.storage));
        Ok(())
    }
}
