#include "tensors.h"

#include <cstring>

namespace emu {
namespace {

// FNV-1a over words.
uint64_t hash_of(const TensorMap& map) {
    uint64_t words[sizeof(TensorMap) / 8], hash = 0xcbf29ce484222325ull;
    memcpy(words, &map, sizeof words);
    for (size_t i = 1; i < sizeof words / 8; ++i) hash = (hash ^ words[i]) * 0x100000001b3ull;
    return hash;
}

}  // namespace

void seal_map(TensorMap& map) { map.seal = hash_of(map); }
bool is_map(const TensorMap& map) { return map.dimensions && map.seal == hash_of(map); }

uint64_t TensorBox::bytes() const {
    uint64_t total = map.element;
    for (uint32_t d = 0; d < map.dimensions; ++d) total *= map.box[d];
    return total;
}

}  // namespace emu
