// Matrix instructions of a warp: ldmatrix, mma. PTX ISA, section 9.7.14.
#include <algorithm>
#include <cmath>

#include "matrices.h"

#include "decode.h"

namespace emu::ptx {
namespace {

// Lane 8 m + r gives the address of row r of matrix m; register m of lane l receives elements 2 (l % 4) and the next of
// row l / 4, or of that column.
template <int MATRICES, bool TRANSPOSED>
Flow load_matrices(Warp& w, const Instruction& in, uint32_t mask) {
    if (!whole_warp(w, in, mask)) return Flow::stop;
    const uint32_t* base = w.lanes<uint32_t>(in.slot[4]);
    uint32_t addresses[kWarp];
    const uint16_t* rows[kWarp];
    uint32_t farthest = 0, bits = 0;
    for (uint32_t i = 0; i < 8 * MATRICES; ++i) {
        addresses[i] = base[i] + uint32_t(in.immediate);
        rows[i] = reinterpret_cast<const uint16_t*>(uintptr_t(addresses[i]));
        farthest = std::max(farthest, addresses[i] - block.shared_low);
        bits |= addresses[i];
    }
    if (bits % 16 || uint64_t(farthest) + 16 > block.shared_bytes) {
        for (uint32_t i = 0; i < 8 * MATRICES; ++i) shared_at(w, in, i, addresses[i], 16, kRead);
    }
    if (run.checked) {
        for (uint32_t i = 0; i < 8 * MATRICES; ++i) {
            select(w, i);
            check_access(rows[i], 16, kRead, in.site());
        }
        traffic_matrix_rows(addresses, 8 * MATRICES);
    }
    for (int m = 0; m < MATRICES; ++m) {
        uint32_t* d = w.lanes<uint32_t>(in.slot[m]);
        const uint16_t** r = rows + 8 * m;
        if (!TRANSPOSED) {
            for (int i = 0; i < 8; ++i) memcpy(d + 4 * i, r[i], 16);
            continue;
        }
        for (int l = 0; l < kWarp; ++l) {
            const int i = l / 4, j = 2 * (l % 4);
            d[l] = uint32_t(r[j + 1][i]) << 16 | r[j][i];
        }
    }
    return Flow::next;
}

// ---- mma.m16n8k16. A register of 32 lanes, read as halves, is an 8 x 8 matrix by rows: lane 4 g + t holds elements
// (g, 2 t) and (g, 2 t + 1). The four of a are rows 0-7 and 8-15 of k 0-7, then the same of k 8-15; the two of b are k
// 0-7 and 8-15, with the columns of b as rows. c and d hold (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).

template <bool BF16>
void read_operands(const Warp& w, const Instruction& in, Operands& m) {
    for (int part = 0; part < 4; ++part) {
        const uint16_t* h = w.lanes<uint16_t>(in.slot[4 + part]);
        for (int g = 0; g < 8; ++g) {
            widen_eight<BF16>(h + 8 * g, &m.a[8 * (part & 1) + g][8 * (part >> 1)]);
        }
    }
    for (int part = 0; part < 2; ++part) {
        const uint16_t* h = w.lanes<uint16_t>(in.slot[8 + part]);
        for (int n = 0; n < kN; ++n) {
            float column[8];
            widen_eight<BF16>(h + 8 * n, column);
            for (int k = 0; k < 8; ++k) m.b[8 * part + k][n] = column[k];
        }
    }
    for (int part = 0; part < 4; ++part) {
        const float* c = w.lanes<float>(in.slot[10 + part]);
        for (int l = 0; l < kWarp; ++l) m.c[8 * (part >> 1) + l / 4][2 * (l % 4) + (part & 1)] = c[l];
    }
}

void write_result(const Warp& w, const Instruction& in, const float (&d)[kM][kN]) {
    for (int part = 0; part < 4; ++part) {
        float* to = w.lanes<float>(in.slot[part]);
        for (int l = 0; l < kWarp; ++l) {
            const float x = d[8 * (part >> 1) + l / 4][2 * (l % 4) + (part & 1)];
            to[l] = x == x ? x : bits_to_float(0x7fffffffu);
        }
    }
}

// Products of 16-bit elements are exact in double. They are added to the accumulator in ascending k in double and
// rounded once. The even columns of a row lie in one register and the odd ones in the next, four lanes each: so they are
// kept apart, and a row is two vectors, loaded and stored whole.
template <bool BF16>
void multiply_in_double(const Warp& w, const Instruction& in) {
    alignas(32) double a[kM][kK], b[kK][kN];
    alignas(32) float eight[8];
    for (int part = 0; part < 4; ++part) {
        const uint16_t* h = w.lanes<uint16_t>(in.slot[4 + part]);
        for (int g = 0; g < 8; ++g) {
            widen_eight<BF16>(h + 8 * g, eight);
            double* to = &a[8 * (part & 1) + g][8 * (part >> 1)];
            for (int k = 0; k < 8; ++k) to[k] = eight[k];
        }
    }
    for (int part = 0; part < 2; ++part) {
        const uint16_t* h = w.lanes<uint16_t>(in.slot[8 + part]);
        for (int n = 0; n < kN; ++n) {
            widen_eight<BF16>(h + 8 * n, eight);
            for (int k = 0; k < 8; ++k) b[8 * part + k][n / 2 + 4 * (n & 1)] = eight[k];
        }
    }
    const float* c[4];
    float* d[4];
    for (int part = 0; part < 4; ++part) {
        c[part] = w.lanes<float>(in.slot[10 + part]);
        d[part] = w.lanes<float>(in.slot[part]);
    }
    alignas(32) Four sums[kM][2];
    for (int i = 0; i < kM; i += 4) {
        const int half = 2 * (i / 8), row = i % 8;
        Four even[4], odd[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            even[r] = __builtin_convertvector(loaded<FourFloats>(c[half] + 4 * (row + r)), Four);
            odd[r] = __builtin_convertvector(loaded<FourFloats>(c[half + 1] + 4 * (row + r)), Four);
        }
        for (int k = 0; k < kK; ++k) {
            const Four left = loaded<Four>(&b[k][0]), right = loaded<Four>(&b[k][4]);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                const double x = a[i + r][k];
                even[r] += Four{x, x, x, x} * left;
                odd[r] += Four{x, x, x, x} * right;
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            sums[i + r][0] = even[r];
            sums[i + r][1] = odd[r];
        }
    }
    // The result may lie where the accumulator is.
    for (int i = 0; i < kM; ++i) {
        store_row(d[2 * (i / 8)] + 4 * (i % 8), sums[i][0]);
        store_row(d[2 * (i / 8) + 1] + 4 * (i % 8), sums[i][1]);
    }
}

// A binary exponent as the adder sees it: subnormal numbers have the lowest one and no leading one, zeros none at all.
constexpr int kNoExponent = -100000;
int exponent_of(float x, int lowest) {
    const int e = int(float_to_bits(x) >> 23 & 255) - 127;
    return x == 0.0f ? kNoExponent : e < lowest ? lowest : e;
}

// The same of eight numbers, and what follows of four: without a branch, in vectors.
typedef int32_t EightInts __attribute__((vector_size(32)));
typedef int32_t FourInts __attribute__((vector_size(16)));
typedef int64_t FourLongs __attribute__((vector_size(32)));

EightInts exponents_of_sums(const float* sums) {
    const EightInts bits = loaded<EightInts>(sums), e = (bits >> 23 & 255) - 127;
    return (bits & 0x7fffffff) == 0 ? EightInts{} + kNoExponent : e < -126 ? EightInts{} - 126 : e;
}

Four powers_of_two(FourInts exponents) { return Four((__builtin_convertvector(exponents, FourLongs) + 1023) << 52); }

// Towards zero: the number before the nearest where that is too large. Zeros have no sign.
FourFloats cut_to_floats(Four x) {
    const FourFloats nearest = __builtin_convertvector(x, FourFloats);
    const Four back = __builtin_convertvector(nearest, Four);
    constexpr int64_t magnitude = INT64_MAX;
    const FourLongs larger = Four(FourLongs(back) & magnitude) > Four(FourLongs(x) & magnitude);
    const FourInts cut = FourInts(nearest) + __builtin_convertvector(larger, FourInts);
    return FourFloats(cut & __builtin_convertvector(x != 0.0, FourInts));
}

Four without_fraction(Four x) {
#ifdef __AVX__
    return Four(_mm256_round_pd(__m256d(x), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
#else
    for (int i = 0; i < 4; ++i) x[i] = __builtin_trunc(x[i]);
    return x;
#endif
}

// What all rows of the result have in common.
struct Exponents {
    int a[kM][kK], b[kK][kN];
    alignas(32) double factor[kK][kN];  // b
};

// As a tensor core adds (the behaviour that measurements of A100 and H100 show): in groups of 8 or 16 products, every
// term of a group and the accumulator are aligned to the largest exponent, cut below one or two bits more than the 24
// of f32, added exactly, and the sum is cut to f32. One row of the result at a time; all terms are finite.
template <int GROUP>
void add_cut(const float* a, const int* a_exponents, const Exponents& e, float* c) {
    constexpr int extra = GROUP == 16 ? 2 : 1;
    for (int first = 0; first < kK; first += GROUP) {
        EightInts largest = exponents_of_sums(c);
        for (int k = first; k < first + GROUP; ++k) {
            const EightInts product = loaded<EightInts>(e.b[k]) + a_exponents[k];
            largest = product > largest ? product : largest;
        }
        for (int half = 0; half < kN; half += 4) {
            FourInts most;
            memcpy(&most, reinterpret_cast<const int*>(&largest) + half, sizeof most);
            const FourInts zeros = most < kNoExponent / 2, shift = zeros ? FourInts{} : 23 + extra - most;
            const Four scale = powers_of_two(shift);
            const FourFloats before = loaded<FourFloats>(c + half);
            Four sum = without_fraction(__builtin_convertvector(before, Four) * scale);
            for (int k = first; k < first + GROUP; ++k) {
                const double x = a[k];
                sum += without_fraction(Four{x, x, x, x} * loaded<Four>(&e.factor[k][half]) * scale);
            }
            // A sum of nothing but zeros keeps the sign of the accumulator.
            const FourFloats cut = cut_to_floats(sum * powers_of_two(-shift)), after = zeros ? before : cut;
            memcpy(c + half, &after, sizeof after);
        }
    }
}

// What has an infinite term or one that is not a number is added in double: its value is clear.
void add_special(const Operands& m, int i, float* c) {
    for (int n = 0; n < kN; ++n) {
        bool finite = std::isfinite(m.c[i][n]);
        double sum = m.c[i][n];
        for (int k = 0; k < kK; ++k) {
            finite &= std::isfinite(m.a[i][k]) && std::isfinite(m.b[k][n]);
            sum += double(m.a[i][k]) * double(m.b[k][n]);
        }
        if (!finite) c[n] = float(sum);
    }
}

template <int GROUP>
void multiply_truncated(const Operands& m, int lowest, float (&d)[kM][kN]) {
    Exponents e;
    bool finite = true;
    for (int k = 0; k < kK; ++k) {
        for (int n = 0; n < kN; ++n) {
            e.b[k][n] = exponent_of(m.b[k][n], lowest);
            e.factor[k][n] = m.b[k][n];
            finite &= std::isfinite(m.b[k][n]) && std::isfinite(m.c[k][n]);
        }
    }
    for (int i = 0; i < kM; ++i) {
        for (int k = 0; k < kK; ++k) {
            e.a[i][k] = exponent_of(m.a[i][k], lowest);
            finite &= std::isfinite(m.a[i][k]);
        }
    }
    for (int i = 0; i < kM; ++i) {
        memcpy(d[i], m.c[i], sizeof d[i]);
        if (finite) {
            add_cut<GROUP>(m.a[i], e.a[i], e, d[i]);
            continue;
        }
        // Zeros in place of what is special, whose results are then replaced.
        Operands safe = m;
        Exponents safe_exponents = e;
        for (int k = 0; k < kK; ++k) {
            if (!std::isfinite(safe.a[i][k])) safe.a[i][k] = 0.0f, safe_exponents.a[i][k] = kNoExponent;
            for (int n = 0; n < kN; ++n) {
                if (!std::isfinite(safe.b[k][n])) safe_exponents.factor[k][n] = 0.0, safe_exponents.b[k][n] = kNoExponent;
            }
        }
        for (int n = 0; n < kN; ++n) {
            if (!std::isfinite(d[i][n])) d[i][n] = 0.0f;
        }
        add_cut<GROUP>(safe.a[i], safe_exponents.a[i], safe_exponents, d[i]);
        add_special(m, i, d[i]);
    }
}

template <bool BF16>
void multiply_cut(const Operands& m, float (&d)[kM][kN]) {
    const int lowest = BF16 ? -126 : -14;
    if (config.matrix_sums == 8) {
        multiply_truncated<8>(m, lowest, d);
    } else {
        multiply_truncated<16>(m, lowest, d);
    }
}

template <bool BF16>
Flow multiply(Warp& w, const Instruction& in, uint32_t mask) {
    if (!whole_warp(w, in, mask)) return Flow::stop;
    run.counters->matrix_flops += 2 * kM * kN * kK;
    if (config.matrix_sums == 0) {
        multiply_in_double<BF16>(w, in);
        return Flow::next;
    }
    Operands m;
    float d[kM][kN];
    read_operands<BF16>(w, in, m);
    multiply_cut<BF16>(m, d);
    write_result(w, in, d);
    return Flow::next;
}

}  // namespace

uint32_t whole_warp(Warp& w, const Instruction& in, uint32_t mask) {
    if (w.live != kAll) {
        select(w, uint32_t(__builtin_ctz(mask)));
        fatal(719, "warp mask", in.site(), "a matrix instruction needs all 32 lanes, %d are there",
              __builtin_popcount(w.live));
    }
    return gather(w, mask, kAll);
}

void multiply_cut_operands(const Operands& m, bool bf16, float (&d)[kM][kN]) {
    return bf16 ? multiply_cut<true>(m, d) : multiply_cut<false>(m, d);
}

Handler matrix_load_handler(uint32_t matrices, bool transposed) {
    switch (matrices) {
        case 1: return transposed ? load_matrices<1, true> : load_matrices<1, false>;
        case 2: return transposed ? load_matrices<2, true> : load_matrices<2, false>;
        case 4: return transposed ? load_matrices<4, true> : load_matrices<4, false>;
    }
    return nullptr;
}

Handler matrix_multiply_handler(bool bf16) { return bf16 ? multiply<true> : multiply<false>; }

}  // namespace emu::ptx
