//! Rewards and their gradients: forward with a tape, backward, first-order scores of candidates.

use super::backward::{Asked, Backward};
use super::decoder::{Decoder, Linear};
use super::packet::{Packet, Section};
use super::sizes::Sizes;
use super::state::Tape;
use crate::cuda::ops::candidate_scores::{self, MAX_CANDIDATES, ScoreQuery, candidate_scores};
use crate::cuda::{Buffer, Device};
use crate::model::spans::{Batch, Placed};
use crate::{Error, Result};

/// The reward model's backward side, sized once.
pub(super) struct GradientPass {
    tape: Tape,
    backward: Backward,
    products: Buffer<f32>,
    norms: Buffer<f32>,
}

/// The positions of a span from its slot on, and what is asked of them.
pub(super) struct Tail<'a> {
    pub placed: Placed<'a>,
    /// Rows within it whose rewards are wanted, ascending; the last one is the last row.
    pub scored: Vec<usize>,
    /// Ids whose embeddings are multiplied with the gradient at the first row.
    pub candidates: &'a [u32],
    /// Whether the gradient of every row is wanted.
    pub rows: bool,
}

/// What a tail gives.
pub(super) struct Slope {
    /// Of the scored rows.
    pub rewards: Vec<f32>,
    pub dots: Vec<f32>,
    pub norm: f32,
    /// `[rows, hidden]` if asked for.
    pub rows: Vec<f32>,
}

/// Candidates of all tails of a pass, as the device reads them.
struct ScoreQueries {
    ids: Section<u32>,
    queries: Section<ScoreQuery>,
    /// Per tail: its first query, and where its products are.
    places: Vec<(usize, std::ops::Range<usize>)>,
    listed: usize,
    count: usize,
}

impl ScoreQueries {
    /// `slots` are the rows of the wanted gradients that belong to the tails' first rows.
    fn push(packet: &mut Packet, tails: &[Tail<'_>], slots: &[usize]) -> Self {
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
        ScoreQueries { ids: packet.push(&ids), queries: packet.push(&queries), places, listed, count }
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

    /// Bytes for so many rows.
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
            rows += tail.placed.ids.len();
            if rows > self.tape.rows {
                break;
            }
            count += 1;
        }
        match tails.first() {
            Some(tail) if count == 0 => Err(Error::gradient_too_long(tail.placed.ids.len(), self.tape.rows)),
            _ => Ok(count),
        }
    }

    /// Appends the tails to their sequences, scores and differentiates them.
    pub fn run(&mut self, device: &Device, reward: &mut Decoder, tails: &[Tail<'_>]) -> Result<Vec<Slope>> {
        let d = reward.sizes.hidden_padded;
        let mut batch = Batch::default();
        let (mut lasts, mut wanted, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, tail) in tails.iter().enumerate() {
            let count = tail.placed.ids.len();
            batch.pieces.push(tail.placed);
            batch.live.extend(tail.scored.iter().map(|row| (batch.rows + row, owner)));
            lasts.push(batch.live.len() - 1);
            slots.push(wanted.len());
            wanted.extend(batch.rows..batch.rows + if tail.rows { count } else { 1 });
            batch.rows += count;
        }
        let live: Vec<usize> = batch.live.iter().map(|&(row, _)| row).collect();
        let questions = |packet: &mut Packet| {
            (Asked::push(packet, &live, &lasts, &wanted), ScoreQueries::push(packet, tails, &slots))
        };
        let ((asked, queries), step) = reward.record(device, &batch, questions, Some(&mut self.tape))?;

        reward.norm(device, live.len())?;
        let rewards = &mut self.products;
        grow(device, rewards, live.len() + queries.listed)?;
        grow(device, &mut self.norms, queries.count)?;
        let mut linear = Linear { device, storage: reward.storage, scratch: &mut reward.state.scratch };
        let hidden = reward.state.normed.first(live.len() * d);
        linear.wide(rewards.first_mut(live.len()), hidden, live.len(), reward.weights.head())?;
        self.backward.run(device, reward, &self.tape, &step, &asked)?;

        let inputs = candidate_scores::Inputs {
            grads: self.backward.grad.first(wanted.len() * d),
            table: reward.weights.embedding.view(),
            ids: reward.inbox.view(queries.ids),
            queries: reward.inbox.view(queries.queries),
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
                for row in grads[slots[owner] * d..].chunks_exact(d).take(tail.placed.ids.len()) {
                    rows.extend(row[..reward.sizes.hidden].iter().map(|&x| x * scale));
                }
            }
            out.push(Slope {
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
