//! What an operator relies on: keys, readiness, drains, metrics, limits, logs, origins.

use crate::{Server, merge, story};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn every_route_but_the_probes_asks_for_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "from-file\n\nanother\n").unwrap();
    let args = ["--api-key-file", file.to_str().unwrap(), "--cors-origin", "https://chat.example.org"];
    let server = Server::spawn(&args, &[("GGRO_API_KEY", "from-variable,second")]);
    server.wait_ready();
    let routes = [
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/demo"),
        ("GET", "/nowhere"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/classify"),
        ("POST", "/pooling"),
        ("POST", "/score"),
        ("POST", "/v1/score"),
        ("POST", "/v1/gradients"),
        ("DELETE", "/v1/models"),
        ("GET", "/health/"),
        ("GET", "//health"),
    ];
    for (method, path) in routes {
        let body = (method == "POST").then_some(&b"{}"[..]);
        for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "from-file")]] {
            let answer = server.request(method, path, headers, body);
            assert_eq!(answer.status, 401, "{method} {path}");
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    for path in ["/health", "/ready"] {
        assert_eq!(server.get(path).status, 200);
    }
    for key in ["from-file", "another", "from-variable", "second"] {
        let value = format!("Bearer {key}");
        assert_eq!(server.request("GET", "/v1/models", &[("authorization", &value)], None).status, 200, "{key}");
    }
    // A page's browser asks without a key first.
    let asked = [("origin", "https://chat.example.org"), ("access-control-request-method", "POST")];
    let answer = server.request("OPTIONS", "/v1/chat/completions", &asked, None);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://chat.example.org");
    assert!(!answer.headers.contains_key("access-control-allow-credentials"));
    let other = [("origin", "https://evil.example.org"), ("access-control-request-method", "POST")];
    assert!(
        !server
            .request("OPTIONS", "/v1/chat/completions", &other, None)
            .headers
            .contains_key("access-control-allow-origin")
    );
    assert!(!server.log().contains("from-file") && !server.log().contains("from-variable"));
}

#[test]
fn without_origins_there_is_no_cors() {
    let server = Server::start(&[]);
    let asked = [("origin", "https://chat.example.org"), ("access-control-request-method", "POST")];
    let answer = server.request("OPTIONS", "/v1/chat/completions", &asked, None);
    assert_eq!(answer.status, 403);
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[test]
fn numbers_and_routes() {
    let server = Server::start(&["--log-format", "json"]);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("x-request-id", "my-7"), ("traceparent", trace)];
    let answer =
        server.send("/v1/chat/completions", &headers, story("demo", json!({ "max_tokens": 2 })).to_string().as_bytes());
    assert_eq!(
        (&answer.headers["x-request-id"], &answer.ok()["id"]),
        (&"my-7".parse().unwrap(), &json!("chatcmpl-my-7"))
    );
    server.logged("my-7");
    server.logged("4bf92f3577b34da6a3ce929d0e0e4736");
    for line in server.log().lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<Value>(line).expect("every line is JSON");
    }
    let generated = server.get("/version");
    assert_eq!(generated.headers["x-request-id"].len(), 32);
    assert_eq!(generated.ok()["version"], env!("CARGO_PKG_VERSION"));
    server.get("/nowhere").refused(404, None);
    server.get("/v1/chat/completions").refused(405, None);
    server.get("/v1/models/gpt-4").refused(404, Some("model"));
    assert_eq!(server.get("/v1/models/demo:ggro").ok()["parent"], "demo");
}

#[test]
fn a_profiler_is_told_if_it_may_be() {
    let server = Server::start(&["--enable-profiling"]);
    assert_eq!(server.post("/start_profile", &json!({})).ok()["collecting"], true);
    server.chat(&story("demo", json!({ "max_tokens": 3 }))).ok();
    assert_eq!(server.post("/stop_profile", &json!({})).ok()["collecting"], false);
    let closed = Server::start(&[]);
    closed.post("/start_profile", &json!({})).refused(404, None);
}

#[test]
fn a_server_drains() {
    let mut server = Server::start(&["--drain-timeout", "30"]);
    let body = story("demo:ggro", json!({ "max_tokens": 300, "ignore_eos": true }));
    let streams = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|number| {
                let mut body = body.clone();
                merge(&mut body, json!({ "stream": number % 2 == 0 }));
                let server = &server;
                scope.spawn(move || server.chat(&body))
            })
            .collect();
        server.wait("all run", |server| server.metric("num_requests_running") == 6.0);
        server.signal("TERM");
        server.wait("it drains", |server| server.get("/ready").status == 503);
        // It is alive, but takes nothing new.
        assert_eq!(server.get("/health").status, 200);
        let models = server.get("/v1/models");
        models.refused(503, None);
        assert!(models.headers.contains_key("retry-after"));
        server.chat(&body).refused(503, None);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for (number, answer) in streams.iter().enumerate() {
        match number % 2 {
            0 => assert!(answer.frames().iter().any(|frame| frame["choices"][0]["finish_reason"].is_string())),
            _ => assert!(answer.ok()["usage"]["completion_tokens"].as_u64() > Some(50)),
        }
    }
    assert_eq!(server.ended(), Some(0));
    server.logged("draining");
}

#[test]
fn what_does_not_end_in_time_is_told_so() {
    let mut server = Server::start(&["--drain-timeout", "0.2"]);
    let body = story(
        "demo:ggro",
        json!({ "max_tokens": 400, "ggro": { "entropy_threshold": 1.0, "num_refinement_steps": 25 } }),
    );
    let mut streamed = body.clone();
    merge(&mut streamed, json!({ "stream": true }));
    let (whole, stream) = std::thread::scope(|scope| {
        let (one, two) = (scope.spawn(|| server.chat(&body)), scope.spawn(|| server.chat(&streamed)));
        server.wait("both run", |server| server.metric("num_requests_running") == 2.0);
        server.signal("TERM");
        (one.join().unwrap(), two.join().unwrap())
    });
    // No device was lost: another server may be asked.
    assert_eq!(whole.refused(503, None), "the server is stopping");
    assert_eq!(
        (&whole.json()["error"]["code"], &whole.headers["retry-after"]),
        (&json!("unavailable"), &"5".parse().unwrap())
    );
    let frames = stream.frames();
    assert_eq!(frames[frames.len() - 1]["error"]["code"], "unavailable");
    assert_eq!(server.ended(), Some(0));
    server.logged("2 requests were ended");
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut server = Server::start(&["--drain-timeout", "60"]);
    let body = story(
        "demo:ggro",
        json!({ "max_tokens": 400, "ggro": { "entropy_threshold": 1.0, "num_refinement_steps": 25 } }),
    );
    std::thread::scope(|scope| {
        let request = scope.spawn(|| server.chat(&body));
        server.wait("it runs", |server| server.metric("num_requests_running") == 1.0);
        let started = Instant::now();
        server.signal("INT");
        server.logged("draining");
        server.signal("INT");
        let stopped = request.join().unwrap();
        // No device was lost: the client may try another server.
        assert_eq!((stopped.status, &stopped.json()["error"]["code"]), (503, &json!("unavailable")));
        assert_eq!(stopped.headers["retry-after"], "5");
        assert!(started.elapsed() < Duration::from_secs(20));
    });
    assert_eq!(server.ended(), Some(0));
}

#[test]
fn metrics_count_what_happens() {
    let server = Server::start(&["--metrics-compat", "vllm"]);
    let answer = server.chat(&story("demo:ggro", json!({ "max_tokens": 80 }))).ok();
    let (usage, work) = (&answer["usage"], &answer["usage"]["ggro"]);
    server.chat(&story("demo", json!({ "max_tokens": 5 }))).ok();
    server.chat(&story("nobody", json!({}))).refused(404, Some("model"));
    let count = |value: &Value| value.as_f64().unwrap();
    assert_eq!(server.metric("prompt_tokens_total"), 2.0 * count(&usage["prompt_tokens"]));
    assert_eq!(server.metric("generation_tokens_total"), count(&usage["completion_tokens"]) + 5.0);
    assert_eq!(server.metric("segments_total"), count(&work["segments"]));
    assert_eq!(server.metric("nudges_accepted_total"), count(&work["nudges"]));
    let outcomes =
        ["improved", "kept"].map(|outcome| server.metric(&format!("refinements_total{{outcome=\"{outcome}\"}}")));
    assert_eq!(outcomes.iter().sum::<f64>(), count(&work["refinement_steps"]));
    assert_eq!(server.metric("request_success_total{finished_reason=\"length\"}"), 2.0);
    assert_eq!(server.metric("e2e_request_latency_seconds_count"), 2.0);
    assert_eq!(server.metric("time_to_first_token_seconds_count"), 2.0);
    for phase in ["decode", "reward_bwd", "select"] {
        assert!(server.metric(&format!("phase_seconds_total{{phase=\"{phase}\"}}")) > 0.0, "{phase}");
    }
    assert_eq!(server.metric("http_requests_total{route=\"/v1/chat/completions\",status=\"404\"}"), 1.0);
    let text = server.get("/metrics").body;
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:request_success_total",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name}");
    }
    // The format: every sample belongs to a family that was described.
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(text.contains(&format!("# TYPE {family} ")) || text.contains(&format!("# TYPE {name} ")), "{line}");
    }
}

#[test]
fn limits_are_kept_and_named() {
    let server = Server::start(&[
        "--max-n",
        "4",
        "--max-tokens",
        "50",
        "--max-messages",
        "3",
        "--max-prompts",
        "2",
        "--max-logprobs",
        "5",
        "--max-body-bytes",
        "20000",
    ]);
    let refused = |more: Value, param: &str| server.chat(&story("demo", more)).refused(400, Some(param));
    assert!(refused(json!({ "n": 5 }), "n").contains("1 to 4"));
    assert!(refused(json!({ "max_tokens": 51 }), "max_tokens").contains("at most 50"));
    assert!(refused(json!({ "logprobs": true, "top_logprobs": 6 }), "top_logprobs").contains("0 to 5"));
    let message = json!({ "role": "user", "content": "x" });
    assert!(refused(json!({ "messages": [message, message, message, message] }), "messages").contains("1 to 3"));
    server.complete(&json!({ "model": "demo", "prompt": ["a", "b", "c"] })).refused(400, Some("prompt"));
    assert!(server.chat(&story("demo", json!({ "user": "x".repeat(20_000) }))).refused(413, None).contains("20000"));
    server.chat(&story("demo:bon-5", json!({}))).refused(404, Some("model"));
    // Without max_tokens an answer takes what it may.
    let mut open = story("demo", json!({ "ignore_eos": true }));
    open["max_tokens"] = Value::Null;
    assert_eq!(server.chat(&open).ok()["usage"]["completion_tokens"], json!(50));
}

#[test]
fn nobody_waits_where_there_is_no_queue() {
    let server = Server::start(&["--max-requests", "1", "--max-queue", "1"]);
    let body = crate::endless(true).to_string();
    let ask = || {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    };
    let are = |running: f64, waiting: f64| {
        server.wait(&format!("{running} run and {waiting} wait"), |server| {
            [server.metric("num_requests_running"), server.metric("num_requests_waiting")] == [running, waiting]
        });
    };
    let runs = ask();
    are(1.0, 0.0);
    // One that waits and whose client goes away is gone too, though nothing is ever said of it.
    let waits = ask();
    are(1.0, 1.0);
    drop(waits);
    are(1.0, 0.0);
    let held = [runs, ask()];
    are(1.0, 1.0);
    let answer = server.chat(&story("demo", json!({ "max_tokens": 1 })));
    assert!(answer.refused(429, None).contains("2 requests"));
    assert_eq!(answer.headers["retry-after"], "1");
    server.post("/classify", &json!({ "input": "x" })).refused(429, None);
    drop(held);
    server.wait("there is room", |server| server.chat(&story("demo", json!({ "max_tokens": 1 }))).status == 200);
}

#[test]
fn answers_have_a_time_limit() {
    let server = Server::start(&["--request-timeout", "0.3"]);
    assert!(server.chat(&crate::endless(false)).refused(504, None).contains("limit of this server"));
    let frames = server.chat(&crate::endless(true)).frames();
    assert_eq!(frames[frames.len() - 1]["error"]["code"], "timeout");
    server.wait("nothing runs", |server| server.metric("num_requests_running") == 0.0);
    assert_eq!(server.metric("request_failure_total{status=\"504\"}"), 2.0);
    server.chat(&story("demo", json!({ "max_tokens": 3 }))).ok();
}

#[test]
fn what_cannot_be_started_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("keys");
    std::fs::write(&empty, "\n").unwrap();
    let missing = dir.path().join("none");
    for (args, part) in [
        (vec!["--port", &port], "--host 127.0.0.1 --port"),
        (vec!["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (vec!["--api-key-file", missing.to_str().unwrap()], "none"),
        (vec!["--api-key-file", empty.to_str().unwrap()], "one per line"),
        (vec!["--served-model-name", "a:b"], "colons"),
        (vec!["--cors-origin", "chat.example.org"], "an origin such as"),
        (vec!["--request-timeout", "-1"], "seconds"),
        (vec!["--policy", "/no/such/model"], "/no/such/model"),
        (vec!["--reward", "/no/such/model"], "/no/such/model"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ggro")).arg("serve").args(&args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(part), "{args:?}: {error}");
    }
}
