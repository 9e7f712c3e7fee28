//! What takes too long for every run of the tests, and is for every change of kernels: `.ci/full`.

use crate::emulated::alone;
use crate::harness::{Mode, mode, run, same};
use ggro_emulator::{Copies, Schedule, Streams};

const SCHEDULES: [Schedule; 4] = [Schedule::Forward, Schedule::Reverse, Schedule::Shuffle(11), Schedule::Shuffle(12)];

/// Every copy mode and stream mode of a schedule: the same bits as plain.
fn every_mode(checked: bool, schedules: &[Schedule], settings: &'static [&'static str], work: u64) {
    let plain = run(&Mode::PLAIN.device(), Mode::PLAIN, work);
    for &schedule in schedules {
        for copies in [Copies::Late, Copies::Early] {
            for streams in [Streams::Eager, Streams::Lazy] {
                same(&plain, mode(checked, schedule, copies, streams, settings), work);
            }
        }
    }
}

macro_rules! matrix {
    ($($name:ident: $checked:expr, $schedules:expr, $settings:expr, $work:expr;)*) => {$(
        #[test]
        #[ignore = "for .ci/full"]
        fn $name() {
            alone(concat!("full::", stringify!($name)), || every_mode($checked, $schedules, $settings, $work));
        }
    )*};
}

// In tests of like length, so that all cores have something to do until the end.
matrix! {
    plain: false, &SCHEDULES, &[], u64::MAX;
    observed_forward: true, &SCHEDULES[..1], &[], u64::MAX;
    observed_reverse: true, &SCHEDULES[1..2], &[], u64::MAX;
    observed_shuffled: true, &SCHEDULES[2..3], &[], u64::MAX;
    observed_shuffled_again: true, &SCHEDULES[3..], &[], u64::MAX;
    apart_forward: false, &SCHEDULES[..1], &["lanes=apart"], 5_000_000;
    apart_reverse: false, &SCHEDULES[1..2], &["lanes=apart"], 5_000_000;
    apart_shuffled: false, &SCHEDULES[2..], &["lanes=apart"], 5_000_000;
    observed_apart_forward: true, &SCHEDULES[..2], &["lanes=apart"], 2_000_000;
    observed_apart_shuffled: true, &SCHEDULES[2..], &["lanes=apart"], 2_000_000;
}

/// As A100 and H100 add: every case is within its bound, and of the same bits in every schedule.
fn tensor_cores(settings: &'static [&'static str]) {
    let forward = mode(false, Schedule::Forward, Copies::Late, Streams::Eager, settings);
    let cut = run(&forward.device(), forward, u64::MAX);
    for (schedule, copies) in SCHEDULES.into_iter().skip(1).zip([Copies::Early, Copies::Late, Copies::Early]) {
        same(&cut, mode(false, schedule, copies, Streams::Eager, settings), u64::MAX);
    }
    same(&cut, mode(true, Schedule::Forward, Copies::Late, Streams::Eager, settings), 2_000_000);
}

#[test]
#[ignore = "for .ci/full"]
fn sums_of_8() {
    alone("full::sums_of_8", || tensor_cores(&["mma=8"]));
}

#[test]
#[ignore = "for .ci/full"]
fn sums_of_16() {
    alone("full::sums_of_16", || tensor_cores(&["mma=16"]));
}
