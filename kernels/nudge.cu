// The nudge: first-order scores of the candidates at a slot, and the choice among them.
//
//   per wish (gradient row, candidates first .. first + count of ids, token now at the slot):
//   products[candidate] = scale * table[id] . grads[row];  norm = scale * |grads[row]|
//   score = product, times `damping` where the id is the current one; choice: the largest score, the earliest on a tie,
//   or with a uniform number u >= 0 the first candidate whose cumulated softmax(score / temperature) exceeds u
//
// Contract: grads[rows, d] f32, table[v, d] 16-bit, d a multiple of 8, both 16-byte aligned; at most 64 candidates a wish,
// no candidate in two wishes. `scale` undoes a factor that kept a 16-bit backward pass in range. A wish that names
// no row, no candidates, too many or some outside the list, an id without a row, a product or norm that is not a
// finite number: `finite` is 0 and the choice means nothing.
// Products and norm are f32 chains of 8 elements per lane and round, then a tree over the lanes: an order fixed by d, so
// they are the same bits in any company. Scores, weights and sums are f64, candidates in their order: the host's
// arithmetic (src/ggro/nudge.rs), up to the last bit of the exponential.
//
// A warp takes one candidate at a time, one more the norm; a block is one wish. Bytes: 2d per candidate and 4d per wish,
// some 200 KB for 25 candidates of 4096: 2 us for one multiprocessor, no more than the launch, so a slot is not split.
#include "common.cuh"

namespace ggro {

constexpr int kNudgeThreads = 1024;
constexpr unsigned kNudgeWarps = kNudgeThreads / kWarp;
constexpr unsigned kMaxCandidates = 64;
constexpr double kLargest = 1.7976931348623157e308;

// Same layout as `NudgeWish` on the host.
struct NudgeWish {
    double damping, temperature;
    double uniform;  // negative: greedy
    unsigned row, first, count, current;
};

// Same layout as `NudgeChoice` on the host.
struct NudgeChoice {
    double margin;  // to the next best score, or of `uniform` to the nearest edge; infinite if there is none
    float norm;
    unsigned index, id, finite;
};

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < INFINITY; }

// Of two rows of d, by one warp.
template <typename T>
__device__ __forceinline__ float warp_dot(const T* __restrict__ a, const float* __restrict__ b, int d) {
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

// The largest score, the earliest on a tie.
__device__ __forceinline__ void choose_greedily(NudgeChoice& choice, const double* scores, unsigned count) {
    double best = scores[0], second = -INFINITY;
    choice.index = 0;
    for (unsigned i = 1; i < count; ++i) {
        if (scores[i] > best) {
            second = best;
            best = scores[i];
            choice.index = i;
        } else if (scores[i] > second) {
            second = scores[i];
        }
    }
    choice.margin = best - second;
}

// The first one whose cumulated weight exceeds u times the sum of all, the last one if none does.
__device__ __forceinline__ void choose_by_chance(NudgeChoice& choice, double* weights, unsigned count, double u) {
    double total = 0.0, again = 0.0, sum = 0.0;
    for (unsigned i = 0; i < count; ++i) total += weights[i];
    for (unsigned i = 0; i < count; ++i) {
        weights[i] /= total;
        again += weights[i];
    }
    choice.index = count;
    choice.margin = INFINITY;
    for (unsigned i = 0; i < count; ++i) {
        sum += weights[i];
        choice.margin = fmin(choice.margin, fabs(sum / again - u));
        if (choice.index == count && sum > u * again) choice.index = i;
    }
    if (choice.index == count) choice.index = count - 1;
}

template <typename T>
__device__ __forceinline__ void nudge(NudgeChoice* __restrict__ choices, float* __restrict__ products,
                                      const float* __restrict__ grads, const T* __restrict__ table,
                                      const unsigned* __restrict__ ids, const NudgeWish* __restrict__ wishes,
                                      unsigned rows, unsigned vocabulary, unsigned listed, int d, float scale) {
    SHARED(double, scores, [kMaxCandidates]);
    SHARED(float, norms, [1]);
    const NudgeWish wish = wishes[blockIdx.x];
    const unsigned count = wish.count, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (wish.row >= rows || count == 0 || count > kMaxCandidates || wish.first > listed || count > listed - wish.first) {
        if (threadIdx.x == 0) choices[blockIdx.x] = {INFINITY, NAN, 0u, 0u, 0u};
        return;
    }
    const float* const grad = grads + static_cast<size_t>(wish.row) * d;
    for (unsigned c = warp; c <= count; c += kNudgeWarps) {
        if (c == count) {
            const float squares = warp_dot(grad, grad, d);
            if (lane == 0) norms[0] = sqrtf(squares) * scale;
            continue;
        }
        const unsigned id = ids[wish.first + c];
        float product = NAN;
        if (id < vocabulary) product = warp_dot(table + static_cast<size_t>(id) * d, grad, d) * scale;
        if (lane == 0) {
            products[wish.first + c] = product;
            // As on the host: nothing infinite comes of damping a finite product.
            double score = product;
            if (id == wish.current) score = fmin(fmax(score * wish.damping, -kLargest), kLargest);
            scores[c] = is_finite(product) ? score : static_cast<double>(NAN);
        }
    }
    __syncthreads();  // scores and norm are complete
    if (warp != 0) return;

    NudgeChoice choice = {INFINITY, norms[0], 0u, 0u, 1u};
    double max = -INFINITY;
    for (unsigned c = 0; c < count; ++c) {
        if (!(scores[c] == scores[c])) choice.finite = 0;
        max = fmax(max, scores[c]);
    }
    if (!is_finite(choice.norm)) choice.finite = 0;
    if (wish.uniform >= 0.0) {
        __syncwarp();  // every lane has found the maximum
        for (unsigned c = lane; c < count; c += kWarp) scores[c] = exp((scores[c] - max) / wish.temperature);
        __syncwarp();  // the weights are there
    }
    if (lane != 0) return;
    if (wish.uniform >= 0.0) {
        choose_by_chance(choice, scores, count, wish.uniform);
    } else {
        choose_greedily(choice, scores, count);
    }
    choice.id = ids[wish.first + choice.index];
    choices[blockIdx.x] = choice;
}

}  // namespace ggro

// Grid: wishes. Block: 1024.
#define NUDGE(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(ggro::kNudgeThreads)                                                \
        NAME(ggro::NudgeChoice* choices, float* products, const float* grads, const T* table, const unsigned* ids,   \
             const ggro::NudgeWish* wishes, unsigned rows, unsigned vocabulary, unsigned listed, int d,              \
             float scale) {                                                                                          \
        ggro::nudge<T>(choices, products, grads, table, ids, wishes, rows, vocabulary, listed, d, scale);            \
    }                                                                                                                \
    EMU_KERNEL(NAME)

NUDGE(nudge_bf16, __nv_bfloat16)
NUDGE(nudge_f16, __half)
