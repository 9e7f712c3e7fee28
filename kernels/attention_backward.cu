// Gradients of causal attention over paged keys and values: the backward pass of kernels/attention.cu.
//
//   q[rows, heads EP], out, d_out[rows_out, out_width] 16-bit, lse[rows_out, heads] f32; pool as in the forward pass
//   p = exp(scale q.k - lse), dp = d_out.v, delta = d_out.out, ds = p (dp - delta)
//   dq[rows, heads EP] f32 = scale sum over keys of ds k
//   dk, dv[batch rows, kv_heads EP] f32 = scale sum over queries and heads of ds q, sum of p d_out
//
// Two kernels, in this order. *Queries* gives dq, and leaves delta [rows_out, heads] behind; its blocks take the items of
// the forward plan (src/cuda/ops/attention/plan.rs), one tile of tokens each. *Keys* gives dk and dv of the positions of
// segments, the rows that are differentiated; a block takes 64 positions of one segment and one key/value head, counted from
// the segment's own start, and walks the segment's queries (src/cuda/ops/attention_backward/plan.rs).
//
// Contract: EP 32, 64 or 128; everything 16-byte aligned. Scores, dp, p and ds are f32; p and ds are rounded once, to the
// storage type, where a product takes them. Every sum is f32 and has one order, and what is hidden from a row leaves its
// sums untouched:
//   - delta is a chain over 8 elements and a butterfly over these;
//   - scores and dp are chains of k16 steps over the head's elements;
//   - dq is a chain of k16 steps over the keys of a chunk of 4 pages at absolute positions; chunks are added in ascending
//     order, in registers or by the last to arrive of the blocks that share a token, and the sum is scaled;
//   - dk and dv are chains of k16 steps over rows: head h of the segment's position i is row i group + h, whether or not
//     anything is asked of it; dk is scaled at the end.
// So dq does not depend on how a plan spreads work, and dk and dv depend on the segment alone. A query of a segment that is
// not named, or whose d_out is zero, changes no bit of any other result.
//
// Bytes: queries: the visible keys and values once per item, q, d_out, out once, dq once, and where a row has several
// chunks in several items 4 EP per chunk, row and head, written and read again through L2. Keys: the segment's keys and
// values once, nothing of the prefix; q and d_out of its visible queries once per 64 positions; dk and dv once.
// Flops: 6 EP per visible key, row and head for dq, 8 EP for dk and dv within the segment.
// A segment of some 50 tokens behind a prefix of thousands is bound by the queries' walk over the prefix: memory if the
// items are few, shared memory otherwise. With many queries and heads of 128, a page costs each of a block's eight warps 96
// products, 68 matrix loads and 582 instructions on Hopper (547 on Ampere), counted in the machine code where all rows see the
// page and no chunk ends; when a block still needed all registers of a multiprocessor, it was 96, 84 and 750 (731). So for a
// block and page on Hopper, computed and not measured: 2176 cycles of shared memory, 1164 issue slots of each scheduler, 768
// cycles of the tensor cores at their peak, which leaves 35 % of that peak at best. Two blocks share a multiprocessor, so that
// one's loads go on while the other waits at a barrier or computes p. The keys' pass is short beside it.
#include "attention.cuh"

namespace ggro {

// Where a lane reads fragments of an operand: bytes from a tile's start, for its first lines and the first of its steps or
// columns. Eight lines further on is a distance in bytes whatever the swizzle, and another chunk is `beyond`, so a lane needs
// one number per operand.
//
// Left operand: 16 lines by 16 elements.
template <int LINE>
__device__ __forceinline__ uint32_t left_at(int first) {
    const int lane = threadIdx.x % kWarp;
    return swizzled<LINE>(first + lane % 16, lane / 16);
}
// Right operand, lines as columns: 16 elements by 16 lines.
template <int LINE>
__device__ __forceinline__ uint32_t right_at(int first) {
    const int lane = threadIdx.x % kWarp;
    return swizzled<LINE>(first + lane % 8 + lane / 16 * 8, lane / 8 % 2);
}
// Right operand, lines as rows: 16 lines by 16 elements from chunk `chunk` on, an even one; or, with NARROW, by 8 from any.
template <int LINE, bool NARROW = false>
__device__ __forceinline__ uint32_t right_rows_at(int chunk) {
    const int lane = threadIdx.x % kWarp;
    return swizzled<LINE>(lane % 16, NARROW ? chunk : chunk + lane / 16);
}

// The address of the chunk that is `chunks` further than that at `at`, whose number is a multiple of what `chunks` is less
// than. The swizzle turns the lowest three bits of a chunk's number, and tiles are aligned to eight chunks.
__device__ __forceinline__ uint32_t beyond(uint32_t at, int chunks) { return (at ^ (chunks % 8 * 16)) + chunks / 8 * 128; }

// `at` is the tile's address and one of the above.
__device__ __forceinline__ void load_left(uint32_t (&a)[1][4], uint32_t at, int step) {
    ptx::ldmatrix_x4(a[0], beyond(at, 2 * step));
}

// 8 N lines.
template <int LINE, int N>
__device__ __forceinline__ void load_right(uint32_t (&b)[N][2], uint32_t at, int step) {
    static_assert(N % 2 == 0, "two columns of fragments at a time");
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        uint32_t pair[4];
        ptx::ldmatrix_x4(pair, beyond(at, 2 * step) + j * 8 * LINE);
        b[j][0] = pair[0], b[j][1] = pair[1];
        b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
    }
}

// 8 N elements from chunk `chunk` on, counted from that of `at`.
template <int N>
__device__ __forceinline__ void load_right_rows(uint32_t (&b)[N][2], uint32_t at, int chunk) {
    static_assert(N == 1 || N % 2 == 0, "one column of fragments, or two at a time");
    if constexpr (N == 1) {
        ptx::ldmatrix_x2_trans(b[0], beyond(at, chunk));
    } else {
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            uint32_t pair[4];
            ptx::ldmatrix_x4_trans(pair, beyond(at, chunk + j));
            b[j][0] = pair[0], b[j][1] = pair[1];
            b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
        }
    }
}

// Accumulators of 16 columns, rounded, as the left operand of the next product.
template <typename T, int N>
__device__ __forceinline__ void round_left(uint32_t (&a)[1][4], const float (&d)[1][N][4], int pair) {
    a[0][0] = Mma<T>::pack(d[0][2 * pair][0], d[0][2 * pair][1]);
    a[0][1] = Mma<T>::pack(d[0][2 * pair][2], d[0][2 * pair][3]);
    a[0][2] = Mma<T>::pack(d[0][2 * pair + 1][0], d[0][2 * pair + 1][1]);
    a[0][3] = Mma<T>::pack(d[0][2 * pair + 1][2], d[0][2 * pair + 1][3]);
}

// Of a score and dp; `lse` times log2(e). Where a position is hidden they may be anything, and are dropped afterwards: a branch
// around them costs more.
__device__ __forceinline__ float probability(float score, float log2_scale, float lse) {
    return exp2f(__fmaf_rn(score, log2_scale, -lse));
}
__device__ __forceinline__ float score_gradient(float p, float dp, float delta) { return __fmul_rn(p, __fsub_rn(dp, delta)); }

// ---- queries -------------------------------------------------------------------------------------------------------

struct QueriesArgs {
    float* dq;
    float* deltas;
    const void* q;
    const void* pool;    // the layer's keys of block 0
    const void* out;
    const float* lse;
    const void* d_out;
    const uint4* items;  // first token, tokens | kShared, first page, pages
    const uint4* tokens; // two words each: (row of q, row of out, position, lowest visible position),
                         // (first partial, parts, which of them this is, ticket)
    const uint4* pages;  // block, first position, first token | end << 16, valid positions | kChunkEnds
    float* partials;     // [partials, heads, EP]
    unsigned* tickets;   // [tickets, kv_heads]
    unsigned long long block;  // elements from one block of the pool to the next
    int heads, kv_heads, out_width;
    float scale;
};

template <bool WIDE>
struct Bits {
    using type = uint32_t;
};
template <>
struct Bits<true> {
    using type = uint64_t;
};

// WM warps share the rows, 16 each, and WN warps the keys of the scores and the elements of dq. With OVER_VALUES the warps
// of a row exchange score gradients in the place of the page's values, which takes a barrier more and 128 bytes a row less.
template <typename T, int EP, int WM, int WN, int STAGES, bool OVER_VALUES>
struct Queries {
    static constexpr int kThreads = WM * WN * kWarp;
    static constexpr int kRows = WM * 16;
    static constexpr int kLine = EP * 2;
    static constexpr int kChunks = EP / 8;  // of 16 bytes per line
    static constexpr int kWarpKeys = kKeys / WN, kWarpDims = EP / WN;
    // Keys whose scores are in registers: queries and d_out are read again for each such span.
    static constexpr int kSpan = kWarpKeys < 32 ? kWarpKeys : 32;
    using Mask = typename Bits<(kWarpKeys > 32)>::type;  // a bit for each of a warp's keys
    static constexpr int NO = kWarpDims / 8;
    static constexpr int kSlice = NO < 2 ? NO : 2;  // of dq, as one product
    static constexpr int kTileBytes = kKeys * kLine, kStageBytes = 2 * kTileBytes;
    static constexpr int kQueryBytes = kRows * kLine;
    // With several warps per row: score gradients in the storage type.
    static constexpr int kTableLine = kKeys * 2;
    static constexpr int kTableBytes = WN > 1 && !OVER_VALUES ? kRows * kTableLine : 0;
    static constexpr int kSharedBytes = 2 * kQueryBytes + STAGES * kStageBytes + kTableBytes;
    using Pages = ggro::Pages<T, EP, kThreads>;
    static_assert(kRows * kChunks % kWarp == 0, "whole warps add up delta");
    static_assert(NO % kSlice == 0 && kSpan % 16 == 0, "whole slices, and at least 16 keys per warp");
    static_assert(!OVER_VALUES || (WN > 1 && kRows * kTableLine <= kTileBytes), "the table fits into a tile of values");

    // dq += score gradients by 16 GROUPS keys; `gradients(ds, g)` brings those of keys 16 g and on, and `keys` is where the
    // lane reads the first 16 of them. Where all of a warp's rows see the page, or belong to nobody, this is done in place.
    // Elsewhere rows that do not see it keep what they have: what other tokens' pages hold, be it NaN, does not touch a row.
    template <int GROUPS, typename Gradients>
    static __device__ __forceinline__ void add(float (&o)[NO / kSlice][1][kSlice][4], const Gradients& gradients,
                                               uint32_t keys, bool in_place, const bool (&sees)[2]) {
        if (in_place) {
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                uint32_t ds[1][4];
                gradients(ds, g);
#pragma unroll
                for (int slice = 0; slice < NO / kSlice; ++slice) {
                    uint32_t b[kSlice][2];
                    load_right_rows<kSlice>(b, keys + g * 16 * kLine, slice * kSlice);
                    Mma<T>::tile(o[slice], ds, b);
                }
            }
            return;
        }
#pragma unroll
        for (int slice = 0; slice < NO / kSlice; ++slice) {
            float next[1][kSlice][4];
#pragma unroll
            for (int j = 0; j < kSlice; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) next[0][j][i] = o[slice][0][j][i];
            }
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                uint32_t ds[1][4], b[kSlice][2];
                gradients(ds, g);
                load_right_rows<kSlice>(b, keys + g * 16 * kLine, slice * kSlice);
                Mma<T>::tile(next, ds, b);
            }
#pragma unroll
            for (int j = 0; j < kSlice; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) o[slice][0][j][i] = sees[i / 2] ? next[0][j][i] : o[slice][0][j][i];
            }
        }
    }

    // Which positions from `first` on a row sees, a bit each.
    static __device__ __forceinline__ Mask seen(int lowest, int highest, int first) {
        constexpr int kLast = 8 * sizeof(Mask) - 1;
        const int from = max(lowest - first, 0), to = min(highest - first, kLast);
        return from <= to ? (~Mask(0) << from) & (~Mask(0) >> (kLast - to)) : Mask(0);
    }

    static __device__ __forceinline__ void run(const QueriesArgs& args) {
        EXTERN_SHARED(shared);
        __shared__ uint4 tokens[2 * kRows];
        __shared__ float2 normals[kRows];  // lse log2(e), delta
        __shared__ int token_of[kRows];    // which of the tile's tokens a row belongs to; `count` or more is nobody
        __shared__ unsigned arrived[kRows];
        const uint32_t queries = ptx::smem_address(shared);
        const uint32_t gradients = queries + kQueryBytes;
        const uint32_t ring = gradients + kQueryBytes;

        const uint4 item = __ldg(args.items + blockIdx.x);
        const int group = args.heads / args.kv_heads, first_head = blockIdx.y * group;
        // The block's tile of the item: as many tokens as it has rows for, after those of the tiles before.
        const int tile_tokens = kRows / group, before = blockIdx.z * tile_tokens;
        const int count = min(static_cast<int>(item.y & 0xffff) - before, tile_tokens), pages = item.w;
        if (count <= 0) return;
        const uint4* const page_list = args.pages + item.z;

#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) {
            if (s < pages) Pages::load_stage(args, ring + s * kStageBytes, Pages::block_of(page_list + s));
            ptx::cp_async_commit();
        }
        // The page to be copied in the next turn: its block and positions arrive while a page is worked on.
        uint2 ahead = pages > STAGES - 1 ? Pages::block_of(page_list + STAGES - 1) : make_uint2(0, 0);

        for (int i = threadIdx.x; i < 2 * count; i += kThreads) tokens[i] = __ldg(args.tokens + 2 * (item.x + before) + i);
        __syncthreads();  // the list of tokens is complete
        for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
            const int line = i / kChunks, chunk = i % kChunks, token = line / group;
            Pack<T, 8> q = {}, d = {}, o = {};
            const int head = first_head + line - token * group;
            if (token < count) {
                const uint4 word = tokens[2 * token];
                q = load128(static_cast<const T*>(args.q) + (static_cast<size_t>(word.x) * args.heads + head) * EP +
                            chunk * 8);
                const size_t at = static_cast<size_t>(word.y) * args.out_width + head * EP + chunk * 8;
                d = load128(static_cast<const T*>(args.d_out) + at);
                o = load128(static_cast<const T*>(args.out) + at);
            }
            store128(reinterpret_cast<T*>(shared + swizzled<kLine>(line, chunk)), q);
            store128(reinterpret_cast<T*>(shared + kQueryBytes + swizzled<kLine>(line, chunk)), d);
            float delta = 0.0f;
#pragma unroll
            for (int e = 0; e < 8; ++e) delta = __fmaf_rn(to_float(d.at[e]), to_float(o.at[e]), delta);
#pragma unroll
            for (int step = kChunks / 2; step > 0; step /= 2) {
                delta = __fadd_rn(delta, __shfl_xor_sync(kAllLanes, delta, step));
            }
            if (chunk == 0) {
                float lse = 0.0f;
                if (token < count) {
                    const size_t at = static_cast<size_t>(tokens[2 * token].y) * args.heads + head;
                    lse = args.lse[at];
                    // The first part of a token speaks for all of them.
                    if (tokens[2 * token + 1].z == 0) args.deltas[at] = delta;
                }
                token_of[line] = token;
                normals[line] = make_float2(__fmul_rn(lse, kLog2E), delta);
            }
        }

        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        const int wm = warp / WN, wn = warp % WN;
        const int t = lane % 4;
        const float log2_scale = args.scale * kLog2E;
        // A lane's two rows: lane / 4 of its warp's 16, and 8 further.
        const int line[2] = {wm * 16 + lane / 4, wm * 16 + lane / 4 + 8};
        // Where the lane reads fragments.
        const uint32_t left = queries + left_at<kLine>(wm * 16), right = right_at<kLine>(wn * kWarpKeys);
        const uint32_t rows = right_rows_at<kLine, NO == 1>(wn * NO);
        [[maybe_unused]] const uint32_t table_left = left_at<kTableLine>(wm * 16);

        float o[NO / kSlice][1][kSlice][4] = {}, all[NO / kSlice][1][kSlice][4] = {};
        int read = 0;
#pragma unroll 1
        for (int tile = 0; tile < pages; ++tile) {
            const uint4 page = __ldg(page_list + tile);
            ptx::cp_async_wait<STAGES - 2>();
            __syncthreads();  // stage `read` and the queries are there, and none reads stage `refill` any more
            if (tile + STAGES - 1 < pages) {
                const int refill = read == 0 ? STAGES - 1 : read - 1;
                Pages::load_stage(args, ring + refill * kStageBytes, ahead);
                if (tile + STAGES < pages) ahead = Pages::block_of(page_list + tile + STAGES);
            }
            ptx::cp_async_commit();
            const uint32_t keys = ring + read * kStageBytes, values = keys + kTileBytes;
            const uint32_t table = OVER_VALUES ? values : ring + STAGES * kStageBytes;
            read = read + 1 == STAGES ? 0 : read + 1;

            // Tokens from and to, counted from the tile's first. The page of another tile's tokens has none.
            const int first = page.y, from = static_cast<int>(page.z & 0xffff) - before;
            const int to = min(static_cast<int>(page.z >> 16) - before, count);
            // What a row sees of the page; rows of no token see nothing. In a row's mask the lane's first key comes first.
            Mask mask[2];
            bool sees[2], in_place = true;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int token = token_of[line[r]];
                const bool here = token >= from && token < to;
                const uint4 word = here ? tokens[2 * token] : make_uint4(0, 0, ~0u, 0);
                const int highest = word.z, lowest = word.w;
                mask[r] = seen(lowest, highest, first + wn * kWarpKeys) >> (2 * t);
                sees[r] = highest >= first && lowest < first + kKeys;
                in_place = in_place && (sees[r] || token >= count);
            }
            in_place = __all_sync(kAllLanes, in_place);
            // The rows of a warp that works alone may see nothing of the page; warps that share rows stay together.
            const bool skip = from >= to || (WN == 1 && !__any_sync(kAllLanes, sees[0] || sees[1]));
            if (!skip) {
                // Rounded score gradients of 8 keys by the lane's rows, and where they go.
                uint32_t rounded[OVER_VALUES ? kWarpKeys / 8 : 1][2];
                const uint32_t first_pair = table - queries + swizzled<kTableLine>(line[0], wn * kWarpKeys / 8) + 4 * t;
                const auto put = [&](int j, int r, uint32_t pair) {
                    *reinterpret_cast<uint32_t*>(shared + beyond(first_pair, j) + r * 8 * kTableLine) = pair;
                };
#pragma unroll 1
                for (int span = 0; span < kWarpKeys; span += kSpan) {
                    float s[1][kSpan / 8][4] = {}, dp[1][kSpan / 8][4] = {};
#pragma unroll
                    for (int step = 0; step < EP / 16; ++step) {
                        uint32_t a[1][4], b[kSpan / 8][2];
                        load_left(a, left, step);
                        load_right<kLine>(b, keys + right + span * kLine, step);
                        Mma<T>::tile(s, a, b);
                    }
#pragma unroll
                    for (int step = 0; step < EP / 16; ++step) {
                        uint32_t a[1][4], b[kSpan / 8][2];
                        load_left(a, left + kQueryBytes, step);
                        load_right<kLine>(b, values + right + span * kLine, step);
                        Mma<T>::tile(dp, a, b);
                    }
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const float2 normal = normals[line[r]];
#pragma unroll
                        for (int j = 0; j < kSpan / 8; ++j) {
#pragma unroll
                            for (int i = 2 * r; i < 2 * r + 2; ++i) {
                                const float p = probability(s[0][j][i], log2_scale, normal.x);
                                const float ds = score_gradient(p, dp[0][j][i], normal.y);
                                s[0][j][i] = ptx::if_bit(static_cast<uint32_t>(mask[r]), 1u << (j * 8 + i % 2), ds);
                            }
                        }
                        if constexpr (kSpan < kWarpKeys) mask[r] >>= kSpan;
                    }
                    if constexpr (WN == 1) {
                        const auto gradients = [&](uint32_t (&ds)[1][4], int g) { round_left<T>(ds, s, g); };
                        add<kSpan / 16>(o, gradients, keys + rows + span * kLine, in_place, sees);
                    } else {
#pragma unroll
                        for (int j = 0; j < kSpan / 8; ++j) {
#pragma unroll
                            for (int r = 0; r < 2; ++r) {
                                const uint32_t pair = Mma<T>::pack(s[0][j][2 * r], s[0][j][2 * r + 1]);
                                if constexpr (OVER_VALUES) {
                                    rounded[span / 8 + j][r] = pair;
                                } else {
                                    put(span / 8 + j, r, pair);
                                }
                            }
                        }
                    }
                }
                if constexpr (WN > 1) {
                    if constexpr (OVER_VALUES) {
                        __syncthreads();  // all warps have read the values
#pragma unroll
                        for (int j = 0; j < kWarpKeys / 8; ++j) {
                            put(j, 0, rounded[j][0]);
                            put(j, 1, rounded[j][1]);
                        }
                    }
                    __syncthreads();  // the table of score gradients is complete
                    const auto gradients = [&](uint32_t (&ds)[1][4], int g) { load_left(ds, table + table_left, g); };
                    add<kKeys / 16>(o, gradients, keys + rows, in_place, sees);
                }
            }

            if (page.w & kChunkEnds) {
#pragma unroll
                for (int slice = 0; slice < NO / kSlice; ++slice) {
#pragma unroll
                    for (int j = 0; j < kSlice; ++j) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            all[slice][0][j][i] = __fadd_rn(all[slice][0][j][i], o[slice][0][j][i]);
                            o[slice][0][j][i] = 0.0f;
                        }
                    }
                }
            }
        }
        ptx::cp_async_wait<0>();

#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int token = token_of[line[r]];
            if (token >= count) continue;
            const uint4 word = tokens[2 * token], part = tokens[2 * token + 1];
            const int head = first_head + line[r] - token * group;
            const bool whole = part.y == 1;
            const size_t row = whole ? word.x : part.x + part.z;
            float* const to = (whole ? args.dq : args.partials) + (row * args.heads + head) * EP + wn * kWarpDims + 2 * t;
            const float scale = whole ? args.scale : 1.0f;
#pragma unroll
            for (int j = 0; j < NO; ++j) {
                const float low = all[j / kSlice][0][j % kSlice][2 * r];
                const float high = all[j / kSlice][0][j % kSlice][2 * r + 1];
                *reinterpret_cast<float2*>(to + 8 * j) = make_float2(__fmul_rn(low, scale), __fmul_rn(high, scale));
            }
        }
        if (!(item.y & kShared)) return;

        __threadfence();  // each thread's own parts, before its block's arrival
        __syncthreads();  // all parts are written
        for (int i = threadIdx.x; i < count; i += kThreads) {
            const uint4 part = tokens[2 * i + 1];
            bool last = false;
            if (part.y > 1) {
                unsigned* const ticket = args.tickets + static_cast<size_t>(part.w) * args.kv_heads + blockIdx.y;
                last = ptx::atom_add_acq_rel(ticket, 1u) == part.y - 1;
                if (last) *ticket = 0;
            }
            arrived[i] = last;
        }
        __syncthreads();  // it is known which tokens have all their parts
        __threadfence();
        for (int i = threadIdx.x; i < count * group * (EP / 4); i += kThreads) {
            const int row = i / (EP / 4), dim = i % (EP / 4) * 4, of = row / group;
            if (arrived[of] == 0) continue;
            const uint4 word = tokens[2 * of], part = tokens[2 * of + 1];
            const int head = first_head + row - of * group;
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 2
            for (unsigned k = 0; k < part.y; ++k) {
                const size_t slot = static_cast<size_t>(part.x + k) * args.heads + head;
                const float4 next = __ldcg(reinterpret_cast<const float4*>(args.partials + slot * EP + dim));
                sum.x = __fadd_rn(sum.x, next.x), sum.y = __fadd_rn(sum.y, next.y);
                sum.z = __fadd_rn(sum.z, next.z), sum.w = __fadd_rn(sum.w, next.w);
            }
            float* const to = args.dq + (static_cast<size_t>(word.x) * args.heads + head) * EP + dim;
            *reinterpret_cast<float4*>(to) = make_float4(__fmul_rn(sum.x, args.scale), __fmul_rn(sum.y, args.scale),
                                                         __fmul_rn(sum.z, args.scale), __fmul_rn(sum.w, args.scale));
        }
    }
};

// ---- keys ----------------------------------------------------------------------------------------------------------

struct KeysArgs {
    float* dk;
    float* dv;
    const void* q;
    const void* pool;    // the layer's keys of block 0
    const float* lse;
    const float* deltas;
    const void* d_out;
    const uint4* items;  // two words each: (first token of the segment, its positions, first of these here, first tile),
                         // (tiles, position of the segment's first, its row of dk and dv, its first block)
    const uint2* tokens; // per position of a segment: row of q, row of out; kNone if nothing is asked of it
    const unsigned* tiles;   // of kQueryRows rows that see some of an item's positions, ascending
    const unsigned* blocks;  // of the pool, from the one with a segment's first position on
    unsigned long long block;  // elements from one block of the pool to the next
    int heads, kv_heads, out_width, window;
    float scale;
};

constexpr unsigned kNone = ~0u;
constexpr int kQueryRows = 64;

// Each warp has 16 positions, and all of the rows.
template <typename T, int EP, int STEP>
struct Keys {
    static constexpr int kThreads = kKeys / 16 * kWarp;
    static constexpr int kLine = EP * 2;
    static constexpr int kChunks = EP / 8;
    static constexpr int kLinesPerPass = kThreads / kChunks;
    static constexpr int kTileBytes = kKeys * kLine, kStageBytes = 2 * kQueryRows * kLine;
    static constexpr int kSharedBytes = 2 * kTileBytes + 2 * kStageBytes;
    static constexpr int NO = EP / 8, kSlice = 4;
    static_assert(kQueryRows <= kThreads && kQueryRows == kKeys, "a thread reads what belongs to a row");

    // What a row of the scores needs: the positions that it sees, counted from the segment's first; lse log2(e); delta.
    struct alignas(16) Row {
        int lowest, highest;
        float lse, delta;
    };

    struct Item {
        const uint2* tokens;
        const unsigned* tiles;
        int length, first, count, position, row;
        const unsigned* blocks;
    };

    // Row `line` of a tile: its token, and which head of the group it is.
    static __device__ __forceinline__ uint2 token_of(const Item& item, int group, int tile, int line, int& at, int& head) {
        const int row = tile * kQueryRows + line;
        at = row / group, head = row - at * group;
        return at < item.length ? __ldg(item.tokens + at) : make_uint2(kNone, kNone);
    }

    // Queries and gradients of a tile; rows that nothing is asked of become zero.
    static __device__ __forceinline__ void load_stage(const KeysArgs& args, const Item& item, uint32_t stage, int tile) {
        const int line = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
        const int group = args.heads / args.kv_heads, first_head = blockIdx.y * group;
#pragma unroll 4
        for (int first = 0; first < kQueryRows; first += kLinesPerPass) {
            int at, head;
            const uint2 token = token_of(item, group, tile, first + line, at, head);
            const bool real = token.x != kNone;
            const size_t element = static_cast<size_t>(first_head + head) * EP + chunk * 8;
            const T* const q = static_cast<const T*>(args.q) + element +
                               (real ? static_cast<size_t>(token.x) * args.heads * EP : 0);
            const T* const d = static_cast<const T*>(args.d_out) + element +
                               (real ? static_cast<size_t>(token.y) * args.out_width : 0);
            const uint32_t to = stage + swizzled<kLine>(first + line, chunk);
            ptx::cp_async16(to, q, real);
            ptx::cp_async16(to + kQueryRows * kLine, d, real);
        }
    }

    static __device__ __forceinline__ Row row_of(const KeysArgs& args, const Item& item, int tile) {
        const int group = args.heads / args.kv_heads;
        int at, head;
        const uint2 token = token_of(item, group, tile, threadIdx.x, at, head);
        if (token.x == kNone) return {0, -1, 0.0f, 0.0f};
        const size_t of = static_cast<size_t>(token.y) * args.heads + blockIdx.y * group + head;
        return {args.window > 0 ? at + 1 - args.window : 0, at, __fmul_rn(args.lse[of], kLog2E), args.deltas[of]};
    }

    static __device__ __forceinline__ void run(const KeysArgs& args) {
        EXTERN_SHARED(shared);
        __shared__ Row rows[2 * kQueryRows];
        const uint32_t keys = ptx::smem_address(shared), values = keys + kTileBytes, ring = values + kTileBytes;
        const uint4 of = __ldg(args.items + 2 * blockIdx.x), at = __ldg(args.items + 2 * blockIdx.x + 1);
        const Item item = {args.tokens + of.x,         args.tiles + of.w,           static_cast<int>(of.y),
                           static_cast<int>(of.z),     static_cast<int>(at.x),      static_cast<int>(at.y),
                           static_cast<int>(at.z),     args.blocks + at.w};
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        const float log2_scale = args.scale * kLog2E;

        // Keys and values of the block's positions; those past the segment's end become zero.
#pragma unroll 2
        for (int first = 0; first < kKeys; first += kLinesPerPass) {
            const int line = first + threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
            const bool real = item.first + line < item.length;
            const int position = item.position + (real ? item.first + line : 0);
            const unsigned block = __ldg(item.blocks + (position / kKeys - item.position / kKeys));
            const T* const from = static_cast<const T*>(args.pool) + block * args.block +
                                  (static_cast<size_t>(blockIdx.y) * kKeys + position % kKeys) * EP + chunk * 8;
            ptx::cp_async16(keys + swizzled<kLine>(line, chunk), from, real);
            ptx::cp_async16(values + swizzled<kLine>(line, chunk), from + static_cast<size_t>(args.kv_heads) * kKeys * EP,
                            real);
        }
        if (item.count > 0) {
            const int tile = __ldg(item.tiles);
            load_stage(args, item, ring, tile);
            if (threadIdx.x < kQueryRows) rows[threadIdx.x] = row_of(args, item, tile);
        }
        ptx::cp_async_commit();

        // The warp's 16 positions and a lane's two of them, counted from the segment's first.
        const int warp_key = item.first + warp * 16;
        const int key[2] = {warp_key + lane / 4, warp_key + lane / 4 + 8};
        // Where the lane reads fragments.
        const uint32_t left = keys + left_at<kLine>(warp * 16), right = right_at<kLine>(0), rows_at = right_rows_at<kLine>(0);
        float dk[NO / kSlice][1][kSlice][4] = {}, dv[NO / kSlice][1][kSlice][4] = {};
#pragma unroll 1
        for (int turn = 0; turn < item.count; ++turn) {
            ptx::cp_async_wait<0>();
            __syncthreads();  // this turn's stage and rows are there, and none reads the others any more
            const uint32_t queries = ring + turn % 2 * kStageBytes, gradients = queries + kQueryRows * kLine;
            const Row* const here = rows + turn % 2 * kQueryRows;
            Row next = {};
            if (turn + 1 < item.count) {
                const int tile = __ldg(item.tiles + turn + 1);
                load_stage(args, item, ring + (turn + 1) % 2 * kStageBytes, tile);
                if (threadIdx.x < kQueryRows) next = row_of(args, item, tile);
            }
            ptx::cp_async_commit();

#pragma unroll 1
            for (int step = 0; step < kQueryRows; step += STEP) {
                const Row mine = here[step + lane % STEP];
                const bool any = mine.highest >= warp_key && mine.lowest < warp_key + 16;
                if (!__any_sync(kAllLanes, any)) continue;
                float p[1][STEP / 8][4] = {}, ds[1][STEP / 8][4] = {};
#pragma unroll
                for (int k = 0; k < EP / 16; ++k) {
                    uint32_t a[1][4], b[STEP / 8][2];
                    load_left(a, left, k);
                    load_right<kLine>(b, queries + right + step * kLine, k);
                    Mma<T>::tile(p, a, b);
                    load_left(a, left + kTileBytes, k);
                    load_right<kLine>(b, gradients + right + step * kLine, k);
                    Mma<T>::tile(ds, a, b);
                }
#pragma unroll
                for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        const Row row = here[step + j * 8 + 2 * (lane % 4) + c];
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            const int i = 2 * r + c;
                            const bool visible = key[r] >= row.lowest && key[r] <= row.highest;
                            const float probable = probability(p[0][j][i], log2_scale, row.lse);
                            const float gradient = score_gradient(probable, ds[0][j][i], row.delta);
                            p[0][j][i] = visible ? probable : 0.0f;
                            ds[0][j][i] = visible ? gradient : 0.0f;
                        }
                    }
                }
#pragma unroll
                for (int g = 0; g < STEP / 16; ++g) {
                    uint32_t a[1][4], b[kSlice][2];
                    round_left<T>(a, p, g);
#pragma unroll
                    for (int slice = 0; slice < NO / kSlice; ++slice) {
                        load_right_rows<kSlice>(b, gradients + rows_at + (step + 16 * g) * kLine, slice * kSlice);
                        Mma<T>::tile(dv[slice], a, b);
                    }
                    round_left<T>(a, ds, g);
#pragma unroll
                    for (int slice = 0; slice < NO / kSlice; ++slice) {
                        load_right_rows<kSlice>(b, queries + rows_at + (step + 16 * g) * kLine, slice * kSlice);
                        Mma<T>::tile(dk[slice], a, b);
                    }
                }
            }
            if (threadIdx.x < kQueryRows) rows[(turn + 1) % 2 * kQueryRows + threadIdx.x] = next;
        }
        ptx::cp_async_wait<0>();

#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (key[r] >= item.length) continue;
            const size_t row = static_cast<size_t>(item.row + key[r]) * args.kv_heads + blockIdx.y;
            const size_t to = row * EP + 2 * (lane % 4);
#pragma unroll
            for (int j = 0; j < NO; ++j) {
                const float* const k = &dk[j / kSlice][0][j % kSlice][2 * r];
                const float* const v = &dv[j / kSlice][0][j % kSlice][2 * r];
                *reinterpret_cast<float2*>(args.dk + to + 8 * j) =
                    make_float2(__fmul_rn(k[0], args.scale), __fmul_rn(k[1], args.scale));
                *reinterpret_cast<float2*>(args.dv + to + 8 * j) = make_float2(v[0], v[1]);
            }
        }
    }
};

}  // namespace ggro

// Grid: (items, kv_heads, tiles), two tiles for wide items. Block: 32 WM WN. Dynamic shared memory: kSharedBytes. Tickets:
// one per token of several parts and key/value head, zero before and after. A multiprocessor has registers for BLOCKS blocks:
// as many as shared memory has room for on Hopper, where that needs no spill.
#define QUERIES(NAME, T, EP, WM, WN, STAGES, OVER_VALUES, BLOCKS)                                                     \
    extern "C" __global__ void __launch_bounds__(WM * WN * 32, BLOCKS)                                                \
        NAME(float* dq, float* deltas, const void* q, const void* pool, const void* out, const float* lse,            \
             const void* d_out, const uint4* items, const uint4* tokens, const uint4* pages, float* partials,         \
             unsigned* tickets, unsigned long long block, int heads, int kv_heads, int out_width, float scale) {      \
        ggro::await_turn();                                                                                           \
        ggro::Queries<T, EP, WM, WN, STAGES, OVER_VALUES>::run({dq, deltas, q, pool, out, lse, d_out, items, tokens,  \
                                                                pages, partials, tickets, block, heads, kv_heads,     \
                                                                out_width, scale});                                   \
    }

// Grid: (items, kv_heads). Block: 128. Dynamic shared memory: kSharedBytes.
#define KEYS(NAME, T, EP, STEP, BLOCKS)                                                                               \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS)                                                         \
        NAME(float* dk, float* dv, const void* q, const void* pool, const float* lse, const float* deltas,            \
             const void* d_out, const uint4* items, const uint2* tokens, const unsigned* tiles,                       \
             const unsigned* blocks, unsigned long long block, int heads, int kv_heads, int out_width, int window,    \
             float scale) {                                                                                           \
        ggro::await_turn();                                                                                           \
        ggro::Keys<T, EP, STEP>::run({dk, dv, q, pool, lse, deltas, d_out, items, tokens, tiles, blocks, block,       \
                                      heads, kv_heads, out_width, window, scale});                                    \
    }

// The host's table (src/cuda/ops/attention_backward/plan.rs) repeats these numbers.
#define ATTENTION_BACKWARD(EP, SUFFIX, T, WARPS, STEP, BLOCKS, BLOCKS_OF_MANY)                  \
    QUERIES(attention_backward_few_##EP##_##SUFFIX, T, EP, 1, 4, 3, false, BLOCKS)              \
    QUERIES(attention_backward_some_##EP##_##SUFFIX, T, EP, 2, 2, 2, false, BLOCKS)             \
    QUERIES(attention_backward_many_##EP##_##SUFFIX, T, EP, 4, WARPS, 2, false, BLOCKS_OF_MANY) \
    KEYS(attention_backward_keys_##EP##_##SUFFIX, T, EP, STEP, BLOCKS)

// The last two do the same sums in less memory, with one page less in flight, or without a table of its own: for cards
// whose blocks have 99 KiB of shared memory.
#define ATTENTION_BACKWARD_HEADS(SUFFIX, T)                                     \
    ATTENTION_BACKWARD(32, SUFFIX, T, 1, 32, 4, 4)                              \
    ATTENTION_BACKWARD(64, SUFFIX, T, 1, 32, 4, 3)                              \
    ATTENTION_BACKWARD(128, SUFFIX, T, 2, 16, 2, 2)                             \
    QUERIES(attention_backward_few_128_99k_##SUFFIX, T, 128, 1, 4, 2, false, 1) \
    QUERIES(attention_backward_many_128_99k_##SUFFIX, T, 128, 4, 2, 2, true, 1)

ATTENTION_BACKWARD_HEADS(bf16, __nv_bfloat16)
ATTENTION_BACKWARD_HEADS(f16, __half)
