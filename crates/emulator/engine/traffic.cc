// Counts what a warp's accesses would cost: distinct 32-byte sectors, shared-memory wavefronts.
#include <algorithm>

#include "engine.h"

namespace emu {
namespace {

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

void count_shared(const uint64_t* addresses, uint32_t lanes, size_t bytes) {
    const int words = std::max(1, int(bytes / 4)), together = kWarp / words;
    for (int first = 0; first < kWarp; first += together) {
        uint32_t list[kWarp];
        int n = 0;
        for (int l = first; l < first + together; ++l) {
            if (lanes >> l & 1) list[n++] = uint32_t(addresses[l] / 4);
        }
        count_phase(list, n, words);
    }
}

void count_global(const uint64_t* addresses, uint32_t lanes, bool write) {
    uint64_t distinct[kWarp];
    int n = 0;
    for (int l = 0; l < kWarp; ++l) {
        if (!(lanes >> l & 1)) continue;
        const uint64_t sector = addresses[l] / 32;
        // Neighbouring lanes mostly share a sector or come next to it.
        if (n && distinct[n - 1] == sector) continue;
        if (std::find(distinct, distinct + n, sector) == distinct + n) distinct[n++] = sector;
    }
    (write ? run.counters->sectors_written : run.counters->sectors_read) += uint64_t(n);
}

}  // namespace

void traffic_warp(const uint64_t* addresses, uint32_t lanes, size_t bytes, bool write, bool shared) {
    if (shared) {
        count_shared(addresses, lanes, bytes);
    } else {
        count_global(addresses, lanes, write);
    }
}

// ldmatrix moves one 8x8 matrix per phase.
void traffic_matrix_rows(const uint32_t* addresses, int rows) {
    for (int first = 0; first < rows; first += 8) {
        uint32_t words[8];
        for (int i = 0; i < 8; ++i) words[i] = addresses[first + i] / 4;
        count_phase(words, 8, 4);
    }
}

void traffic_bulk_read(uint64_t address, size_t bytes) {
    run.counters->sectors_read += (address + bytes + 31) / 32 - address / 32;
}

}  // namespace emu
