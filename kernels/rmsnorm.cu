// RMSNorm of the residual stream, with the sublayer's output added on the way.
//
//   residual[rows, d] f32   += delta[rows, d] (f32 or 16-bit), where a delta is given; else only read
//   out[rows, d] 16-bit      = round(residual * r * weight[d]),  r = 1 / sqrt(sum(residual^2) / columns + eps)
//
// Contract: any d >= 1, any alignment; one block per row. Of the d columns stored `columns` are real; the others are
// zero, in the residual stream and in the weight, and stay zero. Threads take groups of 4 consecutive elements in turn, so the
// order of additions is a function of d alone: aligned, unaligned, cached and uncached rows give the same bits. All
// arithmetic is f32 with one rounding at the end.
// Bytes: read 4d, with a delta also write 4d and read its 4d or 2d; write 2d. The weight stays in L2.
// Flops: 4d. The limit is memory. A row is kept in shared memory between the two sweeps, so each byte moves once, and
// all of a row's loads are in flight together. Aim: 90 % of the copy rate from some 500 rows up (not measured). With few
// rows the launch itself dominates.
//
// Deferred, for products that take a row's factor (norms.cuh): u[rows, d] = round(residual s weight[d]), factor[rows] = r / s and
// inverse[rows] = r, where s is that of before[rows], or of r. d is a multiple of 64; rows of residual start at multiples of
// 8 bytes, those of u of 4. The sum of squares goes by groups of 16 columns. Bytes: read 4d, from L1 twice, write 2d.
//
// Backward, of the norm and of the residual stream that runs past it, with g = dy * weight:
//
//   grad[rows, d] f32       += r g - residual r^3 sum(residual g) / columns      dy[rows, d] f32
//   grad                     = the same                                          dy = scale * head[d] 16-bit, for all rows
//   rounded[rows, d] 16-bit  = round(grad), where wanted: what the next product takes
//
// r is computed again from the residual stream that the forward pass kept, which is 4d bytes a row; dy comes in f32 from
// the product before, so that gradients are rounded where a matrix product needs it and nowhere else. The second form is
// the final norm's: the head's row is the gradient of every reward, so the gradient starts here and is overwritten.
// Contract as above; all sums by d alone. Bytes: read 12d (8d without dy), write 4d and 2d; flops 12d. A row of residual
// and g is kept in shared memory if d <= 6136. Aim: 85 % of the copy rate from some 500 rows up (not measured); a
// segment's rows are a matter of latency.
#include "norms.cuh"

namespace ggro {

constexpr int kNormThreads = 512;

enum DeltaKind : int { kNoDelta = 0, kDeltaF32 = 1, kDelta16 = 2 };

// What a norm does before its turn: its weight comes to L2, from which everything before has driven it out.
template <typename T>
__device__ __forceinline__ void begin(const T* weight, int d) {
    constexpr int kLine = 128 / sizeof(T);
    ptx::launch_dependents();
    if constexpr (ptx::kBeginsEarly) {
        for (int at = threadIdx.x * kLine; at < d; at += blockDim.x * kLine) ptx::prefetch_l2(weight + at);
    }
    ptx::wait_for_predecessors();
}

// Elements `at .. at + 4` of a row of d; those past the end are zero.
template <typename T>
__device__ __forceinline__ float4 load_group(const T* row, int at, int d, bool vectors) {
    if (vectors) {
        const Pack<T, 4> pack = load_pack<4>(row + at);
        return make_float4(to_float(pack.at[0]), to_float(pack.at[1]), to_float(pack.at[2]), to_float(pack.at[3]));
    }
    return make_float4(to_float(row[at]), at + 1 < d ? to_float(row[at + 1]) : 0.0f,
                       at + 2 < d ? to_float(row[at + 2]) : 0.0f, at + 3 < d ? to_float(row[at + 3]) : 0.0f);
}

template <typename T>
__device__ __forceinline__ void store_group(T* row, int at, int d, bool vectors, float4 x) {
    const Pack<T, 4> pack = {{from_float<T>(x.x), from_float<T>(x.y), from_float<T>(x.z), from_float<T>(x.w)}};
    if (vectors) {
        store_pack<4>(row + at, pack);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (at + i < d) row[at + i] = pack.at[i];
    }
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

template <typename T>
__device__ __forceinline__ void rmsnorm(T* GGRO_RESTRICT out, float* GGRO_RESTRICT residual,
                                        const void* GGRO_RESTRICT delta, int delta_kind, const T* GGRO_RESTRICT weight,
                                        int d, int columns, float eps, int cached) {
    EXTERN_SHARED(shared);
    __shared__ float partial[kNormThreads / kWarp];
    float4* const cache = reinterpret_cast<float4*>(shared);
    const size_t start = static_cast<size_t>(blockIdx.x) * d;
    float* const row = residual + start;
    const float* const delta_f32 = static_cast<const float*>(delta) + start;
    const T* const delta_16 = static_cast<const T*>(delta) + start;
    const bool delta_aligned = delta_kind == kNoDelta || aligned(delta, delta_kind == kDeltaF32 ? 16 : 8);
    const bool vectors = d % 4 == 0 && aligned(residual, 16) && aligned(out, 8) && aligned(weight, 8) && delta_aligned;
    const int groups = (d + 3) / 4;

    float squares = 0.0f;
    for (int group = threadIdx.x; group < groups; group += blockDim.x) {
        float4 x = load_group(row, 4 * group, d, vectors);
        if (delta_kind == kDeltaF32) x = add(x, load_group(delta_f32, 4 * group, d, vectors));
        if (delta_kind == kDelta16) x = add(x, load_group(delta_16, 4 * group, d, vectors));
        if (delta_kind != kNoDelta) store_group(row, 4 * group, d, vectors, x);
        if (cached) cache[group] = x;
        squares = fmaf(x.x, x.x, squares);
        squares = fmaf(x.y, x.y, squares);
        squares = fmaf(x.z, x.z, squares);
        squares = fmaf(x.w, x.w, squares);
    }
    const float mean = block_sum(squares, partial) / static_cast<float>(columns);
    const float scale = 1.0f / sqrtf(mean + eps);

    // Each thread reads back only what it wrote itself, so the cache needs no barrier.
    for (int group = threadIdx.x; group < groups; group += blockDim.x) {
        const float4 x = cached ? cache[group] : load_group(row, 4 * group, d, vectors);
        const float4 w = load_group(weight, 4 * group, d, vectors);
        const float4 y =
            make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w);
        store_group(out + start, 4 * group, d, vectors, y);
    }
}

template <typename T>
__device__ __forceinline__ void rmsnorm_deferred(T* GGRO_RESTRICT u, float* GGRO_RESTRICT factor,
                                                 float* GGRO_RESTRICT inverse, const float* GGRO_RESTRICT residual,
                                                 const float* GGRO_RESTRICT before, const T* GGRO_RESTRICT weight,
                                                 int d, int columns, float eps) {
    EXTERN_SHARED(shared);
    __shared__ float found;
    float* const sums = reinterpret_cast<float*>(shared);
    const float* const row = residual + static_cast<size_t>(blockIdx.x) * d;
    T* const out = u + static_cast<size_t>(blockIdx.x) * d;
    // Four neighbouring threads have a group, each two pairs that are eight columns apart.
    const int quarter = threadIdx.x % 4;
    const auto first = [&](int item) { return item / 4 * kNormGroup + 2 * quarter; };
    // As many turns for every thread of a warp: d is a multiple of 64, and blocks are of whole warps.
    for (int item = threadIdx.x; item < (d / 4 + kWarp - 1) / kWarp * kWarp; item += blockDim.x) {
        const bool real = item < d / 4;
        const Pack<float, 2> a = load_pack<2>(row + (real ? first(item) : 0)), b = load_pack<2>(row + (real ? first(item) : 0) + 8);
        float sum = chain_of_squares(a.at[0], a.at[1], b.at[0], b.at[1]);
        sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 1));
        sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, 2));
        if (real && quarter == 0) sums[item / 4] = sum;
    }
    __syncthreads();  // all groups are there
    if (threadIdx.x < kWarp) {
        const float squares = warp_sum(add_groups(sums, d / kNormGroup));
        if (threadIdx.x == 0) found = inverse_norm(squares, columns, eps);
    }
    __syncthreads();  // the inverse norm is there
    const float r = found, of = before != nullptr ? before[blockIdx.x] : r, s = norm_scale(of);
    if (threadIdx.x == 0) {
        factor[blockIdx.x] = norm_factor(r, of);
        inverse[blockIdx.x] = r;
    }
    for (int item = threadIdx.x; item < d / 4; item += blockDim.x) {
        const int at = first(item);
        const Pack<float, 2> x[2] = {load_pack<2>(row + at), load_pack<2>(row + at + 8)};
        float w[2][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) w[i / 2][i % 2] = to_float(weight[at + i / 2 * 8 + i % 2]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            *reinterpret_cast<uint32_t*>(out + at + 8 * half) =
                Mma<T>::pack(x[half].at[0] * s * w[half][0], x[half].at[1] * s * w[half][1]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void rmsnorm_backward(float* GGRO_RESTRICT grad, T* GGRO_RESTRICT rounded,
                                                 const float* GGRO_RESTRICT dy, const T* GGRO_RESTRICT head,
                                                 float head_scale, const float* GGRO_RESTRICT residual,
                                                 const T* GGRO_RESTRICT weight, int d, int columns, float eps,
                                                 int cached) {
    EXTERN_SHARED(shared);
    __shared__ float partial[2][kNormThreads / kWarp];
    float4* const cache = reinterpret_cast<float4*>(shared);
    const size_t start = static_cast<size_t>(blockIdx.x) * d;
    const float* const row = residual + start;
    const bool outputs_aligned = aligned(grad, 16) && (rounded == nullptr || aligned(rounded, 8));
    const bool dy_aligned = dy != nullptr ? aligned(dy, 16) : aligned(head, 8);
    const bool vectors = d % 4 == 0 && aligned(residual, 16) && aligned(weight, 8) && outputs_aligned && dy_aligned;
    const int groups = (d + 3) / 4;

    // dy * weight, the same bits in both sweeps.
    const auto weighted = [&](int at) {
        const float4 w = load_group(weight, at, d, vectors);
        float4 y;
        if (dy != nullptr) {
            y = load_group(dy + start, at, d, vectors);
        } else {
            y = load_group(head, at, d, vectors);
            y = make_float4(y.x * head_scale, y.y * head_scale, y.z * head_scale, y.w * head_scale);
        }
        return make_float4(y.x * w.x, y.y * w.y, y.z * w.z, y.w * w.w);
    };

    float squares = 0.0f, along = 0.0f;
    for (int group = threadIdx.x; group < groups; group += blockDim.x) {
        const float4 x = load_group(row, 4 * group, d, vectors), g = weighted(4 * group);
        if (cached) cache[group] = x, cache[groups + group] = g;
        squares = fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, squares))));
        along = fmaf(x.w, g.w, fmaf(x.z, g.z, fmaf(x.y, g.y, fmaf(x.x, g.x, along))));
    }
    const float mean = block_sum(squares, partial[0]) / static_cast<float>(columns);
    const float scale = 1.0f / sqrtf(mean + eps);
    const float back = block_sum(along, partial[1]) / static_cast<float>(columns) * scale * scale;

    for (int group = threadIdx.x; group < groups; group += blockDim.x) {
        const float4 x = cached ? cache[group] : load_group(row, 4 * group, d, vectors);
        const float4 g = cached ? cache[groups + group] : weighted(4 * group);
        float4 dx = make_float4(scale * fmaf(-x.x, back, g.x), scale * fmaf(-x.y, back, g.y),
                                scale * fmaf(-x.z, back, g.z), scale * fmaf(-x.w, back, g.w));
        if (dy != nullptr) dx = add(load_group(grad + start, 4 * group, d, vectors), dx);
        store_group(grad + start, 4 * group, d, vectors, dx);
        if (rounded != nullptr) store_group(rounded + start, 4 * group, d, vectors, dx);
    }
}

}  // namespace ggro

// Grid: rows. Block: a function of d, at most 512. Dynamic shared memory: 16 ceil(d / 4) bytes if `cached`, else none.
#define RMSNORM(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(ggro::kNormThreads)                                                \
        NAME(T* out, float* residual, const void* delta, int delta_kind, const T* weight, int d, int columns,      \
             float eps, int cached) {                                                                               \
        ggro::begin<T>(weight, d);                                                                                  \
        ggro::rmsnorm<T>(out, residual, delta, delta_kind, weight, d, columns, eps, cached);                        \
    }

// Grid: rows. Block: a function of d, at most 512. Dynamic shared memory: d / 4 bytes.
#define RMSNORM_DEFERRED(NAME, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(ggro::kNormThreads)                                                \
        NAME(T* u, float* factor, float* inverse, const float* residual, const float* before, const T* weight,     \
             int d, int columns, float eps) {                                                                       \
        ggro::begin<T>(weight, d);                                                                                  \
        ggro::rmsnorm_deferred<T>(u, factor, inverse, residual, before, weight, d, columns, eps);                   \
    }

// As RMSNORM, with twice the shared memory. Either dy or head is null.
#define RMSNORM_BACKWARD(NAME, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(ggro::kNormThreads)                                                \
        NAME(float* grad, T* rounded, const float* dy, const T* head, float head_scale, const float* residual,     \
             const T* weight, int d, int columns, float eps, int cached) {                                          \
        ggro::begin<T>(weight, d);                                                                                  \
        ggro::rmsnorm_backward<T>(grad, rounded, dy, head, head_scale, residual, weight, d, columns, eps, cached);  \
    }

RMSNORM(rmsnorm_bf16, __nv_bfloat16)
RMSNORM(rmsnorm_f16, __half)
RMSNORM_DEFERRED(rmsnorm_deferred_bf16, __nv_bfloat16)
RMSNORM_DEFERRED(rmsnorm_deferred_f16, __half)
RMSNORM_BACKWARD(rmsnorm_backward_bf16, __nv_bfloat16)
RMSNORM_BACKWARD(rmsnorm_backward_f16, __half)
