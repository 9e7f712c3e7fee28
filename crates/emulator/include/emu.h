// CUDA C++ as the kernels use it, for a host compiler: included before every kernel source.
//
// Only what the kernels are allowed to use exists here; anything else is a compile error, which is the point. Adding a
// built-in is described in ../README.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <math.h>
#include <type_traits>
#include <utility>

#include "emu_abi.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__
#ifndef __restrict__
#define __restrict__ __restrict
#endif

// ---- vector types --------------------------------------------------------------------------------------------------

#define EMU_VECTORS(T, name, one)                                                                                      \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                                                 \
    struct name##3 { T x, y, z; };                                                                                     \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };                                 \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                  \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                          \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(float, float, f)
EMU_VECTORS(double, double, d)
EMU_VECTORS(int, int, i)
EMU_VECTORS(unsigned, uint, u)
EMU_VECTORS(short, short, s)
EMU_VECTORS(unsigned short, ushort, us)
EMU_VECTORS(unsigned char, uchar, uc)
EMU_VECTORS(signed char, char, c)
EMU_VECTORS(long long, longlong, ll)
EMU_VECTORS(unsigned long long, ulonglong, ull)
#undef EMU_VECTORS

struct dim3 {
    unsigned x, y, z;
};

#define threadIdx (uint3{emu_thread_index(0), emu_thread_index(1), emu_thread_index(2)})
#define blockIdx (uint3{emu_block_index(0), emu_block_index(1), emu_block_index(2)})
#define blockDim (dim3{emu_block_size(0), emu_block_size(1), emu_block_size(2)})
#define gridDim (dim3{emu_grid_size(0), emu_grid_size(1), emu_grid_size(2)})
#define warpSize 32

// ---- kernels and shared memory -------------------------------------------------------------------------------------

extern "C" {
__attribute__((visibility("hidden"))) extern char emu_shared_begin[];
__attribute__((visibility("hidden"))) extern char emu_shared_end[];
}

// Static shared memory is a range of the library's .bss: blocks run one after another, and the engine can poison it.
// g++ ignores the section attribute inside templates, so the linker script gathers function-local statics (.bss._ZZ*)
// by name and the attribute only gives the others such a name.
#define SHARED(T, name, dims) static __attribute__((section(".bss._ZZemu"))) T name dims
#define EXTERN_SHARED(name) unsigned char* const name = emu_dynamic_shared()

template <class... A>
struct EmuSignature {
    static constexpr unsigned count = sizeof...(A);
    static const EmuParameter* parameters() {
        static const EmuParameter list[] = {EmuParameter{sizeof(A), alignof(A), std::is_pointer<A>::value}...,
                                            EmuParameter{0, 0, false}};
        return list;
    }
    template <void (*kernel)(A...), size_t... I>
    __attribute__((no_sanitize("thread"))) static void call(void* const* p, std::index_sequence<I...>) {
        kernel(*static_cast<A*>(p[I])...);
    }
    template <void (*kernel)(A...)>
    __attribute__((no_sanitize("thread"))) static void thunk(void* const* p) {
        call<kernel>(p, std::index_sequence_for<A...>{});
    }
};
template <class... A>
EmuSignature<A...> emu_signature(void (*)(A...));

#ifdef __SANITIZE_THREAD__
#define EMU_CHECKED true
#else
#define EMU_CHECKED false
#endif

// Two steps, so that a macro given as the name is expanded.
#define EMU_KERNEL(name) EMU_REGISTER(name)
#define EMU_REGISTER(name)                                                                                             \
    static const EmuKernel emu_kernel_##name = {#name,                                                                 \
                                                &decltype(emu_signature(&name))::template thunk<&name>,                \
                                                decltype(emu_signature(&name))::parameters(),                          \
                                                decltype(emu_signature(&name))::count,                                 \
                                                EMU_CHECKED,                                                           \
                                                emu_shared_begin,                                                      \
                                                emu_shared_end};                                                       \
    __attribute__((constructor)) static void emu_register_##name() { emu_register(&emu_kernel_##name); }

// ---- synchronisation -----------------------------------------------------------------------------------------------

#define EMU_HERE_ const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(EMU_HERE_) { emu_barrier(EMU_BARRIER, 0, file, line); }
static inline int __syncthreads_or(int p, EMU_HERE_) { return int(emu_barrier(EMU_BARRIER_OR, p != 0, file, line)); }
static inline int __syncthreads_and(int p, EMU_HERE_) { return int(emu_barrier(EMU_BARRIER_AND, p != 0, file, line)); }
static inline int __syncthreads_count(int p, EMU_HERE_) {
    return int(emu_barrier(EMU_BARRIER_COUNT, p != 0, file, line));
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE_) { emu_syncwarp(mask, file, line); }
static inline unsigned __ballot_sync(unsigned mask, int p, EMU_HERE_) { return emu_ballot(mask, p, file, line); }
static inline int __any_sync(unsigned mask, int p, EMU_HERE_) { return emu_ballot(mask, p, file, line) != 0; }
static inline int __all_sync(unsigned mask, int p, EMU_HERE_) { return emu_ballot(mask, !p, file, line) == 0; }

template <class T>
static inline T emu_shuffle_as(unsigned mask, T value, int kind, int argument, int width, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = emu_shuffle(mask, bits, kind, argument, width, file, line);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMU_HERE_) {
    return emu_shuffle_as(mask, value, EMU_SHUFFLE_INDEX, lane, width, file, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE_) {
    return emu_shuffle_as(mask, value, EMU_SHUFFLE_UP, int(delta), width, file, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE_) {
    return emu_shuffle_as(mask, value, EMU_SHUFFLE_DOWN, int(delta), width, file, line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_HERE_) {
    return emu_shuffle_as(mask, value, EMU_SHUFFLE_XOR, lanes, width, file, line);
}

static inline void __threadfence() { emu_fence(); }
static inline void __threadfence_block() { __asm__ volatile("" ::: "memory"); }
static inline void __nanosleep(unsigned, EMU_HERE_) { emu_yield(file, line); }
#define __trap() emu_trap(__builtin_FILE(), __builtin_LINE())

// ---- atomics -------------------------------------------------------------------------------------------------------

#define EMU_ATOMIC(name, T, operation)                                                                                 \
    static inline T name(T* address, T value, EMU_HERE_) {                                                             \
        return static_cast<T>(emu_atomic(operation, sizeof(T), address, uint64_t(value), 0, EMU_RELAXED, file, line)); \
    }
EMU_ATOMIC(atomicAdd, int, EMU_ADD)
EMU_ATOMIC(atomicAdd, unsigned, EMU_ADD)
EMU_ATOMIC(atomicAdd, unsigned long long, EMU_ADD)
EMU_ATOMIC(atomicMax, int, EMU_MAX_SIGNED)
EMU_ATOMIC(atomicMax, unsigned, EMU_MAX_UNSIGNED)
EMU_ATOMIC(atomicMax, unsigned long long, EMU_MAX_UNSIGNED)
EMU_ATOMIC(atomicMin, int, EMU_MIN_SIGNED)
EMU_ATOMIC(atomicMin, unsigned, EMU_MIN_UNSIGNED)
EMU_ATOMIC(atomicMin, unsigned long long, EMU_MIN_UNSIGNED)
EMU_ATOMIC(atomicExch, int, EMU_EXCHANGE)
EMU_ATOMIC(atomicExch, unsigned, EMU_EXCHANGE)
EMU_ATOMIC(atomicExch, unsigned long long, EMU_EXCHANGE)
EMU_ATOMIC(atomicAnd, unsigned, EMU_AND)
EMU_ATOMIC(atomicOr, unsigned, EMU_OR)
EMU_ATOMIC(atomicXor, unsigned, EMU_XOR)
#undef EMU_ATOMIC
#define EMU_CAS(T)                                                                                                     \
    static inline T atomicCAS(T* address, T compare, T value, EMU_HERE_) {                                             \
        return static_cast<T>(emu_atomic(EMU_COMPARE_AND_SWAP, sizeof(T), address, uint64_t(value), uint64_t(compare), \
                                         EMU_RELAXED, file, line));                                                    \
    }
EMU_CAS(int)
EMU_CAS(unsigned)
EMU_CAS(unsigned long long)
#undef EMU_CAS

// ---- loads and stores with a cache hint ----------------------------------------------------------------------------

template <class T>
static inline T __ldg(const T* p) {
    return *p;
}
template <class T>
static inline T __ldcs(const T* p) {
    return *p;
}
template <class T>
static inline T __ldcg(const T* p) {
    return *p;
}
template <class T>
static inline void __stcs(T* p, T x) {
    *p = x;
}
template <class T>
static inline void __stcg(T* p, T x) {
    *p = x;
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

template <class To, class From>
static inline To emu_bit_cast(From x) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &x, sizeof(To));
    return to;
}
static inline unsigned __float_as_uint(float x) { return emu_bit_cast<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bit_cast<int>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bit_cast<float>(x); }
static inline float __int_as_float(int x) { return emu_bit_cast<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bit_cast<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bit_cast<double>(x); }

// Sources are compiled with -ffp-contract=off, so a plain operator rounds once.
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
static inline float __frsqrt_rn(float a) { return float(1.0 / sqrt(double(a))); }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }

// glibc declares functions of these names; the macros keep them out of the way. The device computes exp2(x log2 e).
static inline float emu_fast_exp(float x) { return exp2f(x * 1.4426950408889634f); }
static inline float emu_fast_log(float x) { return log2f(x) * 0.6931471805599453f; }
#define __expf emu_fast_exp
#define __logf emu_fast_log
#define __log2f log2f
#define __exp2f exp2f

static inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
static inline int __float2int_rz(float x) { return int(x); }
static inline unsigned __float2uint_rn(float x) { return unsigned(nearbyintf(x)); }
static inline float __int2float_rn(int x) { return float(x); }
static inline float __uint2float_rn(unsigned x) { return float(x); }
static inline float __double2float_rn(double x) { return float(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> (4 * i) & 15;
        unsigned byte = unsigned(bytes >> (8 * (pick & 7)) & 255);
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << (8 * i);
    }
    return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

#define EMU_MIN_MAX(T)                                                                                                 \
    static inline T min(T a, T b) { return b < a ? b : a; }                                                            \
    static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
static inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
static inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
static inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
static inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
