use crate::{FIXTURES, goldens, model, refused};
use ggro::files::config::{Family, ModelConfig, ModelKind};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 640, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    })
}

fn with(changes: Value) -> Value {
    let mut config = llama();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn of(family: &str, changes: Value) -> Value {
    let mut config = with(changes);
    config["architectures"] = json!([format!("{family}ForCausalLM")]);
    config["model_type"] = json!(family.to_lowercase());
    config
}

fn parse(config: &Value) -> ggro::Result<ModelConfig> {
    ModelConfig::parse(&config.to_string(), Path::new("some/config.json"))
}

#[track_caller]
fn wrong(changes: Value, parts: &[&str]) {
    let message = refused(parse(&with(changes)), parts);
    assert!(message.starts_with("some/config.json: "), "{message}");
}

#[test]
fn every_fixture_parses_and_counts_its_weights() {
    for fixture in FIXTURES {
        for (role, task) in [("policy", ModelKind::CausalLm), ("reward", ModelKind::Reward)] {
            let files = model(&format!("{fixture}/{role}"));
            let config = ModelConfig::load(&files).unwrap();
            assert_eq!(config.kind, task, "{fixture}");
            let weights = ggro::files::checkpoint::Checkpoint::open(&files).unwrap();
            let size = if fixture.contains("llama-mha") || fixture == "qwen3" { 4 } else { 2 };
            let size = if fixture == "llama-unaligned" { 4 } else { size };
            assert_eq!(config.num_parameters() * size, weights.bytes(), "{fixture}/{role}");
        }
    }
}

#[test]
fn what_the_families_differ_in() {
    let load = |path: &str| ModelConfig::load(&model(path)).unwrap();
    let llama = load("llama-gqa/policy");
    assert_eq!((llama.family, llama.head_dim, llama.num_kv_heads), (Family::Llama, 16, 2));
    let scaling = llama.rope.llama3.as_ref().unwrap();
    assert_eq!((scaling.factor, scaling.original_max_position_embeddings), (8.0, 64));
    assert_eq!(llama.eos_token_ids, [636, 639]);
    assert_eq!(llama.pad_token_id, None);
    assert_eq!(llama.windows, [None; 3]);
    assert_eq!(llama.kv_elements_per_token(), 2 * 3 * 2 * 16);
    let mistral = load("mistral/reward");
    assert_eq!((mistral.family, mistral.windows), (Family::Mistral, vec![Some(20); 2]));
    assert_eq!((mistral.eos_token_ids, mistral.pad_token_id), (vec![2], Some(2)));
    let qwen2 = load("qwen2-sharded/policy");
    assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.tie_word_embeddings);
    assert_eq!(qwen2.windows, [None; 2]);
    let qwen3 = load("qwen3/reward");
    assert!(qwen3.qk_norm && !qwen3.qkv_bias && qwen3.head_dim == 48);
}

#[test]
fn defaults() {
    let config = parse(&llama()).unwrap();
    assert_eq!((config.head_dim, config.tie_word_embeddings, config.mlp_bias), (16, false, false));
    let config = parse(&with(json!({
        "head_dim": null, "num_key_value_heads": null, "rope_theta": null, "eos_token_id": null,
        "quantization_config": null, "rope_scaling": null, "rope_parameters": null, "layer_types": null,
    })))
    .unwrap();
    assert_eq!((config.num_kv_heads, config.rope.theta), (4, 10_000.0));
    let config = parse(&with(json!({ "attention_bias": true, "mlp_bias": true }))).unwrap();
    assert!(config.qkv_bias && config.o_bias && config.mlp_bias);
    let config = parse(&of("Qwen3", json!({ "attention_bias": true, "head_dim": 128 }))).unwrap();
    assert!(config.qkv_bias && config.o_bias && config.head_dim == 128);
}

/// A config without some fields.
fn lacking(family: &str, fields: &[&str]) -> Value {
    let mut config = of(family, json!({}));
    fields.iter().for_each(|field| drop(config.as_object_mut().unwrap().remove(*field)));
    config
}

#[test]
fn null_is_not_absent() {
    for field in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        wrong(json!({ field: null }), &[&format!("`{field}`: expected"), "found null"]);
        assert!(parse(&lacking("Llama", &[field])).is_ok(), "{field}");
    }
    refused(parse(&of("Qwen3", json!({ "head_dim": null }))), &["`head_dim`", "found null"]);
    let mistral = of("Mistral", json!({ "num_key_value_heads": null }));
    refused(parse(&mistral), &["`num_key_value_heads`", "found null"]);
    wrong(json!({ "architectures": null }), &["`architectures` is missing"]);
}

/// Of `transformers` 5.24, class by class: `LlamaConfig()` and so on.
#[test]
fn what_an_absent_field_means_in_each_family() {
    let all = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
    ];
    for (family, kv_heads, head_dim, vocabulary, positions, mlp, eos) in [
        ("Llama", 32, 128, 32_000, 2048, 11_008, vec![2]),
        ("Mistral", 8, 128, 32_000, 131_072, 14_336, vec![2]),
        ("Qwen2", 32, 128, 151_936, 32_768, 22_016, vec![]),
        ("Qwen3", 32, 128, 151_936, 32_768, 22_016, vec![]),
    ] {
        let config = parse(&lacking(family, &all)).unwrap();
        assert_eq!((config.hidden_size, config.num_layers, config.num_heads), (4096, 32, 32), "{family}");
        assert_eq!(
            (config.num_kv_heads, config.head_dim, config.vocab_size),
            (kv_heads, head_dim, vocabulary),
            "{family}"
        );
        assert_eq!((config.max_position_embeddings, config.intermediate_size), (positions, mlp), "{family}");
        assert_eq!((config.rms_norm_eps, config.rope.theta), (1e-6, 10_000.0), "{family}");
        assert_eq!((config.tie_word_embeddings, config.o_bias, config.mlp_bias), (false, false, false), "{family}");
        assert_eq!((config.eos_token_ids, config.notes), (eos, vec![]), "{family}");
        let window = (family == "Mistral").then_some(4096);
        assert_eq!(config.windows, [window; 32], "{family}");
    }
    // Where there are fewer heads than an absent field stands for.
    refused(parse(&lacking("Mistral", &["num_key_value_heads"])), &["`num_key_value_heads`", "found 8", "absence"]);
    assert_eq!(parse(&lacking("Llama", &["num_key_value_heads"])).unwrap().num_kv_heads, 4);
    assert_eq!(parse(&of("Qwen2", json!({ "num_key_value_heads": null }))).unwrap().num_kv_heads, 4);
    // Qwen3's size of a head does not follow from the others.
    assert_eq!(parse(&of("Qwen3", json!({ "head_dim": 128 }))).unwrap(), parse(&lacking("Qwen3", &[])).unwrap());
    let small = parse(&of("Llama", json!({ "vocab_size": 2 }))).unwrap();
    assert_eq!((small.eos_token_ids, small.notes), (vec![], vec![]));
}

#[test]
fn absurd_values_are_refused() {
    for (field, values, expected) in [
        ("num_hidden_layers", json!([0, -1, 1025, 1.5, "3", u64::MAX, 1e300, [3], true]), "1 to 1024"),
        ("hidden_size", json!([0, -64, 65537, 4096.0, "64"]), "1 to 65536"),
        ("intermediate_size", json!([0, i64::MAX]), "1 to 1048576"),
        ("num_attention_heads", json!([0, -4, 4097]), "1 to 4096"),
        ("num_key_value_heads", json!([0, 9999]), "1 to 4096"),
        ("head_dim", json!([0, 1, 1025, -16]), "2 to 1024"),
        ("vocab_size", json!([0, 2097153]), "1 to 2097152"),
        ("max_position_embeddings", json!([0, 16777217]), "1 to 16777216"),
        ("rms_norm_eps", json!([0, -1e-5, 1, "1e-5"]), "above 0 and below 1"),
        ("rope_theta", json!([0, -1, "x", []]), "finite number above 0"),
        ("eos_token_id", json!([1.5, "2", [2, "3"], {}]), "token ids"),
        ("pad_token_id", json!([1.5, 4294967295u64, [1]]), "0 to 2147483647"),
        ("tie_word_embeddings", json!(["true", 1]), "true or false"),
        ("attention_bias", json!([0]), "true or false"),
        ("hidden_act", json!(["gelu", 5]), "\"silu\""),
        ("partial_rotary_factor", json!([0.5, "1"]), "expected 1"),
        ("architectures", json!([[], "LlamaForCausalLM", 5, ["a", "b"], [5]]), "a list with one name"),
        ("model_type", json!(["mistral", 5]), "\"llama\""),
        ("layer_types", json!([5, ["full_attention"]]), "`layer_types`"),
    ] {
        for value in values.as_array().unwrap() {
            let shown = value.to_string();
            let parts = [format!("`{field}`"), expected.to_string()];
            wrong(json!({ field: value }), &parts.each_ref().map(String::as_str));
            if value.is_string() || value.is_number() && !field.contains("rope") {
                wrong(json!({ field: value }), &[&format!("found {shown}")]);
            }
        }
    }
    wrong(json!({ "num_key_value_heads": 3 }), &["`num_key_value_heads`", "divisor", "(4)", "found 3"]);
    wrong(json!({ "hidden_size": 66 }), &["`head_dim` is missing", "66", "4"]);
    wrong(json!({ "head_dim": 15 }), &["`head_dim`", "even", "found 15"]);
    wrong(json!({ "hidden_size": 8192 }), &["`head_dim`", "found 2048"]);
    for text in ["", "{", "[]", "5", "{\"a\": 1e999}", "\u{0}", &"[".repeat(9999)] {
        refused(ModelConfig::parse(text, Path::new("c.json")), &["c.json: expected a JSON object"]);
    }
}

#[test]
fn architectures() {
    let supported = "expected one of {Llama, Mistral, Qwen2, Qwen3}ForCausalLM or";
    for (name, reason) in [
        ("GemmaForCausalLM", "\"GemmaForCausalLM\" is not supported"),
        ("Qwen2ForRewardModel", "reward head of its own"),
        ("LlamaForCausalLMWithValueHead", "value head"),
        ("LlamaForTokenClassification", "score for every step"),
        ("LlamaModel", "\"LlamaModel\""),
        ("Llama4ForCausalLM", "\"Llama4ForCausalLM\""),
        ("Qwen3MoeForCausalLM", "\"Qwen3MoeForCausalLM\""),
    ] {
        wrong(json!({ "architectures": [name] }), &[reason, supported]);
    }
    for (name, family) in [("LLaMAForCausalLM", Family::Llama), ("LlamaModelForScore", Family::Llama)] {
        assert_eq!(parse(&with(json!({ "architectures": [name] }))).unwrap().family, family);
    }
    assert!(parse(&with(json!({ "hidden_act": "swish" }))).is_ok());
    let remote = json!({ "architectures": ["OwnForCausalLM"], "auto_map": { "AutoModel": "own.Own" } });
    wrong(remote, &["OwnForCausalLM", "auto_map", "never run"]);
    assert!(parse(&with(json!({ "auto_map": { "AutoModel": "own.Own" } }))).is_ok());
    wrong(json!({ "architectures": null }), &["`architectures` is missing", "\"llama\""]);
    let quantized = json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } });
    wrong(quantized, &["`quantization_config`", "gptq"]);
}

#[test]
fn rope_types() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let changed = |key: &str, value: Value| {
        let mut scaling = llama3.clone();
        scaling[key] = value;
        scaling
    };
    let old = {
        let mut scaling = changed("type", json!("llama3"));
        scaling.as_object_mut().unwrap().remove("rope_type");
        scaling
    };
    let parsed = parse(&with(json!({ "rope_scaling": llama3 }))).unwrap().rope;
    assert_eq!(parsed.llama3.as_ref().unwrap().factor, 8.0);
    assert_eq!(parse(&with(json!({ "rope_scaling": old }))).unwrap().rope, parsed);
    let both = json!({ "rope_scaling": llama3, "rope_parameters": changed("rope_theta", json!(5e5)) });
    assert_eq!(parse(&with(both)).unwrap().rope, parsed);
    for (name, plain) in [
        ("rope_scaling", json!({ "rope_type": "default" })),
        ("rope_scaling", json!({})),
        ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 500000.0 })),
        ("rope_scaling", json!({ "type": "linear", "factor": 1.0 })),
    ] {
        let rope = parse(&with(json!({ name: plain }))).unwrap().rope;
        assert_eq!((rope.theta, rope.llama3), (500_000.0, None));
    }
    let nested = json!({ "rope_theta": null, "rope_parameters": { "rope_theta": 7.0, "rope_type": "default" } });
    assert_eq!(parse(&with(nested)).unwrap().rope.theta, 7.0);
    let both = json!({ "rope_parameters": { "rope_theta": 5.0 } });
    assert_eq!(parse(&with(both)).unwrap().rope.theta, 5.0, "the nested one counts");
    let old = json!({ "rope_scaling": { "rope_type": "default", "rope_theta": 5.0 } });
    assert_eq!(parse(&with(old)).unwrap().rope.theta, 5.0);
    let outside = json!({ "rope_scaling": llama3, "original_max_position_embeddings": 32 });
    wrong(outside, &["`original_max_position_embeddings` is 32", "64 in `rope_scaling`"]);
    let unsaid = changed("original_max_position_embeddings", json!(null));
    let unsaid = parse(&with(json!({ "rope_scaling": unsaid }))).unwrap().rope.llama3.unwrap();
    assert_eq!(unsaid.original_max_position_embeddings, 2048);

    for kind in ["yarn", "dynamic", "longrope", "linear", "su", "mrope", "proportional"] {
        for key in ["rope_type", "type"] {
            let scaling = json!({ "rope_scaling": { key: kind, "factor": 2.0 } });
            wrong(scaling, &["rope_scaling.rope_type", "\"llama3\"", &format!("found \"{kind}\"")]);
        }
        wrong(json!({ "rope_parameters": { "rope_type": kind } }), &["rope_parameters", kind]);
    }
    for (name, value, parts) in [
        ("rope_scaling", json!("yarn"), ["`rope_scaling`", "an object"]),
        ("rope_scaling", json!({ "factor": 2.0 }), ["`rope_scaling.rope_type` is missing", "factor"]),
        ("rope_scaling", json!({ "type": 5 }), ["`rope_scaling.type`", "found 5"]),
        ("rope_scaling", changed("type", json!("yarn")), ["\"llama3\"", "\"yarn\""]),
        ("rope_scaling", changed("factor", json!(null)), ["`rope_scaling.factor`", "missing"]),
        ("rope_scaling", json!({ "rope_type": "linear", "factor": 2.0 }), ["rope_scaling.rope_type", "linear"]),
        ("rope_scaling", changed("factor", json!(0.5)), ["`rope_scaling.factor`", "found 0.5"]),
        ("rope_scaling", changed("high_freq_factor", json!(1.0)), ["high_freq_factor", "found 1"]),
        ("rope_scaling", changed("low_freq_factor", json!(-1)), ["low_freq_factor", "found -1"]),
        (
            "rope_scaling",
            changed("original_max_position_embeddings", json!(1e9)),
            ["original_max_position_embeddings", "1 to 16777216"],
        ),
        (
            "rope_parameters",
            json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }),
            ["rope_parameters.partial_rotary_factor", "0.5"],
        ),
        (
            "rope_parameters",
            json!({ "full_attention": { "rope_type": "default" } }),
            ["rope_parameters.rope_type", "full_attention"],
        ),
    ] {
        wrong(json!({ name: value }), &parts);
    }
    let contradiction = json!({ "rope_scaling": llama3, "rope_parameters": { "rope_type": "default" } });
    wrong(contradiction, &["`rope_scaling` and `rope_parameters` contradict"]);
}

#[test]
fn labels() {
    let reward = |changes: Value| {
        let mut config = with(changes);
        config["architectures"] = json!(["LlamaForSequenceClassification"]);
        parse(&config)
    };
    for good in [
        json!({ "num_labels": 1 }),
        json!({ "id2label": { "0": "LABEL_0" } }),
        json!({ "num_labels": 1, "id2label": { "0": "good" } }),
        // The head will say.
        json!({}),
        json!({ "num_labels": null, "id2label": null }),
    ] {
        assert_eq!(reward(good).unwrap().kind, ModelKind::Reward);
    }
    for (bad, parts) in [
        (json!({ "num_labels": 5 }), ["`num_labels`", "found 5"]),
        (json!({ "id2label": { "0": "a", "1": "b" } }), ["`id2label`", "found 2"]),
        (json!({ "num_labels": 1, "id2label": { "0": "a", "1": "b" } }), ["is 1", "lists 2"]),
        (json!({ "id2label": ["a"] }), ["`id2label`", "an object"]),
    ] {
        refused(reward(bad), &parts);
    }
}

#[test]
fn sliding_windows() {
    let windows = |family: &str, changes: Value| parse(&of(family, changes)).map(|c| c.windows);
    let on = |changes: Value| {
        let mut config = json!({ "use_sliding_window": true, "sliding_window": 7, "max_window_layers": 2 });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    // Absent and null are two things.
    assert_eq!(windows("Mistral", json!({})).unwrap(), [Some(4096); 3]);
    assert_eq!(windows("Mistral", json!({ "sliding_window": null })).unwrap(), [None; 3]);
    assert_eq!(windows("Mistral", json!({ "sliding_window": 9 })).unwrap(), [Some(9); 3]);
    assert_eq!(windows("Llama", json!({ "sliding_window": 9 })).unwrap(), [None; 3]);
    for qwen in ["Qwen2", "Qwen3"] {
        assert_eq!(windows(qwen, json!({ "sliding_window": 7 })).unwrap(), [None; 3]);
        assert_eq!(windows(qwen, on(json!({}))).unwrap(), [None, None, Some(7)]);
        assert_eq!(windows(qwen, on(json!({ "max_window_layers": 28 }))).unwrap(), [None; 3]);
        assert_eq!(windows(qwen, on(json!({ "max_window_layers": 0 }))).unwrap(), [Some(7); 3]);
        assert_eq!(windows(qwen, on(json!({ "sliding_window": null }))).unwrap(), [None; 3]);
        let kinds = json!(["sliding_attention", "full_attention", "sliding_attention"]);
        let listed = windows(qwen, on(json!({ "layer_types": kinds }))).unwrap();
        assert_eq!(listed, [Some(7), None, Some(7)]);
        let off = json!({ "layer_types": kinds, "sliding_window": 7 });
        refused(windows(qwen, off), &["`layer_types`", "layer 0", "sliding_window"]);
        let full = json!({ "layer_types": (["full_attention"; 3]), "sliding_window": 7 });
        assert_eq!(windows(qwen, full).unwrap(), [None; 3]);
        refused(windows(qwen, on(json!({ "max_window_layers": null }))), &["`max_window_layers`"]);
        let absent = json!({ "use_sliding_window": true });
        assert_eq!(windows(qwen, absent).unwrap(), [None; 3], "28 layers come before the first with a window");
        let absent = json!({ "use_sliding_window": true, "max_window_layers": 1 });
        assert_eq!(windows(qwen, absent).unwrap(), [None, Some(4096), Some(4096)]);
    }
    refused(windows("Mistral", json!({ "sliding_window": 0 })), &["`sliding_window`", "found 0"]);
    let mixed = json!({ "sliding_window": 9, "layer_types": (["full_attention"; 3]) });
    refused(windows("Mistral", mixed), &["`layer_types` and `sliding_window` contradict"]);
    let unknown = on(json!({ "layer_types": ["full_attention", "linear_attention", "full_attention"] }));
    refused(windows("Qwen3", unknown), &["`layer_types`", "\"linear_attention\""]);
}

#[test]
fn the_largest_shape_that_is_accepted_can_be_counted() {
    let config = parse(&with(json!({
        "hidden_size": 65536, "intermediate_size": 1 << 20, "num_hidden_layers": 1024, "vocab_size": 1 << 21,
        "num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 1024,
        "attention_bias": true, "mlp_bias": true,
    })))
    .unwrap();
    assert!(config.num_parameters() < 1 << 52);
    assert_eq!(config.kv_elements_per_token(), 2 << 32);
    let huge = ModelConfig { hidden_size: usize::MAX, num_layers: usize::MAX, ..config };
    assert_eq!(huge.num_parameters(), u64::MAX);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..5000).prop_map(Value::from),
        prop_oneof!["llama3", "yarn", "silu", "full_attention", "\\PC{0,9}"].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{0,9}", inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_value_of_any_field_panics(fixture in prop::sample::select(&FIXTURES[..]), field in any::<prop::sample::Index>(), value in any_json()) {
        let path = goldens().join(fixture).join("reward/config.json");
        let mut config = crate::read_json(&path);
        let names: Vec<String> = config.as_object().unwrap().keys().cloned()
            .chain(["layer_types", "rope_parameters", "num_labels", "partial_rotary_factor", "mlp_bias"].map(String::from))
            .collect();
        config[field.get(&names)] = value;
        if let Ok(config) = parse(&config) {
            config.num_parameters();
            config.kv_elements_per_token();
        }
    }

    #[test]
    fn no_change_of_a_byte_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = llama().to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = ModelConfig::parse(&String::from_utf8_lossy(&bytes), Path::new("c.json"));
    }
}
