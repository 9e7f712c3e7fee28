// Shared memory: a window below 2 GiB, so that its 32-bit addresses are pointers.
//
// A block's shared memory is aligned to 128 bytes, or to what a static array asks for, and its dynamic part to no more where
// that can be had. It is 0xff before each block.
#include <sys/mman.h>

#include <algorithm>

#include "engine.h"

namespace emu {
namespace {

constexpr size_t kPage = 4096, kAlign = 128;

char* window = nullptr;
size_t place = 0;  // of the running kernel's blocks in the window
std::vector<uint8_t> states(kSharedWindow);

void open_window() {
    void* low = mmap(nullptr, kSharedWindow + 2 * kPage, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED) {
        perror("ggro emulated device: no address space below 2 GiB");
        abort();
    }
    window = static_cast<char*>(low) + kPage;
    mprotect(window, kSharedWindow, PROT_READ | PROT_WRITE);
}

}  // namespace

const char* shared_window() { return window; }

uint32_t shared_place(uint32_t bytes, uint32_t align, uint32_t dynamic_at) {
    if (!window) open_window();
    const size_t unit = std::max(size_t(align), kAlign);
    place = kSharedWindow - (bytes + unit - 1) / unit * unit;
    // What dynamic memory has by luck, a kernel must not rely on.
    if (unit == kAlign && dynamic_at < bytes && (place + dynamic_at) % (2 * kAlign) == 0) place -= kAlign;
    return uint32_t(reinterpret_cast<uintptr_t>(window) + place);
}

void shared_begin_block(uint32_t bytes) {
    memset(window + place, 0xff, kSharedWindow - place);
    if (run.checked) std::fill_n(states.begin() + long(place), bytes, uint8_t(kUninitialised));
}

bool shared_contains(const void* address) { return size_t(static_cast<const char*>(address) - window) < kSharedWindow; }

uint8_t* shared_states(const void* address) {
    return shared_contains(address) ? states.data() + (static_cast<const char*>(address) - window) : nullptr;
}

}  // namespace emu
