//! Fields of other servers that ask for something this one does not do. They are refused, because an answer that quietly does
//! without would be taken for one that does not. `docs/serving.md` has the same table; a test compares the two.

use super::error::ApiError;
use super::fields::Fields;
use serde_json::Value;

/// Which requests a field belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// Chats and completions.
    Answers,
    /// Chats.
    Chat,
    /// Completions.
    Completions,
    /// Rewards and gradients.
    Rewards,
}

/// A field that is refused.
struct Unsupported {
    routes: Routes,
    name: &'static str,
    /// Values that ask for nothing; `false`, 0, an empty string and an empty list never do.
    neutral: &'static [&'static str],
    /// What stands behind the field's name in the message.
    message: &'static str,
}

const UNCONSTRAINED: &str = "is not supported: answers are not constrained";
const NOT_SUPPORTED: &str = "is not supported";
const NO_SUCH_SAMPLING: &str = "is not supported: see docs/serving.md for the sampling fields that are";

const fn field(
    routes: Routes,
    name: &'static str,
    neutral: &'static [&'static str],
    message: &'static str,
) -> Unsupported {
    Unsupported { routes, name, neutral, message }
}

/// Neutral values are written as JSON.
const TABLE: &[Unsupported] = &[
    field(
        Routes::Answers,
        "response_format",
        &[r#"{"type":"text"}"#],
        "must be of type \"text\": answers are not constrained",
    ),
    field(Routes::Answers, "structured_outputs", &[], UNCONSTRAINED),
    field(Routes::Answers, "structural_tag", &[], UNCONSTRAINED),
    field(Routes::Answers, "guided_json", &[], UNCONSTRAINED),
    field(Routes::Answers, "guided_regex", &[], UNCONSTRAINED),
    field(Routes::Answers, "guided_choice", &[], UNCONSTRAINED),
    field(Routes::Answers, "guided_grammar", &[], UNCONSTRAINED),
    field(Routes::Answers, "json_schema", &[], UNCONSTRAINED),
    field(Routes::Answers, "grammar", &[], UNCONSTRAINED),
    field(Routes::Answers, "regex", &[], UNCONSTRAINED),
    field(Routes::Answers, "ebnf", &[], UNCONSTRAINED),
    field(Routes::Answers, "format", &[], UNCONSTRAINED),
    field(Routes::Answers, "bad_words", &[], UNCONSTRAINED),
    field(Routes::Answers, "allowed_token_ids", &[], UNCONSTRAINED),
    field(Routes::Answers, "stop_regex", &[], UNCONSTRAINED),
    field(Routes::Answers, "logits_processors", &[], NOT_SUPPORTED),
    field(Routes::Answers, "custom_logit_processor", &[], NOT_SUPPORTED),
    field(Routes::Answers, "use_beam_search", &[], NOT_SUPPORTED),
    field(Routes::Answers, "length_penalty", &["1", "1.0"], "is for beam search, which is not supported"),
    field(Routes::Answers, "early_stopping", &[], "is for beam search, which is not supported"),
    field(Routes::Answers, "typical_p", &["1", "1.0"], NO_SUCH_SAMPLING),
    field(Routes::Answers, "tfs_z", &["1", "1.0"], NO_SUCH_SAMPLING),
    field(Routes::Answers, "top_a", &[], NO_SUCH_SAMPLING),
    field(Routes::Answers, "top_n_sigma", &["-1", "-1.0"], NO_SUCH_SAMPLING),
    field(Routes::Answers, "mirostat", &[], NO_SUCH_SAMPLING),
    field(Routes::Answers, "dynatemp_range", &[], NO_SUCH_SAMPLING),
    field(Routes::Answers, "xtc_probability", &[], NO_SUCH_SAMPLING),
    field(Routes::Answers, "dry_multiplier", &[], NO_SUCH_SAMPLING),
    field(Routes::Answers, "epsilon_cutoff", &[], NO_SUCH_SAMPLING),
    field(Routes::Answers, "eta_cutoff", &[], NO_SUCH_SAMPLING),
    field(Routes::Answers, "n_predict", &[], "is not supported: send `max_tokens`"),
    field(Routes::Answers, "n_probs", &[], "is not supported: send `logprobs`"),
    field(Routes::Answers, "prompt_logprobs", &[], "is not supported; use `echo` with `logprobs` of /v1/completions"),
    field(Routes::Answers, "logprob_token_ids", &[], NOT_SUPPORTED),
    field(Routes::Answers, "return_hidden_states", &[], NOT_SUPPORTED),
    field(Routes::Answers, "lora_path", &[], "is not supported: there are no adapters"),
    field(Routes::Answers, "kv_transfer_params", &[], NOT_SUPPORTED),
    field(Routes::Answers, "prompt_embeds", &[], NOT_SUPPORTED),
    field(Routes::Answers, "truncation_side", &["\"left\""], "must be \"left\": the last tokens are kept"),
    field(Routes::Answers, "modalities", &["[\"text\"]"], "must be [\"text\"]"),
    field(Routes::Chat, "functions", &[], "is not supported: send `tools`"),
    field(Routes::Chat, "function_call", &["\"none\"", "\"auto\""], "is not supported: send `tools`"),
    field(
        Routes::Chat,
        "enable_thinking",
        &[],
        "is a variable of the chat template: send it in `chat_template_kwargs`",
    ),
    field(Routes::Chat, "thinking_token_budget", &[], NOT_SUPPORTED),
    field(Routes::Chat, "documents", &[], NOT_SUPPORTED),
    field(Routes::Chat, "echo", &[], "is for /v1/completions"),
    field(Routes::Chat, "audio", &[], NOT_SUPPORTED),
    field(Routes::Chat, "web_search_options", &[], NOT_SUPPORTED),
    field(Routes::Completions, "suffix", &[], NOT_SUPPORTED),
    field(Routes::Rewards, "chat_template", &[], "is the model's; a request cannot bring its own"),
    field(Routes::Rewards, "dimensions", &[], "is for embeddings; a reward is one number"),
    field(Routes::Rewards, "embed_dtype", &["\"float\"", "\"float32\""], "must be \"float32\""),
    field(Routes::Rewards, "endianness", &["\"native\"", "\"little\""], "must be \"native\""),
    field(Routes::Rewards, "truncation_side", &["\"left\""], "must be \"left\": the last tokens are kept"),
    field(Routes::Rewards, "mm_processor_kwargs", &[], NOT_SUPPORTED),
];

/// Refuses what a request of these routes asks for in vain.
///
/// # Errors
/// The first such field.
pub fn refuse(fields: &mut Fields, routes: &[Routes]) -> Result<(), ApiError> {
    for entry in TABLE.iter().filter(|entry| routes.contains(&entry.routes)) {
        if let Some(value) = fields.take(entry.name)
            && !asks_for_nothing(&value)
            && !entry.neutral.iter().any(|neutral| serde_json::from_str::<Value>(neutral).is_ok_and(|one| one == value))
        {
            return Err(ApiError::field(entry.name, entry.message));
        }
    }
    Ok(())
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        // An empty schema is a constraint, too.
        Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_ask_for_nothing_are_taken() {
        let read = |text: &str| refuse(&mut Fields::parse(text.as_bytes()).unwrap(), &[Routes::Answers, Routes::Chat]);
        for neutral in [
            r#"{"bad_words": [], "use_beam_search": false, "mirostat": 0, "length_penalty": 1.0, "suffix": "x"}"#,
            r#"{"response_format": {"type": "text"}, "function_call": "auto", "modalities": ["text"], "grammar": ""}"#,
            r#"{"bad_words": null, "prompt_logprobs": false}"#,
        ] {
            assert_eq!(read(neutral), Ok(()), "{neutral}");
        }
        for (text, field) in [
            (r#"{"bad_words": ["a"]}"#, "bad_words"),
            (r#"{"use_beam_search": true}"#, "use_beam_search"),
            (r#"{"length_penalty": 2}"#, "length_penalty"),
            (r#"{"response_format": {"type": "json_object"}}"#, "response_format"),
            (r#"{"function_call": {"name": "x"}}"#, "function_call"),
            (r#"{"modalities": ["text", "audio"]}"#, "modalities"),
        ] {
            assert_eq!(read(text).unwrap_err().param.as_deref(), Some(field));
        }
    }

    #[test]
    fn the_documentation_has_the_same_table() {
        let docs = include_str!("../../docs/serving.md");
        let (_, section) = docs.split_once("### Fields that are refused").expect("a section");
        let section = section.split("\n#").next().unwrap_or_default();
        let routes = [
            ("chats and completions", Routes::Answers),
            ("chats", Routes::Chat),
            ("completions", Routes::Completions),
            ("rewards and gradients", Routes::Rewards),
        ];
        let mut documented = Vec::new();
        for line in section.lines().filter(|line| line.starts_with("| ")) {
            let mut cells = line.trim_matches(['|', ' ']).split(" | ");
            let (Some(of), Some(names)) = (cells.next(), cells.next()) else { continue };
            let Some(&(_, route)) = routes.iter().find(|(words, _)| *words == of) else { continue };
            documented.extend(names.split(", ").map(|name| (route, name.trim_matches('`'))));
        }
        let table: Vec<_> = TABLE.iter().map(|entry| (entry.routes, entry.name)).collect();
        for entry in &table {
            assert!(documented.contains(entry), "{entry:?} is not in docs/serving.md");
        }
        for entry in &documented {
            assert!(table.contains(entry), "{entry:?} of docs/serving.md is not refused");
        }
    }
}
