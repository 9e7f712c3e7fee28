//! Prefill, decode, reward and gradient over batch sizes.

use super::cost::{self, Roofline};
use super::report::{Row, hash_of};
use super::{Before, Stopwatch, timed};
use crate::model::{GradientSpan, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};
use crate::{Error, Result};

/// How large what is run is.
#[derive(Clone, Debug)]
pub struct Depths {
    /// Rows of decode steps.
    pub rows: Vec<usize>,
    /// Positions that each row's sequence has.
    pub context: Vec<usize>,
    /// Tokens of prompts.
    pub prefill: Vec<usize>,
    /// Prompts that are run together.
    pub prompts: Vec<usize>,
    /// Segments that are scored and differentiated together.
    pub candidates: Vec<usize>,
    /// Their tokens.
    pub segment: usize,
    /// Positions before them, which they share.
    pub prefix: usize,
    /// Runs of each case that are timed.
    pub runs: usize,
    /// Runs before them.
    pub warmup: usize,
}

/// What so many prompts of so many tokens are called.
pub(super) fn prefill_case(prompts: usize, tokens: usize) -> String {
    if prompts == 1 { format!("{tokens} tokens") } else { format!("{prompts} x {tokens} tokens") }
}

/// What a decode step is called.
pub(super) fn decode_case(rows: usize, context: usize) -> String {
    format!("{rows} rows behind {context}")
}

/// What a pass of the reward model is called.
pub(super) fn reward_case(candidates: usize, segment: usize, prefix: usize) -> String {
    format!("{candidates} x {segment} tokens behind {prefix}")
}

/// A kind of pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Prompts through the policy.
    Prefill,
    /// Steps of the policy.
    Decode,
    /// Segments through the reward model.
    Reward,
    /// Segments through the reward model and back.
    Gradient,
}

impl Pass {
    /// All of them.
    pub const ALL: [Pass; 4] = [Pass::Prefill, Pass::Decode, Pass::Reward, Pass::Gradient];

    /// A device launches it as a graph where it may.
    pub fn is_graph(self) -> bool {
        matches!(self, Pass::Decode | Pass::Gradient)
    }

    /// Whose pass it is.
    pub fn role(self) -> Role {
        match self {
            Pass::Prefill | Pass::Decode => Role::Policy,
            Pass::Reward | Pass::Gradient => Role::Reward,
        }
    }
}

/// Times those of the passes whose model a backend has; `done` is told of each case as it comes.
///
/// # Errors
/// The backend fails, or has no room for a case.
pub fn latency(
    backend: &mut ModelPair,
    depths: &Depths,
    passes: &[Pass],
    limits: Option<Roofline>,
    before: Before<'_>,
    done: &mut dyn FnMut(Row),
) -> Result<()> {
    let mut done = |row: Row| done(row.against(limits));
    let [prefills, decodes, rewards, gradients] =
        Pass::ALL.map(|pass| passes.contains(&pass) && backend.has(pass.role()));
    if prefills {
        for &tokens in &depths.prefill {
            for &prompts in &depths.prompts {
                done(prefill(backend, prompts, tokens, depths, before)?);
            }
        }
    }
    if decodes {
        for &context in &depths.context {
            for &rows in &depths.rows {
                done(decode(backend, rows, context, depths, before)?);
            }
        }
    }
    for &candidates in &depths.candidates {
        for (gradient, wanted) in [(false, rewards), (true, gradients)] {
            if wanted {
                done(reward(backend, candidates, gradient, depths, before)?);
            }
        }
    }
    Ok(())
}

/// Ids all over the vocabulary.
fn ids(backend: &ModelPair, role: Role, count: usize, from: usize) -> Result<Vec<u32>> {
    let vocab = backend.config(role)?.vocab_size;
    Ok((0..count).map(|i| ((from + i) * 7919 % vocab) as u32).collect())
}

/// Sequences that are given back whatever happens.
fn with<T>(backend: &mut ModelPair, work: impl FnOnce(&mut ModelPair, &mut Vec<SeqId>) -> Result<T>) -> Result<T> {
    let mut held = Vec::new();
    let result = work(backend, &mut held);
    held.into_iter().for_each(|seq| backend.release(seq));
    result
}

fn plain(seq: SeqId, start: usize, ids: &[u32]) -> PolicySpan<'_> {
    PolicySpan { span: Span { seq, start, ids }, floor: 1e-9, top_k: TopK::Skip, before: &[] }
}

/// The likeliest ids of rows, which must be distributions: what is not is not worth its time.
fn sound(rows: &[PolicyRow]) -> Result<Vec<u32>> {
    match rows.iter().all(|row| row.stats.finite) {
        true => Ok(rows.iter().map(|row| row.stats.argmax).collect()),
        false => Err(Error::NonFinite { what: "logit", model: "policy", position: 0 }),
    }
}

fn prefill(backend: &mut ModelPair, prompts: usize, tokens: usize, depths: &Depths, before: Before<'_>) -> Result<Row> {
    let mut chosen = Vec::new();
    let texts: Vec<Vec<u32>> =
        (0..prompts).map(|number| ids(backend, Role::Policy, tokens, 101 * number)).collect::<Result<_>>()?;
    let taken = timed([depths.warmup, depths.runs], before, || {
        with(backend, |backend, held| {
            for _ in 0..prompts {
                held.push(backend.create(Role::Policy)?);
            }
            let spans: Vec<PolicySpan<'_>> = held.iter().zip(&texts).map(|(&seq, ids)| plain(seq, 0, ids)).collect();
            let watch = Stopwatch::start();
            let rows = backend.policy_step(&spans)?;
            let taken = watch.stop();
            chosen = sound(&rows)?;
            Ok(taken)
        })
    })?;
    let cost = cost::prefills(backend.config(Role::Policy)?, prompts, tokens);
    let row = Row::timed("prefill", prefill_case(prompts, tokens), &taken).costing(cost, prompts * tokens);
    Ok(Row { ids: Some(hash_of(&chosen)), ..row })
}

fn decode(backend: &mut ModelPair, rows: usize, context: usize, depths: &Depths, before: Before<'_>) -> Result<Row> {
    // The steps that are not timed, and those that are, behind the context.
    let steps = depths.warmup + depths.runs;
    let longest = context + steps;
    if longest > backend.max_len() {
        return Err(Error::invalid(format!(
            "a context of {context} and {steps} steps exceed the longest sequence of {}",
            backend.max_len()
        )));
    }
    with(backend, |backend, held| {
        for row in 0..rows {
            let seq = backend.create(Role::Policy)?;
            held.push(seq);
            if context > 0 {
                let ids = ids(backend, Role::Policy, context, row)?;
                backend.policy_step(&[plain(seq, 0, &ids)])?;
            }
        }
        let ids = ids(backend, Role::Policy, rows, 1)?;
        let (mut at, mut chosen) = (context, Vec::new());
        let taken = timed([depths.warmup, depths.runs], before, || {
            let spans: Vec<PolicySpan<'_>> =
                held.iter().zip(ids.chunks_exact(1)).map(|(&seq, id)| plain(seq, at, id)).collect();
            let watch = Stopwatch::start();
            let rows = backend.policy_step(&spans)?;
            let taken = watch.stop();
            at += 1;
            chosen.extend(sound(&rows)?);
            Ok(taken)
        })?;
        let cost = cost::decode(backend.config(Role::Policy)?, rows, context + depths.warmup + depths.runs / 2, 0);
        let row = Row::timed("decode", decode_case(rows, context), &taken).costing(cost, rows);
        let (committed, ids) = (row.work_tokens_per_second, Some(hash_of(&chosen)));
        Ok(Row { rows: Some(rows), committed_tokens_per_second: committed, ids, ..row })
    })
}

fn reward(
    backend: &mut ModelPair,
    candidates: usize,
    gradient: bool,
    depths: &Depths,
    before: Before<'_>,
) -> Result<Row> {
    let &Depths { segment, prefix, .. } = depths;
    let text = ids(backend, Role::Reward, prefix, 5)?;
    let segments = ids(backend, Role::Reward, candidates * segment, 11)?;
    let listed: Vec<u32> = ids(backend, Role::Reward, 25, 3)?;
    with(backend, |backend, held| {
        let trunk = backend.create(Role::Reward)?;
        held.push(trunk);
        if prefix > 0 {
            let span = Span { seq: trunk, start: 0, ids: &text };
            backend.reward_score(&[RewardSpan { span, also_at: &[] }])?;
        }
        // A device records a gradient's shape when it is there the second time: that is not timed.
        let warmup = if gradient { depths.warmup.max(2) } else { depths.warmup };
        let taken = timed([warmup, depths.runs], before, || {
            with(backend, |backend, branches| {
                for _ in 0..candidates {
                    branches.push(backend.fork(trunk, prefix)?);
                }
                let spans = branches.iter().zip(segments.chunks_exact(segment)).map(|(&seq, ids)| {
                    let span = RewardSpan { span: Span { seq, start: prefix, ids }, also_at: &[] };
                    GradientSpan { span, slot: prefix, candidates: &listed, rows: false }
                });
                let spans: Vec<GradientSpan<'_>> = spans.collect();
                let scores: Vec<RewardSpan<'_>> = spans.iter().map(|span| span.span).collect();
                let watch = Stopwatch::start();
                let rewards: Vec<f32> = match gradient {
                    true => {
                        backend.reward_gradient(&spans)?.iter().map(|found| found.score.reward + found.norm).collect()
                    }
                    false => backend.reward_score(&scores)?.iter().map(|score| score.reward).collect(),
                };
                let taken = watch.stop();
                match rewards.iter().all(|reward| reward.is_finite()) {
                    true => Ok(taken),
                    false => Err(Error::NonFinite { what: "reward", model: "reward", position: prefix + segment - 1 }),
                }
            })
        })?;
        let config = backend.config(Role::Reward)?;
        let (phase, cost) = match gradient {
            true => ("gradient", cost::gradient(config, candidates, segment, prefix)),
            false => ("reward", cost::score(config, candidates, segment, prefix)),
        };
        let case = reward_case(candidates, segment, prefix);
        Ok(Row::timed(phase, case, &taken).costing(cost, candidates * segment))
    })
}
