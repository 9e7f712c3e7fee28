//! Methods compared with each other: every one with every budget and seed over the same prompts, judged by judges that
//! no method sees.
//!
//! [`plan`] says what is compared, [`judge`] and [`gold`] what judges say, [`resample`], [`words`] and [`equal`] are
//! what [`tables`] are made with, and [`page`] shows them. A comparison is a folder: a file of rows for each point and
//! seed, and beside it a file of judgements for each judge. An interrupted comparison continues where it stopped.

pub mod equal;
pub mod gold;
pub mod judge;
pub mod page;
pub mod plan;
pub mod resample;
pub mod tables;
pub mod words;

use super::output::{Record, Row, read};
use crate::Result;
use judge::Judgement;
use plan::{ComparePlan, Judge, JudgeKind, Point};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tables::Answers;

/// Where a comparison comes from: what a reader needs to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version.
    pub ggro: String,
    /// The policy.
    pub policy: Option<String>,
    /// The reward model.
    pub reward: Option<String>,
    /// The prompts: a file, a task, or the demo's.
    pub prompts_of: String,
    /// The judges.
    pub judges: Vec<JudgedBy>,
    /// On what answers were made.
    pub device: String,
    /// The arithmetic of the models.
    pub arithmetic: String,
    /// Seeds of the methods that draw.
    pub seeds: Vec<u64>,
    /// Budget of new tokens; `None` is what suits the models.
    pub max_new_tokens: Option<usize>,
    /// The day that chat templates write, which is that of the first answer.
    pub date: String,
}

/// A judge of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedBy {
    /// Its name in tables.
    pub name: String,
    /// Who it is.
    pub by: String,
    /// From which score on an answer counts as covered.
    pub threshold: Option<f64>,
}

impl JudgedBy {
    /// A judge of a plan.
    pub fn new(judge: &Judge) -> JudgedBy {
        let by = match &judge.kind {
            JudgeKind::Reward(model) => format!("reward model {}", model.display()),
            JudgeKind::Guard(model) => format!("guard model {}", model.display()),
            JudgeKind::Answers => "right answers".to_string(),
            JudgeKind::Command(command) => format!("program {}", command.join(" ")),
            JudgeKind::Gold => "the demo's gold rule".to_string(),
        };
        JudgedBy { name: judge.name.clone(), by, threshold: judge.threshold }
    }
}

impl Provenance {
    /// Names and texts, in the order in which they are shown.
    pub fn lines(&self) -> Vec<(String, String)> {
        let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_string());
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let judges = self.judges.iter().map(|judge| {
            let covered = judge.threshold.map_or_else(String::new, |least| format!(", covered from {least}"));
            (format!("judge {}", judge.name), format!("{}{covered}", judge.by))
        });
        let own = [
            ("ggro", self.ggro.clone()),
            ("policy", or_none(&self.policy)),
            ("reward", or_none(&self.reward)),
            ("prompts", self.prompts_of.clone()),
        ];
        let rest = [
            ("device", format!("{} ({})", self.device, self.arithmetic)),
            ("seeds", seeds.join(", ")),
            ("max_new_tokens", self.max_new_tokens.map_or_else(|| "by default".to_string(), |n| n.to_string())),
            ("date", self.date.clone()),
        ];
        let named = |(name, text): (&str, String)| (name.to_string(), text);
        own.map(named).into_iter().chain(judges).chain(rest.map(named)).collect()
    }

    /// The same as an object of texts.
    pub fn about(&self) -> Map<String, Value> {
        self.lines().into_iter().map(|(name, text)| (name, Value::from(text))).collect()
    }
}

/// The file of a point's answers with a seed.
pub fn rows_path(folder: &Path, point: &Point, seed: u64) -> PathBuf {
    folder.join(format!("{}.seed{seed}.jsonl", point.name))
}

/// The file of a point's answers that were made one at a time, for their seconds.
pub fn alone_path(folder: &Path, point: &Point, seed: u64) -> PathBuf {
    folder.join(format!("{}.seed{seed}.alone.jsonl", point.name))
}

/// The file of what a judge says of a point's answers with a seed.
pub fn judged_path(folder: &Path, point: &Point, seed: u64, judge: &Judge) -> PathBuf {
    folder.join(format!("{}.seed{seed}.{}.jsonl", point.name, judge.name))
}

/// Reads all answers of a plan that are made and judged.
///
/// # Errors
/// A file cannot be read, or has something else in it.
pub fn answers(folder: &Path, plan: &ComparePlan) -> Result<Vec<Answers>> {
    let mut all = Vec::new();
    for (number, point) in plan.points.iter().enumerate() {
        for &seed in point.seeds(&plan.seeds) {
            let rows: Vec<Row> = read(&rows_path(folder, point, seed))?;
            let mut scores = Vec::new();
            for judge in &plan.judges {
                let judged: Vec<Judgement> = read_some(&judged_path(folder, point, seed, judge))?;
                scores.push(judged.iter().filter_map(|one| Some((one.index, one.score?))).collect());
            }
            all.push(Answers { point: number, seed, rows, scores });
        }
    }
    Ok(all)
}

/// Reads a file that may have no records: there may be nothing to judge, or what writes it ended before the first.
fn read_some<R: Record>(path: &Path) -> Result<Vec<R>> {
    match std::fs::metadata(path).is_ok_and(|found| found.len() == 0) {
        true => Ok(Vec::new()),
        false => read(path),
    }
}

/// Reads the answers that were made one at a time, as far as there are any.
///
/// # Errors
/// A file is there and cannot be read.
pub fn alone(folder: &Path, plan: &ComparePlan) -> Result<Vec<Answers>> {
    let mut all = Vec::new();
    for (number, point) in plan.points.iter().enumerate() {
        for &seed in point.seeds(&plan.seeds).iter().take(1) {
            let path = alone_path(folder, point, seed);
            let rows: Vec<Row> = if path.exists() { read_some(&path)? } else { Vec::new() };
            if !rows.is_empty() {
                all.push(Answers { point: number, seed, rows, scores: Vec::new() });
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_comparison_comes_from() {
        let from = Provenance {
            ggro: "1.0".to_string(),
            policy: Some("demo".to_string()),
            reward: None,
            prompts_of: "p.jsonl".to_string(),
            judges: vec![JudgedBy { name: "gold".to_string(), by: "a rule".to_string(), threshold: Some(2.0) }],
            device: "cpu".to_string(),
            arithmetic: "f32".to_string(),
            seeds: vec![0, 7],
            max_new_tokens: None,
            date: "2026-01-01".to_string(),
        };
        let about = from.about();
        let text = |name: &str| about.get(name).and_then(Value::as_str);
        assert_eq!((text("judge gold"), text("seeds")), (Some("a rule, covered from 2"), Some("0, 7")));
        assert_eq!((text("reward"), text("device")), (Some("none"), Some("cpu (f32)")));
        let names: Vec<&String> = about.keys().collect();
        assert_eq!(names[..4], ["ggro", "policy", "reward", "prompts"]);
    }

    #[test]
    fn files_without_records_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file: plan::PlanFile =
            serde_json::from_value(serde_json::json!({ "method": [{ "name": "greedy" }] })).unwrap();
        let plan = ComparePlan::new(&file).unwrap();
        let path = alone_path(folder.path(), &plan.points[0], 0);
        assert!(alone(folder.path(), &plan).unwrap().is_empty());
        std::fs::write(&path, "").unwrap();
        assert!(alone(folder.path(), &plan).unwrap().is_empty());
        std::fs::write(&path, "{}").unwrap();
        assert!(alone(folder.path(), &plan).is_err());
    }
}
