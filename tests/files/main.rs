//! What a model directory may hold, well formed or not: configs, checkpoints, tokenizers, chat templates and pairs.

mod chat;
mod checkpoint;
mod config;
mod corpus;
mod pair;
mod tokenizer;

use ggro::files::checkpoint::Files;
use std::path::{Path, PathBuf};

const FIXTURES: [&str; 8] =
    ["llama-gqa", "llama-mha-tied", "llama-twins", "llama-unaligned", "mistral", "qwen2", "qwen2-sharded", "qwen3"];

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// A model of a fixture: `model("qwen2/policy")`.
fn model(path: &str) -> Files {
    Files::Dir(goldens().join(path))
}

fn read_json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let files = Files::Dir(dir.path().to_path_buf());
    (dir, files)
}

/// The result is an error whose message holds every one of `parts`.
#[track_caller]
fn refused<T>(result: ggro::Result<T>, parts: &[&str]) -> String {
    let Err(error) = result else {
        panic!("expected an error with {parts:?}");
    };
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    message
}
