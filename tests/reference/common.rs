//! Golden fixtures and small helpers.

use ggro::checkpoint::{Checkpoint, Files};
use ggro::config::ModelConfig;
use ggro::model::reference::{LoadOptions, Reference};
use ggro::model::{Backend, Gradient, GradientSpan, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};
use safetensors::SafeTensors;
use std::path::PathBuf;

pub const FORWARD_FIXTURES: [&str; 5] = ["llama-gqa", "llama-mha-tied", "qwen2", "qwen3", "mistral"];
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

pub fn load(name: &str) -> Reference {
    load_with(name, &LoadOptions::default())
}

pub fn load_with(name: &str, options: &LoadOptions) -> Reference {
    load_pair(name, name, options)
}

/// The policy of one fixture beside the reward model of another.
pub fn load_pair(policy: &str, reward: &str, options: &LoadOptions) -> Reference {
    let parts = [(policy, "policy"), (reward, "reward")].map(|(name, part)| {
        let files = Files::Dir(fixture(name).join(part));
        (ModelConfig::load(&files).unwrap(), Checkpoint::open(&files).unwrap())
    });
    Reference::assemble((&parts[0].0, &parts[0].1), (&parts[1].0, &parts[1].1), options).unwrap()
}

/// A safetensors file of golden numbers.
pub struct Numbers(Vec<u8>);

impl Numbers {
    pub fn open(fixture_name: &str, file: &str) -> Option<Self> {
        std::fs::read(fixture(fixture_name).join(file)).ok().map(Numbers)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.bytes(name).chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.bytes(name).chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }
}

/// A pseudo-random text of `len` ids below `vocab`.
pub fn text(len: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % vocab as u64) as u32
        })
        .collect()
}

pub fn policy_span(seq: SeqId, start: usize, ids: &[u32]) -> PolicySpan<'_> {
    PolicySpan { span: Span { seq, start, ids }, floor: 1e-9, top_k: TopK::Take(7) }
}

/// Appends `ids` to the policy sequence in chunks and returns the last row with all its logits.
pub fn prefill(backend: &mut Reference, seq: SeqId, ids: &[u32], chunk: usize) -> (PolicyRow, Vec<u32>) {
    let mut row = None;
    let mut start = backend.len(seq);
    for part in ids.chunks(chunk) {
        row = Some(backend.policy_step(&[policy_span(seq, start, part)]).unwrap().remove(0));
        start += part.len();
    }
    (row.unwrap(), bits(&backend.logits_row(seq).unwrap()))
}

pub fn gradient_span<'a>(seq: SeqId, start: usize, ids: &'a [u32], slot: usize) -> GradientSpan<'a> {
    let span = RewardSpan { span: Span { seq, start, ids }, also_at: &[] };
    GradientSpan { span, slot, candidates: &[3, 5, 8], rows: true }
}

/// Reward and gradient of `ids` behind nothing, from `slot` on.
pub fn gradient(backend: &mut Reference, ids: &[u32], slot: usize) -> Gradient {
    let seq = backend.create(Role::Reward).unwrap();
    let out = backend.reward_gradient(&[gradient_span(seq, 0, ids, slot)]).unwrap().remove(0);
    backend.release(seq);
    out
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

pub fn gradient_bits(g: &Gradient) -> Vec<u32> {
    bits(&[&[g.score.reward, g.norm], &g.score.also[..], &g.dots, &g.rows].concat())
}
