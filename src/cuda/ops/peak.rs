//! The tensor core with nothing in its way, for the benchmark's percentages.

use super::{args, check_len, int, product, side};
use crate::Result;
use crate::cuda::device::Launch;
use crate::cuda::kernels::PEAK_THREADS;
use crate::cuda::{Device, ViewMut};

/// Runs `rounds` rounds of products in every warp of `blocks` blocks and returns the floating-point operations done.
pub fn peak_mma(device: &Device, out: &mut ViewMut<'_, f32>, blocks: usize, rounds: usize) -> Result<f64> {
    const OP: &str = "peak_mma";
    check_len(OP, "out", out.len(), product(OP, blocks, PEAK_THREADS as usize)?)?;
    let launch =
        Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: PEAK_THREADS, shared: 0 };
    let flops = blocks as f64 * f64::from(PEAK_THREADS / 32) * rounds as f64 * 8.0 * 4096.0;
    if blocks == 0 {
        return Ok(0.0);
    }
    let rounds = int(OP, "rounds", rounds)?;
    // SAFETY: parameters are (float* out, int rounds); each thread of the grid writes its own element of out, which has
    // one per thread and is lent to us alone.
    unsafe { device.launch(&device.kernels().peak_mma, launch, args![out.address, rounds])? };
    Ok(flops)
}
