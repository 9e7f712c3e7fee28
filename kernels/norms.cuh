// RMSNorm whose last step is left to the product behind it: what producers of its input, the product, and the kernel of its own
// (kernels/rmsnorm.cu) have to agree on, so that all ways give the same bits.
//
//   u[row, d] 16-bit = round(x s weight[d])      x f32, s a power of two
//   r[row]           = 1 / sqrt(sum(x^2) / columns + eps)
//   norm(x) W^T      = (r / s) (u W^T)
//
// s is a sixteenth of the power of two below an inverse norm that is known when u is stored: of the same row, one norm before; or,
// where there is none before it (in the first layer, and for the live rows of the last one), the row's own. Being a power of two
// it changes no bit of a product of normal numbers, and it keeps u in the range of f16: |u| is at most sqrt(columns) |weight| times
// what the row has grown since that norm, divided by 16. It overflows beyond 65504.
//
// The sum of squares goes by groups of 16 columns. For g = 0 .. 3, elements 2g, 2g + 1, 2g + 8, 2g + 9 of a group are one chain of
// fused multiply-adds, and the four chains are added as (0 + 1) + (2 + 3). Then lane l of a warp adds the groups 4l .. 4l + 3, 128 + 4l
// .. 128 + 4l + 3 and so on in ascending order, and lanes are added by halves.
//
// A row that is not finite stays so, and so does one whose sum of squares overflows (r = 0): its factor is NaN.
#pragma once

#include "common.cuh"

namespace ggro {

constexpr int kNormGroup = 16;

// s of an inverse norm: zero of zero, infinite of NaN.
__device__ __forceinline__ float norm_scale(float inverse) {
    return __uint_as_float(__float_as_uint(inverse) & 0x7f800000u) * 0.0625f;
}

// The chain of four elements of a group.
__device__ __forceinline__ float chain_of_squares(float a, float b, float c, float d) {
    return fmaf(d, d, fmaf(c, c, fmaf(b, b, __fmul_rn(a, a))));
}

__device__ __forceinline__ float add_four(float sum, float4 four) {
    return __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, four.x), four.y), four.z), four.w);
}

// A lane's share of a row's groups, whose number is a multiple of four.
__device__ __forceinline__ float add_groups(const float* squares, int groups) {
    float sum = 0.0f;
    for (int at = 4 * (threadIdx.x % kWarp); at < groups; at += 4 * kWarp) {
        sum = add_four(sum, *reinterpret_cast<const float4*>(squares + at));
    }
    return sum;
}

// r of a row from the sum of its squares.
__device__ __forceinline__ float inverse_norm(float squares, int columns, float eps) {
    return 1.0f / sqrtf(squares / static_cast<float>(columns) + eps);
}

// r / s, by the inverse norm that s is of.
__device__ __forceinline__ float norm_factor(float r, float before) {
    return r > 0.0f ? r / norm_scale(before) : NAN;
}

}  // namespace ggro
