//! How prompts come about: templates, turns that go on, special tokens of texts, roles, and templates that are missing or fail.

use crate::{Server, story};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");

/// A copy of a golden pair's folder, whose JSON files are changed by their role and name.
fn changed(fixture: &str, change: &dyn Fn(&str, &str, &mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for role in ["policy", "reward"] {
        let to = folder.path().join(role);
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(Path::new(GOLDENS).join(fixture).join(role)).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            if !name.ends_with(".json") || name.contains("index") {
                std::fs::copy(file.path(), to.join(&name)).unwrap();
                continue;
            }
            let mut json: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
            change(role, &name, &mut json);
            std::fs::write(to.join(&name), json.to_string()).unwrap();
        }
    }
    folder
}

fn serve(folder: &Path, more: &[&str]) -> Server {
    let [policy, reward] = ["policy", "reward"].map(|role| folder.join(role).to_str().unwrap().to_string());
    Server::start(&[&["--policy", &policy, "--reward", &reward, "--served-model-name", "m"], more].concat())
}

/// The text of a prompt.
fn laid_out(server: &Server, request: &Value) -> String {
    let tokens = server.post("/tokenize", request).ok()["tokens"].clone();
    server.post("/detokenize", &json!({ "tokens": tokens })).ok()["prompt"].as_str().unwrap().to_string()
}

#[test]
fn the_last_turn_goes_on_where_it_ends() {
    for fixture in ["qwen2", "qwen3"] {
        let server = serve(&PathBuf::from(GOLDENS).join(fixture), &[]);
        for begun in
            ["Answer: ", "Answer\n", "  Answer:\n\n", "", "i", "end", "<|im_end|>", "MESSAGE_GOES_ON_HERE", "Hello"]
        {
            let messages = json!([{ "role": "user", "content": "Hello" }, { "role": "assistant", "content": begun }]);
            let text = laid_out(&server, &json!({ "messages": messages, "continue_final_message": true }));
            let expected = format!("<|im_start|>assistant\n{begun}");
            // The template of Qwen3 takes line breaks from the beginning of an answer, and writes an empty thought.
            let same =
                text.ends_with(&expected) || (fixture == "qwen3" && text.ends_with(begun.trim_start_matches('\n')));
            assert!(same && !text.contains("GOES_ON_HERE_"), "{fixture} {begun:?}: {text:?}");
        }
    }
}

/// A template that trims its messages trims the one that goes on.
#[test]
fn a_turn_goes_on_behind_a_template_that_trims() {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("t.jinja");
    std::fs::write(&template, "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}").unwrap();
    let server = Server::start(&["--chat-template", template.to_str().unwrap()]);
    let messages = json!([{ "role": "user", "content": " Hi " }, { "role": "assistant", "content": "Answer: \n" }]);
    let text = laid_out(&server, &json!({ "messages": messages, "continue_final_message": true }));
    assert_eq!(text, "[user]Hi</s>[assistant]Answer:");
    // A template that does not show the message, or not all of it, cannot go on with it.
    std::fs::write(&template, "{% for m in messages %}[{{ m.content.split('Ans')[-1] }}]{% endfor %}").unwrap();
    let server = Server::start(&["--chat-template", template.to_str().unwrap()]);
    let request = json!({ "messages": messages, "continue_final_message": true });
    server.post("/tokenize", &request).refused(400, Some("continue_final_message"));
    std::fs::write(&template, "{{ messages[0].content }}").unwrap();
    let server = Server::start(&["--chat-template", template.to_str().unwrap()]);
    let request = json!({ "messages": messages, "continue_final_message": true });
    server.post("/tokenize", &request).refused(400, Some("continue_final_message"));
}

/// The beginning of sequence, as every tokenizer of Llama 3 has it.
fn with_begin(_: &str, name: &str, json: &mut Value) {
    if name == "tokenizer.json" {
        let begin = json!({ "SpecialToken": { "id": "<|begin_of_text|>", "type_id": 0 } });
        let text = |id: &str, kind: u32| json!({ "Sequence": { "id": id, "type_id": kind } });
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [begin, text("A", 0)],
            "pair": [begin, text("A", 0), text("B", 1)],
            "special_tokens": {
                "<|begin_of_text|>": { "id": "<|begin_of_text|>", "ids": [635], "tokens": ["<|begin_of_text|>"] },
            },
        });
    }
}

const HELLO: [u32; 3] = [39, 339, 78];
const BEGUN: [u32; 4] = [635, 39, 339, 78];

#[test]
fn texts_begin_with_the_beginning_of_sequence() {
    let folder = changed("llama-gqa", &with_begin);
    let server = serve(folder.path(), &[]);
    let tokens = |request: Value| server.post("/tokenize", &request).ok()["tokens"].clone();
    assert_eq!(tokens(json!({ "prompt": "Hello" })), json!(BEGUN));
    assert_eq!(tokens(json!({ "prompt": "Hello", "add_special_tokens": true })), json!(BEGUN));
    assert_eq!(tokens(json!({ "prompt": "Hello", "add_special_tokens": false })), json!(HELLO));
    assert_eq!(tokens(json!({ "prompt": "<|begin_of_text|>Hello" })), json!(BEGUN));
    // A template writes its own, once.
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let chat = tokens(json!({ "messages": messages }));
    let count = |ids: &Value| ids.as_array().unwrap().iter().filter(|id| **id == 635).count();
    assert_eq!((count(&chat), chat[0].as_u64()), (1, Some(635)));
    assert_eq!(tokens(json!({ "messages": messages, "add_special_tokens": true })), chat);

    let complete = |prompt: Value, more: Value| {
        let mut body =
            json!({ "model": "m", "prompt": prompt, "max_tokens": 1, "return_token_ids": true, "temperature": 0 });
        crate::merge(&mut body, more);
        server.post("/v1/completions", &body).ok()["choices"][0]["prompt_token_ids"].clone()
    };
    assert_eq!(complete(json!("Hello"), json!({})), json!(BEGUN));
    assert_eq!(complete(json!("<|begin_of_text|>Hello"), json!({})), json!(BEGUN));
    assert_eq!(complete(json!("Hello"), json!({ "add_special_tokens": false })), json!(HELLO));
    assert_eq!(complete(json!(HELLO), json!({})), json!(HELLO));
    server
        .post("/v1/completions", &json!({ "model": "m", "prompt": "x", "add_special_tokens": 1 }))
        .refused(400, Some("add_special_tokens"));

    // The same reward whether the text says it or not, on every route; ids stay as they are.
    let reward = |route: &str, input: Value, special: Option<bool>| {
        let mut body = json!({ "input": input, "use_activation": false });
        if let Some(special) = special {
            body["add_special_tokens"] = json!(special);
        }
        let answer = server.post(route, &body).ok();
        let data = &answer["data"][0];
        let reward = [&data["probs"][0], &data["data"][0], &data["reward"]];
        (reward.into_iter().find_map(Value::as_f64).unwrap(), answer["usage"]["prompt_tokens"].clone())
    };
    for route in ["/classify", "/pooling", "/v1/gradients"] {
        let written = reward(route, json!(BEGUN), None);
        assert_eq!(reward(route, json!("Hello"), None), written, "{route}");
        assert_eq!(reward(route, json!(["<|begin_of_text|>Hello"]), None), written, "{route}");
        let bare = reward(route, json!(HELLO), None);
        assert_eq!(reward(route, json!("Hello"), Some(false)), bare, "{route}");
        assert!((written.0 - bare.0).abs() > 0.1, "{route}: {written:?} {bare:?}");
    }
}

#[test]
fn what_needs_a_template_is_refused_without_one() {
    let folder = changed("llama-gqa", &|role, name, json| {
        with_begin(role, name, json);
        if name == "tokenizer_config.json" {
            json.as_object_mut().unwrap().remove("chat_template");
        }
    });
    let server = serve(folder.path(), &[]);
    server.logged("the model has no chat template");
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let chat = json!({ "model": "m", "messages": messages, "max_tokens": 2 });
    for (route, body) in [
        ("/v1/chat/completions", chat.clone()),
        ("/v1/chat/completions", json!({ "model": "m:ggro", "messages": messages, "stream": true })),
        ("/tokenize", json!({ "messages": messages })),
        ("/classify", json!({ "messages": messages })),
        ("/pooling", json!({ "messages": messages })),
        ("/v1/gradients", json!({ "messages": messages })),
    ] {
        let message = server.post(route, &body).refused(400, Some("messages"));
        assert!(message.contains("has no chat template") && message.contains("--chat-template"), "{route}: {message}");
    }
    // Texts are answered, and pairs of texts are one.
    server.post("/v1/completions", &json!({ "model": "m", "prompt": "Hello", "max_tokens": 2 })).ok();
    let score = server.post("/score", &json!({ "text_1": "Hel", "text_2": "lo" })).ok();
    assert_eq!(score["usage"]["prompt_tokens"], 4);
    let bare = server.post("/score", &json!({ "text_1": "Hel", "text_2": "lo", "add_special_tokens": false })).ok();
    assert_eq!(bare["usage"]["prompt_tokens"], 3);
    drop(server);
    // A template that is brought mends it.
    let template = folder.path().join("t.jinja");
    std::fs::write(&template, "{{ bos_token }}{{ messages[0].content }}").unwrap();
    let server = serve(folder.path(), &["--chat-template", template.to_str().unwrap()]);
    server.post("/v1/chat/completions", &chat).ok();
    assert!(!server.log().contains("no chat template"));
    assert_eq!(server.post("/tokenize", &json!({ "messages": messages })).ok()["tokens"], json!(BEGUN));
}

#[test]
fn tools_choose_their_template_and_roles_are_the_templates() {
    let plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let named = json!([
        { "name": "default", "template": plain },
        { "name": "tool_use", "template": format!("{{% for t in tools %}}{{{{ t|tojson }}}}{{% endfor %}}{plain}") },
    ]);
    let folder = changed("llama-gqa", &|_, name, json| {
        if name == "tokenizer_config.json" {
            json["chat_template"] = named.clone();
        }
    });
    let server = serve(folder.path(), &[]);
    let messages = json!([{ "role": "ipython", "content": "42" }, { "role": "critic", "content": "No." }]);
    let tools = json!([{ "type": "function", "function": { "name": "rain" } }]);
    let shown = r#"{"type": "function", "function": {"name": "rain"}}[ipython]42[critic]No."#;
    assert_eq!(laid_out(&server, &json!({ "messages": messages, "tools": tools })), shown);
    let none = json!({ "messages": messages, "tools": tools, "tool_choice": "none" });
    assert_eq!(laid_out(&server, &none), "[ipython]42[critic]No.");
    assert_eq!(laid_out(&server, &json!({ "messages": messages })), "[ipython]42[critic]No.");
    for role in [json!(""), json!(null), json!(3)] {
        let body = json!({ "messages": [{ "role": role, "content": "x" }] });
        server.post("/tokenize", &body).refused(400, Some("messages[0].role"));
    }
}

#[test]
fn a_template_that_fails_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("t.jinja");
    std::fs::write(&template, "a\n{{ messages[0].content.nosuchmethod() }}").unwrap();
    let server = Server::start(&["--chat-template", template.to_str().unwrap()]);
    let message = server.chat(&story("demo", json!({}))).refused(500, Some("messages"));
    assert_eq!(message, "a file of the model cannot be used");
    server.logged("t.jinja: chat template, line 2: unknown method");
    server.logged("nosuchmethod");
}

#[test]
fn variables_and_the_day_are_set_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("t.jinja");
    std::fs::write(&template, "{{ strftime_now('%d %b %Y') }} {{ mood }} {{ messages[0].content }}").unwrap();
    let args = [
        "--chat-template",
        template.to_str().unwrap(),
        "--date",
        "2024-07-26",
        "--chat-template-kwargs",
        r#"{"mood": "good"}"#,
    ];
    let server = Server::start(&args);
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    assert_eq!(laid_out(&server, &json!({ "messages": messages })), "26 Jul 2024 good Hi");
    let own = json!({ "messages": messages, "chat_template_kwargs": { "mood": "bad" } });
    assert_eq!(laid_out(&server, &own), "26 Jul 2024 bad Hi");
}
