// Shared by all kernels: storage types, vector access, reductions of a fixed order, last-arriver tickets, and how lines lie
// in shared memory.
//
// Every kernel includes this header, itself or by way of the headers of a family (gemm.cuh, attention.cuh, attention_forward.cuh,
// hopper.cuh) or of what kernels share a formula of (gated.cuh, heads.cuh, norms.cuh). Nothing here depends on how many rows a launch
// has: what a row or an output element goes through is a function of its own problem's size alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ptx.cuh"

// The block's dynamic shared memory as `unsigned char*`, 128-byte aligned.
#define EXTERN_SHARED(name)                                                   \
    extern __shared__ __align__(128) unsigned char ggro_dynamic_shared[];     \
    unsigned char* const name = ggro_dynamic_shared

namespace ggro {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// ---- storage types -------------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

// ---- what kernels hand each other ----------------------------------------------------------------------------------

// Statistics of a row of logits. Same layout as `RowStatsOut` on the host.
struct RowStats {
    double log_sum_exp, entropy, entropy_floored, max_probability, varentropy;
    float max_logit, margin;
    unsigned argmax, finite;
};

// ---- vector access -------------------------------------------------------------------------------------------------

// N elements that move in one instruction of 8 or 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    static_assert(sizeof(T) * N == 8 || sizeof(T) * N == 16, "a pack moves in one 64- or 128-bit access");
    T at[N];
};

template <int BYTES>
struct Word;
template <>
struct Word<8> {
    using type = uint2;
};
template <>
struct Word<16> {
    using type = uint4;
};

// The address must be a multiple of the pack's size.
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* address) {
    using W = typename Word<sizeof(T) * N>::type;
    const W word = *reinterpret_cast<const W*>(address);
    Pack<T, N> pack;
    __builtin_memcpy(&pack, &word, sizeof(word));
    return pack;
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T, N>& pack) {
    using W = typename Word<sizeof(T) * N>::type;
    W word;
    __builtin_memcpy(&word, &pack, sizeof(word));
    *reinterpret_cast<W*>(address) = word;
}

template <typename T>
__device__ __forceinline__ Pack<T, 16 / sizeof(T)> load128(const T* address) {
    return load_pack<16 / sizeof(T)>(address);
}

template <typename T>
__device__ __forceinline__ void store128(T* address, const Pack<T, 16 / sizeof(T)>& pack) {
    store_pack<16 / sizeof(T)>(address, pack);
}

__device__ __forceinline__ bool aligned(const void* address, int bytes) {
    return (reinterpret_cast<uintptr_t>(address) & (bytes - 1)) == 0;
}

// ---- one kernel after the other ------------------------------------------------------------------------------------

// `__restrict__` for kernels that read what others have written. With it nvcc reads by ld.global.nc, which is for data that nobody
// writes while the kernel lives; a kernel that begins early lives while those before it write. `__ldg` is the same load: it is for
// weights and for lists that the host has copied.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define GGRO_RESTRICT
#else
#define GGRO_RESTRICT __restrict__
#endif

// What a kernel does first that has nothing to do before its turn: the next one may come, and those before have ended.
__device__ __forceinline__ void await_turn() {
    ptx::launch_dependents();
    ptx::wait_for_predecessors();
}

// ---- matrix products -----------------------------------------------------------------------------------------------

// Products of a storage type, and pairs of numbers as their operands.
template <typename T>
struct Mma;
template <>
struct Mma<__nv_bfloat16> {
    template <int MI, int NI>
    static __device__ __forceinline__ void tile(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4],
                                                const uint32_t (&b)[NI][2]) {
        ptx::mma_tile_bf16<MI, NI>(d, a, b);
    }
    // Rounded; `low` in the lower half.
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        uint32_t bits;
        __builtin_memcpy(&bits, &pair, sizeof(bits));
        return bits;
    }
};
template <>
struct Mma<__half> {
    template <int MI, int NI>
    static __device__ __forceinline__ void tile(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4],
                                                const uint32_t (&b)[NI][2]) {
        ptx::mma_tile_f16<MI, NI>(d, a, b);
    }
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __half2 pair = __floats2half2_rn(low, high);
        uint32_t bits;
        __builtin_memcpy(&bits, &pair, sizeof(bits));
        return bits;
    }
};

// ---- reductions ----------------------------------------------------------------------------------------------------

// Sum over a full warp, the same bits in every lane: both partners of a butterfly step add the same two numbers.
template <typename V>
__device__ __forceinline__ V warp_sum(V x) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
}

// Sum over the block, warps in ascending order; every thread gets it. `scratch` holds one value per warp and may be
// used again only after a barrier. All threads must call.
template <typename V>
__device__ __forceinline__ V block_sum(V x, V* scratch) {
    const int warp = threadIdx.x / kWarp, warps = (blockDim.x + kWarp - 1) / kWarp;
    x = warp_sum(x);
    if (threadIdx.x % kWarp == 0) scratch[warp] = x;
    __syncthreads();  // scratch is complete
    V sum = scratch[0];
    for (int i = 1; i < warps; ++i) sum += scratch[i];
    return sum;
}

// ---- last arriver --------------------------------------------------------------------------------------------------

// True in the block that comes last of `blocks` to this ticket; the ticket is zero again afterwards, ready for the next
// launch. What the other blocks wrote to global memory before is visible then (read it past L1, with __ldcg). All
// threads must call; `flag` is one word of shared memory.
__device__ __forceinline__ bool arrive_last(unsigned* ticket, unsigned blocks, unsigned* flag) {
    __threadfence();  // each thread's own writes, before its block's arrival
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool last = ptx::atom_add_acq_rel(ticket, 1u) == blocks - 1;
        if (last) *ticket = 0;
        *flag = last;
    }
    __syncthreads();  // the flag is written
    const bool last = *flag != 0;
    if (last) __threadfence();
    return last;
}

// Byte offset of 16-byte chunk `chunk` of a line of LINE bytes. Eight lines of one chunk, and eight chunks of
// neighbouring lines, fall into eight different bank groups: that is what ldmatrix reads and what copies write.
template <int LINE>
__device__ __forceinline__ uint32_t swizzled(int line, int chunk) {
    static_assert(LINE == 64 || LINE == 128 || LINE == 256, "a line of 32, 64 or 128 elements of 16 bits");
    const int turn = LINE == 64 ? (line >> 1) & 3 : line & 7;
    return static_cast<uint32_t>(line * LINE + ((chunk ^ turn) << 4));
}

// Index of an element of a matrix of weights with `width` columns in tiles of 64 x 64 elements, each as lines of 128 bytes
// lie in shared memory. Eight elements from a multiple of 8 on stay together. `WeightLayout::Tiles` on the host.
__device__ __forceinline__ uint64_t tile_index(unsigned width, unsigned row, unsigned col) {
    const uint64_t tile = static_cast<uint64_t>(row / 64) * ((width + 63) / 64) + col / 64;
    return tile * 4096 + swizzled<128>(row % 64, col % 64 / 8) / 2 + col % 8;
}

}  // namespace ggro
