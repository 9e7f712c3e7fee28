//! The mathematics of the backward kernels in f64, held to finite differences.

/// `1 / sqrt(sum(x^2) / columns + eps)`.
fn inverse_norm(x: &[f64], columns: usize, eps: f32) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / columns as f64 + f64::from(eps)).sqrt()
}

/// RMSNorm of a row.
#[cfg(test)]
fn norm(x: &[f64], weight: &[f64], columns: usize, eps: f32) -> Vec<f64> {
    let r = inverse_norm(x, columns, eps);
    x.iter().zip(weight).map(|(x, w)| x * r * w).collect()
}

/// Its gradient, per element with the magnitudes that it was added up from.
pub fn norm_backward(dy: &[f64], x: &[f64], weight: &[f64], columns: usize, eps: f32) -> Vec<(f64, f64)> {
    let r = inverse_norm(x, columns, eps);
    let products = || dy.iter().zip(weight).zip(x).map(|((dy, w), x)| dy * w * x);
    let along = products().sum::<f64>() / columns as f64 * r * r;
    let size = products().map(f64::abs).sum::<f64>() / columns as f64 * r * r;
    let element =
        |((dy, w), x): ((&f64, &f64), &f64)| (r * (dy * w - x * along), r * ((dy * w).abs() + x.abs() * size));
    dy.iter().zip(weight).zip(x).map(element).collect()
}

/// The same in f32, rounded after every operation, sums from left to right.
pub fn norm_backward_simulated(dy: &[f32], x: &[f32], weight: &[f32], columns: usize, eps: f32) -> Vec<f32> {
    let squares = x.iter().fold(0.0f32, |sum, x| sum + x * x);
    let r = 1.0 / (squares / columns as f32 + eps).sqrt();
    let g: Vec<f32> = dy.iter().zip(weight).map(|(dy, w)| dy * w).collect();
    let along = g.iter().zip(x).fold(0.0f32, |sum, (g, x)| sum + g * x) / columns as f32 * r * r;
    g.iter().zip(x).map(|(g, x)| r * (g - x * along)).collect()
}

/// `silu(gate) * up`.
#[cfg(test)]
fn swiglu(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// Its gradients with respect to gate and up, each with its magnitude.
pub fn swiglu_backward(d: f64, gate: f64, up: f64) -> [(f64, f64); 2] {
    let s = 1.0 / (1.0 + (-gate).exp());
    // 1 - s without cancellation.
    let rest = 1.0 / (1.0 + gate.exp());
    let size = (d * up * s).abs() * (1.0 + gate.abs() * rest);
    [(d * up * s * (1.0 + gate * rest), size), (d * gate * s, (d * gate * s).abs())]
}

/// Turns a head's pairs (i, i + half) by their angles, forwards with a direction of 1, back with -1; per element with the
/// magnitudes that it was added up from.
pub fn turn(x: &[f64], angles: &[[f32; 2]], direction: f64) -> Vec<(f64, f64)> {
    let half = angles.len();
    let element = |i: usize| {
        let [cos, sin] = angles[i % half].map(f64::from);
        let (own, other) = (x[i] * cos, x[(i + half) % (2 * half)] * sin * direction);
        (if i < half { own - other } else { own + other }, own.abs() + other.abs())
    };
    (0..2 * half).map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds a gradient to the slope of `sum(dy * f(x))`.
    fn hold(x: &[f64], dy: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) {
        let value = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
        for i in 0..x.len() {
            let at = |step: f64| {
                let mut moved = x.to_vec();
                moved[i] += step;
                value(&moved)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((gradient[i] - slope).abs() < 1e-8 * slope.abs().max(1.0), "{i}: {} against {slope}", gradient[i]);
        }
    }

    fn numbers(n: usize, a: usize, b: usize) -> Vec<f64> {
        (0..n).map(|i| (i * a % b) as f64 / 3.0 - b as f64 / 6.3).collect()
    }

    fn values(gradient: Vec<(f64, f64)>) -> Vec<f64> {
        gradient.into_iter().map(|(value, _)| value).collect()
    }

    #[test]
    fn norm() {
        let (x, dy, mut w) = (numbers(12, 7, 11), numbers(12, 5, 13), numbers(12, 3, 7));
        hold(&x, &dy, &values(norm_backward(&dy, &x, &w, 12, 1e-5)), |x| super::norm(x, &w, 12, 1e-5));
        // Two columns of padding.
        let mut x = x;
        (w[10], w[11], x[10], x[11]) = (0.0, 0.0, 0.0, 0.0);
        hold(&x, &dy, &values(norm_backward(&dy, &x, &w, 10, 1e-5)), |x| super::norm(x, &w, 10, 1e-5));
    }

    #[test]
    fn gated_activation() {
        for (gate, up) in [(0.0, 1.0), (1.3, -2.0), (-1.278, 0.7), (-9.0, 3.0), (25.0, 0.1)] {
            let gradient = swiglu_backward(1.7, gate, up).map(|(value, _)| value);
            hold(&[gate, up], &[1.7], &gradient, |x| vec![swiglu(x[0], x[1])]);
        }
    }

    #[test]
    fn rotation() {
        let (x, dy) = (numbers(6, 5, 11), numbers(6, 4, 7));
        let angles = [[0.8f32, 0.6], [-0.28, 0.96], [1.0, 0.0]];
        hold(&x, &dy, &values(turn(&dy, &angles, -1.0)), |x| values(turn(x, &angles, 1.0)));
    }
}
