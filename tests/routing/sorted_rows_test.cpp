// local_expert, sort_rows and histogram against a naive stable sort: every kind of id, with and without a
// map, both id types, strides, and the two-pass form for several workers.
#include "routing/sorted_rows.hpp"

#include "routing/support.hpp"

namespace ramp::test {
namespace {

constexpr int32_t kPoison = -77777;

// The definition, in words: valid slots by (expert, token, slot); everything else counted.
struct Naive {
  std::vector<int32_t> offsets, slots, positions;
  int64_t masked = 0, out_of_range = 0;
};
int64_t naive_local(int64_t id, const std::vector<int32_t>* map, int64_t num_local) {
  if (id == -1) return -1;
  if (map == nullptr) return id >= 0 && id < num_local ? id : -2;
  if (id < 0 || id >= static_cast<int64_t>(map->size())) return -2;
  const int64_t local = (*map)[static_cast<size_t>(id)];
  if (local == -1) return -1;
  return local >= 0 && local < num_local ? local : -2;
}
Naive naive_sort(const Matrix& ids, const std::vector<int32_t>* map, int64_t num_local) {
  Naive n;
  n.positions.assign(static_cast<size_t>(ids.rows() * ids.columns()), -1);
  for (int64_t e = 0; e < num_local; ++e) {
    n.offsets.push_back(static_cast<int32_t>(n.slots.size()));
    for (int64_t t = 0; t < ids.rows(); ++t) {
      for (int64_t j = 0; j < ids.columns(); ++j) {
        if (naive_local(ids.id(t, j), map, num_local) != e) continue;
        n.positions[static_cast<size_t>(t * ids.columns() + j)] = static_cast<int32_t>(n.slots.size());
        n.slots.push_back(static_cast<int32_t>(t * ids.columns() + j));
      }
    }
  }
  n.offsets.push_back(static_cast<int32_t>(n.slots.size()));
  for (int64_t t = 0; t < ids.rows(); ++t) {
    for (int64_t j = 0; j < ids.columns(); ++j) {
      const int64_t local = naive_local(ids.id(t, j), map, num_local);
      n.masked += local == -1 ? 1 : 0;
      n.out_of_range += local == -2 ? 1 : 0;
    }
  }
  return n;
}
std::span<const int32_t> span_of(const std::vector<int32_t>* map) {
  return map == nullptr ? std::span<const int32_t>() : std::span<const int32_t>(*map);
}

// Everything about one id matrix. Buffers are poisoned and a guard follows what may be written.
void check_all(const Matrix& ids, const std::vector<int32_t>* map, int64_t num_local) {
  const Naive expected = naive_sort(ids, map, num_local);
  const auto total = static_cast<size_t>(ids.rows() * ids.columns());
  const auto experts = static_cast<size_t>(num_local);
  for (const bool with_positions : {true, false}) {
    std::vector<int32_t> offsets(experts + 2, kPoison), slots(total + 1, kPoison),
        positions(total + 1, kPoison);
    SortedRows out;
    out.offsets = std::span(offsets).first(experts + 1);
    out.slots = std::span(slots).first(total);
    if (with_positions) out.positions = std::span(positions).first(total);
    sort_rows(ids.view(), span_of(map), num_local, out);
    EXPECT_EQ(std::vector<int32_t>(offsets.begin(), offsets.end() - 1), expected.offsets);
    const auto valid = static_cast<ptrdiff_t>(expected.slots.size());
    EXPECT_EQ(std::vector<int32_t>(slots.begin(), slots.begin() + valid), expected.slots);
    for (auto it = slots.begin() + valid; it != slots.end(); ++it) ASSERT_EQ(*it, kPoison) << "wrote beyond";
    EXPECT_EQ(offsets.back(), kPoison);
    EXPECT_EQ(positions.back(), kPoison);
    if (with_positions) {
      EXPECT_EQ(std::vector<int32_t>(positions.begin(), positions.end() - 1), expected.positions);
    }
    EXPECT_EQ(out.masked, expected.masked);
    EXPECT_EQ(out.out_of_range, expected.out_of_range);
    EXPECT_EQ(expected.offsets.back() + out.masked + out.out_of_range, static_cast<int64_t>(total));
  }
  std::vector<int32_t> counts(experts, kPoison);
  histogram(ids.view(), span_of(map), counts);
  for (size_t e = 0; e < experts; ++e) ASSERT_EQ(counts[e], expected.offsets[e + 1] - expected.offsets[e]);

  // The same in two passes by three workers over contiguous token ranges.
  constexpr size_t kWorkers = 3;
  std::vector<int32_t> cursors(kWorkers * experts, 0), slots(total, kPoison), positions(total, kPoison);
  const auto begin = [&](size_t w) {
    return ids.rows() * static_cast<int64_t>(w) / static_cast<int64_t>(kWorkers);
  };
  RowCounts invalid;
  for (size_t w = 0; w < kWorkers; ++w) {
    const RowCounts c = count_rows(ids.view(), span_of(map), begin(w), begin(w + 1),
                                   std::span(cursors).subspan(w * experts, experts));
    invalid.masked += c.masked;
    invalid.out_of_range += c.out_of_range;
  }
  int32_t start = 0;
  for (size_t e = 0; e < experts; ++e) {
    for (size_t w = 0; w < kWorkers; ++w) {
      const int32_t count = cursors[w * experts + e];
      cursors[w * experts + e] = start;
      start += count;
    }
  }
  for (size_t w = kWorkers; w-- > 0;) {  // in any order of the workers
    scatter_rows(ids.view(), span_of(map), begin(w), begin(w + 1),
                 std::span(cursors).subspan(w * experts, experts), slots, positions);
  }
  slots.resize(expected.slots.size());
  EXPECT_EQ(slots, expected.slots);
  EXPECT_EQ(positions, expected.positions);
  EXPECT_EQ(invalid.masked, expected.masked);
  EXPECT_EQ(invalid.out_of_range, expected.out_of_range);
}

enum class Ids { kDistinct, kDuplicates, kDirty, kAllToOne, kAllMasked };

void fill_ids(Matrix& ids, int64_t experts, Ids kind, uint64_t seed) {
  for (int64_t t = 0; t < ids.rows(); ++t) {
    for (int64_t j = 0; j < ids.columns(); ++j) {
      const auto at = static_cast<uint64_t>(t * ids.columns() + j);
      const auto random = random_u64(seed, at);
      auto id = static_cast<int64_t>(random % static_cast<uint64_t>(experts));
      if (kind == Ids::kDistinct) {  // k consecutive experts from a random start
        id = static_cast<int64_t>(
            (random_u64(seed, at - static_cast<uint64_t>(j)) + static_cast<uint64_t>(j)) %
            static_cast<uint64_t>(experts));
      }
      if (kind == Ids::kAllToOne) id = experts - 1;
      if (kind == Ids::kAllMasked) id = -1;
      if (kind == Ids::kDirty) {
        const int64_t wide =
            ids.view().dtype == RAMP_I64 ? int64_t{1} << 32 : 0;  // low words that look valid
        const int64_t dirt[] = {-1,
                                -1,
                                -2,
                                experts,
                                experts + 1,
                                INT32_MAX,
                                INT32_MIN,
                                wide + 0,
                                -wide - 1,
                                wide == 0 ? -3 : INT64_MIN,
                                wide == 0 ? experts + 7 : INT64_MAX};
        if (random_u64(seed + 1, at) % 3 == 0) id = dirt[random_u64(seed + 2, at) % std::size(dirt)];
      }
      ids.set_id(t, j, id);
    }
  }
}

class SortRows : public testing::TestWithParam<std::tuple<Shape, int64_t>> {};

// Shapes x token counts in full; the kinds of ids, id types, maps and strides inside each case, the larger
// ones pairwise (the naive sort costs T k E).
TEST_P(SortRows, MatchesNaive) {
  const auto [shape, tokens] = GetParam();
  const bool small = tokens * shape.top_k * shape.experts < 200000;
  // A map that holds local experts, -1, and malformed entries.
  std::vector<int32_t> map(static_cast<size_t>(shape.experts));
  const int64_t num_local = std::max<int64_t>(1, shape.experts / 2);
  for (size_t e = 0; e < map.size(); ++e) {
    map[e] = static_cast<int32_t>(random_u64(5, e) % static_cast<uint64_t>(num_local));
    const uint64_t dice = random_u64(6, e) % 8;
    if (dice == 0) map[e] = -1;
    if (dice == 1) map[e] = static_cast<int32_t>(num_local);
    if (dice == 2) map[e] = -2;
    if (dice == 3) map[e] = INT32_MIN;
  }
  int turn = static_cast<int>(shape.experts + tokens);
  for (const Ids kind : {Ids::kDistinct, Ids::kDuplicates, Ids::kDirty, Ids::kAllToOne, Ids::kAllMasked}) {
    for (const bool mapped : {false, true}) {
      for (const ramp_dtype type : {RAMP_I32, RAMP_I64}) {
        ++turn;
        if (!small && turn % 4 != 0) continue;
        SCOPED_TRACE(testing::Message()
                     << "kind " << static_cast<int>(kind) << " mapped " << mapped << " " << type);
        Matrix ids(type, tokens, shape.top_k, turn % 3);
        fill_ids(ids, shape.experts, kind, static_cast<uint64_t>(turn));
        check_all(ids, mapped ? &map : nullptr, mapped ? num_local : shape.experts);
        if (HasFailure()) return;
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, SortRows,
                         testing::Combine(testing::ValuesIn(shapes()), testing::ValuesIn(token_counts())),
                         grid_name);

struct Where {
  int64_t id;
  int32_t without_map, with_map;
};
// num_local 3; the map sends 0 -> 2, 1 -> -1, 2 -> 0, 3 -> 3 (too large), 4 -> -2, 5 -> INT32_MIN, 6 -> 1.
class LocalExpert : public testing::TestWithParam<Where> {};
TEST_P(LocalExpert, FollowsIdsWithoutLeavingTheMap) {
  const std::vector<int32_t> map = {2, -1, 0, 3, -2, INT32_MIN, 1};
  EXPECT_EQ(local_expert(GetParam().id, {}, 3), GetParam().without_map);
  EXPECT_EQ(local_expert(GetParam().id, map, 3), GetParam().with_map);
}
INSTANTIATE_TEST_SUITE_P(
    Ids, LocalExpert,
    testing::Values(Where{0, 0, 2}, Where{1, 1, -1}, Where{2, 2, 0}, Where{3, -2, -2}, Where{4, -2, -2},
                    Where{5, -2, -2}, Where{6, -2, 1}, Where{7, -2, -2}, Where{-1, -1, -1}, Where{-2, -2, -2},
                    Where{INT32_MAX, -2, -2}, Where{INT32_MIN, -2, -2}, Where{int64_t{1} << 32, -2, -2},
                    Where{(int64_t{1} << 32) + 2, -2, -2}, Where{-(int64_t{1} << 32), -2, -2},
                    Where{INT64_MAX, -2, -2}, Where{INT64_MIN, -2, -2}));

TEST(LocalExpert, AMapWithoutEntriesIsNotNoMap) {
  const int32_t storage = 0;
  const std::span<const int32_t> empty(&storage, 0);
  EXPECT_EQ(local_expert(0, empty, 3), -2);
  EXPECT_EQ(local_expert(-1, empty, 3), -1);
  EXPECT_EQ(local_expert(0, {}, 0), -2);
}

TEST(SortRows, ByHand) {
  Matrix ids(RAMP_I32, 3, 2);
  const int64_t values[3][2] = {{2, 0}, {0, 2}, {-1, 9}};
  for (int64_t t = 0; t < 3; ++t)
    for (int64_t j = 0; j < 2; ++j) ids.set_id(t, j, values[t][j]);
  std::vector<int32_t> offsets(4), slots(6, kPoison), positions(6);
  SortedRows out{offsets, slots, positions};
  sort_rows(ids.view(), {}, 3, out);
  EXPECT_EQ(offsets, (std::vector<int32_t>{0, 2, 2, 4}));
  EXPECT_EQ(slots, (std::vector<int32_t>{1, 2, 0, 3, kPoison, kPoison}));
  EXPECT_EQ(positions, (std::vector<int32_t>{2, 0, 1, 3, -1, -1}));
  EXPECT_EQ(out.masked, 1);
  EXPECT_EQ(out.out_of_range, 1);
}

}  // namespace
}  // namespace ramp::test
