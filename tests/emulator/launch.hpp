// A kernel launch on the emulated GPU: what is run, with which extents, on how large a machine.
#pragma once

#include <string>

#include "emulator/machine.hpp"

namespace emu {

struct Launch {
  const char* name = "kernel";
  void (*run)(void** arguments) = nullptr;  // the kernel, called once by every thread
  void** arguments = nullptr;
  Dim grid, threads, cluster;
  u32 dynamic_shared = 0;
  u32 static_shared = 0;
  u32 multiprocessors = 4;
  u32 blocks_per_multiprocessor = 1;
};

// Runs it to its end. "" or the text of the fault that ended it (already on stderr).
std::string run(const Launch& launch);

// How device code finds the memory that a host gave out. libcuda answers; without it everything is inside.
using MemoryCheck = bool (*)(const void* p, u64 bytes);
void set_memory_check(MemoryCheck check);

}  // namespace emu
