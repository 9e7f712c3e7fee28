// Rows of the embedding matrix as the residual stream of a batch.
//
//   out[n, d] f32 = table[ids[n], d] 16-bit, widened exactly
//
// Contract: d a multiple of 8, out and table 16-byte aligned; one block per row. An id that has no row gives a row of NaN,
// so that what is computed from it is reported as not finite: ids may come from a device that found no largest logit.
// Bytes: read 2d + 4, write 4d per row. No arithmetic. The limit is memory.
// Aim: 85 % of the copy rate from some 500 rows up (not measured); a decode step's few rows are a matter of latency.
#include "common.cuh"

namespace ggro {

constexpr int kEmbedThreads = 512;

template <typename T>
__device__ __forceinline__ void embed(float* __restrict__ out, const T* __restrict__ table,
                                      const unsigned* __restrict__ ids, unsigned vocabulary, int d) {
    const unsigned id = ids[blockIdx.x];
    const bool known = id < vocabulary;
    float* const row = out + static_cast<size_t>(blockIdx.x) * d;
    const T* const from = table + static_cast<size_t>(known ? id : 0) * d;
    // Groups of 4: neighbouring threads then fill whole sectors of the output.
#pragma unroll 2
    for (int at = threadIdx.x * 4; at < d; at += blockDim.x * 4) {
        Pack<float, 4> wide;
        if (known) {
            const Pack<T, 4> pack = load_pack<4>(from + at);
#pragma unroll
            for (int i = 0; i < 4; ++i) wide.at[i] = to_float(pack.at[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) wide.at[i] = NAN;
        }
        store128(row + at, wide);
    }
}

}  // namespace ggro

// Grid: rows. Block: a thread per 4 elements of a row, at most 512.
#define EMBED(NAME, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(ggro::kEmbedThreads)                              \
        NAME(float* out, const T* table, const unsigned* ids, unsigned vocabulary, int d) {        \
        ggro::embed<T>(out, table, ids, vocabulary, d);                                            \
    }

EMBED(embed_bf16, __nv_bfloat16)
EMBED(embed_f16, __half)
