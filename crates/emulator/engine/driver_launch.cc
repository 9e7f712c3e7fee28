// Launches: what the driver refuses, what only a checker can see in the parameters, and the run itself.
#include <sys/uio.h>
#include <unistd.h>

#include "driver.h"

namespace emu {

Function* function_of(void* handle);
ptx::Kernel* ptx_kernel(const Function& function);

namespace {

// The parameter array has no length in the driver's interface, so it may lead anywhere.
bool read_safely(void* to, const void* from, size_t bytes) {
    iovec local{to, bytes}, remote{const_cast<void*>(from), bytes};
    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == ssize_t(bytes);
}

bool points_to_memory(const void* p) {
    if (!p) return true;
    return memory_is_device(p, 1) || memory_is_device(static_cast<const char*>(p) - 1, 1) || memory_is_pinned(p, 1);
}

int check_shape(const Function& f, const uint32_t* grid, const uint32_t* block, uint32_t shared) {
    if (!grid[0] || !grid[1] || !grid[2] || !block[0] || !block[1] || !block[2]) return kInvalidValue;
    if (grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535) return kInvalidValue;
    if (block[0] > 1024 || block[1] > 1024 || block[2] > 64) return kInvalidValue;
    const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (threads > kMaxThreads) return kInvalidValue;
    if (threads > uint64_t(f.image.max_threads)) return kLaunchOutOfResources;
    if (f.image.required[0] && memcmp(f.image.required, block, 12) != 0) return kInvalidValue;
    if (int64_t(shared) > f.max_dynamic_shared) return kInvalidValue;
    if (f.image.registers) {
        const uint64_t warps = (threads + kWarp - 1) / kWarp,
                       per_warp = uint64_t(f.image.registers * kWarp + 255) / 256 * 256;
        if (warps * per_warp > uint64_t(device_limits().registers)) return kLaunchOutOfResources;
    }
    return 0;
}

int wrong_parameters(const Function& f, uint32_t i, const char* what, uint64_t value) {
    fault_outside_kernel("wrong parameters", f.name.c_str(), "parameter %u: %s (%#lx)", i, what, value);
    return kInvalidValue;
}

// Copies the parameters, from a list of pointers or from one packed buffer (`extra`).
int read_parameters(const Function& f, const std::vector<ptx::Parameter>& parameters, void** list, void** extra,
                    Launch& launch) {
    const char* packed = nullptr;
    size_t packed_bytes = 0, offset = 0;
    if (extra) {
        for (; *extra; extra += 2) {
            if (*extra == reinterpret_cast<void*>(1)) packed = static_cast<const char*>(extra[1]);
            if (*extra == reinterpret_cast<void*>(2)) packed_bytes = *static_cast<size_t*>(extra[1]);
        }
    }
    for (uint32_t i = 0; i < parameters.size(); ++i) {
        const ptx::Parameter& p = parameters[i];
        offset = (offset + p.align - 1) / p.align * p.align;
        const size_t at = launch.storage.size();
        launch.offsets.push_back(at * 8);
        launch.storage.resize(at + (p.size + 7) / 8);
        if (packed) {
            if (offset + p.size > packed_bytes)
                return wrong_parameters(f, i, "the packed buffer ends before it", packed_bytes);
            memcpy(&launch.storage[at], packed + offset, p.size);
        } else {
            void* source = nullptr;
            if (!list || !read_safely(&source, list + i, sizeof source) || !source ||
                !read_safely(&launch.storage[at], source, p.size)) {
                return wrong_parameters(f, i, "cannot be read, are there enough of them?",
                                        reinterpret_cast<uint64_t>(source));
            }
            if (reinterpret_cast<uintptr_t>(source) % p.align)
                return wrong_parameters(f, i, "is not aligned for its type", reinterpret_cast<uint64_t>(source));
        }
        offset += p.size;
    }
    if (packed && offset != packed_bytes)
        return wrong_parameters(f, uint32_t(parameters.size()), "the packed buffer is longer than the parameters",
                                packed_bytes);
    return 0;
}

// Null, device memory, or pinned.
int check_pointers(const Function& f, ptx::Kernel& kernel, const Launch& launch) {
    for (uint32_t offset : ptx::pointers(kernel)) {
        uint32_t i = uint32_t(kernel.parameters.size());
        while (i && kernel.parameters[i - 1].offset > offset) --i;
        if (!i--) continue;
        uint64_t value = 0;
        memcpy(&value,
               reinterpret_cast<const char*>(launch.storage.data()) + launch.offsets[i] + offset -
                   kernel.parameters[i].offset,
               sizeof value);
        if (!points_to_memory(reinterpret_cast<void*>(value)))
            return wrong_parameters(f, i, "the kernel takes a pointer here, this is no device memory", value);
    }
    return 0;
}

// `programmatic`: it may begin before the kernel before it in the stream has ended, if that is what is before it.
int launch_kernel(void* function, const uint32_t* grid, const uint32_t* block, uint32_t shared, void* handle,
                  void** parameters, void** extra, bool programmatic = false) {
    const Function* f = function_of(function);
    Stream* stream = stream_of(handle);
    if (!f || !stream) return kInvalidHandle;
    if (const int error = check_shape(*f, grid, block, shared)) return error;
    if (parameters && extra) return kInvalidValue;
    if (programmatic && config.arch < 90) return kNotSupported;
    // Edges of graphs have had kinds since CUDA 12.3.
    if (programmatic && stream->capture && driver_version < 12030) return kNotSupported;
    ptx::Kernel* kernel = ptx_kernel(*f);
    if (!kernel) return kNotFound;
    auto launch = std::make_shared<Launch>();
    launch->name = f->name;
    memcpy(launch->grid, grid, sizeof launch->grid);
    memcpy(launch->block, block, sizeof launch->block);
    launch->shared_bytes = shared;
    if (const int error = read_parameters(*f, kernel->parameters, parameters, extra, *launch)) return error;
    if (const int error = check_pointers(*f, *kernel, *launch)) return error;
    launch->dependent = programmatic && stream->chain;
    launch->chain = launch->dependent ? stream->chain : std::make_shared<Chain>();
    if (stream->capture && !launch->dependent) stream->capture->graph->chains.push_back(launch->chain);
    // What runs is decided when it runs: kernels are exchanged under loaded modules.
    const int error = submit(stream, [launch, f] {
        ptx::Kernel* now = function_of(const_cast<Function*>(f)) ? ptx_kernel(*f) : nullptr;
        return now ? ptx::run_kernel(*launch, *now) : int(kNotFound);
    });
    if (!error) stream->chain = launch->chain;
    return error;
}

struct LaunchConfig {
    uint32_t grid[3], block[3], shared;
    void* stream;
    struct Attribute {
        int id, pad;
        uint32_t value[16];
    }* attributes;
    uint32_t count;
};

}  // namespace
}  // namespace emu

using namespace emu;

EMU_API cuLaunchKernel(void* function, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz,
                       uint32_t shared, void* stream, void** parameters, void** extra) {
    EMU_ENTER;
    const uint32_t grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch_kernel(function, grid, block, shared, stream, parameters, extra);
}

// Blocks still run one after another: a kernel that synchronises the whole grid is reported as an endless wait.
EMU_API cuLaunchCooperativeKernel(void* function, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by,
                                  uint32_t bz, uint32_t shared, void* stream, void** parameters) {
    return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, nullptr);
}

EMU_API cuLaunchKernelEx(const LaunchConfig* c, void* function, void** parameters, void** extra) {
    EMU_ENTER;
    bool programmatic = false;
    for (uint32_t i = 0; i < c->count; ++i) {
        const auto& a = c->attributes[i];
        if (a.id == 6) programmatic = a.value[0] != 0;  // programmatic stream serialization
        if (a.id == 4 && (a.value[0] > 1 || a.value[1] > 1 || a.value[2] > 1)) return kNotSupported;  // clusters
    }
    return launch_kernel(function, c->grid, c->block, c->shared, c->stream, parameters, extra, programmatic);
}
