//! What a pass moves and computes at least, from a model's shape alone.
//!
//! Weights and keys and values are in 16 bits. Bytes are those of weights, of keys and values, and of logits in f32; rows of
//! activations are left out, which are small beside them wherever bytes are the limit. Operations are two per product of weights
//! and of attention.

use crate::files::config::{ModelConfig, ModelKind};

/// Bytes and floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Bytes through memory.
    pub bytes: f64,
    /// Operations.
    pub flops: f64,
}

/// What a card or a processor can do.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Roofline {
    /// Bytes a second.
    pub bytes: f64,
    /// Floating-point operations a second.
    pub flops: f64,
}

impl Roofline {
    /// Seconds that a cost takes at least.
    pub fn seconds(&self, cost: Cost) -> f64 {
        (cost.bytes / self.bytes).max(cost.flops / self.flops)
    }
}

/// Weights of the layers, in elements.
fn layers(config: &ModelConfig) -> f64 {
    let (d, f) = (config.hidden_size as f64, config.intermediate_size as f64);
    let (q, kv) = ((config.num_heads * config.head_dim) as f64, (config.num_kv_heads * config.head_dim) as f64);
    config.num_layers as f64 * (d * (2.0 * q + 2.0 * kv) + 3.0 * d * f)
}

/// Weights of the head, in elements.
fn head(config: &ModelConfig) -> f64 {
    let rows = if config.kind == ModelKind::Reward { 1 } else { config.vocab_size };
    (rows * config.hidden_size) as f64
}

/// Bytes of the keys and values of one position in all layers.
pub fn kv_bytes(config: &ModelConfig) -> f64 {
    (2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim) as f64
}

/// Operations of attention of one query over one key in all layers.
fn attention(config: &ModelConfig) -> f64 {
    (4 * config.num_layers * config.num_heads * config.head_dim) as f64
}

/// One token of each of `rows` sequences of `context` positions, `shared` of which they have in common.
pub fn decode(config: &ModelConfig, rows: usize, context: usize, shared: usize) -> Cost {
    let rows = rows as f64;
    let seen = shared as f64 + rows * (context - shared.min(context)) as f64;
    Cost {
        // Logits are written, and read again by their statistics.
        bytes: 2.0 * (layers(config) + head(config)) + seen * kv_bytes(config) + rows * 8.0 * config.vocab_size as f64,
        flops: rows * (2.0 * (layers(config) + head(config)) + context as f64 * attention(config)),
    }
}

/// A prompt of some tokens, and the row behind it.
pub fn prefill(config: &ModelConfig, tokens: usize) -> Cost {
    let n = tokens as f64;
    Cost {
        bytes: 2.0 * (layers(config) + head(config)) + n * kv_bytes(config),
        flops: 2.0 * (n * layers(config) + head(config)) + n * (n + 1.0) / 2.0 * attention(config),
    }
}

/// Several prompts of the same length together, which share one reading of the weights.
pub fn prefills(config: &ModelConfig, prompts: usize, tokens: usize) -> Cost {
    let (one, n) = (prefill(config, tokens), prompts as f64);
    Cost { bytes: one.bytes + (n - 1.0) * tokens as f64 * kv_bytes(config), flops: n * one.flops }
}

/// Segments of some tokens behind a prefix that they share, scored.
pub fn score(config: &ModelConfig, segments: usize, tokens: usize, prefix: usize) -> Cost {
    let n = (segments * tokens) as f64;
    let seen = n * prefix as f64 + n * (tokens as f64 + 1.0) / 2.0;
    Cost {
        bytes: 2.0 * layers(config) + (prefix as f64 + n) * kv_bytes(config),
        flops: 2.0 * n * layers(config) + seen * attention(config),
    }
}

/// The same, and differentiated: every weight once more; attention's backward pass against the prefix has three products (scores,
/// `dp`, `dq`) for the forward pass's two, and two more against the segment's own keys.
pub fn gradient(config: &ModelConfig, segments: usize, tokens: usize, prefix: usize) -> Cost {
    let forward = score(config, segments, tokens, prefix);
    let n = (segments * tokens) as f64;
    let own = n * (tokens as f64 + 1.0) / 2.0;
    Cost {
        bytes: 2.0 * forward.bytes,
        flops: forward.flops + 2.0 * n * layers(config) + (1.5 * n * prefix as f64 + 2.5 * own) * attention(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic;

    /// The design's figures for Llama-3.1-8B on an H200: 4.3 TB/s, 790 TFLOP/s.
    #[test]
    fn published_limits() {
        let [policy, reward] = synthetic::pair("llama-3.1-8b").unwrap();
        let h200 = Roofline { bytes: 4.3e12, flops: 790e12 };
        let ms = |cost| 1e3 * h200.seconds(cost);
        let near = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 0.03, "{found} instead of {expected}");
        };
        near(ms(decode(&policy, 1, 1024, 0)), 3.52);
        near(ms(prefill(&policy, 2048)), 37.6);
        near(ms(gradient(&reward, 1, 16, 1024)), 6.55);
        near(ms(gradient(&reward, 8, 16, 1024)), 6.55);
        near(ms(gradient(&reward, 25, 16, 1024)), 14.8);
        let small = synthetic::pair("llama-3.2-3b").unwrap();
        near(ms(decode(&small[0], 1, 1024, 0)), 1.52);
    }
}
