// Routing on the device against route_tokens and apply_capacity, bit for bit (ids and weights), over every
// kind of router, shapes, special values and exact ties; the router GEMM against fp64; and routing with the
// row index right behind it.
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>

#include "base/float_types.hpp"
#include "gpu/prologue_support.hpp"
#include "routing/router.hpp"
#include "routing/sorted_rows.hpp"
#include "weights/quantize.hpp"

namespace ramp::gpu_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Kind {
  const char* name;
  ramp_scoring scoring;
  bool renormalize, bias;
  ramp_group_score group_score;
  bool groups;
  int32_t shared;
  float scaling;
};
const Kind kKinds[] = {
    {"softmax", RAMP_SCORING_SOFTMAX, false, false, RAMP_GROUP_SCORE_MAX, false, 0, 0.0F},
    {"softmax_renorm", RAMP_SCORING_SOFTMAX, true, false, RAMP_GROUP_SCORE_MAX, false, 0, 0.0F},
    {"softmax_bias", RAMP_SCORING_SOFTMAX, false, true, RAMP_GROUP_SCORE_MAX, false, 1, 1.5F},
    {"softmax_groups_max", RAMP_SCORING_SOFTMAX, false, false, RAMP_GROUP_SCORE_MAX, true, 2, 16.0F},
    {"softmax_groups_sum", RAMP_SCORING_SOFTMAX, true, false, RAMP_GROUP_SCORE_TOP2_SUM, true, 0, 1.0F},
    {"topk_softmax", RAMP_SCORING_TOPK_SOFTMAX, false, false, RAMP_GROUP_SCORE_MAX, false, 0, 0.0F},
    {"topk_softmax_bias_groups", RAMP_SCORING_TOPK_SOFTMAX, true, true, RAMP_GROUP_SCORE_TOP2_SUM, true, 0,
     0.0F},
    {"sigmoid", RAMP_SCORING_SIGMOID, false, false, RAMP_GROUP_SCORE_MAX, false, 0, 2.5F},
    {"sigmoid_renorm_bias", RAMP_SCORING_SIGMOID, true, true, RAMP_GROUP_SCORE_MAX, false, 0, 0.0F},
    {"dsv3", RAMP_SCORING_SIGMOID, true, true, RAMP_GROUP_SCORE_TOP2_SUM, true, 1, 2.5F},
    {"sigmoid_groups_max", RAMP_SCORING_SIGMOID, false, true, RAMP_GROUP_SCORE_MAX, true, 0, 1.0F},
};

struct Shape {
  int64_t experts, top_k;
  int32_t groups, topk_groups;
};
const Shape kShapes[] = {{1, 1, 1, 1},        {6, 2, 3, 2},    {8, 2, 2, 1},    {16, 4, 4, 3},
                         {60, 4, 6, 2},       {64, 8, 2, 1},   {128, 8, 4, 2},  {160, 6, 8, 3},
                         {256, 8, 8, 4},      {384, 8, 12, 4}, {512, 10, 8, 3}, {1000, 32, 40, 7},
                         {1024, 8, 512, 100}, {96, 6, 96, 50}};

std::string case_name(const testing::TestParamInfo<std::tuple<Kind, Shape>>& info) {
  const auto& [kind, shape] = info.param;
  return fmt::format("{}_E{}k{}", kind.name, shape.experts, shape.top_k);
}

float logit(uint64_t seed, int64_t t, int64_t e, int64_t experts) {
  const auto at = static_cast<uint64_t>(t * experts + e);
  const uint64_t u = random_u64(seed + 1, at);
  const auto v = static_cast<float>(random_normal(seed, at) * (t % 4 == 3 ? 40.0 : 3.0));
  switch (t % 16) {
    case 1:  // exact ties
      return static_cast<float>(u % 3);
    case 2:  // zeros of both signs
      return (u & 1U) != 0 ? 0.0F : -0.0F;
    case 5:
      return u % 5 == 0 ? kNan : v;
    case 6:
      return u % 5 == 0 ? kInf : u % 7 == 0 ? -kInf : v;
    case 7:
      return u % 3 == 0 ? kNan : -kInf;
    case 8:
      return kNan;
    case 9:
      return v - 200.0F;
    case 10:
      return u % 2 == 0 ? kInf : kNan;
    default:
      return v;
  }
}

struct Logits {
  Logits(ramp_dtype dtype, int64_t tokens, int64_t experts, int64_t padding, uint64_t seed)
      : bytes(static_cast<size_t>(tokens * (experts + padding) * dtype_bytes(dtype)), 0x7f) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t e = 0; e < experts; ++e)
        store_f32(bytes.data(), dtype, t * (experts + padding) + e, logit(seed, t, e, experts));
    }
    host = with_strides(make_tensor(bytes.data(), dtype, {tokens, experts}));
    host.stride[0] = experts + padding;
    buffer = std::make_unique<Buffer>(Buffer::of(bytes));
    device = host;
    device.data = buffer->data();
  }
  std::vector<uint8_t> bytes;
  ramp_tensor host{}, device{};
  std::unique_ptr<Buffer> buffer;
};

struct Router {
  Router(const Kind& k, const Shape& s) : bias(static_cast<size_t>(s.experts)) {
    config = ramp_router_config_init();
    config.scoring = k.scoring;
    config.top_k = static_cast<int32_t>(s.top_k);
    config.renormalize = k.renormalize ? 1 : 0;
    config.num_shared_experts = k.shared;
    config.routed_scaling_factor = k.scaling;
    if (k.groups && s.groups > 1) {
      config.num_groups = s.groups;
      config.topk_groups = s.topk_groups;
      config.group_score = k.group_score;
    }
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(random_normal(3, i));
    if (k.bias) {
      buffer = std::make_unique<Buffer>(Buffer::of(bias));
      config.selection_bias = make_tensor(bias.data(), RAMP_F32, {s.experts});
    }
    config = check_router(config, s.experts);
    on_device = config;
    if (k.bias) on_device.selection_bias.data = buffer->data();
  }
  std::vector<float> bias;
  ramp_router_config config{}, on_device{};
  std::unique_ptr<Buffer> buffer;
};

// ids and weights of the host; rows `pitch` apart, the padding 0xff as a Buffer's.
struct Routed {
  Routed(ramp_dtype type, int64_t tokens, int64_t slots, int64_t padding)
      : pitch(slots + padding),
        id_bytes(static_cast<size_t>(tokens * pitch * dtype_bytes(type)), 0xff),
        weight_bytes(static_cast<size_t>(tokens * pitch * 4), 0xff) {
    ids = with_strides(make_tensor(id_bytes.data(), type, {tokens, slots}));
    weights = with_strides(make_tensor(weight_bytes.data(), RAMP_F32, {tokens, slots}));
    ids.stride[0] = weights.stride[0] = pitch;
  }
  int64_t pitch;
  std::vector<uint8_t> id_bytes, weight_bytes;
  ramp_tensor ids{}, weights{};
};
void route_on_host(const ramp_router_config& r, const ramp_tensor& logits, Routed& out) {
  std::vector<unsigned char> scratch(static_cast<size_t>(route_scratch_bytes(r, logits.shape[1])));
  route_tokens(r, logits, out.ids, out.weights, 0, logits.shape[0], scratch.data());
  std::vector<int64_t> counts(static_cast<size_t>(logits.shape[1]));
  if (r.capacity > 0) apply_capacity(r.capacity, logits.shape[1], out.ids, out.weights, counts);
}

void expect_same(const Routed& want, const Buffer& ids, const Buffer& weights, int64_t tokens) {
  const std::vector<uint8_t> got_ids = ids.get<uint8_t>();
  const std::vector<uint8_t> got_weights = weights.get<uint8_t>();
  if (got_ids == want.id_bytes && got_weights == want.weight_bytes) return;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < want.pitch; ++j) {
      const auto at = static_cast<size_t>(t * want.pitch + j);
      const auto width = static_cast<size_t>(dtype_bytes(static_cast<ramp_dtype>(want.ids.dtype)));
      int32_t id = 0;
      int32_t expected = 0;
      float weight = 0;
      float expected_weight = 0;
      std::memcpy(&id, got_ids.data() + at * width, 4);
      std::memcpy(&expected, want.id_bytes.data() + at * width, 4);
      std::memcpy(&weight, got_weights.data() + at * 4, 4);
      std::memcpy(&expected_weight, want.weight_bytes.data() + at * 4, 4);
      ASSERT_EQ(id, expected) << "token " << t << " slot " << j;
      ASSERT_EQ(std::memcmp(&weight, &expected_weight, 4), 0)
          << "token " << t << " slot " << j << " id " << id << ": weight " << weight << " not "
          << expected_weight;
    }
  }
  FAIL() << "ids differ in their upper halves";
}

class Route : public testing::TestWithParam<std::tuple<Kind, Shape>> {};

TEST_P(Route, EqualsHost) {
  const auto& [kind, shape] = GetParam();
  const Router router(kind, shape);
  const int64_t slots = router_slots(router.config);
  uint64_t seed = 40;
  for (const int64_t tokens : {0, 1, 2, 63, 129, 1025, 5000}) {
    if (tokens * shape.experts > 1500000) continue;
    for (const int64_t capacity : {0, 1, 7, 100}) {
      if (capacity == 100 && tokens < 1000) continue;
      ++seed;
      const ramp_dtype type = seed % 3 == 0 ? RAMP_BF16 : seed % 3 == 1 ? RAMP_F32 : RAMP_F16;
      const ramp_dtype id_type = seed % 2 == 0 ? RAMP_I32 : RAMP_I64;
      SCOPED_TRACE(fmt::format("T {} capacity {} logits {} ids {}", tokens, capacity, dtype_name(type),
                               dtype_name(id_type)));
      const int64_t padding = static_cast<int64_t>(seed % 2) * 3;
      const Logits logits(type, tokens, shape.experts, padding, seed);
      Routed want(id_type, tokens, slots, padding);
      ramp_router_config config = router.config;
      config.capacity = capacity;
      route_on_host(config, logits.host, want);

      const Buffer ids(want.id_bytes.size());
      const Buffer weights(want.weight_bytes.size());
      RouteCall call;
      call.router = router.on_device;
      call.router.capacity = capacity;
      call.logits = logits.device;
      call.ids = want.ids;
      call.ids.data = ids.data();
      call.weights = want.weights;
      call.weights.data = weights.data();
      const uint64_t bytes = Device::get().prologue.route_workspace(call.router, shape.experts, tokens);
      const Buffer workspace(bytes);
      call.workspace = workspace.data();
      call.workspace_bytes = bytes;
      if (tokens > 0) Device::get().prologue.route(call);
      expect_same(want, ids, weights, tokens);
      EXPECT_TRUE(ids.guard_intact());
      EXPECT_TRUE(weights.guard_intact());
      EXPECT_TRUE(workspace.guard_intact());
      if (testing::Test::HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Route, testing::Combine(testing::ValuesIn(kKinds), testing::ValuesIn(kShapes)),
                         case_name);

// Routing, index and conversion: ids and weights as from the host, the index of those ids.
class RoutedBlock : public testing::TestWithParam<std::tuple<Kind, Shape>> {};

TEST_P(RoutedBlock, EqualsHost) {
  const auto& [kind, shape] = GetParam();
  const Router router(kind, shape);
  const int64_t slots = router_slots(router.config);
  const int64_t local = shape.experts + router.config.num_shared_experts;
  if (local > 1024) GTEST_SKIP() << "more local experts than the index takes";
  const int64_t hidden = 160;
  uint64_t seed = 700;
  for (const int64_t tokens : {1, 2, 8, 9, 15, 16, 17, 33, 64, 129, 512, 1000, 1024, 1025}) {
    if (tokens * shape.experts > 300000) continue;
    for (const bool mapped : {false, true}) {
      ++seed;
      SCOPED_TRACE(fmt::format("T {} mapped {}", tokens, mapped));
      const ramp_dtype id_type = seed % 3 == 0 ? RAMP_I64 : RAMP_I32;
      const Logits logits(RAMP_F32, tokens, shape.experts, 0, seed);
      Routed want(id_type, tokens, slots, 1);
      route_on_host(router.config, logits.host, want);
      const Buffer ids(want.id_bytes.size());
      const Buffer weights(want.weight_bytes.size());
      RouteCall route;
      route.router = router.on_device;
      route.logits = logits.device;
      route.ids = want.ids;
      route.ids.data = ids.data();
      route.weights = want.weights;
      route.weights.data = weights.data();
      const uint64_t bytes = Device::get().prologue.route_workspace(route.router, shape.experts, tokens);
      const Buffer scratch(bytes);
      route.workspace = scratch.data();
      route.workspace_bytes = bytes;

      const bool quantised = seed % 2 == 0;
      const ExpertWeights w =
          make_weights(quantised ? RAMP_FORMAT_FP8_BLOCK : RAMP_FORMAT_BF16, local, hidden);
      std::vector<uint16_t> x(static_cast<size_t>(tokens * hidden));
      for (size_t i = 0; i < x.size(); ++i) x[i] = f32_to_bf16(static_cast<float>(random_normal(seed, i)));
      const Buffer device_x = Buffer::of(x);
      std::vector<int32_t> map;
      for (int64_t e = 0; mapped && e < local; ++e)
        map.push_back(e % 5 == 0 ? -1 : static_cast<int32_t>(local - 1 - e));
      const Buffer device_map = Buffer::of(map);
      const Buffer counters = Buffer::of(std::vector<int64_t>{0, 0});
      const Workspace ws(w, tokens * slots, 16);
      BlockCall call;
      call.weights = &w;
      call.tokens = tokens;
      call.top_k = slots;
      call.x = device_tensor(device_x.data(), RAMP_BF16, {tokens, hidden});
      call.ids = route.ids;
      call.topk_weights = route.weights;
      if (mapped) call.expert_map = {device_map.as<int32_t>(), map.size()};
      call.counters = counters.as<int64_t>();
      Device::get().prologue.routed_block(route, call, ws.view, nullptr);

      expect_same(want, ids, weights, tokens);
      std::vector<int32_t> offsets(static_cast<size_t>(local + 1));
      std::vector<int32_t> rows(static_cast<size_t>(tokens * slots), -1);
      std::vector<int32_t> positions(rows.size());
      SortedRows sorted{offsets, rows, positions};
      sort_rows(want.ids, mapped ? std::span<const int32_t>(map) : std::span<const int32_t>{}, local, sorted);
      std::fill(rows.begin() + offsets.back(), rows.end(), -1);
      EXPECT_EQ(ws.parts[0].get<int32_t>(), offsets);
      EXPECT_EQ(ws.parts[1].get<int32_t>(), rows);
      EXPECT_EQ(ws.parts[2].get<int32_t>(), positions);
      EXPECT_EQ(counters.get<int64_t>(), (std::vector<int64_t>{sorted.masked, sorted.out_of_range}));
      const std::vector<Tile> tiles = ws.parts[3].get<Tile>();
      size_t tile = 0;
      for (int64_t e = 0; e < local; ++e) {
        const int32_t end = offsets[static_cast<size_t>(e + 1)];
        for (int32_t first = offsets[static_cast<size_t>(e)]; first < end; first += 16, ++tile) {
          ASSERT_LT(tile, tiles.size());
          ASSERT_EQ(tiles[tile].expert, e);
          ASSERT_EQ(tiles[tile].first, first);
          ASSERT_EQ(tiles[tile].rows, std::min(16, end - first));
        }
      }
      EXPECT_EQ(ws.parts[4].get<int32_t>()[0], static_cast<int32_t>(tile));
      ws.expect_guards();
      if (quantised) {
        const std::vector<uint8_t> codes = ws.parts[6].get<uint8_t>();
        std::vector<float> row(static_cast<size_t>(hidden));
        std::vector<uint8_t> q(row.size());
        std::vector<float> s(2);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t c = 0; c < hidden; ++c)
            row[static_cast<size_t>(c)] = bf16_to_f32(x[static_cast<size_t>(t * hidden + c)]);
          quantize_row_groups(row.data(), hidden, q.data(), s.data());
          ASSERT_EQ(std::memcmp(codes.data() + t * hidden, q.data(), q.size()), 0) << "token " << t;
        }
      }
      if (testing::Test::HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RoutedBlock,
                         testing::Combine(testing::ValuesIn(kKinds), testing::ValuesIn(kShapes)), case_name);

// Sigmoids of floats of every magnitude: all of a token's experts are chosen.
TEST(Sigmoid, EqualsHostEverywhere) {
  const int64_t experts = 32;
  const int64_t tokens = 1 << 15;
  std::vector<float> logits(static_cast<size_t>(tokens * experts));
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = std::bit_cast<float>(static_cast<uint32_t>(i) * 4099U);  // odd: steps over all 2^32 patterns
  ramp_router_config config = ramp_router_config_init();
  config.scoring = RAMP_SCORING_SIGMOID;
  config.top_k = static_cast<int32_t>(experts);
  config = check_router(config, experts);
  Routed want(RAMP_I32, tokens, experts, 0);
  route_on_host(config, make_tensor(logits.data(), RAMP_F32, {tokens, experts}), want);
  const Buffer device_logits = Buffer::of(logits);
  const Buffer ids(want.id_bytes.size());
  const Buffer weights(want.weight_bytes.size());
  RouteCall call;
  call.router = config;
  call.logits = device_tensor(device_logits.data(), RAMP_F32, {tokens, experts});
  call.ids = device_tensor(ids.data(), RAMP_I32, {tokens, experts});
  call.weights = device_tensor(weights.data(), RAMP_F32, {tokens, experts});
  Device::get().prologue.route(call);
  expect_same(want, ids, weights, tokens);
}

// Logits computed from x and the router's weight: any order of fp32 sums of H exact products is within
// gamma_H * sum |x w| of the exact value (Higham, Accuracy and Stability, 3.1). To see them, every expert is
// chosen, with sigmoids as weights: a sigmoid's slope is at most 1/4, its own error 4 units (score_math.hpp).
TEST(RouterGemm, WithinBounds) {
  for (const auto& [x_type, w_type] :
       {std::pair{RAMP_BF16, RAMP_BF16}, {RAMP_F16, RAMP_F16}, {RAMP_BF16, RAMP_F32}, {RAMP_F32, RAMP_F32}}) {
    for (const int64_t hidden : {32, 96, 2048}) {
      for (const int64_t tokens : {1, 17, 70, 300}) {
        for (const int64_t odd : {0, 1}) {
          const int64_t experts = 30;
          SCOPED_TRACE(fmt::format("{} {} H {} T {} odd {}", dtype_name(x_type), dtype_name(w_type), hidden,
                                   tokens, odd));
          const int64_t pitch = hidden + odd;
          std::vector<uint8_t> x(static_cast<size_t>(tokens * pitch * dtype_bytes(x_type)));
          std::vector<uint8_t> w(static_cast<size_t>(experts * pitch * dtype_bytes(w_type)));
          for (int64_t i = 0; i < tokens * pitch; ++i)
            store_f32(x.data(), x_type, i, static_cast<float>(random_normal(1, static_cast<uint64_t>(i))));
          for (int64_t i = 0; i < experts * pitch; ++i)
            store_f32(w.data(), w_type, i,
                      static_cast<float>(random_normal(2, static_cast<uint64_t>(i)) / 30.0));
          const Buffer device_x = Buffer::of(x);
          const Buffer device_w = Buffer::of(w);
          const Buffer ids(static_cast<uint64_t>(tokens * experts * 4));
          const Buffer weights(static_cast<uint64_t>(tokens * experts * 4));
          RouteCall call;
          call.router = ramp_router_config_init();
          call.router.scoring = RAMP_SCORING_SIGMOID;
          call.router.top_k = static_cast<int32_t>(experts);
          call.router = check_router(call.router, experts);
          call.x = device_tensor(device_x.data(), x_type, {tokens, hidden}, {pitch});
          call.router_weight = device_tensor(device_w.data(), w_type, {experts, hidden}, {pitch});
          call.ids = device_tensor(ids.data(), RAMP_I32, {tokens, experts});
          call.weights = device_tensor(weights.data(), RAMP_F32, {tokens, experts});
          const uint64_t bytes = Device::get().prologue.route_workspace(call.router, experts, tokens);
          const Buffer workspace(bytes);
          call.workspace = workspace.data();
          call.workspace_bytes = bytes;
          Device::get().prologue.route(call);
          const std::vector<int32_t> got_ids = ids.get<int32_t>();
          const std::vector<float> got = weights.get<float>();
          const std::vector<float> logits = workspace.get<float>();
          EXPECT_TRUE(workspace.guard_intact());
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t j = 0; j < experts; ++j) {
              const int64_t e = got_ids[static_cast<size_t>(t * experts + j)];
              ASSERT_TRUE(e >= 0 && e < experts);
              double exact = 0.0;
              double sum = 0.0;
              for (int64_t c = 0; c < hidden; ++c) {
                const double p = double{load_f32(x.data(), x_type, t * pitch + c)} *
                                 double{load_f32(w.data(), w_type, e * pitch + c)};
                exact += p;
                sum += std::fabs(p);
              }
              // Products of f32 are rounded too where they are not fused: one unit more.
              const double gamma = static_cast<double>(hidden + 1) * 0x1p-24;
              ASSERT_NEAR(logits[static_cast<size_t>(t * experts + e)], exact, gamma * sum) << t << " " << e;
              const double sigmoid = 1.0 / (1.0 + std::exp(-exact));
              ASSERT_NEAR(got[static_cast<size_t>(t * experts + j)], sigmoid, gamma * sum / 4 + 4 * 0x1p-24)
                  << t;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace ramp::gpu_test
