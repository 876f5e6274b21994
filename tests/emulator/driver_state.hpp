// What the parts of the emulated libcuda share: the device it plays, contexts, memory, streams that record.
#pragma once

#include <cuda.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator/machine.hpp"

namespace emu {

struct Device {
  int major = 9, minor = 0;
  int multiprocessors = 4;
  u64 memory_bytes = u64{16} << 30;
  int registers = 65536, threads = 2048, blocks = 32;  // of a multiprocessor
  int shared_per_block = static_cast<int>(kSharedBytes), shared_per_multiprocessor = 228 * 1024;
};
const Device& device();

// CUDA_SUCCESS, or why the calling thread can do nothing on the device: no context, or a fault has ended it.
CUresult ready();
void lose_context();
// Of calls that a stream which records does not bear (allocation, waiting on the host) unless the thread has
// relaxed the rule.
CUresult unless_capturing();

// ---- memory (driver_memory.cpp)
bool inside_memory(const void* p, u64 bytes);
// Reports bytes written behind the end of an allocation.
CUresult check_guards();

// ---- streams (driver_stream.cpp)
using Operation = std::function<CUresult()>;
// Runs `operation` now, or records it where the stream is being captured.
CUresult enqueue(CUstream stream, Operation operation);
bool any_capture();

}  // namespace emu
