//! A turn's batches through a backend.

use super::turn::{Answer, Span, Turn};
use crate::model::{
    Backend, GradientSpan, PolicyRow, PolicySpan, RewardSpan, Role, Seconds, Span as Tokens, TopK, Turn as Batches,
    timed,
};
use crate::task::{Ask, Row, Scored, Top, Whole};
use crate::{Error, Result};

/// Runs a turn. One answer per span, the policy's first, and the seconds it took. A batch that fails is run again span by span,
/// so that a request which cannot be served takes no other with it.
pub(super) fn run(backend: &mut dyn Backend, turn: &Turn) -> (Vec<Answer>, Seconds) {
    let (policy, reward): (Vec<&Span>, Vec<&Span>) = (turn.policy.iter().collect(), turn.reward.iter().collect());
    let turned = both(backend, &policy, &reward);
    let mut answers = Vec::with_capacity(policy.len() + reward.len());
    let mut seconds = turned.2;
    for (spans, found) in [(policy, turned.0), (reward, turned.1)] {
        match found {
            Ok(found) => answers.extend(found),
            Err(error) if spans.len() == 1 => answers.push(Answer::Failed(error)),
            Err(_) => answers.extend(spans.into_iter().map(|span| apart(backend, span, &mut seconds))),
        }
    }
    (answers, seconds)
}

/// A span of a batch that failed, by itself.
fn apart(backend: &mut dyn Backend, span: &Span, seconds: &mut Seconds) -> Answer {
    // What a failed batch has appended is taken back, so the span can be tried again.
    let back = match backend.len(span.seq) > span.start {
        true => backend.truncate(span.seq, span.start),
        false => Ok(()),
    };
    let alone = back.and_then(|()| {
        let (policy, reward, took) = match span.seq.role {
            Role::Policy => both(backend, &[span], &[]),
            Role::Reward => both(backend, &[], &[span]),
        };
        *seconds += took;
        match span.seq.role {
            Role::Policy => policy,
            Role::Reward => reward,
        }
    });
    match alone {
        Ok(mut alone) => alone.pop().unwrap_or_else(|| Answer::Failed(missing())),
        Err(error) => Answer::Failed(error),
    }
}

type Answers = Result<Vec<Answer>>;

/// A policy batch and a reward batch.
fn both(backend: &mut dyn Backend, policy: &[&Span], reward: &[&Span]) -> (Answers, Answers, Seconds) {
    let rows: Vec<PolicySpan<'_>> = policy.iter().map(|span| row_of(span)).collect();
    let (mut scores, mut slopes) = (Vec::new(), Vec::new());
    for (index, span) in reward.iter().enumerate() {
        let Ask::Score { also_at, gradient } = &span.task.ask else {
            return (Err(missing()), Err(missing()), Seconds::default());
        };
        let tokens = Tokens { seq: span.seq, start: span.start, ids: &span.ids };
        let asked = RewardSpan { span: tokens, also_at };
        match gradient {
            None => scores.push((index, asked)),
            Some(slope) => {
                let candidates = &slope.candidates;
                slopes.push((index, GradientSpan { span: asked, slot: slope.slot, candidates, rows: slope.rows }));
            }
        }
    }
    let score: Vec<RewardSpan<'_>> = scores.iter().map(|&(_, span)| span).collect();
    let gradient: Vec<GradientSpan<'_>> = slopes.iter().map(|&(_, span)| span).collect();
    let turned = backend.turn(Batches { policy: &rows, score: &score, gradient: &gradient });
    let mut seconds = turned.seconds;

    // Whole rows of logits are the policy's work too.
    let policy = turned.policy.and_then(|rows| timed(&mut seconds.policy, || answered(backend, policy, rows)));
    let mut answers: Vec<Option<Answer>> = reward.iter().map(|_| None).collect();
    let rewards = turned.score.and_then(|scored| {
        for ((index, _), score) in scores.iter().zip(scored) {
            let scored = Scored { reward: score.reward, also: score.also, ..Scored::default() };
            answers[*index] = Some(Answer::Scored(scored));
        }
        for ((index, _), found) in slopes.iter().zip(turned.gradient?) {
            let (score, gradient) = (found.score, Some((found.dots, found.norm)));
            let scored = Scored { reward: score.reward, also: score.also, gradient, rows: found.rows };
            answers[*index] = Some(Answer::Scored(scored));
        }
        answers.into_iter().map(|answer| answer.ok_or_else(missing)).collect()
    });
    (policy, rewards, seconds)
}

fn missing() -> Error {
    Error::Backend("the backend did not return a result per span".to_string())
}

/// What the policy is asked of a span.
fn row_of(span: &Span) -> PolicySpan<'_> {
    let tokens = Tokens { seq: span.seq, start: span.start, ids: &span.ids };
    match &span.task.ask {
        Ask::Row { floor, top, .. } if span.last => {
            let top_k = match top {
                Top::Skip => TopK::Skip,
                Top::Take(k) => TopK::Take(*k),
                Top::TakeIf(k, threshold) => TopK::TakeIf(*k, *threshold),
            };
            PolicySpan { span: tokens, floor: *floor, top_k }
        }
        _ => PolicySpan { span: tokens, floor: 0.0, top_k: TopK::Skip },
    }
}

/// Rows as answers, with all their logits where they are wanted.
fn answered(backend: &mut dyn Backend, spans: &[&Span], rows: Vec<PolicyRow>) -> Answers {
    if rows.len() != spans.len() {
        return Err(missing());
    }
    let mut answers = Vec::with_capacity(spans.len());
    for (span, row) in spans.iter().zip(rows) {
        let Ask::Row { whole, .. } = &span.task.ask else { return Err(missing()) };
        if !span.last {
            answers.push(Answer::Closer);
            continue;
        }
        let wanted = match whole {
            Whole::Never => false,
            Whole::WithTop => !row.top.is_empty(),
            Whole::Always => row.stats.finite,
        };
        let logits = match wanted {
            true => Some(backend.logits_row(span.seq)?),
            false => None,
        };
        answers.push(Answer::Row(Row { row, logits }));
    }
    Ok(answers)
}
