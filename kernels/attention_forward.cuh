// What the kernels of the forward pass of attention agree on, so that a row has the same bits in each of them: how a lane takes a page
// of scores in, how the states of chunks are folded, and how rows and parts of rows are written.
//
// A lane has two rows of a tile of 16, lane / 4 and 8 further, and of every eight columns the two from 2 (lane % 4) on, as mma.sync
// and wgmma leave them.
#pragma once

#include "attention.cuh"

namespace ggro {

constexpr float kNothing = -INFINITY;

struct AttentionArgs {
    void* out;
    float* lse;          // or null
    const void* q;
    const void* pool;    // the layer's keys of block 0
    const uint4* items;  // first token, tokens | kShared, first page, pages
    const uint4* tokens; // two words each: (row of q, row of out, position, lowest visible position),
                         // (first partial, parts, which of them this is, ticket)
    const uint4* pages;  // block, first position, first token | end << 16, valid positions | flags
    float* partials;     // [partials, heads, EP]
    float* states;       // [partials, heads, 2]: m, l
    unsigned* tickets;   // [tickets, kv_heads]
    unsigned long long block;  // elements from one block of the pool to the next
    int heads, kv_heads, out_width;
    float scale;
};

// How the state (m, l) of the chunks so far takes in that of the next one: o becomes fma(o, before, next x here). With
// `keep` the next one has nothing to add, with `take` there was nothing before; neither changes a bit.
struct Fold {
    float before, here;
    bool keep, take;

    __device__ __forceinline__ Fold(float& m, float& l, float next_m, float next_l, float log2_scale) {
        keep = next_l == 0.0f, take = l == 0.0f;
        const float top = fmaxf(m, next_m);
        before = exp2f((m - top) * log2_scale), here = exp2f((next_m - top) * log2_scale);
        const float sum = __fmaf_rn(l, before, __fmul_rn(next_l, here));
        l = keep ? l : take ? next_l : sum;
        m = keep ? m : take ? next_m : top;
    }

    __device__ __forceinline__ float operator()(float o, float next) const {
        const float sum = __fmaf_rn(o, before, __fmul_rn(next, here));
        return keep ? o : take ? next : sum;
    }
};

// ---- scores of NS times eight keys -----------------------------------------------------------------------------------

// Hides keys that a row does not see; `first` is the position of the first key.
template <int NS>
__device__ __forceinline__ void hide(float (&s)[NS][4], int first, const int (&lowest)[2], const int (&highest)[2]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < NS; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int key = first + j * 8 + 2 * t + i % 2;
            const bool visible = key >= lowest[i / 2] && key <= highest[i / 2];
            s[j][i] = visible ? s[j][i] : kNothing;
        }
    }
}

template <int NS>
__device__ __forceinline__ void row_maxima(const float (&s)[NS][4], float (&top)[2]) {
    top[0] = kNothing, top[1] = kNothing;
#pragma unroll
    for (int j = 0; j < NS; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], s[j][i]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
    }
}

// Scores become exponentials, and the chunk's maximum m and sums l, per group of 16 keys, take them in; `top` has the page's maxima.
// What stands in o has to be multiplied by `shrink`.
template <int NS>
__device__ __forceinline__ void exponentials(float (&s)[NS][4], float (&m)[2], float (&l)[2][NS / 2], float (&top)[2],
                                             float (&shrink)[2], float log2_scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float before = m[r];
        m[r] = fmaxf(before, top[r]);
        // A row that has seen nothing yet: its exponentials are those of minus infinity.
        top[r] = m[r] == kNothing ? 0.0f : m[r];
        shrink[r] = exp2f((before - top[r]) * log2_scale);
    }
#pragma unroll
    for (int j = 0; j < NS; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[j][i] = exp2f((s[j][i] - top[i / 2]) * log2_scale);
    }
#pragma unroll
    for (int g = 0; g < NS / 2; ++g) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float low = s[2 * g][2 * r] + s[2 * g][2 * r + 1];
            const float high = s[2 * g + 1][2 * r] + s[2 * g + 1][2 * r + 1];
            l[r][g] = __fmaf_rn(l[r][g], shrink[r], low + high);
        }
    }
}

// Exponentials of 16 keys as the left operand of the next product.
template <typename T, int NS>
__device__ __forceinline__ void round_left(uint32_t (&p)[4], const float (&s)[NS][4], int group) {
    p[0] = Mma<T>::pack(s[2 * group][0], s[2 * group][1]);
    p[1] = Mma<T>::pack(s[2 * group][2], s[2 * group][3]);
    p[2] = Mma<T>::pack(s[2 * group + 1][0], s[2 * group + 1][1]);
    p[3] = Mma<T>::pack(s[2 * group + 1][2], s[2 * group + 1][3]);
}

// The sum of a row from those of its groups of 16 keys and of the quad's lanes.
__device__ __forceinline__ float row_sum(float first, float second, float third, float fourth) {
    float sum = ((first + second) + third) + fourth;
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    return sum;
}

// ---- results -----------------------------------------------------------------------------------------------------------

// One row of a lane, NO times eight elements from chunk `chunk` of 16 bytes on; of(j) gives the lane's two of the j-th eight. A row that
// is finished goes to shared memory, line `line` of `staged`, to be written in whole lines (write_rows); a part goes to the scratch.
// With `speaks` the lane writes the row's state.
template <typename T, int EP, int NO, typename Of>
__device__ __forceinline__ void put_row(const AttentionArgs& args, unsigned char* staged, const uint4* token, int head,
                                        int line, int chunk, bool speaks, float m, float l, Of of) {
    const int t = threadIdx.x % 4;
    const uint4 word = token[0], part = token[1];
    if (part.y == 1) {
        const float inverse = __frcp_rn(l);
#pragma unroll
        for (int j = 0; j < NO; ++j) {
            const float2 two = of(j);
            *reinterpret_cast<uint32_t*>(staged + swizzled<EP * 2>(line, chunk + j) + 4 * t) =
                Mma<T>::pack(__fmul_rn(two.x, inverse), __fmul_rn(two.y, inverse));
        }
        if (args.lse != nullptr && speaks && t == 0) {
            args.lse[static_cast<size_t>(word.y) * args.heads + head] = __fmaf_rn(m, args.scale, logf(l));
        }
    } else {
        const size_t slot = static_cast<size_t>(part.x + part.z) * args.heads + head;
        float* const to = args.partials + slot * EP + chunk * 8 + 2 * t;
#pragma unroll
        for (int j = 0; j < NO; ++j) *reinterpret_cast<float2*>(to + 8 * j) = of(j);
        if (speaks && t == 0) reinterpret_cast<float2*>(args.states)[slot] = make_float2(m, l);
    }
}

// The finished ones of `count` tokens' rows, which lie in `staged` token by token. Thread `thread` of THREADS.
template <typename T, int EP, int THREADS>
__device__ __forceinline__ void write_rows(const AttentionArgs& args, const unsigned char* staged, const uint4* tokens,
                                           int count, int group, int first_head, int thread) {
    constexpr int kChunks = EP / 8;
    for (int i = thread; i < count * group * kChunks; i += THREADS) {
        const int row = i / kChunks, chunk = i % kChunks, of = row / group;
        if (tokens[2 * of + 1].y != 1) continue;
        const uint4 word = *reinterpret_cast<const uint4*>(staged + swizzled<EP * 2>(row, chunk));
        T* const to = static_cast<T*>(args.out) + static_cast<size_t>(tokens[2 * of].y) * args.out_width;
        *reinterpret_cast<uint4*>(to + (first_head + row - of * group) * EP + chunk * 8) = word;
    }
}

// Folds the parts of those of `count` tokens whose last part is here. sync() lets the THREADS threads meet; before, they have met
// since each wrote its own parts and __threadfence(). `arrived` has a word of shared memory for each token.
template <typename T, int EP, int THREADS, typename Sync>
__device__ __forceinline__ void fold_parts(const AttentionArgs& args, unsigned* arrived, const uint4* tokens, int count,
                                           int group, int first_head, int thread, Sync sync) {
    for (int i = thread; i < count; i += THREADS) {
        const uint4 part = tokens[2 * i + 1];
        bool last = false;
        if (part.y > 1) {
            unsigned* const ticket = args.tickets + static_cast<size_t>(part.w) * args.kv_heads + blockIdx.y;
            last = ptx::atom_add_acq_rel(ticket, 1u) == part.y - 1;
            if (last) *ticket = 0;
        }
        arrived[i] = last;
    }
    sync();  // it is known which tokens have all their parts
    __threadfence();
    const float log2_scale = args.scale * kLog2E;
    for (int i = thread; i < count * group * (EP / 4); i += THREADS) {
        const int row = i / (EP / 4), dim = i % (EP / 4) * 4, of = row / group;
        if (arrived[of] == 0) continue;
        const uint4 word = tokens[2 * of], part = tokens[2 * of + 1];
        const int head = first_head + row - of * group;
        float at_m = kNothing, at_l = 0.0f, at_o[4] = {};
#pragma unroll 2
        for (unsigned k = 0; k < part.y; ++k) {
            const size_t slot = static_cast<size_t>(part.x + k) * args.heads + head;
            const float2 state = __ldcg(reinterpret_cast<const float2*>(args.states) + slot);
            const float4 next = __ldcg(reinterpret_cast<const float4*>(args.partials + slot * EP + dim));
            const Fold fold(at_m, at_l, state.x, state.y, log2_scale);
            at_o[0] = fold(at_o[0], next.x), at_o[1] = fold(at_o[1], next.y);
            at_o[2] = fold(at_o[2], next.z), at_o[3] = fold(at_o[3], next.w);
        }
        const float inverse = __frcp_rn(at_l);
        T* const to = static_cast<T*>(args.out) + static_cast<size_t>(word.y) * args.out_width + head * EP + dim;
        *reinterpret_cast<uint2*>(to) =
            make_uint2(Mma<T>::pack(__fmul_rn(at_o[0], inverse), __fmul_rn(at_o[1], inverse)),
                       Mma<T>::pack(__fmul_rn(at_o[2], inverse), __fmul_rn(at_o[3], inverse)));
        if (args.lse != nullptr && dim == 0) {
            args.lse[static_cast<size_t>(word.y) * args.heads + head] = __fmaf_rn(at_m, args.scale, logf(at_l));
        }
    }
}

}  // namespace ggro
