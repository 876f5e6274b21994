// `ramp bench` on a CPU, protocol "passes": the layers of a point run one after the other, pass after pass,
// timed by the host's clock; set beside the floor that the machine's read bandwidth allows and checked
// against fp64.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cli/output.hpp"
#include "cli/runtime.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {

struct PassBenchOptions {
  std::vector<std::pair<core::ModelShape, ramp_format>> cases;
  std::vector<int64_t> tokens;
  std::vector<core::WorkloadSpec> routing;
  std::vector<std::string> configs;  // "all": every legal one
  std::vector<ramp_determinism> modes;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  int64_t layers = 0;       // 0: as many as it takes to leave the cache, 2 to 5
  int64_t repeats = 0;      // > 0: exactly so many passes
  double seconds = 1;       // per point
  double read_gbps = 0;     // 0: measured first
  double check_budget = 0;  // multiply-adds of reference work per point; 0: no check
  uint64_t seed = 0;
};

// Prints the table, emits the JSON array, and returns the exit code.
int bench_passes(Io& io, ramp_context* context, const PassBenchOptions& options);

}  // namespace ramp::cli
