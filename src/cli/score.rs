//! `ggro score`.

use super::models::{DeviceArgs, PairArgs, TemplateArgs, counting};
use super::output::{Output, Paths};
use super::say;
use super::words::{counted, for_stdout};
use crate::answer::RewardReport;
use crate::batch::texts::{TextContent, TextRecord, parse};
use crate::engine::{Engine, Settings, Ticket};
use crate::files::checkpoint::read_whole_text;
use crate::files::pair::Pair;
use crate::scoring::{MOST_POSITIONS, RewardQuery};
use crate::{Error, Result};
use clap::builder::RangedU64ValueParser;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::Value;
use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

/// Print the rewards of given texts, and their gradients
///
/// Texts are arguments, or lines of --input: a JSON string, an array of chat messages, or an object with `text`, `messages`,
/// `prompt` and `response`, or `ids`, and optionally `metadata`. Strings are scored as they are, behind the tokenizer's
/// beginning-of-sequence token if it has one; messages are laid out by the
/// chat template of --policy if it is given, else of the reward model, without a generation prompt.
///
/// A line of the output is the reward and the beginning of the text, or with --json an object with index, reward, tokens,
/// pooled_at (the position where the reward is read) and metadata.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Texts to score, as they are
    #[arg(value_name = "TEXT", conflicts_with = "input")]
    texts: Vec<String>,

    /// Texts to score, one JSON value per line; - is standard input
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Write JSON lines to FILE instead of standard output, once all texts are scored
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Print one JSON object per text instead of the reward and the text
    #[arg(long)]
    json: bool,

    /// Add prefix_rewards: the reward of every prefix, from one token to the pooled one; implies --json
    #[arg(long)]
    prefix_rewards: bool,

    /// Add gradient_norms: per token the norm of the reward's gradient with respect to its embedding; implies --json
    #[arg(long)]
    gradients: bool,

    /// Add gradient_rows: the gradient itself, an array of numbers per token; implies --json
    #[arg(long)]
    gradient_rows: bool,

    /// Add candidates: first-order scores of IDs at a position, the products of the gradient there with their embeddings
    ///
    /// Positions count from 0. May be given several times; implies --json.
    #[arg(long, value_name = "POSITION:ID,...")]
    candidates: Vec<Candidates>,

    /// Most texts to score at the same time
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    max_concurrency: usize,

    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Ids that could stand at a position.
#[derive(Clone, Debug)]
struct Candidates {
    position: usize,
    ids: Vec<u32>,
}

impl FromStr for Candidates {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(position, ids)| {
            let ids: std::result::Result<Vec<u32>, _> = ids.split(',').map(str::parse).collect();
            Some(Candidates { position: position.parse().ok()?, ids: ids.ok()? })
        });
        parsed.ok_or_else(|| "expected POSITION:ID,..., e.g. 4:17,29".to_string())
    }
}

/// A text that is ready to be scored.
struct Job {
    record: TextRecord,
    ids: Vec<u32>,
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    reward: f32,
    tokens: usize,
    pooled_at: usize,
    metadata: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix_rewards: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_norms: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_rows: Option<Vec<&'a [f32]>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<Scores<'a>>,
}

/// First-order scores at a position.
#[derive(Serialize)]
struct Scores<'a> {
    position: usize,
    token_ids: &'a [u32],
    scores: &'a [f32],
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.texts.is_empty() && args.input.is_none() {
        return Err(Error::invalid("no TEXT: give texts as arguments, or JSON lines with --input FILE").into());
    }
    if args.candidates.len() > MOST_POSITIONS {
        let found = args.candidates.len();
        return Err(Error::invalid(format!("--candidates: expected at most {MOST_POSITIONS}, found {found}")).into());
    }
    args.pair.needs_reward("a reward")?;
    let paths = Paths::default().reading(&args.input).reading(args.pair.paths()).reading(&args.template.chat_template);
    let paths = paths.writing("--output", args.output.as_deref());
    paths.writing("--trace-events", args.device.profile.trace_events.as_deref()).check()?;
    let output = args.output.as_deref().map(Output::check).transpose()?;
    let records = records(args)?;
    let mut pair = args.pair.load_reward()?;
    args.template.set_up(&mut pair)?;
    let jobs = jobs(args, &pair, records)?;
    let (mut device, max_len) = (args.device.find()?, args.pair.max_model_len);
    let settings = Settings { max_requests: args.max_concurrency, ..Settings::default() };
    let (flags, for_engine) = (args.device.clone(), pair.clone());
    let engine = Engine::start(settings, move || Ok(flags.open(&mut device, &for_engine, max_len)?.into_backend()))?;
    let started = Instant::now();
    let bar = match args.input {
        Some(_) => counting(jobs.len(), 0, "text").bar,
        None => ProgressBar::hidden(),
    };
    let mut content = Vec::new();
    let scored = score_all(args, &engine, &pair, &jobs, &bar, &mut |line| match &output {
        Some(_) => writeln!(content, "{line}"),
        None => bar.suspend(|| writeln!(std::io::stdout(), "{}", for_stdout(line))),
    });
    bar.finish_and_clear();
    let sum = scored?;
    if let Some(output) = output {
        output.write(&content)?;
    }
    if args.input.is_some() {
        let tokens: usize = jobs.iter().map(|job| job.ids.len()).sum();
        let (count, seconds) = (jobs.len(), started.elapsed().as_secs_f64());
        let (texts, tokens, mean) = (counted(count, "text"), counted(tokens, "token"), sum / count as f64);
        say(&format!("{texts} of {tokens} in {seconds:.1} s; mean reward {mean:.3}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The texts that are given.
fn records(args: &Args) -> Result<Vec<TextRecord>> {
    let Some(path) = &args.input else {
        let record = |(index, text): (usize, &String)| TextRecord {
            place: format!("text {index}"),
            content: TextContent::Text(text.clone()),
            metadata: Value::Null,
        };
        return Ok(args.texts.iter().enumerate().map(record).collect());
    };
    let text = match path.as_os_str() == "-" {
        true => read_whole_text(name_of(path), std::io::stdin())?,
        false => read_whole_text(path, std::fs::File::open(path).map_err(|e| Error::io(path, e))?)?,
    };
    parse(&text).map_err(|message| Error::file(name_of(path), message))
}

fn name_of(path: &Path) -> &Path {
    if path.as_os_str() == "-" { Path::new("standard input") } else { path }
}

/// Names the text that an error is about.
fn of_text(args: &Args, record: &TextRecord, error: &dyn std::fmt::Display) -> Error {
    match &args.input {
        Some(path) => Error::file(name_of(path), format!("{}: {error}", record.place)),
        None => Error::invalid(format!("{}: {error}", record.place)),
    }
}

/// Encodes all texts, so that a faulty one is found before the first is scored.
fn jobs(args: &Args, pair: &Pair, records: Vec<TextRecord>) -> Result<Vec<Job>> {
    let (context, vocabulary) = (args.pair.context(pair), pair.reward()?.config.vocab_size);
    let job = |record: TextRecord| {
        let ids = record.ids(pair).map_err(|error| of_text(args, &record, &error))?;
        match fault(args, &ids, context, vocabulary) {
            Some(fault) => Err(of_text(args, &record, &fault)),
            None => Ok(Job { record, ids }),
        }
    };
    records.into_iter().map(job).collect()
}

/// What is wrong with a text, if anything.
fn fault(args: &Args, ids: &[u32], context: usize, vocabulary: usize) -> Option<String> {
    let (len, unknown) = (ids.len(), |ids: &[u32]| ids.iter().copied().find(|&id| id as usize >= vocabulary));
    if ids.is_empty() {
        return Some("expected a text, found an empty one".to_string());
    }
    if len > context {
        return Some(format!(
            "expected at most {context} tokens (the model's context, or --max-model-len), found {len}"
        ));
    }
    if let Some(id) = unknown(ids) {
        return Some(format!("expected ids below {vocabulary}, the reward model's vocabulary, found {id}"));
    }
    args.candidates.iter().find_map(|Candidates { position, ids }| match unknown(ids) {
        Some(id) => Some(format!("--candidates: expected ids below {vocabulary}, found {id}")),
        None => (*position >= len)
            .then(|| format!("--candidates: expected a position below its {len} tokens, found {position}")),
    })
}

/// Scores all texts, many at a time, and writes a line for each in their order. Returns the sum of the rewards.
fn score_all(
    args: &Args,
    engine: &Engine,
    pair: &Pair,
    jobs: &[Job],
    bar: &ProgressBar,
    write: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> anyhow::Result<f64> {
    let wants_gradient = args.gradients || args.gradient_rows;
    let json =
        args.json || args.output.is_some() || args.prefix_rewards || wants_gradient || !args.candidates.is_empty();
    let hidden = pair.reward()?.config.hidden_size;
    let mut waiting = jobs.iter();
    let mut running: VecDeque<Ticket<RewardReport>> = VecDeque::new();
    let mut sum = 0.0;
    for (index, job) in jobs.iter().enumerate() {
        let free = args.max_concurrency - running.len();
        for next in waiting.by_ref().take(free) {
            let query = RewardQuery {
                ids: next.ids.clone(),
                every: args.prefix_rewards,
                gradient_from: wants_gradient.then_some(0),
                scores: args.candidates.iter().map(|asked| (asked.position, asked.ids.clone())).collect(),
            };
            running.push_back(engine.score(query, pair.reward_pad_id())?);
        }
        let Some(ticket) = running.pop_front() else { break };
        let (report, _) = ticket.wait().map_err(|error| error.within(&job.record.place))?;
        sum += f64::from(report.reward);
        let line = match json {
            true => serde_json::to_string(&line(args, index, job, &report, hidden))?,
            false => format!("{:.4}\t{}", report.reward, shortened(&job.record.words(pair)?)),
        };
        write(&line)?;
        bar.inc(1);
    }
    Ok(sum)
}

fn line<'a>(args: &'a Args, index: usize, job: &'a Job, report: &'a RewardReport, hidden: usize) -> Line<'a> {
    let rows = || report.gradient.chunks_exact(hidden);
    let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let candidates = args.candidates.iter().zip(&report.scores);
    Line {
        index,
        reward: report.reward,
        tokens: job.ids.len(),
        pooled_at: report.pooled_at,
        metadata: &job.record.metadata,
        prefix_rewards: args.prefix_rewards.then_some(&report.every[..]),
        gradient_norms: args.gradients.then(|| rows().map(norm).collect()),
        gradient_rows: args.gradient_rows.then(|| rows().collect()),
        candidates: candidates
            .map(|(asked, scores)| Scores { position: asked.position, token_ids: &asked.ids, scores })
            .collect(),
    }
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 72;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &words[..end]),
        None => words,
    }
}
