use crate::tokenizer::words;
use crate::{FIXTURES, goldens, model, read_json, refused};
use ggro::files::checkpoint::Files;
use ggro::files::config::ModelKind;
use ggro::files::pair::Pair;
use serde_json::{Value, json};
use std::path::Path;

/// A copy of `mistral` that a test may damage.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for role in ["policy", "reward"] {
            std::fs::create_dir(dir.path().join(role)).unwrap();
            for file in std::fs::read_dir(goldens().join("mistral").join(role)).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), dir.path().join(role).join(file.file_name())).unwrap();
            }
        }
        Copy(dir)
    }

    fn edit(self, file: &str, edit: impl FnOnce(&mut Value)) -> Self {
        let path = self.0.path().join(file);
        let mut json = read_json(&path);
        edit(&mut json);
        std::fs::write(path, json.to_string()).unwrap();
        self
    }

    fn without(self, file: &str) -> Self {
        std::fs::remove_file(self.0.path().join(file)).unwrap();
        self
    }

    fn load(&self) -> ggro::Result<Pair> {
        let files = |role: &str| Files::Dir(self.0.path().join(role));
        Pair::load(&files("policy"), &files("reward"))
    }
}

fn set(field: &'static str, value: Value) -> impl FnOnce(&mut Value) {
    move |json| json[field] = value
}

#[test]
fn every_fixture_is_a_pair() {
    for fixture in FIXTURES {
        let meta = read_json(&goldens().join(fixture).join("meta.json"));
        let pair = Pair::load(&model(&format!("{fixture}/policy")), &model(&format!("{fixture}/reward"))).unwrap();
        assert_eq!(
            (pair.policy().unwrap().config.kind, pair.reward().unwrap().config.kind),
            (ModelKind::CausalLm, ModelKind::Reward)
        );
        assert_eq!(json!(pair.policy().unwrap().finish_id), meta["finish_id"], "{fixture}");
        let mut stop_ids = pair.policy().unwrap().stop_ids.clone();
        stop_ids.sort();
        let mut expected: Vec<u32> = serde_json::from_value(meta["stop_ids"].clone()).unwrap();
        expected.sort();
        assert_eq!(stop_ids, expected, "{fixture}");
        assert_eq!(json!(pair.reward_pad_id()), meta["reward_pad_id"], "{fixture}");
        assert!(
            pair.chat().is_some()
                && pair.policy().unwrap().weights.bytes() > 0
                && pair.reward().unwrap().weights.bytes() > 0
        );
    }
}

#[test]
fn models_in_the_wrong_place() {
    let (policy, reward) = (model("qwen3/policy"), model("qwen3/reward"));
    refused(
        Pair::load(&reward, &policy),
        &["qwen3/reward/config.json", "expected a policy (Qwen3ForCausalLM)", "found Qwen3ForSequenceClassification"],
    );
    refused(
        Pair::load(&policy, &policy),
        &[
            "qwen3/policy/config.json",
            "expected a reward model (Qwen3ForSequenceClassification)",
            "found Qwen3ForCausalLM",
        ],
    );
    let nowhere = Files::Dir(Path::new("nowhere").into());
    refused(Pair::load(&policy, &nowhere), &["nowhere", "No such file"]);
    refused(Copy::new().without("reward/config.json").load(), &["reward/config.json: no such file"]);
}

#[test]
fn tokenizers_must_agree() {
    refused(Copy::new().without("reward/tokenizer.json").load(), &["reward/tokenizer.json", "no such file"]);
    let other = Pair::load(&model("qwen3/policy"), &model("qwen2/reward"));
    refused(
        other,
        &[
            "the tokenizers differ: id",
            "to the policy",
            "qwen3/policy/tokenizer.json",
            "to the reward model",
            "qwen2/reward/tokenizer.json",
        ],
    );

    let small = words(json!({ "</s>": 0, "b": 1, "c": 2 }));
    let with = |policy: Value, reward: Value| {
        // Only the tokens that these vocabularies have.
        let bare = |config: &mut Value| *config = json!({ "eos_token": "</s>" });
        let small = Copy::new().edit("policy/tokenizer_config.json", bare).edit("reward/tokenizer_config.json", bare);
        small.edit("policy/tokenizer.json", |t| *t = policy).edit("reward/tokenizer.json", |t| *t = reward)
    };
    let differ = with(small.clone(), words(json!({ "</s>": 0, "x\n": 1, "c": 2 })));
    refused(differ.load(), &["id 1 is \"b\" to the policy", "but \"x\\n\" to the reward model"]);
    let hole = with(small.clone(), words(json!({ "</s>": 0, "c": 2 })));
    refused(hole.load(), &["id 1 is \"b\"", "but nothing to the reward model"]);
    // Either may go on where the other ends.
    let longer = words(json!({ "</s>": 0, "b": 1, "c": 2, "d": 3 }));
    assert_eq!(with(small.clone(), longer.clone()).load().unwrap().tokenizer.len(), 3);
    assert_eq!(with(longer.clone(), small.clone()).load().unwrap().tokenizer.len(), 4);

    // So may a vocabulary beyond the embedding.
    let large = words(json!({ "</s>": 0, "b": 1, "c": 2, "d": 552 }));
    for (policy, reward) in [(large.clone(), small.clone()), (small.clone(), large)] {
        assert!(with(policy, reward).load().is_ok());
    }
}

#[test]
fn finish_and_stop_ids() {
    let ids = |copy: &Copy| {
        copy.load().map(|pair| pair.policy().map(|policy| (policy.finish_id, policy.stop_ids.clone())).unwrap())
    };
    let generation = |value: Value| Copy::new().edit("policy/generation_config.json", set("eos_token_id", value));
    assert_eq!(ids(&Copy::new()).unwrap(), (2, vec![2]));
    assert_eq!(ids(&generation(json!([7, 7, 9]))).unwrap(), (2, vec![7, 9, 2]));
    assert_eq!(ids(&generation(json!(null))).unwrap(), (2, vec![2]));
    let bare = Copy::new()
        .without("policy/generation_config.json")
        .edit("policy/config.json", set("eos_token_id", json!([5, 6])));
    assert_eq!(ids(&bare).unwrap(), (2, vec![5, 6, 2]));
    let bare = bare.edit("policy/tokenizer_config.json", set("eos_token", json!(null)));
    assert_eq!(ids(&bare).unwrap(), (5, vec![5, 6]));
    let bare = bare.edit("policy/config.json", set("eos_token_id", json!(null)));
    refused(ids(&bare), &["tokenizer_config.json", "`eos_token`", "found none"]);

    let object = Copy::new().edit("policy/tokenizer_config.json", set("eos_token", json!({ "content": "[INST]" })));
    assert_eq!(ids(&object).unwrap(), (3, vec![2, 3]));
    let unknown = Copy::new().edit("policy/tokenizer_config.json", set("eos_token", json!("<|end|>")));
    refused(ids(&unknown), &["tokenizer_config.json", "`eos_token`", "<|end|>"]);
    for value in [json!(552), json!([-1, 552]), json!([2, -1])] {
        assert_eq!(ids(&generation(value)).unwrap(), (2, vec![2]));
    }
    refused(ids(&generation(json!("2"))), &["generation_config.json", "`eos_token_id`", "found \"2\""]);
}

#[test]
fn pad_id_of_the_reward_model() {
    let pad = |value: Value| Copy::new().edit("reward/config.json", set("pad_token_id", value)).load();
    assert_eq!(pad(json!(551)).unwrap().reward_pad_id(), Some(551));
    assert_eq!(pad(json!(null)).unwrap().reward_pad_id(), None);
    refused(pad(json!(552)), &["reward/config.json", "`pad_token_id`", "(552)", "found 552"]);
    assert_eq!(pad(json!(-1)).unwrap().reward_pad_id(), None);
    let unnamed = Copy::new()
        .edit("policy/config.json", set("architectures", json!(null)))
        .edit("reward/config.json", set("architectures", json!([])));
    assert!(unnamed.load().is_ok(), "the role says which head a model has");
}
