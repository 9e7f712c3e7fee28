//! Search by blocks of tokens: block-wise best-of-K, and beam search over chunks.

use super::range;
use super::strategy::{Answer, Strategy};
use super::text::{Growth, TextId};
use super::texts::Texts;
use crate::Result;
use crate::answer::SearchCounts;
use crate::sampling::MAX_COMPLETIONS;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Block-wise best-of-K (Controlled Decoding, arXiv 2310.17022): of `k` sampled blocks the one that makes the text with the
/// largest reward is committed, the earliest on a tie, and the next block goes on from it.
///
/// The paper scores with a value function that it trains; here the reward of the unfinished text stands for it. Blocks of 32
/// tokens are the paper's; it tries many K, and the default of 8 is ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blockwise {
    /// Blocks that are sampled for each one that is committed.
    pub k: usize,
    /// Tokens of a block, M in the paper.
    pub block: usize,
}

impl Default for Blockwise {
    /// 8 blocks of 32 tokens.
    fn default() -> Blockwise {
        Blockwise { k: 8, block: 32 }
    }
}

impl Blockwise {
    pub(super) fn check(&self) -> Result<()> {
        range::count("k", self.k, MAX_COMPLETIONS)?;
        range::check("block", self.block, self.block >= 1, "at least 1")
    }
}

/// Beam search over chunks (arXiv 2405.19262): each of `width` texts goes on by `successors` sampled chunks, and of all these
/// the `width` with the largest rewards go on, until all of them have ended.
///
/// At first all `width` texts are the prompt. A text that has ended is one candidate, and stays as long as it is good enough. The
/// earlier one stays on a tie: candidates are in the order of the texts that they go on from, which are in the order of their
/// ranks. The paper's reward is a difference of log-probabilities of two small models; here it is the reward model's. For
/// instructions its code has W 2, K 2, L 30; the defaults of W 2, K 4, L 32 are ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Beam {
    /// Texts that go on, W in the paper.
    pub width: usize,
    /// Chunks that are sampled behind each, K in the paper.
    pub successors: usize,
    /// Tokens of a chunk, L in the paper.
    pub chunk: usize,
}

impl Default for Beam {
    /// 2 texts, 4 chunks of 32 tokens behind each.
    fn default() -> Beam {
        Beam { width: 2, successors: 4, chunk: 32 }
    }
}

impl Beam {
    pub(super) fn check(&self) -> Result<()> {
        range::count("width", self.width, MAX_COMPLETIONS)?;
        let most = MAX_COMPLETIONS / self.width;
        range::count("successors", self.successors, most)?;
        range::check("chunk", self.chunk, self.chunk >= 1, "at least 1")
    }
}

/// The texts that go on, the best one first.
pub(super) struct Beams {
    parameters: Beam,
    beams: Vec<TextId>,
    /// What was sampled behind them, and those of them that have ended.
    candidates: Vec<TextId>,
    round: u64,
    counts: SearchCounts,
}

impl Beams {
    pub fn new(parameters: Beam) -> Beams {
        let (beams, candidates) = (Vec::new(), Vec::new());
        Beams { parameters, beams, candidates, round: 0, counts: SearchCounts::default() }
    }

    /// Block-wise best-of-K is a beam of one text.
    pub fn of_blocks(parameters: &Blockwise) -> Beams {
        Beams::new(Beam { width: 1, successors: parameters.k, chunk: parameters.block })
    }
}

impl Strategy for Beams {
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        let Beam { width, successors, chunk } = self.parameters;
        if self.round == 0 {
            self.beams = vec![texts.prompt(); width];
        } else {
            self.beams = ranked(texts, &self.candidates)?;
            self.counts.rejected += self.beams.len().saturating_sub(width) as u64;
            self.counts.rounds += 1;
            self.beams.truncate(width);
            texts.keep(&self.beams);
            if self.beams.iter().all(|&beam| texts.stop(beam).is_some()) {
                return Ok(Some(Answer { all: std::mem::take(&mut self.beams), best: 0, counts: self.counts }));
            }
        }
        self.candidates.clear();
        for (place, &beam) in self.beams.iter().enumerate() {
            if texts.stop(beam).is_some() {
                self.candidates.push(beam);
                continue;
            }
            for successor in place * successors..(place + 1) * successors {
                let stream = (self.round << 32) + successor as u64;
                let next = texts.extend(beam, Growth::Sampled { stream, tokens: chunk, until: None });
                texts.score(next);
                self.candidates.push(next);
                self.counts.proposals += 1;
            }
        }
        texts.keep(&self.candidates);
        self.round += 1;
        Ok(None)
    }
}

/// Texts in the order of their rewards, the largest first; on a tie in the order in which they were.
pub(super) fn ranked(texts: &Texts, ids: &[TextId]) -> Result<Vec<TextId>> {
    let mut rewards = ids.iter().map(|&id| Ok((id, texts.reward(id)?))).collect::<Result<Vec<_>>>()?;
    // Rewards are finite.
    rewards.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
    Ok(rewards.into_iter().map(|(id, _)| id).collect())
}
