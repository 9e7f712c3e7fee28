//! The reward gradient: finite differences, and behind a cached prefix equal to the whole sequence's.

use crate::common::*;
use crate::synthetic::{Random, Shape, VOCAB, load as load_synthetic, weights};
use ggro::model::{RewardSpan, Role, Span};

#[test]
fn behind_a_cached_prefix_equals_the_whole_sequence() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        let d = backend.config(Role::Reward).unwrap().hidden_size;
        let ids = text(140, backend.config(Role::Reward).unwrap().vocab_size, 20);
        let whole = gradient(&mut backend, &ids, 0);
        for slot in [1, 20, 63, 64, 65, 120, 139] {
            // The prefix is forked from another sequence that went on differently.
            let origin = backend.create(Role::Reward).unwrap();
            let span = RewardSpan { span: Span { seq: origin, start: 0, ids: &ids }, also_at: &[] };
            backend.reward_score(&[span]).unwrap();
            let fork = backend.fork(origin, slot).unwrap();
            let before = backend.work();
            let part = backend.reward_gradient(&[gradient_span(fork, slot, &ids[slot..], slot)]).unwrap().remove(0);
            let work = backend.work() - before;
            assert_eq!((work.reward_forward, work.reward_backward), (140 - slot as u64, 140 - slot as u64));
            assert_eq!(part.score.reward.to_bits(), whole.score.reward.to_bits(), "{name} slot {slot}");
            let expected = &whole.rows[slot * d..];
            for (f, e) in part.rows.chunks_exact(d).zip(expected.chunks_exact(d)) {
                let size: f32 = e.iter().map(|v| v * v).sum::<f32>().sqrt();
                let error: f32 = f.iter().zip(e).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
                assert!(error <= 1e-5 * size.max(1e-6), "{name} slot {slot}: {error:e} of {size:e}");
            }
            backend.release(origin);
            backend.release(fork);
        }
    }
}

#[test]
fn slot_row_and_dots_belong_to_the_rows() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        let d = backend.config(Role::Reward).unwrap().hidden_size;
        let vocab = backend.config(Role::Reward).unwrap().vocab_size;
        let ids = text(30, vocab, 21);
        let all = gradient(&mut backend, &ids, 17);
        let seq = backend.create(Role::Reward).unwrap();
        let mut span = gradient_span(seq, 0, &ids, 17);
        span.rows = false;
        let slot_only = backend.reward_gradient(&[span]).unwrap().remove(0);
        assert!(slot_only.rows.is_empty());
        assert_eq!(bits(&slot_only.dots), bits(&all.dots), "{name}: computing one row only changes nothing in it");
        assert_eq!(slot_only.norm.to_bits(), all.norm.to_bits());
        let norm = all.rows[..d].iter().map(|&v| v as f64 * v as f64).sum::<f64>().sqrt();
        assert!((all.norm as f64 - norm).abs() <= 1e-6 * norm);
    }
}

/// The reward is only ever evaluated at embedding rows, so the difference quotient is taken between two rows made for it:
/// the current token's row moved a little along a direction, forwards and backwards.
#[test]
fn finite_differences_for_every_family_head_size_and_group() {
    let base = Shape {
        model_type: "llama",
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        layers: 2,
        hidden: 48,
        window: None,
        attention_bias: false,
        mlp_bias: false,
    };
    let shapes = [
        base.clone(),
        Shape { layers: 1, ..base.clone() },
        Shape { heads: 3, kv_heads: 3, head_dim: 32, ..base.clone() },
        Shape { heads: 3, kv_heads: 1, head_dim: 64, ..base.clone() },
        Shape { heads: 8, kv_heads: 2, head_dim: 18, hidden: 33, ..base.clone() },
        Shape { heads: 8, kv_heads: 1, head_dim: 128, layers: 1, ..base.clone() },
        Shape { attention_bias: true, mlp_bias: true, ..base.clone() },
        Shape { model_type: "mistral", window: Some(5), layers: 3, ..base.clone() },
        Shape { model_type: "qwen2", ..base.clone() },
        Shape { model_type: "qwen3", head_dim: 32, ..base.clone() },
    ];
    for (number, shape) in shapes.iter().enumerate() {
        for (len, slot) in [(1, 0), (9, 3), (75, 66), (75, 74), (12, 0)] {
            let mut random = Random::new(100 + number as u64);
            let mut tensors = weights(shape, true, 7);
            let ids: Vec<u32> = text(len, VOCAB - 2, number as u64);
            let d = shape.hidden;
            let direction: Vec<f32> = (0..d).map(|_| random.next()).collect();
            let step = 0.004;
            let rows = &mut tensors.get_mut("model.embed_tokens.weight").unwrap().1;
            let current = ids[slot] as usize * d;
            for (row, sign) in [(VOCAB - 2, 1.0), (VOCAB - 1, -1.0)] {
                for i in 0..d {
                    rows[row * d + i] = rows[current + i] + sign * step * direction[i];
                }
            }
            let mut backend = load_synthetic(shape, &tensors);
            let found = gradient(&mut backend, &ids, slot);
            let slope: f64 = found.rows[..d].iter().zip(&direction).map(|(&g, &v)| g as f64 * v as f64).sum();
            let mut moved = ids.clone();
            moved[slot] = VOCAB as u32 - 2;
            let up = gradient(&mut backend, &moved, slot).score.reward as f64;
            moved[slot] = VOCAB as u32 - 1;
            let down = gradient(&mut backend, &moved, slot).score.reward as f64;
            let quotient = (up - down) / (2.0 * step as f64);
            let size = found.norm as f64 * direction.iter().map(|&v| v as f64 * v as f64).sum::<f64>().sqrt();
            let error = (quotient - slope).abs();
            assert!(error < 2e-3 * size + 1e-4, "{shape:?}, {slot} of {len}: {quotient} against {slope}");
        }
    }
}

#[test]
fn a_gradient_one_window_away_is_zero() {
    // With one layer and a window of 5 the last position sees positions 5..=9 only.
    let shape = Shape {
        model_type: "mistral",
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        layers: 1,
        hidden: 32,
        window: Some(5),
        attention_bias: false,
        mlp_bias: false,
    };
    let mut backend = load_synthetic(&shape, &weights(&shape, true, 3));
    let ids = text(10, VOCAB, 4);
    let found = gradient(&mut backend, &ids, 0);
    for (position, row) in found.rows.chunks_exact(32).enumerate() {
        assert_eq!(row.iter().any(|&v| v != 0.0), position >= 5, "position {position}");
    }
}
