//! The conformance harness and the golden rows.

use crate::emulated::{Emulated, alone};
use ggro::lab::kernel_check::{self, Case, Finding};
use ggro_emulator::{Config, Copies, Counters, Schedule, Streams};
use ggro_testkit::golden_rows;
use std::collections::BTreeMap;
use std::time::Instant;

/// What the cases wrote, by op and case.
pub type Digests = BTreeMap<String, String>;

/// How a device runs: a configuration and settings beside it.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    pub config: Config,
    pub settings: &'static [&'static str],
}

impl Mode {
    /// As a card whose sums are exact, in order.
    pub const PLAIN: Mode = mode(false, Schedule::Forward, Copies::Late, Streams::Eager, &[]);

    /// A device that runs so.
    pub fn device(self) -> Emulated {
        let emulated = Emulated::new(self.config);
        self.settings.iter().for_each(|setting| emulated.machine.configure(setting));
        emulated
    }
}

pub const fn mode(
    checked: bool,
    schedule: Schedule,
    copies: Copies,
    streams: Streams,
    settings: &'static [&'static str],
) -> Mode {
    Mode { config: Config { checked, schedule, copies, streams }, settings }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Mode { config: Config { checked, schedule, copies, streams }, settings } = self;
        let accesses = if *checked { "observed" } else { "plain" };
        write!(f, "{accesses}, {schedule:?}, {copies:?}, {streams:?}")?;
        settings.iter().try_for_each(|setting| write!(f, ", {setting}"))
    }
}

/// The cases of at most this much work.
pub fn up_to(work: u64) -> impl Iterator<Item = Case> {
    kernel_check::cases().into_iter().filter(move |case| case.work <= work)
}

/// Runs the cases of at most this much work on a device, all of which must pass, and says what took how long.
pub fn run(emulated: &Emulated, mode: Mode, work: u64) -> Digests {
    run_cases(emulated, mode, up_to(work))
}

/// The same of any cases.
pub fn run_cases(emulated: &Emulated, mode: Mode, cases: impl Iterator<Item = Case>) -> Digests {
    let (mut worst, mut slowest, started) = (0.0f64, (0.0, String::new()), Instant::now());
    let mut wrong: Vec<Finding> = Vec::new();
    let mut digests = Digests::new();
    for case in cases.filter(|case| case.runs_on(&emulated.device)) {
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
    let instructions: u64 = emulated.machine.report().kernels.values().map(|counters| counters.instructions).sum();
    println!(
        "mode {mode}: {} cases, largest error over bound {worst:.3}, {:.2} G instructions, {:.1} s, the slowest {} in {:.1} s",
        digests.len(),
        instructions as f64 * 1e-9,
        started.elapsed().as_secs_f64(),
        slowest.1,
        slowest.0
    );
    assert!(!digests.is_empty());
    emulated.assert_clean();
    assert!(wrong.is_empty(), "{mode}: {wrong:#?}");
    digests
}

/// The same in another mode, where all outputs must be the same, bit for bit.
pub fn same(expected: &Digests, mode: Mode, work: u64) {
    for (case, digest) in run(&mode.device(), mode, work) {
        assert_eq!(Some(&digest), expected.get(&case), "{case}: {mode}: something else was written");
    }
}

/// The first case of an op, the smallest first, that fails.
pub fn first_failure(emulated: &Emulated, op: &str, kept: impl Fn(&Case) -> bool) -> Option<Finding> {
    let mut cases: Vec<Case> = kernel_check::cases().into_iter().filter(|case| case.op == op && kept(case)).collect();
    assert!(!cases.is_empty(), "no case of {op}");
    // Small cases find most mistakes, and soon.
    cases.sort_by_key(|case| case.work);
    cases.iter().map(|case| case.run(&emulated.device)).find(|finding| !finding.passed())
}

/// All of them, and the smaller ones in another order of warps and blocks, with copies that arrive at once.
#[test]
fn every_case() {
    alone("harness::every_case", || {
        let emulated = Mode::PLAIN.device();
        let plain = run(&emulated, Mode::PLAIN, u64::MAX);
        golden_rows::every_golden_row(&emulated.device);
        emulated.assert_clean();
        drop(emulated);
        same(&plain, mode(false, Schedule::Reverse, Copies::Early, Streams::Lazy, &[]), 2_000_000);
        let early = &["dependents=early"];
        same(&plain, mode(true, Schedule::Shuffle(1), Copies::Early, Streams::Lazy, early), 500_000);
    });
}

/// No access is wrong.
#[test]
fn observed() {
    alone("harness::observed", || {
        let mode = mode(true, Schedule::Forward, Copies::Late, Streams::Eager, &[]);
        let emulated = mode.device();
        run(&emulated, mode, 2_000_000);
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

/// Lanes of a warp that do not run together until an instruction needs them to: nothing relies on their running in step.
#[test]
fn lanes_apart() {
    alone("harness::lanes_apart", || {
        let plain = run(&Mode::PLAIN.device(), Mode::PLAIN, 500_000);
        let apart = &["lanes=apart"];
        same(&plain, mode(false, Schedule::Forward, Copies::Late, Streams::Eager, apart), 500_000);
        same(&plain, mode(true, Schedule::Shuffle(2), Copies::Late, Streams::Lazy, apart), 200_000);
        // Where a lane is fast, others still wait for a phase that must not pass before they have seen it.
        let hopper = || up_to(2_000_000).filter(|case| case.op.ends_with("_sm90") && case.name.contains("alone"));
        let plain = run_cases(&Mode::PLAIN.device(), Mode::PLAIN, hopper());
        let mode = mode(false, Schedule::Reverse, Copies::Late, Streams::Eager, apart);
        assert_eq!(run_cases(&mode.device(), mode, hopper()), plain);
    });
}

/// Sums that are cut as A100 and H100 cut them: within the same bounds, and the same bits in another order of warps and blocks.
#[test]
fn sums_of_tensor_cores() {
    alone("harness::sums_of_tensor_cores", || {
        for (settings, work) in [(&["mma=8"], 2_000_000), (&["mma=16"], 1_000_000)] {
            let forward = mode(false, Schedule::Forward, Copies::Late, Streams::Eager, settings);
            let cut = run(&forward.device(), forward, work);
            same(&cut, mode(false, Schedule::Shuffle(3), Copies::Early, Streams::Eager, settings), 200_000);
        }
    });
}
