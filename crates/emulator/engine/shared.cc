// Shared memory, and what copies into it: cp.async, mbarriers, 1D bulk copies.
//
// Dynamic shared memory lies below 2 GiB, so its 32-bit address is the pointer, and ends at a guard page: the base is
// 128-byte aligned and no more. Static shared memory lives in the kernel library; its 32-bit addresses are offsets into
// a reserved range. `late` copies happen when somebody waits for them (bulk copies: when nothing else can run), which
// shows missing waits; `early` ones happen at issue, which shows buffers filled while still in use.
#include <sys/mman.h>

#include <deque>

#include "engine.h"

namespace emu {
namespace {

constexpr uint32_t kWindow = 256 << 10;

char* window = nullptr;
uint32_t static_base = 0;  // 32-bit addresses of static shared memory start here
std::vector<uint8_t> dynamic_state(kWindow);

struct Mbarrier {
    uint32_t count = 0, arrived = 0, phase = 0;
    int64_t bytes = 0;  // announced minus arrived
    Clock clock, completed;
    std::vector<std::pair<Thread*, uint32_t>> waiting;  // and the parity they wait for
};
std::unordered_map<uint32_t, Mbarrier> mbarriers;

struct BulkCopy {
    char* target;
    const char* source;
    uint32_t bytes, mbarrier, order;
    Thread* issuer;
    Site site;
};
std::deque<BulkCopy> late_bulk;

void open_window() {
    const size_t reserve = 2 * size_t(kWindow) + (64 << 10);
    char* low = static_cast<char*>(
        mmap(nullptr, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0));
    if (low == MAP_FAILED) {
        perror("ggro emulated device: no address space below 2 GiB");
        abort();
    }
    // Guard, window, guard, then the range that only lends its addresses to static shared memory.
    window = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(low) + 4096 + 1023) & ~uintptr_t(1023));
    window = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(window) + 4095) & ~uintptr_t(4095));
    mprotect(window, kWindow, PROT_READ | PROT_WRITE);
    static_base = uint32_t(reinterpret_cast<uintptr_t>(window)) + kWindow + 4096;
}

void copy_bytes(char* target, const char* source, size_t bytes) {
    if (source) {
        memcpy(target, source, bytes);
    } else {
        memset(target, 0, bytes);
    }
}

Mbarrier& mbarrier_at(uint32_t address, Site site) {
    auto it = mbarriers.find(address);
    if (it == mbarriers.end())
        fatal(719, "mbarrier", site, "no mbarrier was initialised at shared address %#x", address);
    return it->second;
}

void mbarrier_check_phase(Mbarrier& m) {
    if (m.arrived != m.count || m.bytes != 0) return;
    m.arrived = 0;
    ++m.phase;
    m.completed = m.clock;
    std::vector<std::pair<Thread*, uint32_t>> still;
    for (auto& [thread, parity] : m.waiting) {
        if ((m.phase & 1) != parity) {
            make_ready(*thread);
        } else {
            still.push_back({thread, parity});
        }
    }
    m.waiting.swap(still);
}

void perform(const BulkCopy& c) {
    memcpy(c.target, c.source, c.bytes);
    checker_async_done(c.target, c.bytes, *c.issuer, c.order);
    Mbarrier& m = mbarriers.at(c.mbarrier);
    checker_note(m.clock, *c.issuer, c.order);
    m.bytes -= c.bytes;
    mbarrier_check_phase(m);
}

}  // namespace

const void* shared_window() { return window; }

uint32_t shared_place(uint32_t bytes) {
    if (!window) open_window();
    return uint32_t(reinterpret_cast<uintptr_t>(window)) + kWindow - (bytes + 127) / 128 * 128;
}

void shared_begin_block(uint32_t bytes) {
    if (!window) open_window();
    Library& library = *run.library;
    std::fill(library.shared_begin, library.shared_end, char(0xff));
    run.shared_end = window + kWindow;
    run.shared = run.shared_end - (bytes + 127) / 128 * 128;
    memset(run.shared, 0xff, size_t(run.shared_end - run.shared));
    if (run.checked) {
        std::fill(library.shared_state.begin(), library.shared_state.end(), uint8_t(kUninitialised));
        memset(dynamic_state.data(), kOutside, kWindow);
        memset(dynamic_state.data() + (run.shared - window), kUninitialised, bytes);
    }
    mbarriers.clear();
    late_bulk.clear();
}

bool shared_contains(const void* address) {
    const char* p = static_cast<const char*>(address);
    return size_t(p - window) < kWindow || (p >= run.library->shared_begin && p < run.library->shared_end);
}

uint8_t* shared_states(const void* address) {
    const char* p = static_cast<const char*>(address);
    if (size_t(p - window) < kWindow) return dynamic_state.data() + (p - window);
    if (p >= run.library->shared_begin && p < run.library->shared_end) {
        return run.library->shared_state.data() + (p - run.library->shared_begin);
    }
    return nullptr;
}

char* shared_pointer(uint32_t address, uint32_t bytes, Site site) {
    const uint32_t low = uint32_t(reinterpret_cast<uintptr_t>(window));
    if (address - low < kWindow) {
        char* p = window + (address - low);
        if (p >= run.shared && p + bytes <= run.shared + run.launch->shared_bytes) return p;
    } else if (address - static_base < uint32_t(run.library->shared_end - run.library->shared_begin)) {
        char* p = run.library->shared_begin + (address - static_base);
        if (p + bytes <= run.library->shared_end) return p;
    }
    fatal(700, "shared memory out of bounds", site,
          "%u bytes at shared address %#x; the block has %u dynamic bytes from %#x", bytes, address,
          run.launch->shared_bytes, uint32_t(reinterpret_cast<uintptr_t>(run.shared)));
}

bool shared_progress() {
    if (late_bulk.empty()) return false;
    const size_t i = config.schedule == Config::shuffle   ? random_below(late_bulk.size())
                     : config.schedule == Config::reverse ? late_bulk.size() - 1
                                                          : 0;
    const BulkCopy copy = late_bulk[i];
    late_bulk.erase(late_bulk.begin() + long(i));
    perform(copy);
    return true;
}

void shared_thread_exited(Thread& thread) {
    if (thread.copies.empty() || !run.checked) return;
    fault("asynchronous copy never waited for", thread.copies[0].site, "the thread exits with copies in flight");
}

}  // namespace emu

using namespace emu;

extern "C" {

unsigned char* emu_dynamic_shared() { return reinterpret_cast<unsigned char*>(run.shared); }

uint32_t emu_shared_address(const void* pointer, EMU_AT) {
    const char* p = static_cast<const char*>(pointer);
    // One past the end is a legal address to compute.
    if (p >= window && p <= window + kWindow) return uint32_t(reinterpret_cast<uintptr_t>(p));
    if (p >= run.library->shared_begin && p <= run.library->shared_end) {
        return static_base + uint32_t(p - run.library->shared_begin);
    }
    fatal(700, "not shared memory", {file, line}, "the shared address of %p was taken", pointer);
}

void emu_copy_async(uint32_t shared, const void* global, bool valid, EMU_AT) {
    const Site site{file, line};
    if (shared % 16)
        fatal(716, "misaligned access", site, "cp.async to shared address %#x, not a multiple of 16", shared);
    char* target = shared_pointer(shared, 16, site);
    if (valid) {
        if (reinterpret_cast<uintptr_t>(global) % 16)
            fatal(716, "misaligned access", site, "cp.async from %p, not a multiple of 16", global);
        check_access(global, 16, kRead, site);
    }
    checker_async_issue(target, 16, site);
    if (!config.late_copies) copy_bytes(target, valid ? static_cast<const char*>(global) : nullptr, 16);
    self->copies.push_back({target, static_cast<const char*>(global), valid, site});
}

void emu_copy_commit() { self->group_ends.push_back(self->copies.size()); }

void emu_copy_wait(int pending, EMU_AT) {
    (void)file, (void)line;
    std::vector<AsyncCopy>& copies = self->copies;
    std::vector<size_t>& ends = self->group_ends;
    if (ends.size() <= size_t(pending)) return;
    const size_t groups = ends.size() - size_t(pending), done = ends[groups - 1];
    for (size_t i = 0; i < done; ++i) {
        const AsyncCopy& copy = copies[i];
        if (config.late_copies) copy_bytes(copy.target, copy.valid ? copy.source : nullptr, 16);
        checker_async_done(copy.target, 16, *self, self->order);
    }
    copies.erase(copies.begin(), copies.begin() + long(done));
    ends.erase(ends.begin(), ends.begin() + long(groups));
    for (size_t& end : ends) end -= done;
}

void emu_mbarrier_init(uint32_t address, uint32_t count, EMU_AT) {
    const Site site{file, line};
    if (address % 8)
        fatal(716, "misaligned access", site, "mbarrier at shared address %#x, not a multiple of 8", address);
    shared_pointer(address, 8, site);
    if (count == 0) fatal(719, "mbarrier", site, "an expected count of 0");
    Mbarrier& m = mbarriers[address];
    if (!m.waiting.empty()) fatal(719, "mbarrier", site, "initialised again while threads wait on it");
    m = Mbarrier();
    m.count = count;
}

void emu_mbarrier_arrive(uint32_t address, uint32_t bytes, EMU_AT) {
    Mbarrier& m = mbarrier_at(address, {file, line});
    if (m.arrived == m.count)
        fatal(719, "mbarrier", {file, line}, "more arrivals than the expected %u in one phase", m.count);
    checker_arrive(m.clock);
    m.bytes += bytes;
    ++m.arrived;
    mbarrier_check_phase(m);
}

void emu_mbarrier_wait(uint32_t address, uint32_t parity, EMU_AT) {
    const Site site{file, line};
    Mbarrier& m = mbarrier_at(address, site);
    // The phase of parity p has completed when the current phase has the other parity.
    if ((m.phase & 1) == (parity & 1)) {
        m.waiting.push_back({self, parity & 1});
        wait_here("mbarrier", site);
    }
    checker_pass(m.completed);
}

void emu_bulk_copy(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier, EMU_AT) {
    const Site site{file, line};
    if (shared % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
        fatal(716, "misaligned access", site,
              "bulk copy of %u bytes from %p to shared address %#x: all must be multiples of 16", bytes, global,
              shared);
    }
    if (bytes == 0) return;
    mbarrier_at(mbarrier, site);
    char* target = shared_pointer(shared, bytes, site);
    check_access(global, bytes, kRead, site);
    checker_async_issue(target, bytes, site);
    const BulkCopy copy{target, static_cast<const char*>(global), bytes, mbarrier, self->order, self, site};
    if (config.late_copies) {
        late_bulk.push_back(copy);
    } else {
        perform(copy);
    }
}
}
