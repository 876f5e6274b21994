// See check.hpp.
#include "ladder/check.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "backend/reference/check.hpp"
#include "base/float_types.hpp"
#include "weights/quantize.hpp"

namespace ladder {
namespace {

namespace reference = ramp::core::reference;
using ramp::core::kGroup;

constexpr uint16_t kPoison = 0xffff;

// codes x scales (one per 128 columns), exact in fp64.
void decode(const uint8_t* codes, const float* scales, std::span<double> out) {
  static const std::array<double, 256> table = [] {
    std::array<double, 256> t{};
    for (size_t i = 0; i < t.size(); ++i)
      t[i] = static_cast<double>(ramp::core::e4m3_to_f32(static_cast<uint8_t>(i)));
    return t;
  }();
  for (size_t k = 0; k < out.size(); ++k)
    out[k] = table[codes[k]] * static_cast<double>(scales[k / static_cast<size_t>(kGroup)]);
}

}  // namespace

void add_samples(const HostRow& r, int64_t first, int64_t stride, std::vector<Sample>& samples) {
  const int64_t steps = r.hidden / kGroup;
  std::vector<double> x(static_cast<size_t>(r.hidden));
  std::vector<double> w(x.size());
  decode(r.x, r.x_scale, x);
  const auto sums = [&](int64_t row, int64_t scale_row) {
    decode(r.w13 + row * r.hidden, r.w13_scale + scale_row * steps, w);
    return reference::dot_sums(x.data(), w.data(), r.hidden);
  };
  for (int64_t c = first; c < r.intermediate; c += stride)
    samples.push_back(
        {r.row, c, sums(c, c / kGroup), sums(r.intermediate + c, (r.intermediate + c) / kGroup)});
}

Verdict judge(std::span<const Sample> samples, std::span<const uint16_t> h, int64_t hidden,
              int64_t intermediate, double tensor_unit) {
  Verdict v;
  double difference = 0;
  double norm = 0;
  const auto depth = static_cast<double>(hidden);
  for (const Sample& s : samples) {
    const reference::Uncertain want = reference::fp32_activation(
        RAMP_ACTIVATION_SILU_AND_MUL, reference::fp32_dot(s.gate, depth, tensor_unit),
        reference::fp32_dot(s.up, depth, tensor_unit));
    const auto got =
        static_cast<double>(ramp::core::bf16_to_f32(h[static_cast<size_t>(s.row * intermediate + s.column)]));
    const double off = std::fabs(got - want.value);
    // The rigorous bound and the statistical one, each with half a spacing of bf16 where the value may lie.
    for (const double d : {want.error, ramp::core::kCheckSigmas * want.sigma}) {
      const double bound = d + reference::half_spacing(RAMP_BF16, std::fabs(want.value) + d);
      v.ratio = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(v.ratio, off / bound);
    }
    difference += off * off;
    norm += want.value * want.value;
  }
  v.relative_error = std::sqrt(difference / norm);
  v.unwritten = std::count(h.begin(), h.end(), kPoison);
  return v;
}

}  // namespace ladder
