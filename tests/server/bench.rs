//! `ggro bench serve` against the server, and against one that breaks off.

use crate::Server;
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ggro")).args(["bench", "serve"]).args(args).output().expect("the binary runs")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn closed_and_open_loops_count_alike() {
    let server = Server::start(&[]);
    let common = ["--base-url", &server.base, "--num-prompts", "24", "--max-tokens", "12", "--ignore-eos", "--json"];
    let run = |more: &[&str]| json(&bench(&[&common[..], more].concat()));
    let closed = run(&["--max-concurrency", "6", "--detailed", "--goodput", "e2el:60000", "ttft:60000"]);
    let open = run(&["--request-rate", "200", "--max-concurrency", "100"]);
    let guided =
        run(&["--model", "demo:ggro", "--completions", "--extra-body", "{\"ggro\": {\"num_refinement_steps\": 2}}"]);
    for result in [&closed, &open, &guided] {
        assert_eq!((&result["completed"], &result["failed"]), (&24.into(), &0.into()));
        let [ttft, e2el] = ["ttft", "e2el"].map(|name| result[format!("median_{name}_ms")].as_f64().unwrap());
        assert!(0.0 < ttft && ttft <= e2el, "{result}");
        let throughput = result["output_throughput"].as_f64().unwrap() * result["duration"].as_f64().unwrap();
        assert!((throughput - result["total_output_tokens"].as_f64().unwrap()).abs() < 1e-6);
        for name in ["request_throughput", "total_token_throughput", "mean_tpot_ms", "p99_itl_ms", "std_e2el_ms"] {
            assert!(result[name].is_number(), "{name}");
        }
    }
    for result in [&closed, &open] {
        assert_eq!(result["total_output_tokens"], 24 * 12);
    }
    // The answers do not depend on how they are asked for.
    assert_eq!(closed["texts_sha256"], open["texts_sha256"]);
    assert_eq!((&closed["request_rate"], &open["request_rate"]), (&"inf".into(), &200.0.into()));
    let goodput = closed["request_goodput"].as_f64().unwrap();
    assert!((goodput - closed["request_throughput"].as_f64().unwrap()).abs() < 1e-9);
    assert!(open["request_goodput"].is_null());
    for name in ["ttfts", "itls", "e2els", "input_lens", "output_lens", "generated_texts", "errors", "start_times"] {
        assert_eq!(closed[name].as_array().unwrap().len(), 24, "{name}");
    }
    assert!(closed["errors"].as_array().unwrap().iter().all(Value::is_null));

    let lines = bench(&["--base-url", &format!("{}/v1/", server.base), "--num-prompts", "4", "--max-tokens", "4"]);
    let text = String::from_utf8_lossy(&lines.stdout).into_owned();
    assert!(text.contains("answers     4 of 4") && text.contains("ttft mean"), "{text}");
}

#[test]
fn servers_that_cannot_be_measured() {
    let refused = |args: &[&str], part: &str| {
        let output = bench(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(part), "{args:?}: {error}");
    };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    refused(&["--base-url", &format!("http://{nobody}")], "/v1/models");
    refused(&["--goodput", "speed:3"], "ttft:MS");
    refused(&["--extra-body", "[1]"], "a JSON object");
    refused(&["--request-rate", "0"], "above 0");
    refused(&["--percentiles", "101"], "a percentile");
    let server = Server::start(&["--api-key", "k"]);
    refused(&["--base-url", &server.base], "401");
    refused(&["--base-url", &server.base, "--api-key", "k", "--model", "gpt-4"], "does not exist");
}

#[test]
fn an_answer_that_breaks_off_is_counted() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            let mut some = [0; 4096];
            while !seen.ends_with(b"}") {
                let read = stream.read(&mut some).unwrap();
                seen.extend_from_slice(&some[..read]);
            }
            let frame = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
            // The second one is cut.
            let end = if number == 1 { "" } else { "data: [DONE]\n\n" };
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{frame}{end}");
        }
    });
    let common = [
        "--base-url",
        &base,
        "--model",
        "m",
        "--num-warmups",
        "0",
        "--max-concurrency",
        "1",
        "--json",
        "--detailed",
        "--allow-failures",
    ];
    let result = json(&bench(&[&common[..], &["--num-prompts", "3"]].concat()));
    assert_eq!((&result["completed"], &result["failed"]), (&2.into(), &1.into()));
    // Without usage the pieces are counted.
    assert_eq!(result["total_output_tokens"], 2);
    assert!(
        result["errors"].as_array().unwrap().iter().any(|error| error.as_str().is_some_and(|e| e.contains("[DONE]")))
    );
}
