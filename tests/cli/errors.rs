//! Input that cannot be used: a message that names it, exit code 2, nothing on standard output.

use super::{PROMPT, command, copy, finish, ggro, goldens, utf8};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

#[track_caller]
fn refused(args: &[&str], parts: &[&str]) {
    let run = ggro(args);
    assert_eq!(run.code, Some(2), "{args:?}: {}{}", run.out, run.err);
    assert_eq!(run.out, "", "{args:?}");
    for part in parts {
        assert!(run.err.contains(part), "{args:?} does not say {part:?}: {}", run.err);
    }
}

#[test]
fn flags() {
    for (args, parts) in [
        (vec!["--no-such-flag"], vec!["--no-such-flag"]),
        (vec!["--max-new-tokens", "0"], vec!["--max-new-tokens", "0"]),
        (vec!["--max-new-tokens", "-3"], vec!["-3"]),
        (vec!["--max-new-tokens", "600"], vec!["--max-new-tokens 600", "512", "room for"]),
        (vec!["--num-refinement-steps", "0"], vec!["--num-refinement-steps"]),
        (vec!["--nudge-top-k", "0"], vec!["--nudge-top-k"]),
        (vec!["--nudge-temperature", "0"], vec!["--nudge-temperature", "above 0"]),
        (vec!["--nudge-temperature", "-1"], vec!["--nudge-temperature", "above 0"]),
        (vec!["--entropy-threshold", "nan"], vec!["--entropy-threshold", "finite"]),
        (vec!["--signal", "mood"], vec!["--signal", "varentropy"]),
        (vec!["--nudge-selection", "best"], vec!["--nudge-selection", "sample"]),
        (vec!["--method", "mood"], vec!["--method", "greedy", "soft-best-of-n"]),
        (vec!["--proposals", "some"], vec!["'some' for '--proposals", "shuffled-gradient"]),
        (vec!["--logprob-weight", "-1"], vec!["'-1' for '--logprob-weight", "at least 0"]),
        (vec!["--logprob-weight", "nan"], vec!["--logprob-weight", "finite"]),
        (vec!["--retokenize", "--proposals", "random"], vec!["--retokenize", "chosen greedily"]),
        (vec!["--seed", "x"], vec!["--seed"]),
        (vec!["--threads", "0"], vec!["--threads"]),
        (vec!["--max-model-len", "0"], vec!["--max-model-len"]),
        (vec!["--max-model-len", "513"], vec!["--max-model-len 513", "512"]),
        (vec!["--max-model-len", "10"], vec!["no room", "--max-model-len"]),
        (vec!["--device", "tpu"], vec!["--device", "cuda:N"]),
        (vec!["--device", "cuda"], vec!["--device cuda", "CUDA", "use --device cpu"]),
        (vec!["--device", "cuda:99"], vec!["--device cuda:99", "CUDA", "use --device cpu"]),
        (vec!["--device", "cuda", "--dtype", "f32"], vec!["--device cuda", "--dtype f32"]),
        (vec!["--gradient-tokens", "0"], vec!["--gradient-tokens"]),
        (vec!["--gpu-memory-utilization", "0"], vec!["--gpu-memory-utilization", "above 0"]),
        (vec!["--gpu-memory-utilization", "1.1"], vec!["--gpu-memory-utilization", "at most 1"]),
        (vec!["--device", "cpu", "--dtype", "bf16"], vec!["--dtype bf16", "f32"]),
        (vec!["--color", "sometimes"], vec!["--color"]),
        (vec!["--prompt-layout", "raw"], vec!["--prompt-layout"]),
        (vec!["--policy", "somewhere"], vec!["somewhere"]),
        (vec!["--reward", "somewhere"], vec!["needs a policy", "--policy MODEL"]),
        (vec!["--policy", "no/such", "--reward", "no/such"], vec!["no/such"]),
        (vec!["--trace", "no/such/trace.json"], vec!["no/such/trace.json"]),
        (vec!["--trace", "."], vec!["directory"]),
        (vec!["--request", "no-such.json"], vec!["--request", "PROMPT"]),
        // A value that begins with a minus is a value, whatever it is.
        (vec!["--entropy-threshold", "-inf"], vec!["'-inf' for '--entropy-threshold", "expected a finite number"]),
        (vec!["--nudge-top-k", "-2"], vec!["'-2' for '--nudge-top-k"]),
        (vec!["--threads", "-1"], vec!["'-1' for '--threads"]),
        (vec!["--speculation", "-1"], vec!["'-1' for '--speculation"]),
        (vec!["--gpu-memory-utilization", "-inf"], vec!["'-inf' for '--gpu-memory-utilization"]),
        (vec!["--seed", "-9223372036854775809"], vec!["--seed", "a whole number of 64 bits"]),
    ] {
        refused(&[&["generate", PROMPT], &args[..]].concat(), &parts);
    }
}

#[test]
fn parameters_of_methods() {
    for (method, parameters, parts) in [
        ("ggro", &["n=4"][..], &["--method-param n: --method ggro has no such parameters", "best-of-poisson"][..]),
        ("bon", &["n=4"], &["--method-param n: --method bon has no such parameters"]),
        ("cards", &[], &["cards: target_reward must be given", "max_rejections (20)"]),
        ("cards", &["target_reward=nan"], &["cards: target_reward must be a number, not \"nan\""]),
        ("cards", &["target_reward=1", "acceptance=maybe"], &["acceptance must be one of soft, hard, not \"maybe\""]),
        (
            "rejection-sampling",
            &["target_reward=1", "beta=0"],
            &["beta must be finite and above 0, not 0; the parameters"],
        ),
        ("beam", &["wide=1"], &["beam: there is no parameter \"wide\"", "width (2)"]),
        ("beam", &["width"], &["'width' for '--method-param <KEY=VALUE>'", "expected KEY=VALUE"]),
        ("beam", &["width=1", "width=1"], &["--method-param width is given twice"]),
        ("best-of-poisson", &["mu=100"], &["best-of-poisson: mu must be"]),
        ("speculative-rejection", &["kv_budget=20"], &["speculative-rejection: kv_budget must be at least"]),
    ] {
        let given = parameters.iter().flat_map(|parameter| ["--method-param", parameter]);
        refused(&["generate", PROMPT, "--method", method].into_iter().chain(given).collect::<Vec<&str>>(), parts);
    }
}

/// Whatever an output is called, it is no input and no other output; and nothing has happened to the input.
#[test]
fn outputs_are_never_inputs() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_string();
    let row = json!({"index": 0, "prompt": "p", "answer": null, "metadata": null, "full_text": "", "response": "r",
                     "reward": 1.0, "num_nudges": 0, "segment_boundaries": [], "elapsed_seconds": 0.1})
    .to_string();
    let (input, link, hard) = (at("in.jsonl"), at("link.jsonl"), at("hard.jsonl"));
    // Without a line break at its end: whoever takes it for a row that was cut off must not cut it off.
    std::fs::write(&input, &row).expect("written");
    std::os::unix::fs::symlink("in.jsonl", &link).expect("a link");
    std::fs::hard_link(&input, &hard).expect("a link");
    std::fs::write(at("in.jsonl.config.json"), "{}").expect("written");
    let goldens = copy("llama-gqa");
    let golden = |name: &str| goldens.path().join(name).to_str().expect("UTF-8").to_string();
    let (policy, traces) = (golden("policy"), golden("traces.json"));
    let config = golden("policy/config.json");
    for output in [&input, &link, &hard] {
        for args in [
            &["run", "--input", &input, "--output", output][..],
            &["run", "--input", &input, "--output", &at("o"), "--trace-events", output],
            &["score", "--input", &input, "--output", output],
            &["guard", &input, "--model", "none", "--output", output],
            &["report", &input, "--html", output],
            &["generate", "--request", &input, "--trace", output],
            &["bench", "throughput", "--compare", &input, "--chart", output],
            &["bench", "latency", "--compare", &input, "--trace-events", output],
        ] {
            refused(args, &["is an input of this command"]);
        }
    }
    for (args, part) in [
        (&["report", &input, "--html", &at("in.jsonl.config.json")][..], "--html"),
        (&["run", "--input", &at("x.config.json"), "--output", &at("x")], "--output (its .config.json)"),
        (&["run", "--input", &input, "--output", &at("o"), "--policy", &policy, "--trace-events", &config], "input"),
        (&["run", "--input", &input, "--output", &config, "--policy", &policy], "--output"),
        (&["verify", goldens.path().to_str().expect("UTF-8"), "--trace-events", &traces], "--trace-events"),
        (&["generate", "a", "--trace", &at("t"), "--trace-events", &at("./t")], "is what --trace writes, too"),
        (&["run", "--input", &input, "--output", &at("o"), "--trace-events", &at("o.config.json")], "too"),
        (&["run", "--input", &input, "--output", "-"], "--output -: expected a file, found -"),
        (&["score", "a", "--output", "-"], "--output -"),
        (&["report", &input, "--html", "-"], "--html -"),
    ] {
        refused(args, &[part]);
    }
    assert_eq!(std::fs::read_to_string(&input).expect("the input"), row);
    assert!(std::fs::metadata(&traces).expect("traces").len() > 1000 && !Path::new(&at("o")).exists());
    // Rows of a run that is no input of the command: a page, say, that a pattern of the shell named.
    std::fs::write(at("other.jsonl"), &row).expect("written");
    std::fs::write(at("in.jsonl.config.json"), json!({ "ggro": "0.1.0" }).to_string()).expect("written");
    for args in [
        &["report", &at("other.jsonl"), "--html", &input][..],
        &["generate", "--trace", &input, "hi"],
        &["score", "--output", &input, "hi"],
        &["generate", "--trace-events", &input, "hi"],
    ] {
        refused(args, &["holds rows of a run"]);
    }
}

/// A value that comes from a variable is named by it, and an empty variable is none.
#[test]
fn variables() {
    let with = |name: &str, value: &str, args: &[&str]| {
        finish(command().env(name, value).args([&["generate", "a", "--no-baseline"], args].concat()))
    };
    let run = with("GGRO_MAX_NEW_TOKENS", "abc", &[]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("'abc' for '--max-new-tokens <N>, set by GGRO_MAX_NEW_TOKENS'"), "{}", run.err);
    let run = with("GGRO_JSON", "perhaps", &[]);
    assert!(run.code == Some(2) && run.err.contains("set by GGRO_JSON"), "{}", run.err);
    let run = with("GGRO_MAX_NEW_TOKENS", "abc", &["--max-new-tokens", "x"]);
    assert!(run.code == Some(2) && !run.err.contains("GGRO_"), "{}", run.err);
    with("GGRO_MAX_NEW_TOKENS", "", &["--max-new-tokens", "2"]).ok();
    with("GGRO_JSON", "", &["--max-new-tokens", "2"]).ok();
}

#[test]
fn help_is_found_by_every_word() {
    for args in [&["help", "report"][..], &["report", "--help"], &["bench", "help", "serve"]] {
        let help = ggro(args).ok().out;
        assert!(help.contains("Usage: ggro ") && help.contains(args[args.len() - 1].trim_start_matches('-')), "{help}");
    }
    // `run` has two methods, and says so.
    let help = ggro(&["run", "--help"]).ok().out;
    assert!(help.contains("ggro or greedy [default") && !help.contains("--no-baseline"), "{help}");
}

/// A byte order mark is no part of a text, wherever one is read.
#[test]
fn byte_order_marks() {
    let marked = |args: &[&str], text: &str| {
        let mut child = command();
        child.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("the binary runs");
        child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let tokens = |text: &str| {
        let object: serde_json::Value =
            serde_json::from_str(&marked(&["generate", "--json", "--no-baseline", "--max-new-tokens", "2"], text))
                .expect("JSON");
        object["prompt_tokens"].clone()
    };
    assert_eq!(tokens("\u{feff}Tell me a story."), tokens("Tell me a story."));
    let score = |text: &str| marked(&["score", "--input", "-"], text);
    assert_eq!(score("\u{feff}\"One.\"\n\u{feff}\"Two.\"\n"), score("\"One.\"\n\"Two.\"\n"));
}

#[test]
fn prompts() {
    refused(&["generate", ""], &["PROMPT is empty"]);
    refused(&["generate", " \n "], &["PROMPT is empty"]);
    refused(&["generate"], &["PROMPT is empty", "standard input"]);
    let long = "word ".repeat(600);
    refused(&["generate", &long], &["prompt of", "no room", "512"]);
}

#[test]
fn requests() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("request.json");
    refused(&["generate", "--request", "no-such.json"], &["no-such.json"]);
    let ids = [0, 2, 547];
    for (request, parts) in [
        (json!({}), vec!["request.json", "prompt_ids", "missing"]),
        (json!({ "prompt_ids": [] }), vec!["prompt_ids", "empty"]),
        (json!({ "prompt_ids": [1, -1] }), vec!["prompt_ids", "-1"]),
        (json!({ "prompt_ids": [1, 4096] }), vec!["4096"]),
        (json!({ "prompt_ids": vec![1; 512] }), vec!["no room", "512"]),
        (json!({ "prompt_ids": ids, "options": [] }), vec!["options", "an object"]),
        (json!({ "prompt_ids": ids, "options": { "top_k": "many" } }), vec!["options.top_k", "many"]),
        (json!({ "prompt_ids": ids, "options": { "top_k": 0 } }), vec!["top_k"]),
        (json!({ "prompt_ids": ids, "options": { "max_new_tokens": 0 } }), vec!["max_new_tokens"]),
        (json!({ "prompt_ids": ids, "options": { "max_new_tokens": 510 } }), vec!["max_new_tokens", "509"]),
        (json!({ "prompt_ids": ids, "options": { "max_candidates": 0 } }), vec!["max_candidates"]),
        (json!({ "prompt_ids": ids, "options": { "min_generated": 1 } }), vec!["min_generated"]),
        (json!({ "prompt_ids": ids, "options": { "temperature": 0.0 } }), vec!["temperature"]),
        (json!({ "prompt_ids": ids, "options": { "proposals": "some" } }), vec!["options.proposals", "random"]),
        (json!({ "prompt_ids": ids, "options": { "logprob_weight": -1 } }), vec!["logprob_weight", "at least 0"]),
        (json!({ "prompt_ids": ids, "options": { "first_offset": -1 } }), vec!["options.first_offset"]),
        (json!({ "prompt_ids": ids, "options": { "stop_ids": [1], "finish_id": 4 } }), vec!["stop_ids"]),
        (json!({ "prompt_ids": ids, "options": { "signal": "mood" } }), vec!["options.signal", "mood"]),
        (json!({ "prompt_ids": ids, "uniforms_used": [2] }), vec!["uniforms_used"]),
    ] {
        std::fs::write(&path, request.to_string()).expect("written");
        refused(&["generate", "--request", utf8(&path)], &parts);
    }
    std::fs::write(&path, "{\"prompt_ids\": [1,").expect("written");
    refused(&["generate", "--request", utf8(&path)], &["request.json", "JSON"]);
    // Recorded numbers that run out.
    let request = json!({ "prompt_ids": ids, "uniforms_used": [],
        "options": { "selection": "sample", "max_new_tokens": 60, "entropy_threshold": 1.0 } });
    std::fs::write(&path, request.to_string()).expect("written");
    let run = ggro(&["generate", "--request", utf8(&path)]);
    assert_eq!(run.code, Some(2), "{}", run.err);
    assert!(run.err.contains("uniform"), "{}", run.err);
}

#[test]
fn models_that_are_no_pair() {
    let folder = goldens().join("llama-gqa");
    let (policy, reward) = (folder.join("policy"), folder.join("reward"));
    // The two exchanged.
    refused(&["generate", PROMPT, "--policy", utf8(&reward), "--reward", utf8(&policy)], &[utf8(&reward)]);
    let other = goldens().join("qwen3/reward");
    refused(&["generate", PROMPT, "--policy", utf8(&policy), "--reward", utf8(&other)], &["id"]);
    let file = policy.join("config.json");
    refused(&["generate", PROMPT, "--policy", utf8(&file), "--reward", utf8(&reward)], &["config.json"]);
}

/// Overwrites the first element of a bfloat16 tensor with a NaN.
fn poison(file: &Path, tensor: &str) {
    let mut bytes = std::fs::read(file).expect("a checkpoint");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    assert_eq!(parsed[tensor]["dtype"], "BF16");
    let at = 8 + header + parsed[tensor]["data_offsets"][0].as_u64().expect("an offset") as usize;
    bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(file, bytes).expect("written");
}

#[test]
fn not_a_number_in_the_weights() {
    for (role, tensor) in [
        ("policy", "model.norm.weight"),
        ("policy", "model.layers.0.self_attn.q_proj.weight"),
        ("reward", "score.weight"),
        ("reward", "model.layers.0.mlp.down_proj.weight"),
    ] {
        let dir = copy("llama-gqa");
        poison(&dir.path().join(role).join("model.safetensors"), tensor);
        let (policy, reward) = (dir.path().join("policy"), dir.path().join("reward"));
        let trace = dir.path().join("out.json");
        let models = ["generate", PROMPT, "--policy", utf8(&policy), "--reward", utf8(&reward)];
        let run = ggro(&[&models[..], &["--trace", utf8(&trace)]].concat());
        assert_eq!(run.code, Some(3), "{tensor}: {}", run.err);
        assert!(run.err.contains(role) && run.err.contains("not finite"), "{}", run.err);
        assert!(!trace.exists());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn input_without_end_and_output_without_room() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
    for args in [&["info"][..], &["generate", "a", "--max-new-tokens", "5", "--no-baseline"]] {
        let run = finish(command().args(args).stdout(full()));
        assert_eq!(run.code, Some(2), "{}", run.err);
        assert!(run.err.contains("standard output: "), "{}", run.err);
    }
    refused(&["generate", "--request", "/dev/zero"], &["/dev/zero", "larger than"]);
}

/// The reader of a pipe gets the whole trace, and nothing waits for a second reader.
#[cfg(target_os = "linux")]
#[test]
fn a_trace_into_a_pipe() {
    let dir = tempfile::tempdir().expect("a folder");
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || std::fs::read_to_string(pipe).expect("a trace"))
    };
    ggro(&["generate", "a", "--max-new-tokens", "5", "--no-baseline", "--trace", utf8(&pipe)]).ok();
    let trace: serde_json::Value = serde_json::from_str(&reader.join().expect("a reader")).expect("JSON");
    assert_eq!(trace["new_ids"].as_array().map(Vec::len), Some(5));
}

/// A head under another name is named by a flag, and what was noticed in the files is said on standard error.
#[test]
fn heads_and_notes() {
    let dir = copy("llama-gqa");
    let (policy, reward) = (dir.path().join("policy"), dir.path().join("reward"));
    let score = |more: &[&str]| ggro(&[&["score", "Hello", "--reward", utf8(&reward)], more].concat());
    let before = score(&[]).ok().out;
    // A name as long, so that the header keeps its length.
    let file = reward.join("model.safetensors");
    let bytes = std::fs::read(&file).expect("a checkpoint");
    let at = bytes.windows(12).position(|window| window == b"score.weight").expect("a head");
    let renamed = [&bytes[..at], b"v_hea.weight", &bytes[at + 12..]].concat();
    std::fs::write(&file, renamed).expect("written");
    refused(
        &["score", "Hello", "--reward", utf8(&reward)],
        &["`score.weight`", "`v_hea.weight`", "(--reward-head TENSOR)"],
    );
    assert_eq!(score(&["--reward-head", "v_hea.weight"]).ok().out, before);
    refused(&["score", "Hello", "--reward", utf8(&reward), "--reward-head", "x"], &["`x`", "`v_hea.weight`"]);
    refused(&["info", "--policy", utf8(&policy), "--reward-head", "x"], &["--reward-head", "--reward"]);

    let config = policy.join("config.json");
    let text = std::fs::read_to_string(&config).expect("a config");
    let tied = text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert_ne!(text, tied);
    std::fs::write(&config, tied).expect("written");
    let info = ggro(&["info", "--json", "--policy", utf8(&policy)]).ok();
    assert!(info.err.contains("note: policy: `lm_head.weight` is used"), "{}", info.err);
    let models = &info.json()["pair"]["models"];
    assert_eq!(models[0]["tied"], false);
    let original = ggro(&["info", "--json", "--policy", utf8(&goldens().join("llama-gqa/policy"))]).ok();
    assert_eq!(models[0]["parameters"], original.json()["pair"]["models"][0]["parameters"]);
}
