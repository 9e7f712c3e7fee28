// Device memory: an arena with one state byte per byte.
//
// An allocation ends at the end of a page, up to rounding to 256 bytes, and unmapped pages surround it, so that even
// the plain build notices a run past the end. Fresh memory is 0xff, a NaN in every floating type. The state bytes
// (outside, uninitialised, initialised) are kept for all allocations; kernels only consult and update them in the
// checked build.
#include <sys/mman.h>

#include "engine.h"

namespace emu {
namespace {

constexpr size_t kPage = 4096, kAlign = 256;

char* arena = nullptr;
uint8_t* states = nullptr;
size_t arena_used = 0, bytes_in_use = 0;

struct Block {
    size_t bytes;
    char* pages;
    size_t page_bytes;
};
std::map<char*, Block> allocations;
std::map<char*, size_t> freed;  // for reports of use after free
std::map<char*, size_t> pinned;
std::multimap<size_t, char*> holes;  // page ranges to use again, by size

char* reserve(size_t bytes, int protection) {
    void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("ggro emulated device: cannot reserve address space");
        abort();
    }
    return static_cast<char*>(p);
}

std::map<char*, Block>::iterator containing(const void* pointer) {
    char* p = static_cast<char*>(const_cast<void*>(pointer));
    auto it = allocations.upper_bound(p);
    if (it == allocations.begin()) return allocations.end();
    --it;
    return p < it->first + it->second.bytes ? it : allocations.end();
}

}  // namespace

char* memory_base() {
    if (!arena) {
        arena = reserve(kArenaBytes, PROT_NONE);
        states = reinterpret_cast<uint8_t*>(reserve(kArenaBytes, PROT_READ | PROT_WRITE));
    }
    return arena;
}

void* memory_allocate(size_t bytes) {
    memory_base();
    const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
    const size_t page_bytes = (rounded + kPage - 1) / kPage * kPage;
    if (bytes_in_use + page_bytes > config.memory) return nullptr;
    char* pages;
    auto hole = holes.find(page_bytes);
    if (hole != holes.end()) {
        pages = hole->second;
        holes.erase(hole);
    } else {
        if (arena_used + page_bytes + 2 * kPage > kArenaBytes) return nullptr;
        pages = arena + arena_used + kPage;
        arena_used += page_bytes + kPage;
    }
    mprotect(pages, page_bytes, PROT_READ | PROT_WRITE);
    memset(pages, 0xff, page_bytes);
    char* start = pages + page_bytes - rounded;
    allocations[start] = {bytes, pages, page_bytes};
    freed.erase(start);
    bytes_in_use += page_bytes;
    memset(states + (start - arena), kUninitialised, bytes);
    return start;
}

bool memory_free(void* pointer) {
    auto it = allocations.find(static_cast<char*>(pointer));
    if (it == allocations.end()) return false;
    const Block& b = it->second;
    memset(states + (it->first - arena), kOutside, b.bytes);
    madvise(b.pages, b.page_bytes, MADV_DONTNEED);
    mprotect(b.pages, b.page_bytes, PROT_NONE);
    bytes_in_use -= b.page_bytes;
    holes.insert({b.page_bytes, b.pages});
    freed[it->first] = b.bytes;
    allocations.erase(it);
    return true;
}

bool memory_is_device(const void* pointer, size_t bytes) {
    auto it = containing(pointer);
    return it != allocations.end() && static_cast<const char*>(pointer) + bytes <= it->first + it->second.bytes;
}

bool memory_extent(const void* pointer, char*& begin, char*& end) {
    auto it = containing(pointer);
    if (it != allocations.end()) {
        begin = it->first;
        end = it->first + it->second.bytes;
        return true;
    }
    auto host = pinned.upper_bound(static_cast<char*>(const_cast<void*>(pointer)));
    if (host == pinned.begin()) return false;
    --host;
    begin = host->first;
    end = host->first + host->second;
    return pointer < end;
}

bool memory_in_arena(const void* pointer) {
    return arena && size_t(static_cast<const char*>(pointer) - arena) < kArenaBytes;
}
uint8_t* memory_states(const void* pointer) { return states + (static_cast<const char*>(pointer) - arena); }
size_t memory_in_use() { return bytes_in_use; }

void memory_set_state(const void* pointer, size_t bytes, ByteState state) {
    if (memory_in_arena(pointer)) memset(memory_states(pointer), state, bytes);
}

void memory_copy_state(const void* to, const void* from, size_t bytes) {
    if (memory_in_arena(to) && memory_in_arena(from)) memmove(memory_states(to), memory_states(from), bytes);
}

// Kernels of the plain build do not say what they write, so what they may have written counts as initialised.
void memory_mark_all_initialised() {
    for (auto& [start, block] : allocations) memset(states + (start - arena), kInitialised, block.bytes);
}

void memory_pin(void* pointer, size_t bytes) { pinned[static_cast<char*>(pointer)] = bytes; }

size_t memory_unpin(void* pointer) {
    auto it = pinned.find(static_cast<char*>(pointer));
    if (it == pinned.end()) return 0;
    const size_t bytes = it->second;
    pinned.erase(it);
    return bytes;
}

bool memory_is_pinned(const void* pointer, size_t bytes) {
    char* p = static_cast<char*>(const_cast<void*>(pointer));
    auto it = pinned.upper_bound(p);
    if (it == pinned.begin()) return false;
    --it;
    return p + bytes <= it->first + it->second;
}

std::string memory_describe(const void* pointer) {
    char* p = static_cast<char*>(const_cast<void*>(pointer));
    char text[160];
    auto inside = containing(p);
    if (inside != allocations.end()) {
        snprintf(text, sizeof text, "byte %zu of an allocation of %zu bytes", size_t(p - inside->first),
                 inside->second.bytes);
        return text;
    }
    auto gone = freed.upper_bound(p);
    if (gone != freed.begin() && p < std::prev(gone)->first + std::prev(gone)->second) {
        snprintf(text, sizeof text, "byte %zu of an allocation of %zu bytes that was freed",
                 size_t(p - std::prev(gone)->first), std::prev(gone)->second);
        return text;
    }
    auto next = allocations.upper_bound(p);
    size_t after = SIZE_MAX, before = SIZE_MAX, after_bytes = 0, before_bytes = 0;
    if (next != allocations.begin()) {
        auto last = std::prev(next);
        after = size_t(p - (last->first + last->second.bytes));
        after_bytes = last->second.bytes;
    }
    if (next != allocations.end()) {
        before = size_t(next->first - p);
        before_bytes = next->second.bytes;
    }
    if (after == SIZE_MAX && before == SIZE_MAX) return "no allocation is near";
    if (after <= before) {
        snprintf(text, sizeof text, "%zu bytes past the end of an allocation of %zu bytes", after, after_bytes);
    } else {
        snprintf(text, sizeof text, "%zu bytes before an allocation of %zu bytes", before, before_bytes);
    }
    return text;
}

}  // namespace emu
