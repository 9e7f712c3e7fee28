//! `ggro report`.

use super::output::{Output, Paths};
use super::say;
use super::words::{aligned, for_stdout};
use crate::batch::output::{Row, config_path, read, recorded};
use crate::batch::report::{Mean, Share, Summary, page, paired};
use crate::runtime::bytes_in_words;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Summarise the answers of `ggro run`, as a table or an HTML page
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files that `ggro run` wrote; the others are compared with the first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Write a self-contained HTML page: answers token by token, candidates, distributions
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let configs: Vec<PathBuf> = args.files.iter().map(|path| config_path(path)).collect();
    Paths::default().reading(&args.files).reading(&configs).writing("--html", args.html.as_deref()).check()?;
    let html = args.html.as_deref().map(Output::check).transpose()?;
    let names = names(&args.files);
    let files = args.files.iter().zip(names).map(|(path, name)| Ok((name, read(path)?)));
    let files: Vec<(String, Vec<Row>)> = files.collect::<Result<_>>()?;
    let options: Vec<Option<Map<String, Value>>> = args.files.iter().map(|path| recorded(path)).collect();
    let wording = |options: &Option<Map<String, Value>>| Some(options.as_ref()?.get("wording")?.as_str()?.to_string());
    let summaries = files.iter().zip(options.iter().map(wording));
    let summaries: Vec<Summary> =
        summaries.map(|((name, rows), wording)| Summary { wording, ..Summary::new(name, rows) }).collect();
    let differences: Vec<Option<Mean>> = files[1..].iter().map(|(_, rows)| paired(&files[0].1, rows)).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", object(&summaries, &differences)?)?;
    } else {
        write!(out, "{}", for_stdout(&table(&summaries, &differences)))?;
    }
    if let (Some(html), Some(path)) = (html, &args.html) {
        let page = page(&files, &options);
        html.write(page.as_bytes())?;
        say(&format!("{}: {}", path.display(), bytes_in_words(page.len() as u64)));
    }
    Ok(ExitCode::SUCCESS)
}

/// File names without their ending, or paths where two have the same.
fn names(files: &[PathBuf]) -> Vec<String> {
    let stem = |path: &Path| path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let name = |path: &PathBuf| match files.iter().filter(|other| stem(other) == stem(path)).count() {
        1 => stem(path),
        _ => path.display().to_string(),
    };
    files.iter().map(name).collect()
}

fn object(summaries: &[Summary], differences: &[Option<Mean>]) -> Result<Value> {
    let files = serde_json::to_value(summaries).map_err(|e| Error::invalid(e.to_string()))?;
    Ok(json!({ "files": files, "reward_over_the_first": differences }))
}

fn table(summaries: &[Summary], differences: &[Option<Mean>]) -> String {
    let mut lines: Vec<Vec<String>> = vec![vec![String::new()]];
    lines[0].extend(summaries.iter().map(|summary| summary.name.clone()));
    lines.push(vec!["answers".to_string()]);
    lines[1].extend(summaries.iter().map(|summary| summary.rows.to_string()));
    if summaries.iter().any(|summary| summary.skipped > 0) {
        let counts = summaries.iter().map(|summary| summary.skipped.to_string());
        lines.push(["prompts passed over".to_string()].into_iter().chain(counts).collect());
    }
    let names = summaries.first().map(Summary::lines).unwrap_or_default();
    for (index, (name, _)) in names.iter().enumerate() {
        let found = summaries.iter().map(|summary| (summary, summary.lines()[index].1));
        let said = |(summary, mean): (&Summary, Option<Mean>)| {
            mean.map_or_else(|| "-".to_string(), |mean| words(mean) + &summary.remark(name, &mean))
        };
        let said: Vec<String> = found.map(said).collect();
        if said.iter().any(|cell| cell != "-") {
            lines.push([name.to_string()].into_iter().chain(said).collect());
        }
    }
    let drafts: Vec<Vec<(&str, String)>> = summaries.iter().map(Summary::drafts).collect();
    let mut sources: Vec<&str> = Vec::new();
    for &(source, _) in drafts.iter().flatten() {
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    for source in sources {
        let said = drafts.iter().map(|drafts| {
            let found = drafts.iter().find(|(name, _)| *name == source);
            found.map_or_else(|| "-".to_string(), |(_, said)| said.clone())
        });
        lines.push([format!("guessed {source}")].into_iter().chain(said).collect());
    }
    if summaries.iter().any(|summary| summary.wording.is_some()) {
        let words = summaries.iter().map(|summary| summary.wording.clone().unwrap_or_else(|| "-".to_string()));
        lines.push(["wording".to_string()].into_iter().chain(words).collect());
    }
    if summaries.iter().any(|summary| summary.made_on.len() > 1) {
        let kinds: BTreeSet<String> = summaries.iter().flat_map(|summary| &summary.made_on).map(Share::words).collect();
        for kind in kinds {
            let counts = summaries.iter().map(|summary| {
                let share = summary.made_on.iter().find(|share| share.words() == kind);
                share.map_or_else(|| "-".to_string(), |share| share.rows.to_string())
            });
            lines.push([format!("answers on {kind}")].into_iter().chain(counts).collect());
        }
    }
    if !differences.is_empty() {
        let words =
            differences.iter().map(|mean| mean.map_or_else(|| "no prompt with a reward in common".to_string(), words));
        lines.push(["reward over the first".to_string(), String::new()].into_iter().chain(words).collect());
    }
    aligned(&lines)
}

/// A mean with its interval.
fn words(Mean { mean, low, high, .. }: Mean) -> String {
    let digits = if mean.abs() >= 100.0 { 0 } else { 3 };
    format!("{mean:.digits$} ({low:.digits$} to {high:.digits$})")
}
