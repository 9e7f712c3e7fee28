//! `ggro compare`: the same tables, whatever happens to the process.

use super::{command, finish, ggro, utf8};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Every kind of method, few tokens, and the judges that need no model.
const PLAN: &str = r#"
num_prompts = 2
seeds = [0, 7]
max_new_tokens = 10
concurrency = 4
reference = "greedy"

[[method]]
name = "greedy"

[[method]]
name = "ggro"
entropy_threshold = 2.5
budget = { num_refinement_steps = [2, 3] }

[[method]]
name = "ggro"
label = "random"
entropy_threshold = 2.5
proposals = "random"
num_refinement_steps = 2

[[method]]
name = "bon"
sampling = { temperature = 0.8 }
budget = { n = [1, 3] }

[[method]]
name = "blockwise"
k = 2
block = 4

[[judge]]
gold = true
threshold = 0.0

[[judge]]
name = "length"
command = ["sh", "-c", "sed 's/.*\"index\":\\([0-9]*\\).*/{\"index\": \\1, \"score\": 1.5}/'"]
"#;

fn plan(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("plan.toml");
    std::fs::write(&path, text).expect("written");
    path
}

fn arguments<'a>(plan: &'a Path, output: &'a Path) -> Vec<&'a str> {
    vec!["compare", utf8(plan), "--output", utf8(output), "--json"]
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_point_has_its_files_and_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plan, output) = (plan(folder.path(), PLAN), folder.path().join("out"));
    let html = folder.path().join("page.html");
    let found = ggro(&[&arguments(&plan, &output)[..], &["--html", utf8(&html), "--time", "1"]].concat()).ok().json();
    let names: Vec<&str> =
        found["points"].as_array().expect("points").iter().filter_map(|point| point["name"].as_str()).collect();
    assert_eq!(names, ["greedy", "ggro@2", "ggro@3", "random", "bon@1", "bon@3", "blockwise"]);
    assert_eq!(found["measures"], serde_json::json!(["reward", "gold", "length"]));
    for (point, seeds) in found["points"].as_array().expect("points").iter().zip([1, 1, 1, 2, 2, 2, 2]) {
        assert_eq!((&point["seeds"], &point["answers"]), (&Value::from(seeds), &Value::from(2 * seeds)), "{point}");
        assert!(point["work"]["mean"].as_f64() > Some(0.0) && point["seconds"]["count"] == 1, "{point}");
        assert_eq!(point["measures"][2]["mean"]["mean"], 1.5);
        assert!(point["measures"][1]["coverage"]["mean"].is_f64() && point["measures"][2]["coverage"].is_null());
    }
    // The reference has nothing that it would be above of.
    assert!(found["points"][0]["measures"][0]["over_reference"].is_null());
    assert!(found["points"][1]["measures"][0]["over_reference"]["mean"].is_f64());
    // What scores an answer that nobody had to score is not the method's work.
    for (point, other) in [(0, 4), (4, 0)] {
        assert_eq!(found["points"][point]["work"], found["points"][point]["policy_forward"]);
        assert_eq!(found["points"][point]["work"]["mean"], found["points"][other]["work"]["mean"]);
    }
    assert!(found["points"][5]["work"]["mean"].as_f64() > found["points"][5]["policy_forward"]["mean"].as_f64());
    // More of the same samples cannot be worse.
    let reward = |point: usize| found["points"][point]["measures"][0]["mean"]["mean"].as_f64();
    assert!(reward(5) >= reward(4), "{found}");
    assert_eq!(found["curves"].as_array().map(Vec::len), Some(2));
    for cost in ["equal_work", "equal_time"] {
        assert_eq!(found[cost].as_array().map(Vec::len), Some(3), "{cost}");
    }
    let all = files(&output);
    for name in [
        "plan.json",
        "ggro@2.seed0.jsonl",
        "bon@3.seed7.gold.jsonl",
        "bon@3.seed7.jsonl.config.json",
        "random.seed7.length.jsonl",
    ] {
        assert!(all.iter().any(|file| file == name), "no {name} in {all:?}");
    }
    assert!(!all.iter().any(|name| name.starts_with("greedy.seed7") || name.ends_with(".part")), "{all:?}");
    let page = std::fs::read_to_string(&html).expect("a page").replace("http://www.w3.org/2000/svg", "");
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
    assert_eq!(page.matches("</script>").count(), 1);
    // As a table, without anything being made again.
    let before = std::fs::read(output.join("bon@3.seed0.jsonl")).expect("rows");
    let table = ggro(&["compare", utf8(&plan), "--output", utf8(&output)]).ok();
    assert!(table.err.contains("are there already"), "{}", table.err);
    for part in [
        "judge gold",
        "over greedy",
        "coverage",
        "at equal work",
        "at equal seconds",
        "ggro along num_refinement_steps",
        "seconds, alone",
    ] {
        assert!(table.out.contains(part), "no {part:?} in {}", table.out);
    }
    assert_eq!(std::fs::read(output.join("bon@3.seed0.jsonl")).expect("rows"), before);
}

/// Killed at any moment, and with files cut and taken away.
#[test]
fn a_comparison_that_is_gone_on_with_has_the_same_tables() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = plan(folder.path(), PLAN);
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let expected = ggro(&arguments(&plan, &whole)).ok().json();
    for milliseconds in [150, 400, 700] {
        let mut child = command()
            .args(arguments(&plan, &broken))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        std::thread::sleep(Duration::from_millis(milliseconds));
        // It may have come to its end.
        let _ = child.kill();
        child.wait().expect("it has ended");
    }
    assert_eq!(ggro(&arguments(&plan, &broken)).ok().json(), expected);
    // A row that was not written to its end, and a file of judgements that is gone.
    let rows = broken.join("bon@3.seed0.jsonl");
    let text = std::fs::read(&rows).expect("rows");
    std::fs::write(&rows, &text[..text.len() - 30]).expect("written");
    std::fs::remove_file(broken.join("bon@3.seed0.gold.jsonl")).expect("removed");
    assert_eq!(ggro(&arguments(&plan, &broken)).ok().json(), expected);
}

#[test]
fn another_plan_does_not_mix_with_answers_that_are_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let small = "num_prompts = 1\nmax_new_tokens = 4\n[[method]]\nname = \"greedy\"\n";
    let first = plan(folder.path(), small);
    ggro(&arguments(&first, &output)).ok();
    // More of it is gone on with.
    let more = plan(folder.path(), &(small.replace("prompts = 1", "prompts = 2") + "[[method]]\nname = \"sample\"\n"));
    let found = ggro(&arguments(&more, &output)).ok().json();
    assert_eq!((&found["points"][0]["answers"], &found["points"][1]["answers"]), (&Value::from(2), &Value::from(6)));
    let other = plan(folder.path(), &small.replace("= 4", "= 5"));
    let run = ggro(&arguments(&other, &output));
    assert!(run.code == Some(2) && run.err.contains("`max_new_tokens` was 4, is 5"), "{}", run.err);
    for (text, words) in [
        ("methods = 1", "plan.toml: expected a plan: unknown field `methods`"),
        ("[[method]]\nname = \"none\"", "plan.toml: method none: there is no method \"none\""),
        ("task = \"mmlu\"\ninput = [\"a\"]\n[[method]]\nname = \"greedy\"", "task \"mmlu\" is none; there are hex-phi"),
        ("[[method]]\nname = \"greedy\"\n[[judge]]\nanswers = true", "judge answers: only tasks with right answers"),
    ] {
        let faulty = plan(folder.path(), text);
        let run = finish(command().args(arguments(&faulty, &output)));
        assert!(run.code == Some(2) && run.err.contains(words), "{text}: {}", run.err);
    }
}

/// A second reward model and a guard, which here are the demo's own models: a story writer has no verdict.
#[test]
fn models_judge() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let text = "num_prompts = 2\nseeds = [0]\nmax_new_tokens = 6\n[[method]]\nname = \"greedy\"\n[[method]]\nname = \"bon\"\nn = 2\n\
                [[judge]]\nreward = \"assets/demo/reward\"\n[[judge]]\nguard = \"assets/demo/policy\"\nthreshold = 1.0\n";
    let plan = plan(folder.path(), text);
    let found = ggro(&arguments(&plan, &output)).ok().json();
    assert_eq!(found["measures"], serde_json::json!(["reward", "judge-reward", "guard"]));
    for point in found["points"].as_array().expect("points") {
        assert_eq!(point["measures"][1]["mean"]["count"], 2, "{point}");
        assert!(point["measures"][2]["mean"].is_null() && point["measures"][2]["coverage"].is_null(), "{point}");
    }
    let config = super::read_json(&output.join("bon.seed0.judge-reward.jsonl.config.json"));
    assert_eq!(
        (&config["judge"]["reward"], &config["device"]),
        (&Value::from("assets/demo/reward"), &Value::from("cpu"))
    );
    let none = text.replace("assets/demo/reward", "no/such");
    let run = ggro(&arguments(&self::plan(folder.path(), &none), &output));
    assert!(run.code == Some(2) && run.err.contains("judge judge-reward: "), "{}", run.err);
}
