//! The sizes that kernels see: a model's own, and those padded with zeros.
//!
//! Widths are padded to tiles of 64 columns, heads to 32, 64 or 128. Weights of padded rows and columns are zero, so padded
//! activations are zero too: no kernel has a ragged inner loop, and no result changes. Means divide by the real size.

use crate::cuda::ops::attention;
use crate::cuda::ops::gemm::sm80::TILE_K;
use crate::error::{Error, Remedy, Result};
use crate::files::config::ModelConfig;

/// Head sizes that attention has kernels for.
pub const HEADS: [usize; 3] = [32, 64, 128];

/// A decoder's sizes, real and padded, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream, `d`.
    pub hidden: usize,
    /// `d` rounded up to 64: width of every row of residual stream, embedding and norm.
    pub hidden_padded: usize,
    /// Query heads, `h`.
    pub heads: usize,
    /// Key/value heads, `g`.
    pub kv_heads: usize,
    /// Size of a head, `e`.
    pub head: usize,
    /// The smallest of 32, 64 and 128 that holds a head, `ep`.
    pub head_padded: usize,
    /// Width of attention's output, `h ep`.
    pub attention: usize,
    /// `h ep` rounded up to 64: the row of attention's output in memory. Columns beyond `h ep` stay zero.
    pub attention_padded: usize,
    /// Width of a row of queries, keys and values, `(h + 2 g) ep`, in this order.
    pub qkv: usize,
    /// Query and key heads have norms.
    pub head_norms: bool,
    /// Width of the MLP, `f`.
    pub mlp: usize,
    /// `f` rounded up to 64. A row of gate and up has twice as many: gates first, or in turns of 8.
    pub mlp_padded: usize,
    /// Rows of the embedding, and of the language-model head.
    pub vocab: usize,
}

impl Sizes {
    /// The sizes of a model.
    ///
    /// # Errors
    /// Heads are larger than attention has kernels for.
    pub fn new(config: &ModelConfig) -> Result<Self> {
        let head = config.head_dim;
        let head_padded = HEADS.into_iter().find(|&padded| head <= padded).ok_or_else(|| {
            let most = HEADS[HEADS.len() - 1];
            Error::Unsupported {
                message: format!(
                    "the CUDA backend has kernels for heads of up to {most} dimensions, this model's have {head}"
                ),
                remedies: vec![Remedy::Cpu],
            }
        })?;
        let (heads, kv_heads) = (config.num_heads, config.num_kv_heads);
        let attention = heads * head_padded;
        Ok(Sizes {
            layers: config.num_layers,
            hidden: config.hidden_size,
            hidden_padded: config.hidden_size.next_multiple_of(TILE_K),
            heads,
            kv_heads,
            head,
            head_padded,
            attention,
            attention_padded: attention.next_multiple_of(TILE_K),
            qkv: (heads + 2 * kv_heads) * head_padded,
            head_norms: config.qk_norm,
            mlp: config.intermediate_size,
            mlp_padded: config.intermediate_size.next_multiple_of(TILE_K),
            vocab: config.vocab_size,
        })
    }

    /// Keys and values of one position in all layers, in elements.
    pub fn kv_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_padded
    }
}

/// Attention's heads and what they see.
pub(super) fn attention_shape(sizes: &Sizes, window: Option<usize>) -> attention::Shape {
    let Sizes { heads, kv_heads, head, head_padded, .. } = *sizes;
    attention::Shape { heads, kv_heads, head: head_padded, scale: 1.0 / (head as f32).sqrt(), window }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(hidden: usize, heads: usize, kv_heads: usize, head: usize, mlp: usize) -> ModelConfig {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {hidden},
            "intermediate_size": {mlp}, "num_hidden_layers": 3, "num_attention_heads": {heads}, "head_dim": {head},
            "num_key_value_heads": {kv_heads}, "vocab_size": 1000, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}}"#
        );
        ModelConfig::parse(&text, Path::new("config.json")).unwrap()
    }

    #[test]
    fn sizes_are_padded_to_tiles() {
        let sizes = Sizes::new(&config(72, 3, 1, 24, 100)).unwrap();
        assert_eq!((sizes.hidden_padded, sizes.head_padded, sizes.mlp_padded), (128, 32, 128));
        assert_eq!((sizes.attention, sizes.attention_padded, sizes.qkv), (96, 128, 160));
        assert_eq!(sizes.kv_per_token(), 2 * 3 * 32);
        let sizes = Sizes::new(&config(4096, 32, 8, 128, 14336)).unwrap();
        assert_eq!((sizes.hidden_padded, sizes.head_padded, sizes.mlp_padded), (4096, 128, 14336));
        assert_eq!((sizes.attention, sizes.attention_padded, sizes.qkv), (4096, 4096, 6144));
        assert_eq!(Sizes::new(&config(64, 2, 2, 34, 64)).unwrap().head_padded, 64);
        assert_eq!(Sizes::new(&config(64, 2, 2, 66, 64)).unwrap().head_padded, 128);
    }

    #[test]
    fn larger_heads_are_refused_by_name() {
        let error = Sizes::new(&config(512, 2, 2, 256, 64)).unwrap_err().to_string();
        assert!(error.contains("128") && error.contains("256") && error.contains("heads of up to"), "{error}");
    }
}
