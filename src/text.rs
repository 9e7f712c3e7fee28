//! Text on both sides of the models: how a conversation becomes prompt ids, and how an answer's ids become text.
//!
//! A [`Prompt`] is laid out once, for the library, the command line, runs and the server. An answer's text is written by a
//! [`TextWriter`], token by token or as a whole ([`answer`]), so that a streamed text is the unstreamed one.

mod prompt;
mod respelled;
mod writer;

pub use prompt::{LayoutError, Next, Prompt, PromptLayout, Wants};
pub use respelled::RespelledText;
pub use writer::{AddedText, End, TextRules, TextWriter, text_of};

use crate::Result;
use crate::answer::Response;
use crate::files::pair::Pair;

/// The text of a response, without the end-of-turn token.
///
/// # Errors
/// The tokenizer's own, or the pair has no policy.
pub fn answer(pair: &Pair, response: &Response) -> Result<String> {
    if let Some(text) = &response.respelled {
        return Ok(text.clone());
    }
    let (prompt, ids) = response.final_ids.split_at(response.prompt_len);
    text_of(&pair.tokenizer, &TextRules::ending_at(pair.policy()?.finish_id), prompt, &[], ids)
}
