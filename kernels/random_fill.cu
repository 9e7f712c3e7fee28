// Weights of a synthetic model: numbers that depend on a seed and their index alone.
//
//   out[i] 16-bit = round(mean + scale z(seed, first + i)),  i = 0 .. count
//   z = sqrt(3) (a + b + c + d - 2), where a to d are the four 16-bit parts of a mixed 64-bit word, over 2^16: the sum of
//   four uniform numbers, with mean 0, variance 1 and |z| < 3.5
//
// Contract: any size, out aligned to its elements. The sum of the parts is an integer below 2^18, exact in f32; then come
// one product and one fused product and sum, so the host (src/rng.rs) has the same bits.
// Bytes: write 2 per element. Flops: some 20 integer operations per element. It runs once per model: half of the copy
// rate is enough.
#include "common.cuh"

namespace ggro {

constexpr int kFillThreads = 256;

// The finaliser of splitmix64.
__device__ __forceinline__ uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

template <typename T>
__device__ __forceinline__ void random_fill(T* GGRO_RESTRICT out, uint64_t first, uint64_t count, uint64_t seed,
                                            float mean, float scale) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const uint64_t word = mixed(seed + 0x9e3779b97f4a7c15ull * (first + i + 1));
        const int sum = static_cast<int>((word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48));
        const float z = __fmul_rn(static_cast<float>(sum - 131072), 2.6429e-05f);
        out[i] = from_float<T>(__fmaf_rn(z, scale, mean));
    }
}

}  // namespace ggro

// Grid: any. Block: 256.
#define RANDOM_FILL(NAME, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(ggro::kFillThreads)                                          \
        NAME(T* out, unsigned long long first, unsigned long long count, unsigned long long seed, float mean, \
             float scale) {                                                                                   \
        ggro::await_turn();                                                                                   \
        ggro::random_fill<T>(out, first, count, seed, mean, scale);                                           \
    }

RANDOM_FILL(random_fill_bf16, __nv_bfloat16)
RANDOM_FILL(random_fill_f16, __half)
