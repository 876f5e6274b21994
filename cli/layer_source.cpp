// Synthetic layers and checkpoint layers.
#include "cli/layer_source.hpp"

#include <fmt/format.h>

#include <fstream>
#include <string>

#include "abi/handles.hpp"
#include "base/error.hpp"
#include "cli/progress.hpp"
#include "weights/expert_weights.hpp"

namespace ramp::cli {
namespace {

// Anonymous memory of this process: grows as a layer is copied out of its mapped file.
double anonymous_bytes() {
  std::ifstream file("/proc/self/status");
  std::string line;
  while (std::getline(file, line))
    if (line.starts_with("RssAnon:")) return 1024.0 * std::strtod(line.c_str() + 8, nullptr);
  return 0;
}

void pack_layer(ramp_context* context, ramp_weights* weights, const Io& io) {
  Progress progress(io, "packing weights");
  const Ticker ticker(progress);
  check(ramp_weights_pack(context, weights, nullptr));
}

}  // namespace

RandomSource::RandomSource(core::ModelShape shape, ramp_format format, ramp_activation activation,
                           uint64_t seed)
    : seed_(seed) {
  shape_ = std::move(shape);
  format_ = format;
  activation_ = activation;
}

core::SyntheticWeights RandomSource::make(const Io& io) const {
  Progress progress(io, fmt::format("generating weights of {}", shape_.name));
  core::SyntheticWeightsOptions options;
  options.seed = seed_;
  options.parallel = progress_for(progress);
  return core::make_synthetic_weights(shape_, format_, activation_, options);
}

core::SyntheticRecipe RandomSource::recipe() const {
  core::SyntheticWeightsOptions options;
  options.seed = seed_;
  return core::make_synthetic_recipe(shape_, format_, activation_, options);
}

RunnableLayer RandomSource::runnable(ramp_context* context, bool pack, const Io& io) const {
  RunnableLayer layer;
  ramp_weights_desc* desc = &layer.storage.desc;
  if (backend_of(context).memory() != nullptr) {
    layer.device_storage = fill_on_device(context, recipe());
    desc = &layer.device_storage.desc;
  } else {
    layer.storage = make(io);
  }
  desc->ownership = pack ? RAMP_IN_PLACE : RAMP_BORROW;
  ramp_weights* handle = nullptr;
  check(ramp_weights_create(context, desc, nullptr, &handle));
  layer.handle.reset(handle);
  if (pack) pack_layer(context, handle, io);
  return layer;
}

std::unique_ptr<LayerValues> RandomSource::values(const Io& io) const {
  auto v = std::make_unique<LayerValues>();
  v->synthetic = make(io);
  v->weights = core::make_expert_weights(v->synthetic.desc, {});
  return v;
}

Json RandomSource::describe() const {
  return {{"kind", "random"}, {"model", shape_.name}, {"seed", seed_}};
}

CheckpointSource::CheckpointSource(const std::string& path, int64_t layer, int64_t first_expert,
                                   int64_t num_experts)
    : path_(path), layer_(layer), first_expert_(first_expert), info_(ramp_layer_info_init()) {
  ramp_checkpoint* opened = nullptr;
  check(ramp_checkpoint_open(path.c_str(), &opened));
  checkpoint_.reset(opened);
  if (layer_ < 0) layer_ = core::checkpoint_of(opened).checkpoint.first_moe_layer();
  check(ramp_checkpoint_layer_info(opened, layer_, &info_));
  if (first_expert >= info_.num_experts)
    core::fail_argument("--first-expert", std::to_string(first_expert),
                        fmt::format("0 to {}, the layer's experts", info_.num_experts - 1));
  const int64_t rest = info_.num_experts - first_expert;
  if (num_experts > rest)
    core::fail_argument("--num-experts", std::to_string(num_experts),
                        fmt::format("at most {} from expert {} on", rest, first_expert));
  shape_.name = info_.architecture;
  shape_.experts = num_experts == 0 ? rest : num_experts;
  shape_.top_k = info_.top_k;
  shape_.hidden = info_.hidden;
  shape_.intermediate = info_.intermediate;
  format_ = static_cast<ramp_format>(info_.format);
  activation_ = static_cast<ramp_activation>(info_.activation);
}

RunnableLayer CheckpointSource::runnable(ramp_context* context, bool pack, const Io& io) const {
  RunnableLayer layer;
  ramp_weights* handle = nullptr;
  {
    Progress progress(io, fmt::format("loading layer {}", layer_));
    const double before = anonymous_bytes();
    const auto total = static_cast<double>(shape_.experts * core::expert_bytes(shape_, format_, activation_));
    const Ticker ticker(progress, [=] { return (anonymous_bytes() - before) / total; });
    check(ramp_checkpoint_load_weights(context, checkpoint_.get(), layer_, first_expert_, shape_.experts,
                                       nullptr, &handle));
  }
  layer.handle.reset(handle);
  if (pack) pack_layer(context, handle, io);
  return layer;
}

std::unique_ptr<LayerValues> CheckpointSource::values(const Io& io) const {
  auto v = std::make_unique<LayerValues>();
  Progress progress(io, fmt::format("loading layer {} for the reference", layer_));
  const Ticker ticker(progress);
  v->loaded = core::load_layer(core::checkpoint_of(checkpoint_.get()).checkpoint, layer_, first_expert_,
                               shape_.experts);
  v->weights = core::make_expert_weights(v->loaded.desc, {});
  return v;
}

Json CheckpointSource::describe() const {
  return {{"kind", "checkpoint"},
          {"path", path_},
          {"architecture", info_.architecture},
          {"layer", layer_},
          {"num_layers", info_.num_layers},
          {"first_expert", first_expert_},
          {"layer_experts", info_.num_experts}};
}

}  // namespace ramp::cli
