// What the library can compile: the programs that its parts contribute, and the embedded files that a program
// is made of.
#pragma once

#include <string>
#include <vector>

#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

// Whether the program is for this architecture: its min_arch or newer; 90 alone where min_arch is 90, since
// sm_90a has instructions that no other architecture has.
bool compiles_for(const KernelProgram& program, int arch) noexcept;

// The program's source, then every embedded file that it includes, directly or not, by name. Files that are
// not embedded are left to the compiler's complaint. Throws INTERNAL where the source itself is not embedded.
std::vector<EmbeddedFile> files_of(const KernelProgram& program);

// Device memory's strided copy (kernels/copy.cu).
std::vector<KernelProgram> copy_programs(int arch);

}  // namespace ramp::core::cuda
