//! ARGS: the reward of every likely next token.

use super::range;
use super::strategy::{Answer, Strategy};
use super::text::{Growth, TextId};
use super::texts::Texts;
use crate::answer::SearchCounts;
use crate::sampling::MAX_COMPLETIONS;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// ARGS (alignment as reward-guided search, arXiv 2402.01694), greedy: each token is the one of the `k` most likely with the
/// largest `logit + weight * R(text with it)`, the more likely one on a tie.
///
/// The policy's logits count as they are: what the request says of temperature, filters, penalties and bias does not. Ids that
/// the reward model cannot read, and those with a logit of minus infinity, are no candidates. The defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Args {
    /// Candidates for each token.
    pub k: usize,
    /// The weight w of the reward.
    pub weight: f64,
}

impl Default for Args {
    /// 10 candidates, w = 1.5.
    fn default() -> Args {
        Args { k: 10, weight: 1.5 }
    }
}

impl Args {
    pub(super) fn check(&self) -> Result<()> {
        range::count("k", self.k, MAX_COMPLETIONS)?;
        range::check("weight", self.weight, self.weight.is_finite(), "finite")
    }
}

/// An answer, token by token.
pub(super) struct Tokens {
    parameters: Args,
    text: Option<TextId>,
    /// The next token's candidates with their logits, most likely first; none if the row behind the text is asked for.
    candidates: Vec<(TextId, f32)>,
    counts: SearchCounts,
}

impl Tokens {
    pub fn new(parameters: Args) -> Tokens {
        Tokens { parameters, text: None, candidates: Vec::new(), counts: SearchCounts::default() }
    }
}

impl Strategy for Tokens {
    fn top_k(&self) -> usize {
        self.parameters.k
    }

    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        let Some(text) = self.text else {
            self.text = Some(texts.prompt());
            texts.look(texts.prompt());
            return Ok(None);
        };
        if self.candidates.is_empty() {
            let possible = |&&(_, logit): &&(u32, f32)| logit > f32::NEG_INFINITY;
            let likely: Vec<(u32, f32)> = texts.top(text).iter().filter(possible).copied().collect();
            if likely.is_empty() {
                return Err(Error::invalid("the policy allows no token that the reward model can read"));
            }
            for (id, logit) in likely {
                let candidate = texts.extend(text, Growth::Token(id));
                texts.score(candidate);
                self.candidates.push((candidate, logit));
                self.counts.proposals += 1;
            }
            return Ok(None);
        }
        let mut best: Option<(TextId, f64)> = None;
        for &(candidate, logit) in &self.candidates {
            let score = f64::from(logit) + self.parameters.weight * f64::from(texts.reward(candidate)?);
            if best.is_none_or(|(_, most)| score > most) {
                best = Some((candidate, score));
            }
        }
        let chosen = best.map_or(text, |(candidate, _)| candidate);
        self.counts.rejected += self.candidates.len() as u64 - 1;
        self.counts.rounds += 1;
        self.candidates.clear();
        self.text = Some(chosen);
        texts.keep(&[chosen]);
        if texts.stop(chosen).is_some() {
            return Ok(Some(Answer { all: vec![chosen], best: 0, counts: self.counts }));
        }
        texts.look(chosen);
        Ok(None)
    }
}
