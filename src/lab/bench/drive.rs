//! Requests through the scheduler, timed: what throughput and whole answers are measured with.

use super::report::Phases;
use crate::engine::{Event, Scheduler, Settings};
use crate::model::Backend;
use crate::task::{Finished, Generation};
use crate::{Error, Result};
use std::time::Instant;

/// What came of requests.
pub(super) struct Driven {
    /// In the order in which they were handed in.
    pub finished: Vec<Finished>,
    /// Until the last one had ended.
    pub seconds: f64,
    /// Where they went.
    pub phases: Phases,
}

/// Runs requests together to their ends and gives everything back.
pub(super) fn drive(
    backend: &mut dyn Backend,
    settings: &Settings,
    requests: Vec<Box<dyn Generation>>,
) -> Result<Driven> {
    let mut scheduler = Scheduler::new(settings.clone());
    let started = Instant::now();
    let numbers: Vec<u64> = requests.into_iter().map(|request| scheduler.submit(request)).collect();
    let mut finished: Vec<Option<Finished>> = numbers.iter().map(|_| None).collect();
    let result = (|| {
        while finished.iter().any(Option::is_none) {
            let busy = scheduler.turn(backend);
            for event in scheduler.events() {
                let Event::Ended(id, outcome, _) = event else { continue };
                let outcome = (*outcome)?;
                if let Some(index) = numbers.iter().position(|&number| number == id) {
                    finished[index] = Some(outcome);
                }
            }
            if !busy && finished.iter().any(Option::is_none) {
                return Err(Error::Backend("a request that can neither go on nor end".to_string()));
            }
        }
        Ok(())
    })();
    let seconds = started.elapsed().as_secs_f64();
    let spent = scheduler.seconds();
    scheduler.clear(backend);
    result?;
    let percent = |part: f64| 100.0 * part / seconds.max(f64::MIN_POSITIVE);
    let (policy, reward, gradient) = (percent(spent.policy), percent(spent.score), percent(spent.gradient));
    let host = (100.0 - policy - reward - gradient).max(0.0);
    let phases = Phases { policy, reward, gradient, host };
    Ok(Driven { finished: finished.into_iter().flatten().collect(), seconds, phases })
}
