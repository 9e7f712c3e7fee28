//! How fast whole models are, and how near the limit of what they run on.
//!
//! [`latency()`] measures the passes of which everything is made, [`throughput()`] many requests at once, [`responses()`] whole answers
//! of the method against plain greedy decoding and Best-of-N of the same models, [`load()`] how long it takes until a pair can be used; [`serve`] a
//! server under load. [`cost`] says what a pass must move and compute at least, [`model`] that of all passes without running them, [`machine`]
//! what a processor does at most. Every measured case is a [`report::Row`]. Times are wall-clock medians, with everything that a caller
//! waits for, and processor time beside them.

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
mod stopwatch;
mod throughput;

pub use latency::{Depths, Pass, latency};
pub use load::load;
pub use responses::{Asked, responses};
use stopwatch::{Stopwatch, Taken};
pub use throughput::{Batches, throughput};

/// Is called before each timed run with its number, from 0 in each case; another program may have its turn meanwhile.
pub type Before<'a> = &'a mut dyn FnMut(usize) -> crate::Result<()>;

/// Runs of `run`, after some that are not timed; each gives what it took.
fn timed(
    [warmup, runs]: [usize; 2],
    before: Before<'_>,
    mut run: impl FnMut() -> crate::Result<Taken>,
) -> crate::Result<Vec<Taken>> {
    for _ in 0..warmup {
        run()?;
    }
    let timed = (0..runs.max(1)).map(|number| {
        before(number)?;
        run()
    });
    timed.collect()
}
