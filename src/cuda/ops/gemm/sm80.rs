//! The products of Ampere and of every card without wgmma: kernels/gemm.cu and gemm_backward.cu, by mma.sync.

use super::{Direction, GemmParameters, Output, Problem, Room, Scratch, Shape};
use crate::cuda::device::Device;
use crate::cuda::kernels::{Kernel, KernelSet, Smaller, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, side};
use crate::dtype::HalfType;
use crate::{Error, Result};

/// Elements of `k` per pipeline stage; forward, `k` is a multiple of it.
pub const TILE_K: usize = 64;

/// One kernel, forward and backward: what a block computes and what it needs. The numbers are those of
/// `kernels/gemm.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Kernel names for bf16 and f16.
    pub kernels: [&'static str; 2],
    /// The same for the gradient.
    pub backward: [&'static str; 2],
    /// Outputs per block.
    pub outputs: usize,
    /// Tokens per block.
    pub tokens: usize,
    /// Threads per block.
    pub threads: u32,
    /// Stages of the pipeline.
    pub stages: u32,
    /// Kernels with so many stages, and their names, forward and backward, for cards with less shared memory.
    pub smaller: Option<(u32, [[&'static str; 2]; 2])>,
    /// The block adds up all chunks of `k` itself.
    pub folds: bool,
}

impl Tile {
    /// Name of the kernel.
    pub fn name(&self, direction: Direction, storage: HalfType) -> &'static str {
        [self.kernels, self.backward][direction as usize][storage as usize]
    }

    /// Dynamic shared memory in bytes: a line of 128 bytes per output and token and stage.
    pub const fn shared(&self) -> u32 {
        self.shared_of(self.stages)
    }

    const fn shared_of(&self, stages: u32) -> u32 {
        stages * (self.outputs + self.tokens) as u32 * 128
    }
}

/// Names of a class: forward, then backward, each for bf16 and f16.
macro_rules! names {
    ($class:literal) => {
        [
            [concat!("gemm_", $class, "_bf16"), concat!("gemm_", $class, "_f16")],
            [concat!("gemm_backward_", $class, "_bf16"), concat!("gemm_backward_", $class, "_f16")],
        ]
    };
}

/// Every tile, streaming ones first.
pub const TILES: [Tile; 6] = [
    tile(names!("stream8"), 64, 8, 128, 6, false),
    tile(names!("stream16"), 64, 16, 128, 5, false),
    Tile { smaller: Some((4, names!("stream32_99k"))), ..tile(names!("stream32"), 128, 32, 128, 5, false) },
    tile(names!("stream64"), 128, 64, 128, 4, false),
    tile(names!("tile"), 128, 128, 256, 3, false),
    Tile { smaller: Some((3, names!("tile_fold_99k"))), ..tile(names!("tile_fold"), 128, 128, 256, 4, true) },
];

/// Indices into [`TILES`] of the classes for many tokens.
const MANY: usize = 4;
const MANY_FOLDED: usize = 5;

const fn tile(
    [kernels, backward]: [[&'static str; 2]; 2],
    outputs: usize,
    tokens: usize,
    threads: u32,
    stages: u32,
    folds: bool,
) -> Tile {
    Tile { kernels, backward, outputs, tokens, threads, stages, smaller: None, folds }
}

/// The kernels of `gemm.cu`.
pub(in crate::cuda) struct Forward;

impl KernelSet for Forward {
    fn specs() -> Vec<Spec> {
        specs("gemm", Direction::Forward)
    }
}

/// The kernels of `gemm_backward.cu`.
pub(in crate::cuda) struct Backward;

impl KernelSet for Backward {
    fn specs() -> Vec<Spec> {
        specs("gemm_backward", Direction::Backward)
    }
}

/// The kernels of one direction: every tile for bf16, then for f16.
fn specs(image: &'static str, direction: Direction) -> Vec<Spec> {
    let spec = |storage: HalfType, tile: &Tile| {
        let name = tile.name(direction, storage);
        let smaller = tile.smaller.map(|(stages, names)| Smaller {
            name: names[direction as usize][storage as usize],
            shared: tile.shared_of(stages),
        });
        Spec::new(image, name, tile.threads, tile.shared()).or(smaller)
    };
    HalfType::ALL.iter().flat_map(|&storage| TILES.iter().map(move |tile| spec(storage, tile))).collect()
}

/// Where `k` is cut: a function of `(n, k)` alone, the same for every number of tokens, every tile and every card,
/// because it decides in which order an output's terms are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Tiles of [`TILE_K`] per chunk; the last chunk may have fewer.
    pub tiles: usize,
    /// Number of chunks.
    pub count: usize,
}

impl Chunks {
    /// Enough chunks for some 512 blocks of 64 outputs, which is four per multiprocessor of a large card, but none
    /// shorter than 8 tiles: filling the pipeline must not cost more than running it.
    pub fn of(n: usize, k: usize) -> Self {
        let (blocks, tiles) = (n.div_ceil(64).max(1), k.div_ceil(TILE_K).max(1));
        let wanted = (512 / blocks).clamp(1, (tiles / 8).max(1)).min(32);
        let tiles_each = tiles.div_ceil(wanted);
        Chunks { tiles: tiles_each, count: tiles.div_ceil(tiles_each) }
    }
}

/// Which kernel runs and in how many blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Index into [`TILES`].
    pub tile: usize,
    /// Blocks along the chunks, the tokens and the outputs.
    pub grid: (usize, usize, usize),
    /// Where `k` is cut.
    pub chunks: Chunks,
    /// Elements of workspace.
    pub workspace: usize,
    /// Tickets.
    pub tickets: usize,
}

impl Plan {
    /// The kernel for a shape: each weight is read once for up to 64 tokens; beyond, blocks fold their chunks where
    /// there are blocks enough to fill the card, or where the workspace is too small for anything else.
    pub fn new(shape: Shape, multiprocessors: u32, workspace: usize) -> Self {
        if let Some(streaming) = TILES[..MANY].iter().position(|tile| shape.tokens <= tile.tokens) {
            return Self::with_tile(shape, streaming);
        }
        let parallel = Self::with_tile(shape, MANY);
        let blocks = parallel.grid.1 * parallel.grid.2;
        if parallel.chunks.count > 1 && (blocks >= multiprocessors as usize || parallel.workspace > workspace) {
            return Self::with_tile(shape, MANY_FOLDED);
        }
        parallel
    }

    /// The launch of one particular tile; every tile gives the same bits.
    pub fn with_tile(shape: Shape, tile: usize) -> Self {
        let Tile { outputs, tokens, folds, .. } = TILES[tile];
        let chunks = Chunks::of(shape.n, shape.k);
        let along_k = if folds { 1 } else { chunks.count };
        let grid = (along_k, shape.tokens.div_ceil(tokens), shape.n.div_ceil(outputs));
        let (workspace, tickets) = match along_k {
            1 => (0, 0),
            chunks => (chunks * shape.tokens * shape.n, grid.1 * grid.2),
        };
        Plan { tile, grid, chunks, workspace, tickets }
    }
}

/// How many tokens go into one launch: all, but where the workspace has no room for their chunk sums and their blocks alone would
/// leave multiprocessors idle.
pub(super) fn tokens_at_once(shape: Shape, multiprocessors: u32, workspace: usize) -> usize {
    let plan = Plan::new(shape, multiprocessors, workspace);
    let blocks = plan.grid.1 * plan.grid.2;
    let per_token = (plan.chunks.count * shape.n).max(1);
    let tile = TILES[MANY].tokens;
    let fits = workspace / per_token / tile * tile;
    let idle = plan.tile == MANY_FOLDED && 10 * blocks < 9 * multiprocessors as usize;
    if idle && fits > 0 { fits } else { shape.tokens }
}

/// Tokens for whose chunk sums there is room. With more there are blocks enough in most products without a block for each chunk.
const ROOM: usize = 512;

/// What any of the products needs, by outputs and terms.
pub(super) fn room(products: &[(usize, usize)]) -> Room {
    let mut room = Room::default();
    for &(n, k) in products {
        for (index, tile) in TILES.iter().enumerate() {
            let tokens = if index < MANY { tile.tokens } else { ROOM };
            let plan = Plan::with_tile(Shape { tokens, n, k }, index);
            room = room.and(Room { workspace: plan.workspace, tickets: plan.tickets });
        }
    }
    // Larger batches have more token tiles; with few outputs that stays far below this.
    room.and(Room { workspace: 0, tickets: 4096 })
}

/// Queues a product.
pub(super) fn launch(
    device: &Device,
    y: &mut Output<'_>,
    problem: &Problem<'_>,
    plan: Plan,
    scratch: &mut Scratch,
) -> Result<()> {
    let Problem { op, direction, storage, shape: Shape { tokens, n, k }, x, w, .. } = *problem;
    check_len(op, "w", w.len(), n * k)?;
    // What the kernels read in pieces of 16 bytes: forward lines of 64 terms, backward lines of outputs.
    let wrong = match direction {
        Direction::Forward => {
            (k == 0 || !k.is_multiple_of(TILE_K)).then(|| format!("{k} terms are no multiple of {TILE_K}"))
        }
        Direction::Backward => (k == 0 || !k.is_multiple_of(8) || !n.is_multiple_of(8))
            .then(|| format!("{k} terms and {n} outputs are no multiples of 8")),
    };
    if let Some(wrong) = wrong {
        return Err(Error::Backend(format!("{op}: {wrong}")));
    }
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let Some(tile) = TILES.get(plan.tile) else {
        return Err(Error::Backend(format!("{op}: tile {} of {}", plan.tile, TILES.len())));
    };
    if plan != Plan::with_tile(problem.shape, plan.tile) {
        return Err(Error::Backend(format!("{op}: the plan is for another shape")));
    }
    let kernels = match direction {
        Direction::Forward => device.kernels::<Forward>()?,
        Direction::Backward => device.kernels::<Backward>()?,
    };
    let kernel: &Kernel = &kernels[storage as usize * TILES.len() + plan.tile];
    let grid = (
        side(op, "chunks", plan.grid.0, i32::MAX as u32)?,
        side(op, "token tiles", plan.grid.1, 65_535)?,
        side(op, "output tiles", plan.grid.2, 65_535)?,
    );
    let launch = Launch { grid, threads: tile.threads, shared: kernel.shared };
    let GemmParameters { y, w, bias, beside: before, workspace, tickets, tokens, outputs, terms, output, .. } =
        GemmParameters::new(y, problem, super::Plan::Sm80(plan).room(), scratch)?;
    let chunk_tiles = int(op, "chunk", plan.chunks.tiles)?;
    // SAFETY: parameters are (void* y, const void* x, const void* w, const void* bias, const float* before, float*
    // workspace, unsigned* tickets, int tokens, int n, int k, int chunk_tiles, int output). The kernel reads x inside [tokens, k] and w inside
    // its n k elements in 16-byte pieces: both start at multiples of 16, and their rows, [n, k] forward and [k, n] backward, were
    // checked above; bias below n unless it is null, and before, where it is added to, inside [tokens, n]. It writes y inside [tokens, n] in the type that `output` names. With several
    // chunks per block row it writes [chunks, tokens, n] of the workspace and one ticket per tile, zero before and after. y
    // and the scratch are lent to us alone.
    unsafe {
        device.launch(
            kernel,
            launch,
            args![y, x.address, w, bias, before, workspace, tickets, tokens, outputs, terms, chunk_tiles, output],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::MODELS;
    use super::*;

    #[test]
    fn chunks_cover_k_and_never_depend_on_tokens() {
        for n in [1, 31, 64, 1000, 4096, 6144, 28_672, 128_256] {
            for k in [64, 128, 512, 576, 4096, 14_336] {
                let chunks = Chunks::of(n, k);
                assert!(chunks.tiles * chunks.count >= k / TILE_K && chunks.tiles * (chunks.count - 1) < k / TILE_K);
                assert!(chunks.count == 1 || chunks.tiles >= 8, "{n} {k} {chunks:?}");
                for tokens in [1, 9, 64, 65, 1000] {
                    let plan = Plan::new(Shape { tokens, n, k }, 132, usize::MAX);
                    assert_eq!(plan.chunks, chunks);
                }
            }
        }
        assert_eq!(Chunks::of(4096, 4096), Chunks { tiles: 8, count: 8 });
        assert_eq!(Chunks::of(128_256, 4096), Chunks { tiles: 64, count: 1 });
    }

    #[test]
    fn the_plan_follows_the_number_of_tokens() {
        let plan = |tokens, n, k| Plan::new(Shape { tokens, n, k }, 132, usize::MAX);
        let tile = |tokens| plan(tokens, 4096, 4096).tile;
        assert_eq!([1, 8, 9, 16, 17, 32, 33, 64, 65].map(tile), [0, 0, 1, 1, 2, 2, 3, 3, 4]);
        assert_eq!(plan(2048, 4096, 4096).tile, MANY_FOLDED, "512 blocks fill the card");
        assert_eq!(plan(2048, 28_672, 4096).tile, MANY, "one chunk needs no folding");
        assert_eq!(Plan::new(Shape { tokens: 128, n: 4096, k: 4096 }, 132, 0).tile, MANY_FOLDED, "no workspace");
        assert_eq!(plan(33, 100, 1024).grid, (2, 1, 1));
    }

    /// Chunks have blocks of their own where tokens and outputs alone do not fill the card.
    #[test]
    fn every_number_of_tokens_fills_the_card() {
        for model in MODELS {
            let products: Vec<_> = model.into_iter().flat_map(|(n, k)| [(n, k), (k, n)]).collect();
            let Room { workspace, .. } = room(&products);
            assert!(workspace <= 16 << 20, "{workspace} elements are 64 MiB at most");
            for multiprocessors in [108, 132] {
                for &(n, k) in &products {
                    for tokens in 1..=2048 {
                        let shape = Shape { tokens, n, k };
                        let tokens = tokens_at_once(shape, multiprocessors, workspace).min(tokens);
                        let plan = Plan::new(Shape { tokens, ..shape }, multiprocessors, workspace);
                        let blocks = plan.grid.0 * plan.grid.1 * plan.grid.2;
                        let most = plan.chunks.count * plan.grid.1 * plan.grid.2;
                        let full = 0.9 * f64::from(multiprocessors);
                        assert!(blocks as f64 >= full || most == blocks, "{tokens} {n} {k}: {plan:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_finished_tile_fits_the_ring() {
        for tile in TILES {
            let least = tile.smaller.map_or(tile.stages, |(stages, _)| stages);
            assert!(tile.shared_of(least) as usize >= tile.tokens * (tile.outputs + 4) * 4, "{tile:?}");
        }
    }
}
