//! The CPU backend: plain Rust, f32 arithmetic straight from the mapped weights.
//!
//! It is the oracle of whole models on a device and the backend of machines without a GPU. Every row is computed in an
//! order of its own (see `product`), so a result has the same bits alone and in a batch, in one piece and in chunks, behind a
//! computed and behind a forked prefix, on one core and on all. The reward gradient runs over the positions from the slot
//! on only.

mod attention;
mod cache;
mod decoder;
mod elementwise;
mod lanes;
mod ops;
mod product;
mod rounding;
mod rows;
mod weights;

use super::paged::{Compute, Paged};
use super::spans::{self, CheckedSpan, Tail, TailGradient};
use super::{Logits, Model, ModelPair, PolicyRow, PolicyRows, PolicySpan, RowStats, TopK, top_k as largest};
use crate::dtype::HalfType;
use crate::files::config::ModelConfig;
use crate::files::pair::{Part, Parts};
use crate::kv::{BlockCopy, BlockId, KvPool};
use crate::{Error, Result};
use decoder::{Decoder, SequenceRows, Tape};
use rayon::ThreadPool;
use rayon::prelude::*;
use rounding::Rounding;
use std::collections::HashMap;
use std::sync::Arc;

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
    /// Of a simulation: norms before a product are rounded before they are multiplied with the inverse norm, as where weights lie in
    /// tiles.
    pub simulate_deferred_norms: bool,
    /// Blocks of keys and values of each model; `None`: as many as memory holds.
    pub kv_blocks: Option<usize>,
}

/// Rows that go through the layers at once: bounds memory on long prompts, does not change a bit.
const CHUNK: usize = 512;

/// What a row more costs where weights come from memory, measured with 1 and 8 rows: 0.09 to 0.16 steps with 135
/// million and with a billion parameters, on one core and on two.
const ROW_COST: f64 = 0.15;

/// The same where they come from a cache: with 4 million parameters 0.35 to 0.65 as rows of sequences of their own.
/// Guesses cost more than they saved at 0.6, so no row is worth a guess.
const CACHED_ROW_COST: f64 = 1.0;

/// Weights of so many bytes may stay in a cache that several cores share.
const CACHED_BYTES: usize = 48 << 20;

/// Looks up all weights of a pair, or of one of its models; nothing is copied.
///
/// # Errors
/// A tensor is missing or has another shape or type, `max_model_len` is zero or beyond a model, no model is given, or the
/// threads cannot be started.
pub fn open(parts: Parts<'_>, options: &LoadOptions) -> Result<ModelPair> {
    let max_len = spans::longest(parts.policy.map(|of| of.0), parts.reward.map(|of| of.0), options.max_model_len)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads.unwrap_or(0))
        .build()
        .map_err(|e| Error::Backend(format!("cannot start threads: {e}")))?;
    let pool = Arc::new(pool);
    let model = |part: Option<Part<'_>>, max_len: usize| -> Result<Option<Box<dyn Model>>> {
        let Some((config, checkpoint)) = part else { return Ok(None) };
        let decoder = Decoder::load(
            config,
            checkpoint,
            Rounding { storage: options.simulate, deferred_norms: options.simulate_deferred_norms },
            options.kv_blocks,
        )?;
        let compute = CpuModel { decoder, pool: pool.clone(), last_hidden: HashMap::new() };
        Ok(Some(Box::new(Paged::new(compute, max_len))))
    };
    let draft_len = spans::longest_draft(parts.draft.map(|of| of.0), max_len);
    Ok(ModelPair {
        policy: model(parts.policy, max_len)?,
        reward: model(parts.reward, max_len)?,
        draft: model(parts.draft, draft_len)?,
    })
}

/// A model on the CPU.
struct CpuModel {
    decoder: Decoder,
    /// Shared by the models of a pair.
    pool: Arc<ThreadPool>,
    /// By index of the sequence: final hidden states of the rows that its last span reported.
    last_hidden: HashMap<u32, Vec<f32>>,
}

/// Appends spans and returns, per span, the final hidden states of its `live` rows (ascending, within the span).
fn run(decoder: &mut Decoder, checked: &[CheckedSpan<'_>], live: &[Vec<usize>]) -> Result<Vec<Vec<f32>>> {
    let d = decoder.config.hidden_size;
    let mut out: Vec<Vec<f32>> = live.iter().map(|rows| Vec::with_capacity(rows.len() * d)).collect();
    for batch in spans::batches(checked, live, CHUNK) {
        for piece in &batch.pieces {
            decoder.append(piece)?;
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

fn blocks_of(decoder: &Decoder, spans: &[CheckedSpan<'_>]) -> Result<Vec<Vec<BlockId>>> {
    spans.iter().map(|span| Ok(decoder.kv.blocks(span.seq)?.to_vec())).collect()
}

fn pieces<'a>(spans: &[CheckedSpan<'a>], blocks: &'a [Vec<BlockId>]) -> Vec<SequenceRows<'a>> {
    spans.iter().zip(blocks).map(|(span, blocks)| SequenceRows { blocks, start: span.start, ids: span.ids }).collect()
}

impl Compute for CpuModel {
    fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    fn kv(&self) -> &KvPool {
        &self.decoder.kv
    }

    fn kv_mut(&mut self) -> &mut KvPool {
        &mut self.decoder.kv
    }

    fn forked(&mut self, copy: Option<BlockCopy>) -> Result<()> {
        self.decoder.took_blocks(copy);
        Ok(())
    }

    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        checked: &[CheckedSpan<'_>],
        ids_below: usize,
        _: &mut dyn FnMut(),
    ) -> Result<Vec<PolicyRow>> {
        let live = spans::last_rows(spans);
        let asked: Vec<(f64, TopK)> =
            spans.iter().flat_map(|span| span.asked().map(move |top_k| (span.floor, top_k))).collect();
        let CpuModel { decoder, pool, last_hidden } = self;
        pool.install(|| {
            let hidden = run(decoder, checked, &live)?;
            let logits = decoder.head(&hidden.concat());
            let rows = logits.par_chunks_exact(decoder.config.vocab_size).zip(&asked).map(|(row, &(floor, top_k))| {
                let stats = RowStats::of(row, floor);
                let k = match top_k {
                    TopK::Take(k) => k,
                    TopK::TakeIf(k, threshold) if threshold.reached(&stats) => k,
                    _ => 0,
                };
                let top = if stats.finite && k > 0 { largest(row, k, ids_below) } else { Vec::new() };
                PolicyRow { stats, top }
            });
            let rows = rows.collect();
            last_hidden.extend(checked.iter().map(|span| span.seq.index).zip(hidden));
            Ok(rows)
        })
    }

    fn logits(&mut self, index: u32, back: usize, asked: Logits<'_>) -> Result<Vec<f32>> {
        let hidden =
            self.last_hidden.get(&index).and_then(|rows| rows.rchunks_exact(self.decoder.config.hidden_size).nth(back));
        let hidden = hidden.ok_or_else(|| Error::Backend(format!("no hidden state was kept of sequence {index}")))?;
        Ok(asked.of_row(self.pool.install(|| self.decoder.head(hidden))))
    }

    fn all_rows(&mut self, checked: CheckedSpan<'_>) -> Result<PolicyRows> {
        let CpuModel { decoder, pool, .. } = self;
        pool.install(|| {
            let hidden = run(decoder, &[checked], &[(0..checked.ids.len()).collect()])?.remove(0);
            let logits = decoder.head(&hidden);
            Ok(PolicyRows { hidden, logits })
        })
    }

    fn rewards(&mut self, checked: &[CheckedSpan<'_>], rows: &[Vec<usize>]) -> Result<Vec<Vec<f32>>> {
        let CpuModel { decoder, pool, .. } = self;
        pool.install(|| Ok(run(decoder, checked, rows)?.iter().map(|hidden| decoder.head(hidden)).collect()))
    }

    fn gradients(&mut self, tails: &[Tail<'_>]) -> Result<Vec<TailGradient>> {
        let CpuModel { decoder, pool, .. } = self;
        pool.install(|| gradients(decoder, tails))
    }

    fn same_embedding(&self, a: u32, b: u32) -> bool {
        let view = self.decoder.weights.embedding.view();
        let known = |id: u32| (id as usize) < view.rows;
        known(a) && known(b) && view.rows_equal(a as usize, b as usize)
    }

    fn positions(&self) -> (u64, u64) {
        (self.decoder.forwarded, self.decoder.differentiated)
    }

    fn span_rows(&self) -> usize {
        usize::MAX
    }

    fn keeps_span_rows(&self) -> bool {
        true
    }

    fn row_cost(&self) -> f64 {
        match self.decoder.weights.bytes() > CACHED_BYTES {
            true => ROW_COST,
            false => CACHED_ROW_COST,
        }
    }
}

fn gradients(decoder: &mut Decoder, tails: &[Tail<'_>]) -> Result<Vec<TailGradient>> {
    let d = decoder.config.hidden_size;
    let checked: Vec<CheckedSpan<'_>> = tails.iter().map(|tail| tail.span).collect();
    for span in &checked {
        decoder.append(span)?;
    }
    let (mut live, mut lasts, mut wanted, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for tail in tails {
        let count = tail.span.ids.len();
        live.extend(tail.scored.iter().map(|row| first + row));
        lasts.push(live.len() - 1);
        wanted.extend(first..first + if tail.rows { count } else { 1 });
        first += count;
    }
    let blocks = blocks_of(decoder, &checked)?;
    let pieces = pieces(&checked, &blocks);
    let mut tape = Tape::default();
    let x = decoder.forward(&pieces, &live, Some(&mut tape));
    let rewards = decoder.head(&decoder.hidden(&x));
    let grads = decoder.backward(&pieces, &live, &tape, &lasts, &wanted);

    let embedding = decoder.weights.embedding.view();
    let mut row = vec![0.0; d];
    let (mut rewards, mut grads) = (&rewards[..], &grads[..]);
    let mut out = Vec::with_capacity(tails.len());
    for tail in tails {
        let count = if tail.rows { tail.span.ids.len() } else { 1 };
        let (own, rows);
        (own, rewards) = rewards.split_at(tail.scored.len());
        (rows, grads) = grads.split_at(count * d);
        let slot = &rows[..d];
        let dots = tail.candidates.iter().map(|&id| {
            embedding.row_to(id as usize, &mut row);
            elementwise::dot(&row, slot)
        });
        out.push(TailGradient {
            rewards: own.to_vec(),
            dots: dots.collect(),
            norm: elementwise::dot(slot, slot).sqrt(),
            rows: if tail.rows { rows.to_vec() } else { Vec::new() },
        });
    }
    Ok(out)
}
