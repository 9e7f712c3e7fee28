//! A server under load, as its clients see it: any server that speaks OpenAI's API.
//!
//! A *closed loop* has so many clients, each of which asks again when it was answered; an *open loop* has requests that arrive by
//! a Poisson process, whether or not others were answered. Every answer is streamed and timed on the client's side:
//!
//! * time to first token (TTFT): from sending the request to the first text, which is a whole segment where the method answers;
//! * time per output token (TPOT): from there to the end, divided by the tokens but the first;
//! * inter-token latency (ITL): between two pieces of text (of the method: segments, so compare TPOT across servers, not ITL);
//! * end-to-end latency (E2EL): from sending the request to the last piece.
//!
//! Fields of [`Summary`] are named as `vllm bench serve` names those of its JSON, so that tools which read one read the other.

use crate::files::json::in_line;
use crate::rng::Uniforms;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest line of a stream, in bytes: a server that never ends one would fill the memory.
const LONGEST_LINE: usize = 4 << 20;
/// Longest answer, in bytes.
const LONGEST_ANSWER: usize = 256 << 20;
/// What is read of an answer that says what is wrong.
const OF_A_REFUSAL: u64 = 64 << 10;

/// What is asked, and how often.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the server is, without `/v1`.
    pub base_url: String,
    /// A key, if it needs one.
    pub api_key: Option<String>,
    /// The model's name.
    pub model: String,
    /// Whether prompts are sent as messages of a user, or as texts to be completed.
    pub chat: bool,
    /// Prompts; request `i` has prompt `i` modulo their number.
    pub prompts: Vec<String>,
    /// Requests that are measured.
    pub requests: usize,
    /// Requests before them, which are not.
    pub warmup: usize,
    /// Requests per second of an open loop; `None`: a closed loop.
    pub rate: Option<f64>,
    /// Requests in flight, at most.
    pub concurrency: usize,
    /// New tokens of an answer.
    pub max_tokens: usize,
    /// Whether answers have exactly that many.
    pub ignore_eos: bool,
    /// Other fields of every request.
    pub extra: Map<String, Value>,
    /// Of the arrivals.
    pub seed: u64,
    /// Until a request is given up.
    pub timeout: Duration,
}

/// One request, as its client saw it. Times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// When it was sent, after the first one.
    pub start: f64,
    /// Until the first text; `None` where there was no text.
    pub ttft: Option<f64>,
    /// Until the last text, or the end where there was none.
    pub e2el: f64,
    /// Between texts.
    pub itl: Vec<f64>,
    /// As the server counts them.
    pub input_tokens: usize,
    /// As the server counts them, else pieces.
    pub output_tokens: usize,
    /// Whether pieces were counted, because the server did not say.
    pub counted: bool,
    /// What was answered.
    pub text: String,
    /// Why it was not.
    pub error: Option<String>,
}

impl Measured {
    /// Seconds per token but the first; `None` where there is no second one.
    pub fn tpot(&self) -> Option<f64> {
        let ttft = self.ttft.filter(|_| self.output_tokens > 1)?;
        Some((self.e2el - ttft) / (self.output_tokens - 1) as f64)
    }
}

/// A latency that a good answer stays below, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// Which one.
    pub metric: Metric,
    /// At most.
    pub ms: f64,
}

/// A latency of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Time to first token.
    Ttft,
    /// Time per output token.
    Tpot,
    /// End-to-end latency.
    E2el,
}

impl std::str::FromStr for Goal {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Goal, String> {
        let parsed = text.split_once(':').and_then(|(name, ms)| {
            let metric = match name {
                "ttft" => Metric::Ttft,
                "tpot" => Metric::Tpot,
                "e2el" => Metric::E2el,
                _ => return None,
            };
            let ms = ms.parse::<f64>().ok().filter(|ms| ms.is_finite() && *ms > 0.0)?;
            Some(Goal { metric, ms })
        });
        parsed.ok_or_else(|| format!("expected ttft:MS, tpot:MS or e2el:MS, not {text}"))
    }
}

/// A load in numbers. Latencies in milliseconds, rates per second.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The model's name.
    pub model_id: String,
    /// Requests that were measured.
    pub num_prompts: usize,
    /// Requests per second that arrived; `inf` of a closed loop.
    pub request_rate: Value,
    /// Requests in flight, at most.
    pub max_concurrency: usize,
    /// Seconds from the first request to the last answer.
    pub duration: f64,
    /// Requests that were answered.
    pub completed: usize,
    /// Requests that were not.
    pub failed: usize,
    /// Answers of which the server did not say the tokens: those of the prompt are missing, and pieces were counted.
    pub without_usage: usize,
    /// Tokens of their prompts.
    pub total_input_tokens: usize,
    /// Tokens of the answers.
    pub total_output_tokens: usize,
    /// Answers per second.
    pub request_throughput: f64,
    /// Answers per second that met all goals; `null` without goals.
    #[serde(rename = "request_goodput")]
    pub goodput: Option<f64>,
    /// Tokens of answers per second.
    pub output_throughput: f64,
    /// Tokens of prompts and answers per second.
    pub total_token_throughput: f64,
    /// `mean_ttft_ms`, `median_tpot_ms`, `p99_e2el_ms` and so on; `None` where nothing has such a latency.
    #[serde(flatten)]
    pub latencies: BTreeMap<String, Option<f64>>,
    /// Of all texts, in the order of the requests; the same where answers are.
    pub texts_sha256: String,
}

/// Sends the load and waits for its end; `done` is told of each request.
///
/// # Errors
/// The server cannot be reached, or knows no such model; failures of single requests are counted.
pub fn run(load: &Load, done: &(dyn Fn(&Measured) + Sync)) -> Result<Vec<Measured>> {
    if load.prompts.is_empty() || load.requests == 0 {
        return Err(Error::invalid("a load needs a prompt and a request"));
    }
    let first = ask(load, 0, Instant::now());
    if let Some(error) = first.error {
        return Err(Error::invalid(format!("{}: {error}", load.base_url)));
    }
    let warmup = Load { requests: load.warmup, rate: None, ..load.clone() };
    closed(&warmup, Instant::now(), &|_| ());
    let started = Instant::now();
    Ok(match load.rate {
        None => closed(load, started, done),
        Some(rate) => open(load, rate, started, done),
    })
}

/// So many clients, each of which asks again when it was answered.
fn closed(load: &Load, started: Instant, done: &(dyn Fn(&Measured) + Sync)) -> Vec<Measured> {
    let (next, all) = (AtomicUsize::new(0), Mutex::new(vec![Measured::default(); load.requests]));
    let client = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= load.requests {
                return;
            }
            keep(&all, number, ask(load, number, started), done);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..load.concurrency.clamp(1, load.requests.max(1)) {
            scope.spawn(client);
        }
    });
    all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Requests that arrive when they arrive.
fn open(load: &Load, rate: f64, started: Instant, done: &(dyn Fn(&Measured) + Sync)) -> Vec<Measured> {
    let all = Mutex::new(vec![Measured::default(); load.requests]);
    let in_flight = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let mut due = Duration::ZERO;
        for number in 0..load.requests {
            // Gaps of a Poisson process are exponential.
            let u = Uniforms::Seeded(load.seed).nth(number).unwrap_or(0.5);
            due += Duration::from_secs_f64((-(1.0 - u).ln() / rate).min(3600.0));
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            while in_flight.load(Ordering::Acquire) >= load.concurrency {
                std::thread::sleep(Duration::from_micros(200));
            }
            in_flight.fetch_add(1, Ordering::AcqRel);
            let (all, in_flight) = (&all, &in_flight);
            scope.spawn(move || {
                keep(all, number, ask(load, number, started), done);
                in_flight.fetch_sub(1, Ordering::AcqRel);
            });
        }
    });
    all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn keep(all: &Mutex<Vec<Measured>>, number: usize, measured: Measured, done: &(dyn Fn(&Measured) + Sync)) {
    done(&measured);
    let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(place) = all.get_mut(number) {
        *place = measured;
    }
}

/// One request, streamed.
fn ask(load: &Load, number: usize, started: Instant) -> Measured {
    let sent = Instant::now();
    let mut measured = Measured { start: (sent - started).as_secs_f64(), ..Measured::default() };
    let outcome = stream(load, number, sent, &mut measured);
    measured.error = outcome.err();
    measured
}

fn body_of(load: &Load, number: usize) -> Value {
    let prompt = &load.prompts[number % load.prompts.len()];
    let mut body = json!({
        "model": load.model,
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    if load.chat {
        body["messages"] = json!([{ "role": "user", "content": prompt }]);
    } else {
        body["prompt"] = json!(prompt);
    }
    if load.ignore_eos {
        body["ignore_eos"] = json!(true);
    }
    for (name, value) in &load.extra {
        body[name] = value.clone();
    }
    body
}

fn stream(load: &Load, number: usize, sent: Instant, measured: &mut Measured) -> std::result::Result<(), String> {
    let agent = agent(load.timeout);
    let path = if load.chat { "/v1/chat/completions" } else { "/v1/completions" };
    let mut request = agent.post(format!("{}{path}", load.base_url)).header("content-type", "application/json");
    if let Some(key) = &load.api_key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = request.send(body_of(load, number).to_string()).map_err(|e| in_words(&e, load.timeout))?;
    let status = response.status();
    let mut reader = BufReader::new(response.into_body().into_reader());
    if !status.is_success() {
        let mut text = Vec::new();
        // What was read of it is better than nothing.
        let _ = reader.take(OF_A_REFUSAL).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
        return Err(format!("{status}: {}", text.chars().take(300).collect::<String>()));
    }
    let (mut last, mut pieces, mut ended, mut read) = (None, 0, false, 0);
    while let Some(line) = next_line(&mut reader, load.timeout)? {
        read += line.len();
        if read > LONGEST_ANSWER {
            return Err(format!("the answer is longer than {LONGEST_ANSWER} bytes"));
        }
        let Some(data) = line.trim_start_matches('\u{feff}').strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            ended = true;
            break;
        }
        let frame: Value =
            serde_json::from_str(data).map_err(|e| format!("a frame that is not JSON: {}", in_line(&e)))?;
        if let Some(error) = frame.get("error").filter(|error| !error.is_null()) {
            return Err(error.get("message").and_then(Value::as_str).unwrap_or("an error").to_string());
        }
        if let Some(usage) = frame.get("usage").filter(|usage| usage.is_object()) {
            let count = |name: &str| usage.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
            measured.input_tokens = count("prompt_tokens").unwrap_or(0);
            measured.output_tokens = count("completion_tokens").unwrap_or(0);
            measured.counted = false;
        }
        let choice = &frame["choices"][0];
        let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
        if piece.is_empty() {
            continue;
        }
        let now = Instant::now();
        match last.replace(now) {
            None => measured.ttft = Some((now - sent).as_secs_f64()),
            Some(before) => measured.itl.push((now - before).as_secs_f64()),
        }
        measured.e2el = (now - sent).as_secs_f64();
        measured.text += piece;
        pieces += 1;
    }
    if !ended {
        return Err("the stream ended without [DONE]".to_string());
    }
    if measured.ttft.is_none() {
        measured.e2el = sent.elapsed().as_secs_f64();
        // Tokens without a text, such as the end of turn alone, are an answer; nothing at all is none.
        if measured.output_tokens == 0 {
            return Err("the answer has no text and no tokens".to_string());
        }
    }
    if measured.output_tokens == 0 {
        (measured.output_tokens, measured.counted) = (pieces, true);
    }
    Ok(())
}

fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(timeout)).build().into()
}

/// The next line of a stream, without its end; `None` at the end of the stream.
fn next_line(reader: &mut impl BufRead, timeout: Duration) -> std::result::Result<Option<String>, String> {
    let mut line = Vec::new();
    let read = reader.by_ref().take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut line);
    read.map_err(|e| match e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(error) => in_words(error, timeout),
        None => format!("the answer broke off: {e}"),
    })?;
    if line.len() > LONGEST_LINE {
        return Err(format!("a line of the answer is longer than {LONGEST_LINE} bytes"));
    }
    let end = line.trim_ascii_end().len();
    let empty = line.is_empty();
    line.truncate(end);
    let line = String::from_utf8(line).map_err(|_| "a line of the answer is not UTF-8".to_string())?;
    Ok((!empty).then_some(line))
}

/// An error of the connection as a sentence.
fn in_words(error: &ureq::Error, timeout: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("no whole answer within {} s, the timeout", timeout.as_secs_f64()),
        ureq::Error::Io(error) => format!("the connection failed: {error}"),
        ureq::Error::HostNotFound => "the host is not known".to_string(),
        error => error.to_string(),
    }
}

/// The load in numbers, with these percentiles.
pub fn summary(load: &Load, all: &[Measured], goals: &[Goal], percentiles: &[f64]) -> Summary {
    use sha2::Digest;
    let answered: Vec<&Measured> = all.iter().filter(|one| one.error.is_none()).collect();
    let duration = all.iter().map(|one| one.start + one.e2el).fold(0.0, f64::max);
    let rate = |count: f64| if duration > 0.0 { count / duration } else { 0.0 };
    let input: usize = answered.iter().map(|one| one.input_tokens).sum();
    let output: usize = answered.iter().map(|one| one.output_tokens).sum();
    let meets = |one: &&&Measured| {
        goals.iter().all(|goal| {
            let seconds = match goal.metric {
                Metric::Ttft => one.ttft,
                // An answer of one token has none to be too slow.
                Metric::Tpot => one.tpot().or(one.ttft.map(|_| 0.0)),
                Metric::E2el => one.ttft.map(|_| one.e2el),
            };
            // Without a text nothing was good.
            seconds.is_some_and(|seconds| 1e3 * seconds <= goal.ms)
        })
    };
    let good = answered.iter().filter(meets).count();
    let mut latencies = BTreeMap::new();
    let mut add = |name: &str, values: Vec<f64>| {
        for (key, value) in statistics(values, percentiles) {
            latencies.insert(format!("{key}_{name}_ms"), value.map(|value| 1e3 * value));
        }
    };
    add("ttft", answered.iter().filter_map(|one| one.ttft).collect());
    add("tpot", answered.iter().filter_map(|one| one.tpot()).collect());
    add("itl", answered.iter().flat_map(|one| one.itl.iter().copied()).collect());
    add("e2el", answered.iter().map(|one| one.e2el).collect());
    let mut hash = sha2::Sha256::new();
    for one in all {
        hash.update(one.text.as_bytes());
        hash.update([0]);
    }
    Summary {
        model_id: load.model.clone(),
        num_prompts: all.len(),
        request_rate: load.rate.map_or(json!("inf"), |rate| json!(rate)),
        max_concurrency: load.concurrency,
        duration,
        completed: answered.len(),
        failed: all.len() - answered.len(),
        without_usage: answered.iter().filter(|one| one.counted).count(),
        total_input_tokens: input,
        total_output_tokens: output,
        request_throughput: rate(answered.len() as f64),
        goodput: (!goals.is_empty()).then(|| rate(good as f64)),
        output_throughput: rate(output as f64),
        total_token_throughput: rate((input + output) as f64),
        latencies,
        texts_sha256: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// Mean, median, standard deviation and percentiles (nearest rank); `None` without values.
fn statistics(mut values: Vec<f64>, percentiles: &[f64]) -> Vec<(String, Option<f64>)> {
    values.sort_by(f64::total_cmp);
    let (any, count) = (!values.is_empty(), values.len().max(1) as f64);
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    let at = |percent: f64| {
        let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
        values.get(rank.clamp(1, values.len().max(1)) - 1).copied()
    };
    let fixed = [("mean", any.then_some(mean)), ("median", at(50.0)), ("std", any.then_some(variance.sqrt()))];
    let fixed = fixed.into_iter().map(|(name, value)| (name.to_string(), value));
    fixed.chain(percentiles.iter().map(|&percent| (format!("p{percent}"), at(percent)))).collect()
}

/// The first model that a server lists.
///
/// # Errors
/// It cannot be reached, or lists none.
pub fn first_model(base_url: &str, api_key: Option<&str>, timeout: Duration) -> Result<String> {
    let fail = |why: &dyn std::fmt::Display| Error::invalid(format!("{base_url}/v1/models: {why}"));
    let mut request = agent(timeout).get(format!("{base_url}/v1/models"));
    if let Some(key) = api_key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let mut response = request.call().map_err(|e| fail(&in_words(&e, timeout)))?;
    if !response.status().is_success() {
        return Err(fail(&response.status()));
    }
    // At most 10 MB are read.
    let text = response.body_mut().read_to_string().map_err(|e| fail(&in_words(&e, timeout)))?;
    let models: Value = serde_json::from_str(&text).map_err(|e| fail(&format!("expected JSON: {e}")))?;
    models["data"][0]["id"].as_str().map(str::to_string).ok_or_else(|| fail(&"lists no model"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load {
            base_url: String::new(),
            api_key: None,
            model: "m".to_string(),
            chat: true,
            prompts: vec!["p".to_string()],
            requests: 4,
            warmup: 0,
            rate: None,
            concurrency: 2,
            max_tokens: 8,
            ignore_eos: false,
            extra: Map::new(),
            seed: 0,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn numbers_by_hand() {
        let one = |start: f64, ttft: f64, e2el: f64, tokens: usize| Measured {
            start,
            ttft: Some(ttft),
            e2el,
            itl: vec![0.1],
            input_tokens: 10,
            output_tokens: tokens,
            ..Measured::default()
        };
        let failed = Measured { error: Some("no".to_string()), ..Measured::default() };
        let all = [one(0.0, 0.1, 1.1, 11), one(0.5, 0.2, 0.7, 6), one(1.0, 0.3, 0.3, 1), failed];
        let goals: Vec<Goal> = ["ttft:250", "tpot:100"].map(|goal| goal.parse().unwrap()).to_vec();
        let summary = summary(&load(), &all, &goals, &[50.0, 99.0]);
        assert_eq!((summary.completed, summary.failed, summary.num_prompts), (3, 1, 4));
        assert!((summary.duration - 1.3).abs() < 1e-12);
        assert_eq!((summary.total_input_tokens, summary.total_output_tokens), (30, 18));
        assert!((summary.goodput.unwrap() - 2.0 / 1.3).abs() < 1e-12);
        let close = |name: &str, expected: f64| {
            let found = summary.latencies[name].unwrap();
            assert!((found - expected).abs() < 1e-9, "{name}: {found}");
        };
        close("mean_ttft_ms", 200.0);
        close("median_ttft_ms", 200.0);
        close("p99_ttft_ms", 300.0);
        // The answer of one token has none.
        close("mean_tpot_ms", 100.0);
        close("median_e2el_ms", 700.0);
        let json = serde_json::to_value(&summary).unwrap();
        assert!(json["p50_itl_ms"].is_number() && json["request_rate"] == "inf");
    }

    #[test]
    fn nothing_has_no_mean_and_is_not_good() {
        // Tokens, and no text of them.
        let silent = Measured { e2el: 0.1, output_tokens: 1, ..Measured::default() };
        let goals: Vec<Goal> = ["ttft:250", "tpot:100", "e2el:1000"].map(|goal| goal.parse().unwrap()).to_vec();
        let summary = summary(&load(), std::slice::from_ref(&silent), &goals, &[99.0]);
        assert_eq!((summary.completed, summary.goodput), (1, Some(0.0)));
        for name in ["mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "std_ttft_ms"] {
            assert_eq!(summary.latencies[name], None, "{name}");
        }
        assert!(serde_json::to_value(&summary).unwrap()["mean_ttft_ms"].is_null());
        assert_eq!(silent.tpot(), None);
    }

    #[test]
    fn lines_have_an_end() {
        let second = Duration::from_secs(1);
        let mut lines = BufReader::new(&b"one\r\n\nlast"[..]);
        let mut next = || next_line(&mut lines, second).unwrap();
        assert_eq!(
            [next(), next(), next(), next()],
            [Some("one".into()), Some(String::new()), Some("last".into()), None]
        );
        let error = next_line(&mut BufReader::new(std::io::repeat(b'x')), second).unwrap_err();
        assert!(error.contains("longer than 4194304 bytes"), "{error}");
        assert!(next_line(&mut &b"\xff\n"[..], second).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn goals() {
        assert_eq!("e2el:5000".parse(), Ok(Goal { metric: Metric::E2el, ms: 5000.0 }));
        for wrong in ["e2el", "itl:3", "ttft:-1", "ttft:inf", "ttft:x"] {
            assert!(wrong.parse::<Goal>().unwrap_err().contains("ttft:MS"));
        }
    }
}
