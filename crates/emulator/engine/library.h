// Where the PTX of a kernel comes from.
#pragma once

#include "run.h"

namespace emu::ptx {

// The kernel of this name among the *.ptx files of a folder, which are read once; null when there is none. Those in its subfolder for
// the card that the device looks like, `sm_90`, come first.
Kernel* find_in_folder(const std::string& folder, const std::string& name);

}  // namespace emu::ptx
