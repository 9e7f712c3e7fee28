//! Many requests on one pair of models: continuous batching, speculation, preemption, and the same answers as one by one.
//!
//! A response ([`ggro`](crate::method)) says what it wants to know; the [`Scheduler`] forms batches from what all of them say,
//! and [`decode`] is the smallest engine there is: one request, turn after turn.

mod lines;
mod run;
mod scheduler;
mod service;
mod turn;

pub use crate::task::{Finished, Generation, Progress, Speculation};
pub use scheduler::{Account, Event, Scheduler, Totals};
pub use service::{Engine, Handle, Make, Status, Tell, Ticket, Update};
pub use turn::{Answer, Span, Turn};

use crate::answer::{Response, Segment};
use crate::method::{Intervention, Options};
use crate::model::{Backend, Role};
use crate::rng::Uniforms;
use crate::sampling::{Completions, Plan, Sampler};
use crate::{Error, Result};

/// Candidates of a segment at the same time, at most, where the width follows the load.
pub const WIDEST: usize = 25;

/// Completions of one request, at most.
pub const MOST_COMPLETIONS: usize = 128;

/// Turns for which rewards wait for each other where that pays.
pub const PATIENCE: usize = 4;

/// Candidates of a segment at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One: nothing is run before it is needed.
    Off,
    /// So many.
    Fixed(usize),
    /// As many as share one reading of the weights, divided by the requests that run.
    Auto,
}

impl std::str::FromStr for Width {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Width, String> {
        match text {
            "off" => Ok(Width::Off),
            "auto" => Ok(Width::Auto),
            _ => match text.parse() {
                Ok(width) if width >= 1 => Ok(Width::Fixed(width)),
                _ => Err(format!("expected auto, off or a number of at least 1, not {text}")),
            },
        }
    }
}

/// How an engine runs its requests. Nothing here changes an answer.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Candidates of a segment at the same time.
    pub speculation: Width,
    /// Whether the branch in the lead is decoded into the next segment while others are still scored.
    pub run_ahead: bool,
    /// Requests that run at the same time, at most; others wait.
    pub max_requests: usize,
    /// Tokens of one policy batch, at most: longer prompts are cut.
    pub batch_tokens: usize,
    /// Prompts of each model whose keys and values are kept for later requests, at most.
    pub cached_prompts: usize,
    /// Turns for which rewards may wait for each other; `None`: [`PATIENCE`] where batches share one reading of the weights.
    pub patience: Option<usize>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            speculation: Width::Auto,
            run_ahead: true,
            max_requests: 256,
            batch_tokens: 2048,
            cached_prompts: 64,
            patience: None,
        }
    }
}

impl Settings {
    /// For one request: no prompt is kept.
    pub fn alone(speculation: Width) -> Settings {
        Settings { speculation, cached_prompts: 0, batch_tokens: usize::MAX, ..Settings::default() }
    }
}

/// Is told what happens while a response is decoded.
pub trait Observer {
    /// A segment was committed; `committed` are the ids it added.
    fn segment(&mut self, segment: &Segment, committed: &[u32]) -> Result<()> {
        let _ = (segment, committed);
        Ok(())
    }
    /// A token of a candidate was decoded (for progress displays).
    fn token(&mut self) {}
}

/// Decodes one response, one candidate after the other.
///
/// # Errors
/// Options out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary, recorded uniforms that
/// run out, numbers that are not finite, or the backend's own failure. All sequences are released either way.
pub fn decode(
    backend: &mut dyn Backend,
    prompt: &[u32],
    options: &Options,
    uniforms: Uniforms,
    observer: &mut dyn Observer,
) -> Result<Response> {
    let (response, _) = decode_with(backend, &Settings::alone(Width::Off), prompt, options, uniforms, observer)?;
    Ok(response)
}

/// [`decode`], as fast as the settings allow, with an account of what was run for it.
///
/// # Errors
/// As [`decode`].
pub fn decode_with(
    backend: &mut dyn Backend,
    settings: &Settings,
    prompt: &[u32],
    options: &Options,
    uniforms: Uniforms,
    observer: &mut dyn Observer,
) -> Result<(Response, Account)> {
    let request = intervention(backend, prompt, options, uniforms)?;
    let (finished, account) = alone(backend, settings, Box::new(request), observer)?;
    Ok((finished.response()?, account))
}

/// Samples completions of one prompt.
///
/// # Errors
/// A plan out of range, and otherwise as [`decode`].
pub fn complete(
    backend: &mut dyn Backend,
    settings: &Settings,
    prompt: &[u32],
    plan: Plan,
    observer: &mut dyn Observer,
) -> Result<(Completions, Account)> {
    let request = sampler(backend, prompt, plan)?;
    let (finished, account) = alone(backend, settings, Box::new(request), observer)?;
    Ok((finished.completions()?, account))
}

/// Runs one request to its end and gives everything back, however it ends.
fn alone(
    backend: &mut dyn Backend,
    settings: &Settings,
    request: Box<dyn Generation>,
    observer: &mut dyn Observer,
) -> Result<(Finished, Account)> {
    let mut scheduler = Scheduler::new(settings.clone());
    scheduler.submit(request);
    let result = drive(&mut scheduler, backend, observer);
    scheduler.clear(backend);
    result
}

fn drive(
    scheduler: &mut Scheduler,
    backend: &mut dyn Backend,
    observer: &mut dyn Observer,
) -> Result<(Finished, Account)> {
    loop {
        let busy = scheduler.turn(backend);
        for event in scheduler.events() {
            match event {
                Event::Progress(_, Progress::Tokens(count)) => (0..count).for_each(|_| observer.token()),
                Event::Progress(_, Progress::Segment(segment, ids)) => observer.segment(&segment, &ids)?,
                Event::Started(_) | Event::Progress(_, Progress::Chosen(..) | Progress::Prompt(_)) => {}
                Event::Ended(_, outcome, account) => return Ok(((*outcome)?, account)),
            }
        }
        if !busy {
            return Err(stuck());
        }
    }
}

fn stuck() -> Error {
    Error::Backend("a request that can neither go on nor end".to_string())
}

/// A request for sampled completions, checked.
///
/// # Errors
/// A plan out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary.
pub fn sampler(backend: &dyn Backend, prompt: &[u32], plan: Plan) -> Result<Sampler> {
    let vocab = [Role::Policy, Role::Reward].map(|role| backend.config(role).vocab_size);
    plan.sampling.check(vocab[0])?;
    if plan.n == 0 || plan.n > MOST_COMPLETIONS {
        return Err(Error::invalid(format!("n must be 1 to {MOST_COMPLETIONS}, not {}", plan.n)));
    }
    if plan.max_new_tokens == 0 && !plan.prompt_logprobs {
        return Err(Error::invalid("max_new_tokens must be at least 1, not 0"));
    }
    check_prompt(backend, prompt, plan.max_new_tokens)?;
    Ok(Sampler::new(prompt, plan, vocab[1]))
}

/// A request for a response by the method, checked.
///
/// # Errors
/// Options out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary.
pub fn intervention(
    backend: &dyn Backend,
    prompt: &[u32],
    options: &Options,
    uniforms: Uniforms,
) -> Result<Intervention> {
    options.check()?;
    check_prompt(backend, prompt, options.max_new_tokens)?;
    let vocab = (backend.config(Role::Policy).vocab_size, backend.config(Role::Reward).vocab_size);
    Ok(Intervention::new(prompt, options, uniforms, vocab))
}

/// Checks that a prompt and so many new tokens can be run.
///
/// # Errors
/// An empty prompt, one beyond the context, an id beyond a vocabulary.
pub fn check_prompt(backend: &dyn Backend, prompt: &[u32], max_new_tokens: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty"));
    }
    for role in [Role::Policy, Role::Reward] {
        let vocab = backend.config(role).vocab_size;
        if let Some(at) = prompt.iter().position(|&id| id as usize >= vocab) {
            return Err(Error::invalid(format!(
                "prompt id {} at position {at} is beyond the {} model's vocabulary of {vocab}",
                prompt[at],
                role.name()
            )));
        }
    }
    let (len, limit) = (prompt.len(), backend.max_len());
    if len >= limit {
        return Err(Error::invalid(format!(
            "the prompt has {len} tokens, and the longest sequence is {limit}; an answer does not fit"
        )));
    }
    if max_new_tokens > limit - len {
        return Err(Error::invalid(format!(
            "the prompt's {len} tokens and max_new_tokens {max_new_tokens} exceed the longest sequence of {limit}; \
             lower max_new_tokens to {} or less",
            limit - len
        )));
    }
    Ok(())
}
