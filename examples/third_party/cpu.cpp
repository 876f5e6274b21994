// A third-party kernel for the expert block under ramp's dispatcher, beside ramp's own configs, through the
// public API alone: registered, profiled on this machine, fitted, and then dispatched live. For each step the
// histogram decides between ramp's kernels and the other one; each result is checked against fp64.
//
// The other kernel (naive.hpp) has nothing to wake up or sort, which is all it has to offer: whether that
// ever wins on this machine is for the measured times to say, and nobody tells the dispatcher.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <ramp/dispatch.hpp>
#include <string>
#include <vector>

#include "layer.hpp"
#include "naive.hpp"

namespace {

struct Call {
  ramp_expert_block_args args = ramp_expert_block_args_init();
  ramp_block_call block = ramp_block_call_init();
};
void point_at(Call& call, const ramp::Weights& weights, Step& step, const Shape& s) {
  call.args.weights = weights.get();
  call.args.x = ramp::tensor(step.x, {step.tokens, s.hidden});
  call.args.topk_ids = ramp::tensor(step.ids, {step.tokens, s.top_k});
  call.args.topk_weights = ramp::tensor(step.weights, {step.tokens, s.top_k});
  call.args.y = ramp::tensor(step.y, {step.tokens, s.hidden});
  call.block.args = &call.args;
}

double time_of(const ramp::Kernel& kernel, int32_t config, Call& call) {
  double best = HUGE_VAL;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    kernel.launch(config, &call.block);
    const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - start;
    best = std::min(best, us.count());
  }
  return best;
}

// One layer shape, from registration to the last step; whether all results were right.
bool run(const Shape& shape) {
  const auto& [E, k, H, I] = shape;
  const Layer layer(shape);
  ramp::Context context;
  ramp::Weights weights(context, {.format = RAMP_FORMAT_F32,
                                  .w13 = ramp::tensor(layer.w13, {E, 2 * I, H}),
                                  .w2 = ramp::tensor(layer.w2, {E, H, I})});
  weights.pack(context);

  // Registered: a table of two configs and a callback. ramp's own come first in the kernel's table.
  Naive naive(shape, layer.w13.data(), layer.w2.data());
  const int32_t n1 = static_cast<int32_t>(2 * I);
  ramp::Kernel kernel(context, weights,
                      {.name = "naive",
                       .configs = {{.name = "naive_1", .tile_m = 1, .tile_n = n1},
                                   {.name = "naive_8", .tile_m = 8, .tile_n = n1}},
                       .top_k = k,
                       .launch = [&](int32_t config, void* call) {
                         naive.run(config == 0 ? 1 : 8, *static_cast<ramp_block_call*>(call)->args);
                         return 0;
                       }});
  const int32_t configs = kernel.info().num_configs, own = configs - 2;

  // Profiled and fitted, by the same state machine and cost model as ramp's own.
  std::vector<Step> step;
  Call call;
  kernel.profile({.max_tokens = 512, .repeats = 7, .prepare = [&](const ramp_workload& w) {
                    step.assign(1, Step(shape, w.tokens, w.histogram));
                    point_at(call, weights, step[0], shape);
                    return &call.block;
                  }});
  kernel.fit();
  for (const std::string& line : kernel.warnings()) std::printf("note: %s\n", line.c_str());
  std::printf("ramp %s on %s: %d configs of ramp, 2 naive ones, %lld timings at %lld points\n",
              ramp_version(), context.info().backend_name, own,
              static_cast<long long>(kernel.info().profile_timings),
              static_cast<long long>(kernel.info().profile_points));

  // Live. The times of all configs are taken only to say what the choice was worth.
  std::printf("%6s %5s  %-24s %12s %10s   %-24s %10s\n", "tokens", "zipf", "chosen", "predicted us",
              "took us", "best", "us");
  int failures = 0, foreign = 0, steps = 0;
  double loss = 0;
  uint32_t seed = 100;
  for (const int64_t tokens : {1, 2, 3, 6, 12, 48, 200, 700}) {
    for (const double zipf : {0.0, 1.5}) {
      Step live(shape, tokens, zipf, seed++);
      point_at(call, weights, live, shape);
      live.y.assign(live.y.size(), NAN);
      const int32_t chosen = kernel.dispatch(live.histogram, &call.block);
      const double error = worst_error(layer, live, std::ldexp(1.0, -24));
      failures += error > 1 ? 1 : 0;
      foreign += chosen >= own ? 1 : 0;
      std::vector<double> us;
      for (int32_t c = 0; c < configs; ++c) us.push_back(time_of(kernel, c, call));
      const auto best = std::min_element(us.begin(), us.end()) - us.begin();
      loss += us[chosen] / us[best] - 1;
      ++steps;
      std::printf("%6lld %5.1f  %-24s %12.1f %10.1f   %-24s %10.1f%s\n", static_cast<long long>(tokens), zipf,
                  kernel.config_name(chosen), double{kernel.predict(live.histogram)[chosen]}, us[chosen],
                  kernel.config_name(static_cast<int32_t>(best)), us[best], error > 1 ? "  WRONG" : "");
    }
  }
  // Every config of both, on one step: whatever the dispatcher chooses elsewhere is right as well.
  for (int32_t c = 0; c < configs; ++c) {
    Step one(shape, 33, 1.0, 5);
    point_at(call, weights, one, shape);
    kernel.launch(c, &call.block);
    const double error = worst_error(layer, one, std::ldexp(1.0, -24));
    failures += error > 1 ? 1 : 0;
    if (error > 1) std::printf("%s is wrong: %.2f of its bound\n", kernel.config_name(c), error);
  }
  std::printf(
      "%d of %d steps went to the naive kernel; mean loss against the best config of each step %.1f%%\n",
      foreign, steps, 100 * loss / steps);
  std::printf("results: %s\n", failures == 0 ? "all within their bounds" : "WRONG");
  return failures == 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 1 && argc != 5) return std::fprintf(stderr, "usage: %s [E k H I]\n", argv[0]), 2;
  if (argc == 5)
    return run({std::atoll(argv[1]), std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4])}) ? 0 : 1;
  const bool tiny = run({2, 1, 32, 32}), small = run({8, 2, 64, 64});
  return tiny && small ? 0 : 1;
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n", e.what()), 1;
}
