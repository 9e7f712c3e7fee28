//! `ggro bench`, on the CPU: that it measures and says so, not how fast.

use super::ggro;
use serde_json::Value;

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).expect("a JSON object per line")).collect()
}

#[test]
fn passes_of_a_random_pair() {
    let sizes = ["--rows", "1,2", "--context", "8", "--prefill", "8", "--candidates", "2", "--segment", "4"];
    let args = [&["bench", "latency", "--json", "--synthetic", "demo", "--prefix", "8", "--runs", "2"], &sizes[..]];
    let cases = lines(&ggro(&args.concat()).ok().out);
    let phases: Vec<&str> = cases.iter().filter_map(|case| case["phase"].as_str()).collect();
    assert_eq!(phases, ["prefill", "decode", "decode", "reward", "gradient"]);
    for case in &cases {
        let [least, most] = [0, 1].map(|i| case["spread"][i].as_f64().expect("seconds"));
        let median = case["seconds"].as_f64().expect("seconds");
        assert!(0.0 < least && least <= median && median <= most, "{case}");
        assert!(case["cost"]["bytes"].as_f64() > Some(1e6) && case["percent"].is_null(), "{case}");
    }
    let table = ggro(&["bench", "latency", "--rows", "1", "--prefill", "4", "--candidates", "1", "--runs", "1"]).ok();
    assert!(table.out.starts_with("| phase | case |") && table.out.contains("| decode | 1 rows behind 256 |"));
}

#[test]
fn answers_of_the_demo_pair() {
    let sizes = ["--prompt", "12", "--tokens", "20", "--segment", "6", "--speculation", "off,2,auto"];
    let answers = lines(&ggro(&[&["bench", "ggro", "--json"], &sizes[..]].concat()).ok().out);
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[0]["method"], "greedy");
    assert_eq!(answers[0]["over_greedy"], 1.0);
    assert!(answers[1..].iter().all(|answer| answer["ids"] == answers[1]["ids"] && answer["tokens"] == 20));
}

#[test]
fn what_cannot_be_measured_is_named() {
    for (args, part) in [
        (&["--synthetic", "gpt-5"][..], "no shape gpt-5; there are llama-3.1-8b"),
        (&["--synthetic", "demo", "--policy", "x"], "cannot be used with"),
        (&["--rows", "1,0"], "0 is not in 1.."),
        (&["--rows", "1", "--context", "510"], "exceed the longest sequence of 512"),
    ] {
        let run = ggro(&[&["bench", "latency", "--prefill", "4"], args].concat());
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.err);
        assert!(run.err.contains(part), "{args:?}: no {part:?} in {}", run.err);
    }
}
