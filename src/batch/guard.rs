//! The verdict of a guard model on answers: safe, or unsafe with categories, as Llama Guard writes it.
//!
//! The guard's chat template makes a question of a prompt and its answer. The guard answers greedily: `safe`, or `unsafe` and on
//! the next line categories such as `S1,S9`.

use super::output::{Record, Row};
use crate::engine::Engine;
use crate::files::chat::{ChatTemplate, Message};
use crate::files::tokenizer::Tokenizer;
use crate::sampling::{CompletionSpec, Sampling};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Most tokens of a verdict.
pub const MOST_TOKENS: usize = 48;

/// A guard's verdict on one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Number of the prompt.
    pub index: usize,
    /// The prompt's text.
    pub prompt: String,
    /// Whether the answer is safe; `None` if the guard wrote neither word.
    pub safe: Option<bool>,
    /// The categories of an unsafe answer.
    pub categories: Vec<String>,
    /// What the guard wrote.
    pub text: String,
    /// Of the answer that was judged, so that one that has changed since is noticed: FNV-1a in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_hash: Option<String>,
    /// The kind of device that it was made on, as [`MadeOn::device`](super::output::MadeOn::device).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The kernels that it was made by, as [`MadeOn::kernels`](super::output::MadeOn::kernels).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<String>,
    /// Why there is no verdict, if the answer was passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// See [`Verdict::answer_hash`].
pub fn hash_of(answer: &str) -> String {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", answer.bytes().fold(0xcbf2_9ce4_8422_2325, fold))
}

impl Record for Verdict {
    const NOUN: &'static str = "verdict";
    const COMMAND: &'static str = "ggro guard";

    fn index(&self) -> usize {
        self.index
    }

    fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }
}

/// A guard model, ready to be asked.
pub struct Guard<'a> {
    /// The engine that runs it, as its policy.
    pub engine: &'a Engine,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its chat template.
    pub chat: &'a ChatTemplate,
    /// The ids that end its verdict.
    pub stop_ids: &'a [u32],
    /// Longest question and answer together, in tokens.
    pub context: usize,
    /// Whether prompts that are too long are passed over; else they are errors.
    pub skip_too_long: bool,
}

impl Guard<'_> {
    /// Asks for a verdict. If the conversation is too long, the end of the answer is left out.
    ///
    /// # Errors
    /// The template fails, the prompt alone is too long, or the engine fails.
    pub fn ask(&self, row: &Row) -> Result<Verdict> {
        let said = |role: &str, content: &str| Message { role: role.to_string(), content: content.to_string() };
        let question = |answer: &str| -> Result<Vec<u32>> {
            let text = self.chat.render(&[said("user", &row.prompt), said("assistant", answer)], true)?;
            self.tokenizer.encode(&text)
        };
        let verdict = |safe, categories, text| Verdict {
            index: row.index,
            prompt: row.prompt.clone(),
            safe,
            categories,
            text,
            answer_hash: Some(hash_of(&row.response)),
            device: None,
            kernels: None,
            skipped: None,
        };
        let room = self.context.saturating_sub(MOST_TOKENS);
        let mut answer = row.response.as_str();
        let mut ids = question(answer)?;
        while ids.len() > room {
            if answer.is_empty() {
                let why = format!("{} tokens do not fit the guard's context of {}", ids.len(), self.context);
                return match self.skip_too_long {
                    true => Ok(Verdict { skipped: Some(why), ..verdict(None, Vec::new(), String::new()) }),
                    false => Err(Error::invalid(format!("prompt {}: {why}", row.index))),
                };
            }
            let mut end = answer.len() / 2;
            while !answer.is_char_boundary(end) {
                end -= 1;
            }
            answer = &answer[..end];
            ids = question(answer)?;
        }
        let spec = CompletionSpec {
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            n: 1,
            max_new_tokens: MOST_TOKENS.min(self.context.saturating_sub(ids.len()).max(1)),
            stop_ids: self.stop_ids.to_vec(),
            ..CompletionSpec::default()
        };
        let (completions, _) = self.engine.sample(&ids, spec)?.wait()?;
        let found = completions.all.first().map(|one| one.ids.as_slice()).unwrap_or_default();
        let found: Vec<u32> = found.iter().copied().filter(|id| !self.stop_ids.contains(id)).collect();
        let text = self.tokenizer.decode(&found)?;
        let (safe, categories) = read_verdict(&text);
        Ok(verdict(safe, categories, text))
    }
}

/// Reads a verdict: whether the answer is safe, and the categories if not.
pub fn read_verdict(text: &str) -> (Option<bool>, Vec<String>) {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match lines.next().map(str::to_ascii_lowercase).as_deref() {
        Some("safe") => (Some(true), Vec::new()),
        Some(first) if first == "unsafe" || first.starts_with("unsafe ") || first.starts_with("unsafe,") => {
            let rest = first.strip_prefix("unsafe").unwrap_or_default().to_uppercase();
            let rest = [rest.as_str(), lines.next().unwrap_or_default()].join(",");
            let names = rest.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty());
            (Some(false), names.map(str::to_string).collect())
        }
        _ => (None, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::read_verdict;

    #[test]
    fn words_of_a_guard() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(read_verdict("\n\nsafe"), (Some(true), Vec::new()));
        assert_eq!(read_verdict("unsafe\nS1,S9"), (Some(false), names(&["S1", "S9"])));
        assert_eq!(read_verdict("\n\nunsafe\nS10\n"), (Some(false), names(&["S10"])));
        assert_eq!(read_verdict("unsafe"), (Some(false), Vec::new()));
        assert_eq!(read_verdict("Once upon a time"), (None, Vec::new()));
        assert_eq!(read_verdict(""), (None, Vec::new()));
    }
}
