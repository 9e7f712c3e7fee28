//! The conformance harness and the golden rows.

use crate::emulated::{Emulated, alone};
use crate::goldens;
use ggro::conformance::{self, Finding};
use ggro_emulator::{Config, Copies, Schedule};
use std::time::Instant;

/// Runs the cases of at most `work`, all of which must pass, and says what took how long.
fn run(emulated: &Emulated, what: &str, work: u64) {
    let (mut worst, mut slowest, started) = (0.0f64, (0.0, String::new()), Instant::now());
    let mut wrong: Vec<Finding> = Vec::new();
    let mut count = 0;
    for case in conformance::cases().into_iter().filter(|case| case.work <= work) {
        let began = Instant::now();
        let finding = case.run(&emulated.device);
        let took = began.elapsed().as_secs_f64();
        if took > slowest.0 {
            slowest = (took, format!("{case:?}"));
        }
        count += 1;
        worst = worst.max(finding.error_over_bound);
        if !finding.passed() {
            wrong.push(finding);
        }
    }
    println!(
        "{what}: {count} cases, largest error over bound {worst:.3}, {:.1} s, the slowest {} in {:.1} s",
        started.elapsed().as_secs_f64(),
        slowest.1,
        slowest.0
    );
    assert!(count > 0);
    emulated.assert_clean();
    assert!(wrong.is_empty(), "{what}: {wrong:#?}");
}

#[test]
fn every_case() {
    let emulated = Emulated::new(Config::default());
    run(&emulated, "plain", u64::MAX);
    goldens::every_golden_row(&emulated.device);
    emulated.assert_clean();
}

#[test]
fn checked() {
    alone("harness::checked", || {
        let emulated = Emulated::new(Config { checked: true, ..Config::default() });
        run(&emulated, "checked", 2_000_000);
        goldens::every_golden_row(&emulated.device);
        emulated.assert_clean();
    });
}

#[test]
fn other_schedules_and_copy_modes() {
    alone("harness::other_schedules_and_copy_modes", || {
        for (schedule, copies) in [(Schedule::Reverse, Copies::Early), (Schedule::Shuffle(1), Copies::Late)] {
            for checked in [false, true] {
                let config = Config { checked, schedule, copies, ..Config::default() };
                let work = if checked { 200_000 } else { 2_000_000 };
                run(&Emulated::new(config), &format!("{schedule:?}, {copies:?}, checked {checked}"), work);
            }
        }
    });
}
