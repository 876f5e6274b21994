// config.json: the router that each model family means, dense layers, quantisation, and the error for every
// kind of wrong value.
#include "loader/model_config.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/test_support.hpp"
#include "loader/json.hpp"

namespace ramp::core {
namespace {

using nlohmann::json;
using test::expect_error;

ModelConfig parse(const json& config) {
  return parse_model_config(config.dump(), "config.json");
}
void expect_bad(const json& config, std::initializer_list<std::string_view> parts,
                ramp_status status = RAMP_ERROR_BAD_FILE) {
  expect_error(status, parts, [&] { parse(config); });
}

json mixtral() {
  return {{"model_type", "mixtral"},    {"hidden_act", "silu"},   {"hidden_size", 4096},
          {"intermediate_size", 14336}, {"num_local_experts", 8}, {"num_experts_per_tok", 2},
          {"num_hidden_layers", 32}};
}
// The relevant keys of DeepSeek-V3's published config.
json deepseek_v3() {
  return {{"model_type", "deepseek_v3"},
          {"hidden_act", "silu"},
          {"hidden_size", 7168},
          {"intermediate_size", 18432},
          {"moe_intermediate_size", 2048},
          {"n_routed_experts", 256},
          {"num_experts_per_tok", 8},
          {"n_shared_experts", 1},
          {"num_hidden_layers", 61},
          {"first_k_dense_replace", 3},
          {"moe_layer_freq", 1},
          {"n_group", 8},
          {"topk_group", 4},
          {"topk_method", "noaux_tc"},
          {"scoring_func", "sigmoid"},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 2.5},
          {"quantization_config",
           {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"quant_method", "fp8"},
            {"weight_block_size", {128, 128}}}}};
}

TEST(ModelConfig, Mixtral) {
  const ModelConfig c = parse(mixtral());
  EXPECT_EQ(c.architecture, "mixtral");
  EXPECT_EQ(c.num_experts, 8);
  EXPECT_EQ(c.top_k, 2);
  EXPECT_EQ(c.hidden, 4096);
  EXPECT_EQ(c.intermediate, 14336);
  EXPECT_EQ(c.num_layers, 32);
  EXPECT_EQ(c.router.struct_size, sizeof(ramp_router_config));
  EXPECT_EQ(c.router.scoring, RAMP_SCORING_SOFTMAX);
  EXPECT_EQ(c.router.top_k, 2);
  EXPECT_EQ(c.router.renormalize, 1);  // Mixtral always does; its config does not say so
  EXPECT_EQ(c.router.num_groups, 0);
  EXPECT_EQ(c.router.routed_scaling_factor, 1.0F);
  EXPECT_FALSE(c.wants_selection_bias);
  EXPECT_FALSE(c.is_dense(0));
  EXPECT_EQ(c.quant_method, "");
}

TEST(ModelConfig, DeepSeekV3) {
  const ModelConfig c = parse(deepseek_v3());
  EXPECT_EQ(c.num_experts, 256);
  EXPECT_EQ(c.intermediate, 2048);
  EXPECT_EQ(c.num_shared_experts, 1);
  EXPECT_EQ(c.router.scoring, RAMP_SCORING_SIGMOID);
  EXPECT_EQ(c.router.renormalize, 1);
  EXPECT_EQ(c.router.num_groups, 8);
  EXPECT_EQ(c.router.topk_groups, 4);
  EXPECT_EQ(c.router.group_score, RAMP_GROUP_SCORE_TOP2_SUM);
  EXPECT_EQ(c.router.routed_scaling_factor, 2.5F);
  EXPECT_EQ(c.router.num_shared_experts, 0);
  EXPECT_TRUE(c.wants_selection_bias);
  EXPECT_TRUE(c.is_dense(2));
  EXPECT_FALSE(c.is_dense(3));
  EXPECT_EQ(c.quant_method, "fp8");
  EXPECT_EQ(c.block_rows, 128);
  EXPECT_EQ(c.block_cols, 128);
}

TEST(ModelConfig, DeepSeekV2AndLite) {
  json j = deepseek_v3();
  j["model_type"] = "deepseek_v2";
  j["scoring_func"] = "softmax";
  j["topk_method"] = "group_limited_greedy";
  j["norm_topk_prob"] = false;
  j["routed_scaling_factor"] = 16.0;
  ModelConfig c = parse(j);
  EXPECT_EQ(c.router.scoring, RAMP_SCORING_SOFTMAX);
  EXPECT_EQ(c.router.group_score, RAMP_GROUP_SCORE_MAX);
  EXPECT_EQ(c.router.num_groups, 8);
  EXPECT_EQ(c.router.renormalize, 0);
  EXPECT_EQ(c.router.routed_scaling_factor, 16.0F);
  EXPECT_FALSE(c.wants_selection_bias);
  j["topk_method"] = "greedy";  // V2-Lite: groups are named but not used
  c = parse(j);
  EXPECT_EQ(c.router.num_groups, 0);
}

struct FamilyCase {
  const char* model_type;
  const char* experts_key;
  int32_t scoring, renormalize;
  bool bias;
};
class Families : public ::testing::TestWithParam<FamilyCase> {};
TEST_P(Families, DefaultsAndOverrides) {
  const FamilyCase& f = GetParam();
  json j = {{"model_type", f.model_type},    {f.experts_key, 64},
            {"num_experts_per_tok", 8},      {"hidden_size", 2048},
            {"moe_intermediate_size", 1024}, {"intermediate_size", 9999},
            {"num_hidden_layers", 4}};
  const ModelConfig c = parse(j);
  EXPECT_EQ(c.architecture, f.model_type);
  EXPECT_EQ(c.num_experts, 64);
  EXPECT_EQ(c.intermediate, 1024);
  EXPECT_EQ(c.router.scoring, f.scoring);
  EXPECT_EQ(c.router.renormalize, f.renormalize);
  EXPECT_EQ(c.wants_selection_bias, f.bias);
  j["norm_topk_prob"] = f.renormalize == 0;
  EXPECT_EQ(parse(j).router.renormalize, 1 - f.renormalize);
}
INSTANTIATE_TEST_SUITE_P(
    All, Families,
    ::testing::Values(FamilyCase{"olmoe", "num_experts", RAMP_SCORING_SOFTMAX, 0, false},
                      FamilyCase{"qwen2_moe", "num_experts", RAMP_SCORING_SOFTMAX, 0, false},
                      FamilyCase{"qwen3_moe", "num_experts", RAMP_SCORING_SOFTMAX, 0, false},
                      FamilyCase{"qwen3_next", "num_experts", RAMP_SCORING_SOFTMAX, 1, false},
                      FamilyCase{"deepseek_v2", "n_routed_experts", RAMP_SCORING_SOFTMAX, 0, false},
                      FamilyCase{"deepseek_v3", "n_routed_experts", RAMP_SCORING_SIGMOID, 1, true},
                      FamilyCase{"kimi_k2", "n_routed_experts", RAMP_SCORING_SIGMOID, 1, true},
                      FamilyCase{"glm4_moe", "n_routed_experts", RAMP_SCORING_SIGMOID, 1, true}),
    [](const auto& info) { return std::string(info.param.model_type); });

TEST(ModelConfig, UnknownFamiliesMustSpellOutTheirRouter) {
  json j = mixtral();
  j["model_type"] = "brand_new";
  expect_bad(j, {"model_type", "'brand_new'", "scoring_func and norm_topk_prob"}, RAMP_ERROR_UNSUPPORTED);
  j["scoring_func"] = "sigmoid";
  j["norm_topk_prob"] = true;
  EXPECT_EQ(parse(j).router.scoring, RAMP_SCORING_SIGMOID);
  j["scoring_func"] = "sqrtsoftplus";
  expect_bad(j, {"scoring_func", "'sqrtsoftplus'"}, RAMP_ERROR_UNSUPPORTED);
  j = deepseek_v3();
  j["topk_method"] = "other";
  expect_bad(j, {"topk_method", "'other'"}, RAMP_ERROR_UNSUPPORTED);
}

TEST(ModelConfig, Activations) {
  json j = mixtral();
  for (const auto& [name, value] : {std::pair{"silu", RAMP_ACTIVATION_SILU_AND_MUL},
                                    {"gelu", RAMP_ACTIVATION_GELU_AND_MUL},
                                    {"gelu_pytorch_tanh", RAMP_ACTIVATION_GELU_TANH_AND_MUL}}) {
    j["hidden_act"] = name;
    EXPECT_EQ(parse(j).activation, value);
  }
  j["hidden_act"] = "relu";
  expect_bad(j, {"hidden_act", "'relu'", "silu"}, RAMP_ERROR_UNSUPPORTED);
  j.erase("hidden_act");
  EXPECT_EQ(parse(j).activation, RAMP_ACTIVATION_SILU_AND_MUL);
}

TEST(ModelConfig, DenseLayersOfQwen) {
  json j = mixtral();
  j["decoder_sparse_step"] = 2;
  j["mlp_only_layers"] = {3};
  const ModelConfig c = parse(j);
  EXPECT_TRUE(c.is_dense(0));  // (0 + 1) % 2 != 0
  EXPECT_FALSE(c.is_dense(1));
  EXPECT_TRUE(c.is_dense(3));
  EXPECT_FALSE(c.is_dense(5));
  j = mixtral();
  j["moe_layer_freq"] = {0, 1, 1};
  EXPECT_TRUE(parse(j).is_dense(0));
  EXPECT_FALSE(parse(j).is_dense(1));
}

TEST(ModelConfig, MultimodalTextConfig) {
  json inner = mixtral();
  inner["model_type"] = "qwen3_vl_moe_text";
  const json outer = {{"model_type", "qwen3_vl_moe"},
                      {"text_config", inner},
                      {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}};
  const ModelConfig c = parse(outer);
  EXPECT_EQ(c.architecture, "qwen3_vl_moe_text");
  EXPECT_EQ(c.num_experts, 8);
  EXPECT_EQ(c.quant_method, "fp8");
}

TEST(ModelConfig, WrongValuesNameTheKey) {
  const auto with = [](const char* key, const json& value) {
    json j = deepseek_v3();
    j[key] = value;
    return j;
  };
  for (const json& value :
       {json(0), json(-1), json(1.5), json("8"), json(true), json(json::array()), json(json::object()),
        json(UINT64_MAX), json(INT64_MIN), json(1e300), json(65537)})
    expect_bad(with("n_routed_experts", value),
               {"config.json: n_routed_experts", "an integer in [1, 65536]"});
  expect_bad(with("num_experts_per_tok", 257),
             {"num_experts_per_tok", "257", "at most the number of experts (256)"});
  expect_bad(with("num_experts_per_tok", nullptr), {"no num_experts_per_tok"});
  expect_bad(with("hidden_size", "large"), {"hidden_size", "'large'"});
  expect_bad(with("moe_intermediate_size", -5), {"moe_intermediate_size"});
  expect_bad(with("num_hidden_layers", 0), {"num_hidden_layers"});
  expect_bad(with("n_group", 7), {"n_group", "a divisor of the number of experts (256)"});
  expect_bad(with("topk_group", 9), {"topk_group", "1 to n_group (8)"});
  expect_bad(with("topk_group", 0), {"topk_group"});
  expect_bad(with("norm_topk_prob", 1), {"norm_topk_prob", "true or false"});
  expect_bad(with("routed_scaling_factor", "2"), {"routed_scaling_factor", "a number"});
  expect_bad(with("routed_scaling_factor", 0), {"routed_scaling_factor", "positive"});
  expect_bad(with("routed_scaling_factor", -1.0), {"positive"});
  expect_bad(with("scoring_func", 3), {"scoring_func", "a string"});
  expect_bad(with("model_type", 3), {"model_type", "a string"});
  expect_bad(with("hidden_act", 3), {"hidden_act", "a string"});
  expect_bad(with("first_k_dense_replace", -1), {"first_k_dense_replace"});
  expect_bad(with("moe_layer_freq", 0), {"moe_layer_freq"});
  expect_bad(with("decoder_sparse_step", 0), {"decoder_sparse_step"});
  expect_bad(with("mlp_only_layers", 3), {"mlp_only_layers"});
  expect_bad(with("mlp_only_layers", {"x"}), {"mlp_only_layers"});
  expect_bad(with("quantization_config", 3), {"quantization_config", "an object"});
  expect_bad(with("quantization_config", {{"weight_block_size", {128}}}),
             {"weight_block_size", "two integers"});
  expect_bad(with("quantization_config", {{"weight_block_size", {128, 0}}}), {"weight_block_size"});
  json small = deepseek_v3();
  small["topk_group"] = 1;
  small["n_routed_experts"] = 32;
  expect_bad(small, {"num_experts_per_tok", "at most the 4 experts of topk_group groups"});
}

TEST(ModelConfig, DenseModelsAreRefused) {
  json j = mixtral();
  j.erase("num_local_experts");
  j["model_type"] = "llama";
  expect_bad(j, {"config.json", "the config of an MoE model", "'llama'"}, RAMP_ERROR_UNSUPPORTED);
}

TEST(BoundedJson, RefusesWhatIsNotAPlainObject) {
  const auto parse_text = [](std::string_view text) { parse_json_object(text, "f.json", 1000); };
  parse_text("{\"a\": [1, 2.5, null]}");
  for (const char* text : {"", "{", "[", "nul", "{\"a\":}", "{} {}", "{\"a\":1e999}"})
    expect_error(RAMP_ERROR_BAD_FILE, {"f.json", "malformed JSON"}, [&] { parse_text(text); });
  for (const char* text : {"[]", "1", "\"x\"", "null"})
    expect_error(RAMP_ERROR_BAD_FILE, {"f.json", "a JSON object"}, [&] { parse_text(text); });
  expect_error(RAMP_ERROR_BAD_FILE, {"not UTF-8"}, [&] { parse_text("{\"\xff\":1}"); });
  expect_error(RAMP_ERROR_BAD_FILE, {"1001 bytes", "at most 1000"},
               [&] { parse_text(std::string(1001, ' ')); });
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100000; ++i) deep += '[';
  expect_error(RAMP_ERROR_BAD_FILE, {"deeper than 64"}, [&] { parse_json_object(deep, "f.json"); });
}

}  // namespace
}  // namespace ramp::core
