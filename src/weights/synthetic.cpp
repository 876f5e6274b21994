// The generator behind synthetic.hpp. One 64-bit draw gives five 12-bit indices into a table of normal
// quantiles that already holds codes of the storage type: about two operations per weight.
#include "weights/synthetic.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "weights/activation.hpp"
#include "weights/expert_weights.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

constexpr int kBits = 12;
constexpr size_t kEntries = size_t{1} << kBits;
constexpr int kPerDraw = 64 / kBits;
static_assert(kEntries == SyntheticMatrix::kCodes && kPerDraw == SyntheticMatrix::kPerDraw);

// Streams of one seed, so that no two tensors share draws.
enum Stream : uint64_t { kW13 = 1, kW2 = 2, kW13Spread = 3, kW2Spread = 4, kX = 5, kXSpread = 6, kPick = 7 };
uint64_t stream(uint64_t seed, uint64_t which) noexcept {
  return mix64(seed * 0x9e3779b97f4a7c15ULL + which);
}

// Quantile p of N(0,1): bisection on erfc, which is exact enough (1e-15) and needs no tabulated constants.
double normal_quantile(double p) {
  double low = -40.0;
  double high = 40.0;
  for (int step = 0; step < 70; ++step) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle / std::numbers::sqrt2) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

using Quantiles = std::array<float, kEntries>;
const Quantiles& quantiles() {
  static const Quantiles table = [] {
    Quantiles t{};
    for (size_t i = 0; i < kEntries / 2; ++i) {
      const double z = normal_quantile((static_cast<double>(i) + 0.5) / kEntries);
      t[i] = static_cast<float>(z);
      t[kEntries - 1 - i] = static_cast<float>(-z);
    }
    return t;
  }();
  return table;
}

AlignedBuffer code_table(ramp_dtype dtype, float factor) {
  AlignedBuffer codes(kEntries * static_cast<uint64_t>(dtype_bytes(dtype)));
  for (size_t i = 0; i < kEntries; ++i)
    store_f32(codes.data(), dtype, static_cast<int64_t>(i), quantiles()[i] * factor);
  return codes;
}

// Fills out[0, n) from the table; draw i of this stream belongs to elements [5i, 5i + 5).
template <typename T>
void fill_codes(T* out, int64_t n, const T* table, uint64_t key) noexcept {
  constexpr uint64_t kMask = kEntries - 1;
  uint64_t counter = key;
  int64_t i = 0;
  for (; i + kPerDraw <= n; i += kPerDraw) {
    const uint64_t r = mix64(counter++);
    for (int j = 0; j < kPerDraw; ++j) out[i + j] = table[(r >> (kBits * j)) & kMask];
  }
  const uint64_t r = mix64(counter);
  for (int j = 0; i < n; ++i, ++j) out[i] = table[(r >> (kBits * j)) & kMask];
}

void fill_row(const SyntheticMatrix& m, int64_t row, void* out) noexcept {
  const uint64_t key = random_u64(m.seed, static_cast<uint64_t>(row));
  switch (dtype_bytes(m.dtype)) {
    case 1:
      return fill_codes(static_cast<uint8_t*>(out), m.cols, m.codes.as<uint8_t>(), key);
    case 2:
      return fill_codes(static_cast<uint16_t*>(out), m.cols, m.codes.as<uint16_t>(), key);
    default:
      return fill_codes(static_cast<float*>(out), m.cols, m.codes.as<float>(), key);
  }
}

// The listed experts, one behind the other; one task per expert and strip of rows. Rows have streams of their
// own, so the result does not depend on the strips.
void fill_experts(const SyntheticMatrix& m, std::span<const int64_t> experts, void* out,
                  const ParallelFor& parallel) {
  constexpr int64_t kStrip = 64;
  const int64_t strips = (m.rows + kStrip - 1) / kStrip;
  const int64_t row_bytes = m.cols * dtype_bytes(m.dtype);
  parallel(static_cast<int64_t>(experts.size()) * strips, [&](int64_t task) {
    const int64_t at = task / strips;
    const int64_t first = task % strips * kStrip;
    for (int64_t r = first; r < std::min(m.rows, first + kStrip); ++r)
      fill_row(m, experts[static_cast<size_t>(at)] * m.rows + r,
               static_cast<std::byte*>(out) + (at * m.rows + r) * row_bytes);
  });
}

// Spread of one scale's range of values: 0.6 .. 1.5, mean of its square 1.17.
float spread(uint64_t seed, int64_t index) noexcept {
  return static_cast<float>(0.6 + 0.9 * random_unit(seed, static_cast<uint64_t>(index)));
}

// The largest quantile gets code 448, so a scale is deviation * largest / 448, times its random spread.
std::vector<float> make_scales(const ScaleShape& shape, float deviation, uint64_t seed) {
  int64_t count = 1;
  for (int32_t d = 0; d < shape.ndim; ++d) count *= shape.dims[d];
  std::vector<float> scales(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    scales[static_cast<size_t>(i)] = spread(seed, i) * deviation * quantiles().back() / kE4m3Max;
  return scales;
}

ramp_tensor scale_view(std::vector<float>& values, const ScaleShape& s) noexcept {
  ramp_tensor t{};
  t.data = values.data();
  t.dtype = RAMP_F32;
  t.ndim = s.ndim;
  std::copy(s.dims, s.dims + RAMP_MAX_DIMS, t.shape);
  return with_strides(t);
}

float deviation_of(int64_t fan_in) noexcept {
  return 1.0F / std::sqrt(static_cast<float>(fan_in));
}

// A row of w13 as numbers (fp8_tensor: scales [E] or [E,2]).
void row13(const SyntheticRecipe& s, int64_t expert, bool up, int64_t n, std::vector<float>& out) {
  const int64_t columns = s.desc.w13_scale.ndim == 2 ? 2 : 1;
  const float scale = s.w13_scale[static_cast<size_t>(expert * columns + (up ? columns - 1 : 0))];
  AlignedBuffer codes(static_cast<uint64_t>(s.w13.cols * dtype_bytes(s.w13.dtype)));
  fill_row(s.w13, expert * s.w13.rows + n + (up ? s.desc.intermediate : 0), codes.data());
  for (int64_t k = 0; k < s.w13.cols; ++k)
    out[static_cast<size_t>(k)] = static_cast<float>(
        static_cast<double>(load_f32(codes.data(), s.w13.dtype, k)) * static_cast<double>(scale));
}

// amax / 448 of a sample of activations and of the intermediates that they give, with the real weights.
void calibrate(SyntheticRecipe& s, uint64_t seed) {
  const auto activation = static_cast<ramp_activation>(s.desc.activation);
  constexpr int64_t kTokens = 8;
  constexpr int64_t kColumns = 128;
  const int64_t h = s.desc.hidden;
  std::vector<float> x(static_cast<size_t>(kTokens * h));
  fill_activations(x.data(), RAMP_F32, kTokens, h, seed);
  float amax = 0.0F;
  for (const float v : x) amax = std::max(amax, std::fabs(v));
  s.w13_input_scale[0] = amax_scale(amax);

  double largest = 0.0;
  std::vector<float> gate(static_cast<size_t>(h));
  std::vector<float> up(static_cast<size_t>(h));
  for (int64_t c = 0; c < kColumns; ++c) {
    const uint64_t pick = random_u64(stream(seed, kPick), static_cast<uint64_t>(c));
    const auto e = static_cast<int64_t>(pick % static_cast<uint64_t>(s.desc.num_experts));
    const auto n = static_cast<int64_t>((pick >> 32) % static_cast<uint64_t>(s.desc.intermediate));
    row13(s, e, false, n, gate);
    if (is_gated(activation)) row13(s, e, true, n, up);
    for (int64_t t = 0; t < kTokens; ++t) {
      double g = 0.0;
      double u = 0.0;
      for (int64_t k = 0; k < h; ++k) {
        g += static_cast<double>(x[static_cast<size_t>(t * h + k)]) * gate[static_cast<size_t>(k)];
        u += static_cast<double>(x[static_cast<size_t>(t * h + k)]) * up[static_cast<size_t>(k)];
      }
      largest = std::max(largest, std::fabs(activate(activation, g, u)));
    }
  }
  s.w2_input_scale[0] = amax_scale(static_cast<float>(largest));
}

void check_shape(const ModelShape& m) {
  for (const auto& [name, value, multiple] :
       {std::tuple{"experts", m.experts, int64_t{1}}, std::tuple{"hidden", m.hidden, int64_t{32}},
        std::tuple{"intermediate", m.intermediate, int64_t{32}}}) {
    if (value < 1 || value % multiple != 0)
      fail_argument(name, std::to_string(value), fmt::format("a positive multiple of {}", multiple));
  }
}

AlignedBuffer allocate(int64_t experts, int64_t rows, int64_t cols, int64_t width) {
  int64_t bytes = 0;
  if (__builtin_mul_overflow(rows, cols, &bytes) || __builtin_mul_overflow(bytes, experts, &bytes) ||
      __builtin_mul_overflow(bytes, width, &bytes))
    fail(RAMP_ERROR_OUT_OF_MEMORY, "host memory: the size of the weights overflows");
  return AlignedBuffer(static_cast<uint64_t>(bytes));
}

}  // namespace

void serial_for(int64_t num_tasks, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < num_tasks; ++i) task(i);
}

SyntheticRecipe make_synthetic_recipe(const ModelShape& model, ramp_format format, ramp_activation activation,
                                      const SyntheticWeightsOptions& options) {
  check_shape(model);
  const int64_t e = model.experts;
  const int64_t h = model.hidden;
  const int64_t i = model.intermediate;
  const int64_t n1 = w13_rows(i, activation);
  const ramp_dtype dtype = weight_dtype(format);
  if (dtype == RAMP_DTYPE_NONE) fail_argument("format", std::to_string(format), "a known weight format");
  const bool fp8 = dtype == RAMP_E4M3;
  const uint64_t seed = options.seed;

  SyntheticRecipe s;
  const float code = kE4m3Max / quantiles().back();
  s.w13 = {dtype, e, n1, h, stream(seed, kW13), code_table(dtype, fp8 ? code : deviation_of(h))};
  s.w2 = {dtype, e, h, i, stream(seed, kW2), code_table(dtype, fp8 ? code : deviation_of(i))};
  s.desc.format = format;
  s.desc.activation = activation;
  s.desc.ownership = RAMP_BORROW;
  s.desc.num_experts = e;
  s.desc.hidden = h;
  s.desc.intermediate = i;
  s.desc.w13 = make_tensor(nullptr, dtype, {e, n1, h});
  s.desc.w2 = make_tensor(nullptr, dtype, {e, h, i});
  if (!fp8) return s;

  ScaleShape shape13 = w13_scale_shape(format, activation, e, h, i);
  if (format == RAMP_FORMAT_FP8_TENSOR && is_gated(activation) && options.split_tensor_scale)
    shape13 = {2, {e, 2}};
  const ScaleShape shape2 = w2_scale_shape(format, e, h, i);
  s.w13_scale = make_scales(shape13, deviation_of(h), stream(seed, kW13Spread));
  s.w2_scale = make_scales(shape2, deviation_of(i), stream(seed, kW2Spread));
  s.desc.w13_scale = scale_view(s.w13_scale, shape13);
  s.desc.w2_scale = scale_view(s.w2_scale, shape2);
  if (format == RAMP_FORMAT_FP8_TENSOR) {
    s.w13_input_scale.assign(1, 1.0F);
    s.w2_input_scale.assign(1, 1.0F);
    s.desc.w13_input_scale = make_tensor(s.w13_input_scale.data(), RAMP_F32, {1});
    s.desc.w2_input_scale = make_tensor(s.w2_input_scale.data(), RAMP_F32, {1});
    calibrate(s, seed);
  }
  return s;
}

SyntheticWeights make_synthetic_experts(const SyntheticRecipe& recipe, std::span<const int64_t> experts,
                                        const ParallelFor& parallel) {
  const auto count = static_cast<int64_t>(experts.size());
  for (const int64_t e : experts)
    if (e < 0 || e >= recipe.desc.num_experts)
      fail_argument("experts", std::to_string(e), fmt::format("0 to {}", recipe.desc.num_experts - 1));
  SyntheticWeights s;
  s.desc = recipe.desc;
  s.desc.num_experts = count;
  const auto fill = [&](const SyntheticMatrix& m, AlignedBuffer& own, ramp_tensor& view) {
    own = allocate(count, m.rows, m.cols, dtype_bytes(m.dtype));
    fill_experts(m, experts, own.data(), parallel);
    view = make_tensor(own.data(), m.dtype, {count, m.rows, m.cols});
  };
  fill(recipe.w13, s.w13, s.desc.w13);
  fill(recipe.w2, s.w2, s.desc.w2);
  const auto take_scales = [&](const std::vector<float>& from, std::vector<float>& own, ramp_tensor& view) {
    if (from.empty()) return;
    const auto each = static_cast<std::ptrdiff_t>(from.size()) / recipe.desc.num_experts;
    for (const int64_t e : experts)
      own.insert(own.end(), from.begin() + e * each, from.begin() + (e + 1) * each);
    view.data = own.data();
    view.shape[0] = count;
  };
  take_scales(recipe.w13_scale, s.w13_scale, s.desc.w13_scale);
  take_scales(recipe.w2_scale, s.w2_scale, s.desc.w2_scale);
  const auto take_input = [](const std::vector<float>& from, std::vector<float>& own, ramp_tensor& view) {
    if (from.empty()) return;
    own = from;
    view.data = own.data();
  };
  take_input(recipe.w13_input_scale, s.w13_input_scale, s.desc.w13_input_scale);
  take_input(recipe.w2_input_scale, s.w2_input_scale, s.desc.w2_input_scale);
  return s;
}

SyntheticWeights make_synthetic_weights(const ModelShape& model, ramp_format format,
                                        ramp_activation activation, const SyntheticWeightsOptions& options) {
  const SyntheticRecipe recipe = make_synthetic_recipe(model, format, activation, options);
  std::vector<int64_t> all(static_cast<size_t>(model.experts));
  std::iota(all.begin(), all.end(), int64_t{0});
  return make_synthetic_experts(recipe, all, options.parallel);
}

float activation_spread(uint64_t seed, int64_t row) noexcept {
  return static_cast<float>(
      std::exp2(2.0 * random_unit(stream(seed, kXSpread), static_cast<uint64_t>(row)) - 1.0));
}

void fill_activations(void* x, ramp_dtype dtype, int64_t rows, int64_t cols, uint64_t seed,
                      const ParallelFor& parallel) {
  if (dtype != RAMP_F32 && dtype != RAMP_BF16 && dtype != RAMP_F16)
    fail_argument("dtype", dtype_name(dtype), "f32, bf16 or f16");
  parallel(rows, [&](int64_t r) {
    constexpr int64_t kChunk = 1024;
    std::array<float, kChunk> values{};
    const float deviation = activation_spread(seed, r);
    uint64_t key = random_u64(stream(seed, kX), static_cast<uint64_t>(r));
    for (int64_t first = 0; first < cols; first += kChunk) {
      const int64_t count = std::min(kChunk, cols - first);
      fill_codes(values.data(), count, quantiles().data(), key);
      key += kChunk;
      for (int64_t c = 0; c < count; ++c)
        store_f32(x, dtype, r * cols + first + c, values[static_cast<size_t>(c)] * deviation);
    }
  });
}

}  // namespace ramp::core
