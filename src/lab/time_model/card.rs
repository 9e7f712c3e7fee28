//! The constants of the time model, all of them. A constant changes only by a card's measurement, in a file under `bench/results`.
//!
//! Times are in microseconds, rates in bytes or operations a microsecond. *Read* constants are a data sheet's, or those of a study
//! of the kernels of commit 4b909e8, which read their SASS and launches and timed nothing. *Fitted* ones it left open: inside the
//! ranges that it gives they were chosen so that the passes of that day take what it says. *Assumed* ones stand on neither.

use crate::lab::bench::cost::Roofline;

/// A card: what its memory copies in a microsecond. Multiprocessors, clock and tensor cores are those of Hopper below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// Name.
    pub name: &'static str,
    /// Bytes a microsecond of a large copy.
    pub copy: f64,
}

impl Card {
    /// What no pass can beat: the copy rate, and [`OPERATIONS`].
    pub fn limits(&self) -> Roofline {
        Roofline { bytes: self.copy * 1e6, flops: OPERATIONS * 1e6 }
    }

    /// Bytes a microsecond that products stream weights with.
    pub fn stream(&self) -> f64 {
        self.copy * STREAM
    }
}

/// Read: the study assumes copies of 4.3 and 3.0 TB/s.
pub const CARDS: [Card; 2] = [Card { name: "H200", copy: 4.3e6 }, Card { name: "H100", copy: 3.0e6 }];

/// Read: multiprocessors of both cards (SXM).
pub const MULTIPROCESSORS: u32 = 132;
/// Read: dense 16-bit operations that the card sustains, 790 TFLOP/s. A multiprocessor does 4096 in a cycle, so this is 1.46 GHz:
/// the clock that power leaves under such load.
pub const OPERATIONS: f64 = 790e6;
/// Fitted: cycles a microsecond where tensor cores do not set the pace. The study counts cycles and names no clock; the card
/// runs between 1.46 and 1.98 GHz.
pub const CLOCK: f64 = 1755.0;

/// Read: of the copy rate, what products stream weights with in steady state. The study has it for stream8; here it is taken for every
/// kernel that streams, Hopper's too.
pub const STREAM: f64 = 0.91;
/// Assumed: bytes a cycle from and to L2, of one multiprocessor. All of them together are not limited further.
pub const L2_RATE: f64 = 64.0;
/// Read: bytes of L2. Activations beyond go through memory.
pub const L2: f64 = 50e6;

/// Read: of a product, the time in which nothing streams: launch in a graph, first byte, epilogue, ticket.
pub const DEAD: f64 = 2.8;
/// Read: of [`DEAD`] and of every small kernel, the launch in a graph. Assumed: nothing of it is left where a kernel begins before the
/// one before it has ended.
pub const START: f64 = 1.3;
/// Assumed: what is left of [`DEAD`] where a product's weights are there before its turn, because the product before it leaves it
/// room: the first bytes of activations, and the ticket.
pub const DEAD_AHEAD: f64 = 1.0;
/// Fitted by 1 x 16 tokens with gradient: what a launch costs beyond that where no graph starts it.
pub const LAUNCH: f64 = 0.7;
/// Read: the host's part of a step of decoding: copy back, scheduler, copy in, start of the graph. Taken for every pass.
pub const HOST: f64 = 45.0;

/// Fitted within 1150 to 1300: cycles of a multiprocessor for a step of 128 x 128 x 64 of `tile`, two of whose blocks share it.
pub const TILE_STEP: f64 = 1220.0;
/// Fitted within 1150 to 1300: the same for `tile_fold`, whose one block waits at its barrier alone.
pub const FOLD_STEP: f64 = 1300.0;
/// Fitted: a block of `tile_fold` fills its pipeline while nothing else runs on the multiprocessor.
pub const FOLD_FILL: f64 = 1.0;
/// Assumed: shared memory takes this much longer than its bytes at 128 a cycle.
pub const SHARED_OVERHEAD: f64 = 1.1;

/// Read: kernels of few rows. Many rows take their bytes at the copy rate besides.
pub const NORM: f64 = 3.0;
/// Read.
pub const ROPE: f64 = 2.6;
/// Read.
pub const SWIGLU: f64 = 2.3;
/// Read: the least that any small kernel takes. Copies of rows, embeddings, statistics.
pub const SMALL: f64 = 2.3;
/// Read: instructions of a warp for 16 outputs of 8 tokens where a product ends in the gated activation, or in its gradients, in
/// the machine code of gemm_sm90_128 and gemm_backward_sm90_128.
pub const GATED: f64 = 69.0;
/// Read.
pub const GATED_GRADIENTS: f64 = 139.0;
/// Read: the same where a product turns queries and keys and keeps keys and values. Each thread waits for its tokens' angles
/// besides, which come from L2 while others are finished.
pub const HEADS: f64 = 150.0;
/// Read: the same where a product that adds to the residual stream stores the next norm's part.
pub const NEXT_NORM: f64 = 40.0;
/// Assumed: what a product takes to find the inverse norms of twelve rows, two readings from L2 one after the other included.
pub const FACTORS: f64 = 1.2;
/// Read: attention of one row takes 6 us, of which reading its 1024 positions is 1.2 on an H200.
pub const ATTENTION: f64 = 4.8;
/// Read: of the copy rate, what attention reads keys and values with.
pub const ATTENTION_STREAM: f64 = 0.80;
/// Read: the same where items walk all chunks of their rows and nothing goes through the scratch.
pub const ATTENTION_STREAM_WHOLE: f64 = 0.90;
/// Read: operations of attention by mma, 190 TFLOP/s; the study takes it for its backward pass too.
pub const ATTENTION_OPERATIONS: f64 = 190e6;
/// Read: cycles of shared memory for a page of keys by 64 rows of the backward pass over queries, in the machine code of
/// attention_backward_many_128. Two of its blocks share a multiprocessor.
pub const BACKWARD_PAGE: f64 = 2176.0;
/// Read: instructions of a warp for a page of keys that all its rows see, in the machine code of attention_sm90_128, a fourth of
/// those for the end of a chunk included.
pub const WGMMA_PAGE: f64 = 670.0;
/// Assumed: of what issue slots, tensor core or shared memory allow alone, what two warpgroups or blocks reach that share them.
pub const OVERLAP: f64 = 0.75;
