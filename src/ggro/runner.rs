//! What a response asks of the two models, one candidate at a time: decode it, score it.

use super::Options;
use super::candidate::{CandidateState, Rules};
use super::entropy::Threshold;
use super::gradient::pool_position;
use super::intervention::Observer;
use super::nudge::Shortlist;
use super::sequences::Sequences;
use crate::model::{Backend, Gradient, GradientSpan, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};
use crate::{Error, Result};

/// Rewards of a sequence at its last position, and where the final reward would be pooled if it ended there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub last: f32,
    pub pooled: f32,
}

/// A candidate that has ended, its sequences, and the row that produced its last token.
pub(super) struct Branch {
    pub state: CandidateState,
    pub row: PolicyRow,
    pub policy: SeqId,
    pub reward: SeqId,
}

/// What is to be found out about a candidate.
pub(super) struct Question<'a> {
    /// Absolute position of the slot.
    pub slot: usize,
    /// Rewards of what the candidate's reward sequence already holds, if it holds anything.
    pub before: Option<Known>,
    /// Differentiate at the slot and score these proposals.
    pub proposals: Option<&'a Shortlist>,
    /// Later candidates will be forced at the slot, so the rewards of the sequence up to the slot may be needed.
    pub continues: bool,
}

/// What the reward model says of a candidate.
pub(super) struct Answer {
    pub rewards: Known,
    /// Of the sequence up to the slot, if it was asked for.
    pub before_slot: Option<Known>,
    /// `E_R[v] . g` per proposal and the norm of `g`.
    pub gradient: Option<(Vec<f32>, f32)>,
}

/// The two models at work on one response.
pub(super) struct Runner<'a> {
    pub sequences: Sequences<'a>,
    pub options: &'a Options,
    pub rules: Rules,
    pub observer: &'a mut dyn Observer,
    threshold: Threshold,
    /// Length of a shortlist: K, or all ids that have a reward row.
    pub shortlist_len: usize,
    reward_vocab: usize,
}

impl<'a> Runner<'a> {
    pub fn new(
        backend: &'a mut dyn Backend,
        prompt_len: usize,
        options: &'a Options,
        observer: &'a mut dyn Observer,
    ) -> Runner<'a> {
        let reward_vocab = backend.config(Role::Reward).vocab_size;
        let policy_vocab = backend.config(Role::Policy).vocab_size;
        Runner {
            sequences: Sequences::new(backend),
            options,
            rules: Rules::new(prompt_len, options),
            observer,
            threshold: options.threshold(),
            shortlist_len: options.top_k.min(policy_vocab.min(reward_vocab)),
            reward_vocab,
        }
    }

    /// Whether anything looks at the largest logits of a row: not in plain greedy decoding.
    pub fn nudges(&self) -> bool {
        self.options.max_candidates > 1 || self.options.full_trace
    }

    /// The part of a logit row whose ids the reward model knows.
    pub fn readable<'r>(&self, logits: &'r [f32]) -> &'r [f32] {
        &logits[..self.reward_vocab.min(logits.len())]
    }

    /// Appends `ids` to a policy sequence. The row after them produces the token at index `next` of a segment whose slot
    /// is at index `offset`; this decides whether its largest logits are wanted. One more than the shortlist holds is
    /// taken, for the margin at its edge.
    pub fn step(&mut self, seq: SeqId, ids: &[u32], next: usize, offset: usize) -> Result<PolicyRow> {
        let start = self.sequences.backend.len(seq);
        let len = start + ids.len();
        let take = self.shortlist_len + 1;
        let top_k = if !self.nudges() {
            TopK::Skip
        } else if next == offset {
            TopK::Take(take)
        } else if next + 1 >= self.options.min_generated && len + 1 < self.rules.end {
            // If it ends this segment for uncertainty, it is the row at the next one's slot.
            TopK::TakeIf(take, &self.threshold)
        } else {
            TopK::Skip
        };
        let span = PolicySpan { span: Span { seq, start, ids }, floor: self.options.probability_floor, top_k };
        let row = single(self.sequences.backend.policy_step(&[span])?)?;
        if !row.stats.finite {
            return Err(Error::NonFinite { what: "logit", model: "policy", position: len - 1 });
        }
        Ok(row)
    }

    /// Runs a candidate's newest token through the policy: the row that decides the one after it.
    pub fn extend(&mut self, seq: SeqId, state: &CandidateState, offset: usize) -> Result<PolicyRow> {
        let generated = state.generated();
        let newest = &generated[generated.len().saturating_sub(1)..];
        self.step(seq, newest, generated.len(), offset)
    }

    /// Decodes the next token of a candidate from `row`. True if it was the last one.
    pub fn push(&mut self, state: &mut CandidateState, row: &PolicyRow) -> Result<bool> {
        let token = state.next(&row.stats);
        let stopped = state.push(token, &row.stats, &self.rules).is_some();
        self.observer.token();
        if token as usize >= self.reward_vocab && state.dropped().is_none() {
            return Err(Error::invalid(format!(
                "the policy chose id {token}, which the reward model cannot read: its vocabulary has {} ids",
                self.reward_vocab
            )));
        }
        Ok(stopped)
    }

    /// Scores an ended candidate behind `prefix`, in one span behind what its reward sequence holds.
    pub fn score(&mut self, branch: &Branch, prefix: &[u32], question: &Question<'_>) -> Result<Answer> {
        let ids = [prefix, branch.state.kept()].concat();
        let start = self.sequences.backend.len(branch.reward);
        if start == ids.len() {
            // Nothing new: the sequence ends where an earlier one did.
            let rewards = question.before.ok_or_else(|| internal("an unknown reward"))?;
            return Ok(Answer { rewards, before_slot: None, gradient: None });
        }

        // Positions besides the last one whose reward is wanted. What lies before the span was known before it.
        let last = ids.len() - 1;
        let pool = pool_position(&ids, self.options.reward_pad_id);
        let before_slot = (question.continues && question.slot > start).then(|| {
            let before = &ids[..question.slot];
            (question.slot - 1, pool_position(before, self.options.reward_pad_id))
        });
        let mut also_at: Vec<usize> = Vec::new();
        for position in before_slot.into_iter().flat_map(|(a, b)| [a, b]).chain([pool]) {
            if position >= start && position != last && !also_at.contains(&position) {
                also_at.push(position);
            }
        }

        let span = RewardSpan { span: Span { seq: branch.reward, start, ids: &ids[start..] }, also_at: &also_at };
        let (score, gradient) = match question.proposals {
            None => (single(self.sequences.backend.reward_score(&[span])?)?, None),
            Some(list) => {
                let span = GradientSpan { span, slot: question.slot, candidates: &list.ids, rows: false };
                let result = single(self.sequences.backend.reward_gradient(&[span])?)?;
                let Gradient { score, dots, norm, .. } = result;
                if dots.len() != list.ids.len() {
                    return Err(internal("a first-order score per proposal"));
                }
                (score, Some((dots, norm)))
            }
        };
        if score.also.len() != also_at.len() {
            return Err(internal("a reward per position"));
        }
        for (&position, &reward) in also_at.iter().chain([&last]).zip(score.also.iter().chain([&score.reward])) {
            finite("reward", reward, position)?;
        }
        if let Some((dots, norm)) = &gradient {
            for &value in dots.iter().chain([norm]) {
                finite("reward gradient", value, question.slot)?;
            }
        }

        let at = |position: usize| -> Result<f32> {
            if position == last {
                return Ok(score.reward);
            }
            match also_at.iter().position(|&asked| asked == position) {
                Some(i) => Ok(score.also[i]),
                // Before the span only the position where the final reward is pooled is ever looked up.
                None => question.before.map(|k| k.pooled).ok_or_else(|| internal("an unknown reward")),
            }
        };
        Ok(Answer {
            rewards: Known { last: score.reward, pooled: at(pool)? },
            before_slot: match before_slot {
                Some((last, pooled)) => Some(Known { last: at(last)?, pooled: at(pooled)? }),
                None => None,
            },
            gradient,
        })
    }
}

fn finite(what: &'static str, value: f32, position: usize) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NonFinite { what, model: "reward", position })
}

fn single<T>(results: Vec<T>) -> Result<T> {
    results.into_iter().next().ok_or_else(|| internal("a result per span"))
}

/// The backend broke its contract, or this module misread it.
pub(super) fn internal(missing: &str) -> Error {
    Error::Backend(format!("the backend did not return what was asked for: {missing}"))
}
