// Asynchronous products of a warpgroup: wgmma. PTX ISA, section 9.7.15.
//
// Each of the four warps computes 16 of the 64 rows by itself, when it comes to the instruction (`early`) or waits for it
// (`late`). Until it has waited, its accumulators are not numbers, and what it multiplies must stay as it is.
#include <algorithm>

#include "decode.h"
#include "half.h"
#include "matrices.h"

namespace emu::ptx {
namespace {

constexpr uint32_t kRows = 16, kInner = 16, kChunk = 16;  // bytes of a chunk

// ---- matrices in shared memory

// A matrix descriptor: where chunks of 16 bytes lie. Offsets are in bytes.
struct Layout {
    uint32_t start, leading, stride, width;  // of the swizzled lines: 0, 32, 64 or 128 bytes
};

// A descriptor has the address modulo the size of the window, which is aligned to it as far as lines are swizzled.
Layout layout_of(Warp& w, const Instruction& in, uint64_t descriptor) {
    const auto field = [&](int bit) { return uint32_t(descriptor >> bit & 0x3fff) * 16; };
    static const uint32_t widths[] = {0, 128, 64, 32};
    const uint32_t window = uint32_t(reinterpret_cast<uintptr_t>(shared_window()));
    const uint32_t start = window + ((field(0) - window) & uint32_t(kSharedWindow - 1));
    if (descriptor >> 49 & 7) {
        select(w, 0);
        fatal(719, "unsupported code", in.site(), "a matrix descriptor with a base offset");
    }
    return {start, field(16), field(32), widths[descriptor >> 62]};
}

// The chunk of eight elements along the sum, of one row or column.
uint32_t chunk_along(const Layout& l, uint32_t line, uint32_t k) {
    const uint32_t at = line / 8 * l.stride;
    return swizzled(l.start + at + (l.width ? line % 8 * l.width + k / 8 * kChunk : line % 8 * kChunk + k / 8 * l.leading),
                    l.width);
}

// The chunk of eight rows or columns at one place of the sum.
uint32_t chunk_across(const Layout& l, uint32_t line, uint32_t k) {
    const uint32_t chunk = line / 8, wide = l.width / kChunk;
    return swizzled(l.start + (l.width ? chunk % wide * kChunk + chunk / wide * l.leading + k % 8 * l.width + k / 8 * l.stride
                                       : chunk * l.stride + k % 8 * kChunk + k / 8 * l.leading),
                    l.width);
}

template <class F>
void each_chunk(const Layout& l, bool across, uint32_t first, uint32_t lines, F visit) {
    if (across) {
        for (uint32_t k = 0; k < kInner; ++k) {
            for (uint32_t i = 0; i < lines; i += 8) visit(i, k, chunk_across(l, first + i, k));
        }
    } else {
        for (uint32_t i = 0; i < lines; ++i) {
            for (uint32_t k = 0; k < kInner; k += 8) visit(i, k, chunk_along(l, first + i, k));
        }
    }
}

// 16-bit numbers as they lie in a chunk: lines x 16 of them, or, where lines run fastest, 16 x lines.
void read_chunks(const Layout& l, bool across, uint32_t first, uint32_t lines, uint16_t* to) {
    each_chunk(l, across, first, lines, [&](uint32_t line, uint32_t k, uint32_t address) {
        memcpy(to + (across ? k * lines + line : line * kInner + k), reinterpret_cast<const void*>(uintptr_t(address)),
               kChunk);
    });
}

// rows x columns, both multiples of 8, as columns x rows.
void transpose(const uint16_t* from, uint32_t rows, uint32_t columns, uint16_t* to) {
    typedef uint16_t Eight __attribute__((vector_size(16)));
    for (uint32_t i = 0; i < rows; i += 8) {
        for (uint32_t j = 0; j < columns; j += 8) {
            Eight v[8], next[8];
            for (uint32_t r = 0; r < 8; ++r) v[r] = loaded<Eight>(from + (i + r) * columns + j);
            // Three times, rows r and r + 4 become one row whose elements take turns.
            for (int round = 0; round < 3; ++round) {
                for (int r = 0; r < 4; ++r) {
                    next[2 * r] = __builtin_shuffle(v[r], v[r + 4], Eight{0, 8, 1, 9, 2, 10, 3, 11});
                    next[2 * r + 1] = __builtin_shuffle(v[r], v[r + 4], Eight{4, 12, 5, 13, 6, 14, 7, 15});
                }
                memcpy(v, next, sizeof v);
            }
            for (uint32_t c = 0; c < 8; ++c) memcpy(to + (j + c) * rows + i, &v[c], sizeof v[c]);
        }
    }
}

// As doubles, in which products are exact.
void widen(const uint16_t* from, uint32_t count, bool bf16, double* to) {
    for (uint32_t i = 0; i < count; i += 8) {
        alignas(32) float eight[8];
        if (bf16) {
            widen_eight<true>(from + i, eight);
        } else {
            widen_eight<false>(from + i, eight);
        }
        for (uint32_t k = 0; k < 8; ++k) to[i + k] = eight[k];
    }
}

// Where a matrix may lie, from the first byte to the last: chunks are exchanged within eight lines.
bool surely_inside(const Layout& l, bool across, uint32_t first, uint32_t lines) {
    const uint32_t pattern = l.width ? 8 * l.width : kChunk, end = first + lines;
    const auto part = [](uint64_t count, uint64_t way) { return count * way; };
    const uint64_t farthest = across ? (l.width ? part((end / 8 - 1) / (l.width / kChunk), l.leading) + l.stride
                                                : part(end / 8 - 1, l.stride) + l.leading)
                                     : part(end / 8 - 1, l.stride) + (l.width ? 0 : l.leading);
    const uint64_t low = l.start / pattern * pattern, high = (l.start + farthest) / pattern * pattern + 2 * pattern;
    // Without a swizzle, eight rows of a chunk each lie behind it.
    return low >= block.shared_low && high + 8 * kChunk <= uint64_t(block.shared_low) + block.shared_bytes;
}

// In the name of the warp's first lane. A product reads between its issue and the wait for it: both are looked at.
void check_matrix(Warp& w, const Instruction& in, const Layout& l, bool across, uint32_t first, uint32_t lines) {
    if (surely_inside(l, across, first, lines)) {
        if (!run.checked) return;
    } else {
        each_chunk(l, across, first, lines,
                   [&](uint32_t, uint32_t, uint32_t address) { shared_at(w, in, 0, address, kChunk, kRead); });
    }
    if (!run.checked) return;
    select(w, 0);
    const auto check = [&](uint32_t address, uint32_t bytes) {
        const char* at = reinterpret_cast<const char*>(uintptr_t(address));
        check_access(at, bytes, kRead, in.site());
        checker_async_access(at, bytes, false, in.site());
    };
    // Both chunks of a line lie together, whichever comes first.
    if (!across && l.width && l.start % (2 * kChunk) == 0) {
        for (uint32_t i = 0; i < lines; ++i) check(chunk_along(l, first + i, 0) & ~(2 * kChunk - 1), 2 * kChunk);
        return;
    }
    each_chunk(l, across, first, lines, [&](uint32_t, uint32_t, uint32_t address) { check(address, kChunk); });
}

// ---- products

const Product& product_of(const Instruction& in) { return block.code->products[size_t(in.immediate)]; }

void check_operands(Warp& w, const PendingProduct& p) {
    const Product& product = product_of(*p.in);
    const uint32_t row = w.index % kGroupWarps * kRows;
    if (!product.a_in_registers) check_matrix(w, *p.in, layout_of(w, *p.in, p.a), product.across_a, row, kRows);
    check_matrix(w, *p.in, layout_of(w, *p.in, p.b), product.across_b, 0, product.columns);
}

// The numbers of a product. Of a, rows run fastest, and of b the places along the sum.
struct Numbers {
    alignas(32) double a[kInner][kRows], b[256][kInner];
};

// Registers of a: rows g and g + 8, then the same 8 further along the sum, two places each.
void read_registers(const Warp& w, const Product& product, uint16_t* a) {
    for (uint32_t part = 0; part < 4; ++part) {
        const uint16_t* halves = w.lanes<uint16_t>(product.a[part]);
        for (uint32_t g = 0; g < 8; ++g) memcpy(a + (8 * (part & 1) + g) * kInner + 8 * (part >> 1), halves + 8 * g, kChunk);
    }
}

void read_numbers(Warp& w, const PendingProduct& p, const Product& product, Numbers& n) {
    uint16_t read[256 * kInner], turned[256 * kInner];
    const uint32_t row = w.index % kGroupWarps * kRows;
    if (product.a_in_registers) {
        read_registers(w, product, read);
    } else {
        read_chunks(layout_of(w, *p.in, p.a), product.across_a, row, kRows, read);
    }
    const bool turn_a = product.a_in_registers || !product.across_a;
    if (turn_a) transpose(read, kRows, kInner, turned);
    widen(turn_a ? turned : read, kRows * kInner, product.bf16, &n.a[0][0]);
    if (product.negate_a != product.negate_b) {
        for (auto& rows : n.a) {
            for (double& x : rows) x = -x;
        }
    }
    read_chunks(layout_of(w, *p.in, p.b), product.across_b, 0, product.columns, read);
    if (product.across_b) transpose(read, kInner, product.columns, turned);
    widen(product.across_b ? turned : read, product.columns * kInner, product.bf16, &n.b[0][0]);
}

// Sums are added in ascending order in double and rounded once. Columns are few enough at a time for the registers.
void multiply_exactly(const Numbers& n, uint32_t columns, bool adds, float* sums) {
    constexpr uint32_t kTogether = 2, kParts = kRows / 4;
    for (uint32_t first = 0; first < columns; first += kTogether) {
        Four s[kTogether][kParts] = {};
        float* to = sums + first * kRows;
        if (adds) {
            for (uint32_t i = 0; i < kTogether * kParts; ++i)
                s[i / kParts][i % kParts] = __builtin_convertvector(loaded<FourFloats>(to + 4 * i), Four);
        }
        for (uint32_t k = 0; k < kInner; ++k) {
            const Four* a = reinterpret_cast<const Four*>(n.a[k]);
#pragma GCC unroll 2
            for (uint32_t c = 0; c < kTogether; ++c) {
                const double x = n.b[first + c][k];
#pragma GCC unroll 4
                for (uint32_t i = 0; i < kParts; ++i) s[c][i] += Four{x, x, x, x} * a[i];
            }
        }
        for (uint32_t i = 0; i < kTogether * kParts; ++i) store_row(to + 4 * i, s[i / kParts][i % kParts]);
    }
}

// Sums as tensor cores cut them, eight columns at a time.
void multiply_cut(const Numbers& n, const Product& product, bool adds, float* sums) {
    Operands m;
    for (uint32_t i = 0; i < kRows; ++i) {
        for (uint32_t k = 0; k < kInner; ++k) m.a[i][k] = float(n.a[k][i]);
    }
    for (uint32_t first = 0; first < product.columns; first += kN) {
        float* to = sums + first * kRows;
        for (uint32_t c = 0; c < kN; ++c) {
            for (uint32_t k = 0; k < kInner; ++k) m.b[k][c] = float(n.b[first + c][k]);
            for (uint32_t i = 0; i < kRows; ++i) m.c[i][c] = adds ? to[c * kRows + i] : 0.0f;
        }
        float d[kM][kN];
        multiply_cut_operands(m, product.bf16, d);
        for (uint32_t c = 0; c < kN; ++c) {
            for (uint32_t i = 0; i < kRows; ++i) to[c * kRows + i] = d[i][c];
        }
    }
}

void perform(Warp& w, const PendingProduct& p) {
    const Product& product = product_of(*p.in);
    static Numbers numbers;
    read_numbers(w, p, product, numbers);
    if (config.matrix_sums) {
        multiply_cut(numbers, product, p.adds, p.sums->data());
    } else {
        multiply_exactly(numbers, product.columns, p.adds, p.sums->data());
    }
}

// Place of a register's element among the sums, which lie column after column. Registers are as in mma.m16n8k16, four for
// eight columns.
size_t place_of(size_t part, uint32_t lane) {
    const size_t row = 8 * (part >> 1 & 1) + lane / 4, column = part / 4 * 8 + 2 * (lane % 4) + (part & 1);
    return column * kRows + row;
}

// The sums live beside their registers while products are in flight.
std::shared_ptr<std::vector<float>> take_sums(Warp& w, const Product& product) {
    for (PendingProduct& p : w.products) {
        if (product_of(*p.in).sums == product.sums) return p.sums;
    }
    auto sums = std::make_shared<std::vector<float>>(product.sums.size() * kWarp);
    for (size_t part = 0; part < product.sums.size(); ++part) {
        float* lanes = w.lanes<float>(product.sums[part]);
        for (uint32_t lane = 0; lane < kWarp; ++lane) (*sums)[place_of(part, lane)] = lanes[lane];
        std::fill_n(lanes, kWarp, bits_to_float(0x7fffffffu));
    }
    return sums;
}

void give_sums(Warp& w, const PendingProduct& p) {
    const Product& product = product_of(*p.in);
    for (size_t part = 0; part < product.sums.size(); ++part) {
        float* lanes = w.lanes<float>(product.sums[part]);
        for (uint32_t lane = 0; lane < kWarp; ++lane) lanes[lane] = (*p.sums)[place_of(part, lane)];
    }
}

// All lanes of the warp, and the value that they agree on.
uint64_t agreed(Warp& w, const Instruction& in, const uint64_t* lanes) {
    for (uint32_t i = 1; i < kWarp; ++i) {
        if (lanes[i] == lanes[0]) continue;
        select(w, i);
        fatal(719, "divergent warpgroup", in.site(), "lanes give the matrix descriptors %#lx and %#lx",
              (unsigned long)lanes[0], (unsigned long)lanes[i]);
    }
    return lanes[0];
}

// The four warps run the same products in the same order.
void check_group(Warp& w, const Instruction& in, uint64_t a, uint64_t b) {
    const uint32_t group = w.index / kGroupWarps;
    if ((group + 1) * kGroupWarps > block.warps.size())
        fatal(719, "divergent warpgroup", in.site(), "a warpgroup has four warps, %zu are there",
              block.warps.size() - group * kGroupWarps);
    if (block.products.size() <= group) block.products.resize(group + 1);
    std::vector<IssuedProduct>& list = block.products[group];
    const IssuedProduct mine{&in, a, b};
    if (list.size() == w.products_issued) list.push_back(mine);
    const IssuedProduct& first = list[w.products_issued++];
    if (first.in == mine.in && first.a == mine.a && first.b == mine.b) return;
    fault("divergent warpgroup", in.site(), "another warp of the group runs the product at %s%s in its place",
          first.in->site().text().c_str(), first.in == &in ? " with other matrices" : "");
}

Flow multiply(Warp& w, const Instruction& in, uint32_t mask) {
    if (!whole_warp(w, in, mask)) return Flow::stop;
    const Product& product = product_of(in);
    PendingProduct p;
    p.in = &in;
    p.a = product.a_in_registers ? 0 : agreed(w, in, w.lanes<uint64_t>(in.slot[0]));
    p.b = agreed(w, in, w.lanes<uint64_t>(in.slot[1]));
    p.group = w.product_groups;
    select(w, 0);
    check_group(w, in, p.a, p.b);
    if (!w.products_fenced)
        fault("missing fence", in.site(), "no wgmma.fence since registers of products were written");
    const uint32_t scale = w.predicate(in.slot[2]);
    if (scale != 0 && scale != kAll) fatal(719, "divergent warpgroup", in.site(), "lanes differ in scale-d");
    p.adds = scale != 0;
    check_operands(w, p);
    p.sums = take_sums(w, product);
    if (!config.late_copies) {
        perform(w, p);
        p.done = true;
    }
    run.counters->matrix_flops += 2 * kRows * kInner * product.columns;
    w.products.push_back(std::move(p));
    return Flow::next;
}

Flow fence(Warp& w, const Instruction& in, uint32_t mask) {
    if (!whole_warp(w, in, mask)) return Flow::stop;
    w.products_fenced = true;
    return Flow::next;
}

// No instruction of the kernel: it stands behind those that write a product's register.
Flow touch(Warp& w, const Instruction&, uint32_t) {
    w.products_fenced = false;
    block.uncounted += uint64_t(__builtin_popcount(w.mask));
    return Flow::next;
}

Flow commit(Warp& w, const Instruction& in, uint32_t mask) {
    if (!whole_warp(w, in, mask)) return Flow::stop;
    ++w.product_groups;
    return Flow::next;
}

Flow wait(Warp& w, const Instruction& in, uint32_t mask) {
    if (!whole_warp(w, in, mask)) return Flow::stop;
    // Groups end in their order, so what is done comes first.
    size_t done = 0;
    while (done < w.products.size() && int64_t(w.products[done].group) + in.immediate < int64_t(w.product_groups)) {
        PendingProduct& p = w.products[done++];
        if (run.checked) check_operands(w, p);
        if (!p.done) perform(w, p);
    }
    // Sums that later products go on with stay where they are.
    for (size_t i = 0; i < done; ++i) {
        bool last = true;
        for (size_t j = i + 1; j < w.products.size(); ++j) last &= w.products[j].sums != w.products[i].sums;
        if (last) give_sums(w, w.products[i]);
    }
    w.products.erase(w.products.begin(), w.products.begin() + long(done));
    return Flow::next;
}

}  // namespace

Handler product_handler() { return multiply; }
Handler touch_handler() { return touch; }

void enter_products(Table& table) {
    enter(table, "wgmma.fence.sync.aligned", {fence, ""});
    enter(table, "wgmma.commit_group.sync.aligned", {commit, ""});
    enter(table, "wgmma.wait_group.sync.aligned", {wait, "i"});
}

}  // namespace emu::ptx
