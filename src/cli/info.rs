//! `ggro info`: the build, the devices, and whether a pair fits.

use super::models::{MemoryArgs, PairArgs};
use super::words::for_stdout;
use crate::files::checkpoint::Checkpoint;
use crate::files::config::ModelConfig;
use crate::files::pair::{Pair, Part, Parts};
use crate::runtime::self_check::SelfCheck;
use crate::runtime::{self, CudaDevice, DeviceSpec, KernelFamily, NoCuda, OpenOptions, bytes_in_words};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show version, kernels, devices, and the models' shapes and memory
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub pair: PairArgs,

    /// A small model that guesses beside the pair: see `ggro generate --help`
    #[arg(long, value_name = "MODEL", help_heading = "Models")]
    pub draft: Option<PathBuf>,

    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut pair = args.pair.load()?;
    PairArgs::add_draft(&mut pair, args.draft.as_ref())?;
    // Looks up every tensor, so that a pair that cannot be run is an error.
    let cpu = OpenOptions {
        device: DeviceSpec::Cpu,
        max_model_len: args.pair.max_model_len,
        threads: Some(1),
        ..OpenOptions::default()
    };
    runtime::open(&pair, &cpu, &mut |_| ())?;
    let info = info(args, &pair);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{info}")?;
    } else {
        write!(out, "{}", for_stdout(&text(&info)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn info(args: &Args, pair: &Pair) -> Value {
    let length = args.pair.context(pair);
    let Parts { policy, reward, draft } = pair.parts();
    let parts: Vec<(&str, Part<'_>)> = [("policy", policy), ("reward", reward), ("draft", draft)]
        .into_iter()
        .filter_map(|(role, part)| Some((role, part?)))
        .collect();
    let models: Vec<Value> = parts.iter().map(|&(role, (config, weights))| model(role, config, weights)).collect();
    let weights: u64 = parts.iter().map(|(_, (_, weights))| weights.bytes()).sum();
    let per_token: u64 = parts.iter().map(|(_, (config, _))| kv_bytes(config)).sum();
    let caches = per_token.saturating_mul(length as u64);
    let needed = weights.saturating_add(caches);
    let available = memory_available();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("GGRO_BUILD_COMMIT"),
        "kernels": kernels(),
        "devices": [{
            "name": "cpu",
            "model": cpu_model(),
            "threads": std::thread::available_parallelism().map_or(1, usize::from),
            "simd": simd(),
        }],
        "cuda": cuda_devices(args, pair),
        "pair": {
            "demo": args.pair.is_demo(),
            "models": models,
            "finish_id": pair.policy.as_ref().map(|policy| policy.finish_id),
            "stop_ids": pair.policy.as_ref().map(|policy| &policy.stop_ids),
            "reward_pad_id": pair.reward_pad_id(),
            "chat_template": pair.chat().is_some(),
            "notes": pair.notes,
        },
        "memory": {
            "max_model_len": length,
            "weight_bytes": weights,
            "kv_bytes_per_token": per_token,
            "kv_bytes": caches,
            "available_bytes": available,
            "fits": available.map(|available| needed <= available),
        },
    })
}

/// The CUDA kernels of this build.
pub(super) fn kernels() -> Value {
    let runtime::Kernels { count, hopper, targets, compiler, assembler, stored, bytes } = runtime::kernels();
    json!({
        "count": count,
        "hopper": hopper,
        "targets": targets,
        "nvcc": compiler,
        "ptxas": assembler,
        "stored": stored,
        "bytes": bytes,
    })
}

/// Every CUDA device with the memory report of the pair, and why there is none.
fn cuda_devices(args: &Args, pair: &Pair) -> Value {
    let found = runtime::cuda_devices(pair, &args.memory.options(args.pair.max_model_len));
    let missing = found.as_ref().err().map(NoCuda::to_string);
    let devices = found.unwrap_or_default().into_iter().enumerate().map(|(index, device)| match device {
        Ok(device) => cuda_device(index, &device),
        Err(why) => json!({ "index": index, "missing": why.to_string() }),
    });
    json!({ "devices": devices.collect::<Vec<_>>(), "missing": missing })
}

fn cuda_device(index: usize, device: &CudaDevice) -> Value {
    let parts = device.fit.as_ref().ok().map(|fit| {
        let parts = fit.parts.iter().map(|(name, bytes)| (format!("{}_bytes", name.replace(' ', "_")), bytes));
        parts.collect::<BTreeMap<_, _>>()
    });
    json!({
        "index": index,
        "name": device.name,
        "capability": device.capability,
        "multiprocessors": device.multiprocessors,
        "memory_bytes": device.memory.map(|(_, total)| total),
        "free_bytes": device.memory.map(|(free, _)| free),
        "self_check": device.self_check.as_ref().map(self_check),
        "kernels": family(device.kernels.0, &device.kernels.1),
        "dependent_launches": device.dependent_launches,
        "launches": device.launches.as_ref().map(|(dependent, why)| launches(*dependent, why)),
        "fits": device.fit.is_ok(),
        "parts": parts,
        "report": device.fit.as_ref().map_or_else(String::clone, |fit| fit.words.clone()),
    })
}

/// What a self-check found.
pub(super) fn self_check(check: &SelfCheck) -> Value {
    let sm90 = check.sm90.as_ref().map(|check| checked(check, check.passed(), &check.words()));
    let dependents = check.dependents.iter();
    let dependents = dependents.map(|(family, check)| (family, checked(check, check.passed(), &check.words())));
    let mut found = checked(check, check.passed(), &check.words());
    found["sm90"] = json!(sm90);
    found["dependent_launches"] = dependents.collect();
    found
}

/// What is remembered of a check, whether it passed, and its words. Only the check of a group has `ended`.
fn checked(check: &impl Serialize, passed: bool, words: &str) -> Value {
    let check = json!(check);
    let remembered = ["when", "ended", "cases", "ran", "stopped", "seconds", "wrong"];
    let remembered = remembered.into_iter().filter_map(|key| Some((key, check.get(key)?.clone())));
    [("passed", json!(passed))].into_iter().chain(remembered).chain([("words", json!(words))]).collect()
}

/// The kernels that a device runs; no family if that is still to be decided.
pub(super) fn family(family: Option<KernelFamily>, why: &str) -> Value {
    json!({ "family": family.map(KernelFamily::name), "why": why })
}

/// The same in words.
pub(super) fn family_in_words(kernels: &Value) -> String {
    format!("runs kernels {}: {}", kernels["family"].as_str().unwrap_or("not yet chosen"), word(&kernels["why"]))
}

/// Whether kernels begin early on a device where they can; neither yes nor no if that is still to be decided.
pub(super) fn launches(dependent: Option<bool>, why: &str) -> Value {
    json!({ "dependent": dependent, "why": why })
}

/// The same in words; nothing where they cannot.
pub(super) fn launches_in_words(launches: &Value) -> Option<String> {
    let how = match launches["dependent"].as_bool() {
        Some(true) => "kernels begin before those before them have ended",
        Some(false) => "kernels begin one after the other",
        None => "how kernels are launched is not yet decided",
    };
    launches["why"].as_str().map(|why| format!("{how}: {why}"))
}

fn model(role: &str, config: &ModelConfig, weights: &Checkpoint) -> Value {
    json!({
        "role": role,
        "family": format!("{:?}", config.family).to_lowercase(),
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "window": config.windows.iter().flatten().min(),
        "tied": config.tie_word_embeddings,
        "dtype": stored(config, weights),
        "parameters": config.num_parameters(),
        "bytes": weights.bytes(),
        "kv_bytes_per_token": kv_bytes(config),
    })
}

/// The type of the embedding stands for the checkpoint's.
fn stored(config: &ModelConfig, weights: &Checkpoint) -> Option<&'static str> {
    let shape = [config.vocab_size, config.hidden_size];
    let tensor = weights.tensor("model.embed_tokens.weight", &shape).ok()?;
    Some(tensor.dtype.name())
}

/// Keys and values of one token in every layer, in f32 as the CPU backend keeps them.
fn kv_bytes(config: &ModelConfig) -> u64 {
    config.kv_elements_per_token() * size_of::<f32>() as u64
}

/// `MemAvailable` of `/proc/meminfo`: memory that can be had without swapping, page cache included.
pub(super) fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

pub(super) fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

#[cfg(target_arch = "x86_64")]
pub(super) fn simd() -> Vec<&'static str> {
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    features.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn simd() -> Vec<&'static str> {
    Vec::new()
}

/// How many kernels are not for all of the targets.
pub(super) fn for_hopper(kernels: &Value) -> String {
    match kernels["hopper"].as_u64() {
        None | Some(0) => String::new(),
        Some(count) => format!(" ({count} for Hopper alone)"),
    }
}

/// The object as text.
fn text(info: &Value) -> String {
    let mut out = format!("ggro {}", word(&info["version"]));
    if let Some(commit) = info["commit"].as_str() {
        out += &format!(" ({commit})");
    }
    let kernels = &info["kernels"];
    if kernels["count"] == 0 {
        out += "\nkernels     none\n";
    } else {
        let targets: Vec<String> = kernels["targets"].as_array().into_iter().flatten().map(word).collect();
        out += &format!(
            "\nkernels     {} for {}{}, {}, by nvcc {}{}\n",
            word(&kernels["count"]),
            targets.join(", "),
            for_hopper(kernels),
            bytes(&kernels["bytes"]),
            word(&kernels["nvcc"]),
            if kernels["stored"] == true { ", stored with the sources" } else { "" },
        );
    }
    for device in info["cuda"]["devices"].as_array().into_iter().flatten() {
        out += &match device["missing"].as_str() {
            Some(missing) => format!("device      cuda:{}: {missing}\n", word(&device["index"])),
            None => format!(
                "device      cuda:{}: {}, compute capability {}, {} multiprocessors, {}\n            {}\n            {}\n            {}\n",
                word(&device["index"]),
                word(&device["name"]),
                word(&device["capability"]),
                word(&device["multiprocessors"]),
                bytes(&device["memory_bytes"]),
                word(&device["report"]).replace("; ", "\n            "),
                match device["self_check"]["words"].as_str() {
                    Some(words) => format!("self-check: {words}, on {}", word(&device["self_check"]["when"])),
                    None => "self-check: not yet made; the first use of the device makes it".to_string(),
                },
                family_in_words(&device["kernels"]),
            ),
        };
        out += &launches_in_words(&device["launches"]).map_or(String::new(), |words| format!("            {words}\n"));
    }
    if let Some(missing) = info["cuda"]["missing"].as_str() {
        out += &format!("device      no cuda: {missing}\n");
    }
    for device in info["devices"].as_array().into_iter().flatten() {
        let simd: Vec<String> = device["simd"].as_array().into_iter().flatten().map(word).collect();
        out += &format!(
            "device      {}: {}, {} threads, {}\n",
            word(&device["name"]),
            device["model"].as_str().unwrap_or("unknown processor"),
            word(&device["threads"]),
            if simd.is_empty() { "no SIMD extensions".to_string() } else { simd.join(" ") }
        );
    }
    let demo = if info["pair"]["demo"] == true { " (demo pair)" } else { "" };
    for model in info["pair"]["models"].as_array().into_iter().flatten() {
        let window = model["window"].as_u64().map_or(String::new(), |w| format!(", window {w}"));
        out += &format!(
            "{:<11} {}{demo}: {} layers, width {}, mlp {}, {}/{} heads of {}, vocabulary {}, context {}{window}\n",
            word(&model["role"]),
            word(&model["family"]),
            word(&model["layers"]),
            word(&model["hidden_size"]),
            word(&model["intermediate_size"]),
            word(&model["heads"]),
            word(&model["kv_heads"]),
            word(&model["head_dim"]),
            word(&model["vocabulary"]),
            word(&model["context"]),
        );
        out += &format!(
            "            {} parameters in {}, {}; {} of keys and values a token\n",
            model["parameters"].as_u64().map_or("unknown".to_string(), count),
            model["dtype"].as_str().unwrap_or("an unknown type"),
            bytes(&model["bytes"]),
            bytes(&model["kv_bytes_per_token"]),
        );
    }
    let memory = &info["memory"];
    out += &format!(
        "memory      {} weights + {} caches for {} tokens",
        bytes(&memory["weight_bytes"]),
        bytes(&memory["kv_bytes"]),
        word(&memory["max_model_len"]),
    );
    out += &match memory["fits"].as_bool() {
        Some(true) => format!("; fits into {} available\n", bytes(&memory["available_bytes"])),
        Some(false) => {
            format!("; does not fit into {} available\n", bytes(&memory["available_bytes"]))
        }
        None => "; available memory unknown\n".to_string(),
    };
    out
}

pub(super) fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

pub(super) fn bytes(value: &Value) -> String {
    bytes_in_words(value.as_u64().unwrap_or(0))
}
