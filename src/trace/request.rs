//! Requests as JSON: `prompt_ids`, `options` and, to repeat a sampled response, `uniforms_used`.
//!
//! Read by hand rather than derived, so that a message can name the field, what it must be and what it is.

use crate::files::checkpoint::read_whole_text;
use crate::method::{Options, PROPOSALS, Proposals, Selection};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// What a request file says. Unknown fields are ignored, so that a whole trace is a request.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestFile {
    /// The request in words, if it has them; copied to the trace.
    pub user_text: Option<String>,
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// Parameters; what is missing is the caller's to fill in.
    pub options: RequestOptions,
    /// Uniform numbers to draw with, in place of a seed.
    pub uniforms_used: Option<Vec<f64>>,
}

/// The options a request names, `None` where it does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestOptions {
    /// Budget.
    pub max_new_tokens: Option<usize>,
    /// Threshold of the signal.
    pub entropy_threshold: Option<f64>,
    /// Candidates per segment.
    pub max_candidates: Option<usize>,
    /// Proposals are limited to the K largest logits.
    pub top_k: Option<usize>,
    /// Divides scores when sampling.
    pub temperature: Option<f64>,
    /// Greedy or sampled choice.
    pub selection: Option<Selection>,
    /// Slot offset in the first segment.
    pub first_offset: Option<usize>,
    /// Generated tokens from which on the threshold is tested.
    pub min_generated: Option<usize>,
    /// Ids that end a segment.
    pub stop_ids: Option<Vec<u32>>,
    /// End-of-turn id.
    pub finish_id: Option<u32>,
    /// Factor on the score of the token now at the slot.
    pub damping: Option<f64>,
    /// Floor of the probabilities in the entropy.
    pub probability_floor: Option<f64>,
    /// The reward model's pad id; `Some(None)` says that there is none.
    pub reward_pad_id: Option<Option<u32>>,
    /// Name of the signal.
    pub signal: Option<String>,
    /// Where proposals come from.
    pub proposals: Option<Proposals>,
    /// Weight of a token's log-probability in its score.
    pub logprob_weight: Option<f64>,
}

impl RequestFile {
    /// Reads a request file.
    ///
    /// # Errors
    /// The file is not readable or not JSON, `prompt_ids` is missing, or a field has the wrong type.
    pub fn read(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let text = read_whole_text(path, file)?;
        Self::parse(&text).map_err(|e| Error::file(path, e.to_string()))
    }

    /// Reads the text of a request.
    ///
    /// # Errors
    /// It is not JSON, `prompt_ids` is missing, or a field has the wrong type.
    pub fn parse(text: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| Error::invalid(format!("not a JSON request: {e}")))?;
        let Value::Object(map) = value else {
            return Err(Error::invalid(format!(
                "a request is a JSON object with `prompt_ids` and `options`, not {}",
                kind(&value)
            )));
        };
        let request = TraceFields { map: &map, prefix: "" };
        let prompt_ids = request
            .get("prompt_ids", "an array of token ids", ids)?
            .ok_or_else(|| Error::invalid("`prompt_ids` is missing"))?;
        let empty = Map::new();
        let options = match map.get("options") {
            None => &empty,
            Some(Value::Object(options)) => options,
            Some(other) => return Err(wrong("options", "an object", other)),
        };
        Ok(RequestFile {
            user_text: map.get("user_text").and_then(Value::as_str).map(str::to_string),
            prompt_ids,
            options: RequestOptions::from_fields(&TraceFields { map: options, prefix: "options." })?,
            uniforms_used: request.get("uniforms_used", "an array of numbers in [0, 1)", unit)?,
        })
    }
}

impl RequestOptions {
    fn from_fields(fields: &TraceFields<'_>) -> Result<Self> {
        let count = |name| fields.get(name, "a whole number, 0 or more", count);
        let real = |name| fields.get(name, "a number", Value::as_f64);
        let id = |name| fields.get(name, "a token id", token_id);
        let ways = PROPOSALS.map(|proposals| format!("{:?}", proposals.name())).join(", ");
        Ok(RequestOptions {
            max_new_tokens: count("max_new_tokens")?,
            entropy_threshold: real("entropy_threshold")?,
            max_candidates: count("max_candidates")?,
            top_k: count("top_k")?,
            temperature: real("temperature")?,
            selection: fields.get("selection", "\"greedy\" or \"sample\"", selection)?,
            first_offset: count("first_offset")?,
            min_generated: count("min_generated")?,
            stop_ids: fields.get("stop_ids", "an array of token ids", ids)?,
            finish_id: id("finish_id")?,
            damping: real("damping")?,
            probability_floor: real("probability_floor")?,
            reward_pad_id: match fields.map.get("reward_pad_id") {
                Some(Value::Null) => Some(None),
                _ => id("reward_pad_id")?.map(Some),
            },
            signal: fields.get("signal", "the name of a signal", |v| v.as_str().map(str::to_string))?,
            proposals: fields.get("proposals", &format!("one of {ways}"), |v| Proposals::of(v.as_str()?))?,
            logprob_weight: real("logprob_weight")?,
        })
    }

    /// Overwrites the options that the request names. `signal` is left to the caller, who knows the signals.
    pub fn apply(&self, options: &mut Options) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                *to = value.clone();
            }
        }
        set(&mut options.max_new_tokens, &self.max_new_tokens);
        set(&mut options.entropy_threshold, &self.entropy_threshold);
        set(&mut options.max_candidates, &self.max_candidates);
        set(&mut options.top_k, &self.top_k);
        set(&mut options.temperature, &self.temperature);
        set(&mut options.selection, &self.selection);
        set(&mut options.first_offset, &self.first_offset);
        set(&mut options.min_generated, &self.min_generated);
        set(&mut options.finish_id, &self.finish_id);
        set(&mut options.stop_ids, &self.stop_ids);
        set(&mut options.damping, &self.damping);
        set(&mut options.probability_floor, &self.probability_floor);
        set(&mut options.reward_pad_id, &self.reward_pad_id);
        set(&mut options.proposals, &self.proposals);
        set(&mut options.logprob_weight, &self.logprob_weight);
        // A request with its own end-of-turn id and the pair's stop ids means both.
        if self.stop_ids.is_none() && !options.stop_ids.contains(&options.finish_id) {
            options.stop_ids.push(options.finish_id);
        }
    }
}

/// An object's fields and the name they stand under in messages.
struct TraceFields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl TraceFields<'_> {
    /// A field read with `read`, which says `None` to a value of the wrong type; `Ok(None)` if it is absent.
    fn get<T>(&self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.map.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(wrong(&format!("{}{name}", self.prefix), expected, value)),
            },
        }
    }
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(token_id).collect()
}

fn unit(value: &Value) -> Option<Vec<f64>> {
    let in_range = |v: &Value| v.as_f64().filter(|u| (0.0..1.0).contains(u));
    value.as_array()?.iter().map(in_range).collect()
}

fn selection(value: &Value) -> Option<Selection> {
    match value.as_str()? {
        "greedy" => Some(Selection::Greedy),
        "sample" => Some(Selection::Sample),
        _ => None,
    }
}

fn wrong(name: &str, expected: &str, found: &Value) -> Error {
    Error::invalid(format!("`{name}` must be {expected}, not {}", kind(found)))
}

/// A value in a few words: scalars as they are, the rest by type and, for arrays, the first entry.
fn kind(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_string(),
        Value::Array(entries) if entries.is_empty() => "an empty array".to_string(),
        Value::Array(entries) => {
            let odd = entries.iter().find(|v| token_id(v).is_none()).unwrap_or(&entries[0]);
            format!("an array with {}", kind(odd))
        }
        Value::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        RequestFile::parse(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn fields_and_absences() {
        let request = RequestFile::parse(
            r#"{"name": "x", "prompt_ids": [1, 2], "options": {"top_k": 3, "reward_pad_id": null,
                "selection": "sample", "proposals": "all", "unknown": {}}, "uniforms_used": [0.5], "segments": 7}"#,
        )
        .expect("a request");
        assert_eq!(request.prompt_ids, [1, 2]);
        assert_eq!(request.uniforms_used, Some(vec![0.5]));
        let expected = RequestOptions {
            top_k: Some(3),
            reward_pad_id: Some(None),
            selection: Some(Selection::Sample),
            proposals: Some(Proposals::All),
            ..RequestOptions::default()
        };
        assert_eq!(request.options, expected);
        let bare = RequestFile::parse(r#"{"prompt_ids": [1]}"#).expect("a request");
        assert_eq!(bare.options, RequestOptions::default());
    }

    #[test]
    fn messages_name_the_field() {
        for (text, parts) in [
            ("[]", vec!["JSON object", "empty array"]),
            ("{", vec!["not a JSON request"]),
            ("{}", vec!["`prompt_ids` is missing"]),
            (r#"{"prompt_ids": [1, -2]}"#, vec!["`prompt_ids`", "token ids", "-2"]),
            (r#"{"prompt_ids": "hi"}"#, vec!["`prompt_ids`", "\"hi\""]),
            (r#"{"prompt_ids": [1], "options": 3}"#, vec!["`options`", "an object", "3"]),
            (r#"{"prompt_ids": [1], "options": {"top_k": -1}}"#, vec!["`options.top_k`", "whole number", "-1"]),
            (r#"{"prompt_ids": [1], "options": {"max_new_tokens": 1.5}}"#, vec!["`options.max_new_tokens`", "1.5"]),
            (
                r#"{"prompt_ids": [1], "options": {"selection": "best"}}"#,
                vec!["`options.selection`", "greedy", "\"best\""],
            ),
            (
                r#"{"prompt_ids": [1], "options": {"proposals": "some"}}"#,
                vec!["`options.proposals`", "\"shuffled-gradient\"", "\"some\""],
            ),
            (
                r#"{"prompt_ids": [1], "options": {"logprob_weight": "0"}}"#,
                vec!["`options.logprob_weight`", "a number"],
            ),
            (r#"{"prompt_ids": [1], "options": {"finish_id": null}}"#, vec!["`options.finish_id`", "null"]),
            (r#"{"prompt_ids": [1], "uniforms_used": [1.0]}"#, vec!["`uniforms_used`", "1.0"]),
        ] {
            let message = message(text);
            for part in parts {
                assert!(message.contains(part), "{text}: {message}");
            }
        }
    }
}
