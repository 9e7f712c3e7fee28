//! What is compared: methods with their budgets, seeds, prompts and judges, as a plan file says it.

use crate::baselines::Baseline;
use crate::batch::Answering;
use crate::method::{PROPOSALS, Proposals};
use crate::presets::Given;
use crate::sampling::Sampling;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Samples of best-of-N, if the plan does not say.
const BEST_OF: usize = 8;

/// For how long a program that judges may write no line, in seconds, if the plan does not say.
const PATIENCE: u64 = 600;

/// A week.
const MOST_PATIENCE: u64 = 7 * 24 * 3600;

/// Names that stand for something else in a file's name or a table.
const TAKEN: [&str; 2] = ["reward", "alone"];

/// A plan file. Paths and names of models are read as those of flags are: from the working directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// A file of prompts.
    pub prompts: Option<PathBuf>,
    /// A task of the official code, whose dataset is in `input`.
    pub task: Option<String>,
    /// The files of the task's dataset.
    #[serde(default)]
    pub input: Vec<PathBuf>,
    /// How many prompts, from the first; all if it is not given.
    pub num_prompts: Option<usize>,
    /// Seeds of the methods that draw.
    #[serde(default = "first_seeds")]
    pub seeds: Vec<u64>,
    /// Budget of new tokens, of every method.
    pub max_new_tokens: Option<usize>,
    /// Prompts that are answered at the same time.
    #[serde(default = "usual_concurrency")]
    pub concurrency: usize,
    /// The label of the method that others are compared with.
    pub reference: Option<String>,
    /// Levels of work of the table at equal work, in policy token-forwards of an answer.
    #[serde(default)]
    pub work: Vec<f64>,
    /// What a token of the reward model costs, in policy token-forwards.
    pub cost: Option<Cost>,
    /// The methods.
    #[serde(default)]
    pub method: Vec<Map<String, Value>>,
    /// The judges.
    #[serde(default)]
    pub judge: Vec<JudgeFile>,
}

fn first_seeds() -> Vec<u64> {
    // Further apart than there are prompts: a prompt's own seed is one of these and its number.
    vec![0, 1_000_000, 2_000_000]
}

fn usual_concurrency() -> usize {
    16
}

/// What a token of the reward model costs, in policy token-forwards.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Of a token that goes through it.
    pub reward_forward: f64,
    /// Of a token that it is differentiated at.
    pub reward_backward: f64,
}

/// A judge, as a plan file has it: one of `reward`, `guard`, `answers`, `command` and `gold`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeFile {
    name: Option<String>,
    reward: Option<PathBuf>,
    guard: Option<PathBuf>,
    answers: Option<bool>,
    command: Option<Vec<String>>,
    gold: Option<bool>,
    threshold: Option<f64>,
    timeout_seconds: Option<u64>,
}

/// Who judges.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JudgeKind {
    /// A second reward model: its reward.
    Reward(PathBuf),
    /// A guard model: 1 for safe, 0 for unsafe.
    Guard(PathBuf),
    /// The right answers of the prompts: 1 for right, 0 for wrong.
    Answers,
    /// A program with its arguments: what it says.
    Command(Vec<String>),
    /// The demo's gold rule.
    Gold,
}

/// A judge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judge {
    /// Its name in files and tables.
    pub name: String,
    /// Who it is.
    pub kind: JudgeKind,
    /// From which score on an answer counts as covered.
    pub threshold: Option<f64>,
    /// For how long a program may write no line, in seconds.
    pub timeout_seconds: u64,
}

impl Judge {
    /// A judge without a threshold.
    pub fn new(name: &str, kind: JudgeKind) -> Judge {
        Judge { name: name.to_string(), kind, threshold: None, timeout_seconds: PATIENCE }
    }
}

/// How a point's answers are made.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointMethod {
    /// Greedily.
    Greedy,
    /// By GGRO with these parameters.
    Ggro(Given),
    /// By samples: one, or the best of several.
    Sampled(usize),
    /// By a method that GGRO is compared with.
    Searched(Baseline),
}

/// A method with a budget: one point of its curve.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The label and the budget's value: `ggro@8`. It is the beginning of the names of its files.
    pub name: String,
    /// The method's label.
    pub label: String,
    /// The parameter that is varied, with its value here.
    pub budget: Option<(String, Value)>,
    /// How answers are made.
    pub way: PointMethod,
    /// How tokens are sampled, where any are.
    pub sampling: SamplingGiven,
}

/// How tokens are sampled, as far as a plan says it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingGiven {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    repetition_penalty: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
}

impl Default for SamplingGiven {
    fn default() -> Self {
        let Sampling { top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } =
            Sampling::default();
        // As `ggro run` samples.
        let temperature = 1.0;
        SamplingGiven { temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty }
    }
}

impl SamplingGiven {
    /// Complete; the seed is that of a job.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            ..Sampling::default()
        }
    }
}

impl Point {
    /// Whether answers depend on the seed.
    pub fn draws(&self) -> bool {
        match &self.way {
            PointMethod::Greedy => false,
            PointMethod::Ggro(given) => given.draws(),
            PointMethod::Sampled(_) => true,
            PointMethod::Searched(method) => method.samples(),
        }
    }

    /// Whether the method looks at rewards. Where it does not, an answer's reward is a measurement and not its work.
    pub fn needs_reward(&self) -> bool {
        match &self.way {
            PointMethod::Greedy | PointMethod::Sampled(1) => false,
            // One step is the greedy answer.
            PointMethod::Ggro(given) => given.num_refinement_steps != Some(1),
            PointMethod::Sampled(_) | PointMethod::Searched(_) => true,
        }
    }

    /// The seeds of its files: all of the plan's, or the first alone.
    pub fn seeds<'a>(&self, seeds: &'a [u64]) -> &'a [u64] {
        if self.draws() { seeds } else { seeds.get(..1).unwrap_or_default() }
    }

    /// How a prompt is answered; `scored`: there is a reward model.
    pub fn answering(&self, scored: bool) -> Answering {
        let sampling = self.sampling.sampling();
        match &self.way {
            PointMethod::Searched(method) if method.samples() => {
                Answering::Searched { sampling, method: method.clone() }
            }
            PointMethod::Searched(method) => {
                Answering::Searched { sampling: Sampling::default(), method: method.clone() }
            }
            PointMethod::Sampled(n) => Answering::Sampled { sampling, n: *n, scored },
            PointMethod::Greedy | PointMethod::Ggro(_) if scored => Answering::Guided,
            PointMethod::Greedy | PointMethod::Ggro(_) => {
                Answering::Sampled { sampling: Sampling::default(), n: 1, scored }
            }
        }
    }

    /// The parameters that are given, with the plan's budget of tokens.
    pub fn given(&self, max_new_tokens: Option<usize>) -> Given {
        let given = match &self.way {
            PointMethod::Ggro(given) => given.clone(),
            _ => Given::default(),
        };
        Given { max_new_tokens, ..given }
    }
}

/// What is compared, checked.
#[derive(Clone, Debug, Serialize)]
pub struct ComparePlan {
    /// Every method with every budget, in the order of the file.
    pub points: Vec<Point>,
    /// The judges.
    pub judges: Vec<Judge>,
    /// Seeds of what is drawn.
    pub seeds: Vec<u64>,
    /// Budget of new tokens, if it is given.
    pub max_new_tokens: Option<usize>,
    /// The name of the point that others are compared with.
    pub reference: String,
    /// Levels of work, in policy token-forwards of an answer; empty if they are not given.
    pub work: Vec<f64>,
    /// What tokens of the reward model cost, if it is given.
    pub cost: Option<Cost>,
}

impl ComparePlan {
    /// Checks a plan file. The prompts are left to the caller.
    ///
    /// # Errors
    /// What is wrong, with the name of the method or judge that it is about.
    pub fn new(file: &PlanFile) -> Result<ComparePlan> {
        if file.method.is_empty() {
            return Err(Error::invalid("expected a [[method]], found none"));
        }
        if file.seeds.is_empty() || file.seeds.iter().collect::<BTreeSet<_>>().len() < file.seeds.len() {
            return Err(Error::invalid("seeds: expected one or more, each once"));
        }
        if file.work.iter().any(|level| !(level.is_finite() && *level > 0.0)) {
            return Err(Error::invalid("work: expected numbers above 0"));
        }
        let costs = file.cost.iter().flat_map(|cost| [cost.reward_forward, cost.reward_backward]);
        if costs.into_iter().any(|cost| !(cost.is_finite() && cost >= 0.0)) {
            return Err(Error::invalid("cost: expected numbers of at least 0"));
        }
        if !(1..=4096).contains(&file.concurrency) {
            return Err(Error::invalid(format!("concurrency: expected 1 to 4096, found {}", file.concurrency)));
        }
        if file.max_new_tokens == Some(0) {
            return Err(Error::invalid("max_new_tokens: expected 1 or more, found 0"));
        }
        let mut points: Vec<Point> = Vec::new();
        let mut labels = Vec::new();
        for method in &file.method {
            let found = of_method(method)?;
            labels.extend(found.first().map(|point| point.label.clone()));
            points.extend(found);
        }
        // A label is one line of the tables at equal work, and one curve.
        once("method", labels.iter(), "give each a `label` of its own")?;
        let judges = file.judge.iter().map(JudgeFile::judge).collect::<Result<Vec<_>>>()?;
        // Some file systems do not tell large letters from small ones.
        once("method", points.iter().map(|point| &point.name), "give each a `label` of its own")?;
        once("judge", judges.iter().map(|judge| &judge.name), "give each a `name` of its own")?;
        let reference = match &file.reference {
            None => points.first(),
            Some(name) => {
                // Of a label with several budgets the last: a reference that spends less would flatter the others.
                let exact = points.iter().find(|point| point.name == *name);
                exact.or_else(|| points.iter().rfind(|point| point.label == *name))
            }
        };
        let Some(reference) = reference.map(|point| point.name.clone()) else {
            let names: Vec<&str> = points.iter().map(|point| point.name.as_str()).collect();
            return Err(Error::invalid(format!("reference: expected one of {}", names.join(", "))));
        };
        let (seeds, max_new_tokens, cost) = (file.seeds.clone(), file.max_new_tokens, file.cost);
        let mut work = file.work.clone();
        work.sort_by(f64::total_cmp);
        Ok(ComparePlan { points, judges, seeds, max_new_tokens, reference, work, cost })
    }
}

/// Checks that no name is there twice.
fn once<'a>(what: &str, names: impl Iterator<Item = &'a String>, advice: &str) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.to_lowercase()) {
            return Err(Error::invalid(format!("{what} {name} is there twice; {advice}")));
        }
    }
    Ok(())
}

/// Checks that a name can be a part of a file's name.
fn of_file(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    match !name.is_empty() && name.len() <= 64 && name.chars().all(allowed) && !name.starts_with('.') {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{name:?} is a part of a file's name: expected letters, digits, -, _, + and ., 64 at most"
        ))),
    }
}

/// The points of a method: one for each value of its budget, or one without a budget.
fn of_method(fields: &Map<String, Value>) -> Result<Vec<Point>> {
    let Some(name) = fields.get("name").and_then(Value::as_str) else {
        return Err(Error::invalid("a method needs a `name`, such as \"ggro\""));
    };
    let label = match fields.get("label") {
        None => name,
        Some(Value::String(label)) => label,
        Some(_) => return Err(Error::invalid(format!("{name}: label: expected a text"))),
    };
    let points = || {
        of_file(label)?;
        let sampling = match fields.get("sampling") {
            None => SamplingGiven::default(),
            Some(given) => {
                serde_json::from_value(given.clone()).map_err(|e| Error::invalid(format!("sampling: {e}")))?
            }
        };
        let mut parameters = fields.clone();
        parameters.retain(|key, _| !["name", "label", "sampling", "budget"].contains(&key.as_str()));
        // TOML has infinities and NaN; JSON, which parameters are read as, makes null of them, and that would mean "not given".
        if let Some((key, _)) = parameters.iter().find(|(_, value)| value.is_null()) {
            return Err(Error::invalid(format!("{key}: expected a finite number")));
        }
        let point = |budget: Option<(String, Value)>| -> Result<Point> {
            let mut parameters = parameters.clone();
            let mut point_name = label.to_string();
            if let Some((parameter, value)) = &budget {
                if value.is_null() {
                    return Err(Error::invalid(format!("budget: {parameter}: expected finite numbers")));
                }
                let words = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                of_file(&words).map_err(|error| error.within("budget"))?;
                point_name += &format!("@{words}");
                if parameters.insert(parameter.clone(), value.clone()).is_some() {
                    return Err(Error::invalid(format!("{parameter} is both a parameter and the budget")));
                }
            }
            let way = way(name, &parameters)?;
            let samples = match &way {
                PointMethod::Sampled(_) => true,
                PointMethod::Searched(method) => method.samples(),
                PointMethod::Greedy | PointMethod::Ggro(_) => false,
            };
            if !samples && fields.contains_key("sampling") {
                return Err(Error::invalid("sampling: the method samples no tokens"));
            }
            sampling.sampling().check(usize::MAX).map_err(|error| error.within("sampling"))?;
            Ok(Point { name: point_name, label: label.to_string(), budget, way, sampling })
        };
        let expected =
            || Error::invalid("budget: expected one parameter with a list of values, { PARAMETER = [1, 2] }");
        match fields.get("budget") {
            None => Ok(vec![point(None)?]),
            Some(Value::Object(budget)) if budget.len() == 1 => {
                let mut found = Vec::new();
                for (parameter, values) in budget {
                    let values = values.as_array().filter(|values| !values.is_empty()).ok_or_else(expected)?;
                    for value in values {
                        found.push(point(Some((parameter.clone(), value.clone())))?);
                    }
                }
                Ok(found)
            }
            Some(_) => Err(expected()),
        }
    };
    points().map_err(|error: Error| error.within(&format!("method {label}")))
}

/// How a method of this name answers with these parameters.
fn way(name: &str, parameters: &Map<String, Value>) -> Result<PointMethod> {
    let none_but = |known: &[&str]| match parameters.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) if known.is_empty() => Err(Error::invalid(format!("there is no parameter {key:?}; there are none"))),
        Some(key) => Err(Error::invalid(format!("there is no parameter {key:?}; there are {}", known.join(", ")))),
    };
    match name {
        "greedy" => none_but(&[]).map(|()| PointMethod::Greedy),
        "sample" => none_but(&[]).map(|()| PointMethod::Sampled(1)),
        "bon" => {
            none_but(&["n"])?;
            let n = parameters.get("n").map_or(Some(BEST_OF as u64), Value::as_u64);
            let n = n.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=128).contains(n));
            n.map(PointMethod::Sampled).ok_or_else(|| Error::invalid("n: expected a whole number, 1 to 128"))
        }
        _ if name == "ggro" || Proposals::of_method(name).is_some() => {
            // What a field is, one at a time, so that the message has its name.
            const KNOWN: [&str; 9] = [
                "signal",
                "entropy_threshold",
                "num_refinement_steps",
                "nudge_top_k",
                "nudge_temperature",
                "nudge_selection",
                "min_generated",
                "proposals",
                "logprob_weight",
            ];
            if parameters.contains_key("max_new_tokens") {
                return Err(Error::invalid("max_new_tokens belongs to the plan: it is the same for all methods"));
            }
            none_but(&KNOWN)?;
            let mut given = Given::default();
            for (key, value) in parameters {
                let one = serde_json::from_value::<Given>(json!({ key.as_str(): value }));
                given = one.map_err(|e| Error::invalid(format!("{key}: {e}")))?.or(given);
            }
            match (Proposals::of_method(name), given.proposals) {
                (Some(own), Some(other)) if own != other => {
                    Err(Error::invalid(format!("proposals: {name} has {:?}, not {:?}", own.name(), other.name())))
                }
                (own, other) => Ok(PointMethod::Ggro(Given { proposals: own.or(other), ..given })),
            }
        }
        _ if Baseline::NAMES.contains(&name) => Baseline::named(name, parameters).map(PointMethod::Searched),
        _ => {
            let controls = PROPOSALS.map(|proposals| format!("ggro-{}", proposals.name()));
            let controls = controls.iter().map(String::as_str).filter(|name| Proposals::of_method(name).is_some());
            let names = controls.chain(Baseline::NAMES).collect::<Vec<_>>().join(", ");
            Err(Error::invalid(format!("there is no method {name:?}; there are greedy, sample, bon, ggro, {names}")))
        }
    }
}

impl JudgeFile {
    fn judge(&self) -> Result<Judge> {
        let kinds = [
            self.reward.clone().map(|model| ("judge-reward", JudgeKind::Reward(model))),
            self.guard.clone().map(|model| ("guard", JudgeKind::Guard(model))),
            self.answers.filter(|&on| on).map(|_| ("answers", JudgeKind::Answers)),
            self.command.clone().map(|command| ("command", JudgeKind::Command(command))),
            self.gold.filter(|&on| on).map(|_| ("gold", JudgeKind::Gold)),
        ];
        let mut found = kinds.into_iter().flatten();
        let (Some((usual, kind)), None) = (found.next(), found.next()) else {
            return Err(Error::invalid(
                "a judge is one of reward = \"MODEL\", guard = \"MODEL\", answers = true, command = [\"PROGRAM\"], gold = true",
            ));
        };
        let name = self.name.clone().unwrap_or_else(|| usual.to_string());
        let within = |error: Error| error.within(&format!("judge {name}"));
        of_file(&name).map_err(within)?;
        // `a.seed0.b.jsonl` has to be one file of one judge.
        let of_seed = name.to_lowercase().strip_prefix("seed").is_some_and(|rest| rest.parse::<u64>().is_ok());
        if of_seed || TAKEN.contains(&name.to_lowercase().as_str()) {
            return Err(within(Error::invalid("the name stands for something else already")));
        }
        if name.contains('.') {
            return Err(within(Error::invalid(
                "name: expected one without a full stop, which parts the names of files",
            )));
        }
        if matches!(&kind, JudgeKind::Command(command) if command.is_empty()) {
            return Err(within(Error::invalid("command: expected a program, found none")));
        }
        if self.threshold.is_some_and(|threshold| !threshold.is_finite()) {
            return Err(within(Error::invalid("threshold: expected a finite number")));
        }
        if self.timeout_seconds.is_some() && !matches!(kind, JudgeKind::Command(_)) {
            return Err(within(Error::invalid("timeout_seconds: is for programs alone")));
        }
        let timeout_seconds = self.timeout_seconds.unwrap_or(PATIENCE);
        if !(1..=MOST_PATIENCE).contains(&timeout_seconds) {
            let found = format!("timeout_seconds: expected 1 to {MOST_PATIENCE}, found {timeout_seconds}");
            return Err(within(Error::invalid(found)));
        }
        Ok(Judge { name, kind, threshold: self.threshold, timeout_seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(file: Value) -> Result<ComparePlan> {
        let file: PlanFile = serde_json::from_value(file).map_err(|e| Error::invalid(e.to_string()))?;
        ComparePlan::new(&file)
    }

    #[test]
    fn every_value_of_a_budget_is_a_point() {
        let found = plan(json!({
            "seeds": [3, 4],
            "method": [
                { "name": "greedy" },
                { "name": "ggro", "nudge_top_k": 10, "budget": { "num_refinement_steps": [2, 8] } },
                { "name": "ggro-random", "label": "random" },
                { "name": "bon", "sampling": { "temperature": 0.7 }, "budget": { "n": [2] } },
                { "name": "args", "budget": { "k": [2] } },
                { "name": "ggro", "label": "once", "num_refinement_steps": 1 },
            ],
            "judge": [{ "gold": true, "threshold": 2.0 }, { "command": ["judge"], "name": "mine" }],
        }))
        .unwrap();
        let names: Vec<&str> = found.points.iter().map(|point| point.name.as_str()).collect();
        assert_eq!(names, ["greedy", "ggro@2", "ggro@8", "random", "bon@2", "args@2", "once"]);
        let seeds: Vec<usize> = found.points.iter().map(|point| point.seeds(&found.seeds).len()).collect();
        assert_eq!(seeds, [1, 1, 1, 2, 2, 1, 1]);
        let needs: Vec<bool> = found.points.iter().map(Point::needs_reward).collect();
        assert_eq!(needs, [false, true, true, true, true, true, false]);
        let PointMethod::Ggro(given) = &found.points[2].way else { panic!("{:?}", found.points[2]) };
        assert_eq!((given.num_refinement_steps, given.nudge_top_k), (Some(8), Some(10)));
        assert!(matches!(&found.points[3].way, PointMethod::Ggro(given) if given.proposals == Some(Proposals::Random)));
        assert_eq!(found.points[2].given(Some(9)).max_new_tokens, Some(9));
        assert_eq!(found.points[4].sampling.sampling().temperature, 0.7);
        let with = |reference: &str| {
            let methods = json!([{ "name": "bon", "budget": { "n": [2, 8] } }]);
            plan(json!({ "method": methods, "reference": reference })).unwrap().reference
        };
        assert_eq!((with("bon"), with("bon@2")), ("bon@8".to_string(), "bon@2".to_string()));
        assert_eq!((found.reference.as_str(), found.judges[1].name.as_str()), ("greedy", "mine"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let methods = |methods: Value| json!({ "method": methods });
        for (file, words) in [
            (json!({ "methods": [] }), "unknown field `methods`"),
            (json!({}), "expected a [[method]]"),
            (methods(json!([{ "label": "a" }])), "a method needs a `name`"),
            (methods(json!([{ "name": "best" }])), "method best: there is no method \"best\"; there are greedy"),
            (methods(json!([{ "name": "greedy", "n": 2 }])), "method greedy: there is no parameter \"n\""),
            (methods(json!([{ "name": "ggro-all", "proposals": "random" }])), "ggro-all has \"all\", not \"random\""),
            (methods(json!([{ "name": "ggro-gradient" }])), "ggro-gradient"),
            (methods(json!([{ "name": "ggro", "nudge_topk": 2 }])), "there is no parameter \"nudge_topk\""),
            (methods(json!([{ "name": "ggro", "nudge_top_k": "a" }])), "method ggro: nudge_top_k: invalid type"),
            (methods(json!([{ "name": "ggro", "max_new_tokens": 2 }])), "belongs to the plan"),
            (methods(json!([{ "name": "bon", "n": 0 }])), "method bon: n: expected"),
            (methods(json!([{ "name": "bon", "budget": { "n": [] } }])), "budget: expected one parameter"),
            (methods(json!([{ "name": "bon", "n": 1, "budget": { "n": [2] } }])), "both a parameter and the budget"),
            (methods(json!([{ "name": "bon", "sampling": { "heat": 1 } }])), "sampling: unknown field `heat`"),
            (methods(json!([{ "name": "bon", "sampling": { "top_p": 0.0 } }])), "method bon: sampling: "),
            (methods(json!([{ "name": "args", "sampling": {} }])), "the method samples no tokens"),
            (methods(json!([{ "name": "bon" }, { "name": "bon" }])), "method bon is there twice"),
            (
                methods(json!([{ "name": "bon", "budget": { "n": [2] } }, { "name": "bon", "budget": { "n": [4] } }])),
                "method bon is there twice",
            ),
            (methods(json!([{ "name": "ggro", "entropy_threshold": null }])), "entropy_threshold: expected a finite"),
            (
                methods(json!([{ "name": "ggro", "budget": { "entropy_threshold": [1.0, null] } }])),
                "budget: entropy_threshold: expected finite numbers",
            ),
            (methods(json!([{ "name": "bon", "label": "../a" }])), "is a part of a file's name"),
            (methods(json!([{ "name": "cards" }])), "target_reward must be given"),
            (json!({ "method": [{ "name": "bon" }], "reference": "greedy" }), "reference: expected one of bon"),
            (json!({ "method": [{ "name": "bon" }], "seeds": [1, 1] }), "seeds: expected one or more, each once"),
            (json!({ "method": [{ "name": "bon" }], "judge": [{}] }), "a judge is one of"),
            (
                json!({ "method": [{ "name": "bon" }], "judge": [{ "gold": true, "answers": true }] }),
                "a judge is one of",
            ),
            (json!({ "method": [{ "name": "bon" }], "judge": [{ "gold": true, "name": "alone" }] }), "judge alone: "),
            (json!({ "method": [{ "name": "bon" }], "judge": [{ "gold": true, "name": "seed0" }] }), "judge seed0: "),
            (
                json!({ "method": [{ "name": "bon" }], "judge": [{ "gold": true, "name": "a.b" }] }),
                "judge a.b: name: expected one without a full stop",
            ),
            (
                json!({ "method": [{ "name": "bon" }], "judge": [{ "command": ["a"], "timeout_seconds": 0 }] }),
                "judge command: timeout_seconds: expected 1 to 604800, found 0",
            ),
            (
                json!({ "method": [{ "name": "bon" }], "judge": [{ "gold": true, "timeout_seconds": 9 }] }),
                "judge gold: timeout_seconds: is for programs alone",
            ),
        ] {
            let error = plan(file.clone()).unwrap_err().to_string();
            assert!(error.contains(words), "{file}: {error}");
        }
    }
}
