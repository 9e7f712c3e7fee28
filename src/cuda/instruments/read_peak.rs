//! Memory that is only read, for the benchmark's percentages: a step of decoding reads weights and writes next to nothing.

use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, side};
use crate::{Error, Result};

/// Threads of a block.
const THREADS: u32 = 512;
/// Words that a thread reads at a time.
const WORDS: usize = 4;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        vec![Spec::new("read_peak", "read_peak", THREADS, 0)]
    }
}

/// Reads all of `input`, a multiple of four words, and writes the exclusive or of what each of `blocks` blocks read.
pub fn read_peak(device: &Device, out: &mut ViewMut<'_, u32>, input: View<'_, u32>, blocks: usize) -> Result<()> {
    const OP: &str = "read_peak";
    check_len(OP, "out", out.len(), blocks)?;
    if !input.address.is_multiple_of(16) || !input.len().is_multiple_of(WORDS) {
        return Err(Error::Backend(format!("{OP}: the input does not consist of aligned pieces of 16 bytes")));
    }
    if blocks == 0 {
        return Ok(());
    }
    let launch = Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    let count = (input.len() / WORDS) as u64;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (u32* out, const uint4* in, u64 count). All blocks together read in[0 .. count], which is the whole
    // input, aligned to 16 bytes; block b writes word b of out, which has one per block and is lent to us alone.
    unsafe { device.launch(&kernels[0], launch, args![out.address, input.address, count]) }
}
