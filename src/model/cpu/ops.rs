//! The operations of a decoder on rows of f32: each is the mathematics, spread over the cores where it pays.

use super::elementwise;
use super::product::{self, Left, Out};
use super::rows::StoredRows;
use super::weights::{Linear, Matrix};
use rayon::prelude::*;
use std::ops::Range;

/// Multiply-adds below which one core is faster than waking the others.
const PARALLEL_FROM: usize = 1 << 18;

/// Columns of a result that one task computes at least.
const MIN_COLUMNS: usize = 32;

/// Rows of a result that one task computes at least where there are not columns enough for all cores: each task widens the
/// weights of its columns again.
const MIN_ROWS: usize = 96;

/// Elements from which an elementwise loop is spread over the cores, in pieces of a quarter as many.
const ELEMENTS: usize = 1 << 16;

/// How results are cut into tasks.
struct Cut {
    rows: Vec<Range<usize>>,
    /// Of which result, and which columns of it.
    columns: Vec<(usize, Range<usize>)>,
}

/// Ranges of rows and of columns that cover results of `m` rows and of so many columns as `widths` says, with `k` multiply-adds for
/// each number: a few for every core if there is enough to do. What a range computes does not depend on where it is cut; columns
/// are cut at multiples of `unit`.
fn split(m: usize, widths: &[usize], k: usize, unit: usize) -> Cut {
    let threads = rayon::current_num_threads();
    let n: usize = widths.iter().sum();
    let work = m * n * k;
    let most = n / MIN_COLUMNS;
    let alone = threads == 1 || work < PARALLEL_FROM || most < 2;
    let width = if alone {
        usize::MAX
    } else {
        // A few ranges per core, so that a core which starts late does not hold up the others.
        let ranges = (threads * 4).min(most).min(work / (PARALLEL_FROM / 4)).max(threads.min(most));
        n.div_ceil(ranges).next_multiple_of(unit)
    };
    let mut columns = Vec::new();
    for (which, &n) in widths.iter().enumerate() {
        columns.extend((0..n).step_by(width).map(|from| (which, from..from.saturating_add(width).min(n))));
    }
    let pieces = if alone { 1 } else { (2 * threads).div_ceil(columns.len().max(1)).min(m / MIN_ROWS).max(1) };
    let height = m.div_ceil(pieces).max(1);
    let rows = (0..m).step_by(height).map(|from| from..(from + height).min(m)).collect();
    Cut { rows, columns }
}

/// Calls `task` for every number below `count`, on all cores if `several` are worth it.
fn for_each(count: usize, several: bool, task: impl Fn(usize) + Sync + Send) {
    if several {
        (0..count).into_par_iter().for_each(task);
    } else {
        (0..count).for_each(task);
    }
}

/// `y[m, n] = x[m, k] w[n, k]^T` for several matrices and the same `x`.
fn matmuls(x: &[f32], m: usize, k: usize, into: &mut [(&mut [f32], &Matrix)]) {
    let widths: Vec<usize> = into.iter().map(|(_, w)| w.rows).collect();
    let Cut { rows, columns } = split(m, &widths, k, 16);
    let outs: Vec<Out> = into.iter_mut().map(|(y, _)| Out::new(y)).collect();
    let views: Vec<StoredRows<'_>> = into.iter().map(|(_, w)| w.view()).collect();
    let pack = |rows: &Range<usize>| Left::new(&x[rows.start * k..], k, rows.len(), k);
    let packed: Vec<Left<'_>> =
        if rows.len() > 1 { rows.par_iter().map(pack).collect() } else { rows.iter().map(pack).collect() };
    // Cut where it pays, or one range for each matrix.
    for_each(columns.len() * rows.len(), columns.len() > widths.len() || rows.len() > 1, |task| {
        let (piece, (which, columns)) = (task / columns.len(), &columns[task % columns.len()]);
        let y = outs[*which].from(rows[piece].start * widths[*which] + columns.start);
        let w = views[*which].slice(columns.start, columns.end);
        // SAFETY: the results are ours, and the ranges are disjoint.
        unsafe { product::matmul_nt_columns(y, widths[*which], &packed[piece], w) }
    });
}

/// `y[m, n] = x[m, k] w[n, k]^T`.
pub(super) fn matmul(y: &mut [f32], x: &[f32], m: usize, w: &Matrix) {
    matmuls(x, m, w.cols, &mut [(y, w)]);
}

/// Results of earlier products whose memory later ones of a pass use again: large ones would go back to the system each time, which
/// clears every page before it lends it again.
#[derive(Default)]
pub(super) struct Spares(Vec<Vec<f32>>);

impl Spares {
    /// Floats whose values mean nothing.
    fn take(&mut self, len: usize) -> Vec<f32> {
        let fits = |spare: &Vec<f32>| (len..=len.saturating_mul(2)).contains(&spare.capacity());
        let Some(at) = self.0.iter().position(fits) else { return vec![0.0; len] };
        let mut spare = self.0.swap_remove(at);
        spare.resize(len, 0.0);
        spare
    }

    /// Takes what is no longer needed.
    pub fn put(&mut self, values: Vec<f32>) {
        self.0.push(values);
    }
}

/// `y = x w^T + b`.
pub(super) fn gemm(spares: &mut Spares, x: &[f32], m: usize, layer: &Linear) -> Vec<f32> {
    let [y] = gemms(spares, x, m, [layer]);
    y
}

/// [`gemm`] of several layers with the same input: cores are woken once.
pub(super) fn gemms<const N: usize>(spares: &mut Spares, x: &[f32], m: usize, layers: [&Linear; N]) -> [Vec<f32>; N] {
    let mut all = layers.map(|layer| spares.take(m * layer.weight.rows));
    let mut into: Vec<(&mut [f32], &Matrix)> =
        all.iter_mut().zip(layers).map(|(y, layer)| (y.as_mut_slice(), &layer.weight)).collect();
    matmuls(x, m, layers.first().map_or(0, |layer| layer.weight.cols), &mut into);
    for (y, layer) in all.iter_mut().zip(layers) {
        if let Some(bias) = &layer.bias {
            for row in y.chunks_exact_mut(bias.len()) {
                elementwise::add(row, bias);
            }
        }
    }
    all
}

/// `dx[m, in] += dy[m, out] w[out, in]`: the data gradient of [`gemm`].
pub(super) fn gemm_backward(dx: &mut [f32], dy: &[f32], m: usize, layer: &Linear) {
    let (n, k) = (layer.weight.rows, layer.weight.cols);
    let view = layer.weight.view();
    let out = Out::new(dx);
    let Cut { rows, columns } = split(m, &[k], n, 64);
    for_each(columns.len() * rows.len(), columns.len() > 1 || rows.len() > 1, |task| {
        let (rows, (_, columns)) = (&rows[task / columns.len()], &columns[task % columns.len()]);
        let (y, x) = (out.from(rows.start * k + columns.start), &dy[rows.start * n..]);
        // SAFETY: `dx` is ours, and the ranges are disjoint.
        unsafe { product::matmul_nn_columns(y, k, x, n, rows.len(), view.columns(columns.start, columns.end)) }
    });
}

/// Calls `each(first row, rows)` for pieces of `values`, rows of `width`, on all cores if there are elements enough.
fn by_rows(values: &mut [f32], width: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
    if values.len() < ELEMENTS || width == 0 || rayon::current_num_threads() == 1 {
        return each(0, values);
    }
    let rows = (ELEMENTS / 4 / width).max(1);
    values.par_chunks_mut(rows * width).enumerate().for_each(|(i, piece)| each(i * rows, piece));
}

/// `y += x`.
pub(super) fn add(y: &mut [f32], x: &[f32]) {
    by_rows(y, 1, |from, y| elementwise::add(y, &x[from..from + y.len()]));
}

/// `silu(gate) * up`, in the place of `gate`.
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    by_rows(gate, 1, |from, gate| elementwise::swiglu(gate, &up[from..from + gate.len()]));
}

/// Gradients of [`swiglu`] in place: `gate` becomes `d/d gate`, `up` becomes `d/d up`, given `d/d out`.
pub(super) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    if gate.len() < ELEMENTS || rayon::current_num_threads() == 1 {
        return elementwise::swiglu_backward(gate, up, grad);
    }
    let pieces =
        gate.par_chunks_mut(ELEMENTS / 4).zip(up.par_chunks_mut(ELEMENTS / 4)).zip(grad.par_chunks(ELEMENTS / 4));
    pieces.for_each(|((gate, up), grad)| elementwise::swiglu_backward(gate, up, grad));
}

/// `x / sqrt(mean(x^2) + eps) * weight` for every row of `weight.len()` elements.
pub(super) fn rmsnorm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let mut y = x.to_vec();
    rmsnorm_in_place(&mut y, weight, eps);
    y
}

/// [`rmsnorm`] in place.
pub(super) fn rmsnorm_in_place(x: &mut [f32], weight: &[f32], eps: f64) {
    by_rows(x, weight.len(), |_, rows| {
        for row in rows.chunks_exact_mut(weight.len()) {
            let scale = inverse_rms(row, eps);
            elementwise::scale(row, scale, weight);
        }
    });
}

/// [`rmsnorm`] of rows that are rounded before they are multiplied with their inverse norm but for its power of two.
pub(super) fn rmsnorm_deferred(x: &[f32], weight: &[f32], eps: f64, round: impl Fn(f32) -> f32) -> Vec<f32> {
    let mut y = x.to_vec();
    for row in y.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms(row, eps);
        let power = f32::from_bits(scale.to_bits() & 0x7f80_0000) / 16.0;
        for (x, w) in row.iter_mut().zip(weight) {
            *x = round(*x * power * w) * (scale / power);
        }
    }
    y
}

fn inverse_rms(row: &[f32], eps: f64) -> f32 {
    (1.0 / (elementwise::dot(row, row) as f64 / row.len() as f64 + eps).sqrt()) as f32
}

/// Gradient of [`rmsnorm`] with respect to its input `x`, given the gradient `dy` of its output, per row:
/// `dx = r (w dy) - x r^3 mean(w dy x)` with `r = 1 / sqrt(mean(x^2) + eps)`.
pub(super) fn rmsnorm_backward(dy: &[f32], x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let d = weight.len();
    let mut dx = dy.to_vec();
    by_rows(&mut dx, d, |first, rows| {
        for (dx, x) in rows.chunks_exact_mut(d).zip(x[first * d..].chunks_exact(d)) {
            let scale = inverse_rms(x, eps);
            for (g, w) in dx.iter_mut().zip(weight) {
                *g *= w;
            }
            let along = elementwise::dot(dx, x) / d as f32 * scale * scale;
            for (g, x) in dx.iter_mut().zip(x) {
                *g = (*g - x * along) * scale;
            }
        }
    });
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
    use crate::dtype::DType;

    /// Few columns and many rows, many columns and few rows: results are cut in every way, and have the bits of one core.
    #[test]
    fn results_do_not_depend_on_how_many_cores_there_are() {
        for (m, n, k) in [(1, 4096, 96), (7, 300, 500), (40, 1000, 70), (500, 64, 80), (700, 130, 33)] {
            let value = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) / 311.0;
            let bytes: Vec<u8> = (0..n * k).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect();
            let weight = |rows: usize, cols: usize| Linear {
                weight: Matrix::stored(DType::Bf16, bytes[..rows * cols * 2].to_vec(), rows, cols),
                bias: Some((0..rows).map(value).collect()),
            };
            let (one, other) = (weight(n, k), weight(n / 2, k));
            let x: Vec<f32> = (0..m * k).map(|i| value(i + 3)).collect();
            let dy: Vec<f32> = (0..m * n).map(|i| value(i + 5)).collect();
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let together = gemms(&mut Spares::default(), &x, m, [&one, &other]);
                    let mut dx = vec![0.5; m * k];
                    gemm_backward(&mut dx, &dy, m, &one);
                    let spares = &mut Spares::default();
                    assert!(together == [gemm(spares, &x, m, &one), gemm(spares, &x, m, &other)]);
                    (together, dx)
                })
            };
            let alone = on(1);
            for threads in [2, 3, 8, 64] {
                assert!(on(threads) == alone, "{m} x {n} x {k} on {threads} cores");
            }
        }
    }

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
