// The boundary between compiled kernels and the engine: what a kernel library calls, and how it introduces itself.
//
// Everything here is C linkage and plain data, because the two sides are separate shared libraries. Positions in the
// source travel as (file, line) pairs taken at the call by __builtin_FILE/__builtin_LINE: duplicated or merged machine
// code cannot confuse them, and no debug information is needed to name a barrier.
#pragma once

#include <cstddef>
#include <cstdint>

#define EMU_AT const char *file, int line

extern "C" {

// One kernel parameter as g++ laid it out.
struct EmuParameter {
    uint32_t size, align;
    bool pointer;
};

struct EmuKernel {
    const char* name;
    void (*thunk)(void* const* parameters);  // unpacks the parameters and calls the kernel for the current thread
    const EmuParameter* parameters;
    uint32_t parameter_count;
    bool checked;                     // compiled with the access hooks
    char *shared_begin, *shared_end;  // the library's static shared memory
};

enum EmuBarrier { EMU_BARRIER, EMU_BARRIER_OR, EMU_BARRIER_AND, EMU_BARRIER_COUNT };
enum EmuShuffle { EMU_SHUFFLE_INDEX, EMU_SHUFFLE_UP, EMU_SHUFFLE_DOWN, EMU_SHUFFLE_XOR };
enum EmuAtomic {
    EMU_ADD,
    EMU_MIN_SIGNED,
    EMU_MAX_SIGNED,
    EMU_MIN_UNSIGNED,
    EMU_MAX_UNSIGNED,
    EMU_EXCHANGE,
    EMU_COMPARE_AND_SWAP,
    EMU_AND,
    EMU_OR,
    EMU_XOR
};
enum EmuOrder { EMU_RELAXED = 0, EMU_ACQUIRE = 1, EMU_RELEASE = 2, EMU_ACQUIRE_RELEASE = 3 };
enum EmuMatrix { EMU_BF16, EMU_F16 };

void emu_register(const EmuKernel* kernel);

// Constant for the whole life of a thread, which is what lets the compiler keep them in registers.
__attribute__((const)) unsigned emu_thread_index(int axis);
__attribute__((const)) unsigned emu_block_index(int axis);
__attribute__((const)) unsigned emu_block_size(int axis);
__attribute__((const)) unsigned emu_grid_size(int axis);

unsigned emu_barrier(int kind, int predicate, EMU_AT);
void emu_syncwarp(unsigned mask, EMU_AT);
uint64_t emu_shuffle(unsigned mask, uint64_t value, int kind, int argument, int width, EMU_AT);
unsigned emu_ballot(unsigned mask, int predicate, EMU_AT);
void emu_ldmatrix(uint32_t* registers, int matrices, bool transposed, uint32_t address, EMU_AT);
// d[mi][ni] += a[mi] b[ni] over one warp; all three are this lane's fragments.
void emu_mma(float* d, const uint32_t* a, const uint32_t* b, int mi, int ni, int type, EMU_AT);

uint64_t emu_atomic(int operation, int bytes, void* address, uint64_t value, uint64_t compare, int order, EMU_AT);
unsigned emu_load_acquire(const unsigned* address, EMU_AT);
void emu_store_release(unsigned* address, unsigned value, EMU_AT);
void emu_fence(void);
void emu_yield(EMU_AT);
[[noreturn]] void emu_trap(EMU_AT);

unsigned char* emu_dynamic_shared(void);
uint32_t emu_shared_address(const void* pointer, EMU_AT);

void emu_copy_async(uint32_t shared, const void* global, bool valid, EMU_AT);
void emu_copy_commit(void);
void emu_copy_wait(int pending, EMU_AT);

void emu_mbarrier_init(uint32_t address, uint32_t count, EMU_AT);
void emu_mbarrier_arrive(uint32_t address, uint32_t bytes, EMU_AT);
void emu_mbarrier_wait(uint32_t address, uint32_t parity, EMU_AT);
void emu_bulk_copy(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier, EMU_AT);
}
