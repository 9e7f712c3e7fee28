//! The objects of OpenAI's API, read as a typed client reads them: what it requires is there, and of its type. OpenAI's own
//! client is in `client.py`.

use crate::{Answer, Server, merge, story};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct List<T> {
    object: String,
    data: Vec<T>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    object: String,
    #[serde(rename = "created")]
    _created: u32,
    #[serde(rename = "owned_by")]
    _owned_by: String,
}

/// A whole answer of either route, and a chunk of its stream.
#[derive(Deserialize)]
struct Completion<C> {
    id: String,
    object: String,
    created: u32,
    model: String,
    choices: Vec<C>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum FinishReason {
    Stop,
    Length,
}

#[derive(Deserialize)]
struct ChatChoice {
    index: u32,
    message: Message,
    finish_reason: Option<FinishReason>,
    logprobs: Option<ChatLogprobs>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<String>,
}

#[derive(Deserialize)]
struct ChatChunk {
    index: u32,
    delta: Delta,
    finish_reason: Option<FinishReason>,
}

#[derive(Deserialize)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
}

#[derive(Deserialize)]
struct ChatLogprobs {
    content: Option<Vec<TokenLogprob>>,
}

#[derive(Deserialize)]
struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Deserialize)]
struct TopLogprob {
    token: String,
    logprob: f32,
    #[serde(rename = "bytes")]
    _bytes: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct TextChoice {
    index: u32,
    text: String,
    #[serde(rename = "finish_reason")]
    _finish_reason: Option<FinishReason>,
    logprobs: Option<TextLogprobs>,
}

#[derive(Deserialize)]
struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<u32>,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    message: String,
    #[serde(rename = "type")]
    kind: String,
    code: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: ApiError,
}

struct Client<'a> {
    server: &'a Server,
    key: &'a str,
}

impl Client<'_> {
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let authorization = format!("Bearer {}", self.key);
        let body = body.map(|body| body.to_string().into_bytes());
        self.server.request(method, path, &[("authorization", &authorization)], body.as_deref())
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        read(self.ask("GET", path, None).ok())
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> T {
        read(self.ask("POST", path, Some(body)).ok())
    }

    fn chat(&self, body: &Value) -> Completion<ChatChoice> {
        let answer: Completion<ChatChoice> = self.post("/v1/chat/completions", body);
        assert_eq!(answer.object, "chat.completion");
        assert!(answer.choices.iter().all(|choice| choice.message.role == "assistant"));
        checked(answer, body, |choice| choice.index)
    }

    fn complete(&self, body: &Value) -> Completion<TextChoice> {
        let answer: Completion<TextChoice> = self.post("/v1/completions", body);
        assert_eq!(answer.object, "text_completion");
        checked(answer, body, |choice| choice.index)
    }

    /// Every chunk of a stream.
    fn stream<C: DeserializeOwned>(&self, path: &str, body: &Value) -> Vec<Completion<C>> {
        let mut body = body.clone();
        merge(&mut body, json!({ "stream": true }));
        let answer = self.ask("POST", path, Some(&body));
        let kind = answer.headers["content-type"].to_str().expect("text");
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        let chunks: Vec<Completion<C>> = answer.frames().into_iter().map(read).collect();
        for chunk in &chunks {
            assert_eq!((&chunk.id, chunk.created, &chunk.model), (&chunks[0].id, chunks[0].created, &chunks[0].model));
            let object = if path.contains("chat") { "chat.completion.chunk" } else { "text_completion" };
            assert_eq!(chunk.object, object);
        }
        chunks
    }

    fn refused(&self, method: &str, path: &str, body: Option<&Value>) -> ApiError {
        let answer = self.ask(method, path, body);
        assert!((400..500).contains(&answer.status), "{}", answer.status);
        let Refusal { error } = read(answer.json());
        assert!(!error.message.is_empty() && !error.kind.is_empty(), "{error:?}");
        error
    }
}

#[track_caller]
fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
}

/// What every whole answer has.
fn checked<C>(answer: Completion<C>, body: &Value, index: impl Fn(&C) -> u32) -> Completion<C> {
    assert!(!answer.id.is_empty() && answer.created > 0);
    assert_eq!(answer.model, body["model"].as_str().unwrap());
    assert!(answer.choices.iter().map(index).eq(0..answer.choices.len() as u32));
    answer
}

fn client<'a>(server: &'a Server, key: &'a str) -> Client<'a> {
    Client { server, key }
}

fn request(model: &str, more: Value) -> Value {
    let mut body = json!({
        "model": model,
        "messages": [{ "content": "Tell me a story about a box.", "role": "user" }],
        "max_completion_tokens": 40,
        "temperature": 0.0,
    });
    merge(&mut body, more);
    body
}

fn texts(answer: &Completion<ChatChoice>) -> Vec<String> {
    answer.choices.iter().map(|choice| choice.message.content.clone().expect("a text")).collect()
}

#[test]
fn models_chat_and_streams() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let models: List<Model> = client.get("/v1/models");
    assert_eq!(models.object, "list");
    assert!(models.data.iter().all(|model| model.object == "model"));
    let names: Vec<&str> = models.data.iter().map(|model| model.id.as_str()).collect();
    let plain = ["demo", "demo:ggro", "demo:ggro-safety", "demo:ggro-helpfulness", "demo:ggro-reasoning", "demo:bon-8"];
    let searches = [
        "demo:rejection-sampling",
        "demo:cards",
        "demo:speculative-rejection",
        "demo:args",
        "demo:blockwise",
        "demo:beam",
        "demo:soft-best-of-n",
        "demo:best-of-poisson",
    ];
    // These have a parameter without a default, and are not offered.
    let aimed = |name: &str| ["demo:cards", "demo:rejection-sampling"].contains(&name);
    assert_eq!(names.len(), plain.len() + searches.len() - 2, "{names:?}");
    for name in plain.into_iter().chain(searches) {
        assert_eq!(names.contains(&name), !aimed(name), "{names:?}");
        assert_eq!(client.get::<Model>(&format!("/v1/models/{name}")).id, name);
    }
    for model in plain.into_iter().chain(searches) {
        let aimed = aimed(model);
        let request = |more: Value| {
            let mut body = request(model, more);
            if aimed {
                body["method_params"] = json!({ "target_reward": 1 });
            }
            body
        };
        let whole = client.chat(&request(json!({})));
        let choice = &whole.choices[0];
        let expected = choice.message.content.clone().expect("a text");
        assert!(!expected.is_empty() && !expected.contains("assistant"), "{expected}");
        assert_eq!(choice.finish_reason, Some(FinishReason::Length));
        let usage = whole.usage.expect("usage");
        assert_eq!((usage.completion_tokens, usage.total_tokens), (40, usage.prompt_tokens + 40));

        let seeded = model.contains("bon-");
        let more = if seeded { json!({ "seed": 3 }) } else { json!({}) };
        let chunks: Vec<Completion<ChatChunk>> = client.stream("/v1/chat/completions", &request(more));
        assert_eq!(chunks[0].choices[0].delta.role.as_deref(), Some("assistant"));
        let (mut text, mut pieces, mut ended) = (String::new(), 0, 0);
        for choice in chunks.into_iter().flat_map(|chunk| chunk.choices) {
            let piece = choice.delta.content.unwrap_or_default();
            pieces += usize::from(!piece.is_empty());
            text += &piece;
            ended += usize::from(choice.finish_reason.is_some());
            assert_eq!(choice.index, 0);
        }
        assert_eq!(ended, 1);
        if !seeded {
            assert_eq!(text, expected, "{model}");
            assert!(pieces > 1, "{model} came in one piece");
        }
    }
}

#[test]
fn sampling_stops_and_logprobs() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let warm = |seed| request("demo", json!({ "temperature": 1.0, "seed": seed, "n": 3 }));
    let first = texts(&client.chat(&warm(7)));
    assert_eq!(first, texts(&client.chat(&warm(7))));
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] && first[1] != first[2]);
    assert_ne!(first, texts(&client.chat(&warm(8))));

    let free = texts(&client.chat(&request("demo", json!({})))).remove(0);
    let stop = &free[10..15];
    let response = client.chat(&request("demo", json!({ "stop": stop })));
    assert_eq!(response.choices[0].message.content.as_deref(), free.split(stop).next());
    assert_eq!(response.choices[0].finish_reason, Some(FinishReason::Stop));

    let mut response = client.chat(&request("demo", json!({ "logprobs": true, "top_logprobs": 3 })));
    let logprobs = response.choices.remove(0).logprobs;
    let content = logprobs.and_then(|logprobs| logprobs.content).expect("log-probabilities");
    assert_eq!(content.len(), 40);
    assert_eq!(content.iter().map(|token| token.token.as_str()).collect::<String>(), free);
    for token in content {
        // Greedy: the token itself is the most likely one.
        assert_eq!(token.top_logprobs.len(), 3);
        let most = &token.top_logprobs[0];
        assert_eq!((&most.token, most.logprob), (&token.token, token.logprob));
        assert!(token.top_logprobs.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert!(token.bytes.is_none_or(|bytes| bytes == token.token.as_bytes()));
    }
}

#[test]
fn completions_of_texts_and_ids() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let text = "Once upon a time";
    let ids = server.post("/tokenize", &json!({ "prompt": text })).ok()["tokens"].clone();
    let count = ids.as_array().unwrap().len();
    let request = |prompt: Value, n: u32| json!({ "model": "demo", "prompt": prompt, "max_tokens": 12, "temperature": 0.0, "logprobs": 2, "n": n });
    let mut texts = Vec::new();
    for prompt in [json!(text), ids] {
        let mut response = client.complete(&request(prompt, 1));
        assert_eq!(response.usage.expect("usage").prompt_tokens as usize, count);
        let choice = response.choices.remove(0);
        let logprobs = choice.logprobs.expect("log-probabilities");
        assert_eq!(logprobs.tokens.concat(), choice.text);
        let lengths = [logprobs.token_logprobs.len(), logprobs.top_logprobs.len(), logprobs.text_offset.len()];
        assert_eq!(lengths, [logprobs.tokens.len(); 3]);
        texts.push(choice.text);
    }
    assert_eq!(texts[0], texts[1]);
    let response = client.complete(&request(json!([text, "The dog"]), 2));
    let choices: Vec<&str> = response.choices.iter().map(|choice| &*choice.text).collect();
    assert_eq!(choices.len(), 4);
    assert_eq!((choices[0], choices[1]), (&*texts[0], &*texts[0]));
    assert_ne!(choices[2], texts[0]);

    let chunks: Vec<Completion<TextChoice>> = client.stream("/v1/completions", &request(json!(text), 1));
    let streamed: String = chunks.into_iter().flat_map(|chunk| chunk.choices).map(|choice| choice.text).collect();
    assert_eq!(streamed, texts[0]);
}

#[test]
fn errors_have_the_types_that_clients_look_for() {
    let server = Server::start(&["--api-key", "one", "--api-key", "two"]);
    for key in ["", "three", "on"] {
        let error = client(&server, key).refused("GET", "/v1/models", None);
        assert_eq!(error.code.as_deref(), Some("invalid_api_key"), "{error:?}");
    }
    let client = client(&server, "two");
    let refused = |body: Value| client.refused("POST", "/v1/chat/completions", Some(&body));
    let error = refused(request("gpt-4", json!({})));
    assert_eq!(error.code.as_deref(), Some("model_not_found"), "{error:?}");
    let error = refused(request("demo", json!({ "max_completion_tokens": 100_000 })));
    assert_eq!(error.code.as_deref(), Some("context_length_exceeded"), "{error:?}");
}

#[test]
fn fields_of_the_method_pass_through_a_client() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let ask = |body: &Value| client.post::<Value>("/v1/chat/completions", body);
    let mut body = story("demo", json!({ "ggro": { "num_refinement_steps": 3, "trace": true } }));
    let nested = ask(&body);
    body["ggro"] = Value::Null;
    body["vllm_xargs"] = json!({ "ggro_num_refinement_steps": 3, "ggro_trace": 1 });
    let flat = ask(&body);
    body["vllm_xargs"] = Value::Null;
    body["model"] = json!("demo:ggro");
    let alias = ask(&body);
    assert_eq!(nested["choices"], flat["choices"]);
    assert_eq!(nested["ggro"]["trace"]["segments"], flat["ggro"]["trace"]["segments"]);
    let most = nested["ggro"]["trace"]["segments"].as_array().unwrap().iter();
    assert_eq!(most.map(|segment| segment["candidates"].as_array().unwrap().len()).max(), Some(3));
    assert!(alias["ggro"]["reward"].is_number() && alias["ggro"]["trace"].is_null());
}
