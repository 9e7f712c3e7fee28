//! `ggro verify`.

use super::{copy, ggro, goldens, read_json, utf8};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn the_goldens() {
    let run = ggro(&["verify", utf8(&goldens())]);
    assert_eq!(run.code, Some(0), "{}", run.out);
    assert!(run.out.contains("132 checks, 0 with differences"), "{}", run.out);
    assert!(!run.out.contains("DIFFER"));
}

#[test]
fn one_folder_as_json() {
    let object = ggro(&["verify", "--json", utf8(&goldens().join("llama-twins"))]).ok().json();
    assert_eq!(object["failed"], 0);
    let checks = object["folders"][0]["checks"].as_array().expect("checks");
    assert_eq!(checks.len(), 7);
    assert!(checks.iter().all(|check| check["ok"] == true && check["deviations"][0]["count"].as_u64() > Some(0)));
}

/// Changes `traces.json` of a copy and expects a difference that is spelled out.
fn differs(change: impl FnOnce(&mut Value), parts: &[&str]) {
    let dir = copy("llama-unaligned");
    let path = dir.path().join("traces.json");
    let mut file = read_json(&path);
    change(&mut file["traces"][0]);
    std::fs::write(&path, file.to_string()).expect("written");
    let run = ggro(&["verify", utf8(dir.path())]);
    assert_eq!(run.code, Some(1), "{}{}", run.out, run.err);
    for part in ["DIFFERS", "1 with differences"].iter().chain(parts) {
        assert!(run.out.contains(part), "no {part:?} in {}", run.out);
    }
}

#[test]
fn a_changed_trace_differs() {
    let candidate = "/segments/1/candidates/0";
    let set =
        |pointer: String, value: Value| move |trace: &mut Value| *trace.pointer_mut(&pointer).expect("a field") = value;
    let at = |field: &str| format!("{candidate}/{field}");
    differs(set(at("ids/0"), json!(1)), &["segment 1 candidate 0: ids, entry 0: 1 expected"]);
    differs(set(at("reward"), json!(99.0)), &["segment 1 candidate 0: reward: 99.0"]);
    differs(set(at("entropies/0"), json!(9.0)), &["segment 1 candidate 0: entropies, token 0"]);
    differs(set(at("stop"), json!("length")), &["stop: Length expected"]);
    differs(set(at("top_k/dots"), json!([])), &["segment 1 candidate 0: the lists", "different lengths"]);
    differs(set("/segments/1/start".into(), json!(1u64 << 40)), &["segment 1: start"]);
    differs(set("/num_nudges".into(), json!(77)), &["nudges: 77 expected"]);
    differs(set("/segment_boundaries/0".into(), json!(1)), &["boundaries, entry 0: 1 expected"]);
    differs(set("/final_reward".into(), json!(-50.0)), &["final reward: -50.0"]);
    differs(set("/finish_reason".into(), json!("stalled")), &["finish reason: Stalled expected"]);
    differs(set("/options/top_k".into(), json!(0)), &["not decoded", "top_k"]);
}

#[test]
fn changed_gradients_and_cases_differ() {
    let dir = copy("llama-gqa");
    for name in ["forward_1", "forward_48", "forward_700"] {
        std::fs::remove_file(dir.path().join(format!("{name}.safetensors"))).expect("removed");
    }
    let forward = dir.path().join("forward_9.safetensors");
    let mut bytes = std::fs::read(&forward).expect("a file");
    // The last tensor's last element, of `reward_grad_last` or the like.
    let end = bytes.len();
    bytes[end - 1] ^= 0x40;
    std::fs::write(&forward, bytes).expect("written");
    let cases = dir.path().join("tokenizer_cases.json");
    let mut file = read_json(&cases);
    file["encode"][3]["ids"][0] = json!(0);
    std::fs::write(&cases, file.to_string()).expect("written");
    let run = ggro(&["verify", utf8(dir.path())]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    assert!(run.out.contains("2 with differences") && run.out.contains("ids of \"Hello world\""), "{}", run.out);
}

#[test]
fn folders_without_traces_fail() {
    let empty = tempfile::tempdir().expect("a folder");
    let no_traces = copy("llama-unaligned");
    std::fs::remove_file(no_traces.path().join("traces.json")).expect("removed");
    let none_inside = copy("llama-unaligned");
    let content = "{\"model\": \"x\", \"traces\": []}";
    std::fs::write(none_inside.path().join("traces.json"), content).expect("written");
    let fails = |path: &Path| {
        let run = ggro(&["verify", utf8(path)]);
        assert_eq!(run.code, Some(1), "{}{}", run.out, run.err);
        assert!(run.out.contains("holds no traces"), "{}", run.out);
    };
    fails(empty.path());
    fails(no_traces.path());
    fails(none_inside.path());
}

#[test]
fn unusable_folders_are_input_errors() {
    let run = ggro(&["verify", "no/such/folder"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("no/such/folder"), "{}", run.err);
    let dir = copy("llama-unaligned");
    std::fs::write(dir.path().join("traces.json"), "{\"traces\": 3").expect("written");
    let run = ggro(&["verify", utf8(dir.path())]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("traces.json"), "{}", run.err);
}
