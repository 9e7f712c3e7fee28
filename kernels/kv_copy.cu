// The partial block of a fork: the first positions of a block of keys and values, in all layers, into another block.
//
//   pool[to, layer, kv, head, :positions, :] = pool[from, layer, kv, head, :positions, :] for every (from, to, positions)
//
// Contract: 16-bit elements, heads of a multiple of 8 elements, the pool 16-byte aligned; no block is the target of two
// copies, or both source and target. Copies of blocks that are not in the pool are left out; positions beyond a block's
// 64 do not exist. One launch: a block per (layer, keys or values, head) and copy.
// Bytes: what is copied, read and written once; at most 2 x 8 MiB for an 8B model's block, so launch and latency count
// for as much. Aim: 70 % of the copy rate (not measured).
#include "common.cuh"

namespace ggro {

constexpr int kKvCopyThreads = 256;
constexpr unsigned kKvBlock = 64;

// `planes` are the (layer, kv, head) of a block, each `words` 16-byte words per position.
__device__ __forceinline__ void kv_copy(uint4* GGRO_RESTRICT pool, const unsigned* GGRO_RESTRICT copies, unsigned blocks,
                                        unsigned planes, unsigned words) {
    const unsigned* const copy = copies + 3 * static_cast<size_t>(blockIdx.y);
    const unsigned from = copy[0], to = copy[1], positions = min(copy[2], kKvBlock);
    if (from >= blocks || to >= blocks) return;
    const size_t plane = static_cast<size_t>(kKvBlock) * words;
    const uint4* const source = pool + (static_cast<size_t>(from) * planes + blockIdx.x) * plane;
    uint4* const target = pool + (static_cast<size_t>(to) * planes + blockIdx.x) * plane;
#pragma unroll 4
    for (unsigned at = threadIdx.x; at < positions * words; at += blockDim.x) target[at] = source[at];
}

}  // namespace ggro

// Grid: (layers x 2 x heads, copies). Block: 256.
extern "C" __global__ void __launch_bounds__(ggro::kKvCopyThreads)
    kv_copy(uint4* pool, const unsigned* copies, unsigned blocks, unsigned planes, unsigned words) {
    ggro::await_turn();
    ggro::kv_copy(pool, copies, blocks, planes, words);
}
