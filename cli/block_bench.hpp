// Timing the expert block: `layers` layers with distinct weights and distinct routing run one after the
// other, pass after pass; a pass's time over the number of layers is one sample. Used by `ramp bench` and
// `ramp demo`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/device_tensor.hpp"
#include "cli/layer_source.hpp"
#include "cli/stats.hpp"
#include "cli/tensors.hpp"
#include "cli/verify.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {

// A few tokens of layer 0, cut out of a run so that they can be checked after the packed weights are gone.
// The result of a token does not depend on the others, so the block of these tokens alone is the same
// computation.
struct CheckSample {
  HostTensor x, ids, weights, y;
  ramp_determinism determinism = RAMP_REPEATABLE;
  core::BlockArithmetic arithmetic;  // of the backend that ran
};

struct Sampling {
  double seconds = 1.0;  // per point, warm-up not counted
  int64_t repeats = 0;   // > 0: exactly so many passes
  static constexpr int64_t kLeastPasses = 3, kMostPasses = 2000;
};

// One point, with one config. Per layer, means over the layers where layers differ.
struct Measurement {
  int64_t tokens = 0;
  std::string routing, config;
  double active = 0, max_load = 0, max_over_mean = 0, imbalance = 0, entropy = 0;
  double rows = 0;          // token slots that reached an expert
  double weight_bytes = 0;  // of the active experts, scales included
  double flops = 0;         // 2 x multiply-adds of both GEMMs
  int64_t passes = 0;
  Percentiles us;
  CheckSample sample;
  [[nodiscard]] double gbps() const noexcept { return weight_bytes / us.median / 1e3; }
  [[nodiscard]] double tflops() const noexcept { return flops / us.median / 1e6; }
};

// Means over the layers of what their histograms are.
void describe_layers(const std::vector<std::vector<int32_t>>& histograms, const core::ModelShape& shape,
                     ramp_format format, ramp_activation activation, Measurement& m);

// What a format's activations are in the models that use it: bf16, f16 or f32.
ramp_dtype natural_dtype(ramp_format format);

class BlockBench {
 public:
  // shape.top_k: k. seed: of x and, with the layer's number added, of the routing.
  BlockBench(ramp_context* context, const std::vector<RunnableLayer>& layers, const LayerSource& source,
             ramp_determinism determinism, uint64_t seed);

  // config: "auto" or a name. check_budget: multiply-adds of reference work for the sample; 0: no sample.
  // progress: called between passes with the fraction done.
  Measurement measure(const core::WorkloadSpec& routing, int64_t tokens, const std::string& config,
                      const Sampling& sampling, double check_budget,
                      const std::function<void(double)>& progress = {});

 private:
  struct LayerRouting {
    HostTensor ids, weights;
    Mirror device_ids, device_weights;
    std::vector<int32_t> histogram;
  };
  std::vector<LayerRouting> make_routing(const core::WorkloadSpec& spec, int64_t tokens) const;
  CheckSample cut_sample(const LayerRouting& routing, int64_t tokens, double budget) const;

  ramp_context* context_;
  const std::vector<RunnableLayer>& layers_;
  core::ModelShape shape_;
  ramp_format format_;
  ramp_activation activation_;
  ramp_determinism determinism_;
  uint64_t seed_;
  Workspace workspace_;
  HostTensor x_, y_;
  Mirror device_x_, device_y_;
};

// The sample against the fp64 reference.
core::CheckResult check_sample(const CheckSample& sample, const core::ExpertWeights& values,
                               const core::ParallelFor& parallel);

}  // namespace ramp::cli
