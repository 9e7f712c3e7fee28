// Moves, conversions and packing. PTX ISA, section 9.7.9 (data movement and conversion).
#include <cmath>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "half.h"
#include "decode.h"

namespace emu::ptx {
namespace {

struct Copy1 {
    template <class T>
    static T f(T a) {
        return a;
    }
};

// What is not a number becomes the canonical one of the format.
uint16_t to_bf16(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    const uint16_t rounded = uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
    return (bits & 0x7fffffffu) > 0x7f800000u ? uint16_t(0x7fff) : rounded;
}
uint16_t to_f16(float x) {
    if (x != x) return 0x7fff;
#ifdef __F16C__
    return uint16_t(_cvtss_sh(x, 0));
#else
    return float_to_f16(x);
#endif
}

struct RoundBf16 {
    static uint16_t f(float a) { return to_bf16(a); }
};
struct RoundF16 {
    static uint16_t f(float a) { return to_f16(a); }
};
// The first source goes to the upper half.
struct RoundBf16Pair {
    static uint32_t f(float high, float low) { return uint32_t(to_bf16(high)) << 16 | to_bf16(low); }
};
struct RoundF16Pair {
    static uint32_t f(float high, float low) { return uint32_t(to_f16(high)) << 16 | to_f16(low); }
};
struct WidenF16 {
    static float f(uint16_t a) {
#ifdef __F16C__
        return _cvtsh_ss(a);
#else
        return f16_to_float(a);
#endif
    }
};
struct WidenBf16 {
    static float f(uint16_t a) { return __builtin_bit_cast(float, uint32_t(a) << 16); }
};
// The host rounds to nearest, as all that nvcc writes here does.
template <class D>
struct To {
    template <class A>
    static D f(A a) {
        return D(a);
    }
};
struct NarrowF64 {
    static float f(double a) { return a == a ? float(a) : __builtin_bit_cast(float, 0x7fffffffu); }
};
// To integers: towards zero or to nearest, limited to the range; 0 for what is not a number.
template <class D, bool NEAREST>
struct Truncate {
    template <class A>
    static D f(A a) {
        const double x = NEAREST ? std::nearbyint(double(a)) : std::trunc(double(a));
        if (x != x) return 0;
        constexpr double least = double(std::numeric_limits<D>::min()), most = double(std::numeric_limits<D>::max());
        return x <= least ? std::numeric_limits<D>::min() : x >= most ? std::numeric_limits<D>::max() : D(x);
    }
};
template <int MODE>
struct RoundF32 {
    static float f(float a) {
        const float r = MODE == 0 ? nearbyintf(a) : MODE == 1 ? truncf(a) : MODE == 2 ? floorf(a) : ceilf(a);
        return r == r ? r : __builtin_bit_cast(float, 0x7fffffffu);
    }
};

// The first element of a vector is the least significant.
template <class D, class S>
Flow pack(Warp& w, const Instruction& in, uint32_t mask) {
    D* d = w.lanes<D>(in.slot[0]);
    const S *low = w.lanes<S>(in.slot[1]), *high = w.lanes<S>(in.slot[2]);
#pragma GCC ivdep
    for (int i = 0; i < kWarp; ++i) {
        const D both = D(D(high[i]) << (sizeof(S) * 8) | low[i]);
        d[i] = mask >> i & 1 ? both : d[i];
    }
    return Flow::next;
}
template <class S, class D>
Flow unpack(Warp& w, const Instruction& in, uint32_t mask) {
    D *low = w.lanes<D>(in.slot[0]), *high = w.lanes<D>(in.slot[1]);
    const S* s = w.lanes<S>(in.slot[2]);
#pragma GCC ivdep
    for (int i = 0; i < kWarp; ++i) {
        const S both = s[i];
        low[i] = mask >> i & 1 ? D(both) : low[i];
        high[i] = mask >> i & 1 ? D(both >> (sizeof(D) * 8)) : high[i];
    }
    return Flow::next;
}

}  // namespace

void enter_conversions(Table& table) {
    using i16 = int16_t;
    using i32 = int32_t;
    using i64 = int64_t;
    using u16 = uint16_t;
    using u32 = uint32_t;
    using u64 = uint64_t;
    enter(table, "mov.b16 mov.s16 mov.u16", form<Copy1, u16, u16>());
    enter(table, "mov.b32 mov.s32 mov.u32 mov.f32", form<Copy1, u32, u32>());
    enter(table, "mov.b64 mov.s64 mov.u64 mov.f64", form<Copy1, u64, u64>());
    // One address space for all, and parameters lie in it, too.
    enter(table, "cvta.to.global.u64 cvta.param.u64 cvta.param::entry.u64 cvta.to.param.u64 cvta.to.param::entry.u64",
          form<Copy1, u64, u64>());
    enter(table, "mov.b32.pack", {pack<u32, u16>, "Whh"});
    enter(table, "mov.b64.pack", {pack<u64, u32>, "Dww"});
    enter(table, "mov.b32.unpack", {unpack<u32, u16>, "HHw"});
    enter(table, "mov.b64.unpack", {unpack<u64, u32>, "WWd"});

    enter(table, "cvt.s64.s32", form<To<i64>, i64, i32>());
    enter(table, "cvt.u64.u32", form<To<u64>, u64, u32>());
    enter(table, "cvt.u32.u64 cvt.s32.s64", form<To<u32>, u32, u64>());
    enter(table, "cvt.u32.u16", form<To<u32>, u32, u16>());
    enter(table, "cvt.s32.s16", form<To<i32>, i32, i16>());
    enter(table, "cvt.u16.u32 cvt.s16.s32", form<To<u16>, u16, u32>());
    enter(table, "cvt.u64.u16", form<To<u64>, u64, u16>());
    enter(table, "cvt.u32.s16", form<To<u32>, u32, i16>());
    enter(table, "cvt.u64.s32", form<To<u64>, u64, i32>());
    enter(table, "cvt.s64.s16 cvt.u64.s16", form<To<i64>, i64, i16>());
    enter(table, "cvt.u16.u64", form<To<u16>, u16, u64>());

    enter(table, "cvt.rn.bf16.f32", form<RoundBf16, u16, float>());
    enter(table, "cvt.rn.f16.f32", form<RoundF16, u16, float>());
    enter(table, "cvt.rn.bf16x2.f32", form<RoundBf16Pair, u32, float, float>());
    enter(table, "cvt.rn.f16x2.f32", form<RoundF16Pair, u32, float, float>());
    enter(table, "cvt.f32.f16", form<WidenF16, float, u16>());
    enter(table, "cvt.f32.bf16", form<WidenBf16, float, u16>());
    enter(table, "cvt.f64.f32", form<To<double>, double, float>());
    enter(table, "cvt.rn.f32.f64", form<NarrowF64, float, double>());
    enter(table, "cvt.rn.f32.s32", form<To<float>, float, i32>());
    enter(table, "cvt.rn.f32.u32", form<To<float>, float, u32>());
    enter(table, "cvt.rn.f32.s64", form<To<float>, float, i64>());
    enter(table, "cvt.rn.f32.u64", form<To<float>, float, u64>());
    enter(table, "cvt.rn.f64.s32", form<To<double>, double, i32>());
    enter(table, "cvt.rn.f64.u32", form<To<double>, double, u32>());
    enter(table, "cvt.rn.f64.u16", form<To<double>, double, u16>());
    enter(table, "cvt.rn.f32.u16", form<To<float>, float, u16>());
    enter(table, "cvt.rn.f64.s64", form<To<double>, double, i64>());
    enter(table, "cvt.rn.f64.u64", form<To<double>, double, u64>());
    enter(table, "cvt.rzi.s32.f32", form<Truncate<i32, false>, i32, float>());
    enter(table, "cvt.rzi.u32.f32", form<Truncate<u32, false>, u32, float>());
    enter(table, "cvt.rni.s32.f32", form<Truncate<i32, true>, i32, float>());
    enter(table, "cvt.rzi.s32.f64", form<Truncate<i32, false>, i32, double>());
    enter(table, "cvt.rni.s32.f64", form<Truncate<i32, true>, i32, double>());
    enter(table, "cvt.rni.f32.f32", form<RoundF32<0>, float, float>());
    enter(table, "cvt.rzi.f32.f32", form<RoundF32<1>, float, float>());
    enter(table, "cvt.rmi.f32.f32", form<RoundF32<2>, float, float>());
    enter(table, "cvt.rpi.f32.f32", form<RoundF32<3>, float, float>());
}

}  // namespace emu::ptx
