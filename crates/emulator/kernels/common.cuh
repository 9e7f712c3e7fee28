// For the emulator's own test kernels: the types and wrappers that the project's kernels have.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../../../kernels/ptx.cuh"

constexpr unsigned kAllLanes = 0xffffffffu;
