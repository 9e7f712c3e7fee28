// From the fused projection to attention: per-head RMSNorm, rotary embedding, and the write into the paged pool.
//
//   qkv[n, (h + 2g) p] 16-bit: h query heads, g key heads, g value heads of e elements, padded to p (32, 64 or 128)
//   with norms: x = x * r * weight[e], r = 1 / sqrt(mean(x^2) + eps) over a head, queries and keys each with their weight
//   queries and keys: (x_i, x_{i + e/2}) turned by the angle of (position, i), from table[positions, e/2] of (cos, sin);
//   with `paired` their columns in qkv, and in d_qkv, are in the order of pairs (heads.cuh)
//   q[n, h p] = turned queries; pool[slot of the row, this layer] = turned keys, and values as they are
//
// Contract: e even and at most p; qkv, q, pool and weights 16-byte aligned, the table 8-byte. Everything between load and
// store is f32, with one rounding. Padding is written as zero whatever is in qkv. A row whose slot is not in the pool is
// not kept; a position beyond the table turns into NaN. No two rows have one slot. The sum of squares goes by (e, p).
//
// p / 8 lanes share a head, 4 pairs each, so both halves of a head are in one thread and nothing is exchanged but the sum
// of squares. A block is one row: its lanes keep their part of the table over all heads of the row.
// Bytes: read 2 (h + 2g) p and 4e, write 2 (h + 2g) p per row; a row's table entries are read 16 times from L1.
// Flops: 6 per element, 10 with norms. The limit is memory. Aim: 80 % of the copy rate from some 500 rows up (not
// measured).
//
// Backward, from attention's gradients to the projection's:
//
//   dq[n, h p], dk[n, g p], dv[n, g p] f32 -> d_qkv[n, (h + 2g) p] 16-bit
//   queries and keys: turned back by the same angle; with norms, of gradient g = d * weight and raw x from qkv:
//   r g - x r^3 mean(x g) over a head. Values pass through. One rounding; padding is zero, whatever is in dq, dk and dv.
//
// Forward keeps qkv where heads have norms (2 (h + 2g) p bytes a row); positions beyond the table turn into NaN.
// Bytes: read 4 (h + 2g) p and, with norms, 2 (h + g) p; write 2 (h + 2g) p per row. Aim: 80 % of the copy rate (not
// measured); a segment's rows are a matter of latency.
#include "heads.cuh"

namespace ggro {

constexpr int kRopeThreads = 256;
constexpr int kPairs = 4;  // of a lane
static_assert(kPairGroup % kPairs == 0, "a lane's pairs lie in one group");

struct RopeArgs {
    const float2* table;
    const unsigned* positions;
    const void* q_weight;  // null without norms
    const void* k_weight;
    float eps;
    unsigned table_rows;
    int heads, kv_heads, half, padded;
    bool paired;  // queries and keys of the projection have their columns in pairs
};

// A lane's share of a head: pairs 4 lane .. 4 lane + 4, or 8 columns of padding.
struct Place {
    int lanes, lane, half;

    __device__ __forceinline__ Place(int padded, int half_size)
        : lanes(padded / (2 * kPairs)), lane(static_cast<int>(threadIdx.x) % lanes), half(half_size) {}
    __device__ __forceinline__ int first() const { return kPairs * lane; }
    // All pairs real, and both of its packs aligned.
    __device__ __forceinline__ bool whole() const { return half % kPairs == 0 && first() < half; }
};

struct Pairs {
    float a[kPairs], b[kPairs];
};

// Columns of a lane's first pair.
struct Columns {
    int a, b;

    __device__ __forceinline__ Columns(const Place& at, bool paired)
        : a(paired ? pair_column(at.first()) : at.first()), b(paired ? a + kPairGroup : at.half + a) {}
};

// A pair that does not exist is zero.
template <typename T>
__device__ __forceinline__ Pairs load_pairs(const T* GGRO_RESTRICT head, const Place& at, bool paired = false) {
    Pairs x;
    const Columns columns(at, paired);
    if (at.whole()) {
        const Pack<T, kPairs> a = load_pack<kPairs>(head + columns.a), b = load_pack<kPairs>(head + columns.b);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) x.a[i] = to_float(a.at[i]), x.b[i] = to_float(b.at[i]);
        return x;
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
        const bool real = at.first() + i < at.half;
        x.a[i] = real ? to_float(head[columns.a + i]) : 0.0f;
        x.b[i] = real ? to_float(head[columns.b + i]) : 0.0f;
    }
    return x;
}

// Pairs that do not exist stand for two columns of padding each: together they are columns e .. p.
template <typename T>
__device__ __forceinline__ void store_pairs(T* GGRO_RESTRICT head, const Place& at, const Pairs& x, bool paired = false) {
    const Columns columns(at, paired);
    if (at.whole()) {
        Pack<T, kPairs> a, b;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) a.at[i] = from_float<T>(x.a[i]), b.at[i] = from_float<T>(x.b[i]);
        store_pack<kPairs>(head + columns.a, a);
        store_pack<kPairs>(head + columns.b, b);
        return;
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
        const int pair = at.first() + i;
        if (pair < at.half) {
            head[columns.a + i] = from_float<T>(x.a[i]);
            head[columns.b + i] = from_float<T>(x.b[i]);
        } else if (paired) {
            head[columns.a + i] = head[columns.b + i] = from_float<T>(0.0f);
        } else {
            head[2 * pair] = head[2 * pair + 1] = from_float<T>(0.0f);
        }
    }
}

// Cosines and sines of a lane's pairs at a row's position.
struct Turn {
    float cos[kPairs], sin[kPairs];

    __device__ __forceinline__ Turn(const RopeArgs& args, unsigned position, const Place& at) {
        const bool known = position < args.table_rows;
        const float2* const row = args.table + static_cast<size_t>(known ? position : 0) * at.half;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
            const bool real = at.first() + i < at.half;
            const float2 entry = known && real ? row[at.first() + i] : make_float2(known ? 1.0f : NAN, 0.0f);
            cos[i] = entry.x;
            sin[i] = entry.y;
        }
    }
};

// Sum over the lanes of a head, the same bits in each of them.
__device__ __forceinline__ float head_sum(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
}

// 1 / sqrt(mean(x^2) + eps) over a head.
__device__ __forceinline__ float inverse_norm(const Pairs& x, const Place& at, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) squares = fmaf(x.b[i], x.b[i], fmaf(x.a[i], x.a[i], squares));
    const float mean = head_sum(squares, at.lanes) / static_cast<float>(2 * at.half);
    return 1.0f / sqrtf(mean + eps);
}

template <typename T>
__device__ __forceinline__ void rope(T* GGRO_RESTRICT q, T* GGRO_RESTRICT pool, const T* GGRO_RESTRICT qkv,
                                     const unsigned* GGRO_RESTRICT slots, unsigned pool_slots, size_t block_stride,
                                     size_t layer_offset, const RopeArgs& args) {
    const Place at(args.padded, args.half);
    const unsigned row = blockIdx.x, slot = slots[row];
    const int heads = args.heads, all = heads + 2 * args.kv_heads;
    const bool kept = slot < pool_slots;
    const T* const from = qkv + static_cast<size_t>(row) * all * args.padded;
    T* const queries = q + static_cast<size_t>(row) * heads * args.padded;
    const Turn by(args, args.positions[row], at);

    const int together = kRopeThreads / at.lanes;
    // The same number of rounds for every lane of a warp: they all take part in the sums.
    for (int first = 0; first < all; first += together) {
        const int head = first + static_cast<int>(threadIdx.x) / at.lanes;
        const bool real = head < all;
        const bool value = head >= heads + args.kv_heads;
        Pairs x = load_pairs(from + static_cast<size_t>(real ? head : 0) * args.padded, at, args.paired && !value);
        if (args.q_weight != nullptr) {
            const float scale = inverse_norm(x, at, args.eps);
            const void* const weight = head < heads ? args.q_weight : args.k_weight;
            if (!value) {
                const Pairs w = load_pairs(static_cast<const T*>(weight), at);
#pragma unroll
                for (int i = 0; i < kPairs; ++i) x.a[i] = x.a[i] * scale * w.a[i], x.b[i] = x.b[i] * scale * w.b[i];
            }
        }
        if (!value) {
#pragma unroll
            for (int i = 0; i < kPairs; ++i) turn(x.a[i], x.b[i], by.cos[i], by.sin[i]);
        }
        if (!real) continue;
        if (head < heads) {
            store_pairs(queries + static_cast<size_t>(head) * args.padded, at, x);
        } else if (kept) {
            store_pairs(kept_head(pool, slot, head - heads, block_stride, layer_offset, args.padded), at, x);
        }
    }
}

template <typename T>
__device__ __forceinline__ void rope_backward(T* GGRO_RESTRICT d_qkv, const float* GGRO_RESTRICT dq,
                                              const float* GGRO_RESTRICT dk, const float* GGRO_RESTRICT dv,
                                              const T* GGRO_RESTRICT qkv, const RopeArgs& args) {
    const Place at(args.padded, args.half);
    const unsigned row = blockIdx.x;
    const int heads = args.heads, kv_heads = args.kv_heads, all = heads + 2 * kv_heads;
    const size_t start = static_cast<size_t>(row) * all;
    const Turn by(args, args.positions[row], at);

    const int together = kRopeThreads / at.lanes;
    // The same number of rounds for every lane of a warp: they all take part in the sums.
    for (int first = 0; first < all; first += together) {
        const int head = first + static_cast<int>(threadIdx.x) / at.lanes;
        const bool real = head < all, value = head >= heads + kv_heads;
        const float* from = dq + static_cast<size_t>(row) * heads * args.padded;
        int index = real ? head : 0;
        if (real && head >= heads) {
            from = (value ? dv : dk) + static_cast<size_t>(row) * kv_heads * args.padded;
            index = head - heads - (value ? kv_heads : 0);
        }
        Pairs d = load_pairs(from + static_cast<size_t>(index) * args.padded, at);
        if (!value) {
#pragma unroll
            for (int i = 0; i < kPairs; ++i) turn_back(d.a[i], d.b[i], by.cos[i], by.sin[i]);
        }
        if (args.q_weight != nullptr) {
            const Pairs x = value ? Pairs() : load_pairs(qkv + (start + head) * args.padded, at, args.paired);
            const void* const weight = head < heads ? args.q_weight : args.k_weight;
            const Pairs w = load_pairs(static_cast<const T*>(weight), at);
            Pairs g;
            float along = 0.0f;
#pragma unroll
            for (int i = 0; i < kPairs; ++i) {
                g.a[i] = d.a[i] * w.a[i], g.b[i] = d.b[i] * w.b[i];
                along = fmaf(x.b[i], g.b[i], fmaf(x.a[i], g.a[i], along));
            }
            const float scale = inverse_norm(x, at, args.eps);
            const float back = head_sum(along, at.lanes) / static_cast<float>(2 * at.half) * scale * scale;
            if (!value) {
#pragma unroll
                for (int i = 0; i < kPairs; ++i) {
                    d.a[i] = scale * fmaf(-x.a[i], back, g.a[i]);
                    d.b[i] = scale * fmaf(-x.b[i], back, g.b[i]);
                }
            }
        }
        if (real) store_pairs(d_qkv + (start + head) * args.padded, at, d, args.paired && !value);
    }
}

}  // namespace ggro

// Grid: rows. Block: 256.
#define ROPE(NAME, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(ggro::kRopeThreads)                                                 \
        NAME(T* q, T* pool, const T* qkv, const unsigned* slots, unsigned pool_slots, unsigned long long block_stride, \
             unsigned long long layer_offset, const float2* table, const unsigned* positions, const T* q_weight,     \
             const T* k_weight, float eps, unsigned table_rows, int heads, int kv_heads, int half, int padded,       \
             int paired) {                                                                                           \
        ggro::await_turn();                                                                                          \
        ggro::rope<T>(q, pool, qkv, slots, pool_slots, block_stride, layer_offset,                                   \
                      {table, positions, q_weight, k_weight, eps, table_rows, heads, kv_heads, half, padded,         \
                       paired != 0});                                                                                \
    }

// Grid: rows. Block: 256.
#define ROPE_BACKWARD(NAME, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(ggro::kRopeThreads)                                                 \
        NAME(T* d_qkv, const float* dq, const float* dk, const float* dv, const T* qkv, const float2* table,         \
             const unsigned* positions, const T* q_weight, const T* k_weight, float eps, unsigned table_rows,        \
             int heads, int kv_heads, int half, int padded, int paired) {                                            \
        ggro::await_turn();                                                                                          \
        ggro::rope_backward<T>(d_qkv, dq, dk, dv, qkv,                                                               \
                               {table, positions, q_weight, k_weight, eps, table_rows, heads, kv_heads, half,        \
                                padded, paired != 0});                                                               \
    }

ROPE(rope_bf16, __nv_bfloat16)
ROPE(rope_f16, __half)
ROPE_BACKWARD(rope_backward_bf16, __nv_bfloat16)
ROPE_BACKWARD(rope_backward_f16, __half)
