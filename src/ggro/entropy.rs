//! When to intervene: the uncertainty of a next-token distribution and its threshold.

use crate::model::RowStats;

/// A measure of how undecided the policy is. Larger means less certain.
pub trait Signal: Sync + std::fmt::Debug {
    /// Name on the command line.
    fn name(&self) -> &'static str;
    /// Value for a row.
    fn value(&self, stats: &RowStats) -> f64;
}
