// For the emulator's own test kernels: the macros that kernels/common.cuh has, without the rest of it, and the wrappers
// of emu_ptx.h. nvcc takes those of the project's kernels, whose text is executed then.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#ifdef GGRO_EMU
#include "emu_ptx.h"
#else
#include "../../../kernels/ptx.cuh"
#define EMU_KERNEL(name)
#define SHARED(T, name, dims) __shared__ T name dims
#define EXTERN_SHARED(name)                                                                                            \
    extern __shared__ __align__(128) unsigned char emu_dynamic_memory[];                                               \
    unsigned char* const name = emu_dynamic_memory
#endif

constexpr unsigned kAllLanes = 0xffffffffu;
