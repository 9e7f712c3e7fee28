//! Models on a CUDA device, through the kernels of `cuda::ops`.
//!
//! `sizes` pads, `weights` loads, `memory` says beforehand what fits, `open` does all of it. `decoder` is the forward pass
//! and `backward` the other one, over the buffers of `state`. `policy` is a language model: `head` turns its hidden states
//! into rows, `graphs` records its decode steps (and rewards with gradients), `next_step` plans them ahead. `reward` is a reward model: `gradient` gives
//! its first-order scores. What a batch needs from the host goes to the device in one copy (`inputs`), and what it gives
//! comes back in as few as its kinds.

mod backward;
mod decoder;
mod gradient;
mod graphs;
mod head;
mod inputs;
pub mod memory;
mod next_step;
mod open;
mod policy;
mod residual;
mod reward;
pub mod sizes;
mod state;
pub mod weights;

pub use decoder::{GATED_ROWS, NORMED_ROWS, TURNED_ROWS};
pub use graphs::Launches;
pub use open::{CudaOptions, Loaded, Loading, Opened, Prepared, Sources, open};
