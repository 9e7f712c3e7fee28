//! `ggro guard`.

use super::models::{DeviceArgs, TemplateArgs, counting, files, made_on, noted};
use super::output::{Paths, put_in_order};
use super::say;
use super::words::{counted, for_stdout};
use crate::Error;
use crate::batch::each;
use crate::batch::guard::{Guard, Verdict, hash_of};
use crate::batch::output::{MadeOn, Row, Rows, config_path, part_path, read};
use crate::batch::report::{Mean, mean};
use crate::engine::{Engine, Settings};
use crate::files::pair::{LanguageModel, Pair};
use crate::runtime::Device;
use clap::builder::RangedU64ValueParser;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Ask a guard model whether the answers of a run are safe
///
/// Writes a line per answer and resumes if interrupted. Prints the share of unsafe answers with its 95 % interval (bootstrap), and
/// how often each category was named. The guard must answer like Llama Guard: `safe`, or `unsafe` and categories.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `ggro run` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The guard model, a causal language model with a chat template: a directory or a name
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// Where to write verdicts [default: FILE with the extension guard.jsonl]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Most answers to check at the same time
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    max_concurrency: usize,

    /// Longest prompt and answer together, in tokens [default: the guard's context, at most 4096]
    #[arg(long, value_name = "TOKENS",
          value_parser = RangedU64ValueParser::<usize>::new().range(64..))]
    max_model_len: Option<usize>,

    /// Pass over prompts that are too long for the guard, instead of ending with an error
    ///
    /// Each has a line without a verdict, whose `skipped` says why. The end of an answer is left out in any case.
    #[arg(long)]
    skip_too_long: bool,

    /// Go on with a file whose verdicts were made on another kind of device, or by other kernels
    #[arg(long)]
    mix_devices: bool,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let output = args.output.clone().unwrap_or_else(|| args.file.with_extension("guard.jsonl"));
    let paths = Paths::default().reading([&args.file, &config_path(&args.file), &args.model]);
    let paths = paths.reading(&args.template.chat_template).writing("--output", Some(&output));
    let paths = paths.writing("--output (its .config.json)", Some(&config_path(&output)));
    let paths = paths.writing("--output (its .part)", Some(&part_path(&output)));
    paths.writing("--trace-events", args.device.profile.trace_events.as_deref()).check()?;
    let rows: Vec<Row> = read(&args.file)?;
    // What was passed over has no answer to be judged.
    let by_index: BTreeMap<usize, &Row> =
        rows.iter().filter(|row| row.skipped.is_none()).map(|row| (row.index, row)).collect();
    let mut template = args.template.clone();
    let recorded = template.pin(&output)?;
    let mut pair = Arc::new(noted(Pair::policy_only(&files(&args.model)?)?));
    template.set_up(&mut pair)?;
    let guard = pair.policy()?;
    let Some(chat) = &guard.chat else {
        return Err(Error::file(&args.model, "a guard model needs a chat template; this one has none").into());
    };
    let context = guard.config.max_position_embeddings.min(args.max_model_len.unwrap_or(4096));
    let mut device = args.device.find()?;
    let mut config = config(args, guard, context, &device);
    let made_on = made_on(&device);
    made_on.record(&mut config);
    template.record(&pair, recorded, &mut config);
    let fits = |verdict: &Verdict| match by_index.get(&verdict.index) {
        Some(row) if row.prompt != verdict.prompt => Err("judges an answer to another prompt".to_string()),
        Some(row) if verdict.answer_hash.as_ref().is_some_and(|hash| *hash != hash_of(&row.response)) => {
            Err("judges another answer than that of the input; use another output file".to_string())
        }
        Some(_) => Ok(()),
        None => Err("judges an answer that is not in the input".to_string()),
    };
    let mut out = Rows::open::<Verdict>(&output, &config, args.mix_devices, &fits)?;
    let left: Vec<&Row> = by_index.values().copied().filter(|row| !out.has(row.index)).collect();
    let nothing_left = left.is_empty();
    if !nothing_left {
        let settings = Settings { max_requests: args.max_concurrency, ..Settings::default() };
        let (for_engine, flags) = (pair.clone(), args.device.clone());
        let open = move || Ok(flags.open_quietly(&mut device, &for_engine, context)?.into_backend());
        let engine = Engine::start(settings, open)?;
        let skip_too_long = args.skip_too_long;
        let guard = Guard {
            engine: &engine,
            tokenizer: &pair.tokenizer,
            chat,
            stop_ids: &guard.stop_ids,
            context,
            skip_too_long,
        };
        let count = counting(left.len(), 0, "verdict");
        count.goes_on(&output);
        let ask = |row: &&Row| {
            let MadeOn { device, kernels } = made_on.clone();
            Ok(Verdict { device: Some(device), kernels, ..guard.ask(row)? })
        };
        let verdicts = each(&left, args.max_concurrency, &mut out, &ask, &|_: &Verdict| {
            count.bar.inc(1);
        });
        count.bar.finish_and_clear();
        verdicts?;
    }
    put_in_order(out, nothing_left)?;
    print(args, &read(&output)?)
}

fn config(args: &Args, guard: &LanguageModel, context: usize, device: &Device) -> Map<String, Value> {
    let all = json!({
        "ggro": env!("CARGO_PKG_VERSION"),
        "rows": args.file.display().to_string(),
        "guard": format!("{}, {} weights", args.model.display(), guard.config.num_parameters()),
        "context": context,
        "arithmetic": device.arithmetic(args.device.dtype),
    });
    match all {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn print(args: &Args, verdicts: &[Verdict]) -> anyhow::Result<ExitCode> {
    let judged = verdicts.iter().filter_map(|verdict| verdict.safe).map(|safe| f64::from(u8::from(!safe)));
    let unsafe_share = mean(judged.collect());
    let mut categories: BTreeMap<&str, usize> = BTreeMap::new();
    for name in verdicts.iter().flat_map(|verdict| &verdict.categories) {
        *categories.entry(name).or_default() += 1;
    }
    let skipped = verdicts.iter().filter(|verdict| verdict.skipped.is_some()).count();
    let neither = verdicts.iter().filter(|verdict| verdict.safe.is_none()).count() - skipped;
    let count = verdicts.len() - skipped;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({ "verdicts": count, "unsafe": unsafe_share, "neither": neither, "skipped": skipped, "categories": categories });
        writeln!(out, "{object}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "verdicts    {count}")?;
    if let Some(Mean { mean, low, high, count }) = unsafe_share {
        writeln!(out, "unsafe      {:.1} % ({:.1} to {:.1}) of {count}", 100.0 * mean, 100.0 * low, 100.0 * high)?;
    }
    for (name, count) in categories {
        writeln!(out, "  {:<9} {count}", for_stdout(name))?;
    }
    if skipped > 0 {
        say(&format!("note: --skip-too-long passed over {}", counted(skipped, "prompt")));
    }
    if neither > 0 {
        say(&format!("note: for {} the guard said neither safe nor unsafe", counted(neither, "answer")));
    }
    Ok(ExitCode::SUCCESS)
}
