// Helpers over ramp_tensor: names, sizes, construction, and the checks that every entry point shares.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/float_types.hpp"
#include "ramp/ramp.h"

namespace ramp::core {

const char* dtype_name(
    int32_t dtype) noexcept;  // "bf16", "f32", "e4m3", "i32", ... "dtype(99)" style for others
ramp_dtype parse_dtype(std::string_view name);  // throws Error
std::string shape_text(const ramp_tensor& t);   // "bf16 [4, 128]"
int64_t numel(const ramp_tensor& t) noexcept;   // product of shape (1 for ndim 0)
inline bool present(const ramp_tensor& t) noexcept {
  return t.data != nullptr;
}
bool is_contiguous(const ramp_tensor& t) noexcept;  // row-major without gaps (all-zero strides count)
ramp_tensor make_tensor(const void* data, ramp_dtype dtype,
                        std::initializer_list<int64_t> shape) noexcept;  // CPU, contiguous
// Fills all-zero strides with row-major ones, so that later code can use t.stride directly.
ramp_tensor with_strides(ramp_tensor t) noexcept;
// First and one-past-last byte that the view can touch ({0,0} for an empty view).
struct ByteRange {
  uintptr_t begin = 0, end = 0;
};
ByteRange byte_range(const ramp_tensor& t) noexcept;
inline bool overlaps(ByteRange a, ByteRange b) noexcept {
  return a.begin < b.end && b.begin < a.end;
}

// Throws unless t is present, has one of the dtypes, this shape (-1 = any), a unit last stride (when that
// dimension is > 1), non-negative strides, and lies on `device`. Returns with_strides(t). A view with a
// zero-sized dimension may have data == NULL.
ramp_tensor check_tensor(const ramp_tensor& t, std::string_view name,
                         std::initializer_list<ramp_dtype> dtypes, std::initializer_list<int64_t> shape,
                         ramp_device device);

}  // namespace ramp::core
