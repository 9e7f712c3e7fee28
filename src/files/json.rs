//! JSON as Python writes it: with a byte order mark, if an editor put one there, and with `NaN` and `Infinity`.

use super::recognise;
use serde::de::DeserializeOwned;

/// Reads JSON. A number that JSON does not have becomes a text of its name, so that whoever needs the number refuses it by
/// name, and everybody else is not bothered.
///
/// The error is what stands in its place, for a message that begins with what was expected.
pub(super) fn parse<T: DeserializeOwned>(content: &[u8]) -> Result<T, String> {
    let plain = without_mark(content);
    let error = match serde_json::from_slice(plain) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    if let Some(named) = with_named_numbers(plain)
        && let Ok(value) = serde_json::from_slice(&named)
    {
        return Ok(value);
    }
    Err(match recognise::content(plain) {
        Some(found) => format!(", found {found}"),
        None => format!(": {error}"),
    })
}

/// What is wrong with JSON that stands on one line, whose number the caller names.
pub(crate) fn in_line(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    match text.strip_suffix(&format!(" at line {line} column {column}")) {
        Some(what) => format!("{what} at column {column}"),
        None => text,
    }
}

/// Content without the byte order mark that some editors write before UTF-8.
pub(super) fn without_mark(content: &[u8]) -> &[u8] {
    content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content)
}

/// The numbers that Python's JSON has and JSON has not, as texts; `None` if there is none of them.
fn with_named_numbers(content: &[u8]) -> Option<Vec<u8>> {
    const NAMES: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(content.len() + 64);
    let (mut rest, mut in_string, mut found) = (content, false, false);
    while let Some((&byte, tail)) = rest.split_first() {
        if in_string && byte == b'\\' {
            // An escape: what follows, a quote among them, does not end the string.
            let (escape, tail) = rest.split_at(rest.len().min(2));
            out.extend_from_slice(escape);
            rest = tail;
            continue;
        }
        if byte == b'"' {
            in_string = !in_string;
        }
        let name = NAMES.iter().find(|name| !in_string && rest.starts_with(name));
        if let Some(name) = name {
            out.push(b'"');
            out.extend_from_slice(name);
            out.push(b'"');
            rest = &rest[name.len()..];
            found = true;
            continue;
        }
        out.push(byte);
        rest = tail;
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn as_python_writes_it() {
        let read = |text: &str| parse::<Value>(text.as_bytes());
        assert_eq!(read("\u{feff}{\"a\": 1}"), Ok(json!({"a": 1})));
        assert_eq!(
            read(r#"{"a": NaN, "b": [Infinity, -Infinity], "c": "NaN \" Infinity"}"#),
            Ok(json!({"a": "NaN", "b": ["Infinity", "-Infinity"], "c": "NaN \" Infinity"}))
        );
        for bad in ["NaNa", "{\"a\": -NaN}", "{\"a\": \"\\", "\\", "{NaN: 1", "-"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let error = serde_json::from_str::<Value>("{").unwrap_err();
        assert_eq!(in_line(&error), "EOF while parsing an object at column 1");
        assert!(read("").is_err_and(|e| e.contains("empty")));
        assert!(read("{").is_err_and(|e| e.contains("EOF")));
    }
}
