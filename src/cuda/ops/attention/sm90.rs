//! The kernels of Hopper for tiles of 64 rows: kernels/attention_sm90.cu, by wgmma.

use super::shape::Shape;
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::dtype::HalfType;

/// Sizes of heads, and how many pages are in flight.
const INSTANCES: [(usize, [&str; 2], usize); 2] = [
    (64, ["attention_sm90_64_bf16", "attention_sm90_64_f16"], 6),
    (128, ["attention_sm90_128_bf16", "attention_sm90_128_f16"], 4),
];
/// Threads of a block for items of one tile, and of two: a warpgroup for each tile behind one that copies.
const THREADS: [u32; 2] = [256, 384];
/// Rows of a tile, and positions of a page.
const SIDE: usize = 64;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        let of = |&(head, names, stages): &(usize, [&'static str; 2], usize)| {
            names.map(|name| Spec::new("attention_sm90", name, THREADS[1], shared(head, stages)))
        };
        INSTANCES.iter().flat_map(of).collect()
    }
}

/// What tiles have of their own, in f32; stages of keys and values; and what brings it to a multiple of 1024 bytes.
const fn shared(head: usize, stages: usize) -> u32 {
    (2 * SIDE * head * 4 + stages * 2 * SIDE * head * 2 + 1024) as u32
}

/// Whether the device has these kernels.
pub fn runs_on(device: &Device) -> bool {
    device.has::<Kernels>()
}

/// Whether there is a kernel for the heads of a shape.
pub fn fits(shape: &Shape) -> bool {
    INSTANCES.iter().any(|&(head, ..)| head == shape.head)
}

/// Which of the kernels is for heads of this size.
pub(super) fn index(head: usize, storage: HalfType) -> usize {
    2 * INSTANCES.iter().position(|&(size, ..)| size == head).unwrap_or(0) + storage as usize
}

/// Threads of a block whose item has so many tiles.
pub(super) fn threads(tiles: usize) -> u32 {
    THREADS[usize::from(tiles > 1)]
}
