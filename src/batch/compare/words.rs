//! Counts over the words of answers: how different they are, and how much they repeat.

use std::collections::{HashMap, HashSet};

/// The words of a text, in lower case: runs of letters, digits and apostrophes.
pub fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let parts = lower.split(|c: char| !(c.is_alphanumeric() || c == '\''));
    parts.filter(|word| !word.is_empty()).map(str::to_string).collect()
}

/// Distinct-n of some answers: different runs of `n` words over all of them (Li et al., arXiv 1510.03055). It falls with the
/// number of answers, so it compares methods over the same prompts only.
pub struct Distinct {
    /// Of all answers.
    pub all: f64,
    /// Of all answers but those of one prompt, for each prompt; `None` where nothing is left.
    pub without: Vec<Option<f64>>,
}

impl Distinct {
    /// Of answers, each with the place of its prompt, below `prompts`; `None` if there is no run.
    pub fn of<'a>(answers: impl Iterator<Item = (usize, &'a [String])>, prompts: usize, n: usize) -> Option<Distinct> {
        // The prompt that has a run, `None` if several have it.
        let mut different: HashMap<&[String], Option<usize>> = HashMap::new();
        let (mut runs, mut alone) = (vec![0_usize; prompts], vec![0_usize; prompts]);
        for (prompt, answer) in answers {
            for run in answer.windows(n.max(1)) {
                let owner = different.entry(run).or_insert(Some(prompt));
                *owner = owner.filter(|&owner| owner == prompt);
                if let Some(runs) = runs.get_mut(prompt) {
                    *runs += 1;
                }
            }
        }
        for &prompt in different.values().flatten() {
            if let Some(alone) = alone.get_mut(prompt) {
                *alone += 1;
            }
        }
        let all: usize = runs.iter().sum();
        let share = |different: usize, all: usize| (all > 0).then(|| different as f64 / all as f64);
        let without = runs.iter().zip(&alone);
        let without = without.map(|(runs, alone)| share(different.len() - alone, all - runs)).collect();
        Some(Distinct { all: share(different.len(), all)?, without })
    }
}

/// How different two answers are: the share of their different runs of two words that only one of them has, 0 to 1 (the
/// Jaccard distance). `None` if neither has a run.
pub fn distance(one: &[String], other: &[String]) -> Option<f64> {
    let [one, other]: [HashSet<&[String]>; 2] = [one, other].map(|words| words.windows(2).collect());
    let both = one.intersection(&other).count();
    let any = one.len() + other.len() - both;
    (any > 0).then(|| 1.0 - both as f64 / any as f64)
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
        let all = || [(0, one.as_slice()), (1, two.as_slice())].into_iter();
        let distinct = |n: usize| Distinct::of(all(), 2, n).unwrap();
        assert_eq!((distinct(1).all, distinct(1).without), (6.0 / 10.0, vec![Some(1.0), Some(2.0 / 6.0)]));
        assert_eq!((distinct(2).all, distinct(2).without), (5.0 / 8.0, vec![Some(1.0), Some(2.0 / 5.0)]));
        assert!(Distinct::of([].into_iter(), 2, 1).is_none());
        // A run that two prompts have is there without either of them.
        let twice = Distinct::of([(0, one.as_slice()), (1, one.as_slice())].into_iter(), 2, 1).unwrap();
        assert_eq!((twice.all, twice.without), (2.0 / 12.0, vec![Some(2.0 / 6.0); 2]));
        let alone = Distinct::of([(0, one.as_slice())].into_iter(), 1, 1).unwrap();
        assert_eq!((alone.all, alone.without), (2.0 / 6.0, vec![None]));
    }

    #[test]
    fn answers_differ_by_the_runs_that_they_do_not_share() {
        let distance = |one: &str, other: &str| distance(&words(one), &words(other));
        assert_eq!(distance("a b c", "a b c"), Some(0.0));
        assert_eq!(distance("a b c", "b c d"), Some(1.0 - 1.0 / 3.0));
        assert_eq!(distance("a b", "c d"), Some(1.0));
        assert_eq!((distance("a b", ""), distance("a", "b")), (Some(1.0), None));
    }
}
