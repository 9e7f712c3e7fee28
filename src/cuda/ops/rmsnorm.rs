//! RMSNorm of the residual stream, with the sublayer's output added on the way.

use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, check_room, int, product, side};
use crate::dtype::HalfType;
use crate::{Error, Result};

/// Threads of a block, at most.
const THREADS: u32 = 512;
/// Shared memory that a block gets without asking, less what the kernels declare.
const SHARED: u32 = 48 * 1024 - 64;

/// Index of the first kernel that leaves the last step to a product.
const DEFERRED: usize = 2;
/// Index of the first backward kernel.
const BACKWARD: usize = 4;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        let forward = Spec::pair("rmsnorm", ["rmsnorm_bf16", "rmsnorm_f16"], THREADS, SHARED);
        let deferred = Spec::pair("rmsnorm", ["rmsnorm_deferred_bf16", "rmsnorm_deferred_f16"], THREADS, SHARED);
        let backward = Spec::pair("rmsnorm", ["rmsnorm_backward_bf16", "rmsnorm_backward_f16"], THREADS, SHARED);
        [forward, deferred, backward].concat()
    }
}

/// What is added to the residual stream first.
#[derive(Clone, Copy, Debug)]
pub enum Delta<'a> {
    /// Nothing; the residual stream is only read.
    None,
    /// `[rows, d]` in f32.
    F32(View<'a, f32>),
    /// `[rows, d]` in the storage type.
    Half(View<'a, u16>),
}

/// A norm's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// As wide as the rows; zero beyond the real columns.
    pub weight: View<'a, u16>,
    /// Real columns: what the sum of squares is divided by.
    pub columns: usize,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// `residual += delta; out = residual / sqrt(mean(residual^2) + eps) * weight`, per row of `weight.len()` elements.
pub fn rmsnorm(
    device: &Device,
    storage: HalfType,
    out: &mut ViewMut<'_, u16>,
    residual: &mut ViewMut<'_, f32>,
    delta: Delta<'_>,
    norm: Norm<'_>,
) -> Result<()> {
    const OP: &str = "rmsnorm";
    let Norm { weight, columns, eps } = norm;
    let d = weight.len();
    check_room(OP, "a row", d, columns.max(1))?;
    let rows = residual.len().checked_div(d).unwrap_or(0);
    let elements = product(OP, rows, d)?;
    check_len(OP, "out", out.len(), elements)?;
    check_len(OP, "residual", residual.len(), elements)?;
    let (kind, address): (i32, u64) = match delta {
        Delta::None => (0, 0),
        Delta::F32(delta) => {
            check_len(OP, "delta", delta.len(), elements)?;
            (1, delta.address)
        }
        Delta::Half(delta) => {
            check_len(OP, "delta", delta.len(), elements)?;
            (2, delta.address)
        }
    };
    if elements == 0 {
        return Ok(());
    }
    let (threads, cached) = shape(d, 1);
    let (d, columns) = (int(OP, "d", d)?, int(OP, "columns", columns)?);
    let launch =
        Launch { grid: (side(OP, "rows", rows, i32::MAX as u32)?, 1, 1), threads, shared: cached.unwrap_or(0) };
    let cached = i32::from(cached.is_some());
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (T* out, float* residual, const void* delta, int kind, const T* weight, int d, int columns,
    // float eps, int cached). Block r touches elements r d .. (r + 1) d of out, residual and delta, whose lengths are rows d, and d
    // elements of the weight. out and residual are lent to us alone; with kind 0 delta is not read.
    unsafe {
        device.launch(
            &kernels[storage as usize],
            launch,
            args![out.address, residual.address, address, kind, weight.address, d, columns, eps, cached],
        )
    }
}

/// What [`rmsnorm_deferred`] gives.
#[derive(Debug)]
pub struct Deferred<'a> {
    /// `[rows, d]`.
    pub u: ViewMut<'a, u16>,
    /// `[rows]`: what a product of `u` is multiplied with.
    pub factors: ViewMut<'a, f32>,
    /// `[rows]`: `1 / sqrt(mean(residual^2) + eps)`.
    pub inverse: ViewMut<'a, f32>,
}

/// [`rmsnorm`] whose last step is left to the product behind it ([`Norms`](super::gemm::Norms)): `u = residual s weight`, rounded once,
/// and `factor = inverse / s`, where `s` is a sixteenth of the power of two below the row's number in `before`, or below its own inverse norm. Rows are
/// multiples of 64 elements. The sum of squares has another order than that of [`rmsnorm`].
pub fn rmsnorm_deferred(
    device: &Device,
    storage: HalfType,
    out: &mut Deferred<'_>,
    residual: View<'_, f32>,
    before: Option<View<'_, f32>>,
    norm: Norm<'_>,
) -> Result<()> {
    const OP: &str = "rmsnorm_deferred";
    let Norm { weight, columns, eps } = norm;
    let Deferred { u, factors, inverse } = out;
    let d = weight.len();
    check_room(OP, "a row", d, columns.max(1))?;
    let rows = inverse.len();
    let elements = product(OP, rows, d)?;
    check_len(OP, "u", u.len(), elements)?;
    check_len(OP, "residual", residual.len(), elements)?;
    check_len(OP, "factors", factors.len(), rows)?;
    if let Some(before) = before {
        check_len(OP, "inverse norms before", before.len(), rows)?;
    }
    if !d.is_multiple_of(64) || !residual.address.is_multiple_of(8) || !u.address.is_multiple_of(4) {
        return Err(Error::Backend(format!("{OP}: rows of {d} elements are no aligned multiples of 64")));
    }
    if elements == 0 {
        return Ok(());
    }
    let sums = u32::try_from(d / 4).ok().filter(|&bytes| bytes <= SHARED);
    let Some(shared) = sums else {
        return Err(Error::Backend(format!("{OP}: the sums of rows of {d} elements do not fit into shared memory")));
    };
    let threads = (d / 8).next_multiple_of(32).clamp(32, THREADS as usize) as u32;
    let (d, columns) = (int(OP, "d", d)?, int(OP, "columns", columns)?);
    let launch = Launch { grid: (side(OP, "rows", rows, i32::MAX as u32)?, 1, 1), threads, shared };
    let before = before.map_or(0, |before| before.address);
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (T* u, float* factor, float* inverse, const float* residual, const float* before, const T* weight, int
    // d, int columns, float eps). Block r touches elements r d .. (r + 1) d of u and residual, whose lengths are rows d, element r of
    // factor, inverse and, unless null, before, which have as many elements as there are rows, and d elements of the weight; its sums
    // take d / 4 bytes of shared memory. u, factor and inverse are lent to us alone.
    unsafe {
        device.launch(
            &kernels[DEFERRED + storage as usize],
            launch,
            args![
                u.address,
                factors.address,
                inverse.address,
                residual.address,
                before,
                weight.address,
                d,
                columns,
                eps
            ],
        )
    }
}

/// The gradient of what the norm gives.
#[derive(Clone, Copy, Debug)]
pub enum Upstream<'a> {
    /// `[rows, d]`: the norm's own path is added to the residual stream's gradient.
    Rows(View<'a, f32>),
    /// The head `[d]` after the final norm, times a factor: the same for all rows, whose gradient starts here.
    Head(View<'a, u16>, f32),
}

/// Gradient of [`rmsnorm`]'s residual stream: with `g = dy * weight` and `r = 1 / sqrt(mean(residual^2) + eps)`,
/// `grad += r g - residual r^3 mean(residual g)`, or `grad =` that after the final norm. `rounded` gets the new gradient in
/// the storage type.
pub fn rmsnorm_backward(
    device: &Device,
    storage: HalfType,
    grad: &mut ViewMut<'_, f32>,
    rounded: Option<&mut ViewMut<'_, u16>>,
    upstream: Upstream<'_>,
    residual: View<'_, f32>,
    norm: Norm<'_>,
) -> Result<()> {
    const OP: &str = "rmsnorm_backward";
    let Norm { weight, columns, eps } = norm;
    let d = weight.len();
    check_room(OP, "a row", d, columns.max(1))?;
    let rows = grad.len().checked_div(d).unwrap_or(0);
    let elements = product(OP, rows, d)?;
    check_len(OP, "grad", grad.len(), elements)?;
    check_len(OP, "residual", residual.len(), elements)?;
    let rounded = match rounded {
        Some(rounded) => {
            check_len(OP, "rounded", rounded.len(), elements)?;
            rounded.address
        }
        None => 0,
    };
    let (dy, head, factor): (u64, u64, f32) = match upstream {
        Upstream::Rows(dy) => {
            check_len(OP, "dy", dy.len(), elements)?;
            (dy.address, 0, 1.0)
        }
        Upstream::Head(head, factor) => {
            check_len(OP, "head", head.len(), d)?;
            (0, head.address, factor)
        }
    };
    if elements == 0 {
        return Ok(());
    }
    let (threads, cached) = shape(d, 2);
    let (d, columns) = (int(OP, "d", d)?, int(OP, "columns", columns)?);
    let launch =
        Launch { grid: (side(OP, "rows", rows, i32::MAX as u32)?, 1, 1), threads, shared: cached.unwrap_or(0) };
    let cached = i32::from(cached.is_some());
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (float* grad, T* rounded, const float* dy, const T* head, float head_scale, const float*
    // residual, const T* weight, int d, int columns, float eps, int cached). Block r touches elements r d .. (r + 1) d of grad,
    // residual, rounded unless null, and dy unless null, whose lengths are rows d; it reads d elements of the weight and,
    // if dy is null, of the head. grad and rounded are lent to us alone.
    unsafe {
        device.launch(
            &kernels[BACKWARD + storage as usize],
            launch,
            args![grad.address, rounded, dy, head, factor, residual.address, weight.address, d, columns, eps, cached],
        )
    }
}

/// Threads of a block, and the bytes of its cache if so many copies of the row fit: functions of `d` alone.
fn shape(d: usize, copies: usize) -> (u32, Option<u32>) {
    let groups = d.div_ceil(4);
    // Two groups of four per thread, so that a row has enough loads in flight without a long reduction.
    let threads = groups.div_ceil(2).next_multiple_of(32).clamp(32, THREADS as usize) as u32;
    let bytes = groups.checked_mul(16 * copies).and_then(|bytes| u32::try_from(bytes).ok());
    (threads, bytes.filter(|&bytes| bytes <= SHARED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_follows_the_row() {
        assert_eq!(shape(1, 1), (32, Some(16)));
        assert_eq!(shape(256, 1), (32, Some(1024)));
        assert_eq!(shape(257, 1), (64, Some(1040)));
        assert_eq!(shape(4096, 1), (512, Some(16384)));
        assert_eq!(shape(12272, 1), (512, Some(49088)));
        assert_eq!(shape(12273, 1), (512, None));
        assert_eq!(shape(128_256, 1), (512, None));
        assert_eq!(shape(6136, 2), (512, Some(49088)));
        assert_eq!(shape(6137, 2), (512, None));
    }
}
