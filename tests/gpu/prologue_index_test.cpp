// The device's sorted row index and tile plan against sort_rows, bit for bit, over shapes, numbers of tokens,
// kinds of ids, and the batched entry's counts.
#include <fmt/format.h>

#include "gpu/prologue_support.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::gpu_test {
namespace {

struct Shape {
  int64_t experts, top_k;
};
const Shape kShapes[] = {{1, 1},   {6, 2},   {8, 2},   {16, 4},  {60, 4},   {64, 8},
                         {128, 8}, {160, 6}, {256, 8}, {384, 8}, {512, 10}, {1024, 8}};
const int64_t kTokens[] = {0, 1, 2, 4, 5, 8, 63, 64, 65, 127, 128, 129, 512, 1024, 1025, 2048, 8192};

enum class Ids { kUniform, kSkewed, kInvalid, kOneExpert, kNone };
constexpr Ids kKinds[] = {Ids::kUniform, Ids::kSkewed, Ids::kInvalid, Ids::kOneExpert, Ids::kNone};

int64_t draw(Ids kind, Rng& rng, int64_t experts) {
  const double u = rng.unit();
  switch (kind) {
    case Ids::kUniform:
      return static_cast<int64_t>(u * static_cast<double>(experts));
    case Ids::kSkewed:
      return static_cast<int64_t>(u * u * u * static_cast<double>(experts));
    case Ids::kInvalid:
      if (u < 0.1) return -1;
      if (u < 0.2) return experts + static_cast<int64_t>(rng.below(1000000));
      if (u < 0.25) return -2 - static_cast<int64_t>(rng.below(1000000));
      return static_cast<int64_t>(rng.below(static_cast<uint64_t>(experts)));
    case Ids::kOneExpert:
      return experts - 1;
    case Ids::kNone:
      return -1;
  }
  return 0;
}

struct IdMatrix {
  IdMatrix(Ids kind, int64_t tokens, int64_t top_k, int64_t experts, bool wide, int64_t padding,
           uint64_t seed)
      : stride(top_k + padding),
        narrow(wide ? 0 : static_cast<size_t>(tokens * stride), 7),
        broad(wide ? static_cast<size_t>(tokens * stride) : 0, 7) {
    Rng rng(seed);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < top_k; ++j) {
        const auto at = static_cast<size_t>(t * stride + j);
        const int64_t id = draw(kind, rng, experts);
        if (wide) {
          // Ids beyond 32 bits must not wrap into the valid range.
          broad[at] = id >= experts ? id + (int64_t{1} << 32) : id;
        } else {
          narrow[at] = static_cast<int32_t>(id);
        }
      }
    }
    host = with_strides(make_tensor(wide ? static_cast<const void*>(broad.data()) : narrow.data(),
                                    wide ? RAMP_I64 : RAMP_I32, {tokens, top_k}));
    host.stride[0] = stride;
    buffer = std::make_unique<Buffer>(wide ? Buffer::of(broad) : Buffer::of(narrow));
    device = host;
    device.data = buffer->data();
  }
  int64_t stride;
  std::vector<int32_t> narrow;
  std::vector<int64_t> broad;
  ramp_tensor host{}, device{};
  std::unique_ptr<Buffer> buffer;
};

struct Expected {
  std::vector<int32_t> offsets, slots, positions;
  std::vector<Tile> tiles;
};
void plan(Expected& e, int32_t tile_m) {
  for (size_t x = 0; x + 1 < e.offsets.size(); ++x) {
    for (int32_t first = e.offsets[x]; first < e.offsets[x + 1]; first += tile_m)
      e.tiles.push_back({static_cast<int32_t>(x), first, std::min(tile_m, e.offsets[x + 1] - first), 0});
  }
}
void compare(const Workspace& ws, const Expected& want) {
  EXPECT_EQ(ws.parts[0].get<int32_t>(), want.offsets);
  const auto rows = static_cast<size_t>(want.offsets.back());
  std::vector<int32_t> slots = want.slots;
  std::fill(slots.begin() + static_cast<std::ptrdiff_t>(rows), slots.end(), -1);  // the poison
  EXPECT_EQ(ws.parts[1].get<int32_t>(), slots);
  EXPECT_EQ(ws.parts[2].get<int32_t>(), want.positions);
  const std::vector<Tile> tiles = ws.parts[3].get<Tile>();
  // Counters behind it, which GEMMs and tickets find at zero.
  const auto count = static_cast<int32_t>(want.tiles.size());
  ASSERT_EQ(ws.parts[4].get<int32_t>(), (std::vector<int32_t>{count, 0, 0, 0}));
  ASSERT_LE(want.tiles.size(), tiles.size());
  for (size_t i = 0; i < tiles.size(); ++i) {
    const Tile expected = i < want.tiles.size() ? want.tiles[i] : Tile{-1, -1, -1, -1};
    ASSERT_EQ(std::memcmp(&tiles[i], &expected, sizeof(Tile)), 0)
        << "tile " << i << ": " << tiles[i].expert << " " << tiles[i].first << " " << tiles[i].rows;
  }
  ws.expect_guards();
}

// Weights to ask L2 for: nothing that a test could see but a fault (the emulated GPU reads what is asked for)
// and its effect on the index, which is none.
constexpr int64_t kEarlyPieces = 3, kEarlyStride = 64;
EarlyWeights early(const Buffer& weights, int64_t experts, bool foreseen) {
  EarlyWeights e{};
  e.first = static_cast<const unsigned char*>(weights.data());
  e.stride = kEarlyStride;
  e.count = static_cast<unsigned>(experts * kEarlyPieces - (experts > 2 ? 2 : 0));
  e.bytes = 16;
  e.blocks = foreseen ? 0 : 5;
  e.pieces = kEarlyPieces;
  return e;
}

class Index : public testing::TestWithParam<std::tuple<Shape, int64_t>> {};

TEST_P(Index, EqualsSortRows) {
  const auto& [shape, tokens] = GetParam();
  const auto& [experts, top_k] = shape;
  uint64_t seed = 1;
  for (const Ids kind : kKinds) {
    for (const bool wide : {false, true}) {
      for (const bool mapped : {false, true}) {
        ++seed;
        SCOPED_TRACE(fmt::format("ids {} wide {} mapped {}", static_cast<int>(kind), wide, mapped));
        const int32_t tile_m = seed % 3 == 0 ? 8 : seed % 3 == 1 ? 64 : 120;
        const int64_t global = mapped ? 2 * experts + 3 : experts;
        const IdMatrix ids(kind, tokens, top_k, global, wide, wide ? 3 : 0, seed);
        std::vector<int32_t> map;
        for (int64_t e = 0; mapped && e < global; ++e) {
          const auto r = static_cast<int32_t>(random_u64(seed, static_cast<uint64_t>(e)) % 8);
          map.push_back(r == 0   ? -1
                        : r == 1 ? static_cast<int32_t>(experts)
                        : r == 2 ? -5
                                 : static_cast<int32_t>((e * 7) % experts));
        }
        const Buffer device_map = Buffer::of(map);
        const ExpertWeights w = make_weights(RAMP_FORMAT_BF16, experts, 32);
        const Workspace ws(w, tokens * top_k, tile_m);
        const Buffer x(static_cast<uint64_t>(tokens * 32 * 2));
        const Buffer counters = Buffer::of(std::vector<int64_t>{100, 1000});
        const Buffer weights(static_cast<uint64_t>(experts * kEarlyPieces * kEarlyStride));

        BlockCall call;
        call.weights = &w;
        call.tokens = tokens;
        call.top_k = top_k;
        call.x = device_tensor(x.data(), RAMP_BF16, {tokens, 32});
        call.ids = ids.device;
        if (mapped) call.expert_map = {device_map.as<int32_t>(), map.size()};
        call.counters = counters.as<int64_t>();
        PrologueWorkspace view = ws.view;
        const bool foreseen = seed % 2 == 0;
        if (seed % 5 < 4) view.weights = early(weights, experts, foreseen);
        const GemmInput in = Device::get().prologue.block(call, view, nullptr);
        EXPECT_EQ(in.data, x.data());

        Expected want;
        want.offsets.resize(static_cast<size_t>(experts + 1));
        want.slots.resize(static_cast<size_t>(tokens * top_k), -1);
        want.positions.resize(want.slots.size());
        SortedRows sorted{want.offsets, want.slots, want.positions};
        sort_rows(ids.host, mapped ? std::span<const int32_t>(map) : std::span<const int32_t>{}, experts,
                  sorted);
        plan(want, tile_m);
        compare(ws, want);
        EXPECT_EQ(counters.get<int64_t>(),
                  (std::vector<int64_t>{100 + sorted.masked, 1000 + sorted.out_of_range}));
        EXPECT_TRUE(counters.guard_intact());
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

std::string case_name(const testing::TestParamInfo<std::tuple<Shape, int64_t>>& info) {
  const auto& [shape, tokens] = info.param;
  return fmt::format("E{}k{}T{}", shape.experts, shape.top_k, tokens);
}
INSTANTIATE_TEST_SUITE_P(All, Index, testing::Combine(testing::ValuesIn(kShapes), testing::ValuesIn(kTokens)),
                         case_name);

TEST(IndexOf, ManySlotsPerChunk) {
  // 2^21 slots: chunks of more than one sub-chunk.
  const int64_t tokens = 1 << 18;
  const ExpertWeights w = make_weights(RAMP_FORMAT_BF16, 96, 32);
  const IdMatrix ids(Ids::kInvalid, tokens, 8, 96, false, 0, 5);
  const Workspace ws(w, tokens * 8, 128);
  const Buffer x(static_cast<uint64_t>(tokens * 64));
  BlockCall call;
  call.weights = &w;
  call.tokens = tokens;
  call.top_k = 8;
  call.x = device_tensor(x.data(), RAMP_BF16, {tokens, 32});
  call.ids = ids.device;
  Device::get().prologue.block(call, ws.view, nullptr);
  Expected want;
  want.offsets.resize(97);
  want.slots.resize(static_cast<size_t>(tokens * 8), -1);
  want.positions.resize(want.slots.size());
  SortedRows sorted{want.offsets, want.slots, want.positions};
  sort_rows(ids.host, {}, 96, sorted);
  plan(want, 128);
  compare(ws, want);
}

TEST(IndexOf, Batched) {
  for (const int64_t experts : {1, 3, 32, 33, 256, 1024}) {
    for (const int64_t max_tokens : {0, 1, 5, 64, 333}) {
      for (const bool wide : {false, true}) {
        SCOPED_TRACE(fmt::format("E {} max {} wide {}", experts, max_tokens, wide));
        const int32_t tile_m = wide ? 16 : 64;
        std::vector<int32_t> narrow;
        std::vector<int64_t> broad;
        Expected want;
        want.offsets.push_back(0);
        want.positions.resize(static_cast<size_t>(experts * max_tokens), -1);
        for (int64_t e = 0; e < experts; ++e) {
          const uint64_t r = random_u64(9, static_cast<uint64_t>(e));
          int64_t n =
              r % 4 == 0 ? 0 : static_cast<int64_t>(r / 4 % static_cast<uint64_t>(max_tokens + 4)) - 1;
          if (wide && r % 16 == 5) n = int64_t{1} << 40;
          if (r % 16 == 6) n = -3;
          narrow.push_back(static_cast<int32_t>(std::min<int64_t>(n, 1 << 30)));
          broad.push_back(n);
          n = std::clamp<int64_t>(n, 0, max_tokens);
          for (int64_t i = 0; i < n; ++i) {
            want.positions[static_cast<size_t>(e * max_tokens + i)] = static_cast<int32_t>(want.slots.size());
            want.slots.push_back(static_cast<int32_t>(e * max_tokens + i));
          }
          want.offsets.push_back(static_cast<int32_t>(want.slots.size()));
        }
        want.slots.resize(static_cast<size_t>(experts * max_tokens));
        plan(want, tile_m);
        const Buffer counts = wide ? Buffer::of(broad) : Buffer::of(narrow);
        const ExpertWeights w = make_weights(RAMP_FORMAT_BF16, experts, 32);
        const Workspace ws(w, experts * max_tokens, tile_m);
        const Buffer x(static_cast<uint64_t>(experts * max_tokens * 64));
        BatchedCall call;
        call.weights = &w;
        call.max_tokens = max_tokens;
        call.x = device_tensor(x.data(), RAMP_BF16, {experts, max_tokens, 32});
        call.counts = device_tensor(counts.data(), wide ? RAMP_I64 : RAMP_I32, {experts});
        Device::get().prologue.batched(call, ws.view, nullptr);
        compare(ws, want);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace ramp::gpu_test
