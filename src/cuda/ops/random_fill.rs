//! Weights of a synthetic model.

use crate::Result;
use crate::cuda::buffer::ViewMut;
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, side};
use crate::dtype::HalfType;
use crate::rng::RandomFill;

/// Threads of a block.
const THREADS: u32 = 256;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        Spec::pair("random_fill", ["random_fill_bf16", "random_fill_f16"], THREADS, 0).to_vec()
    }
}

const OP: &str = "random_fill";

/// Blocks of a launch, at most: enough for any card.
const BLOCKS: usize = 4096;

/// `out[i]` = element `first + i`, rounded to the storage type.
pub fn random_fill(
    device: &Device,
    storage: HalfType,
    out: &mut ViewMut<'_, u16>,
    first: usize,
    from: RandomFill,
) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let blocks = out.len().div_ceil(THREADS as usize).min(BLOCKS);
    let launch = Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    let (first, count) = (first as u64, out.len() as u64);
    let RandomFill { seed, mean, scale } = from;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (T* out, u64 first, u64 count, u64 seed, float mean, float scale); elements below count of out are
    // written, which has as many and is lent to us alone.
    unsafe { device.launch(&kernels[storage as usize], launch, args![out.address, first, count, seed, mean, scale]) }
}
