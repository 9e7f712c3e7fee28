//! The backward pass of the reward model, from the scored rows down to the input embeddings, one line per operation.
//!
//! It covers the rows that a [`Tape`] was recorded with; the positions before them are constants. The gradient of the residual
//! stream is f32, and is rounded to the storage type where a product takes it. At the top only the scored rows have one, until
//! attention spreads it over the keys and values of all rows; at the bottom only the wanted rows get one.
//!
//! All gradients carry a factor, a power of two chosen from the head and the final norm, so that f16 has digits for them. It is
//! exact, and taken out again where a result leaves the device.

use super::decoder::{Decoder, DecoderStep};
use super::inputs::{Slice, StepInputs};
use super::residual::LayerResidual;
use super::sizes::Sizes;
use super::state::{Activations, LayerTape, Tape};
use super::weights::gates_in_products;
use crate::cuda::ops::attention_backward::{self, attention_backward};
use crate::cuda::ops::copy_rows::copy_rows;
use crate::cuda::ops::gemm::{self, Output, Shape};
use crate::cuda::ops::gemm_backward::{Gradients, gemm_backward};
use crate::cuda::ops::rmsnorm::{Norm, Upstream, rmsnorm_backward};
use crate::cuda::ops::rope::{self, HeadNorms, Heads, Turns, rope_backward};
use crate::cuda::ops::swiglu::swiglu_backward;
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device, View, ViewMut};
use crate::dtype::HalfType;
use crate::profile;
use crate::{Error, Result};

/// Buffers of the backward pass of at most `n` rows, sized once. Widths are the padded ones of [`Sizes`].
pub(super) struct Backward {
    /// Gradient of the residual stream; after [`run`](Self::run) of the wanted rows' embeddings, times [`factor`](Self::factor).
    pub grad: Buffer<f32>, // [n, hidden]
    /// What gradients are multiplied with on the device.
    pub factor: f32,
    spread: Buffer<f32>,  // [n, hidden] the same for other rows: all of the batch, or the wanted ones
    rounded: Buffer<u16>, // [n, hidden] as a product takes it
    normed: Buffer<f32>,  // [n, hidden] gradient of a norm's result
    wanted: Buffer<f32>,  // [n, hidden] residual stream of the wanted rows
    act: Buffer<f32>,     // [n, mlp], or nothing where products make the gradients of gates and ups
    gate_up: Buffer<u16>, // [n, 2 mlp]
    attended: Buffer<u16>, // [n, attention]
    q: Buffer<f32>,       // [n, heads head]
    k: Buffer<f32>,       // [n, kv heads head]
    v: Buffer<f32>,       // [n, kv heads head]
    qkv: Buffer<u16>,     // [n, (heads + 2 kv heads) head]
    chosen: Buffer<u16>,  // [n, (heads + 2 kv heads) head] of the wanted rows
    zeros: Buffer<f32>,   // [hidden]
    scratch: attention_backward::Scratch,
}

/// A pair that names no row and is left out.
const NO_ROW: [u32; 2] = [u32::MAX; 2];

/// What the backward pass of one batch needs from the host.
pub(super) struct BackwardAsk {
    /// Live rows that nothing is differentiated of: `(0, row)`.
    idle: Slice<[u32; 2]>,
    /// Live rows and the rows of the batch that they are: `(live, row)`.
    live: Slice<[u32; 2]>,
    /// Rows of the batch whose gradient is wanted, and their places: `(row, wanted)`.
    wanted: Slice<[u32; 2]>,
    wanted_rows: usize,
}

impl BackwardAsk {
    /// Adds to a inputs what is asked: `live` rows of the batch, of which the scores of those at the indices `scored` are
    /// differentiated, with respect to the embeddings of the rows `wanted`; all ascending. `filled` is how many live and wanted
    /// rows there are in a shape that many batches have.
    pub fn push(
        inputs: &mut StepInputs,
        live: &[usize],
        scored: &[usize],
        wanted: &[usize],
        filled: Option<(usize, usize)>,
    ) -> Self {
        let (live_rows, wanted_rows) = filled.unwrap_or((live.len(), wanted.len()));
        // Live rows that fill up have no gradient either.
        let is_idle = |index: &u32| scored.binary_search(&(*index as usize)).is_err();
        let mut idle: Vec<[u32; 2]> = (0..live_rows as u32).filter(is_idle).map(|index| [0, index]).collect();
        let mut live: Vec<[u32; 2]> = live.iter().zip(0..).map(|(&row, index)| [index, row as u32]).collect();
        if filled.is_some() {
            idle.resize(live_rows, NO_ROW);
            live.resize(live_rows, NO_ROW);
        }
        // What fills up is the last one again.
        let rows = wanted.iter().chain(wanted.last().into_iter().cycle()).take(wanted_rows);
        let places: Vec<[u32; 2]> = rows.zip(0..).map(|(&row, place)| [row as u32, place]).collect();
        let (idle, live, wanted) = (inputs.push(&idle), inputs.push(&live), inputs.push(&places));
        BackwardAsk { idle, live, wanted, wanted_rows }
    }
}

impl Backward {
    pub fn new(device: &Device, decoder: &Decoder, rows: usize) -> Result<Self> {
        let Sizes { hidden_padded: d, mlp_padded: f, qkv, attention: a, attention_padded: ap, .. } = decoder.sizes;
        let kv = decoder.sizes.kv_heads * decoder.sizes.head_padded;
        Ok(Backward {
            grad: Buffer::uninitialised(device, rows * d)?,
            factor: factor(device, decoder)?,
            spread: Buffer::uninitialised(device, rows * d)?,
            rounded: Buffer::uninitialised(device, rows * d)?,
            normed: Buffer::uninitialised(device, rows * d)?,
            wanted: Buffer::uninitialised(device, rows * d)?,
            act: Buffer::uninitialised(device, if decoder.weights.gates_in_products() { 0 } else { rows * f })?,
            gate_up: Buffer::uninitialised(device, rows * 2 * f)?,
            attended: Buffer::uninitialised(device, rows * ap)?,
            // Rows that fill up have none of their own: whatever is there is read, and touches no other row.
            q: Buffer::zeros(device, rows * a)?,
            k: Buffer::zeros(device, rows * kv)?,
            v: Buffer::zeros(device, rows * kv)?,
            qkv: Buffer::uninitialised(device, rows * qkv)?,
            chosen: Buffer::uninitialised(device, rows * qkv)?,
            zeros: Buffer::zeros(device, d)?,
            scratch: attention_backward::Scratch::new(device, decoder.sizes.heads, rows)?,
        })
    }

    /// Bytes for `rows` rows.
    pub fn bytes(sizes: &Sizes, rows: usize, layout: WeightLayout) -> u64 {
        let Sizes { hidden_padded: d, mlp_padded: f, qkv, attention: a, attention_padded: ap, .. } = *sizes;
        let kv = sizes.kv_heads * sizes.head_padded;
        let act = if gates_in_products(layout) { 0 } else { f };
        let row = 4 * (4 * d + act + a + 2 * kv) + 2 * (d + 2 * f + ap + 2 * qkv);
        (row * rows) as u64 + attention_backward::Scratch::bytes(sizes.heads, rows)
    }

    /// From the scores of a batch that was recorded on `tape` to the gradient of the wanted rows' embeddings, in `grad`.
    pub fn run(
        &mut self,
        device: &Device,
        decoder: &mut Decoder,
        tape: &Tape,
        step: &DecoderStep,
        asked: &BackwardAsk,
    ) -> Result<()> {
        let (n, m) = (step.rows, step.live_rows);
        let Sizes { hidden_padded: d, mlp_padded: f, qkv, attention: a, attention_padded: ap, .. } = decoder.sizes;
        let kv = decoder.sizes.kv_heads * decoder.sizes.head_padded;
        let Decoder { config, sizes, storage, weights, state, layout, keys_values, rotation, device_inputs, .. } =
            decoder;
        let st = *storage;
        let eps = config.rms_norm_eps as f32;
        let norm = |weight| Norm { weight: Buffer::view(weight), columns: sizes.hidden, eps };
        let heads = Heads { heads: sizes.heads, kv_heads: sizes.kv_heads, head: sizes.head, padded: sizes.head_padded };
        let mut products =
            BackwardProducts { device, storage: st, layout: weights.layout, scratch: &mut state.scratch };

        // The head, a vector in rows in whatever layout the matrices are, and the final norm.
        let score = Upstream::Head(weights.head(), self.factor);
        // They change places at the last layer and again at the first, whatever fails: only these names of theirs do.
        let (mut all, mut spread) = (&mut self.grad, &mut self.spread);
        let (grad, rounded) = (&mut all.first_mut(m * d), &mut self.rounded.first_mut(m * d));
        rmsnorm_backward(device, st, grad, Some(rounded), score, state.live.first(m * d), norm(&weights.final_norm))?;
        copy_rows(device, grad, self.zeros.view(), device_inputs.view(asked.idle), d)?;
        copy_rows(device, rounded, self.zeros.view().cast::<u16>().slice(0..d), device_inputs.view(asked.idle), d)?;

        for (index, layer) in weights.layers.iter().enumerate().rev() {
            let _range = profile::layer(index);
            let last = index + 1 == weights.layers.len();
            let LayerResidual { input, middle } = &tape.residual[index];
            let LayerTape { lse, qkv: kept_qkv, activations } = &tape.layers[index];
            let Activations { q, attended, gate_up } = activations;
            // Only norms read it.
            let projected = kept_qkv.as_ref().unwrap_or(&state.qkv);
            let rows = if last { m } else { n };

            // MLP.
            let grad = &mut all.first_mut(rows * d);
            let d_gate_up = &mut self.gate_up.first_mut(rows * 2 * f);
            let (rounded, gate_up) = (self.rounded.first(rows * d), gate_up.first(rows * 2 * f));
            if weights.gates_in_products() {
                let gated = Output::GatedGradients { d_gate_up: d_gate_up.reborrow(), gate_up };
                products.run(gated, rounded, rows, &layer.down)?;
            } else {
                products.run_f32(self.act.first_mut(rows * f), rounded, rows, &layer.down)?;
                swiglu_backward(device, st, d_gate_up, self.act.first(rows * f), gate_up, f)?;
            }
            products.run_f32(self.normed.first_mut(rows * d), d_gate_up.view(), rows, &layer.gate_up)?;
            let (behind, rounded) =
                (Upstream::Rows(self.normed.first(rows * d)), &mut self.rounded.first_mut(rows * d));
            rmsnorm_backward(device, st, grad, Some(rounded), behind, middle.first(rows * d), norm(&layer.mlp_norm))?;

            // Attention: queries of the rows, keys and values of the batch.
            products.run_half(self.attended.first_mut(rows * ap), rounded.view(), rows, &layer.o)?;
            if last {
                self.q.first_mut(n * a).zero(device)?;
            }
            let work = step.work(config.windows[index], last);
            let inputs = attention_backward::Inputs {
                storage: st,
                q: q.first(n * a),
                pool: keys_values.view(),
                layout: *layout,
                layer: index,
                out: attended.first(rows * ap),
                lse: lse.first(rows * sizes.heads),
                d_out: self.attended.first(rows * ap),
            };
            let mut output = attention_backward::Output {
                q: self.q.first_mut(n * a),
                k: self.k.first_mut(n * kv),
                v: self.v.first_mut(n * kv),
            };
            let Some((keys, words)) = &work.keys else {
                return Err(Error::Backend("a batch that was not recorded has no gradient".to_string()));
            };
            let lists = attention_backward::BackwardLists {
                queries: (&work.plan, device_inputs.view(work.words)),
                keys: (keys, device_inputs.view(*words)),
            };
            attention_backward(device, &mut output, inputs, lists, &mut state.attention, &mut self.scratch)?;
            let gradients =
                rope::Gradients { q: self.q.first(n * a), k: self.k.first(n * kv), v: self.v.first(n * kv) };
            let inputs = rope::Inputs {
                qkv: projected.first(n * qkv),
                turns: Turns { positions: device_inputs.view(step.positions), table: rotation.view() },
                order: weights.head_order,
                norms: layer.head_norms.as_ref().map(|(q, k)| HeadNorms { q: q.view(), k: k.view(), eps }),
            };
            rope_backward(device, st, &mut self.qkv.first_mut(n * qkv), &gradients, &inputs, heads)?;

            // The residual stream before the layer: of all rows, at the bottom of the wanted ones.
            if last {
                spread.first_mut(n * d).zero(device)?;
                copy_rows(device, &mut spread.first_mut(n * d), grad.view(), device_inputs.view(asked.live), d)?;
                std::mem::swap(&mut all, &mut spread);
            }
            let bottom = index == 0;
            let w = if bottom { asked.wanted_rows } else { n };
            if bottom {
                let pairs = device_inputs.view(asked.wanted);
                copy_rows(device, &mut spread.first_mut(w * d), all.first(n * d), pairs, d)?;
                copy_rows(device, &mut self.chosen.first_mut(w * qkv), self.qkv.first(n * qkv), pairs, qkv)?;
                copy_rows(device, &mut self.wanted.first_mut(w * d), input.first(n * d), pairs, d)?;
                std::mem::swap(&mut all, &mut spread);
            }
            let d_qkv = if bottom { self.chosen.first(w * qkv) } else { self.qkv.first(n * qkv) };
            let input = if bottom { self.wanted.first(w * d) } else { input.first(n * d) };
            products.run_f32(self.normed.first_mut(w * d), d_qkv, w, &layer.qkv)?;
            let (behind, grad) = (Upstream::Rows(self.normed.first(w * d)), &mut all.first_mut(w * d));
            let rounded = &mut self.rounded.first_mut(w * d);
            rmsnorm_backward(device, st, grad, Some(rounded), behind, input, norm(&layer.attention_norm))?;
        }
        Ok(())
    }
}

/// The power of two that brings the largest element of the head, as the final norm weighs it, to about 1. The head of a reward
/// model is a row on the device, element by element beside the norm's weights.
fn factor(device: &Device, decoder: &Decoder) -> Result<f32> {
    let (head, norm) = (decoder.weights.head().download(device)?, decoder.weights.final_norm.download(device)?);
    let widen = |bits: u16| decoder.storage.widen(bits);
    let largest = head.iter().zip(&norm).map(|(&h, &w)| (widen(h) * widen(w)).abs()).fold(0.0, f32::max);
    let exponent = if largest > 0.0 && largest.is_finite() { largest.log2().floor() } else { 0.0 };
    Ok((-exponent.clamp(-60.0, 60.0)).exp2())
}

/// Data gradients of products with weights.
struct BackwardProducts<'a> {
    device: &'a Device,
    storage: HalfType,
    /// How the weights lie.
    layout: WeightLayout,
    scratch: &'a mut gemm::Scratch,
}

impl BackwardProducts<'_> {
    /// `dx = dy w`, rounded to the storage type.
    fn run_half(&mut self, dx: ViewMut<'_, u16>, dy: View<'_, u16>, rows: usize, w: &Buffer<u16>) -> Result<()> {
        self.run(Output::Half(dx), dy, rows, w)
    }

    /// `dx = dy w`, in f32.
    fn run_f32(&mut self, dx: ViewMut<'_, f32>, dy: View<'_, u16>, rows: usize, w: &Buffer<u16>) -> Result<()> {
        self.run(Output::F32(dx), dy, rows, w)
    }

    fn run(&mut self, mut dx: Output<'_>, dy: View<'_, u16>, tokens: usize, w: &Buffer<u16>) -> Result<()> {
        // Not from the weights, which may have padding.
        let (n, k) = (dy.len() / tokens.max(1), dx.len() / tokens.max(1));
        let shape = Shape { tokens, n, k };
        let gradients = Gradients { storage: self.storage, dy, w: w.view(), layout: self.layout };
        gemm_backward(self.device, &mut dx, gradients, shape, self.scratch)
    }
}
