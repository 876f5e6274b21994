// Storage types, models and oracles of the ABI tests; see support.hpp.
#include "abi/support.hpp"

#include <algorithm>
#include <array>
#include <numbers>

namespace abi_test {
namespace {

// Value of code `c` of a format with `e` exponent and `m` mantissa bits; finite codes only.
double small_float(uint32_t c, int e, int m) {
  const int bias = (1 << (e - 1)) - 1;
  const auto exponent = static_cast<int>((c >> m) & ((1U << e) - 1U));
  const double mantissa = static_cast<double>(c & ((1U << m) - 1U)) / (1 << m);
  return exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1.0 + mantissa, exponent - bias);
}

struct Kind {
  int e, m;
  uint32_t finite;  // largest finite positive code
  uint32_t nan;
};
Kind kind_of(int32_t dtype) {
  if (dtype == RAMP_BF16) return {8, 7, 0x7f7f, 0x7fc0};
  if (dtype == RAMP_F16) return {5, 10, 0x7bff, 0x7e00};
  return {4, 3, 0x7e, 0x7f};  // e4m3fn
}

uint32_t encode_small(int32_t dtype, float value) {
  const Kind k = kind_of(dtype);
  const uint32_t sign = std::signbit(value) ? 1U << (k.e + k.m) : 0U;
  if (std::isnan(value)) return k.nan | sign;
  const double v = std::fabs(static_cast<double>(value));
  uint32_t lo = 0;
  uint32_t hi = k.finite;
  if (v >= small_float(hi, k.e, k.m)) return hi | sign;
  while (hi - lo > 1) {
    const uint32_t mid = (lo + hi) / 2;
    (small_float(mid, k.e, k.m) <= v ? lo : hi) = mid;
  }
  const double below = v - small_float(lo, k.e, k.m);
  const double above = small_float(hi, k.e, k.m) - v;
  const bool up = above < below || (above == below && (lo & 1U) != 0);
  return (up ? hi : lo) | sign;
}

float decode_small(int32_t dtype, uint32_t code) {
  const Kind k = kind_of(dtype);
  const uint32_t sign = 1U << (k.e + k.m);
  const uint32_t magnitude = code & (sign - 1U);
  double v = 0;
  if (dtype == RAMP_E4M3) {
    v = magnitude == k.nan ? std::numeric_limits<double>::quiet_NaN() : small_float(magnitude, k.e, k.m);
  } else if (magnitude > k.finite) {
    v = magnitude == k.finite + 1 ? std::numeric_limits<double>::infinity()
                                  : std::numeric_limits<double>::quiet_NaN();
  } else {
    v = small_float(magnitude, k.e, k.m);
  }
  return static_cast<float>((code & sign) != 0 ? -v : v);
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

bool is_fp8(int32_t format) {
  return format == RAMP_FORMAT_FP8_BLOCK || format == RAMP_FORMAT_FP8_TENSOR ||
         format == RAMP_FORMAT_FP8_CHANNEL;
}

int32_t weight_dtype(int32_t format) {
  if (format == RAMP_FORMAT_BF16) return RAMP_BF16;
  if (format == RAMP_FORMAT_F16) return RAMP_F16;
  return format == RAMP_FORMAT_F32 ? RAMP_F32 : RAMP_E4M3;
}

}  // namespace

int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case RAMP_F64:
    case RAMP_I64:
      return 8;
    case RAMP_F32:
    case RAMP_I32:
      return 4;
    case RAMP_F16:
    case RAMP_BF16:
      return 2;
    default:
      return 1;
  }
}

float decode(int32_t dtype, const void* data, int64_t index) {
  if (dtype == RAMP_F32) return static_cast<const float*>(data)[index];
  if (dtype == RAMP_E4M3) return decode_small(dtype, static_cast<const uint8_t*>(data)[index]);
  return decode_small(dtype, static_cast<const uint16_t*>(data)[index]);
}

void encode(int32_t dtype, void* data, int64_t index, float value) {
  if (dtype == RAMP_F32) {
    static_cast<float*>(data)[index] = value;
  } else if (dtype == RAMP_E4M3) {
    static_cast<uint8_t*>(data)[index] = static_cast<uint8_t>(encode_small(dtype, value));
  } else {
    static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(encode_small(dtype, value));
  }
}

// 0xff everywhere is NaN in every floating type and -1 in the integers.
Array::Array(int32_t d, std::vector<int64_t> s)
    : dtype(d), shape(std::move(s)), bytes(static_cast<size_t>(size() * element_bytes(d)), std::byte{0xff}) {}

int64_t Array::size() const {
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  return n;
}

int64_t Array::get_int(int64_t i) const {
  return dtype == RAMP_I64 ? reinterpret_cast<const int64_t*>(bytes.data())[i]
                           : reinterpret_cast<const int32_t*>(bytes.data())[i];
}

void Array::set_int(int64_t i, int64_t v) {
  if (dtype == RAMP_I64)
    reinterpret_cast<int64_t*>(bytes.data())[i] = v;
  else
    reinterpret_cast<int32_t*>(bytes.data())[i] = static_cast<int32_t>(v);
}

ramp_tensor Array::view() const {
  return dtype == RAMP_DTYPE_NONE ? ramp_tensor{} : abi_test::view(bytes.data(), dtype, shape);
}

ramp_tensor view(const void* data, int32_t dtype, const std::vector<int64_t>& shape) {
  ramp_tensor t{};
  t.data = const_cast<void*>(data);
  t.dtype = dtype;
  for (const int64_t extent : shape) t.shape[t.ndim++] = extent;
  return t;
}

double unit(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0x9e3779b97f4a7c15ULL + index * 0xd1342543de82ef95ULL + 0x632be59bd9b4e019ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  z ^= z >> 31;
  return (static_cast<double>(z >> 11) + 0.5) * 0x1p-53;
}

double normal(uint64_t seed, uint64_t index) {
  return std::sqrt(-2.0 * std::log(unit(seed, 2 * index))) *
         std::cos(2.0 * std::numbers::pi * unit(seed, 2 * index + 1));
}

Context make_context(ramp_backend backend, int32_t threads) {
  ramp_context_options options = ramp_context_options_init();
  options.backend = backend;
  options.num_threads = threads;
  ramp_context* context = nullptr;
  EXPECT_EQ(ramp_context_create(&options, &context), RAMP_OK) << ramp_last_error();
  return Context(context);
}

Weights make_weights(const Context& context, const ramp_weights_desc& desc, bool packed) {
  ramp_weights* weights = nullptr;
  EXPECT_EQ(ramp_weights_create(context.get(), &desc, nullptr, &weights), RAMP_OK) << ramp_last_error();
  if (packed && weights != nullptr) {
    EXPECT_EQ(ramp_weights_pack(context.get(), weights, nullptr), RAMP_OK) << ramp_last_error();
  }
  return Weights(weights);
}

Scratch::Scratch(uint64_t bytes) : storage_(bytes + 256, std::byte{0xff}), bytes_(bytes) {
  data_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(storage_.data()) + 255) / 256 * 256);
}

Model::Model(int32_t f, int32_t a, int64_t e, int64_t h, int64_t i, uint64_t seed, bool exact)
    : format(f), activation(a), experts(e), hidden(h), intermediate(i) {
  const int64_t g = activation == RAMP_ACTIVATION_RELU2 ? 1 : 2;
  w13 = Array(weight_dtype(f), {e, rows13(), h});
  w2 = Array(weight_dtype(f), {e, h, i});
  const auto fill = [&](Array& w, uint64_t s, int64_t cols) {
    for (int64_t n = 0; n < w.size(); ++n) {
      const auto at = static_cast<uint64_t>(n);
      w.set(n, exact ? 0.0F
                     : static_cast<float>(normal(s, at) *
                                          (is_fp8(f) ? 64.0 : 1.0 / std::sqrt(static_cast<double>(cols)))));
    }
    // Exact: two values of +-1 per row, in different halves.
    for (int64_t row = 0; exact && row < w.size() / cols; ++row) {
      for (int64_t half = 0; half < 2; ++half) {
        const auto at = static_cast<uint64_t>(2 * row + half);
        const auto col =
            static_cast<int64_t>((unit(s, at) + static_cast<double>(half)) * 0.5 * static_cast<double>(cols));
        w.set(row * cols + col, unit(s + 1, at) < 0.5 ? -1.0F : 1.0F);
      }
    }
  };
  fill(w13, seed, h);
  fill(w2, seed + 10, i);
  if (f == RAMP_FORMAT_FP8_BLOCK) {
    w13_scale = Array(RAMP_F32, {e, g * ceil_div(i, 128), ceil_div(h, 128)});
    w2_scale = Array(RAMP_F32, {e, ceil_div(h, 128), ceil_div(i, 128)});
  } else if (f == RAMP_FORMAT_FP8_TENSOR) {
    w13_scale = Array(RAMP_F32, g == 2 ? std::vector<int64_t>{e, 2} : std::vector<int64_t>{e});
    w2_scale = Array(RAMP_F32, {e});
    w13_input_scale = Array(RAMP_F32, {1});
    w2_input_scale = Array(RAMP_F32, {1});
    w13_input_scale.set(0, exact ? 1.0F : 4.0F / 448.0F);
    w2_input_scale.set(0, exact ? 1.0F : 6.0F / 448.0F);
  } else if (f == RAMP_FORMAT_FP8_CHANNEL) {
    w13_scale = Array(RAMP_F32, {e, rows13()});
    w2_scale = Array(RAMP_F32, {e, h});
  }
  const auto scales = [&](Array& s, uint64_t stream, int64_t cols) {
    if (s.dtype == RAMP_DTYPE_NONE) return;
    for (int64_t n = 0; n < s.size(); ++n) {
      const double u = unit(stream, static_cast<uint64_t>(n));
      s.set(n, exact ? (u < 0.5 ? 1.0F : 2.0F)
                     : static_cast<float>((0.5 + u) / (64.0 * std::sqrt(static_cast<double>(cols)))));
    }
  };
  scales(w13_scale, seed + 20, h);
  scales(w2_scale, seed + 30, i);
}

ramp_weights_desc Model::desc(int32_t ownership) const {
  ramp_weights_desc d = ramp_weights_desc_init();
  d.format = format;
  d.activation = activation;
  d.ownership = ownership;
  d.num_experts = experts;
  d.hidden = hidden;
  d.intermediate = intermediate;
  d.w13 = w13.view();
  d.w2 = w2.view();
  d.w13_scale = w13_scale.view();
  d.w2_scale = w2_scale.view();
  d.w13_input_scale = w13_input_scale.view();
  d.w2_input_scale = w2_input_scale.view();
  return d;
}

double Model::w13_at(int64_t e, int64_t row, int64_t col) const {
  const double v = w13.get((e * rows13() + row) * hidden + col);
  if (format == RAMP_FORMAT_FP8_TENSOR)
    return v * w13_scale.get(w13_scale.shape.size() == 2 ? 2 * e + row / intermediate : e);
  return format == RAMP_FORMAT_FP8_CHANNEL ? v * w13_scale.get(e * rows13() + row) : v;
}

double Model::w2_at(int64_t e, int64_t row, int64_t col) const {
  const double v = w2.get((e * hidden + row) * intermediate + col);
  if (format == RAMP_FORMAT_FP8_TENSOR) return v * w2_scale.get(e);
  return format == RAMP_FORMAT_FP8_CHANNEL ? v * w2_scale.get(e * hidden + row) : v;
}

Call::Call(const Model& model, const ramp_weights* handle, int64_t tokens, int64_t k, uint64_t seed,
           bool exact, int32_t x_dtype, int32_t id_dtype, int32_t y_dtype)
    : x(x_dtype, {tokens, model.hidden}),
      ids(id_dtype, {tokens, k}),
      weights(RAMP_F32, {tokens, k}),
      y(y_dtype, {tokens, model.hidden}),
      args(ramp_expert_block_args_init()) {
  for (int64_t n = 0; n < x.size(); ++n) {
    const auto at = static_cast<uint64_t>(n);
    // Exact: -1, 0 or 1. Two weights of +-1 with a scale of 1 or 2 give |v| <= 4 and v^2 <= 16, which e4m3
    // still holds exactly.
    x.set(n, exact ? static_cast<float>(std::floor(unit(seed, at) * 3.0) - 1.0)
                   : static_cast<float>(normal(seed, at)));
  }
  for (int64_t t = 0; t < tokens; ++t) {
    // k different experts where there are that many.
    const auto first =
        static_cast<int64_t>(unit(seed + 1, static_cast<uint64_t>(t)) * static_cast<double>(model.experts));
    for (int64_t j = 0; j < k; ++j) {
      ids.set_int(t * k + j, (first + j) % model.experts);
      const double w = 0.25 * (1.0 + std::floor(unit(seed + 2, static_cast<uint64_t>(t * k + j)) * 4.0));
      weights.set(t * k + j, static_cast<float>(w));
    }
  }
  args.weights = handle;
  args.x = x.view();
  args.topk_ids = ids.view();
  args.topk_weights = weights.view();
  args.y = y.view();
}

void Call::per_slot() {
  y = Array(y.dtype, {tokens(), top_k(), x.shape[1]});
  args.y = y.view();
  args.output = RAMP_OUTPUT_PER_SLOT;
}

std::vector<double> exact_slots(const Model& m, const Call& c, const std::vector<int32_t>& map) {
  const int64_t k = c.top_k();
  std::vector<double> out(static_cast<size_t>(c.tokens() * k * m.hidden), 0.0);
  std::vector<double> h(static_cast<size_t>(m.intermediate));
  for (int64_t slot = 0; slot < c.tokens() * k; ++slot) {
    int64_t e = c.ids.get_int(slot);
    if (!map.empty()) e = e >= 0 && e < static_cast<int64_t>(map.size()) ? map[static_cast<size_t>(e)] : -1;
    if (e < 0 || e >= m.experts) continue;
    const double w = c.weights.get(slot);
    const bool on_input = c.args.router_weight_on_input != 0;
    for (int64_t i = 0; i < m.intermediate; ++i) {
      double v = 0;
      for (int64_t j = 0; j < m.hidden; ++j) {
        const double xv = c.x.get(slot / k * m.hidden + j);
        v += m.w13_at(e, i, j) * (on_input ? xv * w : xv);
      }
      h[static_cast<size_t>(i)] = v > 0 ? v * v : 0;
    }
    for (int64_t r = 0; r < m.hidden; ++r) {
      double v = 0;
      for (int64_t i = 0; i < m.intermediate; ++i) v += m.w2_at(e, r, i) * h[static_cast<size_t>(i)];
      out[static_cast<size_t>(slot * m.hidden + r)] = on_input ? v : v * w;
    }
  }
  return out;
}

std::vector<double> exact_combined(const Model& m, const Call& c, const std::vector<int32_t>& map) {
  const std::vector<double> slots = exact_slots(m, c, map);
  std::vector<double> out(static_cast<size_t>(c.tokens() * m.hidden), 0.0);
  for (int64_t slot = 0; slot < c.tokens() * c.top_k(); ++slot) {
    for (int64_t r = 0; r < m.hidden; ++r) {
      out[static_cast<size_t>(slot / c.top_k() * m.hidden + r)] +=
          slots[static_cast<size_t>(slot * m.hidden + r)];
    }
  }
  return out;
}

void expect_equal(const Array& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), static_cast<int64_t>(want.size()));
  for (int64_t i = 0; i < got.size(); ++i) {
    Array rounded(got.dtype, {1});
    rounded.set(0, static_cast<float>(want[static_cast<size_t>(i)]));
    ASSERT_EQ(got.get(i), rounded.get(0)) << "element " << i;
  }
}

double distance(const Array& a, const Array& b) {
  double diff = 0;
  double norm = 0;
  for (int64_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a.get(i)) - b.get(i);
    diff += d * d;
    norm += static_cast<double>(b.get(i)) * b.get(i);
  }
  return norm > 0 ? std::sqrt(diff / norm) : std::sqrt(diff);
}

// Two correct implementations differ in the order of fp32 sums: relative error eta per dot product of length
// n, of which ill-conditioned sums (sum of |terms| over |sum|, about sqrt(n) for random signs) see sqrt(n)
// times as much. Where that straddles a rounding boundary the intermediate is stored one code apart, a
// relative step s of its type. Of N intermediates about N*eta/s flip (Poisson: plus three standard deviations
// and three); their random signs add up to s*sqrt(flips/N) of the norm, at most about three times that where
// large ones flip.
double tolerance(const Model& m, int64_t tokens, int64_t top_k) {
  const double n = static_cast<double>(std::max(m.hidden, m.intermediate));
  const double eta = (n + 16) * 0x1p-24 * std::sqrt(n);
  const double s = is_fp8(m.format)               ? 0x1p-3
                   : m.format == RAMP_FORMAT_BF16 ? 0x1p-7
                   : m.format == RAMP_FORMAT_F16  ? 0x1p-10
                                                  : 0x1p-23;
  const double count = static_cast<double>(tokens * top_k * m.intermediate);
  const double expected = std::min(count, count * eta / s);
  const double flips = std::min(count, expected + 3 * std::sqrt(expected) + 3);
  return eta + 3 * s * std::sqrt(flips / count);
}

void expect_error(ramp_status got, ramp_status want, const std::vector<std::string>& parts) {
  EXPECT_EQ(got, want) << "message: " << ramp_last_error();
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(ramp_last_error()).find(part), std::string::npos)
        << "'" << part << "' is not in: " << ramp_last_error();
  }
}

const char* format_name(int32_t format) {
  constexpr std::array<const char*, 7> kNames = {"none", "fp8_block",  "bf16",       "f16",
                                                 "f32",  "fp8_tensor", "fp8_channel"};
  return kNames[static_cast<size_t>(format)];
}

const char* activation_name(int32_t activation) {
  constexpr std::array<const char*, 4> kNames = {"silu", "gelu", "gelu_tanh", "relu2"};
  return kNames[static_cast<size_t>(activation)];
}

}  // namespace abi_test
