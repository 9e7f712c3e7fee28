// Warp collectives: shuffles, votes, ldmatrix, mma.
//
// Each lane deposits a request and waits; the last lane of the mask does the work for all, reading and writing through
// the requests into the other lanes' registers. None of these orders memory except __syncwarp.
#include "emu_half.h"
#include "engine.h"

namespace emu {
namespace {

typedef double Lanes __attribute__((vector_size(32)));

Thread* lane_of(Warp& warp, int lane) { return &threads[warp.index * kWarp + uint32_t(lane)]; }

const char* name_of(Request::Kind kind) {
    static const char* const names[] = {"syncwarp", "shuffle", "vote", "ldmatrix", "mma"};
    return names[kind];
}

void shuffle(Warp& warp, uint32_t lanes) {
    uint64_t values[kWarp];
    for (int i = 0; i < kWarp; ++i) values[i] = lanes >> i & 1 ? lane_of(warp, i)->request->value : ~uint64_t(0);
    for (int i = 0; i < kWarp; ++i) {
        if (!(lanes >> i & 1)) continue;
        Request& r = *lane_of(warp, i)->request;
        const int width = r.width, first = i & ~(width - 1);
        int from = i;
        switch (r.mode) {
            case EMU_SHUFFLE_INDEX: from = first + (r.argument & (width - 1)); break;
            case EMU_SHUFFLE_UP: from = i - r.argument < first ? i : i - r.argument; break;
            case EMU_SHUFFLE_DOWN: from = i + r.argument >= first + width ? i : i + r.argument; break;
            case EMU_SHUFFLE_XOR: from = (i ^ r.argument) >= first + width ? i : i ^ r.argument; break;
        }
        if (!(lanes >> from & 1)) {
            fault("undefined shuffle", r.site, "lane %d reads lane %d, which takes no part", i, from);
        }
        r.value = values[from];
    }
}

void ballot(Warp& warp, uint32_t lanes) {
    uint64_t bits = 0;
    for (int i = 0; i < kWarp; ++i) {
        if (lanes >> i & 1 && lane_of(warp, i)->request->value) bits |= uint64_t(1) << i;
    }
    for (int i = 0; i < kWarp; ++i) {
        if (lanes >> i & 1) lane_of(warp, i)->request->value = bits;
    }
}

// Lane 8m + r gives the address of row r of matrix m; register m of lane l receives two elements of row l / 4 (or, of
// the transposed matrix).
void load_matrices(Warp& warp) {
    const Request& first = *lane_of(warp, 0)->request;
    const int matrices = first.mode;
    uint16_t rows[32][8];
    uint32_t addresses[32] = {};
    Thread* const caller = self;
    for (int i = 0; i < 8 * matrices; ++i) {
        self = lane_of(warp, i);
        const Request& r = *self->request;
        if (r.address % 16)
            fatal(716, "misaligned access", r.site, "ldmatrix row at shared address %#x, not a multiple of 16",
                  r.address);
        const char* row = shared_pointer(r.address, 16, r.site);
        if (run.checked) check_access(row, 16, kRead | kNoTraffic, r.site);
        memcpy(rows[i], row, 16);
        addresses[i] = r.address;
    }
    self = caller;
    if (run.checked) traffic_matrix_rows(addresses, 8 * matrices);
    for (int l = 0; l < kWarp; ++l) {
        Request& r = *lane_of(warp, l)->request;
        for (int m = 0; m < matrices; ++m) {
            const int i = l / 4, j = 2 * (l % 4);
            const uint16_t low = r.argument ? rows[8 * m + j][i] : rows[8 * m + i][j];
            const uint16_t high = r.argument ? rows[8 * m + j + 1][i] : rows[8 * m + i][j + 1];
            r.registers[m] = uint32_t(high) << 16 | low;
        }
    }
}

template <int TYPE>
double element(uint16_t bits) {
    return TYPE == EMU_BF16 ? emu_bf16_to_float(bits) : emu_f16_to_float(bits);
}

// d += a b for every 16x8 tile. A product of two 16-bit elements is exact in double; the 16 products and d are added in
// ascending k in double and rounded to f32 once. Hardware truncates in its own way (see the README): results agree to
// the last bits of f32, not exactly.
template <int TYPE>
void multiply(Warp& warp) {
    Request* lanes[kWarp];
    for (int l = 0; l < kWarp; ++l) lanes[l] = lane_of(warp, l)->request;
    const int mi = lanes[0]->mi, ni = lanes[0]->ni;
    static std::vector<double> b;
    b.resize(size_t(ni) * 16 * 8);
    for (int n = 0; n < ni; ++n) {
        for (int l = 0; l < kWarp; ++l) {
            const int column = l / 4, k = 2 * (l % 4);
            for (int h = 0; h < 2; ++h) {
                const uint32_t pair = lanes[l]->b[2 * n + h];
                b[size_t((n * 16 + k + 8 * h) * 8 + column)] = element<TYPE>(uint16_t(pair));
                b[size_t((n * 16 + k + 8 * h + 1) * 8 + column)] = element<TYPE>(uint16_t(pair >> 16));
            }
        }
    }
    for (int m = 0; m < mi; ++m) {
        double a[16][16];
        for (int l = 0; l < kWarp; ++l) {
            const int row = l / 4, k = 2 * (l % 4);
            for (int h = 0; h < 4; ++h) {
                const uint32_t pair = lanes[l]->a[4 * m + h];
                const int i = row + 8 * (h & 1), j = k + 8 * (h >> 1);
                a[i][j] = element<TYPE>(uint16_t(pair));
                a[i][j + 1] = element<TYPE>(uint16_t(pair >> 16));
            }
        }
        for (int n = 0; n < ni; ++n) {
            const double* bn = b.data() + size_t(n) * 16 * 8;
            float* tile[16][4];  // the four lanes that hold a row, two columns each
            for (int i = 0; i < 16; ++i) {
                for (int q = 0; q < 4; ++q) tile[i][q] = lanes[(i % 8) * 4 + q]->d + (m * ni + n) * 4 + (i / 8) * 2;
            }
            for (int i = 0; i < 16; i += 4) {
                // Unrolled, or the sums would live in memory.
                Lanes sum[4][2];
#pragma GCC unroll 4
                for (int r = 0; r < 4; ++r) {
                    float** t = tile[i + r];
                    sum[r][0] = Lanes{t[0][0], t[0][1], t[1][0], t[1][1]};
                    sum[r][1] = Lanes{t[2][0], t[2][1], t[3][0], t[3][1]};
                }
                for (int k = 0; k < 16; ++k) {
                    Lanes left, right;
                    memcpy(&left, bn + k * 8, 32);
                    memcpy(&right, bn + k * 8 + 4, 32);
#pragma GCC unroll 4
                    for (int r = 0; r < 4; ++r) {
                        const double x = a[i + r][k];
                        const Lanes broadcast = {x, x, x, x};
                        sum[r][0] += broadcast * left;
                        sum[r][1] += broadcast * right;
                    }
                }
#pragma GCC unroll 4
                for (int r = 0; r < 4; ++r) {
                    for (int q = 0; q < 4; ++q) {
                        tile[i + r][q][0] = float(sum[r][q / 2][2 * (q % 2)]);
                        tile[i + r][q][1] = float(sum[r][q / 2][2 * (q % 2) + 1]);
                    }
                }
            }
        }
    }
}

void perform(Warp& warp, uint32_t mask) {
    const uint32_t lanes = mask & warp.live;
    const Request::Kind kind = lane_of(warp, __builtin_ctz(lanes))->request->kind;
    if (run.checked && lanes == warp.live) traffic_flush(warp);
    switch (kind) {
        case Request::sync:
            if (run.checked) checker_warp_sync(warp, lanes);
            break;
        case Request::shuffle: shuffle(warp, lanes); break;
        case Request::ballot: ballot(warp, lanes); break;
        case Request::ldmatrix: load_matrices(warp); break;
        case Request::mma:
            // Tiles of 16 x 8 x 16.
            run.counters->matrix_flops +=
                uint64_t(4096) * uint64_t(lane_of(warp, 0)->request->mi) * uint64_t(lane_of(warp, 0)->request->ni);
            if (lane_of(warp, 0)->request->mode == EMU_BF16) {
                multiply<EMU_BF16>(warp);
            } else {
                multiply<EMU_F16>(warp);
            }
            break;
    }
    static std::vector<Thread*> list;
    list.clear();
    for (int i = 0; i < kWarp; ++i) {
        Thread* t = lane_of(warp, i);
        if (!(lanes >> i & 1)) continue;
        t->request = nullptr;
        if (t != self || t->state == State::waiting) list.push_back(t);
    }
    make_ready_in_order(list);
}

void collective(Request& request) {
    Warp& warp = *self->warp;
    const uint32_t bit = 1u << self->lane;
    if (!(request.mask & bit))
        fatal(719, "warp mask", request.site, "the mask %#x of this %s does not name its own lane", request.mask,
              name_of(request.kind));
    if (request.kind >= Request::ldmatrix && warp.live != kAll) {
        fatal(719, "warp mask", request.site, "%s needs all 32 lanes, %d are there", name_of(request.kind),
              __builtin_popcount(warp.live));
    }
    self->request = &request;
    size_t g = 0;
    while (g < warp.groups.size() && warp.groups[g].mask != request.mask) ++g;
    if (g == warp.groups.size()) {
        warp.groups.push_back({request.mask, 0});
    } else {
        const Thread* other = lane_of(warp, __builtin_ctz(warp.groups[g].arrived));
        const Site& place = other->request->site;
        // Full-mask __syncwarp calls in different branches do meet, by definition; other instructions must be the same.
        const bool elsewhere = !place.same_place(request.site);
        if (other->request->kind != request.kind || (elsewhere && request.kind != Request::sync)) {
            fatal(719, "divergent warp", request.site, "%s meets the %s that lane %u waits for at %s",
                  name_of(request.kind), name_of(other->request->kind), other->lane, place.text().c_str());
        }
    }
    Warp::Group& group = warp.groups[g];
    group.arrived |= bit;
    if (group.arrived == (request.mask & warp.live)) {
        warp.groups.erase(warp.groups.begin() + long(g));
        if (config.schedule == Config::shuffle) {
            self->state = State::waiting;  // rejoins the others at a random place
            perform(warp, request.mask);
            yield_to_ready();
        } else {
            perform(warp, request.mask);
        }
    } else {
        wait_here(name_of(request.kind), request.site);
    }
}

}  // namespace

// A collective may have waited only for a lane that has now gone.
void warp_lane_exited(Warp& warp) {
    for (size_t g = 0; g < warp.groups.size(); ++g) {
        const Warp::Group group = warp.groups[g];
        if (group.arrived != (group.mask & warp.live)) continue;
        // Matrix instructions need every lane: the rest stay and are reported as a deadlock.
        if (lane_of(warp, __builtin_ctz(group.arrived))->request->kind >= Request::ldmatrix) continue;
        warp.groups.erase(warp.groups.begin() + long(g));
        perform(warp, group.mask);
        --g;
    }
}

}  // namespace emu

using namespace emu;

extern "C" {

void emu_syncwarp(unsigned mask, EMU_AT) {
    Request r{Request::sync, mask, {file, line}};
    collective(r);
}

uint64_t emu_shuffle(unsigned mask, uint64_t value, int kind, int argument, int width, EMU_AT) {
    Request r{Request::shuffle, mask, {file, line}};
    if (width < 1 || width > kWarp || (width & (width - 1)))
        fatal(719, "undefined shuffle", r.site, "width %d is not a power of two up to 32", width);
    r.value = value;
    r.mode = kind;
    r.argument = argument;
    r.width = width;
    collective(r);
    return r.value;
}

unsigned emu_ballot(unsigned mask, int predicate, EMU_AT) {
    Request r{Request::ballot, mask, {file, line}};
    r.value = predicate != 0;
    collective(r);
    return unsigned(r.value);
}

void emu_ldmatrix(uint32_t* registers, int matrices, bool transposed, uint32_t address, EMU_AT) {
    Request r{Request::ldmatrix, kAll, {file, line}};
    r.registers = registers;
    r.mode = matrices;
    r.argument = transposed;
    r.address = address;
    collective(r);
}

void emu_mma(float* d, const uint32_t* a, const uint32_t* b, int mi, int ni, int type, EMU_AT) {
    Request r{Request::mma, kAll, {file, line}};
    r.d = d;
    r.a = a;
    r.b = b;
    r.mi = mi;
    r.ni = ni;
    r.mode = type;
    collective(r);
}
}
