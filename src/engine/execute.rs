//! A step's batches through a backend.

use super::step::{SpanOutput, Step, TaskSpan};
use crate::model::{
    GradientSpan, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, Span, StepBatch, StepTime, TopK, timed,
};
use crate::task::{Ask, FullLogits, PolicyOutput, RewardOutput};
use crate::{Error, Result};

/// Runs a step. One output per span, the policy's first, and the seconds it took. A batch that fails is run again span
/// by span and without guesses, so that a request which cannot be served takes no other with it.
pub(super) fn execute(backend: &mut ModelPair, step: &Step) -> (Vec<SpanOutput>, StepTime) {
    let (policy, reward): (Vec<&TaskSpan>, Vec<&TaskSpan>) =
        (step.policy.iter().collect(), step.reward.iter().collect());
    let mut ran = both(backend, &policy, &reward);
    let mut outputs = Vec::with_capacity(policy.len() + reward.len());
    for (spans, found) in [(policy, ran.policy), (reward, ran.reward)] {
        match found {
            Ok(found) => outputs.extend(found),
            Err(error) if spans.len() == 1 && spans[0].draft.is_none() => outputs.push(SpanOutput::Failed(error)),
            Err(_) => outputs.extend(spans.into_iter().map(|span| apart(backend, span, &mut ran.seconds))),
        }
    }
    (outputs, ran.seconds)
}

/// A span of a batch that failed, by itself.
fn apart(backend: &mut ModelPair, span: &TaskSpan, seconds: &mut StepTime) -> SpanOutput {
    // What a failed batch has appended is taken back, so the span can be tried again.
    let back = match backend.len(span.seq) > span.start {
        true => backend.truncate(span.seq, span.start),
        false => Ok(()),
    };
    let alone = back.and_then(|()| {
        // Nothing that was guessed, so that no guess can fail a request.
        let plain = span.undrafted();
        let (policy, reward): (&[_], &[_]) = match span.seq.role {
            Role::Policy => (&[&plain], &[]),
            Role::Reward => (&[], &[&plain]),
        };
        let ran = both(backend, policy, reward);
        *seconds += ran.seconds;
        match span.seq.role {
            Role::Policy => ran.policy,
            Role::Reward => ran.reward,
        }
    });
    match alone {
        Ok(mut alone) => alone.pop().unwrap_or_else(|| SpanOutput::Failed(missing())),
        Err(error) => SpanOutput::Failed(error),
    }
}

/// Outputs of a policy batch and a reward batch, each of which may fail by itself.
struct Ran {
    policy: Result<Vec<SpanOutput>>,
    reward: Result<Vec<SpanOutput>>,
    seconds: StepTime,
}

fn both(backend: &mut ModelPair, policy: &[&TaskSpan], reward: &[&TaskSpan]) -> Ran {
    let lists: Vec<Vec<TopK>> = policy.iter().map(|span| lists(span)).collect();
    let asks: Vec<PolicySpan<'_>> = policy.iter().zip(&lists).map(|(span, lists)| policy_span(span, lists)).collect();
    let (mut scores, mut gradients) = (Vec::new(), Vec::new());
    for (index, span) in reward.iter().enumerate() {
        let Ask::Reward { also_at, gradient } = &span.task.ask else {
            return Ran { policy: Err(missing()), reward: Err(missing()), seconds: StepTime::default() };
        };
        // What a task asks about lies in its last span.
        let also_at: &[usize] = if span.last { also_at } else { &[] };
        let asked = RewardSpan { span: tokens(span), also_at };
        match gradient {
            Some(gradient) if span.last => {
                let (slot, candidates) = (gradient.slot, &gradient.candidates[..]);
                gradients.push((index, GradientSpan { span: asked, slot, candidates, rows: gradient.rows }));
            }
            _ => scores.push((index, asked)),
        }
    }
    let score: Vec<RewardSpan<'_>> = scores.iter().map(|&(_, span)| span).collect();
    let gradient: Vec<GradientSpan<'_>> = gradients.iter().map(|&(_, span)| span).collect();
    let ran = backend.step(StepBatch { policy: &asks, score: &score, gradient: &gradient });
    let mut seconds = ran.seconds;

    // Fetching all logits of a row counts as the policy's time too.
    let policy = ran.policy.and_then(|rows| timed(&mut seconds.policy, || policy_outputs(backend, policy, rows)));
    let mut outputs: Vec<Option<SpanOutput>> = reward.iter().map(|_| None).collect();
    let reward = ran.score.and_then(|scored| {
        for ((index, _), score) in scores.iter().zip(scored) {
            let output = RewardOutput { reward: score.reward, also: score.also, ..RewardOutput::default() };
            outputs[*index] = Some(if reward[*index].last { SpanOutput::Reward(output) } else { SpanOutput::Partial });
        }
        for ((index, _), found) in gradients.iter().zip(ran.gradient?) {
            let (score, gradient) = (found.score, Some((found.dots, found.norm)));
            let output = RewardOutput { reward: score.reward, also: score.also, gradient, rows: found.rows };
            outputs[*index] = Some(SpanOutput::Reward(output));
        }
        outputs.into_iter().map(|output| output.ok_or_else(missing)).collect()
    });
    Ran { policy, reward, seconds }
}

fn missing() -> Error {
    Error::Backend("the backend did not return a result per span".to_string())
}

fn tokens(span: &TaskSpan) -> Span<'_> {
    Span { seq: span.seq, start: span.start, ids: &span.ids }
}

/// Largest logits that the rows of a span are asked for which has guessed tokens: the task's, then one list a token.
/// Empty if none was guessed.
fn lists(span: &TaskSpan) -> Vec<TopK> {
    match (&span.task.ask, &span.draft) {
        (Ask::Policy { top_k, .. }, Some(draft)) => [*top_k].into_iter().chain(draft.top_k.iter().copied()).collect(),
        _ => Vec::new(),
    }
}

/// What the policy is asked of a span.
fn policy_span<'a>(span: &'a TaskSpan, lists: &'a [TopK]) -> PolicySpan<'a> {
    match &span.task.ask {
        Ask::Policy { floor, top_k, .. } if span.last => {
            let (top_k, before) = lists.split_last().unwrap_or((top_k, &[]));
            PolicySpan { span: tokens(span), floor: *floor, top_k: *top_k, before }
        }
        _ => PolicySpan { span: tokens(span), floor: 0.0, top_k: TopK::Skip, before: &[] },
    }
}

/// The policy's rows as outputs, with all their logits where they are wanted. Those of rows behind guessed tokens are
/// left for when the tokens are known to be right.
fn policy_outputs(backend: &mut ModelPair, spans: &[&TaskSpan], rows: Vec<PolicyRow>) -> Result<Vec<SpanOutput>> {
    if rows.len() != spans.iter().map(|span| 1 + span.drafted()).sum::<usize>() {
        return Err(missing());
    }
    let (mut outputs, mut rows) = (Vec::with_capacity(spans.len()), rows.into_iter());
    for span in spans {
        let row = rows.next().ok_or_else(missing)?;
        let behind: Vec<PolicyRow> = rows.by_ref().take(span.drafted()).collect();
        if !span.last {
            outputs.push(SpanOutput::Partial);
            continue;
        }
        let output = policy_output(backend, span, span.drafted(), row)?;
        outputs.push(match span.draft {
            Some(_) => SpanOutput::Drafted(output, behind),
            None => SpanOutput::Policy(output),
        });
    }
    Ok(outputs)
}

/// A row of a span that was just run, `back` rows before its last one, with all its logits where they are wanted.
pub(super) fn policy_output(
    backend: &mut ModelPair,
    span: &TaskSpan,
    back: usize,
    row: PolicyRow,
) -> Result<PolicyOutput> {
    let Ask::Policy { full_logits, .. } = &span.task.ask else { return Err(missing()) };
    let wanted = match full_logits {
        FullLogits::Never => false,
        FullLogits::WithTopK => !row.top.is_empty(),
        FullLogits::Always => row.stats.finite,
    };
    let logits = match wanted {
        true => Some(backend.logits_row_before(span.seq, back)?),
        false => None,
    };
    Ok(PolicyOutput { row, logits })
}
