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
mod rounding;
mod weights;

use super::spans::{self, Placed, handle, reward_rows, score};
use super::{
    Backend, Gradient, GradientSpan, PolicyRow, PolicyRows, PolicySpan, RewardSpan, Role, RowStats, Score, SeqId, Span,
    TopK, Work, policy_range, top_k,
};
use crate::dtype::HalfType;
use crate::files::checkpoint::Checkpoint;
use crate::files::config::ModelConfig;
use crate::files::pair::Pair;
use crate::kv::KvHandle;
use crate::profile::{self, Phase};
use crate::{Error, Result};
use decoder::{Decoder, Piece, Tape};
use rayon::prelude::*;
use rounding::Rounding;
use std::collections::HashMap;

/// How a pair is run.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Longest sequence in tokens; `None`: the shorter of what the two models were made for.
    pub max_model_len: Option<usize>,
    /// Cores to use; `None`: all.
    pub threads: Option<usize>,
    /// Round to this type wherever the CUDA path does; `None`: f32 throughout. The error of such a simulation is the measure
    /// of what a device with 16-bit activations may be off.
    pub simulate: Option<HalfType>,
    /// Blocks of keys and values of each model; `None`: as many as memory holds.
    pub kv_blocks: Option<usize>,
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
        let max_len = spans::longest(policy.0, reward.0, options.max_model_len)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .build()
            .map_err(|e| Error::Backend(format!("cannot start threads: {e}")))?;
        let rounding = Rounding(options.simulate);
        Ok(Reference {
            policy: Decoder::load(policy.0, policy.1, rounding, options.kv_blocks)?,
            reward: Decoder::load(reward.0, reward.1, rounding, options.kv_blocks)?,
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
        let result = self.place(Role::Policy, [Span { seq, start: 0, ids }]).and_then(|spans| {
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
    fn place<'a>(&self, role: Role, spans: impl IntoIterator<Item = Span<'a>>) -> Result<Vec<Placed<'a>>> {
        let decoder = self.decoder(role);
        let placed = spans::place(role, &decoder.config, &decoder.kv, self.max_len, spans)?;
        spans::check_room(&decoder.kv, &placed)?;
        Ok(placed)
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
fn run(decoder: &mut Decoder, placed: &[Placed<'_>], live: &[Vec<usize>]) -> Result<Vec<Vec<f32>>> {
    let d = decoder.config.hidden_size;
    let mut out: Vec<Vec<f32>> = live.iter().map(|rows| Vec::with_capacity(rows.len() * d)).collect();
    for batch in spans::batches(placed, live, CHUNK) {
        for piece in &batch.pieces {
            append(decoder, piece)?;
        }
        let blocks = blocks_of(decoder, &batch.pieces)?;
        let rows: Vec<usize> = batch.live.iter().map(|&(row, _)| row).collect();
        let x = decoder.forward(&pieces(&batch.pieces, &blocks), &rows, None);
        for (&(_, owner), row) in batch.live.iter().zip(decoder.hidden(&x).chunks_exact(d)) {
            out[owner].extend_from_slice(row);
        }
    }
    Ok(out)
}

fn blocks_of(decoder: &Decoder, spans: &[Placed<'_>]) -> Result<Vec<Vec<crate::kv::BlockId>>> {
    spans.iter().map(|span| Ok(decoder.kv.blocks(span.seq)?.to_vec())).collect()
}

fn pieces<'a>(spans: &[Placed<'a>], blocks: &'a [Vec<crate::kv::BlockId>]) -> Vec<Piece<'a>> {
    spans.iter().zip(blocks).map(|(span, blocks)| Piece { blocks, start: span.start, ids: span.ids }).collect()
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
        let _range = policy_range(spans);
        let placed = self.place(Role::Policy, spans.iter().map(|s| s.span))?;
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
                    TopK::TakeIf(k, threshold) if threshold.reached(&stats) => k,
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
        let _range = profile::range(Phase::RewardForward, spans.iter().map(|span| span.span.ids.len()).sum());
        let placed = self.place(Role::Reward, spans.iter().map(|s| s.span))?;
        let (live, places): (Vec<_>, Vec<_>) =
            spans.iter().map(reward_rows).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let Reference { reward, pool, .. } = self;
        pool.install(|| {
            let hidden = run(reward, &placed, &live)?;
            Ok(hidden.iter().zip(&places).map(|(hidden, places)| score(&reward.head(hidden), places)).collect())
        })
    }

    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        let _range = profile::range(Phase::RewardBackward, spans.iter().map(|span| span.span.span.ids.len()).sum());
        let placed = self.place(Role::Reward, spans.iter().map(|s| s.span.span))?;
        let asked = spans.iter().map(|s| reward_rows(&s.span)).collect::<Result<Vec<_>>>()?;
        spans::check_gradient(spans, self.reward.config.vocab_size)?;
        let Reference { reward, pool, .. } = self;
        pool.install(|| gradients(reward, spans, &placed, &asked))
    }

    fn blocks_free(&self, role: Role) -> usize {
        self.decoder(role).kv.blocks_free()
    }

    fn blocks_in_use(&self, role: Role) -> usize {
        self.decoder(role).kv.blocks_in_use()
    }

    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        self.decoder(seq.role).kv.blocks_needed(handle(seq), count).unwrap_or(usize::MAX)
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
