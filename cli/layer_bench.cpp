// See layer_bench.hpp. x is the same for all layers (as in a model it has just been written, so it may lie in
// the L2 cache); weights, routing, y and nothing else are each layer's own.
#include "cli/layer_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <thread>

#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/command.hpp"
#include "cli/layer_report.hpp"
#include "cli/options.hpp"
#include "cli/profile_protocol.hpp"
#include "cli/progress.hpp"
#include "geometry/config.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::cli {
namespace {

// In slices, so that ^C need not wait for its end.
void rest(double seconds) {
  constexpr double kSlice = 0.1;
  for (double left = seconds; left > 0; left -= kSlice) {
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(left, kSlice)));
    InterruptGuard::check();
  }
}

constexpr int64_t kReplays = 20, kLeastReplays = 5;
constexpr int64_t kMostLayers = 5, kLeastLayers = 2;
// A share of the free memory that weights may take; the rest is for activations, workspace and y.
constexpr double kMemoryShare = 0.75;

struct Layer {
  RandomSource source;
  RunnableLayer weights;
  core::SyntheticRecipe recipe;
};

struct PointLayer {
  core::Routing routing;
  HostTensor ids, weights, y;
  Mirror device_ids, device_weights, device_y;
};

class LayerBench {
 public:
  LayerBench(Io& io, ramp_context* context, const LayerBenchOptions& o)
      : io_(io), context_(context), o_(o), peers_(o.peers), facts_(facts_of(context)) {
    known_device_ = peers_.of_device(facts_.device);
    read_gbps_ = o.read_gbps > 0 ? o.read_gbps : known_device_ ? peers_.read_gbps() : 0;
  }

  int run() {
    for (const auto& [model, format] : o_.cases) run_model(model, format);
    io_.print(fmt::format("{}, {}\n", backend_text(facts_), facts_.device));
    io_.print(layer_table(rows_));
    if (const auto unfitted =
            std::find_if(rows_.begin(), rows_.end(),
                         [](const LayerRow& r) { return r.requested == "auto" && r.fit.empty(); });
        backend_of(context_).fits() != nullptr && unfitted != rows_.end())
      io_.note(fmt::format(
          "no fit for {} in {} here: the default chooses; 'ramp profile --backend cuda --model {}' "
          "makes one",
          unfitted->model.name, core::format_name(unfitted->format), unfitted->model.name));
    if (read_gbps_ > 0)
      io_.print(
          fmt::format("floor: the larger of active weight bytes / {} GB/s and FLOP / the measured "
                      "ceiling of the format{}\n",
                      number(read_gbps_), known_device_ ? "" : " (not known for this GPU: left out)"));
    else
      io_.note(fmt::format("no floor: nothing is known of {}; --read-gbps gives its read bandwidth",
                           facts_.device));
    io_.print(ratio_text(rows_, peers_));
    Json list = Json::array();
    const std::vector<double> regret = regrets(rows_);
    for (size_t i = 0; i < rows_.size(); ++i) {
      Json j = to_json(rows_[i], facts_);
      j["regret"] = std::isnan(regret[i]) ? Json() : Json(regret[i]);
      list.push_back(std::move(j));
    }
    if (failed_ > 0)
      say(fmt::format("check: got {} of {} points beyond their error bound, expected none", failed_,
                      rows_.size()));
    io_.emit(std::move(list));
    return failed_ > 0 ? kFailed : kOk;
  }

 private:
  int64_t plan_layers(const core::ModelShape& model, ramp_format format) const {
    const auto bytes = static_cast<double>(model.experts * core::expert_bytes(model, format, o_.activation));
    const auto free = static_cast<double>(device_memory_of(context_)->free_bytes());
    const auto fits = static_cast<int64_t>(kMemoryShare * free / bytes);
    const int64_t protocol = peers_.layers(model.name);
    const int64_t wanted = o_.layers > 0 ? o_.layers : protocol > 0 ? protocol : kMostLayers;
    const int64_t least = o_.layers > 0 || protocol > 0 ? wanted : kLeastLayers;
    if (fits < least)
      core::fail_argument(
          fmt::format("--model {}", model.name),
          fmt::format("{} layers of {} in {}", least, bytes_text(bytes), core::format_name(format)),
          fmt::format("at most {:.0f}% of the {} of free GPU memory", 100 * kMemoryShare, bytes_text(free)),
          "take fewer --layers, a smaller model or format", RAMP_ERROR_OUT_OF_MEMORY);
    return std::min(wanted, fits);
  }

  void run_model(const core::ModelShape& model, ramp_format format) {
    const int64_t count = plan_layers(model, format);
    std::vector<Layer> layers;
    {
      Progress progress(
          io_, fmt::format("filling {} layers of {} in {}", count, model.name, core::format_name(format)));
      for (int64_t l = 0; l < count; ++l) {
        progress.update(static_cast<double>(l) / static_cast<double>(count));
        RandomSource source(model, format, o_.activation, o_.seed + 1000 + static_cast<uint64_t>(l));
        RunnableLayer weights = source.runnable(context_, true, io_);
        core::SyntheticRecipe recipe = source.recipe();
        layers.push_back({std::move(source), std::move(weights), std::move(recipe)});
      }
    }
    Progress progress(io_, fmt::format("measuring {} in {}", model.name, core::format_name(format)));
    const auto total = static_cast<double>(o_.tokens.size() * o_.routing.size());
    double done = 0;
    for (const int64_t tokens : o_.tokens) {
      const ramp_dtype dtype = natural_dtype(format);
      HostTensor x = make_host_tensor(dtype, {tokens, model.hidden});
      core::fill_activations(
          x.view.data, dtype, tokens, model.hidden, o_.seed,
          [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); });
      const Mirror device_x = Mirror::uploaded(context_, x.view);
      for (const core::WorkloadSpec& spec : o_.routing) {
        progress.update(done++ / total, fmt::format("T = {}, {}", tokens, core::workload_name(spec)));
        std::vector<PointLayer> point = make_point(model, spec, tokens, dtype, count);
        for (const ramp_determinism mode : o_.modes)
          for (const std::string& config : configs_of(layers))
            rows_.push_back(measure(layers, point, x, device_x, spec, tokens, mode, config));
      }
    }
  }

  std::vector<std::string> configs_of(const std::vector<Layer>& layers) const {
    std::vector<std::string> list;
    for (const std::string& name : o_.configs) {
      if (name != "all") {
        list.push_back(name);
        continue;
      }
      const std::vector<std::string> all = config_names(context_, layers.front().weights.handle.get());
      list.insert(list.end(), all.begin(), all.end());
    }
    return list;
  }

  std::vector<PointLayer> make_point(const core::ModelShape& model, const core::WorkloadSpec& spec,
                                     int64_t tokens, ramp_dtype dtype, int64_t count) const {
    std::vector<PointLayer> point(static_cast<size_t>(count));
    for (size_t l = 0; l < point.size(); ++l) {
      PointLayer& p = point[l];
      p.routing = core::make_routing(spec, model.experts, model.top_k, tokens, o_.seed + l);
      p.ids = make_host_tensor(RAMP_I32, {tokens, model.top_k});
      p.weights = make_host_tensor(RAMP_F32, {tokens, model.top_k});
      p.y = make_host_tensor(dtype, {tokens, model.hidden});
      std::copy(p.routing.ids.begin(), p.routing.ids.end(), p.ids.data.as<int32_t>());
      std::copy(p.routing.weights.begin(), p.routing.weights.end(), p.weights.data.as<float>());
      p.device_ids = Mirror::uploaded(context_, p.ids.view);
      p.device_weights = Mirror::uploaded(context_, p.weights.view);
      p.device_y = Mirror(context_, p.y.view);
    }
    return point;
  }

  LayerRow measure(const std::vector<Layer>& layers, std::vector<PointLayer>& point, const HostTensor& x,
                   const Mirror& device_x, const core::WorkloadSpec& spec, int64_t tokens,
                   ramp_determinism mode, const std::string& config) {
    const RandomSource& source = layers.front().source;
    const core::ModelShape& model = source.shape();
    const ramp_weights* const first = layers.front().weights.handle.get();
    LayerRow row;
    row.model = model;
    row.format = source.format();
    row.activation = o_.activation;
    row.requested = config;
    row.mode = mode;
    row.read_gbps = read_gbps_;
    row.layers = static_cast<int64_t>(layers.size());
    Measurement& m = row.m;
    m.tokens = tokens;
    m.routing = core::workload_name(spec);
    std::vector<std::vector<int32_t>> histograms;
    for (const PointLayer& p : point) {
      histograms.emplace_back(static_cast<size_t>(model.experts));
      core::histogram(p.ids.view, {}, histograms.back());
    }
    describe_layers(histograms, model, source.format(), o_.activation, m);
    const int32_t number = config_number(context_, first, config);
    m.config = config;
    if (number == 0) row.fit = fit_of(context_, values_of(first), model.top_k);
    if (number == 0)
      m.config = core::config_name(
          backend_of(context_).choose(values_of(first), histograms.front(), mode, model.top_k));

    uint64_t bytes = 0;
    check(ramp_expert_block_workspace(context_, first, tokens, model.top_k, &bytes));
    Workspace workspace(context_);
    workspace.reserve(bytes);
    {
      Graph graph(context_, [&](void* stream) {
        for (size_t l = 0; l < layers.size(); ++l) {
          ramp_expert_block_args args = ramp_expert_block_args_init();
          args.weights = layers[l].weights.handle.get();
          args.determinism = mode;
          args.config = number;
          args.x = device_x.view();
          args.topk_ids = point[l].device_ids.view();
          args.topk_weights = point[l].device_weights.view();
          args.y = point[l].device_y.view();
          check(ramp_expert_block(context_, &args, workspace.data(), workspace.size(), stream));
        }
      });
      InterruptGuard::check();
      int64_t replays = o_.replays;
      if (replays == 0) {
        const double seconds = graph.time(1).front() * 1e-6;
        replays = std::clamp(static_cast<int64_t>(o_.seconds / seconds), kLeastReplays, kReplays);
      }
      const bool unsteady = layer_floor(histograms.front(), model, source.format(), o_.activation).unsteady();
      if (unsteady || unsteady_) {
        rest(o_.pause);
        row.pause = o_.pause;
      }
      unsteady_ = unsteady;
      std::vector<double> times = graph.time(replays);
      for (double& t : times) t /= static_cast<double>(layers.size());
      m.passes = replays;
      m.us = percentiles(std::move(times));
      if (o_.check_budget > 0) {
        // Each point checks another layer, from a replay into poisoned outputs.
        row.checked_layer = static_cast<int64_t>(rows_.size() % layers.size());
        PointLayer& p = point[static_cast<size_t>(row.checked_layer)];
        p.device_y.fill(0xff);
        graph.replay();
        row.check = check_layer(layers[static_cast<size_t>(row.checked_layer)], p, x, mode);
        row.checked = true;
        failed_ += row.check.ok() ? 0 : 1;
      }
    }
    if (read_gbps_ > 0) {
      const double tflops = known_device_ ? peers_.tflops(source.format()) : 0;
      row.floor_us = std::max(m.weight_bytes / read_gbps_ / 1e3, tflops > 0 ? m.flops / tflops / 1e6 : 0);
    }
    if (known_device_) row.peer = peers_.find(model, source.format(), tokens, m.routing);
    return row;
  }

  // A few tokens against fp64, on the host's own copy of the experts that they go to.
  core::CheckResult check_layer(const Layer& layer, PointLayer& p, const HostTensor& x,
                                ramp_determinism mode) const {
    const core::ModelShape& model = layer.source.shape();
    const std::vector<int64_t> tokens =
        sample_tokens(x.view.shape[0], model.top_k, model, o_.activation, o_.check_budget);
    const auto count = static_cast<int64_t>(tokens.size());
    const auto h = static_cast<size_t>(model.hidden);
    CheckSample s{make_host_tensor(static_cast<ramp_dtype>(x.view.dtype), {count, model.hidden}),
                  make_host_tensor(RAMP_I32, {count, model.top_k}),
                  make_host_tensor(RAMP_F32, {count, model.top_k}),
                  make_host_tensor(static_cast<ramp_dtype>(p.y.view.dtype), {count, model.hidden}),
                  mode,
                  backend_of(context_).arithmetic(values_of(layer.weights.handle.get()))};
    const size_t row_bytes =
        h * static_cast<size_t>(core::dtype_bytes(static_cast<ramp_dtype>(x.view.dtype)));
    std::vector<int64_t> experts;
    std::map<int32_t, int32_t> place;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = tokens[static_cast<size_t>(i)];
      p.device_y.download_row(t);
      std::copy_n(x.data.as<std::byte>() + static_cast<size_t>(t) * row_bytes, row_bytes,
                  s.x.data.as<std::byte>() + static_cast<size_t>(i) * row_bytes);
      std::copy_n(p.y.data.as<std::byte>() + static_cast<size_t>(t) * row_bytes, row_bytes,
                  s.y.data.as<std::byte>() + static_cast<size_t>(i) * row_bytes);
      for (int64_t j = 0; j < model.top_k; ++j) {
        const int32_t id = p.ids.data.as<int32_t>()[t * model.top_k + j];
        const auto [at, fresh] = place.emplace(id, static_cast<int32_t>(experts.size()));
        if (fresh) experts.push_back(id);
        s.ids.data.as<int32_t>()[i * model.top_k + j] = at->second;
        s.weights.data.as<float>()[i * model.top_k + j] = p.weights.data.as<float>()[t * model.top_k + j];
      }
    }
    const auto parallel = [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); };
    const core::SyntheticWeights values = core::make_synthetic_experts(layer.recipe, experts, parallel);
    const std::unique_ptr<core::ExpertWeights> weights = core::make_expert_weights(values.desc, {});
    return check_sample(s, *weights, parallel);
  }

  Io& io_;
  ramp_context* context_;
  const LayerBenchOptions& o_;
  Peers peers_;
  ContextFacts facts_;
  bool known_device_ = false;
  double read_gbps_ = 0;
  int failed_ = 0;
  bool unsteady_ = false;  // the row before
  std::vector<LayerRow> rows_;
};

}  // namespace

int bench_layers(Io& io, ramp_context* context, const LayerBenchOptions& options) {
  const InterruptGuard guard;
  return LayerBench(io, context, options).run();
}

}  // namespace ramp::cli
