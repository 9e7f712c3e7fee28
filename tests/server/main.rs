//! The server, driven from outside: the real binary on the demo pair, asked by clients that were not written for it.

mod answers;
mod bench;
mod clients;
mod guided;
mod hostile;
mod limits;
mod load;
mod log;
mod logprobs;
mod lost;
mod one_model;
mod openai;
mod operations;
mod prompts;
mod rewards;
mod searches;
mod strangers;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A server of its own.
struct Server {
    child: Child,
    /// `http://address`.
    base: String,
    log: Arc<Mutex<String>>,
}

/// The address in a line that tells it, of a log in text or in JSON.
fn listening(line: &str) -> Option<String> {
    let (_, address) = line.split_once("listening on ")?;
    Some(address.trim_end().split('"').next()?.to_string())
}

/// A status, headers and what came with them.
struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The body of a request that was answered.
    #[track_caller]
    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// The message of an error of this status and about this field.
    #[track_caller]
    fn refused(&self, status: u16, param: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert!(error["type"].is_string() && error["code"].is_null() | error["code"].is_string(), "{error}");
        error["message"].as_str().expect("a message").to_string()
    }

    /// The frames of a stream, which must end as streams do.
    #[track_caller]
    fn frames(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        let mut data = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect::<Vec<&str>>();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|frame| serde_json::from_str(frame).expect("a frame of JSON")).collect()
    }
}

/// A request's body.
fn story(model: &str, more: Value) -> Value {
    let mut body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": "Tell me a story about a box." }],
        "temperature": 0,
        "max_tokens": 40,
    });
    merge(&mut body, more);
    body
}

/// A request that takes many seconds.
fn endless(stream: bool) -> Value {
    story("demo", json!({ "n": 64, "temperature": 1, "max_tokens": 450, "ignore_eos": true, "stream": stream }))
}

fn merge(body: &mut Value, more: Value) {
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
}

impl Server {
    /// Starts one and waits until it is ready.
    fn start(args: &[&str]) -> Server {
        let server = Server::spawn(args, &[]);
        server.wait_ready();
        server
    }

    /// Starts one and waits until it listens.
    fn spawn(args: &[&str], variables: &[(&str, &str)]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ggro"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("GGRO_") {
                command.env_remove(name);
            }
        }
        command.args(["serve", "--port", "0", "--device", "cpu"]).args(args).env_remove("RUST_LOG");
        command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("standard error"));
        let (log, mut base) = (Arc::new(Mutex::new(String::new())), None);
        let mut line = String::new();
        while base.is_none() && lines.read_line(&mut line).expect("a line") > 0 {
            base = listening(&line);
            log.lock().unwrap().push_str(&line);
            line.clear();
        }
        let Some(base) = base else { panic!("it does not listen: {}", log.lock().unwrap()) };
        let shared = log.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                shared.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Server { child, base, log }
    }

    fn wait_ready(&self) {
        self.wait("it is ready", |server| server.get("/ready").status == 200);
    }

    /// Waits until something holds.
    #[track_caller]
    fn wait(&self, what: &str, holds: impl Fn(&Server) -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !holds(self) {
            assert!(Instant::now() < until, "waited in vain until {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it has written something.
    #[track_caller]
    fn logged(&self, part: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.log().contains(part) {
            assert!(Instant::now() < until, "{part:?} is not in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has written so far.
    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Host and port.
    fn address(&self) -> &str {
        self.base.strip_prefix("http://").expect("http")
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], None)
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(path, &[], body.to_string().as_bytes())
    }

    fn chat(&self, body: &Value) -> Answer {
        self.post("/v1/chat/completions", body)
    }

    fn complete(&self, body: &Value) -> Answer {
        self.post("/v1/completions", body)
    }

    fn send(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.request("POST", path, headers, Some(body))
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .build()
            .into();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        request = request.header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = match body {
            Some(body) => agent.run(request.body(body.to_vec()).expect("a request")),
            None => agent.run(request.body(()).expect("a request")),
        };
        let response = response.unwrap_or_else(|e| panic!("{method} {path}: {e}\n{}", self.log()));
        let (parts, body) = response.into_parts();
        let mut text = String::new();
        body.into_reader().read_to_string(&mut text).expect("a body of text");
        Answer { status: parts.status.as_u16(), headers: parts.headers, body: text }
    }

    /// A line of the metrics, without its `ggro_` and its model's name.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let labelled = match name.split_once('{') {
            Some((name, labels)) => format!("ggro_{name}{{model_name=\"demo\",{labels}"),
            None => format!("ggro_{name}{{model_name=\"demo\"}}"),
        };
        let line = text.lines().find_map(|line| line.strip_prefix(&labelled));
        line.map_or(0.0, |value| value.trim().parse().expect("a number"))
    }

    /// Number of its process.
    fn process(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// Waits for its end.
    fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        assert!(std::thread::panicking() || !log.contains("panicked"), "{log}");
    }
}
