//! The prompts of requests: conversations, texts and ids.

use super::error::ApiError;
use super::fields::{Fields, kind};
use crate::files::chat::{Conversation, check_variable};
use crate::files::pair::Pair;
use crate::text::{LayoutError, Next, Prompt, PromptLayout};
use serde_json::{Map, Value};

/// How long prompts may be, and what becomes of longer ones.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// A longer text is refused before all of it is encoded.
    pub most: usize,
    /// Only so many last tokens are kept.
    kept: Option<usize>,
}

impl Length {
    /// Up to the context's length; with `truncate_prompt_tokens` any, of which the last tokens are kept (-1: this many).
    ///
    /// # Errors
    /// The field has another type or value.
    pub fn read(fields: &mut Fields, context: usize, most_kept: usize) -> Result<Length, ApiError> {
        let kept =
            fields.get("truncate_prompt_tokens", "a whole number, 1 or more, or -1", |value| match value.as_i64() {
                Some(-1) => Some(most_kept),
                _ => super::fields::whole(value).filter(|&kept| kept > 0),
            })?;
        Ok(Length { most: if kept.is_some() { usize::MAX } else { context }, kept })
    }

    /// Of any length: nothing but a count is wanted.
    pub fn counted(self) -> Length {
        Length { most: usize::MAX, ..self }
    }

    /// The prompt's last tokens, if it is too long and may be cut.
    pub fn cut(self, mut prompt: Prompt) -> Prompt {
        let cut = self.kept.map_or(0, |kept| prompt.ids.len().saturating_sub(kept));
        prompt.ids.drain(..cut);
        prompt.text = prompt.text.take().filter(|_| cut == 0);
        prompt
    }
}

/// The conversation of a chat request.
#[derive(Debug)]
pub struct Chat {
    messages: Vec<Value>,
    tools: Option<Value>,
    variables: Map<String, Value>,
    add_generation_prompt: bool,
    /// The last message is the beginning of the answer.
    continued: bool,
    /// The tokenizer's special tokens are put around what the template writes.
    special_tokens: bool,
}

const NO_TEMPLATE: &str = "cannot be laid out: the model has no chat template (chat_template.jinja, or `chat_template` in \
tokenizer_config.json). The server takes one with --chat-template FILE; /v1/completions takes a text as it is";

impl Chat {
    /// Reads the fields of a chat request.
    ///
    /// # Errors
    /// A field has a wrong type or value, or there are too many messages.
    pub fn read(fields: &mut Fields, most_messages: usize) -> Result<Chat, ApiError> {
        let messages = match fields.take("messages") {
            Some(Value::Array(messages)) => messages,
            Some(other) => return Err(fields.wrong("messages", "a list of messages", &other)),
            None => return Err(ApiError::field("messages", "is missing")),
        };
        if messages.is_empty() || messages.len() > most_messages {
            let found = messages.len();
            return Err(ApiError::field("messages", format!("must hold 1 to {most_messages} messages, not {found}")));
        }
        let messages = messages.into_iter().enumerate().map(|(index, message)| read_message(index, message));
        let messages = messages.collect::<Result<Vec<Value>, ApiError>>()?;
        let tools = match fields.take("tools") {
            Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => {
                Some(Value::Array(tools)).filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()))
            }
            Some(other) => return Err(fields.wrong("tools", "a list of objects", &other)),
            None => None,
        };
        let choice = fields.take("tool_choice");
        let tools = match choice.as_ref().map(Value::as_str) {
            None | Some(Some("auto")) => tools,
            Some(Some("none")) => None,
            Some(_) => {
                let message = "must be \"auto\" or \"none\": the model decides by itself whether it calls a function";
                return Err(ApiError::field("tool_choice", message));
            }
        };
        let variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
        for (name, value) in &variables {
            check_variable(name, value).map_err(|error| ApiError::from(error).about("chat_template_kwargs"))?;
        }
        if fields.take("chat_template").is_some() {
            return Err(ApiError::field("chat_template", "is the model's; a request cannot bring its own"));
        }
        let continued = fields.flag("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = fields.flag("add_generation_prompt")?;
        if continued && add_generation_prompt == Some(true) {
            let message = "and `add_generation_prompt` exclude each other";
            return Err(ApiError::field("continue_final_message", message));
        }
        let last = messages.last().and_then(|message| message["role"].as_str());
        if continued && last != Some("assistant") {
            let message = "needs a last message of the assistant, which is continued";
            return Err(ApiError::field("continue_final_message", message));
        }
        let add_generation_prompt = add_generation_prompt.unwrap_or(!continued);
        // Templates write special tokens themselves.
        let special_tokens = fields.flag("add_special_tokens")?.unwrap_or(false);
        Ok(Chat { messages, tools, variables, add_generation_prompt, continued, special_tokens })
    }

    /// The prompt of the conversation.
    ///
    /// # Errors
    /// The template refuses the conversation, or there is none.
    pub fn lay_out(&self, pair: &Pair, layout: PromptLayout, length: Length) -> Result<Prompt, ApiError> {
        let Chat { messages, tools, variables, .. } = self;
        let conversation = Conversation { messages, tools: tools.as_ref(), variables };
        let next = match (self.continued, self.add_generation_prompt) {
            (true, _) => Next::Continued,
            (false, true) => Next::Answer { layout, prefill: "" },
            (false, false) => Next::Nothing,
        };
        let laid = Prompt::of_conversation(pair, &conversation, next, length.most).map_err(|error| match error {
            LayoutError::NoTemplate(_) => ApiError::field("messages", NO_TEMPLATE),
            LayoutError::NoHeader => {
                let message =
                    "\"official\" cannot be honoured: the template's generation prompt changes what is before it";
                ApiError::field("ggro.prompt_layout", message)
            }
            LayoutError::NotContinued => {
                ApiError::field("continue_final_message", format!("cannot be honoured: {error}"))
            }
            LayoutError::Template(error) => ApiError::from(error).about("messages"),
            LayoutError::Tokenizer(error) => ApiError::from(error).about("messages"),
        })?;
        Ok(length.cut(match self.special_tokens {
            true => Prompt { ids: pair.tokenizer.with_special_tokens(laid.ids), ..laid },
            false => laid,
        }))
    }
}

/// A message with its content as one string, as templates of text models expect it.
fn read_message(index: usize, message: Value) -> Result<Value, ApiError> {
    let named = |field: &str| format!("messages[{index}]{field}");
    let Value::Object(mut message) = message else {
        return Err(ApiError::field(&named(""), format!("must be an object, not {}", kind(&message))));
    };
    // Which roles there are is the template's to say: it gets any, as from vLLM.
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
    if role.is_empty() {
        let found = message.get("role").map_or("nothing".to_string(), kind);
        return Err(ApiError::field(&named(".role"), format!("must be a role such as \"user\", not {found}")));
    }
    // `developer` is OpenAI's newer name of the role; templates know `system`.
    let role = if role == "developer" { "system" } else { role }.to_string();
    let calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    let content = match message.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.iter().enumerate().map(|(part, value)| {
                let text = value.get("text").and_then(Value::as_str);
                let kind = value.get("type").and_then(Value::as_str).unwrap_or("text");
                match (kind, text) {
                    ("text" | "input_text" | "output_text", Some(text)) => Ok(text),
                    _ => Err(ApiError::field(&named(&format!(".content[{part}]")), "must be a part of type \"text\"")),
                }
            });
            texts.collect::<Result<Vec<&str>, ApiError>>()?.join("\n")
        }
        None | Some(Value::Null) if calls || role == "assistant" => String::new(),
        None | Some(Value::Null) => return Err(ApiError::field(&named(".content"), "is missing")),
        Some(other) => {
            let message = format!("must be a string or a list of parts, not {}", kind(&other));
            return Err(ApiError::field(&named(".content"), message));
        }
    };
    // Clients send the arguments of a call as a string; templates expect an object.
    if let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
        for call in calls {
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok())
            {
                *arguments = parsed;
            }
        }
    }
    message.retain(|_, value| !value.is_null());
    message.insert("role".to_string(), Value::String(role));
    message.insert("content".to_string(), Value::String(content));
    Ok(Value::Object(message))
}

/// Whether texts get the tokenizer's special tokens around them, such as the beginning of sequence: vLLM's default is yes.
///
/// # Errors
/// The field has another type.
pub fn special_tokens_of_texts(fields: &mut Fields) -> Result<bool, ApiError> {
    Ok(fields.flag("add_special_tokens")?.unwrap_or(true))
}

/// Reads the prompts of a completion request: a text, ids, or lists of either.
///
/// # Errors
/// The field is missing, of another type, empty, or has too many entries.
pub fn read_prompts(fields: &mut Fields, pair: &Pair, most: usize, length: Length) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of token ids, or a list of either";
    let special_tokens = special_tokens_of_texts(fields)?;
    let Some(value) = fields.take("prompt") else { return Err(ApiError::field("prompt", "is missing")) };
    let prompts = read_texts(pair, &value, most, (special_tokens, length)).map_err(|error| error.about("prompt"))?;
    let Some(prompts) = prompts else { return Err(fields.wrong("prompt", expected, &value)) };
    if let Some(index) = prompts.iter().position(|prompt| prompt.ids.is_empty()) {
        return Err(ApiError::field("prompt", format!("number {index} is empty")));
    }
    Ok(prompts)
}

/// A text, ids, or lists of either; `None` for anything else. Texts get the tokenizer's special tokens if asked; ids stay.
///
/// # Errors
/// The tokenizer's own, or the list is empty or has more than `most` entries.
pub fn read_texts(
    pair: &Pair,
    value: &Value,
    most: usize,
    (special_tokens, length): (bool, Length),
) -> Result<Option<Vec<Prompt>>, ApiError> {
    let of_text =
        |text: &str| Prompt::of_text(pair, text, special_tokens, length.most).map(|prompt| length.cut(prompt));
    let of_ids = |ids| length.cut(Prompt::of_ids(ids));
    match value {
        Value::String(text) => Ok(Some(vec![of_text(text)?])),
        Value::Array(entries) if entries.iter().all(Value::is_number) && !entries.is_empty() => {
            Ok(super::fields::token_ids(value).map(|ids| vec![of_ids(ids)]))
        }
        Value::Array(entries) if entries.is_empty() || entries.len() > most => {
            Err(ApiError::invalid(format!("a list must hold 1 to {most} texts, not {}", entries.len())))
        }
        Value::Array(entries) => {
            let mut prompts = Vec::new();
            for entry in entries {
                match (entry, super::fields::token_ids(entry)) {
                    (Value::String(text), _) => prompts.push(of_text(text)?),
                    (_, Some(ids)) => prompts.push(of_ids(ids)),
                    _ => return Ok(None),
                }
            }
            Ok(Some(prompts))
        }
        _ => Ok(None),
    }
}
