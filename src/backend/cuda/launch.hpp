// Launching a kernel whose only parameter is one struct, after its predecessor or (dependent) overlapping its
// end.
#pragma once

#include <cstdint>

#include "backend/cuda/driver.hpp"

namespace ramp::core::cuda {

struct Grid {
  uint64_t x = 1, y = 1;
  unsigned threads = 256;
  unsigned shared_bytes = 0;
};

template <typename Params>
void launch(CUfunction function, const Grid& grid, CUstream stream, const Params& params) {
  if (grid.x == 0 || grid.y == 0) return;
  void* arguments[] = {const_cast<Params*>(&params)};  // the driver copies it before it returns
  RAMP_CU(cuLaunchKernel, function, static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), 1U,
          grid.threads, 1U, 1U, grid.shared_bytes, stream, static_cast<void**>(arguments),
          static_cast<void**>(nullptr));
}

// The same, but the kernel may start before the one in front of it on the stream has ended: it waits itself
// (griddepcontrol.wait) before it touches what that one writes. From sm_90 on; elsewhere an ordinary launch.
template <typename Params>
void launch_dependent(bool supported, CUfunction function, const Grid& grid, CUstream stream,
                      const Params& params) {
  if (!supported) {
    launch(function, grid, stream, params);
    return;
  }
  if (grid.x == 0 || grid.y == 0) return;
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attribute.value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(grid.x);
  config.gridDimY = static_cast<unsigned>(grid.y);
  config.gridDimZ = 1;
  config.blockDimX = grid.threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = grid.shared_bytes;
  config.hStream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<Params*>(&params)};
  RAMP_CU(cuLaunchKernelEx, static_cast<const CUlaunchConfig*>(&config), function,
          static_cast<void**>(arguments), static_cast<void**>(nullptr));
}

inline constexpr uint64_t ceil_div(uint64_t a, uint64_t b) noexcept {
  return (a + b - 1) / b;
}

// Rows of this tensor begin where 16 bytes may be read at once: base and every row stride are multiples of 16
// bytes.
bool rows_aligned(const void* data, int64_t element_bytes, std::initializer_list<int64_t> strides) noexcept;

}  // namespace ramp::core::cuda
