// Kernels without special instructions: they compile with nvcc too, for launch checks against a real image.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) copy(float* out, const float* in, int n, float scale) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) out[i] = in[i] * scale;
}

// out[b] = sum of the block's 1024 inputs: shuffles, then static shared memory.
extern "C" __global__ void __launch_bounds__(256) block_sums(float* out, const float* in) {
    __shared__ float partial[8];
    const float4 x = reinterpret_cast<const float4*>(in)[blockIdx.x * 256 + threadIdx.x];
    float sum = x.x + x.y + x.z + x.w;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int i = 0; i < 8; ++i) total += partial[i];
        out[blockIdx.x] = total;
    }
}

// Reverses `words` floats through dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024) reverse(float* out, const float* in, int words) {
    extern __shared__ __align__(128) unsigned char shared[];
    float* const buffer = reinterpret_cast<float*>(shared);
    for (int i = int(threadIdx.x); i < words; i += int(blockDim.x)) buffer[i] = in[i];
    __syncthreads();
    for (int i = int(threadIdx.x); i < words; i += int(blockDim.x)) out[i] = buffer[words - 1 - i];
}

// Parameters of every size, in an order that leaves holes.
extern "C" __global__ void __launch_bounds__(32)
    mixed(double* out, int a, long long b, float c, unsigned char d, double e) {
    if (threadIdx.x == 0) *out = double(a) + double(b) + double(c) + double(d) + e;
}

// Votes, all shuffles, and the barrier's reductions; out[96 + ...].
extern "C" __global__ void __launch_bounds__(64) collectives(int* out) {
    const int t = int(threadIdx.x), lane = t % 32;
    int* mine = out + t * 10;
    mine[0] = int(__ballot_sync(kAllLanes, lane % 3 == 0));
    mine[1] = __any_sync(kAllLanes, lane == 7);
    mine[2] = __all_sync(kAllLanes, lane < 31);
    mine[3] = __shfl_sync(kAllLanes, t, lane + 1, 8);
    mine[4] = __shfl_up_sync(kAllLanes, t, 3u);
    mine[5] = __shfl_down_sync(kAllLanes, t, 2u, 16);
    mine[6] = int(__shfl_xor_sync(kAllLanes, (unsigned long long)t << 33, 5) >> 33);
    mine[7] = __syncthreads_count(t % 5 == 0);
    mine[8] = __syncthreads_or(t == 63);
    mine[9] = __syncthreads_and(t != 63);
}

// One thread's trip through bf16 and f16.
extern "C" __global__ void __launch_bounds__(128) round_trip(float* bf16, float* f16, const float* in, int n) {
    for (int i = int(threadIdx.x); i < n; i += 128) {
        bf16[i] = __bfloat162float(__float2bfloat16_rn(in[i]));
        f16[i] = __half2float(__float2half_rn(in[i]));
    }
}
