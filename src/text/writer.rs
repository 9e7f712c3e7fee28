//! One answer's text as its tokens come: what may be shown, and where it ends.
//!
//! The same code runs on the engine's thread, where it ends a completion at its stop string ([`TextRules::watch`]), and where
//! the answer is written, in pieces or as a whole. So a streamed text is the unstreamed one, and nothing is decoded that
//! nobody reads.

use crate::Result;
use crate::files::tokenizer::{TextStream, Tokenizer};
use crate::sampling::{StopCheck, StopStrings};
use std::sync::Arc;

/// What becomes text, and what ends it.
#[derive(Clone, Debug, Default)]
pub struct TextRules {
    /// Strings that end the text.
    pub stops: StopStrings,
    /// Ids that end the text and are no part of it.
    pub stop_ids: Vec<u32>,
    /// Those of them that are the model's own ends.
    pub finish_ids: Vec<u32>,
    /// Whether the string that ended the text is part of it.
    pub include_stop: bool,
    /// Whether ids that stand for something other than text are left out.
    pub skip_special: bool,
}

impl TextRules {
    /// The text ends at this id and at nothing else.
    pub fn ending_at(finish_id: u32) -> Arc<TextRules> {
        let ids = vec![finish_id];
        Arc::new(TextRules { stop_ids: ids.clone(), finish_ids: ids, ..TextRules::default() })
    }

    /// Says of a completion's ids, one after the other, whether it ends with them.
    pub fn watch(self: &Arc<TextRules>, tokenizer: &Arc<Tokenizer>) -> StopCheck {
        let mut writer = TextWriter::new(tokenizer.clone(), self.clone(), &[], &[]);
        // A text that cannot be decoded ends where it is written, with the error.
        Box::new(move |id| writer.push(id).is_err() || writer.end().is_some())
    }
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At the model's own end.
    Turn,
    /// At another id that ends it.
    StopId(u32),
    /// At this string.
    StopString(String),
    /// At its budget.
    Length,
}

impl End {
    /// OpenAI's word for it: `stop` or `length`.
    pub fn reason(&self) -> &'static str {
        if *self == End::Length { "length" } else { "stop" }
    }
}

/// What a token added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Text that no later token can change.
    pub text: String,
    /// Whether the token belongs to the answer: it is no part of the assistant header, and the text had not ended.
    pub of_answer: bool,
    /// Whether the token's own bytes are in the text, now or once a character is complete.
    pub written: bool,
}

/// An answer while it is written.
pub struct TextWriter {
    rules: Arc<TextRules>,
    tokenizer: Arc<Tokenizer>,
    /// `None` once the text has ended.
    stream: Option<TextStream<Arc<Tokenizer>>>,
    /// What is left of the header, last id first.
    header: Vec<u32>,
    text: String,
    shown: usize,
    ids: Vec<u32>,
    end: Option<End>,
}

impl TextWriter {
    /// An answer behind `prompt`. If it begins with `header`, that is not shown.
    pub fn new(tokenizer: Arc<Tokenizer>, rules: Arc<TextRules>, prompt: &[u32], header: &[u32]) -> TextWriter {
        TextWriter {
            stream: Some(TextStream::new(tokenizer.clone(), prompt)),
            tokenizer,
            rules,
            header: header.iter().rev().copied().collect(),
            text: String::new(),
            shown: 0,
            ids: Vec::new(),
            end: None,
        }
    }

    /// Adds a token. After the end nothing is added.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn push(&mut self, id: u32) -> Result<Added> {
        if self.end.is_some() {
            return Ok(Added::default());
        }
        self.ids.push(id);
        let of_header = self.header.pop_if(|next| *next == id).is_some();
        if !of_header {
            self.header.clear();
        }
        if self.rules.stop_ids.contains(&id) {
            let end = if self.rules.finish_ids.contains(&id) { End::Turn } else { End::StopId(id) };
            return Ok(Added { text: self.finish(end)?, of_answer: !of_header, written: false });
        }
        let silent = of_header || self.rules.skip_special && self.tokenizer.is_special(id);
        let added = match self.stream.as_mut().filter(|_| !silent) {
            Some(stream) => stream.push(id)?,
            None => String::new(),
        };
        Ok(Added { text: self.add(&added), of_answer: !of_header, written: !silent })
    }

    /// Adds text and returns what may be shown of it.
    fn add(&mut self, added: &str) -> String {
        let from = self.text.len();
        self.text += added;
        if let Some((begin, which)) = self.rules.stops.find(&self.text, from) {
            let string = self.rules.stops.string(which);
            self.text.truncate(if self.rules.include_stop { begin + string.len() } else { begin });
            self.end = Some(End::StopString(string.to_string()));
            self.stream = None;
        }
        let held = if self.end.is_some() { 0 } else { self.rules.stops.holdback(&self.text) };
        let until = (self.text.len() - held).max(self.shown);
        let visible = self.text[self.shown..until].to_string();
        self.shown = until;
        visible
    }

    /// Ends the text, unless it has ended, and returns what was held back.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn finish(&mut self, end: End) -> Result<String> {
        let Some(stream) = self.stream.take() else { return Ok(String::new()) };
        let rest = stream.finish()?;
        let mut text = self.add(&rest);
        if self.end.is_none() {
            self.end = Some(end);
            text += &self.text[self.shown..];
            self.shown = self.text.len();
        }
        Ok(text)
    }

    /// All of the text so far that may be shown.
    pub fn text(&self) -> &str {
        &self.text[..self.shown]
    }

    /// The ids so far, the one that ended the text and those of the header included.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Why the text ended, once it has.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }
}

/// The text of an answer's ids; see [`TextWriter::new`].
///
/// # Errors
/// The tokenizer's own.
pub fn text_of(
    tokenizer: &Arc<Tokenizer>,
    rules: &Arc<TextRules>,
    prompt: &[u32],
    header: &[u32],
    ids: &[u32],
) -> Result<String> {
    let mut writer = TextWriter::new(tokenizer.clone(), rules.clone(), prompt, header);
    for &id in ids {
        writer.push(id)?;
    }
    writer.finish(End::Length)?;
    writer.text.truncate(writer.shown);
    Ok(writer.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::demo;

    fn tokenizer() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::load(&demo::policy()).unwrap())
    }

    #[test]
    fn a_stop_string_across_tokens_ends_the_text_with_the_token_that_completes_it() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("One day a fox. One night a crow.").unwrap();
        let rules = TextRules { stops: StopStrings::new(&[". One".to_string()]).unwrap(), ..TextRules::default() };
        let rules = Arc::new(rules);
        let mut watch = rules.watch(&tokenizer);
        let at = ids.iter().position(|&id| watch(id)).unwrap();
        assert_eq!(tokenizer.decode(&ids[..=at]).unwrap(), "One day a fox. One");
        assert_eq!(text_of(&tokenizer, &rules, &[], &[], &ids).unwrap(), "One day a fox");
        let rules = Arc::new(TextRules { include_stop: true, ..(*rules).clone() });
        assert_eq!(text_of(&tokenizer, &rules, &[], &[], &ids).unwrap(), "One day a fox. One");
    }

    #[test]
    fn header_and_end_are_no_text() {
        let tokenizer = tokenizer();
        let (header, answer) = (tokenizer.encode("fox crow ").unwrap(), tokenizer.encode("Once upon a time").unwrap());
        let end = (0..u32::try_from(tokenizer.len()).unwrap()).find(|&id| tokenizer.is_special(id)).unwrap();
        let ids = [&header[..], &answer, &[end], &answer].concat();
        let rules = TextRules::ending_at(end);
        assert_eq!(text_of(&tokenizer, &rules, &[], &header, &ids).unwrap(), "Once upon a time");
        let mut writer = TextWriter::new(tokenizer.clone(), rules, &[], &header);
        let shown = ids.iter().filter(|&&id| writer.push(id).unwrap().of_answer).count();
        assert_eq!((shown, writer.end()), (answer.len() + 1, Some(&End::Turn)));
        // Only an answer that begins with it has a header.
        let other = text_of(&tokenizer, &TextRules::ending_at(end), &[], &answer, &header).unwrap();
        assert_eq!(other, tokenizer.decode(&header).unwrap());
    }
}
