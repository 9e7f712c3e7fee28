//! A decoder's weights, looked up by their Hugging Face names and kept where they are stored.

use super::rounding::Rounding;
use super::rows::StoredRows;
use crate::Result;
use crate::dtype::DType;
use crate::dtype::HalfType;
use crate::files::checkpoint::{Bytes, Checkpoint};
use crate::files::config::{ModelConfig, ModelKind};
use crate::files::tensors::{EMBEDDING, LM_HEAD, SCORE, SCORE_BIAS};
use std::sync::Arc;

/// Where a matrix lies.
#[derive(Clone, Debug)]
enum Data {
    /// In its file.
    Stored(Bytes),
    /// Rounded to a simulated type that is not the stored one.
    Rounded(Arc<[u8]>),
}

/// A stored matrix, `[rows, cols]`.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    dtype: DType,
    data: Data,
    pub rows: usize,
    pub cols: usize,
}

impl Matrix {
    fn load(checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize, rounding: Rounding) -> Result<Self> {
        let (dtype, bytes) = checkpoint.load(name, &[rows, cols])?;
        let stored = Matrix { dtype, data: Data::Stored(bytes), rows, cols };
        let Rounding { storage: Some(storage), .. } = rounding else { return Ok(stored) };
        let simulated = match storage {
            HalfType::Bf16 => DType::Bf16,
            HalfType::F16 => DType::F16,
        };
        if simulated == dtype {
            return Ok(stored);
        }
        let mut row = vec![0.0; cols];
        let mut data = Vec::with_capacity(rows * cols * 2);
        for index in 0..rows {
            stored.view().row_to(index, &mut row);
            data.extend(row.iter().flat_map(|&value| storage.round(value).to_le_bytes()));
        }
        Ok(Matrix { dtype: simulated, data: Data::Rounded(data.into()), rows, cols })
    }

    /// A matrix of its own bytes.
    #[cfg(test)]
    pub fn stored(dtype: DType, data: Vec<u8>, rows: usize, cols: usize) -> Self {
        Matrix { dtype, data: Data::Rounded(data.into()), rows, cols }
    }

    fn bytes(&self) -> usize {
        self.rows.saturating_mul(self.cols).saturating_mul(self.dtype.size())
    }

    pub fn view(&self) -> StoredRows<'_> {
        let data: &[u8] = match &self.data {
            Data::Stored(bytes) => bytes,
            Data::Rounded(bytes) => bytes,
        };
        StoredRows::stored(self.dtype, data, self.rows, self.cols)
    }
}

/// `y = x w^T + b`.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Matrix,         // [out, in]
    pub bias: Option<Vec<f32>>, // [out]
}

/// One decoder layer. `d` hidden, `h` query heads, `kv` key/value heads of size `e`, `f` MLP width.
#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: Vec<f32>, // [d]
    pub q: Linear,                // [h e, d]
    pub k: Linear,                // [kv e, d]
    pub v: Linear,                // [kv e, d]
    pub o: Linear,                // [d, h e]
    pub q_norm: Option<Vec<f32>>, // [e]
    pub k_norm: Option<Vec<f32>>, // [e]
    pub mlp_norm: Vec<f32>,       // [d]
    pub gate: Linear,             // [f, d]
    pub up: Linear,               // [f, d]
    pub down: Linear,             // [d, f]
}

/// A decoder with its head.
#[derive(Debug)]
pub(super) struct Weights {
    pub embedding: Matrix, // [vocab, d]
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f32>, // [d]
    /// Language-model head `[vocab, d]`, or score head `[1, d]`.
    pub head: Matrix,
    /// What is added to a score.
    pub score_bias: Option<f32>,
}

impl Weights {
    pub fn load(config: &ModelConfig, checkpoint: &Checkpoint, rounding: Rounding) -> Result<Self> {
        let d = config.hidden_size;
        let (qd, kvd, f) =
            (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.intermediate_size);
        let vector = |name: &str, len: usize| -> Result<Vec<f32>> {
            let (dtype, bytes) = checkpoint.load(name, &[len])?;
            let mut out = vec![0.0; len];
            StoredRows::stored(dtype, &bytes, 1, len).row_to(0, &mut out);
            Ok(rounding.of(out))
        };
        let linear = |name: String, out: usize, input: usize, bias: bool| -> Result<Linear> {
            let weight = Matrix::load(checkpoint, &format!("{name}.weight"), out, input, rounding)?;
            let bias = if bias { Some(vector(&format!("{name}.bias"), out)?) } else { None };
            Ok(Linear { weight, bias })
        };
        let mut layers = Vec::new();
        for i in 0..config.num_layers {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            let head_norm = |part: &str| match config.qk_norm {
                true => vector(&at(part), config.head_dim).map(Some),
                false => Ok(None),
            };
            layers.push(Layer {
                attention_norm: vector(&at("input_layernorm.weight"), d)?,
                q: linear(at("self_attn.q_proj"), qd, d, config.qkv_bias)?,
                k: linear(at("self_attn.k_proj"), kvd, d, config.qkv_bias)?,
                v: linear(at("self_attn.v_proj"), kvd, d, config.qkv_bias)?,
                o: linear(at("self_attn.o_proj"), d, qd, config.o_bias)?,
                q_norm: head_norm("self_attn.q_norm.weight")?,
                k_norm: head_norm("self_attn.k_norm.weight")?,
                mlp_norm: vector(&at("post_attention_layernorm.weight"), d)?,
                gate: linear(at("mlp.gate_proj"), f, d, config.mlp_bias)?,
                up: linear(at("mlp.up_proj"), f, d, config.mlp_bias)?,
                down: linear(at("mlp.down_proj"), d, f, config.mlp_bias)?,
            });
        }
        let embedding = Matrix::load(checkpoint, EMBEDDING, config.vocab_size, d, rounding)?;
        let head = match config.kind {
            ModelKind::Reward => Matrix::load(checkpoint, SCORE, 1, d, rounding)?,
            ModelKind::CausalLm if config.tie_word_embeddings => embedding.clone(),
            ModelKind::CausalLm => Matrix::load(checkpoint, LM_HEAD, config.vocab_size, d, rounding)?,
        };
        // Not rounded where a device is simulated: the device adds it in f32.
        let score_bias = if config.score_bias { Some(checkpoint.number(SCORE_BIAS)?) } else { None };
        Ok(Weights { embedding, layers, final_norm: vector("model.norm.weight", d)?, head, score_bias })
    }

    /// Bytes of the matrices that every step reads.
    pub fn bytes(&self) -> usize {
        let of = |layer: &Layer| {
            let Layer { q, k, v, o, gate, up, down, .. } = layer;
            [q, k, v, o, gate, up, down].iter().map(|linear| linear.weight.bytes()).sum::<usize>()
        };
        self.layers.iter().map(of).sum::<usize>() + self.head.bytes()
    }
}
