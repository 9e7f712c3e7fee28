// Chosen rows of one matrix into chosen rows of another: gathering rows of the residual stream, storing hidden rows.
//
//   dst[to, :] = src[from, :] for every pair (from, to)
//
// Contract: rows of any element type, whole 16-byte words, both matrices 16-byte aligned and apart; no two pairs name one
// row of dst. A pair that names no row of either matrix is left out. One block per pair.
// Bytes: each row read and written once. The limit is memory; with few rows it is latency.
#include "common.cuh"

namespace ggro {

constexpr int kCopyThreads = 256;

__device__ __forceinline__ void copy_rows(uint4* GGRO_RESTRICT dst, const uint4* GGRO_RESTRICT src,
                                          const uint2* GGRO_RESTRICT pairs, unsigned dst_rows, unsigned src_rows,
                                          int words) {
    const uint2 pair = pairs[blockIdx.x];
    if (pair.x >= src_rows || pair.y >= dst_rows) return;
    const uint4* const from = src + static_cast<size_t>(pair.x) * words;
    uint4* const to = dst + static_cast<size_t>(pair.y) * words;
    for (int at = threadIdx.x; at < words; at += blockDim.x) to[at] = from[at];
}

}  // namespace ggro

// Grid: pairs. Block: a thread per word of a row, at most 256.
extern "C" __global__ void __launch_bounds__(ggro::kCopyThreads)
    copy_rows(uint4* dst, const uint4* src, const uint2* pairs, unsigned dst_rows, unsigned src_rows, int words) {
    ggro::await_turn();
    ggro::copy_rows(dst, src, pairs, dst_rows, src_rows, words);
}
