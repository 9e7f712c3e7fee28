// Tensor maps, which cuTensorMapEncodeTiled writes, and the boxes that copies cut from tensors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace emu {

constexpr uint32_t kMostDimensions = 5;

// The 128 bytes of a map, in a format of the engine's own. The first dimension is the one whose elements lie together.
struct alignas(64) TensorMap {
    uint64_t seal;  // a hash of all that follows
    uint64_t address;
    uint64_t strides[kMostDimensions];  // bytes from one element to the next
    uint32_t last[kMostDimensions];     // the largest coordinate
    uint16_t box[kMostDimensions];      // elements
    uint8_t dimensions, element, width; // bytes of an element, and of swizzled lines: 0, 32, 64, 128
    uint8_t unused[39];
};
static_assert(sizeof(TensorMap) == 128);

void seal_map(TensorMap& map);
bool is_map(const TensorMap& map);  // whole, and as it was sealed

// What one copy brings: the elements from `at` on, zeros where the tensor has none.
struct TensorBox {
    TensorMap map;
    int32_t at[kMostDimensions];

    uint32_t row_bytes() const { return uint32_t(map.box[0]) * map.element; }
    uint64_t bytes() const;
};

// Visits the box's rows in the order in which they lie in shared memory: visit(zeros, source, bytes). A row begins with
// so many bytes of zeros and goes on with `bytes` of the source; the rest of it is zeros, too.
template <class F>
void each_row(const TensorBox& b, F visit) {
    const TensorMap& map = b.map;
    const auto limited = [&](int64_t x) { return std::clamp(x, int64_t(0), int64_t(map.box[0])); };
    const int64_t first = limited(-int64_t(b.at[0])), end = limited(int64_t(map.last[0]) + 1 - b.at[0]);
    const uint32_t zeros = uint32_t(first) * map.element;
    uint32_t index[kMostDimensions] = {};
    for (;;) {
        int64_t offset = (b.at[0] + first) * map.element;
        bool inside = first < end;
        for (uint32_t d = 1; d < map.dimensions; ++d) {
            const int64_t at = int64_t(b.at[d]) + index[d];
            inside &= at >= 0 && at <= int64_t(map.last[d]);
            offset += at * int64_t(map.strides[d]);
        }
        visit(zeros, map.address + uint64_t(offset), inside ? uint32_t(end - first) * map.element : 0);
        uint32_t d = 1;
        while (d < map.dimensions && ++index[d] == map.box[d]) index[d++] = 0;
        if (d >= map.dimensions) return;
    }
}

}  // namespace emu
