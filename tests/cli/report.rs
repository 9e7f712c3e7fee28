//! `ggro report`.

use super::{ggro, utf8};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Rows as `ggro run` writes them, of so many answers.
fn rows(folder: &Path, name: &str, count: usize, gain: f64) -> PathBuf {
    let path = folder.join(name);
    let segment = |i: usize| {
        json!({"tokens": ["\u{120}one", "\u{120}two", "</script>"], "entropies": [3.5, 0.25, null], "nudged": 0, "best": 1,
               "candidates": [{"reward": 0.5, "text": " other words", "forced": false},
                              {"reward": 0.5 + i as f64, "text": " one two", "forced": true}]})
    };
    let row = |i: usize| {
        json!({"index": i, "prompt": format!("What is {i}?"), "answer": "A", "metadata": null, "full_text": "", "response": "one two",
               "reward": (i * 37 % 10) as f64 + gain, "num_nudges": 12, "segment_boundaries": (0..12).collect::<Vec<_>>(),
               "elapsed_seconds": 0.25, "prediction": "A", "correct": !i.is_multiple_of(4), "finish_reason": "finish", "prompt_tokens": 5,
               "new_tokens": 36, "work": {"policy_forward": 50, "reward_forward": 60, "reward_backward": 40},
               "segments": (0..12).map(segment).collect::<Vec<_>>()})
    };
    let text: String = (0..count).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn numbers_and_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (rows(folder.path(), "a.jsonl", 100, 0.0), rows(folder.path(), "b.jsonl", 80, 2.0));
    let html = folder.path().join("report.html");
    let run = ggro(&["report", utf8(&a), utf8(&b), "--html", utf8(&html)]).ok();
    for part in ["answers", "100", "80", "accuracy", "0.750", "reward over the first", "2.000 (2.000 to 2.000)"] {
        assert!(run.out.contains(part), "no {part:?} in {}", run.out);
    }
    let page = std::fs::read_to_string(&html).expect("a page");
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    // Nothing from anywhere else but the name of a namespace, and nothing in a row that ends the script.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
    assert_eq!(page.matches("</script>").count(), 1);
    let object = ggro(&["report", "--json", utf8(&a), utf8(&b)]).ok().json();
    let reward = &object["files"][0]["reward"];
    let [low, mean, high] = ["low", "mean", "high"].map(|name| reward[name].as_f64().expect("a number"));
    assert!(low < mean && mean < high && (mean - 4.5).abs() < 1e-6, "{reward}");
    assert_eq!(object["files"][1]["policy_forward"]["mean"], 50.0);
    assert_eq!(object["reward_over_the_first"][0]["count"], 80);
}

#[test]
fn official_rows_have_no_segments() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("official.jsonl");
    let row = json!({"index": 0, "prompt": "p", "answer": null, "metadata": {}, "full_text": "p r", "response": "r",
                     "reward": 1.0, "num_nudges": 2, "segment_boundaries": [4, 9], "elapsed_seconds": 3.0});
    std::fs::write(&path, format!("{row}\n")).expect("written");
    let object: Value = ggro(&["report", "--json", utf8(&path)]).ok().json();
    assert_eq!(object["files"][0]["segments"]["mean"], 2.0);
    assert!(object["files"][0]["entropy"].is_null());
}

#[test]
fn what_is_no_row_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = rows(folder.path(), "bad.jsonl", 2, 0.0);
    let mut text = std::fs::read_to_string(&path).expect("rows");
    text += "{\"index\": 2}\n";
    std::fs::write(&path, text).expect("written");
    let run = ggro(&["report", utf8(&path)]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("bad.jsonl: line 3: expected a row of `ggro run`"), "{}", run.err);
    std::fs::write(&path, "\n").expect("written");
    assert!(ggro(&["report", utf8(&path)]).err.contains("found none"));
    let run = ggro(&["report", utf8(&folder.path().join("none.jsonl"))]);
    assert!(run.code == Some(2) && run.err.contains("none.jsonl"), "{}", run.err);
}
