//! One decoder on a device: its weights, its paged keys and values, and the forward pass, one line per operation.

use super::inputs::{DeviceInputs, Slice, StepInputs};
use super::next_step::NextStepPlan;
use super::residual::ResidualStream;
use super::sizes::{Sizes, attention_shape};
use super::state::{Activations, DeferredNorms, LayerTape, State, Tape};
use super::weights::Weights;
use crate::cuda::ops::attention::{self, Query, Sequence, attention};
use crate::cuda::ops::attention_backward::{self, KeySegment};
use crate::cuda::ops::copy_rows::copy_rows;
use crate::cuda::ops::embed::{Table, embed};
use crate::cuda::ops::gemm::{self, Factors, NextNorm, Norms, Operands, Output, SQUARES, Shape, gemm_normed};
use crate::cuda::ops::kv::{KvLayout, KvRows};
use crate::cuda::ops::kv_copy::kv_copy;
use crate::cuda::ops::rmsnorm::{Deferred, Delta, Norm, rmsnorm, rmsnorm_deferred};
use crate::cuda::ops::rope::{self, HeadNorms, HeadOrder, Heads, Turns, rope};
use crate::cuda::ops::swiglu::{Gates, swiglu};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device, View, ViewMut};
use crate::dtype::HalfType;
use crate::files::config::ModelConfig;
use crate::kv::{BLOCK, BlockCopy, KvPool};
use crate::model::spans::Batch;
use crate::profile;
use crate::{Error, Result};

/// A model with its sequences.
pub(super) struct Decoder {
    pub config: ModelConfig,
    pub sizes: Sizes,
    pub storage: HalfType,
    pub weights: Weights,
    pub kv: KvPool,
    pub state: State,
    /// Token positions that went through [`forward`](Self::forward).
    pub forwarded: u64,
    /// Token positions that went through the backward pass.
    pub differentiated: u64,
    pub layout: KvLayout,
    pub keys_values: Buffer<u16>,   // [blocks, layers, 2, kv heads, 64, head]
    pub rotation: Buffer<[f32; 2]>, // [positions, head / 2] cosine and sine
    /// Block copies that no launch has made yet.
    copies: Vec<BlockCopy>,
    inputs: StepInputs,
    /// What the last batch needed from the host.
    pub device_inputs: DeviceInputs,
    /// What the next step will probably need.
    next_step: Option<NextStepPlan>,
    /// Steps whose lists had been planned ahead.
    pub planned_ahead: u64,
}

/// What the layers of one batch need from the host.
pub(super) struct DecoderStep {
    ids: Slice<u32>,
    pub positions: Slice<u32>,
    slots: Slice<u32>,
    /// Rows of the batch that are live, and their places among these.
    live: Slice<[u32; 2]>,
    /// Rows that go through the layers, and those that go on beyond the last layer's keys and values.
    pub rows: usize,
    pub live_rows: usize,
    /// Attention, once per distinct window; of the last layer, of the live rows, where that differs.
    works: Vec<AttentionLists>,
    /// Which of them is the last layer's.
    last: usize,
}

/// Attention's list of work, and where the device has it.
pub(super) struct AttentionLists {
    window: Option<usize>,
    pub plan: attention::Plan,
    pub words: Slice<u32>,
    /// The same for the gradients of keys and values, if they are wanted.
    pub keys: Option<(attention_backward::Plan, Slice<u32>)>,
}

/// Rows that a step is filled up to, so that many batches have the same shape. Results of the others are kept nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PaddedRows {
    /// Of the batch, at least as many as it has.
    pub rows: usize,
    /// Live rows, at least as many as there are, and at most `rows`.
    pub live: usize,
}

impl DecoderStep {
    /// Attention's work in a layer with this window.
    pub fn work(&self, window: Option<usize>, last: bool) -> &AttentionLists {
        let all = self.works.iter().find(|work| !last && work.window == window);
        all.unwrap_or(&self.works[self.last])
    }

    /// How attention is launched, whatever is in the lists.
    pub fn frames(&self) -> Vec<attention::Frame> {
        self.works.iter().map(|work| work.plan.frame()).collect()
    }

    /// The same of its backward pass over keys.
    pub fn key_frames(&self) -> Vec<attention_backward::Frame> {
        self.works.iter().filter_map(|work| Some(work.keys.as_ref()?.0.frame())).collect()
    }
}

/// Rows of which products themselves make the gated activation, at most. With more, tensor cores wait longer for its exponentials
/// than a kernel of its own takes, by instructions counted in the machine code (not measured). The bits are the same.
pub const GATED_ROWS: usize = 256;
/// Rows of which products themselves turn queries and keys and keep keys and values, at most. With more, a launch is little beside the
/// product, and each block's tokens wait for one another's angles (not measured). The bits are the same.
pub const TURNED_ROWS: usize = 256;
/// Rows up to which norms are at the ends of products: with more, finding their inverse norms takes longer than the product of small
/// layers (computed). The bits are the same.
pub const NORMED_ROWS: usize = 128;
const _: () = assert!(NORMED_ROWS <= gemm::NORMED_TOKENS);
/// Bytes of inputs per row that there is room for at first.
const INPUTS: usize = 64;

impl Decoder {
    /// Bytes of the table of rotations, and of the inputs as they are at first.
    pub fn bytes(sizes: &Sizes, rows: usize, positions: usize) -> u64 {
        (positions * sizes.head / 2 * 8 + INPUTS * rows) as u64
    }

    pub fn new(
        device: &Device,
        config: &ModelConfig,
        sizes: Sizes,
        (weights, storage): (Weights, HalfType),
        (rows, blocks, positions): (usize, usize, usize),
    ) -> Result<Self> {
        let layout = KvLayout { layers: sizes.layers, kv_heads: sizes.kv_heads, head: sizes.head_padded };
        let frequencies = config.rope.frequencies(config.head_dim);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let rotation: Vec<[f32; 2]> = angles.map(|a| [a.cos() as f32, a.sin() as f32]).collect();
        let elements = blocks.checked_mul(layout.block()).ok_or_else(|| {
            Error::Backend(format!("{blocks} blocks of {} elements of keys and values are too many", layout.block()))
        })?;
        Ok(Decoder {
            config: config.clone(),
            storage,
            weights,
            kv: KvPool::new(blocks),
            state: State::new(device, &sizes, rows)?,
            forwarded: 0,
            differentiated: 0,
            layout,
            keys_values: Buffer::uninitialised(device, elements)?,
            rotation: Buffer::from_slice(device, &rotation)?,
            copies: Vec::new(),
            inputs: StepInputs::default(),
            device_inputs: DeviceInputs::new(device, INPUTS * rows)?,
            next_step: None,
            planned_ahead: 0,
            sizes,
        })
    }

    /// Remembers a block copy that a fork or an append asks for. It is made before the next batch, together with the others
    /// that do not depend on it.
    pub fn copy_block(&mut self, device: &Device, copy: Option<BlockCopy>) -> Result<()> {
        let Some(copy) = copy else { return Ok(()) };
        // In one launch, copies have no order: none may read what another writes.
        if self.copies.iter().any(|other| other.to == copy.from || other.from == copy.to || other.to == copy.to) {
            self.inputs.clear();
            let copies = self.push_copies();
            self.device_inputs.receive(device, &self.inputs)?;
            kv_copy(device, &mut self.keys_values.view_mut(), self.device_inputs.view(copies), self.layout)?;
        }
        self.copies.push(copy);
        Ok(())
    }

    fn push_copies(&mut self) -> Slice<[u32; 3]> {
        let words = self.copies.drain(..).map(|c| [c.from.0, c.to.0, c.positions as u32]);
        self.inputs.push(&words.collect::<Vec<_>>())
    }

    /// Appends the pieces of a batch to their sequences and runs them through the layers. The residual stream of the live rows
    /// is in `state.live` then. What `extra` adds to the inputs goes to the device with the rest.
    pub fn forward<E>(
        &mut self,
        device: &Device,
        batch: &Batch<'_>,
        extra: impl FnOnce(&mut StepInputs) -> E,
    ) -> Result<E> {
        let (extra, step) = self.send(device, batch, None, false, extra)?;
        self.layers(device, &step, None)?;
        self.forwarded += batch.rows as u64;
        Ok(extra)
    }

    /// Appends the pieces of a batch to their sequences and sends what the layers need from the host: with `filled`, in a shape
    /// that many batches have; with `taped`, what their backward pass needs, too.
    pub fn send<E>(
        &mut self,
        device: &Device,
        batch: &Batch<'_>,
        filled: Option<PaddedRows>,
        taped: bool,
        extra: impl FnOnce(&mut StepInputs) -> E,
    ) -> Result<(E, DecoderStep)> {
        for piece in &batch.pieces {
            let copy = self.kv.append(piece.seq, piece.ids.len())?;
            self.copy_block(device, copy)?;
        }
        let step = self.step(device, batch, filled, taped)?;
        let extra = extra(&mut self.inputs);
        // Last, because their number says nothing about the step.
        let copies = self.push_copies();
        self.device_inputs.receive(device, &self.inputs)?;
        kv_copy(device, &mut self.keys_values.view_mut(), self.device_inputs.view(copies), self.layout)?;
        Ok((extra, step))
    }

    fn step(
        &mut self,
        device: &Device,
        batch: &Batch<'_>,
        filled: Option<PaddedRows>,
        taped: bool,
    ) -> Result<DecoderStep> {
        self.inputs.clear();
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for piece in &batch.pieces {
            let blocks = self.kv.blocks(piece.seq)?;
            ids.extend_from_slice(piece.ids);
            for position in piece.start..piece.start + piece.ids.len() {
                positions.push(position as u32);
                slots.push(blocks[position / BLOCK].0 * BLOCK as u32 + (position % BLOCK) as u32);
            }
        }
        let PaddedRows { rows: count, live: live_count } =
            filled.unwrap_or(PaddedRows { rows: batch.rows, live: batch.live.len() });
        ids.resize(count, 0);
        positions.resize(count, 0);
        // No slot: the keys and values of these rows are kept nowhere.
        slots.resize(count, u32::MAX);
        let live_rows: Vec<usize> = batch.live.iter().map(|&(row, _)| row).collect();
        // The rows that fill up, if there are enough; where a row comes from more than once, nobody minds.
        let fills = (batch.rows..count).chain(std::iter::repeat(count.saturating_sub(1)));
        let live = live_rows.iter().copied().chain(fills).take(live_count).enumerate();
        let live: Vec<[u32; 2]> = live.map(|(to, from)| [from as u32, to as u32]).collect();
        let every: Vec<usize> = (0..batch.rows).collect();
        let fill = filled.is_some();
        let mut works: Vec<AttentionLists> = Vec::new();
        let planned = self.next_step.take().filter(|_| fill);
        for (window, plan) in planned.and_then(|plan| plan.of(batch, &self.kv)).into_iter().flatten() {
            let words = self.inputs.push(plan.words());
            works.push(AttentionLists { window, plan, words, keys: None });
        }
        self.planned_ahead += u64::from(!works.is_empty());
        let last_layer = self.sizes.layers - 1;
        for layer in 0..last_layer {
            let window = self.config.windows[layer];
            if works.iter().all(|work| work.window != window) {
                works.push(self.work(device, batch, &every, window, (taped, fill))?);
            }
        }
        let window = self.config.windows[last_layer];
        let last = match works.iter().position(|work| work.window == window && live_rows.len() == batch.rows) {
            Some(same) => same,
            None => {
                works.push(self.work(device, batch, &live_rows, window, (taped, fill))?);
                works.len() - 1
            }
        };
        Ok(DecoderStep {
            ids: self.inputs.push(&ids),
            positions: self.inputs.push(&positions),
            slots: self.inputs.push(&slots),
            live: self.inputs.push(&live),
            rows: count,
            live_rows: live.len(),
            works,
            last,
        })
    }

    /// Makes the lists that the next step needs if these sequences go on, for a batch of single tokens.
    pub fn plan_next(&mut self, device: &Device, batch: &Batch<'_>) {
        let (attention, sizes) = (&self.state.attention, &self.sizes);
        let limits = |window| attention.limits(device, &attention_shape(sizes, window));
        // What goes wrong here goes wrong again where it is needed.
        self.next_step = NextStepPlan::after(batch, &self.kv, sizes, &self.config.windows, limits).ok().flatten();
    }

    /// Attention's work for some rows of a batch, ascending; its output has these rows.
    fn work(
        &mut self,
        device: &Device,
        batch: &Batch<'_>,
        rows: &[usize],
        window: Option<usize>,
        (taped, fill): (bool, bool),
    ) -> Result<AttentionLists> {
        let (mut queries, mut parts) = (Vec::with_capacity(rows.len()), Vec::new());
        let mut first = 0;
        for piece in &batch.pieces {
            let from = queries.len();
            let owned = rows[from..].iter().take_while(|&&row| row < first + piece.ids.len());
            queries.extend(owned.enumerate().map(|(i, &row)| Query {
                row: row as u32,
                out: (from + i) as u32,
                position: (piece.start + row - first) as u32,
            }));
            parts.push((piece, first, from..queries.len()));
            first += piece.ids.len();
        }
        let (mut sequences, mut segments) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
        for (piece, row, range) in parts {
            let (blocks, queries) = (self.kv.blocks(piece.seq)?, &queries[range]);
            let (start, len) = (piece.start as u32, piece.ids.len() as u32);
            segments.push(KeySegment { blocks, start, len, row: row as u32, queries });
            if !queries.is_empty() {
                sequences.push(Sequence { blocks, queries });
            }
        }
        let shape = attention_shape(&self.sizes, window);
        let limits = self.state.attention.limits(device, &shape);
        let mut plan = attention::Plan::new(&shape, &sequences, limits)?;
        if fill {
            plan = plan.filled(limits);
        }
        let keys = match taped {
            true => Some(attention_backward::Plan::new(&shape, &segments)?),
            false => None,
        };
        let keys = if fill { keys.map(|plan| plan.filled()) } else { keys };
        let words = self.inputs.push(plan.words());
        let keys = keys.map(|plan| {
            let words = self.inputs.push(plan.words());
            (plan, words)
        });
        Ok(AttentionLists { window, plan, words, keys })
    }

    /// The layers, on what was sent.
    pub fn layers(&mut self, device: &Device, step: &DecoderStep, tape: Option<&mut Tape>) -> Result<()> {
        let (n, m) = (step.rows, step.live_rows);
        let Sizes { hidden_padded: d, mlp_padded: f, qkv, attention: a, attention_padded: ap, .. } = self.sizes;
        let Decoder { config, sizes, storage, weights, state, layout, keys_values, rotation, device_inputs, .. } = self;
        let State {
            residual,
            live,
            normed,
            norms,
            qkv: projected_here,
            act,
            layer: shared,
            scratch,
            attention: attention_scratch,
            ..
        } = state;
        let DeferredNorms { factors, squares, attention: attention_norms, mlp: mlp_norms } = norms;
        let s = d / SQUARES;
        let is_deferred = device.defers_norms();
        let mut linear = Linear { device, storage: *storage, layout: weights.layout, scratch };
        let st = *storage;
        let eps = config.rms_norm_eps as f32;
        let norm = |weight| Norm { weight: Buffer::view(weight), columns: sizes.hidden, eps };
        let heads = Heads { heads: sizes.heads, kv_heads: sizes.kv_heads, head: sizes.head, padded: sizes.head_padded };

        let (gates_in_products, is_taped) = (weights.gates_in_products(), tape.is_some());
        let elements = weights.embedding.view();
        let table = Table { elements, vocabulary: sizes.vocab, layout: weights.embedding_layout() };
        let (kept_residual, mut kept_layers) = match tape {
            None => (None, None),
            Some(Tape { residual, layers, .. }) => (Some(&mut residual[..]), Some(&mut layers[..])),
        };
        let mut residual =
            ResidualStream { all: residual, live, tape: kept_residual, layers: weights.layers.len(), width: d };
        embed(device, st, &mut residual.input(0, n), table, device_inputs.view(step.ids), d)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let _range = profile::layer(index);
            let kept = kept_layers.as_deref_mut().map(|layers| &mut layers[index]);
            let (Activations { q, attended, gate_up }, kept_qkv, mut kept_lse) = match kept {
                None => (&mut *shared, None, None),
                Some(LayerTape { lse, qkv, activations }) => (activations, qkv.as_mut(), Some(lse)),
            };
            let projected = kept_qkv.unwrap_or(&mut *projected_here);
            let x = &mut residual.input(index, n);
            // A kernel of its own; or what it leaves to the product; or what the product before has left.
            let is_first = index == 0;
            let mut of_qkv = Norms::default();
            if !is_deferred {
                rmsnorm(device, st, &mut normed.first_mut(n * d), x, Delta::None, norm(&layer.attention_norm))?;
            } else {
                let left = LeftNorm {
                    by_product: !is_first && n <= NORMED_ROWS,
                    squares: squares.first(n * s),
                    before: (!is_first).then(|| mlp_norms.first(n)),
                    inverse: attention_norms.first_mut(n),
                    factors: &mut *factors,
                };
                let u = normed.first_mut(n * d);
                of_qkv.factors = Some(left.factors(device, st, u, x.view(), norm(&layer.attention_norm))?);
            }
            let turns = Turns { positions: device_inputs.view(step.positions), table: rotation.view() };
            let slots = device_inputs.view(step.slots);
            let mut kv = KvRows { pool: keys_values.view_mut(), layout: *layout, layer: index, slots };
            let (x, bias) = (normed.first(n * d), layer.qkv_bias.as_ref());
            if weights.head_order == HeadOrder::Pairs && n <= TURNED_ROWS {
                let turned = Output::Heads { q: q.first_mut(n * a), kv, turns, heads };
                linear.run_normed(turned, x, n, layer.qkv.view(), bias, of_qkv)?;
            } else {
                let y = Output::Half(projected.first_mut(n * qkv));
                linear.run_normed(y, x, n, layer.qkv.view(), bias, of_qkv)?;
                let inputs = rope::Inputs {
                    qkv: projected.first(n * qkv),
                    turns,
                    norms: layer.head_norms.as_ref().map(|(q, k)| HeadNorms { q: q.view(), k: k.view(), eps }),
                    order: weights.head_order,
                };
                rope(device, st, &mut q.first_mut(n * a), &mut kv, &inputs, heads)?;
            }

            // Beyond the keys and values of the last layer only the live rows go on.
            let last = index + 1 == weights.layers.len();
            let rows = if last { m } else { n };
            let work = step.work(config.windows[index], last);
            if last {
                let (mut live, all) = residual.live(m, n);
                copy_rows(device, &mut live, all, device_inputs.view(step.live), d)?;
            }
            let lse_rows = kept_lse.as_mut().map(|lse| lse.first_mut(rows * sizes.heads));
            let (pool, layout) = (keys_values.view(), *layout);
            let inputs = attention::Inputs { storage: st, q: q.first(n * a), pool, layout, layer: index };
            let mut output = attention::Output { out: attended.first_mut(rows * ap), lse: lse_rows };
            attention(device, &mut output, inputs, device_inputs.view(work.words), &work.plan, attention_scratch)?;
            let (y, x) = (residual.after_attention(index, rows), attended.first(rows * ap));
            let stores_next = is_deferred && !last && rows <= NORMED_ROWS;
            let next = stores_next.then(|| NextNorm {
                weight: layer.mlp_norm.view(),
                u: normed.first_mut(rows * d),
                squares: squares.first_mut(rows * s),
                before: attention_norms.first(rows),
            });
            let of_o = Norms { factors: None, next };
            linear.run_normed(y, x, rows, layer.o.view(), layer.o_bias.as_ref(), of_o)?;
            let x = &mut residual.middle(index, rows);
            let mut of_gates = Norms::default();
            if !is_deferred {
                rmsnorm(device, st, &mut normed.first_mut(rows * d), x, Delta::None, norm(&layer.mlp_norm))?;
            } else {
                let left = LeftNorm {
                    by_product: stores_next,
                    squares: squares.first(rows * s),
                    // The live rows are others than those that attention's norm had.
                    before: (!last).then(|| attention_norms.first(rows)),
                    inverse: mlp_norms.first_mut(rows),
                    factors: &mut *factors,
                };
                let u = normed.first_mut(rows * d);
                of_gates.factors = Some(left.factors(device, st, u, x.view(), norm(&layer.mlp_norm))?);
            }
            let mut gate_up = gate_up.first_mut(rows * 2 * f);
            let (x, bias) = (normed.first(rows * d), layer.gate_up_bias.as_ref());
            if gates_in_products && rows <= GATED_ROWS {
                let gated = Output::Gated { act: act.first_mut(rows * f), gate_up: is_taped.then_some(gate_up) };
                linear.run_normed(gated, x, rows, layer.gate_up.view(), bias, of_gates)?;
            } else {
                let y = Output::Half(gate_up.reborrow());
                linear.run_normed(y, x, rows, layer.gate_up.view(), bias, of_gates)?;
                let gates = if gates_in_products { Gates::Grouped } else { Gates::Apart };
                swiglu(device, st, &mut act.first_mut(rows * f), gate_up.view(), f, gates)?;
            }
            let (y, x) = (residual.after_mlp(index, rows), act.first(rows * f));
            let above = weights.layers.get(index + 1).filter(|_| stores_next);
            let next = above.map(|above| NextNorm {
                weight: above.attention_norm.view(),
                u: normed.first_mut(rows * d),
                squares: squares.first_mut(rows * s),
                before: mlp_norms.first(rows),
            });
            let of_down = Norms { factors: None, next };
            linear.run_normed(y, x, rows, layer.down.view(), layer.down_bias.as_ref(), of_down)?;
        }
        Ok(())
    }

    /// The final norm of the first `rows` live rows, into `state.normed`.
    pub fn norm(&mut self, device: &Device, rows: usize) -> Result<()> {
        let Sizes { hidden_padded: d, hidden, .. } = self.sizes;
        let State { live, normed, .. } = &mut self.state;
        let norm =
            Norm { weight: self.weights.final_norm.view(), columns: hidden, eps: self.config.rms_norm_eps as f32 };
        rmsnorm(device, self.storage, &mut normed.first_mut(rows * d), &mut live.first_mut(rows * d), Delta::None, norm)
    }
}

/// A norm whose last step is left to the product behind it.
struct LeftNorm<'a> {
    /// The product before has stored its part: what the product behind takes, and the squares.
    by_product: bool,
    squares: View<'a, f32>,
    /// Inverse norms of the norm before, if it had these rows.
    before: Option<View<'a, f32>>,
    inverse: ViewMut<'a, f32>,
    factors: &'a mut Buffer<f32>,
}

impl<'a> LeftNorm<'a> {
    /// What the product behind multiplies its sums with. Without a product before, a kernel of its own makes `u` of the residual stream
    /// `x`.
    fn factors(
        self,
        device: &Device,
        storage: HalfType,
        u: ViewMut<'_, u16>,
        x: View<'_, f32>,
        norm: Norm<'_>,
    ) -> Result<Factors<'a>> {
        let LeftNorm { by_product, squares, before, inverse, factors } = self;
        if let (true, Some(before)) = (by_product, before) {
            return Ok(Factors::Squares { squares, before, inverse, columns: norm.columns, eps: norm.eps });
        }
        let rows = inverse.len();
        let out = &mut Deferred { u, factors: factors.first_mut(rows), inverse };
        rmsnorm_deferred(device, storage, out, x, before, norm)?;
        Ok(Factors::Known(factors.first(rows)))
    }
}

/// Products with weights, all in one storage type.
pub(super) struct Linear<'a> {
    pub device: &'a Device,
    pub storage: HalfType,
    /// How the weights lie.
    pub layout: WeightLayout,
    pub scratch: &'a mut gemm::Scratch,
}

impl Linear<'_> {
    /// `y = x w^T`, in f32.
    pub fn run_f32(&mut self, y: ViewMut<'_, f32>, x: View<'_, u16>, rows: usize, w: View<'_, u16>) -> Result<()> {
        self.run(Output::F32(y), x, rows, w, None)
    }

    fn run(
        &mut self,
        y: Output<'_>,
        x: View<'_, u16>,
        tokens: usize,
        w: View<'_, u16>,
        bias: Option<&Buffer<u16>>,
    ) -> Result<()> {
        self.run_normed(y, x, tokens, w, bias, Norms::default())
    }

    fn run_normed(
        &mut self,
        mut y: Output<'_>,
        x: View<'_, u16>,
        tokens: usize,
        w: View<'_, u16>,
        bias: Option<&Buffer<u16>>,
        mut norms: Norms<'_>,
    ) -> Result<()> {
        if tokens == 0 {
            return Ok(());
        }
        // Not from the weights, which may have padding.
        let (n, k) = (y.len() / tokens, x.len() / tokens);
        let operands = Operands { storage: self.storage, x, w, layout: self.layout, bias: bias.map(Buffer::view) };
        gemm_normed(self.device, &mut y, operands, &mut norms, Shape { tokens, n, k }, self.scratch)
    }
}
