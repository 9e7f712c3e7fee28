//! How fast whole models are, and how near the limit of what they run on.
//!
//! [`latency`] measures the passes of which everything is made; [`responses`] whole answers of the method against plain greedy
//! decoding of the same models; [`serve`] a server under load. [`cost`] says what a pass must move and compute at least. Times are wall-clock medians, with
//! everything that a caller waits for.

pub mod cost;
mod latency;
mod responses;
pub mod serve;

pub use latency::{Depths, Passes, latency};
pub use responses::{Asked, Responses, responses};

use cost::{Cost, Limits};

/// One measured case.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Case {
    /// `prefill`, `decode`, `reward`, `gradient`.
    pub phase: &'static str,
    /// What was run, in words.
    pub case: String,
    /// How the kernels were launched: `graph`, `eager`, or empty.
    pub launch: &'static str,
    /// Median seconds of a run.
    pub seconds: f64,
    /// Least and largest seconds.
    pub spread: [f64; 2],
    /// Positions a second that go through the layers.
    pub tokens_per_second: f64,
    /// What it moves and computes at least.
    pub cost: Cost,
    /// The cost's bytes and operations a second.
    pub gigabytes_per_second: f64,
    /// In 1e12.
    pub teraflops: f64,
    /// Percent of the limit that was measured; none if none was.
    pub percent: Option<f64>,
}

impl Case {
    fn new(phase: &'static str, case: String, mut seconds: Vec<f64>, tokens: usize, cost: Cost) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |index: usize| seconds.get(index).copied().unwrap_or(f64::NAN);
        let median = at(seconds.len() / 2);
        Case {
            phase,
            case,
            launch: "",
            seconds: median,
            spread: [at(0), at(seconds.len().saturating_sub(1))],
            tokens_per_second: tokens as f64 / median,
            gigabytes_per_second: cost.bytes / median / 1e9,
            teraflops: cost.flops / median / 1e12,
            cost,
            percent: None,
        }
    }

    /// The same with its share of a limit.
    #[must_use]
    pub fn against(mut self, limits: Option<Limits>) -> Self {
        self.percent = limits.map(|limits| 100.0 * limits.seconds(self.cost) / self.seconds);
        self
    }
}

/// `count` runs of `run`, after one that is not timed; each gives its seconds.
fn timed(count: usize, mut run: impl FnMut() -> crate::Result<f64>) -> crate::Result<Vec<f64>> {
    run()?;
    (0..count.max(1)).map(|_| run()).collect()
}
