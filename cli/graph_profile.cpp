// Inputs per layer, graphs per config.
#include "cli/graph_profile.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <numeric>

#include "base/error.hpp"
#include "base/rng.hpp"
#include "cli/block_bench.hpp"
#include "cli/block_profile.hpp"
#include "cli/peers.hpp"

namespace ramp::cli {
namespace {

constexpr int64_t kLeastLayers = 2;
// A share of the free memory that weights may take; the rest is for activations and workspace.
constexpr double kMemoryShare = 0.75;

// A permutation of the experts, the identity for layer 0.
std::vector<int32_t> relabelling(int64_t experts, size_t layer, uint64_t seed) {
  std::vector<int32_t> to(static_cast<size_t>(experts));
  std::iota(to.begin(), to.end(), 0);
  if (layer == 0) return to;
  core::Rng rng(seed + layer);
  for (size_t i = to.size(); i > 1; --i) std::swap(to[i - 1], to[rng.next() % i]);
  return to;
}

// Adds the seconds of its scope to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& sum_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace

LayerPlan plan_gpu_layers(ramp_context* context, const core::ModelShape& model, ramp_format format,
                          ramp_activation activation, int64_t least_active, int64_t wanted) {
  const int64_t expert = core::expert_bytes(model, format, activation);
  const auto bytes = static_cast<double>(model.experts * expert);
  const auto free = static_cast<double>(device_memory_of(context)->free_bytes());
  GpuLayerLimits limits{model.experts, expert, least_active, l2_bytes_of(context), 0, 0};
  limits.fit = static_cast<int64_t>(kMemoryShare * free / bytes);
  limits.protocol = Peers("").layers(model.name);
  const int64_t protocol = limits.protocol > 0 ? limits.protocol : kGpuLayers;
  const int64_t least = wanted > 0 ? wanted : std::min(protocol, kLeastLayers);
  if (limits.fit < least)
    core::fail_argument(
        fmt::format("--model {}", model.name),
        fmt::format("{} layers of {} in {}", least, bytes_text(bytes), core::format_name(format)),
        fmt::format("at most {:.0f}% of the {} of free GPU memory", 100 * kMemoryShare, bytes_text(free)),
        "take fewer --layers, a smaller model or format", RAMP_ERROR_OUT_OF_MEMORY);
  return plan_gpu_layers(limits, wanted);
}

GraphTimer::GraphTimer(ramp_context* context, const std::vector<RunnableLayer>& layers,
                       const core::ModelShape& shape, ramp_format format, ramp_determinism determinism,
                       uint64_t seed, int64_t most_tokens)
    : context_(context),
      weights_(layers),
      shape_(shape),
      format_(format),
      determinism_(determinism),
      seed_(seed),
      layers_(layers.size()),
      workspace_(context),
      graphs_(context) {
  const ramp_dtype dtype = natural_dtype(format);
  x_ = make_host_tensor(dtype, {most_tokens, shape.hidden});
  core::fill_activations(x_.view.data, dtype, most_tokens, shape.hidden, seed,
                         [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); });
  device_x_ = Mirror::uploaded(context, x_.view);
  const auto bytes = static_cast<uint64_t>(most_tokens * shape.hidden * core::dtype_bytes(dtype));
  for (Layer& layer : layers_) layer.y = device_memory_of(context)->allocate(bytes);
}

LayerFloor GraphTimer::floor_at(const core::WorkPoint& point) const {
  return layer_floor(point.histogram, shape_, format_, values_of(weights_.front().handle.get()).activation);
}
int64_t GraphTimer::layers_at(const core::WorkPoint& point) const {
  return layers_of_replay(floor_at(point), l2_bytes_of(context_), static_cast<int64_t>(weights_.size()));
}
bool GraphTimer::unsteady_at(const core::WorkPoint& point) const {
  return floor_at(point).unsteady();
}

void GraphTimer::live_with(ramp_context* context) {
  graphs_.clear();
  seen_.erase(kLive);
  live_ = context;
}

void GraphTimer::prepare(const TimedPoint& point) {
  const Stopwatch watch(spent_.inputs);
  graphs_.clear();  // they use what goes now
  used_ = static_cast<size_t>(layers_at(point.work));
  constexpr double kBatchUs = 50e3, kLeast = 8, kMost = 256;  // kMost: a stream holds no more launches
  const LayerFloor floor = floor_at(point.work);
  const double replay_us = static_cast<double>(used_) * std::max({floor.read_us, floor.compute_us, 1.0});
  batch_ = static_cast<size_t>(std::clamp(kBatchUs / replay_us, kLeast, kMost));
  tokens_ = point.work.tokens;
  router_weights_ = make_host_tensor(RAMP_F32, {tokens_, shape_.top_k});
  std::copy(point.routing.weights.begin(), point.routing.weights.end(), router_weights_.data.as<float>());
  device_router_weights_ = Mirror::uploaded(context_, router_weights_.view);
  for (size_t l = 0; l < used_; ++l) {
    Layer& layer = layers_[l];
    const std::vector<int32_t> to = relabelling(shape_.experts, l, seed_);
    layer.ids = make_host_tensor(RAMP_I32, {tokens_, shape_.top_k});
    std::transform(point.routing.ids.begin(), point.routing.ids.end(), layer.ids.data.as<int32_t>(),
                   [&](int32_t id) { return id < 0 ? id : to[static_cast<size_t>(id)]; });
    layer.device_ids = Mirror::uploaded(context_, layer.ids.view);
  }
  uint64_t bytes = 0;
  check(ramp_expert_block_workspace(context_, weights_.front().handle.get(), tokens_, shape_.top_k, &bytes));
  workspace_.reserve(bytes);
}

void GraphTimer::enqueue(int32_t number, void* stream) const {
  ramp_tensor x = device_x_.view();
  x.shape[0] = tokens_;
  const bool live = number == kLive;
  for (size_t l = 0; l < used_; ++l) {
    ramp_expert_block_args args = ramp_expert_block_args_init();
    args.weights = weights_[l].handle.get();
    args.determinism = determinism_;
    args.config = live ? 0 : number;
    args.x = x;
    args.topk_ids = layers_[l].device_ids.view();
    args.topk_weights = device_router_weights_.view();
    args.y = x;
    args.y.data = layers_[l].y.get();
    run_block(live ? live_ : context_, args, workspace_, stream, launch_);
  }
}

void GraphTimer::capture(size_t config, int32_t number) {
  if (graphs_.has(config)) return;
  const Stopwatch watch(spent_.capture);
  graphs_.capture(
      config, [&](void* stream) { enqueue(number, stream); }, seen_.insert(number).second);
  ++spent_.graphs;
}

std::vector<TickSource::Failure> GraphTimer::make_ready(std::span<const size_t> configs,
                                                        std::span<const int32_t> numbers) {
  std::vector<Failure> failures;
  for (const size_t config : configs) {
    try {
      capture(config, numbers[config]);
    } catch (const core::Error& e) {
      failures.push_back({config, e.what()});
    }
  }
  return failures;
}

std::string GraphTimer::name_of(int32_t number) const {
  if (names_) return names_(number);
  if (number == kLive) return "the fit's choice";
  const char* const name = ramp_config_name(context_, weights_.front().handle.get(), number - 1);
  return name != nullptr ? name : "default";
}

std::vector<Tick> GraphTimer::run(std::span<const core::Profiler::Task> tasks,
                                  std::span<const int32_t> numbers) {
  std::map<size_t, std::string> failed;
  std::vector<size_t> keys;
  for (const core::Profiler::Task& task : tasks) {
    if (failed.contains(task.config)) continue;
    try {
      capture(task.config, numbers[task.config]);
      keys.push_back(task.config);
    } catch (const core::Error& e) {
      failed.emplace(task.config, e.what());
    }
  }
  const Stopwatch watch(spent_.replay);
  spent_.replays += keys.size();
  std::vector<double> us;
  try {
    us = graphs_.time(keys);
  } catch (const core::Error& e) {
    // A kernel that faults takes the context with it: nothing goes on, but the message may say where it was.
    std::set<std::string> names;
    for (const size_t key : keys) names.insert(name_of(numbers[key]));
    core::fail(e.status(), fmt::format("T = {}, one of {}: {}", tokens_, fmt::join(names, ", "), e.what()));
  }
  std::vector<Tick> ticks;
  size_t at_us = 0;
  for (const core::Profiler::Task& task : tasks) {
    const auto at = failed.find(task.config);
    if (at != failed.end()) {
      ticks.push_back({0, at->second});
      continue;
    }
    // Whole nanoseconds: events have no more, and files stay small.
    ticks.push_back({std::round(1e3 * us[at_us++] / static_cast<double>(used_)) / 1e3, {}});
  }
  return ticks;
}

}  // namespace ramp::cli
