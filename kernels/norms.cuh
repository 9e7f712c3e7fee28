// RMSNorm whose last step is left to the product behind it: what producers of its input, the product, and the kernel of its own
// (kernels/rmsnorm.cu) have to agree on, so that all ways give the same bits.
//
//   u[row, d] 16-bit = round(x s weight[d])      x f32, s a power of two
//   r[row]           = 1 / sqrt(sum(x^2) / columns + eps)
//   norm(x) W^T      = (r / s) (u W^T)
//
// s is the power of two of an inverse norm that is known when u is stored: of the same row, one norm before. It keeps u in the
// range of f16, and, being a power of two, changes no bit otherwise. A residual stream changes little from norm to norm; u
// overflows in f16 where it grows more than 500-fold with one element in charge.
//
// The sum of squares goes by groups of 16 columns: elements 2g, 2g + 1, 2g + 8, 2g + 9 of a group are one chain of fused
// multiply-adds, and the four chains are added as (0 + 1) + (2 + 3). Then lane l of a warp adds the groups 4l .. 4l + 3, 128 + 4l
// .. 128 + 4l + 3 and so on in ascending order, and lanes are added by halves.
#pragma once

#include "common.cuh"

namespace ggro {

constexpr int kNormGroup = 16;

// The largest power of two that is not above a positive number.
__device__ __forceinline__ float power_below(float x) { return __uint_as_float(__float_as_uint(x) & 0x7f800000u); }

// The chain of four elements of a group.
__device__ __forceinline__ float chain_of_squares(float a, float b, float c, float d) {
    return fmaf(d, d, fmaf(c, c, fmaf(b, b, __fmul_rn(a, a))));
}

// A lane's share of a row's groups, whose number is a multiple of four.
__device__ __forceinline__ float add_groups(const float* squares, int groups) {
    float sum = 0.0f;
    for (int at = 4 * (threadIdx.x % kWarp); at < groups; at += 4 * kWarp) {
        const float4 four = *reinterpret_cast<const float4*>(squares + at);
        sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, four.x), four.y), four.z), four.w);
    }
    return sum;
}

// r of a row from the sum of its squares.
__device__ __forceinline__ float inverse_norm(float squares, int columns, float eps) {
    return 1.0f / sqrtf(squares / static_cast<float>(columns) + eps);
}

}  // namespace ggro
