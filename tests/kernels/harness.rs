//! The conformance harness and the golden rows.

use crate::emulated::{Emulated, alone};
use ggro::lab::kernel_check::{self, Case, Finding};
use ggro_emulator::{Config, Copies, Counters, Schedule, Streams};
use ggro_testkit::golden_rows;
use std::collections::BTreeMap;
use std::time::Instant;

/// What the cases wrote, by op and case.
pub type Digests = BTreeMap<String, String>;

/// Runs cases, all of which must pass, and says what took how long.
pub fn run(emulated: &Emulated, what: &str, cases: impl Iterator<Item = Case>) -> Digests {
    let (mut worst, mut slowest, started) = (0.0f64, (0.0, String::new()), Instant::now());
    let mut wrong: Vec<Finding> = Vec::new();
    let mut digests = Digests::new();
    for case in cases {
        let began = Instant::now();
        let finding = case.run(&emulated.device);
        let took = began.elapsed().as_secs_f64();
        if took > slowest.0 {
            slowest = (took, format!("{case:?}"));
        }
        worst = worst.max(finding.error_over_bound);
        let before = digests.insert(format!("{case:?}"), finding.digest.clone());
        assert!(before.is_none(), "two cases are called {case:?}");
        if !finding.passed() {
            wrong.push(finding);
        }
    }
    println!(
        "{what}: {} cases, largest error over bound {worst:.3}, {:.1} s, the slowest {} in {:.1} s",
        digests.len(),
        started.elapsed().as_secs_f64(),
        slowest.1,
        slowest.0
    );
    assert!(!digests.is_empty());
    emulated.assert_clean();
    assert!(wrong.is_empty(), "{what}: {wrong:#?}");
    digests
}

/// The cases of at most this much work.
pub fn up_to(work: u64) -> impl Iterator<Item = Case> {
    kernel_check::cases().into_iter().filter(move |case| case.work <= work)
}

#[test]
fn every_case() {
    let emulated = Emulated::new(Config::default());
    run(&emulated, "plain", up_to(u64::MAX));
    golden_rows::every_golden_row(&emulated.device);
    emulated.assert_clean();
}

#[test]
fn checked() {
    alone("harness::checked", || {
        let emulated = Emulated::new(Config { checked: true, ..Config::default() });
        run(&emulated, "checked", up_to(2_000_000));
        golden_rows::every_golden_row(&emulated.device);
        emulated.assert_clean();
        print_traffic(&emulated.machine.report().kernels);
    });
}

/// What every kernel moved in all cases together, over the bytes that it touched. (`traffic` holds single shapes to the bytes
/// that they must touch.)
fn print_traffic(kernels: &BTreeMap<String, Counters>) {
    println!(
        "{:<32} {:>8} {:>12} {:>12} {:>8} {:>8} {:>10}",
        "kernel", "launches", "touched", "moved", "moved/", "sectors/", "conflicts"
    );
    for (name, c) in kernels {
        let touched = c.unique_bytes_read + c.unique_bytes_written;
        let moved = c.bytes_read + c.bytes_written;
        let sectors = 32 * (c.sectors_read + c.sectors_written);
        let over = |bytes: u64| bytes as f64 / touched.max(1) as f64;
        let conflicts = c.bank_conflicts as f64 / c.shared_wavefronts.max(1) as f64;
        println!(
            "{name:<32} {:>8} {touched:>12} {moved:>12} {:>8.3} {:>8.3} {:>8.1} %",
            c.launches,
            over(moved),
            over(sectors),
            100.0 * conflicts
        );
    }
}

/// Every output of every case is the same, bit for bit, whatever the order of threads and blocks, whenever asynchronous copies
/// arrive, and whether accesses are observed or not.
#[test]
fn other_schedules_and_copy_modes() {
    alone("harness::other_schedules_and_copy_modes", || {
        let plain = run(&Emulated::new(Config::default()), "plain", up_to(2_000_000));
        for (schedule, copies, streams) in [
            (Schedule::Forward, Copies::Early, Streams::Eager),
            (Schedule::Reverse, Copies::Early, Streams::Lazy),
            (Schedule::Reverse, Copies::Late, Streams::Eager),
            (Schedule::Shuffle(1), Copies::Late, Streams::Lazy),
            (Schedule::Shuffle(2), Copies::Early, Streams::Eager),
        ] {
            for checked in [false, true] {
                let config = Config { checked, schedule, copies, streams };
                let work = if checked { 500_000 } else { 2_000_000 };
                let what = format!("{schedule:?}, {copies:?}, {streams:?}, checked {checked}");
                for (case, digest) in run(&Emulated::new(config), &what, up_to(work)) {
                    assert_eq!(Some(&digest), plain.get(&case), "{case}: {what} wrote something else than plain");
                }
            }
        }
    });
}
