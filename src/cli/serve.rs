//! `ggro serve`.

use super::args::EngineArgs;
use super::models::{DeviceArgs, PairArgs, TemplateArgs};
use super::output::Paths;
use super::{say, say_to};
use crate::engine::Engine;
use crate::files::checkpoint::read_whole_text;
use crate::files::generation::SamplingDefaults;
use crate::files::pair::Pair;
use crate::profile::Watch;
use crate::server::connections::{Ended, serve};
use crate::server::keys::Keys;
use crate::server::log::{Log, LogThread};
use crate::server::{AppState, Config, Limits};
use crate::{Error, Result};
use axum::http::HeaderValue;
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing_subscriber::EnvFilter;

/// Exit code after the device was lost, for supervisors that restart the server.
const LOST: u8 = 4;

/// Answer requests over HTTP, as OpenAI's API has them
///
/// A model MODEL has several names: MODEL answers greedily or by sampling, MODEL:ggro by the method, MODEL:ggro-safety,
/// :ggro-helpfulness and :ggro-reasoning with published parameters, MODEL:bon-8 with the best of 8 samples, and MODEL:cards and
/// others by the methods that GGRO is compared with. With --policy alone only MODEL is served, with --reward alone only rewards
/// and gradients. See docs/serving.md.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pair: PairArgs,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    address: AddressArgs,

    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server")]
struct AddressArgs {
    /// Address to listen at; 0.0.0.0 is every address of the machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,

    /// Port to listen at; 0 takes a free one and says which
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,

    /// The policy's name for clients [default: that of its directory, or demo]
    #[arg(long, value_name = "NAME", value_parser = name)]
    served_model_name: Option<String>,

    /// The reward model's name for clients [default: that of its directory, or demo-reward]
    #[arg(long, value_name = "NAME", value_parser = name)]
    served_reward_name: Option<String>,

    /// A key that clients must bring (Authorization: Bearer KEY); may be given several times, in the variable with commas
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    api_key: Vec<String>,

    /// A file of such keys, one per line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// A name besides localhost by which a server that listens on this machine only, without keys, may be asked; may be given
    /// several times
    ///
    /// Such a server refuses other names in the Host header, and pages of other origins, because any page that a browser of
    /// this machine shows could use it.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = host_name)]
    allowed_host: Vec<String>,

    /// An origin whose web pages may ask, e.g. `https://chat.example.org`, or *; may be given several times [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    cors_origin: Vec<HeaderValue>,

    /// Where sampling fields come from that a request does not give
    ///
    /// auto: temperature, top_k, top_p, min_p and repetition_penalty of the policy's generation_config.json, as in vLLM. none:
    /// temperature 1, and no filter.
    #[arg(long, value_name = "FROM", value_enum, default_value_t = GenerationConfig::Auto)]
    generation_config: GenerationConfig,

    /// Metrics under these names too: vllm is what routers of vLLM look for
    #[arg(long, value_name = "NAMES", value_enum)]
    metrics_compat: Option<Compat>,

    /// Let POST /start_profile and /stop_profile tell a profiler that waits for it when to collect
    #[arg(long)]
    enable_profiling: bool,

    /// How log lines are written to standard error [default: text on a terminal, else json]
    ///
    /// They name requests, routes, sizes and times, and never what was said. RUST_LOG chooses which (default: info).
    #[arg(long, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Requests that run at the same time
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    max_requests: usize,

    /// Requests that wait besides; further ones are answered with 429
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_queue: usize,

    /// Bytes of a request
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 30))]
    max_body_bytes: usize,

    /// Messages of a conversation
    #[arg(long, value_name = "N", default_value_t = 1024,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_messages: usize,

    /// Prompts of a completion request, texts of a reward request
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    max_prompts: usize,

    /// Answers to a prompt (`n`), samples of MODEL:bon-N, and texts that a method such as MODEL:cards chooses among
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=128))]
    max_n: usize,

    /// New tokens of an answer [default: as many as the context has room for]
    #[arg(long, value_name = "TOKENS",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_tokens: Option<usize>,

    /// Most likely tokens reported with each token
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = RangedU64ValueParser::<usize>::new().range(0..=128))]
    max_logprobs: usize,

    /// Tokens that answers in flight may have beside the first answer of each request; every likely token reported beside one
    /// (`logprobs`) counts as a token
    #[arg(long, value_name = "TOKENS", default_value_t = 32 << 20)]
    max_answer_tokens: usize,

    /// Seconds until an answer must be complete
    #[arg(long, value_name = "SECONDS", default_value = "600",
          value_parser = seconds, allow_negative_numbers = true)]
    request_timeout: Duration,

    /// Seconds within which a request's head must have arrived, and then its body
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = seconds, allow_negative_numbers = true)]
    arrival_timeout: Duration,

    /// Seconds for which a client may refuse to read its answer
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = seconds, allow_negative_numbers = true)]
    write_timeout: Duration,

    /// Connections at the same time
    #[arg(long, value_name = "N", default_value_t = 4096,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    max_connections: usize,

    /// Seconds between comments that keep a silent stream open
    #[arg(long, value_name = "SECONDS", default_value = "10",
          value_parser = seconds, allow_negative_numbers = true)]
    keep_alive: Duration,

    /// Seconds for requests in flight to end after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "25",
          value_parser = seconds, allow_negative_numbers = true)]
    drain_timeout: Duration,
}

/// See [`AddressArgs::metrics_compat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compat {
    Vllm,
}

/// See [`AddressArgs::generation_config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GenerationConfig {
    Auto,
    None,
}

/// See [`AddressArgs::log_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// How long the end waits for a reader of the log.
const LAST_LINES: Duration = Duration::from_secs(1);

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (log, thread) = log_to_stderr(args.address.log_format)?;
    // An error is a line of the log as well.
    let ended = serve_until_stopped(args, &log).or_else(|error| Ok(super::report(&error)));
    say_to(None);
    thread.finish(LAST_LINES);
    ended
}

fn serve_until_stopped(args: &Args, log: &Log) -> anyhow::Result<ExitCode> {
    let paths = Paths::default().reading(args.pair.paths()).reading(&args.template.chat_template);
    let paths = paths.reading(&args.address.api_key_file).reading(args.engine.draft.model());
    paths.writing("--trace-events", args.device.profile.trace_events.as_deref()).check()?;
    let mut pair = args.pair.load()?;
    PairArgs::add_draft(&mut pair, args.engine.draft.model())?;
    args.template.set_up(&mut pair)?;
    for note in &pair.notes {
        tracing::warn!(event = "model", note);
    }
    let mut config = config(args, &pair)?;
    crate::profile::start(&Watch { on_request: config.profiling, ..Watch::default() })?;
    let mut device = args.device.find()?;
    let context = args.pair.context(&pair);
    let settings = args.engine.settings(config.limits.running);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // They tokenise prompts; more would only wait for a core.
        .max_blocking_threads(16)
        .build()?;
    let (host, port) = (args.address.host.as_str(), args.address.port);
    let listener = runtime.block_on(TcpListener::bind((host, port)));
    let listener = listener.map_err(|e| Error::invalid(format!("--host {host} --port {port}: {e}")))?;
    let address = listener.local_addr()?;
    config.local = address.ip().is_loopback() && config.keys.is_empty();
    if !address.ip().is_loopback() && config.keys.is_empty() {
        say("note: everyone who can reach this machine can ask: there is no --api-key");
    }
    config.limits.connections = open_files(config.limits.connections);
    let app = Arc::new(AppState::new(config, pair.clone(), context));
    let ended = runtime.block_on(async {
        let stop = signals()?;
        // A log that has reached the limit of file sizes would end the process; with a handler, writing to it only fails.
        let _too_large = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
        let missing = missing(&args.address, &pair);
        if pair.chat().is_none() {
            let message = "the model has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json): \
                           conversations are refused; --chat-template FILE gives one";
            tracing::warn!(event = "no chat template", "{message}");
        }
        // A program that starts the server reads where it listens: a line of its own in a log of text, the message of an event
        // in one of JSON.
        let listening = format!("listening on http://{address}");
        if format(args.address.log_format) == LogFormat::Text {
            log.line(&listening);
        }
        tracing::info!(event = "listening", address = %address, model = app.name(), missing, "{listening}");
        let (loaded, engine) = oneshot::channel();
        let (flags, max_len) = (args.device.clone(), args.pair.max_model_len);
        let load = move || {
            let open = move || Ok(flags.open(&mut device, &pair, max_len)?.into_backend());
            // If the server was stopped meanwhile, the receiver is gone.
            let _ = loaded.send(Engine::start(settings, open));
        };
        std::thread::Builder::new().name("loader".to_string()).spawn(load)?;
        anyhow::Ok(serve(listener, app.clone(), engine, stop).await?)
    });
    // Blocking threads may still be tokenising a prompt of a request that was dropped.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended? {
        Ended::Stopped(0) => Ok(ExitCode::SUCCESS),
        Ended::Stopped(left) => {
            let (requests, they) = if left == 1 { ("request was", "it was") } else { ("requests were", "they were") };
            say(&format!("note: {left} {requests} ended before {they} answered"));
            Ok(ExitCode::SUCCESS)
        }
        Ended::Lost => {
            say(&format!("error: {}", app.lost().message));
            Ok(ExitCode::from(LOST))
        }
    }
}

/// Files that are open beside connections: weights, the device, standard streams.
const OTHER_FILES: u64 = 64;

/// Raises the limit of open files to what so many connections need. How many there can be.
fn open_files(connections: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = connections as u64 + OTHER_FILES;
    let Rlimit { current: Some(current), maximum } = getrlimit(Resource::Nofile) else { return connections };
    if current >= needed {
        return connections;
    }
    let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
    let allowed = match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => raised,
        Err(_) => current,
    };
    let possible = usize::try_from(allowed.saturating_sub(OTHER_FILES).max(8)).unwrap_or(connections);
    if possible < connections {
        say(&format!(
            "note: {possible} connections at the same time, not {connections}: this process may open {allowed} files"
        ));
    }
    possible.min(connections)
}

/// The model that is missing, if one is. Says which, and what the server does not answer without it.
fn missing(address: &AddressArgs, pair: &Pair) -> Option<&'static str> {
    let (model, refused, unused) = match (pair.policy(), pair.reward()) {
        (Ok(_), Ok(_)) => return None,
        (Ok(_), Err(_)) => {
            let unused = address.served_reward_name.as_ref().map(|_| "--served-reward-name");
            ("reward model", "GGRO, best-of-N, rewards and gradients", unused)
        }
        (Err(_), _) => {
            let unused = address.served_model_name.as_ref().map(|_| "--served-model-name");
            ("policy", "chats and completions", unused)
        }
    };
    say(&format!("note: there is no {model}: {refused} are refused"));
    if let Some(flag) = unused {
        say(&format!("note: {flag} names nothing: there is no {model}"));
    }
    Some(model)
}

/// Counts the signals that ask the server to stop.
fn signals() -> std::io::Result<watch::Receiver<usize>> {
    let (told, stop) = watch::channel(0);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            told.send_modify(|count| *count += 1);
        }
    });
    Ok(stop)
}

fn config(args: &Args, pair_files: &Pair) -> Result<Config> {
    let Args { address, limits, pair, .. } = args;
    let of = |path: &Option<PathBuf>, demo: &str| path.as_deref().map_or(demo.to_string(), called);
    let mut keys = address.api_key.clone();
    if keys.iter().any(|key| key.trim().is_empty()) {
        let message = "--api-key: expected a key, found an empty one; leave it out for a server without keys";
        return Err(Error::invalid(message));
    }
    if let Some(file) = &address.api_key_file {
        let text = read_whole_text(file, std::fs::File::open(file).map_err(|e| Error::io(file, e))?)?;
        keys.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_string));
        if text.trim().is_empty() {
            return Err(Error::file(file, "expected keys, one per line, found none"));
        }
    }
    let keys = Keys::new(keys.iter().map(String::as_str))?;
    let name = address.served_model_name.clone().unwrap_or_else(|| of(&pair.policy, "demo"));
    let reward_name = address.served_reward_name.clone().unwrap_or_else(|| of(&pair.reward, "demo-reward"));
    let both = pair_files.policy().is_ok() && pair_files.reward().is_ok();
    let sampling = match (address.generation_config, pair_files.policy()) {
        (GenerationConfig::Auto, Ok(policy)) => policy.sampling,
        _ => SamplingDefaults::default(),
    };
    if sampling != SamplingDefaults::default() {
        let SamplingDefaults { temperature, top_k, top_p, min_p, repetition_penalty } = sampling;
        let event = "sampling defaults";
        tracing::info!(event, temperature, top_k, top_p, min_p, repetition_penalty, "from generation_config.json");
    }
    Ok(Config {
        reward_name: match both && name == reward_name {
            true if address.served_model_name.is_some() || address.served_reward_name.is_some() => {
                let message = format!("--served-model-name and --served-reward-name: both models are called {name}");
                return Err(Error::invalid(message));
            }
            // Both directories have the same name.
            true => format!("{reward_name}-reward"),
            false => reward_name,
        },
        name,
        preset: pair.preset(),
        sampling,
        keys,
        local: false,
        hosts: address.allowed_host.iter().cloned().chain([address.host.clone()]).collect(),
        limits: Limits {
            body: limits.max_body_bytes,
            messages: limits.max_messages,
            prompts: limits.max_prompts,
            n: limits.max_n,
            tokens: limits.max_tokens,
            logprobs: limits.max_logprobs,
            entries: limits.max_answer_tokens,
            running: limits.max_requests,
            queue: limits.max_queue,
            answer: limits.request_timeout,
            arrival: limits.arrival_timeout,
            write: limits.write_timeout,
            connections: limits.max_connections,
        },
        origins: address.cors_origin.clone(),
        vllm_metrics: address.metrics_compat.is_some(),
        profiling: address.enable_profiling,
        keep_alive: limits.keep_alive,
        drain: limits.drain_timeout,
    })
}

/// The name of a model for clients: org/name, or the last part of its path.
fn called(path: &Path) -> String {
    let text = path.to_string_lossy();
    match crate::files::hub::Name::parse(&text) {
        Some(_) if !path.exists() => text.split('@').next().unwrap_or_default().to_string(),
        _ => {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
            let last = absolute.file_name().map(|name| name.to_string_lossy().replace(':', "-"));
            last.unwrap_or_else(|| "model".to_string())
        }
    }
}

/// The format of the log.
fn format(asked: Option<LogFormat>) -> LogFormat {
    asked.unwrap_or(if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json })
}

/// Starts the log. Notes of other parts of the command line go to it, too.
fn log_to_stderr(asked: Option<LogFormat>) -> Result<(Log, LogThread)> {
    let lost: fn(u64) -> String = match format(asked) {
        LogFormat::Text => |count| format!("warning: {count} lines of the log were lost"),
        LogFormat::Json => |count| json!({ "level": "WARN", "event": "log lines lost", "lines": count }).to_string(),
    };
    let started = Log::start(std::io::stderr(), lost);
    let (log, thread) = started.map_err(|e| Error::Backend(format!("the log's thread does not start: {e}")))?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).with_target(false);
    let lines = lines.log_internal_errors(false);
    // This fails only if a subscriber was set before in this process.
    let _ = match format(asked) {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    let said = log.clone();
    say_to(Some(match format(asked) {
        LogFormat::Text => Box::new(move |line| said.line(line)),
        LogFormat::Json => Box::new(|line| tracing::info!(event = "note", "{line}")),
    }));
    // A panic writes to standard error as well, and its request must not wait for that.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(event = "panicked", place, message = panic.payload_as_str());
    }));
    Ok((log, thread))
}

fn name(text: &str) -> std::result::Result<String, String> {
    match text.is_empty() || text.contains(':') || text.chars().any(char::is_whitespace) || text.len() > 200 {
        true => Err("expected 1 to 200 bytes without spaces and colons".to_string()),
        false => Ok(text.to_string()),
    }
}

fn host_name(text: &str) -> std::result::Result<String, String> {
    match text.is_empty() || text.contains(['/', ':']) || text.chars().any(char::is_whitespace) {
        true => Err("expected a host's name, without a port".to_string()),
        false => Ok(text.to_string()),
    }
}

fn origin(text: &str) -> std::result::Result<HeaderValue, String> {
    let sound = text == "*" || text.starts_with("http://") || text.starts_with("https://");
    let value = HeaderValue::from_str(text).ok().filter(|_| sound && !text.ends_with('/'));
    value.ok_or_else(|| "expected an origin such as https://chat.example.org, or *".to_string())
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=86400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected seconds, 0.001 to 86400".to_string()),
    }
}
