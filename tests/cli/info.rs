//! `ggro info`, and the help.

use super::{ggro, goldens, utf8};

#[test]
fn the_demo_pair() {
    let run = ggro(&["info"]).ok();
    for part in [env!("CARGO_PKG_VERSION"), "kernels", "cpu", "policy", "reward", "bf16", "4.0 M parameters"] {
        assert!(run.out.contains(part), "no {part:?} in {}", run.out);
    }
    let info = ggro(&["info", "--json", "--max-model-len", "100"]).ok().json();
    let kernels = &info["kernels"];
    // Devices, or what is missing and what would help.
    let cuda = &info["cuda"];
    let missing = cuda["missing"].as_str();
    assert_eq!(missing.is_some(), cuda["devices"].as_array().is_some_and(Vec::is_empty), "{cuda}");
    assert!(missing.is_none_or(|why| why.contains("nvcc") == (kernels["count"] == 0)), "{cuda}");
    for device in cuda["devices"].as_array().into_iter().flatten() {
        assert!(device["missing"].is_string() || device["report"].is_string(), "{cuda}");
    }
    assert_eq!(info["pair"]["demo"], true);
    assert_eq!(info["pair"]["models"][0]["kv_bytes_per_token"], 4096);
    assert_eq!(info["memory"]["kv_bytes"], 819_200);
    assert_eq!(info["memory"]["max_model_len"], 100);
    assert_eq!(info["memory"]["fits"], true);
}

#[test]
fn a_pair_of_directories() {
    let folder = goldens().join("mistral");
    let (policy, reward) = (folder.join("policy"), folder.join("reward"));
    let info = ggro(&["info", "--json", "--policy", utf8(&policy), "--reward", utf8(&reward)]).ok().json();
    let model = &info["pair"]["models"][0];
    assert_eq!((&model["family"], &model["dtype"]), (&"mistral".into(), &"f16".into()));
    assert_eq!((&model["window"], &info["pair"]["models"][1]["window"]), (&24.into(), &20.into()));
    assert_eq!(info["pair"]["demo"], false);
}

#[test]
fn help_names_defaults() {
    let run = ggro(&["generate", "--help"]).ok();
    for part in ["3.25", "GGRO_", "[default: 8]", "[default: 25]", "official", "NO_COLOR"] {
        assert!(run.out.contains(part) || ggro(&["--help"]).out.contains(part), "no {part:?} in {}", run.out);
    }
    // Each method has a line with its paper.
    for (method, paper) in [
        ("ggro", "2606.09635"),
        ("rejection-sampling", "2406.16306"),
        ("cards", "2406.16306"),
        ("speculative-rejection", "2410.20290"),
        ("args", "2402.01694"),
        ("blockwise", "2310.17022"),
        ("beam", "2405.19262"),
        ("soft-best-of-n", "2506.19248"),
        ("best-of-poisson", "2506.19248"),
    ] {
        let begin = run.out.find(&format!("- {method}: ")).unwrap_or_else(|| panic!("no {method} in {}", run.out));
        let rest = run.out[begin + 2..].split("\n          - ").next().unwrap_or_default();
        assert!(rest.split("\n\n").next().is_some_and(|line| line.contains(paper)), "{method}: {rest}");
    }
    assert_eq!(ggro(&[]).code, Some(2));
    assert_eq!(ggro(&["--version"]).ok().out, format!("ggro {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn ops_are_known_by_name_before_a_device_is_asked_for() {
    for command in ["test", "bench"] {
        let run = ggro(&["kernels", command, "--op", "nothing"]);
        assert_eq!(run.code, Some(2));
        assert!(run.err.contains("no op nothing; there are ") && run.err.contains("rmsnorm"), "{}", run.err);
    }
}

#[test]
fn the_doctor_reports() {
    let run = ggro(&["doctor"]);
    for part in ["built with", "kernels", "system", "memory", "device", "cache", "the demo pair gives its known answer"]
    {
        assert!(run.out.contains(part), "no {part:?} in {}", run.out);
    }
    // A machine without a device is well; one with a device may not be, and then its last line says so.
    let is_well = run.out.lines().last().unwrap().contains("all is well");
    assert_eq!(run.code, Some(if is_well { 0 } else { 1 }), "{}", run.out);
    let report = ggro(&["doctor", "--json"]).json();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["cpu"]["demo"]["ok"], true, "{report}");
    assert!(report["environment"].is_object() && report["caches"].as_array().is_some_and(|caches| !caches.is_empty()));
}
