//! `tokenizer.json`: text to ids and back.
//!
//! The vocabulary, merges and rules are the `tokenizers` crate's. What is added here is what an engine needs besides:
//! the tokens that stand in other files, a comparison of two vocabularies, and text for a growing list of ids.

use crate::error::Limit;
use crate::files::checkpoint::Files;
use crate::files::{added, json, recognise};
use crate::{Error, Result};
use tokenizers::{DecoderWrapper, Encoding, Token};

const NAME: &str = "tokenizer.json";

/// Largest id, beyond that of any published vocabulary; a table of this size is allocated.
const MAX_ID: u32 = (1 << 22) - 1;

/// A model's tokenizer. Truncation and padding of the file are cleared.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// By id; the last one is not `None`.
    spellings: Vec<Option<String>>,
    /// The decoder reads spellings as bytes, each written as one character ([`byte_of`]).
    spells_bytes: bool,
    /// An id whose text is a letter, behind which other ids are decoded as they are within a text.
    letter: Option<u32>,
    /// The decoder joins runs of `<0x..>` tokens to characters, and gives up a run as a whole if it is not UTF-8.
    joins_bytes: bool,
    /// Ids of added tokens, which are spelled as they are written.
    added: std::collections::BTreeSet<u32>,
    /// Ids that stand for something other than text.
    special: std::collections::BTreeSet<u32>,
    /// What the post-processor puts in front of a text, such as the beginning of sequence, and behind it.
    around: [Vec<u32>; 2],
    /// `clean_up_tokenization_spaces` of this tokenizer, and of the one that reads its texts.
    cleans_up: [bool; 2],
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the tokens that `tokenizer_config.json` adds to it.
    ///
    /// # Errors
    /// The file is missing or is not a tokenizer, or what is added to it are no tokens.
    pub fn load(files: &Files) -> Result<Self> {
        let path = files.path(NAME);
        let Some(content) = files.read(NAME)? else {
            let instead = if let Files::Dir(dir) = files { recognise::tokenizer(dir) } else { String::new() };
            let message = format!("no such file; ggro reads tokenizers in this format only{instead}");
            return Err(Error::file(path, message));
        };
        let fail = |e: &dyn std::fmt::Display| Error::file(&path, format!("expected a tokenizer: {e}"));
        // The crate panics on some files that are not JSON, and may on others that are: neither must end the process.
        let content = json::without_mark(&content);
        serde_json::from_slice::<Sound>(content).map_err(|e| match recognise::content(content) {
            Some(found) => Error::file(&path, format!("expected a tokenizer, found {found}")),
            None => fail(&e),
        })?;
        let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(content));
        let mut inner = parsed.map_err(|_| fail(&"reading it failed"))?.map_err(|e| fail(&e))?;
        add_declared(files, &mut inner)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&path, e.to_string()))?;
        let spellings = spellings(&inner).map_err(|message| Error::file(&path, message))?;
        let joins_bytes = inner.get_decoder().is_some_and(joins_bytes);
        let config = files.read_json("tokenizer_config.json")?.unwrap_or_default();
        let cleans_up = config.get("clean_up_tokenization_spaces").is_some_and(|clean| clean == true);
        let spells_bytes = inner.get_decoder().is_some_and(spells_bytes);
        let letter = inner.token_to_id("a");
        let added = inner.get_added_tokens_decoder();
        let ids = added.keys().copied().collect();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let around = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| around(&inner)));
        let around = around.unwrap_or_else(|_| Err("it names a special token that it does not define".to_string()));
        let around = around.map_err(|message| Error::file(&path, format!("`post_processor`: {message}")))?;
        Ok(Tokenizer {
            inner,
            spellings,
            spells_bytes,
            letter,
            joins_bytes,
            added: ids,
            special,
            around,
            cleans_up: [cleans_up; 2],
        })
    }

    /// [`encode`](Self::encode) for a text of which at most `most` ids can be used. One that is far longer is refused after its
    /// beginning was encoded, because the encoder takes some 170 bytes of memory for each byte of text. The ids may still be
    /// more than `most`.
    ///
    /// # Errors
    /// The text is far too long, or as [`encode`](Self::encode).
    pub fn encode_at_most(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        // Some tokens of an ordinary text are shorter, few of any text longer.
        let mut bytes = most.saturating_mul(8).max(4096);
        while bytes < text.len() {
            let begin = &text[..text.floor_char_boundary(bytes)];
            let found = self.encode(begin)?.len();
            // The last word may have been cut into more ids than it has.
            if found > most.saturating_add(CUT) {
                let message = format!(
                    "its {} bytes are more than {most} tokens, and leave no room in the context of {most}",
                    text.len()
                );
                return Err(Error::TooLong { limit_of: Limit::Context, found, limit: most, message });
            }
            bytes = bytes.saturating_mul(2);
        }
        self.encode(text)
    }

    /// Ids of a text that stands by itself, with what the tokenizer's post-processor puts around one: the beginning of sequence,
    /// mostly. Rendered chat templates write such tokens themselves ([`encode`](Self::encode)).
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.with_special_tokens(self.encode(text)?))
    }

    /// Ids with the special tokens that stand around a text. Ids that begin with them already get no second ones in front.
    pub fn with_special_tokens(&self, ids: Vec<u32>) -> Vec<u32> {
        let [front, behind] = &self.around;
        let front = if ids.starts_with(front) { &[][..] } else { front };
        if front.is_empty() && behind.is_empty() { ids } else { [front, &ids, behind].concat() }
    }

    /// Ids of a text; special-token spellings in it become their ids, and nothing is added.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::invalid(format!("tokenizing failed: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids, special tokens included. Ids without a spelling add nothing.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, false);
        text.map_err(|e| Error::invalid(format!("decoding token ids failed: {e}")))
    }

    /// What an id adds to a text, in bytes: they may be a part of a character. Joined, the bytes of ids are their text.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let Some(spelling) = self.spelling(id) else { return Vec::new() };
        if self.is_joined_byte(id)
            && let Some(byte) = spelling.get(3..5).and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            return vec![byte];
        }
        if self.spells_bytes && !self.added.contains(&id) {
            let bytes: Option<Vec<u8>> = spelling.chars().map(byte_of).collect();
            return bytes.unwrap_or_else(|| spelling.as_bytes().to_vec());
        }
        // Some decoders treat the first id of a text in a way of its own.
        let within = self.letter.and_then(|letter| {
            let (front, whole) = (self.decode(&[letter]).ok()?, self.decode(&[letter, id]).ok()?);
            Some(whole.strip_prefix(&front)?.as_bytes().to_vec())
        });
        within.unwrap_or_else(|| self.decode(&[id]).unwrap_or_default().into_bytes())
    }

    /// Another tokenizer of the same ids reads this one's texts.
    pub(crate) fn read_by(&mut self, reader: &Tokenizer) {
        self.cleans_up[1] = reader.cleans_up[0];
    }

    /// Text of ids, and the ids of that text, as transformers would write and read it: a tokenizer that cleans up spaces takes those in front
    /// of a full stop and of `'s` away. `reader`: as the reward model's tokenizer does, not the policy's.
    ///
    /// `places` are offsets in bytes: on the way in into the text of the ids, on the way out into the text that was encoded.
    /// Those beyond the text, or inside a character, are moved back.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn respell(&self, ids: &[u32], reader: bool, places: &mut [usize]) -> Result<(String, Vec<u32>)> {
        let mut text = self.decode(ids)?;
        for place in places.iter_mut() {
            *place = text.floor_char_boundary(*place);
        }
        if self.cleans_up[usize::from(reader)] {
            for (from, to) in CLEAN_UP {
                text = replaced(&text, from, to, places);
            }
        }
        let ids = self.encode(&text)?;
        Ok((text, ids))
    }

    /// Whether the text of ids, tokenised again, gives the same ids.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn round_trips(&self, ids: &[u32]) -> Result<bool> {
        Ok(self.encode(&self.decode(ids)?)? == ids)
    }

    /// Id of one token's exact spelling (as in the vocabulary or the added tokens).
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Spelling of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.spelling(id).map(str::to_string)
    }

    fn spelling(&self, id: u32) -> Option<&str> {
        self.spellings.get(id as usize)?.as_deref()
    }

    /// Whether an id stands for something other than text: the beginning of a text, the end of a turn.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// One more than the largest id that has a spelling; at least 1.
    #[allow(clippy::len_without_is_empty)] // a tokenizer without tokens is not loaded
    pub fn len(&self) -> usize {
        self.spellings.len()
    }

    /// What the two tokenizers spell differently of the ids below both sizes.
    pub fn differences(&self, other: &Tokenizer) -> Differences {
        let mut out = Differences::default();
        for (id, (ours, theirs)) in self.spellings.iter().zip(&other.spellings).enumerate() {
            if ours == theirs {
                continue;
            }
            let difference = Difference { id: id as u32, ours: ours.clone(), theirs: theirs.clone() };
            let no_text =
                |tokenizer: &Tokenizer, token: &Option<String>| token.is_none() || tokenizer.is_special(difference.id);
            if no_text(self, ours) && no_text(other, theirs) {
                out.special.push(difference);
            } else if out.ordinary.is_none() {
                out.ordinary = Some(difference);
            }
        }
        out
    }

    /// The first id of this tokenizer that another one spells differently, or treats as text where this one does not.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<Difference> {
        let mut ids = self.spellings.iter().enumerate().filter_map(|(id, ours)| Some((id as u32, ours.as_ref()?)));
        ids.find_map(|(id, ours)| {
            let theirs = other.spelling(id);
            let alike = theirs == Some(ours) && self.is_special(id) == other.is_special(id);
            (!alike).then(|| Difference { id, ours: Some(ours.clone()), theirs: theirs.map(str::to_string) })
        })
    }

    /// Whether the text of `id` depends on all byte tokens around it.
    fn is_joined_byte(&self, id: u32) -> bool {
        self.joins_bytes
            && self
                .spelling(id)
                .is_some_and(|token| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'))
    }

    /// The text of `ids` that no further id can change: not a last U+FFFD, which may stand for an incomplete character.
    fn settled(&self, ids: &[u32]) -> Result<String> {
        let mut text = self.decode(ids)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            text.pop();
        }
        Ok(text)
    }
}

/// What a tokenizer that cleans up spaces replaces, in this order.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// A text with `to` for every `from`, which begins with a blank that `to` lacks. `places` in the text go with it: one inside
/// of what is replaced stays behind the same characters.
fn replaced(text: &str, from: &str, to: &str, places: &mut [usize]) -> String {
    let moved = |place: usize| {
        let mut gone = 0;
        for (at, _) in text.match_indices(from).take_while(|(at, _)| *at < place) {
            let inside = place - at;
            gone += if inside < from.len() { inside - (inside - 1).min(to.len()) } else { from.len() - to.len() };
        }
        place - gone
    };
    places.iter_mut().for_each(|place| *place = moved(*place));
    text.replace(from, to)
}

/// More ids than this do not come from cutting a text in the middle of a word.
const CUT: usize = 64;

/// Adds the tokens that stand in other files than the tokenizer's.
fn add_declared(files: &Files, inner: &mut tokenizers::Tokenizer) -> Result<()> {
    let own = inner.get_added_tokens_decoder().into_iter().collect();
    let padding = inner.get_padding().map(|padding| padding.pad_token.clone());
    let declared = added::tokens(files, &own, padding.as_deref())?;
    if declared.is_empty() {
        return Ok(());
    }
    // As for the file itself: whatever is in it, the process goes on.
    let added = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| inner.add_tokens(declared)));
    let why = match added {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "adding them failed".to_string(),
    };
    Err(Error::file(files.path("tokenizer_config.json"), format!("expected tokens that can be added: {why}")))
}

/// An id that two tokenizers spell differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The id.
    pub id: u32,
    /// Its spelling in the one.
    pub ours: Option<String>,
    /// Its spelling in the other.
    pub theirs: Option<String>,
}

/// What two tokenizers spell differently.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first id that stands for text to one of them.
    pub ordinary: Option<Difference>,
    /// Ids that stand for text to neither: special tokens under other names, or to one of them only.
    pub special: Vec<Difference>,
}

/// JSON that is sound to the last string; what it says is not kept. (To ignore a value is to skip its escapes unseen.)
struct Sound;

impl<'de> serde::Deserialize<'de> for Sound {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Sound)
    }
}

impl<'de> serde::de::Visitor<'de> for Sound {
    type Value = Sound;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_unit<E>(self) -> std::result::Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Sound, A::Error> {
        while list.next_element::<Sound>()?.is_some() {}
        Ok(Sound)
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Sound, A::Error> {
        while map.next_entry::<Sound, Sound>()?.is_some() {}
        Ok(Sound)
    }
}

/// The ids that the post-processor puts in front of a text and behind it.
fn around(tokenizer: &tokenizers::Tokenizer) -> std::result::Result<[Vec<u32>; 2], String> {
    // A text of one token, whose id no vocabulary has, shows where the text stands.
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, "text".to_string(), (0, 4))], 0);
    let processed = tokenizer.post_process(text, None, true).map_err(|e| e.to_string())?;
    let ids = processed.get_ids();
    match ids.iter().position(|&id| id == TEXT) {
        Some(at) => Ok([ids[..at].to_vec(), ids[at + 1..].to_vec()]),
        None => Err("expected a template with the text in it, found one without".to_string()),
    }
}

/// The spelling of every id.
fn spellings(tokenizer: &tokenizers::Tokenizer) -> std::result::Result<Vec<Option<String>>, String> {
    let vocabulary = tokenizer.get_vocab(true);
    let largest = vocabulary.values().max().ok_or("expected a vocabulary, found no tokens")?;
    if *largest > MAX_ID {
        return Err(format!("expected ids up to {MAX_ID}, found {largest}"));
    }
    let mut spellings = vec![None; *largest as usize + 1];
    for (token, id) in vocabulary {
        let spelling = &mut spellings[id as usize];
        // Two tokens may share an id; the crate knows which one it decodes to.
        *spelling = if spelling.is_none() { Some(token) } else { tokenizer.id_to_token(id) };
    }
    Ok(spellings)
}

fn spells_bytes(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(spells_bytes),
        _ => false,
    }
}

/// Whether a byte-level vocabulary writes a byte as the character of the same number: GPT-2's table.
fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The character that a byte is written as: its own if it can be seen, else the next one from 256 on.
#[cfg(feature = "lab")]
pub(crate) fn spelled(byte: u8) -> char {
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that is written as a character.
fn byte_of(spelled: char) -> Option<u8> {
    match u32::from(spelled) {
        code @ 0..=255 => u8::try_from(code).ok().filter(|&byte| printable(byte)),
        code => (0..=255).filter(|&byte| !printable(byte)).nth(code as usize - 256),
    }
}

fn joins_bytes(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(joins_bytes),
        _ => false,
    }
}

/// Turns a growing list of ids into text pieces: a piece is given out once no later id can change it.
///
/// Decoding the new id alone would be wrong: characters may be split over tokens, and some decoders treat the first
/// token specially. Decoding everything again would be quadratic. So a short window of the last ids is decoded, and the
/// piece is what its text has gained. The window begins anywhere, even inside a character: the text of its first ids
/// may then differ from the true one, but that text has been given out already.
#[derive(Clone, Debug)]
pub struct TextStream<T> {
    /// Owned or borrowed.
    tokenizer: T,
    window: Vec<u32>,
    /// Bytes of the window's text that were given out before.
    given: usize,
}

/// Ids that a full window is cut down to; it is full at twice as many. Any character has at most 4 tokens.
const WINDOW: usize = 8;

impl<T: std::ops::Deref<Target = Tokenizer>> TextStream<T> {
    /// Starts after `context` (the prompt), whose text is not given out.
    pub fn new(tokenizer: T, context: &[u32]) -> Self {
        // From the end: a run of bytes that may go on, then enough ids before it.
        let (mut window, mut closed) = (Vec::new(), 0);
        for &id in context.iter().rev().filter(|&&id| tokenizer.spelling(id).is_some()) {
            window.push(id);
            closed += usize::from(closed > 0 || !tokenizer.is_joined_byte(id));
            if closed == WINDOW {
                break;
            }
        }
        window.reverse();
        let given = tokenizer.settled(&window[..closed]).map_or(0, |text| text.len());
        TextStream { tokenizer, window, given }
    }

    /// The text that `id` adds, empty while a character is incomplete.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.spelling(id).is_none() {
            return Ok(String::new());
        }
        self.window.push(id);
        if self.tokenizer.is_joined_byte(id) {
            return Ok(String::new());
        }
        let text = self.tokenizer.settled(&self.window)?;
        let piece = self.gained(&text);
        self.given = text.len();
        if self.window.len() >= 2 * WINDOW {
            self.window.drain(..self.window.len() - WINDOW);
            self.given = self.tokenizer.settled(&self.window)?.len();
        }
        Ok(piece)
    }

    /// What is still held back (an incomplete character, as U+FFFD).
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window)?;
        Ok(self.gained(&text))
    }

    /// The end of `text` that was not given out. Empty if the decoder took back text it had written (none of the
    /// supported families' decoders does).
    fn gained(&self, text: &str) -> String {
        text.get(self.given..).unwrap_or_default().to_string()
    }
}
