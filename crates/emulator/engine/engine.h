// What the parts of the engine share: threads, the running launch, memory, checks, faults, configuration.
//
// One kernel runs at a time, one block after another, one warp at a time, all on the host thread that holds the driver's
// lock. State is therefore global and unsynchronised below the driver calls.
#pragma once

#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace emu {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr uint32_t kAll = 0xffffffffu;

// A place in a kernel's source, as the line table of its PTX has it.
struct Site {
    const char* file = nullptr;
    int line = 0;
    bool same_place(const Site& other) const {
        return line == other.line && (file == other.file || strcmp(file, other.file) == 0);
    }
    uint64_t key() const { return reinterpret_cast<uint64_t>(file) * 31 + uint64_t(line); }
    std::string text() const;
};

namespace ptx {
struct Warp;
}

struct Thread {
    uint32_t at[3];
    uint32_t index, lane;
    const ptx::Warp* warp;
    // Race checking (checker.cc).
    uint32_t order, sync_order, sync_mask;
    uint32_t proxy_order;  // what the thread wrote before, the async proxy sees
    uint32_t init_order;   // the same of mbarriers that it initialised
    bool fenced;
    bool early;  // has not waited for the kernels before this one
    std::vector<const void*> observed;  // addresses of relaxed atomics since the last fence
};

struct Counters {
    uint64_t launches = 0, blocks = 0, threads = 0, checked_launches = 0;
    uint64_t bytes_read = 0, bytes_written = 0;                // global memory, every access
    uint64_t unique_bytes_read = 0, unique_bytes_written = 0;  // each byte once per launch
    uint64_t sectors_read = 0, sectors_written = 0;            // distinct 32-byte sectors per warp access
    uint64_t shared_wavefronts = 0, bank_conflicts = 0;        // conflicts = wavefronts beyond the ideal
    uint64_t matrix_flops = 0;                                 // of mma, two per product
    uint64_t instructions = 0;                                 // of PTX, once per thread
    uint64_t dependent_launches = 0;  // that may begin before the kernel before them has ended
    uint64_t early_bytes_read = 0;    // by threads that have not waited for that, every access
};

// Kernels in a row of which each but the first may begin before the one before it has ended: they are behind one another in a
// stream, with nothing between them.
struct Chain {
    // The checker's order at which it began, and of which of its eras that is; 0 where nobody observed it.
    uint32_t first = 0;
    uint64_t era = 0;
    // Pages as they were before the chain, of those that it has written. Only where dependent launches run early.
    std::unordered_map<uint64_t, std::unique_ptr<char[]>> pages;
};

struct Launch {
    std::string name;
    std::shared_ptr<Chain> chain;
    bool dependent = false;  // not the first of the chain
    uint32_t grid[3], block[3], shared_bytes;
    std::vector<uint64_t> storage;  // the parameters' bytes
    std::vector<size_t> offsets;
};

struct Config {
    enum Schedule { forward, reverse, shuffle } schedule = forward;
    uint64_t seed = 1;
    bool late_copies = true, lazy_streams = false, allow_exits = false, faults_fail = true;
    int watchdog_seconds = 60;
    int arch = 90;
    size_t memory = size_t(16) << 30;
    std::string ptx;           // a folder of *.ptx; empty: what modules contain
    bool observe = false;      // every access
    bool early_dependents = false;  // what comes before their wait sees memory as it was before the chain
    bool lanes_apart = false;  // lanes of a warp run by themselves until they must wait for one another
    int matrix_sums = 0;       // exact, or cut as a tensor core cuts groups of 8 or 16 products
    std::string report;
};
extern Config config;

// The kernel that runs now.
struct Running {
    const Launch* launch = nullptr;
    bool checked = false;  // every access is observed
    bool dependent = false;  // threads begin before the kernels before this one have ended
    bool stale = false;      // and see what was there before these
    bool keeps = false;      // pages are kept before they are written
    Counters* counters = nullptr;
    uint32_t block[3], block_index, threads = 0;
    jmp_buf* way_out = nullptr;  // where the kernel is left after a fatal fault
};
extern Running run;
extern Thread* self;  // in whose name accesses are checked and faults recorded
extern std::vector<Thread> threads;

// ---- shared.cc
constexpr size_t kSharedWindow = 256 << 10;
void shared_begin_block(uint32_t bytes);
// The 32-bit address that they get. `dynamic_at` of them are not dynamic, or all where the block has no dynamic memory.
uint32_t shared_place(uint32_t bytes, uint32_t align, uint32_t dynamic_at);
bool shared_contains(const void* address);
const char* shared_window();
uint8_t* shared_states(const void* address);  // null when not shared memory

// ---- memory.cc
enum ByteState : uint8_t { kOutside = 0, kUninitialised = 1, kInitialised = 2, kPending = 3 };
void* memory_allocate(size_t bytes);  // null when out of memory
bool memory_free(void* pointer);
bool memory_is_device(const void* pointer, size_t bytes);  // wholly inside one allocation
bool memory_is_pinned(const void* pointer, size_t bytes);
bool memory_extent(const void* pointer, char*& begin, char*& end);  // of the allocation, device or pinned, around it
void memory_pin(void* pointer, size_t bytes);
size_t memory_unpin(void* pointer);
size_t memory_in_use();
bool memory_in_arena(const void* pointer);
uint8_t* memory_states(const void* pointer);
void memory_set_state(const void* pointer, size_t bytes, ByteState state);
void memory_copy_state(const void* to, const void* from, size_t bytes);
std::string memory_describe(const void* pointer);
void memory_mark_all_initialised();
char* memory_base();
constexpr size_t kArenaBytes = size_t(64) << 30;

// ---- checker.cc: what observed accesses tell. Only where accesses are observed.
enum Access : unsigned { kRead = 0, kWrite = 1, kAtomic = 2, kUnaligned = 4, kReadOnly = 8 };
void check_access(const void* address, size_t bytes, unsigned access, Site site);
void checker_begin_launch();
void checker_begin_block();
void checker_block_barrier();
void checker_warp_sync(const ptx::Warp& warp, uint32_t mask);
void checker_async_issue(const char* target, size_t bytes, Site site);
// `generic`: written like the threads' own stores.
void checker_async_done(const char* target, size_t bytes, const Thread& owner, uint32_t order, bool generic);
// Shared memory, accessed by the async proxy: what threads wrote must have been fenced.
void checker_async_access(const char* address, size_t bytes, bool write, Site site);
void checker_proxy_fence();
// What a thread did at an order of its own: whether the running thread is ordered after it; and whether, as an mbarrier's
// initialisation, the async proxy sees it.
bool checker_knows(const Thread& thread, uint32_t order);
bool checker_proxy_knows(const Thread& thread, uint32_t order);
void checker_init_fence();
// Order between blocks: what a release publishes, an acquire of the same address learns.
enum Order : int { kRelaxed = 0, kAcquire = 1, kRelease = 2, kAcquireRelease = 3 };
void checker_acquire(const void* address);
void checker_release(const void* address);
void checker_order(const void* address, int order);  // of an atomic
// A fence makes the relaxed atomics around it publish (those after) and learn (those before).
void checker_fence();
struct Clock {
    uint32_t order[kWarp] = {};
};
void checker_arrive(Clock& clock);
void checker_arrive_together(Clock& clock, const ptx::Warp& warp, uint32_t lanes);
void checker_pass(const Clock& clock);
void checker_note(Clock& clock, const Thread& thread, uint32_t order);

// ---- chain.cc: dependent launches that run early
void chain_begin(Chain& chain);
void chain_keep(const void* address, size_t bytes);  // before it is written
// What a thread sees that has not waited: 16 bytes at most, in one page; and any number of bytes.
const void* chain_before(const void* address);
void chain_read(void* to, const void* from, size_t bytes);

// ---- traffic.cc: what accesses would cost. Only where accesses are observed.
void traffic_warp(const uint64_t* addresses, uint32_t lanes, size_t bytes, bool write, bool shared);
void traffic_matrix_rows(const uint32_t* addresses, int rows);
void traffic_bulk_read(uint64_t address, size_t bytes);

// ---- fault.cc
// Records a fault of the running thread. `fatal` ones end the kernel with the CUDA error and do not return.
void fault(const char* kind, Site site, const char* format, ...) __attribute__((format(printf, 3, 4)));
[[noreturn]] void fatal(int error, const char* kind, Site site, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
void fault_outside_kernel(const char* kind, const char* kernel, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
std::string thread_name(const Thread& thread);
int take_error();  // of the kernel that just ended
extern std::map<std::string, Counters> counters;
// How often the profiler was told to collect, and to stop.
extern uint64_t profiler_calls[2];

std::string report_json();
void reset_reports();

}  // namespace emu
