// What both directions of attention agree on: pages of keys, powers of two, and how a page comes into shared memory.
#pragma once

#include "common.cuh"

namespace ggro {

constexpr int kKeys = 64;
constexpr float kLog2E = 1.4426950408889634f;

// How THREADS threads bring pages of keys and values with heads of EP elements into shared memory.
template <typename T, int EP, int THREADS>
struct Pages {
    static constexpr int kLine = EP * 2;
    static constexpr int kChunks = EP / 8;  // of 16 bytes per line
    static constexpr int kTileBytes = kKeys * kLine;
    static constexpr int kLinesPerPass = THREADS / kChunks;
    static_assert(kKeys % kLinesPerPass == 0, "whole passes over the lines of a page");
    static_assert(kLinesPerPass % 8 == 0, "the swizzle of a thread's lines is the same in each pass");

    // A page's block and how many of its positions are valid.
    static __device__ __forceinline__ uint2 block_of(const uint4* page) {
        const unsigned* const words = reinterpret_cast<const unsigned*>(page);
        return make_uint2(__ldg(words), __ldg(words + 3));
    }

    // Keys and values of a page, for the block's key/value head; those past its end become zero.
    template <typename Args>
    static __device__ __forceinline__ void load_stage(const Args& args, uint32_t stage, const uint2& page) {
        const int line = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
        const int valid = page.y & 0xffff;
        const size_t values = static_cast<size_t>(args.kv_heads) * kKeys * EP;
        const T* const base = static_cast<const T*>(args.pool) + page.x * args.block +
                              static_cast<size_t>(blockIdx.y) * kKeys * EP + chunk * 8;
#pragma unroll
        for (int first = 0; first < kKeys; first += kLinesPerPass) {
            const int at = first + line;
            const bool real = at < valid;
            ptx::cp_async16(stage + swizzled<kLine>(at, chunk), base + at * EP, real);
            ptx::cp_async16(stage + kTileBytes + swizzled<kLine>(at, chunk), base + values + at * EP, real);
        }
    }
};

}  // namespace ggro
