// Data gradients of products with stored weights: dx[tokens, k] = dy[tokens, n] . w[n, k], dy and w 16-bit, sums f32.
//
//   output: 0 stores f32, 1 stores 16-bit (rounded once), 2 stores f32 on top of `before`, which may be y itself.
//
// w is the forward product's own matrix, in the forward layout: its rows are what is summed over here, so tiles of 64 of
// its rows and 64 of its columns come in by whole lines, and ldmatrix transposes them on the way to the tensor core.
// Contract: n and k multiples of 8, dy and w 16-byte aligned; any number of tokens. Everything else is as in gemm.cu with
// the roles of n and k exchanged: an element is the ascending chain of k16 steps over n of each chunk, chunks are cut by
// (k, n) alone and added in ascending order, and all kernels give the same bits. What is missing of the last 64 rows
// counts as zero.
//
// Bytes: w 2nk once, dy 2n per token (once from DRAM), dx 4k or 2k per token, and with several chunks 8 bytes per chunk
// and element, in L2. Flops: 2nk per token. The limits are the forward ones. Aim: 90 % of the copy rate up to 64 tokens
// where n k is at least 16 M (a block's lines of 128 bytes lie 2k apart, and neighbouring blocks fill the gaps), 75 % of the
// mma.sync peak beyond (not measured).
#include "gemm.cuh"

GEMM_CLASSES(gemm_backward, bf16, __nv_bfloat16, true)
GEMM_CLASSES(gemm_backward, f16, __half, true)
