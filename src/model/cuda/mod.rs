//! Both models on CUDA: sizes, weights and memory.

pub mod memory;
pub mod sizes;
pub mod weights;
