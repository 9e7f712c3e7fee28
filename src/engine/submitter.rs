//! Who hands a request in, where several use one engine.

use super::settings::Drafting;

/// For whom a request is: with which others it takes turns, and with which it shares prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Submitter {
    /// Requests with the same number are parts of one, and take turns with others as one. `None`: it stands by itself.
    pub group: Option<u64>,
    /// Keys and values of a prompt are shared with requests of the same salt only.
    pub cache_salt: u64,
    /// Outside the group only whole blocks are shared. Otherwise somebody who may try prompts, and is told how much of them was
    /// known, would find a stranger's prompt token by token.
    pub whole_blocks: bool,
    /// Whether tokens are guessed for it; `None`: as the engine's settings say. No answer depends on it.
    pub drafting: Option<Drafting>,
}
