// The gated activation of the MLP.
//
//   out[n, f] 16-bit = round(silu(gate) * up),  gate_up[n, 2f] 16-bit: gate, then up;  silu(g) = g / (1 + exp(-g))
//
// Contract: f a multiple of 8, both matrices 16-byte aligned. f32 inside, one rounding. An element depends on its own
// gate and up alone. The exponential is the fast one: its error, some 1e-6 relative, is far below a rounding to 16 bits.
// Bytes: read 4f, write 2f per row. Flops: about 20 instructions per element, a third of what the memory leaves time for.
// The limit is memory. Aim: 85 % of the copy rate from some 100 rows of 14336 up (not measured).
//
// Backward, with s = 1 / (1 + exp(-g)):
//
//   d_gate_up[n, 2f] 16-bit = round(d_act up s (1 + g (1 - s))), then round(d_act g s)      d_act[n, f] f32
//
// Forward keeps gate_up, 4f bytes a row; s is computed again. d_act comes in f32 from the product before; d_gate_up is the
// next product's operand. Bytes: read 8f, write 4f per row. Flops: about 30 instructions per element. Aim: 85 % of
// the copy rate (not measured).
#include "common.cuh"

namespace ggro {

constexpr int kSwigluThreads = 256;

__device__ __forceinline__ float logistic(float g) { return 1.0f / (1.0f + __expf(-g)); }

template <typename T>
__device__ __forceinline__ void swiglu(T* __restrict__ out, const T* __restrict__ gate_up, int f) {
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (at >= f) return;
    const T* const row = gate_up + static_cast<size_t>(blockIdx.x) * 2 * f;
    const Pack<T, 8> gate = load128(row + at), up = load128(row + f + at);
    Pack<T, 8> act;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float g = to_float(gate.at[i]);
        act.at[i] = from_float<T>(g * logistic(g) * to_float(up.at[i]));
    }
    store128(out + static_cast<size_t>(blockIdx.x) * f + at, act);
}

template <typename T>
__device__ __forceinline__ void swiglu_backward(T* __restrict__ d_gate_up, const float* __restrict__ d_act,
                                                const T* __restrict__ gate_up, int f) {
    // Groups of 4: neighbouring threads then read whole sectors of d_act.
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    if (at >= f) return;
    const size_t row = static_cast<size_t>(blockIdx.x) * f;
    const Pack<T, 4> gate = load_pack<4>(gate_up + 2 * row + at), up = load_pack<4>(gate_up + 2 * row + f + at);
    const Pack<float, 4> d = load128(d_act + row + at);
    Pack<T, 4> d_gate, d_up;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float g = to_float(gate.at[i]), s = logistic(g);
        d_gate.at[i] = from_float<T>(d.at[i] * to_float(up.at[i]) * s * fmaf(g, 1.0f - s, 1.0f));
        d_up.at[i] = from_float<T>(d.at[i] * (g * s));
    }
    store_pack<4>(d_gate_up + 2 * row + at, d_gate);
    store_pack<4>(d_gate_up + 2 * row + f + at, d_up);
}

}  // namespace ggro

// Grid: (rows, parts of a row). Block: a thread per 8 elements of a row, at most 256.
#define SWIGLU(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(ggro::kSwigluThreads) NAME(T* out, const T* gate_up, int f) { \
        ggro::swiglu<T>(out, gate_up, f);                                                                   \
    }

// Grid: (rows, parts of a row). Block: a thread per 4 elements of a row, at most 256.
#define SWIGLU_BACKWARD(NAME, T)                                               \
    extern "C" __global__ void __launch_bounds__(ggro::kSwigluThreads)         \
        NAME(T* d_gate_up, const float* d_act, const T* gate_up, int f) {      \
        ggro::swiglu_backward<T>(d_gate_up, d_act, gate_up, f);                \
    }

SWIGLU(swiglu_bf16, __nv_bfloat16)
SWIGLU(swiglu_f16, __half)
SWIGLU_BACKWARD(swiglu_backward_bf16, __nv_bfloat16)
SWIGLU_BACKWARD(swiglu_backward_f16, __half)
