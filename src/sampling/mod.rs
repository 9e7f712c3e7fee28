//! Ordinary sampling: a token from a row of logits, and where a text has to stop.
//!
//! Two parts: *which token* ([`choose`]: bias, penalties, temperature, filters, the draw) and *where the text ends*
//! ([`StopStrings`]). No tensors and no device here; a choice is a function of the row, the ids so far, the seed and two
//! counters, and the same in any batch.
//!
//! What a request may say, and what the method ([`crate::method`], which decodes greedily) makes of it:
//!
//! | field | completions | `--method ggro` |
//! |---|---|---|
//! | temperature, top-k, top-p, min-p | applied | ignored, and reported: the committed text is the policy's own choice |
//! | repetition, presence, frequency penalty | applied | ignored, and reported |
//! | logit bias | applied | has no place for it: it would have to change the distribution that entropy is measured on |
//! | seed | of every draw | of the nudges, if they are sampled |
//! | stop ids | applied | applied: one that is not the end of turn ends the answer |
//! | stop strings | applied | refused: text is committed by segments |
//! | n | applied | refused above 1: greedy answers are all the same |
//! | log-probabilities | applied | has no place for them; a trace has entropies and the logits at every slot |

mod choose;
mod completions;
mod stop;

use std::collections::BTreeMap;

use crate::{Error, Result};

pub use choose::choose;
pub(crate) use choose::{choose_of, reported};
pub use completions::{CheckStop, CompletionSpec, NewStopCheck, Sampler, StopCheck};
pub use stop::StopStrings;

/// Completions of one request, at most.
pub const MAX_COMPLETIONS: usize = 128;

/// How a token is chosen from a row of logits. The steps are taken in this order: bias, penalties, temperature, `min_p`,
/// `top_k`, `top_p`, the draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f64,
    /// Only the most likely tokens, this many; 0 is off. The lower ids stay on a tie.
    pub top_k: usize,
    /// Only the fewest most likely tokens whose probabilities add up to at least this; 1 is off. Probabilities are
    /// those among the tokens that the other filters have left.
    pub top_p: f64,
    /// Only tokens at least this likely relative to the most likely one; 0 is off.
    pub min_p: f64,
    /// Divides positive logits and multiplies the others, of every id in the prompt or the output; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every id in the output; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted from an id's logit once for each time it is in the output; 0 is off.
    pub frequency_penalty: f64,
    /// Added to the logits of these ids; an id named twice gets the sum.
    pub logit_bias: Vec<(u32, f64)>,
    /// Ids that are not chosen before `min_tokens` tokens.
    pub suppress_ids: Vec<u32>,
    /// See `suppress_ids`.
    pub min_tokens: u64,
    /// Where the random numbers come from.
    pub seed: u64,
    /// How many of the most likely tokens are reported with each choice; none if `None`.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    /// Greedy: nothing else is on.
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            suppress_ids: Vec::new(),
            min_tokens: 0,
            seed: 0,
            logprobs: None,
        }
    }
}

impl Sampling {
    /// The largest `logprobs`.
    const MOST_LOGPROBS: usize = 128;

    /// Checks every range, for rows of `vocab` logits.
    ///
    /// # Errors
    /// The first parameter out of range, by name, with its allowed values.
    pub fn check(&self, vocab: usize) -> Result<()> {
        // A range contains no NaN.
        let number = |name: &str, value: f64, allowed: bool, range: &str| {
            if allowed {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} must be {range}, not {value}")))
        };
        let (temperature, min_p, repetition) = (self.temperature, self.min_p, self.repetition_penalty);
        number("temperature", temperature, (0.0..=100.0).contains(&temperature), "at least 0 and at most 100")?;
        number("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        number("min_p", min_p, (0.0..=1.0).contains(&min_p), "at least 0 and at most 1")?;
        number("repetition_penalty", repetition, repetition.is_finite() && repetition > 0.0, "finite and above 0")?;
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            number(name, value, (-2.0..=2.0).contains(&value), "at least -2 and at most 2")?;
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab {
                return Err(Error::invalid(format!("logit_bias names id {id}, but there are only {vocab} ids")));
            }
            let name = format!("logit_bias of id {id}");
            number(&name, bias, (-100.0..=100.0).contains(&bias), "at least -100 and at most 100")?;
        }
        match self.logprobs {
            Some(count) if count > Sampling::MOST_LOGPROBS => {
                Err(Error::invalid(format!("logprobs must be at most {}, not {count}", Sampling::MOST_LOGPROBS)))
            }
            _ => Ok(()),
        }
    }

    /// Whether the argmax of the untouched row is the choice: temperature 0, no penalty, no bias. Filters do not matter
    /// then, for none removes the most likely token.
    pub fn plain(&self) -> bool {
        self.temperature == 0.0
            && self.repetition_penalty == 1.0
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
            && self.logit_bias.is_empty()
    }

    /// Whether a choice depends on the ids so far.
    pub(crate) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// The ids so far, counted as they come, for the penalties.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Times in the output of every id seen; 0 for one that is in the prompt alone.
    seen: BTreeMap<u32, u64>,
}

impl Counts {
    /// A prompt with no output yet.
    pub fn new(prompt: &[u32]) -> Self {
        Counts { seen: prompt.iter().map(|&id| (id, 0)).collect() }
    }

    /// One more id in the output.
    pub fn push(&mut self, id: u32) {
        *self.seen.entry(id).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(change: impl FnOnce(&mut Sampling)) -> String {
        let mut sampling = Sampling::default();
        sampling.check(10).unwrap();
        change(&mut sampling);
        sampling.check(10).unwrap_err().to_string()
    }

    #[test]
    fn every_range_is_checked_by_name() {
        for (text, name) in [
            (message(|s| s.temperature = -0.1), "temperature"),
            (message(|s| s.temperature = 100.1), "temperature"),
            (message(|s| s.temperature = f64::NAN), "temperature"),
            (message(|s| s.top_p = 0.0), "top_p"),
            (message(|s| s.top_p = 1.1), "top_p"),
            (message(|s| s.top_p = f64::NAN), "top_p"),
            (message(|s| s.min_p = -0.1), "min_p"),
            (message(|s| s.min_p = 1.1), "min_p"),
            (message(|s| s.min_p = f64::NAN), "min_p"),
            (message(|s| s.repetition_penalty = 0.0), "repetition_penalty"),
            (message(|s| s.repetition_penalty = f64::INFINITY), "repetition_penalty"),
            (message(|s| s.repetition_penalty = f64::NAN), "repetition_penalty"),
            (message(|s| s.presence_penalty = 2.1), "presence_penalty"),
            (message(|s| s.presence_penalty = f64::NAN), "presence_penalty"),
            (message(|s| s.frequency_penalty = -2.1), "frequency_penalty"),
            (message(|s| s.logit_bias = vec![(3, 1.0), (10, 1.0)]), "logit_bias names id 10"),
            (message(|s| s.logit_bias = vec![(3, 1.0), (4, -100.5)]), "logit_bias of id 4"),
            (message(|s| s.logit_bias = vec![(3, f64::NAN)]), "logit_bias of id 3"),
            (message(|s| s.logprobs = Some(129)), "logprobs"),
        ] {
            assert!(text.starts_with(name), "{text}");
        }
    }

    #[test]
    fn the_ends_of_every_range_are_allowed() {
        let least = Sampling {
            top_p: f64::MIN_POSITIVE,
            repetition_penalty: f64::MIN_POSITIVE,
            presence_penalty: -2.0,
            frequency_penalty: -2.0,
            logit_bias: vec![(0, -100.0)],
            logprobs: Some(0),
            ..Sampling::default()
        };
        least.check(1).unwrap();
        let most = Sampling {
            temperature: 100.0,
            top_k: usize::MAX,
            top_p: 1.0,
            min_p: 1.0,
            repetition_penalty: f64::MAX,
            presence_penalty: 2.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(9, 100.0)],
            suppress_ids: vec![9],
            min_tokens: u64::MAX,
            seed: u64::MAX,
            logprobs: Some(128),
        };
        most.check(10).unwrap();
    }

    #[test]
    fn only_what_can_move_the_argmax_is_not_plain() {
        let plain = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            sampling.plain()
        };
        assert!(plain(|_| ()));
        assert!(plain(|s| (s.top_k, s.top_p, s.min_p, s.seed, s.logprobs) = (1, 0.5, 0.5, 9, Some(5))));
        assert!(!plain(|s| s.temperature = 1e-300));
        assert!(!plain(|s| s.repetition_penalty = 1.1));
        assert!(!plain(|s| s.presence_penalty = -1.0));
        assert!(!plain(|s| s.frequency_penalty = 0.1));
        assert!(!plain(|s| s.logit_bias = vec![(0, 1.0)]));
    }
}
