//! Speculative rejection: many samples at once, of which the worse ones are dropped on the way.

use super::beam::ranked;
use super::range;
use super::strategy::{Answer, Strategy};
use super::text::{Growth, TextId};
use super::texts::Texts;
use crate::answer::SearchCounts;
use crate::sampling::MAX_COMPLETIONS;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Speculative rejection (arXiv 2410.20290): best-of-N that drops samples early by the rewards of their beginnings.
///
/// `n` samples advance token by token together. The keys and values in use are the prompt's tokens and those that the unfinished
/// samples have generated. Whenever one more token of each would exceed `kv_budget`, all samples are ranked by reward, finished
/// ones by that of their answer and the others by that of what they have, the lower number first on a tie. The best
/// `round((1 - alpha) * count)` of the `count` samples that no ranking has rejected before are kept, at least one. Of the others
/// the unfinished ones are dropped; the finished ones stay answers, but are ranked no more. If a ranking leaves one unfinished
/// sample, or could drop none, all go on to their ends without another one. The answer is the finished one with the largest
/// reward.
///
/// The paper finds `n` and the moment of a ranking by the memory of the card. Here both are parameters, so that an answer does
/// not depend on the machine. An alpha of 0.5 is the paper's; the other defaults are ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpeculativeRejection {
    /// Samples.
    pub n: usize,
    /// Share of the samples that a ranking rejects: above 0 and below 1.
    pub alpha: f64,
    /// Tokens of keys and values, the prompt's included; it has to hold the prompt and a token of each sample. `None`: the prompt
    /// and a quarter of what all samples can generate, `n * max_new_tokens / 4`. With alpha 0.5 that ranks after a quarter and after
    /// half of the longest answer.
    pub kv_budget: Option<usize>,
}

impl Default for SpeculativeRejection {
    /// 16 samples, alpha 0.5.
    fn default() -> SpeculativeRejection {
        SpeculativeRejection { n: 16, alpha: 0.5, kv_budget: None }
    }
}

impl SpeculativeRejection {
    pub(super) fn check(&self) -> Result<()> {
        range::count("n", self.n, MAX_COMPLETIONS)?;
        range::check("alpha", self.alpha, self.alpha > 0.0 && self.alpha < 1.0, "above 0 and below 1")
    }

    /// Tokens that the samples of a request may have generated at the same time.
    fn room(&self, prompt_len: usize, max_new_tokens: usize) -> Result<usize> {
        let Some(budget) = self.kv_budget else {
            return Ok((self.n.saturating_mul(max_new_tokens) / 4).max(self.n));
        };
        let least = prompt_len.saturating_add(self.n);
        if budget < least {
            return Err(Error::invalid(format!(
                "kv_budget must be at least {least}, the prompt's {prompt_len} tokens and one of each of {} samples, not {budget}",
                self.n
            )));
        }
        Ok(budget - prompt_len)
    }
}

/// A sample.
struct Sample {
    text: TextId,
    stream: u64,
    /// Whether no ranking has rejected it.
    ranked: bool,
}

/// The samples that were not dropped, in the order of their numbers.
pub(super) struct Samples {
    parameters: SpeculativeRejection,
    room: usize,
    samples: Vec<Sample>,
    /// Whether the rewards of a ranking were asked for.
    ranking: bool,
    /// Whether there are no more rankings.
    last: bool,
    counts: SearchCounts,
}

impl Samples {
    /// For a prompt of so many tokens.
    ///
    /// # Errors
    /// The budget has no room for them.
    pub fn new(parameters: SpeculativeRejection, prompt_len: usize, max_new_tokens: usize) -> Result<Samples> {
        let room = parameters.room(prompt_len, max_new_tokens)?;
        let counts = SearchCounts::default();
        Ok(Samples { parameters, room, samples: Vec::new(), ranking: false, last: false, counts })
    }

    /// Drops the samples that a ranking rejects; all rewards are known.
    fn rank(&mut self, texts: &Texts) -> Result<()> {
        let open: Vec<TextId> = self.samples.iter().filter(|sample| sample.ranked).map(|sample| sample.text).collect();
        let keep = ((1.0 - self.parameters.alpha) * open.len() as f64).round() as usize;
        let kept = ranked(texts, &open)?;
        let kept = kept.get(..keep.max(1)).unwrap_or(&kept);
        let before = self.samples.len();
        for sample in &mut self.samples {
            sample.ranked &= kept.contains(&sample.text);
        }
        self.samples.retain(|sample| sample.ranked || texts.stop(sample.text).is_some());
        let dropped = before - self.samples.len();
        let unfinished = self.samples.iter().filter(|sample| texts.stop(sample.text).is_none()).count();
        self.last = dropped == 0 || unfinished <= 1;
        self.counts.rejected += dropped as u64;
        self.counts.rounds += 1;
        Ok(())
    }
}

impl Strategy for Samples {
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        let n = self.parameters.n;
        if self.samples.is_empty() {
            let prompt = texts.prompt();
            self.samples = (0..n as u64).map(|stream| Sample { text: prompt, stream, ranked: true }).collect();
            self.counts.proposals = n as u64;
        }
        if std::mem::take(&mut self.ranking) {
            self.rank(texts)?;
        }
        let is_open = |texts: &Texts, sample: &Sample| texts.stop(sample.text).is_none();
        let open: Vec<&Sample> = self.samples.iter().filter(|sample| is_open(texts, sample)).collect();
        let (count, room) = (open.len(), self.room);
        // All that are unfinished have the same number of tokens.
        let len = open.first().map_or(0, |sample| texts.ids(sample.text).len());
        if !self.last && count > 0 && (len + 1) * count > room {
            for sample in &self.samples {
                texts.score(sample.text);
            }
            self.ranking = true;
            return Ok(None);
        }
        let tokens = if self.last || count == 0 { usize::MAX } else { room / count - len };
        let mut known = true;
        for sample in &mut self.samples {
            if is_open(texts, sample) {
                sample.text = texts.extend(sample.text, Growth::Sampled { stream: sample.stream, tokens, until: None });
            } else {
                known &= texts.reward(sample.text).is_ok();
                texts.score(sample.text);
            }
        }
        let all: Vec<TextId> = self.samples.iter().map(|sample| sample.text).collect();
        texts.keep(&all);
        if count > 0 || !known {
            return Ok(None);
        }
        let best = texts.best(&all)?;
        Ok(Some(Answer { all, best, counts: self.counts }))
    }
}
