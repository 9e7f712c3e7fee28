//! `ggro score`: rewards of given texts.

use super::{PROMPT, Run, command, ggro, utf8};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn reward(value: &Value) -> f32 {
    value["reward"].as_f64().unwrap_or_else(|| panic!("a reward in {value}")) as f32
}

/// Lines, scored from standard input.
fn from_standard_input(lines: &[Value], more: &[&str]) -> Run {
    let mut child = command()
        .args([&["score", "--input", "-"], more].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    for line in lines {
        writeln!(stdin, "{line}").expect("written");
    }
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn rewards_are_those_of_generate() {
    let args = ["generate", PROMPT, "--max-new-tokens", "24", "--json", "--no-baseline"];
    let answer = ggro(&args).ok().json();
    let found = from_standard_input(&[json!({"ids": answer["final_ids"], "metadata": {"a": 1}})], &["--json"]).ok();
    assert!(found.err.contains("1 text of") && found.err.contains("mean reward"), "{}", found.err);
    let line = &lines(&found.out)[0];
    assert_eq!(reward(line), reward(&answer));
    let len = answer["final_ids"].as_array().unwrap().len();
    assert_eq!((&line["index"], &line["tokens"], &line["metadata"]), (&json!(0), &json!(len), &json!({"a": 1})));
    assert_eq!(line["pooled_at"], len - 1);
    assert!(line.get("prefix_rewards").is_none() && line.get("gradient_norms").is_none(), "{line}");
    // The demo's reward model is the one of the directory.
    let ids = [json!({"ids": answer["final_ids"]})];
    let named = from_standard_input(&ids, &["--json", "--reward", "assets/demo/reward"]).ok();
    assert_eq!(reward(&lines(&named.out)[0]), reward(line));
    let pair = ["--json", "--policy", "assets/demo/policy", "--reward", "assets/demo/reward"];
    assert_eq!(reward(&lines(&from_standard_input(&ids, &pair).ok().out)[0]), reward(line));
}

#[test]
fn texts_of_every_form_in_order() {
    let messages =
        json!([{"role": "user", "content": "A story."}, {"role": "assistant", "content": "Once there was a fox."}]);
    let forms = [
        messages.clone(),
        json!({ "messages": messages }),
        json!({"prompt": "A story.", "response": "Once there was a fox."}),
        json!("Once there was a fox."),
        json!({"text": "Once there was a fox."}),
    ];
    let all = lines(&from_standard_input(&forms, &["--json"]).ok().out);
    let rewards: Vec<f32> = all.iter().map(reward).collect();
    assert_eq!(all.iter().map(|line| line["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(rewards[0] == rewards[1] && rewards[0] == rewards[2] && rewards[3] == rewards[4]);
    assert_ne!(rewards[0], rewards[3]);
    // As arguments and in any company, the same; shortened for people.
    let long = "Once there was a fox. ".repeat(9);
    let run = ggro(&["score", "Once there was a fox.", &long]).ok();
    let shown: Vec<(&str, &str)> = run.out.lines().filter_map(|line| line.split_once('\t')).collect();
    assert_eq!(shown[0], (format!("{:.4}", rewards[3]).as_str(), "Once there was a fox."));
    assert!(shown[1].1.ends_with("...") && shown[1].1.len() < 80, "{shown:?}");
    // Many at a time and one at a time, in the same order.
    let many: Vec<Value> = (0..20).map(|i| json!(format!("Story {i}: a fox and {} crows.", i * i))).collect();
    let scored = |at_once: &str| from_standard_input(&many, &["--max-concurrency", at_once]).ok().out;
    assert_eq!(scored("1"), scored("7"));
    assert_eq!(scored("7").lines().count(), 20);
}

#[test]
fn rewards_of_prefixes_and_gradients() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, output) = (folder.path().join("texts.jsonl"), folder.path().join("scores.jsonl"));
    std::fs::write(&file, "\"Once there was a fox.\"\n\n\"A crow sang.\"\n").expect("written");
    let args = ["score", "--input", utf8(&file), "--output", utf8(&output), "--prefix-rewards", "--gradients"];
    let run = ggro(&[&args[..], &["--gradient-rows", "--candidates", "1:5,9", "--candidates", "0:5"]].concat()).ok();
    assert!(run.out.is_empty(), "{}", run.out);
    let all = lines(&std::fs::read_to_string(&output).expect("scores"));
    assert_eq!(all.len(), 2);
    for line in &all {
        let tokens = line["tokens"].as_u64().unwrap() as usize;
        let prefixes = line["prefix_rewards"].as_array().unwrap();
        assert_eq!((prefixes.len(), prefixes.last().unwrap().as_f64().unwrap() as f32), (tokens, reward(line)));
        let (norms, rows) = (line["gradient_norms"].as_array().unwrap(), line["gradient_rows"].as_array().unwrap());
        assert_eq!((norms.len(), rows.len()), (tokens, tokens));
        for (norm, row) in norms.iter().zip(rows) {
            let sum: f64 = row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap().powi(2)).sum();
            assert!((sum.sqrt() / norm.as_f64().unwrap() - 1.0).abs() < 1e-4, "{norm}");
        }
        let candidates = line["candidates"].as_array().unwrap();
        assert_eq!((&candidates[0]["position"], &candidates[0]["token_ids"]), (&json!(1), &json!([5, 9])));
        assert!(candidates[0]["scores"].as_array().unwrap().len() == 2 && candidates[1]["scores"][0].is_f64());
    }
    // A prefix is a text.
    let ids: Vec<Value> = lines(&from_standard_input(&[json!("Once there was a fox.")], &["--json"]).ok().out);
    assert_eq!(reward(&ids[0]), reward(&all[0]));
}

#[test]
fn faulty_texts_are_named_before_anything_is_scored() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("texts.jsonl");
    let long = json!("word ".repeat(900)).to_string();
    for (line, part) in [
        ("{\"answer\": 3}", "texts.jsonl: line 2: expected one of `text`, `messages`, `ids`, or `prompt` and"),
        ("{", "texts.jsonl: line 2: expected JSON"),
        ("\"\"", "texts.jsonl: line 2: expected a text, found an empty one"),
        (&long, "texts.jsonl: line 2: its 4500 bytes are more than 512 tokens"),
        ("{\"ids\": [70000]}", "texts.jsonl: line 2: expected ids below 4096"),
    ] {
        std::fs::write(&file, format!("\"fine\"\n{line}\n")).expect("written");
        let run = ggro(&["score", "--input", utf8(&file)]);
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{}", run.err);
        assert!(run.err.contains(part), "no {part:?} in {}", run.err);
    }
    for (args, part) in [
        (&["score"][..], "no TEXT: give texts as arguments"),
        (&["score", ""], "text 0: expected a text, found an empty one"),
        (&["score", "a", "--candidates", "3"], "expected POSITION:ID"),
        (&["score", "a", "--candidates", "99:1"], "text 0: --candidates: expected a position below its"),
        (&["score", "a", "--candidates", "0:70000"], "--candidates: expected ids below"),
        (&["score", "a", "--output", "/no/such/folder/file"], "/no/such/folder/file"),
        (&["score", "--input", "no/such.jsonl"], "no/such.jsonl"),
        (&["score", "a", "--reward", "assets/demo/policy"], "expected a reward model"),
    ] {
        let run = ggro(args);
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.err);
        assert!(run.err.contains(part), "{args:?}: no {part:?} in {}", run.err);
    }
    assert!(ggro(&["--help"]).ok().out.contains("score"));
}
