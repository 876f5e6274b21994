// Opening a checkpoint and finding tensors in it: one file, or shards mapped on first use. Names from the
// index are file names within the directory and nothing else: a checkpoint cannot make ramp read outside of
// it.
#include "loader/checkpoint.hpp"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "loader/json.hpp"

namespace ramp::core {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = uint64_t{100} << 20U;

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

std::string join(const std::string& directory, const std::string& name) {
  return directory.empty() || directory.ends_with('/') ? directory + name : directory + "/" + name;
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void check_shard_name(const std::string& name, const std::string& index_path) {
  bool ok = !name.empty() && name.size() <= 255 && name.front() != '.' && name.ends_with(".safetensors");
  for (const char c : name) ok = ok && c != '/' && c != '\\' && static_cast<unsigned char>(c) >= 0x20;
  if (!ok)
    fail_argument(index_path + ": weight_map", "the shard name '" + printable(name) + "'",
                  "the name of a .safetensors file in the same directory", "the index is damaged or hostile",
                  RAMP_ERROR_BAD_FILE);
}

// "model." and 3 for "model.layers.3.mlp.experts.0.up_proj.weight"; nothing for tensors that are not of
// experts.
struct LayerOfName {
  std::string_view prefix;
  int64_t layer = -1;
};
LayerOfName layer_of(std::string_view name) {
  constexpr std::string_view kLayers = "layers.";
  constexpr size_t kMaxDigits = 6;
  for (size_t at = name.find(kLayers); at != std::string_view::npos; at = name.find(kLayers, at + 1)) {
    if (at != 0 && name[at - 1] != '.') continue;
    size_t digit = at + kLayers.size();
    int64_t layer = 0;
    size_t digits = 0;
    while (digit < name.size() && name[digit] >= '0' && name[digit] <= '9' && digits <= kMaxDigits) {
      layer = layer * 10 + (name[digit] - '0');
      ++digit;
      ++digits;
    }
    if (digits == 0 || digits > kMaxDigits || digit >= name.size() || name[digit] != '.') continue;
    const std::string_view rest = name.substr(digit + 1);
    if (rest.starts_with("mlp.experts.") || rest.starts_with("block_sparse_moe.experts."))
      return {name.substr(0, at), layer};
  }
  return {};
}

}  // namespace

Checkpoint::Checkpoint(const std::string& path) : path_(path) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    directory_ = path;
    open_directory();
  } else {
    if (!exists(path))
      fail_argument("checkpoint", "'" + path + "', which does not exist",
                    "a directory with config.json and safetensors files, or one .safetensors file",
                    "check the path", RAMP_ERROR_IO);
    if (path.ends_with(".json"))
      fail_argument("checkpoint", "'" + path + "'", "the directory that holds it, or a .safetensors file");
    directory_ = fs::path(path).parent_path().string();
    const std::string config = join(directory_, "config.json");
    if (exists(config)) config_ = parse_model_config(as_text(MappedFile(config).bytes()), config);
    open_single(path);
  }
  scan_names();
}

void Checkpoint::open_directory() {
  const std::string config = join(directory_, "config.json");
  if (!exists(config))
    fail_argument("checkpoint", "'" + path_ + "' without config.json",
                  "a Hugging Face checkpoint directory (config.json and safetensors files)",
                  "fetch config.json, or name a .safetensors file", RAMP_ERROR_IO);
  config_ = parse_model_config(as_text(MappedFile(config).bytes()), config);
  if (exists(join(directory_, kSingle))) return open_single(join(directory_, kSingle));
  if (exists(join(directory_, kIndex))) return open_index(join(directory_, kIndex));
  // A lone file of another name.
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".safetensors") && !name.starts_with('.')) found.push_back(it->path().string());
  }
  if (found.size() == 1) return open_single(found[0]);
  fail_argument("checkpoint",
                fmt::format("'{}' with {} .safetensors files and no {}", path_, found.size(), kIndex),
                fmt::format("{}, or shards with {}", kSingle, kIndex),
                found.empty() ? "fetch the weights (PyTorch .bin files must be converted first)"
                              : "fetch the index file",
                RAMP_ERROR_IO);
}

void Checkpoint::open_single(const std::string& file) {
  auto opened = std::make_unique<SafetensorsFile>(file);
  for (const auto& [name, entry] : opened->header().tensors) where_.emplace(name, 0);
  shard_names_.push_back(file);
  shards_.push_back(std::move(opened));
}

void Checkpoint::open_index(const std::string& index_path) {
  index_ = index_path;
  const MappedFile file(index_path);
  const nlohmann::json index = parse_json_object(as_text(file.bytes()), index_path, kMaxIndexBytes);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object())
    fail_argument(index_path, map == index.end() ? "no weight_map" : "a weight_map that is no object",
                  "{\"weight_map\": {tensor: shard}}", {}, RAMP_ERROR_BAD_FILE);
  std::map<std::string, size_t> ids;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string())
      fail_argument(index_path + ": weight_map",
                    fmt::format("'{}' of type {}", printable(name), shard.type_name()), "a shard's file name",
                    {}, RAMP_ERROR_BAD_FILE);
    const auto& shard_name = shard.get_ref<const std::string&>();
    const auto [it, added] = ids.emplace(shard_name, shard_names_.size());
    if (added) {
      check_shard_name(shard_name, index_path);
      shard_names_.push_back(join(directory_, shard_name));
    }
    where_.emplace(name, it->second);
  }
  shards_.resize(shard_names_.size());
}

void Checkpoint::scan_names() {
  // The language model's prefix is the one with most expert tensors (others: multi-token prediction, drafts).
  struct Count {
    int64_t tensors = 0, max_layer = -1;
  };
  std::map<std::string, Count, std::less<>> prefixes;
  for (const auto& [name, shard] : where_) {
    const LayerOfName found = layer_of(name);
    if (found.layer < 0) continue;
    auto it = prefixes.find(found.prefix);
    if (it == prefixes.end()) it = prefixes.emplace(std::string(found.prefix), Count{}).first;
    it->second.tensors += 1;
    it->second.max_layer = std::max(it->second.max_layer, found.layer);
  }
  if (prefixes.empty())
    fail_argument("checkpoint", fmt::format("'{}' with {} tensors, none of experts", path_, where_.size()),
                  "tensors named layers.L.mlp.experts.* or layers.L.block_sparse_moe.experts.*",
                  "is this an MoE model?", RAMP_ERROR_BAD_FILE);
  auto best = prefixes.begin();
  for (auto it = prefixes.begin(); it != prefixes.end(); ++it) {
    if (it->second.tensors > best->second.tensors) best = it;
  }
  prefix_ = best->first;
  num_layers_ = config_.num_layers > 0 ? config_.num_layers : best->second.max_layer + 1;
}

std::string Checkpoint::layer_prefix(int64_t layer) const {
  return fmt::format("{}layers.{}.", prefix_, layer);
}

int64_t Checkpoint::first_moe_layer() const {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    if (!config_.is_dense(layer)) return layer;
  }
  fail_argument("checkpoint", fmt::format("'{}', whose {} layers are all dense", path_, num_layers_),
                "a model with expert layers", {}, RAMP_ERROR_BAD_FILE);
}

const SafetensorsFile& Checkpoint::shard(size_t index, const std::string& tensor) const {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<SafetensorsFile>& slot = shards_[index];
  if (slot == nullptr) {
    if (!exists(shard_names_[index]))
      fail_argument("shard '" + shard_names_[index] + "'", "no such file",
                    fmt::format("the file that {} names for tensor '{}'", index_, printable(tensor, 120)),
                    "fetch the missing shard (a partial download is enough if it holds the layer)",
                    RAMP_ERROR_IO);
    slot = std::make_unique<SafetensorsFile>(shard_names_[index]);
  }
  return *slot;
}

CheckpointTensor Checkpoint::get(const std::string& name) const {
  const auto it = where_.find(name);
  if (it == where_.end())
    fail_argument("tensor '" + printable(name, 120) + "'", "no such tensor in " + path_, "it to be there",
                  config_.quant_method.empty() || config_.quant_method == "fp8"
                      ? "the checkpoint is incomplete or uses other names"
                      : "quantization '" + printable(config_.quant_method) + "' may use other names",
                  RAMP_ERROR_BAD_FILE);
  const SafetensorsFile& file = shard(it->second, name);
  const SafetensorsEntry* const entry = file.find(name);
  if (entry == nullptr)
    fail_argument("tensor '" + printable(name, 120) + "'", "a shard without it: " + file.path(),
                  "it there, as " + index_ + " says", "the shard and the index are of different versions",
                  RAMP_ERROR_BAD_FILE);
  return {name, entry, file.bytes(*entry), &file.path()};
}

ramp_tensor Checkpoint::view(const CheckpointTensor& tensor, ramp_dtype dtype) const {
  const SafetensorsEntry& entry = *tensor.entry;
  ramp_tensor t{};
  t.ndim = static_cast<int32_t>(entry.shape.size());
  if (t.ndim > RAMP_MAX_DIMS)
    fail_argument("tensor '" + tensor.name + "'", entry.text(), "at most 4 dimensions", {},
                  RAMP_ERROR_BAD_FILE);
  for (size_t d = 0; d < entry.shape.size(); ++d) t.shape[d] = entry.shape[d];
  t.dtype = dtype == RAMP_DTYPE_NONE ? entry.dtype : dtype;
  t = with_strides(t);
  const auto element = static_cast<size_t>(dtype_bytes(entry.dtype));
  const bool aligned = element <= 1 || reinterpret_cast<uintptr_t>(tensor.bytes.data()) % element == 0;
  if (t.dtype == entry.dtype && aligned) {
    // ramp_tensor has one pointer type; the map is read-only and nobody writes through this view.
    t.data = const_cast<std::byte*>(tensor.bytes.data());
    return t;
  }
  const std::lock_guard lock(mutex_);
  AlignedBuffer& copy = copies_[tensor.name];
  if (copy.data() == nullptr) {
    const int64_t count = numel(t);
    AlignedBuffer source(tensor.bytes.size());
    if (count != 0) std::memcpy(source.data(), tensor.bytes.data(), tensor.bytes.size());
    if (t.dtype == entry.dtype) {
      copy = std::move(source);
    } else {
      copy = AlignedBuffer(static_cast<uint64_t>(count * dtype_bytes(static_cast<ramp_dtype>(t.dtype))));
      for (int64_t i = 0; i < count; ++i)
        store_f32(copy.data(), static_cast<ramp_dtype>(t.dtype), i, load_f32(source.data(), entry.dtype, i));
    }
  }
  t.data = copy.data();
  return t;
}

}  // namespace ramp::core
