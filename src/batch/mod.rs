//! Answering many prompts from a file into another file, resumably, as the official code's runner does: one row per prompt.
//!
//! [`input`] reads prompts, [`texts`] what is to be scored, [`tasks`] knows the official code's datasets, and [`output`] keeps
//! the file of rows, which survives the end of the process at any moment. [`run`] answers the prompts that have no row yet.

pub mod compare;
pub mod guard;
pub mod input;
pub mod output;
mod parquet;
pub mod record;
pub mod report;
pub mod tasks;
pub mod texts;
pub mod wording;

use crate::answer::{Completion, Completions, FinishReason, SearchCounts, Segment, StopReason};
use crate::baselines::Baseline;
use crate::engine::{DraftStats, Engine, Progress, Update, decode_retokenized, intervention};
use crate::files::chat::is_space;
use crate::files::tokenizer::Tokenizer;
use crate::method::Options;
use crate::model::Work;
use crate::rng::Uniforms;
use crate::sampling::{CompletionSpec, Sampling};
use crate::scoring::RewardQuery;
use crate::text::{Prompt, RespelledText, TextRules, text_of};
use crate::trace::finish_reason_name;
use crate::{Error, Result};
use output::{MadeOn, Record, Row, RowCandidate, RowSegment, Rows};
use record::PromptRecord;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tasks::Task;

/// One prompt, ready to be decoded.
#[derive(Clone, Debug)]
pub struct Job {
    /// Number of the prompt in its file.
    pub index: usize,
    /// Its line of the input.
    pub record: PromptRecord,
    /// The prompt.
    pub prompt: Prompt,
    /// Parameters.
    pub options: Options,
    /// Seed of the uniform numbers.
    pub seed: u64,
    /// By which method.
    pub answering: Answering,
    /// Whether the text is tokenised again between segments, as the official code does.
    pub retokenize: bool,
}

/// How a prompt is answered.
#[derive(Clone, Debug)]
pub enum Answering {
    /// By the method, or greedily with one candidate a segment.
    Guided,
    /// By samples: one, or the best of several. Their seed is the job's.
    Sampled {
        /// How tokens are chosen.
        sampling: Sampling,
        /// Samples.
        n: usize,
        /// Whether there is a reward model to score them. Without one, greedy decoding is a sample at temperature 0.
        scored: bool,
    },
    /// By a method that GGRO is compared with. The seed of its samples is the job's.
    Searched {
        /// How tokens are chosen.
        sampling: Sampling,
        /// The method with its parameters.
        method: Baseline,
    },
}

/// What is the same for all prompts of a run, besides their options.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Prompts that are answered at the same time, at most.
    pub concurrency: usize,
    /// On what.
    pub made_on: MadeOn,
}

/// Answers all jobs that have no row yet and adds a row for each. `done` is called with each row.
///
/// # Errors
/// As [`each`].
pub fn run(
    engine: &Engine,
    tokenizer: &Arc<Tokenizer>,
    task: Option<&Task>,
    jobs: &[Job],
    setting: &Setting,
    rows: &mut Rows,
    done: &(dyn Fn(&Row) + Sync),
) -> Result<()> {
    let jobs: Vec<&Job> = jobs.iter().filter(|job| !rows.has(job.index)).collect();
    let Setting { concurrency, made_on: MadeOn { device, kernels } } = setting;
    let make = |job: &&Job| {
        let (device, kernels) = (Some(device.clone()), kernels.clone());
        Ok(Row { concurrency: Some(*concurrency), device, kernels, ..answer(engine, tokenizer, task, job)? })
    };
    each(&jobs, *concurrency, rows, &make, done)
}

/// Makes a record of each thing, `concurrency` at a time, and adds it to the file. `done` is called with each record.
///
/// # Errors
/// The first error of `make`, or of a record that cannot be written, once the things in flight have ended. All records made so
/// far are in the file.
pub fn each<T: Sync, R: Record>(
    things: &[T],
    concurrency: usize,
    rows: &mut Rows,
    make: &(dyn Fn(&T) -> Result<R> + Sync),
    done: &(dyn Fn(&R) + Sync),
) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let shared = Mutex::new((rows, None::<Error>));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let made = make(thing);
            // A thread that panicked left nothing half-done: a record is added in one call.
            let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match made.and_then(|record| shared.0.add(&record).map(|()| record)) {
                Ok(record) => done(&record),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    shared.1.get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..concurrency.min(things.len()) {
            scope.spawn(work);
        }
    });
    let (_, error) = shared.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    error.map_or(Ok(()), Err)
}

/// Answers a job.
///
/// # Errors
/// The job cannot be answered, or the engine fails.
pub fn answer(engine: &Engine, tokenizer: &Arc<Tokenizer>, task: Option<&Task>, job: &Job) -> Result<Row> {
    let started = Instant::now();
    let answered = match &job.answering {
        Answering::Guided => respond(engine, tokenizer, job),
        Answering::Sampled { .. } | Answering::Searched { .. } => completed(engine, tokenizer, job),
    };
    let answered = answered.map_err(|error| error.within(&format!("prompt {}", job.index)))?;
    row(tokenizer, task, job, answered, started.elapsed().as_secs_f64())
}

/// What a row says of an answer.
struct Answered {
    /// Prompt and answer.
    ids: Vec<u32>,
    prompt_len: usize,
    /// The answer's text, if it was tokenised again.
    respelled: Option<String>,
    reward: Option<f32>,
    num_nudges: usize,
    segment_boundaries: Vec<usize>,
    reason: FinishReason,
    work: Work,
    drafts: DraftStats,
    segments: Vec<RowSegment>,
    search: Option<SearchCounts>,
}

/// The method's answer.
fn respond(engine: &Engine, tokenizer: &Arc<Tokenizer>, job: &Job) -> Result<Answered> {
    let drafts = Cell::new(DraftStats::default());
    let decode = |ids: &[u32], options: &Options| {
        let (ids, options, seed) = (ids.to_vec(), options.clone(), job.seed);
        let ticket = engine.submit(move |backend| intervention(backend, &ids, &options, Uniforms::Seeded(seed)))?;
        let (response, stats) = ticket.wait()?;
        let mut sum = drafts.get();
        sum += stats.drafts;
        drafts.set(sum);
        Ok(response)
    };
    let response = match job.retokenize {
        false => decode(&job.prompt.ids, &job.options)?,
        true => {
            let mut text = RespelledText::new(tokenizer, &job.prompt, job.options.finish_id)?;
            let mut score = |ids: &[u32]| {
                let query = RewardQuery { ids: ids.to_vec(), ..RewardQuery::default() };
                Ok(engine.score(query, job.options.reward_pad_id)?.wait()?.0.reward)
            };
            decode_retokenized(&job.prompt.ids, &job.options, &mut text, &mut { decode }, &mut score)?
        }
    };
    Ok(Answered {
        prompt_len: response.prompt_len,
        segments: response.segments.iter().map(|one| segment(tokenizer, one)).collect::<Result<_>>()?,
        ids: response.final_ids,
        respelled: response.respelled,
        reward: Some(response.final_reward),
        num_nudges: response.num_nudges,
        segment_boundaries: response.segment_boundaries,
        reason: response.finish_reason,
        work: response.work,
        drafts: drafts.get(),
        search: None,
    })
}

/// The answer of a method that is not made of segments with slots, as one segment whose candidates are the finished answers.
fn completed(engine: &Engine, tokenizer: &Tokenizer, job: &Job) -> Result<Answered> {
    let options = &job.options;
    let spec = |sampling: &Sampling, n: usize, score: bool| CompletionSpec {
        sampling: Sampling { seed: job.seed, ..sampling.clone() },
        n,
        score,
        max_new_tokens: options.max_new_tokens,
        stop_ids: options.stop_ids.clone(),
        stream_tokens: true,
        ..CompletionSpec::default()
    };
    let ticket = match &job.answering {
        Answering::Searched { sampling, method } => engine.search(&job.prompt.ids, spec(sampling, 1, true), method)?,
        Answering::Sampled { sampling, n, scored } => engine.sample(&job.prompt.ids, spec(sampling, *n, *scored))?,
        Answering::Guided => engine.sample(&job.prompt.ids, spec(&Sampling::default(), 1, false))?,
    };
    // The entropies of every completion; a search reports the tokens of its answer, as the first.
    let mut entropies: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for update in ticket {
        match update {
            Update::Progress(Progress::Token(number, token)) => {
                entropies.entry(number).or_default().push(token.entropy)
            }
            Update::Ended(result, stats) => {
                let mut answered = chosen(tokenizer, job, result?, entropies)?;
                answered.drafts = stats.drafts;
                // It was chosen by the reward at its last id. The row has that of what is left of it, as GGRO's have.
                let pooled_before = answered.ids.last() == options.reward_pad_id.as_ref();
                if answered.reward.is_some() && (pooled_before || answered.reason == FinishReason::Stalled) {
                    let query = RewardQuery { ids: answered.ids.clone(), ..RewardQuery::default() };
                    answered.reward = Some(engine.score(query, options.reward_pad_id)?.wait()?.0.reward);
                }
                return Ok(answered);
            }
            _ => {}
        }
    }
    Err(Error::EngineStopped)
}

/// What a row says of the best of some completions.
fn chosen(
    tokenizer: &Tokenizer,
    job: &Job,
    mut completions: Completions,
    mut entropies: BTreeMap<usize, Vec<f64>>,
) -> Result<Answered> {
    let (options, best) = (&job.options, completions.best);
    let reported = if completions.search.is_some() { 0 } else { best };
    let foreign =
        |one: &Completion| one.reason == StopReason::Stop && one.ids.last().is_some_and(|&id| id != options.finish_id);
    let mut stalled = false;
    for (number, completion) in completions.all.iter_mut().enumerate() {
        // A stop id other than the end of turn is no part of an answer, unless it fills the budget.
        if foreign(completion) && completion.ids.len() < options.max_new_tokens {
            completion.ids.pop();
            stalled |= number == best;
        }
    }
    let Some(completion) = completions.all.get(best) else {
        return Err(Error::Backend("completions without the best one".to_string()));
    };
    let new = completion.ids.as_slice();
    let finished = !stalled && new.last() == Some(&options.finish_id);
    let reason = match (finished, stalled) {
        (true, _) => FinishReason::Finish,
        (_, true) => FinishReason::Stalled,
        _ => FinishReason::Length,
    };
    let ids = [&job.prompt.ids[..], new].concat();
    let entropies = entropies.remove(&reported).unwrap_or_default();
    let candidate =
        |one: &Completion| Ok(RowCandidate { reward: one.reward, text: tokenizer.decode(&one.ids)?, forced: false });
    Ok(Answered {
        prompt_len: job.prompt.ids.len(),
        respelled: None,
        reward: completion.reward,
        num_nudges: 0,
        segment_boundaries: vec![ids.len() - usize::from(finished)],
        reason,
        work: completions.work,
        drafts: DraftStats::default(),
        segments: vec![RowSegment {
            tokens: spelled(tokenizer, new),
            entropies: (0..new.len()).map(|at| entropies.get(at).copied().map(rounded)).collect(),
            nudged: None,
            best,
            candidates: completions.all.iter().map(candidate).collect::<Result<_>>()?,
        }],
        search: completions.search,
        ids,
    })
}

/// The row of an answer.
fn row(tokenizer: &Arc<Tokenizer>, task: Option<&Task>, job: &Job, answered: Answered, elapsed: f64) -> Result<Row> {
    let (full_text, prompt_len) = (tokenizer.decode(&answered.ids)?, answered.prompt_len);
    // As the official code's, an answer has no header, but the beginning that was given.
    let (rules, new) = (TextRules::ending_at(job.options.finish_id), &answered.ids[prompt_len..]);
    let text = match answered.respelled {
        Some(text) => text,
        None => job.prompt.prefill.clone() + &text_of(tokenizer, &rules, &[], &job.prompt.header, new)?,
    };
    // The official code's tasks take the white space around an answer away.
    let text = if task.is_some() { text.trim_matches(is_space).to_string() } else { text };
    let round_trip_stable = tokenizer.round_trips(&answered.ids)?;
    let prediction = task.and_then(|task| task.prediction(&text));
    let correct =
        task.filter(|task| task.dataset.has_answers()).map(|_| prediction.is_some() && prediction == job.record.answer);
    Ok(Row {
        index: job.index,
        prompt: job.record.text.clone(),
        answer: job.record.answer.clone(),
        metadata: job.record.metadata.clone(),
        full_text,
        response: text,
        reward: answered.reward,
        num_nudges: answered.num_nudges,
        elapsed_seconds: (elapsed * 1e6).round() / 1e6,
        prediction,
        correct,
        finish_reason: Some(finish_reason_name(answered.reason).to_string()),
        prompt_tokens: Some(prompt_len),
        new_tokens: Some(new.len()),
        segment_boundaries: answered.segment_boundaries,
        work: Some(answered.work),
        drafts: Some(answered.drafts).filter(|drafts| drafts.drafted() > 0),
        search: answered.search,
        segments: Some(answered.segments),
        round_trip_stable: Some(round_trip_stable),
        concurrency: None,
        device: None,
        kernels: None,
        skipped: None,
    })
}

/// Ids as the vocabulary spells them.
fn spelled(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default()).collect()
}

fn rounded(entropy: f64) -> f64 {
    (entropy * 1e4).round() / 1e4
}

fn segment(tokenizer: &Tokenizer, segment: &Segment) -> Result<RowSegment> {
    let tried = segment.candidates.iter().map(|candidate| {
        let text = tokenizer.decode(&candidate.ids)?;
        Ok(RowCandidate { reward: Some(candidate.reward), text, forced: candidate.forced.is_some() })
    });
    let tried = tried.collect::<Result<Vec<_>>>()?;
    let Some(best) = segment.candidates.get(segment.best) else {
        return Err(Error::Backend("a segment without its best candidate".to_string()));
    };
    // Every decoding step has its entropy, the one at the slot too, whatever token was forced there. Ids that a candidate shares
    // with the unforced one were not decoded again.
    let given = best.ids.len().saturating_sub(best.entropies.len());
    let entropies =
        (0..best.ids.len()).map(|at| at.checked_sub(given).and_then(|at| best.entropies.get(at)).copied().map(rounded));
    Ok(RowSegment {
        tokens: spelled(tokenizer, &best.ids),
        entropies: entropies.collect(),
        nudged: best.forced.and(segment.slot.checked_sub(segment.start)),
        best: segment.best,
        candidates: tried,
    })
}
