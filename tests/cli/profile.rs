//! What a profiler would see: the trace, NVTX ranges through a stub that listens to them.

use super::{command, finish, ggro};
use ggro::profile::has_nvtx;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

const STORY: [&str; 5] = ["generate", "Tell me a story about a box.", "--max-new-tokens", "24", "--no-baseline"];

#[test]
fn a_trace_of_the_phases() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let plain = ggro(&STORY).ok();
    let traced = ggro(&[&STORY[..], &["--trace-events", file.to_str().unwrap()]].concat()).ok();
    assert_eq!(plain.out, traced.out);
    let trace: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).expect("JSON");
    let events = trace["traceEvents"].as_array().unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events {
        let name = event["name"].as_str().unwrap();
        *counts.entry(name).or_default() += 1;
        assert!(
            event["ph"] == "X" && event["ts"].as_f64() >= Some(0.0) && event["dur"].as_f64() >= Some(0.0),
            "{event}"
        );
        assert!(event["args"]["count"].is_u64() && event["pid"].is_u64() && event["tid"].is_u64());
    }
    for name in ["scheduler", "prefill", "decode", "reward backward", "nudge"] {
        assert!(counts.get(name).is_some_and(|&count| count > 0), "{name}: {counts:?}");
    }
    assert_eq!(counts["prefill"], 1, "one prompt");
    let missing = dir.path().join("no/such/folder");
    let refused = ggro(&[&STORY[..], &["--trace-events", missing.to_str().unwrap()]].concat());
    assert!(refused.code == Some(2) && refused.err.contains("no/such/folder"), "{}", refused.err);
}

#[test]
fn flags_that_cannot_be_honoured() {
    for (flag, value, part) in [("--profile-steps", "4-2", "FIRST-LAST"), ("--nvtx", "7", "off, 1 (phases) or 2")] {
        let run = ggro(&[&STORY[..], &[flag, value]].concat());
        assert!(run.code == Some(2) && run.err.contains(part), "{}", run.err);
    }
    if !has_nvtx() {
        let run = ggro(&[&STORY[..], &["--nvtx", "1"]].concat());
        assert!(run.code == Some(2) && run.err.contains("has no NVTX"), "{}", run.err);
    }
}

/// A library that NVTX calls in place of a profiler; it writes what it is told into the file that `STUB_LOG` names.
const STUB: &str = r#"
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>

static FILE* out;
static const char* texts[64];
static int count;

static nvtxDomainHandle_t create(const char* name) { fprintf(out, "domain %s\n", name); return (nvtxDomainHandle_t)&count; }
static nvtxStringHandle_t string(nvtxDomainHandle_t d, const char* text) {
    (void)d; texts[++count] = text; fprintf(out, "string %s\n", text);
    char* copy = malloc(64); snprintf(copy, 64, "%s", text); texts[count] = copy;
    return (nvtxStringHandle_t)(size_t)count;
}
static void category(nvtxDomainHandle_t d, uint32_t id, const char* name) { (void)d; fprintf(out, "category %u %s\n", id, name); }
static int push(nvtxDomainHandle_t d, const nvtxEventAttributes_t* a) {
    (void)d;
    fprintf(out, "push %s %u %llu\n", texts[(size_t)a->message.registered], a->category, (unsigned long long)a->payload.ullValue);
    return 0;
}
static int pop(nvtxDomainHandle_t d) { (void)d; fprintf(out, "pop\n"); fflush(out); return 0; }

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get) {
    out = fopen(getenv("STUB_LOG"), "w");
    const NvtxExportTableCallbacks* callbacks = get(NVTX_ETID_CALLBACKS);
    NvtxFunctionTable table = 0; unsigned size = 0;
    if (!out || !callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size)) return 0;
    *table[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)create;
    *table[NVTX_CBID_CORE2_DomainRegisterStringA] = (NvtxFunctionPointer)string;
    *table[NVTX_CBID_CORE2_DomainNameCategoryA] = (NvtxFunctionPointer)category;
    *table[NVTX_CBID_CORE2_DomainRangePushEx] = (NvtxFunctionPointer)push;
    *table[NVTX_CBID_CORE2_DomainRangePop] = (NvtxFunctionPointer)pop;
    return 1;
}
"#;

#[test]
fn ranges_are_seen_by_whoever_listens() {
    let Some(include) = option_env!("GGRO_NVTX_INCLUDE").filter(|_| has_nvtx()) else {
        println!("this build has no NVTX");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (source, library, log) = (dir.path().join("stub.c"), dir.path().join("stub.so"), dir.path().join("log"));
    std::fs::write(&source, STUB).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-I", include, "-o"]).arg(&library).arg(&source).output();
    let compiled = compiled.expect("a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let run = |level: &str| {
        let mut command = command();
        command
            .args(STORY)
            .args(["--nvtx", level, "--threads", "1"])
            .env("NVTX_INJECTION64_PATH", &library)
            .env("STUB_LOG", &log);
        let _ = std::fs::remove_file(&log);
        let out = finish(&mut command).ok().out;
        (out, std::fs::read_to_string(&log).unwrap_or_default())
    };
    let (plain, silent) = run("off");
    assert!(silent.is_empty(), "off, nobody is told anything");
    let (shown, phases) = run("1");
    assert_eq!(plain, shown);
    assert!(phases.starts_with("domain ggro\n"), "{phases}");
    let pushed = |log: &str| -> BTreeSet<String> {
        let names = log.lines().filter_map(|line| line.strip_prefix("push "));
        names.map(|line| line.rsplitn(3, ' ').last().unwrap().to_string()).collect()
    };
    let names = pushed(&phases);
    for name in ["scheduler", "prefill", "decode", "reward backward", "nudge"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    assert!(!names.contains("layer"));
    // Every range ends, inside the one around it.
    let mut depth = 0i32;
    for line in phases.lines() {
        depth += i32::from(line.starts_with("push ")) - i32::from(line == "pop");
        assert!(depth >= 0);
    }
    assert_eq!(depth, 0);
    // The prompt's tokens are the payload of its range, and its category is that of its phase.
    assert!(phases.contains("push prefill 2 22\n") && phases.contains("category 2 prefill\n"), "{phases}");
    let (_, layers) = run("2");
    let count = |name: &str| layers.lines().filter(|line| line.starts_with(&format!("push {name} "))).count();
    // Four layers each, forward; gradients go through them twice.
    let passes = count("prefill") + count("decode") + count("reward forward") + 2 * count("reward backward");
    assert!(count("layer") >= 4 * count("decode") && count("layer") <= 5 * passes, "{} {passes}", count("layer"));
}

/// The scripts hand on what they say; a stand-in for NVIDIA's tools writes down what it is given.
#[test]
fn scripts_call_the_profilers() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    for tool in ["nsys", "ncu"] {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(tool);
        let text = format!(
            "#!/bin/sh\necho \"{tool} $*\" >>{log}\nenv | grep ^GGRO_ | sort >>{log}\n\
             for a in \"$@\"; do case $a in --output=*) touch \"${{a#--output=}}.nsys-rep\" ;; esac; done\n",
            log = log.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let run = |script: &str, args: &[&str]| {
        let _ = std::fs::remove_file(&log);
        let mut command = Command::new("bash");
        command.arg(format!("{root}/scripts/{script}")).args(args).current_dir(dir.path()).env("PATH", &path);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GGRO_")) {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        (output.status.code(), std::fs::read_to_string(&log).unwrap_or_default())
    };
    let (code, said) = run("profile-nsys.sh", &["-w", "5-9", "-o", "mine", "ggro", "generate", "two words"]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "--capture-range=cudaProfilerApi",
        "--cuda-graph-trace=node",
        "ggro generate two words",
        "nsys stats",
        "mine.nsys-rep",
        "GGRO_PROFILE_STEPS=5-9",
        "GGRO_NVTX=1",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (_, server) = run("profile-nsys.sh", &["-s", "ggro", "serve"]);
    assert!(
        server.contains("GGRO_ENABLE_PROFILING=1") && server.contains("repeat") && !server.contains("STEPS"),
        "{server}"
    );
    let (code, said) = run("profile-ncu.sh", &["-k", "gemm.*", "-r", "reward backward", "-n", "7", "ggro", "bench"]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "regex:gemm.*",
        "--nvtx-include ggro@reward backward/",
        "--launch-count 7",
        "GGRO_ENFORCE_EAGER=1",
        "GGRO_NVTX=1",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(run("profile-nsys.sh", &[]).0, Some(2));
    assert_eq!(run("profile-ncu.sh", &["-x"]).0, Some(2));
}
