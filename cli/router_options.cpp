// Router flags and their JSON.
#include "cli/router_options.hpp"

#include <array>
#include <utility>

#include "cli/options.hpp"

namespace ramp::cli {
namespace {

constexpr std::array<std::pair<ramp_scoring, const char*>, 3> kScoring = {
    {{RAMP_SCORING_SOFTMAX, "softmax"},
     {RAMP_SCORING_TOPK_SOFTMAX, "topk-softmax"},
     {RAMP_SCORING_SIGMOID, "sigmoid"}}};
constexpr std::array<std::pair<ramp_group_score, const char*>, 2> kGroupScore = {
    {{RAMP_GROUP_SCORE_MAX, "max"}, {RAMP_GROUP_SCORE_TOP2_SUM, "top2-sum"}}};

template <typename Table>
std::vector<std::string> names_of(const Table& table) {
  std::vector<std::string> names;
  names.reserve(table.size());
  for (const auto& [value, name] : table) names.emplace_back(name);
  return names;
}
template <typename Table>
int32_t value_of(const Table& table, const std::string& name) {
  for (const auto& [value, known] : table)
    if (name == known) return value;
  return 0;  // add_choice let nothing else through
}
template <typename Table>
const char* name_of(const Table& table, int32_t value) {
  for (const auto& [known, name] : table)
    if (known == value) return name;
  return "unknown";
}

constexpr int64_t kMost = int64_t{1} << 20;

}  // namespace

void add_router_options(CLI::App& app, RouterFlags& f) {
  constexpr const char* kGroup =
      "Router (with --logits or --router; default: the checkpoint's, else softmax)";
  f.app = &app;
  add_choice(app, "--scoring", f.scoring, names_of(kScoring), "how logits become scores")->group(kGroup);
  add_integer(app, "--top-k", f.top_k, {1, kMost}, "K",
              "experts per token (default: the checkpoint's or model's)")
      ->group(kGroup);
  add_switch(app, "--renormalize", f.renormalize, "divide the k weights by their sum")->group(kGroup);
  add_switch(app, "--no-renormalize", f.no_renormalize, "leave the weights as scored")
      ->group(kGroup)
      ->excludes("--renormalize");
  add_integer(app, "--num-groups", f.groups, {1, kMost}, "N", "expert groups")->group(kGroup);
  add_integer(app, "--topk-groups", f.topk_groups, {1, kMost}, "N", "groups kept")->group(kGroup);
  add_choice(app, "--group-score", f.group_score, names_of(kGroupScore), "a group's score")->group(kGroup);
  add_real(app, "--scaling", f.scaling, 1e-6, 1e6, "X", "factor on the routed weights")->group(kGroup);
  add_integer(app, "--router-shared-experts", f.shared, {0, 1024}, "N",
              "experts after the routed ones that every token uses with weight 1")
      ->group(kGroup);
  add_integer(app, "--capacity", f.capacity, {0}, "N", "slots per expert, in token order; 0: no limit")
      ->group(kGroup);
  add_text(app, "--selection-bias", f.bias, "FILE", "f32 [E] .npy added to the scores for selection only")
      ->group(kGroup);
}

ramp_router_config make_router(const RouterFlags& f, ramp_router_config base, int64_t num_logits,
                               HostTensor& bias) {
  const auto given = [&](const char* name) { return f.app->count(name) > 0; };
  if (given("--scoring")) base.scoring = value_of(kScoring, f.scoring);
  if (given("--top-k")) base.top_k = static_cast<int32_t>(f.top_k);
  if (f.renormalize) base.renormalize = 1;
  if (f.no_renormalize) base.renormalize = 0;
  if (given("--num-groups")) base.num_groups = static_cast<int32_t>(f.groups);
  if (given("--topk-groups")) base.topk_groups = static_cast<int32_t>(f.topk_groups);
  if (given("--group-score")) base.group_score = value_of(kGroupScore, f.group_score);
  if (given("--scaling")) base.routed_scaling_factor = static_cast<float>(f.scaling);
  if (given("--router-shared-experts")) base.num_shared_experts = static_cast<int32_t>(f.shared);
  if (given("--capacity")) base.capacity = f.capacity;
  if (!f.bias.empty()) {
    bias = read_tensor("--selection-bias", f.bias, {{RAMP_F32}, {num_logits}, "[E], one per logit"});
    base.selection_bias = bias.view;
  }
  return base;
}

Json to_json(const ramp_router_config& r) {
  return {{"scoring", name_of(kScoring, r.scoring)},
          {"top_k", r.top_k},
          {"renormalize", r.renormalize == 1},
          {"num_groups", r.num_groups},
          {"topk_groups", r.topk_groups},
          {"group_score", name_of(kGroupScore, r.group_score)},
          {"routed_scaling_factor", r.routed_scaling_factor == 0 ? 1.0F : r.routed_scaling_factor},
          {"num_shared_experts", r.num_shared_experts},
          {"capacity", r.capacity},
          {"selection_bias", r.selection_bias.data != nullptr}};
}

}  // namespace ramp::cli
