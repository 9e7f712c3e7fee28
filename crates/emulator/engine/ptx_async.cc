// Asynchronous copies: cp.async with its groups, mbarriers, bulk copies. PTX ISA, sections 9.7.9.25 and 9.7.13.15.
//
// `late` copies happen when they are waited for, which shows missing waits; `early` ones at issue, which shows buffers
// that are filled while they are still read.
#include <deque>

#include "ptx_decode.h"

namespace emu::ptx {
namespace {

struct Mbarrier {
    uint32_t count = 0, pending = 0, phase = 0;
    int64_t bytes = 0;  // announced minus arrived
    Clock clock, completed;
};
std::unordered_map<uint32_t, Mbarrier> mbarriers;

struct BulkCopy {
    uint32_t target, bytes, mbarrier;
    const char* source;
    Thread* issuer;
    uint32_t order;
};
std::deque<BulkCopy> bulk_copies;

void perform(const Copy& c) {
    char* target = reinterpret_cast<char*>(uintptr_t(c.target));
    memcpy(target, c.source, c.source_bytes);
    memset(target + c.source_bytes, 0, size_t(c.bytes - c.source_bytes));
}

// The source counts as read at issue, and from then on nobody may touch the target.
Flow copy_async(Warp& w, const Instruction& in, uint32_t mask, const uint32_t* source_bytes) {
    const uint32_t* targets = w.lanes<uint32_t>(in.slot[0]);
    const uint64_t* sources = w.lanes<uint64_t>(in.slot[1]);
    constexpr uint32_t bytes = 16;
    uint64_t read[kWarp] = {};
    uint32_t readers = 0;
    each_lane(mask, [&](uint32_t i) {
        const uint32_t count = source_bytes ? source_bytes[i] : bytes;
        char* target = shared_at(w, in, i, targets[i], bytes);
        select(w, i);
        if (count > bytes) fatal(719, "undefined copy", in.site(), "%u bytes of a copy of %u", count, bytes);
        if (count) {
            if (sources[i] % bytes)
                fatal(716, "misaligned access", in.site(), "cp.async from %#lx, not a multiple of 16", sources[i]);
            if (count == bytes) check_global(w, in, i, sources[i], bytes);
            if (run.checked || count < bytes)
                check_access(reinterpret_cast<void*>(sources[i]), count, kRead | kNoTraffic | kUnaligned, in.site());
            readers |= 1u << i;
            read[i] = sources[i];
        }
        checker_async_issue(target, bytes, in.site());
        const Copy copy{targets[i], reinterpret_cast<const char*>(sources[i]), uint8_t(i), uint8_t(bytes),
                        uint8_t(count), w.groups[i], in.site()};
        if (!config.late_copies) perform(copy);
        if (config.late_copies || run.checked) w.copies.push_back(copy);
    });
    if (run.checked && readers) traffic_warp(read, readers, bytes, false, false);
    return Flow::next;
}

Flow copy_async_whole(Warp& w, const Instruction& in, uint32_t mask) { return copy_async(w, in, mask, nullptr); }
Flow copy_async_part(Warp& w, const Instruction& in, uint32_t mask) {
    return copy_async(w, in, mask, w.lanes<uint32_t>(in.slot[3]));
}

Flow commit_group(Warp& w, const Instruction&, uint32_t mask) {
    each_lane(mask, [&](uint32_t i) { ++w.groups[i]; });
    return Flow::next;
}

// All but the latest groups of each lane are waited for; what a lane has not committed is in none.
void wait_for(Warp& w, uint32_t mask, int64_t pending, bool everything) {
    size_t kept = 0;
    for (const Copy& c : w.copies) {
        const bool done = has(mask, c.lane) && (everything || int64_t(c.group) < int64_t(w.groups[c.lane]) - pending);
        if (!done) {
            w.copies[kept++] = c;
            continue;
        }
        if (config.late_copies) perform(c);
        select(w, c.lane);
        checker_async_done(reinterpret_cast<char*>(uintptr_t(c.target)), c.bytes, *self, self->order);
    }
    w.copies.resize(kept);
}
Flow wait_group(Warp& w, const Instruction& in, uint32_t mask) {
    wait_for(w, mask, in.immediate, false);
    return Flow::next;
}
Flow wait_all(Warp& w, const Instruction&, uint32_t mask) {
    wait_for(w, mask, 0, true);
    return Flow::next;
}

// ---- mbarriers: kept beside memory, by address

Mbarrier& mbarrier_at(const Instruction& in, uint32_t address) {
    auto found = mbarriers.find(address);
    if (found == mbarriers.end())
        fatal(719, "mbarrier", in.site(), "no mbarrier was initialised at shared address %#x", address);
    return found->second;
}

void complete_phase(Mbarrier& m) {
    if (m.pending != 0 || m.bytes != 0) return;
    m.pending = m.count;
    ++m.phase;
    m.completed = m.clock;
}

Flow initialise(Warp& w, const Instruction& in, uint32_t mask) {
    const uint32_t *at = w.lanes<uint32_t>(in.slot[0]), *counts = w.lanes<uint32_t>(in.slot[1]);
    each_lane(mask, [&](uint32_t i) {
        shared_at(w, in, i, at[i] + uint32_t(in.immediate), 8);
        select(w, i);
        if (!counts[i]) fatal(719, "mbarrier", in.site(), "an expected count of 0");
        Mbarrier m;
        m.count = m.pending = counts[i];
        mbarriers[at[i] + uint32_t(in.immediate)] = m;
    });
    return Flow::next;
}

Flow arrive_with(Warp& w, const Instruction& in, uint32_t mask, const uint32_t* announced) {
    const uint32_t* at = w.lanes<uint32_t>(in.slot[1]);
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        Mbarrier& m = mbarrier_at(in, at[i] + uint32_t(in.immediate));
        checker_arrive(m.clock);
        if (announced) m.bytes += announced[i];
        --m.pending;
        complete_phase(m);
    });
    return Flow::next;
}
Flow arrive(Warp& w, const Instruction& in, uint32_t mask) { return arrive_with(w, in, mask, nullptr); }
Flow arrive_announcing(Warp& w, const Instruction& in, uint32_t mask) {
    return arrive_with(w, in, mask, w.lanes<uint32_t>(in.slot[2]));
}

// True once the phase of this parity has completed. A warp that must ask again lets others go first.
Flow try_wait(Warp& w, const Instruction& in, uint32_t mask) {
    const uint32_t *at = w.lanes<uint32_t>(in.slot[1]), *parities = w.lanes<uint32_t>(in.slot[2]);
    uint32_t& p = w.predicate(in.slot[0]);
    uint32_t done = 0;
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        const Mbarrier& m = mbarrier_at(in, at[i] + uint32_t(in.immediate));
        if ((m.phase & 1) == (parities[i] & 1)) return;
        done |= 1u << i;
        checker_pass(m.completed);
    });
    p = (p & ~mask) | done;
    return done == mask ? Flow::next : give_way(w);
}

void perform(const BulkCopy& c) {
    char* target = reinterpret_cast<char*>(uintptr_t(c.target));
    memcpy(target, c.source, c.bytes);
    checker_async_done(target, c.bytes, *c.issuer, c.order);
    Mbarrier& m = mbarriers.at(c.mbarrier);
    if (run.checked) checker_note(m.clock, *c.issuer, c.order);
    m.bytes -= c.bytes;
    complete_phase(m);
}

Flow copy_bulk(Warp& w, const Instruction& in, uint32_t mask) {
    const uint32_t *targets = w.lanes<uint32_t>(in.slot[0]), *sizes = w.lanes<uint32_t>(in.slot[2]),
                   *at = w.lanes<uint32_t>(in.slot[3]);
    const uint64_t* sources = w.lanes<uint64_t>(in.slot[1]);
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        if (targets[i] % 16 || sizes[i] % 16 || sources[i] % 16)
            fatal(716, "misaligned access", in.site(), "bulk copy: addresses and size must be multiples of 16");
        if (!sizes[i]) return;
        mbarrier_at(in, at[i]);
        char* target = shared_at(w, in, i, targets[i], 16);
        shared_at(w, in, i, targets[i] + sizes[i] - 16, 16);
        check_global(w, in, i, sources[i], 16);
        check_global(w, in, i, sources[i] + sizes[i] - 16, 16);
        check_access(reinterpret_cast<void*>(sources[i]), sizes[i], kRead, in.site());
        checker_async_issue(target, sizes[i], in.site());
        const BulkCopy copy{targets[i], sizes[i], at[i], reinterpret_cast<const char*>(sources[i]), self, self->order};
        if (config.late_copies) {
            bulk_copies.push_back(copy);
        } else {
            perform(copy);
        }
    });
    return Flow::next;
}

}  // namespace

void begin_block_copies() {
    mbarriers.clear();
    bulk_copies.clear();
}

bool bulk_progress() {
    if (bulk_copies.empty()) return false;
    const size_t n = bulk_copies.size();
    const size_t i = config.schedule == Config::shuffle ? random_below(n) : config.schedule == Config::reverse ? n - 1 : 0;
    const BulkCopy copy = bulk_copies[i];
    bulk_copies.erase(bulk_copies.begin() + long(i));
    perform(copy);
    return true;
}

void enter_copies(Table& table) {
    // .cg copies 16 bytes; the name ending in .whole is of the form without a size of the source.
    for (const char* hint : {"", ".L2::64B", ".L2::128B", ".L2::256B"}) {
        const std::string name = std::string("cp.async.cg.shared.global") + hint;
        table[name] = {copy_async_part, "agiw"};
        table[name + ".whole"] = {copy_async_whole, "agi"};
    }
    enter(table, "cp.async.commit_group", {commit_group, ""});
    enter(table, "cp.async.wait_group", {wait_group, "i"});
    enter(table, "cp.async.wait_all", {wait_all, ""});
    enter(table, "mbarrier.init.shared::cta.b64", {initialise, "aw"});
    enter(table, "mbarrier.arrive.shared::cta.b64", {arrive, "_a"});
    enter(table, "mbarrier.arrive.expect_tx.shared::cta.b64", {arrive_announcing, "_aw"});
    enter(table, "mbarrier.try_wait.parity.shared::cta.b64", {try_wait, "Paw"});
    enter(table, "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", {copy_bulk, "agwa"});
}

}  // namespace emu::ptx
