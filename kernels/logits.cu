// What a request may ask of rows of logits beyond their statistics.
//
//   log_probabilities_f32   out[rows, v] = logits[rows, v] - log_sum_exp of the row's statistics, in f64, rounded once
//   chosen_logits_f32       out[n] = logits[row, id] for every pair (row, id)
//
// Contract: any v >= 1, any alignment, out apart from logits. A row whose statistics are not finite gives NaN, and so does
// a pair that names no logit. Minus infinity stays minus infinity.
// Bytes: log-probabilities read 4v and write 4v per row; the limit is memory. Aim: 85 % of the copy rate from 4 rows of
// 128256 up (not measured). Chosen logits are a matter of latency.
#include "common.cuh"

namespace ggro {

constexpr int kLogitsThreads = 256;
constexpr unsigned kLogitsPerBlock = 4 * kLogitsThreads;

__device__ __forceinline__ float log_probability(float logit, double log_sum_exp) {
    return static_cast<float>(static_cast<double>(logit) - log_sum_exp);
}

__device__ __forceinline__ void log_probabilities(float* GGRO_RESTRICT out, const float* GGRO_RESTRICT logits,
                                                  const RowStats* GGRO_RESTRICT stats, unsigned v) {
    const size_t start = static_cast<size_t>(blockIdx.x) * v;
    const float* const row = logits + start;
    float* const to = out + start;
    const double norm = stats[blockIdx.x].finite != 0 ? stats[blockIdx.x].log_sum_exp : static_cast<double>(NAN);
    const unsigned first = blockIdx.y * kLogitsPerBlock;
    if (aligned(row, 16) && aligned(to, 16) && first + kLogitsPerBlock <= v) {
        Pack<float, 4> pack = load128(row + first + 4 * threadIdx.x);
#pragma unroll
        for (int i = 0; i < 4; ++i) pack.at[i] = log_probability(pack.at[i], norm);
        store128(to + first + 4 * threadIdx.x, pack);
        return;
    }
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned id = first + i * kLogitsThreads + threadIdx.x;
        if (id < v) to[id] = log_probability(row[id], norm);
    }
}

__device__ __forceinline__ void chosen_logits(float* GGRO_RESTRICT out, const float* GGRO_RESTRICT logits,
                                              const uint2* GGRO_RESTRICT pairs, unsigned n, unsigned rows, unsigned v) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    const uint2 pair = pairs[at];
    out[at] = pair.x < rows && pair.y < v ? logits[static_cast<size_t>(pair.x) * v + pair.y] : NAN;
}

}  // namespace ggro

// Grid: (rows, parts of 1024 logits). Block: 256.
extern "C" __global__ void __launch_bounds__(ggro::kLogitsThreads)
    log_probabilities_f32(float* out, const float* logits, const ggro::RowStats* stats, unsigned v) {
    ggro::await_turn();
    ggro::log_probabilities(out, logits, stats, v);
}

// Grid: parts of 256 pairs. Block: 256.
extern "C" __global__ void __launch_bounds__(ggro::kLogitsThreads)
    chosen_logits_f32(float* out, const float* logits, const uint2* pairs, unsigned n, unsigned rows, unsigned v) {
    ggro::await_turn();
    ggro::chosen_logits(out, logits, pairs, n, rows, v);
}
