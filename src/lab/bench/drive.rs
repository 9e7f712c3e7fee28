//! Requests through the engine, timed: what throughput and whole answers are measured with.

use super::report::Phases;
use super::{Stopwatch, Taken};
use crate::Result;
use crate::engine::{Settings, run_all};
use crate::model::ModelPair;
use crate::task::Request;

/// What came of requests.
pub(super) struct Driven<T> {
    /// In the order in which they were handed in.
    pub finished: Vec<T>,
    /// Until the last one had ended.
    pub taken: Taken,
    /// Where they went.
    pub phases: Phases,
}

/// Runs requests together to their ends and gives everything back.
pub(super) fn drive<T>(
    backend: &mut ModelPair,
    settings: &Settings,
    requests: Vec<Box<dyn Request<Output = T>>>,
) -> Result<Driven<T>> {
    let watch = Stopwatch::start();
    let batch = run_all(backend, settings, requests, &mut ())?;
    let taken = Taken { wall: batch.elapsed, ..watch.stop() };
    let (seconds, spent) = (taken.wall, batch.seconds);
    let percent = |part: f64| 100.0 * part / seconds.max(f64::MIN_POSITIVE);
    let (policy, reward, gradient) = (percent(spent.policy), percent(spent.score), percent(spent.gradient));
    let host = (100.0 - policy - reward - gradient).max(0.0);
    let phases = Phases { policy, reward, gradient, host };
    Ok(Driven { finished: batch.results.into_iter().map(|(output, _)| output).collect(), taken, phases })
}
