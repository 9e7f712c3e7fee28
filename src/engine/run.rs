//! A turn's batches through a backend.

use super::scheduler::{Answer, Span, Turn};
use crate::ggro::task::{Ask, Row, Scored, Top, Whole};
use crate::model::{Backend, GradientSpan, PolicySpan, RewardSpan, Span as Tokens, TopK};
use crate::{Error, Result};

/// Runs a turn. One answer per span, the policy's first. A batch that fails is run again span by span, so that a request which
/// cannot be served takes no other with it.
pub(super) fn run(backend: &mut dyn Backend, turn: &Turn) -> Vec<Answer> {
    let mut answers = apart(backend, &turn.policy, policy);
    answers.extend(apart(backend, &turn.reward, reward));
    answers
}

type Batch = fn(&mut dyn Backend, &[&Span]) -> Result<Vec<Answer>>;

fn apart(backend: &mut dyn Backend, spans: &[Span], batch: Batch) -> Vec<Answer> {
    let all: Vec<&Span> = spans.iter().collect();
    if all.is_empty() {
        return Vec::new();
    }
    match batch(backend, &all) {
        Ok(answers) => answers,
        Err(error) if all.len() == 1 => vec![Answer::Failed(error)],
        Err(_) => {
            let mut answers = Vec::with_capacity(all.len());
            for span in all {
                // What a failed batch has appended is taken back, so the span can be tried again.
                let back = match backend.len(span.seq) > span.start {
                    true => backend.truncate(span.seq, span.start),
                    false => Ok(()),
                };
                let alone = back.and_then(|()| batch(backend, &[span]));
                answers.push(match alone {
                    Ok(mut alone) => alone.pop().unwrap_or_else(|| Answer::Failed(missing())),
                    Err(error) => Answer::Failed(error),
                });
            }
            answers
        }
    }
}

fn missing() -> Error {
    Error::Backend("the backend did not return a result per span".to_string())
}

fn policy(backend: &mut dyn Backend, spans: &[&Span]) -> Result<Vec<Answer>> {
    let asked = spans.iter().map(|span| {
        let tokens = Tokens { seq: span.seq, start: span.start, ids: &span.ids };
        match &span.task.ask {
            Ask::Row { floor, top, .. } if span.last => {
                let top_k = match top {
                    Top::Skip => TopK::Skip,
                    Top::Take(k) => TopK::Take(*k),
                    Top::TakeIf(k, threshold) => TopK::TakeIf(*k, threshold),
                };
                PolicySpan { span: tokens, floor: *floor, top_k }
            }
            _ => PolicySpan { span: tokens, floor: 0.0, top_k: TopK::Skip },
        }
    });
    let rows = backend.policy_step(&asked.collect::<Vec<_>>())?;
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

fn reward(backend: &mut dyn Backend, spans: &[&Span]) -> Result<Vec<Answer>> {
    let mut answers: Vec<Option<Answer>> = spans.iter().map(|_| None).collect();
    let (mut scores, mut slopes) = (Vec::new(), Vec::new());
    for (index, span) in spans.iter().enumerate() {
        let Ask::Score { also_at, gradient } = &span.task.ask else { return Err(missing()) };
        let tokens = Tokens { seq: span.seq, start: span.start, ids: &span.ids };
        let asked = RewardSpan { span: tokens, also_at };
        match gradient {
            None => scores.push((index, asked)),
            Some(slope) => {
                let candidates = &slope.candidates;
                slopes.push((index, GradientSpan { span: asked, slot: slope.slot, candidates, rows: false }));
            }
        }
    }
    if !scores.is_empty() {
        let asked: Vec<RewardSpan<'_>> = scores.iter().map(|&(_, span)| span).collect();
        for ((index, _), score) in scores.iter().zip(backend.reward_score(&asked)?) {
            let scored = Scored { reward: score.reward, also: score.also, gradient: None };
            answers[*index] = Some(Answer::Scored(scored));
        }
    }
    if !slopes.is_empty() {
        let asked: Vec<GradientSpan<'_>> = slopes.iter().map(|&(_, span)| span).collect();
        for ((index, _), found) in slopes.iter().zip(backend.reward_gradient(&asked)?) {
            let gradient = Some((found.dots, found.norm));
            answers[*index] =
                Some(Answer::Scored(Scored { reward: found.score.reward, also: found.score.also, gradient }));
        }
    }
    answers.into_iter().map(|answer| answer.ok_or_else(missing)).collect()
}
