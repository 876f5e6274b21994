// What a translated program says of each of its kernels: libcuda finds it by the symbol emu_kernel_<name>;
// emu_program_build is the build_id() of the emulator that translated the program.
#pragma once

#include "emulator/machine.hpp"

namespace emu {

struct Kernel {
  void (*run)(void** arguments);
  u32 arguments;
  const u32* argument_bytes;
  u32 most_threads, least_blocks;  // __launch_bounds__, 0 where it says nothing
  Dim cluster;                     // __cluster_dims__, x = 0 where it says nothing
  const u32* static_shared;        // of the program, all its kernels together
};

}  // namespace emu
