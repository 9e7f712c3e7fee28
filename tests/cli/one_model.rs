//! Commands with a policy alone or a reward model alone: what they can do, and what they say they cannot.

use super::{PROMPT, Run, ggro, utf8};
use serde_json::{Value, json};
use std::path::Path;

const POLICY: [&str; 2] = ["--policy", "assets/demo/policy"];
const REWARD: [&str; 2] = ["--reward", "assets/demo/reward"];
const SHORT: [&str; 4] = ["generate", PROMPT, "--max-new-tokens", "40"];

fn with(args: &[&str], more: &[&str]) -> Run {
    ggro(&[args, more].concat())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_policy_alone_answers_as_the_pair_does_greedily() {
    let pair = with(&SHORT, &["--method", "greedy", "--json"]).ok().json();
    let run = with(&SHORT, &[&POLICY[..], &["--json"]].concat()).ok();
    assert!(run.err.contains("note: the answer is decoded greedily") && run.err.contains("--reward"), "{}", run.err);
    let alone = run.json();
    assert_eq!((&alone["text"], &alone["reward"]), (&pair["text"], &Value::Null));
    let prompt = usize::try_from(pair["prompt_tokens"].as_u64().unwrap()).unwrap();
    let ids = &pair["final_ids"].as_array().unwrap()[prompt..];
    assert_eq!(alone["completions"][0]["ids"], json!(ids));
    assert!(alone["completions"][0]["reward"].is_null());
    let sampled = with(&SHORT, &["--method", "sample", "--json"]).ok().json();
    let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&alone), keys(&sampled));

    // Streamed, the same text; asked for, no note.
    let run = with(&SHORT, &[&POLICY[..], &["--method", "greedy"]].concat()).ok();
    assert_eq!(run.out, format!("{}\n", alone["text"].as_str().unwrap()));
    assert!(!run.err.contains("note") && run.err.contains("policy") && !run.err.contains("best of"), "{}", run.err);
    // To its end, with a beginning that is given, in the official layout.
    let long = ["generate", PROMPT, "--method", "greedy", "--max-new-tokens", "200"];
    for more in [&[][..], &["--prefill", "Once upon"], &["--prompt-layout", "official"]] {
        let greedy = |models: &[&str]| with(&long, &[models, more].concat()).ok().out;
        assert_eq!(greedy(&POLICY), greedy(&[]), "{more:?}");
    }
}

#[test]
fn a_policy_alone_samples_as_the_pair_does() {
    let run = |models: &[&str]| {
        let args = [&["--method", "sample", "--n", "2", "--seed", "5", "--json"], models].concat();
        with(&SHORT, &args).ok().json()["completions"].clone()
    };
    assert_eq!(run(&POLICY), run(&[]));
}

#[test]
fn what_needs_the_other_model_is_refused_with_its_flag() {
    let refused = |run: Run, parts: &[&str]| {
        assert_eq!(run.code, Some(2), "{}", run.err);
        for part in parts {
            assert!(run.err.contains(part), "no {part:?} in {}", run.err);
        }
    };
    for method in ["ggro", "bon", "cards", "soft-best-of-n"] {
        let run = with(&SHORT, &[&POLICY[..], &["--method", method]].concat());
        refused(run, &[&format!("--method {method} needs a reward model"), "(--reward MODEL)"]);
    }
    refused(with(&SHORT, &REWARD), &["an answer needs a policy", "(--policy MODEL)"]);
    refused(with(&SHORT, &[&POLICY[..], &["--trace", "trace.json"]].concat()), &["--trace records the decisions"]);
    refused(with(&SHORT, &[&POLICY[..], &["--n", "2"]].concat()), &["all answers would be the same"]);
    refused(with(&["bench", "ggro"], &POLICY), &["bench ggro needs a reward model", "(--reward MODEL)"]);
    refused(with(&["bench", "ggro"], &REWARD), &["bench ggro needs a policy"]);
    refused(with(&["bench", "throughput"], &REWARD), &["throughput needs a policy", "(--policy MODEL)"]);
    refused(with(&["score", "a"], &POLICY), &["a reward needs a reward model", "(--reward MODEL)"]);
}

#[test]
fn rows_of_a_policy_alone_have_no_reward() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, alone, pair) =
        (folder.path().join("in.jsonl"), folder.path().join("alone.jsonl"), folder.path().join("pair.jsonl"));
    std::fs::write(&input, format!("{}\n{}\n{}\n", json!(PROMPT), json!("A frog."), json!("Two cats."))).unwrap();
    let run = |output: &Path, more: &[&str]| {
        let args = ["run", "--input", utf8(&input), "--output", utf8(output), "--max-new-tokens", "60"];
        with(&args, more)
    };
    let refused = run(&alone, &[&POLICY[..], &["--method", "ggro"]].concat());
    assert!(refused.code == Some(2) && refused.err.contains("(--reward MODEL)"), "{}", refused.err);
    assert!(!alone.exists());
    let first = run(&alone, &[&POLICY[..], &["--num-prompts", "1"]].concat()).ok();
    assert!(!first.err.contains("mean reward"), "{}", first.err);
    let rest = run(&alone, &POLICY).ok();
    assert!(rest.err.contains("1 of 3 prompts are answered already"), "{}", rest.err);
    run(&pair, &["--method", "greedy"]).ok();
    let read = |path: &Path| lines(&std::fs::read_to_string(path).expect("rows"));
    let (rows, pairs) = (read(&alone), read(&pair));
    assert_eq!(rows.len(), 3);
    for (row, other) in rows.iter().zip(&pairs) {
        for field in ["index", "full_text", "response", "finish_reason", "prompt_tokens", "new_tokens"] {
            assert_eq!(row[field], other[field], "{field}");
        }
        assert!(row["reward"].is_null() && other["reward"].is_f64() && row["num_nudges"] == 0, "{row}");
        assert_eq!(row["segment_boundaries"][0], *other["segment_boundaries"].as_array().unwrap().last().unwrap());
        let segment = &row["segments"][0];
        assert_eq!((row["segments"].as_array().unwrap().len(), &segment["nudged"]), (1, &Value::Null));
        let count = segment["tokens"].as_array().unwrap().len();
        assert_eq!(row["new_tokens"], count);
        assert!(segment["entropies"].as_array().unwrap().iter().all(Value::is_f64) && count > 4, "{segment}");
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("alone.jsonl.config.json")).unwrap()).unwrap();
    assert_eq!((&config["reward"], &config["method"]), (&Value::Null, &json!("greedy")));

    // Rewards that are missing are not zero.
    let page = folder.path().join("page.html");
    let report = ["report", utf8(&alone), utf8(&pair)];
    let object = with(&report, &["--json", "--html", utf8(&page)]).ok().json();
    assert!(object["files"][0]["reward"].is_null() && object["files"][1]["reward"]["count"] == 3, "{object}");
    assert_eq!(object["reward_over_the_first"], json!([null]));
    let page = std::fs::read_to_string(&page).expect("a page");
    assert!(page.contains("\"r\":null"));
    let table = ggro(&report).ok().out;
    assert!(table.contains("no prompt with a reward in common") && table.contains("new tokens"), "{table}");
}

#[test]
fn passes_of_one_model() {
    let latency = [
        "bench",
        "latency",
        "-o",
        "jsonl",
        "--rows",
        "1",
        "--context",
        "8",
        "--prefill",
        "8",
        "--candidates",
        "2",
        "--segment",
        "4",
        "--prefix",
        "8",
        "--runs",
        "1",
        "--no-limits",
    ];
    let phases = |models: &[&str]| {
        let found = lines(&with(&latency, models).ok().out);
        assert_eq!(found[0]["header"]["models"].as_array().unwrap().len(), 2);
        found[1..].iter().map(|row| row["phase"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(phases(&POLICY), ["prefill", "decode"]);
    assert_eq!(phases(&REWARD), ["reward", "gradient"]);
    for models in [POLICY, REWARD] {
        let found = lines(&with(&["bench", "load", "-o", "jsonl", "--runs", "1"], &models).ok().out);
        assert_eq!(found.len(), 3);
        let info = with(&["info", "--json"], &models).ok().json();
        assert_eq!(info["pair"]["models"].as_array().unwrap().len(), 1);
        assert_eq!((&info["pair"]["demo"], info["pair"]["finish_id"].is_null()), (&json!(false), models == REWARD));
        assert!(with(&["info"], &models).ok().out.contains("4.0 M parameters"));
        let costs = with(&["bench", "model"], &models).ok().out;
        assert_eq!(
            (costs.contains("| decode |"), costs.contains("| gradient |")),
            (models == POLICY, models == REWARD)
        );
    }
    let throughput = ["bench", "throughput", "-o", "jsonl", "--batch", "2", "--prompt", "5", "--tokens", "4"];
    assert_eq!(lines(&with(&throughput, &POLICY).ok().out).len(), 2);
}
