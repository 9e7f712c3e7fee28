//! The kernels as nvcc compiles them: their PTX, executed. Where there is neither stored PTX of these sources nor an nvcc, these
//! tests check nothing and say so.

use crate::emulated::{Emulated, alone};
use crate::harness::{Digests, run, up_to};
use crate::model;
use ggro_emulator::{Config, Copies, Schedule, Streams};
use ggro_testkit::golden_rows;
use std::time::Instant;

fn cases(config: Config, settings: &[&str], work: u64) -> Option<Digests> {
    let emulated = Emulated::on_ptx(config)?;
    settings.iter().for_each(|setting| emulated.machine.configure(setting));
    let what = format!("PTX, {config:?} {}", settings.join(" "));
    let began = Instant::now();
    let digests = run(&emulated, &what, up_to(work));
    let kernels = emulated.machine.report().kernels;
    let sources: Vec<&String> = kernels.iter().filter(|(_, c)| c.instructions == 0).map(|(name, _)| name).collect();
    assert!(sources.is_empty(), "not run as PTX: {sources:?}");
    let instructions: u64 = kernels.values().map(|c| c.instructions).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} kernels, {:.2} G instructions, {:.0} M in a second, cases and references included",
        kernels.len(),
        instructions as f64 * 1e-9,
        instructions as f64 * 1e-6 / seconds
    );
    Some(digests)
}

#[test]
fn every_case() {
    alone("ptx::every_case", || {
        cases(Config::default(), &[], u64::MAX);
        if let Some(emulated) = Emulated::on_ptx(Config::default()) {
            golden_rows::every_golden_row(&emulated.device);
            emulated.assert_clean();
        }
    });
}

/// The same bits in every order of warps and blocks, whenever copies arrive, and with lanes that do not run together; and no
/// access is wrong.
#[test]
fn other_schedules_and_copy_modes() {
    alone("ptx::other_schedules_and_copy_modes", || {
        let Some(plain) = cases(Config::default(), &[], 2_000_000) else { return };
        let (reverse, shuffle) = (Schedule::Reverse, Schedule::Shuffle(1));
        let mode = |checked, schedule, copies, streams| Config { checked, schedule, copies, streams };
        for (config, lanes, work) in [
            (mode(true, Schedule::Forward, Copies::Late, Streams::Eager), "lanes=together", 2_000_000),
            (mode(false, reverse, Copies::Early, Streams::Lazy), "lanes=together", 2_000_000),
            (mode(false, shuffle, Copies::Late, Streams::Lazy), "lanes=together", 2_000_000),
            (mode(true, shuffle, Copies::Early, Streams::Eager), "lanes=together", 500_000),
            (mode(false, Schedule::Forward, Copies::Late, Streams::Eager), "lanes=apart", 500_000),
            (mode(true, shuffle, Copies::Late, Streams::Eager), "lanes=apart", 200_000),
        ] {
            for (case, digest) in cases(config, &[lanes], work).unwrap_or_default() {
                assert_eq!(Some(&digest), plain.get(&case), "{case}: {config:?}, {lanes}: something else than plain");
            }
        }
    });
}

/// Both models end to end; in the second pair, every access observed.
#[test]
fn golden_pairs() {
    let checked = Config { checked: true, schedule: Schedule::Reverse, copies: Copies::Early, ..Config::default() };
    for (config, name) in [(Config::default(), "llama-gqa"), (checked, "qwen2-sharded")] {
        let Some(emulated) = Emulated::on_ptx(config) else { return };
        model::golden_on(emulated, &format!("PTX, {config:?}"), name);
    }
}
