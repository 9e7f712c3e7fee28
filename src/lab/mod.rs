//! The laboratory: kernels against an evaluation in f64, golden fixtures replayed, benchmarks.

pub mod bench;
pub mod goldens;
pub mod kernel_check;
