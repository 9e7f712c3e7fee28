//! Tokens that stand beside `tokenizer.json`: in `tokenizer_config.json`, and in the files that were used before it.
//!
//! `transformers` adds them to the tokenizer when it loads one, so they are tokens there, with ids behind the vocabulary if it
//! does not have them. Their flags replace those of `tokenizer.json`.

use crate::files::checkpoint::Files;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use tokenizers::AddedToken;

const CONFIG: &str = "tokenizer_config.json";
/// What older tools wrote. They count only where the config does not list its added tokens.
const TOKEN_MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// Tokens with a part to play, in the order in which they are added.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token by its text, or with its flags.
#[derive(Clone)]
enum Declared {
    Text(String),
    Token(AddedToken),
}

impl Declared {
    fn text(&self) -> &str {
        match self {
            Declared::Text(text) => text,
            Declared::Token(token) => &token.content,
        }
    }
}

/// What is to be added to a tokenizer whose file has `own` added tokens, by id, and pads with `padding`.
///
/// # Errors
/// A file is malformed.
pub(super) fn tokens(files: &Files, own: &HashMap<u32, AddedToken>, padding: Option<&str>) -> Result<Vec<AddedToken>> {
    let mut config = TokenConfig::new(files.read_json(CONFIG)?.unwrap_or_default());
    let mut listed: BTreeMap<u32, AddedToken> = BTreeMap::new();
    let in_config = |message: String| Error::file(files.path(CONFIG), message);
    match config.fields.get("added_tokens_decoder") {
        Some(Value::Object(tokens)) => {
            for (id, token) in tokens {
                let name = format!("added_tokens_decoder.{id}");
                let id = id.parse().map_err(|_| in_config(format!("`{name}`: expected an id as its name")))?;
                listed.insert(id, token_of(&name, token, None).map_err(in_config)?);
            }
        }
        Some(found) if !found.is_null() => {
            return Err(in_config(format!("`added_tokens_decoder`: expected an object, found {found}")));
        }
        _ => {
            config.override_with(files.read_json(TOKEN_MAP)?.unwrap_or_default());
            let special: HashSet<String> = config
                .named(padding)
                .iter()
                .chain(&config.extra_list())
                .filter_map(|(_, value)| text_of(value))
                .collect();
            for (text, id) in files.read_json(ADDED)?.unwrap_or_default() {
                let id = id
                    .as_u64()
                    .and_then(|id| u32::try_from(id).ok())
                    .ok_or_else(|| Error::file(files.path(ADDED), format!("{text:?}: expected an id, found {id}")))?;
                let is_special = special.contains(&text);
                listed.insert(id, AddedToken::from(text, is_special));
            }
            listed.extend(own.iter().map(|(&id, token)| (id, token.clone())));
        }
    }

    let by_text: HashMap<String, AddedToken> =
        listed.values().map(|token| (token.content.clone(), token.clone())).collect();
    let mut all: Vec<Declared> = listed.into_values().map(Declared::Token).collect();
    let mut known: HashSet<String> = own.values().map(|token| token.content.clone()).collect();
    known.extend(by_text.keys().cloned());
    let mut parts = HashSet::new();
    let mut add = |declared: Declared| {
        if known.insert(declared.text().to_string()) {
            all.push(declared);
        }
    };
    for (name, value) in config.named(padding) {
        let Some(declared) = declared_of(&name, &value).map_err(in_config)? else { continue };
        parts.insert(declared.text().to_string());
        add(match by_text.get(declared.text()) {
            Some(token) => Declared::Token(token.clone()),
            None => declared,
        });
    }
    for (name, value) in config.extra_list() {
        if let Some(declared) = declared_of(&name, &value).map_err(in_config)? {
            add(declared);
        }
    }
    let finished = all.into_iter().map(|declared| match declared {
        Declared::Text(text) => AddedToken::from(text, true),
        Declared::Token(token) => AddedToken { special: token.special || parts.contains(&token.content), ..token },
    });
    // What the file has as it is needs no adding.
    let own: HashMap<&str, &AddedToken> = own.values().map(|token| (token.content.as_str(), token)).collect();
    Ok(finished.filter(|token| own.get(token.content.as_str()) != Some(&token)).collect())
}

/// What a config says of special tokens.
struct TokenConfig {
    fields: Map<String, Value>,
    /// Tokens with names of the model's own, and the names: any `*_token`, and an object of further ones.
    own: Vec<(String, Value)>,
    /// Further tokens without a part to play.
    extra: Option<Value>,
}

impl TokenConfig {
    fn new(mut fields: Map<String, Value>) -> Self {
        let mut extra = fields.shift_remove("extra_special_tokens");
        let says_nothing = match &extra {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        // The older key counts where the newer one says nothing.
        if says_nothing && let Some(older) = fields.shift_remove("additional_special_tokens") {
            extra = Some(older);
        }
        let own = |name: &str, value: &Value| own_name(name) && value.is_string();
        let mut own: Vec<(String, Value)> = fields
            .iter()
            .filter(|(name, value)| own(name, value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if let Some(Value::Object(map)) = extra {
            own.extend(map);
            extra = None;
        }
        TokenConfig { fields, own, extra }
    }

    /// Lets an older file's entries take the place of the config's.
    fn override_with(&mut self, older: Map<String, Value>) {
        for (name, value) in older {
            match (name.as_str(), value) {
                ("extra_special_tokens", Value::Object(map)) => self.own.extend(map),
                ("extra_special_tokens", Value::Array(more)) => match &mut self.extra {
                    Some(Value::Array(list)) => list.extend(more),
                    extra => *extra = Some(Value::Array(more)),
                },
                ("extra_special_tokens", value) => self.extra = Some(value),
                (_, value) => drop(self.fields.insert(name, value)),
            }
        }
        if self.extra.is_none() {
            self.extra = self.fields.shift_remove("additional_special_tokens");
        }
    }

    /// Tokens with a part to play, in the order in which they are added.
    fn named(&self, padding: Option<&str>) -> Vec<(String, Value)> {
        let usual = NAMED.iter().map(|&name| {
            let default = if name == "pad_token" { padding.map(Value::from) } else { None };
            (name.to_string(), self.fields.get(name).cloned().or(default).unwrap_or_default())
        });
        let is_own = |(name, _): &(String, Value)| self.own.iter().any(|(own, _)| own == name);
        let objects =
            self.fields.iter().filter(|(name, value)| own_name(name) && (value.is_string() || is_token(value)));
        let objects = objects.map(|(name, value)| (name.clone(), value.clone())).filter(|named| !is_own(named));
        usual.chain(objects).chain(self.own.iter().cloned()).collect()
    }

    fn extra_list(&self) -> Vec<(String, Value)> {
        match &self.extra {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list
                .iter()
                .enumerate()
                .map(|(index, value)| (format!("extra_special_tokens[{index}]"), value.clone()))
                .collect(),
            // Refused as no token.
            Some(found) => vec![("extra_special_tokens".to_string(), found.clone())],
        }
    }
}

/// Whether a key names a token of the model's own.
fn own_name(name: &str) -> bool {
    name.ends_with("_token") && !NAMED.contains(&name)
}

/// An object that older tools mark as a token.
fn is_token(value: &Value) -> bool {
    value.get("__type").is_some_and(|kind| kind == "AddedToken")
}

fn text_of(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}

fn declared_of(name: &str, value: &Value) -> std::result::Result<Option<Declared>, String> {
    match value {
        Value::Null => Ok(None),
        // An object without a text is none, as for templates.
        Value::Object(token) if token.get("content").is_none_or(Value::is_null) => Ok(None),
        Value::String(text) => Ok(Some(Declared::Text(text.clone()))),
        value => token_of(name, value, Some(true)).map(|token| Some(Declared::Token(token))),
    }
}

/// A token as an object of its text and flags. `special` is what it is if the object does not say.
fn token_of(name: &str, value: &Value, special: Option<bool>) -> std::result::Result<AddedToken, String> {
    let content = value.get("content").and_then(Value::as_str);
    let content = content.ok_or_else(|| format!("`{name}`: expected a token's text, found {value}"))?;
    let flag = |flag: &str| match value.get(flag) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(found)) => Ok(Some(*found)),
        Some(found) => Err(format!("`{name}.{flag}`: expected true or false, found {found}")),
    };
    let special = flag("special")?.or(special).unwrap_or(false);
    Ok(AddedToken {
        content: content.to_string(),
        single_word: flag("single_word")?.unwrap_or(false),
        lstrip: flag("lstrip")?.unwrap_or(false),
        rstrip: flag("rstrip")?.unwrap_or(false),
        normalized: flag("normalized")?.unwrap_or(!special),
        special,
    })
}
