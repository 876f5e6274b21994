// Workloads: physically possible routing (k distinct experts per token) drawn from a popularity law, and its
// statistics. Spec grammar: balanced | uniform | zipf:s | dirichlet:a | ddist:x | single | PATH.npy
//   balanced     every expert gets the same number of rows (+-1)
//   uniform      k distinct experts per token, equally popular
//   zipf:s       popularity p_e ~ rank^-s, ranks shuffled by the seed, Gumbel top-k per token (s in [0,
//   1000]) dirichlet:a  popularity ~ Dirichlet(a), Gumbel top-k per token (a in [0.001, 1e6]) ddist:x      a
//   fraction x of the tokens goes to the same k "hot" experts, the rest uniformly (x in [0,1]) single all
//   tokens choose experts 0..k-1 PATH.npy     a trace: integer ids [T,k] or [steps,T,k]
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ramp/ramp.h"

namespace ramp::core {

enum class WorkloadKind : int32_t { kBalanced, kUniform, kZipf, kDirichlet, kDdist, kSingle, kTrace };

struct WorkloadSpec {
  WorkloadKind kind = WorkloadKind::kUniform;
  double parameter = 0;
  std::string path;  // kTrace
};
WorkloadSpec parse_workload(std::string_view text);  // throws Error that shows the grammar
// The spec as parse_workload reads it back.
std::string workload_name(const WorkloadSpec& spec);

struct Routing {
  int64_t tokens = 0, top_k = 0, experts = 0;
  std::vector<int32_t> ids;    // [T,k]
  std::vector<float> weights;  // [T,k], positive, falling, sum to 1 per token (to within k/2 units of 2^-24)
};
// Same (spec, E, k, T, seed) -> same routing on every machine; of uniform, zipf, dirichlet and single the
// first T tokens do not depend on how many follow. Throws when k > E, T < 0, or a trace does not fit. A trace
// with fewer tokens than asked for is an error; with more, the first T are used (of a 3-d trace those of step
// `seed` modulo the number of steps). A trace's ids are int32, int64, uint8 or uint16, in [0, E), distinct
// within a token; its weights are drawn.
Routing make_routing(const WorkloadSpec& spec, int64_t experts, int64_t top_k, int64_t tokens, uint64_t seed);

struct HistogramStats {
  int64_t experts = 0, rows = 0, active = 0, max_load = 0;
  double max_over_mean = 0;       // max c_e / (rows / E); 0 when there are no rows
  double imbalance = 0;           // max c_e / (rows / active); 0 when there are no rows
  double normalised_entropy = 0;  // beta = entropy(c)/ln E in [0,1]; 1 when E == 1; 0 when there are no rows
};
HistogramStats describe(std::span<const int32_t> histogram) noexcept;

// A trace step by step, and over its steps.
struct MeanMax {
  double mean = 0, max = 0;  // 0 when there are no steps
};
struct StepStats {
  HistogramStats histogram;
  int64_t masked = 0, out_of_range = 0;  // slots with id -1; with any other id outside [0, E)
};
struct TraceStats {
  int64_t tokens = 0, top_k = 0;  // of one step
  std::vector<StepStats> steps;
  StepStats total;  // of all rows together
  MeanMax max_over_mean, normalised_entropy, active;
};
// ids: i32 or i64 [T,k] (one step) or [steps,T,k]. Throws on other tensors, on experts < 1, and where the
// rows of all steps together exceed 2^31 - 1.
TraceStats describe_trace(const ramp_tensor& ids, int64_t experts);

}  // namespace ramp::core
