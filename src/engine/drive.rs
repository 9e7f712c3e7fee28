//! Requests run to their ends on the caller's thread.

use super::scheduler::{Event, RequestStats, Scheduler, stuck};
use super::settings::{Settings, SpeculationWidth};
use super::{baseline, intervention, sampler};
use crate::Result;
use crate::answer::{Completions, Response, RewardReport, Segment, TokenLogprob};
use crate::baselines::Baseline;
use crate::method::Options;
use crate::model::{ModelPair, StepTime};
use crate::rng::Uniforms;
use crate::sampling::CompletionSpec;
use crate::scoring::{RewardQuery, scorer};
use crate::task::{Progress, Request};
use std::time::Instant;

/// Is told what happens while a response is decoded. `()` ignores it; a closure is told of segments.
pub trait Observer {
    /// A segment was committed; `committed` are the ids it added.
    ///
    /// # Errors
    /// An error ends the request.
    fn segment(&mut self, segment: &Segment, committed: &[u32]) -> Result<()> {
        let _ = (segment, committed);
        Ok(())
    }
    /// A token of a candidate was decoded (for progress displays).
    fn token(&mut self) {}
    /// The completion of this number went on by a token, if its [`CompletionSpec`] streams tokens.
    ///
    /// # Errors
    /// An error ends the request.
    fn completion_token(&mut self, completion: usize, token: &TokenLogprob) -> Result<()> {
        let _ = (completion, token);
        Ok(())
    }
}

impl Observer for () {}

impl<F: FnMut(&Segment, &[u32])> Observer for F {
    fn segment(&mut self, segment: &Segment, committed: &[u32]) -> Result<()> {
        self(segment, committed);
        Ok(())
    }
}

/// Decodes one response, one candidate after the other.
///
/// # Errors
/// Options out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary, recorded uniforms that
/// run out, numbers that are not finite, or the backend's own failure. All sequences are released either way.
pub fn decode(
    backend: &mut ModelPair,
    prompt: &[u32],
    options: &Options,
    uniforms: Uniforms,
    observer: &mut dyn Observer,
) -> Result<Response> {
    let settings = Settings::single(SpeculationWidth::Off);
    let (response, _) = decode_with(backend, &settings, prompt, options, uniforms, observer)?;
    Ok(response)
}

/// [`decode`], as fast as the settings allow, with what was run for it.
///
/// # Errors
/// As [`decode`].
pub fn decode_with(
    backend: &mut ModelPair,
    settings: &Settings,
    prompt: &[u32],
    options: &Options,
    uniforms: Uniforms,
    observer: &mut dyn Observer,
) -> Result<(Response, RequestStats)> {
    let request = intervention(backend, prompt, options, uniforms)?;
    run_one(backend, settings, Box::new(request), observer)
}

/// Samples completions of one prompt.
///
/// # Errors
/// A spec out of range, and otherwise as [`decode`].
pub fn complete(
    backend: &mut ModelPair,
    settings: &Settings,
    prompt: &[u32],
    spec: CompletionSpec,
    observer: &mut dyn Observer,
) -> Result<(Completions, RequestStats)> {
    let request = sampler(backend, prompt, spec)?;
    run_one(backend, settings, Box::new(request), observer)
}

/// Searches for an answer by one of the methods that GGRO is compared with.
///
/// # Errors
/// A parameter of the method out of range, and otherwise as [`complete`].
pub fn search(
    backend: &mut ModelPair,
    settings: &Settings,
    prompt: &[u32],
    spec: CompletionSpec,
    method: &Baseline,
    observer: &mut dyn Observer,
) -> Result<(Completions, RequestStats)> {
    let request = baseline(backend, prompt, spec, method)?;
    run_one(backend, settings, Box::new(request), observer)
}

/// Rewards of a given text.
///
/// # Errors
/// As [`scorer`], numbers that are not finite, or the backend's own failure.
pub fn score(
    backend: &mut ModelPair,
    settings: &Settings,
    query: RewardQuery,
    pad: Option<u32>,
) -> Result<(RewardReport, RequestStats)> {
    let request = scorer(backend, query, pad)?;
    run_one(backend, settings, Box::new(request), &mut ())
}

fn run_one<T>(
    backend: &mut ModelPair,
    settings: &Settings,
    request: Box<dyn Request<Output = T>>,
    observer: &mut dyn Observer,
) -> Result<(T, RequestStats)> {
    let batch = run_all(backend, settings, vec![request], observer)?;
    batch.results.into_iter().next().ok_or_else(stuck)
}

/// Requests that were run together.
pub struct RunReport<T> {
    /// What each ended with and what was run for it, in the order in which they were given.
    pub results: Vec<(T, RequestStats)>,
    /// Wall-clock seconds until the last one had ended.
    pub elapsed: f64,
    /// How long the models took, by kind of work.
    pub seconds: StepTime,
}

/// Runs requests together to their ends. All sequences are released, however they end.
///
/// # Errors
/// That of the first request that fails, or the observer's.
pub fn run_all<T>(
    backend: &mut ModelPair,
    settings: &Settings,
    requests: Vec<Box<dyn Request<Output = T>>>,
    observer: &mut dyn Observer,
) -> Result<RunReport<T>> {
    let mut scheduler = Scheduler::new(settings.clone());
    let started = Instant::now();
    let numbers: Vec<u64> = requests.into_iter().map(|request| scheduler.submit(request)).collect();
    let results = run(&mut scheduler, backend, &numbers, observer);
    let elapsed = started.elapsed().as_secs_f64();
    scheduler.clear(backend);
    Ok(RunReport { results: results?, elapsed, seconds: scheduler.seconds() })
}

fn run<T>(
    scheduler: &mut Scheduler<T>,
    backend: &mut ModelPair,
    numbers: &[u64],
    observer: &mut dyn Observer,
) -> Result<Vec<(T, RequestStats)>> {
    let mut results: Vec<Option<(T, RequestStats)>> = numbers.iter().map(|_| None).collect();
    while results.iter().any(Option::is_none) {
        let busy = scheduler.step(backend);
        for event in scheduler.events() {
            match event {
                Event::Progress(_, Progress::Tokens(count)) => (0..count).for_each(|_| observer.token()),
                Event::Progress(_, Progress::Segment(segment, ids)) => observer.segment(&segment, &ids)?,
                Event::Progress(_, Progress::Token(index, token)) => observer.completion_token(index, &token)?,
                Event::Started(_) | Event::Progress(_, Progress::Prompt(_)) => {}
                Event::Ended(id, result, stats) => {
                    if let Some(index) = numbers.iter().position(|&number| number == id) {
                        results[index] = Some((result?, stats));
                    }
                }
            }
        }
        if !busy && results.iter().any(Option::is_none) {
            return Err(stuck());
        }
    }
    Ok(results.into_iter().flatten().collect())
}
