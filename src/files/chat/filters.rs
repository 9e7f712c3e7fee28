//! Filters, tests and functions of Jinja that minijinja lacks or that print something else there.

use super::arguments::{bind, is_true, pay, subject, text_of, whole};
use super::methods::{justified, lines};
use super::objects::{Cycler, Joiner};
use super::pretty::pretty;
use super::python::{self, as_float, escaped, is_macro, is_space, refused, text};
use super::source::{CALL, MINUS, MODULO, PLUS, REST};
use super::{format, methods};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{AutoEscape, Environment, Error, State, Value};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize};

type FilterResult = Result<Value, Error>;

/// Adds everything to an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter(MODULO, modulo);
    environment.add_filter(PLUS, plus);
    environment.add_filter(MINUS, minus);
    environment.add_function(CALL, call);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", python::string);
    environment.add_filter("capitalize", |value: &Value| Ok::<_, Error>(methods::capitalized(&subject(value)?)));
    environment.add_filter("center", center);
    environment.add_filter("dictsort", dictsort);
    for name in ["escape", "e"] {
        environment.add_filter(name, |value: &Value| match value.is_safe() {
            true => Ok(value.clone()),
            false => Ok::<_, Error>(Value::from_safe_string(escaped(&subject(value)?))),
        });
    }
    environment
        .add_filter("forceescape", |value: &Value| Ok::<_, Error>(Value::from_safe_string(escaped(&subject(value)?))));
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter("float", to_float);
    environment.add_filter("format", format_filter);
    environment.add_filter("indent", indent);
    environment.add_filter("int", to_int);
    environment.add_filter("join", join);
    environment.add_filter("pprint", pretty);
    environment.add_filter("random", random);
    environment.add_filter("round", round);
    environment.add_filter("sort", sort);
    environment.add_filter("abs", |value: &Value| match (whole_number(value), as_float(value)) {
        (Some(number), _) => Ok(Value::from(number.saturating_abs())),
        (_, Some(number)) => Ok(Value::from(number.abs())),
        _ => Err(refused(format!("bad operand type for abs: {}", value.kind()))),
    });
    environment.add_filter("striptags", striptags);
    environment.add_filter("title", |value: &Value| Ok::<_, Error>(title(&subject(value)?)));
    environment.add_filter("trim", trim);
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("wordcount", |value: &Value| {
        Ok::<_, Error>(subject(value)?.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).count())
    });
    environment.add_filter("wordwrap", wordwrap);
    environment.add_filter("xmlattr", xmlattr);
    // What is undefined can be called, in vain.
    environment.add_test("callable", |value: &Value| value.is_undefined() || is_callable(value));
    environment.add_test("iterable", |value: &Value| {
        let kind = value.kind();
        kind != ValueKind::None && !is_macro(value) && value.try_iter().is_ok()
    });
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::String | ValueKind::Bytes | ValueKind::Seq | ValueKind::Undefined => true,
        ValueKind::Map => !is_macro(value),
        // Parts of lists have a length; what is made item by item has none.
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    });
    environment.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(refused("at least one item has to be provided".to_string())),
        false => Ok(Value::from_object(Cycler { items: items.0, at: AtomicUsize::new(0) })),
    });
    environment.add_function("joiner", |separator: Option<Value>| {
        let separator = separator.unwrap_or_else(|| Value::from(", "));
        Value::from_object(Joiner { separator, used: AtomicBool::new(false) })
    });
}

/// Whether a value can be called: a function, a macro, or an object like them.
fn is_callable(value: &Value) -> bool {
    let plain = value.kind() == ValueKind::Plain && value.downcast_object_ref::<Cycler>().is_none();
    plain || is_macro(value)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `left % right`: formatting where the left side is a text.
fn modulo(state: &State, left: &Value, right: &Value) -> FilterResult {
    if let Some(template) = left.as_str() {
        return format::percent(state, template, right).map(Value::from);
    }
    if let (Some(left), Some(right)) = (whole_number(left), whole_number(right)) {
        // The result has the sign of the divisor.
        let rest = left.checked_rem(right).ok_or_else(|| refused("modulo by zero".to_string()))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest }));
    }
    let real = |value: &Value| as_float(value).or_else(|| whole_number(value).map(|number| number as f64));
    match (real(left), real(right)) {
        (Some(_), Some(0.0)) => Err(refused("modulo by zero".to_string())),
        (Some(left), Some(right)) => {
            let rest = left % right;
            let rest = if rest != 0.0 && (rest < 0.0) != (right < 0.0) { rest + right } else { rest };
            Ok(Value::from(if rest == 0.0 { 0f64.copysign(right) } else { rest }))
        }
        _ => Err(refused(format!("unsupported operand types for %: {} and {}", left.kind(), right.kind()))),
    }
}

/// `+value`
fn plus(value: &Value) -> FilterResult {
    match value.kind() {
        ValueKind::Number => Ok(value.clone()),
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        kind => Err(refused(format!("bad operand type for unary +: {kind}"))),
    }
}

/// `-value`
fn minus(value: &Value) -> FilterResult {
    match (whole_number(value), as_float(value)) {
        (Some(number), _) if number > i128::MIN => Ok(Value::from(-number)),
        (_, Some(number)) => Ok(Value::from(-number)),
        _ => Err(refused(format!("bad operand type for unary -: {}", value.kind()))),
    }
}

/// A whole number; truth values are.
fn whole_number(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Calls a macro whose last two parameters take what its others do not; anything else as it is.
fn call(state: &mut State, callee: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let parameters: Vec<Value> = match callee.get_attr("arguments") {
        Ok(list) if is_callable(callee) && list.kind() == ValueKind::Seq => {
            list.try_iter()?.checked().collect::<Result<_, _>>()?
        }
        _ => Vec::new(),
    };
    let own = parameters.len().saturating_sub(REST.len());
    let names: Vec<&str> = named.args().collect();
    let keep = |name: &str| name == "caller" || parameters[..own].iter().any(|own| own.as_str() == Some(name));
    if parameters.len() < REST.len()
        || parameters[own..].iter().zip(REST).any(|(found, name)| found.as_str() != Some(name))
    {
        let mut all = positional.0;
        let mut kept = Vec::new();
        for name in names {
            kept.push((name.to_string(), named.get::<Value>(name)?));
        }
        if !kept.is_empty() {
            all.push(Value::from(kept.into_iter().collect::<Kwargs>()));
        }
        return callee.call(state, &all);
    }
    let mut all = positional.0;
    let rest = all.split_off(own.min(all.len()));
    let (mut kept, mut others) = (Vec::new(), Vec::new());
    for name in names {
        let value: Value = named.get(name)?;
        if keep(name) { kept.push((name.to_string(), value)) } else { others.push((name.to_string(), value)) }
    }
    kept.push((REST[0].to_string(), Value::from(Tuple::from(rest))));
    kept.push((REST[1].to_string(), Value::from_pairs(others)));
    all.push(Value::from(kept.into_iter().collect::<Kwargs>()));
    callee.call(state, &all)
}

/// `format`: values by position or by name, as for `%`.
fn format_filter(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let names: Vec<&str> = named.args().collect();
    let values = match names.is_empty() {
        true => Value::from(Tuple::from(positional.0)),
        false if !positional.0.is_empty() => {
            return Err(refused("can't handle positional and keyword arguments at the same time".to_string()));
        }
        false => {
            let pairs = names.into_iter().map(|name| Ok((name.to_string(), named.get::<Value>(name)?)));
            Value::from_pairs(pairs.collect::<Result<Vec<(String, Value)>, Error>>()?)
        }
    };
    format::percent(state, &subject(value)?, &values).map(Value::from)
}

fn join(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [separator, attribute] = bind(&positional, &named, ["d", "attribute"])?;
    let separator = separator.map_or_else(|| Ok(String::new()), |value| text(&value))?;
    let attribute = attribute.map(|attribute| text(&attribute)).transpose()?;
    let mut output = String::new();
    for (count, item) in value.try_iter()?.checked().enumerate() {
        let item = item?;
        let item = match &attribute {
            Some(path) => attribute_of(&item, path)?,
            None => item,
        };
        let item = text(&item)?;
        pay(state, separator.len() + item.len())?;
        output.push_str(if count > 0 { &separator } else { "" });
        output.push_str(&item);
    }
    Ok(output.into())
}

/// The value at a path of attributes and positions: `a.0.b`.
fn attribute_of(value: &Value, path: &str) -> FilterResult {
    path.split('.').try_fold(value.clone(), |value, part| match part.parse::<usize>() {
        Ok(at) => value.get_item(&Value::from(at)),
        Err(_) => value.get_attr(part),
    })
}

/// `sort`: by the items or by several of their attributes, with capitals as small letters unless told.
fn sort(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [reverse, sensitive, attributes] = bind(&positional, &named, ["reverse", "case_sensitive", "attribute"])?;
    let attributes = attributes.map(|attributes| text(&attributes)).transpose()?;
    let folded = |value: Value| match value.as_str() {
        Some(text) if !is_true(sensitive.as_ref()) => Value::from(text.to_lowercase()),
        _ => value,
    };
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        let item = item?;
        state.consume_fuel(1)?;
        let key = match &attributes {
            None => vec![folded(item.clone())],
            Some(paths) => {
                let keys = paths.split(',').map(|path| attribute_of(&item, path.trim()).map(folded));
                keys.collect::<Result<Vec<Value>, Error>>()?
            }
        };
        items.push((key, item));
    }
    match is_true(reverse.as_ref()) {
        // Equal ones keep their order.
        true => items.sort_by(|(a, _), (b, _)| b.cmp(a)),
        false => items.sort_by(|(a, _), (b, _)| a.cmp(b)),
    }
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

fn indent(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [width, first, blank] = bind(&positional, &named, ["width", "first", "blank"])?;
    let text = subject(value)?;
    let width = match width {
        Some(width) if width.as_str().is_some() => text_of(Some(width), "width")?.unwrap_or_default(),
        width => {
            let width = usize::try_from(whole(width)?.unwrap_or(4)).unwrap_or(0);
            pay(state, width)?;
            " ".repeat(width)
        }
    };
    pay(state, text.lines().count().saturating_mul(width.len()))?;
    // Python's way: a line break more, so that one at the end is a line.
    let text = text + "\n";
    let lines = lines(&text, false);
    let mut output = if is_true(first.as_ref()) { width.clone() } else { String::new() };
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            output.push('\n');
            if !line.is_empty() || is_true(blank.as_ref()) {
                output.push_str(&width);
            }
        }
        output.push_str(line);
    }
    Ok(output.into())
}

fn center(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [width] = bind(&positional, &named, ["width"])?;
    justified(state, &subject(value)?, whole(width)?.unwrap_or(80), " ", "center").map(Value::from)
}

fn trim(value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [chars] = bind(&positional, &named, ["chars"])?;
    let (text, chars) = (subject(value)?, text_of(chars, "chars")?);
    let out = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    Ok(text.trim_matches(out).into())
}

/// Every word with a capital in front, as the filter has it: words end at blanks, hyphens and opening brackets.
fn title(text: &str) -> String {
    let (mut output, mut start) = (String::with_capacity(text.len()), 0);
    let ends = |c: char| is_space(c) || "-({[<".contains(c);
    while start < text.len() {
        let rest = &text[start..];
        let word = rest.find(ends).unwrap_or(rest.len());
        let mut chars = rest[..word].chars();
        output.extend(chars.next().into_iter().flat_map(char::to_uppercase));
        output.push_str(&chars.as_str().to_lowercase());
        let gap = rest[word..].find(|c: char| !ends(c)).unwrap_or(rest.len() - word);
        output.push_str(&rest[word..word + gap]);
        start += word + gap;
    }
    output
}

fn truncate(value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [length, kill, end, leeway] = bind(&positional, &named, ["length", "killwords", "end", "leeway"])?;
    let (text, end) = (subject(value)?, text_of(end, "end")?.unwrap_or_else(|| "...".to_string()));
    let number =
        |value: Option<Value>, default| Ok::<_, Error>(usize::try_from(whole(value)?.unwrap_or(default)).unwrap_or(0));
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| refused("truncate: the end is longer than the length".to_string()))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.into());
    }
    let text: String = text.chars().take(kept).collect();
    let cut = if is_true(kill.as_ref()) { None } else { text.rfind(' ') };
    Ok(format!("{}{end}", &text[..cut.unwrap_or(text.len())]).into())
}

fn wordwrap(value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, break_words, wrap, hyphens] = bind(&positional, &named, names)?;
    let width = usize::try_from(whole(width)?.unwrap_or(79)).unwrap_or(0);
    if width == 0 {
        return Err(refused("wordwrap: the width must be above 0".to_string()));
    }
    let wrap = text_of(wrap, "wrapstring")?.unwrap_or_else(|| "\n".to_string());
    let break_words = break_words.is_none_or(|value| value.is_true());
    let hyphens = hyphens.is_none_or(|value| value.is_true());
    let text = subject(value)?;
    let wrapped = lines(&text, false).into_iter().map(|line| wrapped(line, width, break_words, hyphens).join(&wrap));
    Ok(wrapped.collect::<Vec<String>>().join(&wrap).into())
}

/// The lines of a paragraph, as `textwrap` breaks it.
fn wrapped(text: &str, width: usize, break_words: bool, hyphens: bool) -> Vec<String> {
    let mut waiting: Vec<String> = chunks(text, hyphens);
    waiting.reverse();
    let length = |text: &str| text.chars().count();
    let is_blank = |text: &String| text.chars().all(is_space);
    let mut found: Vec<String> = Vec::new();
    while !waiting.is_empty() {
        let (mut line, mut used) = (Vec::<String>::new(), 0);
        if !found.is_empty() {
            waiting.pop_if(|chunk| is_blank(chunk));
        }
        while let Some(chunk) = waiting.pop_if(|chunk| used + length(chunk) <= width) {
            used += length(&chunk);
            line.push(chunk);
        }
        if let Some(chunk) = waiting.pop_if(|chunk| length(chunk) > width) {
            if break_words {
                let room = width.saturating_sub(used);
                let mut end = room;
                if hyphens {
                    // A hyphen in the part that fits, with something else in front of it.
                    let part: Vec<char> = chunk.chars().take(room).collect();
                    let hyphen = part.iter().rposition(|&c| c == '-').filter(|&at| at > 0);
                    end = match hyphen {
                        Some(at) if part[..at].iter().any(|&c| c != '-') => at + 1,
                        _ => room,
                    };
                }
                line.push(chunk.chars().take(end).collect());
                waiting.push(chunk.chars().skip(end).collect());
            } else if line.is_empty() {
                line.push(chunk);
            } else {
                waiting.push(chunk);
            }
        }
        line.pop_if(|chunk| is_blank(chunk));
        if !line.is_empty() {
            found.push(line.concat());
        }
    }
    found
}

/// Words and the blanks between them; words end behind hyphens between letters.
fn chunks(text: &str, hyphens: bool) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let letter = |at: usize| chars.get(at).is_some_and(|c| is_word(*c) && !c.is_numeric());
    let (mut found, mut chunk) = (Vec::new(), String::new());
    for (at, &c) in chars.iter().enumerate() {
        let turns = at > 0 && is_space(c) != is_space(chars[at - 1]);
        let before = at > 0 && chars[at - 1] == '-' && c != '-' && hyphens;
        let between = before
            && ((at > 2 && letter(at - 2) && letter(at - 3))
                || (at > 3 && letter(at - 2) && chars[at - 3] == '-' && letter(at - 4)))
            && letter(at)
            && (letter(at + 1) || (chars.get(at + 1) == Some(&'-') && letter(at + 2)));
        if (turns || between) && !chunk.is_empty() {
            found.push(std::mem::take(&mut chunk));
        }
        chunk.push(c);
    }
    found.extend(Some(chunk).filter(|chunk| !chunk.is_empty()));
    found
}

fn filesizeformat(value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [binary] = bind(&positional, &named, ["binary"])?;
    let binary = is_true(binary.as_ref());
    let number = real(value).ok_or_else(|| refused("filesizeformat: expected a number".to_string()))?;
    let base = if binary { 1024.0 } else { 1000.0 };
    if number == 1.0 {
        return Ok("1 Byte".into());
    }
    if number < base {
        return Ok(format!("{} Bytes", number.trunc() as i64).into());
    }
    const UNITS: [&str; 8] = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let at = (0..UNITS.len() - 1).find(|&at| number < f64::powi(base, at as i32 + 2)).unwrap_or(UNITS.len() - 1);
    let unit = match (binary, UNITS[at]) {
        (true, "k") => "KiB".to_string(),
        (true, unit) => format!("{unit}iB"),
        (false, unit) => format!("{unit}B"),
    };
    Ok(format!("{:.1} {unit}", base * number / f64::powi(base, at as i32 + 2)).into())
}

fn xmlattr(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [space] = bind(&positional, &named, ["autospace"])?;
    let mut output = String::new();
    for key in value.try_iter()?.checked() {
        let key = key?;
        let item = value.get_item(&key)?;
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let key = text(&key)?;
        if key.contains(|c: char| is_space(c) || "/>=".contains(c)) {
            return Err(refused(format!("xmlattr: invalid character in the attribute's name {key:?}")));
        }
        output.push_str(if output.is_empty() && !space.as_ref().is_none_or(Value::is_true) { "" } else { " " });
        let item = if item.is_safe() { text(&item)? } else { escaped(&text(&item)?) };
        output.push_str(&format!("{}=\"{item}\"", escaped(&key)));
    }
    Ok(match state.auto_escape() {
        AutoEscape::None => output.into(),
        _ => Value::from_safe_string(output),
    })
}

/// A text without its tags and comments, with entities decoded and blanks joined.
fn striptags(value: &Value) -> FilterResult {
    let text = subject(value)?;
    let mut output = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // Comments first: they may hold tags.
    let mut plain = String::with_capacity(text.len());
    while let Some(at) = rest.find("<!--") {
        let Some(end) = rest[at..].find("-->") else { break };
        plain.push_str(&rest[..at]);
        rest = &rest[at + end + 3..];
    }
    plain.push_str(rest);
    let mut rest = plain.as_str();
    while let Some(at) = rest.find('<') {
        let Some(end) = rest[at..].find('>') else { break };
        output.push_str(&rest[..at]);
        rest = &rest[at + end + 1..];
    }
    output.push_str(rest);
    let joined = output.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<&str>>().join(" ");
    Ok(unescaped(&joined).into())
}

fn unescaped(text: &str) -> String {
    let (mut output, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('&') {
        output.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(';').filter(|&end| end < 12);
        let entity = end.map(|end| &rest[1..end]);
        let decoded = match entity {
            Some("amp") => Some('&'),
            Some("lt") => Some('<'),
            Some("gt") => Some('>'),
            Some("quot") => Some('"'),
            Some("apos") => Some('\''),
            Some("nbsp") => Some('\u{a0}'),
            Some(entity) => entity.strip_prefix('#').and_then(|number| {
                let number = match number.strip_prefix(['x', 'X']) {
                    Some(number) => u32::from_str_radix(number, 16),
                    None => number.parse(),
                };
                number.ok().and_then(char::from_u32)
            }),
            None => None,
        };
        match (decoded, end) {
            (Some(c), Some(end)) => {
                output.push(c);
                rest = &rest[end + 1..];
            }
            _ => {
                output.push('&');
                rest = &rest[1..];
            }
        }
    }
    output + rest
}

fn urlencode(value: &Value) -> FilterResult {
    let quoted = |value: &Value, query: bool| -> Result<String, Error> {
        let mut output = String::new();
        for &byte in subject(value)?.as_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => output.push(char::from(byte)),
                b'/' if !query => output.push('/'),
                b' ' if query => output.push('+'),
                byte => output.push_str(&format!("%{byte:02X}")),
            }
        }
        Ok(output)
    };
    let mut pairs = Vec::new();
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                let key = key?;
                pairs.push(format!("{}={}", quoted(&key, true)?, quoted(&value.get_item(&key)?, true)?));
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for pair in value.try_iter()?.checked() {
                let pair = pair?;
                let (key, item) = (pair.get_item_by_index(0)?, pair.get_item_by_index(1)?);
                pairs.push(format!("{}={}", quoted(&key, true)?, quoted(&item, true)?));
            }
        }
        _ => return Ok(quoted(value, false)?.into()),
    }
    Ok(pairs.join("&").into())
}

/// One of the items.
fn random(value: &Value) -> FilterResult {
    let items: Vec<Value> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
    // Every hasher has random keys.
    let number = std::hash::RandomState::new().build_hasher().finish();
    let at = usize::try_from(number % (items.len().max(1) as u64)).unwrap_or(0);
    Ok(items.get(at).cloned().unwrap_or(Value::UNDEFINED))
}

/// `round`: half to even, or up or down; whole numbers stay whole unless they go up or down.
fn round(value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [precision, method] = bind(&positional, &named, ["precision", "method"])?;
    let precision = i32::try_from(whole(precision)?.unwrap_or(0)).unwrap_or(i32::MAX).clamp(-400, 400);
    let method = text_of(method, "method")?.unwrap_or_else(|| "common".to_string());
    let number = as_float(value).or_else(|| whole_number(value).map(|number| number as f64));
    let number = number.ok_or_else(|| refused(format!("round: expected a number, found a {}", value.kind())))?;
    let to_tens = |number: f64, tens: f64| (number / tens).round_ties_even() * tens;
    let rounded = match (method.as_str(), whole_number(value)) {
        ("common", Some(number)) if precision >= 0 => return Ok(Value::from(number)),
        ("common", Some(number)) => {
            let Some(tens) = 10i128.checked_pow(precision.unsigned_abs()) else { return Ok(Value::from(0)) };
            let (quotient, rest) = (number.div_euclid(tens), number.rem_euclid(tens));
            let up = rest * 2 > tens || (rest * 2 == tens && quotient % 2 != 0);
            return Ok(Value::from((quotient + i128::from(up)).saturating_mul(tens)));
        }
        ("common", None) if !number.is_finite() => number,
        ("common", None) if precision >= 0 => {
            let digits = precision.unsigned_abs() as usize;
            format!("{number:.digits$}").parse().unwrap_or(number)
        }
        ("common", None) => to_tens(number, 10f64.powi(-precision)),
        ("ceil", _) => (number * 10f64.powi(precision)).ceil() / 10f64.powi(precision),
        ("floor", _) => (number * 10f64.powi(precision)).floor() / 10f64.powi(precision),
        _ => return Err(refused("round: the method must be common, ceil or floor".to_string())),
    };
    Ok(Value::from(rounded))
}

fn real(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => parsed_float(text),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok().filter(|_| value.kind() == ValueKind::Number),
    }
}

/// `float(text)`
fn parsed_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let digit = |at: Option<usize>| at.and_then(|at| text.as_bytes().get(at)).is_some_and(u8::is_ascii_digit);
    let between = |(at, _): (usize, &str)| digit(at.checked_sub(1)) && digit(Some(at + 1));
    if !text.match_indices('_').all(between) || !text.is_ascii() {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `int(text, base)`
fn parsed_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |base| match base {
        16 => digits.strip_prefix("0x").or(digits.strip_prefix("0X")),
        8 => digits.strip_prefix("0o").or(digits.strip_prefix("0O")),
        2 => digits.strip_prefix("0b").or(digits.strip_prefix("0B")),
        _ => None,
    };
    let (base, digits) = match base {
        0 => [16, 8, 2].into_iter().find_map(|base| Some((base, prefixed(base)?))).unwrap_or((10, digits)),
        base => (base, prefixed(base).unwrap_or(digits)),
    };
    let sound = !digits.starts_with(['_', '+', '-']) && !digits.ends_with('_') && !digits.contains("__");
    let number = i128::from_str_radix(&digits.replace('_', ""), base).ok().filter(|_| sound)?;
    Some(if negative { -number } else { number })
}

fn to_int(value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [default, base] = bind(&positional, &named, ["default", "base"])?;
    let base = u32::try_from(whole(base)?.unwrap_or(10)).ok().filter(|base| *base == 0 || (2..=36).contains(base));
    let base = base.ok_or_else(|| refused("int: the base must be 0, or 2 to 36".to_string()))?;
    if value.kind() == ValueKind::Number && value.is_integer() {
        return Ok(value.clone());
    }
    let number = value.as_str().and_then(|text| parsed_int(text, base));
    let number =
        number.or_else(|| real(value).filter(|number| number.is_finite()).map(|number| number.trunc() as i128));
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from))
}

fn to_float(value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [default] = bind(&positional, &named, ["default"])?;
    Ok(real(value).map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

/// The pairs of a mapping in the order of their keys or values.
fn dictsort(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> FilterResult {
    let [sensitive, by, reverse] = bind(&positional, &named, ["case_sensitive", "by", "reverse"])?;
    let at = match text_of(by, "by")?.as_deref() {
        None | Some("key") => 0,
        Some("value") => 1,
        Some(_) => return Err(refused("dictsort: you can only sort by either \"key\" or \"value\"".to_string())),
    };
    if value.kind() != ValueKind::Map {
        return Err(refused(format!("dictsort: expected a mapping, found a value of type {}", value.kind())));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()?.checked() {
        let key = key?;
        pairs.push([key.clone(), value.get_item(&key)?]);
    }
    pay(state, pairs.len().saturating_mul(64))?;
    let sensitive = is_true(sensitive.as_ref());
    let sorted = |pair: &[Value; 2]| match pair[at].as_str() {
        Some(text) if !sensitive => Value::from(text.to_lowercase()),
        _ => pair[at].clone(),
    };
    pairs.sort_by_cached_key(sorted);
    if is_true(reverse.as_ref()) {
        // Equal ones keep their order.
        pairs.reverse();
        let mut done = Vec::with_capacity(pairs.len());
        for run in pairs.chunk_by(|a, b| sorted(a) == sorted(b)) {
            done.extend(run.iter().rev().cloned());
        }
        pairs = done;
    }
    Ok(pairs.into_iter().map(|pair| Value::from(Tuple::from(pair))).collect())
}
