//! One pass of rewards and their gradients: forward with a tape, backward, first-order scores of candidates.

use super::backward::{Backward, BackwardAsk};
use super::decoder::{Decoder, Linear};
use super::inputs::{Slice, StepInputs};
use super::sizes::Sizes;
use super::state::Tape;
use crate::cuda::ops::candidate_scores::{self, MAX_CANDIDATES, ScoreQuery, candidate_scores};
use crate::cuda::{Buffer, Device};
use crate::model::spans::{Batch, Tail, TailGradient};
use crate::{Error, Result};

/// The reward model's backward side, sized once.
pub(super) struct GradientPass {
    tape: Tape,
    backward: Backward,
    products: Buffer<f32>,
    norms: Buffer<f32>,
}

/// Candidates of all tails of a pass, as the device reads them.
struct ScoreQueries {
    ids: Slice<u32>,
    queries: Slice<ScoreQuery>,
    /// Per tail: its first query, and where its products are.
    places: Vec<(usize, std::ops::Range<usize>)>,
    listed: usize,
    count: usize,
}

impl ScoreQueries {
    /// `slots` are the rows of the wanted gradients that belong to the tails' first rows.
    fn push(inputs: &mut StepInputs, tails: &[Tail<'_>], slots: &[usize]) -> Self {
        let (mut ids, mut queries, mut places) = (Vec::<u32>::new(), Vec::new(), Vec::new());
        for (tail, &slot) in tails.iter().zip(slots) {
            let first = ids.len();
            places.push((queries.len(), first..first + tail.candidates.len()));
            // The norm comes with a query, and a query has at least one candidate.
            let candidates = if tail.candidates.is_empty() { &[0] } else { tail.candidates };
            for group in candidates.chunks(MAX_CANDIDATES) {
                let (row, first, count) = (slot as u32, ids.len() as u32, group.len() as u32);
                queries.push(ScoreQuery { row, first, count });
                ids.extend_from_slice(group);
            }
        }
        let (listed, count) = (ids.len(), queries.len());
        ScoreQueries { ids: inputs.push(&ids), queries: inputs.push(&queries), places, listed, count }
    }
}

impl GradientPass {
    pub fn new(device: &Device, decoder: &Decoder, rows: usize) -> Result<Self> {
        Ok(GradientPass {
            tape: Tape::new(device, &decoder.sizes, rows)?,
            backward: Backward::new(device, decoder, rows)?,
            products: Buffer::uninitialised(device, 64 * MAX_CANDIDATES)?,
            norms: Buffer::uninitialised(device, 64)?,
        })
    }

    /// Bytes for `rows` rows.
    pub fn bytes(sizes: &Sizes, rows: usize) -> u64 {
        Tape::bytes(sizes, rows) + Backward::bytes(sizes, rows)
    }

    /// Rows that are differentiated together, at most.
    pub fn rows(&self) -> usize {
        self.tape.rows
    }

    /// How many of `tails` go together, from the first on.
    pub fn together(&self, tails: &[Tail<'_>]) -> Result<usize> {
        let (mut count, mut rows) = (0, 0);
        for tail in tails {
            rows += tail.span.ids.len();
            if rows > self.tape.rows {
                break;
            }
            count += 1;
        }
        match tails.first() {
            Some(tail) if count == 0 => Err(Error::gradient_too_long(tail.span.ids.len(), self.tape.rows)),
            _ => Ok(count),
        }
    }

    /// Appends the tails to their sequences, scores and differentiates them.
    pub fn run(&mut self, device: &Device, reward: &mut Decoder, tails: &[Tail<'_>]) -> Result<Vec<TailGradient>> {
        let d = reward.sizes.hidden_padded;
        let mut batch = Batch::default();
        let (mut lasts, mut wanted, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, tail) in tails.iter().enumerate() {
            let count = tail.span.ids.len();
            batch.pieces.push(tail.span);
            batch.live.extend(tail.scored.iter().map(|row| (batch.rows + row, owner)));
            lasts.push(batch.live.len() - 1);
            slots.push(wanted.len());
            wanted.extend(batch.rows..batch.rows + if tail.rows { count } else { 1 });
            batch.rows += count;
        }
        let live: Vec<usize> = batch.live.iter().map(|&(row, _)| row).collect();
        let extra = |inputs: &mut StepInputs| {
            (BackwardAsk::push(inputs, &live, &lasts, &wanted), ScoreQueries::push(inputs, tails, &slots))
        };
        let ((asked, queries), step) = reward.record(device, &batch, extra, Some(&mut self.tape))?;

        reward.norm(device, live.len())?;
        let rewards = &mut self.products;
        grow(device, rewards, live.len() + queries.listed)?;
        grow(device, &mut self.norms, queries.count)?;
        let layout = reward.weights.head_layout();
        let mut linear = Linear { device, storage: reward.storage, layout, scratch: &mut reward.state.scratch };
        let hidden = reward.state.normed.first(live.len() * d);
        linear.run_f32(rewards.first_mut(live.len()), hidden, live.len(), reward.weights.head())?;
        self.backward.run(device, reward, &self.tape, &step, &asked)?;

        let inputs = candidate_scores::Inputs {
            grads: self.backward.grad.first(wanted.len() * d),
            // In rows: a reward model's embedding is no product's matrix.
            table: reward.weights.embedding.view(),
            ids: reward.device_inputs.view(queries.ids),
            queries: reward.device_inputs.view(queries.queries),
            d,
            scale: 1.0 / self.backward.factor,
        };
        let mut results = self.products.first_mut(live.len() + queries.listed);
        let products = &mut results.slice(live.len()..live.len() + queries.listed);
        candidate_scores(device, reward.storage, &mut self.norms.first_mut(queries.count), products, &inputs)?;
        reward.differentiated += batch.rows as u64;

        let results = self.products.download_first(device, live.len() + queries.listed)?;
        let norms = self.norms.download_first(device, queries.count)?;
        let grads = match tails.iter().any(|tail| tail.rows) {
            true => self.backward.grad.download_first(device, wanted.len() * d)?,
            false => Vec::new(),
        };
        let (rewards, dots) = results.split_at(live.len());
        let mut out = Vec::with_capacity(tails.len());
        for (owner, tail) in tails.iter().enumerate() {
            let (query, range) = queries.places[owner].clone();
            let mine = batch.live.iter().zip(rewards).filter(|((_, of), _)| *of == owner);
            let mut rows = Vec::new();
            if tail.rows {
                let scale = 1.0 / self.backward.factor;
                for row in grads[slots[owner] * d..].chunks_exact(d).take(tail.span.ids.len()) {
                    rows.extend(row[..reward.sizes.hidden].iter().map(|&x| x * scale));
                }
            }
            out.push(TailGradient {
                rewards: mine.map(|(_, &reward)| reward).collect(),
                dots: dots[range].to_vec(),
                norm: norms[query],
                rows,
            });
        }
        Ok(out)
    }
}

/// Makes room for `len` elements. Lists of candidates have no small bound.
fn grow<T: crate::cuda::Element>(device: &Device, buffer: &mut Buffer<T>, len: usize) -> Result<()> {
    if len > buffer.len() {
        *buffer = Buffer::uninitialised(device, len.next_power_of_two())?;
    }
    Ok(())
}
