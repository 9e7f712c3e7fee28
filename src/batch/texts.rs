//! Texts to be scored, one JSON value per line.
//!
//! A line is a string; an array of chat messages; or an object with `text`, `messages`, `prompt` and `response`, or `ids`, and
//! optionally `metadata`. Empty lines are no texts and have no number; every other line is a text or an error.

use super::record::{FullConversation, kind, lay_out, messages, string_field, wrong};
use crate::files::chat::Message;
use crate::files::json::in_line;
use crate::files::pair::Pair;
use crate::text::Next;
use crate::text::Prompt;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// What is to be scored.
#[derive(Clone, Debug, PartialEq)]
pub enum TextContent {
    /// A text as it is, which gets the tokenizer's special tokens around it.
    Text(String),
    /// A conversation, to be laid out by the chat template, with all that this may look at where that is more.
    Messages(Vec<Message>, Option<FullConversation>),
    /// Token ids as they are.
    Ids(Vec<u32>),
}

/// A text to be scored.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRecord {
    /// Where it comes from, for messages: `line 3`.
    pub place: String,
    /// What is to be scored.
    pub content: TextContent,
    /// The line's `metadata`.
    pub metadata: Value,
}

impl TextRecord {
    /// The token ids.
    ///
    /// # Errors
    /// The text cannot be encoded, the chat template refuses the conversation, or there is none.
    pub fn ids(&self, pair: &Pair) -> Result<Vec<u32>> {
        match &self.content {
            // Special tokens alone would be no text.
            TextContent::Text(text) if text.is_empty() => Ok(Vec::new()),
            TextContent::Text(text) => Prompt::of_text(pair, text, true, pair.longest).map(|prompt| prompt.ids),
            TextContent::Ids(ids) => Ok(ids.clone()),
            TextContent::Messages(..) if pair.chat().is_none() => Err(Error::invalid(
                "expected a model with a chat template for messages, found none; give the text as it is, or a template with \
                 --chat-template FILE",
            )),
            TextContent::Messages(messages, whole) => {
                let laid = lay_out(pair, None, messages, whole.as_ref(), Next::Nothing);
                laid.map(|prompt| prompt.ids).map_err(Error::from)
            }
        }
    }

    /// Its words, to be shown beside the reward: of a conversation the last message.
    ///
    /// # Errors
    /// Ids cannot be decoded.
    pub fn words(&self, pair: &Pair) -> Result<String> {
        match &self.content {
            TextContent::Text(text) => Ok(text.clone()),
            TextContent::Ids(ids) => pair.tokenizer.decode(ids),
            TextContent::Messages(messages, _) => {
                Ok(messages.last().map(|last| last.content.clone()).unwrap_or_default())
            }
        }
    }
}

/// Reads JSON lines.
///
/// # Errors
/// A line is not JSON or has another form, which the message names; or there is no text.
pub fn parse(text: &str) -> std::result::Result<Vec<TextRecord>, String> {
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        // Files that were joined have byte order marks within.
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let place = format!("line {}", number + 1);
        let value = serde_json::from_str(line).map_err(|e| format!("expected JSON: {}", in_line(&e)));
        let (content, metadata) = value.and_then(content).map_err(|what| format!("{place}: {what}"))?;
        all.push(TextRecord { place, content, metadata });
    }
    match all.is_empty() {
        true => Err("expected a text per line, found none".to_string()),
        false => Ok(all),
    }
}

/// The content and the metadata of a line.
fn content(value: Value) -> std::result::Result<(TextContent, Value), String> {
    match value {
        Value::String(text) => Ok((TextContent::Text(text), Value::Null)),
        Value::Array(list) => Ok((conversation(&list, None)?, Value::Null)),
        Value::Object(mut fields) => {
            let content = of_fields(&fields)?;
            Ok((content, fields.shift_remove("metadata").unwrap_or(Value::Null)))
        }
        other => Err(format!("expected a string, messages or an object, found {}", kind(&other))),
    }
}

fn conversation(list: &[Value], tools: Option<&Value>) -> std::result::Result<TextContent, String> {
    let (messages, whole) = messages(list, tools)?;
    Ok(TextContent::Messages(messages, whole))
}

fn of_fields(fields: &Map<String, Value>) -> std::result::Result<TextContent, String> {
    const FORMS: [&str; 4] = ["text", "messages", "ids", "response"];
    let found: Vec<&str> = FORMS.into_iter().filter(|name| fields.contains_key(*name)).collect();
    let [form] = found[..] else {
        let found = if found.is_empty() { "none of them".to_string() } else { found.join(" and ") };
        return Err(format!("expected one of `text`, `messages`, `ids`, or `prompt` and `response`, found {found}"));
    };
    match (form, &fields[form]) {
        ("text", _) => Ok(TextContent::Text(string_field(fields.get("text"), "text")?.to_string())),
        ("messages", Value::Array(list)) => conversation(list, fields.get("tools")),
        ("messages", other) => Err(wrong("messages", "an array", other)),
        ("ids", Value::Array(list)) => {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids =
                list.iter().map(|value| id(value).ok_or_else(|| format!("`ids`: expected token ids, found {value}")));
            Ok(TextContent::Ids(ids.collect::<std::result::Result<_, _>>()?))
        }
        ("ids", other) => Err(wrong("ids", "an array of token ids", other)),
        _ => {
            let said = |role: &str, name: &str| -> std::result::Result<Message, String> {
                Ok(Message { role: role.to_string(), content: string_field(fields.get(name), name)?.to_string() })
            };
            Ok(TextContent::Messages(vec![said("user", "prompt")?, said("assistant", "response")?], None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_form() {
        let text = "\"one\"\n\n[{\"role\": \"user\", \"content\": \"two\"}]\n{\"text\": \"three\", \"metadata\": 3}\n\
                    {\"ids\": [4, 5]}\n{\"prompt\": \"p\", \"response\": \"r\"}\n\
                    {\"messages\": [{\"role\": \"assistant\", \"content\": \"six\"}]}";
        let all = parse(text).unwrap();
        assert_eq!((all.len(), all[1].place.as_str(), &all[2].metadata), (6, "line 3", &Value::from(3)));
        assert_eq!(all[3].content, TextContent::Ids(vec![4, 5]));
        let TextContent::Messages(messages, None) = &all[4].content else { panic!("{:?}", all[4]) };
        let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("\"a\"\n{", "line 2: expected JSON: EOF while parsing an object at column 1"),
            ("\"a\"\n\nnull", "line 3: expected a string, messages or an object, found null"),
            ("{\"text\": null}", "line 1: `text`: expected a string, found null"),
            ("3", "line 1: expected a string, messages or an object, found a number"),
            (
                "{\"answer\": 3}",
                "line 1: expected one of `text`, `messages`, `ids`, or `prompt` and `response`, found none",
            ),
            ("{\"text\": \"a\", \"ids\": [1]}", "line 1: expected one of `text`, `messages`, `ids`, or `prompt` and"),
            ("{\"text\": 3}", "line 1: `text`: expected a string, found a number"),
            ("{\"response\": \"r\"}", "line 1: expected `prompt`, found none"),
            ("{\"ids\": [1, -2]}", "line 1: `ids`: expected token ids, found -2"),
            ("{\"messages\": \"a\"}", "line 1: `messages`: expected an array, found a string"),
            ("[]", "line 1: no messages"),
            ("\n", "expected a text per line, found none"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.starts_with(expected), "{text}: {message}");
        }
    }
}
