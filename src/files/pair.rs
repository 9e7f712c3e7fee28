//! A policy and its reward model, read together or one of them alone: files, shapes, tokenizer, stop ids, and whether the
//! two fit.
//!
//! Both models read the same token ids, so their tokenizers must spell every id that both have alike; only of special tokens,
//! which stand for no text, the names may differ. Either embedding may have more rows than its tokenizer has tokens (padding)
//! or fewer (a token that is never used), and either vocabulary may go on where the other ends.

use crate::files::chat::{ChatTemplate, SpecialTokens, special_token};
use crate::files::checkpoint::{Checkpoint, Files};
use crate::files::config::{Ids, ModelConfig, ModelHint, ModelKind, dropped_id, token_ids_of};
use crate::files::draft::{Beside, DraftModel};
use crate::files::generation::SamplingDefaults;
use crate::files::names;
use crate::files::tokenizer::{Difference, Tokenizer};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shape and weights of a model to be opened.
pub type Part<'a> = (&'a ModelConfig, &'a Checkpoint);

/// What of a pair is to be opened: one model, or both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// The language model.
    pub policy: Option<Part<'a>>,
    /// The reward model.
    pub reward: Option<Part<'a>>,
    /// The model that drafts.
    pub draft: Option<Part<'a>>,
}

impl<'a> Parts<'a> {
    /// Both models.
    pub fn both(policy: Part<'a>, reward: Part<'a>) -> Self {
        Parts { policy: Some(policy), reward: Some(reward), draft: None }
    }
}

/// The policy is missing.
pub(crate) fn no_policy() -> Error {
    let message = "this needs a policy, and only a reward model is loaded".to_string();
    Error::MissingModel { model: "policy", message }
}

/// The reward model is missing.
pub(crate) fn no_reward_model() -> Error {
    let message = "this needs a reward model, and only a policy is loaded".to_string();
    Error::MissingModel { model: "reward", message }
}

/// Everything of a pair but the arithmetic. Either model may be missing, not both.
#[derive(Debug)]
pub struct Pair {
    pub(crate) policy: Option<LanguageModel>,
    pub(crate) reward: Option<RewardModel>,
    pub(crate) draft: Option<DraftModel>,
    /// The tokenizer: the policy's, whose ids are spelled alike by the reward model's, or that of the only model.
    pub tokenizer: Arc<Tokenizer>,
    /// What was noticed while the files were read and is no error, a sentence each.
    pub notes: Vec<String>,
    /// Tokens of the longest sequence that the models will be opened for: a longer text is refused before it is encoded whole.
    pub longest: usize,
}

/// What a policy's directory holds.
#[derive(Debug)]
pub struct LanguageModel {
    /// Its shape.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: Checkpoint,
    /// Where its tokenizer is, for messages.
    pub tokenizer_path: PathBuf,
    /// Its chat template.
    pub chat: Option<ChatTemplate>,
    /// The special tokens that a chat template may name.
    pub special_tokens: SpecialTokens,
    /// The end-of-turn id: `eos_token` of `tokenizer_config.json`.
    pub finish_id: u32,
    /// `eos_token_id` of `generation_config.json` (else of `config.json`), with `finish_id`.
    pub stop_ids: Vec<u32>,
    /// What `generation_config.json` says of sampling.
    pub sampling: SamplingDefaults,
}

/// What a reward model's directory holds.
#[derive(Debug)]
pub struct RewardModel {
    /// Its shape.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: Checkpoint,
    /// Its chat template. It is not read beside a policy, whose template is the pair's.
    pub chat: Option<ChatTemplate>,
    /// The special tokens that a chat template may name.
    pub special_tokens: SpecialTokens,
    /// `pad_token_id` of `config.json`.
    pub pad_id: Option<u32>,
}

impl Pair {
    /// Reads both directories.
    ///
    /// # Errors
    /// A file is missing or malformed; the policy is not a causal language model or the reward model not a one-label
    /// sequence classifier; the tokenizers disagree on an id.
    pub fn load(policy_files: &Files, reward_files: &Files) -> Result<Self> {
        Self::load_with_head(policy_files, reward_files, None)
    }

    /// [`load`](Self::load), with the name of the tensor that is the reward model's head, if it is not the usual one.
    ///
    /// # Errors
    /// As [`load`](Self::load), or there is no such tensor.
    pub fn load_with_head(policy_files: &Files, reward_files: &Files, head: Option<&str>) -> Result<Self> {
        // Small files first: a pair that does not fit is refused before gigabytes are mapped.
        let policy = load_config(policy_files, ModelKind::CausalLm, false)?;
        let reward = load_config(reward_files, ModelKind::Reward, head.is_some())?;
        let mut tokenizer = Tokenizer::load(policy_files)?;
        let theirs = Tokenizer::load(reward_files)?;
        tokenizer.read_by(&theirs);
        let mut notes: Vec<String> = compare(policy_files, &tokenizer, reward_files, &theirs)?.into_iter().collect();
        let policy = language_model(policy_files, policy, &tokenizer, &mut notes)?;
        let reward = reward_model(reward_files, reward, head, false, &mut notes)?;
        Ok(Pair {
            policy: Some(policy),
            reward: Some(reward),
            draft: None,
            tokenizer: Arc::new(tokenizer),
            notes,
            longest: usize::MAX,
        })
    }

    /// Reads a language model, to be used without a reward model.
    ///
    /// # Errors
    /// A file is missing or malformed, or the model is not a causal language model.
    pub fn policy_only(files: &Files) -> Result<Self> {
        let config = load_config(files, ModelKind::CausalLm, false)?;
        let (tokenizer, mut notes) = (Tokenizer::load(files)?, Vec::new());
        let policy = language_model(files, config, &tokenizer, &mut notes)?;
        Ok(Pair {
            policy: Some(policy),
            reward: None,
            draft: None,
            tokenizer: Arc::new(tokenizer),
            notes,
            longest: usize::MAX,
        })
    }

    /// Reads a reward model, to be used without a policy.
    ///
    /// # Errors
    /// A file is missing or malformed, or the model is not a one-label sequence classifier.
    pub fn reward_only(files: &Files) -> Result<Self> {
        Self::reward_only_with_head(files, None)
    }

    /// [`reward_only`](Self::reward_only), with the name of the tensor that is the model's head, if it is not the usual one.
    ///
    /// # Errors
    /// As [`reward_only`](Self::reward_only), or there is no such tensor.
    pub fn reward_only_with_head(files: &Files, head: Option<&str>) -> Result<Self> {
        let config = load_config(files, ModelKind::Reward, head.is_some())?;
        let (tokenizer, mut notes) = (Tokenizer::load(files)?, Vec::new());
        let reward = reward_model(files, config, head, true, &mut notes)?;
        Ok(Pair {
            policy: None,
            reward: Some(reward),
            draft: None,
            tokenizer: Arc::new(tokenizer),
            notes,
            longest: usize::MAX,
        })
    }

    /// The policy.
    ///
    /// # Errors
    /// There is none.
    pub fn policy(&self) -> Result<&LanguageModel> {
        self.policy.as_ref().ok_or_else(no_policy)
    }

    /// The reward model.
    ///
    /// # Errors
    /// There is none.
    pub fn reward(&self) -> Result<&RewardModel> {
        self.reward.as_ref().ok_or_else(no_reward_model)
    }

    /// The chat template of the policy, or that of a reward model without one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        match (&self.policy, &self.reward) {
            (Some(policy), _) => policy.chat.as_ref(),
            (None, Some(reward)) => reward.chat.as_ref(),
            (None, None) => None,
        }
    }

    /// The place of that template, and the special tokens that a template in it may name.
    fn chat_place(&mut self) -> Option<(&mut Option<ChatTemplate>, &SpecialTokens)> {
        match (&mut self.policy, &mut self.reward) {
            (Some(policy), _) => Some((&mut policy.chat, &policy.special_tokens)),
            (None, Some(reward)) => Some((&mut reward.chat, &reward.special_tokens)),
            (None, None) => None,
        }
    }

    /// The chat template, to be set up: its date and variables.
    pub fn chat_mut(&mut self) -> Option<&mut ChatTemplate> {
        self.chat_place().and_then(|(chat, _)| chat.as_mut())
    }

    /// Takes the chat template of a file in place of the model's own.
    ///
    /// # Errors
    /// The file is not readable, or the template does not parse.
    pub fn use_chat_template(&mut self, path: &Path) -> Result<()> {
        if let Some((chat, special_tokens)) = self.chat_place() {
            *chat = Some(ChatTemplate::from_file(path, special_tokens.clone())?);
        }
        Ok(())
    }

    /// The pad id of the reward model, if there is one and it has one.
    pub fn reward_pad_id(&self) -> Option<u32> {
        self.reward.as_ref()?.pad_id
    }

    /// Reads a small language model that guesses what the policy writes.
    ///
    /// # Errors
    /// There is no policy, the files are unusable, the model is no language model, or its tokenizer is not the policy's.
    pub fn add_draft(&mut self, files: &Files) -> Result<()> {
        let policy = Beside { tokenizer: &self.tokenizer, path: &self.policy()?.tokenizer_path };
        let (draft, notes) = DraftModel::load(files, policy)?;
        self.draft = Some(draft);
        self.notes.extend(notes);
        Ok(())
    }

    /// Whether there is a model that drafts.
    pub fn has_draft(&self) -> bool {
        self.draft.is_some()
    }

    /// Positions that policy and reward model were made for.
    pub fn max_positions(&self) -> usize {
        let policy = self.policy.iter().map(|model| &model.config);
        let configs = policy.chain(self.reward.iter().map(|model| &model.config));
        configs.map(|config| config.max_position_embeddings).min().unwrap_or(0)
    }

    /// Shapes and weights, to be opened.
    pub fn parts(&self) -> Parts<'_> {
        Parts {
            policy: self.policy.as_ref().map(|model| (&model.config, &model.weights)),
            reward: self.reward.as_ref().map(|model| (&model.config, &model.weights)),
            draft: self.draft.as_ref().map(|model| (&model.config, &model.weights)),
        }
    }
}

fn load_config(files: &Files, expected: ModelKind, own_head: bool) -> Result<ModelConfig> {
    let config = ModelConfig::load_as(files, ModelHint { kind: Some(expected), own_head })?;
    if config.kind == expected {
        return Ok(config);
    }
    let (role, expected, found) = match expected {
        ModelKind::CausalLm => ("policy", "ForCausalLM", "ForSequenceClassification"),
        ModelKind::Reward => ("reward model", "ForSequenceClassification", "ForCausalLM"),
    };
    let family = config.family.name();
    Err(Error::file(
        files.path("config.json"),
        format!("expected a {role} ({family}{expected}), found {family}{found}"),
    ))
}

fn language_model(
    files: &Files,
    mut config: ModelConfig,
    tokenizer: &Tokenizer,
    notes: &mut Vec<String>,
) -> Result<LanguageModel> {
    let mut own = config.notes.clone();
    let (finish_id, stop_ids) = end_ids(files, &config, tokenizer, &mut own)?;
    let sampling = SamplingDefaults::load(files, &mut own)?;
    let mut weights = Checkpoint::open(files)?;
    own.extend(names::arrange(&mut config, &mut weights, None)?);
    let chat = ChatTemplate::load(files)?;
    notes.extend(own.into_iter().map(|note| format!("policy: {note}")));
    Ok(LanguageModel {
        config,
        weights,
        tokenizer_path: files.path("tokenizer.json"),
        chat,
        special_tokens: SpecialTokens::load(files)?,
        finish_id,
        stop_ids,
        sampling,
    })
}

/// `alone`: its template is the pair's.
fn reward_model(
    files: &Files,
    mut config: ModelConfig,
    head: Option<&str>,
    alone: bool,
    notes: &mut Vec<String>,
) -> Result<RewardModel> {
    let mut own = config.notes.clone();
    let pad_id = checked_pad_id(files, &config)?;
    let mut weights = Checkpoint::open(files)?;
    own.extend(names::arrange(&mut config, &mut weights, head)?);
    let chat = if alone { ChatTemplate::load(files)? } else { None };
    notes.extend(own.into_iter().map(|note| format!("reward model: {note}")));
    Ok(RewardModel { config, weights, chat, special_tokens: SpecialTokens::load(files)?, pad_id })
}

/// Whether the ids of both tokenizers are the same; a note if only special tokens have other names.
fn compare(policy: &Files, ours: &Tokenizer, reward: &Files, theirs: &Tokenizer) -> Result<Option<String>> {
    let differences = ours.differences(theirs);
    let spelled = |token: &Option<String>| token.as_ref().map_or("nothing".to_string(), |token| format!("{token:?}"));
    if let Some(Difference { id, ours, theirs }) = &differences.ordinary {
        return Err(Error::invalid(format!(
            "the tokenizers differ: id {id} is {} to the policy ({}), but {} to the reward model ({}); \
             both models must read the same ids",
            spelled(ours),
            policy.path("tokenizer.json").display(),
            spelled(theirs),
            reward.path("tokenizer.json").display(),
        )));
    }
    Ok(differences.special.first().map(|Difference { id, ours, theirs }| {
        let count = differences.special.len();
        let what = if count == 1 { "one special token".to_string() } else { format!("{count} special tokens") };
        format!(
            "the tokenizers have other names for {what}: id {id} is {} to the policy and {} to the reward model, which reads \
             the id",
            spelled(ours),
            spelled(theirs)
        )
    }))
}

fn checked_pad_id(files: &Files, reward: &ModelConfig) -> Result<Option<u32>> {
    if let Some(pad) = reward.pad_token_id {
        check_id(files, "config.json", "pad_token_id", pad, reward)?;
    }
    Ok(reward.pad_token_id)
}

/// The end-of-turn id, and all ids that end an answer.
fn end_ids(
    files: &Files,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    notes: &mut Vec<String>,
) -> Result<(u32, Vec<u32>)> {
    let mut stop_ids = listed_stop_ids(files, config, notes)?;
    let finish_id = finish_id(files, config, tokenizer, &stop_ids)?;
    if !stop_ids.contains(&finish_id) {
        stop_ids.push(finish_id);
    }
    Ok((finish_id, stop_ids))
}

/// `eos_token_id` of `generation_config.json`, else of `config.json`. What is no id of the vocabulary is left out.
fn listed_stop_ids(files: &Files, config: &ModelConfig, notes: &mut Vec<String>) -> Result<Vec<u32>> {
    const NAME: &str = "generation_config.json";
    let generation = files.read_json(NAME)?.unwrap_or_default();
    let listed = token_ids_of(generation.get("eos_token_id"), config.vocab_size).map_err(|(expected, found)| {
        Error::file(files.path(NAME), format!("`eos_token_id`: expected {expected}, found {found}"))
    })?;
    let Ids { ids: listed, dropped } = listed;
    notes.extend(dropped.iter().map(|id| dropped_id(NAME, "eos_token_id", id, config.vocab_size)));
    let listed = if listed.is_empty() { config.eos_token_ids.clone() } else { listed };
    let mut ids = Vec::with_capacity(listed.len());
    for id in listed {
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
