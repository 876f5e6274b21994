// The timing loop, and the sample that is kept for the check.
#include "cli/block_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "cli/machine.hpp"
#include "cli/progress.hpp"
#include "geometry/config.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::cli {
namespace {

// Rows `tokens` of a contiguous [T, n] tensor.
HostTensor gather_rows(const ramp_tensor& from, const std::vector<int64_t>& tokens) {
  const int64_t columns = from.shape[1];
  HostTensor to =
      make_host_tensor(static_cast<ramp_dtype>(from.dtype), {static_cast<int64_t>(tokens.size()), columns});
  const auto bytes = static_cast<size_t>(columns * core::dtype_bytes(static_cast<ramp_dtype>(from.dtype)));
  for (size_t i = 0; i < tokens.size(); ++i)
    std::memcpy(to.data.as<std::byte>() + i * bytes,
                static_cast<const std::byte*>(from.data) + static_cast<size_t>(tokens[i]) * bytes, bytes);
  return to;
}

}  // namespace

ramp_dtype natural_dtype(ramp_format format) {
  if (format == RAMP_FORMAT_F16) return RAMP_F16;
  if (format == RAMP_FORMAT_F32) return RAMP_F32;
  return RAMP_BF16;
}

void describe_layers(const std::vector<std::vector<int32_t>>& histograms, const core::ModelShape& shape,
                     ramp_format format, ramp_activation activation, Measurement& m) {
  const auto layers = static_cast<double>(histograms.size());
  const auto expert = static_cast<double>(core::expert_bytes(shape, format, activation));
  const double per_row =
      2.0 * static_cast<double>(shape.hidden) *
      static_cast<double>(core::w13_rows(shape.intermediate, activation) + shape.intermediate);
  for (const std::vector<int32_t>& histogram : histograms) {
    const core::HistogramStats s = core::describe(histogram);
    m.active += static_cast<double>(s.active) / layers;
    m.max_load += static_cast<double>(s.max_load) / layers;
    m.max_over_mean += s.max_over_mean / layers;
    m.imbalance += s.imbalance / layers;
    m.entropy += s.normalised_entropy / layers;
    m.rows += static_cast<double>(s.rows) / layers;
  }
  m.weight_bytes = m.active * expert;
  m.flops = m.rows * per_row;
}

BlockBench::BlockBench(ramp_context* context, const std::vector<RunnableLayer>& layers,
                       const LayerSource& source, ramp_determinism determinism, uint64_t seed)
    : context_(context),
      layers_(layers),
      shape_(source.shape()),
      format_(source.format()),
      activation_(source.activation()),
      determinism_(determinism),
      seed_(seed),
      workspace_(context) {}

std::vector<BlockBench::LayerRouting> BlockBench::make_routing(const core::WorkloadSpec& spec,
                                                               int64_t tokens) const {
  std::vector<LayerRouting> list;
  for (size_t l = 0; l < layers_.size(); ++l) {
    // A trace's seed is its step: layers take the steps from the first on, again from the beginning at the
    // end.
    const core::Routing r = core::make_routing(spec, shape_.experts, shape_.top_k, tokens, seed_ + l);
    LayerRouting layer;
    layer.ids = make_host_tensor(RAMP_I32, {tokens, shape_.top_k});
    layer.weights = make_host_tensor(RAMP_F32, {tokens, shape_.top_k});
    std::copy(r.ids.begin(), r.ids.end(), layer.ids.data.as<int32_t>());
    std::copy(r.weights.begin(), r.weights.end(), layer.weights.data.as<float>());
    layer.histogram.resize(static_cast<size_t>(shape_.experts));
    core::histogram(layer.ids.view, {}, layer.histogram);
    layer.device_ids = Mirror::uploaded(context_, layer.ids.view);
    layer.device_weights = Mirror::uploaded(context_, layer.weights.view);
    list.push_back(std::move(layer));
  }
  return list;
}

CheckSample BlockBench::cut_sample(const LayerRouting& routing, int64_t tokens, double budget) const {
  const std::vector<int64_t> chosen = sample_tokens(tokens, shape_.top_k, shape_, activation_, budget);
  return {gather_rows(x_.view, chosen),
          gather_rows(routing.ids.view, chosen),
          gather_rows(routing.weights.view, chosen),
          gather_rows(y_.view, chosen),
          determinism_,
          backend_of(context_).arithmetic(values_of(layers_.front().handle.get()))};
}

Measurement BlockBench::measure(const core::WorkloadSpec& spec, int64_t tokens, const std::string& config,
                                const Sampling& sampling, double check_budget,
                                const std::function<void(double)>& progress) {
  const double row = static_cast<double>(shape_.hidden * core::dtype_bytes(natural_dtype(format_)));
  check_memory("--tokens", fmt::format("x, y and the routing of {} tokens", tokens),
               static_cast<double>(tokens) *
                   (2 * row + 8.0 * static_cast<double>(shape_.top_k) * static_cast<double>(layers_.size())));
  Measurement m;
  m.tokens = tokens;
  m.routing = core::workload_name(spec);
  const std::vector<LayerRouting> routing = make_routing(spec, tokens);
  std::vector<std::vector<int32_t>> histograms;
  histograms.reserve(routing.size());
  for (const LayerRouting& r : routing) histograms.push_back(r.histogram);
  describe_layers(histograms, shape_, format_, activation_, m);

  const ramp_dtype dtype = natural_dtype(format_);
  if (!x_.present() || x_.view.shape[0] != tokens) {
    x_ = make_host_tensor(dtype, {tokens, shape_.hidden});
    core::fill_activations(x_.view.data, dtype, tokens, shape_.hidden, seed_);
    y_ = make_host_tensor(dtype, {tokens, shape_.hidden});
    device_x_ = Mirror::uploaded(context_, x_.view);
    device_y_ = Mirror(context_, y_.view);
  }
  const ramp_weights* first = layers_.front().handle.get();
  const int32_t number = config_number(context_, first, config);
  m.config = config;
  if (number == 0)
    m.config = core::config_name(
        backend_of(context_).choose(values_of(first), routing.front().histogram, determinism_, shape_.top_k));
  uint64_t bytes = 0;
  check(ramp_expert_block_workspace(context_, first, tokens, shape_.top_k, &bytes));
  workspace_.reserve(bytes);

  ramp_expert_block_args args = ramp_expert_block_args_init();
  args.determinism = determinism_;
  args.config = number;
  args.x = device_x_.view();
  args.y = device_y_.view();
  const auto run_layer = [&](size_t l) {
    args.weights = layers_[l].handle.get();
    args.topk_ids = routing[l].device_ids.view();
    args.topk_weights = routing[l].device_weights.view();
    check(ramp_expert_block(context_, &args, workspace_.data(), workspace_.size(), nullptr));
  };
  using Clock = std::chrono::steady_clock;
  const core::DeviceMemory* const memory = device_memory_of(context_);
  const auto pass = [&] {
    const Clock::time_point t0 = Clock::now();
    for (size_t l = 0; l < layers_.size(); ++l) run_layer(l);
    if (memory != nullptr) memory->synchronize(nullptr);
    return std::chrono::duration<double>(Clock::now() - t0).count();
  };
  pass();  // warm-up
  std::vector<double> times;
  const Clock::time_point start = Clock::now();
  for (;;) {
    InterruptGuard::check();
    times.push_back(pass() * 1e6 / static_cast<double>(layers_.size()));
    const auto count = static_cast<int64_t>(times.size());
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    const bool done = sampling.repeats > 0
                          ? count >= sampling.repeats
                          : count >= Sampling::kMostPasses ||
                                (count >= Sampling::kLeastPasses && elapsed >= sampling.seconds);
    if (done) break;
    if (progress) {
      const double by_count =
          static_cast<double>(count) /
          static_cast<double>(sampling.repeats > 0 ? sampling.repeats : Sampling::kMostPasses);
      progress(sampling.repeats > 0 || sampling.seconds == 0
                   ? by_count
                   : std::min(1.0, std::max(by_count, elapsed / sampling.seconds)));
    }
  }
  m.passes = static_cast<int64_t>(times.size());
  m.us = percentiles(std::move(times));
  if (check_budget > 0) {
    run_layer(0);  // y holds the last layer's result
    device_y_.download();
    m.sample = cut_sample(routing.front(), tokens, check_budget);
  }
  return m;
}

core::CheckResult check_sample(const CheckSample& sample, const core::ExpertWeights& values,
                               const core::ParallelFor& parallel) {
  core::BlockCall call;
  call.weights = &values;
  call.determinism = sample.determinism;
  call.tokens = sample.x.view.shape[0];
  call.top_k = sample.ids.view.shape[1];
  call.x = core::with_strides(sample.x.view);
  call.ids = core::with_strides(sample.ids.view);
  call.topk_weights = core::with_strides(sample.weights.view);
  call.y = core::with_strides(sample.y.view);
  core::CheckOptions options;
  options.parallel = parallel;
  options.slot_rows = sample.arithmetic.slot_rows;
  options.tensor_unit = sample.arithmetic.tensor_unit;
  return core::check_block(call, options);
}

}  // namespace ramp::cli
