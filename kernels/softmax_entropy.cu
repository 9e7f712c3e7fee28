// Statistics of rows of logits, and their largest logits: all that a decision of the method looks at.
//
//   logits[rows, v] f32; q = softmax of a row; per row a RowStats: argmax (lowest id on a tie), the two largest logits,
//   log-sum-exp, entropy -sum q ln q, floored entropy -sum max(q, f) ln max(q, f), largest probability, varentropy.
//
// Two kernels, because the floor needs the final normaliser:
//   softmax_entropy_splits_f32   maximum and sums of each split of a row, against the split's own maximum;
//   softmax_entropy_f32          combines the splits of a row; with a floor f > 0 sweeps the row once more (from L2).
// top_k_f32 gives the k <= 64 largest of logits[..below], and returns at once for rows that do not ask for it.
//
// Contract: any v >= 1, any alignment. Splits are 4096 logits at absolute positions, so what a row goes through depends
// on v alone. With d = max - z and e = exp(-d) everything follows from the sums of e, e d and e d^2; exponentials are
// f32, products and sums f64. A split's sums move to the row's maximum by exact algebra with non-negative terms. Minus
// infinity weighs nothing; NaN, plus infinity and rows of nothing but minus infinity clear `finite`. Partial results
// are added in an order fixed by v; the last block of a row to arrive writes.
// Bytes: read 4v per row from DRAM once, the second sweep 4v from L2; partials are 1%. Flops: about 20v, some of them
// f64. The limit is memory: f64 sums should take half the time that the bytes do. Aim: 80 % of the copy rate at 64 rows
// of 128256 (not measured).
// One row is a matter of latency: 32 blocks of 16 KB each.
#include "common.cuh"

namespace ggro {

constexpr int kSoftmaxThreads = 256;
constexpr int kPerThread = 16;
constexpr int kSplit = kSoftmaxThreads * kPerThread;
constexpr int kMaxK = 64;
static_assert(kSplit == 4096, "the host computes the number of splits with this size");

// exp(-d) is 0 in f32 from here on; keeps a hole at 0 * deepest instead of 0 * infinity.
constexpr float kDeepest = 104.0f;

// Of one split, against its own maximum.
struct SplitSums {
    double weight, first, second;  // sums of e, e d, e d^2
    float max, runner_up;
    unsigned argmax, bad;
};

// Of one split, against the row's maximum, over ids whose probability reaches the floor.
struct FloorSums {
    double weight, first;
    unsigned long long above;
};

// When a row wants its largest logits. Same layout as `TopKWish` on the host.
struct TopKWish {
    double threshold;
    unsigned k;       // at most 64
    unsigned signal;  // see `wanted`
};

struct Top {
    float max, runner_up;
    unsigned argmax, bad;
};

__device__ __forceinline__ Top nothing() {
    return {-INFINITY, -INFINITY, 0xffffffffu, 0u};
}

// Exact and order-free: of equal logits the lower id stays, the other is the runner-up.
__device__ __forceinline__ Top merge(const Top& a, const Top& b) {
    const bool b_wins = b.max > a.max || (b.max == a.max && b.argmax < a.argmax);
    Top top;
    top.max = b_wins ? b.max : a.max;
    top.argmax = b_wins ? b.argmax : a.argmax;
    top.runner_up = fmaxf(b_wins ? a.max : b.max, fmaxf(a.runner_up, b.runner_up));
    top.bad = a.bad | b.bad;
    return top;
}

__device__ __forceinline__ Top warp_merge(Top top) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        Top other;
        other.max = __shfl_xor_sync(kAllLanes, top.max, step);
        other.runner_up = __shfl_xor_sync(kAllLanes, top.runner_up, step);
        other.argmax = __shfl_xor_sync(kAllLanes, top.argmax, step);
        other.bad = __shfl_xor_sync(kAllLanes, top.bad, step);
        top = merge(top, other);
    }
    return top;
}

// Id of element i of this thread: groups of 4, interleaved over the threads.
__device__ __forceinline__ unsigned element_id(unsigned split, int i) {
    return split * kSplit + ((i / 4) * kSoftmaxThreads + threadIdx.x) * 4 + i % 4;
}

// This thread's part of a split; ids from `v` on are minus infinity.
__device__ __forceinline__ void load_split(float (&z)[kPerThread], const float* GGRO_RESTRICT row, unsigned split,
                                           unsigned v) {
    const bool vectors = aligned(row, 16);
#pragma unroll
    for (int i = 0; i < kPerThread; i += 4) {
        const unsigned id = element_id(split, i);
        if (vectors && id + 4 <= v) {
            const Pack<float, 4> pack = load128(row + id);
#pragma unroll
            for (int j = 0; j < 4; ++j) z[i + j] = pack.at[j];
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) z[i + j] = id + j < v ? row[id + j] : -INFINITY;
        }
    }
}

__device__ __forceinline__ void softmax_entropy_splits(SplitSums* GGRO_RESTRICT sums, const float* GGRO_RESTRICT logits,
                                                       unsigned v) {
    __shared__ Top tops[kSoftmaxThreads / kWarp];
    __shared__ double scratch[3][kSoftmaxThreads / kWarp];
    const unsigned split = blockIdx.x, row = blockIdx.y;
    float z[kPerThread];
    load_split(z, logits + static_cast<size_t>(row) * v, split, v);

    Top top = nothing();
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        // Also true for NaN.
        const unsigned bad = !(z[i] < INFINITY);
        top = merge(top, {z[i], -INFINITY, element_id(split, i), bad});
    }
    top = warp_merge(top);
    if (threadIdx.x % kWarp == 0) tops[threadIdx.x / kWarp] = top;
    __syncthreads();  // tops is complete
    top = tops[0];
#pragma unroll
    for (int i = 1; i < kSoftmaxThreads / kWarp; ++i) top = merge(top, tops[i]);

    double weight = 0.0, first = 0.0, second = 0.0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        const float depth = z[i] == -INFINITY ? kDeepest : fminf(top.max - z[i], kDeepest);
        const float e = depth < kDeepest ? expf(-depth) : 0.0f;
        const double ed = static_cast<double>(e) * depth;
        weight += e;
        first += ed;
        second += ed * depth;
    }
    weight = block_sum(weight, scratch[0]);
    first = block_sum(first, scratch[1]);
    second = block_sum(second, scratch[2]);
    if (threadIdx.x == 0) {
        sums[static_cast<size_t>(row) * gridDim.x + split] = {weight,      first,      second, top.max, top.runner_up,
                                                              top.argmax, top.bad};
    }
}

// The row's statistics from its splits, by the first warp. Lane l adds splits l, l + 32, ... in ascending order, then
// the lanes are added in a tree: an order fixed by the number of splits.
__device__ __forceinline__ void combine_splits(RowStats& stats, double& weight, const SplitSums* GGRO_RESTRICT sums,
                                               unsigned splits) {
    const unsigned lane = threadIdx.x;
    Top top = nothing();
    for (unsigned s = lane; s < splits; s += kWarp) {
        top = merge(top, {sums[s].max, sums[s].runner_up, sums[s].argmax, sums[s].bad});
    }
    top = warp_merge(top);
    double w = 0.0, first = 0.0, second = 0.0;
    for (unsigned s = lane; s < splits; s += kWarp) {
        if (sums[s].max == -INFINITY) continue;
        // Every depth of the split grows by `down`.
        const double down = static_cast<double>(top.max) - sums[s].max;
        const double scale = exp(-down);
        if (scale == 0.0) continue;
        w += scale * sums[s].weight;
        first += scale * (sums[s].first + down * sums[s].weight);
        second += scale * (sums[s].second + down * (2.0 * sums[s].first + down * sums[s].weight));
    }
    w = warp_sum(w);
    first = warp_sum(first);
    second = warp_sum(second);
    const double log_weight = log(w), mean = first / w;
    const double variance = second / w - mean * mean;
    stats.log_sum_exp = top.max + log_weight;
    stats.entropy = log_weight + mean;
    stats.entropy_floored = stats.entropy;
    stats.max_probability = 1.0 / w;
    stats.varentropy = variance > 0.0 ? variance : 0.0;
    stats.max_logit = top.max;
    stats.margin = top.max - top.runner_up;
    stats.argmax = top.argmax;
    stats.finite = top.bad == 0 && top.max > -INFINITY;
    weight = w;
}

__device__ __forceinline__ void softmax_entropy(RowStats* GGRO_RESTRICT stats, const float* GGRO_RESTRICT logits,
                                                const SplitSums* GGRO_RESTRICT sums, FloorSums* floor_sums,
                                                unsigned* tickets, const double* GGRO_RESTRICT floors, unsigned v) {
    __shared__ RowStats row_stats[1];
    __shared__ double row_weight[1];
    __shared__ double scratch[2][kSoftmaxThreads / kWarp];
    __shared__ unsigned counts[kSoftmaxThreads / kWarp];
    __shared__ unsigned last[1];
    const unsigned split = blockIdx.x, splits = gridDim.x, row = blockIdx.y;
    const double floor = floors[row];
    if (!(floor > 0.0) && split != 0) return;

    if (threadIdx.x < kWarp) {
        RowStats mine;
        double weight;
        combine_splits(mine, weight, sums + static_cast<size_t>(row) * splits, splits);
        if (threadIdx.x == 0) {
            row_stats[0] = mine;
            row_weight[0] = weight;
        }
    }
    __syncthreads();  // row_stats and row_weight are written
    RowStats result = row_stats[0];
    const double weight = row_weight[0];
    if (!(floor > 0.0) || result.finite == 0) {
        // The same answer in every block of the row.
        if (split == 0 && threadIdx.x == 0) stats[row] = result;
        return;
    }

    // q >= f exactly if the depth does not exceed the bar; at the bar both readings give the same sum.
    const float bar = static_cast<float>(-(log(floor) + log(weight)));
    float z[kPerThread];
    load_split(z, logits + static_cast<size_t>(row) * v, split, v);
    double e_sum = 0.0, ed_sum = 0.0;
    unsigned above = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        const float depth = result.max_logit - z[i];
        if (depth <= bar && element_id(split, i) < v) {
            const float e = expf(-depth);
            e_sum += e;
            if (e > 0.0f) ed_sum += static_cast<double>(e) * depth;
            above += 1;
        }
    }
    e_sum = block_sum(e_sum, scratch[0]);
    ed_sum = block_sum(ed_sum, scratch[1]);
    above = block_sum(above, counts);
    FloorSums* const row_sums = floor_sums + static_cast<size_t>(row) * splits;
    if (threadIdx.x == 0) row_sums[split] = {e_sum, ed_sum, above};
    if (!arrive_last(tickets + row, splits, last) || threadIdx.x >= kWarp) return;

    double total = 0.0, total_first = 0.0;
    unsigned long long total_above = 0;
    for (unsigned s = threadIdx.x; s < splits; s += kWarp) {
        total += __ldcg(&row_sums[s].weight);
        total_first += __ldcg(&row_sums[s].first);
        total_above += __ldcg(&row_sums[s].above);
    }
    total = warp_sum(total);
    total_first = warp_sum(total_first);
    total_above = warp_sum(total_above);
    if (threadIdx.x == 0) {
        const double below = static_cast<double>(v - total_above);
        result.entropy_floored = (total_first + total * log(weight)) / weight - below * floor * log(floor);
        stats[row] = result;
    }
}

// ---- the largest logits --------------------------------------------------------------------------------------------

// A logit and its id as one number: larger logits first, then lower ids. 0 is no key. NaN ranks with minus infinity,
// -0 with +0.
__device__ __forceinline__ unsigned long long rank_key(float logit, unsigned id) {
    const float z = logit == logit ? logit + 0.0f : -INFINITY;
    const unsigned bits = __float_as_uint(z);
    const unsigned ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffu - id);
}

struct Selection {
    unsigned histogram[256];
    unsigned digit, larger, count, size;
    unsigned long long unsorted[kMaxK];
};

// The min(k, number of keys) largest keys of the block in descending order into `sorted` (shared), and their number.
// Keys are distinct, so a radix search from the top digit ends with exactly that many; where atomics put them first is
// undone by the final sort. All threads must call; a barrier must separate two calls.
__device__ __forceinline__ unsigned select_largest(const unsigned long long (&keys)[kPerThread], unsigned k,
                                                   Selection& selection, unsigned long long* sorted) {
    const unsigned lane = threadIdx.x % kWarp;
    unsigned long long prefix = 0, mask = 0;
    unsigned wanted = k;
    if (threadIdx.x == 0) selection.size = 0;
#pragma unroll 1
    for (int shift = 56; shift >= 0; shift -= 8) {
        selection.histogram[threadIdx.x] = 0;
        __syncthreads();  // the histogram is clear
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            if (keys[i] != 0 && (keys[i] & mask) == prefix) {
                atomicAdd(&selection.histogram[static_cast<unsigned>(keys[i] >> shift) & 255u], 1u);
            }
        }
        __syncthreads();  // the histogram is complete
        if (threadIdx.x < kWarp) {
            // Lane l owns digits 255 - 8l and the seven below it.
            unsigned mine = 0;
#pragma unroll
            for (unsigned j = 0; j < 8; ++j) mine += selection.histogram[255 - 8 * lane - j];
            unsigned up_to = mine;
#pragma unroll
            for (int step = 1; step < kWarp; step *= 2) {
                const unsigned other = __shfl_up_sync(kAllLanes, up_to, step);
                if (lane >= static_cast<unsigned>(step)) up_to += other;
            }
            const unsigned reached = __ballot_sync(kAllLanes, up_to >= wanted);
            if (reached == 0) {
                // Fewer keys than wanted: only in the first round, where all are taken.
                if (lane == 0) selection.count = 0;
            } else if (lane == static_cast<unsigned>(__ffs(static_cast<int>(reached)) - 1)) {
                unsigned larger = up_to - mine, digit = 255 - 8 * lane;
                while (larger + selection.histogram[digit] < wanted) {
                    larger += selection.histogram[digit];
                    digit -= 1;
                }
                selection.digit = digit;
                selection.larger = larger;
                selection.count = selection.histogram[digit];
            }
        }
        __syncthreads();  // the digit is found
        if (selection.count == 0) break;
        wanted -= selection.larger;
        prefix |= static_cast<unsigned long long>(selection.digit) << shift;
        mask |= 255ull << shift;
        if (selection.count == wanted) break;
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        if (keys[i] != 0 && keys[i] >= prefix) selection.unsorted[atomicAdd(&selection.size, 1u)] = keys[i];
    }
    __syncthreads();  // unsorted is complete
    const unsigned size = selection.size;
    if (threadIdx.x < size) {
        const unsigned long long key = selection.unsorted[threadIdx.x];
        unsigned rank = 0;
        for (unsigned i = 0; i < size; ++i) rank += selection.unsorted[i] > key;
        sorted[rank] = key;
    }
    __syncthreads();  // sorted is complete
    return size;
}

// Whether a row asks for its largest logits: 0 no, 1 yes, else if a finite row's uncertainty reaches the threshold.
__device__ __forceinline__ bool wanted(const TopKWish& wish, const RowStats& stats) {
    if (wish.signal <= 1 || stats.finite == 0) return wish.signal == 1;
    double uncertainty = stats.varentropy;
    if (wish.signal == 2) uncertainty = stats.entropy_floored;
    if (wish.signal == 3) uncertainty = -static_cast<double>(stats.margin);
    if (wish.signal == 4) uncertainty = 1.0 - stats.max_probability;
    return uncertainty >= wish.threshold;
}

__device__ __forceinline__ void top_k(unsigned* GGRO_RESTRICT ids, float* GGRO_RESTRICT values,
                                      unsigned* GGRO_RESTRICT found, unsigned long long* candidates, unsigned* tickets,
                                      const float* GGRO_RESTRICT logits, const RowStats* GGRO_RESTRICT stats,
                                      const TopKWish* GGRO_RESTRICT wishes, unsigned v, unsigned below,
                                      unsigned stride) {
    __shared__ Selection selection[1];
    __shared__ unsigned long long sorted[kMaxK];
    __shared__ unsigned last[1];
    const unsigned split = blockIdx.x, splits = gridDim.x, row = blockIdx.y;
    const TopKWish wish = wishes[row];
    const unsigned k = min(min(wish.k, stride), static_cast<unsigned>(kMaxK));
    if (k == 0 || !wanted(wish, stats[row])) {
        if (split == 0 && threadIdx.x == 0) found[row] = 0;
        return;
    }
    const float* const row_logits = logits + static_cast<size_t>(row) * v;
    unsigned long long keys[kPerThread];
    {
        float z[kPerThread];
        load_split(z, row_logits, split, below);
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            const unsigned id = element_id(split, i);
            keys[i] = id < below ? rank_key(z[i], id) : 0;
        }
    }
    unsigned size = select_largest(keys, k, selection[0], sorted);

    if (splits > 1) {
        unsigned long long* const row_candidates = candidates + static_cast<size_t>(row) * splits * kMaxK;
        if (threadIdx.x < kMaxK) {
            row_candidates[split * kMaxK + threadIdx.x] = threadIdx.x < size ? sorted[threadIdx.x] : 0;
        }
        if (!arrive_last(tickets + row, splits, last)) return;
        // As many candidates at a time as there are registers for, always with the best so far in front.
        const unsigned all = splits * kMaxK;
        size = 0;
#pragma unroll 1
        for (unsigned next = 0; next < all;) {
#pragma unroll
            for (int i = 0; i < kPerThread; ++i) {
                const unsigned slot = i * kSoftmaxThreads + threadIdx.x;
                const unsigned at = next + slot - size;
                keys[i] = slot < size ? sorted[slot] : at < all ? __ldcg(&row_candidates[at]) : 0;
            }
            next += kSplit - size;
            __syncthreads();  // sorted is read before it is written again
            size = select_largest(keys, k, selection[0], sorted);
        }
    }
    if (threadIdx.x < stride) {
        const bool real = threadIdx.x < size;
        const unsigned id = real ? 0xffffffffu - static_cast<unsigned>(sorted[threadIdx.x]) : 0xffffffffu;
        ids[row * stride + threadIdx.x] = id;
        values[row * stride + threadIdx.x] = real ? row_logits[id] : -INFINITY;
    }
    if (threadIdx.x == 0) found[row] = size;
}

}  // namespace ggro

// Grid: (splits of v, rows). Block: 256.
extern "C" __global__ void __launch_bounds__(ggro::kSoftmaxThreads)
    softmax_entropy_splits_f32(ggro::SplitSums* sums, const float* logits, unsigned v) {
    ggro::await_turn();
    ggro::softmax_entropy_splits(sums, logits, v);
}

// Grid: (splits of v, rows). Block: 256. Tickets: one per row, zero before and after.
extern "C" __global__ void __launch_bounds__(ggro::kSoftmaxThreads)
    softmax_entropy_f32(ggro::RowStats* stats, const float* logits, const ggro::SplitSums* sums,
                        ggro::FloorSums* floor_sums, unsigned* tickets, const double* floors, unsigned v) {
    ggro::await_turn();
    ggro::softmax_entropy(stats, logits, sums, floor_sums, tickets, floors, v);
}

// Grid: (splits of below, rows). Block: 256. Tickets as above; ids and values are [rows, stride], stride <= 64.
extern "C" __global__ void __launch_bounds__(ggro::kSoftmaxThreads, 1)
    top_k_f32(unsigned* ids, float* values, unsigned* found, unsigned long long* candidates, unsigned* tickets,
              const float* logits, const ggro::RowStats* stats, const ggro::TopKWish* wishes, unsigned v, unsigned below,
              unsigned stride) {
    ggro::await_turn();
    ggro::top_k(ids, values, found, candidates, tickets, logits, stats, wishes, v, below, stride);
}
