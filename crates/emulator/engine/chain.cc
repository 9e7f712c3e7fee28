// Dependent launches that run early.
//
// A kernel that may begin before the one before it has ended runs here behind it all the same. But what its threads read
// before griddepcontrol.wait is what was there before the first kernel of the chain: the kernels before it may call
// griddepcontrol.launch_dependents first of all, so none of them need have done anything yet, not even have waited itself.
#include <algorithm>

#include "engine.h"

namespace emu {
namespace {

constexpr uint64_t kPage = 4096;

}  // namespace

void chain_begin(Chain& chain) { chain.pages.clear(); }

void chain_keep(const void* address, size_t bytes) {
    auto& pages = run.launch->chain->pages;
    const uint64_t begin = reinterpret_cast<uint64_t>(address);
    for (uint64_t page = begin / kPage; page * kPage < begin + bytes; ++page) {
        auto [place, fresh] = pages.try_emplace(page);
        if (!fresh) continue;
        place->second.reset(new char[kPage]);
        memcpy(place->second.get(), reinterpret_cast<const void*>(page * kPage), kPage);
    }
}

const void* chain_before(const void* address) {
    const uint64_t at = reinterpret_cast<uint64_t>(address);
    const auto& pages = run.launch->chain->pages;
    const auto found = pages.find(at / kPage);
    return found == pages.end() ? address : found->second.get() + at % kPage;
}

void chain_read(void* to, const void* from, size_t bytes) {
    char* target = static_cast<char*>(to);
    const char* source = static_cast<const char*>(from);
    while (bytes) {
        const size_t here = std::min(bytes, size_t(kPage - reinterpret_cast<uint64_t>(source) % kPage));
        memcpy(target, chain_before(source), here);
        target += here, source += here, bytes -= here;
    }
}

}  // namespace emu
