//! `ggro generate`.

use super::args::{Generate, Method, MethodArgs, room};
use super::complete;
use super::models::{PairArgs, note_without_template};
use super::output::{Output, Paths};
use super::prompt::{message, of_message, of_request};
use super::summary::Answer;
use super::terminal::{Progress, TerminalWriter, coloured};
use super::{say, say_painted};
use crate::answer::Response;
use crate::engine::{Observer, RequestStats, Settings, decode, decode_retokenized, decode_with, score as score_text};
use crate::files::pair::Pair;
use crate::method::Options;
use crate::model::ModelPair;
use crate::presets::Given;
use crate::rng::Uniforms;
use crate::scoring::RewardQuery;
use crate::text::{Prompt, RespelledText, TextRules, text_of};
use crate::trace::{RequestFile, Trace};
use crate::{Error, Result};
use std::cell::RefCell;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// A threshold that no signal reaches: decoding in one segment.
const NEVER: f64 = f64::MAX;

const NO_EFFECT: &str = "has no effect: in the official code it scales the bias that imposes the nudge token after it \
was chosen; ggro forces that token outright";

pub(super) fn run(args: &Generate) -> anyhow::Result<ExitCode> {
    let method = args.method.method(&args.pair)?;
    if args.method.nudge_weight.is_some() {
        say(&format!("note: --nudge-weight {NO_EFFECT}"));
    }
    if args.method.scale_nudge_biases.is_some() {
        say(&format!("note: --scale-nudge-biases {NO_EFFECT}"));
    }
    let search = args.search.method(&method.name())?;
    // Without a reward model there are no segments to be chosen: all of the answer is one completion.
    let completed = !args.pair.has_reward() || !matches!(method, Method::Ggro | Method::Greedy);
    if completed {
        complete::check(args, search.as_ref())?;
    }
    check_retokenize(args.text.retokenize, method, &args.method)?;
    if matches!(method, Method::Ggro | Method::Greedy) {
        complete::unused(&args.sampling)?;
    }
    // Cheap checks come before the weights are opened.
    let paths = Paths::default()
        .reading(&args.text.request)
        .reading(args.pair.paths())
        .reading(args.engine.draft.model())
        .reading(&args.template.chat_template);
    let paths = paths.writing("--trace", args.output.trace.as_deref());
    paths.writing("--trace-events", args.device.profile.trace_events.as_deref()).check()?;
    let trace = args.output.trace.as_deref().map(Output::check).transpose()?;
    let request = args.text.request.as_deref().map(RequestFile::read).transpose()?;
    let message = match &request {
        Some(_) => None,
        None => Some(message(args.prompt.as_deref())?),
    };
    let mut pair = args.pair.load()?;
    PairArgs::add_draft(&mut pair, args.engine.draft.model())?;
    args.template.set_up(&mut pair)?;
    if request.is_none() {
        note_without_template(&pair);
    }
    let prompt = match (&request, message) {
        (Some(request), _) => of_request(request)?,
        (None, message) => of_message(&pair, &args.text, message.unwrap_or_default())?,
    };
    let context = args.pair.context(&pair);
    let options = options(args, method, &pair, &prompt, request.as_ref(), context)?;
    options.check()?;
    let uniforms = match request.as_ref().and_then(|r| r.uniforms_used.clone()) {
        Some(uniforms) => Uniforms::Recorded(uniforms),
        None => Uniforms::Seeded(args.method.seed),
    };
    let mut device = args.device.find()?;
    let mut opened = args.device.open(&mut device, &pair, args.pair.max_model_len)?;
    if completed {
        return complete::run(args, (method, search.as_ref()), &mut opened, &pair, &prompt, &options);
    }

    let painted = coloured(args.output.color) && !args.output.json && !args.text.retokenize;
    let rules = TextRules::ending_at(options.finish_id);
    let mut terminal = TerminalWriter::of_answer(args, &pair, &prompt, rules, options.entropy_threshold);
    let started = Instant::now();
    let settings = args.engine.single();
    let decoded = match args.text.retokenize {
        false => decode_with(opened.backend(), &settings, &prompt.ids, &options, uniforms, &mut terminal),
        true => retokenized(opened.backend(), &settings, &pair, &prompt, &options, &mut terminal),
    };
    let elapsed = started.elapsed();
    let (response, account) = match decoded {
        Ok(decoded) => decoded,
        Err(error) => return Err(terminal.failed(error)),
    };
    match &response.respelled {
        Some(text) => terminal.whole(text),
        None => terminal.finish()?,
    }
    let speculative = account.speculative();
    let round_trip_stable = pair.tokenizer.round_trips(&response.final_ids)?;
    let text = std::mem::take(&mut terminal.text);
    let answer = Answer { response, text, elapsed, speculative, drafts: account.drafts, round_trip_stable };
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
    let compared = method == Method::Ggro && !args.method.no_baseline;
    let greedy = if compared { Some(greedy(opened.backend(), &pair, &prompt, &options)?) } else { None };
    if args.output.json {
        let object = answer.json(greedy.as_ref(), &opened.device().to_string());
        writeln!(std::io::stdout(), "{object}")?;
    } else {
        say_painted(&answer.lines(greedy.as_ref(), painted));
    }
    Ok(ExitCode::SUCCESS)
}

/// Flags, and what the request names over them.
fn options(
    args: &Generate,
    method: Method,
    pair: &Pair,
    prompt: &Prompt,
    request: Option<&RequestFile>,
    context: usize,
) -> Result<Options> {
    let len = prompt.ids.len();
    let asked = request.map(|r| &r.options);
    let given =
        Given { signal: asked.and_then(|o| o.signal.clone()).or(args.method.signal.clone()), ..args.method.given() };
    let parameters = given.over(args.pair.preset()).map_err(|e| Error::invalid(format!("`options.signal`: {e}")))?;
    if context <= len {
        return Err(Error::invalid(format!(
            "the prompt of {len} tokens leaves no room in the context of {context} (the models', or --max-model-len)"
        )));
    }
    let budget = match asked.and_then(|o| o.max_new_tokens) {
        Some(asked) => Some((asked, "`options.max_new_tokens`")),
        None => given.max_new_tokens.map(|asked| (asked, "--max-new-tokens")),
    };
    let room = room(budget, len, context)?;
    if budget.is_none() && room < parameters.max_new_tokens {
        let default = parameters.max_new_tokens;
        say(&format!("note: the context of {context} tokens has room for {room} new tokens, not {default}"));
    }
    let mut options = Options {
        first_offset: prompt.first_offset,
        full_trace: args.output.trace.is_some(),
        ..parameters.options(pair)?
    };
    if let Some(asked) = asked {
        asked.apply(&mut options);
    }
    options.max_new_tokens = budget.map_or(options.max_new_tokens.min(room), |(asked, _)| asked);
    if method == Method::Greedy {
        options.max_candidates = 1;
    }
    Ok(options)
}

/// Whether `--retokenize` can be honoured.
pub(super) fn check_retokenize(asked: bool, method: Method, args: &MethodArgs) -> Result<()> {
    if asked && method != Method::Ggro {
        return Err(Error::invalid("--retokenize: only answers of --method ggro are decoded in segments"));
    }
    if asked && args.given().draws() {
        return Err(Error::invalid(
            "--retokenize: nudge tokens must be chosen greedily, not by --nudge-selection sample or --proposals random or \
             shuffled-gradient",
        ));
    }
    Ok(())
}

/// A response whose text is tokenised again between segments.
fn retokenized(
    backend: &mut ModelPair,
    settings: &Settings,
    pair: &Pair,
    prompt: &Prompt,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<(Response, RequestStats)> {
    let mut stats = RequestStats::default();
    // Two closures have turns with the models.
    let backend = RefCell::new(backend);
    let mut text = RespelledText::new(&pair.tokenizer, prompt, options.finish_id)?;
    let mut run = |ids: &[u32], options: &Options| {
        let uniforms = Uniforms::Seeded(0);
        let (response, ran) = decode_with(&mut backend.borrow_mut(), settings, ids, options, uniforms, observer)?;
        stats.ran += ran.ran;
        stats.necessary += ran.necessary;
        stats.drafts += ran.drafts;
        Ok(response)
    };
    let mut score = |ids: &[u32]| {
        let query = RewardQuery { ids: ids.to_vec(), ..RewardQuery::default() };
        Ok(score_text(&mut backend.borrow_mut(), settings, query, options.reward_pad_id)?.0.reward)
    };
    let response = decode_retokenized(&prompt.ids, options, &mut text, &mut run, &mut score)?;
    Ok((response, stats))
}

/// Plain greedy decoding of the same prompt, for comparison.
fn greedy(backend: &mut ModelPair, pair: &Pair, prompt: &Prompt, options: &Options) -> Result<Answer> {
    let options = Options { max_candidates: 1, entropy_threshold: NEVER, full_trace: false, ..options.clone() };
    let mut progress = Progress::named("plain greedy answer, to compare with");
    let started = Instant::now();
    let response = decode(backend, &prompt.ids, &options, Uniforms::Seeded(0), &mut progress);
    progress.clear();
    let response = response?;
    let elapsed = started.elapsed();
    let (rules, new) = (TextRules::ending_at(options.finish_id), &response.final_ids[response.prompt_len..]);
    let text = prompt.prefill.clone() + &text_of(&pair.tokenizer, &rules, &prompt.ids, &prompt.header, new)?;
    let round_trip_stable = pair.tokenizer.round_trips(&response.final_ids)?;
    let (speculative, drafts) = Default::default();
    Ok(Answer { response, text, elapsed, speculative, drafts, round_trip_stable })
}
