//! `ggro doctor`: everything that a report of a fault needs, and whether all is well.

use super::info::{self, bytes, cpu_model, for_hopper, memory_available, simd, word};
use super::words::{counted, for_stdout};
use crate::Result;
use crate::engine::decode;
use crate::files::demo;
use crate::files::hub::Hub;
use crate::files::pair::Pair;
use crate::method::Options;
use crate::rng::Uniforms;
use crate::runtime::examine::{self, Examined};
use crate::runtime::family::FamilySpec;
use crate::runtime::self_check;
use crate::runtime::{self, DeviceSpec, OpenOptions};
use crate::text::{self, Prompt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Show everything that a bug report needs, and check each device; exit 1 if something is wrong
///
/// Runs the self-check of every CUDA device, whatever is remembered of it, and decodes a few tokens of the demo pair there and on
/// the CPU. Values of variables whose names speak of keys, tokens, secrets or passwords are not shown.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = report();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{report}")?;
    } else {
        write!(out, "{}", for_stdout(&in_words(&report)))?;
    }
    let is_well = report["problems"].as_array().is_some_and(Vec::is_empty);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report() -> Value {
    let mut problems = Vec::new();
    let release = self_check::driver_release();
    let (mut devices, mut missing) = (Vec::new(), None);
    match examine::count() {
        Ok(count) => devices.extend((0..count).map(|index| device(index, &mut problems))),
        Err(why) => {
            // A machine with NVIDIA's kernel module is meant to have a device.
            if release.is_some() {
                problems.push(format!("the machine has NVIDIA's driver, but ggro finds no CUDA device: {why}"));
            }
            missing = Some(why.to_string());
        }
    }
    let cpu = demo_on(DeviceSpec::Cpu, FamilySpec::Auto, false)
        .inspect_err(|why| problems.push(format!("cpu: the demo pair {why}")));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("GGRO_BUILD_COMMIT"),
        "features": features(),
        "kernels": info::kernels(),
        "kernels_need": needed_driver(),
        "system": {
            "name": system_name(),
            "kernel": first_line("/proc/sys/kernel/osrelease"),
            "architecture": std::env::consts::ARCH,
        },
        "cpu": {
            "model": cpu_model(),
            "threads": std::thread::available_parallelism().map_or(1, usize::from),
            "simd": simd(),
            "demo": demo_words(&cpu),
        },
        "memory": { "total_bytes": memory_total(), "available_bytes": memory_available() },
        "driver": release,
        "cuda": { "devices": devices, "missing": missing },
        "caches": caches(),
        "environment": environment(std::env::vars_os()),
        "problems": problems,
    })
}

/// What the library and this binary were built with.
fn features() -> Vec<&'static str> {
    let features = [
        ("server", cfg!(feature = "server")),
        ("hub", cfg!(feature = "hub")),
        ("lab", cfg!(feature = "lab")),
        ("parquet", cfg!(feature = "parquet")),
    ];
    features.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// Which driver the kernels need.
fn needed_driver() -> Option<String> {
    let (major, release) = examine::needed_driver()?;
    Some(format!("a driver that speaks CUDA {major}: release {release} or newer"))
}

fn first_line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.lines().next()?.trim().to_string())
}

fn system_name() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_string())
}

fn memory_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A device with its self-check and an answer of the demo pair.
fn device(index: usize, problems: &mut Vec<String>) -> Value {
    let mut wrong = |what: String| problems.push(format!("cuda:{index}: {what}"));
    let examined = match examine::examine(index) {
        Ok(examined) => examined,
        Err(why) => {
            wrong(why.to_string());
            return json!({ "index": index, "missing": why.to_string() });
        }
    };
    let Examined { name, capability, image, multiprocessors, memory, cuda, clocks_mhz, facts, .. } = examined;
    let (self_check, kernels, launches) = (examined.self_check, examined.kernels, examined.launches);
    if !self_check.passed() {
        wrong(format!("the self-check failed: {}", self_check.words()));
    } else if self_check.stopped.is_some() {
        wrong(format!("the self-check did not end: {}", self_check.words()));
    }
    if let Some(sm90) = self_check.sm90.as_ref().filter(|check| !check.passed()) {
        let what = if sm90.failed() { "failed" } else { "did not end" };
        wrong(format!("the self-check of the kernels of sm90 {what}: {}", sm90.words()));
    }
    for (family, check) in self_check.dependents.iter().filter(|(_, check)| !check.passed()) {
        let what = if check.failed() { "failed" } else { "did not end" };
        let words = check.words();
        wrong(format!("the self-check of dependent launches of the kernels of {family} {what}: {words}"));
    }
    let demo = match examined.lost {
        // Whatever is asked of it now may never come back.
        Some(why) => Err(format!("was not asked: {why}")),
        None => {
            let dependent = launches.as_ref().is_some_and(|launches| launches.dependent);
            demo_on(DeviceSpec::Cuda(index), FamilySpec::Only(kernels.family), dependent)
        }
    };
    let demo = demo.inspect_err(|why| wrong(format!("the demo pair {why}")));
    json!({
        "index": index,
        "name": name,
        "capability": capability,
        "image": image,
        "multiprocessors": multiprocessors,
        "memory_bytes": memory.map(|(_, total)| total),
        "free_bytes": memory.map(|(free, _)| free),
        "cuda": cuda,
        "clocks_mhz": clocks_mhz,
        "limits": facts.into_iter().collect::<BTreeMap<_, _>>(),
        "self_check": info::self_check(&self_check),
        "kernels": info::family(Some(kernels.family), &kernels.why),
        "launches": launches.map(|launches| info::launches(Some(launches.dependent), &launches.why)),
        "demo": demo_words(&demo),
    })
}

/// What the demo pair is asked, from which signal on it nudges, and how many tokens are wanted.
const ASKED: (&str, f64, usize) = ("Tell me a story about a box.", 2.0, 10);
/// What it answers in f32, and in both types of 16 bits.
const ANSWER: &str = "Once upon a time, there was a happy little";
const REWARD: f32 = 1.9756;
/// How far off a reward in 16 bits may be.
const NEAR: f32 = 0.05;

/// Seconds that the known answer took on a device, or what is wrong.
fn demo_on(device: DeviceSpec, kernels: FamilySpec, dependent: bool) -> std::result::Result<f64, String> {
    let started = Instant::now();
    let answer = answer_on(device, kernels, dependent).map_err(|error| format!("gives no answer: {error}"))?;
    let (text, reward, nudges) = &answer;
    if text == ANSWER && (reward - REWARD).abs() < NEAR && *nudges == 1 {
        return Ok(started.elapsed().as_secs_f64());
    }
    Err(format!(
        "answers {text:?} with reward {reward:.4} and {nudges} nudged, expected {ANSWER:?} with {REWARD} and 1"
    ))
}

fn answer_on(device: DeviceSpec, kernels: FamilySpec, dependent: bool) -> Result<(String, f32, usize)> {
    let pair = Pair::load(&demo::policy(), &demo::reward())?;
    let options = OpenOptions {
        device,
        kernels,
        dependent_launches: Some(dependent),
        max_model_len: Some(128),
        self_check: false,
        ..OpenOptions::default()
    };
    let mut opened = runtime::open(&pair, &options, &mut |_| ())?;
    let (message, entropy_threshold, max_new_tokens) = ASKED;
    let prompt = Prompt::of_message(&pair, message)?;
    let options =
        Options { entropy_threshold, max_new_tokens, first_offset: prompt.first_offset, ..Options::for_pair(&pair)? };
    let response = decode(opened.backend(), &prompt.ids, &options, Uniforms::Seeded(0), &mut |_: &_, _: &_| ())?;
    Ok((text::answer(&pair, &response)?, response.final_reward, response.num_nudges))
}

fn demo_words(demo: &std::result::Result<f64, String>) -> Value {
    match demo {
        Ok(seconds) => {
            json!({ "ok": true, "words": format!("the demo pair gives its known answer in {seconds:.1} s") })
        }
        Err(why) => json!({ "ok": false, "words": format!("the demo pair {why}") }),
    }
}

/// Folders that are written to, and whether they can be.
fn caches() -> Vec<Value> {
    let one = |what: &str, path: &Path| {
        let writable = is_writable(path);
        json!({ "what": what, "path": path.display().to_string(), "exists": path.is_dir(), "writable": writable })
    };
    let hub = Hub::from_env();
    let checks = self_check::folder();
    let checks = checks.as_deref().map(|path| one("self-checks", path));
    checks.into_iter().chain([one("models", hub.cache())]).collect()
}

/// Whether files can be made in a folder, or in the first one above it that is there.
fn is_writable(path: &Path) -> bool {
    let Some(folder) = path.ancestors().find(|folder| folder.is_dir()) else { return false };
    let probe = folder.join(format!(".ggro-doctor-{}", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&probe);
    let is_made = made.is_ok();
    drop(made);
    if is_made {
        // One that was made can be removed; if not, a report is no place to fail.
        let _ = std::fs::remove_file(&probe);
    }
    is_made
}

/// Variables that ggro or the libraries below it read.
const READ: [&str; 12] = [
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "LD_LIBRARY_PATH",
    "NO_COLOR",
    "NVIDIA_VISIBLE_DEVICES",
    "RAYON_NUM_THREADS",
    "RUST_LOG",
    "TERM",
    "XDG_CACHE_HOME",
];

/// Variables with their values, but for secrets.
fn environment(variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>) -> BTreeMap<String, String> {
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    let mut found = BTreeMap::new();
    for (name, value) in variables.map(|(name, value)| (text(name), text(value))) {
        let is_read = READ.contains(&name.as_str()) || name.starts_with("GGRO_") || name.starts_with("HF_");
        if is_read {
            let value = shown(&name, &value);
            found.insert(name, value);
        }
    }
    found
}

/// What may be shown of a value.
fn shown(name: &str, value: &str) -> String {
    let secret = ["KEY", "TOKEN", "SECRET", "PASSWORD"].iter().any(|word| name.contains(word));
    // Budgets are counted in tokens.
    let counts = value.parse::<u64>().is_ok() && name.ends_with("TOKENS");
    if secret && !counts && !value.is_empty() {
        return "set, not shown".to_string();
    }
    // An address may have a name and a password in front of its host.
    match value.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://...@{rest}"),
        None => value.to_string(),
    }
}

fn line(out: &mut String, label: &str, text: &str) {
    *out += &format!("{label:<11} {text}\n");
}

/// The report as text.
fn in_words(report: &Value) -> String {
    let unknown = |value: &Value| value.as_str().unwrap_or("unknown").to_string();
    let list = |value: &Value| value.as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(", ");
    let mut out = format!("ggro {}", word(&report["version"]));
    if let Some(commit) = report["commit"].as_str() {
        out += &format!(" ({commit})");
    }
    out += "\n";
    line(&mut out, "built with", &list(&report["features"]));
    let kernels = &report["kernels"];
    if kernels["count"] == 0 {
        line(&mut out, "kernels", "none");
    } else {
        let stored = if kernels["stored"] == true { ", stored with the sources" } else { "" };
        let (count, targets, size) = (word(&kernels["count"]), list(&kernels["targets"]), bytes(&kernels["bytes"]));
        let by = format!("nvcc {} and ptxas {}", word(&kernels["nvcc"]), word(&kernels["ptxas"]));
        let hopper = for_hopper(kernels);
        line(&mut out, "kernels", &format!("{count} for {targets}{hopper}, {size}, by {by}{stored}"));
    }
    if let Some(needed) = report["kernels_need"].as_str() {
        line(&mut out, "", &format!("they need {needed}"));
    }
    let system = &report["system"];
    let words = format!(
        "{}, kernel {}, {}",
        unknown(&system["name"]),
        unknown(&system["kernel"]),
        word(&system["architecture"])
    );
    line(&mut out, "system", &words);
    let cpu = &report["cpu"];
    let simd = cpu["simd"].as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(" ");
    let words = format!("{}, {} threads, {simd}", unknown(&cpu["model"]), word(&cpu["threads"]));
    line(&mut out, "cpu", &words);
    line(&mut out, "", &word(&cpu["demo"]["words"]));
    let memory = &report["memory"];
    let words = format!("{}, {} available", bytes(&memory["total_bytes"]), bytes(&memory["available_bytes"]));
    line(&mut out, "memory", &words);
    line(&mut out, "driver", report["driver"].as_str().unwrap_or("no kernel module of NVIDIA's is loaded"));
    for device in report["cuda"]["devices"].as_array().into_iter().flatten() {
        device_in_words(&mut out, device);
    }
    if let Some(missing) = report["cuda"]["missing"].as_str() {
        line(&mut out, "device", &format!("no cuda: {missing}"));
    }
    for cache in report["caches"].as_array().into_iter().flatten() {
        let there = if cache["exists"] == true { "" } else { ", not there yet" };
        let writable = if cache["writable"] == true { "writable" } else { "NOT writable" };
        let words = format!("{}: {}, {writable}{there}", word(&cache["what"]), word(&cache["path"]));
        line(&mut out, "cache", &words);
    }
    for (name, value) in report["environment"].as_object().into_iter().flatten() {
        line(&mut out, "variable", &format!("{name}={}", word(value)));
    }
    let problems: Vec<String> = report["problems"].as_array().into_iter().flatten().map(word).collect();
    for problem in &problems {
        line(&mut out, "WRONG", problem);
    }
    match problems.len() {
        0 => line(&mut out, "result", "all is well"),
        count => line(&mut out, "result", &format!("{} found", counted(count, "problem"))),
    }
    out
}

fn device_in_words(out: &mut String, device: &Value) {
    let index = word(&device["index"]);
    if let Some(missing) = device["missing"].as_str() {
        return line(out, "device", &format!("cuda:{index}: {missing}"));
    }
    let words = format!(
        "cuda:{index}: {}, compute capability {}, {} multiprocessors",
        word(&device["name"]),
        word(&device["capability"]),
        word(&device["multiprocessors"])
    );
    line(out, "device", &words);
    let words = format!(
        "{}, {} free; runs {}; the driver speaks CUDA {}",
        bytes(&device["memory_bytes"]),
        bytes(&device["free_bytes"]),
        device["image"].as_str().unwrap_or("none of the kernels"),
        device["cuda"].as_str().unwrap_or("of an unknown version")
    );
    line(out, "", &words);
    let limit = |name: &str, what: fn(u64) -> String| device["limits"][name].as_u64().map(what);
    let clocks = match device["clocks_mhz"].as_array().map(Vec::as_slice) {
        Some([cores, memory]) => Some(format!("clocks up to {cores} and {memory} MHz")),
        _ => None,
    };
    let limits: Vec<String> = [
        limit("shared_memory_per_block", |bytes| format!("{bytes} bytes of shared memory a block")),
        limit("l2_cache_bytes", |bytes| format!("{} MiB of L2", bytes >> 20)),
        limit("memory_bus_bits", |bits| format!("a bus of {bits} bits")),
        limit("ecc", |on| if on == 0 { "no ECC".to_string() } else { "ECC".to_string() }),
        clocks,
    ]
    .into_iter()
    .flatten()
    .collect();
    if !limits.is_empty() {
        line(out, "", &limits.join(", "));
    }
    line(out, "", &format!("self-check: {}", word(&device["self_check"]["words"])));
    for wrong in device["self_check"]["wrong"].as_array().into_iter().flatten() {
        line(out, "", &format!("  {}", word(wrong)));
    }
    let sm90 = &device["self_check"]["sm90"];
    if sm90.is_object() {
        line(out, "", &format!("self-check of sm90: {}", word(&sm90["words"])));
    }
    for wrong in sm90["wrong"].as_array().into_iter().flatten() {
        line(out, "", &format!("  {}", word(wrong)));
    }
    for (family, check) in device["self_check"]["dependent_launches"].as_object().into_iter().flatten() {
        line(out, "", &format!("self-check of dependent launches, kernels {family}: {}", word(&check["words"])));
        for wrong in check["wrong"].as_array().into_iter().flatten() {
            line(out, "", &format!("  {}", word(wrong)));
        }
    }
    line(out, "", &info::family_in_words(&device["kernels"]));
    if let Some(launches) = info::launches_in_words(&device["launches"]) {
        line(out, "", &launches);
    }
    line(out, "", &word(&device["demo"]["words"]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("HF_TOKEN", "hf_abc"), "set, not shown");
        assert_eq!(shown("GGRO_API_KEY", "a,b"), "set, not shown");
        assert_eq!(shown("GGRO_API_KEY", ""), "");
        assert_eq!(shown("GGRO_MAX_NEW_TOKENS", "40"), "40");
        assert_eq!(shown("GGRO_MAX_NEW_TOKENS", "hf_abc"), "set, not shown");
        assert_eq!(shown("HF_ENDPOINT", "https://me:secret@hub.example/x"), "https://...@hub.example/x");
        assert_eq!(shown("HF_ENDPOINT", "https://hub.example"), "https://hub.example");
        let variables = [("PATH", "/bin"), ("HF_HOME", "/models"), ("GGRO_DEVICE", "cpu"), ("AWS_SECRET", "x")];
        let found = environment(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        assert_eq!(found.keys().collect::<Vec<_>>(), ["GGRO_DEVICE", "HF_HOME"]);
    }

    #[test]
    fn a_folder_is_writable_where_a_file_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_writable(folder.path()) && is_writable(&folder.path().join("not").join("there")));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(!is_writable(Path::new("/proc/ggro")));
    }
}
