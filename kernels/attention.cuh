// What both directions of attention agree on: pages of keys, powers of two, and how a page comes into shared memory.
#pragma once

#include "common.cuh"

namespace ggro {

constexpr int kKeys = 64;
constexpr float kLog2E = 1.4426950408889634f;

// In an item's number of tokens: some of its tokens have parts in other items.
constexpr unsigned kShared = 1u << 16;
// In a page's number of positions: the last page of its chunk.
constexpr unsigned kChunkEnds = 1u << 16;
// There too, for the item's first tile of 64 rows, and one bit further for its second: some row sees some of the page, every row sees
// some of it, every row sees all of it.
constexpr unsigned kSeen = 1u << 17, kTogether = 1u << 19, kWhole = 1u << 21;

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
        // A lane's line of each pass is so many lines further on: a distance in bytes, whatever the swizzle.
        const uint32_t to = stage + swizzled<kLine>(line, chunk);
        const T* const keys = static_cast<const T*>(args.pool) + page.x * args.block +
                              (static_cast<size_t>(blockIdx.y) * kKeys + line) * EP + chunk * 8;
        const T* const values = keys + static_cast<size_t>(args.kv_heads) * kKeys * EP;
#pragma unroll
        for (int first = 0; first < kKeys; first += kLinesPerPass) {
            const bool real = first + line < valid;
            ptx::cp_async16(to + first * kLine, keys + first * EP, real);
            ptx::cp_async16(to + kTileBytes + first * kLine, values + first * EP, real);
        }
    }
};

}  // namespace ggro
