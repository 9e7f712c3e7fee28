// Matrices of one product of a warp: 16 x 8 sums over 16.
#pragma once

#include "execute.h"

namespace emu::ptx {

constexpr int kM = 16, kN = 8, kK = 16;

struct Operands {
    alignas(32) float a[kM][kK], b[kK][kN], c[kM][kN];
};

// d = a b + c, by the setting `mma`.
void multiply_operands(const Operands& m, bool bf16, float (&d)[kM][kN]);

// Matrix instructions need the whole warp: the mask to go on with, or 0 when `mask` was parked.
uint32_t whole_warp(Warp& w, const Instruction& in, uint32_t mask);

}  // namespace emu::ptx
