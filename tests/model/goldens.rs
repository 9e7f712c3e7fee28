//! Golden forward data: logits, hidden states, entropies, rewards by position, gradient rows.

use crate::common::*;
use ggro::model::{RewardSpan, Role, RowStats, Span};

fn worst(found: &[f32], expected: impl Iterator<Item = f64>) -> f64 {
    found.iter().zip(expected).map(|(&a, b)| (a as f64 - b).abs()).fold(0.0, f64::max)
}

#[test]
fn policy_rows_agree() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        for len in [1, 9, 48, 700] {
            let Some(golden) = Numbers::open(name, &format!("forward_{len}.safetensors")) else { continue };
            let rows = backend.policy_rows(&golden.ids("ids")).unwrap();
            let vocab = backend.config(Role::Policy).unwrap().vocab_size;
            let hidden = worst(&rows.hidden, golden.f32("policy_hidden").iter().map(|&v| v as f64));
            assert!(hidden < 1e-4, "{name} {len}: hidden states are {hidden:e} off");
            let at: Vec<u32> = match golden.has("logit_positions") {
                true => golden.ids("logit_positions"),
                false => (0..len).collect(),
            };
            for (row, expected) in at.iter().zip(golden.f32("policy_logits").chunks_exact(vocab)) {
                let found = &rows.logits[*row as usize * vocab..][..vocab];
                let error = worst(found, expected.iter().map(|&v| v as f64));
                assert!(error < 1e-4, "{name} {len}: logits at {row} are {error:e} off");
            }
            for (floor, column) in [(0.0, "entropy"), (1e-9, "entropy_floor_1e-9")] {
                for (row, expected) in rows.logits.chunks_exact(vocab).zip(golden.f64(column)) {
                    let found = RowStats::of(row, floor).entropy_floored;
                    assert!((found - expected).abs() < 1e-4, "{name} {len}: entropy {found} for {expected}");
                }
            }
        }
    }
}

#[test]
fn rewards_by_position_agree() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        for len in [1, 9, 48, 700] {
            let Some(golden) = Numbers::open(name, &format!("forward_{len}.safetensors")) else { continue };
            let ids = golden.ids("ids");
            let all: Vec<usize> = (0..ids.len()).collect();
            let seq = backend.create(Role::Reward).unwrap();
            let span = RewardSpan { span: Span { seq, start: 0, ids: &ids }, also_at: &all };
            let score = backend.reward_score(&[span]).unwrap().remove(0);
            backend.release(seq);
            let expected = golden.f64("reward_by_position");
            let error = worst(&score.also, expected.iter().copied());
            assert!(error < 1e-4, "{name} {len}: rewards are {error:e} off");
            assert_eq!(score.reward, score.also[ids.len() - 1]);
        }
    }
}

#[test]
fn gradient_rows_agree() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        let d = backend.config(Role::Reward).unwrap().hidden_size;
        for len in [1, 9, 48, 700] {
            let Some(golden) = Numbers::open(name, &format!("forward_{len}.safetensors")) else { continue };
            let ids = golden.ids("ids");
            let expected = golden.f32("reward_grad_last");
            let found = gradient(&mut backend, &ids, 0);
            assert_eq!(found.rows.len(), expected.len());
            for (i, (f, e)) in found.rows.chunks_exact(d).zip(expected.chunks_exact(d)).enumerate() {
                let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
                let size = norm(&mut e.iter().map(|&v| v as f64));
                let error = norm(&mut f.iter().zip(e).map(|(&a, &b)| a as f64 - b as f64));
                // A row far below the largest (positions outside of the window) is rounding alone.
                let scale = size.max(1e-9);
                assert!(error <= 1e-4 * scale, "{name} {len}: gradient row {i} is {error:e} off {size:e}");
            }
            let last = golden.f64("reward_by_position")[ids.len() - 1];
            assert!((found.score.reward as f64 - last).abs() < 1e-4);
        }
    }
}
