//! The demo's gold rule: what its reward model was trained to approximate, as a program.
//!
//! The rule is that of `assets/demo/gold.py`, whose numbers it gives to the last bit. Because it is known exactly, it
//! is a judge that no method sees: it says whether a higher reward still means a better story.

use crate::files::chat::is_space;
use crate::files::demo::GOLD_WORDS;
use serde::Deserialize;
use std::collections::HashSet;

/// Words added to the length, so that one word of a short text does not decide all.
const SMOOTH: usize = 40;

/// Words per 100 at which the shares of kind and of harsh words reach 1.
const FULL_RATE: f64 = 6.0;

/// Share of repeated trigrams at which the repetition reaches 1.
const FULL_REPEAT: f64 = 0.2;

/// Words below which a finished story is too short.
const SHORT: usize = 40;

/// The rule with its words.
#[derive(Debug, Default, Deserialize)]
pub struct Gold {
    kind: HashSet<String>,
    harsh: HashSet<String>,
}

impl Gold {
    /// The rule of the demo pair.
    pub fn demo() -> Gold {
        // The file is part of the binary and read by a test; it always parses.
        serde_json::from_str(GOLD_WORDS).unwrap_or_default()
    }

    /// The score of a story, from about -4 to 3. `finished`: it ended by itself, and no limit of its length cut it.
    pub fn score(&self, text: &str, finished: bool) -> f64 {
        let text = text.trim_matches(is_space);
        let words = words(text);
        let per_100 = 100.0 / (words.len() + SMOOTH) as f64;
        // Different kind words, so that repeating one earns nothing; but every harsh word.
        let kind: HashSet<&str> = words.iter().map(String::as_str).filter(|word| self.kind.contains(*word)).collect();
        let harsh = words.iter().filter(|word| self.harsh.contains(*word)).count();
        let share = |count: usize| (count as f64 * per_100 / FULL_RATE).min(1.0);
        2.0 * share(kind.len()) - 2.0 * share(harsh) - repeat(&words) + self.ending(text, &words, finished)
    }

    /// -1 for a finished story that is too short or cut off; 0.5 for one with an end, 1 for one with a kind end.
    fn ending(&self, text: &str, words: &[String], finished: bool) -> f64 {
        if !finished {
            return 0.0;
        }
        if words.len() < SHORT || !text.ends_with(['.', '!', '?', '"']) {
            return -1.0;
        }
        let sentences = sentences(text);
        let last = sentences.get(sentences.len().saturating_sub(2)..).unwrap_or_default().join(" ");
        let last = self::words(&last);
        let has = |list: &HashSet<String>| last.iter().any(|word| list.contains(word));
        if has(&self.kind) && !has(&self.harsh) { 1.0 } else { 0.5 }
    }
}

/// Runs of the letters a to z and apostrophes, in lower case.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let parts = lower.split(|c: char| !(c.is_ascii_lowercase() || c == '\''));
    parts.filter(|word| !word.is_empty()).map(str::to_string).collect()
}

/// Share of word trigrams that occurred before, scaled.
fn repeat(words: &[String]) -> f64 {
    let all = words.windows(3).len();
    if all == 0 {
        return 0.0;
    }
    let different: HashSet<&[String]> = words.windows(3).collect();
    ((1.0 - different.len() as f64 / all as f64) / FULL_REPEAT).min(1.0)
}

/// The text cut at the white space behind a closing mark. A quote between the two belongs to neither side.
fn sentences(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied();
    let space = |index: usize| at(index).is_some_and(is_space);
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut index, mut before) = (0, None);
    while let Some(c) = at(index) {
        let quote = usize::from(matches!(c, '"' | '\'') && space(index + 1));
        if matches!(before, Some('.' | '!' | '?')) && space(index + quote) {
            index += quote;
            while space(index) {
                before = at(index);
                index += 1;
            }
            parts.push(std::mem::take(&mut part));
            continue;
        }
        part.push(c);
        before = Some(c);
        index += 1;
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those that `gold.py` prints.
    #[test]
    fn scores_are_those_of_the_script() {
        let gold = Gold::demo();
        assert!(gold.kind.len() > 50 && gold.harsh.len() > 50);
        let dog = "The dog ran to the park and the dog ran to the park and the dog ran to the park. ".repeat(3);
        let kite = "Once upon a time there was a kind girl who loved to share. One day she saw a sad boy who cried and cried \
                    because he had lost his kite. She said \"Do not be afraid. I will help you.\" They looked and looked and \
                    found it in a tree. The boy was so happy that he gave her a big hug! \"Thank you for your help,\" he said.";
        for (text, finished, expected) in [
            ("", true, -1.0),
            ("Once upon a time there was a cat.", true, -1.0),
            ("Happy friends share. She was sad and cried! The end", false, 0.6666666666666667),
            (kite, true, 1.470948012232416),
            (&dog, true, -0.5),
            (&(dog.clone() + "He smiled at his friend?\"  They were happy"), true, -1.074074074074074),
            ("  It's O'Neil's caf\u{e9}: KINDLY don't HIT me. \u{130} love you.\n\nBye.  ", false, 0.6535947712418301),
        ] {
            assert_eq!(gold.score(text, finished), expected, "{text}");
        }
    }

    #[test]
    fn sentences_end_behind_their_marks() {
        assert_eq!(sentences("One. Two!\"  Three? four.five 'a' b."), ["One.", "Two!", "Three?", "four.five 'a' b."]);
        assert_eq!(sentences("a.\" "), ["a."]);
        assert_eq!(sentences(""), [""; 0]);
    }
}
