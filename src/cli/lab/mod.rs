//! Commands of the laboratory.

pub(super) mod bench;
pub(super) mod kernels;
pub(super) mod synth;
pub(super) mod verify;
