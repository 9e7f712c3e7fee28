//! A stretch of an answer: text, and the tokens that it came with.

use crate::Result;
use crate::answer::TokenLogprob;
use crate::text::TextWriter;

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The id.
    pub id: u32,
    /// Its log-probability, in nats.
    pub logprob: Option<f64>,
    /// Entropy of the distribution it was chosen from, in nats.
    pub entropy: Option<f64>,
    /// The most likely tokens at its position, with their log-probabilities.
    pub top: Vec<(u32, f64)>,
    /// Whether its bytes are in the text.
    pub written: bool,
}

impl Token {
    /// A token of which only the id is known.
    pub fn bare(id: u32) -> Token {
        Token { id, logprob: None, entropy: None, top: Vec::new(), written: true }
    }
}

impl From<TokenLogprob> for Token {
    fn from(chosen: TokenLogprob) -> Token {
        let (logprob, entropy) = (Some(chosen.logprob), Some(chosen.entropy));
        Token { id: chosen.id, logprob, entropy, top: chosen.top, written: true }
    }
}

/// What some tokens added to an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text that no later token can change.
    pub text: String,
    /// The tokens; those of the assistant header are left out.
    pub tokens: Vec<Token>,
}

impl Piece {
    /// Writes a token.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn written(writer: &mut TextWriter, token: Token) -> Result<Piece> {
        let added = writer.push(token.id)?;
        let token = Token { written: added.written, ..token };
        Ok(Piece { text: added.text, tokens: if added.of_answer { vec![token] } else { Vec::new() } })
    }

    /// Appends the piece that follows this one.
    pub fn extend(&mut self, more: Piece) {
        self.text += &more.text;
        self.tokens.extend(more.tokens);
    }
}
