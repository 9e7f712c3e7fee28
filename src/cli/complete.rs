//! Completions of `ggro generate`: sampled ones, the best of several by the reward model, the answers of the methods that GGRO is
//! compared with, and the greedy one of a policy without a reward model.

use super::args::{Generate, Method, SamplingArgs};
use super::say;
use super::search::tried;
use super::terminal::{Progress, TerminalWriter};
use super::words::{counted, for_stdout};
use crate::answer::{Completions, StopReason};
use crate::baselines::Baseline;
use crate::engine::{complete, search as find};
use crate::files::pair::Pair;
use crate::method::Options;
use crate::method::entropy::Signal;
use crate::runtime::Opened;
use crate::sampling::{CompletionSpec, Sampling, StopStrings};
use crate::text::{Prompt, TextRules, text_of};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Completions of `--method bon` without `--n`.
const BEST_OF: usize = 8;

/// Notes which sampling flags the method ignores, and refuses those it cannot honour.
///
/// # Errors
/// More than one answer of a method that has one, or stop strings for a method that does not sample.
pub(super) fn unused(args: &SamplingArgs) -> Result<()> {
    if args.n.is_some_and(|n| n > 1) {
        return Err(Error::invalid("--n: --method ggro and greedy decode greedily, so all answers would be the same"));
    }
    if !args.stop.is_empty() {
        return Err(Error::invalid(
            "--stop is for --method sample, bon, and those that GGRO is compared with; ggro ends a segment at the policy's stop ids",
        ));
    }
    note_ignored(args, "ggro and greedy do not sample");
    Ok(())
}

/// Notes which flags are ignored, and why.
fn note_ignored(args: &SamplingArgs, why: &str) {
    let given = [
        ("--temperature", args.temperature.is_some()),
        ("--top-k", args.top_k != 0),
        ("--top-p", args.top_p != 1.0),
        ("--min-p", args.min_p != 0.0),
        ("--repetition-penalty", args.repetition_penalty != 1.0),
        ("--presence-penalty", args.presence_penalty != 0.0),
        ("--frequency-penalty", args.frequency_penalty != 0.0),
    ];
    for (flag, _) in given.iter().filter(|(_, given)| *given) {
        say(&format!("note: {flag} is ignored: {why}"));
    }
}

/// Checks what can be checked before weights are opened. `search`: the method, if it is one of those that GGRO is compared with.
///
/// # Errors
/// A flag out of range, or one that completions cannot honour.
pub(super) fn check(args: &Generate, search: Option<&Baseline>) -> Result<()> {
    check_search(&args.sampling, search)?;
    if args.output.trace.is_some() {
        return Err(Error::invalid("--trace records the decisions of --method ggro; a completion has none to record"));
    }
    StopStrings::new(&args.sampling.stop)?;
    sampling(args).check(usize::MAX)
}

/// Refuses what one of the methods that GGRO is compared with cannot honour, and notes what it ignores.
///
/// # Errors
/// More than one answer.
pub(super) fn check_search(args: &SamplingArgs, search: Option<&Baseline>) -> Result<()> {
    let Some(search) = search else { return Ok(()) };
    if args.n.is_some() {
        return Err(Error::invalid(format!(
            "--n is for --method sample and bon; {} gives one answer, and --method-param says how it is found",
            search.name()
        )));
    }
    if !search.samples() {
        note_ignored(args, &format!("{} does not sample", search.name()));
    }
    Ok(())
}

/// `search`: the method with its parameters, if it is one of those that GGRO is compared with.
pub(super) fn run(
    args: &Generate,
    (method, search): (Method, Option<&Baseline>),
    opened: &mut Opened,
    pair: &Pair,
    prompt: &Prompt,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    // These are printed as their tokens become final.
    let streams = method == Method::Greedy || search.is_some();
    let (completions, texts) = match streams {
        true => streamed(args, (method, search), opened, pair, prompt, options)?,
        false => sampled(args, method, opened, pair, prompt, options)?,
    };
    let elapsed = started.elapsed().as_secs_f64();
    let tokens: usize = completions.all.iter().map(|one| one.ids.len()).sum();
    let work = completions.work;
    let mut out = std::io::stdout();
    if args.output.json {
        let all = completions.all.iter().zip(&texts).map(|(one, text)| {
            json!({
                "text": text, "ids": one.ids, "finish_reason": reason(one.reason), "reward": one.reward,
            })
        });
        let mut object = json!({
            "text": texts[completions.best],
            "reward": completions.all[completions.best].reward,
            "best": completions.best,
            "completions": all.collect::<Vec<Value>>(),
            "prompt_tokens": prompt.ids.len(),
            "new_tokens": tokens,
            "work": work,
            "elapsed_seconds": elapsed,
            "device": opened.device().to_string(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let (Some(search), Some(counts)) = (search, &completions.search) {
            object["method"] = json!(search);
            object["search"] = json!(counts);
        }
        writeln!(out, "{object}")?;
        return Ok(ExitCode::SUCCESS);
    }
    match method {
        // It was printed as it was decoded.
        _ if streams => {}
        Method::Bon => writeln!(out, "{}", for_stdout(&texts[completions.best]))?,
        _ => {
            for (index, text) in texts.iter().enumerate() {
                let gap = if index > 0 { "\n" } else { "" };
                writeln!(out, "{gap}{}", for_stdout(text))?;
            }
        }
    }
    let rewards: Vec<String> =
        completions.all.iter().filter_map(|one| one.reward).map(|reward| format!("{reward:.3}")).collect();
    let mut lines = String::new();
    if let Some(reward) = completions.all[completions.best].reward {
        lines += &match (search, rewards.len()) {
            (Some(_), 1) => format!("reward      {reward:.3}\n"),
            (Some(_), count) => format!("reward      {reward:.3}, chosen from {count}: {}\n", rewards.join(", ")),
            (None, count) => format!("reward      {reward:.3}, the best of {count}: {}\n", rewards.join(", ")),
        };
    }
    if let (Some(search), Some(counts)) = (search, &completions.search) {
        lines += &format!("search      {}\n", tried(search, counts));
    }
    lines += &format!(
        "completions {}, {} behind a prompt of {}\n",
        completions.all.len(),
        counted(tokens, "token"),
        prompt.ids.len()
    );
    lines += &format!(
        "work        policy {} token-forwards; reward {} token-forwards\n",
        work.policy_forward, work.reward_forward
    );
    lines += &format!("time        {elapsed:.2} s, {:.1} tokens/s", tokens as f64 / elapsed.max(1e-9));
    say(&lines);
    Ok(ExitCode::SUCCESS)
}

/// One answer, printed as its tokens become final.
fn streamed(
    args: &Generate,
    (method, search): (Method, Option<&Baseline>),
    opened: &mut Opened,
    pair: &Pair,
    prompt: &Prompt,
    options: &Options,
) -> anyhow::Result<(Completions, Vec<String>)> {
    let settings = args.engine.single();
    let rules = Arc::new(TextRules {
        stops: StopStrings::new(&args.sampling.stop)?,
        stop_ids: options.stop_ids.clone(),
        finish_ids: vec![options.finish_id],
        ..TextRules::default()
    });
    // Uncertain tokens are coloured by their entropy, which another signal's threshold says nothing about.
    let threshold = if options.signal == Signal::Entropy { options.entropy_threshold } else { f64::INFINITY };
    let mut terminal = TerminalWriter::of_answer(args, pair, prompt, rules.clone(), threshold);
    let spec = spec(args, pair, prompt, options, method, &rules);
    let sampling = if search.is_some_and(Baseline::samples) { spec.sampling } else { Sampling::default() };
    let spec = CompletionSpec { sampling, stream_tokens: true, ..spec };
    let completed = match search {
        Some(search) => find(opened.backend(), &settings, &prompt.ids, spec, search, &mut terminal),
        None => complete(opened.backend(), &settings, &prompt.ids, spec, &mut terminal),
    };
    let (completions, _) = completed.map_err(|error| terminal.failed(error))?;
    terminal.finish()?;
    if let Some(closed) = terminal.closed.take() {
        return Err(closed.into());
    }
    let texts = texts_of(pair, prompt, &rules, &completions)?;
    Ok((completions, texts))
}

/// Samples, and the best of several.
fn sampled(
    args: &Generate,
    method: Method,
    opened: &mut Opened,
    pair: &Pair,
    prompt: &Prompt,
    options: &Options,
) -> anyhow::Result<(Completions, Vec<String>)> {
    let settings = args.engine.single();
    let stops = StopStrings::new(&args.sampling.stop)?;
    let rules = Arc::new(TextRules { stops, stop_ids: options.stop_ids.clone(), ..TextRules::default() });
    let spec = spec(args, pair, prompt, options, method, &rules);
    let mut progress = Progress::new();
    let completed = complete(opened.backend(), &settings, &prompt.ids, spec, &mut progress);
    progress.clear();
    let (completions, _) = completed?;
    let texts = texts_of(pair, prompt, &rules, &completions)?;
    Ok((completions, texts))
}

/// The texts of completions, as those of the greedy answer and of ggro are written: behind the prompt, with the
/// beginning that was given, without the header that the policy writes itself.
fn texts_of(pair: &Pair, prompt: &Prompt, rules: &Arc<TextRules>, completions: &Completions) -> Result<Vec<String>> {
    let text = |ids: &[u32]| text_of(&pair.tokenizer, rules, &prompt.ids, &prompt.header, ids);
    completions.all.iter().map(|one| Ok(prompt.prefill.clone() + &text(&one.ids)?)).collect()
}

fn sampling(args: &Generate) -> Sampling {
    sampling_of(&args.sampling, args.method.seed)
}

/// How tokens are chosen.
pub(super) fn sampling_of(given: &SamplingArgs, seed: u64) -> Sampling {
    Sampling {
        temperature: given.temperature.unwrap_or(1.0),
        top_k: given.top_k,
        top_p: given.top_p,
        min_p: given.min_p,
        repetition_penalty: given.repetition_penalty,
        presence_penalty: given.presence_penalty,
        frequency_penalty: given.frequency_penalty,
        seed,
        ..Sampling::default()
    }
}

/// Completions of `--method sample` or `bon`.
pub(super) fn count(given: &SamplingArgs, method: Method) -> usize {
    given.n.unwrap_or(if method == Method::Bon { BEST_OF } else { 1 })
}

fn spec(
    args: &Generate,
    pair: &Pair,
    prompt: &Prompt,
    options: &Options,
    method: Method,
    rules: &Arc<TextRules>,
) -> CompletionSpec {
    let best = method == Method::Bon;
    let watched = !rules.stops.is_empty();
    let stop_check = watched.then(|| rules.watch(&pair.tokenizer, &prompt.ids, &prompt.header));
    CompletionSpec {
        sampling: sampling(args),
        n: count(&args.sampling, method),
        score: best,
        max_new_tokens: options.max_new_tokens,
        stop_ids: options.stop_ids.clone(),
        stop_check,
        ..CompletionSpec::default()
    }
}

fn reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Stop => "stop",
        StopReason::Length => "length",
    }
}
