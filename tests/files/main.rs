//! What a model directory may hold, well formed or not: configs, checkpoints, tokenizers, chat templates and pairs.

mod chat;
mod checkpoint;
mod config;
mod corpus;
mod found;
mod fuzz;
mod hub;
mod pair;
mod tokenizer;

use ggro::files::checkpoint::Files;
use ggro_testkit::fixtures::{FIXTURES, fixture, goldens};
use std::path::Path;

/// A model of a fixture: `model("qwen2/policy")`.
fn model(path: &str) -> Files {
    Files::Dir(fixture(path))
}

fn read_json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
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
