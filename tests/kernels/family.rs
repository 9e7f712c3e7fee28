//! Which family of kernels multiplies: the one of Hopper where its self-check has passed, and what each face says of it.

use crate::emulated;
use crate::self_check::{Machine, Run, changed};
use ggro_emulator::Report;
use serde_json::{Value, json};
use std::path::PathBuf;

const ASK: [&str; 8] =
    ["generate", "--json", "--no-baseline", "--max-new-tokens", "12", "--entropy-threshold", "2", "Tell me a story."];

fn machine(ptx: PathBuf) -> Machine {
    Machine { ptx, cache: tempfile::tempdir().unwrap() }
}

fn sound() -> Machine {
    machine(emulated::folder().to_path_buf())
}

/// One kernel of Hopper, changed.
fn with_kernel(text: &str, change: impl Fn(&str) -> String) -> String {
    let start = text.find(".entry gemm_sm90_8_bf16").unwrap();
    let end = text[start + 1..].find(".entry").map_or(text.len(), |at| start + 1 + at);
    [&text[..start], &change(&text[start..end]), &text[end..]].concat()
}

/// With its sums turned into differences.
fn broken() -> Machine {
    machine(changed("broken-sm90", |file, text| match file {
        "gemm_sm90" => with_kernel(text, |kernel| kernel.replace("add.f32", "sub.f32")),
        _ => text.to_string(),
    }))
}

/// With an end that the device does not survive.
fn deadly() -> Machine {
    machine(changed("deadly-sm90", |file, text| match file {
        "gemm_sm90" => with_kernel(text, |kernel| kernel.replacen("\n{\n", "\n{\n\ttrap;\n", 1)),
        _ => text.to_string(),
    }))
}

/// Runs a command on a card, and says how often a kernel of each family was launched.
fn run_on(machine: &Machine, arch: &str, args: &[&str]) -> (Run, [u64; 2]) {
    let run = Run::of(machine.command(machine.cache.path(), args).env("GGRO_EMU_ARCH", arch));
    let report = std::fs::read(machine.cache.path().join("report.json")).unwrap();
    let report: Report = serde_json::from_slice(&report).unwrap();
    let of_hopper = |name: &str| name.starts_with("gemm_sm90") || name.starts_with("gemm_backward_sm90");
    let products = report.kernels.iter().filter(|(name, _)| name.starts_with("gemm_"));
    let (sm90, sm80): (Vec<_>, Vec<_>) = products.partition(|(name, _)| of_hopper(name));
    let launches =
        |of: Vec<(&String, &ggro_emulator::Counters)>| of.iter().map(|(_, counters)| counters.launches).sum();
    (run, [launches(sm80), launches(sm90)])
}

fn run(machine: &Machine, args: &[&str]) -> (Run, [u64; 2]) {
    run_on(machine, "90", args)
}

fn asked<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&ASK[..], more].concat()
}

/// What was answered, without what a clock says.
fn answer(run: &Run) -> Value {
    assert_eq!(run.code, Some(0), "{}", run.err);
    let object: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(object["device"], "cuda:0", "{}", run.err);
    let mut answer = object.clone();
    answer
        .as_object_mut()
        .unwrap()
        .retain(|name, _| ["text", "num_nudges", "segments", "new_tokens"].contains(&&**name));
    assert!(answer["text"].as_str().is_some_and(|text| !text.is_empty()), "{object}");
    answer
}

/// The device's entry of `ggro info`.
fn info(machine: &Machine) -> Value {
    let info: Value = serde_json::from_str(&machine.run(&["info", "--json"]).out).unwrap();
    info["cuda"]["devices"][0].clone()
}

#[test]
fn a_sound_hopper_runs_its_own_kernels() {
    let machine = sound();
    let undecided = info(&machine);
    assert!(undecided["kernels"]["family"].is_null(), "{undecided}");
    let why = undecided["kernels"]["why"].as_str().unwrap();
    assert!(why.contains("the first use of the device checks those of sm90"), "{why}");

    // Nothing is known, and nothing is asked.
    let (unchecked, launches) = run(&machine, &asked(&["--no-self-check"]));
    assert!(launches[0] > 0 && launches[1] == 0, "{launches:?}");
    assert!(unchecked.err.contains("kernels: sm80 (the kernels of sm90 were never checked"), "{}", unchecked.err);
    let (forced, launches) = run(&machine, &asked(&["--no-self-check", "--kernels", "sm90"]));
    assert!(launches[1] > 0, "{launches:?}");
    let warning = "warning: kernels: sm90 (--kernels sm90 asks for it, although the kernels of sm90 were never checked";
    assert!(forced.err.contains(warning), "{}", forced.err);
    assert!(machine.remembered().is_empty());

    // Those of every card need no other check.
    let (first, launches) = run(&machine, &asked(&["--kernels", "sm80"]));
    assert!(first.err.contains("for the first time") && !first.err.contains("sm90"), "{}", first.err);
    assert_eq!(launches[1], 0);
    let (second, _) = run(&machine, &ASK);
    assert!(second.err.contains("self-check: cuda:0, kernels of sm90, for the first time: "), "{}", second.err);
    assert!(!second.err.contains("self-check: cuda:0, for the first time"), "{}", second.err);
    let (own, launches) = run(&machine, &ASK);
    assert!(!own.err.contains("self-check") && own.err.contains("kernels sm90, dependent launches)"), "{}", own.err);
    // The head of the reward model, of one row, is every card's with either family.
    assert!(launches[0] * 50 < launches[1], "{launches:?}");
    let (other, launches) = run(&machine, &asked(&["--kernels", "sm80"]));
    assert!(launches[0] > 0 && launches[1] == 0, "{launches:?}");
    // A tiny model's decisions are clear enough to be the same.
    for run in [&unchecked, &forced, &first, &second, &own] {
        assert_eq!(answer(run), answer(&other));
    }

    let decided = info(&machine);
    assert_eq!(decided["kernels"]["family"], "sm90", "{decided}");
    assert_eq!(decided["kernels"]["why"], "the self-check of sm90 passed");
    assert_eq!(decided["self_check"]["sm90"]["passed"], true);
    let text = machine.run(&["info"]).out;
    assert!(text.contains("runs kernels sm90: the self-check of sm90 passed"), "{text}");
    let doctor = machine.run(&["doctor"]);
    assert_eq!(doctor.code, Some(0), "{}", doctor.out);
    assert!(doctor.out.contains("self-check of sm90: ") && doctor.out.contains("runs kernels sm90"), "{}", doctor.out);

    // One that was begun and never ended: the process did not survive it, and no other is to try.
    let file = &machine.remembered()[0];
    let mut tried: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    tried["sm90"]["ended"] = Value::Bool(false);
    // Long enough ago that no process can be at it.
    tried["sm90"]["when"] = Value::from("2026-01-01T00:00:00Z");
    std::fs::write(file, tried.to_string()).unwrap();
    for _ in 0..2 {
        let (run, launches) = run(&machine, &ASK);
        assert!(
            run.err.contains("kernels: sm80 (the self-check of sm90 failed: it did not end the last time"),
            "{}",
            run.err
        );
        assert_eq!((answer(&run), launches[1]), (answer(&other), 0));
    }
    assert_eq!(info(&machine)["kernels"]["family"], "sm80");
    let (forced, launches) = run(&machine, &asked(&["--kernels", "sm90"]));
    assert!(launches[1] > 0 && forced.err.contains("although the self-check of sm90 failed"), "{}", forced.err);
    // Until it is made anew.
    assert_eq!(machine.run(&["doctor"]).code, Some(0));
    assert_eq!(info(&machine)["kernels"]["family"], "sm90");
}

#[test]
fn a_broken_kernel_of_hopper_leaves_the_others() {
    let machine = broken();
    let which = "gemm_sm90 (bf16 5 tokens in tiles of 8, shared): y, element ";
    let (first, _) = run(&machine, &ASK);
    let line = first.err.lines().find(|line| line.starts_with("kernels: sm80 (")).unwrap();
    assert!(line.contains(which) && line.contains("`ggro doctor`"), "{line}");
    // It is remembered.
    let (again, launches) = run(&machine, &ASK);
    assert!(launches[0] > 0 && launches[1] == 0 && again.err.contains(line), "{launches:?} {}", again.err);
    let (expected, _) = run(&sound(), &asked(&["--kernels", "sm80"]));
    assert_eq!((answer(&first), answer(&again)), (answer(&expected), answer(&expected)));
    let found = info(&machine);
    assert_eq!(
        (&found["kernels"]["family"], &found["self_check"]["passed"]),
        (&"sm80".into(), &true.into()),
        "{found}"
    );
    assert!(found["kernels"]["why"].as_str().unwrap().contains(which), "{found}");
    let doctor = machine.run(&["doctor"]);
    assert_eq!(doctor.code, Some(1), "{}", doctor.out);
    assert!(doctor.out.contains("the self-check of the kernels of sm90 failed: "), "{}", doctor.out);
    // They run all the same if they are asked for, with a word of warning.
    let (forced, launches) = run(&machine, &asked(&["--kernels", "sm90"]));
    assert!(launches[1] > 0 && forced.err.contains("warning: kernels: sm90 ("), "{}", forced.err);
}

/// Sums that are rounded otherwise are as near as those of other kernels, but a row would have other bits beside many others.
#[test]
fn kernels_with_other_bits_for_many_rows_are_left_out() {
    let machine = machine(changed("unlike-sm90", |file, text| match file {
        "attention_sm90" => text.replace("fma.rn.f32", "fma.rm.f32"),
        _ => text.to_string(),
    }));
    assert_eq!(machine.run(&ASK).code, Some(0));
    let found = info(&machine);
    assert_eq!(found["kernels"]["family"], "sm80", "{found}");
    let why = found["kernels"]["why"].as_str().unwrap();
    assert!(why.contains("attention_sm90 (") && why.contains(": a row depends on its company"), "{why}");
}

#[test]
fn a_device_that_is_lost_in_the_check_is_not_used() {
    let machine = deadly();
    let refused = machine.run(&asked(&["--device", "cuda"]));
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    let why = "the self-check of the kernels of sm90 lost the CUDA device (ggro emulated device: ";
    assert!(refused.err.contains(why) && refused.err.contains("--kernels sm80"), "{}", refused.err);
    // The next process knows.
    let (next, launches) = run(&machine, &ASK);
    assert!(next.err.contains("kernels: sm80 (the self-check of sm90 failed: "), "{}", next.err);
    assert!(answer(&next)["text"].is_string() && launches[1] == 0);
    let doctor = machine.run(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(doctor.out.contains("the demo pair was not asked: "), "{}", doctor.out);
    std::fs::remove_file(&machine.remembered()[0]).unwrap();
    let auto = machine.run(&ASK);
    let object: Value = serde_json::from_str(&auto.out).unwrap();
    assert_eq!(object["device"], "cpu", "{}", auto.err);
    assert!(auto.err.lines().any(|line| line.starts_with("device: cpu (") && line.contains(why)), "{}", auto.err);
}

#[test]
fn other_cards_have_no_kernels_of_hopper() {
    let machine = sound();
    for device in ["auto", "cuda"] {
        let (refused, _) = run_on(&machine, "80", &asked(&["--kernels", "sm90", "--device", device]));
        assert_eq!(refused.code, Some(2), "{}", refused.err);
        let why = "error: --kernels sm90: the kernels of sm90 are for compute capability 9.0 alone; ggro emulated device has 8.0";
        assert!(refused.err.starts_with(why), "{}", refused.err);
    }
    let (plain, launches) = run_on(&machine, "80", &ASK);
    assert!(launches[0] > 0 && launches[1] == 0, "{launches:?}");
    assert!(!plain.err.contains("sm90") && plain.err.contains("kernels sm80)"), "{}", plain.err);
    let cpu = machine.run(&asked(&["--kernels", "sm80", "--device", "cpu"]));
    assert_eq!(cpu.code, Some(2));
    assert!(
        cpu.err.starts_with("error: --kernels sm80: the device would be the CPU, which has no CUDA"),
        "{}",
        cpu.err
    );
}

/// Rows say what they were made on, and are not mixed unasked.
#[test]
fn rows_say_which_kernels_they_were_made_by() {
    let machine = sound();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
    std::fs::write(&input, "\"One.\"\n\"Two.\"\n").unwrap();
    let args =
        ["run", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap(), "--max-new-tokens", "4"];
    let ran = machine.run(&[&args[..], &["--num-prompts", "1"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let other = [&args[..], &["--kernels", "sm80"]].concat();
    let refused = machine.run(&other);
    assert_eq!(refused.code, Some(2));
    let why =
        "its rows were made on cuda 9.0 with kernels sm90, the others would be made on cuda 9.0 with kernels sm80";
    assert!(refused.err.contains(why) && refused.err.contains("--mix-devices"), "{}", refused.err);
    let mixed = machine.run(&[&other[..], &["--mix-devices"]].concat());
    assert_eq!(mixed.code, Some(0), "{}", mixed.err);
    let text = std::fs::read_to_string(&output).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let made_on = rows.iter().map(|row| (row["device"].as_str(), row["kernels"].as_str())).collect::<Vec<_>>();
    assert_eq!(made_on, [(Some("cuda 9.0"), Some("sm90")), (Some("cuda 9.0"), Some("sm80"))]);
    let options = std::fs::read(folder.path().join("out.jsonl.config.json")).unwrap();
    let options: Value = serde_json::from_slice(&options).unwrap();
    assert_eq!((&options["device"], &options["kernels"]), (&json!("cuda 9.0"), &json!("sm90")));
    assert_eq!(options["mixed_in"], json!([{ "device": "cuda 9.0", "kernels": "sm80" }]));
}
