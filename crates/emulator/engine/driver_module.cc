// Modules and functions.
//
// A module gives names and, from machine code, what the launch checks need. What runs is PTX: of the folder that is
// selected, found by name at each launch, so that kernels can be exchanged under a loaded module; else of the image.
#include <algorithm>
#include <cstdio>

#include "driver.h"

namespace emu {

int static_shared(const Function& function);

namespace {

std::set<Module*> modules;
std::set<Function*> functions;

// Was the machine code made of the same parameters?
bool same_layout(const KernelImage& image, const ptx::Kernel& kernel) {
    if (image.parameters.size() != kernel.parameters.size()) return false;
    // Parameters are aligned in the constant bank, where others stand before them.
    uint32_t at = image.parameter_base;
    for (size_t i = 0; i < image.parameters.size(); ++i) {
        const ptx::Parameter& p = kernel.parameters[i];
        at = (at + p.align - 1) / p.align * p.align;
        if (image.parameters[i].offset != at - image.parameter_base || image.parameters[i].size != p.size) return false;
        at += p.size;
    }
    return true;
}

int blocks_per_multiprocessor(const Function& f, int threads, size_t dynamic) {
    const Limits limits = device_limits();
    if (threads < 1 || threads > f.image.max_threads) return 0;
    const int warps = (threads + kWarp - 1) / kWarp;
    int blocks = std::min(limits.blocks_per_multiprocessor, limits.threads_per_multiprocessor / kWarp / warps);
    if (f.image.registers) {
        const int per_warp = (f.image.registers * kWarp + 255) / 256 * 256;
        blocks = std::min(blocks, limits.registers / per_warp / warps);
    }
    size_t shared = dynamic + size_t(f.image.shared_bytes) + (config.arch >= 90 ? 0 : 1024);
    shared = (shared + 127) / 128 * 128;
    return std::min(blocks, int(size_t(limits.shared_per_multiprocessor) / shared));
}

ptx::Kernel* kernel_in(Module& m, const std::string& name) {
    auto found = m.ptx.kernels.find(name);
    return found == m.ptx.kernels.end() ? nullptr : &found->second;
}

// What the launch checks need comes from the machine code where there is some, else from the PTX.
std::unique_ptr<Function> make_function(Module& m, ptx::Kernel& kernel) {
    auto f = std::make_unique<Function>();
    f->name = kernel.name;
    f->ptx = kernel_in(m, kernel.name);
    auto compiled = m.image.kernels.find(kernel.name);
    if (compiled != m.image.kernels.end()) {
        f->image = compiled->second;
    } else {
        // On sm_90 the system keeps 1 KiB, and counts it.
        f->image.shared_bytes = int(ptx::static_bytes(kernel)) + (config.arch >= 90 ? 1024 : 0);
        f->image.max_threads = int(kernel.max_threads);
        memcpy(f->image.required, kernel.required, sizeof kernel.required);
    }
    f->max_dynamic_shared = device_limits().shared_per_block - static_shared(*f);
    return f;
}

}  // namespace

// The PTX that runs when this function is launched now.
ptx::Kernel* ptx_kernel(const Function& f) {
    ptx::Kernel* kernel = config.ptx.empty() ? nullptr : ptx::find_in_folder(config.ptx, f.name);
    return kernel ? kernel : f.ptx;
}

Function* function_of(void* handle) {
    Function* f = static_cast<Function*>(handle);
    return functions.count(f) ? f : nullptr;
}

// Static shared memory that the kernel itself asked for.
int static_shared(const Function& f) {
    return config.arch >= 90 ? std::max(0, f.image.shared_bytes - 1024) : f.image.shared_bytes;
}

}  // namespace emu

using namespace emu;

EMU_API cuModuleLoadData(void** module, const void* data) {
    EMU_ENTER;
    if (!data) return kInvalidValue;
    auto m = std::make_unique<Module>();
    if (const int error = read_image(data, config.arch, m->image)) return error;
    std::string problem;
    if (!m->image.ptx.empty() && !ptx::parse_module(m->image.ptx, m->ptx, problem)) {
        fault_outside_kernel("unsupported code", "", "%s", problem.c_str());
        return 218;  // CUDA_ERROR_INVALID_PTX
    }
    modules.insert(m.get());
    return *module = m.release(), 0;
}
EMU_API cuModuleLoadDataEx(void** module, const void* data, unsigned, int*, void**) {
    return cuModuleLoadData(module, data);
}
EMU_API cuModuleLoadFatBinary(void** module, const void* data) { return cuModuleLoadData(module, data); }

EMU_API cuModuleLoad(void** module, const char* path) {
    FILE* f = fopen(path, "rb");
    if (!f) return kFileNotFound;
    std::vector<char> data;
    char chunk[4096];
    while (const size_t n = fread(chunk, 1, sizeof chunk, f)) data.insert(data.end(), chunk, chunk + n);
    fclose(f);
    data.resize(data.size() + 64);
    return cuModuleLoadData(module, data.data());
}

EMU_API cuModuleUnload(void* handle) {
    EMU_ENTER_ANY;
    Module* m = static_cast<Module*>(handle);
    if (!modules.count(m)) return kInvalidHandle;
    run_all_streams();
    for (auto& [name, f] : m->functions) functions.erase(f.get());
    modules.erase(m);
    delete m;
    return sticky_error;
}

EMU_API cuModuleGetFunction(void** function, void* handle, const char* name) {
    EMU_ENTER;
    Module* m = static_cast<Module*>(handle);
    if (!modules.count(m)) return kInvalidHandle;
    std::unique_ptr<Function>& f = m->functions[name];
    if (f) return *function = f.get(), 0;
    auto image = m->image.kernels.find(name);
    if (!m->image.stub && image == m->image.kernels.end()) return kNotFound;
    ptx::Kernel* kernel = config.ptx.empty() ? nullptr : ptx::find_in_folder(config.ptx, name);
    if (!kernel) kernel = kernel_in(*m, name);
    if (!kernel) {
        if (!m->image.stub || (config.ptx.empty() && m->ptx.kernels.empty()))
            fault_outside_kernel("no code", name, "there is no PTX of this kernel in the image%s%s",
                                 config.ptx.empty() ? ", and no folder of PTX is selected (GGRO_EMU_PTX)" : " or in ",
                                 config.ptx.c_str());
        return kNotFound;
    }
    if (image != m->image.kernels.end() && !same_layout(image->second, *kernel)) {
        fault_outside_kernel("parameter layout", name, "the image and the PTX lay out its parameters differently");
        return kInvalidImage;
    }
    f = make_function(*m, *kernel);
    functions.insert(f.get());
    return *function = f.get(), 0;
}

EMU_API cuModuleGetGlobal_v2(void**, size_t*, void*, const char*) { return kNotFound; }  // kernels have no globals

EMU_API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    EMU_ENTER;
    const Function* f = function_of(handle);
    if (!f) return kInvalidHandle;
    switch (attribute) {
        case 0: *value = f->image.max_threads; break;
        case 1: *value = static_shared(*f); break;
        case 2: *value = 0; break;
        case 3: *value = f->image.local_bytes; break;
        case 4: *value = f->image.registers; break;
        case 5:
        case 6: *value = config.arch; break;
        case 7: *value = 0; break;
        case 8: *value = f->max_dynamic_shared; break;
        case 9: *value = f->carveout; break;
        default: return kInvalidValue;
    }
    return 0;
}

EMU_API cuFuncSetAttribute(void* handle, int attribute, int value) {
    EMU_ENTER;
    Function* f = function_of(handle);
    if (!f) return kInvalidHandle;
    if (attribute == 8) {
        if (value < 0 || value + static_shared(*f) > device_limits().shared_optin) return kInvalidValue;
        f->max_dynamic_shared = value;
        return 0;
    }
    if (attribute == 9) return f->carveout = value, 0;
    return kInvalidValue;
}
EMU_API cuFuncSetCacheConfig(void*, int) { return 0; }
EMU_API cuFuncGetName(const char** name, void* handle) {
    EMU_ENTER;
    const Function* f = function_of(handle);
    if (!f) return kInvalidHandle;
    return *name = f->name.c_str(), 0;
}

EMU_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t dynamic) {
    EMU_ENTER;
    const Function* f = function_of(handle);
    if (!f) return kInvalidHandle;
    return *blocks = blocks_per_multiprocessor(*f, threads, dynamic), 0;
}
EMU_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* handle, int threads, size_t dynamic,
                                                             unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, handle, threads, dynamic);
}
EMU_API cuOccupancyMaxPotentialBlockSize(int* grid, int* block, void* handle, size_t (*dynamic_of)(int), size_t dynamic,
                                         int limit) {
    EMU_ENTER;
    const Function* f = function_of(handle);
    if (!f) return kInvalidHandle;
    int best = 0;
    for (int threads = std::min(limit > 0 ? limit : kMaxThreads, f->image.max_threads) / kWarp * kWarp; threads > 0;
         threads -= kWarp) {
        const int blocks = blocks_per_multiprocessor(*f, threads, dynamic_of ? dynamic_of(threads) : dynamic);
        if (blocks * threads > best) {
            best = blocks * threads;
            *block = threads;
            *grid = blocks * device_limits().multiprocessors;
        }
    }
    return best ? 0 : kInvalidValue;
}
EMU_API cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, void* handle, size_t (*dynamic_of)(int),
                                                  size_t dynamic, int limit, unsigned) {
    return cuOccupancyMaxPotentialBlockSize(grid, block, handle, dynamic_of, dynamic, limit);
}
EMU_API cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, void* handle, int blocks, int) {
    EMU_ENTER;
    const Function* f = function_of(handle);
    if (!f || blocks < 1) return kInvalidValue;
    const Limits limits = device_limits();
    const size_t each = size_t(limits.shared_per_multiprocessor / blocks), used = 1024 + size_t(static_shared(*f));
    return *bytes = each > used ? std::min(each - used, size_t(limits.shared_optin)) : 0, 0;
}
