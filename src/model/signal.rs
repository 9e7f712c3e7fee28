//! Measures of a row's uncertainty, and the condition that makes a row report its largest logits.

use super::RowStats;

/// A measure of how undecided the policy is. Larger means less certain. Backends evaluate it where the row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Shannon entropy in nats, with the probability floor that was asked for. The published method's signal.
    Entropy,
    /// Minus the gap between the two largest logits: 0 when they tie, minus infinity when there is no second.
    Margin,
    /// The probability that is not the most likely token's.
    MaxProbability,
    /// Variance of the surprise `-ln q` under `q`. It is 0 both for a certain and for a uniform distribution and large
    /// when a few likely tokens stand before a long tail.
    Varentropy,
}

impl Signal {
    /// Value for a row.
    pub fn value(self, stats: &RowStats) -> f64 {
        match self {
            Signal::Entropy => stats.entropy_floored,
            Signal::Margin => -f64::from(stats.margin),
            Signal::MaxProbability => 1.0 - stats.max_probability,
            Signal::Varentropy => stats.varentropy,
        }
    }
}

/// A signal and the value from which on a row counts as uncertain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// What is compared.
    pub signal: Signal,
    /// With what.
    pub value: f64,
}

impl Threshold {
    /// Whether a signal's value reaches the threshold: inclusive, and never for NaN.
    pub fn reached_by(&self, value: f64) -> bool {
        value >= self.value
    }

    /// Whether a row's signal reaches it. A row that is not finite never does.
    pub fn reached(&self, stats: &RowStats) -> bool {
        stats.finite && self.reached_by(self.signal.value(stats))
    }
}
