//! The response objects of OpenAI's API: chunks of a stream, and complete ones.

use super::generate::{Run, Usage};
use super::piece::{Piece, Token};
use super::request::{ApiRequest, Route};
use crate::files::tokenizer::Tokenizer;
use crate::text::{End, Prompt};
use serde::Serialize;
use serde_json::value::RawValue;
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
    /// How many of the most likely tokens are reported with each token; `None`: no log-probabilities.
    logprobs: Option<usize>,
    echo: bool,
    return_token_ids: bool,
    tokens_as_ids: bool,
    null_usage: bool,
    /// Where each answer's next token stands.
    places: Vec<TextOffset>,
    /// Whether the prompt was repeated.
    echoed: Vec<bool>,
    texts: Vec<String>,
    prompt_ids: Vec<Vec<u32>>,
    n: usize,
}

/// A place in a text whose characters come in bytes.
#[derive(Clone, Default)]
struct TextOffset {
    /// Complete characters before it.
    characters: usize,
    /// Bytes of the character that has begun.
    begun: Vec<u8>,
}

impl TextOffset {
    /// Goes on behind these bytes. What is not UTF-8 counts as the replacement characters that are shown for it.
    fn advance(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let mut rest = &self.begun[..];
        for chunk in self.begun.utf8_chunks() {
            self.characters += chunk.valid().chars().count();
            let invalid = chunk.invalid();
            rest = &rest[chunk.valid().len() + invalid.len()..];
            let incomplete = rest.is_empty() && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if incomplete {
                self.begun = invalid.to_vec();
                return;
            }
            self.characters += usize::from(!invalid.is_empty());
        }
        self.begun.clear();
    }
}

/// A complete response. Its answers are written one by one, because log-probabilities take thirty times as much memory as JSON
/// values than as text.
#[derive(Serialize)]
struct CompleteResponse<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<Box<RawValue>>,
    usage: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    ggro: Option<Value>,
}

const FINGERPRINT: &str = concat!("ggro-", env!("CARGO_PKG_VERSION"));

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
            None => {
                let mut text = tokenizer.decode(&prompt.ids).unwrap_or_default();
                // A character that the ids begin comes with the answer's text.
                if text.ends_with(char::REPLACEMENT_CHARACTER) {
                    text.pop();
                }
                text
            }
        };
        let texts = if request.echo { request.prompts.iter().map(text).collect() } else { Vec::new() };
        let ids = |prompt: &Prompt| prompt.ids.clone();
        Frames {
            route,
            id: format!("{prefix}-{request_id}"),
            created,
            model: request.model.clone(),
            logprobs: request.logprobs,
            echo: request.echo,
            return_token_ids: request.return_token_ids,
            tokens_as_ids: request.tokens_as_ids,
            null_usage: request.include_usage,
            places: vec![TextOffset::default(); run.choices()],
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
            "system_fingerprint": FINGERPRINT,
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
            Route::Completions if self.echo && self.logprobs.is_none() => {
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

    /// The complete response, as JSON.
    ///
    /// # Errors
    /// It cannot be written as JSON, which no answer leads to.
    pub fn whole(&mut self, choices: Vec<Choice>, ids: &[Vec<u32>], usage: &Usage) -> serde_json::Result<String> {
        let (mut written, mut outcomes) = (Vec::new(), Vec::new());
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
            written.push(serde_json::value::to_raw_value(&object)?);
            outcomes.extend(outcome);
        }
        let ggro = match outcomes.len() {
            0 => None,
            1 => outcomes.pop(),
            _ => Some(json!({ "choices": outcomes })),
        };
        serde_json::to_string(&CompleteResponse {
            id: &self.id,
            object: if self.route == Route::Chat { "chat.completion" } else { "text_completion" },
            created: self.created,
            model: &self.model,
            system_fingerprint: FINGERPRINT,
            choices: written,
            usage: usage.json(),
            ggro,
        })
    }

    fn logprobs_of(&mut self, choice: usize, tokens: &[Token]) -> Value {
        let Some(most) = self.logprobs else { return Value::Null };
        match self.route {
            Route::Chat => {
                let content: Vec<Value> = tokens.iter().map(|token| self.chat_logprob(token, most)).collect();
                json!({ "content": content, "refusal": null })
            }
            Route::Completions => self.completion_logprobs(choice, tokens),
        }
    }

    fn spelled(&self, id: u32, bytes: &[u8]) -> String {
        match self.tokens_as_ids {
            true => format!("token_id:{id}"),
            false => String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    fn chat_logprob(&self, token: &Token, most: usize) -> Value {
        let entry = |(id, logprob): (u32, f64)| {
            let bytes = self.tokenizer.bytes(id);
            json!({ "token": self.spelled(id, &bytes), "logprob": finite(logprob), "bytes": bytes })
        };
        let mut all = entry((token.id, token.logprob.unwrap_or(UNKNOWN)));
        let top = if most > 0 { with_chosen(token) } else { Vec::new() };
        all["top_logprobs"] = top.into_iter().map(entry).collect();
        all["entropy"] = json!(token.entropy);
        all
    }

    fn completion_logprobs(&mut self, choice: usize, tokens: &[Token]) -> Value {
        let (mut texts, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for token in tokens {
            let bytes = self.tokenizer.bytes(token.id);
            let place = &mut self.places[choice];
            offsets.push(place.characters);
            if token.written {
                place.advance(&bytes);
            }
            texts.push(self.spelled(token.id, &bytes));
            logprobs.push(token.logprob.map(finite));
            let mut top = Map::new();
            for (id, logprob) in with_chosen(token) {
                // Two ids may be spelled alike; the likelier one comes first.
                let spelled = self.spelled(id, &self.tokenizer.bytes(id));
                top.entry(spelled).or_insert_with(|| json!(finite(logprob)));
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

/// The most likely tokens at a token's position and, as from OpenAI and vLLM, the token itself.
fn with_chosen(token: &Token) -> Vec<(u32, f64)> {
    let listed = token.top.iter().any(|&(id, _)| id == token.id);
    let chosen = token.logprob.filter(|_| !listed).map(|logprob| (token.id, logprob));
    token.top.iter().copied().chain(chosen).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_as_they_are_shown() {
        let mut place = TextOffset::default();
        let mut seen = Vec::new();
        for bytes in [&b"a"[..], &[0xc3], &[0xa9], "\u{1f431}x".as_bytes(), &[0xf0, 0x9f], &[0xff], b"b"] {
            seen.push(place.characters);
            place.advance(bytes);
        }
        seen.push(place.characters);
        // The two bytes of an e with an accent stand at the same place; a broken character and 0xff are one each.
        assert_eq!(seen, [0, 1, 1, 2, 4, 4, 6, 7]);
    }
}
