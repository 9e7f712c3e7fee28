//! Work is bounded before it is done, and requests take turns.

use crate::{Server, merge, story};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The most memory that a process has had, in bytes.
fn high_water(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() << 10
}

#[test]
fn prompts_that_cannot_fit_are_refused_before_they_are_tokenised() {
    let server = Server::start(&[]);
    server.chat(&story("demo", json!({ "max_tokens": 2 }))).ok();
    let (before, started) = (high_water(&server), Instant::now());
    let text = "a ".repeat(2_000_000);
    let bodies = [
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": text }] }), "messages"),
        ("/v1/completions", json!({ "prompt": text }), "prompt"),
        ("/v1/completions", json!({ "prompt": ["short", text] }), "prompt"),
        ("/classify", json!({ "input": text }), "input"),
        ("/classify", json!({ "messages": [{ "role": "user", "content": text }] }), "messages"),
        ("/pooling", json!({ "input": [text] }), "input"),
        ("/score", json!({ "text_1": "q", "text_2": text }), "text_2"),
        ("/rerank", json!({ "query": "q", "documents": [text] }), "documents"),
        ("/get_reward", json!({ "query": [text] }), "query"),
        ("/v1/gradients", json!({ "input": text }), "input"),
    ];
    std::thread::scope(|scope| {
        for (route, body, param) in &bodies {
            let server = &server;
            scope.spawn(move || {
                let answer = server.post(route, body);
                let message = answer.refused(400, Some(param));
                assert!(
                    message.starts_with("This model's maximum context length is 512 tokens; the prompt is too long: "),
                    "{message}"
                );
                assert!(message.contains("bytes") && message.contains("more than 512 tokens"), "{message}");
                assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
            });
        }
    });
    let grown = high_water(&server) - before;
    println!("ten texts of 4 MB: {:.2} s, {} MB more", started.elapsed().as_secs_f64(), grown >> 20);
    // The bodies themselves, as bytes and as JSON.
    assert!(grown < 160 << 20, "memory grew by {} MB", grown >> 20);

    // Where any length may be cut, or counted, texts come one after the other.
    let long = "word ".repeat(60_000);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (server, long) = (&server, &long);
            scope.spawn(move || {
                let cut = json!({ "prompt": long, "truncate_prompt_tokens": 4, "max_tokens": 1 });
                assert_eq!(server.complete(&cut).ok()["usage"]["prompt_tokens"], 4);
                assert!(server.post("/tokenize", &json!({ "prompt": long })).ok()["count"].as_u64() > Some(60_000));
            });
        }
    });
}

#[test]
fn what_one_request_asks_for_is_bounded() {
    let server = Server::start(&["--max-queue", "4", "--max-requests", "8", "--max-answer-tokens", "4000"]);
    // Sixteen texts have no place in a server of twelve.
    let texts = json!({ "prompt": vec!["a b"; 16], "n": 16, "max_tokens": 5 });
    assert!(server.complete(&texts).refused(400, Some("prompt")).contains("runs and queues"));
    let texts = json!({ "input": vec!["a b"; 16] });
    assert!(server.post("/classify", &texts).refused(400, Some("input")).contains("16 things"));
    // 8 texts, 10 answers of 20 tokens, 20 likely tokens beside each: 33,600 tokens.
    let tokens = json!({ "prompt": vec!["a b"; 8], "n": 10, "max_tokens": 20, "logprobs": 20 });
    let message = server.complete(&tokens).refused(400, Some("n"));
    assert!(message.contains("33580") && message.contains("4000"), "{message}");
    // 10 tokens of 256 numbers, each of which counts twice.
    let gradients = json!({ "input": "a b c d e f g h i j", "return_gradient": true });
    assert!(server.post("/v1/gradients", &gradients).refused(400, Some("input")).contains("4000"));
    // One answer is never too long for this limit.
    server.complete(&json!({ "prompt": "a b", "max_tokens": 400 })).ok();
}

#[test]
fn answers_in_flight_share_a_limit() {
    let server = Server::start(&["--max-answer-tokens", "30000"]);
    let body = json!({ "prompt": "a b", "n": 64, "max_tokens": 450, "temperature": 1, "ignore_eos": true });
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.complete(&body));
        server.wait("it runs", |server| server.metric("num_requests_running") == 1.0);
        let second = server.complete(&body);
        second.refused(429, None);
        assert_eq!(second.headers["retry-after"], "1");
        // A plain answer needs none of it.
        server.complete(&json!({ "prompt": "a b", "max_tokens": 4 })).ok();
        first.join().unwrap().ok();
    });
    server.complete(&json!({ "prompt": "a b", "n": 60, "max_tokens": 450, "temperature": 1 })).ok();
}

#[test]
fn four_thousand_answers_delay_a_small_request_by_a_few_steps() {
    let server = Server::start(&[]);
    let many = json!({ "model": "demo", "prompt": vec!["Once upon a time"; 64], "n": 64, "max_tokens": 100,
        "temperature": 1.5, "ignore_eos": true });
    let small = json!({ "model": "demo", "prompt": "hi", "max_tokens": 2, "temperature": 0 });
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).build().into();
    let turns = |server: &Server| server.metric("turns_total");
    std::thread::scope(|scope| {
        // It is left alone before its end.
        let (gone, url) = (std::sync::mpsc::channel::<()>(), format!("{}/v1/completions", server.base));
        let mut body = many.clone();
        merge(&mut body, json!({ "stream": true }));
        let asks = scope.spawn(move || {
            let answer = agent.post(&url).header("content-type", "application/json").send(body.to_string()).unwrap();
            gone.1.recv().unwrap();
            drop(answer);
        });
        server.wait("all run", |server| server.metric("num_requests_running") == 64.0);
        // Every row has begun: a step has 2,048 of them.
        std::thread::sleep(Duration::from_secs(2));
        for _ in 0..3 {
            let (before, started) = (turns(&server), Instant::now());
            server.complete(&small).ok();
            let (steps, seconds) = (turns(&server) - before, started.elapsed().as_secs_f64());
            println!("a request of two tokens beside 4,096 answers: {steps} steps, {seconds:.2} s");
            assert!(steps <= 6.0, "{steps} steps");
        }
        gone.0.send(()).unwrap();
        asks.join().unwrap();
    });
    server.wait("nothing runs", |server| server.metric("num_requests_running") == 0.0);
}

#[test]
fn long_lists_of_probabilities_take_little_memory() {
    let server = Server::start(&[]);
    let mut body = json!({ "model": "demo", "prompt": vec!["Once upon a time"; 16], "n": 64, "max_tokens": 20,
        "temperature": 1, "ignore_eos": true });
    // The keys and values of a thousand sequences are there after a first time.
    server.complete(&body).ok();
    let before = high_water(&server);
    merge(&mut body, json!({ "logprobs": 20 }));
    let answer = server.complete(&body);
    assert_eq!(answer.status, 200);
    let grown = high_water(&server) - before;
    println!("an answer of {} MB: {} MB of memory", answer.body.len() >> 20, grown >> 20);
    let whole: Value = answer.ok();
    assert_eq!(whole["choices"].as_array().unwrap().len(), 1024);
    assert!(grown < 8 * answer.body.len(), "memory grew by {} MB", grown >> 20);
}

#[test]
fn connections_beyond_the_soft_limit_of_open_files() {
    // A shell lowers the limit for the server alone.
    let mut child = std::process::Command::new("sh")
        .args(["-c", "ulimit -Sn 128; exec \"$0\" serve --device cpu --port 0"])
        .arg(env!("CARGO_BIN_EXE_ggro"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let base = lines.find_map(|line| crate::listening(&line.unwrap())).unwrap();
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<String>>());
    let address = base.strip_prefix("http://").unwrap();
    let idle: Vec<_> = (0..250).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).build().into();
    assert_eq!(agent.get(format!("{base}/health")).call().unwrap().status(), 200);
    drop(idle);
    child.kill().unwrap();
    child.wait().unwrap();
    let log = rest.join().unwrap();
    assert!(!log.iter().any(|line| line.contains("no connection taken")), "{log:?}");
}
