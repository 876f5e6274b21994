// Shapes of strided copies, and the copy element by element that all others must equal.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/tensor.hpp"

namespace ramp::cuda_test {

struct StridedCase {
  std::string name;
  std::vector<int64_t> shape, from, to;  // strides in elements; empty: row-major
};
inline std::vector<StridedCase> strided_cases() {
  return {{"scalar", {}, {}, {}},
          {"vector", {37}, {}, {}},
          {"empty", {4, 0, 3}, {}, {}},
          {"matrix", {5, 16}, {}, {}},
          {"ones", {1, 1, 7}, {100, 50, 1}, {3, 9, 1}},
          {"padded_rows", {5, 16}, {24, 1}, {16, 1}},
          {"padded_both", {5, 15}, {24, 1}, {17, 1}},
          {"three_merge", {3, 4, 8}, {64, 16, 1}, {32, 8, 1}},
          {"three_planes", {3, 4, 8}, {128, 16, 1}, {64, 12, 1}},
          {"three_3d", {3, 4, 8}, {80, 16, 1}, {60, 10, 1}},
          {"four", {2, 3, 4, 8}, {1000, 128, 16, 1}, {400, 100, 10, 1}},
          {"four_exact", {2, 3, 4, 8}, {960, 160, 16, 1}, {600, 120, 10, 1}},
          {"broadcast_rows", {6, 8}, {0, 1}, {8, 1}},
          {"broadcast_planes", {3, 4, 8}, {0, 16, 1}, {32, 8, 1}},
          {"swapped_rows", {3, 4, 8}, {8, 24, 1}, {32, 8, 1}},
          {"overlapping_windows", {6, 8}, {2, 1}, {8, 1}},
          {"columns", {6, 5}, {40, 8}, {5, 1}},
          {"one_column", {6, 1}, {40, 8}, {3, 7}}};
}

inline ramp_tensor tensor_of(void* data, ramp_dtype dtype, const std::vector<int64_t>& shape,
                             const std::vector<int64_t>& strides) {
  ramp_tensor t{};
  t.data = data;
  t.dtype = dtype;
  t.ndim = static_cast<int32_t>(shape.size());
  for (size_t d = 0; d < shape.size(); ++d) t.shape[d] = shape[d];
  for (size_t d = 0; d < strides.size(); ++d) t.stride[d] = strides[d];
  return core::with_strides(t);
}

// Bytes from the first element to the end of the last.
inline uint64_t span_of(const ramp_tensor& t) {
  int64_t last = 0;
  for (int32_t d = 0; d < t.ndim; ++d) {
    if (t.shape[d] == 0) return 0;
    last += (t.shape[d] - 1) * t.stride[d];
  }
  return static_cast<uint64_t>((last + 1) * core::dtype_bytes(static_cast<ramp_dtype>(t.dtype)));
}

inline void copy_elements(const ramp_tensor& from, const ramp_tensor& to) {
  const auto bytes = static_cast<size_t>(core::dtype_bytes(static_cast<ramp_dtype>(from.dtype)));
  for (int64_t i = 0; i < core::numel(from); ++i) {
    int64_t rest = i;
    int64_t a = 0;
    int64_t b = 0;
    for (int32_t d = from.ndim - 1; d >= 0; --d) {
      a += rest % from.shape[d] * from.stride[d];
      b += rest % from.shape[d] * to.stride[d];
      rest /= from.shape[d];
    }
    std::memcpy(static_cast<char*>(to.data) + static_cast<size_t>(b) * bytes,
                static_cast<const char*>(from.data) + static_cast<size_t>(a) * bytes, bytes);
  }
}

}  // namespace ramp::cuda_test
