//! The reference backend: both models in plain Rust, f32 arithmetic straight from the mapped weights.
//!
//! It is the oracle of every kernel test and the backend of machines without a GPU. Keys and values of both models are
//! kept, forked and rolled back; the reward gradient runs over the positions from the slot on only. Every row is computed
//! in an order of its own (see `lanes`), so a result has the same bits alone and in a batch, in one piece and in chunks,
//! behind a computed and behind a forked prefix, on one core and on all.

mod attention;
mod decoder;
mod elementwise;
mod lanes;
mod ops;
mod weights;

use super::{
    Backend, Gradient, GradientSpan, PolicyRow, PolicySpan, RewardSpan, Role, RowStats, Score, SeqId, Span, TopK, Work,
    top_k,
};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::kv::KvHandle;
use crate::pair::Pair;
use crate::{Error, Result};
use decoder::{Decoder, Piece, Tape};
use rayon::prelude::*;
use std::collections::HashMap;

/// How a pair is run.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Longest sequence in tokens; `None`: the shorter of what the two models were made for.
    pub max_model_len: Option<usize>,
    /// Cores to use; `None`: all.
    pub threads: Option<usize>,
}

/// Hidden states and logits of every position of a text.
#[derive(Clone, Debug)]
pub struct PolicyRows {
    /// `[positions, hidden]`, after the final norm.
    pub hidden: Vec<f32>,
    /// `[positions, vocabulary]`.
    pub logits: Vec<f32>,
}

/// A policy and a reward model on the CPU.
pub struct Reference {
    policy: Decoder,
    reward: Decoder,
    max_len: usize,
    pool: rayon::ThreadPool,
    /// Final hidden state of the last row of each policy sequence, for [`Backend::logits_row`].
    last_hidden: HashMap<SeqId, Vec<f32>>,
}

/// Rows that go through the layers at once: bounds memory on long prompts, does not change a bit.
const CHUNK: usize = 512;

impl Reference {
    /// Looks up all weights of a pair; nothing is copied.
    ///
    /// # Errors
    /// A tensor is missing or has another shape or type, `max_model_len` is zero or beyond either model, or the threads
    /// cannot be started.
    pub fn load(pair: &Pair, options: &LoadOptions) -> Result<Self> {
        Self::assemble((&pair.policy, &pair.policy_weights), (&pair.reward, &pair.reward_weights), options)
    }

    /// As [`load`](Self::load), from shapes and weights alone.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn assemble(
        policy: (&ModelConfig, &Checkpoint),
        reward: (&ModelConfig, &Checkpoint),
        options: &LoadOptions,
    ) -> Result<Self> {
        let (policy_len, reward_len) = (policy.0.max_position_embeddings, reward.0.max_position_embeddings);
        let limit = policy_len.min(reward_len);
        let max_len = options.max_model_len.unwrap_or(limit);
        if max_len == 0 || max_len > limit {
            return Err(Error::invalid(format!(
                "max-model-len is {max_len}; expected 1 to {limit} (policy {policy_len}, reward model {reward_len} positions)"
            )));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .build()
            .map_err(|e| Error::Backend(format!("cannot start threads: {e}")))?;
        Ok(Reference {
            policy: Decoder::load(policy.0, policy.1)?,
            reward: Decoder::load(reward.0, reward.1)?,
            max_len,
            pool,
            last_hidden: HashMap::new(),
        })
    }

    /// Hidden states and logits of every position of `ids`, computed as one sequence.
    ///
    /// # Errors
    /// As [`Backend::policy_step`].
    pub fn policy_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        let seq = self.create(Role::Policy)?;
        let result = self.spans(Role::Policy, &[Span { seq, start: 0, ids }]).and_then(|spans| {
            let live: Vec<usize> = (0..ids.len()).collect();
            let Reference { policy, pool, .. } = self;
            pool.install(|| {
                let hidden = run(policy, &spans, &[live])?.remove(0);
                let logits = policy.head(&hidden);
                Ok(PolicyRows { hidden, logits })
            })
        });
        self.release(seq);
        result
    }

    fn decoder(&self, role: Role) -> &Decoder {
        match role {
            Role::Policy => &self.policy,
            Role::Reward => &self.reward,
        }
    }

    fn decoder_mut(&mut self, role: Role) -> &mut Decoder {
        match role {
            Role::Policy => &mut self.policy,
            Role::Reward => &mut self.reward,
        }
    }

    /// Checks the spans of a batch; nothing is appended yet.
    fn spans<'a>(&self, role: Role, spans: &[Span<'a>]) -> Result<Vec<Placed<'a>>> {
        let decoder = self.decoder(role);
        let mut seen = std::collections::HashSet::new();
        spans
            .iter()
            .map(|span| {
                let name = role.name();
                if span.seq.role != role {
                    return Err(Error::Backend(format!("a {} sequence was given to the {name}", span.seq.role.name())));
                }
                let seq = handle(span.seq);
                let len = decoder.kv.len(seq)?;
                if len != span.start || span.ids.is_empty() || !seen.insert(seq) {
                    return Err(Error::Backend(format!(
                        "malformed {name} span: {} tokens at {} of a sequence of {len}",
                        span.ids.len(),
                        span.start
                    )));
                }
                if len + span.ids.len() > self.max_len {
                    return Err(Error::invalid(format!(
                        "a sequence of {} tokens does not fit the context of {}",
                        len + span.ids.len(),
                        self.max_len
                    )));
                }
                let vocab = decoder.config.vocab_size;
                if let Some(id) = span.ids.iter().find(|&&id| id as usize >= vocab) {
                    return Err(Error::invalid(format!(
                        "token id {id} is beyond the {name} model's vocabulary of {vocab}"
                    )));
                }
                Ok(Placed { seq, start: span.start, ids: span.ids })
            })
            .collect()
    }
}

fn handle(seq: SeqId) -> KvHandle {
    KvHandle { index: seq.index, generation: seq.generation }
}

/// A checked span.
#[derive(Clone, Copy)]
struct Placed<'a> {
    seq: KvHandle,
    start: usize,
    ids: &'a [u32],
}

impl<'a> Placed<'a> {
    fn slice(&self, from: usize, to: usize) -> Self {
        Placed { seq: self.seq, start: self.start + from, ids: &self.ids[from..to] }
    }
}

/// Makes room for a span and moves the block it may not write to.
fn append(decoder: &mut Decoder, span: &Placed<'_>) -> Result<()> {
    let copy = decoder.kv.append(span.seq, span.ids.len())?;
    decoder.store.grow(decoder.kv.high_water());
    if let Some(copy) = copy {
        decoder.store.copy(copy);
    }
    Ok(())
}

/// Appends spans and returns, per span, the final hidden states of its `live` rows (ascending, within the span).
fn run(decoder: &mut Decoder, spans: &[Placed<'_>], live: &[Vec<usize>]) -> Result<Vec<Vec<f32>>> {
    let d = decoder.config.hidden_size;
    let mut out: Vec<Vec<f32>> = live.iter().map(|rows| Vec::with_capacity(rows.len() * d)).collect();
    let mut batch: Vec<(usize, Placed<'_>, Vec<usize>)> = Vec::new();
    let mut rows = 0;
    for (index, span) in spans.iter().enumerate() {
        let mut from = 0;
        while from < span.ids.len() {
            let to = span.ids.len().min(from + CHUNK - rows);
            let wanted = live[index].iter().filter(|&&r| r >= from && r < to).map(|r| r - from).collect();
            batch.push((index, span.slice(from, to), wanted));
            rows += to - from;
            from = to;
            if rows == CHUNK {
                flush(decoder, &mut batch, &mut out)?;
                rows = 0;
            }
        }
    }
    flush(decoder, &mut batch, &mut out)?;
    Ok(out)
}

/// Runs the collected pieces through the layers.
fn flush(decoder: &mut Decoder, batch: &mut Vec<(usize, Placed<'_>, Vec<usize>)>, out: &mut [Vec<f32>]) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    for (_, span, _) in batch.iter() {
        append(decoder, span)?;
    }
    let d = decoder.config.hidden_size;
    let (mut live, mut owners, mut first) = (Vec::new(), Vec::new(), 0);
    for (index, span, wanted) in batch.iter() {
        live.extend(wanted.iter().map(|r| first + r));
        owners.extend(wanted.iter().map(|_| *index));
        first += span.ids.len();
    }
    let spans: Vec<Placed<'_>> = batch.drain(..).map(|(_, span, _)| span).collect();
    let blocks = blocks_of(decoder, &spans)?;
    let x = decoder.forward(&pieces(&spans, &blocks), &live, None);
    let hidden = decoder.hidden(&x);
    for (owner, row) in owners.into_iter().zip(hidden.chunks_exact(d)) {
        out[owner].extend_from_slice(row);
    }
    Ok(())
}

fn blocks_of(decoder: &Decoder, spans: &[Placed<'_>]) -> Result<Vec<Vec<crate::kv::BlockId>>> {
    spans.iter().map(|span| Ok(decoder.kv.blocks(span.seq)?.to_vec())).collect()
}

fn pieces<'a>(spans: &[Placed<'a>], blocks: &'a [Vec<crate::kv::BlockId>]) -> Vec<Piece<'a>> {
    spans.iter().zip(blocks).map(|(span, blocks)| Piece { blocks, start: span.start, ids: span.ids }).collect()
}

/// Positions of a span whose reward is asked for, as ascending rows with the last one included, and for every entry of
/// `also_at` its place among them.
fn reward_rows(span: &RewardSpan<'_>) -> Result<(Vec<usize>, Vec<usize>)> {
    let count = span.span.ids.len();
    let mut rows = vec![count.saturating_sub(1)];
    for &position in span.also_at {
        if position < span.span.start || position >= span.span.start + count {
            return Err(Error::Backend(format!(
                "reward asked for at position {position} outside of a span of {count} tokens at {}",
                span.span.start
            )));
        }
        rows.push(position - span.span.start);
    }
    rows.sort_unstable();
    rows.dedup();
    let places = span.also_at.iter().filter_map(|p| rows.binary_search(&(p - span.span.start)).ok()).collect();
    Ok((rows, places))
}

fn score(rewards: &[f32], places: &[usize]) -> Score {
    let reward = rewards.last().copied().unwrap_or(f32::NAN);
    Score { reward, also: places.iter().map(|&p| rewards[p]).collect() }
}

impl Backend for Reference {
    fn config(&self, role: Role) -> &ModelConfig {
        &self.decoder(role).config
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn create(&mut self, role: Role) -> Result<SeqId> {
        let KvHandle { index, generation } = self.decoder_mut(role).kv.create();
        Ok(SeqId { role, index, generation })
    }

    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        let decoder = self.decoder_mut(seq.role);
        let (child, copy) = decoder.kv.fork(handle(seq), len)?;
        decoder.store.grow(decoder.kv.high_water());
        if let Some(copy) = copy {
            decoder.store.copy(copy);
        }
        Ok(SeqId { role: seq.role, index: child.index, generation: child.generation })
    }

    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        self.last_hidden.remove(&seq);
        self.decoder_mut(seq.role).kv.truncate(handle(seq), len)
    }

    fn release(&mut self, seq: SeqId) {
        self.last_hidden.remove(&seq);
        self.decoder_mut(seq.role).kv.release(handle(seq));
    }

    fn len(&self, seq: SeqId) -> usize {
        self.decoder(seq.role).kv.len(handle(seq)).unwrap_or(0)
    }

    fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> Result<Vec<PolicyRow>> {
        let plain: Vec<Span<'_>> = spans.iter().map(|s| s.span).collect();
        let placed = self.spans(Role::Policy, &plain)?;
        let live: Vec<Vec<usize>> = placed.iter().map(|s| vec![s.ids.len() - 1]).collect();
        let known = self.policy.config.vocab_size.min(self.reward.config.vocab_size);
        let Reference { policy, pool, last_hidden, .. } = self;
        pool.install(|| {
            let hidden = run(policy, &placed, &live)?;
            let logits = policy.head(&hidden.concat());
            let vocab = policy.config.vocab_size;
            let rows = logits.par_chunks_exact(vocab).zip(spans).map(|(row, span)| {
                let stats = RowStats::of(row, span.floor);
                let k = match span.top_k {
                    TopK::Take(k) => k,
                    TopK::TakeIf(k, condition) if stats.finite && condition.reached(&stats) => k,
                    _ => 0,
                };
                let top = if stats.finite && k > 0 { top_k(row, k, known) } else { Vec::new() };
                PolicyRow { stats, top }
            });
            let rows = rows.collect();
            last_hidden.extend(spans.iter().map(|s| s.span.seq).zip(hidden));
            Ok(rows)
        })
    }

    fn logits_row(&mut self, seq: SeqId) -> Result<Vec<f32>> {
        let hidden = self.last_hidden.get(&seq).ok_or_else(|| {
            Error::Backend("logits asked for of a sequence that was not run since it was made or cut back".into())
        })?;
        Ok(self.pool.install(|| self.policy.head(hidden)))
    }

    fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        let plain: Vec<Span<'_>> = spans.iter().map(|s| s.span).collect();
        let placed = self.spans(Role::Reward, &plain)?;
        let (live, places): (Vec<_>, Vec<_>) =
            spans.iter().map(reward_rows).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let Reference { reward, pool, .. } = self;
        pool.install(|| {
            let hidden = run(reward, &placed, &live)?;
            Ok(hidden.iter().zip(&places).map(|(hidden, places)| score(&reward.head(hidden), places)).collect())
        })
    }

    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        let plain: Vec<Span<'_>> = spans.iter().map(|s| s.span.span).collect();
        let placed = self.spans(Role::Reward, &plain)?;
        let asked = spans.iter().map(|s| reward_rows(&s.span)).collect::<Result<Vec<_>>>()?;
        let vocab = self.reward.config.vocab_size;
        for span in spans {
            let (start, end) = (span.span.span.start, span.span.span.start + span.span.span.ids.len());
            if span.slot < start || span.slot >= end {
                return Err(Error::Backend(format!("slot {} outside of its span {start}..{end}", span.slot)));
            }
            if let Some(id) = span.candidates.iter().find(|&&id| id as usize >= vocab) {
                return Err(Error::Backend(format!(
                    "candidate {id} is beyond the reward model's vocabulary of {vocab}"
                )));
            }
        }
        let Reference { reward, pool, .. } = self;
        pool.install(|| gradients(reward, spans, &placed, &asked))
    }

    fn same_embedding(&self, a: u32, b: u32) -> bool {
        let view = self.policy.weights.embedding.view();
        let known = |id: u32| (id as usize) < view.rows;
        a == b || (known(a) && known(b) && view.rows_equal(a as usize, b as usize))
    }

    fn work(&self) -> Work {
        Work {
            policy_forward: self.policy.forwarded,
            reward_forward: self.reward.forwarded,
            reward_backward: self.reward.differentiated,
        }
    }
}

/// What stands before the slots runs like any prefix; what stands behind is recorded and differentiated.
fn gradients(
    reward: &mut Decoder,
    spans: &[GradientSpan<'_>],
    placed: &[Placed<'_>],
    asked: &[(Vec<usize>, Vec<usize>)],
) -> Result<Vec<Gradient>> {
    let d = reward.config.hidden_size;
    let cuts: Vec<usize> = spans.iter().map(|s| s.slot - s.span.span.start).collect();
    let heads: Vec<Placed<'_>> = placed.iter().zip(&cuts).map(|(p, &cut)| p.slice(0, cut)).collect();
    let before: Vec<Vec<usize>> =
        asked.iter().zip(&cuts).map(|((rows, _), &cut)| rows.iter().copied().filter(|&r| r < cut).collect()).collect();
    let mut hidden = run(reward, &heads, &before)?;

    let tails: Vec<Placed<'_>> = placed.iter().zip(&cuts).map(|(p, &cut)| p.slice(cut, p.ids.len())).collect();
    for tail in &tails {
        append(reward, tail)?;
    }
    let (mut live, mut lasts, mut wanted, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (((rows, _), &cut), (tail, span)) in asked.iter().zip(&cuts).zip(tails.iter().zip(spans)) {
        live.extend(rows.iter().filter(|&&r| r >= cut).map(|r| first + r - cut));
        lasts.push(live.len() - 1);
        wanted.extend(first..first + if span.rows { tail.ids.len() } else { 1 });
        first += tail.ids.len();
    }
    let blocks = blocks_of(reward, &tails)?;
    let pieces = pieces(&tails, &blocks);
    let mut tape = Tape::default();
    let x = reward.forward(&pieces, &live, Some(&mut tape));
    let mut rest = reward.hidden(&x);
    let grads = reward.backward(&pieces, &live, &tape, &lasts, &wanted);

    let embedding = reward.weights.embedding.view();
    let mut row = vec![0.0; d];
    let mut offset = 0;
    let mut out = Vec::with_capacity(spans.len());
    for (i, span) in spans.iter().enumerate() {
        let behind = asked[i].0.len() - before[i].len();
        hidden[i].extend(rest.drain(..behind * d));
        let count = if span.rows { tails[i].ids.len() } else { 1 };
        let rows = &grads[offset * d..(offset + count) * d];
        offset += count;
        let slot = &rows[..d];
        let dots = span.candidates.iter().map(|&id| {
            embedding.row_to(id as usize, &mut row);
            elementwise::dot(&row, slot)
        });
        out.push(Gradient {
            score: score(&reward.head(&hidden[i]), &asked[i].1),
            dots: dots.collect(),
            norm: elementwise::dot(slot, slot).sqrt(),
            rows: if span.rows { rows.to_vec() } else { Vec::new() },
        });
    }
    Ok(out)
}
