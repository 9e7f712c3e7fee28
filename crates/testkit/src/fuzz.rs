//! What strangers' bytes are given to. Each target takes any bytes and must come back: with a value or an error, in reasonable time
//! and memory, without a panic. Used by `tests/files/fuzz.rs` (a short run on any toolchain) and by `fuzz/` (cargo-fuzz, as long as one likes).

use ggro::batch::tasks::{Dataset, Task};
use ggro::batch::{input, output};
use ggro::files::chat::{ChatTemplate, Message};
use ggro::files::checkpoint::{Checkpoint, Files};
use ggro::files::config::ModelConfig;
use ggro::files::tokenizer::Tokenizer;
use ggro::trace::{RequestFile, TraceFile};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 9] = [
    ("safetensors", safetensors),
    ("config", config),
    ("index", index),
    ("tokenizer", tokenizer),
    ("tokenizer_config", tokenizer_config),
    ("template", template),
    ("request", request),
    ("rows", rows),
    ("body", body),
];

thread_local! {
    static FOLDER: OnceCell<PathBuf> = const { OnceCell::new() };
}

/// A folder of this thread with one file in it.
fn folder(name: &str, content: &[u8]) -> Files {
    let folder = FOLDER.with(|folder| {
        let make = || {
            let name = format!("ggro-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
            let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
            std::fs::create_dir_all(&path).expect("a folder");
            path
        };
        folder.get_or_init(make).clone()
    });
    std::fs::write(folder.join(name), content).expect("written");
    Files::Dir(folder)
}

fn gone(files: &Files, name: &str) {
    let _ = std::fs::remove_file(files.path(name));
}

fn safetensors(data: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::of_bytes("fuzz", data.to_vec()) {
        for name in checkpoint.names() {
            let _ = checkpoint.tensor(name, &[2, 2]);
            let _ = checkpoint.load(name, &[4]);
        }
    }
}

fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = ModelConfig::parse(text, Path::new("fuzz")) {
        let _ = config.num_parameters();
        let _ = config.rope.frequencies(config.head_dim);
    }
}

fn index(data: &[u8]) {
    let name = "model.safetensors.index.json";
    let files = folder(name, data);
    let _ = Checkpoint::open(&files);
    gone(&files, name);
}

fn tokenizer(data: &[u8]) {
    let files = folder("tokenizer.json", data);
    if let Ok(tokenizer) = Tokenizer::load(&files) {
        let ids = tokenizer.encode("Once upon a time, there was \u{1f600} <|eot_id|>").unwrap_or_default();
        let _ = tokenizer.decode(&ids);
        let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    }
    gone(&files, "tokenizer.json");
}

fn tokenizer_config(data: &[u8]) {
    let files = folder("tokenizer_config.json", data);
    if let Ok(Some(template)) = ChatTemplate::load(&files) {
        talk(&template);
    }
    gone(&files, "tokenizer_config.json");
}

fn template(data: &[u8]) {
    let files = folder("chat_template.jinja", data);
    if let Ok(Some(template)) = ChatTemplate::load(&files) {
        talk(&template);
    }
    gone(&files, "chat_template.jinja");
}

fn talk(template: &ChatTemplate) {
    let said = |role: &str, content: &str| Message { role: role.to_string(), content: content.to_string() };
    let _ = template.render(&[said("user", "Hello")], true);
    let _ = template
        .render(&[said("system", "Be"), said("user", "Why?"), said("assistant", "So"), said("user", "")], false);
}

fn request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(request) = RequestFile::parse(text) {
        let mut options = ggro::method::Options::new(2, vec![2]);
        request.options.apply(&mut options);
        let _ = options.check();
    }
    let _ = serde_json::from_str::<TraceFile>(text);
}

/// What a server is sent; its models are the demo pair.
fn body(data: &[u8]) {
    use ggro::presets::Preset;
    use ggro::server::{AppState, Config, request};
    static APP: OnceLock<AppState> = OnceLock::new();
    let app = APP.get_or_init(|| {
        let pair = ggro::files::pair::Pair::load(&ggro::files::demo::policy(), &ggro::files::demo::reward())
            .expect("the demo pair");
        let config = Config::new("demo", "demo-reward", Preset::DEMO);
        AppState::new(config, Arc::new(pair), 512)
    });
    for route in [request::Route::Chat, request::Route::Completions] {
        if let Ok(asked) = request::ApiRequest::read(app, route, data) {
            assert!(asked.prompts.iter().all(|prompt| !prompt.ids.is_empty()));
            assert!(asked.max_new_tokens.iter().zip(&asked.prompts).all(|(new, prompt)| new + prompt.ids.len() <= 512));
        }
    }
}

fn rows(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = input::parse(text, None);
    for task in Dataset::ALL.map(Task::new) {
        let _ = input::parse(text, Some(&task));
        let _ = task.prediction(text);
    }
    if let Ok(row) = serde_json::from_str::<output::Row>(text) {
        let _ = ggro::batch::report::page(&[("fuzz".to_string(), vec![row])], &[]);
    }
}
