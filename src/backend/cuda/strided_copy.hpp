// How a strided copy is made of what the driver and the copy kernel offer: pure arithmetic on shapes, so that
// it can be tested without a GPU.
#pragma once

#include <cstdint>

#include "ramp/ramp.h"

namespace ramp::core::cuda {

// A copy as nested loops over bytes: `run` bytes lie together on both sides, and loop 0 is the innermost.
// Loops of one step are left out, and loops that together walk one block on both sides are merged.
struct StridedCopy {
  static constexpr int kMaxLoops = RAMP_MAX_DIMS;
  uint64_t run = 0;  // 0: nothing to copy
  int loops = 0;
  uint64_t count[kMaxLoops] = {};
  uint64_t to_stride[kMaxLoops] = {}, from_stride[kMaxLoops] = {};  // bytes
};
// Same dtype and shape. Throws INTERNAL otherwise, and for negative strides.
StridedCopy plan_copy(const ramp_tensor& from, const ramp_tensor& to);

// How many of the inner loops (0..2) one three-dimensional copy of the driver takes: it wants pitches of at
// least a row, and a third dimension that is a multiple of the pitch.
int loops_of_3d_copy(const StridedCopy& c) noexcept;

// What the kernel takes by value (kernels/copy.cu has the same struct).
struct CopyParameters {
  uint64_t to, from;  // device addresses
  uint64_t rows;      // product of the counts
  uint64_t units;     // per row
  uint64_t count[RAMP_MAX_DIMS];
  uint64_t to_stride[RAMP_MAX_DIMS], from_stride[RAMP_MAX_DIMS];  // bytes
};
// Unit: the widest of 16, 8, 4, 2, 1 bytes that divides run, strides and addresses.
CopyParameters copy_parameters(const StridedCopy& c, uint64_t to, uint64_t from, int& unit) noexcept;

}  // namespace ramp::core::cuda
