//! A policy and its reward model, read together: files, shapes, tokenizer, stop ids, and whether the two fit.
//!
//! Both models read the same token ids, so their tokenizers must spell every id that both have alike. Either embedding
//! may have more rows than its tokenizer has tokens (padding), and either vocabulary may go on where the other ends.

use crate::files::chat::{ChatTemplate, special_token};
use crate::files::checkpoint::{Checkpoint, Files};
use crate::files::config::{ModelConfig, Task, token_ids_of};
use crate::files::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::sync::Arc;

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
    pub tokenizer: Arc<Tokenizer>,
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
    pub fn load(policy_files: &Files, reward_files: &Files) -> Result<Self> {
        // Small files first: a pair that does not fit is refused before gigabytes are mapped.
        let policy = load_config(policy_files, Task::CausalLm)?;
        let reward = load_config(reward_files, Task::Reward)?;
        let tokenizer = load_tokenizer(policy_files, &policy)?;
        let theirs = load_tokenizer(reward_files, &reward)?;
        if let Some((id, ours, theirs)) = tokenizer.first_difference(&theirs) {
            let spelled = |token: Option<String>| token.map_or("nothing".into(), |t| format!("{t:?}"));
            return Err(Error::invalid(format!(
                "the tokenizers differ: id {id} is {} to the policy ({}), but {} to the reward model ({}); \
                 both models must read the same ids",
                spelled(ours),
                policy_files.path("tokenizer.json").display(),
                spelled(theirs),
                reward_files.path("tokenizer.json").display(),
            )));
        }

        let listed = listed_stop_ids(policy_files, &policy)?;
        let finish_id = finish_id(policy_files, &policy, &tokenizer, &listed)?;
        let mut stop_ids = listed;
        if !stop_ids.contains(&finish_id) {
            stop_ids.push(finish_id);
        }
        let reward_pad_id = reward.pad_token_id;
        if let Some(pad) = reward_pad_id {
            check_id(reward_files, "config.json", "pad_token_id", pad, &reward)?;
        }
        Ok(Pair {
            policy_weights: Checkpoint::open(policy_files)?,
            reward_weights: Checkpoint::open(reward_files)?,
            chat: ChatTemplate::load(policy_files)?,
            policy,
            reward,
            tokenizer: Arc::new(tokenizer),
            finish_id,
            stop_ids,
            reward_pad_id,
        })
    }
}

/// A language model by itself.
#[derive(Debug)]
pub struct Single {
    /// Its shape.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub chat: Option<ChatTemplate>,
    /// As of a [`Pair`]'s policy.
    pub stop_ids: Vec<u32>,
}

impl Single {
    /// Reads a directory.
    ///
    /// # Errors
    /// A file is missing or malformed, or the model is not a causal language model.
    pub fn load(files: &Files) -> Result<Self> {
        let config = load_config(files, Task::CausalLm)?;
        let tokenizer = load_tokenizer(files, &config)?;
        let mut stop_ids = listed_stop_ids(files, &config)?;
        let finish_id = finish_id(files, &config, &tokenizer, &stop_ids)?;
        if !stop_ids.contains(&finish_id) {
            stop_ids.push(finish_id);
        }
        Ok(Single { weights: Checkpoint::open(files)?, chat: ChatTemplate::load(files)?, config, tokenizer, stop_ids })
    }
}

fn load_config(files: &Files, expected: Task) -> Result<ModelConfig> {
    let config = ModelConfig::load(files)?;
    if config.task == expected {
        return Ok(config);
    }
    let (role, expected, found) = match expected {
        Task::CausalLm => ("policy", "ForCausalLM", "ForSequenceClassification"),
        Task::Reward => ("reward model", "ForSequenceClassification", "ForCausalLM"),
    };
    let family = config.family.name();
    Err(Error::file(
        files.path("config.json"),
        format!("expected a {role} ({family}{expected}), found {family}{found}"),
    ))
}

fn load_tokenizer(files: &Files, config: &ModelConfig) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::load(files)?;
    if tokenizer.len() > config.vocab_size {
        return Err(Error::file(
            files.path("tokenizer.json"),
            format!("expected ids below `vocab_size` ({} rows), found {} tokens", config.vocab_size, tokenizer.len()),
        ));
    }
    Ok(tokenizer)
}

/// `eos_token_id` of `generation_config.json`, else of `config.json`.
fn listed_stop_ids(files: &Files, config: &ModelConfig) -> Result<Vec<u32>> {
    const NAME: &str = "generation_config.json";
    let generation = files.read_json(NAME)?.unwrap_or_default();
    let listed = token_ids_of(generation.get("eos_token_id")).map_err(|(expected, found)| {
        Error::file(files.path(NAME), format!("`eos_token_id`: expected {expected}, found {found}"))
    })?;
    let (file, listed) = if listed.is_empty() { ("config.json", config.eos_token_ids.clone()) } else { (NAME, listed) };
    let mut ids = Vec::with_capacity(listed.len());
    for id in listed {
        check_id(files, file, "eos_token_id", id, config)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The id of `eos_token`; without one, the first that is listed as `eos_token_id`.
fn finish_id(files: &Files, config: &ModelConfig, tokenizer: &Tokenizer, listed: &[u32]) -> Result<u32> {
    let path = files.path("tokenizer_config.json");
    match special_token(files, "eos_token")? {
        Some(token) => match tokenizer.id(&token) {
            Some(id) if (id as usize) < config.vocab_size => Ok(id),
            _ => Err(Error::file(path, format!("`eos_token`: expected a token of tokenizer.json, found {token:?}"))),
        },
        None => listed.first().copied().ok_or_else(|| {
            Error::file(
                path,
                "expected an `eos_token`, or an `eos_token_id` in generation_config.json or config.json, found none",
            )
        }),
    }
}

fn check_id(files: &Files, file: &str, field: &str, id: u32, config: &ModelConfig) -> Result<()> {
    if (id as usize) < config.vocab_size {
        return Ok(());
    }
    Err(Error::file(
        files.path(file),
        format!("`{field}`: expected an id below `vocab_size` ({}), found {id}", config.vocab_size),
    ))
}
