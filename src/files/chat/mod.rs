//! Chat templates, rendered as Python's Jinja does.
//!
//! A template comes with a model and is written for the `transformers` library: Jinja in a sandbox, blocks trimmed, a few
//! added functions. It is rendered here by minijinja, which has no access to the host, under a budget of fuel (about one
//! unit per instruction and per 64 bytes made) and a limit on its output. Where the two dialects differ in what they
//! print, `python` takes Python's side.
//!
//! What fuel does not bound: a template that builds a list of itself twice over, many times, and then compares or
//! concatenates (`~`) the result takes exponential time, as it does in Python. Such a template cannot read or write
//! anything, but it can keep the process that loaded it busy.

mod generation;
mod python;

use crate::files::checkpoint::Files;
use crate::{Error, Result};
use chrono::{DateTime, Local, NaiveDateTime, Utc};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use minijinja_contrib::pycompat;
use serde_json::Map;
use std::path::PathBuf;

const TEMPLATE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";
const TOKEN_MAP: &str = "special_tokens_map.json";

/// Longest template, in bytes. Published ones stay below a tenth of it.
const MAX_TEMPLATE: usize = 128 << 10;
/// Longest rendered conversation beyond the messages themselves, in bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// Fuel of a conversation, and what each message and each byte of one adds.
const FUEL: u64 = 500_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
/// Stack for parsing and rendering. Values and expressions may be nested as deep as fuel and template size allow, and
/// are printed, compared and dropped by recursion; the memory is touched only if that happens.
const STACK: usize = 1 << 30;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A conversation as a client writes it, with what else its template may look at.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// Objects with `role`, `content` and whatever else the template knows, such as `tool_calls`.
    pub messages: &'a [serde_json::Value],
    /// Functions that the model may call, as the client describes them.
    pub tools: Option<&'a serde_json::Value>,
    /// Variables of the template's own, such as `enable_thinking`. See [`check_variable`].
    pub variables: &'a Map<String, serde_json::Value>,
}

/// Names that belong to the engine, to `transformers` or to Jinja.
const RESERVED: [&str; 24] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "lipsum",
    "cycler",
    "joiner",
    "debug",
    "loop",
    "self",
    "caller",
    "super",
    "chat_template",
    "conversation",
];

/// Whether a variable may be handed to a template.
///
/// # Errors
/// A name that belongs to the template's surroundings or is none, or a value that is neither text, number nor truth value.
pub fn check_variable(name: &str, value: &serde_json::Value) -> Result<()> {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !plain || name.len() > 64 || RESERVED.contains(&name) {
        let name: String = name.chars().take(64).collect();
        return Err(Error::invalid(format!("{name:?} is not a variable that a request may set")));
    }
    if value.is_array() || value.is_object() {
        return Err(Error::invalid(format!("{name} must be a text, a number or a truth value")));
    }
    Ok(())
}

/// A model's chat template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    special_tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`. `Ok(None)` if there is neither.
    ///
    /// # Errors
    /// A file is not readable, or the template does not parse.
    pub fn load(files: &Files) -> Result<Option<Self>> {
        let config = files.read_json(CONFIG)?.unwrap_or_default();
        let (path, source) = match files.read_text(TEMPLATE)? {
            Some(text) => (files.path(TEMPLATE), text.into_owned()),
            None => match default_template(files, &config)? {
                Some(text) => (files.path(CONFIG), text),
                None => return Ok(None),
            },
        };
        let mut special_tokens = Vec::new();
        for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if let Some(token) = special_token(files, name)? {
                special_tokens.push((name, token));
            }
        }
        Self::new(path, &source, special_tokens).map(Some)
    }

    fn new(path: PathBuf, source: &str, special_tokens: Vec<(&'static str, String)>) -> Result<Self> {
        if source.len() > MAX_TEMPLATE {
            return Err(Error::file(
                path,
                format!("chat template: expected at most {MAX_TEMPLATE} bytes, found {}", source.len()),
            ));
        }
        let mut environment = environment();
        // As Jinja2 reads any source.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = generation::replace_tags(&source)
            .map_err(|message| Error::file(&path, format!("chat template, {message}")))?;
        let parsed = on_deep_stack(&path, || environment.add_template_owned(NAME, source))?;
        parsed.map_err(|e| failure(&path, &e))?;
        Ok(ChatTemplate { environment, path, special_tokens })
    }

    /// Pins `strftime_now` to a moment (seconds since 1970 UTC), for reproducible prompts.
    pub fn pin_time(&mut self, unix_seconds: i64) {
        let moment = DateTime::from_timestamp(unix_seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
        add_strftime(&mut self.environment, move || moment.naive_utc());
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// The template raises an exception, does not end within its fuel, or writes too much.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let size: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        self.rendered(self.context(messages, add_generation_prompt), messages.len(), size)
    }

    /// Renders a conversation with everything that came with it.
    ///
    /// # Errors
    /// As [`render`](ChatTemplate::render), or a variable that [`check_variable`] refuses.
    pub fn render_conversation(&self, conversation: &Conversation<'_>, add_generation_prompt: bool) -> Result<String> {
        let Conversation { messages, tools, variables } = *conversation;
        variables.iter().try_for_each(|(name, value)| check_variable(name, value))?;
        let length = |value: &serde_json::Value| value.to_string().len();
        let size = messages.iter().chain(tools).chain(variables.values()).map(length).sum();
        let own = variables.iter().map(|(name, value)| (name.as_str(), value_of(value)));
        let messages_of = messages.iter().map(value_of).collect::<Vec<Value>>();
        let given = [("messages", messages_of.into()), ("tools", tools.map_or(().into(), value_of))];
        let mut pairs: Vec<(&str, Value)> = own.chain(self.fixed(add_generation_prompt)).collect();
        pairs.extend(given);
        self.rendered(Value::from_pairs(pairs), messages.len(), size)
    }

    /// Renders what is given, of so many messages with so many bytes.
    fn rendered(&self, context: Value, messages: usize, size: usize) -> Result<String> {
        let mut environment = self.environment.clone();
        let fuel = FUEL + FUEL_PER_MESSAGE * messages as u64 + size as u64;
        environment.set_fuel(Some(fuel));
        let mut output = Limited { text: Vec::new(), limit: MAX_OUTPUT + size, exceeded: false };
        let rendered = on_deep_stack(&self.path, || {
            let template = environment.get_template(NAME)?;
            template.render_captured_to(context, &mut output).map(drop)
        })?;
        if output.exceeded {
            let limit = output.limit;
            return Err(Error::file(&self.path, format!("chat template: writes more than {limit} bytes, the limit")));
        }
        rendered.map_err(|e| failure(&self.path, &e))?;
        String::from_utf8(output.text).map_err(|e| Error::file(&self.path, e.to_string()))
    }

    fn context(&self, messages: &[Message], add_generation_prompt: bool) -> Value {
        let message = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let given = [("messages", messages.iter().map(message).collect::<Vec<_>>().into()), ("tools", ().into())];
        Value::from_pairs(given.into_iter().chain(self.fixed(add_generation_prompt)))
    }

    /// What does not depend on the conversation.
    fn fixed(&self, add_generation_prompt: bool) -> Vec<(&str, Value)> {
        let special = self.special_tokens.iter().map(|(name, text)| (*name, text.as_str().into()));
        let fixed = [("add_generation_prompt", add_generation_prompt.into()), ("documents", ().into())];
        fixed.into_iter().chain(special).collect()
    }
}

/// A value of JSON as templates see it.
fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => ().into(),
        serde_json::Value::Bool(truth) => (*truth).into(),
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(list) => list.iter().map(value_of).collect::<Vec<Value>>().into(),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), value_of(value))))
        }
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => whole.into(),
            (_, Some(whole)) => whole.into(),
            _ => number.as_f64().unwrap_or(f64::NAN).into(),
        },
    }
}

/// Name of the template inside its environment.
const NAME: &str = "chat template";

/// The environment `transformers` renders chat templates in.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // The default delimiters cannot be refused.
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(python::write);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", python::string);
    // Its indentation is quadratic in the depth and is paid for only afterwards; no chat template needs it.
    environment.remove_filter("pprint");
    environment.add_function("raise_exception", |message: &Value| refuse(message.to_string()));
    add_strftime(&mut environment, || Local::now().naive_local());
    environment
}

fn add_strftime(environment: &mut Environment<'static>, now: impl Fn() -> NaiveDateTime + Send + Sync + 'static) {
    environment.add_function("strftime_now", move |format: &str| python::strftime(now(), format));
}

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refuse(message: String) -> std::result::Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refusal(message)))
}

/// A refusal concerns the conversation; anything else is the template's fault.
fn failure(path: &std::path::Path, error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut innermost = error;
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return Error::invalid(format!("the chat template refuses the conversation: {message}"));
        }
        innermost = cause.downcast_ref().unwrap_or(innermost);
        source = cause.source();
    }
    let place = innermost.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let what = match (innermost.kind(), innermost.detail()) {
        (ErrorKind::OutOfFuel, _) => "does not end within its limit of work".to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::file(path, format!("chat template{place}: {what}"))
}

/// Runs `work` on a thread whose stack is deep enough for anything that the limits admit.
fn on_deep_stack<T: Send>(path: &std::path::Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat template".into())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|e| Error::io(path, e))?;
        thread.join().map_err(|_| Error::file(path, "chat template: rendering it failed"))
    })
}

/// A writer that fails when it is full.
struct Limited {
    text: Vec<u8>,
    limit: usize,
    exceeded: bool,
}

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.limit - self.text.len() {
            self.exceeded = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `chat_template` of `tokenizer_config.json`: a text, or a list of named ones.
fn default_template(files: &Files, config: &Map<String, serde_json::Value>) -> Result<Option<String>> {
    use serde_json::Value::{Array, Null, String};
    let fail = |message: &str| Error::file(files.path(CONFIG), message);
    let list = match config.get("chat_template") {
        None | Some(Null) => return Ok(None),
        Some(String(text)) => return Ok(Some(text.clone())),
        Some(Array(list)) => list,
        Some(_) => {
            return Err(fail("`chat_template`: expected a text or a list of named texts"));
        }
    };
    let default = list.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
    match default.and_then(|entry| entry.get("template")) {
        Some(String(text)) => Ok(Some(text.clone())),
        _ => Err(fail("`chat_template`: expected a template named \"default\" in the list, found none")),
    }
}

/// A special token by its role (`eos_token`): of `tokenizer_config.json`, else of `special_tokens_map.json`. Written as
/// a text or as an object with the text as `content`.
pub(crate) fn special_token(files: &Files, name: &str) -> Result<Option<String>> {
    use serde_json::Value::{Null, Object, String};
    for file in [CONFIG, TOKEN_MAP] {
        let map = files.read_json(file)?.unwrap_or_default();
        let content = match map.get(name) {
            Some(Object(token)) => token.get("content").unwrap_or(&Null),
            Some(token) => token,
            None => continue,
        };
        match content {
            String(text) => return Ok(Some(text.clone())),
            Null => {}
            found => {
                let message = format!("`{name}`: expected a token's text, found {found}");
                return Err(Error::file(files.path(file), message));
            }
        }
    }
    Ok(None)
}
