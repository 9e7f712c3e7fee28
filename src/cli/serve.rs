//! `ggro serve`.

use super::args::EngineArgs;
use super::models::{DeviceArgs, PairArgs, TemplateArgs};
use super::say;
use crate::engine::Engine;
use crate::files::pair::Pair;
use crate::profile::Watch;
use crate::server::connections::{Ended, serve};
use crate::server::keys::Keys;
use crate::server::{AppState, Config, Limits};
use crate::{Error, Result};
use axum::http::HeaderValue;
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
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
/// :ggro-helpfulness and :ggro-reasoning with published parameters, and MODEL:bon-8 with the best of 8 samples. With --policy
/// alone only MODEL is served, with --reward alone only rewards and gradients. See docs/serving.md.
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

    /// An origin whose web pages may ask, e.g. `https://chat.example.org`, or *; may be given several times [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    cors_origin: Vec<HeaderValue>,

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

    /// Answers to a prompt (`n`), and samples of MODEL:bon-N
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

/// See [`AddressArgs::log_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    log_to_stderr(args.address.log_format);
    let mut pair = args.pair.load()?;
    args.template.set_up(&mut pair)?;
    for note in &pair.notes {
        tracing::warn!(event = "model", note);
    }
    let config = config(args)?;
    crate::profile::start(&Watch { on_request: config.profiling, ..Watch::default() })?;
    let mut device = args.device.find()?;
    let context = args.pair.context(&pair);
    let settings = args.engine.settings(config.limits.running);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // They tokenise prompts; more would only wait for a core.
        .max_blocking_threads(16)
        .build()?;
    let app = Arc::new(AppState::new(config, pair.clone(), context));
    let ended = runtime.block_on(async {
        let (host, port) = (args.address.host.as_str(), args.address.port);
        let listener = TcpListener::bind((host, port)).await;
        let listener = listener.map_err(|e| Error::invalid(format!("--host {host} --port {port}: {e}")))?;
        let stop = signals()?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() && app.config.keys.is_empty() {
            say("note: everyone who can reach this machine can ask: there is no --api-key");
        }
        let missing = missing(&args.address, &pair);
        if pair.chat().is_none() {
            let message = "the model has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json): \
                           conversations are refused; --chat-template FILE gives one";
            say(&format!("warning: {message}"));
            tracing::warn!(event = "no chat template", message);
        }
        // On standard error, where a program that starts the server can read it.
        say(&format!("listening on http://{address}"));
        tracing::info!(event = "listening", address = %address, model = app.name(), missing);
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
            say(&format!("note: {left} requests were ended before they were answered"));
            Ok(ExitCode::SUCCESS)
        }
        Ended::Lost => {
            say(&format!("error: {}", app.lost().message));
            Ok(ExitCode::from(LOST))
        }
    }
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

fn config(args: &Args) -> Result<Config> {
    let Args { address, limits, pair, .. } = args;
    let of = |path: &Option<PathBuf>, demo: &str| path.as_deref().map_or(demo.to_string(), called);
    let mut keys = address.api_key.clone();
    if let Some(file) = &address.api_key_file {
        let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
        keys.extend(text.lines().map(str::to_string));
        if text.trim().is_empty() {
            return Err(Error::file(file, "expected keys, one per line, found none"));
        }
    }
    Ok(Config {
        name: address.served_model_name.clone().unwrap_or_else(|| of(&pair.policy, "demo")),
        reward_name: address.served_reward_name.clone().unwrap_or_else(|| of(&pair.reward, "demo-reward")),
        preset: pair.preset(),
        keys: Keys::new(keys.iter().map(String::as_str)),
        limits: Limits {
            body: limits.max_body_bytes,
            messages: limits.max_messages,
            prompts: limits.max_prompts,
            n: limits.max_n,
            tokens: limits.max_tokens,
            logprobs: limits.max_logprobs,
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

fn log_to_stderr(format: Option<LogFormat>) {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // This fails only if a subscriber was set before in this process.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

fn name(text: &str) -> std::result::Result<String, String> {
    match text.is_empty() || text.contains(':') || text.chars().any(char::is_whitespace) || text.len() > 200 {
        true => Err("expected 1 to 200 bytes without spaces and colons".to_string()),
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
