//! Python's two ways to format: `'%s' % value` and `'{}'.format(value)`.

use super::arguments::pay;
use super::python::{as_float, float, refused, repr, text};
use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};
use std::fmt::Write;

/// How a value is laid out: `[[fill]align][sign][#][0][width][grouping][.precision][kind]`.
#[derive(Clone, Debug, Default)]
struct FormatLayout {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Widest field and most digits: what is longer is no prompt.
const MOST: usize = 1 << 20;

/// Deepest nesting of fields inside layouts, as Python has it.
const DEEPEST: usize = 2;

fn too_wide() -> Error {
    refused(format!("a format asks for more than {MOST} characters"))
}

/// `template % values`: a tuple holds the values, a mapping names them, anything else is the only one.
pub(super) fn percent(state: &State, template: &str, values: &Value) -> Result<String, Error> {
    let list: Vec<Value> = match values.is_tuple() {
        true => values.try_iter()?.checked().collect::<Result<_, _>>()?,
        false => vec![values.clone()],
    };
    // What can be subscripted may name the values, so that Python does not ask whether all were used.
    let subscripted =
        !values.is_tuple() && matches!(values.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable);
    let mut waiting = list.into_iter();
    let mut output = String::new();
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        let incomplete = || refused("incomplete format".to_string());
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let (mut depth, mut key) = (1, String::new());
            loop {
                let c = chars.next().ok_or_else(incomplete)?;
                match c {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
                key.push(c);
            }
            if values.kind() != ValueKind::Map {
                return Err(refused("format requires a mapping".to_string()));
            }
            let value = values.as_object().and_then(|map| map.get_value(&Value::from(key.as_str())));
            named = Some(value.ok_or_else(|| refused(format!("the format names {key:?}, which is not there")))?);
        }
        let mut next = || waiting.next().ok_or_else(|| refused("not enough arguments for format string".to_string()));
        let mut layout = FormatLayout { align: Some('>'), ..FormatLayout::default() };
        while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => layout.align = Some('<'),
                '+' => layout.sign = Some('+'),
                ' ' => layout.sign = layout.sign.or(Some(' ')),
                '#' => layout.alternate = true,
                _ => layout.zero = true,
            }
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Result<Option<i64>, Error> {
            if chars.next_if_eq(&'*').is_some() {
                return Ok(Some(i64::try_from(next()?)?));
            }
            let mut found = None;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                found = Some((found.unwrap_or(0i64) * 10 + i64::from(digit)).min(MOST as i64 + 1));
            }
            Ok(found)
        };
        if let Some(width) = number(&mut chars)? {
            if width < 0 {
                layout.align = Some('<');
            }
            layout.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        }
        if chars.next_if_eq(&'.').is_some() {
            layout.precision = Some(usize::try_from(number(&mut chars)?.unwrap_or(0)).unwrap_or(0));
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        if layout.width > MOST || layout.precision.is_some_and(|precision| precision > MOST) {
            return Err(too_wide());
        }
        pay(state, layout.width + layout.precision.unwrap_or(0))?;
        let kind = chars.next().ok_or_else(incomplete)?;
        if kind == '%' {
            output.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?,
        };
        output.push_str(&layout.percent(kind, &value)?);
    }
    match waiting.next() {
        Some(_) if !subscripted => Err(refused("not all arguments converted during string formatting".to_string())),
        _ => Ok(output),
    }
}

/// A whole number, where a value is one; truth values are.
fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn real(value: &Value) -> Option<f64> {
    as_float(value).or_else(|| integer(value).map(|number| number as f64))
}

impl FormatLayout {
    /// One directive of `%`.
    fn percent(mut self, kind: char, value: &Value) -> Result<String, Error> {
        let needs =
            |what: &str| refused(format!("%{kind} format: {what} is required, not a value of type {}", value.kind()));
        if self.align == Some('<') {
            self.zero = false;
        }
        match kind {
            's' | 'r' | 'a' => {
                let text = match kind {
                    's' => text(value)?,
                    'r' => repr(value)?,
                    _ => ascii(&repr(value)?),
                };
                self.zero = false;
                Ok(self.padded(&self.cut(text)))
            }
            'c' => {
                let c = match (value.as_str(), integer(value)) {
                    (Some(text), _) if text.chars().count() == 1 => text.to_string(),
                    (_, Some(number)) => {
                        let c = u32::try_from(number).ok().and_then(char::from_u32);
                        c.ok_or_else(|| needs("a character"))?.to_string()
                    }
                    _ => return Err(needs("a character")),
                };
                self.zero = false;
                Ok(self.padded(&c))
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let number = match integer(value) {
                    Some(number) => number,
                    // Decimal digits are written of any number, others of a whole one.
                    None if !"xXo".contains(kind) => {
                        let number = as_float(value).ok_or_else(|| needs("a real number"))?;
                        if !number.is_finite() {
                            return Err(needs("a finite number"));
                        }
                        number.trunc() as i128
                    }
                    None => return Err(needs("an integer")),
                };
                let digits = digits(number, kind);
                let digits = match self.precision {
                    Some(least) => format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len()))),
                    None => digits,
                };
                let prefix = if self.alternate { prefix(kind) } else { "" };
                Ok(self.number(number < 0, prefix, &digits))
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let number = real(value).ok_or_else(|| needs("a real number"))?;
                let digits = decimal(number.abs(), kind, self.precision.unwrap_or(6), self.alternate);
                Ok(self.number(number.is_sign_negative() && !number.is_nan(), "", &digits))
            }
            _ => Err(refused(format!("unsupported format character {kind:?}"))),
        }
    }

    fn cut(&self, text: String) -> String {
        match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text,
        }
    }

    /// A number with its sign, grouped and filled.
    fn number(&self, negative: bool, prefix: &str, digits: &str) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let zeros = self.zero || (self.align == Some('=') && self.fill == Some('0'));
        let room = self.width.saturating_sub(sign.len() + prefix.len());
        let mut digits = digits.to_string();
        // Where the whole digits end.
        let whole =
            digits.find(|c: char| !c.is_ascii_hexdigit() || (c == 'e' && prefix.is_empty() && self.kind != Some('x')));
        let mut rest = digits.split_off(whole.unwrap_or(digits.len()));
        if zeros && digits.is_empty() {
            // Neither infinity nor what is no number has digits, but zeros stand in front of both.
            std::mem::swap(&mut digits, &mut rest);
        }
        let group = if matches!(self.kind, Some('x' | 'X' | 'o' | 'b')) { 4 } else { 3 };
        let grouped = |digits: &str| match self.grouping {
            Some(separator) => grouped(digits, separator, group),
            None => digits.to_string(),
        };
        let mut written = grouped(&digits);
        if zeros {
            while written.len() + rest.len() < room {
                digits.insert(0, '0');
                written = match self.grouping {
                    Some(_) => grouped(&digits),
                    None => "0".repeat(room - written.len() - rest.len()) + &written,
                };
            }
        }
        let text = format!("{written}{rest}");
        if self.align == Some('=') && !zeros {
            let fill = self.fill.unwrap_or(' ').to_string();
            return format!("{sign}{prefix}{}{text}", fill.repeat(room.saturating_sub(text.chars().count())));
        }
        let align = self.align.or(Some('>'));
        FormatLayout { align, ..self.clone() }.padded(&format!("{sign}{prefix}{text}"))
    }

    fn padded(&self, text: &str) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        let fill = self.fill.unwrap_or(' ').to_string();
        let left = match self.align {
            Some('>') => missing,
            Some('^') => missing / 2,
            _ => 0,
        };
        format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
    }

    /// Reads the part of a field behind its colon.
    fn parse(spec: &str) -> Result<FormatLayout, Error> {
        let invalid = || refused(format!("invalid format specifier {spec:?}"));
        let mut layout = FormatLayout::default();
        let chars: Vec<char> = spec.chars().collect();
        let is_align = |c: Option<&char>| c.is_some_and(|c| "<>=^".contains(*c));
        let mut at = 0;
        if is_align(chars.get(1)) {
            (layout.fill, layout.align, at) = (Some(chars[0]), Some(chars[1]), 2);
        } else if is_align(chars.first()) {
            (layout.align, at) = (Some(chars[0]), 1);
        }
        let mut take = |of: &str| {
            let found = chars.get(at).copied().filter(|c| of.contains(*c));
            at += usize::from(found.is_some());
            found
        };
        layout.sign = take("+- ");
        let _ = take("z");
        layout.alternate = take("#").is_some();
        if take("0").is_some() {
            layout.zero = layout.align.is_none_or(|align| align == '=');
            layout.fill = layout.fill.or(Some('0'));
        }
        let number = |take: &mut dyn FnMut(&str) -> Option<char>| -> Result<Option<usize>, Error> {
            let mut found = None;
            while let Some(digit) = take("0123456789").and_then(|c| c.to_digit(10)) {
                found = Some(found.unwrap_or(0) * 10 + digit as usize);
                if found.is_some_and(|found| found > MOST) {
                    return Err(too_wide());
                }
            }
            Ok(found)
        };
        layout.width = number(&mut take)?.unwrap_or(0);
        layout.grouping = take(",_");
        if take(".").is_some() {
            layout.precision = Some(number(&mut take)?.ok_or_else(invalid)?);
        }
        layout.kind = take("bcdeEfFgGnosxX%");
        if at < chars.len() { Err(invalid()) } else { Ok(layout) }
    }

    /// `format(value, spec)`.
    fn format(self, value: &Value) -> Result<String, Error> {
        let unknown =
            |kind: char| refused(format!("unknown format code {kind:?} for a value of type {}", value.kind()));
        if value.as_str().is_some() {
            let kind = self.kind.unwrap_or('s');
            if kind != 's' || self.sign.is_some() || self.grouping.is_some() || self.align == Some('=') {
                return Err(unknown(kind));
            }
            return Ok(self.padded(&self.cut(text(value)?)));
        }
        if let (Some(number), None | Some('b' | 'c' | 'd' | 'n' | 'o' | 'x' | 'X')) = (integer(value), self.kind) {
            if self.precision.is_some() {
                return Err(refused("precision not allowed in an integer's format".to_string()));
            }
            let kind = self.kind.unwrap_or('d');
            if kind == 'c' {
                let c = u32::try_from(number).ok().and_then(char::from_u32).ok_or_else(|| unknown('c'))?;
                return Ok(FormatLayout { align: self.align.or(Some('<')), ..self }.padded(&c.to_string()));
            }
            let prefix = if self.alternate { prefix(kind) } else { "" };
            return Ok(self.number(number < 0, prefix, &digits(number, kind)));
        }
        if let Some(number) = real(value) {
            let digits = match (self.kind, self.precision) {
                (Some('%'), precision) => {
                    let digits = decimal((number * 100.0).abs(), 'f', precision.unwrap_or(6), self.alternate);
                    digits + "%"
                }
                (Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')), precision) => {
                    decimal(number.abs(), kind, precision.unwrap_or(6), self.alternate)
                }
                (Some('n'), precision) => decimal(number.abs(), 'g', precision.unwrap_or(6), self.alternate),
                (None, None) => float(number.abs(), "inf", "nan"),
                (None, Some(precision)) => shortened(number.abs(), precision),
                (Some(kind), _) => return Err(unknown(kind)),
            };
            return Ok(self.number(number.is_sign_negative() && !number.is_nan(), "", &digits));
        }
        Err(refused(format!("a value of type {} takes no format", value.kind())))
    }
}

fn digits(number: i128, kind: char) -> String {
    let number = number.unsigned_abs();
    match kind {
        'x' => format!("{number:x}"),
        'X' => format!("{number:X}"),
        'o' => format!("{number:o}"),
        'b' => format!("{number:b}"),
        _ => number.to_string(),
    }
}

fn prefix(kind: char) -> &'static str {
    match kind {
        'x' => "0x",
        'X' => "0X",
        'o' => "0o",
        'b' => "0b",
        _ => "",
    }
}

fn grouped(digits: &str, separator: char, size: usize) -> String {
    let mut output = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(size) {
            output.push(separator);
        }
        output.push(digit);
    }
    output
}

/// A number without its sign, as C's `printf` writes it.
fn decimal(number: f64, kind: char, precision: usize, alternate: bool) -> String {
    // A number has no more digits than that, so that the rest are zeros.
    let exact = precision.min(1100);
    let zeros = "0".repeat(precision - exact);
    let text = match kind.to_ascii_lowercase() {
        _ if number.is_nan() => "nan".to_string(),
        _ if number.is_infinite() => "inf".to_string(),
        'f' => {
            let point = if precision == 0 && alternate { "." } else { "" };
            format!("{number:.exact$}{zeros}{point}")
        }
        'e' => {
            let (digits, exponent) = scientific(number, exact);
            let point = if precision == 0 && alternate { "." } else { "" };
            format!("{digits}{zeros}{point}{}", exponent_of(exponent))
        }
        _ => {
            let precision = exact.max(1);
            let (digits, exponent) = scientific(number, precision - 1);
            let in_full = (-4..i64::try_from(precision).unwrap_or(i64::MAX)).contains(&exponent);
            let (digits, tail) = match in_full {
                true => {
                    let decimals = usize::try_from(precision as i64 - 1 - exponent).unwrap_or(0);
                    (format!("{number:.decimals$}"), String::new())
                }
                false => (digits, exponent_of(exponent)),
            };
            let digits = match alternate {
                true => digits,
                false if digits.contains('.') => digits.trim_end_matches('0').trim_end_matches('.').to_string(),
                false => digits,
            };
            digits + &tail
        }
    };
    if kind.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text }
}

/// A format with a precision and no kind: as `g`, but there is always a digit behind the point.
fn shortened(number: f64, precision: usize) -> String {
    if !number.is_finite() {
        return decimal(number, 'g', precision, false);
    }
    let precision = precision.clamp(1, 1100);
    let (digits, exponent) = scientific(number, precision - 1);
    if (-4..precision as i64 - 1).contains(&exponent) {
        let text = decimal(number, 'g', precision, false);
        return if text.contains('.') { text } else { text + ".0" };
    }
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => digits,
    };
    digits + &exponent_of(exponent)
}

/// The digits of a number with one before the point, and its exponent.
fn scientific(number: f64, precision: usize) -> (String, i64) {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    (digits.to_string(), exponent.parse().unwrap_or(0))
}

fn exponent_of(exponent: i64) -> String {
    format!("e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
}

/// A text with escapes for all that is not ASCII.
fn ascii(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            ..0x80 => output.push(c),
            number @ ..0x100 => drop(write!(output, "\\x{number:02x}")),
            number @ ..0x10000 => drop(write!(output, "\\u{number:04x}")),
            number => drop(write!(output, "\\U{number:08x}")),
        }
    }
    output
}

/// `template.format(*positional, **named)`.
pub(super) fn braces(state: &State, template: &str, positional: &[Value], named: &Value) -> Result<String, Error> {
    FormatFields { state, positional, named, next: Some(0) }.fill(template, 0)
}

struct FormatFields<'a, 's> {
    state: &'a State<'s, 's>,
    positional: &'a [Value],
    named: &'a Value,
    /// The number of the next field without a name; `None` once a field had a number.
    next: Option<usize>,
}

impl FormatFields<'_, '_> {
    fn fill(&mut self, template: &str, depth: usize) -> Result<String, Error> {
        let mut output = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            output.push_str(&rest[..at]);
            let (brace, behind) = rest[at..].split_at(1);
            if let Some(behind) = behind.strip_prefix(brace) {
                output.push_str(brace);
                rest = behind;
                continue;
            }
            if brace == "}" {
                return Err(refused("single '}' encountered in format string".to_string()));
            }
            let mut open = 1;
            let end = behind.char_indices().find(|&(_, c)| {
                open += i32::from(c == '{') - i32::from(c == '}');
                open == 0
            });
            let (end, _) = end.ok_or_else(|| refused("expected '}' before end of string".to_string()))?;
            output.push_str(&self.field(&behind[..end], depth)?);
            rest = &behind[end + 1..];
        }
        output.push_str(rest);
        Ok(output)
    }

    /// `name!conversion:layout`
    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        let mut inside = false;
        let end = field.char_indices().find(|&(_, c)| {
            inside = if inside { c != ']' } else { c == '[' };
            !inside && (c == '!' || c == ':')
        });
        let (name, rest) = field.split_at(end.map_or(field.len(), |(at, _)| at));
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => match rest.split_once(':') {
                Some((conversion, spec)) => (Some(conversion), spec),
                None => (Some(rest), ""),
            },
            None => (None, rest.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some("s") => text(&value)?.into(),
            Some("r") => repr(&value)?.into(),
            Some("a") => ascii(&repr(&value)?).into(),
            Some(other) => return Err(refused(format!("unknown conversion specifier {other:?}"))),
        };
        let spec = match spec.contains(['{', '}']) {
            true if depth + 1 >= DEEPEST => return Err(refused("a format is nested too deeply".to_string())),
            true => self.fill(spec, depth + 1)?,
            false => spec.to_string(),
        };
        let text = match spec.is_empty() {
            true => text(&value)?,
            false => {
                let layout = FormatLayout::parse(&spec)?;
                pay(self.state, layout.width + layout.precision.unwrap_or(0))?;
                layout.format(&value)?
            }
        };
        pay(self.state, text.len())?;
        Ok(text)
    }

    /// `0`, `name`, or neither for the next one; then attributes and subscripts.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let missing = |what: &dyn std::fmt::Display| refused(format!("the format names {what}, which is not given"));
        let at = match (first.is_empty(), first.parse::<usize>()) {
            (true, _) => {
                let at = self.next.ok_or_else(|| refused("fields with and without numbers are mixed".to_string()))?;
                self.next = Some(at + 1);
                Some(at)
            }
            (false, Ok(at)) if self.next.is_none_or(|next| next == 0) => {
                self.next = None;
                Some(at)
            }
            (false, Ok(_)) => return Err(refused("fields with and without numbers are mixed".to_string())),
            (false, Err(_)) => None,
        };
        let mut value = match at {
            Some(at) => self.positional.get(at).cloned().ok_or_else(|| missing(&at))?,
            None => {
                let value = self.named.as_object().and_then(|map| map.get_value(&Value::from(first)));
                value.ok_or_else(|| missing(&first))?
            }
        };
        while !rest.is_empty() {
            value = if let Some(behind) = rest.strip_prefix('.') {
                let end = behind.find(['.', '[']).unwrap_or(behind.len());
                rest = &behind[end..];
                value.get_attr(&behind[..end])?
            } else {
                let (key, behind) = rest
                    .strip_prefix('[')
                    .and_then(|rest| rest.split_once(']'))
                    .ok_or_else(|| refused("expected ']' before end of string".to_string()))?;
                rest = behind;
                match key.parse::<usize>() {
                    Ok(at) => value.get_item(&Value::from(at))?,
                    Err(_) => value.get_item(&Value::from(key))?,
                }
            };
        }
        Ok(value)
    }
}
