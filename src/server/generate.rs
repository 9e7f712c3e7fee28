//! A request on its way through the engine: tickets, and the texts that come of what they say.

use super::error::ApiError;
use super::piece::{Piece, Token};
use super::request::{Asked, Method};
use super::{Permit, Served};
use crate::answer::{FinishReason, Response, Segment};
use crate::engine::{Account, Finished, Handle, Make, Progress, Update, intervention, sampler};
use crate::method::Options;
use crate::model::Work;
use crate::rng::Uniforms;
use crate::sampling::{Completions, Plan, Reason, Stop};
use crate::text::{End, TextWriter};
use crate::trace::{Trace, finish_reason_name};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// What a run says next.
#[derive(Debug)]
pub enum Said {
    /// An answer's text went on.
    Piece {
        /// Which answer.
        choice: usize,
        /// By what.
        piece: Piece,
        /// The segment that was committed with it, if the trace was asked for.
        segment: Option<Value>,
    },
    /// An answer has ended.
    End {
        /// Which answer.
        choice: usize,
        /// Why.
        end: End,
        /// What the method says of it.
        outcome: Option<Value>,
    },
}

/// What was used for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt: usize,
    /// Of them, those that another request had run before.
    pub cached: usize,
    /// Tokens of all answers.
    pub completion: usize,
    /// What went through the models for it.
    pub work: Work,
    /// What of it was needed.
    pub necessary: Work,
    /// Committed segments.
    pub segments: usize,
    /// Candidates that were decoded besides the policy's own.
    pub refinements: usize,
    /// Segments in which another than the policy's own candidate was kept.
    pub nudges: usize,
    /// Whether the request is one of the method, or of rewards.
    pub steered: bool,
}

impl Usage {
    /// As the API has it.
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
        }
        usage
    }
}

/// A ticket and the answers that come of it.
struct Ticket {
    handle: Handle,
    prompt: usize,
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

/// A request in the engine. Dropped, it is cancelled.
pub struct Run {
    served: Arc<Served>,
    /// The request.
    pub asked: Asked,
    tickets: Vec<Ticket>,
    writers: Vec<TextWriter>,
    ended: Vec<bool>,
    updates: UnboundedReceiver<(usize, Update)>,
    early: VecDeque<(usize, Update)>,
    said: VecDeque<Said>,
    deadline: tokio::time::Instant,
    clock: Clock,
    /// What was used so far.
    pub usage: Usage,
    request_id: String,
    finished: bool,
    _permit: Permit,
}

/// When what happened.
struct Clock {
    arrived: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Run {
    /// Hands a request in, which came at this time under this number.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn start(served: &Arc<Served>, asked: Asked, permit: Permit, came: (Instant, String)) -> Result<Run, ApiError> {
        let engine = served.engine()?;
        let (told, updates) = unbounded_channel();
        let each = if matches!(asked.method, Method::Guided(_)) { asked.n } else { 1 };
        let (mut tickets, mut writers) = (Vec::new(), Vec::new());
        for (index, prompt) in asked.prompts.iter().enumerate() {
            for copy in 0..each {
                let (make, options) = make(served, &asked, index, copy);
                let (number, told) = (tickets.len(), told.clone());
                let tell = Box::new(move |update| told.send((number, update)).is_ok());
                let handle = engine.submit_to(make, tell)?;
                let first = index * asked.n + copy;
                let (last_reward, segments, nudges, done) = (None, 0, 0, false);
                tickets.push(Ticket { handle, prompt: index, first, options, last_reward, segments, nudges, done });
            }
            let writer = || {
                let (tokenizer, rules) = (served.pair.tokenizer.clone(), asked.rules.clone());
                TextWriter::new(tokenizer, rules, &prompt.ids, &prompt.header)
            };
            writers.extend((0..asked.n).map(|_| writer()));
        }
        let usage = Usage {
            prompt: asked.prompts.iter().map(|prompt| prompt.ids.len()).sum(),
            steered: !matches!(asked.method, Method::Sampled(_)),
            ..Usage::default()
        };
        Ok(Run {
            ended: vec![false; writers.len()],
            served: served.clone(),
            asked,
            tickets,
            writers,
            updates,
            early: VecDeque::new(),
            said: VecDeque::new(),
            deadline: tokio::time::Instant::now() + served.config.limits.answer,
            clock: Clock { arrived: came.0, started: None, first: None, last: None },
            usage,
            request_id: came.1,
            finished: false,
            _permit: permit,
        })
    }

    /// Answers of the request.
    pub fn choices(&self) -> usize {
        self.writers.len()
    }

    /// Ids of an answer so far.
    pub fn ids(&self, choice: usize) -> &[u32] {
        self.writers[choice].ids()
    }

    /// Waits until the engine has found the request to be sound.
    ///
    /// # Errors
    /// It is not.
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

    /// What is said next; `None` once all answers have ended.
    ///
    /// # Errors
    /// The request cannot be answered to its end.
    pub async fn next(&mut self) -> Result<Option<Said>, ApiError> {
        loop {
            if let Some(said) = self.said.pop_front() {
                return Ok(Some(said));
            }
            if self.tickets.iter().all(|ticket| ticket.done) {
                self.finish();
                return Ok(None);
            }
            let (ticket, update) = match self.early.pop_front() {
                Some(early) => early,
                None => self.update().await?,
            };
            if let Err(error) = self.hear(ticket, update) {
                return Err(self.failed(error));
            }
        }
    }

    async fn update(&mut self) -> Result<(usize, Update), ApiError> {
        match tokio::time::timeout_at(self.deadline, self.updates.recv()).await {
            Ok(Some(update)) => Ok(update),
            Ok(None) => Err(self.failed(self.served.lost())),
            Err(_) => Err(self.failed(ApiError::timeout(self.served.config.limits.answer.as_secs()))),
        }
    }

    fn hear(&mut self, ticket: usize, update: Update) -> Result<(), ApiError> {
        match update {
            Update::Accepted | Update::Progress(Progress::Tokens(_)) => {}
            Update::Started => {
                self.clock.started.get_or_insert_with(Instant::now);
            }
            Update::Progress(Progress::Chosen(stream, chosen)) => {
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
                    Finished::Completions(completions) => self.completed(ticket, *completions)?,
                    Finished::Response(response) => self.responded(ticket, &response)?,
                    Finished::Appraisal(_) => return Err(ApiError::internal("rewards where an answer was expected")),
                }
                self.tickets[ticket].done = true;
            }
        }
        Ok(())
    }

    /// A token of an answer.
    fn push(&mut self, choice: usize, token: Token) -> Result<(), ApiError> {
        if self.ended[choice] {
            return Ok(());
        }
        let piece = Piece::written(&mut self.writers[choice], token)?;
        self.usage.completion += 1;
        self.say(choice, piece, None);
        if let Some(end) = self.writers[choice].end().cloned()
            && matches!(self.asked.method, Method::Sampled(_))
        {
            self.end(choice, end, None)?;
        }
        Ok(())
    }

    fn say(&mut self, choice: usize, piece: Piece, segment: Option<Value>) {
        let now = Instant::now();
        let metrics = &self.served.metrics;
        match self.clock.last.replace(now) {
            None => metrics.first_token(now - self.clock.arrived),
            Some(last) => metrics.next_token(now - last),
        }
        self.clock.first.get_or_insert(now);
        let wanted = !piece.text.is_empty() || segment.is_some() || self.asked.logprobs.is_some();
        if wanted || self.asked.return_token_ids {
            self.said.push_back(Said::Piece { choice, piece, segment });
        }
    }

    /// The prompt in front of an answer, with what the policy thought of it.
    fn echo(&mut self, ticket: usize, list: Vec<crate::sampling::Chosen>) {
        let Ticket { prompt, first, .. } = self.tickets[ticket];
        let ids = &self.asked.prompts[prompt].ids;
        let begin = ids.first().map(|&id| Token::bare(id));
        let tokens: Vec<Token> = begin.into_iter().chain(list.into_iter().map(Token::from)).collect();
        for choice in first..first + self.asked.n {
            let piece = Piece { text: String::new(), tokens: tokens.clone() };
            self.said.push_back(Said::Piece { choice, piece, segment: None });
        }
    }

    /// A committed segment.
    fn segment(&mut self, ticket: usize, segment: &Segment, ids: &[u32]) -> Result<(), ApiError> {
        let choice = self.tickets[ticket].first;
        let Some(best) = segment.candidates.get(segment.best) else {
            return Err(ApiError::internal("a segment without a candidate"));
        };
        self.served.metrics.segment(segment);
        self.usage.segments += 1;
        self.usage.refinements += segment.candidates.len() - 1;
        self.usage.nudges += usize::from(segment.best != 0);
        let of = &mut self.tickets[ticket];
        (of.last_reward, of.segments) = (Some(best.reward), of.segments + 1);
        of.nudges += usize::from(segment.best != 0);
        let index = of.segments - 1;
        let note = self.asked.trace.then(|| note(segment, index, ids.len()));
        if self.ended[choice] || self.writers[choice].end().is_some() {
            return Ok(());
        }
        let mut piece = Piece::default();
        for (index, &id) in ids.iter().enumerate() {
            let logprob = best.logprobs.get(index).copied().filter(|logprob| logprob.is_finite());
            let entropy = best.entropies_exact.get(index).copied();
            let token = Token { id, logprob, entropy, top: Vec::new() };
            piece.extend(Piece::written(&mut self.writers[choice], token)?);
            self.usage.completion += 1;
            if self.writers[choice].end().is_some() {
                break;
            }
        }
        self.say(choice, piece, note);
        if matches!(self.writers[choice].end(), Some(End::StopString(_))) {
            // The method knows ids only; what it would write behind a stop string is not wanted.
            self.tickets[ticket].handle.cancel();
        }
        Ok(())
    }

    fn completed(&mut self, ticket: usize, mut completions: Completions) -> Result<(), ApiError> {
        let first = self.tickets[ticket].first;
        if let Method::Best(..) = self.asked.method {
            let rewards: Vec<Option<f32>> = completions.all.iter().map(|one| one.reward).collect();
            let best = completions.all.swap_remove(completions.best);
            let outcome = json!({ "reward": best.reward, "best": completions.best, "rewards": rewards });
            let mut chosen = best.chosen.into_iter();
            let mut piece = Piece::default();
            for &id in &best.ids {
                let token = Token { id, ..chosen.next().map_or_else(|| Token::bare(id), Token::from) };
                piece.extend(Piece::written(&mut self.writers[first], token)?);
                self.usage.completion += 1;
            }
            self.say(first, piece, None);
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
            // The id that ended it is not committed; it is known as the one that the last candidate dropped.
            FinishReason::Stalled => {
                let last = response.segments.last().and_then(|segment| segment.candidates.get(segment.best));
                let id = last.and_then(|last| last.dropped);
                let other = id.filter(|id| !self.asked.rules.finish_ids.contains(id));
                other.map_or(End::Turn, End::StopId)
            }
        };
        self.end(self.tickets[ticket].first, end, outcome)
    }

    /// What the method says of an answer, which may have been cut.
    fn outcome(&self, ticket: usize, response: Option<&Response>) -> Option<Value> {
        let Ticket { options, last_reward, segments, nudges, .. } = &self.tickets[ticket];
        let mut outcome = json!({
            "segments": segments,
            "nudges": nudges,
            "ignored_params": self.asked.ignored,
        });
        match response {
            Some(response) => {
                outcome["reward"] = json!(response.final_reward);
                outcome["finish_reason"] = json!(finish_reason_name(response.finish_reason));
                if let Some(options) = options.as_ref().filter(|_| self.asked.trace) {
                    let tokenizer = Some(&*self.served.pair.tokenizer);
                    let trace = Trace::from_response("request", None, options, response, tokenizer);
                    outcome["trace"] = trace.map_or(Value::Null, |trace| json!(trace));
                }
            }
            // The text was cut at a stop string; its reward is that of the newest segment as it was committed.
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
            self.said.push_back(Said::Piece { choice, piece: Piece { text: rest, tokens: Vec::new() }, segment: None });
        }
        let end = self.writers[choice].end().cloned().unwrap_or(end);
        self.said.push_back(Said::End { choice, end, outcome });
        Ok(())
    }

    fn account(&mut self, account: &Account) {
        let add = |to: &mut Work, more: &Work| {
            to.policy_forward += more.policy_forward;
            to.reward_forward += more.reward_forward;
            to.reward_backward += more.reward_backward;
        };
        add(&mut self.usage.work, &account.ran);
        add(&mut self.usage.necessary, &account.necessary);
        self.usage.cached += usize::try_from(account.shared.policy_forward).unwrap_or(0);
    }

    /// Counts a request that was answered.
    fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let metrics = &self.served.metrics;
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
        self.served.metrics.failed(&error);
        self.log("failed", Some(&error));
        error
    }

    /// A line about how it ended; of what was said there are only numbers in it.
    fn log(&self, event: &str, error: Option<&ApiError>) {
        tracing::info!(
            event,
            request_id = self.request_id,
            model = self.asked.model,
            stream = self.asked.stream,
            prompt_tokens = self.usage.prompt,
            completion_tokens = self.usage.completion,
            seconds = self.clock.arrived.elapsed().as_secs_f64(),
            status = error.map(|error| error.status.as_u16()),
            error = error.filter(|error| error.status.is_server_error()).map(|error| error.message.as_str()),
        );
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Handles cancel what is in flight.
        if !self.finished {
            self.served.metrics.aborted();
            self.log("client gone", None);
        }
    }
}

fn end_of(reason: Reason) -> End {
    match reason {
        Reason::Stop => End::Turn,
        Reason::Length => End::Length,
    }
}

/// What makes the request of a prompt, or of one of its answers.
fn make(served: &Served, asked: &Asked, prompt: usize, copy: usize) -> (Make, Option<Box<Options>>) {
    let (ids, max_new_tokens) = (asked.prompts[prompt].ids.clone(), asked.max_new_tokens[prompt]);
    let (sampling, n, score) = match &asked.method {
        Method::Guided(options) => {
            let first_offset = asked.prompts[prompt].header.len();
            let options = Box::new(Options { max_new_tokens, first_offset, ..(**options).clone() });
            let (uniforms, kept) = (Uniforms::Seeded(asked.seed.wrapping_add(copy as u64)), options.clone());
            let make: Make = Box::new(move |backend| Ok(Box::new(intervention(backend, &ids, &options, uniforms)?)));
            return (make, Some(kept));
        }
        Method::Sampled(sampling) => (sampling, asked.n, false),
        Method::Best(sampling, n) => (sampling, *n, true),
    };
    let (rules, tokenizer) = (asked.rules.clone(), served.pair.tokenizer.clone());
    let stop: Stop = Arc::new(move || rules.watch(&tokenizer));
    let plan = Plan {
        sampling: sampling.clone(),
        n,
        score,
        max_new_tokens,
        stop_ids: asked.stop_ids.clone(),
        stop: Some(stop),
        tell: !score,
        prompt_logprobs: asked.echo && asked.logprobs.is_some(),
    };
    (Box::new(move |backend| Ok(Box::new(sampler(backend, &ids, plan)?))), None)
}

/// A segment in a few words, for those who watch.
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
