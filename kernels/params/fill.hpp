// Parameters of kernels/bench/fill.cu, shared by host and device code: no includes, the language's own types.
#pragma once

namespace ramp::core::cuda {

struct FillParams {
  void* out;          // [rows, cols], contiguous
  const void* codes;  // [4096] elements of the same width
  unsigned long long seed;
  long long rows, cols;
};

}  // namespace ramp::core::cuda
