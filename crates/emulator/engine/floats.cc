// Floating point. PTX ISA, sections 9.7.3 (f32 and f64), 9.7.5 (what is not a number).
//
// Results of f32 that are not a number are the canonical one, 0x7fffffff. What PTX calls approximate is rounded
// correctly here: a card may differ by the bounds that the ISA gives.
#include <cmath>
#include <type_traits>

#include <cfenv>

#include "half.h"
#include "decode.h"

namespace emu::ptx {
namespace {

float canonical(float x) { return x == x ? x : bits_to_float(0x7fffffffu); }
double canonical(double x) { return x; }

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
    using type = uint32_t;
};
template <>
struct BitsOf<double> {
    using type = uint64_t;
};
template <class T>
typename BitsOf<T>::type bits(T x) {
    return __builtin_bit_cast(typename BitsOf<T>::type, x);
}

struct Add {
    template <class T>
    static T f(T a, T b) {
        return canonical(a + b);
    }
};
struct Subtract {
    template <class T>
    static T f(T a, T b) {
        return canonical(a - b);
    }
};
struct Multiply {
    template <class T>
    static T f(T a, T b) {
        return canonical(a * b);
    }
};
struct Divide {
    template <class T>
    static T f(T a, T b) {
        return canonical(a / b);
    }
};
struct FusedMultiplyAdd {
    static float f(float a, float b, float c) { return canonical(__builtin_fmaf(a, b, c)); }
    static double f(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
// Rounded towards minus infinity.
struct FusedMultiplyAddDown {
    __attribute__((noinline)) static float f(float a, float b, float c) {
        const int mode = fegetround();
        fesetround(FE_DOWNWARD);
        // Not folded or moved by the compiler, which knows nothing of rounding modes.
        volatile float x = a, y = b, z = c;
        const volatile float result = std::fmaf(x, y, z);
        fesetround(mode);
        return canonical(result);
    }
};
struct Root {
    template <class T>
    static T f(T a) {
        return canonical(T(std::is_same_v<T, float> ? T(__builtin_sqrtf(float(a))) : T(__builtin_sqrt(double(a)))));
    }
};
struct Reciprocal {
    template <class T>
    static T f(T a) {
        return canonical(T(1) / a);
    }
};
struct Negate {
    template <class T>
    static T f(T a) {
        return T(a ^ T(1) << (sizeof(T) * 8 - 1));
    }
};
struct Absolute {
    template <class T>
    static T f(T a) {
        return T(a & ~(T(1) << (sizeof(T) * 8 - 1)));
    }
};
// If one is not a number the result is the other; -0 is below +0.
struct Least {
    template <class T>
    static T f(T a, T b) {
        T r = a < b ? a : a == b ? __builtin_bit_cast(T, bits(a) | bits(b)) : b;
        r = a != a ? b : r;
        r = b != b ? a : r;
        return canonical(r);
    }
};
struct Greatest {
    template <class T>
    static T f(T a, T b) {
        T r = a > b ? a : a == b ? __builtin_bit_cast(T, bits(a) & bits(b)) : b;
        r = a != a ? b : r;
        r = b != b ? a : r;
        return canonical(r);
    }
};

// ---- approximations
constexpr float kSmallest = 1.17549435e-38f;  // normal
float flushed(float x) { return fabsf(x) < kSmallest ? copysignf(0.0f, x) : x; }

struct Exponential {
    static float f(float a) { return canonical(float(exp2(double(a)))); }
};
struct ExponentialFlushed {
    static float f(float a) { return canonical(flushed(float(exp2(double(flushed(a)))))); }
};
struct Logarithm {
    static float f(float a) { return canonical(float(log2(double(a)))); }
};
struct ReciprocalRoot {
    static float f(float a) { return canonical(float(1.0 / sqrt(double(a)))); }
};
struct ReciprocalApproximate {
    static float f(float a) { return canonical(float(1.0 / double(a))); }
};
// Only the upper half of its operand counts, and the lower half of its result is zero; nvcc refines it by itself.
struct ReciprocalSeed {
    static double f(double a) {
        if (a != a) return a;
        constexpr uint64_t kSign = uint64_t(1) << 63, kExponent = uint64_t(2047) << 52, kUpper = ~uint64_t(kAll);
        uint64_t from = bits(a) & kUpper;
        if (!(from & kExponent)) from &= kSign;
        uint64_t to = bits(1.0 / __builtin_bit_cast(double, from));
        if (!(to & kExponent)) to &= kSign;
        return __builtin_bit_cast(double, to & kUpper);
    }
};
struct Saturate {
    static float f(float a) {
        const float low = a > 0.0f ? a : 0.0f;  // so is what is not a number
        return low < 1.0f ? low : 1.0f;
    }
};

}  // namespace

void enter_floats(Table& table) {
    enter(table, "add.f32 add.rn.f32", form<Add, float, float, float>());
    enter(table, "add.f64 add.rn.f64", form<Add, double, double, double>());
    enter(table, "sub.f32 sub.rn.f32", form<Subtract, float, float, float>());
    enter(table, "sub.f64 sub.rn.f64", form<Subtract, double, double, double>());
    enter(table, "mul.f32 mul.rn.f32", form<Multiply, float, float, float>());
    enter(table, "mul.f64 mul.rn.f64", form<Multiply, double, double, double>());
    enter(table, "div.rn.f32", form<Divide, float, float, float>());
    enter(table, "div.rn.f64", form<Divide, double, double, double>());
    enter(table, "fma.rn.f32", form<FusedMultiplyAdd, float, float, float, float>());
    enter(table, "fma.rn.f64", form<FusedMultiplyAdd, double, double, double, double>());
    enter(table, "fma.rm.f32", form<FusedMultiplyAddDown, float, float, float, float>());
    enter(table, "sqrt.rn.f32", form<Root, float, float>());
    enter(table, "sqrt.rn.f64", form<Root, double, double>());
    enter(table, "rcp.rn.f32", form<Reciprocal, float, float>());
    enter(table, "rcp.rn.f64", form<Reciprocal, double, double>());
    enter(table, "neg.f32", form<Negate, uint32_t, uint32_t>());
    enter(table, "neg.f64", form<Negate, uint64_t, uint64_t>());
    enter(table, "abs.f32", form<Absolute, uint32_t, uint32_t>());
    enter(table, "abs.f64", form<Absolute, uint64_t, uint64_t>());
    enter(table, "min.f32", form<Least, float, float, float>());
    enter(table, "min.f64", form<Least, double, double, double>());
    enter(table, "max.f32", form<Greatest, float, float, float>());
    enter(table, "max.f64", form<Greatest, double, double, double>());

    enter(table, "ex2.approx.f32", form<Exponential, float, float>());
    enter(table, "ex2.approx.ftz.f32", form<ExponentialFlushed, float, float>());
    enter(table, "lg2.approx.f32", form<Logarithm, float, float>());
    enter(table, "rsqrt.approx.f32", form<ReciprocalRoot, float, float>());
    enter(table, "rcp.approx.f32", form<ReciprocalApproximate, float, float>());
    enter(table, "rcp.approx.ftz.f64", form<ReciprocalSeed, double, double>());
    enter(table, "cvt.sat.f32.f32", form<Saturate, float, float>());
}

}  // namespace emu::ptx
