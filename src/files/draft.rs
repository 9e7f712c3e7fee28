//! A small language model that guesses what a policy will write. Its ids must be the policy's.

use crate::files::checkpoint::{Checkpoint, Files};
use crate::files::config::{ModelConfig, ModelHint, ModelKind};
use crate::files::names;
use crate::files::tokenizer::{Difference, Tokenizer};
use crate::{Error, Result};
use std::path::Path;

/// What a draft model's directory holds.
#[derive(Debug)]
pub struct DraftModel {
    /// Its shape.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: Checkpoint,
}

/// The policy that a draft model is for.
pub(super) struct Beside<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Where that is, for messages.
    pub path: &'a Path,
}

impl DraftModel {
    /// Reads a directory, and what the user should know of it, a sentence each.
    ///
    /// # Errors
    /// A file is missing or malformed, the model is not a causal language model, or its tokenizer has another spelling
    /// for an id of the policy's.
    pub(super) fn load(files: &Files, policy: Beside<'_>) -> Result<(Self, Vec<String>)> {
        let mut config = ModelConfig::load_as(files, ModelHint { kind: Some(ModelKind::CausalLm), own_head: false })?;
        if config.kind != ModelKind::CausalLm {
            let family = config.family.name();
            let message = format!(
                "expected a draft model, which is a language model ({family}ForCausalLM), found \
                 {family}ForSequenceClassification"
            );
            return Err(Error::file(files.path("config.json"), message));
        }
        same_ids(&policy, &files.path("tokenizer.json"), &Tokenizer::load(files)?)?;
        let mut notes = config.notes.clone();
        let mut weights = Checkpoint::open(files)?;
        notes.extend(names::arrange(&mut config, &mut weights, None)?);
        let notes = notes.into_iter().map(|note| format!("draft model: {note}")).collect();
        Ok((DraftModel { config, weights }, notes))
    }
}

/// Whether every id of the policy's tokenizer is spelled alike by the draft model's, special tokens included. What the
/// draft model has beyond is never asked for.
fn same_ids(policy: &Beside<'_>, path: &Path, draft: &Tokenizer) -> Result<()> {
    let Some(Difference { id, ours, theirs }) = policy.tokenizer.first_difference(draft) else { return Ok(()) };
    let spelled = |token: Option<String>| token.map_or("nothing".to_string(), |token| format!("{token:?}"));
    Err(Error::invalid(format!(
        "the draft model has another tokenizer than the policy: at id {id} expected {}, as in {}, found {} in {}; \
         both models must read the same ids",
        spelled(ours),
        policy.path.display(),
        spelled(theirs),
        path.display(),
    )))
}
