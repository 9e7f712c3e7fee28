// Runs a kernel's PTX: blocks one after another, each warp until it must wait for others.
//
// Branches: see execute.h. Barriers and collectives may need lanes that are elsewhere: those that are there are parked
// until the others come. When no lane of a warp can go on, either an exit has made a parked group complete, or the
// lanes wait for one another and that is a fault. A fatal fault leaves through longjmp: locals of handlers must not own
// memory.
#include "run.h"

#include <algorithm>
#include <chrono>

#include "decode.h"

namespace emu {

Running run;
Thread* self = nullptr;
std::vector<Thread> threads(kMaxThreads);

namespace ptx {

Block block;

namespace {

using Time = std::chrono::steady_clock;

// A warp's turn: long enough to be cheap, short enough that a warp that polls does not keep the others from running.
constexpr uint64_t kTurn = 1 << 20;

std::vector<char> register_memory;
Time::time_point last_progress;
bool gave_way;         // the warp in turn polls
uint64_t idle_polls;   // since something happened that others may wait for
constexpr uint64_t kMostPolls = 1 << 19;
uint64_t executed;    // instructions, once per thread
jmp_buf way_out;
uint64_t random_state = 1;

// 0 to n - 1, at random.
void shuffle_order(std::vector<uint32_t>& order, uint32_t n) {
    order.resize(n);
    for (uint32_t i = 0; i < n; ++i) order[i] = i;
    for (uint64_t i = n; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
}

// Ends the warp's turn at this instruction, which it executes again.
Flow ask_again(Warp& w) {
    each_lane(w.mask, [&](uint32_t i) { w.at[i] = w.now; });
    w.polled |= w.mask;
    gave_way = true;
    return Flow::stop;
}

// ---- control

Flow branch(Warp& w, const Instruction& in, uint32_t mask) {
    if (mask == w.mask) {
        w.now = in.target;
        return Flow::jump;
    }
    each_lane(w.mask, [&](uint32_t i) { w.at[i] = has(mask, i) ? in.target : w.now + 1; });
    return Flow::stop;
}

// The lanes whose guard is false go on behind the instruction.
void pass_by(Warp& w, uint32_t mask) {
    each_lane(w.mask & ~mask, [&](uint32_t i) { w.at[i] = w.now + 1; });
}

Flow leave(Warp& w, const Instruction&, uint32_t mask) {
    pass_by(w, mask);
    w.live &= ~mask;
    for (const Copies& c : w.copies) {
        if (!run.checked || !(mask & c.lanes)) continue;
        select(w, uint32_t(__builtin_ctz(mask & c.lanes)));
        fault("asynchronous copy never waited for", c.site, "the thread exits with copies in flight");
        break;
    }
    if (!w.live && !w.products.empty()) {
        select(w, 0);
        fault("product never waited for", w.products[0].in->site(), "the warp exits with products in flight");
    }
    return Flow::stop;
}

Flow trap(Warp& w, const Instruction& in, uint32_t mask) {
    select(w, uint32_t(__builtin_ctz(mask)));
    fatal(719, "trap", in.site(), "the kernel executed a trap");
}

void arrive(Warp& w, const Instruction& in, uint32_t mask) {
    select(w, uint32_t(__builtin_ctz(mask)));
    const bool first =
        std::all_of(block.warps.begin(), block.warps.end(), [](const Warp& other) { return !other.arrived; });
    if (first) {
        block.barrier_site = in.site();
    } else if (!block.barrier_site.same_place(in.site())) {
        fault("divergent barrier", in.site(), "other threads of the block wait at %s",
              block.barrier_site.text().c_str());
    }
    w.arrived |= mask;
}

// bar.sync is .aligned: all threads of a warp that are still there execute it together.
Flow block_barrier(Warp& w, const Instruction& in, uint32_t mask) {
    mask = gather(w, mask, kAll);
    if (!mask) return Flow::stop;
    each_lane(w.mask, [&](uint32_t i) { w.at[i] = w.now + 1; });
    arrive(w, in, mask);
    return Flow::stop;
}

// Barriers with a number of threads, which are counted by whole warps. Some wait, some only arrive.
Flow named_barrier(Warp& w, const Instruction& in, uint32_t mask, bool waits) {
    mask = gather(w, mask, kAll);
    if (!mask) return Flow::stop;
    const uint32_t lane = uint32_t(__builtin_ctz(mask)), id = w.lanes<uint32_t>(in.slot[0])[lane],
                   threads = w.lanes<uint32_t>(in.slot[1])[lane];
    select(w, lane);
    if (id >= kNamedBarriers || threads % kWarp || !threads)
        fatal(719, "named barrier", in.site(), "barrier %u for %u threads", id, threads);
    NamedBarrier& barrier = block.named[id];
    if (barrier.arrived && barrier.threads != threads)
        fatal(719, "named barrier", in.site(), "barrier %u for %u threads, others came to it for %u", id, threads,
              barrier.threads);
    barrier.threads = threads;
    barrier.arrived += kWarp;
    if (run.checked) checker_arrive_together(barrier.clock, w, mask);
    each_lane(w.mask, [&](uint32_t i) { w.at[i] = w.now + 1; });
    if (waits) {
        w.named = mask;
        w.named_barrier = id;
    }
    if (barrier.arrived < threads) return Flow::stop;
    for (Warp& other : block.warps) {
        if (!other.named || other.named_barrier != id) continue;
        select(other, uint32_t(__builtin_ctz(other.named)));
        if (run.checked) checker_pass(barrier.clock);
        other.named = 0;
    }
    barrier.arrived = 0;
    note_progress();
    return Flow::stop;
}
Flow wait_at_named(Warp& w, const Instruction& in, uint32_t mask) { return named_barrier(w, in, mask, true); }
Flow arrive_at_named(Warp& w, const Instruction& in, uint32_t mask) { return named_barrier(w, in, mask, false); }

// bar.red: the result is written when the barrier is complete.
enum class Reduction { conjunction, disjunction, count };

template <Reduction R>
Flow block_reduction(Warp& w, const Instruction& in, uint32_t mask) {
    mask = gather(w, mask, kAll);
    if (!mask) return Flow::stop;
    const uint32_t given = w.predicate(in.slot[2]);
    w.predicates = (w.predicates & ~mask) | ((in.flags & 8 ? ~given : given) & mask);
    each_lane(w.mask, [&](uint32_t i) { w.at[i] = w.now + 1; });
    arrive(w, in, mask);
    return Flow::stop;
}

void write_reduction(Warp& w, const Instruction& in, uint32_t mask, uint32_t yes, uint32_t all) {
    const bool result = in.run == block_reduction<Reduction::conjunction> ? yes == all : yes != 0;
    if (in.run == block_reduction<Reduction::count>) {
        each_lane(mask, [&](uint32_t i) { w.lanes<uint32_t>(in.slot[0])[i] = yes; });
    } else if (in.run != block_barrier) {
        uint32_t& p = w.predicate(in.slot[0]);
        p = result ? p | mask : p & ~mask;
    }
}

void write_reductions() {
    uint32_t yes = 0, all = 0;
    for (const Warp& w : block.warps) {
        yes += uint32_t(__builtin_popcount(w.predicates & w.arrived));
        all += uint32_t(__builtin_popcount(w.arrived));
    }
    for (Warp& w : block.warps) {
        each_lane(w.arrived,
                  [&](uint32_t i) { write_reduction(w, block.code->instructions[w.at[i] - 1], 1u << i, yes, all); });
    }
}

Flow fence(Warp& w, const Instruction&, uint32_t mask) {
    if (!run.checked) return Flow::next;
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        checker_fence();
    });
    return Flow::next;
}

Flow proxy_fence(Warp& w, const Instruction&, uint32_t mask) {
    if (!run.checked) return Flow::next;
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        checker_proxy_fence();
    });
    return Flow::next;
}

Flow init_fence(Warp& w, const Instruction&, uint32_t mask) {
    if (!run.checked) return Flow::next;
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        checker_init_fence();
    });
    return Flow::next;
}

// setmaxnreg. The registers of a block's warps are one pool: `dec` gives to it, `inc` waits until it has enough.
Flow set_registers(Warp& w, const Instruction& in, uint32_t mask, bool more) {
    mask = gather(w, mask, kAll);
    if (!mask) return Flow::stop;
    select(w, uint32_t(__builtin_ctz(mask)));
    const uint32_t count = uint32_t(in.immediate), group = w.index / kGroupWarps;
    if (in.immediate % 8 || in.immediate < 24 || in.immediate > 256)
        fatal(719, "undefined registers", in.site(), "%ld registers: 24 to 256, by 8", long(in.immediate));
    if (w.register_count && (more ? count < w.register_count : count > w.register_count))
        fatal(719, "undefined registers", in.site(), "the warp has %u registers, it cannot %s %u", w.register_count,
              more ? "ask for" : "keep", count);
    if ((group + 1) * kGroupWarps > block.warps.size())
        fatal(719, "divergent warpgroup", in.site(), "a warpgroup has four warps, %zu are there",
              block.warps.size() - group * kGroupWarps);
    const int64_t taken = w.register_count ? (int64_t(count) - int64_t(w.register_count)) * kWarp : 0;
    if (taken > block.free_registers) return ask_again(w);
    if (block.register_changes.size() <= group) block.register_changes.resize(group + 1);
    std::vector<const Instruction*>& list = block.register_changes[group];
    if (list.size() == w.register_changes) list.push_back(&in);
    const Instruction* first = list[w.register_changes++];
    if (first != &in)
        fault("divergent warpgroup", in.site(), "another warp of the group sets its registers at %s in its place",
              first->site().text().c_str());
    if (taken) note_progress();
    block.free_registers -= taken;
    if (block.kernel->registers) w.register_count = count;
    return Flow::next;
}
Flow get_registers(Warp& w, const Instruction& in, uint32_t mask) { return set_registers(w, in, mask, true); }
Flow give_registers(Warp& w, const Instruction& in, uint32_t mask) { return set_registers(w, in, mask, false); }

// From here on a thread sees what the kernels before this one have done.
Flow wait_for_predecessors(Warp& w, const Instruction&, uint32_t mask) {
    block.waited = true;
    each_lane(mask, [&](uint32_t i) { threads[w.index * kWarp + i].early = false; });
    return Flow::next;
}

Flow sleep(Warp& w, const Instruction&, uint32_t) { return give_way(w); }
Flow nothing(Warp&, const Instruction&, uint32_t) { return Flow::next; }

// ---- lanes that wait for one another

const Instruction& instruction_of(const Warp& w, uint32_t lane) { return block.code->instructions[w.at[lane]]; }
bool waits_at_barrier(const Warp& w, uint32_t lane) {
    const Handler handler = instruction_of(w, lane).run;
    return handler == block_barrier || handler == block_reduction<Reduction::conjunction> ||
           handler == block_reduction<Reduction::disjunction> || handler == block_reduction<Reduction::count>;
}

// The lanes parked with this one.
uint32_t parked_with(const Warp& w, uint32_t lane) {
    uint32_t group = 0;
    each_lane(w.parked & w.live, [&](uint32_t i) {
        if (w.at[i] == w.at[lane] && w.wanted[i] == w.wanted[lane]) group |= 1u << i;
    });
    return group;
}

// Calls of __syncwarp with the same mask in different branches do meet.
bool meet_at_warp_barriers(Warp& w) {
    const Handler handler = table_entry("bar.warp.sync");
    bool any = false;
    each_lane(w.parked & w.live, [&](uint32_t lane) {
        if (!has(w.parked, lane) || instruction_of(w, lane).run != handler) return;
        uint32_t group = 0;
        each_lane(w.parked & w.live, [&](uint32_t i) {
            if (instruction_of(w, i).run == handler && w.wanted[i] == w.wanted[lane]) group |= 1u << i;
        });
        if (w.wanted[lane] & w.live & ~group) return;
        each_lane(group, [&](uint32_t i) { ++w.at[i]; });
        w.parked &= ~group;
        if (run.checked) checker_warp_sync(w, group);
        any = true;
    });
    return any;
}

using Places = std::map<std::string, std::pair<int, const Thread*>>;

void add_places(const Warp& w, Places& places) {
    each_lane((w.parked | waiting(w)) & w.live, [&](uint32_t i) {
        const uint32_t at = has(waiting(w), i) ? w.at[i] - 1 : w.at[i];
        auto& place = places[block.code->texts[at] + " at " + block.code->instructions[at].site().text()];
        if (!place.first++) place.second = &threads[w.index * kWarp + i];
    });
}

std::string text_of(const Places& places) {
    std::string text;
    for (const auto& [where, place] : places) {
        if (!text.empty()) text += "; ";
        text += std::to_string(place.first) + " thread(s) wait for " + where + ", the first is " +
                thread_name(*place.second);
    }
    return text;
}

std::string waiting_text(const Warp& w) {
    Places places;
    add_places(w, places);
    return text_of(places);
}

// No lane of the warp can go on, and some wait for others of the warp. Lets go those that wait for nobody any more.
void release_parked(Warp& w) {
    bool any = false;
    each_lane(w.parked & w.live, [&](uint32_t lane) {
        const uint32_t group = parked_with(w, lane);
        if (!has(w.parked, lane) || (w.wanted[lane] & w.live & ~group)) return;
        w.parked &= ~group;  // they execute their instruction again, and find everybody
        any = true;
    });
    if (any || meet_at_warp_barriers(w)) return;
    const uint32_t waiting = w.parked & w.live, lane = uint32_t(__builtin_ctz(waiting));
    bool barriers = true;
    each_lane(waiting, [&](uint32_t i) { barriers &= waits_at_barrier(w, i); });
    select(w, lane);
    if (!barriers || w.arrived) {
        // A fault's text is copied; the string is not destroyed by longjmp, so it lives in static memory.
        static std::string text;
        text = waiting_text(w);
        fatal(719, "deadlock", instruction_of(w, lane).site(), "%s", text.c_str());
    }
    // Barriers in different places: each lane counts where it is, as a barrier that is not aligned would have it.
    fault("divergent barrier", instruction_of(w, lane).site(), "lanes of a warp are at different barriers: %s",
          waiting_text(w).c_str());
    each_lane(waiting, [&](uint32_t i) {
        arrive(w, instruction_of(w, i), 1u << i);
        ++w.at[i];
    });
    w.parked &= ~waiting;
}

// ---- a warp's turn

// Chooses the lanes that execute together; false when none can.
bool choose_group(Warp& w) {
    for (;;) {
        uint32_t able = w.live & ~w.parked & ~waiting(w);
        if (able) {
            // Lanes that poll let the others of their warp go first, too.
            w.polled &= able;
            if (w.polled == able) w.polled = 0;
            able &= ~w.polled;
            if (config.lanes_apart) {
                uint32_t lane = config.schedule == Config::reverse ? 31 - uint32_t(__builtin_clz(able))
                                                                   : uint32_t(__builtin_ctz(able));
                if (config.schedule == Config::shuffle) {
                    uint32_t rest = able;
                    for (uint64_t skip = random_below(uint64_t(__builtin_popcount(able))); skip--;) rest &= rest - 1;
                    lane = uint32_t(__builtin_ctz(rest));
                }
                w.mask = 1u << lane;
                w.now = w.at[lane];
                w.limit = ~0u;
                return true;
            }
            w.now = w.limit = ~0u;
            each_lane(able, [&](uint32_t i) { w.now = std::min(w.now, w.at[i]); });
            w.mask = 0;
            each_lane(able, [&](uint32_t i) {
                if (w.at[i] == w.now) {
                    w.mask |= 1u << i;
                } else {
                    w.limit = std::min(w.limit, w.at[i]);
                }
            });
            return true;
        }
        if (!(w.parked & w.live)) return false;
        release_parked(w);
    }
}

void take_turn(Warp& w, uint64_t turn) {
    const Instruction* code = block.code->instructions.data();
    uint64_t steps = 0;
    gave_way = false;
    while (steps < turn && !gave_way && choose_group(w)) {
        for (;;) {
            const Instruction& in = code[w.now];
            uint32_t mask = w.mask;
            if (in.guarded != Instruction::always) {
                const uint32_t p = w.predicate(in.guard);
                mask &= in.guarded == Instruction::when ? p : ~p;
            }
            ++steps;
            executed += uint64_t(__builtin_popcount(w.mask));
            if (mask) {
                const Flow flow = in.run(w, in, mask);
                if (flow == Flow::stop) break;
                if (flow == Flow::next) ++w.now;
            } else {
                ++w.now;
            }
            if (w.now >= w.limit || steps >= turn) {
                each_lane(w.mask, [&](uint32_t i) { w.at[i] = w.now; });
                break;
            }
        }
    }
}

// ---- a block

bool is_able(const Warp& w) { return (w.live & ~waiting(w)) != 0; }

void release_barrier() {
    uint32_t exited = 0;
    for (const Warp& w : block.warps) exited += uint32_t(__builtin_popcount(~w.live));
    exited -= uint32_t(block.warps.size()) * kWarp - run.threads;
    if (exited && !config.allow_exits) {
        for (const Warp& w : block.warps) {
            if (!w.arrived) continue;
            select(w, uint32_t(__builtin_ctz(w.arrived)));
            fault("divergent barrier", block.barrier_site, "%u of %u threads exited without reaching it", exited,
                  run.threads);
            break;
        }
    }
    write_reductions();
    for (Warp& w : block.warps) w.arrived = 0;
    if (run.checked) checker_block_barrier();
}

void begin_block() {
    shared_begin_block(block.shared_bytes);
    for (Warp& w : block.warps) {
        const uint32_t threads_here = std::min(uint32_t(kWarp), run.threads - w.index * kWarp);
        w.live = threads_here == kWarp ? kAll : (1u << threads_here) - 1;
        w.parked = w.arrived = w.named = w.polled = 0;
        std::fill(w.at, w.at + kWarp, 0);
        std::fill(w.groups, w.groups + kWarp, 0);
        w.copies.clear();
        w.products.clear();
        w.product_groups = w.products_issued = 0;
        w.products_fenced = false;
        w.register_count = block.kernel->registers;
        w.register_changes = 0;
        for (const SpecialRegister& s : block.code->specials) {
            if (s.what == Special::ctaid) std::fill_n(w.lanes<uint32_t>(s.slot), kWarp, run.block[s.axis]);
        }
    }
    block.products.clear();
    block.register_changes.clear();
    block.free_registers = 0;
    std::fill(block.named, block.named + kNamedBarriers, NamedBarrier());
    block.waited = false;
    for (uint32_t i = 0; i < run.threads; ++i) threads[i].early = run.dependent;
    begin_block_copies();
    if (run.checked) checker_begin_block();
}

// Numbers in ascending order: `4-7, 9`.
std::string ranges(const std::vector<uint32_t>& numbers) {
    std::string text;
    for (size_t i = 0; i < numbers.size();) {
        size_t end = i + 1;
        while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
        text += (text.empty() ? "" : ", ") + std::to_string(numbers[i]);
        if (end - i > 1) text += "-" + std::to_string(numbers[end - 1]);
        i = end;
    }
    return text;
}

// Where the block's warps are, by place: few words for many warps.
std::string places_of_warps() {
    std::map<std::string, std::vector<uint32_t>> warps;
    for (const Warp& w : block.warps) {
        each_lane(w.live, [&](uint32_t lane) {
            const bool waits = has(waiting(w), lane);
            const Instruction& in = block.code->instructions[w.at[lane] - (waits ? 1 : 0)];
            std::vector<uint32_t>& here = warps[(waits ? "at the barrier of " : "at ") + in.site().text()];
            if (here.empty() || here.back() != w.index) here.push_back(w.index);
        });
    }
    std::string text;
    for (const auto& [place, which] : warps)
        text += (text.empty() ? "" : "; ") + ("warp" + std::string(which.size() > 1 ? "s " : " ")) + ranges(which) + " " + place;
    return text;
}

// The warp polls, or goes on for ever.
void check_patience(const Warp& w) {
    const uint32_t lane = uint32_t(__builtin_ctz(w.live & ~waiting(w)));
    const Instruction& in = instruction_of(w, lane);
    if (gave_way && idle_polls > kMostPolls) {
        select(w, lane);
        // As of a deadlock: it outlives the way out.
        static std::string places;
        places = places_of_warps();
        fatal(719, "endless wait", in.site(),
              "polls for something that no thread of the block does and no copy in flight (blocks run one after another): %s",
              places.c_str());
    }
    if (Time::now() - last_progress < std::chrono::seconds(config.watchdog_seconds)) return;
    select(w, lane);
    fatal(719, gave_way ? "endless wait" : "endless loop", in.site(), "no synchronisation or exit for %d s",
          config.watchdog_seconds);
}

void give_turn(Warp& w) {
    const uint32_t able = w.live & ~waiting(w);
    take_turn(w, config.schedule == Config::shuffle ? 1 + random_below(random_below(4) ? 400 : 20) : kTurn);
    if ((w.live & ~waiting(w)) != able) return note_progress();
    if (gave_way) {
        ++idle_polls;
        bulk_progress();
    }
    check_patience(w);
}

// Nobody is able to go on, and somebody waits at a barrier that others will not come to.
void check_named_barriers() {
    const auto waits = [](const Warp& w) { return w.named != 0; };
    const auto warp = std::find_if(block.warps.begin(), block.warps.end(), waits);
    if (warp == block.warps.end()) return;
    const uint32_t lane = uint32_t(__builtin_ctz(warp->named));
    static std::string text;
    {
        Places places;
        for (const Warp& w : block.warps) add_places(w, places);
        text = text_of(places);
    }
    select(*warp, lane);
    fatal(719, "deadlock", block.code->instructions[warp->at[lane] - 1].site(), "%s", text.c_str());
}

// All have exited: each warp has set its registers as often as the others of its group.
void check_register_changes() {
    for (const Warp& w : block.warps) {
        const uint32_t group = w.index / kGroupWarps;
        if (group >= block.register_changes.size()) return;
        const std::vector<const Instruction*>& list = block.register_changes[group];
        if (w.register_changes == list.size()) continue;
        select(w, 0);
        fault("divergent warpgroup", list[w.register_changes]->site(),
              "other warps of the group set their registers here, this one has exited without");
    }
}

// All have exited. A grid that does not wait ends before the one before it may have ended; whoever waits for it then takes both for
// ended.
void check_waited() {
    if (!run.dependent || block.waited) return;
    select(block.warps[0], 0);
    fault("missing wait", block.code->instructions[0].site(),
          "a dependent launch, and no thread of the block has executed griddepcontrol.wait");
}

void run_block() {
    begin_block();
    const size_t n = block.warps.size();
    static std::vector<Warp*> able;
    for (;;) {
        able.clear();
        for (size_t i = 0; i < n; ++i) {
            Warp& w = block.warps[config.schedule == Config::reverse ? n - 1 - i : i];
            if (is_able(w)) able.push_back(&w);
        }
        if (able.empty()) {
            if (std::none_of(block.warps.begin(), block.warps.end(), [](const Warp& w) { return w.live; }))
                return check_register_changes(), check_waited();
            check_named_barriers();
            release_barrier();
        } else if (config.schedule == Config::shuffle) {
            give_turn(*able[random_below(able.size())]);
        } else {
            for (Warp* w : able) give_turn(*w);
        }
    }
}

// ---- a launch

template <class T>
void fill(const Warp& w, uint16_t slot, T value) {
    std::fill_n(w.lanes<T>(slot), kWarp, value);
}

void fill_constants(const Warp& w) {
    for (const Constant& c : block.code->constants) {
        const uint64_t value = c.value + (c.base == Base::shared       ? block.shared_low
                                          : c.base == Base::parameters ? reinterpret_cast<uint64_t>(block.parameters)
                                                                       : 0);
        switch (c.kind) {
            case 'p': w.predicate(c.slot) = uint32_t(value); break;
            case 'h': fill(w, c.slot, uint16_t(value)); break;
            case 'w': fill(w, c.slot, uint32_t(value)); break;
            default: fill(w, c.slot, value);
        }
    }
    for (const SpecialRegister& s : block.code->specials) {
        uint32_t* to = w.lanes<uint32_t>(s.slot);
        for (uint32_t i = 0; i < kWarp; ++i) {
            switch (s.what) {
                case Special::tid: to[i] = threads[w.index * kWarp + i].at[s.axis]; break;
                case Special::ntid: to[i] = run.launch->block[s.axis]; break;
                case Special::nctaid: to[i] = run.launch->grid[s.axis]; break;
                case Special::laneid: to[i] = i; break;
                case Special::warpid: to[i] = w.index; break;
                case Special::ctaid: break;
            }
        }
    }
}

void begin_warps() {
    constexpr size_t kLine = 64;
    const size_t each = size_t(block.code->slots) * kSlot, warps = (run.threads + kWarp - 1) / kWarp;
    register_memory.assign(each * warps + kLine, char(0xa5));  // what no register should be read as
    const uintptr_t base = (reinterpret_cast<uintptr_t>(register_memory.data()) + kLine - 1) & ~uintptr_t(kLine - 1);
    block.warps.resize(warps);
    const uint32_t* dim = run.launch->block;
    for (uint32_t i = 0; i < warps * kWarp; ++i) {
        Thread& t = threads[i];
        t.at[0] = i % dim[0];
        t.at[1] = i / dim[0] % dim[1];
        t.at[2] = i / dim[0] / dim[1];
        t.index = i;
        t.lane = i % kWarp;
        t.warp = &block.warps[i / kWarp];
    }
    for (size_t i = 0; i < warps; ++i) {
        Warp& w = block.warps[i];
        w.registers = reinterpret_cast<char*>(base + each * i);
        w.index = uint32_t(i);
        fill_constants(w);
    }
}

Counters& count_launch(const Launch& launch) {
    const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    Counters& c = counters[launch.name];
    ++c.launches;
    c.checked_launches += run.checked;
    c.dependent_launches += launch.dependent;
    c.blocks += blocks;
    c.threads += blocks * run.threads;
    return c;
}

void run_blocks(const Launch& launch) {
    const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    static std::vector<uint32_t> order;
    order.clear();
    if (config.schedule == Config::shuffle && blocks <= (1u << 24)) shuffle_order(order, uint32_t(blocks));
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t b = !order.empty() ? order[i] : config.schedule == Config::reverse ? blocks - 1 - i : i;
        run.block_index = uint32_t(b);
        run.block[0] = uint32_t(b % launch.grid[0]);
        run.block[1] = uint32_t(b / launch.grid[0] % launch.grid[1]);
        run.block[2] = uint32_t(b / launch.grid[0] / launch.grid[1]);
        run_block();
    }
}

}  // namespace

uint64_t random_below(uint64_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

uint32_t gather(Warp& w, uint32_t mask, uint32_t needed) {
    uint32_t here = mask;
    each_lane(w.parked & w.live, [&](uint32_t i) {
        if (w.at[i] == w.now && w.wanted[i] == needed) here |= 1u << i;
    });
    if (!(needed & w.live & ~here)) {
        w.parked &= ~here;
        w.mask |= here;
        return here;
    }
    pass_by(w, mask);
    each_lane(mask, [&](uint32_t i) {
        w.at[i] = w.now;
        w.wanted[i] = needed;
    });
    w.parked |= mask;
    return 0;
}

void note_progress() {
    idle_polls = 0;
    last_progress = Time::now();
}

Flow give_way(Warp& w) {
    ++w.now;
    return ask_again(w);
}

int64_t parameter_offset(uint64_t address, uint32_t bytes) {
    const uint64_t offset = address - reinterpret_cast<uint64_t>(block.parameters);
    const uint64_t all = block.kernel->parameter_bytes;
    return offset <= all && bytes <= all - offset ? int64_t(offset) : -1;
}

uint32_t static_bytes(Kernel& kernel) { return code_of(kernel).static_shared; }
const std::vector<uint32_t>& pointers(Kernel& kernel) { return code_of(kernel).pointers; }

int run_kernel(const Launch& given, Kernel& kernel) {
    const Code& code = code_of(kernel);
    if (!code.error.empty()) {
        fault_outside_kernel("unsupported code", kernel.name.c_str(), "%s", code.error.c_str());
        return 218;  // CUDA_ERROR_INVALID_PTX
    }
    static Launch launch;
    launch = given;
    // A cache line's alignment is more than any parameter asks for.
    constexpr uintptr_t kLine = 128;
    static std::vector<char> storage;
    storage.assign(kernel.parameter_bytes + 8 + kLine, 0);
    const uintptr_t start = (reinterpret_cast<uintptr_t>(storage.data()) + kLine - 1) & ~(kLine - 1);
    char* parameters = reinterpret_cast<char*>(start);
    for (size_t i = 0; i < kernel.parameters.size(); ++i) {
        const Parameter& p = kernel.parameters[i];
        memcpy(parameters + p.offset, reinterpret_cast<const char*>(launch.storage.data()) + launch.offsets[i],
               p.size);
    }
    run = Running();
    run.launch = &launch;
    run.checked = config.observe;
    run.threads = launch.block[0] * launch.block[1] * launch.block[2];
    run.counters = &count_launch(launch);
    run.dependent = launch.dependent;
    run.stale = launch.dependent && config.early_dependents;
    run.keeps = launch.chain && config.early_dependents;
    if (launch.chain && !launch.dependent) {
        chain_begin(*launch.chain);
        launch.chain->era = 0;
    }
    random_state = config.seed * 0x9e3779b97f4a7c15ull + 0x1234567;
    block.kernel = &kernel;
    block.code = &code;
    block.parameters = parameters;
    block.shared_bytes = code.uses_dynamic ? code.dynamic_at + launch.shared_bytes : code.static_shared;
    block.shared_low =
        shared_place(block.shared_bytes, code.shared_align, code.uses_dynamic ? code.dynamic_at : block.shared_bytes);
    executed = block.uncounted = 0;
    note_progress();
    forget_allocation();
    begin_warps();
    run.way_out = &way_out;
    if (!setjmp(way_out)) {
        if (run.checked) checker_begin_launch();
        run_blocks(launch);
    }
    run.counters->instructions += executed - block.uncounted;
    run.way_out = nullptr;
    run.launch = nullptr;
    self = nullptr;
    return take_error();
}

Handler branch_handler() { return branch; }
Handler exit_handler() { return leave; }

void enter_control(Table& table) {
    enter(table, "ret exit", {leave, ""});
    enter(table, "bra.uni", {branch, ""});
    enter(table, "bar.sync barrier.sync.aligned", {block_barrier, "i"});
    // The form with a number of threads.
    enter(table, "bar.sync.counted barrier.sync.aligned.counted", {wait_at_named, "ww"});
    enter(table, "bar.arrive barrier.arrive.aligned", {arrive_at_named, "ww"});
    enter(table, "setmaxnreg.inc.sync.aligned.u32", {get_registers, "i"});
    enter(table, "setmaxnreg.dec.sync.aligned.u32", {give_registers, "i"});
    // Whether a kernel calls it changes nothing: what comes behind it may not rely on more where it does not.
    enter(table, "griddepcontrol.launch_dependents", {nothing, ""});
    enter(table, "griddepcontrol.wait", {wait_for_predecessors, ""});
    enter(table, "bar.red.and.pred", {block_reduction<Reduction::conjunction>, "Pin"});
    enter(table, "bar.red.or.pred", {block_reduction<Reduction::disjunction>, "Pin"});
    enter(table, "bar.red.popc.u32", {block_reduction<Reduction::count>, "Win"});
    enter(table, "nanosleep.u32", {sleep, "w"});
    enter(table, "trap", {trap, ""});
    // A hint: it reads nothing.
    enter(table, "prefetch.global.L2", {nothing, "g"});
    enter(table, "membar.gl membar.cta membar.sys", {fence, ""});
    enter(table, "fence.acq_rel.gpu fence.sc.gpu fence.acq_rel.cta fence.sc.cta fence.acq_rel.sys fence.sc.sys",
          {fence, ""});
    enter(table, "fence.mbarrier_init.release.cluster", {init_fence, ""});
    enter(table, "fence.proxy.async.shared::cta fence.proxy.async", {proxy_fence, ""});
    for (const char* kind : {"first", "last"})
        table["createpolicy.fractional.L2::evict_" + std::string(kind) + ".b64"] = {nothing, "D_"};
}

}  // namespace ptx
}  // namespace emu
