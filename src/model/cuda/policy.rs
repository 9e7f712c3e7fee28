//! A language model on a device. A step is queued first; its results are collected later, so that the reward model's work
//! can be queued in between.

use super::decoder::{Decoder, PaddedRows};
use super::graphs::{self, BufferAddress, Graphs, Launches};
use super::head::{Head, HeadAsk, HeadInputs};
use super::inputs::StepInputs;
use crate::cuda::Device;
use crate::cuda::ops::attention::Frame;
use crate::dtype::{DType, HalfType};
use crate::files::checkpoint::Bytes;
use crate::files::config::ModelConfig;
use crate::kv::{BlockCopy, KvPool};
use crate::model::paged::Compute;
use crate::model::spans::{self, Batch, CheckedSpan};
use crate::model::{Logits, PolicyRow, PolicyRows, PolicySpan};
use crate::{Error, Result};
use std::sync::Arc;

/// Rows of a decode step that share one reading of the weights: below where the cards of today turn from bandwidth to
/// arithmetic (about 180 rows in 16 bits on an H200), by their data sheets. Not measured yet.
const FREE_BATCH_ROWS: usize = 128;

/// A language model on a stream of its own.
pub(super) struct PolicyModel {
    pub device: Device,
    pub decoder: Decoder,
    pub head: Head,
    /// Decode steps that were recorded.
    pub graphs: Graphs<StepShape>,
    pub launches: Arc<Launches>,
    /// The input embedding as it is stored, for [`Compute::same_embedding`]; none if it was drawn.
    pub embedding: Option<(DType, Bytes)>,
}

/// What must agree for one graph to serve two decode steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepShape {
    /// Rows, padding included.
    pub rows: usize,
    /// Length of each row's list of largest logits.
    pub stride: usize,
    /// Bound of the ids in these lists.
    pub ids_below: usize,
    /// Of attention's work, per distinct window.
    pub frames: Vec<Frame>,
    /// Of the buffers that may have moved or grown since.
    pub places: [BufferAddress; 2],
}

/// A policy step that may not be finished.
struct Pending {
    /// Rows whose results are on the host.
    rows: Vec<PolicyRow>,
    /// The rows after them.
    queued: Option<Queued>,
}

/// Rows whose results are on the device.
struct Queued {
    /// What is asked of each.
    asked: Vec<HeadAsk>,
    /// Rows that were computed, padding included.
    rows: usize,
    /// Length of their lists.
    stride: usize,
}

/// What spans ask of their rows, in order. The hidden state of a span's last row is kept.
fn asked(spans: &[PolicySpan<'_>]) -> Vec<HeadAsk> {
    let mut all = Vec::with_capacity(spans.len());
    for span in spans {
        let (floor, keep, last) = (span.floor, span.span.seq.index, span.rows() - 1);
        let rows = span.asked().enumerate();
        all.extend(rows.map(|(row, top_k)| HeadAsk { floor, top_k, keep: (row == last).then_some(keep) }));
    }
    all
}

fn collect(
    device: &Device,
    policy: &Decoder,
    head: &mut Head,
    Queued { asked, rows, stride }: Queued,
    out: &mut Vec<PolicyRow>,
) -> Result<()> {
    head.collect(device, policy.sizes.vocab, &asked, rows, stride, out)
}

/// Queues a step of single tokens as a graph, with as many rows as `padded` says; returns the length of their lists.
fn decode(
    device: &Device,
    policy: &mut Decoder,
    head: &mut Head,
    (graphs, launches): (&mut Graphs<StepShape>, &Launches),
    (batch, asked, padded): (&Batch<'_>, &[HeadAsk], usize),
) -> Result<usize> {
    head.room_for(device, policy, asked)?;
    let push = |inputs: &mut StepInputs| HeadInputs::push(inputs, asked, padded);
    let (row_inputs, step) =
        policy.send(device, batch, Some(PaddedRows { rows: padded, live: padded }), false, push)?;
    let stride = head.padded_stride(asked);
    let places = [policy.device_inputs.place(), head.kept()];
    let shape = StepShape { rows: padded, stride, ids_below: head.ids_below, frames: step.frames(), places };
    let queue = || {
        policy.layers(device, &step, None)?;
        policy.norm(device, padded)?;
        head.keep(device, policy, row_inputs)?;
        head.launch(device, policy, row_inputs, 0..padded, stride)
    };
    // SAFETY: the launches use weights, state, pools and results of this policy and head, which were made once and live as
    // long as the graphs; the two buffers that grow and the bound of ids are in the shape. Slices of the inputs lie where the
    // shape puts them: it fixes the length of each but the last, which the launches do not read. Policy and head are
    // borrowed mutably.
    unsafe { graphs.run(device, shape, &launches.steps, queue)? };
    policy.forwarded += batch.rows as u64;
    Ok(stride)
}

impl PolicyModel {
    /// Queues a step. All but the results of its last batch are there when this returns.
    fn submit(&mut self, spans: &[PolicySpan<'_>], checked: &[CheckedSpan<'_>]) -> Result<Pending> {
        let PolicyModel { device, decoder: policy, head, graphs, launches, .. } = self;
        let all = asked(spans);
        let mut pending = Pending { rows: Vec::with_capacity(all.len()), queued: None };
        let mut rest = &all[..];
        for batch in spans::batches(checked, &spans::last_rows(spans), policy.state.rows) {
            if let Some(queued) = pending.queued.take() {
                collect(device, policy, head, queued, &mut pending.rows)?;
            }
            // Rows come in the order of their spans, and of their positions.
            let (asked, later) = rest.split_at(batch.live.len());
            rest = later;
            let padded = graphs::padded_rows(batch.rows);
            // Decode steps, one token a sequence, all of whose rows are asked for. Others are too many kinds, and long
            // enough.
            let single = batch.pieces.len() == batch.rows
                && asked.len() == batch.rows
                && padded <= graphs::MOST_ROWS.min(head.rows()).min(policy.state.rows);
            if single && launches.uses_graphs() {
                let stride = decode(device, policy, head, (graphs, launches), (&batch, asked, padded))?;
                policy.plan_next(device, &batch);
                launches.count_planned_ahead(policy.planned_ahead);
                pending.queued = Some(Queued { asked: asked.to_vec(), rows: padded, stride });
                continue;
            }
            let row_inputs = policy.forward(device, &batch, |inputs| HeadInputs::push(inputs, asked, asked.len()))?;
            if asked.is_empty() {
                continue;
            }
            policy.norm(device, asked.len())?;
            if asked.len() <= head.rows() {
                let (rows, stride) = (asked.len(), head.stride(asked));
                head.room_for(device, policy, asked)?;
                head.keep(device, policy, row_inputs)?;
                head.launch(device, policy, row_inputs, 0..rows, stride)?;
                pending.queued = Some(Queued { asked: asked.to_vec(), rows, stride });
            } else {
                pending.rows.extend(head.run(device, policy, row_inputs, asked)?);
            }
        }
        Ok(pending)
    }

    /// Waits for a step.
    fn collect(&mut self, pending: Pending) -> Result<Vec<PolicyRow>> {
        let Pending { mut rows, queued } = pending;
        if let Some(queued) = queued {
            collect(&self.device, &self.decoder, &mut self.head, queued, &mut rows)?;
        }
        Ok(rows)
    }
}

impl Compute for PolicyModel {
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
        self.decoder.copy_block(&self.device, copy)
    }

    fn alive(&self) -> Result<()> {
        self.device.alive()
    }

    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        checked: &[CheckedSpan<'_>],
        ids_below: usize,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<PolicyRow>> {
        self.head.ids_below = ids_below.min(self.decoder.sizes.vocab);
        let pending = self.submit(spans, checked)?;
        meanwhile();
        self.collect(pending)
    }

    fn logits(&mut self, index: u32, back: usize, asked: Logits<'_>) -> Result<Vec<f32>> {
        if back > 0 {
            return Err(Error::Backend(format!("the row {back} before the last one is not kept")));
        }
        let PolicyModel { device, decoder, head, .. } = self;
        match asked {
            Logits::All => head.row(device, decoder, index),
            Logits::LogProbabilities => head.log_probabilities(device, decoder, index),
            Logits::Of(ids) => head.chosen(device, decoder, index, ids),
        }
    }

    fn all_rows(&mut self, checked: CheckedSpan<'_>) -> Result<PolicyRows> {
        let PolicyModel { device, decoder: policy, head, .. } = self;
        let (d, padded, storage) = (policy.sizes.hidden, policy.sizes.hidden_padded, policy.storage);
        let mut rows = PolicyRows { hidden: Vec::new(), logits: Vec::new() };
        for batch in spans::batches(&[checked], &[(0..checked.ids.len()).collect()], policy.state.rows) {
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

    fn same_embedding(&self, a: u32, b: u32) -> bool {
        // Two rows of random numbers are not equal.
        let Some((dtype, bytes)) = &self.embedding else { return a == b };
        let width = self.decoder.sizes.hidden * dtype.size();
        let row = |id: u32| bytes.get((id as usize).checked_mul(width)?..).and_then(|rest| rest.get(..width));
        let Some((left, right)) = row(a).zip(row(b)) else { return a == b };
        a == b || same_numbers(*dtype, self.decoder.storage, left, right)
    }

    fn positions(&self) -> (u64, u64) {
        (self.decoder.forwarded, self.decoder.differentiated)
    }

    fn free_batch_rows(&self) -> usize {
        FREE_BATCH_ROWS
    }

    fn span_rows(&self) -> usize {
        usize::MAX
    }
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
