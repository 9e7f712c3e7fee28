//! `ggro generate`.

use super::args::{Generate, Method};
use super::complete;
use super::output::Output;
use super::prompt::{message, of_message, of_request};
use super::say;
use super::summary::Answer;
use super::terminal::{Progress, TerminalWriter, View, coloured};
use crate::engine::{Settings, decode, decode_with};
use crate::files::demo;
use crate::files::pair::Pair;
use crate::method::Options;
use crate::method::entropy::{signal, threshold_of};
use crate::model::{Backend, Work};
use crate::rng::Uniforms;
use crate::text::{Prompt, PromptLayout, TextRules, TextWriter, text_of};
use crate::trace::{Request, Trace};
use crate::{Error, Result};
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// The official code's preset for dialogue.
pub(super) const MAX_NEW_TOKENS: usize = 128;
/// Its candidates per segment, for the pair of 8 billion weights.
pub(super) const CANDIDATES: usize = 8;
const ENTROPY_THRESHOLD: f64 = 1.5;

/// A threshold that no signal reaches: decoding in one segment.
const NEVER: f64 = f64::MAX;

const NO_EFFECT: &str = "has no effect here: in the official code it scales the bias that imposes the nudge token after it \
was chosen; ggro forces that token outright";

pub(super) fn run(args: &Generate) -> anyhow::Result<ExitCode> {
    if args.method.nudge_weight.is_some() {
        say(&format!("note: --nudge-weight {NO_EFFECT}"));
    }
    if args.method.scale_nudge_biases.is_some() {
        say(&format!("note: --scale-nudge-biases {NO_EFFECT}"));
    }
    let sampled = matches!(args.method.method, Method::Sample | Method::Bon);
    match sampled {
        true => complete::check(args)?,
        false => complete::unused(&args.sampling)?,
    }
    // What can fail cheaply fails before the weights are opened.
    let trace = args.output.trace.as_deref().map(Output::check).transpose()?;
    let request = args.text.request.as_deref().map(Request::read).transpose()?;
    let message = match &request {
        Some(_) => None,
        None => Some(message(args.prompt.as_deref())?),
    };
    let pair = args.pair.load()?;
    let prompt = match (&request, message) {
        (Some(request), _) => of_request(request)?,
        (None, message) => of_message(&pair, &args.text, message.unwrap_or_default())?,
    };
    let context = args.pair.context(&pair);
    let options = options(args, &pair, &prompt, request.as_ref(), context)?;
    options.check()?;
    let uniforms = match request.as_ref().and_then(|r| r.uniforms_used.clone()) {
        Some(uniforms) => Uniforms::Recorded(uniforms),
        None => Uniforms::Seeded(args.method.seed),
    };
    let mut device = args.device.find()?;
    let mut opened = args.device.open(&mut device, &pair, args.pair.max_model_len)?;
    if sampled {
        return complete::run(args, &mut opened, &pair, &prompt, &options);
    }

    let painted = coloured(args.output.color) && !args.output.json;
    let view = View {
        prefill: &prompt.prefill,
        threshold: options.entropy_threshold,
        printed: !args.output.json,
        painted,
        persistent: trace.is_some(),
    };
    let rules = TextRules::ending_at(options.finish_id);
    let writer = TextWriter::new(pair.tokenizer.clone(), rules, &prompt.ids, &prompt.header);
    let mut terminal = TerminalWriter::new(writer, &view);
    let started = Instant::now();
    let settings = Settings { run_ahead: !args.engine.no_run_ahead, ..Settings::alone(args.engine.speculation) };
    let decoded = decode_with(opened.backend(), &settings, &prompt.ids, &options, uniforms, &mut terminal);
    let elapsed = started.elapsed();
    let (response, account) = match decoded {
        Ok(decoded) => decoded,
        Err(error) => {
            terminal.abandon();
            return match terminal.closed.take() {
                Some(closed) => Err(closed.into()),
                None => Err(error.into()),
            };
        }
    };
    terminal.finish()?;
    let speculative = account.speculative();
    let answer = Answer { response, text: std::mem::take(&mut terminal.text), elapsed, speculative };
    if let Some(trace) = trace {
        let text = prompt.text.as_deref();
        let tokenizer = Some(&*pair.tokenizer);
        let record = Trace::from_response("generate", text, &options, &answer.response, tokenizer)?;
        let mut bytes = serde_json::to_vec(&record)?;
        bytes.push(b'\n');
        trace.write(&bytes)?;
    }
    if let Some(closed) = terminal.closed.take() {
        return Err(closed.into());
    }
    let compared = args.method.method == Method::Ggro && !args.method.no_baseline;
    let greedy = if compared { Some(greedy(opened.backend(), &pair, &prompt, &options)?) } else { None };
    if args.output.json {
        let object = answer.json(greedy.as_ref(), &opened.device().to_string());
        writeln!(std::io::stdout(), "{object}")?;
    } else {
        say(&answer.lines(greedy.as_ref(), painted));
    }
    Ok(ExitCode::SUCCESS)
}

/// Flags, then what the request names, then what the pair says of itself.
fn options(
    args: &Generate,
    pair: &Pair,
    prompt: &Prompt,
    request: Option<&Request>,
    context: usize,
) -> Result<Options> {
    let method = &args.method;
    let asked = request.map(|r| &r.options);
    let name = asked.and_then(|o| o.signal.as_deref()).unwrap_or(&method.signal);
    let signal = signal(name).ok_or_else(|| Error::invalid(format!("`options.signal`: {name:?} is not a signal")))?;
    let room = room(prompt.ids.len(), context)?;
    let default_budget = if args.pair.is_demo() { demo::MAX_NEW_TOKENS } else { MAX_NEW_TOKENS };
    let mut options = method.over(Options {
        max_new_tokens: method.max_new_tokens.unwrap_or(default_budget.min(room)),
        entropy_threshold: method.entropy_threshold.unwrap_or_else(|| default_threshold(name, args.pair.is_demo())),
        signal,
        max_candidates: method.num_refinement_steps.unwrap_or(CANDIDATES),
        first_offset: prompt.header.len(),
        reward_pad_id: pair.reward_pad_id,
        full_trace: args.output.trace.is_some(),
        ..Options::new(pair.finish_id, pair.stop_ids.clone())
    });
    if let Some(asked) = asked {
        asked.apply(&mut options);
    }
    if method.method == Method::Greedy {
        options.max_candidates = 1;
    }
    if options.max_new_tokens > room {
        let flag = match asked.and_then(|o| o.max_new_tokens) {
            Some(_) => "`options.max_new_tokens`",
            None => "--max-new-tokens",
        };
        return Err(Error::invalid(format!(
            "{flag} {}: the context of {context} tokens has room for {room} after a prompt of {}",
            options.max_new_tokens,
            prompt.ids.len()
        )));
    }
    if options.max_new_tokens < default_budget
        && method.max_new_tokens.is_none()
        && asked.is_none_or(|o| o.max_new_tokens.is_none())
    {
        say(&format!("note: the context of {context} tokens has room for {room} new tokens, not {default_budget}"));
    }
    if args.text.prompt_layout == PromptLayout::Official
        && prompt.header.is_empty()
        && prompt.prefill.is_empty()
        && request.is_none()
    {
        say("note: --prompt-layout official: the template's generation prompt adds nothing; both layouts are the same");
    }
    Ok(options)
}

/// Tokens that fit behind the prompt.
fn room(prompt: usize, context: usize) -> Result<usize> {
    match context.checked_sub(prompt) {
        Some(room) if room > 0 => Ok(room),
        _ => Err(Error::invalid(format!(
            "the prompt of {prompt} tokens leaves no room in the context of {context} (the models', or --max-model-len)"
        ))),
    }
}

pub(super) fn default_threshold(signal: &str, demo: bool) -> f64 {
    match signal {
        "entropy" if demo => demo::ENTROPY_THRESHOLD,
        "entropy" => ENTROPY_THRESHOLD,
        other => threshold_of(other),
    }
}

/// Plain greedy decoding of the same prompt, for comparison.
fn greedy(backend: &mut dyn Backend, pair: &Pair, prompt: &Prompt, options: &Options) -> Result<Answer> {
    let options = Options { max_candidates: 1, entropy_threshold: NEVER, full_trace: false, ..options.clone() };
    let mut progress = Progress::new();
    let started = Instant::now();
    let response = decode(backend, &prompt.ids, &options, Uniforms::Seeded(0), &mut progress);
    progress.clear();
    let response = response?;
    let elapsed = started.elapsed();
    let (rules, new) = (TextRules::ending_at(options.finish_id), &response.final_ids[response.prompt_len..]);
    let text = prompt.prefill.clone() + &text_of(&pair.tokenizer, &rules, &prompt.ids, &prompt.header, new)?;
    Ok(Answer { response, text, elapsed, speculative: Work::default() })
}
