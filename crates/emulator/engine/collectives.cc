// What the lanes of a warp do together: shuffles, votes, __syncwarp. PTX ISA, sections 9.7.9.6 (shfl) and 9.7.13 (vote,
// bar.warp.sync).
#include "decode.h"

namespace emu::ptx {
namespace {

// The member mask, which all lanes must agree on and be in.
uint32_t members(Warp& w, const Instruction& in, uint32_t mask, uint16_t slot) {
    const uint32_t* given = w.lanes<uint32_t>(slot);
    const uint32_t first = given[__builtin_ctz(mask)];
    each_lane(mask, [&](uint32_t i) {
        if (given[i] == first && has(first, i)) return;
        select(w, i);
        if (!has(given[i], i))
            fatal(719, "warp mask", in.site(), "the mask %#x does not name its own lane %u", given[i], i);
        fatal(719, "warp mask", in.site(), "lanes that execute together give the masks %#x and %#x", first, given[i]);
    });
    return first;
}

enum class Shuffle { up, down, butterfly, index };

template <Shuffle S>
Flow shuffle(Warp& w, const Instruction& in, uint32_t mask) {
    mask = gather(w, mask, members(w, in, mask, in.slot[4]));
    if (!mask) return Flow::stop;
    uint32_t from[kWarp], valid = 0;
    memcpy(from, w.lanes<uint32_t>(in.slot[1]), sizeof from);
    uint32_t* d = w.lanes<uint32_t>(in.slot[0]);
    const uint32_t *amounts = w.lanes<uint32_t>(in.slot[2]), *clamps = w.lanes<uint32_t>(in.slot[3]);
    each_lane(mask, [&](uint32_t lane) {
        const uint32_t amount = amounts[lane] & 31, clamp = clamps[lane] & 31, segment = clamps[lane] >> 8 & 31;
        const uint32_t most = (lane & segment) | (clamp & ~segment), least = lane & segment;
        uint32_t source = lane;
        bool inside = false;
        switch (S) {
            case Shuffle::up:
                source = lane - amount;
                inside = int32_t(source) >= int32_t(most);
                break;
            case Shuffle::down:
                source = lane + amount;
                inside = source <= most;
                break;
            case Shuffle::butterfly:
                source = lane ^ amount;
                inside = source <= most;
                break;
            case Shuffle::index:
                source = least | (amount & ~segment);
                inside = source <= most;
                break;
        }
        if (inside) {
            valid |= 1u << lane;
        } else {
            source = lane;
        }
        if (!has(mask, source)) {
            select(w, lane);
            fault("undefined shuffle", in.site(), "lane %u reads lane %u, which takes no part", lane, source);
        }
        d[lane] = has(mask, source) ? from[source] : ~0u;
    });
    if (in.flags & kFirst) {
        uint32_t& p = w.predicate(in.slot[5]);
        p = (p & ~mask) | valid;
    }
    return Flow::next;
}

enum class Vote { all, any, uniform, ballot };

template <Vote V>
Flow vote(Warp& w, const Instruction& in, uint32_t mask) {
    mask = gather(w, mask, members(w, in, mask, in.slot[2]));
    if (!mask) return Flow::stop;
    const uint32_t given = w.predicate(in.slot[1]), yes = (in.flags & 4 ? ~given : given) & mask;
    if (V == Vote::ballot) {
        uint32_t* d = w.lanes<uint32_t>(in.slot[0]);
        each_lane(mask, [&](uint32_t i) { d[i] = yes; });
        return Flow::next;
    }
    const bool result = V == Vote::all ? yes == mask : V == Vote::any ? yes != 0 : yes == 0 || yes == mask;
    uint32_t& p = w.predicate(in.slot[0]);
    p = result ? p | mask : p & ~mask;
    return Flow::next;
}

Flow synchronise(Warp& w, const Instruction& in, uint32_t mask) {
    mask = gather(w, mask, members(w, in, mask, in.slot[0]));
    if (!mask) return Flow::stop;
    if (run.checked) checker_warp_sync(w, mask);
    return Flow::next;
}

// One lane is chosen, always the same: here the lowest.
Flow elect(Warp& w, const Instruction& in, uint32_t mask) {
    mask = gather(w, mask, members(w, in, mask, in.slot[1]));
    if (!mask) return Flow::stop;
    const uint32_t leader = uint32_t(__builtin_ctz(mask));
    uint32_t* d = w.lanes<uint32_t>(in.slot[0]);
    each_lane(mask, [&](uint32_t i) { d[i] = leader; });
    uint32_t& p = w.predicate(in.slot[2]);
    p = (p & ~mask) | 1u << leader;
    return Flow::next;
}

}  // namespace

void enter_collectives(Table& table) {
    enter(table, "shfl.sync.up.b32", {shuffle<Shuffle::up>, "Wwwww"});
    enter(table, "shfl.sync.down.b32", {shuffle<Shuffle::down>, "Wwwww"});
    enter(table, "shfl.sync.bfly.b32", {shuffle<Shuffle::butterfly>, "Wwwww"});
    enter(table, "shfl.sync.idx.b32", {shuffle<Shuffle::index>, "Wwwww"});
    enter(table, "vote.sync.all.pred", {vote<Vote::all>, "Pnw"});
    enter(table, "vote.sync.any.pred", {vote<Vote::any>, "Pnw"});
    enter(table, "vote.sync.uni.pred", {vote<Vote::uniform>, "Pnw"});
    enter(table, "vote.sync.ballot.b32", {vote<Vote::ballot>, "Wnw"});
    enter(table, "bar.warp.sync", {synchronise, "w"});
    enter(table, "elect.sync", {elect, "Ww"});
}

}  // namespace emu::ptx
