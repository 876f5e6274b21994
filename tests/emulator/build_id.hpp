// Which emulator translated a program: the two libraries agree on it, and a cached program of another one is
// refused, so that it is translated again.
#pragma once

#include <string>
#include <vector>

namespace emu {

// How the host's compiler is called on a translated program.
std::vector<std::string> compiler_options();
// A hash of the emulator's headers and of those options.
const std::string& build_id();

}  // namespace emu
