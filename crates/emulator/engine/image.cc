// Reads the images that a module may be loaded from: a cubin, a fatbin of uncompressed cubins, PTX or a stub.
//
// A cubin is an ELF file. Per kernel, .nv.info.<name> lists attributes (format byte, attribute byte, 16-bit value or
// size): 0x17 one parameter each, 0x0a their place in the constant bank, 0x05 the launch bound, 0x10 a required block shape; .nv.info holds register counts
// (0x2f) and stack sizes (0x11, 0x23) by symbol; .nv.shared.<name> is static shared memory, on sm_90 with the 1 KiB
// that the system keeps. PTX is a text, alone or in a fatbin, where it is usually compressed and then not read. A stub
// is any text that starts with "ggro stub".
#include "image.h"

#include <elf.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace emu {
namespace {

constexpr uint16_t kCudaMachine = 190;
constexpr uint32_t kFatbinMagic = 0xba55ed50;

template <class T>
T at(const char* p, size_t offset = 0) {
    T v;
    memcpy(&v, p + offset, sizeof v);
    return v;
}

bool is_cubin(const char* p) {
    return memcmp(p, ELFMAG, SELFMAG) == 0 && at<uint16_t>(p, offsetof(Elf64_Ehdr, e_machine)) == kCudaMachine;
}

int cubin_arch(const char* p) {
    const uint32_t flags = at<uint32_t>(p, offsetof(Elf64_Ehdr, e_flags));
    // Toolkits from 13 on (ABI version 8) moved the architecture up by a byte.
    return int(static_cast<unsigned char>(p[EI_ABIVERSION]) >= 8 ? flags >> 8 & 0xff : flags & 0xff);
}

template <class F>
void each_attribute(const char* p, size_t bytes, F visit) {
    for (size_t i = 0; i + 4 <= bytes;) {
        const uint8_t format = uint8_t(p[i]), attribute = uint8_t(p[i + 1]);
        const uint16_t value = at<uint16_t>(p, i + 2);
        const size_t size = format == 4 ? value : 0;
        if (i + 4 + size > bytes) return;
        visit(attribute, value, p + i + 4, size);
        i += 4 + size;
    }
}

int read_cubin(const char* p, Image& image) {
    const Elf64_Ehdr header = at<Elf64_Ehdr>(p);
    image.arch = cubin_arch(p);
    std::vector<Elf64_Shdr> sections(header.e_shnum);
    for (size_t i = 0; i < sections.size(); ++i)
        sections[i] = at<Elf64_Shdr>(p, header.e_shoff + i * header.e_shentsize);
    const char* names = p + sections.at(header.e_shstrndx).sh_offset;
    std::vector<std::string> symbols;
    for (const Elf64_Shdr& s : sections) {
        const std::string name = names + s.sh_name;
        if (name.rfind(".text.", 0) == 0) image.kernels[name.substr(6)];
        if (s.sh_type != SHT_SYMTAB) continue;
        const char* strings = p + sections.at(s.sh_link).sh_offset;
        for (size_t i = 0; i < s.sh_size / sizeof(Elf64_Sym); ++i)
            symbols.push_back(strings + at<Elf64_Sym>(p, s.sh_offset + i * sizeof(Elf64_Sym)).st_name);
    }
    for (const Elf64_Shdr& s : sections) {
        const std::string name = names + s.sh_name;
        auto kernel_of = [&](const char* prefix) -> KernelImage* {
            if (name.rfind(prefix, 0) != 0) return nullptr;
            auto it = image.kernels.find(name.substr(strlen(prefix)));
            return it == image.kernels.end() ? nullptr : &it->second;
        };
        if (KernelImage* k = kernel_of(".nv.shared.")) k->shared_bytes = int(s.sh_size);
        if (KernelImage* k = kernel_of(".nv.info.")) {
            each_attribute(p + s.sh_offset, s.sh_size, [&](uint8_t attribute, uint16_t, const char* v, size_t size) {
                if (attribute == 0x17 && size >= 12) {
                    const uint16_t ordinal = at<uint16_t>(v, 4);
                    if (k->parameters.size() <= ordinal) k->parameters.resize(ordinal + 1u);
                    k->parameters[ordinal] = {at<uint16_t>(v, 6), at<uint32_t>(v, 8) >> 18};
                } else if (attribute == 0x05 && size >= 12) {
                    k->max_threads = int(at<uint32_t>(v, 0) * at<uint32_t>(v, 4) * at<uint32_t>(v, 8));
                } else if (attribute == 0x0a && size >= 6) {
                    k->parameter_base = at<uint16_t>(v, 4);
                } else if (attribute == 0x10 && size >= 12) {
                    memcpy(k->required, v, 12);
                }
            });
        }
        if (name == ".nv.info") {
            each_attribute(p + s.sh_offset, s.sh_size, [&](uint8_t attribute, uint16_t, const char* v, size_t size) {
                if (size < 8) return;
                const uint32_t symbol = at<uint32_t>(v);
                if (symbol >= symbols.size() || !image.kernels.count(symbols[symbol])) return;
                KernelImage& k = image.kernels[symbols[symbol]];
                if (attribute == 0x2f) k.registers = int(at<uint32_t>(v, 4));
                if (attribute == 0x11 || attribute == 0x23)
                    k.local_bytes = std::max(k.local_bytes, int(at<uint32_t>(v, 4)));
            });
        }
    }
    return 0;
}

bool is_ptx(const char* p) {
    const size_t space = strspn(p, " \t\r\n");
    return strncmp(p + space, "//", 2) == 0 || strncmp(p + space, ".version", 8) == 0;
}

bool runs_on(int arch, int device) { return arch / 10 == device / 10 && arch <= device; }

}  // namespace

int read_image(const void* data, int device_arch, Image& image) {
    const char* p = static_cast<const char*>(data);
    if (is_cubin(p)) {
        if (!runs_on(cubin_arch(p), device_arch)) return 209;  // CUDA_ERROR_NO_BINARY_FOR_GPU
        return read_cubin(p, image);
    }
    if (at<uint32_t>(p) == kFatbinMagic) {
        const size_t header = at<uint16_t>(p, 6), bytes = at<uint64_t>(p, 8);
        const char* best = nullptr;
        bool readable = true, text = false;
        for (size_t i = header; i + 24 <= header + bytes;) {
            const char* entry = p + i;
            const size_t head = at<uint32_t>(entry, 4), payload = at<uint64_t>(entry, 8);
            const int arch = at<int32_t>(entry, 28);
            if (at<uint16_t>(entry) == 2 && runs_on(arch, device_arch)) {
                if (!is_cubin(entry + head)) {
                    readable = false;  // compressed
                } else if (!best || cubin_arch(best) < arch) {
                    best = entry + head;
                }
            }
            if (at<uint16_t>(entry) == 1 && arch <= device_arch) {
                text = true;
                if (is_ptx(entry + head)) image.ptx.assign(entry + head, strnlen(entry + head, payload));
            }
            i += head + payload;
        }
        if (best) return read_cubin(best, image);
        if (readable && !text) return 209;
        image.stub = true;
        return 0;
    }
    if (strncmp(p, "ggro stub", 9) == 0 || is_ptx(p)) {
        if (is_ptx(p)) image.ptx = p;
        image.stub = true;
        return 0;
    }
    return 200;  // CUDA_ERROR_INVALID_IMAGE
}

}  // namespace emu
