// The host side of traces against the stand-in for libcuda: records as the kernel writes them, times of calls
// that are not captured, and counters that count every record once. No kernel runs.
#include "backend/cuda/step_trace.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "cost/step.hpp"
#include "cuda/fake_driver.hpp"
#include "cuda/support.hpp"
#include "params/prologue.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

FakeState& fake() {
  static auto* const state =
      static_cast<FakeState*>(::dlsym(::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "fake_state"));
  return *state;
}

constexpr int64_t kExperts = 4;
using Counts = std::vector<int32_t>;

struct Copied {
  core::TraceRecord record;
  Counts histogram;
  std::vector<double> configs_us;
  std::string fallback;
};

class FakeTrace : public testing::Test {
 protected:
  FakeTrace() {
    w.experts = kExperts;
    w.hidden = 256;
    w.intermediate = 128;
    w.format = RAMP_FORMAT_FP8_BLOCK;
    // Two candidates, of which the first costs 1 us a row and the second 10 us and next to nothing; the
    // third kernel, which is none of them, twice the first.
    set.whole = true;
    set.candidates = {{false, 1}, {true, 0}};
    set.decide.candidates = set.decide.options = 2;
    for (unsigned c = 0; c < 2; ++c) {
      set.decide.plan[c].tile_m = static_cast<unsigned>(set.candidates[c].tile_m());
      set.decide.cost[c] = cost(c == 0 ? 0 : 10000, c == 0 ? 1000 : 1);
      set.decide.option[c].above[0] = c == 0 ? cuda::kNeverAbove : 0;
      set.decide.option[c].above[1] = cuda::kNeverAbove;
    }
    set.known = {{false, 1}, {true, 0}, {false, 2}};
    set.known_costs = {set.decide.cost[0], set.decide.cost[1], cost(0, 2000)};
    fake().capturing = 0;
    fake().clock_us = 0;
  }
  static cuda::CandidateCost cost(unsigned base, unsigned per_row) {
    cuda::CandidateCost c{};
    c.base_ns = base;
    for (unsigned i = 0; i < cuda::kCostPoints; ++i) c.ns[i] = per_row * cuda::point_rows(i);
    return c;
  }

  // A call from beginning to end: what its prologue would write, and so much time.
  cuda::DecideParams call(const Counts& histogram, int us, int64_t tokens = 8, bool runs = true) {
    cuda::DecideParams p = set.decide;
    const cuda::StepTrace::Timing timing =
        trace.begin_call({&w, tokens, 2, false, {false, 2}}, set, nullptr, p);
    if (runs) write(p, histogram);
    fake().clock_us += us;
    trace.end_call(timing);
    return p;
  }
  // kernels/prologue/decide.cuh, write_record().
  static void write(const cuda::DecideParams& p, const Counts& histogram) {
    const unsigned long long number = (*p.trace)++;
    auto* const record = reinterpret_cast<uint32_t*>(p.trace + 1) + number % p.trace_records * p.trace_words;
    unsigned ns = 0;
    const unsigned option = cuda::decide_on_host(p, histogram.data(), histogram.size(), ns);
    const uint32_t header[cuda::kTraceHeader] = {static_cast<uint32_t>(number) + 1, p.trace_call, option, ns,
                                                 p.trace_tag};
    std::memcpy(record, header, sizeof header);
    std::copy(histogram.begin(), histogram.end(), record + cuda::kTraceHeader);
  }
  std::vector<Copied> read() {
    std::vector<Copied> list;
    trace.read([&](const core::TraceRecord& r) {
      list.push_back({r,
                      {r.histogram.begin(), r.histogram.end()},
                      {r.configs_us.begin(), r.configs_us.end()},
                      r.fallback != nullptr ? core::config_name(*r.fallback) : ""});
    });
    return list;
  }

  std::shared_ptr<const cuda::Gpu> gpu = cuda::Gpu::open(0);
  cuda::ScopedContext scope{*gpu};  // as every call of the backend has
  core::ExpertWeights w;
  cuda::StepSet set;
  cuda::StepTrace trace{gpu, cuda::make_device_memory(gpu)};
};

TEST_F(FakeTrace, SaysWhatWasChosenAndWhatTheDefaultWouldCost) {
  trace.begin(8);
  EXPECT_TRUE(trace.active());
  call({2, 1, 0, 0}, 5);  // curves go by steps of 8 rows: two experts of 8
  call({8, 8, 8, 8}, 5);
  call({8, 8, 8, 8}, 5, 16);
  const std::vector<Copied> list = read();
  ASSERT_EQ(list.size(), 3U);
  EXPECT_EQ(list[0].record.number, 0U);
  EXPECT_EQ(list[0].histogram, (Counts{2, 1, 0, 0}));
  EXPECT_EQ(list[0].record.chosen, 1U);
  EXPECT_DOUBLE_EQ(list[0].record.predicted_us, 10.016);
  EXPECT_EQ(list[0].configs_us, (std::vector<double>{16, 10.016}));
  EXPECT_DOUBLE_EQ(list[0].record.fallback_us, 32);
  EXPECT_EQ(list[0].fallback, core::config_name(cuda::StepCandidate{false, 2}.config()));
  EXPECT_EQ(list[0].record.measured_us, 0) << "nobody asked for times";
  EXPECT_EQ(list[0].record.call, list[1].record.call) << "one layer, eagerly twice";
  EXPECT_NE(list[1].record.call, list[2].record.call);
  EXPECT_DOUBLE_EQ(list[1].record.predicted_us, 10.032);
  EXPECT_EQ(fake().events, 0);
  EXPECT_TRUE(read().empty()) << "once each";
}

TEST_F(FakeTrace, TimesCallsThatAreNotCaptured) {
  trace.begin(8);
  trace.time(true);
  const cuda::DecideParams first = call({8, 0, 0, 0}, 40);
  EXPECT_NE(first.trace_tag, 0U);
  fake().capturing = 1;
  const cuda::DecideParams captured = call({8, 8, 0, 0}, 50);
  EXPECT_EQ(captured.trace_tag, 0U);
  fake().capturing = 0;
  write(captured, {8, 8, 8, 0});  // replays of the graph
  write(captured, {8, 8, 8, 8});
  call({0, 0, 0, 8}, 70);
  trace.time(false);
  call({0, 0, 8, 0}, 90);
  std::vector<double> us;
  for (const Copied& c : read()) us.push_back(c.record.measured_us);
  ASSERT_EQ(us.size(), 6U);
  EXPECT_NEAR(us[0], 40, 1e-3);
  for (const size_t i : {1, 2, 3, 5}) EXPECT_EQ(us[i], 0) << i;
  EXPECT_NEAR(us[4], 70, 1e-3);
  EXPECT_EQ(fake().events, 4) << "two calls' events";
}

// Events are taken again: a record finds its own call's or none.
TEST_F(FakeTrace, ATimeBelongsToItsCall) {
  trace.begin(2);
  trace.time(true);
  call({8, 0, 0, 0}, 10);
  call({8, 0, 0, 0}, 20, 8, false);  // enqueued, and nothing ran
  call({8, 0, 0, 0}, 30, 8, false);  // takes the first call's events
  std::vector<Copied> list = read();
  ASSERT_EQ(list.size(), 1U);
  EXPECT_EQ(list[0].record.measured_us, 0) << "and not 30";
  // A call that fails on its way leaves no time behind.
  cuda::DecideParams p = set.decide;
  const cuda::StepTrace::Timing timing = trace.begin_call({&w, 8, 2, false, {false, 2}}, set, nullptr, p);
  EXPECT_NE(timing.tag, 0U);
  write(p, {8, 0, 0, 0});
  list = read();
  ASSERT_EQ(list.size(), 1U);
  EXPECT_EQ(list[0].record.measured_us, 0);
}

TEST_F(FakeTrace, CountersCountEveryRecordOnce) {
  EXPECT_EQ(trace.counters().records, 0U) << "no trace yet";
  trace.begin(4);
  trace.time(true);
  call({8, 8, 8, 8}, 20);  // 10.032 predicted; the default 64; imbalance 1
  call({6, 2, 0, 0}, 10);  // 10.016 predicted; the default 32; imbalance 1.5
  core::TraceCounters n = trace.counters();
  EXPECT_EQ(n.records, 2U);
  EXPECT_EQ(n.active, 2U);
  EXPECT_DOUBLE_EQ(n.imbalance_sum, 2.5);
  EXPECT_DOUBLE_EQ(n.imbalance_max, 1.5);
  EXPECT_EQ(n.changed, 2U);
  EXPECT_EQ(n.compared, 2U);
  EXPECT_DOUBLE_EQ(n.chosen_us, 10.032 + 10.016);
  EXPECT_DOUBLE_EQ(n.default_us, 96);
  EXPECT_DOUBLE_EQ(n.default_regret_sum, 64 / 10.032 - 1 + 32 / 10.016 - 1);
  EXPECT_DOUBLE_EQ(n.default_regret_max, 64 / 10.032 - 1);
  EXPECT_EQ(n.measured, 2U);
  EXPECT_NEAR(n.measured_us, 30, 1e-3);
  EXPECT_EQ(n.judged, 2U);
  EXPECT_NEAR(n.error_sum, 1 - 10.032 / 20 + 0.0016, 1e-4);
  EXPECT_EQ(read().size(), 2U) << "counting takes no record away";
  EXPECT_EQ(trace.counters().records, 2U);
  call({0, 0, 0, 0}, 5);
  EXPECT_EQ(read().size(), 1U);
  n = trace.counters();  // counted when it was read
  EXPECT_EQ(n.records, 3U);
  EXPECT_EQ(n.active, 2U) << "a step without rows";
  EXPECT_EQ(n.measured, 2U);
  for (int i = 0; i < 7; ++i) call({8, 0, 0, 0}, 5);
  n = trace.counters();
  EXPECT_EQ(n.records, 7U);
  EXPECT_EQ(n.lost, 3U);
  EXPECT_EQ(read().size(), 4U);
  EXPECT_EQ(trace.counters().lost, 3U);
}

TEST_F(FakeTrace, EventsGoWithIt) {
  const int before = fake().events;
  {
    cuda::StepTrace other(gpu, cuda::make_device_memory(gpu));
    other.begin(4);
    other.time(true);
    cuda::DecideParams p = set.decide;
    other.end_call(other.begin_call({&w, 8, 2, false, {false, 2}}, set, nullptr, p));
    EXPECT_EQ(fake().events, before + 2);
  }
  EXPECT_EQ(fake().events, before);
}

}  // namespace
}  // namespace ramp::cuda_test
