//! Data gradients of products with stored weights: [`gemm`](super::gemm) with the weights read by columns.

use super::gemm::{Output, Plan, Scratch, Shape, Work, kernel_of, launch, specs};
use crate::cuda::buffer::View;
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::dtype::HalfType;
use crate::{Error, Result};

const OP: &str = "gemm_backward";

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        specs(OP, 1)
    }
}

/// Operands of a data gradient, all in one storage type.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    /// HalfType type.
    pub storage: HalfType,
    /// `[tokens, n]`: of the product's result.
    pub dy: View<'a, u16>,
    /// `[n, k]`, as the product took it.
    pub w: View<'a, u16>,
}

/// `dx[tokens, k] = dy[tokens, n] w[n, k]`, the data gradient of [`gemm`](super::gemm::gemm), whose shape this is. `n` and `k` are multiples
/// of 8.
pub fn gemm_backward(
    device: &Device,
    dx: &mut Output<'_>,
    gradients: Gradients<'_>,
    shape: Shape,
    scratch: &mut Scratch,
) -> Result<()> {
    let plan = Plan::new(shape.transposed(), device.multiprocessors(), scratch.workspace());
    gemm_backward_planned(device, dx, gradients, shape, plan, scratch)
}

/// [`gemm_backward`] with a chosen kernel; the plan is for the transposed shape.
pub fn gemm_backward_planned(
    device: &Device,
    dx: &mut Output<'_>,
    gradients: Gradients<'_>,
    shape: Shape,
    plan: Plan,
    scratch: &mut Scratch,
) -> Result<()> {
    let Shape { n, k, .. } = shape;
    if n == 0 || !n.is_multiple_of(8) || !k.is_multiple_of(8) {
        return Err(Error::Backend(format!("{OP}: n = {n} and k = {k} are not multiples of 8")));
    }
    let kernel = &device.kernels::<Kernels>()?[kernel_of(gradients.storage, plan)?];
    let work = Work { op: OP, kernel, bias: None, shape: shape.transposed(), plan };
    // SAFETY: this kernel reads w as [k, n] of the transposed shape, and no bias; n and k are multiples of 8.
    unsafe { launch(device, dx, gradients.dy, gradients.w, &work, scratch) }
}
