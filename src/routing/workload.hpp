// Workloads: physically possible routing (k distinct experts per token) drawn from a popularity law, and its
// statistics. Spec grammar: balanced | uniform | zipf:s | dirichlet:a | ddist:x | single | PATH.npy
//   balanced     every expert gets the same number of rows (+-1)
//   uniform      k distinct experts per token, equally popular
//   zipf:s       popularity p_e ~ rank^-s, ranks shuffled by the seed, Gumbel top-k per token
//   dirichlet:a  popularity ~ Dirichlet(a), Gumbel top-k per token
//   ddist:x      a fraction x of the tokens goes to the same k "hot" experts, the rest uniformly (x in [0,1])
//   single       all tokens choose experts 0..k-1
//   PATH.npy     a trace: integer ids [T,k] or [steps,T,k]
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ramp::core {

enum class WorkloadKind : int32_t { kBalanced, kUniform, kZipf, kDirichlet, kDdist, kSingle, kTrace };

struct WorkloadSpec {
  WorkloadKind kind = WorkloadKind::kUniform;
  double parameter = 0;
  std::string path;  // kTrace
};
WorkloadSpec parse_workload(std::string_view text);  // throws Error that shows the grammar
std::string workload_name(const WorkloadSpec& spec);

struct Routing {
  int64_t tokens = 0, top_k = 0, experts = 0;
  std::vector<int32_t> ids;    // [T,k]
  std::vector<float> weights;  // [T,k], positive, sum to 1 per token
};
// Same (spec, E, k, T, seed) -> same routing on every machine. Throws when k > E, T < 0, or a trace does not
// fit. A trace with fewer tokens than asked for is an error; with more, the first T are used (step `seed` of
// a 3-d trace).
Routing make_routing(const WorkloadSpec& spec, int64_t experts, int64_t top_k, int64_t tokens, uint64_t seed);

struct HistogramStats {
  int64_t experts = 0, rows = 0, active = 0, max_load = 0;
  double max_over_mean = 0;       // max c_e / (rows / E); 0 when there are no rows
  double normalised_entropy = 0;  // beta = entropy(c)/ln E in [0,1]; 1 when E == 1; 0 when there are no rows
};
HistogramStats describe(std::span<const int32_t> histogram) noexcept;

}  // namespace ramp::core
