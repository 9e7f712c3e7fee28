//! The tables of a comparison as text.

use crate::batch::compare::Provenance;
use crate::batch::compare::equal::AtEqual;
use crate::batch::compare::tables::{Curve, PointTable, Tables};
use crate::batch::report::Mean;
use crate::cli::words::{aligned, counted};

/// Fewer prompts than this make bootstrap intervals too narrow.
const FEW_PROMPTS: usize = 20;

/// All tables, one below the other.
pub(super) fn text(tables: &Tables, provenance: &Provenance) -> String {
    let mut text = format!(
        "{}; differences from {}, prompt by prompt; 95 % intervals over prompts\n",
        counted(tables.prompts, "prompt"),
        tables.reference
    );
    if tables.prompts < FEW_PROMPTS {
        text += &format!("with fewer than {FEW_PROMPTS} prompts these intervals are too narrow\n");
    }
    for (measure, name) in tables.measures.iter().enumerate() {
        text += &format!("\n{}\n", if measure == 0 { "reward".to_string() } else { format!("judge {name}") });
        text += &measure_table(tables, measure);
    }
    text += "\nwords of an answer\n";
    text += &words_table(&tables.points);
    text += "\nwork of an answer\n";
    text += &work_table(&tables.points);
    let (forward, backward) = (tables.cost.reward_forward, tables.cost.reward_backward);
    text +=
        &format!("work: policy token-forwards, + {forward:.2} a reward token-forward, + {backward:.2} a backward\n");
    // This table compares with all budgets of the reference method.
    let reference = tables.points.iter().find(|point| point.name == tables.reference);
    let reference = reference.map_or(tables.reference.as_str(), |point| point.label.as_str());
    let work = tables.equal_work.iter().map(|table| (table, "work", 0));
    for (table, cost, digits) in work.chain(tables.equal_time.iter().map(|table| (table, "time", 3))) {
        let unit = if cost == "time" { ", in seconds" } else { "" };
        text += &format!("\n{} at equal {cost}{unit}\n", table.measure);
        text += &equal_table(table, reference, digits);
    }
    for curve in &tables.curves {
        text += &format!("\n{} along {}\n", curve.label, curve.parameter);
        text += &curve_table(tables, curve);
    }
    text += "\nmade with\n";
    text + &aligned(&provenance.lines().into_iter().map(|(name, of)| vec![name, of]).collect::<Vec<_>>())
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

fn words_table(points: &[PointTable]) -> String {
    let head = ["", "answers", "tokens", "finished", "distinct-1", "distinct-2", "diversity", "repetition"];
    let line = |point: &PointTable| {
        let mut cells =
            vec![point.name.clone(), point.answers.to_string(), tenths(point.tokens), share(point.finished)];
        cells.extend([point.distinct_1, point.distinct_2, point.diversity, point.repetition].map(words));
        cells
    };
    aligned(&[vec![head.map(str::to_string).to_vec()], points.iter().map(line).collect()].concat())
}

fn work_table(points: &[PointTable]) -> String {
    let timed = points.iter().any(|point| point.seconds.is_some());
    let mut head: Vec<String> =
        ["", "policy forward", "reward forward", "reward backward", "work"].map(str::to_string).to_vec();
    head.extend(timed.then(|| "seconds, alone".to_string()));
    let line = |point: &PointTable| {
        let mut cells = vec![point.name.clone()];
        cells.extend([point.policy_forward, point.reward_forward, point.reward_backward, point.work].map(tenths));
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
    lines.extend(table.methods.iter().map(|method| line(method.label.clone(), &method.at)));
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
            false => format!("the reward rises and the score of {} falls", step.falling.join(", ")),
        });
        lines.push(cells);
    }
    aligned(&lines)
}

/// A mean without its interval.
fn tenths(mean: Option<Mean>) -> String {
    mean.map_or_else(|| "-".to_string(), |mean| format!("{:.1}", mean.mean))
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
