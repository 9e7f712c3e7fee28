//! Problems of the ops on rows that a layer has between its products: norm, activation and rotation, each with its gradient.

use super::case::{Case, CheckOutput, CheckRun};
use super::numbers::{halves, singles, stored, unwritten, wide, widened};
use crate::Result;
use crate::cuda::buffer::{Buffer, ViewMut};

use crate::cuda::ops::kv::{KvLayout, KvRows};
use crate::cuda::ops::rmsnorm::{self, Deferred, Delta, Upstream, rmsnorm, rmsnorm_backward, rmsnorm_deferred};
use crate::cuda::ops::rope::{Gradients, HeadNorms, HeadOrder, Heads, Inputs, Turns, rope, rope_backward};
use crate::cuda::ops::swiglu::{Gates, swiglu, swiglu_backward};
use crate::dtype::HalfType;
use crate::kv::BLOCK;

/// Rows of each problem.
pub(crate) const ROWS: usize = 3;
/// Of every norm.
pub(crate) const EPS: f32 = 1e-5;

pub(super) fn cases() -> Vec<Case> {
    type CheckLaunch = fn(&CheckRun<'_>, HalfType) -> Result<Vec<CheckOutput>>;
    let of = |op, name, expected, launch: CheckLaunch| Case::of_both(op, name, expected, launch);
    vec![
        of("rmsnorm", "forward", "rmsnorm", |device, storage| NormCase::new().run(device, storage)),
        of("rmsnorm", "left to a product", "norm_between", |device, storage| Between::new().run(device, storage)),
        of("rmsnorm", "backward", "rmsnorm_backward", |device, storage| NormCase::new().run_backward(device, storage)),
        of("swiglu", "forward", "swiglu", |device, storage| Gate::new().run(device, storage)),
        of("swiglu", "backward", "swiglu_backward", |device, storage| Gate::new().run_backward(device, storage)),
        of("rope", "forward", "rope", |device, storage| Turn::new().run(device, storage)),
        of("rope", "forward without norms", "heads", |device, storage| Turn::new().run_plain(device, storage)),
        of("rope", "backward", "rope_backward", |device, storage| Turn::new().run_backward(device, storage)),
    ]
}

/// Rows of [`NormCase::WIDTH`], of which the last columns are padding.
pub(crate) struct NormCase {
    pub residual: Vec<f32>,
    pub delta: Vec<f32>,
    pub weight: Vec<f32>,
    /// Of the backward pass: the gradient of the result, and of the residual stream before.
    pub dy: Vec<f32>,
    pub grad: Vec<f32>,
}

impl NormCase {
    pub const WIDTH: usize = 43;
    pub const COLUMNS: usize = 41;

    pub fn new() -> Self {
        let padded = |mut values: Vec<f32>| {
            values.chunks_exact_mut(Self::WIDTH).for_each(|row| row[Self::COLUMNS..].fill(0.0));
            values
        };
        let elements = ROWS * Self::WIDTH;
        NormCase {
            residual: padded(singles("norm residual", elements, 2.0)),
            delta: padded(halves("norm delta", elements, 0.5)),
            weight: padded(halves("norm weight", Self::WIDTH, 1.0)),
            dy: padded(singles("norm dy", elements, 0.3)),
            grad: padded(singles("norm grad", elements, 0.3)),
        }
    }

    fn run(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        let (weight, delta) = (stored(device, storage, &self.weight)?, stored(device, storage, &self.delta)?);
        let mut residual = Buffer::from_slice(device, &self.residual)?;
        let mut out = unwritten(device, self.residual.len())?;
        let norm = rmsnorm::Norm { weight: weight.view(), columns: Self::COLUMNS, eps: EPS };
        let delta = Delta::Half(delta.view());
        rmsnorm(device, storage, &mut out.view_mut(), &mut residual.view_mut(), delta, norm)?;
        Ok(vec![
            CheckOutput::new("out", widened(storage, &device.finished(&out)?)),
            CheckOutput::new("residual", wide(&device.finished(&residual)?)),
        ])
    }

    fn run_backward(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        let weight = stored(device, storage, &self.weight)?;
        let (residual, dy) = (Buffer::from_slice(device, &self.residual)?, Buffer::from_slice(device, &self.dy)?);
        let mut grad = Buffer::from_slice(device, &self.grad)?;
        let mut rounded = unwritten(device, self.grad.len())?;
        let norm = rmsnorm::Norm { weight: weight.view(), columns: Self::COLUMNS, eps: EPS };
        let (gradient, copy) = (&mut grad.view_mut(), &mut rounded.view_mut());
        rmsnorm_backward(device, storage, gradient, Some(copy), Upstream::Rows(dy.view()), residual.view(), norm)?;
        Ok(vec![
            CheckOutput::new("grad", wide(&device.finished(&grad)?)),
            CheckOutput::new("rounded", widened(storage, &device.finished(&rounded)?)),
        ])
    }
}

/// A norm of the residual stream between two products, the first of which adds to it.
pub(crate) struct Between {
    /// `[ROWS, WIDTH]`, the last columns zero.
    pub residual: Vec<f32>,
    /// What is added.
    pub delta: Vec<f32>,
    /// `[WIDTH]`.
    pub weight: Vec<f32>,
}

impl Between {
    pub const WIDTH: usize = 128;
    pub const COLUMNS: usize = 120;
    /// Inverse norms whose powers of two scale what is left to the second product.
    pub const BEFORE: [f32; ROWS] = [0.7, 0.4, 1.3];

    pub fn new() -> Self {
        let padded = |mut values: Vec<f32>| {
            values.chunks_exact_mut(Self::WIDTH).for_each(|row| row[Self::COLUMNS..].fill(0.0));
            values
        };
        let elements = ROWS * Self::WIDTH;
        Between {
            residual: padded(singles("between residual", elements, 2.0)),
            delta: padded(halves("between delta", elements, 0.5)),
            weight: padded(halves("between weight", Self::WIDTH, 1.0)),
        }
    }

    /// What the norm is of.
    pub fn sums(&self) -> Vec<f32> {
        self.residual.iter().zip(&self.delta).map(|(a, b)| a + b).collect()
    }

    /// By a kernel of its own; the product is done here.
    fn run(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        let weight = stored(device, storage, &self.weight)?;
        let (residual, before) =
            (Buffer::from_slice(device, &self.sums())?, Buffer::from_slice(device, &Self::BEFORE)?);
        let mut u = unwritten(device, self.residual.len())?;
        let [mut factors, mut inverse] = [unwritten(device, ROWS)?, unwritten(device, ROWS)?];
        let norm = rmsnorm::Norm { weight: weight.view(), columns: Self::COLUMNS, eps: EPS };
        let mut out = Deferred { u: u.view_mut(), factors: factors.view_mut(), inverse: inverse.view_mut() };
        rmsnorm_deferred(device, storage, &mut out, residual.view(), Some(before.view()), norm)?;
        let (u, factors) = (device.finished(&u)?, device.finished(&factors)?);
        let rows = u.chunks_exact(Self::WIDTH).zip(factors);
        let out: Vec<f32> = rows.flat_map(|(u, factor)| u.iter().map(move |&u| storage.widen(u) * factor)).collect();
        Ok(vec![CheckOutput::new("out", wide(&out)), CheckOutput::new("inverse", wide(&device.finished(&inverse)?))])
    }
}

/// Gates beside what they let through.
pub(crate) struct Gate {
    /// `[ROWS, 2 WIDTH]`.
    pub gate_up: Vec<f32>,
    /// `[ROWS, WIDTH]`.
    pub d_act: Vec<f32>,
}

impl Gate {
    pub const WIDTH: usize = 40;

    pub fn new() -> Self {
        let gate_up = halves("gate", ROWS * 2 * Self::WIDTH, 2.0);
        Gate { gate_up, d_act: singles("gate gradient", ROWS * Self::WIDTH, 0.5) }
    }

    fn run(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        let gate_up = stored(device, storage, &self.gate_up)?;
        let mut out = unwritten(device, self.d_act.len())?;
        swiglu(device, storage, &mut out.view_mut(), gate_up.view(), Self::WIDTH, Gates::Apart)?;
        Ok(vec![CheckOutput::new("out", widened(storage, &device.finished(&out)?))])
    }

    fn run_backward(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        let gate_up = stored(device, storage, &self.gate_up)?;
        let d_act = Buffer::from_slice(device, &self.d_act)?;
        let mut out = unwritten(device, self.gate_up.len())?;
        swiglu_backward(device, storage, &mut out.view_mut(), d_act.view(), gate_up.view(), Self::WIDTH)?;
        Ok(vec![CheckOutput::new("d_gate_up", widened(storage, &device.finished(&out)?))])
    }
}

/// Heads of queries, keys and values, with norms, and where they go.
pub(crate) struct Turn {
    /// `[ROWS, qkv]`, the padding zero.
    pub qkv: Vec<f32>,
    /// `[padded]` each.
    pub norms: [Vec<f32>; 2],
    pub table: Vec<[f32; 2]>,
    pub positions: [u32; ROWS],
    slots: [u32; ROWS],
    /// Of attention, in the order of qkv.
    pub gradient: Vec<f32>,
}

impl Turn {
    pub const HEADS: Heads = Heads { heads: 3, kv_heads: 1, head: 20, padded: 32 };
    const LAYOUT: KvLayout = KvLayout { layers: 2, kv_heads: 1, head: 32 };
    const LAYER: usize = 1;
    const BLOCKS: usize = 2;

    pub fn new() -> Self {
        let Heads { head, padded, .. } = Self::HEADS;
        let heads = |mut values: Vec<f32>| {
            values.chunks_exact_mut(padded).for_each(|stored| stored[head..].fill(0.0));
            values
        };
        let (elements, half) = (ROWS * Self::HEADS.qkv(), head / 2);
        let angle = |i: usize| (i / half) as f64 * 1e4f64.powf(-((i % half) as f64) / half as f64);
        Turn {
            qkv: heads(halves("turn qkv", elements, 2.0)),
            norms: ["turn q norm", "turn k norm"].map(|name| heads(halves(name, padded, 1.0))),
            table: (0..50 * half).map(|i| [angle(i).cos() as f32, angle(i).sin() as f32]).collect(),
            positions: [49, 7, 0],
            slots: [65, 0, 3],
            gradient: heads(singles("turn gradient", elements, 0.3)),
        }
    }

    /// Calls a launch with its inputs on the device.
    fn with(
        &self,
        device: &CheckRun<'_>,
        storage: HalfType,
        is_normed: bool,
        launch: impl FnOnce(&Inputs<'_>) -> Result<()>,
    ) -> Result<()> {
        let qkv = stored(device, storage, &self.qkv)?;
        let (q, k) = (stored(device, storage, &self.norms[0])?, stored(device, storage, &self.norms[1])?);
        let positions = Buffer::from_slice(device, &self.positions)?;
        let table = Buffer::from_slice(device, &self.table)?;
        let norms = is_normed.then(|| HeadNorms { q: q.view(), k: k.view(), eps: EPS });
        let turns = Turns { positions: positions.view(), table: table.view() };
        launch(&Inputs { qkv: qkv.view(), turns, norms, order: HeadOrder::Halves })
    }

    fn run(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        self.run_with(device, storage, true)
    }

    fn run_plain(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        self.run_with(device, storage, false)
    }

    fn run_with(&self, device: &CheckRun<'_>, storage: HalfType, is_normed: bool) -> Result<Vec<CheckOutput>> {
        self.outputs(device, storage, |q, kv| {
            self.with(device, storage, is_normed, |inputs| rope(device, storage, q, kv, inputs, Self::HEADS))
        })
    }

    /// Queries, and keys and values from their slots, where a launch leaves them.
    pub(super) fn outputs(
        &self,
        device: &CheckRun<'_>,
        storage: HalfType,
        launch: impl FnOnce(&mut ViewMut<'_, u16>, &mut KvRows<'_>) -> Result<()>,
    ) -> Result<Vec<CheckOutput>> {
        let (layout, width) = (Self::LAYOUT, Self::HEADS.padded);
        let slots = Buffer::from_slice(device, &self.slots)?;
        let mut q = unwritten(device, ROWS * Self::HEADS.heads * width)?;
        let mut pool = unwritten(device, Self::BLOCKS * layout.block())?;
        let mut kv = KvRows { pool: pool.view_mut(), layout, layer: Self::LAYER, slots: slots.view() };
        launch(&mut q.view_mut(), &mut kv)?;
        let pool = widened(storage, &device.finished(&pool)?);
        let mut kept = Vec::new();
        for slot in self.slots.map(|slot| slot as usize) {
            for plane in 0..2 {
                let start = slot / BLOCK * layout.block() + layout.layer(Self::LAYER);
                let at = start + (plane * BLOCK + slot % BLOCK) * width;
                kept.extend(&pool[at..at + width]);
            }
        }
        Ok(vec![CheckOutput::new("q", widened(storage, &device.finished(&q)?)), CheckOutput::new("kv", kept)])
    }

    fn run_backward(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        let Heads { heads, kv_heads, padded, .. } = Self::HEADS;
        let columns = |from: usize, to: usize| {
            let rows = self.gradient.chunks_exact(Self::HEADS.qkv());
            let part: Vec<f32> = rows.flat_map(|row| &row[from * padded..to * padded]).copied().collect();
            Buffer::from_slice(device, &part)
        };
        let (q, k) = (columns(0, heads)?, columns(heads, heads + kv_heads)?);
        let v = columns(heads + kv_heads, heads + 2 * kv_heads)?;
        let mut out = unwritten(device, self.qkv.len())?;
        self.with(device, storage, true, |inputs| {
            let gradients = Gradients { q: q.view(), k: k.view(), v: v.view() };
            rope_backward(device, storage, &mut out.view_mut(), &gradients, inputs, Self::HEADS)
        })?;
        Ok(vec![CheckOutput::new("d_qkv", widened(storage, &device.finished(&out)?))])
    }
}
