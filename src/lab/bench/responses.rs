//! Whole answers: the method against plain greedy decoding and Best-of-N of the same engine, prompt and budget.

use super::Before;
use super::drive::drive;
use super::report::{AnswerNumbers, Row, hash_of};
use crate::answer::{Completions, Response};
use crate::engine::{Drafting, Settings, SpeculationWidth, intervention, sampler};
use crate::method::Options;
use crate::model::{ModelPair, PolicySpan, Role, Span, TopK};
use crate::presets::{Given, Preset};
use crate::rng::Uniforms;
use crate::sampling::{CompletionSpec, Sampling};
use crate::task::Request;
use crate::{Error, Result};

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
    pub widths: Vec<SpeculationWidth>,
    /// Whether tokens are guessed, for each measurement.
    pub drafts: Vec<Drafting>,
    /// Samples of Best-of-N; 0: none.
    pub best_of: usize,
    /// The prompt's ids, in place of some that mean nothing.
    pub ids: Option<Vec<u32>>,
    /// A threshold in nats, in place of one that is set to what the model does.
    pub threshold: Option<f64>,
    /// Timed runs of each; the median counts.
    pub runs: usize,
    /// Runs before them.
    pub warmup: usize,
}

/// Times answers; `done` is told of each as it comes, the greedy one first.
///
/// # Errors
/// The backend fails, the answer does not fit it, or one depends on the speculation.
pub fn responses(
    backend: &mut ModelPair,
    asked: &Asked,
    before: Before<'_>,
    done: &mut dyn FnMut(&Row),
) -> Result<Vec<Row>> {
    let vocab = backend.config(Role::Policy)?.vocab_size.min(backend.config(Role::Reward)?.vocab_size);
    let prompt: Vec<u32> = match &asked.ids {
        Some(ids) => ids.clone(),
        None => (0..asked.prompt).map(|i| (i * 7919 % vocab) as u32).collect(),
    };
    // No id ends an answer: all have the length that was asked for.
    let given = Given {
        max_new_tokens: Some(asked.tokens),
        entropy_threshold: Some(match asked.threshold {
            Some(threshold) => threshold,
            None => calibrated(backend, &prompt, asked)?,
        }),
        num_refinement_steps: Some(asked.candidates),
        ..Given::default()
    };
    let options = given.over(Preset::DIALOGUE)?.over(Options::new(u32::MAX, vec![u32::MAX]));
    let greedy = Options { max_candidates: 1, entropy_threshold: f64::MAX, ..options.clone() };
    let off = Settings::single(SpeculationWidth::Off);
    let mut ways = vec![(AnswerMethod::Guided(greedy.clone()), "greedy", String::new(), off.clone())];
    for &drafting in &asked.drafts {
        let case = |case: String| match drafting {
            Drafting::Off => case,
            Drafting::Ngram if case.is_empty() => "draft ngram".to_string(),
            Drafting::Ngram => case + ", draft ngram",
            Drafting::Model if case.is_empty() => "draft model".to_string(),
            Drafting::Model => case + ", draft model",
        };
        if drafting != Drafting::Off {
            let settings = Settings { drafting, ..off.clone() };
            ways.push((AnswerMethod::Guided(greedy.clone()), "greedy", case(String::new()), settings));
        }
        for &width in &asked.widths {
            let settings = Settings { drafting, ..Settings::single(width) };
            ways.push((
                AnswerMethod::Guided(options.clone()),
                "ggro",
                case(format!("speculation {}", name(width))),
                settings,
            ));
        }
    }
    if asked.best_of > 0 {
        ways.push((AnswerMethod::Best(asked.best_of), "best of", asked.best_of.to_string(), off));
    }
    let mut all: Vec<Row> = Vec::new();
    for (way, phase, case, settings) in ways {
        let (mut taken, mut last) = (Vec::new(), None);
        for run in 0..asked.warmup + asked.runs.max(1) {
            let request: Box<dyn Request<Output = Result<(Vec<u32>, AnswerNumbers)>>> = match &way {
                AnswerMethod::Guided(options) => {
                    let behind = prompt.len();
                    let request = intervention(backend, &prompt, options, Uniforms::Seeded(0))?;
                    Box::new(request.map(move |response| Ok(guided_answer(response, behind))))
                }
                AnswerMethod::Best(n) => {
                    Box::new(sampler(backend, &prompt, best_of(*n, asked.tokens))?.map(best_answer))
                }
            };
            if run >= asked.warmup {
                before(run - asked.warmup)?;
            }
            let driven = drive(backend, &settings, vec![request])?;
            if run >= asked.warmup {
                taken.push(driven.taken);
            }
            last = Some(driven);
        }
        let Some(mut driven) = last else { continue };
        let (ids, mut answer) = driven.finished.remove(0)?;
        let row = Row::timed(phase, case, &taken);
        // Greedy answers may be cut short by nothing here, so all have one length; if not, a token is what is compared.
        let base = all.first().map_or(row.seconds, |greedy| greedy.seconds);
        answer.over_greedy = row.seconds / base;
        let row = Row {
            committed_tokens_per_second: Some(ids.len() as f64 / row.seconds),
            phases: Some(driven.phases),
            answer: Some(answer),
            ids: Some(hash_of(&ids)),
            ..row
        };
        done(&row);
        all.push(row);
    }
    Ok(all)
}

/// A way of answering.
enum AnswerMethod {
    Guided(Options),
    Best(usize),
}

/// Samples of which the reward model takes the best.
fn best_of(n: usize, tokens: usize) -> CompletionSpec {
    CompletionSpec {
        sampling: Sampling { temperature: 1.0, ..Sampling::default() },
        n,
        score: true,
        max_new_tokens: tokens,
        ..CompletionSpec::default()
    }
}

/// The ids of an answer, and its numbers.
fn best_answer(completions: Completions) -> Result<(Vec<u32>, AnswerNumbers)> {
    let visited = completions.all.len();
    let best = completions.all.into_iter().nth(completions.best);
    let best = best.ok_or_else(|| Error::Backend("no completion".to_string()))?;
    let reward = best.reward.unwrap_or(f32::NAN);
    Ok((best.ids, AnswerNumbers { visited, reward, ..AnswerNumbers::default() }))
}

/// The ids of an answer behind a prompt of this length, and its numbers.
fn guided_answer(response: Response, prompt: usize) -> (Vec<u32>, AnswerNumbers) {
    let answer = AnswerNumbers {
        over_greedy: 1.0,
        segments: response.segments.len(),
        nudges: response.num_nudges,
        visited: response.segments.iter().map(|segment| segment.candidates.len()).sum(),
        reward: response.final_reward,
    };
    (response.final_ids[prompt..].to_vec(), answer)
}

fn name(width: SpeculationWidth) -> String {
    match width {
        SpeculationWidth::Off => "off".to_string(),
        SpeculationWidth::Fixed(width) => width.to_string(),
        SpeculationWidth::Auto => "auto".to_string(),
    }
}

/// The entropy that one in `segment` tokens of a greedy answer reaches.
fn calibrated(backend: &mut ModelPair, prompt: &[u32], asked: &Asked) -> Result<f64> {
    let seq = backend.create(Role::Policy)?;
    let mut entropies = Vec::new();
    let result = (|| {
        let mut ids = prompt.to_vec();
        let mut start = 0;
        for _ in 0..asked.tokens.clamp(asked.segment, 256) {
            let span = Span { seq, start, ids: &ids };
            let row = backend.policy_step(&[PolicySpan { span, floor: 1e-9, top_k: TopK::Skip, before: &[] }])?;
            start += ids.len();
            let Some(row) = row.first() else { break };
            entropies.push(row.stats.entropy_floored);
            ids = vec![row.stats.argmax];
        }
        Ok::<(), Error>(())
    })();
    backend.release(seq);
    result?;
    entropies.sort_by(f64::total_cmp);
    let rank = entropies.len() - (entropies.len() / asked.segment.max(1)).clamp(1, entropies.len());
    Ok(entropies.get(rank).copied().unwrap_or(f64::MAX))
}
