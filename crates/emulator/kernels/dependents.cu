// Kernels in a row, each of which may begin before the one before it has ended; and such that do what they must not.
#include "common.cuh"

namespace dependents {

__device__ __forceinline__ int index() { return int(blockIdx.x * blockDim.x + threadIdx.x); }

// Reads here, and not where the compiler likes.
__device__ __forceinline__ float read(const float* address) { return *static_cast<const volatile float*>(address); }

}  // namespace dependents

using namespace dependents;

// Weights are read before the wait, all else behind it.
extern "C" __global__ void __launch_bounds__(64) add_weights(float* out, const float* in, const float* weights) {
    ptx::launch_dependents();
    const int i = index();
    const float weight = __ldg(weights + i);
    ptx::wait_for_predecessors();
    out[i] = read(in + i) + weight;
}

// Without launch_dependents, which is no mistake.
extern "C" __global__ void __launch_bounds__(64) add_late(float* out, const float* in, const float* weights) {
    ptx::wait_for_predecessors();
    out[index()] = read(in + index()) + read(weights + index());
}

extern "C" __global__ void __launch_bounds__(64) bug_never_waits(float* out, const float* in, const float* weights) {
    out[index()] = read(in + index()) + read(weights + index());
}

extern "C" __global__ void __launch_bounds__(64) bug_first_block_waits(float* out, const float*, const float* weights) {
    if (blockIdx.x == 0) ptx::wait_for_predecessors();
    if (blockIdx.x == 0) out[index()] = read(weights + index());
}

extern "C" __global__ void __launch_bounds__(64) bug_reads_early(float* out, const float* in, const float* weights) {
    const float before = read(in + index());
    ptx::wait_for_predecessors();
    out[index()] = before + read(weights + index());
}

// Behind the wait, but by a load for what nobody writes while the kernel lives, as it does since before the wait.
extern "C" __global__ void __launch_bounds__(64) bug_reads_constant(float* out, const float* in, const float* weights) {
    ptx::wait_for_predecessors();
    out[index()] = __ldg(in + index()) + read(weights + index());
}

extern "C" __global__ void __launch_bounds__(64) bug_writes_early(float* out, const float* in, const float* weights) {
    *static_cast<volatile float*>(out + index()) = read(weights + index());
    ptx::wait_for_predecessors();
    out[index()] += read(in + index());
}

// The same by an asynchronous copy and by a bulk copy; blocks of 64.
extern "C" __global__ void __launch_bounds__(64) bug_copies_early(float* out, const float* in, const float* weights) {
    __shared__ __align__(128) float line[64];
    const int t = int(threadIdx.x);
    if (t < 16) ptx::cp_async16(ptx::smem_address(line + 4 * t), in + blockIdx.x * 64 + 4 * t, true);
    ptx::wait_for_predecessors();
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    out[index()] = line[t] + read(weights + index());
}

extern "C" __global__ void __launch_bounds__(64) bug_copies_bulk_early(float* out, const float* in, const float* weights) {
    __shared__ __align__(128) float line[64];
    __shared__ unsigned long long barrier[1];
    const uint32_t full = ptx::smem_address(barrier);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_barrier_init();
        ptx::mbarrier_expect_tx(full, sizeof(line));
        ptx::bulk_copy(ptx::smem_address(line), in + blockIdx.x * 64, sizeof(line), full);
    }
    ptx::wait_for_predecessors();
    __syncthreads();
    ptx::mbarrier_wait(full, 0);
    out[index()] = line[threadIdx.x] + read(weights + index());
}
