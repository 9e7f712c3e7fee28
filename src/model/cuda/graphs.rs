//! Decode steps as CUDA graphs: recorded the first time a shape occurs, launched as one graph from then on.
//!
//! A step of single tokens has a shape: its rows, padded to a few sizes, the frames of attention's work lists, the length of
//! lists of logits. Everything else about it (ids, positions, blocks, thresholds) is in the inputs, at places that follow
//! from the shape. So one graph serves all steps of a shape, however long contexts are and whatever they share.

use crate::Result;
use crate::cuda::ops::attention::Frame;
use crate::cuda::{Device, Graph};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Rows of a graph, at most: what a decode step of many requests has.
pub const MOST_ROWS: usize = 256;
/// Graphs that are kept, those that were launched last. A longer context doubles into new shapes; old ones are not worth their
/// memory for ever.
pub const KEPT: usize = 96;

/// What must agree for one graph to serve two steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Rows, padding included.
    pub rows: usize,
    /// Length of each row's list of largest logits.
    pub stride: usize,
    /// Bound of the ids in these lists.
    pub ids_below: usize,
    /// Of attention's work, per distinct window.
    pub frames: Vec<Frame>,
    /// Of the buffers that may have moved or grown since.
    pub places: [Place; 2],
}

/// Where a buffer is. Its length too: it is a parameter of launches, and what has grown may be where something smaller was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub address: u64,
    pub len: usize,
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
    known: Recent<Shape, Graph>,
}

/// Values by key, the one that was used longest ago first. There are few, so they are searched one by one.
struct Recent<K, V>(Vec<(K, V)>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent(Vec::new())
    }
}

impl<K: PartialEq, V> Recent<K, V> {
    /// The value of a key, made now if there is none. If there are `most` already, the first gives way to it.
    fn get(&mut self, key: K, most: usize, make: impl FnOnce() -> Result<V>) -> Result<&mut V> {
        match self.0.iter().position(|(known, _)| *known == key) {
            Some(at) => self.0[at..].rotate_left(1),
            None => {
                let made = make()?;
                if self.0.len() >= most.max(1) {
                    self.0.remove(0);
                }
                self.0.push((key, made));
            }
        }
        let last = self.0.len() - 1;
        Ok(&mut self.0[last].1)
    }
}

/// What is set aside for a graph and for each of its launches: some kilobytes of parameters and of what the driver keeps to
/// start them. A guess on the safe side, not measured yet.
const GRAPH: u64 = 64 << 10;
const LAUNCH: u64 = 4 << 10;
/// Launches of a layer, at most, and of everything behind the layers: embedding, norm, head and lists.
const LAUNCHES: [u64; 2] = [13, 12];

/// Rows of the smallest graph that holds `rows`: a power of two, and beyond 64, where rows begin to cost, a multiple of 32.
pub(super) fn padded_rows(rows: usize) -> usize {
    if rows <= 64 { rows.next_power_of_two() } else { rows.next_multiple_of(32) }
}

impl Graphs {
    /// Bytes that are set aside for as many graphs as are kept, of a model of so many layers.
    pub fn bytes(layers: usize) -> u64 {
        let [each, others] = LAUNCHES;
        KEPT as u64 * (GRAPH + LAUNCH * (each * layers as u64 + others))
    }

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
        let graph = self.known.get(shape, KEPT, || {
            let graph = device.capture(launches)?;
            device.upload(&graph)?;
            counts.recorded.fetch_add(1, Relaxed);
            Ok(graph)
        })?;
        // SAFETY: the caller vouches for the memory.
        unsafe { device.replay(graph)? };
        counts.launched.fetch_add(1, Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_few_sizes() {
        let sizes: std::collections::BTreeSet<usize> = (1..=super::MOST_ROWS).map(padded_rows).collect();
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]);
        assert!((1..=super::MOST_ROWS).all(|rows| padded_rows(rows) >= rows));
    }

    #[test]
    fn what_was_used_longest_ago_gives_way() {
        let (mut recent, mut made) = (Recent::default(), Vec::new());
        let mut get = |key: u32| {
            let value = recent.get(key, 3, || {
                made.push(key);
                Ok(10 * key)
            });
            assert_eq!(*value.unwrap(), 10 * key);
        };
        [1, 2, 3, 1, 4, 1, 3, 4, 2, 3].into_iter().for_each(&mut get);
        assert_eq!(made, [1, 2, 3, 4, 2], "4 takes the place of 2, and 2 that of 1; 3 stays");
        assert!(recent.get(9, 3, || Err(crate::Error::invalid("no"))).is_err());
        assert_eq!(recent.0, [(4, 40), (2, 20), (3, 30)], "what cannot be made takes no place");
    }

    /// The hidden states that are kept have grown, and are where fewer of them were before.
    #[test]
    fn a_graph_is_of_a_buffer_at_its_place_and_of_its_length() {
        let shape = |rows: usize| Shape {
            rows: 1,
            stride: 0,
            ids_below: 100,
            frames: Vec::new(),
            places: [Place { address: 256, len: 64 }, Place { address: 4096, len: 64 * rows }],
        };
        let mut graphs = Recent::default();
        let mut recorded = |rows| *graphs.get(shape(rows), KEPT, || Ok(rows)).unwrap();
        assert_eq!([64, 128, 64].map(&mut recorded), [64, 128, 64]);
    }
}
