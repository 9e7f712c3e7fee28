//! What an answer goes on by: text, with the tokens that it came with.

use crate::Result;
use crate::answer::TokenLogprob;
use crate::text::TextWriter;

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

impl From<TokenLogprob> for Token {
    fn from(chosen: TokenLogprob) -> Token {
        Token { id: chosen.id, logprob: Some(chosen.logprob), entropy: Some(chosen.entropy), top: chosen.top }
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
    /// Writes a token.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn written(writer: &mut TextWriter, token: Token) -> Result<Piece> {
        let added = writer.push(token.id)?;
        Ok(Piece { text: added.text, tokens: if added.of_answer { vec![token] } else { Vec::new() } })
    }

    /// Adds what came after it.
    pub fn extend(&mut self, more: Piece) {
        self.text += &more.text;
        self.tokens.extend(more.tokens);
    }
}
