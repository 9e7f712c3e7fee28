//! Many requests at once: greedy answers of a fixed length through the scheduler, over batch sizes and lengths of prompts.

use super::cost::{self, Cost, Roofline};
use super::drive::drive;
use super::report::{Row, hash_of};
use crate::Result;
use crate::answer::Completions;
use crate::engine::{Settings, sampler};
use crate::model::{ModelPair, Role};
use crate::sampling::CompletionSpec;
use crate::task::Request;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Batches {
    /// Requests at the same time.
    pub batch: Vec<usize>,
    /// Tokens of their prompts.
    pub prompt: Vec<usize>,
    /// New tokens of each.
    pub tokens: usize,
    /// Timed runs; the median counts.
    pub runs: usize,
    /// Runs before them.
    pub warmup: usize,
}

/// Times batches of answers; `done` is told of each case as it comes.
///
/// # Errors
/// The backend fails, or a prompt and its answer do not fit.
pub fn throughput(
    backend: &mut ModelPair,
    asked: &Batches,
    limits: Option<Roofline>,
    done: &mut dyn FnMut(Row),
) -> Result<()> {
    for &prompt in &asked.prompt {
        for &batch in &asked.batch {
            done(case(backend, asked, prompt, batch)?.against(limits));
        }
    }
    Ok(())
}

fn case(backend: &mut ModelPair, asked: &Batches, prompt: usize, batch: usize) -> Result<Row> {
    let settings = Settings { cached_prompts: 0, max_requests: batch, ..Settings::default() };
    let vocab = backend.config(Role::Policy)?.vocab_size;
    let (mut taken, mut last) = (Vec::new(), None);
    for run in 0..asked.warmup + asked.runs.max(1) {
        let requests = (0..batch).map(|number| -> Result<Box<dyn Request<Output = Completions>>> {
            // Prompts of their own: nothing is shared.
            let ids: Vec<u32> = (0..prompt).map(|i| ((number * 104_729 + i * 7919) % vocab) as u32).collect();
            let spec = CompletionSpec { max_new_tokens: asked.tokens, ..CompletionSpec::default() };
            Ok(Box::new(sampler(backend, &ids, spec)?))
        });
        let requests = requests.collect::<Result<Vec<_>>>()?;
        let driven = drive(backend, &settings, requests)?;
        if run >= asked.warmup {
            taken.push(driven.taken);
        }
        last = Some(driven);
    }
    let mut ids = Vec::new();
    let mut phases = None;
    if let Some(driven) = last {
        phases = Some(driven.phases);
        for completions in driven.finished {
            ids.extend(completions.all.into_iter().flat_map(|one| one.ids));
        }
    }
    let config = backend.config(Role::Policy)?;
    let (once, step) = (cost::prefill(config, prompt), cost::decode(config, batch, prompt + asked.tokens / 2, 0));
    let steps = asked.tokens.saturating_sub(1) as f64;
    // Prompts may share one reading of the weights, so the least is one reading.
    let cost = Cost { bytes: once.bytes + steps * step.bytes, flops: batch as f64 * once.flops + steps * step.flops };
    let case = format!("{batch} requests, {prompt} and {} tokens", asked.tokens);
    let row = Row::timed("throughput", case, &taken).costing(cost, batch * (prompt + asked.tokens - 1));
    let committed = (batch * asked.tokens) as f64 / row.seconds;
    Ok(Row { rows: Some(batch), committed_tokens_per_second: Some(committed), phases, ids: Some(hash_of(&ids)), ..row })
}
