//! Random numbers that are a function of a seed and a counter: the same on every machine and in every batch.

use crate::{Error, Result};

/// Source of the uniform numbers that sampling consumes, one per proposal used.
#[derive(Clone, Debug)]
pub enum Uniforms {
    /// Counter-based from a seed: the n-th number depends on the seed and n alone.
    Seeded(u64),
    /// Recorded values, in order.
    Recorded(Vec<f64>),
}

impl Uniforms {
    /// The n-th number, counted from 0, in `[0, 1)`.
    ///
    /// # Errors
    /// Recorded numbers that have run out or are outside the interval.
    pub fn nth(&self, n: usize) -> Result<f64> {
        match self {
            Uniforms::Seeded(seed) => {
                // SplitMix64. The seed is mixed first, or neighbouring seeds would give shifted copies of one stream.
                let bits = split_mix(split_mix(*seed).wrapping_add(counter(n as u64)));
                Ok((bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64))
            }
            Uniforms::Recorded(values) => match values.get(n) {
                Some(u) if (0.0..1.0).contains(u) => Ok(*u),
                Some(u) => {
                    Err(Error::invalid(format!("recorded uniform number {n} must be at least 0 and below 1, not {u}")))
                }
                None => Err(Error::invalid(format!(
                    "the recorded uniform numbers ran out: there are {}, and the next proposal needs one more",
                    values.len()
                ))),
            },
        }
    }
}

/// The state of SplitMix64 after `n + 1` steps from 0.
fn counter(n: u64) -> u64 {
    n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn split_mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What elements of a tensor are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomFill {
    /// Which tensor of which model.
    pub seed: u64,
    /// Mean of the elements.
    pub mean: f32,
    /// Their standard deviation.
    pub scale: f32,
}

impl RandomFill {
    /// Element `index`, before it is rounded to a storage type. The bits that the kernel `draw` rounds.
    pub fn element(&self, index: u64) -> f32 {
        let word = split_mix(self.seed.wrapping_add(counter(index)));
        let part = |shift: u32| ((word >> shift) & 0xffff) as i32;
        let sum = part(0) + part(16) + part(32) + part(48);
        let z = (sum - 131_072) as f32 * 2.6429e-05;
        z.mul_add(self.scale, self.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_numbers_depend_on_seed_and_counter_only() {
        let seeded = Uniforms::Seeded(7);
        let first: Vec<f64> = (0..1000).map(|n| seeded.nth(n).unwrap()).collect();
        assert!(first.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = first.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        assert_eq!(seeded.nth(999).unwrap(), first[999]);
        assert_ne!(Uniforms::Seeded(8).nth(0).unwrap(), first[0]);
    }

    #[test]
    fn recorded_numbers_run_out_by_name() {
        let recorded = Uniforms::Recorded(vec![0.0, 1.0]);
        assert_eq!(recorded.nth(0).unwrap(), 0.0);
        assert!(recorded.nth(1).unwrap_err().to_string().contains("below 1"));
        assert!(recorded.nth(2).unwrap_err().to_string().contains("there are 2"));
    }

    #[test]
    fn elements_have_the_mean_and_deviation_that_were_asked_for() {
        let draw = RandomFill { seed: 7, mean: 1.5, scale: 0.25 };
        let n = 100_000;
        let all: Vec<f64> = (0..n).map(|i| f64::from(draw.element(i))).collect();
        let mean = all.iter().sum::<f64>() / n as f64;
        let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 1.5).abs() < 0.005 && (variance.sqrt() - 0.25).abs() < 0.005, "{mean} {variance}");
        let other = RandomFill { seed: 8, ..draw };
        assert!((0..100).all(|i| draw.element(i) != draw.element(i + 1)));
        assert!((0..100).any(|i| draw.element(i) != other.element(i)));
    }
}
