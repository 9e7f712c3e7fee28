//! `ggro bench serve`.

use crate::batch::input;
use crate::cli::args::seed;
use crate::cli::models::counting;
use crate::cli::say;
use crate::cli::words::{counted, for_stdout};
use crate::files::demo;
use crate::lab::bench::serve::{Goal, Load, Measured, Summary, first_model, run as send, summary};
use crate::{Error, Result};
use clap::builder::RangedU64ValueParser;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Base URL of the server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000", value_parser = url)]
    base_url: String,

    /// The model's name [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// A key, if the server needs one
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,

    /// Use /v1/completions instead of /v1/chat/completions
    #[arg(long)]
    completions: bool,

    /// Prompts, one JSON value per line as for `ggro run` [default: 100 of the demo pair's]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Requests
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 24))]
    num_prompts: usize,

    /// Warm-up requests, which are not measured
    #[arg(long, value_name = "N", default_value_t = 2)]
    num_warmups: usize,

    /// Open loop with random arrivals at this many requests per second [default: a closed loop]
    #[arg(long, value_name = "RATE", value_parser = rate, allow_negative_numbers = true)]
    request_rate: Option<f64>,

    /// Most requests in flight: the clients of a closed loop
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    max_concurrency: usize,

    /// New tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_tokens: usize,

    /// Ask for exactly --max-tokens tokens, where the server knows `ignore_eos`
    #[arg(long)]
    ignore_eos: bool,

    /// More fields for every request, as a JSON object
    #[arg(long, value_name = "JSON", value_parser = object)]
    extra_body: Option<Map<String, Value>>,

    /// Latency goals in milliseconds: ttft:MS, tpot:MS, e2el:MS
    #[arg(long, value_name = "GOAL", num_args = 1..)]
    goodput: Vec<Goal>,

    /// Percentiles of the latencies
    #[arg(long, value_name = "P,...", value_delimiter = ',', default_value = "90,99", value_parser = percent)]
    percentiles: Vec<f64>,

    /// Seed of the arrival times
    #[arg(long, value_name = "N", default_value = "0", value_parser = seed)]
    seed: u64,

    /// Timeout of a request in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = RangedU64ValueParser::<u64>::new().range(1..=86400))]
    timeout: u64,

    /// Exit with 0 although requests failed, as long as one was answered
    #[arg(long)]
    allow_failures: bool,

    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,

    /// Include every request in the JSON object
    #[arg(long, requires = "json")]
    detailed: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let base_url = args.base_url.trim_end_matches('/').trim_end_matches("/v1").to_string();
    let (api_key, timeout) = (args.api_key.clone().filter(|key| !key.is_empty()), Duration::from_secs(args.timeout));
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&base_url, api_key.as_deref(), timeout)?,
    };
    let prompts = match &args.input {
        Some(file) => input::read(std::slice::from_ref(file), None)?.into_iter().map(|prompt| prompt.text).collect(),
        None => demo::prompts(),
    };
    let load = Load {
        base_url,
        api_key,
        model,
        chat: !args.completions,
        prompts,
        requests: args.num_prompts,
        warmup: args.num_warmups,
        rate: args.request_rate,
        concurrency: args.max_concurrency,
        max_tokens: args.max_tokens,
        ignore_eos: args.ignore_eos,
        extra: args.extra_body.clone().unwrap_or_default(),
        seed: args.seed,
        timeout,
    };
    let bar = counting(load.requests, 0, "answer").bar;
    let all = send(&load, &|_| bar.inc(1));
    bar.finish_and_clear();
    let all = all?;
    let summary = summary(&load, &all, &args.goodput, &args.percentiles);
    if let Some(error) = all.iter().find_map(|one| one.error.as_ref()) {
        say(&format!("note: {} failed, the first with: {error}", counted(summary.failed, "request")));
    }
    match args.json {
        true => print_json(args, &summary, &all)?,
        false => print_lines(args, &summary)?,
    }
    let good = summary.completed > 0 && (summary.failed == 0 || args.allow_failures);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_json(args: &Args, summary: &Summary, all: &[Measured]) -> anyhow::Result<()> {
    let mut object = serde_json::to_value(summary)?;
    object["version"] = json!(env!("CARGO_PKG_VERSION"));
    object["goals"] = json!(args.goodput);
    if args.detailed {
        let of = |value: fn(&Measured) -> Value| Value::Array(all.iter().map(value).collect());
        object["input_lens"] = of(|one| json!(one.input_tokens));
        object["output_lens"] = of(|one| json!(one.output_tokens));
        object["start_times"] = of(|one| json!(one.start));
        object["ttfts"] = of(|one| json!(one.ttft));
        object["itls"] = of(|one| json!(one.itl));
        object["e2els"] = of(|one| json!(one.e2el));
        object["generated_texts"] = of(|one| json!(one.text));
        object["errors"] = of(|one| json!(one.error));
    }
    Ok(writeln!(std::io::stdout(), "{object}")?)
}

fn print_lines(args: &Args, summary: &Summary) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let loop_of = match args.request_rate {
        Some(rate) => format!("{rate} requests/s arriving, at most {} in flight", summary.max_concurrency),
        None if summary.max_concurrency == 1 => "1 client".to_string(),
        None => format!("{} clients", summary.max_concurrency),
    };
    writeln!(out, "model       {}, {loop_of}", for_stdout(&summary.model_id))?;
    let Summary { completed, num_prompts, duration, .. } = summary;
    writeln!(out, "answers     {completed} of {num_prompts} in {duration:.2} s, {:.2}/s", summary.request_throughput)?;
    if let Some(goodput) = summary.goodput {
        writeln!(out, "goodput     {goodput:.2}/s met every goal")?;
    }
    writeln!(
        out,
        "tokens      {} in, {} out; {:.1} out/s, {:.1} in all/s",
        summary.total_input_tokens,
        summary.total_output_tokens,
        summary.output_throughput,
        summary.total_token_throughput
    )?;
    if summary.without_usage > 0 {
        let answers = counted(summary.without_usage, "answer");
        writeln!(out, "            {answers} came without `usage`: pieces were counted, not tokens, and no prompts")?;
    }
    for (name, words) in [("ttft", "first text"), ("tpot", "per token"), ("itl", "between"), ("e2el", "whole")] {
        let of = |key: &str| summary.latencies.get(&format!("{key}_{name}_ms")).copied().flatten();
        let Some((mean, median)) = of("mean").zip(of("median")) else {
            writeln!(out, "{words:<11} {name:<4} -")?;
            continue;
        };
        let more = args.percentiles.iter().filter_map(|p| Some(format!(", p{p} {:.2}", of(&format!("p{p}"))?)));
        writeln!(out, "{words:<11} {name:<4} mean {mean:.2} ms, median {median:.2}{}", more.collect::<String>())?;
    }
    Ok(writeln!(out, "texts       sha256 {}", &summary.texts_sha256[..16])?)
}

fn url(text: &str) -> std::result::Result<String, String> {
    let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    match rest.is_some_and(|rest| !rest.is_empty()) {
        true => Ok(text.to_string()),
        false => Err(format!("expected a URL that begins with http:// or https://, e.g. http://{text}")),
    }
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("expected requests per second, above 0".to_string()),
    }
}

fn percent(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("expected a percentile, above 0 and at most 100".to_string()),
    }
}

fn object(text: &str) -> Result<Map<String, Value>> {
    let value = serde_json::from_str(text).map_err(|e| Error::invalid(format!("not JSON: {e}")))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Error::invalid("expected a JSON object")),
    }
}
