// The decision on the device against the host's, over random histograms, curves and options: the option, the
// plans that follow from it, and the record of the trace; by the batched entry (counts given) and by ids
// through every way of sorting.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "gpu/prologue_support.hpp"
#include "params/prologue.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::gpu_test {
namespace {

// Where steps are slow: on an emulated GPU.
bool reduced() {
  return std::getenv("RAMP_TEST_REDUCED") != nullptr;  // NOLINT(concurrency-mt-unsafe)
}

constexpr uint32_t kHeights[] = {8, 16, 24, 32, 48, 64, 120, 128};

uint32_t below(Rng& rng, uint64_t n) {
  return static_cast<uint32_t>(rng.below(n));
}

// Costs of which neither candidate is always the cheaper one; now and then equal ones, and some whose sums
// exceed 32 bits.
DecideParams random_params(Rng& rng) {
  DecideParams d{};
  d.candidates = 1 + below(rng, kMostCandidates);
  d.options = 1 + below(rng, kMostOptions);
  for (unsigned c = 0; c < d.candidates; ++c) {
    CandidateCost& cost = d.cost[c];
    d.plan[c].tile_m = kHeights[below(rng, std::size(kHeights))];
    cost.base_ns = below(rng, 30000);
    cost.active_ns = below(rng, 4000);
    cost.overlap = below(rng, 257);
    const uint32_t slope = below(rng, 3000);
    for (unsigned i = 1; i < kCostPoints; ++i)
      cost.ns[i] = cost.ns[i - 1] + below(rng, 2 * slope + 1) * (i < kFinePoints ? 1 : 8);
    for (unsigned g = 0; g < 2; ++g) {
      cost.wave_ns[g] = below(rng, 3) == 0 ? 0 : below(rng, 20000);
      cost.units[g] = 1 + below(rng, 64);
      cost.places[g] = 1 + below(rng, 400);
    }
    if (below(rng, 8) == 0) {
      const uint64_t scale = uint64_t{1} << (16 + below(rng, 17));
      cost.base_ns = below(rng, scale);
      cost.active_ns = below(rng, scale);
      for (unsigned& ns : cost.wave_ns) ns = below(rng, scale);
      const uint64_t step = std::min<uint64_t>(scale, 2 * (kMostCurveNs / kCostPoints));
      for (unsigned i = 1; i < kCostPoints; ++i)
        cost.ns[i] = std::min(kMostCurveNs, cost.ns[i - 1] + below(rng, step));
    }
    if (c != 0 && below(rng, 4) == 0) cost = d.cost[0];
  }
  // As live sets are: every option one candidate for all experts, each in turn. Or in any order, some more
  // than once and some never. Or options that divide experts.
  const uint32_t kind = below(rng, 4);
  if (kind < 2) d.options = d.candidates;
  for (unsigned o = 0; o < d.options; ++o) {
    if (kind < 3) {
      const unsigned only = kind < 2 ? o : below(rng, d.candidates);
      for (unsigned a = 0; a + 1 < kMostCandidates; ++a) d.option[o].above[a] = a < only ? 0 : kNeverAbove;
      continue;
    }
    // Thresholds that name no candidate beyond the last.
    const auto threshold = [&] {
      const uint32_t kind = below(rng, 4);
      return kind == 0 ? 0 : kind == 1 ? kNeverAbove : below(rng, 300);
    };
    uint32_t first = d.candidates > 1 ? threshold() : kNeverAbove;
    uint32_t second = d.candidates > 2 ? threshold() : kNeverAbove;
    if (first > second) std::swap(first, second);
    d.option[o].above[0] = first;
    d.option[o].above[1] = second;
  }
  return d;
}

std::vector<int32_t> random_counts(Rng& rng, int64_t experts, int64_t most) {
  std::vector<int32_t> counts;
  const double shape = 1 + 5 * rng.unit();
  const double scale = rng.unit() * rng.unit() * static_cast<double>(most);
  for (int64_t e = 0; e < experts; ++e)
    counts.push_back(
        static_cast<int32_t>(std::min(static_cast<double>(most), scale * std::pow(rng.unit(), shape) * 2)));
  return counts;
}

// Device memory of a set's plans, and the trace's ring.
struct Plans {
  Plans(const DecideParams& host, int64_t slots, int64_t experts)
      : tiles(kMostCandidates * sizeof(Tile) * static_cast<uint64_t>(max_tiles(slots, experts, 8))),
        counts(kMostCandidates * 4 * kTileCounters),
        trace(8 + 4 * kRecords * (kTraceHeader + static_cast<uint64_t>(experts))),
        params(host) {
    Device::get().memory->fill(trace.data(), 0,
                               8 + 4 * kRecords * (kTraceHeader + static_cast<uint64_t>(experts)), nullptr);
    use(host, slots, experts);
  }
  void use(const DecideParams& host, int64_t slots, int64_t experts) {
    params = host;
    for (size_t c = 0; c < kMostCandidates; ++c) {
      params.plan[c].tiles =
          &(tiles.as<Tile>() + static_cast<int64_t>(c) * max_tiles(slots, experts, 8))->expert;
      params.plan[c].num_tiles = counts.as<int32_t>() + kTileCounters * c;
    }
    params.trace = trace.as<unsigned long long>();
    params.trace_words = kTraceHeader + static_cast<unsigned>(experts);
    params.trace_records = kRecords;
    params.trace_call = 7;
    params.trace_tag = 11;
  }
  static constexpr uint64_t kRecords = 3;
  Buffer tiles, counts, trace;
  DecideParams params;
};

// What the device has decided and planned, against the host.
void compare(const Plans& plans, const std::vector<int32_t>& histogram, int64_t slots, uint64_t records) {
  const DecideParams& d = plans.params;
  const auto experts = static_cast<int64_t>(histogram.size());
  unsigned ns = 0;
  const unsigned option = decide_on_host(d, histogram.data(), histogram.size(), ns);
  const std::vector<uint32_t> ring = plans.trace.get<uint32_t>();
  const size_t at = 2 + (records - 1) % Plans::kRecords * (kTraceHeader + histogram.size());
  ASSERT_EQ(ring[0], records);
  ASSERT_EQ(ring[at], records);
  ASSERT_EQ(ring[at + 1], 7U);
  ASSERT_EQ(ring[at + 2], option);
  ASSERT_EQ(ring[at + 3], ns);
  ASSERT_EQ(ring[at + 4], 11U);
  for (size_t e = 0; e < histogram.size(); ++e)
    ASSERT_EQ(ring[at + kTraceHeader + e], static_cast<uint32_t>(histogram[e])) << "expert " << e;

  std::array<std::vector<Tile>, kMostCandidates> want;
  int32_t first = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int32_t rows = histogram[static_cast<size_t>(e)];
    const unsigned c = candidate_of(d.option[option], static_cast<unsigned>(rows));
    const auto height = static_cast<int32_t>(d.plan[c].tile_m);
    for (int32_t r = 0; r < rows; r += height)
      want[c].push_back({static_cast<int32_t>(e), first + r, std::min(height, rows - r), 0});
    first += rows;
  }
  const std::vector<int32_t> counts = plans.counts.get<int32_t>();
  const std::vector<Tile> tiles = plans.tiles.get<Tile>();
  for (unsigned c = 0; c < d.candidates; ++c) {
    ASSERT_EQ(counts[kTileCounters * c], static_cast<int32_t>(want[c].size())) << "candidate " << c;
    for (unsigned i = 1; i < kTileCounters; ++i) ASSERT_EQ(counts[kTileCounters * c + i], 0);
    const auto from = static_cast<size_t>(static_cast<int64_t>(c) * max_tiles(slots, experts, 8));
    for (size_t i = 0; i < want[c].size(); ++i)
      ASSERT_EQ(std::memcmp(&tiles[from + i], &want[c][i], sizeof(Tile)), 0)
          << "candidate " << c << " tile " << i;
  }
  EXPECT_TRUE(plans.tiles.guard_intact() && plans.counts.guard_intact() && plans.trace.guard_intact());
}

class Decide : public testing::TestWithParam<DecisionReads> {
 protected:
  void SetUp() override {
    if (Device::get().gpu->facts().major < 9) GTEST_SKIP() << "decisions are made from sm_90 on";
  }
  static Prologue& prologue() {
    return GetParam() == DecisionReads::kConstants ? Device::get().constants : Device::get().prologue;
  }
};

TEST_P(Decide, EqualsTheHostOverRandomHistograms) {
  struct Shape {
    int64_t experts, max_tokens;
  };
  // 10,000 in all; some with rows beyond the fine part of a curve, some with more experts than threads.
  constexpr Shape kShapes[] = {{64, 300}, {8, 3000}, {256, 64}, {1024, 20}, {1, 70}};
  const int each = reduced() || GetParam() != DecisionReads::kData ? 20 : 2000;
  Device& device = Device::get();
  Rng rng(1);
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(fmt::format("{} experts", shape.experts));
    const int64_t slots = shape.experts * shape.max_tokens;
    const ExpertWeights w = make_weights(RAMP_FORMAT_FP8_BLOCK, shape.experts, 128);
    const Buffer x(static_cast<uint64_t>(slots * 128));
    const Buffer x_scale(static_cast<uint64_t>(slots * 4));
    Buffer counts(static_cast<uint64_t>(shape.experts * 4));
    Workspace workspace(w, slots, 8);
    Plans plans(random_params(rng), slots, shape.experts);
    BatchedCall call;
    call.weights = &w;
    call.max_tokens = shape.max_tokens;
    call.x = device_tensor(x.data(), RAMP_E4M3, {shape.experts, shape.max_tokens, 128});
    call.x_scale = device_tensor(x_scale.data(), RAMP_F32, {shape.experts, shape.max_tokens, 1});
    call.counts = device_tensor(counts.data(), RAMP_I32, {shape.experts});
    workspace.view.decide = &plans.params;
    for (int i = 0; i < each; ++i) {
      SCOPED_TRACE(i);
      const std::vector<int32_t> histogram = random_counts(rng, shape.experts, shape.max_tokens);
      plans.use(random_params(rng), slots, shape.experts);
      device.memory->upload(counts.data(), histogram.data(), histogram.size() * 4, nullptr);
      prologue().batched(call, workspace.view, nullptr);
      device.memory->synchronize(nullptr);
      compare(plans, histogram, slots, static_cast<uint64_t>(i) + 1);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Decide, IdsThroughEveryWayOfSorting) {
  // One block, by 32, 64, 512 and more slots; a cluster; several launches with one and more sub-chunks.
  std::vector<int64_t> token_counts = {1, 3, 4, 7, 8, 33, 64, 200, 700, 2000};
  if (!reduced()) token_counts.push_back(200000);
  constexpr int64_t kTopK = 8;
  Device& device = Device::get();
  Rng rng(2);
  for (const int64_t experts : {int64_t{16}, int64_t{256}, int64_t{1000}}) {
    const ExpertWeights w = make_weights(RAMP_FORMAT_FP8_BLOCK, experts, 128);
    for (const int64_t tokens : token_counts) {
      SCOPED_TRACE(fmt::format("{} experts, {} tokens", experts, tokens));
      const int64_t slots = tokens * kTopK;
      const Buffer x(static_cast<uint64_t>(tokens * 128));
      const Buffer x_scale(static_cast<uint64_t>(tokens * 4));
      Workspace workspace(w, slots, 8);
      Plans plans(random_params(rng), slots, experts);
      for (uint64_t i = 1; i <= (tokens < 2000 ? 8U : 4U); ++i) {
        std::vector<int32_t> ids;
        std::vector<int32_t> histogram(static_cast<size_t>(experts), 0);
        const double skew = 1 + 3 * rng.unit();
        for (int64_t s = 0; s < slots; ++s) {
          const auto e = static_cast<int32_t>(std::pow(rng.unit(), skew) * static_cast<double>(experts));
          const bool masked = rng.below(9) == 0;
          ids.push_back(masked ? -1 : e);
          if (!masked) ++histogram[static_cast<size_t>(e)];
        }
        const Buffer on_device = Buffer::of(ids);
        plans.use(random_params(rng), slots, experts);
        workspace.view.decide = &plans.params;
        BlockCall call;
        call.weights = &w;
        call.tokens = tokens;
        call.top_k = kTopK;
        call.x = device_tensor(x.data(), RAMP_E4M3, {tokens, 128});
        call.x_scale = device_tensor(x_scale.data(), RAMP_F32, {tokens, 1});
        call.ids = device_tensor(on_device.data(), RAMP_I32, {tokens, kTopK});
        prologue().block(call, workspace.view, nullptr);
        device.memory->synchronize(nullptr);
        compare(plans, histogram, slots, i);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Everything else of the index, which a decision leaves as it is: for every number of slots of the small
// sorts, and around their ends, with ids that lead nowhere, through a map or not.
TEST_P(Decide, TheIndexIsThatOfSortRows) {
  Device& device = Device::get();
  Rng rng(3);
  const int64_t experts_of[] = {1, 2, 31, 33, 64, 255, 511, 512, 513, 1024};
  const int64_t step = reduced() ? 7 : 1;
  uint64_t seed = 0;
  for (int64_t slots = 0; slots <= 540; slots += slots < 70 || (slots > 506 && slots < 516) ? 1 : step) {
    const int64_t experts = experts_of[seed++ % std::size(experts_of)];
    SCOPED_TRACE(fmt::format("{} experts, {} slots", experts, slots));
    const ExpertWeights w = make_weights(RAMP_FORMAT_FP8_BLOCK, experts, 128);
    const bool mapped = below(rng, 2) == 0, wide = below(rng, 2) == 0, one = below(rng, 8) == 0;
    const int64_t global = mapped ? 2 * experts + 3 : experts;
    std::vector<int32_t> map;
    for (int64_t e = 0; mapped && e < global; ++e)
      map.push_back(e % 5 == 4   ? -1
                    : e % 7 == 6 ? static_cast<int32_t>(experts)
                                 : static_cast<int32_t>(e * 7 % experts));
    std::vector<int64_t> broad;
    const uint32_t invalid = below(rng, 3) == 0 ? 0 : 1 + below(rng, 20);
    for (int64_t s = 0; s < slots; ++s) {
      const uint32_t u = below(rng, 100);
      broad.push_back(u < invalid       ? -1
                      : u < 2 * invalid ? global + static_cast<int64_t>(u)
                      : one             ? global - 1
                            : static_cast<int64_t>(rng.unit() * rng.unit() * static_cast<double>(global)));
    }
    const std::vector<int32_t> narrow(broad.begin(), broad.end());
    const Buffer ids = wide ? Buffer::of(broad) : Buffer::of(narrow);
    const Buffer on_device = Buffer::of(map);
    const Buffer x(static_cast<uint64_t>(slots * 128)), x_scale(static_cast<uint64_t>(slots * 4));
    const Buffer counters = Buffer::of(std::vector<int64_t>{100, 1000});
    Workspace workspace(w, slots, 8);
    Plans plans(random_params(rng), slots, experts);
    workspace.view.decide = &plans.params;
    BlockCall call;
    call.weights = &w;
    call.tokens = slots;
    call.top_k = 1;
    call.x = device_tensor(x.data(), RAMP_E4M3, {slots, 128});
    call.x_scale = device_tensor(x_scale.data(), RAMP_F32, {slots, 1});
    call.ids = device_tensor(ids.data(), wide ? RAMP_I64 : RAMP_I32, {slots, 1});
    if (mapped) call.expert_map = {on_device.as<int32_t>(), map.size()};
    call.counters = counters.as<int64_t>();
    prologue().block(call, workspace.view, nullptr);
    device.memory->synchronize(nullptr);
    std::vector<int32_t> offsets(static_cast<size_t>(experts) + 1), rows(static_cast<size_t>(slots), -1),
        positions(rows.size());
    SortedRows sorted{offsets, rows, positions};
    sort_rows(with_strides(make_tensor(broad.data(), RAMP_I64, {slots, 1})),
              mapped ? std::span<const int32_t>(map) : std::span<const int32_t>{}, experts, sorted);
    ASSERT_EQ(workspace.parts[0].get<int32_t>(), offsets);
    ASSERT_EQ(workspace.parts[1].get<int32_t>(), rows);
    ASSERT_EQ(workspace.parts[2].get<int32_t>(), positions);
    ASSERT_EQ(counters.get<int64_t>(),
              (std::vector<int64_t>{100 + sorted.masked, 1000 + sorted.out_of_range}));
    std::vector<int32_t> histogram;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) histogram.push_back(offsets[e + 1] - offsets[e]);
    compare(plans, histogram, slots, 1);
    workspace.expect_guards();
    if (HasFatalFailure()) return;
    // The same by one plan.
    workspace.view.decide = nullptr;
    for (const Buffer& part : workspace.parts) part.poison();
    prologue().block(call, workspace.view, nullptr);
    device.memory->synchronize(nullptr);
    ASSERT_EQ(workspace.parts[0].get<int32_t>(), offsets);
    ASSERT_EQ(workspace.parts[1].get<int32_t>(), rows);
    ASSERT_EQ(workspace.parts[2].get<int32_t>(), positions);
    ASSERT_EQ(counters.get<int64_t>(),
              (std::vector<int64_t>{100 + 2 * sorted.masked, 1000 + 2 * sorted.out_of_range}));
    std::vector<Tile> tiles;
    for (size_t e = 0; e < histogram.size(); ++e)
      for (int32_t r = 0; r < histogram[e]; r += 8)
        tiles.push_back({static_cast<int32_t>(e), offsets[e] + r, std::min(8, histogram[e] - r), 0});
    ASSERT_EQ(workspace.parts[4].get<int32_t>()[0], static_cast<int32_t>(tiles.size()));
    const std::vector<Tile> got = workspace.parts[3].get<Tile>();
    for (size_t i = 0; i < tiles.size(); ++i)
      ASSERT_EQ(std::memcmp(&got[i], &tiles[i], sizeof(Tile)), 0) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Reads, Decide, testing::Values(DecisionReads::kData, DecisionReads::kConstants),
                         [](const auto& i) {
                           return i.param == DecisionReads::kData ? "Data" : "Constants";
                         });

}  // namespace
}  // namespace ramp::gpu_test
