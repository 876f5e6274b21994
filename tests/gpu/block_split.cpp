// Steps that are divided among several kernels (fp8_block, H and I multiples of 128, packed): whichever
// kernel an expert goes to, the bits are those of one kernel for all. Family sm90_split divides every step
// three ways by rows; shapes with experts of every size, none of a size, all of one; graphs whose routing
// changes; the batched entry.
#include <algorithm>
#include <string>

#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/runs.hpp"

namespace ramp::core::test {
namespace {

class GpuSplit : public Sm90<> {};

CaseSpec split_spec(int64_t experts, int64_t top_k, int64_t tokens, int64_t hidden, int64_t intermediate,
                    Ids ids) {
  CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, experts, top_k, tokens, hidden, intermediate);
  s.ids = ids;
  return s;
}

TEST_F(GpuSplit, GivesTheBitsOfOneKernel) {
  // By rows per expert: all below 16, between, above 64; every kind; more than one block sorts (2048 slots),
  // more than one launch (10240); more experts than threads of a warp, of a block; one, none.
  const CaseSpec specs[] = {
      split_spec(8, 2, 3, 256, 256, Ids::kDistinct),    split_spec(8, 2, 100, 256, 640, Ids::kSkewed),
      split_spec(4, 4, 129, 384, 1152, Ids::kSingle),   split_spec(16, 4, 500, 1152, 384, Ids::kMasked),
      split_spec(8, 2, 33, 256, 256, Ids::kAllMasked),  split_spec(8, 3, 200, 384, 256, Ids::kOutOfRange),
      split_spec(3, 8, 90, 256, 384, Ids::kDuplicates), split_spec(64, 8, 300, 256, 640, Ids::kSkewed),
      split_spec(128, 8, 1500, 256, 384, Ids::kSkewed), split_spec(64, 8, 1200, 256, 256, Ids::kDistinct),
      split_spec(600, 8, 700, 128, 128, Ids::kSkewed),  split_spec(1024, 8, 400, 128, 128, Ids::kDistinct),
      split_spec(1, 1, 200, 128, 128, Ids::kSingle),
  };
  ramp_context* const split = gpu("sm90_split");
  for (const CaseSpec& s : specs) {
    SCOPED_TRACE(case_name(s));
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock one(c, gpu());
    const std::vector<uint8_t> expected = run_block(gpu(), c, one, w.handle.get(), 1);
    const GpuWeights v = make_gpu_weights(split, c.synthetic, RAMP_COPY, true);
    GpuBlock several(c, split);
    for (int i = 0; i < 5; ++i)
      ASSERT_EQ(run_block(split, c, several, v.handle.get(), 0), expected) << "repetition " << i;
  }
}

TEST_F(GpuSplit, GraphsFollowTheRouting) {
  ramp_context* const split = gpu("sm90_split");
  BlockCase c(split_spec(32, 4, 700, 512, 384, Ids::kDistinct));
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  const GpuWeights v = make_gpu_weights(split, c.synthetic, RAMP_COPY, true);
  expect_graph_follows_routing(split, c, v.handle.get(), 0, [&](const std::vector<uint8_t>& replayed) {
    GpuBlock one(c, gpu());
    EXPECT_EQ(run_block(gpu(), c, one, w.handle.get(), 1), replayed);
  });
}

// Counts are the device's: the same call with few rows and with full experts, by the default choice (several
// candidates, of which one gets everything) and divided.
TEST_F(GpuSplit, BatchedWithFewAndWithManyRows) {
  constexpr int64_t kMostRows = 400;
  CaseSpec s = split_spec(8, 1, kMostRows, 256, 128, Ids::kDistinct);
  BatchedCase c(s);
  ramp_context* const split = gpu("sm90_split");
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  const GpuWeights v = make_gpu_weights(split, c.synthetic, RAMP_COPY, true);
  for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{9}, int64_t{60}, kMostRows}) {
    SCOPED_TRACE(rows);
    for (int64_t e = 0; e < s.experts; ++e) {
      // One expert has all rows that there can be.
      const int64_t count = e == 3 && rows != 0 ? kMostRows : rows;
      if (c.counts.view.dtype == RAMP_I64)
        static_cast<int64_t*>(c.counts.view.data)[e] = count;
      else
        static_cast<int32_t*>(c.counts.view.data)[e] = static_cast<int32_t>(count);
    }
    GpuBatched chosen(c, gpu());
    chosen.run(w.handle.get());
    const std::vector<uint8_t> expected = c.y_bits();
    const CheckResult result = c.check(check_options());
    EXPECT_TRUE(result.ok()) << result.text();
    GpuBatched divided(c, split);
    divided.run(v.handle.get());
    EXPECT_EQ(c.y_bits(), expected);
  }
}

struct Traced {
  uint64_t number, call;
  int64_t experts, tokens;
  std::string config;
  std::vector<int32_t> histogram;
};

// Eager calls are timed where that is asked for, captured ones are not; bits and graphs stay what they are.
TEST_F(GpuSplit, TracesHoldTheTimesOfEagerCalls) {
  const ContextPtr context = make_gpu_context();
  require(ramp_context_trace(context.get(), 64));
  require(ramp_context_time_trace(context.get(), 1));
  const CaseSpec spec = split_spec(16, 4, 300, 256, 128, Ids::kSkewed);
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(context.get(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, context.get());
  const std::vector<uint8_t> timed = run_case(context.get(), c, block, w.handle.get(), 0);
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  ramp_context_counters before = ramp_context_counters_init();
  require(ramp_context_get_counters(context.get(), &before));
  EXPECT_GT(before.records, 0U);
  EXPECT_EQ(before.measured, before.records) << "all of them eager";
  EXPECT_GT(before.measured_us, 0);
  EXPECT_GE(before.imbalance_max, 1);
  {
    ramp_expert_block_args a = block.args(w.handle.get());
    cli::Graph graph(context.get(), [&](void* stream) {  // once as it is, then captured
      require(ramp_expert_block(context.get(), &a, scratch.data(), scratch.bytes(), stream));
    });
    block.begin();
    for (int i = 0; i < 5; ++i) graph.replay();
    block.finish();
  }
  ramp_context_counters after = ramp_context_counters_init();
  require(ramp_context_get_counters(context.get(), &after));
  EXPECT_EQ(after.records, before.records + 6);
  EXPECT_EQ(after.measured, before.measured + 1);
  EXPECT_EQ(after.lost, 0U);
  std::vector<double> us;
  require(ramp_context_read_trace(
      context.get(),
      [](const ramp_trace_record* r, void* user) {
        static_cast<std::vector<double>*>(user)->push_back(r->measured_us);
        EXPECT_GT(r->configs_us[r->chosen], 0);
        EXPECT_DOUBLE_EQ(r->configs_us[r->chosen], r->predicted_us);
        EXPECT_STREQ(r->default_config, r->configs[r->chosen]);  // no fit: the default alone
        EXPECT_DOUBLE_EQ(r->default_us, r->predicted_us);
      },
      &us));
  ASSERT_EQ(us.size(), after.records);
  for (size_t i = 0; i < us.size(); ++i) EXPECT_EQ(us[i] > 0, i <= before.records) << i;
  GpuBlock untimed(c, gpu());
  const GpuWeights v = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  EXPECT_EQ(run_case(gpu(), c, untimed, v.handle.get(), 0), timed);
}

// Every call writes what its ids say, replays of a graph too; bits are those of an untraced call.
TEST_F(GpuSplit, TracesHoldTheHistogramOfEveryCall) {
  const ContextPtr context = make_gpu_context();
  require(ramp_context_trace(context.get(), 8));
  EXPECT_EQ(ramp_context_trace(context.get(), 9), RAMP_ERROR_INVALID_ARGUMENT);
  const CaseSpec spec = split_spec(16, 4, 300, 256, 128, Ids::kSkewed);
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(context.get(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, context.get());
  const std::vector<uint8_t> traced = run_block(context.get(), c, block, w.handle.get(), 0);
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  {
    ramp_expert_block_args a = block.args(w.handle.get());
    cli::Graph graph(context.get(), [&](void* stream) {
      require(ramp_expert_block(context.get(), &a, scratch.data(), scratch.bytes(), stream));
    });
    block.begin();
    for (int i = 0; i < 9; ++i) graph.replay();
    block.finish();
  }
  std::vector<int32_t> histogram(static_cast<size_t>(spec.experts), 0);
  for (int64_t i = 0; i < spec.tokens * spec.top_k; ++i) {
    const int32_t e = static_cast<const int32_t*>(c.ids.view.data)[i];
    if (e >= 0 && e < spec.experts) ++histogram[static_cast<size_t>(e)];
  }
  std::vector<Traced> records;
  const auto take = [](const ramp_trace_record* r, void* user) {
    static_cast<std::vector<Traced>*>(user)->push_back(
        {r->number, r->call, r->num_experts, r->tokens, r->configs[r->chosen],
         std::vector<int32_t>(r->histogram, r->histogram + r->num_experts)});
  };
  require(ramp_context_read_trace(context.get(), take, &records));
  ASSERT_EQ(records.size(), 8U);  // the last ones
  EXPECT_GE(records[0].number, 2U);
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i].number, records[0].number + i);
    EXPECT_EQ(records[i].call, 0U);  // the same layer
    EXPECT_EQ(records[i].experts, spec.experts);
    EXPECT_EQ(records[i].tokens, spec.tokens);
    EXPECT_EQ(records[i].histogram, histogram);
    EXPECT_FALSE(records[i].config.empty());
  }
  records.clear();
  require(ramp_context_read_trace(context.get(), take, &records));
  EXPECT_TRUE(records.empty());
  GpuBlock untraced(c, gpu());
  const GpuWeights v = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  EXPECT_EQ(run_block(gpu(), c, untraced, v.handle.get(), 0), traced);
}

}  // namespace
}  // namespace ramp::core::test
