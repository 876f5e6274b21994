// Checkpoints through the C ABI: a small one is written here by hand (config.json and safetensors), so that
// the test does not depend on the library's own writer.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "abi/support.hpp"

namespace abi_test {
namespace {

namespace fs = std::filesystem;

// OLMoE names, one layer, f32 exact experts.
class CheckpointTest : public testing::Test {
 protected:
  static constexpr int64_t kE = 4, kH = 64, kI = 32;
  Model model{RAMP_FORMAT_F32, RAMP_ACTIVATION_SILU_AND_MUL, kE, kH, kI, 3, true};
  Array gate{RAMP_F32, {kE, kH}};
  fs::path dir = fs::temp_directory_path() / ("ramp_abi_test_" + std::to_string(getpid()));
  Context context = make_context(RAMP_BACKEND_CPU);

  void SetUp() override {
    for (int64_t i = 0; i < gate.size(); ++i) gate.set(i, static_cast<float>(i % 13) - 6.0F);
    fs::create_directories(dir);
    std::ofstream(dir / "config.json")
        << R"({"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64,)"
        << R"( "intermediate_size": 32, "num_hidden_layers": 1, "norm_topk_prob": false, "hidden_act": "silu"})";
    std::string header = "{";
    std::string data;
    const auto add = [&](const std::string& name, const void* from, int64_t rows, int64_t cols) {
      const size_t bytes = static_cast<size_t>(rows * cols) * 4;
      if (header.size() > 1) header.append(",");
      header.append("\"model.layers.0.mlp.").append(name).append("\":{\"dtype\":\"F32\",\"shape\":[");
      header.append(std::to_string(rows)).append(",").append(std::to_string(cols));
      header.append("],\"data_offsets\":[").append(std::to_string(data.size())).append(",");
      header.append(std::to_string(data.size() + bytes)).append("]}");
      data.append(static_cast<const char*>(from), bytes);
    };
    for (int64_t e = 0; e < kE; ++e) {
      const std::string expert = "experts." + std::to_string(e) + ".";
      const std::byte* w13 = model.w13.bytes.data() + e * 2 * kI * kH * 4;
      add(expert + "gate_proj.weight", w13, kI, kH);
      add(expert + "up_proj.weight", w13 + kI * kH * 4, kI, kH);
      add(expert + "down_proj.weight", model.w2.bytes.data() + e * kH * kI * 4, kH, kI);
    }
    add("gate.weight", gate.bytes.data(), kE, kH);
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t size = header.size();
    std::ofstream file(dir / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), 8);
    file << header << data;
  }
  void TearDown() override { fs::remove_all(dir); }

  Checkpoint open() {
    ramp_checkpoint* c = nullptr;
    EXPECT_EQ(ramp_checkpoint_open(dir.c_str(), &c), RAMP_OK) << ramp_last_error();
    return Checkpoint(c);
  }
  ramp_status load(const Checkpoint& c, int64_t layer, int64_t first, int64_t count, Weights& out) {
    ramp_weights* w = nullptr;
    const ramp_status status =
        ramp_checkpoint_load_weights(context.get(), c.get(), layer, first, count, nullptr, &w);
    EXPECT_EQ(w != nullptr, status == RAMP_OK);
    out.reset(w);
    return status;
  }
};

TEST_F(CheckpointTest, LayerInfo) {
  const Checkpoint c = open();
  ramp_layer_info info = ramp_layer_info_init();
  ASSERT_EQ(ramp_checkpoint_layer_info(c.get(), 0, &info), RAMP_OK) << ramp_last_error();
  EXPECT_EQ(info.format, RAMP_FORMAT_F32);
  EXPECT_EQ(info.activation, RAMP_ACTIVATION_SILU_AND_MUL);
  EXPECT_EQ(info.num_experts, kE);
  EXPECT_EQ(info.top_k, 2);
  EXPECT_EQ(info.hidden, kH);
  EXPECT_EQ(info.intermediate, kI);
  EXPECT_EQ(info.num_layers, 1);
  EXPECT_STREQ(info.architecture, "olmoe");
  EXPECT_EQ(info.router.struct_size, sizeof(ramp_router_config));
  EXPECT_EQ(info.router.top_k, 2);
  ASSERT_NE(info.router_weight.data, nullptr);
  EXPECT_EQ(std::memcmp(info.router_weight.data, gate.bytes.data(), gate.bytes.size()), 0);
}

TEST_F(CheckpointTest, LoadedWeightsOutliveTheCheckpointAndRun) {
  Weights w;
  {
    const Checkpoint c = open();
    ASSERT_EQ(load(c, 0, 0, 0, w), RAMP_OK) << ramp_last_error();
  }
  fs::remove_all(dir);
  const Weights direct = make_weights(context, model.desc());
  for (const bool packed : {false, true}) {
    if (packed) {
      ASSERT_EQ(ramp_weights_pack(context.get(), w.get(), nullptr), RAMP_OK) << ramp_last_error();
      ASSERT_EQ(ramp_weights_pack(context.get(), direct.get(), nullptr), RAMP_OK);
    }
    Call a(model, w.get(), 5, 2, 1, true);
    Call b(model, direct.get(), 5, 2, 1, true);
    ASSERT_EQ(ramp_expert_block(context.get(), &a.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
    ASSERT_EQ(ramp_expert_block(context.get(), &b.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
    EXPECT_EQ(a.y.bytes, b.y.bytes);
  }
  ramp_weights_info info = ramp_weights_info_init();
  ASSERT_EQ(ramp_weights_get_info(w.get(), &info), RAMP_OK);
  EXPECT_EQ(info.ownership, RAMP_COPY);
}

TEST_F(CheckpointTest, ARangeOfExperts) {
  const Checkpoint c = open();
  Weights w;
  ASSERT_EQ(load(c, 0, 1, 2, w), RAMP_OK) << ramp_last_error();
  Array w13(RAMP_F32, {2, 2 * kI, kH});
  const ramp_tensor v = w13.view();
  ASSERT_EQ(ramp_weights_unpack(context.get(), w.get(), &v, nullptr, nullptr), RAMP_OK) << ramp_last_error();
  EXPECT_EQ(std::memcmp(w13.bytes.data(), model.w13.bytes.data() + 2 * kI * kH * 4, w13.bytes.size()), 0);
  ASSERT_EQ(load(c, 0, 3, 0, w), RAMP_OK) << ramp_last_error();  // 0: all from there on
  ramp_weights_info info = ramp_weights_info_init();
  ASSERT_EQ(ramp_weights_get_info(w.get(), &info), RAMP_OK);
  EXPECT_EQ(info.num_experts, 1);
}

TEST_F(CheckpointTest, WrongArguments) {
  const Checkpoint c = open();
  ramp_layer_info info = ramp_layer_info_init();
  constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;
  expect_error(ramp_checkpoint_layer_info(c.get(), 1, &info), kInvalid, {"layer", "1"});
  expect_error(ramp_checkpoint_layer_info(c.get(), -1, &info), kInvalid, {"layer", "-1"});
  expect_error(ramp_checkpoint_layer_info(c.get(), 0, nullptr), kInvalid, {"ramp_layer_info"});
  Weights w;
  expect_error(load(c, 7, 0, 0, w), kInvalid, {"layer", "7"});
  expect_error(load(c, 0, -1, 0, w), kInvalid, {"expert", "-1"});
  expect_error(load(c, 0, 4, 1, w), kInvalid, {"expert"});
  expect_error(load(c, 0, 3, 2, w), kInvalid, {"expert"});
  expect_error(load(c, 0, 0, -2, w), kInvalid, {"expert", "-2"});
  expect_error(load(c, 0, INT64_MAX, INT64_MAX, w), kInvalid, {"expert"});
  expect_error(ramp_checkpoint_load_weights(context.get(), c.get(), 0, 0, 0, nullptr, nullptr), kInvalid,
               {"out: got NULL"});
  int stream = 0;
  ramp_weights* out = nullptr;
  expect_error(ramp_checkpoint_load_weights(context.get(), c.get(), 0, 0, 0, &stream, &out), kInvalid,
               {"stream"});
  EXPECT_EQ(out, nullptr);
}

TEST_F(CheckpointTest, BadPathsAndFiles) {
  ramp_checkpoint* out = nullptr;
  const auto open_path = [&](const char* path) { return ramp_checkpoint_open(path, &out); };
  expect_error(open_path(nullptr), RAMP_ERROR_INVALID_ARGUMENT, {"path: got NULL"});
  expect_error(open_path(""), RAMP_ERROR_INVALID_ARGUMENT, {"path: got an empty string"});
  expect_error(open_path((dir / "nowhere").c_str()), RAMP_ERROR_IO, {"nowhere"});
  std::ofstream(dir / "text.safetensors") << "this is no checkpoint at all";
  expect_error(open_path((dir / "text.safetensors").c_str()), RAMP_ERROR_BAD_FILE, {"text.safetensors"});
  fs::resize_file(dir / "model.safetensors", 1000);
  const ramp_status status = open_path(dir.c_str());
  if (status == RAMP_OK) {  // shards may be mapped later
    const Checkpoint c(out);
    ramp_layer_info info = ramp_layer_info_init();
    expect_error(ramp_checkpoint_layer_info(c.get(), 0, &info), RAMP_ERROR_BAD_FILE, {"model.safetensors"});
    out = nullptr;
  } else {
    expect_error(status, RAMP_ERROR_BAD_FILE, {"model.safetensors"});
  }
  EXPECT_EQ(out, nullptr);
}

}  // namespace
}  // namespace abi_test
