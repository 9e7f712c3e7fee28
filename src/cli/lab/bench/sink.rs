//! Where the rows of a benchmark go: to standard output as they come, into a chart, beside those of an earlier run.

use crate::Result;
use crate::cli::models::counting;
use crate::cli::output::Output;
use crate::cli::say;
use crate::lab::bench::chart;
use crate::lab::bench::report::{Change, Format, Report, ReportHeader, Row, compare};
use clap::ValueEnum;
use indicatif::ProgressBar;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct SinkArgs {
    /// Format: md (a table), json (one object), jsonl (the header first) or csv
    #[arg(short = 'o', long, value_name = "FORMAT", value_enum, default_value_t = Written::Md)]
    output_format: Written,

    /// Compare with an earlier run's JSON or JSON lines; exit code 1 if a case is slower or answers differently
    #[arg(long, value_name = "FILE")]
    pub(super) compare: Option<PathBuf>,

    /// Percentage by which a case may be slower than in the earlier run
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = percent, requires = "compare", allow_negative_numbers = true)]
    fail_regression: f64,

    /// Draw a chart into FILE (SVG): tokens per second against batch size with the limit, or cost over greedy decoding
    #[arg(long, value_name = "FILE")]
    pub(super) chart: Option<PathBuf>,
}

/// See [`SinkArgs::output_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Written {
    Md,
    Json,
    Jsonl,
    Csv,
}

impl From<Written> for Format {
    fn from(written: Written) -> Format {
        match written {
            Written::Md => Format::Markdown,
            Written::Json => Format::Json,
            Written::Jsonl => Format::JsonLines,
            Written::Csv => Format::Csv,
        }
    }
}

/// Takes rows as they come.
pub(super) struct Sink {
    format: Format,
    before: Option<Report>,
    threshold: f64,
    chart: Option<Output>,
    report: Report,
    bar: ProgressBar,
    failed: Option<anyhow::Error>,
}

impl SinkArgs {
    /// Reads what is compared with.
    pub(super) fn before(&self) -> Result<Option<Report>> {
        self.compare.as_deref().map(Report::read).transpose()
    }

    /// Begins a report of so many cases.
    pub(super) fn begin(&self, header: &ReportHeader, before: Option<Report>, cases: usize) -> anyhow::Result<Sink> {
        let format = Format::from(self.output_format);
        // A chart that cannot be written is found out before anything is measured.
        let chart = self.chart.as_deref().map(Output::check).transpose()?;
        write!(std::io::stdout(), "{}", header.text(format)?)?;
        let bar = counting(cases, 0, "case").bar;
        if let Some(before) = &before
            && before.header.config_hash != header.config_hash
        {
            say("note: --compare: the earlier run had other options; only cases of the same name are compared");
        }
        Ok(Sink {
            format,
            before,
            threshold: self.fail_regression / 100.0,
            chart,
            report: Report { header: header.clone(), rows: Vec::new() },
            bar,
            failed: None,
        })
    }
}

impl Sink {
    /// Takes a row.
    pub(super) fn row(&mut self, row: Row) {
        if self.failed.is_none() {
            let written = row.text(self.format).map_err(anyhow::Error::from).and_then(|text| {
                let print = || -> std::io::Result<()> {
                    let mut out = std::io::stdout().lock();
                    out.write_all(text.as_bytes())?;
                    out.flush()
                };
                Ok(self.bar.suspend(print)?)
            });
            self.failed = written.err();
        }
        self.bar.inc(1);
        self.report.rows.push(row);
    }

    /// Ends the report: the chart, the comparison, the exit code.
    pub(super) fn finish(self) -> anyhow::Result<ExitCode> {
        self.bar.finish_and_clear();
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        if self.format == Format::Json {
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&self.report)?)?;
        }
        if let Some(file) = self.chart {
            match chart::of(&self.report) {
                Some(svg) => file.write(svg.as_bytes())?,
                None => say("note: --chart: there is nothing to draw"),
            }
        }
        let Some(before) = &self.before else { return Ok(ExitCode::SUCCESS) };
        let changes = compare(before, &self.report, self.threshold)?;
        for change in &changes {
            say(&line_of(change));
        }
        let worse = changes.iter().filter(|change| change.slower || change.differs).count();
        if worse > 0 {
            say(&format!("error: {worse} of {} cases are slower or answer differently", changes.len()));
        }
        Ok(if worse > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn line_of(change: &Change) -> String {
    let Change { phase, case, launch, before, now, ratio, slower, differs } = change;
    let mut line = format!("{phase} {case} {launch}: {:.3} ms, was {:.3} ms: {ratio:.3}", 1e3 * now, 1e3 * before);
    if *slower {
        line += ", slower";
    }
    if *differs {
        line += ", other ids";
    }
    line
}

fn percent(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(percent),
        _ => Err("expected percent, 0 to 1000".to_string()),
    }
}
