//! Products with stored weights, `y[tokens, n] = x[tokens, k] w[n, k]^T`; and what both directions and both families of kernels
//! share.
//!
//! How the weights lie decides which family multiplies: [`sm80`] takes rows, [`sm90`] takes tiles.

pub mod sm80;
pub mod sm90;

use super::kv::KvRows;
use super::rope::{HeadParameters, Heads, Turns};
use super::weight_layout::WeightLayout;
use crate::cuda::buffer::{Buffer, View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::launch::{check_len, check_room, int, product};
use crate::dtype::HalfType;
use crate::{Error, Result};
use std::ops::Range;

/// Which product of the stored weights `[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `y = x w^T`.
    Forward,
    /// `dx = dy w`, the gradient.
    Backward,
}

/// Sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of `x` and `y`.
    pub tokens: usize,
    /// Rows of `w`, columns of `y`.
    pub n: usize,
    /// Columns of `x` and `w`.
    pub k: usize,
}

impl Shape {
    /// The shape of the data gradient as a product of its own: outputs and terms have changed places.
    pub fn transposed(self) -> Self {
        Shape { tokens: self.tokens, n: self.k, k: self.n }
    }
}

/// Which kernel runs and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// For weights in rows.
    Sm80(sm80::Plan),
    /// For weights in tiles.
    Sm90(sm90::Plan),
}

impl Plan {
    /// The kernel for a shape whose outputs are `n` and whose terms are `k`.
    pub fn new(layout: WeightLayout, shape: Shape, multiprocessors: u32, workspace: usize) -> Self {
        match layout {
            WeightLayout::Rows => Plan::Sm80(sm80::Plan::new(shape, multiprocessors, workspace)),
            WeightLayout::Tiles => Plan::Sm90(sm90::Plan::new(shape, multiprocessors, workspace)),
        }
    }

    /// What it needs beside the operands.
    pub fn room(&self) -> Room {
        match self {
            Plan::Sm80(plan) => Room { workspace: plan.workspace, tickets: plan.tickets },
            Plan::Sm90(plan) => Room { workspace: plan.workspace(), tickets: plan.tickets() },
        }
    }
}

/// Outputs and terms of the products of a layer of Llama 3's 1B, 3B and 8B models.
#[cfg(test)]
const MODELS: [[(usize, usize); 4]; 3] = [
    [(3072, 2048), (2048, 2048), (16_384, 2048), (2048, 8192)],
    [(5120, 3072), (3072, 3072), (16_384, 3072), (3072, 8192)],
    [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336)],
];

/// What products need beside their operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Elements for chunk sums.
    pub workspace: usize,
    /// Tickets.
    pub tickets: usize,
}

impl Room {
    /// For any of the products, by outputs and terms: what a model and its benchmarks have. A gradient's shape is the transposed one.
    pub fn of(layout: WeightLayout, products: &[(usize, usize)]) -> Self {
        match layout {
            WeightLayout::Rows => sm80::room(products),
            WeightLayout::Tiles => sm90::room(products),
        }
    }

    /// For both.
    pub fn and(self, other: Room) -> Self {
        Room { workspace: self.workspace.max(other.workspace), tickets: self.tickets.max(other.tickets) }
    }

    /// Bytes of a scratch with this much room.
    pub fn bytes(&self) -> u64 {
        4 * (self.workspace as u64 + self.tickets as u64)
    }
}

/// Chunk sums and tickets of products, sized once.
#[derive(Debug)]
pub struct Scratch {
    workspace: Buffer<f32>,
    /// All zero between launches.
    tickets: Buffer<u32>,
}

impl Scratch {
    /// Exactly this much room.
    pub fn new(device: &Device, room: Room) -> Result<Self> {
        let Room { workspace, tickets } = room;
        Ok(Scratch { workspace: Buffer::uninitialised(device, workspace)?, tickets: Buffer::zeros(device, tickets)? })
    }

    /// Elements of workspace.
    pub fn workspace(&self) -> usize {
        self.workspace.len()
    }

    /// The tickets. Whoever changes them makes them zero again.
    pub fn tickets(&mut self) -> &mut Buffer<u32> {
        &mut self.tickets
    }
}

/// Units of an MLP whose gates lie together, followed by their ups, where an epilogue takes them: in the rows of the weights and
/// in the columns of what they give.
pub const GATES: usize = 8;

/// Where a unit's gate is among gates and ups in groups of [`GATES`], or its up.
pub fn gate_place(unit: usize, up: bool) -> usize {
    unit / GATES * 2 * GATES + usize::from(up) * GATES + unit % GATES
}

/// Where a product goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// Stored in f32.
    F32(ViewMut<'a, f32>),
    /// Rounded to the storage type.
    Half(ViewMut<'a, u16>),
    /// Added to what is there.
    Add(ViewMut<'a, f32>),
    /// Stored in f32 on top of what is elsewhere: `y = before + x w^T`.
    Sum {
        /// Where it goes.
        y: ViewMut<'a, f32>,
        /// What is added to.
        before: View<'a, f32>,
    },
    /// Forward, with weights in tiles: the gated activation `[tokens, n / 2]` of gates and ups in groups of [`GATES`], of what
    /// `Half` would have stored.
    Gated {
        /// `silu(gate) up`.
        act: ViewMut<'a, u16>,
        /// Gates and ups `[tokens, n]`, if they are kept.
        gate_up: Option<ViewMut<'a, u16>>,
    },
    /// Backward, with weights in tiles: gradients of gates and ups `[tokens, 2 k]` from those of the activation, which `F32`
    /// would have stored.
    GatedGradients {
        /// In groups of [`GATES`].
        d_gate_up: ViewMut<'a, u16>,
        /// What `Gated` kept.
        gate_up: View<'a, u16>,
    },
    /// Forward, with weights in tiles: what [`rope`](super::rope::rope) without norms makes of what `Half` would have stored,
    /// whose queries and keys have their columns in the order of pairs.
    Heads {
        /// Queries `[tokens, heads padded]`.
        q: ViewMut<'a, u16>,
        /// Where keys and values go.
        kv: KvRows<'a>,
        /// By what queries and keys are turned.
        turns: Turns<'a>,
        /// What the outputs are.
        heads: Heads,
    },
}

impl Output<'_> {
    /// The kernels' number for it.
    fn kind(&self) -> i32 {
        match self {
            Output::F32(_) => 0,
            Output::Half(_) => 1,
            Output::Add(_) | Output::Sum { .. } => 2,
            Output::Gated { .. } => 3,
            Output::GatedGradients { .. } => 4,
            Output::Heads { .. } => 5,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn address(&self) -> u64 {
        match self {
            Output::F32(y) | Output::Add(y) | Output::Sum { y, .. } => y.address,
            Output::Half(y)
            | Output::Gated { act: y, .. }
            | Output::GatedGradients { d_gate_up: y, .. }
            | Output::Heads { q: y, .. } => y.address,
        }
    }

    /// What else is read or written: what is added to, gates and ups, or the pool.
    fn beside(&self) -> u64 {
        match self {
            Output::F32(_) | Output::Half(_) => 0,
            Output::Add(y) => y.address,
            Output::Sum { before, .. } => before.address,
            Output::Gated { gate_up, .. } => gate_up.as_ref().map_or(0, |gate_up| gate_up.address),
            Output::GatedGradients { gate_up, .. } => gate_up.address,
            Output::Heads { kv, .. } => kv.pool.address,
        }
    }

    /// What the kernel has to know of heads.
    fn heads(&self, op: &str) -> Result<HeadParameters> {
        match self {
            Output::Heads { q, kv, turns, heads } => HeadParameters::new(op, q, kv, turns, *heads),
            _ => Ok(HeadParameters::default()),
        }
    }

    /// Checks what goes with a product of so many outputs.
    fn check(&self, op: &str, direction: Direction, layout: WeightLayout, shape: Shape) -> Result<()> {
        let Shape { tokens, n, .. } = shape;
        let gated = |of: Direction, outputs: usize| {
            if (direction, layout) != (of, WeightLayout::Tiles) || !n.is_multiple_of(outputs) {
                return Err(Error::Backend(format!(
                    "{op}: {n} outputs of weights in {layout:?} have no epilogue for a gated activation"
                )));
            }
            if !(self.address() | self.beside()).is_multiple_of(4) {
                return Err(Error::Backend(format!("{op}: gates and ups start at multiples of 4 bytes")));
            }
            Ok(())
        };
        check_len(op, "y", self.len(), product(op, tokens, n)?)?;
        match self {
            Output::F32(_) | Output::Half(_) | Output::Add(_) => Ok(()),
            Output::Sum { before, .. } => check_len(op, "before", before.len(), product(op, tokens, n)?),
            Output::Gated { gate_up, .. } => {
                if let Some(gate_up) = gate_up {
                    check_len(op, "gate_up", gate_up.len(), product(op, tokens, n)?)?;
                }
                gated(Direction::Forward, 2 * GATES)
            }
            Output::GatedGradients { gate_up, .. } => {
                check_len(op, "gate_up", gate_up.len(), product(op, product(op, tokens, n)?, 2)?)?;
                gated(Direction::Backward, GATES)
            }
            Output::Heads { heads, .. } => {
                if (direction, layout) != (Direction::Forward, WeightLayout::Tiles) || heads.qkv() != n {
                    return Err(Error::Backend(format!(
                        "{op}: {n} outputs of weights in {layout:?} have no epilogue for {heads:?}"
                    )));
                }
                self.heads(op).map(drop)
            }
        }
    }

    /// Some of the product's elements.
    fn slice(&mut self, range: Range<usize>) -> Output<'_> {
        match self {
            Output::F32(y) => Output::F32(y.slice(range)),
            Output::Half(y) => Output::Half(y.slice(range)),
            Output::Add(y) => Output::Add(y.slice(range)),
            Output::Sum { y, before } => Output::Sum { y: y.slice(range.clone()), before: before.slice(range) },
            Output::Gated { act, gate_up } => Output::Gated {
                act: act.slice(range.start / 2..range.end / 2),
                gate_up: gate_up.as_mut().map(|gate_up| gate_up.slice(range)),
            },
            Output::GatedGradients { d_gate_up, gate_up } => {
                let both = 2 * range.start..2 * range.end;
                Output::GatedGradients { d_gate_up: d_gate_up.slice(both.clone()), gate_up: gate_up.slice(both) }
            }
            Output::Heads { q, kv, turns, heads } => {
                let rows = range.start / heads.qkv().max(1)..range.end / heads.qkv().max(1);
                let width = heads.heads * heads.padded;
                Output::Heads {
                    q: q.slice(rows.start * width..rows.end * width),
                    kv: KvRows { pool: kv.pool.reborrow(), slots: kv.slots.slice(rows.clone()), ..*kv },
                    turns: Turns { positions: turns.positions.slice(rows), ..*turns },
                    heads: *heads,
                }
            }
        }
    }

    /// Elements of the product.
    pub fn len(&self) -> usize {
        match self {
            Output::F32(y) | Output::Add(y) | Output::Sum { y, .. } => y.len(),
            Output::Half(y) => y.len(),
            Output::Gated { act, .. } => 2 * act.len(),
            Output::GatedGradients { d_gate_up, .. } => d_gate_up.len() / 2,
            Output::Heads { turns, heads, .. } => turns.positions.len() * heads.qkv(),
        }
    }
}

/// Operands of a product, all in one storage type.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// Storage type.
    pub storage: HalfType,
    /// `[tokens, k]`.
    pub x: View<'a, u16>,
    /// `[n, k]`.
    pub w: View<'a, u16>,
    /// How `w` lies in memory.
    pub layout: WeightLayout,
    /// `[n]`, added before rounding.
    pub bias: Option<View<'a, u16>>,
}

/// RMSNorm at both ends of a product with weights in tiles: see
/// [`rmsnorm_deferred`](super::rmsnorm::rmsnorm_deferred).
#[derive(Debug, Default)]
pub struct Norms<'a> {
    /// What sums are multiplied with, where `x` is what a norm left to the product.
    pub factors: Option<Factors<'a>>,
    /// The norm of the residual stream that the product adds to.
    pub next: Option<NextNorm<'a>>,
}

/// A factor for each token.
#[derive(Debug)]
pub enum Factors<'a> {
    /// `[tokens]`.
    Known(View<'a, f32>),
    /// Found by the product, for at most [`NORMED_TOKENS`] tokens.
    Squares {
        /// `[tokens, k / 16]`, as [`NextNorm`] stored them.
        squares: View<'a, f32>,
        /// `[tokens]`: the inverse norms that scaled `x`.
        before: View<'a, f32>,
        /// `[tokens]`: the inverse norms, which are stored.
        inverse: ViewMut<'a, f32>,
        /// Real columns.
        columns: usize,
        /// Added to the mean of squares.
        eps: f32,
    },
}

/// What a product stores of the norm behind it: what [`rmsnorm_deferred`](super::rmsnorm::rmsnorm_deferred) would.
#[derive(Debug)]
pub struct NextNorm<'a> {
    /// `[n]`.
    pub weight: View<'a, u16>,
    /// `[tokens, n]`.
    pub u: ViewMut<'a, u16>,
    /// `[tokens, n / 16]`: sums of squares of 16 columns each.
    pub squares: ViewMut<'a, f32>,
    /// `[tokens]`: inverse norms whose powers of two `u` is scaled with.
    pub before: View<'a, f32>,
}

/// Tokens that are one tile of the widest kernel.
pub const NORMED_TOKENS: usize = sm90::TOKENS[sm90::TOKENS.len() - 1];
/// Columns whose squares are added together.
pub const SQUARES: usize = 16;

/// What the kernels have to know of norms: `NormArgs` of kernels/gemm_sm90.cu, field by field.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct NormParameters {
    factor: u64,
    squares: u64,
    before: u64,
    inverse: u64,
    next_weight: u64,
    next: u64,
    next_squares: u64,
    next_before: u64,
    groups: i32,
    columns: i32,
    eps: f32,
    unused: i32,
}

// The device reads the fields in this order.
const _: () = assert!(size_of::<NormParameters>() == 80 && std::mem::offset_of!(NormParameters, groups) == 64);

impl NormParameters {
    /// Checks what goes with a product of this shape.
    fn new(y: &Output<'_>, problem: &Problem<'_>) -> Result<Self> {
        let Problem { op, direction, shape: Shape { tokens, n, k }, norms, .. } = *problem;
        let mut of = NormParameters::default();
        let Some(Norms { factors, next }) = norms else { return Ok(of) };
        if direction != Direction::Forward {
            return Err(Error::Backend(format!("{op}: gradients of products have no norm")));
        }
        match factors {
            None => (),
            Some(Factors::Known(factors)) => {
                check_len(op, "factors", factors.len(), tokens)?;
                of.factor = factors.address;
            }
            Some(Factors::Squares { squares, before, inverse, columns, eps }) => {
                check_len(op, "squares", squares.len(), product(op, tokens, k / SQUARES)?)?;
                check_len(op, "inverse norms before", before.len(), tokens)?;
                check_len(op, "inverse norms", inverse.len(), tokens)?;
                check_room(op, "a row", k, (*columns).max(1))?;
                check_room(op, "a tile of tokens", NORMED_TOKENS, tokens)?;
                // Groups are read four at a time.
                if !k.is_multiple_of(4 * SQUARES) || !squares.address.is_multiple_of(16) {
                    return Err(Error::Backend(format!(
                        "{op}: sums of squares of rows of {k} elements are no whole and aligned fours"
                    )));
                }
                (of.squares, of.before, of.inverse) = (squares.address, before.address, inverse.address);
                (of.groups, of.columns, of.eps) =
                    (int(op, "groups", k / SQUARES)?, int(op, "columns", *columns)?, *eps);
            }
        }
        if let Some(NextNorm { weight, u, squares, before }) = next {
            check_len(op, "the next norm's weight", weight.len(), n)?;
            check_len(op, "what the next norm leaves", u.len(), product(op, tokens, n)?)?;
            check_len(op, "squares", squares.len(), product(op, tokens, n / SQUARES)?)?;
            check_len(op, "inverse norms before", before.len(), tokens)?;
            let adds = matches!(y, Output::Add(_) | Output::Sum { .. });
            let is_aligned = (y.address() | y.beside()).is_multiple_of(8) && u.address.is_multiple_of(4);
            if !adds || !n.is_multiple_of(4 * SQUARES) || !is_aligned {
                return Err(Error::Backend(format!("{op}: {n} outputs that no norm can follow at once")));
            }
            (of.next_weight, of.next) = (weight.address, u.address);
            (of.next_squares, of.next_before) = (squares.address, before.address);
        }
        Ok(of)
    }
}

/// `y = x w^T (+ bias)` with the kernel that fits the shape.
pub fn gemm(
    device: &Device,
    y: &mut Output<'_>,
    operands: Operands<'_>,
    shape: Shape,
    scratch: &mut Scratch,
) -> Result<()> {
    gemm_normed(device, y, operands, &mut Norms::default(), shape, scratch)
}

/// [`gemm`] with a norm at either end.
pub fn gemm_normed(
    device: &Device,
    y: &mut Output<'_>,
    operands: Operands<'_>,
    norms: &mut Norms<'_>,
    shape: Shape,
    scratch: &mut Scratch,
) -> Result<()> {
    let Operands { storage, x, w, layout, bias } = operands;
    let norms = Some(&*norms);
    let problem = Problem { op: "gemm", direction: Direction::Forward, storage, shape, x, w, bias, norms };
    launch_all(device, y, &problem, layout, scratch)
}

/// [`gemm`] with a chosen kernel.
pub fn gemm_planned(
    device: &Device,
    y: &mut Output<'_>,
    operands: Operands<'_>,
    shape: Shape,
    plan: Plan,
    scratch: &mut Scratch,
) -> Result<()> {
    gemm_normed_planned(device, y, operands, &mut Norms::default(), shape, plan, scratch)
}

/// [`gemm_normed`] with a chosen kernel.
pub fn gemm_normed_planned(
    device: &Device,
    y: &mut Output<'_>,
    operands: Operands<'_>,
    norms: &mut Norms<'_>,
    shape: Shape,
    plan: Plan,
    scratch: &mut Scratch,
) -> Result<()> {
    let Operands { storage, x, w, layout, bias } = operands;
    let norms = Some(&*norms);
    let problem = Problem { op: "gemm", direction: Direction::Forward, storage, shape, x, w, bias, norms };
    launch(device, y, &problem, layout, plan, scratch)
}

/// A product of either direction: the shape has the outputs as `n` and what is summed over as `k`.
pub(super) struct Problem<'a> {
    pub op: &'static str,
    pub direction: Direction,
    pub storage: HalfType,
    pub shape: Shape,
    pub x: View<'a, u16>,
    pub w: View<'a, u16>,
    pub bias: Option<View<'a, u16>>,
    /// Borrowed mutably by the caller, so nobody else reads or writes what they name.
    pub norms: Option<&'a Norms<'a>>,
}

/// Plans and launches. What would leave multiprocessors idle for want of workspace goes in several launches, each of some of the
/// tokens: the bits are the same.
pub(super) fn launch_all(
    device: &Device,
    y: &mut Output<'_>,
    problem: &Problem<'_>,
    layout: WeightLayout,
    scratch: &mut Scratch,
) -> Result<()> {
    let &Problem { op, direction, shape: Shape { tokens, n, k }, x, .. } = problem;
    check_len(op, "x", x.len(), product(op, tokens, k)?)?;
    y.check(op, direction, layout, problem.shape)?;
    let multiprocessors = device.multiprocessors();
    let most = match layout {
        WeightLayout::Rows => sm80::tokens_at_once(problem.shape, multiprocessors, scratch.workspace()),
        WeightLayout::Tiles => tokens,
    };
    for first in (0..tokens).step_by(most.max(1)) {
        let rows = first..tokens.min(first + most);
        let shape = Shape { tokens: rows.len(), n, k };
        let plan = match (layout, device.widest_products) {
            (WeightLayout::Tiles, true) => Plan::Sm90(sm90::Plan::widest(shape, multiprocessors, scratch.workspace())),
            _ => Plan::new(layout, shape, multiprocessors, scratch.workspace()),
        };
        let part = Problem { shape, x: x.slice(rows.start * k..rows.end * k), ..*problem };
        launch(device, &mut y.slice(rows.start * n..rows.end * n), &part, layout, plan, scratch)?;
    }
    Ok(())
}

/// What the kernels of both families take beside `x`: where things are, 0 for what is not there; sizes in 32 bits; and the
/// number of [`Output`].
struct GemmParameters {
    y: u64,
    w: u64,
    bias: u64,
    beside: u64,
    workspace: u64,
    tickets: u64,
    tokens: i32,
    outputs: i32,
    terms: i32,
    output: i32,
    heads: HeadParameters,
    norm: NormParameters,
}

impl GemmParameters {
    /// An error unless the scratch has this much room and the sizes have 32 bits. The borrows say that `y` and the scratch are the
    /// caller's alone.
    fn new(y: &mut Output<'_>, problem: &Problem<'_>, room: Room, scratch: &mut Scratch) -> Result<Self> {
        let Problem { op, shape: Shape { tokens, n, k }, w, bias, .. } = *problem;
        check_room(op, "workspace", scratch.workspace.len(), room.workspace)?;
        check_room(op, "tickets", scratch.tickets.len(), room.tickets)?;
        Ok(GemmParameters {
            y: y.address(),
            w: w.address,
            bias: bias.map_or(0, |bias| bias.address),
            beside: y.beside(),
            workspace: scratch.workspace.view_mut().address,
            tickets: scratch.tickets.view_mut().address,
            tokens: int(op, "tokens", tokens)?,
            outputs: int(op, "outputs", n)?,
            terms: int(op, "terms", k)?,
            output: y.kind(),
            heads: y.heads(op)?,
            norm: NormParameters::new(y, problem)?,
        })
    }
}

/// Checks what both directions and both families ask for, and launches.
pub(super) fn launch(
    device: &Device,
    y: &mut Output<'_>,
    problem: &Problem<'_>,
    layout: WeightLayout,
    plan: Plan,
    scratch: &mut Scratch,
) -> Result<()> {
    let &Problem { op, direction, shape: Shape { tokens, n, k }, x, w, bias, .. } = problem;
    check_len(op, "x", x.len(), product(op, tokens, k)?)?;
    y.check(op, direction, layout, problem.shape)?;
    product(op, n, k)?;
    if let Some(bias) = bias {
        check_len(op, "bias", bias.len(), n)?;
    }
    if !(x.address | w.address).is_multiple_of(16) {
        return Err(Error::Backend(format!("{op}: x and w start at multiples of 16 bytes")));
    }
    let has_norms = problem.norms.is_some_and(|norms| norms.factors.is_some() || norms.next.is_some());
    match (plan, layout) {
        (Plan::Sm80(_), _) if has_norms => {
            Err(Error::Backend(format!("{op}: products of weights in rows have no norm")))
        }
        (Plan::Sm80(plan), WeightLayout::Rows) => sm80::launch(device, y, problem, plan, scratch),
        (Plan::Sm90(plan), WeightLayout::Tiles) => sm90::launch(device, y, problem, plan, scratch),
        _ => Err(Error::Backend(format!("{op}: the plan is for another layout of the weights"))),
    }
}
