//! Kernels that begin early only where a self-check of such launches has passed: what it finds, and what each face says of it.

use crate::dependents::{late_waits, without_wait};
use crate::emulated::{self, Emulated, alone};
use crate::self_check::{LIMIT, Machine, Run};
use ggro::cuda::{KernelFamily, self_check};
use ggro_emulator::{Config, Report};
use serde_json::Value;
use std::path::PathBuf;

const ASK: [&str; 6] = ["generate", "--json", "--no-baseline", "--max-new-tokens", "4", "Hello."];

/// The check itself, on devices of all kinds.
#[test]
fn chains_have_the_same_bits_late_and_early() {
    alone("launches::chains_have_the_same_bits_late_and_early", || {
        for (checked, settings) in
            [(false, &["dependents=late"][..]), (false, &["dependents=early"]), (true, &["dependents=early"])]
        {
            for family in KernelFamily::ALL {
                let emulated = Emulated::new(Config { checked, ..Config::default() }).with_family(family);
                settings.iter().for_each(|setting| emulated.machine.configure(setting));
                emulated.machine.reset();
                let found = self_check::run_dependents(&emulated.device, LIMIT);
                println!("{}, {settings:?}, observed: {checked}: {found:?}", family.name());
                assert!(found.wrong.is_empty() && found.ran == found.cases && found.cases == 4, "{found:#?}");
                let report = emulated.machine.report().kernels;
                let all: u64 = report.values().map(|counters| counters.launches).sum();
                let dependent: u64 = report.values().map(|counters| counters.dependent_launches).sum();
                println!("{dependent} of {all} launches are dependent");
                // A third of them are the same kernels one after the other.
                assert!(all > 500 && dependent * 2 > all, "{dependent} of {all}");
                emulated.assert_clean();
            }
        }
    });
}

/// Kernels whose threads wait when they end, and have read too early what others write.
#[test]
fn a_wait_that_is_missing_is_noticed_by_the_check() {
    alone("launches::a_wait_that_is_missing_is_noticed_by_the_check", || {
        let mut unnoticed = Vec::new();
        for (of, kernels, family) in [
            ("rmsnorm", "rmsnorm_bf16", KernelFamily::Sm80),
            ("rmsnorm", "rmsnorm_backward_f16", KernelFamily::Sm80),
            ("rope", "rope_f16", KernelFamily::Sm80),
            ("rope", "rope_backward_bf16", KernelFamily::Sm80),
            ("swiglu", "swiglu_bf16", KernelFamily::Sm80),
            ("swiglu", "swiglu_backward_f16", KernelFamily::Sm80),
            ("gemm", "gemm_stream", KernelFamily::Sm80),
            ("gemm", "gemm_tile", KernelFamily::Sm80),
            ("gemm_backward", "gemm_backward", KernelFamily::Sm80),
            ("attention", "attention_", KernelFamily::Sm80),
            ("attention_backward", "attention_backward_", KernelFamily::Sm80),
            ("softmax_entropy", "softmax_entropy_f32", KernelFamily::Sm80),
            ("softmax_entropy", "top_k_f32", KernelFamily::Sm80),
            ("logits", "log_probabilities", KernelFamily::Sm80),
            ("logits", "chosen_logits", KernelFamily::Sm80),
            ("kv_copy", "kv_copy", KernelFamily::Sm80),
            ("copy_rows", "copy_rows", KernelFamily::Sm80),
            ("candidate_scores", "candidate_scores_bf16", KernelFamily::Sm80),
            ("gemm_sm90", "gemm_sm90_", KernelFamily::Sm90),
            ("gemm_sm90", "gemm_backward_sm90_", KernelFamily::Sm90),
            ("attention_sm90", "attention_sm90_", KernelFamily::Sm90),
        ] {
            let emulated = Emulated::new(Config::default()).with_family(family);
            emulated.machine.configure("dependents=early");
            emulated.replace(&late_waits(of, kernels));
            let found = self_check::run_dependents(&emulated.device, LIMIT);
            match found.wrong.first() {
                Some(wrong) => println!("{kernels}: {wrong}"),
                None => unnoticed.push(kernels),
            }
            emulated.machine.reset();
        }
        assert!(unnoticed.is_empty(), "{unnoticed:#?}");
    });
}

fn machine(ptx: PathBuf) -> Machine {
    Machine { ptx, cache: tempfile::tempdir().unwrap() }
}

fn sound() -> Machine {
    machine(emulated::folder().to_path_buf())
}

/// Runs a command on a card whose kernels begin as early as they may, and says how many launches were dependent, those of checks
/// among them.
fn run_on(machine: &Machine, [arch, driver]: [&str; 2], args: &[&str]) -> (Run, u64) {
    let mut command = machine.command(machine.cache.path(), args);
    command.env("GGRO_EMU_ARCH", arch).env("GGRO_EMU_DRIVER", driver).env("GGRO_EMU_DEPENDENTS", "early");
    let run = Run::of(&mut command);
    let report = std::fs::read(machine.cache.path().join("report.json")).unwrap();
    let report: Report = serde_json::from_slice(&report).unwrap();
    (run, report.kernels.values().map(|counters| counters.dependent_launches).sum())
}

fn run(machine: &Machine, more: &[&str]) -> (Run, u64) {
    run_on(machine, ["90", "13000"], &[&ASK[..], more].concat())
}

fn answer(run: &Run) -> Value {
    assert_eq!(run.code, Some(0), "{}", run.err);
    let object: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(object["device"], "cuda:0", "{}", run.err);
    object["text"].clone()
}

fn info(machine: &Machine) -> Value {
    let info: Value = serde_json::from_str(&machine.run(&["info", "--json"]).out).unwrap();
    info["cuda"]["devices"][0].clone()
}

/// What a process wrote that found something to be so, long enough ago that none can be at it.
fn remember(machine: &Machine, change: impl FnOnce(&mut Value)) {
    let file = &machine.remembered()[0];
    let mut remembered: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    change(&mut remembered);
    std::fs::write(file, remembered.to_string()).unwrap();
}

#[test]
fn a_sound_hopper_begins_kernels_early() {
    let machine = sound();
    let undecided = info(&machine);
    assert_eq!(undecided["dependent_launches"], true, "{undecided}");
    assert!(undecided["launches"]["dependent"].is_null(), "{undecided}");
    assert!(machine.run(&["info"]).out.contains("how kernels are launched is not yet decided: the first use"));

    // Nothing is known: then only who asks for it has it.
    let (unchecked, dependent) = run(&machine, &["--no-self-check"]);
    let words = "launches: one after the other (dependent launches were never checked on this device)";
    assert!(dependent == 0 && unchecked.err.contains(words), "{dependent} {}", unchecked.err);
    let (forced, dependent) = run(&machine, &["--no-self-check", "--dependent-launches"]);
    let words =
        "warning: launches: dependent (--dependent-launches asks for it, although dependent launches were never";
    assert!(dependent > 0 && forced.err.contains(words), "{dependent} {}", forced.err);
    assert!(machine.remembered().is_empty());

    // Who turns it off, checks nothing of it.
    let (off, dependent) = run(&machine, &["--dependent-launches=off"]);
    assert!(off.err.contains("for the first time") && !off.err.contains("launches"), "{}", off.err);
    assert_eq!(dependent, 0);
    let (first, _) = run(&machine, &[]);
    let words = "self-check: cuda:0, dependent launches, for the first time: 4 cases passed";
    assert!(first.err.contains(words), "{}", first.err);
    let (second, dependent) = run(&machine, &[]);
    assert!(
        !second.err.contains("self-check") && second.err.contains("kernels sm90, dependent launches)"),
        "{}",
        second.err
    );
    assert!(dependent > 0);
    // A family's kernels are a matter of their own.
    let (other, _) = run(&machine, &["--kernels", "sm80", "--dependent-launches"]);
    assert!(other.err.contains(words) && other.err.contains("kernels sm80, dependent launches)"), "{}", other.err);
    let (remembered, dependent) = run(&machine, &["--no-self-check"]);
    assert!(dependent > 0 && !remembered.err.contains("launches: "), "{}", remembered.err);
    let (off, dependent) = run(&machine, &["--dependent-launches=false"]);
    assert!(dependent == 0 && !off.err.contains("launches"), "{}", off.err);
    for run in [&unchecked, &forced, &first, &second, &other, &remembered] {
        assert_eq!(answer(run), answer(&off));
    }

    let decided = info(&machine);
    assert_eq!((&decided["launches"]["dependent"], &decided["dependent_launches"]), (&true.into(), &true.into()));
    assert_eq!(decided["launches"]["why"], "the self-check of dependent launches passed");
    for family in ["sm80", "sm90"] {
        assert_eq!(decided["self_check"]["dependent_launches"][family]["passed"], true, "{decided}");
    }
    let text = machine.run(&["info"]).out;
    assert!(text.contains("kernels begin before those before them have ended: the self-check of dep"), "{text}");
    let doctor = machine.run(&["doctor"]);
    assert_eq!(doctor.code, Some(0), "{}", doctor.out);
    assert!(doctor.out.contains("self-check of dependent launches, kernels sm90: 4 cases passed"), "{}", doctor.out);

    // A check that was begun and never ended: the process did not survive it, and no other is to try.
    remember(&machine, |found| {
        found["dependents"]["sm90"]["ended"] = false.into();
        found["dependents"]["sm90"]["when"] = "2026-01-01T00:00:00Z".into();
    });
    for _ in 0..2 {
        let (tried, dependent) = run(&machine, &[]);
        let words =
            "launches: one after the other (the self-check of dependent launches failed: it did not end the last time";
        assert!(dependent == 0 && tried.err.contains(words), "{}", tried.err);
        assert_eq!(answer(&tried), answer(&off));
    }
    let found = info(&machine);
    assert_eq!((&found["launches"]["dependent"], &found["kernels"]["family"]), (&false.into(), &"sm90".into()));
    assert!(machine.run(&["info"]).out.contains("kernels begin one after the other: the self-check of dependent"));
    assert_eq!(machine.run(&["doctor"]).code, Some(0));
    assert_eq!(info(&machine)["launches"]["dependent"], true);
    // A file of before has no such check.
    remember(&machine, |found| {
        found.as_object_mut().unwrap().remove("dependents");
    });
    assert!(run(&machine, &[]).0.err.contains("dependent launches, for the first time"));
}

#[test]
fn a_kernel_that_waits_too_late_leaves_the_order() {
    let machine = machine(late_waits("rmsnorm", "rmsnorm_bf16"));
    let (first, _) = run(&machine, &[]);
    let line = first.err.lines().find(|line| line.starts_with("launches: one after the other (")).unwrap();
    let why = "the self-check of dependent launches failed: 2 of 4 cases differ: chain (bf16 5 tokens): ";
    assert!(line.contains(why) && line.contains("`ggro doctor`"), "{line}");
    // It is remembered.
    let (again, dependent) = run(&machine, &[]);
    assert!(
        dependent == 0 && again.err.contains(line) && again.err.contains("kernels sm90)"),
        "{dependent} {}",
        again.err
    );
    let (expected, _) = run(&sound(), &["--dependent-launches=false"]);
    assert_eq!((answer(&first), answer(&again)), (answer(&expected), answer(&expected)));
    let found = info(&machine);
    assert_eq!(found["launches"]["dependent"], false, "{found}");
    assert!(found["launches"]["why"].as_str().unwrap().contains(why), "{found}");
    assert_eq!(found["self_check"]["dependent_launches"]["sm90"]["passed"], false, "{found}");
    // The flag alone does not turn it on; who wants no check has it.
    let (asked, dependent) = run(&machine, &["--dependent-launches"]);
    assert!(dependent == 0 && asked.err.contains(line), "{}", asked.err);
    let (_, dependent) = run(&machine, &["--dependent-launches", "--no-self-check"]);
    assert!(dependent > 0);
    let (doctor, _) = run_on(&machine, ["90", "13000"], &["doctor"]);
    assert_eq!(doctor.code, Some(1), "{}", doctor.out);
    let words = "the self-check of dependent launches of the kernels of sm90 failed: 2 of 4 cases differ";
    assert!(doctor.out.contains(words) && doctor.out.contains("gives its known answer"), "{}", doctor.out);
}

#[test]
fn a_device_that_is_lost_in_the_check_of_launches_is_not_used() {
    // The device does not survive a block of which no thread waits.
    let machine = machine(without_wait("rmsnorm", "rmsnorm_bf16", None));
    let (refused, _) = run(&machine, &["--device", "cuda"]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    let why = "the self-check of dependent launches lost the CUDA device (ggro emulated device: ";
    assert!(refused.err.contains(why) && refused.err.contains("--dependent-launches=false"), "{}", refused.err);
    // The next process knows.
    let (next, dependent) = run(&machine, &[]);
    assert!(
        next.err.contains("launches: one after the other (the self-check of dependent launches failed: "),
        "{}",
        next.err
    );
    assert!(answer(&next).is_string() && dependent == 0);
    std::fs::remove_file(&machine.remembered()[0]).unwrap();
    let (auto, _) = run(&machine, &[]);
    let object: Value = serde_json::from_str(&auto.out).unwrap();
    assert_eq!(object["device"], "cpu", "{}", auto.err);
    assert!(auto.err.lines().any(|line| line.starts_with("device: cpu (") && line.contains(why)), "{}", auto.err);
    assert_eq!(answer(&run(&machine, &["--dependent-launches=false"]).0), answer(&next));
}

#[test]
fn other_cards_never_ask() {
    let machine = sound();
    for more in [&[][..], &["--dependent-launches"], &["--dependent-launches", "--no-self-check"]] {
        let (plain, dependent) = run_on(&machine, ["80", "13000"], &[&ASK[..], more].concat());
        assert!(dependent == 0 && !plain.err.contains("launches"), "{dependent} {}", plain.err);
        assert!(answer(&plain).is_string());
    }
    remember(&machine, |found| assert_eq!(found["dependents"], serde_json::json!({}), "{found}"));
}

/// Graphs of a driver before CUDA 12.3 have plain edges.
#[test]
fn older_drivers_are_checked_and_run() {
    let machine = sound();
    let (first, dependent) = run_on(&machine, ["90", "12020"], &ASK);
    // What this build's machine code needs may be newer.
    if !first.err.contains("driver") {
        assert!(first.err.contains("dependent launches, for the first time: 4 cases passed"), "{}", first.err);
        assert!(dependent > 0 && answer(&first).is_string());
    }
}
