//! What Python prints: numbers, JSON and dates, where minijinja's own words differ.

use chrono::format::{Item, StrftimeItems};
use chrono::{NaiveDateTime, Timelike};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Error, ErrorKind, Output, State, Value};
use std::fmt::Write;

/// Deepest nesting that is written as JSON; Python's own limit is of the same order.
const MAX_DEPTH: usize = 500;

/// Longest text that one value is written as, in bytes.
const MAX_TEXT: usize = 16 << 20;

/// Writes a value as `{{ value }}` does.
pub(super) fn write(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let escapes = !matches!(state.auto_escape(), AutoEscape::None) && !value.is_safe();
    let written = match string_of(value) {
        Some(text) if escapes => output.write_str(&escaped(text)),
        Some(text) => output.write_str(text),
        None if escapes => output.write_str(&escaped(&text(value)?)),
        None => output.write_str(&text(value)?),
    };
    written.map_err(|_| Error::from(ErrorKind::WriteFailure))
}

/// The text of a value that is one. (The engine takes bytes for a text, too.)
fn string_of(value: &Value) -> Option<&str> {
    value.as_str().filter(|_| value.kind() == ValueKind::String)
}

/// The `string` filter.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    match string_of(value) {
        Some(_) => Ok(value.clone()),
        None => Ok(Value::from(text(value)?)),
    }
}

/// `str(value)`. Lists that hold the same list many times have few items but a text without end, which would be charged for
/// only when it is written, so the writer is the one to stop.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match string_of(value) {
        Some(text) => Ok(text.to_string()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut bounded = Bounded(String::new());
    match represent(&mut bounded, value) {
        Ok(()) => Ok(bounded.0),
        Err(_) => Err(refused(format!("a value is longer than {MAX_TEXT} bytes as text"))),
    }
}

fn represent(out: &mut Bounded, value: &Value) -> std::fmt::Result {
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::String if value.is_safe() => {
            out.write_str("Markup(")?;
            quoted(out, value.as_str().unwrap_or_default().chars())?;
            out.write_char(')')
        }
        ValueKind::String => quoted(out, value.as_str().unwrap_or_default().chars()),
        ValueKind::Bytes => {
            out.write_char('b')?;
            quoted_bytes(out, value.as_bytes().unwrap_or_default())
        }
        ValueKind::Number => match as_float(value) {
            Some(number) => out.write_str(&float(number, "inf", "nan")),
            None => write!(out, "{value}"),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.write_char(if tuple { '(' } else { '[' })?;
            let mut count = 0;
            for item in value.try_iter().map_err(|_| std::fmt::Error)?.checked() {
                out.write_str(if count > 0 { ", " } else { "" })?;
                represent(out, &item.map_err(|_| std::fmt::Error)?)?;
                count += 1;
            }
            out.write_str(if tuple && count == 1 { "," } else { "" })?;
            out.write_char(if tuple { ')' } else { ']' })
        }
        ValueKind::Map if !is_macro(value) => {
            out.write_char('{')?;
            for (count, key) in value.try_iter().map_err(|_| std::fmt::Error)?.checked().enumerate() {
                let key = key.map_err(|_| std::fmt::Error)?;
                out.write_str(if count > 0 { ", " } else { "" })?;
                represent(out, &key)?;
                out.write_str(": ")?;
                represent(out, &value.get_item(&key).map_err(|_| std::fmt::Error)?)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// Whether a value is a macro or the loop, which look like maps and are none. The text of a map begins with a brace.
pub(super) fn is_macro(value: &Value) -> bool {
    let mut start = Start(String::new());
    let _ = write!(start, "{value}");
    value.kind() == ValueKind::Map && ["<macro ", "<loop"].iter().any(|text| start.0.starts_with(text))
}

/// The beginning of a text; to write more than that fails.
struct Start(String);

impl Write for Start {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.push_str(text);
        if self.0.len() < 8 { Ok(()) } else { Err(std::fmt::Error) }
    }
}

/// The special characters of HTML as entities.
pub(super) fn escaped(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => output.push_str("&amp;"),
            '<' => output.push_str("&lt;"),
            '>' => output.push_str("&gt;"),
            '\'' => output.push_str("&#39;"),
            '"' => output.push_str("&#34;"),
            c => output.push(c),
        }
    }
    output
}

/// A string in quotes, as `repr` chooses and escapes them.
fn quoted(out: &mut Bounded, chars: std::str::Chars<'_>) -> std::fmt::Result {
    let text = chars.as_str();
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in chars {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if is_printable(c) => out.write_char(c)?,
            c => match u32::from(c) {
                number @ ..0x100 => write!(out, "\\x{number:02x}")?,
                number @ ..0x10000 => write!(out, "\\u{number:04x}")?,
                number => write!(out, "\\U{number:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

fn quoted_bytes(out: &mut Bounded, bytes: &[u8]) -> std::fmt::Result {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for &byte in bytes {
        match byte {
            b'\\' => out.write_str("\\\\")?,
            b'\n' => out.write_str("\\n")?,
            b'\r' => out.write_str("\\r")?,
            b'\t' => out.write_str("\\t")?,
            byte if char::from(byte) == quote => write!(out, "\\{quote}")?,
            b' '..=b'~' => out.write_char(char::from(byte))?,
            byte => write!(out, "\\x{byte:02x}")?,
        }
    }
    out.write_char(quote)
}

/// `str.isprintable` of a character, without the code points that no character has.
pub(super) fn is_printable(c: char) -> bool {
    let unseen = matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff0}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || unseen)
}

/// `str.isspace` of a character, which is what `strip` and `split` go by.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if text.len() > MAX_TEXT - self.0.len() {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

pub(super) fn as_float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Number && !value.is_integer() { f64::try_from(value.clone()).ok() } else { None }
}

/// `repr(float)`: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(number: f64, infinity: &str, nan: &str) -> String {
    if number.is_nan() {
        return nan.to_string();
    }
    if number.is_infinite() {
        return if number < 0.0 { format!("-{infinity}") } else { infinity.to_string() };
    }
    if number == 0.0 || (1e-4..1e16).contains(&number.abs()) {
        return format!("{number:?}");
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The `tojson` filter of `transformers`: Python's `json.dumps` with its arguments, `ensure_ascii` off unless given, and
/// no escapes for HTML.
pub(super) fn tojson(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut positional = positional.0.into_iter();
    let mut argument = |name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.next() {
            Some(value) => Some(value),
            None => named.get(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = argument("ensure_ascii")?;
    let indent = argument("indent")?;
    let separators = argument("separators")?;
    let sort_keys = argument("sort_keys")?;
    named.assert_all_used()?;
    if positional.next().is_some() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }

    let indent = indent.map(|indent| match indent.as_str() {
        Some(text) => Ok(text.to_string()),
        None => {
            let width = i64::try_from(indent)?.clamp(0, 1024);
            Ok::<_, Error>(" ".repeat(width as usize))
        }
    });
    let indent = indent.transpose()?;
    let (item_separator, key_separator) = match separators {
        Some(pair) => {
            let texts: Vec<String> = pair.try_iter()?.map(|text| text.to_string()).collect();
            match <[String; 2]>::try_from(texts) {
                Ok([item, key]) => (item, key),
                Err(_) => return Err(refused("tojson: `separators` must be two texts".into())),
            }
        }
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let mut json = Json {
        state,
        text: String::new(),
        ensure_ascii: ensure_ascii.is_some_and(|value| value.is_true()),
        sort_keys: sort_keys.is_some_and(|value| value.is_true()),
        indent,
        item_separator,
        key_separator,
        depth: 0,
    };
    json.value(value)?;
    Ok(Value::from(json.text))
}

pub(super) fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

struct Json<'a> {
    state: &'a State<'a, 'a>,
    text: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    depth: usize,
}

impl Json<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        let before = self.text.len();
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value)?,
            ValueKind::Map => self.map(value)?,
            kind => {
                return Err(refused(format!("tojson: a value of type {kind} is not JSON serializable")));
            }
        }
        // Shared values can be written many times over, so the text is paid for while it grows.
        self.state.consume_fuel(1 + (self.text.len() - before) as u64 / 64)
    }

    fn number(&mut self, value: &Value) {
        match as_float(value) {
            Some(number) => self.text.push_str(&float(number, "Infinity", "NaN")),
            // Writing to a string does not fail.
            None => _ = write!(self.text, "{value}"),
        }
    }

    fn list(&mut self, value: &Value) -> Result<(), Error> {
        self.open('[')?;
        let mut empty = true;
        for item in value.try_iter()?.checked() {
            self.separate(&mut empty);
            self.value(&item?)?;
        }
        self.close(']', empty);
        Ok(())
    }

    fn map(&mut self, value: &Value) -> Result<(), Error> {
        let mut pairs = Vec::new();
        for key in value.try_iter()?.checked() {
            let key = key?;
            let item = value.get_item(&key)?;
            pairs.push((key, item));
        }
        if self.sort_keys {
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.open('{')?;
        let mut empty = true;
        for (key, item) in pairs {
            self.separate(&mut empty);
            match key.kind() {
                ValueKind::String => self.string(key.as_str().unwrap_or_default()),
                ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                    self.text.push('"');
                    self.value(&key)?;
                    self.text.push('"');
                }
                kind => {
                    return Err(refused(format!("tojson: a key of type {kind} is not JSON serializable")));
                }
            }
            self.text.push_str(&self.key_separator);
            self.value(&item)?;
        }
        self.close('}', empty);
        Ok(())
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(refused(format!("tojson: nested deeper than {MAX_DEPTH}")));
        }
        self.text.push(bracket);
        Ok(())
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.depth -= 1;
        if !empty {
            self.new_line();
        }
        self.text.push(bracket);
    }

    fn separate(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.text.push_str(&self.item_separator);
        }
        self.new_line();
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            for _ in 0..self.depth {
                self.text.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        _ = write!(self.text, "\\u{unit:04x}");
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }
}

/// `datetime.strftime` of a moment without a time zone: directives that C does not know are left as they are.
pub(super) fn strftime(moment: NaiveDateTime, format: &str) -> String {
    let mut output = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        output.push_str(&rest[..start]);
        let directive = &rest[start..];
        let mut ends = directive.char_indices().map(|(at, c)| at + c.len_utf8()).skip(1);
        let mut end = ends.next().unwrap_or(directive.len());
        // A flag: `%-d` is a day without its zero.
        if matches!(&directive[1..end], "-" | "_" | "0") {
            end = ends.next().unwrap_or(directive.len());
        }
        let directive = &directive[..end];
        match directive {
            "%f" => _ = write!(output, "{:06}", moment.nanosecond() / 1000),
            "%z" | "%Z" => {}
            _ => {
                let items = StrftimeItems::new(directive);
                let known = items.clone().all(|item| item != Item::Error);
                // Writing fails where a directive needs what the moment lacks.
                if !known || write!(output, "{}", moment.format_with_items(items)).is_err() {
                    output.push_str(directive);
                }
            }
        }
        rest = &rest[start + end..];
    }
    output.push_str(rest);
    output
}
