//! Answers by the method: what a frontend sees of segments, work and decisions.

use crate::{Server, story};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

/// What `ggro generate` answers to the same.
fn generated(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_ggro"))
        .args(["generate", "Tell me a story about a box.", "--json", "--no-baseline", "--device", "cpu"])
        .args(args)
        .output()
        .expect("the binary runs");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn the_same_answer_as_on_the_command_line() {
    let server = Server::start(&[]);
    let expected = generated(&["--max-new-tokens", "60"]);
    let answer = server.chat(&story("demo:ggro", json!({ "max_tokens": 60, "ggro": { "trace": true } }))).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], expected["text"]);
    let trace = &answer["ggro"]["trace"];
    // A complete record needs the last candidate's gradient too, so the work is more; the decisions are not.
    let float = |value: &Value| value.as_f64().map(|x| x as f32);
    assert_eq!(float(&answer["ggro"]["reward"]), float(&trace["final_reward"]));
    assert_eq!(answer["usage"]["completion_tokens"], json!(trace["new_ids"].as_array().unwrap().len()));
    assert_eq!(answer["usage"]["prompt_tokens"], json!(trace["prompt_ids"].as_array().unwrap().len()));
    assert_eq!(answer["ggro"]["segments"], json!(trace["segments"].as_array().unwrap().len()));

    let plain = server.chat(&story("demo:ggro", json!({ "max_tokens": 60 }))).ok();
    let work = &plain["usage"]["ggro"];
    for kind in ["policy_forward", "reward_forward", "reward_backward"] {
        assert_eq!(work["necessary"][kind], expected["work"][kind], "{kind}");
        assert!(work[kind].as_u64() <= work["necessary"][kind].as_u64(), "a prompt that was kept is not run again");
    }
    let candidates = |segment: &Value| segment["candidates"].as_array().unwrap().len() as u64 - 1;
    let refinements: u64 = trace["segments"].as_array().unwrap().iter().map(candidates).sum();
    assert_eq!(work["refinement_steps"].as_u64(), Some(refinements));
}

#[test]
fn segments_are_streamed_as_they_are_committed() {
    let server = Server::start(&["--keep-alive", "0.005"]);
    let body = story(
        "demo:ggro",
        json!({
            "max_tokens": 200, "stream": true, "stream_options": { "include_usage": true }, "logprobs": true,
            "ggro": { "trace": true },
        }),
    );
    let whole = server.chat(&story("demo:ggro", json!({ "max_tokens": 200 }))).ok();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let started = Instant::now();
    let (mut times, mut frames, mut comments) = (Vec::new(), Vec::new(), 0);
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        if let Some(data) = line.strip_prefix("data: ") {
            times.push(started.elapsed());
            if data != "[DONE]" {
                frames.push(serde_json::from_str::<Value>(data).expect("a frame"));
            }
        }
        comments += usize::from(line.starts_with(':'));
    }
    assert!(comments > 0, "nothing keeps a silent stream open");
    // The opening, then segments, then the end and the usage.
    let segments: Vec<&Value> = frames.iter().filter(|frame| frame["ggro"]["segment"].is_object()).collect();
    assert!(segments.len() > 3);
    let (first, last) = (times[1], times[times.len() - 1]);
    assert!(first * 2 < last, "the first segment came after {first:?}, the end after {last:?}");
    let text: String = frames.iter().filter_map(|frame| frame["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(Value::from(text), whole["choices"][0]["message"]["content"]);
    let usage = &frames[frames.len() - 1];
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"]),
        (&json!([]), &whole["usage"]["completion_tokens"])
    );
    assert!(frames[..frames.len() - 1].iter().all(|frame| frame["usage"].is_null()));
    let ids: Vec<&Value> = frames.iter().map(|frame| &frame["id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));

    // What a segment says is what the record says, and every token has its log-probability and entropy.
    let end = frames.iter().find(|frame| frame["choices"][0]["finish_reason"].is_string()).unwrap();
    let trace = &end["ggro"]["trace"];
    let mut committed = 0;
    for (frame, segment) in segments.iter().zip(trace["segments"].as_array().unwrap()) {
        let best = &segment["candidates"][segment["best"].as_u64().unwrap() as usize];
        let said = &frame["ggro"]["segment"];
        assert_eq!(said["nudge_token_id"], best["forced"]);
        assert_eq!(said["tokens"].as_u64().unwrap() as usize, best["ids"].as_array().unwrap().len());
        let tokens = frame["choices"][0]["logprobs"]["content"].as_array().unwrap();
        for (token, entropy) in tokens.iter().zip(best["entropies_exact"].as_array().unwrap()) {
            assert!(token["logprob"].as_f64().is_some_and(|logprob| (-100.0..=0.0).contains(&logprob)), "{token}");
            assert!((token["entropy"].as_f64().unwrap() - entropy.as_f64().unwrap()).abs() < 1e-6);
        }
        committed += tokens.len();
    }
    assert_eq!(json!(committed), whole["usage"]["completion_tokens"]);
}

#[test]
fn a_stop_string_ends_an_answer_of_the_method() {
    let server = Server::start(&[]);
    let whole = server.chat(&story("demo:ggro", json!({ "max_tokens": 120 }))).ok();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_string();
    let stop = &text[60..66];
    for stream in [false, true] {
        let body = story(
            "demo:ggro",
            json!({ "max_tokens": 120, "stop": [stop], "stream": stream,
            "stream_options": { "include_usage": true } }),
        );
        let answer = server.chat(&body);
        let (got, reason, cause, usage, outcome) = match stream {
            false => {
                let answer = answer.ok();
                let choice = &answer["choices"][0];
                let got = choice["message"]["content"].as_str().unwrap().to_string();
                (
                    got,
                    choice["finish_reason"].clone(),
                    choice["stop_reason"].clone(),
                    answer["usage"].clone(),
                    answer["ggro"].clone(),
                )
            }
            true => {
                let frames = answer.frames();
                let got = frames.iter().filter_map(|frame| frame["choices"][0]["delta"]["content"].as_str()).collect();
                let end = frames.iter().find(|frame| frame["choices"][0]["finish_reason"].is_string()).unwrap();
                let choice = &end["choices"][0];
                let usage = frames[frames.len() - 1]["usage"].clone();
                (got, choice["finish_reason"].clone(), choice["stop_reason"].clone(), usage, end["ggro"].clone())
            }
        };
        assert_eq!(got, text.split(stop).next().unwrap());
        assert_eq!((reason, cause), (json!("stop"), json!(stop)));
        assert!(usage["completion_tokens"].as_u64() < whole["usage"]["completion_tokens"].as_u64());
        assert!(outcome["reward"].is_number(), "{outcome}");
    }
    server.wait("nothing runs", |server| server.metric("num_requests_running") == 0.0);
}

#[test]
fn a_stop_id_of_the_request_ends_an_answer_of_the_method() {
    let server = Server::start(&[]);
    let whole = server.chat(&story("demo:ggro", json!({ "max_tokens": 120, "return_token_ids": true }))).ok();
    let ids: Vec<u64> = serde_json::from_value(whole["choices"][0]["token_ids"].clone()).unwrap();
    let (at, stop) = ids.iter().enumerate().find(|&(at, id)| at > 30 && !ids[..at].contains(id)).unwrap();
    let body = json!({ "max_tokens": 120, "return_token_ids": true, "stop_token_ids": [stop], "ggro": { "max_candidates": 1 } });
    let answer = server.chat(&story("demo:ggro", body)).ok();
    let choice = &answer["choices"][0];
    // Without nudges it is the greedy answer, which may meet it elsewhere or not at all.
    let found: Vec<u64> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
    assert!(!found.contains(stop), "{at}");
    if choice["finish_reason"] == "stop" && !choice["stop_reason"].is_null() {
        assert_eq!(choice["stop_reason"], json!(stop));
    }
    let nudged = json!({ "max_tokens": 120, "return_token_ids": true, "stop_token_ids": [stop] });
    let answer = server.chat(&story("demo:ggro", nudged)).ok();
    let choice = &answer["choices"][0];
    let found: Vec<u64> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
    assert!(!found.contains(stop));
    if answer["ggro"]["finish_reason"] == "stalled" {
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
    }
}

#[test]
fn settings_that_the_method_cannot_honour() {
    let server = Server::start(&[]);
    let refused = |more: Value, param: &str| server.chat(&story("demo:ggro", more)).refused(400, Some(param));
    assert!(refused(json!({ "n": 2 }), "n").contains("the same"));
    assert!(refused(json!({ "logit_bias": { "7": 3 } }), "logit_bias").contains("entropy"));
    assert!(refused(json!({ "ggro": { "steps": 3 } }), "ggro.steps").contains("num_refinement_steps"));
    assert!(refused(json!({ "ggro": { "signal": "mood" } }), "ggro.signal").contains("varentropy"));
    assert!(refused(json!({ "ggro": { "proposals": "some" } }), "ggro.proposals").contains("shuffled-gradient"));
    assert!(refused(json!({ "ggro": { "logprob_weight": -1 } }), "ggro.logprob_weight").contains("0 or more"));
    assert!(refused(json!({ "ggro": { "proposals": "all", "nudge_top_k": 65 } }), "ggro.nudge_top_k").contains("64"));
    assert!(refused(json!({ "n": 2, "ggro": { "proposals": "all" } }), "n").contains("the same"));
    refused(json!({ "min_tokens": 5 }), "min_tokens");
    // Greedy frontends send these with everything; they are accepted and reported.
    let answer =
        server.chat(&story("demo:ggro", json!({ "temperature": 0.7, "top_p": 0.9, "presence_penalty": 1 }))).ok();
    assert_eq!(answer["ggro"]["ignored_params"], json!(["temperature", "top_p", "presence_penalty"]));
    // Drawn nudges differ by seed, so several answers make sense.
    let sampled = json!({ "n": 2, "seed": 5, "max_tokens": 80, "ggro": { "nudge_selection": "sample", "nudge_temperature": 5.0 } });
    let answer = server.chat(&story("demo:ggro", sampled.clone())).ok();
    let texts: Vec<&Value> = answer["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert_ne!(texts[0], texts[1]);
    assert_eq!(answer["ggro"]["choices"].as_array().unwrap().len(), 2);
    let again = server.chat(&story("demo:ggro", sampled)).ok();
    assert_eq!(answer["choices"], again["choices"]);
    // So they do where a control draws, and only then; and what was asked for is recorded.
    let drawn = json!({ "n": 2, "seed": 5, "max_tokens": 80, "ggro": { "proposals": "random" } });
    let answer = server.chat(&story("demo:ggro", drawn)).ok();
    let texts: Vec<&Value> = answer["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert_ne!(texts[0], texts[1]);
    assert_eq!(answer["usage"]["ggro"]["necessary"]["reward_backward"], 0);
    let all = json!({ "proposals": "all", "logprob_weight": 0.5, "nudge_top_k": 5, "trace": true });
    let answer = server.chat(&story("demo:ggro", json!({ "max_tokens": 20, "ggro": all }))).ok();
    let options = &answer["ggro"]["trace"]["options"];
    assert_eq!((&options["proposals"], &options["logprob_weight"]), (&json!("all"), &json!(0.5)));
    // A name says the same as the setting, and neither may contradict the other.
    let named = json!({ "max_tokens": 20, "ggro": { "logprob_weight": 0.5, "nudge_top_k": 5, "trace": true } });
    let same = server.chat(&story("demo:ggro-all", named)).ok();
    assert_eq!((&same["choices"], &same["ggro"]["trace"]["options"]), (&answer["choices"], options));
    let other = server.chat(&story("demo-ggro-random", json!({ "ggro": { "proposals": "all" } })));
    assert!(other.refused(400, Some("ggro.proposals")).contains("random"));
    server.chat(&story("demo:ggro-some", json!({}))).refused(404, Some("model"));
    assert_eq!(
        server.chat(&story("demo:ggro-shuffled-gradient", json!({ "n": 2, "max_tokens": 9 }))).ok()["choices"][1]["index"],
        1
    );
}

#[test]
fn presets_and_the_best_of_several() {
    let server = Server::start(&[]);
    let trace = |model: &str| {
        let answer = server.chat(&story(model, json!({ "max_tokens": 30, "ggro": { "trace": true } }))).ok();
        answer["ggro"]["trace"]["options"].clone()
    };
    // The demo pair is below five billion weights.
    assert_eq!(trace("demo:ggro-safety")["entropy_threshold"], json!(1.5));
    assert_eq!(trace("demo:ggro-reasoning")["entropy_threshold"], json!(2.0));
    assert_eq!(trace("demo:ggro-helpfulness")["max_candidates"], json!(3));
    assert_eq!(trace("demo:ggro")["entropy_threshold"], json!(3.25));

    let body = |model: &str, more: Value| {
        let mut body = story(model, json!({ "temperature": 1, "seed": 11, "max_tokens": 50 }));
        crate::merge(&mut body, more);
        server.chat(&body).ok()
    };
    let best = body("demo:bon-4", json!({}));
    let all = body("demo", json!({ "n": 4 }));
    let rewards: Vec<f64> = serde_json::from_value(best["ggro"]["rewards"].clone()).unwrap();
    let index = best["ggro"]["best"].as_u64().unwrap() as usize;
    assert_eq!(rewards.len(), 4);
    assert!(rewards.iter().all(|&reward| reward <= rewards[index]));
    assert_eq!(best["choices"][0]["message"], all["choices"][index]["message"]);
    assert_eq!(best["ggro"]["reward"], best["ggro"]["rewards"][index]);
}

#[test]
fn the_assistant_header_is_no_part_of_the_text() {
    let server = Server::start(&[]);
    let official = json!({ "ggro": { "prompt_layout": "official", "trace": true }, "max_tokens": 60 });
    let answer = server.chat(&story("demo:ggro", official.clone())).ok();
    let expected = generated(&["--max-new-tokens", "60", "--prompt-layout", "official"]);
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text, expected["text"].as_str().unwrap());
    let first = answer["ggro"]["trace"]["options"]["first_offset"].as_u64().unwrap();
    assert!(first > 0 && !text.contains("assistant") && !text.contains("<|"), "{text}");
    // It counts all the same.
    assert_eq!(answer["usage"]["completion_tokens"], json!(60));
    let mut body = story("demo:ggro", official);
    body["stream"] = json!(true);
    let frames = server.chat(&body).frames();
    let streamed: String = frames.iter().filter_map(|frame| frame["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);
}

/// A request says whether tokens are guessed for it; that asks for no method, and changes no answer.
#[test]
fn requests_choose_their_drafts() {
    let server = Server::start(&["--draft", "ngram"]);
    let plain = server.chat(&story("demo", json!({}))).ok();
    let steered = server.chat(&story("demo:ggro", json!({}))).ok();
    for draft in ["off", "ngram"] {
        for (model, expected) in [("demo", &plain), ("demo:ggro", &steered), ("demo:bon-2", &Value::Null)] {
            let found = server.chat(&story(model, json!({ "ggro": { "draft": draft } }))).ok();
            assert!(found["choices"][0]["message"]["content"].is_string());
            if !expected.is_null() {
                let content = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
                assert_eq!(content(&found), content(expected), "{model} {draft}");
                assert_eq!(found["usage"].get("ggro").is_some(), expected["usage"].get("ggro").is_some());
            }
        }
    }
    let refused = server.chat(&story("demo", json!({ "ggro": { "draft": "model" } })));
    let message = refused.refused(400, Some("ggro.draft"));
    assert!(message.contains("no model that guesses"), "{message}");
    let refused = server.chat(&story("demo", json!({ "ggro": { "draft": 3 } }))).refused(400, Some("ggro.draft"));
    assert!(refused.contains("\"off\", \"ngram\" or \"model\""), "{refused}");
}
