//! Methods of Python's texts, lists, dictionaries and numbers.

use super::arguments::{is_true, needed, of_method, pay, text_of, whole};
use super::format;
use super::python::{as_float, is_printable, is_space, refused, text};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Calls a method that the engine does not know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let known = match value.kind() {
        ValueKind::String => of_text(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => {
            let [] = of_method(args, [])?;
            let mut pairs = Vec::new();
            for key in value.try_iter()?.checked() {
                let key = key?;
                pairs.push((key.clone(), value.get_item(&key)?));
            }
            Some(Value::from_pairs(pairs))
        }
        ValueKind::Number if method == "is_integer" => {
            let [] = of_method(args, [])?;
            Some(as_float(value).is_none_or(|number| number.fract() == 0.0).into())
        }
        ValueKind::Bytes if method == "decode" => {
            let [_, _] = of_method(args, ["encoding", "errors"])?;
            let bytes = value.as_bytes().unwrap_or_default();
            let text = std::str::from_utf8(bytes).map_err(|_| refused("the bytes are not UTF-8".to_string()))?;
            Some(text.into())
        }
        _ => None,
    };
    match known {
        Some(value) => Ok(value),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let items = || value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>();
    Ok(Some(match method {
        "copy" if !value.is_tuple() => {
            let [] = of_method(args, [])?;
            items()?.into()
        }
        "count" => {
            let [wanted] = of_method(args, ["value"])?;
            let wanted = wanted.unwrap_or(Value::from(()));
            items()?.iter().filter(|item| **item == wanted).count().into()
        }
        "index" => {
            let [wanted, start, stop] = of_method(args, ["value", "start", "stop"])?;
            let (items, wanted) = (items()?, wanted.unwrap_or(Value::from(())));
            let bound = |at: i64| usize::try_from(if at < 0 { at + items.len() as i64 } else { at }).unwrap_or(0);
            let (start, stop) = (whole(start)?.map_or(0, bound), whole(stop)?.map_or(items.len(), bound));
            let found = items.iter().enumerate().take(stop).skip(start).find(|(_, item)| **item == wanted);
            let (at, _) = found.ok_or_else(|| refused("the value is not in the list".to_string()))?;
            at.into()
        }
        _ => return Ok(None),
    }))
}

/// A method of a text; `None` for one that is left to the engine.
fn of_text(state: &mut State, this: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let none = || of_method(args, []).map(|[]| ());
    let all = |test: fn(char) -> bool| -> Result<Value, Error> {
        none()?;
        Ok((!this.is_empty() && this.chars().all(test)).into())
    };
    Ok(Some(match method {
        "isalnum" => all(|c| c.is_alphabetic() || c.is_numeric())?,
        "isalpha" => all(char::is_alphabetic)?,
        "isascii" => {
            none()?;
            this.is_ascii().into()
        }
        "isdecimal" => all(is_decimal)?,
        "isdigit" => all(|c| is_decimal(c) || is_other_digit(c))?,
        "isnumeric" => all(char::is_numeric)?,
        "isspace" => all(is_space)?,
        "isprintable" => {
            none()?;
            this.chars().all(is_printable).into()
        }
        "isidentifier" => {
            let letter = |c: char| c.is_alphabetic() || c == '_';
            let word = this.chars().enumerate().all(|(at, c)| letter(c) || (at > 0 && is_decimal(c)));
            none()?;
            (!this.is_empty() && word).into()
        }
        "islower" | "isupper" => {
            none()?;
            let [wanted, other]: [fn(char) -> bool; 2] = match method {
                "islower" => [char::is_lowercase, char::is_uppercase],
                _ => [char::is_uppercase, char::is_lowercase],
            };
            (this.chars().any(wanted) && !this.chars().any(other)).into()
        }
        "istitle" => {
            none()?;
            is_title(this).into()
        }
        "capitalize" => {
            none()?;
            capitalized(this).into()
        }
        "title" => {
            none()?;
            title(this).into()
        }
        "swapcase" => {
            none()?;
            swapped(this).into()
        }
        "casefold" => {
            none()?;
            folded(this).into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = of_method(args, ["chars"])?;
            let chars = text_of(chars, "chars")?;
            let out = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
            let rest = if method == "rstrip" { this } else { this.trim_start_matches(out) };
            if method == "lstrip" { rest } else { rest.trim_end_matches(out) }.into()
        }
        "removeprefix" => {
            let [prefix] = of_method(args, ["prefix"])?;
            this.strip_prefix(&*needed(prefix, "prefix")?).unwrap_or(this).into()
        }
        "removesuffix" => {
            let [suffix] = of_method(args, ["suffix"])?;
            this.strip_suffix(&*needed(suffix, "suffix")?).unwrap_or(this).into()
        }
        "split" | "rsplit" => {
            let [sep, most] = of_method(args, ["sep", "maxsplit"])?;
            let most = whole(most)?.and_then(|most| usize::try_from(most).ok());
            split(this, text_of(sep, "sep")?.as_deref(), most, method == "rsplit")?.into()
        }
        "splitlines" => {
            let [keep] = of_method(args, ["keepends"])?;
            lines(this, is_true(keep.as_ref())).into_iter().map(Value::from).collect::<Vec<Value>>().into()
        }
        "partition" | "rpartition" => {
            let [sep] = of_method(args, ["sep"])?;
            let sep = needed(sep, "sep")?;
            if sep.is_empty() {
                return Err(refused("empty separator".to_string()));
            }
            let parts = match method {
                "partition" => this.split_once(&*sep).map_or([this, "", ""], |(before, after)| [before, &sep, after]),
                _ => this.rsplit_once(&*sep).map_or(["", "", this], |(before, after)| [before, &sep, after]),
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "startswith" | "endswith" => {
            let [wanted, start, stop] = of_method(args, ["prefix", "start", "end"])?;
            let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let Some(part) = part(this, whole(start)?, whole(stop)?) else { return Ok(Some(false.into())) };
            let part = &this[part.1];
            let fits = |wanted: &Value| match wanted.as_str() {
                Some(wanted) if method == "startswith" => Ok(part.starts_with(wanted)),
                Some(wanted) => Ok(part.ends_with(wanted)),
                None => Err(refused(format!("{method}: expected a text or several, found a {}", wanted.kind()))),
            };
            match wanted.is_tuple() || wanted.kind() == ValueKind::Seq {
                true => {
                    let mut found = false;
                    for one in wanted.try_iter()?.checked() {
                        found |= fits(&one?)?;
                    }
                    found.into()
                }
                false => fits(&wanted)?.into(),
            }
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, start, stop] = of_method(args, ["sub", "start", "end"])?;
            let wanted = needed(wanted, "sub")?;
            let part = part(this, whole(start)?, whole(stop)?);
            if method == "count" {
                return Ok(Some(part.map_or(0, |(_, part)| this[part].matches(&*wanted).count()).into()));
            }
            let found = part.and_then(|(first, part)| {
                let part = &this[part];
                let at = if method.starts_with('r') { part.rfind(&*wanted) } else { part.find(&*wanted) };
                at.map(|at| (first + part[..at].chars().count()) as i64)
            });
            match found {
                None if method.ends_with("index") => return Err(refused("substring not found".to_string())),
                found => found.unwrap_or(-1).into(),
            }
        }
        "replace" => {
            let [old, new, count] = of_method(args, ["old", "new", "count"])?;
            let (old, new) = (needed(old, "old")?, needed(new, "new")?);
            let count = whole(count)?.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
            let places = if new.len() > old.len() { this.matches(&*old).count().min(count) } else { 0 };
            pay(state, places.saturating_mul(new.len().saturating_sub(old.len())))?;
            this.replacen(&*old, &new, count).into()
        }
        "ljust" | "rjust" | "center" => {
            let [width, fill] = of_method(args, ["width", "fillchar"])?;
            let fill = text_of(fill, "fillchar")?.unwrap_or_else(|| " ".to_string());
            if fill.chars().count() != 1 {
                return Err(refused("the fill character must be exactly one character long".to_string()));
            }
            let width = whole(width)?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            justified(state, this, width, &fill, method)?.into()
        }
        "zfill" => {
            let [width] = of_method(args, ["width"])?;
            let width = whole(width)?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let signed = usize::from(this.starts_with(['+', '-']));
            let (sign, digits) = this.split_at(signed);
            let width = width.saturating_sub(signed as i64);
            format!("{sign}{}", justified(state, digits, width, "0", "rjust")?).into()
        }
        "expandtabs" => {
            let [size] = of_method(args, ["tabsize"])?;
            let size = usize::try_from(whole(size)?.unwrap_or(8)).unwrap_or(0);
            pay(state, this.matches('\t').count().saturating_mul(size))?;
            let (mut output, mut column) = (String::new(), 0);
            for c in this.chars() {
                match c {
                    '\t' if size > 0 => {
                        let blanks = size - column % size;
                        output.extend(std::iter::repeat_n(' ', blanks));
                        column += blanks;
                    }
                    '\t' => {}
                    c => {
                        output.push(c);
                        column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
                    }
                }
            }
            output.into()
        }
        "join" => {
            let [items] = of_method(args, ["iterable"])?;
            let items = items.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let mut output = String::new();
            for (count, item) in items.try_iter()?.checked().enumerate() {
                let item = text(&item?)?;
                pay(state, this.len() + item.len())?;
                output.push_str(if count > 0 { this } else { "" });
                output.push_str(&item);
            }
            output.into()
        }
        "encode" => {
            let [encoding, _] = of_method(args, ["encoding", "errors"])?;
            let encoding = text_of(encoding, "encoding")?.unwrap_or_default().to_ascii_lowercase();
            match encoding.replace(['-', '_'], "").as_str() {
                "" | "utf8" => {}
                "ascii" if this.is_ascii() => {}
                _ => return Err(refused(format!("the text cannot be encoded as {encoding:?}"))),
            }
            Value::from_bytes(this.as_bytes().to_vec())
        }
        "format" => {
            let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
            format::braces(state, this, &positional, &Value::from(named))?.into()
        }
        "format_map" => {
            let [mapping] = of_method(args, ["mapping"])?;
            format::braces(state, this, &[], &mapping.unwrap_or_default())?.into()
        }
        _ => return Ok(None),
    }))
}

/// The part of a text between two positions of characters, which count from the end if they are negative: the number of its
/// first character, and its bytes. `None` where Python finds nothing, not even an empty text.
fn part(text: &str, start: Option<i64>, stop: Option<i64>) -> Option<(usize, std::ops::Range<usize>)> {
    if start.is_none() && stop.is_none() {
        return Some((0, 0..text.len()));
    }
    let count = text.chars().count();
    let bound = |at: i64| if at < 0 { usize::try_from(at + count as i64).unwrap_or(0) } else { at as usize };
    let (start, stop) = (start.map_or(0, bound), stop.map_or(count, bound).min(count));
    if start > stop {
        return None;
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Some((start, byte(start)..byte(stop)))
}

fn split(text: &str, sep: Option<&str>, most: Option<usize>, from_end: bool) -> Result<Vec<Value>, Error> {
    let mut parts: Vec<&str> = match (sep, most) {
        (Some(""), _) => return Err(refused("empty separator".to_string())),
        (Some(sep), None) => text.split(sep).collect(),
        (Some(sep), Some(most)) if from_end => text.rsplitn(most + 1, sep).collect(),
        (Some(sep), Some(most)) => text.splitn(most + 1, sep).collect(),
        (None, None) => text.split(is_space).filter(|part| !part.is_empty()).collect(),
        (None, Some(most)) => {
            let (mut parts, mut rest) = (Vec::new(), text);
            loop {
                rest = if from_end { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
                let at = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
                let at = at.filter(|_| parts.len() < most);
                match at {
                    _ if rest.is_empty() => break,
                    None => {
                        parts.push(rest);
                        break;
                    }
                    Some(at) if from_end => {
                        let word = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                        parts.push(&rest[word..]);
                        rest = &rest[..at];
                    }
                    Some(at) => {
                        parts.push(&rest[..at]);
                        rest = &rest[at..];
                    }
                }
            }
            parts
        }
    };
    if from_end && most.is_some() {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The lines of a text, as `str.splitlines` has them.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            lines.push(rest);
            break;
        };
        let size = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { at + size } else { at }]);
        rest = &rest[at + size..];
    }
    lines
}

/// A text with blanks (or another character) beside it up to a width. `method` is that of Python's `str`.
pub(super) fn justified(state: &State, text: &str, width: i64, fill: &str, method: &str) -> Result<String, Error> {
    let length = text.chars().count();
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(length);
    pay(state, missing.saturating_mul(fill.len()))?;
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // As Python has always rounded.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

/// A character as the first of a word: `ß` becomes `Ss`.
fn titled(c: char, output: &mut String) {
    for (at, upper) in c.to_uppercase().enumerate() {
        if at == 0 { output.push(upper) } else { output.extend(upper.to_lowercase()) }
    }
}

pub(super) fn capitalized(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut chars = text.chars();
    if let Some(first) = chars.next() {
        titled(first, &mut output);
    }
    output + &chars.as_str().to_lowercase()
}

fn title(text: &str) -> String {
    let (mut output, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if inside {
            output.extend(c.to_lowercase())
        } else {
            titled(c, &mut output)
        }
        inside = is_cased(c);
    }
    output
}

fn is_title(text: &str) -> bool {
    let (mut inside, mut found) = (false, false);
    for c in text.chars() {
        if (c.is_uppercase() && inside) || (c.is_lowercase() && !inside) {
            return false;
        }
        inside = is_cased(c);
        found |= inside;
    }
    found
}

fn swapped(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            output.extend(c.to_lowercase());
        } else if c.is_lowercase() {
            output.extend(c.to_uppercase());
        } else {
            output.push(c);
        }
    }
    output
}

/// `str.casefold`: lower case, and the letters whose folding is something else.
fn folded(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ß' | 'ẞ' => output.push_str("ss"),
            'ς' => output.push('σ'),
            'ſ' => output.push('s'),
            'µ' => output.push('μ'),
            'ŉ' => output.push_str("ʼn"),
            'ǰ' => output.push_str("j\u{30c}"),
            'և' => output.push_str("եւ"),
            '\u{345}' => output.push('ι'),
            'ϐ' => output.push('β'),
            'ϑ' => output.push('θ'),
            'ϕ' => output.push('φ'),
            'ϖ' => output.push('π'),
            'ϰ' => output.push('κ'),
            'ϱ' => output.push('ρ'),
            'ϵ' => output.push('ε'),
            'ﬀ' => output.push_str("ff"),
            'ﬁ' => output.push_str("fi"),
            'ﬂ' => output.push_str("fl"),
            'ﬃ' => output.push_str("ffi"),
            'ﬄ' => output.push_str("ffl"),
            'ﬅ' | 'ﬆ' => output.push_str("st"),
            c => output.extend(c.to_lowercase()),
        }
    }
    output
}

/// The zeros of Unicode's decimal digits; nine more follow each.
const ZEROS: [u32; 64] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620,
    0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0,
    0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x11f50,
    0x16a60, 0x16ac0, 0x16b50, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e950, 0x1fbf0, 0x1d7ce,
];

fn is_decimal(c: char) -> bool {
    let code = u32::from(c);
    // The mathematical digits come in five alphabets.
    (0x1d7ce..0x1d800).contains(&code) || ZEROS.iter().any(|&zero| (zero..zero + 10).contains(&code))
}

/// Digits in superscript, subscript, circles and brackets.
fn is_other_digit(c: char) -> bool {
    matches!(u32::from(c), 0xb2 | 0xb3 | 0xb9 | 0x1369..=0x1371 | 0x19da | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089
        | 0x2460..=0x2468 | 0x2474..=0x247c | 0x2488..=0x2490 | 0x24ea | 0x24f5..=0x24fd | 0x24ff | 0x2776..=0x277e
        | 0x2780..=0x2788 | 0x278a..=0x2792 | 0x10a40..=0x10a43 | 0x10e60..=0x10e68 | 0x11052..=0x1105a
        | 0x1f100..=0x1f10a)
}
