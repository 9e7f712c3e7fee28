//! CARDS: rejection sampling of segments.

use super::acceptance::accepts;
use super::range;
use super::strategy::{Answer, Strategy};
use super::text::{Growth, TextId, Uncertain};
use super::texts::Texts;
use crate::Result;
use crate::answer::SearchCounts;
use serde::{Deserialize, Serialize};

/// How a proposal is tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceptance {
    /// With probability `min(1, exp((R - threshold) / beta))`.
    #[default]
    Soft,
    /// If `R >= threshold`.
    Hard,
}

/// CARDS (cascade reward sampling, arXiv 2406.16306): segments are sampled until one is accepted.
///
/// A proposal goes on from the committed text until the policy is uncertain. With `R` the reward of the text that it would make
/// and `t` the tokens of the answer then, it is tested against
///
/// ```text
/// threshold(t) = min(r0 + t (r* - r0) / M, r*)    r0 = (1 - alpha) R(prompt) + alpha r*    M = max_new_tokens
/// ```
///
/// After `max_rejections` of one segment the next proposal is not tested: the one with the largest reward is committed, this one
/// included, the earliest on a tie. The defaults are those of the paper's code, which samples with the 40 most likely tokens and
/// a temperature of 0.7 to 0.8; here the request's sampling says so. Its r* of 8.5 fits its own reward model only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cards {
    /// The reward r* that the answer is to reach. There is no default: it depends on the reward model.
    pub target_reward: f64,
    /// How far the first threshold lies from the prompt's reward to r*: 0 to 1.
    #[serde(default = "defaults::alpha")]
    pub alpha: f64,
    /// Temperature of the soft acceptance, in units of the reward.
    #[serde(default = "defaults::beta")]
    pub beta: f64,
    /// Entropy of the policy's untempered distribution that ends a proposal, in nats.
    #[serde(default = "defaults::entropy_threshold")]
    pub entropy_threshold: f64,
    /// Tokens of a proposal before the entropy counts.
    #[serde(default = "defaults::min_segment")]
    pub min_segment: usize,
    /// Tokens of a proposal, at most.
    #[serde(default = "defaults::max_segment")]
    pub max_segment: usize,
    /// Rejections of one segment, at most.
    #[serde(default = "defaults::max_rejections")]
    pub max_rejections: usize,
    /// How a proposal is tested.
    #[serde(default)]
    pub acceptance: Acceptance,
}

mod defaults {
    pub fn alpha() -> f64 {
        0.5
    }
    pub fn beta() -> f64 {
        0.7
    }
    pub fn entropy_threshold() -> f64 {
        3.0
    }
    pub fn min_segment() -> usize {
        4
    }
    pub fn max_segment() -> usize {
        64
    }
    pub fn max_rejections() -> usize {
        20
    }
}

impl Cards {
    /// The defaults.
    pub fn new(target_reward: f64) -> Cards {
        Cards {
            target_reward,
            alpha: defaults::alpha(),
            beta: defaults::beta(),
            entropy_threshold: defaults::entropy_threshold(),
            min_segment: defaults::min_segment(),
            max_segment: defaults::max_segment(),
            max_rejections: defaults::max_rejections(),
            acceptance: Acceptance::default(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        range::target(self.target_reward)?;
        range::check("alpha", self.alpha, (0.0..=1.0).contains(&self.alpha), "at least 0 and at most 1")?;
        range::positive("beta", self.beta)?;
        let entropy = self.entropy_threshold;
        range::check("entropy_threshold", entropy, entropy >= 0.0, "at least 0 (nats)")?;
        let (least, most) = (self.min_segment, self.max_segment);
        range::check("max_segment", most, most >= 1, "at least 1")?;
        range::check("min_segment", least, (1..=most).contains(&least), &format!("1 to max_segment, {most}"))?;
        range::check("max_rejections", self.max_rejections, self.max_rejections <= 1 << 20, "at most 1048576")
    }

    /// What a reward is tested against if the answer has `tokens` of `budget` tokens, and the prompt's reward is `prompt`.
    fn threshold(&self, prompt: f64, tokens: usize, budget: usize) -> f64 {
        let first = (1.0 - self.alpha) * prompt + self.alpha * self.target_reward;
        let line = first + tokens as f64 * (self.target_reward - first) / budget as f64;
        line.min(self.target_reward)
    }
}

/// An answer, segment by segment.
pub(super) struct Segments {
    parameters: Cards,
    committed: Option<TextId>,
    prompt_reward: f64,
    segment: u64,
    /// Proposals of the segment so far; the last one has not been tested.
    proposals: usize,
    current: Option<TextId>,
    /// The best of those that were rejected, and its reward.
    best: Option<(TextId, f32)>,
    counts: SearchCounts,
}

impl Segments {
    pub fn new(parameters: Cards) -> Segments {
        Segments {
            parameters,
            committed: None,
            prompt_reward: 0.0,
            segment: 0,
            proposals: 0,
            current: None,
            best: None,
            counts: SearchCounts::default(),
        }
    }

    fn growth(&self, proposal: usize) -> Growth {
        let Cards { entropy_threshold, min_segment, max_segment, .. } = self.parameters;
        Growth::Sampled {
            stream: (self.segment << 32).wrapping_add(proposal as u64),
            tokens: max_segment,
            until: Some(Uncertain { entropy: entropy_threshold, min_tokens: min_segment }),
        }
    }

    /// Tests the proposal, and gives the text that is committed, if one is.
    fn test(&mut self, texts: &Texts, proposal: TextId) -> Result<Option<TextId>> {
        let reward = texts.reward(proposal)?;
        if self.best.is_none_or(|(_, most)| reward > most) {
            self.best = Some((proposal, reward));
        }
        if self.proposals > self.parameters.max_rejections {
            return Ok(self.best.map(|(best, _)| best));
        }
        let (tokens, budget) = (texts.ids(proposal).len(), texts.max_new_tokens());
        let threshold = self.parameters.threshold(self.prompt_reward, tokens, budget);
        let reward = f64::from(reward);
        let accepted = match self.parameters.acceptance {
            Acceptance::Hard => reward >= threshold,
            Acceptance::Soft => {
                let number = self.counts.proposals as usize - 1;
                accepts(texts.uniform(number), reward, threshold, self.parameters.beta)
            }
        };
        self.counts.rejected += u64::from(!accepted);
        Ok(accepted.then_some(proposal))
    }
}

impl Strategy for Segments {
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        let prompt = texts.prompt();
        if self.committed.is_none() {
            // The first proposal does not wait for the prompt's reward.
            texts.score(prompt);
        }
        let mut committed = self.committed.unwrap_or(prompt);
        if let Some(proposal) = self.current {
            if committed == prompt {
                self.prompt_reward = f64::from(texts.reward(prompt)?);
            }
            if let Some(chosen) = self.test(texts, proposal)? {
                (self.segment, self.proposals, self.best) = (self.segment + 1, 0, None);
                self.counts.rounds += 1;
                texts.keep(&[chosen]);
                if texts.stop(chosen).is_some() {
                    return Ok(Some(Answer { all: vec![chosen], best: 0, counts: self.counts }));
                }
                committed = chosen;
            } else if let Some((best, _)) = self.best {
                texts.keep(&[committed, best]);
            }
        }
        self.committed = Some(committed);
        let next = texts.extend(committed, self.growth(self.proposals));
        texts.score(next);
        self.current = Some(next);
        self.proposals += 1;
        self.counts.proposals += 1;
        let last = self.parameters.max_rejections;
        for ahead in (self.proposals..=last).take(texts.width() - 1) {
            texts.extend_ahead(committed, self.growth(ahead));
        }
        Ok(None)
    }
}
