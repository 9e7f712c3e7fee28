//! First-order scores of candidates, and the choice among them.

use super::{args, check_len, int, rows_of, side, vectors};
use crate::Result;
use crate::cuda::device::Launch;
use crate::cuda::kernels::NUDGE_THREADS;
use crate::cuda::{Device, View, ViewMut};
use crate::dtype::HalfType;

/// Candidates of one wish, at most.
pub const MAX_CANDIDATES: usize = 64;

/// A slot, its candidates, and how to choose among them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct NudgeWish {
    /// Factor on the score of the current token.
    pub damping: f64,
    /// Divides scores when a choice is drawn.
    pub temperature: f64,
    /// A number in `0 .. 1` that draws the choice; a negative one asks for the largest score.
    pub uniform: f64,
    /// Row of the gradients.
    pub row: u32,
    /// First candidate.
    pub first: u32,
    /// Number of candidates, at most [`MAX_CANDIDATES`].
    pub count: u32,
    /// The token now at the slot.
    pub current: u32,
}

// SAFETY: C layout of 3 doubles and 4 words: 40 bytes without padding, and every bit pattern is a value.
unsafe impl bytemuck::Zeroable for NudgeWish {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for NudgeWish {}

/// What a wish got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct NudgeChoice {
    /// Of the largest score to the next, or of the drawn number to the nearest edge; infinite if there is none.
    pub margin: f64,
    /// Euclidean norm of the gradient.
    pub norm: f32,
    /// The chosen candidate, counted from the wish's first.
    pub index: u32,
    /// Its id.
    pub id: u32,
    /// 1 if the wish could be answered and every number is finite; else the choice means nothing.
    pub finite: u32,
}

// SAFETY: C layout of a double, a float and 3 words: 24 bytes without padding, and every bit pattern is a value.
unsafe impl bytemuck::Zeroable for NudgeChoice {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for NudgeChoice {}

/// What [`nudge`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[rows, d]`: gradients of rewards with respect to input embeddings.
    pub grads: View<'a, f32>,
    /// `[vocabulary, d]`: the reward model's embeddings.
    pub table: View<'a, u16>,
    /// Candidates of all wishes.
    pub ids: View<'a, u32>,
    /// No candidate belongs to two of them.
    pub wishes: View<'a, NudgeWish>,
    /// Columns, a multiple of 8.
    pub d: usize,
    /// Undoes the factor that the backward pass carried.
    pub scale: f32,
}

/// Products of the candidates' embeddings with the gradients, undamped, and one choice per wish.
pub fn nudge(
    device: &Device,
    storage: HalfType,
    choices: &mut ViewMut<'_, NudgeChoice>,
    products: &mut ViewMut<'_, f32>,
    inputs: &Inputs<'_>,
) -> Result<()> {
    const OP: &str = "nudge";
    let &Inputs { grads, table, ids, wishes, d, scale } = inputs;
    let rows = side(OP, "rows", rows_of(OP, "grads", grads.len(), d)?, u32::MAX)?;
    let vocabulary = side(OP, "rows of the table", rows_of(OP, "table", table.len(), d)?, u32::MAX)?;
    vectors(OP, "d", d, grads.address | table.address)?;
    check_len(OP, "choices", choices.len(), wishes.len())?;
    check_len(OP, "products", products.len(), ids.len())?;
    if wishes.is_empty() {
        return Ok(());
    }
    let listed = side(OP, "candidates", ids.len(), u32::MAX)?;
    let launch =
        Launch { grid: (side(OP, "wishes", wishes.len(), i32::MAX as u32)?, 1, 1), threads: NUDGE_THREADS, shared: 0 };
    let d = int(OP, "d", d)?;
    // SAFETY: parameters are (NudgeChoice* choices, float* products, const float* grads, const T* table, const unsigned* ids,
    // const NudgeWish* wishes, unsigned rows, unsigned vocabulary, unsigned listed, int d, float scale), structs of the same
    // layout as here. Block i reads wish i and writes choice i. It reads a row of grads only below rows, a row of the table
    // only below vocabulary, and touches ids and products only below listed, the length of both. Pieces of 16 bytes are
    // aligned because addresses and d are. choices and products are lent to us alone.
    unsafe {
        device.launch(
            &device.kernels().nudge[storage as usize],
            launch,
            args![
                choices.address,
                products.address,
                grads.address,
                table.address,
                ids.address,
                wishes.address,
                rows,
                vocabulary,
                listed,
                d,
                scale
            ],
        )
    }
}
