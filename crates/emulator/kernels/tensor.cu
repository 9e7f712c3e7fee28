// A tensor-core tile, bulk copies and last-arriver reductions: what the real kernels are made of.
#include "common.cuh"

namespace {

constexpr int kTile = 64, kDepth = 32, kStages = 3, kStride = kDepth + 8;  // padded rows: no bank conflicts

__device__ void fill_stage(__nv_bfloat16* stage, const __nv_bfloat16* from, int rows, int row0, int k0, int k) {
    for (int i = int(threadIdx.x); i < kTile * kDepth / 8; i += 128) {
        const int row = i / (kDepth / 8), column = i % (kDepth / 8) * 8;
        ptx::cp_async16(ptx::smem_address(stage + row * kStride + column), from + size_t(row0 + row) * k + k0 + column,
                        row0 + row < rows);
    }
}

}  // namespace

// out[m, n] = a[m, k] b[n, k]^T, 4 warps, 64x64 tiles, three cp.async stages.
extern "C" __global__ void __launch_bounds__(128)
    matmul(float* out, const __nv_bfloat16* a, const __nv_bfloat16* b, int m, int n, int k) {
    extern __shared__ __align__(128) unsigned char shared[];
    __nv_bfloat16* const tiles = reinterpret_cast<__nv_bfloat16*>(shared);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int row0 = int(blockIdx.y) * kTile, column0 = int(blockIdx.x) * kTile;
    float d[2][4][4] = {};
    const int steps = k / kDepth;
    auto stage_a = [&](int s) { return tiles + s % kStages * 2 * kTile * kStride; };
    auto stage_b = [&](int s) { return stage_a(s) + kTile * kStride; };
    for (int s = 0; s < kStages - 1; ++s) {
        if (s < steps) {
            fill_stage(stage_a(s), a, m, row0, s * kDepth, k);
            fill_stage(stage_b(s), b, n, column0, s * kDepth, k);
        }
        ptx::cp_async_commit();
    }
    for (int s = 0; s < steps; ++s) {
#ifndef BUG_WAIT
        ptx::cp_async_wait<kStages - 2>();
#endif
        __syncthreads();
        if (s + kStages - 1 < steps) {
            fill_stage(stage_a(s + kStages - 1), a, m, row0, (s + kStages - 1) * kDepth, k);
            fill_stage(stage_b(s + kStages - 1), b, n, column0, (s + kStages - 1) * kDepth, k);
        }
        ptx::cp_async_commit();
        const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
        for (int k16 = 0; k16 < kDepth; k16 += 16) {
            uint32_t fa[2][4], fb[4][2];
            for (int i = 0; i < 2; ++i) {
                ptx::ldmatrix_x4(fa[i], ptx::smem_address(stage_a(s) + (warp_row + 16 * i + lane % 16) * kStride + k16 +
                                                          lane / 16 * 8));
            }
            for (int j = 0; j < 4; ++j) {
                ptx::ldmatrix_x2(fb[j], ptx::smem_address(stage_b(s) + (warp_column + 8 * j + lane % 8) * kStride +
                                                          k16 + lane / 8 % 2 * 8));
            }
            ptx::mma_tile_bf16<2, 4>(d, fa, fb);
        }
    }
    ptx::cp_async_wait<0>();
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
            for (int h = 0; h < 4; ++h) {
                const int row = row0 + warp / 2 * 32 + 16 * i + lane / 4 + h / 2 * 8;
                const int column = column0 + warp % 2 * 32 + 8 * j + lane % 4 * 2 + h % 2;
                if (row < m && column < n) out[size_t(row) * n + column] = d[i][j][h];
            }
        }
    }
}

// ldmatrix, its transposed form and f16 mma against plain indexing: out = x y with x[16, 16], y[16, 8] f16.
extern "C" __global__ void __launch_bounds__(32) small_f16(float* out, const __half* x, const __half* y) {
    __shared__ __half sx[16 * 16];
    __shared__ __half sy[16 * 8];
    const int lane = int(threadIdx.x);
    for (int i = lane; i < 256; i += 32) sx[i] = x[i];
    for (int i = lane; i < 128; i += 32) sy[i] = y[i];
    __syncwarp();
    uint32_t a[4], b[2];
    float d[4] = {};
    ptx::ldmatrix_x4(a, ptx::smem_address(sx + lane % 16 * 16 + lane / 16 * 8));
    ptx::ldmatrix_x2_trans(b, ptx::smem_address(sy + lane % 16 * 8));
    ptx::mma_f16(d, a, b);
    for (int h = 0; h < 4; ++h) out[(lane / 4 + h / 2 * 8) * 8 + lane % 4 * 2 + h % 2] = d[h];
}

// Doubles `chunks` x 1 KiB through two shared stages: a producer thread issues bulk copies, full and empty mbarriers.
extern "C" __global__ void __launch_bounds__(64) bulk_double(float* out, const float* in, int chunks) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ unsigned long long barriers[4];
    float* const stages = reinterpret_cast<float*>(shared);
    auto full = [&](int s) { return ptx::smem_address(&barriers[s % 2]); };
    auto empty = [&](int s) { return ptx::smem_address(&barriers[2 + s % 2]); };
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; ++s) {
            ptx::mbarrier_init(full(s), 1);
            ptx::mbarrier_init(empty(s), 64);
        }
        ptx::fence_barrier_init();
    }
    __syncthreads();
    auto issue = [&](int c) {
        ptx::mbarrier_expect_tx(full(c), 1024);
        ptx::bulk_copy(ptx::smem_address(stages + c % 2 * 256), in + c * 256, 1024, full(c));
    };
    if (threadIdx.x == 0) {
        for (int c = 0; c < 2 && c < chunks; ++c) issue(c);
    }
    for (int c = 0; c < chunks; ++c) {
        ptx::mbarrier_wait(full(c), unsigned(c / 2) & 1);
        for (int i = int(threadIdx.x); i < 256; i += 64) out[c * 256 + i] = 2.0f * stages[c % 2 * 256 + i];
        ptx::mbarrier_arrive(empty(c));
        if (threadIdx.x == 0 && c + 2 < chunks) {
#ifndef BUG_REFILL
            ptx::mbarrier_wait(empty(c), unsigned(c / 2) & 1);
#endif
            issue(c + 2);
        }
    }
}

// out[64, 128] = a[64, k] b[128, k]^T by one warpgroup, 16 of the sum at a time, core matrices without a swizzle.
extern "C" __global__ void __launch_bounds__(128)
    warpgroup_product(float* out, const __nv_bfloat16* a, const __nv_bfloat16* b, int k) {
    __shared__ uint4 operands[64 * 2 + 128 * 2];
    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const uint32_t first = ptx::smem_address(operands), second = first + 64 * 32;
    float d[64] = {};
    for (int k0 = 0; k0 < k; k0 += 16) {
        for (int i = thread; i < 64 * 2; i += 128)
            operands[i] = *reinterpret_cast<const uint4*>(a + size_t(i % 64) * k + k0 + i / 64 * 8);
        for (int i = thread; i < 128 * 2; i += 128)
            operands[128 + i] = *reinterpret_cast<const uint4*>(b + size_t(i % 128) * k + k0 + i / 128 * 8);
#ifndef BUG_PROXY
        ptx::fence_proxy_async();
#endif
        __syncthreads();
        ptx::wgmma_fence();
        ptx::Wgmma<128>::bf16<false>(d, ptx::matrix_descriptor(first, 64 * 16, 128),
                                ptx::matrix_descriptor(second, 128 * 16, 128));
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        __syncthreads();
    }
    for (int i = 0; i < 64; ++i) {
        const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        out[row * 128 + column] = d[i];
    }
}

// The last of the grid's blocks adds the partial sums, in order; the ticket resets itself.
extern "C" __global__ void __launch_bounds__(128)
    ticket_sum(float* out, float* partials, unsigned* ticket, const float* in, int each) {
    __shared__ float sums[4];
    __shared__ unsigned last[1];
    float sum = 0.0f;
    for (int i = int(threadIdx.x); i < each; i += 128) sum += in[blockIdx.x * each + i];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
#ifdef BUG_TICKET
        last[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
#else
        last[0] = ptx::atom_add_acq_rel(ticket, 1u) == gridDim.x - 1;
#endif
    }
    __syncthreads();
    if (last[0] && threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned i = 0; i < gridDim.x; ++i) total += __ldcg(partials + i);
        *out = total;
        *ticket = 0;
    }
}

// Counts bytes: shared atomics, then global ones.
extern "C" __global__ void __launch_bounds__(256) histogram(unsigned* counts, const unsigned* in, int n) {
    __shared__ unsigned bins[64];
    if (threadIdx.x < 64) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = int(blockIdx.x * 256 + threadIdx.x); i < n; i += int(gridDim.x * 256))
        atomicAdd(&bins[in[i] % 64], 1u);
    __syncthreads();
    if (threadIdx.x < 64) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}

// Column reads of a 32x32 tile: 32-way bank conflicts without padding, none with it.
extern "C" __global__ void __launch_bounds__(32) transpose(float* out, const float* in, int stride) {
    extern __shared__ __align__(128) unsigned char shared[];
    float* const tile = reinterpret_cast<float*>(shared);
    const int t = int(threadIdx.x);
    for (int i = 0; i < 32; ++i) tile[i * stride + t] = in[i * 32 + t];
    __syncwarp();
    for (int i = 0; i < 32; ++i) out[i * 32 + t] = tile[t * stride + i];
}
