//! Problems of the products with stored weights, by every kernel of both directions.

use super::case::{Case, Output, Run};
use super::numbers::{halves, singles, stored, unwritten, wide, widened};
use crate::Result;
use crate::cuda::buffer::Buffer;

use crate::cuda::ops::gemm::{self, Operands, Room, Scratch, Shape, gemm};
use crate::cuda::ops::gemm_backward::{Gradients, gemm_backward};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::dtype::HalfType;

/// Numbers of tokens: of each kernel for few of them, and of those for many, which take two problems.
const TOKENS: [usize; 5] = [5, 13, 29, 61, 67];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in TOKENS {
        let name = format!("{tokens} tokens");
        cases.push(Case::of_both("gemm", &name, "gemm", move |device, storage| {
            Product::forward().run(device, storage, tokens, Product::ROOM, Into::F32)
        }));
        cases.push(Case::of_both("gemm_backward", &name, "gemm_backward", move |device, storage| {
            Product::backward().run_backward(device, storage, tokens, Product::ROOM)
        }));
    }
    // Without a workspace, a block adds up all of `k`.
    cases.push(Case::of_both("gemm", "67 tokens, folded", "gemm", |device, storage| {
        Product::forward().run(device, storage, 67, 0, Into::F32)
    }));
    cases.push(Case::of_both("gemm_backward", "67 tokens, folded", "gemm_backward", |device, storage| {
        Product::backward().run_backward(device, storage, 67, 0)
    }));
    cases.push(Case::of_both("gemm", "5 tokens, rounded", "gemm_rounded", |device, storage| {
        Product::forward().run(device, storage, 5, Product::ROOM, Into::Half)
    }));
    cases.push(Case::of_both("gemm", "5 tokens, added", "gemm_added", |device, storage| {
        Product::forward().run(device, storage, 5, Product::ROOM, Into::Add)
    }));
    cases
}

/// What becomes of the sums.
#[derive(Clone, Copy)]
enum Into {
    F32,
    Half,
    Add,
}

/// `terms` are long enough for two chunks, `outputs` no multiple of anything.
pub(crate) struct Product {
    /// `[67, TERMS]`.
    pub x: Vec<f32>,
    /// Forward `[OUTPUTS, TERMS]`, backward `[TERMS, OUTPUTS]`.
    pub w: Vec<f32>,
    pub bias: Vec<f32>,
    /// What is added to, `[67, OUTPUTS]`.
    pub before: Vec<f32>,
}

impl Product {
    pub const TERMS: usize = 1024;
    /// Of the forward pass.
    pub const OUTPUTS: usize = 21;
    /// Of the backward pass.
    pub const BACK: usize = 24;
    /// Elements of workspace: all chunks of all tokens.
    const ROOM: usize = 1 << 14;

    pub fn forward() -> Self {
        Product::of("product", Self::OUTPUTS)
    }

    pub fn backward() -> Self {
        Product::of("gradient", Self::BACK)
    }

    fn of(name: &str, outputs: usize) -> Self {
        let named = |what: &str| format!("{name} {what}");
        Product {
            x: halves(&named("x"), 67 * Self::TERMS, 1.0),
            w: halves(&named("w"), outputs * Self::TERMS, 0.1),
            bias: halves(&named("bias"), outputs, 1.0),
            before: singles(&named("before"), 67 * outputs, 1.0),
        }
    }

    fn run(&self, device: &Run<'_>, storage: HalfType, tokens: usize, room: usize, into: Into) -> Result<Vec<Output>> {
        let (n, k) = (Self::OUTPUTS, Self::TERMS);
        let x = stored(device, storage, &self.x[..tokens * k])?;
        let (w, bias) = (stored(device, storage, &self.w)?, stored(device, storage, &self.bias)?);
        let operands =
            Operands { storage, x: x.view(), w: w.view(), layout: WeightLayout::Rows, bias: Some(bias.view()) };
        let mut scratch = Scratch::new(device, Room { workspace: room, tickets: room.min(64) })?;
        let mut product =
            |mut y: gemm::Output<'_>| gemm(device, &mut y, operands, Shape { tokens, n, k }, &mut scratch);
        let values = match into {
            Into::F32 => {
                let mut y = unwritten(device, tokens * n)?;
                product(gemm::Output::F32(y.view_mut()))?;
                wide(&device.finished(&y)?)
            }
            Into::Half => {
                let mut y = unwritten(device, tokens * n)?;
                product(gemm::Output::Half(y.view_mut()))?;
                widened(storage, &device.finished(&y)?)
            }
            Into::Add => {
                let mut y = Buffer::from_slice(device, &self.before[..tokens * n])?;
                product(gemm::Output::Add(y.view_mut()))?;
                wide(&device.finished(&y)?)
            }
        };
        Ok(vec![Output::new("y", values)])
    }

    fn run_backward(&self, device: &Run<'_>, storage: HalfType, tokens: usize, room: usize) -> Result<Vec<Output>> {
        let (n, k) = (Self::TERMS, Self::BACK);
        let dy = stored(device, storage, &self.x[..tokens * n])?;
        let w = stored(device, storage, &self.w)?;
        let gradients = Gradients { storage, dy: dy.view(), w: w.view(), layout: WeightLayout::Rows };
        let mut scratch = Scratch::new(device, Room { workspace: room, tickets: room.min(64) })?;
        let mut dx = unwritten(device, tokens * k)?;
        let mut out = gemm::Output::F32(dx.view_mut());
        gemm_backward(device, &mut out, gradients, Shape { tokens, n, k }, &mut scratch)?;
        Ok(vec![Output::new("dx", wide(&device.finished(&dx)?))])
    }
}
