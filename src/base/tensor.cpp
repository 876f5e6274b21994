// Names, sizes and checks of tensor views. Sizes saturate instead of overflowing: a hostile shape is
// reported, never wrapped.
#include "base/tensor.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <utility>

#include "base/error.hpp"

namespace ramp::core {
namespace {

constexpr std::array<std::pair<ramp_dtype, const char*>, 9> kDtypes = {{{RAMP_DTYPE_NONE, "none"},
                                                                        {RAMP_F32, "f32"},
                                                                        {RAMP_F16, "f16"},
                                                                        {RAMP_BF16, "bf16"},
                                                                        {RAMP_E4M3, "e4m3"},
                                                                        {RAMP_I32, "i32"},
                                                                        {RAMP_I64, "i64"},
                                                                        {RAMP_U8, "u8"},
                                                                        {RAMP_F64, "f64"}}};

int32_t safe_ndim(const ramp_tensor& t) noexcept {
  return t.ndim < 0 ? 0 : (t.ndim > RAMP_MAX_DIMS ? RAMP_MAX_DIMS : t.ndim);
}

bool zero_sized(const ramp_tensor& t) noexcept {
  for (int32_t d = 0; d < safe_ndim(t); ++d) {
    if (t.shape[d] == 0) return true;
  }
  return false;
}

std::string dims_text(const int64_t* dims, int64_t count) {
  std::string text = "[";
  for (int64_t d = 0; d < count; ++d) {
    if (d != 0) text += ", ";
    // In expectations -1 stands for "any"; in a tensor a negative extent is printed as it is.
    text += std::to_string(dims[d]);
  }
  return text + "]";
}

std::string expected_text(std::initializer_list<ramp_dtype> dtypes, std::initializer_list<int64_t> shape) {
  std::string text;
  size_t i = 0;
  for (const ramp_dtype d : dtypes) {
    if (i != 0) text += i + 1 == dtypes.size() ? " or " : ", ";
    text += dtype_name(d);
    ++i;
  }
  text += text.empty() ? "[" : " [";
  i = 0;
  for (const int64_t s : shape) {
    if (i++ != 0) text += ", ";
    text += s < 0 ? std::string("any") : std::to_string(s);
  }
  return text + "]";
}

std::string device_text(ramp_device d) {
  if (d.type == RAMP_DEVICE_CPU) return "cpu";
  if (d.type == RAMP_DEVICE_CUDA) return "cuda:" + std::to_string(d.index);
  return fmt::format("device type {}, index {}", d.type, d.index);
}

// True when the last byte of the view lies within the address space (all extents and strides non-negative).
bool extent_fits(const ramp_tensor& t) noexcept {
  int64_t last = 0;
  for (int32_t d = 0; d < safe_ndim(t); ++d) {
    if (t.shape[d] == 0) return true;
    int64_t step = 0;
    if (__builtin_mul_overflow(t.shape[d] - 1, t.stride[d], &step) ||
        __builtin_add_overflow(last, step, &last))
      return false;
  }
  int64_t bytes = 0;
  if (__builtin_add_overflow(last, int64_t{1}, &last) ||
      __builtin_mul_overflow(last, dtype_bytes(static_cast<ramp_dtype>(t.dtype)), &bytes))
    return false;
  uintptr_t end = 0;
  return !__builtin_add_overflow(reinterpret_cast<uintptr_t>(t.data), static_cast<uintptr_t>(bytes), &end);
}

}  // namespace

const char* dtype_name(int32_t dtype) noexcept {
  for (const auto& [value, name] : kDtypes) {
    if (value == dtype) return name;
  }
  thread_local std::array<char, 24> unknown;  // the caller formats it at once; one per thread is enough
  std::snprintf(unknown.data(), unknown.size(), "dtype(%d)", dtype);
  return unknown.data();
}

ramp_dtype parse_dtype(std::string_view name) {
  std::string known;
  for (const auto& [value, text] : kDtypes) {
    if (value == RAMP_DTYPE_NONE) continue;
    if (name == text) return value;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  if (name == "fp32" || name == "float32") return RAMP_F32;
  if (name == "fp16" || name == "float16") return RAMP_F16;
  if (name == "bfloat16") return RAMP_BF16;
  fail_argument("dtype", fmt::format("'{}'", name), "one of " + known);
}

std::string shape_text(const ramp_tensor& t) {
  if (t.ndim < 0 || t.ndim > RAMP_MAX_DIMS)
    return fmt::format("{} with ndim {}", dtype_name(t.dtype), t.ndim);
  return std::string(dtype_name(t.dtype)) + " " + dims_text(t.shape, t.ndim);
}

int64_t numel(const ramp_tensor& t) noexcept {
  if (zero_sized(t)) return 0;
  int64_t n = 1;
  for (int32_t d = 0; d < safe_ndim(t); ++d) {
    if (t.shape[d] < 0) return 0;
    if (__builtin_mul_overflow(n, t.shape[d], &n)) return INT64_MAX;
  }
  return n;
}

ramp_tensor with_strides(ramp_tensor t) noexcept {
  const int32_t ndim = safe_ndim(t);
  for (int32_t d = 0; d < ndim; ++d) {
    if (t.stride[d] != 0) return t;
  }
  int64_t stride = 1;
  for (int32_t d = ndim - 1; d >= 0; --d) {
    t.stride[d] = stride;
    if (t.shape[d] > 1 && __builtin_mul_overflow(stride, t.shape[d], &stride)) stride = INT64_MAX;
  }
  return t;
}

bool is_contiguous(const ramp_tensor& t) noexcept {
  if (zero_sized(t)) return true;
  const ramp_tensor s = with_strides(t);
  int64_t expected = 1;
  for (int32_t d = safe_ndim(t) - 1; d >= 0; --d) {
    if (s.shape[d] == 1) continue;  // the stride of a single row is never used
    if (s.stride[d] != expected) return false;
    if (__builtin_mul_overflow(expected, s.shape[d], &expected)) return false;
  }
  return true;
}

ramp_tensor make_tensor(const void* data, ramp_dtype dtype, std::initializer_list<int64_t> shape) noexcept {
  ramp_tensor t{};
  t.data = const_cast<void*>(data);  // ramp_tensor has one pointer for inputs and outputs
  t.dtype = dtype;
  for (const int64_t extent : shape) {
    if (t.ndim < RAMP_MAX_DIMS) t.shape[t.ndim++] = extent;
  }
  return with_strides(t);
}

ByteRange byte_range(const ramp_tensor& t) noexcept {
  if (t.data == nullptr || numel(t) == 0) return {};
  const ramp_tensor s = with_strides(t);
  const auto begin = reinterpret_cast<uintptr_t>(s.data);
  if (!extent_fits(s)) return {begin, UINTPTR_MAX};
  int64_t last = 0;
  for (int32_t d = 0; d < safe_ndim(s); ++d) last += (s.shape[d] - 1) * s.stride[d];
  return {begin, begin + static_cast<uintptr_t>((last + 1) * dtype_bytes(static_cast<ramp_dtype>(s.dtype)))};
}

ramp_tensor check_tensor(const ramp_tensor& t, std::string_view name,
                         std::initializer_list<ramp_dtype> dtypes, std::initializer_list<int64_t> shape,
                         ramp_device device) {
  const auto expected = [&] { return expected_text(dtypes, shape); };
  if (t.data == nullptr && t.ndim == 0 && t.dtype == RAMP_DTYPE_NONE && shape.size() != 0)
    fail_argument(name, "no tensor (data is NULL)", expected(), "this tensor is required");
  if (t.ndim < 0 || t.ndim > RAMP_MAX_DIMS) {
    fail_argument(name, fmt::format("ndim {}", t.ndim), expected(),
                  fmt::format("ndim must be 0..{}; was the struct initialised?", RAMP_MAX_DIMS));
  }
  bool dtype_ok = false;
  for (const ramp_dtype d : dtypes) dtype_ok = dtype_ok || d == t.dtype;
  bool shape_ok = static_cast<size_t>(t.ndim) == shape.size();
  int32_t d = 0;
  for (const int64_t extent : shape) {
    if (!shape_ok) break;
    shape_ok = t.shape[d] >= 0 && (extent < 0 || t.shape[d] == extent);
    ++d;
  }
  if (!dtype_ok || !shape_ok) {
    fail_argument(name, shape_text(t), expected(),
                  dtype_ok   ? "check the extents and their order"
                  : shape_ok ? "convert the data or correct the dtype field"
                             : "check dtype, extents and their order");
  }
  if (t.data == nullptr && !zero_sized(t)) {
    fail_argument(name, shape_text(t) + " with data NULL", expected() + " with data",
                  "pass a valid pointer; only a view with a zero-sized dimension may be NULL");
  }
  const ramp_tensor s = with_strides(t);
  for (int32_t i = 0; i < s.ndim; ++i) {
    if (s.stride[i] < 0) {
      fail_argument(name, "strides " + dims_text(s.stride, s.ndim), "strides >= 0 (in elements)",
                    "copy the data into row-major order first");
    }
  }
  if (s.ndim > 0 && s.shape[s.ndim - 1] > 1 && s.stride[s.ndim - 1] != 1) {
    fail_argument(name, "strides " + dims_text(s.stride, s.ndim), "a last stride of 1 (in elements)",
                  "make the last dimension contiguous, for example with a copy");
  }
  if (!extent_fits(s)) {
    fail_argument(name, shape_text(s) + " with strides " + dims_text(s.stride, s.ndim),
                  "a view that fits the address space", "check the extents and strides");
  }
  const auto element = static_cast<uintptr_t>(dtype_bytes(static_cast<ramp_dtype>(s.dtype)));
  if (element > 1 && reinterpret_cast<uintptr_t>(s.data) % element != 0) {
    fail_argument(name, fmt::format("data at {}", fmt::ptr(s.data)),
                  fmt::format("an address that is a multiple of the element size ({} bytes)", element),
                  "copy the data to an aligned buffer");
  }
  if (s.device.type != device.type || s.device.index != device.index) {
    fail_argument(name, "a tensor on " + device_text(s.device), "a tensor on " + device_text(device),
                  "copy it there, or use a context for the device that holds it");
  }
  return s;
}

}  // namespace ramp::core
