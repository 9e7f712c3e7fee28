//! An OpenAI-compatible server in front of an engine: chat and completions, rewards and gradients.
//!
//! One file per noun: what a request asks ([`request`], with [`prompt`] and [`method`]), its way through the engine
//! ([`generate`], with [`piece`] for what an answer goes on by), answers as frames ([`openai`]), the other routes (`reward`,
//! `tokens`, `models`), and what all requests go through ([`connections`], `middleware`, [`keys`], [`body`]).
//!
//! Nothing here waits for a device: a request's prompt is made on a blocking thread, the engine has a thread of its own, and what
//! it says comes through channels. A request that nobody waits for any more is dropped, and with it its ticket: the engine stops
//! working for it before its next step.

pub mod body;
mod chat;
pub mod connections;
pub mod error;
pub mod fields;
pub mod generate;
pub mod keys;
pub mod method;
pub mod metrics;
mod middleware;
mod models;
pub mod openai;
pub mod piece;
pub mod prompt;
pub mod request;
mod reward;
mod tokens;

use crate::engine::Engine;
use crate::files::pair::Pair;
use crate::presets::Preset;
use axum::Router;
use axum::http::HeaderValue;
use axum::routing::{get, post};
use error::ApiError;
use keys::Keys;
use method::Alias;
use metrics::Metrics;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much a request may ask for, and how long it may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Messages of a conversation.
    pub messages: usize,
    /// Prompts of a completion request, and texts of a reward request.
    pub prompts: usize,
    /// Answers to a prompt.
    pub n: usize,
    /// New tokens of an answer; `None`: as many as fit.
    pub tokens: Option<usize>,
    /// Most likely tokens reported with each token.
    pub logprobs: usize,
    /// Requests that run at the same time.
    pub running: usize,
    /// Requests that wait besides.
    pub queue: usize,
    /// Until an answer is complete.
    pub answer: Duration,
    /// Until a request has arrived: its head, and again its body.
    pub arrival: Duration,
    /// For which a client may refuse to read.
    pub write: Duration,
    /// Connections at the same time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body: 4 << 20,
            messages: 1024,
            prompts: 64,
            n: 64,
            tokens: None,
            logprobs: 20,
            running: 256,
            queue: 1024,
            answer: Duration::from_secs(600),
            arrival: Duration::from_secs(30),
            write: Duration::from_secs(30),
            connections: 4096,
        }
    }
}

/// What a server is told when it starts.
#[derive(Debug)]
pub struct Config {
    /// The policy's name.
    pub name: String,
    /// The reward model's name.
    pub reward_name: String,
    /// What holds where a request says nothing of the method.
    pub preset: Preset,
    /// Who may ask.
    pub keys: Keys,
    /// How much.
    pub limits: Limits,
    /// Origins of web pages that may ask; none: CORS is off.
    pub origins: Vec<HeaderValue>,
    /// Whether vLLM's names of metrics are there too.
    pub vllm_metrics: bool,
    /// Whether a profiler can be started and stopped by request.
    pub profiling: bool,
    /// Between comments that keep a silent stream open.
    pub keep_alive: Duration,
    /// For requests in flight to end, once the server is to stop.
    pub drain: Duration,
}

impl Config {
    /// Open to everyone, with the limits that hold where nobody says otherwise.
    pub fn new(name: &str, reward_name: &str, preset: Preset) -> Config {
        Config {
            name: name.to_string(),
            reward_name: reward_name.to_string(),
            preset,
            keys: Keys::default(),
            limits: Limits::default(),
            origins: Vec::new(),
            vllm_metrics: false,
            profiling: false,
            keep_alive: Duration::from_secs(10),
            drain: Duration::from_secs(25),
        }
    }
}

/// A server's state.
pub struct Served {
    /// What it was told.
    pub config: Config,
    /// The models' files, with tokenizer and template.
    pub pair: Arc<Pair>,
    /// Longest sequence.
    pub context: usize,
    /// What Prometheus is told.
    pub metrics: Metrics,
    engine: OnceLock<Engine>,
    draining: AtomicBool,
    in_flight: AtomicUsize,
    /// Of requests that are being read.
    body_bytes: AtomicUsize,
    created: u64,
    /// Unknown fields that were reported already.
    reported: Mutex<HashSet<String>>,
}

/// Unknown fields that are remembered; more are not reported.
const REPORTED: usize = 256;

/// A turn that takes longer than this will not end.
const STUCK: Duration = Duration::from_secs(300);

/// A place among the requests that run or wait. Dropped, it is free again.
pub struct Permit(Arc<Served>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Served {
    /// A server whose engine is still to come.
    pub fn new(config: Config, pair: Arc<Pair>, context: usize) -> Served {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let metrics = Metrics::new(&config.name, config.vllm_metrics);
        Served {
            config,
            pair,
            context,
            metrics,
            engine: OnceLock::new(),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            body_bytes: AtomicUsize::new(0),
            created,
            reported: Mutex::default(),
        }
    }

    /// The weights are there.
    pub fn ready_with(&self, engine: Engine) {
        // The first one stays; nobody brings a second.
        let _ = self.engine.set(engine);
    }

    /// From now on nothing new is taken.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Ends the engine: what is in flight is told so.
    pub fn stop_engine(&self) {
        if let Some(engine) = self.engine.get() {
            engine.stop();
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether the device is lost.
    pub fn is_lost(&self) -> bool {
        self.engine.get().is_some_and(Engine::ended)
    }

    /// Why nothing can be asked at the moment.
    ///
    /// # Errors
    /// The weights are still loading, the server is about to stop, or the device is lost.
    pub fn ready(&self) -> Result<(), ApiError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ApiError::unavailable("the server is about to stop"));
        }
        if self.is_lost() {
            return Err(self.lost());
        }
        self.engine.get().map(|_| ()).ok_or_else(|| ApiError::unavailable("the weights are still loading"))
    }

    /// Whether process and device are alive.
    ///
    /// # Errors
    /// The device is lost, or does not end what it began.
    pub fn healthy(&self) -> Result<(), ApiError> {
        if self.is_lost() {
            return Err(self.lost());
        }
        let since = self.engine.get().and_then(|engine| engine.status().turn_since);
        if since.is_some_and(|since| since.elapsed() > STUCK) {
            return Err(ApiError::unavailable("the device does not end a step that it began"));
        }
        Ok(())
    }

    /// The engine, if it can be asked.
    ///
    /// # Errors
    /// As [`ready`](Served::ready).
    pub fn engine(&self) -> Result<&Engine, ApiError> {
        self.ready()?;
        self.engine.get().ok_or_else(|| ApiError::unavailable("the weights are still loading"))
    }

    /// The error of those whose engine has gone.
    pub fn lost(&self) -> ApiError {
        let why = self.engine.get().and_then(|engine| engine.status().dead);
        let error = ApiError::internal(why.unwrap_or_else(|| "the engine has ended".to_string()));
        ApiError { code: Some("device_lost"), ..error }
    }

    /// A place for a request.
    ///
    /// # Errors
    /// There is none, or as [`ready`](Served::ready).
    pub fn permit(self: &Arc<Served>) -> Result<Permit, ApiError> {
        self.ready()?;
        let limit = self.config.limits.running + self.config.limits.queue;
        let taken = |count: usize| (count < limit).then_some(count + 1);
        match self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken) {
            Ok(_) => Ok(Permit(self.clone())),
            Err(_) => Err(ApiError::busy(limit)),
        }
    }

    /// What stands behind the colon of a model's name.
    ///
    /// # Errors
    /// There is no such model.
    pub fn alias(&self, model: &str) -> Result<Alias, ApiError> {
        let Some(rest) = model.strip_prefix(self.config.name.as_str()) else { return Err(ApiError::no_model(model)) };
        match rest.strip_prefix(':') {
            None if rest.is_empty() => Ok(Alias::Plain),
            None => Err(ApiError::no_model(model)),
            Some(alias) => Alias::parse(alias, self.config.limits.n).ok_or_else(|| ApiError::no_model(model)),
        }
    }

    /// Says once of each unknown field that it is ignored.
    pub fn report_unknown(&self, route: &str, fields: &[String]) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        for field in fields {
            if reported.len() < REPORTED && reported.insert(format!("{route} {field}")) {
                tracing::warn!(event = "unknown field ignored", route, field);
            }
        }
    }
}

/// The time, as the API has it.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// All routes, with what every request goes through.
pub fn router(served: Arc<Served>) -> Router {
    let routes = Router::new()
        .route("/health", get(models::health))
        .route("/ready", get(models::ready))
        .route("/version", get(models::version))
        .route("/metrics", get(models::metrics))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(chat::completions))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/classify", post(reward::classify))
        .route("/pooling", post(reward::pooling))
        .route("/score", post(reward::score))
        .route("/v1/score", post(reward::score))
        .route("/v1/gradients", post(reward::gradients));
    let routes = match served.config.profiling {
        true => routes
            .route("/start_profile", post(models::start_profile))
            .route("/stop_profile", post(models::stop_profile)),
        false => routes,
    };
    let routes = routes.fallback(middleware::no_route).method_not_allowed_fallback(middleware::no_method);
    middleware::around(routes, &served).with_state(served)
}
