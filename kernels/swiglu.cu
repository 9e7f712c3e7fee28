// The gated activation of the MLP.
//
//   out[n, f] 16-bit = round(silu(gate) * up),  gate_up[n, 2f] 16-bit: gate, then up;  silu(g) = g / (1 + exp(-g))
//
// Contract: f a multiple of 8, both matrices 16-byte aligned. f32 inside, one rounding. An element depends on its own
// gate and up alone. The exponential is the fast one: its error, some 1e-6 relative, is far below a rounding to 16 bits.
// Bytes: read 4f, write 2f per row. Flops: about 20 instructions per element, a third of what the memory leaves time for.
// The limit is memory: 85% of the copy rate from some 100 rows of 14336 up.
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

}  // namespace ggro

// Grid: (rows, parts of a row). Block: a thread per 8 elements of a row, at most 256.
#define SWIGLU(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(ggro::kSwigluThreads) NAME(T* out, const T* gate_up, int f) { \
        ggro::swiglu<T>(out, gate_up, f);                                                                   \
    }                                                                                                       \
    EMU_KERNEL(NAME)

SWIGLU(swiglu_bf16, __nv_bfloat16)
SWIGLU(swiglu_f16, __half)
