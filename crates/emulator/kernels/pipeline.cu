// A product as Hopper's kernels make it: one warpgroup brings boxes of tensors to shared memory, two multiply them.
#include "common.cuh"

// Named: names in an anonymous namespace are made of the path of the file.
namespace pipeline {

constexpr int kRows = 128, kColumns = 64, kDepth = 64, kRing = 3;
constexpr uint32_t kBytesA = kRows * kDepth * 2, kBytesB = kColumns * kDepth * 2, kStage = kBytesA + kBytesB;

struct alignas(64) Map {
    unsigned long long words[16];
};

__device__ __forceinline__ void copy_box(uint32_t target, const Map* map, int column, int row, uint32_t mbarrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            target),
        "l"(map), "r"(column), "r"(row), "r"(mbarrier)
        : "memory");
}

__device__ __forceinline__ void prefetch(const Map* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

template <int N>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

__device__ __forceinline__ void warpgroup_barrier(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }

// Lines of 128 bytes, swizzled; eight of them are 1024 bytes.
__device__ __forceinline__ unsigned long long descriptor(uint32_t address) {
    return (unsigned long long)(address & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ __forceinline__ void multiply(float (&d)[32], unsigned long long a, unsigned long long b, bool adds) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, "
        "1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(int(adds)));
}

}  // namespace pipeline

using namespace pipeline;

// out[m, n] = a[m, k] b[n, k]^T: blocks take tiles of 128 x 64 in turn. Boxes are 64 x 128 of a and 64 x 64 of b.
extern "C" __global__ void __launch_bounds__(384, 1)
    tensor_product(float* out, const __grid_constant__ Map a, const __grid_constant__ Map b, int m, int n, int k) {
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ unsigned long long barriers[2 * kRing];
    const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const uint32_t stages = (ptx::smem_address(shared) + 1023) & ~1023u;
    auto full = [&](int s) { return ptx::smem_address(&barriers[s]); };
    auto empty = [&](int s) { return ptx::smem_address(&barriers[kRing + s]); };
    if (thread == 0) {
        for (int s = 0; s < kRing; ++s) {
            ptx::mbarrier_init(full(s), 1);
            ptx::mbarrier_init(empty(s), 2);
        }
        ptx::fence_barrier_init();
    }
    __syncthreads();
    const int across = (n + kColumns - 1) / kColumns, tiles = (m + kRows - 1) / kRows * across;
    const int steps = (k + kDepth - 1) / kDepth;
    int s = 0;
    uint32_t phase = 0;
    auto advance = [&] {
        if (++s == kRing) {
            s = 0;
            phase ^= 1;
        }
    };
    if (warp < 4) {
        give_registers<40>();
        if (thread != 0) return;
        prefetch(&a);
        prefetch(&b);
        for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x)) {
            for (int step = 0; step < steps; ++step, advance()) {
                ptx::mbarrier_wait(empty(s), phase ^ 1);
                ptx::mbarrier_expect_tx(full(s), kStage);
                const uint32_t target = stages + uint32_t(s) * kStage;
                copy_box(target, &a, step * kDepth, tile / across * kRows, full(s));
                copy_box(target + kBytesA, &b, step * kDepth, tile % across * kColumns, full(s));
            }
        }
        return;
    }
    take_registers<232>();
    const int group = warp / 4 - 1;
    for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x)) {
        float d[32];
        for (int step = 0; step < steps; ++step, advance()) {
            ptx::mbarrier_wait(full(s), phase);
            const uint32_t left = stages + uint32_t(s) * kStage + uint32_t(group) * 64 * 128;
            const uint32_t right = stages + uint32_t(s) * kStage + kBytesA;
            ptx::wgmma_fence();
            for (int i = 0; i < kDepth / 16; ++i)
                multiply(d, descriptor(left + 32 * i), descriptor(right + 32 * i), step + i > 0);
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            warpgroup_barrier(1 + group);
            if (thread % 128 == 0) ptx::mbarrier_arrive(empty(s));
        }
        const int row0 = tile / across * kRows + group * 64 + warp % 4 * 16 + lane / 4;
        for (int i = 0; i < 32; ++i) {
            const int row = row0 + i / 2 % 2 * 8;
            const int column = tile % across * kColumns + i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (row < m && column < n) out[size_t(row) * n + column] = d[i];
        }
    }
}
