// Loads, stores and atomics. PTX ISA, sections 9.7.9 (ld, st) and 9.7.13 (atom, red).
//
// Shared memory lies below 2 GiB and its 32-bit addresses are pointers, as global ones are. Bounds and alignment are
// always checked, for all lanes at once where they lie in one allocation; the rest (what was never written, races) is
// checked access by access where that is asked for.
#include <algorithm>
#include <type_traits>

#include "decode.h"

namespace emu::ptx {
namespace {

// The allocation that was used last.
struct Extent {
    uint64_t low = 1, high = 0;
} last;

struct Addresses {
    uint64_t of[kWarp];  // lanes that take no part have the address of one that does
};

template <Space SPACE>
Addresses addresses(const Warp& w, const Instruction& in, uint32_t mask, uint16_t slot) {
    Addresses a;
    if (SPACE == Space::shared) {
        const uint32_t* base = w.lanes<uint32_t>(slot);
        for (int i = 0; i < kWarp; ++i) a.of[i] = uint32_t(base[i] + uint32_t(in.immediate));
    } else {
        const uint64_t* base = w.lanes<uint64_t>(slot);
        for (int i = 0; i < kWarp; ++i) a.of[i] = base[i] + uint64_t(in.immediate);
    }
    if (mask != kAll) {
        const uint64_t some = a.of[__builtin_ctz(mask)];
        for (int i = 0; i < kWarp; ++i) a.of[i] = mask >> i & 1 ? a.of[i] : some;
    }
    return a;
}

bool inside(const Addresses& a, uint64_t low, uint64_t high, uint32_t bytes) {
    uint64_t least = a.of[0], most = a.of[0], bits = 0;
    for (int i = 0; i < kWarp; ++i) {
        least = std::min(least, a.of[i]);
        most = std::max(most, a.of[i]);
        bits |= a.of[i];
    }
    return least >= low && most + bytes <= high && most < high && !(bits & (bytes - 1));
}

const char* verb(unsigned access) { return access & kAtomic ? "atomic" : access & kWrite ? "write" : "read"; }

void check_alignment(const Instruction& in, const char* space, uint64_t address, uint32_t bytes, unsigned access) {
    if (address & (bytes - 1))
        fatal(716, "misaligned access", in.site(), "%s of %u bytes of %s memory at %#lx", verb(access), bytes, space,
              address);
}

template <Space SPACE>
void check_one(Warp& w, const Instruction& in, uint32_t lane, uint64_t address, uint32_t bytes, unsigned access) {
    if (SPACE == Space::shared) {
        shared_at(w, in, lane, uint32_t(address), bytes, access);
    } else {
        check_global(w, in, lane, address, bytes, access);
    }
}

// Parameters have addresses of their own, generic ones too.
void check_parameters(Warp& w, const Instruction& in, uint32_t mask, const Addresses& a, uint32_t bytes) {
    each_lane(mask, [&](uint32_t i) {
        if (parameter_offset(a.of[i], bytes) < 0) {
            select(w, i);
            fatal(700, "out of bounds", in.site(),
                  "read of %u bytes at %#lx: no parameter lies there, and other generic addresses are not emulated",
                  bytes, a.of[i]);
        }
        if (a.of[i] & (bytes - 1)) {
            select(w, i);
            check_alignment(in, "parameter", a.of[i], bytes, kRead);
        }
    });
}

// Everything that is to be said about one access of the lanes.
template <Space SPACE>
void check(Warp& w, const Instruction& in, uint32_t mask, const Addresses& a, uint32_t bytes, unsigned access) {
    if (SPACE == Space::parameter) return check_parameters(w, in, mask, a, bytes);
    const bool fast = SPACE == Space::shared
                          ? inside(a, block.shared_low, uint64_t(block.shared_low) + block.shared_bytes, bytes)
                          : inside(a, last.low, last.high, bytes);
    if (!fast) each_lane(mask, [&](uint32_t i) { check_one<SPACE>(w, in, i, a.of[i], bytes, access); });
    if (SPACE == Space::global && run.keeps && access & kWrite)
        each_lane(mask, [&](uint32_t i) { chain_keep(reinterpret_cast<void*>(a.of[i]), bytes); });
    if (!run.checked) return;
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        check_access(reinterpret_cast<void*>(a.of[i]), bytes, access, in.site());
    });
    traffic_warp(a.of, mask, bytes, access & kWrite, SPACE == Space::shared);
}

// T is what memory holds, R what a register holds.
template <class T, class R, uint32_t N, Space SPACE>
Flow load(Warp& w, const Instruction& in, uint32_t mask) {
    const Addresses a = addresses<SPACE>(w, in, mask, in.slot[4]);
    check<SPACE>(w, in, mask, a, sizeof(T) * N, in.flags & kFirst ? kRead | kReadOnly : kRead);
    R* d[N];
    for (uint32_t k = 0; k < N; ++k) d[k] = w.lanes<R>(in.slot[k]);
    each_lane(mask, [&](uint32_t i) {
        T from[N];
        const void* source = reinterpret_cast<const void*>(a.of[i]);
        if (SPACE == Space::global && is_stale(w, i)) source = chain_before(source);
        memcpy(from, source, sizeof from);
        for (uint32_t k = 0; k < N; ++k) d[k][i] = R(from[k]);
    });
    return Flow::next;
}

// Lanes that write the same place: the last one wins, as it may on a card.
template <class T, class R, uint32_t N, Space SPACE>
Flow store(Warp& w, const Instruction& in, uint32_t mask) {
    const Addresses a = addresses<SPACE>(w, in, mask, in.slot[4]);
    check<SPACE>(w, in, mask, a, sizeof(T) * N, kWrite);
    const R* s[N];
    for (uint32_t k = 0; k < N; ++k) s[k] = w.lanes<R>(in.slot[k]);
    each_lane(mask, [&](uint32_t i) {
        T to[N];
        for (uint32_t k = 0; k < N; ++k) to[k] = T(s[k][i]);
        memcpy(reinterpret_cast<void*>(a.of[i]), to, sizeof to);
    });
    return Flow::next;
}

// A flag that other threads publish through. Whoever polls one lets the others go on.
Flow load_acquire(Warp& w, const Instruction& in, uint32_t mask) {
    const Addresses a = addresses<Space::global>(w, in, mask, in.slot[4]);
    uint32_t* d = w.lanes<uint32_t>(in.slot[0]);
    if (run.checked) {
        each_lane(mask, [&](uint32_t i) {
            select(w, i);
            checker_acquire(reinterpret_cast<void*>(a.of[i]));
        });
    }
    check<Space::global>(w, in, mask, a, 4, kRead | kAtomic);
    each_lane(mask, [&](uint32_t i) {
        const void* source = reinterpret_cast<const void*>(a.of[i]);
        memcpy(d + i, is_stale(w, i) ? chain_before(source) : source, 4);
    });
    return give_way(w);
}

Flow store_release(Warp& w, const Instruction& in, uint32_t mask) {
    const Addresses a = addresses<Space::global>(w, in, mask, in.slot[4]);
    const uint32_t* s = w.lanes<uint32_t>(in.slot[0]);
    if (run.checked) {
        each_lane(mask, [&](uint32_t i) {
            select(w, i);
            checker_release(reinterpret_cast<void*>(a.of[i]));
        });
    }
    check<Space::global>(w, in, mask, a, 4, kWrite | kAtomic);
    each_lane(mask, [&](uint32_t i) { memcpy(reinterpret_cast<void*>(a.of[i]), s + i, 4); });
    return Flow::next;
}

template <class T, class R>
Flow load_parameter(Warp& w, const Instruction& in, uint32_t mask) {
    T value;
    memcpy(&value, block.parameters + in.immediate, sizeof value);
    R* d = w.lanes<R>(in.slot[0]);
    for (int i = 0; i < kWarp; ++i) d[i] = mask >> i & 1 ? R(value) : d[i];
    return Flow::next;
}

template <class T, class R, Space SPACE>
Handler by_count(const Access& a) {
    switch (a.count) {
        case 1: return a.store ? store<T, R, 1, SPACE> : load<T, R, 1, SPACE>;
        case 2: return a.store ? store<T, R, 2, SPACE> : load<T, R, 2, SPACE>;
        case 4:
            if constexpr (sizeof(T) <= 4) return a.store ? store<T, R, 4, SPACE> : load<T, R, 4, SPACE>;
    }
    return nullptr;
}

template <class T, Space SPACE>
Handler by_register(const Access& a) {
    using Same = std::conditional_t<std::is_signed_v<T>, int16_t, uint16_t>;
    using Wide = std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>;
    using Widest = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    if constexpr (sizeof(T) <= 2) {
        if (a.kind == 'h') return by_count<T, Same, SPACE>(a);
    }
    if constexpr (sizeof(T) <= 4) {
        if (a.kind == 'w') return by_count<T, Wide, SPACE>(a);
    }
    return a.kind == 'd' ? by_count<T, Widest, SPACE>(a) : nullptr;
}

template <Space SPACE>
Handler by_type(const Access& a) {
    switch (a.bytes) {
        case 1: return a.is_signed ? by_register<int8_t, SPACE>(a) : by_register<uint8_t, SPACE>(a);
        case 2: return a.is_signed ? by_register<int16_t, SPACE>(a) : by_register<uint16_t, SPACE>(a);
        case 4: return a.is_signed ? by_register<int32_t, SPACE>(a) : by_register<uint32_t, SPACE>(a);
        case 8: return by_register<uint64_t, SPACE>(a);
    }
    return nullptr;
}

// ---- atomics: lane after lane

struct Add {
    template <class T>
    static T f(T before, T value, T) {
        return T(before + value);
    }
};
struct Least {
    template <class T>
    static T f(T before, T value, T) {
        return value < before ? value : before;
    }
};
struct Greatest {
    template <class T>
    static T f(T before, T value, T) {
        return value > before ? value : before;
    }
};
struct And {
    template <class T>
    static T f(T before, T value, T) {
        return before & value;
    }
};
struct Or {
    template <class T>
    static T f(T before, T value, T) {
        return before | value;
    }
};
struct ExclusiveOr {
    template <class T>
    static T f(T before, T value, T) {
        return before ^ value;
    }
};
struct Exchange {
    template <class T>
    static T f(T, T value, T) {
        return value;
    }
};
// The first operand is what is compared with, the second what is stored.
struct CompareAndSwap {
    template <class T>
    static T f(T before, T compared, T stored) {
        return before == compared ? stored : before;
    }
};

template <class Op, class T, Space SPACE>
Flow atomic(Warp& w, const Instruction& in, uint32_t mask) {
    const Addresses a = addresses<SPACE>(w, in, mask, in.slot[1]);
    const T *value = w.lanes<T>(in.slot[2]), *second = w.lanes<T>(in.slot[3]);
    T* d = w.lanes<T>(in.slot[0]);
    if (run.checked && SPACE == Space::global) {
        each_lane(mask, [&](uint32_t i) {
            select(w, i);
            checker_order(reinterpret_cast<void*>(a.of[i]), in.flags >> 4);
        });
    }
    check<SPACE>(w, in, mask, a, sizeof(T), kWrite | kAtomic);
    each_lane(mask, [&](uint32_t i) {
        T before;
        memcpy(&before, reinterpret_cast<void*>(a.of[i]), sizeof before);
        const T after = Op::f(before, value[i], second[i]);
        memcpy(reinterpret_cast<void*>(a.of[i]), &after, sizeof after);
        if (in.flags & kFirst) d[i] = before;
    });
    return Flow::next;
}

template <Space SPACE>
Handler atomic_of(const Atomic& a) {
    static const std::map<std::string, Handler> known = {
        {"add.u32", atomic<Add, uint32_t, SPACE>},          {"add.s32", atomic<Add, uint32_t, SPACE>},
        {"add.u64", atomic<Add, uint64_t, SPACE>},          {"add.f32", atomic<Add, float, SPACE>},
        {"add.f64", atomic<Add, double, SPACE>},            {"min.u32", atomic<Least, uint32_t, SPACE>},
        {"min.s32", atomic<Least, int32_t, SPACE>},         {"min.u64", atomic<Least, uint64_t, SPACE>},
        {"max.u32", atomic<Greatest, uint32_t, SPACE>},     {"max.s32", atomic<Greatest, int32_t, SPACE>},
        {"max.u64", atomic<Greatest, uint64_t, SPACE>},     {"and.b32", atomic<And, uint32_t, SPACE>},
        {"or.b32", atomic<Or, uint32_t, SPACE>},            {"xor.b32", atomic<ExclusiveOr, uint32_t, SPACE>},
        {"exch.b32", atomic<Exchange, uint32_t, SPACE>},    {"exch.b64", atomic<Exchange, uint64_t, SPACE>},
        {"cas.b32", atomic<CompareAndSwap, uint32_t, SPACE>}, {"cas.b64", atomic<CompareAndSwap, uint64_t, SPACE>},
    };
    auto found = known.find(a.operation + "." + a.type);
    return found == known.end() ? nullptr : found->second;
}

}  // namespace

void forget_allocation() { last = Extent(); }

void check_global(Warp& w, const Instruction& in, uint32_t lane, uint64_t address, uint32_t bytes, unsigned access) {
    check_global_range(w, in, lane, address, bytes, access);
    if (address & (bytes - 1)) {
        select(w, lane);
        check_alignment(in, "global", address, bytes, access);
    }
}

void check_global_range(Warp& w, const Instruction& in, uint32_t lane, uint64_t address, uint32_t bytes,
                        unsigned access) {
    if (address >= last.low && address + bytes <= last.high) return;
    char *low = nullptr, *high = nullptr;
    const void* p = reinterpret_cast<const void*>(address);
    select(w, lane);
    if (!memory_extent(p, low, high) || reinterpret_cast<char*>(address) + bytes > high) {
        fatal(700, "out of bounds", in.site(), "%s of %u bytes of global memory at %p: %s", verb(access), bytes, p,
              memory_in_arena(p) ? memory_describe(p).c_str() : "not device memory");
    }
    last = {reinterpret_cast<uint64_t>(low), reinterpret_cast<uint64_t>(high)};
}

char* shared_at(Warp& w, const Instruction& in, uint32_t lane, uint32_t address, uint32_t bytes, unsigned access) {
    const uint32_t offset = address - block.shared_low;
    if (offset >= block.shared_bytes || bytes > block.shared_bytes - offset) {
        select(w, lane);
        fatal(700, "out of bounds", in.site(), "%s of %u bytes of shared memory at byte %d of %u", verb(access), bytes,
              int(offset), block.shared_bytes);
    }
    if (address & (bytes - 1)) {
        select(w, lane);
        check_alignment(in, "shared", address, bytes, access);
    }
    return reinterpret_cast<char*>(uintptr_t(address));
}

Handler access_handler(const Access& a) {
    if (a.acquire || a.release) {
        const bool known =
            a.kind == 'w' && a.bytes == 4 && a.count == 1 && a.space == Space::global && a.store == a.release;
        return !known ? nullptr : a.store ? store_release : load_acquire;
    }
    switch (a.space) {
        case Space::global: return by_type<Space::global>(a);
        case Space::shared: return by_type<Space::shared>(a);
        case Space::parameter: return a.store ? nullptr : by_type<Space::parameter>(a);
    }
    return nullptr;
}

Handler parameter_handler(const std::string& type) {
    static const std::map<std::string, Handler> known = {
        {"u8", load_parameter<uint8_t, uint16_t>},   {"b8", load_parameter<uint8_t, uint16_t>},
        {"s8", load_parameter<int8_t, int16_t>},     {"u16", load_parameter<uint16_t, uint16_t>},
        {"b16", load_parameter<uint16_t, uint16_t>}, {"s16", load_parameter<uint16_t, uint16_t>},
        {"u32", load_parameter<uint32_t, uint32_t>}, {"b32", load_parameter<uint32_t, uint32_t>},
        {"s32", load_parameter<uint32_t, uint32_t>}, {"f32", load_parameter<uint32_t, uint32_t>},
        {"u64", load_parameter<uint64_t, uint64_t>}, {"b64", load_parameter<uint64_t, uint64_t>},
        {"s64", load_parameter<uint64_t, uint64_t>}, {"f64", load_parameter<uint64_t, uint64_t>},
    };
    auto found = known.find(type);
    return found == known.end() ? nullptr : found->second;
}

Handler atomic_handler(const Atomic& a) {
    return a.space == Space::shared ? atomic_of<Space::shared>(a) : atomic_of<Space::global>(a);
}

}  // namespace emu::ptx
