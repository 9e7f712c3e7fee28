use crate::{directory, goldens, model, read_json, refused};
use ggro::files::chat::{ChatTemplate, Message};
use ggro::files::checkpoint::Files;
use ggro::files::tokenizer::{Difference, Differences, TextStream, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::OnceLock;
use std::time::Instant;

fn load(json: &Value) -> ggro::Result<Tokenizer> {
    let (_dir, files) = directory(&[("tokenizer.json", json.to_string().as_bytes())]);
    Tokenizer::load(&files)
}

/// One token for each word.
pub fn words(vocabulary: Value) -> Value {
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "", // a text would be a token
        },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>" },
    })
}

/// A tokenizer as SentencePiece models are converted: spaces as U+2581, unknown characters as bytes.
fn sentence_piece() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let mut vocabulary = serde_json::Map::new();
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let pieces = ["<unk>", "<s>", "▁", "a", "b", "▁a", "▁b", "é", "▁你", "\u{FFFD}", "."];
        for (id, piece) in pieces.iter().map(|p| p.to_string()).chain(bytes).enumerate() {
            vocabulary.insert(piece, id.into());
        }
        load(&json!({
            "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
            "added_tokens": [{ "id": 1, "content": "<s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true }],
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
            "pre_tokenizer": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
            "model": { "type": "BPE", "vocab": vocabulary, "merges": [["▁", "a"], ["▁", "b"]],
                "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true },
        }))
        .unwrap()
    })
}

fn byte_level() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::load(&model("llama-gqa/policy")).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Ids, decoded text and rendered conversations are those of the `transformers` library.
#[test]
fn golden_cases() {
    let mut cases = 0;
    for fixture in ["llama-gqa", "llama-mha-tied", "mistral", "qwen2", "qwen3"] {
        let file = read_json(&goldens().join(fixture).join("tokenizer_cases.json"));
        for role in ["policy", "reward"] {
            let files = model(&format!("{fixture}/{role}"));
            let tokenizer = Tokenizer::load(&files).unwrap();
            for case in file["encode"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                assert_eq!(tokenizer.encode(text).unwrap(), ids(&case["ids"]), "{fixture}: {text:?}");
                let decoded = tokenizer.decode(&ids(&case["ids"])).unwrap();
                assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{fixture}: {text:?}");
                let mut stream = TextStream::new(&tokenizer, &[]);
                let pieces = ids(&case["ids"]).iter().map(|&id| stream.push(id).unwrap()).collect::<String>();
                assert_eq!(pieces + &stream.finish().unwrap(), decoded, "{fixture}: {text:?}");
                cases += 1;
            }
            // The template of `qwen3` is a file of its own, beside the policy only if anywhere.
            let Some(template) = ChatTemplate::load(&files).unwrap() else {
                assert_eq!(role, "reward");
                continue;
            };
            for case in file["chat"].as_array().unwrap() {
                let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
                let prompt = case["add_generation_prompt"].as_bool().unwrap();
                let text = template.render(&messages, prompt).unwrap();
                assert_eq!(text, case["text"].as_str().unwrap(), "{fixture}");
                assert_eq!(tokenizer.encode(&text).unwrap(), ids(&case["ids"]), "{fixture}: {text:?}");
                cases += 1;
            }
        }
    }
    assert!(cases > 250, "{cases}");
}

#[test]
fn truncation_and_padding_of_the_file_are_cleared() {
    let tokenizer = load(&words(json!({ "<pad>": 0, "a": 1, "b": 2 }))).unwrap();
    assert_eq!(tokenizer.encode("a b a b").unwrap(), [1, 2, 1, 2]);
    assert!(tokenizer.encode("").unwrap().is_empty());
    assert_eq!((tokenizer.len(), tokenizer.id("b"), tokenizer.id("c")), (3, Some(2), None));
    assert_eq!((tokenizer.token(1), tokenizer.token(9)), (Some("a".into()), None));
    assert_eq!(tokenizer.decode(&[1, 9, 2]).unwrap(), "a b");
}

/// What the post-processor puts around a text, as every tokenizer of Llama 3 has it.
#[test]
fn texts_get_their_special_tokens() {
    let mut json = words(json!({ "<s>": 0, "a": 1, "b": 2, "</s>": 3 }));
    let token = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = |single: &[Value]| {
        json!({
            "type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": {
                "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] },
                "</s>": { "id": "</s>", "ids": [3], "tokens": ["</s>"] },
            },
        })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true });
    let front = template(&[token("<s>"), text.clone()]);
    for processor in [front.clone(), json!({ "type": "Sequence", "processors": [byte_level, front] })] {
        json["post_processor"] = processor;
        let tokenizer = load(&json).unwrap();
        assert_eq!(tokenizer.encode_text("a b").unwrap(), [0, 1, 2]);
        assert_eq!(tokenizer.encode("a b").unwrap(), [1, 2]);
        assert_eq!(tokenizer.encode_text("").unwrap(), [0]);
        assert_eq!(tokenizer.with_special_tokens(vec![0, 1]), [0, 1]);
    }
    json["post_processor"] = template(&[token("<s>"), text.clone(), token("</s>")]);
    assert_eq!(load(&json).unwrap().encode_text("a").unwrap(), [0, 1, 3]);
    json["post_processor"] = Value::Null;
    assert_eq!(load(&json).unwrap().encode_text("a").unwrap(), [1]);
    // A template that names what it does not define, or leaves out the text.
    json["post_processor"] = template(&[token("<t>"), text]);
    refused(load(&json), &["tokenizer.json", "post_processor"]);
    json["post_processor"] = template(&[token("<s>")]);
    refused(load(&json), &["tokenizer.json"]);
}

#[test]
fn malformed_files() {
    let (_dir, files) = directory(&[]);
    refused(Tokenizer::load(&files), &["tokenizer.json", "no such file"]);
    let good = std::fs::read(goldens().join("mistral/policy/tokenizer.json")).unwrap();
    for content in [&b""[..], b"{}", b"[]", b"null", b"\xff", &good[..good.len() / 2]] {
        let (_dir, files) = directory(&[("tokenizer.json", content)]);
        refused(Tokenizer::load(&files), &["tokenizer.json: expected a tokenizer"]);
    }
    refused(load(&words(json!({}))), &["tokenizer.json", "no tokens"]);
    assert!(load(&words(json!({ "a": -1 }))).is_err());
    assert!(load(&words(json!({ "a": 4294967296u64 }))).is_err());
    let far = load(&words(json!({ "a": 0, "b": 4294967295u64 })));
    refused(far, &["tokenizer.json", "expected ids up to 4194303", "found 4294967295"]);
}

#[test]
fn differences() {
    let of = |vocabulary| load(&words(vocabulary)).unwrap();
    let one = of(json!({ "a": 0, "b": 1, "c": 2 }));
    assert_eq!(one.differences(&of(json!({ "a": 0, "b": 1 }))), Differences::default());
    assert_eq!(of(json!({ "a": 0, "b": 1 })).differences(&one), Differences::default());
    let differ = |id, ours: &str, theirs: Option<&str>| {
        Some(Difference { id, ours: Some(ours.into()), theirs: theirs.map(str::to_string) })
    };
    let swapped = of(json!({ "a": 0, "c": 1, "b": 2 }));
    assert_eq!(one.differences(&swapped).ordinary, differ(1, "b", Some("c")));
    let hole = of(json!({ "a": 0, "c": 2 }));
    assert_eq!(one.differences(&hole).ordinary, differ(1, "b", None));
}

#[test]
fn a_large_vocabulary_is_compared_quickly() {
    let vocabulary: serde_json::Map<_, _> = (0..128_256).map(|i| (format!("token{i}"), i.into())).collect();
    let json = words(vocabulary.into());
    let (one, other) = (load(&json).unwrap(), load(&json).unwrap());
    let start = Instant::now();
    assert_eq!(one.differences(&other), Differences::default());
    let limit = if cfg!(debug_assertions) { 2000 } else { 200 };
    assert!(start.elapsed().as_millis() < limit, "{:?}", start.elapsed());
}

#[test]
fn characters_split_over_tokens_are_held_back() {
    let tokenizer = byte_level();
    let text = "caf\u{e9} \u{4f60}\u{597d} \u{1f600}!";
    let ids = tokenizer.encode(text).unwrap();
    let mut stream = TextStream::new(tokenizer, &[]);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    assert!(pieces.len() > text.chars().count() && pieces.concat() == text, "{pieces:?}");
    assert_eq!(stream.finish().unwrap(), "");

    let mut stream = TextStream::new(tokenizer, &[]);
    let cut: String = ids[..ids.len() - 2].iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(!cut.contains('\u{FFFD}'));
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");

    let tokenizer = sentence_piece();
    let ids = tokenizer.encode("a 你 é好 b").unwrap();
    let (context, rest) = ids.split_at(1);
    let mut stream = TextStream::new(tokenizer, context);
    let pieces: Vec<String> = rest.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, [" ", "", "", "", "你 ", "é", "", "", "", "好 b"]);
}

#[test]
fn streaming_costs_the_same_per_token_however_long_the_text() {
    let zero = |i: u32| format!("<0x{:02X}>", 0x80 + i % 0x40);
    for (tokenizer, odd) in [
        (byte_level(), byte_level().encode("\u{1f600}").unwrap()[1]),
        (sentence_piece(), sentence_piece().id(&zero(0)).unwrap()),
    ] {
        let mut stream = TextStream::new(tokenizer, &[]);
        let start = Instant::now();
        for _ in 0..100_000 {
            stream.push(odd).unwrap();
        }
        stream.finish().unwrap();
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// However ids follow each other: the pieces add up to the text of all, with and without a context.
    #[test]
    fn pieces_add_up(
        spiece in any::<bool>(),
        seeds in prop::collection::vec(any::<u32>(), 0..80),
        split in any::<prop::sample::Index>(),
    ) {
        let tokenizer = if spiece { sentence_piece() } else { byte_level() };
        let ids: Vec<u32> = seeds.iter().map(|seed| seed % (tokenizer.len() as u32 + 3)).collect();
        let mut stream = TextStream::new(tokenizer, &[]);
        let mut text = String::new();
        let whole = tokenizer.decode(&ids).unwrap();
        for &id in &ids {
            text += &stream.push(id).unwrap();
            prop_assert!(whole.starts_with(&text), "{:?} {:?}", text, whole);
        }
        prop_assert_eq!(text + &stream.finish().unwrap(), whole.clone());

        let (context, rest) = ids.split_at(split.index(ids.len() + 1));
        let given = tokenizer.decode(context).unwrap();
        let mut stream = TextStream::new(tokenizer, context);
        let pieces: String = rest.iter().map(|&id| stream.push(id).unwrap()).collect();
        let all = pieces + &stream.finish().unwrap();
        // A context that is empty or ends inside a character has no text of its own to continue.
        let ends = context.iter().rev().find(|&&id| tokenizer.token(id).is_some());
        if ends.is_some_and(|&id| !is_byte(tokenizer, id)) && !given.ends_with('\u{FFFD}') {
            prop_assert_eq!(given + &all, whole);
        }
    }
}

fn is_byte(tokenizer: &Tokenizer, id: u32) -> bool {
    tokenizer.token(id).is_some_and(|token| token.starts_with("<0x"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_change_of_the_file_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = words(json!({ "<pad>": 0, "a": 1, "b": 2 })).to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let (_dir, files): (_, Files) = directory(&[("tokenizer.json", &bytes)]);
        if let Ok(tokenizer) = Tokenizer::load(&files) {
            let _ = tokenizer.encode("a b c").map(|ids| tokenizer.decode(&ids));
        }
    }
}

/// Tokens that stand in other files than `tokenizer.json`: ids are those of the `transformers` library.
#[test]
fn declared_tokens_are_tokens() {
    let cases = read_json(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/declared_tokens.json"));
    let policy = goldens().join("llama-gqa/policy");
    for case in cases["cases"].as_array().unwrap() {
        let mut config = read_json(&policy.join("tokenizer_config.json"));
        if case["legacy"] == true {
            config.as_object_mut().unwrap().remove("added_tokens_decoder");
        }
        config.as_object_mut().unwrap().extend(case["config"].as_object().unwrap().clone());
        let mut tokenizer = read_json(&policy.join("tokenizer.json"));
        tokenizer["padding"] = case["padding"].clone();
        let mut written = vec![
            ("tokenizer.json".to_string(), tokenizer.to_string()),
            ("tokenizer_config.json".to_string(), config.to_string()),
        ];
        written.extend(case["files"].as_object().unwrap().iter().map(|(name, file)| (name.clone(), file.to_string())));
        let listed: Vec<(&str, &[u8])> =
            written.iter().map(|(name, content)| (name.as_str(), content.as_bytes())).collect();
        let (_dir, files) = directory(&listed);
        let tokenizer = Tokenizer::load(&files).unwrap();
        let name = &case["name"];
        assert_eq!(tokenizer.encode(cases["text"].as_str().unwrap()).unwrap(), ids(&case["ids"]), "{name}");
        assert_eq!(json!(tokenizer.len()), case["size"], "{name}");
        let special: Vec<u32> = (640..tokenizer.len() as u32).filter(|&id| tokenizer.is_special(id)).collect();
        assert_eq!(special, ids(&case["special"]), "{name}");
    }
    for (field, value) in [
        ("added_tokens_decoder", json!([])),
        ("added_tokens_decoder", json!({ "x": { "content": "a" } })),
        ("added_tokens_decoder", json!({ "640": "a" })),
        ("added_tokens_decoder", json!({ "640": { "content": "a", "lstrip": "yes" } })),
        ("extra_special_tokens", json!(5)),
        ("additional_special_tokens", json!([5])),
        ("pad_token", json!(5)),
    ] {
        let tokenizer = std::fs::read(policy.join("tokenizer.json")).unwrap();
        let config = json!({ field: value }).to_string();
        let (_dir, files) = directory(&[("tokenizer.json", &tokenizer), ("tokenizer_config.json", config.as_bytes())]);
        let shown = if field.starts_with("additional") { "extra_special_tokens" } else { field };
        refused(Tokenizer::load(&files), &["tokenizer_config.json", shown]);
    }
}
