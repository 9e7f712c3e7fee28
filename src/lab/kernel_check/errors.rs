//! Errors of a kernel against f64, compared with those of a simulation.

use super::case::Check;
use crate::dtype::HalfType;

/// Below the smallest normal f16 a rounding is absolute.
pub const SMALLEST: f64 = 6.2e-5;

/// The largest errors of a kernel and of its simulation, relative to what each element is made of.
#[derive(Debug, Default)]
pub struct Errors {
    found: f64,
    simulated: f64,
    at: usize,
    count: usize,
}

impl Errors {
    /// One element; `terms` is the sum of the magnitudes that it was added up from. Where the simulation overflows, the
    /// kernel must.
    pub fn add(&mut self, found: f32, simulated: f32, exact: f64, terms: f64) {
        self.count += 1;
        if !simulated.is_finite() {
            if found.to_bits() != simulated.to_bits() {
                (self.found, self.at) = (f64::INFINITY, self.count - 1);
            }
            return;
        }
        let error = (f64::from(found) - exact).abs() / terms;
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > self.found {
            (self.found, self.at) = (error, self.count - 1);
        }
        self.simulated = self.simulated.max((f64::from(simulated) - exact).abs() / terms);
    }

    /// Holds the kernel to `factor` times the simulation, which may be exact by luck: `least` always passes.
    pub fn check(&self, check: &mut Check, what: &str, factor: f64, least: f64) {
        let bound = (factor * self.simulated).max(least);
        check.bound(|| format!("{what}, element {}", self.at), self.found, bound);
    }
}

/// Half a unit in the last place, relative: what one rounding may cost.
pub fn half_unit(storage: HalfType) -> f64 {
    match storage {
        HalfType::Bf16 => 1.0 / 256.0,
        HalfType::F16 => 1.0 / 2048.0,
    }
}
