//! `config.json` of a Hugging Face directory, resolved and checked.
//!
//! The file is untrusted. Every field that changes the arithmetic is either understood or refused by name, every size is
//! held to a limit before anything is allocated from it, and a field that contradicts another is an error rather than a
//! guess. Defaults are those of the `transformers` library, family by family (`Defaults`); fields that it ignores for a
//! family are ignored here as well. A field that is absent has its default; one that is null has none, and is refused where
//! a value is needed.

use crate::files::checkpoint::Files;
use crate::files::fields::{FieldResult, Fields, show};
use crate::files::json;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;
use std::path::Path;

const NAME: &str = "config.json";

// Limits are far beyond any published model of these families and small enough that no product of them overflows 64 bits.
const LAYERS: RangeInclusive<u64> = 1..=1024;
const HIDDEN: RangeInclusive<u64> = 1..=65_536;
const INTERMEDIATE: RangeInclusive<u64> = 1..=1 << 20;
const HEADS: RangeInclusive<u64> = 1..=4096;
const HEAD_DIM: RangeInclusive<u64> = 2..=1024;
const VOCAB: RangeInclusive<u64> = 1..=1 << 21;
const POSITIONS: RangeInclusive<u64> = 1..=1 << 24;
const WINDOW: RangeInclusive<u64> = 1..=1 << 31;
const TOKEN_ID: RangeInclusive<u64> = 0..=(1 << 31) - 1;

/// The decoder families that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 3.x.
    Llama,
    /// Mistral, with or without a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on every query and key head.
    Qwen3,
}

/// What stands on top of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// A language-model head: `*ForCausalLM`.
    CausalLm,
    /// A one-row score head: `*ForSequenceClassification` with one label.
    Reward,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Frequency scaling of Llama 3.1 and later; `None` is the plain rotation.
    pub llama3: Option<Llama3Scaling>,
}

/// `rope_type: llama3`.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// Long wavelengths are divided by this.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are not scaled.
    pub high_freq_factor: f64,
    /// Context length before the extension, in tokens.
    pub original_max_position_embeddings: usize,
}

/// A decoder's shape, every default resolved and every range checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Decoder family.
    pub family: Family,
    /// Which head the checkpoint carries.
    pub kind: ModelKind,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Size of one head (even); not always `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Rows of the input embedding.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Per layer: how many keys a query sees, itself included; `None` sees all.
    pub windows: Vec<Option<usize>>,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the attention output projection.
    pub o_bias: bool,
    /// Biases on the MLP projections.
    pub mlp_bias: bool,
    /// RMSNorm on every query and key head.
    pub qk_norm: bool,
    /// The language-model head is the input embedding.
    pub tie_word_embeddings: bool,
    /// `eos_token_id` of this file, without what is no id of the vocabulary; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// `pad_token_id` of this file; a negative one is none.
    pub pad_token_id: Option<u32>,
    /// Stem of a reward model's head in the checkpoint: of `score.weight` it is `score`.
    pub score_stem: &'static str,
    /// A number is added to every score. What the checkpoint holds decides that.
    pub score_bias: bool,
    /// What of the file was left out, in words.
    pub notes: Vec<String>,
}

/// What a family's configs need not say, with the values that `transformers` (5.24) has for it.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    /// `None`: as many as query heads.
    num_kv_heads: Option<usize>,
    /// `None`: the width divided by the query heads.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    /// Where there is a window at all.
    sliding_window: usize,
    eos_token_id: Option<u64>,
}

const HIDDEN_SIZE: usize = 4096;
const NUM_LAYERS: usize = 32;
const NUM_HEADS: usize = 32;
const RMS_NORM_EPS: f64 = 1e-6;
const MAX_WINDOW_LAYERS: usize = 28;
const ROPE_THETA: f64 = 10_000.0;

impl Rope {
    /// Radians per position of each pair of a head's elements, scaled as Llama 3.1 does where asked: `head_dim / 2` of them.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        let Some(scaling) = &self.llama3 else { return plain.collect() };
        let original = scaling.original_max_position_embeddings as f64;
        let (long, short) = (original / scaling.low_freq_factor, original / scaling.high_freq_factor);
        let scaled = plain.map(|frequency| {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength < short {
                frequency
            } else if wavelength > long {
                frequency / scaling.factor
            } else {
                let smooth = (original / wavelength - scaling.low_freq_factor)
                    / (scaling.high_freq_factor - scaling.low_freq_factor);
                (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
            }
        });
        scaled.collect()
    }
}

impl Family {
    const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// The prefix of its class names in `architectures`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
        }
    }

    fn defaults(self) -> Defaults {
        match self {
            Family::Llama => Defaults {
                vocab_size: 32_000,
                intermediate_size: 11_008,
                num_kv_heads: None,
                head_dim: None,
                max_position_embeddings: 2048,
                sliding_window: 4096,
                eos_token_id: Some(2),
            },
            Family::Mistral => Defaults {
                vocab_size: 32_000,
                intermediate_size: 14_336,
                num_kv_heads: Some(8),
                head_dim: None,
                max_position_embeddings: 131_072,
                sliding_window: 4096,
                eos_token_id: Some(2),
            },
            Family::Qwen2 | Family::Qwen3 => Defaults {
                vocab_size: 151_936,
                intermediate_size: 22_016,
                num_kv_heads: Some(32),
                head_dim: (self == Family::Qwen3).then_some(128),
                max_position_embeddings: 32_768,
                sliding_window: 4096,
                eos_token_id: None,
            },
        }
    }
}

/// What is known of a model before its config is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelHint {
    /// What it is used as.
    pub kind: Option<ModelKind>,
    /// Its score head is named by whoever loads it, so it is a reward model whatever its class is called.
    pub own_head: bool,
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// There is no such file, or as [`parse`](ModelConfig::parse).
    pub fn load(files: &Files) -> Result<Self> {
        Self::load_as(files, ModelHint::default())
    }

    /// [`load`](Self::load), of a model of which something is known.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_as(files: &Files, known: ModelHint) -> Result<Self> {
        let path = files.path(NAME);
        let content = files.read(NAME)?;
        let content = content.ok_or_else(|| Error::file(&path, format!("no such file{}", files.instead())))?;
        Self::parse_as(&content, &path, known)
    }

    /// Reads the text of a `config.json`. `path` is used in messages only.
    ///
    /// # Errors
    /// The file is not JSON, contradicts itself, names an unsupported architecture, rope type or label count, a field is null
    /// that must have a value, or a size is outside sane limits.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        Self::parse_as(text.as_bytes(), path, ModelHint::default())
    }

    fn parse_as(content: &[u8], path: &Path, known: ModelHint) -> Result<Self> {
        let map: Map<String, Value> =
            json::parse(content).map_err(|found| Error::file(path, format!("expected a JSON object{found}")))?;
        resolve(&Fields { map: &map, prefix: "" }, known).map_err(|message| Error::file(path, message))
    }

    /// Number of weights, the head included; a tied head counts once.
    pub fn num_parameters(&self) -> u64 {
        // Saturating: the fields are public, so the limits of `parse` need not hold.
        let mul = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        let sum = |terms: &[u64]| terms.iter().fold(0u64, |total, &term| total.saturating_add(term));
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (mul(self.num_heads, self.head_dim), mul(self.num_kv_heads, self.head_dim));
        let when = |condition: bool, count: u64| if condition { count } else { 0 };
        let layer = sum(&[
            sum(&[q, q, kv, kv]).saturating_mul(hidden as u64),
            mul(inner, hidden).saturating_mul(3),
            mul(2, hidden),
            when(self.qkv_bias, sum(&[q, kv, kv])),
            when(self.o_bias, hidden as u64),
            when(self.mlp_bias, sum(&[inner as u64, inner as u64, hidden as u64])),
            when(self.qk_norm, mul(2, self.head_dim)),
        ]);
        let embedding = mul(self.vocab_size, hidden);
        let head = match self.kind {
            ModelKind::CausalLm => when(!self.tie_word_embeddings, embedding),
            ModelKind::Reward => sum(&[hidden as u64, when(self.score_bias, 1)]),
        };
        sum(&[embedding, layer.saturating_mul(self.num_layers as u64), hidden as u64, head])
    }

    /// Keys and values of one position in all layers, in elements.
    pub fn kv_elements_per_token(&self) -> u64 {
        [self.num_layers, self.num_kv_heads, self.head_dim]
            .iter()
            .fold(2, |product: u64, &factor| product.saturating_mul(factor as u64))
    }
}

fn resolve(fields: &Fields, known: ModelHint) -> FieldResult<ModelConfig> {
    let Architecture { family, kind, score_stem } = architecture(fields, known)?;
    refuse_unsupported(fields)?;
    if kind == ModelKind::Reward && !known.own_head {
        match score_stem {
            SCORE_STEM => check_one_label(fields)?,
            _ => check_score_model(fields)?,
        }
    }

    let defaults = family.defaults();
    let hidden_size = fields.or("hidden_size", HIDDEN, HIDDEN_SIZE)?;
    let num_layers = fields.or("num_hidden_layers", LAYERS, NUM_LAYERS)?;
    let num_heads = fields.or("num_attention_heads", HEADS, NUM_HEADS)?;
    let num_kv_heads = match fields.integer("num_key_value_heads", HEADS)? {
        Some(found) => found,
        None if fields.is_null("num_key_value_heads") => match family {
            Family::Mistral => return Err(fields.null("num_key_value_heads", HEADS)),
            _ => num_heads,
        },
        None => defaults.num_kv_heads.unwrap_or(num_heads),
    };
    if !num_heads.is_multiple_of(num_kv_heads) {
        let absent =
            if fields.map.contains_key("num_key_value_heads") { "" } else { ", which is what its absence means" };
        return Err(format!(
            "`num_key_value_heads`: expected a divisor of `num_attention_heads` ({num_heads}), found {num_kv_heads}{absent}"
        ));
    }
    let head_dim = match (fields.integer("head_dim", HEAD_DIM)?, defaults.head_dim) {
        (Some(head_dim), _) => head_dim,
        (None, Some(_)) if fields.is_null("head_dim") => return Err(fields.null("head_dim", HEAD_DIM)),
        (None, Some(default)) => default,
        (None, None) if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        (None, None) => {
            return Err(format!(
                "`head_dim` is missing, and `hidden_size` ({hidden_size}) is not a multiple of \
                 `num_attention_heads` ({num_heads})"
            ));
        }
    };
    if !HEAD_DIM.contains(&(head_dim as u64)) || !head_dim.is_multiple_of(2) {
        return Err(format!(
            "`head_dim`: expected an even size from {} to {}, found {head_dim}",
            HEAD_DIM.start(),
            HEAD_DIM.end()
        ));
    }
    let bias = |name| fields.flag(name, false);
    let (qkv_bias, o_bias) = match family {
        Family::Llama | Family::Qwen3 => (bias("attention_bias")?, bias("attention_bias")?),
        Family::Qwen2 => (true, false),
        Family::Mistral => (false, false),
    };
    let vocab_size = fields.or("vocab_size", VOCAB, defaults.vocab_size)?;
    let max_position_embeddings = fields.or("max_position_embeddings", POSITIONS, defaults.max_position_embeddings)?;
    let expected = "above 0 and below 1";
    let rms_norm_eps = match fields.number("rms_norm_eps", expected, |eps| eps > 0.0 && eps < 1.0)? {
        Some(eps) => eps,
        None if fields.is_null("rms_norm_eps") => return Err(fields.wrong("rms_norm_eps", expected, &Value::Null)),
        None => RMS_NORM_EPS,
    };
    let mut notes = Vec::new();
    let Ids { ids: eos_token_ids, dropped } = eos_token_ids(fields, defaults.eos_token_id, vocab_size)?;
    notes.extend(dropped.iter().map(|id| dropped_id(NAME, "eos_token_id", id, vocab_size)));
    if score_stem != SCORE_STEM && fields.get("score_type").is_some_and(|kind| kind == "cost") {
        notes.push("`score_type` is \"cost\": a larger score is a worse text, and steering raises it".to_string());
    }
    Ok(ModelConfig {
        family,
        kind,
        hidden_size,
        intermediate_size: fields.or("intermediate_size", INTERMEDIATE, defaults.intermediate_size)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size,
        max_position_embeddings,
        rms_norm_eps,
        rope: rope(fields, max_position_embeddings)?,
        windows: windows(fields, family, num_layers)?,
        qkv_bias,
        o_bias,
        mlp_bias: family == Family::Llama && bias("mlp_bias")?,
        qk_norm: family == Family::Qwen3,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        eos_token_ids,
        pad_token_id: pad_token_id(fields, &mut notes)?,
        score_stem,
        score_bias: false,
        notes,
    })
}

/// Stem of the score head's names where `transformers` has put it.
const SCORE_STEM: &str = "score";

/// What the name of a model's class says.
struct Architecture {
    family: Family,
    kind: ModelKind,
    score_stem: &'static str,
}

impl Architecture {
    /// By the class's name; `model_type` for those that stand for several families.
    fn named(name: &str) -> Option<Self> {
        let name = name.replacen("LLaMA", "Llama", 1);
        Family::ALL.into_iter().find_map(|family| {
            let (kind, score_stem) = match name.strip_prefix(family.name())? {
                "ForCausalLM" => (ModelKind::CausalLm, SCORE_STEM),
                "ForSequenceClassification" => (ModelKind::Reward, SCORE_STEM),
                // One linear row on a decoder, by the code that is published with them: safe-rlhf's score models, and
                // UltraRM with its like.
                "ModelForScore" => (ModelKind::Reward, "score_head"),
                "RewardModel" => (ModelKind::Reward, "regression_head"),
                _ => return None,
            };
            Some(Architecture { family, kind, score_stem })
        })
    }
}

fn architecture(fields: &Fields, known: ModelHint) -> FieldResult<Architecture> {
    let supported = || {
        let names = Family::ALL.map(Family::name).join(", ");
        format!("expected one of {{{names}}}ForCausalLM or {{{names}}}ForSequenceClassification")
    };
    let model_type = fields.get("model_type");
    let of_type = || {
        let name = model_type?.as_str()?;
        Family::ALL.into_iter().find(|family| family.name().to_lowercase() == name)
    };
    let listed = match fields.get("architectures") {
        Some(Value::Array(listed)) if listed.is_empty() && known.kind.is_some() => None,
        Some(Value::Array(listed)) => Some(listed.as_slice()),
        None => None,
        Some(found) => return Err(fields.wrong("architectures", "a list with one name", found)),
    };
    // Who names the head only needs the decoder from the config.
    let kind = if known.own_head { Some(ModelKind::Reward) } else { known.kind };
    let Some(listed) = listed else {
        return match (of_type(), kind) {
            (Some(family), Some(kind)) => Ok(Architecture { family, kind, score_stem: SCORE_STEM }),
            _ => {
                let model_type = model_type.map_or("none".into(), show);
                let why = match kind {
                    Some(_) => "is none of the families that are read",
                    None => "does not say which head the model has",
                };
                Err(format!("`architectures` is missing, and `model_type` ({model_type}) {why}; {}", supported()))
            }
        };
    };
    let [Value::String(name)] = listed else {
        return Err(fields.wrong("architectures", "a list with one name", &Value::Array(listed.to_vec())));
    };
    let named = Architecture::named(name);
    if known.own_head {
        let family = named.as_ref().map(|named| named.family).or_else(of_type);
        let family = family.or_else(|| Family::ALL.into_iter().find(|family| name.starts_with(family.name())));
        if let Some(family) = family {
            check_model_type(fields, family, name)?;
            return Ok(Architecture { family, kind: ModelKind::Reward, score_stem: SCORE_STEM });
        }
    }
    let Some(named) = named else {
        let reason = if name.ends_with("ForRewardModel") {
            " (a reward head of its own, not one row of scores)"
        } else if name.contains("ValueHead") {
            " (a value head)"
        } else if name.ends_with("ForTokenClassification") {
            " (a score for every step, not for a text)"
        } else if fields.get("auto_map").is_some() {
            " (code from the model's directory, by `auto_map`, is never run)"
        } else {
            ""
        };
        return Err(format!("architecture {name:?}{reason} is not supported; {}", supported()));
    };
    check_model_type(fields, named.family, name)?;
    Ok(named)
}

fn check_model_type(fields: &Fields, family: Family, name: &str) -> FieldResult<()> {
    let expected = family.name().to_lowercase();
    match fields.get("model_type") {
        Some(found) if *found != Value::String(expected.clone()) => {
            Err(fields.wrong("model_type", &format!("{expected:?} beside the architecture {name}"), found))
        }
        _ => Ok(()),
    }
}

/// Fields that would change the arithmetic in a way that no backend knows.
fn refuse_unsupported(fields: &Fields) -> FieldResult<()> {
    if let Some(quantization) = fields.get("quantization_config") {
        let method = quantization.get("quant_method").unwrap_or(quantization);
        return Err(format!("`quantization_config` ({}): expected unquantised BF16, F16 or F32 weights", show(method)));
    }
    match fields.get("hidden_act") {
        None => {}
        // Two names of one function.
        Some(Value::String(act)) if act == "silu" || act == "swish" => {}
        Some(found) => return Err(fields.wrong("hidden_act", "\"silu\"", found)),
    }
    whole_rotation(fields)
}

fn whole_rotation(fields: &Fields) -> FieldResult<()> {
    let name = "partial_rotary_factor";
    match fields.get(name) {
        Some(found) if found.as_f64() != Some(1.0) => Err(fields.wrong(name, "1 (heads are rotated whole)", found)),
        _ => Ok(()),
    }
}

/// What safe-rlhf's score models add to a head of one row.
fn check_score_model(fields: &Fields) -> FieldResult<()> {
    match fields.integer("score_dim", 0..=1 << 31)? {
        None | Some(1) => {}
        Some(found) => return Err(format!("`score_dim`: expected 1, found {found}")),
    }
    match fields.flag("do_normalize", false)? {
        true => Err("`do_normalize`: expected false (scores are not normalised), found true".into()),
        false => Ok(()),
    }
}

/// The number of labels, where the file says it. Where it does not, the head's shape does.
fn check_one_label(fields: &Fields) -> FieldResult<()> {
    let stated = fields.integer("num_labels", 0..=1 << 31)?;
    let listed = match fields.get("id2label") {
        None => None,
        Some(Value::Object(labels)) => Some(labels.len()),
        Some(found) => return Err(fields.wrong("id2label", "an object", found)),
    };
    match (stated, listed) {
        (Some(stated), Some(listed)) if stated != listed => {
            Err(format!("`num_labels` is {stated}, but `id2label` lists {listed}; expected 1 label in both"))
        }
        (Some(1), _) | (None, Some(1)) => Ok(()),
        (Some(found), _) => Err(format!("`num_labels`: expected 1 label, found {found}")),
        (None, Some(found)) => Err(format!("`id2label`: expected 1 label, found {found}")),
        (None, None) => Ok(()),
    }
}

/// Token ids of a list, and what of it is no id of the vocabulary. `transformers` warns of the latter and goes on.
#[derive(Debug, Default)]
pub(super) struct Ids {
    pub ids: Vec<u32>,
    pub dropped: Vec<Value>,
}

fn eos_token_ids(fields: &Fields, default: Option<u64>, vocab_size: usize) -> FieldResult<Ids> {
    let name = "eos_token_id";
    // A default beyond a small vocabulary is nobody's mistake.
    let default = default.filter(|&id| id < vocab_size as u64).map(Value::from);
    let value = fields.map.get(name).or(default.as_ref());
    token_ids_of(value, vocab_size).map_err(|(expected, found)| fields.wrong(name, &expected, &found))
}

/// An `eos_token_id`: a number, a list of them, or null. The error is what was expected and what was found.
pub(super) fn token_ids_of(value: Option<&Value>, vocab_size: usize) -> std::result::Result<Ids, (String, Value)> {
    let listed = match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(ids)) => &ids[..],
        Some(single) => std::slice::from_ref(single),
    };
    let mut out = Ids::default();
    for value in listed {
        match (value.as_u64(), value.as_i64()) {
            (Some(id), _) if id < vocab_size as u64 => out.ids.push(id as u32),
            (Some(_), _) | (_, Some(_)) => out.dropped.push(value.clone()),
            (None, None) => return Err(("token ids".to_string(), value.clone())),
        }
    }
    Ok(out)
}

/// The note of an id that was left out.
pub(super) fn dropped_id(file: &str, field: &str, id: &Value, vocab_size: usize) -> String {
    format!("{file}: `{field}` {id} is left out: it is no id of the vocabulary, which has {vocab_size}")
}

fn pad_token_id(fields: &Fields, notes: &mut Vec<String>) -> FieldResult<Option<u32>> {
    let name = "pad_token_id";
    match fields.get(name).and_then(Value::as_i64) {
        Some(negative @ ..0) => {
            notes.push(format!("{NAME}: `{name}` {negative} is no id, which stands for none"));
            Ok(None)
        }
        _ => Ok(fields.integer(name, TOKEN_ID)?.map(|id| id as u32)),
    }
}

/// The rotation, of `rope_parameters` or of the older `rope_scaling`, which counts where both say something. A base inside of
/// them counts, whatever stands outside.
fn rope(fields: &Fields, max_positions: usize) -> FieldResult<Rope> {
    let outer = theta(fields)?;
    let outer_length = fields.integer("original_max_position_embeddings", POSITIONS)?;
    let of = |object: &Fields| -> FieldResult<Rope> {
        whole_rotation(object)?;
        let mut llama3 = rope_type(object, max_positions)?;
        if let (Some(outer), Some(llama3)) = (outer_length, &mut llama3) {
            if object.get("original_max_position_embeddings").is_some()
                && outer != llama3.original_max_position_embeddings
            {
                let inner = llama3.original_max_position_embeddings;
                return Err(format!(
                    "`original_max_position_embeddings` is {outer}, but {inner} in `{}`",
                    object.prefix.trim_end_matches('.')
                ));
            }
            llama3.original_max_position_embeddings = outer;
        }
        Ok(Rope { theta: theta(object)?.or(outer).unwrap_or(ROPE_THETA), llama3 })
    };
    let scaling = fields.object("rope_scaling")?.filter(|scaling| !scaling.map.is_empty());
    match (scaling, fields.object("rope_parameters")?) {
        (None, None) => Ok(Rope { theta: outer.unwrap_or(ROPE_THETA), llama3: None }),
        (Some(object), None) | (None, Some(object)) => of(&object),
        (Some(scaling), Some(parameters)) => {
            let rope = of(&scaling)?;
            match of(&parameters)? == rope {
                true => Ok(rope),
                false => Err("`rope_scaling` and `rope_parameters` contradict each other".into()),
            }
        }
    }
}

fn theta(fields: &Fields) -> FieldResult<Option<f64>> {
    fields.number("rope_theta", "a finite number above 0", |theta| theta > 0.0)
}

/// Resolves `rope_scaling` or `rope_parameters`; the older spelling of `rope_type` is `type`.
fn rope_type(fields: &Fields, max_positions: usize) -> FieldResult<Option<Llama3Scaling>> {
    let text = |name| match fields.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(found) => Err(fields.wrong(name, "a name", found)),
    };
    let name = match (text("rope_type")?, text("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(format!("`{0}rope_type` is {new:?}, but `{0}type` is {old:?}", fields.prefix));
        }
        (new, old) => new.or(old),
    };
    match name {
        Some("default") => Ok(None),
        Some("llama3") => llama3(fields, max_positions).map(Some),
        // Positions divided by 1.
        Some("linear") if fields.get("factor").and_then(Value::as_f64) == Some(1.0) => Ok(None),
        Some(found) => Err(format!(
            "`{}rope_type`: expected \"default\" or \"llama3\", found {found:?}, which is not supported",
            fields.prefix
        )),
        None => match fields.map.keys().find(|key| *key != "rope_theta" && fields.get(key).is_some()) {
            Some(key) if fields.get(key).is_some_and(Value::is_object) => Err(format!(
                "`{0}rope_type` is missing beside `{0}{key}`: rotations of their own for each kind of layer are not supported",
                fields.prefix
            )),
            Some(key) => Err(format!("`{0}rope_type` is missing beside `{0}{key}`", fields.prefix)),
            None => Ok(None),
        },
    }
}

fn llama3(fields: &Fields, max_positions: usize) -> FieldResult<Llama3Scaling> {
    let positive = |name| {
        let number = fields.number(name, "a finite number above 0", |factor| factor > 0.0)?;
        number.ok_or_else(|| fields.missing(name))
    };
    let scaling = Llama3Scaling {
        factor: fields
            .number("factor", "a finite number of at least 1", |factor| factor >= 1.0)?
            .ok_or_else(|| fields.missing("factor"))?,
        low_freq_factor: positive("low_freq_factor")?,
        high_freq_factor: positive("high_freq_factor")?,
        original_max_position_embeddings: fields
            .integer("original_max_position_embeddings", POSITIONS)?
            .unwrap_or(max_positions),
    };
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        return Err(format!(
            "`{0}high_freq_factor`: expected more than `{0}low_freq_factor` ({1}), found {2}",
            fields.prefix, scaling.low_freq_factor, scaling.high_freq_factor
        ));
    }
    Ok(scaling)
}

/// Which layers have a sliding window. Qwen configs name one that is off unless `use_sliding_window` is true, and that
/// begins at a layer; newer ones list the kind of every layer. Llama has none, whatever its config says.
fn windows(fields: &Fields, family: Family, num_layers: usize) -> FieldResult<Vec<Option<usize>>> {
    let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    let on = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => fields.flag("use_sliding_window", false)?,
    };
    let window = match fields.map.get("sliding_window") {
        _ if !on => None,
        // Null is none, and absence is the default.
        Some(_) => fields.integer("sliding_window", WINDOW)?,
        None => Some(family.defaults().sliding_window),
    };
    let listed = match fields.get("layer_types") {
        None => None,
        Some(Value::Array(kinds)) if kinds.len() == num_layers => Some(kinds),
        Some(Value::Array(kinds)) => {
            return Err(format!(
                "`layer_types`: expected {num_layers} entries, one for each layer, found {}",
                kinds.len()
            ));
        }
        Some(found) => return Err(fields.wrong("layer_types", "a list", found)),
    };
    let Some(kinds) = listed else {
        let first = match window {
            Some(_) if qwen => fields.or("max_window_layers", 0..=1 << 31, MAX_WINDOW_LAYERS)?,
            _ => 0,
        };
        return Ok((0..num_layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    let resolve = |(layer, kind): (usize, &Value)| match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => Err(format!(
            "`layer_types`: layer {layer} is \"sliding_attention\", but no `sliding_window` is switched on"
        )),
        _ => Err(fields.wrong("layer_types", "\"full_attention\" or \"sliding_attention\"", kind)),
    };
    let windows: Vec<_> = kinds.iter().enumerate().map(resolve).collect::<FieldResult<_>>()?;
    // The other families know one kind of layer only.
    if !qwen && windows.iter().any(|&found| found != window) {
        return Err(format!(
            "`layer_types` and `sliding_window` contradict each other; all layers of {} are alike",
            family.name()
        ));
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let llama3 = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let scaled = Rope { theta: 500_000.0, llama3: Some(llama3) }.frequencies(128);
        let plain = Rope { theta: 500_000.0, llama3: None }.frequencies(128);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| *s < *p && *s > p / 8.0), "some lie between");
    }
}
