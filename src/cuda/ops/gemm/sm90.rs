//! The products of Hopper: kernels/gemm_sm90.cu, by wgmma, for weights in tiles.

use super::{Direction, GemmParameters, Output, Problem, Room, Scratch, Shape};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int};
use crate::cuda::ops::tensor_map::tensor_map;
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::dtype::HalfType;
use crate::{Error, Result};

/// Tokens of a tile, per kernel.
pub const TOKENS: [usize; 10] = [8, 16, 24, 32, 48, 64, 96, 128, 192, 200];
/// Up to so many tokens two blocks share a multiprocessor: one of a product, and one of the next.
pub const FEW: usize = 32;
/// Outputs of a tile: 64 for each of two warpgroups.
const OUTPUTS: usize = 128;
/// Outputs and terms of a tile of weights.
const TILE: usize = 64;
/// Threads of a block.
const THREADS: u32 = 384;

/// Kernels of one number of tokens: forward, then backward, each for bf16 and f16.
macro_rules! names {
    ($tokens:literal) => {
        [
            [concat!("gemm_sm90_", $tokens, "_bf16"), concat!("gemm_sm90_", $tokens, "_f16")],
            [concat!("gemm_backward_sm90_", $tokens, "_bf16"), concat!("gemm_backward_sm90_", $tokens, "_f16")],
        ]
    };
}

const NAMES: [[[&str; 2]; 2]; TOKENS.len()] = [
    names!("8"),
    names!("16"),
    names!("24"),
    names!("32"),
    names!("48"),
    names!("64"),
    names!("96"),
    names!("128"),
    names!("192"),
    names!("200"),
];

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        let of = |(index, names): (usize, &[[&'static str; 2]; 2])| {
            let shared = shared(TOKENS[index]);
            names
                .concat()
                .into_iter()
                .map(move |name| Spec::new("gemm_sm90", name, THREADS, shared))
                .collect::<Vec<_>>()
        };
        NAMES.iter().enumerate().flat_map(of).collect()
    }
}

/// Whether the device has these kernels.
pub fn runs_on(device: &Device) -> bool {
    device.has::<Kernels>()
}

/// Name of a kernel.
pub fn name(instance: usize, direction: Direction, storage: HalfType) -> &'static str {
    NAMES[instance][direction as usize][storage as usize]
}

/// Bytes of a stage: two tiles of weights and one of tokens, 64 terms each.
pub const fn stage(tokens: usize) -> usize {
    2 * TILE * TILE * 2 + tokens * TILE * 2
}

/// Stages of the ring, as in the kernel.
pub const fn stages(tokens: usize) -> usize {
    let ring = if tokens <= FEW { 108 } else { 224 };
    let most = ring * 1024 / stage(tokens);
    if most < 12 { most } else { 12 }
}

/// Slices of a tile's tokens, as in the kernel: its sums are stored, added and finished slice by slice.
pub const fn slices(tokens: usize) -> usize {
    match tokens {
        ..=24 => 1,
        25..=64 => tokens / 16,
        _ if tokens.is_multiple_of(32) => 4,
        _ => MOST_SLICES,
    }
}

/// Of any kernel.
const MOST_SLICES: usize = 5;

/// Dynamic shared memory in bytes: the ring, and what brings it to a multiple of 1024.
const fn shared(tokens: usize) -> u32 {
    (stages(tokens) * stage(tokens) + 1024) as u32
}

/// Multiprocessors of the cards that chunks are chosen for.
const CARD: usize = 132;
/// Chunks of a tile, at most: who arrives last adds all their sums.
const MOST_CHUNKS: usize = 8;
/// Terms of a chunk, at least, in tiles of 64: filling the pipeline must not cost more than running it.
const LEAST_CHUNK: usize = 8;

/// In how many chunks the terms of an output are added: a function of the two sizes alone, the same for every number of tokens
/// and every card, because it decides the order of the sum. It is the number with which one tile of tokens keeps the
/// multiprocessors of an H100 busy most evenly.
pub fn chunks(outputs: usize, terms: usize) -> usize {
    let (tiles, steps) = (outputs.div_ceil(OUTPUTS).max(1), terms.div_ceil(TILE).max(1));
    let cost = |&chunks: &usize| {
        let (whole, rest) = (tiles / CARD, tiles % CARD);
        // Writing chunk sums, finding out who is last, and adding them, in half steps: with 128 tokens a step's time writes one
        // chunk's sums or reads them. This is for a block that finishes its whole tile; those that finish at the same time share it.
        let adding = if chunks > 1 { 4 + 2 * chunks } else { 0 };
        2 * (whole * steps + (rest * chunks).div_ceil(CARD) * steps.div_ceil(chunks)) + adding
    };
    let some = (1..=MOST_CHUNKS).filter(|&chunks| chunks == 1 || steps / chunks >= LEAST_CHUNK);
    some.min_by_key(cost).unwrap_or(1)
}

/// Which kernel runs, in how many blocks, and what they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Index into [`TOKENS`].
    pub instance: usize,
    /// Tiles of 128 outputs by the tokens of the instance.
    pub tiles: usize,
    /// Chunks of the terms of each tile.
    pub chunks: usize,
    /// Tiles whose chunks are shared by all blocks.
    pub split: usize,
    /// Blocks.
    pub blocks: usize,
}

impl Plan {
    /// The kernel for a shape. Up to 200 tokens are one tile; more are the tiles that keep the multiprocessors busy most evenly.
    pub fn new(shape: Shape, multiprocessors: u32, workspace: usize) -> Self {
        let plan = |instance| Self::with_instance(shape, instance, multiprocessors, workspace);
        if let Some(one) = TOKENS.iter().position(|&tokens| shape.tokens <= tokens) {
            return plan(one);
        }
        let last = TOKENS.len() - 1;
        let many = (TOKENS.iter().position(|&tokens| tokens >= 96).unwrap_or(last)..=last).rev();
        many.map(plan).min_by_key(|plan| plan.cycles(shape.k)).unwrap_or_else(|| plan(last))
    }

    /// The widest kernel, whatever the number of tokens.
    pub fn widest(shape: Shape, multiprocessors: u32, workspace: usize) -> Self {
        Self::with_instance(shape, TOKENS.len() - 1, multiprocessors, workspace)
    }

    /// The launch of one particular kernel; every one gives the same bits.
    pub fn with_instance(shape: Shape, instance: usize, multiprocessors: u32, workspace: usize) -> Self {
        let multiprocessors = (multiprocessors as usize).clamp(1, MOST_MULTIPROCESSORS);
        let tiles = shape.n.div_ceil(OUTPUTS) * shape.tokens.div_ceil(TOKENS[instance]);
        let chunks = chunks(shape.n, shape.k);
        let rest = tiles % multiprocessors;
        let plan = Plan { instance, tiles, chunks, split: rest, blocks: multiprocessors };
        // Sharing must save something, and needs room.
        let shares = (rest * chunks).div_ceil(multiprocessors) < chunks && plan.workspace() <= workspace;
        let split = if shares { rest } else { 0 };
        // Without whole tiles no more blocks than it takes: each has as many chunks.
        let shared = split * chunks;
        let work = if tiles > split { tiles - split } else { shared.div_ceil(shared.div_ceil(multiprocessors).max(1)) };
        Plan { split, blocks: multiprocessors.min(work), ..plan }
    }

    /// Elements of workspace: the sums of every chunk of the shared tiles.
    pub fn workspace(&self) -> usize {
        self.split * self.chunks * OUTPUTS * TOKENS[self.instance]
    }

    /// Tickets: one for each slice of a shared tile.
    pub fn tickets(&self) -> usize {
        self.split * slices(TOKENS[self.instance])
    }

    /// What the busiest block takes if nothing but arithmetic counts, in cycles of a multiprocessor.
    fn cycles(&self, terms: usize) -> usize {
        let tokens = TOKENS[self.instance];
        let rest = self.tiles - self.split;
        let shared = (self.split * self.chunks).div_ceil(self.blocks.max(1));
        let chunks = rest.div_ceil(self.blocks.max(1)) * self.chunks + shared;
        // A step of 64 terms: the tensor core's cycles, or those of shared memory.
        let step = (4 * tokens).max(256 + 3 * tokens);
        // Those who end with the same tile finish some of its slices each.
        let finish = slices(tokens).min(self.chunks / shared.max(1)).max(1);
        let adding = if self.split > 0 { self.chunks * tokens * 8 / finish } else { 0 };
        chunks * terms.div_ceil(TILE) * step / self.chunks + adding
    }
}

/// Tokens for which there is room for every plan, as far as the workspace goes.
const ROOM: usize = 2048;
/// Of any card; fewer tiles are shared than there are multiprocessors.
const MOST_MULTIPROCESSORS: usize = 256;
/// Elements of workspace, at most: 96 MiB.
const MOST_ROOM: usize = 24 << 20;

/// What any of the products needs, by outputs and terms.
pub(super) fn room(products: &[(usize, usize)]) -> Room {
    let sizes = products.iter().flat_map(|&(n, k)| (1..=ROOM).map(move |tokens| Shape { tokens, n, k }));
    let plans = sizes.map(|shape| Plan::new(shape, CARD as u32, MOST_ROOM));
    let workspace = plans.map(|plan| plan.workspace()).max().unwrap_or(0);
    Room { workspace, tickets: MOST_SLICES * MOST_MULTIPROCESSORS }
}

/// Queues a product.
pub(super) fn launch(
    device: &Device,
    y: &mut Output<'_>,
    problem: &Problem<'_>,
    plan: Plan,
    scratch: &mut Scratch,
) -> Result<()> {
    let Problem { op, direction, storage, shape, x, w, .. } = *problem;
    let Shape { tokens, n, k } = shape;
    let (rows, columns) = match direction {
        Direction::Forward => (n, k),
        Direction::Backward => (k, n),
    };
    check_len(op, "w", w.len(), WeightLayout::Tiles.elements(rows, columns))?;
    if k == 0 || !k.is_multiple_of(8) {
        return Err(Error::Backend(format!("{op}: {k} terms are no multiple of 8")));
    }
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let Some(&width) = TOKENS.get(plan.instance) else {
        return Err(Error::Backend(format!("{op}: kernel {} of {}", plan.instance, TOKENS.len())));
    };
    let tiles = n.div_ceil(OUTPUTS) * tokens.div_ceil(width);
    if plan.tiles != tiles || plan.chunks != chunks(n, k) || plan.split > tiles || plan.blocks == 0 {
        return Err(Error::Backend(format!("{op}: the plan is for another shape")));
    }
    let kernel = &device.kernels::<Kernels>()?[plan.instance * 4 + direction as usize * 2 + storage as usize];
    let map = tensor_map(op, "x", storage, x, (tokens, k), width)?;
    let blocks = int(op, "blocks", plan.blocks)?.unsigned_abs();
    let launch = Launch { grid: (blocks, 1, 1), threads: THREADS, shared: kernel.shared };
    // Chunks are counted in 32 bits.
    int(op, "chunks", plan.tiles * plan.chunks)?;
    let GemmParameters { y, w, bias, beside, workspace, tickets, tokens, outputs, terms, output, heads, norm } =
        GemmParameters::new(y, problem, super::Plan::Sm90(plan).room(), scratch)?;
    if norm.squares != 0 && problem.shape.tokens > width {
        return Err(Error::Backend(format!("{op}: factors are found of one tile of tokens, not of {tokens}")));
    }
    let (chunks, split) = (int(op, "chunks", plan.chunks)?, int(op, "split tiles", plan.split)?);
    // SAFETY: parameters are (TensorMap x, void* y, const void* w, const void* bias, void* beside, float* partial, unsigned* tickets, int
    // tokens, int outputs, int terms, int chunks, int split, int output, HeadArgs heads, NormArgs norm). The map is of x, [tokens, terms]; w has every tile
    // of outputs by terms, each 8 KB from a multiple of 16 bytes on; bias, unless null, has `outputs` elements; what `beside` must have, and its alignment, `Output::check` has
    // looked at. The kernel writes y, and gates and ups that are kept, inside [tokens, outputs] in the type that `output` names (half and
    // twice as many columns where it is gated), [split, chunks, 128, N] of the workspace, and a ticket per slice of a split tile,
    // zero before and after. Of heads it writes queries, [tokens, heads padded], and of the pool what `HeadParameters` says; of norms
    // what `NormParameters` has looked at, where there is an address. All of these and the scratch are lent to us alone.
    unsafe {
        device.launch(
            kernel,
            launch,
            args![
                map, y, w, bias, beside, workspace, tickets, tokens, outputs, terms, chunks, split, output, heads, norm
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::MODELS;
    use super::*;
    use crate::cuda::images;

    /// Every product of some models, forward and backward.
    fn products() -> Vec<(usize, usize)> {
        MODELS.concat().into_iter().flat_map(|(n, k)| [(n, k), (k, n)]).collect()
    }

    #[test]
    fn chunks_are_long_and_even() {
        for (n, k) in products() {
            let count = chunks(n, k);
            assert!(count == 1 || k.div_ceil(TILE) / count >= LEAST_CHUNK, "{n} {k}");
        }
        let some = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096), (1, 4096), (576, 192)];
        assert_eq!(some.map(|(n, k)| chunks(n, k)), [5, 4, 4, 4, 5, 8, 1]);
    }

    /// One of a product, and one of the next, which fills its ring meanwhile.
    #[test]
    fn two_blocks_for_few_tokens_share_a_multiprocessor() {
        let usages =
            || images::embedded().iter().flat_map(|image| image.usage).filter(|usage| usage.target == "sm_90a");
        for (instance, tokens) in TOKENS.into_iter().enumerate() {
            for name in NAMES[instance].concat() {
                let usage = usages().find(|usage| usage.kernel == name);
                let (registers, fixed) = usage.map_or((80, 512), |usage| (usage.registers, usage.shared));
                let few = registers * THREADS <= 32_768 && shared(tokens) + fixed <= 110 * 1024;
                assert_eq!(few, tokens <= FEW, "{name}: {registers} registers, {} bytes", shared(tokens) + fixed);
            }
        }
    }

    #[test]
    fn slices_are_whole_groups_of_eight() {
        let sizes = TOKENS.map(|tokens| tokens / slices(tokens));
        assert_eq!(sizes, [8, 16, 24, 16, 16, 16, 24, 32, 48, 40]);
        for (tokens, slice) in TOKENS.into_iter().zip(sizes) {
            assert!(slices(tokens) * slice == tokens && slices(tokens) <= MOST_SLICES, "{tokens}");
        }
    }

    #[test]
    fn one_tile_holds_up_to_200_tokens() {
        let tokens = |tokens| TOKENS[Plan::new(Shape { tokens, n: 4096, k: 4096 }, 132, MOST_ROOM).instance];
        assert_eq!([1, 8, 9, 25, 33, 64, 65, 128, 129, 200].map(tokens), [8, 8, 16, 32, 48, 64, 96, 128, 192, 200]);
        assert_eq!([256, 400, 2048].map(tokens), [128, 200, 192]);
    }

    #[test]
    fn every_number_of_tokens_fills_the_card() {
        // Of one model each: its scratch is what its own products need.
        for products in products().chunks(8) {
            let Room { workspace, .. } = room(products);
            assert!(workspace <= MOST_ROOM);
            for &(n, k) in products {
                for tokens in 1..=2048 {
                    let plan = Plan::new(Shape { tokens, n, k }, 132, workspace);
                    let work = plan.tiles * plan.chunks;
                    // What the busiest block does, in chunks.
                    let shared = (plan.split * plan.chunks).div_ceil(plan.blocks);
                    let most = shared + (plan.tiles - plan.split).div_ceil(plan.blocks) * plan.chunks;
                    assert!(plan.blocks * 10 >= 132 * 9 || most == work.div_ceil(132), "{tokens} {n} {k}: {plan:?}");
                }
            }
        }
    }
}
