//! What a server tells to whom: prompts of others, other hosts' names, pages of other origins, keys.

use crate::{Server, story};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Prompt tokens that were known, for ids from a caller.
fn cached(server: &Server, key: Option<&str>, ids: &[u32], salt: Option<&str>) -> u64 {
    let body = json!({ "model": "demo", "prompt": ids, "max_tokens": 1, "temperature": 0, "cache_salt": salt });
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    let answer = server.send("/v1/completions", &headers, body.to_string().as_bytes()).ok();
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn prompt(len: usize, first: u32) -> Vec<u32> {
    (0..len as u32).map(|at| 20 + (first + at * 7) % 500).collect()
}

#[test]
fn a_strangers_prompt_cannot_be_found_token_by_token() {
    let server = Server::start(&[]);
    let victim = prompt(94, 0);
    assert_eq!(cached(&server, None, &victim, None), 0);
    // Somebody knows 85 of the 94 ids and tries the next one: a right guess looks like a wrong one.
    let known = &victim[..85];
    let guesses = [victim[85], victim[85] + 1, victim[85] + 2];
    let seen = guesses.map(|guess| cached(&server, None, &[known, &[guess, 5]].concat(), None));
    assert_eq!(seen, [64; 3]);
    // What goes through the models tells no more than that.
    let body = |guess: u32| {
        let ids = [known, &[guess, 5]].concat();
        let body = json!({ "model": "demo:ggro", "prompt": ids, "max_tokens": 1 });
        server.complete(&body).ok()["usage"]["ggro"]["policy_forward"].clone()
    };
    assert_eq!(body(guesses[0]), body(guesses[2]));
}

#[test]
fn prompts_are_shared_within_a_salt_and_within_a_key() {
    let server = Server::start(&[]);
    let ids = prompt(100, 3);
    assert_eq!(cached(&server, None, &ids, Some("a")), 0);
    assert_eq!(cached(&server, None, &ids, Some("b")), 0);
    assert_eq!(cached(&server, None, &ids, None), 0);
    // Among friends, to the token.
    assert_eq!(cached(&server, None, &ids, Some("a")), 99);
    let refused = json!({ "model": "demo", "prompt": [1, 2], "cache_salt": "" });
    server.complete(&refused).refused(400, Some("cache_salt"));

    let keyed = Server::spawn(&["--api-key", "one", "--api-key", "two"], &[]);
    keyed.wait_ready();
    assert_eq!(cached(&keyed, Some("one"), &ids, None), 0);
    assert_eq!(cached(&keyed, Some("two"), &ids, None), 0);
    assert_eq!(cached(&keyed, Some("one"), &ids, None), 99);
    assert_eq!(cached(&keyed, Some("one"), &ids, Some("x")), 0);
}

/// The status of a request with this head.
fn status(server: &Server, head: &str) -> u16 {
    let body = story("demo", json!({ "max_tokens": 1 })).to_string();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(stream, "{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn a_server_without_keys_answers_to_its_machine_only() {
    let server = Server::start(&["--allowed-host", "ggro.test", "--cors-origin", "https://chat.example.org"]);
    let post = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: text/plain\r\n";
    for (headers, expected) in [
        ("Host: localhost\r\n", 200),
        ("Host: LOCALHOST:8000\r\n", 200),
        ("Host: 127.0.0.1:1\r\n", 200),
        ("Host: [::1]:8000\r\n", 200),
        ("Host: ggro.test:80\r\n", 200),
        ("Host: evil.example:18431\r\n", 403),
        ("Host: localhost.evil.example\r\n", 403),
        ("Host: 127.0.0.1.evil.example\r\n", 403),
        ("Host: 10.0.0.1\r\n", 403),
        ("Host: \r\n", 403),
        ("", 400),
        // Pages: one that is named, one of the machine, any other.
        ("Host: localhost\r\nOrigin: https://chat.example.org\r\n", 200),
        ("Host: localhost\r\nOrigin: http://localhost:3000\r\n", 200),
        ("Host: localhost\r\nOrigin: http://evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
    ] {
        assert_eq!(status(&server, &format!("{post}{headers}")), expected, "{headers:?}");
    }
    // HTTP/1.0 knows no host.
    assert_eq!(status(&server, "POST /v1/chat/completions HTTP/1.0\r\n"), 200);
    // A key says enough of who asks.
    let keyed = Server::spawn(&["--api-key", "k"], &[]);
    keyed.wait_ready();
    let head = format!("{post}Host: evil.example\r\nAuthorization: Bearer k\r\n");
    assert_eq!(status(&keyed, &head), 200);
}

#[test]
fn a_client_that_expects_what_is_not_done_is_told() {
    let server = Server::start(&[]);
    let post = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n";
    assert_eq!(status(&server, &format!("{post}Expect: foo\r\n")), 417);
}

#[test]
fn an_empty_key_is_no_key() {
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ggro"));
        let output = command.arg("serve").args(args).envs(variables.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (args, variables) in [
        (&["--api-key", ""][..], &[][..]),
        (&["--api-key", " "], &[]),
        (&["--api-key", "a,,b"], &[]),
        (&[], &[("GGRO_API_KEY", "")]),
    ] {
        let (code, error) = run(args, variables);
        assert!(code == Some(2) && error.contains("an empty one"), "{args:?} {variables:?}: {code:?} {error}");
    }
}

#[test]
fn a_browsers_page_can_use_openais_client() {
    let server = Server::start(&["--cors-origin", "https://chat.example.org"]);
    let headers = [
        ("origin", "https://chat.example.org"),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type,x-stainless-os,x-stainless-retry-count,openai-beta",
        ),
    ];
    let answer = server.request("OPTIONS", "/v1/chat/completions", &headers, None);
    let allowed = answer.headers["access-control-allow-headers"].to_str().unwrap();
    for name in ["authorization", "x-stainless-os", "x-stainless-retry-count", "openai-beta"] {
        assert!(allowed.contains(name), "{name}: {allowed}");
    }
    let body = story("demo", json!({ "max_tokens": 1 })).to_string();
    let answer = server.send("/v1/chat/completions", &headers[..1], body.as_bytes());
    let exposed = answer.headers["access-control-expose-headers"].to_str().unwrap().to_string();
    assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
    let _: Value = answer.ok();
}
