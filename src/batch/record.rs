//! A prompt as a line of an input file gives it, and how its fields are read.

use crate::files::chat::Message;
use serde_json::{Map, Value};

/// A line of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRecord {
    /// The prompt's text: the last message, which is the user's.
    pub text: String,
    /// The conversation, with that message at its end.
    pub messages: Vec<Message>,
    /// The right answer, where there is one.
    pub answer: Option<String>,
    /// The line's `metadata`, or the fields of a dataset's row that are kept.
    pub metadata: Value,
}

impl PromptRecord {
    /// A single message.
    pub fn of_text(text: String) -> Self {
        let messages = vec![Message { role: "user".to_string(), content: text.clone() }];
        PromptRecord { text, messages, answer: None, metadata: Value::Null }
    }
}

/// `answer`, if there is one.
pub(super) fn answer(row: &Map<String, Value>) -> std::result::Result<Option<String>, String> {
    match row.get("answer") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(answer)) => Ok(Some(answer.clone())),
        Some(Value::Number(answer)) => Ok(Some(answer.to_string())),
        Some(other) => Err(wrong("answer", "a string", other)),
    }
}

/// A string field that must be there.
pub(super) fn string<'a>(row: &'a Value, name: &str) -> std::result::Result<&'a str, String> {
    string_field(row.get(name), name)
}

/// The string of a field that was looked up.
pub(super) fn string_field<'a>(found: Option<&'a Value>, name: &str) -> std::result::Result<&'a str, String> {
    match found {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong(name, "a string", other)),
        None => Err(format!("expected `{name}`, found none")),
    }
}

/// Chat messages, at least one.
pub(super) fn messages(list: &[Value]) -> std::result::Result<Vec<Message>, String> {
    let mut messages = Vec::with_capacity(list.len());
    for (index, message) in list.iter().enumerate() {
        let at = |what: String| format!("message {index}: {what}");
        let role = string(message, "role").map_err(at)?;
        // Which roles there are is the template's business: `tool`, `ipython`, `developer`.
        if role.is_empty() {
            return Err(at("`role`: expected a name such as user or assistant, found none".to_string()));
        }
        let content = string(message, "content").map_err(at)?;
        messages.push(Message { role: role.to_string(), content: content.to_string() });
    }
    if messages.is_empty() { Err("no messages".to_string()) } else { Ok(messages) }
}

/// What is wrong with a field.
pub(super) fn wrong(name: &str, expected: &str, found: &Value) -> String {
    format!("`{name}`: expected {expected}, found {}", kind(found))
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
