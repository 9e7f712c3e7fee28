// Products with stored weights on Hopper, forward and backward, for any number of tokens:
//
//   gemm_sm90           y[tokens, n] = x[tokens, k] w[n, k]^T (+ bias[n])
//   gemm_backward_sm90  dx[tokens, k] = dy[tokens, n] w[n, k]
//
// Both are y[t, o] = sum over i of x[t, i] A[o, i] with the terms i in tiles of 64: A is w by its rows, or by its columns.
//
// Contract: x, w and bias 16-bit, sums f32. Rows of x are multiples of 16 bytes. w lies in tiles of 64 x 64 elements,
// [n/64][k/64], 128-byte lines whose 16-byte chunks are swizzled by the line's place among eight; what the matrix lacks is
// zero. A tile is 8 KB in one piece and lies in shared memory as in global memory, so one plain bulk copy brings it, and both
// directions read the same tile: forward lines are outputs, backward they are terms.
//   output: 0 stores f32, 1 stores 16-bit (rounded once), 2 stores f32 on top of `beside`, which may be y itself;
//   3, forward: y[tokens, n/2] 16-bit is the gated activation, where each 16 outputs are the gates of 8 units and then their
//   ups; if `beside` is there, gates and ups are stored, too, 16-bit [tokens, n];
//   4, backward: y[tokens, 2k] 16-bit are the gradients of gates and ups, in groups as in 3, from those of k units and from
//   `beside`, which are the gates and ups. Both as kernels/swiglu.cu has it, of what 1 and 0 would have stored (gated.cuh).
//   For 3, n is a multiple of 16, for 4, k of 8; y and `beside` start at multiples of 4 bytes.
//   5, forward: outputs are query, key and value heads, the columns of queries and keys in pairs (heads.cuh). Queries and keys
//   are turned by their positions; y[tokens, heads padded] are the queries, keys and values go to their slots of `beside`, the
//   pool. As kernels/rope.cu has it without norms, of what 1 would have stored.
// Forward, RMSNorm is part of both ends (norms.cuh). Where x is the u of a norm, sums are multiplied with each token's r / s before
// anything else: from `factor`, or, of one tile of tokens, from the sums of squares, which warps that copy nothing add while others
// multiply; the first block then stores r. And output 2 stores the u of the next norm and the sums of its squares besides.
//
// A block has a warpgroup that copies (one thread of it) and two that multiply, each 64 outputs by N tokens: weights are
// operand A of wgmma, tokens operand B. Copies go through a ring of stages of 64 terms; `full` and `empty` are its barriers,
// and the block meets at others only when it shares a tile. N is the smallest of ten that holds all tokens, so each weight is
// read once for up to 200 of them. Blocks stay, one on each multiprocessor. The unit of work is a chunk of the terms of a
// tile of 128 outputs by N tokens. First all blocks share the chunks of the first `split` tiles, in ranges of the same
// length; whoever has only some chunks of a tile writes their sums to `partial`, and the last to arrive adds them. Then each
// block takes whole tiles. So the last wave is full. No block waits for another. Lest one adds alone while the others have
// nothing to do, a tile's tokens are up to five slices with a ticket each, and blocks store them in different orders and
// arrive after each: of those that end at the same time each is last with some. A block that is late by more than its storing
// takes (0.6 us with 128 tokens) is last with all. An arrival takes until memory has what was stored before, so warps that
// have nothing to copy do it, and those that store go on.
//
// An output element is the ascending chain of k16 steps of each chunk, started at zero, and the chunks added in ascending
// order. Chunks are a function of (outputs, terms) alone, so an element's bits depend on its own row of x and its own line of
// w: not on the other tokens, N, nor who added the chunks. This rests on wgmma giving one column the same bits whatever N is,
// which `ggro kernels test` asks the card.
//
// Bytes: w once per token tile, from L2 but for the first; x once per tile of outputs, from L2. Flops: 2nk per token. Up to
// some 180 tokens the limit is one read of the weights. A multiprocessor has 5 to 10 stages of 16 KB of weights in flight,
// several times what latency times bandwidth asks for (26 KB), and with few tokens those of the next product besides. Beyond, a step of 64 terms takes the tensor core 4 N cycles,
// and shared memory 256 + 3 N at 128 bytes a cycle: 32 KB of weights are copied and read, and tokens copied once and read
// twice. So shared memory is the limit, at 80 % of the tensor core with 128 tokens and 93 % with 200: tiles are as wide as
// registers allow. Aims (not measured): 90 % of the copy rate below, 85 % of the wgmma peak above.
#include "gated.cuh"
#include "heads.cuh"
#include "hopper.cuh"
#include "norms.cuh"

namespace ggro {

constexpr int kGemmThreads = 3 * kWarpgroup;
// Warps of the warpgroup that copies, but for the one whose thread does. They arrive with slices.
constexpr int kArrivers = 3;
// Outputs and terms of a tile of weights.
constexpr int kTile = 64;
constexpr uint32_t kTileBytes = kTile * kTile * 2;
constexpr uint32_t kLineBytes = kTile * 2;
// The ring has at most so many stages, and with its barriers fits into the 227 KB that a block can have. For few tokens it takes less
// than half of a multiprocessor, registers too, so that the next product is there and fills its ring while this one ends.
constexpr int kMostStages = 12;
constexpr int kRingBytes = 224 * 1024;
constexpr int kFewTokens = 32;
constexpr int kFewRingBytes = 108 * 1024;

enum Output : int { kStoreF32 = 0, kStore16 = 1, kAddF32 = 2, kGated = 3, kGatedGradients = 4, kHeads = 5 };

// The norm that x is the u of, and the one that y is the residual stream of. What is not there is null.
struct NormArgs {
    const float* factor;   // [tokens], r / s; or
    const float* squares;  // [tokens, groups] of groups of 16 columns, with
    const float* before;   // [tokens], whose power of two s is, also that of `next`
    float* inverse;        // [tokens], r
    const void* next_weight;  // [outputs]
    void* next;               // [tokens, outputs], its u
    float* next_squares;      // [tokens, outputs / 16]
    const float* next_before;  // [tokens]
    int groups, columns;
    float eps;
    int unused;
};

// `outputs` and `terms` are those of the direction.
struct GemmArgs {
    void* y;
    const void* w;
    const void* bias;
    void* beside;       // what is added to, gates and ups, or the pool of keys and values
    float* partial;     // [split][chunks][2 warpgroups][N / 8][128 threads][4]
    unsigned* tickets;  // [split][slices], zero before and after
    int tokens, outputs, terms, chunks, split, output;
    HeadArgs heads;  // of output 5
    NormArgs norm;
};

// Some chunks of a tile of outputs by tokens.
struct Work {
    int tile, chunk, end;
};

// The work of this block, in the same order for those who copy and those who multiply.
class Schedule {
   public:
    __device__ __forceinline__ explicit Schedule(const GemmArgs& args) : whole_(args.split + blockIdx.x) {
        // As many chunks for each block, so that those which share a tile end at the same time; the last may have none.
        const int shared = args.split * args.chunks, blocks = gridDim.x, each = (shared + blocks - 1) / blocks;
        at_ = min(shared, each * static_cast<int>(blockIdx.x));
        end_ = min(shared, at_ + each);
    }

    // False when there is none left of the launch's tiles.
    __device__ __forceinline__ bool next(Work& work, const GemmArgs& args, int tiles) {
        if (at_ < end_) {
            work.tile = at_ / args.chunks;
            work.chunk = at_ - work.tile * args.chunks;
            work.end = min(args.chunks, work.chunk + end_ - at_);
            at_ += work.end - work.chunk;
            return true;
        }
        if (whole_ >= tiles) return false;
        work = {whole_, 0, args.chunks};
        whole_ += gridDim.x;
        return true;
    }

   private:
    int at_, end_, whole_;
};

// N tokens. BY_COLUMNS: outputs are the columns of w and terms its rows.
template <typename T, int N, bool BY_COLUMNS>
struct Gemm {
    static constexpr uint32_t kTokenBytes = N * kLineBytes;
    static constexpr uint32_t kStageBytes = 2 * kTileBytes + kTokenBytes;
    static constexpr bool kFew = N <= kFewTokens;
    static constexpr int kFits = (kFew ? kFewRingBytes : kRingBytes) / kStageBytes;
    static constexpr int kStages = kFits < kMostStages ? kFits : kMostStages;
    // Of a thread: at its start, by the bounds of the launch, 80 where tokens are few, and else 168.
    static constexpr int kCopierRegisters = 48, kRegisters = kFew ? 96 : 224;
    static constexpr int kSums = N / 2;  // of a thread
    // The tokens are some slices, which are stored, added and finished one after the other.
    static constexpr int kSlices = N <= 24 ? 1 : N <= 64 ? N / 16 : N % 32 == 0 ? 4 : 5;
    static constexpr int kSlice = N / kSlices;
    static constexpr int kSliceSums = kSlice / 2;  // of a thread
    static_assert(kSlice % 8 == 0 && kSlice * kSlices == N, "slices are whole groups of eight tokens");
    static_assert(N % 8 == 0 && kTokenBytes % 1024 == 0, "stages start at multiples of the swizzle's pattern");

    struct Ring {
        uint32_t stages, full, empty, factors;  // addresses in shared memory; the last one is a barrier of its own

        __device__ __forceinline__ uint32_t stage(int index) const { return stages + index * kStageBytes; }
    };

    // How the problem is cut. Worked out where it is asked for: sums leave no registers to keep it in.
    struct Problem {
        const GemmArgs& args;

        __device__ __forceinline__ int term_tiles() const { return (args.terms + kTile - 1) / kTile; }
        __device__ __forceinline__ int output_tiles() const { return (args.outputs + kTile - 1) / kTile; }
        __device__ __forceinline__ int token_tiles() const { return (args.tokens + N - 1) / N; }
        // Tiles of 128 outputs by N tokens.
        __device__ __forceinline__ int tiles() const { return (output_tiles() + 1) / 2 * token_tiles(); }
        // Neighbouring tiles have the same weights.
        __device__ __forceinline__ int first_output_tile(const Work& work) const { return work.tile / token_tiles() * 2; }
        __device__ __forceinline__ int first_token(const Work& work) const { return work.tile % token_tiles() * N; }
        __device__ __forceinline__ bool whole(const Work& work) const { return work.end - work.chunk == args.chunks; }
        // How many slices have tokens.
        __device__ __forceinline__ int slices(const Work& work) const {
            return kSlices == 1 ? 1 : min(kSlices, (args.tokens - first_token(work) + kSlice - 1) / kSlice);
        }
        // Which slice a block stores as its `i`th. Each that has chunks of a tile begins with another one, so if all store at the
        // same time, each is the last to arrive with some.
        __device__ __forceinline__ int slice(const Work& work, int i) const {
            const int count = slices(work), slice = work.chunk * count / args.chunks + i;
            return slice < count ? slice : slice - count;
        }
        // Where a chunk begins, in tiles of terms.
        __device__ __forceinline__ int begin(int chunk) const {
            return static_cast<int>(static_cast<int64_t>(chunk) * term_tiles() / args.chunks);
        }
    };

    // Asks for a stage's weights, and announces all that the stage is to hold.
    static __device__ __forceinline__ void copy_weights(const GemmArgs& args, const Problem& problem, const Ring& ring,
                                                        int index, int output_tile, int term) {
        const uint32_t stage = ring.stage(index), full = ring.full + 8 * index;
        const bool both = output_tile + 1 < problem.output_tiles();
        ptx::mbarrier_expect_tx(full, (both ? 2 : 1) * kTileBytes + kTokenBytes);
        const auto weights = [&](int output) {
            const size_t tile = BY_COLUMNS ? static_cast<size_t>(term) * problem.output_tiles() + output
                                           : static_cast<size_t>(output) * problem.term_tiles() + term;
            return static_cast<const char*>(args.w) + tile * kTileBytes;
        };
        if (BY_COLUMNS && both) {
            ptx::bulk_copy(stage, weights(output_tile), 2 * kTileBytes, full);
        } else {
            ptx::bulk_copy(stage, weights(output_tile), kTileBytes, full);
            if (both) ptx::bulk_copy(stage + kTileBytes, weights(output_tile + 1), kTileBytes, full);
        }
    }

    // Fills the ring with weights, which are there before the kernels before this one have ended. Returns for how many stages.
    static __device__ __forceinline__ int copy_ahead(const GemmArgs& args, const Problem& problem, const Ring& ring) {
        Schedule schedule(args);
        int stages = 0;
        for (Work work; stages < kStages && schedule.next(work, args, problem.tiles());) {
            const int output_tile = problem.first_output_tile(work), end = problem.begin(work.end);
#pragma unroll 1
            for (int term = problem.begin(work.chunk); term < end && stages < kStages; ++term, ++stages) {
                copy_weights(args, problem, ring, stages, output_tile, term);
            }
        }
        return stages;
    }

    // One thread fills the ring with what the block's work needs, as soon as there is room.
    static __device__ __forceinline__ void copy(const GemmArgs& args, const Problem& problem, const Ring& ring,
                                                const void* tokens) {
        int ahead = copy_ahead(args, problem, ring);
        ptx::wait_for_predecessors();
        Schedule schedule(args);
        Place place;
        for (Work work; schedule.next(work, args, problem.tiles());) {
            const int output_tile = problem.first_output_tile(work), first_token = problem.first_token(work);
            const int end = problem.begin(work.end);
#pragma unroll 1
            for (int term = problem.begin(work.chunk); term < end; ++term) {
                if (--ahead < 0) {
                    ptx::mbarrier_wait(ring.empty + 8 * place.stage, place.parity ^ 1);
                    copy_weights(args, problem, ring, place.stage, output_tile, term);
                }
                ptx::tensor_copy(ring.stage(place.stage) + 2 * kTileBytes, tokens, term * kTile, first_token,
                                 ring.full + 8 * place.stage);
                place.template advance<kStages>();
            }
        }
    }

    static __device__ __forceinline__ void product(float (&sums)[kSums], uint64_t a, uint64_t b) {
        if constexpr (std::is_same_v<T, __half>) {
            ptx::Wgmma<N>::template f16<BY_COLUMNS>(sums, a, b);
        } else {
            ptx::Wgmma<N>::template bf16<BY_COLUMNS>(sums, a, b);
        }
    }

    // Gives a stage back: each of the eight warps that multiply says so.
    static __device__ __forceinline__ void release(const Ring& ring, int stage) {
        if (threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(ring.empty + 8 * stage);
    }

    // The sums of one chunk, stage after stage. A stage is given back when the products of the next are on their way.
    static __device__ __forceinline__ void multiply(float (&sums)[kSums], const Ring& ring, Place& place, int group,
                                                    int steps) {
        constexpr uint32_t kStep = BY_COLUMNS ? 16 * kLineBytes : 16 * 2;  // bytes of 16 terms of the weights
#pragma unroll
        for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const uint32_t stage = ring.stage(place.stage);
            ptx::mbarrier_wait(ring.full + 8 * place.stage, place.parity);
            const uint64_t a = ptx::swizzled_descriptor(stage + group * kTileBytes);
            const uint64_t b = ptx::swizzled_descriptor(stage + 2 * kTileBytes);
            ptx::wgmma_fence();
#pragma unroll
            for (int k = 0; k < kTile / 16; ++k) product(sums, a + (k * kStep >> 4), b + (k * 32 >> 4));
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();
            if (step > 0) release(ring, place.template last<kStages>());
            place.template advance<kStages>();
        }
        ptx::wgmma_wait<0>();
        if (steps > 0) release(ring, place.template last<kStages>());
    }

    // Goes through the stages of a tile whose outputs do not exist for this warpgroup.
    static __device__ __forceinline__ void skip(const Ring& ring, Place& place, int steps) {
        for (int step = 0; step < steps; ++step) {
            ptx::mbarrier_wait(ring.full + 8 * place.stage, place.parity);
            __syncwarp();  // all lanes have seen this phase before it can pass
            release(ring, place.stage);
            place.template advance<kStages>();
        }
    }

    // A thread has outputs g and g + 8 of its warp's 16 and tokens 2 t and 2 t + 1 of every eight. With the neighbour that has the
    // next output it exchanges half, so that each has two outputs of one token. This and all that follows takes the sums of one slice
    // from the front.
    static __device__ __forceinline__ void pair_up(float (&sums)[kSums]) {
        const bool odd = threadIdx.x / 4 % 2 != 0;
#pragma unroll
        for (int i = 0; i < kSliceSums; i += 2) {
            const float theirs = __shfl_xor_sync(kAllLanes, odd ? sums[i] : sums[i + 1], 4);
            sums[i] = odd ? theirs : sums[i];
            sums[i + 1] = odd ? sums[i + 1] : theirs;
        }
    }

    // What a thread finishes: pairs of neighbouring outputs, the second pair eight further, of every eighth token.
    struct Corner {
        int output, tokens;  // of the first pair, and how many tokens there are from its own on
        size_t at;           // of its first element in y
        float bias[2][2];

        __device__ __forceinline__ Corner(const GemmArgs& args, int first_output, int first_token) {
            const int lane = threadIdx.x % kWarp, odd = lane / 4 % 2;
            const int token = first_token + lane % 4 * 2 + odd;
            output = first_output + threadIdx.x % kWarpgroup / kWarp * 16 + lane / 4 - odd;
            tokens = args.tokens - token;
            at = static_cast<size_t>(token) * args.outputs + output;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int o = output + i / 2 * 8 + i % 2;
                const bool added = args.bias != nullptr && o < args.outputs;
                bias[i / 2][i % 2] = added ? to_float(static_cast<const T*>(args.bias)[o]) : 0.0f;
            }
        }

        // To the tokens of the next slice.
        __device__ __forceinline__ void advance(const GemmArgs& args) {
            tokens -= kSlice;
            at += static_cast<size_t>(kSlice) * args.outputs;
        }
    };

    // The rows' r / s, four rows of a warp at once: their squares are on their way together, and lane i finishes row i.
    static __device__ __forceinline__ void find_factors(const GemmArgs& args, const Ring& ring, float* factors) {
        constexpr int kTogether = 4;
        const NormArgs& norm = args.norm;
        const int warp = threadIdx.x / kWarp - 1, lane = threadIdx.x % kWarp;
#pragma unroll 1
        for (int first = warp * kTogether; first < args.tokens; first += kArrivers * kTogether) {
            const int token = min(first + lane % kTogether, args.tokens - 1);
            const float before = __ldcg(norm.before + token);
            float sums[kTogether] = {};
#pragma unroll 1
            for (int at = 4 * lane; at < norm.groups; at += 4 * kWarp) {
                float4 four[kTogether];
#pragma unroll
                for (int i = 0; i < kTogether; ++i) {
                    const size_t row = min(first + i, args.tokens - 1);
                    four[i] = __ldcg(reinterpret_cast<const float4*>(norm.squares + row * norm.groups + at));
                }
#pragma unroll
                for (int i = 0; i < kTogether; ++i) sums[i] = add_four(sums[i], four[i]);
            }
            float squares = 0.0f;
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
                const float sum = warp_sum(sums[i]);
                if (lane % kTogether == i) squares = sum;
            }
            const float r = inverse_norm(squares, norm.columns, norm.eps), factor = norm_factor(r, before);
            if (lane < kTogether && first + lane < args.tokens) {
                factors[token] = factor;
                if (blockIdx.x == 0) norm.inverse[token] = r;
            }
        }
        __syncwarp();  // all of the warp's factors are stored
        if (lane == 0) ptx::mbarrier_arrive(ring.factors);
    }

    // Multiplies the sums of a slice with their tokens' factors.
    static __device__ __forceinline__ void apply_norm(const GemmArgs& args, float (&sums)[kSums], const Corner& corner,
                                                      const Ring& ring, const float* factors) {
        const NormArgs& norm = args.norm;
        const int token = args.tokens - corner.tokens;
        float of[kSlice / 8] = {};
        if (norm.squares != nullptr) {
            ptx::mbarrier_wait(ring.factors, 0);
#pragma unroll
            for (int j = 0; j < kSlice / 8; ++j) {
                if (8 * j < corner.tokens) of[j] = factors[token + 8 * j];
            }
        } else {
#pragma unroll
            for (int j = 0; j < kSlice / 8; ++j) {
                if (8 * j < corner.tokens) of[j] = __ldcg(norm.factor + token + 8 * j);
            }
        }
#pragma unroll
        for (int j = 0; j < kSlice / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[4 * j + i] = __fmul_rn(sums[4 * j + i], of[j]);
        }
    }

    // Of the residual stream that a thread has just made, eight tokens further each: the u of the next norm, and with the three other
    // threads of its group of 16 outputs the sum of the squares. All threads of a warp call.
    static __device__ __forceinline__ void store_next(const GemmArgs& args, const Corner& corner, int j,
                                                      const float (&x)[2][2], const float (&weight)[2][2],
                                                      float s) {
        const NormArgs& norm = args.norm;
        float sum = chain_of_squares(x[0][0], x[0][1], x[1][0], x[1][1]);
        sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 8));
        sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 16));
        if (corner.output >= args.outputs || 8 * j >= corner.tokens) return;
        const size_t token = args.tokens - corner.tokens + 8 * j;
        T* const to = static_cast<T*>(norm.next) + token * args.outputs + corner.output;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            *reinterpret_cast<uint32_t*>(to + 8 * row) =
                Mma<T>::pack(x[row][0] * s * weight[row][0], x[row][1] * s * weight[row][1]);
        }
        if (threadIdx.x % kWarp < 8) norm.next_squares[(token * args.outputs + corner.output) / kNormGroup] = sum;
    }

    // Adds or stores pairs that are aligned, and so are there as a whole or not at all.
    template <int OUTPUT>
    static __device__ __forceinline__ void store_pairs(const GemmArgs& args, const float (&sums)[kSums],
                                                       const Corner& corner) {
        using Y = std::conditional_t<OUTPUT == kStore16, T, float>;
        const size_t step = static_cast<size_t>(8) * args.outputs;
        Y* at = static_cast<Y*>(args.y) + corner.at;
        const int tokens[2] = {corner.output < args.outputs ? corner.tokens : 0,
                               corner.output + 8 < args.outputs ? corner.tokens : 0};
        const bool normed = OUTPUT == kAddF32 && args.norm.next != nullptr;
        float weight[2][2] = {};
        if (normed && corner.output < args.outputs) {
            const T* const weights = static_cast<const T*>(args.norm.next_weight) + corner.output;
#pragma unroll
            for (int i = 0; i < 4; ++i) weight[i / 2][i % 2] = to_float(weights[i / 2 * 8 + i % 2]);
        }
        // The old values of a slice are read together. Zero first: what some threads alone set would take registers in every loop.
        float2 before[kSlice / 8][2] = {};
        float scale[kSlice / 8] = {};  // of the next norm
        if constexpr (OUTPUT == kAddF32) {
            const float* old = static_cast<const float*>(args.beside) + corner.at;
#pragma unroll
            for (int j = 0; j < kSlice / 8; ++j, old += step) {
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    if (8 * j < tokens[row]) before[j][row] = *reinterpret_cast<const float2*>(old + 8 * row);
                }
                if (normed && 8 * j < corner.tokens) {
                    scale[j] = norm_scale(__ldcg(args.norm.next_before + (args.tokens - corner.tokens) + 8 * j));
                }
            }
        }
#pragma unroll
        for (int j = 0; j < kSlice / 8; ++j, at += step) {
            float x[2][2] = {};
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                if (8 * j >= tokens[row]) continue;
                float low = sums[4 * j + 2 * row] + corner.bias[row][0];
                float high = sums[4 * j + 2 * row + 1] + corner.bias[row][1];
                if constexpr (OUTPUT == kStore16) {
                    *reinterpret_cast<uint32_t*>(at + 8 * row) = Mma<T>::pack(low, high);
                } else {
                    if constexpr (OUTPUT == kAddF32) low = before[j][row].x + low, high = before[j][row].y + high;
                    *reinterpret_cast<float2*>(at + 8 * row) = make_float2(low, high);
                    x[row][0] = low, x[row][1] = high;
                }
            }
            if constexpr (OUTPUT == kAddF32 && !BY_COLUMNS) {
                if (normed) store_next(args, corner, j, x, weight, scale[j]);
            }
        }
    }

    // The same one by one, for rows of y that are no whole pairs: a head with an odd number of outputs.
    static __device__ __forceinline__ void store_singles(const GemmArgs& args, const float (&sums)[kSums],
                                                         const Corner& corner) {
        const int size = args.output == kStore16 ? sizeof(T) : sizeof(float);
        char* at = static_cast<char*>(args.y) + corner.at * size;
        const size_t step = static_cast<size_t>(8) * args.outputs * size;
#pragma unroll
        for (int j = 0; j < kSlice / 8; ++j, at += step) {
            if (8 * j >= corner.tokens) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (corner.output + i / 2 * 8 + i % 2 >= args.outputs) continue;
                char* const to = at + (i / 2 * 8 + i % 2) * size;
                const float value = sums[4 * j + i] + corner.bias[i / 2][i % 2];
                if (args.output == kStore16) {
                    *reinterpret_cast<T*>(to) = from_float<T>(value);
                } else if (args.output == kStoreF32) {
                    *reinterpret_cast<float*>(to) = value;
                } else {
                    const size_t index = (to - static_cast<char*>(args.y)) / sizeof(float);
                    *reinterpret_cast<float*>(to) = static_cast<const float*>(args.beside)[index] + value;
                }
            }
        }
    }

    // A word of two numbers in the storage type.
    static __device__ __forceinline__ void split(uint32_t word, T& low, T& high) {
        T pair[2];
        __builtin_memcpy(pair, &word, sizeof(word));
        low = pair[0], high = pair[1];
    }
    static __device__ __forceinline__ uint32_t join(T low, T high) {
        const T pair[2] = {low, high};
        uint32_t word;
        __builtin_memcpy(&word, pair, sizeof(word));
        return word;
    }

    // Brings what belongs to the next eight tokens to the front. These loops are not unrolled: exponentials are much code.
    template <int BY, typename X, int COUNT>
    static __device__ __forceinline__ void next_tokens(X (&x)[COUNT]) {
#pragma unroll
        for (int i = 0; i + BY < (COUNT < kSliceSums ? COUNT : kSliceSums); ++i) x[i] = x[i + BY];
    }

    // A thread's first pair are the gates of two units, and its second one are their ups.
    static __device__ __forceinline__ void store_gated(const GemmArgs& args, float (&sums)[kSums],
                                                       const Corner& corner) {
        if (corner.output >= args.outputs) return;
        const size_t step = static_cast<size_t>(8) * args.outputs;
        const int unit = corner.output / 16 * 8 + corner.output % 8;
        T* at = static_cast<T*>(args.y) + (corner.at - corner.output) / 2 + unit;
        T* both = static_cast<T*>(args.beside) + corner.at;
#pragma unroll 1
        for (int left = min(corner.tokens, kSlice); left > 0; left -= 8, at += step / 2, both += step) {
            const uint32_t gates = Mma<T>::pack(sums[0] + corner.bias[0][0], sums[1] + corner.bias[0][1]);
            const uint32_t ups = Mma<T>::pack(sums[2] + corner.bias[1][0], sums[3] + corner.bias[1][1]);
            if (args.beside != nullptr) {
                *reinterpret_cast<uint32_t*>(both) = gates;
                *reinterpret_cast<uint32_t*>(both + 8) = ups;
            }
            T gate[2], up[2];
            split(gates, gate[0], gate[1]);
            split(ups, up[0], up[1]);
            *reinterpret_cast<uint32_t*>(at) = join(gated(gate[0], up[0]), gated(gate[1], up[1]));
            next_tokens<4>(sums);
        }
    }

    // A thread has gradients of two units, and of two that are eight further. Gates and ups of a unit's eight are 16 numbers.
    static __device__ __forceinline__ void store_gated_gradients(const GemmArgs& args, float (&sums)[kSums],
                                                                 const Corner& corner) {
        const size_t step = static_cast<size_t>(16) * args.outputs;
        const size_t first = 2 * (corner.at - corner.output) + corner.output / 8 * 16 + corner.output % 8;
        const bool there[2] = {corner.output < args.outputs, corner.output + 8 < args.outputs};
        // Those of a slice are read together: gates and ups of the first two units, then of the others.
        uint32_t words[kSliceSums] = {};
        const T* from = static_cast<const T*>(args.beside) + first;
#pragma unroll
        for (int j = 0; j < kSlice / 8; ++j, from += step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (8 * j < corner.tokens && there[i / 2]) {
                    words[4 * j + i] = *reinterpret_cast<const uint32_t*>(from + 8 * i);
                }
            }
        }
        T* to = static_cast<T*>(args.y) + first;
#pragma unroll 1
        for (int left = min(corner.tokens, kSlice); left > 0; left -= 8, to += step) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                if (!there[row]) continue;
                T gate[2], up[2], d_gate[2], d_up[2];
                split(words[2 * row], gate[0], gate[1]);
                split(words[2 * row + 1], up[0], up[1]);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float d_act = sums[2 * row + i] + corner.bias[row][i];
                    gated_gradients(d_gate[i], d_up[i], d_act, gate[i], up[i]);
                }
                *reinterpret_cast<uint32_t*>(to + 16 * row) = join(d_gate[0], d_gate[1]);
                *reinterpret_cast<uint32_t*>(to + 16 * row + 8) = join(d_up[0], d_up[1]);
            }
            next_tokens<4>(sums);
            next_tokens<4>(words);
        }
    }

    // Cosines and sines of a pair and the next one, at a position.
    struct Turns {
        float cos[2], sin[2];

        __device__ __forceinline__ Turns(const HeadArgs& heads, unsigned position, int pair) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const bool known = position < heads.table_rows;
                const bool real = known && pair + i < heads.half;
                const float2 entry = real ? __ldg(heads.table + static_cast<size_t>(position) * heads.half + pair + i)
                                          : make_float2(known ? 1.0f : NAN, 0.0f);
                cos[i] = entry.x, sin[i] = entry.y;
            }
        }
    };

    // A pair and the next one: those that do not exist stand for two columns of padding each.
    static __device__ __forceinline__ void store_turned(T* head, int half, int pair, const T (&a)[2], const T (&b)[2]) {
        if (half % 2 == 0 && pair < half) {
            *reinterpret_cast<uint32_t*>(head + pair) = join(a[0], a[1]);
            *reinterpret_cast<uint32_t*>(head + half + pair) = join(b[0], b[1]);
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (pair + i < half) {
                head[pair + i] = a[i];
                head[half + pair + i] = b[i];
            } else {
                head[2 * (pair + i)] = head[2 * (pair + i) + 1] = from_float<T>(0.0f);
            }
        }
    }

    // A thread's first pair of outputs are elements of a head's first half, and its second one are their partners; of a value head
    // they are its elements as they come.
    static __device__ __forceinline__ void store_heads(const GemmArgs& args, float (&sums)[kSums], const Corner& corner) {
        if (corner.output >= args.outputs || corner.tokens <= 0) return;
        const HeadArgs& heads = args.heads;
        const int head = corner.output / heads.padded, column = corner.output % heads.padded;
        const int pair = column / (2 * kPairGroup) * kPairGroup + column % kPairGroup;
        const bool query = head < heads.heads, turned = head < heads.heads + heads.kv_heads;
        int token = args.tokens - corner.tokens, left = min(corner.tokens, kSlice);
        // What the next tokens need is on its way while one is finished: positions two ahead, cosines and sines one.
        const auto position = [&](int ahead) { return turned && ahead < left ? heads.positions[token + ahead] : 0u; };
        const auto slot = [&](int ahead) { return !query && ahead < left ? heads.slots[token + ahead] : 0u; };
        Turns turns(heads, position(0), turned ? pair : heads.half);
        unsigned next_position = position(8), here = slot(0);
#pragma unroll 1
        for (; left > 0; left -= 8, token += 8) {
            const Turns next_turns(heads, next_position, turned ? pair : heads.half);
            const unsigned next_slot = slot(8);
            next_position = position(16);
            T a[2], b[2];
            split(Mma<T>::pack(sums[0] + corner.bias[0][0], sums[1] + corner.bias[0][1]), a[0], a[1]);
            split(Mma<T>::pack(sums[2] + corner.bias[1][0], sums[3] + corner.bias[1][1]), b[0], b[1]);
            T* to = nullptr;
            if (query) {
                to = static_cast<T*>(args.y) + (static_cast<size_t>(token) * heads.heads + head) * heads.padded;
            } else if (here < heads.pool_slots) {
                to = kept_head(static_cast<T*>(args.beside), here, head - heads.heads, heads.block_stride,
                               heads.layer_offset, heads.padded);
            }
            if (to != nullptr && turned) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float first = to_float(a[i]), second = to_float(b[i]);
                    turn(first, second, turns.cos[i], turns.sin[i]);
                    a[i] = from_float<T>(first), b[i] = from_float<T>(second);
                }
                store_turned(to, heads.half, pair, a, b);
            } else if (to != nullptr) {
                // Padding is zero whatever the product made of it.
                *reinterpret_cast<uint32_t*>(to + column) = column < 2 * heads.half ? join(a[0], a[1]) : 0;
                *reinterpret_cast<uint32_t*>(to + column + 8) = column + 8 < 2 * heads.half ? join(b[0], b[1]) : 0;
            }
            turns = next_turns, here = next_slot;
            next_tokens<4>(sums);
        }
    }

    static __device__ __forceinline__ void finish(const GemmArgs& args, float (&sums)[kSums], const Corner& corner,
                                                  const Ring& ring, const float* factors) {
        pair_up(sums);
        if constexpr (!BY_COLUMNS) {
            if (args.norm.squares != nullptr || args.norm.factor != nullptr) apply_norm(args, sums, corner, ring, factors);
        }
        if constexpr (BY_COLUMNS) {
            if (args.output == kGatedGradients) return store_gated_gradients(args, sums, corner);
        } else {
            if (args.output == kGated) return store_gated(args, sums, corner);
            if (args.output == kHeads) return store_heads(args, sums, corner);
        }
        if (args.outputs % 2 != 0 || !aligned(args.y, 8) || !aligned(args.beside, 8)) {
            store_singles(args, sums, corner);
        } else if (args.output == kStore16) {
            store_pairs<kStore16>(args, sums, corner);
        } else if (args.output == kStoreF32) {
            store_pairs<kStoreF32>(args, sums, corner);
        } else {
            store_pairs<kAddF32>(args, sums, corner);
        }
    }

    // Brings the sums of the next slice to the front: registers have no index at run time.
    static __device__ __forceinline__ void shift(float (&sums)[kSums]) {
#pragma unroll
        for (int i = 0; i + kSliceSums < kSums; ++i) sums[i] = sums[i + kSliceSums];
    }

    // Where a warpgroup's sums of a chunk of a split tile lie; this thread's first four.
    static __device__ __forceinline__ float4* partial(const GemmArgs& args, int tile, int chunk, int group) {
        const size_t slot = (static_cast<size_t>(tile) * args.chunks + chunk) * 2 + group;
        return reinterpret_cast<float4*>(args.partial) + slot * (N / 8 * kWarpgroup) + threadIdx.x % kWarpgroup;
    }

    // Stores a chunk's sums of a slice.
    static __device__ __forceinline__ void store_sums(float4* to, const float (&sums)[kSums], int slice) {
#pragma unroll
        for (int s = 0; s < kSlices; ++s) {
            if (slice != s) continue;
#pragma unroll
            for (int i = s * kSlice / 8; i < (s + 1) * kSlice / 8; ++i) {
                to[i * kWarpgroup] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
            }
        }
    }

    // Adds the sums of all chunks of a slice in ascending order.
    static __device__ __forceinline__ void add(const GemmArgs& args, float (&total)[kSums], int tile, int slice,
                                               int group) {
        constexpr int kTogether = kSlice < 32 ? 4 : 2;  // chunks whose sums are on their way from L2 together, besides the first
        const auto read = [&](float (&into)[kSliceSums], int chunk) {
            const float4* const from = partial(args, tile, chunk, group) + slice * (kSlice / 8 * kWarpgroup);
#pragma unroll
            for (int i = 0; i < kSliceSums; i += 4) {
                const float4 four = __ldcg(from + i / 4 * kWarpgroup);
                into[i] = four.x, into[i + 1] = four.y, into[i + 2] = four.z, into[i + 3] = four.w;
            }
        };
        float sums[kSliceSums];
        read(sums, 0);
#pragma unroll 1
        for (int chunk = 1; chunk < args.chunks; chunk += kTogether) {
            float more[kTogether][kSliceSums] = {};  // as `before` above
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
                if (chunk + i < args.chunks) read(more[i], chunk + i);
            }
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
                if (chunk + i >= args.chunks) continue;
#pragma unroll
                for (int j = 0; j < kSliceSums; ++j) sums[j] = sums[j] + more[i][j];
            }
        }
#pragma unroll
        for (int i = 0; i < kSliceSums; ++i) total[i] = sums[i];
    }

    // Both warpgroups meet when the block's last sums of its `i`th slice of a tile are stored; unless it is the last slice, with the
    // warp that then says so.
    static __device__ __forceinline__ void meet_stored(int i, int slices) {
        ptx::named_barrier(1 + i, 2 * kWarpgroup + (i + 1 < slices ? kWarp : 0));
    }

    // All meet when it is known which slices this block is to finish.
    static __device__ __forceinline__ void meet_known() {
        ptx::named_barrier(1 + kSlices, 2 * kWarpgroup + (kSlices > 1 ? kArrivers * kWarp : 0));
    }

    // One thread, after its warp has met with those who stored a slice: was the tile waiting for nothing but these chunks? Then this
    // block finishes the slice, and what others wrote is visible after the block has met again.
    static __device__ __forceinline__ void arrive(const GemmArgs& args, const Work& work, int slice, unsigned* flags) {
        unsigned* const ticket = args.tickets + work.tile * kSlices + slice;
        const unsigned count = work.end - work.chunk;
        const bool last = ptx::atom_add_acq_rel(ticket, count) + count == args.chunks;
        if (last) *ticket = 0;
        flags[slice] = last;
    }

    // One of the warps that have nothing to copy. Together they arrive with all slices but the last that the block stores of a tile.
    static __device__ __forceinline__ void arrive_in_turn(const GemmArgs& args, const Problem& problem, unsigned* flags) {
        Schedule schedule(args);
        for (Work work; schedule.next(work, args, problem.tiles());) {
            if (problem.whole(work)) continue;
            const int slices = problem.slices(work);
#pragma unroll 1
            for (int i = threadIdx.x / kWarp - 1; i + 1 < slices; i += kArrivers) {
                meet_stored(i, slices);
                if (threadIdx.x % kWarp == 0) arrive(args, work, problem.slice(work, i), flags);
            }
            meet_known();
        }
    }

    // A warpgroup multiplies what the ring brings, 64 of the 128 outputs.
    static __device__ __forceinline__ void compute(const GemmArgs& args, const Problem& problem, const Ring& ring,
                                                   int group, unsigned* flags, const float* factors) {
        Schedule schedule(args);
        Place place;
        for (Work work; schedule.next(work, args, problem.tiles());) {
            const int output_tile = problem.first_output_tile(work) + group;
            const bool whole = problem.whole(work);
            const int slices = problem.slices(work);
            if (output_tile >= problem.output_tiles()) {
                skip(ring, place, problem.begin(work.end) - problem.begin(work.chunk));
                if (whole) continue;
                for (int i = 0; i < slices; ++i) meet_stored(i, slices);
                meet_known();
                continue;
            }
            float sums[kSums], total[kSums];
#pragma unroll 1
            for (int chunk = work.chunk; chunk < work.end; ++chunk) {
                multiply(sums, ring, place, group, problem.begin(chunk + 1) - problem.begin(chunk));
                if (whole) {
#pragma unroll
                    for (int i = 0; i < kSums; ++i) total[i] = chunk == 0 ? sums[i] : total[i] + sums[i];
                } else {
#pragma unroll 1
                    for (int i = 0; i < slices; ++i) {
                        store_sums(partial(args, work.tile, chunk, group), sums, problem.slice(work, i));
                        if (chunk + 1 == work.end) meet_stored(i, slices);
                    }
                }
            }
            if (!whole) {
                if (threadIdx.x == kWarpgroup) arrive(args, work, problem.slice(work, slices - 1), flags);
                meet_known();
            }
            Corner corner(args, output_tile * kTile, problem.first_token(work));
#pragma unroll 1
            for (int slice = 0; slice < slices; ++slice) {
                if (slice > 0) corner.advance(args);
                if (!whole) {
                    if (flags[slice] == 0) continue;
                    add(args, total, work.tile, slice, group);
                } else if (slice > 0) {
                    shift(total);
                }
                finish(args, total, corner, ring, factors);
            }
        }
    }

    static __device__ __forceinline__ void run(const GemmArgs& args, const void* tokens) {
        EXTERN_SHARED(shared);
        __shared__ uint64_t barriers[2 * kStages + 1];
        __shared__ unsigned flags[kSlices];
        __shared__ float factors[BY_COLUMNS ? 1 : N];
        const uint32_t full = ptx::smem_address(barriers);
        // The swizzle's pattern repeats after 1024 bytes.
        const Ring ring = {(ptx::smem_address(shared) + 1023) & ~1023u, full, full + 8 * kStages,
                           full + 16 * kStages};
        const Problem problem = {args};
        ptx::launch_dependents();
        if (threadIdx.x == 0) {
            for (int i = 0; i < kStages; ++i) {
                ptx::mbarrier_init(ring.full + 8 * i, 1);
                ptx::mbarrier_init(ring.empty + 8 * i, 2 * kWarpgroup / kWarp);
            }
            ptx::mbarrier_init(ring.factors, kArrivers);
            ptx::fence_barrier_init();
        }
        __syncthreads();  // the barriers are there
        const int warpgroup = threadIdx.x / kWarpgroup;
        if (warpgroup == 0) {
            ptx::fewer_registers<kCopierRegisters>();
            if (threadIdx.x == 0) copy(args, problem, ring, tokens);
            if ((kSlices > 1 || !BY_COLUMNS) && threadIdx.x >= kWarp) {
                ptx::wait_for_predecessors();
                if constexpr (!BY_COLUMNS) {
                    if (args.norm.squares != nullptr) find_factors(args, ring, factors);
                }
                if constexpr (kSlices > 1) arrive_in_turn(args, problem, flags);
            }
        } else {
            ptx::more_registers<kRegisters>();
            ptx::wait_for_predecessors();  // sums, tickets and what is added to are theirs, too
            compute(args, problem, ring, warpgroup - 1, flags, factors);
        }
    }
};

}  // namespace ggro

// A box of x is N rows of 64 elements, lines swizzled. Grid: a block for each multiprocessor at most. Block: 384. Dynamic
// shared memory: the stages of the ring, 16 KB and 128 bytes a token each, and 1 KB.
#define GEMM(NAME, T, N, BY_COLUMNS)                                                                                  \
    extern "C" __global__ void __launch_bounds__(ggro::kGemmThreads, N <= ggro::kFewTokens ? 2 : 1)                      \
        NAME(const __grid_constant__ ggro::TensorMap x, void* y, const void* w, const void* bias,                     \
             void* beside, float* partial, unsigned* tickets, int tokens, int outputs, int terms, int chunks,         \
             int split, int output, const __grid_constant__ ggro::HeadArgs heads,                                     \
             const __grid_constant__ ggro::NormArgs norm) {                                                           \
        ggro::Gemm<T, N, BY_COLUMNS>::run(                                                                            \
            {y, w, bias, beside, partial, tickets, tokens, outputs, terms, chunks, split, output, heads, norm}, &x);  \
    }

#define GEMM_ALL(NAME, SUFFIX, T, BY_COLUMNS)         \
    GEMM(NAME##_8_##SUFFIX, T, 8, BY_COLUMNS)         \
    GEMM(NAME##_16_##SUFFIX, T, 16, BY_COLUMNS)       \
    GEMM(NAME##_24_##SUFFIX, T, 24, BY_COLUMNS)       \
    GEMM(NAME##_32_##SUFFIX, T, 32, BY_COLUMNS)       \
    GEMM(NAME##_48_##SUFFIX, T, 48, BY_COLUMNS)       \
    GEMM(NAME##_64_##SUFFIX, T, 64, BY_COLUMNS)       \
    GEMM(NAME##_96_##SUFFIX, T, 96, BY_COLUMNS)       \
    GEMM(NAME##_128_##SUFFIX, T, 128, BY_COLUMNS)     \
    GEMM(NAME##_192_##SUFFIX, T, 192, BY_COLUMNS)     \
    GEMM(NAME##_200_##SUFFIX, T, 200, BY_COLUMNS)

// The host's list (src/cuda/ops/gemm/sm90.rs) repeats these numbers.
GEMM_ALL(gemm_sm90, bf16, __nv_bfloat16, false)
GEMM_ALL(gemm_sm90, f16, __half, false)
GEMM_ALL(gemm_backward_sm90, bf16, __nv_bfloat16, true)
GEMM_ALL(gemm_backward_sm90, f16, __half, true)
