// Products with stored weights: y[tokens, n] = x[tokens, k] . w[n, k]^T (+ bias[n]), x, w, bias 16-bit, sums f32.
//
//   output: 0 stores f32, 1 stores 16-bit (rounded once), 2 stores f32 on top of `before`, which may be y itself.
//
// Contract: k a multiple of 64 (zero-padded at load), x and w 16-byte aligned; any n, any number of tokens. Weights are
// the A operand of mma.m16n8k16 and tokens the B operand in every kernel here. An output element is the ascending chain
// of k16 steps of each split-K chunk, started at zero, and the chunks added in ascending order. Chunks are
// `chunk_tiles` tiles of 64 along k, a function of (n, k) alone, so an element's bits depend on its own row of x and
// its own row of w: not on the other tokens, the tile they share, nor the kernel:
//   gemm_stream*     1..=64 tokens in one token tile of 8, 16, 32 or 64: each weight is read once, one chunk per block;
//   gemm_tile*       many tokens, 128 outputs x 128 tokens per block; `_fold` walks all chunks itself, the other takes
//                    one chunk per block where there would be too few blocks.
// With one chunk per block the chunks' sums go through `workspace` and the last block to arrive adds them.
//
// Bytes: w 2nk once, x 2k per token (once from DRAM; each block of outputs takes it from L2), y, and with several
// chunks 8 bytes per chunk and output element, in L2. Flops: 2nk per token.
// Streaming: the limit is one read of the weights. A multiprocessor keeps 4 blocks x 5 stages x 8 KB of weights in
// flight, several times what latency times bandwidth asks for (26 KB). Aim: 90 % of the copy rate where n k is at
// least 16 M (not measured); below that launch and drain show. At 64 tokens shared-memory reads should take 45 % of that
// time, which hides.
// Tile: the limit is the tensor core through mma.sync, two thirds of what wgmma reaches on sm_90 (all of it on sm_80);
// one ldmatrix.x4 per 2.7 mma leaves shared memory at half its rate. Aim: 75 % of the mma.sync peak (not measured).
#include "gemm.cuh"

GEMM_CLASSES(gemm, bf16, __nv_bfloat16, false)
GEMM_CLASSES(gemm, f16, __half, false)
