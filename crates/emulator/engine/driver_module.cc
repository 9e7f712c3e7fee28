// Kernel libraries, modules and functions.
//
// A module gives names and, from a real image, what the launch checks need; the code that runs comes from the selected
// kernel library, found by name at each launch, so plain and checked builds can be exchanged under a loaded module.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>

#include "driver.h"

namespace emu {

int static_shared(const Function& function);

namespace {

std::map<std::string, std::unique_ptr<Library>> libraries;
std::map<std::string, std::pair<const char*, const char*>> library_ranges;
Library* loading = nullptr;
std::string selected;
std::set<Module*> modules;
std::set<Function*> functions;

struct RangeSearch {
    const void* inside;
    const char *begin, *end;
};

int find_range(dl_phdr_info* info, size_t, void* raw) {
    RangeSearch& search = *static_cast<RangeSearch*>(raw);
    const char *begin = nullptr, *end = nullptr;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const ElfW(Phdr) & h = info->dlpi_phdr[i];
        if (h.p_type != PT_LOAD) continue;
        const char* from = reinterpret_cast<const char*>(info->dlpi_addr + h.p_vaddr);
        if (!begin || from < begin) begin = from;
        end = std::max(end, from + h.p_memsz);
    }
    if (search.inside < begin || search.inside >= end) return 0;
    search.begin = begin;
    search.end = end;
    return 1;
}

}  // namespace

bool library_contains(const Library& library, const void* address) {
    auto it = library_ranges.find(library.path);
    return it != library_ranges.end() && address >= it->second.first && address < it->second.second;
}

void select_library(const char* path) { selected = path; }

Library* current_library();

// The kernel of the selected library, if one is selected.
const EmuKernel* compiled_source(const std::string& name) {
    if (selected.empty()) return nullptr;
    Library* library = current_library();
    auto found = library ? library->kernels.find(name) : std::map<std::string, const EmuKernel*>::iterator();
    return library && found != library->kernels.end() ? found->second : nullptr;
}

Library* current_library() {
    auto& library = libraries[selected];
    if (library) return library.get();
    auto fresh = std::make_unique<Library>();
    fresh->path = selected;
    loading = fresh.get();
    void* handle = selected.empty() ? nullptr : dlopen(selected.c_str(), RTLD_NOW | RTLD_LOCAL);
    loading = nullptr;
    if (!handle || fresh->kernels.empty()) {
        const char* why = selected.empty() ? "none is selected (GGRO_EMU_KERNELS)"
                          : handle         ? "it registers no kernels"
                                           : dlerror();
        fault_outside_kernel("kernel library", "", "%s", why);
        return nullptr;
    }
    const EmuKernel* any = fresh->kernels.begin()->second;
    fresh->checked = any->checked;
    fresh->shared_begin = any->shared_begin;
    fresh->shared_end = any->shared_end;
    fresh->shared_state.resize(size_t(any->shared_end - any->shared_begin));
    RangeSearch search{any, nullptr, nullptr};
    dl_iterate_phdr(find_range, &search);
    library_ranges[selected] = {search.begin, search.end};
    library = std::move(fresh);
    return library.get();
}

namespace {

// Do nvcc and g++ agree on where each parameter lies?
bool same_layout(const KernelImage& image, const EmuKernel& kernel) {
    if (image.parameters.size() != kernel.parameter_count) return false;
    uint32_t offset = 0;
    for (uint32_t i = 0; i < kernel.parameter_count; ++i) {
        const EmuParameter& p = kernel.parameters[i];
        offset = (offset + p.align - 1) / p.align * p.align;
        if (image.parameters[i].offset != offset || image.parameters[i].size != p.size) return false;
        offset += p.size;
    }
    return true;
}

int blocks_per_multiprocessor(const Function& f, int threads, size_t dynamic) {
    const Limits limits = device_limits();
    if (threads < 1 || threads > f.image.max_threads) return 0;
    const int warps = (threads + kWarp - 1) / kWarp;
    int blocks = std::min(32, limits.threads_per_multiprocessor / kWarp / warps);
    if (f.image.registers) {
        const int per_warp = (f.image.registers * kWarp + 255) / 256 * 256;
        blocks = std::min(blocks, limits.registers / per_warp / warps);
    }
    size_t shared = dynamic + size_t(f.image.shared_bytes) + (config.arch >= 90 && f.known ? 0 : 1024);
    shared = (shared + 127) / 128 * 128;
    return std::min(blocks, int(size_t(limits.shared_per_multiprocessor) / shared));
}

// What a module's function would run as PTX, whether that is asked for now or not.
ptx::Kernel* ptx_of(Module& m, const std::string& name) {
    if (!config.ptx.empty() && config.ptx != "image") {
        if (ptx::Kernel* kernel = ptx::find_in_folder(config.ptx, name)) return kernel;
    }
    auto found = m.ptx.kernels.find(name);
    return found != m.ptx.kernels.end() && (m.image.only_ptx || config.ptx == "image") ? &found->second : nullptr;
}

// What the launch checks need comes from the machine code where there is some, else from the PTX.
std::unique_ptr<Function> from_ptx(const Module& m, ptx::Kernel& kernel) {
    auto f = std::make_unique<Function>();
    f->name = kernel.name;
    f->known = true;
    f->only_ptx = m.image.only_ptx;
    auto own = m.ptx.kernels.find(kernel.name);
    f->ptx = own == m.ptx.kernels.end() ? nullptr : const_cast<ptx::Kernel*>(&own->second);
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

// The PTX that runs when this function is launched now; null when its source does.
ptx::Kernel* ptx_kernel(const Function& f) {
    if (!config.ptx.empty() && config.ptx != "image") return ptx::find_in_folder(config.ptx, f.name);
    return f.only_ptx || config.ptx == "image" ? f.ptx : nullptr;
}

Function* function_of(void* handle) {
    Function* f = static_cast<Function*>(handle);
    return functions.count(f) ? f : nullptr;
}

// Static shared memory that the kernel itself asked for.
int static_shared(const Function& f) {
    return f.known && config.arch >= 90 ? std::max(0, f.image.shared_bytes - 1024) : f.image.shared_bytes;
}

}  // namespace emu

using namespace emu;

extern "C" void emu_register(const EmuKernel* kernel) {
    if (loading) loading->kernels[kernel->name] = kernel;
}

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
    if (!f) {
        auto image = m->image.kernels.find(name);
        if (ptx::Kernel* kernel = ptx_of(*m, name)) {
            auto fresh = from_ptx(*m, *kernel);
            functions.insert(fresh.get());
            f = std::move(fresh);
            return *function = f.get(), 0;
        }
        if (m->image.only_ptx && !m->ptx.kernels.empty()) return kNotFound;
        Library* library = current_library();
        if (!library || (!m->image.stub && image == m->image.kernels.end())) return kNotFound;
        auto kernel = library->kernels.find(name);
        if (kernel == library->kernels.end()) {
            if (!m->image.stub)
                fault_outside_kernel("kernel library", name,
                                     "the image has this kernel, %s has not: EMU_KERNEL(%s) is missing",
                                     library->path.c_str(), name);
            return kNotFound;
        }
        auto fresh = std::make_unique<Function>();
        fresh->name = name;
        fresh->known = !m->image.stub;
        if (fresh->known) fresh->image = image->second;
        if (fresh->known && !same_layout(fresh->image, *kernel->second)) {
            fault_outside_kernel("parameter layout", name, "nvcc and g++ lay out its parameters differently");
            return kInvalidImage;
        }
        fresh->max_dynamic_shared = device_limits().shared_per_block - static_shared(*fresh);
        functions.insert(fresh.get());
        f = std::move(fresh);
    }
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
