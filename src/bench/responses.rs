//! Whole answers: the method against plain greedy decoding.

use crate::Result;
use crate::engine::{Observer, Settings, Width, decode_with};
use crate::ggro::{Options, Uniforms};
use crate::model::{Backend, PolicySpan, Role, Span, TopK};
use std::time::Instant;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// New tokens of an answer.
    pub tokens: usize,
    /// Tokens between two uncertain ones, on average: the threshold is set to what the model does.
    pub segment: usize,
    /// Candidates of a segment, at most.
    pub candidates: usize,
    /// How many candidates are decoded at the same time, for each measurement.
    pub widths: Vec<Width>,
}

/// One measured way of answering.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Responses {
    /// `greedy`, or the speculation.
    pub method: String,
    /// Seconds of one answer.
    pub seconds: f64,
    /// New tokens.
    pub tokens: usize,
    /// Those a second.
    pub tokens_per_second: f64,
    /// Seconds over those of greedy decoding.
    pub over_greedy: f64,
    /// Segments and nudges of the answer.
    pub segments: usize,
    /// Those whose first token was nudged.
    pub nudges: usize,
    /// Candidates that the walk visited.
    pub visited: usize,
    /// Reward of the answer.
    pub reward: f32,
    /// Hash of the answer's ids, in hexadecimal: every speculation has the same.
    pub ids: String,
}

struct Silent;
impl Observer for Silent {}

/// Times answers; `done` is told of each as it comes, the greedy one first.
///
/// # Errors
/// The backend fails, or the answer does not fit it.
pub fn responses(backend: &mut dyn Backend, asked: &Asked, done: &mut dyn FnMut(&Responses)) -> Result<Vec<Responses>> {
    let vocab = backend.config(Role::Policy).vocab_size.min(backend.config(Role::Reward).vocab_size);
    let prompt: Vec<u32> = (0..asked.prompt).map(|i| (i * 7919 % vocab) as u32).collect();
    // No id ends an answer: all have the length that was asked for.
    let options = Options {
        max_new_tokens: asked.tokens,
        entropy_threshold: threshold(backend, &prompt, asked)?,
        max_candidates: asked.candidates,
        ..Options::new(u32::MAX, vec![u32::MAX])
    };
    let mut all: Vec<Responses> = Vec::new();
    let greedy = Options { max_candidates: 1, entropy_threshold: f64::MAX, ..options.clone() };
    let ways = std::iter::once(("greedy".to_string(), greedy, Width::Off))
        .chain(asked.widths.iter().map(|&width| (name(width), options.clone(), width)));
    for (method, options, width) in ways {
        let settings = Settings::alone(width);
        let mut run =
            |options: &Options| decode_with(backend, &settings, &prompt, options, Uniforms::Seeded(0), &mut Silent);
        // A short one first: graphs are recorded, buffers grow.
        run(&Options { max_new_tokens: asked.tokens.min(2 * asked.segment), ..options.clone() })?;
        let started = Instant::now();
        let (response, _) = run(&options)?;
        let seconds = started.elapsed().as_secs_f64();
        let new = &response.final_ids[response.prompt_len..];
        let base = all.first().map_or(seconds, |greedy| greedy.seconds / greedy.tokens as f64 * new.len() as f64);
        let hash = new
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &id| (hash ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3));
        let responses = Responses {
            method,
            seconds,
            tokens: new.len(),
            tokens_per_second: new.len() as f64 / seconds,
            over_greedy: seconds / base,
            segments: response.segments.len(),
            nudges: response.num_nudges,
            visited: response.segments.iter().map(|segment| segment.candidates.len()).sum(),
            reward: response.final_reward,
            ids: format!("{hash:016x}"),
        };
        done(&responses);
        all.push(responses);
    }
    Ok(all)
}

fn name(width: Width) -> String {
    match width {
        Width::Off => "ggro, off".to_string(),
        Width::Fixed(width) => format!("ggro, {width}"),
        Width::Auto => "ggro, auto".to_string(),
    }
}

/// The entropy that one in `segment` tokens of a greedy answer reaches.
fn threshold(backend: &mut dyn Backend, prompt: &[u32], asked: &Asked) -> Result<f64> {
    let seq = backend.create(Role::Policy)?;
    let mut entropies = Vec::new();
    let result = (|| {
        let mut ids = prompt.to_vec();
        let mut start = 0;
        for _ in 0..asked.tokens.clamp(asked.segment, 256) {
            let span = Span { seq, start, ids: &ids };
            let row = backend.policy_step(&[PolicySpan { span, floor: 1e-9, top_k: TopK::Skip }])?;
            start += ids.len();
            let Some(row) = row.first() else { break };
            entropies.push(row.stats.entropy_floored);
            ids = vec![row.stats.argmax];
        }
        Ok(())
    })();
    backend.release(seq);
    result?;
    entropies.sort_by(f64::total_cmp);
    let rank = entropies.len() - (entropies.len() / asked.segment.max(1)).clamp(1, entropies.len());
    Ok(entropies.get(rank).copied().unwrap_or(f64::MAX))
}
