//! How far a device is off, next to how far the rounding simulation is.
//!
//! A quantity has many values in a fixture (positions, rows, candidates). Single errors are a matter of luck, theirs as well
//! as the simulation's, so they are compared by two numbers: the root mean square, which sees a small change of everything,
//! and the largest, which sees a large change of something. A device may have [`FORWARD`] times the simulation's,
//! [`BACKWARD`] times for what comes out of a backward pass. Below a floor of the size of f32 summation noise nothing is
//! asked.

use super::{Check, Gauge, worse};

/// How many times the simulation's error is allowed in forward passes.
pub const FORWARD: f64 = 2.0;
/// The same for gradients and what is computed from them.
pub const BACKWARD: f64 = 3.0;
/// Errors of f32 sums in another order; a tenth of what the fixtures allow single precision.
pub const FLOOR: f64 = 1e-5;

/// Errors of one quantity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errors {
    rms: f64,
    largest: f64,
    count: usize,
}

impl Errors {
    /// A NaN among them stays.
    pub fn of(errors: impl IntoIterator<Item = f64>) -> Self {
        let (mut squares, mut largest, mut count) = (0.0, 0.0, 0);
        for error in errors {
            squares += error * error;
            largest = worse(largest, error.abs());
            count += 1;
        }
        Errors { rms: (squares / f64::max(count as f64, 1.0)).sqrt(), largest, count }
    }

    /// Of the differences of two lists. Lists of different lengths are infinitely far apart.
    pub fn between(found: &[f64], exact: &[f64]) -> Self {
        if found.len() != exact.len() {
            return Errors::of([f64::INFINITY]);
        }
        Errors::of(found.iter().zip(exact).map(|(found, exact)| if found == exact { 0.0 } else { found - exact }))
    }

    /// Root mean square.
    pub fn typical(&self) -> f64 {
        self.rms
    }
}

impl Check {
    /// Compares a device's errors in a quantity with the simulation's.
    pub(super) fn within(&mut self, quantity: &'static str, device: Errors, simulated: Errors, factor: f64) {
        let of = |device: f64, simulated: f64| device / worse(factor * simulated, FLOOR);
        let share = worse(of(device.rms, simulated.rms), of(device.largest, simulated.largest));
        self.gauges.push(Gauge { quantity, worst: device.largest, share: Some(share), count: device.count });
        // Not a number is beyond every bound.
        if share.is_nan() || share > 1.0 {
            self.differs(|| {
                format!(
                    "{quantity}: errors of {:.2e} in the mean and {:.2e} at most, {factor} times the simulation's \
                     {:.2e} and {:.2e} allowed",
                    device.rms, device.largest, simulated.rms, simulated.largest
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(device: &[f64], simulated: &[f64]) -> Check {
        let mut check = Check::new("x");
        check.within("logit", Errors::of(device.iter().copied()), Errors::of(simulated.iter().copied()), FORWARD);
        check
    }

    #[test]
    fn mean_and_largest_each_have_a_bound() {
        let simulated = [0.1, -0.1, 0.1, -0.4];
        assert!(compare(&[0.2, 0.2, 0.2, 0.2], &simulated).ok());
        assert!(!compare(&[0.0, 0.0, 0.0, 0.81], &simulated).ok());
        assert!(!compare(&[0.5, 0.5, 0.5, 0.5], &simulated).ok());
        assert!(compare(&[9e-6], &[0.0]).ok());
        assert!(!compare(&[2e-5], &[0.0]).ok());
    }

    #[test]
    fn what_is_not_finite_never_passes() {
        assert!(!compare(&[0.1, f64::NAN], &[0.1, 0.1]).ok());
        assert!(!compare(&[f64::INFINITY], &[0.1]).ok());
        let unequal = Errors::between(&[1.0], &[1.0, 2.0]);
        assert!(unequal.largest.is_infinite());
        assert_eq!(Errors::between(&[f64::INFINITY], &[f64::INFINITY]).largest, 0.0);
    }
}
