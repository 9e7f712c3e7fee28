//! One answer's text as its tokens come: what may be shown, and where it ends.
//!
//! The same code runs on the engine's thread, where it ends a completion at its stop string ([`TextRules::watch`]), and where
//! the answer is written, in pieces or as a whole. So a streamed text is the unstreamed one, and nothing is decoded that
//! nobody reads.

use crate::Result;
use crate::files::tokenizer::{TextStream, Tokenizer};
use crate::sampling::{CheckStop, NewStopCheck, StopCheck, StopStrings};
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

    /// Checks that say of a completion's ids, one after the other, whether it ends with them: with the id with which a
    /// [`TextWriter`] behind the same prompt and with the same header ends.
    pub fn watch(self: &Arc<TextRules>, tokenizer: &Arc<Tokenizer>, prompt: &[u32], header: &[u32]) -> NewStopCheck {
        let reader = Reader::new(tokenizer.clone(), self.clone(), prompt, header);
        let begin = EndFinder { reader, tail: String::new() };
        Arc::new(move || begin.fork())
    }
}

/// Reads an answer's ids: which text they add, and whether they end it.
#[derive(Clone)]
struct Reader {
    rules: Arc<TextRules>,
    tokenizer: Arc<Tokenizer>,
    stream: TextStream<Arc<Tokenizer>>,
    /// What is left of the header, last id first.
    header: Vec<u32>,
}

/// What an id is to an answer.
struct ReadToken {
    /// Whether it is part of the assistant header.
    of_header: bool,
    /// The text that it adds, `None` if it ends the text. Empty for an id that is not to be seen.
    text: Option<String>,
    /// Whether it is an id that is not to be seen.
    silent: bool,
}

impl Reader {
    fn new(tokenizer: Arc<Tokenizer>, rules: Arc<TextRules>, prompt: &[u32], header: &[u32]) -> Reader {
        let stream = TextStream::new(tokenizer.clone(), prompt);
        Reader { rules, tokenizer, stream, header: header.iter().rev().copied().collect() }
    }

    fn read(&mut self, id: u32) -> Result<ReadToken> {
        let of_header = self.header.pop_if(|next| *next == id).is_some();
        if !of_header {
            self.header.clear();
        }
        if self.rules.stop_ids.contains(&id) {
            return Ok(ReadToken { of_header, text: None, silent: true });
        }
        let silent = of_header || self.rules.skip_special && self.tokenizer.is_special(id);
        let text = if silent { String::new() } else { self.stream.push(id)? };
        Ok(ReadToken { of_header, text: Some(text), silent })
    }
}

/// Finds the id that ends an answer. It keeps no more of the text than a stop string can begin in, and does not ask
/// what of it may be shown.
#[derive(Clone)]
struct EndFinder {
    reader: Reader,
    tail: String,
}

impl CheckStop for EndFinder {
    fn ends_with(&mut self, id: u32) -> bool {
        match self.reader.read(id) {
            Ok(ReadToken { text: Some(text), .. }) => self.ends_in(&text),
            // A text that cannot be decoded ends where it is written, with the error.
            Ok(ReadToken { text: None, .. }) | Err(_) => true,
        }
    }

    fn fork(&self) -> StopCheck {
        Box::new(self.clone())
    }
}

impl EndFinder {
    /// Whether a stop string ends in more text.
    fn ends_in(&mut self, text: &str) -> bool {
        let stops = &self.reader.rules.stops;
        let from = self.tail.len();
        self.tail += text;
        let found = stops.find(&self.tail, from).is_some();
        // One that ends later lacks a byte at least.
        let begin = self.tail.len().saturating_sub(stops.longest().saturating_sub(1));
        self.tail.drain(..self.tail.ceil_char_boundary(begin));
        found
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
pub struct AddedText {
    /// Text that no later token can change.
    pub text: String,
    /// Whether the token belongs to the answer: it is no part of the assistant header, and the text had not ended.
    pub of_answer: bool,
    /// Whether the token's own bytes are in the text, now or once a character is complete.
    pub written: bool,
}

/// An answer while it is written.
pub struct TextWriter {
    reader: Reader,
    text: String,
    shown: usize,
    ids: Vec<u32>,
    end: Option<End>,
}

impl TextWriter {
    /// An answer behind `prompt`. If it begins with `header`, that is not shown.
    pub fn new(tokenizer: Arc<Tokenizer>, rules: Arc<TextRules>, prompt: &[u32], header: &[u32]) -> TextWriter {
        TextWriter {
            reader: Reader::new(tokenizer, rules, prompt, header),
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
    pub fn push(&mut self, id: u32) -> Result<AddedText> {
        if self.end.is_some() {
            return Ok(AddedText::default());
        }
        self.ids.push(id);
        let ReadToken { of_header, text, silent } = self.reader.read(id)?;
        let text = match text {
            Some(text) => self.add(&text),
            None if self.reader.rules.finish_ids.contains(&id) => self.finish(End::Turn)?,
            None => self.finish(End::StopId(id))?,
        };
        Ok(AddedText { text, of_answer: !of_header, written: !silent })
    }

    /// Adds text and returns what may be shown of it.
    fn add(&mut self, added: &str) -> String {
        let rules = &self.reader.rules;
        let from = self.text.len();
        self.text += added;
        if let Some((begin, which)) = rules.stops.find(&self.text, from) {
            let string = rules.stops.string(which);
            self.text.truncate(if rules.include_stop { begin + string.len() } else { begin });
            self.end = Some(End::StopString(string.to_string()));
        }
        let held = if self.end.is_some() { 0 } else { rules.stops.holdback(&self.text) };
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
        if self.end.is_some() {
            return Ok(String::new());
        }
        let rest = self.reader.stream.clone().finish()?;
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
        let mut watch = rules.watch(&tokenizer, &[], &[])();
        let at = ids.iter().position(|&id| watch.ends_with(id)).unwrap();
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

    /// On the engine's thread an answer ends with the id with which it ends where it is written.
    #[test]
    fn a_check_ends_where_the_writer_does() {
        let tokenizer = tokenizer();
        let header = tokenizer.encode("<|start_header_id|>assistant<|end_header_id|>\n\n").unwrap();
        let texts =
            ["One day a fox. One night a crow.", "a assistant é 🦀 é\n\nOne", "<|start_header_id|> One<|eot_id|>x"];
        let stops = [&["assistant"][..], &["\n\n", ". One"], &["🦀 é", "é"], &["<|start"], &["a"], &[]];
        let mut ends = [0, 0, 0];
        for (text, stops) in texts.iter().flat_map(|text| stops.iter().map(move |stops| (text, stops))) {
            for (begin, skip_special, stop_ids) in
                [(4, true, &[4][..]), (4, false, &[]), (0, true, &[4]), (2, false, &[4]), (2, true, &[])]
            {
                let strings: Vec<String> = stops.iter().map(|string| string.to_string()).collect();
                let stops = StopStrings::new(&strings).unwrap();
                let rules = TextRules { stops, skip_special, stop_ids: stop_ids.to_vec(), ..TextRules::default() };
                let (rules, prompt) = (Arc::new(rules), tokenizer.encode("Tell me. ").unwrap());
                let ids = [&header[..begin.min(header.len())], &tokenizer.encode(text).unwrap()].concat();
                let mut writer = TextWriter::new(tokenizer.clone(), rules.clone(), &prompt, &header);
                let mut check = rules.watch(&tokenizer, &prompt, &header)();
                for &id in &ids {
                    writer.push(id).unwrap();
                    let mut fork = check.fork();
                    assert_eq!(check.ends_with(id), writer.end().is_some(), "{text:?} until {strings:?} at {id}");
                    assert_eq!(fork.ends_with(id), writer.end().is_some(), "a fork of {text:?} at {id}");
                    if writer.end().is_some() {
                        break;
                    }
                }
                ends[match writer.end() {
                    Some(End::StopString(_)) => 0,
                    Some(_) => 1,
                    None => 2,
                }] += 1;
            }
        }
        assert!(ends.iter().all(|&count| count > 9), "{ends:?}");
    }
}
