//! The binary itself on the emulated device, which stands where libcuda would: the kernels that nvcc made, the launch path, the
//! commands.

use crate::emulated;
use ggro_emulator::Report;
use serde_json::Value;
use std::path::Path;

/// What a run left behind.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
    /// What the device saw.
    report: Report,
}

impl Run {
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        assert!(self.report.faults.is_empty(), "{:#?}", self.report.faults);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    /// Launches of kernels whose name begins like this.
    fn launches(&self, prefix: &str) -> u64 {
        self.report.kernels.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, c)| c.launches).sum()
    }
}

fn ggro(args: &[&str]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let output = emulated::ggro(&report).args(args).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(!err.contains("panicked"), "{err}");
    // There is none if the driver was not asked for.
    let report =
        std::fs::read(&report).map_or_else(|_| Report::default(), |text| serde_json::from_slice(&text).unwrap());
    Run { code: output.status.code(), out, err, report }
}

#[test]
fn the_laboratory_runs_on_a_device() {
    let info = ggro(&["info", "--json"]).ok().json();
    let device = &info["cuda"]["devices"][0];
    assert_eq!((device["capability"].as_str(), device["fits"].as_bool()), (Some("9.0"), Some(true)), "{device}");
    assert!(device["report"].as_str().unwrap().contains("gradient"), "{device}");

    let test = ggro(&["kernels", "test", "--op", "rmsnorm", "--json"]).ok();
    let first: Value = serde_json::from_str(test.out.lines().next().unwrap()).unwrap();
    assert_eq!(first["digest"].as_str().map(str::len), Some(16), "{first}");
    assert!(test.out.lines().count() > 100 && test.launches("rmsnorm") > 100);

    let bench = ggro(&["kernels", "bench", "--op", "nothing"]);
    assert_eq!(bench.code, Some(2));
    assert!(bench.err.contains("no op nothing; there are "), "{}", bench.err);

    // Timing runs; how fast, only a card can say.
    for (op, least) in
        [("rmsnorm", 3), ("top_k", 3), ("candidate_scores", 3), ("copy_rows", 3), ("attention_backward", 3)]
    {
        let bench = ggro(&["kernels", "bench", "--quick", "--json", "--op", op]).ok();
        let timings: Vec<Value> = bench.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mine = timings.iter().filter(|timing| timing["op"] == op && timing["seconds"].as_f64() > Some(0.0));
        assert!(mine.count() >= least && bench.launches(op) >= 3, "{op}: {}", bench.out);
    }

    assert_eq!(test.report.profiler, [0, 0]);
}

#[test]
fn answers_come_from_a_device() {
    // The device by default, found like any other.
    let ask = ["Write a story about a kite.", "--max-new-tokens", "10", "--entropy-threshold", "2"];
    let generate = ggro(&[&["generate", "--json"], &ask[..]].concat()).ok();
    let answer = generate.json();
    assert_eq!(answer["device"], "cuda:0", "{answer}");
    assert!(answer["num_nudges"].as_u64() > Some(0), "{answer}");
    assert!(generate.err.contains("memory: ") && generate.err.contains("device: cuda:0"), "{}", generate.err);
    for kernel in ["gemm_backward", "attention_backward", "candidate_scores", "softmax_entropy", "kv_copy"] {
        assert!(generate.launches(kernel) > 0, "{kernel} never ran");
    }
    let sampled =
        ggro(&["generate", "--json", "--method", "bon", "--n", "2", "--max-new-tokens", "6", "Tell me more."]).ok();
    assert_eq!(sampled.json()["device"], "cuda:0", "{}", sampled.out);

    let small = ggro(&["generate", "--device", "cuda", "--gpu-memory-utilization", "0.001", "Hello."]);
    assert_eq!(small.code, Some(2), "{}", small.err);
    assert!(small.err.contains("the pair does not fit the device: "), "{}", small.err);
    let absent = ggro(&["generate", "--device", "cuda:7", "Hello."]);
    assert_eq!(absent.code, Some(2), "{}", absent.err);
    assert!(absent.err.contains("--device cuda:7: ") && absent.err.contains("use --device cpu"), "{}", absent.err);
}

/// Whole models are timed. How fast they are, only a card can say.
#[test]
fn models_are_timed_on_a_device() {
    // Random models, made on the device: every pass, decode steps and gradients both ways, whole answers.
    let sizes = ["--rows", "1,3", "--context", "8", "--prefill", "16", "--candidates", "2", "--segment", "4"];
    let common = ["-o", "jsonl", "--synthetic", "demo", "--max-model-len", "256"];
    let window = ["--profile-steps", "2-3"];
    let passes =
        [&["bench", "latency", "--no-limits", "--prefix", "8", "--runs", "1"], &sizes[..], &common, &window].concat();
    let passes = ggro(&passes).ok();
    // Once each: a profiler that waits for it collects in the window and not outside.
    assert_eq!(passes.report.profiler, [1, 1]);
    let rows =
        |out: &str| -> Vec<Value> { out.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect() };
    let header: Value = serde_json::from_str(passes.out.lines().next().unwrap()).unwrap();
    assert_eq!(header["header"]["driver"], "13.0", "{header}");
    assert_eq!(header["header"]["device_kind"], "cuda 9.0", "{header}");
    assert_eq!(header["header"]["kernels"], "sm90", "{header}");
    assert_eq!(header["header"]["clocks_mhz"], serde_json::json!([1980, 2619]), "{header}");
    let phases: Vec<String> = rows(&passes.out)
        .into_iter()
        .map(|case| format!("{} {}", case["phase"].as_str().unwrap(), case["launch"].as_str().unwrap()))
        .collect();
    let expected = [
        "prefill ",
        "decode graph",
        "decode graph",
        "reward ",
        "gradient graph",
        "decode eager",
        "decode eager",
        "gradient eager",
    ];
    assert_eq!(phases, expected);
    assert!(passes.launches("random_fill") > 50, "the weights were made on the device");
    let short = ["--prompt", "8", "--tokens", "12", "--segment", "5", "--candidates", "3", "--speculation", "off,3"];
    let once = ["--runs", "1", "--warmup", "0", "--no-limits", "--best-of", "2"];
    let answers = rows(&ggro(&[&["bench", "ggro"], &short[..], &common, &once].concat()).ok().out);
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[1]["ids"], answers[2]["ids"]);
    assert!(answers.iter().all(|answer| answer["answer"]["reward"].as_f64().is_some()));
    let batch = ["--batch", "2", "--prompt", "5", "--tokens", "4"];
    let batch = rows(&ggro(&[&["bench", "throughput"], &batch[..], &common, &once[..5]].concat()).ok().out);
    assert_eq!(batch[0]["rows"], 2);
}

#[test]
fn verify_replays_a_fixture_on_a_device() {
    let folder = Path::new("tests/goldens/llama-mha-tied");
    let verify = ggro(&["verify", "--device", "cuda", "--json", folder.to_str().unwrap()]).ok();
    let object = verify.json();
    assert_eq!(object["failed"], 0, "{object}");
    println!("{}", object["folders"][0]["checks"]);
    assert!(verify.launches("attention_backward") > 0);
}
