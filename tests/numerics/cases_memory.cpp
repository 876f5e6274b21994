// Poisoned memory for the numerics tests: tensors with gaps, workspaces with guards, copies of weights.
#include <algorithm>
#include <cstring>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "numerics/cases.hpp"

namespace ramp::core::test {
namespace {

constexpr uint64_t kGuard = 512;

}  // namespace

void for_rows(const ramp_tensor& t, const std::function<void(uint8_t*, int64_t)>& visit) {
  if (numel(t) == 0) return;
  const int64_t width = dtype_bytes(static_cast<ramp_dtype>(t.dtype));
  const int64_t last = t.ndim - 1;
  const int64_t rows = numel(t) / t.shape[last];
  for (int64_t r = 0; r < rows; ++r) {
    int64_t rest = r;
    int64_t at = 0;
    for (int64_t d = last - 1; d >= 0; --d) {
      at += rest % t.shape[d] * t.stride[d];
      rest /= t.shape[d];
    }
    visit(static_cast<uint8_t*>(t.data) + at * width, t.shape[last] * width);
  }
}

std::vector<uint8_t> bytes_of(const ramp_tensor& t) {
  std::vector<uint8_t> out;
  for_rows(t, [&](const uint8_t* row, int64_t bytes) { out.insert(out.end(), row, row + bytes); });
  return out;
}

OwnedTensor::OwnedTensor(ramp_dtype dtype, std::initializer_list<int64_t> shape, int64_t gap) {
  int64_t rows = 1;
  for (const int64_t extent : shape) rows *= extent;
  const int64_t columns = *(shape.end() - 1);
  rows = columns == 0 ? 0 : rows / columns;
  memory =
      AlignedBuffer(static_cast<uint64_t>(std::max<int64_t>(1, rows * (columns + gap)) * dtype_bytes(dtype)));
  view = make_tensor(memory.data(), dtype, shape);
  if (gap > 0) {
    int64_t stride = columns + gap;
    for (int32_t d = view.ndim - 2; d >= 0; --d) {
      view.stride[d] = stride;
      stride *= view.shape[d];
    }
  }
  poison();
}

void OwnedTensor::poison() noexcept {
  if (memory.size() > 0) std::memset(memory.data(), kPoison, memory.size());
}

bool OwnedTensor::gaps_intact() const {
  std::vector<bool> used(memory.size(), false);
  for_rows(view, [&](const uint8_t* row, int64_t bytes) {
    const auto at = row - memory.as<uint8_t>();
    std::fill(used.begin() + at, used.begin() + at + bytes, true);
  });
  for (size_t b = 0; b < used.size(); ++b) {
    if (!used[b] && memory.as<uint8_t>()[b] != kPoison) return false;
  }
  return true;
}

float OwnedTensor::get(int64_t row, int64_t col) const {
  return load_f32(view.data, static_cast<ramp_dtype>(view.dtype),
                  row * view.stride[0] + col * view.stride[1]);
}

void OwnedTensor::set(int64_t row, int64_t col, float value) {
  store_f32(view.data, static_cast<ramp_dtype>(view.dtype), row * view.stride[0] + col * view.stride[1],
            value);
}

GuardedWorkspace::GuardedWorkspace(uint64_t bytes) : memory_(bytes + 256 + kGuard), bytes_(bytes) {
  std::memset(memory_.data(), kPoison, memory_.size());
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  data_ = memory_.as<uint8_t>() + ((address + 255) / 256 * 256 - address);
}

bool GuardedWorkspace::guard_intact() const noexcept {
  uint8_t* const end = memory_.as<uint8_t>() + memory_.size();
  return std::all_of(data_ + bytes_, end, [](uint8_t b) { return b == kPoison; });
}

SyntheticWeights clone(const SyntheticWeights& source, ramp_ownership ownership) {
  SyntheticWeights c;
  c.w13 = AlignedBuffer(source.w13.size());
  c.w2 = AlignedBuffer(source.w2.size());
  std::memcpy(c.w13.data(), source.w13.data(), source.w13.size());
  std::memcpy(c.w2.data(), source.w2.data(), source.w2.size());
  c.w13_scale = source.w13_scale;
  c.w2_scale = source.w2_scale;
  c.w13_input_scale = source.w13_input_scale;
  c.w2_input_scale = source.w2_input_scale;
  c.desc = source.desc;
  c.desc.ownership = ownership;
  const auto point = [](ramp_tensor& t, void* data) {
    if (t.data != nullptr) t.data = data;
  };
  point(c.desc.w13, c.w13.data());
  point(c.desc.w2, c.w2.data());
  point(c.desc.w13_scale, c.w13_scale.data());
  point(c.desc.w2_scale, c.w2_scale.data());
  point(c.desc.w13_input_scale, c.w13_input_scale.data());
  point(c.desc.w2_input_scale, c.w2_input_scale.data());
  return c;
}

}  // namespace ramp::core::test
