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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damping_keeps_the_sign() {
        let scores = scores(&[4, 2, 8], &[-1.0, -2.0, 3.0], 2, 0.25);
        assert_eq!(scores, [-1.0, -0.5, 3.0]);
        assert_eq!(super::scores(&[1], &[f32::MAX], 1, f64::MAX), [f64::MAX]);
    }
}
