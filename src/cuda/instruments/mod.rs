//! Kernels that measure the card and are part of no model: single instructions, and the peaks of tensor cores and of memory.

pub mod mma_peak;
pub mod probe;
pub mod read_peak;
pub mod wgmma_peak;

use crate::cuda::kernels::Registration;

/// Every instrument.
pub(super) const ALL: [Registration; 4] = [
    Registration::of::<mma_peak::Kernels>(),
    Registration::of::<probe::Kernels>(),
    Registration::of::<read_peak::Kernels>(),
    Registration::of::<wgmma_peak::Kernels>(),
];
