//! Passes as CUDA graphs: recorded once for a shape, launched as one graph from then on.
//!
//! What a pass launches follows from its shape: its rows, filled up to a few sizes, the frames of attention's work lists, the
//! lengths of its other lists. Everything else about it (ids, positions, blocks, thresholds) is in the inputs, at places that
//! follow from the shape. So one graph serves all passes of a shape, however long contexts are and whatever they share.

use crate::Result;
use crate::cuda::{Device, Graph};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Rows of a decode step's graph, at most: what a step of many requests has.
pub const MOST_ROWS: usize = 256;

/// What is recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct GraphKind {
    /// Graphs that are kept, those that were launched last. A longer context doubles into new shapes; old ones are not worth their
    /// memory for ever.
    kept: usize,
    /// Whether a shape must have been seen before it is recorded. As many shapes are remembered for that as graphs are kept.
    seen_before: bool,
    /// Launches of a layer, at most, and of everything before and behind the layers.
    launches: [u64; 2],
}

/// Decode steps come in few shapes, which are there again at the next token.
pub(super) const STEPS: GraphKind = GraphKind { kept: 96, seen_before: false, launches: [13, 12] };
/// Rewards with gradients come in many shapes, some of them once only.
pub(super) const GRADIENTS: GraphKind = GraphKind { kept: 32, seen_before: true, launches: [30, 20] };

/// What is set aside for a graph and for each of its launches: some kilobytes of parameters and of what the driver keeps to
/// start them. A guess on the safe side, not measured yet.
const GRAPH: u64 = 64 << 10;
const LAUNCH: u64 = 4 << 10;

impl GraphKind {
    /// Bytes that are set aside for as many graphs as are kept, of a model of so many layers.
    pub fn bytes(&self, layers: usize) -> u64 {
        let [each, others] = self.launches;
        self.kept as u64 * (GRAPH + LAUNCH * (each * layers as u64 + others))
    }
}

/// Where a buffer is. Its length too: it is a parameter of launches, and what has grown may be where something smaller was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BufferAddress {
    pub address: u64,
    pub len: usize,
}

/// Passes that were launched as graphs, and graphs that were recorded for them.
#[derive(Debug, Default)]
pub(super) struct GraphCounts {
    launched: AtomicU64,
    recorded: AtomicU64,
}

impl GraphCounts {
    fn get(&self) -> (u64, u64) {
        (self.launched.load(Relaxed), self.recorded.load(Relaxed))
    }
}

/// How a pair's passes are launched: a switch and counters, shared with whoever opened it.
#[derive(Debug, Default)]
pub struct Launches {
    graphs: AtomicBool,
    pub(super) steps: GraphCounts,
    pub(super) gradients: GraphCounts,
    planned_ahead: AtomicU64,
}

impl Launches {
    pub(super) fn new(graphs: bool) -> Self {
        Launches { graphs: AtomicBool::new(graphs), ..Launches::default() }
    }

    /// Launches decode steps and rewards with gradients as graphs from now on, or every kernel by itself.
    pub fn use_graphs(&self, graphs: bool) {
        self.graphs.store(graphs, Relaxed);
    }

    pub(super) fn uses_graphs(&self) -> bool {
        self.graphs.load(Relaxed)
    }

    /// Decode steps that were launched as graphs, and graphs that were recorded for them.
    pub fn graphs(&self) -> (u64, u64) {
        self.steps.get()
    }

    /// The same of rewards with gradients.
    pub fn gradient_graphs(&self) -> (u64, u64) {
        self.gradients.get()
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
pub(super) struct Graphs<S> {
    kind: GraphKind,
    known: Recent<S, Graph>,
    /// Shapes that were there once, and were not recorded.
    seen: Recent<S, ()>,
}

/// Values by key, the one that was used longest ago first. There are few, so they are searched one by one.
struct Recent<K, V>(Vec<(K, V)>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent(Vec::new())
    }
}

impl<K: PartialEq, V> Recent<K, V> {
    /// The value of a key, used last from now on.
    fn get(&mut self, key: &K) -> Option<&mut V> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        self.0[at..].rotate_left(1);
        self.0.last_mut().map(|(_, value)| value)
    }

    /// Forgets a key, and whether it was there.
    fn remove(&mut self, key: &K) -> bool {
        let before = self.0.len();
        self.0.retain(|(known, _)| known != key);
        self.0.len() < before
    }

    /// A new key's value. If there are `most` already, the first gives way to it.
    fn insert(&mut self, key: K, value: V, most: usize) -> &mut V {
        if self.0.len() >= most.max(1) {
            self.0.remove(0);
        }
        self.0.push((key, value));
        let last = self.0.len() - 1;
        &mut self.0[last].1
    }
}

/// Rows of the smallest graph of a decode step that holds `rows`: a power of two, and beyond 64, where rows begin to cost, a
/// multiple of 32.
pub(super) fn padded_rows(rows: usize) -> usize {
    if rows <= 64 { rows.next_power_of_two() } else { rows.next_multiple_of(32) }
}

impl<S: PartialEq> Graphs<S> {
    pub fn new(kind: GraphKind) -> Self {
        Graphs { kind, known: Recent::default(), seen: Recent::default() }
    }

    /// Launches the graph of a shape; if there is none yet, records what `launches` queues, or queues it as it is.
    ///
    /// # Safety
    ///
    /// `launches` writes and reads the same memory for every pass of a shape, that memory lives as long as this and the device,
    /// or its place is in the shape, and it is the caller's alone.
    pub unsafe fn run(
        &mut self,
        device: &Device,
        shape: S,
        tally: &GraphCounts,
        launches: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let kept = self.kind.kept;
        if let Some(graph) = self.known.get(&shape) {
            // SAFETY: the caller vouches for the memory.
            unsafe { device.replay(graph)? };
        } else if self.kind.seen_before && !self.seen.remove(&shape) {
            self.seen.insert(shape, (), kept);
            return launches();
        } else {
            let graph = device.capture(launches)?;
            device.upload(&graph)?;
            tally.recorded.fetch_add(1, Relaxed);
            // SAFETY: as above.
            unsafe { device.replay(self.known.insert(shape, graph, kept))? };
        }
        tally.launched.fetch_add(1, Relaxed);
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
            if recent.get(&key).is_none() {
                made.push(key);
                recent.insert(key, 10 * key, 3);
            }
            assert_eq!(recent.get(&key), Some(&mut (10 * key)));
        };
        [1, 2, 3, 1, 4, 1, 3, 4, 2, 3].into_iter().for_each(&mut get);
        assert_eq!(made, [1, 2, 3, 4, 2], "4 takes the place of 2, and 2 that of 1; 3 stays");
        assert_eq!(recent.0, [(4, 40), (2, 20), (3, 30)]);
    }

    /// The hidden states that are kept have grown, and are where fewer of them were before.
    #[test]
    fn a_graph_is_of_a_buffer_at_its_place_and_of_its_length() {
        let shape =
            |rows: usize| [BufferAddress { address: 256, len: 64 }, BufferAddress { address: 4096, len: 64 * rows }];
        let mut graphs = Recent::default();
        let mut recorded = |rows| match graphs.get(&shape(rows)) {
            Some(known) => *known,
            None => *graphs.insert(shape(rows), rows, STEPS.kept),
        };
        assert_eq!([64, 128, 64].map(&mut recorded), [64, 128, 64]);
    }
}
