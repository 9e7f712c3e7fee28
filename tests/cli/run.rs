//! `ggro run`: rows for prompts, whatever happens to the process.

use super::{Run, command, finish, ggro, read_json, utf8};
use ggro_testkit::random::XorShift;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Prompts of the demo pair, as lines.
fn prompts(folder: &Path, count: usize) -> PathBuf {
    let things = ["a lost kite", "a kind frog", "two cats", "the moon", "a red ball", "a small boat"];
    let line = |i: usize| match i % 3 {
        0 => json!(format!("Write a story about {}.", things[i % things.len()])),
        1 => {
            json!({"prompt": format!("Tell me about {} and number {i}.", things[i % things.len()]), "metadata": {"i": i}})
        }
        _ => json!([{"role": "user", "content": format!("Story {i}: {}.", things[i % things.len()])}]),
    };
    let path = folder.join("prompts.jsonl");
    let text: String = (0..count).map(|i| format!("{}\n", line(i))).collect();
    std::fs::write(&path, text).expect("written");
    path
}

const SHORT: [&str; 6] = ["--max-new-tokens", "14", "--entropy-threshold", "2.5", "--num-refinement-steps", "3"];

fn arguments<'a>(input: &'a Path, output: &'a Path) -> Vec<&'a str> {
    [&["run", "--input", utf8(input), "--output", utf8(output)], &SHORT[..]].concat()
}

fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("rows");
    text.lines().map(|line| serde_json::from_str(line).expect("a whole row")).collect()
}

/// Without what a clock says.
fn timeless(path: &Path) -> Vec<Value> {
    let mut rows = rows(path);
    rows.iter_mut().for_each(|row| drop(row.as_object_mut().expect("an object").shift_remove("elapsed_seconds")));
    rows
}

/// Every method has rows, is gone on with to the same answers, and says in the options what an answer depends on.
#[test]
fn every_method_answers_and_is_gone_on_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = prompts(folder.path(), 2);
    let target = ["--method-param", "target_reward=1"];
    let methods: [(&str, &[&str]); 10] = [
        ("sample", &[]),
        ("bon", &["--n", "2"]),
        ("rejection-sampling", &["--method-param", "max_tries=2"]),
        ("cards", &["--method-param", "max_rejections=1", "--temperature", "0.8"]),
        ("speculative-rejection", &["--method-param", "n=2"]),
        ("args", &["--method-param", "k=2"]),
        ("blockwise", &["--method-param", "k=2", "--method-param", "block=4"]),
        ("beam", &["--method-param", "successors=1", "--method-param", "chunk=4"]),
        ("soft-best-of-n", &["--method-param", "n=2"]),
        ("best-of-poisson", &["--method-param", "mu=1"]),
    ];
    for (method, more) in methods {
        let output = folder.path().join(format!("{method}.jsonl"));
        let needed = if ["rejection-sampling", "cards"].contains(&method) { &target[..] } else { &[] };
        let args = ["run", "--input", utf8(&input), "--output", utf8(&output), "--max-new-tokens", "10", "--seed", "5"];
        let args = [&args[..], &["--method", method], needed, more].concat();
        ggro(&args).ok();
        let all = rows(&output);
        for (row, index) in all.iter().zip(0..) {
            assert!(row["index"] == index && row["reward"].is_f64() && row["num_nudges"] == 0, "{method}: {row}");
            let segments = row["segments"].as_array().expect("segments");
            let tokens = row["new_tokens"].as_u64().expect("a count") as usize;
            assert_eq!((segments.len(), segments[0]["tokens"].as_array().map(Vec::len)), (1, Some(tokens)), "{method}");
            let entropies = segments[0]["entropies"].as_array().expect("entropies");
            assert!(entropies.len() == tokens && entropies.iter().all(Value::is_f64), "{method}: {row}");
            assert_eq!(row["search"].is_object(), !["sample", "bon"].contains(&method), "{method}");
        }
        let config = read_json(&folder.path().join(format!("{method}.jsonl.config.json")));
        assert_eq!(
            (&config["method"], config["search"]["name"].as_str()),
            (&json!(method), all[0]["search"].is_object().then_some(method))
        );
        assert_eq!(config["sampling"].is_object(), method != "args", "{config}");
        // The second row is lost, and made again.
        let whole = timeless(&output);
        let first = std::fs::read_to_string(&output).expect("rows");
        std::fs::write(&output, format!("{}\n", first.lines().next().expect("a row"))).expect("written");
        ggro(&args).ok();
        assert_eq!(timeless(&output), whole, "{method}");
        // Another seed is another run.
        let other: Vec<&str> = args.iter().map(|&arg| if arg == "5" { "6" } else { arg }).collect();
        assert!(ggro(&other).err.contains("`seed` was 5, is 6"), "{method}");
    }
    let output = folder.path().join("refused.jsonl");
    let refused = |more: &[&str], words: &str| {
        let args = [&["run", "--input", utf8(&input), "--output", utf8(&output)], more].concat();
        let run = ggro(&args);
        assert!(run.code != Some(0) && run.err.contains(words), "{}", run.err);
    };
    refused(&["--method", "sample", "--n", "2"], "--method bon takes the best of several");
    refused(&["--method", "bon", "--stop", "x"], "--stop: answers of ggro run end at the model's stop ids alone");
    refused(&["--method", "cards"], "target_reward must be given");
    refused(&["--method", "bon", "--temperature", "-1"], "temperature must be");
    refused(&["--method", "beam", "--n", "2"], "--n is for --method sample and bon");
    let tight = ["--method", "speculative-rejection", "--method-param", "kv_budget=10"];
    refused(&tight, "prompt 0: speculative-rejection: kv_budget must be at least");
}

#[test]
fn a_row_for_every_prompt() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (prompts(folder.path(), 7), folder.path().join("out.jsonl"));
    let run = ggro(&arguments(&input, &output)).ok();
    assert!(run.err.contains("7 answers in") && run.err.contains("mean reward"), "{}", run.err);
    let all = rows(&output);
    assert_eq!(all.iter().map(|row| row["index"].as_u64()).collect::<Vec<_>>(), (0..7).map(Some).collect::<Vec<_>>());
    for row in &all {
        for field in ["prompt", "full_text", "response", "finish_reason"] {
            assert!(row[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {row}");
        }
        assert!(row["reward"].is_f64() && row["elapsed_seconds"].as_f64() > Some(0.0) && row["answer"].is_null());
        let tokens: usize = row["segments"]
            .as_array()
            .expect("segments")
            .iter()
            .map(|s| s["tokens"].as_array().map_or(0, Vec::len))
            .sum();
        let (new, boundaries) = (row["new_tokens"].as_u64(), row["segment_boundaries"].as_array().expect("boundaries"));
        let last = boundaries.last().and_then(Value::as_u64).expect("a segment");
        assert_eq!(last - row["prompt_tokens"].as_u64().expect("a number"), tokens as u64, "{row}");
        assert!(new >= Some(tokens as u64), "{row}");
    }
    assert_eq!(all[1]["metadata"]["i"], 1);

    // The same answers as one by one, with their rewards.
    let alone = ggro(
        &[&["generate", "--json", "--no-baseline", all[0]["prompt"].as_str().expect("text")], &SHORT[..]].concat(),
    );
    let alone = alone.ok().json();
    assert_eq!(alone["text"], all[0]["response"]);
    assert_eq!(alone["reward"].as_f64().map(|x| x as f32), all[0]["reward"].as_f64().map(|x| x as f32));

    // Again: nothing is left to do, and nothing changes.
    let before = std::fs::read(&output).expect("rows");
    let again = ggro(&arguments(&input, &output)).ok();
    assert!(again.err.contains("7 of 7 prompts are answered already"), "{}", again.err);
    assert!(std::fs::read(&output).expect("rows") == before);

    // In pieces, and greedily.
    let part = folder.path().join("part.jsonl");
    ggro(&[&arguments(&input, &part)[..], &["--start-index", "2", "--num-prompts", "3"]].concat()).ok();
    assert_eq!(timeless(&part), timeless(&output)[2..5]);
    let greedy = folder.path().join("greedy.jsonl");
    ggro(&[&arguments(&input, &greedy)[..], &["--method", "greedy", "--prefill-attack", "Once"]].concat()).ok();
    for row in rows(&greedy) {
        assert!(
            row["num_nudges"] == 0 && row["response"].as_str().is_some_and(|text| text.starts_with("Once")),
            "{row}"
        );
    }
}

#[test]
fn what_is_wrong_is_named_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (prompts(folder.path(), 3), folder.path().join("out.jsonl"));
    let refused = |run: Run, parts: &[&str]| {
        assert_eq!(run.code, Some(2), "{}", run.err);
        for part in parts {
            assert!(run.err.contains(part), "no {part:?} in {}", run.err);
        }
    };
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "\"fine\"\n{\"prompt\": 3}\n").expect("written");
    refused(ggro(&arguments(&bad, &output)), &["bad.jsonl: line 2: `prompt`: expected a string"]);
    assert!(!output.exists());
    refused(ggro(&arguments(&folder.path().join("none.jsonl"), &output)), &["none.jsonl"]);
    std::fs::write(&bad, "\"a\"\n\nnull\n").expect("written");
    refused(
        ggro(&arguments(&bad, &output)),
        &["bad.jsonl: line 3: expected a string, messages or an object, found null"],
    );
    std::fs::write(&bad, "\"a\"\n{\n").expect("written");
    refused(ggro(&arguments(&bad, &output)), &["line 2: expected JSON: EOF while parsing an object at column 1"]);
    refused(
        ggro(&[&arguments(&input, &output)[..], &["--start-index", "3"]].concat()),
        &["--start-index 3: leaves none of the 3 prompts"],
    );
    refused(ggro(&[&arguments(&input, &output)[..], &["--num-prompts", "0"]].concat()), &["--num-prompts 0: expected"]);
    refused(ggro(&[&arguments(&input, &output)[..], &["--task", "gsm8k"]].concat()), &["'gsm8k'", "mmlu-pro"]);
    let cards = [&arguments(&input, &output)[..], &["--method", "cards"]].concat();
    refused(ggro(&cards), &["cards: target_reward must be given"]);
    std::fs::write(&bad, format!("\"fine\"\n\"{}\"\n", "word ".repeat(900))).expect("written");
    refused(ggro(&arguments(&bad, &output)), &["prompt 1:", "leave no room in the context of 512"]);

    // Another way of answering is not mixed with what is there.
    ggro(&arguments(&input, &output)).ok();
    let other = ["--seed", "5", "--nudge-top-k", "9", "--proposals", "random", "--logprob-weight", "0"];
    let other = ggro(&[&arguments(&input, &output)[..], &other].concat());
    let proposals = "`proposals` was nothing, is \"random\"";
    refused(other, &["`nudge_top_k` was 25, is 9", proposals, "`seed` was 0, is 5", "another output file"]);
    let text = std::fs::read_to_string(&input).expect("prompts");
    std::fs::write(&input, text.replace("a lost kite", "a found kite")).expect("written");
    refused(ggro(&arguments(&input, &output)), &["out.jsonl: line 1: row 0 answers another prompt"]);
    std::fs::write(&input, text.lines().next().expect("a prompt")).expect("written");
    refused(ggro(&arguments(&input, &output)), &["line 2: row 1 is one too many: the input has 1 prompt"]);
    // What a row carries from the input, and what stood before the last message, is that of the input of now.
    for (from, to, part) in [
        ("{\"i\":1}", "{\"i\":2}", "line 2: row 1 has another `metadata`"),
        ("\"metadata\"", "\"answer\":\"A\",\"metadata\"", "line 2: row 1 has another `answer`"),
        ("[{", "[{\"role\":\"system\",\"content\":\"Be kind.\"},{", "line 3: row 2 answers another conversation"),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&input, text.replace(from, to)).expect("written");
        refused(ggro(&arguments(&input, &output)), &[part]);
    }
}

/// Messages as OpenAI's clients write them, with functions that only the template looks at.
#[test]
fn conversations_of_every_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let template = "{% for m in messages %}<{{ m.role }}|{{ m.content }}{% for c in m.tool_calls or [] %}|{{ c.function.arguments.x }}\
                    {% endfor %}>{% endfor %}{% if tools %}[{{ tools[0].name }}]{% endif %}";
    std::fs::write(at("t.jinja"), template).expect("written");
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 5}"}}]});
    let lines = [
        json!([{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]),
        json!({"messages": [{"role": "user", "content": "q"}, call, {"role": "tool", "content": "7"}], "tools": [{"name": "f"}]}),
        json!([{"role": "user", "content": "q"}, {"role": "function", "name": "f", "content": "8"}]),
    ];
    std::fs::write(at("in.jsonl"), lines.map(|line| format!("{line}\n")).concat()).expect("written");
    let template = at("t.jinja");
    let (input, output) = (at("in.jsonl"), at("out.jsonl"));
    ggro(&[&arguments(&input, &output)[..], &["--chat-template", utf8(&template)]].concat()).ok();
    let all = rows(&output);
    for (row, begun) in
        all.iter().zip(["<system|s><user|one\ntwo>", "<user|q><assistant||5><tool|7>[f]", "<user|q><function|8>"])
    {
        let text = row["full_text"].as_str().expect("text");
        assert!(text.starts_with(begun), "{text}");
    }
    // The same again: nothing has changed.
    ggro(&[&arguments(&input, &output)[..], &["--chat-template", utf8(&template)]].concat()).ok();
}

#[test]
fn prompts_that_are_too_long_are_passed_over_if_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
    let long = json!({"prompt": "word ".repeat(900), "metadata": 5});
    std::fs::write(&input, format!("\"One.\"\n{long}\n\"Two.\"\n")).expect("written");
    let plain = arguments(&input, &output);
    assert_eq!(ggro(&plain).code, Some(2));
    assert!(!output.exists());
    let args = [&plain[..], &["--skip-too-long"]].concat();
    let run = ggro(&args).ok();
    assert!(run.err.contains("2 answers in") && run.err.contains("passed over 1 prompt"), "{}", run.err);
    let all = rows(&output);
    assert_eq!(all.len(), 3);
    let passed = &all[1];
    assert!(
        passed["skipped"].as_str().is_some_and(|why| why.contains("leave no room in the context of 512")),
        "{passed}"
    );
    assert_eq!((&passed["response"], &passed["reward"], &passed["metadata"]), (&json!(""), &Value::Null, &json!(5)));
    assert!(all[0].get("skipped").is_none() && all[0]["concurrency"] == 16);
    let before = std::fs::read(&output).expect("rows");
    let again = ggro(&args).ok();
    assert!(again.err.contains("2 of 2 prompts are answered already"), "{}", again.err);
    assert!(std::fs::read(&output).expect("rows") == before);
    let table = ggro(&["report", utf8(&output)]).ok().out;
    assert!(table.contains("answers                 2\n") && table.contains("prompts passed over     1\n"), "{table}");
}

/// The rows are those of the file behind the link, by either name; and a rewrite that fails loses nothing.
#[test]
fn a_link_is_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("disk")).expect("a folder");
    let (input, link, real) = (prompts(folder.path(), 6), at("link.jsonl"), at("disk/real.jsonl"));
    std::os::unix::fs::symlink("disk/real.jsonl", &link).expect("a link");
    let blocked = at("disk/real.jsonl.part");
    ggro(&[&arguments(&input, &link)[..], &["--start-index", "3"]].concat()).ok();
    // The rest comes behind what is there, and there is no room to put all in order.
    std::fs::create_dir(&blocked).expect("a folder");
    let run = ggro(&arguments(&input, &link));
    assert_eq!(run.code, Some(2), "{}", run.err);
    let part = "link.jsonl: all rows are there, and only their order is missing; the same command puts them in order";
    assert!(run.err.contains(part), "{}", run.err);
    assert_eq!(rows(&real).len(), 6);
    // Nothing else is left to do, so this is a note.
    let run = ggro(&arguments(&input, &link)).ok();
    assert!(
        run.err.contains(&format!("note: {}", folder.path().display())) && run.err.contains("order"),
        "{}",
        run.err
    );
    std::fs::remove_dir(&blocked).expect("removed");
    ggro(&arguments(&input, &real)).ok();
    assert!(link.is_symlink() && !real.is_symlink());
    let indices: Vec<_> = rows(&link).iter().map(|row| row["index"].as_u64()).collect();
    assert_eq!(indices, (0..6).map(Some).collect::<Vec<_>>());
    let names: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(!names.iter().any(|name| name == "link.jsonl.config.json") && at("disk/real.jsonl.config.json").exists());
}

#[test]
fn an_interrupted_run_says_that_it_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (prompts(folder.path(), 60), folder.path().join("out.jsonl"));
    let args = ["run", "--input", utf8(&input), "--output", utf8(&output), "--max-concurrency", "1"];
    let child = command().args(args).stderr(Stdio::piped()).spawn().expect("the binary runs");
    while std::fs::metadata(&output).map_or(0, |file| file.len()) == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let ended = child.wait_with_output().expect("an end");
    let said = String::from_utf8(ended.stderr).expect("UTF-8");
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("out.jsonl, and the same command goes on from there"), "{said}");
    let there = std::fs::read_to_string(&output).expect("rows").matches('\n').count();
    assert!((1..60).contains(&there), "{there}");
}

#[test]
fn multiple_choice_is_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("arc.jsonl"), folder.path().join("out.jsonl"));
    let row = json!({"id": "q", "question": "What is hot?", "answerKey": "A",
                     "choices": {"text": ["fire", "ice"], "label": ["A", "B"]}});
    std::fs::write(&input, format!("{row}\n")).expect("written");
    let run = ggro(&[&arguments(&input, &output)[..], &["--task", "arc-challenge"]].concat()).ok();
    assert!(run.err.contains("of 1 right"), "{}", run.err);
    let row = &rows(&output)[0];
    assert_eq!((row["answer"].as_str(), row["correct"].is_boolean()), (Some("A"), true), "{row}");
}

#[test]
fn tasks_are_asked_as_the_official_code_asks_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, rows: &[Value]| {
        let path = folder.path().join(name);
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("written");
        path
    };
    let config = |output: &Path| -> Value {
        let text = std::fs::read(output.with_added_extension("config.json")).expect("a configuration");
        serde_json::from_slice(&text).expect("JSON")
    };
    let dialogue = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: Tell me a story\n\nAssistant:";
    let input = file("hh.jsonl", &[json!({ "prompt": dialogue })]);
    let output = folder.path().join("hh.out.jsonl");
    ggro(&[&arguments(&input, &output)[..], &["--task", "hh-rlhf"]].concat()).ok();
    let row = &rows(&output)[0];
    let full = row["full_text"].as_str().expect("text");
    assert!(!full.contains("Human:") && full.contains("Hello!") && row["prompt"] == "Tell me a story", "{full}");
    assert!(row["round_trip_stable"].is_boolean(), "{row}");
    assert_eq!(config(&output)["prompt_layout"], "official");

    // Categories in turn, and a beginning for every answer; both can be said otherwise.
    let harmful = |text: &str, category: &str| json!({"content": text, "category": category});
    let input = file("hex.jsonl", &[harmful("one", "a"), harmful("two", "a"), harmful("three", "b")]);
    let output = folder.path().join("hex.out.jsonl");
    ggro(&[&arguments(&input, &output)[..], &["--task", "hex-phi"]].concat()).ok();
    let all = rows(&output);
    assert_eq!(
        all.iter().map(|row| row["prompt"].as_str()).collect::<Vec<_>>(),
        [Some("one"), Some("three"), Some("two")]
    );
    let begun = config(&output)["prefill_attack"].as_str().expect("a beginning").to_string();
    assert!(all.iter().all(|row| row["response"].as_str().is_some_and(|text| text.starts_with(&begun))), "{begun}");

    let label = |text: &str, label: &str| json!({"prompt": text, "label": label});
    let input =
        file("xs.jsonl", &[label("kill a process", "safe"), label("harm", "unsafe"), label("shoot a film", "safe")]);
    let output = folder.path().join("xs.out.jsonl");
    ggro(&[&arguments(&input, &output)[..], &["--task", "xstest", "--num-prompts", "all"]].concat()).ok();
    assert_eq!(
        rows(&output).iter().map(|row| row["prompt"].as_str()).collect::<Vec<_>>(),
        [Some("kill a process"), Some("shoot a film")]
    );

    // As some editors save text.
    let marked = folder.path().join("marked.jsonl");
    std::fs::write(&marked, "\u{feff}\"first\"\n\"second\"\n").expect("written");
    let output = folder.path().join("marked.out.jsonl");
    ggro(&arguments(&marked, &output)).ok();
    assert_eq!(rows(&output)[0]["prompt"], "first");
    std::fs::write(&marked, [0xff, 0xfe, b'"', 0, b'a', 0, b'"', 0]).expect("written");
    let run = ggro(&arguments(&marked, &output));
    assert!(run.code == Some(2) && run.err.contains("marked.jsonl: expected UTF-8 text, found UTF-16"), "{}", run.err);

    // Wording of a user's own.
    let words = folder.path().join("words.toml");
    std::fs::write(&words, "\u{feff}task = \"arc-challenge\"\nname = \"mine\"\nprompt = \"{question} {options} {Go}\"\noption = \"{letter}={text}\"\npattern = '(.)'\n").expect("written");
    let arc = json!({"question": "Hot?", "answerKey": "1", "choices": {"text": ["fire", "ice"], "label": ["1", "2"]}});
    let (input, output) = (file("arc.jsonl", &[arc]), folder.path().join("arc.out.jsonl"));
    ggro(&[&arguments(&input, &output)[..], &["--task-file", utf8(&words)]].concat()).ok();
    let row = &rows(&output)[0];
    assert_eq!((row["prompt"].as_str(), row["correct"].as_bool()), (Some("Hot? A=fire\nB=ice {Go}"), Some(false)));
    assert_eq!(
        row["prediction"].as_str().map(str::to_lowercase),
        row["response"].as_str().map(|text| text[..1].to_lowercase())
    );
    let report = ggro(&["report", utf8(&output)]).ok().out;
    assert!(report.contains("wording") && report.contains("mine") && report.contains("round-trip stable"), "{report}");

    for (text, expected) in [
        ("task = \"gsm8k\"", "`task`: expected one of hex-phi"),
        ("tusk = 1", "unknown field `tusk`"),
        ("task = \"mmlu-pro\"\nprompt = \"{question}\"", "expected a wording with {options}"),
    ] {
        std::fs::write(&words, text).expect("written");
        let run = ggro(&[&arguments(&input, &output)[..], &["--task-file", utf8(&words)]].concat());
        assert!(run.code == Some(2) && run.err.contains("words.toml") && run.err.contains(expected), "{}", run.err);
    }
}

/// Killed without warning, fifty times in all, at moments of no meaning, with four answers in flight.
#[test]
fn a_killed_run_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = prompts(folder.path(), 24);
    let whole = folder.path().join("whole.jsonl");
    let concurrency = ["--max-concurrency", "4"];
    ggro(&[&arguments(&input, &whole)[..], &concurrency].concat()).ok();
    let expected = timeless(&whole);
    let (mut kills, mut random, mut attempt) = (0, XorShift::new(1), 0);
    while kills < 50 {
        attempt += 1;
        let output = folder.path().join(format!("killed{attempt}.jsonl"));
        let args = [&arguments(&input, &output)[..], &concurrency].concat();
        let mut before = 0;
        loop {
            let mut child = command().args(&args).stderr(Stdio::null()).spawn().expect("the binary runs");
            std::thread::sleep(Duration::from_millis(20 + random.next_u64() % 230));
            let ended = child.try_wait().expect("a child").is_some();
            // SIGKILL: nothing can be done about it.
            let _ = child.kill();
            let status = child.wait().expect("a child");
            if ended || status.success() {
                break;
            }
            kills += 1;
            // Whole rows stay; of the last one there may be a half, which the next run cuts off.
            let text = std::fs::read_to_string(&output).unwrap_or_default();
            let there = text.matches('\n').count();
            assert!(there >= before, "{there} rows after {before}");
            before = there;
            assert!(text.lines().take(there).all(|line| serde_json::from_str::<Value>(line).is_ok()));
        }
        let last = finish(command().args(&args));
        assert_eq!(last.code, Some(0), "{}", last.err);
        assert_eq!(timeless(&output), expected);
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with("rows.part")), "{left:?}");
    }
    println!("{kills} kills in {attempt} runs");
}

#[test]
fn a_retokenized_answer_is_what_the_text_has_behind_the_prompt() {
    let folder = tempfile::tempdir().expect("a folder");
    let answered = |prompt: &str, more: &[&str]| {
        let (input, output) = (folder.path().join("in.jsonl"), folder.path().join(format!("{}.jsonl", prompt.len())));
        std::fs::write(&input, format!("{}\n", json!(prompt))).expect("written");
        let flags = ["run", "--retokenize", "--prompt-layout", "official"];
        ggro(&[&flags[..], &["--input", utf8(&input), "--output", utf8(&output)], more].concat()).ok();
        rows(&output).remove(0)
    };
    // The blank that the prompt ends with and the first word are one token of the text.
    let begun = "Once upon a time, there was a little girl named Lily. She loved to play ";
    let short = ["--max-new-tokens", "10", "--num-refinement-steps", "2"];
    let row = answered("Hi", &[&short[..], &["--prefill-attack", begun]].concat());
    let (full, response) = (row["full_text"].as_str().expect("text"), row["response"].as_str().expect("text"));
    assert!(response.starts_with(begun) && full.contains(response), "{row}");
    assert!(full.trim_end_matches("<|eot_id|>").ends_with(response), "{row}");

    // A clean-up of spaces makes the prompt shorter than all the ids before were.
    for kind in ["policy", "reward"] {
        let (from, to) = (Path::new("assets/demo").join(kind), folder.path().join(kind));
        std::fs::create_dir(&to).expect("a folder");
        for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
            if let Ok(content) = std::fs::read(from.join(name)) {
                std::fs::write(to.join(name), content).expect("written");
            }
        }
        let mut config = super::read_json(&from.join("tokenizer_config.json"));
        config["clean_up_tokenization_spaces"] = json!(kind == "reward");
        std::fs::write(to.join("tokenizer_config.json"), config.to_string()).expect("written");
    }
    let (policy, reward) = (folder.path().join("policy"), folder.path().join("reward"));
    let pair = ["--policy", utf8(&policy), "--reward", utf8(&reward)];
    let prompt = "Tell me a story , he said . 'a story !'";
    let short = ["--max-new-tokens", "24", "--num-refinement-steps", "1"];
    let row = answered(prompt, &[&short[..], &pair].concat());
    let (full, response) = (row["full_text"].as_str().expect("text"), row["response"].as_str().expect("text"));
    let (before, _) = full.split_once(" story, he said. 'a story!'").expect("a prompt that was cleaned up");
    assert!(before.ends_with("Tell me a") && full.trim_end_matches("<|eot_id|>").ends_with(response), "{row}");
    assert!(row["new_tokens"].as_u64() <= Some(25), "{row}");

    // `generate` gives the same text, on standard output too, and the trace's ids are cut where the prompt ends.
    let trace = folder.path().join("trace.json");
    let flags = ["generate", "--retokenize", "--prompt-layout", "official", "--no-baseline", prompt];
    let flags = [&flags[..], &short, &pair].concat();
    let object = ggro(&[&flags[..], &["--json", "--trace", utf8(&trace)]].concat()).ok().json();
    assert_eq!(object["text"], row["response"]);
    assert_eq!(ggro(&flags).ok().out.trim_end_matches('\n'), response.trim_end_matches('\n'));
    let trace = super::read_json(&trace);
    let ids = |name: &str| trace[name].as_array().expect("ids").clone();
    assert_eq!([ids("prompt_ids"), ids("new_ids")].concat(), ids("final_ids"));
    assert_eq!(object["prompt_tokens"], ids("prompt_ids").len());
}

/// Rows and options say on what they were made; a file that was begun elsewhere goes on if that is asked for.
#[test]
fn rows_of_other_devices_are_mixed_if_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (prompts(folder.path(), 4), folder.path().join("out.jsonl"));
    let beside = folder.path().join("out.jsonl.config.json");
    let args = arguments(&input, &output);
    ggro(&[&args[..], &["--num-prompts", "2"]].concat()).ok();
    let config = read_json(&beside);
    assert_eq!((&config["device"], &config["kernels"]), (&json!("cpu"), &Value::Null), "{config}");
    assert_eq!(config["arithmetic"], "f32 on the CPU");
    assert!(rows(&output).iter().all(|row| row["device"] == "cpu" && row.get("kernels").is_none()));
    let table = ggro(&["report", utf8(&output)]).ok().out;
    assert!(!table.contains("answers on"), "{table}");

    // As a GPU would have left it.
    let elsewhere = |config: &mut Value| {
        for (name, value) in [("device", "cuda 9.0"), ("kernels", "sm90"), ("arithmetic", "auto on CUDA")] {
            config[name] = json!(value);
        }
    };
    let mut there = config.clone();
    elsewhere(&mut there);
    std::fs::write(&beside, there.to_string()).expect("written");
    let text: String = rows(&output)
        .into_iter()
        .map(|mut row| {
            row["device"] = json!("cuda 9.0");
            row["kernels"] = json!("sm90");
            format!("{row}\n")
        })
        .collect();
    std::fs::write(&output, text).expect("written");
    let refused = ggro(&args);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    let why =
        "its rows were made on cuda 9.0 with kernels sm90, the others would be made on cpu, where answers may differ";
    assert!(refused.err.contains(why) && refused.err.contains("--mix-devices"), "{}", refused.err);
    // Other options are refused all the same.
    let seed = ggro(&[&args[..], &["--mix-devices", "--seed", "5"]].concat());
    assert!(seed.code == Some(2) && seed.err.contains("`seed` was 0, is 5"), "{}", seed.err);
    assert_eq!(read_json(&beside), there, "nothing was mixed in yet");
    ggro(&[&args[..], &["--mix-devices"]].concat()).ok();
    let mut mixed = there.clone();
    mixed["mixed_in"] = json!([{"device": "cpu", "kernels": null}]);
    assert_eq!(read_json(&beside), mixed, "the rest is what the file was begun with");
    let made_on: Vec<Value> = rows(&output).iter().map(|row| row["device"].clone()).collect();
    assert_eq!(made_on, ["cuda 9.0", "cuda 9.0", "cpu", "cpu"]);
    let html = folder.path().join("page.html");
    let table = ggro(&["report", utf8(&output), "--html", utf8(&html)]).ok().out;
    for line in ["answers on cpu                         2\n", "answers on cuda 9.0 with kernels sm90  2\n"] {
        assert!(table.contains(line), "no {line:?} in {table}");
    }
    let page = std::fs::read_to_string(&html).expect("a page");
    assert!(page.contains(r#"["answers on cpu","2"],["answers on cuda 9.0 with kernels sm90","2"]"#));
    assert!(!page.contains("mixed in"), "the page says it by those lines");
    let object = ggro(&["report", "--json", utf8(&output)]).ok().json();
    let made_on =
        json!([{"device": "cpu", "kernels": null, "rows": 2}, {"device": "cuda 9.0", "kernels": "sm90", "rows": 2}]);
    assert_eq!(object["files"][0]["made_on"], made_on);

    // Files of versions that did not say are gone on with, and reported, as they were.
    let mut old = config.clone();
    old.as_object_mut().expect("an object").retain(|name, _| !["device", "kernels"].contains(&&**name));
    std::fs::write(&beside, old.to_string()).expect("written");
    let first = rows(&output).into_iter().take(2).map(|mut row| {
        row.as_object_mut().expect("an object").retain(|name, _| !["device", "kernels"].contains(&&**name));
        format!("{row}\n")
    });
    std::fs::write(&output, first.collect::<String>()).expect("written");
    let object = ggro(&["report", "--json", utf8(&output)]).ok().json();
    assert!(object["files"][0].get("made_on").is_none(), "{object}");
    ggro(&args).ok();
    assert_eq!(rows(&output).len(), 4);
    assert_eq!(read_json(&beside), old);
}
