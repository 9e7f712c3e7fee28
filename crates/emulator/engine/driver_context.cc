// Device, context, errors, and the configuration of the emulated device.
#include <cstdio>
#include <cstdlib>

#include "driver.h"

namespace emu {

Config config;
std::recursive_mutex driver_lock;
bool initialised = false;
int sticky_error = 0;
int driver_version = 13000;

namespace {

thread_local void* current_context = nullptr;
char primary_context, memory_pool;
int context_flags = 0;

// Data sheets, and the programming guide's table of technical specifications per compute capability.
constexpr Limits kCards[] = {
    {80, 108, 163 << 10, 164 << 10, 2048, 32, 40 << 20},   // A100
    {86, 82, 99 << 10, 100 << 10, 1536, 16, 6 << 20},      // RTX 3090
    {89, 142, 99 << 10, 100 << 10, 1536, 24, 96 << 20},    // L40S
    {90, 132, 227 << 10, 228 << 10, 2048, 32, 50 << 20},   // H100
    {100, 148, 227 << 10, 228 << 10, 2048, 32, 126 << 20}, // B200
    {120, 170, 99 << 10, 100 << 10, 1536, 24, 96 << 20},   // RTX 5090
    // Cards that kernels for 8.0 and newer do not run on.
    {61, 28, 48 << 10, 96 << 10, 2048, 32, 2816 << 10},    // GTX 1080 Ti
    {75, 40, 64 << 10, 64 << 10, 1024, 16, 4 << 20},       // T4
};

const Limits* card_of(int arch) {
    for (const Limits& card : kCards) {
        if (card.arch == arch) return &card;
    }
    return nullptr;
}

bool configure(const std::string& setting) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos) return false;
    const std::string key = setting.substr(0, equals), value = setting.substr(equals + 1);
    auto choose = [&](const char* off, const char* on, bool& flag) {
        if (value != off && value != on) return false;
        flag = value == on;
        return true;
    };
    if (key == "schedule") {
        if (value == "forward") {
            config.schedule = Config::forward;
        } else if (value == "reverse") {
            config.schedule = Config::reverse;
        } else if (value.rfind("shuffle:", 0) == 0) {
            config.schedule = Config::shuffle;
            config.seed = strtoull(value.c_str() + 8, nullptr, 10) + 1;
        } else {
            return false;
        }
        return true;
    }
    if (key == "copies") return choose("early", "late", config.late_copies);
    if (key == "streams") {
        run_all_streams();
        return choose("eager", "lazy", config.lazy_streams);
    }
    if (key == "dependents") return choose("late", "early", config.early_dependents);
    if (key == "lanes") return choose("together", "apart", config.lanes_apart);
    if (key == "accesses") return choose("plain", "observed", config.observe);
    if (key == "mma") {
        if (value != "exact" && value != "8" && value != "16") return false;
        config.matrix_sums = value == "exact" ? 0 : atoi(value.c_str());
        return true;
    }
    if (key == "ptx") {
        config.ptx = value == "image" ? "" : value;
        return true;
    }
    if (key == "exits") return choose("report", "allow", config.allow_exits);
    if (key == "faults") return choose("report", "fail", config.faults_fail);
    if (key == "watchdog") return (config.watchdog_seconds = atoi(value.c_str())) > 0;
    if (key == "memory") return (config.memory = strtoull(value.c_str(), nullptr, 10)) > 0;
    if (key == "arch") {
        const Limits* card = card_of(atoi(value.c_str()));
        if (card) config.arch = card->arch;
        return card != nullptr;
    }
    if (key == "driver") return (driver_version = atoi(value.c_str())) > 0;
    if (key == "report") {
        config.report = value;
        return true;
    }
    return false;
}

struct FromEnvironment {
    FromEnvironment() {
        const char* const names[][2] = {{"GGRO_EMU_PTX", "ptx"},         {"GGRO_EMU_ACCESSES", "accesses"},
                                        {"GGRO_EMU_LANES", "lanes"},     {"GGRO_EMU_MMA", "mma"},
                                        {"GGRO_EMU_SCHEDULE", "schedule"}, {"GGRO_EMU_COPIES", "copies"},
                                        {"GGRO_EMU_STREAMS", "streams"}, {"GGRO_EMU_ARCH", "arch"},
                                        {"GGRO_EMU_REPORT", "report"},   {"GGRO_EMU_DRIVER", "driver"},
                                        {"GGRO_EMU_DEPENDENTS", "dependents"}};
        for (auto& [variable, key] : names) {
            const char* value = getenv(variable);
            if (value && !configure(std::string(key) + "=" + value)) {
                fprintf(stderr, "ggro emulated device: %s=%s is not understood\n", variable, value);
                abort();
            }
        }
    }
};

void read_environment() { static const FromEnvironment once; }

const std::map<int, std::pair<const char*, const char*>>& error_names() {
    static const std::map<int, std::pair<const char*, const char*>> names = {
        {0, {"CUDA_SUCCESS", "no error"}},
        {1, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
        {2, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
        {3, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
        {101, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
        {200, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
        {201, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
        {209, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
        {301, {"CUDA_ERROR_FILE_NOT_FOUND", "file not found"}},
        {400, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
        {500, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
        {600, {"CUDA_ERROR_NOT_READY", "device not ready"}},
        {700, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
        {701, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
        {716, {"CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"}},
        {719, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
        {801, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
        {900, {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
        {901, {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
        {902, {"CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"}},
        {903, {"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"}},
        {904, {"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"}},
        {905, {"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"}},
        {906,
         {"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
          "operation would make the legacy stream depend on a capturing blocking stream"}},
        {907, {"CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"}},
    };
    return names;
}

}  // namespace

Limits device_limits() { return *card_of(config.arch); }

bool context_is_current() { return current_context != nullptr; }

void write_report() {
    if (config.report.empty()) return;
    if (FILE* f = fopen(config.report.c_str(), "w")) {
        fputs((report_json() + "\n").c_str(), f);
        fclose(f);
    }
}

}  // namespace emu

using namespace emu;

// ---- for tests

EMU_API ggro_emu_configure(const char* setting) {
    EMU_ENTER_ANY;
    return configure(setting) ? 0 : kInvalidValue;
}

// Clears faults, counters and a broken context. Allocations and other objects stay.
EMU_API ggro_emu_reset() {
    EMU_ENTER_ANY;
    run_all_streams();
    reset_reports();
    sticky_error = 0;
    memory_mark_all_initialised();
    return 0;
}

// Returns the length of the text without its end; it is cut at the buffer's size.
extern "C" __attribute__((visibility("default"))) size_t ggro_emu_counters_json(char* buffer, size_t bytes) {
    EMU_ENTER_ANY;
    const std::string json = report_json();
    if (bytes) {
        const size_t n = std::min(json.size(), bytes - 1);
        memcpy(buffer, json.data(), n);
        buffer[n] = 0;
    }
    return json.size();
}

// ---- driver calls

EMU_API cuInit(unsigned flags) {
    EMU_ENTER_ANY;
    read_environment();
    // Registered this late, it runs before any of the engine's globals are destroyed.
    static const int at_exit = atexit(write_report);
    (void)at_exit;
    if (flags) return kInvalidValue;
    initialised = true;
    return 0;
}

// Before cuInit too.
EMU_API cuDriverGetVersion(int* version) {
    EMU_ENTER_ANY;
    read_environment();
    return *version = driver_version, 0;
}
EMU_API cuDeviceGetCount(int* count) { return *count = 1, initialised ? 0 : kNotInitialized; }

EMU_API cuDeviceGet(int* device, int ordinal) {
    if (!initialised) return kNotInitialized;
    if (ordinal != 0) return kInvalidDevice;
    return *device = 0, 0;
}

EMU_API cuDeviceGetName(char* name, int bytes, int) { return snprintf(name, size_t(bytes), "ggro emulated device"), 0; }
EMU_API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = config.memory, 0; }
EMU_API cuDeviceGetUuid_v2(char* uuid, int) { return memcpy(uuid, "ggro-emulated-0", 16), 0; }
EMU_API cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

EMU_API cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (!initialised) return kNotInitialized;
    if (device != 0) return kInvalidDevice;
    const Limits limits = device_limits();
    switch (attribute) {
        case 1: *value = kMaxThreads; break;
        case 2: *value = 1024; break;
        case 3: *value = 1024; break;
        case 4: *value = 64; break;
        case 5: *value = 2147483647; break;
        case 6: *value = 65535; break;
        case 7: *value = 65535; break;
        case 8: *value = limits.shared_per_block; break;
        case 9: *value = 65536; break;
        case 10: *value = kWarp; break;
        case 12: *value = limits.registers; break;
        case 13: *value = 1980000; break;  // kHz
        case 16: *value = limits.multiprocessors; break;
        case 31: *value = 1; break;
        case 36: *value = 2619000; break;   // kHz
        case 37: *value = 5120; break;      // bits
        case 38: *value = limits.l2; break;
        case 39: *value = limits.threads_per_multiprocessor; break;
        case 40: *value = 3; break;
        case 41: *value = 1; break;
        case 75: *value = config.arch / 10; break;
        case 76: *value = config.arch % 10; break;
        case 78: *value = 1; break;
        case 81: *value = limits.shared_per_multiprocessor; break;
        case 82: *value = limits.registers; break;
        case 95: *value = 1; break;
        case 97: *value = limits.shared_optin; break;
        case 106: *value = limits.blocks_per_multiprocessor; break;
        case 111: *value = 1024; break;
        case 115: *value = 1; break;
        default: *value = 0;
    }
    return 0;
}

EMU_API cuDevicePrimaryCtxRetain(void** context, int device) {
    EMU_ENTER_ANY;
    if (!initialised) return kNotInitialized;
    if (device != 0) return kInvalidDevice;
    return *context = &primary_context, 0;
}
EMU_API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
EMU_API cuDevicePrimaryCtxReset_v2(int) { return ggro_emu_reset(); }
EMU_API cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
EMU_API cuCtxGetCurrent(void** context) { return *context = current_context, initialised ? 0 : kNotInitialized; }
EMU_API cuCtxSetCurrent(void* context) {
    if (context && context != &primary_context) return kInvalidContext;
    return current_context = context, initialised ? 0 : kNotInitialized;
}
EMU_API cuCtxGetDevice(int* device) { return *device = 0, current_context ? 0 : kInvalidContext; }
EMU_API cuCtxSetFlags(unsigned flags) { return context_flags = int(flags), 0; }
EMU_API cuCtxGetFlags(unsigned* flags) { return *flags = unsigned(context_flags), 0; }
EMU_API cuCtxGetLimit(size_t* value, int) { return *value = 0, 0; }
EMU_API cuCtxSetLimit(int, size_t) { return 0; }
EMU_API cuCtxGetCacheConfig(int* value) { return *value = 0, 0; }
EMU_API cuCtxSetCacheConfig(int) { return 0; }
EMU_API cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, 0; }
EMU_API cuCtxCreate_v4(void**, void*, unsigned, int) { return kNotSupported; }
EMU_API cuCtxDestroy_v2(void*) { return kInvalidContext; }

EMU_API cuCtxSynchronize() {
    EMU_ENTER;
    if (const int error = forbid_during_capture()) return error;
    run_all_streams();
    return sticky_error;
}

EMU_API cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &memory_pool, 0; }
EMU_API cuDeviceGetMemPool(void** pool, int) { return *pool = &memory_pool, 0; }
EMU_API cuDeviceSetMemPool(int, void*) { return 0; }
EMU_API cuMemPoolSetAttribute(void*, int, void*) { return 0; }
EMU_API cuMemPoolGetAttribute(void*, int, void* value) { return memset(value, 0, 8), 0; }
EMU_API cuMemPoolTrimTo(void*, size_t) { return 0; }

EMU_API cuGetErrorName(int error, const char** text) {
    auto it = error_names().find(error);
    return *text = it == error_names().end() ? nullptr : it->second.first, *text ? 0 : kInvalidValue;
}
EMU_API cuGetErrorString(int error, const char** text) {
    auto it = error_names().find(error);
    return *text = it == error_names().end() ? nullptr : it->second.second, *text ? 0 : kInvalidValue;
}
EMU_API cuProfilerStart() { return ++profiler_calls[0], 0; }
EMU_API cuProfilerStop() { return ++profiler_calls[1], 0; }
