//! `ggro compare`.

use super::args::{EngineArgs, Method, room};
use super::models::{DeviceArgs, PairArgs, TemplateArgs, counting, files, made_on, note_without_template, noted};
use super::output::{Output, Paths, put_in_order};
use super::prompt::with_flags;
use super::run::{fits, options, sampling_config};
use super::say;
use super::words::{aligned, counted, for_stdout};
use crate::batch::compare::equal::AtEqual;
use crate::batch::compare::gold::Gold;
use crate::batch::compare::judge::{Judgement, SecondReward, ask_program, gold, right, safe};
use crate::batch::compare::page::page;
use crate::batch::compare::plan::{Cost, Judge, JudgeKind, Plan, PlanFile, Point, Way};
use crate::batch::compare::tables::{Curve, PointTable, Tables};
use crate::batch::compare::{alone, alone_path, answers, judged_path, rows_path};
use crate::batch::guard::Guard;
use crate::batch::output::{MadeOn, Row, Rows, read};
use crate::batch::record::{PromptRecord, lay_out};
use crate::batch::report::Mean;
use crate::batch::tasks::{Dataset, Task};
use crate::batch::{Answering, Job, Setting, each, input, run as answer_all};
use crate::engine::{Engine, Settings};
use crate::files::chat::Date;
use crate::files::checkpoint::read_whole_text;
use crate::files::demo;
use crate::files::pair::Pair;
use crate::files::place::replace;
use crate::presets::Parameters;
use crate::runtime::{Device, bytes_in_words};
use crate::text::{Next, Prompt, PromptLayout};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Longest question and answer of a guard model, in tokens, as `ggro guard` has it.
const GUARD_CONTEXT: usize = 4096;

/// Compare methods over budgets and seeds, by judges that no method sees
///
/// A plan in TOML says which methods, budgets, seeds, prompts and judges (docs/running.md). Answers and judgements are
/// files in the output folder; an interrupted comparison goes on when the same command is run again. Prints tables with
/// 95 % intervals over prompts (bootstrap), differences from the reference method prompt by prompt.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The plan
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,

    /// A folder for answers and judgements; made if it is not there
    #[arg(long, value_name = "DIR")]
    output: PathBuf,

    /// Answer the first N prompts once more, one at a time, for the seconds of an answer alone
    #[arg(long, value_name = "N")]
    time: Option<usize>,

    /// Write a self-contained HTML page: tables, curves over the budget, answers side by side
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (file, plan) = plan(args)?;
    let task = task(args, &file)?;
    check_models(args, &plan, task.as_ref())?;
    check_paths(args, &file, &plan)?;
    let html = args.html.as_deref().map(Output::check).transpose()?;
    let records = records(&file, task.as_ref())?;
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io(&args.output, e))?;
    let date = pinned(args)?;
    let mut pair = args.pair.load()?;
    TemplateArgs { date: Some(date), ..args.template.clone() }.set_up(&mut pair)?;
    note_without_template(&pair);
    let device = args.device.find()?;
    let comparison = Comparison::new(args, (&file, &plan), task, records, (pair, date), &device)?;
    comparison.record_plan()?;
    comparison.answer(device)?;
    for judge in &plan.judges {
        comparison.judge(judge).map_err(|error| error.within(&format!("judge {}", judge.name)))?;
    }
    let prompts: Vec<usize> = comparison.prompts.iter().map(|asked| asked.index).collect();
    let answers = answers(&args.output, &plan)?;
    let tables = Tables::new(&plan, &prompts, comparison.cost()?, &answers, &alone(&args.output, &plan)?);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_value(&tables)?)?;
    } else {
        write!(out, "{}", for_stdout(&text(&tables)))?;
    }
    if let (Some(html), Some(path)) = (html, &args.html) {
        let page = page(&tables, &prompts, &answers);
        html.write(page.as_bytes())?;
        say(&format!("{}: {}", path.display(), bytes_in_words(page.len() as u64)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the plan.
fn plan(args: &Args) -> Result<(PlanFile, Plan)> {
    let path = &args.plan;
    let text = read_whole_text(path, std::fs::File::open(path).map_err(|e| Error::io(path, e))?)?;
    let file: PlanFile = basic_toml::from_str(&text)
        .map_err(|e| Error::file(path, format!("expected a plan: {}", e.to_string().trim_end())))?;
    let plan = Plan::new(&file).map_err(|error| Error::file(path, error.to_string()))?;
    Ok((file, plan))
}

/// The task whose prompts are answered, if it is one.
fn task(args: &Args, file: &PlanFile) -> Result<Option<Task>> {
    let wrong = |what: String| Error::file(&args.plan, what);
    let Some(name) = &file.task else {
        return match file.input.is_empty() {
            true => Ok(None),
            false => Err(wrong("input: has the files of a task, and there is no `task`".to_string())),
        };
    };
    if file.prompts.is_some() || file.input.is_empty() {
        return Err(wrong(format!("task {name}: its dataset is `input`, in place of `prompts`")));
    }
    match Dataset::ALL.into_iter().find(|dataset| dataset.name() == name) {
        Some(dataset) => Ok(Some(Task::new(dataset))),
        None => {
            let names = Dataset::ALL.map(Dataset::name).join(", ");
            Err(wrong(format!("task {name:?} is none; there are {names}")))
        }
    }
}

/// Checks that every method and judge has what it needs.
fn check_models(args: &Args, plan: &Plan, task: Option<&Task>) -> Result<()> {
    args.pair.needs_policy("a comparison")?;
    for point in &plan.points {
        if point.needs_reward() {
            args.pair.needs_reward(&format!("method {}", point.label))?;
        }
    }
    let right = plan.judges.iter().find(|judge| judge.kind == JudgeKind::Answers);
    match right.filter(|_| !task.is_some_and(|task| task.dataset.has_answers())) {
        Some(judge) => Err(Error::file(
            &args.plan,
            format!("judge {}: only tasks with right answers have any, arc-challenge and mmlu-pro", judge.name),
        )),
        None => Ok(()),
    }
}

/// Checks that nothing that is read is written over.
fn check_paths(args: &Args, file: &PlanFile, plan: &Plan) -> Result<()> {
    let models = plan.judges.iter().filter_map(|judge| match &judge.kind {
        JudgeKind::Reward(model) | JudgeKind::Guard(model) => Some(model),
        JudgeKind::Answers | JudgeKind::Command(_) | JudgeKind::Gold => None,
    });
    let mut paths = Paths::default().reading([&args.plan]).reading(&file.prompts).reading(&file.input).reading(models);
    paths = paths.reading(args.pair.paths()).reading(&args.template.chat_template);
    paths = paths.writing("--html", args.html.as_deref()).writing("--output", Some(&plan_path(args)));
    for (point, seed) in files_of(plan) {
        paths = paths.writing("--output", Some(&rows_path(&args.output, point, seed)));
        for judge in &plan.judges {
            paths = paths.writing("--output", Some(&judged_path(&args.output, point, seed, judge)));
        }
    }
    paths.writing("--trace-events", args.device.profile.trace_events.as_deref()).check()
}

/// Every point with each of its seeds.
fn files_of(plan: &Plan) -> impl Iterator<Item = (&Point, u64)> {
    plan.points.iter().flat_map(|point| point.seeds(&plan.seeds).iter().map(move |&seed| (point, seed)))
}

fn plan_path(args: &Args) -> PathBuf {
    args.output.join("plan.json")
}

/// The date that chat templates write: the one given, that of the comparison so far, or today's.
fn pinned(args: &Args) -> Result<Date> {
    let path = plan_path(args);
    let recorded = match std::fs::File::open(&path) {
        Err(_) => None,
        Ok(file) => {
            let recorded: Value = serde_json::from_str(&read_whole_text(&path, file)?)
                .map_err(|e| Error::file(&path, format!("expected the plan of a comparison: {e}")))?;
            if recorded.get("ggro").is_none() || recorded.get("plan").is_none() {
                return Err(Error::file(&path, "expected the plan of a comparison, found something else"));
            }
            recorded.get("date").and_then(Value::as_str).and_then(|date| date.parse().ok())
        }
    };
    Ok(args.template.date.or(recorded).unwrap_or_else(Date::today))
}

fn records(file: &PlanFile, task: Option<&Task>) -> Result<Vec<PromptRecord>> {
    match (&file.prompts, task) {
        (_, Some(task)) => input::read(&file.input, Some(task)),
        (Some(path), None) => input::read(std::slice::from_ref(path), None),
        (None, None) => Ok(demo::prompts().into_iter().map(PromptRecord::of_text).collect()),
    }
}

/// A prompt that is answered.
struct Asked {
    index: usize,
    prompt: Prompt,
    /// Tokens that fit behind it.
    room: usize,
}

/// What is compared, ready to be answered.
struct Comparison<'a> {
    args: &'a Args,
    plan: &'a Plan,
    concurrency: usize,
    task: Option<Task>,
    records: Vec<PromptRecord>,
    pair: Arc<Pair>,
    date: Date,
    prompts: Vec<Asked>,
    made_on: MadeOn,
    arithmetic: Value,
}

impl<'a> Comparison<'a> {
    fn new(
        args: &'a Args,
        (file, plan): (&PlanFile, &'a Plan),
        task: Option<Task>,
        records: Vec<PromptRecord>,
        (pair, date): (Arc<Pair>, Date),
        device: &Device,
    ) -> Result<Self> {
        let unlimited = task.as_ref().map_or(usize::MAX, |task| task.dataset.num_prompts());
        let count = file.num_prompts.unwrap_or(unlimited);
        if count == 0 {
            return Err(Error::file(&args.plan, "num_prompts: expected 1 or more, found 0"));
        }
        let layout = if task.is_some() { PromptLayout::Official } else { PromptLayout::Chat };
        let next = Next::Answer { layout, prefill: task.as_ref().and_then(Task::prefill).unwrap_or_default() };
        let context = args.pair.context(&pair);
        let mut prompts = Vec::new();
        for (index, record) in records.iter().enumerate().take(count) {
            let named = |error: Error| error.within(&format!("prompt {index}"));
            let prompt = lay_out(&pair, None, &record.messages, record.whole.as_ref(), next);
            let prompt = prompt.map_err(with_flags).map_err(named)?;
            let len = prompt.ids.len();
            if context <= len {
                let what = format!("its {len} tokens leave no room in the context of {context}");
                return Err(named(Error::invalid(what)));
            }
            let asked = plan.max_new_tokens.map(|tokens| (tokens, "max_new_tokens"));
            prompts.push(Asked { index, room: room(asked, len, context).map_err(named)?, prompt });
        }
        let (concurrency, arithmetic) = (file.concurrency, json!(device.arithmetic(args.device.dtype)));
        let made_on = made_on(device);
        Ok(Comparison { args, plan, concurrency, task, records, pair, date, prompts, made_on, arithmetic })
    }

    /// Writes the plan beside the answers. It says what was asked last; every file of answers has its own options.
    fn record_plan(&self) -> Result<()> {
        let path = plan_path(self.args);
        let [policy, reward] = self.args.pair.names();
        let object = json!({
            "ggro": env!("CARGO_PKG_VERSION"),
            "policy": policy,
            "reward": reward,
            "date": self.date.to_string(),
            "prompts": self.prompts.len(),
            "plan": self.plan,
        });
        let text = serde_json::to_vec_pretty(&object).map_err(|e| Error::file(&path, e.to_string()))?;
        replace(&path, &path.with_added_extension("part"), &text).map_err(|e| Error::io(&path, e))
    }

    /// What a token through the reward model costs: its share of the weights. A pass backwards to the inputs multiplies
    /// with every weight once, as a pass forwards does.
    fn cost(&self) -> Result<Cost> {
        let policy = self.pair.policy()?.config.num_parameters() as f64;
        let reward = self.pair.reward.as_ref().map_or(0.0, |reward| reward.config.num_parameters() as f64);
        let share = if policy > 0.0 { reward / policy } else { 1.0 };
        Ok(Cost { reward_forward: share, reward_backward: share })
    }

    fn parameters(&self, point: &Point) -> Result<Parameters> {
        let weights = self.pair.policy()?.config.num_parameters();
        let published = self.task.as_ref().map(|task| task.dataset.published().preset(weights));
        point.given(self.plan.max_new_tokens).over(published.unwrap_or(self.args.pair.preset()))
    }

    /// The prompts with a point's parameters and a seed. A prompt's own seed follows from its number, as in `ggro run`.
    fn jobs(&self, point: &Point, seed: u64) -> Result<Vec<Job>> {
        let parameters = self.parameters(point)?;
        let method = if point.way == Way::Greedy { Method::Greedy } else { Method::Ggro };
        let answering = point.answering(self.args.pair.has_reward());
        let job = |asked: &Asked| -> Result<Job> {
            let record = self.records.get(asked.index).cloned();
            let record = record.ok_or_else(|| Error::Backend("a prompt without its record".to_string()))?;
            Ok(Job {
                index: asked.index,
                record,
                prompt: asked.prompt.clone(),
                options: options(method, &parameters, &self.pair, &asked.prompt, asked.room)
                    .map_err(|error| error.within(&format!("method {}", point.label)))?,
                seed: seed.wrapping_add(asked.index as u64),
                answering: answering.clone(),
                retokenize: false,
            })
        };
        self.prompts.iter().map(job).collect()
    }

    /// All that a point's answers depend on besides their prompts.
    fn config(&self, point: &Point, seed: u64) -> Result<Map<String, Value>> {
        let [policy, reward] = self.args.pair.names();
        let weights = |count: Option<u64>| count.map(|count| format!("{count} weights"));
        let named = |name: Option<String>, count: Option<String>| {
            name.zip(count).map(|(name, count)| format!("{name}, {count}"))
        };
        let of_policy = weights(self.pair.policy.as_ref().map(|model| model.config.num_parameters()));
        let of_reward = weights(self.pair.reward.as_ref().map(|model| model.config.num_parameters()));
        let mut config = Map::new();
        config.insert("ggro".to_string(), json!(env!("CARGO_PKG_VERSION")));
        config.insert("policy".to_string(), json!(named(policy, of_policy)));
        config.insert("reward".to_string(), json!(named(reward, of_reward)));
        config.insert("arithmetic".to_string(), self.arithmetic.clone());
        self.made_on.record(&mut config);
        let mut set = |name: &str, value: Value| drop(config.insert(name.to_string(), value));
        set("task", json!(self.task.as_ref().map(|task| task.dataset.name())));
        set("method", json!(point.label));
        match point.answering(self.args.pair.has_reward()) {
            Answering::Guided => {}
            Answering::Sampled { sampling, n, .. } => {
                set("sampling", sampling_config(&sampling));
                set("n", json!(n));
            }
            Answering::Searched { sampling, method } => {
                set("sampling", if method.samples() { sampling_config(&sampling) } else { Value::Null });
                set("search", json!(method));
            }
        }
        set("greedy", json!(point.way == Way::Greedy));
        for (name, value) in json!(self.parameters(point)?).as_object().into_iter().flatten() {
            set(name, value.clone());
        }
        set("max_model_len", json!(self.args.pair.max_model_len));
        set("seed", json!(seed));
        let date = TemplateArgs { date: Some(self.date), ..self.args.template.clone() };
        date.record(&self.pair, true, &mut config);
        Ok(config)
    }

    /// Makes all answers that are missing, and those that are made one at a time.
    fn answer(&self, mut device: Device) -> Result<()> {
        // Every file is opened before the first answer, so that one that does not fit is found early.
        let mut opened: Vec<(Vec<Job>, Rows, usize)> = Vec::new();
        for (point, seed) in files_of(self.plan) {
            let jobs = self.jobs(point, seed)?;
            let rows = self.open(&rows_path(&self.args.output, point, seed), point, seed, &jobs)?;
            opened.push((jobs, rows, self.concurrency));
        }
        let timed = self.args.time.unwrap_or(0).min(self.prompts.len());
        for point in self.plan.points.iter().filter(|_| timed > 0) {
            for &seed in point.seeds(&self.plan.seeds).iter().take(1) {
                let mut jobs = self.jobs(point, seed)?;
                let rows = self.open(&alone_path(&self.args.output, point, seed), point, seed, &jobs)?;
                jobs.truncate(timed);
                opened.push((jobs, rows, 1));
            }
        }
        let all: usize = opened.iter().map(|(jobs, ..)| jobs.len()).sum();
        let is_there =
            |(jobs, rows, _): &(Vec<Job>, Rows, usize)| jobs.iter().filter(|job| rows.has(job.index)).count();
        let there: usize = opened.iter().map(is_there).sum();
        if there > 0 {
            let are = if all == 1 { "is" } else { "are" };
            say(&format!("{there} of {} {are} there already", counted(all, "answer")));
        }
        if there < all {
            let settings = self.args.engine.settings(self.concurrency);
            let (flags, for_engine, max_len) =
                (self.args.device.clone(), self.pair.clone(), self.args.pair.max_model_len);
            let engine =
                Engine::start(settings, move || Ok(flags.open(&mut device, &for_engine, max_len)?.into_backend()))?;
            let count = counting(all, there, "answer");
            count.goes_on(&self.args.output);
            for (jobs, rows, concurrency) in &mut opened {
                let setting = Setting { concurrency: *concurrency, made_on: self.made_on.clone() };
                let task = self.task.as_ref();
                let ran = answer_all(&engine, &self.pair.tokenizer, task, jobs, &setting, rows, &|_: &Row| {
                    count.bar.inc(1);
                });
                if ran.is_err() {
                    count.bar.finish_and_clear();
                }
                ran?;
            }
            count.bar.finish_and_clear();
        }
        opened.into_iter().try_for_each(|(_, rows, _)| put_in_order(rows, there == all))
    }

    fn open(&self, path: &Path, point: &Point, seed: u64, jobs: &[Job]) -> Result<Rows> {
        let config = self.config(point, seed)?;
        Rows::open::<Row>(path, &config, false, &|row| fits(row, &self.records, jobs, &self.pair))
    }

    /// Makes all judgements of a judge that are missing.
    fn judge(&self, judge: &Judge) -> Result<()> {
        let model = self.model(judge)?;
        let mut opened: Vec<(Vec<Row>, Rows)> = Vec::new();
        for (point, seed) in files_of(self.plan) {
            let answered = rows_path(&self.args.output, point, seed);
            let mut rows: Vec<Row> = read(&answered)?;
            let out = {
                let fits = |one: &Judgement| one.fits(rows.iter().find(|row| row.index == one.index));
                let config = self.judge_config(judge, model.as_ref(), &answered);
                Rows::open::<Judgement>(&judged_path(&self.args.output, point, seed, judge), &config, false, &fits)?
            };
            rows.retain(|row| row.skipped.is_none() && !out.has(row.index));
            opened.push((rows, out));
        }
        let left: usize = opened.iter().map(|(rows, _)| rows.len()).sum();
        if left > 0 {
            let count = counting(left, 0, "judgement");
            count.goes_on(&self.args.output);
            let judged = self.judge_all(judge, model, &mut opened, &|| count.bar.inc(1));
            count.bar.finish_and_clear();
            judged?;
        }
        opened.into_iter().try_for_each(|(_, rows)| put_in_order(rows, left == 0))
    }

    fn judge_all(
        &self,
        judge: &Judge,
        model: Option<(Arc<Pair>, Device)>,
        opened: &mut [(Vec<Row>, Rows)],
        done: &(dyn Fn() + Sync),
    ) -> Result<()> {
        let plain = |opened: &mut [(Vec<Row>, Rows)], make: &(dyn Fn(&Row) -> Result<Judgement> + Sync)| {
            opened
                .iter_mut()
                .try_for_each(|(rows, out)| each(rows, self.concurrency, out, make, &|_: &Judgement| done()))
        };
        let settings = Settings { max_requests: self.concurrency, ..Settings::default() };
        let flags = self.args.device.clone();
        match (&judge.kind, model) {
            (JudgeKind::Answers, _) => plain(opened, &|row| Ok(Judgement::new(row, right(row), None))),
            (JudgeKind::Gold, _) => {
                let rule = Gold::demo();
                plain(opened, &|row| Ok(Judgement::new(row, Some(gold(&rule, row)), None)))
            }
            (JudgeKind::Command(command), _) => {
                let places: Vec<(usize, usize)> = opened
                    .iter()
                    .enumerate()
                    .flat_map(|(file, (rows, _))| (0..rows.len()).map(move |row| (file, row)))
                    .collect();
                let all: Vec<Row> = opened.iter().flat_map(|(rows, _)| rows.iter().cloned()).collect();
                let all: Vec<&Row> = all.iter().collect();
                ask_program(command, &all, &mut |index, score| {
                    let found = places.get(index).zip(all.get(index));
                    if let Some((&(file, _), row)) = found
                        && let Some((_, out)) = opened.get_mut(file)
                    {
                        out.add(&Judgement::new(row, score, None))?;
                        done();
                    }
                    Ok(())
                })
            }
            (JudgeKind::Reward(_), Some((pair, mut device))) => {
                let made_on = made_on(&device);
                let for_engine = pair.clone();
                let engine =
                    Engine::start(settings, move || Ok(flags.open(&mut device, &for_engine, None)?.into_backend()))?;
                let second = SecondReward { engine: &engine, pair: &pair };
                plain(opened, &|row| {
                    let record = self.records.get(row.index);
                    let record = record.ok_or_else(|| Error::Backend("an answer without its prompt".to_string()))?;
                    Ok(Judgement::new(row, second.score(record, row)?, Some(made_on.device.clone())))
                })
            }
            (JudgeKind::Guard(path), Some((pair, mut device))) => {
                let guard = pair.policy()?;
                let Some(chat) = &guard.chat else {
                    return Err(Error::file(path, "a guard model needs a chat template; this one has none"));
                };
                let (made_on, context) = (made_on(&device), guard.config.max_position_embeddings.min(GUARD_CONTEXT));
                let for_engine = pair.clone();
                let open = move || Ok(flags.open_quietly(&mut device, &for_engine, context)?.into_backend());
                let engine = Engine::start(settings, open)?;
                let guard = Guard {
                    engine: &engine,
                    tokenizer: &pair.tokenizer,
                    chat,
                    stop_ids: &guard.stop_ids,
                    context,
                    skip_too_long: false,
                };
                plain(opened, &|row| Ok(Judgement::new(row, safe(&guard, row)?, Some(made_on.device.clone()))))
            }
            (JudgeKind::Reward(_) | JudgeKind::Guard(_), None) => {
                Err(Error::Backend("a judge without its model".to_string()))
            }
        }
    }

    /// The model of a judge that is one, and a device for it.
    fn model(&self, judge: &Judge) -> Result<Option<(Arc<Pair>, Device)>> {
        let pair = match &judge.kind {
            JudgeKind::Reward(path) => Pair::reward_only(&files(path)?)?,
            JudgeKind::Guard(path) => Pair::policy_only(&files(path)?)?,
            JudgeKind::Answers | JudgeKind::Command(_) | JudgeKind::Gold => return Ok(None),
        };
        let mut pair = Arc::new(noted(pair));
        TemplateArgs { date: Some(self.date), ..TemplateArgs::default() }.set_up(&mut pair)?;
        Ok(Some((pair, self.args.device.find()?)))
    }

    /// All that a judgement depends on besides the answer. The threshold is the tables' business.
    fn judge_config(&self, judge: &Judge, model: Option<&(Arc<Pair>, Device)>, answered: &Path) -> Map<String, Value> {
        let mut config = Map::new();
        let mut set = |name: &str, value: Value| drop(config.insert(name.to_string(), value));
        set("ggro", json!(env!("CARGO_PKG_VERSION")));
        set("judge", json!(judge.kind));
        set("rows", json!(answered.file_name().map(|name| name.to_string_lossy())));
        if let Some((pair, device)) = model {
            let config_of = pair.policy.as_ref().map(|model| &model.config);
            let config_of = config_of.or(pair.reward.as_ref().map(|model| &model.config));
            set("weights", json!(config_of.map(|config| config.num_parameters())));
            set("arithmetic", json!(device.arithmetic(self.args.device.dtype)));
            set("date", json!(self.date.to_string()));
            made_on(device).record(&mut config);
        }
        config
    }
}

/// All tables, one below the other.
fn text(tables: &Tables) -> String {
    let mut text = format!(
        "{}; differences from {}, prompt by prompt; 95 % intervals over prompts\n",
        counted(tables.prompts, "prompt"),
        tables.reference
    );
    for (measure, name) in tables.measures.iter().enumerate() {
        text += &format!("\n{}\n", if measure == 0 { "reward".to_string() } else { format!("judge {name}") });
        text += &measure_table(tables, measure);
    }
    text += "\nwords and work of an answer\n";
    text += &work_table(&tables.points);
    let (forward, backward) = (tables.cost.reward_forward, tables.cost.reward_backward);
    text +=
        &format!("work: policy token-forwards, + {forward:.2} a reward token-forward, + {backward:.2} a backward\n");
    // There the whole method is compared with, not one of its budgets.
    let reference = tables.points.iter().find(|point| point.name == tables.reference);
    let reference = reference.map_or(tables.reference.as_str(), |point| point.label.as_str());
    let work = tables.equal_work.iter().map(|table| (table, "work", 0));
    for (table, cost, digits) in work.chain(tables.equal_time.iter().map(|table| (table, "seconds", 3))) {
        text += &format!("\n{} at equal {cost}\n", table.measure);
        text += &equal_table(table, reference, digits);
    }
    for curve in &tables.curves {
        text += &format!("\n{} along {}\n", curve.label, curve.parameter);
        text += &curve_table(tables, curve);
    }
    text
}

fn measure_table(tables: &Tables, measure: usize) -> String {
    let covered = tables.points.iter().any(|point| point.measures.get(measure).is_some_and(|m| m.coverage.is_some()));
    let mut head = vec![String::new(), "mean".to_string(), format!("over {}", tables.reference), "wins".to_string()];
    head.extend(covered.then(|| "coverage".to_string()));
    let line = |point: &PointTable| {
        let of = point.measures.get(measure);
        let mut cells = vec![point.name.clone()];
        cells.push(words(of.and_then(|of| of.mean)));
        cells.push(words(of.and_then(|of| of.over_reference)));
        cells.push(share(of.and_then(|of| of.wins)));
        cells.extend(covered.then(|| share(of.and_then(|of| of.coverage))));
        cells
    };
    aligned(&[vec![head], tables.points.iter().map(line).collect()].concat())
}

fn work_table(points: &[PointTable]) -> String {
    let timed = points.iter().any(|point| point.seconds.is_some());
    let names = [
        "",
        "answers",
        "tokens",
        "finished",
        "distinct-1",
        "distinct-2",
        "repetition",
        "policy forward",
        "reward forward",
        "reward backward",
        "work",
    ];
    let mut head: Vec<String> = names.map(str::to_string).to_vec();
    head.extend(timed.then(|| "seconds, alone".to_string()));
    let mean = |mean: Option<Mean>| mean.map_or_else(|| "-".to_string(), |mean| format!("{:.1}", mean.mean));
    let number = |x: Option<f64>| x.map_or_else(|| "-".to_string(), |x| format!("{x:.3}"));
    let line = |point: &PointTable| {
        let mut cells = vec![
            point.name.clone(),
            point.answers.to_string(),
            mean(point.tokens),
            number(point.finished.map(|share| share.mean)),
            number(point.distinct_1),
            number(point.distinct_2),
            number(point.repetition.map(|share| share.mean)),
            mean(point.policy_forward),
            mean(point.reward_forward),
            mean(point.reward_backward),
            mean(point.work),
        ];
        cells.extend(timed.then(|| words(point.seconds)));
        cells
    };
    aligned(&[vec![head], points.iter().map(line).collect()].concat())
}

fn equal_table(table: &AtEqual, reference: &str, digits: usize) -> String {
    let levels = table.levels.iter().map(|level| format!("{level:.digits$}"));
    let head = [String::new()].into_iter().chain(levels).collect();
    let line = |name: String, cells: &[Option<Mean>]| -> Vec<String> {
        [name].into_iter().chain(cells.iter().map(|&mean| words(mean))).collect()
    };
    let mut lines: Vec<Vec<String>> = vec![head];
    lines.extend(table.methods.iter().map(|method| line(method.label.clone(), &method.best)));
    for method in table.methods.iter().filter(|method| !method.over_reference.is_empty()) {
        lines.push(line(format!("{} over {reference}", method.label), &method.over_reference));
    }
    aligned(&lines)
}

fn curve_table(tables: &Tables, curve: &Curve) -> String {
    let mut head = vec![String::new(), "work".to_string()];
    head.extend(tables.measures.iter().flat_map(|name| [name.clone(), "over the one before".to_string()]));
    head.push(String::new());
    let mut lines = vec![head];
    for step in &curve.steps {
        let point = tables.points.get(step.point);
        let work = point.and_then(|point| point.work);
        let value = step.value.as_str().map_or_else(|| step.value.to_string(), str::to_string);
        let mut cells = vec![value, work.map_or_else(|| "-".to_string(), |work| format!("{:.0}", work.mean))];
        for measure in 0..tables.measures.len() {
            let mean = point.and_then(|point| point.measures.get(measure)?.mean);
            cells.push(mean.map_or_else(|| "-".to_string(), |mean| format!("{:.3}", mean.mean)));
            cells.push(words(step.over_before.get(measure).copied().flatten()));
        }
        cells.push(match step.falling.is_empty() {
            true => String::new(),
            false => format!("{} falls, the reward rises", step.falling.join(", ")),
        });
        lines.push(cells);
    }
    aligned(&lines)
}

/// A mean with its interval.
fn words(mean: Option<Mean>) -> String {
    mean.map_or_else(|| "-".to_string(), |Mean { mean, low, high, .. }| format!("{mean:.3} ({low:.3} to {high:.3})"))
}

/// A share with its interval, in percent.
fn share(mean: Option<Mean>) -> String {
    mean.map_or_else(
        || "-".to_string(),
        |Mean { mean, low, high, .. }| format!("{:.0} % ({:.0} to {:.0})", 100.0 * mean, 100.0 * low, 100.0 * high),
    )
}
