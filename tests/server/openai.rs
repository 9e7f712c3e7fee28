//! `async-openai`, a client that knows nothing of this server.

use crate::Server;
use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionRequestUserMessageArgs, CreateChatCompletionRequest, CreateChatCompletionRequestArgs, FinishReason,
    Prompt,
};
use async_openai::types::completions::CreateCompletionRequestArgs;
use futures_util::StreamExt;
use serde_json::{Value, json};

fn client(server: &Server, key: &str) -> Client<OpenAIConfig> {
    Client::with_config(OpenAIConfig::new().with_api_base(format!("{}/v1", server.base)).with_api_key(key))
}

fn request(model: &str) -> CreateChatCompletionRequestArgs {
    let message =
        ChatCompletionRequestUserMessageArgs::default().content("Tell me a story about a box.").build().unwrap();
    let mut request = CreateChatCompletionRequestArgs::default();
    request.model(model).messages([message.into()]).max_completion_tokens(40u32).temperature(0.0);
    request
}

async fn text(client: &Client<OpenAIConfig>, request: CreateChatCompletionRequest) -> String {
    let response = client.chat().create(request).await.expect("an answer");
    response.choices[0].message.content.clone().expect("a text")
}

#[tokio::test]
async fn models_chat_and_streams() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let models = client.models().list().await.expect("models");
    let names: Vec<&str> = models.data.iter().map(|model| model.id.as_str()).collect();
    for name in ["demo", "demo:ggro", "demo:ggro-safety", "demo:ggro-helpfulness", "demo:ggro-reasoning", "demo:bon-8"]
    {
        assert!(names.contains(&name), "{names:?}");
        assert_eq!(client.models().retrieve(name).await.expect("the model").id, name);
    }
    for model in names {
        let whole = client.chat().create(request(model).build().unwrap()).await.expect("an answer");
        let choice = &whole.choices[0];
        let expected = choice.message.content.clone().expect("a text");
        assert!(!expected.is_empty() && !expected.contains("assistant"), "{expected}");
        assert_eq!(choice.finish_reason, Some(FinishReason::Length));
        let usage = whole.usage.expect("usage");
        assert_eq!((usage.completion_tokens, usage.total_tokens), (40, usage.prompt_tokens + 40));

        let seed = if model.contains("bon") { Some(3) } else { None };
        let mut streamed = request(model);
        streamed.stream(true);
        if let Some(seed) = seed {
            streamed.seed(seed);
        }
        let mut stream = client.chat().create_stream(streamed.build().unwrap()).await.expect("a stream");
        let (mut text, mut pieces, mut ended) = (String::new(), 0, 0);
        while let Some(chunk) = stream.next().await {
            for choice in chunk.expect("a chunk").choices {
                let piece = choice.delta.content.unwrap_or_default();
                pieces += usize::from(!piece.is_empty());
                text += &piece;
                ended += usize::from(choice.finish_reason.is_some());
            }
        }
        assert_eq!(ended, 1);
        if seed.is_none() {
            assert_eq!(text, expected, "{model}");
            assert!(pieces > 1, "{model} came in one piece");
        }
    }
}

#[tokio::test]
async fn sampling_stops_and_logprobs() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let mut warm = request("demo");
    warm.temperature(1.0).seed(7).n(3u8);
    let first = client.chat().create(warm.build().unwrap()).await.expect("answers");
    let again = client.chat().create(warm.build().unwrap()).await.expect("answers");
    let texts = |response: &async_openai::types::chat::CreateChatCompletionResponse| -> Vec<String> {
        response.choices.iter().map(|choice| choice.message.content.clone().unwrap()).collect()
    };
    assert_eq!(texts(&first), texts(&again));
    assert_eq!(first.choices.len(), 3);
    assert!(texts(&first)[0] != texts(&first)[1] && texts(&first)[1] != texts(&first)[2]);
    let other = client.chat().create(warm.seed(8).build().unwrap()).await.expect("answers");
    assert_ne!(texts(&first), texts(&other));

    let free = text(&client, request("demo").build().unwrap()).await;
    let stop = &free[10..15];
    let mut stopped = request("demo");
    stopped.stop(stop.to_string());
    let response = client.chat().create(stopped.build().unwrap()).await.expect("an answer");
    assert_eq!(response.choices[0].message.content.as_deref(), free.split(stop).next());
    assert_eq!(response.choices[0].finish_reason, Some(FinishReason::Stop));

    let mut asked = request("demo");
    asked.logprobs(true).top_logprobs(3);
    let response = client.chat().create(asked.build().unwrap()).await.expect("an answer");
    let content =
        response.choices[0].logprobs.clone().and_then(|logprobs| logprobs.content).expect("log-probabilities");
    assert_eq!(content.len(), 40);
    assert_eq!(content.iter().map(|token| token.token.as_str()).collect::<String>(), free);
    for token in content {
        // Greedy: the token itself is the most likely one.
        assert_eq!(token.top_logprobs.len(), 3);
        assert_eq!(
            (token.top_logprobs[0].token.as_str(), token.top_logprobs[0].logprob),
            (&*token.token, token.logprob)
        );
        assert!(token.top_logprobs.is_sorted_by(|a, b| a.logprob >= b.logprob));
    }
}

#[tokio::test]
async fn completions_of_texts_and_ids() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let text = "Once upon a time";
    let ids = server.post("/tokenize", &json!({ "prompt": text })).ok()["tokens"].clone();
    let ids: Vec<u32> = serde_json::from_value(ids).unwrap();
    let mut request = CreateCompletionRequestArgs::default();
    request.model("demo").max_tokens(12u32).temperature(0.0).logprobs(2u8);
    let mut texts = Vec::new();
    for prompt in [Prompt::String(text.into()), Prompt::IntegerArray(ids.clone())] {
        let response = client.completions().create(request.prompt(prompt).build().unwrap()).await.expect("an answer");
        assert_eq!(response.usage.expect("usage").prompt_tokens as usize, ids.len());
        texts.push(response.choices[0].text.clone());
    }
    assert_eq!(texts[0], texts[1]);
    let both = Prompt::StringArray(vec![text.into(), "The dog".into()]);
    let response = client.completions().create(request.prompt(both).n(2u8).build().unwrap()).await.expect("answers");
    let choices: Vec<(u32, &str)> = response.choices.iter().map(|choice| (choice.index, &*choice.text)).collect();
    assert_eq!(choices.len(), 4);
    assert_eq!((choices[0], choices[1]), ((0, &*texts[0]), (1, &*texts[0])));
    assert_ne!(choices[2].1, texts[0]);

    request.prompt(Prompt::String(text.into())).stream(true).n(1u8);
    let mut stream = client.completions().create_stream(request.build().unwrap()).await.expect("a stream");
    let mut streamed = String::new();
    while let Some(chunk) = stream.next().await {
        streamed.extend(chunk.expect("a chunk").choices.into_iter().map(|choice| choice.text));
    }
    assert_eq!(streamed, texts[0]);
}

#[tokio::test]
async fn errors_have_the_types_that_clients_look_for() {
    let server = Server::start(&["--api-key", "one", "--api-key", "two"]);
    let refused = |error: OpenAIError| match error {
        OpenAIError::ApiError(error) => error,
        other => panic!("{other}"),
    };
    for key in ["", "three", "on"] {
        let error = refused(client(&server, key).models().list().await.expect_err("a wrong key"));
        assert!(format!("{error:?}").contains("invalid_api_key"), "{error:?}");
    }
    let client = client(&server, "two");
    let error = refused(client.chat().create(request("gpt-4").build().unwrap()).await.expect_err("no such model"));
    assert!(format!("{error:?}").contains("model_not_found"), "{error:?}");
    let long = request("demo").max_completion_tokens(100_000u32).build().unwrap();
    let error = refused(client.chat().create(long).await.expect_err("too long"));
    assert!(format!("{error:?}").contains("context_length_exceeded"), "{error:?}");
}

#[tokio::test]
async fn fields_of_the_method_pass_through_a_client() {
    let server = Server::start(&[]);
    let client = client(&server, "none");
    let mut body = crate::story("demo", json!({ "ggro": { "num_refinement_steps": 3, "trace": true } }));
    let nested: Value = client.chat().create_byot(body.clone()).await.expect("an answer");
    body["ggro"] = Value::Null;
    body["vllm_xargs"] = json!({ "ggro_num_refinement_steps": 3, "ggro_trace": 1 });
    let flat: Value = client.chat().create_byot(body.clone()).await.expect("an answer");
    body["vllm_xargs"] = Value::Null;
    body["model"] = json!("demo:ggro");
    let alias: Value = client.chat().create_byot(body).await.expect("an answer");
    assert_eq!(nested["choices"], flat["choices"]);
    assert_eq!(nested["ggro"]["trace"]["segments"], flat["ggro"]["trace"]["segments"]);
    let most = nested["ggro"]["trace"]["segments"].as_array().unwrap().iter();
    assert_eq!(most.map(|segment| segment["candidates"].as_array().unwrap().len()).max(), Some(3));
    assert!(alias["ggro"]["reward"].is_number() && alias["ggro"]["trace"].is_null());
}
