//! Whether a proposal is accepted, by its reward.

/// Whether a uniform number `u` accepts a reward: with probability `min(1, exp((reward - bar) / beta))`.
pub(super) fn accepts(u: f64, reward: f64, bar: f64, beta: f64) -> bool {
    u < ((reward - bar) / beta).exp().min(1.0)
}
