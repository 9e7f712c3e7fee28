//! Weights of a synthetic model.

use super::{args, side};
use crate::Result;
use crate::cuda::device::Launch;
use crate::cuda::kernels::DRAW_THREADS;
use crate::cuda::{Device, ViewMut};
use crate::dtype::HalfType;
use crate::rng::RandomFill;

const OP: &str = "draw";

/// Blocks of a launch, at most: enough for any card.
const BLOCKS: usize = 4096;

/// `out[i]` = element `first + i`, rounded to the storage type.
pub fn draw(
    device: &Device,
    storage: HalfType,
    out: &mut ViewMut<'_, u16>,
    first: usize,
    from: RandomFill,
) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let blocks = out.len().div_ceil(DRAW_THREADS as usize).min(BLOCKS);
    let launch =
        Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: DRAW_THREADS, shared: 0 };
    let (first, count) = (first as u64, out.len() as u64);
    let RandomFill { seed, mean, scale } = from;
    // SAFETY: parameters are (T* out, u64 first, u64 count, u64 seed, float mean, float scale); elements below count of out are
    // written, which has as many and is lent to us alone.
    unsafe {
        device.launch(
            &device.kernels().draw[storage as usize],
            launch,
            args![out.address, first, count, seed, mean, scale],
        )
    }
}
