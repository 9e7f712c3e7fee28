//! Kernels that measure the card and are part of no model: single instructions, and the peak of the tensor core.

pub mod mma_peak;
pub mod probe;

use crate::cuda::kernels::Registration;

/// Every instrument.
pub(super) const ALL: [Registration; 2] =
    [Registration::of::<mma_peak::Kernels>(), Registration::of::<probe::Kernels>()];
