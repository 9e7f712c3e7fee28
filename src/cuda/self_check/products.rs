//! Problems of the products with stored weights, by every kernel of both directions.

use super::case::{Case, CheckOutput, CheckRun};
use super::numbers::{halves, singles, stored, unwritten, wide, widened};
use super::rows::{Between, EPS, Gate, Turn};
use crate::Result;
use crate::cuda::buffer::Buffer;

use crate::cuda::device::Device;
use crate::cuda::ops::gemm::{
    self, Factors, NextNorm, Norms, Operands, Plan, SQUARES, Scratch, Shape, gate_place, gemm_normed_planned,
    gemm_planned, sm80, sm90,
};
use crate::cuda::ops::gemm_backward::{Gradients, gemm_backward_planned};
use crate::cuda::ops::kv::KvRows;
use crate::cuda::ops::rope::{Turns, pair_place};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::dtype::HalfType;

/// Numbers of tokens: of each kernel for few of them, and of those for many, which take two problems.
const TOKENS: [usize; 5] = [5, 13, 29, 61, 67];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in TOKENS {
        let name = format!("{tokens} tokens");
        cases.push(Case::of_both("gemm", &name, "gemm", move |device, storage| {
            ProductCase::forward().run(device, storage, tokens, ProductKernel::SM80, Epilogue::F32)
        }));
        cases.push(Case::of_both("gemm_backward", &name, "gemm_backward", move |device, storage| {
            ProductCase::backward().run_backward(device, storage, tokens, ProductKernel::SM80)
        }));
    }
    // Without a workspace, a block adds up all of `k`.
    cases.push(Case::of_both("gemm", "67 tokens, folded", "gemm", |device, storage| {
        ProductCase::forward().run(device, storage, 67, ProductKernel::Sm80 { room: 0 }, Epilogue::F32)
    }));
    cases.push(Case::of_both("gemm_backward", "67 tokens, folded", "gemm_backward", |device, storage| {
        ProductCase::backward().run_backward(device, storage, 67, ProductKernel::Sm80 { room: 0 })
    }));
    cases.push(Case::of_both("gemm", "5 tokens, rounded", "gemm_rounded", |device, storage| {
        ProductCase::forward().run(device, storage, 5, ProductKernel::SM80, Epilogue::Half)
    }));
    cases.push(Case::of_both("gemm", "5 tokens, added", "gemm_added", |device, storage| {
        ProductCase::forward().run(device, storage, 5, ProductKernel::SM80, Epilogue::Add)
    }));
    cases
}

/// The same problems for the kernels of Hopper, each of them in both directions.
pub(super) fn sm90_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut both = |tokens: usize, instance: usize, shares: bool| {
        let (way, width) = (ProductKernel::Sm90 { instance, shares }, sm90::TOKENS[instance]);
        let name = format!("{tokens} tokens in tiles of {width}, {}", if shares { "shared" } else { "whole" });
        cases.push(Case::of_both("gemm_sm90", &name, "gemm", move |device, storage| {
            ProductCase::forward().run(device, storage, tokens, way, Epilogue::F32)
        }));
        cases.push(Case::of_both("gemm_backward_sm90", &name, "gemm_backward", move |device, storage| {
            ProductCase::backward().run_backward(device, storage, tokens, way)
        }));
    };
    // One tile that is not full, whose chunks two blocks share: 5, 13, 21, 29, 45, 61 and 67 tokens.
    for (instance, &width) in sm90::TOKENS.iter().enumerate() {
        both(67.min(width - 3), instance, true);
    }
    // Nine tiles of which two blocks share one; and tiles of which a block adds up all of `k`.
    both(67, 0, true);
    for (tokens, instance) in [(13, 1), (67, 2), (67, sm90::TOKENS.len() - 1)] {
        both(tokens, instance, false);
    }
    for (name, expected, into) in [("rounded", "gemm_rounded", Epilogue::Half), ("added", "gemm_added", Epilogue::Add)]
    {
        for shares in [true, false] {
            let way = ProductKernel::Sm90 { instance: 0, shares };
            let name = format!("5 tokens, {name}, {}", if shares { "shared" } else { "whole" });
            cases.push(Case::of_both("gemm_sm90", &name, expected, move |device, storage| {
                ProductCase::forward().run(device, storage, 5, way, into)
            }));
        }
    }
    // Products that end in the gated activation: of gates and ups as they are, so its results are those of its own kernel.
    for (instance, width) in sm90::TOKENS.iter().enumerate() {
        let name = format!("gated activation in tiles of {width}");
        cases
            .push(Case::of_both("gemm_sm90", &name, "swiglu", move |device, storage| gated(device, storage, instance)));
        cases.push(Case::of_both("gemm_backward_sm90", &name, "swiglu_backward", move |device, storage| {
            gated_gradients(device, storage, instance)
        }));
    }
    // What else products end in, by the smallest kernel, one of several slices, and the largest.
    for (instance, width) in sm90::TOKENS.iter().enumerate().filter(|(instance, _)| [0, 4, 9].contains(instance)) {
        let name = format!("heads in tiles of {width}");
        cases.push(Case::of_both("gemm_sm90", &name, "heads", move |device, storage| heads(device, storage, instance)));
        let name = format!("a norm between products in tiles of {width}");
        cases.push(Case::of_both("gemm_sm90", &name, "norm_between", move |device, storage| {
            norm_between(device, storage, instance)
        }));
    }
    cases
}

/// Both products have the identity, so the norm is what comes out.
fn norm_between(device: &CheckRun<'_>, storage: HalfType, instance: usize) -> Result<Vec<CheckOutput>> {
    let (between, n, way) = (Between::new(), Between::WIDTH, ProductKernel::Sm90 { instance, shares: false });
    let tokens = between.residual.len() / n;
    let mut identity = vec![0.0; n * n];
    (0..n).for_each(|column| identity[column * n + column] = 1.0);
    let w = way.weights(device, storage, &identity, n, n)?;
    let (x, weight) = (stored(device, storage, &between.delta)?, stored(device, storage, &between.weight)?);
    let (mut residual, before) =
        (Buffer::from_slice(device, &between.residual)?, Buffer::from_slice(device, &Between::BEFORE)?);
    let (mut u, mut y) = (unwritten(device, tokens * n)?, unwritten(device, tokens * n)?);
    let (mut squares, mut inverse) = (unwritten(device, tokens * n / SQUARES)?, unwritten(device, tokens)?);
    let shape = Shape { tokens, n, k: n };
    let plan = way.plan(device, shape);
    let mut scratch = Scratch::new(device, plan.room())?;
    let layout = way.layout();
    let of_x = Operands { storage, x: x.view(), w: w.view(), layout, bias: None };
    let next = NextNorm { weight: weight.view(), u: u.view_mut(), squares: squares.view_mut(), before: before.view() };
    let norms = &mut Norms { factors: None, next: Some(next) };
    gemm_normed_planned(device, &mut gemm::Output::Add(residual.view_mut()), of_x, norms, shape, plan, &mut scratch)?;
    let factors = Factors::Squares {
        squares: squares.view(),
        before: before.view(),
        inverse: inverse.view_mut(),
        columns: Between::COLUMNS,
        eps: EPS,
    };
    let of_u = Operands { x: u.view(), ..of_x };
    let norms = &mut Norms { factors: Some(factors), next: None };
    gemm_normed_planned(device, &mut gemm::Output::F32(y.view_mut()), of_u, norms, shape, plan, &mut scratch)?;
    Ok(vec![
        CheckOutput::new("out", wide(&device.finished(&y)?)),
        CheckOutput::new("inverse", wide(&device.finished(&inverse)?)),
    ])
}

/// Heads as they are by a product with the identity, whose rows of queries and keys are in pairs.
fn heads(device: &CheckRun<'_>, storage: HalfType, instance: usize) -> Result<Vec<CheckOutput>> {
    let (turn, heads, way) = (Turn::new(), Turn::HEADS, ProductKernel::Sm90 { instance, shares: false });
    let (tokens, n) = (turn.positions.len(), heads.qkv());
    let mut identity = vec![0.0; n * n];
    for (index, element) in (0..n / heads.padded).flat_map(|index| (0..heads.head).map(move |at| (index, at))) {
        let is_turned = index < heads.heads + heads.kv_heads;
        let place = if is_turned { pair_place(element, heads.head) } else { element };
        identity[(index * heads.padded + place) * n + index * heads.padded + element] = 1.0;
    }
    let (x, w) = (stored(device, storage, &turn.qkv)?, way.weights(device, storage, &identity, n, n)?);
    let operands = Operands { storage, x: x.view(), w: w.view(), layout: way.layout(), bias: None };
    let (positions, table) = (Buffer::from_slice(device, &turn.positions)?, Buffer::from_slice(device, &turn.table)?);
    let turns = Turns { positions: positions.view(), table: table.view() };
    let shape = Shape { tokens, n, k: n };
    let plan = way.plan(device, shape);
    let mut scratch = Scratch::new(device, plan.room())?;
    turn.outputs(device, storage, |q, kv| {
        let kv = KvRows { pool: kv.pool.reborrow(), ..*kv };
        let mut y = gemm::Output::Heads { q: q.reborrow(), kv, turns, heads };
        gemm_planned(device, &mut y, operands, shape, plan, &mut scratch)
    })
}

/// Gates and ups by a product with the identity, whose rows are in groups.
fn gated(device: &CheckRun<'_>, storage: HalfType, instance: usize) -> Result<Vec<CheckOutput>> {
    let (gate, units) = (Gate::new(), Gate::WIDTH);
    let (tokens, n, way) = (gate.d_act.len() / units, 2 * units, ProductKernel::Sm90 { instance, shares: false });
    let mut identity = vec![0.0; n * n];
    (0..n).for_each(|column| identity[in_groups(column, units) * n + column] = 1.0);
    let (x, w) = (stored(device, storage, &gate.gate_up)?, way.weights(device, storage, &identity, n, n)?);
    let operands = Operands { storage, x: x.view(), w: w.view(), layout: way.layout(), bias: None };
    let shape = Shape { tokens, n, k: n };
    let plan = way.plan(device, shape);
    let mut scratch = Scratch::new(device, plan.room())?;
    let mut out = unwritten(device, tokens * units)?;
    let mut y = gemm::Output::Gated { act: out.view_mut(), gate_up: None };
    gemm_planned(device, &mut y, operands, shape, plan, &mut scratch)?;
    Ok(vec![CheckOutput::new("out", widened(storage, &device.finished(&out)?))])
}

/// Where a gate, or a unit's up behind all gates, is in groups.
fn in_groups(column: usize, units: usize) -> usize {
    gate_place(column % units, column >= units)
}

/// Gradients that come out of a product as they are: in three numbers of 16 bits each, which together have all digits of one of 32.
fn gated_gradients(device: &CheckRun<'_>, storage: HalfType, instance: usize) -> Result<Vec<CheckOutput>> {
    const PARTS: i32 = 3;
    // What one number leaves, the next one has 2^12 times as large.
    let scale = |part: i32| (-12.0 * f64::from(part)).exp2();
    let (gate, units) = (Gate::new(), Gate::WIDTH);
    let (tokens, n, k, way) =
        (gate.d_act.len() / units, PARTS as usize * units, units, ProductKernel::Sm90 { instance, shares: false });
    let (mut dy, mut w) = (Vec::new(), Vec::new());
    for row in gate.d_act.chunks_exact(units) {
        let mut rest: Vec<f64> = row.iter().map(|&d| f64::from(d)).collect();
        for part in 0..PARTS {
            for left in &mut rest {
                let number = storage.widen(storage.round((*left / scale(part)) as f32));
                *left -= f64::from(number) * scale(part);
                dy.push(number);
            }
        }
    }
    for (part, unit) in (0..PARTS).flat_map(|part| (0..units).map(move |unit| (part, unit))) {
        w.extend((0..units).map(|output| if output == unit { scale(part) as f32 } else { 0.0 }));
    }
    let mut grouped = vec![0.0; gate.gate_up.len()];
    for (row, grouped) in gate.gate_up.chunks_exact(2 * units).zip(grouped.chunks_exact_mut(2 * units)) {
        row.iter().enumerate().for_each(|(column, &number)| grouped[in_groups(column, units)] = number);
    }
    let (dy, w) = (stored(device, storage, &dy)?, way.weights(device, storage, &w, n, k)?);
    let gate_up = stored(device, storage, &grouped)?;
    let gradients = Gradients { storage, dy: dy.view(), w: w.view(), layout: way.layout() };
    let shape = Shape { tokens, n, k };
    let plan = way.plan(device, shape.transposed());
    let mut scratch = Scratch::new(device, plan.room())?;
    let mut out = unwritten(device, 2 * tokens * units)?;
    let mut y = gemm::Output::GatedGradients { d_gate_up: out.view_mut(), gate_up: gate_up.view() };
    gemm_backward_planned(device, &mut y, gradients, shape, plan, &mut scratch)?;
    let found = widened(storage, &device.finished(&out)?);
    let apart = |row: &[f64]| (0..2 * units).map(|column| row[in_groups(column, units)]).collect::<Vec<_>>();
    Ok(vec![CheckOutput::new("d_gate_up", found.chunks_exact(2 * units).flat_map(apart).collect())])
}

/// Which kernel multiplies.
#[derive(Clone, Copy)]
enum ProductKernel {
    /// The one of every card that fits the shape, with so many elements of workspace.
    Sm80 { room: usize },
    /// One of Hopper's, by its index, on two multiprocessors, which share tiles that are left over or do not.
    Sm90 { instance: usize, shares: bool },
}

impl ProductKernel {
    /// With room for all chunks of all tokens.
    const SM80: ProductKernel = ProductKernel::Sm80 { room: 1 << 14 };

    fn layout(self) -> WeightLayout {
        match self {
            ProductKernel::Sm80 { .. } => WeightLayout::Rows,
            ProductKernel::Sm90 { .. } => WeightLayout::Tiles,
        }
    }

    /// For a shape whose outputs are `n` and whose terms are `k`.
    fn plan(self, device: &Device, shape: Shape) -> Plan {
        match self {
            ProductKernel::Sm80 { room } => Plan::Sm80(sm80::Plan::new(shape, device.multiprocessors(), room)),
            ProductKernel::Sm90 { instance, shares } => {
                let room = if shares { usize::MAX } else { 0 };
                Plan::Sm90(sm90::Plan::with_instance(shape, instance, 2, room))
            }
        }
    }

    /// Rows `[n, k]` on the device, as the kernel reads them.
    fn weights(self, device: &Device, storage: HalfType, rows: &[f32], n: usize, k: usize) -> Result<Buffer<u16>> {
        let bits: Vec<u16> = rows.iter().map(|&x| storage.round(x)).collect();
        Buffer::from_slice(device, &self.layout().arranged(&bits, n, k))
    }
}

/// What becomes of the sums.
#[derive(Clone, Copy)]
enum Epilogue {
    F32,
    Half,
    Add,
}

/// `terms` are long enough for two chunks, `outputs` no multiple of anything.
pub(crate) struct ProductCase {
    /// `[67, TERMS]`.
    pub x: Vec<f32>,
    /// Forward `[OUTPUTS, TERMS]`, backward `[TERMS, OUTPUTS]`.
    pub w: Vec<f32>,
    pub bias: Vec<f32>,
    /// What is added to, `[67, OUTPUTS]`.
    pub before: Vec<f32>,
}

impl ProductCase {
    pub const TERMS: usize = 1024;
    /// Of the forward pass.
    pub const OUTPUTS: usize = 21;
    /// Of the backward pass.
    pub const BACK: usize = 24;

    pub fn forward() -> Self {
        ProductCase::of("product", Self::OUTPUTS)
    }

    pub fn backward() -> Self {
        ProductCase::of("gradient", Self::BACK)
    }

    fn of(name: &str, outputs: usize) -> Self {
        let named = |what: &str| format!("{name} {what}");
        ProductCase {
            x: halves(&named("x"), 67 * Self::TERMS, 1.0),
            w: halves(&named("w"), outputs * Self::TERMS, 0.1),
            bias: halves(&named("bias"), outputs, 1.0),
            before: singles(&named("before"), 67 * outputs, 1.0),
        }
    }

    fn run(
        &self,
        device: &CheckRun<'_>,
        storage: HalfType,
        tokens: usize,
        way: ProductKernel,
        into: Epilogue,
    ) -> Result<Vec<CheckOutput>> {
        let (n, k) = (Self::OUTPUTS, Self::TERMS);
        let x = stored(device, storage, &self.x[..tokens * k])?;
        let (w, bias) = (way.weights(device, storage, &self.w, n, k)?, stored(device, storage, &self.bias)?);
        let operands = Operands { storage, x: x.view(), w: w.view(), layout: way.layout(), bias: Some(bias.view()) };
        let shape = Shape { tokens, n, k };
        let plan = way.plan(device, shape);
        let mut scratch = Scratch::new(device, plan.room())?;
        let mut product = |mut y: gemm::Output<'_>| gemm_planned(device, &mut y, operands, shape, plan, &mut scratch);
        let values = match into {
            Epilogue::F32 => {
                let mut y = unwritten(device, tokens * n)?;
                product(gemm::Output::F32(y.view_mut()))?;
                wide(&device.finished(&y)?)
            }
            Epilogue::Half => {
                let mut y = unwritten(device, tokens * n)?;
                product(gemm::Output::Half(y.view_mut()))?;
                widened(storage, &device.finished(&y)?)
            }
            Epilogue::Add => {
                let mut y = Buffer::from_slice(device, &self.before[..tokens * n])?;
                product(gemm::Output::Add(y.view_mut()))?;
                wide(&device.finished(&y)?)
            }
        };
        Ok(vec![CheckOutput::new("y", values)])
    }

    fn run_backward(
        &self,
        device: &CheckRun<'_>,
        storage: HalfType,
        tokens: usize,
        way: ProductKernel,
    ) -> Result<Vec<CheckOutput>> {
        let (n, k) = (Self::TERMS, Self::BACK);
        let dy = stored(device, storage, &self.x[..tokens * n])?;
        let w = way.weights(device, storage, &self.w, n, k)?;
        let gradients = Gradients { storage, dy: dy.view(), w: w.view(), layout: way.layout() };
        let shape = Shape { tokens, n, k };
        let plan = way.plan(device, shape.transposed());
        let mut scratch = Scratch::new(device, plan.room())?;
        let mut dx = unwritten(device, tokens * k)?;
        let mut out = gemm::Output::F32(dx.view_mut());
        gemm_backward_planned(device, &mut out, gradients, shape, plan, &mut scratch)?;
        Ok(vec![CheckOutput::new("dx", wide(&device.finished(&dx)?))])
    }
}
