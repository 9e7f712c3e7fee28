//! JSON bodies, read field by field, so that a message can name the field, what it must be and what it is.

use super::error::ApiError;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

type FieldResult<T> = Result<T, ApiError>;

/// An object's fields, and which of them were read. `null` counts as absent.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    prefix: String,
    known: BTreeSet<&'static str>,
}

/// The largest whole number below which every whole number is exact in an `f64`.
const EXACT: f64 = (1u64 << 53) as f64;

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// It is not JSON, or not an object.
    pub fn parse(body: &[u8]) -> FieldResult<Fields> {
        // Some editors put a byte order mark in front of what they save.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let value: Value =
            serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("the body is not JSON: {e}")))?;
        match value {
            Value::Object(map) => Ok(Fields::of(map, "")),
            other => Err(ApiError::invalid(format!("the body must be a JSON object, not {}", kind(&other)))),
        }
    }

    /// The fields of an object inside the body; `prefix` stands before their names in messages.
    pub fn of(map: Map<String, Value>, prefix: &str) -> Fields {
        Fields { map, prefix: prefix.to_string(), known: BTreeSet::new() }
    }

    /// Takes a field out; `None` if it is `null` or absent.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.insert(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field, which stays; `None` if it is `null` or absent.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether there is a field of this name.
    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field read with `read`, which returns `None` for a value it cannot use.
    ///
    /// # Errors
    /// `read` returned `None`; the message says what was `expected`.
    pub fn get<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> FieldResult<Option<T>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.wrong(name, expected, &value)),
        }
    }

    /// The error of a field that is not what was expected.
    pub fn wrong(&self, name: &str, expected: &str, found: &Value) -> ApiError {
        ApiError::field(&self.name(name), format!("must be {expected}, not {}", kind(found)))
    }

    /// A field's name with the prefix.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A boolean.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn flag(&mut self, name: &'static str) -> FieldResult<Option<bool>> {
        self.get(name, "true or false", Value::as_bool)
    }

    /// A whole number from `least` to `most`.
    ///
    /// # Errors
    /// The value is of another type or out of range.
    pub fn count(&mut self, name: &'static str, least: usize, most: usize) -> FieldResult<Option<usize>> {
        let expected = match most {
            usize::MAX => format!("a whole number, {least} or more"),
            _ => format!("a whole number, {least} to {most}"),
        };
        self.get(name, &expected, |value| whole(value).filter(|n| (least..=most).contains(n)))
    }

    /// A number from `least` to `most`.
    ///
    /// # Errors
    /// The value is of another type or out of range.
    pub fn number(&mut self, name: &'static str, least: f64, most: f64) -> FieldResult<Option<f64>> {
        let expected = match least > f64::MIN && most < f64::MAX {
            true => format!("a number, {least} to {most}"),
            false => "a number".to_string(),
        };
        self.get(name, &expected, |value| value.as_f64().filter(|x| (least..=most).contains(x)))
    }

    /// A string.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn text(&mut self, name: &'static str) -> FieldResult<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    /// An object.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn object(&mut self, name: &'static str) -> FieldResult<Option<Map<String, Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    /// Fields that are present and were never read.
    pub fn unknown(&self) -> Vec<&str> {
        let unknown = self.map.iter().filter(|(name, value)| !value.is_null() && !self.known.contains(name.as_str()));
        unknown.map(|(name, _)| name.as_str()).collect()
    }

    /// Every field that was read.
    pub fn known(&self) -> Vec<&'static str> {
        self.known.iter().copied().collect()
    }
}

/// A whole number, written as an integer or as a float.
pub fn whole(value: &Value) -> Option<usize> {
    let exact = |x: &f64| (0.0..=EXACT).contains(x) && x.fract() == 0.0;
    let number = value.as_u64().or_else(|| value.as_f64().filter(exact).map(|x| x as u64))?;
    usize::try_from(number).ok()
}

/// A token id.
pub fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

/// Token ids.
pub fn token_ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(token_id).collect()
}

/// A short description of a value, for messages.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_string(),
        Value::Array(entries) => format!("a list of {}", entries.len()),
        Value::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn numbers_have_bounds_and_names() {
        for (text, message) in [
            (r#"{"n": -1}"#, "`n` must be a whole number, 1 to 64, not -1"),
            (r#"{"n": 65}"#, "`n` must be a whole number, 1 to 64, not 65"),
            (r#"{"n": 1e300}"#, "`n` must be a whole number, 1 to 64, not 1e+300"),
            (r#"{"n": 1.5}"#, "`n` must be a whole number, 1 to 64, not 1.5"),
            (r#"{"n": "2"}"#, "`n` must be a whole number, 1 to 64, not \"2\""),
            (r#"{"n": 99999999999999999999999}"#, "`n` must be a whole number, 1 to 64, not 1e+23"),
        ] {
            let error = fields(text).count("n", 1, 64).unwrap_err();
            assert_eq!((error.message.as_str(), error.param.as_deref()), (message, Some("n")));
        }
        assert_eq!(fields(r#"{"n": 3}"#).count("n", 1, 64).unwrap(), Some(3));
        assert_eq!(fields(r#"{"n": 3.0}"#).count("n", 1, 64).unwrap(), Some(3));
        assert_eq!(fields(r#"{"n": null}"#).count("n", 1, 64).unwrap(), None);
    }

    #[test]
    fn what_was_never_asked_for_is_unknown() {
        let mut fields = fields(r#"{"a": 1, "b": null, "c": [1]}"#);
        fields.count("a", 0, 9).unwrap();
        assert_eq!(fields.unknown(), ["c"]);
        assert_eq!(fields.known(), ["a"]);
    }

    #[test]
    fn bodies_that_are_none() {
        for (body, part) in [
            (&b"{"[..], "not JSON"),
            (b"[1]", "must be a JSON object, not a list of 1"),
            (b"\xff\xfe{}", "not JSON"),
            (b"", "not JSON"),
        ] {
            assert!(Fields::parse(body).unwrap_err().message.contains(part));
        }
        let deep = "[".repeat(100_000);
        assert!(Fields::parse(deep.as_bytes()).unwrap_err().message.contains("recursion limit"));
    }
}
