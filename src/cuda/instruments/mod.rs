//! Kernels that measure the card and are part of no model: single instructions, and the peaks of the tensor core and of memory.

pub mod mma_peak;
pub mod probe;
pub mod read_peak;

use crate::cuda::kernels::Registration;

/// Every instrument.
pub(super) const ALL: [Registration; 3] = [
    Registration::of::<mma_peak::Kernels>(),
    Registration::of::<probe::Kernels>(),
    Registration::of::<read_peak::Kernels>(),
];
