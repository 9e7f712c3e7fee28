//! Counts over the words of answers: how different they are, and how much they repeat.

use std::collections::HashSet;

/// The words of a text, in lower case: runs of letters, digits and apostrophes.
pub fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let parts = lower.split(|c: char| !(c.is_alphanumeric() || c == '\''));
    parts.filter(|word| !word.is_empty()).map(str::to_string).collect()
}

/// Distinct-n of some answers: different runs of `n` words over all of them (Li et al., arXiv 1510.03055); `None` if there is no
/// run. It falls with the number of answers, so it compares methods over the same prompts only.
pub fn distinct<'a>(answers: impl Iterator<Item = &'a [String]>, n: usize) -> Option<f64> {
    let (mut different, mut all) = (HashSet::new(), 0_usize);
    for answer in answers {
        for run in answer.windows(n.max(1)) {
            different.insert(run);
            all += 1;
        }
    }
    (all > 0).then(|| different.len() as f64 / all as f64)
}

/// Share of the word trigrams of an answer that occurred in it before, 0 to 1; 0 for answers of fewer than three words.
pub fn repetition(words: &[String]) -> f64 {
    let different: HashSet<&[String]> = words.windows(3).collect();
    match words.windows(3).len() {
        0 => 0.0,
        all => 1.0 - different.len() as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_words_are_counted() {
        let (one, two) = (words("The cat, the CAT; the cat."), words("Don't run 2 \u{c9}cole"));
        assert_eq!(two, ["don't", "run", "2", "\u{e9}cole"]);
        // the cat the, cat the cat, the cat the, cat the cat
        assert_eq!(repetition(&one), 0.5);
        assert_eq!((repetition(&two), repetition(&words("a b"))), (0.0, 0.0));
        let all = || [one.as_slice(), two.as_slice()].into_iter();
        assert_eq!(distinct(all(), 1), Some(6.0 / 10.0));
        assert_eq!(distinct(all(), 2), Some(5.0 / 8.0));
        assert_eq!(distinct([].into_iter(), 1), None);
    }
}
