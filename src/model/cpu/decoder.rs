//! One decoder: embedding, layers, final norm; forward on any rows of any sequences, backward on the last rows.
//!
//! In the last layer only the rows that are asked for go beyond their key and value: queries, attention and MLP of the
//! others would be thrown away.

use super::attention::{self, KvStore, Queries};
use super::ops::{self, Rotation};
use super::rounding::Rounding;
use super::weights::{Layer, Weights};
use crate::Result;
use crate::files::checkpoint::Checkpoint;
use crate::files::config::ModelConfig;
use crate::kv::{BlockCopy, BlockId, KvPool};
use crate::model::spans::CheckedSpan;
use crate::profile;
use std::ops::Range;

/// A model with its sequences.
pub(super) struct Decoder {
    pub config: ModelConfig,
    pub weights: Weights,
    pub kv: KvPool,
    pub store: KvStore,
    frequencies: Vec<f64>,
    rounding: Rounding,
    /// Token positions that went through [`forward`](Self::forward).
    pub forwarded: u64,
    /// Token positions that went through [`backward`](Self::backward).
    pub differentiated: u64,
}

/// Consecutive rows of a batch that belong to one sequence, whose blocks already have room for them.
pub(super) struct SequenceRows<'a> {
    pub blocks: &'a [BlockId],
    pub start: usize,
    pub ids: &'a [u32],
}

/// What the backward pass needs of a forward pass. Rows are all rows of the batch, except that the last layer keeps its
/// query side for the live rows only. Normed inputs and probabilities are computed again: cheaper than keeping them.
#[derive(Default)]
pub(super) struct Tape {
    layers: Vec<LayerTape>,
    output: Vec<f32>, // [live, d] residual stream after the last layer
}

#[derive(Default)]
struct LayerTape {
    input: Vec<f32>,  // [rows, d] residual stream
    k_raw: Vec<f32>,  // [rows, kv e] before the head norm, if there is one
    q_raw: Vec<f32>,  // [live, h e] likewise
    q: Vec<f32>,      // [live, h e] rotated
    a: Vec<f32>,      // [live, h e] attention output
    middle: Vec<f32>, // [live, d] residual stream between attention and MLP
    gate: Vec<f32>,   // [live, f]
    up: Vec<f32>,     // [live, f]
}

/// Rows `which` of `values`, each `width` long.
fn gather(values: &[f32], width: usize, which: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(which.len() * width);
    for &row in which {
        out.extend_from_slice(&values[row * width..(row + 1) * width]);
    }
    out
}

impl Decoder {
    pub fn load(
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        rounding: Rounding,
        blocks: Option<usize>,
    ) -> Result<Self> {
        Ok(Decoder {
            weights: Weights::load(config, checkpoint, rounding)?,
            kv: KvPool::new(blocks.unwrap_or(usize::MAX)),
            store: KvStore::new(config),
            frequencies: config.rope.frequencies(config.head_dim),
            config: config.clone(),
            rounding,
            forwarded: 0,
            differentiated: 0,
        })
    }

    /// Makes room for a span and copies the block that it may not write to.
    pub fn append(&mut self, span: &CheckedSpan<'_>) -> Result<()> {
        let copy = self.kv.append(span.seq, span.ids.len())?;
        self.took_blocks(copy);
        Ok(())
    }

    /// Sequences took blocks: makes storage for them, and the copy that is asked for.
    pub fn took_blocks(&mut self, copy: Option<BlockCopy>) {
        self.store.grow(self.kv.high_water());
        if let Some(copy) = copy {
            self.store.copy(copy);
        }
    }

    /// Runs all rows of `pieces` through the decoder and returns the residual stream of the `live` rows (ascending) after
    /// the last layer, `[live, hidden]`.
    pub fn forward(&mut self, pieces: &[SequenceRows<'_>], live: &[usize], mut tape: Option<&mut Tape>) -> Vec<f32> {
        let Decoder { config, weights, store, frequencies, forwarded, .. } = self;
        let rounding = self.rounding;
        let eps = config.rms_norm_eps;
        let (d, kvd, qd) =
            (config.hidden_size, config.num_kv_heads * config.head_dim, config.num_heads * config.head_dim);
        let positions = row_positions(pieces);
        let all: Vec<usize> = (0..positions.len()).collect();
        *forwarded += positions.len() as u64;
        let rotation = Rotation::at(&positions, frequencies);

        let mut x = vec![0.0; positions.len() * d];
        let ids = pieces.iter().flat_map(|p| p.ids);
        for (row, &id) in x.chunks_exact_mut(d).zip(ids) {
            weights.embedding.view().row_to(id as usize, row);
        }
        let mut spares = ops::Spares::default();
        for (index, layer) in weights.layers.iter().enumerate() {
            let _range = profile::layer(index);
            let last = index + 1 == weights.layers.len();
            let rows = if last { live } else { &all };
            let mut kept = LayerTape::default();

            let normed = normed_rows(&x, &layer.attention_norm, eps, rounding);
            // All queries, or those of the live rows behind the keys and values.
            let together = rows.len() == positions.len();
            let (q, k, v) = if together {
                let [q, k, v] = ops::gemms(&mut spares, &normed, positions.len(), [&layer.q, &layer.k, &layer.v]);
                (q, k, v)
            } else {
                let [k, v] = ops::gemms(&mut spares, &normed, positions.len(), [&layer.k, &layer.v]);
                (Vec::new(), k, v)
            };
            let (mut k, v) = (rounding.of(k), rounding.of(v));
            if tape.is_some() && layer.k_norm.is_some() {
                kept.k_raw = k.clone();
            }
            if let Some(weight) = &layer.k_norm {
                ops::rmsnorm_in_place(&mut k, weight, eps);
            }
            let mut row = 0;
            for piece in pieces {
                for position in piece.start..piece.start + piece.ids.len() {
                    let at = row * kvd..(row + 1) * kvd;
                    rotation.apply(row, &mut k[at.clone()]);
                    rounding.apply(&mut k[at.clone()]);
                    store.write(piece.blocks, index, position, &k[at.clone()], &v[at]);
                    row += 1;
                }
            }

            if tape.is_some() {
                kept.input = x.clone();
            }
            let normed = if last { gather(&normed, d, rows) } else { normed };
            if last {
                x = gather(&x, d, rows);
            }
            let mut q = rounding.of(if together { q } else { ops::gemm(&mut spares, &normed, rows.len(), &layer.q) });
            if tape.is_some() && layer.q_norm.is_some() {
                kept.q_raw = q.clone();
            }
            if let Some(weight) = &layer.q_norm {
                ops::rmsnorm_in_place(&mut q, weight, eps);
            }
            for (&row, heads) in rows.iter().zip(q.chunks_exact_mut(qd)) {
                rotation.apply(row, heads);
            }
            rounding.apply(&mut q);
            let mut a = vec![0.0; rows.len() * qd];
            let row_positions: Vec<usize> = rows.iter().map(|&r| positions[r]).collect();
            let (mut sequences, mut left) = (Vec::new(), &mut a[..]);
            for (piece, _, own) in pieces_of(pieces, rows) {
                let (out, rest) = left.split_at_mut(own.len() * qd);
                left = rest;
                let q = &q[own.start * qd..own.end * qd];
                sequences.push((queries(config, store, rounding, index, piece.blocks, &row_positions[own], q), out));
            }
            attention::for_each_sequence(sequences, |queries, out| queries.forward(out));
            rounding.apply(&mut a);
            let o = ops::gemm(&mut spares, &a, rows.len(), &layer.o);
            ops::add(&mut x, &o);
            spares.put(o);

            let normed = normed_rows(&x, &layer.mlp_norm, eps, rounding);
            let [gate, up] = ops::gemms(&mut spares, &normed, rows.len(), [&layer.gate, &layer.up]);
            let (mut act, up) = (rounding.of(gate), rounding.of(up));
            let gate = if tape.is_some() { act.clone() } else { Vec::new() };
            ops::swiglu(&mut act, &up);
            rounding.apply(&mut act);
            let down = ops::gemm(&mut spares, &act, rows.len(), &layer.down);
            let middle = if tape.is_some() { x.clone() } else { Vec::new() };
            ops::add(&mut x, &down);
            for values in [k, v, act, down] {
                spares.put(values);
            }
            match tape.as_deref_mut() {
                Some(tape) => tape.layers.push(LayerTape { q, a, middle, gate, up, ..kept }),
                None => [q, up].into_iter().for_each(|values| spares.put(values)),
            }
        }
        if let Some(tape) = tape {
            tape.output = x.clone();
        }
        x
    }

    /// The final norm.
    pub fn hidden(&self, x: &[f32]) -> Vec<f32> {
        self.rounding.of(ops::rmsnorm(x, &self.weights.final_norm, self.config.rms_norm_eps))
    }

    /// The head on normed rows: `[rows, vocabulary]` logits, or `[rows, 1]` rewards.
    pub fn head(&self, hidden: &[f32]) -> Vec<f32> {
        let rows = hidden.len() / self.config.hidden_size;
        let mut y = vec![0.0; rows * self.weights.head.rows];
        ops::matmul(&mut y, hidden, rows, &self.weights.head);
        if let Some(bias) = self.weights.score_bias {
            y.iter_mut().for_each(|score| *score += bias);
        }
        y
    }

    /// Gradient of the scores of the live rows `lasts` (indices into `live`, one per piece) with respect to the input
    /// embeddings of the batch rows `wanted` (ascending): `[wanted, hidden]`. The pieces are those that `tape` was recorded
    /// with; positions before them are constants.
    pub fn backward(
        &mut self,
        pieces: &[SequenceRows<'_>],
        live: &[usize],
        tape: &Tape,
        lasts: &[usize],
        wanted: &[usize],
    ) -> Vec<f32> {
        let Decoder { config, weights, store, frequencies, differentiated, .. } = self;
        let rounding = self.rounding;
        let d = config.hidden_size;
        let positions = row_positions(pieces);
        let all: Vec<usize> = (0..positions.len()).collect();
        *differentiated += positions.len() as u64;
        let rotation = Rotation::at(&positions, frequencies);

        let mut score = vec![0.0; d];
        weights.head.view().row_to(0, &mut score);
        let output = gather(&tape.output, d, lasts);
        let mut grad =
            ops::rmsnorm_backward(&score.repeat(lasts.len()), &output, &weights.final_norm, config.rms_norm_eps);
        // Rows whose gradient is not zero: at the top only the scored ones.
        let mut active: Vec<usize> = lasts.iter().map(|&l| live[l]).collect();
        for (index, layer) in weights.layers.iter().enumerate().rev() {
            let _range = profile::layer(index);
            let top = index + 1 == weights.layers.len();
            let pass = LayerBackward {
                config,
                store,
                rounding,
                index,
                layer,
                pieces,
                positions: &positions,
                rotation: &rotation,
                kept: &tape.layers[index],
                active: &active,
                // The last layer's tape has the live rows only.
                taped: if top { lasts } else { &active },
            };
            // Nothing below the first layer is asked for but the wanted rows.
            let needed = if index == 0 { wanted } else { &all };
            grad = pass.run(&grad, needed);
            active = needed.to_vec();
        }
        grad
    }
}

/// The backward pass of one layer.
struct LayerBackward<'a> {
    config: &'a ModelConfig,
    store: &'a KvStore,
    rounding: Rounding,
    index: usize,
    layer: &'a Layer,
    pieces: &'a [SequenceRows<'a>],
    positions: &'a [usize],
    rotation: &'a Rotation,
    kept: &'a LayerTape,
    /// Batch rows with an output gradient.
    active: &'a [usize],
    /// The same rows, as rows of the query side of the tape.
    taped: &'a [usize],
}

impl LayerBackward<'_> {
    /// Gradient of the residual stream before the layer in the rows `needed`, given the one behind it in `active`.
    fn run(&self, grad: &[f32], needed: &[usize]) -> Vec<f32> {
        let (layer, kept, d, eps) = (self.layer, self.kept, self.config.hidden_size, self.config.rms_norm_eps);
        let rounding = self.rounding;
        let (f, qd) = (self.config.intermediate_size, self.config.num_heads * self.config.head_dim);
        let rows = self.active.len();

        let mut d_act = vec![0.0; rows * f];
        ops::gemm_backward(&mut d_act, &rounding.copy(grad), rows, &layer.down);
        let (mut d_gate, mut d_up) = (gather(&kept.gate, f, self.taped), gather(&kept.up, f, self.taped));
        ops::swiglu_backward(&mut d_gate, &mut d_up, &d_act);
        rounding.apply(&mut d_gate);
        rounding.apply(&mut d_up);
        let mut d_normed = vec![0.0; rows * d];
        ops::gemm_backward(&mut d_normed, &d_gate, rows, &layer.gate);
        ops::gemm_backward(&mut d_normed, &d_up, rows, &layer.up);
        let middle = gather(&kept.middle, d, self.taped);
        let mut d_middle = ops::rmsnorm_backward(&d_normed, &middle, &layer.mlp_norm, eps);
        ops::add(&mut d_middle, grad);

        let mut d_a = vec![0.0; rows * qd];
        ops::gemm_backward(&mut d_a, &rounding.copy(&d_middle), rows, &layer.o);
        rounding.apply(&mut d_a);
        let (dq, dk, dv) = self.attention(&d_a, needed);

        // Query gradients of active rows, key and value gradients of all: each needed row collects what it has.
        let mut d_normed = vec![0.0; needed.len() * d];
        let places: Vec<usize> = needed.iter().filter_map(|r| self.active.binary_search(r).ok()).collect();
        let mut from_q = vec![0.0; places.len() * d];
        ops::gemm_backward(&mut from_q, &gather(&dq, qd, &places), places.len(), &layer.q);
        ops::gemm_backward(&mut d_normed, &dk, needed.len(), &layer.k);
        ops::gemm_backward(&mut d_normed, &dv, needed.len(), &layer.v);
        let mut q_rows = from_q.chunks_exact(d);
        for (row, out) in needed.iter().zip(d_normed.chunks_exact_mut(d)) {
            if self.active.binary_search(row).is_ok()
                && let Some(q) = q_rows.next()
            {
                ops::add(out, q);
            }
        }
        let input = gather(&kept.input, d, needed);
        let mut out = ops::rmsnorm_backward(&d_normed, &input, &layer.attention_norm, eps);
        for (row, out) in needed.iter().zip(out.chunks_exact_mut(d)) {
            if let Ok(at) = self.active.binary_search(row) {
                ops::add(out, &d_middle[at * d..(at + 1) * d]);
            }
        }
        out
    }

    /// Gradients of the projections' outputs: queries of the active rows, keys and values of the needed ones.
    fn attention(&self, d_a: &[f32], needed: &[usize]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (config, kept, eps) = (self.config, self.kept, self.config.rms_norm_eps);
        let (e, qd, kvd) = (config.head_dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let (q, a) = (gather(&kept.q, qd, self.taped), gather(&kept.a, qd, self.taped));
        let mut dq = Vec::with_capacity(q.len());
        let (mut dk, mut dv) = (vec![0.0; self.positions.len() * kvd], vec![0.0; self.positions.len() * kvd]);
        let row_positions: Vec<usize> = self.active.iter().map(|&r| self.positions[r]).collect();
        let owners = pieces_of(self.pieces, self.active);
        let sequences = owners.iter().map(|(piece, _, own)| {
            let at = own.start * qd..own.end * qd;
            let (store, positions) = (self.store, &row_positions[own.clone()]);
            let of = queries(config, store, self.rounding, self.index, piece.blocks, positions, &q[at.clone()]);
            (of, (at, *piece))
        });
        let parts = attention::for_each_sequence(sequences.collect(), |queries, (at, piece)| {
            queries.backward(&a[at.clone()], &d_a[at], piece.start, piece.ids.len())
        });
        for ((_, first_row, _), part) in owners.iter().zip(parts) {
            dq.extend(part.0);
            let row = first_row * kvd;
            dk[row..row + part.1.len()].copy_from_slice(&part.1);
            dv[row..row + part.2.len()].copy_from_slice(&part.2);
        }
        for (&row, heads) in self.active.iter().zip(dq.chunks_exact_mut(qd)) {
            self.rotation.undo(row, heads);
        }
        let (mut dk, dv) = (gather(&dk, kvd, needed), gather(&dv, kvd, needed));
        for (&row, heads) in needed.iter().zip(dk.chunks_exact_mut(kvd)) {
            self.rotation.undo(row, heads);
        }
        if let Some(weight) = &self.layer.q_norm {
            dq = ops::rmsnorm_backward(&dq, &gather(&kept.q_raw, qd, self.taped), weight, eps);
        }
        if let Some(weight) = &self.layer.k_norm {
            dk = ops::rmsnorm_backward(&dk, &gather(&kept.k_raw, kvd, needed), weight, eps);
        }
        debug_assert_eq!(dq.len() % e, 0);
        (self.rounding.of(dq), self.rounding.of(dk), self.rounding.of(dv))
    }
}

/// The pieces that own some of `rows` (ascending batch rows), with the batch row of their first token and the range of
/// `rows` that is theirs.
fn pieces_of<'a>(pieces: &'a [SequenceRows<'a>], rows: &[usize]) -> Vec<(&'a SequenceRows<'a>, usize, Range<usize>)> {
    let (mut out, mut first_row, mut from) = (Vec::new(), 0, 0);
    for piece in pieces {
        let end = first_row + piece.ids.len();
        let to = from + rows[from..].iter().take_while(|&&r| r < end).count();
        if to > from {
            out.push((piece, first_row, from..to));
        }
        (first_row, from) = (end, to);
    }
    out
}

fn row_positions(pieces: &[SequenceRows<'_>]) -> Vec<usize> {
    pieces.iter().flat_map(|p| p.start..p.start + p.ids.len()).collect()
}

/// A norm as the product behind it takes it.
fn normed_rows(x: &[f32], weight: &[f32], eps: f64, rounding: Rounding) -> Vec<f32> {
    match rounding {
        Rounding { storage: Some(storage), deferred_norms: true } => {
            ops::rmsnorm_deferred(x, weight, eps, |x| storage.widen(storage.round(x)))
        }
        _ => rounding.of(ops::rmsnorm(x, weight, eps)),
    }
}

fn queries<'a>(
    config: &ModelConfig,
    store: &'a KvStore,
    rounding: Rounding,
    layer: usize,
    blocks: &'a [BlockId],
    positions: &'a [usize],
    q: &'a [f32],
) -> Queries<'a> {
    Queries { store, layer, blocks, positions, heads: config.num_heads, window: config.windows[layer], q, rounding }
}
