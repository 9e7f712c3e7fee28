// The products with stored weights, forward (gemm.cu) and backward (gemm_backward.cu): one pipeline, two layouts of the
// weights. What is promised and why stands in those two files; this one is included by them alone.
//
// y[t, o] = sum over k of x[t, k] A[o, k], where the matrix A is stored by its rows, w[n, k] (forward), or by its columns,
// w[k, n] (backward): one matrix of a layer serves both ways without a copy.
#pragma once

#include "common.cuh"

namespace ggro {

// Elements of k per pipeline stage: one 128-byte line per row.
constexpr int kTileK = 64;
constexpr int kLine = 128;

enum Output : int { kStoreF32 = 0, kStore16 = 1, kAddF32 = 2 };

struct GemmArgs {
    void* y;
    const void* x;
    const void* w;
    const void* bias;
    const float* before;  // [tokens, n] if it is added to, which may be y itself
    float* workspace;
    unsigned* tickets;
    int tokens, n, k, chunk_tiles, output;
};

// A warp computes MI x 16 outputs for NI x 8 tokens; the block has WN x WT warps. FOLD: the block adds up all chunks.
// BY_COLUMNS: w is [k, n], n and k multiples of 8; else [n, k], k a multiple of 64.
template <typename T, int MI, int NI, int WN, int WT, int STAGES, bool FOLD, bool BY_COLUMNS>
struct Gemm {
    static constexpr int kThreads = WN * WT * kWarp;
    static constexpr int kOutputs = WN * MI * 16;
    static constexpr int kTokens = WT * NI * 8;
    static constexpr int kStageBytes = (kOutputs + kTokens) * kLine;
    static constexpr int kSharedBytes = STAGES * kStageBytes;
    static constexpr int kLinesPerPass = kThreads / 8;
    // Steps whose fragments may be in flight together; four cost the largest backward tile its second block.
    static constexpr int kUnroll = BY_COLUMNS ? 2 : 4;
    // Padded so that the 32 lanes of a fragment store hit 32 banks.
    static constexpr int kTileRow = kOutputs + 4;
    static_assert(kTokens * kTileRow * 4 <= kSharedBytes, "the finished tile fits into the ring");
    static_assert(kThreads % kOutputs == 0, "a thread stores one column of the tile");
    static_assert(kOutputs % kLinesPerPass == 0, "whole passes over the weight lines");
    static_assert(kTokens % kLinesPerPass == 0 || kTokens < kLinesPerPass, "whole passes over the token lines, or one");
    static_assert(!BY_COLUMNS || kOutputs % kTileK == 0, "whole panels");
    static_assert(!BY_COLUMNS || kTileK % kLinesPerPass == 0, "whole passes over a panel");
    static_assert(kLinesPerPass % 8 == 0, "the swizzle of a thread's lines is the same in each pass");
    static_assert(STAGES >= 3, "a stage is refilled while another is read and a third is in flight");

    // Copies `LINES` lines of 64 elements, `stride` apart, into shared memory; lines from `valid` on and elements from
    // `columns` on become zero.
    template <int LINES>
    static __device__ __forceinline__ void copy_lines(uint32_t smem, const T* source, int valid, int columns,
                                                      int stride) {
        const int line = threadIdx.x / 8, chunk = threadIdx.x % 8;
#pragma unroll
        for (int first = 0; first < LINES; first += kLinesPerPass) {
            const int at = first + line;
            if (LINES >= kLinesPerPass || at < LINES) {
                const bool real = at < valid && (!BY_COLUMNS || chunk * 8 < columns);
                const T* const from = source + (real ? static_cast<size_t>(at) * stride + chunk * 8 : 0);
                ptx::cp_async16(smem + swizzled<kLine>(at, chunk), from, real);
            }
        }
    }

    // A stage's lines of weights are outputs, or with BY_COLUMNS 64 steps along k for each panel of 64 outputs. `w` is the block's
    // first output.
    static __device__ __forceinline__ void load_weight_lines(uint32_t stage, const T* w, int w_valid, int tile,
                                                             const GemmArgs& args) {
        const int first = tile * kTileK, left = args.k - first;
        if constexpr (BY_COLUMNS) {
            const T* const corner = w + static_cast<size_t>(first) * args.n;
#pragma unroll
            for (int at = 0; at < kOutputs; at += kTileK) {
                copy_lines<kTileK>(stage + at * kLine, corner + at, left, w_valid - at, args.n);
            }
        } else {
            copy_lines<kOutputs>(stage, w + first, w_valid, left, args.k);
        }
    }

    // Behind them come lines of tokens. `x` is the block's first token.
    static __device__ __forceinline__ void load_token_lines(uint32_t stage, const T* x, int x_valid, int tile,
                                                            const GemmArgs& args) {
        const int first = tile * kTileK;
        copy_lines<kTokens>(stage + kOutputs * kLine, x + first, x_valid, args.k - first, args.k);
    }

    // The weights' fragments of one k16 step: rows 0-7 and 8-15 of the first 8 k, then of the second.
    static __device__ __forceinline__ void load_weights(uint32_t (&a)[MI][4], uint32_t stage, int warp_n, int step) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int i = 0; i < MI; ++i) {
            const int output = warp_n * MI * 16 + i * 16;
            if constexpr (BY_COLUMNS) {
                const int line = output / kTileK * kTileK + step * 16 + lane / 16 * 8 + lane % 8;
                ptx::ldmatrix_x4_trans(a[i], stage + swizzled<kLine>(line, output % kTileK / 8 + lane / 8 % 2));
            } else {
                ptx::ldmatrix_x4(a[i], stage + swizzled<kLine>(output + lane % 16, 2 * step + lane / 16));
            }
        }
    }

    static __device__ __forceinline__ void multiply_stage(float (&acc)[MI][NI][4], uint32_t stage, int warp_n,
                                                          int warp_t) {
        const int lane = threadIdx.x % kWarp;
        // Tokens: k 0-7 and 8-15 of 8 of them, then of the next 8.
        const int b_line = kOutputs + warp_t * NI * 8 + lane % 8 + (NI > 1 ? lane / 16 * 8 : 0);
        const int b_chunk = lane / 8 % 2;
#pragma unroll kUnroll
        for (int step = 0; step < kTileK / 16; ++step) {
            uint32_t a[MI][4], b[NI][2];
            load_weights(a, stage, warp_n, step);
            if constexpr (NI == 1) {
                ptx::ldmatrix_x2(b[0], stage + swizzled<kLine>(b_line, 2 * step + b_chunk));
            } else {
#pragma unroll
                for (int j = 0; j < NI; j += 2) {
                    uint32_t pair[4];
                    ptx::ldmatrix_x4(pair, stage + swizzled<kLine>(b_line + j * 8, 2 * step + b_chunk));
                    b[j][0] = pair[0], b[j][1] = pair[1];
                    b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
                }
            }
            Mma<T>::tile(acc, a, b);
        }
    }

    static __device__ __forceinline__ void finish(const GemmArgs& args, size_t at, int column, float value) {
        if (args.bias != nullptr) value += to_float(static_cast<const T*>(args.bias)[column]);
        if (args.output == kStore16) {
            static_cast<T*>(args.y)[at] = from_float<T>(value);
        } else if (args.output == kStoreF32) {
            static_cast<float*>(args.y)[at] = value;
        } else {
            static_cast<float*>(args.y)[at] = args.before[at] + value;
        }
    }

    // Fragments into the block's tile, whose rows are one token's outputs.
    static __device__ __forceinline__ void to_tile(float* tile, const float (&acc)[MI][NI][4], int warp_n, int warp_t) {
        const int lane = threadIdx.x % kWarp;
        const int column = warp_n * MI * 16 + lane / 4, token = warp_t * NI * 8 + lane % 4 * 2;
        float* const corner = tile + token * kTileRow + column;
#pragma unroll
        for (int i = 0; i < MI; ++i) {
#pragma unroll
            for (int j = 0; j < NI; ++j) {
#pragma unroll
                for (int r = 0; r < 4; ++r) corner[(j * 8 + r % 2) * kTileRow + i * 16 + r / 2 * 8] = acc[i][j][r];
            }
        }
    }

    // Calls `each(token, output)` for this thread's elements of the tile, neighbours in neighbouring threads.
    template <typename F>
    static __device__ __forceinline__ void for_each(int tokens, int outputs, F each) {
        const int output = threadIdx.x % kOutputs;
        if (output >= outputs) return;
#pragma unroll 4
        for (int token = threadIdx.x / kOutputs; token < tokens; token += kThreads / kOutputs) each(token, output);
    }

    static __device__ __forceinline__ void run(const GemmArgs& args) {
        EXTERN_SHARED(shared);
        __shared__ unsigned last[1];
        const uint32_t ring = ptx::smem_address(shared);
        const int splits = gridDim.x;
        const int first_token = blockIdx.y * kTokens, first_output = blockIdx.z * kOutputs;
        const int w_valid = min(args.n - first_output, kOutputs), x_valid = min(args.tokens - first_token, kTokens);
        const T* const w = static_cast<const T*>(args.w) + static_cast<size_t>(first_output) * (BY_COLUMNS ? 1 : args.k);
        const T* const x = static_cast<const T*>(args.x) + static_cast<size_t>(first_token) * args.k;
        const int all_tiles = (args.k + kTileK - 1) / kTileK;
        const int from = FOLD ? 0 : static_cast<int>(blockIdx.x) * args.chunk_tiles;
        const int to = FOLD ? all_tiles : min(from + args.chunk_tiles, all_tiles);

        const int warp = threadIdx.x / kWarp, warp_n = warp % WN, warp_t = warp / WN;
        float acc[MI][NI][4] = {};
        float sum[FOLD ? MI : 1][FOLD ? NI : 1][4] = {};

        // A kernel that begins early asks for weights before its turn. They are of the first group then.
        ptx::launch_dependents();
        const auto load_first_weights = [&](int s) {
            if (from + s < to) load_weight_lines(ring + s * kStageBytes, w, w_valid, from + s, args);
        };
        if constexpr (ptx::kBeginsEarly) {
#pragma unroll
            for (int s = 0; s < STAGES - 1; ++s) load_first_weights(s);
        }
        ptx::wait_for_predecessors();
#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) {
            if constexpr (!ptx::kBeginsEarly) load_first_weights(s);
            if (from + s < to) load_token_lines(ring + s * kStageBytes, x, x_valid, from + s, args);
            ptx::cp_async_commit();
        }
        int read = 0, refill = STAGES - 1, left = args.chunk_tiles;
#pragma unroll 1
        for (int tile = from; tile < to; ++tile) {
            ptx::cp_async_wait<STAGES - 2>();
            __syncthreads();  // stage `read` has arrived for all threads, and none reads stage `refill` any more
            const int next = tile + STAGES - 1;
            if (next < to) {
                load_weight_lines(ring + refill * kStageBytes, w, w_valid, next, args);
                load_token_lines(ring + refill * kStageBytes, x, x_valid, next, args);
            }
            ptx::cp_async_commit();
            multiply_stage(acc, ring + read * kStageBytes, warp_n, warp_t);
            read = read + 1 == STAGES ? 0 : read + 1;
            refill = refill + 1 == STAGES ? 0 : refill + 1;
            if constexpr (FOLD) {
                left -= 1;
                if (left == 0 || tile + 1 == to) {
                    const bool first_chunk = tile < args.chunk_tiles;
                    left = args.chunk_tiles;
#pragma unroll
                    for (int i = 0; i < MI; ++i) {
#pragma unroll
                        for (int j = 0; j < NI; ++j) {
#pragma unroll
                            for (int r = 0; r < 4; ++r) {
                                sum[i][j][r] = first_chunk ? acc[i][j][r] : sum[i][j][r] + acc[i][j][r];
                                acc[i][j][r] = 0.0f;
                            }
                        }
                    }
                }
            }
        }
        ptx::cp_async_wait<0>();

        __syncthreads();  // the ring is free: no copy is pending and all warps have read the last stage
        float* const tile = reinterpret_cast<float*>(shared);
        if constexpr (FOLD) {
            to_tile(tile, sum, warp_n, warp_t);
        } else {
            to_tile(tile, acc, warp_n, warp_t);
        }
        __syncthreads();  // the tile is complete
        const size_t corner = static_cast<size_t>(first_token) * args.n + first_output;
        if (FOLD || splits == 1) {
            for_each(x_valid, w_valid, [&](int token, int output) {
                finish(args, corner + static_cast<size_t>(token) * args.n + output, first_output + output,
                       tile[token * kTileRow + output]);
            });
            return;
        }
        const size_t plane = static_cast<size_t>(args.tokens) * args.n;
        float* const mine = args.workspace + blockIdx.x * plane + corner;
        for_each(x_valid, w_valid, [&](int token, int output) {
            mine[static_cast<size_t>(token) * args.n + output] = tile[token * kTileRow + output];
        });
        if (!arrive_last(args.tickets + blockIdx.z * gridDim.y + blockIdx.y, splits, last)) return;
        for_each(x_valid, w_valid, [&](int token, int output) {
            const size_t at = corner + static_cast<size_t>(token) * args.n + output;
            float value = __ldcg(args.workspace + at);
#pragma unroll 4
            for (int s = 1; s < splits; ++s) value += __ldcg(args.workspace + at + s * plane);
            finish(args, at, first_output + output, value);
        });
    }
};

}  // namespace ggro

// Grid: (chunks, or 1 with FOLD; token tiles; output tiles). Block: 32 WN WT. Dynamic shared memory: STAGES stages of
// 128 bytes per output and token of the tile. Tickets: one per (token tile, output tile), zero before and after.
// Workspace: [chunks, tokens, n] f32 if there are several chunks per element and not FOLD.
// Registers are for two blocks a multiprocessor, which shared memory has room for but where chunks are folded: without the number
// ptxas has its own opinion, and spills for sm_120.
#define GEMM(NAME, T, MI, NI, WN, WT, STAGES, FOLD, BY_COLUMNS)                                                      \
    extern "C" __global__ void __launch_bounds__(WN * WT * 32, FOLD ? 1 : 2)                                         \
        NAME(void* y, const void* x, const void* w, const void* bias, const float* before, float* workspace,         \
             unsigned* tickets, int tokens, int n, int k, int chunk_tiles, int output) {                             \
        ggro::Gemm<T, MI, NI, WN, WT, STAGES, FOLD, BY_COLUMNS>::run(                                                \
            {y, x, w, bias, before, workspace, tickets, tokens, n, k, chunk_tiles, output});                         \
    }

// The host's table of tiles (src/cuda/ops/gemm.rs) repeats these numbers. What ends in 99k does the same sums in shorter
// rings: for cards whose blocks have 99 KiB of shared memory, too little for the kernel of the name before it.
#define GEMM_CLASSES(NAME, SUFFIX, T, BY_COLUMNS)                              \
    GEMM(NAME##_stream8_##SUFFIX, T, 1, 1, 4, 1, 6, false, BY_COLUMNS)         \
    GEMM(NAME##_stream16_##SUFFIX, T, 1, 2, 4, 1, 5, false, BY_COLUMNS)        \
    GEMM(NAME##_stream32_##SUFFIX, T, 2, 4, 4, 1, 5, false, BY_COLUMNS)        \
    GEMM(NAME##_stream32_99k_##SUFFIX, T, 2, 4, 4, 1, 4, false, BY_COLUMNS)    \
    GEMM(NAME##_stream64_##SUFFIX, T, 2, 8, 4, 1, 4, false, BY_COLUMNS)        \
    GEMM(NAME##_tile_##SUFFIX, T, 4, 4, 2, 4, 3, false, BY_COLUMNS)            \
    GEMM(NAME##_tile_fold_##SUFFIX, T, 4, 4, 2, 4, 4, true, BY_COLUMNS)        \
    GEMM(NAME##_tile_fold_99k_##SUFFIX, T, 4, 4, 2, 4, 3, true, BY_COLUMNS)
