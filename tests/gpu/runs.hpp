// What several tests of blocks do with a case: run one config in a workspace of NaN, check as many tokens as
// there is time for, replay a graph over changing routings, run layers one behind the other.
#pragma once

#include <functional>
#include <string>

#include "gpu/support.hpp"

namespace ramp::core::test {

// Packed weights that need sm_90a's kernels: skipped where the context has none.
template <typename Base = testing::Test>
class Sm90 : public Base {
 protected:
  void SetUp() override {
    ramp_context_info info = ramp_context_info_init();
    require(ramp_context_get_info(gpu(), &info));
    if (std::string(info.isa) != "sm90") GTEST_SKIP() << "the kernels are sm_90a's, this is " << info.isa;
  }
};

// A context's configs are numbered over the whole space while it lives.
class WholeSpace {
 public:
  explicit WholeSpace(ramp_context* context);
  ~WholeSpace();
  WholeSpace(const WholeSpace&) = delete;
  WholeSpace& operator=(const WholeSpace&) = delete;

 private:
  ramp_context* context_;
};

// Ids kDistinct; the seed follows from the shape.
CaseSpec block_spec(ramp_format format, int64_t experts, int64_t top_k, int64_t tokens, int64_t hidden,
                    int64_t intermediate);

// In a workspace of its own, poisoned before, by config (0: what the context takes). The bits of y.
std::vector<uint8_t> run_block(ramp_context* context, BlockCase& c, GpuBlock& block, const ramp_weights* w,
                               int32_t config = 0);

// At least six tokens, and as many as make `products` products.
void check_some(BlockCase& c, int64_t products);

// One graph of this config over routings of every kind, in a workspace that is all NaN before each replay.
// check: what else holds of the case when its y is a replay's.
void expect_graph_follows_routing(ramp_context* context, BlockCase& c, const ramp_weights* w, int32_t config,
                                  const std::function<void(const std::vector<uint8_t>& replayed)>& check);

// Layers with weights and routing of their own, each reading what the one before wrote, all in one workspace:
// what overlapping launches compute, in graphs and without, is what layers that wait for each other give.
void expect_layers_agree(ramp_context* context, const CaseSpec& spec, int rounds);

}  // namespace ramp::core::test
