//! An OpenAI-compatible server in front of an engine: chat and completions, rewards and gradients. With a policy alone or a
//! reward model alone it answers what that model can, and refuses the rest.
//!
//! One file per noun: a request ([`request`], with [`prompt`] and [`method`]), its run in the engine ([`generate`], which adds
//! a [`piece`] at a time), the API's response objects ([`openai`]), the other routes (`reward`, `tokens`, `models`), and what all
//! requests pass through ([`connections`], `middleware`, [`keys`], [`body`]).
//!
//! Nothing here waits for a device: a request's prompt is encoded on a blocking thread, the engine has a thread of its own, and its
//! updates come through channels. When a client disconnects, its request is dropped and its ticket cancelled: the engine stops
//! working for it before its next step.

pub mod body;
mod chat;
pub mod connections;
pub mod error;
pub mod fields;
pub mod generate;
pub mod keys;
pub mod log;
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
mod unsupported;

use crate::engine::{Engine, Submitter};
use crate::files::generation::SamplingDefaults;
use crate::files::pair::Pair;
use crate::model::Role;
use crate::presets::Preset;
use axum::Router;
use axum::http::HeaderValue;
use axum::routing::{get, post};
use error::ApiError;
use keys::Keys;
use method::Alias;
use metrics::Metrics;
use middleware::Caller;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Limits of requests and connections.
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
    /// Tokens of answers in flight, each counted with the likely tokens reported beside it, that are kept beside the first
    /// answer of every request.
    pub entries: usize,
    /// Requests that run at the same time.
    pub running: usize,
    /// Requests that wait besides.
    pub queue: usize,
    /// Time until an answer must be complete.
    pub answer: Duration,
    /// Time within which a request's head must arrive, and then its body.
    pub arrival: Duration,
    /// Time for which a client may leave its response unread.
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
            entries: 32 << 20,
            running: 256,
            queue: 1024,
            answer: Duration::from_secs(600),
            arrival: Duration::from_secs(30),
            write: Duration::from_secs(30),
            connections: 4096,
        }
    }
}

/// How a server is configured.
#[derive(Debug)]
pub struct Config {
    /// The policy's name; not used without a policy.
    pub name: String,
    /// The reward model's name; not used without a reward model.
    pub reward_name: String,
    /// Parameters of the method where a request gives none.
    pub preset: Preset,
    /// Sampling fields where a request gives none.
    pub sampling: SamplingDefaults,
    /// The keys of its clients.
    pub keys: Keys,
    /// The limits.
    pub limits: Limits,
    /// Whether the server trusts whoever reaches it because it listens on its own machine only.
    pub local: bool,
    /// Names besides the machine's own by which such a server may be asked.
    pub hosts: Vec<String>,
    /// Origins allowed by CORS; without any, CORS is off.
    pub origins: Vec<HeaderValue>,
    /// Whether metrics also have vLLM's names.
    pub vllm_metrics: bool,
    /// Whether routes start and stop a profiler.
    pub profiling: bool,
    /// Interval of the comments that keep a silent stream open.
    pub keep_alive: Duration,
    /// Time that requests in flight have once the server is stopped.
    pub drain: Duration,
}

impl Config {
    /// An open server with default limits.
    pub fn new(name: &str, reward_name: &str, preset: Preset) -> Config {
        Config {
            name: name.to_string(),
            reward_name: reward_name.to_string(),
            preset,
            sampling: SamplingDefaults::default(),
            keys: Keys::default(),
            limits: Limits::default(),
            local: false,
            hosts: Vec::new(),
            origins: Vec::new(),
            vllm_metrics: false,
            profiling: false,
            keep_alive: Duration::from_secs(10),
            drain: Duration::from_secs(25),
        }
    }

    fn main_name(&self, pair: &Pair) -> &str {
        if pair.policy().is_ok() { &self.name } else { &self.reward_name }
    }
}

/// A server's state.
pub struct AppState {
    /// The configuration.
    pub config: Config,
    /// The models' files, with tokenizer and template.
    pub pair: Arc<Pair>,
    /// Longest sequence.
    pub context: usize,
    /// The metrics.
    pub metrics: Metrics,
    engine: OnceLock<Engine>,
    draining: AtomicBool,
    in_flight: AtomicUsize,
    /// Requests of the engine in flight: a request with several texts has several.
    places: AtomicUsize,
    /// See [`Limits::entries`].
    entries: AtomicUsize,
    /// Room to encode large texts in.
    encoders: Arc<Semaphore>,
    /// Makes salts of keys and `cache_salt`s, such that nobody can find two that collide.
    salts: RandomState,
    /// Bytes of request bodies in memory.
    body_bytes: AtomicUsize,
    created: u64,
    /// Unknown fields that were logged already.
    reported: Mutex<HashSet<String>>,
}

/// Unknown fields that are logged, at most.
const REPORTED: usize = 256;

/// A step that takes longer than this is taken to hang.
const STUCK: Duration = Duration::from_secs(300);

/// What a request takes of the server's limits; freed when dropped.
pub struct Permit {
    app: Arc<AppState>,
    places: usize,
    entries: usize,
}

impl Permit {
    /// Takes this many places in all, and room for so many tokens of answers beside the first.
    ///
    /// # Errors
    /// There are not so many, or not at the moment.
    pub fn widen(&mut self, places: usize, entries: usize) -> Result<(), ApiError> {
        let limits = &self.app.config.limits;
        if entries > limits.entries {
            let message = format!(
                "the answers may have {entries} tokens, likely ones of `logprobs` included, and this server takes {}; ask for \
                 fewer texts, answers, tokens or log-probabilities",
                limits.entries
            );
            return Err(ApiError::invalid(message));
        }
        let more = places.saturating_sub(self.places);
        let limit = limits.running + limits.queue;
        if places > limit {
            // Trying again later would not help.
            let message =
                format!("the request asks for {places} things at once, and this server runs and queues {limit}");
            return Err(ApiError::invalid(message));
        }
        take(&self.app.places, more, limit).map_err(|()| ApiError::busy(limit))?;
        self.places += more;
        take(&self.app.entries, entries, limits.entries).map_err(|()| ApiError::no_room())?;
        self.entries += entries;
        Ok(())
    }
}

/// Adds to a count that has a limit.
fn take(count: &AtomicUsize, more: usize, limit: usize) -> Result<(), ()> {
    let fits = |held: usize| held.checked_add(more).filter(|&all| all <= limit);
    count.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map(|_| ()).map_err(|_| ())
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.app.places.fetch_sub(self.places, Ordering::AcqRel);
        self.app.entries.fetch_sub(self.entries, Ordering::AcqRel);
        self.app.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl AppState {
    /// A server whose engine is set later ([`ready_with`](AppState::ready_with)).
    pub fn new(config: Config, pair: Arc<Pair>, context: usize) -> AppState {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let roles = [pair.policy().map(|_| Role::Policy), pair.reward().map(|_| Role::Reward)];
        let metrics = Metrics::new(config.main_name(&pair), roles.into_iter().flatten().collect(), config.vllm_metrics);
        AppState {
            config,
            pair,
            context,
            metrics,
            engine: OnceLock::new(),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            places: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
            encoders: Arc::new(Semaphore::new(body::ENCODED)),
            salts: RandomState::new(),
            body_bytes: AtomicUsize::new(0),
            created,
            reported: Mutex::default(),
        }
    }

    /// Sets the engine: from now on requests are accepted.
    pub fn ready_with(&self, engine: Engine) {
        // Only the first engine is kept.
        let _ = self.engine.set(engine);
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Ends the engine. Requests in flight end with an error.
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

    /// Whether requests are accepted.
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

    /// Whether the device answers.
    ///
    /// # Errors
    /// The device is lost, or a step hangs.
    pub fn healthy(&self) -> Result<(), ApiError> {
        if self.is_lost() {
            return Err(self.lost());
        }
        let since = self.engine.get().and_then(|engine| engine.status().step_since);
        if since.is_some_and(|since| since.elapsed() > STUCK) {
            return Err(ApiError::unavailable("the device does not end a step that it began"));
        }
        Ok(())
    }

    /// The engine, if requests are accepted.
    ///
    /// # Errors
    /// As [`ready`](AppState::ready).
    pub fn engine(&self) -> Result<&Engine, ApiError> {
        self.ready()?;
        self.engine.get().ok_or_else(|| ApiError::unavailable("the weights are still loading"))
    }

    /// The error of requests whose engine has ended: the device is lost, or the server stops.
    pub fn lost(&self) -> ApiError {
        match self.engine.get().and_then(|engine| engine.status().dead) {
            Some(why) => ApiError { code: Some("device_lost"), ..ApiError::internal(why) },
            None if self.draining.load(Ordering::Acquire) => ApiError::unavailable("the server is stopping"),
            None => ApiError { code: Some("device_lost"), ..ApiError::internal("the engine has ended") },
        }
    }

    /// Takes a place for a request.
    ///
    /// # Errors
    /// There is none, or as [`ready`](AppState::ready).
    pub fn permit(self: &Arc<AppState>) -> Result<Permit, ApiError> {
        self.ready()?;
        let limit = self.config.limits.running + self.config.limits.queue;
        take(&self.places, 1, limit).map_err(|()| ApiError::busy(limit))?;
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        Ok(Permit { app: self.clone(), places: 1, entries: 0 })
    }

    /// For whom a request is: who brings the same key and the same salt shares prompts. Without either, everybody may try
    /// everybody's prompts, and only whole blocks are shared.
    ///
    /// # Errors
    /// There is no engine.
    fn submitter(&self, Caller(key): &Caller, cache_salt: Option<&str>) -> Result<Submitter, ApiError> {
        let open = *key == 0 && cache_salt.is_none();
        let salt = if open { 0 } else { self.salts.hash_one((key, cache_salt)) };
        Ok(Submitter { group: Some(self.engine()?.group()), cache_salt: salt, whole_blocks: open, drafting: None })
    }

    /// Whether a `Host` header, or an origin's host, names this machine.
    fn admits_host(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let own = name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
        let address = name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        own || address || self.config.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    }

    /// The name that the server's other names begin with: the policy's, or that of a reward model without one.
    pub fn name(&self) -> &str {
        self.config.main_name(&self.pair)
    }

    /// Which of the policy's names this is.
    ///
    /// # Errors
    /// There is no such model, or it needs a model that is missing.
    pub fn alias(&self, model: &str) -> Result<Alias, ApiError> {
        let rest = self.pair.policy().ok().and_then(|_| model.strip_prefix(self.config.name.as_str()));
        let alias = match rest {
            Some("") => Some(Alias::Plain),
            // Some clients take what stands before a colon for a provider, so a hyphen does as well.
            Some(rest) => {
                let suffix = rest.strip_prefix([':', '-']);
                suffix.and_then(|alias| Alias::parse(alias, self.config.limits.n))
            }
            None => None,
        };
        match alias {
            None => Err(ApiError::no_model(model)),
            Some(alias) if alias != Alias::Plain && self.pair.reward().is_err() => {
                Err(ApiError::model_without_reward(model))
            }
            Some(alias) => Ok(alias),
        }
    }

    /// Checks one of the names that `/v1/models` lists, one that is made like them, or the reward model's.
    ///
    /// # Errors
    /// As [`alias`](AppState::alias).
    pub fn check_model(&self, model: &str) -> Result<(), ApiError> {
        let own = model == self.name() || model == self.config.reward_name && self.pair.reward().is_ok();
        if own { Ok(()) } else { self.alias(model).map(|_| ()) }
    }

    /// Logs each unknown field once.
    pub fn report_unknown(&self, route: &str, fields: &[String]) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        for field in fields {
            if reported.len() < REPORTED && reported.insert(format!("{route} {field}")) {
                tracing::warn!(event = "unknown field ignored", route, field);
            }
        }
    }
}

/// Seconds since 1970, as in the API.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// All routes, with their middleware.
pub fn router(app: Arc<AppState>) -> Router {
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
        .route("/rerank", post(reward::rerank))
        .route("/v1/rerank", post(reward::rerank))
        .route("/v2/rerank", post(reward::rerank))
        .route("/get_reward", post(reward::get_reward))
        .route("/v1/gradients", post(reward::gradients));
    let routes = match app.config.profiling {
        true => routes
            .route("/start_profile", post(models::start_profile))
            .route("/stop_profile", post(models::stop_profile)),
        false => routes,
    };
    let routes = routes.fallback(middleware::no_route).method_not_allowed_fallback(middleware::no_method);
    middleware::around(routes, &app).with_state(app)
}
