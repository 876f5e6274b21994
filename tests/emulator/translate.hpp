// CUDA C++ into C++ for g++, by rewriting text: asm statements become calls of ptx.hpp, shared variables
// places in the block's shared memory, kernels functions that announce themselves (kernel.hpp). Small and
// strict: what it does not know is an error here or in the C++ compiler, never another meaning.
#pragma once

#include <string>
#include <string_view>

namespace emu {

// `source`: a program after the preprocessor (no comments, no directives but #pragma). Throws
// std::runtime_error with the place and what was expected there.
std::string translate(std::string_view source);

}  // namespace emu
