//! A policy and its reward model, read together: files, shapes, tokenizer, stop ids, and whether the two fit.

use crate::Result;
use crate::chat::ChatTemplate;
use crate::checkpoint::{Checkpoint, Files};
use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;

/// Everything of a pair but the arithmetic.
#[derive(Debug)]
pub struct Pair {
    /// Shape of the policy.
    pub policy: ModelConfig,
    /// Weights of the policy.
    pub policy_weights: Checkpoint,
    /// Shape of the reward model.
    pub reward: ModelConfig,
    /// Weights of the reward model.
    pub reward_weights: Checkpoint,
    /// The tokenizer (the policy's; the reward model's agrees on every id they share).
    pub tokenizer: Tokenizer,
    /// The policy's chat template.
    pub chat: Option<ChatTemplate>,
    /// The end-of-turn id: `eos_token` of the policy's `tokenizer_config.json`.
    pub finish_id: u32,
    /// `eos_token_id` of the policy's `generation_config.json` (else of its `config.json`), with `finish_id`.
    pub stop_ids: Vec<u32>,
    /// `pad_token_id` of the reward model's `config.json`.
    pub reward_pad_id: Option<u32>,
}

impl Pair {
    /// Reads both directories.
    ///
    /// # Errors
    /// A file is missing or malformed; the policy is not a causal language model or the reward model not a one-label
    /// sequence classifier; the tokenizers disagree on an id.
    pub fn load(_policy: &Files, _reward: &Files) -> Result<Self> {
        unimplemented!()
    }
}
