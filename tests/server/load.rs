//! Many clients at once: the same answers as alone, and nothing left behind.

use crate::{Server, merge, story};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A request of some kind, by its number.
fn request(number: usize) -> Value {
    let model = ["demo", "demo:ggro", "demo", "demo:bon-2", "demo:blockwise"][number % 5];
    let mut body = story(model, json!({ "max_tokens": 12 + number % 9, "seed": number }));
    body["messages"][0]["content"] =
        json!(format!("Tell me a story about {} {}.", number % 7, ["a dog", "a box"][number % 2]));
    if !number.is_multiple_of(5) {
        merge(&mut body, json!({ "temperature": 1 }));
    }
    body
}

#[test]
fn the_same_answer_alone_and_under_load() {
    let server = Server::start(&[]);
    let numbers: Vec<usize> = (0..24).collect();
    let alone: Vec<Value> = numbers.iter().map(|&number| server.chat(&request(number)).ok()).collect();
    let together = std::thread::scope(|scope| {
        let ask = |number: usize| server.chat(&request(number)).ok();
        let threads: Vec<_> = numbers.iter().map(|&number| scope.spawn(move || ask(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<Value>>()
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone["choices"], together["choices"]);
        assert_eq!(alone["ggro"], together["ggro"]);
    }
}

/// Resident memory of a process, in bytes.
fn memory(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() << 10
}

/// How a client fared.
enum Fate {
    Answered(String),
    Left,
}

/// Asks, and goes away after some lines if it is one of those.
fn client(server: &Server, number: usize, stream: bool, leave_after: Option<usize>) -> Fate {
    let mut body = request(number);
    merge(&mut body, json!({ "stream": stream }));
    let body = body.to_string();
    let mut connection = TcpStream::connect(server.address()).expect("a connection");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    write!(connection, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let mut lines = BufReader::new(connection).lines();
    let mut text = String::new();
    let mut read = 0;
    loop {
        if leave_after == Some(read) {
            return Fate::Left;
        }
        let Some(Ok(line)) = lines.next() else { break };
        read += 1;
        if let Some(data) = line.strip_prefix("data: ")
            && let Ok(frame) = serde_json::from_str::<Value>(data)
        {
            assert!(frame["error"].is_null(), "{frame}");
            text += frame["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        } else if let Ok(whole) = serde_json::from_str::<Value>(&line) {
            assert!(whole["error"].is_null(), "{whole}");
            text += whole["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        }
    }
    Fate::Answered(text)
}

const CLIENTS: usize = 200;

/// Lets all of them ask at once. How many were answered, and how many went away.
fn storm(server: &Server, expected: &[String]) -> (usize, usize) {
    let (answered, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (answered, left) = (&answered, &left);
            scope.spawn(move || {
                // Every fifth waits for the whole answer; those who go do so sooner or later.
                let (stream, goes) = (!number.is_multiple_of(5), number / 8 % 2 == 1);
                match client(server, number % 8, stream, goes.then_some(number * 7 % 14)) {
                    Fate::Answered(text) => {
                        assert_eq!(text, expected[number % 8], "client {number}");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Fate::Left => {
                        left.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    server.wait("nothing runs", |server| {
        server.metric("num_requests_running") == 0.0 && server.metric("num_requests_waiting") == 0.0
    });
    (answered.into_inner(), left.into_inner())
}

#[test]
fn two_hundred_clients_of_whom_half_go_away() {
    let server = Server::start(&["--max-requests", "64"]);
    let expected: Vec<String> = (0..8)
        .map(|number| {
            let answer = server.chat(&request(number)).ok();
            answer["choices"][0]["message"]["content"].as_str().unwrap().to_string()
        })
        .collect();
    // Threads, arenas of the allocator and kept prompts are there after a first time; a second one adds nothing to them.
    let begun = memory(&server);
    storm(&server, &expected);
    let usage = || ["policy", "reward"].map(|model| server.metric(&format!("kv_blocks_in_use{{model=\"{model}\"}}")));
    let (before, held) = (memory(&server), usage());
    let started = Instant::now();
    let (answered, left) = storm(&server, &expected);
    let seconds = started.elapsed().as_secs_f64();
    assert!(answered >= CLIENTS / 2 && left >= CLIENTS / 4, "{answered} answered, {left} left");
    let grown = memory(&server).saturating_sub(before);
    println!(
        "{answered} answered and {left} gone in {seconds:.1} s; memory grew by {:.1} MB, and by {:.1} MB the first time",
        grown as f64 / 1e6,
        before.saturating_sub(begun) as f64 / 1e6
    );
    assert!(grown < 24 << 20, "memory grew by {grown} bytes");
    // These prompts are shorter than a block, so none is kept.
    assert_eq!([held, usage()], [[0.0; 2]; 2], "blocks were left behind");
    assert!(server.get("/metrics").body.contains("ggro_kv_blocks_in_use{"));
}

#[test]
fn two_thousand_mixed_requests_leave_nothing_behind() {
    const REQUESTS: usize = 2000;
    const KINDS: usize = 12;
    let server = Server::start(&["--max-requests", "24"]);
    let (next, unread) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let ask = |number: usize| match number % KINDS {
        4 => drop(server.chat(&story("demo:ggro", json!({ "max_tokens": 8, "stream": true }))).frames()),
        5 => drop(server.post("/classify", &json!({ "input": ["a", "b c"] })).ok()),
        6 => drop(server.post("/rerank", &json!({ "query": "q", "documents": ["a", "b c"] })).ok()),
        // It goes away in the middle of its answer, or before it has begun.
        kind @ 7..=8 => {
            let body = story("demo", json!({ "max_tokens": 300, "ignore_eos": true, "stream": kind == 7 })).to_string();
            let mut stream = TcpStream::connect(server.address()).unwrap();
            let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n";
            write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            match kind {
                7 => drop(BufReader::new(stream).lines().nth(8)),
                _ => {
                    unread.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(number as u64 % 7));
                }
            }
        }
        9 => drop(server.chat(&story("demo", json!({ "bad_words": ["a"] }))).refused(400, Some("bad_words"))),
        10 => drop(server.complete(&json!({ "prompt": "w ".repeat(4000) })).refused(400, Some("prompt"))),
        11 => drop(server.chat(&story("nobody", json!({}))).refused(404, Some("model"))),
        kind => drop(server.chat(&story("demo", json!({ "max_tokens": 4, "n": kind + 1, "temperature": 1 }))).ok()),
    };
    let storm = |until: usize| {
        std::thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| {
                    let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
                    numbers.take_while(|&number| number < until).for_each(&ask);
                });
            }
        });
        next.store(until, Ordering::Relaxed);
        server.wait("nothing runs", |server| server.metric("num_requests_running") == 0.0);
        memory(&server)
    };
    // Threads, arenas of the allocator and kept prompts are there after the first ones.
    let (begun, started) = (storm(REQUESTS / 4), Instant::now());
    let grown = storm(REQUESTS).saturating_sub(begun);
    println!("{:.1} s; memory grew by {:.1} MB", started.elapsed().as_secs_f64(), grown as f64 / 1e6);
    assert!(grown < 24 << 20, "memory grew by {grown} bytes");

    let of = |kinds: &[usize]| (0..REQUESTS).filter(|number| kinds.contains(&(number % KINDS))).count() as f64;
    let unread = unread.into_inner() as f64;
    let (answered, aborted) =
        (server.metric("e2e_request_latency_seconds_count"), server.metric("request_aborted_total"));
    let asked = of(&[0, 1, 2, 3, 4, 7, 8]);
    // Who left before the request was read was never counted.
    assert!((asked - unread..=asked).contains(&(answered + aborted)), "{answered} + {aborted} of {asked}");
    assert!(answered >= of(&[0, 1, 2, 3, 4]) && aborted > 0.0);
    assert_eq!(server.metric("request_failure_total{status=\"400\"}"), of(&[9, 10]));
    assert_eq!(server.metric("request_failure_total{status=\"404\"}"), of(&[11]));
    let http = |route: &str, status: &str| {
        server.metric(&format!("http_requests_total{{route=\"{route}\",status=\"{status}\"}}"))
    };
    assert_eq!([http("/classify", "200"), http("/rerank", "200")], [of(&[5]), of(&[6])]);
    assert_eq!([http("/v1/chat/completions", "400"), http("/v1/completions", "400")], [of(&[9]), of(&[10])]);
    for model in ["policy", "reward"] {
        assert_eq!(server.metric(&format!("kv_blocks_in_use{{model=\"{model}\"}}")), 0.0, "{model}");
    }
}
