// Merging loops, and choosing who copies.
#include "backend/cuda/strided_copy.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"
#include "base/tensor.hpp"

namespace ramp::core::cuda {

StridedCopy plan_copy(const ramp_tensor& from_view, const ramp_tensor& to_view) {
  const ramp_tensor from = with_strides(from_view);
  const ramp_tensor to = with_strides(to_view);
  bool same = from.dtype == to.dtype && from.ndim == to.ndim;
  for (int32_t d = 0; same && d < from.ndim; ++d)
    same = from.shape[d] == to.shape[d] && from.stride[d] >= 0 && to.stride[d] >= 0;
  if (!same)
    fail(RAMP_ERROR_INTERNAL, fmt::format("copy: got {} to {}, expected the same type and shape",
                                          shape_text(from), shape_text(to)));
  StridedCopy c;
  const auto element = static_cast<uint64_t>(dtype_bytes(static_cast<ramp_dtype>(from.dtype)));
  for (int32_t d = 0; d < from.ndim; ++d)
    if (from.shape[d] == 0) return c;
  c.run = element;
  for (int32_t d = from.ndim - 1; d >= 0; --d) {
    const auto n = static_cast<uint64_t>(from.shape[d]);
    const uint64_t to_stride = static_cast<uint64_t>(to.stride[d]) * element;
    const uint64_t from_stride = static_cast<uint64_t>(from.stride[d]) * element;
    if (n == 1) continue;
    if (c.loops == 0 && to_stride == c.run && from_stride == c.run) {
      c.run *= n;
      continue;
    }
    const int last = c.loops - 1;
    if (last >= 0 && to_stride == c.count[last] * c.to_stride[last] &&
        from_stride == c.count[last] * c.from_stride[last]) {
      c.count[last] *= n;
      continue;
    }
    c.count[c.loops] = n;
    c.to_stride[c.loops] = to_stride;
    c.from_stride[c.loops] = from_stride;
    ++c.loops;
  }
  return c;
}

int loops_of_3d_copy(const StridedCopy& c) noexcept {
  constexpr uint64_t kMaxPitch = (uint64_t{1} << 31) - 1;  // CU_DEVICE_ATTRIBUTE_MAX_PITCH of every GPU
  if (c.loops == 0) return 0;
  const auto pitch_fits = [&](uint64_t p) { return p >= c.run && p <= kMaxPitch; };
  if (!pitch_fits(c.to_stride[0]) || !pitch_fits(c.from_stride[0])) return 0;
  if (c.loops == 1) return 1;
  const auto plane_fits = [&](uint64_t plane, uint64_t pitch) {
    return plane % pitch == 0 && plane / pitch >= c.count[0];
  };
  return plane_fits(c.to_stride[1], c.to_stride[0]) && plane_fits(c.from_stride[1], c.from_stride[0]) ? 2 : 1;
}

CopyParameters copy_parameters(const StridedCopy& c, uint64_t to, uint64_t from, int& unit) noexcept {
  CopyParameters p{};
  p.to = to;
  p.from = from;
  p.rows = 1;
  uint64_t bits = c.run | to | from | 16;
  for (int i = 0; i < RAMP_MAX_DIMS; ++i) {
    p.count[i] = i < c.loops ? c.count[i] : 1;
    p.to_stride[i] = i < c.loops ? c.to_stride[i] : 0;
    p.from_stride[i] = i < c.loops ? c.from_stride[i] : 0;
    p.rows *= p.count[i];
    bits |= p.to_stride[i] | p.from_stride[i];
  }
  unit = static_cast<int>(bits & (~bits + 1));  // the lowest bit that is set anywhere
  p.units = c.run / static_cast<uint64_t>(unit);
  return p;
}

}  // namespace ramp::core::cuda
