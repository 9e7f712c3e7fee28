// What the tensor core does when nothing else limits it: the denominator of the benchmark's percentages.
//
//   out[threads of the grid] f32: a sum that depends on every product, so that none is optimised away.
//
// Contract: only for `ggro kernels bench`. Each warp keeps 8 independent accumulator tiles in registers and runs
// `rounds` rounds of one mma.m16n8k16 on each.
// Bytes: none to speak of. Flops: 8 x 4096 per warp and round. This is the peak of mma.sync; by the data sheet wgmma
// reaches half as much again on sm_90.
#include "common.cuh"

namespace ggro {

constexpr int kPeakThreads = 256;
constexpr int kPeakTiles = 8;

}  // namespace ggro

// Grid: any. Block: 256.
extern "C" __global__ void __launch_bounds__(ggro::kPeakThreads) mma_peak_bf16(float* out, int rounds) {
    ggro::await_turn();
    // Small numbers that differ between lanes: 1.0 in bf16 with a few low bits.
    uint32_t a[1][4], b[ggro::kPeakTiles][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[0][i] = 0x3c003c00u + threadIdx.x + i;
#pragma unroll
    for (int j = 0; j < ggro::kPeakTiles; ++j) b[j][0] = b[j][1] = 0x3c003c00u + j;
    float sums[1][ggro::kPeakTiles][4] = {};
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) ptx::mma_tile_bf16<1, ggro::kPeakTiles>(sums, a, b);
    float all = 0.0f;
#pragma unroll
    for (int j = 0; j < ggro::kPeakTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) all += sums[0][j][r];
    }
    out[static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x] = all;
}
