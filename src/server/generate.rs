//! A request in the engine: its tickets, and the text that is made of their updates.

use super::error::ApiError;
use super::piece::{Piece, Token};
use super::request::{ApiRequest, Method};
use super::{AppState, Permit};
use crate::answer::{Completions, FinishReason, Response, Segment, StopReason, TokenLogprob};
use crate::engine::{
    DraftStats, Engine, Handle, Progress, RequestStats, Submitter, Update, baseline, intervention, sampler,
};
use crate::method::Options;
use crate::model::{ModelPair, Work};
use crate::rng::Uniforms;
use crate::sampling::{CompletionSpec, Sampling};
use crate::text::{End, Prompt, TextWriter};
use crate::trace::{Trace, finish_reason_name};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// An event of a run.
#[derive(Debug)]
pub enum RunEvent {
    /// More of an answer's text.
    Piece {
        /// Number of the answer.
        choice: usize,
        /// What was added.
        piece: Piece,
        /// The segment that was committed with it, if the trace was asked for.
        segment: Option<Value>,
    },
    /// An answer has ended.
    End {
        /// Number of the answer.
        choice: usize,
        /// Why it ended.
        end: End,
        /// Rewards and counters of the method, as the response reports them.
        outcome: Option<Value>,
    },
}

/// What a request used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt: usize,
    /// Prompt tokens whose keys and values another request had computed.
    pub cached: usize,
    /// Tokens of all answers.
    pub completion: usize,
    /// Tokens that went through the models for it.
    pub work: Work,
    /// Those of them that the answer needed.
    pub necessary: Work,
    /// Those of them that were guessed.
    pub drafts: DraftStats,
    /// Committed segments.
    pub segments: usize,
    /// Candidates visited besides the unforced ones.
    pub refinements: usize,
    /// Segments in which a forced candidate was kept.
    pub nudges: usize,
    /// Whether the method or the reward model took part.
    pub steered: bool,
}

impl Usage {
    /// The API's `usage` object.
    pub fn json(&self) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        });
        if self.steered {
            usage["ggro"] = json!({
                "policy_forward": self.work.policy_forward,
                "reward_forward": self.work.reward_forward,
                "reward_backward": self.work.reward_backward,
                "necessary": {
                    "policy_forward": self.necessary.policy_forward,
                    "reward_forward": self.necessary.reward_forward,
                    "reward_backward": self.necessary.reward_backward,
                },
                "segments": self.segments,
                "refinement_steps": self.refinements,
                "nudges": self.nudges,
            });
            if self.drafts.drafted() > 0 {
                usage["ggro"]["drafts"] = json!(self.drafts);
            }
        }
        usage
    }
}

/// What the engine answers with.
enum Output {
    Response(Box<Response>),
    Completions(Completions),
}

/// Where the engine's updates go, with the number of their ticket.
type Updates = UnboundedSender<(usize, Update<Output>)>;

/// A ticket of the engine and what is known of its answers.
struct Ticket {
    handle: Handle,
    prompt: usize,
    /// It only asks for the log-probabilities of a prompt whose answers other tickets bring.
    only_prompt: bool,
    /// Number of its first answer.
    first: usize,
    options: Option<Box<Options>>,
    /// Reward of the newest segment, for an answer that is cut before its end.
    last_reward: Option<f32>,
    /// Segments of its answer so far, and those whose kept candidate was a nudged one.
    segments: usize,
    nudges: usize,
    done: bool,
}

/// A request in the engine. Dropping it cancels what is in flight.
pub struct Run {
    app: Arc<AppState>,
    /// The request.
    pub request: ApiRequest,
    tickets: Vec<Ticket>,
    writers: Vec<TextWriter>,
    ended: Vec<bool>,
    updates: UnboundedReceiver<(usize, Update<Output>)>,
    early: VecDeque<(usize, Update<Output>)>,
    events: VecDeque<RunEvent>,
    /// Of answers whose prompt is to be repeated first: what waits for it.
    held: Vec<Option<Vec<RunEvent>>>,
    deadline: tokio::time::Instant,
    clock: Clock,
    /// What was used so far.
    pub usage: Usage,
    request_id: String,
    finished: bool,
    _permit: Permit,
}

/// The times that metrics and log lines are made of.
struct Clock {
    arrived: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Run {
    /// Submits a request for `submitter`. `came`: when it arrived, and its request id.
    ///
    /// # Errors
    /// The engine has ended, or the request asks for more than there is room for.
    pub fn start(
        app: &Arc<AppState>,
        request: ApiRequest,
        mut permit: Permit,
        submitter: Submitter,
        came: (Instant, String),
    ) -> Result<Run, ApiError> {
        let engine = app.engine()?;
        let (tx, updates) = unbounded_channel();
        let each = if matches!(request.method, Method::Guided(_)) { request.n } else { 1 };
        // The sampler tells the log-probabilities of its prompt itself.
        let apart = request.echo && request.logprobs.is_some() && !matches!(request.method, Method::Sampled(_));
        let longest = request.max_new_tokens.iter().copied().max().unwrap_or(0);
        permit
            .widen(request.prompts.len() * (each + usize::from(apart)), request.entries().saturating_sub(longest))
            .map_err(|error| if error.status == 400 { error.about("n") } else { error })?;
        let (mut tickets, mut writers) = (Vec::new(), Vec::new());
        for (index, prompt) in request.prompts.iter().enumerate() {
            let answers = if apart && request.max_new_tokens[index] == 0 { 0 } else { each };
            for copy in 0..answers + usize::from(apart) {
                let only_prompt = copy == answers;
                let ticket = (tickets.len(), tx.clone());
                let (handle, options) = match only_prompt {
                    true => (submit_prompt(engine, submitter, &request, index, ticket)?, None),
                    false => submit(engine, submitter, app, &request, (index, copy), ticket)?,
                };
                let first = index * request.n + if only_prompt { 0 } else { copy };
                tickets.push(Ticket {
                    handle,
                    prompt: index,
                    only_prompt,
                    first,
                    options,
                    last_reward: None,
                    segments: 0,
                    nudges: 0,
                    done: false,
                });
            }
            let writer = || {
                let (tokenizer, rules) = (app.pair.tokenizer.clone(), request.rules.clone());
                TextWriter::new(tokenizer, rules, &prompt.ids, &prompt.header)
            };
            writers.extend((0..request.n).map(|_| writer()));
        }
        let usage = Usage {
            prompt: request.prompts.iter().map(|prompt| prompt.ids.len()).sum(),
            steered: !matches!(request.method, Method::Sampled(_)),
            ..Usage::default()
        };
        Ok(Run {
            held: (0..writers.len()).map(|_| apart.then(Vec::new)).collect(),
            ended: vec![false; writers.len()],
            app: app.clone(),
            request,
            tickets,
            writers,
            updates,
            early: VecDeque::new(),
            events: VecDeque::new(),
            deadline: tokio::time::Instant::now() + app.config.limits.answer,
            clock: Clock { arrived: came.0, started: None, first: None, last: None },
            usage,
            request_id: came.1,
            finished: false,
            _permit: permit,
        })
    }

    /// How many answers the request has: prompts times `n`.
    pub fn choices(&self) -> usize {
        self.writers.len()
    }

    /// Ids of an answer so far.
    pub fn ids(&self, choice: usize) -> &[u32] {
        self.writers[choice].ids()
    }

    /// Waits until the engine has accepted all tickets.
    ///
    /// # Errors
    /// The engine refuses the request, or fails.
    pub async fn accepted(&mut self) -> Result<(), ApiError> {
        let mut missing = self.tickets.len();
        while missing > 0 {
            let (ticket, update) = self.update().await?;
            match update {
                Update::Accepted => missing -= 1,
                Update::Ended(Err(error), _) => return Err(self.failed(error.into())),
                other => self.early.push_back((ticket, other)),
            }
        }
        Ok(())
    }

    /// What happens next; `None` once all answers have ended.
    ///
    /// # Errors
    /// The request cannot be answered to its end.
    pub async fn next(&mut self) -> Result<Option<RunEvent>, ApiError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.tickets.iter().all(|ticket| ticket.done) {
                self.finish();
                return Ok(None);
            }
            let (ticket, update) = match self.early.pop_front() {
                Some(early) => early,
                None => self.update().await?,
            };
            if let Err(error) = self.on_update(ticket, update) {
                return Err(self.failed(error));
            }
        }
    }

    async fn update(&mut self) -> Result<(usize, Update<Output>), ApiError> {
        match tokio::time::timeout_at(self.deadline, self.updates.recv()).await {
            Ok(Some(update)) => Ok(update),
            Ok(None) => Err(self.failed(self.app.lost())),
            Err(_) => Err(self.failed(ApiError::timeout(self.app.config.limits.answer))),
        }
    }

    fn on_update(&mut self, ticket: usize, update: Update<Output>) -> Result<(), ApiError> {
        match update {
            Update::Accepted | Update::Progress(Progress::Tokens(_)) => {}
            Update::Started => {
                self.clock.started.get_or_insert_with(Instant::now);
            }
            Update::Progress(Progress::Token(stream, chosen)) => {
                let choice = self.tickets[ticket].first + stream;
                self.push(choice, chosen.into())?;
            }
            Update::Progress(Progress::Prompt(list)) => self.echo(ticket, list),
            Update::Progress(Progress::Segment(segment, ids)) => self.segment(ticket, &segment, &ids)?,
            Update::Cancelled(account) => {
                self.account(&account);
                let (choice, outcome) = (self.tickets[ticket].first, self.outcome(ticket, None));
                self.end(choice, End::Length, outcome)?;
                self.tickets[ticket].done = true;
            }
            Update::Ended(outcome, account) => {
                self.account(&account);
                match outcome? {
                    Output::Completions(_) if self.tickets[ticket].only_prompt => self.prompt_read(ticket)?,
                    Output::Completions(completions) => self.completed(ticket, completions)?,
                    Output::Response(response) => self.responded(ticket, &response)?,
                }
                self.tickets[ticket].done = true;
            }
        }
        Ok(())
    }

    /// Adds a token to an answer.
    fn push(&mut self, choice: usize, token: Token) -> Result<(), ApiError> {
        if self.ended[choice] {
            return Ok(());
        }
        let piece = Piece::written(&mut self.writers[choice], token)?;
        self.usage.completion += 1;
        self.emit(choice, piece, None);
        if let Some(end) = self.writers[choice].end().cloned()
            && matches!(self.request.method, Method::Sampled(_))
        {
            self.end(choice, end, None)?;
        }
        Ok(())
    }

    fn emit(&mut self, choice: usize, piece: Piece, segment: Option<Value>) {
        let now = Instant::now();
        let metrics = &self.app.metrics;
        match self.clock.last.replace(now) {
            None => metrics.first_token(now - self.clock.arrived),
            Some(last) => metrics.next_token(now - last),
        }
        self.clock.first.get_or_insert(now);
        let wanted = !piece.text.is_empty() || segment.is_some() || self.request.logprobs.is_some();
        if wanted || self.request.return_token_ids {
            self.event(choice, RunEvent::Piece { choice, piece, segment });
        }
    }

    /// Tells an event, once the prompt is told if it is to be repeated.
    fn event(&mut self, choice: usize, event: RunEvent) {
        match &mut self.held[choice] {
            Some(held) => held.push(event),
            None => self.events.push_back(event),
        }
    }

    /// The prompt in front of an answer, with its log-probabilities.
    fn echo(&mut self, ticket: usize, list: Vec<TokenLogprob>) {
        let Ticket { prompt, first, .. } = self.tickets[ticket];
        let Prompt { ids, text, .. } = &self.request.prompts[prompt];
        let begin = ids.first().map(|&id| Token::bare(id));
        let mut tokens: Vec<Token> = begin.into_iter().chain(list.into_iter().map(Token::from)).collect();
        // Special tokens that were put around a text are not in it.
        if let Some(mut rest) = text.as_deref().map(str::as_bytes) {
            for token in &mut tokens {
                let bytes = self.app.pair.tokenizer.bytes(token.id);
                match rest.strip_prefix(&bytes[..]) {
                    Some(behind) => rest = behind,
                    None => token.written = !self.app.pair.tokenizer.is_special(token.id),
                }
            }
        }
        for choice in first..first + self.request.n {
            let piece = Piece { text: String::new(), tokens: tokens.clone() };
            self.events.push_back(RunEvent::Piece { choice, piece, segment: None });
            self.events.extend(self.held[choice].take().unwrap_or_default());
        }
    }

    /// A prompt's log-probabilities are told. Where no answer was asked for, that is all.
    fn prompt_read(&mut self, ticket: usize) -> Result<(), ApiError> {
        let Ticket { prompt, first, .. } = self.tickets[ticket];
        if self.request.max_new_tokens[prompt] > 0 {
            return Ok(());
        }
        (first..first + self.request.n).try_for_each(|choice| self.end(choice, End::Length, None))
    }

    /// A committed segment.
    fn segment(&mut self, ticket: usize, segment: &Segment, ids: &[u32]) -> Result<(), ApiError> {
        let choice = self.tickets[ticket].first;
        let Some(best) = segment.candidates.get(segment.best) else {
            return Err(ApiError::internal("a segment without a candidate"));
        };
        self.app.metrics.segment(segment);
        self.usage.segments += 1;
        self.usage.refinements += segment.candidates.len() - 1;
        self.usage.nudges += usize::from(segment.best != 0);
        let of = &mut self.tickets[ticket];
        (of.last_reward, of.segments) = (Some(best.reward), of.segments + 1);
        of.nudges += usize::from(segment.best != 0);
        let index = of.segments - 1;
        let note = self.request.trace.then(|| note(segment, index, ids.len()));
        if self.ended[choice] || self.writers[choice].end().is_some() {
            return Ok(());
        }
        let mut piece = Piece::default();
        for (index, &id) in ids.iter().enumerate() {
            let logprob = best.logprobs.get(index).copied().filter(|logprob| logprob.is_finite());
            let entropy = best.entropies_exact.get(index).copied();
            let token = Token { logprob, entropy, ..Token::bare(id) };
            piece.extend(Piece::written(&mut self.writers[choice], token)?);
            self.usage.completion += 1;
            if self.writers[choice].end().is_some() {
                break;
            }
        }
        self.emit(choice, piece, note);
        if matches!(self.writers[choice].end(), Some(End::StopString(_))) {
            // The method does not look for stop strings: what it would decode behind one is cancelled.
            self.tickets[ticket].handle.cancel();
        }
        Ok(())
    }

    fn completed(&mut self, ticket: usize, mut completions: Completions) -> Result<(), ApiError> {
        let first = self.tickets[ticket].first;
        if let Method::Search(_, method) = &self.request.method {
            // Its tokens were told as they became final.
            let rewards: Vec<Option<f32>> = completions.all.iter().map(|one| one.reward).collect();
            let chosen = completions.all.swap_remove(completions.best);
            let outcome = json!({
                "reward": chosen.reward,
                "best": completions.best,
                "rewards": rewards,
                "method": method,
                "search": completions.search,
                "ignored_params": self.request.ignored,
            });
            return self.end(first, end_of(chosen.reason), Some(outcome));
        }
        if let Method::Best(..) = self.request.method {
            let rewards: Vec<Option<f32>> = completions.all.iter().map(|one| one.reward).collect();
            let best = completions.all.swap_remove(completions.best);
            let outcome = json!({ "reward": best.reward, "best": completions.best, "rewards": rewards });
            let mut chosen = best.logprobs.into_iter();
            let mut piece = Piece::default();
            for &id in &best.ids {
                let token = Token { id, ..chosen.next().map_or_else(|| Token::bare(id), Token::from) };
                piece.extend(Piece::written(&mut self.writers[first], token)?);
                self.usage.completion += 1;
            }
            self.emit(first, piece, None);
            return self.end(first, end_of(best.reason), Some(outcome));
        }
        for (index, one) in completions.all.iter().enumerate() {
            self.end(first + index, end_of(one.reason), None)?;
        }
        Ok(())
    }

    fn responded(&mut self, ticket: usize, response: &Response) -> Result<(), ApiError> {
        let outcome = self.outcome(ticket, Some(response));
        let end = match response.finish_reason {
            FinishReason::Length => End::Length,
            FinishReason::Finish => End::Turn,
            // The id that ended it is not committed: it is the one that the last candidate dropped.
            FinishReason::Stalled => {
                let last = response.segments.last().and_then(|segment| segment.candidates.get(segment.best));
                let id = last.and_then(|last| last.dropped);
                let other = id.filter(|id| !self.request.rules.finish_ids.contains(id));
                other.map_or(End::Turn, End::StopId)
            }
        };
        self.end(self.tickets[ticket].first, end, outcome)
    }

    /// Rewards and counters of an answer; `response` is `None` if it was cut at a stop string.
    fn outcome(&self, ticket: usize, response: Option<&Response>) -> Option<Value> {
        let Ticket { options, last_reward, segments, nudges, .. } = &self.tickets[ticket];
        let mut outcome = json!({
            "segments": segments,
            "nudges": nudges,
            "ignored_params": self.request.ignored,
        });
        match response {
            Some(response) => {
                outcome["reward"] = json!(response.final_reward);
                outcome["finish_reason"] = json!(finish_reason_name(response.finish_reason));
                outcome["round_trip_stable"] = json!(self.app.pair.tokenizer.round_trips(&response.final_ids).ok());
                if let Some(options) = options.as_ref().filter(|_| self.request.trace) {
                    let tokenizer = Some(&*self.app.pair.tokenizer);
                    let trace = Trace::from_response("request", None, options, response, tokenizer);
                    outcome["trace"] = trace.map_or(Value::Null, |trace| json!(trace));
                }
            }
            // The reward is that of the newest segment, as it was committed.
            None => {
                outcome["reward"] = json!(last_reward);
                outcome["finish_reason"] = json!("stop");
            }
        }
        Some(outcome)
    }

    /// Ends an answer, unless it has ended.
    fn end(&mut self, choice: usize, end: End, outcome: Option<Value>) -> Result<(), ApiError> {
        if std::mem::replace(&mut self.ended[choice], true) {
            return Ok(());
        }
        let rest = self.writers[choice].finish(end.clone())?;
        if !rest.is_empty() {
            let piece = Piece { text: rest, tokens: Vec::new() };
            self.event(choice, RunEvent::Piece { choice, piece, segment: None });
        }
        let end = self.writers[choice].end().cloned().unwrap_or(end);
        self.event(choice, RunEvent::End { choice, end, outcome });
        Ok(())
    }

    fn account(&mut self, account: &RequestStats) {
        self.usage.work += account.ran;
        self.usage.necessary += account.necessary;
        self.usage.drafts += account.drafts;
        self.usage.cached += usize::try_from(account.shared.policy_forward).unwrap_or(0);
    }

    /// Counts a request that was answered.
    fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let metrics = &self.app.metrics;
        let reasons = self.writers.iter().map(|writer| writer.end().map_or("stop", End::reason));
        let now = Instant::now();
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at - self.clock.arrived);
        let (started, first) = (since(self.clock.started), since(self.clock.first));
        let all = now - self.clock.arrived;
        self.log("answered", None);
        metrics.answered(&self.usage, reasons, started, first.saturating_sub(started), all.saturating_sub(first), all);
    }

    fn failed(&mut self, error: ApiError) -> ApiError {
        self.finished = true;
        self.log("failed", Some(&error));
        error
    }

    /// Logs how the request ended: numbers only, no text of prompts or answers.
    fn log(&self, event: &str, error: Option<&ApiError>) {
        tracing::info!(
            event,
            request_id = self.request_id,
            model = self.request.model,
            stream = self.request.stream,
            prompt_tokens = self.usage.prompt,
            completion_tokens = self.usage.completion,
            seconds = self.clock.arrived.elapsed().as_secs_f64(),
            status = error.map(|error| error.status.as_u16()),
            error = error.filter(|error| error.status.is_server_error()).map(ApiError::logged),
        );
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Handles cancel what is in flight.
        if !self.finished {
            self.app.metrics.aborted();
            self.log("client gone", None);
        }
    }
}

fn end_of(reason: StopReason) -> End {
    match reason {
        StopReason::Stop => End::Turn,
        StopReason::Length => End::Length,
    }
}

/// Hands in the request of a prompt, or of one of its answers; gives the method's options if it is one of the method.
fn submit(
    engine: &Engine,
    submitter: Submitter,
    app: &AppState,
    request: &ApiRequest,
    (prompt, copy): (usize, usize),
    (ticket, updates): (usize, Updates),
) -> Result<(Handle, Option<Box<Options>>), ApiError> {
    let (ids, max_new_tokens) = (request.prompts[prompt].ids.clone(), request.max_new_tokens[prompt]);
    let (sampling, n, score) = match &request.method {
        Method::Guided(options) => {
            let first_offset = request.prompts[prompt].first_offset;
            let options = Box::new(Options { max_new_tokens, first_offset, ..(**options).clone() });
            let (uniforms, kept) = (Uniforms::Seeded(request.seed.wrapping_add(copy as u64)), options.clone());
            let build = move |backend: &ModelPair| intervention(backend, &ids, &options, uniforms);
            let output = |response| Output::Response(Box::new(response));
            let handle =
                engine.submit_to(submitter, build, move |update| updates.send((ticket, update.map(output))).is_ok())?;
            return Ok((handle, Some(kept)));
        }
        Method::Sampled(sampling) => (sampling, request.n, false),
        Method::Best(sampling, n) => (sampling, *n, true),
        Method::Search(sampling, _) => (sampling, 1, false),
    };
    // Stop ids end a completion without a check.
    let watched = !request.rules.stops.is_empty();
    let header = &request.prompts[prompt].header;
    let stop_check = watched.then(|| request.rules.watch(&app.pair.tokenizer, &ids, header));
    let spec = CompletionSpec {
        sampling: sampling.clone(),
        n,
        score,
        max_new_tokens,
        stop_ids: request.stop_ids.clone(),
        stop_check,
        stream_tokens: !score,
        prompt_logprobs: !score && request.echo && request.logprobs.is_some(),
    };
    let told = move |update: Update<Completions>| updates.send((ticket, update.map(Output::Completions))).is_ok();
    let handle = match &request.method {
        Method::Search(_, method) => {
            let method = method.clone();
            engine.submit_to(submitter, move |backend: &ModelPair| baseline(backend, &ids, spec, &method), told)?
        }
        _ => engine.submit_to(submitter, move |backend: &ModelPair| sampler(backend, &ids, spec), told)?,
    };
    Ok((handle, None))
}

/// Hands in a request for the log-probabilities of a prompt alone.
fn submit_prompt(
    engine: &Engine,
    submitter: Submitter,
    request: &ApiRequest,
    prompt: usize,
    (ticket, updates): (usize, Updates),
) -> Result<Handle, ApiError> {
    let sampling = Sampling { logprobs: request.logprobs, ..Sampling::default() };
    let spec = CompletionSpec { sampling, max_new_tokens: 0, prompt_logprobs: true, ..CompletionSpec::default() };
    let ids = request.prompts[prompt].ids.clone();
    let build = move |backend: &ModelPair| sampler(backend, &ids, spec);
    let told = move |update: Update<Completions>| updates.send((ticket, update.map(Output::Completions))).is_ok();
    Ok(engine.submit_to(submitter, build, told)?)
}

/// A segment in short, for clients that asked for the trace.
fn note(segment: &Segment, index: usize, tokens: usize) -> Value {
    let best = segment.candidates.get(segment.best);
    let rewards: Vec<f32> = segment.candidates.iter().map(|candidate| candidate.reward).collect();
    json!({
        "index": index,
        "start": segment.start,
        "tokens": tokens,
        "rewards": rewards,
        "chosen": segment.best,
        "nudge_token_id": best.and_then(|best| best.forced),
        "entropy_at_break": best.and_then(|best| best.entropies.last()),
    })
}
