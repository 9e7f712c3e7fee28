// What both directions of attention agree on: pages of keys, powers of two, and how a page lies in shared memory.
#pragma once

#include "common.cuh"

namespace ggro {

constexpr int kKeys = 64;
constexpr float kLog2E = 1.4426950408889634f;

// Byte offset of 16-byte chunk `chunk` of a line of LINE bytes. Eight lines of one chunk, and eight chunks of
// neighbouring lines, fall into eight different bank groups.
template <int LINE>
__device__ __forceinline__ uint32_t swizzled(int line, int chunk) {
    static_assert(LINE == 64 || LINE == 128 || LINE == 256, "a head of 32, 64 or 128 elements");
    const int turn = LINE == 64 ? (line >> 1) & 3 : line & 7;
    return static_cast<uint32_t>(line * LINE + ((chunk ^ turn) << 4));
}

}  // namespace ggro
