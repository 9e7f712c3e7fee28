//! Rewards of given texts, and their gradients.

use crate::Server;
use ggro::files::pair::Pair;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{GradientSpan, ModelPair, RewardSpan, Role, Span};
use serde_json::{Value, json};
use std::sync::Arc;

fn reference() -> (Arc<Pair>, ModelPair) {
    let pair = Arc::new(Pair::load(&ggro::files::demo::policy(), &ggro::files::demo::reward()).unwrap());
    let reference = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    (pair, reference)
}

/// Reward, gradient from a position on, and products with candidates there.
fn gradient(backend: &mut ModelPair, ids: &[u32], slot: usize, candidates: &[u32]) -> (f32, Vec<f32>, Vec<f32>) {
    let seq = backend.create(Role::Reward).unwrap();
    let span = RewardSpan { span: Span { seq, start: 0, ids }, also_at: &[] };
    let found = backend.reward_gradient(&[GradientSpan { span, slot, candidates, rows: true }]).unwrap().remove(0);
    backend.release(seq);
    (found.score.reward, found.rows, found.dots)
}

fn numbers(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).expect("numbers")
}

#[test]
fn the_routes_of_vllm() {
    let server = Server::start(&[]);
    let (pair, mut backend) = reference();
    let text = "Once upon a time, there was a happy dog.";
    let ids = pair.tokenizer.encode_text(text).unwrap();
    let (reward, _, _) = gradient(&mut backend, &ids, 0, &[]);
    let sigmoid = 1.0 / (1.0 + (-f64::from(reward)).exp());

    let answer = server.post("/classify", &json!({ "model": "demo-reward", "input": [text, ids] })).ok();
    for index in 0..2 {
        let found = &answer["data"][index];
        assert_eq!((&found["index"], &found["num_classes"]), (&json!(index), &json!(1)));
        assert!((found["probs"][0].as_f64().unwrap() - sigmoid).abs() < 1e-9, "{found}");
    }
    assert_eq!(answer["usage"]["prompt_tokens"], json!(2 * ids.len()));
    let raw = server.post("/classify", &json!({ "input": text, "use_activation": false })).ok();
    assert_eq!(raw["data"][0]["probs"][0].as_f64().unwrap() as f32, reward);

    let pooled = server.post("/pooling", &json!({ "input": text, "use_activation": false })).ok();
    assert_eq!(numbers(&pooled["data"][0]["data"]), [reward]);
    let every = json!({ "input": text, "use_activation": false, "task": "token_classify" });
    let every = server.post("/pooling", &every).ok()["data"][0]["data"].clone();
    let every: Vec<Vec<f32>> = serde_json::from_value(every).unwrap();
    assert_eq!(every.len(), ids.len());
    for end in [1, 5, ids.len()] {
        assert_eq!(every[end - 1][0], gradient(&mut backend, &ids[..end], 0, &[]).0, "the first {end}");
    }

    let messages = json!([{ "role": "user", "content": "Hello" }, { "role": "assistant", "content": text }]);
    let of_chat = server.post("/classify", &json!({ "messages": messages, "use_activation": false })).ok();
    let score = json!({ "text_1": "Hello", "text_2": [text, "Bad."], "use_activation": false });
    let scored = server.post("/score", &score).ok();
    assert_eq!(scored["data"][0]["score"], of_chat["data"][0]["probs"][0]);
    assert_ne!(scored["data"][0]["score"], scored["data"][1]["score"]);
    let named = json!({ "queries": "Hello", "documents": text, "use_activation": false, "model": "demo" });
    assert_eq!(server.post("/v1/score", &named).ok()["data"][0]["score"], scored["data"][0]["score"]);
}

#[test]
fn gradients_are_those_of_the_backend() {
    let server = Server::start(&[]);
    let (pair, mut backend) = reference();
    let hidden = pair.reward().unwrap().config.hidden_size;
    let ids = pair.tokenizer.encode("Once upon a time, there was a happy dog.").unwrap();
    let (reward, rows, _) = gradient(&mut backend, &ids, 3, &[]);
    let answer = server.post("/v1/gradients", &json!({ "input": ids, "start": 3 })).ok();
    let found = &answer["data"][0];
    assert_eq!((found["reward"].as_f64().unwrap() as f32, &found["token_ids"]), (reward, &json!(ids)));
    let gradient_of = &found["gradient"];
    assert_eq!((&gradient_of["start"], &gradient_of["shape"]), (&json!(3), &json!([ids.len() - 3, hidden])));
    let data: Vec<Vec<f32>> = serde_json::from_value(gradient_of["data"].clone()).unwrap();
    assert_eq!(data.concat(), rows);
    let norm = rows[..hidden].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    assert!((gradient_of["norms"][0].as_f64().unwrap() - norm).abs() < 1e-9);
    assert_eq!(answer["usage"]["ggro"]["reward_backward"], json!(ids.len() - 3));

    use base64::Engine;
    let packed = server.post("/v1/gradients", &json!({ "input": ids, "start": 3, "encoding_format": "base64" })).ok();
    let bytes = packed["data"][0]["gradient"]["data"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
    let unpacked: Vec<f32> = bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(unpacked, rows);

    // First-order scores at several positions, in the order in which they were asked for.
    let candidates = json!([{ "position": 5, "token_ids": [10, 20, 30] }, { "position": 2, "token_ids": [7] }]);
    let body = json!({ "input": ids, "candidates": candidates });
    let answer = server.post("/v1/gradients", &body).ok();
    let found = &answer["data"][0];
    assert!(found["gradient"].is_null());
    assert_eq!(numbers(&found["candidates"][0]["scores"]), gradient(&mut backend, &ids, 5, &[10, 20, 30]).2);
    assert_eq!(numbers(&found["candidates"][1]["scores"]), gradient(&mut backend, &ids, 2, &[7]).2);
    let both = json!({ "input": ids, "candidates": candidates, "return_gradient": true });
    let both = server.post("/v1/gradients", &both).ok();
    assert_eq!(both["data"][0]["candidates"], found["candidates"]);
    let data: Vec<Vec<f32>> = serde_json::from_value(both["data"][0]["gradient"]["data"].clone()).unwrap();
    assert_eq!(data.concat(), gradient(&mut backend, &ids, 0, &[]).1);
}

#[test]
fn pads_at_the_end_change_nothing() {
    let server = Server::start(&[]);
    let (pair, _) = reference();
    let Some(pad) = pair.reward_pad_id() else { panic!("the demo reward model has a pad id") };
    let ids = pair.tokenizer.encode("Once upon a time.").unwrap();
    let padded: Vec<u32> = ids.iter().copied().chain([pad, pad]).collect();
    let answer = server.post("/v1/gradients", &json!({ "input": [ids, padded] })).ok();
    let (bare, padded) = (&answer["data"][0], &answer["data"][1]);
    assert_eq!(bare["reward"], padded["reward"]);
    assert_eq!(padded["pooled_at"], json!(ids.len() - 1));
    let rows: Vec<Vec<f32>> = serde_json::from_value(padded["gradient"]["data"].clone()).unwrap();
    assert_eq!(rows.len(), ids.len() + 2);
    assert_eq!(json!(rows[..ids.len()]), bare["gradient"]["data"]);
    assert!(rows[ids.len()..].iter().flatten().all(|&x| x == 0.0));
    let behind = json!({ "input": [ids.iter().copied().chain([pad]).collect::<Vec<u32>>()],
        "candidates": [{ "position": ids.len(), "token_ids": [3, 4] }] });
    assert_eq!(numbers(&server.post("/v1/gradients", &behind).ok()["data"][0]["candidates"][0]["scores"]), [0.0, 0.0]);
}

#[test]
fn texts_that_cannot_be_scored() {
    let server = Server::start(&[]);
    let refused = |path: &str, body: Value, param: Option<&str>| server.post(path, &body).refused(400, param);
    refused("/classify", json!({}), Some("input"));
    refused("/classify", json!({ "input": 7 }), Some("input"));
    refused("/classify", json!({ "input": [] }), Some("input"));
    refused("/classify", json!({ "input": "", "add_special_tokens": false }), Some("input"));
    assert!(refused("/classify", json!({ "input": [[1, 999_999]] }), Some("input")).contains("vocabulary"));
    assert!(
        refused("/classify", json!({ "input": [vec![1; 600]] }), Some("input"))
            .contains("maximum context length is 512")
    );
    assert!(refused("/classify", json!({ "input": vec!["x"; 65] }), Some("input")).contains("1 to 64"));
    refused("/pooling", json!({ "input": "x", "task": "embed" }), Some("task"));
    refused("/score", json!({ "text_1": "x" }), Some("text_2"));
    refused("/score", json!({ "text_1": ["x", "y"], "text_2": ["a", "b", "c"] }), Some("text_1"));
    refused("/v1/gradients", json!({ "input": "hello", "start": 500 }), None);
    refused(
        "/v1/gradients",
        json!({ "input": "hello", "candidates": [{ "position": -1, "token_ids": [1] }] }),
        Some("candidates"),
    );
    refused(
        "/v1/gradients",
        json!({ "input": "hello", "candidates": [{ "position": 0, "token_ids": [] }] }),
        Some("candidates"),
    );
    server.post("/classify", &json!({ "input": "x", "model": "gpt-4" })).refused(404, Some("model"));
}
