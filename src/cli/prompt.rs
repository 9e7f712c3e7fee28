//! From the user's words to prompt ids.

use super::args::TextArgs;
use crate::files::chat::Message;
use crate::files::checkpoint::read_whole_text;
use crate::files::pair::Pair;
use crate::text::{LayoutError, Next, Prompt, Wants};
use crate::trace::RequestFile;
use crate::{Error, Result};
use std::io::IsTerminal;
use std::path::Path;

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

/// A message laid out as the flags say.
pub(super) fn of_message(pair: &Pair, args: &TextArgs, content: String) -> Result<Prompt> {
    let next = Next::Answer { layout: args.prompt_layout, prefill: args.prefill.as_deref().unwrap_or_default() };
    let message = Message { role: "user".to_string(), content };
    Prompt::of_messages(pair, args.system.as_deref(), &[message], next).map_err(with_flags)
}

/// The error of a prompt, with the flag that it is about.
pub(super) fn with_flags(error: LayoutError) -> Error {
    match error {
        LayoutError::NoTemplate(Wants::System) => Error::invalid(format!("--system: {error}")),
        LayoutError::NoTemplate(Wants::Official) => Error::invalid(format!("--prompt-layout official: {error}")),
        LayoutError::NoHeader => Error::invalid(format!("--prompt-layout official: {error}; use --prompt-layout chat")),
        error => error.into(),
    }
}

/// The prompt of a request, already laid out.
pub(super) fn of_request(request: &RequestFile) -> Result<Prompt> {
    if request.prompt_ids.is_empty() {
        return Err(Error::invalid("--request: `prompt_ids` is empty"));
    }
    Ok(Prompt { text: request.user_text.clone(), ..Prompt::of_ids(request.prompt_ids.clone()) })
}
