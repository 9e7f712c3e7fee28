// Planted bugs, one per kernel. The suite says what each must be caught as.
#include "common.cuh"

#define BUG(name, ...) extern "C" __global__ void __launch_bounds__(256) name(__VA_ARGS__)

BUG(bug_read_past_end, float* out, const float* in, int n) {
    out[threadIdx.x] = in[threadIdx.x + (threadIdx.x == 63 ? n : 0)];
}

BUG(bug_write_past_end, float* out, int n) { out[int(threadIdx.x) < n ? threadIdx.x : threadIdx.x + 1] = 1.0f; }

BUG(bug_misaligned_vector, float* out, const float* in) {
    const float4 x = *reinterpret_cast<const float4*>(in + 1);
    out[threadIdx.x] = x.x + x.w;
}

BUG(bug_copy_global, float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x]; }

BUG(bug_uninitialised_shared, float* out) {
    __shared__ float x[64];
    if (threadIdx.x < 63) x[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}

BUG(bug_no_syncthreads, float* out) {
    __shared__ float x[64];
    x[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = x[63 - threadIdx.x];
}

// The second round overwrites what the first still reads.
BUG(bug_no_second_barrier, float* out) {
    __shared__ float x[64];
    float sum = 0.0f;
    for (int round = 0; round < 2; ++round) {
        x[threadIdx.x] = float(threadIdx.x + unsigned(round));
        __syncthreads();
        sum += x[63 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
}

BUG(bug_no_syncwarp, float* out) {
    __shared__ float x[32];
    x[threadIdx.x] = float(threadIdx.x);
    const float y = __shfl_xor_sync(kAllLanes, float(threadIdx.x), 1);  // waits for the others, but orders no memory
    out[threadIdx.x] = x[31 - threadIdx.x] + y;
}

BUG(fixed_syncwarp, float* out) {
    __shared__ float x[32];
    x[threadIdx.x] = float(threadIdx.x);
    const float y = __shfl_xor_sync(kAllLanes, float(threadIdx.x), 1);
    __syncwarp();
    out[threadIdx.x] = x[31 - threadIdx.x] + y;
}

// Half of the block exits before the barrier.
BUG(bug_barrier_after_exit, float* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1.0f;
}

BUG(bug_two_barriers, float* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1.0f;
}

// Lane 0 waits for its warp in a shuffle, the others for the block.
BUG(bug_barrier_deadlock, float* out) {
    float x = 1.0f;
    if (threadIdx.x == 0) {
        x = __shfl_sync(kAllLanes, x, 0);
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = x;
}

// Reads the copy's target before waiting for it.
BUG(bug_no_copy_wait, float* out, const float* in) {
    __shared__ float4 x[64];
    ptx::cp_async16(ptx::smem_address(&x[threadIdx.x]), in + 4 * threadIdx.x, true);
    ptx::cp_async_commit();
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x].x;
    ptx::cp_async_wait<0>();
}

// Waits for its own copies, but reads another thread's.
BUG(bug_copy_without_barrier, float* out, const float* in) {
    __shared__ float4 x[64];
    ptx::cp_async16(ptx::smem_address(&x[threadIdx.x]), in + 4 * threadIdx.x, true);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    out[threadIdx.x] = x[63 - threadIdx.x].x;
}

// The next copy lands in the buffer that slower threads still read.
BUG(bug_refill_too_early, float* out, const float* in) {
    __shared__ float4 x[64];
    float sum = 0.0f;
    for (int round = 0; round < 3; ++round) {
        ptx::cp_async16(ptx::smem_address(&x[threadIdx.x]), in + 256 * round + 4 * threadIdx.x, true);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
        sum += x[63 - threadIdx.x].x;
    }
    out[threadIdx.x] = sum;
}

BUG(bug_block_race, float* out) { out[0] = float(blockIdx.x); }

BUG(bug_neighbour_block, float* out) {
    out[blockIdx.x * 32 + threadIdx.x] = 1.0f;
    if (blockIdx.x > 0) out[gridDim.x * 32 + blockIdx.x * 32 + threadIdx.x] = out[(blockIdx.x - 1) * 32 + threadIdx.x];
}

BUG(bug_global_race, float* out) {
    out[threadIdx.x] = 1.0f;
    out[64 + threadIdx.x] = out[63 - threadIdx.x];
}

BUG(bug_shared_overflow, float* out, int words) {
    extern __shared__ __align__(128) unsigned char shared[];
    float* const x = reinterpret_cast<float*>(shared);
    for (int i = int(threadIdx.x); i < words; i += 64) x[i] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}

BUG(bug_trap, float* out) {
    if (threadIdx.x == 5) __trap();
    out[threadIdx.x] = 1.0f;
}

BUG(bug_wait_for_later_block, unsigned* flag) {
    if (blockIdx.x == 0) {
        while (ptx::ld_acquire(flag) == 0) __nanosleep(100);
    } else {
        ptx::st_release(flag, 1);
    }
}

BUG(bug_endless_loop, const float* in) {
    const volatile float* v = in;
    while (*v == 0.0f) {
    }
}

BUG(bug_divide_by_zero, int* out, int by) { out[threadIdx.x] = 1000 / (int(threadIdx.x) - by); }

BUG(bug_shuffle_from_nobody, int* out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffu, int(threadIdx.x), 16);
}

BUG(bug_mbarrier_never_initialised, float* out) {
    __shared__ unsigned long long barrier[1];
    ptx::mbarrier_wait(ptx::smem_address(barrier), 0);
    out[threadIdx.x] = 1.0f;
}

// A second arrival in a phase that still waits for bytes.
BUG(bug_mbarrier_two_arrivals, float* out) {
    __shared__ unsigned long long barrier[1];
    const uint32_t full = ptx::smem_address(barrier);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::mbarrier_expect_tx(full, 256);
        ptx::mbarrier_arrive(full);
    }
    out[threadIdx.x] = 1.0f;
}

// Reads a stage without waiting for the bulk copy that fills it.
BUG(bug_no_bulk_wait, float* out, const float* in) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ unsigned long long barrier[1];
    const uint32_t full = ptx::smem_address(barrier);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_barrier_init();
        ptx::mbarrier_expect_tx(full, 256);
        ptx::bulk_copy(ptx::smem_address(shared), in, 256, full);
    }
    __syncthreads();
    out[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];
    ptx::mbarrier_wait(full, 0);
}
