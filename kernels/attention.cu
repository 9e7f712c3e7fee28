// Causal attention over paged keys and values: out = softmax(scale q k^T) v per query token and head.
//
//   q[rows, heads EP], out[rows, out_width] 16-bit; pool: blocks of 64 positions, per block and layer
//   [2, kv_heads, 64, EP], keys first; lse[rows, heads] f32 = ln sum exp(scale q.k) where it is asked for.
//
// What a block computes comes from a plan made on the host (src/cuda/ops/attention/plan.rs): an *item* is a list of
// query tokens, each with the `group` heads of one key/value head (its rows), and a list of *pages*, ascending in
// position: a block of the pool, and the range of tokens that it belongs to. Sequences that share a block share its
// page, so it is read once for all of them. An item without tokens does nothing: it fills up a launch whose shape many
// batches have.
//
// Contract: EP 32, 64 or 128; everything 16-byte aligned. A key j is visible to a query at i if i - window < j <= i. The
// bits of a row are a function of its own q and its visible keys and values alone:
//   - scores are chains of k16 steps over the head's elements; keys come in pages of 64 at absolute positions;
//   - a *chunk* of 4 pages keeps a running maximum m, the sum l of the unrounded exponentials (per lane of a quad and
//     16 keys, added up at the chunk's end in one order) and o, the chain of k16 steps over the keys of the
//     exponentials rounded to the storage type;
//   - the (m, l, o) of chunks are folded in ascending order, in registers or, where an item is one chunk of a row's
//     several, by the last of their blocks to arrive;
//   - a page or chunk in which a row sees nothing leaves its m, l and o untouched, whatever is in that memory.
// Products and sums that decide bits are written as such (__fmaf_rn), so that every instantiation rounds alike.
//
// WM warps share the rows, 16 each, and WN warps the keys of the scores and the elements of the output:
//   few 1 x 4, some 2 x 2: decoding and short segments; many 4 x 1: prefill, whose exponentials stay in registers
//   (4 x 2 with heads of 128, whose two states do not fit into the registers of one warp).
// Bytes: the visible keys and values once per item, q and out once; where a row has several chunks in several items,
// 8 + 4 EP per chunk, row and head are written and read again, through L2. Flops: 4 EP per visible key, row and head.
// Few and some: the limit is memory. Two (few) or one (some) pages of 256 EP bytes in flight per block, 2 to 3 blocks
// per multiprocessor with EP 128, is what latency times bandwidth asks for. Aim: 85 % of the copy rate once there are
// two blocks per multiprocessor (not measured); below that the chain of load, scores and exchange of a chunk's 4 pages shows.
// Many: the limit is shared memory. 16 rows per warp read one fragment of keys or values per two products, which keeps
// shared memory busy twice as long as the tensor core. Aim: 45 % of the mma.sync peak (not measured). Prefill spends 3 %
// of its flops here.
#include "attention_forward.cuh"

namespace ggro {

template <typename T, int EP, int WM, int WN, int STAGES>
struct Attention {
    static constexpr int kThreads = WM * WN * kWarp;
    static constexpr int kRows = WM * 16;
    static constexpr int kLine = EP * 2;
    static constexpr int kChunks = EP / 8;  // of 16 bytes per line
    static constexpr int kWarpKeys = kKeys / WN, kWarpDims = EP / WN;
    static constexpr int kGroups = kWarpKeys / 16;  // k16 groups of keys whose scores a warp computes
    static constexpr int NS = kWarpKeys / 8, NO = kWarpDims / 8;
    static constexpr int kSlice = NO < 4 ? NO : 4;  // of the output, as one product
    static constexpr int kTileBytes = kKeys * kLine, kStageBytes = 2 * kTileBytes;
    static constexpr int kQueryBytes = kRows * kLine;
    // With several warps per row: exponentials in the storage type, maxima by warp, sums by group of keys and lane.
    static constexpr int kProbabilityLine = kKeys * 2;
    static constexpr int kProbabilityBytes = WN > 1 ? kRows * kProbabilityLine : 0;
    static constexpr int kMaximaBytes = WN > 1 ? WN * kRows * 4 : 0;
    static constexpr int kSumsBytes = WN > 1 ? 4 * kRows * 4 * 4 : 0;
    static constexpr int kSharedBytes =
        kQueryBytes + STAGES * kStageBytes + kProbabilityBytes + kMaximaBytes + kSumsBytes;
    using Pages = ggro::Pages<T, EP, kThreads>;
    static_assert(NO % kSlice == 0 && kGroups >= 1, "whole slices, and at least 16 keys per warp");

    static __device__ __forceinline__ void run(const AttentionArgs& args) {
        EXTERN_SHARED(shared);
        __shared__ uint4 tokens[2 * kRows];
        __shared__ unsigned arrived[kRows];
        const uint32_t queries = ptx::smem_address(shared);
        const uint32_t ring = queries + kQueryBytes;
        const uint32_t probabilities = ring + STAGES * kStageBytes;
        float* const maxima = reinterpret_cast<float*>(shared + kQueryBytes + STAGES * kStageBytes + kProbabilityBytes);
        float* const sums = maxima + kMaximaBytes / 4;

        const uint4 item = __ldg(args.items + blockIdx.x);
        const int count = item.y & 0xffff, pages = item.w;
        if (count == 0) return;  // fills up a launch
        const uint4* const page_list = args.pages + item.z;
        const int group = args.heads / args.kv_heads, first_head = blockIdx.y * group;

#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) {
            if (s < pages) Pages::load_stage(args, ring + s * kStageBytes, Pages::block_of(page_list + s));
            ptx::cp_async_commit();
        }
        // The page to be copied in the next turn: its block and positions arrive while a page is worked on.
        uint2 ahead = pages > STAGES - 1 ? Pages::block_of(page_list + STAGES - 1) : make_uint2(0, 0);

        for (int i = threadIdx.x; i < 2 * count; i += kThreads) tokens[i] = __ldg(args.tokens + 2 * item.x + i);
        __syncthreads();  // the list of tokens is complete
        for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
            const int line = i / kChunks, chunk = i % kChunks, token = line / group;
            uint4 word = make_uint4(0, 0, 0, 0);
            if (token < count) {
                const int head = first_head + line - token * group;
                const size_t row = static_cast<size_t>(tokens[2 * token].x) * args.heads + head;
                word = reinterpret_cast<const uint4*>(static_cast<const T*>(args.q) + row * EP)[chunk];
            }
            *reinterpret_cast<uint4*>(shared + swizzled<kLine>(line, chunk)) = word;
        }

        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        const int wm = warp / WN, wn = warp % WN;
        const int t = lane % 4;
        const float log2_scale = args.scale * kLog2E;
        // A lane's two rows: lane / 4 of its warp's 16, and 8 further.
        const int line[2] = {wm * 16 + lane / 4, wm * 16 + lane / 4 + 8};
        const int token[2] = {line[0] / group, line[1] / group};

        float m[2] = {kNothing, kNothing}, l[2][kGroups] = {}, o[NO][4] = {};
        float all_m[2] = {kNothing, kNothing}, all_l[2] = {}, all_o[NO][4] = {};
        int read = 0, refill = STAGES - 1;
#pragma unroll 1
        for (int tile = 0; tile < pages; ++tile) {
            const uint4 page = __ldg(page_list + tile);
            ptx::cp_async_wait<STAGES - 2>();
            __syncthreads();  // stage `read` and the queries are there, and none reads stage `refill` any more
            if (tile + STAGES - 1 < pages) {
                Pages::load_stage(args, ring + refill * kStageBytes, ahead);
                if (tile + STAGES < pages) ahead = Pages::block_of(page_list + tile + STAGES);
            }
            ptx::cp_async_commit();
            const uint32_t keys = ring + read * kStageBytes, values = keys + kTileBytes;
            refill = read;
            read = read + 1 == STAGES ? 0 : read + 1;

            const int first = page.y, from = page.z & 0xffff, to = page.z >> 16;
            // Positions that a row sees, from and to, on this page; rows of no token see nothing and mind nothing.
            int lowest[2], highest[2];
            bool sees[2], all = true;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const bool here = token[r] >= from && token[r] < to;
                const uint4 word = here ? tokens[2 * token[r]] : make_uint4(0, 0, ~0u, 0);
                highest[r] = word.z, lowest[r] = word.w;
                sees[r] = highest[r] >= first && lowest[r] < first + kKeys;
                all = all && (token[r] >= count || (highest[r] >= first + kKeys - 1 && lowest[r] <= first));
            }
            // The rows of a warp that works alone may see nothing of the page; warps that share rows stay together.
            const bool skip = WN == 1 && !__any_sync(kAllLanes, sees[0] || sees[1]);
            if (!skip) {
                const bool unmasked = __all_sync(kAllLanes, all);

                float s[1][NS][4] = {};
#pragma unroll
                for (int step = 0; step < EP / 16; ++step) {
                    uint32_t a[1][4], b[NS][2];
                    ptx::ldmatrix_x4(a[0], queries + swizzled<kLine>(wm * 16 + lane % 16, 2 * step + lane / 16));
#pragma unroll
                    for (int j = 0; j < NS; j += 2) {
                        uint32_t pair[4];
                        const int key = wn * kWarpKeys + j * 8 + lane % 8 + lane / 16 * 8;
                        ptx::ldmatrix_x4(pair, keys + swizzled<kLine>(key, 2 * step + lane / 8 % 2));
                        b[j][0] = pair[0], b[j][1] = pair[1];
                        b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
                    }
                    Mma<T>::tile(s, a, b);
                }
                if (!unmasked) hide(s[0], first + wn * kWarpKeys, lowest, highest);

                float top[2];
                row_maxima(s[0], top);
                if constexpr (WN > 1) {
                    if (t == 0) maxima[wn * kRows + line[0]] = top[0], maxima[wn * kRows + line[1]] = top[1];
                    __syncthreads();  // the maxima are complete
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
#pragma unroll
                        for (int w = 0; w < WN; ++w) top[r] = fmaxf(top[r], maxima[w * kRows + line[r]]);
                    }
                }

                float shrink[2];
                exponentials(s[0], m, l, top, shrink, log2_scale);

                // Exponentials as the left operand: 16 rows by 4 steps of 16 keys.
                uint32_t p[kKeys / 16][1][4];
                if constexpr (WN == 1) {
#pragma unroll
                    for (int g = 0; g < kKeys / 16; ++g) round_left<T>(p[g][0], s[0], g);
                } else {
                    unsigned char* const table = shared + (probabilities - queries);
#pragma unroll
                    for (int j = 0; j < NS; ++j) {
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            const uint32_t at = swizzled<kProbabilityLine>(line[r], wn * kWarpKeys / 8 + j) + 4 * t;
                            *reinterpret_cast<uint32_t*>(table + at) = Mma<T>::pack(s[0][j][2 * r], s[0][j][2 * r + 1]);
                        }
                    }
                    __syncthreads();  // the exponentials are complete
#pragma unroll
                    for (int g = 0; g < kKeys / 16; ++g) {
                        const uint32_t at = swizzled<kProbabilityLine>(wm * 16 + lane % 16, 2 * g + lane / 16);
                        ptx::ldmatrix_x4(p[g][0], probabilities + at);
                    }
                }

#pragma unroll
                for (int slice = 0; slice < NO; slice += kSlice) {
                    float next[1][kSlice][4];
#pragma unroll
                    for (int j = 0; j < kSlice; ++j) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) next[0][j][i] = __fmul_rn(o[slice + j][i], shrink[i / 2]);
                    }
#pragma unroll
                    for (int g = 0; g < kKeys / 16; ++g) {
                        uint32_t b[kSlice][2];
                        const int key = g * 16 + lane % 16, chunk = wn * NO + slice;
                        if constexpr (kSlice == 1) {
                            ptx::ldmatrix_x2_trans(b[0], values + swizzled<kLine>(key, chunk));
                        } else {
#pragma unroll
                            for (int j = 0; j < kSlice; j += 2) {
                                uint32_t pair[4];
                                ptx::ldmatrix_x4_trans(pair, values + swizzled<kLine>(key, chunk + j + lane / 16));
                                b[j][0] = pair[0], b[j][1] = pair[1];
                                b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
                            }
                        }
                        Mma<T>::tile(next, p[g], b);
                    }
                    // What other tokens' pages hold, be it NaN, does not touch a row.
#pragma unroll
                    for (int j = 0; j < kSlice; ++j) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) o[slice + j][i] = sees[i / 2] ? next[0][j][i] : o[slice + j][i];
                    }
                }
            }

            if (page.w & kChunkEnds) {
                float sum[2];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    if constexpr (WN == 1) {
                        sum[r] = row_sum(l[r][0], l[r][1], l[r][2], l[r][3]);
                    } else {
#pragma unroll
                        for (int g = 0; g < kGroups; ++g) {
                            sums[((wn * kGroups + g) * kRows + line[r]) * 4 + t] = l[r][g];
                        }
                    }
                }
                if constexpr (WN > 1) {
                    __syncthreads();  // the sums are complete
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const float* const mine = sums + line[r] * 4 + t;
                        sum[r] = row_sum(mine[0], mine[4 * kRows], mine[8 * kRows], mine[12 * kRows]);
                    }
                }
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const Fold fold(all_m[r], all_l[r], m[r], sum[r], log2_scale);
#pragma unroll
                    for (int j = 0; j < NO; ++j) {
#pragma unroll
                        for (int i = 2 * r; i < 2 * r + 2; ++i) {
                            all_o[j][i] = fold(all_o[j][i], o[j][i]);
                            o[j][i] = 0.0f;
                        }
                    }
                    m[r] = kNothing;
#pragma unroll
                    for (int g = 0; g < kGroups; ++g) l[r][g] = 0.0f;
                }
            }
        }
        ptx::cp_async_wait<0>();
        __syncwarp();  // the warp has read its queries

        // Rows that are finished go through shared memory, where the queries were, to be written in whole lines; parts
        // go to the scratch.
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (token[r] >= count) continue;
            put_row<T, EP, NO>(args, shared, tokens + 2 * token[r], first_head + line[r] - token[r] * group, line[r],
                               wn * NO, wn == 0, all_m[r], all_l[r], [&](int j) {
                                   return make_float2(all_o[j][2 * r], all_o[j][2 * r + 1]);
                               });
        }
        __threadfence();  // each thread's own parts, before its block's arrival
        __syncthreads();  // the finished rows are complete
        write_rows<T, EP, kThreads>(args, shared, tokens, count, group, first_head, threadIdx.x);
        if (!(item.y & kShared)) return;
        fold_parts<T, EP, kThreads>(args, arrived, tokens, count, group, first_head, threadIdx.x,
                                    [] { __syncthreads(); });
    }
};

}  // namespace ggro

// Grid: (items, kv_heads). Block: 32 WM WN. Dynamic shared memory: kSharedBytes. Tickets: one per token of several parts
// and key/value head, zero before and after. The second launch bound keeps the compiler from spilling a register or two
// for the sake of occupancy, which shared memory limits anyway.
#define ATTENTION(NAME, T, EP, WM, WN, STAGES)                                                                        \
    extern "C" __global__ void __launch_bounds__(WM * WN * 32, 1)                                                        \
        NAME(void* out, float* lse, const void* q, const void* pool, const uint4* items, const uint4* tokens,         \
             const uint4* pages, float* partials, float* states, unsigned* tickets, unsigned long long block,         \
             int heads, int kv_heads, int out_width, float scale) {                                                   \
        ggro::await_turn();                                                                                           \
        ggro::Attention<T, EP, WM, WN, STAGES>::run({out, lse, q, pool, items, tokens, pages, partials, states,       \
                                                     tickets, block, heads, kv_heads, out_width, scale});             \
    }

// The host's table (src/cuda/ops/attention/classes.rs) repeats these numbers.
#define ATTENTION_CLASSES(EP, SUFFIX, T, WARPS, STAGES)              \
    ATTENTION(attention_few_##EP##_##SUFFIX, T, EP, 1, 4, 3)         \
    ATTENTION(attention_some_##EP##_##SUFFIX, T, EP, 2, 2, 2)        \
    ATTENTION(attention_many_##EP##_##SUFFIX, T, EP, 4, WARPS, STAGES)

// The last two do the same sums with one page less in flight: for cards whose blocks have 99 KiB of shared memory.
#define ATTENTION_HEADS(SUFFIX, T)                              \
    ATTENTION_CLASSES(32, SUFFIX, T, 1, 2)                      \
    ATTENTION_CLASSES(64, SUFFIX, T, 1, 2)                      \
    ATTENTION_CLASSES(128, SUFFIX, T, 2, 3)                     \
    ATTENTION(attention_few_128_99k_##SUFFIX, T, 128, 1, 4, 2)  \
    ATTENTION(attention_many_128_99k_##SUFFIX, T, 128, 4, 2, 2)

ATTENTION_HEADS(bf16, __nv_bfloat16)
ATTENTION_HEADS(f16, __half)
