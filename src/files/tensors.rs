//! Which tensors a decoder has, by the names that Hugging Face stores them under.

use super::config::{ModelConfig, ModelKind};

/// The input embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The language-model head.
pub const LM_HEAD: &str = "lm_head.weight";
/// The score head of a reward model.
pub const SCORE: &str = "score.weight";
/// What is added to a score, where a reward model has it.
pub const SCORE_BIAS: &str = "score.bias";

/// Names and shapes of a decoder's tensors, head included.
pub fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (d, f, e) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_heads * e, config.num_kv_heads * e);
    let mut all = vec![(EMBEDDING.to_string(), vec![config.vocab_size, d])];
    for layer in 0..config.num_layers {
        let mut push = |name: &str, shape: &[usize], bias: bool| {
            let at = format!("model.layers.{layer}.{name}");
            if bias {
                all.push((format!("{at}.bias"), vec![shape[0]]));
            }
            all.push((format!("{at}.weight"), shape.to_vec()));
        };
        push("input_layernorm", &[d], false);
        push("self_attn.q_proj", &[q, d], config.qkv_bias);
        push("self_attn.k_proj", &[kv, d], config.qkv_bias);
        push("self_attn.v_proj", &[kv, d], config.qkv_bias);
        push("self_attn.o_proj", &[d, q], config.o_bias);
        if config.qk_norm {
            push("self_attn.q_norm", &[e], false);
            push("self_attn.k_norm", &[e], false);
        }
        push("post_attention_layernorm", &[d], false);
        push("mlp.gate_proj", &[f, d], config.mlp_bias);
        push("mlp.up_proj", &[f, d], config.mlp_bias);
        push("mlp.down_proj", &[d, f], config.mlp_bias);
    }
    all.push(("model.norm.weight".to_string(), vec![d]));
    match config.kind {
        ModelKind::Reward => {
            all.push((SCORE.to_string(), vec![1, d]));
            if config.score_bias {
                all.push((SCORE_BIAS.to_string(), vec![1]));
            }
        }
        ModelKind::CausalLm if config.tie_word_embeddings => {}
        ModelKind::CausalLm => all.push((LM_HEAD.to_string(), vec![config.vocab_size, d])),
    }
    all
}
