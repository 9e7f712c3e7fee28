//! A prompt as a line of an input file gives it, and how its fields are read.

use crate::files::chat::{Conversation, Message};
use crate::files::pair::Pair;
use crate::text::{LayoutError, Next, Prompt};
use serde_json::{Map, Value, json};

/// A line of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRecord {
    /// The prompt's text: the last message, which is the user's.
    pub text: String,
    /// The conversation, with that message at its end.
    pub messages: Vec<Message>,
    /// The conversation with all that a template may look at, where that is more.
    pub whole: Option<FullConversation>,
    /// The right answer, where there is one.
    pub answer: Option<String>,
    /// The line's `metadata`, or the fields of a dataset's row that are kept.
    pub metadata: Value,
}

impl PromptRecord {
    /// A single message.
    pub fn of_text(text: String) -> Self {
        let messages = vec![Message { role: "user".to_string(), content: text.clone() }];
        PromptRecord { text, messages, whole: None, answer: None, metadata: Value::Null }
    }
}

/// A conversation whose messages have more than a role and a text, or that has functions to be called.
#[derive(Clone, Debug, PartialEq)]
pub struct FullConversation {
    /// The messages with all of their fields.
    pub messages: Vec<Value>,
    /// Descriptions of the functions.
    pub tools: Option<Value>,
}

/// The prompt of a conversation, behind a system message if there is one.
///
/// # Errors
/// As [`Prompt::of_messages`].
pub fn lay_out(
    pair: &Pair,
    system: Option<&str>,
    messages: &[Message],
    whole: Option<&FullConversation>,
    next: Next<'_>,
) -> std::result::Result<Prompt, LayoutError> {
    // Without a template a single message stands by itself, and nothing else can be laid out.
    let Some(whole) = whole.filter(|_| pair.chat().is_some()) else {
        return Prompt::of_messages(pair, system, messages, next);
    };
    let system = system.map(|content| json!({ "role": "system", "content": content }));
    let messages: Vec<Value> = system.into_iter().chain(whole.messages.iter().cloned()).collect();
    let (tools, variables) = (whole.tools.as_ref(), &Map::new());
    Prompt::of_conversation(pair, &Conversation { messages: &messages, tools, variables }, next, pair.longest)
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

/// Chat messages, at least one, as OpenAI's API has them; and all of their fields, where there are more or there are `tools`.
pub(super) fn messages(
    list: &[Value],
    tools: Option<&Value>,
) -> std::result::Result<(Vec<Message>, Option<FullConversation>), String> {
    let tools = match tools {
        None | Some(Value::Null) => None,
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => {
            Some(Value::Array(tools.clone())).filter(|_| !tools.is_empty())
        }
        Some(other) => return Err(wrong("tools", "an array of objects", other)),
    };
    let (mut messages, mut objects) = (Vec::with_capacity(list.len()), Vec::with_capacity(list.len()));
    for (index, message) in list.iter().enumerate() {
        let (message, object) = read_message(message).map_err(|what| format!("message {index}: {what}"))?;
        messages.push(message);
        objects.push(object);
    }
    if messages.is_empty() {
        return Err("no messages".to_string());
    }
    let more =
        tools.is_some() || objects.iter().any(|object| object.as_object().is_some_and(|fields| fields.len() > 2));
    Ok((messages, more.then_some(FullConversation { messages: objects, tools })))
}

/// The text of a part of a message.
fn part_text(number: usize, part: &Value) -> std::result::Result<&str, String> {
    match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (None | Some("text" | "input_text" | "output_text"), Some(Value::String(text))) => Ok(text),
        _ => Err(format!("`content`: part {number}: expected a part of the type \"text\", found another one")),
    }
}

/// A message with its text as one string, which is what templates of text models expect.
fn read_message(message: &Value) -> std::result::Result<(Message, Value), String> {
    let Some(fields) = message.as_object() else {
        return Err(format!("expected an object, found {}", kind(message)));
    };
    // Which roles there are is the template's business: `tool`, `function`, `ipython`. It knows OpenAI's newer name of the system's
    // by the older one.
    let role = match string(message, "role")? {
        "" => return Err("`role`: expected a name such as user or assistant, found none".to_string()),
        "developer" => "system".to_string(),
        role => role.to_string(),
    };
    let calls = fields.get("tool_calls").is_some_and(|calls| !calls.is_null());
    let content = match fields.get("content") {
        Some(Value::Array(parts)) => {
            let texts = parts.iter().enumerate().map(|(number, part)| part_text(number, part));
            texts.collect::<std::result::Result<Vec<_>, _>>()?.join("\n")
        }
        None | Some(Value::Null) if calls || role == "assistant" => String::new(),
        found => string_field(found, "content")?.to_string(),
    };
    let mut fields = fields.clone();
    // A call's arguments are a string on their way, and an object to a template.
    for call in fields.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = parsed;
        }
    }
    fields.retain(|_, value| !value.is_null());
    fields.insert("role".to_string(), Value::from(role.as_str()));
    fields.insert("content".to_string(), Value::from(content.as_str()));
    Ok((Message { role, content }, Value::Object(fields)))
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
