//! Answers by the methods that GGRO is compared with: names, parameters, streams, counters.

use crate::{Server, merge, story};
use serde_json::{Value, json};
use std::process::Command;

/// Every method, with parameters that keep it short.
fn methods() -> Vec<(&'static str, Value)> {
    vec![
        ("rejection-sampling", json!({ "target_reward": 3, "max_tries": 4 })),
        ("cards", json!({ "target_reward": 2, "max_segment": 6, "max_rejections": 3 })),
        ("speculative-rejection", json!({ "n": 4, "alpha": 0.5 })),
        ("args", json!({ "k": 3, "weight": 0.5 })),
        ("blockwise", json!({ "k": 3, "block": 8 })),
        ("beam", json!({ "width": 2, "successors": 2, "chunk": 7 })),
        ("soft-best-of-n", json!({ "n": 4, "lambda": 0.5 })),
        ("best-of-poisson", json!({ "mu": 2 })),
    ]
}

/// What `ggro generate` answers to the same.
fn generated(method: &str, parameters: &Value) -> Value {
    let given = parameters.as_object().expect("an object").iter();
    let given = given.flat_map(|(name, value)| ["--method-param".to_string(), format!("{name}={value}")]);
    let output = Command::new(env!("CARGO_BIN_EXE_ggro"))
        .args(["generate", "Tell me a story about a box.", "--json", "--device", "cpu", "--max-new-tokens", "20"])
        .args(["--seed", "3", "--method", method])
        .args(given)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// A request whose tokens are sampled as `ggro generate` samples them.
fn sampled(method: &str, parameters: &Value, more: Value) -> Value {
    let mut body =
        story(&format!("demo:{method}"), json!({ "method_params": parameters, "max_tokens": 20, "seed": 3 }));
    merge(&mut body, json!({ "temperature": 1 }));
    merge(&mut body, more);
    body
}

#[test]
fn the_same_answers_as_on_the_command_line_and_in_streams() {
    let server = Server::start(&[]);
    for (method, parameters) in methods() {
        let expected = generated(method, &parameters);
        let answer = server.chat(&sampled(method, &parameters, json!({}))).ok();
        let (choice, ggro) = (&answer["choices"][0], &answer["ggro"]);
        assert_eq!(choice["message"]["content"], expected["text"], "{method}");
        let best = expected["best"].as_u64().unwrap() as usize;
        let chosen = &expected["completions"][best];
        assert_eq!(choice["finish_reason"], chosen["finish_reason"], "{method}");
        let rewards: Vec<&Value> =
            expected["completions"].as_array().unwrap().iter().map(|one| &one["reward"]).collect();
        assert_eq!((&ggro["reward"], &ggro["rewards"]), (&expected["reward"], &json!(rewards)), "{method}");
        assert_eq!((&ggro["best"], &ggro["search"]), (&expected["best"], &expected["search"]), "{method}");
        assert_eq!((&ggro["method"], &ggro["method"]["name"]), (&expected["method"], &json!(method)));
        assert!(ggro["search"]["proposals"].as_u64() > Some(0) && ggro["search"]["rounds"].is_u64(), "{ggro}");
        let usage = &answer["usage"];
        assert_eq!(usage["completion_tokens"], json!(chosen["ids"].as_array().unwrap().len()), "{method}");
        assert_eq!(usage["ggro"]["necessary"], expected["work"], "{method}");

        let streams = json!({ "stream": true, "stream_options": { "include_usage": true } });
        let mut frames = server.chat(&sampled(method, &parameters, streams)).frames();
        let last = frames.pop().expect("a frame of usage");
        assert_eq!(last["usage"]["completion_tokens"], usage["completion_tokens"]);
        assert_eq!(last["usage"]["ggro"]["necessary"], usage["ggro"]["necessary"]);
        let pieces: Vec<&str> =
            frames.iter().filter_map(|frame| frame["choices"][0]["delta"]["content"].as_str()).collect();
        assert!(pieces.concat() == choice["message"]["content"] && pieces.len() > 3, "{method}: {pieces:?}");
        let end = frames.last().expect("frames");
        assert_eq!((&end["ggro"], &end["choices"][0]["finish_reason"]), (ggro, &choice["finish_reason"]));
        assert!(frames[..frames.len() - 1].iter().all(|frame| frame.get("ggro").is_none()));
    }
}

#[test]
fn answers_whose_samples_are_those_of_best_of_n() {
    let server = Server::start(&[]);
    let rewards = |model: &str, parameters: Option<Value>| {
        let mut body = story(model, json!({ "temperature": 1, "seed": 11, "max_tokens": 24 }));
        if let Some(parameters) = parameters {
            body["method_params"] = parameters;
        }
        server.chat(&body).ok()["ggro"]["rewards"].clone()
    };
    let best = rewards("demo:bon-4", None);
    assert_eq!(rewards("demo:soft-best-of-n", Some(json!({ "n": 4 }))), best);
    let tries = json!({ "target_reward": 100, "max_tries": 4 });
    assert_eq!(rewards("demo-rejection-sampling", Some(tries)), best);
}

#[test]
fn ends_tokens_and_log_probabilities() {
    let server = Server::start(&[]);
    for (method, parameters) in methods() {
        let more = json!({ "logprobs": true, "top_logprobs": 2, "return_token_ids": true });
        let answer = server.chat(&sampled(method, &parameters, more)).ok();
        let choice = &answer["choices"][0];
        let (ids, tokens) = (&choice["token_ids"], choice["logprobs"]["content"].as_array().unwrap());
        assert_eq!(ids.as_array().unwrap().len(), tokens.len(), "{method}");
        for token in tokens {
            assert!(token["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0 && logprob > -9999.0), "{token}");
            assert!(token["top_logprobs"].as_array().unwrap().len() >= 2 && token["entropy"].is_f64(), "{token}");
        }
        // The same tokens without them.
        let plain = server.chat(&sampled(method, &parameters, json!({ "return_token_ids": true }))).ok();
        assert_eq!(&plain["choices"][0]["token_ids"], ids, "{method}");

        let text = choice["message"]["content"].as_str().unwrap();
        let stop = text.char_indices().nth(8).map(|(at, _)| &text[at..at + 2]).expect("a long text");
        let more = json!({ "stop": [stop] });
        let answer = server.chat(&sampled(method, &parameters, more)).ok();
        let choice = &answer["choices"][0];
        // Other texts may be better once they end there, but none goes on.
        let cut = choice["message"]["content"].as_str().unwrap();
        assert!(!cut.contains(stop), "{method}: {cut:?} has {stop:?}");
        assert!(choice["stop_reason"] == stop || choice["stop_reason"].is_null(), "{method}: {choice}");
        assert!(answer["ggro"]["reward"].is_f64(), "{answer}");
    }
}

#[test]
fn what_a_search_cannot_honour() {
    let server = Server::start(&["--max-n", "16"]);
    let refused = |model: &str, more: Value, param: &str| {
        let message = server.chat(&story(model, more.clone())).refused(400, Some(param));
        // Streams are refused with a status, too.
        let mut streams = more;
        streams["stream"] = json!(true);
        server.chat(&story(model, streams)).refused(400, Some(param));
        message
    };
    let parameters =
        |model: &str, parameters: Value| refused(model, json!({ "method_params": parameters }), "method_params");
    assert!(refused("demo:cards", json!({}), "method_params").contains("cards: target_reward must be given"));
    assert!(parameters("demo:beam", json!({ "wide": 1 })).contains("no parameter \"wide\"; the parameters of beam"));
    assert!(parameters("demo:beam", json!({ "width": "1" })).contains("width must be a whole number"));
    assert!(parameters("demo:args", json!({ "k": 0 })).contains("k must be 1 to 128, not 0"));
    assert!(
        parameters("demo:args", json!({ "k": 17 })).contains("asks args for 17 texts by `k`, and this server takes 16")
    );
    assert!(
        parameters("demo:speculative-rejection", json!({ "kv_budget": 20 })).contains("kv_budget must be at least")
    );
    assert!(parameters("demo:cards", json!([])).contains("must be an object"));
    for other in ["demo", "demo:ggro", "demo:bon-2"] {
        assert!(parameters(other, json!({ "n": 2 })).contains(&format!("has no effect on {other}")));
    }
    assert!(refused("demo:beam", json!({ "ggro": { "trace": true } }), "ggro").contains("not guided"));
    assert!(refused("demo:beam", json!({ "n": 2 }), "n").contains("must be 1"));
    refused("demo:args", json!({ "logit_bias": { "7": 3 } }), "logit_bias");
    refused("demo:args", json!({ "min_tokens": 5 }), "min_tokens");
    // Fields of sampling are no use to what does not sample; it says so.
    let args = json!({ "temperature": 0.7, "top_k": 5, "max_tokens": 4, "method_params": { "k": 2 } });
    let answer = server.chat(&story("demo:args", args)).ok();
    assert_eq!(answer["ggro"]["ignored_params"], json!(["temperature", "top_k"]));
    // What asks for more than the server takes is not listed, and can ask for less.
    let listed = server.get("/v1/models").ok();
    let listed = |name: &str| listed["data"].as_array().unwrap().iter().any(|model| model["id"] == name);
    assert!(listed("demo:blockwise") && listed("demo:speculative-rejection") && !listed("demo:cards"));
    assert!(!listed("demo:rejection-sampling"), "it has to be told what reward is to be reached");
    let cards = json!({ "max_tokens": 4, "method_params": { "target_reward": 1, "max_rejections": 15 } });
    server.chat(&story("demo:cards", cards)).ok();
    assert_eq!(server.get("/v1/models/demo:cards").ok()["parent"], "demo");
}
