//! Chat templates, rendered as Python's Jinja does.
//!
//! A template comes with a model and is written for the `transformers` library: Jinja in a sandbox, blocks trimmed, a few
//! added functions. It is rendered here by minijinja, which has no access to the host, under a budget of fuel (about one
//! unit per instruction and per 64 bytes made) and a limit on its output. Where the two dialects differ in what they
//! print, Python's side is taken: `source` rewrites what minijinja reads otherwise, `python` prints values, and `filters`,
//! `methods` and `format` have what is missing.
//!
//! What fuel does not bound: a template that builds a list of itself twice over, many times, and then compares or
//! concatenates (`~`) the result takes exponential time, as it does in Python. Such a template cannot read or write
//! anything, but it can keep the process that loaded it busy.

mod arguments;
mod filters;
mod format;
mod methods;
mod objects;
mod pretty;
mod python;
mod source;

pub(crate) use python::is_space;

use crate::files::checkpoint::{Files, read_whole_text};
use crate::{Error, Result};
use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::Map;
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const TEMPLATE: &str = "chat_template.jinja";
/// Folder of templates beside that one, each named after its file.
const MORE_TEMPLATES: &str = "additional_chat_templates";
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
    /// `system`, `user`, `assistant`, or another one that the template knows.
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
const RESERVED: [&str; 27] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
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
        return Err(Error::invalid(format!("{name:?} is not a variable that may be set")));
    }
    if value.is_array() || value.is_object() {
        return Err(Error::invalid(format!("{name} must be a text, a number or a truth value")));
    }
    Ok(())
}

/// A day, as templates write it into prompts. As text: `2026-11-29`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(NaiveDate);

impl Date {
    /// Today, where the process is.
    pub fn today() -> Date {
        Date(Local::now().date_naive())
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.format("%Y-%m-%d"))
    }
}

impl FromStr for Date {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let shaped = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let parsed = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| shaped);
        parsed.map(Date).ok_or_else(|| format!("expected a day such as 2026-11-29, found {text:?}"))
    }
}

/// Special tokens by the names that templates know them by, such as `bos_token`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens(Vec<(String, String)>);

impl SpecialTokens {
    /// The token of a name such as `eos_token`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, token)| token.as_str())
    }

    /// Reads those of `tokenizer_config.json` and, where it has none, of `special_tokens_map.json`; with the model's own ones,
    /// which `extra_special_tokens` names.
    ///
    /// # Errors
    /// A file is not readable, or a token is not a text.
    pub fn load(files: &Files) -> Result<Self> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let mut tokens = Vec::new();
        for name in NAMES {
            tokens.extend(special_token(files, name)?.map(|token| (name.to_string(), token)));
        }
        let config = files.read_json(CONFIG)?.unwrap_or_default();
        let extra = config.get("extra_special_tokens").and_then(serde_json::Value::as_object);
        // `transformers` takes any other key that ends like these, too.
        let extra = extra.into_iter().flatten().chain(config.iter().filter(|(name, _)| name.ends_with("_token")));
        for (name, token) in extra {
            let text = token.as_str().or_else(|| token.get("content")?.as_str());
            if let Some(text) = text.filter(|_| !tokens.iter().any(|(known, _)| known == name)) {
                tokens.push((name.clone(), text.to_string()));
            }
        }
        Ok(SpecialTokens(tokens))
    }
}

/// A model's chat template with the special tokens it may name. There may be a second one for conversations with tools.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    templates: Vec<NamedTemplate>,
    special_tokens: SpecialTokens,
    variables: Map<String, serde_json::Value>,
}

/// Where a template of this name comes from.
#[derive(Debug)]
struct NamedTemplate {
    name: String,
    path: PathBuf,
    source: String,
}

/// The template of conversations, and that of conversations with tools, where there is one.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Reads the model's templates as `transformers` does: `chat_template.jinja` and those of `additional_chat_templates`, else
    /// `chat_template` of `tokenizer_config.json`. `Ok(None)` if there is none.
    ///
    /// # Errors
    /// A file is not readable, or a template does not parse.
    pub fn load(files: &Files) -> Result<Option<Self>> {
        let mut found = Vec::new();
        let mut add = |name: &str, file: &str| -> Result<()> {
            if let Some(text) = files.read_text(file)? {
                found.push(NamedTemplate { name: name.to_string(), path: files.path(file), source: text.into_owned() });
            }
            Ok(())
        };
        add(DEFAULT, TEMPLATE)?;
        // The only other one that is chosen by itself.
        add(TOOL_USE, &format!("{MORE_TEMPLATES}/{TOOL_USE}.jinja"))?;
        if found.is_empty() {
            let config = files.read_json(CONFIG)?.unwrap_or_default();
            let named = templates_of(config.get("chat_template"));
            let named = named.map_err(|what| Error::file(files.path(CONFIG), format!("`chat_template`: {what}")))?;
            found.extend(named.into_iter().map(|(name, source)| NamedTemplate {
                name,
                path: files.path(CONFIG),
                source,
            }));
        }
        if found.is_empty() {
            return Ok(None);
        }
        Self::new(found, SpecialTokens::load(files)?).map(Some)
    }

    /// A template from a file, in place of the model's own.
    ///
    /// # Errors
    /// The file is not readable, or the template does not parse.
    pub fn from_file(path: &Path, special_tokens: SpecialTokens) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let source = read_whole_text(path, file)?;
        Self::new(vec![NamedTemplate { name: DEFAULT.to_string(), path: path.to_path_buf(), source }], special_tokens)
    }

    fn new(templates: Vec<NamedTemplate>, special_tokens: SpecialTokens) -> Result<Self> {
        let mut environment = environment();
        for NamedTemplate { name, path, source } in &templates {
            // Those of other names are never rendered.
            if ![DEFAULT, TOOL_USE].contains(&name.as_str()) {
                continue;
            }
            if source.len() > MAX_TEMPLATE {
                let found = source.len();
                let message = format!("chat template: expected at most {MAX_TEMPLATE} bytes, found {found}");
                return Err(Error::file(path, message));
            }
            // As Jinja2 reads any source.
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            let parsed = on_deep_stack(path, || {
                let rewritten = source::rewrite(&source).map_err(Unread::Rewritten)?;
                environment.add_template_owned(inside(name), rewritten).map_err(Unread::Parsed)
            })?;
            parsed.map_err(|error| match error {
                Unread::Rewritten(message) => Error::file(path, format!("chat template, {message}")),
                Unread::Parsed(error) => failure(path, &error),
            })?;
        }
        Ok(ChatTemplate { environment, templates, special_tokens, variables: Map::new() })
    }

    /// Pins `strftime_now` to a moment (seconds since 1970 UTC), for reproducible prompts.
    pub fn pin_time(&mut self, unix_seconds: i64) {
        let moment = DateTime::from_timestamp(unix_seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC);
        add_strftime(&mut self.environment, move || moment.naive_utc());
    }

    /// Pins `strftime_now` to the beginning of a day.
    pub fn pin_date(&mut self, date: Date) {
        add_strftime(&mut self.environment, move || date.0.and_time(NaiveTime::MIN));
    }

    /// Sets variables of the template's own, such as `enable_thinking`, for all conversations that do not bring them.
    ///
    /// # Errors
    /// A variable that [`check_variable`] refuses.
    pub fn set_variables(&mut self, variables: Map<String, serde_json::Value>) -> Result<()> {
        variables.iter().try_for_each(|(name, value)| check_variable(name, value))?;
        self.variables = variables;
        Ok(())
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// The template raises an exception, does not end within its fuel, or writes too much; or the model's templates all have
    /// other names than `default`.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let size = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let message = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let values = messages.iter().map(message).collect();
        self.rendered(values, None, &Map::new(), add_generation_prompt, size)
    }

    /// Renders a conversation with everything that came with it. If it has tools, a template named `tool_use` goes first.
    ///
    /// # Errors
    /// As [`render`](ChatTemplate::render), or a variable that [`check_variable`] refuses.
    pub fn render_conversation(&self, conversation: &Conversation<'_>, add_generation_prompt: bool) -> Result<String> {
        let Conversation { messages, tools, variables } = *conversation;
        variables.iter().try_for_each(|(name, value)| check_variable(name, value))?;
        let length = |value: &serde_json::Value| value.to_string().len();
        let size = messages.iter().chain(tools).chain(variables.values()).map(length).sum();
        let values = messages.iter().map(|message| value_of(&with_reasoning(message))).collect();
        self.rendered(values, tools.map(value_of), variables, add_generation_prompt, size)
    }

    /// Renders what is given, of so many bytes.
    fn rendered(
        &self,
        messages: Vec<Value>,
        tools: Option<Value>,
        variables: &Map<String, serde_json::Value>,
        add_generation_prompt: bool,
        size: usize,
    ) -> Result<String> {
        let NamedTemplate { name, path, .. } = self.chosen(tools.is_some())?;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + size as u64));
        // Of two with the same name, the last one counts.
        let own = self.variables.iter().chain(variables).map(|(name, value)| (name.as_str(), value_of(value)));
        let special = self.special_tokens.0.iter().map(|(name, text)| (name.as_str(), text.as_str().into()));
        let given = [
            ("messages", messages.into()),
            ("tools", tools.unwrap_or_else(|| ().into())),
            ("documents", ().into()),
            ("add_generation_prompt", add_generation_prompt.into()),
        ];
        let context = Value::from_pairs(own.chain(special).chain(given));
        let mut output = Limited { text: Vec::new(), limit: MAX_OUTPUT + size, exceeded: false };
        let rendered = on_deep_stack(path, || {
            let template = environment.get_template(&inside(name))?;
            template.render_captured_to(context, &mut output).map(drop)
        })?;
        if output.exceeded {
            let limit = output.limit;
            return Err(Error::file(path, format!("chat template: writes more than {limit} bytes, the limit")));
        }
        rendered.map_err(|e| failure(path, &e))?;
        String::from_utf8(output.text).map_err(|e| Error::file(path, e.to_string()))
    }

    /// The template of a conversation.
    fn chosen(&self, tools: bool) -> Result<&NamedTemplate> {
        let named = |name: &str| self.templates.iter().find(|template| template.name == name);
        let tool_use = named(TOOL_USE).filter(|_| tools);
        tool_use.or_else(|| named(DEFAULT)).ok_or_else(|| {
            let names: Vec<&str> = self.templates.iter().map(|template| template.name.as_str()).collect();
            Error::invalid(format!(
                "the model has no chat template named {DEFAULT:?}, and {TOOL_USE:?} is for conversations with tools; \
                 expected one of the two, found {}",
                names.join(", ")
            ))
        })
    }

    /// The sources of its templates, each with its name.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.templates.iter().map(|template| (template.name.as_str(), template.source.as_str()))
    }
}

/// Why a template could not be read.
enum Unread {
    Rewritten(String),
    Parsed(minijinja::Error),
}

/// A message with what the assistant thought under every name that templates read, as `transformers` hands it to them.
fn with_reasoning(message: &serde_json::Value) -> Cow<'_, serde_json::Value> {
    const NEWEST: &str = "reasoning_content";
    const OLDER: &str = "thinking";
    let thought =
        [NEWEST, OLDER, "reasoning"].into_iter().find_map(|name| message.get(name).filter(|text| !text.is_null()));
    let (Some(thought), Some(fields)) = (thought, message.as_object()) else { return Cow::Borrowed(message) };
    let mut all = Map::new();
    all.insert(OLDER.to_string(), thought.clone());
    all.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    all.insert(NEWEST.to_string(), thought.clone());
    Cow::Owned(serde_json::Value::Object(all))
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

/// The name of a template inside its environment.
fn inside(name: &str) -> String {
    format!("chat template: {name}")
}

/// The environment `transformers` renders chat templates in.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // The default delimiters cannot be refused.
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(python::write);
    filters::add(&mut environment);
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
fn failure(path: &Path, error: &minijinja::Error) -> Error {
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
fn on_deep_stack<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
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

/// `chat_template` of `tokenizer_config.json`, by names: a text, which is the default one, a list of objects with `name` and
/// `template`, or an object of texts. Of two with the same name, the last one counts.
fn templates_of(value: Option<&serde_json::Value>) -> std::result::Result<Vec<(String, String)>, String> {
    use serde_json::Value::{Array, Null, Object, String as Text};
    let fail = || "expected a text, a list of objects with `name` and `template`, or an object of texts".to_string();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, text: &str| {
        found.retain(|(known, _)| known != name);
        found.push((name.to_string(), text.to_string()));
    };
    match value {
        None | Some(Null) => {}
        Some(Text(text)) => add(DEFAULT, text),
        Some(Array(list)) => {
            for entry in list {
                let text = |field: &str| entry.get(field).and_then(serde_json::Value::as_str).ok_or_else(fail);
                add(text("name")?, text("template")?);
            }
        }
        Some(Object(map)) => {
            for (name, text) in map {
                add(name, text.as_str().ok_or_else(fail)?);
            }
        }
        Some(_) => return Err(fail()),
    }
    Ok(found)
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
