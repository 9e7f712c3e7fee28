//! The next decode step's work lists, made while the device works on this one.
//!
//! What attention has to do follows from positions and blocks, which are known before the tokens are: when the same sequences
//! go on by one token each, as they mostly do, the lists can be made ahead. The next batch is compared with the plan before it is used.

use super::sizes::{Sizes, attention_shape};
use crate::Result;
use crate::cuda::ops::attention::{Plan, PlanLimits, Query, Sequence};
use crate::kv::{BLOCK, BlockId, KvHandle, KvPool};
use crate::model::spans::Batch;

/// Attention's work lists for one more token of each sequence of a batch.
pub(super) struct NextStepPlan {
    /// Sequence, position and blocks of every row.
    rows: Vec<(KvHandle, usize, Vec<BlockId>)>,
    /// Per distinct window, padded.
    plans: Vec<(Option<usize>, Plan)>,
}

impl NextStepPlan {
    /// For the step after a batch of single tokens; none if one of its positions has no block yet.
    ///
    /// # Errors
    /// A sequence is gone, or what it would do cannot be planned.
    pub fn after(
        batch: &Batch<'_>,
        kv: &KvPool,
        sizes: &Sizes,
        windows: &[Option<usize>],
        limits: impl Fn(Option<usize>) -> PlanLimits,
    ) -> Result<Option<Self>> {
        let mut rows = Vec::with_capacity(batch.pieces.len());
        for piece in &batch.pieces {
            let (next, blocks) = (piece.start + piece.ids.len(), kv.blocks(piece.seq)?);
            if next >= blocks.len() * BLOCK {
                return Ok(None);
            }
            rows.push((piece.seq, next, blocks.to_vec()));
        }
        let queries = rows.iter().enumerate().map(|(row, (_, position, _))| {
            let row = row as u32;
            [Query { row, out: row, position: *position as u32 }]
        });
        let queries: Vec<[Query; 1]> = queries.collect();
        let sequences = rows.iter().zip(&queries).map(|((_, _, blocks), queries)| Sequence { blocks, queries });
        let sequences: Vec<Sequence<'_>> = sequences.collect();
        let mut plans: Vec<(Option<usize>, Plan)> = Vec::new();
        for &window in windows {
            if plans.iter().all(|(known, _)| *known != window) {
                let limits = limits(window);
                plans.push((window, Plan::new(&attention_shape(sizes, window), &sequences, limits)?.filled(limits)));
            }
        }
        Ok(Some(NextStepPlan { rows, plans }))
    }

    /// The plans, if the batch is the one that was planned for.
    pub fn of(self, batch: &Batch<'_>, kv: &KvPool) -> Option<Vec<(Option<usize>, Plan)>> {
        let same = self.rows.len() == batch.pieces.len()
            && self.rows.iter().zip(&batch.pieces).all(|((seq, position, blocks), piece)| {
                *seq == piece.seq
                    && (*position, 1) == (piece.start, piece.ids.len())
                    && kv.blocks(piece.seq).is_ok_and(|found| found == blocks)
            });
        same.then_some(self.plans)
    }
}
