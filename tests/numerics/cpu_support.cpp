// See cpu_support.hpp.
#include "numerics/cpu_support.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/isa.hpp"
#include "backend/cpu/thread_pool.hpp"
#include "routing/workload.hpp"

namespace ramp::core::test {

const std::vector<std::string>& isa_levels() {
  static const std::vector<std::string> levels = [] {
    std::vector<std::string> names;
    for (const CpuKernels* k : available_isa_levels()) names.emplace_back(k->isa);
    return names;
  }();
  return levels;
}

Backend& cpu_backend(const std::string& isa, int32_t threads) {
  static std::map<std::pair<std::string, int32_t>, std::unique_ptr<Backend>> backends;
  auto& backend = backends[{isa.empty() ? isa_levels().back() : isa, threads}];
  if (backend == nullptr) {
    BackendOptions options;
    options.isa = isa;
    options.num_threads = threads;
    backend = make_backend(RAMP_BACKEND_AUTO, options);
  }
  return *backend;
}

const char* hold_name(Hold hold) {
  switch (hold) {
    case Hold::kPackedCopy:
      return "packed_copy";
    case Hold::kPackedInPlace:
      return "packed_in_place";
    case Hold::kPackedBorrow:
      return "packed_borrow";
    case Hold::kBorrow:
      return "borrow";
    case Hold::kCopy:
      return "copy";
  }
  return "";
}

namespace {

template <typename Case>
std::unique_ptr<ExpertWeights> held(Case& c, Hold hold, Backend& backend) {
  const bool copy = hold == Hold::kPackedCopy || hold == Hold::kCopy;
  auto w = c.make_weights(copy ? RAMP_COPY : hold == Hold::kPackedInPlace ? RAMP_IN_PLACE : RAMP_BORROW);
  if (hold != Hold::kBorrow && hold != Hold::kCopy) backend.pack(*w, nullptr);
  return w;
}

}  // namespace

std::unique_ptr<ExpertWeights> make_held(BlockCase& c, Hold hold, Backend& backend) {
  return held(c, hold, backend);
}
std::unique_ptr<ExpertWeights> make_held(BatchedCase& c, Hold hold, Backend& backend) {
  return held(c, hold, backend);
}

void set_routing(BlockCase& c, const std::string& workload, uint64_t seed) {
  const Routing r = make_routing(parse_workload(workload), c.spec.experts, c.spec.top_k, c.spec.tokens, seed);
  ASSERT_FALSE(c.spec.int64_ids || c.spec.expert_map);
  for (int64_t t = 0; t < c.spec.tokens; ++t) {
    for (int64_t j = 0; j < c.spec.top_k; ++j) {
      const auto at = static_cast<size_t>(t * c.spec.top_k + j);
      static_cast<int32_t*>(c.ids.view.data)[t * c.ids.view.stride[0] + j * c.ids.view.stride[1]] = r.ids[at];
      c.topk_weights.set(t, j, r.weights[at]);
    }
  }
  c.expected_masked = c.expected_out_of_range = 0;
}

std::vector<int64_t> sample_tokens(const BlockCase& c, int64_t count) {
  std::vector<int64_t> tokens;
  const int64_t n = std::min(count, c.spec.tokens);
  for (int64_t i = 0; i < n; ++i) tokens.push_back(n == 1 ? 0 : i * (c.spec.tokens - 1) / (n - 1));
  return tokens;
}

CheckOptions check_options() {
  static ThreadPool pool(2);
  CheckOptions options;
  options.parallel = [](int64_t tasks, const std::function<void(int64_t)>& task) {
    pool.run(tasks, [&](int64_t i, int32_t) { task(i); });
  };
  return options;
}

}  // namespace ramp::core::test
