//! The laboratory: kernels against an evaluation in f64, golden fixtures replayed, benchmarks, and what kernels should take.

pub mod bench;
pub mod goldens;
pub mod kernel_check;
pub mod time_model;
