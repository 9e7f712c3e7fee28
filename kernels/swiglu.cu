// The gated activation of the MLP.
//
//   out[n, f] 16-bit = round(silu(gate) * up),  gate_up[n, 2f] 16-bit: gate, then up (kernels/gated.cuh); or, `grouped`, 8
//   gates and then their ups, again and again, as kernels/gemm_sm90.cu has them
//
// Contract: f a multiple of 8, both matrices 16-byte aligned. An element depends on its own gate and up alone.
// Bytes: read 4f, write 2f per row. Flops: about 20 instructions per element, a third of what the memory leaves time for.
// The limit is memory. Aim: 85 % of the copy rate from some 100 rows of 14336 up (not measured).
//
// Backward: d_gate_up[n, 2f] 16-bit from d_act[n, f] f32.
//
// Forward keeps gate_up, 4f bytes a row; s is computed again. d_act comes in f32 from the product before; d_gate_up is the
// next product's operand. Bytes: read 8f, write 4f per row. Flops: about 30 instructions per element. Aim: 85 % of
// the copy rate (not measured).
#include "gated.cuh"

namespace ggro {

constexpr int kSwigluThreads = 256;

template <typename T>
__device__ __forceinline__ void swiglu(T* GGRO_RESTRICT out, const T* GGRO_RESTRICT gate_up, int f, bool grouped) {
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (at >= f) return;
    const T* const row = gate_up + static_cast<size_t>(blockIdx.x) * 2 * f;
    const int gate_at = grouped ? 2 * at : at, up_at = grouped ? 2 * at + 8 : f + at;
    const Pack<T, 8> gate = load128(row + gate_at), up = load128(row + up_at);
    Pack<T, 8> act;
#pragma unroll
    for (int i = 0; i < 8; ++i) act.at[i] = gated(gate.at[i], up.at[i]);
    store128(out + static_cast<size_t>(blockIdx.x) * f + at, act);
}

template <typename T>
__device__ __forceinline__ void swiglu_backward(T* GGRO_RESTRICT d_gate_up, const float* GGRO_RESTRICT d_act,
                                                const T* GGRO_RESTRICT gate_up, int f) {
    // Groups of 4: neighbouring threads then read whole sectors of d_act.
    const int at = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    if (at >= f) return;
    const size_t row = static_cast<size_t>(blockIdx.x) * f;
    const Pack<T, 4> gate = load_pack<4>(gate_up + 2 * row + at), up = load_pack<4>(gate_up + 2 * row + f + at);
    const Pack<float, 4> d = load128(d_act + row + at);
    Pack<T, 4> d_gate, d_up;
#pragma unroll
    for (int i = 0; i < 4; ++i) gated_gradients(d_gate.at[i], d_up.at[i], d.at[i], gate.at[i], up.at[i]);
    store_pack<4>(d_gate_up + 2 * row + at, d_gate);
    store_pack<4>(d_gate_up + 2 * row + f + at, d_up);
}

}  // namespace ggro

// Grid: (rows, parts of a row). Block: a thread per 8 elements of a row, at most 256.
#define SWIGLU(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(ggro::kSwigluThreads) NAME(T* out, const T* gate_up, int f, \
                                                                             int grouped) {                    \
        ggro::await_turn();                                                                                 \
        ggro::swiglu<T>(out, gate_up, f, grouped != 0);                                                     \
    }

// Grid: (rows, parts of a row). Block: a thread per 4 elements of a row, at most 256.
#define SWIGLU_BACKWARD(NAME, T)                                               \
    extern "C" __global__ void __launch_bounds__(ggro::kSwigluThreads)         \
        NAME(T* d_gate_up, const float* d_act, const T* gate_up, int f) {      \
        ggro::await_turn();                                                    \
        ggro::swiglu_backward<T>(d_gate_up, d_act, gate_up, f);                \
    }

SWIGLU(swiglu_bf16, __nv_bfloat16)
SWIGLU(swiglu_f16, __half)
SWIGLU_BACKWARD(swiglu_backward_bf16, __nv_bfloat16)
SWIGLU_BACKWARD(swiglu_backward_f16, __half)
