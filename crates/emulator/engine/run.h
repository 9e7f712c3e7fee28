// What the driver asks of the interpreter.
#pragma once

#include "execute.h"

namespace emu::ptx {

int run_kernel(const Launch& launch, Kernel& kernel);  // 0 or a CUresult
uint32_t static_bytes(Kernel& kernel);                 // of shared memory
// The offsets of the parameters, and in them, that are used as addresses of global memory.
const std::vector<uint32_t>& pointers(Kernel& kernel);

}  // namespace emu::ptx
