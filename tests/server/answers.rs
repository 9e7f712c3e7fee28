//! Greedy and sampled answers: frames, usage, ends, log-probabilities, templates.

use crate::{Server, merge, story};
use serde_json::{Value, json};

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("a text")
}

fn streamed(frames: &[Value], choice: u64) -> String {
    let of = |frame: &Value| {
        let choices = frame["choices"].as_array().unwrap().iter().filter(|one| one["index"] == choice);
        choices.filter_map(|one| one["delta"]["content"].as_str().or(one["text"].as_str())).collect::<String>()
    };
    frames.iter().map(of).collect()
}

/// Ids that a tokenizer of bytes writes parts of characters with.
fn bytes_of(server: &Server, text: &str) -> Vec<u64> {
    let ids = server.post("/tokenize", &json!({ "prompt": text })).ok()["tokens"].clone();
    serde_json::from_value(ids).unwrap()
}

#[test]
fn streamed_is_unstreamed_through_broken_and_whole_characters() {
    let server = Server::start(&[]);
    let ids: Vec<u64> = ["é", "世", "🦀", "ß"].iter().flat_map(|text| bytes_of(&server, text)).collect();
    let bias: Value = ids.iter().map(|id| (id.to_string(), json!(100))).collect::<serde_json::Map<_, _>>().into();
    let (mut whole_characters, mut broken) = (0, 0);
    for seed in 0..12 {
        let body =
            json!({ "n": 2, "temperature": 10, "seed": seed, "max_tokens": 90, "logit_bias": bias, "stop": ["ß🦀"] });
        let answer = server.chat(&story("demo", body.clone())).ok();
        let mut again = story("demo", body);
        merge(&mut again, json!({ "stream": true }));
        let frames = server.chat(&again).frames();
        for choice in 0..2 {
            let text = answer["choices"][choice]["message"]["content"].as_str().unwrap();
            assert_eq!(streamed(&frames, choice as u64), text);
            whole_characters += text.chars().filter(|c| "é世🦀ß".contains(*c)).count();
            broken += text.matches('\u{fffd}').count();
        }
        for frame in &frames {
            let piece = frame["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            // A replacement character may only stand for what never became one.
            assert!(piece.is_empty() || std::str::from_utf8(piece.as_bytes()).is_ok());
        }
    }
    assert!(whole_characters > 30 && broken > 30, "{whole_characters} {broken}");
}

#[test]
fn usage_equals_a_recount() {
    let server = Server::start(&[]);
    for (model, more) in [
        ("demo", json!({})),
        ("demo", json!({ "temperature": 1, "seed": 3, "n": 3, "max_tokens": 70 })),
        ("demo:ggro", json!({ "max_tokens": 70 })),
        ("demo:bon-3", json!({ "temperature": 1, "seed": 3 })),
        ("demo:cards", json!({ "temperature": 1, "seed": 3, "method_params": { "target_reward": 1 } })),
        ("demo:beam", json!({ "temperature": 1, "seed": 3, "max_tokens": 200, "method_params": { "chunk": 20 } })),
        ("demo", json!({ "max_tokens": 400 })),
    ] {
        let mut body = story(model, more);
        merge(&mut body, json!({ "return_token_ids": true }));
        let answer = server.chat(&body).ok();
        let choices = answer["choices"].as_array().unwrap();
        let ids: Vec<&Vec<Value>> = choices.iter().map(|choice| choice["token_ids"].as_array().unwrap()).collect();
        let usage = &answer["usage"];
        assert_eq!(usage["completion_tokens"], json!(ids.iter().map(|ids| ids.len()).sum::<usize>()));
        let prompt = server.post("/tokenize", &json!({ "messages": body["messages"] })).ok();
        assert_eq!(usage["prompt_tokens"], prompt["count"]);
        assert_eq!(choices[0]["prompt_token_ids"], prompt["tokens"]);
        let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
        assert_eq!(usage["total_tokens"], json!(total));
        for (choice, ids) in choices.iter().zip(ids) {
            // A text is its ids without the one that ended it.
            let ended = choice["finish_reason"] == "stop";
            let ids = &ids[..ids.len() - usize::from(ended)];
            let text = server.post("/detokenize", &json!({ "tokens": ids })).ok()["prompt"].clone();
            assert_eq!(text, choice["message"]["content"]);
        }
        merge(&mut body, json!({ "stream": true, "stream_options": { "include_usage": true } }));
        let frames = server.chat(&body).frames();
        let last = &frames[frames.len() - 1]["usage"];
        assert_eq!(
            (&last["completion_tokens"], &last["prompt_tokens"]),
            (&usage["completion_tokens"], &usage["prompt_tokens"])
        );
    }
}

#[test]
fn ends_and_their_causes() {
    let server = Server::start(&[]);
    let whole = server.chat(&story("demo", json!({ "max_tokens": 400, "return_token_ids": true }))).ok();
    let (choice, text) = (&whole["choices"][0], content(&whole));
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &Value::Null));
    assert!(!text.contains("<|"));
    let ids: Vec<u64> = serde_json::from_value(choice["token_ids"].clone()).unwrap();

    // A stop id of the request's own.
    let at = ids.iter().position(|id| id != &ids[0] && id != &ids[1]).unwrap();
    let answer = server.chat(&story("demo", json!({ "stop_token_ids": [ids[at]], "return_token_ids": true }))).ok();
    assert_eq!(answer["choices"][0]["stop_reason"], json!(ids[at]));
    assert_eq!(answer["choices"][0]["token_ids"], json!(ids[..=at]));

    // A stop string, left out and left in; empty ones are none.
    let stop = &text[20..24];
    let stopped = |more: Value| {
        let mut body = story("demo", json!({ "stop": [stop, ""], "max_tokens": 100 }));
        merge(&mut body, more);
        let answer = server.chat(&body).ok();
        assert_eq!(answer["choices"][0]["stop_reason"], json!(stop));
        content(&answer).to_string()
    };
    let before = text.split(stop).next().unwrap();
    assert_eq!(stopped(json!({})), before);
    assert_eq!(stopped(json!({ "include_stop_str_in_output": true })), format!("{before}{stop}"));

    // Neither the model's own end nor anything else.
    let free = server.chat(&story("demo", json!({ "ignore_eos": true, "max_tokens": 300 }))).ok();
    assert_eq!(
        (&free["choices"][0]["finish_reason"], &free["usage"]["completion_tokens"]),
        (&json!("length"), &json!(300))
    );
    assert!(content(&free).starts_with(text) && !content(&free).contains("<|"));
    let shown = json!({ "ignore_eos": true, "max_tokens": 300, "skip_special_tokens": false });
    assert!(content(&server.chat(&story("demo", shown)).ok()).contains("<|eot_id|>"));
    let least = ids.len() + 5;
    let late = server.chat(&story("demo", json!({ "min_tokens": least, "max_tokens": 400 }))).ok();
    assert!(late["usage"]["completion_tokens"].as_u64().unwrap() > least as u64);
}

#[test]
fn echo_and_the_probabilities_of_a_prompt() {
    let server = Server::start(&[]);
    let text = "Once upon a time, there was a dog.";
    let ids = bytes_of(&server, text);
    let body = |more: Value| {
        let mut body = json!({ "model": "demo", "prompt": text, "temperature": 0, "max_tokens": 6 });
        merge(&mut body, more);
        body
    };
    let plain = server.complete(&body(json!({ "logprobs": 1 }))).ok();
    let echoed = server.complete(&body(json!({ "echo": true, "logprobs": 1 }))).ok();
    let continuation = plain["choices"][0]["text"].as_str().unwrap();
    assert_eq!(echoed["choices"][0]["text"], json!(format!("{text}{continuation}")));
    let logprobs = &echoed["choices"][0]["logprobs"];
    let numbers: Vec<Option<f64>> = serde_json::from_value(logprobs["token_logprobs"].clone()).unwrap();
    assert_eq!(numbers.len(), ids.len() + 6);
    assert!(numbers[0].is_none() && numbers[1..].iter().all(|x| x.is_some_and(|x| x <= 0.0)));
    let tokens: Vec<String> = serde_json::from_value(logprobs["tokens"].clone()).unwrap();
    // The beginning of sequence is a token of the prompt, and no part of its text.
    assert_eq!(tokens.concat(), format!("<|begin_of_text|>{text}{continuation}"));
    let offsets: Vec<usize> = serde_json::from_value(logprobs["text_offset"].clone()).unwrap();
    assert_eq!((offsets[0], offsets[3]), (0, tokens[1..3].concat().chars().count()));
    // What the model writes is as likely when it is read.
    let written: Vec<f64> = serde_json::from_value(plain["choices"][0]["logprobs"]["token_logprobs"].clone()).unwrap();
    let read = server
        .complete(&json!({ "model": "demo", "prompt": format!("{text}{continuation}"), "echo": true,
        "logprobs": 1, "max_tokens": 0 }))
        .ok();
    let again: Vec<Option<f64>> =
        serde_json::from_value(read["choices"][0]["logprobs"]["token_logprobs"].clone()).unwrap();
    if again.len() == numbers.len() {
        for (a, b) in written.iter().zip(&again[ids.len()..]) {
            assert!((a - b.unwrap()).abs() < 1e-9, "{a} {b:?}");
        }
    }
    assert_eq!(read["usage"]["completion_tokens"], json!(0));

    let mut stream = body(json!({ "echo": true, "stream": true, "n": 2 }));
    for more in [json!({}), json!({ "logprobs": 1 })] {
        merge(&mut stream, more);
        let frames = server.complete(&stream).frames();
        for choice in 0..2 {
            assert_eq!(streamed(&frames, choice), format!("{text}{continuation}"));
        }
    }
}

#[test]
fn conversations_as_clients_write_them() {
    let server = Server::start(&[]);
    let count = |messages: Value| server.post("/tokenize", &json!({ "messages": messages })).ok()["tokens"].clone();
    let plain = json!([{ "role": "system", "content": "Be kind." }, { "role": "user", "content": "Hello" }]);
    let parts = json!([
        { "role": "developer", "content": [{ "type": "text", "text": "Be kind." }] },
        { "role": "user", "content": [{ "type": "text", "text": "Hello" }], "name": null },
    ]);
    assert_eq!(count(plain), count(parts));
    let refused = |message: Value, param: &str| {
        server.chat(&json!({ "model": "demo", "messages": [message] })).refused(400, Some(param))
    };
    refused(json!({ "role": "", "content": "x" }), "messages[0].role");
    refused(json!({ "content": "x" }), "messages[0].role");
    refused(json!({ "role": "user" }), "messages[0].content");
    refused(json!({ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }), "messages[0].content[0]");
    refused(json!("hello"), "messages[0]");

    // The beginning of an answer is continued, and is no part of what comes back.
    let begun = json!([{ "role": "user", "content": "Tell me a story about a box." },
        { "role": "assistant", "content": "Once upon a time, there was a box" }]);
    let answer = server
        .chat(&json!({ "model": "demo", "messages": begun, "continue_final_message": true,
        "temperature": 0, "max_tokens": 20 }))
        .ok();
    assert!(!content(&answer).starts_with("Once"), "{}", content(&answer));
    let guided = server
        .chat(&json!({ "model": "demo:ggro", "messages": begun, "continue_final_message": true,
        "max_tokens": 20 }))
        .ok();
    assert!(!content(&guided).starts_with("Once"));
    let both =
        json!({ "model": "demo", "messages": begun, "continue_final_message": true, "add_generation_prompt": true });
    server.chat(&both).refused(400, Some("continue_final_message"));
    let user =
        json!({ "model": "demo", "messages": [{ "role": "user", "content": "x" }], "continue_final_message": true });
    server.chat(&user).refused(400, Some("continue_final_message"));

    // What answers cannot be held to is refused rather than forgotten.
    for (field, value) in [
        ("response_format", json!({ "type": "json_object" })),
        ("tool_choice", json!("required")),
        ("chat_template", json!("{{ 1 }}")),
        ("guided_json", json!({})),
    ] {
        let mut body = story("demo", json!({}));
        body[field] = value;
        server.chat(&body).refused(400, Some(field));
    }
    server.chat(&story("demo", json!({ "response_format": { "type": "text" }, "tool_choice": "auto" }))).ok();
}

#[test]
fn unknown_fields_are_reported_once() {
    let server = Server::start(&["--log-format", "json"]);
    for _ in 0..3 {
        server.chat(&story("demo", json!({ "frobnicate": 2, "user": "me", "max_tokens": 2 }))).ok();
    }
    server.logged("frobnicate");
    let log = server.log();
    assert_eq!(log.matches("frobnicate").count(), 1);
    assert!(!log.contains("\"field\":\"user\"") && !log.contains("story about"), "{log}");
}
