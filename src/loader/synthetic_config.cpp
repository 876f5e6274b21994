// config.json and the option checks of synthetic checkpoints, one family at a time.
#include "loader/synthetic_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {

using nlohmann::ordered_json;

nlohmann::ordered_json synthetic_config(const SyntheticOptions& o) {
  const ModelShape& s = o.shape;
  const std::string& a = o.architecture;
  const bool deepseek = a.starts_with("deepseek");
  ordered_json c;
  c["model_type"] = a;
  c["hidden_act"] = "silu";
  c["hidden_size"] = s.hidden;
  c["num_hidden_layers"] = o.layers;
  c[a == "mixtral" ? "num_local_experts" : deepseek ? "n_routed_experts" : "num_experts"] = s.experts;
  c["num_experts_per_tok"] = s.top_k;
  c["intermediate_size"] = s.intermediate;
  if (a != "mixtral" && a != "olmoe") c["moe_intermediate_size"] = s.intermediate;
  if (a != "mixtral") c["norm_topk_prob"] = a == "qwen3_moe" || a == "deepseek_v3";
  if (a.starts_with("qwen")) {
    c["decoder_sparse_step"] = 1;
    c["mlp_only_layers"] = ordered_json::array();
    if (a == "qwen2_moe") c["shared_expert_intermediate_size"] = o.shared_experts * s.intermediate;
  }
  if (deepseek) {
    const bool v3 = a == "deepseek_v3";
    // Up to 4 groups of at least two experts, half of them kept where the kept ones hold k experts.
    int64_t groups = s.experts % 4 == 0 && s.experts >= 8 ? 4 : 1;
    if (s.top_k > s.experts / 2) groups = 1;
    c["first_k_dense_replace"] = o.dense_layers;
    c["moe_layer_freq"] = 1;
    c["n_shared_experts"] = o.shared_experts;
    c["n_group"] = groups;
    c["topk_group"] = groups == 1 ? 1 : groups / 2;
    c["topk_method"] = v3 ? "noaux_tc" : "group_limited_greedy";
    c["scoring_func"] = v3 ? "sigmoid" : "softmax";
    c["routed_scaling_factor"] = v3 ? 2.5 : 1.0;
  }
  if (o.format == RAMP_FORMAT_FP8_BLOCK) {
    c["quantization_config"] = {{"quant_method", "fp8"},
                                {"fmt", "e4m3"},
                                {"activation_scheme", "dynamic"},
                                {"weight_block_size", {kGroup, kGroup}}};
  }
  c[kSyntheticMarker] = true;
  return c;
}

void check_synthetic_options(const SyntheticOptions& o) {
  constexpr std::array<std::string_view, 6> kKnown = {"olmoe",     "mixtral",     "qwen2_moe",
                                                      "qwen3_moe", "deepseek_v2", "deepseek_v3"};
  const bool known = std::find(kKnown.begin(), kKnown.end(), o.architecture) != kKnown.end();
  if (!known)
    fail_argument("architecture", "'" + printable(o.architecture) + "'",
                  fmt::format("one of {}", fmt::join(kKnown, ", ")));
  if (o.format != RAMP_FORMAT_FP8_BLOCK && o.format != RAMP_FORMAT_BF16 && o.format != RAMP_FORMAT_F16 &&
      o.format != RAMP_FORMAT_F32)
    fail_argument("format", format_name(o.format), "fp8_block, bf16, fp16 or f32");
  const ModelShape& s = o.shape;
  constexpr int64_t kMax = int64_t{1} << 20;
  for (const int64_t v : {s.experts, s.top_k, s.hidden, s.intermediate, o.layers, o.shards}) {
    if (v < 1 || v > kMax)
      fail_argument("synthetic checkpoint",
                    fmt::format("E {}, k {}, H {}, I {}, layers {}, shards {}", s.experts, s.top_k, s.hidden,
                                s.intermediate, o.layers, o.shards),
                    fmt::format("each from 1 to {}", kMax));
  }
  if (s.top_k > s.experts)
    fail_argument("top_k", std::to_string(s.top_k), fmt::format("at most E = {}", s.experts));
  const bool deepseek = o.architecture.starts_with("deepseek");
  if (o.dense_layers < 0 || o.dense_layers >= o.layers || (o.dense_layers > 0 && !deepseek))
    fail_argument("dense_layers", std::to_string(o.dense_layers),
                  "0, or fewer than layers with a DeepSeek architecture");
  const int64_t most_shared = deepseek ? 16 : o.architecture == "qwen2_moe" ? 1 : 0;
  if (o.shared_experts < 0 || o.shared_experts > most_shared)
    fail_argument("shared_experts", std::to_string(o.shared_experts),
                  fmt::format("0 to {} for {}", most_shared, o.architecture));
  if (o.scale_dtype != RAMP_F32 && o.scale_dtype != RAMP_BF16)
    fail_argument("scale_dtype", dtype_name(o.scale_dtype), "f32 or bf16");
  if (o.stacked && o.format == RAMP_FORMAT_FP8_BLOCK && s.intermediate % kGroup != 0)
    fail_argument("intermediate", std::to_string(s.intermediate), "a multiple of 128 for stacked fp8_block");
}

}  // namespace ramp::core
