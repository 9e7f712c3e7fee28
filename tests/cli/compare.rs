//! `ggro compare`: the same tables, whatever happens to the process.

use super::{command, finish, ggro, utf8};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

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
    assert_eq!(found["measures"], json!(["reward", "gold", "length"]));
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
    // Where it comes from.
    let from = |name: &str| &found[name];
    assert!(from("policy").as_str().is_some_and(|name| name.starts_with("demo, ")), "{found}");
    assert_eq!((from("device"), from("max_new_tokens")), (&Value::from("cpu"), &Value::from(10)));
    assert_eq!((from("seeds"), &found["judges"][0]["threshold"]), (&json!([0, 7]), &Value::from(0.0)));
    assert_eq!(from("date"), &super::read_json(&output.join("plan.json"))["date"]);
    // Alone an answer is scored only if its method looks at rewards.
    for (name, scored) in [("greedy", false), ("bon@1", false), ("ggro@2", true), ("bon@3", true)] {
        let row = super::read_json(&output.join(format!("{name}.seed0.alone.jsonl")));
        assert_eq!(row["reward"].is_f64(), scored, "{row}");
        assert_eq!(row["work"]["reward_forward"].as_u64() > Some(0), scored, "{row}");
        let config = super::read_json(&output.join(format!("{name}.seed0.alone.jsonl.config.json")));
        assert_eq!((&config["scored"], &config["alone"]), (&Value::from(scored), &Value::from(true)));
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
    assert!(page.contains("the demo's gold rule"));
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
        "at equal time, in seconds",
        "ggro along num_refinement_steps",
        "seconds, alone",
        "made with",
        "the demo's gold rule, covered from 0",
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

/// A judge that takes its time over each answer.
const SLOW: &str = r#"
num_prompts = 2
seeds = [0, 7]
max_new_tokens = 6

[[method]]
name = "greedy"

[[method]]
name = "bon"
budget = { n = [1, 2] }

[[judge]]
name = "slow"
command = ["sh", "-c", '''
while read -r l; do
    n=${l#*:}; s=${l##*:}
    sleep 0.1
    echo "{\"index\": ${n%%,*}, \"score\": ${s%?}}"
done
''']
"#;

/// Kills a command once a file whose name ends like this has something in it.
fn kill_once(arguments: &[&str], folder: &Path, ending: &str) {
    let mut command = command();
    let mut child =
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    let has_begun = || {
        let names = if folder.exists() { files(folder) } else { Vec::new() };
        let long = |name: &String| std::fs::metadata(folder.join(name)).is_ok_and(|found| found.len() > 0);
        names.iter().any(|name| name.ends_with(ending) && long(name))
    };
    let started = Instant::now();
    while !has_begun() {
        assert!(started.elapsed() < Duration::from_secs(60), "no {ending} in {:?}", folder);
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    child.wait().expect("it has ended");
}

/// All but what a clock says.
fn untimed(mut tables: Value) -> Value {
    tables["equal_time"].take();
    tables["points"].as_array_mut().expect("points").iter_mut().for_each(|point| drop(point["seconds"].take()));
    tables
}

/// Killed while answers are timed, and while they are judged.
#[test]
fn a_comparison_that_is_killed_while_it_times_and_judges_has_the_same_tables() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = plan(folder.path(), SLOW);
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let expected = ggro(&arguments(&plan, &whole)).ok().json();
    // The judge says the seed.
    assert_eq!(expected["points"][1]["measures"][1]["mean"]["mean"], 3.5, "{expected}");
    let timing = [&arguments(&plan, &broken)[..], &["--time", "2"]].concat();
    kill_once(&timing, &broken, ".alone.jsonl");
    // In the middle of a row; and before the first.
    let alone = broken.join("greedy.seed0.alone.jsonl");
    let text = std::fs::read(&alone).expect("rows");
    std::fs::write(&alone, &text[..text.len() - 30]).expect("written");
    let empty = broken.join("bon@1.seed0.alone.jsonl");
    std::fs::write(&empty, "").expect("written");
    // Without --time what was timed stays as it is.
    kill_once(&arguments(&plan, &broken), &broken, ".slow.jsonl");
    assert_eq!(untimed(ggro(&arguments(&plan, &broken)).ok().json()), untimed(expected.clone()));
    let timed = ggro(&timing).ok().json();
    for point in timed["points"].as_array().expect("points") {
        assert_eq!(point["seconds"]["count"], 2, "{point}");
    }
    assert_eq!(untimed(timed), untimed(expected));
}

#[test]
fn programs_that_judge_badly_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let text = |judge: &str| {
        format!("num_prompts = 1\nmax_new_tokens = 4\n[[method]]\nname = \"greedy\"\n[[judge]]\ncommand = {judge}\n")
    };
    // What is not there is found before the first answer, and nothing is left behind.
    let faulty = plan(folder.path(), &text("[\"no-such-judge\", \"a\"]"));
    let run = finish(command().args(arguments(&faulty, &output)));
    assert!(run.code == Some(2) && run.err.contains("judge command: no-such-judge: cannot be started"), "{}", run.err);
    assert_eq!(files(&output), [""; 0]);
    for (judge, words) in [
        (
            "[\"sleep\", \"60\"]\ntimeout_seconds = 1",
            "judge command: sleep: wrote no line for 1 s; the next index is 0",
        ),
        (
            "[\"sh\", \"-c\", 'cat > /dev/null; echo \"{\\\"index\\\": 0}\"']",
            "line 1 of its output: expected index and score: missing field `score`",
        ),
        ("[\"sh\", \"-c\", \"sleep 30 2> /dev/null & echo no; exit 3\"]", "expected ident at column 2; exit status: 3"),
    ] {
        let (faulty, started) = (plan(folder.path(), &text(judge)), Instant::now());
        // Every judge is another one, and no judgement of it is there.
        let run = finish(command().args(arguments(&faulty, &output)).stderr(Stdio::piped()));
        assert!(run.code == Some(2) && run.err.contains(words), "{judge}: {}", run.err);
        assert!(started.elapsed() < Duration::from_secs(25), "{judge}");
    }
    // As a flag, with all that is known of a prompt.
    let prompts = folder.path().join("prompts.jsonl");
    let line = json!({
        "messages": [{ "role": "user", "content": "Tell me a story about a box." }],
        "answer": "a box", "metadata": { "a": 1 },
    });
    std::fs::write(&prompts, format!("{line}\n\"Another one\"\n")).expect("written");
    let text = format!(
        "prompts = {:?}\nnum_prompts = 1\nmax_new_tokens = 4\n[[method]]\nname = \"greedy\"\n\
         [[judge]]\nanswers = true\n",
        utf8(&prompts)
    );
    let (plan, told) = (plan(folder.path(), &text), folder.path().join("told"));
    let judge = format!(r#"sh -c 'cat > "$0"; echo "{{\"index\": 0, \"score\": 2}}"' "{}""#, utf8(&told));
    let output = folder.path().join("other");
    let found = ggro(&[&arguments(&plan, &output)[..], &["--judge-command", &judge]].concat()).ok().json();
    assert_eq!(found["measures"], json!(["reward", "answers", "command"]));
    let means = |measure: usize| &found["points"][0]["measures"][measure]["mean"]["mean"];
    assert_eq!((means(1), means(2)), (&Value::from(0.0), &Value::from(2.0)));
    let told = super::read_json(&told);
    assert_eq!((&told["messages"], &told["answer"]), (&line["messages"], &Value::from("a box")));
    assert_eq!((&told["metadata"], &told["point"], &told["seed"]), (&line["metadata"], &json!("greedy"), &json!(0)));
    assert!(told["response"].is_string() && told["finish_reason"] == "length" && told["index"] == 0, "{told}");
    let run = ggro(&[&arguments(&plan, &output)[..], &["--judge-command", "a 'b"]].concat());
    assert!(run.code == Some(2) && run.err.contains("--judge-command"), "{}", run.err);
}

/// What a comparison was begun with holds for what is added to it.
#[test]
fn a_comparison_goes_on_as_it_began() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    let small = "num_prompts = 2\nmax_new_tokens = 4\n[[method]]\nname = \"greedy\"\n";
    let first = plan(folder.path(), small);
    let found = ggro(&[&arguments(&first, &output)[..], &["--date", "2020-01-02"]].concat()).ok().json();
    // The demo has its judge.
    assert_eq!((&found["measures"], &found["date"]), (&json!(["reward", "gold"]), &json!("2020-01-02")));
    // The day stays, even if the process ended before the plan was written.
    std::fs::remove_file(output.join("plan.json")).expect("removed");
    assert_eq!(ggro(&arguments(&first, &output)).ok().json(), found);
    // A judge judges what is asked for now.
    let fewer = plan(
        folder.path(),
        &(small.replace("prompts = 2", "prompts = 1") + "[[judge]]\nname = \"new\"\ngold = true\n"),
    );
    let found = ggro(&arguments(&fewer, &output)).ok().json();
    assert_eq!((&found["prompts"], &found["points"][0]["measures"][1]["mean"]["count"]), (&json!(1), &json!(1)));
    let lines = |name: &str| std::fs::read_to_string(output.join(name)).expect("lines").lines().count();
    assert_eq!((lines("greedy.seed0.jsonl"), lines("greedy.seed0.new.jsonl")), (2, 1));
    // Another device.
    let path = output.join("greedy.seed0.jsonl.config.json");
    let mut config = super::read_json(&path);
    (config["device"], config["arithmetic"]) = (json!("cuda 9.0"), json!("auto on CUDA"));
    std::fs::write(&path, config.to_string()).expect("written");
    let first = plan(folder.path(), small);
    let run = ggro(&arguments(&first, &output));
    for words in ["its rows were made on cuda 9.0", "another --output folder", "--mix-devices"] {
        assert!(run.code == Some(2) && run.err.contains(words), "no {words:?} in {}", run.err);
    }
    ggro(&[&arguments(&first, &output)[..], &["--mix-devices"]].concat()).ok();
    // Rows of a run are no rows of a comparison.
    let input = folder.path().join("in.jsonl");
    std::fs::write(&input, "\"Tell me a story about a box.\"\n").expect("written");
    let other = folder.path().join("run");
    std::fs::create_dir(&other).expect("a folder");
    let rows = other.join("greedy.seed0.jsonl");
    let run = ["run", "--input", utf8(&input), "--output", utf8(&rows), "--max-new-tokens", "2"];
    ggro(&run).ok();
    let run = ggro(&arguments(&first, &other));
    assert!(run.err.contains("holds rows of `ggro run`; use another --output folder"), "{}", run.err);
    assert!(!other.join("plan.json").exists());
    // Nothing that is there is written over.
    for name in ["plan.json", "greedy.seed0.gold.jsonl", "greedy.seed0.alone.jsonl", "greedy.seed0.jsonl.config.json"] {
        let run = ggro(&[&arguments(&first, &output)[..], &["--html", utf8(&output.join(name))]].concat());
        assert!(run.code == Some(2) && run.err.contains("--html"), "{name}: {}", run.err);
    }
}

#[test]
fn texts_that_are_too_long_have_no_score() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, prompts) = (folder.path().join("out"), folder.path().join("prompts.jsonl"));
    std::fs::write(&prompts, format!("\"Tell me a story.\"\n\"{}\"\n", "a ".repeat(2000))).expect("written");
    // Models that can read no more than this.
    for (name, context) in [("reward", 8), ("policy", 50)] {
        let to = folder.path().join(name);
        std::fs::create_dir(&to).expect("a folder");
        for entry in std::fs::read_dir(format!("assets/demo/{name}")).expect("a model") {
            let entry = entry.expect("an entry");
            // Not `fs::copy`, which would keep a read-only mode.
            let content = std::fs::read(entry.path()).expect("a file");
            std::fs::write(to.join(entry.file_name()), content).expect("a copy");
        }
        let mut config = super::read_json(&to.join("config.json"));
        config["max_position_embeddings"] = json!(context);
        std::fs::write(to.join("config.json"), config.to_string()).expect("written");
    }
    let text = format!(
        "prompts = {:?}\nmax_new_tokens = 6\n[[method]]\nname = \"greedy\"\n\
         [[judge]]\nreward = {:?}\n[[judge]]\nguard = {:?}\n",
        utf8(&prompts),
        utf8(&folder.path().join("reward")),
        utf8(&folder.path().join("policy"))
    );
    let plan = plan(folder.path(), &text);
    let run = ggro(&arguments(&plan, &output));
    assert!(run.code == Some(2) && run.err.contains("prompt 1: "), "{}", run.err);
    let run = ggro(&[&arguments(&plan, &output)[..], &["--skip-too-long"]].concat()).ok();
    for words in [
        "--skip-too-long passed over 1 prompt; the first is prompt 1: ",
        "judge judge-reward: 1 answer too long for the model",
        "judge guard: 1 answer too long for the model",
    ] {
        assert!(run.err.contains(words), "no {words:?} in {}", run.err);
    }
    let found = run.json();
    assert_eq!((&found["prompts"], &found["points"][0]["answers"]), (&json!(1), &json!(1)));
    for measure in 1..3 {
        assert!(found["points"][0]["measures"][measure]["mean"].is_null(), "{found}");
    }
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
        ("[[method]]\nname = \"greedy\"\n[[judge]]\nanswers = true", "judge answers: no prompt has a right answer"),
        // A budget that is too small for a prompt.
        (
            "max_new_tokens = 4\n[[method]]\nname = \"speculative-rejection\"\nn = 8\nkv_budget = 10",
            "method speculative-rejection: prompt 0: ",
        ),
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
    let text = "num_prompts = 2\nseeds = [0]\nmax_new_tokens = 6\n\
                [[method]]\nname = \"greedy\"\n[[method]]\nname = \"bon\"\nn = 2\n\
                [[judge]]\nreward = \"assets/demo/reward\"\n\
                [[judge]]\nguard = \"assets/demo/policy\"\nthreshold = 1.0\n";
    let plan = plan(folder.path(), text);
    let found = ggro(&arguments(&plan, &output)).ok().json();
    assert_eq!(found["measures"], json!(["reward", "judge-reward", "guard"]));
    for point in found["points"].as_array().expect("points") {
        assert_eq!(point["measures"][1]["mean"]["count"], 2, "{point}");
        assert!(point["measures"][2]["mean"].is_null() && point["measures"][2]["coverage"].is_null(), "{point}");
    }
    let config = super::read_json(&output.join("bon.seed0.judge-reward.jsonl.config.json"));
    assert_eq!(
        (&config["judge"]["reward"], &config["device"]),
        (&Value::from("assets/demo/reward"), &Value::from("cpu"))
    );
    // Judged by the models themselves; the gold rule is for the demo as it is.
    let pair = ["--policy", "assets/demo/policy", "--reward", "assets/demo/reward"];
    let run = ggro(&[&arguments(&plan, &folder.path().join("same"))[..], &pair[..]].concat()).ok();
    assert!(run.err.contains("judge judge-reward is the reward model that the methods themselves"), "{}", run.err);
    let gold = text.replace("reward = \"assets/demo/reward\"", "gold = true");
    let run = ggro(&[&arguments(&self::plan(folder.path(), &gold), &output)[..], &pair[..]].concat());
    assert!(run.code == Some(2) && run.err.contains("judge gold: gold is the rule of the demo pair"), "{}", run.err);
    let none = text.replace("assets/demo/reward", "no/such");
    let run = ggro(&arguments(&self::plan(folder.path(), &none), &output));
    assert!(run.code == Some(2) && run.err.contains("judge judge-reward: "), "{}", run.err);
}
