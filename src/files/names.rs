//! A checkpoint's tensors under the names that loaders look them up by, whatever wrapper they were saved from.
//!
//! What a checkpoint says beyond its config is decided here, once for all backends: under which names its tensors go, which of
//! them is the head, and whether the language-model head is the embedding. What it holds besides is told in a note.

use super::checkpoint::Checkpoint;
use super::config::{ModelConfig, ModelKind};
use super::tensors::{EMBEDDING, LM_HEAD, SCORE, SCORE_BIAS, tensors};
use crate::error::Remedy;
use crate::{Error, Result};
use std::collections::HashSet;

/// A tensor that every decoder has once, behind `model.` where nothing wraps it.
const ANCHOR: &str = "layers.0.input_layernorm.weight";

/// Parts of names that wrappers of PyTorch put in, and that mean nothing.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];

/// Gives the tensors the names of [`tensors`] and settles what the checkpoint decides of `config`. `head` is the name of the
/// score head's tensor, where it is not the usual one. Returns what the user should know.
///
/// # Errors
/// A tensor is missing or malformed, or two tensors come to the same name; the message says what the checkpoint seems to be.
pub(super) fn arrange(config: &mut ModelConfig, weights: &mut Checkpoint, head: Option<&str>) -> Result<Vec<String>> {
    let mut notes = weights.notes().to_vec();
    notes.extend(unwrap(weights)?);
    match config.kind {
        ModelKind::Reward => score_head(config, weights, head)?,
        ModelKind::CausalLm => notes.extend(untie(config, weights)?),
    }
    let expected = tensors(config);
    for (name, shape) in &expected {
        if !weights.contains(name) {
            return Err(missing(config, weights, name, shape));
        }
        if let (SCORE, Some(&[rows, width])) = (name.as_str(), weights.shape(name))
            && rows != 1
            && width == config.hidden_size
        {
            let stored = weights.stored_name(name);
            return Err(Error::file(
                weights.path(),
                format!(
                    "tensor `{stored}`: expected one row, which is one label, found shape [{rows}, {width}]: {rows} labels"
                ),
            ));
        }
        weights.check(name, shape)?;
    }
    notes.extend(unused(config, weights, &expected));
    Ok(notes)
}

/// Takes off what wrappers have put around names.
fn unwrap(weights: &mut Checkpoint) -> Result<Option<String>> {
    let bare = |name: &str| {
        let inner = WRAPPERS.iter().fold(name.to_string(), |name, part| name.replace(part, ""));
        inner.trim_start_matches("module.").to_string()
    };
    // Of `model.model.layers.0.input_layernorm.weight` it is `model.model.`.
    let names = weights.names();
    let prefixes: Vec<String> =
        names.iter().filter_map(|name| bare(name).strip_suffix(ANCHOR).map(str::to_string)).collect();
    // There may be other decoders beside the model, for instance one that guesses its next tokens.
    let usual = ["model.", "", "model.model."].into_iter().find(|usual| prefixes.iter().any(|prefix| prefix == usual));
    // Without it there is nothing to go by, and what is missing will be said.
    let Some(prefix) = usual else { return Ok(None) };
    // A module that holds the model as its `model`.
    let outer = if prefix == "model.model." { "model." } else { "" };
    let of_decoder = |name: &str| ["layers.", "embed_tokens.", "norm."].iter().any(|part| name.starts_with(part));
    weights.rename(|name| {
        let name = bare(name);
        let name = name.strip_prefix(outer).unwrap_or(&name);
        if prefix.is_empty() && of_decoder(name) { format!("model.{name}") } else { name.to_string() }
    })?;
    let anchor = format!("model.{ANCHOR}");
    let stored = weights.stored_name(&anchor);
    Ok((stored != anchor && !prefix.is_empty()).then(|| {
        format!("the names of the checkpoint's tensors are wrapped (`{stored}`); they are read without the wrapper")
    }))
}

/// Lets the score head go by its usual name, and finds what is added to the score.
fn score_head(config: &mut ModelConfig, weights: &mut Checkpoint, head: Option<&str>) -> Result<()> {
    let usual = format!("{}.weight", config.score_stem);
    let found = match head {
        Some(head) => {
            let names = weights.names();
            let is_it = |name: &str| [name, weights.stored_name(name)].contains(&head);
            let exact = names.iter().find(|name| is_it(name)).map(ToString::to_string);
            let of_stem = || {
                let head = format!("{head}.weight");
                names
                    .iter()
                    .find(|name| [**name, weights.stored_name(name)].contains(&head.as_str()))
                    .map(ToString::to_string)
            };
            exact.or_else(of_stem)
        }
        None => weights.contains(&usual).then_some(usual.clone()),
    };
    let Some(found) = found else {
        let asked = head.unwrap_or(&usual);
        // Without a decoder no head is of use.
        let likely = if weights.contains(&format!("model.{ANCHOR}")) { head_like(config, weights) } else { Vec::new() };
        let named = match likely.is_empty() {
            true => String::new(),
            false => format!("; what may be a head is named {}", listed(&likely)),
        };
        let shape = [1, config.hidden_size];
        let error = missing(config, weights, asked, &shape);
        return Err(match head {
            None if !named.is_empty() => {
                Error::Unsupported { message: format!("{error}{named}"), remedies: vec![Remedy::RewardHead] }
            }
            None => error,
            Some(_) => Error::file(
                weights.path(),
                format!("tensor `{asked}`, the score head: expected with shape {shape:?}, found no such tensor{named}"),
            ),
        });
    };
    let bias = found.strip_suffix(".weight").map(|stem| format!("{stem}.bias"));
    // The class that has its head as `score` has no bias there; one that is stored all the same is not used.
    let bias = bias.filter(|bias| (head.is_some() || found != SCORE) && weights.contains(bias));
    config.score_bias = bias.is_some();
    weights.rename(|name| {
        if name == found {
            SCORE.to_string()
        } else if bias.as_deref() == Some(name) {
            SCORE_BIAS.to_string()
        } else if [SCORE, SCORE_BIAS].contains(&name) {
            // Another tensor is the head.
            format!("unused {name}")
        } else {
            name.to_string()
        }
    })
}

/// Whether the language-model head is the embedding: as the config says, unless the checkpoint holds two that differ.
fn untie(config: &mut ModelConfig, weights: &mut Checkpoint) -> Result<Option<String>> {
    if !config.tie_word_embeddings {
        return Ok(None);
    }
    match (weights.contains(EMBEDDING), weights.contains(LM_HEAD)) {
        // One of the two stands for both.
        (false, true) => {
            weights.rename(|name| if name == LM_HEAD { EMBEDDING.to_string() } else { name.to_string() })?;
            Ok(None)
        }
        (true, true) if !weights.same(EMBEDDING, LM_HEAD) => {
            config.tie_word_embeddings = false;
            Ok(Some(format!(
                "`{}` is used as it is stored: it differs from the embedding, although `tie_word_embeddings` is true",
                weights.stored_name(LM_HEAD)
            )))
        }
        _ => Ok(None),
    }
}

/// What the checkpoint holds and nobody reads, as a note.
fn unused(config: &ModelConfig, weights: &Checkpoint, expected: &[(String, Vec<usize>)]) -> Option<String> {
    let used: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let tables = ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"];
    // A head beside the one in use, and what is kept for the normalisation of scores that is off.
    let beside = |name: &str| match config.kind {
        ModelKind::Reward => name == LM_HEAD || (config.score_stem != "score" && name.starts_with("normalizer.")),
        ModelKind::CausalLm => name == LM_HEAD && config.tie_word_embeddings,
    };
    let known = |name: &str| tables.iter().any(|table| name.ends_with(table)) || beside(name);
    let names = weights.names();
    let left: Vec<&str> = names.into_iter().filter(|name| !used.contains(name) && !known(name)).collect();
    let first = weights.stored_name(left.first()?);
    Some(match left.len() {
        1 => format!("the tensor `{first}` of the checkpoint is not used"),
        count => format!("{count} tensors of the checkpoint are not used, e.g. `{first}`"),
    })
}

/// Tensors that may be a score head: rows as wide as the model that are not a decoder's, and what is named like a head.
fn head_like(config: &ModelConfig, weights: &Checkpoint) -> Vec<String> {
    let names = weights.names();
    let named = |name: &str| ["head", "score", "reward", "value"].iter().any(|part| name.contains(part));
    let likely = names.into_iter().filter(|name| {
        let shape = weights.shape(name).unwrap_or_default();
        let row = shape == [1, config.hidden_size];
        *name != LM_HEAD && name.ends_with("weight") && !name.starts_with("model.") && (row || named(name))
    });
    let mut likely: Vec<String> = likely.map(|name| weights.stored_name(name).to_string()).collect();
    likely.truncate(8);
    likely
}

fn listed(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The error of a tensor that is missing, with what the checkpoint seems to be instead.
fn missing(config: &ModelConfig, weights: &Checkpoint, name: &str, shape: &[usize]) -> Error {
    weights.missing(name, shape, &reason(config, weights, name).map_or(String::new(), |reason| format!("; {reason}")))
}

fn reason(config: &ModelConfig, weights: &Checkpoint, name: &str) -> Option<String> {
    let names = weights.names();
    let with = |part: &str| names.iter().find(|name| weights.stored_name(name).contains(part)).copied();
    let peft = ["base_model.model.", ".base_layer.", "lora_A", "lora_B", "lora_embedding_A", "modules_to_save."];
    if let Some((part, found)) = peft.iter().find_map(|part| Some((part, with(part)?))) {
        let found = weights.stored_name(found);
        let how = if found.starts_with(part) { "names begin with" } else { "names hold" };
        return Some(format!(
            "its {how} `{part}` (`{found}`): a PEFT checkpoint (LoRA) that was not merged into its base model; merge it, \
             and save the result"
        ));
    }
    let quantised =
        [".qweight", ".qzeros", ".weight_scale", ".weight.absmax", ".weight_packed", ".scales", ".weight_scale_inv"];
    if let Some(found) = quantised.iter().find_map(|end| names.iter().find(|name| name.ends_with(end))) {
        return Some(format!("`{found}` belongs to quantised weights; expected BF16, F16 or F32"));
    }
    if let Some(found) = ["qkv_proj.", "gate_up_proj.", "c_attn.", ".wqkv."].iter().find_map(|part| with(part)) {
        return Some(format!("`{found}` is of another way to store these layers, which is not read"));
    }
    if let Some(found) = ["attention.wq.", "tok_embeddings."].iter().find_map(|part| with(part)) {
        return Some(format!(
            "`{found}` is a name of the authors' own layout; convert the checkpoint with transformers"
        ));
    }
    if name == LM_HEAD {
        return Some(
            "`tie_word_embeddings` is not true, so the embedding does not stand for it; transformers would fill it with \
             random numbers"
                .to_string(),
        );
    }
    let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok();
    let layers = names.iter().filter_map(|name| layer(name)).max().map_or(0, |last| last + 1);
    if layers > 0 && layer(name).is_some_and(|layer| layer >= layers) {
        return Some(format!("the checkpoint holds {layers} layers, and `num_hidden_layers` is {}", config.num_layers));
    }
    let anchor = names.iter().find(|name| name.ends_with(ANCHOR) && name.strip_suffix(ANCHOR) != Some("model."));
    if let Some(prefix) = anchor.and_then(|name| name.strip_suffix(ANCHOR)) {
        return Some(format!(
            "its names begin with `{prefix}`, as of a model inside another one: expected `model.{ANCHOR}`"
        ));
    }
    match names.first() {
        Some(_) if names.iter().any(|name| name.starts_with("model.")) => None,
        Some(first) => Some(format!("it holds {} tensors, e.g. `{first}`", names.len())),
        None => Some("it holds no tensors".to_string()),
    }
}
