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

// lines x 16 numbers.
void read_matrix(const Layout& l, bool across, uint32_t first, uint32_t lines, bool bf16, float* to) {
    each_chunk(l, across, first, lines, [&](uint32_t line, uint32_t k, uint32_t address) {
        uint16_t eight[8];
        memcpy(eight, reinterpret_cast<const void*>(uintptr_t(address)), sizeof eight);
        for (uint32_t i = 0; i < 8; ++i) {
            const float x = bf16 ? bf16_to_float(eight[i]) : f16_to_float(eight[i]);
            to[across ? (line + i) * kInner + k : line * kInner + k + i] = x;
        }
    });
}

// In the name of the warp's first lane. A product reads between its issue and the wait for it: both are looked at.
void check_matrix(Warp& w, const Instruction& in, const Layout& l, bool across, uint32_t first, uint32_t lines) {
    each_chunk(l, across, first, lines, [&](uint32_t, uint32_t, uint32_t address) {
        const char* at = shared_at(w, in, 0, address, kChunk, kRead);
        if (!run.checked) return;
        select(w, 0);
        check_access(at, kChunk, kRead, in.site());
        checker_async_access(at, kChunk, false, in.site());
    });
}

// ---- products

const Product& product_of(const Instruction& in) { return block.code->products[size_t(in.immediate)]; }

void check_operands(Warp& w, const PendingProduct& p) {
    const Product& product = product_of(*p.in);
    const uint32_t row = w.index % kGroupWarps * kRows;
    if (!product.a_in_registers) check_matrix(w, *p.in, layout_of(w, *p.in, p.a), product.across_a, row, kRows);
    check_matrix(w, *p.in, layout_of(w, *p.in, p.b), product.across_b, 0, product.columns);
}

// Row and column of a register's element, as in mma.m16n8k16, tile after tile of eight columns.
uint32_t row_of(uint32_t part, uint32_t lane) { return 8 * (part >> 1 & 1) + lane / 4; }
uint32_t column_of(uint32_t part, uint32_t lane) { return 2 * (lane % 4) + (part & 1); }

void read_registers(const Warp& w, const Product& product, float (&a)[kRows][kInner]) {
    for (uint32_t part = 0; part < 4; ++part) {
        const uint32_t* pairs = w.lanes<uint32_t>(product.a[part]);
        for (uint32_t lane = 0; lane < kWarp; ++lane) {
            const uint32_t row = 8 * (part & 1) + lane / 4, k = 8 * (part >> 1) + 2 * (lane % 4);
            for (uint32_t h = 0; h < 2; ++h) {
                const uint16_t bits = uint16_t(pairs[lane] >> 16 * h);
                a[row][k + h] = product.bf16 ? bf16_to_float(bits) : f16_to_float(bits);
            }
        }
    }
}

void perform(Warp& w, const PendingProduct& p) {
    const Product& product = product_of(*p.in);
    Operands m;
    if (product.a_in_registers) {
        read_registers(w, product, m.a);
    } else {
        const uint32_t row = w.index % kGroupWarps * kRows;
        read_matrix(layout_of(w, *p.in, p.a), product.across_a, row, kRows, product.bf16, &m.a[0][0]);
    }
    static float b[256][kInner];
    read_matrix(layout_of(w, *p.in, p.b), product.across_b, 0, product.columns, product.bf16, &b[0][0]);
    if (product.negate_a != product.negate_b) {
        for (auto& row : m.a) {
            for (float& x : row) x = -x;
        }
    }
    for (uint32_t tile = 0; tile < product.columns / 8; ++tile) {
        float* sums = p.sums->data() + size_t(tile) * 4 * kWarp;
        for (uint32_t n = 0; n < 8; ++n) {
            for (uint32_t k = 0; k < kInner; ++k) m.b[k][n] = b[8 * tile + n][k];
        }
        for (uint32_t part = 0; part < 4; ++part) {
            for (uint32_t lane = 0; lane < kWarp; ++lane)
                m.c[row_of(part, lane)][column_of(part, lane)] = p.adds ? sums[part * kWarp + lane] : 0.0f;
        }
        float d[kRows][8];
        multiply_operands(m, product.bf16, d);
        for (uint32_t part = 0; part < 4; ++part) {
            for (uint32_t lane = 0; lane < kWarp; ++lane)
                sums[part * kWarp + lane] = d[row_of(part, lane)][column_of(part, lane)];
        }
    }
}

// The sums live beside their registers while products are in flight.
std::shared_ptr<std::vector<float>> take_sums(Warp& w, const Product& product) {
    for (PendingProduct& p : w.products) {
        if (product_of(*p.in).sums == product.sums) return p.sums;
    }
    auto sums = std::make_shared<std::vector<float>>(product.sums.size() * kWarp);
    for (size_t i = 0; i < product.sums.size(); ++i) {
        float* lanes = w.lanes<float>(product.sums[i]);
        memcpy(sums->data() + i * kWarp, lanes, kWarp * sizeof(float));
        std::fill_n(lanes, kWarp, bits_to_float(0x7fffffffu));
    }
    return sums;
}

void give_sums(Warp& w, const PendingProduct& p) {
    const Product& product = product_of(*p.in);
    for (size_t i = 0; i < product.sums.size(); ++i)
        memcpy(w.lanes<float>(product.sums[i]), p.sums->data() + i * kWarp, kWarp * sizeof(float));
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
        check_operands(w, p);
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
