//! Log-probabilities: of parts of characters, with the chosen token, and of prompts under every name.

use crate::{Server, story};
use serde_json::{Value, json};

/// The bytes of a chat's tokens, joined.
fn joined(choice: &Value) -> Vec<u8> {
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    tokens.iter().flat_map(|token| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap()).collect()
}

#[test]
fn parts_of_characters_have_their_own_bytes() {
    let server = Server::start(&[]);
    // The two bytes of an accented e, as tokens.
    let body = story(
        "demo",
        json!({ "logit_bias": { "132": 100, "107": 100 }, "temperature": 1, "max_tokens": 6, "logprobs": true,
            "top_logprobs": 1 }),
    );
    for seed in 0..6 {
        let mut body = body.clone();
        body["seed"] = json!(seed);
        let answer = server.chat(&body).ok();
        let choice = &answer["choices"][0];
        let bytes = joined(choice);
        assert!(bytes.iter().all(|byte| [0xc3, 0xa9].contains(byte)), "{bytes:?}");
        assert_eq!(choice["message"]["content"], json!(String::from_utf8_lossy(&bytes)));
        for token in choice["logprobs"]["content"].as_array().unwrap() {
            let top = token["top_logprobs"].as_array().unwrap();
            assert!(top.iter().any(|one| one["bytes"] == token["bytes"]), "{token}");
        }
    }
}

/// Offsets point at the tokens in the text.
fn offsets_hold(choice: &Value) {
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let logprobs = &choice["logprobs"];
    let (tokens, offsets) = (logprobs["tokens"].as_array().unwrap(), logprobs["text_offset"].as_array().unwrap());
    let mut last = 0;
    for (token, offset) in tokens.iter().zip(offsets) {
        let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
        assert!(offset >= last && offset <= text.len(), "{offset} in {text:?}");
        last = offset;
        if !token.contains(char::REPLACEMENT_CHARACTER) && !token.starts_with("<|") {
            let there: String = text[offset..].iter().take(token.chars().count()).collect();
            assert_eq!(there, token, "at {offset} of {text:?}");
        }
    }
}

#[test]
fn offsets_count_characters_of_the_text() {
    let server = Server::start(&[]);
    for prompt in
        [json!("caf\u{e9} \u{1f431}\u{1f431} na\u{ef}ve"), json!("Once upon"), json!([177, 258, 243, 114, 30])]
    {
        let body = json!({ "model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0, "echo": true, "logprobs": 2 });
        let answer = server.complete(&body).ok();
        offsets_hold(&answer["choices"][0]);
    }
    // Ids that end within a character, which the answer completes: the cat is there once.
    let body = json!({ "model": "demo", "prompt": [177, 258, 243], "logit_bias": { "114": 100 }, "max_tokens": 1, "echo": true });
    assert_eq!(server.complete(&body).ok()["choices"][0]["text"], "\u{1f431}");
    let body = json!({ "model": "demo", "prompt": [177, 258, 243], "max_tokens": 0, "echo": true, "logprobs": 0 });
    assert_eq!(server.complete(&body).ok()["choices"][0]["text"], "\u{fffd}");
}

#[test]
fn the_chosen_token_is_among_the_likely_ones() {
    let server = Server::start(&[]);
    for (model, wanted) in [("demo", 0), ("demo", 1), ("demo:ggro", 1)] {
        let body = json!({ "model": model, "prompt": "Once upon a time", "max_tokens": 12, "echo": true, "logprobs": wanted,
            "temperature": 0 });
        let answer = server.complete(&body).ok();
        let logprobs = &answer["choices"][0]["logprobs"];
        let tops = logprobs["top_logprobs"].as_array().unwrap();
        assert!(tops[0].is_null());
        for (top, token) in tops.iter().zip(logprobs["tokens"].as_array().unwrap()).skip(1) {
            let top = top.as_object().unwrap();
            assert!(top.contains_key(token.as_str().unwrap()) && top.len() <= wanted + 1, "{token} {top:?}");
        }
    }
}

#[test]
fn every_name_ranks_prompts_by_the_policy() {
    let server = Server::start(&[]);
    let body = |model: &str, more: Value| {
        let mut body = json!({ "model": model, "prompt": [[1, 2, 30, 40], [1, 2, 31]], "temperature": 0, "logprobs": 1,
            "seed": 1234, "echo": true });
        crate::merge(&mut body, more);
        server.complete(&body).ok()
    };
    let plain = body("demo", json!({ "max_tokens": 0 }));
    for model in ["demo:ggro", "demo:ggro-safety", "demo:bon-2", "demo:blockwise", "demo:args"] {
        let only = body(model, json!({ "max_tokens": 0 }));
        assert_eq!(only["choices"], plain["choices"], "{model}");
        assert_eq!(only["usage"]["completion_tokens"], 0);
        // As an evaluation harness asks.
        let one = body(model, json!({ "max_tokens": 1 }));
        for (index, prompt) in [4, 3].into_iter().enumerate() {
            let (ranked, with) = (&plain["choices"][index]["logprobs"], &one["choices"][index]["logprobs"]);
            let first = |list: &Value| list.as_array().unwrap()[..prompt].to_vec();
            assert_eq!(first(&with["token_logprobs"]), first(&ranked["token_logprobs"]));
            assert_eq!(with["tokens"].as_array().unwrap().len(), prompt + 1, "{model}: {with}");
        }
        // And streamed: the prompt comes first.
        let mut stream = json!({ "model": model, "prompt": "Once upon a time", "temperature": 0, "logprobs": 1, "echo": true,
            "max_tokens": 20 });
        let whole = server.complete(&stream).ok();
        stream["stream"] = json!(true);
        let frames = server.complete(&stream).frames();
        let text: String = frames.iter().filter_map(|frame| frame["choices"][0]["text"].as_str()).collect();
        assert_eq!(json!(text), whole["choices"][0]["text"]);
        assert!(text.starts_with("Once upon a time"));
    }
}
