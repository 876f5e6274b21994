// Where a checkpoint's files lie: shards that are missing, broken or point outside, directories, prefixes,
// concurrent readers, and what the synthetic writer may overwrite.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/file.hpp"
#include "base/tensor.hpp"
#include "base/test_support.hpp"
#include "loader/checkpoint.hpp"
#include "loader/synthetic_checkpoint.hpp"

namespace ramp::core {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::expect_error;
using test::TempDir;

SyntheticOptions small(const char* architecture = "olmoe") {
  SyntheticOptions o;
  o.architecture = architecture;
  o.shape = {"", 4, 2, 64, 32};
  o.format = RAMP_FORMAT_BF16;
  o.layers = 1;
  return o;
}

TEST(ShardedCheckpoint, MissingShardsMatterOnlyWhenNeeded) {
  const TempDir dir;
  SyntheticOptions o = small();
  o.layers = 4;
  o.shards = 4;
  write_demo_checkpoint(dir / "m", o);
  EXPECT_EQ(load_layer(Checkpoint(dir / "m"), 3).desc.num_experts, 4);
  // Keep only the shards of layer 3.
  const json index = json::parse(read_text(dir / "m/model.safetensors.index.json"));
  std::string removed;
  for (const auto& [name, shard] : index.at("weight_map").items()) {
    bool used = false;
    for (const auto& [other, other_shard] : index.at("weight_map").items())
      used = used || (other.find("layers.3.") != std::string::npos && other_shard == shard);
    if (!used && fs::remove(dir / ("m/" + shard.get<std::string>()))) removed = shard;
  }
  ASSERT_FALSE(removed.empty());
  const Checkpoint c(dir / "m");
  EXPECT_EQ(c.layer_info(3).info.num_experts, 4);
  EXPECT_EQ(load_layer(c, 3).desc.num_experts, 4);
  expect_error(RAMP_ERROR_IO,
               {"shard '", "-of-00004.safetensors': got no such file", "model.safetensors.index.json names",
                "model.layers.0.", "fetch the missing shard"},
               [&] { static_cast<void>(load_layer(c, 0)); });
}

TEST(ShardedCheckpoint, BrokenShards) {
  const TempDir dir;
  SyntheticOptions o = small();
  o.shards = 2;
  write_demo_checkpoint(dir / "m", o);
  const std::string shard = dir / "m/model-00002-of-00002.safetensors";
  write_text(shard, "version https://git-lfs.github.com/spec/v1\n");
  expect_error(RAMP_ERROR_BAD_FILE, {shard, "git lfs pull"}, [&] { load_layer(Checkpoint(dir / "m"), 0); });
  write_text(shard, std::string(3, 'x'));
  expect_error(RAMP_ERROR_BAD_FILE, {shard, "3 bytes"}, [&] { load_layer(Checkpoint(dir / "m"), 0); });
  fs::copy_file(dir / "m/model-00001-of-00002.safetensors", shard, fs::copy_options::overwrite_existing);
  expect_error(RAMP_ERROR_BAD_FILE, {"a shard without it", "different versions"},
               [&] { load_layer(Checkpoint(dir / "m"), 0); });
}

TEST(ShardedCheckpoint, IndexesThatReachOutside) {
  const TempDir dir;
  SyntheticOptions o = small();
  o.shards = 2;
  write_demo_checkpoint(dir / "m", o);
  const std::string path = dir / "m/model.safetensors.index.json";
  const json good = json::parse(read_text(path));
  for (const char* name : {"../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "",
                           ".hidden.safetensors", "a\\b.safetensors", "model.bin", "x\n.safetensors"}) {
    json index = good;
    index["weight_map"].begin().value() = name;
    write_text(path, index.dump());
    expect_error(RAMP_ERROR_BAD_FILE, {"weight_map", "the shard name", "same directory"},
                 [&] { Checkpoint(dir / "m"); });
  }
  const auto refuse = [&](const std::string& text, std::initializer_list<std::string_view> parts) {
    write_text(path, text);
    expect_error(RAMP_ERROR_BAD_FILE, parts, [&] { Checkpoint(dir / "m"); });
  };
  refuse("{}", {"no weight_map"});
  refuse(R"({"weight_map": []})", {"no object"});
  refuse(R"({"weight_map": {"a": 1}})", {"'a' of type number"});
  refuse("[", {path, "malformed JSON"});
  refuse(R"({"weight_map": {"a": "b.safetensors"}})", {"1 tensors, none of experts"});
}

TEST(Checkpoint, Directories) {
  const TempDir dir;
  expect_error(RAMP_ERROR_IO, {"checkpoint: got '", "does not exist", "config.json"},
               [&] { Checkpoint(dir / "none"); });
  expect_error(RAMP_ERROR_IO, {"without config.json"}, [&] { Checkpoint(dir.path()); });
  write_demo_checkpoint(dir / "m", small());
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"the directory that holds it"},
               [&] { Checkpoint(dir / "m/config.json"); });
  fs::rename(dir / "m/model.safetensors", dir / "m/other.safetensors");  // a lone file of another name
  EXPECT_EQ(Checkpoint(dir / "m").layer_info(0).info.num_experts, 4);
  fs::copy_file(dir / "m/other.safetensors", dir / "m/second.safetensors");
  expect_error(RAMP_ERROR_IO, {"2 .safetensors files and no model.safetensors.index.json", "fetch the index"},
               [&] { Checkpoint(dir / "m"); });
  fs::remove(dir / "m/other.safetensors");
  fs::remove(dir / "m/second.safetensors");
  expect_error(RAMP_ERROR_IO, {"0 .safetensors files", "converted first"}, [&] { Checkpoint(dir / "m"); });
}

TEST(Checkpoint, OtherPrefixes) {
  // Multimodal models put the layers below model.language_model; a multi-token-prediction head has fewer
  // tensors.
  const TempDir dir;
  write_demo_checkpoint(dir / "m", small());
  const SafetensorsFile file(dir / "m/model.safetensors");
  std::vector<NamedTensor> tensors;
  for (const auto& [name, entry] : file.header().tensors) {
    ramp_tensor t{};
    t.data = const_cast<std::byte*>(file.bytes(entry).data());
    t.dtype = entry.dtype;
    for (const int64_t extent : entry.shape) t.shape[t.ndim++] = extent;
    tensors.push_back({"model.language_model." + name.substr(6), with_strides(t)});
    if (name.find("experts.0") != std::string::npos)
      tensors.push_back({"mtp." + name.substr(6), with_strides(t)});
  }
  fs::create_directory(dir / "vl");
  fs::copy_file(dir / "m/config.json", dir / "vl/config.json");
  write_safetensors(dir / "vl/model.safetensors", tensors);
  const Checkpoint c(dir / "vl");
  EXPECT_EQ(c.layer_prefix(0), "model.language_model.layers.0.");
  EXPECT_EQ(load_layer(c, 0).desc.num_experts, 4);
}

TEST(Checkpoint, ConcurrentReaders) {
  const TempDir dir;
  SyntheticOptions o = small("deepseek_v3");
  o.layers = 4;
  o.shards = 4;
  write_demo_checkpoint(dir / "m", o);
  const Checkpoint c(dir / "m");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int64_t layer = 0; layer < 4; ++layer) {
        EXPECT_EQ(c.layer_info(layer).info.num_experts, 4);
        EXPECT_EQ(load_layer(c, layer).desc.num_experts, 4);
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST(Synthetic, RefusesWhatMakesNoCheckpoint) {
  const TempDir dir;
  const auto refuse = [&](const SyntheticOptions& o, std::initializer_list<std::string_view> parts) {
    expect_error(RAMP_ERROR_INVALID_ARGUMENT, parts, [&] { write_demo_checkpoint(dir / "m", o); });
    EXPECT_TRUE(dir.list().empty());
  };
  SyntheticOptions o = small("llama");
  refuse(o, {"architecture", "'llama'", "olmoe"});
  o = small();
  o.format = RAMP_FORMAT_FP8_TENSOR;
  refuse(o, {"format", "fp8_tensor"});
  o = small();
  o.shape.hidden = 0;
  refuse(o, {"H 0"});
  o = small();
  o.shape.top_k = 5;
  refuse(o, {"top_k", "at most E = 4"});
  o = small();
  o.dense_layers = 1;
  refuse(o, {"dense_layers"});
  o = small();
  o.shared_experts = 1;
  refuse(o, {"shared_experts", "0 to 0 for olmoe"});
  o = small();
  o.scale_dtype = RAMP_F16;
  refuse(o, {"scale_dtype"});
  o = small();
  o.stacked = true;
  o.format = RAMP_FORMAT_FP8_BLOCK;
  refuse(o, {"a multiple of 128"});
}

TEST(Synthetic, OverwritesOnlyItsOwn) {
  const TempDir dir;
  SyntheticOptions o = small();
  o.shards = 3;
  write_demo_checkpoint(dir / "m", o);
  o.shards = 1;
  write_demo_checkpoint(dir / "m", o);  // no stale shards or index stay behind
  EXPECT_EQ(Checkpoint(dir / "m").layer_info(0).info.num_experts, 4);
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(dir / "m")) {
    static_cast<void>(entry);
    ++files;
  }
  EXPECT_EQ(files, 2U);
  fs::create_directory(dir / "real");
  write_text(dir / "real/config.json", R"({"model_type": "mixtral"})");
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"not empty", "made up itself"},
               [&] { write_demo_checkpoint(dir / "real", o); });
  EXPECT_EQ(read_text(dir / "real/config.json"), R"({"model_type": "mixtral"})");
  expect_error(RAMP_ERROR_IO, {"create its parent"}, [&] { write_demo_checkpoint(dir / "no/such", o); });
  expect_error(RAMP_ERROR_IO, {"which is a file"},
               [&] { write_demo_checkpoint(dir / "real/config.json", o); });
}

}  // namespace
}  // namespace ramp::core
