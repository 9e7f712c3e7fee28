// What memory gives when it is only read: the denominator of the benchmark's percentages beside a copy.
//
//   out[blocks] u32 = exclusive or of the words that a block read, so that no load is optimised away
//
// Contract: only for `ggro kernels bench`. in is aligned to 16 bytes; count pieces of 16 bytes, 64-bit.
// Bytes: read 16 count, once and by streaming loads. A thread has four loads in flight.
#include "common.cuh"

namespace ggro {

constexpr int kReadThreads = 512;
constexpr int kReadLoads = 4;

__device__ __forceinline__ unsigned folded(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

}  // namespace ggro

// Grid: any. Block: 512.
extern "C" __global__ void __launch_bounds__(ggro::kReadThreads)
    read_peak(unsigned* out, const uint4* in, unsigned long long count) {
    using namespace ggro;
    await_turn();
    __shared__ unsigned partial[kReadThreads / kWarp];
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * kReadThreads;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * kReadThreads + threadIdx.x;
    unsigned sum = 0;
    for (; at + (kReadLoads - 1) * step < count; at += kReadLoads * step) {
        uint4 loaded[kReadLoads];
#pragma unroll
        for (int i = 0; i < kReadLoads; ++i) loaded[i] = __ldcs(in + at + i * step);
#pragma unroll
        for (int i = 0; i < kReadLoads; ++i) sum ^= folded(loaded[i]);
    }
    for (; at < count; at += step) sum ^= folded(__ldcs(in + at));
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) sum ^= __shfl_xor_sync(kAllLanes, sum, distance);
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = sum;
    __syncthreads();  // all warps have written their part
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < kReadThreads / kWarp; ++warp) sum ^= partial[warp];
    out[blockIdx.x] = sum;
}
