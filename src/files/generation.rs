//! Sampling defaults of a policy: `generation_config.json`, as vLLM reads it.

use super::checkpoint::Files;
use crate::Result;
use serde_json::{Map, Value};

/// How a model's authors want answers to be sampled, where they say so. `do_sample` is not looked at, as in vLLM;
/// `max_new_tokens` is no wish about sampling, and not read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f64>,
    /// Most likely tokens by number; 0 is all.
    pub top_k: Option<usize>,
    /// Most likely tokens by probability.
    pub top_p: Option<f64>,
    /// Least probability relative to the most likely token's.
    pub min_p: Option<f64>,
    /// Penalty on ids that were there before.
    pub repetition_penalty: Option<f64>,
}

const NAME: &str = "generation_config.json";

impl SamplingDefaults {
    /// Reads the file, if there is one. What has no use as a default is left out with a note.
    ///
    /// # Errors
    /// The file is not JSON, or cannot be read.
    pub(crate) fn load(files: &Files, notes: &mut Vec<String>) -> Result<SamplingDefaults> {
        Ok(SamplingDefaults::read(&files.read_json(NAME)?.unwrap_or_default(), notes))
    }

    fn read(config: &Map<String, Value>, notes: &mut Vec<String>) -> SamplingDefaults {
        let mut number = |name: &str, expected: &str, allowed: fn(f64) -> bool| {
            let value = config.get(name).filter(|value| !value.is_null())?;
            let number = value.as_f64().filter(|&number| allowed(number));
            if number.is_none() {
                notes.push(format!("{NAME}: `{name}`: expected {expected}, found {value}; it is left out"));
            }
            number
        };
        let whole = |number: f64| number.fract() == 0.0 && (-1.0..=f64::from(1 << 30)).contains(&number);
        SamplingDefaults {
            temperature: number("temperature", "a number, 0 to 100", |t| (0.0..=100.0).contains(&t)),
            // -1 is off, as in requests.
            top_k: number("top_k", "a whole number, -1 or more", whole).map(|k| k.max(0.0) as usize),
            top_p: number("top_p", "a number above 0 and at most 1", |p| p > 0.0 && p <= 1.0),
            min_p: number("min_p", "a number, 0 to 1", |p| (0.0..=1.0).contains(&p)),
            repetition_penalty: number("repetition_penalty", "a number above 0", |p| p > 0.0 && p <= 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_default_is_left_out_with_a_note() {
        let read = |text: &str| {
            let (mut notes, config): (Vec<String>, Map<String, Value>) =
                (Vec::new(), serde_json::from_str(text).unwrap());
            (SamplingDefaults::read(&config, &mut notes), notes)
        };
        let (llama, notes) = read(r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 9}"#);
        let expected = SamplingDefaults { temperature: Some(0.6), top_p: Some(0.9), ..SamplingDefaults::default() };
        assert_eq!((llama, notes.len()), (expected, 0));
        let (qwen, _) = read(r#"{"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "min_p": 0}"#);
        assert_eq!((qwen.top_k, qwen.repetition_penalty, qwen.min_p), (Some(20), Some(1.05), Some(0.0)));
        assert_eq!(read(r#"{"top_k": -1, "temperature": null}"#).0.top_k, Some(0));
        let (odd, notes) = read(r#"{"temperature": "hot", "top_p": 0, "top_k": 1.5, "repetition_penalty": -1}"#);
        assert_eq!((odd, notes.len()), (SamplingDefaults::default(), 4));
        assert!(notes[0].contains("`temperature`: expected a number, 0 to 100, found \"hot\""), "{notes:?}");
    }
}
