// Folders of PTX files: one for each file of kernels, as nvcc writes them.
#include "library.h"

#include <dirent.h>
#include <unistd.h>

#include <cstdio>

namespace emu::ptx {
namespace {

struct Folder {
    std::map<std::string, std::unique_ptr<Module>> modules;  // by file
    std::map<std::string, Kernel*> kernels;
};
std::map<std::string, std::unique_ptr<Folder>> folders;

bool ends_in(const std::string& name, const char* ending) {
    const size_t n = strlen(ending);
    return name.size() > n && name.compare(name.size() - n, n, ending) == 0;
}

std::string contents(const std::string& path) {
    std::string text;
    FILE* f = fopen(path.c_str(), "rb");
    if (!f) return text;
    char chunk[1 << 16];
    while (const size_t n = fread(chunk, 1, sizeof chunk, f)) text.append(chunk, n);
    fclose(f);
    return text;
}

void read_file(Folder& folder, const std::string& path) {
    auto module = std::make_unique<Module>();
    std::string error;
    if (!parse_module(contents(path), *module, error)) {
        fault_outside_kernel("unsupported code", "", "%s: %s", path.c_str(), error.c_str());
        return;
    }
    for (auto& [name, kernel] : module->kernels) folder.kernels[name] = &kernel;
    folder.modules[path] = std::move(module);
}

// One that is `optional` may be absent.
Folder& open_folder(const std::string& path, bool optional) {
    std::unique_ptr<Folder>& folder = folders[path];
    if (folder) return *folder;
    folder = std::make_unique<Folder>();
    if (optional && access(path.c_str(), F_OK) != 0) return *folder;
    DIR* directory = opendir(path.c_str());
    if (!directory) {
        fault_outside_kernel("no code", "", "%s is no folder of PTX", path.c_str());
        return *folder;
    }
    while (const dirent* entry = readdir(directory)) {
        if (ends_in(entry->d_name, ".ptx")) read_file(*folder, path + "/" + entry->d_name);
    }
    closedir(directory);
    return *folder;
}

}  // namespace

Kernel* find_in_folder(const std::string& path, const std::string& name) {
    const auto find = [&](const Folder& folder) {
        auto found = folder.kernels.find(name);
        return found == folder.kernels.end() ? nullptr : found->second;
    };
    Kernel* of_card = find(open_folder(path + "/sm_" + std::to_string(config.arch), true));
    return of_card ? of_card : find(open_folder(path, false));
}

}  // namespace emu::ptx
