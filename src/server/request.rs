//! Chat and completion requests: reading and checking their fields.

use super::AppState;
use super::error::ApiError;
use super::fields::{Fields, token_ids};
use super::method::{Alias, MethodSettings, search, wrong_parameter};
use super::prompt::{Chat, Length, read_prompts};
use super::unsupported::{self, Routes};
use crate::baselines::Baseline;
use crate::engine::Drafting;
use crate::files::generation::SamplingDefaults;
use crate::method::Options;
use crate::profile::{self, Phase};
use crate::sampling::{Sampling, StopStrings};
use crate::text::{Prompt, TextRules};
use serde_json::Value;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which of the two routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// How answers are made.
#[derive(Clone, Debug)]
pub enum Method {
    /// Greedy, or sampled.
    Sampled(Sampling),
    /// The best of so many samples by reward.
    Best(Sampling, usize),
    /// By one of the methods that GGRO is compared with.
    Search(Sampling, Box<Baseline>),
    /// By gradient-guided reward optimisation.
    Guided(Box<Options>),
}

/// A request, checked as far as it can be without the engine.
#[derive(Debug)]
pub struct ApiRequest {
    /// The model's name as the request has it; the response repeats it.
    pub model: String,
    /// The prompts; a chat request has one.
    pub prompts: Vec<Prompt>,
    /// Answers per prompt.
    pub n: usize,
    /// Seed of the random numbers.
    pub seed: u64,
    /// How answers are made.
    pub method: Method,
    /// New tokens per prompt.
    pub max_new_tokens: Vec<usize>,
    /// What of an answer becomes text, and what ends it.
    pub rules: Arc<TextRules>,
    /// Ids that end an answer.
    pub stop_ids: Vec<u32>,
    /// How many of the most likely tokens are reported with each token; `None`: no log-probabilities.
    pub logprobs: Option<usize>,
    /// Whether the prompt is repeated in front of the answer.
    pub echo: bool,
    /// Whether the response streams.
    pub stream: bool,
    /// Whether the stream ends with a chunk of usage.
    pub include_usage: bool,
    /// Whether every chunk has the usage so far.
    pub continuous_usage: bool,
    /// Whether ids are returned besides text.
    pub return_token_ids: bool,
    /// Whether tokens of log-probabilities are written as `token_id:N`.
    pub tokens_as_ids: bool,
    /// Whether the record of every decision is returned.
    pub trace: bool,
    /// Whether tokens are guessed for it; `None`: as the server does for others.
    pub draft: Option<Drafting>,
    /// What keeps its prompts apart from those of others.
    pub cache_salt: Option<String>,
    /// Fields that were sent and have no effect.
    pub ignored: Vec<&'static str>,
    /// Fields that the server does not know.
    pub unknown: Vec<String>,
}

/// Fields of other servers that can be ignored: what they ask for happens anyway, or is not missed.
const HARMLESS: [&str; 14] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "prediction",
    "priority",
    "request_id",
    "spaces_between_special_tokens",
    "stream_interval",
    "safety_identifier",
    "prompt_cache_key",
    "verbosity",
    "reasoning_effort",
];

impl ApiRequest {
    /// Tokens that its response may have, each counted with the likely tokens that are reported beside it.
    pub fn entries(&self) -> usize {
        let each = 1 + self.logprobs.unwrap_or(0);
        let repeated = |prompt: &Prompt| if self.echo && self.logprobs.is_some() { prompt.ids.len() } else { 0 };
        let prompts = self.prompts.iter().zip(&self.max_new_tokens);
        let tokens = prompts.map(|(prompt, &new)| (repeated(prompt) + new).saturating_mul(self.n));
        tokens.fold(0, usize::saturating_add).saturating_mul(each)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn read(app: &AppState, route: Route, body: &[u8]) -> Result<ApiRequest, ApiError> {
        let _range = profile::range(Phase::Server, body.len());
        let mut fields = Fields::parse(body)?;
        let limits = &app.config.limits;
        let model = fields.text("model")?.unwrap_or_else(|| app.config.name.clone());
        let alias = app.alias(&model)?;
        let mut settings = MethodSettings::read(&mut fields)?;
        if settings.draft == Some(Drafting::Model) && !app.pair.has_draft() {
            let message = "is \"model\", and this server has no model that guesses (ggro serve --draft MODEL)";
            return Err(ApiError::field("ggro.draft", message));
        }
        let scores = app.pair.reward().is_ok();
        if let Some(field) = settings.given.filter(|_| !scores) {
            return Err(ApiError::field_without_reward(field));
        }
        let alias = if settings.given.is_some() && alias == Alias::Plain { Alias::Guided } else { alias };
        if let Alias::Control(proposals) = alias {
            settings.take_proposals(proposals, &model)?;
        }
        let guided = alias.guides();
        if let Some(field) = settings.given.filter(|_| alias.chooses()) {
            let message = format!("has no effect on {model}: its samples are not guided");
            return Err(ApiError::field(field, message));
        }
        let search = search(&mut fields, alias, &model, limits.n)?;

        // What is cut to the context's length has room for its answer.
        let asked = ["max_completion_tokens", "max_tokens"].into_iter().find_map(|name| fields.peek(name));
        let asked = asked.and_then(super::fields::whole).unwrap_or(1).max(1);
        let length = Length::read(&mut fields, app.context, app.context.saturating_sub(asked).max(1))?;
        let prompts = match route {
            Route::Chat => {
                let chat = Chat::read(&mut fields, limits.messages)?;
                vec![chat.lay_out(&app.pair, settings.layout, length)?]
            }
            Route::Completions => read_prompts(&mut fields, &app.pair, limits.prompts, length)?,
        };
        let prompt_field = if route == Route::Chat { "messages" } else { "prompt" };
        check_ids(app, &prompts).map_err(|message| ApiError::field(prompt_field, message))?;
        if prompts.len() > limits.running + limits.queue {
            let message = format!(
                "has {} texts, more than the {} that this server runs and queues",
                prompts.len(),
                limits.running + limits.queue
            );
            return Err(ApiError::field("prompt", message));
        }

        let n = fields.count("n", 1, limits.n)?.unwrap_or(1);
        let best_of = fields.count("best_of", 1, limits.n)?;
        if best_of.is_some_and(|best_of| best_of != n) {
            let message = match scores {
                true => format!("must equal `n`; the best of several by reward is the model {}:bon-8", app.config.name),
                false => "must equal `n`: there is no reward model that chooses".to_string(),
            };
            return Err(ApiError::field("best_of", message));
        }
        if n > 1 && guided && !settings.draws() {
            let message = "must be 1: the answers would be the same, unless `ggro.nudge_selection` is \"sample\" or \
                           `ggro.proposals` is \"random\" or \"shuffled-gradient\"";
            return Err(ApiError::field("n", message));
        }
        if n > 1 && alias.chooses() {
            return Err(ApiError::field("n", "must be 1: the model returns one of the texts that it tries"));
        }
        let seed = match fields.take("seed") {
            None => random(),
            Some(value) => match (value.as_u64(), value.as_i64()) {
                (Some(seed), _) => seed,
                (None, Some(seed)) => seed.cast_unsigned(),
                _ => return Err(fields.wrong("seed", "a whole number of 64 bits", &value)),
            },
        };
        let echo = match route {
            Route::Chat => false,
            Route::Completions => fields.flag("echo")?.unwrap_or(false),
        };
        let logprobs = logprobs(&mut fields, route, limits.logprobs)?;
        let (stop_ids, rules) = ends(app, &mut fields)?;
        let max_new_tokens = budgets(app, &mut fields, route, alias, &prompts, echo && logprobs.is_some())?;
        let (sampling, given) = sampling(app, &mut fields, &stop_ids)?;
        let sampling = Sampling { seed, logprobs, ..sampling };
        if let Some((id, bias)) = sampling.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            return Err(ApiError::field("logit_bias", format!("of id {id} must be a number, -100 to 100, not {bias}")));
        }
        sampling.check(app.pair.policy()?.config.vocab_size)?;
        if let Some(&most) = max_new_tokens.iter().min()
            && sampling.min_tokens > most as u64
        {
            let message =
                format!("must be at most the {most} tokens that the answer may have, not {}", sampling.min_tokens);
            return Err(ApiError::field("min_tokens", message));
        }
        let mut ignored = settings.ignored.clone();
        let preset = match alias {
            Alias::Preset(name) => Some(name.preset(app.pair.policy()?.config.num_parameters())),
            _ => None,
        };
        let method = match alias {
            Alias::Plain => Method::Sampled(sampling),
            Alias::Best(count) => Method::Best(sampling, count),
            Alias::Search(name) => {
                let Some(search) = search else { return Err(ApiError::internal(format!("{name} was not read"))) };
                for (prompt, &new) in prompts.iter().zip(&max_new_tokens) {
                    // Some parameters have to suit the prompt.
                    search.strategy(prompt.ids.len(), new).map_err(wrong_parameter)?;
                }
                let sampling = match search.samples() {
                    true => sampling,
                    false => {
                        unsampled(&sampling, name)?;
                        ignored.extend(given);
                        Sampling { seed, logprobs, ..Sampling::default() }
                    }
                };
                Method::Search(sampling, Box::new(search))
            }
            Alias::Guided | Alias::Control(_) | Alias::Preset(_) => {
                if !sampling.logit_bias.is_empty() {
                    let message =
                        "has no place in the method: it would change the distribution whose entropy is watched";
                    return Err(ApiError::field("logit_bias", message));
                }
                if sampling.min_tokens > 0 {
                    return Err(ApiError::field("min_tokens", "is for sampled answers"));
                }
                ignored.extend(given);
                // The method always ends at the end of turn.
                if !stop_ids.contains(&app.pair.policy()?.finish_id) {
                    ignored.push("ignore_eos");
                }
                let parameters = settings.parameters.over(preset.unwrap_or(app.config.preset))?;
                let options = Options { full_trace: settings.trace, ..parameters.options(&app.pair)? };
                let options = Options { stop_ids: with_end(app.pair.policy()?.finish_id, &stop_ids), ..options };
                options.check()?;
                Method::Guided(Box::new(options))
            }
        };
        let usage = fields.object("stream_options")?.unwrap_or_default();
        let mut usage = Fields::of(usage, "stream_options.");
        let request = ApiRequest {
            model,
            prompts,
            n,
            seed,
            method,
            max_new_tokens,
            rules,
            stop_ids,
            logprobs,
            echo,
            stream: fields.flag("stream")?.unwrap_or(false),
            include_usage: usage.flag("include_usage")?.unwrap_or(false),
            continuous_usage: usage.flag("continuous_usage_stats")?.unwrap_or(false),
            return_token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
            tokens_as_ids: fields.flag("return_tokens_as_token_ids")?.unwrap_or(false),
            trace: settings.trace,
            draft: settings.draft,
            cache_salt: cache_salt(&mut fields)?,
            ignored,
            unknown: Vec::new(),
        };
        let of_route = if route == Route::Chat { Routes::Chat } else { Routes::Completions };
        unsupported::refuse(&mut fields, &[Routes::Answers, of_route])?;
        for name in HARMLESS {
            fields.take(name);
        }
        let unknown = fields.unknown().into_iter().map(|name| name.chars().take(64).collect()).collect();
        Ok(ApiRequest { unknown, ..request })
    }
}

/// vLLM's `cache_salt`: prompts are shared between requests with the same one only.
///
/// # Errors
/// It is no string, or an empty one.
pub(super) fn cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    match fields.text("cache_salt")? {
        Some(salt) if salt.is_empty() => Err(ApiError::field("cache_salt", "must be a string that is not empty")),
        salt => Ok(salt),
    }
}

/// Refuses what changes the answers of a method that does not sample, and would be missed.
fn unsampled(sampling: &Sampling, method: &str) -> Result<(), ApiError> {
    if !sampling.logit_bias.is_empty() {
        return Err(ApiError::field(
            "logit_bias",
            format!("has no place in {method}: it takes the logits as they are"),
        ));
    }
    if sampling.min_tokens > 0 {
        return Err(ApiError::field("min_tokens", format!("is for sampled answers, and {method} does not sample")));
    }
    Ok(())
}

/// The stop ids, and the end of turn, at which the method always ends.
fn with_end(finish_id: u32, stop_ids: &[u32]) -> Vec<u32> {
    let mut stop_ids = stop_ids.to_vec();
    if !stop_ids.contains(&finish_id) {
        stop_ids.push(finish_id);
    }
    stop_ids
}

/// Checks ids that the client may have chosen itself.
fn check_ids(app: &AppState, prompts: &[Prompt]) -> Result<(), String> {
    let configs = [app.pair.policy().map(|policy| &policy.config), app.pair.reward().map(|reward| &reward.config)];
    let vocab = configs.into_iter().flatten().map(|config| config.vocab_size).min().unwrap_or(0);
    match prompts.iter().flat_map(|prompt| &prompt.ids).find(|&&id| id as usize >= vocab) {
        Some(id) => Err(format!("names id {id}, but there are only {vocab} ids")),
        None => Ok(()),
    }
}

/// How many of the most likely tokens are reported with each token.
fn logprobs(fields: &mut Fields, route: Route, most: usize) -> Result<Option<usize>, ApiError> {
    if route == Route::Completions {
        return fields.count("logprobs", 0, most);
    }
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, most)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::field("top_logprobs", "needs `logprobs`: true"));
    }
    Ok(wanted.then_some(top.unwrap_or(0)))
}

/// What ends an answer.
fn ends(app: &AppState, fields: &mut Fields) -> Result<(Vec<u32>, Arc<TextRules>), ApiError> {
    let pair = &app.pair;
    let strings = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) if list.len() > 16 => {
            return Err(ApiError::field("stop", format!("must hold at most 16 strings, not {}", list.len())));
        }
        Some(value) => match value.as_array().map(|list| list.iter().map(|text| text.as_str().map(str::to_string))) {
            Some(list) => match list.collect::<Option<Vec<String>>>() {
                Some(list) => list,
                None => return Err(fields.wrong("stop", "a string or a list of strings", &value)),
            },
            None => return Err(fields.wrong("stop", "a string or a list of strings", &value)),
        },
    };
    // Clients send empty strings for "none".
    let strings: Vec<String> = strings.into_iter().filter(|text| !text.is_empty()).collect();
    let stops = StopStrings::new(&strings).map_err(|error| ApiError::from(error).about("stop"))?;
    let listed = fields.get("stop_token_ids", "a list of at most 64 token ids", |value| {
        token_ids(value).filter(|ids| ids.len() <= 64)
    })?;
    let ignore_eos = fields.flag("ignore_eos")?.unwrap_or(false);
    let mut stop_ids = if ignore_eos { Vec::new() } else { pair.policy()?.stop_ids.clone() };
    for id in listed.unwrap_or_default() {
        let vocab = pair.policy()?.config.vocab_size;
        if id as usize >= vocab {
            return Err(ApiError::field("stop_token_ids", format!("names id {id}, but there are only {vocab} ids")));
        }
        if !stop_ids.contains(&id) {
            stop_ids.push(id);
        }
    }
    let rules = TextRules {
        stops,
        stop_ids: stop_ids.clone(),
        finish_ids: pair.policy()?.stop_ids.clone(),
        include_stop: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
        skip_special: fields.flag("skip_special_tokens")?.unwrap_or(true),
    };
    Ok((stop_ids, Arc::new(rules)))
}

/// New tokens for each prompt.
fn budgets(
    app: &AppState,
    fields: &mut Fields,
    route: Route,
    alias: Alias,
    prompts: &[Prompt],
    prompt_is_asked: bool,
) -> Result<Vec<usize>, ApiError> {
    let least = usize::from(!prompt_is_asked);
    let old = fields.count("max_tokens", least, usize::MAX)?;
    let new = if route == Route::Chat { fields.count("max_completion_tokens", least, usize::MAX)? } else { None };
    let name = if new.is_some() { "max_completion_tokens" } else { "max_tokens" };
    let asked = new.or(old);
    let cap = app.config.limits.tokens.unwrap_or(usize::MAX);
    if let Some(asked) = asked.filter(|&asked| asked > cap) {
        return Err(ApiError::field(name, format!("must be at most {cap}, the limit of this server, not {asked}")));
    }
    let preset = match alias {
        Alias::Preset(preset) => Some(preset.preset(app.pair.policy()?.config.num_parameters()).max_new_tokens),
        _ => None,
    };
    // OpenAI's default for completions is 16; an answer of a chat may use all of the context.
    let default = preset.unwrap_or(if route == Route::Completions { 16 } else { usize::MAX });
    let (context, prompt_field) = (app.context, if route == Route::Chat { "messages" } else { "prompt" });
    let budget = |prompt: &Prompt| {
        let len = prompt.ids.len();
        let room = context.saturating_sub(len);
        if len == 0 {
            return Err(ApiError::invalid("the prompt is empty").about(prompt_field));
        }
        if room < least {
            let message = format!("it has {len} tokens, and an answer does not fit");
            return Err(ApiError::too_long(context, &message).about(prompt_field));
        }
        match asked {
            Some(asked) if asked > room => {
                let message = format!("it has {len} tokens, and `{name}` is {asked}; lower that to {room} or less");
                Err(ApiError::too_long(context, &message).about(name))
            }
            Some(asked) => Ok(asked),
            None => Ok(default.min(room).min(cap).max(least)),
        }
    };
    prompts.iter().map(budget).collect()
}

/// How tokens are sampled, and which of the fields were sent with a value other than the neutral one.
fn sampling(app: &AppState, fields: &mut Fields, stop_ids: &[u32]) -> Result<(Sampling, Vec<&'static str>), ApiError> {
    let off = Sampling::default();
    let defaults: &SamplingDefaults = &app.config.sampling;
    // Clients disable a filter with 0 or -1.
    let top_k = match fields.take("top_k") {
        None => None,
        Some(value) if value == -1 => Some(0),
        Some(value) => {
            let read = super::fields::whole(&value);
            Some(read.ok_or_else(|| fields.wrong("top_k", "a whole number, -1 or more", &value))?)
        }
    };
    let bias = match fields.object("logit_bias")? {
        None => Vec::new(),
        Some(map) if map.len() > 1024 => {
            return Err(ApiError::field("logit_bias", format!("must name at most 1024 ids, not {}", map.len())));
        }
        Some(map) => {
            let read = |(id, bias): (String, Value)| Some((id.parse().ok()?, bias.as_f64()?));
            let read = map.into_iter().map(read).collect::<Option<Vec<(u32, f64)>>>();
            read.ok_or_else(|| ApiError::field("logit_bias", "must be an object of ids and numbers"))?
        }
    };
    let vocab = app.pair.policy()?.config.vocab_size;
    if let Some(&(id, _)) = bias.iter().find(|&&(id, _)| id as usize >= vocab) {
        return Err(ApiError::field("logit_bias", format!("names id {id}, but there are only {vocab} ids")));
    }
    let temperature = fields.number("temperature", 0.0, 100.0)?;
    let top_p = fields.number("top_p", 0.0, 1.0)?.map(|p| if p > 0.0 { p } else { off.top_p });
    let min_p = fields.number("min_p", 0.0, 1.0)?;
    let repetition_penalty = fields.number("repetition_penalty", 1e-6, 1e6)?;
    let presence_penalty = fields.number("presence_penalty", -2.0, 2.0)?;
    let frequency_penalty = fields.number("frequency_penalty", -2.0, 2.0)?;
    let changes = [
        ("temperature", temperature.is_some_and(|t| t != 0.0)),
        ("top_p", top_p.is_some_and(|p| p != off.top_p)),
        ("top_k", top_k.is_some_and(|k| k != off.top_k)),
        ("min_p", min_p.is_some_and(|p| p != off.min_p)),
        ("repetition_penalty", repetition_penalty.is_some_and(|r| r != off.repetition_penalty)),
        ("presence_penalty", presence_penalty.is_some_and(|p| p != off.presence_penalty)),
        ("frequency_penalty", frequency_penalty.is_some_and(|f| f != off.frequency_penalty)),
    ];
    let changes = changes.into_iter().filter(|(_, changes)| *changes).map(|(name, _)| name).collect();
    let given = Sampling {
        temperature: temperature.or(defaults.temperature).unwrap_or(1.0),
        top_k: top_k.or(defaults.top_k).unwrap_or(off.top_k),
        top_p: top_p.or(defaults.top_p).unwrap_or(off.top_p),
        min_p: min_p.or(defaults.min_p).unwrap_or(off.min_p),
        repetition_penalty: repetition_penalty.or(defaults.repetition_penalty).unwrap_or(off.repetition_penalty),
        presence_penalty: presence_penalty.unwrap_or(off.presence_penalty),
        frequency_penalty: frequency_penalty.unwrap_or(off.frequency_penalty),
        logit_bias: bias,
        min_tokens: fields.count("min_tokens", 0, 1 << 30)?.unwrap_or(0) as u64,
        suppress_ids: stop_ids.to_vec(),
        ..off.clone()
    };
    Ok((given, changes))
}

/// A seed for a request without one.
fn random() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u64(NEXT.fetch_add(1, Ordering::Relaxed));
    hasher.finish()
}
