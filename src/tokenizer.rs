//! `tokenizer.json`: text to ids and back.

use crate::Result;
use crate::checkpoint::Files;

/// A model's tokenizer. Truncation and padding of the file are cleared; no special tokens are added.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// The file is missing or is not a tokenizer.
    pub fn load(_files: &Files) -> Result<Self> {
        Ok(Tokenizer {})
    }

    /// Ids of a text; special-token spellings in it become their ids, and nothing is added.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn encode(&self, _text: &str) -> Result<Vec<u32>> {
        unimplemented!()
    }

    /// Text of ids, special tokens included.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn decode(&self, _ids: &[u32]) -> Result<String> {
        unimplemented!()
    }

    /// Id of one token's exact spelling (as in the vocabulary or the added tokens).
    pub fn id(&self, _token: &str) -> Option<u32> {
        None
    }

    /// Spelling of an id.
    pub fn token(&self, _id: u32) -> Option<String> {
        None
    }

    /// One more than the largest id that has a spelling.
    pub fn len(&self) -> usize {
        0
    }

    /// The first id below both sizes that the two tokenizers spell differently, if any: `(id, ours, theirs)`.
    pub fn first_difference(
        &self,
        _other: &Tokenizer,
    ) -> Option<(u32, Option<String>, Option<String>)> {
        None
    }
}

/// Turns a growing list of ids into text pieces: a piece is given out once no later id can change it.
#[derive(Debug)]
pub struct TextStream<'a> {
    _tokenizer: &'a Tokenizer,
}

impl<'a> TextStream<'a> {
    /// Starts after `context` (the prompt), whose text is not given out.
    pub fn new(tokenizer: &'a Tokenizer, _context: &[u32]) -> Self {
        TextStream {
            _tokenizer: tokenizer,
        }
    }

    /// The text that `id` adds, empty while a character is incomplete.
    pub fn push(&mut self, _id: u32) -> Result<String> {
        unimplemented!()
    }

    /// What is still held back (an incomplete character, as U+FFFD).
    pub fn finish(self) -> Result<String> {
        unimplemented!()
    }
}
