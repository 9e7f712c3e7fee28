//! The response objects of OpenAI's API: chunks of a stream, and complete ones.

use super::generate::{Run, Usage};
use super::piece::{Piece, Token};
use super::request::{ApiRequest, Route};
use crate::files::tokenizer::Tokenizer;
use crate::text::{End, Prompt};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// OpenAI's value for an unknown log-probability.
const UNKNOWN: f64 = -9999.0;

/// Makes the response objects of one request.
pub struct Frames {
    route: Route,
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    echo: bool,
    return_token_ids: bool,
    tokens_as_ids: bool,
    null_usage: bool,
    /// Characters of each answer's tokens so far: the `text_offset` of its next token.
    offsets: Vec<usize>,
    /// Whether the prompt was repeated.
    echoed: Vec<bool>,
    texts: Vec<String>,
    prompt_ids: Vec<Vec<u32>>,
    n: usize,
}

/// An answer of a complete response, while it is collected.
#[derive(Default)]
pub struct Choice {
    /// Its text and tokens so far.
    pub piece: Piece,
    /// How it ended, and the method's counters.
    pub end: Option<(End, Option<Value>)>,
}

impl Frames {
    /// For the answers of a run.
    pub fn new(route: Route, run: &Run, created: u64, tokenizer: Arc<Tokenizer>, request_id: &str) -> Frames {
        let request: &ApiRequest = &run.request;
        let prefix = if route == Route::Chat { "chatcmpl" } else { "cmpl" };
        let text = |prompt: &Prompt| match &prompt.text {
            Some(text) => text.clone(),
            None => tokenizer.decode(&prompt.ids).unwrap_or_default(),
        };
        let texts = if request.echo { request.prompts.iter().map(text).collect() } else { Vec::new() };
        let ids = |prompt: &Prompt| prompt.ids.clone();
        Frames {
            route,
            id: format!("{prefix}-{request_id}"),
            created,
            model: request.model.clone(),
            logprobs: request.logprobs.is_some(),
            echo: request.echo,
            return_token_ids: request.return_token_ids,
            tokens_as_ids: request.tokens_as_ids,
            null_usage: request.include_usage,
            offsets: vec![0; run.choices()],
            echoed: vec![false; run.choices()],
            texts,
            prompt_ids: if request.return_token_ids { request.prompts.iter().map(ids).collect() } else { Vec::new() },
            n: request.n,
            tokenizer,
        }
    }

    fn frame(&self, object: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut frame = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("ggro-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        });
        if let Some(usage) = usage.or_else(|| self.null_usage.then_some(Value::Null)) {
            frame["usage"] = usage;
        }
        frame
    }

    fn chunk(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        match self.route {
            Route::Chat => self.frame("chat.completion.chunk", choices, usage),
            Route::Completions => self.frame("text_completion", choices, usage),
        }
    }

    /// The first chunk of an answer, if its stream begins with one.
    pub fn opening(&mut self, choice: usize) -> Option<Value> {
        match self.route {
            Route::Chat => {
                let delta = json!({ "role": "assistant", "content": "" });
                let choice = json!({ "index": choice, "delta": delta, "logprobs": null, "finish_reason": null });
                Some(self.chunk(vec![choice], None))
            }
            // With log-probabilities the prompt comes with its tokens.
            Route::Completions if self.echo && !self.logprobs => {
                let text = self.echoed(choice)?;
                let choice = json!({ "index": choice, "text": text, "logprobs": null, "finish_reason": null });
                Some(self.chunk(vec![choice], None))
            }
            Route::Completions => None,
        }
    }

    /// The prompt's text at the first call, if the request asked for it.
    fn echoed(&mut self, choice: usize) -> Option<String> {
        if !self.echo || std::mem::replace(&mut self.echoed[choice], true) {
            return None;
        }
        self.texts.get(choice / self.n).cloned()
    }

    /// A chunk with more text of an answer.
    pub fn piece(&mut self, choice: usize, piece: &Piece, segment: Option<Value>, usage: Option<Value>) -> Value {
        let logprobs = self.logprobs_of(choice, &piece.tokens);
        let mut object = match self.route {
            Route::Chat => {
                json!({ "index": choice, "delta": { "content": piece.text }, "logprobs": logprobs, "finish_reason": null })
            }
            Route::Completions => {
                let text = self.echoed(choice).unwrap_or_default() + &piece.text;
                json!({ "index": choice, "text": text, "logprobs": logprobs, "finish_reason": null })
            }
        };
        if self.return_token_ids {
            object["token_ids"] = piece.tokens.iter().map(|token| token.id).collect();
        }
        let mut chunk = self.chunk(vec![object], usage);
        if let Some(segment) = segment {
            chunk["ggro"] = json!({ "segment": segment });
        }
        chunk
    }

    /// The chunk that says how an answer ended.
    pub fn end(&self, choice: usize, end: &End, outcome: Option<Value>) -> Value {
        let mut object = match self.route {
            Route::Chat => json!({ "index": choice, "delta": {}, "logprobs": null }),
            Route::Completions => json!({ "index": choice, "text": "", "logprobs": null }),
        };
        object["finish_reason"] = json!(end.reason());
        object["stop_reason"] = stop_reason(end);
        let mut chunk = self.chunk(vec![object], None);
        if let Some(outcome) = outcome {
            chunk["ggro"] = outcome;
        }
        chunk
    }

    /// The last chunk of a stream: usage.
    pub fn usage(&self, usage: &Usage) -> Value {
        self.chunk(Vec::new(), Some(usage.json()))
    }

    /// The complete response.
    pub fn whole(&mut self, choices: Vec<Choice>, ids: &[Vec<u32>], usage: &Usage) -> Value {
        let (mut objects, mut outcomes) = (Vec::new(), Vec::new());
        for (index, Choice { piece, end }) in choices.into_iter().enumerate() {
            let logprobs = self.logprobs_of(index, &piece.tokens);
            let (end, outcome) = end.unwrap_or((End::Length, None));
            let mut object = match self.route {
                Route::Chat => json!({
                    "index": index,
                    "message": { "role": "assistant", "content": piece.text, "refusal": null },
                }),
                Route::Completions => {
                    let text = self.echoed(index).unwrap_or_default() + &piece.text;
                    json!({ "index": index, "text": text })
                }
            };
            object["logprobs"] = logprobs;
            object["finish_reason"] = json!(end.reason());
            object["stop_reason"] = stop_reason(&end);
            if self.return_token_ids {
                object["token_ids"] = json!(ids.get(index));
                object["prompt_token_ids"] = json!(self.prompt_ids.get(index / self.n));
            }
            objects.push(object);
            outcomes.extend(outcome);
        }
        let object = if self.route == Route::Chat { "chat.completion" } else { "text_completion" };
        let mut whole = self.frame(object, objects, Some(usage.json()));
        match outcomes.len() {
            0 => {}
            1 => whole["ggro"] = outcomes.remove(0),
            _ => whole["ggro"] = json!({ "choices": outcomes }),
        }
        whole
    }

    fn logprobs_of(&mut self, choice: usize, tokens: &[Token]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        match self.route {
            Route::Chat => {
                let content: Vec<Value> = tokens.iter().map(|token| self.chat_logprob(token)).collect();
                json!({ "content": content, "refusal": null })
            }
            Route::Completions => self.completion_logprobs(choice, tokens),
        }
    }

    fn spelled(&self, id: u32) -> String {
        match self.tokens_as_ids {
            true => format!("token_id:{id}"),
            false => self.tokenizer.decode(&[id]).unwrap_or_default(),
        }
    }

    fn chat_logprob(&self, token: &Token) -> Value {
        let entry = |id: u32, logprob: f64| {
            let text = self.spelled(id);
            json!({ "token": text, "logprob": finite(logprob), "bytes": text.as_bytes() })
        };
        let mut all = entry(token.id, token.logprob.unwrap_or(UNKNOWN));
        all["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
        all["entropy"] = json!(token.entropy);
        all
    }

    fn completion_logprobs(&mut self, choice: usize, tokens: &[Token]) -> Value {
        let (mut texts, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for token in tokens {
            let text = self.spelled(token.id);
            offsets.push(self.offsets[choice]);
            self.offsets[choice] += text.chars().count();
            texts.push(text);
            logprobs.push(token.logprob.map(finite));
            let mut top = Map::new();
            for &(id, logprob) in &token.top {
                // Two ids may be spelled alike; the likelier one comes first.
                top.entry(self.spelled(id)).or_insert_with(|| json!(finite(logprob)));
            }
            tops.push(if token.logprob.is_some() { Value::Object(top) } else { Value::Null });
        }
        let entropies: Vec<Option<f64>> = tokens.iter().map(|token| token.entropy).collect();
        json!({
            "tokens": texts,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
            "entropies": entropies,
        })
    }
}

/// vLLM's `stop_reason`: what ended an answer, unless that is the model's own end.
fn stop_reason(end: &End) -> Value {
    match end {
        End::StopId(id) => json!(id),
        End::StopString(string) => json!(string),
        End::Turn | End::Length => Value::Null,
    }
}

/// JSON has no infinity.
fn finite(logprob: f64) -> f64 {
    if logprob.is_finite() { logprob } else { UNKNOWN }
}
