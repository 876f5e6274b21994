// GEMM1's and GEMM2's inputs against the host's quantisation and conversions, bit for bit: every format, x
// type, alignment and stride, router weights on the input, pre-quantised x, the batched entry; NaN, infinity,
// zeros and subnormals among the values.
#include <fmt/format.h>

#include <bit>
#include <limits>

#include "base/float_types.hpp"
#include "gpu/prologue_support.hpp"
#include "weights/quantize.hpp"

namespace ramp::gpu_test {
namespace {

constexpr ramp_format kFormats[] = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL,
                                    RAMP_FORMAT_BF16,      RAMP_FORMAT_F16,        RAMP_FORMAT_F32};
constexpr ramp_dtype kTypes[] = {RAMP_BF16, RAMP_F16, RAMP_F32};

bool is_fp8(ramp_format f) {
  return f == RAMP_FORMAT_FP8_BLOCK || f == RAMP_FORMAT_FP8_TENSOR || f == RAMP_FORMAT_FP8_CHANNEL;
}
ramp_dtype target_of(ramp_format f) {
  return f == RAMP_FORMAT_BF16  ? RAMP_BF16
         : f == RAMP_FORMAT_F16 ? RAMP_F16
         : f == RAMP_FORMAT_F32 ? RAMP_F32
                                : RAMP_E4M3;
}

// Row r, column c of a matrix that holds a bit of everything. Rows differ in scale; some have specials.
float value(uint64_t seed, int64_t r, int64_t c) {
  const auto at = static_cast<uint64_t>(r * 8192 + c);
  const double scale = std::exp2(static_cast<double>(random_u64(seed, static_cast<uint64_t>(r)) % 30) - 20.0);
  auto v = static_cast<float>(random_normal(seed + 1, at) * scale);
  const uint64_t u = random_u64(seed + 2, at);
  if (r % 3 == 1) {
    switch (u % 97) {
      case 0:
        return std::bit_cast<float>(0x7fc00000U);
      case 1:
        return std::bit_cast<float>(0xffc00000U);
      case 2:
        return (u & 1024U) != 0 ? -0.0F : 0.0F;
      case 3:
        return r % 2 == 0 ? std::numeric_limits<float>::infinity() : v;
      case 4:
        return r % 2 == 0 ? -std::numeric_limits<float>::infinity() : v;
      case 5:
        return 1e-40F;
      case 6:
        return r % 5 == 0 ? -3.3e38F : v;
      default:
        break;
    }
  }
  if (r % 7 == 6) v = 0.0F;  // whole rows of zeros
  return v;
}

struct Values {
  Values(ramp_dtype type, int64_t rows, int64_t columns, int64_t pitch, uint64_t seed) : dtype(type) {
    bytes.resize(static_cast<size_t>(rows * pitch * dtype_bytes(type)), 0x5a);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) store_f32(bytes.data(), type, r * pitch + c, value(seed, r, c));
    }
  }
  [[nodiscard]] float get(int64_t at) const { return load_f32(bytes.data(), dtype, at); }
  ramp_dtype dtype;
  std::vector<uint8_t> bytes;
};

// What the format makes of one row of fp32 values.
struct Row {
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
};
Row convert_row(ramp_format f, const std::vector<float>& v, float static_scale) {
  const auto n = static_cast<int64_t>(v.size());
  Row r;
  r.bytes.resize(v.size() * static_cast<size_t>(dtype_bytes(target_of(f))));
  if (f == RAMP_FORMAT_FP8_BLOCK) {
    r.scales.resize((v.size() + 127) / 128);
    quantize_row_groups(v.data(), n, r.bytes.data(), r.scales.data());
  } else if (f == RAMP_FORMAT_FP8_CHANNEL) {
    r.scales = {quantize_row_dynamic(v.data(), n, r.bytes.data())};
  } else if (f == RAMP_FORMAT_FP8_TENSOR) {
    quantize_row_static(v.data(), n, static_scale, r.bytes.data());
  } else {
    for (int64_t i = 0; i < n; ++i) store_f32(r.bytes.data(), target_of(f), i, v[static_cast<size_t>(i)]);
  }
  return r;
}

void expect_row(const Row& want, const uint8_t* bytes, const float* scales, const std::vector<float>& v,
                const std::string& what) {
  for (size_t i = 0; i < want.bytes.size(); ++i) {
    const size_t width = want.bytes.size() / v.size();
    ASSERT_EQ(bytes[i], want.bytes[i]) << what << ", byte " << i << ", value " << v[i / width];
  }
  for (size_t g = 0; g < want.scales.size(); ++g)
    ASSERT_EQ(std::bit_cast<uint32_t>(scales[g]), std::bit_cast<uint32_t>(want.scales[g]))
        << what << ", scale " << g << ": " << scales[g] << " not " << want.scales[g];
}

class Input : public testing::TestWithParam<std::tuple<ramp_format, ramp_dtype>> {};

TEST_P(Input, EqualsHost) {
  const auto& [format, x_type] = GetParam();
  const int64_t experts = 8;
  const int64_t top_k = 2;
  uint64_t seed = 100;
  for (const int64_t hidden : {32, 128, 160, 512, 544, 2048, 2880, 7168, 8224, 16416}) {
    for (const int64_t tokens : {1, 3, 65, 300}) {
      if (tokens > 65 && hidden > 600) continue;
      for (const int variant : {0, 1, 2, 3}) {
        const bool on_input = variant >= 2;
        const bool odd = variant % 2 == 1;  // rows that do not begin at 16 bytes
        ++seed;
        SCOPED_TRACE(fmt::format("H {} T {} on input {} odd {}", hidden, tokens, on_input, odd));
        const ExpertWeights w = make_weights(format, experts, hidden);
        const int64_t pitch = odd ? hidden + 1 : hidden + 32;
        const Values x(x_type, tokens, hidden, pitch, seed);
        const auto offset = static_cast<uint64_t>(odd ? dtype_bytes(x_type) : 0);
        const Buffer device_x = Buffer::of(x.bytes, offset);
        std::vector<int32_t> ids(static_cast<size_t>(tokens * top_k));
        std::vector<float> weights(static_cast<size_t>(tokens * (top_k + 1)), 77.0F);
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(random_u64(seed, i) % 9) - 1;
        for (size_t i = 0; i < weights.size(); ++i) {
          weights[i] = static_cast<float>(random_unit(seed + 7, i));
          if (i % 11 == 3) weights[i] = 0.0F;
          if (i % 13 == 4) weights[i] = -2.0F;
        }
        const Buffer device_ids = Buffer::of(ids);
        const Buffer device_weights = Buffer::of(weights);
        const Workspace ws(w, tokens * top_k, 64);
        BlockCall call;
        call.weights = &w;
        call.tokens = tokens;
        call.top_k = top_k;
        call.router_weight_on_input = on_input;
        call.x = device_tensor(device_x.data(), x_type, {tokens, hidden}, {pitch});
        call.ids = device_tensor(device_ids.data(), RAMP_I32, {tokens, top_k});
        call.topk_weights = device_tensor(device_weights.data(), RAMP_F32, {tokens, top_k}, {top_k + 1});
        const GemmInput in = Device::get().prologue.block(call, ws.view, nullptr);
        EXPECT_EQ(in.dtype, target_of(format));
        EXPECT_EQ(in.per_slot, on_input);
        ws.expect_guards();
        if (x_type == target_of(format) && !on_input && !odd) {
          EXPECT_EQ(in.data, device_x.data());
          EXPECT_EQ(in.stride, pitch);
          continue;
        }
        ASSERT_EQ(in.data, ws.view.codes);
        EXPECT_EQ(in.stride, hidden);
        const std::vector<uint8_t> got = ws.parts[6].get<uint8_t>();
        const std::vector<float> got_scales = ws.parts[7].get<float>();
        const int64_t rows = on_input ? tokens * top_k : tokens;
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t t = on_input ? r / top_k : r;
          std::vector<float> v(static_cast<size_t>(hidden));
          for (int64_t c = 0; c < hidden; ++c) {
            v[static_cast<size_t>(c)] = x.get(t * pitch + c);
            if (on_input)
              v[static_cast<size_t>(c)] *= weights[static_cast<size_t>(t * (top_k + 1) + r % top_k)];
          }
          const Row want = convert_row(format, v, w.w13_input_scale);
          EXPECT_EQ(in.groups, static_cast<int64_t>(want.scales.size()));
          expect_row(want, got.data() + r * hidden * dtype_bytes(target_of(format)),
                     got_scales.data() + r * static_cast<int64_t>(want.scales.size()), v,
                     fmt::format("row {}", r));
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Input,
                         testing::Combine(testing::ValuesIn(kFormats), testing::ValuesIn(kTypes)));

// Codes and scales that the caller brings, with and without router weights, and where they cannot stay.
TEST(Prequantised, Block) {
  const int64_t hidden = 288;
  const int64_t tokens = 37;
  const int64_t top_k = 3;
  for (const ramp_format format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL}) {
    for (const int variant : {0, 1, 2, 3}) {
      const bool on_input = variant >= 2;
      const bool odd = variant % 2 == 1;
      SCOPED_TRACE(fmt::format("format {} on input {} odd {}", static_cast<int>(format), on_input, odd));
      const ExpertWeights w = make_weights(format, 8, hidden);
      const int64_t groups = format == RAMP_FORMAT_FP8_BLOCK ? 3 : 1;
      const int64_t pitch = hidden + (odd ? 5 : 16);
      std::vector<uint8_t> codes(static_cast<size_t>(tokens * pitch));
      std::vector<float> scales(static_cast<size_t>(tokens * (groups + 1)));
      std::vector<float> weights(static_cast<size_t>(tokens * top_k));
      const std::vector<int32_t> ids(static_cast<size_t>(tokens * top_k), 1);
      for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(random_u64(1, i));
      for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(random_unit(2, i));
      for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(random_unit(3, i));
      const Buffer x = Buffer::of(codes);
      const Buffer x_scale = Buffer::of(scales);
      const Buffer r = Buffer::of(weights);
      const Buffer device_ids = Buffer::of(ids);
      const Workspace ws(w, tokens * top_k, 64);
      BlockCall call;
      call.weights = &w;
      call.tokens = tokens;
      call.top_k = top_k;
      call.router_weight_on_input = on_input;
      call.x = device_tensor(x.data(), RAMP_E4M3, {tokens, hidden}, {pitch});
      if (format != RAMP_FORMAT_FP8_TENSOR)
        call.x_scale = device_tensor(x_scale.data(), RAMP_F32, {tokens, groups}, {groups + 1});
      call.ids = device_tensor(device_ids.data(), RAMP_I32, {tokens, top_k});
      call.topk_weights = device_tensor(r.data(), RAMP_F32, {tokens, top_k});
      const GemmInput in = Device::get().prologue.block(call, ws.view, nullptr);
      Device::get().memory->synchronize(nullptr);
      ws.expect_guards();
      // Read the input as the GEMM would.
      const bool own_codes = in.data == ws.view.codes;
      EXPECT_EQ(own_codes, odd);
      const bool own_scales = in.scales == ws.view.scales;
      const std::vector<uint8_t> got = ws.parts[6].get<uint8_t>();
      const std::vector<float> got_scales = ws.parts[7].get<float>();
      for (int64_t slot = 0; slot < tokens * top_k; ++slot) {
        const int64_t t = slot / top_k;
        const int64_t row = in.per_slot ? slot : t;
        for (int64_t c = 0; c < hidden; ++c) {
          const uint8_t q = own_codes ? got[static_cast<size_t>(row * in.stride + c)]
                                      : codes[static_cast<size_t>(row * in.stride + c)];
          ASSERT_EQ(q, codes[static_cast<size_t>(t * pitch + c)]) << slot << " " << c;
        }
        const int64_t scale_row = in.scales_per_slot ? slot : t;
        for (int64_t g = 0; g < groups; ++g) {
          float s = in.static_scale;
          if (in.scales != nullptr) {
            const auto at = static_cast<size_t>(scale_row * in.scale_stride + g);
            s = own_scales ? got_scales[at] : scales[at];
          }
          float want = format == RAMP_FORMAT_FP8_TENSOR ? w.w13_input_scale
                                                        : scales[static_cast<size_t>(t * (groups + 1) + g)];
          if (on_input) want *= weights[static_cast<size_t>(slot)];
          ASSERT_EQ(s, want) << slot << " " << g;
        }
      }
    }
  }
}

TEST(BatchedInput, EqualsHost) {
  const int64_t hidden = 672;
  const int64_t max_tokens = 21;
  for (const int64_t experts : {1, 5, 40}) {
    for (const ramp_format format : kFormats) {
      for (const ramp_dtype type : {RAMP_BF16, RAMP_F32, RAMP_E4M3}) {
        if (type == RAMP_E4M3 && !is_fp8(format)) continue;
        for (const int variant : {0, 1, 2, 3}) {
          const bool on_input = variant >= 2;
          const bool gaps = variant % 2 == 1;
          SCOPED_TRACE(fmt::format("E {} format {} type {} on input {} gaps {}", experts,
                                   static_cast<int>(format), static_cast<int>(type), on_input, gaps));
          const ExpertWeights w = make_weights(format, experts, hidden);
          const int64_t pitch = hidden + 16;
          const int64_t slab = (max_tokens + (gaps ? 2 : 0)) * pitch;
          const int64_t groups = format == RAMP_FORMAT_FP8_BLOCK ? 6 : 1;
          const int64_t scale_slab = (max_tokens + (gaps ? 3 : 0)) * groups;
          const Values x(type, (max_tokens + 2) * experts, hidden, pitch, 900);
          std::vector<float> scales(static_cast<size_t>((max_tokens + 3) * experts * groups));
          for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(random_unit(5, i));
          std::vector<float> weights(static_cast<size_t>(experts * max_tokens));
          for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(random_unit(6, i));
          std::vector<int32_t> counts(static_cast<size_t>(experts));
          for (size_t e = 0; e < counts.size(); ++e)
            counts[e] = static_cast<int32_t>(random_u64(8, e) % static_cast<uint64_t>(max_tokens + 1));
          const Buffer device_x = Buffer::of(x.bytes);
          const Buffer device_scales = Buffer::of(scales);
          const Buffer device_weights = Buffer::of(weights);
          const Buffer device_counts = Buffer::of(counts);
          const Workspace ws(w, experts * max_tokens, 64);
          BatchedCall call;
          call.weights = &w;
          call.max_tokens = max_tokens;
          call.router_weight_on_input = on_input;
          call.x = device_tensor(device_x.data(), type, {experts, max_tokens, hidden}, {slab, pitch});
          if (type == RAMP_E4M3 && format != RAMP_FORMAT_FP8_TENSOR)
            call.x_scale = device_tensor(device_scales.data(), RAMP_F32, {experts, max_tokens, groups},
                                         {scale_slab, groups});
          call.counts = device_tensor(device_counts.data(), RAMP_I32, {experts});
          call.row_weights = device_tensor(device_weights.data(), RAMP_F32, {experts, max_tokens});
          const GemmInput in = Device::get().prologue.batched(call, ws.view, nullptr);
          ws.expect_guards();
          const std::vector<uint8_t> got = ws.parts[6].get<uint8_t>();
          const std::vector<float> got_scales = ws.parts[7].get<float>();
          const auto width = dtype_bytes(target_of(format));
          for (int64_t e = 0; e < experts; ++e) {
            for (int64_t r = 0; r < max_tokens; ++r) {
              const int64_t slot = e * max_tokens + r;
              if (r >= counts[static_cast<size_t>(e)]) {
                // Beyond the counts nothing is written.
                if (in.data == ws.view.codes) {
                  for (int64_t c = 0; c < hidden * width; ++c)
                    ASSERT_EQ(got[static_cast<size_t>(slot * hidden * width + c)], 0xff) << slot;
                }
                continue;
              }
              std::vector<float> v(static_cast<size_t>(hidden));
              Row want;
              const float weight = on_input ? weights[static_cast<size_t>(slot)] : 1.0F;
              if (type == RAMP_E4M3) {
                want.bytes.assign(x.bytes.begin() + e * slab + r * pitch,
                                  x.bytes.begin() + e * slab + r * pitch + hidden);
                for (int64_t g = 0; g < groups && in.scales == ws.view.scales; ++g)
                  want.scales.push_back((format == RAMP_FORMAT_FP8_TENSOR
                                             ? w.w13_input_scale
                                             : scales[static_cast<size_t>(e * scale_slab + r * groups + g)]) *
                                        weight);
              } else {
                for (int64_t c = 0; c < hidden; ++c) {
                  v[static_cast<size_t>(c)] = x.get(e * slab + r * pitch + c);
                  if (on_input) v[static_cast<size_t>(c)] *= weight;
                }
                want = convert_row(format, v, w.w13_input_scale);
              }
              const bool in_place = in.data != ws.view.codes;
              const uint8_t* const bytes = in_place ? x.bytes.data() + slot * in.stride * width
                                                    : got.data() + slot * in.stride * width;
              expect_row(want, bytes, got_scales.data() + slot * static_cast<int64_t>(want.scales.size()), v,
                         fmt::format("slot {}", slot));
              if (testing::Test::HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(Requantize, EqualsHost) {
  const int64_t experts = 4;
  for (const int64_t intermediate : {32, 160, 768, 2048, 14336}) {
    for (const int64_t rows : {0, 1, 77}) {
      for (const ramp_format format : kFormats) {
        SCOPED_TRACE(fmt::format("I {} rows {} format {}", intermediate, rows, static_cast<int>(format)));
        const int64_t max_rows = 80;
        const ExpertWeights w = make_weights(format, experts, 64, intermediate);
        const Values h(RAMP_F32, max_rows, intermediate, intermediate, 70);
        const Buffer device_h = Buffer::of(h.bytes);
        const Buffer offsets = Buffer::of(std::vector<int32_t>{0, 0, 0, 0, static_cast<int32_t>(rows)});
        RowIndex index;
        index.offsets = offsets.as<int32_t>();
        const auto width = dtype_bytes(target_of(format));
        const int64_t groups = format == RAMP_FORMAT_FP8_BLOCK     ? (intermediate + 127) / 128
                               : format == RAMP_FORMAT_FP8_CHANNEL ? 1
                                                                   : 0;
        const Buffer codes(static_cast<uint64_t>(rows * intermediate * width));
        const Buffer scales(static_cast<uint64_t>(rows * groups * 4));
        const GemmInput in = Device::get().prologue.requantize(w, device_h.as<float>(), max_rows, index,
                                                               codes.data(), scales.as<float>(), nullptr);
        EXPECT_TRUE(codes.guard_intact());
        EXPECT_TRUE(scales.guard_intact());
        if (format == RAMP_FORMAT_F32) {
          EXPECT_EQ(in.data, device_h.data());
          continue;
        }
        const std::vector<uint8_t> got = codes.get<uint8_t>();
        const std::vector<float> got_scales = scales.get<float>();
        for (int64_t r = 0; r < rows; ++r) {
          std::vector<float> v(static_cast<size_t>(intermediate));
          for (int64_t c = 0; c < intermediate; ++c) v[static_cast<size_t>(c)] = h.get(r * intermediate + c);
          expect_row(convert_row(format, v, w.w2_input_scale), got.data() + r * intermediate * width,
                     got_scales.data() + r * groups, v, fmt::format("row {}", r));
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ramp::gpu_test
