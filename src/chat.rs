//! Chat templates, rendered as Python's Jinja does.

use crate::Result;
use crate::checkpoint::Files;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A model's chat template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`. `Ok(None)` if there is neither.
    ///
    /// # Errors
    /// A file is not readable, or the template does not parse.
    pub fn load(_files: &Files) -> Result<Option<Self>> {
        Ok(None)
    }

    /// Pins `strftime_now` to a moment (seconds since 1970 UTC), for reproducible prompts.
    pub fn pin_time(&mut self, _unix_seconds: i64) {}

    /// Renders a conversation.
    ///
    /// # Errors
    /// The template raises an exception, does not end within its fuel, or writes too much.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String> {
        unimplemented!()
    }
}
