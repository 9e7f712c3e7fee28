//! Row statistics against the golden softmax rows, which were computed in double precision.

use ggro::model::{RowStats, top_k};
use safetensors::SafeTensors;

fn goldens() -> Vec<u8> {
    std::fs::read(ggro_testkit::fixtures::goldens().join("softmax_cases.safetensors")).unwrap()
}

fn values<const N: usize, T>(file: &SafeTensors<'_>, name: &str, convert: fn([u8; N]) -> T) -> Vec<T> {
    let data = file.tensor(name).unwrap().data().as_chunks::<N>().0.to_vec();
    data.into_iter().map(convert).collect()
}

/// 1e-5 absolute or relative, whichever is larger; an infinity must be met exactly.
fn close(got: f64, expected: f64) -> bool {
    got == expected || (got - expected).abs() <= 1e-5f64.max(1e-5 * expected.abs())
}

#[test]
fn golden_softmax_rows() {
    let bytes = goldens();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for vocab in [1usize, 31, 33, 111, 32000, 128256] {
        let f64s = |what: &str| values(&file, &format!("{vocab}.{what}"), f64::from_le_bytes);
        let i64s = |what: &str| values(&file, &format!("{vocab}.{what}"), i64::from_le_bytes);
        let logits = values(&file, &format!("{vocab}.logits"), f32::from_le_bytes);
        let argmax = i64s("argmax");
        let top25 = i64s("top25");
        let (lse, entropy) = (f64s("logsumexp"), f64s("entropy"));
        let (floor_9, floor_3) = (f64s("entropy_floor_1e-9"), f64s("entropy_floor_1e-3"));
        let (largest, margin) = (f64s("max_probability"), f64s("margin"));
        let varentropy = f64s("varentropy");
        assert_eq!(logits.len(), argmax.len() * vocab);
        for (i, row) in logits.chunks(vocab).enumerate() {
            let exact = RowStats::of(row, 0.0);
            let stats = RowStats::of(row, 1e-9);
            let place = format!("row {i} of vocabulary {vocab}");
            assert!(stats.finite, "{place}");
            assert_eq!(i64::from(stats.argmax), argmax[i], "{place}");
            for (name, got, expected) in [
                ("log_sum_exp", stats.log_sum_exp, lse[i]),
                ("entropy", stats.entropy, entropy[i]),
                ("entropy with floor 0", exact.entropy_floored, entropy[i]),
                ("entropy with floor 1e-9", stats.entropy_floored, floor_9[i]),
                ("entropy with floor 1e-3", RowStats::of(row, 1e-3).entropy_floored, floor_3[i]),
                ("max_probability", stats.max_probability, largest[i]),
                ("margin", f64::from(stats.margin), margin[i]),
                ("varentropy", stats.varentropy, varentropy[i]),
            ] {
                assert!(close(got, expected), "{name}, {place}: {got} and not {expected}");
            }
            let k = 25.min(vocab);
            let ids: Vec<i64> = top_k(row, 25, vocab).iter().map(|&(id, _)| i64::from(id)).collect();
            assert_eq!(ids, top25[i * k..(i + 1) * k], "top 25, {place}");
        }
    }
}

#[test]
fn the_floor_counts_every_id_below_it() {
    let mut row = vec![0.0f32; 1000];
    row[0] = 40.0;
    assert!((RowStats::of(&row, 1e-9).entropy_floored - 2.07025e-5).abs() < 1e-10);
    assert!((RowStats::of(&row, 0.0).entropy_floored - 1.7287e-13).abs() < 5e-15);
    // A hole counts like any other id below the floor.
    row[1..].fill(f32::NEG_INFINITY);
    assert!((RowStats::of(&row, 1e-9).entropy_floored - 2.07025e-5).abs() < 1e-10);
    assert_eq!(RowStats::of(&row, 0.0).entropy_floored, 0.0);
}

#[test]
fn closed_forms() {
    for vocab in [1usize, 2, 31, 1000, 128256] {
        let stats = RowStats::of(&vec![-7.5f32; vocab], 0.0);
        assert!((stats.entropy - (vocab as f64).ln()).abs() < 1e-12);
        assert_eq!(stats.varentropy, 0.0);
        assert_eq!(stats.argmax, 0);
    }
}
