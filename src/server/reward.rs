//! Rewards of given texts, under the names that vLLM gives its routes, and their gradients.
//!
//! The raw reward has no bounds. As in vLLM, `/classify`, `/pooling` and `/score` pass it through a sigmoid unless the request
//! says `use_activation: false`; `/v1/gradients` never does.

use super::error::ApiError;
use super::fields::{Fields, token_id, token_ids};
use super::prompt::{Chat, read_texts, special_tokens_of_texts};
use super::{AppState, Permit, body, middleware, now};
use crate::Error;
use crate::answer::RewardReport;
use crate::engine::RequestStats;
use crate::scoring::{MOST_POSITIONS, RewardQuery};
use crate::text::{Prompt, PromptLayout};
use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A request of any of the routes.
struct Common {
    model: String,
    texts: Vec<Prompt>,
    activation: bool,
    fields: Fields,
    id: String,
}

impl Common {
    /// Reads a body whose texts are `input` or `messages`, or, with `pairs`, questions and answers.
    fn read(app: &AppState, bytes: &[u8], id: String, pairs: bool) -> Result<Common, ApiError> {
        let mut fields = Fields::parse(bytes)?;
        let config = &app.config;
        let model = fields.text("model")?.unwrap_or_else(|| config.reward_name.clone());
        if model != config.reward_name {
            app.alias(&model)?;
        }
        let activation = fields.flag("use_activation")?;
        let activation = activation.or(fields.flag("activation")?).unwrap_or(true);
        let texts = if pairs { paired(app, &mut fields)? } else { given(app, &mut fields)? };
        Ok(Common { model, texts, activation, fields, id })
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

/// Texts, lists of ids, or a conversation.
fn given(app: &AppState, fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of token ids, or a list of either";
    let texts = match fields.take("input") {
        Some(value) => {
            let special_tokens = special_tokens_of_texts(fields)?;
            match read_texts(&app.pair, &value, app.config.limits.prompts, special_tokens) {
                Ok(Some(texts)) => texts,
                Ok(None) => return Err(fields.wrong("input", expected, &value)),
                Err(error) => return Err(error.about("input")),
            }
        }
        None => vec![conversation(app, fields)?],
    };
    match texts.iter().position(|text| text.ids.is_empty()) {
        Some(index) => Err(ApiError::field("input", format!("number {index} is empty"))),
        None => Ok(texts),
    }
}

/// A conversation without a generation prompt.
fn conversation(app: &AppState, fields: &mut Fields) -> Result<Prompt, ApiError> {
    let mut map = Map::new();
    for name in ["messages", "chat_template_kwargs", "tools", "add_special_tokens"] {
        if let Some(value) = fields.take(name) {
            map.insert(name.to_string(), value);
        }
    }
    if !map.contains_key("messages") {
        return Err(ApiError::field("input", "is missing, and so is `messages`"));
    }
    map.insert("add_generation_prompt".to_string(), Value::Bool(false));
    Chat::read(&mut Fields::of(map, ""), app.config.limits.messages)?.lay_out(&app.pair, PromptLayout::Chat)
}

/// Questions with answers: each pair is a conversation of two messages.
fn paired(app: &AppState, fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let mut side = |names: [&'static str; 2]| -> Result<Vec<String>, ApiError> {
        let name = names.into_iter().find(|name| fields.has(name)).unwrap_or(names[0]);
        let value = fields.take(name).ok_or_else(|| ApiError::field(name, "is missing"))?;
        let list = match &value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_string)).collect(),
            _ => None,
        };
        list.ok_or_else(|| fields.wrong(name, "a string or a list of strings", &value))
    };
    let (questions, answers) = (side(["text_1", "queries"])?, side(["text_2", "documents"])?);
    let most = app.config.limits.prompts;
    if answers.is_empty() || answers.len() > most {
        return Err(ApiError::field("text_2", format!("must hold 1 to {most} texts, not {}", answers.len())));
    }
    if questions.len() != 1 && questions.len() != answers.len() {
        let message = format!("must be one text, or as many as `text_2`: {}, not {}", answers.len(), questions.len());
        return Err(ApiError::field("text_1", message));
    }
    let added = fields.flag("add_special_tokens")?;
    let pair = |(index, answer): (usize, &String)| {
        let question = questions.get(index).unwrap_or(&questions[0]);
        if app.pair.chat().is_none() {
            return Ok(Prompt::of_text(&app.pair, &format!("{question}{answer}"), added.unwrap_or(true))?);
        }
        let messages = json!([{ "role": "user", "content": question }, { "role": "assistant", "content": answer }]);
        let mut map = Map::new();
        map.insert("messages".to_string(), messages);
        map.extend(added.map(|added| ("add_special_tokens".to_string(), Value::Bool(added))));
        conversation(app, &mut Fields::of(map, ""))
    };
    answers.iter().enumerate().map(pair).collect()
}

/// Asks the engine; results are in the order of the questions. Dropping the future cancels what is in flight.
async fn ask(
    app: &Arc<AppState>,
    questions: Vec<RewardQuery>,
    _permit: Permit,
) -> Result<(Vec<RewardReport>, Vec<RequestStats>), ApiError> {
    let engine = app.engine()?;
    let pad = app.pair.reward_pad_id();
    let mut tickets = Vec::new();
    for question in questions {
        tickets.push(engine.score(question, pad)?);
    }
    let collect = async {
        let (mut appraisals, mut accounts) = (Vec::new(), Vec::new());
        for ticket in tickets {
            let (report, stats) = ticket.await.map_err(|error| match error {
                Error::EngineStopped => app.lost(),
                error => error.into(),
            })?;
            appraisals.push(report);
            accounts.push(stats);
        }
        Ok((appraisals, accounts))
    };
    let limit = app.config.limits.answer;
    let answered = tokio::time::timeout(limit, collect).await;
    let answered = answered.unwrap_or_else(|_| Err(ApiError::timeout(limit.as_secs())));
    answered.inspect_err(|error| app.metrics.failed(error))
}

async fn common(app: &Arc<AppState>, request: Request, pairs: bool, kind: &str) -> Result<(Common, Permit), ApiError> {
    app.ready()?;
    app.pair.reward()?;
    let id = format!("{kind}-{}", middleware::request_id(&request));
    let bytes = body::read(app, request).await?;
    let permit = app.permit()?;
    let reader = app.clone();
    let common = body::aside(move || Common::read(&reader, &bytes, id, pairs)).await?;
    Ok((common, permit))
}

fn report(app: &AppState, route: &str, fields: &mut Fields) {
    for name in ["user", "priority", "truncate_prompt_tokens", "encoding_format"] {
        fields.take(name);
    }
    let unknown: Vec<String> = fields.unknown().into_iter().map(str::to_string).collect();
    app.report_unknown(route, &unknown);
}

fn whole(texts: &[Prompt]) -> Vec<RewardQuery> {
    texts.iter().map(|text| RewardQuery { ids: text.ids.clone(), ..RewardQuery::default() }).collect()
}

/// `/classify`: the reward as the probability of the only class.
pub(super) async fn classify(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, permit) = common(&app, request, false, "classify").await?;
    report(&app, "/classify", &mut common.fields);
    let (appraisals, accounts) = ask(&app, whole(&common.texts), permit).await?;
    let data = appraisals.iter().enumerate().map(|(index, appraisal)| {
        let probs = [common.activate(appraisal.reward)];
        json!({ "index": index, "label": "LABEL_0", "probs": probs, "num_classes": 1 })
    });
    Ok(common.answer("list", data.collect(), &accounts))
}

/// `/pooling`: the reward of a text, or of each of its prefixes.
pub(super) async fn pooling(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, permit) = common(&app, request, false, "pool").await?;
    let every = common.fields.get("task", "\"classify\" or \"token_classify\"", |value| match value.as_str()? {
        "classify" => Some(false),
        "token_classify" => Some(true),
        _ => None,
    })?;
    let every = every.unwrap_or(false);
    if common.fields.text("encoding_format")?.is_some_and(|format| format != "float") {
        return Err(ApiError::field("encoding_format", "must be \"float\""));
    }
    report(&app, "/pooling", &mut common.fields);
    let questions = whole(&common.texts).into_iter().map(|question| RewardQuery { every, ..question }).collect();
    let (appraisals, accounts) = ask(&app, questions, permit).await?;
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
    let (mut common, permit) = common(&app, request, true, "score").await?;
    report(&app, "/score", &mut common.fields);
    let (appraisals, accounts) = ask(&app, whole(&common.texts), permit).await?;
    let data = appraisals.iter().enumerate().map(
        |(index, appraisal)| json!({ "index": index, "object": "score", "score": common.activate(appraisal.reward) }),
    );
    Ok(common.answer("list", data.collect(), &accounts))
}

/// Most numbers of gradients in one response.
const MOST_NUMBERS: usize = 1 << 24;
/// Most ids whose scores a request may ask for at a position.
const MOST_CANDIDATES: usize = 4096;

/// `/v1/gradients`: reward, gradient and first-order scores.
pub(super) async fn gradients(State(app): State<Arc<AppState>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (mut common, permit) = common(&app, request, false, "grad").await?;
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
    report(&app, "/v1/gradients", fields);
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
    let (appraisals, accounts) = ask(&app, questions.collect(), permit).await?;
    // Writing millions of numbers takes long: not on a thread of the server's.
    body::aside(move || {
        let data = appraisals.iter().enumerate().map(|(index, appraisal)| {
            let found = scores
                .iter()
                .zip(&appraisal.scores)
                .map(|((position, ids), scores)| json!({ "position": position, "token_ids": ids, "scores": scores }));
            let mut object = json!({
                "index": index,
                "object": "gradient",
                "reward": appraisal.reward,
                "pooled_at": appraisal.pooled_at,
                "token_ids": common.texts[index].ids,
                "candidates": found.collect::<Vec<Value>>(),
            });
            if wanted {
                object["gradient"] = gradient(&appraisal.gradient, start, hidden, base64);
            }
            object
        });
        let data = data.collect();
        Ok(common.answer("list", data, &accounts))
    })
    .await
}

/// A gradient as JSON: its rows, the position of the first one, and their norms.
fn gradient(rows: &[f32], start: usize, hidden: usize, base64: bool) -> Value {
    let row_norm = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let norms: Vec<f64> = rows.chunks(hidden).map(row_norm).collect();
    let data = match base64 {
        true => {
            use base64::Engine;
            let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
            json!(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        false => json!(rows.chunks(hidden).collect::<Vec<&[f32]>>()),
    };
    json!({ "start": start, "shape": [norms.len(), hidden], "norms": norms, "data": data })
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
