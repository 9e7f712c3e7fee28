//! Stop strings in a text that grows piece by piece.

use crate::{Error, Result};

/// Strings that end a text. None of them is part of it.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
}

/// Most stop strings, and most bytes of one.
const MOST: usize = 16;
const LONGEST: usize = 256;

impl StopStrings {
    /// Checks them.
    ///
    /// # Errors
    /// Too many, an empty one or one that is too long.
    pub fn new(strings: &[String]) -> Result<StopStrings> {
        if strings.len() > MOST {
            return Err(Error::invalid(format!("stop: at most {MOST} strings, not {}", strings.len())));
        }
        if let Some(bad) = strings.iter().find(|s| s.is_empty() || s.len() > LONGEST) {
            let len = bad.len();
            return Err(Error::invalid(format!("stop: each string has 1 to {LONGEST} bytes, and one has {len}")));
        }
        Ok(StopStrings { strings: strings.to_vec() })
    }

    /// Where in `text` the first of them begins, and which it is, the longest on a tie. Only those that end after byte `from`:
    /// the text up to there was searched before.
    pub fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize)> = None;
        for (which, string) in self.strings.iter().enumerate() {
            let mut at = from.saturating_sub(string.len() - 1).min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let found = text[at..].match_indices(string.as_str()).map(|(i, _)| at + i);
            let Some(begin) = found.into_iter().find(|begin| begin + string.len() > from) else { continue };
            let better = best.is_none_or(|(b, w)| begin < b || (begin == b && string.len() > self.strings[w].len()));
            if better {
                best = Some((begin, which));
            }
        }
        best
    }

    /// Bytes at the end of `text` that may be the beginning of one: not to be shown yet.
    pub fn holdback(&self, text: &str) -> usize {
        let begins = |len: &usize| {
            let at = text.len() - len;
            text.is_char_boundary(at) && self.strings.iter().any(|s| s.len() > *len && s.starts_with(&text[at..]))
        };
        (1..LONGEST.min(text.len() + 1)).rev().find(begins).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(&strings.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_earliest_and_then_the_longest() {
        let stops = stops(&["bc", "abd", "bcd"]);
        assert_eq!(stops.find("xabcd", 0), Some((2, 2)));
        assert_eq!(stops.find("xabdbc", 0), Some((1, 1)));
        assert_eq!(stops.find("xabdbc", 4), Some((4, 0)));
        assert_eq!(stops.find("xabcd", 5), None);
        assert_eq!(stops.find("", 0), None);
        assert_eq!(stops.find("ab", 99), None);
    }

    #[test]
    fn what_may_still_become_one_is_held_back() {
        let stops = stops(&["\n\n", "Ünder"]);
        assert_eq!(stops.holdback("a\n"), 1);
        assert_eq!(stops.holdback("a\nb"), 0);
        assert_eq!(stops.holdback("aÜnd"), 4);
        assert_eq!(stops.holdback(""), 0);
        assert_eq!(StopStrings::default().holdback("abc"), 0);
    }

    #[test]
    fn bad_ones_are_refused() {
        assert!(StopStrings::new(&vec!["a".to_string(); 17]).is_err());
        assert!(StopStrings::new(&[String::new()]).is_err());
        assert!(StopStrings::new(&["a".repeat(257)]).is_err());
    }

    proptest! {
        /// Searching as the text grows finds what a search of the whole text finds.
        #[test]
        fn growing_text(strings in prop::collection::vec("[abé]{1,3}", 1..4), pieces in prop::collection::vec("[abé]{0,3}", 0..8)) {
            let stops = StopStrings::new(&strings).unwrap();
            let (mut text, mut found) = (String::new(), None);
            for piece in pieces {
                let from = text.len();
                let held = stops.holdback(&text);
                text += &piece;
                found = stops.find(&text, from);
                if let Some((begin, _)) = found {
                    prop_assert!(begin >= from - held, "a part of it was shown");
                    break;
                }
            }
            let naive = strings.iter().filter_map(|s| text.find(s.as_str())).min();
            prop_assert_eq!(found.map(|(begin, _)| begin), naive);
        }
    }
}
