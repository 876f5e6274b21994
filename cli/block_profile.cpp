// Inputs and ticks.
#include "cli/block_profile.hpp"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/machine.hpp"

namespace ramp::cli {
namespace {

constexpr double kMemoryShare = 0.7;  // of the free memory, for weights
constexpr int64_t kMostLayers = 24;
constexpr size_t kMostRotations = 32;

}  // namespace

LayerPlan plan_layers(const core::ModelShape& model, ramp_format format, ramp_activation activation,
                      int64_t wanted) {
  const int64_t layer = model.experts * core::expert_bytes(model, format, activation);
  const int64_t llc = last_level_cache_bytes();
  const int64_t memory = available_memory();
  int64_t layers = wanted > 0 ? wanted : std::clamp<int64_t>((2 * llc + layer - 1) / layer, 1, kMostLayers);
  if (memory > 0) {
    const auto fits =
        static_cast<int64_t>(kMemoryShare * static_cast<double>(memory) / static_cast<double>(layer));
    if (fits < 1)
      core::fail_argument(fmt::format("--model {}", model.name),
                          fmt::format("{} of weights in {} for one layer",
                                      bytes_text(static_cast<double>(layer)), core::format_name(format)),
                          fmt::format("at most {:.0f}% of the {} of free memory", 100 * kMemoryShare,
                                      bytes_text(static_cast<double>(memory))),
                          "take a smaller model or format", RAMP_ERROR_OUT_OF_MEMORY);
    layers = std::min(layers, fits);
  }
  return {layers, layers * layer, llc > 0 && layers * layer > llc};
}

void run_block(ramp_context* context, const ramp_expert_block_args& args, const Workspace& workspace,
               void* stream, const BlockLaunch& launch) {
  if (!launch) return check(ramp_expert_block(context, &args, workspace.data(), workspace.size(), stream));
  ramp_block_call call = ramp_block_call_init();
  call.args = &args;
  call.workspace = workspace.data();
  call.workspace_bytes = workspace.size();
  call.stream = stream;
  launch(args.config, call);
}

BlockTimer::BlockTimer(ramp_context* context, const std::vector<RunnableLayer>& layers,
                       const core::ModelShape& shape, ramp_format format, ramp_determinism determinism,
                       uint64_t seed)
    : context_(context),
      layers_(layers),
      shape_(shape),
      format_(format),
      determinism_(determinism),
      seed_(seed) {}

void BlockTimer::prepare(const TimedPoint& point) {
  const int64_t tokens = point.work.tokens;
  const ramp_dtype dtype = natural_dtype(format_);
  if (!x_.present() || x_.view.shape[0] != tokens) {
    x_ = make_host_tensor(dtype, {tokens, shape_.hidden});
    core::fill_activations(x_.view.data, dtype, tokens, shape_.hidden, seed_);
    y_ = make_host_tensor(dtype, {tokens, shape_.hidden});
  }
  weights_ = make_host_tensor(RAMP_F32, {tokens, shape_.top_k});
  std::copy(point.routing.weights.begin(), point.routing.weights.end(), weights_.data.as<float>());
  // As many rotations as it takes to visit every expert.
  const auto active = static_cast<size_t>(std::count_if(
      point.work.histogram.begin(), point.work.histogram.end(), [](int32_t c) { return c > 0; }));
  const auto experts = static_cast<size_t>(shape_.experts);
  const size_t rotations =
      std::clamp<size_t>((experts + active - 1) / std::max<size_t>(active, 1), 1, kMostRotations);
  ids_.clear();
  for (size_t r = 0; r < rotations; ++r) {
    HostTensor ids = make_host_tensor(RAMP_I32, {tokens, shape_.top_k});
    const auto shift = static_cast<int32_t>(r * experts / rotations);
    std::transform(
        point.routing.ids.begin(), point.routing.ids.end(), ids.data.as<int32_t>(),
        [&](int32_t id) { return id < 0 ? id : (id + shift) % static_cast<int32_t>(shape_.experts); });
    ids_.push_back(std::move(ids));
  }
  uint64_t bytes = 0;
  check(ramp_expert_block_workspace(context_, layers_.front().handle.get(), tokens, shape_.top_k, &bytes));
  workspace_.reserve(bytes);
}

double BlockTimer::now_us() const {
  timespec t{};
  if (cpu_time_workers_ == 0) {
    clock_gettime(CLOCK_MONOTONIC, &t);
  } else {
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  }
  const double us = 1e6 * static_cast<double>(t.tv_sec) + 1e-3 * static_cast<double>(t.tv_nsec);
  return cpu_time_workers_ == 0 ? us : us / cpu_time_workers_;
}

std::vector<Tick> BlockTimer::run(std::span<const core::Profiler::Task> tasks,
                                  std::span<const int32_t> numbers) {
  std::vector<Tick> ticks;
  ticks.reserve(tasks.size());
  for (const core::Profiler::Task& task : tasks) ticks.push_back({tick(numbers[task.config]), {}});
  return ticks;
}

double BlockTimer::tick(int32_t number) {
  const size_t layer = calls_ % layers_.size();
  const size_t rotation = calls_ / layers_.size() % ids_.size();
  ++calls_;
  ramp_expert_block_args args = ramp_expert_block_args_init();
  args.determinism = determinism_;
  args.config = number;
  args.weights = layers_[layer].handle.get();
  args.x = x_.view;
  args.y = y_.view;
  args.topk_ids = ids_[rotation].view;
  args.topk_weights = weights_.view;
  const double start = now_us();
  run_block(context_, args, workspace_, nullptr, launch_);
  return now_us() - start;
}

}  // namespace ramp::cli
