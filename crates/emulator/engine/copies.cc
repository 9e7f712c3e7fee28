// Asynchronous copies: cp.async with its groups, mbarriers, bulk copies. PTX ISA, sections 9.7.9.25 and 9.7.13.15.
//
// `late` copies happen when they are waited for, which shows missing waits; `early` ones at issue, which shows buffers
// that are filled while they are still read.
#include <deque>

#include "decode.h"

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

constexpr uint32_t kCopyBytes = 16;

void perform(const Copies& c, uint32_t mask) {
    each_lane(mask, [&](uint32_t i) {
        char* target = reinterpret_cast<char*>(uintptr_t(c.target[i]));
        if (c.bytes[i] == kCopyBytes) {
            memcpy(target, c.source[i], kCopyBytes);
        } else {
            memset(target, 0, kCopyBytes);
            memcpy(target, c.source[i], c.bytes[i]);
        }
    });
}

void check_source(Warp& w, const Instruction& in, uint32_t lane, uint64_t source, uint32_t bytes) {
    if (bytes == kCopyBytes) return check_global(w, in, lane, source, bytes, kRead);
    select(w, lane);
    if (bytes > kCopyBytes) fatal(719, "undefined copy", in.site(), "%u bytes of a copy of 16", bytes);
    if (!bytes) return;
    if (source % kCopyBytes)
        fatal(716, "misaligned access", in.site(), "cp.async from %#lx, not a multiple of 16", source);
    check_global_range(w, in, lane, source, bytes, kRead);
}

// What the checker is told: the source counts as read at issue, and from then on nobody may touch the target.
void observe(Warp& w, const Copies& c, uint32_t mask) {
    uint64_t read[kWarp] = {};
    uint32_t readers = 0;
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        read[i] = reinterpret_cast<uint64_t>(c.source[i]);
        if (c.bytes[i]) readers |= 1u << i;
        if (c.bytes[i]) check_access(c.source[i], c.bytes[i], kRead, c.site);
        checker_async_issue(reinterpret_cast<char*>(uintptr_t(c.target[i])), kCopyBytes, c.site);
    });
    if (readers) traffic_warp(read, readers, kCopyBytes, false, false);
}

Flow copy_async(Warp& w, const Instruction& in, uint32_t mask, const uint32_t* source_bytes) {
    const uint32_t* targets = w.lanes<uint32_t>(in.slot[0]);
    const uint64_t* sources = w.lanes<uint64_t>(in.slot[1]);
    w.copies.emplace_back();
    Copies& c = w.copies.back();
    c.lanes = mask;
    c.site = in.site();
    memcpy(c.target, targets, sizeof c.target);
    memcpy(c.group, w.groups, sizeof c.group);
    memcpy(c.source, sources, sizeof c.source);
    if (source_bytes) {
        memcpy(c.bytes, source_bytes, sizeof c.bytes);
    } else {
        std::fill(c.bytes, c.bytes + kWarp, kCopyBytes);
    }
    each_lane(mask, [&](uint32_t i) {
        shared_at(w, in, i, targets[i], kCopyBytes, kWrite);
        check_source(w, in, i, sources[i], c.bytes[i]);
    });
    if (run.checked) observe(w, c, mask);
    if (!config.late_copies) {
        perform(c, mask);
        if (!run.checked) w.copies.pop_back();
    }
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
void wait_for(Warp& w, uint32_t mask, uint32_t pending, bool everything) {
    size_t kept = 0;
    for (Copies& c : w.copies) {
        uint32_t done = 0;
        for (uint32_t i = 0; i < kWarp; ++i)
            done |= uint32_t(everything || int64_t(c.group[i]) + pending < int64_t(w.groups[i])) << i;
        done &= mask & c.lanes;
        if (done && config.late_copies) perform(c, done);
        if (run.checked) {
            each_lane(done, [&](uint32_t i) {
                select(w, i);
                checker_async_done(reinterpret_cast<char*>(uintptr_t(c.target[i])), kCopyBytes, *self, self->order, true);
            });
        }
        c.lanes &= ~done;
        if (!c.lanes) continue;
        if (&w.copies[kept] != &c) w.copies[kept] = c;
        ++kept;
    }
    w.copies.resize(kept);
}
Flow wait_group(Warp& w, const Instruction& in, uint32_t mask) {
    wait_for(w, mask, uint32_t(in.immediate), false);
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
    note_progress();
    if (m.pending != 0 || m.bytes != 0) return;
    m.pending = m.count;
    ++m.phase;
    m.completed = m.clock;
}

Flow initialise(Warp& w, const Instruction& in, uint32_t mask) {
    const uint32_t *at = w.lanes<uint32_t>(in.slot[0]), *counts = w.lanes<uint32_t>(in.slot[1]);
    each_lane(mask, [&](uint32_t i) {
        shared_at(w, in, i, at[i] + uint32_t(in.immediate), 8, kWrite);
        select(w, i);
        if (!counts[i]) fatal(719, "mbarrier", in.site(), "an expected count of 0");
        Mbarrier m;
        m.count = m.pending = counts[i];
        mbarriers[at[i] + uint32_t(in.immediate)] = m;
    });
    return Flow::next;
}

// ISA 9.7.13.15: the transaction count lies within 2^20 - 1 of zero.
constexpr int64_t kMostBytes = (1 << 20) - 1;

void announce(const Instruction& in, Mbarrier& m, uint32_t bytes) {
    m.bytes += bytes;
    if (m.bytes > kMostBytes) fatal(719, "mbarrier", in.site(), "%ld bytes are announced", long(m.bytes));
}

Flow arrive_with(Warp& w, const Instruction& in, uint32_t mask, const uint32_t* counts, const uint32_t* announced) {
    const uint32_t* at = w.lanes<uint32_t>(in.slot[1]);
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        Mbarrier& m = mbarrier_at(in, at[i] + uint32_t(in.immediate));
        const uint32_t count = counts ? counts[i] : 1;
        if (!count) fatal(719, "mbarrier", in.site(), "an arrival of nobody");
        if (m.pending < count)
            fatal(719, "mbarrier", in.site(), "more arrivals than the expected %u in one phase", m.count);
        if (run.checked) checker_arrive(m.clock);
        if (announced) announce(in, m, announced[i]);
        m.pending -= count;
        complete_phase(m);
    });
    return Flow::next;
}
Flow arrive(Warp& w, const Instruction& in, uint32_t mask) { return arrive_with(w, in, mask, nullptr, nullptr); }
Flow arrive_several(Warp& w, const Instruction& in, uint32_t mask) {
    return arrive_with(w, in, mask, w.lanes<uint32_t>(in.slot[2]), nullptr);
}
Flow arrive_announcing(Warp& w, const Instruction& in, uint32_t mask) {
    return arrive_with(w, in, mask, nullptr, w.lanes<uint32_t>(in.slot[2]));
}

// Bytes alone, without an arrival.
Flow announce_bytes(Warp& w, const Instruction& in, uint32_t mask) {
    const uint32_t *at = w.lanes<uint32_t>(in.slot[0]), *bytes = w.lanes<uint32_t>(in.slot[1]);
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        announce(in, mbarrier_at(in, at[i] + uint32_t(in.immediate)), bytes[i]);
    });
    return Flow::next;
}

Flow invalidate(Warp& w, const Instruction& in, uint32_t mask) {
    const uint32_t* at = w.lanes<uint32_t>(in.slot[0]);
    each_lane(mask, [&](uint32_t i) {
        select(w, i);
        mbarrier_at(in, at[i] + uint32_t(in.immediate));
        mbarriers.erase(at[i] + uint32_t(in.immediate));
    });
    return Flow::next;
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
        if (run.checked) checker_pass(m.completed);
    });
    p = (p & ~mask) | done;
    return done == mask ? Flow::next : give_way(w);
}

void perform(const BulkCopy& c) {
    char* target = reinterpret_cast<char*>(uintptr_t(c.target));
    memcpy(target, c.source, c.bytes);
    auto found = mbarriers.find(c.mbarrier);
    if (found == mbarriers.end()) return;  // invalidated meanwhile
    Mbarrier& m = found->second;
    if (run.checked) {
        checker_async_done(target, c.bytes, *c.issuer, c.order, false);
        checker_note(m.clock, *c.issuer, c.order);
    }
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
        const char* target = shared_at(w, in, i, targets[i], 16, kWrite);
        shared_at(w, in, i, targets[i] + sizes[i] - 16, 16, kWrite);
        check_global_range(w, in, i, sources[i], sizes[i], kRead);
        if (run.checked) {
            check_access(reinterpret_cast<void*>(sources[i]), sizes[i], kRead, in.site());
            checker_async_access(target, sizes[i], true, in.site());
            checker_async_issue(target, sizes[i], in.site());
            traffic_bulk_read(sources[i], sizes[i]);
        }
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
    const size_t i = config.schedule == Config::shuffle   ? random_below(n)
                     : config.schedule == Config::reverse ? n - 1
                                                          : 0;
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
    for (const char* order : {"", ".release.cta"}) {
        const std::string arrival = "mbarrier.arrive" + std::string(order) + ".shared::cta.b64";
        table[arrival] = {arrive, "_a"};
        table[arrival + ".more"] = {arrive_several, "_aw"};
        table["mbarrier.arrive.expect_tx" + std::string(order) + ".shared::cta.b64"] = {arrive_announcing, "_aw"};
    }
    enter(table, "mbarrier.expect_tx.relaxed.cta.shared::cta.b64", {announce_bytes, "aw"});
    enter(table, "mbarrier.inval.shared::cta.b64", {invalidate, "a"});
    // Both ask once; the hint is how long one of them may take.
    for (const char* wait : {"mbarrier.try_wait.parity", "mbarrier.test_wait.parity"}) {
        for (const char* order : {"", ".acquire.cta"}) {
            const std::string name = std::string(wait) + order + ".shared::cta.b64";
            table[name] = {try_wait, "Paw"};
            table[name + ".more"] = {try_wait, "Paw_"};
        }
    }
    enter(table, "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", {copy_bulk, "agwa"});
}

}  // namespace emu::ptx
