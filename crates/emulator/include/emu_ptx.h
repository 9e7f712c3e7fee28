// Twins of the wrappers in kernels/ptx.cuh, for the emulated device.
//
// Each one takes its position in the source as trailing default arguments, so that faults name the kernel's line.
#pragma once

#include "emu.h"

#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace ptx {

static inline uint32_t smem_address(const void* pointer, EMU_HERE) { return emu_shared_address(pointer, file, line); }

static inline void cp_async16(uint32_t smem, const void* gmem, bool valid, EMU_HERE) {
    emu_copy_async(smem, gmem, valid, file, line);
}
static inline void cp_async_commit() { emu_copy_commit(); }
template <int N>
static inline void cp_async_wait(EMU_HERE) {
    emu_copy_wait(N, file, line);
}

static inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t smem, EMU_HERE) {
    emu_ldmatrix(r, 4, false, smem, file, line);
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t smem, EMU_HERE) {
    emu_ldmatrix(r, 4, true, smem, file, line);
}
static inline void ldmatrix_x2(uint32_t (&r)[2], uint32_t smem, EMU_HERE) {
    emu_ldmatrix(r, 2, false, smem, file, line);
}
static inline void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t smem, EMU_HERE) {
    emu_ldmatrix(r, 2, true, smem, file, line);
}

static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_HERE) {
    emu_mma(d, a, b, 1, 1, EMU_BF16, file, line);
}
static inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_HERE) {
    emu_mma(d, a, b, 1, 1, EMU_F16, file, line);
}
template <int MI, int NI>
static inline void mma_tile_bf16(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NI][2],
                                 EMU_HERE) {
    emu_mma(&d[0][0][0], &a[0][0], &b[0][0], MI, NI, EMU_BF16, file, line);
}
template <int MI, int NI>
static inline void mma_tile_f16(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NI][2],
                                EMU_HERE) {
    emu_mma(&d[0][0][0], &a[0][0], &b[0][0], MI, NI, EMU_F16, file, line);
}

static inline uint64_t policy_evict_first() { return 0; }
static inline uint4 ld_global_stream(const void* gmem) { return *static_cast<const uint4*>(gmem); }

static inline unsigned ld_acquire(const unsigned* address, EMU_HERE) { return emu_load_acquire(address, file, line); }
static inline void st_release(unsigned* address, unsigned value, EMU_HERE) {
    emu_store_release(address, value, file, line);
}
static inline unsigned atom_add_acq_rel(unsigned* address, unsigned value, EMU_HERE) {
    return unsigned(emu_atomic(EMU_ADD, 4, address, value, 0, EMU_ACQUIRE_RELEASE, file, line));
}

static inline void mbarrier_init(uint32_t smem, uint32_t count, EMU_HERE) {
    emu_mbarrier_init(smem, count, file, line);
}
// One arrival that also announces `bytes` of asynchronous copies.
static inline void mbarrier_expect_tx(uint32_t smem, uint32_t bytes, EMU_HERE) {
    emu_mbarrier_arrive(smem, bytes, file, line);
}
static inline void mbarrier_arrive(uint32_t smem, EMU_HERE) { emu_mbarrier_arrive(smem, 0, file, line); }
static inline void mbarrier_wait(uint32_t smem, uint32_t parity, EMU_HERE) {
    emu_mbarrier_wait(smem, parity, file, line);
}
static inline void fence_barrier_init() {}
static inline void fence_proxy_async() {}
static inline void bulk_copy(uint32_t smem_dst, const void* gmem, uint32_t bytes, uint32_t mbar, EMU_HERE) {
    emu_bulk_copy(smem_dst, gmem, bytes, mbar, file, line);
}

}  // namespace ptx
