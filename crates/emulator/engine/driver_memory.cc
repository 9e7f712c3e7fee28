// Allocation, copies, fills.
//
// Copies from pageable host memory read it during the call, those from pinned memory when the stream gets there: a
// pinned buffer that is reused too early shows with lazy streams, as it would on the device.
#include <sys/mman.h>

#include "driver.h"

namespace emu {
namespace {

int copy_now(void* to, const void* from, size_t bytes) {
    const bool to_device = memory_in_arena(to), from_device = memory_in_arena(from);
    if ((to_device && !memory_is_device(to, bytes)) || (from_device && !memory_is_device(from, bytes))) {
        fault_outside_kernel("out of bounds", "", "a copy of %zu bytes: %s", bytes,
                             memory_describe(to_device && !memory_is_device(to, bytes) ? to : from).c_str());
        sticky_error = kIllegalAddress;
        return kIllegalAddress;
    }
    memmove(to, from, bytes);
    if (to_device && from_device) {
        memory_copy_state(to, from, bytes);
    } else if (to_device) {
        memory_set_state(to, bytes, kInitialised);
    }
    return 0;
}

// What the driver itself refuses: device ranges that are no allocation.
bool copy_is_valid(const void* to, bool to_device, const void* from, bool from_device, size_t bytes) {
    return !(to_device && !memory_is_device(to, bytes)) && !(from_device && !memory_is_device(from, bytes));
}

int copy(void* to, bool to_device, const void* from, bool from_device, size_t bytes, void* stream_handle, bool wait) {
    if (bytes == 0) return 0;
    Stream* stream = stream_of(stream_handle);
    if (!stream) return kInvalidHandle;
    if (wait) {
        if (const int error = forbid_during_capture()) return error;
    }
    if (!copy_is_valid(to, to_device, from, from_device, bytes)) return kInvalidValue;
    Op op;
    if (!from_device && !memory_is_pinned(from, bytes) && !stream->capture && config.lazy_streams) {
        const char* bytes_now = static_cast<const char*>(from);
        auto staged = std::make_shared<std::vector<char>>(bytes_now, bytes_now + bytes);
        op = [=] { return copy_now(to, staged->data(), bytes); };
    } else {
        op = [=] { return copy_now(to, from, bytes); };
    }
    if (const int error = submit(stream, op)) return error;
    // A copy to pageable memory returns when it is done.
    if (!stream->capture && (wait || (!to_device && !memory_is_pinned(to, bytes)))) run_stream(stream);
    return wait ? sticky_error : 0;
}

int fill(void* to, uint32_t value, int width, size_t count, void* stream_handle, bool wait) {
    const size_t bytes = count * size_t(width);
    if (bytes == 0) return 0;
    Stream* stream = stream_of(stream_handle);
    if (!stream) return kInvalidHandle;
    if (wait) {
        if (const int error = forbid_during_capture()) return error;
    }
    if (!memory_is_device(to, bytes) || reinterpret_cast<uintptr_t>(to) % uintptr_t(width)) return kInvalidValue;
    const int error = submit(stream, [=] {
        if (!memory_is_device(to, bytes)) return sticky_error = kIllegalAddress, int(kIllegalAddress);
        char* p = static_cast<char*>(to);
        if (width == 1) {
            memset(p, int(value & 255), count);
        } else {
            for (size_t i = 0; i < count; ++i) memcpy(p + i * size_t(width), &value, size_t(width));
        }
        memory_set_state(to, bytes, kInitialised);
        return 0;
    });
    if (!error && wait) run_stream(stream);
    return error;
}

int allocate(void** pointer, size_t bytes) {
    if (!pointer || !bytes) return kInvalidValue;
    *pointer = memory_allocate(bytes);
    return *pointer ? 0 : kOutOfMemory;
}

void* host(uint64_t device_pointer) { return reinterpret_cast<void*>(device_pointer); }

}  // namespace
}  // namespace emu

using namespace emu;

EMU_API cuMemGetInfo_v2(size_t* free, size_t* total) {
    EMU_ENTER;
    *total = config.memory;
    *free = config.memory - std::min(config.memory, memory_in_use());
    return 0;
}

EMU_API cuMemAlloc_v2(void** pointer, size_t bytes) {
    EMU_ENTER;
    if (const int error = forbid_during_capture()) return error;
    return allocate(pointer, bytes);
}

EMU_API cuMemAllocAsync(void** pointer, size_t bytes, void* stream) {
    EMU_ENTER;
    return stream_of(stream) ? allocate(pointer, bytes) : kInvalidHandle;
}
EMU_API cuMemAllocFromPoolAsync(void** pointer, size_t bytes, void*, void* stream) {
    return cuMemAllocAsync(pointer, bytes, stream);
}

EMU_API cuMemAllocManaged(void** pointer, size_t bytes, unsigned) {
    EMU_ENTER;
    const int error = allocate(pointer, bytes);
    if (!error) memory_set_state(*pointer, bytes, kInitialised);  // the host writes it unseen
    return error;
}

EMU_API cuMemFree_v2(void* pointer) {
    EMU_ENTER_ANY;
    if (!sticky_error) {
        if (const int error = forbid_during_capture()) return error;
        run_all_streams();
    }
    if (pointer && !memory_free(pointer)) return kInvalidValue;
    return sticky_error;
}

EMU_API cuMemFreeAsync(void* pointer, void* stream_handle) {
    EMU_ENTER_ANY;
    if (sticky_error) {
        memory_free(pointer);
        return sticky_error;
    }
    Stream* stream = stream_of(stream_handle);
    if (!stream) return kInvalidHandle;
    if (!memory_is_device(pointer, 1)) return kInvalidValue;
    return submit(stream, [=] { return memory_free(pointer) ? 0 : int(kInvalidValue); });
}

EMU_API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    EMU_ENTER;
    if (!bytes) return kInvalidValue;
    if (const int error = forbid_during_capture()) return error;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return kOutOfMemory;
    memset(p, 0xff, bytes);
    memory_pin(p, bytes);
    return *pointer = p, 0;
}
EMU_API cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }

EMU_API cuMemFreeHost(void* pointer) {
    EMU_ENTER_ANY;
    if (!sticky_error) run_all_streams();
    const size_t bytes = memory_unpin(pointer);
    if (!bytes) return kInvalidValue;
    munmap(pointer, bytes);
    return sticky_error;
}

EMU_API cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
    EMU_ENTER;
    return memory_pin(pointer, bytes), 0;
}
EMU_API cuMemHostUnregister(void* pointer) {
    EMU_ENTER;
    run_all_streams();
    return memory_unpin(pointer) ? 0 : kInvalidValue;
}
EMU_API cuMemHostGetDevicePointer_v2(void** device, void* pointer, unsigned) {
    EMU_ENTER;
    return *device = pointer, memory_is_pinned(pointer, 1) ? 0 : kInvalidValue;
}

EMU_API cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    EMU_ENTER;
    return copy(host(to), true, from, false, bytes, nullptr, true);
}
EMU_API cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    EMU_ENTER;
    return copy(to, false, host(from), true, bytes, nullptr, true);
}
EMU_API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    EMU_ENTER;
    return copy(host(to), true, host(from), true, bytes, nullptr, true);
}
EMU_API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    EMU_ENTER;
    return copy(host(to), true, from, false, bytes, stream, false);
}
EMU_API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    EMU_ENTER;
    return copy(to, false, host(from), true, bytes, stream, false);
}
EMU_API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    EMU_ENTER;
    return copy(host(to), true, host(from), true, bytes, stream, false);
}
EMU_API cuMemcpyPeerAsync(uint64_t to, void*, uint64_t from, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

#define EMU_FILL(bits, type)                                                                                           \
    EMU_API cuMemsetD##bits##_v2(uint64_t to, type value, size_t count) {                                              \
        EMU_ENTER;                                                                                                     \
        return fill(host(to), value, bits / 8, count, nullptr, true);                                                  \
    }                                                                                                                  \
    EMU_API cuMemsetD##bits##Async(uint64_t to, type value, size_t count, void* stream) {                              \
        EMU_ENTER;                                                                                                     \
        return fill(host(to), value, bits / 8, count, stream, false);                                                  \
    }
EMU_FILL(8, unsigned char)
EMU_FILL(16, unsigned short)
EMU_FILL(32, unsigned)

EMU_API cuMemAdvise_v2(uint64_t, size_t, int, uint64_t) { return 0; }
EMU_API cuMemPrefetchAsync_v2(uint64_t, size_t, uint64_t, unsigned, void*) { return 0; }
