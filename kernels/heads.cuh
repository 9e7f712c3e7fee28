// Query, key and value heads between the fused projection and attention: which columns of the projection are a head's pairs,
// how a pair is turned, and where keys and values lie in the paged pool. Shared by kernels/rope.cu and the epilogue of
// kernels/gemm_sm90.cu, which give the same bits, and by kernels/pad_convert.cu, which puts rows of weights in this order.
#pragma once

#include "common.cuh"

namespace ggro {

// Positions of a block of the pool.
constexpr unsigned kKvBlock = 64;

// Heads of e = 2 half elements, stored as `padded`.
struct HeadArgs {
    const float2* table;  // [table_rows, half] of cosine and sine
    const unsigned* positions;
    const unsigned* slots;
    unsigned long long block_stride, layer_offset;  // of the pool, in elements
    unsigned pool_slots, table_rows;
    int heads, kv_heads, half, padded;
};

// With weights in tiles and without head norms, query and key heads of the projection have their columns in groups of 16: eight elements of the first
// half, and then their partners of the second. So an epilogue has both elements of a pair in one thread.
constexpr int kPairGroup = 8;

// The column of a pair's first element; the partner's is kPairGroup further on. There are padded / 2 pairs.
__device__ __forceinline__ int pair_column(int pair) {
    return pair / kPairGroup * 2 * kPairGroup + pair % kPairGroup;
}

// By an angle, and back.
__device__ __forceinline__ void turn(float& a, float& b, float cos, float sin) {
    const float first = a, second = b;
    a = fmaf(first, cos, -(second * sin));
    b = fmaf(second, cos, first * sin);
}
__device__ __forceinline__ void turn_back(float& a, float& b, float cos, float sin) {
    const float first = a, second = b;
    a = fmaf(first, cos, second * sin);
    b = fmaf(second, cos, -(first * sin));
}

// Where a key head's row lies in a layer of the pool, or a value head's behind all key heads: a plane of 64 positions per head.
template <typename T>
__device__ __forceinline__ T* kept_head(T* pool, unsigned slot, int head, unsigned long long block_stride,
                                        unsigned long long layer_offset, int padded) {
    const size_t plane = static_cast<size_t>(head) * kKvBlock + slot % kKvBlock;
    return pool + slot / kKvBlock * block_stride + layer_offset + plane * padded;
}

}  // namespace ggro
