//! When to intervene: the uncertainty of a next-token distribution and its threshold.
//!
//! The method as published watches the Shannon entropy. The other signals are read from the same statistics and can
//! take its place without further cost. Each is oriented so that larger means less certain, and reaching the threshold
//! (inclusively) ends a segment.
//!
//! | name | value | range | a threshold to start from |
//! |---|---|---|---|
//! | `entropy` | `-sum max(q, f) ln max(q, f)` with the floor `f` of the options | `0 ..= ln V` nats (the floor adds a little) | 2.0 |
//! | `margin` | minus the gap between the two largest logits | `-inf ..= 0`; 0 is a tie | -0.5 |
//! | `max-probability` | `1 - max q` | `0 .. 1` | 0.5 |
//! | `varentropy` | variance of `-ln q` under `q` | from 0, nats squared | 3.0 |

use crate::model::{Reach, RowStats, Statistic};

/// A measure of how undecided the policy is. Larger means less certain.
pub trait Signal: Sync + std::fmt::Debug {
    /// Name on the command line.
    fn name(&self) -> &'static str;
    /// Value for a row.
    fn value(&self, stats: &RowStats) -> f64;
    /// The value as a device computes it; `None` if no device does.
    fn statistic(&self) -> Option<Statistic>;
}

/// Shannon entropy in nats, with the probability floor of the options. The published method's signal.
#[derive(Clone, Copy, Debug)]
pub struct ShannonEntropy;

impl Signal for ShannonEntropy {
    fn name(&self) -> &'static str {
        "entropy"
    }
    fn value(&self, stats: &RowStats) -> f64 {
        stats.entropy_floored
    }
    fn statistic(&self) -> Option<Statistic> {
        Some(Statistic::Entropy)
    }
}

/// Minus the gap between the two largest logits: 0 when they tie, minus infinity when there is no second.
#[derive(Clone, Copy, Debug)]
pub struct LogitMargin;

impl Signal for LogitMargin {
    fn name(&self) -> &'static str {
        "margin"
    }
    fn value(&self, stats: &RowStats) -> f64 {
        -f64::from(stats.margin)
    }
    fn statistic(&self) -> Option<Statistic> {
        Some(Statistic::NegativeMargin)
    }
}

/// The probability that is not the most likely token's.
#[derive(Clone, Copy, Debug)]
pub struct MaxProbability;

impl Signal for MaxProbability {
    fn name(&self) -> &'static str {
        "max-probability"
    }
    fn value(&self, stats: &RowStats) -> f64 {
        1.0 - stats.max_probability
    }
    fn statistic(&self) -> Option<Statistic> {
        Some(Statistic::RestProbability)
    }
}

/// Variance of the surprise `-ln q` under `q`. It is 0 both for a certain and for a uniform distribution and large when
/// a few likely tokens stand before a long tail.
#[derive(Clone, Copy, Debug)]
pub struct Varentropy;

impl Signal for Varentropy {
    fn name(&self) -> &'static str {
        "varentropy"
    }
    fn value(&self, stats: &RowStats) -> f64 {
        stats.varentropy
    }
    fn statistic(&self) -> Option<Statistic> {
        Some(Statistic::Varentropy)
    }
}

/// Every signal, the default first.
pub static SIGNALS: [&dyn Signal; 4] = [&ShannonEntropy, &LogitMargin, &MaxProbability, &Varentropy];

/// A threshold to start from, for a signal other than entropy: see the table above.
pub fn threshold_of(signal: &str) -> f64 {
    match signal {
        "margin" => -0.5,
        "max-probability" => 0.5,
        _ => 3.0,
    }
}

/// The signal of a name.
pub fn signal(name: &str) -> Option<&'static dyn Signal> {
    SIGNALS.into_iter().find(|signal| signal.name() == name)
}

/// A signal and the value that ends a segment.
#[derive(Clone, Copy, Debug)]
pub struct Threshold {
    /// What is compared.
    pub signal: &'static dyn Signal,
    /// With what.
    pub value: f64,
}

impl Threshold {
    /// Whether a signal's value reaches the threshold: inclusive, and never for NaN.
    pub fn reached_by(&self, value: f64) -> bool {
        value >= self.value
    }
}

impl Reach for Threshold {
    fn reached(&self, stats: &RowStats) -> bool {
        stats.finite && self.reached_by(self.signal.value(stats))
    }

    fn least(&self) -> Option<(Statistic, f64)> {
        self.signal.statistic().map(|statistic| (statistic, self.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_signals() {
        for known in SIGNALS {
            assert_eq!(signal(known.name()).map(Signal::name), Some(known.name()));
        }
        assert!(signal("Entropy").is_none());
        assert_eq!(SIGNALS[0].name(), "entropy");
    }

    #[test]
    fn an_undecided_row_is_larger_in_every_monotone_signal() {
        let decided = RowStats::of(&[9.0, 1.0, 0.0, 0.0], 1e-9);
        let undecided = RowStats::of(&[1.2, 1.0, 0.0, 0.0], 1e-9);
        for name in ["entropy", "margin", "max-probability"] {
            let signal = signal(name).unwrap();
            assert!(signal.value(&undecided) > signal.value(&decided), "{name}");
        }
        assert_eq!(LogitMargin.value(&RowStats::of(&[3.0, 2.5], 0.0)), -0.5);
        assert_eq!(LogitMargin.value(&RowStats::of(&[3.0], 0.0)), f64::NEG_INFINITY);
        assert_eq!(MaxProbability.value(&RowStats::of(&[0.0, 0.0], 0.0)), 0.5);
        assert_eq!(Varentropy.value(&RowStats::of(&[0.0, 0.0], 0.0)), 0.0);
    }

    #[test]
    fn the_threshold_is_inclusive_and_nan_never_reaches_it() {
        let stats = RowStats::of(&[0.0, 0.0, 1.0], 0.0);
        let exact = Threshold { signal: &ShannonEntropy, value: stats.entropy_floored };
        assert!(exact.reached(&stats));
        let above = Threshold { value: exact.value.next_up(), ..exact };
        assert!(!above.reached(&stats));
        assert!(!exact.reached(&RowStats::of(&[f32::NAN], 0.0)));
        assert!(!exact.reached_by(f64::NAN));
    }
}
