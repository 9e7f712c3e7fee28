//! Decode steps as CUDA graphs: recorded the first time a shape occurs, launched as one graph from then on.
//!
//! A step of single tokens has a shape: its rows, padded to a few sizes, the frames of attention's work lists, the length of
//! lists of logits. Everything else about it (ids, positions, blocks, thresholds) is in the inputs, at places that follow
//! from the shape. So one graph serves all steps of a shape, however long contexts are and whatever they share.

use crate::Result;
use crate::cuda::ops::attention::Frame;
use crate::cuda::{Device, Graph};
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Rows of a graph, at most: what a decode step of many requests has.
pub const MOST_ROWS: usize = 256;
/// Graphs that are kept. A longer context doubles into new shapes; old ones are not worth their memory for ever.
const KEPT: usize = 96;

/// What must agree for one graph to serve two steps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows, padding included.
    pub rows: usize,
    /// Length of each row's list of largest logits.
    pub stride: usize,
    /// Bound of the ids in these lists.
    pub ids_below: usize,
    /// Of attention's work, per distinct window.
    pub frames: Vec<Frame>,
    /// Of the buffers that may have moved since.
    pub places: [u64; 2],
}

/// How a policy's decode steps are launched: a switch and counters, shared with whoever opened the model.
#[derive(Debug, Default)]
pub struct Launches {
    graphs: AtomicBool,
    launched: AtomicU64,
    recorded: AtomicU64,
    planned_ahead: AtomicU64,
}

impl Launches {
    pub(super) fn new(graphs: bool) -> Self {
        Launches { graphs: AtomicBool::new(graphs), ..Launches::default() }
    }

    /// Launches decode steps as graphs from now on, or every kernel by itself.
    pub fn use_graphs(&self, graphs: bool) {
        self.graphs.store(graphs, Relaxed);
    }

    pub(super) fn uses_graphs(&self) -> bool {
        self.graphs.load(Relaxed)
    }

    /// Decode steps that were launched as graphs, and graphs that were recorded for them.
    pub fn graphs(&self) -> (u64, u64) {
        (self.launched.load(Relaxed), self.recorded.load(Relaxed))
    }

    /// Decode steps whose work lists were made while the one before them ran.
    pub fn planned_ahead(&self) -> u64 {
        self.planned_ahead.load(Relaxed)
    }

    pub(super) fn count_planned_ahead(&self, steps: u64) {
        self.planned_ahead.store(steps, Relaxed);
    }
}

/// Graphs by shape.
#[derive(Default)]
pub(super) struct Graphs {
    known: HashMap<Shape, Graph>,
}

/// Rows of the smallest graph that holds `rows`: a power of two, and beyond 64, where rows begin to cost, a multiple of 32.
pub(super) fn padded_rows(rows: usize) -> usize {
    if rows <= 64 { rows.next_power_of_two() } else { rows.next_multiple_of(32) }
}

impl Graphs {
    /// Launches the graph of a shape; if there is none yet, records what `launches` queues.
    ///
    /// # Safety
    ///
    /// `launches` writes and reads the same memory for every step of a shape, that memory lives as long as this and the device,
    /// or its place is in the shape, and it is the caller's alone.
    pub unsafe fn run(
        &mut self,
        device: &Device,
        shape: Shape,
        counts: &Launches,
        launches: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.known.contains_key(&shape) {
            if self.known.len() >= KEPT {
                self.known.clear();
            }
            self.known.insert(shape.clone(), device.capture(launches)?);
            counts.recorded.fetch_add(1, Relaxed);
        }
        if let Some(graph) = self.known.get_mut(&shape) {
            // SAFETY: the caller vouches for the memory.
            unsafe { device.replay(graph)? };
            counts.launched.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::padded_rows;

    #[test]
    fn rows_are_padded_to_few_sizes() {
        let sizes: std::collections::BTreeSet<usize> = (1..=super::MOST_ROWS).map(padded_rows).collect();
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]);
        assert!((1..=super::MOST_ROWS).all(|rows| padded_rows(rows) >= rows));
    }
}
