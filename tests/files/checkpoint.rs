use crate::{FIXTURES, directory, model, refused};
use ggro::dtype::DType;
use ggro::files::checkpoint::{Checkpoint, Files};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A safetensors file with this header and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn two_tensors() -> Value {
    json!({
        "__metadata__": { "format": "pt" },
        "a": { "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24] },
        "b": { "dtype": "BF16", "shape": [4], "data_offsets": [24, 32] },
    })
}

fn with(tensor: &str, field: &str, value: Value) -> String {
    let mut header = two_tensors();
    header[tensor][field] = value;
    header.to_string()
}

fn open(content: &[u8]) -> ggro::Result<Checkpoint> {
    let (_dir, files) = directory(&[("model.safetensors", content)]);
    Checkpoint::open(&files)
}

#[track_caller]
fn wrong(content: &[u8], parts: &[&str]) {
    let message = refused(open(content), parts);
    assert!(message.contains("model.safetensors: "), "{message}");
}

#[test]
fn every_fixture_opens() {
    for fixture in FIXTURES {
        for role in ["policy", "reward"] {
            let checkpoint = Checkpoint::open(&model(&format!("{fixture}/{role}"))).unwrap();
            let names = checkpoint.names();
            assert!(names.is_sorted() && names.contains(&"model.norm.weight"), "{fixture}");
            assert_eq!(checkpoint.contains("score.weight"), role == "reward");
            assert!(!checkpoint.contains("nothing"));
        }
    }
}

/// Odd offsets and shards hold the same numbers as the fixtures they were made from.
#[test]
fn stored_differently_but_the_same() {
    for (one, other) in [("llama-mha-tied", "llama-unaligned"), ("qwen2", "qwen2-sharded")] {
        for role in ["policy", "reward"] {
            let open = |name| Checkpoint::open(&model(&format!("{name}/{role}"))).unwrap();
            let (one, other) = (open(one), open(other));
            assert_eq!((one.names(), one.bytes()), (other.names(), other.bytes()));
            for name in one.names() {
                let shape = shape_of(&one, name);
                let (a, b) = (one.tensor(name, &shape).unwrap(), other.tensor(name, &shape).unwrap());
                assert_eq!((a.dtype, a.shape, a.data), (b.dtype, b.shape, b.data), "{name}");
            }
        }
    }
    let unaligned = Checkpoint::open(&model("llama-unaligned/policy")).unwrap();
    let odd = unaligned.names().iter().any(|name| {
        let shape = shape_of(&unaligned, name);
        unaligned.tensor(name, &shape).unwrap().data.as_ptr().addr() % 2 == 1
    });
    assert!(odd);
}

/// The shape as the message about a wrong one tells it.
fn shape_of(checkpoint: &Checkpoint, name: &str) -> Vec<usize> {
    let message = checkpoint.tensor(name, &[usize::MAX]).unwrap_err().to_string();
    serde_json::from_str(message.split("found ").nth(1).unwrap()).unwrap()
}

#[test]
fn a_tensor_by_name_and_shape() {
    let checkpoint = open(&file(&two_tensors().to_string(), 32)).unwrap();
    assert_eq!((checkpoint.names(), checkpoint.bytes()), (vec!["a", "b"], 32));
    let tensor = checkpoint.tensor("b", &[4]).unwrap();
    assert_eq!((tensor.dtype, tensor.shape), (DType::Bf16, &[4][..]));
    assert_eq!(tensor.data, [24, 25, 26, 27, 28, 29, 30, 31]);

    refused(checkpoint.tensor("a", &[3, 2]), &["model.safetensors", "`a`", "expected shape [3, 2]", "found [2, 3]"]);
    refused(checkpoint.tensor("c", &[1]), &["model.safetensors", "`c`", "[1]", "no such tensor"]);
}

#[test]
fn dtypes() {
    for (dtype, bytes) in [("I64", 8), ("F8_E4M3", 1), ("F64", 8), ("U8", 1), ("BOOL", 1), ("I32", 4)] {
        let header = json!({ "a": { "dtype": dtype, "shape": [1], "data_offsets": [0, bytes] } });
        let checkpoint = open(&file(&header.to_string(), bytes)).unwrap();
        refused(checkpoint.tensor("a", &[1]), &["`a`", "expected dtype BF16, F16 or F32", &format!("found {dtype}")]);
    }
    wrong(&file(&with("a", "dtype", json!("F7")), 32), &["`a`", "F7"]);
    let empty = json!({ "a": { "dtype": "F16", "shape": [0, 4], "data_offsets": [0, 0] } });
    let checkpoint = open(&file(&empty.to_string(), 0)).unwrap();
    assert_eq!(checkpoint.tensor("a", &[0, 4]).unwrap().dtype, DType::F16);
}

#[test]
fn malformed_headers() {
    let good = file(&two_tensors().to_string(), 32);
    assert!(open(&good).is_ok());
    wrong(b"", &["at least 8 bytes", "found 0"]);
    wrong(&good[..5], &["at least 8 bytes", "found 5"]);
    wrong(&good[..20], &["expected a header of", "found 12 bytes of it"]);
    let mut oversized = good.clone();
    oversized[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    wrong(&oversized, &["at most 100000000 bytes", "found 100000001"]);
    oversized[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    wrong(&oversized, &["at most 100000000 bytes", "found 18446744073709551615"]);
    for header in ["", "[]", "{", "null", "{\"a\": 5}", "{\"a\": {}}", "{}x", "\u{0}"] {
        wrong(&file(header, 0), &["expected a JSON object of tensors as header"]);
    }
    let tensor = "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}";
    wrong(&file(&format!("{{\"a\":{tensor},\"a\":{tensor}}}"), 1), &["`a` is listed twice"]);
}

#[test]
fn malformed_offsets() {
    let huge = json!([u64::MAX, u64::MAX]);
    for (header, data, parts) in [
        (with("b", "data_offsets", json!([20, 28])), 32, vec!["`b`", "offset 24", "found 20", "overlaps"]),
        (with("b", "data_offsets", json!([0, 8])), 32, vec!["overlaps"]),
        (with("b", "data_offsets", json!([26, 34])), 34, vec!["`b`", "offset 24", "found 26", "hole"]),
        (with("a", "data_offsets", json!([1, 25])), 40, vec!["`a`", "offset 0", "found 1", "hole"]),
        (with("b", "data_offsets", json!([24, 33])), 32, vec!["`b`", "inside the 32 bytes", "24..33"]),
        (with("b", "data_offsets", json!([32, 24])), 32, vec!["`b`", "32..24"]),
        (with("b", "data_offsets", huge.clone()), 32, vec!["`b`", "inside the 32 bytes"]),
        (with("b", "data_offsets", json!([-1, 8])), 32, vec!["`b`", "-1"]),
        (with("b", "data_offsets", json!([24])), 32, vec!["`b`"]),
        (with("b", "shape", json!([5])), 32, vec!["`b`", "expected 10 bytes", "[5] of BF16", "found 8"]),
        (with("b", "dtype", json!("F32")), 32, vec!["`b`", "expected 16 bytes", "found 8"]),
        (with("b", "shape", json!([u64::MAX, 2])), 32, vec!["`b`", "too large to count"]),
        (with("b", "shape", json!([1u64 << 62, 4])), 32, vec!["`b`", "too large to count"]),
        (with("b", "shape", json!([1u64 << 61])), 32, vec!["`b`", "too large to count"]),
        (with("b", "shape", json!([-4])), 32, vec!["`b`", "-4"]),
        (with("b", "shape", json!([4.0])), 32, vec!["`b`", "4.0"]),
        (with("b", "dtype", json!("F4")), 32, vec!["`b`", "expected 2 bytes", "found 8"]),
        (two_tensors().to_string(), 31, vec!["`b`", "inside the 31 bytes", "24..32"]),
        (two_tensors().to_string(), 33, vec!["expected 32 bytes of tensor data", "found 33"]),
    ] {
        wrong(&file(&header, data), &parts);
    }
}

fn shard(name: &str) -> Vec<u8> {
    let header = json!({ name: { "dtype": "U8", "shape": [1], "data_offsets": [0, 1] } });
    file(&header.to_string(), 1)
}

fn sharded(map: Value, shards: &[(&str, &[u8])]) -> (tempfile::TempDir, Files) {
    let index = json!({ "metadata": { "total_size": 2 }, "weight_map": map }).to_string();
    let mut files = vec![("model.safetensors.index.json", index.as_bytes())];
    files.extend_from_slice(shards);
    directory(&files)
}

#[test]
fn shards() {
    let (a, b) = (shard("a"), shard("b"));
    let both = json!({ "a": "1.safetensors", "b": "2.safetensors" });
    let open = |map: &Value, shards: &[(&str, &[u8])]| {
        let (_dir, files) = sharded(map.clone(), shards);
        Checkpoint::open(&files)
    };
    let checkpoint = open(&both, &[("1.safetensors", &a), ("2.safetensors", &b)]).unwrap();
    assert_eq!(checkpoint.names(), ["a", "b"]);
    let missing = checkpoint.tensor("c", &[1]);
    refused(missing, &["model.safetensors.index.json", "`c`"]);

    refused(open(&both, &[("1.safetensors", &a)]), &["index.json", "`2.safetensors` is missing"]);
    // The shards say what they hold; who needs what is not there hears of the index.
    let lacks = open(&both, &[("1.safetensors", &a), ("2.safetensors", &shard("c"))]).unwrap();
    assert_eq!(lacks.names(), ["a", "c"]);
    refused(lacks.tensor("b", &[1]), &["index.json", "tensor `b`", "none in `2.safetensors`"]);
    let twice = open(&both, &[("1.safetensors", &a), ("2.safetensors", &a)]).unwrap();
    assert_eq!((twice.names(), twice.notes()), (vec!["a"], &[][..]));
    let swapped = open(&both, &[("1.safetensors", &b), ("2.safetensors", &a)]).unwrap();
    assert_eq!(swapped.names(), ["a", "b"]);
    let dotted = json!({ "a": "./1.safetensors", "b": "././2.safetensors" });
    assert_eq!(open(&dotted, &[("1.safetensors", &a), ("2.safetensors", &b)]).unwrap().names(), ["a", "b"]);
    let broken = open(&both, &[("1.safetensors", &a), ("2.safetensors", &b[..9])]);
    refused(broken, &["2.safetensors: expected a header"]);

    for name in
        ["../1.safetensors", "/1.safetensors", "x/1.safetensors", "..", ".", "", "x\\1.safetensors", "1\0.safetensors"]
    {
        let map = json!({ "a": name });
        let escaped = open(&map, &[("1.safetensors", &a)]);
        refused(escaped, &["index.json", "shard name", &format!("{name:?}"), "plain file name"]);
    }
    refused(open(&json!({ "a": "1.bin" }), &[("1.bin", &a)]), &["`1.bin` is a pickle"]);
    for index in ["{}", "[]", "{\"weight_map\": []}", "{\"weight_map\": {\"a\": 5}}", "{"] {
        let (_dir, files) = directory(&[("model.safetensors.index.json", index.as_bytes())]);
        refused(Checkpoint::open(&files), &["index.json", "`weight_map`"]);
    }
    let twice = r#"{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}"#;
    let (_dir, files) = directory(&[("model.safetensors.index.json", twice.as_bytes())]);
    refused(Checkpoint::open(&files), &["`a` is listed twice"]);
}

/// Files of the Hugging Face cache are links to blobs in another directory.
#[cfg(unix)]
#[test]
fn links_are_followed() {
    use std::os::unix::fs::symlink;
    let blobs = tempfile::tempdir().unwrap();
    std::fs::write(blobs.path().join("blob"), shard("a")).unwrap();
    let (dir, files) = sharded(json!({ "a": "1.safetensors" }), &[]);
    symlink(blobs.path().join("blob"), dir.path().join("1.safetensors")).unwrap();
    assert!(Checkpoint::open(&files).unwrap().contains("a"));
    std::fs::remove_file(blobs.path().join("blob")).unwrap();
    refused(Checkpoint::open(&files), &["1.safetensors", "link", "does not exist"]);
}

#[test]
fn what_a_directory_may_lack() {
    let (dir, files) = directory(&[]);
    refused(Checkpoint::open(&files), &["expected `model.safetensors` or", "found neither"]);
    assert!(files.read("config.json").unwrap().is_none());
    let missing = Files::Dir(dir.path().join("nowhere"));
    refused(missing.read("config.json"), &["nowhere", "No such file"]);
    refused(Checkpoint::open(&missing), &["nowhere"]);
    std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    refused(Checkpoint::open(&files), &["`pytorch_model.bin`", "pickle", "never"]);
    let not_a_directory = Files::Dir(dir.path().join("pytorch_model.bin"));
    refused(not_a_directory.read("config.json"), &["pytorch_model.bin", "expected a model directory"]);
    std::fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    refused(Checkpoint::open(&files), &["model.safetensors", "regular file", "found a directory"]);
    let sparse = std::fs::File::create(dir.path().join("config.json")).unwrap();
    sparse.set_len((256 << 20) + 1).unwrap();
    refused(files.read("config.json"), &["config.json", "larger than 268435456 bytes"]);
}

#[test]
fn embedded_files() {
    static CONTENT: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let content: &'static [u8] = CONTENT.get_or_init(|| shard("a"));
    let list: &'static [(&str, &[u8])] = vec![("model.safetensors", content)].leak();
    let files = Files::Embedded("demo", list);
    assert!(Checkpoint::open(&files).unwrap().contains("a"));
    assert_eq!(files.read("model.safetensors").unwrap().unwrap(), content);
    assert!(files.read("config.json").unwrap().is_none());
    refused(Checkpoint::open(&Files::Embedded("demo", &[])), &["demo/model.safetensors"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is done to a file: it is refused, or the `safetensors` crate accepts it as well and agrees.
    #[test]
    fn mutations_agree_with_the_safetensors_crate(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..3),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = file(&two_tensors().to_string(), 32);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let numbers: Vec<usize> = (8..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for (at, digit) in digits {
            bytes[*at.get(&numbers)] = digit;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        let theirs = safetensors::SafeTensors::deserialize(&bytes);
        if let Ok(ours) = open(&bytes) {
            let theirs = theirs.unwrap();
            for name in ours.names() {
                let view = theirs.tensor(name).unwrap();
                if let Ok(tensor) = ours.tensor(name, view.shape()) {
                    prop_assert_eq!(tensor.data, view.data());
                }
            }
        }
    }
}
