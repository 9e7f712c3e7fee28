//! Methods compared with each other: every one with every budget and seed over the same prompts, judged by judges that no method
//! sees.
//!
//! [`plan`] says what is compared, [`judge`] and [`gold`] what judges say, [`resample`], [`words`] and [`equal`] are what
//! [`tables`] are made with, and [`page`] shows them. A comparison is a folder: a file of rows for each point and seed, and beside
//! it a file of judgements for each judge. All of them are gone on with as those of a run are.

pub mod equal;
pub mod gold;
pub mod judge;
pub mod page;
pub mod plan;
pub mod resample;
pub mod tables;
pub mod words;

use super::output::{Row, read};
use crate::Result;
use judge::Judgement;
use plan::{Judge, Plan, Point};
use std::path::{Path, PathBuf};
use tables::Answers;

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
pub fn answers(folder: &Path, plan: &Plan) -> Result<Vec<Answers>> {
    let mut all = Vec::new();
    for (number, point) in plan.points.iter().enumerate() {
        for &seed in point.seeds(&plan.seeds) {
            let rows: Vec<Row> = read(&rows_path(folder, point, seed))?;
            let mut scores = Vec::new();
            for judge in &plan.judges {
                let judged: Vec<Judgement> = read(&judged_path(folder, point, seed, judge))?;
                scores.push(judged.iter().filter_map(|one| Some((one.index, one.score?))).collect());
            }
            all.push(Answers { point: number, seed, rows, scores });
        }
    }
    Ok(all)
}

/// Reads the answers that were made one at a time, as far as there are any.
///
/// # Errors
/// A file is there and cannot be read.
pub fn alone(folder: &Path, plan: &Plan) -> Result<Vec<Answers>> {
    let mut all = Vec::new();
    for (number, point) in plan.points.iter().enumerate() {
        for &seed in point.seeds(&plan.seeds).iter().take(1) {
            let path = alone_path(folder, point, seed);
            if path.exists() {
                all.push(Answers { point: number, seed, rows: read(&path)?, scores: Vec::new() });
            }
        }
    }
    Ok(all)
}
