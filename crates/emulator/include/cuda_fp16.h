// The part of CUDA's cuda_fp16.h that the kernels may use.
#pragma once

#include "emu_half.h"

struct alignas(2) __half {
    unsigned short bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
using half = __half;
using half2 = __half2;

static inline __half __float2half_rn(float x) { return {emu_float_to_f16(x)}; }
static inline __half __float2half(float x) { return {emu_float_to_f16(x)}; }
static inline float __half2float(__half x) { return emu_f16_to_float(x.bits); }
static inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
static inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
static inline float __low2float(__half2 v) { return __half2float(v.x); }
static inline float __high2float(__half2 v) { return __half2float(v.y); }
static inline unsigned short __half_as_ushort(__half x) { return x.bits; }
static inline __half __ushort_as_half(unsigned short x) { return {x}; }
