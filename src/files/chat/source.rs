//! The source of a template, rewritten where minijinja reads it otherwise than Python does.
//!
//! minijinja has no way to extend its grammar, so what it lacks is spelled in what it has: string literals with the escapes
//! of Python, `%` and the signs of numbers as filters, tuples without brackets with them, macros that take any arguments with two more
//! parameters, and the `generation` tag, which `transformers` adds to mark what the assistant wrote, as `with`. All other text
//! stays as it is, and so do line breaks, so that messages name the right lines.

use std::collections::BTreeSet;
use std::fmt::Write;

/// Longest tag or expression, in bytes outside strings. The compiler folds constants in cubic time.
const MAX_CODE: usize = 4 << 10;

/// Names of what rewritten code calls.
pub(super) const MODULO: &str = "__modulo";
pub(super) const PLUS: &str = "__plus";
pub(super) const MINUS: &str = "__minus";
pub(super) const CALL: &str = "__call";

/// The parameters that take what a macro's own ones do not.
pub(super) const REST: [&str; 2] = ["varargs", "kwargs"];

/// Words that are no operands.
const WORDS: [&str; 8] = ["and", "or", "not", "if", "else", "in", "is", "recursive"];

/// A tag or an expression of the source, in tokens.
struct SourceCode {
    /// Where its first brace and the byte behind its last one are.
    start: usize,
    end: usize,
    tokens: Vec<SourceToken>,
    is_tag: bool,
    /// It begins what is not rendered.
    is_raw: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Name,
    Number,
    Text,
    Sign,
}

#[derive(Clone, Copy, Debug)]
struct SourceToken {
    kind: TokenKind,
    start: usize,
    end: usize,
}

/// Rewrites a template.
///
/// # Errors
/// A tag or expression that is longer than any real one, or a string literal that Python refuses; the message names the line.
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    let codes = codes(source)?;
    let macros = open_macros(source, &codes);
    let mut output = String::with_capacity(source.len() + source.len() / 8);
    let mut done = 0;
    for code in &codes {
        output.push_str(&source[done..code.start]);
        done = code.end;
        if code.is_raw {
            let (tag, close) = source[code.start..code.end].split_at(code.end - code.start - 2);
            // Jinja keeps the line break behind this tag, as behind no other one.
            let keep = if tag.ends_with(['-', '+']) { "" } else { "+" };
            output.push_str(&[tag, keep, close].concat());
            continue;
        }
        let mut writer =
            SourceWriter { source, tokens: &code.tokens, at: 0, end: code.start, output: &mut output, macros: &macros };
        writer.code(code.is_tag)?;
        let end = writer.end;
        output.push_str(&source[end..code.end]);
    }
    output.push_str(&source[done..]);
    Ok(output)
}

fn line(source: &str, at: usize) -> usize {
    source[..at].matches('\n').count() + 1
}

/// The tags and expressions of a template, without comments and what is raw.
fn codes(source: &str) -> Result<Vec<SourceCode>, String> {
    let mut codes = Vec::new();
    let (mut at, mut raw) = (0, false);
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let rest = &source[start..];
        at = start + 1;
        if rest.starts_with("{#") && !raw {
            at = rest.find("#}").map_or(source.len(), |end| start + end + 2);
        } else if rest.starts_with("{%") || (rest.starts_with("{{") && !raw) {
            let is_tag = rest.starts_with("{%");
            let name = is_tag.then(|| tag_name(rest));
            if raw {
                raw = name != Some("endraw");
                at = start + 2;
                continue;
            }
            let code = lex(source, start, is_tag)?;
            at = code.end;
            raw = name == Some("raw") && code.tokens.len() == 1 && source[..at].ends_with("%}");
            codes.push(SourceCode { is_raw: raw, ..code });
        }
    }
    Ok(codes)
}

/// The first word of a tag.
fn tag_name(tag: &str) -> &str {
    let body = &tag[2..];
    let word = body.strip_prefix(['-', '+']).unwrap_or(body).trim_start();
    &word[..word.find(|c: char| !is_word(c)).unwrap_or(word.len())]
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads the tokens of a tag or expression. One that is not closed goes on to the end of the source.
fn lex(source: &str, start: usize, is_tag: bool) -> Result<SourceCode, String> {
    let close = if is_tag { "%}" } else { "}}" };
    let begun = source[start + 2..].starts_with(['-', '+']);
    let mut at = start + 2 + usize::from(begun);
    let (mut tokens, mut open, mut length) = (Vec::new(), 0usize, 0);
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        let closes = |rest: &str| rest.starts_with(close);
        let signed = rest.strip_prefix('-').or(rest.strip_prefix('+').filter(|_| is_tag)).is_some_and(closes);
        if open == 0 && (closes(rest) || signed) {
            return Ok(SourceCode {
                start,
                end: at + close.len() + usize::from(signed),
                tokens,
                is_tag,
                is_raw: false,
            });
        }
        if c.is_whitespace() {
            at += c.len_utf8();
            length += 1;
            continue;
        }
        let (kind, size) = match c {
            '"' | '\'' => (TokenKind::Text, text_size(rest, c)),
            '0'..='9' => (TokenKind::Number, number_size(rest, tokens.last(), source)),
            c if is_word(c) => (TokenKind::Name, rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())),
            _ => {
                let pairs = ["==", "!=", "<=", ">=", "**", "//"];
                (TokenKind::Sign, if pairs.iter().any(|pair| rest.starts_with(pair)) { 2 } else { c.len_utf8() })
            }
        };
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        length += if kind == TokenKind::Text { 2 } else { size };
        if length > MAX_CODE {
            let line = line(source, start);
            return Err(format!("line {line}: expected at most {MAX_CODE} bytes of code in one tag, found more"));
        }
        tokens.push(SourceToken { kind, start: at, end: at + size });
        at += size;
    }
    Ok(SourceCode { start, end: source.len(), tokens, is_tag, is_raw: false })
}

/// Bytes of a string literal with its quotes; all of the text if it is not closed.
fn text_size(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Bytes of a number. Behind a dot it is an index, which has no fraction.
fn number_size(text: &str, before: Option<&SourceToken>, source: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        let is_digit = |byte: &&u8| byte.is_ascii_digit() || **byte == b'_';
        from + bytes[from.min(bytes.len())..].iter().take_while(is_digit).count()
    };
    if bytes.first() == Some(&b'0') && matches!(bytes.get(1), Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B')) {
        return text.find(|c: char| !is_word(c)).unwrap_or(text.len());
    }
    let mut end = digits(0);
    if before.is_some_and(|token| &source[token.start..token.end] == ".") {
        return end;
    }
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            end = digits(end + 1 + sign);
        }
    }
    end
}

/// Names of the macros that use `varargs` or `kwargs`, and so take any arguments.
fn open_macros<'s>(source: &'s str, codes: &[SourceCode]) -> BTreeSet<&'s str> {
    let mut found = BTreeSet::new();
    let mut inside: Vec<&str> = Vec::new();
    for code in codes {
        let text = |at: usize| code.tokens.get(at).map_or("", |token| &source[token.start..token.end]);
        let body = match (code.is_tag, text(0)) {
            (true, "macro") => {
                inside.push(text(1));
                continue;
            }
            (true, "endmacro") => {
                inside.pop();
                continue;
            }
            _ => &code.tokens,
        };
        let uses = body.iter().enumerate().any(|(at, token)| {
            // Neither an attribute nor an argument's name.
            let free = (at == 0 || text(at - 1) != ".") && text(at + 1) != "=";
            token.kind == TokenKind::Name && REST.contains(&text(at)) && free
        });
        found.extend(inside.last().copied().filter(|_| uses));
    }
    found
}

/// Writes the tokens of one tag or expression.
struct SourceWriter<'a, 's> {
    source: &'s str,
    tokens: &'a [SourceToken],
    at: usize,
    /// Up to where the source is written.
    end: usize,
    output: &'a mut String,
    macros: &'a BTreeSet<&'s str>,
}

impl<'s> SourceWriter<'_, 's> {
    fn code(&mut self, is_tag: bool) -> Result<(), String> {
        if !is_tag {
            return self.list(&[]);
        }
        match self.peek() {
            name @ ("generation" | "endgeneration") => {
                self.instead(if name == "generation" { "with" } else { "endwith" });
            }
            "macro" => {
                self.copy()?;
                let name = self.peek();
                self.copy()?;
                if self.macros.contains(name) && self.peek() == "(" {
                    self.copy()?;
                    let listed = self.peek() != ")";
                    self.sequence(&[")"])?;
                    self.before();
                    // They stand last, where the call puts them.
                    self.output.push_str(if listed { ", " } else { "" });
                    let [positional, named] = REST;
                    let _ = write!(self.output, "{positional}=(), {named}={{}}");
                }
            }
            "for" => {
                self.copy()?;
                while !["in", ""].contains(&self.peek()) {
                    self.copy()?;
                }
                self.copy()?;
                self.list(&["if", "recursive"])?;
            }
            _ => self.copy()?,
        }
        self.sequence(&[]).map(drop)
    }

    /// What may be a tuple without brackets, up to one of the words.
    fn list(&mut self, stop: &[&str]) -> Result<(), String> {
        self.before();
        let start = self.output.len();
        let commas = self.sequence(stop)?;
        if commas {
            self.output.insert(start, '(');
            self.output.push(')');
        }
        Ok(())
    }

    fn peek(&self) -> &'s str {
        self.ahead(0)
    }

    fn ahead(&self, by: usize) -> &'s str {
        self.tokens.get(self.at + by).map_or("", |token| &self.source[token.start..token.end])
    }

    fn kind(&self) -> Option<TokenKind> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    /// Writes what stands before the next token.
    fn before(&mut self) {
        if let Some(token) = self.tokens.get(self.at) {
            self.output.push_str(&self.source[self.end..token.start]);
            self.end = token.start;
        }
    }

    /// Writes the next token.
    fn copy(&mut self) -> Result<(), String> {
        self.before();
        let Some(token) = self.tokens.get(self.at) else { return Ok(()) };
        let text = &self.source[token.start..token.end];
        match token.kind {
            TokenKind::Text if text.contains('\\') => {
                let literal =
                    literal(text).map_err(|what| format!("line {}: {what}", line(self.source, token.start)))?;
                self.output.push_str(&literal);
            }
            _ => self.output.push_str(text),
        }
        (self.at, self.end) = (self.at + 1, token.end);
        Ok(())
    }

    /// Writes something in place of the next token.
    fn instead(&mut self, text: &str) {
        self.before();
        if let Some(token) = self.tokens.get(self.at) {
            self.output.push_str(text);
            (self.at, self.end) = (self.at + 1, token.end);
        }
    }

    /// Writes tokens up to one of `stop`, which is not written. Says whether there were commas outside brackets.
    fn sequence(&mut self, stop: &[&str]) -> Result<bool, String> {
        let (mut commas, mut behind_operand) = (false, false);
        while self.at < self.tokens.len() && !(stop.contains(&self.peek()) && self.kind() != Some(TokenKind::Text)) {
            let signed = !behind_operand && self.kind() == Some(TokenKind::Sign) && ["+", "-"].contains(&self.peek());
            if signed || self.starts_operand() {
                self.joined()?;
                behind_operand = true;
                continue;
            }
            commas |= self.kind() == Some(TokenKind::Sign) && self.peek() == ",";
            self.copy()?;
            behind_operand = false;
        }
        Ok(commas)
    }

    fn starts_operand(&self) -> bool {
        match self.kind() {
            Some(TokenKind::Name) => !WORDS.contains(&self.peek()),
            Some(TokenKind::Number | TokenKind::Text) => true,
            Some(TokenKind::Sign) => ["(", "[", "{"].contains(&self.peek()),
            None => false,
        }
    }

    fn is_sign(&self, sign: &str) -> bool {
        self.kind() == Some(TokenKind::Sign) && self.peek() == sign
    }

    /// Products with `~` between them, which joins them as Python's texts.
    fn joined(&mut self) -> Result<(), String> {
        self.before();
        let mut start = self.output.len();
        self.product()?;
        let mut joins = self.is_sign("~");
        while joins {
            self.output.insert_str(start, "((");
            self.output.push_str(")|string)");
            joins = self.is_sign("~");
            if joins {
                self.copy()?;
                self.before();
                start = self.output.len();
                self.product()?;
            }
        }
        Ok(())
    }

    /// Operands with `*`, `/`, `//` and `%` between them.
    fn product(&mut self) -> Result<(), String> {
        self.before();
        let start = self.output.len();
        self.power()?;
        loop {
            if self.is_sign("%") {
                self.output.insert_str(start, "((");
                self.instead(&format!(")|{MODULO}("));
                self.power()?;
                self.output.push_str("))");
            } else if ["*", "/", "//"].iter().any(|sign| self.is_sign(sign)) {
                self.copy()?;
                self.power()?;
            } else {
                return Ok(());
            }
        }
    }

    fn power(&mut self) -> Result<(), String> {
        self.unary(true)?;
        while self.is_sign("**") {
            self.copy()?;
            self.unary(true)?;
        }
        Ok(())
    }

    fn unary(&mut self, filters: bool) -> Result<(), String> {
        let number = self.tokens.get(self.at + 1).is_some_and(|token| token.kind == TokenKind::Number);
        if self.is_sign("-") && number && self.ahead(2) != "." {
            self.copy()?;
            self.copy()?;
        } else if self.is_sign("-") || self.is_sign("+") {
            let filter = if self.is_sign("-") { MINUS } else { PLUS };
            self.instead("((");
            self.unary(false)?;
            let _ = write!(self.output, ")|{filter})");
        } else {
            self.primary()?;
        }
        self.behind()?;
        if filters { self.filters() } else { Ok(()) }
    }

    fn primary(&mut self) -> Result<(), String> {
        match self.peek() {
            "(" | "[" | "{" if self.kind() == Some(TokenKind::Sign) => self.brackets(),
            name if self.kind() == Some(TokenKind::Name) && self.macros.contains(name) && self.ahead(1) == "(" => {
                self.instead(CALL);
                self.copy()?;
                self.output.push_str(name);
                self.output.push_str(if self.is_sign(")") { "" } else { ", " });
                self.sequence(&[")"])?;
                self.copy()
            }
            _ if self.starts_operand() => {
                let text = self.kind() == Some(TokenKind::Text);
                self.copy()?;
                while text && self.kind() == Some(TokenKind::Text) {
                    self.copy()?;
                }
                Ok(())
            }
            _ => self.copy(),
        }
    }

    /// An opening bracket up to its closing one.
    fn brackets(&mut self) -> Result<(), String> {
        let close = match self.peek() {
            "(" => ")",
            "[" => "]",
            _ => "}",
        };
        self.copy()?;
        self.sequence(&[close])?;
        self.copy()
    }

    /// Attributes, subscripts and calls.
    fn behind(&mut self) -> Result<(), String> {
        loop {
            if self.is_sign(".") {
                self.copy()?;
                self.copy()?;
            } else if self.is_sign("(") || self.is_sign("[") {
                self.brackets()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Filters and tests.
    fn filters(&mut self) -> Result<(), String> {
        loop {
            let test = self.kind() == Some(TokenKind::Name) && self.peek() == "is";
            if !test && !self.is_sign("|") {
                return Ok(());
            }
            self.copy()?;
            if test && self.peek() == "not" {
                self.copy()?;
            }
            self.copy()?;
            while self.is_sign(".") {
                self.copy()?;
                self.copy()?;
            }
            if self.is_sign("(") {
                self.brackets()?;
            } else if test && self.starts_operand() {
                self.primary()?;
                self.behind()?;
            }
        }
    }
}

/// A string literal of Python's with the escapes that minijinja knows.
fn literal(text: &str) -> Result<String, String> {
    let quote = text.chars().next().unwrap_or('"');
    let Some(inside) = text.get(1..text.len().saturating_sub(1)).filter(|_| text.len() > 1 && text.ends_with(quote))
    else {
        // Not closed, as minijinja will say.
        return Ok(text.to_string());
    };
    let mut output = String::with_capacity(text.len() + 8);
    output.push(quote);
    for c in decoded(inside)?.chars() {
        if c == '\\' || c == quote {
            output.push('\\');
        }
        output.push(c);
    }
    output.push(quote);
    Ok(output)
}

/// What Jinja makes of the inside of a literal: characters beyond ASCII become escapes, and then all escapes are decoded.
fn decoded(inside: &str) -> Result<String, String> {
    let mut output = String::with_capacity(inside.len());
    // The first half of a pair of surrogates.
    let mut half: Option<u16> = None;
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        let number = match c {
            '\\' => {
                let Some(escape) = chars.next() else { break };
                match escape {
                    '\n' => continue,
                    'x' => hexadecimal(&mut chars, 'x', 2)?,
                    'u' => hexadecimal(&mut chars, 'u', 4)?,
                    'U' => hexadecimal(&mut chars, 'U', 8)?,
                    'N' => {
                        return Err("a string literal with a character by its name, which is not supported".to_string());
                    }
                    '0'..='7' => {
                        let mut number = escape.to_digit(8).unwrap_or(0);
                        for _ in 0..2 {
                            let Some(digit) = chars.as_str().chars().next().and_then(|c| c.to_digit(8)) else { break };
                            number = number * 8 + digit;
                            chars.next();
                        }
                        number
                    }
                    '\\' | '\'' | '"' => u32::from(escape),
                    'a' => 7,
                    'b' => 8,
                    't' => 9,
                    'n' => 10,
                    'v' => 11,
                    'f' => 12,
                    'r' => 13,
                    escape => {
                        output.push('\\');
                        match u32::from(escape) {
                            ..0x80 => output.push(escape),
                            // The backslash takes that of the escape that the character had become.
                            number @ ..0x100 => drop(write!(output, "x{number:02x}")),
                            number @ ..0x10000 => drop(write!(output, "u{number:04x}")),
                            number => drop(write!(output, "U{number:08x}")),
                        }
                        continue;
                    }
                }
            }
            c => u32::from(c),
        };
        match (half.take(), number) {
            (Some(high), 0xdc00..0xe000) => {
                let pair = char::decode_utf16([high, number as u16]).next();
                output.extend(pair.and_then(std::result::Result::ok));
            }
            (None, 0xd800..0xdc00) => half = Some(number as u16),
            (None, number) if char::from_u32(number).is_some() => output.extend(char::from_u32(number)),
            _ => return Err("a string literal with half a pair of surrogates".to_string()),
        }
    }
    match half {
        None => Ok(output),
        Some(_) => Err("a string literal with half a pair of surrogates".to_string()),
    }
}

fn hexadecimal(chars: &mut std::str::Chars<'_>, escape: char, digits: usize) -> Result<u32, String> {
    let mut number = 0;
    for _ in 0..digits {
        let digit = chars.next().and_then(|c| c.to_digit(16));
        let digit = digit.ok_or_else(|| {
            format!("a string literal with an escape \\{escape}: expected {digits} hexadecimal digits, found fewer")
        })?;
        number = number * 16 + digit;
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::{decoded, rewrite};

    #[test]
    fn only_what_has_to_be_is_rewritten() {
        for (source, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% with %}b{% endwith %}c"),
            ("{%- generation -%}b{%-endgeneration-%}", "{%- with -%}b{%-endwith-%}"),
            ("{%+generation\n%}", "{%+with\n%}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            (r#"{{ "\"{% generation %}" }}"#, r#"{{ "\"{% generation %}" }}"#),
            (
                "{% raw %}{% generation %}{% endraw %}{% generation %}",
                "{% raw +%}{% generation %}{% endraw %}{% with %}",
            ),
            ("{% set generation = 1 %}{{ generation }}", "{% set generation = 1 %}{{ generation }}"),
            ("{% generations %}", "{% generations %}"),
            ("{", "{"),
            ("{%", "{%"),
            ("{%é", "{%é"),
            ("{{ 'é", "{{ 'é"),
            ("{{ 'é\\", "{{ 'é\\"),
            ("", ""),
            ("{{ a  %  b }}", "{{ ((a  )|__modulo(  b)) }}"),
            (
                "{{- a[i % 2].b|f(1) % -c.d + e -}}",
                "{{- ((a[((i )|__modulo( 2))].b|f(1) )|__modulo( ((c.d)|__minus))) + e -}}",
            ),
            ("{{ a ~ b * 2 ~ -c + d }}", "{{ ((a)|string) ~ ((b * 2)|string) ~ ((((c)|__minus))|string) + d }}"),
            ("{% raw %}\n{% endraw %}{%- raw -%}{%endraw%}", "{% raw +%}\n{% endraw %}{%- raw -%}{%endraw%}"),
            ("{% if not (a) * b % c == 0 %}", "{% if not (((a) * b )|__modulo( c)) == 0 %}"),
            ("{{ 1 - +x.y|f }}", "{{ 1 - ((x.y)|__plus)|f }}"),
            ("{{ -1 - -x }}", "{{ -1 - ((x)|__minus) }}"),
            ("{{ {'a': {'b': 7 % 2}} }}", "{{ {'a': {'b': ((7 )|__modulo( 2))}} }}"),
            ("{{ x is divisibleby 3 and y }}", "{{ x is divisibleby 3 and y }}"),
            ("{{ 1, 'a' }}", "{{ (1, 'a') }}"),
            ("{% for a, b in c, d if a %}", "{% for a, b in (c, d) if a %}"),
            (
                "{% macro m(a) %}{{ varargs }}{% endmacro %}{{ m() }}{{ m(1) }}{{ x.m(2) }}",
                "{% macro m(a, varargs=(), kwargs={}) %}{{ varargs }}{% endmacro %}{{ __call(m) }}{{ __call(m, 1) }}{{ x.m(2) }}",
            ),
            (
                "{% macro m(a) %}{{ f(kwargs=1) }}{% endmacro %}{{ m(1) }}",
                "{% macro m(a) %}{{ f(kwargs=1) }}{% endmacro %}{{ m(1) }}",
            ),
        ] {
            assert_eq!(rewrite(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn literals_are_those_of_python() {
        for (inside, expected) in [
            ("Paris.\\\nYour", "Paris.Your"),
            (r"\/\d\ ", r"\/\d\ "),
            (r"\a\b\f\n\r\t\v\0\7", "\x07\x08\x0c\n\r\t\x0b\0\x07"),
            (r#"\101\x41\u0041\U00000041\'\"\\"#, "AAAA'\"\\"),
            (r"\ud83d\ude00 é", "\u{1f600} é"),
            (r"\é\你", r"\xe9\u4f60"),
            (r"\400", "\u{100}"),
        ] {
            assert_eq!(decoded(inside).unwrap(), expected, "{inside}");
        }
        for inside in [r"\x4", r"\u004", r"\U0011ffff", r"\ud83d", r"\ud83dx", r"\N{DASH}"] {
            assert!(decoded(inside).is_err(), "{inside}");
        }
        assert_eq!(rewrite("a\n{{ '\\x4' }}").unwrap_err().split(':').next(), Some("line 2"));
    }

    #[test]
    fn long_texts_but_no_long_code() {
        let text = format!("{{{{ '{}' }}}}", "x".repeat(100_000));
        assert_eq!(rewrite(&text).unwrap(), text);
        let code = format!("\n{{{{ 1{} }}}}", "+1".repeat(4096));
        assert!(rewrite(&code).unwrap_err().starts_with("line 2"));
    }
}
