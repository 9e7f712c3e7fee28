//! What a benchmark prints: where it ran, a row per case, in the format that is asked for; and two of them compared.

use super::cost::{Cost, Roofline};
use super::stopwatch::Taken;
use crate::files::json::in_line;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;

/// Where and of what rows are. Two reports can be compared if they have the same [`config_hash`](ReportHeader::config_hash).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReportHeader {
    /// Of the program.
    pub version: String,
    /// It was built from.
    pub commit: String,
    /// Seconds since 1970.
    pub date: u64,
    /// The command's words behind `ggro`.
    pub command: String,
    /// The processor, or the card.
    pub device: String,
    /// Its kind, as rows of runs say it: `cpu`, or `cuda 9.0` with the compute capability. Reports of earlier versions do not say.
    pub device_kind: Option<String>,
    /// The family of kernels that multiplies with weights, as in `sm90`; none on the CPU, and in reports of earlier versions.
    pub kernels: Option<String>,
    /// Threads of the processor, or multiprocessors of the card.
    pub units: usize,
    /// Version of CUDA that the driver speaks.
    pub driver: Option<String>,
    /// Largest clocks of the card, in MHz: multiprocessors, memory.
    pub clocks_mhz: Option<[u32; 2]>,
    /// Bytes of the card, or of the machine.
    pub memory_bytes: Option<u64>,
    /// Policy and reward model.
    pub models: [String; 2],
    /// What is computed in.
    pub dtype: String,
    /// Measured in this run: bytes and operations a second.
    pub limits: Option<Roofline>,
    /// Of everything that decides what is run.
    pub config_hash: String,
}

/// Shares of the time, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Policy steps.
    pub policy: f64,
    /// Rewards.
    pub reward: f64,
    /// Rewards with gradients.
    pub gradient: f64,
    /// Everything else, the guesses of a draft model among it.
    pub host: f64,
}

/// Numbers of answers by the method, or of Best-of-N.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerNumbers {
    /// Seconds over those of greedy decoding in the same run.
    pub over_greedy: f64,
    /// Committed segments.
    pub segments: usize,
    /// Those whose first token was nudged.
    pub nudges: usize,
    /// Candidates that the walk visited; samples of Best-of-N.
    pub visited: usize,
    /// Reward of the answer.
    pub reward: f32,
}

/// A measured case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured: `prefill`, `decode`, `reward`, `gradient`, `serve`, `greedy`, `ggro`, `best of 8`, `load`, ...
    pub phase: String,
    /// How much of it, in words.
    pub case: String,
    /// Rows of the batch, for charts.
    pub rows: Option<usize>,
    /// How kernels were launched: `graph`, `eager`, or empty.
    pub launch: String,
    /// Median seconds of a run.
    pub seconds: f64,
    /// Least and largest seconds.
    pub spread: [f64; 2],
    /// Median seconds of processor time of a run, all threads together. Not measured for every kind of case, nor by earlier versions.
    pub processor_seconds: Option<f64>,
    /// Timed runs.
    pub runs: usize,
    /// Tokens of answers a second.
    pub committed_tokens_per_second: Option<f64>,
    /// Positions a second that went through the models.
    pub work_tokens_per_second: Option<f64>,
    /// What it moves and computes at least.
    pub cost: Option<Cost>,
    /// The cost's bytes a second, in 1e9.
    pub gigabytes_per_second: Option<f64>,
    /// The cost's operations a second, in 1e12.
    pub teraflops: Option<f64>,
    /// Percent of the measured limit.
    pub percent: Option<f64>,
    /// Where the time went.
    pub phases: Option<Phases>,
    /// Of an answer.
    pub answer: Option<AnswerNumbers>,
    /// Hash of the ids that were produced: what is faster and answers differently is not faster.
    pub ids: Option<String>,
}

impl Row {
    /// A case of some seconds, which are sorted here.
    pub fn new(phase: &str, case: String, mut seconds: Vec<f64>) -> Row {
        seconds.sort_by(f64::total_cmp);
        let at = |index: usize| seconds.get(index).copied().unwrap_or(f64::NAN);
        let (phase, median) = (phase.to_string(), at(seconds.len() / 2));
        let spread = [at(0), at(seconds.len().saturating_sub(1))];
        Row { phase, case, seconds: median, spread, runs: seconds.len(), ..Row::default() }
    }

    /// A case of runs with their processor time.
    pub(super) fn timed(phase: &str, case: String, runs: &[Taken]) -> Row {
        let row = Row::new(phase, case, runs.iter().map(|taken| taken.wall).collect());
        let mut processor: Vec<f64> = runs.iter().map(|taken| taken.processor).collect();
        processor.sort_by(f64::total_cmp);
        Row { processor_seconds: processor.get(processor.len() / 2).copied(), ..row }
    }

    /// With what it costs at least, and so many positions through the models.
    #[must_use]
    pub fn costing(self, cost: Cost, positions: usize) -> Row {
        Row {
            work_tokens_per_second: Some(positions as f64 / self.seconds),
            gigabytes_per_second: Some(cost.bytes / self.seconds / 1e9),
            teraflops: Some(cost.flops / self.seconds / 1e12),
            cost: Some(cost),
            ..self
        }
    }

    /// With its share of a limit, if both are known.
    #[must_use]
    pub fn against(mut self, limits: Option<Roofline>) -> Row {
        self.percent =
            limits.zip(self.cost).map(|(limits, cost)| 100.0 * limits.seconds(cost) / self.seconds).or(self.percent);
        self
    }

    /// What it is called, to find it in another report.
    fn key(&self) -> (&str, &str, &str) {
        (&self.phase, &self.case, &self.launch)
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where and of what.
    pub header: ReportHeader,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table for people.
    Markdown,
    /// One object.
    Json,
    /// The header as an object, then a row per line.
    JsonLines,
    /// The header as comments, then a row per line.
    Csv,
}

/// FNV-1a over ids, in hexadecimal.
pub fn hash_of(ids: &[u32]) -> String {
    let fold = |hash: u64, &id: &u32| (hash ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", ids.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

const COLUMNS: [&str; 19] = [
    "phase",
    "case",
    "rows",
    "launch",
    "runs",
    "seconds",
    "least",
    "most",
    "processor_seconds",
    "committed_tokens_per_second",
    "work_tokens_per_second",
    "gigabytes_per_second",
    "teraflops",
    "percent",
    "over_greedy",
    "segments",
    "visited",
    "reward",
    "ids",
];

impl ReportHeader {
    /// What stands before the first row.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn text(&self, format: Format) -> Result<String> {
        let json = |value: &ReportHeader| serde_json::to_value(value).map_err(|e| Error::Backend(e.to_string()));
        Ok(match format {
            Format::Json => String::new(),
            Format::JsonLines => format!("{}\n", serde_json::json!({ "header": json(self)? })),
            Format::Csv => {
                let mut text = String::new();
                if let serde_json::Value::Object(map) = json(self)? {
                    map.iter().for_each(|(name, value)| text += &format!("# {name}: {value}\n"));
                }
                text + &COLUMNS.join(",") + "\n"
            }
            Format::Markdown => {
                let mut text = String::new();
                let known = |value: Option<String>| value.map_or_else(String::new, |value| format!(", {value}"));
                let clocks = self.clocks_mhz.map(|[sm, memory]| format!("at most {sm} and {memory} MHz"));
                let memory = self.memory_bytes.map(|bytes| format!("{:.0} GiB", bytes as f64 / f64::from(1u32 << 30)));
                let driver = self.driver.as_ref().map(|driver| format!("CUDA {driver}"));
                let kernels = self.kernels.as_ref().map(|kernels| format!("kernels {kernels}"));
                let [policy, reward] = &self.models;
                let _ = writeln!(text, "ggro {} ({}), config {}", self.version, self.commit, self.config_hash);
                let units = self.units;
                let more = known(memory) + &known(driver) + &known(clocks) + &known(kernels);
                let _ = writeln!(text, "device: {}, {units} units{more}", self.device);
                let _ = writeln!(text, "models: {policy} and {reward}, {}", self.dtype);
                if let Some(Roofline { bytes, flops }) = self.limits {
                    let (bytes, flops) = (bytes / 1e9, flops / 1e12);
                    let _ = writeln!(text, "limits: {bytes:.1} GB/s, {flops:.3} TFLOP/s, measured in this run");
                }
                let _ = write!(
                    text,
                    "\n| phase | case | launch | ms | least to most | processor ms | committed/s | work/s | GB/s | TFLOP/s | of the limit | policy, reward, \
                     gradient, host % | over greedy | reward | ids |\n|{}\n",
                    "---|".repeat(15)
                );
                text
            }
        })
    }
}

impl Row {
    /// A row as it stands under the header.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn text(&self, format: Format) -> Result<String> {
        let number = |value: Option<f64>, digits: usize| value.map_or_else(String::new, |x| format!("{x:.digits$}"));
        Ok(match format {
            Format::Json => String::new(),
            Format::JsonLines => {
                let line = serde_json::to_string(self).map_err(|e| Error::Backend(e.to_string()))?;
                line + "\n"
            }
            Format::Csv => {
                let answer = self.answer.as_ref();
                let whole = |value: Option<usize>| value.map_or_else(String::new, |n| n.to_string());
                let exact = |value: Option<f64>| value.map_or_else(String::new, |x| x.to_string());
                let fields = [
                    self.phase.clone(),
                    self.case.clone(),
                    whole(self.rows),
                    self.launch.clone(),
                    self.runs.to_string(),
                    self.seconds.to_string(),
                    self.spread[0].to_string(),
                    self.spread[1].to_string(),
                    exact(self.processor_seconds),
                    exact(self.committed_tokens_per_second),
                    exact(self.work_tokens_per_second),
                    exact(self.gigabytes_per_second),
                    exact(self.teraflops),
                    exact(self.percent),
                    exact(answer.map(|answer| answer.over_greedy)),
                    whole(answer.map(|answer| answer.segments)),
                    whole(answer.map(|answer| answer.visited)),
                    exact(answer.map(|answer| f64::from(answer.reward))),
                    self.ids.clone().unwrap_or_default(),
                ];
                fields.map(quoted).join(",") + "\n"
            }
            Format::Markdown => {
                let percent = self.percent.map_or_else(String::new, |percent| format!("{percent:.1} %"));
                let phases = self.phases.map_or_else(String::new, |phases| {
                    let Phases { policy, reward, gradient, host } = phases;
                    format!("{policy:.0}, {reward:.0}, {gradient:.0}, {host:.0}")
                });
                let ms = [self.seconds, self.spread[0], self.spread[1]].map(|seconds| 1e3 * seconds);
                format!(
                    "| {} | {} | {} | {:.3} | {:.3} to {:.3} | {} | {} | {} | {} | {} | {percent} | {phases} | {} | {} | {} |\n",
                    self.phase,
                    self.case,
                    self.launch,
                    ms[0],
                    ms[1],
                    ms[2],
                    number(self.processor_seconds.map(|seconds| 1e3 * seconds), 3),
                    number(self.committed_tokens_per_second, 1),
                    number(self.work_tokens_per_second, 1),
                    number(self.gigabytes_per_second, 1),
                    number(self.teraflops, 3),
                    number(self.answer.as_ref().map(|answer| answer.over_greedy), 2),
                    number(self.answer.as_ref().map(|answer| f64::from(answer.reward)), 3),
                    self.ids.as_deref().unwrap_or_default(),
                )
            }
        })
    }
}

/// A field of a table of commas.
fn quoted(field: String) -> String {
    match field.contains([',', '"', '\n']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field,
    }
}

impl Report {
    /// Reads one that was written as JSON, or as JSON lines.
    ///
    /// # Errors
    /// The file is not readable, or is something else.
    pub fn read(path: &Path) -> Result<Report> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let text = crate::files::checkpoint::read_whole_text(path, file)?;
        Report::parse(&text).map_err(|why| Error::file(path, format!("not a report of `ggro bench`: {why}")))
    }

    fn parse(text: &str) -> std::result::Result<Report, String> {
        #[derive(Deserialize)]
        struct First {
            header: ReportHeader,
        }
        if let Ok(report) = serde_json::from_str::<Report>(text) {
            return Ok(report);
        }
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let wrong = |number: usize, e: &serde_json::Error| format!("line {}: {}", number + 1, in_line(e));
        let (number, line) = lines.next().unwrap_or_default();
        let first: First = serde_json::from_str(line).map_err(|e| wrong(number, &e))?;
        let rows = lines.map(|(number, line)| serde_json::from_str(line).map_err(|e| wrong(number, &e)));
        Ok(Report { header: first.header, rows: rows.collect::<std::result::Result<Vec<Row>, String>>()? })
    }
}

/// A case that is in two reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Of the row.
    pub phase: String,
    /// Of the row.
    pub case: String,
    /// Of the row.
    pub launch: String,
    /// Seconds before.
    pub before: f64,
    /// Seconds now.
    pub now: f64,
    /// Now over before: above 1 is slower.
    pub ratio: f64,
    /// It is slower than the threshold allows.
    pub slower: bool,
    /// It produced other ids.
    pub differs: bool,
}

/// Compares what two reports have in common; `threshold` is the share by which a case may be slower.
///
/// # Errors
/// They have nothing in common.
pub fn compare(before: &Report, now: &Report, threshold: f64) -> Result<Vec<Change>> {
    let changes: Vec<Change> = now
        .rows
        .iter()
        .filter_map(|row| {
            let old = before.rows.iter().find(|old| old.key() == row.key())?;
            let ratio = row.seconds / old.seconds;
            let differs = row.ids.is_some() && old.ids.is_some() && row.ids != old.ids;
            Some(Change {
                phase: row.phase.clone(),
                case: row.case.clone(),
                launch: row.launch.clone(),
                before: old.seconds,
                now: row.seconds,
                ratio,
                // Nothing that cannot be compared is called as fast.
                slower: ratio.is_nan() || ratio > 1.0 + threshold,
                differs,
            })
        })
        .collect();
    match changes.is_empty() {
        true => Err(Error::invalid("--compare: the two reports have no case in common")),
        false => Ok(changes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(phase: &str, case: &str, seconds: &[f64]) -> Row {
        Row::new(phase, case.to_string(), seconds.to_vec())
    }

    #[test]
    fn arithmetic_of_a_row() {
        let cost = Cost { bytes: 4e9, flops: 1e12 };
        let limits = Roofline { bytes: 8e9, flops: 1e13 };
        let row = row("decode", "x", &[3.0, 1.0, 2.0]).costing(cost, 10).against(Some(limits));
        assert_eq!((row.seconds, row.spread, row.runs), (2.0, [1.0, 3.0], 3));
        assert_eq!(
            (row.work_tokens_per_second, row.gigabytes_per_second, row.teraflops),
            (Some(5.0), Some(2.0), Some(0.5))
        );
        // Half a second for the bytes, a tenth for the operations.
        assert_eq!(row.percent, Some(25.0));
    }

    #[test]
    fn medians_of_wall_and_processor_time_are_their_own() {
        let runs = [(3.0, 1.0), (1.0, 5.0), (2.0, 4.0)].map(|(wall, processor)| Taken { wall, processor });
        let row = Row::timed("decode", "x".to_string(), &runs);
        assert_eq!((row.seconds, row.processor_seconds, row.runs), (2.0, Some(4.0), 3));
        assert_eq!(Row::timed("decode", "x".to_string(), &[]).processor_seconds, None);
        assert!(row.text(Format::Markdown).unwrap().contains("| 2000.000 | 1000.000 to 3000.000 | 4000.000 |"));
    }

    #[test]
    fn every_format_has_every_row() {
        let mut report = Report::default();
        report.rows.push(row("decode", "8 rows, \"deep\"", &[0.5]));
        report.rows.push(Row {
            answer: Some(AnswerNumbers::default()),
            ids: Some("ab".into()),
            ..row("ggro", "off", &[1.0])
        });
        for format in [Format::Markdown, Format::JsonLines, Format::Csv] {
            let mut text = report.header.text(format).unwrap();
            report.rows.iter().for_each(|row| text += &row.text(format).unwrap());
            assert!(text.contains("8 rows") && text.contains("off") && text.ends_with('\n'), "{text}");
            if format == Format::JsonLines {
                assert_eq!(Report::parse(&text).unwrap(), report);
            }
            if format == Format::Csv {
                let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
                assert!(lines[1].contains("\"8 rows, \"\"deep\"\"\"") && lines.len() == 3);
            }
        }
        assert_eq!(Report::parse(&serde_json::to_string_pretty(&report).unwrap()).unwrap(), report);
        assert!(Report::parse("{}").is_err() && Report::parse("").is_err());
    }

    /// A report says which kernels it timed, and one of before is read although it does not.
    #[test]
    fn kernels_are_recorded() {
        let header = ReportHeader {
            device: "a card".into(),
            units: 132,
            kernels: Some("sm90".into()),
            ..ReportHeader::default()
        };
        let text = header.text(Format::Markdown).unwrap();
        assert!(text.contains("\ndevice: a card, 132 units, kernels sm90\n"), "{text}");
        assert!(header.text(Format::Csv).unwrap().contains("\n# kernels: \"sm90\"\n"));
        let report = Report { header, rows: Vec::new() };
        let mut json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["header"]["kernels"], "sm90");
        json["header"].as_object_mut().unwrap().retain(|name, _| !["device_kind", "kernels"].contains(&&**name));
        let before = Report::parse(&json.to_string()).unwrap();
        assert_eq!(before.header, ReportHeader { kernels: None, ..report.header });
        assert!(before.header.text(Format::Markdown).unwrap().contains("132 units\n"));
    }

    #[test]
    fn slower_and_different() {
        let report = |rows: Vec<Row>| Report { rows, ..Report::default() };
        let with = |ids: &str, row: Row| Row { ids: Some(ids.to_string()), ..row };
        let before = report(vec![row("a", "1", &[1.0]), with("x", row("b", "1", &[1.0])), row("c", "1", &[1.0])]);
        let now = report(vec![row("a", "1", &[1.04]), with("y", row("b", "1", &[0.5])), row("c", "2", &[1.0])]);
        let changes = compare(&before, &now, 0.05).unwrap();
        let found: Vec<(bool, bool)> = changes.iter().map(|change| (change.slower, change.differs)).collect();
        assert_eq!(found, [(false, false), (false, true)]);
        assert!(compare(&before, &now, 0.03).unwrap()[0].slower);
        assert!(compare(&before, &report(vec![row("d", "1", &[1.0])]), 0.1).is_err());
        let nothing = report(vec![row("a", "1", &[])]);
        assert!(compare(&before, &nothing, 0.1).unwrap()[0].slower, "a case without a time is not as fast");
    }
}
