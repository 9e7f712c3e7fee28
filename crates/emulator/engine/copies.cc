// Asynchronous copies: cp.async with its groups, mbarriers, bulk copies, of tensors too. PTX ISA, sections 9.7.9.25,
// 9.7.9.27 and 9.7.13.15.
//
// `late` copies happen when they are waited for, which shows missing waits; `early` ones at issue, which shows buffers
// that are filled while they are still read.
#include <deque>

#include "decode.h"
#include "tensors.h"

namespace emu::ptx {
namespace {

struct Mbarrier {
    uint32_t count = 0, pending = 0, phase = 0;
    int64_t bytes = 0;  // announced minus arrived
    const Thread* maker = nullptr;
    uint32_t made = 0;  // the maker's order
    Clock clock, completed;
};
std::unordered_map<uint32_t, Mbarrier> mbarriers;

struct BulkCopy {
    uint32_t target, bytes, mbarrier;
    const char* source;  // null when a box of a tensor is copied
    TensorBox box;
    Thread* issuer;
    uint32_t order;
    bool stale;  // its issuer had not waited for the kernels before this one
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
    if (run.stale) {
        each_lane(mask, [&](uint32_t i) {
            if (c.bytes[i] && is_stale(w, i)) c.source[i] = static_cast<const char*>(chain_before(c.source[i]));
        });
    }
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
    const Mbarrier& m = found->second;
    if (run.checked && !checker_knows(*m.maker, m.made))
        fault("shared memory race", in.site(), "%s initialised the mbarrier without synchronisation in between",
              thread_name(*m.maker).c_str());
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
        m.maker = self;
        m.made = self->order;
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

void fetch(const BulkCopy& c, void* to, const void* from, uint32_t bytes) {
    if (c.stale) {
        chain_read(to, from, bytes);
    } else {
        memcpy(to, from, bytes);
    }
}

// The rows of a box, one behind the other; chunks of 16 bytes lie where the swizzle wants them.
void copy_box(const BulkCopy& c) {
    constexpr uint32_t kMostBytes = 256 * 8;
    const uint32_t row = c.box.row_bytes();
    uint32_t at = c.target;
    each_row(c.box, [&](uint32_t zeros, uint64_t source, uint32_t bytes) {
        char line[kMostBytes];
        if (bytes < row) memset(line, 0, row);
        fetch(c, line + zeros, reinterpret_cast<const void*>(source), bytes);
        for (uint32_t i = 0; i < row; i += kCopyBytes, at += kCopyBytes)
            memcpy(reinterpret_cast<char*>(uintptr_t(swizzled(at, c.box.map.width))), line + i, kCopyBytes);
    });
}

void perform(const BulkCopy& c) {
    char* target = reinterpret_cast<char*>(uintptr_t(c.target));
    if (c.source) {
        fetch(c, target, c.source, c.bytes);
    } else {
        copy_box(c);
    }
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

// What bulk copies have in common, once their sources are known to be right.
void issue(Warp& w, const Instruction& in, uint32_t lane, const BulkCopy& copy) {
    const Mbarrier& m = mbarrier_at(in, copy.mbarrier);
    if (run.checked && !checker_proxy_knows(*m.maker, m.made))
        fault("missing fence", in.site(), "no fence.mbarrier_init since %s initialised the mbarrier",
              thread_name(*m.maker).c_str());
    const char* target = shared_at(w, in, lane, copy.target, kCopyBytes, kWrite);
    shared_at(w, in, lane, copy.target + copy.bytes - kCopyBytes, kCopyBytes, kWrite);
    if (run.checked) {
        checker_async_access(target, copy.bytes, true, in.site());
        checker_async_issue(target, copy.bytes, in.site());
    }
    if (config.late_copies) {
        bulk_copies.push_back(copy);
    } else {
        perform(copy);
    }
}

void read_source(Warp& w, const Instruction& in, uint32_t lane, uint64_t source, uint32_t bytes) {
    check_global_range(w, in, lane, source, bytes, kRead);
    if (!run.checked) return;
    check_access(reinterpret_cast<void*>(source), bytes, kRead, in.site());
    traffic_bulk_read(source, bytes);
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
        read_source(w, in, i, sources[i], sizes[i]);
        issue(w, in, i,
              {targets[i], sizes[i], at[i], reinterpret_cast<const char*>(sources[i]), {}, self, self->order,
               is_stale(w, i)});
    });
    return Flow::next;
}

// The map at a generic address: of a parameter, or in global memory.
TensorMap map_at(Warp& w, const Instruction& in, uint32_t lane, uint64_t address) {
    select(w, lane);
    if (address % 64)
        fatal(716, "misaligned access", in.site(), "a tensor map at %#lx, not a multiple of 64", address);
    if (parameter_offset(address, sizeof(TensorMap)) < 0) {
        check_global_range(w, in, lane, address, sizeof(TensorMap), kRead);
        if (run.checked) check_access(reinterpret_cast<void*>(address), sizeof(TensorMap), kRead, in.site());
    }
    TensorMap map;
    memcpy(&map, reinterpret_cast<const void*>(address), sizeof map);
    if (!is_map(map))
        fatal(719, "tensor map", in.site(), "cuTensorMapEncodeTiled did not make what is at %#lx", address);
    return map;
}

// Swizzled lines must begin where the pattern does, which repeats after eight of the width.
void check_target(const Instruction& in, const TensorMap& map, uint32_t target) {
    constexpr uint32_t kAlign = 128;
    if (target % kAlign)
        fatal(716, "misaligned access", in.site(), "a tensor copy to shared memory at %#x, not a multiple of 128",
              target);
    if (map.width && target % (8 * map.width))
        fatal(716, "misaligned access", in.site(),
              "a tensor copy to shared memory at %#x: the swizzle of %u bytes repeats after %u", target, map.width,
              8u * map.width);
}

// Slots: target, map, up to five coordinates, mbarrier.
Flow copy_tensor(Warp& w, const Instruction& in, uint32_t mask) {
    const uint32_t *targets = w.lanes<uint32_t>(in.slot[0]), *mbarriers_at = w.lanes<uint32_t>(in.slot[7]);
    const uint64_t* maps = w.lanes<uint64_t>(in.slot[1]);
    const uint32_t dimensions = uint32_t(in.immediate);
    each_lane(mask, [&](uint32_t i) {
        BulkCopy copy = {};
        copy.box.map = map_at(w, in, i, maps[i]);
        const TensorMap& map = copy.box.map;
        if (map.dimensions != dimensions)
            fatal(719, "tensor map", in.site(), "the map has %u dimensions, the copy %u", map.dimensions, dimensions);
        for (uint32_t d = 0; d < dimensions; ++d) copy.box.at[d] = w.lanes<int32_t>(in.slot[2 + d])[i];
        check_target(in, map, targets[i]);
        if (copy.box.bytes() > block.shared_bytes)
            fatal(700, "out of bounds", in.site(), "a box of %lu bytes, the block has %u of shared memory",
                  (unsigned long)copy.box.bytes(), block.shared_bytes);
        each_row(copy.box, [&](uint32_t, uint64_t source, uint32_t bytes) {
            if (bytes) read_source(w, in, i, source, bytes);
        });
        copy.target = targets[i];
        copy.bytes = uint32_t(copy.box.bytes());
        copy.mbarrier = mbarriers_at[i];
        copy.issuer = self;
        copy.order = self->order;
        copy.stale = is_stale(w, i);
        issue(w, in, i, copy);
    });
    return Flow::next;
}

Flow prefetch_map(Warp& w, const Instruction& in, uint32_t mask) {
    const uint64_t* maps = w.lanes<uint64_t>(in.slot[0]);
    each_lane(mask, [&](uint32_t i) { map_at(w, in, i, maps[i] + uint64_t(in.immediate)); });
    return Flow::next;
}

}  // namespace

void forget_orders() {
    for (auto& [address, m] : mbarriers) m.made = 0, m.clock = m.completed = Clock();
    for (BulkCopy& copy : bulk_copies) copy.order = 1;
    for (NamedBarrier& barrier : block.named) barrier.clock = Clock();
}

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

Handler tensor_copy_handler() { return copy_tensor; }

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
    // A hint to the cache, with its policy, changes nothing.
    const std::string ending = ".global.mbarrier::complete_tx::bytes";
    for (const char* target : {"cp.async.bulk.shared::cluster", "cp.async.bulk.shared::cta"}) {
        table[target + ending] = {copy_bulk, "agwa"};
        table[target + ending + ".L2::cache_hint"] = {copy_bulk, "agwad"};
    }
    enter(table, "prefetch.tensormap prefetch.param.tensormap", {prefetch_map, "g"});
}

}  // namespace emu::ptx
