// The checked build: every load and store of a kernel arrives here through the hooks of -fsanitize=thread.
//
// Bounds and initialisation come from the state bytes. Races: a cell per byte of shared memory and per two bytes of
// global memory holds a tag of the last write and of the reads since. A tag is a number from a counter that moves at
// every synchronisation, plus who: so "was that before my last barrier" is one comparison. Order is created by block
// barriers, __syncwarp, mbarriers, and releases and acquires between blocks; never by shuffles.
#include <sys/mman.h>

#include <algorithm>

#include "engine.h"

namespace emu {

bool library_contains(const Library& library, const void* address);  // driver_module.cc

namespace {

// Tag: order in the upper 20 bits, an atomic flag, and an actor of 11 bits: a thread, or several readers.
struct Cell {
    uint32_t writer, reader;
};
constexpr uint32_t kAtomicTag = 1u << 11, kActorMask = kAtomicTag - 1;
constexpr uint32_t kSeveralLanes = 1024, kSeveralWarps = kSeveralLanes + kWarp, kSeveralBlocks = kSeveralWarps + 1;
constexpr uint32_t kMaxOrder = (1u << 20) - 2;
constexpr size_t kWindow = 256 << 10;

Cell* global_cells = nullptr;  // of two bytes each
std::vector<Cell> dynamic_cells(kWindow);
std::vector<Cell> static_cells;

uint32_t order_now = 0;
uint32_t launch_first, block_first, barrier_order;
std::vector<uint32_t> block_firsts;  // of this launch, ascending
bool mbarriers_used;
Clock warp_clocks[kWarp];  // what each warp has been ordered after, through mbarriers

// What a block published at an address, and what this block has learned of it.
struct Release {
    uint32_t block_first, barrier_order, order, thread;
};
std::unordered_map<const void*, std::vector<Release>> releases;
struct Acquired {
    Release release;
    uint32_t order, thread;
};
std::unordered_map<uint32_t, std::vector<Acquired>> acquired;  // by the other block's first order

uint32_t order_of(uint32_t tag) { return tag >> 12; }
uint32_t actor_of(uint32_t tag) { return tag & kActorMask; }

bool ordered_through_memory(uint32_t order, uint32_t actor) {
    auto block = std::upper_bound(block_firsts.begin(), block_firsts.end(), order);
    if (block == block_firsts.begin()) return true;
    auto known = acquired.find(*std::prev(block));
    if (known == acquired.end()) return false;
    for (const Acquired& a : known->second) {
        const bool published =
            order < a.release.barrier_order || (actor == a.release.thread && order <= a.release.order);
        const bool learned = self->index == a.thread || barrier_order > a.order;
        if (published && learned) return true;
    }
    return false;
}

// Did the tagged access happen before everything that the running thread does now?
bool ordered(uint32_t tag) {
    const uint32_t order = order_of(tag), actor = actor_of(tag);
    if (order < launch_first) return true;
    if (actor == kSeveralBlocks) return false;
    if (order < block_first) return ordered_through_memory(order, actor);
    if (order < barrier_order) return true;
    const Thread& me = *self;
    if (actor == me.index) return true;
    if (actor == kSeveralWarps) return mbarriers_used;  // too coarse to tell: no false alarm
    const uint32_t warp = actor < kSeveralLanes ? actor / kWarp : actor - kSeveralLanes;
    if (warp == me.warp->index) {
        const bool all =
            actor >= kSeveralLanes ? (me.warp->live & ~me.sync_mask) == 0 : me.sync_mask >> (actor % kWarp) & 1;
        if (order < me.sync_order && all) return true;
    }
    return order <= warp_clocks[me.warp->index].order[warp];
}

std::string actor_text(uint32_t tag, bool global) {
    const uint32_t actor = actor_of(tag);
    std::string text;
    if (actor < kSeveralLanes) {
        text = thread_name(threads[actor]);
    } else if (actor < kSeveralWarps) {
        text = "several lanes of warp " + std::to_string(actor - kSeveralLanes);
    } else {
        return actor == kSeveralWarps ? "several warps" : "several blocks";
    }
    return global && order_of(tag) < block_first ? "another block's " + text : text;
}

// The common case, in loops that become vector instructions: what was written is `old` or of this thread, and so is
// what was read, or it was left by several readers to whom this one adds nothing.
bool quiet(const Cell* cell, size_t count, uint32_t old, uint32_t mine, uint32_t lanes, uint32_t several) {
    uint32_t loud = 0;
    for (size_t i = 0; i < count; ++i) {
        const uint32_t written = cell[i].writer, read = cell[i].reader;
        loud |= uint32_t(written >= old && written != mine);
        loud |= uint32_t(read >= old && read != mine && read != lanes && read != several);
    }
    return !loud;
}

size_t take_quietly(Cell* cell, size_t count, uint32_t old, uint32_t mine, bool write) {
    uint32_t fresh = 0;
    const uint32_t launch = launch_first << 12;
    for (size_t i = 0; i < count; ++i) {
        const uint32_t written = cell[i].writer, read = cell[i].reader;
        fresh += uint32_t(written < launch && (write || read < launch));
        cell[i].writer = write ? mine : written;
        cell[i].reader = write ? 0 : read < old ? mine : read;
    }
    return fresh;
}

// The cells cover the accessed bytes; returns how many were seen for the first time in this launch by such an access.
size_t check_cells(Cell* cell, size_t count, unsigned access, bool global, const void* address, Site site) {
    const uint32_t mine = self->order << 12 | self->index;
    const bool write = access & kWrite, atomic = access & kAtomic;
    // Tags below this one are ordered before everything here: of earlier launches, or of before the last barrier.
    const uint32_t old = (global ? launch_first : barrier_order) << 12;
    // What several readers of this warp, or of several warps or blocks, have left already stays as it is.
    const uint32_t lanes = self->order << 12 | (kSeveralLanes + self->warp->index),
                   several = self->order << 12 | (global ? kSeveralBlocks : kSeveralWarps);
    const bool broken_promise = access & kReadOnly && order_of(cell->writer) >= launch_first;
    if (!atomic && !broken_promise && quiet(cell, count, old, mine, write ? mine : lanes, write ? mine : several))
        return take_quietly(cell, count, old, mine, write);
    size_t fresh = 0;
    // ld.global.nc goes past the order of memory: what it reads must not be written while the kernel runs.
    if (broken_promise)
        fault("read-only data written", site, "this launch has written what is read as constant here: %s",
              memory_describe(address).c_str());
    for (size_t i = 0; i < count; ++i) {
        Cell& c = cell[i];
        const uint32_t written = c.writer, read = c.reader;
        if (order_of(written) >= block_first || (global && order_of(written) >= launch_first)) {
            if (written != mine && !(atomic && (written & kAtomicTag)) && !ordered(written & ~kAtomicTag)) {
                fault(global ? "global memory race" : "shared memory race", site,
                      "%s of %s, written by %s without synchronisation in between",
                      atomic  ? "atomic"
                      : write ? "write"
                              : "read",
                      global ? memory_describe(address).c_str() : "shared memory", actor_text(written, global).c_str());
            }
        } else if (write || order_of(read) < launch_first) {
            ++fresh;
        }
        if (write) {
            if (order_of(read) >= block_first || (global && order_of(read) >= launch_first)) {
                if (read != mine && !ordered(read)) {
                    fault(global ? "global memory race" : "shared memory race", site,
                          "%s of %s, read by %s without synchronisation in between", atomic ? "atomic" : "write",
                          global ? memory_describe(address).c_str() : "shared memory",
                          actor_text(read, global).c_str());
                }
            }
            c.writer = mine | (atomic ? kAtomicTag : 0);
            c.reader = 0;
        } else if (!atomic && read != mine) {
            const uint32_t order = order_of(read), actor = actor_of(read);
            uint32_t next = mine;
            if (global && order >= launch_first && (order < block_first || actor == kSeveralBlocks)) {
                next = self->order << 12 | kSeveralBlocks;
            } else if (order >= block_first && order >= barrier_order && actor != self->index) {
                const uint32_t warp = actor < kSeveralLanes ? actor / kWarp : actor - kSeveralLanes;
                if (warp != self->warp->index) {
                    next = self->order << 12 | kSeveralWarps;
                } else if (!ordered(read)) {
                    next = self->order << 12 | (kSeveralLanes + warp);
                }
            }
            c.reader = next;
        }
    }
    return fresh;
}

Cell* shared_cells(const void* address) {
    const char* p = static_cast<const char*>(address);
    const size_t offset = size_t(p - static_cast<const char*>(shared_window()));
    return offset < kWindow ? &dynamic_cells[offset] : &static_cells[size_t(p - run.library->shared_begin)];
}

// The common answer, from one or two words.
bool all_initialised(const uint8_t* states, size_t bytes) {
    constexpr uint64_t kAllInitialised = 0x0101010101010101ull * kInitialised;
    uint64_t low = kAllInitialised, high = kAllInitialised;
    switch (bytes) {
        case 1: return *states == kInitialised;
        case 2: memcpy(&low, states, 2); break;
        case 4: memcpy(&low, states, 4); break;
        case 8: memcpy(&low, states, 8); break;
        case 16:
            memcpy(&low, states, 8);
            memcpy(&high, states + 8, 8);
            break;
        default: return false;
    }
    return low == kAllInitialised && high == kAllInitialised;
}

[[noreturn]] void out_of_bounds(const void* address, size_t bytes, bool write, const char* space, Site site,
                                const std::string& where) {
    fatal(700, "out of bounds", site, "%s of %zu bytes of %s memory at %p: %s", write ? "write" : "read", bytes, space,
          address, where.c_str());
}

}  // namespace

uint32_t checker_next_order() {
    if (++order_now > kMaxOrder) {
        // Start over; what lies before is forgotten, which can only hide a race.
        madvise(global_cells, kArenaBytes / 2 * sizeof(Cell), MADV_DONTNEED);
        std::fill(dynamic_cells.begin(), dynamic_cells.end(), Cell());
        std::fill(static_cells.begin(), static_cells.end(), Cell());
        order_now = launch_first = block_first = barrier_order = 1;
        block_firsts.assign(1, 1);
        acquired.clear();
        releases.clear();
        for (Clock& c : warp_clocks) c = Clock();
        for (Thread& t : threads) t.order = t.sync_order = 1;
    }
    return order_now;
}

void checker_begin_launch() {
    if (!global_cells) {
        void* p = mmap(nullptr, kArenaBytes / 2 * sizeof(Cell), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            perror("ggro emulated device: cannot reserve the race detector's address space");
            abort();
        }
        global_cells = static_cast<Cell*>(p);
    }
    memory_base();
    const size_t static_bytes = size_t(run.library->shared_end - run.library->shared_begin);
    if (static_cells.size() < static_bytes) static_cells.resize(static_bytes);
    traffic_forget();  // an aborted kernel leaves its records behind
    launch_first = checker_next_order();
    block_firsts.clear();
    releases.clear();
}

void checker_begin_block() {
    block_first = barrier_order = checker_next_order();
    block_firsts.push_back(block_first);
    acquired.clear();
    mbarriers_used = false;
    for (uint32_t w = 0; w * kWarp < run.threads; ++w) warp_clocks[w] = Clock();
    for (uint32_t i = 0; i < run.threads; ++i) {
        threads[i].order = threads[i].sync_order = block_first;
        threads[i].sync_mask = 0;
    }
}

void checker_block_barrier() {
    barrier_order = checker_next_order();
    for (uint32_t i = 0; i < run.threads; ++i) {
        threads[i].order = threads[i].sync_order = barrier_order;
        threads[i].sync_mask = 0;
    }
}

void checker_warp_sync(Warp& warp, uint32_t mask) {
    const uint32_t order = checker_next_order();
    for (int l = 0; l < kWarp; ++l) {
        if (!(mask >> l & 1)) continue;
        Thread& t = threads[warp.index * kWarp + uint32_t(l)];
        t.order = t.sync_order = order;
        t.sync_mask = mask;
    }
}

void checker_note(Clock& clock, const Thread& thread, uint32_t order) {
    uint32_t& known = clock.order[thread.warp->index];
    known = std::max(known, order);
}

// Whoever passes the mbarrier later is ordered after what this thread (by approximation: its warp) did until now.
void checker_arrive(Clock& clock) {
    if (!run.checked) return;
    mbarriers_used = true;
    for (int w = 0; w < kWarp; ++w) clock.order[w] = std::max(clock.order[w], warp_clocks[self->warp->index].order[w]);
    checker_note(clock, *self, self->order);
    self->order = checker_next_order();
}

void checker_pass(const Clock& clock) {
    if (!run.checked) return;
    Clock& mine = warp_clocks[self->warp->index];
    for (int w = 0; w < kWarp; ++w) mine.order[w] = std::max(mine.order[w], clock.order[w]);
}

// From its issue until it is waited for, nobody may touch the target of an asynchronous copy.
void checker_async_issue(char* target, size_t bytes, Site site) {
    if (!run.checked) return;
    uint8_t* states = shared_states(target);
    if (memchr(states, kPending, bytes))
        fault("asynchronous copy race", site, "its target is already the target of a copy in flight");
    check_cells(shared_cells(target), bytes, kWrite, false, target, site);
    memset(states, kPending, bytes);
}

void checker_async_done(char* target, size_t bytes, const Thread& owner, uint32_t order) {
    if (!run.checked) return;
    memset(shared_states(target), kInitialised, bytes);
    Cell* cells = shared_cells(target);
    for (size_t i = 0; i < bytes; ++i) cells[i] = {order << 12 | owner.index, 0};
}

void checker_release(const void* address) {
    if (!run.checked) return;
    releases[address].push_back({block_first, barrier_order, self->order, self->index});
    self->order = checker_next_order();
}

void checker_acquire(const void* address) {
    if (!run.checked) return;
    auto it = releases.find(address);
    if (it == releases.end()) return;
    for (const Release& r : it->second) {
        if (r.block_first != block_first) acquired[r.block_first].push_back({r, self->order, self->index});
    }
    self->order = checker_next_order();
}

void check_access(const void* address, size_t bytes, unsigned access, Site site) {
    const bool write = access & kWrite;
    if (!run.checked) {
        // Only the engine's own instructions come here in the plain build.
        if (memory_in_arena(address) && !memory_is_device(address, bytes))
            out_of_bounds(address, bytes, write, "global", site, memory_describe(address));
        return;
    }
    if (!(access & kUnaligned) && bytes <= 16 && (bytes & (bytes - 1)) == 0 &&
        reinterpret_cast<uintptr_t>(address) % bytes) {
        fatal(716, "misaligned access", site, "%s of %zu bytes at %p", write ? "write" : "read", bytes, address);
    }
    const bool global = memory_in_arena(address);
    uint8_t* states = global ? memory_states(address) : shared_states(address);
    if (!states) {
        if (memory_is_pinned(address, bytes)) return;
        out_of_bounds(address, bytes, write, "no device", site, "neither global nor shared memory");
    }
    if (!global) {
        const char *end = static_cast<const char*>(address) + bytes,
                   *window_end = static_cast<const char*>(shared_window()) + kWindow;
        const bool dynamic =
            size_t(static_cast<const char*>(address) - static_cast<const char*>(shared_window())) < kWindow;
        if (end > (dynamic ? window_end : run.library->shared_end))
            out_of_bounds(address, bytes, write, "shared", site, "past the end");
    }
    const bool common = all_initialised(states, bytes);
    uint8_t lowest = common ? uint8_t(kInitialised) : uint8_t(kPending), highest = common ? uint8_t(kInitialised) : 0;
    bool unknown = false;
    for (size_t i = 0; !common && i < bytes; ++i) {
        lowest = std::min(lowest, states[i]);
        highest = std::max(highest, states[i]);
        unknown |= states[i] == kUninitialised;
    }
    if (lowest == kOutside) {
        if (global) out_of_bounds(address, bytes, write, "global", site, memory_describe(address));
        char where[96];
        snprintf(where, sizeof where, "byte %td of %u dynamic bytes", static_cast<const char*>(address) - run.shared,
                 run.launch->shared_bytes);
        out_of_bounds(address, bytes, write, "shared", site, where);
    }
    if (highest == kPending) {
        fault("asynchronous copy race", site, "%s of shared memory that a copy in flight will write: a wait is missing",
              write ? "write" : "read");
    } else if (unknown && !(write && !(access & kAtomic))) {
        fault("uninitialised read", site, "%zu bytes of %s memory%s%s", bytes, global ? "global" : "shared",
              global ? ": " : "", global ? memory_describe(address).c_str() : "");
    }
    if (write && lowest != kInitialised) memset(states, kInitialised, bytes);
    if (global) {
        const size_t offset = size_t(static_cast<const char*>(address) - memory_base());
        size_t fresh = 0;
        // Single bytes are finer than the cells: neighbours would look like races.
        if (bytes >= 2) fresh = 2 * check_cells(global_cells + offset / 2, bytes / 2, access, true, address, site);
        (write ? run.counters->unique_bytes_written : run.counters->unique_bytes_read) += fresh;
        (write ? run.counters->bytes_written : run.counters->bytes_read) += bytes;
    } else {
        check_cells(shared_cells(address), bytes, access, false, address, site);
    }
    if (!(access & kNoTraffic)) traffic_access(address, bytes, write, !global, site);
}

namespace {

__attribute__((always_inline)) inline void hook(void* address, size_t bytes, unsigned access, const void* pc) {
    if (!run.active || fiber_stack_contains(address)) return;
    const char* p = static_cast<const char*>(address);
    if (!memory_in_arena(p) && !shared_states(p)) {
        // Tables and constants of the kernel library itself.
        if (library_contains(*run.library, p)) return;
    }
    check_access(address, bytes, access, Site{nullptr, 0, pc});
}

uint64_t load(const void* p, int bytes) {
    uint64_t v = 0;
    memcpy(&v, p, size_t(bytes));
    return v;
}

}  // namespace
}  // namespace emu

using namespace emu;

#define PC __builtin_return_address(0)

extern "C" {

#define EMU_HOOKS(n)                                                                                                   \
    void __tsan_read##n(void* p) { hook(p, n, kRead, PC); }                                                            \
    void __tsan_write##n(void* p) { hook(p, n, kWrite, PC); }                                                          \
    void __tsan_volatile_read##n(void* p) { hook(p, n, kRead, PC); }                                                   \
    void __tsan_volatile_write##n(void* p) { hook(p, n, kWrite, PC); }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)

// The compiler itself knows these to be unaligned (packed members, merged byte copies).
#define EMU_UNALIGNED_HOOKS(n)                                                                                         \
    void __tsan_unaligned_read##n(void* p) { hook(p, n, kRead | kUnaligned, PC); }                                     \
    void __tsan_unaligned_write##n(void* p) { hook(p, n, kWrite | kUnaligned, PC); }
EMU_UNALIGNED_HOOKS(2)
EMU_UNALIGNED_HOOKS(4)
EMU_UNALIGNED_HOOKS(8)
EMU_UNALIGNED_HOOKS(16)

void __tsan_read_range(void* p, size_t bytes) { hook(p, bytes, kRead, PC); }
void __tsan_write_range(void* p, size_t bytes) { hook(p, bytes, kWrite, PC); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

uint64_t emu_atomic(int operation, int bytes, void* address, uint64_t value, uint64_t compare, int order, EMU_AT) {
    const Site site{file, line};
    if (reinterpret_cast<uintptr_t>(address) % uintptr_t(bytes))
        fatal(716, "misaligned access", site, "atomic of %d bytes at %p", bytes, address);
    const bool releases_here = order & EMU_RELEASE || self->fenced, shared = shared_contains(address);
    if (!shared && releases_here) checker_release(address);
    if (!shared && order & EMU_ACQUIRE) checker_acquire(address);
    if (!shared && run.checked) self->observed.push_back(address);
    check_access(address, size_t(bytes), kWrite | kAtomic, site);
    const uint64_t old = load(address, bytes);
    const int64_t signed_old = bytes == 4 ? int32_t(old) : int64_t(old),
                  signed_value = bytes == 4 ? int32_t(value) : int64_t(value);
    if (bytes == 4) {
        value = uint32_t(value);
        compare = uint32_t(compare);
    }
    uint64_t next = old;
    switch (operation) {
        case EMU_ADD: next = old + value; break;
        case EMU_MIN_SIGNED: next = signed_value < signed_old ? value : old; break;
        case EMU_MAX_SIGNED: next = signed_value > signed_old ? value : old; break;
        case EMU_MIN_UNSIGNED: next = std::min(old, value); break;
        case EMU_MAX_UNSIGNED: next = std::max(old, value); break;
        case EMU_EXCHANGE: next = value; break;
        case EMU_COMPARE_AND_SWAP: next = old == compare ? value : old; break;
        case EMU_AND: next = old & value; break;
        case EMU_OR: next = old | value; break;
        case EMU_XOR: next = old ^ value; break;
    }
    memcpy(address, &next, size_t(bytes));
    return old;
}

// Reading a flag is how a kernel polls, so it lets the other threads go first.
unsigned emu_load_acquire(const unsigned* address, EMU_AT) {
    const Site site{file, line};
    if (reinterpret_cast<uintptr_t>(address) % 4)
        fatal(716, "misaligned access", site, "acquire at %p", static_cast<const void*>(address));
    yield_here(site);
    checker_acquire(address);
    check_access(address, 4, kRead | kAtomic, site);
    return *address;
}

void emu_store_release(unsigned* address, unsigned value, EMU_AT) {
    const Site site{file, line};
    if (reinterpret_cast<uintptr_t>(address) % 4)
        fatal(716, "misaligned access", site, "release at %p", static_cast<void*>(address));
    checker_release(address);
    check_access(address, 4, kWrite | kAtomic, site);
    *address = value;
}

// A fence makes the relaxed atomics around it publish (those after) and learn (those before).
void emu_fence() {
    self->fenced = true;
    for (const void* address : self->observed) checker_acquire(address);
    self->observed.clear();
}
}
