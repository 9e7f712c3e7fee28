//! The tensor core with nothing in its way, for the benchmark's percentages.

use crate::Result;
use crate::cuda::buffer::ViewMut;
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, product, side};

/// Threads of a block.
const THREADS: u32 = 256;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        vec![Spec::new("mma_peak", "mma_peak_bf16", THREADS, 0)]
    }
}

/// Runs `rounds` rounds of products in every warp of `blocks` blocks and returns the floating-point operations done.
pub fn mma_peak(device: &Device, out: &mut ViewMut<'_, f32>, blocks: usize, rounds: usize) -> Result<f64> {
    const OP: &str = "mma_peak";
    check_len(OP, "out", out.len(), product(OP, blocks, THREADS as usize)?)?;
    let launch = Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    let flops = blocks as f64 * f64::from(THREADS / 32) * rounds as f64 * 8.0 * 4096.0;
    if blocks == 0 {
        return Ok(0.0);
    }
    let rounds = int(OP, "rounds", rounds)?;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (float* out, int rounds); each thread of the grid writes its own element of out, which has
    // one per thread and is lent to us alone.
    unsafe { device.launch(&kernels[0], launch, args![out.address, rounds])? };
    Ok(flops)
}
