//! Models without files: published shapes with random weights, for figures that do not depend on what a model says.
//!
//! Weights are drawn from a seed, each tensor by its name ([`RandomFill`]), with deviations that keep a random decoder in the
//! range of a trained one: every product of a normed row has variance 1, what a layer adds to the residual stream shrinks
//! with the number of layers, and the language-model head spreads logits such that a row's entropy is some 1.5 nats
//! (for independent normal logits of deviation `s` over `V` ids it is `ln V - s^2 / 2`, as long as that is well above 0).

#[cfg(feature = "lab")]
pub mod folder;

use crate::files::config::{ModelConfig, ModelKind};
use crate::files::tensors::tensors;
use crate::rng::RandomFill;
use crate::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::path::Path;

/// Nats of an average row.
const ENTROPY: f64 = 1.5;

/// Names of the shapes.
pub const PRESETS: [&str; 5] = ["llama-3.1-8b", "llama-3.2-3b", "llama-3.2-1b", "qwen3-8b", "demo"];

/// `config.json` of a shape.
///
/// # Errors
/// There is no such shape; the message names those there are.
pub fn config_json(preset: &str, kind: ModelKind) -> Result<Value> {
    let llama = |hidden: u32, mlp: u32, layers: u32, heads: [u32; 3], tied: bool, factor: f64| {
        json!({
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
            "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": heads[2],
            "vocab_size": 128_256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": tied, "hidden_act": "silu", "eos_token_id": [128_001, 128_008, 128_009],
        })
    };
    let mut config = match preset {
        "llama-3.1-8b" => llama(4096, 14_336, 32, [32, 8, 128], false, 8.0),
        "llama-3.2-3b" => llama(3072, 8192, 28, [24, 8, 128], true, 32.0),
        "llama-3.2-1b" => llama(2048, 8192, 16, [32, 8, 64], true, 32.0),
        "qwen3-8b" => json!({
            "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
            "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
            "tie_word_embeddings": false, "hidden_act": "silu", "eos_token_id": 151_645,
        }),
        "demo" => json!({
            "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
            "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": 2,
        }),
        _ => return Err(Error::invalid(format!("no shape {preset}; there are {}", PRESETS.join(", ")))),
    };
    let family = if preset.starts_with("qwen3") { "Qwen3" } else { "Llama" };
    match kind {
        ModelKind::CausalLm => config["architectures"] = json!([format!("{family}ForCausalLM")]),
        ModelKind::Reward => {
            config["architectures"] = json!([format!("{family}ForSequenceClassification")]);
            config["num_labels"] = json!(1);
            config["tie_word_embeddings"] = json!(false);
        }
    }
    Ok(config)
}

/// Policy and reward model of a shape.
///
/// # Errors
/// As [`config_json`].
pub fn pair(preset: &str) -> Result<[ModelConfig; 2]> {
    let config = |kind| ModelConfig::parse(&config_json(preset, kind)?.to_string(), Path::new(preset));
    Ok([config(ModelKind::CausalLm)?, config(ModelKind::Reward)?])
}

/// A tensor whose numbers are drawn when they are asked for: those that a device draws from the same seed, in bf16.
pub struct Drawn {
    from: RandomFill,
    shape: Vec<usize>,
}

impl Drawn {
    /// The tensor of this Hugging Face name.
    pub fn new(config: &ModelConfig, seed: u64, name: &str, shape: Vec<usize>) -> Drawn {
        Drawn { from: draw(config, seed, name, shape.get(1).copied().unwrap_or(1)), shape }
    }

    /// Its bytes.
    pub fn bytes(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

impl ::safetensors::View for Drawn {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0u8; self.bytes()];
        bytes.par_chunks_mut(2 << 16).enumerate().for_each(|(part, bytes)| {
            for (index, out) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let element = self.from.element((part << 16) as u64 + index as u64);
                *out = half::bf16::from_f32(element).to_le_bytes();
            }
        });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes()
    }
}

/// `model.safetensors` of a shape, in bf16: the numbers that a device draws from the same seed.
///
/// # Errors
/// It cannot be put together.
pub fn safetensors(config: &ModelConfig, seed: u64) -> Result<Vec<u8>> {
    let drawn = tensors(config).into_iter().map(|(name, shape)| {
        let drawn = Drawn::new(config, seed, &name, shape);
        (name, drawn)
    });
    let made = ::safetensors::serialize(drawn.collect::<Vec<_>>(), None);
    made.map_err(|e| Error::Backend(format!("synthetic weights: {e}")))
}

/// What a tensor's elements are drawn from. `name` is its Hugging Face name, `inputs` the length of its rows.
pub fn draw(config: &ModelConfig, seed: u64, name: &str, inputs: usize) -> RandomFill {
    // FNV-1a: a tensor has its own numbers, whatever stands beside it.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let unit = 1.0 / (inputs as f64).sqrt();
    // Where the head is the embedding, a row's own token would win: what layers add has to drown it.
    let tied = config.kind == ModelKind::CausalLm && config.tie_word_embeddings;
    let added = if tied { 10.0 } else { 1.0 };
    let logits = (2.0 * ((config.vocab_size as f64).ln() - ENTROPY).max(0.5)).sqrt();
    let (mean, scale) = match name {
        _ if name.ends_with("norm.weight") => (1.0, 0.02),
        _ if name.ends_with(".bias") => (0.0, 0.05),
        "lm_head.weight" => (0.0, logits * unit),
        "model.embed_tokens.weight" if tied => (0.0, logits * unit),
        "model.embed_tokens.weight" => (0.0, 1.0),
        _ if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
            (0.0, added * unit / (2.0 * config.num_layers as f64).sqrt())
        }
        _ => (0.0, unit),
    };
    RandomFill { seed: seed ^ hash, mean: mean as f32, scale: scale as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_one_of_the_models_it_is_named_after() {
        let parameters =
            |preset| pair(preset).map(|[policy, reward]| (policy.num_parameters(), reward.num_parameters()));
        // As published: 8.03, 3.21, 1.24 and 8.19 billion.
        assert_eq!(parameters("llama-3.1-8b").unwrap().0, 8_030_261_248);
        assert_eq!(parameters("llama-3.2-3b").unwrap().0, 3_212_749_824);
        assert_eq!(parameters("llama-3.2-1b").unwrap().0, 1_235_814_400);
        assert_eq!(parameters("qwen3-8b").unwrap().0, 8_190_735_360);
        for preset in PRESETS {
            let (policy, reward) = parameters(preset).unwrap();
            assert!(policy > 0 && reward > 0, "{preset}");
        }
        let error = pair("llama").unwrap_err().to_string();
        assert!(error.contains("no shape llama; there are llama-3.1-8b, "), "{error}");
    }

    #[test]
    fn tensors_have_numbers_of_their_own() {
        let [policy, reward] = pair("demo").unwrap();
        let q = draw(&policy, 1, "model.layers.0.self_attn.q_proj.weight", 256);
        let other = draw(&policy, 1, "model.layers.1.self_attn.q_proj.weight", 256);
        assert!(q.seed != other.seed && q.scale == 1.0 / 16.0);
        assert_eq!(draw(&reward, 1, "model.embed_tokens.weight", 256).scale, 1.0);
        assert!(draw(&policy, 1, "model.norm.weight", 1).mean == 1.0);
    }
}
