//! Fields of a JSON object that is not trusted: each has a type and a range, and a message that names it.

use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// A message without the file's name, which the caller puts before it.
pub(super) type FieldResult<T> = std::result::Result<T, String>;

/// Typed access to the fields of a JSON object, with messages that name the field. Null is the same as absent, except where
/// [`or`](Fields::or) and [`is_null`](Fields::is_null) tell them apart.
pub(super) struct Fields<'a> {
    pub map: &'a Map<String, Value>,
    /// Of the field's name in messages: the enclosing object.
    pub prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub fn missing(&self, name: &str) -> String {
        format!("`{}{name}` is missing", self.prefix)
    }

    pub fn wrong(&self, name: &str, expected: &str, found: &Value) -> String {
        format!("`{}{name}`: expected {expected}, found {}", self.prefix, show(found))
    }

    pub fn integer(&self, name: &str, range: RangeInclusive<u64>) -> FieldResult<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(integer) if range.contains(&integer) => Ok(Some(integer as usize)),
            _ => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &expected, value))
            }
        }
    }

    /// A number that has a default if it is absent, and must not be null.
    pub fn or(&self, name: &str, range: RangeInclusive<u64>, default: usize) -> FieldResult<usize> {
        match self.integer(name, range.clone())? {
            Some(found) => Ok(found),
            None if self.is_null(name) => Err(self.null(name, range)),
            None => Ok(default),
        }
    }

    pub fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    pub fn null(&self, name: &str, range: RangeInclusive<u64>) -> String {
        self.wrong(name, &format!("an integer from {} to {}", range.start(), range.end()), &Value::Null)
    }

    pub fn number(&self, name: &str, expected: &str, ok: fn(f64) -> bool) -> FieldResult<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number.is_finite() && ok(number) => Ok(Some(number)),
            _ => Err(self.wrong(name, expected, value)),
        }
    }

    pub fn flag(&self, name: &str, default: bool) -> FieldResult<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(found) => Err(self.wrong(name, "true or false", found)),
        }
    }

    pub fn object(&self, name: &'static str) -> FieldResult<Option<Fields<'a>>> {
        let prefix = match name {
            "rope_scaling" => "rope_scaling.",
            _ => "rope_parameters.",
        };
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix })),
            Some(found) => Err(self.wrong(name, "an object", found)),
        }
    }
}

/// A value in a message, cut short if it is long.
pub(super) fn show(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
