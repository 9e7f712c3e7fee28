//! Parameters of the method, in one struct that every face fills.

use crate::files::pair::Pair;
use crate::method::entropy::{Signal, Threshold};
use crate::method::proposals::Proposals;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the nudge token is chosen among the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    /// The largest first-order score.
    Greedy,
    /// Drawn from `softmax(score / temperature)`.
    Sample,
}

/// Parameters of one response.
#[derive(Clone, Debug)]
pub struct Options {
    /// Budget M: new tokens, counted from the end of the prompt.
    pub max_new_tokens: usize,
    /// Threshold tau of the uncertainty signal (nats for entropy); reaching it ends a segment.
    pub entropy_threshold: f64,
    /// Which statistic is compared with the threshold.
    pub signal: Signal,
    /// Candidates per segment S, the unforced one included; 1 is greedy decoding. More than 1 do not bound [`Proposals::All`].
    pub max_candidates: usize,
    /// Proposals are limited to the K most likely tokens.
    pub top_k: usize,
    /// Divides scores when sampling.
    pub temperature: f64,
    /// Greedy or sampled choice of the nudge token.
    pub selection: Selection,
    /// Where proposals come from: the gradient, or one of its controls.
    pub proposals: Proposals,
    /// Weight `w` of the policy's log-probability `ln p(v)`, in nats, in a token's score, which becomes `E_R[v] . g + w ln p(v)`
    /// with the damping on the product alone. 0 is the published method, without an addition. No effect where nothing
    /// is scored ([`Proposals::Random`], [`Proposals::All`]).
    pub logprob_weight: f64,
    /// Offset of the slot in the first segment (the official code's 4 where the policy writes the assistant header itself).
    pub first_offset: usize,
    /// The threshold is tested from this many generated tokens of a candidate on.
    pub min_generated: usize,
    /// End-of-turn id.
    pub finish_id: u32,
    /// Ids that end a segment; contains `finish_id`.
    pub stop_ids: Vec<u32>,
    /// Factor on the score of the token now at the slot.
    pub damping: f64,
    /// Floor of the probabilities in the entropy; 0 is exact.
    pub probability_floor: f64,
    /// The final reward is pooled at the rightmost position with another id.
    pub reward_pad_id: Option<u32>,
    /// The response ends after so many segments, as at the end of its budget; `None`: after as many as the budget takes.
    pub max_segments: Option<usize>,
    /// Record what no decision needs: gradient, candidate scores and unused next proposal of the last candidate too.
    pub full_trace: bool,
}

impl Options {
    /// The published settings: 128 new tokens, Shannon entropy with a threshold of 2 nats, 8 candidates, the 25 most
    /// likely tokens, greedy choice.
    pub fn new(finish_id: u32, stop_ids: Vec<u32>) -> Options {
        Options {
            max_new_tokens: 128,
            entropy_threshold: 2.0,
            signal: Signal::Entropy,
            max_candidates: 8,
            top_k: 25,
            temperature: 0.1,
            selection: Selection::Greedy,
            proposals: Proposals::Gradient,
            logprob_weight: 0.0,
            first_offset: 0,
            min_generated: 4,
            finish_id,
            stop_ids,
            damping: 1e-10,
            probability_floor: 1e-9,
            reward_pad_id: None,
            max_segments: None,
            full_trace: false,
        }
    }

    /// [`Options::new`] with the ids of a pair: end of turn, stop ids, the reward model's pad id.
    ///
    /// # Errors
    /// The pair has no policy.
    pub fn for_pair(pair: &Pair) -> Result<Options> {
        let policy = pair.policy()?;
        let options = Options::new(policy.finish_id, policy.stop_ids.clone());
        Ok(Options { reward_pad_id: pair.reward_pad_id(), ..options })
    }

    /// The signal with its threshold.
    pub fn threshold(&self) -> Threshold {
        Threshold { signal: self.signal, value: self.entropy_threshold }
    }

    /// Whether uniform numbers are consumed, so that answers depend on the seed.
    pub fn draws(&self) -> bool {
        self.proposals.draws(self.selection == Selection::Sample)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// The first option out of range, by name, with its allowed values.
    pub fn check(&self) -> Result<()> {
        let count = |name: &str, value: usize, least: usize| {
            if value >= least {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} must be at least {least}, not {value}")))
        };
        let number = |name: &str, value: f64, allowed: bool, range: &str| {
            if value.is_finite() && allowed {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} must be {range}, not {value}")))
        };
        count("max_new_tokens", self.max_new_tokens, 1)?;
        count("max_candidates", self.max_candidates, 1)?;
        count("top_k", self.top_k, 1)?;
        // With 1, a segment could drop its only token and never advance.
        count("min_generated", self.min_generated, 2)?;
        number("entropy_threshold", self.entropy_threshold, true, "a finite number")?;
        number("temperature", self.temperature, self.temperature > 0.0, "finite and above 0")?;
        number("damping", self.damping, true, "a finite number")?;
        number("logprob_weight", self.logprob_weight, self.logprob_weight >= 0.0, "finite and at least 0")?;
        let floor = self.probability_floor;
        number("probability_floor", floor, (0.0..1.0).contains(&floor), "at least 0 and below 1")?;
        if !self.stop_ids.contains(&self.finish_id) {
            return Err(Error::invalid(format!(
                "stop_ids must contain finish_id {}, but they are {:?}",
                self.finish_id, self.stop_ids
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(change: impl FnOnce(&mut Options)) -> String {
        let mut options = Options::new(2, vec![1, 2]);
        options.check().unwrap();
        change(&mut options);
        options.check().unwrap_err().to_string()
    }

    #[test]
    fn every_range_is_checked_by_name() {
        for (text, name) in [
            (message(|o| o.max_new_tokens = 0), "max_new_tokens"),
            (message(|o| o.max_candidates = 0), "max_candidates"),
            (message(|o| o.top_k = 0), "top_k"),
            (message(|o| o.min_generated = 1), "min_generated"),
            (message(|o| o.entropy_threshold = f64::NAN), "entropy_threshold"),
            (message(|o| o.entropy_threshold = f64::INFINITY), "entropy_threshold"),
            (message(|o| o.temperature = 0.0), "temperature"),
            (message(|o| o.temperature = -0.1), "temperature"),
            (message(|o| o.temperature = f64::INFINITY), "temperature"),
            (message(|o| o.damping = f64::NEG_INFINITY), "damping"),
            (message(|o| o.logprob_weight = -0.5), "logprob_weight"),
            (message(|o| o.logprob_weight = f64::INFINITY), "logprob_weight"),
            (message(|o| o.logprob_weight = f64::NAN), "logprob_weight"),
            (message(|o| o.probability_floor = 1.0), "probability_floor"),
            (message(|o| o.probability_floor = -1e-9), "probability_floor"),
            (message(|o| o.probability_floor = f64::NAN), "probability_floor"),
            (message(|o| o.stop_ids = vec![1]), "stop_ids"),
        ] {
            assert!(text.starts_with(name), "{text}");
        }
    }
}
