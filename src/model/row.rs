//! Statistics of one row of logits: everything a decision may look at, from one pass over the exponentials.

/// Statistics of a next-token distribution `q = softmax(z)`. Entropies in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Id of the largest logit, the lowest on a tie.
    pub argmax: u32,
    /// The largest logit.
    pub max_logit: f32,
    /// `ln sum exp z`.
    pub log_sum_exp: f64,
    /// `-sum q ln q`.
    pub entropy: f64,
    /// `-sum max(q, f) ln max(q, f)` with the floor `f` that was asked for, not renormalised.
    pub entropy_floored: f64,
    /// Largest probability.
    pub max_probability: f64,
    /// Largest minus second largest logit: 0 on a tie, infinite if there is no second or it is minus infinity.
    pub margin: f32,
    /// Variance of `-ln q` under `q`.
    pub varentropy: f64,
    /// No logit is NaN or plus infinity, and not all are minus infinity. If false, the other fields mean nothing.
    pub finite: bool,
}

impl RowStats {
    /// Statistics of `logits` with the probability floor `floor`.
    pub fn of(_logits: &[f32], _floor: f64) -> RowStats {
        unimplemented!()
    }
}

/// The `k` largest of `logits[..below]` as `(id, logit)`, largest first, the lower id first on a tie.
pub fn top_k(_logits: &[f32], _k: usize, _below: usize) -> Vec<(u32, f32)> {
    unimplemented!()
}
