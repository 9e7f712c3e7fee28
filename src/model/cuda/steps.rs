//! Policy steps: queued, and collected when somebody waits for them.

use super::Cuda;
use super::decoder::Decoder;
use super::graphs::{self, Graphs};
use super::head::{Asked, Head, Questions};
use super::packet::Packet;
use crate::Result;
use crate::cuda::Device;
use crate::model::spans::{self, Batch, Placed};
use crate::model::{PolicyRow, PolicySpan};

/// A policy step that may not be finished.
pub(super) struct Pending {
    /// Rows that are there.
    rows: Vec<PolicyRow>,
    /// What comes behind them.
    queued: Option<Queued>,
}

/// Rows whose results are on the device.
struct Queued {
    /// Per row, its span.
    owners: Vec<usize>,
    /// Rows that were computed, filling ones included.
    rows: usize,
    /// Length of their lists.
    stride: usize,
}

/// What some spans ask of their rows.
fn asked(spans: &[PolicySpan<'_>], owners: &[usize]) -> Vec<Asked> {
    let of = |&owner: &usize| {
        let PolicySpan { span, floor, top_k } = spans[owner];
        Asked { floor, top_k, keep: span.seq.index }
    };
    owners.iter().map(of).collect()
}

fn collect(
    device: &Device,
    policy: &Decoder,
    head: &mut Head,
    spans: &[PolicySpan<'_>],
    Queued { owners, rows, stride }: Queued,
    out: &mut Vec<PolicyRow>,
) -> Result<()> {
    head.collect(device, policy.sizes.vocab, &asked(spans, &owners), rows, stride, out)
}

/// Queues a step of single tokens as a graph, with as many rows as `filled` says; returns the length of their lists.
fn decode(
    device: &Device,
    policy: &mut Decoder,
    head: &mut Head,
    graphs: &mut Graphs,
    (batch, asked, filled): (&Batch<'_>, &[Asked], usize),
) -> Result<usize> {
    head.room_for(device, policy, asked)?;
    let push = |packet: &mut Packet| Questions::push(packet, asked, filled);
    let (questions, step) = policy.send(device, batch, Some(filled), false, push)?;
    let stride = head.filled_stride(asked);
    let places = [policy.inbox.address(), head.kept()];
    let shape = graphs::Shape { rows: filled, stride, frames: step.frames(), places };
    let launches = || {
        policy.layers(device, &step, None)?;
        policy.norm(device, filled)?;
        head.keep(device, policy, questions)?;
        head.launch(device, policy, questions, 0..filled, stride)
    };
    // SAFETY: the launches use weights, state, pools and results of this policy and head, which were made once and live as long
    // as the graphs beside them; the two buffers that grow are in the shape. Sections of the packet lie where the shape puts
    // them: it fixes the length of each but the last, which the launches do not read. Policy and head are ours alone.
    unsafe { graphs.run(device, shape, launches)? };
    policy.forwarded += batch.rows as u64;
    Ok(stride)
}

impl Cuda {
    /// A step from its beginning to its end.
    pub(super) fn step(&mut self, spans: &[PolicySpan<'_>], placed: &[Placed<'_>]) -> Result<Vec<PolicyRow>> {
        let pending = self.submit(spans, placed)?;
        self.collect(spans, pending)
    }

    /// Queues a step. All but the results of its last batch are there when this returns.
    pub(super) fn submit(&mut self, spans: &[PolicySpan<'_>], placed: &[Placed<'_>]) -> Result<Pending> {
        let Cuda { device, policy, head, graphs, .. } = self;
        let last: Vec<Vec<usize>> = placed.iter().map(|span| vec![span.ids.len() - 1]).collect();
        let mut pending = Pending { rows: Vec::with_capacity(spans.len()), queued: None };
        for batch in spans::batches(placed, &last, policy.state.rows) {
            if let Some(queued) = pending.queued.take() {
                collect(device, policy, head, spans, queued, &mut pending.rows)?;
            }
            let owners: Vec<usize> = batch.live.iter().map(|&(_, owner)| owner).collect();
            let asked = asked(spans, &owners);
            let filled = graphs::filled(batch.rows);
            // Decode steps, all of whose rows are asked for. Others are too many kinds, and long enough.
            let single =
                asked.len() == batch.rows && filled <= graphs::MOST_ROWS.min(head.rows()).min(policy.state.rows);
            if let Some(graphs) = graphs.as_mut().filter(|_| single) {
                let stride = decode(device, policy, head, graphs, (&batch, &asked, filled))?;
                policy.foresee(device, &batch);
                pending.queued = Some(Queued { owners, rows: filled, stride });
                continue;
            }
            let questions = policy.forward(device, &batch, |packet| Questions::push(packet, &asked, asked.len()))?;
            if asked.is_empty() {
                continue;
            }
            policy.norm(device, asked.len())?;
            if asked.len() <= head.rows() {
                let (rows, stride) = (asked.len(), head.stride(&asked));
                head.room_for(device, policy, &asked)?;
                head.keep(device, policy, questions)?;
                head.launch(device, policy, questions, 0..rows, stride)?;
                pending.queued = Some(Queued { owners, rows, stride });
            } else {
                pending.rows.extend(head.run(device, policy, questions, &asked)?);
            }
        }
        Ok(pending)
    }

    /// Waits for a step.
    pub(super) fn collect(&mut self, spans: &[PolicySpan<'_>], pending: Pending) -> Result<Vec<PolicyRow>> {
        let Cuda { device, policy, head, kept, .. } = self;
        let Pending { mut rows, queued } = pending;
        if let Some(queued) = queued {
            collect(device, policy, head, spans, queued, &mut rows)?;
        }
        kept.extend(spans.iter().map(|span| span.span.seq));
        Ok(rows)
    }
}
