// Causal attention over paged keys and values on Hopper, for many rows: kernels/attention.cu by wgmma.
//
// Operands, items, tokens and pages are those of kernels/attention.cu, and so is every sum: scores are chains of k16 steps
// over the head's elements, a page is 64 keys, a chunk 4 pages, and what a row hides or does not see leaves its state
// untouched. So where a card's wgmma and mma.sync give the same bits, rows have the same bits here and there, and a plan may
// take either; else all rows of a card come here, few as they may be (`--kernels sm90-wide`). `ggro kernels test` asks the
// card.
//
// An item has one or two tiles of at most 64 rows, of 64 / group tokens each, and a block a warpgroup for each of them,
// behind one that copies (one thread of it). A page comes as boxes of 64 positions by 64 elements with swizzled lines, keys
// and values, through a ring of stages, and both tiles read it. Queries are operand A of the scores, exponentials that of the
// output, both from registers; keys are B, and values are B whose columns run fastest. What the chunks so far add up to is in
// shared memory, because registers hold queries, scores, exponentials and a chunk's output.
//
// The scores of a page are on their way while the page before is multiplied with its values, and its exponentials are made
// while that product goes on. The other warpgroup's work fills what is left. Two loops go the two ways to the same bits:
// where every row of the tile sees some of a page, the product adds to o in place; else to a copy, from which the rows that
// see it take theirs.
//
// Positions of a block that nobody has written hold anything, be it NaN. Scores of theirs are hidden; their values become
// zero in shared memory, because zero times NaN is none.
//
// Contract: EP 64 or 128; everything 16-byte aligned.
// Bytes: as in kernels/attention.cu; an item has up to twice the rows, so pages are read half as often. Flops: 4 EP per
// visible key, row and head. A tile's page takes the tensor core 4 EP cycles (EP 128: 512), and shared memory 2 EP for keys
// and values, EP to bring them for both tiles, and EP for the sums, once a chunk. Its 4096 exponentials are 256 cycles of
// their unit, and some 400 issue slots with all that belongs to them. So the tensor core and shared memory are the limit
// where two warpgroups take turns. Aim: 60 % of the wgmma peak (not measured).
#include "attention_forward.cuh"
#include "hopper.cuh"

namespace ggro {

constexpr int kTileRows = 64;
constexpr int kMostTiles = 2;
constexpr int kHalf = 64;                           // elements of a swizzled line
constexpr uint32_t kHalfBytes = kKeys * kHalf * 2;  // 64 lines of it

template <typename T, int EP, int STAGES>
struct ManyAttention {
    static constexpr int kHalves = EP / kHalf;
    static constexpr uint32_t kPlaneBytes = kHalves * kHalfBytes;  // keys or values of a page
    static constexpr uint32_t kStageBytes = 2 * kPlaneBytes;
    static constexpr int NS = kKeys / 8, NO = EP / 8;
    static constexpr int kLine = EP * 2, kSums = EP / 2;  // of a thread
    // What a tile has of its own: its queries, then the sums of all chunks so far, then the finished rows.
    static constexpr uint32_t kTileBytes = kTileRows * EP * 4;
    static constexpr uint32_t kSharedBytes = kMostTiles * kTileBytes + STAGES * kStageBytes + 1024;

    struct Ring {
        uint32_t stages, full, empty;  // addresses in shared memory

        __device__ __forceinline__ uint32_t stage(int index) const { return stages + index * kStageBytes; }
    };

    // A page that is in the ring.
    struct Page {
        int first;       // its first position
        unsigned range;  // of tokens that it belongs to: the first, and the end << 16
        unsigned flags;
        int stage;
    };

    // One thread fills the ring with the item's pages, as soon as there is room. A row of the map is a position of a head.
    static __device__ __forceinline__ void copy(const AttentionArgs& args, const void* map, const Ring& ring,
                                                const uint4* page_list, int pages) {
        const unsigned block_rows = static_cast<unsigned>(args.block / EP);
        Place place;
        unsigned block = __ldg(page_list).x;
#pragma unroll 1
        for (int i = 0; i < pages; ++i) {
            const unsigned next = i + 1 < pages ? __ldg(page_list + i + 1).x : 0;
            const uint32_t stage = ring.stage(place.stage), full = ring.full + 8 * place.stage;
            const int keys = static_cast<int>(block * block_rows + blockIdx.y * kKeys);
            const int values = keys + args.kv_heads * kKeys;
            ptx::mbarrier_wait(ring.empty + 8 * place.stage, place.parity ^ 1);
            ptx::mbarrier_expect_tx(full, kStageBytes);
#pragma unroll
            for (int h = 0; h < kHalves; ++h) {
                ptx::tensor_copy(stage + h * kHalfBytes, map, h * kHalf, keys, full);
                ptx::tensor_copy(stage + kPlaneBytes + h * kHalfBytes, map, h * kHalf, values, full);
            }
            place.template advance<STAGES>();
            block = next;
        }
    }

    // Makes the values of positions from `valid` on zero, before anything reads them. All tiles of the block come here together.
    static __device__ __forceinline__ void clear_rest(unsigned char* stage, int valid) {
        const int threads = blockDim.x - kWarpgroup, thread = threadIdx.x - kWarpgroup;
        constexpr int kPieces = kHalf * 2 / 16;  // of 16 bytes per line
        for (int i = thread; i < (kKeys - valid) * kPieces * kHalves; i += threads) {
            const int half = i % kHalves, line = i / kHalves / kPieces + valid, piece = i / kHalves % kPieces;
            *reinterpret_cast<uint4*>(stage + kPlaneBytes + half * kHalfBytes + line * kHalf * 2 + piece * 16) =
                make_uint4(0, 0, 0, 0);
        }
        ptx::fence_proxy_async();  // wgmma reads the zeros, and later copies come behind them
        ptx::named_barrier(1 + kMostTiles, threads);
    }

    // Gives a stage back: each warp of every tile says so.
    static __device__ __forceinline__ void release(const Ring& ring, int stage) {
        if (threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(ring.empty + 8 * stage);
    }

    // Goes on to the next page before `end` that the tile sees, if there is one, and says whether a page that it passes ends a chunk.
    static __device__ __forceinline__ bool seek(Page& page, bool& chunk_ends, unsigned tile, const Ring& ring, Place& place,
                                                unsigned char* stages, const uint4* page_list, int& at, int end) {
        while (at < end) {
            const uint4 word = __ldg(page_list + at++);
            const int stage = place.stage, valid = word.w & 0xffff;
            ptx::mbarrier_wait(ring.full + 8 * stage, place.parity);
            if (valid < kKeys) clear_rest(stages + stage * kStageBytes, valid);
            place.template advance<STAGES>();
            if (word.w & kSeen << tile) {
                page = {static_cast<int>(word.y), word.z, word.w >> tile, stage};
                return true;
            }
            chunk_ends = chunk_ends || (word.w & kChunkEnds) != 0;
            __syncwarp();  // all lanes have seen this phase before it can pass
            release(ring, stage);
        }
        return false;
    }

    // Queries of a tile; rows of no token are zero.
    static __device__ __forceinline__ void load_queries(const AttentionArgs& args, unsigned char* to, const uint4* tokens,
                                                        int count, int group, int first_head) {
        constexpr int kChunks = EP / 8;  // of 16 bytes
#pragma unroll 4
        for (int i = threadIdx.x % kWarpgroup; i < kTileRows * kChunks; i += kWarpgroup) {
            const int line = i / kChunks, chunk = i % kChunks, token = line / group;
            uint4 word = make_uint4(0, 0, 0, 0);
            if (token < count) {
                const int head = first_head + line - token * group;
                const size_t row = static_cast<size_t>(tokens[2 * token].x) * args.heads + head;
                word = reinterpret_cast<const uint4*>(static_cast<const T*>(args.q) + row * EP)[chunk];
            }
            *reinterpret_cast<uint4*>(to + swizzled<kLine>(line, chunk)) = word;
        }
    }

    template <bool ACROSS, int SUMS>
    static __device__ __forceinline__ void product(float (&sums)[SUMS], const uint32_t (&a)[4], uint64_t b) {
        if constexpr (std::is_same_v<T, __half>) {
            ptx::wgmma_f16<ACROSS>(sums, a, b);
        } else {
            ptx::wgmma_bf16<ACROSS>(sums, a, b);
        }
    }

    // Sends the products of queries and keys on their way.
    static __device__ __forceinline__ void begin_scores(float (&s)[NS][4], const uint32_t (&q)[EP / 16][4], uint32_t keys) {
        float(&sums)[4 * NS] = reinterpret_cast<float(&)[4 * NS]>(s);
#pragma unroll
        for (int i = 0; i < 4 * NS; ++i) sums[i] = 0.0f;
        const uint64_t b = ptx::swizzled_descriptor(keys);
        ptx::written(sums);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < EP / 16; ++k) {
            product<false>(sums, q[k], b + (k * 16 / kHalf * kHalfBytes + k * 16 % kHalf * 2 >> 4));
        }
        ptx::wgmma_commit();
    }

    // Sends the product of exponentials and values, or those of one half, on its way.
    template <int SUMS>
    static __device__ __forceinline__ void begin_output(float (&o)[SUMS], uint32_t (&p)[kKeys / 16][4], uint32_t values) {
        const uint64_t b = ptx::swizzled_descriptor(values, kHalfBytes);
        ptx::written(o);
        ptx::written(p);
        ptx::wgmma_fence();
#pragma unroll
        for (int g = 0; g < kKeys / 16; ++g) product<true>(o, p[g], b + (g * 16 * kHalf * 2 >> 4));
        ptx::wgmma_commit();
    }

    // One tile's rows, by one warpgroup.
    static __device__ __forceinline__ void compute(const AttentionArgs& args, const uint4& item, const Ring& ring,
                                                   unsigned char* shared, uint4* tokens, unsigned* arrived) {
        const int tile = threadIdx.x / kWarpgroup - 1, thread = threadIdx.x % kWarpgroup;
        const int group = args.heads / args.kv_heads, first_head = blockIdx.y * group;
        const int first_token = tile * (kTileRows / group);
        const int count = min(static_cast<int>(item.y & 0xffff) - first_token, kTileRows / group);
        const auto meet = [&] { ptx::named_barrier(1 + tile, kWarpgroup); };
        tokens += tile * 2 * kTileRows;
        unsigned char* const own = shared + tile * kTileBytes;
        unsigned char* const stages = shared + kMostTiles * kTileBytes;
        for (int i = thread; i < 2 * count; i += kWarpgroup) tokens[i] = __ldg(args.tokens + 2 * (item.x + first_token) + i);
        meet();  // the list of tokens is complete
        load_queries(args, own, tokens, count, group, first_head);
        meet();  // so are the queries
        const int lane = threadIdx.x % kWarp, first_line = thread / kWarp * 16;
        uint32_t q[EP / 16][4];
#pragma unroll
        for (int k = 0; k < EP / 16; ++k) {
            const uint32_t at = swizzled<kLine>(first_line + lane % 16, 2 * k + lane / 16);
            ptx::ldmatrix_x4(q[k], ptx::smem_address(own) + at);
        }
        meet();  // the warpgroup has read its queries

        // The sums of all chunks so far, four at a time; no thread touches another's.
        const uint32_t all_o = ptx::smem_address(own) + thread * 16;
        constexpr uint32_t kNextFour = kWarpgroup * 16;
#pragma unroll
        for (int i = 0; i < kSums / 4; ++i) {
            ptx::st_shared_ordered(all_o + i * kNextFour, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
        }
        const float log2_scale = args.scale * kLog2E;
        const int line[2] = {first_line + lane / 4, first_line + lane / 4 + 8};
        const int token[2] = {line[0] / group, line[1] / group};
        float m[2] = {kNothing, kNothing}, l[2][NS / 2] = {}, o[kSums] = {};
        float all_m[2] = {kNothing, kNothing}, all_l[2] = {};
        float s[NS][4], shrink[2];
        bool sees[2];
        // A page's scores, which are there, become exponentials.
        const auto take = [&](const Page& page) {
            sees[0] = sees[1] = true;
            if (!(page.flags & kWhole)) {
                int lowest[2], highest[2];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int from = page.range & 0xffff, to = page.range >> 16, of = first_token + token[r];
                    const bool here = token[r] < count && of >= from && of < to;
                    const uint4 word = here ? tokens[2 * token[r]] : make_uint4(0, 0, ~0u, 0);
                    highest[r] = word.z, lowest[r] = word.w;
                    sees[r] = highest[r] >= page.first && lowest[r] < page.first + kKeys;
                }
                hide(s, page.first, lowest, highest);
            }
            float top[2];
            row_maxima(s, top);
            exponentials(s, m, l, top, shrink, log2_scale);
        };

        // The page whose scores are next, and the stage of the one whose values are.
        Place place;
        Page page = {};
        int at = 0, stage = 0;
        const uint4* const page_list = args.pages + item.z;
        const int pages = item.w;
        bool ends = false, there;
        float chunk_m[2], chunk_l[2];
        // A chunk is over: its own state is set aside, and the next page begins another one.
        const auto end_chunk = [&] {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                chunk_m[r] = m[r], chunk_l[r] = row_sum(l[r][0], l[r][1], l[r][2], l[r][3]);
                m[r] = kNothing;
#pragma unroll
                for (int g = 0; g < NS / 2; ++g) l[r][g] = 0.0f;
            }
        };
        // Goes on to the next page, with this one's exponentials as p.
        const auto go_on = [&](uint32_t(&p)[kKeys / 16][4]) {
#pragma unroll
            for (int g = 0; g < kKeys / 16; ++g) round_left<T>(p[g], s, g);
            stage = page.stage;
            ends = (__ldg(page_list + at - 1).w & kChunkEnds) != 0;
            // The ring has no room for pages further on while this one is in use. Without a next page, this one's scores are made
            // again, for nobody.
            there = seek(page, ends, tile, ring, place, stages, page_list, at, min(pages, at - 1 + STAGES));
            if (ends) end_chunk();
        };
        // With a chunk's output in o.
        const auto fold_chunk = [&] {
            const Fold first(all_m[0], all_l[0], chunk_m[0], chunk_l[0], log2_scale);
            const Fold second(all_m[1], all_l[1], chunk_m[1], chunk_l[1], log2_scale);
            constexpr int kFours = 4;  // that are read together: registers are few
#pragma unroll
            for (int begin = 0; begin < kSums / 4; begin += kFours) {
                float4 four[kFours];
#pragma unroll
                for (int i = 0; i < kFours; ++i) four[i] = ptx::ld_shared_ordered(all_o + (begin + i) * kNextFour);
#pragma unroll
                for (int i = 0; i < kFours; ++i) {
                    float* const next = o + 4 * (begin + i);
                    const float4 sum = {first(four[i].x, next[0]), first(four[i].y, next[1]), second(four[i].z, next[2]),
                                        second(four[i].w, next[3])};
                    ptx::st_shared_ordered(all_o + (begin + i) * kNextFour, sum);
                    next[0] = next[1] = next[2] = next[3] = 0.0f;
                }
            }
        };
        // The same for every lane, and known to be by the compiler.
        const auto together = [&] { return __shfl_sync(kAllLanes, there && (page.flags & kTogether), 0) != 0; };

#pragma unroll 1
        for (;;) {
            ends = false;
            there = seek(page, ends, tile, ring, place, stages, page_list, at, pages);
            if (ends) end_chunk(), fold_chunk();
            if (!__shfl_sync(kAllLanes, there, 0)) break;
            begin_scores(s, q, ring.stage(page.stage));
            ptx::wgmma_wait<0>();
            take(page);
            while (there) {
#pragma unroll 1
                while (together()) {
                    uint32_t p[kKeys / 16][4];
                    go_on(p);
                    begin_scores(s, q, ring.stage(page.stage));
#pragma unroll
                    for (int i = 0; i < kSums; ++i) o[i] = __fmul_rn(o[i], shrink[i / 2 % 2]);
                    begin_output(o, p, ring.stage(stage) + kPlaneBytes);
                    ptx::wgmma_wait<1>();  // the scores are there
                    // In a branch, exponentials are made before the wait for the output and not behind it.
                    if (__shfl_sync(kAllLanes, there, 0)) take(page);
                    ptx::wgmma_wait<0>();  // the output is there
                    release(ring, stage);
                    if (ends) fold_chunk();
                }
#pragma unroll 1
                while (there && !together()) {
                    // What other tokens' pages hold, be it NaN, does not touch a row.
                    const bool mine[2] = {sees[0], sees[1]};
                    uint32_t p[kKeys / 16][4];
                    go_on(p);
#pragma unroll
                    for (int h = 0; h < kHalves; ++h) {
                        float next[kHalf / 2];
#pragma unroll
                        for (int i = 0; i < kHalf / 2; ++i) next[i] = __fmul_rn(o[h * kHalf / 2 + i], shrink[i / 2 % 2]);
                        begin_output(next, p, ring.stage(stage) + kPlaneBytes + h * kHalfBytes);
                        ptx::wgmma_wait<0>();
#pragma unroll
                        for (int i = 0; i < kHalf / 2; ++i) {
                            o[h * kHalf / 2 + i] = mine[i / 2 % 2] ? next[i] : o[h * kHalf / 2 + i];
                        }
                    }
                    release(ring, stage);
                    if (ends) fold_chunk();
                    if (!__shfl_sync(kAllLanes, there, 0)) break;
                    begin_scores(s, q, ring.stage(page.stage));
                    ptx::wgmma_wait<0>();
                    take(page);
                }
            }
        }

#pragma unroll
        for (int i = 0; i < kSums / 4; ++i) {
            const float4 four = ptx::ld_shared_ordered(all_o + i * kNextFour);
            o[4 * i] = four.x, o[4 * i + 1] = four.y, o[4 * i + 2] = four.z, o[4 * i + 3] = four.w;
        }
        meet();  // the warpgroup has read its sums
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (token[r] >= count) continue;
            put_row<T, EP, NO>(args, own, tokens + 2 * token[r], first_head + line[r] - token[r] * group, line[r], 0, true,
                               all_m[r], all_l[r], [&](int j) { return make_float2(o[4 * j + 2 * r], o[4 * j + 2 * r + 1]); });
        }
        __threadfence();  // each thread's own parts, before its tile's arrival
        meet();  // the finished rows are complete
        write_rows<T, EP, kWarpgroup>(args, own, tokens, count, group, first_head, thread);
        if (!(item.y & kShared)) return;
        fold_parts<T, EP, kWarpgroup>(args, arrived + tile * kTileRows, tokens, count, group, first_head, thread, meet);
    }

    static __device__ __forceinline__ void run(const AttentionArgs& args, const void* map) {
        EXTERN_SHARED(dynamic);
        __shared__ uint64_t barriers[2 * STAGES];
        __shared__ uint4 tokens[kMostTiles * 2 * kTileRows];
        __shared__ unsigned arrived[kMostTiles * kTileRows];
        await_turn();
        const uint4 item = __ldg(args.items + blockIdx.x);
        if ((item.y & 0xffff) == 0) return;  // fills up a launch
        const int warpgroup = threadIdx.x / kWarpgroup;
        // The swizzle's pattern repeats after 1024 bytes.
        unsigned char* const shared = dynamic + (-ptx::smem_address(dynamic) & 1023u);
        const uint32_t full = ptx::smem_address(barriers);
        const Ring ring = {ptx::smem_address(shared) + kMostTiles * kTileBytes, full, full + 8 * STAGES};
        if (threadIdx.x == 0) {
            const unsigned warps = (blockDim.x - kWarpgroup) / kWarp;
            for (int i = 0; i < STAGES; ++i) {
                ptx::mbarrier_init(ring.full + 8 * i, 1);
                ptx::mbarrier_init(ring.empty + 8 * i, warps);
            }
            ptx::fence_barrier_init();
        }
        __syncthreads();  // the barriers are there
        if (warpgroup == 0) {
            ptx::fewer_registers<40>();
            if (threadIdx.x == 0) copy(args, map, ring, args.pages + item.z, item.w);
        } else {
            ptx::more_registers<232>();
            compute(args, item, ring, shared, tokens, arrived);
        }
    }
};

}  // namespace ggro

// Grid: (items, kv_heads). Block: 256 for items of one tile, 384 for those of two. Dynamic shared memory: kSharedBytes. `pool` has
// the layer's keys of block 0 as its first row, and rows of a head; a box is 64 of 64 elements. Tickets: as in kernels/attention.cu.
#define ATTENTION(NAME, T, EP, STAGES)                                                                                \
    extern "C" __global__ void __launch_bounds__((1 + ggro::kMostTiles) * ggro::kWarpgroup, 1)                        \
        NAME(const __grid_constant__ ggro::TensorMap pool, void* out, float* lse, const void* q, const uint4* items,  \
             const uint4* tokens, const uint4* pages, float* partials, float* states, unsigned* tickets,              \
             unsigned long long block, int heads, int kv_heads, int out_width, float scale) {                         \
        ggro::ManyAttention<T, EP, STAGES>::run({out, lse, q, nullptr, items, tokens, pages, partials, states,        \
                                                 tickets, block, heads, kv_heads, out_width, scale},                  \
                                                &pool);                                                               \
    }

// The host's list (src/cuda/ops/attention/sm90.rs) repeats these numbers.
ATTENTION(attention_sm90_64_bf16, __nv_bfloat16, 64, 6)
ATTENTION(attention_sm90_64_f16, __half, 64, 6)
ATTENTION(attention_sm90_128_bf16, __nv_bfloat16, 128, 4)
ATTENTION(attention_sm90_128_f16, __half, 128, 4)
