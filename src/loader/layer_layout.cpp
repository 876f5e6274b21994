// Finding out how a layer's experts are stored.
#include "loader/layer_layout.hpp"

#include <fmt/format.h>

#include "base/error.hpp"
#include "base/tensor.hpp"

namespace ramp::core {
namespace {

std::string where(const CheckpointTensor& t) {
  return fmt::format("tensor '{}' in {}", t.name, *t.file);
}

[[noreturn]] void unsupported(const CheckpointTensor& t, std::string_view expected, std::string_view fix) {
  fail_argument(where(t), t.entry->text(), expected, fix, RAMP_ERROR_UNSUPPORTED);
}

// "mlp." or "block_sparse_moe.", and the kind of names below it.
void find_names(const Checkpoint& c, int64_t layer, int64_t probe, LayerLayout& out) {
  const std::string prefix = c.layer_prefix(layer);
  for (const char* family : {"mlp.", "block_sparse_moe."}) {
    out.base = prefix + family;
    for (const bool mixtral : {false, true}) {
      out.mixtral = mixtral;
      // Any of the three: a missing one is then reported by its own name.
      for (const Projection p : {Projection::kGate, Projection::kUp, Projection::kDown}) {
        if (c.has(out.expert_name(probe, p)) || c.has(out.expert_name(0, p))) return;
      }
    }
    out.mixtral = false;
    for (const char* suffix : {"", ".weight"}) {
      out.stacked_suffix = suffix;
      out.stacked =
          c.has(out.base + "experts.gate_up_proj" + suffix) || c.has(out.base + "experts.down_proj" + suffix);
      if (out.stacked) return;
    }
  }
  fail_argument(fmt::format("layer {}", layer), "no expert tensors in " + c.path(),
                fmt::format("{0}mlp.experts.0.gate_proj.weight, {0}block_sparse_moe.experts.0.w1.weight or "
                            "{0}mlp.experts.gate_up_proj",
                            prefix),
                c.config().quant_method.empty() || c.config().quant_method == "fp8"
                    ? "the layer may be dense; choose another one"
                    : "quantization '" + printable(c.config().quant_method) +
                          "' is not supported: use a bf16 or fp8 checkpoint",
                RAMP_ERROR_BAD_FILE);
}

void check_matrix(const CheckpointTensor& t, size_t ndim) {
  bool ok = t.entry->shape.size() == ndim;
  for (const int64_t extent : t.entry->shape) ok = ok && extent > 0;
  if (!ok)
    fail_argument(where(t), t.entry->text(), fmt::format("{} non-empty dimensions", ndim), {},
                  RAMP_ERROR_BAD_FILE);
}

void check_probe(int64_t probe, const LayerLayout& l) {
  if (probe != 0 && probe >= l.experts)
    fail_argument("first_expert", std::to_string(probe), fmt::format("0 to {}", l.experts - 1),
                  fmt::format("the layer has {} experts", l.experts));
}

void split_shapes(const Checkpoint& c, int64_t probe, LayerLayout& out) {
  const int64_t stated = c.config().num_experts;
  const auto known = [&](int64_t e) { return c.has(out.expert_name(e, Projection::kGate)); };
  if (stated > 0) {
    if (known(stated))
      fail_argument("tensor '" + out.expert_name(stated, Projection::kGate) + "'",
                    "an expert beyond the last", fmt::format("{} experts, as config.json says", stated),
                    "config.json and weights belong to different models", RAMP_ERROR_BAD_FILE);
    out.experts = stated;
  } else {
    while (known(out.experts)) ++out.experts;
  }
  check_probe(probe, out);
  const CheckpointTensor gate = c.get(out.expert_name(probe, Projection::kGate));
  check_matrix(gate, 2);
  out.intermediate = gate.entry->shape[0];
  out.hidden = gate.entry->shape[1];
}

// gate_up [E, 2I, H] with down [E, H, I], or gate_up [E, H, 2I] with down [E, I, H]. At most one of the two
// fits, whatever the sizes (both would need I = 2I), so the shapes always decide.
void stacked_shapes(const Checkpoint& c, int64_t probe, LayerLayout& out) {
  const CheckpointTensor up = c.get(out.expert_name(0, Projection::kUp));
  const CheckpointTensor down = c.get(out.expert_name(0, Projection::kDown));
  check_matrix(up, 3);
  check_matrix(down, 3);
  const auto& u = up.entry->shape;
  const auto& d = down.entry->shape;
  const bool straight = u[2] == d[1] && u[1] % 2 == 0 && u[1] / 2 == d[2];
  out.transposed = u[1] == d[2] && u[2] % 2 == 0 && u[2] / 2 == d[1];
  if (u[0] != d[0] || straight == out.transposed)
    fail_argument(where(up), fmt::format("{} with down_proj {}", up.entry->text(), down.entry->text()),
                  "[E, 2I, H] with [E, H, I], or [E, H, 2I] with [E, I, H]", {}, RAMP_ERROR_BAD_FILE);
  out.experts = u[0];
  out.hidden = straight ? u[2] : u[1];
  out.intermediate = straight ? d[2] : d[1];
  check_probe(probe, out);
  const int64_t stated = c.config().num_experts;
  if (stated > 0 && stated != out.experts)
    fail_argument(where(up), up.entry->text(), fmt::format("{} experts, as config.json says", stated),
                  "config.json and weights belong to different models", RAMP_ERROR_BAD_FILE);
  if (c.has(out.base + "experts.gate_up_proj_bias"))
    fail_argument("tensor '" + out.base + "experts.gate_up_proj_bias'", "an expert bias",
                  "experts without bias", "this version of ramp has no expert bias", RAMP_ERROR_UNSUPPORTED);
}

void find_format(const Checkpoint& c, int64_t probe, LayerLayout& out) {
  const CheckpointTensor t = c.get(out.expert_name(probe, Projection::kDown));
  out.dtype = t.entry->dtype;
  switch (out.dtype) {
    case RAMP_BF16:
      out.format = RAMP_FORMAT_BF16;
      break;
    case RAMP_F16:
      out.format = RAMP_FORMAT_F16;
      break;
    case RAMP_F32:
      out.format = RAMP_FORMAT_F32;
      break;
    case RAMP_E4M3:
      out.format = RAMP_FORMAT_FP8_BLOCK;
      break;
    default:
      unsupported(t, "BF16, F16, F32 or F8_E4M3", "use a bf16 or block-fp8 checkpoint of the model");
  }
  if (out.format != RAMP_FORMAT_FP8_BLOCK) return;
  if (!c.has(t.name + "_scale_inv")) {
    if (c.has(t.name + "_scale"))
      unsupported(
          t, "'" + t.name + "_scale_inv' (128x128 block scales)",
          "its scales are per tensor or per channel (weight_scale), which the loader does not read yet");
    fail_argument(where(t), "no scales", "'" + t.name + "_scale_inv' (128x128 block scales)", {},
                  RAMP_ERROR_BAD_FILE);
  }
  const ModelConfig& config = c.config();
  if (config.block_rows.value_or(128) != 128 || config.block_cols.value_or(128) != 128)
    fail_argument("config.json: weight_block_size",
                  fmt::format("[{}, {}]", *config.block_rows, config.block_cols.value_or(0)), "[128, 128]",
                  {}, RAMP_ERROR_UNSUPPORTED);
  if (out.stacked && out.intermediate % 128 != 0)
    unsupported(t, "an intermediate size that is a multiple of 128 (or one tensor per expert)",
                "gate and up rows share scale blocks in a stacked tensor");
}

}  // namespace

std::string LayerLayout::expert_name(int64_t expert, Projection p) const {
  if (stacked)
    return base + (p == Projection::kDown ? "experts.down_proj" : "experts.gate_up_proj") + stacked_suffix;
  const char* const name = p == Projection::kGate ? (mixtral ? "w1" : "gate_proj")
                           : p == Projection::kUp ? (mixtral ? "w3" : "up_proj")
                                                  : (mixtral ? "w2" : "down_proj");
  return fmt::format("{}experts.{}.{}.weight", base, expert, name);
}

std::string LayerLayout::shared_name(Projection p) const {
  return shared_base +
         (p == Projection::kGate ? "gate_proj"
          : p == Projection::kUp ? "up_proj"
                                 : "down_proj") +
         ".weight";
}

void check_shape(const CheckpointTensor& tensor, ramp_dtype dtype, std::initializer_list<int64_t> shape) {
  bool ok = tensor.entry->dtype == dtype && tensor.entry->shape.size() == shape.size();
  size_t d = 0;
  for (const int64_t extent : shape) {
    ok = ok && tensor.entry->shape[d] == extent;
    ++d;
  }
  if (!ok)
    fail_argument(where(tensor), tensor.entry->text(),
                  fmt::format("{} [{}]", dtype_name(dtype), fmt::join(shape, ", ")),
                  "all experts of a layer must have one dtype and shape", RAMP_ERROR_BAD_FILE);
}

void find_shared(const Checkpoint& c, LayerLayout& out) {
  for (const char* name : {"shared_experts.", "shared_expert."}) {
    out.shared_base = out.base + name;
    if (!c.has(out.shared_name(Projection::kGate))) continue;
    const CheckpointTensor gate = c.get(out.shared_name(Projection::kGate));
    check_matrix(gate, 2);
    out.shared_intermediate = gate.entry->shape[0];
    if (gate.entry->shape[1] != out.hidden)
      fail_argument(where(gate), gate.entry->text(), fmt::format("{} columns (H)", out.hidden), {},
                    RAMP_ERROR_BAD_FILE);
    out.shared_gated = c.has(out.base + "shared_expert_gate.weight");
    return;
  }
  out.shared_base.clear();
}

LayerLayout describe_layer(const Checkpoint& c, int64_t layer, int64_t probe) {
  if (layer < 0 || layer >= c.num_layers())
    fail_argument("layer", std::to_string(layer), fmt::format("0 to {}", c.num_layers() - 1),
                  fmt::format("the checkpoint has {} layers", c.num_layers()));
  if (c.config().is_dense(layer))
    fail_argument("layer", fmt::format("{}, which is dense", layer), "a layer with experts",
                  fmt::format("the first one is {}", c.first_moe_layer()));
  LayerLayout out;
  find_names(c, layer, probe, out);
  if (out.stacked) {
    stacked_shapes(c, probe, out);
  } else {
    split_shapes(c, probe, out);
  }
  const ModelConfig& config = c.config();
  const CheckpointTensor t = c.get(out.expert_name(probe, Projection::kGate));
  if (config.hidden > 0 && config.hidden != out.hidden)
    fail_argument(where(t), t.entry->text(),
                  fmt::format("hidden size {}, as config.json says", config.hidden),
                  "config.json and weights belong to different models", RAMP_ERROR_BAD_FILE);
  if (config.intermediate > 0 && config.intermediate != out.intermediate)
    fail_argument(where(t), t.entry->text(),
                  fmt::format("intermediate size {}, as config.json says", config.intermediate),
                  "config.json and weights belong to different models", RAMP_ERROR_BAD_FILE);
  const std::string& name = t.name;
  if (name.ends_with(".weight") && c.has(name.substr(0, name.size() - 6) + "bias"))
    fail_argument("tensor '" + name.substr(0, name.size() - 6) + "bias'", "an expert bias",
                  "experts without bias", "this version of ramp has no expert bias", RAMP_ERROR_UNSUPPORTED);
  find_format(c, probe, out);
  return out;
}

LayerInfo Checkpoint::layer_info(int64_t layer) const {
  LayerLayout layout = describe_layer(*this, layer, 0);
  find_shared(*this, layout);
  LayerInfo out;
  ramp_layer_info& info = out.info;
  info = ramp_layer_info_init();
  info.format = layout.format;
  info.activation = config_.activation;
  info.num_experts = layout.experts;
  info.top_k = config_.top_k;
  info.hidden = layout.hidden;
  info.intermediate = layout.intermediate;
  info.num_layers = num_layers_;
  info.architecture = config_.architecture.c_str();
  info.router = config_.present ? config_.router : ramp_router_config_init();

  if (has(layout.router_name())) {
    const CheckpointTensor router = get(layout.router_name());
    const ramp_dtype dtype = router.entry->dtype;
    if (dtype != RAMP_BF16 && dtype != RAMP_F16 && dtype != RAMP_F32)
      unsupported(router, "BF16, F16 or F32", "the router must not be quantised");
    check_shape(router, dtype, {layout.experts, layout.hidden});
    info.router_weight = view(router, RAMP_DTYPE_NONE);
  }
  // Mixtral-style names keep it beside the gate, DeepSeek's inside.
  for (const char* bias_name : {"gate.e_score_correction_bias", "e_score_correction_bias"}) {
    const std::string name = layout.base + bias_name;
    if (!has(name) || (config_.present && !config_.wants_selection_bias)) continue;
    const CheckpointTensor bias = get(name);
    const ramp_dtype dtype = bias.entry->dtype;
    if (dtype != RAMP_BF16 && dtype != RAMP_F16 && dtype != RAMP_F32)
      unsupported(bias, "BF16, F16 or F32", {});
    check_shape(bias, dtype, {layout.experts});
    info.router.selection_bias = view(bias, RAMP_F32);
    break;
  }
  if (config_.wants_selection_bias && !present(info.router.selection_bias))
    static_cast<void>(get(layout.base + "gate.e_score_correction_bias"));  // throws, naming it

  out.shared.intermediate = layout.shared_intermediate;
  if (layout.shared_intermediate > 0 && layout.shared_intermediate % layout.intermediate == 0)
    out.shared.experts = layout.shared_intermediate / layout.intermediate;
  out.shared.gated = layout.shared_gated;
  return out;
}

}  // namespace ramp::core
