//! The server on the emulated device: chat, the method and gradients through the binary's own kernels, and a drain.

use crate::emulated::ggro;
use ggro_emulator::Report;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

#[test]
fn a_server_on_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut command = ggro(&report);
    command.args(["serve", "--port", "0", "--max-model-len", "128"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = |line: String| Some(line.split_once("listening on ")?.1.split('"').next()?.to_string());
    let base = lines.find_map(address).expect("it listens");
    let device = lines.find(|line| line.contains("device: cuda:0")).expect("a device");
    lines.find(|line| line.contains("\"ready\"")).expect("it is ready");
    println!("{device}");
    // Its log is read on, so that it is never kept waiting.
    let log = std::thread::spawn(move || lines.collect::<Vec<String>>());

    let post = |path: &str, body: Value| -> String {
        let mut answer = ureq::post(format!("{base}{path}")).send(body.to_string()).unwrap();
        let mut text = String::new();
        answer.body_mut().as_reader().read_to_string(&mut text).unwrap();
        text
    };
    let parsed = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let story = |model: &str, stream: bool| {
        json!({ "model": model, "messages": [{ "role": "user", "content": "Hello." }], "max_tokens": 8, "temperature": 0,
            "stream": stream, "ggro": (model != "demo").then(|| json!({ "entropy_threshold": 2.0 })) })
    };
    for model in ["demo", "demo:ggro"] {
        let whole = parsed(&post("/v1/chat/completions", story(model, false)));
        let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(!text.is_empty() && whole["usage"]["completion_tokens"] == 8, "{whole}");
        let streamed = post("/v1/chat/completions", story(model, true));
        let frames = streamed.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        let pieces = frames.map(|data| parsed(data)["choices"][0]["delta"]["content"].as_str().map(str::to_string));
        assert_eq!(pieces.flatten().collect::<String>(), text, "{model}");
    }
    let gradients = parsed(&post(
        "/v1/gradients",
        json!({ "input": "Once upon a time", "start": 2,
        "candidates": [{ "position": 3, "token_ids": [5, 6] }], "return_gradient": true }),
    ));
    let found = &gradients["data"][0];
    assert!(found["reward"].is_number() && found["gradient"]["shape"][1].is_number());
    assert_eq!(found["candidates"][0]["scores"].as_array().map(Vec::len), Some(2));
    let metrics = ureq::get(format!("{base}/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
    let usage =
        metrics.lines().find(|line| line.starts_with("ggro_kv_cache_usage_perc")).expect("a share of the blocks");
    assert!(usage.rsplit(' ').next().unwrap().parse::<f64>().unwrap() < 0.5, "{usage}");

    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log = log.join().unwrap().join("\n");
    assert!(log.contains("draining") && !log.contains("panicked"), "{log}");
    let report: Report = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert!(report.faults.is_empty(), "{:#?}", report.faults);
}
