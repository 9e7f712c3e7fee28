//! What only a card can say of wgmma, and products by it rest on: whether a column has the same bits in a product of any width. And
//! whether they are those of mma.sync, which would let two families of kernels agree.

use super::numbers::{Random, Values, stored};
use crate::Result;
use crate::cuda::ops::gemm::{Operands, Output, Plan, Scratch, Shape, gemm_planned, sm80, sm90};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;

/// Products of 64 outputs and 64 terms, so that both families add one chain of four steps of 16.
const SIDE: usize = 64;

/// What a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wgmma {
    /// Every width gives a column the same bits. If not, `--kernels sm90-wide` runs one width alone.
    pub widths_agree: bool,
    /// They are those of mma.sync.
    pub agrees_with_mma: bool,
}

/// Asks; `None` of a device that has no wgmma.
///
/// # Errors
/// The device fails.
pub fn wgmma(device: &Device) -> Result<Option<Wgmma>> {
    if !sm90::runs_on(device) {
        return Ok(None);
    }
    let mut answer = Wgmma { widths_agree: true, agrees_with_mma: true };
    let tokens = sm90::TOKENS[sm90::TOKENS.len() - 1];
    for storage in HalfType::ALL {
        for (name, values) in [("ordinary", Values::Normal(1.0)), ("outliers", Values::Outliers)] {
            let mut random = Random::named(name);
            let x = stored(storage, &random.vector(tokens * SIDE, values));
            let w = stored(storage, &random.vector(SIDE * SIDE, values));
            let product = |tokens: usize, layout: WeightLayout, plan: Plan| -> Result<Vec<f32>> {
                let x = Buffer::from_slice(device, &x[..tokens * SIDE])?;
                let w = Buffer::from_slice(device, &layout.arranged(&w, SIDE, SIDE))?;
                let mut y = Buffer::uninitialised(device, tokens * SIDE)?;
                let operands = Operands { storage, x: x.view(), w: w.view(), layout, bias: None };
                let (shape, mut scratch) = (shape(tokens), Scratch::new(device, plan.room())?);
                gemm_planned(device, &mut Output::F32(y.view_mut()), operands, shape, plan, &mut scratch)?;
                y.download(device)
            };
            let by_width = |index: usize| {
                let tokens = sm90::TOKENS[index];
                let plan = sm90::Plan::with_instance(shape(tokens), index, device.multiprocessors(), usize::MAX);
                product(tokens, WeightLayout::Tiles, Plan::Sm90(plan))
            };
            let widest = by_width(sm90::TOKENS.len() - 1)?;
            for index in 0..sm90::TOKENS.len() {
                answer.widths_agree &= same(&by_width(index)?, &widest);
            }
            let plan = Plan::Sm80(sm80::Plan::with_tile(shape(8), 0));
            answer.agrees_with_mma &= same(&product(8, WeightLayout::Rows, plan)?, &widest);
        }
    }
    Ok(Some(answer))
}

fn shape(tokens: usize) -> Shape {
    Shape { tokens, n: SIDE, k: SIDE }
}

/// Whether the first rows of the widest product are these.
fn same(rows: &[f32], widest: &[f32]) -> bool {
    rows.iter().zip(widest).all(|(a, b)| a.to_bits() == b.to_bits())
}
