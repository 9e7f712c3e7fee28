//! Cases of `gemm`, and what they share with those of `gemm_backward` and of Hopper's kernels.

use super::adder::{A100, H100};
use super::case::{Case, Check};
use super::errors::{Errors, half_unit};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::rows::{Rows, batches, first_of, repeated, single};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::gemm::{
    Direction, Factors, NextNorm, Norms, Operands, Output, Plan, Room, SQUARES, Scratch, Shape, gate_place, gemm,
    gemm_normed_planned, gemm_planned, sm80, sm90,
};
use crate::cuda::ops::gemm_backward::{Gradients, gemm_backward, gemm_backward_planned};
use crate::cuda::ops::kv::{KvLayout, KvRows};
use crate::cuda::ops::rmsnorm::{Deferred, Norm, rmsnorm_deferred};
use crate::cuda::ops::rope::{HeadOrder, Heads, Inputs, Turns, rope};
use crate::cuda::ops::swiglu::{Gates, swiglu, swiglu_backward};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::kv::BLOCK;
use std::ops::Range;

/// Kernels of one direction for one layout of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmKernels {
    pub direction: Direction,
    pub layout: WeightLayout,
}

/// What becomes of the sums. Variants are named in cases, whose names seed their numbers: renaming one changes digests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    F32,
    Storage,
    Residual,
    Gradient,
}

/// The cases of a family: its shapes with three ways of storing, and those for which rows are run alone and together. Each family
/// has shapes of its own, because its kernels have tiles of their own.
pub fn cases_of(
    family: GemmKernels,
    shapes: &[(usize, usize, usize)],
    together: [(usize, usize, usize); 3],
) -> Vec<Case> {
    let op = family.op();
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for &(tokens, n, k) in shapes {
            let shape = Shape { tokens, n, k };
            for (into, bias, values) in family.stored() {
                // What a wide matrix shows, one way of storing it shows.
                if family.sizes(shape).0 > 1000 && into != Epilogue::F32 {
                    continue;
                }
                let name = format!("{} [{tokens}, {n}, {k}] into {into:?}, {values}", storage.name());
                cases.push(Case::seeded(op, name, tokens.next_multiple_of(8) * n * k, move |seed, device, check| {
                    Problem::new(family, seed, storage, shape, into, bias, values).check(device, check)
                }));
            }
        }
        for (tokens, n, k) in together {
            let name = format!("{} {tokens} rows alone and together in every tile, n {n}, k {k}", storage.name());
            // Of which the emulated device does sixteen in the time of one element.
            cases.push(Case::new(op, name, tokens * n * k * 10 / 16, move |device, check| {
                let (shape, values) = (Shape { tokens, n, k }, Values::Outliers);
                Problem::new(family, "together", storage, shape, Epilogue::F32, false, values)
                    .alone_and_together(device, check)
            }));
        }
    }
    cases
}

/// On Hopper: a slice of a shared tile whose other sums are still to come is left to the block that stores them.
pub fn waiting_cases(family: GemmKernels) -> impl Iterator<Item = Case> {
    let shape = match family.direction {
        Direction::Forward => Shape { tokens: 32, n: 40, k: 1088 },
        Direction::Backward => Shape { tokens: 32, n: 1088, k: 40 },
    };
    HalfType::ALL.into_iter().map(move |storage| {
        let name = format!("{} a slice that waits for sums", storage.name());
        let work = shape.tokens * shape.n * shape.k;
        Case::seeded(family.op(), name, work, move |seed, device, check| {
            let problem = Problem::new(family, seed, storage, shape, Epilogue::F32, false, Values::Normal(1.0));
            problem.one_slice_waits(device, check)
        })
    })
}

/// On Hopper: products that end in the gated activation, or in its gradients, give the bits of products and kernels of their own.
/// The sizes are tokens, units and what is summed over.
pub fn gated_cases(family: GemmKernels, sizes: &[(usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for &(tokens, units, terms) in sizes {
            let shape = match family.direction {
                Direction::Forward => Shape { tokens, n: 2 * units, k: terms },
                Direction::Backward => Shape { tokens, n: terms, k: units },
            };
            let name = format!("{} gated activation [{tokens}, {units}, {terms}]", storage.name());
            let work = tokens.next_multiple_of(8) * shape.n * shape.k * 10 / 16;
            cases.push(Case::seeded(family.op(), name, work, move |seed, device, check| {
                let bias = family.direction == Direction::Forward;
                let problem = Problem::new(family, seed, storage, shape, Epilogue::Storage, bias, Values::Normal(0.1));
                problem.gated(device, check)
            }));
        }
    }
    cases
}

/// On Hopper: products that end in turned queries and kept keys and values give the bits of a product and of `rope`. Elements of a
/// head, query and key heads, tokens and what is summed over.
pub fn head_cases(family: GemmKernels, sizes: &[(usize, usize, usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for &(head, heads, kv_heads, tokens, terms) in sizes {
            let heads = Heads { heads, kv_heads, head, padded: Heads::padded(head).unwrap_or(head) };
            let shape = Shape { tokens, n: heads.qkv(), k: terms };
            let name = format!(
                "{} {} + 2 x {kv_heads} heads of {head} [{tokens}, {}, {terms}]",
                storage.name(),
                heads.heads,
                shape.n
            );
            let work = tokens.next_multiple_of(8) * shape.n * shape.k * 10 / 16;
            cases.push(Case::seeded(family.op(), name, work, move |seed, device, check| {
                let problem = Problem::new(family, seed, storage, shape, Epilogue::Storage, true, Values::Normal(0.1));
                problem.heads(device, check, heads)
            }));
        }
    }
    cases
}

/// On Hopper: products with norms at their ends give the bits of products and of `rmsnorm_deferred`. Tokens, columns of the residual
/// stream, of which some are real, and what is summed over.
pub fn norm_cases(family: GemmKernels, sizes: &[(usize, usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for &(tokens, d, columns, terms) in sizes {
            let shape = Shape { tokens, n: d, k: terms };
            let name = format!("{} norms of {columns} columns [{tokens}, {d}, {terms}]", storage.name());
            let work = tokens.next_multiple_of(8) * shape.n * shape.k * 10 / 16;
            cases.push(Case::seeded(family.op(), name, work, move |seed, device, check| {
                let problem =
                    Problem::new(family, seed, storage, shape, Epilogue::Residual, false, Values::Normal(0.1));
                problem.norms(device, check, columns)
            }));
        }
    }
    cases
}

/// Gates and then ups of each row, in groups; or from groups.
pub fn grouped(rows: &[u16], units: usize, into_groups: bool) -> Vec<u16> {
    let mut out = vec![0; rows.len()];
    for (row, out) in rows.chunks_exact(2 * units).zip(out.chunks_exact_mut(2 * units)) {
        for unit in 0..units {
            for up in [false, true] {
                let (apart, group) = (usize::from(up) * units + unit, gate_place(unit, up));
                let (from, to) = if into_groups { (apart, group) } else { (group, apart) };
                out[to] = row[from];
            }
        }
    }
    out
}

const FORWARD: GemmKernels = GemmKernels { direction: Direction::Forward, layout: WeightLayout::Rows };

pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 64),
        (1, 130, 1152),
        (2, 31, 128),
        (7, 64, 2304),
        (9, 33, 64),
        (16, 111, 1024),
        (31, 129, 192),
        (33, 40, 2304),
        (64, 100, 1088),
        (65, 131, 192),
        (129, 257, 1152),
        (1, 32_000, 128),
        (3, 128_256, 64),
    ];
    cases_of(FORWARD, &shapes, [(257, 40, 1088), (257, 24, 2112), (34, 36, 1088)])
}

impl GemmKernels {
    fn op(self) -> &'static str {
        match (self.layout, self.direction) {
            (WeightLayout::Rows, Direction::Forward) => "gemm",
            (WeightLayout::Rows, Direction::Backward) => "gemm_backward",
            (WeightLayout::Tiles, Direction::Forward) => "gemm_sm90",
            (WeightLayout::Tiles, Direction::Backward) => "gemm_backward_sm90",
        }
    }

    fn result(self) -> &'static str {
        match self.direction {
            Direction::Forward => "y",
            Direction::Backward => "dx",
        }
    }

    /// Outputs per token, and terms per output.
    fn sizes(self, Shape { n, k, .. }: Shape) -> (usize, usize) {
        match self.direction {
            Direction::Forward => (n, k),
            Direction::Backward => (k, n),
        }
    }

    /// The ways of storing, each with whether there is a bias, and the numbers.
    fn stored(self) -> [(Epilogue, bool, Values); 3] {
        let (bias, last) = match self.direction {
            Direction::Forward => (true, Epilogue::Residual),
            Direction::Backward => (false, Epilogue::Gradient),
        };
        [
            (Epilogue::F32, false, Values::Normal(1.0)),
            (Epilogue::Storage, bias, Values::Normal(0.05)),
            (last, false, Values::Outliers),
        ]
    }

    /// The chunks in which the terms of an output are added.
    fn chunks(self, shape: Shape) -> usize {
        let (outputs, terms) = self.sizes(shape);
        match self.layout {
            WeightLayout::Rows => sm80::Chunks::of(outputs, terms).count,
            WeightLayout::Tiles => sm90::chunks(outputs, terms),
        }
    }

    /// Every launch of a shape, with the kernel's name.
    fn plans(self, device: &Device, storage: HalfType, shape: Shape) -> Vec<(String, Plan)> {
        let (n, k) = self.sizes(shape);
        let shape = Shape { tokens: shape.tokens, n, k };
        match self.layout {
            WeightLayout::Rows => {
                let tiles = sm80::TILES.iter().enumerate();
                let plan = |(index, tile): (usize, &sm80::Tile)| {
                    (tile.name(self.direction, storage).to_string(), Plan::Sm80(sm80::Plan::with_tile(shape, index)))
                };
                tiles.map(plan).collect()
            }
            // Few multiprocessors have whole tiles and shares of others, and finish tiles that others began.
            WeightLayout::Tiles => {
                let cards = [device.multiprocessors(), 1, 2, 3];
                let all = cards.iter().flat_map(|&card| (0..sm90::TOKENS.len()).map(move |index| (card, index)));
                let plan = |(card, index)| {
                    let name = sm90::name(index, self.direction, storage);
                    (format!("{name} on {card}"), Plan::Sm90(sm90::Plan::with_instance(shape, index, card, usize::MAX)))
                };
                all.map(plan).collect()
            }
        }
    }
}

/// One problem on the host.
struct Problem {
    family: GemmKernels,
    storage: HalfType,
    shape: Shape,
    into: Epilogue,
    /// Tokens by terms.
    x: Vec<u16>,
    w: Vec<u16>,
    bias: Option<Vec<u16>>,
    /// What the result is added to.
    before: Vec<f32>,
}

impl Problem {
    fn new(
        family: GemmKernels,
        seed: &str,
        storage: HalfType,
        shape: Shape,
        into: Epilogue,
        bias: bool,
        values: Values,
    ) -> Self {
        let Shape { tokens, n, k } = shape;
        let (outputs, terms) = family.sizes(shape);
        let mut random = Random::named(seed);
        let x = stored(storage, &random.vector(tokens * terms, values));
        let w = stored(storage, &random.vector(n * k, Values::Normal(0.1)));
        let bias = bias.then(|| stored(storage, &random.vector(n, Values::Normal(1.0))));
        let before = random.vector(tokens * outputs, Values::Normal(1.0));
        Problem { family, storage, shape, into, x, w, bias, before }
    }

    /// The result for some of the tokens, widened; by the kernel that fits, or as planned.
    fn run(&self, device: &Device, check: &mut Check, tokens: Range<usize>, plan: Option<Plan>) -> Result<Rows<f32>> {
        let (storage, (outputs, terms)) = (self.storage, self.family.sizes(self.shape));
        let GemmKernels { direction, layout } = self.family;
        let shape = Shape { tokens: tokens.len(), ..self.shape };
        let x = Guarded::input(device, &self.x[tokens.start * terms..tokens.end * terms])?;
        let w = Guarded::input(device, &layout.arranged(&self.w, shape.n, shape.k))?;
        let bias = self.bias.as_ref().map(|bias| Guarded::input(device, bias)).transpose()?;
        let elements = shape.tokens * outputs;
        let room = plan.map_or_else(|| Room::of(layout, &[(outputs, terms)]), |plan| plan.room());
        let mut scratch = Scratch::new(device, room)?;
        let bias = bias.as_ref().map(|bias| bias.view());
        let operands = Operands { storage, x: x.view(), w: w.view(), layout, bias };
        let gradients = Gradients { storage, dy: x.view(), w: w.view(), layout };
        let mut launch = |y: &mut Output<'_>| match (direction, plan) {
            (Direction::Forward, None) => gemm(device, y, operands, shape, &mut scratch),
            (Direction::Forward, Some(plan)) => gemm_planned(device, y, operands, shape, plan, &mut scratch),
            (Direction::Backward, None) => gemm_backward(device, y, gradients, shape, &mut scratch),
            (Direction::Backward, Some(plan)) => gemm_backward_planned(device, y, gradients, shape, plan, &mut scratch),
        };
        let name = self.family.result();
        let rows = |values| Rows { name, width: outputs, values };
        match self.into {
            // Into a fresh buffer each, so that a launch which writes nothing is seen; the tickets are back at zero.
            Epilogue::F32 => repeated(check, shape.tokens, |check, _| {
                let mut out = Guarded::output(device, elements, 0)?;
                launch(&mut Output::F32(out.view_mut()))?;
                Ok(rows(out.read(device, check, name)?))
            }),
            Epilogue::Storage => {
                let mut out = Guarded::output(device, elements, 0)?;
                launch(&mut Output::Half(out.view_mut()))?;
                Ok(rows(widened(storage, &out.read(device, check, name)?)))
            }
            Epilogue::Residual | Epilogue::Gradient => {
                let before = &self.before[tokens.start * outputs..tokens.end * outputs];
                let mut out = Guarded::shifted(device, before, 0)?;
                launch(&mut Output::Add(out.view_mut()))?;
                let values = out.read(device, check, name)?;
                // Elsewhere, on top of the same.
                let (before, mut other) = (Guarded::shifted(device, before, 0)?, Guarded::output(device, elements, 0)?);
                launch(&mut Output::Sum { y: other.view_mut(), before: before.view() })?;
                let mut unseen = Check::default();
                check.same(&format!("{name} elsewhere"), &other.read(device, &mut unseen, name)?, &values);
                Ok(rows(values))
            }
        }
    }

    /// A tile of two slices, of which one has a ticket as if more sums were to come.
    fn one_slice_waits(&self, device: &Device, check: &mut Check) -> Result<()> {
        let GemmKernels { direction, layout } = self.family;
        let (tokens, (outputs, terms)) = (self.shape.tokens, self.family.sizes(self.shape));
        let instance = sm90::TOKENS.iter().position(|&width| width == tokens).unwrap_or(0);
        let plan = sm90::Plan::with_instance(Shape { tokens, n: outputs, k: terms }, instance, 2, usize::MAX);
        if (plan.split, plan.chunks, plan.blocks, sm90::slices(tokens)) != (1, 2, 2, 2) {
            check.fail(format!("no tile of two slices in two blocks: {plan:?}"));
        }
        let plan = Plan::Sm90(plan);
        let whole = self.run(device, check, 0..tokens, Some(plan))?.values;
        let (x, w) = (
            Guarded::input(device, &self.x)?,
            Guarded::input(device, &layout.arranged(&self.w, self.shape.n, self.shape.k))?,
        );
        let mut scratch = Scratch::new(device, plan.room())?;
        for waiting in 0..2 {
            const SO_FAR: u32 = 1 << 20;
            let mut tickets = [0; 2];
            tickets[waiting] = SO_FAR;
            scratch.tickets().upload(device, &tickets)?;
            let mut out = Guarded::<f32>::output(device, tokens * outputs, 0)?;
            let (storage, mut y) = (self.storage, Output::F32(out.view_mut()));
            match direction {
                Direction::Forward => {
                    let operands = Operands { storage, x: x.view(), w: w.view(), layout, bias: None };
                    gemm_planned(device, &mut y, operands, self.shape, plan, &mut scratch)?;
                }
                Direction::Backward => {
                    let gradients = Gradients { storage, dy: x.view(), w: w.view(), layout };
                    gemm_backward_planned(device, &mut y, gradients, self.shape, plan, &mut scratch)?;
                }
            }
            let found = out.read(device, check, self.family.result())?;
            let mut expected = whole.clone();
            expected
                .chunks_exact_mut(tokens / 2 * outputs)
                .nth(waiting)
                .into_iter()
                .flatten()
                .for_each(|y| *y = f32::from_bits(u32::MAX));
            check.same(&format!("{} while slice {waiting} waits", self.family.result()), &found, &expected);
            tickets[waiting] += 2;
            check.same("tickets", &scratch.tickets().download(device)?, &tickets);
        }
        Ok(())
    }

    /// By every kernel, and with tiles that blocks share.
    fn heads(&self, device: &Device, check: &mut Check, heads: Heads) -> Result<()> {
        const POSITIONS: usize = 50;
        const LAYER: usize = 1;
        let Problem { family: GemmKernels { layout, .. }, storage, shape, .. } = *self;
        let Shape { tokens, n, k } = shape;
        let x = Guarded::input(device, &self.x)?;
        let w = Guarded::input(device, &layout.arranged(&self.w, n, k))?;
        let bias = self.bias.as_ref().map(|bias| Guarded::input(device, bias)).transpose()?;
        let run = |y: &mut Output<'_>, plan: Plan| {
            let bias = bias.as_ref().map(|bias| bias.view());
            let operands = Operands { storage, x: x.view(), w: w.view(), layout, bias };
            gemm_planned(device, y, operands, shape, plan, &mut Scratch::new(device, plan.room())?)
        };
        let pool_layout = KvLayout { layers: 2, kv_heads: heads.kv_heads, head: heads.padded };
        // Every other slot, downwards; some rows are not kept, and one is beyond the table.
        let blocks = (2 * tokens).div_ceil(BLOCK);
        let slot = |row: usize| if row % 7 == 3 { u32::MAX } else { (2 * (tokens - 1 - row)) as u32 };
        let slots = Guarded::input(device, &(0..tokens).map(slot).collect::<Vec<_>>())?;
        let position = |row: usize| if row == 1 { POSITIONS as u32 } else { (row * 31 % POSITIONS) as u32 };
        let positions = Guarded::input(device, &(0..tokens).map(position).collect::<Vec<_>>())?;
        let angles = Random::named("angles").vector(POSITIONS * heads.head / 2, Values::Normal(3.0));
        let table: Vec<[f32; 2]> = angles.iter().map(|angle| [angle.cos(), angle.sin()]).collect();
        let table = Guarded::input(device, &table)?;
        let turns = Turns { positions: positions.view(), table: table.view() };
        let (queries, elements) = (tokens * heads.heads * heads.padded, blocks * pool_layout.block());

        // What kernels of their own make of it.
        let mut qkv = Guarded::output(device, tokens * n, 0)?;
        let own = Plan::new(layout, shape, device.multiprocessors(), usize::MAX);
        run(&mut Output::Half(qkv.view_mut()), own)?;
        let inputs = Inputs { qkv: qkv.view(), turns, norms: None, order: HeadOrder::Pairs };
        let mut q = Guarded::output(device, queries, 0)?;
        let mut pool = Guarded::output(device, elements, 0)?;
        let mut kv = KvRows { pool: pool.view_mut(), layout: pool_layout, layer: LAYER, slots: slots.view() };
        rope(device, storage, &mut q.view_mut(), &mut kv, &inputs, heads)?;
        let (q, pool) = (q.read(device, check, "queries")?, pool.read(device, check, "pool")?);
        for (name, plan) in self.family.plans(device, storage, shape) {
            let mut found = Guarded::output(device, queries, 0)?;
            let mut kept = Guarded::output(device, elements, 0)?;
            let kv = KvRows { pool: kept.view_mut(), layout: pool_layout, layer: LAYER, slots: slots.view() };
            run(&mut Output::Heads { q: found.view_mut(), kv, turns, heads }, plan)?;
            // What they hold is compared and needs no digest of its own.
            let mut unseen = Check::default();
            check.same(&format!("queries by {name}"), &found.read(device, &mut unseen, "queries")?, &q);
            check.same(&format!("pool by {name}"), &kept.read(device, &mut unseen, "pool")?, &pool);
            check.join(unseen);
        }
        Ok(())
    }

    /// A product that adds to a residual stream whose norm is behind it, and a product of what that leaves.
    fn norms(&self, device: &Device, check: &mut Check, columns: usize) -> Result<()> {
        const EPS: f32 = 1e-5;
        const OUTPUTS: usize = 40;
        let Problem { family, storage, shape, .. } = *self;
        let layout = family.layout;
        let Shape { tokens, n: d, k } = shape;
        let x = Guarded::input(device, &self.x)?;
        let w = Guarded::input(device, &layout.arranged(&self.w, d, k))?;
        let operands = Operands { storage, x: x.view(), w: w.view(), layout, bias: None };
        let mut random = Random::named("norms");
        let mut weight = stored(storage, &random.vector(d, Values::Normal(0.5)));
        weight[columns..].fill(0);
        let weight = Guarded::input(device, &weight)?;
        let before: Vec<f32> = random.vector(tokens, Values::Normal(1.0)).iter().map(|x| x.abs() + 0.1).collect();
        let before = Guarded::input(device, &before)?;
        let norm = Norm { weight: weight.view(), columns, eps: EPS };
        let plan = |shape| Plan::new(layout, shape, device.multiprocessors(), usize::MAX);

        // What kernels of their own make of it.
        let mut residual = Guarded::input(device, &self.before)?;
        let y = &mut Output::Add(residual.view_mut());
        gemm_planned(device, y, operands, shape, plan(shape), &mut Scratch::new(device, plan(shape).room())?)?;
        let mut u = Guarded::output(device, tokens * d, 0)?;
        let mut factors = Guarded::output(device, tokens, 0)?;
        let mut inverse = Guarded::output(device, tokens, 0)?;
        let mut out = Deferred { u: u.view_mut(), factors: factors.view_mut(), inverse: inverse.view_mut() };
        rmsnorm_deferred(device, storage, &mut out, residual.view(), Some(before.view()), norm)?;
        let residual = residual.read(device, check, "residual")?;
        let left = u.read(device, check, "u")?;
        let mut squares = Guarded::output(device, tokens * d / SQUARES, 0)?;
        for (index, (name, plan)) in family.plans(device, storage, shape).into_iter().enumerate() {
            let mut found = Guarded::input(device, &self.before)?;
            let mut found_u = Guarded::output(device, tokens * d, 0)?;
            let mut found_squares = Guarded::output(device, tokens * d / SQUARES, 0)?;
            let next = NextNorm {
                weight: weight.view(),
                u: found_u.view_mut(),
                squares: found_squares.view_mut(),
                before: before.view(),
            };
            let norms = &mut Norms { factors: None, next: Some(next) };
            let scratch = &mut Scratch::new(device, plan.room())?;
            gemm_normed_planned(device, &mut Output::Add(found.view_mut()), operands, norms, shape, plan, scratch)?;
            // What they hold is compared and needs no digest of its own.
            let mut unseen = Check::default();
            check.same(&format!("residual by {name}"), &found.read(device, &mut unseen, "residual")?, &residual);
            check.same(&format!("u by {name}"), &found_u.read(device, &mut unseen, "u")?, &left);
            let sums = found_squares.read(device, &mut unseen, "squares")?;
            if index == 0 {
                squares = Guarded::input(device, &sums)?;
            }
            check.same(&format!("squares by {name}"), &sums, &squares.read(device, &mut unseen, "squares")?);
            check.join(unseen);
        }

        // The product behind it, whose sums are multiplied before the bias is added.
        let shape = Shape { tokens, n: OUTPUTS, k: d };
        let w = stored(storage, &random.vector(OUTPUTS * d, Values::Normal(0.1)));
        let w = Guarded::input(device, &layout.arranged(&w, OUTPUTS, d))?;
        let bias = stored(storage, &random.vector(OUTPUTS, Values::Normal(1.0)));
        let bias = Guarded::input(device, &bias)?;
        let plain = Operands { storage, x: u.view(), w: w.view(), layout, bias: None };
        let mut sums = Guarded::output(device, tokens * OUTPUTS, 0)?;
        let scratch = &mut Scratch::new(device, plan(shape).room())?;
        gemm_planned(device, &mut Output::F32(sums.view_mut()), plain, shape, plan(shape), scratch)?;
        let factor_of = factors.read(device, check, "factors")?;
        let inverse = inverse.read(device, check, "inverse norms")?;
        let added = widened(storage, &bias.read(device, check, "bias")?);
        let sums = sums.read(device, check, "sums")?;
        let expected = sums.iter().enumerate().map(|(at, sum)| sum * factor_of[at / OUTPUTS] + added[at % OUTPUTS]);
        let expected: Vec<f32> = expected.collect();
        for (name, plan) in family.plans(device, storage, shape) {
            let fits = matches!(plan, Plan::Sm90(plan) if sm90::TOKENS[plan.instance] >= tokens);
            for known in if fits { &[true, false][..] } else { &[true] } {
                let mut y = Guarded::output(device, tokens * OUTPUTS, 0)?;
                let mut found = Guarded::output(device, tokens, 0)?;
                let of_x = if *known {
                    Factors::Known(factors.view())
                } else {
                    let (squares, before, inverse) = (squares.view(), before.view(), found.view_mut());
                    Factors::Squares { squares, before, inverse, columns, eps: EPS }
                };
                let operands = Operands { bias: Some(bias.view()), ..plain };
                let norms = &mut Norms { factors: Some(of_x), next: None };
                let scratch = &mut Scratch::new(device, plan.room())?;
                gemm_normed_planned(device, &mut Output::F32(y.view_mut()), operands, norms, shape, plan, scratch)?;
                let mut unseen = Check::default();
                check.same(&format!("product by {name}"), &y.read(device, &mut unseen, "product")?, &expected);
                let found = found.read(device, &mut unseen, "inverse norms")?;
                if !known {
                    check.same(&format!("inverse norms by {name}"), &found, &inverse);
                }
                check.join(unseen);
            }
        }
        Ok(())
    }

    fn gated(&self, device: &Device, check: &mut Check) -> Result<()> {
        let Problem { family: GemmKernels { direction, layout }, storage, shape, .. } = *self;
        let (outputs, terms) = self.family.sizes(shape);
        let elements = shape.tokens * outputs;
        let x = Guarded::input(device, &self.x)?;
        let w = Guarded::input(device, &layout.arranged(&self.w, shape.n, shape.k))?;
        let bias = self.bias.as_ref().map(|bias| Guarded::input(device, bias)).transpose()?;
        let run = |y: &mut Output<'_>, plan: Plan| {
            let mut scratch = Scratch::new(device, plan.room())?;
            match direction {
                Direction::Forward => {
                    let bias = bias.as_ref().map(|bias| bias.view());
                    let operands = Operands { storage, x: x.view(), w: w.view(), layout, bias };
                    gemm_planned(device, y, operands, shape, plan, &mut scratch)
                }
                Direction::Backward => {
                    let gradients = Gradients { storage, dy: x.view(), w: w.view(), layout };
                    gemm_backward_planned(device, y, gradients, shape, plan, &mut scratch)
                }
            }
        };
        let of_shape = Shape { tokens: shape.tokens, n: outputs, k: terms };
        // What kernels of their own make of it.
        let own = Plan::new(layout, of_shape, device.multiprocessors(), usize::MAX);
        let plans = self.family.plans(device, storage, shape);
        match direction {
            Direction::Forward => {
                let units = outputs / 2;
                let mut both = Guarded::output(device, elements, 0)?;
                run(&mut Output::Half(both.view_mut()), own)?;
                let both = both.read(device, check, "gates and ups")?;
                let apart = Guarded::input(device, &grouped(&both, units, false))?;
                let mut act = Guarded::output(device, shape.tokens * units, 0)?;
                swiglu(device, storage, &mut act.view_mut(), apart.view(), units, Gates::Apart)?;
                let act = act.read(device, check, "activation")?;
                for (name, plan) in plans {
                    for kept in [false, true] {
                        let mut found = Guarded::output(device, shape.tokens * units, 0)?;
                        let mut gate_up = Guarded::output(device, elements, 0)?;
                        let beside = kept.then(|| gate_up.view_mut());
                        run(&mut Output::Gated { act: found.view_mut(), gate_up: beside }, plan)?;
                        let mut unseen = Check::default();
                        let found = found.read(device, &mut unseen, "activation")?;
                        check.same(&format!("activation by {name}"), &found, &act);
                        let gate_up = gate_up.read(device, &mut unseen, "gates and ups")?;
                        let expected = if kept { both.clone() } else { vec![u16::MAX; elements] };
                        check.same(&format!("gates and ups by {name}"), &gate_up, &expected);
                        check.join(unseen);
                    }
                }
            }
            Direction::Backward => {
                let units = outputs;
                let gate_up = stored(storage, &Random::named("gates").vector(2 * elements, Values::Normal(2.0)));
                let apart = Guarded::input(device, &grouped(&gate_up, units, false))?;
                let gate_up = Guarded::input(device, &gate_up)?;
                let mut d_act = Guarded::output(device, elements, 0)?;
                run(&mut Output::F32(d_act.view_mut()), own)?;
                let mut gradients = Guarded::output(device, 2 * elements, 0)?;
                swiglu_backward(device, storage, &mut gradients.view_mut(), d_act.view(), apart.view(), units)?;
                let gradients = grouped(&gradients.read(device, check, "gradients")?, units, true);
                for (name, plan) in plans {
                    let mut found = Guarded::output(device, 2 * elements, 0)?;
                    run(&mut Output::GatedGradients { d_gate_up: found.view_mut(), gate_up: gate_up.view() }, plan)?;
                    let mut unseen = Check::default();
                    let found = found.read(device, &mut unseen, "gradients")?;
                    check.same(&format!("gradients by {name}"), &found, &gradients);
                    check.join(unseen);
                }
            }
        }
        Ok(())
    }

    /// What each output is multiplied with.
    fn lines(&self) -> Vec<Vec<f32>> {
        let (w, k) = (widened(self.storage, &self.w), self.shape.k);
        match self.family.direction {
            Direction::Forward => w.chunks_exact(k).map(<[f32]>::to_vec).collect(),
            Direction::Backward => (0..k).map(|i| w.iter().skip(i).step_by(k).copied().collect()).collect(),
        }
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let tokens = self.shape.tokens;
        let (outputs, terms) = self.family.sizes(self.shape);
        let y = self.run(device, check, 0..tokens, None)?.values;
        let (x, lines) = (widened(self.storage, &self.x), self.lines());
        let bias = self.bias.as_ref().map(|bias| widened(self.storage, bias));
        let mut errors = Errors::default();
        for t in 0..tokens {
            let x = &x[t * terms..(t + 1) * terms];
            for (o, w) in lines.iter().enumerate() {
                let products = || x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let (mut exact, mut size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                let mut sums = [A100.dot(x, w), H100.dot(x, w)];
                let mut add = |value: f32| {
                    exact += f64::from(value);
                    size += f64::from(value.abs());
                    sums = sums.map(|sum| sum + value);
                };
                if let Some(bias) = &bias {
                    add(bias[o]);
                }
                if matches!(self.into, Epilogue::Residual | Epilogue::Gradient) {
                    add(self.before[t * outputs + o]);
                }
                if self.into == Epilogue::Storage {
                    sums = sums.map(|sum| self.storage.widen(self.storage.round(sum)));
                }
                // One card's sum may be right by luck: few are those of both.
                let error = |sum: f32| (f64::from(sum) - exact).abs();
                let simulated = if error(sums[0]) > error(sums[1]) { sums[0] } else { sums[1] };
                errors.add(y[t * outputs + o], simulated, exact, size);
            }
        }
        // A few products may be exact by luck: two roundings in f32, and half a unit of the storage type, always pass.
        let few = self.family.direction == Direction::Backward || tokens * outputs < 8;
        let least = match self.into {
            Epilogue::Storage if few => half_unit(self.storage) / 2.0,
            _ => f64::from(f32::EPSILON),
        };
        let factor = if self.family.direction == Direction::Forward { 2.0 } else { 3.0 };
        errors.check(check, self.family.result(), factor, least);
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let tokens = self.shape.tokens;
        if self.family.chunks(self.shape) < 2 {
            check.fail("the case has one chunk only");
        }
        let all = self.run(device, check, 0..tokens, None)?;
        for (name, plan) in self.family.plans(device, self.storage, self.shape) {
            let found = self.run(device, check, 0..tokens, Some(plan))?;
            check.same(&format!("all tokens by {name}"), &found.values, &all.values);
        }
        let some = first_of(tokens).chain(single([1, tokens / 3, tokens - 1]));
        batches(check, &all, some, |check, tokens| self.run(device, check, tokens, None))
    }
}

pub fn timings() -> Vec<Timed> {
    timings_of(FORWARD)
}

/// The matrices of an 8B model, for decoding and for a prompt.
pub fn timings_of(family: GemmKernels) -> Vec<Timed> {
    let mut all = Vec::new();
    for (n, k) in [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)] {
        for tokens in [1, 8, 16, 32, 64, 80, 128, 256, 400, 2048] {
            // The head's gradient is a row, not a product.
            if n > 100_000 && (tokens > 64 || family.direction == Direction::Backward) {
                continue;
            }
            let (op, name) = (family.op(), format!("bf16 [{tokens}, {n}, {k}]"));
            let shape = Shape { tokens, n, k };
            all.push(Timed::new(op, name, move |device| time(device, family, shape, false)));
        }
    }
    if family.layout == WeightLayout::Tiles {
        let (n, k) = if family.direction == Direction::Forward { (28_672, 4096) } else { (4096, 14_336) };
        // Beside these, a product of its own and the kernel for the activation: where the one is faster than the other two.
        for tokens in [1, 16, 128, 256, 400, 2048] {
            let name = format!("bf16 [{tokens}, {n}, {k}], gated");
            let shape = Shape { tokens, n, k };
            all.push(Timed::new(family.op(), name, move |device| time(device, family, shape, true)));
        }
    }
    all
}

/// `gated`: with the activation of gates and ups that are kept, or its gradients.
fn time(device: &Bench<'_>, family: GemmKernels, shape: Shape, gated: bool) -> Result<Measured> {
    let Shape { tokens, n, k } = shape;
    let ((outputs, terms), layout) = (family.sizes(shape), family.layout);
    let mut random = Random::named("bench");
    // A weight matrix of random numbers, drawn once and repeated: drawing them all takes longer than the benchmark.
    let drawn = stored(HalfType::Bf16, &random.vector(64 * k, Values::Normal(0.02)));
    let weights: Vec<u16> = drawn.iter().copied().cycle().take(layout.elements(n, k)).collect();
    let x = device.random(&mut random, tokens * terms, Values::Normal(1.0))?;
    let (storage, elements) = (HalfType::Bf16, tokens * outputs);
    let mut scratch = Scratch::new(device, Room::of(layout, &[(outputs, terms)]))?;
    let mut sets = device.sets(2 * n * k, |_| Buffer::from_slice(device, &weights))?;
    // A gradient is stored in f32.
    let halves = |len: usize| Buffer::<u16>::zeros(device, len);
    let (seconds, stored) = if family.direction == Direction::Forward {
        let (mut y, mut act) = (halves(elements)?, halves(if gated { elements / 2 } else { 0 })?);
        let run = |w: &mut Buffer<u16>| {
            let operands = Operands { storage, x: x.view(), w: w.view(), layout, bias: None };
            let mut output = match gated {
                true => Output::Gated { act: act.view_mut(), gate_up: Some(y.view_mut()) },
                false => Output::Half(y.view_mut()),
            };
            gemm(device, &mut output, operands, shape, &mut scratch)
        };
        (device.median(&mut sets, run)?, elements + act.len())
    } else {
        let (gate_up, mut both) = (halves(if gated { 2 * elements } else { 0 })?, halves(2 * elements)?);
        let run = |w: &mut Buffer<u16>| {
            let gradients = Gradients { storage, dy: x.view(), w: w.view(), layout };
            let mut output = match gated {
                true => Output::GatedGradients { d_gate_up: both.view_mut(), gate_up: gate_up.view() },
                // A number of 32 bits is two halves.
                false => Output::F32(both.view_mut().cast()),
            };
            gemm_backward(device, &mut output, gradients, shape, &mut scratch)
        };
        (device.median(&mut sets, run)?, 2 * elements + gate_up.len())
    };
    let bytes = 2 * (n * k + tokens * terms + stored);
    Ok(Measured::bytes(seconds, bytes).flops(2.0 * tokens as f64 * n as f64 * k as f64))
}
