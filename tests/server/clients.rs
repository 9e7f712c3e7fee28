//! What clients of other servers rely on: words, defaults, routes, names, and refusals of what is not done.

use crate::{Server, merge, story};
use serde_json::{Value, json};

#[test]
fn prompts_that_are_too_long_are_known_by_their_words() {
    let server = Server::start(&[]);
    let words = "w ".repeat(600);
    // LiteLLM and LangChain look for this sentence, and for the code.
    let known = |answer: &crate::Answer, param: &str| {
        let message = answer.refused(400, Some(param));
        assert!(
            message.starts_with("This model's maximum context length is 512 tokens; the prompt is too long: "),
            "{message}"
        );
        assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    };
    let conversation = json!([{ "role": "user", "content": words }]);
    known(&server.chat(&story("demo", json!({ "messages": conversation }))), "messages");
    known(&server.chat(&story("demo:ggro", json!({ "messages": conversation }))), "messages");
    known(&server.complete(&json!({ "prompt": words })), "prompt");
    known(&server.complete(&json!({ "prompt": vec![7; 513] })), "prompt");
    known(&server.complete(&json!({ "prompt": "w", "max_tokens": 600 })), "max_tokens");
    known(&server.post("/classify", &json!({ "input": words })), "input");
    known(&server.post("/pooling", &json!({ "messages": conversation })), "messages");
    known(&server.post("/score", &json!({ "queries": "q", "items": [words] })), "items");
    known(&server.post("/v1/rerank", &json!({ "query": "q", "documents": [words] })), "documents");
    known(&server.post("/v1/gradients", &json!({ "input": words })), "input");
}

#[test]
fn a_prompt_may_be_cut_on_every_route() {
    let server = Server::start(&[]);
    let ids: Vec<u32> = (20..50).collect();
    let short = |route: &str, more: Value| {
        let mut body = json!({ "input": ids, "use_activation": false });
        merge(&mut body, more);
        server.post(route, &body).ok()
    };
    let cut = short("/classify", json!({ "truncate_prompt_tokens": 2 }));
    assert_eq!(cut["usage"]["prompt_tokens"], 2);
    assert_eq!(cut["data"], short("/classify", json!({ "input": [48, 49] }))["data"]);
    assert_ne!(cut["data"], short("/classify", json!({}))["data"]);
    let long = json!({ "input": "w ".repeat(800), "truncate_prompt_tokens": -1 });
    assert_eq!(server.post("/pooling", &long).ok()["usage"]["prompt_tokens"], 512);
    server.complete(&json!({ "prompt": "w ".repeat(800), "truncate_prompt_tokens": 500, "max_tokens": 3 })).ok();
    server
        .complete(&json!({ "prompt": "w", "truncate_prompt_tokens": 0 }))
        .refused(400, Some("truncate_prompt_tokens"));
    // -1 leaves room for the answer.
    let most = json!({ "prompt": "w ".repeat(800), "truncate_prompt_tokens": -1, "max_tokens": 3 });
    assert_eq!(server.complete(&most).ok()["usage"]["total_tokens"], 512);
    let count = json!({ "prompt": "w ".repeat(800), "truncate_prompt_tokens": 5 });
    assert_eq!(server.post("/tokenize", &count).ok()["count"], 5);
}

#[test]
fn sampling_defaults_are_the_models() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str| {
        let to = dir.path().join(from);
        std::fs::create_dir_all(&to).unwrap();
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama-gqa").join(from);
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
        to
    };
    let (policy, reward) = (copy("policy"), copy("reward"));
    let path = policy.join("generation_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    merge(&mut config, json!({ "do_sample": true, "temperature": 0.0001, "top_p": 0.1 }));
    std::fs::write(&path, config.to_string()).unwrap();
    let models = ["--policy", policy.to_str().unwrap(), "--reward", reward.to_str().unwrap()];
    let texts = |args: &[&str], more: Value| {
        let server = Server::start(&[&models[..], args].concat());
        let mut body =
            json!({ "model": "policy", "messages": [{ "role": "user", "content": "hello there" }], "max_tokens": 12 });
        merge(&mut body, more);
        let ask = |_| server.chat(&body).ok()["choices"][0]["message"]["content"].clone();
        let texts: Vec<Value> = (0..4).map(ask).collect();
        (texts.iter().all(|text| *text == texts[0]), server.log().contains("sampling defaults"))
    };
    assert_eq!(texts(&[], json!({})), (true, true));
    assert_eq!(texts(&[], json!({ "temperature": 1, "top_p": 1 })), (false, true));
    assert_eq!(texts(&["--generation-config", "none"], json!({})), (false, false));
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let server = Server::start(&[]);
    let refused = |more: Value, param: &str| {
        let message = server.chat(&story("demo", more)).refused(400, Some(param));
        assert!(message.contains(&format!("`{param}`")), "{message}");
    };
    refused(json!({ "bad_words": ["a"] }), "bad_words");
    refused(json!({ "allowed_token_ids": [1, 2] }), "allowed_token_ids");
    refused(json!({ "use_beam_search": true }), "use_beam_search");
    refused(json!({ "mirostat": 2 }), "mirostat");
    refused(json!({ "logits_processors": ["x"] }), "logits_processors");
    refused(json!({ "functions": [{ "name": "x" }] }), "functions");
    refused(json!({ "function_call": { "name": "x" } }), "function_call");
    refused(json!({ "enable_thinking": false, "format": "json" }), "format");
    refused(json!({ "enable_thinking": true }), "enable_thinking");
    refused(json!({ "min_tokens": 10, "max_tokens": 5 }), "min_tokens");
    refused(json!({ "logit_bias": { "5": 1000 } }), "logit_bias");
    refused(json!({ "ggro": { "nudge_temperature": 0 } }), "ggro.nudge_temperature");
    refused(json!({ "ggro": { "num_refinement_steps": 8, "max_candidates": 1 } }), "ggro.max_candidates");
    server.chat(&story("demo:bon-2", json!({ "ggro": { "trace": true } }))).refused(400, Some("ggro"));
    server
        .chat(&story("demo:bon-2", json!({ "vllm_xargs": { "ggro_nudge_top_k": 2 } })))
        .refused(400, Some("vllm_xargs"));
    server.complete(&json!({ "prompt": [1, 5000] })).refused(400, Some("prompt"));
    let classify = |more: Value, param: &str| {
        let mut body = json!({ "input": "Once upon a time." });
        merge(&mut body, more);
        server.post("/classify", &body).refused(400, Some(param));
    };
    let twice = json!({ "prompt": "w", "ggro": { "nudge_top_k": 2 }, "vllm_xargs": { "ggro_nudge_top_k": 3 } });
    server.complete(&twice).refused(400, Some("vllm_xargs"));
    let both = json!({ "prompt": "w", "messages": [{ "role": "user", "content": "x" }] });
    server.post("/tokenize", &both).refused(400, Some("messages"));
    classify(json!({ "messages": [{ "role": "user", "content": "x" }] }), "messages");
    classify(json!({ "chat_template": "x" }), "chat_template");
    classify(json!({ "chat_template_kwargs": { "a": 1 } }), "chat_template_kwargs");
    classify(json!({ "dimensions": 4 }), "dimensions");
    classify(json!({ "embed_dtype": "float16" }), "embed_dtype");
    classify(json!({ "encoding_format": "base64" }), "encoding_format");
    server.post("/score", &json!({ "text_1": "a", "queries": "b", "text_2": "c" })).refused(400, Some("queries"));
    // Every refusal is counted, whoever found the fault.
    let failures = server.metric("request_failure_total{status=\"400\"}");
    assert_eq!(failures, server.metric("http_requests_total{route=\"/v1/chat/completions\",status=\"400\"}") + 10.0);
}

#[test]
fn names_for_clients_that_parse_colons() {
    let server = Server::start(&[]);
    for (colon, hyphen) in [
        ("demo:ggro", "demo-ggro"),
        ("demo:ggro-safety", "demo-ggro-safety"),
        ("demo:bon-2", "demo-bon-2"),
        ("demo:best-of-poisson", "demo-best-of-poisson"),
    ] {
        let ask = |model: &str| server.chat(&story(model, json!({ "seed": 1 }))).ok();
        let (first, second) = (ask(colon), ask(hyphen));
        assert_eq!((&first["choices"], &second["model"]), (&second["choices"], &json!(hyphen)));
        assert_eq!(server.get(&format!("/v1/models/{hyphen}")).ok()["id"], hyphen);
    }
    for odd in ["demo:bon-+3", "demo:bon-03", "demo-bon-03", "demo-", "demo-x", "demoggro"] {
        server.chat(&story(odd, json!({}))).refused(404, Some("model"));
    }
    let reward = server.get("/v1/models/demo-reward").ok();
    assert_eq!((&reward["id"], &reward["parent"]), (&json!("demo-reward"), &Value::Null));
    let args = ["serve", "--served-model-name", "demo-reward"];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ggro")).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && error.contains("both models are called demo-reward"), "{error}");
}

#[test]
fn documents_are_ranked_by_their_rewards() {
    let server = Server::start(&[]);
    let documents = ["It was a sunny day.", "mud mud mud", "The fox and the crow were friends."];
    let scores = server.post("/score", &json!({ "text_1": "Tell me a story.", "text_2": documents })).ok();
    let scores: Vec<f64> = (0..3).map(|index| scores["data"][index]["score"].as_f64().unwrap()).collect();
    let newer = server.post("/score", &json!({ "data_1": "Tell me a story.", "data_2": documents })).ok();
    assert_eq!(newer["data"][2]["score"].as_f64(), Some(scores[2]));
    for route in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        let body = json!({ "query": "Tell me a story.", "documents": documents, "top_n": 2 });
        let ranked = server.post(route, &body).ok();
        let results = ranked["results"].as_array().unwrap();
        assert_eq!(results.len(), 2);
        let mut best: Vec<usize> = vec![0, 1, 2];
        best.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        for (result, index) in results.iter().zip(best) {
            assert_eq!(result["index"], index);
            assert_eq!(result["relevance_score"].as_f64(), Some(scores[index]));
            assert_eq!(result["document"]["text"], documents[index]);
        }
        assert!(ranked["usage"]["total_tokens"].as_u64() > Some(0));
    }
    let body = json!({ "query": "q", "documents": [{ "text": "a" }, "b"], "return_documents": false });
    let bare = server.post("/rerank", &body).ok();
    assert!(bare["results"][0]["document"].is_null() && bare["results"].as_array().unwrap().len() == 2);
    server.post("/rerank", &json!({ "documents": ["a"] })).refused(400, Some("query"));
    server.post("/rerank", &json!({ "query": "a" })).refused(400, Some("documents"));
    server.post("/rerank", &json!({ "query": "q", "documents": [] })).refused(400, Some("documents"));
    server.post("/rerank", &json!({ "query": "q", "documents": [{ "title": "a" }] })).refused(400, Some("documents"));
}

#[test]
fn a_trainer_of_openrlhf_gets_the_rewards_themselves() {
    let server = Server::start(&[]);
    let conversation = json!([{ "role": "user", "content": "Hi." }, { "role": "assistant", "content": "Hello." }]);
    let ids =
        server.post("/tokenize", &json!({ "messages": conversation, "add_generation_prompt": false })).ok()["tokens"]
            .clone();
    let text = server.post("/detokenize", &json!({ "tokens": ids })).ok()["prompt"].as_str().unwrap().to_string();
    let rewards = server
        .post("/get_reward", &json!({ "query": [text, "Once."], "prompts": ["Hi.", ""], "labels": [null, null] }));
    let rewards = rewards.ok();
    let direct = server.post("/classify", &json!({ "messages": conversation, "use_activation": false })).ok();
    assert_eq!(rewards["rewards"][0], direct["data"][0]["probs"][0]);
    assert_eq!(rewards["rewards"], rewards["scores"]);
    assert_eq!(rewards["rewards"].as_array().unwrap().len(), 2);
    server.post("/get_reward", &json!({ "prompts": ["a"] })).refused(400, Some("query"));
}

#[test]
fn times_mean_what_they_are_called() {
    let server = Server::start(&[]);
    let long: Vec<u32> = (0..470).map(|at| 20 + at % 400).collect();
    for _ in 0..3 {
        let body =
            json!({ "prompt": long, "max_tokens": 2, "temperature": 0, "cache_salt": format!("{}", long.len()) });
        server.complete(&body).ok();
    }
    let mean = |name: &str| server.metric(&format!("{name}_sum")) / server.metric(&format!("{name}_count"));
    let (queue, prefill) = (mean("request_queue_time_seconds"), mean("request_prefill_time_seconds"));
    println!("idle server, 470 tokens: {:.2} ms in the queue, {:.2} ms of prefill", queue * 1e3, prefill * 1e3);
    assert!(prefill > 2.0 * queue, "{queue} {prefill}");
    assert_eq!(server.metric("kv_cache_usage_perc{model=\"policy\"}"), 0.0);
}
