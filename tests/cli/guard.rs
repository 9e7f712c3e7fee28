//! `ggro guard`, with a guard that is made here: a model of no layers to speak of, whose head leads from one token to the next.

use super::{ggro, utf8};
use ggro::files::checkpoint::Files;
use ggro::files::tokenizer::Tokenizer;
use ggro_testkit::random::XorShift;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const VOCABULARY: usize = 4096;
const WIDTH: usize = 64;

/// Says `unsafe` and a category of answers with "bad" in them, and `safe` of all others.
fn guard(folder: &Path) -> PathBuf {
    let dir = folder.join("guard");
    std::fs::create_dir(&dir).expect("a folder");
    let demo = Path::new("assets/demo/policy");
    std::fs::copy(demo.join("tokenizer.json"), dir.join("tokenizer.json")).expect("a tokenizer");
    let write = |name: &str, value: &Value| std::fs::write(dir.join(name), value.to_string()).expect("written");
    let tokenizer = Tokenizer::load(&Files::Dir(demo.to_path_buf())).expect("a tokenizer");
    let template =
        "{{ messages[0].content }} | {{ messages[1].content }} |{{ ' B' if 'bad' in messages[1].content else ' G' }}";
    write("tokenizer_config.json", &json!({ "eos_token": "<|eot_id|>", "chat_template": template }));
    write(
        "config.json",
        &json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": WIDTH,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
            "vocab_size": VOCABULARY, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        }),
    );
    // Every token a direction of its own, and (no word has a token twice) after the last token of each question the words of the answer.
    let mut random = XorShift::new(1);
    let mut sign = || if random.below(2) == 0 { 1.0 } else { -1.0 };
    let embedding: Vec<f32> = (0..VOCABULARY * WIDTH).map(|_| sign()).collect();
    let mut head = vec![0f32; VOCABULARY * WIDTH];
    let end = tokenizer.id("<|eot_id|>").expect("an end");
    let ids = |text: &str| tokenizer.encode(text).expect("plain text");
    for (mark, words) in [("x | x | G", " safe"), ("x | x | B", "unsafe\nS1")] {
        let mut last = *ids(mark).last().expect("a token");
        for id in ids(words).into_iter().chain([end]) {
            for i in 0..WIDTH {
                head[id as usize * WIDTH + i] += embedding[last as usize * WIDTH + i];
            }
            last = id;
        }
    }
    let ones = vec![1f32; WIDTH];
    let zeros = vec![0f32; WIDTH * WIDTH];
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors: Vec<(String, Vec<usize>, &[f32])> = vec![
        ("model.embed_tokens.weight".to_string(), vec![VOCABULARY, WIDTH], &embedding),
        ("lm_head.weight".to_string(), vec![VOCABULARY, WIDTH], &head),
        ("model.norm.weight".to_string(), vec![WIDTH], &ones),
        (layer("input_layernorm"), vec![WIDTH], &ones),
        (layer("post_attention_layernorm"), vec![WIDTH], &ones),
    ];
    for name in ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        tensors.push((layer(name), vec![WIDTH, WIDTH], &zeros));
    }
    for name in ["self_attn.k_proj", "self_attn.v_proj"] {
        tensors.push((layer(name), vec![WIDTH / 2, WIDTH], &zeros[..WIDTH * WIDTH / 2]));
    }
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, data)| data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"))
    });
    let file = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("a file");
    std::fs::write(dir.join("model.safetensors"), file).expect("written");
    dir
}

fn rows(folder: &Path, answers: &[&str]) -> PathBuf {
    let path = folder.join("out.jsonl");
    let row = |(index, answer): (usize, &&str)| {
        json!({"index": index, "prompt": format!("Prompt {index}"), "answer": null, "metadata": null, "full_text": "",
               "response": answer, "reward": 0.0, "num_nudges": 0, "segment_boundaries": [], "elapsed_seconds": 0.0})
    };
    let text: String = answers.iter().enumerate().map(|pair| format!("{}\n", row(pair))).collect();
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn answers_are_judged() {
    let folder = tempfile::tempdir().expect("a folder");
    let guard = guard(folder.path());
    let long = format!("it was good {}", "and good ".repeat(200));
    let file = rows(folder.path(), &["it was good", "it was bad", "good", "a bad day", &long]);
    let run = ggro(&["guard", utf8(&file), "--model", utf8(&guard)]).ok();
    for part in ["verdicts    5", "unsafe      40.0 % (", "S1        2"] {
        assert!(run.out.contains(part), "no {part:?} in {}", run.out);
    }
    let output = folder.path().join("out.guard.jsonl");
    let text = std::fs::read_to_string(&output).expect("verdicts");
    let verdicts: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a verdict")).collect();
    let safe: Vec<_> = verdicts.iter().map(|verdict| verdict["safe"].as_bool()).collect();
    assert_eq!(safe, [Some(true), Some(false), Some(true), Some(false), Some(true)]);
    assert_eq!(verdicts[1]["categories"], json!(["S1"]));

    // A half verdict is asked for again, whole ones are not.
    let cut = &text[..text.len() - 20];
    std::fs::write(&output, cut).expect("written");
    let object = ggro(&["guard", utf8(&file), "--model", utf8(&guard), "--json"]).ok().json();
    assert_eq!(
        (&object["verdicts"], &object["unsafe"]["count"], &object["neither"]),
        (&json!(5), &json!(5), &json!(0))
    );
    assert_eq!(std::fs::read_to_string(&output).expect("verdicts"), text);

    // Rows of a run are no verdicts, whoever names them.
    let options = folder.path().join("out.jsonl.config.json");
    std::fs::write(&options, json!({"ggro": "0.1.0", "policy": "demo", "seed": 0}).to_string()).expect("written");
    let other = folder.path().join("other.jsonl");
    std::fs::copy(&file, &other).expect("a copy");
    std::fs::copy(&options, folder.path().join("other.jsonl.config.json")).expect("a copy");
    let refused = |args: &[&str], part: &str| {
        let run = ggro(&[&["guard", utf8(&file), "--model", utf8(&guard)], args].concat());
        assert!(run.code == Some(2) && run.err.contains(part), "no {part:?} in {}", run.err);
    };
    refused(&["--output", utf8(&file)], "is an input of this command");
    refused(&["--output", utf8(&other)], "holds rows of `ggro run`; use another output file");
    // A verdict on an answer that is another one now is not taken for its verdict.
    let changed = std::fs::read_to_string(&file).expect("rows").replace("it was bad", "it was worse");
    std::fs::write(&file, changed).expect("written");
    refused(&[], "line 2: verdict 1 judges another answer than that of the input");
}

/// What was passed over has no answer to be judged; an index may be any number.
#[test]
fn only_answers_are_judged() {
    let folder = tempfile::tempdir().expect("a folder");
    let guard = guard(folder.path());
    let file = rows(folder.path(), &["it was good", "", "it was bad"]);
    let mut all: Vec<Value> = std::fs::read_to_string(&file)
        .expect("rows")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    all[1]["skipped"] = json!("too long");
    all[2]["index"] = json!(u64::MAX);
    std::fs::write(&file, all.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("written");
    let object = ggro(&["guard", utf8(&file), "--model", utf8(&guard), "--json"]).ok().json();
    assert_eq!((&object["verdicts"], &object["categories"]["S1"]), (&json!(2), &json!(1)));
    // A prompt that is too long for the guard ends the command, unless it may be passed over.
    all[0]["prompt"] = json!("good ".repeat(200));
    all[2]["index"] = json!(2);
    std::fs::write(&file, all.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("written");
    let other = folder.path().join("other.jsonl");
    let args = ["guard", utf8(&file), "--model", utf8(&guard), "--json", "--output", utf8(&other)];
    let run = ggro(&args);
    assert!(run.code == Some(2) && run.err.contains("prompt 0: ") && run.err.contains("context of 128"), "{}", run.err);
    let run = ggro(&[&args[..], &["--skip-too-long"]].concat()).ok();
    let object = run.json();
    assert_eq!((&object["verdicts"], &object["skipped"], &object["neither"]), (&json!(1), &json!(1), &json!(0)));
    let run = ggro(&["guard", utf8(&file), "--model", utf8(&guard), "--output", utf8(&other)]).ok();
    assert!(run.err.contains("passed over 1 prompt") && run.out.contains("verdicts    1\n"), "{}{}", run.out, run.err);
}

#[test]
fn what_is_no_guard_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = rows(folder.path(), &["fine"]);
    let goldens = Path::new("tests/goldens/mistral");
    for (model, part) in [(goldens.join("reward"), "expected a policy"), (folder.path().join("none"), "none")] {
        let run = ggro(&["guard", utf8(&file), "--model", utf8(&model)]);
        assert_eq!(run.code, Some(2), "{}", run.err);
        assert!(run.err.contains(part), "no {part:?} in {}", run.err);
    }
}
