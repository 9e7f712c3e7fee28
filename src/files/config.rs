//! `config.json` of a Hugging Face directory, resolved and checked.
//!
//! The file is untrusted. Every field that changes the arithmetic is either understood or refused by name, every size is
//! held to a limit before anything is allocated from it, and a field that contradicts another is an error rather than a
//! guess. Defaults are those of the `transformers` library; fields that it ignores for a family are ignored here as well.

use crate::files::checkpoint::Files;
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
    /// `eos_token_id` of this file; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// `pad_token_id` of this file.
    pub pad_token_id: Option<u32>,
}

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
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// There is no such file, or as [`parse`](ModelConfig::parse).
    pub fn load(files: &Files) -> Result<Self> {
        let path = files.path(NAME);
        let text = files.read_text(NAME)?;
        Self::parse(&text.ok_or_else(|| Error::file(&path, "no such file"))?, &path)
    }

    /// Reads the text of a `config.json`. `path` is used in messages only.
    ///
    /// # Errors
    /// The file is not JSON, lacks a field, contradicts itself, names an unsupported architecture, rope type or label
    /// count, or a size outside sane limits.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let map: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| Error::file(path, format!("expected a JSON object: {e}")))?;
        resolve(&Fields { map: &map, prefix: "" }).map_err(|message| Error::file(path, message))
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
            ModelKind::Reward => hidden as u64,
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

/// A message without the file's name, which `parse` puts before it.
type Checked<T> = std::result::Result<T, String>;

fn resolve(fields: &Fields) -> Checked<ModelConfig> {
    let (family, kind) = architecture(fields)?;
    refuse_unsupported(fields)?;
    if kind == ModelKind::Reward {
        check_one_label(fields)?;
    }

    let hidden_size = fields.required("hidden_size", HIDDEN)?;
    let num_layers = fields.required("num_hidden_layers", LAYERS)?;
    let num_heads = fields.required("num_attention_heads", HEADS)?;
    let num_kv_heads = fields.integer("num_key_value_heads", HEADS)?.unwrap_or(num_heads);
    if !num_heads.is_multiple_of(num_kv_heads) {
        return Err(format!(
            "`num_key_value_heads`: expected a divisor of `num_attention_heads` ({num_heads}), found {num_kv_heads}"
        ));
    }
    let head_dim = match fields.integer("head_dim", HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
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
    Ok(ModelConfig {
        family,
        kind,
        hidden_size,
        intermediate_size: fields.required("intermediate_size", INTERMEDIATE)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: fields.required("vocab_size", VOCAB)?,
        max_position_embeddings: fields.required("max_position_embeddings", POSITIONS)?,
        rms_norm_eps: fields
            .number("rms_norm_eps", "above 0 and below 1", |eps| eps > 0.0 && eps < 1.0)?
            .ok_or_else(|| fields.missing("rms_norm_eps"))?,
        rope: rope(fields)?,
        windows: windows(fields, family, num_layers)?,
        qkv_bias,
        o_bias,
        mlp_bias: family == Family::Llama && bias("mlp_bias")?,
        qk_norm: family == Family::Qwen3,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        eos_token_ids: token_ids(fields, "eos_token_id")?,
        pad_token_id: fields.integer("pad_token_id", TOKEN_ID)?.map(|id| id as u32),
    })
}

fn architecture(fields: &Fields) -> Checked<(Family, ModelKind)> {
    let supported = || {
        let names = Family::ALL.map(Family::name).join(", ");
        format!("expected one of {{{names}}}ForCausalLM or {{{names}}}ForSequenceClassification")
    };
    let listed = match fields.get("architectures") {
        Some(Value::Array(listed)) => listed.as_slice(),
        None => {
            let model_type = fields.get("model_type").map_or("none".into(), show);
            return Err(format!(
                "`architectures` is missing, and `model_type` ({model_type}) does not say which head the model has; {}",
                supported()
            ));
        }
        Some(found) => return Err(fields.wrong("architectures", "a list with one name", found)),
    };
    let [Value::String(name)] = listed else {
        return Err(fields.wrong("architectures", "a list with one name", &Value::Array(listed.to_vec())));
    };
    let family_and_kind = Family::ALL.into_iter().find_map(|family| {
        let kind = match name.strip_prefix(family.name())? {
            "ForCausalLM" => ModelKind::CausalLm,
            "ForSequenceClassification" => ModelKind::Reward,
            _ => return None,
        };
        Some((family, kind))
    });
    let Some((family, kind)) = family_and_kind else {
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
    let expected = family.name().to_lowercase();
    match fields.get("model_type") {
        Some(found) if *found != Value::String(expected.clone()) => {
            Err(fields.wrong("model_type", &format!("{expected:?} beside the architecture {name}"), found))
        }
        _ => Ok((family, kind)),
    }
}

/// Fields that would change the arithmetic in a way that no backend knows.
fn refuse_unsupported(fields: &Fields) -> Checked<()> {
    if let Some(quantization) = fields.get("quantization_config") {
        let method = quantization.get("quant_method").unwrap_or(quantization);
        return Err(format!("`quantization_config` ({}): expected unquantised BF16, F16 or F32 weights", show(method)));
    }
    match fields.get("hidden_act") {
        None => {}
        Some(Value::String(act)) if act == "silu" => {}
        Some(found) => return Err(fields.wrong("hidden_act", "\"silu\"", found)),
    }
    whole_rotation(fields)
}

fn whole_rotation(fields: &Fields) -> Checked<()> {
    let name = "partial_rotary_factor";
    match fields.get(name) {
        Some(found) if found.as_f64() != Some(1.0) => Err(fields.wrong(name, "1 (heads are rotated whole)", found)),
        _ => Ok(()),
    }
}

fn check_one_label(fields: &Fields) -> Checked<()> {
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
        (None, None) => {
            Err("`num_labels` and `id2label` are missing, which stands for 2 labels; expected 1 label".into())
        }
    }
}

fn token_ids(fields: &Fields, name: &str) -> Checked<Vec<u32>> {
    token_ids_of(fields.map.get(name)).map_err(|(expected, found)| fields.wrong(name, &expected, &found))
}

/// An `eos_token_id`: a number, a list of them, or null. The error is what was expected and what was found.
pub(crate) fn token_ids_of(value: Option<&Value>) -> std::result::Result<Vec<u32>, (String, Value)> {
    let expected = || format!("token ids from 0 to {}", TOKEN_ID.end());
    let id = |value: &Value| match value.as_u64() {
        Some(id) if TOKEN_ID.contains(&id) => Ok(id as u32),
        _ => Err((expected(), value.clone())),
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(single) => Ok(vec![id(single)?]),
    }
}

fn rope(fields: &Fields) -> Checked<Rope> {
    const DEFAULT_THETA: f64 = 10_000.0;
    let theta = theta(fields)?;
    let scaling = fields.object("rope_scaling")?;
    let parameters = fields.object("rope_parameters")?;
    let Some(parameters) = parameters else {
        let llama3 = scaling.map(|scaling| rope_type(&scaling)).transpose()?.flatten();
        return Ok(Rope { theta: theta.unwrap_or(DEFAULT_THETA), llama3 });
    };
    whole_rotation(&parameters)?;
    let nested = self::theta(&parameters)?;
    if let (Some(outer), Some(nested)) = (theta, nested)
        && outer != nested
    {
        return Err(format!("`rope_theta` is {outer}, but {nested} in `rope_parameters`"));
    }
    let llama3 = rope_type(&parameters)?;
    if let Some(scaling) = scaling
        && rope_type(&scaling)? != llama3
    {
        return Err("`rope_scaling` and `rope_parameters` contradict each other".into());
    }
    Ok(Rope { theta: nested.or(theta).unwrap_or(DEFAULT_THETA), llama3 })
}

fn theta(fields: &Fields) -> Checked<Option<f64>> {
    fields.number("rope_theta", "a finite number above 0", |theta| theta > 0.0)
}

/// Resolves `rope_scaling` or `rope_parameters`; the older spelling of `rope_type` is `type`.
fn rope_type(fields: &Fields) -> Checked<Option<Llama3Scaling>> {
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
        Some("llama3") => llama3(fields).map(Some),
        Some(found) => Err(format!(
            "`{}rope_type`: expected \"default\" or \"llama3\", found {found:?}, which is not supported",
            fields.prefix
        )),
        None => match fields.map.keys().find(|key| *key != "rope_theta" && fields.get(key).is_some()) {
            Some(key) => Err(format!("`{0}rope_type` is missing beside `{0}{key}`", fields.prefix)),
            None => Ok(None),
        },
    }
}

fn llama3(fields: &Fields) -> Checked<Llama3Scaling> {
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
        original_max_position_embeddings: fields.required("original_max_position_embeddings", POSITIONS)?,
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
fn windows(fields: &Fields, family: Family, num_layers: usize) -> Checked<Vec<Option<usize>>> {
    let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    let on = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => fields.flag("use_sliding_window", false)?,
    };
    let window = if on { fields.integer("sliding_window", WINDOW)? } else { None };
    if qwen && on && window.is_none() && !fields.map.contains_key("sliding_window") {
        return Err(fields.missing("sliding_window"));
    }
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
            Some(_) if qwen => fields.required("max_window_layers", 0..=1 << 31)?,
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
    let windows: Vec<_> = kinds.iter().enumerate().map(resolve).collect::<Checked<_>>()?;
    // The other families know one kind of layer only.
    if !qwen && windows.iter().any(|&found| found != window) {
        return Err(format!(
            "`layer_types` and `sliding_window` contradict each other; all layers of {} are alike",
            family.name()
        ));
    }
    Ok(windows)
}

/// Typed access to the fields of a JSON object, with messages that name the field. Null is the same as absent.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Of the field's name in messages: the enclosing object.
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn missing(&self, name: &str) -> String {
        format!("`{}{name}` is missing", self.prefix)
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> String {
        format!("`{}{name}`: expected {expected}, found {}", self.prefix, show(found))
    }

    fn integer(&self, name: &str, range: RangeInclusive<u64>) -> Checked<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(integer) if range.contains(&integer) => Ok(Some(integer as usize)),
            _ => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &expected, value))
            }
        }
    }

    fn required(&self, name: &str, range: RangeInclusive<u64>) -> Checked<usize> {
        self.integer(name, range)?.ok_or_else(|| self.missing(name))
    }

    fn number(&self, name: &str, expected: &str, ok: fn(f64) -> bool) -> Checked<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number.is_finite() && ok(number) => Ok(Some(number)),
            _ => Err(self.wrong(name, expected, value)),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Checked<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(found) => Err(self.wrong(name, "true or false", found)),
        }
    }

    fn object(&self, name: &'static str) -> Checked<Option<Fields<'a>>> {
        let prefix = match name {
            "rope_scaling" => "rope_scaling.",
            _ => "rope_parameters.",
        };
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix })),
            Some(found) => Err(self.wrong(name, "an object", found)),
        }
    }
}

/// A value in a message, cut short if it is long.
fn show(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
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
