//! Both models on a CUDA device, through the kernels of `cuda::ops`.
//!
//! `sizes` pads, `weights` loads, `memory` says beforehand what fits, `open` does all of it. `decoder` is the forward pass and
//! `backward` the other one, over the buffers of `state`; `head` turns the policy's hidden states into rows, `gradient` the
//! reward model's into first-order scores. What a batch needs from the host goes to the device in one copy (`packet`), and what
//! it gives comes back in as few as its kinds.

mod backward;
mod decoder;
mod foresight;
mod gradient;
mod graphs;
mod head;
pub mod memory;
mod open;
mod packet;
pub mod sizes;
mod state;
mod steps;
pub mod weights;

use super::spans::{self, Placed, handle, reward_rows, score};
use super::{
    Backend, Gradient, GradientSpan, Logits, PolicyRow, PolicyRows, PolicySpan, RewardSpan, Role, Score, Seconds,
    SeqId, Span, Turn, Turned, Work, policy_range, timed,
};
use crate::cuda::{Buffer, Device};
use crate::dtype::DType;
use crate::dtype::HalfType;
use crate::files::checkpoint::{Bytes, Checkpoint};
use crate::files::config::ModelConfig;
use crate::kv::KvHandle;
use crate::profile::{self, Phase};
use crate::{Error, Result};
use decoder::{Decoder, Linear};
use gradient::{GradientPass, Tail};
use graphs::Graphs;
use head::Head;
use std::collections::HashSet;

pub use open::{CudaOptions, Loading, Opened, Prepared};

/// Shapes and weights of policy and reward model.
pub type Parts<'a> = ((&'a ModelConfig, &'a Checkpoint), (&'a ModelConfig, &'a Checkpoint));

/// Rows of a decode step that share one reading of the weights: below where the cards of today turn from bandwidth to arithmetic
/// (about 180 rows in 16 bits on an H200), by their data sheets. Not measured yet.
const CHEAP_ROWS: usize = 128;

/// A policy and a reward model on a device.
pub struct Cuda {
    /// The policy's stream, and the reward model's.
    device: Device,
    beside: Device,
    policy: Decoder,
    reward: Decoder,
    head: Head,
    rewards: Buffer<f32>, // [n]
    gradient: GradientPass,
    /// Decode steps that were recorded; none if every kernel is to be launched by itself.
    graphs: Option<Graphs>,
    max_len: usize,
    /// The policy's input embedding as it is stored, for [`Backend::same_embedding`]; none if it was drawn.
    embedding: Option<(DType, Bytes)>,
    /// Policy sequences whose last hidden state is kept.
    kept: HashSet<SeqId>,
}

impl Cuda {
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

    /// Checks the spans of a batch and that there is room for them; nothing is appended yet.
    fn place<'a>(&self, role: Role, spans: impl IntoIterator<Item = Span<'a>>) -> Result<Vec<Placed<'a>>> {
        self.device.alive()?;
        let decoder = self.decoder(role);
        let placed = spans::place(role, &decoder.config, &decoder.kv, self.max_len, spans)?;
        spans::check_room(&decoder.kv, &placed)?;
        Ok(placed)
    }

    /// Launches decode steps as graphs from now on, or every kernel by itself.
    pub fn use_graphs(&mut self, graphs: bool) {
        self.graphs = graphs.then(Graphs::default);
    }

    /// The device, on the policy's stream.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Decode steps whose work lists were made while the one before them ran.
    pub fn foreseen(&self) -> u64 {
        self.policy.foresights
    }

    /// Decode steps that were launched as graphs, and graphs that were recorded for them.
    pub fn graphs(&self) -> (u64, u64) {
        self.graphs.as_ref().map_or((0, 0), |graphs| (graphs.launched, graphs.recorded))
    }

    /// Hidden states and logits of every position of `ids`, computed as one sequence.
    ///
    /// # Errors
    /// As [`Backend::policy_step`].
    pub fn policy_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        let seq = self.create(Role::Policy)?;
        let result = self.all_rows(seq, ids);
        self.release(seq);
        result
    }

    fn all_rows(&mut self, seq: SeqId, ids: &[u32]) -> Result<PolicyRows> {
        let placed = self.place(Role::Policy, [Span { seq, start: 0, ids }])?;
        let Cuda { device, policy, head, .. } = self;
        let (d, padded, storage) = (policy.sizes.hidden, policy.sizes.hidden_padded, policy.storage);
        let mut rows = PolicyRows { hidden: Vec::new(), logits: Vec::new() };
        for batch in spans::batches(&placed, &[(0..ids.len()).collect()], policy.state.rows) {
            policy.forward(device, &batch, |_| ())?;
            policy.norm(device, batch.rows)?;
            let hidden = policy.state.normed.download_first(device, batch.rows * padded)?;
            for row in hidden.chunks_exact(padded) {
                rows.hidden.extend(row[..d].iter().map(|&bits| storage.widen(bits)));
            }
            rows.logits.extend(head.all(device, policy, batch.rows)?);
        }
        Ok(rows)
    }

    /// Forgets what a failed operation appended.
    fn undo<T>(&mut self, role: Role, placed: &[Placed<'_>], result: Result<T>) -> Result<T> {
        if result.is_err() {
            let kv = &mut self.decoder_mut(role).kv;
            for span in placed {
                if kv.len(span.seq).is_ok_and(|len| len > span.start) {
                    kv.truncate(span.seq, span.start)?;
                }
            }
        }
        result
    }

    /// Rewards of the wanted rows of each span.
    fn scores(&mut self, placed: &[Placed<'_>], wanted: &[Vec<usize>]) -> Result<Vec<Vec<f32>>> {
        let Cuda { beside: device, reward, rewards, .. } = self;
        let d = reward.sizes.hidden_padded;
        let mut out = vec![Vec::new(); placed.len()];
        for batch in spans::batches(placed, wanted, reward.state.rows) {
            reward.forward(device, &batch, |_| ())?;
            let rows = batch.live.len();
            if rows == 0 {
                continue;
            }
            reward.norm(device, rows)?;
            let mut linear = Linear { device, storage: reward.storage, scratch: &mut reward.state.scratch };
            linear.wide(rewards.first_mut(rows), reward.state.normed.first(rows * d), rows, reward.weights.head())?;
            let back = rewards.download_first(device, rows)?;
            for (&(_, owner), reward) in batch.live.iter().zip(back) {
                out[owner].push(reward);
            }
        }
        Ok(out)
    }
}

impl Cuda {
    /// A turn without the policy's part.
    fn rewards_of(&mut self, turn: Turn<'_>) -> Turned {
        let mut seconds = Seconds::default();
        let score = match turn.score {
            [] => Ok(Vec::new()),
            spans => timed(&mut seconds.score, || self.reward_score(spans)),
        };
        let gradient = match turn.gradient {
            [] => Ok(Vec::new()),
            spans => timed(&mut seconds.gradient, || self.reward_gradient(spans)),
        };
        Turned { policy: Ok(Vec::new()), score, gradient, seconds }
    }

    /// What stands before the slots runs like any prefix; what stands behind is recorded and differentiated.
    fn gradients(
        &mut self,
        spans: &[GradientSpan<'_>],
        placed: &[Placed<'_>],
        asked: &[(Vec<usize>, Vec<usize>)],
    ) -> Result<Vec<Gradient>> {
        let cut = |i: usize| spans[i].slot - spans[i].span.span.start;
        let heads: Vec<Placed<'_>> = placed.iter().enumerate().map(|(i, span)| span.slice(0, cut(i))).collect();
        let before =
            asked.iter().enumerate().map(|(i, (rows, _))| rows.iter().copied().filter(|&r| r < cut(i)).collect());
        let mut rewards = self.scores(&heads, &before.collect::<Vec<_>>())?;

        let tails = placed.iter().zip(asked).enumerate().map(|(i, (span, (rows, _)))| Tail {
            placed: span.slice(cut(i), span.ids.len()),
            scored: rows.iter().filter(|&&r| r >= cut(i)).map(|r| r - cut(i)).collect(),
            candidates: spans[i].candidates,
            rows: spans[i].rows,
        });
        let tails: Vec<Tail<'_>> = tails.collect();
        let mut rest = &tails[..];
        let mut slopes = Vec::with_capacity(tails.len());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.gradient.together(rest)?);
            slopes.extend(self.gradient.run(&self.beside, &mut self.reward, now)?);
            rest = later;
        }
        let gradients = slopes.into_iter().zip(&mut rewards).zip(asked).map(|((slope, rewards), (_, places))| {
            rewards.extend(slope.rewards);
            Gradient { score: score(rewards, places), dots: slope.dots, norm: slope.norm, rows: slope.rows }
        });
        Ok(gradients.collect())
    }
}

impl Backend for Cuda {
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
        let (device, decoder) = match seq.role {
            Role::Policy => (&self.device, &mut self.policy),
            Role::Reward => (&self.beside, &mut self.reward),
        };
        let (child, copy) = decoder.kv.fork(handle(seq), len)?;
        decoder.copy_block(device, copy)?;
        Ok(SeqId { role: seq.role, index: child.index, generation: child.generation })
    }

    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        self.kept.remove(&seq);
        self.decoder_mut(seq.role).kv.truncate(handle(seq), len)
    }

    fn release(&mut self, seq: SeqId) {
        self.kept.remove(&seq);
        self.decoder_mut(seq.role).kv.release(handle(seq));
    }

    fn len(&self, seq: SeqId) -> usize {
        self.decoder(seq.role).kv.len(handle(seq)).unwrap_or(0)
    }

    fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> Result<Vec<PolicyRow>> {
        let _range = policy_range(spans);
        let placed = self.place(Role::Policy, spans.iter().map(|s| s.span))?;
        let rows = self.step(spans, &placed);
        self.undo(Role::Policy, &placed, rows)
    }

    fn logits_row(&mut self, seq: SeqId) -> Result<Vec<f32>> {
        self.logits(seq, Logits::All)
    }

    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        spans::check_logits(asked, self.policy.config.vocab_size)?;
        if !self.kept.contains(&seq) {
            return Err(not_run());
        }
        match asked {
            Logits::All => self.head.row(&self.device, &mut self.policy, seq.index),
            Logits::LogProbabilities => self.head.log_probabilities(&self.device, &mut self.policy, seq.index),
            Logits::Of(ids) => self.head.chosen(&self.device, &mut self.policy, seq.index, ids),
        }
    }

    fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        let _range = profile::range(Phase::RewardForward, spans.iter().map(|span| span.span.ids.len()).sum());
        let placed = self.place(Role::Reward, spans.iter().map(|s| s.span))?;
        let asked = spans.iter().map(reward_rows).collect::<Result<Vec<_>>>()?;
        let (rows, places): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let rewards = self.scores(&placed, &rows);
        let rewards = self.undo(Role::Reward, &placed, rewards)?;
        Ok(rewards.iter().zip(&places).map(|(rewards, places)| score(rewards, places)).collect())
    }

    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        let _range = profile::range(Phase::RewardBackward, spans.iter().map(|span| span.span.span.ids.len()).sum());
        let placed = self.place(Role::Reward, spans.iter().map(|s| s.span.span))?;
        let asked = spans.iter().map(|s| reward_rows(&s.span)).collect::<Result<Vec<_>>>()?;
        spans::check_gradient(spans, self.reward.config.vocab_size)?;
        let gradients = self.gradients(spans, &placed, &asked);
        self.undo(Role::Reward, &placed, gradients)
    }

    fn turn(&mut self, turn: Turn<'_>) -> Turned {
        if turn.policy.is_empty() {
            return self.rewards_of(turn);
        }
        // The reward model's batch is made and queued while the device works on the policy's.
        // Around all of the turn: the rewards' ranges lie inside, where the device works on both.
        let _range = policy_range(turn.policy);
        let mut policy_seconds = 0.0;
        let placed = self.place(Role::Policy, turn.policy.iter().map(|s| s.span));
        let pending = placed.map(|placed| {
            let pending = timed(&mut policy_seconds, || self.submit(turn.policy, &placed));
            (placed, pending)
        });
        let turned = self.rewards_of(turn);
        let policy = pending.and_then(|(placed, pending)| {
            let rows = timed(&mut policy_seconds, || pending.and_then(|pending| self.collect(turn.policy, pending)));
            self.undo(Role::Policy, &placed, rows)
        });
        let seconds = Seconds { policy: policy_seconds, ..turned.seconds };
        Turned { policy, seconds, ..turned }
    }

    fn alive(&self) -> Result<()> {
        self.device.alive()
    }

    fn same_embedding(&self, a: u32, b: u32) -> bool {
        // Two rows of random numbers are not equal.
        let Some((dtype, bytes)) = &self.embedding else { return a == b };
        let width = self.policy.sizes.hidden * dtype.size();
        let row = |id: u32| bytes.get((id as usize).checked_mul(width)?..).and_then(|rest| rest.get(..width));
        let Some((left, right)) = row(a).zip(row(b)) else { return a == b };
        a == b || same_numbers(*dtype, self.policy.storage, left, right)
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

    fn cheap_rows(&self) -> usize {
        CHEAP_ROWS
    }

    fn gradient_tokens(&self) -> usize {
        self.gradient.rows()
    }

    fn work(&self) -> Work {
        Work {
            policy_forward: self.policy.forwarded,
            reward_forward: self.reward.forwarded,
            reward_backward: self.reward.differentiated,
        }
    }
}

fn not_run() -> Error {
    Error::Backend("logits asked for of a sequence that was not run since it was made or cut back".to_string())
}

/// Whether two stored rows are the same numbers once they have the storage type.
fn same_numbers(dtype: DType, storage: HalfType, a: &[u8], b: &[u8]) -> bool {
    let number = |bytes: &[u8]| {
        let stored = match (dtype, bytes) {
            (DType::Bf16, &[x, y]) => HalfType::Bf16.widen(u16::from_le_bytes([x, y])),
            (DType::F16, &[x, y]) => HalfType::F16.widen(u16::from_le_bytes([x, y])),
            (DType::F32, &[x, y, z, w]) => f32::from_le_bytes([x, y, z, w]),
            _ => f32::NAN,
        };
        storage.widen(storage.round(stored))
    };
    let size = dtype.size();
    a.chunks_exact(size).zip(b.chunks_exact(size)).all(|(a, b)| number(a) == number(b))
}
