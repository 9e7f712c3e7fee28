//! `ggro verify`: replays golden folders and prints, case by case, what agreed.

use crate::Result;
use crate::cli::models::{DeviceArgs, load};
use crate::cli::output::Paths;
use crate::cli::words::for_stdout;
use crate::dtype::HalfType;
use crate::files::pair::Pair;
use crate::lab::goldens::teacher::Lesson;
use crate::lab::goldens::{Check, Folder, Forward, Passes, forward, softmax, tokenizer, trace, worse};
use crate::model::cpu::{self, LoadOptions};
use crate::runtime::{Device, Opened};
use crate::trace::{Trace, TraceFile};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Replay golden fixtures; exit 1 on any difference
///
/// A folder holds policy/, reward/ and traces.json, and possibly forward_*.safetensors and tokenizer_cases.json. A folder of
/// such folders runs all of them.
///
/// The CPU must make the same decisions as the traces and match their numbers within 1e-4. A device that rounds to 16 bits is
/// checked decision by decision on the trace's own history; its errors may be twice those of a rounding simulation.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Golden folders
    #[arg(required = true)]
    pub dirs: Vec<PathBuf>,

    #[command(flatten)]
    pub device: DeviceArgs,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Where results go: a line as they come, or all in one object at the end.
struct Report {
    json: bool,
    folders: Vec<(String, Vec<Check>)>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let all = args.dirs.iter().map(|dir| Folder::find(dir)).collect::<Result<Vec<_>>>()?;
    let folders = all.iter().flatten().map(|folder| &folder.path);
    let read: Vec<PathBuf> =
        folders.flat_map(|path| [path.clone(), path.join("policy"), path.join("reward")]).collect();
    Paths::default().reading(&read).writing("--trace-events", args.device.profile.trace_events.as_deref()).check()?;
    let mut device = args.device.find()?;
    let mut report = Report { json: args.json, folders: Vec::new() };
    for (dir, folders) in args.dirs.iter().zip(&all) {
        if folders.is_empty() {
            report.open(&dir.display().to_string())?;
            report.failed("traces", "holds no traces and no folders with traces")?;
        }
        for folder in folders {
            verify(args, &mut device, folder, &mut report)?;
        }
    }
    report.close()
}

fn verify(args: &Args, device: &mut Device, folder: &Folder, report: &mut Report) -> anyhow::Result<()> {
    report.open(&folder.name)?;
    if folder.softmax {
        report.check(softmax(&folder.path.join("softmax_cases.safetensors"))?)?;
        if !folder.pair {
            return Ok(());
        }
    }
    if !folder.pair {
        report.failed("traces", "holds no traces.json")?;
        return Ok(());
    }
    let traces = TraceFile::read(&folder.path.join("traces.json"))?.traces;
    if traces.is_empty() {
        report.failed("traces", "traces.json holds no traces")?;
    }
    let pair = load(&folder.path.join("policy"), &folder.path.join("reward"))?;
    let mut opened = args.device.open(device, &pair, None)?;
    if folder.tokenizer {
        report.check(tokenizer(&pair, &folder.path.join("tokenizer_cases.json"))?)?;
    }
    let goldens = folder.forwards.iter().map(|file| Forward::read(file)).collect::<Result<Vec<_>>>()?;
    match opened.rounds_to() {
        None => exactly(&mut opened, &goldens, &traces, report),
        Some(storage) => rounded(&mut opened, storage, &pair, &goldens, &traces, report),
    }
}

/// Every decision and every number, within what single precision may be off.
fn exactly(opened: &mut Opened, goldens: &[Forward], traces: &[Trace], report: &mut Report) -> anyhow::Result<()> {
    for golden in goldens {
        let rows = opened.policy_rows(&golden.ids)?;
        report.check(forward(opened.backend(), golden, Some(&rows))?)?;
    }
    for golden in traces {
        report.check(trace(opened.backend(), golden)?)?;
    }
    Ok(())
}

/// A device that rounds to 16 bits: its errors beside those of a simulation, and every decision of the traces by itself.
fn rounded(
    opened: &mut Opened,
    storage: HalfType,
    pair: &Pair,
    goldens: &[Forward],
    traces: &[Trace],
    report: &mut Report,
) -> anyhow::Result<()> {
    let simulate_deferred_norms = opened.defers_norms();
    let load = |simulate| {
        cpu::open(pair.parts(), &LoadOptions { simulate, simulate_deferred_norms, ..LoadOptions::default() })
    };
    let (mut exact, mut simulated) = (load(None)?, load(Some(storage))?);
    if !goldens.is_empty() {
        let rows = goldens.iter().map(|golden| simulated.policy_rows(&golden.ids)).collect::<Result<Vec<_>>>()?;
        let expected = Passes::of(&mut simulated, goldens, Some(&rows), true)?;
        let rows = goldens.iter().map(|golden| opened.policy_rows(&golden.ids)).collect::<Result<Vec<_>>>()?;
        let found = Passes::of(opened.backend(), goldens, Some(&rows), true)?;
        report.check(Passes::compare("passes", &expected, &found))?;
    }
    if !traces.is_empty() {
        let lesson = Lesson::prepare(traces, &mut exact, &mut simulated, true)?;
        report.check(lesson.examine("decisions", opened.backend())?.check)?;
    }
    Ok(())
}

impl Report {
    fn open(&mut self, name: &str) -> std::io::Result<()> {
        self.folders.push((name.to_string(), Vec::new()));
        if self.json { Ok(()) } else { writeln!(std::io::stdout(), "{}", for_stdout(name)) }
    }

    fn check(&mut self, check: Check) -> std::io::Result<()> {
        if !self.json {
            writeln!(std::io::stdout(), "{}", for_stdout(&line(&check)))?;
        }
        if let Some((_, checks)) = self.folders.last_mut() {
            checks.push(check);
        }
        Ok(())
    }

    /// A check that could not be made.
    fn failed(&mut self, name: &str, why: &str) -> std::io::Result<()> {
        self.check(Check {
            name: name.to_string(),
            extent: String::new(),
            gauges: Vec::new(),
            difference: Some(why.to_string()),
        })
    }

    fn close(self) -> anyhow::Result<ExitCode> {
        let failures = |checks: &[Check]| checks.iter().filter(|c| !c.ok()).count();
        let failed: usize = self.folders.iter().map(|(_, checks)| failures(checks)).sum();
        let total: usize = self.folders.iter().map(|(_, checks)| checks.len()).sum();
        let mut out = std::io::stdout().lock();
        if self.json {
            let folders: Vec<Value> = self
                .folders
                .iter()
                .map(|(name, checks)| json!({ "name": name, "checks": checks.iter().map(object).collect::<Vec<_>>() }))
                .collect();
            let object = json!({ "checks": total, "failed": failed, "folders": folders });
            writeln!(out, "{object}")?;
        } else {
            writeln!(out)?;
            for (name, checks) in &self.folders {
                let failed = failures(checks);
                let verdict = if failed == 0 { "ok".to_string() } else { format!("{failed} DIFFER") };
                // The same quantity of all cases in one.
                writeln!(out, "{name:<18} {:>3} checks  {verdict:<10} {}", checks.len(), worst(checks))?;
            }
            writeln!(out, "{total} checks, {failed} with differences")?;
        }
        Ok(ExitCode::from(u8::from(failed > 0)))
    }
}

fn line(check: &Check) -> String {
    let verdict = if check.ok() { "ok" } else { "DIFFERS" };
    let mut line =
        format!("  {:<26} {:<44} {:<8} {}", check.name, check.extent, verdict, worst(std::slice::from_ref(check)));
    line.truncate(line.trim_end().len());
    if let Some(difference) = &check.difference {
        line += &format!("\n    {difference}");
    }
    line
}

/// The worst deviation of each quantity with a bound.
fn worst(checks: &[Check]) -> String {
    let mut quantities: Vec<(&str, f64)> = Vec::new();
    for gauge in checks.iter().flat_map(|c| &c.gauges).filter(|g| g.share.is_some()) {
        match quantities.iter_mut().find(|(name, _)| *name == gauge.quantity) {
            Some((_, worst)) => *worst = worse(*worst, gauge.worst),
            None => quantities.push((gauge.quantity, gauge.worst)),
        }
    }
    let words: Vec<String> = quantities.iter().map(|(name, worst)| format!("{name} {worst:.0e}")).collect();
    words.join(", ")
}

fn object(check: &Check) -> Value {
    // JSON has no NaN; the difference says it in words.
    json!({
        "name": check.name,
        "extent": check.extent,
        "ok": check.ok(),
        "difference": check.difference,
        "deviations": check.gauges,
    })
}
