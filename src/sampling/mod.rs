//! Choosing tokens by chance: temperature, filters, penalties, biases; stop strings; and completions as a state machine.
//!
//! What a request may say, and what the method ([`crate::ggro`], which decodes greedily) makes of it:
//!
//! | field | completions | `--method ggro` |
//! |---|---|---|
//! | temperature, top-k, top-p, min-p | applied | ignored, and reported: the committed text is the policy's own choice |
//! | repetition, presence, frequency penalty | applied | ignored, and reported |
//! | logit bias | applied | refused: it would have to change the distribution that entropy is measured on |
//! | seed | of every draw | of the nudges, if they are sampled |
//! | stop ids | applied | applied: one that is not the end of turn ends the answer |
//! | stop strings | applied | refused: text is committed by segments |
//! | n | applied | refused above 1: greedy answers are all the same |
//! | log-probabilities | applied | refused |

mod choose;
pub mod completions;
mod stop;

pub use choose::{Chosen, Counts, choose};
pub use completions::{Completion, Completions, Plan, Reason, Sampler, Stop};
pub use stop::StopStrings;

use crate::{Error, Result};

/// How a token is chosen from a row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides logits; 0 is the largest logit, the lowest id on a tie.
    pub temperature: f64,
    /// Only the so many most likely tokens; 0 is all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 is all.
    pub top_p: f64,
    /// Only tokens at least so probable, relative to the most likely one; 0 is all.
    pub min_p: f64,
    /// Divides positive logits of ids of prompt and completion, and multiplies negative ones; 1 is none.
    pub repetition_penalty: f64,
    /// Subtracted from logits of ids of the completion.
    pub presence_penalty: f64,
    /// Subtracted from logits of ids of the completion, once for each time.
    pub frequency_penalty: f64,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f64)>,
    /// Of the draws.
    pub seed: u64,
    /// Report log-probabilities: of the chosen token, and of so many most likely ones.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    /// Greedy: the untouched row's argmax.
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
            seed: 0,
            logprobs: None,
        }
    }
}

/// Most log-probabilities that can be asked for.
const MAX_LOGPROBS: usize = 128;

impl Sampling {
    /// Checks every range; `vocab` is the policy's.
    ///
    /// # Errors
    /// The first field out of range, by name, with what it may be.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let number = |name: &str, value: f64, allowed: bool, range: &str| {
            if value.is_finite() && allowed {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} must be {range}, not {value}")))
        };
        let within = |value: f64, least: f64, most: f64| (least..=most).contains(&value);
        number("temperature", self.temperature, within(self.temperature, 0.0, 100.0), "from 0 to 100")?;
        number("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        number("min_p", self.min_p, within(self.min_p, 0.0, 1.0), "from 0 to 1")?;
        let repetition = self.repetition_penalty;
        number("repetition_penalty", repetition, repetition > 0.0, "finite and above 0")?;
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            number(name, value, within(value, -2.0, 2.0), "from -2 to 2")?;
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab {
                return Err(Error::invalid(format!("logit_bias names id {id}, and there are {vocab} ids")));
            }
            number("logit_bias", bias, within(bias, -100.0, 100.0), "from -100 to 100")?;
        }
        match self.logprobs {
            Some(count) if count > MAX_LOGPROBS => {
                Err(Error::invalid(format!("logprobs must be at most {MAX_LOGPROBS}, not {count}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether the choice is the untouched row's argmax, so that nobody needs the whole row.
    pub fn plain(&self) -> bool {
        let touched = self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || !self.logit_bias.is_empty();
        self.temperature == 0.0 && !touched
    }
}
