// Matrices of one product of a warp: 16 x 8 sums over 16.
#pragma once

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "execute.h"
#include "half.h"

namespace emu::ptx {

constexpr int kM = 16, kN = 8, kK = 16;

struct Operands {
    alignas(32) float a[kM][kK], b[kK][kN], c[kM][kN];
};

// d = a b + c with sums that are cut, by the setting `mma`.
void multiply_cut_operands(const Operands& m, bool bf16, float (&d)[kM][kN]);

template <bool BF16>
void widen_eight(const uint16_t* from, float* to) {
#ifdef __F16C__
    if (!BF16) {
        _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
        return;
    }
#endif
#ifdef __AVX2__
    if (BF16) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_slli_epi32(wide, 16));
        return;
    }
#endif
    for (int k = 0; k < 8; ++k) to[k] = BF16 ? bf16_to_float(from[k]) : f16_to_float(from[k]);
}

// Vectors of sums.
typedef double Four __attribute__((vector_size(32)));
typedef float FourFloats __attribute__((vector_size(16)));

template <class V>
V loaded(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store_row(float* to, Four sum) {
    FourFloats rounded = __builtin_convertvector(sum, FourFloats);
    const FourFloats none = FourFloats{} + bits_to_float(0x7fffffffu);
    rounded = rounded == rounded ? rounded : none;
    memcpy(to, &rounded, sizeof rounded);
}

// Matrix instructions need the whole warp: the mask to go on with, or 0 when `mask` was parked.
uint32_t whole_warp(Warp& w, const Instruction& in, uint32_t mask);

}  // namespace emu::ptx
