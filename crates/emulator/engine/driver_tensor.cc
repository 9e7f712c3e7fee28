// Tensor maps: what the CUDA driver API documents of cuTensorMapEncodeTiled, and what of it the engine has.
#include "driver.h"
#include "tensors.h"

namespace emu {
namespace {

// Bytes of an element, by CUtensorMapDataType: u8, u16, u32, i32, u64, i64, f16, f32, f64, bf16. The types behind them
// change what they copy.
constexpr uint8_t kElements[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
constexpr int kTypes = 16;  // that CUDA 13 has
constexpr uint8_t kWidths[] = {0, 32, 64, 128};
constexpr int kSwizzles = 7, kPromotions = 4;

int refuse(int error, const char* what, unsigned long long value) {
    fault_outside_kernel("wrong tensor map", "", "%s: %llu", what, value);
    return error;
}

// What a caller may have asked for that CUDA has and the engine has not.
int check_kinds(int type, uint32_t dimensions, int interleave, int swizzle, int promotion, int fill) {
    if (type < 0 || type >= kTypes) return refuse(kInvalidValue, "no type of elements", unsigned(type));
    if (!dimensions || dimensions > kMostDimensions) return refuse(kInvalidValue, "1 to 5 dimensions", dimensions);
    if (interleave < 0 || interleave > 2) return refuse(kInvalidValue, "no interleaving", unsigned(interleave));
    if (swizzle < 0 || swizzle >= kSwizzles) return refuse(kInvalidValue, "no swizzle", unsigned(swizzle));
    if (promotion < 0 || promotion >= kPromotions) return refuse(kInvalidValue, "no promotion", unsigned(promotion));
    if (fill < 0 || fill > 1) return refuse(kInvalidValue, "no filling", unsigned(fill));
    if (type >= int(sizeof kElements)) return refuse(kNotSupported, "this type is not emulated", unsigned(type));
    if (interleave) return refuse(kNotSupported, "interleaving is not emulated", unsigned(interleave));
    if (swizzle >= int(sizeof kWidths)) return refuse(kNotSupported, "this swizzle is not emulated", unsigned(swizzle));
    if (fill) return refuse(kNotSupported, "filling with NaN is not emulated", unsigned(fill));
    return 0;
}

int encode(TensorMap& map, const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
           const uint32_t* element_strides) {
    if (map.address % 16) return refuse(kInvalidValue, "the address is no multiple of 16", map.address);
    for (uint32_t d = 0; d < map.dimensions; ++d) {
        if (!sizes[d] || sizes[d] > 1ull << 32) return refuse(kInvalidValue, "a dimension of 1 to 2^32", sizes[d]);
        if (!box[d] || box[d] > 256) return refuse(kInvalidValue, "a box of 1 to 256 elements", box[d]);
        if (!element_strides[d] || element_strides[d] > 8)
            return refuse(kInvalidValue, "an element stride of 1 to 8", element_strides[d]);
        // That of the first dimension is ignored.
        if (d && element_strides[d] > 1)
            return refuse(kNotSupported, "element strides are not emulated", element_strides[d]);
        map.last[d] = uint32_t(sizes[d] - 1);
        map.box[d] = uint16_t(box[d]);
        map.strides[d] = d ? strides[d - 1] : map.element;
        if (!d) continue;
        if (map.strides[d] % 16) return refuse(kInvalidValue, "a stride is no multiple of 16", map.strides[d]);
        if (map.strides[d] >= 1ull << 40) return refuse(kInvalidValue, "a stride is 2^40 or more", map.strides[d]);
        if (d == 1 && map.strides[1] < sizes[0] * map.element)
            return refuse(kInvalidValue, "a stride is less than the row", map.strides[1]);
        if (d > 1 && (map.strides[d] < map.strides[d - 1] || map.strides[d] % map.strides[d - 1]))
            return refuse(kInvalidValue, "a stride is no multiple of the one before", map.strides[d]);
    }
    const uint32_t row = box[0] * map.element;
    if (row % 16) return refuse(kInvalidValue, "a row of the box is no multiple of 16 bytes", row);
    if (map.width && row > map.width) return refuse(kInvalidValue, "a row of the box is wider than the swizzle", row);
    // What lies between such rows in shared memory is not documented.
    if (map.width && row < map.width)
        return refuse(kNotSupported, "a row of the box that is narrower than the swizzle is not emulated", row);
    seal_map(map);
    return 0;
}

}  // namespace
}  // namespace emu

using namespace emu;

EMU_API cuTensorMapEncodeTiled(void* to, int type, uint32_t dimensions, void* address, const uint64_t* sizes,
                               const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                               int interleave, int swizzle, int promotion, int fill) {
    EMU_ENTER;
    if (config.arch < 90) return kNotSupported;
    if (!to || !address || !sizes || !box || !element_strides || (dimensions > 1 && !strides))
        return refuse(kInvalidValue, "a pointer is null", 0);
    if (reinterpret_cast<uintptr_t>(to) % 64)
        return refuse(kInvalidValue, "the map's own address is no multiple of 64", reinterpret_cast<uintptr_t>(to));
    if (const int error = check_kinds(type, dimensions, interleave, swizzle, promotion, fill)) return error;
    TensorMap map = {};
    map.address = reinterpret_cast<uint64_t>(address);
    map.dimensions = uint8_t(dimensions);
    map.element = kElements[type];
    map.width = kWidths[swizzle];
    if (const int error = encode(map, sizes, strides, box, element_strides)) return error;
    memcpy(to, &map, sizeof map);
    return 0;
}
