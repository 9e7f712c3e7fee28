//! What a backend makes of the candidates of traces when it is fed their own tokens.
//!
//! The final text of a trace runs once; a candidate is a fork of it. All candidates of all traces go on together, one token
//! of each per step, as a device likes it: some thousands of rows in some dozens of steps.

use super::candidates::Tried;
use crate::lab::goldens::sequences::Sequences;
use crate::model::{GradientSpan, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};
use crate::trace::Trace;
use crate::{Error, Result};

/// Sequences that go on together, which bounds the memory of their keys and values.
const WIDTH: usize = 128;

/// Tokens of one step over long spans.
const TOKENS: usize = 1024;

/// Entries of a slot's list of largest logits beyond those that may be proposed: enough to find the ones that changed sides.
const BEYOND: usize = 8;

/// Rows of the policy, per candidate one for each of its own tokens, with the `contenders` largest logits of each.
pub(super) fn policy(
    backend: &mut ModelPair,
    traces: &[Trace],
    candidates: &[Tried<'_>],
    contenders: usize,
) -> Result<Vec<Vec<PolicyRow>>> {
    let mut held = Sequences::new(backend);
    let mut trunks = Vec::new();
    for trace in traces {
        trunks.push(held.create(Role::Policy)?);
        debug_assert!(!trace.final_ids.is_empty());
    }
    for group in groups(traces.iter().map(|t| t.final_ids.len())) {
        let spans: Vec<PolicySpan<'_>> = group
            .map(|i| PolicySpan {
                span: whole(trunks[i], &traces[i].final_ids),
                floor: 0.0,
                top_k: TopK::Skip,
                before: &[],
            })
            .collect();
        expect(held.backend.policy_step(&spans)?, spans.len())?;
    }

    let feeds: Vec<(usize, Vec<u32>)> = candidates.iter().map(|c| c.policy_feed(&traces[c.trace].final_ids)).collect();
    // Longest first, so that those which go on stand together.
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(feeds[i].1.len()));
    let mut rows = vec![Vec::new(); candidates.len()];
    for group in order.chunks(WIDTH) {
        let mut forks = Vec::new();
        for &i in group {
            forks.push(held.fork(trunks[candidates[i].trace], feeds[i].0)?);
        }
        for step in 0.. {
            let going = group.iter().take_while(|&&i| feeds[i].1.len() > step).count();
            if going == 0 {
                break;
            }
            let spans: Vec<PolicySpan<'_>> = group[..going]
                .iter()
                .zip(&forks)
                .map(|(&i, &seq)| {
                    let (candidate, (start, feed)) = (&candidates[i], &feeds[i]);
                    let options = &traces[candidate.trace].options;
                    let at_slot = !candidate.is_forced() && step == candidate.offset();
                    PolicySpan {
                        span: Span { seq, start: start + step, ids: &feed[step..=step] },
                        floor: options.probability_floor,
                        top_k: match contenders {
                            _ if at_slot => TopK::Take(options.top_k.saturating_add(BEYOND).max(contenders)),
                            0 => TopK::Skip,
                            _ => TopK::Take(contenders),
                        },
                        before: &[],
                    }
                })
                .collect();
            let found = expect(held.backend.policy_step(&spans)?, going)?;
            for (&i, row) in group.iter().zip(found) {
                rows[i].push(row);
            }
        }
        forks.into_iter().for_each(|seq| held.release(seq));
    }
    Ok(rows)
}

/// What the reward model says of a candidate.
#[derive(Clone, Debug, Default)]
pub(super) struct RewardAnswer {
    pub reward: f64,
    /// First-order scores of the slot's proposals, and the norm of the gradient: with gradients, where the slot was reached.
    pub dots: Vec<f32>,
    pub norm: f64,
}

/// Answers of the reward model to every candidate, and the final rewards of the traces. `proposals` are the ids to score, by
/// the place of the segment's unforced candidate.
pub(super) fn reward(
    backend: &mut ModelPair,
    traces: &[Trace],
    candidates: &[Tried<'_>],
    proposals: &[Vec<u32>],
    gradients: bool,
) -> Result<(Vec<RewardAnswer>, Vec<f64>)> {
    let mut held = Sequences::new(backend);
    let (mut trunks, mut pooled) = (Vec::new(), Vec::new());
    for _ in traces {
        trunks.push(held.create(Role::Reward)?);
    }
    let pools: Vec<[usize; 1]> = traces.iter().map(|t| [t.final_pool_position]).collect();
    for group in groups(traces.iter().map(|t| t.final_ids.len())) {
        let spans: Vec<RewardSpan<'_>> =
            group.map(|i| RewardSpan { span: whole(trunks[i], &traces[i].final_ids), also_at: &pools[i] }).collect();
        let scores = expect(held.backend.reward_score(&spans)?, spans.len())?;
        pooled.extend(scores.iter().map(|score| score.also.first().map_or(f64::NAN, |&r| r.into())));
    }

    let feeds: Vec<(usize, &[u32])> = candidates.iter().map(|c| c.reward_feed(&traces[c.trace].final_ids)).collect();
    let mut answers = vec![RewardAnswer::default(); candidates.len()];
    let (with, without): (Vec<usize>, Vec<usize>) =
        (0..candidates.len()).partition(|&i| gradients && candidates[i].has_slot());
    for (differentiated, list) in [(true, with), (false, without)] {
        for group in groups(list.iter().map(|&i| feeds[i].1.len())) {
            let group = &list[group];
            let mut forks = Vec::new();
            for &i in group {
                forks.push(held.fork(trunks[candidates[i].trace], feeds[i].0)?);
            }
            let spans = group.iter().zip(&forks).map(|(&i, &seq)| {
                let (start, ids) = feeds[i];
                RewardSpan { span: Span { seq, start, ids }, also_at: &[] }
            });
            if differentiated {
                let spans: Vec<GradientSpan<'_>> = spans
                    .zip(group)
                    .map(|(span, &i)| {
                        let candidate = &candidates[i];
                        GradientSpan {
                            span,
                            slot: candidate.slot,
                            candidates: &proposals[candidate.unforced],
                            rows: false,
                        }
                    })
                    .collect();
                let found = expect(held.backend.reward_gradient(&spans)?, spans.len())?;
                for (&i, gradient) in group.iter().zip(found) {
                    let (reward, norm) = (gradient.score.reward.into(), gradient.norm.into());
                    answers[i] = RewardAnswer { reward, dots: gradient.dots, norm };
                }
            } else {
                let spans: Vec<RewardSpan<'_>> = spans.collect();
                let found = expect(held.backend.reward_score(&spans)?, spans.len())?;
                for (&i, score) in group.iter().zip(found) {
                    answers[i].reward = score.reward.into();
                }
            }
            forks.into_iter().for_each(|seq| held.release(seq));
        }
    }
    Ok((answers, pooled))
}

fn whole(seq: SeqId, ids: &[u32]) -> Span<'_> {
    Span { seq, start: 0, ids }
}

/// Consecutive ranges of at most [`WIDTH`] spans and, where more than one fits, [`TOKENS`] tokens.
fn groups(lengths: impl Iterator<Item = usize>) -> Vec<std::ops::Range<usize>> {
    let mut out: Vec<std::ops::Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (i, length) in lengths.enumerate() {
        match out.last_mut() {
            Some(group) if group.len() < WIDTH && tokens + length <= TOKENS => {
                group.end = i + 1;
                tokens += length;
            }
            _ => {
                out.push(i..i + 1);
                tokens = length;
            }
        }
    }
    out
}

/// A result for every span.
fn expect<T>(found: Vec<T>, count: usize) -> Result<Vec<T>> {
    if found.len() == count {
        return Ok(found);
    }
    Err(Error::Backend(format!("the backend returned {} results for {count} spans", found.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_everything_once() {
        assert_eq!(groups([700, 300, 24, 1, 2000, 5].into_iter()), [0..3, 3..4, 4..5, 5..6]);
        assert_eq!(groups(std::iter::repeat_n(1, 300)).len(), 3);
        assert!(groups(std::iter::empty()).is_empty());
    }
}
