//! The conformance harness on the emulated device: the same sources and the same launch path as on a GPU, run on the CPU
//! with every memory access observed.

use ggro::conformance::{self, Case};
use ggro::cuda::{Device, Image, images};
use ggro_emulator::{Config, Copies, Device as Emulator, Paths, STUB_IMAGE, Schedule};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Work of the largest case that the checked build runs, which is several times slower.
const SMALL: u64 = 100_000;

fn paths() -> &'static Paths {
    static PATHS: OnceLock<Paths> = OnceLock::new();
    PATHS.get_or_init(|| build(&kernels()))
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn build(kernels: &Path) -> Paths {
    ggro_emulator::build(kernels).unwrap_or_else(|e| panic!("{e}"))
}

/// The device with the embedded images, or where there are none with a stub that the emulator knows.
fn open() -> Device {
    let device = if images::embedded().is_empty() {
        let stub = |name| Image { name, bytes: STUB_IMAGE.to_bytes_with_nul(), usage: &[] };
        Device::open_with(0, &["rmsnorm", "softmax_entropy", "gemm", "peak"].map(stub), &["sm_90a"])
    } else {
        Device::open(0)
    };
    device.unwrap()
}

/// Runs the chosen cases: how many there were, how many launches the emulator saw, and everything that was wrong.
fn run(paths: &Paths, config: Config, chosen: impl Fn(&Case) -> bool) -> (usize, u64, Vec<String>) {
    let emulator = Emulator::install(paths, config).unwrap();
    let device = open();
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in conformance::cases().iter().filter(|case| chosen(case)) {
        let finding = case.run(&device);
        count += 1;
        if !finding.passed() {
            wrong.push(format!("{case:?}: {:#?}", finding.failures));
        }
    }
    let report = emulator.report();
    wrong.extend(report.faults.iter().map(|fault| format!("{fault:?}")));
    let counters = report.kernels.values();
    let launches = counters.map(|c| if config.checked { c.checked_launches } else { c.launches }).sum();
    (count, launches, wrong)
}

/// Nothing may be wrong, and every case must have run a kernel of the chosen build.
fn passes(config: Config, chosen: impl Fn(&Case) -> bool) {
    let (count, launches, wrong) = run(paths(), config, chosen);
    println!("{config:?}: {count} cases, {launches} launches");
    assert!(wrong.is_empty(), "{config:?}:\n{}", wrong.join("\n"));
    assert!(count > 0 && launches >= count as u64, "{launches} launches for {count} cases");
}

#[test]
fn every_case() {
    passes(Config::default(), |_| true);
}

#[test]
fn small_cases_with_every_access_observed() {
    for (schedule, copies) in [
        (Schedule::Forward, Copies::Late),
        (Schedule::Reverse, Copies::Early),
        (Schedule::Shuffle(7), Copies::Late),
        (Schedule::Shuffle(8), Copies::Early),
    ] {
        let config = Config { checked: true, schedule, copies, ..Config::default() };
        passes(config, |case| case.work <= SMALL);
    }
}

#[test]
fn small_cases_in_other_orders() {
    for (schedule, copies) in [(Schedule::Reverse, Copies::Early), (Schedule::Shuffle(3), Copies::Late)] {
        passes(Config { schedule, copies, ..Config::default() }, |case| case.work <= 20 * SMALL);
    }
}

/// A kernel broken on purpose: in `file`, `from` becomes `to`. The harness must turn red on the cases of `op`, and the
/// launch counter proves that it was the broken kernel that ran.
fn caught(op: &str, file: &str, from: &str, to: &str, config: Config) {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(kernels()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let target = folder.path().join(file);
    let source = std::fs::read_to_string(&target).unwrap();
    assert!(source.contains(from), "{file} has no {from:?}");
    std::fs::write(&target, source.replacen(from, to, 1)).unwrap();
    let broken = build(folder.path());
    let (count, launches, wrong) = run(&broken, config, |case| case.op == op && case.work <= SMALL);
    println!("{file}, {to:?}: {} of {count} cases wrong", wrong.len());
    // A fault is sticky: the cases behind it fail without a launch.
    assert!(launches > 0 && count > 0);
    assert!(!wrong.is_empty(), "{file}: {from:?} became {to:?}, and no case noticed");
}

#[test]
fn a_scaled_output_is_caught() {
    caught(
        "rmsnorm",
        "rmsnorm.cu",
        "make_float4(x.x * scale * w.x",
        "make_float4(1.02f * x.x * scale * w.x",
        Config::default(),
    );
}

#[test]
fn a_row_short_is_caught() {
    let from =
        "const int w_valid = min(args.n - first_output, kOutputs), x_valid = min(args.tokens - first_token, kTokens);";
    let to = "const int w_valid = min(args.n - first_output, kOutputs), x_valid = min(args.tokens - first_token, kTokens) - 1;";
    caught("gemm", "gemm.cu", from, to, Config::default());
}

#[test]
fn a_missing_barrier_is_caught() {
    let (from, to) = ("__syncthreads();  // scratch is complete", "");
    caught("rmsnorm", "common.cuh", from, to, Config { checked: true, ..Config::default() });
}

#[test]
fn a_missing_wait_is_caught() {
    caught(
        "gemm",
        "gemm.cu",
        "ptx::cp_async_wait<STAGES - 2>();",
        "",
        Config { copies: Copies::Late, ..Config::default() },
    );
}

#[test]
fn a_barrier_missing_in_the_pipeline_is_caught() {
    let from = "__syncthreads();  // stage `read` has arrived";
    caught("gemm", "gemm.cu", from, "// stage `read` has arrived", Config { checked: true, ..Config::default() });
}

#[test]
fn a_wrong_tie_is_caught() {
    let (from, to) = ("b.max == a.max && b.argmax < a.argmax", "b.max == a.max && b.argmax > a.argmax");
    caught("softmax_entropy", "softmax_entropy.cu", from, to, Config::default());
}

#[test]
fn an_ignored_floor_is_caught() {
    let (from, to) = ("const double floor = floors[row];", "const double floor = 0.0 * floors[row];");
    caught("softmax_entropy", "softmax_entropy.cu", from, to, Config::default());
}
