// What a compiled image says about its kernels.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace emu {

struct KernelImage {
    struct Parameter {
        uint32_t offset, size;
    };
    std::vector<Parameter> parameters;
    uint32_t parameter_base = 0;  // their place in the constant bank
    int registers = 0, max_threads = 1024, shared_bytes = 0, local_bytes = 0;
    uint32_t required[3] = {0, 0, 0};
};

struct Image {
    bool stub = false;  // no machine code: nothing is known of the kernels but their PTX
    int arch = 0;       // 80, 90, ...
    std::map<std::string, KernelImage> kernels;
    std::string ptx;    // the text, when the image has one that is not compressed
};

// 0 or a CUresult.
int read_image(const void* data, int device_arch, Image& image);

}  // namespace emu
