//! What is asked of every backend, and the golden pairs to ask it about. The test binaries of the reference and of the
//! emulated device share this directory.

#![allow(dead_code, reason = "each binary takes what it needs")]

pub mod invariance;
pub mod lessons;

use ggro::dtype::HalfType;
use ggro::files::checkpoint::{Checkpoint, Files};
use ggro::files::config::ModelConfig;
use ggro::model::PolicyRows;
use ggro::model::cpu::{LoadOptions, Reference};
use ggro::model::{
    Backend, Gradient, GradientSpan, Logits, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK,
};
use std::path::PathBuf;

/// Fixtures with forward data.
pub const FORWARD_FIXTURES: [&str; 5] = ["llama-gqa", "llama-mha-tied", "qwen2", "qwen3", "mistral"];

/// Fixtures with traces.
pub const FIXTURES: [&str; 8] =
    ["llama-gqa", "llama-mha-tied", "qwen2", "qwen3", "mistral", "llama-twins", "llama-unaligned", "qwen2-sharded"];

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// Shapes and weights of a fixture's policy and reward model.
pub fn parts(name: &str) -> [(ModelConfig, Checkpoint); 2] {
    ["policy", "reward"].map(|part| {
        let files = Files::Dir(fixture(name).join(part));
        (ModelConfig::load(&files).unwrap(), Checkpoint::open(&files).unwrap())
    })
}

/// The reference, exact or simulating.
pub fn reference(name: &str, simulate: Option<HalfType>) -> Reference {
    let [policy, reward] = parts(name);
    let options = LoadOptions { simulate, ..LoadOptions::default() };
    Reference::assemble((&policy.0, &policy.1), (&reward.0, &reward.1), &options).unwrap()
}

/// A backend that also gives hidden states and logits of every position.
pub trait Rows: Backend {
    fn rows(&mut self, ids: &[u32]) -> PolicyRows;
}

impl Rows for Reference {
    fn rows(&mut self, ids: &[u32]) -> PolicyRows {
        self.policy_rows(ids).unwrap()
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
pub fn prefill(backend: &mut dyn Backend, seq: SeqId, ids: &[u32], chunk: usize) -> (PolicyRow, Vec<u32>) {
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
pub fn gradient(backend: &mut dyn Backend, ids: &[u32], slot: usize) -> Gradient {
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
