// Where the PTX of a kernel comes from.
#pragma once

#include "run.h"

namespace emu::ptx {

// The kernel of this name among the *.ptx files of a folder, which are read once; null when there is none.
Kernel* find_in_folder(const std::string& folder, const std::string& name);

}  // namespace emu::ptx
