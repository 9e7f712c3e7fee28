//! A text that is tokenised again between segments, and where the answer begins in it.
//!
//! Ids do not tell: the prompt's last token may become one with the answer's first, and a clean-up of spaces may shorten the
//! prompt. So the border is a place in the text, which goes with the text from segment to segment.

use super::Prompt;
use crate::Result;
use crate::answer::{Respell, RespelledAnswer};
use crate::files::tokenizer::Tokenizer;
use std::sync::Arc;

/// Prompt and answer as text.
pub struct RespelledText {
    tokenizer: Arc<Tokenizer>,
    /// The id that ends the answer.
    finish_id: u32,
    /// The assistant header, if the policy is to write it, and its beginnings, longest first.
    headers: Vec<String>,
    /// The given beginning of the answer, if the prompt's text does not end with it.
    apart: String,
    /// Where the answer begins, the given beginning included, and where the prompt ends, in bytes.
    places: [usize; 2],
}

impl RespelledText {
    /// The text of a prompt, whose answer ends at `finish_id`.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn new(tokenizer: &Arc<Tokenizer>, prompt: &Prompt, finish_id: u32) -> Result<RespelledText> {
        let text = tokenizer.decode(&prompt.ids)?;
        let begun = text.strip_suffix(&prompt.prefill);
        let headers = (1..=prompt.header.len()).rev().map(|len| tokenizer.decode(&prompt.header[..len]));
        Ok(RespelledText {
            tokenizer: tokenizer.clone(),
            finish_id,
            headers: headers.collect::<Result<_>>()?,
            apart: if begun.is_some() { String::new() } else { prompt.prefill.clone() },
            places: [begun.unwrap_or(&text).len(), text.len()],
        })
    }

    /// How many of the ids spell no more than the text's beginning up to `place`.
    fn ids_before(&self, ids: &[u32], text: &str, place: usize) -> Result<usize> {
        let (mut least, mut most) = (0, ids.len());
        while least < most {
            let middle = (least + most).div_ceil(2);
            match self.tokenizer.decode(&ids[..middle])?.len() <= place {
                true => least = middle,
                false => most = middle - 1,
            }
        }
        // Cut inside a character, ids may have a longer text than with the rest of the character.
        for len in (least + 1..=ids.len()).take(4) {
            if self.tokenizer.decode(&ids[..len])? == text[..place] {
                least = len;
            }
        }
        Ok(least)
    }
}

impl Respell for RespelledText {
    fn respell(&mut self, ids: &[u32], reader: bool) -> Result<Vec<u32>> {
        let (text, ids) = self.tokenizer.respell(ids, reader, &mut self.places)?;
        // A tokenizer that reads a text otherwise than it writes it, such as one that puts a blank in front of words, moves the
        // places too.
        if self.tokenizer.decode(&ids)? != text {
            for place in &mut self.places {
                *place =
                    self.tokenizer.decode(&self.tokenizer.encode(&text[..text.floor_char_boundary(*place)])?)?.len();
            }
        }
        Ok(ids)
    }

    fn answer(&mut self, ids: &[u32]) -> Result<RespelledAnswer> {
        let text = self.tokenizer.decode(ids)?;
        let [begin, behind] = self.places.map(|place| text.floor_char_boundary(place));
        let prompt_len = self.ids_before(ids, &text, behind)?;
        let end = match ids[prompt_len..].iter().position(|&id| id == self.finish_id) {
            Some(at) => text.floor_char_boundary(self.tokenizer.decode(&ids[..prompt_len + at])?.len()),
            None => text.len(),
        };
        let mut answer = &text[begin..end.max(begin)];
        if let Some(rest) = self.headers.iter().find_map(|header| answer.strip_prefix(header.as_str())) {
            answer = rest;
        }
        Ok(RespelledAnswer { prompt_len, text: format!("{}{answer}", self.apart) })
    }
}
