//! `ggro run`.

use super::args::{EngineArgs, Method, MethodArgs, layout, room};
use super::generate::check_retokenize;
use super::models::{DeviceArgs, PairArgs, TemplateArgs, bar, note_without_template};
use super::prompt::with_flags;
use super::say;
use crate::batch::input;
use crate::batch::output::{Row, Rows};
use crate::batch::record::PromptRecord;
use crate::batch::tasks::{Dataset, Task};
use crate::batch::wording::TaskFile;
use crate::batch::{Job, run as answer_all};
use crate::engine::Engine;
use crate::files::checkpoint::read_whole_text;
use crate::files::pair::Pair;
use crate::method::Options;
use crate::presets::Parameters;
use crate::runtime::Device;
use crate::text::{Next, Prompt, PromptLayout};
use crate::{Error, Result};
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// Answer many prompts from a file into a file, resumably
///
/// Every line of the input is a prompt: a JSON string, an array of chat messages, or an object with `prompt` or `messages` and
/// optionally `answer` and `metadata`. Every line of the output is one answer, with the official code's fields and the record
/// of how it was made. Interrupted runs resume: rerun the same command; prompts that have an answer are not answered again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Prompts, one JSON value per line
    ///
    /// Several files are read one after the other. For a task they are the splits of its dataset: the categories of HEx-PHI; the
    /// validation rows of MMLU-Pro, then its test rows.
    #[arg(long, value_name = "FILE", required = true)]
    input: Vec<PathBuf>,

    /// Where to write answers, one JSON object per line; FILE.config.json beside it has the options of the run
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// The input has a dataset's own rows, which are asked as the official code asks them: hex-phi, xstest, hh-rlhf, arc-challenge, mmlu-pro
    ///
    /// The official code's parameters, fields, filters, order, number of prompts and layout apply, and hex-phi begins every answer
    /// for the policy. Flags win over all of these. The wording of prompts is ggro's own: --task-file has another.
    /// arc-challenge and mmlu-pro have right answers, with which predictions are compared.
    #[arg(long, value_name = "TASK", hide_possible_values = true,
          value_parser = PossibleValuesParser::new(Dataset::ALL.map(Dataset::name)))]
    task: Option<String>,

    /// Wording of a task as data: a TOML file with the field, the wording and the reader of answers (docs/running.md)
    #[arg(long, value_name = "FILE")]
    task_file: Option<PathBuf>,

    /// Most prompts to answer at the same time
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    max_concurrency: usize,

    /// First prompt of the input to answer, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    start_index: usize,

    /// How many prompts to answer, or "all" [default: as many as the official code asks for the task, else all that follow]
    #[arg(long, value_name = "N", value_parser = prompt_count)]
    num_prompts: Option<usize>,

    /// Start of every answer (a prefill attack on the policy) [default: that of the task, if it has one]
    #[arg(long, value_name = "TEXT")]
    prefill_attack: Option<String>,

    /// A system message in front of prompts that have none
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// How prompts are laid out; see `ggro generate --help` [default: official for a task, else chat]
    #[arg(long, value_name = "LAYOUT", value_parser = layout())]
    prompt_layout: Option<PromptLayout>,

    /// Decode the text to words and tokenise it again between segments, as the official code does; for reproduction only
    #[arg(long)]
    retokenize: bool,

    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    method: MethodArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let method = args.method.method(&args.pair)?;
    if matches!(method, Method::Sample | Method::Bon) {
        let message = "--method: ggro run answers by ggro or greedy; sampled answers are for `ggro generate` so far";
        return Err(Error::invalid(message).into());
    }
    check_retokenize(args.retokenize, method, &args.method)?;
    let asked = Asked::new(args)?;
    let task = asked.task.as_ref();
    let records = input::read(&args.input, task)?;
    let mut template = args.template.clone();
    let recorded = template.pin(&args.output)?;
    let mut pair = args.pair.load()?;
    template.set_up(&mut pair)?;
    note_without_template(&pair);
    let mut device = args.device.find()?;
    let parameters = parameters(args, task, &pair)?;
    let jobs = jobs(args, &asked, method, &parameters, &pair, &records)?;
    let mut config = config(args, &asked, method, &parameters, &pair, &device)?;
    template.record(&pair, recorded, &mut config);
    let texts: Vec<String> = records.iter().map(|record| record.text.clone()).collect();
    let mut rows = Rows::open::<Row>(&args.output, &config, &texts)?;
    let there = jobs.iter().filter(|job| rows.has(job.index)).count();
    if there > 0 {
        say(&format!("{there} of {} prompts are answered already", jobs.len()));
    }
    if there < jobs.len() {
        let settings = args.engine.settings(args.max_concurrency);
        let (flags, for_engine, max_len) = (args.device.clone(), pair.clone(), args.pair.max_model_len);
        let engine =
            Engine::start(settings, move || Ok(flags.open(&mut device, &for_engine, max_len)?.into_backend()))?;
        let progress = BatchProgress::new(jobs.len(), there);
        let ran = answer_all(&engine, &pair.tokenizer, task, &jobs, args.max_concurrency, &mut rows, &|row| {
            progress.row(row);
        });
        progress.bar.finish_and_clear();
        ran?;
        say(&progress.summary());
    }
    rows.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// What is asked, with what a task brings.
struct Asked {
    task: Option<Task>,
    prefill: Option<String>,
    layout: PromptLayout,
    num_prompts: usize,
}

impl Asked {
    fn new(args: &Args) -> Result<Self> {
        let dataset = Dataset::ALL.into_iter().find(|dataset| args.task.as_deref() == Some(dataset.name()));
        let task = match &args.task_file {
            None => dataset.map(Task::new),
            Some(path) => {
                let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
                let text = read_whole_text(path, file)?;
                let file: TaskFile = basic_toml::from_str(&text)
                    .map_err(|e| Error::file(path, format!("expected a task file: {}", e.to_string().trim_end())))?;
                Some(Task::with(dataset, file).map_err(|message| Error::file(path, message))?)
            }
        };
        let of_task = task.as_ref().and_then(Task::prefill).map(str::to_string);
        let unlimited = task.as_ref().map_or(usize::MAX, |task| task.dataset.num_prompts());
        let layout = if task.is_some() { PromptLayout::Official } else { PromptLayout::Chat };
        Ok(Asked {
            prefill: args.prefill_attack.clone().or(of_task),
            layout: args.prompt_layout.unwrap_or(layout),
            num_prompts: args.num_prompts.unwrap_or(unlimited),
            task,
        })
    }
}

fn prompt_count(text: &str) -> std::result::Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        _ => text.parse().map_err(|_| "expected a number or \"all\"".to_string()),
    }
}

/// Lays out all prompts, so that a faulty one is found before the first is answered.
fn jobs(
    args: &Args,
    asked: &Asked,
    method: Method,
    parameters: &Parameters,
    pair: &Pair,
    records: &[PromptRecord],
) -> Result<Vec<Job>> {
    let count = asked.num_prompts;
    if args.start_index >= records.len() || count == 0 {
        return Err(Error::invalid(format!(
            "--start-index {} and --num-prompts {} leave none of the {} prompts",
            args.start_index,
            if count == usize::MAX { "all".to_string() } else { count.to_string() },
            records.len()
        )));
    }
    let context = args.pair.context(pair);
    let chosen = records.iter().enumerate().skip(args.start_index).take(count);
    let next = Next::Answer { layout: asked.layout, prefill: asked.prefill.as_deref().unwrap_or_default() };
    let jobs = chosen.map(|(index, record)| {
        let named = |error: Error| match &args.input[..] {
            [path] => Error::file(path, format!("prompt {index}: {error}")),
            _ => error.within(&format!("prompt {index}")),
        };
        let system = args.system.as_deref();
        let system = system.filter(|_| record.messages.iter().all(|message| message.role != "system"));
        let prompt = Prompt::of_messages(pair, system, &record.messages, next);
        let prompt = prompt.map_err(with_flags).map_err(named)?;
        let options = options(args, method, parameters, pair, &prompt, context).map_err(named)?;
        let seed = args.method.seed.wrapping_add(index as u64);
        Ok(Job {
            index,
            record: record.clone(),
            prompt,
            options,
            seed,
            scored: args.pair.has_reward(),
            retokenize: args.retokenize,
        })
    });
    jobs.collect()
}

/// The flags, over the task's published parameters or those that suit the pair.
fn parameters(args: &Args, task: Option<&Task>, pair: &Pair) -> Result<Parameters> {
    let weights = pair.policy()?.config.num_parameters();
    let published = task.map(|task| task.dataset.published().preset(weights));
    args.method.given().over(published.unwrap_or(args.pair.preset()))
}

fn options(
    args: &Args,
    method: Method,
    parameters: &Parameters,
    pair: &Pair,
    prompt: &Prompt,
    context: usize,
) -> Result<Options> {
    let len = prompt.ids.len();
    if context <= len {
        return Err(Error::invalid(format!("its {len} tokens leave no room in the context of {context}")));
    }
    let room = room(args.method.max_new_tokens.map(|asked| (asked, "--max-new-tokens")), len, context)?;
    let options = Options { first_offset: prompt.first_offset, ..parameters.options(pair)? };
    let options = Options {
        max_new_tokens: options.max_new_tokens.min(room),
        max_candidates: if method == Method::Greedy { 1 } else { options.max_candidates },
        ..options
    };
    options.check()?;
    Ok(options)
}

/// `FILE.config.json`: all that an answer depends on besides its prompt.
fn config(
    args: &Args,
    asked: &Asked,
    method: Method,
    parameters: &Parameters,
    pair: &Pair,
    device: &Device,
) -> Result<Map<String, Value>> {
    let [policy, reward] = args.pair.names();
    let model = |name: Option<String>, weights: Option<u64>| match name.zip(weights) {
        Some((name, _)) if args.pair.is_demo() => Some(name),
        Some((name, weights)) => Some(format!("{name}, {weights} weights")),
        None => None,
    };
    let policy_weights = pair.policy.as_ref().map(|model| model.config.num_parameters());
    let reward_weights = pair.reward.as_ref().map(|model| model.config.num_parameters());
    let mut config = Map::new();
    let mut set = |name: &str, value: Value| drop(config.insert(name.to_string(), value));
    set("ggro", json!(env!("CARGO_PKG_VERSION")));
    set("policy", json!(model(policy, policy_weights)));
    set("reward", json!(model(reward, reward_weights)));
    set("arithmetic", json!(device.arithmetic(args.device.dtype)));
    set("task", json!(asked.task.as_ref().map(|task| task.dataset.name())));
    set("method", json!(if method == Method::Greedy { "greedy" } else { "ggro" }));
    for (name, value) in json!(parameters).as_object().into_iter().flatten() {
        set(name, value.clone());
        // Files written before have it at this place.
        if name == "max_new_tokens" {
            set("max_model_len", json!(args.pair.max_model_len));
        }
    }
    set("seed", json!(args.method.seed));
    set("system", json!(args.system));
    set("prefill_attack", json!(asked.prefill));
    set("prompt_layout", json!(asked.layout.name()));
    if args.retokenize {
        set("retokenize", json!(true));
    }
    if let Some(task) = &asked.task {
        set("wording", json!(task.wording_name()));
        if let Some(file) = &task.file {
            set("task_file", json!(file));
        }
    }
    Ok(config)
}

/// The progress of a run: a bar on a terminal, and a line at its end.
struct BatchProgress {
    bar: ProgressBar,
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    rows: usize,
    rewards: usize,
    reward: f64,
    nudges: usize,
    tokens: usize,
    judged: usize,
    correct: usize,
}

impl BatchProgress {
    fn new(all: usize, there: usize) -> Self {
        let bar = bar(Some(all as u64), "{bar:30} {pos} of {len} answers, {per_sec}, {eta} left{msg}");
        let bar = bar.with_position(there as u64);
        bar.reset_eta();
        BatchProgress { bar, sums: Mutex::default() }
    }

    fn row(&self, row: &Row) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.rows += 1;
        if let Some(reward) = row.reward {
            sums.rewards += 1;
            sums.reward += f64::from(reward);
            self.bar.set_message(format!(", mean reward {:.3}", sums.reward / sums.rewards as f64));
        }
        sums.nudges += row.num_nudges;
        sums.tokens += row.new_tokens;
        sums.judged += usize::from(row.correct.is_some());
        sums.correct += usize::from(row.correct == Some(true));
        self.bar.inc(1);
    }

    fn summary(&self) -> String {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, seconds) = (sums.rows.max(1) as f64, self.bar.elapsed().as_secs_f64());
        let mut text =
            format!("{} answers in {seconds:.1} s, {:.1} tokens/s", sums.rows, sums.tokens as f64 / seconds.max(1e-9));
        if sums.rewards > 0 {
            let (mean, nudges) = (sums.reward / sums.rewards as f64, sums.nudges as f64 / count);
            text += &format!("; mean reward {mean:.3}, {nudges:.1} nudges an answer");
        }
        if sums.judged > 0 {
            text += &format!("; {} of {} right", sums.correct, sums.judged);
        }
        text
    }
}
