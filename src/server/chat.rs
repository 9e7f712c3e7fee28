//! `/v1/chat/completions` and `/v1/completions`.

use super::error::ApiError;
use super::generate::{Run, RunEvent};
use super::openai::{Choice, Frames};
use super::request::{ApiRequest, Route};
use super::{AppState, body, middleware, now};
use crate::engine::Submitter;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

pub(super) async fn chat(State(app): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    answer(app, Route::Chat, request).await
}

pub(super) async fn completions(State(app): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    answer(app, Route::Completions, request).await
}

async fn answer(app: Arc<AppState>, route: Route, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (request_id, caller) = (middleware::request_id(&request), middleware::caller(&request));
    // Refused before the body is read. The permit is taken after it, so that slow clients hold none.
    app.ready()?;
    app.pair.policy()?;
    let bytes = body::read(&app, request).await?;
    let permit = app.permit()?;
    let encoding = body::encoding(&app, &bytes).await;
    let reader = app.clone();
    let read = move || {
        let _encoding = encoding;
        ApiRequest::read(&reader, route, &bytes)
    };
    let parsed = body::aside(read).await?;
    let name = if route == Route::Chat { "/v1/chat/completions" } else { "/v1/completions" };
    app.report_unknown(name, &parsed.unknown);
    let streams = parsed.stream;
    let submitter = app.submitter(&caller, parsed.cache_salt.as_deref())?;
    let submitter = Submitter { drafting: parsed.draft, ..submitter };
    let mut run = Run::start(&app, parsed, permit, submitter, (arrived, request_id.clone()))?;
    // A request that the engine refuses is answered with a status of its own, before a stream begins.
    run.accepted().await?;
    let frames = Frames::new(route, &run, now(), app.pair.tokenizer.clone(), &request_id);
    if streams {
        let (interval, streaming) = (app.config.keep_alive, Streaming::new(app.clone(), run, frames));
        let events = stream::unfold(streaming, |mut streaming| async {
            let event = streaming.next().await?;
            Some((Ok::<Event, Infallible>(event), streaming))
        });
        let keep_alive = KeepAlive::new().interval(interval).text("");
        let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
        // nginx and other proxies would buffer segments.
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        return Ok(response);
    }
    whole(run, frames).await
}

/// The response of a request that does not stream.
async fn whole(mut run: Run, mut frames: Frames) -> Result<Response, ApiError> {
    let entries = run.request.entries();
    let mut choices: Vec<Choice> = (0..run.choices()).map(|_| Choice::default()).collect();
    while let Some(event) = run.next().await? {
        match event {
            RunEvent::Piece { choice, piece, .. } => choices[choice].piece.extend(piece),
            RunEvent::End { choice, end, outcome } => choices[choice].end = Some((end, outcome)),
        }
    }
    let ids: Vec<Vec<u32>> = (0..run.choices()).map(|choice| run.ids(choice).to_vec()).collect();
    // Long lists of log-probabilities take long to write: not on a thread of the server's.
    let write = move || frames.whole(choices, &ids, &run.usage).map_err(|error| ApiError::internal(error.to_string()));
    let text = if entries > LONG { body::aside(write).await? } else { write()? };
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Entries of log-probabilities that take a noticeable time to write.
const LONG: usize = 1 << 12;

/// A response that streams.
struct Streaming {
    app: Arc<AppState>,
    run: Run,
    frames: Frames,
    ready: VecDeque<Value>,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Running,
    /// Only `[DONE]` is left to be sent.
    Closing,
    Done,
}

impl Streaming {
    fn new(app: Arc<AppState>, run: Run, mut frames: Frames) -> Streaming {
        let ready = (0..run.choices()).filter_map(|choice| frames.opening(choice)).collect();
        Streaming { app, run, frames, ready, stage: Stage::Running }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(Event::default().data(frame.to_string()));
            }
            match self.stage {
                Stage::Done => return None,
                Stage::Closing => {
                    self.stage = Stage::Done;
                    return Some(Event::default().data("[DONE]"));
                }
                Stage::Running => self.advance().await,
            }
        }
    }

    async fn advance(&mut self) {
        match self.run.next().await {
            Ok(Some(RunEvent::Piece { choice, piece, segment })) => {
                let usage = self.run.request.continuous_usage.then(|| self.run.usage.json());
                self.ready.push_back(self.frames.piece(choice, &piece, segment, usage));
            }
            Ok(Some(RunEvent::End { choice, end, outcome })) => {
                self.ready.push_back(self.frames.end(choice, &end, outcome));
            }
            Ok(None) => {
                if self.run.request.include_usage {
                    self.ready.push_back(self.frames.usage(&self.run.usage));
                }
                self.stage = Stage::Closing;
            }
            Err(error) => {
                self.app.metrics.failed(&error);
                self.ready.push_back(error.body());
                self.stage = Stage::Closing;
            }
        }
    }
}
