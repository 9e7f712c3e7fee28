// Runs a kernel: blocks one after another, the threads of a block as fibers until each has to wait.
//
// The ready list is a stack, so a warp runs as far as it can before the next one starts: good for the cache, and the
// opposite extremes `forward` and `reverse` differ most. `shuffle` picks at random instead.
#include "engine.h"

#include <algorithm>

namespace emu {

void fiber_switch(Thread& from, Thread& to);
void fiber_enter(Thread& to);
void fiber_release(int fiber);
[[noreturn]] void fiber_leave(Thread* next);

Running run;
Thread* self = nullptr;
std::vector<Thread> threads(kMaxThreads);
std::vector<Warp> warps(kWarp);
uint64_t engine_steps = 0;  // the watchdog's sign of life

namespace {

std::vector<Thread*> ready;
uint64_t idle_yields = 0;
constexpr uint64_t kMaxIdleYields = 1 << 20;

uint64_t random_state = 1;

Thread* pick() {
    ++engine_steps;
    if (ready.empty()) return nullptr;
    if (config.schedule == Config::shuffle) std::swap(ready[random_below(ready.size())], ready.back());
    Thread* next = ready.back();
    ready.pop_back();
    return next;
}

void release_barrier() {
    std::vector<Thread*> list;
    list.reserve(run.at_barrier);
    for (uint32_t i = 0; i < run.threads; ++i) {
        Thread& t = threads[i];
        if (t.state == State::waiting && t.waits && t.waits[0] == 'b') list.push_back(&t);
    }
    unsigned count = 0;
    for (Thread* t : list) {
        count += unsigned(t->predicate);
        ++t->barriers;
    }
    run.barrier_result = run.barrier_kind == EMU_BARRIER_COUNT ? count
                         : run.barrier_kind == EMU_BARRIER_AND ? count == list.size()
                                                               : count != 0;
    if (list.size() < run.threads && !config.allow_exits) {
        fault("divergent barrier", run.barrier_site, "%zu of %u threads exited without reaching it",
              run.threads - list.size(), run.threads);
    }
    run.at_barrier = 0;
    if (run.checked) {
        for (uint32_t w = 0; w * kWarp < run.threads; ++w) traffic_flush(warps[w]);
        checker_block_barrier();
    }
    make_ready_in_order(list);
}

void finish() {
    Thread& t = *self;
    t.state = State::done;
    --run.live;
    shared_thread_exited(t);
    t.warp->live &= ~(1u << t.lane);
    if (run.checked && !t.warp->live) traffic_flush(*t.warp);
    warp_lane_exited(*t.warp);
    if (run.live && run.at_barrier == run.live) release_barrier();
}

std::string deadlock_text() {
    std::map<std::string, std::pair<int, const Thread*>> sites;
    for (uint32_t i = 0; i < run.threads; ++i) {
        const Thread& t = threads[i];
        if (t.state != State::waiting) continue;
        auto& entry = sites[std::string(t.waits) + " at " + t.site.text()];
        if (!entry.first++) entry.second = &t;
    }
    std::string text;
    for (auto& [where, entry] : sites) {
        if (!text.empty()) text += "; ";
        text += std::to_string(entry.first) + " thread(s) wait for " + where + ", the first is " +
                thread_name(*entry.second);
    }
    return text;
}

// A fault that belongs to a waiting thread is reported in its name.
void break_deadlock() {
    for (uint32_t i = 0; i < run.threads; ++i) {
        if (threads[i].state != State::waiting) continue;
        self = &threads[i];
        fault("deadlock", self->site, "%s", deadlock_text().c_str());
        break;
    }
    set_error(719);
}

bool run_block() {
    for (Warp& w : warps) {
        w.live = 0;
        w.groups.clear();
    }
    const uint32_t *dim = run.launch->block, n = run.threads;
    for (uint32_t i = 0; i < n; ++i) {
        Thread& t = threads[i];
        t.at[0] = i % dim[0];
        t.at[1] = i / dim[0] % dim[1];
        t.at[2] = i / dim[0] / dim[1];
        t.index = i;
        t.lane = i % kWarp;
        t.warp = &warps[i / kWarp];
        t.warp->index = i / kWarp;
        t.warp->live |= 1u << t.lane;
        t.state = State::unstarted;
        t.request = nullptr;
        t.waits = nullptr;
        t.barriers = 0;
        t.fenced = false;
        t.observed.clear();
        t.copies.clear();
        t.group_ends.clear();
    }
    run.live = n;
    run.at_barrier = 0;
    idle_yields = 0;
    shared_begin_block(run.launch->shared_bytes);
    if (run.checked) checker_begin_block();
    ready.clear();
    for (uint32_t i = 0; i < n; ++i) ready.push_back(&threads[config.schedule == Config::reverse ? i : n - 1 - i]);
    while (run.live) {
        Thread* next = pick();
        if (!next) {
            if (shared_progress()) continue;
            break_deadlock();
            return false;
        }
        if (next->state == State::unstarted) fiber_prepare(*next);
        next->state = State::ready;
        self = next;
        run.active = true;
        fiber_enter(*next);
        run.active = false;
        if (kernel_aborted()) return false;
    }
    return true;
}

}  // namespace

uint64_t random_below(uint64_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

// A fiber runs threads one after another: one that never waits costs no switch.
void fiber_main() {
    for (;;) {
        run.kernel->thunk(run.parameters.data());
        const int fiber = self->fiber;
        finish();
        Thread* next = pick();
        if (next && next->state == State::unstarted) {
            next->fiber = fiber;
            next->state = State::ready;
            self = next;
            continue;
        }
        fiber_release(fiber);
        if (next) self = next;
        fiber_leave(next);
    }
}

void wait_here(const char* what, Site site) {
    Thread& me = *self;
    me.state = State::waiting;
    me.waits = what;
    me.site = site;
    idle_yields = 0;
    Thread* next = pick();
    if (next == &me) {
        me.state = State::ready;
    } else if (next) {
        if (next->state == State::unstarted) {
            fiber_prepare(*next);
            next->state = State::ready;
        }
        self = next;
        fiber_switch(me, *next);
    } else {
        fiber_switch_to_main(me);
    }
    me.waits = nullptr;
}

void make_ready(Thread& thread) {
    thread.state = State::ready;
    ready.push_back(&thread);
}

// The list is in ascending thread order; the top of the stack runs first.
void make_ready_in_order(const std::vector<Thread*>& list) {
    if (config.schedule == Config::reverse) {
        for (Thread* t : list) make_ready(*t);
    } else {
        for (size_t i = list.size(); i--;) make_ready(*list[i]);
    }
}

void yield_here(Site site) {
    if (++idle_yields > kMaxIdleYields) {
        fatal(719, "endless wait", site,
              "polls for something no thread of this block does; blocks run one after another");
    }
    if (idle_yields % 4096 == 0) shared_progress();
    if (ready.empty()) {
        shared_progress();
        ++engine_steps;
        return;
    }
    self->state = State::ready;
    ready.insert(ready.begin(), self);
    yield_to_ready();
}

void yield_to_ready() {
    Thread& me = *self;
    Thread* next = pick();
    if (next == &me) return;
    if (next->state == State::unstarted) {
        fiber_prepare(*next);
        next->state = State::ready;
    }
    self = next;
    fiber_switch(me, *next);
}

void shuffle_order(std::vector<uint32_t>& order, uint32_t n) {
    order.resize(n);
    for (uint32_t i = 0; i < n; ++i) order[i] = i;
    for (uint64_t i = n; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
}

Counters& count_launch(const Launch& launch, bool checked) {
    const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    Counters& c = counters[launch.name];
    ++c.launches;
    c.checked_launches += checked;
    c.blocks += blocks;
    c.threads += blocks * run.threads;
    random_state = config.seed * 0x9e3779b97f4a7c15ull + 0x1234567;
    return c;
}

int run_kernel(const Launch& launch, Library& library) {
    run = Running();
    run.launch = &launch;
    run.library = &library;
    run.kernel = library.kernels.at(launch.name);
    run.checked = library.checked;
    run.threads = launch.block[0] * launch.block[1] * launch.block[2];
    for (size_t offset : launch.offsets) {
        run.parameters.push_back(reinterpret_cast<char*>(const_cast<uint64_t*>(launch.storage.data())) + offset);
    }
    const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    run.counters = &count_launch(launch, run.checked);

    std::vector<uint32_t> shuffled;
    if (config.schedule == Config::shuffle && blocks <= (1u << 24)) shuffle_order(shuffled, uint32_t(blocks));
    if (run.checked) checker_begin_launch();
    guard_begin();
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t b = !shuffled.empty() ? shuffled[i] : config.schedule == Config::reverse ? blocks - 1 - i : i;
        run.block_index = uint32_t(b);
        run.block[0] = uint32_t(b % launch.grid[0]);
        run.block[1] = uint32_t(b / launch.grid[0] % launch.grid[1]);
        run.block[2] = uint32_t(b / launch.grid[0] / launch.grid[1]);
        if (!run_block()) break;
    }
    guard_end();
    run.active = false;
    run.launch = nullptr;
    self = nullptr;
    fibers_release_all();
    return take_error();
}

}  // namespace emu

using namespace emu;

extern "C" {

unsigned emu_thread_index(int axis) { return self->at[axis]; }
unsigned emu_block_index(int axis) { return run.block[axis]; }
unsigned emu_block_size(int axis) { return run.launch->block[axis]; }
unsigned emu_grid_size(int axis) { return run.launch->grid[axis]; }

unsigned emu_barrier(int kind, int predicate, EMU_AT) {
    const Site site{file, line};
    if (run.at_barrier == 0) {
        run.barrier_site = site;
        run.barrier_kind = kind;
    } else if (run.barrier_kind != kind || !run.barrier_site.same_place(site)) {
        fault("divergent barrier", site, "other threads of the block wait at %s", run.barrier_site.text().c_str());
    }
    self->predicate = predicate;
    self->state = State::waiting;
    self->waits = "block barrier";
    if (++run.at_barrier == run.live) release_barrier();
    if (self->state == State::waiting) {
        wait_here("block barrier", site);
    } else {
        yield_to_ready();  // the last to arrive is on the ready list like the others
        self->waits = nullptr;
    }
    return run.barrier_result;
}

void emu_yield(EMU_AT) { yield_here({file, line}); }

void emu_trap(EMU_AT) { fatal(719, "trap", {file, line}, "the kernel executed a trap"); }
}
