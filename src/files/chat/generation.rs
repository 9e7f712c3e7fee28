//! The `generation` tag, which `transformers` adds to Jinja to mark what the assistant wrote. It renders its content.

/// Longest tag or expression, in bytes outside strings. The compiler folds constants in cubic time.
const MAX_CODE: usize = 4 << 10;

/// Spells `{% generation %}` and `{% endgeneration %}` as `with` and `endwith`, which open a scope and do nothing else.
///
/// Whitespace control stays where it is. Comments, raw blocks, expressions and strings are left alone.
///
/// # Errors
/// The line of a tag or expression that is longer than any real one.
pub(super) fn replace_tags(source: &str) -> Result<String, String> {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        let (text, tail) = rest.split_at(start);
        output.push_str(text);
        let length = match tail.get(..2) {
            Some("{#") if !raw => tail.find("#}").map_or(tail.len(), |end| end + 2),
            Some("{{") if !raw => expression_end(tail, "}}").ok_or_else(|| too_long(source, tail))?,
            Some("{%") => {
                let end = if raw { 2 } else { expression_end(tail, "%}").ok_or_else(|| too_long(source, tail))? };
                let (name_start, name) = tag_name(tail);
                match name {
                    "raw" => raw = true,
                    "endraw" => raw = false,
                    "generation" | "endgeneration" if !raw => {
                        output.push_str(&tail[..name_start]);
                        output.push_str(if name == "generation" { "with" } else { "endwith" });
                        output.push_str(&tail[name_start + name.len()..end]);
                        rest = &tail[end..];
                        continue;
                    }
                    _ => {}
                }
                end
            }
            _ => 1,
        };
        output.push_str(&tail[..length]);
        rest = &tail[length..];
    }
    output.push_str(rest);
    Ok(output)
}

fn too_long(source: &str, tail: &str) -> String {
    let line = source[..source.len() - tail.len()].matches('\n').count() + 1;
    format!("line {line}: expected at most {MAX_CODE} bytes of code in one tag, found more")
}

/// The first word of a tag and where it begins.
fn tag_name(tag: &str) -> (usize, &str) {
    let body = &tag[2..];
    let word = body.strip_prefix(['-', '+']).unwrap_or(body).trim_start();
    let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
    (tag.len() - word.len(), &word[..end])
}

/// Bytes up to and including `close`, which does not count inside strings. All of the text if it is not closed; `None`
/// if it is too long.
fn expression_end(text: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut code = 0;
    let mut chars = text.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(_) if c == '\\' => {
                chars.next();
            }
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[at..].starts_with(close) => return Some(at + close.len()),
            None => {}
        }
        code += usize::from(quote.is_none());
        if code > MAX_CODE {
            return None;
        }
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::replace_tags;

    #[test]
    fn only_tags_are_replaced() {
        for (source, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% with %}b{% endwith %}c"),
            ("{%- generation -%}b{%-endgeneration-%}", "{%- with -%}b{%-endwith-%}"),
            ("{%+generation\n%}", "{%+with\n%}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            (r#"{{ "\"{% generation %}" }}"#, r#"{{ "\"{% generation %}" }}"#),
            (
                "{% raw %}{% generation %}{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{% endraw %}{% with %}",
            ),
            ("{% set generation = 1 %}{{ generation }}", "{% set generation = 1 %}{{ generation }}"),
            ("{% generations %}", "{% generations %}"),
            ("{", "{"),
            ("{%", "{%"),
            ("{%é", "{%é"),
            ("{{ 'é", "{{ 'é"),
            ("", ""),
        ] {
            assert_eq!(replace_tags(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn long_texts_but_no_long_code() {
        let text = format!("{{{{ '{}' }}}}", "x".repeat(100_000));
        assert_eq!(replace_tags(&text).unwrap(), text);
        let code = format!("\n{{{{ 1{} }}}}", "+1".repeat(4096));
        assert!(replace_tags(&code).unwrap_err().starts_with("line 2"));
    }
}
