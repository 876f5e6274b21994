// Validation and construction of expert weights, and the accessors that every host consumer reads them
// through. One function (check_desc) holds all the rules; create and update differ only in what they compare
// with.
#include "weights/expert_weights.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

constexpr int64_t kMultiple = 32;  // of H and I: half a 64-byte line of e4m3, a k-step of every matrix unit
constexpr int64_t kMaxExtent = std::numeric_limits<int32_t>::max();  // keeps 2*I and row numbers in range

constexpr int64_t blocks(int64_t n) noexcept {
  return (n + kGroup - 1) / kGroup;
}

bool has_scales(ramp_format f) noexcept {
  return weight_dtype(f) == RAMP_E4M3;
}

void check_format(int32_t format) {
  if (weight_dtype(static_cast<ramp_format>(format)) != RAMP_DTYPE_NONE) return;
  fail_argument("desc.format", std::to_string(format),
                "fp8_block (1), bf16 (2), fp16 (3), f32 (4), fp8_tensor (5) or fp8_channel (6)",
                format >= 32 ? "formats from 32 on are not known to this version of ramp"
                             : "was the struct initialised with ramp_weights_desc_init()?",
                format >= 32 ? RAMP_ERROR_UNSUPPORTED : RAMP_ERROR_INVALID_ARGUMENT);
}

void check_extent(std::string_view name, int64_t value, int64_t multiple) {
  if (value < multiple || value > kMaxExtent) {
    fail_argument(name, std::to_string(value), fmt::format("{}..{}", multiple, kMaxExtent),
                  "check the order of num_experts, hidden and intermediate");
  }
  if (value % multiple != 0) {
    fail_argument(
        name, std::to_string(value), fmt::format("a multiple of {}", multiple),
        fmt::format("pad the weights with zeros to {}", (value + multiple - 1) / multiple * multiple));
  }
}

void check_in_range(std::string_view name, int32_t value, int32_t last, std::string_view expected) {
  if (value < 0 || value > last) fail_argument(name, std::to_string(value), expected);
}

// check_tensor for a scale of 1, 2 or 3 dimensions.
ramp_tensor check_scale(const ramp_tensor& t, std::string_view name, const ScaleShape& s,
                        ramp_device device) {
  switch (s.ndim) {
    case 1:
      return check_tensor(t, name, {RAMP_F32}, {s.dims[0]}, device);
    case 2:
      return check_tensor(t, name, {RAMP_F32}, {s.dims[0], s.dims[1]}, device);
    default:
      return check_tensor(t, name, {RAMP_F32}, {s.dims[0], s.dims[1], s.dims[2]}, device);
  }
}

void check_absent(const ramp_tensor& t, std::string_view name, ramp_format format) {
  if (!present(t)) return;
  fail_argument(name, shape_text(t), fmt::format("no tensor for format {}", format_name(format)),
                "leave it zero, or choose the format that has it");
}

float read_scalar(const ramp_tensor& t, DeviceAccess access) {
  if (access.memory == nullptr) return *static_cast<const float*>(t.data);
  float value = 0;
  access.memory->download(&value, t.data, sizeof value, access.stream);
  return value;
}

ramp_tensor check_input_scale(const ramp_tensor& t, std::string_view name, ramp_device device,
                              DeviceAccess access) {
  const ramp_tensor s = check_tensor(t, name, {RAMP_F32}, {1}, device);
  const float value = read_scalar(s, access);
  if (!std::isfinite(value) || !(value > 0.0F)) {
    fail_argument(name, fmt::format("{}", value), "a finite scale > 0",
                  "it multiplies the e4m3 codes of the activations: about amax / 448");
  }
  return s;
}

// pack rewrites w13 and w2 where they are, so they need memory of their own without gaps.
void check_in_place(const ramp_weights_desc& d) {
  struct Part {
    std::string_view name;
    const ramp_tensor* tensor;
  };
  const std::array<Part, 4> parts = {{{"desc.w13", &d.w13},
                                      {"desc.w2", &d.w2},
                                      {"desc.w13_scale", &d.w13_scale},
                                      {"desc.w2_scale", &d.w2_scale}}};
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!present(*parts[i].tensor)) continue;
    if (!is_contiguous(*parts[i].tensor)) {
      fail_argument(parts[i].name, "a view with gaps or another order",
                    "a contiguous row-major tensor (ownership RAMP_IN_PLACE)",
                    "use RAMP_COPY or RAMP_BORROW");
    }
    const ByteRange range = byte_range(*parts[i].tensor);
    for (size_t j = 0; j < i; ++j) {
      const ByteRange other = byte_range(*parts[j].tensor);
      if (!present(*parts[j].tensor) || !overlaps(range, other)) continue;
      fail_argument(parts[i].name,
                    fmt::format("bytes {:#x}..{:#x}, which overlap {} ({:#x}..{:#x})", range.begin, range.end,
                                parts[j].name, other.begin, other.end),
                    "memory of its own (ownership RAMP_IN_PLACE)", "use RAMP_COPY or RAMP_BORROW");
    }
  }
}

// All rules that hold for creation and update alike. Returns the descriptor with explicit strides; absent
// tensors become all zero.
ramp_weights_desc check_desc(const ramp_weights_desc& desc, ramp_device device, bool input_scales_required,
                             DeviceAccess access) {
  check_format(desc.format);
  check_in_range("desc.activation", desc.activation, RAMP_ACTIVATION_RELU2,
                 "silu_and_mul (0), gelu_and_mul (1), gelu_tanh_and_mul (2) or relu2 (3)");
  check_in_range("desc.ownership", desc.ownership, RAMP_IN_PLACE,
                 "RAMP_COPY (0), RAMP_BORROW (1) or RAMP_IN_PLACE (2)");
  if (desc.reserved != 0) {
    fail_argument("desc.reserved", std::to_string(desc.reserved), "0",
                  "initialise the struct with ramp_weights_desc_init()", RAMP_ERROR_UNSUPPORTED);
  }
  check_extent("desc.num_experts", desc.num_experts, 1);
  check_extent("desc.hidden", desc.hidden, kMultiple);
  check_extent("desc.intermediate", desc.intermediate, kMultiple);

  const auto format = static_cast<ramp_format>(desc.format);
  const auto activation = static_cast<ramp_activation>(desc.activation);
  const int64_t e = desc.num_experts;
  const int64_t h = desc.hidden;
  const int64_t i = desc.intermediate;
  ramp_weights_desc d = desc;
  d.w13 = check_tensor(desc.w13, "desc.w13", {weight_dtype(format)}, {e, w13_rows(i, activation), h}, device);
  d.w2 = check_tensor(desc.w2, "desc.w2", {weight_dtype(format)}, {e, h, i}, device);
  if (has_scales(format)) {
    ScaleShape s13 = w13_scale_shape(format, activation, e, h, i);
    if (format == RAMP_FORMAT_FP8_TENSOR && is_gated(activation) && desc.w13_scale.ndim == 2)
      s13 = {2, {e, 2}};
    d.w13_scale = check_scale(desc.w13_scale, "desc.w13_scale", s13, device);
    d.w2_scale = check_scale(desc.w2_scale, "desc.w2_scale", w2_scale_shape(format, e, h, i), device);
  } else {
    check_absent(desc.w13_scale, "desc.w13_scale", format);
    check_absent(desc.w2_scale, "desc.w2_scale", format);
    d.w13_scale = d.w2_scale = {};
  }
  if (format == RAMP_FORMAT_FP8_TENSOR) {
    if (input_scales_required || present(desc.w13_input_scale))
      d.w13_input_scale = check_input_scale(desc.w13_input_scale, "desc.w13_input_scale", device, access);
    if (input_scales_required || present(desc.w2_input_scale))
      d.w2_input_scale = check_input_scale(desc.w2_input_scale, "desc.w2_input_scale", device, access);
  } else {
    check_absent(desc.w13_input_scale, "desc.w13_input_scale", format);
    check_absent(desc.w2_input_scale, "desc.w2_input_scale", format);
    d.w13_input_scale = d.w2_input_scale = {};
  }
  return d;
}

ramp_tensor contiguous_like(const ramp_tensor& t, void* data) noexcept {
  ramp_tensor c = t;
  c.data = data;
  for (int64_t& stride : c.stride) stride = 0;
  return with_strides(c);
}

AlignedBuffer own_copy(ramp_tensor& t) {
  const int64_t elements = numel(t);
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements, dtype_bytes(static_cast<ramp_dtype>(t.dtype)), &bytes))
    fail(RAMP_ERROR_OUT_OF_MEMORY, "host memory: the size of the weights overflows");
  AlignedBuffer buffer(static_cast<uint64_t>(bytes));
  const ramp_tensor c = contiguous_like(t, buffer.data());
  copy_elements(t, c);
  t = c;
  return buffer;
}

std::vector<float> own_scale_copy(ramp_tensor& t) {
  std::vector<float> values(static_cast<size_t>(present(t) ? numel(t) : 0));
  if (values.empty()) return values;
  const ramp_tensor c = contiguous_like(t, values.data());
  copy_elements(t, c);
  t = c;
  return values;  // moved: the data pointer in t stays valid
}

// The same on a device; asynchronous. An absent tensor stays absent.
std::shared_ptr<void> device_copy(ramp_tensor& t, DeviceAccess access) {
  if (!present(t)) return nullptr;
  int64_t bytes = 0;
  if (__builtin_mul_overflow(numel(t), dtype_bytes(static_cast<ramp_dtype>(t.dtype)), &bytes))
    fail(RAMP_ERROR_OUT_OF_MEMORY, "device memory: the size of the weights overflows");
  std::shared_ptr<void> own = access.memory->allocate(static_cast<uint64_t>(bytes));
  const ramp_tensor c = contiguous_like(t, own.get());
  access.memory->copy(t, c, access.stream);
  t = c;
  return own;
}

void check_same(std::string_view name, int64_t got, int64_t expected) {
  if (got != expected) {
    fail_argument(name, std::to_string(got), fmt::format("{}, as in the weights handle", expected),
                  "an update keeps format, activation and shape; create a new handle for other ones");
  }
}

float scale_element(const ramp_tensor& t, int64_t a, int64_t b, int64_t c) noexcept {
  return static_cast<const float*>(t.data)[a * t.stride[0] + b * t.stride[1] + c * t.stride[2]];
}

double element_f64(const ramp_tensor& t, int64_t e, int64_t row, int64_t col) noexcept {
  return load_f32(t.data, static_cast<ramp_dtype>(t.dtype),
                  e * t.stride[0] + row * t.stride[1] + col * t.stride[2]);
}

}  // namespace

ScaleShape w13_scale_shape(ramp_format f, ramp_activation a, int64_t experts, int64_t hidden,
                           int64_t intermediate) noexcept {
  switch (f) {
    case RAMP_FORMAT_FP8_BLOCK:
      return {3, {experts, (is_gated(a) ? 2 : 1) * blocks(intermediate), blocks(hidden)}};
    case RAMP_FORMAT_FP8_TENSOR:
      return {1, {experts}};
    case RAMP_FORMAT_FP8_CHANNEL:
      return {2, {experts, w13_rows(intermediate, a)}};
    default:
      return {};
  }
}

ScaleShape w2_scale_shape(ramp_format f, int64_t experts, int64_t hidden, int64_t intermediate) noexcept {
  switch (f) {
    case RAMP_FORMAT_FP8_BLOCK:
      return {3, {experts, blocks(hidden), blocks(intermediate)}};
    case RAMP_FORMAT_FP8_TENSOR:
      return {1, {experts}};
    case RAMP_FORMAT_FP8_CHANNEL:
      return {2, {experts, hidden}};
    default:
      return {};
  }
}

void take_input_scales(ExpertWeights& w, const ramp_weights_desc& desc, DeviceAccess access) {
  if (present(desc.w13_input_scale)) w.w13_input_scale = read_scalar(desc.w13_input_scale, access);
  if (present(desc.w2_input_scale)) w.w2_input_scale = read_scalar(desc.w2_input_scale, access);
}

std::unique_ptr<ExpertWeights> make_expert_weights(const ramp_weights_desc& desc, ramp_device device,
                                                   DeviceAccess access) {
  const ramp_weights_desc d = check_desc(desc, device, true, access);
  if (d.ownership == RAMP_IN_PLACE) check_in_place(d);
  auto w = std::make_unique<ExpertWeights>();
  w->format = static_cast<ramp_format>(d.format);
  w->activation = static_cast<ramp_activation>(d.activation);
  w->ownership = static_cast<ramp_ownership>(d.ownership);
  w->experts = d.num_experts;
  w->hidden = d.hidden;
  w->intermediate = d.intermediate;
  w->device = device;
  w->w13 = d.w13;
  w->w2 = d.w2;
  w->w13_scale = d.w13_scale;
  w->w2_scale = d.w2_scale;
  take_input_scales(*w, d, access);
  if (w->ownership == RAMP_COPY && access.memory != nullptr) {
    w->device_w13 = device_copy(w->w13, access);
    w->device_w2 = device_copy(w->w2, access);
    w->device_w13_scale = device_copy(w->w13_scale, access);
    w->device_w2_scale = device_copy(w->w2_scale, access);
    access.memory->synchronize(access.stream);  // the caller may free its buffers when create returns
  } else if (w->ownership == RAMP_COPY) {
    w->own_w13 = own_copy(w->w13);
    w->own_w2 = own_copy(w->w2);
    w->own_w13_scale = own_scale_copy(w->w13_scale);
    w->own_w2_scale = own_scale_copy(w->w2_scale);
  }
  return w;
}

std::unique_ptr<ExpertWeights> upload_weights(const ExpertWeights& host, ramp_device device,
                                              DeviceAccess access) {
  auto w = std::make_unique<ExpertWeights>();
  w->format = host.format;
  w->activation = host.activation;
  w->ownership = RAMP_COPY;
  w->experts = host.experts;
  w->hidden = host.hidden;
  w->intermediate = host.intermediate;
  w->device = device;
  w->w13_input_scale = host.w13_input_scale;
  w->w2_input_scale = host.w2_input_scale;
  const auto upload = [&](const ramp_tensor& from, ramp_tensor& to) -> std::shared_ptr<void> {
    to = from;
    if (!present(from)) return nullptr;
    AlignedBuffer packed;  // only where the host's view has gaps
    ramp_tensor source = from;
    if (!is_contiguous(source)) packed = own_copy(source);
    const auto bytes = static_cast<uint64_t>(numel(from) * dtype_bytes(static_cast<ramp_dtype>(from.dtype)));
    std::shared_ptr<void> own = access.memory->allocate(bytes);
    access.memory->upload(own.get(), source.data, bytes, access.stream);
    access.memory->synchronize(access.stream);
    to = contiguous_like(from, own.get());
    to.device = device;
    return own;
  };
  w->device_w13 = upload(host.w13, w->w13);
  w->device_w2 = upload(host.w2, w->w2);
  w->device_w13_scale = upload(host.w13_scale, w->w13_scale);
  w->device_w2_scale = upload(host.w2_scale, w->w2_scale);
  return w;
}

ramp_weights_desc check_update(const ExpertWeights& target, int64_t first_expert,
                               const ramp_weights_desc& desc, DeviceAccess access) {
  check_same("desc.format", desc.format, target.format);
  check_same("desc.activation", desc.activation, target.activation);
  check_same("desc.hidden", desc.hidden, target.hidden);
  check_same("desc.intermediate", desc.intermediate, target.intermediate);
  ramp_weights_desc any_owner = desc;
  any_owner.ownership = RAMP_COPY;  // ignored by contract
  const ramp_weights_desc d = check_desc(any_owner, target.device, false, access);
  if (first_expert < 0 || first_expert >= target.experts) {
    fail_argument("first_expert", std::to_string(first_expert),
                  fmt::format("0..{}, the experts of the handle", target.experts - 1));
  }
  if (d.num_experts > target.experts - first_expert) {
    fail_argument("desc.num_experts", fmt::format("{} from expert {} on", d.num_experts, first_expert),
                  fmt::format("at most {} (the handle holds {} experts)", target.experts - first_expert,
                              target.experts));
  }
  if (d.w13_scale.ndim != target.w13_scale.ndim) {
    fail_argument("desc.w13_scale", shape_text(d.w13_scale),
                  target.w13_scale.ndim == 2 ? "[n, 2], a scale for gate and one for up, as in the handle"
                                             : "[n], one scale per expert, as in the handle");
  }
  return d;
}

ramp_tensor expert_range(ramp_tensor t, int64_t first, int64_t count) noexcept {
  if (t.data == nullptr || t.ndim < 1) return t;
  t.data =
      static_cast<std::byte*>(t.data) + first * t.stride[0] * dtype_bytes(static_cast<ramp_dtype>(t.dtype));
  t.shape[0] = count;
  return t;
}

void copy_elements(const ramp_tensor& from, const ramp_tensor& to) noexcept {
  if (numel(from) == 0) return;
  const auto width = static_cast<size_t>(dtype_bytes(static_cast<ramp_dtype>(from.dtype)));
  if (is_contiguous(from) && is_contiguous(to)) {
    std::memcpy(to.data, from.data, static_cast<size_t>(numel(from)) * width);
    return;
  }
  // Up to RAMP_MAX_DIMS = 4 dimensions, of which the last is copied as a row: pad with leading ones.
  std::array<int64_t, RAMP_MAX_DIMS> shape{1, 1, 1, 1};
  std::array<int64_t, RAMP_MAX_DIMS> src{};
  std::array<int64_t, RAMP_MAX_DIMS> dst{};
  for (int32_t d = 0; d < from.ndim; ++d) {
    const auto at = static_cast<size_t>(RAMP_MAX_DIMS - from.ndim + d);
    shape[at] = from.shape[d];
    src[at] = from.stride[d];
    dst[at] = to.stride[d];
  }
  const auto* source = static_cast<const std::byte*>(from.data);
  auto* target = static_cast<std::byte*>(to.data);
  for (int64_t a = 0; a < shape[0]; ++a) {
    for (int64_t b = 0; b < shape[1]; ++b) {
      for (int64_t c = 0; c < shape[2]; ++c) {
        std::memcpy(target + static_cast<size_t>(a * dst[0] + b * dst[1] + c * dst[2]) * width,
                    source + static_cast<size_t>(a * src[0] + b * src[1] + c * src[2]) * width,
                    static_cast<size_t>(shape[3]) * width);
      }
    }
  }
}

void update_scales(ExpertWeights& target, int64_t first_expert, const ramp_weights_desc& update) {
  if (target.ownership == RAMP_BORROW) {
    ramp_tensor s13 = target.w13_scale;
    ramp_tensor s2 = target.w2_scale;
    if (present(s13) && target.own_w13_scale.empty()) {
      std::vector<float> own13 = own_scale_copy(s13);
      std::vector<float> own2 = own_scale_copy(s2);
      target.own_w13_scale = std::move(own13);
      target.own_w2_scale = std::move(own2);
      target.w13_scale = s13;
      target.w2_scale = s2;
    }
  }
  if (present(target.w13_scale)) {
    copy_elements(update.w13_scale, expert_range(target.w13_scale, first_expert, update.num_experts));
    copy_elements(update.w2_scale, expert_range(target.w2_scale, first_expert, update.num_experts));
  }
  take_input_scales(target, update, {});
}

float w13_scale_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept {
  const bool up = w.gated() && row >= w.intermediate;
  switch (w.format) {
    case RAMP_FORMAT_FP8_BLOCK:
      return scale_element(w.w13_scale, e,
                           up ? blocks(w.intermediate) + (row - w.intermediate) / kGroup : row / kGroup,
                           col / kGroup);
    case RAMP_FORMAT_FP8_TENSOR:
      return scale_element(w.w13_scale, e, w.w13_scale.ndim == 2 && up ? 1 : 0, 0);
    case RAMP_FORMAT_FP8_CHANNEL:
      return scale_element(w.w13_scale, e, row, 0);
    default:
      return 1.0F;
  }
}

float w2_scale_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept {
  switch (w.format) {
    case RAMP_FORMAT_FP8_BLOCK:
      return scale_element(w.w2_scale, e, row / kGroup, col / kGroup);
    case RAMP_FORMAT_FP8_TENSOR:
      return scale_element(w.w2_scale, e, 0, 0);
    case RAMP_FORMAT_FP8_CHANNEL:
      return scale_element(w.w2_scale, e, row, 0);
    default:
      return 1.0F;
  }
}

double w13_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept {
  return element_f64(w.w13, e, row, col) * static_cast<double>(w13_scale_at(w, e, row, col));
}

double w2_at(const ExpertWeights& w, int64_t e, int64_t row, int64_t col) noexcept {
  return element_f64(w.w2, e, row, col) * static_cast<double>(w2_scale_at(w, e, row, col));
}

}  // namespace ramp::core
