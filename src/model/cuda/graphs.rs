//! Decode steps as CUDA graphs: recorded the first time a shape occurs, launched as one from then on.
//!
//! A step of single tokens has a shape: its rows, filled up to a few sizes, the frames of attention's work lists, the length of
//! lists of logits. Everything else about it (ids, positions, blocks, thresholds) is in the packet, at places that follow
//! from the shape. So one graph serves all steps of a shape, however long contexts are and whatever they share.

use crate::Result;
use crate::cuda::ops::attention::Frame;
use crate::cuda::{Device, Graph};
use std::collections::HashMap;

/// Rows of a graph, at most: what a decode step of many requests has.
pub const MOST_ROWS: usize = 256;
/// Graphs that are kept. A longer context doubles into new shapes; old ones are not worth their memory for ever.
const KEPT: usize = 96;

/// What must agree for one graph to serve two steps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows, filling ones included.
    pub rows: usize,
    /// Length of each row's list of largest logits.
    pub stride: usize,
    /// Of attention's work, per distinct window.
    pub frames: Vec<Frame>,
    /// Of the buffers that may have moved since.
    pub places: [u64; 2],
}

/// Graphs by shape.
#[derive(Default)]
pub(super) struct Graphs {
    known: HashMap<Shape, Graph>,
    /// Steps that were launched as graphs.
    pub launched: u64,
    /// Graphs that were recorded.
    pub recorded: u64,
}

/// Rows of the smallest graph for so many: powers of two, and beyond 64 every 32nd, where rows begin to cost.
pub(super) fn filled(rows: usize) -> usize {
    if rows <= 64 { rows.next_power_of_two() } else { rows.next_multiple_of(32) }
}

impl Graphs {
    /// Launches the graph of a shape; if there is none yet, records what `launches` queues.
    ///
    /// # Safety
    ///
    /// `launches` writes and reads the same memory for every step of a shape, that memory lives as long as this and the device,
    /// or its place is in the shape, and it is the caller's alone.
    pub unsafe fn run(&mut self, device: &Device, shape: Shape, launches: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.known.contains_key(&shape) {
            if self.known.len() >= KEPT {
                self.known.clear();
            }
            self.known.insert(shape.clone(), device.capture(launches)?);
            self.recorded += 1;
        }
        if let Some(graph) = self.known.get_mut(&shape) {
            // SAFETY: the caller vouches for the memory.
            unsafe { device.replay(graph)? };
            self.launched += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::filled;

    #[test]
    fn rows_are_filled_up_to_few_sizes() {
        let sizes: std::collections::BTreeSet<usize> = (1..=super::MOST_ROWS).map(filled).collect();
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]);
        assert!((1..=super::MOST_ROWS).all(|rows| filled(rows) >= rows));
    }
}
