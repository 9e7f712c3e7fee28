//! How often the tokens of a draft model are right, by how sure it was of them.
//!
//! The probability that a draft model gives to its own first choice says much about whether the policy makes the same
//! one. How much is learnt per request, for some classes of it.

/// Probabilities from which on a token is in the next class.
const BOUNDS: [f64; 4] = [0.3, 0.5, 0.7, 0.9];

/// Classes of tokens, each with a rate of its own.
const CLASSES: usize = BOUNDS.len() + 1;

/// How often a token of each class is right before anything is known.
const PRIOR: [f64; CLASSES] = [0.25, 0.45, 0.6, 0.75, 0.9];

/// The same for a token whose class is not known yet, because nobody has asked the draft model for it.
const PRIOR_MEAN: f64 = 0.7;

/// How far one token moves a rate.
const STEP: f64 = 0.125;

/// How far the mean goes back to what it was at first with every guess that is not made.
const DRIFT: f64 = 1.0 / 256.0;

/// Guesses in a row that were wrong from their first token before there is a pause, and the longest pause, in guesses.
const MISSES: u32 = 3;
const LONGEST_PAUSE: u32 = 256;

/// How often the tokens of a draft model were right in a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confidence {
    rates: [f64; CLASSES],
    mean: f64,
    /// Guesses in a row that were wrong from their first token.
    misses: u32,
    /// Guesses that are not made yet, since the last ones were wrong.
    pause: u32,
}

impl Default for Confidence {
    fn default() -> Confidence {
        Confidence { rates: PRIOR, mean: PRIOR_MEAN, misses: 0, pause: 0 }
    }
}

/// The class of a token to which its model gives this probability.
pub(super) fn class(probability: f64) -> usize {
    BOUNDS.iter().take_while(|&&bound| probability >= bound).count()
}

impl Confidence {
    /// The chance that a token of a class is right.
    pub fn rate(&self, class: usize) -> f64 {
        self.rates[class.min(CLASSES - 1)]
    }

    /// The chance that a token is right whose class is not known yet.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// What a guess of at most so many tokens is expected to bring beyond its price, in tokens. `price`: what a token's
    /// row and its step of the draft model cost, as a part of what a token is worth. 0 if none is worth it, and in a
    /// pause.
    pub fn gain(&mut self, most: usize, price: f64) -> f64 {
        if self.pause > 0 {
            self.pause -= 1;
            return 0.0;
        }
        if self.mean <= price {
            self.mean += (PRIOR_MEAN - self.mean) * DRIFT;
        }
        gain(std::iter::repeat_n(self.mean, most), price)
    }

    /// The draft model was asked, and its first token was not worth a row.
    pub fn vain(&mut self) {
        self.mean -= self.mean * STEP;
    }

    /// Of tokens of these classes, the first ones were right. Those behind a wrong one say nothing.
    pub fn learn(&mut self, classes: &[usize], accepted: usize) {
        if classes.is_empty() {
            return;
        }
        self.misses = if accepted == 0 { self.misses.saturating_add(1) } else { 0 };
        if let Some(more) = self.misses.checked_sub(MISSES) {
            self.pause = (8 << more.min(5)).min(LONGEST_PAUSE);
        }
        for (place, &class) in classes.iter().enumerate().take(accepted + 1) {
            let right = if place < accepted { 1.0 } else { 0.0 };
            let rate = &mut self.rates[class.min(CLASSES - 1)];
            *rate += (right - *rate) * STEP;
            self.mean += (right - self.mean) * STEP;
        }
    }
}

/// What a guess brings beyond its price, in tokens: the chances that all of its tokens up to each are right, less the
/// price of each, as far as they are worth it. `rates`: the chance that each is right if those before it are.
pub(super) fn gain(rates: impl Iterator<Item = f64>, price: f64) -> f64 {
    let chances = rates.scan(1.0, |chance, rate| {
        *chance *= rate;
        Some(*chance)
    });
    chances.take_while(|&chance| chance > price).map(|chance| chance - price).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_by_probability() {
        assert_eq!([0.0, 0.29, 0.3, 0.6, 0.89, 0.9, 1.0].map(class), [0, 0, 1, 2, 3, 4, 4]);
        assert_eq!(class(f64::NAN), 0);
    }

    #[test]
    fn what_a_guess_brings() {
        assert_eq!(gain([0.5, 0.5, 0.5].into_iter(), 0.25), 0.25);
        assert_eq!(gain([0.5, 0.5].into_iter(), 0.0), 0.75);
        assert_eq!(gain([0.5].into_iter(), 0.5), 0.0);
        assert_eq!(gain(std::iter::empty(), 0.0), 0.0);
    }

    #[test]
    fn a_model_that_is_always_wrong_is_seldom_asked_and_one_that_is_right_is_asked_at_length() {
        for price in [0.0, 0.05, 0.3, 0.65] {
            let (mut wrong, mut asked) = (Confidence::default(), 0);
            for _ in 0..2000 {
                if wrong.gain(8, price) > 0.0 {
                    asked += 1;
                    wrong.learn(&[4, 4], 0);
                }
            }
            assert!((1..=40).contains(&asked), "{asked} of 2000 wrong guesses at {price}");
            let mut right = Confidence::default();
            for _ in 0..30 {
                assert!(right.gain(8, price) > 0.0);
                right.learn(&[2, 3, 4], 3);
            }
            assert!(right.mean() > 0.95 && right.rate(2) > 0.9 && right.rate(0) == PRIOR[0]);
        }
        assert_eq!(Confidence::default().gain(8, 1.0), 0.0);
        // One that has nothing to say is not asked at every token either.
        let mut vain = Confidence::default();
        let asked = (0..2000).filter(|_| {
            let asked = vain.gain(8, 0.3) > 0.0;
            if asked {
                vain.vain();
            }
            asked
        });
        assert!((1..200).contains(&asked.count()));
    }
}
