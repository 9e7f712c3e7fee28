//! Cases of `swiglu`.

use super::case::{Case, Check};
use super::errors::{Errors, SMALLEST, half_unit};
use super::gemm::grouped;
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::rows::{Rows, batches, first_of, repeated, single};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::swiglu::{Gates, swiglu, swiglu_backward};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use std::ops::Range;

const OP: &str = "swiglu";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (rows, f) in [(1usize, 8usize), (7, 64), (5, 264), (3, 2056), (2, 4168)] {
            for values in [Values::Normal(1.0), Values::Normal(12.0), Values::Outliers] {
                let name = format!("{} [{rows}, {f}], {values}", storage.name());
                cases.push(Case::seeded(OP, name, rows * f, move |seed, device, check| {
                    Problem::new(seed, storage, rows, f, values).check(device, check)
                }));
                let name = format!("{} backward [{rows}, {f}], {values}", storage.name());
                cases.push(Case::seeded(OP, name, rows * f, move |seed, device, check| {
                    Problem::new(seed, storage, rows, f, values).check_backward(device, check)
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

    fn rows(&self) -> usize {
        self.gate_up.len() / (2 * self.f)
    }

    fn run(&self, device: &Device, check: &mut Check, rows: Range<usize>) -> Result<Rows<u16>> {
        let gate_up = Guarded::input(device, &self.gate_up[rows.start * 2 * self.f..rows.end * 2 * self.f])?;
        let mut out = Guarded::output(device, rows.len() * self.f, 0)?;
        swiglu(device, self.storage, &mut out.view_mut(), gate_up.view(), self.f, Gates::Apart)?;
        Ok(Rows { name: "out", width: self.f, values: out.read(device, check, "out")? })
    }

    fn run_backward(&self, device: &Device, check: &mut Check, rows: Range<usize>) -> Result<Rows<u16>> {
        let width = 2 * self.f;
        let gate_up = Guarded::input(device, &self.gate_up[rows.start * width..rows.end * width])?;
        let d_act = Guarded::input(device, &self.d_act[rows.start * self.f..rows.end * self.f])?;
        let mut out = Guarded::output(device, rows.len() * width, 0)?;
        swiglu_backward(device, self.storage, &mut out.view_mut(), d_act.view(), gate_up.view(), self.f)?;
        Ok(Rows { name: "d_gate_up", width, values: out.read(device, check, "d_gate_up")? })
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let out = repeated(check, self.rows(), |check, rows| self.run(device, check, rows))?;
        let grouped = Guarded::input(device, &grouped(&self.gate_up, self.f, true))?;
        let mut again = Guarded::output(device, out.values.len(), 0)?;
        swiglu(device, self.storage, &mut again.view_mut(), grouped.view(), self.f, Gates::Grouped)?;
        check.same("out of groups", &again.read(device, &mut Check::default(), "out")?, &out.values);
        let mut errors = Errors::default();
        let gate_up = widened(self.storage, &self.gate_up);
        for (row, out) in gate_up.chunks_exact(2 * self.f).zip(out.values.chunks_exact(self.f)) {
            let (gate, up) = row.split_at(self.f);
            for ((&g, &u), &y) in gate.iter().zip(up).zip(out) {
                let exact = exact(f64::from(g), f64::from(u));
                let simulated = self.storage.widen(self.storage.round(g / (1.0 + (-g).exp()) * u));
                errors.add(self.storage.widen(y), simulated, exact, exact.abs() + SMALLEST);
            }
        }
        errors.check(check, "out", 2.0, half_unit(self.storage));
        Ok(())
    }

    fn check_backward(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (rows, f) = (self.rows(), self.f);
        let run = |check: &mut Check, rows| self.run_backward(device, check, rows);
        let out = repeated(check, rows, run)?;
        batches(check, &out, single([rows - 1]), run)?;
        let mut errors = Errors::default();
        let gate_up = widened(self.storage, &self.gate_up);
        for (at, &d) in self.d_act.iter().enumerate() {
            let gate_at = at / f * 2 * f + at % f;
            let (g, u) = (gate_up[gate_at], gate_up[gate_at + f]);
            let s = 1.0 / (1.0 + (-g).exp());
            let simulated = [d * u * s * (1.0 + g * (1.0 - s)), d * g * s];
            let exact = exact_backward(f64::from(d), f64::from(g), f64::from(u));
            for (half, (simulated, (exact, terms))) in simulated.into_iter().zip(exact).enumerate() {
                let round = |x: f32| self.storage.widen(self.storage.round(x));
                let found = self.storage.widen(out.values[gate_at + half * f]);
                errors.add(found, round(simulated), exact, terms + SMALLEST);
            }
        }
        errors.check(check, "d_gate_up", 3.0, half_unit(self.storage));
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let forward = |check: &mut Check, rows| self.run(device, check, rows);
        let backward = |check: &mut Check, rows| self.run_backward(device, check, rows);
        let all = forward(check, 0..self.rows())?;
        batches(check, &all, first_of(self.rows()), forward)?;
        let gradients = backward(check, 0..self.rows())?;
        batches(check, &gradients, first_of(self.rows()), backward)?;
        batches(check, &all, single([100]), forward)
    }
}

/// `silu(gate) * up`.
pub(super) fn exact(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// Its gradients with respect to gate and up, each with its magnitude.
pub(super) fn exact_backward(d: f64, gate: f64, up: f64) -> [(f64, f64); 2] {
    let s = 1.0 / (1.0 + (-gate).exp());
    // 1 - s without cancellation.
    let rest = 1.0 / (1.0 + gate.exp());
    let size = (d * up * s).abs() * (1.0 + gate.abs() * rest);
    [(d * up * s * (1.0 + gate * rest), size), (d * gate * s, (d * gate * s).abs())]
}

pub fn timings() -> Vec<Timed> {
    let case = |rows| format!("bf16 [{rows}, 14336]");
    let mut all = Timed::each("swiglu", [1, 128, 2048], case, time);
    all.extend(Timed::each("swiglu_backward", [16, 128, 2048], case, time_backward));
    all
}

fn time(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let f = 14_336;
    let bytes = rows * f * 6;
    let gate_up = stored(HalfType::Bf16, &Random::named("bench").vector(rows * 2 * f, Values::Normal(1.0)));
    let mut sets = device.sets(bytes, |_| {
        Ok((Buffer::<u16>::uninitialised(device, rows * f)?, Buffer::from_slice(device, &gate_up)?))
    })?;
    let seconds = device.median(&mut sets, |(out, gate_up)| {
        swiglu(device, HalfType::Bf16, &mut out.view_mut(), gate_up.view(), f, Gates::Apart)
    })?;
    Ok(Measured::bytes(seconds, bytes))
}

fn time_backward(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let f = 14_336;
    let bytes = rows * f * 12;
    let mut random = Random::named("bench");
    let gate_up = stored(HalfType::Bf16, &random.vector(rows * 2 * f, Values::Normal(1.0)));
    let d_act = random.vector(rows * f, Values::Normal(1.0));
    let mut sets = device.sets(bytes, |_| {
        let inputs = (Buffer::from_slice(device, &d_act)?, Buffer::from_slice(device, &gate_up)?);
        Ok((Buffer::<u16>::uninitialised(device, rows * 2 * f)?, inputs.0, inputs.1))
    })?;
    let seconds = device.median(&mut sets, |(out, d_act, gate_up)| {
        swiglu_backward(device, HalfType::Bf16, &mut out.view_mut(), d_act.view(), gate_up.view(), f)
    })?;
    Ok(Measured::bytes(seconds, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::kernel_check::numbers::slopes::hold;

    #[test]
    fn the_gradient_is_the_slope() {
        for (gate, up) in [(0.0, 1.0), (1.3, -2.0), (-1.278, 0.7), (-9.0, 3.0), (25.0, 0.1)] {
            hold(&[gate, up], &[1.7], &exact_backward(1.7, gate, up), |x| vec![exact(x[0], x[1])]);
        }
    }
}
