//! Directories as people have them: one change each to a golden pair, and what comes of it. What `transformers` runs gives the
//! numbers that it gives there, which are those of the unchanged pair; the rest is refused in words.

use crate::{goldens, read_json, refused};
use ggro::files::checkpoint::Files;
use ggro::files::pair::Pair;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{GradientSpan, ModelPair, RewardSpan, Role, Span};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tensors by name: type, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a golden pair.
struct Found {
    dir: tempfile::TempDir,
    head: Option<&'static str>,
}

impl Found {
    fn copy(fixture: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for role in ["policy", "reward"] {
            std::fs::create_dir(dir.path().join(role)).unwrap();
            for file in std::fs::read_dir(goldens().join(fixture).join(role)).unwrap() {
                let file = file.unwrap();
                let target = dir.path().join(role).join(file.file_name());
                std::fs::write(target, std::fs::read(file.path()).unwrap()).unwrap();
            }
        }
        Found { dir, head: None }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn json(self, file: &str, edit: impl FnOnce(&mut Value)) -> Self {
        let path = self.path(file);
        let mut value = if path.exists() { read_json(&path) } else { json!({}) };
        edit(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
        self
    }

    fn set(self, file: &str, field: &str, value: Value) -> Self {
        self.json(file, |json| json[field] = value)
    }

    fn unset(self, file: &str, fields: &[&str]) -> Self {
        self.json(file, |json| fields.iter().for_each(|field| drop(json.as_object_mut().unwrap().remove(*field))))
    }

    fn file(self, file: &str, content: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.path(file), content).unwrap();
        self
    }

    fn without(self, file: &str) -> Self {
        std::fs::remove_file(self.path(file)).unwrap();
        self
    }

    fn tensors(self, role: &str, edit: impl FnOnce(&mut Tensors)) -> Self {
        let path = self.path(role).join("model.safetensors");
        let mut tensors = read_tensors(&path);
        edit(&mut tensors);
        write_tensors(&path, &tensors);
        self
    }

    fn renamed(self, role: &str, name: impl Fn(&str) -> String) -> Self {
        self.tensors(role, |tensors| {
            *tensors = std::mem::take(tensors).into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
        })
    }

    fn load(&self) -> ggro::Result<Pair> {
        let files = |role: &str| Files::Dir(self.path(role));
        Pair::load_with_head(&files("policy"), &files("reward"), self.head)
    }

    /// Logits, reward and gradient on a short text, to the bit, and the notes.
    #[track_caller]
    fn answers(&self) -> (Answers, Vec<String>) {
        let pair = self.load().unwrap_or_else(|e| panic!("{e}"));
        (answers(&pair), pair.notes.clone())
    }
}

fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let tensor =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    read.tensors().into_iter().map(tensor).collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
}

#[derive(Clone, Debug, PartialEq)]
struct Answers {
    logits: Vec<u32>,
    reward: f32,
    gradient: Vec<u32>,
}

const IDS: [u32; 9] = [3, 17, 42, 99, 7, 250, 11, 30, 5];

fn answers(pair: &Pair) -> Answers {
    let mut models: ModelPair = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    let logits = bits(&models.policy_rows(&IDS).unwrap().logits);
    let seq = models.create(Role::Reward).unwrap();
    let span = RewardSpan { span: Span { seq, start: 0, ids: &IDS }, also_at: &[] };
    let asked = GradientSpan { span, slot: 2, candidates: &[1, 2], rows: true };
    let gradient = models.reward_gradient(&[asked]).unwrap().remove(0);
    models.release(seq);
    let seq = models.create(Role::Reward).unwrap();
    let span = RewardSpan { span: Span { seq, start: 0, ids: &IDS }, also_at: &[] };
    let reward = models.reward_score(&[span]).unwrap()[0].reward;
    assert!((reward - gradient.score.reward).abs() < 1e-5);
    Answers { logits, reward, gradient: bits(&gradient.rows) }
}

#[track_caller]
fn noted(notes: &[String], parts: &[&str]) {
    let found = notes.iter().any(|note| parts.iter().all(|part| note.contains(part)));
    assert!(found, "{parts:?} is in none of {notes:?}");
}

#[track_caller]
fn as_before(found: &Found, fixture: &str) -> Vec<String> {
    let (found, notes) = found.answers();
    assert_eq!(found, Found::copy(fixture).answers().0);
    notes
}

#[test]
fn golden_pairs_leave_nothing_to_say() {
    for fixture in crate::FIXTURES {
        assert_eq!(Found::copy(fixture).load().unwrap().notes, [""; 0], "{fixture}");
    }
}

#[test]
fn a_stored_head_that_differs_from_the_embedding_is_used() {
    let tie = |found: Found| found.set("policy/config.json", "tie_word_embeddings", json!(true));
    let differs = tie(Found::copy("llama-gqa"));
    noted(&as_before(&differs, "llama-gqa"), &["policy", "`lm_head.weight`", "differs", "tie_word_embeddings"]);
    let parameters = |found: &Found| found.load().unwrap().policy().unwrap().config.num_parameters();
    assert_eq!(parameters(&differs), parameters(&Found::copy("llama-gqa")));

    // The same numbers, in the same type and in another: one matrix.
    let twice = Found::copy("llama-mha-tied").tensors("policy", |tensors| {
        let embedding = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_string(), embedding);
    });
    assert_eq!(as_before(&twice, "llama-mha-tied"), [""; 0]);
    assert_eq!(parameters(&twice), parameters(&Found::copy("llama-mha-tied")));
    let wider = tie(Found::copy("llama-gqa")).tensors("policy", |tensors| {
        let (dtype, shape, data) = tensors["model.embed_tokens.weight"].clone();
        assert_eq!(dtype, Dtype::BF16);
        let data = data.chunks_exact(2).flat_map(|pair| [0, 0, pair[0], pair[1]]).collect();
        tensors.insert("lm_head.weight".to_string(), (Dtype::F32, shape, data));
    });
    let pair = wider.load().unwrap();
    assert!(pair.policy().unwrap().config.tie_word_embeddings && pair.notes.is_empty(), "{:?}", pair.notes);

    // Only the head is there: it is the embedding too.
    let swapped = Found::copy("llama-mha-tied").renamed("policy", |name| match name {
        "model.embed_tokens.weight" => "lm_head.weight".to_string(),
        name => name.to_string(),
    });
    as_before(&swapped, "llama-mha-tied");
    let none = Found::copy("llama-gqa").tensors("policy", |tensors| drop(tensors.remove("lm_head.weight")));
    refused(none.load(), &["policy/model.safetensors", "`lm_head.weight`", "no such tensor", "`tie_word_embeddings`"]);
}

#[test]
fn names_without_their_prefix_or_with_a_wrapper() {
    type Rename = fn(&str) -> String;
    let wrapped: [(Rename, bool); 6] = [
        (|name| name.strip_prefix("model.").unwrap_or(name).to_string(), false),
        (|name| format!("module.{name}"), true),
        (|name| format!("_orig_mod.{name}"), true),
        (|name| format!("module._orig_mod.{name}"), true),
        (|name| format!("model.{name}"), true),
        (|name| name.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."), true),
    ];
    for (rename, note) in wrapped {
        for role in ["policy", "reward"] {
            let found = Found::copy("llama-gqa").renamed(role, rename);
            let notes = as_before(&found, "llama-gqa");
            assert_eq!(!notes.is_empty(), note, "{notes:?}");
        }
    }
    let peft = Found::copy("llama-gqa").renamed("policy", |name| format!("base_model.model.{name}"));
    refused(peft.load(), &["base_model.model.", "PEFT", "merge"]);
    let peft =
        Found::copy("llama-gqa").renamed("reward", |name| name.replace("q_proj.weight", "q_proj.base_layer.weight"));
    refused(peft.load(), &["q_proj.weight", "base_layer", "PEFT"]);
    // Another decoder beside a model whose names lack their prefix.
    let beside = Found::copy("llama-gqa")
        .renamed("policy", |name| name.strip_prefix("model.").unwrap_or(name).to_string())
        .tensors("policy", |tensors| add_bias(tensors, "eagle.layers.0.input_layernorm.weight"));
    noted(&as_before(&beside, "llama-gqa"), &["`eagle.layers.0.input_layernorm.weight`", "not used"]);
    let inside = Found::copy("llama-gqa").renamed("policy", |name| format!("language_model.{name}"));
    refused(inside.load(), &["names begin with `language_model.model.`"]);
    let both = Found::copy("llama-gqa").tensors("policy", |tensors| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("module.model.norm.weight".to_string(), norm);
    });
    refused(both.load(), &["`model.norm.weight`", "`module.model.norm.weight`", "would both be"]);
    let less = Found::copy("llama-gqa").set("policy/config.json", "num_hidden_layers", json!(4));
    refused(less.load(), &["model.layers.3.", "holds 3 layers", "4"]);
    let quantised = Found::copy("llama-gqa").renamed("policy", |name| name.replace("q_proj.weight", "q_proj.qweight"));
    refused(quantised.load(), &["q_proj.weight", "qweight", "quantised"]);
}

fn head_called(name: &'static str) -> Found {
    Found::copy("llama-gqa")
        .renamed("reward", move |old| if old == "score.weight" { name.to_string() } else { old.to_string() })
}

fn add_bias(tensors: &mut Tensors, name: &str) {
    tensors.insert(name.to_string(), (Dtype::F32, vec![1], 5.0f32.to_le_bytes().to_vec()));
}

#[test]
fn score_heads_under_other_names() {
    for name in [
        "v_head.summary.weight",
        "score_head.weight",
        "regression_head.weight",
        "score.0.weight",
        "value_head.weight",
        "rm_head.weight",
    ] {
        refused(head_called(name).load(), &["`score.weight`", "no such tensor", &format!("`{name}`")]);
        for head in [name, name.strip_suffix(".weight").unwrap()] {
            as_before(&Found { head: Some(head), ..head_called(name) }, "llama-gqa");
        }
        let bias = name.replace(".weight", ".bias");
        let biased = head_called(name).tensors("reward", |tensors| add_bias(tensors, &bias));
        let (with, notes) = Found { head: Some(name), ..biased }.answers();
        let without = Found::copy("llama-gqa").answers().0;
        assert_eq!(with.reward, without.reward + 5.0);
        assert_eq!((with.gradient, notes), (without.gradient, Vec::new()));
    }
    refused(Found { head: Some("nothing"), ..Found::copy("llama-gqa") }.load(), &["`nothing`", "`score.weight`"]);
    let peft = head_called("score.modules_to_save.default.weight");
    refused(peft.load(), &["score.modules_to_save.default.weight", "PEFT"]);
    // The class decides nothing where the head is named.
    for class in ["LlamaForCausalLM", "AtheneForSequenceClassification", "LlamaForTokenClassification"] {
        let found = head_called("v_head.weight").set("reward/config.json", "architectures", json!([class]));
        as_before(&Found { head: Some("v_head.weight"), ..found }, "llama-gqa");
    }
    let wide = head_called("score.weight").tensors("reward", |tensors| {
        let wide = tensors["model.layers.0.self_attn.k_proj.weight"].clone();
        tensors.insert("v_head.weight".to_string(), wide);
    });
    refused(Found { head: Some("v_head.weight"), ..wide }.load(), &["`v_head.weight`", "one row", "32 labels"]);
}

#[test]
fn models_of_one_linear_row() {
    let as_class = |found: Found, class: &str| found.set("reward/config.json", "architectures", json!([class]));
    for (class, head) in [("LlamaModelForScore", "score_head"), ("LlamaRewardModel", "regression_head")] {
        let name: &'static str = format!("{head}.weight").leak();
        let plain = as_class(head_called(name), class);
        as_before(&plain, "llama-gqa");
        let biased = plain.tensors("reward", |tensors| add_bias(tensors, &format!("{head}.bias")));
        let (with, notes) = biased.answers();
        assert_eq!((with.reward, notes), (Found::copy("llama-gqa").answers().0.reward + 5.0, Vec::new()));
        let parameters = |found: &Found| found.load().unwrap().reward().unwrap().config.num_parameters();
        assert_eq!(parameters(&biased), parameters(&Found::copy("llama-gqa")) + 1);
        refused(as_class(head_called("score.weight"), class).load(), &[&format!("`{name}`"), "`score.weight`"]);
    }
    let score = || as_class(head_called("score_head.weight"), "LlamaModelForScore");
    refused(score().set("reward/config.json", "do_normalize", json!(true)).load(), &["`do_normalize`"]);
    refused(score().set("reward/config.json", "score_dim", json!(2)).load(), &["`score_dim`", "found 2"]);
    noted(&as_before(&score().set("reward/config.json", "score_type", json!("cost")), "llama-gqa"), &["worse text"]);
    // What the normaliser keeps is no weight that is left out.
    let kept = score().tensors("reward", |tensors| add_bias(tensors, "normalizer.mean"));
    assert_eq!(as_before(&kept, "llama-gqa"), [""; 0]);
}

#[test]
fn the_head_says_how_many_labels_there_are() {
    let unsaid = || Found::copy("llama-gqa").unset("reward/config.json", &["id2label", "label2id", "num_labels"]);
    as_before(&unsaid(), "llama-gqa");
    let two = unsaid().tensors("reward", |tensors| {
        let (dtype, shape, data) = tensors["score.weight"].clone();
        let two = (dtype, vec![2, shape[1]], data.repeat(2));
        tensors.insert("score.weight".to_string(), two);
    });
    refused(two.load(), &["`score.weight`", "one label", "2 labels"]);
}

#[test]
fn tensors_that_nobody_reads_are_told() {
    let score_bias = Found::copy("llama-gqa").tensors("reward", |tensors| add_bias(tensors, "score.bias"));
    noted(&as_before(&score_bias, "llama-gqa"), &["reward model: ", "`score.bias`", "not used"]);
    let fewer = Found::copy("llama-gqa").set("policy/config.json", "num_hidden_layers", json!(2));
    noted(&fewer.load().unwrap().notes, &["policy: ", "tensors of the checkpoint are not used", "`model.layers.2."]);
    let half_merged = Found::copy("llama-gqa").tensors("policy", |tensors| {
        add_bias(tensors, "model.layers.0.self_attn.q_proj.lora_A.weight");
        add_bias(tensors, "model.layers.0.self_attn.q_proj.bias");
    });
    noted(&as_before(&half_merged, "llama-gqa"), &["2 tensors", "`model.layers.0.self_attn.q_proj."]);
    let tables = Found::copy("llama-gqa")
        .tensors("policy", |tensors| add_bias(tensors, "model.layers.0.self_attn.rotary_emb.inv_freq"))
        .tensors("reward", |tensors| add_bias(tensors, "lm_head.weight"));
    assert_eq!(as_before(&tables, "llama-gqa"), [""; 0]);
}

#[test]
fn special_tokens_may_have_other_names() {
    let rename = |old: &'static str, new: &'static str| {
        move |json: &mut Value| {
            let tokens = json["added_tokens"].as_array_mut().unwrap();
            tokens.iter_mut().filter(|token| token["content"] == old).for_each(|token| token["content"] = json!(new));
        }
    };
    let renamed = || {
        let tokenizer = rename("<|end_of_text|>", "<|finetune_right_pad_id|>");
        Found::copy("llama-gqa").json("reward/tokenizer.json", tokenizer)
    };
    let notes = as_before(&renamed(), "llama-gqa");
    noted(&notes, &["one special token", "id 636", "<|end_of_text|>", "<|finetune_right_pad_id|>"]);
    let ordinary = renamed().json("reward/tokenizer.json", |json| {
        json["added_tokens"].as_array_mut().unwrap().iter_mut().for_each(|token| token["special"] = json!(false));
    });
    refused(ordinary.load(), &["the tokenizers differ: id 636"]);
}

#[test]
fn tokens_beyond_the_embedding_are_refused_where_they_are_used() {
    let pad = |json: &mut Value| {
        json["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": 640, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }));
    };
    for role in ["policy", "reward"] {
        let found = Found::copy("llama-gqa").json(&format!("{role}/tokenizer.json"), pad);
        as_before(&found, "llama-gqa");
        let pair = found.load().unwrap();
        let models = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
        let ids = pair.tokenizer.encode("Hello [PAD]").unwrap();
        assert_eq!(ids.contains(&640), role == "policy");
        if role == "policy" {
            refused(
                ggro::engine::check_prompt(&models, &ids, 1),
                &["640", "beyond the policy model's vocabulary of 640"],
            );
        }
    }
}

#[test]
fn ids_that_are_hints_are_left_out() {
    let stop_ids = |found: &Found| found.load().unwrap().policy().unwrap().stop_ids.clone();
    let usual = stop_ids(&Found::copy("llama-gqa"));
    for file in ["policy/config.json", "reward/config.json"] {
        let found = Found::copy("llama-gqa").set(file, "pad_token_id", json!(-1));
        noted(&as_before(&found, "llama-gqa"), &["`pad_token_id` -1"]);
        assert_eq!(found.load().unwrap().reward_pad_id(), None);
    }
    let found = Found::copy("llama-gqa").set("policy/config.json", "pad_token_id", json!(640));
    as_before(&found, "llama-gqa");
    let found = Found::copy("llama-gqa").set("policy/config.json", "eos_token_id", json!(-1));
    noted(&as_before(&found, "llama-gqa"), &["config.json: `eos_token_id` -1"]);
    let found =
        Found::copy("llama-gqa").set("policy/generation_config.json", "eos_token_id", json!([636, 639, 128009]));
    noted(&as_before(&found, "llama-gqa"), &["generation_config.json: `eos_token_id` 128009", "640"]);
    assert_eq!(stop_ids(&found), usual);
}

fn shard_names(found: &Found) -> Vec<String> {
    let names = std::fs::read_dir(found.path("policy")).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.contains("-of-")).collect();
    names.sort();
    names
}

#[test]
fn what_an_index_may_say_besides() {
    const INDEX: &str = "policy/model.safetensors.index.json";
    let shards = shard_names(&Found::copy("qwen2-sharded"));
    let (first, last) = (shards[0].clone(), shards[shards.len() - 1].clone());
    let entry = |name: &'static str, shard: &str| {
        let shard = shard.to_string();
        move |json: &mut Value| json["weight_map"][name] = json!(shard)
    };
    as_before(&Found::copy("qwen2-sharded").json(INDEX, entry("mtp.fc.weight", &first)), "qwen2-sharded");
    as_before(
        &Found::copy("qwen2-sharded").json(INDEX, entry("model.norm.weight", &format!("./{first}"))),
        "qwen2-sharded",
    );
    // Where the index and a shard disagree, the shard knows.
    as_before(&Found::copy("qwen2-sharded").json(INDEX, entry("model.norm.weight", &first)), "qwen2-sharded");
    let twice = |change: u8| {
        let found = Found::copy("qwen2-sharded");
        let (one, other) = (found.path("policy").join(&first), found.path("policy").join(&last));
        let (mut ours, theirs) = (read_tensors(&one), read_tensors(&other));
        let (name, mut tensor) = theirs.into_iter().next().unwrap();
        tensor.2[0] ^= change;
        ours.insert(name, tensor);
        write_tensors(&one, &ours);
        found
    };
    assert_eq!(as_before(&twice(0), "qwen2-sharded"), [""; 0]);
    noted(&as_before(&twice(1), "qwen2-sharded"), &["in two files", &first, &last]);
    let lacks = Found::copy("qwen2-sharded").json(INDEX, entry("model.norm.weight", &first));
    let holder =
        shards.iter().find(|shard| read_tensors(&lacks.path("policy").join(shard)).contains_key("model.norm.weight"));
    let path = lacks.path("policy").join(holder.unwrap());
    let mut tensors = read_tensors(&path);
    tensors.remove("model.norm.weight");
    write_tensors(&path, &tensors);
    refused(lacks.load(), &["index.json", "`model.norm.weight`", &format!("found none in `{first}`")]);
}

#[test]
fn what_python_writes_is_read() {
    let text = |found: &Found, file: &str| std::fs::read_to_string(found.path(file)).unwrap();
    let with = |file: &str, more: &str| {
        let found = Found::copy("llama-gqa");
        let content = text(&found, file).replacen('{', &format!("{{{more},"), 1);
        found.file(file, content)
    };
    as_before(&with("policy/config.json", "\"initializer_range\": NaN"), "llama-gqa");
    as_before(&with("reward/tokenizer_config.json", "\"model_max_length\": Infinity"), "llama-gqa");
    refused(
        Found::copy("llama-gqa")
            .file("policy/config.json", "{\"architectures\": [\"LlamaForCausalLM\"], \"rms_norm_eps\": NaN}")
            .load(),
        &["`rms_norm_eps`", "NaN"],
    );
    for file in
        ["policy/config.json", "policy/tokenizer.json", "policy/tokenizer_config.json", "policy/generation_config.json"]
    {
        let found = Found::copy("llama-gqa");
        let marked = format!("\u{feff}{}", text(&found, file));
        as_before(&found.file(file, marked), "llama-gqa");
    }
    let found = Found::copy("qwen2-sharded");
    let file = "policy/model.safetensors.index.json";
    let marked = format!("\u{feff}{}", text(&found, file));
    as_before(&found.file(file, marked), "qwen2-sharded");
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4665465b\nsize 4976698672\n";

#[test]
fn files_that_are_something_else() {
    let weights = "policy/model.safetensors";
    for (file, content, parts) in [
        (weights, POINTER.as_bytes(), ["git-lfs pointer", "git lfs pull"]),
        ("policy/tokenizer.json", POINTER.as_bytes(), ["git-lfs pointer", "git lfs pull"]),
        ("reward/config.json", POINTER.as_bytes(), ["git-lfs pointer", "org/name"]),
        ("policy/tokenizer_config.json", POINTER.as_bytes(), ["git-lfs pointer", "git lfs pull"]),
        ("policy/generation_config.json", POINTER.as_bytes(), ["git-lfs pointer", "git lfs pull"]),
        (weights, b"GGUF\x03\0\0\0\x24\0\0\0\0\0\0\0", ["GGUF", "safetensors checkpoint"]),
        (weights, b"PK\x03\x04\0\0\x08\x08\0\0", ["zip archive", "convert"]),
        (weights, b"\x80\x02}q\0X\x05\0\0\0", ["pickle", "convert"]),
        (weights, b"<!DOCTYPE html>\n<html class=\"\">", ["HTML page", "login"]),
        ("policy/config.json", b"<!DOCTYPE html>\n<html class=\"\">", ["expected a JSON object", "HTML page"]),
        ("policy/tokenizer.json", b"<html>", ["expected a tokenizer", "HTML page"]),
        (weights, b"Entry not found", ["text that begins with", "Entry not found"]),
        (weights, &[0; 20_000], ["zeros", "download"]),
        (weights, b"", ["at least 8 bytes", "empty"]),
        ("policy/config.json", b"", ["expected a JSON object", "empty"]),
        ("policy/config.json", b"\xff\xfe{\0}\0", ["UTF-16", "UTF-8"]),
    ] {
        let message = refused(Found::copy("llama-gqa").file(file, content).load(), &parts);
        assert!(message.contains(file), "{message}");
    }
    let found = Found::copy("llama-gqa");
    let whole = std::fs::read(found.path(weights)).unwrap();
    refused(found.file(weights, &whole[..whole.len() - 20_480]).load(), &["20480 bytes short", "incomplete download"]);
    refused(Found::copy("llama-gqa").file(weights, &whole[..100]).load(), &["bytes short", "incomplete download"]);
}

#[test]
fn directories_that_are_something_else() {
    let only = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    };
    let adapter = r#"{"base_model_name_or_path": "org/base"}"#;
    for (files, parts) in [
        (
            &[("adapter_config.json", adapter), ("adapter_model.safetensors", "")][..],
            &["PEFT adapter", "org/base", "merge"][..],
        ),
        (&[("model-Q4_K_M.gguf", "GGUF")], &["`model-Q4_K_M.gguf`", "GGUF is not read"]),
        (&[("params.json", "{}"), ("consolidated.safetensors", "")], &["params.json", "Mistral"]),
        (&[("params.json", "{}"), ("consolidated.00.pth", "")], &["params.json", "Meta"]),
        (&[("llama/config.json", "{}")], &["`llama`", "give that one"]),
        (&[("readme.md", "")], &["config.json: no such file"]),
    ] {
        let dir = only(files);
        refused(Pair::policy_only(&Files::Dir(dir.path().into())), parts);
    }
    let dir = only(&[("models--org--pol/refs/main", "abc"), ("models--org--pol/snapshots/abc/config.json", "{}")]);
    let cache = Files::Dir(dir.path().join("models--org--pol"));
    refused(Pair::policy_only(&cache), &["Hugging Face cache", "org/pol", "snapshots/COMMIT"]);

    // Beside a config.
    let weightless = |names: &[&str]| {
        let found = Found::copy("llama-gqa").without("policy/model.safetensors");
        names.iter().fold(found, |found, name| found.file(&format!("policy/{name}"), ""))
    };
    for (names, parts) in [
        (&["model.Q8_0.gguf"][..], &["`model.Q8_0.gguf`", "GGUF"][..]),
        (
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            &["`model-00001-of-00002.safetensors`", "2 of the", "index"],
        ),
        (&["pytorch_model.safetensors"], &["`pytorch_model.safetensors`", "name them `model.safetensors`"]),
        (&["pytorch_model-00001-of-00002.bin"], &["pickle", "convert"]),
        (&["consolidated.safetensors"], &["`consolidated.safetensors`", "Mistral"]),
        (&["model.safetensors.incomplete"], &["`model.safetensors.incomplete`", "download"]),
        (&["tf_model.h5"], &["`tf_model.h5`", "convert"]),
        (&[], &["found neither"]),
    ] {
        refused(weightless(names).load(), parts);
    }
    let found = Found::copy("llama-gqa").without("policy/tokenizer.json").file("policy/tokenizer.model", "");
    refused(found.load(), &["tokenizer.json: no such file", "`tokenizer.model`", "save_pretrained"]);
}

#[test]
fn paths_that_lead_nowhere() {
    let files = |path: &str| ggro::runtime::files(Path::new(path), &mut |_| ());
    refused(files("https://huggingface.co/org/name/tree/main"), &["an address", "org/name"]);
    refused(files("gpt2"), &["gpt2", "No such file", "neither a directory nor", "two parts"]);
    refused(files("~/models/x"), &["`~`", "quotes"]);
    refused(files("/no/such/place"), &["/no/such/place", "No such file"]);
    let found = Found::copy("llama-gqa");
    let weights = found.path("policy/model.safetensors");
    refused(files(weights.to_str().unwrap()), &["is not a directory", "give the directory"]);
    let found = found.file("policy/model.gguf", "GGUF");
    refused(files(found.path("policy/model.gguf").to_str().unwrap()), &["GGUF", "not read"]);
}
