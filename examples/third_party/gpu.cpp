// A third-party kernel for the expert block on a GPU under ramp's dispatcher, beside ramp's own configs,
// through the public API alone: registered, profiled, fitted, and dispatched live, eagerly and as CUDA
// graphs.
//
// The part of somebody else's kernel is played by the portable family (mma.sync, any GPU from sm_80 on): it
// sits behind a callback, in a context and with weights of its own, and the dispatcher knows nothing of it
// but a table of names and tile sizes. What it competes with is the best that the first context has: on
// Hopper the kernels of sm_90. Who wins where is for the measured times to say.
//
// The host has the routing of a step here (as where the router or a transport runs on it), so it counts the
// histogram and decides. A timing is the replay of a graph between events, one replay ahead of it. Options:
// --eager: no graphs and events, but a host clock; --no-check: results are not looked at (where a stand-in
// for the driver runs nothing); --quick: at most 16 tokens, two samples (where one emulates a GPU).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <ramp/dispatch.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cuda.hpp"
#include "layer.hpp"

namespace {

constexpr ramp_device kGpu{RAMP_DEVICE_CUDA, 0};
constexpr int kNoGpu = 77;

// Values that bf16 holds: their upper halves.
std::vector<uint16_t> halves(const std::vector<float>& v) {
  std::vector<uint16_t> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, &v[i], sizeof bits);
    out[i] = static_cast<uint16_t>(bits >> 16);
  }
  return out;
}

// ---- the third-party kernel: to the dispatcher a table and a callback.
class Foreign {
 public:
  Foreign(const Shape& shape, int64_t max_tokens, const Buffer& w13, const Buffer& w2)
      : context_({.device = kGpu, .isa = "portable"}), weights_(context_, desc(shape, w13, w2)) {
    weights_.pack(context_);
    workspace_.reserve(context_.expert_block_workspace(weights_, max_tokens, shape.top_k));
    for (int32_t c = 0; const char* name = context_.config_name(weights_, c); ++c) {
      int m = 0, n = 0, k = 0;  // its names say its tiles: m<tokens>_n<weight rows>_k<depth>
      if (std::sscanf(name, "m%d_n%d_k%d", &m, &n, &k) != 3) throw std::runtime_error(name);
      configs_.push_back({.name = std::string("third_party:") + name, .tile_m = m, .tile_n = n, .tile_k = k});
    }
  }
  static ramp::WeightsDesc desc(const Shape& s, const Buffer& w13, const Buffer& w2) {
    return {.format = RAMP_FORMAT_BF16,
            .w13 = ramp::tensor(RAMP_BF16, w13.data(), {s.experts, 2 * s.intermediate, s.hidden}, kGpu),
            .w2 = ramp::tensor(RAMP_BF16, w2.data(), {s.experts, s.hidden, s.intermediate}, kGpu)};
  }
  [[nodiscard]] const std::vector<ramp::KernelConfig>& configs() const { return configs_; }
  int launch(int32_t config, const ramp_block_call& call) {
    ramp_expert_block_args args = *call.args;
    args.weights = weights_.get();
    args.config = config + 1;
    ++launches;
    return ramp_expert_block(context_.get(), &args, workspace_.data(), workspace_.bytes(), call.stream);
  }
  int launches = 0;

 private:
  ramp::Context context_;
  ramp::Weights weights_;
  Buffer workspace_;
  std::vector<ramp::KernelConfig> configs_;
};

// The buffers of a step on the device, and the call that uses them; addresses stay, so graphs stay valid.
class DeviceStep {
 public:
  DeviceStep(const ramp::Context& context, const ramp::Weights& weights, const Shape& s, int64_t max_tokens,
             CUstream stream)
      : shape_(s),
        x_(max_tokens * s.hidden * 2),
        y_(max_tokens * s.hidden * 4),
        ids_(max_tokens * s.top_k * 4),
        router_(max_tokens * s.top_k * 4),
        workspace_(context.expert_block_workspace(weights, max_tokens, s.top_k)) {
    args_.weights = weights.get();
    call_.args = &args_;
    call_.workspace = workspace_.data();
    call_.workspace_bytes = workspace_.bytes();
    call_.stream = stream;
  }
  void upload(const Step& step) {
    x_.upload(halves(step.x).data(), step.x.size() * 2);
    ids_.upload(step.ids.data(), step.ids.size() * 4);
    router_.upload(step.weights.data(), step.weights.size() * 4);
    const int64_t T = step.tokens;
    args_.x = ramp::tensor(RAMP_BF16, x_.data(), {T, shape_.hidden}, kGpu);
    args_.topk_ids = ramp::tensor(RAMP_I32, ids_.data(), {T, shape_.top_k}, kGpu);
    args_.topk_weights = ramp::tensor(RAMP_F32, router_.data(), {T, shape_.top_k}, kGpu);
    args_.y = ramp::tensor(RAMP_F32, y_.data(), {T, shape_.hidden}, kGpu);
    const std::vector<float> poison(static_cast<size_t>(T * shape_.hidden), NAN);
    y_.upload(poison.data(), poison.size() * 4);
  }
  void download(Step& step) const { y_.download(step.y.data(), step.y.size() * 4); }
  ramp_block_call* call() { return &call_; }

 private:
  Shape shape_;
  Buffer x_, y_, ids_, router_, workspace_;
  ramp_expert_block_args args_ = ramp_expert_block_args_init();
  ramp_block_call call_ = ramp_block_call_init();
};

// Graphs of the kernel's configs on the call at hand, captured when they are first asked for.
class Graphs {
 public:
  Graphs(const ramp::Kernel& kernel, void* call, CUstream stream)
      : kernel_(kernel), call_(call), stream_(stream) {
    for (CUevent& e : events_) CU(cuEventCreate, &e, CU_EVENT_DEFAULT);
  }
  void clear() { graphs_.clear(); }  // the shape changes
  const Graph& at(int32_t config) {
    std::unique_ptr<Graph>& graph = graphs_[config];
    if (graph == nullptr) {
      kernel_.launch(config, call_);
      CU(cuStreamSynchronize, stream_);
      graph = std::make_unique<Graph>(stream_, [&] { kernel_.launch(config, call_); });
    }
    return *graph;
  }
  double time(int32_t config) {
    const Graph& graph = at(config);
    graph.launch(stream_);  // from here on the GPU has work whenever the next one arrives
    CU(cuEventRecord, events_[0], stream_);
    graph.launch(stream_);
    CU(cuEventRecord, events_[1], stream_);
    CU(cuStreamSynchronize, stream_);
    float ms = 0;
    CU(cuEventElapsedTime, &ms, events_[0], events_[1]);
    return 1e3 * double{ms};
  }

 private:
  const ramp::Kernel& kernel_;
  void* call_;
  CUstream stream_;
  CUevent events_[2] = {};
  std::map<int32_t, std::unique_ptr<Graph>> graphs_;
};

struct Options {
  bool eager = false, check = true;
  int64_t max_tokens = 2048;
  int32_t repeats = 9;
  Shape shape{64, 8, 2048, 1024};
};

int run(const Options& o) {
  const auto& [E, k, H, I] = o.shape;
  const Layer layer(o.shape);
  CUstream stream = nullptr;
  if (!o.eager) CU(cuStreamCreate, &stream, CU_STREAM_NON_BLOCKING);
  ramp::Context context({.device = kGpu});
  Buffer w13, w2;
  w13.upload(halves(layer.w13).data(), layer.w13.size() * 2);
  w2.upload(halves(layer.w2).data(), layer.w2.size() * 2);
  ramp::Weights weights(context, Foreign::desc(o.shape, w13, w2));
  weights.pack(context);

  // Registered: ramp's own configs of the first context, then the table behind the callback.
  Foreign foreign(o.shape, o.max_tokens, w13, w2);
  ramp::Kernel kernel(context, weights,
                      {.name = "third party",
                       .configs = foreign.configs(),
                       .top_k = k,
                       .launch = [&](int32_t config, void* call) {
                         return foreign.launch(config, *static_cast<const ramp_block_call*>(call));
                       }});
  const int32_t configs = kernel.info().num_configs;
  const auto own = configs - static_cast<int32_t>(foreign.configs().size());

  // Profiled and fitted.
  DeviceStep device(context, weights, o.shape, o.max_tokens, stream);
  std::unique_ptr<Graphs> graphs;
  if (!o.eager) graphs = std::make_unique<Graphs>(kernel, device.call(), stream);
  ramp::ProfileOptions profile{
      .max_tokens = o.max_tokens, .repeats = o.repeats, .prepare = [&](const ramp_workload& w) {
        device.upload(Step(o.shape, w.tokens, w.histogram));
        if (graphs) graphs->clear();
        return device.call();
      }};
  if (graphs) profile.measure = [&](int32_t config, void*) { return graphs->time(config); };
  profile.synchronize = [&] { CU(cuStreamSynchronize, stream); };
  const auto start = std::chrono::steady_clock::now();
  kernel.profile(profile);
  kernel.fit();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  for (const std::string& line : kernel.warnings()) std::printf("note: %s\n", line.c_str());
  std::printf("%s: %d configs of ramp (%s), %d third-party ones, %lld timings at %lld points in %.1f s\n",
              context.info().device_name, own, context.info().isa, configs - own,
              static_cast<long long>(kernel.info().profile_timings),
              static_cast<long long>(kernel.info().profile_points), seconds.count());

  // Live: graphs once per number of tokens, then the histogram of each step chooses among them.
  std::printf("%6s %5s  %-44s %12s", "tokens", "zipf", "chosen", "predicted us");
  if (graphs) std::printf(" %10s   %-44s %10s", "took us", "best", "us");
  std::printf("\n");
  int failures = 0, foreign_steps = 0, steps = 0;
  double loss = 0;
  uint32_t seed = 100;
  const auto verify = [&](Step& step, const std::string& what) {
    if (!o.check) return;
    device.download(step);
    const double error = worst_error(layer, step, std::ldexp(1.0, -8), 4);
    if (error <= 1) return;
    ++failures;
    std::printf("WRONG: %s, %.2f of its bound\n", what.c_str(), error);
  };
  for (const int64_t tokens : {1, 3, 12, 48, 200, 700, 2000}) {
    if (tokens > o.max_tokens) break;
    if (graphs) graphs->clear();
    for (const double zipf : {0.0, 0.9, 1.6}) {
      Step live(o.shape, tokens, zipf, seed++);
      device.upload(live);
      int32_t chosen = 0;
      double us = NAN;
      if (graphs) {
        chosen = kernel.choose(live.histogram);
        graphs->at(chosen).launch(stream);
      } else {
        chosen = kernel.dispatch(live.histogram, device.call());
      }
      CU(cuStreamSynchronize, stream);
      verify(live, "step of " + std::to_string(tokens) + " tokens by " + kernel.config_name(chosen));
      foreign_steps += chosen >= own ? 1 : 0;
      ++steps;
      int32_t best = chosen;
      double best_us = NAN;
      for (int32_t c = 0; graphs && c < configs; ++c) {
        std::vector<double> samples;
        for (int i = 0; i < 5; ++i) samples.push_back(graphs->time(c));
        std::nth_element(samples.begin(), samples.begin() + 2, samples.end());
        if (c == chosen) us = samples[2];
        if (!(best_us <= samples[2])) {
          best_us = samples[2];
          best = c;
        }
      }
      if (graphs) loss += us / best_us - 1;
      std::printf("%6lld %5.1f  %-44s %12.1f", static_cast<long long>(tokens), zipf,
                  kernel.config_name(chosen), double{kernel.predict(live.histogram)[chosen]});
      if (graphs) std::printf(" %10.1f   %-44s %10.1f", us, kernel.config_name(best), best_us);
      std::printf("\n");
    }
  }
  // Every config of both on one step: whatever the dispatcher chooses elsewhere is right as well.
  for (int32_t c = 0; c < configs; ++c) {
    Step one(o.shape, std::min<int64_t>(33, o.max_tokens), 1.0, 5);
    device.upload(one);
    kernel.launch(c, device.call());
    CU(cuStreamSynchronize, stream);
    verify(one, kernel.config_name(c));
  }
  std::printf("%d of %d steps went to the third-party kernel, which was launched or captured %d times",
              foreign_steps, steps, foreign.launches);
  if (graphs) std::printf("; mean loss against the best config of each step %.1f%%", 100 * loss / steps);
  std::printf("\nresults: %s\n", !o.check        ? "not checked"
                                 : failures == 0 ? "all within their bounds"
                                                 : "WRONG");
  return failures == 0 && foreign.launches > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  std::vector<int64_t> sizes;
  for (int i = 1; i < argc; ++i) {
    const std::string_view a = argv[i];
    if (a == "--eager")
      o.eager = true;
    else if (a == "--no-check")
      o.check = false;
    else if (a == "--quick")
      o.max_tokens = 16, o.repeats = 2;
    else
      sizes.push_back(std::atoll(argv[i]));
  }
  if (sizes.size() == 4)
    o.shape = {sizes[0], sizes[1], sizes[2], sizes[3]};
  else if (!sizes.empty())
    return std::fprintf(stderr, "usage: %s [--eager] [--no-check] [--quick] [E k H I]\n", argv[0]), 2;
  if (!cuda.open()) return std::printf("no GPU here\n"), kNoGpu;
  return run(o);
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n", e.what()), 1;
}
