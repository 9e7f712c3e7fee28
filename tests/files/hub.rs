//! Models by name, from a stand-in for the hub on this machine: redirects to another host, broken connections, resumption, checksums,
//! tokens, renamed repositories, no connection at all.

use ggro::files::hub::{Downloaded, Hub, Name};
use sha1::Digest;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the stand-in does, and what it saw.
#[derive(Default)]
struct State {
    /// Content by `repository/file`.
    files: BTreeMap<String, Vec<u8>>,
    /// Only with this token.
    token: Option<String>,
    /// Bytes after which the next answers of large files break off.
    breaks: Vec<usize>,
    /// Ranges are not understood.
    no_ranges: bool,
    /// Large files are sent with one bit turned.
    damaged: bool,
    /// Status of the next answers.
    statuses: Vec<u16>,
    /// Every request: host, method, path, range, whether it had a token.
    seen: Vec<String>,
}

/// A hub, and another host for large files.
struct Server {
    hub: String,
    state: Arc<Mutex<State>>,
}

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn git(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    /// With the pair of a fixture, as `test/policy` and `test/reward`.
    fn start(fixture: &str) -> Server {
        let mut state = State::default();
        for role in ["policy", "reward"] {
            for entry in std::fs::read_dir(Path::new("tests/goldens").join(fixture).join(role)).unwrap() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_str().unwrap();
                state.files.insert(format!("test/{role}/{file}"), std::fs::read(&path).unwrap());
            }
            state.files.insert(format!("test/{role}/README.md"), b"not needed".to_vec());
        }
        let state = Arc::new(Mutex::new(state));
        let [hub, store] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (hub_at, store_at) = (address(&hub), address(&store));
        for (listener, host) in [(hub, "hub"), (store, "store")] {
            let (state, store_at) = (state.clone(), store_at.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let _ = answer(stream, host, &store_at, &state);
                }
            });
        }
        Server { hub: hub_at, state }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

fn answer(mut stream: TcpStream, host: &str, store: &str, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut token, mut from) = (None, None);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let (name, value) = line.trim().split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "authorization" => token = value.strip_prefix("Bearer ").map(str::to_string),
            "range" => {
                from = value.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok())
            }
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    let range = from.map_or(String::new(), |from| format!(" from {from}"));
    let with = if token.is_some() { " with a token" } else { "" };
    state.seen.push(format!("{host} {method} {path}{range}{with}"));
    let mut reply = |status: u16, headers: &str, body: &[u8], sent: usize| -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len())?;
        if method != "HEAD" {
            stream.write_all(&body[..sent.min(body.len())])?;
        }
        stream.flush()
    };
    if host == "hub" {
        if let Some(status) = state.statuses.pop() {
            return reply(status, "", b"", 0);
        }
        if state.token.is_some() && state.token != token {
            return reply(401, "", b"who are you", usize::MAX);
        }
        if let Some(rest) = path.strip_prefix("/api/models/old/") {
            return reply(307, &format!("Location: /api/models/test/{rest}\r\n"), b"", 0);
        }
        if let Some(rest) = path.strip_prefix("/old/") {
            return reply(307, &format!("Location: /test/{rest}\r\n"), b"", 0);
        }
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let (repository, revision) = rest.split_once("/revision/").unwrap_or((rest, ""));
            let files: Vec<_> =
                state.files.keys().filter_map(|key| key.strip_prefix(repository)?.strip_prefix('/')).collect();
            if files.is_empty() || !["main", COMMIT, "v1%2Fx"].contains(&revision) {
                return reply(404, "", b"{}", usize::MAX);
            }
            let siblings: Vec<_> = files.iter().map(|file| serde_json::json!({"rfilename": file})).collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return reply(200, "", body.as_bytes(), usize::MAX);
        }
        let key = path.trim_start_matches('/').replace(&format!("/resolve/{COMMIT}/"), "/");
        let Some(content) = state.files.get(&key) else { return reply(404, "", b"", 0) };
        if key.ends_with(".safetensors") {
            let headers = format!(
                "X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nETag: \"other\"\r\nLocation: {store}/{key}\r\n",
                sha256(content),
                content.len()
            );
            return reply(302, &headers, b"", 0);
        }
        return reply(200, &format!("ETag: W/\"{}\"\r\n", git(content)), content, usize::MAX);
    }
    let Some(mut content) = state.files.get(path.trim_start_matches('/')).cloned() else {
        return reply(404, "", b"", 0);
    };
    if state.damaged {
        let middle = content.len() / 2;
        content[middle] ^= 1;
    }
    let sent = state.breaks.pop().unwrap_or(usize::MAX);
    match from.filter(|_| !state.no_ranges) {
        Some(from) => reply(206, "", &content[from..], sent),
        None => reply(200, "", &content, sent),
    }
}

fn fetch(hub: &Hub, name: &str) -> ggro::Result<std::path::PathBuf> {
    hub.fetch(&Name::parse(name).unwrap(), &mut |_| ())
}

#[test]
fn a_model_comes_once_and_is_what_it_was() {
    let (server, folder) = (Server::start("llama-mha-tied"), tempfile::tempdir().unwrap());
    let hub = Hub::new(&server.hub, folder.path().join("hub"), None, false);
    let mut files = Vec::new();
    let found = hub
        .fetch(&Name::parse("test/policy").unwrap(), &mut |downloaded: Downloaded<'_>| {
            files.push(downloaded.file.to_string());
            assert!(downloaded.size.is_none_or(|size| downloaded.bytes <= size));
        })
        .unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let original = std::fs::read(Path::new("tests/goldens/llama-mha-tied/policy").join(file)).unwrap();
        assert!(std::fs::read(found.join(file)).unwrap() == original, "{file}");
        assert!(files.iter().any(|seen| seen == file), "{files:?}");
    }
    assert!(!found.join("README.md").exists());
    assert!(found.ends_with(format!("models--test--policy/snapshots/{COMMIT}")));
    let blobs = std::fs::read_dir(folder.path().join("hub/models--test--policy/blobs")).unwrap();
    assert!(blobs.flatten().all(|entry| !entry.file_name().to_string_lossy().contains("incomplete")));
    assert!(!server.seen().is_empty());

    // From the cache, without asking anybody; offline too, and by its commit.
    assert_eq!(fetch(&hub, "test/policy").unwrap(), found);
    let offline = Hub::new("http://127.0.0.1:9", folder.path().join("hub"), None, true);
    assert_eq!(fetch(&offline, &format!("test/policy@{COMMIT}")).unwrap(), found);
    assert!(server.seen().is_empty());
    let error = fetch(&offline, "test/reward").unwrap_err().to_string();
    assert!(error.contains("test/reward") && error.contains("HF_HUB_OFFLINE"), "{error}");
    // A branch with a slash, and a repository that has another name now.
    fetch(&hub, "test/policy@v1/x").unwrap();
    fetch(&hub, "old/reward").unwrap();
}

#[test]
fn what_breaks_off_goes_on() {
    let (server, folder) = (Server::start("llama-mha-tied"), tempfile::tempdir().unwrap());
    let hub = Hub::new(&server.hub, folder.path().to_path_buf(), None, false);
    // Broken off twice, and a server that is busy once.
    server.change(|state| state.breaks = vec![usize::MAX, 30_000, 1000]);
    fetch(&hub, "test/policy").unwrap();
    let seen = server.seen().join("\n");
    assert!(seen.contains("store GET /test/policy/model.safetensors from 1000\n"), "{seen}");
    assert!(seen.contains("store GET /test/policy/model.safetensors from 31000"), "{seen}");

    // Another process goes on where this one ended; a server that knows no ranges sends it all again.
    server.change(|state| state.breaks = vec![2000; 4]);
    let error = fetch(&hub, "test/reward").unwrap_err().to_string();
    assert!(error.contains("test/reward: model.safetensors: broke off after 8000"), "{error}");
    server.change(|state| {
        state.breaks.clear();
        state.no_ranges = true;
    });
    let found = fetch(&hub, "test/reward").unwrap();
    let original = std::fs::read("tests/goldens/llama-mha-tied/reward/model.safetensors").unwrap();
    assert!(std::fs::read(found.join("model.safetensors")).unwrap() == original);
}

#[test]
fn damaged_files_are_not_kept() {
    let (server, folder) = (Server::start("llama-mha-tied"), tempfile::tempdir().unwrap());
    let hub = Hub::new(&server.hub, folder.path().to_path_buf(), None, false);
    server.change(|state| state.damaged = true);
    let error = fetch(&hub, "test/policy").unwrap_err().to_string();
    assert!(error.contains("model.safetensors: checksum") && error.contains("expected"), "{error}");
    server.change(|state| state.damaged = false);
    fetch(&hub, "test/policy").unwrap();
}

#[test]
fn tokens_go_to_the_hub_alone() {
    let (server, folder) = (Server::start("llama-mha-tied"), tempfile::tempdir().unwrap());
    server.change(|state| state.token = Some("secret".to_string()));
    let without = Hub::new(&server.hub, folder.path().to_path_buf(), None, false);
    let error = fetch(&without, "test/policy").unwrap_err().to_string();
    assert!(error.contains("test/policy: access is refused (401") && error.contains("HF_TOKEN"), "{error}");
    server.seen();
    let with = Hub::new(&server.hub, folder.path().to_path_buf(), Some("secret".to_string()), false);
    fetch(&with, "test/policy").unwrap();
    for request in server.seen() {
        assert_eq!(request.starts_with("hub"), request.ends_with("with a token"), "{request}");
    }
}

#[test]
fn what_is_not_there_is_named() {
    let (server, folder) = (Server::start("llama-mha-tied"), tempfile::tempdir().unwrap());
    let hub = Hub::new(&server.hub, folder.path().to_path_buf(), None, false);
    for (name, part) in [("test/nothing", "no such model"), ("test/policy@v9", "test/policy@v9: ")] {
        let error = fetch(&hub, name).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
    let nobody = Hub::new("http://127.0.0.1:9", folder.path().to_path_buf(), None, false);
    assert!(fetch(&nobody, "test/policy").unwrap_err().to_string().contains("127.0.0.1:9"));
    server.change(|state| state.statuses = vec![500]);
    assert!(fetch(&hub, "test/policy").unwrap_err().to_string().contains("500"));
    // Pickles are not even asked for.
    server.change(|state| {
        let weights = state.files.remove("test/policy/model.safetensors").unwrap();
        state.files.insert("test/policy/pytorch_model.bin".to_string(), weights);
    });
    let error = fetch(&hub, "test/policy").unwrap_err().to_string();
    assert!(error.contains("only safetensors are loaded"), "{error}");
    assert!(server.seen().iter().all(|request| !request.contains(".bin")));
}

#[test]
fn shards_come_by_their_index() {
    let (server, folder) = (Server::start("qwen2-sharded"), tempfile::tempdir().unwrap());
    let hub = Hub::new(&server.hub, folder.path().to_path_buf(), None, false);
    let found = fetch(&hub, "test/policy").unwrap();
    let there = std::fs::read_dir(&found)
        .unwrap()
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|e| e == "safetensors"));
    assert!(there.count() > 1);
    // One that is gone from the cache is brought again.
    let shard = std::fs::read_dir(&found)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.to_string_lossy().contains("-of-"))
        .unwrap();
    std::fs::remove_file(&shard).unwrap();
    fetch(&hub, "test/policy").unwrap();
    assert!(shard.exists());
}

/// A cache that another tool filled without the files that it did not know.
#[test]
fn files_that_a_cached_model_lacks_are_asked_for_once() {
    let (server, folder) = (Server::start("qwen3"), tempfile::tempdir().unwrap());
    server.change(|state| {
        state.files.insert("test/policy/additional_chat_templates/tool_use.jinja".to_string(), b"{{ tools }}".to_vec());
    });
    let hub = Hub::new(&server.hub, folder.path().to_path_buf(), None, false);
    let offline = Hub::new(&server.hub, folder.path().to_path_buf(), None, true);
    let name = Name::parse("test/policy").unwrap();
    let found = hub.find(&name, &mut |_| ()).unwrap();
    let tools = found.dir.join("additional_chat_templates/tool_use.jinja");
    assert_eq!((std::fs::read_to_string(&tools).unwrap().as_str(), &found.note), ("{{ tools }}", &None));

    let absent = folder.path().join("models--test--policy/.no_exist");
    for (lost, told) in
        [("chat_template.jinja", true), ("generation_config.json", true), ("tokenizer_config.json", true)]
    {
        assert!(found.dir.join(lost).exists(), "{lost}");
        std::fs::remove_file(found.dir.join(lost)).unwrap();
        let _ = std::fs::remove_dir_all(&absent);
        let note = offline.find(&name, &mut |_| ()).unwrap().note.unwrap_or_default();
        assert_eq!(note.contains(lost) && note.contains("HF_HUB_OFFLINE"), told, "{note}");
        server.seen();
        assert_eq!(hub.find(&name, &mut |_| ()).unwrap().note, None);
        assert!(found.dir.join(lost).exists(), "{lost}");
        assert!(server.seen().iter().all(|request| !request.contains("safetensors")));
        hub.find(&name, &mut |_| ()).unwrap();
        assert!(server.seen().is_empty(), "asked twice");
    }
    // Of the commit that is there, and if nobody can be asked, what is there is used.
    std::fs::remove_file(found.dir.join("chat_template.jinja")).unwrap();
    std::fs::remove_dir_all(&absent).unwrap();
    server.change(|state| state.statuses = vec![500]);
    let note = hub.find(&name, &mut |_| ()).unwrap().note.unwrap_or_default();
    assert!(note.contains("chat_template.jinja") && note.contains("500"), "{note}");
}

#[test]
fn the_command_line_takes_names() {
    let (server, folder) = (Server::start("llama-mha-tied"), tempfile::tempdir().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggro"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("GGRO_") || name.starts_with("HF_") {
            command.env_remove(name);
        }
    }
    command.env("HF_HOME", folder.path()).env("HF_ENDPOINT", &server.hub).env("GGRO_DEVICE", "cpu");
    let args = ["--policy", "test/policy", "--reward", "test/reward"];
    let output = command.args(["info", "--json"]).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["pair"]["demo"], false);
    assert!(folder.path().join("hub/models--test--reward/refs/main").exists());
}
