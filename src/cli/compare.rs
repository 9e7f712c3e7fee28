//! `ggro compare`.

mod judging;
mod text;

use self::text::text;
use super::args::{EngineArgs, Method, room};
use super::models::{
    Count, DeviceArgs, PairArgs, ProfileArgs, TemplateArgs, counting, files, made_on, note_without_template, noted,
};
use super::output::{Output, Paths, put_in_order};
use super::prompt::with_flags;
use super::run::{fits, options, sampling_config};
use super::say;
use super::words::{counted, for_stdout};
use crate::batch::compare::judge::{check_program, command_words};
use crate::batch::compare::page::page;
use crate::batch::compare::plan::{ComparePlan, Cost, Judge, JudgeKind, PlanFile, Point, PointMethod};
use crate::batch::compare::tables::Tables;
use crate::batch::compare::{JudgedBy, Provenance, alone, alone_path, answers, judged_path, rows_path};
use crate::batch::output::{MadeOn, Row, Rows, WRITTEN_BY, config_path, part_path, recorded};
use crate::batch::record::{PromptRecord, lay_out};
use crate::batch::tasks::{Dataset, Task};
use crate::batch::{Answering, Job, Setting, answer as answer_one, input, run as answer_all};
use crate::engine::{Engine, Settings};
use crate::error::Limit;
use crate::files::chat::Date;
use crate::files::checkpoint::read_whole_text;
use crate::files::demo;
use crate::files::pair::Pair;
use crate::files::place::{is_same_file, replace};
use crate::presets::Parameters;
use crate::profile::Level;
use crate::runtime::{Device, bytes_in_words};
use crate::text::{Next, Prompt, PromptLayout};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Compare methods over budgets and seeds, by judges that no method sees
///
/// A plan in TOML says which methods, budgets, seeds, prompts and judges (docs/running.md). Answers and judgements are
/// files in the output folder. An interrupted comparison continues where it stopped. Prints tables with 95 % intervals
/// over prompts (bootstrap), differences from the reference method prompt by prompt.
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

    /// A program that judges, with its arguments, besides the judges of the plan; it is called `command`
    ///
    /// Quotes and backslashes keep white space together, as in a shell. The program reads JSON lines and writes JSON
    /// lines with `index` and `score` (docs/running.md).
    #[arg(long, value_name = "PROGRAM", value_parser = judge_command)]
    judge_command: Option<JudgeCommand>,

    /// Pass over prompts that are too long for the context, instead of ending before the first answer
    #[arg(long)]
    skip_too_long: bool,

    /// Go on with files that were made on another kind of device, or by other kernels
    ///
    /// Answers may differ between them. Each row says what it was made on.
    #[arg(long)]
    mix_devices: bool,

    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

/// The words of --judge-command.
#[derive(Clone, Debug)]
struct JudgeCommand(Vec<String>);

fn judge_command(text: &str) -> std::result::Result<JudgeCommand, String> {
    command_words(text).map(JudgeCommand)
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (file, plan) = plan(args)?;
    let task = task(args, &file)?;
    check_models(args, &plan)?;
    // Before paths are compared: those in a folder that is not there yet are only as alike as they are written.
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io(&args.output, e))?;
    check_paths(args, &file, &plan)?;
    let html = args.html.as_deref().map(Output::check).transpose()?;
    let records = records(&file, task.as_ref())?;
    check_answers(args, &plan, task.as_ref(), &records)?;
    let date = pinned(args, &plan)?;
    let mut pair = args.pair.load()?;
    PairArgs::add_draft(&mut pair, args.engine.draft.model())?;
    TemplateArgs { date: Some(date), ..args.template.clone() }.set_up(&mut pair)?;
    note_without_template(&pair);
    // Whatever a judge lacks is found before the answers are made.
    let judges = plan.judges.iter().map(|judge| JudgeSource::new(args, date, judge)).collect::<Result<Vec<_>>>()?;
    let device = args.device.find()?;
    let comparison = Comparison::new(args, (&file, &plan), task, records, (pair, date), &device)?;
    for judge in &judges {
        comparison.check_judgements(judge).map_err(|error| judge.within(error))?;
    }
    comparison.answer(device)?;
    for judge in &judges {
        comparison.judge(judge).map_err(|error| judge.within(error))?;
    }
    let prompts: Vec<usize> = comparison.prompts.iter().map(|asked| asked.index).collect();
    let answers = answers(&args.output, &plan)?;
    let tables = Tables::new(&plan, &prompts, comparison.cost()?, &answers, &alone(&args.output, &plan)?);
    let provenance = comparison.provenance()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut object = serde_json::to_value(&provenance)?;
        if let (Value::Object(object), Value::Object(tables)) = (&mut object, serde_json::to_value(&tables)?) {
            object.extend(tables);
        }
        writeln!(out, "{object}")?;
    } else {
        write!(out, "{}", for_stdout(&text(&tables, &provenance)))?;
    }
    if let (Some(html), Some(path)) = (html, &args.html) {
        let page = page(&tables, &provenance.about(), &prompts, &answers);
        html.write(page.as_bytes())?;
        say(&format!("{}: {}", path.display(), bytes_in_words(page.len() as u64)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the plan.
fn plan(args: &Args) -> Result<(PlanFile, ComparePlan)> {
    let path = &args.plan;
    let text = read_whole_text(path, std::fs::File::open(path).map_err(|e| Error::io(path, e))?)?;
    let file: PlanFile = basic_toml::from_str(&text)
        .map_err(|e| Error::file(path, format!("expected a plan: {}", e.to_string().trim_end())))?;
    let wrong = |error: Error| Error::file(path, error.to_string());
    let mut plan = ComparePlan::new(&file).map_err(wrong)?;
    if plan.judges.is_empty() && args.pair.is_demo() {
        plan.judges.push(Judge::new("gold", JudgeKind::Gold));
    }
    if let Some(JudgeCommand(words)) = &args.judge_command {
        let judge = Judge::new("command", JudgeKind::Command(words.clone()));
        if plan.judges.iter().any(|other| other.name.eq_ignore_ascii_case(&judge.name)) {
            return Err(wrong(Error::invalid(
                "a judge is called command, as that of --judge-command; give it a `name`",
            )));
        }
        plan.judges.push(judge);
    }
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

/// Checks that every method and judge has the models that it needs.
fn check_models(args: &Args, plan: &ComparePlan) -> Result<()> {
    args.pair.needs_policy("a comparison")?;
    for point in &plan.points {
        if point.needs_reward() {
            args.pair.needs_reward(&format!("method {}", point.label))?;
        }
    }
    let gold = plan.judges.iter().find(|judge| judge.kind == JudgeKind::Gold);
    match gold.filter(|_| !args.pair.is_demo()) {
        Some(judge) => Err(Error::file(
            &args.plan,
            format!("judge {}: gold is the rule of the demo pair, and other models are given", judge.name),
        )),
        None => Ok(()),
    }
}

/// Checks that there are right answers, where they judge.
fn check_answers(args: &Args, plan: &ComparePlan, task: Option<&Task>, records: &[PromptRecord]) -> Result<()> {
    let has_answers = match task {
        Some(task) => task.dataset.has_answers(),
        None => records.iter().any(|record| record.answer.is_some()),
    };
    let right = plan.judges.iter().find(|judge| judge.kind == JudgeKind::Answers);
    match right.filter(|_| !has_answers) {
        Some(judge) => Err(Error::file(
            &args.plan,
            format!(
                "judge {}: no prompt has a right answer, as those of arc-challenge and with `answer` do",
                judge.name
            ),
        )),
        None => Ok(()),
    }
}

/// Checks that nothing that is read is written over. Files of the folder differ from each other by their names.
fn check_paths(args: &Args, file: &PlanFile, plan: &ComparePlan) -> Result<()> {
    let models = plan.judges.iter().filter_map(|judge| match &judge.kind {
        JudgeKind::Reward(model) | JudgeKind::Guard(model) => Some(model),
        JudgeKind::Answers | JudgeKind::Command(_) | JudgeKind::Gold => None,
    });
    let models: Vec<&PathBuf> = models.collect();
    let with = |written: &[PathBuf]| {
        let paths = Paths::default().reading([&args.plan]).reading(&file.prompts).reading(&file.input);
        let paths =
            paths.reading(models.iter().copied()).reading(args.pair.paths()).reading(&args.template.chat_template);
        let mut paths = paths.writing("--html", args.html.as_deref());
        for path in written {
            paths = paths.writing("--output", Some(path));
            paths = paths.writing("--output (its .config.json)", Some(&config_path(path)));
            paths = paths.writing("--output (its .part)", Some(&part_path(path)));
        }
        paths.writing("--trace-events", args.device.profile.trace_events.as_deref()).check()
    };
    with(&[plan_path(args)])?;
    for (point, seed) in files_of(plan) {
        let mut written = vec![rows_path(&args.output, point, seed), alone_path(&args.output, point, seed)];
        written.extend(plan.judges.iter().map(|judge| judged_path(&args.output, point, seed, judge)));
        with(&written)?;
    }
    Ok(())
}

/// Every point with each of its seeds.
fn files_of(plan: &ComparePlan) -> impl Iterator<Item = (&Point, u64)> {
    plan.points.iter().flat_map(|point| point.seeds(&plan.seeds).iter().map(move |&seed| (point, seed)))
}

fn plan_path(args: &Args) -> PathBuf {
    args.output.join("plan.json")
}

/// The date that chat templates write: the one given, that of the comparison so far, or today's.
fn pinned(args: &Args, plan: &ComparePlan) -> Result<Date> {
    let path = plan_path(args);
    let date_of = |options: &Map<String, Value>| -> Option<Date> { options.get("date")?.as_str()?.parse().ok() };
    let of_plan = match std::fs::File::open(&path) {
        Err(_) => None,
        Ok(file) => {
            let found: Value = serde_json::from_str(&read_whole_text(&path, file)?)
                .map_err(|e| Error::file(&path, format!("expected the plan of a comparison: {e}")))?;
            match found.as_object().filter(|found| found.contains_key("ggro") && found.contains_key("plan")) {
                Some(found) => date_of(found),
                None => return Err(Error::file(&path, "expected the plan of a comparison, found something else")),
            }
        }
    };
    // The plan is written once all files are opened; the first of them may be there already.
    let of_files =
        || files_of(plan).find_map(|(point, seed)| date_of(&recorded(&rows_path(&args.output, point, seed))?));
    Ok(args.template.date.or(of_plan).or_else(of_files).unwrap_or_else(Date::today))
}

fn records(file: &PlanFile, task: Option<&Task>) -> Result<Vec<PromptRecord>> {
    match (&file.prompts, task) {
        (_, Some(task)) => input::read(&file.input, Some(task)),
        (Some(path), None) => input::read(std::slice::from_ref(path), None),
        (None, None) => Ok(demo::prompts().into_iter().map(PromptRecord::of_text).collect()),
    }
}

/// A prompt that is answered.
struct ComparedPrompt {
    index: usize,
    prompt: Prompt,
    /// Tokens that fit behind it.
    room: usize,
}

/// A judge, ready to be asked.
struct JudgeSource<'a> {
    judge: &'a Judge,
    /// The model, if it is one.
    pair: Option<Arc<Pair>>,
}

impl<'a> JudgeSource<'a> {
    /// Reads a model's small files, and finds a program.
    fn new(args: &Args, date: Date, judge: &'a Judge) -> Result<Self> {
        let ready = || -> Result<Option<Arc<Pair>>> {
            let (path, pair) = match &judge.kind {
                JudgeKind::Reward(path) => (path, Pair::reward_only(&files(path)?)?),
                JudgeKind::Guard(path) => (path, Pair::policy_only(&files(path)?)?),
                JudgeKind::Command(command) => return check_program(command).map(|()| None),
                JudgeKind::Answers | JudgeKind::Gold => return Ok(None),
            };
            let mut pair = Arc::new(noted(pair));
            TemplateArgs { date: Some(date), ..TemplateArgs::default() }.set_up(&mut pair)?;
            if pair.chat().is_none() {
                return Err(Error::file(path, "a model that judges needs a chat template; this one has none"));
            }
            let is_own =
                |own: &PathBuf| own == path || is_same_file(&own.join("config.json"), &path.join("config.json"));
            if matches!(judge.kind, JudgeKind::Reward(_)) && args.pair.reward.as_ref().is_some_and(is_own) {
                say(&format!("note: judge {} is the reward model that the methods themselves look at", judge.name));
            }
            Ok(Some(pair))
        };
        let pair = ready().map_err(|error| within(judge, error))?;
        Ok(JudgeSource { judge, pair })
    }

    fn within(&self, error: Error) -> Error {
        within(self.judge, error)
    }
}

/// The error of a judge.
fn within(judge: &Judge, error: Error) -> Error {
    error.within(&format!("judge {}", judge.name))
}

/// A file of answers.
struct AnswerFile {
    jobs: Vec<Job>,
    rows: Rows,
    /// Whether they are made one at a time, with nothing kept from one to the next.
    alone: bool,
}

impl AnswerFile {
    fn missing(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| !self.rows.has(job.index))
    }
}

/// What is compared, ready to be answered.
struct Comparison<'a> {
    args: &'a Args,
    plan: &'a ComparePlan,
    concurrency: usize,
    task: Option<Task>,
    records: Vec<PromptRecord>,
    pair: Arc<Pair>,
    date: Date,
    prompts: Vec<ComparedPrompt>,
    /// Where they come from.
    prompts_of: String,
    made_on: MadeOn,
    arithmetic: String,
}

impl<'a> Comparison<'a> {
    fn new(
        args: &'a Args,
        (file, plan): (&PlanFile, &'a ComparePlan),
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
        let (mut prompts, mut too_long) = (Vec::new(), Vec::new());
        for (index, record) in records.iter().enumerate().take(count) {
            let asked = || -> Result<ComparedPrompt> {
                let prompt = lay_out(&pair, None, &record.messages, record.whole.as_ref(), next).map_err(with_flags)?;
                let len = prompt.ids.len();
                let of_room = |message: String| {
                    let (limit_of, found, limit) = (Limit::Context, len, context);
                    Error::TooLong { limit_of, found, limit, message }
                };
                if context <= len {
                    return Err(of_room(format!("its {len} tokens leave no room in the context of {context}")));
                }
                let asked = plan.max_new_tokens.map(|tokens| (tokens, "max_new_tokens"));
                let room = room(asked, len, context).map_err(|error| of_room(error.to_string()))?;
                Ok(ComparedPrompt { index, prompt, room })
            };
            match asked() {
                Ok(asked) => prompts.push(asked),
                Err(error @ Error::TooLong { .. }) if args.skip_too_long => too_long.push((index, error)),
                Err(error) => return Err(error.within(&format!("prompt {index}"))),
            }
        }
        if let Some((index, why)) = too_long.first() {
            let passed = counted(too_long.len(), "prompt");
            if prompts.is_empty() {
                let what = format!("--skip-too-long leaves none of {passed}; prompt {index}: {why}");
                return Err(Error::invalid(what));
            }
            say(&format!("note: --skip-too-long passed over {passed}; the first is prompt {index}: {why}"));
        }
        let mut seeds = plan.seeds.clone();
        seeds.sort_unstable();
        let close = seeds.windows(2).any(|pair| pair[1] - pair[0] < records.len().min(count) as u64);
        if close && plan.points.iter().any(Point::draws) {
            // What is drawn by the seed alone would be the same for neighbouring prompts, and intervals too narrow.
            say("note: seeds are closer together than there are prompts, so some prompts share their random numbers");
        }
        let prompts_of = match (&task, &file.prompts) {
            (Some(task), _) => {
                let input: Vec<String> = file.input.iter().map(|path| path.display().to_string()).collect();
                format!("{} of {}", task.dataset.name(), input.join(", "))
            }
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "those of the demo".to_string(),
        };
        let (concurrency, arithmetic) = (file.concurrency, device.arithmetic(args.device.dtype));
        let made_on = made_on(device);
        Ok(Comparison { args, plan, concurrency, task, records, pair, date, prompts, prompts_of, made_on, arithmetic })
    }

    /// Names of policy and reward model with their sizes.
    fn models(&self) -> [Option<String>; 2] {
        let [policy, reward] = self.args.pair.names();
        let named = |name: Option<String>, weights: Option<u64>| {
            name.zip(weights).map(|(name, weights)| format!("{name}, {weights} weights"))
        };
        [
            named(policy, self.pair.policy.as_ref().map(|model| model.config.num_parameters())),
            named(reward, self.pair.reward.as_ref().map(|model| model.config.num_parameters())),
        ]
    }

    /// Where the tables come from.
    fn provenance(&self) -> Result<Provenance> {
        let [policy, reward] = self.models();
        // It is the same for all methods.
        let parameters = self.plan.points.first().map(|point| self.parameters(point)).transpose()?;
        Ok(Provenance {
            ggro: env!("CARGO_PKG_VERSION").to_string(),
            policy,
            reward,
            prompts_of: self.prompts_of.clone(),
            judges: self.plan.judges.iter().map(JudgedBy::new).collect(),
            device: self.made_on.to_string(),
            arithmetic: self.arithmetic.clone(),
            seeds: self.plan.seeds.clone(),
            max_new_tokens: parameters.map(|parameters| parameters.max_new_tokens),
            date: self.date.to_string(),
        })
    }

    /// The flags for a device that is found once more. What is watched is watched already: a trace would begin anew.
    fn once_more(&self) -> DeviceArgs {
        let profile = ProfileArgs { nvtx: Level::Off, profile_steps: None, trace_events: None };
        DeviceArgs { profile, ..self.args.device.clone() }
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

    /// Whether answers of a point are scored. Those that are made alone are scored only if the method looks at rewards,
    /// so that no other method's seconds have a reward in them.
    fn scored(&self, point: &Point, alone: bool) -> bool {
        self.args.pair.has_reward() && (!alone || point.needs_reward())
    }

    /// The prompts with a point's parameters and a seed. A prompt's own seed follows from its number, as in `ggro run`.
    fn jobs(&self, point: &Point, seed: u64, alone: bool) -> Result<Vec<Job>> {
        let parameters = self.parameters(point)?;
        let method = if point.way == PointMethod::Greedy { Method::Greedy } else { Method::Ggro };
        let answering = point.answering(self.scored(point, alone));
        let job = |asked: &ComparedPrompt| -> Result<Job> {
            let named = |error: Error| error.within(&format!("method {}: prompt {}", point.name, asked.index));
            let record = self.records.get(asked.index).cloned();
            let record = record.ok_or_else(|| Error::Backend("a prompt without its record".to_string()))?;
            let options = options(method, &parameters, &self.pair, &asked.prompt, asked.room).map_err(named)?;
            if let Answering::Searched { method, .. } = &answering {
                // Some parameters have to fit the prompt.
                method.strategy(asked.prompt.ids.len(), options.max_new_tokens).map_err(named)?;
            }
            Ok(Job {
                index: asked.index,
                record,
                prompt: asked.prompt.clone(),
                options,
                seed: seed.wrapping_add(asked.index as u64),
                answering: answering.clone(),
                retokenize: false,
            })
        };
        self.prompts.iter().map(job).collect()
    }

    /// All that a point's answers depend on besides their prompts.
    fn config(&self, point: &Point, seed: u64, alone: bool) -> Result<Map<String, Value>> {
        let [policy, reward] = self.models();
        let mut config = Map::new();
        config.insert("ggro".to_string(), json!(env!("CARGO_PKG_VERSION")));
        config.insert(WRITTEN_BY.to_string(), json!("compare"));
        config.insert("policy".to_string(), json!(policy));
        config.insert("reward".to_string(), json!(reward));
        config.insert("arithmetic".to_string(), json!(self.arithmetic));
        self.made_on.record(&mut config);
        let mut set = |name: &str, value: Value| drop(config.insert(name.to_string(), value));
        set("task", json!(self.task.as_ref().map(|task| task.dataset.name())));
        set("method", json!(point.label));
        if alone {
            set("alone", json!(true));
            set("scored", json!(self.scored(point, alone)));
        }
        match point.answering(self.scored(point, alone)) {
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
        set("greedy", json!(point.way == PointMethod::Greedy));
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
    fn answer(&self, device: Device) -> Result<()> {
        // Every file is opened before the first answer, so that one that does not fit is found early.
        let mut opened: Vec<AnswerFile> = Vec::new();
        for (point, seed) in files_of(self.plan) {
            opened.push(self.open(&rows_path(&self.args.output, point, seed), (point, seed), false)?);
        }
        let timed = self.args.time.unwrap_or(0).min(self.prompts.len());
        for point in &self.plan.points {
            for &seed in point.seeds(&self.plan.seeds).iter().take(1) {
                let path = alone_path(&self.args.output, point, seed);
                // One that is there is read for the tables, and may end in the middle of a row.
                if timed > 0 || path.exists() {
                    let mut one = self.open(&path, (point, seed), true)?;
                    one.jobs.truncate(timed);
                    opened.push(one);
                }
            }
        }
        self.record_plan()?;
        let all: usize = opened.iter().map(|one| one.jobs.len()).sum();
        let there = all - opened.iter().map(|one| one.missing().count()).sum::<usize>();
        if there > 0 {
            let are = if all == 1 { "is" } else { "are" };
            say(&format!("{there} of {} {are} there already", counted(all, "answer")));
        }
        if there < all {
            let count = counting(all, there, "answer");
            count.goes_on(&self.args.output);
            let ran = self.answer_missing(&mut opened, device, &count);
            count.bar.finish_and_clear();
            ran?;
        }
        opened.into_iter().try_for_each(|one| put_in_order(one.rows, there == all))
    }

    /// Makes the answers that are missing: first those that may run beside each other, then those that are made alone,
    /// by an engine of their own that keeps no prompt.
    fn answer_missing(&self, opened: &mut [AnswerFile], device: Device, count: &Count) -> Result<()> {
        let (mut found, task) = (Some(device), self.task.as_ref());
        for alone in [false, true] {
            let part: Vec<&mut AnswerFile> =
                opened.iter_mut().filter(|one| one.alone == alone && one.missing().next().is_some()).collect();
            if part.is_empty() {
                continue;
            }
            let mut device = match found.take() {
                Some(device) => device,
                None => self.once_more().find()?,
            };
            let concurrency = if alone { 1 } else { self.concurrency };
            let usual = self.args.engine.settings(concurrency);
            let settings = if alone { Settings { cached_prompts: 0, ..usual } } else { usual };
            let (flags, for_engine, max_len) =
                (self.args.device.clone(), self.pair.clone(), self.args.pair.max_model_len);
            let engine =
                Engine::start(settings, move || Ok(flags.open(&mut device, &for_engine, max_len)?.into_backend()))?;
            let setting = Setting { concurrency, made_on: self.made_on.clone() };
            for AnswerFile { jobs, rows, .. } in part {
                // What a method does for the first time takes longer. That answer is not recorded.
                if let Some(job) = jobs.iter().find(|job| alone && !rows.has(job.index)) {
                    answer_one(&engine, &self.pair.tokenizer, task, job)?;
                }
                answer_all(&engine, &self.pair.tokenizer, task, jobs, &setting, rows, &|_: &Row| count.bar.inc(1))?;
            }
        }
        Ok(())
    }

    fn open(&self, path: &Path, (point, seed): (&Point, u64), alone: bool) -> Result<AnswerFile> {
        let (config, jobs) = (self.config(point, seed, alone)?, self.jobs(point, seed, alone)?);
        let fits = |row: &Row| fits(row, &self.records, &jobs, &self.pair);
        let rows = Rows::open::<Row>(path, &config, self.args.mix_devices, &fits)?;
        Ok(AnswerFile { jobs, rows, alone })
    }
}
