//! One pass of rewards and their gradients: forward with a tape, backward, first-order scores of candidates.

use super::backward::{Backward, BackwardAsk};
use super::decoder::{Decoder, DecoderStep, Linear, PaddedRows};
use super::graphs::{self, BufferAddress, Graphs, Launches};
use super::inputs::{Slice, StepInputs};
use super::sizes::Sizes;
use super::state::Tape;
use crate::cuda::ops::attention::Frame;
use crate::cuda::ops::attention_backward;
use crate::cuda::ops::candidate_scores::{self, MAX_CANDIDATES, ScoreQuery, candidate_scores};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device};
use crate::model::spans::{Batch, Tail, TailGradient};
use crate::{Error, Result};
use std::sync::Arc;

/// The reward model's backward side, sized once.
pub(super) struct GradientPass {
    tape: Tape,
    backward: Backward,
    products: Buffer<f32>,
    norms: Buffer<f32>,
    graphs: Graphs<PassShape>,
    launches: Arc<Launches>,
}

/// What must agree for one graph to serve two passes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PassShape {
    counts: GradientCounts,
    /// Of attention's work, per distinct window and of the live rows, forward and backward.
    frames: (Vec<Frame>, Vec<attention_backward::Frame>),
    /// Of the buffers that may have moved or grown since.
    places: [BufferAddress; 3],
}

/// How much there is of what a pass works on, what fills up included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GradientCounts {
    rows: usize,
    live: usize,
    wanted: usize,
    /// Candidates, and queries that have up to [`MAX_CANDIDATES`] of them.
    listed: usize,
    queries: usize,
}

impl GradientCounts {
    /// Filled up, so that many passes have the same, of at most `most` rows. Rows fill up to what products work on together: a
    /// multiple of 8. Of the others a few more cost nothing.
    fn filled(&self, most: usize) -> Self {
        let rows = self.rows.next_multiple_of(8).min(most);
        let few = |count: usize| count.next_power_of_two().min(rows);
        GradientCounts {
            rows,
            live: few(self.live),
            wanted: few(self.wanted),
            listed: self.listed.next_multiple_of(MAX_CANDIDATES),
            queries: self.queries.next_power_of_two(),
        }
    }
}

/// Candidates of all tails of a pass, as the device reads them.
#[derive(Default)]
struct ScoreQueries {
    ids: Vec<u32>,
    queries: Vec<ScoreQuery>,
    /// Per tail: its first query, and where its products are.
    places: Vec<(usize, std::ops::Range<usize>)>,
}

impl ScoreQueries {
    /// `slots` are the rows of the wanted gradients that belong to the tails' first rows.
    fn new(tails: &[Tail<'_>], slots: &[usize]) -> Self {
        let mut all = ScoreQueries::default();
        for (tail, &slot) in tails.iter().zip(slots) {
            let first = all.ids.len();
            all.places.push((all.queries.len(), first..first + tail.candidates.len()));
            // The norm comes with a query, and a query has at least one candidate.
            let candidates = if tail.candidates.is_empty() { &[0] } else { tail.candidates };
            for group in candidates.chunks(MAX_CANDIDATES) {
                let (row, first, count) = (slot as u32, all.ids.len() as u32, group.len() as u32);
                all.queries.push(ScoreQuery { row, first, count });
                all.ids.extend_from_slice(group);
            }
        }
        all
    }

    /// Adds them to the inputs. Queries that fill up have no candidates, and candidates that do have no query.
    fn push(&mut self, inputs: &mut StepInputs, counts: GradientCounts) -> (Slice<u32>, Slice<ScoreQuery>) {
        self.ids.resize(counts.listed, 0);
        self.queries.resize(counts.queries, ScoreQuery::default());
        (inputs.push(&self.ids), inputs.push(&self.queries))
    }
}

/// What a pass needs from the host.
struct GradientInputs {
    backward: BackwardAsk,
    ids: Slice<u32>,
    queries: Slice<ScoreQuery>,
}

impl GradientPass {
    pub fn new(device: &Device, decoder: &Decoder, rows: usize, launches: Arc<Launches>) -> Result<Self> {
        Ok(GradientPass {
            tape: Tape::new(device, &decoder.sizes, rows)?,
            backward: Backward::new(device, decoder, rows)?,
            products: Buffer::uninitialised(device, 64 * MAX_CANDIDATES)?,
            norms: Buffer::uninitialised(device, 64)?,
            graphs: Graphs::new(graphs::GRADIENTS),
            launches,
        })
    }

    /// Bytes for `rows` rows.
    pub fn bytes(sizes: &Sizes, rows: usize, layout: WeightLayout) -> u64 {
        Tape::bytes(sizes, rows) + Backward::bytes(sizes, rows, layout)
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
        let mut scores = ScoreQueries::new(tails, &slots);
        let own = GradientCounts {
            rows: batch.rows,
            live: live.len(),
            wanted: wanted.len(),
            listed: scores.ids.len(),
            queries: scores.queries.len(),
        };
        let by_graph = self.launches.uses_graphs();
        let counts = if by_graph { own.filled(self.tape.rows) } else { own };
        let filled = by_graph.then_some(PaddedRows { rows: counts.rows, live: counts.live });
        let push = |inputs: &mut StepInputs| {
            let filled = by_graph.then_some((counts.live, counts.wanted));
            let backward = BackwardAsk::push(inputs, &live, &lasts, &wanted, filled);
            let (ids, queries) = scores.push(inputs, counts);
            GradientInputs { backward, ids, queries }
        };
        let (asked, step) = reward.send(device, &batch, filled, true, push)?;
        grow(device, &mut self.products, counts.live + counts.listed)?;
        grow(device, &mut self.norms, counts.queries)?;

        let GradientPass { tape, backward, products, norms, graphs, launches } = self;
        let place = |buffer: &Buffer<f32>| BufferAddress { address: buffer.address(), len: buffer.len() };
        let shape = PassShape {
            counts,
            frames: (step.frames(), step.key_frames()),
            places: [reward.device_inputs.place(), place(products), place(norms)],
        };
        let mut queue = || pass(device, reward, (tape, backward, products, norms), &step, &asked, counts);
        if by_graph {
            // SAFETY: the launches use weights, state and pools of this model, and this pass's tape and buffers, which were made
            // once and live as long as the graphs; what grows is in the shape. Slices of the inputs lie where the shape puts
            // them: it fixes the length of each but the last, which the launches do not read. All of it is borrowed mutably.
            unsafe { graphs.run(device, shape, &launches.gradients, queue)? };
        } else {
            queue()?;
        }
        reward.forwarded += batch.rows as u64;
        reward.differentiated += batch.rows as u64;

        let results = self.products.download_first(device, counts.live + counts.listed)?;
        let norms = self.norms.download_first(device, counts.queries)?;
        let grads = match tails.iter().any(|tail| tail.rows) {
            true => self.backward.grad.download_first(device, wanted.len() * d)?,
            false => Vec::new(),
        };
        let (rewards, dots) = results.split_at(counts.live);
        let mut out = Vec::with_capacity(tails.len());
        for (owner, tail) in tails.iter().enumerate() {
            let (query, range) = scores.places[owner].clone();
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

/// Queues everything that a pass computes from its inputs.
fn pass(
    device: &Device,
    reward: &mut Decoder,
    (tape, backward, products, norms): (&mut Tape, &mut Backward, &mut Buffer<f32>, &mut Buffer<f32>),
    step: &DecoderStep,
    asked: &GradientInputs,
    GradientCounts { live, wanted, listed, queries, .. }: GradientCounts,
) -> Result<()> {
    let d = reward.sizes.hidden_padded;
    reward.layers(device, step, Some(tape))?;
    reward.norm(device, live)?;
    let layout = reward.weights.head_layout();
    let mut linear = Linear { device, storage: reward.storage, layout, scratch: &mut reward.state.scratch };
    let hidden = reward.state.normed.first(live * d);
    linear.run_f32(products.first_mut(live), hidden, live, reward.weights.head())?;
    backward.run(device, reward, tape, step, &asked.backward)?;

    let inputs = candidate_scores::Inputs {
        grads: backward.grad.first(wanted * d),
        // In rows: a reward model's embedding is no product's matrix.
        table: reward.weights.embedding.view(),
        ids: reward.device_inputs.view(asked.ids),
        queries: reward.device_inputs.view(asked.queries),
        d,
        scale: 1.0 / backward.factor,
    };
    let mut results = products.first_mut(live + listed);
    let products = &mut results.slice(live..live + listed);
    candidate_scores(device, reward.storage, &mut norms.first_mut(queries), products, &inputs)
}

/// Makes room for `len` elements. Lists of candidates have no small bound.
fn grow<T: crate::cuda::Element>(device: &Device, buffer: &mut Buffer<T>, len: usize) -> Result<()> {
    if len > buffer.len() {
        *buffer = Buffer::uninitialised(device, len.next_power_of_two())?;
    }
    Ok(())
}
