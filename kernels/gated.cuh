// The gated activation of one unit of the MLP: silu(gate) up, with silu(g) = g / (1 + exp(-g)).
//
// f32 inside, one rounding. Exponential and reciprocal are the fast ones: their errors, some 1e-6 relative, are far below a
// rounding to 16 bits. Whoever computes it, from the same bits, has the same: kernels/swiglu.cu on its own, and the epilogues of
// kernels/gemm_sm90.cu.
#pragma once

#include "common.cuh"

namespace ggro {

__device__ __forceinline__ float logistic(float g) { return ptx::rcp_approx(1.0f + __expf(-g)); }

template <typename T>
__device__ __forceinline__ T gated(T gate, T up) {
    const float g = to_float(gate);
    return from_float<T>(g * logistic(g) * to_float(up));
}

// What a gradient of the activation becomes, s = 1 / (1 + exp(-g)):
//   d_gate = d_act up s (1 + g (1 - s)),  d_up = d_act g s
template <typename T>
__device__ __forceinline__ void gated_gradients(T& d_gate, T& d_up, float d_act, T gate, T up) {
    const float g = to_float(gate), s = logistic(g);
    d_gate = from_float<T>(d_act * to_float(up) * s * fmaf(g, 1.0f - s, 1.0f));
    d_up = from_float<T>(d_act * (g * s));
}

}  // namespace ggro
