//! `ggro bench model`.

use super::passes::DepthArgs;
use super::{SyntheticArgs, shapes};
use crate::cli::models::PairArgs;
use crate::lab::bench::cost::Roofline;
use crate::lab::bench::model::{CARDS, bound, card, rows};
use crate::lab::bench::report::{Report, Row};
use crate::{Error, Result};
use clap::builder::PossibleValuesParser;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Card whose data sheet gives the limits [default: h200, or the limits in --measured]
    #[arg(long, value_name = "CARD", value_parser = PossibleValuesParser::new(CARDS.map(|(name, _)| name)))]
    card: Option<String>,

    /// Memory rate in GB/s, instead of a card's
    #[arg(long, value_name = "GB/S", value_parser = above_zero, requires = "teraflops")]
    gigabytes: Option<f64>,

    /// Peak arithmetic in TFLOP/s, instead of a card's
    #[arg(long, value_name = "TFLOP/S", value_parser = above_zero, requires = "gigabytes")]
    teraflops: Option<f64>,

    /// Rows of `ggro bench latency -o json`, which are shown beside what was computed
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,

    /// Print one JSON object per line instead of a table
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    synthetic: SyntheticArgs,

    #[command(flatten)]
    depths: DepthArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let measured = args.measured.as_deref().map(Report::read).transpose()?;
    let (limits, whose) = limits(args, measured.as_ref())?;
    let ([policy, reward], names) = shapes(&args.pair, &args.synthetic)?;
    let rows = rows(policy.as_ref(), reward.as_ref(), &args.depths.depths(1, 0), limits);
    let found = |row: &Row| -> Vec<Row> {
        let all = measured.iter().flat_map(|report| &report.rows);
        all.filter(|other| other.phase == row.phase && other.case == row.case).cloned().collect()
    };
    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(out, "{names}, 16 bits a weight; {whose}")?;
        writeln!(out, "limits: {:.0} GB/s, {:.0} TFLOP/s\n", limits.bytes / 1e9, limits.flops / 1e12)?;
        writeln!(out, "| phase | case | GB | TFLOP | bound by | least ms | tokens/s | measured ms | of the limit |")?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    }
    for row in &rows {
        let Some(cost) = row.cost else { continue };
        let beside = found(row);
        if args.json {
            let object = json!({
                "phase": row.phase, "case": row.case, "bytes": cost.bytes, "flops": cost.flops,
                "bound": bound(cost, limits), "seconds": row.seconds, "tokens_per_second": row.work_tokens_per_second,
                "measured": beside.iter().map(|row| json!({ "launch": row.launch, "seconds": row.seconds })).collect::<Vec<_>>(),
            });
            writeln!(out, "{object}")?;
            continue;
        }
        let ms =
            |rows: &[Row]| rows.iter().map(|one| format!("{:.3}", 1e3 * one.seconds)).collect::<Vec<_>>().join(", ");
        let share = |one: &Row| format!("{:.1} %", 100.0 * row.seconds / one.seconds);
        writeln!(
            out,
            "| {} | {} | {:.3} | {:.4} | {} | {:.3} | {:.0} | {} | {} |",
            row.phase,
            row.case,
            cost.bytes / 1e9,
            cost.flops / 1e12,
            bound(cost, limits),
            1e3 * row.seconds,
            row.work_tokens_per_second.unwrap_or(0.0),
            ms(&beside),
            beside.iter().map(share).collect::<Vec<_>>().join(", "),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The limits that are meant, and in words whose they are.
fn limits(args: &Args, measured: Option<&Report>) -> Result<(Roofline, String)> {
    if let Some((gigabytes, teraflops)) = args.gigabytes.zip(args.teraflops) {
        return Ok((Roofline { bytes: 1e9 * gigabytes, flops: 1e12 * teraflops }, "limits as given".to_string()));
    }
    if let (None, Some(report)) = (&args.card, measured)
        && let Some(limits) = report.header.limits
    {
        return Ok((limits, format!("limits measured on {}", report.header.device)));
    }
    let name = args.card.as_deref().unwrap_or(CARDS[0].0);
    let limits = card(name).ok_or_else(|| Error::invalid(format!("--card {name}: unknown card")))?;
    Ok((limits, format!("{name} by its data sheet")))
}

fn above_zero(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("expected a number above 0".to_string()),
    }
}
