//! Many requests on one pair of models: continuous batching, speculation, preemption, and the same answers as one by one.
//!
//! [`Engine`] is the way in: a thread that owns the backend, and a [`Ticket`] for each request. Under it the [`Scheduler`]
//! forms batches from what all [requests](crate::task::Request) ask for. [`decode`] is the smallest engine: one request, step
//! after step, on the caller's thread.

mod command;
mod confidence;
mod draft;
mod draft_model;
mod drive;
mod execute;
mod retokenize;
mod scheduler;
mod sequences;
mod service;
mod settings;
mod step;
mod submitter;
mod ticket;

pub use crate::sampling::MAX_COMPLETIONS;
pub use crate::task::{Progress, Request, Speculation};
pub use command::{Handle, Update};
pub use draft_model::DraftWork;
pub use drive::{Observer, RunReport, complete, decode, decode_with, run_all, score, search};
pub use retokenize::decode_retokenized;
pub use scheduler::{DraftCount, DraftStats, Event, RequestStats, Scheduler, SchedulerStats};
pub use service::{Engine, Status};
pub use settings::{Drafting, MAX_WIDTH, REWARD_BATCH_WAIT, Settings, SpeculationWidth};
pub use step::{SpanOutput, Step, TaskSpan};
pub use submitter::Submitter;
pub use ticket::Ticket;

use crate::baselines::{Baseline, Search, Strategy};
use crate::error::Limit;
use crate::method::{Intervention, Options};
use crate::model::{ModelPair, Role};
use crate::rng::Uniforms;
use crate::sampling::{CompletionSpec, Sampler, Sampling};
use crate::{Error, Result};

/// A request for sampled completions, checked.
///
/// # Errors
/// A spec out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary; there is no policy, or the
/// completions are to be scored and there is no reward model.
pub fn sampler(backend: &ModelPair, prompt: &[u32], spec: CompletionSpec) -> Result<Sampler> {
    spec.sampling.check(backend.config(Role::Policy)?.vocab_size)?;
    let readable = match backend.config(Role::Reward) {
        Ok(config) => config.vocab_size,
        Err(missing) if spec.score => return Err(missing),
        Err(_) => usize::MAX,
    };
    if spec.n == 0 || spec.n > MAX_COMPLETIONS {
        return Err(Error::invalid(format!("n must be 1 to {MAX_COMPLETIONS}, not {}", spec.n)));
    }
    if spec.max_new_tokens == 0 && !spec.prompt_logprobs {
        return Err(Error::invalid("max_new_tokens must be at least 1, not 0"));
    }
    check_prompt(backend, prompt, spec.max_new_tokens)?;
    Ok(Sampler::new(prompt, spec, readable))
}

/// A request for an answer by one of the methods that GGRO is compared with, checked. Of `spec`, `n`, `score` and
/// `prompt_logprobs` do not count.
///
/// # Errors
/// A parameter of the method out of range; otherwise as [`searcher`].
pub fn baseline(backend: &ModelPair, prompt: &[u32], spec: CompletionSpec, baseline: &Baseline) -> Result<Search> {
    let strategy = baseline.strategy(prompt.len(), spec.max_new_tokens)?;
    let spec = match baseline.samples() {
        true => spec,
        // With the sampling's filters and penalties, all logits of every row would come to the host for nothing. What
        // is out of range is refused all the same.
        false => {
            spec.sampling.check(backend.config(Role::Policy)?.vocab_size)?;
            let Sampling { seed, logprobs, .. } = spec.sampling;
            CompletionSpec { sampling: Sampling { seed, logprobs, ..Sampling::default() }, ..spec }
        }
    };
    searcher(backend, prompt, spec, strategy)
}

/// A request for an answer by a method of one's own, checked. Of `spec`, `n`, `score` and `prompt_logprobs` do not count.
///
/// # Errors
/// A spec out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary, a model that is missing.
pub fn searcher(
    backend: &ModelPair,
    prompt: &[u32],
    spec: CompletionSpec,
    strategy: Box<dyn Strategy>,
) -> Result<Search> {
    spec.sampling.check(backend.config(Role::Policy)?.vocab_size)?;
    let readable = backend.config(Role::Reward)?.vocab_size;
    if spec.max_new_tokens == 0 {
        return Err(Error::invalid("max_new_tokens must be at least 1, not 0"));
    }
    check_prompt(backend, prompt, spec.max_new_tokens)?;
    Search::new(prompt, spec, readable, strategy)
}

/// A request for a response by the method, checked.
///
/// # Errors
/// Options out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary, a model that is missing.
pub fn intervention(
    backend: &ModelPair,
    prompt: &[u32],
    options: &Options,
    uniforms: Uniforms,
) -> Result<Intervention> {
    options.check()?;
    let vocab = (backend.config(Role::Policy)?.vocab_size, backend.config(Role::Reward)?.vocab_size);
    check_prompt(backend, prompt, options.max_new_tokens)?;
    Ok(Intervention::new(prompt, options, uniforms, vocab))
}

/// Checks that a prompt and up to `max_new_tokens` more can be run.
///
/// # Errors
/// An empty prompt, one beyond the context, an id beyond a vocabulary.
pub fn check_prompt(backend: &ModelPair, prompt: &[u32], max_new_tokens: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty"));
    }
    for role in [Role::Policy, Role::Reward].into_iter().filter(|&role| backend.has(role)) {
        let vocab = backend.config(role)?.vocab_size;
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
        let message =
            format!("the prompt has {len} tokens, and the longest sequence is {limit}; an answer does not fit");
        return Err(Error::TooLong { limit_of: Limit::Context, found: len, limit, message });
    }
    if max_new_tokens > limit - len {
        let message = format!(
            "the prompt's {len} tokens and max_new_tokens {max_new_tokens} exceed the longest sequence of {limit}; \
             lower max_new_tokens to {} or less",
            limit - len
        );
        return Err(Error::TooLong {
            limit_of: Limit::Context,
            found: len.saturating_add(max_new_tokens),
            limit,
            message,
        });
    }
    Ok(())
}
