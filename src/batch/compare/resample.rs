//! Bootstrap intervals over prompts (percentiles of resampled means; Efron and Tibshirani, An Introduction to the Bootstrap,
//! chapter 13). One set of resamples serves all numbers of a comparison, so that differences are paired.

use crate::batch::report::Mean;
use crate::rng::Uniforms;

/// Resamples of an interval, at most.
const RESAMPLES: usize = 10_000;

/// Resamples of an interval over many prompts, at least.
const FEWEST_RESAMPLES: usize = 1_000;

/// Picks that are kept, about: 200 MB.
const PICKS: usize = 50_000_000;

/// The same comparison always gives the same intervals.
const SEED: u64 = 0x6f6d_7061_7265;

/// Prompts drawn with replacement, as many as there are, many times.
#[derive(Debug)]
pub struct Resamples {
    prompts: usize,
    /// Of all resamples, one after the other.
    picks: Vec<u32>,
}

impl Resamples {
    /// Resamples of so many prompts.
    pub fn new(prompts: usize) -> Resamples {
        Resamples::drawn(prompts, (PICKS / prompts.max(1)).clamp(FEWEST_RESAMPLES, RESAMPLES))
    }

    fn drawn(prompts: usize, count: usize) -> Resamples {
        let uniforms = Uniforms::Seeded(SEED);
        let last = prompts.saturating_sub(1);
        // Numbers from a seed never run out.
        let pick = |n: usize| ((uniforms.nth(n).unwrap_or(0.0) * prompts as f64) as usize).min(last) as u32;
        Resamples { prompts, picks: (0..count * prompts).map(pick).collect() }
    }

    /// The mean of each resample over the prompts that have a value; NaN where none of them has one.
    pub fn means(&self, values: &[Option<f64>]) -> Vec<f64> {
        let one = |picks: &[u32]| {
            let drawn = picks.iter().filter_map(|&pick| values.get(pick as usize).copied().flatten());
            let (sum, count) = drawn.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
            sum / count as f64
        };
        self.picks.chunks_exact(self.prompts.max(1)).map(one).collect()
    }

    /// The mean of values, one for each prompt, with its 95 % interval; `None` if no prompt has one.
    pub fn mean(&self, values: &[Option<f64>]) -> Option<Mean> {
        let there: Vec<f64> = values.iter().copied().flatten().collect();
        let count = there.len();
        let [low, high] = interval(self.means(values))?;
        (count > 0).then(|| Mean { mean: there.iter().sum::<f64>() / count as f64, low, high, count })
    }
}

/// A number of all prompts with its 95 % interval, from what it is without each of them (the jackknife; Efron and Tibshirani,
/// chapter 11). It serves numbers that are no means over prompts and that a prompt drawn twice would distort.
pub fn jackknife(all: f64, without: &[Option<f64>]) -> Mean {
    let there: Vec<f64> = without.iter().copied().flatten().collect();
    let count = there.len() as f64;
    let mean = there.iter().sum::<f64>() / count;
    let squares: f64 = there.iter().map(|value| (value - mean).powi(2)).sum();
    let error = if there.len() > 1 { ((count - 1.0) / count * squares).sqrt() } else { 0.0 };
    Mean { mean: all, low: all - 1.96 * error, high: all + 1.96 * error, count: without.len() }
}

/// The range of the middle 95 % of numbers; `None` without any.
pub fn interval(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values.get((last as f64 * share).round() as usize).copied();
    Some([at(0.025)?, at(0.975)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_a_plain_reading() {
        let resamples = Resamples::drawn(3, 4);
        assert_eq!(resamples.picks.len(), 12);
        let values = [Some(1.0), None, Some(4.0)];
        let expected: Vec<f64> = resamples
            .picks
            .chunks(3)
            .map(|picks| {
                let drawn: Vec<f64> = picks.iter().filter_map(|&pick| values[pick as usize]).collect();
                drawn.iter().sum::<f64>() / drawn.len() as f64
            })
            .collect();
        let found = resamples.means(&values);
        let same = |(a, b): (&f64, &f64)| a == b || (a.is_nan() && b.is_nan());
        assert!(found.len() == 4 && found.iter().zip(&expected).all(same), "{found:?}");
    }

    #[test]
    fn the_jackknife_of_a_mean_has_its_standard_error() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i * 37 % 100)).collect();
        let sum: f64 = values.iter().sum();
        let without: Vec<Option<f64>> = values.iter().map(|value| Some((sum - value) / 99.0)).collect();
        let mean = jackknife(sum / 100.0, &without);
        // The standard deviation of 0 to 99, with n - 1, is 29.01.
        assert!(
            (mean.high - mean.mean - 1.96 * 2.901).abs() < 0.01 && (mean.low + mean.high - 99.0).abs() < 1e-9,
            "{mean:?}"
        );
        let one = jackknife(0.5, &[None]);
        assert_eq!((one.low, one.mean, one.high), (0.5, 0.5, 0.5));
    }

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors_wide() {
        let values: Vec<Option<f64>> = (0..100).map(|i| Some(f64::from(i * 37 % 100))).collect();
        let resamples = Resamples::new(100);
        let mean = resamples.mean(&values).unwrap();
        assert_eq!((mean.mean, mean.count), (49.5, 100));
        // The standard deviation of 0 to 99 is 28.87, so the standard error is 2.887.
        for (end, expected) in [(mean.low, 49.5 - 1.96 * 2.887), (mean.high, 49.5 + 1.96 * 2.887)] {
            assert!((end - expected).abs() < 0.25, "{mean:?}");
        }
        assert_eq!(resamples.mean(&values), Resamples::new(100).mean(&values));
        assert_eq!(Resamples::new(2).mean(&[None, None]), None);
        assert_eq!(Resamples::new(0).mean(&[]), None);
        let same = Resamples::new(2).mean(&[Some(2.0), Some(2.0)]).unwrap();
        assert_eq!((same.low, same.mean, same.high), (2.0, 2.0, 2.0));
    }
}
