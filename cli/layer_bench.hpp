// `ramp bench` on a GPU, protocol "layers": one CUDA graph runs L MoE layers with distinct weights and
// distinct routing; a replay's time over L is one sample of the whole block, from (x, ids, weights) to y. Set
// beside the floor that the GPU allows and beside the best open kernels.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cli/output.hpp"
#include "cli/peers.hpp"
#include "cli/runtime.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {

struct LayerBenchOptions {
  std::vector<std::pair<core::ModelShape, ramp_format>> cases;
  std::vector<int64_t> tokens;
  std::vector<core::WorkloadSpec> routing;
  std::vector<std::string> configs;
  std::vector<ramp_determinism> modes;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  int64_t layers = 0;   // 0: the protocol's, else as many as fit, 2 to 5
  int64_t replays = 0;  // 0: 20, at least 5 where they take more than `seconds`
  double seconds = 10;  // of replays per row
  // Seconds of rest before the replays of a row whose work takes the GPU to its power limit, and of the row
  // after that (LayerFloor::unsteady): else a row would meet the clock that the one before left behind.
  double pause = kPause;
  static constexpr double kPause = 0.25;
  double read_gbps = 0;     // 0: the peers' device's
  double check_budget = 0;  // multiply-adds of reference work per point; 0: no check
  uint64_t seed = 0;
  std::string peers;  // file; "": built in
};

// Prints the table, emits the JSON array, and returns the exit code.
int bench_layers(Io& io, ramp_context* context, const LayerBenchOptions& options);

}  // namespace ramp::cli
