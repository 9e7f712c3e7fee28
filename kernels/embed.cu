// Rows of the embedding matrix as the residual stream of a batch.
//
//   out[n, d] f32 = table[ids[n], d] 16-bit, widened exactly
//
// Contract: d a multiple of 8, out and table 16-byte aligned; one block per row. The table is row after row, or, where it is
// the matrix of a product too, in the tiles that products read (tile_index of common.cuh). An id that is not below the
// vocabulary gives a row of NaN, although tiles may have a row of zeros there, so that what is computed from it is reported as
// not finite: ids may come from a device that found no largest logit.
// Bytes: read 2d + 4, write 4d per row. No arithmetic. The limit is memory.
// Aim: 85 % of the copy rate from some 500 rows up (not measured); a decode step's few rows are a matter of latency.
#include "common.cuh"

namespace ggro {

constexpr int kEmbedThreads = 512;

template <typename T>
__device__ __forceinline__ void embed(float* GGRO_RESTRICT out, const T* GGRO_RESTRICT table,
                                      const unsigned* GGRO_RESTRICT ids, unsigned vocabulary, int d, bool tiled) {
    const unsigned id = ids[blockIdx.x];
    const bool known = id < vocabulary;
    float* const row = out + static_cast<size_t>(blockIdx.x) * d;
    const unsigned from = known ? id : 0;
    // Groups of 4: neighbouring threads then fill whole sectors of the output, and a group is within a chunk of 8.
#pragma unroll 2
    for (int at = threadIdx.x * 4; at < d; at += blockDim.x * 4) {
        Pack<float, 4> wide;
        if (known) {
            const uint64_t place = tiled ? tile_index(d, from, at) : static_cast<uint64_t>(from) * d + at;
            const Pack<T, 4> pack = load_pack<4>(table + place);
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
#define EMBED(NAME, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(ggro::kEmbedThreads)                                   \
        NAME(float* out, const T* table, const unsigned* ids, unsigned vocabulary, int d, int tiled) {  \
        ggro::await_turn();                                                                             \
        ggro::embed<T>(out, table, ids, vocabulary, d, tiled != 0);                                     \
    }

EMBED(embed_bf16, __nv_bfloat16)
EMBED(embed_f16, __half)
