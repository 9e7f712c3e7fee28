//! `ggro generate`, when all is well.

use super::{PROMPT, command, finish, ggro, goldens, read_json, traces, utf8};
use ggro::files::checkpoint::Files;
use ggro::files::demo;
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

/// A short run, without the greedy comparison.
const SHORT: [&str; 5] = ["generate", PROMPT, "--max-new-tokens", "40", "--no-baseline"];

fn short(more: &[&str]) -> super::Run {
    ggro(&[&SHORT, more].concat()).ok()
}

#[test]
fn the_main_command() {
    let run = ggro(&["generate", PROMPT]).ok();
    assert!(run.out.len() > 100, "{}", run.out);
    assert!(run.out.ends_with('\n') && !run.out.ends_with("\n\n"));
    assert!(!run.out.contains('\x1b') && !run.out.contains("<|"), "{}", run.out);
    for word in ["reward", "plain greedy", "segments", "nudged", "candidates", "tokens", "time"] {
        assert!(run.err.contains(word), "{word}: {}", run.err);
    }
    assert!(!run.err.contains('\x1b'), "{}", run.err);
}

#[test]
fn a_prompt_on_standard_input_is_the_same() {
    let mut child = command()
        .args(["generate", "--max-new-tokens", "40", "--no-baseline"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    writeln!(stdin, "{PROMPT}").expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&output.stdout), short(&[]).out);
}

#[test]
fn colours() {
    let plain = short(&[]).out;
    let painted = short(&["--color", "always"]).out;
    assert!(painted.contains("\x1b[1;32m"), "{painted}");
    let stripped = ["\x1b[1;32m", "\x1b[33m", "\x1b[0m"].iter().fold(painted, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
    assert_eq!(short(&["--color", "never"]).out, plain);
    let run = finish(command().env("NO_COLOR", "1").args(SHORT)).ok();
    assert_eq!(run.out, plain);
}

#[test]
fn json() {
    let object = ggro(&["generate", PROMPT, "--max-new-tokens", "40", "--json"]).ok().json();
    assert_eq!(format!("{}\n", object["text"].as_str().expect("text")), short(&[]).out);
    assert_eq!(object["new_tokens"], 40);
    assert_eq!(object["finish_reason"], "length");
    let work = &object["work"];
    assert!(work["policy_forward"].as_u64() > object["prompt_tokens"].as_u64());
    let greedy = ggro(&["generate", PROMPT, "--max-new-tokens", "40", "--json", "--method", "greedy"]);
    let greedy = greedy.ok().json();
    for field in ["text", "reward", "new_tokens", "finish_reason"] {
        assert_eq!(object["greedy"][field], greedy[field], "{field}");
    }
    assert!(greedy["greedy"].is_null());
    assert_eq!(greedy["num_candidates"], greedy["num_segments"]);
    assert!(object["reward"].as_f64() > greedy["reward"].as_f64());
}

#[test]
fn a_trace_is_a_request() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, second) = (dir.path().join("first.json"), dir.path().join("second.json"));
    for more in [
        vec![],
        vec!["--nudge-selection", "sample", "--seed", "7", "--nudge-temperature", "0.5"],
        vec!["--signal", "margin"],
        vec!["--prompt-layout", "official"],
        vec!["--prefill", "Once upon a time, there was a"],
        vec!["--proposals", "all", "--nudge-top-k", "9"],
        vec!["--proposals", "shuffled-gradient", "--logprob-weight", "0.25", "--seed", "3"],
    ] {
        let run = short(&[&more[..], &["--trace", utf8(&first)]].concat());
        let again = ["generate", "--no-baseline", "--request", utf8(&first), "--trace", utf8(&second)];
        let replay = ggro(&again).ok();
        let (first, second) = (read_json(&first), read_json(&second));
        assert_eq!(first["final_ids"], second["final_ids"], "{more:?}");
        assert_eq!(first, second, "{more:?}");
        assert_eq!(first["user_text"], PROMPT);
        let sampled = more.contains(&"sample") || more.contains(&"shuffled-gradient");
        assert_eq!(first["uniforms_used"].as_array().map(Vec::is_empty), Some(!sampled));
        if more.is_empty() {
            assert_eq!(run.out, replay.out);
        }
        if let [_, proposals @ ("all" | "shuffled-gradient"), ..] = more[..] {
            assert_eq!(first["options"]["proposals"], proposals);
            assert_eq!(first["work"]["reward_backward"] == 0, proposals == "all");
            let segments = first["segments"].as_array().expect("segments");
            assert_eq!(segments.iter().any(|segment| segment["walk_end"] == "exhausted"), proposals == "all");
        } else {
            assert!(first["options"].get("proposals").is_none() && first["options"].get("logprob_weight").is_none());
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 2);
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let args = ["--nudge-selection", "sample", "--nudge-temperature", "1", "--seed"];
    let of = |seed: &str| short(&[&args[..], &[seed]].concat()).out;
    assert_eq!(of("1"), of("1"));
    assert!(["2", "3", "4"].iter().any(|seed| of(seed) != of("1")));
    let of = |seed: &str| short(&["--proposals", "random", "--seed", seed]).out;
    assert!(["2", "3", "4"].iter().any(|seed| of(seed) != of("1")));
}

#[test]
fn a_control_has_a_name_of_its_own() {
    for control in ["random", "shuffled-gradient", "all"] {
        let name = format!("ggro-{control}");
        let named = short(&["--method", &name]);
        assert_eq!(named.out, short(&["--proposals", control]).out, "{control}");
        assert_eq!(named.out, short(&["--method", &name, "--proposals", control]).out, "{control}");
        let refused = ggro(&["generate", PROMPT, "--method", &name, "--proposals", "gradient"]);
        assert!(refused.code == Some(2) && refused.err.contains("not with --proposals gradient"), "{}", refused.err);
    }
    let drawn = ggro(&["generate", PROMPT, "--method", "ggro-random", "--retokenize"]);
    assert!(drawn.code == Some(2) && drawn.err.contains("chosen greedily"), "{}", drawn.err);
}

#[test]
fn every_golden_trace_as_a_request() {
    let dir = tempfile::tempdir().expect("a folder");
    let (request, trace) = (dir.path().join("request.json"), dir.path().join("trace.json"));
    let mut count = 0;
    for entry in std::fs::read_dir(goldens()).expect("fixtures") {
        let folder = entry.expect("an entry").path();
        if !folder.is_dir() {
            continue;
        }
        let (policy, reward) = (folder.join("policy"), folder.join("reward"));
        for golden in traces(&folder) {
            std::fs::write(&request, golden.to_string()).expect("written");
            let models = ["generate", "--policy", utf8(&policy), "--reward", utf8(&reward)];
            let files = ["--no-baseline", "--request", utf8(&request), "--trace", utf8(&trace)];
            ggro(&[&models[..], &files[..]].concat()).ok();
            let found = read_json(&trace);
            for field in [
                "options",
                "prompt_ids",
                "final_ids",
                "new_ids",
                "segment_boundaries",
                "num_nudges",
                "finish_reason",
                "uniforms_used",
                "final_pool_position",
                "user_text",
                "final_text",
                "round_trip_stable",
            ] {
                assert_eq!(golden[field], found[field], "{folder:?} {} {field}", golden["name"]);
            }
            count += 1;
        }
    }
    assert_eq!(count, 108);
}

#[test]
fn the_official_layout() {
    let folder = goldens().join("llama-gqa");
    let golden = &traces(&folder)[0];
    assert_eq!(golden["name"], "default");
    let dir = tempfile::tempdir().expect("a folder");
    let trace = dir.path().join("trace.json");
    let (policy, reward) = (folder.join("policy"), folder.join("reward"));
    let run = ggro(&[
        "generate",
        golden["user_text"].as_str().expect("a text"),
        "--policy",
        utf8(&policy),
        "--reward",
        utf8(&reward),
        "--prompt-layout",
        "official",
        "--max-new-tokens",
        "64",
        "--entropy-threshold",
        "1.2",
        "--no-baseline",
        "--trace",
        utf8(&trace),
    ])
    .ok();
    let found = read_json(&trace);
    assert_eq!(found["options"], golden["options"]);
    assert_eq!(found["final_ids"], golden["final_ids"]);
    let text = golden["final_text"].as_str().expect("a text");
    let answer = text.rsplit("<|end_header_id|>\n\n").next().expect("an answer");
    assert_eq!(run.out, format!("{}\n", answer.trim_end_matches("<|eot_id|>")));
}

/// Short answers of a policy that writes the assistant header itself.
fn official(method: &str, more: &[&str]) -> super::Run {
    let folder = goldens().join("llama-gqa");
    let golden = traces(&folder).remove(0);
    let (policy, reward) = (folder.join("policy"), folder.join("reward"));
    let models = ["--policy", utf8(&policy), "--reward", utf8(&reward), "--prompt-layout", "official"];
    let prompt = ["generate", golden["user_text"].as_str().expect("a text"), "--max-new-tokens", "30"];
    ggro(&[&prompt[..], &models, &["--method", method], more].concat()).ok()
}

/// Samples are written as the greedy answer is: without the assistant header.
#[test]
fn samples_in_the_official_layout_have_no_header() {
    let greedy = official("greedy", &["--no-baseline"]).out;
    assert!(greedy.len() > 40 && !greedy.contains("<|"), "{greedy}");
    for (method, n) in [("sample", "1"), ("bon", "2")] {
        let cold = ["--temperature", "0", "--n", n];
        assert_eq!(official(method, &cold).out, greedy, "{method}");
        let object = official(method, &[&cold[..], &["--json"]].concat()).json();
        assert_eq!(format!("{}\n", object["text"].as_str().expect("a text")), greedy, "{method}");
    }
}

/// The policy writes the assistant header itself there; it is no text, to stop strings neither.
#[test]
fn stop_strings_are_not_looked_for_in_the_header() {
    for (method, parameters) in
        [("blockwise", &["--method-param", "k=1", "--method-param", "block=9"][..]), ("sample", &[])]
    {
        let run = |more: &[&str]| {
            let cold = ["--temperature", "0", "--json"];
            official(method, &[&cold[..], parameters, more].concat()).json()
        };
        let free = run(&[]);
        let text = free["text"].as_str().expect("a text");
        assert!(!text.contains("assistant") && text.len() > 40, "{text}");
        for stop in ["assistant", "end_header", "\n\n"] {
            let stopped = run(&["--stop", stop]);
            assert_eq!((&stopped["text"], &stopped["completions"]), (&free["text"], &free["completions"]), "{stop}");
        }
        let place = text.char_indices().nth(20).expect("a long text").0;
        let stop = &text[place..place + 6];
        assert_eq!(run(&["--stop", stop])["text"].as_str(), text.split(stop).next());
    }
}

#[test]
fn variables_stand_for_flags_and_flags_win() {
    let tokens = |value: &str, more: &[&str]| {
        let mut command = command();
        command.env("GGRO_MAX_NEW_TOKENS", value).env("GGRO_NO_BASELINE", "1").env("GGRO_JSON", "yes");
        let run = finish(command.args(["generate", PROMPT]).args(more)).ok();
        run.json()["new_tokens"].clone()
    };
    assert_eq!(tokens("7", &[]), 7);
    assert_eq!(tokens("7", &["--max-new-tokens", "9"]), 9);
}

#[test]
fn a_prefill_is_printed_and_continued() {
    let run = short(&["--prefill", "Once upon a time, a red"]);
    assert!(run.out.starts_with("Once upon a time, a red"), "{}", run.out);
    assert!(run.out.len() > 40);
}

#[test]
fn flags_without_effect_are_explained_and_without_effect() {
    let run = short(&["--nudge-weight", "3", "--scale-nudge-biases"]);
    assert_eq!(run.out, short(&[]).out);
    assert!(run.err.contains("--nudge-weight has no effect"), "{}", run.err);
    assert!(run.err.contains("--scale-nudge-biases has no effect"), "{}", run.err);
}

#[test]
fn threads_change_nothing() {
    assert_eq!(short(&["--threads", "1"]).out, short(&["--threads", "3"]).out);
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    let mut child = command()
        .args(["generate", PROMPT])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an end");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(!err.contains("error") && !err.contains("panicked"), "{err}");
}

#[test]
fn auto_says_which_device_it_takes() {
    let run = ggro(&["generate", PROMPT, "--device", "auto", "--method", "greedy", "--max-new-tokens", "2"]).ok();
    let line = run.err.lines().find(|line| line.starts_with("device: ")).expect("a line about the device");
    assert!(line.starts_with("device: cpu (") || line.starts_with("device: cuda:0 ("), "{line}");
}

#[test]
fn candidates_ahead_of_time_change_nothing_but_the_work() {
    let run = |width: &str| {
        let args = ["generate", PROMPT, "--json", "--no-baseline", "--max-new-tokens", "40", "--speculation", width];
        ggro(&args).ok().json()
    };
    let (off, eight, auto) = (run("off"), run("8"), run("auto"));
    for field in ["text", "final_ids", "segment_boundaries", "reward", "work"] {
        assert_eq!(off[field], eight[field], "{field}");
        assert_eq!(off[field], auto[field], "{field}");
    }
    assert_eq!(off["speculative_work"]["policy_forward"], 0);
    assert!(eight["speculative_work"]["policy_forward"].as_u64().unwrap() > 0);
    let refused = ggro(&["generate", PROMPT, "--speculation", "many"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("expected auto, off or a number"), "{}", refused.err);
    let guessed = ["generate", PROMPT, "--json", "--no-baseline", "--max-new-tokens", "40", "--draft", "ngram"];
    let guessed = ggro(&guessed).ok().json();
    for field in ["text", "final_ids", "segment_boundaries", "reward", "work"] {
        assert_eq!(auto[field], guessed[field], "{field}");
    }
}

/// A folder with the demo policy, and one with another tokenizer.
#[test]
fn a_model_that_drafts_changes_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let Files::Embedded(_, files) = demo::policy() else { panic!("the demo policy is embedded") };
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let args = ["generate", PROMPT, "--json", "--no-baseline", "--max-new-tokens", "24"];
    let run = |draft: &str| ggro(&[&args[..], &["--draft", draft]].concat());
    let (plain, drafted) = (ggro(&args).ok().json(), run(utf8(folder.path())).ok().json());
    for field in ["text", "final_ids", "segment_boundaries", "reward", "work"] {
        assert_eq!(plain[field], drafted[field], "{field}");
    }
    for (draft, part) in [
        ("always", "always: No such file or directory"),
        ("", "expected off, ngram, or a model"),
        (utf8(&goldens().join("llama-gqa/policy")), "the draft model has another tokenizer than the policy: at id "),
        (utf8(&goldens().join("llama-gqa/reward")), "expected a draft model, which is a language model"),
    ] {
        let refused = run(draft);
        assert_eq!(refused.code, Some(2), "{draft}: {}", refused.err);
        assert!(refused.err.contains(part), "{draft}: {}", refused.err);
    }
    let info = ggro(&["info", "--json", "--draft", utf8(folder.path())]).ok().json();
    let models = info["pair"]["models"].as_array().unwrap();
    assert_eq!((models[2]["role"].as_str(), &models[2]["bytes"]), (Some("draft"), &models[0]["bytes"]));
}

#[test]
fn the_best_of_several_samples() {
    let run = |args: &[&str]| ggro(&[&["generate", PROMPT, "--max-new-tokens", "24"], args].concat());
    let bon = run(&["--method", "bon", "--n", "4", "--seed", "3", "--json"]).ok().json();
    let rewards: Vec<f64> =
        bon["completions"].as_array().unwrap().iter().map(|one| one["reward"].as_f64().unwrap()).collect();
    assert_eq!(rewards.len(), 4);
    assert_eq!(bon["reward"].as_f64().unwrap(), rewards.iter().copied().fold(f64::MIN, f64::max));
    let sampled = run(&["--method", "sample", "--seed", "3", "--json"]).ok().json();
    assert_eq!(sampled["completions"][0]["ids"], bon["completions"][0]["ids"]);
    let text = run(&["--method", "bon", "--n", "4", "--seed", "3"]).ok();
    assert_eq!(text.out.trim_end_matches('\n'), bon["text"].as_str().unwrap());
    assert!(text.err.contains("the best of 4"), "{}", text.err);

    let cut = run(&["--method", "sample", "--temperature", "0", "--stop", "a"]).ok();
    assert!(!cut.out.trim_end().contains('a') && !cut.out.trim().is_empty(), "{}", cut.out);
}

#[test]
fn methods_that_ggro_is_compared_with() {
    let run = |method: &str, parameters: &[&str], more: &[&str]| {
        let given = parameters.iter().flat_map(|parameter| ["--method-param", parameter]).collect::<Vec<&str>>();
        let args = ["generate", PROMPT, "--max-new-tokens", "14", "--seed", "3", "--method", method];
        ggro(&[&args[..], &given, more].concat()).ok()
    };
    let bon = run("bon", &[], &["--n", "4", "--json"]).json();
    let rewards = |object: &Value| {
        let all = object["completions"].as_array().expect("completions").iter();
        all.map(|one| one["reward"].as_f64().expect("a reward")).collect::<Vec<f64>>()
    };
    let samples = rewards(&bon);
    for (method, parameters, words) in [
        ("rejection-sampling", &["target_reward=50", "max_tries=4"][..], "4 proposals, 4 rejected\n"),
        ("soft-best-of-n", &["n=4", "lambda=0.5"], "4 proposals, 3 rejected\n"),
        ("best-of-poisson", &["mu=0"], "1 proposal, 0 rejected\n"),
        ("speculative-rejection", &["n=4"], " rankings\n"),
        ("cards", &["target_reward=2", "acceptance=hard", "max_segment=5", "max_rejections=2"], " segments\n"),
        ("blockwise", &["k=2", "block=7"], "4 proposals, 2 rejected, 2 blocks\n"),
        ("beam", &["width=2", "successors=2", "chunk=7"], "8 proposals, 4 rejected, 2 rounds\n"),
        ("args", &["k=3", "weight=0.5"], "42 proposals, 28 rejected, 14 tokens\n"),
    ] {
        let found = run(method, parameters, &["--json"]).json();
        assert_eq!(found["method"]["name"], method);
        for parameter in parameters {
            let (name, value) = parameter.split_once('=').expect("a parameter");
            let kept = &found["method"][name];
            assert!(kept == value || kept.as_f64() == value.parse().ok(), "{method}: {parameter}, {kept}");
        }
        let best = found["best"].as_u64().expect("a place") as usize;
        let all = rewards(&found);
        assert_eq!((found["reward"].as_f64(), &found["completions"][best]["text"]), (Some(all[best]), &found["text"]));
        if ["rejection-sampling", "soft-best-of-n", "best-of-poisson"].contains(&method) {
            // The same samples as those of bon.
            assert_eq!(all, samples[..all.len()], "{method}");
        }
        let (search, work) = (&found["search"], &found["work"]);
        assert!(
            search["proposals"].as_u64() > search["rejected"].as_u64() || method == "rejection-sampling",
            "{search}"
        );
        assert!(work["policy_forward"].as_u64() > Some(14) && work["reward_forward"].as_u64() > Some(14), "{work}");
        assert_eq!(work["reward_backward"], 0);
        // People get the same text, and the counters in words.
        let text = run(method, parameters, &[]);
        assert_eq!(text.out.strip_suffix('\n'), found["text"].as_str());
        assert!(text.err.contains(&format!("search      {method}: ")) && text.err.contains(words), "{}", text.err);
        assert_eq!(text.err.contains(", chosen from "), all.len() > 1, "{}", text.err);
    }
    let cut = run("blockwise", &["k=2", "block=5"], &["--stop", "a"]);
    assert!(!cut.out.trim_end().contains('a') && !cut.out.trim().is_empty(), "{}", cut.out);
    let noted = run("args", &["k=2"], &["--temperature", "0.5", "--top-k", "3"]);
    assert!(noted.err.contains("note: --temperature is ignored: args does not sample"), "{}", noted.err);
    assert!(noted.err.contains("note: --top-k is ignored"), "{}", noted.err);
}

#[test]
fn sampling_flags_that_mean_nothing_are_reported_or_refused() {
    let run = |args: &[&str]| ggro(&[&["generate", PROMPT, "--max-new-tokens", "4", "--no-baseline"], args].concat());
    let ignored = run(&["--temperature", "0.7", "--top-p", "0.9"]).ok();
    assert!(ignored.err.contains("--temperature is ignored") && ignored.err.contains("--top-p is ignored"));
    for (args, part) in [
        (&["--n", "2"][..], "all answers would be the same"),
        (&["--stop", "x"], "--stop is for --method sample"),
        (&["--method", "sample", "--top-p", "1.5"], "top_p must be"),
        (&["--method", "sample", "--temperature", "-1"], "temperature must be"),
        (&["--method", "bon", "--trace", "/nowhere/trace.json"], "--trace records the decisions"),
        (&["--method", "sample", "--stop", ""], "must have 1 to 256 bytes"),
        (&["--method", "beam", "--trace", "/nowhere/trace.json"], "--trace records the decisions"),
        (&["--method", "beam", "--n", "2"], "--n is for --method sample and bon; beam gives one answer"),
    ] {
        let run = run(args);
        assert_eq!(run.code, Some(2), "{args:?}");
        assert!(run.err.contains(part), "{args:?}: {}", run.err);
    }
}
