//! First-order scores of candidates: products of their embeddings with the gradient of the reward.

use crate::Result;
use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, rows_of, side, vectors};
use crate::dtype::HalfType;

/// Threads of a block.
const THREADS: u32 = 1024;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        Spec::pair("candidate_scores", ["candidate_scores_bf16", "candidate_scores_f16"], THREADS, 0).to_vec()
    }
}

/// Candidates of one query, at most.
pub const MAX_CANDIDATES: usize = 64;

/// A row of the gradients and the candidates that it is multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct ScoreQuery {
    /// Row of the gradients.
    pub row: u32,
    /// First candidate.
    pub first: u32,
    /// Number of candidates, 1 to [`MAX_CANDIDATES`].
    pub count: u32,
}

// SAFETY: C layout of 3 words: 12 bytes without padding, and every bit pattern is a value.
unsafe impl bytemuck::Zeroable for ScoreQuery {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for ScoreQuery {}

/// What [`candidate_scores`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[rows, d]`: gradients of rewards with respect to input embeddings.
    pub grads: View<'a, f32>,
    /// `[vocabulary, d]`, row after row: the reward model's embeddings, which no product reads.
    pub table: View<'a, u16>,
    /// Candidates of all queries.
    pub ids: View<'a, u32>,
    /// No candidate belongs to two of them.
    pub queries: View<'a, ScoreQuery>,
    /// Columns, a multiple of 8.
    pub d: usize,
    /// Undoes the factor that the backward pass carried.
    pub scale: f32,
}

/// Per query the Euclidean norm of its gradient, and per candidate the product of its embedding with that gradient. A query
/// that names no row, no candidates, too many or some outside the list has a norm of NaN and no products; an id without a row
/// in the table has a product of NaN.
pub fn candidate_scores(
    device: &Device,
    storage: HalfType,
    norms: &mut ViewMut<'_, f32>,
    products: &mut ViewMut<'_, f32>,
    inputs: &Inputs<'_>,
) -> Result<()> {
    const OP: &str = "candidate_scores";
    let &Inputs { grads, table, ids, queries, d, scale } = inputs;
    let rows = side(OP, "rows", rows_of(OP, "grads", grads.len(), d)?, u32::MAX)?;
    let vocabulary = side(OP, "rows of the table", rows_of(OP, "table", table.len(), d)?, u32::MAX)?;
    vectors(OP, "d", d, grads.address | table.address)?;
    check_len(OP, "norms", norms.len(), queries.len())?;
    check_len(OP, "products", products.len(), ids.len())?;
    if queries.is_empty() {
        return Ok(());
    }
    let listed = side(OP, "candidates", ids.len(), u32::MAX)?;
    let grid = (side(OP, "queries", queries.len(), i32::MAX as u32)?, 1, 1);
    let launch = Launch { grid, threads: THREADS, shared: 0 };
    let d = int(OP, "d", d)?;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (float* norms, float* products, const float* grads, const T* table, const unsigned* ids, const
    // ScoreQuery* queries, unsigned rows, unsigned vocabulary, unsigned listed, int d, float scale), the struct of the same
    // layout as here. Block i reads query i and writes norm i. It reads a row of grads only below rows, a row of the table
    // only below vocabulary, and touches ids and products only below listed, the length of both. Pieces of 16 bytes are
    // aligned because addresses and d are. norms and products are lent to us alone.
    unsafe {
        device.launch(
            &kernels[storage as usize],
            launch,
            args![
                norms.address,
                products.address,
                grads.address,
                table.address,
                ids.address,
                queries.address,
                rows,
                vocabulary,
                listed,
                d,
                scale
            ],
        )
    }
}
