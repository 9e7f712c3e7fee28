//! Guesses of how a text goes on, and how many of them are worth a row.
//!
//! A guess is what followed where the longest ending of the text stood before: in other candidates of the same segment,
//! or in the text itself. How often such guesses are right is learnt per request, by source and by how much of the text
//! was found, so a text that never repeats itself soon pays for no more guesses than a probe now and then.
//!
//! Where there is a draft model, it guesses what is not found so ([`draft_model`](super::draft_model)).
//!
//! Whether a guess is right changes no answer: a model says what comes, and what was guessed otherwise is taken back.

use super::confidence::{Confidence, gain};

/// Ids that are compared, at most. More of them make a guess no better.
const LONGEST_MATCH: usize = 16;

/// Ids of a text that are looked through, at most, from its end.
pub(super) const WINDOW: usize = 4096;

/// Other texts that are looked through, at most.
const MOST_SIBLINGS: usize = 8;

/// Guesses in a row that were wrong from their first token before there is a pause, and the longest pause, in guesses.
const MISSES: u32 = 3;
const LONGEST_PAUSE: u32 = 256;

/// Tokens that are guessed at once, at most.
pub(super) const LONGEST_DRAFT: usize = 16;

/// Matches of 1, 2, 3 and more ids have acceptance rates of their own.
const CLASSES: usize = 4;

/// How often a guess is right before anything is known: by source and length of the match.
const PRIOR: [[f64; CLASSES]; 2] = [[0.6, 0.75, 0.85, 0.9], [0.3, 0.5, 0.7, 0.85]];

/// How far one guess moves a rate.
const STEP: f64 = 0.25;

/// How far a rate goes back to what it was at first with every guess that is not made. So a guess that was wrong is
/// tried again after some dozens of others.
const DRIFT: f64 = 1.0 / 256.0;

/// Where a guess comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DraftSource {
    /// Another candidate of the segment, or another completion of the prompt.
    Sibling,
    /// The prompt and what was written.
    Text,
    /// The draft model.
    Model,
}

/// What a text may go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guess {
    pub ids: Vec<u32>,
    pub source: DraftSource,
    /// How many of the text's last ids were found.
    pub matched: usize,
    /// Of a guess of the draft model, how sure it was of each token ([`class`](super::confidence::class)).
    pub classes: Vec<usize>,
}

/// At most `most` ids that may follow a text: those that follow its longest ending elsewhere, in a sibling if that is
/// no shorter, and the latest place of several.
pub(super) fn guess(text: &[u32], siblings: &[&[u32]], most: usize) -> Option<Guess> {
    if most == 0 {
        return None;
    }
    let mut best: Option<(usize, &[u32], usize, DraftSource)> = None;
    for &sibling in siblings.iter().take(MOST_SIBLINGS) {
        if best.is_some_and(|best| best.0 == LONGEST_MATCH) {
            break;
        }
        let sibling = sibling.get(sibling.len().saturating_sub(WINDOW)..).unwrap_or_default();
        let found = longest_ending(text, sibling, sibling.len().saturating_sub(1));
        if let Some((matched, end)) = found.filter(|&(matched, _)| best.is_none_or(|best| matched > best.0)) {
            best = Some((matched, sibling, end, DraftSource::Sibling));
        }
    }
    let found = longest_ending(text, text, text.len().saturating_sub(1));
    if let Some((matched, end)) = found.filter(|&(matched, _)| best.is_none_or(|best| matched > best.0)) {
        best = Some((matched, text, end, DraftSource::Text));
    }
    let (matched, from, end, source) = best?;
    let mut ids: Vec<u32> = from.get(end..).unwrap_or_default().iter().copied().take(most).collect();
    // What follows in the text itself may be the end of it: it goes on with what was guessed.
    if source == DraftSource::Text {
        for place in 0..most.saturating_sub(ids.len()) {
            ids.push(ids[place]);
        }
    }
    Some(Guess { ids, source, matched, classes: Vec::new() })
}

/// The longest ending of `text` that stands in `other` and ends at or before `last`: its length, and where it ends.
/// Something follows there if `last` is before the end. The latest one of several; `None` if not even the last id is
/// found.
fn longest_ending(text: &[u32], other: &[u32], last: usize) -> Option<(usize, usize)> {
    let final_id = text.last()?;
    let mut best: Option<(usize, usize)> = None;
    for end in (1..=last.min(other.len())).rev() {
        if other[end - 1] != *final_id {
            continue;
        }
        let endings = other[..end].iter().rev().zip(text.iter().rev());
        let matched = endings.take(LONGEST_MATCH).take_while(|(a, b)| a == b).count();
        if best.is_none_or(|(most, _)| matched > most) {
            best = Some((matched, end));
        }
        if matched == LONGEST_MATCH {
            break;
        }
    }
    best
}

/// How often the guesses of a request were right.
#[derive(Clone, Debug)]
pub(super) struct Acceptance {
    rates: [[f64; CLASSES]; 2],
    /// Guesses in a row that were wrong from their first token.
    misses: [[u32; CLASSES]; 2],
    /// Guesses that are not made yet, since the last ones were wrong.
    pause: [[u32; CLASSES]; 2],
    /// Of the draft model's guesses.
    pub model: Confidence,
}

impl Default for Acceptance {
    fn default() -> Acceptance {
        Acceptance { rates: PRIOR, misses: Default::default(), pause: Default::default(), model: Confidence::default() }
    }
}

fn class(matched: usize) -> usize {
    matched.clamp(1, CLASSES) - 1
}

impl Acceptance {
    /// Whether any guess could be worth its row. Where none could, the rates drift back to what they were at first.
    pub fn hopeful(&mut self, share: f64) -> bool {
        let hopeful = self.rates.iter().flatten().any(|&rate| rate > share);
        if !hopeful {
            let priors = PRIOR.iter().flatten();
            self.rates.iter_mut().flatten().zip(priors).for_each(|(rate, prior)| *rate += (prior - *rate) * DRIFT);
        }
        hopeful
    }

    /// How much of a guess is worth its rows: its n-th token, while the chance that all up to it are right is more than
    /// `share`, what a row costs as a part of what a token is worth.
    pub fn worth(&mut self, guess: &Guess, share: f64) -> usize {
        let mut chance = 1.0;
        if guess.source == DraftSource::Model {
            return guess.ids.len();
        }
        let pause = &mut self.pause[guess.source as usize][class(guess.matched)];
        if *pause > 0 {
            *pause -= 1;
            return 0;
        }
        let rates = &mut self.rates[guess.source as usize];
        for tokens in 0..guess.ids.len() {
            chance *= rates[class(guess.matched + tokens)];
            if chance <= share {
                if tokens == 0 {
                    let (rate, prior) = (&mut rates[class(guess.matched)], PRIOR[guess.source as usize]);
                    *rate += (prior[class(guess.matched)] - *rate) * DRIFT;
                }
                return tokens;
            }
        }
        guess.ids.len()
    }

    /// What so many tokens of a guess that was found are expected to bring beyond their rows, in tokens.
    pub fn gain(&self, guess: &Guess, tokens: usize, share: f64) -> f64 {
        let Some(rates) = self.rates.get(guess.source as usize) else { return 0.0 };
        gain((0..tokens).map(|token| rates[class(guess.matched + token)]), share)
    }

    /// Of so many tokens of a guess that was found, the first ones were right. Those behind a wrong one say nothing.
    pub fn learn(&mut self, source: DraftSource, matched: usize, drafted: usize, accepted: usize) {
        if source == DraftSource::Model {
            return;
        }
        if drafted > 0 {
            let misses = &mut self.misses[source as usize][class(matched)];
            *misses = if accepted == 0 { misses.saturating_add(1) } else { 0 };
            // Where rows are cheap, rates alone would have it tried again too soon.
            if let Some(more) = misses.checked_sub(MISSES) {
                self.pause[source as usize][class(matched)] = (8 << more.min(5)).min(LONGEST_PAUSE);
            }
        }
        for token in 0..drafted.min(accepted + 1) {
            let rate = &mut self.rates[source as usize][class(matched + token)];
            let right = if token < accepted { 1.0 } else { 0.0 };
            *rate += (right - *rate) * STEP;
        }
    }
}

/// What a row costs as a part of what a token is worth, in a step that has so many rows. A step of `n` rows costs
/// `1 + c (n - 1)`, for `c` the cost of a further row, and brings as many tokens as it is worth: `n`, if each is needed.
pub(super) fn share(rows: usize, worth: f64, cost: f64) -> f64 {
    worth.max(1.0) * cost / (1.0 + cost * (rows.max(1) as f64 - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u32], siblings: &[&[u32]], most: usize) -> Option<(Vec<u32>, DraftSource, usize)> {
        guess(text, siblings, most).map(|guess| (guess.ids, guess.source, guess.matched))
    }

    #[test]
    fn a_guess_follows_the_longest_ending() {
        use DraftSource::{Sibling, Text};
        // Longer is better than later.
        assert_eq!(found(&[1, 2, 3, 9, 3, 8, 1, 2, 3], &[], 2), Some((vec![9, 3], Text, 3)));
        // The latest of equal ones.
        assert_eq!(found(&[3, 9, 3, 8, 3], &[], 1), Some((vec![8], Text, 1)));
        // A sibling that is as good comes first, one that is worse does not; the first of two equal ones counts.
        assert_eq!(found(&[3, 9, 3], &[&[3, 7], &[3, 6]], 4), Some((vec![7], Sibling, 1)));
        assert_eq!(found(&[2, 3, 9, 2, 3], &[&[3, 7]], 4), Some((vec![9, 2, 3, 9], Text, 2)));
        assert_eq!(found(&[2, 3, 9, 2, 3], &[&[3, 7], &[9, 2, 3, 5, 6]], 4), Some((vec![5, 6], Sibling, 3)));
        // Nothing follows at a sibling's end.
        assert_eq!(found(&[4, 3], &[&[4, 3]], 4), None);
        assert_eq!(found(&[1, 2, 3], &[&[], &[5]], 4), None);
        assert_eq!(found(&[], &[&[1]], 4), None);
        assert_eq!(found(&[3, 3], &[], 0), None);
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on_repeating() {
        assert_eq!(found(&[5, 5], &[], 3), Some((vec![5, 5, 5], DraftSource::Text, 1)));
        assert_eq!(found(&[1, 2, 1, 2], &[], 5), Some((vec![1, 2, 1, 2, 1], DraftSource::Text, 2)));
    }

    #[test]
    fn every_guess_stands_where_it_was_found() {
        // All texts of six ids out of three, against the definition.
        for code in 0..3u32.pow(6) {
            let text: Vec<u32> = (0..6).map(|place| code / 3u32.pow(place) % 3).collect();
            let longest = (1..text.len())
                .map(|end| {
                    (0..=end).take_while(|&n| n <= text.len() && text.ends_with(&text[end - n..end])).count() - 1
                })
                .max();
            match found(&text, &[], 1) {
                None => assert_eq!(longest, Some(0), "{text:?}"),
                Some((ids, _, matched)) => {
                    assert_eq!(Some(matched), longest, "{text:?}");
                    let whole = [&text[text.len() - matched..], &ids].concat();
                    assert!(text.windows(whole.len()).any(|window| window == whole), "{text:?} {whole:?}");
                }
            }
        }
    }

    #[test]
    fn rows_that_cost_nothing_are_taken_and_dear_ones_are_not() {
        let guess = Guess { ids: vec![1; 8], source: DraftSource::Text, matched: 3, classes: Vec::new() };
        assert_eq!(Acceptance::default().worth(&guess, 0.0), 8);
        assert_eq!(Acceptance::default().worth(&guess, 1.0), 0);
        let some = Acceptance::default().worth(&guess, 0.5);
        assert!((1..8).contains(&some), "{some}");
        // Alone in a step a row costs what it costs; in a full one it costs what a token is worth.
        assert_eq!(share(1, 1.0, 0.15), 0.15);
        assert!(share(8, 8.0, 0.15) > 0.5 && share(8, 8.0, 0.15) < 1.0);
        assert!(share(8, 2.0, 0.15) < share(1, 1.0, 0.15));
        assert_eq!((share(1, 1.0, 1.0), share(50, 50.0, 1.0), share(50, 50.0, 0.0)), (1.0, 1.0, 0.0));
    }

    #[test]
    fn what_is_always_wrong_is_seldom_tried_and_what_is_always_right_is_tried_at_length() {
        for price in [1.0 / 128.0, 0.06, 0.15, 0.6] {
            for (source, matched) in [DraftSource::Sibling, DraftSource::Text].into_iter().zip(1..=CLASSES) {
                let guess = Guess { ids: vec![1; 12], source, matched, classes: Vec::new() };
                let mut wrong = Acceptance::default();
                let made = (0..2000).filter(|_| {
                    let drafted = wrong.worth(&guess, price);
                    wrong.learn(source, matched, drafted, 0);
                    drafted > 0
                });
                let made = made.count();
                assert!(made <= 40, "{made} of 2000 wrong guesses at {price}, {source:?}, {matched}");
            }
        }
        let guess = Guess { ids: vec![1; 12], source: DraftSource::Text, matched: 1, classes: Vec::new() };
        let mut wrong = Acceptance::default();
        let mut rows = 0;
        for _ in 0..1000 {
            let drafted = wrong.worth(&guess, 0.15);
            wrong.learn(guess.source, guess.matched, drafted, 0);
            rows += drafted;
        }
        assert!((3..80).contains(&rows), "{rows} rows of 1000 guesses");
        let mut right = Acceptance::default();
        let mut last = 0;
        for _ in 0..20 {
            last = right.worth(&guess, 0.15);
            right.learn(guess.source, guess.matched, last, last);
        }
        assert_eq!(last, 12);
    }
}
