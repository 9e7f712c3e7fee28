//! The operations of a decoder on rows of f32: each is the mathematics, spread over the cores where it pays.

use super::dot::{self, Out};
use super::elementwise;
use super::weights::{Linear, Matrix};
use rayon::prelude::*;

/// Multiply-adds below which one core is faster than waking the others.
const PARALLEL_FROM: usize = 1 << 18;

/// Columns of a result that one task computes at least.
const MIN_COLUMNS: usize = 32;

/// Calls `task(a, b)` for column ranges that cover `0 .. n`, on all cores if `work` multiply-adds are worth it. What a
/// range computes does not depend on where the ranges are cut.
fn split_columns(n: usize, work: usize, unit: usize, task: impl Fn(usize, usize) + Sync) {
    let threads = rayon::current_num_threads();
    if threads == 1 || work < PARALLEL_FROM || n < 2 * MIN_COLUMNS {
        task(0, n);
        return;
    }
    // A few ranges per core, so that a core which starts late does not hold up the others.
    let ranges = (threads * 4).min(n / MIN_COLUMNS).min(work / (PARALLEL_FROM / 4)).max(threads);
    let width = n.div_ceil(ranges).next_multiple_of(unit);
    (0..n.div_ceil(width)).into_par_iter().for_each(|i| task(i * width, ((i + 1) * width).min(n)));
}

/// `y[m, n] = x[m, k] w[n, k]^T`.
pub(super) fn matmul(y: &mut [f32], x: &[f32], m: usize, w: &Matrix) {
    let (n, k) = (w.rows, w.cols);
    let view = w.view();
    let out = Out::new(y);
    split_columns(n, m * n * k, 12, |from, to| {
        // SAFETY: `y` is ours, and the ranges are disjoint.
        unsafe { dot::matmul_nt_columns(out.columns_from(from), n, x, k, m, view.slice(from, to)) }
    });
}

/// `y = x w^T + b`.
pub(super) fn gemm(x: &[f32], m: usize, layer: &Linear) -> Vec<f32> {
    let mut y = vec![0.0; m * layer.weight.rows];
    matmul(&mut y, x, m, &layer.weight);
    if let Some(bias) = &layer.bias {
        for row in y.chunks_exact_mut(bias.len()) {
            add(row, bias);
        }
    }
    y
}

/// `dx[m, in] += dy[m, out] w[out, in]`: the data gradient of [`gemm`].
pub(super) fn gemm_backward(dx: &mut [f32], dy: &[f32], m: usize, layer: &Linear) {
    let (n, k) = (layer.weight.rows, layer.weight.cols);
    let view = layer.weight.view();
    let out = Out::new(dx);
    split_columns(k, m * n * k, 32, |from, to| {
        // SAFETY: `dx` is ours, and the ranges are disjoint.
        unsafe { dot::matmul_nn_columns(out.columns_from(from), k, dy, n, m, view.columns(from, to)) }
    });
}

/// `y += x`.
pub(super) fn add(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` for every row of `weight.len()` elements.
pub(super) fn rmsnorm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let mut y = x.to_vec();
    rmsnorm_in_place(&mut y, weight, eps);
    y
}

/// [`rmsnorm`] in place.
pub(super) fn rmsnorm_in_place(x: &mut [f32], weight: &[f32], eps: f64) {
    for row in x.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms(row, eps);
        for (x, w) in row.iter_mut().zip(weight) {
            *x = *x * scale * w;
        }
    }
}

fn inverse_rms(row: &[f32], eps: f64) -> f32 {
    (1.0 / (elementwise::dot(row, row) as f64 / row.len() as f64 + eps).sqrt()) as f32
}

/// Gradient of [`rmsnorm`] with respect to its input `x`, given the gradient `dy` of its output, per row:
/// `dx = r (w dy) - x r^3 mean(w dy x)` with `r = 1 / sqrt(mean(x^2) + eps)`.
pub(super) fn rmsnorm_backward(dy: &[f32], x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let d = weight.len();
    let mut dx = dy.to_vec();
    for (dx, x) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
        let scale = inverse_rms(x, eps);
        for (g, w) in dx.iter_mut().zip(weight) {
            *g *= w;
        }
        let along = elementwise::dot(dx, x) / d as f32 * scale * scale;
        for (g, x) in dx.iter_mut().zip(x) {
            *g = (*g - x * along) * scale;
        }
    }
    dx
}

/// Cosine and sine per position and frequency, `[positions, head_dim / 2]` each.
pub(super) struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotation {
    pub fn at(positions: &[usize], frequencies: &[f64]) -> Self {
        let angles = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f64 * f));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Rotation { cos, sin, half: frequencies.len() }
    }

    /// Rotates every head of row `row`: element `i` with element `i + head_dim / 2`.
    pub fn apply(&self, row: usize, heads: &mut [f32]) {
        self.rotate(row, heads, 1.0);
    }

    /// The inverse rotation, which is also its gradient.
    pub fn undo(&self, row: usize, heads: &mut [f32]) {
        self.rotate(row, heads, -1.0);
    }

    fn rotate(&self, row: usize, heads: &mut [f32], direction: f32) {
        let at = row * self.half..(row + 1) * self.half;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (a, b) = head.split_at_mut(self.half);
            for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let s = s * direction;
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rmsnorm_gradient_agrees_with_finite_differences() {
        let x: Vec<f32> = (0..24).map(|i| ((i * 7 % 11) as f32 - 5.0) / 3.0).collect();
        let w: Vec<f32> = (0..12).map(|i| 0.5 + i as f32 / 10.0).collect();
        let dy: Vec<f32> = (0..24).map(|i| ((i * 5 % 13) as f32 - 6.0) / 4.0).collect();
        let value = |x: &[f64]| -> f64 {
            x.chunks(12)
                .zip(dy.chunks(12))
                .map(|(x, dy)| {
                    let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / 12.0 + 1e-5).sqrt();
                    x.iter().zip(&w).zip(dy).map(|((x, &w), &g)| x * r * w as f64 * g as f64).sum::<f64>()
                })
                .sum()
        };
        let dx = rmsnorm_backward(&dy, &x, &w, 1e-5);
        for i in 0..24 {
            let mut moved: Vec<f64> = x.iter().map(|&x| x as f64).collect();
            moved[i] += 1e-5;
            let up = value(&moved);
            moved[i] -= 2e-5;
            let slope = (up - value(&moved)) / 2e-5;
            assert!((dx[i] as f64 - slope).abs() < 1e-5, "{i}: {} against {slope}", dx[i]);
        }
    }
}
