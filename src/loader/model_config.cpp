// From config.json to plain values. Keys differ between families; what a family leaves out of its config
// (Mixtral always renormalises, say) is in the table of model types below, taken from the models' published
// code.
#include "loader/model_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>

#include "base/error.hpp"
#include "loader/json.hpp"

namespace ramp::core {
namespace {

using nlohmann::json;

constexpr int64_t kMaxExtent = int64_t{1} << 31;  // of any size in a config; real ones are below 2^20
constexpr int64_t kMaxExperts = 1 << 16;

// The top-k method: plain, or limited to the best groups of experts (DeepSeek).
enum class TopkMethod { kGreedy, kGroupMax, kGroupTop2 };

struct Family {
  const char* model_type;
  ramp_scoring scoring;
  bool renormalize;  // where norm_topk_prob is absent
  TopkMethod method;
};
constexpr std::array<Family, 14> kFamilies = {{
    {"mixtral", RAMP_SCORING_SOFTMAX, true, TopkMethod::kGreedy},
    {"olmoe", RAMP_SCORING_SOFTMAX, false, TopkMethod::kGreedy},
    {"qwen2_moe", RAMP_SCORING_SOFTMAX, false, TopkMethod::kGreedy},
    {"qwen3_moe", RAMP_SCORING_SOFTMAX, false, TopkMethod::kGreedy},
    {"qwen3_vl_moe", RAMP_SCORING_SOFTMAX, true, TopkMethod::kGreedy},
    {"qwen3_vl_moe_text", RAMP_SCORING_SOFTMAX, true, TopkMethod::kGreedy},
    {"qwen3_next", RAMP_SCORING_SOFTMAX, true, TopkMethod::kGreedy},
    {"qwen3_5_moe", RAMP_SCORING_SOFTMAX, true, TopkMethod::kGreedy},
    {"qwen3_5_moe_text", RAMP_SCORING_SOFTMAX, true, TopkMethod::kGreedy},
    {"deepseek_v2", RAMP_SCORING_SOFTMAX, false, TopkMethod::kGreedy},
    {"deepseek_v3", RAMP_SCORING_SIGMOID, true, TopkMethod::kGroupTop2},
    {"deepseek_v32", RAMP_SCORING_SIGMOID, true, TopkMethod::kGroupTop2},
    {"kimi_k2", RAMP_SCORING_SIGMOID, true, TopkMethod::kGroupTop2},
    {"glm4_moe", RAMP_SCORING_SIGMOID, true, TopkMethod::kGroupTop2},
}};

// One JSON object with typed, bounded getters that name file and key.
class Section {
 public:
  Section(const json& object, const std::string& file) : object_(object), file_(file) {}

  // The first of the keys that is there and not null.
  [[nodiscard]] const json* find(std::initializer_list<const char*> keys,
                                 const char** found = nullptr) const {
    for (const char* key : keys) {
      const auto it = object_.find(key);
      if (it == object_.end() || it->is_null()) continue;
      if (found != nullptr) *found = key;
      return &*it;
    }
    return nullptr;
  }
  [[nodiscard]] int64_t integer(std::initializer_list<const char*> keys, int64_t fallback, int64_t low,
                                int64_t high) const {
    const char* key = nullptr;
    const json* value = find(keys, &key);
    return value == nullptr ? fallback : to_integer(*value, key, low, high);
  }
  [[nodiscard]] int64_t to_integer(const json& value, const char* key, int64_t low, int64_t high) const {
    const bool fits =
        value.is_number_integer() &&
        (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
    if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high)
      bad(key, value, fmt::format("an integer in [{}, {}]", low, high));
    return value.get<int64_t>();
  }
  [[nodiscard]] bool boolean(const char* key, bool fallback) const {
    const json* value = find({key});
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) bad(key, *value, "true or false");
    return value->get<bool>();
  }
  [[nodiscard]] double number(const char* key, double fallback) const {
    const json* value = find({key});
    if (value == nullptr) return fallback;
    if (!value->is_number()) bad(key, *value, "a number");
    return value->get<double>();
  }
  [[nodiscard]] std::string text(std::initializer_list<const char*> keys, const char* fallback) const {
    const char* key = nullptr;
    const json* value = find(keys, &key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) bad(key, *value, "a string");
    return value->get<std::string>();
  }
  // Shows at most a scalar of the offending value: it comes from the file and may be of any size.
  [[noreturn]] void bad(const char* key, const json& value, std::string_view expected,
                        ramp_status status = RAMP_ERROR_BAD_FILE) const {
    const std::string got = value.is_structured() ? std::string("an ") + value.type_name()
                            : value.is_string()
                                ? fmt::format("'{}'", printable(value.get_ref<const std::string&>()))
                                : value.dump();
    fail_argument(fmt::format("{}: {}", file_, key), got, expected, {}, status);
  }
  [[nodiscard]] const std::string& file() const { return file_; }

 private:
  const json& object_;
  const std::string& file_;
};

constexpr std::initializer_list<const char*> kExpertKeys = {"num_local_experts", "num_experts",
                                                            "n_routed_experts"};

ramp_activation parse_hidden_act(const Section& s) {
  const char* key = "hidden_act";
  const json* value = s.find({"hidden_act", "hidden_activation"}, &key);
  if (value == nullptr) return RAMP_ACTIVATION_SILU_AND_MUL;
  const std::string name = s.text({key}, "");
  if (name == "silu" || name == "swish") return RAMP_ACTIVATION_SILU_AND_MUL;
  if (name == "gelu") return RAMP_ACTIVATION_GELU_AND_MUL;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return RAMP_ACTIVATION_GELU_TANH_AND_MUL;
  s.bad(key, *value, "silu, gelu, gelu_pytorch_tanh or gelu_new (gated experts)", RAMP_ERROR_UNSUPPORTED);
}

ramp_scoring parse_scoring(const Section& s, const json& value) {
  const std::string name = s.text({"scoring_func"}, "");
  if (name == "softmax") return RAMP_SCORING_SOFTMAX;
  if (name == "sigmoid") return RAMP_SCORING_SIGMOID;
  s.bad("scoring_func", value, "softmax or sigmoid", RAMP_ERROR_UNSUPPORTED);
}

TopkMethod parse_topk_method(const Section& s, const json& value) {
  const std::string name = s.text({"topk_method"}, "");
  if (name == "greedy") return TopkMethod::kGreedy;
  if (name == "group_limited_greedy") return TopkMethod::kGroupMax;
  if (name == "noaux_tc") return TopkMethod::kGroupTop2;
  s.bad("topk_method", value, "greedy, group_limited_greedy or noaux_tc", RAMP_ERROR_UNSUPPORTED);
}

void parse_router(const Section& s, ModelConfig& c) {
  const auto* const family = std::find_if(kFamilies.begin(), kFamilies.end(),
                                          [&](const Family& f) { return c.architecture == f.model_type; });
  const bool known = family != kFamilies.end();
  const json* const scoring = s.find({"scoring_func"});
  const json* const norm = s.find({"norm_topk_prob"});
  const json* const method = s.find({"topk_method"});
  if (!known && (scoring == nullptr || norm == nullptr)) {
    std::string names;
    for (const Family& f : kFamilies) names += (names.empty() ? "" : ", ") + std::string(f.model_type);
    fail_argument(s.file() + ": model_type", fmt::format("'{}'", printable(c.architecture)),
                  "a known one (" + names + "), or scoring_func and norm_topk_prob in the config",
                  "the router of this family is not known to ramp", RAMP_ERROR_UNSUPPORTED);
  }
  ramp_router_config& r = c.router;
  r = ramp_router_config_init();
  r.scoring = scoring != nullptr ? parse_scoring(s, *scoring) : family->scoring;
  r.top_k = static_cast<int32_t>(c.top_k);
  r.renormalize = s.boolean("norm_topk_prob", known && family->renormalize) ? 1 : 0;
  TopkMethod topk = known ? family->method : TopkMethod::kGreedy;
  if (method != nullptr) topk = parse_topk_method(s, *method);
  c.wants_selection_bias = topk == TopkMethod::kGroupTop2;
  const int64_t groups = s.integer({"n_group"}, 1, 0, kMaxExperts);
  const int64_t kept = s.integer({"topk_group"}, 1, 0, kMaxExperts);
  if (topk != TopkMethod::kGreedy && groups > 1) {
    if (c.num_experts % groups != 0)
      fail_argument(s.file() + ": n_group", std::to_string(groups),
                    fmt::format("a divisor of the number of experts ({})", c.num_experts), {},
                    RAMP_ERROR_BAD_FILE);
    if (kept < 1 || kept > groups)
      fail_argument(s.file() + ": topk_group", std::to_string(kept), fmt::format("1 to n_group ({})", groups),
                    {}, RAMP_ERROR_BAD_FILE);
    if (c.top_k > kept * (c.num_experts / groups))
      fail_argument(
          s.file() + ": num_experts_per_tok", std::to_string(c.top_k),
          fmt::format("at most the {} experts of topk_group groups", kept * (c.num_experts / groups)), {},
          RAMP_ERROR_BAD_FILE);
    r.num_groups = static_cast<int32_t>(groups);
    r.topk_groups = static_cast<int32_t>(kept);
    r.group_score = topk == TopkMethod::kGroupTop2 ? RAMP_GROUP_SCORE_TOP2_SUM : RAMP_GROUP_SCORE_MAX;
  }
  const double scale = s.number("routed_scaling_factor", 1.0);
  if (!std::isfinite(scale) || scale <= 0.0 || scale > 1e6)
    fail_argument(s.file() + ": routed_scaling_factor", fmt::format("{}", scale), "a positive number", {},
                  RAMP_ERROR_BAD_FILE);
  r.routed_scaling_factor = static_cast<float>(scale);
}

void parse_quantization(const Section& s, ModelConfig& c) {
  const json* const value = s.find({"quantization_config"});
  if (value == nullptr) return;
  if (!value->is_object()) s.bad("quantization_config", *value, "an object");
  const Section q(*value, s.file());
  c.quant_method = q.text({"quant_method"}, "unnamed");
  const json* const block = q.find({"weight_block_size"});
  if (block == nullptr) return;
  if (!block->is_array() || block->size() != 2) q.bad("weight_block_size", *block, "two integers");
  c.block_rows = q.to_integer((*block)[0], "weight_block_size", 1, kMaxExtent);
  c.block_cols = q.to_integer((*block)[1], "weight_block_size", 1, kMaxExtent);
}

void parse_dense_layers(const Section& s, ModelConfig& c) {
  c.first_k_dense_replace = s.integer({"first_k_dense_replace"}, 0, 0, kMaxExtent);
  c.decoder_sparse_step = s.integer({"decoder_sparse_step"}, 1, 1, kMaxExtent);
  // An integer in DeepSeek's configs, a list per layer in some others (1: has experts).
  const json* const freq = s.find({"moe_layer_freq"});
  if (freq != nullptr && freq->is_array()) {
    for (size_t i = 0; i < freq->size(); ++i) {
      if (s.to_integer((*freq)[i], "moe_layer_freq", 0, 1) == 0)
        c.mlp_only_layers.push_back(static_cast<int64_t>(i));
    }
  } else {
    c.moe_layer_freq = s.integer({"moe_layer_freq"}, 1, 1, kMaxExtent);
  }
  const json* const only = s.find({"mlp_only_layers"});
  if (only == nullptr) return;
  if (!only->is_array()) s.bad("mlp_only_layers", *only, "an array of integers");
  for (const json& layer : *only)
    c.mlp_only_layers.push_back(s.to_integer(layer, "mlp_only_layers", 0, kMaxExtent));
}

}  // namespace

bool ModelConfig::is_dense(int64_t layer) const noexcept {
  if (layer < first_k_dense_replace || layer % moe_layer_freq != 0) return true;
  if ((layer + 1) % decoder_sparse_step != 0) return true;
  return std::find(mlp_only_layers.begin(), mlp_only_layers.end(), layer) != mlp_only_layers.end();
}

ModelConfig parse_model_config(std::string_view text, const std::string& name) {
  const json root = parse_json_object(text, name);
  const Section top(root, name);
  // Multimodal models keep the language model's keys in text_config.
  const json* object = &root;
  if (const json* inner = top.find({"text_config"});
      inner != nullptr && inner->is_object() && Section(*inner, name).find(kExpertKeys) != nullptr)
    object = inner;
  const Section s(*object, name);

  ModelConfig c;
  c.present = true;
  c.architecture = s.text({"model_type"}, top.text({"model_type"}, "unknown").c_str());
  if (s.find(kExpertKeys) == nullptr)
    fail_argument(name, "no num_local_experts, num_experts or n_routed_experts", "the config of an MoE model",
                  fmt::format("model_type is '{}'", printable(c.architecture)), RAMP_ERROR_UNSUPPORTED);
  c.num_experts = s.integer(kExpertKeys, 0, 1, kMaxExperts);
  c.top_k = s.integer({"num_experts_per_tok"}, 0, 1, kMaxExperts);
  if (c.top_k == 0)
    fail_argument(name, "no num_experts_per_tok", "the number of experts per token", {}, RAMP_ERROR_BAD_FILE);
  if (c.top_k > c.num_experts)
    fail_argument(name + ": num_experts_per_tok", std::to_string(c.top_k),
                  fmt::format("at most the number of experts ({})", c.num_experts), {}, RAMP_ERROR_BAD_FILE);
  c.hidden = s.integer({"hidden_size"}, 0, 1, kMaxExtent);
  // Where both are there, intermediate_size is that of the dense layers.
  c.intermediate = s.integer({"moe_intermediate_size", "intermediate_size"}, 0, 1, kMaxExtent);
  c.num_layers = s.integer({"num_hidden_layers"}, 0, 1, kMaxExperts);
  c.num_shared_experts = s.integer({"n_shared_experts"}, 0, 0, kMaxExperts);
  c.activation = parse_hidden_act(s);
  parse_router(s, c);
  parse_dense_layers(s, c);
  parse_quantization(object != &root && s.find({"quantization_config"}) == nullptr ? top : s, c);
  return c;
}

}  // namespace ramp::core
