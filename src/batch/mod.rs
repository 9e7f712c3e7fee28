//! Answering many prompts from a file into another file, resumably, as the official code's runner does: one row per prompt.
//!
//! [`input`] reads prompts, [`tasks`] knows the official code's datasets, and [`output`] keeps the file of rows, which survives the
//! end of the process at any moment. [`run`] answers the prompts that have no row yet.

pub mod guard;
pub mod input;
pub mod output;
mod parquet;
pub mod report;
pub mod tasks;

use crate::answer::Response;
use crate::engine::{Engine, intervention};
use crate::files::tokenizer::Tokenizer;
use crate::method::Options;
use crate::rng::Uniforms;
use crate::text::{Prompt, TextRules, text_of};
use crate::trace::finish_reason_name;
use crate::{Error, Result};
use input::PromptRecord;
use output::{Record, Row, RowCandidate, RowSegment, Rows};
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
}

/// Answers all jobs that have no row yet, `concurrency` at a time, and adds a row for each. `done` is called with each row.
///
/// # Errors
/// As [`each`].
pub fn run(
    engine: &Engine,
    tokenizer: &Arc<Tokenizer>,
    task: Option<Task>,
    jobs: &[Job],
    concurrency: usize,
    rows: &mut Rows,
    done: &(dyn Fn(&Row) + Sync),
) -> Result<()> {
    let jobs: Vec<&Job> = jobs.iter().filter(|job| !rows.has(job.index)).collect();
    each(&jobs, concurrency, rows, &|job: &&Job| answer(engine, tokenizer, task, job), done)
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

fn answer(engine: &Engine, tokenizer: &Arc<Tokenizer>, task: Option<Task>, job: &Job) -> Result<Row> {
    let started = Instant::now();
    let (ids, options, seed) = (job.prompt.ids.clone(), job.options.clone(), job.seed);
    let ticket = engine.submit(move |backend| intervention(backend, &ids, &options, Uniforms::Seeded(seed)))?;
    let (response, _) = ticket.wait().map_err(|error| error.within(&format!("prompt {}", job.index)))?;
    let elapsed = started.elapsed().as_secs_f64();
    row(tokenizer, task, job, &response, elapsed)
}

/// The row of a response.
fn row(tokenizer: &Arc<Tokenizer>, task: Option<Task>, job: &Job, response: &Response, elapsed: f64) -> Result<Row> {
    let full_text = tokenizer.decode(&response.final_ids)?;
    // The text begins with the header where the policy wrote one: files of rows have always had it.
    let (rules, new) = (TextRules::ending_at(job.options.finish_id), &response.final_ids[response.prompt_len..]);
    let text = job.prompt.prefill.clone() + &text_of(tokenizer, &rules, &[], &[], new)?;
    let prediction = task.and_then(|task| task.prediction(&text));
    let correct =
        task.filter(|task| task.has_answers()).map(|_| prediction.is_some() && prediction == job.record.answer);
    let segments = response.segments.iter().map(|segment| segments(tokenizer, segment)).collect::<Result<Vec<_>>>()?;
    Ok(Row {
        index: job.index,
        prompt: job.record.text.clone(),
        answer: job.record.answer.clone(),
        metadata: job.record.metadata.clone(),
        full_text,
        response: text,
        reward: response.final_reward,
        num_nudges: response.num_nudges,
        segment_boundaries: response.segment_boundaries.clone(),
        elapsed_seconds: (elapsed * 1e6).round() / 1e6,
        prediction,
        correct,
        finish_reason: finish_reason_name(response.finish_reason).to_string(),
        prompt_tokens: response.prompt_len,
        new_tokens: response.final_ids.len() - response.prompt_len,
        work: response.work,
        segments,
    })
}

fn segments(tokenizer: &Tokenizer, segment: &crate::answer::Segment) -> Result<RowSegment> {
    let tried = segment.candidates.iter().map(|candidate| {
        let text = tokenizer.decode(&candidate.ids)?;
        Ok(RowCandidate { reward: candidate.reward, text, forced: candidate.forced.is_some() })
    });
    let tried = tried.collect::<Result<Vec<_>>>()?;
    let Some(best) = segment.candidates.get(segment.best) else {
        return Err(Error::Backend("a segment without its best candidate".to_string()));
    };
    let tokens = best.ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default()).collect();
    // Every decoding step has its entropy, the one at the slot too, whatever token was forced there. Ids that a candidate shares
    // with the unforced one were not decoded again.
    let given = best.ids.len().saturating_sub(best.entropies.len());
    let entropies = (0..best.ids.len()).map(|at| {
        let entropy = at.checked_sub(given).and_then(|at| best.entropies.get(at)).copied();
        entropy.map(|entropy| (entropy * 1e4).round() / 1e4)
    });
    Ok(RowSegment {
        tokens,
        entropies: entropies.collect(),
        nudged: best.forced.and(segment.slot.checked_sub(segment.start)),
        best: segment.best,
        candidates: tried,
    })
}
