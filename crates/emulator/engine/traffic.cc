// Counts what a warp's accesses would cost: distinct 32-byte sectors, shared-memory wavefronts.
//
// Threads do not run in lockstep here, so the accesses of a warp are matched afterwards: the k-th execution of an
// instruction by each lane, between two synchronisations of the whole warp, counts as one access of the warp.
#include "engine.h"

#include <algorithm>

namespace emu {
namespace {

struct Group {
    uint32_t lanes = 0;
    uint8_t bytes = 0;
    bool write = false, shared = false;
    uint32_t unit[kWarp];  // sector, or 4-byte word of shared memory
};
struct Stream {
    uint32_t count[kWarp] = {};
    uint32_t base = 0;  // executions already counted and dropped
    size_t complete = 0;
    std::vector<Group> groups;
    bool touched = false;
};
struct Log {
    std::unordered_map<uint64_t, Stream> streams;
    std::vector<Stream*> touched;
    uint64_t last_key = 0;
    Stream* last = nullptr;
};
Log logs[kWarp];

// A phase moves 128 bytes: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16. Its wavefronts are the most distinct words that
// fall on one of the 32 banks.
void count_phase(const uint32_t* words, int accesses, int words_each) {
    uint32_t distinct[kWarp * 4];
    uint32_t first[32];  // that fell on each bank
    int n = 0, bank_load[32] = {}, most = 0;
    for (int i = 0; i < accesses; ++i) {
        for (int w = 0; w < words_each; ++w) {
            const uint32_t word = words[i] + uint32_t(w), bank = word % 32;
            if (bank_load[bank] && (first[bank] == word || std::find(distinct, distinct + n, word) != distinct + n))
                continue;
            if (!bank_load[bank]) first[bank] = word;
            distinct[n++] = word;
            most = std::max(most, ++bank_load[word % 32]);
        }
    }
    if (!n) return;
    run.counters->shared_wavefronts += uint64_t(most);
    run.counters->bank_conflicts += uint64_t(most - 1);
}

void count(const Group& g) {
    if (g.shared) {
        const int words = std::max(1, g.bytes / 4), lanes = kWarp / words;
        for (int first = 0; first < kWarp; first += lanes) {
            uint32_t list[kWarp];
            int n = 0;
            for (int l = first; l < first + lanes; ++l) {
                if (g.lanes >> l & 1) list[n++] = g.unit[l];
            }
            count_phase(list, n, words);
        }
        return;
    }
    uint32_t distinct[kWarp];
    int n = 0;
    for (int l = 0; l < kWarp; ++l) {
        if (!(g.lanes >> l & 1)) continue;
        // Neighbouring lanes mostly share a sector or come next to it.
        if (n && distinct[n - 1] == g.unit[l]) continue;
        if (std::find(distinct, distinct + n, g.unit[l]) == distinct + n) distinct[n++] = g.unit[l];
    }
    (g.write ? run.counters->sectors_written : run.counters->sectors_read) += uint64_t(n);
}

}  // namespace

void traffic_access(const void* address, size_t bytes, bool write, bool shared, Site site) {
    const uint64_t at = reinterpret_cast<uint64_t>(address);
    if (bytes > 16) {  // a bulk copy, not a warp's access
        if (!shared)
            (write ? run.counters->sectors_written : run.counters->sectors_read) += (at + bytes + 31) / 32 - at / 32;
        return;
    }
    Log& log = logs[self->warp->index];
    const uint64_t key = site.key() * 2 + shared;
    if (log.last_key != key || !log.last) {
        log.last = &log.streams[key];
        log.last_key = key;
    }
    Stream& s = *log.last;
    if (!s.touched) {
        s.touched = true;
        log.touched.push_back(&s);
    }
    const size_t i = s.count[self->lane]++ - s.base;
    if (i >= s.groups.size()) s.groups.resize(i + 1);
    Group& g = s.groups[i];
    g.bytes = uint8_t(bytes);
    g.write = write;
    g.shared = shared;
    g.unit[self->lane] = shared ? uint32_t(at / 4) : uint32_t((at - reinterpret_cast<uint64_t>(memory_base())) / 32);
    g.lanes |= 1u << self->lane;
    if (g.lanes == self->warp->live) {
        count(g);
        g.lanes = 0;
        if (++s.complete == s.groups.size()) {
            s.base += uint32_t(s.groups.size());
            s.groups.clear();
            s.complete = 0;
        }
    }
}

void traffic_warp(const uint64_t* addresses, uint32_t lanes, size_t bytes, bool write, bool shared) {
    Group g;
    g.lanes = lanes;
    g.bytes = uint8_t(bytes);
    g.write = write;
    g.shared = shared;
    const uint64_t base = reinterpret_cast<uint64_t>(memory_base());
    for (int l = 0; l < kWarp; ++l)
        g.unit[l] = shared ? uint32_t(addresses[l] / 4) : uint32_t((addresses[l] - base) / 32);
    count(g);
}

// ldmatrix moves one 8x8 matrix per phase.
void traffic_matrix_rows(const uint32_t* addresses, int rows) {
    for (int first = 0; first < rows; first += 8) {
        uint32_t words[8];
        for (int i = 0; i < 8; ++i) words[i] = addresses[first + i] / 4;
        count_phase(words, 8, 4);
    }
}

void traffic_flush(Warp& warp) {
    Log& log = logs[warp.index];
    for (Stream* s : log.touched) {
        for (const Group& g : s->groups) {
            if (g.lanes) count(g);
        }
        s->groups.clear();
        s->complete = 0;
        s->base = 0;
        s->touched = false;
        std::fill(s->count, s->count + kWarp, 0u);
    }
    log.touched.clear();
}

void traffic_forget() {
    for (Log& log : logs) {
        log.touched.clear();
        log.streams.clear();
        log.last = nullptr;
    }
}

}  // namespace emu
