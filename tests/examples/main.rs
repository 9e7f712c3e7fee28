//! Every example runs on the demo pair and prints what it promises.

use std::path::PathBuf;
use std::process::Command;

/// What an example prints. Cargo has built it, unless this test was asked for by its name alone.
fn run(name: &str) -> String {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let example = profile.join("examples").join(name);
    if !example.exists() {
        let mut build = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        build.args(["build", "--example", name]).current_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{name} does not build");
    }
    let output = Command::new(&example).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn generate() {
    let text = run("01_generate");
    assert!(text.contains("reward ") && text.lines().next().is_some_and(|story| story.len() > 40), "{text}");
}

#[test]
fn stream() {
    let text = run("02_stream");
    assert!(text.starts_with('|') || text.starts_with('*'), "{text}");
    assert!(text.matches(['|', '*']).count() > 2 && text.contains("policy tokens were run"), "{text}");
}

#[test]
fn many() {
    let text = run("03_many");
    assert!(text.contains("prompt 5: reward ") && text.contains("best of 8"), "{text}");
}

#[test]
fn reward_gradient() {
    let text = run("04_reward_gradient");
    assert!(text.contains("gradient norm ") && text.contains("at position 8"), "{text}");
}

#[test]
fn own_backend() {
    assert_eq!(run("05_own_backend"), "the cat is happy <end> (reward 1, 1 nudge)\n");
}

#[test]
fn own_method() {
    let text = run("06_own_method");
    assert!(text.lines().next().is_some_and(|story| story.len() > 40), "{text}");
    assert!(text.contains("reward ") && text.trim_end().ends_with(" blocks"), "{text}");
}
