// Writing made-up checkpoints. A plan lists every tensor with a function that fills it; shards are written
// tensor by tensor. Values belong to the name of the per-expert tensor, so a stacked checkpoint holds the
// same experts as a split one of the same seed.
#include "loader/synthetic_checkpoint.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "loader/safetensors.hpp"
#include "loader/synthetic_config.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t blocks(int64_t n) {
  return (n + kGroup - 1) / kGroup;
}

uint64_t stream_of(uint64_t seed, std::string_view name) noexcept {
  uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return mix64(seed) ^ hash;
}

// The sum of four uniform 16-bit numbers, centred and divided by its standard deviation sqrt(4 (2^32 - 1) /
// 12): close to normal, at most 3.46, and exact integer arithmetic up to one multiplication, so the same
// everywhere.
float unit_value(uint64_t stream, int64_t index) noexcept {
  const uint64_t r = random_u64(stream, static_cast<uint64_t>(index));
  const auto sum =
      static_cast<int32_t>((r & 0xffffU) + (r >> 16U & 0xffffU) + (r >> 32U & 0xffffU) + (r >> 48U));
  constexpr float kPerUnit = 1.0F / 37837.227F;
  return static_cast<float>(sum - 131070) * kPerUnit;
}

// A matrix [rows, cols] of one expert (or router, or dense layer) in fp32.
struct Matrix {
  std::string name;
  int64_t rows = 0, cols = 0;
};

std::vector<float> generate(const Matrix& m, uint64_t seed) {
  const auto count = static_cast<size_t>(m.rows * m.cols);
  std::vector<float> values(count);
  const uint64_t stream = stream_of(seed, m.name);
  const float deviation = 1.0F / std::sqrt(static_cast<float>(m.cols));  // cols is the fan in
  for (size_t i = 0; i < count; ++i) values[i] = unit_value(stream, static_cast<int64_t>(i)) * deviation;
  return values;
}

// Appends [rows, cols] elements to out, transposed if asked.
template <typename T>
void append(std::vector<std::byte>& out, const T* data, int64_t rows, int64_t cols, bool transposed) {
  const size_t at = out.size();
  out.resize(at + static_cast<size_t>(rows * cols) * sizeof(T));
  if (!transposed) {
    std::memcpy(out.data() + at, data, static_cast<size_t>(rows * cols) * sizeof(T));
    return;
  }
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(out.data() + at + static_cast<size_t>(c * rows + r) * sizeof(T), data + r * cols + c,
                  sizeof(T));
  }
}

// One tensor of the file: matrices one below the other (gate over up), group after group (experts).
struct Item {
  SafetensorsSpec spec;
  std::vector<std::vector<Matrix>> groups;
  bool transposed = false;
  std::string scale_name;  // fp8: where the scales go; "" for tensors that stay unquantised
};

class Builder {
 public:
  explicit Builder(const SyntheticOptions& o) : o_(o) {}

  std::vector<Item> plan() {
    for (int64_t layer = 0; layer < o_.layers; ++layer) {
      if (layer < o_.dense_layers) {
        mlp(fmt::format("model.layers.{}.mlp.", layer), o_.shape.intermediate);
      } else {
        moe(layer);
      }
    }
    return std::move(items_);
  }

 private:
  void moe(int64_t layer) {
    const bool mixtral = o_.architecture == "mixtral";
    const ModelShape& s = o_.shape;
    const std::string base = fmt::format("model.layers.{}.{}.", layer, mixtral ? "block_sparse_moe" : "mlp");
    plain({base + "gate.weight", s.experts, s.hidden}, RAMP_BF16);
    if (o_.architecture == "deepseek_v3") bias(base + "gate.e_score_correction_bias", s.experts);
    const std::array<const char*, 3> names =
        mixtral ? std::array{"w1", "w3", "w2"} : std::array{"gate_proj", "up_proj", "down_proj"};
    std::vector<std::vector<Matrix>> gate_up;
    std::vector<std::vector<Matrix>> down;
    for (int64_t e = 0; e < s.experts; ++e) {
      const auto name = [&](size_t i) { return fmt::format("{}experts.{}.{}.weight", base, e, names[i]); };
      const Matrix gate{name(0), s.intermediate, s.hidden};
      const Matrix up{name(1), s.intermediate, s.hidden};
      const Matrix out{name(2), s.hidden, s.intermediate};
      if (o_.stacked) {
        gate_up.push_back({gate, up});
        down.push_back({out});
      } else {
        for (const Matrix& m : {gate, up, out}) weight(m.name, {{m}}, {m.rows, m.cols});
      }
    }
    if (o_.stacked) {
      stacked(base + "experts.gate_up_proj", std::move(gate_up), 2 * s.intermediate, s.hidden);
      stacked(base + "experts.down_proj", std::move(down), s.hidden, s.intermediate);
    }
    if (o_.shared_experts > 0) {
      const bool qwen = o_.architecture == "qwen2_moe";
      mlp(base + (qwen ? "shared_expert." : "shared_experts."), o_.shared_experts * s.intermediate);
      if (qwen) plain({base + "shared_expert_gate.weight", 1, s.hidden}, RAMP_BF16);
    }
  }

  void mlp(const std::string& base, int64_t intermediate) {
    const int64_t h = o_.shape.hidden;
    for (const Matrix& m : {Matrix{base + "gate_proj.weight", intermediate, h},
                            Matrix{base + "up_proj.weight", intermediate, h},
                            Matrix{base + "down_proj.weight", h, intermediate}})
      weight(m.name, {{m}}, {m.rows, m.cols});
  }

  void plain(const Matrix& m, ramp_dtype dtype) {
    Item item;
    item.spec = {m.name, dtype, {m.rows, m.cols}};
    item.groups = {{m}};
    items_.push_back(std::move(item));
  }
  void bias(const std::string& name, int64_t n) {
    Item item;
    item.spec = {name, RAMP_F32, {n}};
    item.groups = {{{name, 1, n}}};
    items_.push_back(std::move(item));
  }
  void weight(const std::string& name, std::vector<std::vector<Matrix>> groups, std::vector<int64_t> shape) {
    Item item;
    item.spec = {name, weight_dtype(o_.format), std::move(shape)};
    item.groups = std::move(groups);
    item.transposed = o_.stacked && o_.transposed && item.spec.shape.size() == 3;
    if (item.transposed) std::swap(item.spec.shape[1], item.spec.shape[2]);
    if (o_.format == RAMP_FORMAT_FP8_BLOCK) {
      item.scale_name = name + "_scale_inv";
      SafetensorsSpec scale{item.scale_name, o_.scale_dtype, item.spec.shape};
      for (size_t d = scale.shape.size() - 2; d < scale.shape.size(); ++d)
        scale.shape[d] = blocks(scale.shape[d]);
      Item scales;
      scales.spec = std::move(scale);
      items_.push_back(std::move(scales));
    }
    items_.push_back(std::move(item));
  }
  void stacked(const std::string& name, std::vector<std::vector<Matrix>> groups, int64_t rows, int64_t cols) {
    weight(name, std::move(groups), {o_.shape.experts, rows, cols});
  }

  const SyntheticOptions& o_;
  std::vector<Item> items_;
};

// The bytes of one item, and of its scales where it has some.
struct Content {
  std::vector<std::byte> data, scales;
};
Content fill(const Item& item, const SyntheticOptions& o) {
  Content out;
  for (const std::vector<Matrix>& group : item.groups) {
    std::vector<std::byte> codes;  // the group's rows in the storage type, row-major
    std::vector<float> scales;
    int64_t rows = 0;
    const int64_t cols = group.front().cols;
    for (const Matrix& m : group) {
      const std::vector<float> values = generate(m, o.seed);
      const size_t at = codes.size();
      codes.resize(at + values.size() * static_cast<size_t>(dtype_bytes(item.spec.dtype)));
      rows += m.rows;
      if (item.scale_name.empty()) {
        for (size_t i = 0; i < values.size(); ++i)
          store_f32(codes.data() + at, item.spec.dtype, static_cast<int64_t>(i), values[i]);
        continue;
      }
      const size_t scale_at = scales.size();
      scales.resize(scale_at + static_cast<size_t>(blocks(m.rows) * blocks(m.cols)));
      quantize_weight_block(values.data(), m.rows, m.cols, reinterpret_cast<uint8_t*>(codes.data() + at),
                            scales.data() + scale_at);
    }
    switch (dtype_bytes(item.spec.dtype)) {
      case 1:
        append(out.data, reinterpret_cast<const uint8_t*>(codes.data()), rows, cols, item.transposed);
        break;
      case 2:
        append(out.data, reinterpret_cast<const uint16_t*>(codes.data()), rows, cols, item.transposed);
        break;
      default:
        append(out.data, reinterpret_cast<const uint32_t*>(codes.data()), rows, cols, item.transposed);
    }
    if (scales.empty()) continue;
    const int64_t scale_cols = blocks(cols);
    const int64_t scale_rows = static_cast<int64_t>(scales.size()) / scale_cols;
    if (o.scale_dtype == RAMP_F32) {
      append(out.scales, scales.data(), scale_rows, scale_cols, item.transposed);
    } else {
      std::vector<uint16_t> rounded(scales.size());
      for (size_t i = 0; i < scales.size(); ++i) rounded[i] = f32_to_bf16(scales[i]);
      append(out.scales, rounded.data(), scale_rows, scale_cols, item.transposed);
    }
  }
  return out;
}

// Creates the directory, or clears an earlier synthetic checkpoint out of it; anything else in it is refused.
void prepare_directory(const std::string& directory) {
  std::error_code error;
  if (!fs::exists(directory, error)) {
    if (!fs::create_directory(directory, error))
      fail_argument("directory", "'" + directory + "': " + error.message(), "a directory that can be created",
                    "create its parent or check the permissions", RAMP_ERROR_IO);
    return;
  }
  if (!fs::is_directory(directory, error))
    fail_argument("directory", "'" + directory + "', which is a file", "a directory", {}, RAMP_ERROR_IO);
  if (fs::is_empty(directory, error)) return;
  const std::string config = directory + "/config.json";
  bool ours = false;
  if (fs::exists(config, error)) {
    const auto json = ordered_json::parse(read_text(config), nullptr, false);
    ours = json.is_object() && json.contains(kSyntheticMarker);
  }
  if (!ours)
    fail_argument("directory", "'" + directory + "', which is not empty", "an empty or new directory",
                  "choose another one: ramp overwrites only checkpoints that it made up itself");
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".index.json")))
      stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove(path, error);
}

uint64_t spec_bytes(const SafetensorsSpec& spec) {
  auto bytes = static_cast<uint64_t>(dtype_bytes(spec.dtype));
  for (const int64_t extent : spec.shape) bytes *= static_cast<uint64_t>(extent);
  return bytes;
}

}  // namespace

float synthetic_value(uint64_t seed, const std::string& name, int64_t index) noexcept {
  return unit_value(stream_of(seed, name), index);
}

void write_demo_checkpoint(const std::string& directory, const SyntheticOptions& options,
                           const std::function<void(double)>& progress) {
  check_synthetic_options(options);
  prepare_directory(directory);
  write_text(directory + "/config.json", synthetic_config(options).dump(2) + "\n");

  const std::vector<Item> items = Builder(options).plan();
  uint64_t total = 0;
  for (const Item& item : items) total += spec_bytes(item.spec);
  // Shards of about equal size. A weight stays with its scales, which precede it, since both are made
  // together.
  std::vector<std::vector<const Item*>> shards(1);
  uint64_t done = 0;
  for (const Item& item : items) {
    const bool is_weight_with_scales = !item.scale_name.empty();
    const uint64_t target = total / static_cast<uint64_t>(options.shards) * shards.size();
    if (!is_weight_with_scales && done >= target && !shards.back().empty() &&
        shards.size() < static_cast<size_t>(options.shards))
      shards.emplace_back();
    shards.back().push_back(&item);
    done += spec_bytes(item.spec);
  }

  std::map<std::string, std::string> weight_map;
  uint64_t written = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = options.shards == 1
                                 ? std::string("model.safetensors")
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::vector<SafetensorsSpec> specs;
    std::unordered_map<std::string, const Item*> by_name;
    std::unordered_map<std::string, std::vector<std::byte>> ready;
    for (const Item* item : shards[i]) {
      specs.push_back(item->spec);
      by_name.emplace(item->spec.name, item);
      weight_map[item->spec.name] = file;
      if (item->scale_name.empty()) continue;
      Content content = fill(*item, options);
      ready.emplace(item->scale_name, std::move(content.scales));
      ready.emplace(item->spec.name, std::move(content.data));
      written += spec_bytes(item->spec);
      if (progress) progress(static_cast<double>(written) / static_cast<double>(total));
    }
    SafetensorsWriter writer(fmt::format("{}/{}", directory, file), std::move(specs), {{"format", "pt"}});
    for (const SafetensorsSpec& spec : writer.specs()) {
      const auto it = ready.find(spec.name);
      if (it != ready.end()) {
        writer.append(it->second);
        ready.erase(it);
        continue;
      }
      writer.append(fill(*by_name.at(spec.name), options).data);
      written += spec_bytes(spec);
      if (progress) progress(static_cast<double>(written) / static_cast<double>(total));
    }
    writer.commit();
  }
  if (options.shards > 1) {
    const ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    write_text(directory + "/model.safetensors.index.json", index.dump(2) + "\n");
  }
  if (progress) progress(1.0);
}

}  // namespace ramp::core
