// Shared memory: a window below 2 GiB, so that its 32-bit addresses are pointers.
//
// A block's shared memory is 128-byte aligned and no more, is 0xff before each block, and ends at a guard page.
#include <sys/mman.h>

#include <algorithm>

#include "engine.h"

namespace emu {
namespace {

constexpr size_t kPage = 4096, kAlign = 128;

char* window = nullptr;
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

size_t rounded(uint32_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

const char* shared_window() { return window; }

uint32_t shared_place(uint32_t bytes) {
    if (!window) open_window();
    return uint32_t(reinterpret_cast<uintptr_t>(window) + kSharedWindow - rounded(bytes));
}

void shared_begin_block(uint32_t bytes) {
    const size_t place = kSharedWindow - rounded(bytes);
    memset(window + place, 0xff, rounded(bytes));
    if (run.checked) std::fill_n(states.begin() + long(place), bytes, uint8_t(kUninitialised));
}

bool shared_contains(const void* address) { return size_t(static_cast<const char*>(address) - window) < kSharedWindow; }

uint8_t* shared_states(const void* address) {
    return shared_contains(address) ? states.data() + (static_cast<const char*>(address) - window) : nullptr;
}

}  // namespace emu
