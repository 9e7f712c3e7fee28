//! A step's batches through a backend.

use super::step::{SpanOutput, Step, TaskSpan};
use crate::model::{
    GradientSpan, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, Span, StepBatch, StepTime, TopK, timed,
};
use crate::task::{Ask, FullLogits, PolicyOutput, RewardOutput};
use crate::{Error, Result};

/// Runs a step. One output per span, the policy's first, and the seconds it took. A batch that fails is run again span by span,
/// so that a request which cannot be served takes no other with it.
pub(super) fn execute(backend: &mut ModelPair, step: &Step) -> (Vec<SpanOutput>, StepTime) {
    let (policy, reward): (Vec<&TaskSpan>, Vec<&TaskSpan>) =
        (step.policy.iter().collect(), step.reward.iter().collect());
    let mut ran = both(backend, &policy, &reward);
    let mut outputs = Vec::with_capacity(policy.len() + reward.len());
    for (spans, found) in [(policy, ran.policy), (reward, ran.reward)] {
        match found {
            Ok(found) => outputs.extend(found),
            Err(error) if spans.len() == 1 => outputs.push(SpanOutput::Failed(error)),
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
        let (policy, reward): (&[_], &[_]) = match span.seq.role {
            Role::Policy => (&[span], &[]),
            Role::Reward => (&[], &[span]),
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
    let asks: Vec<PolicySpan<'_>> = policy.iter().map(|span| policy_span(span)).collect();
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

/// What the policy is asked of a span.
fn policy_span(span: &TaskSpan) -> PolicySpan<'_> {
    match &span.task.ask {
        Ask::Policy { floor, top_k, .. } if span.last => {
            PolicySpan { span: tokens(span), floor: *floor, top_k: *top_k }
        }
        _ => PolicySpan { span: tokens(span), floor: 0.0, top_k: TopK::Skip },
    }
}

/// The policy's rows as outputs, with all their logits where they are wanted.
fn policy_outputs(backend: &mut ModelPair, spans: &[&TaskSpan], rows: Vec<PolicyRow>) -> Result<Vec<SpanOutput>> {
    if rows.len() != spans.len() {
        return Err(missing());
    }
    let mut outputs = Vec::with_capacity(spans.len());
    for (span, row) in spans.iter().zip(rows) {
        let Ask::Policy { full_logits, .. } = &span.task.ask else { return Err(missing()) };
        if !span.last {
            outputs.push(SpanOutput::Partial);
            continue;
        }
        let wanted = match full_logits {
            FullLogits::Never => false,
            FullLogits::WithTopK => !row.top.is_empty(),
            FullLogits::Always => row.stats.finite,
        };
        let logits = match wanted {
            true => Some(backend.logits_row(span.seq)?),
            false => None,
        };
        outputs.push(SpanOutput::Policy(PolicyOutput { row, logits }));
    }
    Ok(outputs)
}
