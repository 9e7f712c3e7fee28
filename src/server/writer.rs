//! One answer's text as its tokens come: what may be shown, and where it ends.
//!
//! The same code runs on the engine's thread, where it ends a completion at its stop string ([`Rules::watch`]), and where the
//! answer is written, in pieces or as a whole. So a streamed text is the unstreamed one, and nothing is decoded that nobody reads.

use crate::Result;
use crate::files::tokenizer::{TextStream, Tokenizer};
use crate::sampling::{StopStrings, Watch};
use serde_json::{Value, json};
use std::sync::Arc;

/// What becomes text, and what ends it.
#[derive(Debug, Default)]
pub struct Rules {
    /// Strings that end the text.
    pub stops: StopStrings,
    /// Ids that do.
    pub stop_ids: Vec<u32>,
    /// Those of them that are the model's own ends.
    pub finish_ids: Vec<u32>,
    /// Whether the string that ended it is part of it.
    pub include_stop: bool,
    /// Whether ids that stand for something other than text are left out.
    pub skip_special: bool,
}

impl Rules {
    /// Says of a completion's ids whether it ends with them.
    pub fn watch(self: &Arc<Rules>, tokenizer: &Arc<Tokenizer>) -> Watch {
        let mut writer = Writer::new(tokenizer.clone(), self.clone(), &[], Vec::new());
        // A text that cannot be decoded ends where it is written, with the error.
        Box::new(move |id| writer.push(Token::bare(id)).is_err() || writer.end.is_some())
    }
}

/// A token, with what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The id.
    pub id: u32,
    /// Nats.
    pub logprob: Option<f64>,
    /// Of the distribution it came from, in nats.
    pub entropy: Option<f64>,
    /// The most likely tokens there.
    pub top: Vec<(u32, f64)>,
}

impl Token {
    /// Of which nothing else is known.
    pub fn bare(id: u32) -> Token {
        Token { id, logprob: None, entropy: None, top: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// At a stop id or a stop string, which is named unless it is the model's own end.
    Stop(Value),
    /// At its budget.
    Length,
}

impl End {
    /// OpenAI's word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            End::Stop(_) => "stop",
            End::Length => "length",
        }
    }

    /// What ended it, if that was asked for.
    pub fn cause(&self) -> Value {
        match self {
            End::Stop(cause) => cause.clone(),
            End::Length => Value::Null,
        }
    }
}

/// What tokens add to an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text that no later token can change.
    pub text: String,
    /// Tokens that it came with.
    pub tokens: Vec<Token>,
}

impl Piece {
    /// Adds what came after it.
    pub fn extend(&mut self, more: Piece) {
        self.text += &more.text;
        self.tokens.extend(more.tokens);
    }
}

/// An answer while it is written.
pub struct Writer {
    rules: Arc<Rules>,
    /// Gone once the text has ended.
    stream: Option<TextStream<Arc<Tokenizer>>>,
    tokenizer: Arc<Tokenizer>,
    /// What is left of the header that is not shown.
    header: std::iter::Peekable<std::vec::IntoIter<u32>>,
    text: String,
    shown: usize,
    /// Ids so far.
    pub ids: Vec<u32>,
    /// Why it ended, once it has.
    pub end: Option<End>,
}

impl Writer {
    /// An answer behind `prompt`, which begins with `header`.
    pub fn new(tokenizer: Arc<Tokenizer>, rules: Arc<Rules>, prompt: &[u32], header: Vec<u32>) -> Writer {
        Writer {
            stream: Some(TextStream::new(tokenizer.clone(), prompt)),
            tokenizer,
            rules,
            header: header.into_iter().peekable(),
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
    pub fn push(&mut self, token: Token) -> Result<Piece> {
        if self.end.is_some() {
            return Ok(Piece::default());
        }
        let id = token.id;
        self.ids.push(id);
        let of_header = self.header.peek() == Some(&id) && self.text.is_empty();
        if of_header {
            self.header.next();
        } else {
            self.header = Vec::new().into_iter().peekable();
        }
        let tokens = if of_header { Vec::new() } else { vec![token] };
        if self.rules.stop_ids.contains(&id) {
            let cause = if self.rules.finish_ids.contains(&id) { Value::Null } else { json!(id) };
            let mut piece = self.finish(End::Stop(cause))?;
            piece.tokens = tokens;
            return Ok(piece);
        }
        let silent = self.rules.skip_special && self.tokenizer.is_special(id);
        let added = match self.stream.as_mut().filter(|_| !of_header && !silent) {
            Some(stream) => stream.push(id)?,
            None => String::new(),
        };
        let text = self.add(&added);
        Ok(Piece { text, tokens })
    }

    /// Adds text and returns what may be shown of it.
    fn add(&mut self, added: &str) -> String {
        let from = self.text.len();
        self.text += added;
        if let Some((begin, which)) = self.rules.stops.find(&self.text, from) {
            let string = self.rules.stops.string(which);
            self.text.truncate(if self.rules.include_stop { begin + string.len() } else { begin });
            self.end = Some(End::Stop(json!(string)));
            self.stream = None;
        }
        let held = if self.end.is_some() { 0 } else { self.rules.stops.holdback(&self.text) };
        let until = (self.text.len() - held).max(self.shown);
        let visible = self.text[self.shown..until].to_string();
        self.shown = until;
        visible
    }

    /// Ends the answer, unless it has ended, and returns what was held back.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn finish(&mut self, end: End) -> Result<Piece> {
        let Some(stream) = self.stream.take() else { return Ok(Piece::default()) };
        let rest = stream.finish()?;
        let mut text = self.add(&rest);
        if self.end.is_none() {
            self.end = Some(end);
            text += &self.text[self.shown..];
            self.shown = self.text.len();
        }
        Ok(Piece { text, tokens: Vec::new() })
    }

    /// All of the text so far that may be shown.
    pub fn text(&self) -> &str {
        &self.text[..self.shown]
    }
}
