// Integers, bits, predicates and selection. PTX ISA, sections 9.7.1 (integer arithmetic), 9.7.6 (comparison and
// selection), 9.7.8 (logic and shifts).
#include <type_traits>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "decode.h"

namespace emu::ptx {
namespace {

template <class T>
constexpr uint32_t bits_of() {
    return sizeof(T) * 8;
}

struct Add {
    template <class T>
    static T f(T a, T b) {
        return T(a + b);
    }
};
struct Subtract {
    template <class T>
    static T f(T a, T b) {
        return T(a - b);
    }
};
struct Multiply {
    template <class T>
    static T f(T a, T b) {
        return T(a * b);
    }
};
struct MultiplyAdd {
    template <class T>
    static T f(T a, T b, T c) {
        return T(a * b + c);
    }
};
struct MultiplyHigh {
    static uint32_t f(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
    static int32_t f(int32_t a, int32_t b) { return int32_t(int64_t(a) * b >> 32); }
    static uint64_t f(uint64_t a, uint64_t b) {
        __extension__ typedef unsigned __int128 Wide;
        return uint64_t(Wide(a) * b >> 64);
    }
    static int64_t f(int64_t a, int64_t b) {
        __extension__ typedef __int128 Wide;
        return int64_t(Wide(a) * b >> 64);
    }
};
struct MultiplyWide {
    static uint64_t f(uint32_t a, uint32_t b) { return uint64_t(a) * b; }
    static int64_t f(int32_t a, int32_t b) { return int64_t(a) * b; }
    static uint32_t f(uint16_t a, uint16_t b) { return uint32_t(a) * b; }
    static int32_t f(int16_t a, int16_t b) { return int32_t(a) * b; }
};
struct MultiplyAddWide {
    static uint64_t f(uint32_t a, uint32_t b, uint64_t c) { return uint64_t(a) * b + c; }
    static uint64_t f(int32_t a, int32_t b, uint64_t c) { return uint64_t(int64_t(a) * b) + c; }
};
// Division by zero yields a value that is not specified: all ones here, where the host would trap, and a fault.
struct Divide {
    template <class T>
    static T f(T a, T b) {
        if (b == 0) return T(~T(0));
        if (std::is_signed_v<T> && b == T(-1)) return T(0 - std::make_unsigned_t<T>(a));
        return T(a / b);
    }
};
struct Remainder {
    template <class T>
    static T f(T a, T b) {
        if (b == 0) return a;
        if (std::is_signed_v<T> && b == T(-1)) return 0;
        return T(a % b);
    }
};
struct Least {
    template <class T>
    static T f(T a, T b) {
        return a < b ? a : b;
    }
};
struct Greatest {
    template <class T>
    static T f(T a, T b) {
        return a > b ? a : b;
    }
};
struct And {
    template <class T>
    static T f(T a, T b) {
        return T(a & b);
    }
};
struct Or {
    template <class T>
    static T f(T a, T b) {
        return T(a | b);
    }
};
struct Xor {
    template <class T>
    static T f(T a, T b) {
        return T(a ^ b);
    }
};
struct Not {
    template <class T>
    static T f(T a) {
        return T(~a);
    }
};
struct Negate {
    template <class T>
    static T f(T a) {
        return T(0 - a);
    }
};
struct Absolute {
    template <class T>
    static T f(T a) {
        return a < 0 ? T(0 - a) : a;
    }
};
// Amounts beyond the width are taken as the width.
struct ShiftLeft {
    template <class T>
    static T f(T a, uint32_t n) {
        return n < bits_of<T>() ? T(a << (n & (bits_of<T>() - 1))) : T(0);
    }
};
struct ShiftRight {
    template <class T>
    static T f(T a, uint32_t n) {
        constexpr uint32_t most = bits_of<T>() - 1;
        if (std::is_signed_v<T>) return T(a >> (n < most ? n : most));
        return n <= most ? T(a >> (n & most)) : T(0);
    }
};
struct FunnelLeft {
    static uint32_t f(uint32_t low, uint32_t high, uint32_t n) {
        return uint32_t((uint64_t(high) << 32 | low) << (n & 31) >> 32);
    }
};
struct FunnelRight {
    static uint32_t f(uint32_t low, uint32_t high, uint32_t n) {
        return uint32_t((uint64_t(high) << 32 | low) >> (n & 31));
    }
};
struct Reverse {
    static uint32_t f(uint32_t a) {
        a = (a >> 1 & 0x55555555u) | (a & 0x55555555u) << 1;
        a = (a >> 2 & 0x33333333u) | (a & 0x33333333u) << 2;
        a = (a >> 4 & 0x0f0f0f0fu) | (a & 0x0f0f0f0fu) << 4;
        return __builtin_bswap32(a);
    }
};
struct CountOnes {
    static uint32_t f(uint32_t a) { return uint32_t(__builtin_popcount(a)); }
};
struct CountZeros {
    static uint32_t f(uint32_t a) { return a ? uint32_t(__builtin_clz(a)) : 32; }
};
// The position of the highest one, or how far it must be shifted to the top; all ones when there is none.
struct FindHighest {
    static uint32_t f(uint32_t a) { return a ? 31 - uint32_t(__builtin_clz(a)) : ~0u; }
};
struct FindShift {
    static uint32_t f(uint32_t a) { return a ? uint32_t(__builtin_clz(a)) : ~0u; }
};
struct ExtractField {
    static uint32_t f(uint32_t a, uint32_t position, uint32_t length) {
        position &= 255;
        length &= 255;
        const uint64_t shifted = position < 32 ? uint64_t(a >> position) : 0;
        return length < 32 ? uint32_t(shifted & ((uint64_t(1) << length) - 1)) : uint32_t(shifted);
    }
};
// Picks four bytes out of eight; bit 3 of a selector replicates the byte's sign instead.
struct Permute {
    static uint32_t f(uint32_t a, uint32_t b, uint32_t selectors) {
        const uint64_t bytes = uint64_t(b) << 32 | a;
        uint32_t out = 0;
        for (int i = 0; i < 4; ++i) {
            const uint32_t selector = selectors >> 4 * i & 15;
            uint32_t byte = uint32_t(bytes >> 8 * (selector & 7)) & 255;
            if (selector & 8) byte = byte & 128 ? 255 : 0;
            out |= byte << 8 * i;
        }
        return out;
    }
};

template <class Op, class T>
Flow divide(Warp& w, const Instruction& in, uint32_t mask) {
    const T* b = w.lanes<T>(in.slot[2]);
    each_lane(mask, [&](uint32_t i) {
        if (b[i]) return;
        select(w, i);
        fault("division by zero", in.site(), "an integer division by zero, whose result is not specified");
    });
    return binary<Op, T, T, T>(w, in, mask);
}

template <class Op, class T>
Form division() {
    return {divide<Op, T>, Letters<T, T, T>::text};
}

template <class T>
Flow insert_field(Warp& w, const Instruction& in, uint32_t mask) {
    T* d = w.lanes<T>(in.slot[0]);
    const T *from = w.lanes<T>(in.slot[1]), *into = w.lanes<T>(in.slot[2]);
    const uint32_t *positions = w.lanes<uint32_t>(in.slot[3]), *lengths = w.lanes<uint32_t>(in.slot[4]);
    each_lane(mask, [&](uint32_t i) {
        const uint32_t position = positions[i] & 255, length = lengths[i] & 255;
        T field = length < bits_of<T>() ? T((T(1) << length) - 1) : T(~T(0));
        field = position < bits_of<T>() ? T(field << position) : T(0);
        const T moved = position < bits_of<T>() ? T(from[i] << position) : T(0);
        d[i] = T((into[i] & ~field) | (moved & field));
    });
    return Flow::next;
}

// Any function of three bits: bit 4 a + 2 b + c of the immediate is its value.
Flow look_up(Warp& w, const Instruction& in, uint32_t mask) {
    uint32_t* d = w.lanes<uint32_t>(in.slot[0]);
    const uint32_t *a = w.lanes<uint32_t>(in.slot[1]), *b = w.lanes<uint32_t>(in.slot[2]),
                   *c = w.lanes<uint32_t>(in.slot[3]);
    each_lane(mask, [&](uint32_t i) {
        uint32_t out = 0;
        for (int t = 0; t < 8; ++t) {
            if (!(in.immediate >> t & 1)) continue;
            out |= (t & 4 ? a[i] : ~a[i]) & (t & 2 ? b[i] : ~b[i]) & (t & 1 ? c[i] : ~c[i]);
        }
        d[i] = out;
    });
    return Flow::next;
}

// ---- comparison. Of floats, the plain comparisons are false and those with u true when an operand is not a number.

struct Equal {
    template <class T>
    static bool f(T a, T b) {
        return a == b;
    }
};
struct Unequal {
    template <class T>
    static bool f(T a, T b) {
        return std::is_floating_point_v<T> ? (a < b) | (a > b) : a != b;
    }
};
struct Less {
    template <class T>
    static bool f(T a, T b) {
        return a < b;
    }
};
struct AtMost {
    template <class T>
    static bool f(T a, T b) {
        return a <= b;
    }
};
struct Greater {
    template <class T>
    static bool f(T a, T b) {
        return a > b;
    }
};
struct AtLeast {
    template <class T>
    static bool f(T a, T b) {
        return a >= b;
    }
};
template <class Opposite>
struct Unless {
    template <class T>
    static bool f(T a, T b) {
        return !Opposite::f(a, b);
    }
};
struct Numbers {
    template <class T>
    static bool f(T a, T b) {
        return (a == a) & (b == b);
    }
};

// A lane of all ones or zeros becomes a bit.
uint32_t bits_of_lanes(const int32_t* lanes) {
    uint32_t bits = 0;
#ifdef __AVX2__
    for (int q = 0; q < 4; ++q) {
        const __m256i eight = _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes + 8 * q));
        bits |= uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(eight))) << 8 * q;
    }
#else
    for (int i = 0; i < kWarp; ++i) bits |= uint32_t(lanes[i] & 1) << i;
#endif
    return bits;
}

template <class Op, class T>
Flow compare(Warp& w, const Instruction& in, uint32_t mask) {
    const T *a = w.lanes<T>(in.slot[1]), *b = w.lanes<T>(in.slot[2]);
    alignas(32) int32_t lanes[kWarp];
    for (int i = 0; i < kWarp; ++i) lanes[i] = -int32_t(Op::f(a[i], b[i]));
    const uint32_t bits = bits_of_lanes(lanes);
    uint32_t& p = w.predicate(in.slot[0]);
    p = (p & ~mask) | (bits & mask);
    if (in.flags & kFirst) {
        uint32_t& q = w.predicate(in.slot[3]);
        q = (q & ~mask) | (~bits & mask);
    }
    return Flow::next;
}

template <class Op, class T>
void enter_comparison(Table& table, const char* name, const char* type) {
    const Form form = {compare<Op, T>, sizeof(T) == 2 ? "Phh" : sizeof(T) == 4 ? "Pww" : "Pdd"};
    table[std::string("setp.") + name + "." + type] = form;
}

template <class T>
void enter_comparisons(Table& table, const char* type) {
    enter_comparison<Equal, T>(table, "eq", type);
    enter_comparison<Unequal, T>(table, "ne", type);
    if (type[0] == 'b') return;
    enter_comparison<Less, T>(table, "lt", type);
    enter_comparison<AtMost, T>(table, "le", type);
    enter_comparison<Greater, T>(table, "gt", type);
    enter_comparison<AtLeast, T>(table, "ge", type);
    if (type[0] == 'u') {
        enter_comparison<Less, T>(table, "lo", type);
        enter_comparison<AtMost, T>(table, "ls", type);
        enter_comparison<Greater, T>(table, "hi", type);
        enter_comparison<AtLeast, T>(table, "hs", type);
    }
    if (type[0] != 'f') return;
    enter_comparison<Unless<Unequal>, T>(table, "equ", type);
    enter_comparison<Unless<Equal>, T>(table, "neu", type);
    enter_comparison<Unless<AtLeast>, T>(table, "ltu", type);
    enter_comparison<Unless<Greater>, T>(table, "leu", type);
    enter_comparison<Unless<AtMost>, T>(table, "gtu", type);
    enter_comparison<Unless<Less>, T>(table, "geu", type);
    enter_comparison<Numbers, T>(table, "num", type);
    enter_comparison<Unless<Numbers>, T>(table, "nan", type);
}

// ---- predicates: a word holds one of every lane

enum class Logic { conjunction, disjunction, exclusive, negation, copy };

template <Logic L>
Flow predicate_logic(Warp& w, const Instruction& in, uint32_t mask) {
    uint32_t a = w.predicate(in.slot[1]), b = w.predicate(in.slot[L < Logic::negation ? 2 : 1]);
    if (in.flags & 4) a = ~a;
    if (in.flags & 8) b = ~b;
    const uint32_t bits = L == Logic::conjunction   ? a & b
                          : L == Logic::disjunction ? a | b
                          : L == Logic::exclusive   ? a ^ b
                          : L == Logic::negation    ? ~a
                                                    : a;
    uint32_t& p = w.predicate(in.slot[0]);
    p = (p & ~mask) | (bits & mask);
    return Flow::next;
}

template <class T>
Flow choose(Warp& w, const Instruction& in, uint32_t mask) {
    T* d = w.lanes<T>(in.slot[0]);
    const T *a = w.lanes<T>(in.slot[1]), *b = w.lanes<T>(in.slot[2]);
    const uint32_t p = w.predicate(in.slot[3]);
#pragma GCC ivdep
    for (int i = 0; i < kWarp; ++i) {
        const T chosen = p >> i & 1 ? a[i] : b[i];
        d[i] = mask >> i & 1 ? chosen : d[i];
    }
    return Flow::next;
}

}  // namespace

void enter_integers(Table& table) {
    using i16 = int16_t;
    using i32 = int32_t;
    using i64 = int64_t;
    using u16 = uint16_t;
    using u32 = uint32_t;
    using u64 = uint64_t;
    enter(table, "add.s16 add.u16", form<Add, u16, u16, u16>());
    enter(table, "add.s32 add.u32", form<Add, u32, u32, u32>());
    enter(table, "add.s64 add.u64", form<Add, u64, u64, u64>());
    enter(table, "sub.s16 sub.u16", form<Subtract, u16, u16, u16>());
    enter(table, "sub.s32 sub.u32", form<Subtract, u32, u32, u32>());
    enter(table, "sub.s64 sub.u64", form<Subtract, u64, u64, u64>());
    enter(table, "mul.lo.s16 mul.lo.u16", form<Multiply, u16, u16, u16>());
    enter(table, "mul.lo.s32 mul.lo.u32", form<Multiply, u32, u32, u32>());
    enter(table, "mul.lo.s64 mul.lo.u64", form<Multiply, u64, u64, u64>());
    enter(table, "mul.hi.s32", form<MultiplyHigh, i32, i32, i32>());
    enter(table, "mul.hi.u32", form<MultiplyHigh, u32, u32, u32>());
    enter(table, "mul.hi.s64", form<MultiplyHigh, i64, i64, i64>());
    enter(table, "mul.hi.u64", form<MultiplyHigh, u64, u64, u64>());
    enter(table, "mul.wide.s16", form<MultiplyWide, i32, i16, i16>());
    enter(table, "mul.wide.u16", form<MultiplyWide, u32, u16, u16>());
    enter(table, "mul.wide.s32", form<MultiplyWide, i64, i32, i32>());
    enter(table, "mul.wide.u32", form<MultiplyWide, u64, u32, u32>());
    enter(table, "mad.lo.s32 mad.lo.u32", form<MultiplyAdd, u32, u32, u32, u32>());
    enter(table, "mad.lo.s64 mad.lo.u64", form<MultiplyAdd, u64, u64, u64, u64>());
    enter(table, "mad.wide.s32", form<MultiplyAddWide, u64, i32, i32, u64>());
    enter(table, "mad.wide.u32", form<MultiplyAddWide, u64, u32, u32, u64>());
    enter(table, "div.s32", division<Divide, i32>());
    enter(table, "div.u32", division<Divide, u32>());
    enter(table, "div.s64", division<Divide, i64>());
    enter(table, "div.u64", division<Divide, u64>());
    enter(table, "rem.s32", division<Remainder, i32>());
    enter(table, "rem.u32", division<Remainder, u32>());
    enter(table, "rem.s64", division<Remainder, i64>());
    enter(table, "rem.u64", division<Remainder, u64>());
    enter(table, "min.s32", form<Least, i32, i32, i32>());
    enter(table, "min.u32", form<Least, u32, u32, u32>());
    enter(table, "min.s64", form<Least, i64, i64, i64>());
    enter(table, "min.u64", form<Least, u64, u64, u64>());
    enter(table, "max.s32", form<Greatest, i32, i32, i32>());
    enter(table, "max.u32", form<Greatest, u32, u32, u32>());
    enter(table, "max.s64", form<Greatest, i64, i64, i64>());
    enter(table, "max.u64", form<Greatest, u64, u64, u64>());
    enter(table, "neg.s16", form<Negate, u16, u16>());
    enter(table, "neg.s32", form<Negate, u32, u32>());
    enter(table, "neg.s64", form<Negate, u64, u64>());
    enter(table, "abs.s32", form<Absolute, i32, i32>());
    enter(table, "abs.s64", form<Absolute, i64, i64>());

    enter(table, "and.b16", form<And, u16, u16, u16>());
    enter(table, "and.b32", form<And, u32, u32, u32>());
    enter(table, "and.b64", form<And, u64, u64, u64>());
    enter(table, "or.b16", form<Or, u16, u16, u16>());
    enter(table, "or.b32", form<Or, u32, u32, u32>());
    enter(table, "or.b64", form<Or, u64, u64, u64>());
    enter(table, "xor.b16", form<Xor, u16, u16, u16>());
    enter(table, "xor.b32", form<Xor, u32, u32, u32>());
    enter(table, "xor.b64", form<Xor, u64, u64, u64>());
    enter(table, "not.b16", form<Not, u16, u16>());
    enter(table, "not.b32", form<Not, u32, u32>());
    enter(table, "not.b64", form<Not, u64, u64>());
    enter(table, "shl.b16", form<ShiftLeft, u16, u16, u32>());
    enter(table, "shl.b32", form<ShiftLeft, u32, u32, u32>());
    enter(table, "shl.b64", form<ShiftLeft, u64, u64, u32>());
    enter(table, "shr.u16 shr.b16", form<ShiftRight, u16, u16, u32>());
    enter(table, "shr.s16", form<ShiftRight, i16, i16, u32>());
    enter(table, "shr.u32 shr.b32", form<ShiftRight, u32, u32, u32>());
    enter(table, "shr.s32", form<ShiftRight, i32, i32, u32>());
    enter(table, "shr.u64 shr.b64", form<ShiftRight, u64, u64, u32>());
    enter(table, "shr.s64", form<ShiftRight, i64, i64, u32>());
    enter(table, "shf.l.wrap.b32", form<FunnelLeft, u32, u32, u32, u32>());
    enter(table, "shf.r.wrap.b32", form<FunnelRight, u32, u32, u32, u32>());
    enter(table, "brev.b32", form<Reverse, u32, u32>());
    enter(table, "popc.b32", form<CountOnes, u32, u32>());
    enter(table, "clz.b32", form<CountZeros, u32, u32>());
    enter(table, "bfind.u32", form<FindHighest, u32, u32>());
    enter(table, "bfind.shiftamt.u32", form<FindShift, u32, u32>());
    enter(table, "bfe.u32", form<ExtractField, u32, u32, u32, u32>());
    enter(table, "bfi.b32", {insert_field<u32>, "Wwwww"});
    enter(table, "bfi.b64", {insert_field<u64>, "Dddww"});
    enter(table, "prmt.b32", form<Permute, u32, u32, u32, u32>());
    enter(table, "lop3.b32", {look_up, "Wwwwi"});

    enter_comparisons<u16>(table, "b16");
    enter_comparisons<i16>(table, "s16");
    enter_comparisons<u16>(table, "u16");
    enter_comparisons<u32>(table, "b32");
    enter_comparisons<i32>(table, "s32");
    enter_comparisons<u32>(table, "u32");
    enter_comparisons<u64>(table, "b64");
    enter_comparisons<i64>(table, "s64");
    enter_comparisons<u64>(table, "u64");
    enter_comparisons<float>(table, "f32");
    enter_comparisons<double>(table, "f64");

    enter(table, "and.pred", {predicate_logic<Logic::conjunction>, "Pnn"});
    enter(table, "or.pred", {predicate_logic<Logic::disjunction>, "Pnn"});
    enter(table, "xor.pred", {predicate_logic<Logic::exclusive>, "Pnn"});
    enter(table, "not.pred", {predicate_logic<Logic::negation>, "Pp"});
    enter(table, "mov.pred", {predicate_logic<Logic::copy>, "Pp"});
    enter(table, "selp.b16 selp.s16 selp.u16", {choose<u16>, "Hhhp"});
    enter(table, "selp.b32 selp.s32 selp.u32 selp.f32", {choose<u32>, "Wwwp"});
    enter(table, "selp.b64 selp.s64 selp.u64 selp.f64", {choose<u64>, "Dddp"});
}

}  // namespace emu::ptx
