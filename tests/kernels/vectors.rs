//! Golden vectors of single instructions, replayed on the emulated device.

use crate::emulated::Emulated;
use ggro::lab::kernel_check::vectors::{read, record, replay, write};
use ggro_emulator::{Config, Copies, Schedule};
use std::collections::HashMap;
use std::path::Path;

/// What a card answered; made by `ggro kernels record`.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/vectors.safetensors");

fn devices() -> [Config; 2] {
    let other = Config { schedule: Schedule::Shuffle(3), copies: Copies::Early, ..Config::default() };
    [Config { checked: true, ..Config::default() }, other]
}

#[test]
fn what_a_card_recorded() {
    if !Path::new(RECORDED).exists() {
        println!("no recorded vectors: run `ggro kernels record {RECORDED}` on a GPU");
        return;
    }
    let recorded = read(Path::new(RECORDED)).unwrap();
    assert!(!recorded.is_empty());
    for config in devices() {
        let emulated = Emulated::new(config);
        for finding in replay(&emulated.device, &recorded) {
            println!("{}: error over bound {:.3}", finding.case, finding.error_over_bound);
            assert!(finding.passed(), "{finding:#?}");
        }
        emulated.assert_clean();
    }
}

/// Says nothing about any card: only that recording, files and comparing work, and notice a wrong word.
#[test]
fn the_emulated_device_agrees_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vectors.safetensors");
    for config in devices() {
        let emulated = Emulated::new(config);
        let recorded = record(&emulated.device).unwrap();
        assert_eq!(recorded.len(), 10);
        write(&path, &recorded, HashMap::new()).unwrap();
        let mut recorded = read(&path).unwrap();
        for finding in replay(&emulated.device, &recorded) {
            println!("{}: error over bound {:.3}", finding.case, finding.error_over_bound);
            assert!(finding.passed(), "{finding:#?}");
        }
        for vectors in &mut recorded {
            // A low bit where data moves; a product's exponent.
            vectors.output[77] ^= if vectors.probe.name().starts_with("mma") { 1 << 23 } else { 1 };
        }
        let findings = replay(&emulated.device, &recorded);
        assert_eq!(findings.len(), recorded.len());
        for finding in findings {
            assert!(!finding.passed(), "{} went unnoticed", finding.case);
        }
        emulated.assert_clean();
    }
}
