// Runs that the tests of blocks share (runs.hpp).
#include "gpu/runs.hpp"

#include <algorithm>
#include <iterator>
#include <memory>

#include "abi/handles.hpp"
#include "base/tensor.hpp"
#include "cli/gpu.hpp"

namespace ramp::core::test {

WholeSpace::WholeSpace(ramp_context* context) : context_(context) {
  context_of(context_).whole_space = true;
}
WholeSpace::~WholeSpace() {
  context_of(context_).whole_space = false;
}

CaseSpec block_spec(ramp_format format, int64_t experts, int64_t top_k, int64_t tokens, int64_t hidden,
                    int64_t intermediate) {
  CaseSpec s;
  s.format = format;
  s.experts = experts;
  s.top_k = top_k;
  s.tokens = tokens;
  s.hidden = hidden;
  s.intermediate = intermediate;
  s.seed = static_cast<uint64_t>(experts + 7 * tokens + hidden);
  return s;
}

std::vector<uint8_t> run_block(ramp_context* context, BlockCase& c, GpuBlock& block, const ramp_weights* w,
                               int32_t config) {
  const DeviceBuffer scratch = block.workspace(w);
  scratch.poison();
  block.begin();
  ramp_expert_block_args a = block.args(w);
  a.config = config;
  require(ramp_expert_block(context, &a, scratch.data(), scratch.bytes(), nullptr));
  block.finish();
  EXPECT_TRUE(scratch.guard_intact()) << c.spec;
  return c.y_bits();
}

void check_some(BlockCase& c, int64_t products) {
  constexpr int64_t kLeast = 6;
  const int64_t per_token = c.spec.top_k * 3 * c.spec.hidden * c.spec.intermediate;
  CheckOptions options = check_options();
  const std::vector<int64_t> tokens =
      spread_tokens(c.spec.tokens, std::max<int64_t>(kLeast, products / per_token));
  options.tokens = tokens;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << case_name(c.spec) << "\n" << result.text();
}

void expect_graph_follows_routing(ramp_context* context, BlockCase& c, const ramp_weights* w, int32_t config,
                                  const std::function<void(const std::vector<uint8_t>& replayed)>& check) {
  GpuBlock block(c, context);
  const DeviceBuffer scratch = block.workspace(w);
  ramp_expert_block_args a = block.args(w);
  a.config = config;
  cli::Graph graph(context, [&](void* stream) {
    require(ramp_expert_block(context, &a, scratch.data(), scratch.bytes(), stream));
  });
  const Ids routings[] = {Ids::kDistinct, Ids::kSingle,    Ids::kSkewed,
                          Ids::kMasked,   Ids::kAllMasked, Ids::kDistinct};
  for (size_t i = 0; i < std::size(routings); ++i) {
    SCOPED_TRACE(i);
    CaseSpec other = c.spec;
    other.seed = 100 + i;
    other.ids = routings[i];
    BlockCase from(other);
    std::copy_n(static_cast<const int32_t*>(from.ids.view.data), c.spec.tokens * c.spec.top_k,
                static_cast<int32_t*>(c.ids.view.data));
    c.expected_masked = from.expected_masked;
    block.upload();
    scratch.poison();
    block.begin();
    graph.replay();
    block.finish();
    EXPECT_TRUE(scratch.guard_intact());
    check(c.y_bits());
  }
}

void expect_layers_agree(ramp_context* context, const CaseSpec& spec, int rounds) {
  constexpr int64_t kLayers = 4;
  constexpr int kPoisonEvery = 20;
  std::vector<std::unique_ptr<BlockCase>> cases;
  std::vector<GpuWeights> weights;
  std::vector<std::unique_ptr<GpuBlock>> blocks;
  for (int64_t l = 0; l < kLayers; ++l) {
    CaseSpec s = spec;
    s.seed = 40 + static_cast<uint64_t>(l);
    s.ids = l % 2 == 0 ? Ids::kDistinct : Ids::kSkewed;
    s.counters = false;
    cases.push_back(std::make_unique<BlockCase>(s));
    weights.push_back(make_gpu_weights(context, cases.back()->synthetic, RAMP_COPY, true));
    blocks.push_back(std::make_unique<GpuBlock>(*cases.back(), context));
  }
  const DeviceBuffer scratch = blocks[0]->workspace(weights[0].handle.get());
  const auto enqueue = [&](void* stream, bool wait) {
    for (size_t l = 0; l < blocks.size(); ++l) {
      ramp_expert_block_args a = blocks[l]->args(weights[l].handle.get());
      if (l > 0) a.x = blocks[l - 1]->y.view();
      require(ramp_expert_block(context, &a, scratch.data(), scratch.bytes(), stream));
      if (wait) memory(context).synchronize(stream);
    }
  };
  const auto bits = [&] {
    memory(context).synchronize_all();
    blocks.back()->y.download();
    return cases.back()->y_bits();
  };
  enqueue(nullptr, true);
  const std::vector<uint8_t> expected = bits();
  cli::Graph graph(context, [&](void* stream) { enqueue(stream, false); });
  for (int i = 0; i < rounds; ++i) {
    if (i % kPoisonEvery == 0) {
      scratch.poison();
      for (const auto& b : blocks) b->y.poison();
    }
    if (i % 2 == 0)
      graph.replay();
    else
      enqueue(nullptr, false);
    ASSERT_EQ(bits(), expected) << "round " << i;  // waits: one workspace, two streams
  }
  EXPECT_TRUE(scratch.guard_intact());
}

}  // namespace ramp::core::test
