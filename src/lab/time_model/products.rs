//! What a product with weights takes, from the launch that its plan makes.

use super::card::{
    CLOCK, Card, DEAD, DEAD_AHEAD, FOLD_FILL, FOLD_STEP, L2, L2_RATE, MULTIPROCESSORS, OPERATIONS, SHARED_OVERHEAD,
    START, TILE_STEP,
};
use crate::cuda::ops::gemm::{Room, Shape, sm80, sm90};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::files::config::ModelConfig;

/// Which kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductKernels {
    /// Those of Ampere as they were studied: the scratch had room for the chunk sums of 64 tokens, so beyond them every product of
    /// several chunks was folded by few blocks.
    OfReference,
    /// Those of Ampere, with the scratch that they have now.
    Sm80,
    /// Those of Hopper.
    Sm90,
}

impl ProductKernels {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            ProductKernels::OfReference => "kernels of the study",
            ProductKernels::Sm80 => "kernels of sm_80",
            ProductKernels::Sm90 => "kernels of sm_90a",
        }
    }
}

/// A product of a layer, or the head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Which one.
    pub name: &'static str,
    /// Outputs.
    pub n: usize,
    /// Terms.
    pub k: usize,
    /// Bytes that an output element takes: 2 if it is rounded, 4 if it is kept in f32, 8 if it is added to one.
    pub output: usize,
    /// Instructions of a warp for 16 outputs of 8 tokens where they are finished, besides adding and storing.
    pub finish: f64,
}

impl Product {
    const fn new(name: &'static str, n: usize, k: usize, output: usize) -> Self {
        Product { name, n, k, output, finish: 0.0 }
    }

    /// Bytes of its weights.
    pub fn weights(&self) -> f64 {
        2.0 * self.n as f64 * self.k as f64
    }

    /// Operations for so many tokens.
    pub fn operations(&self, tokens: usize) -> f64 {
        tokens as f64 * self.weights()
    }

    /// The least that it takes: one reading of the weights, or its operations, in microseconds.
    pub fn limit(&self, card: Card, tokens: usize) -> f64 {
        (self.weights() / card.copy).max(self.operations(tokens) / OPERATIONS)
    }
}

/// The products of a layer, forward and backward, and the head. None of the sizes of the models that this is for is padded.
pub fn products(config: &ModelConfig) -> ([Product; 4], [Product; 4], Product) {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let (a, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let qkv = a + 2 * kv;
    let forward = [
        Product::new("qkv", qkv, d, 2),
        Product::new("o", d, a, 8),
        Product::new("gate_up", 2 * f, d, 2),
        Product::new("down", d, f, 8),
    ];
    let backward = [
        Product::new("down^T", f, d, 4),
        Product::new("gate_up^T", d, 2 * f, 4),
        Product::new("o^T", a, d, 2),
        Product::new("qkv^T", d, qkv, 4),
    ];
    (forward, backward, Product::new("head", config.vocab_size, d, 4))
}

/// The products of a family, and the scratch that they have, on a card.
#[derive(Clone, Copy, Debug)]
pub struct Products {
    family: ProductKernels,
    card: Card,
    /// Elements.
    workspace: usize,
}

impl Products {
    /// Those of a model.
    pub fn new(family: ProductKernels, card: Card, config: &ModelConfig) -> Self {
        let (forward, backward, head) = products(config);
        let sizes: Vec<(usize, usize)> =
            forward.iter().chain(&backward).chain([&head]).map(|product| (product.n, product.k)).collect();
        // The scratch is tickets too: some KB, too little to let another plan in.
        let whole = |layout| Room::of(layout, &sizes).workspace;
        let workspace = match family {
            ProductKernels::OfReference => {
                let streaming = sm80::TILES.iter().enumerate().filter(|(_, tile)| tile.tokens <= 64);
                let plans = streaming.flat_map(|(index, tile)| {
                    let shape = move |&(n, k): &(usize, usize)| Shape { tokens: tile.tokens, n, k };
                    sizes.iter().map(move |size| sm80::Plan::with_tile(shape(size), index))
                });
                plans.map(|plan| plan.workspace).max().unwrap_or(0)
            }
            ProductKernels::Sm80 => whole(WeightLayout::Rows),
            ProductKernels::Sm90 => whole(WeightLayout::Tiles),
        };
        Products { family, card, workspace }
    }

    /// What a product takes in microseconds, with the time in which nothing streams.
    pub fn time(&self, product: &Product, tokens: usize) -> f64 {
        let dead = match self.family {
            ProductKernels::OfReference => DEAD,
            ProductKernels::Sm90 if tokens <= sm90::FEW => DEAD_AHEAD,
            ProductKernels::Sm80 | ProductKernels::Sm90 => DEAD - START,
        };
        dead + self.alone(product, tokens)
    }

    /// How many microseconds less a product takes because its weights come while a small kernel before it runs for so long: as many as
    /// its ring holds, of the multiprocessors on which no row of that kernel is.
    pub fn ahead(&self, tokens: usize, before: f64) -> f64 {
        let instance = sm90::TOKENS.into_iter().find(|&width| tokens <= width && width <= sm90::FEW);
        let (ProductKernels::Sm90, Some(width)) = (self.family, instance) else { return 0.0 };
        let free = f64::from(MULTIPROCESSORS) - tokens as f64;
        let ring = sm90::stages(width) * (sm90::stage(width) - width * TERMS * 2);
        (free / f64::from(MULTIPROCESSORS) * before).min(free * ring as f64 / self.card.stream())
    }

    /// What a product takes in microseconds if the kernel before it hides its dead time.
    fn alone(&self, product: &Product, tokens: usize) -> f64 {
        let shape = Shape { tokens, n: product.n, k: product.k };
        // Activations that L2 does not hold go through memory beside the weights.
        let activations = (tokens * (2 * product.k + product.output * product.n)) as f64;
        let bytes = product.weights() + if activations > L2 { activations } else { 0.0 };
        let streaming = bytes / self.card.stream();
        match self.family {
            ProductKernels::OfReference | ProductKernels::Sm80 => {
                let plan = sm80::Plan::new(shape, MULTIPROCESSORS, self.workspace);
                sm80_time(&plan, product, tokens, streaming)
            }
            ProductKernels::Sm90 => {
                let plan = sm90::Plan::new(shape, MULTIPROCESSORS, self.workspace);
                sm90_time(&plan, product, tokens, streaming)
            }
        }
    }

    /// Share of the limit that several products reach together.
    pub fn share(&self, products: &[Product], tokens: usize) -> f64 {
        self.limit(products, tokens) / products.iter().map(|product| self.time(product, tokens)).sum::<f64>()
    }

    /// The same with dead times hidden.
    pub fn share_alone(&self, products: &[Product], tokens: usize) -> f64 {
        self.limit(products, tokens) / products.iter().map(|product| self.alone(product, tokens)).sum::<f64>()
    }

    fn limit(&self, products: &[Product], tokens: usize) -> f64 {
        products.iter().map(|product| product.limit(self.card, tokens)).sum()
    }
}

/// Microseconds for bytes of one multiprocessor from or to L2.
fn through_l2(bytes: usize) -> f64 {
    bytes as f64 / (L2_RATE * CLOCK)
}

/// A product of Ampere without its dead time. `streaming` is what its bytes take.
///
/// Kernels for up to 64 tokens wait for the weights: a step of the largest keeps shared memory busy for 576 cycles, and its weights
/// come in 970 on an H200.
fn sm80_time(plan: &sm80::Plan, product: &Product, tokens: usize, streaming: f64) -> f64 {
    let tile = sm80::TILES[plan.tile];
    let (along_k, token_tiles, output_tiles) = plan.grid;
    // Blocks of the busiest multiprocessor.
    let rounds = (along_k * token_tiles * output_tiles).div_ceil(MULTIPROCESSORS as usize);
    let elements = tile.outputs * tile.tokens.min(tokens);
    let steps = if along_k > 1 { plan.chunks.tiles } else { product.k.div_ceil(sm80::TILE_K) };
    let arithmetic = match tile {
        sm80::Tile { folds: true, .. } => {
            let epilogue = FOLD_FILL + through_l2(elements * product.output);
            rounds as f64 * (steps as f64 * FOLD_STEP / CLOCK + epilogue)
        }
        sm80::Tile { tokens: 128, .. } => (rounds * steps) as f64 * TILE_STEP / CLOCK,
        _ => 0.0,
    };
    let adding = match along_k {
        1 => 0.0,
        // Of these kernels the dead time has the ticket.
        chunks if tile.tokens <= 64 => through_l2(4 * elements * (rounds + chunks)),
        chunks => through_l2(4 * elements * (rounds + chunks)),
    };
    streaming.max(arithmetic) + adding
}

/// Outputs of a tile of Hopper's kernels, and terms of a step.
const OUTPUTS: usize = 128;
const TERMS: usize = 64;

/// A step of 64 terms of Hopper's kernels, in microseconds, but for memory: what the tensor core takes at the rate of
/// [`OPERATIONS`], or shared memory for what both warpgroups read and the copies write, 128 bytes a cycle.
fn sm90_step(width: usize) -> f64 {
    let tensor = (2 * OUTPUTS * width * TERMS) as f64 * f64::from(MULTIPROCESSORS) / OPERATIONS;
    // Each warpgroup reads its own 64 lines of weights and all tokens.
    let (read, copied) = (2 * (64 + width), OUTPUTS + width);
    let shared = (read + copied) as f64 * SHARED_OVERHEAD / CLOCK;
    tensor.max(shared)
}

/// Chunks of a tile that one block computes.
struct BlockChunks {
    tile: usize,
    /// The first.
    chunk: usize,
    steps: usize,
    chunks: usize,
    whole: bool,
}

/// What a block does, in its order.
fn work_of(plan: &sm90::Plan, steps: usize, block: usize) -> Vec<BlockChunks> {
    let shared = plan.split * plan.chunks;
    let begin = |chunk: usize| chunk * steps / plan.chunks;
    let each = shared.div_ceil(plan.blocks);
    let (mut at, end) = ((each * block).min(shared), (each * (block + 1)).min(shared));
    let mut work = Vec::new();
    while at < end {
        let (tile, chunk) = (at / plan.chunks, at % plan.chunks);
        let chunks = (plan.chunks - chunk).min(end - at);
        let steps = begin(chunk + chunks) - begin(chunk);
        work.push(BlockChunks { tile, chunk, steps, chunks, whole: chunks == plan.chunks });
        at += chunks;
    }
    let whole = (plan.split + block..plan.tiles).step_by(plan.blocks);
    work.extend(whole.map(|tile| BlockChunks { tile, chunk: 0, steps, chunks: plan.chunks, whole: true }));
    work
}

/// How far a block is: its copies and its products wait for each other at the ends of what it does.
#[derive(Clone, Copy, Default)]
struct BlockProgress {
    memory: f64,
    products: f64,
}

impl BlockProgress {
    fn at(&self) -> f64 {
        self.memory.max(self.products)
    }
}

/// A product of Hopper without its dead time: that of the busiest block. The copies of a block run ahead of its products, so
/// storing sums and adding them costs nothing as long as its memory is behind, but at its end. All blocks are as fast here: on a card
/// one that is late by more than it takes to store a tile's sums finishes all slices of its tile.
fn sm90_time(plan: &sm90::Plan, product: &Product, tokens: usize, streaming: f64) -> f64 {
    let width = sm90::TOKENS[plan.instance];
    let steps = product.k.div_ceil(TERMS);
    let blocks: Vec<Vec<BlockChunks>> = (0..plan.blocks).map(|block| work_of(plan, steps, block)).collect();
    // The card's memory is shared evenly by the blocks, and a multiprocessor's way to L2 is its own.
    let memory =
        (streaming * plan.blocks as f64 / (plan.tiles * steps) as f64).max(through_l2(2 * TERMS * (OUTPUTS + width)));
    let arithmetic = sm90_step(width);
    // Of a slice, and how many slices of a tile have tokens.
    let slice = width / sm90::slices(width);
    // Four schedulers issue an instruction of the eight warps in a cycle each.
    let finish = product.finish * (slice / 8) as f64 * 8.0 / 4.0 / CLOCK;
    let (sums, epilogue) = (through_l2(4 * OUTPUTS * slice), through_l2(product.output * OUTPUTS * slice) + finish);
    let slices = |tile: usize| {
        let first = tile % tokens.div_ceil(width) * width;
        (tokens - first).min(width).div_ceil(slice)
    };
    // Who arrives last with each slice of the shared tiles, if nobody had to add.
    let mut last: Vec<Vec<(f64, usize)>> = (0..plan.split).map(|tile| vec![(0.0, 0); slices(tile)]).collect();
    for (block, work) in blocks.iter().enumerate() {
        let mut progress = BlockProgress::default();
        for work in work.iter().filter(|work| !work.whole) {
            let count = slices(work.tile);
            progress.memory += work.steps as f64 * memory;
            progress.products += work.steps as f64 * arithmetic + (work.chunks * count) as f64 * sums;
            for i in 0..count {
                let slice = (work.chunk * count / plan.chunks + i) % count;
                let at = progress.at() - (count - 1 - i) as f64 * sums;
                if at >= last[work.tile][slice].0 {
                    last[work.tile][slice] = (at, block);
                }
            }
        }
    }
    let time = |(block, work): (usize, &Vec<BlockChunks>)| {
        let (mut progress, mut end) = (BlockProgress::default(), 0.0);
        for work in work {
            let count = slices(work.tile);
            progress.products += end;
            progress.memory += work.steps as f64 * memory;
            progress.products += work.steps as f64 * arithmetic;
            end = match work.whole {
                true => count as f64 * epilogue,
                false => {
                    progress.products += (work.chunks * count) as f64 * sums;
                    let finished = last[work.tile].iter().filter(|(_, last)| *last == block).count();
                    finished as f64 * (plan.chunks as f64 * sums + epilogue)
                }
            };
        }
        progress.at() + end
    };
    blocks.iter().enumerate().map(time).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_all_chunks_of_all_tiles() {
        for (tokens, n, k) in
            [(1, 6144, 4096), (128, 4096, 14_336), (256, 14_336, 4096), (400, 28_672, 4096), (2048, 576, 200)]
        {
            let plan = sm90::Plan::new(Shape { tokens, n, k }, MULTIPROCESSORS, 1 << 24);
            let steps = k.div_ceil(TERMS);
            let (mut all, mut chunks) = (vec![0; plan.tiles], vec![0; plan.tiles]);
            for work in (0..plan.blocks).flat_map(|block| work_of(&plan, steps, block)) {
                all[work.tile] += work.steps;
                chunks[work.tile] += work.chunks;
            }
            assert!(
                all.iter().all(|&of_tile| of_tile == steps) && chunks.iter().all(|&c| c == plan.chunks),
                "{plan:?}"
            );
        }
    }

    #[test]
    fn wide_steps_wait_for_the_tensor_core() {
        let tensor = |width: usize| (2 * OUTPUTS * width * TERMS) as f64 * f64::from(MULTIPROCESSORS) / OPERATIONS;
        assert!(sm90_step(128) > tensor(128));
        assert_eq!(sm90_step(192), tensor(192));
    }
}
