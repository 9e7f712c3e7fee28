//! The binary, driven from outside: what it prints, writes and returns.

mod bench;
mod compare;
mod errors;
mod generate;
mod guard;
mod info;
mod one_model;
mod profile;
mod prompts;
mod report;
mod run;
mod score;
mod verify;

use ggro_testkit::fixtures::goldens;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

const PROMPT: &str = "Write a story about a lost kite.";

/// What a run left behind.
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Run {
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).expect("one JSON object on standard output")
    }
}

/// The binary, without variables or standard input of the test's own surroundings.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggro"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GGRO_") {
            command.env_remove(name);
        }
    }
    // The same on a machine with a GPU.
    command.env("GGRO_DEVICE", "cpu");
    command.env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn finish(command: &mut Command) -> Run {
    let output = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let run = Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    assert!(!run.err.contains("panicked"), "{}", run.err);
    run
}

fn ggro(args: &[&str]) -> Run {
    finish(command().args(args))
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a readable file");
    serde_json::from_str(&text).expect("JSON")
}

/// A golden folder's traces.
fn traces(folder: &Path) -> Vec<Value> {
    read_json(&folder.join("traces.json"))["traces"].as_array().expect("traces").clone()
}

/// A copy of a golden folder to be damaged.
fn copy(folder: &str) -> tempfile::TempDir {
    fn copy_into(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy_into(&entry.path(), &target);
            } else {
                // Not `fs::copy`, which would keep a read-only mode.
                std::fs::write(target, std::fs::read(entry.path()).expect("a file")).expect("a copy");
            }
        }
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    copy_into(&goldens().join(folder), dir.path());
    dir
}
