//! How prompts come about: templates that are missing, brought or set up, and the day that they write.

use super::{ggro, read_json, utf8};
use ggro_testkit::fixtures::goldens;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A folder with a template that shows the day, a variable and the conversation, and two prompts.
fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("own.jinja");
    let text =
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {{ mood }} {% for m in messages %}{{ m.content }} {% endfor %}";
    std::fs::write(&template, text).expect("written");
    let input = folder.path().join("prompts.jsonl");
    std::fs::write(&input, "\"One.\"\n\"Two.\"\n").expect("written");
    (folder, template, input)
}

fn texts(output: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(output).expect("rows");
    let row =
        |line: &str| serde_json::from_str::<Value>(line).expect("a row")["full_text"].as_str().map(str::to_string);
    text.lines().map(|line| row(line).expect("a text")).collect()
}

#[test]
fn the_day_of_a_run_is_that_of_its_first_prompt() {
    let (folder, template, input) = folder();
    let output = folder.path().join("out.jsonl");
    let base =
        ["run", "--input", utf8(&input), "--output", utf8(&output), "--max-new-tokens", "2", "--method", "greedy"];
    let base = [&base[..], &["--chat-template", utf8(&template)]].concat();
    let one = [&base[..], &["--num-prompts", "1"]].concat();
    ggro(&[&one[..], &["--date", "2024-07-26"]].concat()).ok();
    let config = read_json(&output.with_added_extension("config.json"));
    assert_eq!(config["date"], "2024-07-26");
    assert_eq!(config["chat_template"], std::fs::read_to_string(&template).expect("text"));
    assert!(config.get("chat_template_kwargs").is_none());
    // What goes on later goes on with that day, unless another one is asked for.
    let other = ggro(&[&base[..], &["--date", "2024-07-27"]].concat());
    assert_eq!(other.code, Some(2));
    assert!(other.err.contains("`date` was \"2024-07-26\", is \"2024-07-27\""), "{}", other.err);
    ggro(&base).ok();
    for text in texts(&output) {
        assert!(text.starts_with("<|begin_of_text|>26 Jul 2024  "), "{text}");
    }
    // Another template, or other variables, are another run.
    let variables = ggro(&[&base[..], &["--chat-template-kwargs", r#"{"mood": "good"}"#]].concat());
    assert!(
        variables.code == Some(2) && variables.err.contains("`chat_template_kwargs` was nothing"),
        "{}",
        variables.err
    );
    std::fs::write(&template, "{{ messages[0].content }}").expect("written");
    let changed = ggro(&base);
    assert!(changed.code == Some(2) && changed.err.contains("`chat_template` was"), "{}", changed.err);
}

#[test]
fn files_of_before_have_no_day_and_go_on() {
    let (folder, _, input) = folder();
    let output = folder.path().join("out.jsonl");
    let base =
        ["run", "--input", utf8(&input), "--output", utf8(&output), "--max-new-tokens", "2", "--method", "greedy"];
    ggro(&[&base[..], &["--num-prompts", "1"]].concat()).ok();
    let beside = output.with_added_extension("config.json");
    let mut config = read_json(&beside);
    let today = config.as_object_mut().expect("an object").shift_remove("date").expect("a date");
    assert_eq!(today.as_str().map(str::len), Some(10));
    assert!(config.get("chat_template").is_none() && config.get("chat_template_kwargs").is_none());
    std::fs::write(&beside, config.to_string()).expect("written");
    ggro(&base).ok();
    assert_eq!(texts(&output).len(), 2);
    assert!(read_json(&beside).get("date").is_none());
}

#[test]
fn a_missing_template_is_noted_and_one_that_is_brought_is_used() {
    let (folder, template, input) = folder();
    let model = |role: &str| {
        let to = folder.path().join(role);
        std::fs::create_dir(&to).expect("a folder");
        for file in std::fs::read_dir(goldens().join("llama-gqa").join(role)).expect("files") {
            let file = file.expect("a file");
            std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
        }
        let path = to.join("tokenizer_config.json");
        let mut config = read_json(&path);
        config.as_object_mut().expect("an object").remove("chat_template");
        std::fs::write(&path, config.to_string()).expect("written");
        let path = to.join("tokenizer.json");
        let mut tokenizer = read_json(&path);
        let begin = json!({ "SpecialToken": { "id": "<|begin_of_text|>", "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text],
            "special_tokens": { "<|begin_of_text|>": { "id": "<|begin_of_text|>", "ids": [635], "tokens": ["<|begin_of_text|>"] } },
        });
        std::fs::write(&path, tokenizer.to_string()).expect("written");
        to
    };
    let (policy, reward) = (model("policy"), model("reward"));
    let models = ["--policy", utf8(&policy), "--reward", utf8(&reward)];
    let generate = |more: &[&str]| {
        ggro(&[&["generate", "Hello", "--max-new-tokens", "2", "--json", "--no-baseline"], &models[..], more].concat())
    };
    let note = "note: the model has no chat template";
    let bare = generate(&[]).ok();
    assert!(bare.err.contains(note) && bare.err.contains("--chat-template FILE"), "{}", bare.err);
    let ids = bare.json()["final_ids"].clone();
    assert_eq!(ids.as_array().expect("ids")[..4], [635, 39, 339, 78].map(Value::from));
    let output = folder.path().join("out.jsonl");
    let run =
        [&["run", "--input", utf8(&input), "--output", utf8(&output), "--max-new-tokens", "2"], &models[..]].concat();
    assert!(ggro(&run).ok().err.contains(note));
    assert!(texts(&output)[0].starts_with("<|begin_of_text|>One."), "{:?}", texts(&output));

    // Texts to be scored get it too, and no second one.
    let tokens = |text: &str| ggro(&["score", text, "--json", "--reward", utf8(&reward)]).ok().json()["tokens"].clone();
    assert_eq!((tokens("Hello"), tokens("<|begin_of_text|>Hello")), (json!(4), json!(4)));

    let set_up =
        ["--chat-template", utf8(&template), "--date", "2024-07-26", "--chat-template-kwargs", r#"{"mood": "good"}"#];
    let brought = generate(&set_up).ok();
    assert!(!brought.err.contains(note), "{}", brought.err);
    let scored = |messages: &str, more: &[&str]| {
        let input = folder.path().join("texts.jsonl");
        std::fs::write(&input, messages).expect("written");
        ggro(&[&["score", "--json", "--reward", utf8(&reward), "--input", utf8(&input)], more].concat())
    };
    let messages = json!([{ "role": "user", "content": "Hello" }]).to_string();
    let none = scored(&messages, &[]);
    assert!(none.code == Some(2) && none.err.contains("--chat-template FILE"), "{}", none.err);
    let laid_out = scored(&messages, &set_up).ok().json();
    let written = scored(&json!("<|begin_of_text|>26 Jul 2024 good Hello ").to_string(), &[]).ok().json();
    assert_eq!((&laid_out["reward"], &laid_out["tokens"]), (&written["reward"], &written["tokens"]));

    for (flag, value, part) in [
        ("--chat-template-kwargs", r#"{"messages": 1}"#, "is not a variable"),
        ("--chat-template-kwargs", r#"{"deep": {}}"#, "deep must be a text"),
        ("--chat-template-kwargs", "[1]", "expected a JSON object"),
        ("--chat-template-kwargs", r#"{"mood": 1}"#, "no chat template"),
        ("--chat-template", "/nonexistent/x.jinja", "/nonexistent/x.jinja"),
        ("--date", "26.07.2024", "expected a day such as 2026-11-29"),
    ] {
        let wrong = generate(&[flag, value]);
        assert!(wrong.code == Some(2) && wrong.err.contains(part), "{flag} {value}: {}", wrong.err);
    }
}
