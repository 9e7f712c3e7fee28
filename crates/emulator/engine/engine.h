// What the parts of the engine share: threads, warps, the running block, faults, configuration.
//
// One kernel runs at a time, one block after another, one thread at a time, all on the host thread that holds the
// driver's lock. State is therefore global and unsynchronised below the driver calls.
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

#include "emu_abi.h"

namespace emu {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr uint32_t kAll = 0xffffffffu;

// A place in a kernel's source: either named at compile time, or a return address that is looked up when reported.
struct Site {
    const char* file = nullptr;
    int line = 0;
    const void* pc = nullptr;
    bool same_place(const Site& other) const {
        return line == other.line && (file == other.file || strcmp(file, other.file) == 0);
    }
    uint64_t key() const {
        return file ? reinterpret_cast<uint64_t>(file) * 31 + uint64_t(line) : reinterpret_cast<uint64_t>(pc);
    }
    std::string text() const;
};

enum class State : uint8_t { unstarted, ready, waiting, done };

struct Thread;

// One thread's side of a warp collective: what it brings, and where the last lane leaves its result.
struct Request {
    enum Kind : uint8_t { sync, shuffle, ballot, ldmatrix, mma } kind;
    uint32_t mask;
    Site site;
    uint64_t value = 0;  // shuffle, ballot: in; both: out
    int mode = 0, argument = 0, width = 0;
    uint32_t* registers = nullptr;  // ldmatrix
    uint32_t address = 0;
    float* d = nullptr;  // mma
    const uint32_t *a = nullptr, *b = nullptr;
    int mi = 0, ni = 0;
};

struct AsyncCopy {
    char* target;
    const char* source;
    bool valid;
    Site site;
};

struct Warp {
    struct Group {
        uint32_t mask, arrived;
    };
    uint32_t live = 0;  // lanes that have not exited
    uint32_t index = 0;
    std::vector<Group> groups;  // incomplete collectives, one per mask
};

struct Thread {
    uint32_t at[3];
    uint32_t index, lane;
    Warp* warp;
    State state;
    void* sp;
    int fiber;
    Request* request;
    Site site;          // where it waits
    const char* waits;  // for what, for reports
    int predicate;
    uint32_t barriers;  // block barriers passed
    // Race checking (checker.cc).
    uint32_t order, sync_order, sync_mask;
    bool fenced;
    std::vector<const void*> observed;  // addresses of relaxed atomics since the last fence
    std::vector<AsyncCopy> copies;      // cp.async, not yet waited for
    std::vector<size_t> group_ends;     // of the committed groups among them
};

struct Library {
    std::string path;
    std::map<std::string, const EmuKernel*> kernels;
    bool checked = false;
    char *shared_begin = nullptr, *shared_end = nullptr;
    std::vector<uint8_t> shared_state;
};

struct Counters {
    uint64_t launches = 0, blocks = 0, threads = 0, checked_launches = 0;
    uint64_t bytes_read = 0, bytes_written = 0;                // global memory, every access
    uint64_t unique_bytes_read = 0, unique_bytes_written = 0;  // each byte once per launch
    uint64_t sectors_read = 0, sectors_written = 0;            // distinct 32-byte sectors per warp access
    uint64_t shared_wavefronts = 0, bank_conflicts = 0;        // conflicts = wavefronts beyond the ideal
    uint64_t matrix_flops = 0;                                 // of mma, two per product
    uint64_t instructions = 0;                                 // of PTX, once per thread
};

struct Launch {
    std::string name;
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
    // Of PTX only.
    std::string ptx;            // empty: not run; "image": what modules contain; else a folder of *.ptx
    bool observe = false;       // every access, as the checked build does
    bool lanes_apart = false;   // lanes of a warp run by themselves until they must wait for one another
    int matrix_sums = 0;        // exact, or cut as a tensor core cuts groups of 8 or 16 products
    std::string report;
};
extern Config config;

// The kernel that runs now.
struct Running {
    jmp_buf* interpreter = nullptr;  // where PTX is left after a fatal fault; null when fibers run
    bool active = false;  // a fiber is executing
    bool checked = false;
    const Launch* launch = nullptr;
    const EmuKernel* kernel = nullptr;
    Library* library = nullptr;
    Counters* counters = nullptr;
    uint32_t block[3], block_index;
    uint32_t threads = 0, live = 0, at_barrier = 0;
    int barrier_kind = 0;
    unsigned barrier_result = 0;
    Site barrier_site;
    char *shared = nullptr, *shared_end = nullptr;  // dynamic
    std::vector<void*> parameters;
};
extern Running run;
extern Thread* self;
extern std::vector<Thread> threads;
extern std::vector<Warp> warps;

// ---- fiber.cc
void fiber_prepare(Thread& thread);  // gives it a stack
void fiber_switch_to_main(Thread& from);
bool fiber_stack_contains(const void* address);  // of the current thread
void fibers_release_all();
int fiber_guard_hit(const void* address);  // which fiber's guard page, or -1
void* main_stack_pointer();
[[noreturn]] void fiber_abandon();  // from a fiber: back to the block runner for good

// ---- schedule.cc
int run_kernel(const Launch& launch, Library& library);  // 0 or a CUresult
void wait_here(const char* what, Site site);             // until somebody makes it ready
void make_ready(Thread& thread);
void make_ready_in_order(const std::vector<Thread*>& list);
void yield_here(Site site);  // polling: lets the others go first
void yield_to_ready();       // the caller is on the ready list already
uint64_t random_below(uint64_t n);
void shuffle_order(std::vector<uint32_t>& order, uint32_t n);    // 0 to n - 1 at random
Counters& count_launch(const Launch& launch, bool checked);      // and starts the random numbers anew

// ---- warp.cc
void warp_lane_exited(Warp& warp);

// ---- shared.cc
void shared_begin_block(uint32_t dynamic_bytes);
uint32_t shared_place(uint32_t dynamic_bytes);  // the 32-bit address that they get
char* shared_pointer(uint32_t address, uint32_t bytes, Site site);
bool shared_contains(const void* address);
const void* shared_window();
uint8_t* shared_states(const void* address);  // null when not shared memory
void shared_thread_exited(Thread& thread);
bool shared_progress();  // does one late copy; false when there is none

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

// ---- checker.cc
enum Access : unsigned { kRead = 0, kWrite = 1, kAtomic = 2, kNoTraffic = 4, kUnaligned = 8, kReadOnly = 16 };
void check_access(const void* address, size_t bytes, unsigned access, Site site);
void checker_begin_launch();
void checker_begin_block();
void checker_block_barrier();
void checker_warp_sync(Warp& warp, uint32_t mask);
void checker_async_issue(char* target, size_t bytes, Site site);
void checker_async_done(char* target, size_t bytes, const Thread& owner, uint32_t order);
void checker_release(const void* address);
void checker_acquire(const void* address);
struct Clock {
    uint32_t order[kWarp] = {};
};
void checker_arrive(Clock& clock);
void checker_pass(const Clock& clock);
void checker_note(Clock& clock, const Thread& thread, uint32_t order);
uint32_t checker_next_order();

// ---- traffic.cc
void traffic_access(const void* address, size_t bytes, bool write, bool shared, Site site);
// One access of a warp whose lanes are known to be at it together.
void traffic_warp(const uint64_t* addresses, uint32_t lanes, size_t bytes, bool write, bool shared);
void traffic_matrix_rows(const uint32_t* addresses, int rows);
void traffic_flush(Warp& warp);
void traffic_forget();

// ---- fault.cc
// Records a fault of the running thread. `fatal` ones end the kernel with the CUDA error and do not return.
void fault(const char* kind, Site site, const char* format, ...) __attribute__((format(printf, 3, 4)));
[[noreturn]] void fatal(int error, const char* kind, Site site, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
void fault_outside_kernel(const char* kind, const char* kernel, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
std::string thread_name(const Thread& thread);
void guard_begin();  // signal handlers and the watchdog, around a kernel
void guard_end();
void set_error(int error);
bool kernel_aborted();
int take_error();  // of the kernel that just ended
extern std::map<std::string, Counters> counters;
// How often the profiler was told to collect, and to stop.
extern uint64_t profiler_calls[2];

std::string report_json();
void reset_reports();

}  // namespace emu
