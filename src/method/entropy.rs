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

pub use crate::model::{Signal, Threshold};

/// Every signal, the default first.
pub const SIGNALS: [Signal; 4] = [Signal::Entropy, Signal::Margin, Signal::MaxProbability, Signal::Varentropy];

impl Signal {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Entropy => "entropy",
            Signal::Margin => "margin",
            Signal::MaxProbability => "max-probability",
            Signal::Varentropy => "varentropy",
        }
    }
}

/// A threshold to start from, for a signal other than entropy: see the table above.
pub fn threshold_of(signal: &str) -> f64 {
    match signal {
        "margin" => -0.5,
        "max-probability" => 0.5,
        _ => 3.0,
    }
}

/// The signal of a name.
pub fn signal(name: &str) -> Option<Signal> {
    SIGNALS.into_iter().find(|signal| signal.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RowStats;

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
        assert_eq!(Signal::Margin.value(&RowStats::of(&[3.0, 2.5], 0.0)), -0.5);
        assert_eq!(Signal::Margin.value(&RowStats::of(&[3.0], 0.0)), f64::NEG_INFINITY);
        assert_eq!(Signal::MaxProbability.value(&RowStats::of(&[0.0, 0.0], 0.0)), 0.5);
        assert_eq!(Signal::Varentropy.value(&RowStats::of(&[0.0, 0.0], 0.0)), 0.0);
    }

    /// Of a row with probabilities 1/2, 1/4 and 1/4, all four by hand.
    #[test]
    fn every_signal_has_its_value() {
        let stats = RowStats::of(&[4f32.ln(), 2f32.ln(), 2f32.ln()], 0.0);
        let near = |name: &str, value: f64| {
            let found = signal(name).unwrap().value(&stats);
            assert!((found - value).abs() < 1e-6, "{name}: {found}, {value} expected");
        };
        let two = std::f64::consts::LN_2;
        near("entropy", 1.5 * two);
        near("margin", -two);
        near("max-probability", 0.5);
        // The surprise is 1 or 2 times ln 2, each half of the time.
        near("varentropy", 0.25 * two * two);
    }

    /// A certain row and a uniform one have no varentropy; one likely token before a long tail has more than the threshold that the
    /// table names.
    #[test]
    fn varentropy_is_large_before_a_long_tail() {
        let mut row = vec![0.0f32; 4000];
        assert!(Signal::Varentropy.value(&RowStats::of(&row, 0.0)) < 1e-6);
        row[0] = 60.0;
        assert!(Signal::Varentropy.value(&RowStats::of(&row, 0.0)) < 1e-6);
        row[0] = 4000f32.ln();
        assert!(Signal::Varentropy.value(&RowStats::of(&row, 0.0)) > threshold_of("varentropy"));
    }

    #[test]
    fn the_threshold_is_inclusive_and_nan_never_reaches_it() {
        let stats = RowStats::of(&[0.0, 0.0, 1.0], 0.0);
        let exact = Threshold { signal: Signal::Entropy, value: stats.entropy_floored };
        assert!(exact.reached(&stats));
        let above = Threshold { value: exact.value.next_up(), ..exact };
        assert!(!above.reached(&stats));
        assert!(!exact.reached(&RowStats::of(&[f32::NAN], 0.0)));
        assert!(!exact.reached_by(f64::NAN));
    }
}
