// Checkpoints that are broken, incomplete or hostile: each must name the tensor or file, what was found and
// what is expected.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

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

// A checkpoint in one file whose tensors can be edited before it is opened.
class Editable {
 public:
  explicit Editable(const SyntheticOptions& o) {
    write_demo_checkpoint(dir_ / "m", o);
    const SafetensorsFile file(path());
    for (const auto& [name, entry] : file.header().tensors) {
      const auto bytes = file.bytes(entry);
      tensors_[name] = {entry.dtype, entry.shape,
                        std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())};
    }
    config = json::parse(read_text(dir_ / "m/config.json"));
  }
  struct Tensor {
    ramp_dtype dtype = RAMP_DTYPE_NONE;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  Tensor& operator[](const std::string& name) { return tensors_.at(name); }
  void add(const std::string& name, ramp_dtype dtype, std::vector<int64_t> shape) {
    Tensor t{dtype, std::move(shape), ""};
    resize(t);
    tensors_[name] = std::move(t);
  }
  void erase(const std::string& name) { ASSERT_EQ(tensors_.erase(name), 1U); }
  void reshape(const std::string& name, std::vector<int64_t> shape) {
    Tensor& t = tensors_.at(name);
    t.shape = std::move(shape);
    resize(t);
  }
  void retype(const std::string& name, ramp_dtype dtype) {
    Tensor& t = tensors_.at(name);
    t.dtype = dtype;
    resize(t);
  }
  // Writes the edited files and opens them.
  std::unique_ptr<Checkpoint> open() {
    write_text(dir_ / "m/config.json", config.dump());
    std::vector<SafetensorsSpec> specs;
    for (const auto& [name, t] : tensors_) specs.push_back({name, t.dtype, t.shape});
    SafetensorsWriter writer(path(), specs);
    for (const SafetensorsSpec& s : writer.specs())
      writer.append(std::as_bytes(std::span(tensors_.at(s.name).bytes)));
    writer.commit();
    return std::make_unique<Checkpoint>(dir_ / "m");
  }
  void expect_load_error(ramp_status status, std::initializer_list<std::string_view> parts) {
    expect_error(status, parts, [&] {
      const auto c = open();
      static_cast<void>(c->layer_info(0));
      static_cast<void>(load_layer(*c, 0, 0, 0, {.append_shared_experts = true}));
    });
  }
  json config;

 private:
  static void resize(Tensor& t) {
    size_t bytes = static_cast<size_t>(dtype_bytes(t.dtype));
    for (const int64_t extent : t.shape) bytes *= static_cast<size_t>(extent);
    t.bytes.resize(bytes);
  }
  [[nodiscard]] std::string path() const { return dir_ / "m/model.safetensors"; }
  TempDir dir_;
  std::map<std::string, Tensor> tensors_;
};

const std::string kExperts = "model.layers.0.mlp.experts.";

TEST(BrokenCheckpoint, MissingTensors) {
  for (const char* name :
       {"2.up_proj.weight", "3.down_proj.weight", "0.gate_proj.weight", "0.down_proj.weight"}) {
    Editable m(small());
    m.erase(kExperts + name);
    m.expect_load_error(RAMP_ERROR_BAD_FILE, {"tensor '" + kExperts + name + "': got no such tensor"});
  }
  Editable v3(small("deepseek_v3"));
  v3.erase("model.layers.0.mlp.gate.e_score_correction_bias");
  v3.expect_load_error(RAMP_ERROR_BAD_FILE,
                       {"model.layers.0.mlp.gate.e_score_correction_bias", "no such tensor"});
  Editable no_router(small());
  no_router.erase("model.layers.0.mlp.gate.weight");
  const auto c = no_router.open();
  EXPECT_FALSE(present(c->layer_info(0).info.router_weight));
}

TEST(BrokenCheckpoint, WrongShapesAndTypes) {
  Editable a(small());
  a.reshape(kExperts + "1.up_proj.weight", {32, 32});
  a.expect_load_error(RAMP_ERROR_BAD_FILE,
                      {kExperts + "1.up_proj.weight' in ", "got BF16 [32, 32], expected bf16 [32, 64]"});
  Editable b(small());
  b.reshape(kExperts + "2.down_proj.weight", {32, 64});
  b.expect_load_error(RAMP_ERROR_BAD_FILE, {"2.down_proj", "got BF16 [32, 64], expected bf16 [64, 32]"});
  Editable c(small());
  c.retype(kExperts + "3.gate_proj.weight", RAMP_F16);
  c.expect_load_error(RAMP_ERROR_BAD_FILE, {"3.gate_proj", "got F16 [32, 64], expected bf16"});
  Editable d(small());
  d.reshape(kExperts + "0.gate_proj.weight", {32});
  d.expect_load_error(RAMP_ERROR_BAD_FILE, {"0.gate_proj", "BF16 [32]", "2 non-empty dimensions"});
  Editable e(small());
  e.reshape(kExperts + "0.gate_proj.weight", {0, 64});
  e.expect_load_error(RAMP_ERROR_BAD_FILE, {"0.gate_proj", "non-empty"});
  Editable f(small());
  for (const char* p : {"gate_proj", "up_proj", "down_proj"})
    for (int n = 0; n < 4; ++n) f.retype(kExperts + std::to_string(n) + "." + p + ".weight", RAMP_I32);
  f.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"I32", "BF16, F16, F32 or F8_E4M3"});
  Editable g(small());
  g.reshape("model.layers.0.mlp.gate.weight", {5, 64});
  g.expect_load_error(RAMP_ERROR_BAD_FILE, {"gate.weight", "[5, 64]", "[4, 64]"});
  Editable h(small());
  h.retype("model.layers.0.mlp.gate.weight", RAMP_E4M3);
  h.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"gate.weight", "router must not be quantised"});
}

TEST(BrokenCheckpoint, ConfigAndWeightsOfDifferentModels) {
  Editable a(small());
  a.config["hidden_size"] = 128;
  a.expect_load_error(RAMP_ERROR_BAD_FILE, {"hidden size 128, as config.json says", "[32, 64]"});
  Editable b(small());
  b.config["intermediate_size"] = 48;
  b.expect_load_error(RAMP_ERROR_BAD_FILE, {"intermediate size 48"});
  Editable c(small());
  c.config["num_experts"] = 3;
  c.expect_load_error(RAMP_ERROR_BAD_FILE, {"experts.3.gate_proj", "an expert beyond the last", "3 experts"});
  Editable d(small());
  d.config["num_experts"] = 60000;
  d.expect_load_error(RAMP_ERROR_BAD_FILE, {"gate.weight", "[60000, 64]"});
  Editable e(small());
  e.config["num_experts"] = 5;
  e.erase("model.layers.0.mlp.gate.weight");
  e.expect_load_error(RAMP_ERROR_BAD_FILE, {"experts.4.gate_proj.weight': got no such tensor"});
}

TEST(BrokenCheckpoint, Fp8Scales) {
  SyntheticOptions o = small();
  o.format = RAMP_FORMAT_FP8_BLOCK;
  o.shape = {"", 2, 1, 192, 160};
  const std::string scale = kExperts + "1.up_proj.weight_scale_inv";
  Editable a(o);
  a.erase(scale);
  a.expect_load_error(RAMP_ERROR_BAD_FILE, {"tensor '" + scale + "'", "no such tensor"});
  Editable b(o);
  b.reshape(scale, {2, 1});
  b.expect_load_error(RAMP_ERROR_BAD_FILE, {scale, "got F32 [2, 1], expected f32 [2, 2]"});
  Editable c(o);
  c.retype(scale, RAMP_F16);
  c.expect_load_error(RAMP_ERROR_BAD_FILE, {scale, "F16 [2, 2]", "f32 [2, 2]"});
  Editable d(o);
  d.erase(kExperts + "0.down_proj.weight_scale_inv");
  d.expect_load_error(RAMP_ERROR_BAD_FILE, {"0.down_proj.weight", "no scales", "weight_scale_inv"});
  d.add(kExperts + "0.down_proj.weight_scale", RAMP_F32, {});
  d.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"per tensor or per channel"});
  Editable e(o);
  e.config["quantization_config"]["weight_block_size"] = {64, 128};
  e.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"weight_block_size", "[64, 128]", "[128, 128]"});
}

TEST(BrokenCheckpoint, StackedShapes) {
  SyntheticOptions o = small("qwen3_moe");
  o.stacked = true;
  Editable a(o);
  a.reshape(kExperts + "down_proj", {4, 64, 64});
  a.expect_load_error(RAMP_ERROR_BAD_FILE, {"gate_up_proj", "[4, 64, 64]", "[E, 2I, H] with [E, H, I]"});
  Editable b(o);
  b.reshape(kExperts + "down_proj", {3, 64, 32});
  b.expect_load_error(RAMP_ERROR_BAD_FILE, {"down_proj BF16 [3, 64, 32]"});
  Editable c(o);
  c.erase(kExperts + "down_proj");
  c.expect_load_error(RAMP_ERROR_BAD_FILE, {kExperts + "down_proj", "no such tensor"});
  Editable d(o);
  d.add(kExperts + "gate_up_proj_bias", RAMP_BF16, {4, 64});
  d.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"gate_up_proj_bias", "expert bias"});
  Editable e(o);
  e.config["num_experts"] = 5;
  e.expect_load_error(RAMP_ERROR_BAD_FILE, {"[4, 64, 64]", "5 experts, as config.json says"});
  Editable f(small());
  f.add(kExperts + "0.gate_proj.bias", RAMP_BF16, {32});
  f.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"0.gate_proj.bias", "expert bias"});
}

TEST(BrokenCheckpoint, SharedExpertsThatCannotBeAppended) {
  SyntheticOptions qwen = small("qwen2_moe");
  qwen.shared_experts = 1;
  Editable a(qwen);
  EXPECT_TRUE(a.open()->layer_info(0).shared.gated);
  a.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"shared_expert_gate", "shared_addend"});
  SyntheticOptions v3 = small("deepseek_v3");
  v3.shared_experts = 1;
  Editable b(v3);
  const std::string shared = "model.layers.0.mlp.shared_experts.";
  b.reshape(shared + "gate_proj.weight", {48, 64});
  EXPECT_EQ(b.open()->layer_info(0).shared.experts, 0);
  EXPECT_EQ(b.open()->layer_info(0).shared.intermediate, 48);
  b.expect_load_error(RAMP_ERROR_UNSUPPORTED,
                      {"intermediate size 48", "a multiple of the routed experts' 32"});
  Editable c(v3);
  c.reshape(shared + "down_proj.weight", {64, 64});
  c.expect_load_error(RAMP_ERROR_BAD_FILE, {"shared_experts.down_proj", "[64, 64]", "[64, 32]"});
  v3.shared_experts = 2;
  v3.format = RAMP_FORMAT_FP8_BLOCK;
  Editable d(v3);
  d.expect_load_error(RAMP_ERROR_UNSUPPORTED, {"2 experts of intermediate size 32", "a multiple of 128"});
  Editable e(small());  // none to append: no error
  const auto plain = e.open();
  EXPECT_EQ(load_layer(*plain, 0, 0, 0, {.append_shared_experts = true}).shared_experts, 0);
}

TEST(BrokenCheckpoint, Ranges) {
  Editable m(small());
  const auto c = m.open();
  for (const int64_t layer : {int64_t{-1}, int64_t{1}, INT64_MAX, INT64_MIN})
    expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"layer", "0 to 0"},
                 [&] { static_cast<void>(c->layer_info(layer)); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"first_expert"}, [&] { load_layer(*c, 0, -1, 1); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"first_expert", "0 to 3"}, [&] { load_layer(*c, 0, 4, 0); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"3 from 2 on", "4 experts"}, [&] { load_layer(*c, 0, 2, 3); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"experts"}, [&] { load_layer(*c, 0, 0, -1); });
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, {"experts"}, [&] { load_layer(*c, 0, 1, INT64_MAX); });
}

TEST(BrokenCheckpoint, OddBytesBeforeATensorStillGiveAlignedViews) {
  // Other writers do not order by element size: the router may start at any byte. Views must be usable all
  // the same.
  const TempDir dir;
  fs::create_directory(dir / "m");
  std::string header =
      R"({"pad":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
      R"("model.layers.0.mlp.gate.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[1,9]},)"
      R"("model.layers.0.mlp.gate.e_score_correction_bias":{"dtype":"BF16","shape":[1],"data_offsets":[9,11]},)"
      R"("model.layers.0.mlp.experts.0.gate_proj.weight":{"dtype":"BF16","shape":[1,2],"data_offsets":[11,15]},)"
      R"("model.layers.0.mlp.experts.0.up_proj.weight":{"dtype":"BF16","shape":[1,2],"data_offsets":[15,19]},)"
      R"("model.layers.0.mlp.experts.0.down_proj.weight":{"dtype":"BF16","shape":[2,1],"data_offsets":[19,23]}})";
  std::string data(23, '\0');
  const float router[2] = {1.5F, -2.5F};
  std::memcpy(data.data() + 1, router, 8);
  data[9] = '\x80';  // 0x3f80: 1.0
  data[10] = '\x3f';
  for (size_t i = 11; i < 23; ++i) data[i] = static_cast<char>(i);
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size() & 0xff);
  file[1] = static_cast<char>(header.size() >> 8);
  write_text(dir / "lone.safetensors", file + header + data);
  const Checkpoint c(dir / "lone.safetensors");
  for (int twice = 0; twice < 2; ++twice) {
    const LayerInfo info = c.layer_info(0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(info.info.router_weight.data) % 4, 0U);
    EXPECT_EQ(static_cast<const float*>(info.info.router_weight.data)[1], -2.5F);
    EXPECT_EQ(static_cast<const float*>(info.info.router.selection_bias.data)[0], 1.0F);
  }
  const LoadedLayer layer = load_layer(c, 0);
  EXPECT_EQ(layer.w13.as<uint8_t>()[7], 18);
  EXPECT_EQ(layer.w2.as<uint8_t>()[0], 19);
}

}  // namespace
}  // namespace ramp::core
