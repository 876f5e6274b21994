// Host tensors of the CLI: owned memory with a view, read from .npy files with checked dtype and shape.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.hpp"
#include "base/tensor.hpp"
#include "ramp/ramp.h"

namespace ramp::cli {

struct HostTensor {
  core::AlignedBuffer data;
  ramp_tensor view{};  // all zero: absent
  [[nodiscard]] bool present() const noexcept { return view.ndim != 0; }
};

HostTensor make_host_tensor(ramp_dtype dtype, std::initializer_list<int64_t> shape);

// What a file must hold. shape: -1 stands for any extent, `names` for the text ("[T, H = 2048]").
struct Expected {
  std::vector<ramp_dtype> dtypes;
  std::vector<int64_t> shape;
  std::string text;
};
// Reads `path` for `option`. uint8 files count as e4m3 where that is among the dtypes. Throws Error: IO and
// BAD_FILE from the reader, INVALID_ARGUMENT "--x: got f32 [4, 64] in x.npy, expected ..." for others.
HostTensor read_tensor(std::string_view option, const std::string& path, const Expected& expected);

// Integer element (i32 or i64) at a flat index of a contiguous tensor.
int64_t integer_at(const ramp_tensor& t, int64_t index) noexcept;

}  // namespace ramp::cli
