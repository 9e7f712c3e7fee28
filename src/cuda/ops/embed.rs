//! Rows of the embedding matrix.

use crate::Result;
use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, product, side, vectors};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::dtype::HalfType;

/// Threads of a block, at most.
const THREADS: u32 = 512;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        Spec::pair("embed", ["embed_bf16", "embed_f16"], THREADS, 0).to_vec()
    }
}

/// The matrix `[vocabulary, d]` that rows are taken of.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Its elements.
    pub elements: View<'a, u16>,
    /// Its rows, without the zero rows that fill tiles up.
    pub vocabulary: usize,
    /// How it lies.
    pub layout: WeightLayout,
}

/// `out[i] = table[ids[i]]`, widened: `out` is `[ids, d]` and `table` `[vocabulary, d]`, `d` a multiple of 8. An id without
/// a row gives NaN.
///
/// # Errors
/// A size or an address is not as it must be; the launch fails.
pub fn embed(
    device: &Device,
    storage: HalfType,
    out: &mut ViewMut<'_, f32>,
    table: Table<'_>,
    ids: View<'_, u32>,
    d: usize,
) -> Result<()> {
    const OP: &str = "embed";
    let Table { elements, vocabulary, layout } = table;
    check_len(OP, "table", elements.len(), layout.elements(vocabulary, d))?;
    check_len(OP, "out", out.len(), product(OP, ids.len(), d)?)?;
    vectors(OP, "d", d, out.address | elements.address)?;
    if out.is_empty() {
        return Ok(());
    }
    let launch = Launch {
        grid: (side(OP, "ids", ids.len(), i32::MAX as u32)?, 1, 1),
        threads: (d / 4).next_multiple_of(32).min(THREADS as usize) as u32,
        shared: 0,
    };
    let vocabulary = side(OP, "rows of the table", vocabulary, u32::MAX)?;
    let d = int(OP, "d", d)?;
    let tiled = i32::from(layout == WeightLayout::Tiles);
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (float* out, const T* table, const unsigned* ids, unsigned vocabulary, int d, int tiled). Block i
    // reads ids[i], and row ids[i] of the table if that is below vocabulary, the rows that it has in the layout that `tiled`
    // names; it writes row i of out, which has as many rows as there are ids and is lent to us alone. Accesses of 16 bytes are
    // aligned: the addresses and rows are, and so are chunks of 8 elements in tiles.
    unsafe {
        device.launch(
            &kernels[storage as usize],
            launch,
            args![out.address, elements.address, ids.address, vocabulary, d, tiled],
        )
    }
}
