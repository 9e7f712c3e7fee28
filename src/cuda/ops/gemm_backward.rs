//! Data gradients of products with stored weights: [`gemm`](super::gemm) with the weights read by columns.

use super::gemm::{Direction, Output, Plan, Problem, Scratch, Shape, launch, launch_all};
use super::weight_layout::WeightLayout;
use crate::Result;
use crate::cuda::buffer::View;
use crate::cuda::device::Device;
use crate::dtype::HalfType;

/// Operands of a data gradient, all in one storage type.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    /// Storage type.
    pub storage: HalfType,
    /// `[tokens, n]`: of the product's result.
    pub dy: View<'a, u16>,
    /// `[n, k]`, as the product took it.
    pub w: View<'a, u16>,
    /// How `w` lies in memory.
    pub layout: WeightLayout,
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
    launch_all(device, dx, &problem(gradients, shape), gradients.layout, scratch)
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
    launch(device, dx, &problem(gradients, shape), gradients.layout, plan, scratch)
}

fn problem<'a>(gradients: Gradients<'a>, shape: Shape) -> Problem<'a> {
    let Gradients { storage, dy: x, w, .. } = gradients;
    let shape = shape.transposed();
    Problem { op: "gemm_backward", direction: Direction::Backward, storage, shape, x, w, bias: None, norms: None }
}
