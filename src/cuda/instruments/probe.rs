//! One instruction at a time, for golden vectors.

use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, product, side};
use crate::{Error, Result};

/// Threads of a block: one warp.
const THREADS: u32 = 32;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        vec![Spec::new("probe", "probe", THREADS, 0), Spec::new("probe", "probe_bulk", THREADS, 0)]
    }
}

/// Words that one case reads.
pub const IN: usize = 320;
/// Words that one case writes: four per lane.
pub const OUT: usize = 128;

/// An instruction, or a few that belong together. The order is that of `kernels/probe.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Four 8x8 matrices into fragments.
    LdmatrixX4,
    /// The same, transposed.
    LdmatrixX4Trans,
    /// Two matrices.
    LdmatrixX2,
    /// The same, transposed.
    LdmatrixX2Trans,
    /// A 16x8x16 product of bf16 on an f32 accumulator.
    MmaBf16,
    /// The same of f16.
    MmaF16,
    /// Shuffles by index, by xor and down, and a vote.
    Shuffle,
    /// An asynchronous copy with zero fill.
    CopyAsync,
    /// Rounding to bf16 and f16.
    Round,
    /// A bulk copy on a barrier in shared memory; from sm_90 on.
    Bulk,
}

impl Probe {
    /// All of them.
    pub const ALL: [Probe; 10] = [
        Probe::LdmatrixX4,
        Probe::LdmatrixX4Trans,
        Probe::LdmatrixX2,
        Probe::LdmatrixX2Trans,
        Probe::MmaBf16,
        Probe::MmaF16,
        Probe::Shuffle,
        Probe::CopyAsync,
        Probe::Round,
        Probe::Bulk,
    ];

    /// Its name in a file of vectors.
    pub fn name(self) -> &'static str {
        match self {
            Probe::LdmatrixX4 => "ldmatrix_x4",
            Probe::LdmatrixX4Trans => "ldmatrix_x4_trans",
            Probe::LdmatrixX2 => "ldmatrix_x2",
            Probe::LdmatrixX2Trans => "ldmatrix_x2_trans",
            Probe::MmaBf16 => "mma_bf16",
            Probe::MmaF16 => "mma_f16",
            Probe::Shuffle => "shuffle",
            Probe::CopyAsync => "cp_async",
            Probe::Round => "round",
            Probe::Bulk => "bulk_copy",
        }
    }
}

/// Runs a probe on every case of `input`, [`IN`] words each, and writes [`OUT`] words per case. A probe that the device's
/// code lacks leaves `out` as it is.
pub fn probe(device: &Device, probe: Probe, out: &mut ViewMut<'_, u32>, input: View<'_, u32>) -> Result<()> {
    const OP: &str = "probe";
    let cases = input.len() / IN;
    check_len(OP, "input", input.len(), product(OP, cases, IN)?)?;
    check_len(OP, "out", out.len(), product(OP, cases, OUT)?)?;
    if !(input.address | out.address).is_multiple_of(16) {
        return Err(Error::Backend(format!("{OP}: input and output are not aligned to 16 bytes")));
    }
    if cases == 0 {
        return Ok(());
    }
    let launch = Launch { grid: (side(OP, "cases", cases, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    let which = probe as i32;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (u32* out, const u32* in, int which), of the bulk probe the first two. Block c reads words
    // 320 c .. 320 (c + 1) of the input and writes words 128 c .. 128 (c + 1) of out, which is lent to us alone; both are
    // aligned to 16 bytes, which whole cases keep.
    unsafe {
        match probe {
            Probe::Bulk => device.launch(&kernels[1], launch, args![out.address, input.address]),
            _ => device.launch(&kernels[0], launch, args![out.address, input.address, which]),
        }
    }
}
