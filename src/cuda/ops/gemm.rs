//! Products with stored weights, `y[tokens, n] = x[tokens, k] w[n, k]^T`; and the launch that both directions share.

use crate::cuda::buffer::{Buffer, View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{Kernel, KernelSet, Smaller, Spec};
use crate::cuda::launch::{Launch, args, check_len, check_room, int, product, side};
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

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        specs("gemm", 0)
    }
}

/// The kernels of one direction, forward or backward: every tile for bf16, then for f16.
pub(super) fn specs(image: &'static str, direction: usize) -> Vec<Spec> {
    let spec = |storage: HalfType, tile: &Tile| {
        let name = [tile.kernels, tile.backward][direction][storage as usize];
        let smaller = tile.smaller.map(|(stages, names)| Smaller {
            name: names[direction][storage as usize],
            shared: tile.shared_of(stages),
        });
        Spec::new(image, name, tile.threads, tile.shared()).or(smaller)
    };
    HalfType::ALL.iter().flat_map(|&storage| TILES.iter().map(move |tile| spec(storage, tile))).collect()
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

/// Tokens for whose chunk sums there is room. With more there are blocks enough in most products without a block for each chunk.
const ROOM: usize = 512;

/// Chunk sums and tickets of products, sized once.
#[derive(Debug)]
pub struct Scratch {
    workspace: Buffer<f32>,
    /// All zero between launches.
    tickets: Buffer<u32>,
}

impl Scratch {
    /// Room for what any of the shapes `(n, k)` needs in up to 512 tokens: what a model and its benchmarks have. A gradient's
    /// shape is the transposed one.
    pub fn new(device: &Device, shapes: &[(usize, usize)]) -> Result<Self> {
        let (workspace, tickets) = Self::room(shapes);
        Self::with_room(device, workspace, tickets)
    }

    /// Bytes of what [`new`](Self::new) makes.
    pub fn bytes(shapes: &[(usize, usize)]) -> u64 {
        let (workspace, tickets) = Self::room(shapes);
        4 * (workspace as u64 + tickets as u64)
    }

    fn room(shapes: &[(usize, usize)]) -> (usize, usize) {
        let mut room = (0, 0);
        for &(n, k) in shapes {
            for (index, tile) in TILES.iter().enumerate() {
                let tokens = if index < MANY { tile.tokens } else { ROOM };
                let plan = Plan::with_tile(Shape { tokens, n, k }, index);
                room = (room.0.max(plan.workspace), room.1.max(plan.tickets));
            }
        }
        // Larger batches have more token tiles; with few outputs that stays far below this.
        (room.0, room.1.max(4096))
    }

    /// Exactly this much room.
    pub fn with_room(device: &Device, workspace: usize, tickets: usize) -> Result<Self> {
        Ok(Scratch { workspace: Buffer::uninitialised(device, workspace)?, tickets: Buffer::zeros(device, tickets)? })
    }

    /// Elements of workspace.
    pub fn workspace(&self) -> usize {
        self.workspace.len()
    }
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
}

/// Operands of a product, all in one storage type.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// HalfType type.
    pub storage: HalfType,
    /// `[tokens, k]`.
    pub x: View<'a, u16>,
    /// `[n, k]`.
    pub w: View<'a, u16>,
    /// `[n]`, added before rounding.
    pub bias: Option<View<'a, u16>>,
}

/// `y = x w^T (+ bias)` with the kernel that fits the shape.
pub fn gemm(
    device: &Device,
    y: &mut Output<'_>,
    operands: Operands<'_>,
    shape: Shape,
    scratch: &mut Scratch,
) -> Result<()> {
    let plan = Plan::new(shape, device.multiprocessors(), scratch.workspace());
    gemm_planned(device, y, operands, shape, plan, scratch)
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
    const OP: &str = "gemm";
    if shape.k == 0 || !shape.k.is_multiple_of(TILE_K) {
        return Err(Error::Backend(format!("{OP}: k = {} is not a multiple of {TILE_K}", shape.k)));
    }
    if let Some(bias) = operands.bias {
        check_len(OP, "bias", bias.len(), shape.n)?;
    }
    let kernel = &device.kernels::<Kernels>()?[kernel_of(operands.storage, plan)?];
    let work = Work { op: OP, kernel, bias: operands.bias, shape, plan };
    // SAFETY: this kernel reads w as [n, k] and bias as [n], which it is if it is given; k is a multiple of 64.
    unsafe { launch(device, y, operands.x, operands.w, &work, scratch) }
}

/// Index of the kernel of a plan's tile in the [`specs`] of a direction.
pub(super) fn kernel_of(storage: HalfType, plan: Plan) -> Result<usize> {
    match TILES.get(plan.tile) {
        Some(_) => Ok(storage as usize * TILES.len() + plan.tile),
        None => Err(Error::Backend(format!("gemm: tile {} of {}", plan.tile, TILES.len()))),
    }
}

/// What is common to both directions: `shape` has the outputs as `n` and what is summed over as `k`.
pub(super) struct Work<'a> {
    pub op: &'static str,
    /// Of the plan's tile.
    pub kernel: &'a Kernel,
    pub bias: Option<View<'a, u16>>,
    pub shape: Shape,
    pub plan: Plan,
}

/// Checks what both directions ask for and launches.
///
/// # Safety
///
/// The kernel is that of one direction, of the operands' storage type and of the plan's tile; the rows of `x` and of `w`, read in that
/// direction's layout, are multiples of 16 bytes, and `bias` has `n` elements.
pub(super) unsafe fn launch(
    device: &Device,
    y: &mut Output<'_>,
    x: View<'_, u16>,
    w: View<'_, u16>,
    work: &Work<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    let &Work { op, kernel, bias, shape, plan } = work;
    let Shape { tokens, n, k } = shape;
    check_len(op, "x", x.len(), product(op, tokens, k)?)?;
    check_len(op, "w", w.len(), product(op, n, k)?)?;
    let elements = product(op, tokens, n)?;
    let (kind, address, len): (i32, u64, usize) = match y {
        Output::F32(y) => (0, y.address, y.len()),
        Output::Half(y) => (1, y.address, y.len()),
        Output::Add(y) => (2, y.address, y.len()),
    };
    check_len(op, "y", len, elements)?;
    if !(x.address | w.address).is_multiple_of(16) {
        return Err(Error::Backend(format!("{op}: x and w start at multiples of 16 bytes")));
    }
    if elements == 0 {
        return Ok(());
    }
    if plan != Plan::with_tile(shape, plan.tile) {
        return Err(Error::Backend(format!("{op}: the plan is for another shape")));
    }
    check_room(op, "workspace", scratch.workspace.len(), plan.workspace)?;
    check_room(op, "tickets", scratch.tickets.len(), plan.tickets)?;
    let tile = &TILES[plan.tile];
    let grid = (
        side(op, "chunks", plan.grid.0, i32::MAX as u32)?,
        side(op, "token tiles", plan.grid.1, 65_535)?,
        side(op, "output tiles", plan.grid.2, 65_535)?,
    );
    let launch = Launch { grid, threads: tile.threads, shared: kernel.shared };
    let (tokens, n, k) = (int(op, "tokens", tokens)?, int(op, "n", n)?, int(op, "k", k)?);
    let chunk_tiles = int(op, "chunk", plan.chunks.tiles)?;
    let bias = bias.map_or(0, |bias| bias.address);
    let workspace = scratch.workspace.view_mut().address;
    let tickets = scratch.tickets.view_mut().address;
    // SAFETY: parameters are (void* y, const void* x, const void* w, const void* bias, float* workspace, unsigned*
    // tickets, int tokens, int n, int k, int chunk_tiles, int output). The kernel reads x inside [tokens, k] and w inside
    // its n k elements in 16-byte pieces, aligned because the caller vouches for their rows, and bias below n unless it is
    // null; it writes y inside [tokens, n] in the type that `output` names. With several chunks per block row it writes
    // [chunks, tokens, n] of the workspace and one ticket per tile, zero before and after. y and the scratch are lent to us
    // alone.
    unsafe {
        device.launch(
            kernel,
            launch,
            args![address, x.address, w.address, bias, workspace, tickets, tokens, n, k, chunk_tiles, kind],
        )
    }
}

#[cfg(test)]
mod tests {
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

    /// Chunks have blocks of their own where tokens and outputs alone do not fill the card, up to the tokens that have room.
    #[test]
    fn a_model_of_8b_fills_the_card_with_any_number_of_tokens() {
        let layer = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336)];
        let products = [layer, layer.map(|(n, k)| (k, n))].concat();
        let (workspace, _) = Scratch::room(&products);
        assert!(workspace <= 64 << 18, "{workspace} elements are 64 MiB at most");
        for multiprocessors in [108, 132] {
            for (n, k) in &products {
                for tokens in 1..=ROOM {
                    let plan = Plan::new(Shape { tokens, n: *n, k: *k }, multiprocessors, workspace);
                    let blocks = plan.grid.0 * plan.grid.1 * plan.grid.2;
                    assert!(blocks as f64 >= 0.9 * f64::from(multiprocessors), "{tokens} {n} {k}: {plan:?}");
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
