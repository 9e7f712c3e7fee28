//! The rounding simulation: it rounds what the CUDA path stores, its errors have the size of the storage type's steps, and
//! weights of another type are rounded too.

use crate::common::*;
use ggro::dtype::HalfType;
use ggro::model::cpu::LoadOptions;

fn simulating(storage: HalfType) -> LoadOptions {
    LoadOptions { simulate: Some(storage), ..LoadOptions::default() }
}

/// Root mean square of `found - expected` over that of `expected`.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut found.iter().zip(expected).map(|(&f, &e)| f64::from(f) - f64::from(e)));
    (error / square(&mut expected.iter().map(|&e| f64::from(e)))).sqrt()
}

#[test]
fn errors_have_the_size_of_the_types_steps() {
    for name in FORWARD_FIXTURES {
        let golden = Numbers::open(name, "forward_48.safetensors").unwrap();
        let ids = golden.ids("ids");
        let errors = HalfType::ALL.map(|storage| {
            let mut backend = load_with(name, &simulating(storage));
            let rows = backend.policy_rows(&ids).unwrap();
            for &value in &rows.hidden {
                assert_eq!(storage.widen(storage.round(value)).to_bits(), value.to_bits(), "{name}: hidden state");
            }
            let gradient = gradient(&mut backend, &ids, 0);
            [
                relative(&rows.hidden, &golden.f32("policy_hidden")),
                relative(&rows.logits, &golden.f32("policy_logits")),
                relative(&gradient.rows, &golden.f32("reward_grad_last")),
            ]
        });
        println!("{name}: hidden, logits, gradient: bf16 {:?}, f16 {:?}", errors[0], errors[1]);
        for (index, (bf16, f16)) in errors[0].into_iter().zip(errors[1]).enumerate() {
            // One rounding is off by 2^-10 (bf16) and 2^-13 (f16) on average; a model makes about ten in a row.
            assert!((1e-3..4e-2).contains(&bf16), "{name}: bf16 {:?}", errors[0]);
            // Gradients are small enough to lose digits below the normal numbers of f16.
            let least = if index == 2 { 2.0 } else { 4.0 };
            assert!((least..16.0).contains(&(bf16 / f16)), "{name}: bf16 {:?}, f16 {:?}", errors[0], errors[1]);
        }
    }
}

#[test]
fn weights_of_another_type_are_rounded_when_loaded() {
    use crate::synthetic::{Shape, VOCAB, load_with as load_synthetic, weights};
    let shape = Shape {
        model_type: "qwen3",
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        layers: 2,
        hidden: 48,
        window: None,
        attention_bias: false,
        mlp_bias: false,
    };
    let ids = text(20, VOCAB, 3);
    for storage in HalfType::ALL {
        let mut tensors = weights(&shape, true, 7);
        let simulated = gradient(&mut load_synthetic(&shape, &tensors, &simulating(storage)), &ids, 0);
        for (_, values) in tensors.values_mut() {
            values.iter_mut().for_each(|value| *value = storage.widen(storage.round(*value)));
        }
        let rounded = gradient(&mut load_synthetic(&shape, &tensors, &simulating(storage)), &ids, 0);
        assert_eq!(gradient_bits(&simulated), gradient_bits(&rounded), "{storage:?}");
        let exact = gradient(&mut load_synthetic(&shape, &tensors, &LoadOptions::default()), &ids, 0);
        assert_ne!(gradient_bits(&exact), gradient_bits(&rounded), "{storage:?}");
    }
}
