//! Rewards of given texts, under the names that vLLM gives its routes, and their gradients.
//!
//! The raw reward has no bounds. As in vLLM, `/classify`, `/pooling` and `/score` pass it through a sigmoid unless the request
//! says `use_activation: false`; `/v1/gradients` never does.

use super::error::ApiError;
use super::fields::{Fields, token_id, token_ids};
use super::middleware::{self, Caller};
use super::prompt::{Chat, Length, read_texts, special_tokens_of_texts};
use super::request::cache_salt;
use super::unsupported::{self, Routes};
use super::{AppState, Permit, body, now};
use crate::Error;
use crate::answer::RewardReport;
use crate::engine::{RequestStats, Submitter};
use crate::scoring::{MOST_POSITIONS, RewardQuery, scorer};
use crate::text::{Prompt, PromptLayout};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A request of any of the routes.
struct RewardRequest {
    model: String,
    texts: Vec<Prompt>,
    activation: bool,
    fields: Fields,
    id: String,
    /// The field that the texts stand in.
    field: &'static str,
    /// The answers of pairs, in words.
    answers: Vec<String>,
    submitter: Submitter,
}

/// Where a request has its texts.
#[derive(Clone, Copy)]
enum TextFields {
    /// `input` or `messages`.
    Given,
    /// Questions and answers, under the names of vLLM's `/score`.
    Pairs,
    /// A question and answers, under the names of a reranker.
    Ranked,
    /// `query`, as a trainer of OpenRLHF sends it: texts as the model reads them.
    Read,
}

impl RewardRequest {
    fn read(
        app: &AppState,
        bytes: &[u8],
        id: String,
        kind: TextFields,
        caller: &Caller,
    ) -> Result<RewardRequest, ApiError> {
        let mut fields = Fields::parse(bytes)?;
        let config = &app.config;
        let model = fields.text("model")?.unwrap_or_else(|| config.reward_name.clone());
        if model != config.reward_name {
            app.alias(&model)?;
        }
        let activation = fields.flag("use_activation")?;
        let activation = activation.or(fields.flag("activation")?).unwrap_or(true);
        let length = Length::read(&mut fields, app.context, app.context)?;
        let mut answers = Vec::new();
        let (texts, field) = match kind {
            TextFields::Given => given(app, &mut fields, length)?,
            TextFields::Pairs => paired(app, &mut fields, length, [QUESTIONS, ANSWERS], &mut answers)?,
            TextFields::Ranked => paired(app, &mut fields, length, [&["query"], &["documents"]], &mut answers)?,
            TextFields::Read => (read_as_they_are(app, &mut fields, length)?, "query"),
        };
        let vocab = app.pair.reward()?.config.vocab_size;
        if let Some(id) = texts.iter().flat_map(|text| &text.ids).find(|&&id| id as usize >= vocab) {
            let message = format!("names id {id}, beyond the reward model's vocabulary of {vocab}");
            return Err(ApiError::field(field, message));
        }
        let salt = cache_salt(&mut fields)?;
        let submitter = app.submitter(caller, salt.as_deref())?;
        Ok(RewardRequest { model, texts, activation, fields, id, field, answers, submitter })
    }

    /// Who asks, and the field that the texts stand in.
    fn source(&self) -> (Submitter, &'static str) {
        (self.submitter, self.field)
    }

    fn activate(&self, reward: f32) -> f64 {
        let reward = f64::from(reward);
        if self.activation { 1.0 / (1.0 + (-reward).exp()) } else { reward }
    }

    fn answer(&self, object: &str, data: Vec<Value>, accounts: &[RequestStats]) -> Json<Value> {
        let prompt: usize = self.texts.iter().map(|text| text.ids.len()).sum();
        let sum = |of: fn(&RequestStats) -> u64| accounts.iter().map(of).sum::<u64>();
        Json(json!({
            "id": self.id,
            "object": object,
            "created": now(),
            "model": self.model,
            "data": data,
            "usage": {
                "prompt_tokens": prompt,
                "total_tokens": prompt,
                "completion_tokens": 0,
                "ggro": {
                    "reward_forward": sum(|account| account.ran.reward_forward),
                    "reward_backward": sum(|account| account.ran.reward_backward),
                },
            },
        }))
    }
}

/// Texts, lists of ids, or a conversation, and the name of the field that has them.
fn given(app: &AppState, fields: &mut Fields, length: Length) -> Result<(Vec<Prompt>, &'static str), ApiError> {
    let expected = "a string, a list of token ids, or a list of either";
    let Some(value) = fields.take("input") else {
        return Ok((vec![conversation(app, fields, length)?], "messages"));
    };
    for name in CONVERSATION {
        if fields.has(name) {
            let message = if name == "messages" { "and `input` exclude each other" } else { "is for `messages`" };
            return Err(ApiError::field(name, message));
        }
    }
    let special_tokens = special_tokens_of_texts(fields)?;
    let texts = match read_texts(&app.pair, &value, app.config.limits.prompts, (special_tokens, length)) {
        Ok(Some(texts)) => texts,
        Ok(None) => return Err(fields.wrong("input", expected, &value)),
        Err(error) => return Err(error.about("input")),
    };
    match texts.iter().position(|text| text.ids.is_empty()) {
        Some(index) => Err(ApiError::field("input", format!("number {index} is empty"))),
        None => Ok((texts, "input")),
    }
}

/// Fields that a conversation has and a text has not.
const CONVERSATION: [&str; 4] = ["messages", "chat_template_kwargs", "tools", "add_generation_prompt"];

/// A conversation, without a generation prompt unless it is asked for.
fn conversation(app: &AppState, fields: &mut Fields, length: Length) -> Result<Prompt, ApiError> {
    let mut map = Map::new();
    for name in CONVERSATION.into_iter().chain(["add_special_tokens"]) {
        if let Some(value) = fields.take(name) {
            map.insert(name.to_string(), value);
        }
    }
    if !map.contains_key("messages") {
        return Err(ApiError::field("input", "is missing, and so is `messages`"));
    }
    map.entry("add_generation_prompt").or_insert(Value::Bool(false));
    Chat::read(&mut Fields::of(map, ""), app.config.limits.messages)?.lay_out(&app.pair, PromptLayout::Chat, length)
}

/// The names that the two sides of pairs have had in vLLM.
const QUESTIONS: &[&str] = &["text_1", "queries", "data_1", "query"];
const ANSWERS: &[&str] = &["text_2", "documents", "data_2", "items"];

/// Questions with answers: each pair is a conversation of two messages. The name is that of the answers' field.
fn paired(
    app: &AppState,
    fields: &mut Fields,
    length: Length,
    names: [&[&'static str]; 2],
    words: &mut Vec<String>,
) -> Result<(Vec<Prompt>, &'static str), ApiError> {
    let mut side = |names: &[&'static str]| -> Result<(Vec<String>, &'static str), ApiError> {
        let mut given = names.iter().copied().filter(|name| fields.has(name));
        let (name, other) = (given.next().unwrap_or(names[0]), given.next());
        if let Some(other) = other {
            return Err(ApiError::field(other, format!("is another name of `{name}`, which is given too")));
        }
        let value = fields.take(name).ok_or_else(|| ApiError::field(name, "is missing"))?;
        // A reranker's documents may be objects with a text.
        let text = |value: &Value| value.as_str().or_else(|| value.get("text")?.as_str()).map(str::to_string);
        let list = match &value {
            Value::Array(list) => list.iter().map(text).collect(),
            Value::Null => None,
            one => text(one).map(|text| vec![text]),
        };
        let list = list.ok_or_else(|| fields.wrong(name, "a string or a list of strings", &value))?;
        Ok((list, name))
    };
    let (questions, first) = side(names[0])?;
    let (answers, second) = side(names[1])?;
    let most = app.config.limits.prompts;
    if answers.is_empty() || answers.len() > most {
        return Err(ApiError::field(second, format!("must hold 1 to {most} texts, not {}", answers.len())));
    }
    if questions.len() != 1 && questions.len() != answers.len() {
        let message = format!("must be one text, or as many as `{second}`: {}, not {}", answers.len(), questions.len());
        return Err(ApiError::field(first, message));
    }
    let added = fields.flag("add_special_tokens")?;
    let variables = fields.take("chat_template_kwargs");
    let pair = |(index, answer): (usize, &String)| {
        let question = questions.get(index).unwrap_or(&questions[0]);
        if app.pair.chat().is_none() {
            let text = format!("{question}{answer}");
            let of_text = Value::String(text);
            let special_tokens = added.unwrap_or(true);
            let texts = read_texts(&app.pair, &of_text, 1, (special_tokens, length))?;
            return texts.and_then(|mut texts| texts.pop()).ok_or_else(|| ApiError::field(second, "must be texts"));
        }
        let messages = json!([{ "role": "user", "content": question }, { "role": "assistant", "content": answer }]);
        let mut map = Map::new();
        map.insert("messages".to_string(), messages);
        map.extend(added.map(|added| ("add_special_tokens".to_string(), Value::Bool(added))));
        map.extend(variables.clone().map(|variables| ("chat_template_kwargs".to_string(), variables)));
        conversation(app, &mut Fields::of(map, ""), length)
    };
    let texts = answers.iter().enumerate().map(pair).collect::<Result<Vec<Prompt>, ApiError>>();
    let about = |error: ApiError| match error.param.as_deref() {
        Some("messages") => ApiError { param: Some(second.to_string()), ..error },
        _ => error,
    };
    let texts = texts.map_err(about)?;
    *words = answers;
    Ok((texts, second))
}

/// Texts with their special tokens written out, as a trainer decodes them: none are added but the end of turn, where a text
/// lacks it.
fn read_as_they_are(app: &AppState, fields: &mut Fields, length: Length) -> Result<Vec<Prompt>, ApiError> {
    let value = fields.take("query").ok_or_else(|| ApiError::field("query", "is missing"))?;
    // What was asked, and what was right: OpenRLHF sends them for rewards by rule.
    for name in ["prompts", "labels"] {
        fields.take(name);
    }
    let texts = read_texts(&app.pair, &value, app.config.limits.prompts, (false, length));
    let texts = texts.map_err(|error| error.about("query"))?;
    let texts = texts.ok_or_else(|| fields.wrong("query", "a string or a list of strings", &value))?;
    let end = app.pair.reward()?.special_tokens.get("eos_token").and_then(|eos| app.pair.tokenizer.id(eos));
    let pad = app.pair.reward_pad_id();
    let ended = |text: Prompt| {
        let mut ids = text.ids;
        while pad.is_some_and(|pad| end != Some(pad) && ids.last() == Some(&pad)) {
            ids.pop();
        }
        ids.extend(end.filter(|end| ids.last() != Some(end)));
        Prompt { ids, ..text }
    };
    Ok(texts.into_iter().map(ended).collect())
}

/// Asks the engine; results are in the order of the questions. Dropping the future cancels what is in flight.
async fn ask(
    app: &Arc<AppState>,
    questions: Vec<RewardQuery>,
    permit: &mut Permit,
    (submitter, field): (Submitter, &str),
) -> Result<(Vec<RewardReport>, Vec<RequestStats>), ApiError> {
    let engine = app.engine()?;
    permit.widen(questions.len(), 0).map_err(|error| if error.status == 400 { error.about(field) } else { error })?;
    let pad = app.pair.reward_pad_id();
    let mut tickets = Vec::new();
    for question in questions {
        tickets.push(engine.submit_for(submitter, move |backend| scorer(backend, question, pad))?);
    }
    let collect = async {
        let (mut appraisals, mut accounts) = (Vec::new(), Vec::new());
        for ticket in tickets {
            let (report, stats) = ticket.await.map_err(|error| match error {
                Error::EngineStopped => app.lost(),
                error @ Error::TooLong { .. } => ApiError::from(error).about(field),
                error => error.into(),
            })?;
            appraisals.push(report);
            accounts.push(stats);
        }
        Ok((appraisals, accounts))
    };
    let limit = app.config.limits.answer;
    let answered = tokio::time::timeout(limit, collect).await;
    answered.unwrap_or_else(|_| Err(ApiError::timeout(limit)))
}

async fn common(
    app: &Arc<AppState>,
    request: Request,
    texts: TextFields,
    kind: &str,
) -> Result<(RewardRequest, Permit), ApiError> {
    app.ready()?;
    app.pair.reward()?;
    let id = format!("{kind}-{}", middleware::request_id(&request));
    let caller = middleware::caller(&request);
    let bytes = body::read(app, request).await?;
    let permit = app.permit()?;
    let encoding = body::encoding(app, &bytes).await;
    let reader = app.clone();
    let read = move || {
        let _encoding = encoding;
        RewardRequest::read(&reader, &bytes, id, texts, &caller)
    };
    Ok((body::aside(read).await?, permit))
}

/// Refuses what cannot be honoured, and logs what is not known.
fn report(app: &AppState, route: &str, fields: &mut Fields) -> Result<(), ApiError> {
    unsupported::refuse(fields, &[Routes::Rewards])?;
    if fields.text("encoding_format")?.is_some_and(|format| format != "float") {
        return Err(ApiError::field("encoding_format", "must be \"float\""));
    }
    for name in ["user", "priority", "request_id"] {
        fields.take(name);
    }
    let unknown: Vec<String> = fields.unknown().into_iter().map(str::to_string).collect();
    app.report_unknown(route, &unknown);
    Ok(())
}

fn whole(texts: &[Prompt]) -> Vec<RewardQuery> {
    texts.iter().map(|text| RewardQuery { ids: text.ids.clone(), ..RewardQuery::default() }).collect()
}

/// `/classify`: the reward as the probability of the only class.
pub(super) async fn classify(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, mut permit) = common(&app, request, TextFields::Given, "classify").await?;
    report(&app, "/classify", &mut common.fields)?;
    let (appraisals, accounts) = ask(&app, whole(&common.texts), &mut permit, common.source()).await?;
    let data = appraisals.iter().enumerate().map(|(index, appraisal)| {
        let probs = [common.activate(appraisal.reward)];
        json!({ "index": index, "label": "LABEL_0", "probs": probs, "num_classes": 1 })
    });
    Ok(common.answer("list", data.collect(), &accounts))
}

/// `/pooling`: the reward of a text, or of each of its prefixes.
pub(super) async fn pooling(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, mut permit) = common(&app, request, TextFields::Given, "pool").await?;
    let every = common.fields.get("task", "\"classify\" or \"token_classify\"", |value| match value.as_str()? {
        "classify" => Some(false),
        "token_classify" => Some(true),
        _ => None,
    })?;
    let every = every.unwrap_or(false);
    report(&app, "/pooling", &mut common.fields)?;
    let questions = whole(&common.texts).into_iter().map(|question| RewardQuery { every, ..question }).collect();
    let (appraisals, accounts) = ask(&app, questions, &mut permit, common.source()).await?;
    let data = appraisals.iter().enumerate().map(|(index, appraisal)| {
        let data: Value = match every {
            true => appraisal.every.iter().map(|&reward| json!([common.activate(reward)])).collect(),
            false => json!([common.activate(appraisal.reward)]),
        };
        json!({ "index": index, "object": "pooling", "data": data })
    });
    Ok(common.answer("list", data.collect(), &accounts))
}

/// `/score`: rewards of answers to questions.
pub(super) async fn score(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, mut permit) = common(&app, request, TextFields::Pairs, "score").await?;
    report(&app, "/score", &mut common.fields)?;
    let (appraisals, accounts) = ask(&app, whole(&common.texts), &mut permit, common.source()).await?;
    let data = appraisals.iter().enumerate().map(
        |(index, appraisal)| json!({ "index": index, "object": "score", "score": common.activate(appraisal.reward) }),
    );
    Ok(common.answer("list", data.collect(), &accounts))
}

/// `/rerank`: the documents of a query, best first, by the reward of the document as an answer.
pub(super) async fn rerank(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, mut permit) = common(&app, request, TextFields::Ranked, "rerank").await?;
    let top = common.fields.count("top_n", 0, usize::MAX)?;
    let returned = common.fields.flag("return_documents")?.unwrap_or(true);
    for name in ["max_tokens_per_doc", "rank_fields", "max_chunks_per_doc"] {
        common.fields.take(name);
    }
    report(&app, "/rerank", &mut common.fields)?;
    let (appraisals, accounts) = ask(&app, whole(&common.texts), &mut permit, common.source()).await?;
    let mut order: Vec<usize> = (0..appraisals.len()).collect();
    // A stable sort: equal rewards stay in the order of the request.
    order.sort_by(|&a, &b| appraisals[b].reward.total_cmp(&appraisals[a].reward));
    // vLLM takes 0 for all.
    order.truncate(top.filter(|&top| top > 0).unwrap_or(usize::MAX));
    let results: Vec<Value> = order
        .into_iter()
        .map(|index| {
            let score = common.activate(appraisals[index].reward);
            let mut result = json!({ "index": index, "relevance_score": score });
            if returned {
                result["document"] = json!({ "text": common.answers[index] });
            }
            result
        })
        .collect();
    let Json(mut answer) = common.answer("rerank", Vec::new(), &accounts);
    if let Some(object) = answer.as_object_mut() {
        object.remove("data");
        object.insert("results".to_string(), Value::Array(results));
    }
    Ok(Json(answer))
}

/// `/get_reward`, as OpenRLHF asks a remote reward model: the rewards themselves.
pub(super) async fn get_reward(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, mut permit) = common(&app, request, TextFields::Read, "reward").await?;
    report(&app, "/get_reward", &mut common.fields)?;
    let (appraisals, _) = ask(&app, whole(&common.texts), &mut permit, common.source()).await?;
    let rewards: Vec<f32> = appraisals.iter().map(|appraisal| appraisal.reward).collect();
    Ok(Json(json!({ "rewards": rewards, "scores": rewards, "extra_logs": {} })))
}

/// Most numbers of gradients in one response.
const MOST_NUMBERS: usize = 1 << 24;
/// Most ids whose scores a request may ask for at a position.
const MOST_CANDIDATES: usize = 4096;

/// `/v1/gradients`: reward, gradient and first-order scores.
pub(super) async fn gradients(State(app): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let (mut common, mut permit) = common(&app, request, TextFields::Given, "grad").await?;
    let fields = &mut common.fields;
    let start = fields.count("start", 0, usize::MAX)?.unwrap_or(0);
    let scores = candidates(fields)?;
    let wanted = fields.flag("return_gradient")?.unwrap_or(scores.is_empty());
    let base64 = fields.get("encoding_format", "\"float\" or \"base64\"", |value| match value.as_str()? {
        "float" => Some(false),
        "base64" => Some(true),
        _ => None,
    })?;
    let base64 = base64.unwrap_or(false);
    report(&app, "/v1/gradients", fields)?;
    let hidden = app.pair.reward()?.config.hidden_size;
    let numbers: usize = common.texts.iter().map(|text| text.ids.len().saturating_sub(start) * hidden).sum();
    if wanted && numbers > MOST_NUMBERS {
        let message =
            format!("is too long: its gradient has {numbers} numbers, and the limit is {MOST_NUMBERS}; see `start`");
        return Err(ApiError::field("input", message));
    }
    let questions = whole(&common.texts).into_iter().map(|question| RewardQuery {
        gradient_from: wanted.then_some(start),
        scores: scores.clone(),
        ..question
    });
    // A number in JSON takes as much memory as some tokens of an answer.
    let entries = if wanted { numbers.saturating_mul(2) } else { 0 };
    permit.widen(1, entries).map_err(|error| if error.status == 400 { error.about(common.field) } else { error })?;
    let (appraisals, accounts) = ask(&app, questions.collect(), &mut permit, common.source()).await?;
    // Writing millions of numbers takes long: not on a thread of the server's.
    let write = move || {
        let mut data = Vec::with_capacity(appraisals.len());
        for (index, appraisal) in appraisals.into_iter().enumerate() {
            let found = scores
                .iter()
                .zip(&appraisal.scores)
                .map(|((position, ids), scores)| json!({ "position": position, "token_ids": ids, "scores": scores }));
            let object = TextGradient {
                index,
                object: "gradient",
                reward: f64::from(appraisal.reward),
                pooled_at: appraisal.pooled_at,
                token_ids: &common.texts[index].ids,
                candidates: found.collect(),
                gradient: wanted.then(|| gradient(&appraisal.gradient, start, hidden, base64)),
            };
            data.push(serde_json::value::to_raw_value(&object)?);
        }
        let Json(head) = common.answer("list", Vec::new(), &accounts);
        let [id, object, created, model, usage] = ["id", "object", "created", "model", "usage"].map(|name| &head[name]);
        serde_json::to_string(&GradientsResponse { id, object, created, model, data, usage })
    };
    let text = body::aside(move || write().map_err(|error| ApiError::internal(error.to_string()))).await?;
    drop(permit);
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// The response of `/v1/gradients`, whose numbers are written at once: as JSON values they would take many times the memory.
#[derive(Serialize)]
struct GradientsResponse<'a> {
    id: &'a Value,
    object: &'a Value,
    created: &'a Value,
    model: &'a Value,
    data: Vec<Box<RawValue>>,
    usage: &'a Value,
}

/// What is said of one text.
#[derive(Serialize)]
struct TextGradient<'a> {
    index: usize,
    object: &'static str,
    reward: f64,
    pooled_at: usize,
    token_ids: &'a [u32],
    candidates: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient: Option<GradientRows<'a>>,
}

/// Rows of a gradient, the position of the first one, and their norms.
#[derive(Serialize)]
struct GradientRows<'a> {
    start: usize,
    shape: [usize; 2],
    norms: Vec<f64>,
    data: Numbers<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers<'a> {
    Rows(Vec<NumberRow<'a>>),
    Base64(String),
}

/// A row of numbers, each written as the f64 that it is.
struct NumberRow<'a>(&'a [f32]);

impl Serialize for NumberRow<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|&x| f64::from(x)))
    }
}

fn gradient(rows: &[f32], start: usize, hidden: usize, base64: bool) -> GradientRows<'_> {
    let row_norm = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let norms: Vec<f64> = rows.chunks(hidden).map(row_norm).collect();
    let data = match base64 {
        true => {
            use base64::Engine;
            let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
            Numbers::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        false => Numbers::Rows(rows.chunks(hidden).map(NumberRow).collect()),
    };
    GradientRows { start, shape: [norms.len(), hidden], norms, data }
}

/// `[{"position": p, "token_ids": [...]}, ...]`
fn candidates(fields: &mut Fields) -> Result<Vec<(usize, Vec<u32>)>, ApiError> {
    let Some(value) = fields.take("candidates") else { return Ok(Vec::new()) };
    let expected =
        format!("a list of at most {MOST_POSITIONS} objects with `position` and up to {MOST_CANDIDATES} `token_ids`");
    let one = |entry: &Value| {
        let position = token_id(entry.get("position")?)? as usize;
        let ids = token_ids(entry.get("token_ids")?).filter(|ids| (1..=MOST_CANDIDATES).contains(&ids.len()))?;
        Some((position, ids))
    };
    let list = value.as_array().filter(|list| list.len() <= MOST_POSITIONS);
    let read = list.and_then(|list| list.iter().map(one).collect::<Option<Vec<_>>>());
    read.ok_or_else(|| fields.wrong("candidates", &expected, &value))
}
