// First-order scores of the candidates at a slot: products of their embeddings with the reward's gradient there.
//
//   per query (a row of the gradients, candidates first .. first + count of ids):
//   products[candidate] = scale * table[id] . grads[row];  norms[query] = scale * |grads[row]|
//
// Contract: grads[rows, d] f32, table[v, d] 16-bit, d a multiple of 8, both 16-byte aligned; 1 to 64 candidates a query, no
// candidate in two queries. `scale` undoes a factor that kept a 16-bit backward pass in range. A query that names no row, no
// candidates, too many or some outside the list: its norm is NaN and its products are not written. An id without a row:
// its product is NaN.
// The table is row after row on every card. It is the reward model's embedding, and that model has a head of its own, so no
// product reads this matrix, and it is never in the tiles of products.
// Products and norm are f32 chains of 8 elements per lane and round, then a tree over the lanes: an order fixed by d, so
// they are the same bits in any batch. What is chosen by them is up to the host (src/method/nudge.rs).
//
// A warp takes one candidate at a time, one more the norm; a block is one query. Bytes: 2d per candidate and 4d per query,
// some 200 KB for 25 candidates of 4096: 2 us for one multiprocessor, no more than the launch, so a slot is not split.
#include "common.cuh"

namespace ggro {

constexpr int kScoreThreads = 1024;
constexpr unsigned kScoreWarps = kScoreThreads / kWarp;
constexpr unsigned kMaxCandidates = 64;

// Same layout as `ScoreQuery` on the host.
struct ScoreQuery {
    unsigned row, first, count;
};

// Of two rows of d, by one warp.
template <typename T>
__device__ __forceinline__ float warp_dot(const T* GGRO_RESTRICT a, const float* GGRO_RESTRICT b, int d) {
    float sum = 0.0f;
#pragma unroll 4
    for (int at = threadIdx.x % kWarp * 8; at < d; at += kWarp * 8) {
        const Pack<float, 4> low = load128(b + at), high = load128(b + at + 4);
        float x[8];
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = low.at[i], x[4 + i] = high.at[i];
        } else {
            const Pack<T, 8> pack = load128(a + at);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = to_float(pack.at[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) sum = fmaf(x[i], low.at[i], sum);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum = fmaf(x[4 + i], high.at[i], sum);
    }
    return warp_sum(sum);
}

template <typename T>
__device__ __forceinline__ void candidate_scores(float* GGRO_RESTRICT norms, float* GGRO_RESTRICT products,
                                                 const float* GGRO_RESTRICT grads, const T* GGRO_RESTRICT table,
                                                 const unsigned* GGRO_RESTRICT ids,
                                                 const ScoreQuery* GGRO_RESTRICT queries, unsigned rows,
                                                 unsigned vocabulary, unsigned listed, int d, float scale) {
    const ScoreQuery query = queries[blockIdx.x];
    const unsigned first = query.first, count = query.count;
    const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (query.row >= rows || count == 0 || count > kMaxCandidates || first > listed || count > listed - first) {
        if (threadIdx.x == 0) norms[blockIdx.x] = NAN;
        return;
    }
    const float* const grad = grads + static_cast<size_t>(query.row) * d;
    for (unsigned c = warp; c <= count; c += kScoreWarps) {
        if (c == count) {
            const float squares = warp_dot(grad, grad, d);
            if (lane == 0) norms[blockIdx.x] = sqrtf(squares) * scale;
            continue;
        }
        const unsigned id = ids[first + c];
        float product = NAN;
        if (id < vocabulary) product = warp_dot(table + static_cast<size_t>(id) * d, grad, d) * scale;
        if (lane == 0) products[first + c] = product;
    }
}

}  // namespace ggro

// Grid: queries. Block: 1024.
#define CANDIDATE_SCORES(NAME, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(ggro::kScoreThreads, 1) \
        NAME(float* norms, float* products, const float* grads, const T* table, const unsigned* ids,                \
             const ggro::ScoreQuery* queries, unsigned rows, unsigned vocabulary, unsigned listed, int d,           \
             float scale) {                                                                                         \
        ggro::await_turn();                                                                                         \
        ggro::candidate_scores<T>(norms, products, grads, table, ids, queries, rows, vocabulary, listed, d, scale); \
    }

CANDIDATE_SCORES(candidate_scores_bf16, __nv_bfloat16)
CANDIDATE_SCORES(candidate_scores_f16, __half)
