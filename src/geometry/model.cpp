// The registry of model shapes and the names of formats and activations.
#include "geometry/model.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>

#include "base/error.hpp"
#include "base/float_types.hpp"

namespace ramp::core {
namespace {

// E, k, H, I per layer and tensor-parallel shard, from the models' published configurations.
const std::array<ModelShape, 16> kModels = {{
    {"olmoe", 64, 8, 2048, 1024},
    {"qwen3-30b", 128, 8, 2048, 768},
    {"qwen3.5-35b", 256, 8, 2048, 512},
    {"qwen3-235b", 128, 8, 4096, 1536},
    {"mixtral-8x7b", 8, 2, 4096, 14336},
    {"mixtral-8x22b", 8, 2, 6144, 16384},
    {"dsv3", 256, 8, 7168, 2048},
    {"dsv3-tp8", 256, 8, 7168, 256},
    {"dsv3-ep8", 32, 8, 7168, 2048},
    {"kimi-k2-ep8", 48, 8, 7168, 2048},
    {"glm-4.5-air", 128, 8, 4096, 1408},
    {"gpt-oss-120b", 128, 4, 2880, 2880},
    {"qwen2-57b", 64, 8, 3584, 2560},
    {"phi3.5-moe", 16, 2, 4096, 6400},
    {"dbrx", 16, 4, 6144, 10752},
    {"jamba-1.5", 16, 2, 4096, 8192},
}};

constexpr std::array<std::pair<ramp_format, const char*>, 6> kFormats = {
    {{RAMP_FORMAT_FP8_BLOCK, "fp8_block"},
     {RAMP_FORMAT_BF16, "bf16"},
     {RAMP_FORMAT_F16, "fp16"},
     {RAMP_FORMAT_F32, "f32"},
     {RAMP_FORMAT_FP8_TENSOR, "fp8_tensor"},
     {RAMP_FORMAT_FP8_CHANNEL, "fp8_channel"}}};
constexpr std::array<std::pair<ramp_activation, const char*>, 4> kActivations = {
    {{RAMP_ACTIVATION_SILU_AND_MUL, "silu_and_mul"},
     {RAMP_ACTIVATION_GELU_AND_MUL, "gelu_and_mul"},
     {RAMP_ACTIVATION_GELU_TANH_AND_MUL, "gelu_tanh_and_mul"},
     {RAMP_ACTIVATION_RELU2, "relu2"}}};

template <typename Table>
auto parse_name(const Table& table, std::string_view name, std::string_view what) {
  std::string known;
  for (const auto& [value, text] : table) {
    if (name == text) return value;
    known += known.empty() ? "" : ", ";
    known += text;
  }
  fail_argument(what, fmt::format("'{}'", name), "one of " + known);
}

template <typename Table>
const char* find_name(const Table& table, int32_t value) noexcept {
  for (const auto& [v, text] : table) {
    if (v == value) return text;
  }
  return "unknown";
}

}  // namespace

std::span<const ModelShape> known_models() {
  return kModels;
}

ModelShape parse_model(std::string_view text) {
  for (const ModelShape& m : kModels) {
    if (m.name == text) return m;
  }
  std::array<int64_t, 4> v{};
  size_t count = 0;
  const char* at = text.data();
  const char* const end = at + text.size();
  bool ok = !text.empty();
  while (ok && at != end && count < v.size()) {
    const auto [next, ec] = std::from_chars(at, end, v[count]);
    ok = ec == std::errc() && v[count] > 0 && v[count] < (int64_t{1} << 31);
    ++count;
    at = next;
    if (ok && at != end) {
      ok = *at == ',' && at + 1 != end;
      ++at;
    }
  }
  if (!ok || count != v.size() || at != end) {
    std::string known;
    for (const ModelShape& m : kModels) known += (known.empty() ? "" : ", ") + m.name;
    fail_argument("model", fmt::format("'{}'", text), "a known name or E,k,H,I (four positive integers)",
                  "known names: " + known);
  }
  if (v[1] > v[0]) {
    fail_argument("model", fmt::format("'{}' (k = {} > E = {})", text, v[1], v[0]), "k <= E",
                  "order is E,k,H,I: experts, top-k, hidden, intermediate");
  }
  return {std::string(text), v[0], v[1], v[2], v[3]};
}

const char* format_name(int32_t format) noexcept {
  return find_name(kFormats, format);
}
ramp_format parse_format(std::string_view name) {
  if (name == "f16") return RAMP_FORMAT_F16;
  if (name == "fp32") return RAMP_FORMAT_F32;
  return parse_name(kFormats, name, "format");
}
const char* activation_name(int32_t activation) noexcept {
  return find_name(kActivations, activation);
}
ramp_activation parse_activation(std::string_view name) {
  return parse_name(kActivations, name, "activation");
}

ramp_dtype weight_dtype(ramp_format f) noexcept {
  switch (f) {
    case RAMP_FORMAT_BF16:
      return RAMP_BF16;
    case RAMP_FORMAT_F16:
      return RAMP_F16;
    case RAMP_FORMAT_F32:
      return RAMP_F32;
    case RAMP_FORMAT_FP8_BLOCK:
    case RAMP_FORMAT_FP8_TENSOR:
    case RAMP_FORMAT_FP8_CHANNEL:
      return RAMP_E4M3;
    case RAMP_FORMAT_NONE:
      return RAMP_DTYPE_NONE;
  }
  return RAMP_DTYPE_NONE;
}

int64_t expert_bytes(const ModelShape& m, ramp_format f, ramp_activation a) noexcept {
  const int64_t h = m.hidden;
  const int64_t i = m.intermediate;
  const int64_t n1 = w13_rows(i, a);
  const int64_t width = dtype_bytes(weight_dtype(f));
  const auto blocks = [](int64_t n) { return (n + 127) / 128; };
  int64_t scales = 0;
  switch (f) {
    case RAMP_FORMAT_FP8_BLOCK:
      scales = (n1 / i) * blocks(i) * blocks(h) + blocks(h) * blocks(i);
      break;
    case RAMP_FORMAT_FP8_TENSOR:
      scales = 2;
      break;
    case RAMP_FORMAT_FP8_CHANNEL:
      scales = n1 + h;
      break;
    default:
      break;
  }
  return (n1 * h + h * i) * width + scales * 4;
}

}  // namespace ramp::core
