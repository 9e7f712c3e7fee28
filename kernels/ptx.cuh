// The only place with inline PTX: one typed function per instruction, so that kernels read as prose.
//
// Shared-memory addresses are 32-bit (`smem_address`).
#pragma once

#include <cstdint>

namespace ptx {

__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- asynchronous copies, sm_80 ------------------------------------------------------------------------------------

// 16 bytes, global to shared, past L1. With `valid` false the destination is zeroed and `gmem` is not read.
__device__ __forceinline__ void cp_async16(uint32_t smem, const void* gmem, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem), "l"(gmem), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's committed groups are still pending.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrix fragments ----------------------------------------------------------------------------------------------

// Lane l gives the address of row l % 8 of 8x8 matrix l / 8; register i of lane l receives elements 2 (l % 4) and the
// next of row l / 4 of matrix i. The `_trans` forms read the matrices transposed.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
}

// Addresses of lanes 16 and up are ignored.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], uint32_t smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem)
                 : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8]; a by rows, b by columns. With g = lane / 4 and t = lane % 4, d holds (g, 2t),
// (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A register tile at once.
template <int MI, int NI>
__device__ __forceinline__ void mma_tile_bf16(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4],
                                              const uint32_t (&b)[NI][2]) {
#pragma unroll
    for (int i = 0; i < MI; ++i) {
#pragma unroll
        for (int j = 0; j < NI; ++j) mma_bf16(d[i][j], a[i], b[j]);
    }
}

template <int MI, int NI>
__device__ __forceinline__ void mma_tile_f16(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4],
                                             const uint32_t (&b)[NI][2]) {
#pragma unroll
    for (int i = 0; i < MI; ++i) {
#pragma unroll
        for (int j = 0; j < NI; ++j) mma_f16(d[i][j], a[i], b[j]);
    }
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// 1 / x, off by one unit in the last place at most.
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- selection -----------------------------------------------------------------------------------------------------

// x if `bits` has the bit, else zero: one instruction for the bit and one for x, where nvcc makes two shifts and masks of it.
__device__ __forceinline__ float if_bit(uint32_t bits, uint32_t bit, float x) {
    float y;
    asm("{\n\t"
        ".reg .pred p;\n\t"
        ".reg .b32 t;\n\t"
        "and.b32 t, %1, %2;\n\t"
        "setp.ne.u32 p, t, 0;\n\t"
        "selp.f32 %0, %3, 0f00000000, p;\n\t"
        "}"
        : "=f"(y)
        : "r"(bits), "r"(bit), "f"(x));
    return y;
}

// ---- global memory -------------------------------------------------------------------------------------------------

// A cache policy for data that is read once.
__device__ __forceinline__ uint64_t policy_evict_first() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Brings the line of 128 bytes to L2, if it is not there.
__device__ __forceinline__ void prefetch_l2(const void* gmem) { asm volatile("prefetch.global.L2 [%0];" ::"l"(gmem)); }

// Shared memory of the thread's own, whose accesses stay in this order: the compiler neither gathers loads nor delays stores.
__device__ __forceinline__ float4 ld_shared_ordered(uint32_t smem) {
    float4 v;
    asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(smem)
                 : "memory");
    return v;
}

__device__ __forceinline__ void st_shared_ordered(uint32_t smem, float4 v) {
    asm volatile("st.volatile.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(smem), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

// ---- tickets: order between blocks ---------------------------------------------------------------------------------

__device__ __forceinline__ unsigned ld_acquire(const unsigned* address) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

__device__ __forceinline__ void st_release(unsigned* address, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// Returns the value before the addition.
__device__ __forceinline__ unsigned atom_add_acq_rel(unsigned* address, unsigned value) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(address), "r"(value)
                 : "memory");
    return before;
}

// ---- sm_90: kernels that begin before the one before them has ended --------------------------------------------------
//
// Elsewhere a kernel begins when the one before it has ended, and these do nothing.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kBeginsEarly = true;
#else
constexpr bool kBeginsEarly = false;
#endif

// Until all kernels before this one have ended, and what they wrote can be seen. Behind it a kernel may touch what it likes; before it,
// nothing that they write, and it writes nothing. Every kernel waits, even if it needs nothing of theirs: whoever waits for this one
// takes them for ended, too.
__device__ __forceinline__ void wait_for_predecessors() {
    if constexpr (kBeginsEarly) asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The next kernel may begin, as far as it gets before its wait, once all blocks have called this or exited.
__device__ __forceinline__ void launch_dependents() {
    if constexpr (kBeginsEarly) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- sm_90: barriers in shared memory and bulk copies --------------------------------------------------------------

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void mbarrier_init(uint32_t smem, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem), "r"(count) : "memory");
}

// One arrival that also announces `bytes` of asynchronous copies.
__device__ __forceinline__ void mbarrier_expect_tx(uint32_t smem, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem), "r"(bytes) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t smem) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem) : "memory");
}

// Returns once the phase of the given parity has completed.
__device__ __forceinline__ void mbarrier_wait(uint32_t smem, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra finished;\n"
        "bra again;\n"
        "finished:\n"
        "}" ::"r"(smem),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Orders ordinary shared-memory accesses before asynchronous ones.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Global to shared; addresses and size are multiples of 16. Completes on the barrier.
__device__ __forceinline__ void bulk_copy(uint32_t smem_dst, const void* gmem, uint32_t bytes, uint32_t mbar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     smem_dst),
                 "l"(gmem), "r"(bytes), "r"(mbar)
                 : "memory");
}

// A box of a matrix in global memory that the map describes, to shared memory: rows from `row` on, elements from `column` on. What
// the matrix lacks becomes zero. Completes on the barrier with all bytes of the box.
__device__ __forceinline__ void tensor_copy(uint32_t smem_dst, const void* map, int column, int row, uint32_t mbar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            smem_dst),
        "l"(map), "r"(column), "r"(row), "r"(mbar)
        : "memory");
}

#endif

// Barrier `id` of the block, for `threads` of its threads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- sm_90a alone: products of a warpgroup of four warps, from shared memory ----------------------------------------

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Registers of each thread from here on; all warps of the warpgroup come here.
template <int N>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// A matrix in shared memory by core matrices, 8 rows of 16 bytes each, 128 bytes that lie together. `leading` is the way in
// bytes from one to the next along the sum, `stride` the way to the next 8 rows.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t smem, uint32_t leading, uint32_t stride) {
    const auto field = [](uint32_t bytes) { return static_cast<uint64_t>(bytes >> 4 & 0x3fff); };
    return field(smem) | field(leading) << 16 | field(stride) << 32;
}

// A matrix in shared memory by lines of 128 bytes whose 16-byte chunks are swizzled: 8 lines are 1024 bytes, to a multiple of which
// the matrix is aligned; the next 8 follow. Lines are rows of 64 elements along the sum, or, for a transposed operand, 64 rows at
// one place of the sum, of which the next 64 follow `leading` bytes behind. `smem` may be inside a line: at the next 16 elements.
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t smem, uint32_t leading = 16) {
    return matrix_descriptor(smem, leading, 1024) | static_cast<uint64_t>(1) << 62;
}

// Before the first product, and after other instructions have written the accumulator.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Registers of products that have just been written: the compiler does so before the fence that follows, and not behind it.
template <int R>
__device__ __forceinline__ void written(float (&d)[R]) {
#pragma unroll
    for (int i = 0; i < R; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int STEPS>
__device__ __forceinline__ void written(uint32_t (&a)[STEPS][4]) {
#pragma unroll
    for (int i = 0; i < 4 * STEPS; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N committed groups are still pending; the accumulators of the others may be read then.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// d[64, N] += a[64, 16] b[N, 16]^T, with the sum's index running fastest in b, and in a unless ACROSS. With g = lane / 4 and
// t = lane % 4 warp w of the warpgroup has in d[4 j ..] the rows 16 w + g and 16 w + g + 8 of columns 8 j + 2 t and the next.
template <int N>
struct Wgmma;

#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_8(i) WGMMA_4(i), WGMMA_4(i + 4)
#define WGMMA_16(i) WGMMA_8(i), WGMMA_8(i + 8)
#define WGMMA_32(i) WGMMA_16(i), WGMMA_16(i + 16)
#define WGMMA_64(i) WGMMA_32(i), WGMMA_32(i + 32)

// The names of registers: four, the rest of eight, and eights.
#define WGMMA_NAMES_4 "%0, %1, %2, %3"
#define WGMMA_NAMES_8 WGMMA_NAMES_4 ", %4, %5, %6, %7"
#define WGMMA_NAMES_12 \
    WGMMA_NAMES_8 ", %8, %9, %10, %11"
#define WGMMA_NAMES_16 \
    WGMMA_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_24 \
    WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_NAMES_32 \
    WGMMA_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_48 \
    WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_64 \
    WGMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_96 \
    WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_100 \
    WGMMA_NAMES_96 ", %96, %97, %98, %99"

// N columns in R registers; A, B and TRANS are the places of the operands behind them.
#define WGMMA(N, R, A, B, TRANS, ...)                                                                                   \
    template <>                                                                                                         \
    struct Wgmma<N> {                                                                                                   \
        template <bool ACROSS>                                                                                          \
        static __device__ __forceinline__ void bf16(float (&d)[R], uint64_t a, uint64_t b) {                            \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_NAMES_##R "}, " A ", " B    \
                         ", 1, 1, 1, " TRANS ", 0;"                                                                     \
                         : __VA_ARGS__                                                                                  \
                         : "l"(a), "l"(b), "n"(ACROSS ? 1 : 0));                                                        \
        }                                                                                                               \
        template <bool ACROSS>                                                                                          \
        static __device__ __forceinline__ void f16(float (&d)[R], uint64_t a, uint64_t b) {                             \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" WGMMA_NAMES_##R "}, " A ", " B      \
                         ", 1, 1, 1, " TRANS ", 0;"                                                                     \
                         : __VA_ARGS__                                                                                  \
                         : "l"(a), "l"(b), "n"(ACROSS ? 1 : 0));                                                        \
        }                                                                                                               \
    };

WGMMA(8, 4, "%4", "%5", "%6", WGMMA_4(0))
WGMMA(16, 8, "%8", "%9", "%10", WGMMA_8(0))
WGMMA(24, 12, "%12", "%13", "%14", WGMMA_8(0), WGMMA_4(8))
WGMMA(32, 16, "%16", "%17", "%18", WGMMA_16(0))
WGMMA(48, 24, "%24", "%25", "%26", WGMMA_16(0), WGMMA_8(16))
WGMMA(64, 32, "%32", "%33", "%34", WGMMA_32(0))
WGMMA(96, 48, "%48", "%49", "%50", WGMMA_32(0), WGMMA_16(32))
WGMMA(128, 64, "%64", "%65", "%66", WGMMA_64(0))
WGMMA(192, 96, "%96", "%97", "%98", WGMMA_64(0), WGMMA_32(64))
WGMMA(200, 100, "%100", "%101", "%102", WGMMA_64(0), WGMMA_32(64), WGMMA_4(96))

// The same with a in registers, those of mma_bf16 in each of the four warps; columns run fastest in b if ACROSS. What is in a stays as
// it is until the product has been waited for.
#define WGMMA_FROM_REGISTERS(N, R, A, B, TRANS, ...)                                                                    \
    template <bool ACROSS>                                                                                              \
    __device__ __forceinline__ void wgmma_bf16(float (&d)[R], const uint32_t (&a)[4], uint64_t b) {                     \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_NAMES_##R "}, {" A "}, " B      \
                     ", 1, 1, 1, " TRANS ";"                                                                            \
                     : __VA_ARGS__                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS ? 1 : 0));                        \
    }                                                                                                                   \
    template <bool ACROSS>                                                                                              \
    __device__ __forceinline__ void wgmma_f16(float (&d)[R], const uint32_t (&a)[4], uint64_t b) {                      \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" WGMMA_NAMES_##R "}, {" A "}, " B        \
                     ", 1, 1, 1, " TRANS ";"                                                                            \
                     : __VA_ARGS__                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS ? 1 : 0));                        \
    }

WGMMA_FROM_REGISTERS(64, 32, "%32, %33, %34, %35", "%36", "%37", WGMMA_32(0))
WGMMA_FROM_REGISTERS(128, 64, "%64, %65, %66, %67", "%68", "%69", WGMMA_64(0))

#undef WGMMA_FROM_REGISTERS
#undef WGMMA

#endif

}  // namespace ptx
