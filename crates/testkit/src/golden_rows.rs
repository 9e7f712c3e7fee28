//! Rows of logits whose statistics were computed elsewhere in double precision.

use crate::fixtures::goldens;
use ggro::cuda::ops::softmax_entropy::{RowStatsOut, Scratch, TopKOut, TopKQuery, When, softmax_entropy, top_k};
use ggro::cuda::{Buffer, Device};
use safetensors::SafeTensors;

fn numbers<const N: usize, T>(tensors: &SafeTensors<'_>, name: &str, from: fn([u8; N]) -> T) -> Vec<T> {
    let tensor = tensors.tensor(name).unwrap();
    tensor.data().chunks_exact(N).map(|bytes| from(bytes.try_into().unwrap())).collect()
}

fn close(what: &str, found: f64, expected: f64) {
    let error = (found - expected).abs();
    assert!(found == expected || error <= 1e-5 * expected.abs().max(1.0), "{what}: {found} instead of {expected}");
}

/// All of them, on a device.
pub fn every_golden_row(device: &Device) {
    let file = std::fs::read(goldens().join("softmax_cases.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    for v in [1usize, 31, 33, 111, 32_000, 128_256] {
        let logits = numbers(&tensors, &format!("{v}.logits"), f32::from_le_bytes);
        let rows = logits.len() / v;
        let row_logits = Buffer::from_slice(device, &logits).unwrap();
        let mut stats = Buffer::<RowStatsOut>::uninitialised(device, rows).unwrap();
        let mut scratch = Scratch::new(device, rows, v).unwrap();
        for (floor, name) in [(0.0f64, "entropy"), (1e-9, "entropy_floor_1e-9"), (1e-3, "entropy_floor_1e-3")] {
            let floors = Buffer::from_slice(device, &vec![floor; rows]).unwrap();
            softmax_entropy(device, &mut stats.view_mut(), row_logits.view(), floors.view(), &mut scratch).unwrap();
            let found = stats.download(device).unwrap();
            let of = |name: &str| numbers(&tensors, &format!("{v}.{name}"), f64::from_le_bytes);
            let argmax = numbers(&tensors, &format!("{v}.argmax"), i64::from_le_bytes);
            let entropy = of(name);
            let (norm, probability, margin, variance) =
                (of("logsumexp"), of("max_probability"), of("margin"), of("varentropy"));
            for (r, found) in found.iter().enumerate() {
                assert_eq!((found.finite, i64::from(found.argmax)), (1, argmax[r]), "row {r} of {v}");
                close(&format!("{name}, row {r} of {v}"), found.entropy_floored, entropy[r]);
                close(&format!("log-sum-exp, row {r} of {v}"), found.log_sum_exp, norm[r]);
                close(&format!("largest probability, row {r} of {v}"), found.max_probability, probability[r]);
                close(&format!("margin, row {r} of {v}"), f64::from(found.margin), margin[r]);
                close(&format!("varentropy, row {r} of {v}"), found.varentropy, variance[r]);
            }
        }
        let k = 25.min(v);
        let queries = Buffer::from_slice(device, &vec![TopKQuery::new(k, When::Always, 0.0); rows]).unwrap();
        let mut ids = Buffer::<u32>::uninitialised(device, rows * k).unwrap();
        let mut values = Buffer::<f32>::uninitialised(device, rows * k).unwrap();
        let mut found = Buffer::<u32>::uninitialised(device, rows).unwrap();
        let mut out = TopKOut { ids: ids.view_mut(), logits: values.view_mut(), found: found.view_mut(), stride: k };
        top_k(device, &mut out, row_logits.view(), stats.view(), queries.view(), v, &mut scratch).unwrap();
        let expected = numbers(&tensors, &format!("{v}.top25"), i64::from_le_bytes);
        let found: Vec<i64> = ids.download(device).unwrap().into_iter().map(i64::from).collect();
        assert_eq!(found, expected, "top 25 of {v}");
    }
}
