//! Rewards and their gradients: forward with a tape, backward, first-order scores of candidates.

use super::backward::{Asked, Backward};
use super::decoder::{Decoder, Linear};
use super::packet::{Packet, Section};
use super::sizes::Sizes;
use super::state::Tape;
use crate::cuda::ops::nudge::{self, MAX_CANDIDATES, NudgeChoice, NudgeWish, nudge};
use crate::cuda::{Buffer, Device};
use crate::model::spans::{Batch, Placed};
use crate::{Error, Result};

/// The reward model's backward side, sized once.
pub(super) struct GradientPass {
    tape: Tape,
    backward: Backward,
    products: Buffer<f32>,
    choices: Buffer<NudgeChoice>,
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
struct Wishes {
    ids: Section<u32>,
    wishes: Section<NudgeWish>,
    /// Per tail: its first wish, and where its products are.
    places: Vec<(usize, std::ops::Range<usize>)>,
    listed: usize,
    count: usize,
}

impl Wishes {
    /// `slots` are the rows of the wanted gradients that belong to the tails' first rows.
    fn push(packet: &mut Packet, tails: &[Tail<'_>], slots: &[usize]) -> Self {
        let (mut ids, mut wishes, mut places) = (Vec::<u32>::new(), Vec::new(), Vec::new());
        for (tail, &slot) in tails.iter().zip(slots) {
            let first = ids.len();
            places.push((wishes.len(), first..first + tail.candidates.len()));
            // The norm comes with a wish, and a wish has at least one candidate.
            let candidates = if tail.candidates.is_empty() { &[0] } else { tail.candidates };
            for group in candidates.chunks(MAX_CANDIDATES) {
                wishes.push(NudgeWish {
                    damping: 1.0,
                    temperature: 1.0,
                    uniform: -1.0,
                    row: slot as u32,
                    first: ids.len() as u32,
                    count: group.len() as u32,
                    current: u32::MAX,
                });
                ids.extend_from_slice(group);
            }
        }
        let (listed, count) = (ids.len(), wishes.len());
        Wishes { ids: packet.push(&ids), wishes: packet.push(&wishes), places, listed, count }
    }
}

impl GradientPass {
    pub fn new(device: &Device, decoder: &Decoder, rows: usize) -> Result<Self> {
        Ok(GradientPass {
            tape: Tape::new(device, &decoder.sizes, rows)?,
            backward: Backward::new(device, decoder, rows)?,
            products: Buffer::uninitialised(device, 64 * MAX_CANDIDATES)?,
            choices: Buffer::uninitialised(device, 64)?,
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
            Some(tail) if count == 0 => Err(Error::invalid(format!(
                "a segment of {} tokens is longer than the {} tokens that the gradient has room for; use a larger \
                 --gradient-tokens, or a lower --entropy-threshold for shorter segments",
                tail.placed.ids.len(),
                self.tape.rows
            ))),
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
        let questions =
            |packet: &mut Packet| (Asked::push(packet, &live, &lasts, &wanted), Wishes::push(packet, tails, &slots));
        let ((asked, wishes), step) = reward.record(device, &batch, questions, Some(&mut self.tape))?;

        reward.norm(device, live.len())?;
        let rewards = &mut self.products;
        grow(device, rewards, live.len() + wishes.listed)?;
        grow(device, &mut self.choices, wishes.count)?;
        let mut linear = Linear { device, storage: reward.storage, scratch: &mut reward.state.scratch };
        let hidden = reward.state.normed.first(live.len() * d);
        linear.wide(rewards.first_mut(live.len()), hidden, live.len(), reward.weights.head())?;
        self.backward.run(device, reward, &self.tape, &step, &asked)?;

        let inputs = nudge::Inputs {
            grads: self.backward.grad.first(wanted.len() * d),
            table: reward.weights.embedding.view(),
            ids: reward.inbox.view(wishes.ids),
            wishes: reward.inbox.view(wishes.wishes),
            d,
            scale: 1.0 / self.backward.factor,
        };
        let mut results = self.products.first_mut(live.len() + wishes.listed);
        let products = &mut results.slice(live.len()..live.len() + wishes.listed);
        nudge(device, reward.storage, &mut self.choices.first_mut(wishes.count), products, &inputs)?;
        reward.differentiated += batch.rows as u64;

        let results = self.products.download_first(device, live.len() + wishes.listed)?;
        let choices = self.choices.download_first(device, wishes.count)?;
        let grads = match tails.iter().any(|tail| tail.rows) {
            true => self.backward.grad.download_first(device, wanted.len() * d)?,
            false => Vec::new(),
        };
        let (rewards, dots) = results.split_at(live.len());
        let mut out = Vec::with_capacity(tails.len());
        for (owner, tail) in tails.iter().enumerate() {
            let (wish, range) = wishes.places[owner].clone();
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
                norm: choices[wish].norm,
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
