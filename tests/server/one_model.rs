//! A server with a policy alone, and one with a reward model alone: each answers as beside the other model, and refuses what
//! the other would be needed for.

use crate::{Answer, Server, story};
use serde_json::{Value, json};
use std::path::Path;

const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/policy");
const REWARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/reward");

const NO_POLICY: &str = "this server has no language model";
const NO_REWARD: &str = "this server has no reward model";

/// Checks an error's status, field, code, type and message.
#[track_caller]
fn refused(answer: &Answer, status: u16, param: Option<&str>, code: &str, message: &str) {
    assert_eq!(answer.refused(status, param), message);
    let kind = if status == 404 { "not_found_error" } else { "invalid_request_error" };
    let error = &answer.json()["error"];
    assert_eq!((&error["code"], &error["type"]), (&json!(code), &json!(kind)));
}

/// The fields of an answer that do not depend on when it was made.
#[track_caller]
fn content(answer: &Answer) -> Value {
    let mut body = answer.ok();
    for name in ["id", "created", "model"] {
        body.as_object_mut().expect("an object").remove(name);
    }
    body
}

/// Names of `/v1/models`, each of which is found by itself too.
fn listed(server: &Server) -> Vec<(String, Value)> {
    let list = server.get("/v1/models").ok();
    let models = list["data"].as_array().expect("a list");
    let entry = |model: &Value| {
        let name = model["id"].as_str().expect("a name").to_string();
        assert_eq!(&server.get(&format!("/v1/models/{name}")).ok(), model);
        (name, model["reward_model"].clone())
    };
    models.iter().map(entry).collect()
}

/// The metrics in which a model is named, and whether no label is empty.
fn metrics_of(server: &Server, name: &str, role: &str, other: &str) {
    let text = server.get("/metrics").body;
    assert!(!text.contains("=\"\""), "{text}");
    for (prefix, labels) in [("ggro_", format!(",model=\"{role}\"")), ("vllm:", String::new())] {
        let line = format!("{prefix}kv_cache_usage_perc{{model_name=\"{name}\"{labels}}} 0");
        assert!(text.contains(&line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains(&format!("model=\"{other}\"")), "{text}");
}

#[test]
fn a_policy_answers_without_a_reward_model() {
    let both = Server::start(&[]);
    let server = Server::start(&["--policy", POLICY, "--served-model-name", "demo", "--metrics-compat", "vllm"]);
    server.logged("note: there is no reward model: ");
    server.logged("\"missing\":\"reward model\"");

    let sampled = json!({ "temperature": 0.8, "seed": 7, "n": 3, "logprobs": true, "top_logprobs": 4 });
    let streamed = json!({ "stream": true, "stream_options": { "include_usage": true } });
    for body in [story("demo", json!({})), story("demo", sampled)] {
        assert_eq!(content(&server.chat(&body)), content(&both.chat(&body)));
    }
    assert!(server.chat(&story("demo", streamed)).frames().len() > 3);
    let ranked = json!({ "prompt": "Once upon a time", "echo": true, "logprobs": 2, "max_tokens": 0 });
    assert_eq!(content(&server.complete(&ranked)), content(&both.complete(&ranked)));
    let text = json!({ "prompt": "Once upon a time", "temperature": 0, "model": "demo" });
    assert_eq!(server.post("/tokenize", &text).ok(), both.post("/tokenize", &text).ok());
    assert_eq!(content(&server.complete(&text)), content(&both.complete(&text)));
    let ids = json!({ "tokens": [300, 301] });
    assert_eq!(server.post("/detokenize", &ids).ok(), both.post("/detokenize", &ids).ok());

    assert_eq!(listed(&server), [("demo".to_string(), Value::Null)]);
    assert_eq!((server.get("/health").status, server.get("/version").status), (200, 200));
    assert!(server.metric("generation_tokens_total") > 40.0);
    metrics_of(&server, "demo", "policy", "reward");
}

#[test]
fn a_policy_refuses_what_needs_a_reward_model() {
    let server = Server::start(&["--policy", POLICY, "--served-reward-name", "judge"]);
    server.logged("note: --served-reward-name names nothing: there is no reward model");
    for name in
        ["policy:ggro", "policy:ggro-safety", "policy:ggro-reasoning", "policy:bon-8", "policy:bon-1", "policy:args"]
    {
        let message = format!("the model {name:?} does not exist: {NO_REWARD}");
        let of_name = |answer: &Answer| refused(answer, 404, Some("model"), "model_not_found", &message);
        of_name(&server.chat(&story(name, json!({}))));
        of_name(&server.complete(&json!({ "model": name, "prompt": "Once" })));
        of_name(&server.post("/tokenize", &json!({ "model": name, "prompt": "Once" })));
        of_name(&server.get(&format!("/v1/models/{name}")));
    }
    for name in ["policy:mood", "policy2", "demo", "judge"] {
        let message = format!("the model {name:?} does not exist; GET /v1/models lists what there is");
        refused(&server.chat(&story(name, json!({}))), 404, Some("model"), "model_not_found", &message);
    }
    for (field, value) in [("ggro", json!({})), ("vllm_xargs", json!({ "ggro_trace": true }))] {
        let message = format!("`{field}` cannot be honoured: {NO_REWARD}");
        let answer = server.chat(&story("policy", json!({ field: value })));
        refused(&answer, 400, Some(field), "missing_model", &message);
        let answer = server.complete(&json!({ "prompt": "Once", field: value }));
        refused(&answer, 400, Some(field), "missing_model", &message);
    }
    let best = server.complete(&json!({ "prompt": "Once", "best_of": 4 })).refused(400, Some("best_of"));
    assert_eq!(best, "`best_of` must equal `n`: there is no reward model that chooses");
    for path in ["/classify", "/pooling", "/score", "/v1/score", "/v1/gradients"] {
        for body in [json!({ "input": "Once", "text_1": "a", "text_2": "b" }), json!({}), json!({ "model": "judge" })] {
            refused(&server.post(path, &body), 400, None, "missing_model", NO_REWARD);
        }
    }
    // A request's other fields are ignored as ever, and the server goes on.
    server.chat(&story("policy", json!({ "vllm_xargs": { "other": 7 } }))).ok();
}

#[test]
fn a_reward_model_scores_without_a_policy() {
    let both = Server::start(&["--served-reward-name", "reward"]);
    let server = Server::start(&["--reward", REWARD, "--metrics-compat", "vllm"]);
    server.logged("note: there is no policy: ");
    server.logged("\"missing\":\"policy\"");

    let messages = json!([{ "role": "user", "content": "Hello" }, { "role": "assistant", "content": "Hi there." }]);
    let text = "Once upon a time, there was a happy dog.";
    for (path, body) in [
        ("/classify", json!({ "input": [text, "Bad."], "model": "reward" })),
        ("/classify", json!({ "messages": messages, "use_activation": false })),
        ("/pooling", json!({ "input": text, "task": "token_classify" })),
        ("/score", json!({ "text_1": "Hello", "text_2": [text, "Bad."] })),
        ("/v1/score", json!({ "queries": "Hello", "documents": text, "use_activation": false })),
        ("/v1/gradients", json!({ "input": text, "start": 3, "encoding_format": "base64" })),
        ("/v1/gradients", json!({ "input": text, "candidates": [{ "position": 5, "token_ids": [10, 20] }] })),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.ok()["model"], "reward");
        assert_eq!(content(&answer), content(&both.post(path, &body)), "{path} {body}");
    }
    for (path, body) in [
        ("/tokenize", json!({ "prompt": text })),
        ("/tokenize", json!({ "messages": messages })),
        ("/detokenize", json!({ "tokens": [300, 301] })),
    ] {
        assert_eq!(server.post(path, &body).ok(), both.post(path, &body).ok(), "{path} {body}");
    }
    server.post("/tokenize", &json!({ "prompt": text, "model": "reward" })).ok();
    server.post("/detokenize", &json!({ "tokens": [99_999] })).refused(400, Some("tokens"));

    assert_eq!(listed(&server), [("reward".to_string(), json!("reward"))]);
    assert_eq!((server.get("/health").status, server.get("/version").status), (200, 200));
    metrics_of(&server, "reward", "reward", "policy");
}

#[test]
fn a_reward_model_refuses_what_needs_a_policy() {
    let server = Server::start(&["--reward", REWARD, "--served-model-name", "writer", "--served-reward-name", "judge"]);
    server.logged("note: --served-model-name names nothing: there is no policy");
    for name in ["judge", "writer", "judge:ggro", "demo"] {
        for body in [story(name, json!({})), story(name, json!({ "stream": true })), json!({ "model": name })] {
            refused(&server.chat(&body), 400, None, "missing_model", NO_POLICY);
        }
        let body = json!({ "model": name, "prompt": "Once", "ggro": {} });
        refused(&server.complete(&body), 400, None, "missing_model", NO_POLICY);
    }
    for name in ["writer", "judge:ggro", "judge:bon-8", "demo"] {
        let message = format!("the model {name:?} does not exist; GET /v1/models lists what there is");
        let of_name = |answer: &Answer| refused(answer, 404, Some("model"), "model_not_found", &message);
        of_name(&server.post("/classify", &json!({ "model": name, "input": "Once" })));
        of_name(&server.post("/detokenize", &json!({ "model": name, "tokens": [1] })));
        of_name(&server.get(&format!("/v1/models/{name}")));
    }
    assert_eq!(listed(&server), [("judge".to_string(), json!("judge"))]);
}

#[test]
fn conversations_have_the_layout_of_the_only_model() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(Path::new(REWARD)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let settings = folder.path().join("tokenizer_config.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    changed["chat_template"] = json!("{% for message in messages %}{{ message.content }} {% endfor %}");
    std::fs::write(&settings, changed.to_string()).unwrap();
    let server = Server::start(&["--reward", folder.path().to_str().unwrap()]);
    let score = server.post("/score", &json!({ "text_1": "Hello", "text_2": "Bad." })).ok();
    // The template writes no beginning of sequence.
    let written = json!({ "input": "Hello Bad. ", "add_special_tokens": false });
    let laid_out = server.post("/classify", &written).ok();
    assert_eq!(score["data"][0]["score"], laid_out["data"][0]["probs"][0]);
    assert_eq!(score["usage"], laid_out["usage"]);
}
