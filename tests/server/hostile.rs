//! Clients that mean harm, or know no better: each gets an error or is hung up on, and nobody else notices.

use crate::{Server, story};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn head(length: usize) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// Everything that comes until the connection is closed.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} after {}", String::from_utf8_lossy(&bytes)),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Nothing was left behind.
fn unharmed(server: &Server) {
    server.wait("nothing runs", |server| {
        server.metric("num_requests_running") == 0.0 && server.metric("num_requests_waiting") == 0.0
    });
    let answer = server.chat(&story("demo", json!({ "max_tokens": 4 }))).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 4);
}

#[test]
fn slow_heads_and_slow_bodies() {
    let server = Server::start(&["--arrival-timeout", "0.5"]);
    let started = Instant::now();
    let mut slow_head = connect(&server);
    slow_head.write_all(b"POST /v1/chat/completions HT").unwrap();
    let mut slow_body = connect(&server);
    slow_body.write_all(format!("{}{{\"mod", head(100)).as_bytes()).unwrap();
    // A byte at a time is no way around it.
    let mut dripping = connect(&server);
    dripping.write_all(head(100).as_bytes()).unwrap();
    let drip = std::thread::spawn(move || {
        for _ in 0..100 {
            if dripping.write_all(b" ").is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        rest(dripping)
    });
    // Others are served meanwhile.
    server.chat(&story("demo", json!({ "max_tokens": 3 }))).ok();
    rest(slow_head);
    assert!(rest(slow_body).starts_with("HTTP/1.1 408"));
    drip.join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    unharmed(&server);
}

#[test]
fn huge_bodies_announced_and_not() {
    let server = Server::start(&["--max-body-bytes", "100000"]);
    let mut announced = connect(&server);
    announced.write_all(head(1 << 40).as_bytes()).unwrap();
    assert!(rest(announced).starts_with("HTTP/1.1 413"));
    let mut chunked = connect(&server);
    chunked
        .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..64 {
        if chunked.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let answer = rest(chunked);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    let mut endless = connect(&server);
    let _ = endless.write_all(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    let answer = rest(endless);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    unharmed(&server);
}

#[test]
fn bodies_that_are_no_requests() {
    let server = Server::start(&[]);
    for body in [
        &b""[..],
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        b"{\"model\": \"demo\xff\"}",
        b"{\"model\": \"\\ud800\"}",
        &b"[".repeat(200_000),
        &b"{\"a\":".repeat(50_000),
    ] {
        server.send("/v1/chat/completions", &[], body).refused(400, None);
    }
    let marked = [&b"\xef\xbb\xbf"[..], story("demo", json!({ "max_tokens": 2 })).to_string().as_bytes()].concat();
    server.send("/v1/chat/completions", &[], &marked).ok();
    // Deep where depth is allowed: within a message, tool or template argument.
    let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
    let body = format!(
        "{{\"model\":\"demo\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\",\"extra\":{deep}}}],\"max_tokens\":2}}"
    );
    server.send("/v1/chat/completions", &[], body.as_bytes()).ok();
    unharmed(&server);
}

#[test]
fn numbers_beyond_reason() {
    let server = Server::start(&[]);
    let fields = [
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "min_tokens",
        "truncate_prompt_tokens",
    ];
    for field in fields {
        for value in
            [json!(-2), json!(-1e300), json!(1e300), json!(u64::MAX), json!("1"), json!([1]), json!({}), json!(true)]
        {
            let mut body = story("demo", json!({ "max_tokens": 3 }));
            body[field] = value.clone();
            let answer = server.chat(&body);
            // Some are harmless: a top-k of everything, a penalty of minus two, a prompt that is not cut.
            let harmless =
                ["top_k", "presence_penalty", "frequency_penalty", "truncate_prompt_tokens"].contains(&field);
            assert!(answer.status == 400 || (harmless && answer.status == 200), "{field} {value}: {}", answer.body);
            if answer.status == 400 {
                answer.refused(400, Some(field));
            }
        }
    }
    let refused = |more: Value, param: &str| server.chat(&story("demo", more)).refused(400, Some(param));
    refused(json!({ "seed": 1.5 }), "seed");
    refused(json!({ "logprobs": true, "top_logprobs": -1 }), "top_logprobs");
    refused(json!({ "logit_bias": { "-1": 1 } }), "logit_bias");
    refused(json!({ "logit_bias": { "99999999": 1 } }), "logit_bias");
    refused(json!({ "stop_token_ids": [4_294_967_295u32] }), "stop_token_ids");
    refused(json!({ "stop_token_ids": [-1] }), "stop_token_ids");
    let bias: serde_json::Map<String, Value> = (0..2000).map(|id| (id.to_string(), json!(1))).collect();
    refused(json!({ "logit_bias": bias }), "logit_bias");
    server.chat(&story("demo", json!({ "seed": -1, "max_tokens": 2 }))).ok();
    server.complete(&json!({ "model": "demo", "prompt": [1, 2, 99_999_999] })).refused(400, Some("prompt"));
    server.complete(&json!({ "model": "demo", "prompt": [1, -2] })).refused(400, Some("prompt"));
    server.complete(&json!({ "model": "demo", "prompt": [] })).refused(400, Some("prompt"));
    server.complete(&json!({ "model": "demo", "prompt": [[]] })).refused(400, Some("prompt"));
    server.post("/detokenize", &json!({ "tokens": [u32::MAX] })).refused(400, Some("tokens"));
    unharmed(&server);
}

#[test]
fn too_many_stops_and_prompts_beyond_the_context() {
    let server = Server::start(&[]);
    let stops: Vec<String> = (0..10_000).map(|number| format!("stop {number}")).collect();
    let message = server.chat(&story("demo", json!({ "stop": stops }))).refused(400, Some("stop"));
    assert!(message.contains("at most 16") && message.contains("10000"), "{message}");
    server.chat(&story("demo", json!({ "stop": ["x".repeat(1000)] }))).refused(400, Some("stop"));
    server.chat(&story("demo", json!({ "stop": [1] }))).refused(400, Some("stop"));
    let long = json!([{ "role": "user", "content": "word ".repeat(600) }]);
    let answer = server.chat(&story("demo", json!({ "messages": long })));
    assert!(answer.refused(400, Some("messages")).contains("maximum context length is 512 tokens"));
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    // Megabytes of text are refused as well, and nobody waits for that.
    let answer = std::thread::scope(|scope| {
        let huge = scope.spawn(|| {
            let text = json!([{ "role": "user", "content": "word ".repeat(700_000) }]);
            server.chat(&story("demo", json!({ "messages": text })))
        });
        let started = Instant::now();
        server.chat(&story("demo", json!({ "max_tokens": 2 }))).ok();
        assert!(started.elapsed() < Duration::from_secs(5));
        huge.join().unwrap()
    });
    answer.refused(400, Some("messages"));
    unharmed(&server);
}

#[test]
fn template_arguments_cannot_reach_the_inside() {
    let server = Server::start(&[]);
    for name in [
        "messages",
        "tools",
        "bos_token",
        "eos_token",
        "add_generation_prompt",
        "raise_exception",
        "strftime_now",
        "namespace",
        "range",
        "self",
        "loop",
        "__class__",
        "Upper",
        "a-b",
        "",
        "chat_template",
    ] {
        let body = story("demo", json!({ "chat_template_kwargs": { name: "x" } }));
        let message = server.chat(&body).refused(400, Some("chat_template_kwargs"));
        assert!(message.contains("not a variable"), "{message}");
    }
    let nested = story("demo", json!({ "chat_template_kwargs": { "enable_thinking": { "a": 1 } } }));
    server.chat(&nested).refused(400, Some("chat_template_kwargs"));
    server.chat(&story("demo", json!({ "chat_template_kwargs": { "enable_thinking": false }, "max_tokens": 2 }))).ok();
    server.chat(&story("demo", json!({ "chat_template": "{{ 7 * 7 }}" }))).refused(400, Some("chat_template"));
    // Text of a message stays text.
    let text = "{{ 7 * 7 }}{% for x in range(10) %}x{% endfor %}";
    let tokens = server.post("/tokenize", &json!({ "messages": [{ "role": "user", "content": text }] })).ok();
    let back = server.post("/detokenize", &json!({ "tokens": tokens["tokens"] })).ok();
    assert!(back["prompt"].as_str().unwrap().contains(text));
    unharmed(&server);
}

#[test]
fn disconnects_at_every_stage() {
    let server = Server::start(&[]);
    let body = story("demo:ggro", json!({ "max_tokens": 400, "stream": true })).to_string();
    let request = format!("{}{body}", head(body.len()));
    let cuts = [0, 1, 20, head(body.len()).len() - 2, head(body.len()).len(), request.len() / 2, request.len() - 1];
    for cut in cuts {
        let mut stream = connect(&server);
        stream.write_all(&request.as_bytes()[..cut]).unwrap();
        drop(stream);
    }
    // As soon as it is sent, while the first segment is awaited, and in the middle of the answer.
    for wait in [0, 1, 5, 20, 60] {
        let mut stream = connect(&server);
        stream.write_all(request.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        drop(stream);
    }
    let mut stream = connect(&server);
    stream.write_all(request.as_bytes()).unwrap();
    let mut some = [0; 400];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    // Without a stream the answer has nobody to come to either.
    let whole = story("demo:ggro", json!({ "max_tokens": 400 })).to_string();
    let mut stream = connect(&server);
    stream.write_all(format!("{}{whole}", head(whole.len())).as_bytes()).unwrap();
    server.wait("it runs", |server| server.metric("num_requests_running") > 0.0);
    drop(stream);
    unharmed(&server);
    assert!(server.metric("request_aborted_total") >= 2.0);

    // What would run for a long time is left alone before the next step, whether it streams or not.
    for stream in [false, true] {
        let body = crate::endless(stream).to_string();
        let mut stream = connect(&server);
        stream.write_all(format!("{}{body}", head(body.len())).as_bytes()).unwrap();
        server.wait("it runs", |server| server.metric("num_requests_running") == 1.0);
        drop(stream);
        let left = Instant::now();
        server.wait("nothing runs", |server| server.metric("num_requests_running") == 0.0);
        assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    }
}

#[test]
fn a_client_that_does_not_read_is_hung_up_on() {
    let server = Server::start(&["--write-timeout", "0.3"]);
    // So much that no buffer between the two holds it.
    let body = story(
        "demo",
        json!({ "stream": true, "n": 64, "temperature": 1, "max_tokens": 400, "ignore_eos": true,
        "logprobs": true, "top_logprobs": 20 }),
    )
    .to_string();
    let mut stream = connect(&server);
    stream.write_all(format!("{}{body}", head(body.len())).as_bytes()).unwrap();
    server.wait("it runs", |server| server.metric("num_requests_running") == 1.0);
    server.wait("it was ended", |server| server.metric("request_aborted_total") == 1.0);
    unharmed(&server);
    drop(stream);
}

#[test]
fn half_requests_and_other_protocols() {
    let server = Server::start(&[]);
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut stream = connect(&server);
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = rest(stream);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    unharmed(&server);
}
