//! Rejection sampling of whole answers.

use super::acceptance::accepts;
use super::range;
use super::strategy::{Answer, Strategy};
use super::text::{Growth, TextId};
use super::texts::Texts;
use crate::Result;
use crate::answer::SearchCounts;
use crate::sampling::MAX_COMPLETIONS;
use serde::{Deserialize, Serialize};

/// Rejection sampling: whole answers are sampled until one is accepted.
///
/// An answer with reward `r` is accepted with probability `min(1, exp((r - target_reward) / beta))`. If none of `max_tries` is,
/// the one with the largest reward is taken, the earliest on a tie. This is CARDS' acceptance (arXiv 2406.16306) with the answer
/// as the only segment; its defaults are those of CARDS' code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejectionSampling {
    /// The reward r* from which on every answer is accepted. There is no default: it depends on the reward model.
    pub target_reward: f64,
    /// Temperature of the acceptance, in units of the reward.
    #[serde(default = "default_beta")]
    pub beta: f64,
    /// Answers that are sampled, at most.
    #[serde(default = "default_tries")]
    pub max_tries: usize,
}

fn default_beta() -> f64 {
    0.7
}

fn default_tries() -> usize {
    20
}

impl RejectionSampling {
    /// The defaults: beta 0.7, 20 tries.
    pub fn new(target_reward: f64) -> RejectionSampling {
        RejectionSampling { target_reward, beta: default_beta(), max_tries: default_tries() }
    }

    pub(super) fn check(&self) -> Result<()> {
        range::target(self.target_reward)?;
        range::positive("beta", self.beta)?;
        range::count("max_tries", self.max_tries, MAX_COMPLETIONS)
    }
}

/// The tries so far; the last one has not been tested.
pub(super) struct Tries {
    parameters: RejectionSampling,
    texts: Vec<TextId>,
    counts: SearchCounts,
}

impl Tries {
    pub fn new(parameters: RejectionSampling) -> Tries {
        Tries { parameters, texts: Vec::new(), counts: SearchCounts::default() }
    }

    fn answer(&mut self, best: usize) -> Option<Answer> {
        self.counts.rounds = 1;
        Some(Answer { all: std::mem::take(&mut self.texts), best, counts: self.counts })
    }
}

impl Strategy for Tries {
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        let RejectionSampling { target_reward, beta, max_tries } = self.parameters;
        if let Some(&last) = self.texts.last() {
            let number = self.texts.len() - 1;
            if accepts(texts.uniform(number), f64::from(texts.reward(last)?), target_reward, beta) {
                return Ok(self.answer(number));
            }
            self.counts.rejected += 1;
            if self.texts.len() >= max_tries {
                let best = texts.best(&self.texts)?;
                return Ok(self.answer(best));
            }
        }
        let number = self.texts.len();
        let next = texts.extend(texts.prompt(), Growth::to_the_end(number as u64));
        texts.score(next);
        self.texts.push(next);
        self.counts.proposals += 1;
        for ahead in (number + 1..max_tries).take(texts.width() - 1) {
            texts.extend_ahead(texts.prompt(), Growth::to_the_end(ahead as u64));
        }
        Ok(None)
    }
}
