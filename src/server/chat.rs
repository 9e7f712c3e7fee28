//! `/v1/chat/completions` and `/v1/completions`.

use super::error::ApiError;
use super::generate::{Run, Said};
use super::openai::{Choice, Frames};
use super::request::{Asked, Route};
use super::{Served, body, middleware, now};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

pub(super) async fn chat(State(served): State<Arc<Served>>, request: Request) -> Result<Response, ApiError> {
    answer(served, Route::Chat, request).await
}

pub(super) async fn completions(State(served): State<Arc<Served>>, request: Request) -> Result<Response, ApiError> {
    answer(served, Route::Completions, request).await
}

async fn answer(served: Arc<Served>, route: Route, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let request_id = middleware::request_id(&request);
    // Said before anything is read; the place itself is taken when the request is there, so that slow ones hold none.
    served.ready()?;
    let bytes = body::read(&served, request).await?;
    let permit = served.permit()?;
    let reader = served.clone();
    let asked = body::aside(move || Asked::read(&reader, route, &bytes)).await?;
    let name = if route == Route::Chat { "/v1/chat/completions" } else { "/v1/completions" };
    served.report_unknown(name, &asked.unknown);
    let streams = asked.stream;
    let mut run = Run::start(&served, asked, permit, (arrived, request_id.clone()))?;
    // What is wrong with the request is said before an answer begins, with a status of its own.
    run.accepted().await?;
    let frames = Frames::new(route, &run, now(), served.pair.tokenizer.clone(), &request_id);
    if streams {
        let (interval, streaming) = (served.config.keep_alive, Streaming::new(run, frames));
        let events = stream::unfold(streaming, |mut streaming| async {
            let event = streaming.next().await?;
            Some((Ok::<Event, Infallible>(event), streaming))
        });
        let keep_alive = KeepAlive::new().interval(interval).text("");
        let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
        // Proxies of nginx's kind would collect segments before they pass them on.
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        return Ok(response);
    }
    whole(run, frames).await
}

/// The answer when it is complete.
async fn whole(mut run: Run, mut frames: Frames) -> Result<Response, ApiError> {
    let mut choices: Vec<Choice> = (0..run.choices()).map(|_| Choice::default()).collect();
    while let Some(said) = run.next().await? {
        match said {
            Said::Piece { choice, piece, .. } => choices[choice].piece.extend(piece),
            Said::End { choice, end, outcome } => choices[choice].end = Some((end, outcome)),
        }
    }
    let ids: Vec<Vec<u32>> = (0..run.choices()).map(|choice| run.ids(choice).to_vec()).collect();
    Ok(Json(frames.whole(choices, &ids, &run.usage)).into_response())
}

/// An answer that comes in pieces.
struct Streaming {
    run: Run,
    frames: Frames,
    ready: VecDeque<Value>,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Running,
    /// All was said but `[DONE]`.
    Closing,
    Done,
}

impl Streaming {
    fn new(run: Run, mut frames: Frames) -> Streaming {
        let ready = (0..run.choices()).filter_map(|choice| frames.opening(choice)).collect();
        Streaming { run, frames, ready, stage: Stage::Running }
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
            Ok(Some(Said::Piece { choice, piece, segment })) => {
                let usage = self.run.asked.continuous_usage.then(|| self.run.usage.json());
                self.ready.push_back(self.frames.piece(choice, &piece, segment, usage));
            }
            Ok(Some(Said::End { choice, end, outcome })) => {
                self.ready.push_back(self.frames.end(choice, &end, outcome));
            }
            Ok(None) => {
                if self.run.asked.include_usage {
                    self.ready.push_back(self.frames.usage(&self.run.usage));
                }
                self.stage = Stage::Closing;
            }
            Err(error) => {
                self.ready.push_back(error.body());
                self.stage = Stage::Closing;
            }
        }
    }
}
