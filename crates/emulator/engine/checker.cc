// What observed accesses tell: bounds, what was never written, races.
//
// Bounds and initialisation come from the state bytes. Races: a cell per byte of shared memory and per two bytes of
// global memory holds a tag of the last write and of the reads since. A tag is a number from a counter that moves at
// every synchronisation, plus who: so "was that before my last barrier" is one comparison. Order is created by block
// barriers, __syncwarp, mbarriers, and releases and acquires between blocks; never by shuffles.
#include <sys/mman.h>

#include <algorithm>

#include "execute.h"

namespace emu {
namespace {

// Tag: order in the upper 20 bits, an atomic flag, and an actor of 11 bits: a thread, or several readers.
struct Cell {
    uint32_t writer, reader;
};
constexpr uint32_t kAtomicTag = 1u << 11, kActorMask = kAtomicTag - 1;
constexpr uint32_t kSeveralLanes = 1024, kSeveralWarps = kSeveralLanes + kWarp, kSeveralBlocks = kSeveralWarps + 1;
constexpr uint32_t kMaxOrder = (1u << 20) - 2;

Cell* global_cells = nullptr;  // of two bytes each
std::vector<Cell> shared_cells(kSharedWindow);
std::vector<uint32_t> generic_writes(kSharedWindow);  // tags; 0 of what the async proxy wrote, or nobody

uint32_t order_now = 0;
uint32_t launch_first, block_first, barrier_order;
uint32_t chain_first;  // of the running launch's chain
uint64_t era = 1;      // of orders, which start over now and then
std::vector<uint32_t> block_firsts;  // of this launch, ascending
bool mbarriers_used;
Clock warp_clocks[kWarp];  // what each warp has been ordered after, through mbarriers

// Where several warps have read, by the order of their tag: who they are, and when each of them was the last. Of cells with the
// same tag it is what is so of all, so some readers may be missing.
std::unordered_map<uint32_t, Clock> readers;

// What a block published at an address, and what this block has learned of it.
struct Release {
    uint32_t block_first, barrier_order, order, thread;
    Clock before;  // of its warp
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
        const uint32_t warp = actor < kSeveralLanes ? actor / kWarp : actor - kSeveralLanes;
        const bool published = order < a.release.barrier_order ||
                               (actor == a.release.thread && order <= a.release.order) ||
                               (actor < kSeveralWarps && order <= a.release.before.order[warp]);
        const bool learned = self->index == a.thread || barrier_order > a.order ||
                             warp_clocks[self->warp->index].order[a.thread / kWarp] >= a.order;
        if (published && learned) return true;
    }
    return false;
}

// A warp has read what others, whom the tag names, have read before.
void note_readers(uint32_t tag) {
    Clock all;
    const uint32_t actor = actor_of(tag);
    if (actor == kSeveralWarps) {
        auto known = readers.find(order_of(tag));
        if (known != readers.end()) all = known->second;
    } else {
        all.order[actor < kSeveralLanes ? actor / kWarp : actor - kSeveralLanes] = order_of(tag);
    }
    all.order[self->warp->index] = self->order;
    auto [place, fresh] = readers.emplace(self->order, all);
    if (fresh) return;
    for (int w = 0; w < kWarp; ++w) place->second.order[w] = std::min(place->second.order[w], all.order[w]);
}

// Have all of several readers read before everything that the running thread does now?
bool readers_ordered(uint32_t order) {
    if (!mbarriers_used) return false;
    auto known = readers.find(order);
    if (known == readers.end()) return true;  // before there were mbarriers, or too coarse to tell
    const uint32_t mine = self->warp->index;
    for (uint32_t w = 0; w < kWarp; ++w) {
        if (w != mine && known->second.order[w] > warp_clocks[mine].order[w]) return false;
    }
    return true;
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
    if (actor == kSeveralWarps) return readers_ordered(order);
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
    // ld.global.nc goes past the order of memory: what it reads must not be written while the kernel runs.
    uint32_t last_written = 0;
    if (access & kReadOnly) {
        for (size_t i = 0; i < count; ++i) last_written = std::max(last_written, order_of(cell[i].writer));
    }
    const bool broken_promise = access & kReadOnly && last_written >= (run.dependent ? chain_first : launch_first);
    if (!atomic && !broken_promise && quiet(cell, count, old, mine, write ? mine : lanes, write ? mine : several))
        return take_quietly(cell, count, old, mine, write);
    // Where all cells are alike, and nothing is wrong, what is so of the first is so of all.
    const auto alike = [&] {
        uint64_t first, different = 0;
        memcpy(&first, cell, sizeof first);
        for (size_t i = 1; i < count; ++i) {
            uint64_t other;
            memcpy(&other, cell + i, sizeof other);
            different |= first ^ other;
        }
        return !different;
    };
    if (!write && !atomic && !global && !broken_promise && count > 1 && alike() &&
        (order_of(cell->writer) < block_first || ordered(cell->writer & ~kAtomicTag))) {
        const size_t fresh = check_cells(cell, 1, access, global, address, site);
        std::fill(cell + 1, cell + count, *cell);
        return fresh * count;
    }
    size_t fresh = 0;
    if (broken_promise) {
        fault("read-only data written", site, "%s what is read as constant here: %s",
              last_written >= launch_first ? "this launch has written"
                                                     : "a kernel that need not have ended when this one began writes",
              memory_describe(address).c_str());
    }
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
                    if (mbarriers_used) note_readers(read);
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

// Of a thread that has not waited for the kernels before this one, which need not have ended, nor even have begun to do what they do.
void check_early(const Cell* cell, size_t count, unsigned access, const void* address, Site site) {
    const auto by_predecessor = [](uint32_t tag) {
        return order_of(tag) >= chain_first && order_of(tag) < launch_first;
    };
    const bool write = access & kWrite;
    for (size_t i = 0; i < count; ++i) {
        const bool written = by_predecessor(cell[i].writer), read = write && by_predecessor(cell[i].reader);
        if (!written && !read) continue;
        fault("early access", site, "%s of %s before griddepcontrol.wait: a kernel that need not have ended %s it",
              write ? "write" : "read", memory_describe(address).c_str(), written ? "writes" : "reads");
        return;
    }
}

Cell* shared_cells_of(const void* address) {
    return &shared_cells[size_t(static_cast<const char*>(address) - shared_window())];
}

uint32_t* generic_writes_of(const void* address) {
    return &generic_writes[size_t(static_cast<const char*>(address) - shared_window())];
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
        case 32: {
            uint64_t words[4];
            memcpy(words, states, sizeof words);
            low = words[0] & words[1];
            high = words[2] & words[3];
            return (low & high) == kAllInitialised && (words[0] | words[1] | words[2] | words[3]) == kAllInitialised;
        }
        default: return std::all_of(states, states + bytes, [](uint8_t state) { return state == kInitialised; });
    }
    return low == kAllInitialised && high == kAllInitialised;
}

// Orders start over; what lies before is forgotten.
void start_over() {
    madvise(global_cells, kArenaBytes / 2 * sizeof(Cell), MADV_DONTNEED);
    std::fill(shared_cells.begin(), shared_cells.end(), Cell());
    std::fill(generic_writes.begin(), generic_writes.end(), 0u);
    order_now = launch_first = block_first = barrier_order = 1;
    ++era;
    block_firsts.assign(1, 1);
    acquired.clear();
    releases.clear();
    for (Clock& c : warp_clocks) c = Clock();
    readers.clear();
    for (Thread& t : threads) t.order = t.sync_order = t.proxy_order = t.init_order = 1;
    ptx::forget_orders();
}

uint32_t next_order() {
    // In the middle of a launch this can hide a race.
    if (++order_now > kMaxOrder) start_over();
    return order_now;
}

}  // namespace

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
    // Whatever lies before a launch is ordered before it, so here nothing is lost.
    if (order_now > kMaxOrder / 2) start_over();
    launch_first = next_order();
    block_firsts.clear();
    releases.clear();
    Chain* chain = run.launch->chain.get();
    if (!chain) return;
    // Nothing is known of a chain whose first kernel nobody observed. Of one that began in an earlier era, all that is still known came
    // after its beginning.
    if (!run.dependent || !chain->era) chain->first = launch_first;
    else if (chain->era != era) chain->first = 1;
    chain->era = era;
    chain_first = chain->first;
}

void checker_begin_block() {
    block_first = barrier_order = next_order();
    block_firsts.push_back(block_first);
    acquired.clear();
    mbarriers_used = false;
    if (!readers.empty()) readers.clear();
    for (uint32_t w = 0; w * kWarp < run.threads; ++w) warp_clocks[w] = Clock();
    for (uint32_t i = 0; i < run.threads; ++i) {
        threads[i].order = threads[i].sync_order = threads[i].proxy_order = threads[i].init_order = block_first;
        threads[i].sync_mask = 0;
        threads[i].fenced = false;
        threads[i].observed.clear();
    }
}

void checker_block_barrier() {
    barrier_order = next_order();
    if (!readers.empty()) readers.clear();  // whatever lies before the barrier is ordered before what follows
    for (uint32_t i = 0; i < run.threads; ++i) {
        threads[i].order = threads[i].sync_order = barrier_order;
        threads[i].sync_mask = 0;
    }
}

void checker_warp_sync(const ptx::Warp& warp, uint32_t mask) {
    const uint32_t order = next_order();
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
    mbarriers_used = true;
    for (int w = 0; w < kWarp; ++w) clock.order[w] = std::max(clock.order[w], warp_clocks[self->warp->index].order[w]);
    checker_note(clock, *self, self->order);
    self->order = next_order();
}

void checker_arrive_together(Clock& clock, const ptx::Warp& warp, uint32_t mask) {
    checker_arrive(clock);
    const uint32_t order = self->order;
    for (uint32_t l = 0; l < kWarp; ++l) {
        if (!(mask >> l & 1)) continue;
        Thread& thread = threads[warp.index * kWarp + l];
        checker_note(clock, thread, thread.order < order ? thread.order : 0);
        thread.order = order;
    }
}

void checker_pass(const Clock& clock) {
    Clock& mine = warp_clocks[self->warp->index];
    for (int w = 0; w < kWarp; ++w) mine.order[w] = std::max(mine.order[w], clock.order[w]);
}

// From its issue until it is waited for, nobody may touch the target of an asynchronous copy.
void checker_async_issue(const char* target, size_t bytes, Site site) {
    uint8_t* states = shared_states(target);
    if (memchr(states, kPending, bytes))
        fault("asynchronous copy race", site, "its target is already the target of a copy in flight");
    check_cells(shared_cells_of(target), bytes, kWrite, false, target, site);
    memset(states, kPending, bytes);
}

void checker_async_done(const char* target, size_t bytes, const Thread& owner, uint32_t order, bool generic) {
    memset(shared_states(target), kInitialised, bytes);
    std::fill_n(generic_writes_of(target), bytes, generic ? order << 12 | owner.index : 0u);
    Cell* cells = shared_cells_of(target);
    for (size_t i = 0; i < bytes; ++i) cells[i] = {order << 12 | owner.index, 0};
}

void checker_release(const void* address) {
    releases[address].push_back(
        {block_first, barrier_order, self->order, self->index, warp_clocks[self->warp->index]});
    self->order = next_order();
}

// Between the two there is a fence of the writer, or of who accesses.
void checker_async_access(const char* address, size_t bytes, bool write, Site site) {
    const uint32_t* writes = generic_writes_of(address);
    uint32_t latest = 0;
    for (size_t i = 0; i < bytes; ++i) latest = std::max(latest, writes[i]);
    if (order_of(latest) < block_first) return;
    for (size_t i = 0; i < bytes; ++i) {
        const uint32_t order = order_of(writes[i]), writer = actor_of(writes[i]);
        if (order < block_first || order < threads[writer].proxy_order || order < self->proxy_order) continue;
        fault("missing fence", site, "%s what %s wrote, with no fence.proxy.async in between",
              write ? "writes over" : "reads", thread_name(threads[writer]).c_str());
        return;
    }
}

void checker_proxy_fence() { self->order = self->proxy_order = next_order(); }
void checker_init_fence() { self->order = self->init_order = next_order(); }

bool checker_knows(const Thread& thread, uint32_t order) { return ordered(order << 12 | thread.index); }
bool checker_proxy_knows(const Thread& thread, uint32_t order) {
    return order < thread.proxy_order || order < thread.init_order || order < self->proxy_order;
}

void checker_acquire(const void* address) {
    auto it = releases.find(address);
    if (it == releases.end()) return;
    for (const Release& r : it->second) {
        if (r.block_first != block_first) acquired[r.block_first].push_back({r, self->order, self->index});
    }
    self->order = next_order();
}

void checker_order(const void* address, int order) {
    if (order & kRelease || self->fenced) checker_release(address);
    if (order & kAcquire) checker_acquire(address);
    self->observed.push_back(address);
}

void checker_fence() {
    self->fenced = true;
    for (const void* address : self->observed) checker_acquire(address);
    self->observed.clear();
}

// Bounds and alignment are those of allocations and of what instructions ask for, and known to be right.
void check_access(const void* address, size_t bytes, unsigned access, Site site) {
    const bool write = access & kWrite, global = memory_in_arena(address);
    uint8_t* states = global ? memory_states(address) : shared_states(address);
    if (!states) return;  // pinned memory of the host
    if (!all_initialised(states, bytes)) {
        bool unknown = false, pending = false;
        for (size_t i = 0; i < bytes; ++i) {
            unknown |= states[i] == kUninitialised;
            pending |= states[i] == kPending;
        }
        if (pending) {
            fault("asynchronous copy race", site,
                  "%s of shared memory that a copy in flight will write: a wait is missing", write ? "write" : "read");
        } else if (unknown && !(write && !(access & kAtomic))) {
            fault("uninitialised read", site, "%zu bytes of %s memory%s%s", bytes, global ? "global" : "shared",
                  global ? ": " : "", global ? memory_describe(address).c_str() : "");
        }
        if (write) memset(states, kInitialised, bytes);
    }
    if (!global) {
        if (write) std::fill_n(generic_writes_of(address), bytes, self->order << 12 | self->index);
        check_cells(shared_cells_of(address), bytes, access, false, address, site);
        return;
    }
    const size_t offset = size_t(static_cast<const char*>(address) - memory_base());
    size_t fresh = 0;
    if (run.dependent && self->early) {
        check_early(global_cells + offset / 2, (bytes + 1) / 2, access, address, site);
        if (!write) run.counters->early_bytes_read += bytes;
    }
    // Single bytes are finer than the cells: neighbours would look like races.
    if (bytes >= 2) fresh = 2 * check_cells(global_cells + offset / 2, bytes / 2, access, true, address, site);
    (write ? run.counters->unique_bytes_written : run.counters->unique_bytes_read) += fresh;
    (write ? run.counters->bytes_written : run.counters->bytes_read) += bytes;
}

}  // namespace emu
