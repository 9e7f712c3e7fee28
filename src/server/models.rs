//! The models of the server, its health, version and metrics.

use super::AppState;
use super::error::ApiError;
use super::method::Alias;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// `/health`: the process and its device are alive.
pub(super) async fn health(State(app): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    app.healthy()?;
    Ok(Json(json!({ "status": "ok" })))
}

/// `/ready`: requests are taken.
pub(super) async fn ready(State(app): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    app.ready()?;
    Ok(Json(json!({ "status": "ready" })))
}

/// `/start_profile`: a profiler that waits for it collects from the next pass of a model on.
pub(super) async fn start_profile() -> Json<Value> {
    Json(json!({ "collecting": crate::profile::ask(true) }))
}

/// `/stop_profile`: the profiler stops before the next pass.
pub(super) async fn stop_profile() -> Json<Value> {
    crate::profile::ask(false);
    Json(json!({ "collecting": false }))
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

pub(super) async fn metrics(State(app): State<Arc<AppState>>) -> Response {
    let status = app.engine.get().map(crate::engine::Engine::status);
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text(status)).into_response()
}

fn model(app: &AppState, suffix: &str) -> Value {
    let name = app.name();
    json!({
        "id": format!("{name}{suffix}"),
        "object": "model",
        "created": app.created,
        "owned_by": "ggro",
        "root": name,
        "parent": if suffix.is_empty() { Value::Null } else { json!(name) },
        "max_model_len": app.context,
        "reward_model": app.pair.reward().is_ok().then_some(&app.config.reward_name),
    })
}

/// `/v1/models`: the names that can be answered.
pub(super) async fn list(State(app): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    app.ready()?;
    let names = Alias::listed(app.config.limits.n);
    let answered = |suffix: &&String| app.check_model(&format!("{}{suffix}", app.name())).is_ok();
    let models: Vec<Value> = names.iter().filter(answered).map(|suffix| model(&app, suffix)).collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

/// `/v1/models/NAME`, which may contain slashes.
pub(super) async fn one(State(app): State<Arc<AppState>>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    app.ready()?;
    app.check_model(&name)?;
    // The reward model beside a policy is not listed, because chat frontends offer what is; it has a name all the same.
    let reward = name == app.config.reward_name;
    let suffix = name.strip_prefix(app.name()).filter(|_| !reward).unwrap_or_default();
    let mut object = model(&app, suffix);
    object["id"] = json!(name);
    if reward {
        object["root"] = json!(name);
    }
    Ok(Json(object))
}
