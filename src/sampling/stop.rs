//! Stop strings in a text that grows piece by piece.
//!
//! Tokens end anywhere, so a stop string may begin in one piece and end in another. Whoever streams the text asks two
//! questions after each piece: does a stop string end in it, and if not, how much of the end may not be shown yet.

use std::cmp::Reverse;

use crate::{Error, Result};

/// Finds stop strings in text that grows piece by piece, also across pieces.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
}

impl StopStrings {
    /// Most stop strings.
    const MOST: usize = 16;
    /// Bytes of the longest stop string allowed.
    const LONGEST: usize = 256;

    /// At most 16 strings of 1 to 256 bytes each.
    ///
    /// # Errors
    /// Too many strings, or one that is empty or too long, by its place.
    pub fn new(strings: &[String]) -> Result<Self> {
        if strings.len() > StopStrings::MOST {
            let (most, count) = (StopStrings::MOST, strings.len());
            return Err(Error::invalid(format!("stop must hold at most {most} strings, not {count}")));
        }
        for (which, string) in strings.iter().enumerate() {
            if string.is_empty() || string.len() > StopStrings::LONGEST {
                let (longest, bytes) = (StopStrings::LONGEST, string.len());
                return Err(Error::invalid(format!("stop[{which}] must have 1 to {longest} bytes, not {bytes}")));
            }
        }
        Ok(StopStrings { strings: strings.to_vec() })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Bytes of the longest one.
    pub(crate) fn longest(&self) -> usize {
        self.strings.iter().map(String::len).max().unwrap_or(0)
    }

    /// The stop string that begins earliest, the longest on a tie: the byte where it begins and its place in the list.
    /// Only those that end after byte `from` count, so `from` is the length of the text when it was last asked about,
    /// and no piece is searched twice but for the few bytes before it.
    pub fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let found = self.strings.iter().enumerate().filter_map(|(which, string)| {
            // The first beginning with an end after `from`. A string cannot begin inside a character.
            let start = text.ceil_char_boundary(from.saturating_add(1).saturating_sub(string.len()));
            let begin = start + text[start..].find(string.as_str())?;
            Some((begin, Reverse(string.len()), which))
        });
        found.min().map(|(begin, _, which)| (begin, which))
    }

    /// The string at a place of the list, empty beyond its end.
    pub fn string(&self, which: usize) -> &str {
        self.strings.get(which).map_or("", String::as_str)
    }

    /// How many bytes at the end of `text` may still become a stop string and must not be shown yet: the longest end of
    /// it that a stop string begins with and goes on from. A complete one is for [`StopStrings::find`] to see.
    ///
    /// What is left out ends at a character boundary, because a stop string begins with a whole character.
    pub fn holdback(&self, text: &str) -> usize {
        let longest = |string: &String| {
            let string = string.as_bytes();
            (1..string.len()).rev().find(|&length| text.as_bytes().ends_with(&string[..length]))
        };
        self.strings.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(strings: &[&str]) -> StopStrings {
        let owned: Vec<String> = strings.iter().map(|string| string.to_string()).collect();
        StopStrings::new(&owned).unwrap()
    }

    #[test]
    fn too_many_too_short_or_too_long_is_refused_by_name() {
        let message = |strings: Vec<String>| StopStrings::new(&strings).unwrap_err().to_string();
        assert!(message(vec!["x".into(); 17]).starts_with("stop must hold at most 16"));
        assert!(message(vec!["x".into(), String::new()]).starts_with("stop[1]"));
        // 129 characters of two bytes.
        assert!(message(vec!["é".repeat(129)]).ends_with("not 258"));
        StopStrings::new(&vec!["é".repeat(128); 16]).unwrap();
        assert_eq!(stops(&[]).find("anything", 0), None);
        assert_eq!(stops(&[]).holdback("anything"), 0);
    }

    #[test]
    fn the_earliest_beginning_wins_and_then_the_longest() {
        assert_eq!(stops(&["cd", "bcd", "b", "bc"]).find("abcd", 0), Some((1, 1)));
        assert_eq!(stops(&["b", "b"]).find("abb", 0), Some((1, 0)));
        assert_eq!(stops(&["x"]).find("abcd", 0), None);
        assert_eq!(stops(&["x"]).find("", 0), None);
    }

    #[test]
    fn what_ended_before_is_not_found_again() {
        let ab = stops(&["ab"]);
        for (from, found) in [(0, Some(0)), (1, Some(0)), (2, Some(3)), (4, Some(3)), (5, None), (9, None)] {
            assert_eq!(ab.find("ab-ab", from).map(|found| found.0), found, "{from}");
        }
        assert_eq!(ab.find("ab-ab", usize::MAX), None);
        // Overlapping: the second occurrence begins inside the first.
        assert_eq!(stops(&["aa"]).find("aaa", 2), Some((1, 0)));
    }

    #[test]
    fn a_string_across_pieces_is_held_back_until_it_is_complete() {
        let stop = stops(&["</end>", "\n\nUser:", "。」"]);
        let pieces = ["Wer <", "b> and </", "en", "dless\n", "\nUse", "d 🦀 so", "。", "。", "」 more"];
        let (mut text, mut shown) = (String::new(), String::new());
        let mut found = None;
        for piece in pieces {
            let from = text.len();
            text.push_str(piece);
            found = stop.find(&text, from);
            let end = found.map_or(text.len() - stop.holdback(&text), |(begin, _)| begin);
            shown.push_str(&text[shown.len()..end]);
        }
        assert_eq!(shown, "Wer <b> and </endless\n\nUsed 🦀 so。");
        assert_eq!(found.map(|found| found.1), Some(2));
    }

    #[test]
    fn held_back_is_the_longest_beginning_at_the_end() {
        let stop = stops(&["abac", "ba", "héé"]);
        for (text, bytes) in [("xaba", 3), ("xab", 2), ("xb", 1), ("xc", 0), ("", 0), ("abac", 0), ("h", 1)] {
            assert_eq!(stop.holdback(text), bytes, "{text}");
        }
        assert_eq!(stop.holdback("hé"), 3);
        // "è" shares its first byte with "é", but a character is either there or not.
        assert_eq!(stop.holdback("hè"), 0);
    }

    /// The same by trying every place and every string.
    fn naive(strings: &[String], text: &str, from: usize) -> Option<(usize, usize)> {
        for begin in 0..text.len() {
            let mut best: Option<usize> = None;
            for (which, string) in strings.iter().enumerate() {
                let here = text.as_bytes()[begin..].starts_with(string.as_bytes()) && begin + string.len() > from;
                if here && best.is_none_or(|best| string.len() > strings[best].len()) {
                    best = Some(which);
                }
            }
            if let Some(which) = best {
                return Some((begin, which));
            }
        }
        None
    }

    proptest! {
        #[test]
        fn finding_is_a_naive_search(
            strings in prop::collection::vec("[abéè]{1,4}", 0..5),
            text in "[abéè🦀]{0,24}",
            from in 0usize..60,
        ) {
            let stop = StopStrings::new(&strings).unwrap();
            prop_assert_eq!(stop.find(&text, from), naive(&strings, &text, from));
        }

        /// Whatever stop string ends later, no byte of it was shown before.
        #[test]
        fn nothing_of_a_later_stop_string_is_shown(
            strings in prop::collection::vec("[abé]{1,5}", 1..4),
            text in "[abé]{0,16}",
            more in "[abé]{1,8}",
        ) {
            let stop = StopStrings::new(&strings).unwrap();
            let held = stop.holdback(&text);
            prop_assert!(text.is_char_boundary(text.len() - held));
            let whole = format!("{text}{more}");
            if let Some((begin, _)) = stop.find(&whole, text.len()) {
                prop_assert!(begin >= text.len() - held);
            }
        }
    }
}
