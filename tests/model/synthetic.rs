//! Random little models of any shape, written as Hugging Face directories.

use ggro::files::checkpoint::{Checkpoint, Files};
use ggro::files::config::ModelConfig;
use ggro::files::pair::Parts;
use ggro::model::ModelPair;
use ggro::model::cpu::{self, LoadOptions};
use ggro_testkit::random::XorShift;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What varies between the shapes under test.
#[derive(Clone, Debug)]
pub struct Shape {
    pub model_type: &'static str,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub hidden: usize,
    pub window: Option<usize>,
    pub attention_bias: bool,
    pub mlp_bias: bool,
}

pub const VOCAB: usize = 50;
const INTERMEDIATE: usize = 52;

/// Normal-ish numbers, deterministic.
pub struct Random(XorShift);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(XorShift::new(seed))
    }

    pub fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            sum += (self.0.next_u64() >> 40) as f32 / (1 << 24) as f32 - 0.5;
        }
        sum * 1.7
    }
}

pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Weights of a reward model or policy of this shape.
pub fn weights(shape: &Shape, reward: bool, seed: u64) -> Tensors {
    let mut random = Random::new(seed);
    let mut out = Tensors::new();
    let mut tensor = |name: String, dims: &[usize], scale: f32, offset: f32| {
        let count = dims.iter().product();
        let values = (0..count).map(|_| offset + scale * random.next()).collect();
        out.insert(name, (dims.to_vec(), values));
    };
    let (d, qd, kvd, f) = (shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, INTERMEDIATE);
    let qwen2 = shape.model_type == "qwen2";
    tensor("model.embed_tokens.weight".into(), &[VOCAB, d], 0.7, 0.0);
    for l in 0..shape.layers {
        let at = |part: &str| format!("model.layers.{l}.{part}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensor(at(&format!("{norm}.weight")), &[d], 0.2, 1.0);
        }
        let linears = [
            ("self_attn.q_proj", qd, d, shape.attention_bias || qwen2),
            ("self_attn.k_proj", kvd, d, shape.attention_bias || qwen2),
            ("self_attn.v_proj", kvd, d, shape.attention_bias || qwen2),
            ("self_attn.o_proj", d, qd, shape.attention_bias),
            ("mlp.gate_proj", f, d, shape.mlp_bias),
            ("mlp.up_proj", f, d, shape.mlp_bias),
            ("mlp.down_proj", d, f, shape.mlp_bias),
        ];
        for (name, rows, cols, bias) in linears {
            tensor(at(&format!("{name}.weight")), &[rows, cols], 1.0 / (cols as f32).sqrt(), 0.0);
            if bias {
                tensor(at(&format!("{name}.bias")), &[rows], 0.3, 0.0);
            }
        }
        if shape.model_type == "qwen3" {
            for norm in ["q_norm", "k_norm"] {
                tensor(at(&format!("self_attn.{norm}.weight")), &[shape.head_dim], 0.2, 1.0);
            }
        }
    }
    tensor("model.norm.weight".into(), &[d], 0.2, 1.0);
    if reward {
        tensor("score.weight".into(), &[1, d], 0.5, 0.0);
    } else {
        tensor("lm_head.weight".into(), &[VOCAB, d], 0.3, 0.0);
    }
    out
}

fn config(shape: &Shape, reward: bool) -> Value {
    let family = match shape.model_type {
        "llama" => "Llama",
        "mistral" => "Mistral",
        "qwen2" => "Qwen2",
        _ => "Qwen3",
    };
    let mut config = json!({
        "architectures": [format!("{family}For{}", if reward { "SequenceClassification" } else { "CausalLM" })],
        "model_type": shape.model_type, "hidden_act": "silu", "hidden_size": shape.hidden,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": VOCAB,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "attention_bias": shape.attention_bias, "mlp_bias": shape.mlp_bias, "sliding_window": shape.window,
    });
    if reward {
        config["num_labels"] = 1.into();
    }
    config
}

fn write(dir: &Path, config: &Value, tensors: &Tensors) -> Files {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (dims, values))| (name, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, dims, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.to_vec(), data).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    Files::Dir(dir.to_path_buf())
}

/// Writes a policy and a reward model of one shape, with these reward weights, and loads them.
pub fn load(shape: &Shape, reward: &Tensors) -> ModelPair {
    load_with(shape, reward, &LoadOptions::default())
}

/// The same, run in some other way.
pub fn load_with(shape: &Shape, reward: &Tensors, options: &LoadOptions) -> ModelPair {
    let dir = tempfile::tempdir().unwrap();
    let policy = write(&dir.path().join("policy"), &config(shape, false), &weights(shape, false, 1));
    let reward = write(&dir.path().join("reward"), &config(shape, true), reward);
    let parts = [policy, reward].map(|files| (ModelConfig::load(&files).unwrap(), Checkpoint::open(&files).unwrap()));
    let parts = [(&parts[0].0, &parts[0].1), (&parts[1].0, &parts[1].1)];
    cpu::open(Parts::both(parts[0], parts[1]), options).unwrap()
}
