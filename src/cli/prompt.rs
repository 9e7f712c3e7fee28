//! From the user's words to prompt ids.

use super::args::{Layout, TextArgs};
use crate::files::chat::Message;
use crate::files::checkpoint::read_whole_text;
use crate::files::pair::Pair;
use crate::trace::Request;
use crate::{Error, Result};
use std::io::IsTerminal;
use std::path::Path;

/// A prompt ready to be decoded.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    /// The ids.
    pub ids: Vec<u32>,
    /// The user's message, for the trace.
    pub user_text: Option<String>,
    /// Start of the answer, part of `ids`, to be printed with the rest.
    pub prefill: String,
    /// Ids of the assistant header where the policy writes it itself; its length is the first segment's slot offset.
    pub header: Vec<u32>,
}

/// The user's message: the argument, or standard input without its last line break.
pub(super) fn message(argument: Option<&str>) -> Result<String> {
    let text = match argument {
        Some(text) => text.to_string(),
        None => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                return Err(Error::invalid(
                    "no PROMPT: give it as an argument or on standard input, e.g. ggro generate \"Write a story about a lost kite.\"",
                ));
            }
            let mut text = read_whole_text(Path::new("standard input"), stdin)?;
            let end = text.trim_end_matches(['\n', '\r']).len();
            text.truncate(end);
            text
        }
    };
    if text.trim().is_empty() {
        return Err(Error::invalid("PROMPT is empty: give it as an argument or on standard input"));
    }
    Ok(text)
}

impl Prompt {
    /// Lays a message out as the pair's template says; a model without one gets the bare text.
    pub(super) fn of_message(pair: &Pair, args: &TextArgs, message: String) -> Result<Self> {
        Self::of_messages(pair, args, &[Message { role: "user".to_string(), content: message }])
    }

    /// The same for a conversation, whose last message is the user's.
    pub(super) fn of_messages(pair: &Pair, args: &TextArgs, said: &[Message]) -> Result<Self> {
        let prefill = args.prefill.clone().unwrap_or_default();
        let message = said.last().map(|message| message.content.clone()).unwrap_or_default();
        let Some(template) = &pair.chat else {
            if said.len() > 1 {
                return Err(Error::invalid("a conversation of several messages: the policy has no chat template"));
            }
            if args.system.is_some() {
                return Err(Error::invalid("--system: the policy has no chat template"));
            }
            if args.prompt_layout == Layout::Official {
                return Err(Error::invalid("--prompt-layout official: the policy has no chat template"));
            }
            let ids = pair.tokenizer.encode(&format!("{message}{prefill}"))?;
            return Ok(Prompt { ids, user_text: Some(message), prefill, header: Vec::new() });
        };
        let system = |content: &String| Message { role: "system".to_string(), content: content.clone() };
        let mut messages: Vec<Message> = args.system.iter().map(system).collect();
        messages.extend_from_slice(said);
        let opened = template.render(&messages, true)?;
        let (ids, header) = if args.prompt_layout == Layout::Official && prefill.is_empty() {
            let ids = pair.tokenizer.encode(&template.render(&messages, false)?)?;
            // The official code's measure: what the generation prompt adds, in ids.
            let opened = pair.tokenizer.encode(&opened)?;
            let Some(header) = opened.strip_prefix(&ids[..]) else {
                return Err(Error::invalid(
                    "--prompt-layout official: this template's generation prompt changes the prompt before it, so the \
                     assistant header has no ids of its own; use --prompt-layout chat",
                ));
            };
            let header = header.to_vec();
            (ids, header)
        } else {
            (pair.tokenizer.encode(&format!("{opened}{prefill}"))?, Vec::new())
        };
        Ok(Prompt { ids, user_text: Some(message), prefill, header })
    }

    /// The prompt of a request, already laid out.
    pub(super) fn of_request(request: &Request) -> Result<Self> {
        if request.prompt_ids.is_empty() {
            return Err(Error::invalid("--request: `prompt_ids` is empty"));
        }
        let user_text = request.user_text.clone();
        Ok(Prompt { ids: request.prompt_ids.clone(), user_text, ..Prompt::default() })
    }
}
