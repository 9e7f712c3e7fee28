//! Chosen rows of one matrix into chosen rows of another.

use crate::cuda::buffer::{Element, View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, int, product, rows_of, side};
use crate::{Error, Result};

/// Threads of a block, at most.
const THREADS: u32 = 256;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        vec![Spec::new("copy_rows", "copy_rows", THREADS, 0)]
    }
}

/// `dst[to] = src[from]` for every pair `[from, to]`; rows have `width` elements, whole 16-byte words. No two pairs name
/// one row of `dst`; a pair that names no row is left out.
pub fn copy_rows<T: Element>(
    device: &Device,
    dst: &mut ViewMut<'_, T>,
    src: View<'_, T>,
    pairs: View<'_, [u32; 2]>,
    width: usize,
) -> Result<()> {
    const OP: &str = "copy_rows";
    let bytes = product(OP, width, size_of::<T>())?;
    if !bytes.is_multiple_of(16) || !(dst.address | src.address).is_multiple_of(16) {
        return Err(Error::Backend(format!("{OP}: rows of {bytes} bytes do not lie at multiples of 16 bytes")));
    }
    let (dst_rows, src_rows) = (rows_of(OP, "dst", dst.len(), width)?, rows_of(OP, "src", src.len(), width)?);
    if pairs.is_empty() {
        return Ok(());
    }
    let words = bytes / 16;
    let launch = Launch {
        grid: (side(OP, "pairs", pairs.len(), i32::MAX as u32)?, 1, 1),
        threads: words.next_multiple_of(32).min(THREADS as usize) as u32,
        shared: 0,
    };
    let dst_rows = side(OP, "rows", dst_rows, u32::MAX)?;
    let src_rows = side(OP, "rows", src_rows, u32::MAX)?;
    let words = int(OP, "words of a row", words)?;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (uint4* dst, const uint4* src, const uint2* pairs, unsigned dst_rows, unsigned src_rows, int
    // words). Block i reads pair i and, if both of its rows are there, copies one row of 16-byte words; both matrices hold
    // that many whole rows, aligned as checked. dst is lent to us alone.
    unsafe {
        device.launch(&kernels[0], launch, args![dst.address, src.address, pairs.address, dst_rows, src_rows, words])
    }
}
