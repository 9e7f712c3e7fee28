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
    for name in ["entropy", "candidates", "tokens", "policy_forward", "reward_backward", "at_once"] {
        assert!(object["files"][0][name].is_null(), "{name}");
    }
    let table = ggro(&["report", utf8(&path)]).ok().out;
    assert!(!table.contains("candidates") && !table.contains("token-forwards") && table.contains("seconds"), "{table}");
}

/// What a row does not say is missing, not zero; and of how many rows a mean is, is said.
#[test]
fn missing_fields_are_no_zeros() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = rows(folder.path(), "some.jsonl", 6, 0.0);
    let mut all: Vec<Value> = std::fs::read_to_string(&path)
        .expect("rows")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    for name in ["new_tokens", "work"] {
        all[2].as_object_mut().expect("a row").shift_remove(name);
    }
    let write = |rows: &[Value]| std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    write(&all).expect("written");
    let table = ggro(&["report", utf8(&path)]).ok().out;
    for part in ["36.000 (36.000 to 36.000), of 5\n", "60.000 (60.000 to 60.000), of 5\n", "0.250 (0.250 to 0.250)\n"] {
        assert!(table.contains(part), "no {part:?} in {table}");
    }
    // Beside a file that has none of it, whose cell is not empty.
    let official: Vec<Value> = all
        .iter()
        .map(|row| {
            json!({"index": row["index"], "prompt": row["prompt"], "answer": null,
        "metadata": null, "full_text": "", "response": "", "reward": null, "num_nudges": 0, "segment_boundaries": [],
        "elapsed_seconds": 0.1})
        })
        .collect();
    let other = folder.path().join("official.jsonl");
    std::fs::write(&other, official.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("written");
    let table = ggro(&["report", utf8(&path), utf8(&other)]).ok().out;
    let line = table.lines().find(|line| line.starts_with("new tokens")).expect("a line");
    assert!(line.ends_with("  -") && table.contains("no prompt with a reward in common"), "{table}");
    // Seconds of a run that says how many were answered at once.
    all.iter_mut().for_each(|row| row["concurrency"] = json!(1));
    write(&all).expect("written");
    assert!(ggro(&["report", utf8(&path)]).ok().out.contains("0.250 (0.250 to 0.250), alone\n"));
    all[0]["concurrency"] = json!(16);
    write(&all).expect("written");
    assert!(ggro(&["report", utf8(&path)]).ok().out.contains(", 1 to 16 at a time\n"));
    all[3] = all[1].clone();
    write(&all).expect("written");
    let run = ggro(&["report", utf8(&path)]);
    assert!(run.code == Some(2) && run.err.contains("some.jsonl: line 4: row 1 is there twice"), "{}", run.err);
}

/// The page says which models and options made the rows, and what every answer was given.
#[test]
fn a_page_says_how_its_rows_came_about() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (rows(folder.path(), "a.jsonl", 1, 0.0), rows(folder.path(), "b.jsonl", 2, 1.0));
    let config = json!({"ggro": "0.1.0", "policy": "models/p, 5 weights", "reward": null, "seed": 7, "system": "Be kind.",
                        "prefill_attack": "Sure, ", "wording": "mine"});
    // With a byte order mark, as an editor may have left it.
    std::fs::write(folder.path().join("a.jsonl.config.json"), format!("\u{feff}{config}")).expect("written");
    let html = folder.path().join("report.html");
    let run = ggro(&["report", utf8(&a), utf8(&b), "--html", utf8(&html)]).ok();
    assert!(run.out.contains("mine"), "{}", run.out);
    let page = std::fs::read_to_string(&html).expect("a page");
    let data = r#""options":[["policy","models/p, 5 weights"],["seed","7"],["wording","mine"]],"prefill":"Sure, ","system":"Be kind.""#;
    assert!(page.contains(data) && page.contains(r#""options":[],"prefill":null"#), "{page}");
    for part in
        ["no prompt with a reward in common", "count(file.rows.length - file.skipped, \"answer\")", "id=\"wider\""]
    {
        assert!(page.contains(part), "no {part:?}");
    }
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
    for (line, found) in [("null", "found null"), ("[]", "found an array"), ("7", "found a number")] {
        let text = std::fs::read_to_string(&path).expect("rows");
        let two: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, format!("{two}\n{line}\n")).expect("written");
        let run = ggro(&["report", utf8(&path)]);
        let expected = format!("bad.jsonl: line 4: expected a row of `ggro run`, {found}");
        assert!(run.code == Some(2) && run.err.contains(&expected), "{}", run.err);
    }
    std::fs::write(&path, "\n").expect("written");
    assert!(ggro(&["report", utf8(&path)]).err.contains("found none"));
    let run = ggro(&["report", utf8(&folder.path().join("none.jsonl"))]);
    assert!(run.code == Some(2) && run.err.contains("none.jsonl"), "{}", run.err);
}
