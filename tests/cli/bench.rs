//! `ggro bench`, on the CPU: that it measures, says so and compares; not how fast.

use super::{Run, command, finish, ggro};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

/// Rows of JSON lines, behind the header.
fn rows(out: &str) -> (Value, Vec<Value>) {
    let mut lines = out.lines().map(|line| serde_json::from_str(line).expect("a JSON object per line"));
    let header: Value = lines.next().expect("a header");
    (header["header"].clone(), lines.collect())
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"))
}

const SIZES: [&str; 10] =
    ["--rows", "1,2", "--context", "8,16", "--prefill", "8", "--candidates", "2", "--segment", "4"];

#[test]
fn passes_of_a_random_pair() {
    let args = [
        "bench",
        "latency",
        "-o",
        "jsonl",
        "--synthetic",
        "demo",
        "--prefix",
        "8",
        "--runs",
        "3",
        "--prefill-batch",
        "1,2",
    ];
    let (header, rows) = rows(&ggro(&[&args[..], &SIZES].concat()).ok().out);
    for name in ["version", "commit", "device", "dtype", "config_hash", "command"] {
        assert!(header[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {header}");
    }
    assert_eq!((&header["device_kind"], &header["kernels"]), (&json!("cpu"), &Value::Null), "{header}");
    assert!(header["command"].as_str().unwrap().starts_with("bench latency"), "{header}");
    assert!(header["models"][0].as_str().unwrap().contains("demo policy (random, seed 0)"), "{header}");
    let limits = [number(&header["limits"], "bytes"), number(&header["limits"], "flops")];
    let phases: Vec<&str> = rows.iter().filter_map(|row| row["phase"].as_str()).collect();
    assert_eq!(phases, ["prefill", "prefill", "decode", "decode", "decode", "decode", "reward", "gradient"]);
    assert_eq!(rows[1]["case"], "2 x 8 tokens");
    for row in &rows {
        let [least, most] = [0, 1].map(|i| row["spread"][i].as_f64().expect("seconds"));
        let seconds = number(row, "seconds");
        assert!(0.0 < least && least <= seconds && seconds <= most && row["runs"] == 3, "{row}");
        assert!(number(row, "processor_seconds") > 0.0, "{row}");
        // Percentages are of the limit that was measured in the same run.
        let cost = &row["cost"];
        let least = (number(cost, "bytes") / limits[0]).max(number(cost, "flops") / limits[1]);
        assert!((number(row, "percent") - 100.0 * least / seconds).abs() < 1e-6, "{row}");
        assert!((number(row, "gigabytes_per_second") - number(cost, "bytes") / seconds / 1e9).abs() < 1e-6);
    }
    let decode = &rows[3];
    assert_eq!((&decode["case"], &decode["rows"]), (&json!("2 rows behind 8"), &json!(2)));
    assert!((number(decode, "committed_tokens_per_second") - 2.0 / number(decode, "seconds")).abs() < 1e-6);
    let bare = ["bench", "latency", "--rows", "1", "--prefill", "4", "--candidates", "1", "--runs", "1", "--no-limits"];
    let table = ggro(&bare).ok();
    assert!(table.out.starts_with("ggro ") && table.out.contains("| decode | 1 rows behind 256 |"), "{}", table.out);
    assert!(!table.out.contains('%') || !table.out.contains("limits:"), "{}", table.out);
}

#[test]
fn passes_that_are_asked_for_with_threads_that_are_asked_for() {
    let bare =
        ["bench", "latency", "-o", "jsonl", "--rows", "1", "--prefill", "4", "--candidates", "1,2", "--runs", "1"];
    let (header, found) =
        rows(&ggro(&[&bare[..], &["--passes", "gradient,prefill", "--threads", "1"]].concat()).ok().out);
    let phases: Vec<&str> = found.iter().filter_map(|row| row["phase"].as_str()).collect();
    assert_eq!((phases, &header["units"]), (vec!["prefill", "gradient", "gradient"], &json!(1)));
    let none = ggro(&[&bare[..], &["--passes", "backward"]].concat());
    assert!(none.code == Some(2) && none.err.contains("backward"), "{}", none.err);
}

/// Another program can have its turn while this one waits, and closes the input when it has seen enough.
#[test]
fn turns_with_another_program() {
    let args =
        ["bench", "latency", "-o", "jsonl", "--no-limits", "--passes", "decode", "--rows", "1", "--context", "4"];
    let mut command = command();
    command.args([&args[..], &["--runs", "5", "--turns", "2"]].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.expect("UTF-8"));
    let mut input = child.stdin.take().unwrap();
    for turn in 0..2 {
        assert!(told.any(|line| line == "ready"), "turn {turn}");
        assert_eq!(child.try_wait().unwrap(), None, "it waits for turn {turn}");
        if turn == 0 {
            writeln!(input).unwrap();
        }
    }
    drop(input);
    assert_eq!(told.filter(|line| line == "ready").count(), 1, "the last turn is not waited for");
    let output = child.wait_with_output().unwrap();
    let (_, found) = rows(&String::from_utf8(output.stdout).unwrap());
    assert_eq!((found.len(), &found[0]["runs"]), (1, &json!(5)));
}

#[test]
fn requests_at_once() {
    let args =
        ["bench", "throughput", "-o", "json", "--batch", "1,3", "--prompt", "5,9", "--tokens", "7", "--runs", "2"];
    let report: Value = serde_json::from_str(&ggro(&args).ok().out).expect("one JSON object");
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let batch = number(row, "rows");
        let committed = number(row, "committed_tokens_per_second") * number(row, "seconds");
        assert!((committed - 7.0 * batch).abs() < 1e-6, "{row}");
        assert!(number(row, "work_tokens_per_second") > number(row, "committed_tokens_per_second"));
        let phases: f64 =
            ["policy", "reward", "gradient", "host"].iter().map(|name| number(&row["phases"], name)).sum();
        assert!((phases - 100.0).abs() < 1.0, "{row}");
    }
    // The first of three is the one that is alone: it has the same prompt.
    assert_ne!(rows[0]["ids"], rows[1]["ids"]);
}

#[test]
fn answers_of_the_demo_pair() {
    let sizes = ["--prompt", "12", "--tokens", "20", "--segment", "6", "--speculation", "off,2,auto", "--runs", "1"];
    let (_, rows) = rows(&ggro(&[&["bench", "ggro", "-o", "jsonl", "--best-of", "3"], &sizes[..]].concat()).ok().out);
    let phases: Vec<&str> = rows.iter().filter_map(|row| row["phase"].as_str()).collect();
    assert_eq!(phases, ["greedy", "ggro", "ggro", "ggro", "best of"]);
    assert_eq!(rows[0]["answer"]["over_greedy"], 1.0);
    assert!(rows[1..4].iter().all(|row| row["ids"] == rows[1]["ids"]));
    assert_eq!((&rows[4]["answer"]["visited"], &rows[4]["case"]), (&json!(3), &json!("3")));
    for row in &rows {
        let over = number(&row["answer"], "over_greedy");
        assert!((over - number(row, "seconds") / number(&rows[0], "seconds")).abs() < 1e-9);
        assert!((number(row, "committed_tokens_per_second") * number(row, "seconds") - 20.0).abs() < 1e-6);
    }
}

/// FNV-1a, as the benchmark has it.
fn hash(ids: &[u64]) -> String {
    let fold = |hash: u64, &id: &u64| (hash ^ id).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", ids.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// The ids that are timed are those that `generate` writes.
#[test]
fn ids_are_those_of_generate() {
    let text = "Tell me a story about a box.";
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.json");
    let generate = ["generate", text, "--max-new-tokens", "30", "--no-baseline", "--trace", trace.to_str().unwrap()];
    ggro(&generate).ok();
    let trace: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let ids: Vec<u64> = serde_json::from_value(trace["new_ids"].clone()).unwrap();
    let bench = [
        "bench",
        "ggro",
        "-o",
        "jsonl",
        "--message",
        text,
        "--tokens",
        "30",
        "--entropy-threshold",
        "3.25",
        "--speculation",
        "off",
        "--runs",
        "1",
        "--warmup",
        "0",
        "--best-of",
        "0",
    ];
    let (_, rows) = rows(&ggro(&bench).ok().out);
    assert_eq!(rows[1]["ids"], json!(hash(&ids)));
    assert_eq!(
        rows[1]["answer"]["reward"].as_f64().map(|x| x as f32),
        trace["final_reward"].as_f64().map(|x| x as f32)
    );
}

#[test]
fn loading_is_timed_cold_and_warm() {
    let dir = tempfile::tempdir().unwrap();
    let pair = dir.path().join("pair");
    let synth = ggro(&["synth", "demo", pair.to_str().unwrap(), "--seed", "3"]).ok();
    assert!(synth.err.contains("/policy --reward "), "{}", synth.err);
    let again = ggro(&["synth", "demo", pair.to_str().unwrap()]);
    assert!(again.code == Some(2) && again.err.contains("is there already"), "{}", again.err);
    assert!(ggro(&["synth", "gpt-5", "x"]).code == Some(2));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    let models = ["--policy", &format!("{}/policy", pair.display()), "--reward", &format!("{}/reward", pair.display())];
    let args = ["bench", "load", "-o", "jsonl", "--runs", "2"];
    let (header, found) = rows(&ggro(&[&args[..], &models].concat()).ok().out);
    let cases: Vec<&str> = found.iter().filter_map(|row| row["case"].as_str()).collect();
    assert_eq!((cases, &header["limits"]), (vec!["cold", "warm"], &Value::Null));
    assert!(found.iter().all(|row| number(row, "gigabytes_per_second") > 0.0));
    let (_, embedded) = rows(&ggro(&args).ok().out);
    assert_eq!(embedded.len(), 1, "what is in the binary is never cold");
    // The same weights, drawn and read: the same ids.
    let throughput = [
        "bench",
        "throughput",
        "-o",
        "jsonl",
        "--batch",
        "2",
        "--prompt",
        "6",
        "--tokens",
        "9",
        "--runs",
        "1",
        "--no-limits",
    ];
    let (_, read) = rows(&ggro(&[&throughput[..], &models].concat()).ok().out);
    let (_, drawn) = rows(&ggro(&[&throughput[..], &["--synthetic", "demo", "--weight-seed", "3"]].concat()).ok().out);
    assert_eq!(read[0]["ids"], drawn[0]["ids"]);
    let story = ggro(&[&["generate", "Hello", "--max-new-tokens", "4"], &models[..]].concat()).ok();
    assert!(story.err.contains("policy"), "{}", story.err);
}

#[test]
fn runs_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let args = ["bench", "throughput", "--batch", "1", "--prompt", "4", "--tokens", "4", "--runs", "1", "--no-limits"];
    let chart = file("chart.svg");
    let first = ggro(&[&args[..], &["-o", "json", "--chart", &chart]].concat()).ok();
    assert!(std::fs::read_to_string(&chart).unwrap().starts_with("<svg "));
    let mut report: Value = serde_json::from_str(&first.out).unwrap();
    let first_ids = report["rows"][0]["ids"].clone();
    let mut against = |seconds: f64, ids: &str, name: &str| {
        report["rows"][0]["seconds"] = json!(seconds);
        if !ids.is_empty() {
            report["rows"][0]["ids"] = json!(ids);
        }
        std::fs::write(file(name), report.to_string()).unwrap();
        ggro(&[&args[..], &["-o", "csv", "--compare", &file(name), "--fail-regression", "50"]].concat())
    };
    let faster = against(1e3, "", "slow.json").ok();
    assert!(faster.err.contains(": 0.000") && faster.out.contains("# config_hash"), "{}", faster.err);
    let slower = against(1e-9, "", "fast.json");
    assert!(slower.code == Some(1) && slower.err.contains(", slower"), "{}", slower.err);
    let other = against(1e3, "0123456789abcdef", "other.json");
    assert!(other.code == Some(1) && other.err.contains(", other ids"), "{}", other.err);
    // As a report of a version that did not say on what it was made.
    report["header"].as_object_mut().unwrap().retain(|name, _| !["device_kind", "kernels"].contains(&&**name));
    report["rows"][0]["seconds"] = json!(1e3);
    report["rows"][0]["ids"] = first_ids;
    std::fs::write(file("before.json"), report.to_string()).unwrap();
    ggro(&[&args[..], &["--compare", &file("before.json")]].concat()).ok();
    // Lines are as good as one object.
    let lines = ggro(&[&args[..], &["-o", "jsonl"]].concat()).ok();
    std::fs::write(file("lines.jsonl"), &lines.out).unwrap();
    let same = ggro(&[&args[..], &["--compare", &file("lines.jsonl"), "--fail-regression", "1000"]].concat()).ok();
    assert!(same.err.contains("throughput 1 requests"), "{}", same.err);
    for (content, part) in [("{", "not a report"), ("{\"rows\": []}", "not a report")] {
        std::fs::write(file("none.json"), content).unwrap();
        let run = ggro(&[&args[..], &["--compare", &file("none.json")]].concat());
        assert!(run.code == Some(2) && run.err.contains(part) && run.out.is_empty(), "{}", run.err);
    }
    let missing = ggro(&[&args[..], &["--compare", &file("missing.json")]].concat());
    assert!(missing.code == Some(2) && missing.err.contains("missing.json"), "{}", missing.err);
    let nothing =
        ["bench", "latency", "--rows", "1", "--prefill", "4", "--candidates", "1", "--runs", "1", "--no-limits"];
    let nothing = ggro(&[&nothing[..], &["--compare", &file("lines.jsonl")]].concat());
    assert!(nothing.code == Some(2) && nothing.err.contains("no case in common"), "{}", nothing.err);
}

#[test]
fn costs_without_running() {
    let args = [
        "bench",
        "model",
        "--synthetic",
        "llama-3.1-8b",
        "--rows",
        "1",
        "--context",
        "1024",
        "--prefill",
        "2048",
        "--candidates",
        "8",
        "--prefix",
        "1024",
    ];
    let limits = ["--gigabytes", "4300", "--teraflops", "790", "--json"];
    let rows: Vec<Value> =
        ggro(&[&args[..], &limits].concat()).ok().out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ms: Vec<(String, f64)> =
        rows.iter().map(|row| (row["phase"].as_str().unwrap().to_string(), 1e3 * number(row, "seconds"))).collect();
    for (phase, expected) in [("prefill", 37.6), ("decode", 3.52), ("gradient", 6.55)] {
        let found = ms.iter().find(|(name, _)| name == phase).unwrap().1;
        assert!((found / expected - 1.0).abs() < 0.03, "{phase}: {found} ms");
    }
    let table = ggro(&[&args[..], &["--card", "h100"]].concat()).ok().out;
    assert!(table.contains("h100 by its data sheet") && table.contains("| decode | 1 rows behind 1024 |"), "{table}");
    // Flags of nested commands have variables too.
    let mut command = command();
    command.env("GGRO_SYNTHETIC", "llama-3.1-8b").env("GGRO_ROWS", "1").env("GGRO_CONTEXT", "1024");
    command.env("GGRO_PREFILL", "2048").env("GGRO_CANDIDATES", "8").env("GGRO_PREFIX", "1024").env("GGRO_CARD", "h100");
    assert_eq!(finish(command.args(["bench", "model"])).ok().out, table);

    // Measured rows stand beside what was computed, and the limits are those that were measured.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("measured.json");
    let run = ["bench", "latency", "--synthetic", "demo", "-o", "json", "--prefix", "8", "--runs", "1"];
    std::fs::write(&file, ggro(&[&run[..], &SIZES].concat()).ok().out).unwrap();
    let beside = ["bench", "model", "--synthetic", "demo", "--prefix", "8", "--measured", file.to_str().unwrap()];
    let table = ggro(&[&beside[..], &SIZES].concat()).ok().out;
    let decode = table.lines().find(|line| line.contains("| 1 rows behind 8 |")).unwrap();
    assert!(table.contains("limits measured on") && decode.trim_end().ends_with("% |"), "{table}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    for (args, part) in [
        (&["latency", "--prefill", "4", "--synthetic", "gpt-5"][..], "no shape gpt-5; there are llama-3.1-8b"),
        (&["latency", "--synthetic", "demo", "--policy", "x"], "cannot be used with"),
        (&["latency", "--rows", "1,0"], "0 is not in 1.."),
        (&["latency", "--prefill", "4", "--rows", "1", "--context", "510"], "exceed the longest sequence of 512"),
        (&["throughput", "--prompt", "510", "--tokens", "9"], "exceed the longest sequence of 512"),
        (&["load", "--synthetic", "demo"], "ggro synth"),
        (&["model", "--card", "tpu"], "rtx-4090"),
        (&["ggro", "--entropy-threshold", "inf"], "finite"),
        (&["ggro", "--fail-regression", "5"], "--compare"),
    ] {
        let run = ggro(&[&["bench"], args].concat());
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.err);
        assert!(run.err.contains(part), "{args:?}: no {part:?} in {}", run.err);
    }
}

/// A server that gives each request the next of these bodies, and the last to all that follow. The load's first request is only to
/// see whether there is a server.
fn server(bodies: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let body = bodies[number.min(bodies.len() - 1)];
            std::thread::spawn(move || answer(stream, body));
        }
    });
    base
}

fn answer(mut stream: TcpStream, body: &str) {
    let (mut seen, mut some) = (Vec::new(), [0; 4096]);
    while !seen.ends_with(b"}") {
        match stream.read(&mut some) {
            Ok(read) if read > 0 => seen.extend_from_slice(&some[..read]),
            _ => return,
        }
    }
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    let _ = match body {
        // Until the client has enough.
        "endless" => (0..64).try_for_each(|_| stream.write_all(&[b'x'; 1 << 20])),
        "silent" => {
            std::thread::sleep(std::time::Duration::from_secs(4));
            Ok(())
        }
        body => stream.write_all(body.as_bytes()),
    };
}

const TEXT: &str = "\u{feff}data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n";
const COUNTED: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";
const NOTHING: &str = "data: [DONE]\n\n";
const REFUSED: &str = "data: {\"error\":{\"message\":\"\\u001b[31mred\"}}\n\n";

fn loaded(bodies: &'static [&'static str], count: &str, more: &[&str]) -> Run {
    let (base, fixed) = (server(bodies), ["--model", "m", "--num-warmups", "0", "--max-concurrency", "1"]);
    ggro(&[&["bench", "serve", "--base-url", &base, "--num-prompts", count], &fixed[..], more].concat())
}

#[test]
fn answers_of_foreign_servers() {
    // Text behind a byte order mark, and no usage.
    let run = loaded(&[TEXT], "2", &[]).ok();
    assert!(run.out.contains("tokens      0 in, 2 out") && run.out.contains("ttft mean"), "{}", run.out);
    assert!(run.out.contains("2 answers came without `usage`: pieces were counted"), "{}", run.out);
    assert!(run.out.contains("tpot -\n") && run.out.contains("itl  -\n") && !run.out.contains("-0.00"), "{}", run.out);
    // Tokens without a text are an answer, with no first text and not good.
    let run = loaded(&[COUNTED], "2", &["--json", "--goodput", "ttft:60000"]).ok().json();
    assert_eq!(
        (&run["completed"], &run["request_goodput"], &run["without_usage"]),
        (&json!(2), &json!(0.0), &json!(0))
    );
    assert!(run["mean_ttft_ms"].is_null() && run["mean_e2el_ms"].as_f64() > Some(0.0), "{run}");
    // Nothing at all is none.
    for (bodies, part) in [
        (&[TEXT, TEXT, NOTHING][..], "note: 1 request failed, the first with: the answer has no text and no tokens"),
        (&[TEXT, TEXT, REFUSED], "the first with: \u{1b}[31mred"),
        (&[TEXT, TEXT, "endless"], "a line of the answer is longer than 4194304 bytes"),
        (&[TEXT, TEXT, "data: {\n"], "a frame that is not JSON: EOF while parsing an object at column 1"),
    ] {
        let run = loaded(bodies, "2", &[]);
        assert!(run.code == Some(1) && run.err.contains(part), "no {part:?} in {}", run.err);
        assert!(run.out.contains("answers     1 of 2"), "{}", run.out);
        let allowed = loaded(bodies, "2", &["--allow-failures"]).ok();
        assert!(allowed.err.contains(part), "{}", allowed.err);
    }
    let run = loaded(&[TEXT, "silent"], "1", &["--timeout", "1", "--allow-failures"]);
    assert!(run.code == Some(1) && run.err.contains("no whole answer within 1 s, the timeout"), "{}", run.err);
    let run = loaded(&[NOTHING], "2", &[]);
    assert!(run.code == Some(2) && run.err.contains("the answer has no text"), "{}", run.err);
    let run = ggro(&["bench", "serve", "--base-url", "127.0.0.1:8000"]);
    assert!(run.code == Some(2) && run.err.contains("e.g. http://127.0.0.1:8000"), "{}", run.err);
}

/// Seeds have 64 bits, and a sign is one of them, as in the server.
#[test]
fn seeds_may_be_negative() {
    let seeded = |seed: &str| {
        let args = ["generate", "Hello", "--method", "sample", "--max-new-tokens", "8", "--seed", seed];
        ggro(&args).ok().out
    };
    assert_eq!(seeded("-1"), seeded("18446744073709551615"));
    assert_eq!(seeded("-9223372036854775808"), seeded("9223372036854775808"));
}
