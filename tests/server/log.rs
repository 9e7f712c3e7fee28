//! The log: it never keeps a request waiting, and it is what its format says.

use crate::{Server, listening, story};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn spawn(args: &[&str], err: impl Into<Stdio>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggro"));
    command.args(["serve", "--device", "cpu"]).args(args).env_remove("RUST_LOG").stderr(err);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the binary starts")
}

/// A port that is free at the moment.
fn port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// Asks until the server answers, then a few times more, and stops it. The exit code.
fn asked_and_stopped(child: &mut Child, port: &str, times: usize) -> Option<i32> {
    let ask = || {
        let body = story("demo", json!({ "max_tokens": 2 })).to_string();
        ureq::post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
            .config()
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .header("content-type", "application/json")
            .send(body)
    };
    let until = Instant::now() + Duration::from_secs(60);
    while ask().is_err() {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "it does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    for _ in 0..times {
        ask().expect("an answer");
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap().code()
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    for format in ["json", "text"] {
        // Nobody reads it any more.
        let port = port();
        let mut child = spawn(&["--port", &port, "--log-format", format], Stdio::piped());
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while listening(&line).is_none() {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0);
        }
        drop(lines);
        assert_eq!(asked_and_stopped(&mut child, &port, 3), Some(0), "{format}: closed");
    }
    // A full disk.
    let port = port();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = spawn(&["--port", &port], full);
    assert_eq!(asked_and_stopped(&mut child, &port, 3), Some(0), "full");
}

#[test]
fn a_reader_that_stalls_keeps_nobody_waiting() {
    let port = port();
    // 64 kB of log fill the pipe: each request writes some 400 bytes.
    let mut child = spawn(&["--port", &port], Stdio::piped());
    let unread = child.stderr.take().unwrap();
    assert_eq!(asked_and_stopped(&mut child, &port, 250), Some(0));
    let text = std::io::read_to_string(unread).unwrap();
    assert!((32 << 10..=80 << 10).contains(&text.len()), "{}", text.len());
}

#[test]
fn a_log_in_json_has_no_other_lines() {
    let mut server = Server::start(&["--log-format", "json", "--drain-timeout", "0.2"]);
    std::thread::scope(|scope| {
        let request = scope.spawn(|| server.chat(&crate::endless(false)));
        server.wait("it runs", |server| server.metric("num_requests_running") == 1.0);
        server.signal("TERM");
        assert_eq!(request.join().unwrap().status, 503);
    });
    assert_eq!(server.ended(), Some(0));
    server.logged("1 request was ended before it was answered");
    let mut events = Vec::new();
    for line in server.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        events.push(line["event"].as_str().expect("an event").to_string());
    }
    for event in ["note", "listening", "ready", "draining", "request"] {
        assert!(events.iter().any(|found| found == event), "{event}: {events:?}");
    }
}

#[test]
fn a_log_that_reaches_the_limit_of_file_sizes_ends_nothing() {
    let (port, dir) = (port(), tempfile::tempdir().unwrap());
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut child = Command::new("bash")
        .args(["-c", "ulimit -f 8; exec \"$0\" serve --device cpu --port \"$1\""])
        .args([env!("CARGO_BIN_EXE_ggro"), &port])
        .stderr(log)
        .spawn()
        .unwrap();
    assert_eq!(asked_and_stopped(&mut child, &port, 60), Some(0));
}

#[test]
fn a_refused_body_is_named_in_the_log() {
    let server = Server::start(&[]);
    let mut connection = std::net::TcpStream::connect(server.address()).unwrap();
    write!(connection, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{{").unwrap();
    server.logged("\"error\":\"body\"");
}
