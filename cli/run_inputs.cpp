// Files and generators of `ramp run`.
#include "cli/run_inputs.hpp"

#include <fmt/format.h>

#include <span>

#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/machine.hpp"
#include "cli/options.hpp"
#include "routing/router.hpp"
#include "routing/sorted_rows.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 30;

bool is_fp8(ramp_format f) {
  return core::weight_dtype(f) == RAMP_E4M3;
}

// T from the first input that knows it; --tokens must agree where given.
int64_t token_count(const InputFlags& f, const RunInputs& in) {
  for (const auto& [option, tensor] :
       {std::pair("--x", &in.x), std::pair("--ids", &in.ids), std::pair("--logits", &in.logits)}) {
    if (!tensor->present()) continue;
    const int64_t tokens = tensor->view.shape[0];
    if (f.tokens != 0 && f.tokens != tokens)
      core::fail_argument("--tokens", std::to_string(f.tokens),
                          fmt::format("{}, the rows of {}", tokens, option),
                          "leave --tokens out when files give the inputs");
    return tokens;
  }
  if (f.tokens == 0)
    core::fail_argument("--tokens", "nothing", "a number of tokens, or files for the inputs",
                        "for example --tokens 32, or --x x.npy --ids ids.npy --topk-weights w.npy");
  return f.tokens;
}

void load_x(const InputFlags& f, const LayerSource& source, RunInputs& in) {
  const int64_t hidden = source.shape().hidden;
  std::vector<ramp_dtype> dtypes = {RAMP_BF16, RAMP_F16, RAMP_F32};
  if (is_fp8(source.format())) dtypes.push_back(RAMP_E4M3);
  in.x = read_tensor("--x", f.x, {dtypes, {-1, hidden}, fmt::format("[T, {}] (H = {})", hidden, hidden)});
  const bool quantised = in.x.view.dtype == RAMP_E4M3;
  const bool wants_scale = quantised && source.format() != RAMP_FORMAT_FP8_TENSOR;
  if (wants_scale != !f.x_scale.empty())
    core::fail_argument("--x-scale", wants_scale ? "nothing" : f.x_scale,
                        wants_scale ? "the scales of the quantised x"
                                    : "no scales: x is not quantised, or its scale is "
                                      "static (fp8_tensor)");
  if (!wants_scale) return;
  const int64_t groups = source.format() == RAMP_FORMAT_FP8_BLOCK ? (hidden + 127) / 128 : 1;
  in.x_scale = read_tensor("--x-scale", f.x_scale,
                           {{RAMP_F32}, {in.x.view.shape[0], groups}, fmt::format("[T, {}]", groups)});
}

void load_map(const InputFlags& f, const LayerSource& source, const CheckpointSource* checkpoint,
              RunInputs& in) {
  if (!f.expert_map.empty()) {
    HostTensor raw = read_tensor("--expert-map", f.expert_map,
                                 {{RAMP_I32, RAMP_I64}, {-1}, "[E_global]: local expert of each id, or -1"});
    const int64_t count = raw.view.shape[0];
    if (count == 0)
      core::fail_argument("--expert-map", fmt::format("no entries in {}", f.expert_map),
                          "one per global expert", "leave it out where ids are local");
    in.expert_map = make_host_tensor(RAMP_I32, {count});
    for (int64_t i = 0; i < count; ++i) {
      const int64_t local = integer_at(raw.view, i);
      if (local < -1 || local >= source.shape().experts)
        core::fail_argument("--expert-map", fmt::format("{} for id {} in {}", local, i, f.expert_map),
                            fmt::format("-1 or a local expert from 0 to {}", source.shape().experts - 1));
      in.expert_map.data.as<int32_t>()[i] = static_cast<int32_t>(local);
    }
    return;
  }
  // A part of a checkpoint's experts: its ids stay global, so the map is known.
  if (checkpoint == nullptr || source.shape().experts == checkpoint->info().num_experts) return;
  const int64_t total = checkpoint->info().num_experts;
  in.expert_map = make_host_tensor(RAMP_I32, {total});
  for (int64_t e = 0; e < total; ++e) {
    const int64_t local = e - checkpoint->first_expert();
    in.expert_map.data.as<int32_t>()[e] =
        local >= 0 && local < source.shape().experts ? static_cast<int32_t>(local) : -1;
  }
}

int64_t global_experts(const LayerSource& source, const RunInputs& in) {
  return in.expert_map.present() ? in.expert_map.view.shape[0] : source.shape().experts;
}

void set_up_router(const InputFlags& f, const LayerSource& source, const CheckpointSource* checkpoint,
                   RunInputs& in) {
  ramp_router_config base = ramp_router_config_init();
  base.top_k = static_cast<int32_t>(source.shape().top_k);
  if (checkpoint != nullptr) base = checkpoint->info().router;
  in.num_logits = in.logits.present() ? in.logits.view.shape[1] : in.router_weight.shape[0];
  in.router = make_router(f.router_flags, base, in.num_logits, in.selection_bias);
  if (in.router.top_k < 1)
    core::fail_argument("--top-k", "nothing", "experts per token",
                        "this checkpoint has no config.json that would say it");
  // The ABI would say "router.top_k"; say it in the words of the flags.
  if (in.router.top_k > in.num_logits)
    core::fail_argument("--top-k", std::to_string(in.router.top_k),
                        fmt::format("at most {}, the number of experts", in.num_logits));
  in.routed = true;
  in.slots = in.router.top_k + in.router.num_shared_experts;
}

// Equal weights 1/k: what --ids without --topk-weights means.
HostTensor equal_weights(int64_t tokens, int64_t top_k) {
  HostTensor w = make_host_tensor(RAMP_F32, {tokens, top_k});
  for (int64_t i = 0; i < tokens * top_k; ++i) w.data.as<float>()[i] = 1.0F / static_cast<float>(top_k);
  return w;
}

void generate_routing(const InputFlags& f, const LayerSource& source, RunInputs& in) {
  const core::WorkloadSpec spec = workload_from("--routing", f.routing);
  const int64_t top_k = f.router_flags.top_k > 0 ? f.router_flags.top_k : source.shape().top_k;
  if (top_k < 1)
    core::fail_argument("--top-k", "nothing", "experts per token",
                        "this checkpoint has no config.json that would say it");
  const core::Routing routing =
      core::make_routing(spec, global_experts(source, in), top_k, in.tokens, static_cast<uint64_t>(f.seed));
  in.slots = top_k;
  in.routing = core::workload_name(spec);
  in.ids = make_host_tensor(RAMP_I32, {in.tokens, top_k});
  in.topk_weights = make_host_tensor(RAMP_F32, {in.tokens, top_k});
  std::copy(routing.ids.begin(), routing.ids.end(), in.ids.data.as<int32_t>());
  std::copy(routing.weights.begin(), routing.weights.end(), in.topk_weights.data.as<float>());
}

}  // namespace

void add_input_options(CLI::App& app, InputFlags& f) {
  constexpr const char* kGroup = "Inputs (.npy; what is missing is generated)";
  add_text(app, "--x", f.x, "FILE",
           "activations [T, H]: float32, float16, bf16 (as uint16), or e4m3 (as uint8)")
      ->group(kGroup);
  add_text(app, "--x-scale", f.x_scale, "FILE", "scales of an e4m3 x: float32 [T, ceil(H/128)] or [T, 1]")
      ->group(kGroup);
  add_text(app, "--ids", f.ids, "FILE", "expert ids [T, k]: int32 or int64; -1 is masked")->group(kGroup);
  add_text(app, "--topk-weights", f.topk_weights, "FILE", "router weights, float32 [T, k] (default: 1/k)")
      ->group(kGroup)
      ->needs("--ids");
  add_text(app, "--logits", f.logits, "FILE", "router logits [T, E] instead of ids: float32, float16 or bf16")
      ->group(kGroup)
      ->excludes("--ids");
  add_switch(app, "--router", f.router, "logits from the checkpoint's router weights and x")
      ->group(kGroup)
      ->excludes("--ids")
      ->excludes("--logits");
  add_integer(app, "--tokens", f.tokens, {1, kMostTokens}, "T", "tokens to generate")->group(kGroup);
  add_text(app, "--routing", f.routing, "ROUTING", "generated routing, as 'ramp workload' takes it")
      ->group(kGroup)
      ->excludes("--ids")
      ->excludes("--logits")
      ->excludes("--router");
  add_integer(app, "--seed", f.seed, {0}, "N", "of everything that is generated")->group(kGroup);
  add_text(app, "--expert-map", f.expert_map, "FILE",
           "int32 [E_global]: global id to local expert or -1 (default with --first-expert: that range)")
      ->group(kGroup);
  add_text(app, "--shared-addend", f.shared_addend, "FILE", "added to y, [T, H]: float32, float16 or bf16")
      ->group(kGroup);
  add_router_options(app, f.router_flags);
}

RunInputs make_inputs(const InputFlags& f, const LayerSource& source, const CheckpointSource* checkpoint,
                      const Io& io) {
  RunInputs in;
  const int64_t hidden = source.shape().hidden;
  load_map(f, source, checkpoint, in);
  const int64_t experts = global_experts(source, in);
  if (!f.x.empty()) load_x(f, source, in);
  if (f.x.empty() && !f.x_scale.empty()) core::fail_argument("--x-scale", f.x_scale, "it with --x");
  if (!f.ids.empty())
    in.ids = read_tensor("--ids", f.ids,
                         {{RAMP_I32, RAMP_I64}, {in.x.present() ? in.x.view.shape[0] : -1, -1}, "[T, k]"});
  if (!f.logits.empty()) {
    const int64_t rows = in.x.present() ? in.x.view.shape[0] : -1;
    // Shared experts of the router are among the experts, but have no logits.
    const int64_t columns = experts - f.router_flags.shared;
    in.logits =
        read_tensor("--logits", f.logits,
                    {{RAMP_F32, RAMP_BF16, RAMP_F16}, {rows, columns}, fmt::format("[T, {}]", columns)});
  }
  in.tokens = token_count(f, in);
  if (!in.x.present()) {  // x is generated: x and y
    const double bytes = 2.0 * static_cast<double>(in.tokens) * static_cast<double>(hidden) *
                         static_cast<double>(core::dtype_bytes(natural_dtype(source.format())));
    check_memory("--tokens", fmt::format("x and y of {} tokens", in.tokens), bytes);
  }

  if (f.router) {
    if (checkpoint == nullptr)
      core::fail_argument("--router", "random weights", "--checkpoint",
                          "only a checkpoint has router weights");
    in.router_weight = checkpoint->info().router_weight;
    if (in.router_weight.data == nullptr)
      core::fail_argument("--router", "a checkpoint without router weights for this layer",
                          "'gate.weight' in the file", "give --logits or --ids", RAMP_ERROR_BAD_FILE);
  }
  if (f.router || in.logits.present()) {
    in.routing = f.router ? "router" : "logits";
    set_up_router(f, source, checkpoint, in);
    in.ids = make_host_tensor(RAMP_I32, {in.tokens, in.slots});
    in.topk_weights = make_host_tensor(RAMP_F32, {in.tokens, in.slots});
  } else if (in.ids.present()) {
    in.routing = "files";
    in.slots = in.ids.view.shape[1];
    if (in.slots < 1) core::fail_argument("--ids", core::shape_text(in.ids.view), "[T, k] with k >= 1");
    if (f.topk_weights.empty()) {
      io.note("--topk-weights not given: every slot has weight 1/k");
      in.topk_weights = equal_weights(in.tokens, in.slots);
    } else {
      in.topk_weights = read_tensor(
          "--topk-weights", f.topk_weights,
          {{RAMP_F32}, {in.tokens, in.slots}, fmt::format("[{}, {}], as --ids", in.tokens, in.slots)});
    }
  } else {
    generate_routing(f, source, in);
  }

  if (!in.x.present()) {
    in.x = make_host_tensor(natural_dtype(source.format()), {in.tokens, hidden});
    core::fill_activations(
        in.x.view.data, natural_dtype(source.format()), in.tokens, hidden, static_cast<uint64_t>(f.seed),
        [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); });
  }
  if (!f.shared_addend.empty())
    in.shared_addend = read_tensor(
        "--shared-addend", f.shared_addend,
        {{RAMP_F32, RAMP_BF16, RAMP_F16}, {in.tokens, hidden}, fmt::format("[{}, {}]", in.tokens, hidden)});
  return in;
}

std::vector<int32_t> local_histogram(const RunInputs& in, int64_t local_experts) {
  std::vector<int32_t> counts(static_cast<size_t>(local_experts));
  std::span<const int32_t> map;
  if (in.expert_map.present())
    map = {in.expert_map.data.as<int32_t>(), static_cast<size_t>(in.expert_map.view.shape[0])};
  core::histogram(in.ids.view, map, counts);
  return counts;
}

}  // namespace ramp::cli
