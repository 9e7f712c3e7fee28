//! What the reward model is asked, and the first-order candidate scores.
//!
//! The gradient of the reward at the slot's input embedding, multiplied with a token's embedding row, is the first-order
//! change of the reward if that token stood at the slot, up to a constant that is the same for all tokens. The constant
//! (the product with the row of the token now there) is left out on purpose. Pure functions; the products come from the
//! backend.

/// First-order scores of the candidates `ids` from their products with the gradient.
///
/// The score of the token now at the slot is multiplied with `damping`: it keeps its sign, so it is damped *up* if it is
/// negative, and then may win.
pub fn scores(ids: &[u32], dots: &[f32], current: u32, damping: f64) -> Vec<f64> {
    ids.iter()
        .zip(dots)
        .map(|(&id, &dot)| {
            let dot = f64::from(dot);
            // A finite product of finite numbers: nothing infinite may enter the differences that sampling takes.
            if id == current { (dot * damping).clamp(f64::MIN, f64::MAX) } else { dot }
        })
        .collect()
}

/// Adds `weight` times the policy's log-probability of each candidate, `logit - log_sum_exp` in nats, to its score.
///
/// It comes after the damping, which is a property of the product: a token keeps all of its log-probability while it is at the
/// slot. A weight of 0 leaves every bit as it is.
pub fn add_logprobs(scores: &mut [f64], logits: &[f32], log_sum_exp: f64, weight: f64) {
    if weight > 0.0 {
        for (score, &logit) in scores.iter_mut().zip(logits) {
            let logprob = f64::from(logit) - log_sum_exp;
            // An impossible token has minus infinity, and the largest weights lead there too: see above.
            *score = (*score + weight * logprob).clamp(f64::MIN, f64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_added_after_the_damping() {
        let logits = [2.0f32, 1.0, f32::NEG_INFINITY];
        let log_sum_exp = (2f64.exp() + 1f64.exp()).ln();
        let bits = |scores: &[f64]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
        let weighted = |weight: f64| {
            let mut scores = scores(&[4, 2, 8], &[-0.0, -2.0, 3.0], 2, 0.25);
            add_logprobs(&mut scores, &logits, log_sum_exp, weight);
            scores
        };
        assert_eq!(bits(&weighted(0.0)), bits(&[-0.0, -0.5, 3.0]));
        assert_eq!(weighted(0.5), [0.5 * (2.0 - log_sum_exp), -0.5 + 0.5 * (1.0 - log_sum_exp), f64::MIN]);
        assert!(weighted(f64::MAX).iter().all(|score| score.is_finite()));
    }

    #[test]
    fn damping_keeps_the_sign() {
        let scores = scores(&[4, 2, 8], &[-1.0, -2.0, 3.0], 2, 0.25);
        assert_eq!(scores, [-1.0, -0.5, 3.0]);
        assert_eq!(super::scores(&[1], &[f32::MAX], 1, f64::MAX), [f64::MAX]);
    }
}
