//! `ggro run`.

use super::args::{EngineArgs, Method, MethodArgs, SamplingArgs, layout, room};
use super::complete;
use super::generate::check_retokenize;
use super::models::{Count, DeviceArgs, PairArgs, TemplateArgs, counting, made_on, note_without_template};
use super::output::{Paths, put_in_order};
use super::prompt::with_flags;
use super::say;
use super::search::SearchArgs;
use super::words::counted;
use crate::baselines::Baseline;
use crate::batch::input;
use crate::batch::output::{Row, Rows, config_path, part_path};
use crate::batch::record::{PromptRecord, lay_out};
use crate::batch::tasks::{Dataset, Task};
use crate::batch::wording::TaskFile;
use crate::batch::{Answering, Job, Setting, run as answer_all};
use crate::engine::Engine;
use crate::files::checkpoint::read_whole_text;
use crate::files::pair::Pair;
use crate::method::Options;
use crate::presets::Parameters;
use crate::runtime::Device;
use crate::sampling::Sampling;
use crate::text::{Next, Prompt, PromptLayout};
use crate::{Error, Result};
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Answer many prompts from a file into a file, resumably
///
/// Every line of the input is a prompt: a JSON string, an array of chat messages, or an object with `prompt` or `messages` and
/// optionally `answer` and `metadata`. Every line of the output is one answer, with the official code's fields and the record
/// of how it was made. Interrupted runs resume: rerun the same command; prompts that have an answer are not answered again.
/// Empty lines of the input are no prompts; every other line is one, or an error.
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

    /// Pass over prompts that are too long for the context, instead of ending before the first answer
    ///
    /// Each has a row without an answer, whose `skipped` says why; ggro report counts them apart.
    #[arg(long)]
    skip_too_long: bool,

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

    /// Go on with a file whose rows were made on another kind of device, or by other kernels
    ///
    /// Answers may differ between them. Each row says what it was made on, and ggro report counts them.
    #[arg(long)]
    mix_devices: bool,

    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    method: MethodArgs,

    #[command(flatten)]
    search: SearchArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let method = args.method.method(&args.pair)?;
    let search = args.search.method(&method.name())?;
    check_sampling(args, method, search.as_ref())?;
    check_retokenize(args.retokenize, method, &args.method)?;
    let paths = Paths::default().reading(&args.input).reading(&args.task_file).reading(args.pair.paths());
    let paths = paths.reading(args.engine.draft.model());
    let paths = paths.reading(&args.template.chat_template).writing("--output", Some(&args.output));
    let paths = paths.writing("--output (its .config.json)", Some(&config_path(&args.output)));
    let paths = paths.writing("--output (its .part)", Some(&part_path(&args.output)));
    paths.writing("--trace-events", args.device.profile.trace_events.as_deref()).check()?;
    let asked = Asked::new(args)?;
    let task = asked.task.as_ref();
    let records = input::read(&args.input, task)?;
    let mut template = args.template.clone();
    let recorded = template.pin(&args.output)?;
    let mut pair = args.pair.load()?;
    PairArgs::add_draft(&mut pair, args.engine.draft.model())?;
    template.set_up(&mut pair)?;
    note_without_template(&pair);
    let mut device = args.device.find()?;
    let parameters = parameters(args, task, &pair)?;
    let answering = answering(args, method, search);
    let Chosen { jobs, too_long } = jobs(args, &asked, (method, &answering), &parameters, &pair, &records)?;
    let made_on = made_on(&device);
    let mut config = config(args, &asked, (method, &answering), &parameters, &pair, &device)?;
    template.record(&pair, recorded, &mut config);
    let mut rows =
        Rows::open::<Row>(&args.output, &config, args.mix_devices, &|row| fits(row, &records, &jobs, &pair))?;
    for (index, why) in &too_long {
        if !rows.has(*index) {
            rows.add(&Row::skipped(*index, &records[*index], why.clone()))?;
        }
    }
    let there = jobs.iter().filter(|job| rows.has(job.index)).count();
    if there > 0 {
        let are = if jobs.len() == 1 { "is" } else { "are" };
        say(&format!("{there} of {} {are} answered already", counted(jobs.len(), "prompt")));
    }
    if there < jobs.len() {
        let settings = args.engine.settings(args.max_concurrency);
        let (flags, for_engine, max_len) = (args.device.clone(), pair.clone(), args.pair.max_model_len);
        let engine =
            Engine::start(settings, move || Ok(flags.open(&mut device, &for_engine, max_len)?.into_backend()))?;
        let progress = BatchProgress::new(jobs.len(), there);
        progress.count.goes_on(&args.output);
        let setting = Setting { concurrency: args.max_concurrency, made_on };
        let ran = answer_all(&engine, &pair.tokenizer, task, &jobs, &setting, &mut rows, &|row| {
            progress.row(row);
        });
        progress.count.bar.finish_and_clear();
        ran?;
        say(&progress.summary());
    }
    if let Some((index, why)) = too_long.first() {
        let passed = counted(too_long.len(), "prompt");
        say(&format!("note: --skip-too-long passed over {passed}; the first is prompt {index}: {why}"));
    }
    put_in_order(rows, there == jobs.len())?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses sampling flags that the method cannot honour, and notes those that it ignores.
fn check_sampling(args: &Args, method: Method, search: Option<&Baseline>) -> Result<()> {
    if !args.sampling.stop.is_empty() {
        return Err(Error::invalid("--stop: answers of ggro run end at the model's stop ids alone"));
    }
    if matches!(method, Method::Ggro | Method::Greedy) {
        return complete::unused(&args.sampling);
    }
    if method == Method::Sample && args.sampling.n.is_some_and(|n| n > 1) {
        return Err(Error::invalid("--n: a row is one answer; --method bon takes the best of several"));
    }
    complete::check_search(&args.sampling, search)?;
    complete::sampling_of(&args.sampling, args.method.seed).check(usize::MAX)
}

/// How every prompt is answered.
fn answering(args: &Args, method: Method, search: Option<Baseline>) -> Answering {
    let (scored, sampling) = (args.pair.has_reward(), complete::sampling_of(&args.sampling, args.method.seed));
    match (method, search) {
        (_, Some(method)) if method.samples() => Answering::Searched { sampling, method },
        (_, Some(method)) => Answering::Searched { sampling: Sampling::default(), method },
        (Method::Sample | Method::Bon, None) => {
            Answering::Sampled { sampling, n: complete::count(&args.sampling, method), scored }
        }
        _ if scored => Answering::Guided,
        _ => Answering::Sampled { sampling: Sampling::default(), n: 1, scored: false },
    }
}

/// What is wrong with a row that is there, beside the input of now. A row that would be left as it is must be what would be made.
pub(super) fn fits(row: &Row, records: &[PromptRecord], jobs: &[Job], pair: &Pair) -> std::result::Result<(), String> {
    let Some(record) = records.get(row.index) else {
        return Err(format!("is one too many: the input has {}", counted(records.len(), "prompt")));
    };
    if record.text != row.prompt {
        return Err("answers another prompt than the input's".to_string());
    }
    let changed = |name: &str| format!("has another `{name}` than the input's; put it back, or name another output");
    if record.answer != row.answer {
        return Err(changed("answer"));
    }
    if record.metadata != row.metadata {
        return Err(changed("metadata"));
    }
    // The messages before the last are not in the row, but its text begins with all of them as they were laid out.
    let several = record.messages.len() > 1 || record.whole.is_some();
    let job = jobs.binary_search_by_key(&row.index, |job| job.index).ok().map(|at| &jobs[at]);
    if let Some(job) = job.filter(|_| several && row.skipped.is_none()) {
        let asked = pair.tokenizer.decode(&job.prompt.ids).map_err(|e| e.to_string())?;
        if !row.full_text.starts_with(asked.trim_end()) {
            return Err("answers another conversation than the input's".to_string());
        }
    }
    Ok(())
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

/// What is to be answered, in the order of the input.
struct Chosen {
    jobs: Vec<Job>,
    /// Prompts that are passed over, with the reason.
    too_long: Vec<(usize, String)>,
}

/// Lays out all prompts, so that a faulty one is found before the first is answered.
fn jobs(
    args: &Args,
    asked: &Asked,
    (method, answering): (Method, &Answering),
    parameters: &Parameters,
    pair: &Pair,
    records: &[PromptRecord],
) -> Result<Chosen> {
    let (count, there) = (asked.num_prompts, counted(records.len(), "prompt"));
    if count == 0 {
        return Err(Error::invalid("--num-prompts 0: expected 1 or more, or \"all\""));
    }
    if args.start_index >= records.len() {
        return Err(Error::invalid(format!(
            "--start-index {}: leaves none of the {there}, which are counted from 0",
            args.start_index
        )));
    }
    let context = args.pair.context(pair);
    let chosen = records.iter().enumerate().skip(args.start_index).take(count);
    let next = Next::Answer { layout: asked.layout, prefill: asked.prefill.as_deref().unwrap_or_default() };
    let (mut jobs, mut too_long) = (Vec::new(), Vec::new());
    for (index, record) in chosen {
        let named = |error: Error| match &args.input[..] {
            [path] => Error::file(path, format!("prompt {index}: {error}")),
            _ => error.within(&format!("prompt {index}")),
        };
        let system = args.system.as_deref();
        let system = system.filter(|_| record.messages.iter().all(|message| message.role != "system"));
        let prompt = lay_out(pair, system, &record.messages, record.whole.as_ref(), next);
        let prompt = match prompt.map_err(with_flags) {
            Err(error @ Error::TooLong { .. }) if args.skip_too_long => {
                too_long.push((index, error.to_string()));
                continue;
            }
            prompt => prompt.map_err(named)?,
        };
        let room = match room_behind(args, prompt.ids.len(), context) {
            Err(error) if args.skip_too_long => {
                too_long.push((index, error.to_string()));
                continue;
            }
            room => room.map_err(named)?,
        };
        let options = options(method, parameters, pair, &prompt, room).map_err(named)?;
        if let Answering::Searched { method, .. } = answering {
            // Some parameters have to fit the prompt.
            method.strategy(prompt.ids.len(), options.max_new_tokens).map_err(named)?;
        }
        let seed = args.method.seed.wrapping_add(index as u64);
        jobs.push(Job {
            index,
            record: record.clone(),
            prompt,
            options,
            seed,
            answering: answering.clone(),
            retokenize: args.retokenize,
        });
    }
    Ok(Chosen { jobs, too_long })
}

/// Tokens that there is room for behind a prompt of so many.
fn room_behind(args: &Args, len: usize, context: usize) -> Result<usize> {
    if context <= len {
        return Err(Error::invalid(format!("its {len} tokens leave no room in the context of {context}")));
    }
    room(args.method.max_new_tokens.map(|asked| (asked, "--max-new-tokens")), len, context)
}

/// The flags, over the task's published parameters or those that suit the pair.
fn parameters(args: &Args, task: Option<&Task>, pair: &Pair) -> Result<Parameters> {
    let weights = pair.policy()?.config.num_parameters();
    let published = task.map(|task| task.dataset.published().preset(weights));
    args.method.given().over(published.unwrap_or(args.pair.preset()))
}

/// Options of a prompt with so much room behind it; greedily there is one candidate a segment.
pub(super) fn options(
    method: Method,
    parameters: &Parameters,
    pair: &Pair,
    prompt: &Prompt,
    room: usize,
) -> Result<Options> {
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
    (method, answering): (Method, &Answering),
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
    made_on(device).record(&mut config);
    let mut set = |name: &str, value: Value| drop(config.insert(name.to_string(), value));
    set("task", json!(asked.task.as_ref().map(|task| task.dataset.name())));
    set("method", json!(method.name()));
    // What an answer of segments depends on is below; files written before have no more than that.
    match answering {
        Answering::Guided => {}
        Answering::Sampled { .. } if method == Method::Greedy => {}
        Answering::Sampled { sampling, n, .. } => {
            set("sampling", sampling_config(sampling));
            set("n", json!(n));
        }
        Answering::Searched { sampling, method } => {
            set("sampling", if method.samples() { sampling_config(sampling) } else { Value::Null });
            set("search", json!(method));
        }
    }
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

/// How tokens are chosen, as far as flags say it.
pub(super) fn sampling_config(sampling: &Sampling) -> Value {
    json!({
        "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty, "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    })
}

/// The progress of a run: a bar on a terminal, and a line at its end.
struct BatchProgress {
    count: Count,
    /// When the first answer was begun.
    started: Instant,
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
        BatchProgress { count: counting(all, there, "answer"), started: Instant::now(), sums: Mutex::default() }
    }

    fn row(&self, row: &Row) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.rows += 1;
        if let Some(reward) = row.reward {
            sums.rewards += 1;
            sums.reward += f64::from(reward);
            self.count.remark(format!("mean reward {:.3}", sums.reward / sums.rewards as f64));
        }
        sums.nudges += row.num_nudges;
        sums.tokens += row.new_tokens.unwrap_or(0);
        sums.judged += usize::from(row.correct.is_some());
        sums.correct += usize::from(row.correct == Some(true));
        self.count.bar.inc(1);
    }

    fn summary(&self) -> String {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, seconds) = (sums.rows.max(1) as f64, self.started.elapsed().as_secs_f64());
        let (answers, rate) = (counted(sums.rows, "answer"), sums.tokens as f64 / seconds.max(1e-9));
        let mut text = format!("{answers} in {seconds:.1} s, {rate:.1} tokens/s");
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
