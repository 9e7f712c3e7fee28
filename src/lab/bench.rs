//! How fast whole models are, and how near the limit of what they run on.
//!
//! [`latency()`] measures the passes of which everything is made, [`throughput()`] many requests at once, [`responses()`] whole answers
//! of the method against plain greedy decoding and Best-of-N of the same models, [`load()`] how long it takes until a pair can be used; [`serve`] a
//! server under load. [`cost`] says what a pass must move and compute at least, [`model`] that of all passes without running them, [`machine`]
//! what a processor does at most. Every measured case is a [`report::Row`]. Times are wall-clock medians, with everything that a caller
//! waits for.

pub mod chart;
pub mod cost;
mod drive;
mod latency;
mod load;
pub mod machine;
pub mod model;
pub mod report;
mod responses;
pub mod serve;
mod throughput;

pub use latency::{Depths, Passes, latency};
pub use load::load;
pub use responses::{Asked, responses};
pub use throughput::{Batches, throughput};

/// Runs of `run`, after some that are not timed; each gives its seconds.
fn timed(depths: &Depths, mut run: impl FnMut() -> crate::Result<f64>) -> crate::Result<Vec<f64>> {
    for _ in 0..depths.warmup {
        run()?;
    }
    (0..depths.runs.max(1)).map(|_| run()).collect()
}
