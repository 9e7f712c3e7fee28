//! Hopper's tensor core with nothing in its way, for the benchmark's percentages. Other devices do not have the kernel.

use crate::Result;
use crate::cuda::buffer::ViewMut;
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, product, side};

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Floating-point operations of a warpgroup in one round: 16 products of 64 by 128 by 16.
const ROUND: f64 = 16.0 * 2.0 * 64.0 * 128.0 * 16.0;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        vec![Spec::new("wgmma_peak_sm90", "wgmma_peak_bf16", THREADS, 0)]
    }
}

/// Whether the device has the kernel.
pub fn runs_on(device: &Device) -> bool {
    device.has::<Kernels>()
}

/// Runs `rounds` rounds of products in both warpgroups of `blocks` blocks and returns the floating-point operations done.
///
/// # Errors
/// The device does not have the kernel, or fails.
pub fn wgmma_peak(device: &Device, out: &mut ViewMut<'_, f32>, blocks: usize, rounds: usize) -> Result<f64> {
    const OP: &str = "wgmma_peak";
    check_len(OP, "out", out.len(), product(OP, blocks, THREADS as usize)?)?;
    let launch = Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    let flops = blocks as f64 * f64::from(THREADS / 128) * rounds as f64 * ROUND;
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
