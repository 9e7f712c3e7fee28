//! Small asks to any backend.

use crate::random::XorShift;
use ggro::model::{Gradient, GradientSpan, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};

/// A pseudo-random text of `len` ids below `vocab`.
pub fn text(len: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut random = XorShift::new(seed);
    (0..len).map(|_| random.below(vocab) as u32).collect()
}

pub fn policy_span(seq: SeqId, start: usize, ids: &[u32]) -> PolicySpan<'_> {
    PolicySpan { span: Span { seq, start, ids }, floor: 1e-9, top_k: TopK::Take(7), before: &[] }
}

/// Appends `ids` to the policy sequence in chunks and returns the last row with all its logits.
pub fn prefill(backend: &mut ModelPair, seq: SeqId, ids: &[u32], chunk: usize) -> (PolicyRow, Vec<u32>) {
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
pub fn gradient(backend: &mut ModelPair, ids: &[u32], slot: usize) -> Gradient {
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
