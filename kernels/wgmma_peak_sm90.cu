// What the tensor core of Hopper does when nothing else limits it: products of whole warpgroups from shared memory, which
// mma.sync does not reach there. See mma_peak.cu for the latter.
//
//   out[threads of the grid] f32: a sum that depends on every product
//
// Contract: only for `ggro kernels bench`. A block has two warpgroups. Each keeps one accumulator of 64 x 128 in registers and
// runs `rounds` rounds of 16 m64n128k16, which are one group. While one warpgroup waits for its group, the others have theirs.
// Bytes: none to speak of. Flops: 16 x 2 x 64 x 128 x 16 per warpgroup and round.
#include "common.cuh"

namespace ggro {

constexpr int kWgmmaThreads = 256;

}  // namespace ggro

// Grid: any. Block: 256.
extern "C" __global__ void __launch_bounds__(ggro::kWgmmaThreads) wgmma_peak_bf16(float* out, int rounds) {
    using namespace ggro;
    await_turn();
    constexpr int kSteps = 4;   // of 16 along the sum, which a group goes over again and again
    constexpr int kGroup = 16;  // products of a group
    constexpr int kCore = 128;  // bytes of a core matrix
    constexpr int kCoresA = 64 / 8, kCoresB = 128 / 8;
    // Two core matrices along the sum per step, each for all rows.
    constexpr int kWords = kSteps * 2 * (kCoresA + kCoresB) * kCore / 4;
    __shared__ uint4 operands[kWords / 4];
    // Small numbers that differ: 2^-7 in bf16 with a few low bits.
    for (int i = threadIdx.x; i < kWords / 4; i += kWgmmaThreads) {
        const uint32_t word = 0x3c003c00u + i % 8;
        operands[i] = make_uint4(word, word + 1, word + 2, word + 3);
    }
    ptx::fence_proxy_async();
    __syncthreads();  // the operands are complete
    const uint32_t a = ptx::smem_address(operands), b = a + kSteps * 2 * kCoresA * kCore;
    float sums[64] = {};
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            const int step = i % kSteps;
            ptx::Wgmma<128>::bf16<false>(sums, ptx::matrix_descriptor(a + step * 2 * kCoresA * kCore, kCoresA * kCore, kCore),
                                    ptx::matrix_descriptor(b + step * 2 * kCoresB * kCore, kCoresB * kCore, kCore));
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
    }
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < 64; ++i) all += sums[i];
    out[static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x] = all;
}
