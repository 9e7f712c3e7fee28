// A stored matrix into its place in a padded or fused one, converted to the storage type.
//
//   out[place(i)] 16-bit = round(stored[i - first]),  i = first .. first + count, an element of a stored [rows, cols]
//   place(r cols + c)    = index(first_row + spread(r, row_of, row_to), spread(c, col_of, col_to))
//   spread(x, of, to)    = x / of * to + x % of; with `paired`, rows of a group of `of` are the two halves of a head, whose elements
//                          go to the columns of its pairs (heads.cuh)
//   index(row, col)      = row width + col, or, of an out in tiles, tile_index(width, row, col) of common.cuh
//   changed[0]          += elements that became another number;  changed[1] += numbers that became infinite
//
// `stored` holds bf16, f16 or f32 (kind 0, 1, 2); rounding is to nearest even. Elements of out that have no i are not
// touched: the host has zeroed them.
// Contract: with `packs`, cols, width, the column groups, first and count are multiples of 8 and both addresses of 16, so that
// 8 elements stay together, in tiles too; otherwise any size and natural alignment. `changed` grows by integer atomics, once
// per block that has something to add.
// Bytes: read 2 or 4, write 2 per element, each once. Flops: none. The limit is memory; it runs while weights are loaded,
// which the host link bounds at a twentieth of that, so half of the copy rate is enough.
#include "heads.cuh"

namespace ggro {

constexpr int kConvertThreads = 256;

struct Places {
    uint64_t first;
    int cols, width, first_row, row_of, row_to, col_of, col_to;
    bool paired, tiled;
};

__device__ __forceinline__ int spread(int x, int of, int to) { return x / of * to + x % of; }

__device__ __forceinline__ int spread_pairs(int x, int of, int to) {
    const int at = x % of, half = of / 2;
    return x / of * to + pair_column(at % half) + (at < half ? 0 : kPairGroup);
}

__device__ __forceinline__ uint64_t place_of(const Places& places, uint64_t index) {
    const uint64_t i = places.first + index;
    const int row = static_cast<int>(i / places.cols), col = static_cast<int>(i % places.cols);
    const int to_row = places.first_row + (places.paired ? spread_pairs(row, places.row_of, places.row_to)
                                                         : spread(row, places.row_of, places.row_to));
    const int to_col = spread(col, places.col_of, places.col_to);
    const uint64_t in_rows = static_cast<uint64_t>(to_row) * places.width + to_col;
    return places.tiled ? tile_index(places.width, to_row, to_col) : in_rows;
}

// Finite numbers at most: the largest float of any type here, and not NaN.
__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }

template <typename T, typename S>
__device__ __forceinline__ T converted(S stored, unsigned& rounded, unsigned& infinite) {
    const float x = to_float(stored);
    const T y = from_float<T>(x);
    const float back = to_float(y);
    // NaN stays NaN, which is no change.
    if (back != x && x == x) {
        if (finite(back)) {
            ++rounded;
        } else {
            ++infinite;
        }
    }
    return y;
}

template <typename T, typename S>
__device__ __forceinline__ void pad_convert(T* GGRO_RESTRICT out, const S* GGRO_RESTRICT stored, const Places& places,
                                            uint64_t count, bool packs, unsigned& rounded, unsigned& infinite) {
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    if (!packs) {
        for (uint64_t i = start; i < count; i += step) {
            out[place_of(places, i)] = converted<T>(stored[i], rounded, infinite);
        }
        return;
    }
    // 16 stored bytes a thread, so that a warp reads whole lines.
    constexpr int kPack = 16 / sizeof(S);
    for (uint64_t i = start * kPack; i < count; i += step * kPack) {
        const Pack<S, kPack> in = load_pack<kPack>(stored + i);
        Pack<T, kPack> pack;
#pragma unroll
        for (int j = 0; j < kPack; ++j) pack.at[j] = converted<T>(in.at[j], rounded, infinite);
        // A multiple of kPack as it is. Said so, the compiler stores the pack at once; in tiles it would not see that.
        store_pack<kPack>(out + place_of(places, i) / kPack * kPack, pack);
    }
}

template <typename T>
__device__ __forceinline__ void pad_convert_any(T* out, const void* stored, int kind, const Places& places,
                                                uint64_t count, bool packs, unsigned long long* changed) {
    __shared__ unsigned partial[2][kConvertThreads / kWarp];
    unsigned rounded = 0, infinite = 0;
    if (kind == 0) {
        pad_convert(out, static_cast<const __nv_bfloat16*>(stored), places, count, packs, rounded, infinite);
    } else if (kind == 1) {
        pad_convert(out, static_cast<const __half*>(stored), places, count, packs, rounded, infinite);
    } else {
        pad_convert(out, static_cast<const float*>(stored), places, count, packs, rounded, infinite);
    }
    rounded = block_sum(rounded, partial[0]);
    infinite = block_sum(infinite, partial[1]);
    if (threadIdx.x == 0) {
        if (rounded != 0) atomicAdd(&changed[0], static_cast<unsigned long long>(rounded));
        if (infinite != 0) atomicAdd(&changed[1], static_cast<unsigned long long>(infinite));
    }
}

}  // namespace ggro

// Grid: any number of blocks, which share the elements. Block: 256.
#define PAD_CONVERT(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(ggro::kConvertThreads)                                                \
        NAME(T* out, const void* stored, int kind, uint64_t first, uint64_t count, int cols, int width, int tiled,     \
             int first_row, int row_of, int row_to, int paired, int col_of, int col_to, int packs,                     \
             unsigned long long* changed) {                                                                            \
        ggro::await_turn();                                                                                            \
        const ggro::Places places = {first,  cols,   width,       first_row, row_of, row_to,                           \
                                     col_of, col_to, paired != 0, tiled != 0};                                         \
        ggro::pad_convert_any<T>(out, stored, kind, places, count, packs != 0, changed);                               \
    }

PAD_CONVERT(pad_convert_bf16, __nv_bfloat16)
PAD_CONVERT(pad_convert_f16, __half)
