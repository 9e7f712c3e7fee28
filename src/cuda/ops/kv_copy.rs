//! The partial block of a fork.

use super::kv::KvLayout;
use crate::Result;
use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, side};
use crate::{Error, kv};

/// Threads of a block.
const THREADS: u32 = 256;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        vec![Spec::new("kv_copy", "kv_copy", THREADS, 0)]
    }
}

/// Copies the first positions of blocks into other blocks, in all layers, for every `[from, to, positions]`. No block is
/// the target of two copies, or both source and target. A copy of a block that is not in the pool is left out.
pub fn kv_copy(
    device: &Device,
    pool: &mut ViewMut<'_, u16>,
    copies: View<'_, [u32; 3]>,
    layout: KvLayout,
) -> Result<()> {
    const OP: &str = "kv_copy";
    let slots = layout.slots(OP, pool.len())?;
    if !layout.head.is_multiple_of(8) || !pool.address.is_multiple_of(16) {
        return Err(Error::Backend(format!(
            "{OP}: heads of {} elements do not lie at multiples of 16 bytes",
            layout.head
        )));
    }
    if copies.is_empty() {
        return Ok(());
    }
    let planes = side(OP, "planes of a block", layout.block() / (kv::BLOCK * layout.head), i32::MAX as u32)?;
    let launch = Launch { grid: (planes, side(OP, "copies", copies.len(), 65_535)?, 1), threads: THREADS, shared: 0 };
    let blocks = slots / kv::BLOCK as u32;
    let words = side(OP, "words of a position", layout.head / 8, u32::MAX / kv::BLOCK as u32)?;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (uint4* pool, const unsigned* copies, unsigned blocks, unsigned planes, unsigned words). Block
    // (p, c) reads the three words of copy c and, if both blocks are below `blocks`, the number the pool holds, copies at
    // most the 64 positions of plane p, each `words` aligned 16-byte words, inside these blocks. The pool is lent to us alone.
    unsafe { device.launch(&kernels[0], launch, args![pool.address, copies.address, blocks, planes, words]) }
}
