// One instruction at a time, on given inputs: what a card does, written down so that the emulated device can be held to it.
//
//   out[case][lane][0 .. 4] = the instruction `which` on in[case], 32-bit words; see the list below
//
// Contract: only for `ggro kernels record` and the replay of what it recorded. One warp per case. The bulk copy exists
// from sm_90 on; elsewhere `probe_bulk` leaves out as it is.
// Bytes and flops: none to speak of.
#include "common.cuh"

namespace ggro {

constexpr int kProbeIn = 320;  // words per case
constexpr int kProbeOut = 4;   // words per lane

enum Probe : int {
    kLdmatrixX4,
    kLdmatrixX4Trans,
    kLdmatrixX2,
    kLdmatrixX2Trans,
    kMmaBf16,
    kMmaF16,
    kShuffle,
    kCopyAsync,
    kRound,
};

// The first 128 words are 32 rows of 16 bytes; word 128 + lane says which row a lane addresses.
template <int N, bool TRANS>
__device__ __forceinline__ void probe_ldmatrix(uint32_t (&r)[kProbeOut], const uint32_t* in, uint4* rows) {
    rows[threadIdx.x] = reinterpret_cast<const uint4*>(in)[threadIdx.x];
    __syncwarp();
    const uint32_t address = ptx::smem_address(rows + in[128 + threadIdx.x] % kWarp);
    if constexpr (N == 4) {
        if (TRANS) {
            ptx::ldmatrix_x4_trans(r, address);
        } else {
            ptx::ldmatrix_x4(r, address);
        }
    } else {
        uint32_t two[2];
        if (TRANS) {
            ptx::ldmatrix_x2_trans(two, address);
        } else {
            ptx::ldmatrix_x2(two, address);
        }
        r[0] = two[0];
        r[1] = two[1];
    }
}

// Per lane: four words of a, then (from word 128 on) two of b, then (from word 192 on) four of the accumulator.
template <bool BF16>
__device__ __forceinline__ void probe_mma(uint32_t (&r)[kProbeOut], const uint32_t* in) {
    uint32_t a[4], b[2];
    float d[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        a[i] = in[4 * threadIdx.x + i];
        d[i] = __uint_as_float(in[192 + 4 * threadIdx.x + i]);
    }
    b[0] = in[128 + 2 * threadIdx.x];
    b[1] = in[128 + 2 * threadIdx.x + 1];
    if (BF16) {
        ptx::mma_bf16(d, a, b);
    } else {
        ptx::mma_f16(d, a, b);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = __float_as_uint(d[i]);
}

}  // namespace ggro

// Grid: cases. Block: 32.
extern "C" __global__ void __launch_bounds__(ggro::kWarp) probe(uint32_t* out, const uint32_t* in, int which) {
    using namespace ggro;
    await_turn();
    __shared__ uint4 rows[kWarp];
    const int lane = threadIdx.x;
    in += static_cast<size_t>(blockIdx.x) * kProbeIn;
    uint32_t r[kProbeOut] = {};
    if (which == kLdmatrixX4) {
        probe_ldmatrix<4, false>(r, in, rows);
    } else if (which == kLdmatrixX4Trans) {
        probe_ldmatrix<4, true>(r, in, rows);
    } else if (which == kLdmatrixX2) {
        probe_ldmatrix<2, false>(r, in, rows);
    } else if (which == kLdmatrixX2Trans) {
        probe_ldmatrix<2, true>(r, in, rows);
    } else if (which == kMmaBf16) {
        probe_mma<true>(r, in);
    } else if (which == kMmaF16) {
        probe_mma<false>(r, in);
    } else if (which == kShuffle) {
        // The value is word `lane`; where it comes from, and how far, are in words 32 and 64 on.
        const uint32_t value = in[lane];
        r[0] = __shfl_sync(kAllLanes, value, static_cast<int>(in[32 + lane] % kWarp));
        r[1] = __shfl_xor_sync(kAllLanes, value, static_cast<int>(in[64] % kWarp));
        r[2] = __shfl_down_sync(kAllLanes, value, in[64] % kWarp);
        r[3] = __ballot_sync(kAllLanes, value & 1u);
    } else if (which == kCopyAsync) {
        // 16 bytes a lane, zeros where word 128 + lane is even.
        ptx::cp_async16(ptx::smem_address(rows + lane), reinterpret_cast<const uint4*>(in) + lane,
                        in[128 + lane] % 2 == 1);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncwarp();
        // A neighbour's bytes, so that they really went through shared memory.
        const uint4 found = rows[(lane + 1) % kWarp];
        r[0] = found.x;
        r[1] = found.y;
        r[2] = found.z;
        r[3] = found.w;
    } else if (which == kRound) {
        // Words 0 and 1 of a lane's four to bf16, 2 and 3 to f16; then 0 and 2 back to f32.
        const float x = __uint_as_float(in[4 * lane]), y = __uint_as_float(in[4 * lane + 1]);
        const float z = __uint_as_float(in[4 * lane + 2]), w = __uint_as_float(in[4 * lane + 3]);
        const __nv_bfloat16 bx = from_float<__nv_bfloat16>(x), by = from_float<__nv_bfloat16>(y);
        const __half hz = from_float<__half>(z), hw = from_float<__half>(w);
        r[0] = __float_as_uint(to_float(bx));
        r[1] = __float_as_uint(to_float(by));
        r[2] = __float_as_uint(to_float(hz));
        r[3] = __float_as_uint(to_float(hw));
    }
    uint32_t* const to = out + (static_cast<size_t>(blockIdx.x) * kWarp + lane) * kProbeOut;
#pragma unroll
    for (int i = 0; i < kProbeOut; ++i) to[i] = r[i];
}

// 512 bytes by one bulk copy that completes on a barrier. Grid: cases. Block: 32.
extern "C" __global__ void __launch_bounds__(ggro::kWarp) probe_bulk(uint32_t* out, const uint32_t* in) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    using namespace ggro;
    await_turn();
    __shared__ uint4 rows[kWarp];
    __shared__ uint64_t barrier[1];
    const int lane = threadIdx.x;
    const uint32_t bar = ptx::smem_address(barrier);
    if (lane == 0) {
        ptx::mbarrier_init(bar, 1);
        ptx::fence_barrier_init();
        ptx::fence_proxy_async();
    }
    __syncthreads();  // the barrier is ready
    if (lane == 0) {
        ptx::mbarrier_expect_tx(bar, sizeof(uint4) * kWarp);
        ptx::bulk_copy(ptx::smem_address(rows), in + static_cast<size_t>(blockIdx.x) * kProbeIn, sizeof(uint4) * kWarp,
                       bar);
    }
    ptx::mbarrier_wait(bar, 0);
    const uint4 found = rows[lane];
    uint32_t* const to = out + (static_cast<size_t>(blockIdx.x) * kWarp + lane) * kProbeOut;
    to[0] = found.x;
    to[1] = found.y;
    to[2] = found.z;
    to[3] = found.w;
#endif
}
