// What the kernels for Hopper alone share: warpgroups, the ring of stages that one of them fills for the others, and tensor maps.
#pragma once

#include "common.cuh"

namespace ggro {

constexpr int kWarpgroup = 128;

// The stage of a ring that is next, and the parity of its phase.
struct Place {
    int stage = 0;
    uint32_t parity = 0;

    template <int STAGES>
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }

    // The stage before.
    template <int STAGES>
    __device__ __forceinline__ int last() const {
        return stage == 0 ? STAGES - 1 : stage - 1;
    }
};

// An address and a shape, as cuTensorMapEncodeTiled writes them.
struct alignas(64) TensorMap {
    uint64_t words[16];
};

}  // namespace ggro
