//! How a task is asked and how its answers are read: wording as data.
//!
//! A task file is TOML. Every key may be missing; what it leaves out stays as the task has it:
//!
//! ```toml
//! task   = "arc-challenge"                     # the dataset, unless the command line names it
//! name   = "short questions"                   # what reports call this wording
//! field  = "question"                          # the field of a row that holds the text or the question
//! prompt = "{question}\n\n{options}\n\nWhich?"  # the user's message; tasks without options have {text}
//! option = "{letter}. {text}"                  # a line of {options}
//! prefill = "Well,"                            # how every answer begins
//! reader = "first"                             # how a choice is read: first or last
//! pattern = '(?i)choice: ([A-J])'              # or a regular expression, whose first group is the choice
//! ```

use crate::files::chat::is_space;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// The wording of a task, where it is not the task's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskFile {
    /// Name of the dataset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What reports call the wording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The field of a row that holds the text or the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The user's message, with `{text}`, or `{question}` and `{options}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// An option, with `{letter}` and `{text}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub option: Option<String>,
    /// The beginning of every answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<String>,
    /// How a choice is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader: Option<NamedReader>,
    /// A regular expression in place of a reader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
}

/// A rule by which a choice is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedReader {
    /// The official code's rule: the first letter from A to J that follows the word "answer" and stands alone. Space, and a
    /// colon or a hyphen, may stand between them.
    First,
    /// The last statement of an answer, else the last letter in brackets.
    Last,
}

/// What reads the choice out of an answer.
#[derive(Clone, Debug)]
pub enum Reader {
    /// A rule with a name.
    Named(NamedReader),
    /// The first group of a regular expression's first match, as a capital.
    Pattern(Regex),
}

impl TaskFile {
    /// The reader that the file asks for, if it asks for one.
    ///
    /// # Errors
    /// It asks for two, or the regular expression is none or has no group.
    pub fn reader(&self) -> Result<Option<Reader>, String> {
        match (self.reader, &self.pattern) {
            (Some(_), Some(_)) => Err("`reader` and `pattern` exclude each other".to_string()),
            (named, None) => Ok(named.map(Reader::Named)),
            (None, Some(pattern)) => {
                let pattern = Regex::new(pattern).map_err(|e| format!("`pattern`: {e}"))?;
                match pattern.captures_len() {
                    1 => Err("`pattern`: expected a group in brackets around the choice, found none".to_string()),
                    _ => Ok(Some(Reader::Pattern(pattern))),
                }
            }
        }
    }
}

impl Reader {
    /// The choice that an answer names.
    pub fn choice(&self, text: &str) -> Option<String> {
        match self {
            Reader::Named(NamedReader::First) => first(text),
            Reader::Named(NamedReader::Last) => last(text),
            Reader::Pattern(pattern) => pattern.captures(text)?.get(1).map(|found| found.as_str().to_uppercase()),
        }
    }
}

/// `(?i)answer\s*[:\-]?\s*([A-J])\b` as Python's `re` matches it.
fn first(text: &str) -> Option<String> {
    text.char_indices().find_map(|(at, _)| {
        let rest = behind_answer(&text[at..])?.trim_start_matches(is_space);
        let rest = rest.strip_prefix([':', '-']).unwrap_or(rest).trim_start_matches(is_space);
        let mut rest = rest.chars();
        // Without regard to case, Python takes both of these for an I.
        let letter = rest.next().filter(|c| matches!(c, 'A'..='J' | 'a'..='j' | 'ı' | 'İ'))?;
        rest.next().is_none_or(|next| !is_of_word(next)).then(|| letter.to_uppercase().to_string())
    })
}

/// What follows the word, if the text begins with it. Without regard to case, a long s is an s.
fn behind_answer(text: &str) -> Option<&str> {
    let mut rest = text.chars();
    let spelled = "answer"
        .chars()
        .all(|expected| rest.next().is_some_and(|c| c.to_ascii_lowercase() == expected || (c, expected) == ('ſ', 's')));
    spelled.then_some(rest.as_str())
}

/// Python's `\w`: letters, numbers and the underscore, but neither combining marks nor letters in circles, which Rust counts as
/// alphabetic.
fn is_of_word(c: char) -> bool {
    static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]").ok());
    match &*WORD {
        Some(word) if !c.is_ascii() => word.is_match(c.encode_utf8(&mut [0; 4])),
        _ => c.is_alphanumeric() || c == '_',
    }
}

fn last(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let said = ["answer is", "answer:"].iter().flat_map(|words| lower.match_indices(words));
    let said: Option<usize> = said.map(|(at, words)| at + words.len()).max();
    said.and_then(|at| letter(&text[at..])).or_else(|| {
        let brackets = text.match_indices('(').filter_map(|(at, _)| {
            let mut rest = text[at + 1..].chars();
            rest.next().filter(|&c| is_choice(c) && rest.next() == Some(')'))
        });
        brackets.map(String::from).next_back()
    })
}

fn is_choice(c: char) -> bool {
    c.is_ascii_uppercase() && c <= 'J'
}

/// The first choice that stands alone, within a few words.
fn letter(text: &str) -> Option<String> {
    let near = text.chars().take(24).collect::<String>();
    let mut words = near.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let found = words.find(|word| word.len() == 1 && word.chars().all(is_choice))?;
    Some(found.to_string())
}

/// Puts values in place of their names in braces. Other braces stay as they are, and values are not looked through.
pub(super) fn filled(wording: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::new();
    let mut rest = wording;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        text += before;
        let named = values.iter().find_map(|(name, value)| {
            let behind = from.strip_prefix('{')?.strip_prefix(name)?.strip_prefix('}')?;
            Some((value, behind))
        });
        match named {
            Some((value, behind)) => {
                text += value;
                rest = behind;
            }
            None => {
                text.push('{');
                rest = &from[1..];
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_the_first_or_the_last_statement() {
        let (by_first, by_last) = (Reader::Named(NamedReader::First), Reader::Named(NamedReader::Last));
        for (text, first, last) in [
            ("So the answer is (B).", None, Some("B")),
            ("The answer is A? No: the answer is C", None, Some("C")),
            ("Answer: D", Some("D"), Some("D")),
            ("ANSWER - b. Or is it? Answer: C", Some("B"), Some("C")),
            ("answer\n:\n a", Some("A"), None),
            ("Answer: Kelvin. Answer: Apple. answer: e_1. answerJ", Some("J"), None),
            ("an answer a day", Some("A"), None),
            ("I think (A) is wrong, it must be (E)", None, Some("E")),
            ("The answer is that nobody knows", None, None),
            ("answer: É", None, None),
            // As Python reads them: combining marks and letters in circles are no part of a word.
            ("Answer:B\u{903}", Some("B"), None),
            ("Answer:C\u{345}", Some("C"), None),
            ("anſwer-D\u{24b6}", Some("D"), None),
            ("Answer:E\u{b2}. Answer:F\u{2160}. Answer:Gé", None, None),
            ("Answer:ı", Some("I"), None),
            ("Answerİ", Some("İ"), None),
            ("ANSWER\u{1c}:\u{1f}\u{a0}H", Some("H"), None),
            ("Answer\u{200b}A", None, None),
            ("", None, None),
        ] {
            assert_eq!(by_first.choice(text).as_deref(), first, "{text}");
            assert_eq!(by_last.choice(text).as_deref(), last, "{text}");
        }
    }

    #[test]
    fn a_pattern_reads_what_its_group_holds() {
        let file = TaskFile { pattern: Some(r"(?i)choice:\s*([a-j])\b".to_string()), ..TaskFile::default() };
        let reader = file.reader().unwrap().unwrap();
        assert_eq!(reader.choice("My choice: c").as_deref(), Some("C"));
        assert_eq!(reader.choice("My choice: cat"), None);
        for (pattern, reader, expected) in [
            ("choice", None, "expected a group in brackets"),
            ("(", None, "`pattern`: "),
            ("(x)", Some(NamedReader::Last), "exclude each other"),
        ] {
            let file = TaskFile { pattern: Some(pattern.to_string()), reader, ..TaskFile::default() };
            let message = file.reader().unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn only_names_in_braces_are_replaced() {
        let values = [("question", "Is {options} a set?"), ("options", "{x}")];
        assert_eq!(
            filled("{question} {options} {Your Answer} {{options}} {", &values),
            "Is {options} a set? {x} {Your Answer} {{x}} {"
        );
    }
}
