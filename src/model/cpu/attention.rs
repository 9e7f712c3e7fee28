//! Causal attention over paged keys and values, and its gradient for the last positions of a sequence.
//!
//! Queries are taken in tiles of a few positions times the query heads of one key/value head, so that a block of keys is
//! read once for all of them. Masked scores become probability 0, and sums run over absolute positions in order: what a
//! row yields does not depend on the tile it is in.

use super::elementwise;
use super::product::{self, Left};
use super::rounding::Rounding;
use super::rows::StoredRows;
use crate::files::config::ModelConfig;
use crate::kv::{BLOCK, BlockCopy, BlockId};
use rayon::prelude::*;

/// Keys and values of one model: per block, layer and key/value head `[BLOCK, head_dim]` keys, then values.
pub(super) struct KvStore {
    blocks: Vec<Box<[f32]>>,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
}

impl KvStore {
    pub fn new(config: &ModelConfig) -> Self {
        KvStore {
            blocks: Vec::new(),
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            layers: config.num_layers,
        }
    }

    /// Makes room for blocks below `count`. Storage is kept for later sequences.
    pub fn grow(&mut self, count: usize) {
        let size = self.layers * 2 * self.kv_heads * BLOCK * self.head_dim;
        while self.blocks.len() < count {
            self.blocks.push(vec![0.0; size].into_boxed_slice());
        }
    }

    /// Copies the first positions of a block.
    pub fn copy(&mut self, copy: BlockCopy) {
        let (from, to) = (copy.from.0 as usize, copy.to.0 as usize);
        let mut target = std::mem::take(&mut self.blocks[to]);
        let (tile, used) = (BLOCK * self.head_dim, copy.positions * self.head_dim);
        for (t, s) in target.chunks_exact_mut(tile).zip(self.blocks[from].chunks_exact(tile)) {
            t[..used].copy_from_slice(&s[..used]);
        }
        self.blocks[to] = target;
    }

    /// Stores key and value rows `[kv_heads * head_dim]` of one position.
    pub fn write(&mut self, blocks: &[BlockId], layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let (e, at) = (self.head_dim, position % BLOCK);
        let block = blocks[position / BLOCK];
        for head in 0..self.kv_heads {
            for (is_value, row) in [(false, key), (true, value)] {
                let offset = self.offset(layer, head, is_value) + at * e;
                self.blocks[block.0 as usize][offset..offset + e].copy_from_slice(&row[head * e..(head + 1) * e]);
            }
        }
    }

    fn offset(&self, layer: usize, head: usize, values: bool) -> usize {
        ((layer * 2 + usize::from(values)) * self.kv_heads + head) * BLOCK * self.head_dim
    }

    /// The first `count` keys or values of a block.
    fn tile(&self, block: BlockId, layer: usize, head: usize, values: bool, count: usize) -> StoredRows<'_> {
        let offset = self.offset(layer, head, values);
        let data = &self.blocks[block.0 as usize][offset..offset + count * self.head_dim];
        StoredRows::computed(data, self.head_dim, count, self.head_dim)
    }
}

/// The queries of one sequence in one layer.
pub(super) struct Queries<'a> {
    pub store: &'a KvStore,
    pub layer: usize,
    pub blocks: &'a [BlockId],
    /// Position of each query row, ascending.
    pub positions: &'a [usize],
    pub heads: usize,
    /// Keys a query sees, itself included.
    pub window: Option<usize>,
    /// `[positions, heads * head_dim]`, rotated.
    pub q: &'a [f32],
    pub rounding: Rounding,
}

/// Scores of one tile are kept below this many floats, so that they stay in the second-level cache.
const TILE_SCORES: usize = 1 << 16;

/// Most positions in one tile.
const TILE_ROWS: usize = 16;

/// Multiply-adds from which tiles are spread over the cores.
const PARALLEL_FROM: usize = 1 << 18;

/// Unnormalised probabilities of one tile: `rows * group` rows over the positions of blocks `first .. last`.
struct Probabilities {
    p: Vec<f32>,
    sums: Vec<f32>,
    first: usize,
    last: usize,
    end: usize,
}

impl Probabilities {
    fn width(&self) -> usize {
        (self.last - self.first) * BLOCK
    }

    /// Positions of block `b` that the tile may look at.
    fn count(&self, b: usize) -> usize {
        BLOCK.min(self.end - b * BLOCK)
    }
}

/// Calls `run` for the queries of each sequence with what goes with them, on all cores if there is enough to do.
pub(super) fn for_each_sequence<'a, T: Send, R: Send>(
    sequences: Vec<(Queries<'a>, T)>,
    run: impl Fn(Queries<'a>, T) -> R + Sync + Send,
) -> Vec<R> {
    let work: usize = sequences.iter().map(|(queries, _)| queries.multiply_adds()).sum();
    if work < PARALLEL_FROM {
        return sequences.into_iter().map(|(queries, with)| run(queries, with)).collect();
    }
    sequences.into_par_iter().map(|(queries, with)| run(queries, with)).collect()
}

impl Queries<'_> {
    fn group(&self) -> usize {
        self.heads / self.store.kv_heads
    }

    fn lowest(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }

    /// `(first row, one past the last)` of every tile. Tiles only bound memory; results do not depend on them.
    fn tiles(&self) -> Vec<(usize, usize)> {
        let mut tiles = Vec::new();
        let mut from = 0;
        while from < self.positions.len() {
            let width = self.positions[from] + TILE_ROWS - self.lowest(self.positions[from]);
            let rows = (TILE_SCORES / (width * self.group())).clamp(1, TILE_ROWS);
            let to = (from + rows).min(self.positions.len());
            tiles.push((from, to));
            from = to;
        }
        tiles
    }

    fn multiply_adds(&self) -> usize {
        let seen: usize = self.positions.iter().map(|&p| p + 1 - self.lowest(p)).sum();
        2 * seen * self.heads * self.store.head_dim
    }

    /// Rows `from .. to` of `values` for the query heads of `head`, as `[(to - from) * group, head_dim]`.
    fn gather(&self, values: &[f32], head: usize, from: usize, to: usize, scale: f32) -> Vec<f32> {
        let (e, g) = (self.store.head_dim, self.group());
        let row = self.heads * e;
        let mut out = Vec::with_capacity((to - from) * g * e);
        for r in from..to {
            out.extend(values[r * row + head * g * e..][..g * e].iter().map(|v| v * scale));
        }
        out
    }

    fn scale(&self) -> f32 {
        1.0 / (self.store.head_dim as f32).sqrt()
    }

    fn probabilities(&self, head: usize, from: usize, to: usize) -> Probabilities {
        let (e, g) = (self.store.head_dim, self.group());
        let q = self.gather(self.q, head, from, to, self.scale());
        let end = self.positions[to - 1] + 1;
        let (first, last) = (self.lowest(self.positions[from]) / BLOCK, end.div_ceil(BLOCK));
        let rows = (to - from) * g;
        let mut out =
            Probabilities { p: vec![0.0; rows * (last - first) * BLOCK], sums: vec![0.0; rows], first, last, end };
        let width = out.width();
        let q = Left::new(&q, e, rows, e);
        for b in first..last {
            let keys = self.store.tile(self.blocks[b], self.layer, head, false, out.count(b));
            product::matmul_nt(&mut out.p[(b - first) * BLOCK..], width, &q, keys);
        }
        for (i, row) in out.p.chunks_exact_mut(width).enumerate() {
            let position = self.positions[from + i / g];
            let lowest = self.lowest(position);
            let origin = first * BLOCK;
            // The lanes of the sum are counted from the row's own first block, whatever tile the row is in.
            let begin = lowest / BLOCK * BLOCK - origin;
            row[..begin].fill(0.0);
            row[begin..lowest - origin].fill(f32::NEG_INFINITY);
            row[position + 1 - origin..].fill(0.0);
            let seen = &mut row[begin..position + 1 - origin];
            let max = elementwise::largest(seen);
            out.sums[i] = elementwise::exp_and_sum(seen, max);
        }
        out
    }

    fn weighted_values(&self, p: &Probabilities, head: usize, rows: usize) -> Vec<f32> {
        let e = self.store.head_dim;
        let mut out = vec![0.0; rows * e];
        for b in p.first..p.last {
            let values = self.store.tile(self.blocks[b], self.layer, head, true, p.count(b));
            product::matmul_nn(&mut out, e, &p.p[(b - p.first) * BLOCK..], p.width(), rows, values);
        }
        for (row, sum) in out.chunks_exact_mut(e).zip(&p.sums) {
            let scale = 1.0 / sum;
            row.iter_mut().for_each(|v| *v *= scale);
        }
        out
    }

    /// `softmax(q k^T / sqrt(head_dim)) v` into `out`, shaped like `q`.
    pub fn forward(&self, out: &mut [f32]) {
        let (e, g) = (self.store.head_dim, self.group());
        let run = |&(head, (from, to)): &(usize, (usize, usize))| {
            let mut p = self.probabilities(head, from, to);
            self.rounding.apply(&mut p.p);
            self.weighted_values(&p, head, (to - from) * g)
        };
        let tiles = self.tiles();
        let jobs: Vec<_> = (0..self.store.kv_heads).flat_map(|h| tiles.iter().map(move |&t| (h, t))).collect();
        let results: Vec<Vec<f32>> = if self.multiply_adds() < PARALLEL_FROM {
            jobs.iter().map(run).collect()
        } else {
            jobs.par_iter().map(run).collect()
        };
        for (&(head, (from, to)), result) in jobs.iter().zip(results) {
            for (r, row) in (from..to).zip(result.chunks_exact(g * e)) {
                out[(r * self.heads + head * g) * e..][..g * e].copy_from_slice(row);
            }
        }
    }

    /// Gradients of [`forward`](Self::forward): `dq` shaped like `q`, and `dk`, `dv` `[kept, kv_heads * head_dim]` for the
    /// positions `kept_from ..` only. Keys and values before it are constants.
    pub fn backward(
        &self,
        out: &[f32],
        d_out: &[f32],
        kept_from: usize,
        kept: usize,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (e, g, kv) = (self.store.head_dim, self.group(), self.store.kv_heads);
        let tiles = self.tiles();
        let run = |head: usize| self.backward_head(head, &tiles, out, d_out, kept_from, kept);
        let results: Vec<_> = if self.multiply_adds() < PARALLEL_FROM {
            (0..kv).map(run).collect()
        } else {
            (0..kv).into_par_iter().map(run).collect()
        };
        let mut dq = vec![0.0; self.q.len()];
        let (mut dk, mut dv) = (vec![0.0; kept * kv * e], vec![0.0; kept * kv * e]);
        for (head, (q, k, v)) in results.into_iter().enumerate() {
            for (r, row) in q.chunks_exact(g * e).enumerate() {
                dq[(r * self.heads + head * g) * e..][..g * e].copy_from_slice(row);
            }
            for (all, part) in [(&mut dk, k), (&mut dv, v)] {
                for (r, row) in part.chunks_exact(e).enumerate() {
                    all[(r * kv + head) * e..][..e].copy_from_slice(row);
                }
            }
        }
        (dq, dk, dv)
    }

    /// One key/value head: with `P` the probabilities, `dP = dO V^T` and `dS = P (dP - sum(dO O))`,
    /// `dQ = dS K`, `dK = dS^T Q`, `dV = P^T dO`, summed over rows first to last, then over the heads of the group.
    fn backward_head(
        &self,
        head: usize,
        tiles: &[(usize, usize)],
        out: &[f32],
        d_out: &[f32],
        kept_from: usize,
        kept: usize,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (e, g) = (self.store.head_dim, self.group());
        let mut dq = vec![0.0; self.positions.len() * g * e];
        let (mut dk, mut dv) = (vec![0.0; kept * e], vec![0.0; kept * e]);
        for &(from, to) in tiles {
            let rows = (to - from) * g;
            let mut p = self.probabilities(head, from, to);
            let width = p.width();
            let q = self.gather(self.q, head, from, to, self.scale());
            let o = self.gather(out, head, from, to, 1.0);
            let d_o = self.gather(d_out, head, from, to, 1.0);
            let mut ds = vec![0.0; rows * width];
            let left = Left::new(&d_o, e, rows, e);
            for b in p.first..p.last {
                let values = self.store.tile(self.blocks[b], self.layer, head, true, p.count(b));
                product::matmul_nt(&mut ds[(b - p.first) * BLOCK..], width, &left, values);
            }
            for i in 0..rows {
                let along = elementwise::dot(&o[i * e..(i + 1) * e], &d_o[i * e..(i + 1) * e]);
                let scale = 1.0 / p.sums[i];
                for (s, p) in ds[i * width..(i + 1) * width].iter_mut().zip(&mut p.p[i * width..(i + 1) * width]) {
                    *p *= scale;
                    *s = *p * (*s - along);
                }
            }
            self.rounding.apply(&mut p.p);
            self.rounding.apply(&mut ds);
            let dq_tile = &mut dq[from * g * e..to * g * e];
            for b in p.first..p.last {
                let keys = self.store.tile(self.blocks[b], self.layer, head, false, p.count(b));
                product::matmul_nn(dq_tile, e, &ds[(b - p.first) * BLOCK..], width, rows, keys);
            }
            let scale = self.scale();
            dq_tile.iter_mut().for_each(|v| *v *= scale);
            for i in 0..rows {
                let position = self.positions[from + i / g];
                for j in kept_from.max(self.lowest(position))..=position {
                    let (at, to) = (i * width + j - p.first * BLOCK, (j - kept_from) * e);
                    elementwise::axpy(&mut dk[to..to + e], ds[at], &q[i * e..(i + 1) * e]);
                    elementwise::axpy(&mut dv[to..to + e], p.p[at], &d_o[i * e..(i + 1) * e]);
                }
            }
        }
        (dq, dk, dv)
    }
}
