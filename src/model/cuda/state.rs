//! What a batch leaves in device memory: the buffers of the layers, and what the backward pass needs of them.

use super::residual::LayerResidual;
use super::sizes::{Sizes, attention_shape};
use crate::Result;
use crate::cuda::ops::gemm::SQUARES;
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::ops::{attention, gemm};
use crate::cuda::{Buffer, Device};

/// Parts of queries that attention may have at once: some 64 sequences of 8000 tokens.
const PARTS: usize = 2048;

/// Buffers of a batch of at most `n` rows, sized once. Widths are the padded ones of [`Sizes`].
pub(super) struct State {
    /// The most rows that go through the layers together.
    pub rows: usize,
    pub residual: Buffer<f32>, // [n, hidden]
    pub live: Buffer<f32>,     // [n, hidden] the rows that go on beyond the last layer's keys and values
    pub normed: Buffer<u16>,   // [n, hidden]
    pub norms: DeferredNorms,
    pub qkv: Buffer<u16>, // [n, (heads + 2 kv heads) head] as projected, where it is not turned at once
    pub act: Buffer<u16>, // [n, mlp]
    pub layer: Activations,
    pub scratch: gemm::Scratch,
    pub attention: attention::Scratch,
}

/// What norms leave to the products behind them.
pub(super) struct DeferredNorms {
    pub factors: Buffer<f32>,   // [n]
    pub squares: Buffer<f32>,   // [n, hidden / 16]
    pub attention: Buffer<f32>, // [n] inverse norms before attention
    pub mlp: Buffer<f32>,       // [n] inverse norms before the MLP
}

impl DeferredNorms {
    fn new(device: &Device, sizes: &Sizes, rows: usize) -> Result<Self> {
        let of = |width: usize| Buffer::uninitialised(device, rows * width);
        Ok(DeferredNorms {
            factors: of(1)?,
            squares: of(sizes.hidden_padded / SQUARES)?,
            attention: of(1)?,
            mlp: of(1)?,
        })
    }

    /// Bytes for `rows` rows.
    fn bytes(sizes: &Sizes, rows: usize) -> u64 {
        (rows * 4 * (3 + sizes.hidden_padded / SQUARES)) as u64
    }
}

/// What a layer computes between its products.
pub(super) struct Activations {
    pub q: Buffer<u16>,        // [n, heads head] normed and rotated
    pub attended: Buffer<u16>, // [n, attention]; columns beyond heads x head stay zero
    pub gate_up: Buffer<u16>,  // [n, 2 mlp]
}

impl Activations {
    pub fn new(device: &Device, sizes: &Sizes, rows: usize) -> Result<Self> {
        Ok(Activations {
            q: Buffer::uninitialised(device, rows * sizes.attention)?,
            attended: Buffer::zeros(device, rows * sizes.attention_padded)?,
            gate_up: Buffer::uninitialised(device, rows * 2 * sizes.mlp_padded)?,
        })
    }

    /// Bytes for `rows` rows.
    pub fn bytes(sizes: &Sizes, rows: usize) -> u64 {
        let row = sizes.attention + sizes.attention_padded + 2 * sizes.mlp_padded;
        2 * (row * rows) as u64
    }
}

/// What the backward pass needs of a forward pass of at most `n` rows. Rows are all rows of the batch, except that the last
/// layer keeps the live rows only, from its attention on. The inputs of products are computed again: cheaper than keeping
/// them.
pub(super) struct Tape {
    /// The most rows that are differentiated together.
    pub rows: usize,
    /// The residual stream, per layer.
    pub residual: Vec<LayerResidual>,
    pub layers: Vec<LayerTape>,
}

/// What is kept of one layer beside the residual stream.
pub(super) struct LayerTape {
    pub lse: Buffer<f32>,         // [n, heads] attention's normalisers
    pub qkv: Option<Buffer<u16>>, // [n, (heads + 2 kv heads) head] as projected, where heads have norms
    pub activations: Activations,
}

impl Tape {
    pub fn new(device: &Device, sizes: &Sizes, rows: usize) -> Result<Self> {
        let residual = || -> Result<LayerResidual> {
            let [input, middle] = [(), ()].map(|()| Buffer::uninitialised(device, rows * sizes.hidden_padded));
            Ok(LayerResidual { input: input?, middle: middle? })
        };
        let kept = || -> Result<LayerTape> {
            Ok(LayerTape {
                lse: Buffer::uninitialised(device, rows * sizes.heads)?,
                qkv: sizes.head_norms.then(|| Buffer::uninitialised(device, rows * sizes.qkv)).transpose()?,
                activations: Activations::new(device, sizes, rows)?,
            })
        };
        Ok(Tape {
            rows,
            residual: (0..sizes.layers).map(|_| residual()).collect::<Result<_>>()?,
            layers: (0..sizes.layers).map(|_| kept()).collect::<Result<_>>()?,
        })
    }

    /// Bytes for `rows` rows.
    pub fn bytes(sizes: &Sizes, rows: usize) -> u64 {
        let row = 4 * (2 * sizes.hidden_padded + sizes.heads) + if sizes.head_norms { 2 * sizes.qkv } else { 0 };
        ((row * rows) as u64 + Activations::bytes(sizes, rows)) * sizes.layers as u64
    }
}

impl State {
    pub fn new(device: &Device, sizes: &Sizes, rows: usize) -> Result<Self> {
        let Sizes { hidden_padded: d, mlp_padded: f, .. } = *sizes;
        Ok(State {
            rows,
            residual: Buffer::uninitialised(device, rows * d)?,
            live: Buffer::uninitialised(device, rows * d)?,
            normed: Buffer::uninitialised(device, rows * d)?,
            norms: DeferredNorms::new(device, sizes, rows)?,
            qkv: Buffer::uninitialised(device, rows * sizes.qkv)?,
            act: Buffer::uninitialised(device, rows * f)?,
            layer: Activations::new(device, sizes, rows)?,
            scratch: gemm::Scratch::new(device, room(sizes, device.weight_layout()))?,
            attention: attention::Scratch::new(device, &[attention_shape(sizes, None)], PARTS)?,
        })
    }

    /// Bytes of the scratch of products and attention.
    pub fn scratch_bytes(sizes: &Sizes, layout: WeightLayout) -> u64 {
        let attention = attention::Scratch::bytes(&[attention_shape(sizes, None)], PARTS);
        room(sizes, layout).bytes().saturating_add(attention)
    }

    /// Bytes for `rows` rows, without the scratch.
    pub fn bytes(sizes: &Sizes, rows: usize) -> u64 {
        let (d, f) = (sizes.hidden_padded, sizes.mlp_padded);
        (rows * (2 * 4 * d + 2 * d + 2 * f + 2 * sizes.qkv)) as u64
            + DeferredNorms::bytes(sizes, rows)
            + Activations::bytes(sizes, rows)
    }
}

/// What the products of a model need, forward and backward.
fn room(sizes: &Sizes, layout: WeightLayout) -> gemm::Room {
    let Sizes { hidden_padded: d, mlp_padded: f, qkv, attention_padded: a, vocab, .. } = *sizes;
    let layer = [(qkv, d), (d, a), (2 * f, d), (d, f)];
    let gradients = layer.map(|(n, k)| (k, n));
    let products = [&layer[..], &gradients, &[(vocab, d)]].concat();
    // The head of a reward model lies in rows, whatever the others do.
    gemm::Room::of(layout, &products).and(gemm::Room::of(WeightLayout::Rows, &[(1, d)]))
}
