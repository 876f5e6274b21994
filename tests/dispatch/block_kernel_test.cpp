// ramp's own configs of the expert block and somebody's in one table: who runs what, choices over both,
// files, errors. Times follow a law of the test, so that every choice is known.
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "ramp/dispatch.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

constexpr int64_t kE = 4, kK = 2, kH = 64, kI = 32;

// A layer of one value per expert: whatever runs it gives the same y.
struct Block {
  explicit Block(ramp_format format = RAMP_FORMAT_F32, int64_t experts = kE)
      : w13(static_cast<size_t>(experts * kI * kH)), w2(static_cast<size_t>(experts * kH * kI)) {
    for (int64_t e = 0; e < experts; ++e)
      for (int64_t i = 0; i < kI; ++i) {
        w13[static_cast<size_t>((e * kI + i) * kH + i)] = 1;
        w2[static_cast<size_t>((e * kH + i) * kI + i)] = static_cast<float>(e + 1);
      }
    ramp_weights_desc d = ramp_weights_desc_init();
    d.format = format;
    d.activation = RAMP_ACTIVATION_RELU2;
    d.num_experts = experts;
    d.hidden = kH;
    d.intermediate = kI;
    d.w13 = ramp::tensor(w13, {experts, kI, kH});
    d.w2 = ramp::tensor(w2, {experts, kH, kI});
    ramp_weights* handle = nullptr;
    check(ramp_weights_create(context.get(), &d, nullptr, &handle));
    weights.emplace(handle);
  }
  ramp::Context context{{.num_threads = 2}};
  std::vector<float> w13, w2;
  std::optional<ramp::Weights> weights;
};

// Four tokens through experts 0 and 1.
struct Call {
  explicit Call(const Block& block)
      : x(4 * kH, 3), y(4 * kH, NAN), weights(4 * kK, 0.5F), ids{0, 1, 0, 1, 0, 1, 0, 1} {
    args.weights = block.weights->get();
    args.x = ramp::tensor(x, {4, kH});
    args.y = ramp::tensor(y, {4, kH});
    args.topk_ids = ramp::tensor(ids, {4, kK});
    args.topk_weights = ramp::tensor(weights, {4, kK});
    call.args = &args;
  }
  std::vector<float> x, y, weights;
  std::vector<int32_t> ids;
  ramp_expert_block_args args = ramp_expert_block_args_init();
  ramp_block_call call = ramp_block_call_init();
};

struct Theirs {
  Theirs() {
    for (size_t i = 0; i < 2; ++i) {
      configs[i] = ramp_kernel_config_init();
      configs[i].name = i == 0 ? "theirs_1" : "theirs_8";
      configs[i].tile_m = i == 0 ? 1 : 8;
      configs[i].tile_n = 64;
      configs[i].warps_n = 3;
    }
    desc.name = "theirs";
    desc.configs = configs.data();
    desc.num_configs = 2;
    desc.top_k = kK;
    desc.launch = [](void* user, int32_t config, void* call) {
      auto& self = *static_cast<Theirs*>(user);
      self.last = config;
      self.call = call;
      return self.code;
    };
    desc.user = this;
  }
  ramp_status create(Block& block) {
    return ramp_block_kernel_create(block.context.get(), block.weights->get(), &desc, &kernel);
  }
  ~Theirs() { ramp_kernel_destroy(kernel); }
  std::array<ramp_kernel_config, 2> configs{};
  ramp_kernel_desc desc = ramp_kernel_desc_init();
  ramp_kernel* kernel = nullptr;
  int32_t last = -1;
  void* call = nullptr;
  int code = 0;
};

int32_t own_configs(Block& block) {
  int32_t n = 0;
  while (ramp_config_name(block.context.get(), block.weights->get(), n) != nullptr) ++n;
  return n;
}

void expect_error(ramp_status got, ramp_status expected, std::initializer_list<const char*> parts) {
  EXPECT_EQ(got, expected) << ramp_last_error();
  expect_has(ramp_last_error(), parts);
}

// Theirs need 1 us per row (the second 0.9 and 3 more), ramp's 10 us and 0.1 per row, and 1 more per number.
double law(int32_t config, int32_t own, int64_t rows) {
  const auto r = static_cast<double>(rows);
  if (config == own) return 1 + r;
  if (config == own + 1) return 4 + 0.9 * r;
  return 20 + 0.1 * r + config;
}

TEST(BlockKernel, OwnConfigsComeFirstAndEachRunsWhatItIs) {
  Block block;
  Theirs theirs;
  ASSERT_EQ(theirs.create(block), RAMP_OK) << ramp_last_error();
  const int32_t own = own_configs(block);
  ASSERT_GE(own, 2);
  ramp_kernel_info info = ramp_kernel_info_init();
  ASSERT_EQ(ramp_kernel_get_info(theirs.kernel, &info), RAMP_OK);
  EXPECT_EQ(info.num_configs, own + 2);
  EXPECT_EQ(info.num_experts, kE);
  Call call(block);
  for (int32_t c = 0; c < own; ++c) {
    EXPECT_STREQ(ramp_kernel_config_name(theirs.kernel, c),
                 ramp_config_name(block.context.get(), block.weights->get(), c));
    call.y.assign(call.y.size(), NAN);
    ASSERT_EQ(ramp_kernel_launch(theirs.kernel, c, &call.call), RAMP_OK) << ramp_last_error();
    for (int64_t h = 0; h < kH; ++h)  // 0.5 * 9 + 0.5 * 18, where the weights reach
      ASSERT_EQ(call.y[static_cast<size_t>(h)], h < kI ? 13.5F : 0.0F);
    EXPECT_EQ(theirs.last, -1);
  }
  for (int32_t c = 0; c < 2; ++c) {
    ASSERT_EQ(ramp_kernel_launch(theirs.kernel, own + c, &call.call), RAMP_OK) << ramp_last_error();
    EXPECT_EQ(theirs.last, c);
    EXPECT_EQ(theirs.call, &call.call);
  }
  EXPECT_STREQ(ramp_kernel_config_name(theirs.kernel, own + 1), "theirs_8");
  expect_error(ramp_kernel_launch(theirs.kernel, own + 2, &call.call), RAMP_ERROR_INVALID_ARGUMENT,
               {"config", "0 to"});
  expect_error(ramp_kernel_launch(theirs.kernel, -1, &call.call), RAMP_ERROR_INVALID_ARGUMENT, {"config"});
  theirs.code = 7;
  expect_error(ramp_kernel_launch(theirs.kernel, own, &call.call), RAMP_ERROR_DEVICE, {"theirs_1", "7"});
}

// Both kinds in one profile: the dispatcher finds out by itself who wins where.
class Profiled : public ::testing::Test {
 protected:
  void SetUp() override {
    own = own_configs(block);
    ASSERT_EQ(theirs.create(block), RAMP_OK) << ramp_last_error();
    options.prepare = [](void* user, const ramp_workload* w, void** call) {
      auto& self = *static_cast<Profiled*>(user);
      self.rows = w->tokens * kK;
      *call = &self.call.call;
      return 0;
    };
    options.measure = [](void* user, int32_t config, void* call, double* us) {
      auto& self = *static_cast<Profiled*>(user);
      *us = law(config, self.own, self.rows);
      return ramp_kernel_launch(self.theirs.kernel, config, call) == RAMP_OK ? 0 : 1;
    };
    options.user = this;
    options.max_tokens = 64;
    options.keep_hopeless = 1;
  }
  static std::vector<int32_t> histogram(int64_t tokens) {
    std::vector<int32_t> h(kE);
    for (int64_t i = 0; i < tokens * kK; ++i) ++h[static_cast<size_t>(i % kE)];
    return h;
  }
  Block block;
  Theirs theirs;
  Call call{block};
  int32_t own = 0;
  int64_t rows = 0;
  ramp_profile_options options = ramp_profile_options_init();
};

TEST_F(Profiled, TheHistogramDecidesBetweenBothKinds) {
  ASSERT_EQ(ramp_kernel_profile(theirs.kernel, &options), RAMP_OK) << ramp_last_error();
  ASSERT_EQ(ramp_kernel_fit(theirs.kernel, nullptr), RAMP_OK) << ramp_last_error();
  for (const int64_t tokens : {1, 2, 3, 32, 64}) {
    int32_t config = -1;
    theirs.last = -1;
    call.y.assign(call.y.size(), NAN);
    const std::vector<int32_t> h = histogram(tokens);
    ASSERT_EQ(ramp_kernel_dispatch(theirs.kernel, h.data(), kE, &call.call, &config), RAMP_OK)
        << ramp_last_error();
    if (tokens < 8) {
      EXPECT_GE(config, own) << tokens;
      EXPECT_EQ(theirs.last, config - own);
      EXPECT_TRUE(std::isnan(call.y[0]));  // ramp ran nothing
    } else {
      EXPECT_LT(config, own) << tokens;
      EXPECT_EQ(theirs.last, -1);
      EXPECT_EQ(call.y[0], 13.5F);
    }
  }
}

TEST_F(Profiled, FilesRoundTripAndBelongToTheKindOfWeights) {
  ASSERT_EQ(ramp_kernel_profile(theirs.kernel, &options), RAMP_OK) << ramp_last_error();
  ASSERT_EQ(ramp_kernel_fit(theirs.kernel, nullptr), RAMP_OK) << ramp_last_error();
  TempDir dir;
  const std::string profile = dir.file("p.json"), fit = dir.file("f.json");
  ASSERT_EQ(ramp_kernel_save_profile(theirs.kernel, profile.c_str()), RAMP_OK);
  ASSERT_EQ(ramp_kernel_save_fit(theirs.kernel, fit.c_str()), RAMP_OK);
  Theirs again;
  ASSERT_EQ(again.create(block), RAMP_OK);
  int32_t used = -1;
  ASSERT_EQ(ramp_kernel_load_fit(again.kernel, fit.c_str(), &used), RAMP_OK);
  EXPECT_EQ(used, 1) << ramp_kernel_warning(again.kernel, 0);
  ASSERT_EQ(ramp_kernel_load_profile(again.kernel, profile.c_str(), &used), RAMP_OK);
  EXPECT_EQ(used, 1) << ramp_kernel_warning(again.kernel, 0);
  for (const int64_t tokens : {1, 5, 9, 17, 33, 64}) {
    int32_t a = -1, b = -2;
    const std::vector<int32_t> h = histogram(tokens);
    ASSERT_EQ(ramp_kernel_choose(theirs.kernel, h.data(), kE, &a), RAMP_OK);
    ASSERT_EQ(ramp_kernel_choose(again.kernel, h.data(), kE, &b), RAMP_OK);
    EXPECT_EQ(a, b);
  }
  // The same table under another name: times of something else.
  Theirs other;
  other.desc.name = "stranger";
  ASSERT_EQ(other.create(block), RAMP_OK);
  ASSERT_EQ(ramp_kernel_load_fit(other.kernel, fit.c_str(), &used), RAMP_OK);
  EXPECT_EQ(used, 0);
  expect_has(ramp_kernel_warning(other.kernel, 0), {"stranger", "not used"});
  // ramp alone refuses it too: a context has no launch for theirs.
  int32_t shapes = -1;
  ASSERT_EQ(ramp_context_load_fit(block.context.get(), fit.c_str(), &shapes), RAMP_OK);
  EXPECT_EQ(shapes, 0);
}

TEST_F(Profiled, AFailingConfigOfEitherKindIsLeftOut) {
  options.measure = nullptr;  // the clock of the library
  theirs.code = 3;
  call.args.determinism = 77;  // ramp's own refuse
  expect_error(ramp_kernel_profile(theirs.kernel, &options), RAMP_OK, {});
  ASSERT_NE(ramp_kernel_warning(theirs.kernel, 0), nullptr);
  expect_has(ramp_kernel_warning(theirs.kernel, 0), {"determinism", "77"});
  std::string all;
  for (int32_t i = 0; const char* line = ramp_kernel_warning(theirs.kernel, i); ++i) all += line;
  expect_has(all, {"theirs_8"});
  expect_error(ramp_kernel_launch(theirs.kernel, 0, &call.call), RAMP_ERROR_INVALID_ARGUMENT,
               {"determinism", "77"});
}

TEST(BlockKernel, RampAloneAndWithoutALaunch) {
  Block block;
  Theirs theirs;
  theirs.desc.num_configs = 0;
  theirs.desc.configs = nullptr;
  theirs.desc.launch = nullptr;
  ASSERT_EQ(theirs.create(block), RAMP_OK) << ramp_last_error();
  Call call(block);
  const std::vector<int32_t> h = {4, 4, 0, 0};
  int32_t config = -1;
  ASSERT_EQ(ramp_kernel_dispatch(theirs.kernel, h.data(), kE, &call.call, &config), RAMP_OK)
      << ramp_last_error();
  EXPECT_EQ(call.y[0], 13.5F);
  Theirs silent;
  silent.desc.launch = nullptr;
  ASSERT_EQ(silent.create(block), RAMP_OK) << ramp_last_error();
  ASSERT_EQ(ramp_kernel_choose(silent.kernel, h.data(), kE, &config), RAMP_OK);
  expect_error(ramp_kernel_dispatch(silent.kernel, h.data(), kE, &call.call, &config),
               RAMP_ERROR_INVALID_ARGUMENT, {"launch"});
}

TEST(BlockKernel, Errors) {
  Block block;
  const auto refused = [&](const std::function<void(Theirs&)>& change,
                           std::initializer_list<const char*> parts) {
    Theirs t;
    change(t);
    expect_error(t.create(block), RAMP_ERROR_INVALID_ARGUMENT, parts);
    EXPECT_EQ(t.kernel, nullptr);
  };
  refused([](Theirs& t) { t.desc.name = nullptr; }, {"name", "NULL"});
  refused([](Theirs& t) { t.desc.top_k = 0; }, {"top_k", "1 to 4"});
  refused([](Theirs& t) { t.desc.hidden = 32; }, {"hidden", "32", "64"});
  refused([](Theirs& t) { t.desc.num_experts = 5; }, {"num_experts", "4"});
  refused([](Theirs& t) { t.desc.intermediate = 5; }, {"intermediate", "32"});
  refused([](Theirs& t) { t.desc.default_config = 4096; }, {"default_config", "4096"});
  refused([](Theirs& t) { t.configs[0].tile_m = 0; }, {"tile_m"});
  refused(
      [&](Theirs& t) { t.configs[1].name = ramp_config_name(block.context.get(), block.weights->get(), 0); },
      {"again", "distinct"});
  static const char* column = "residency";
  static const double one = 1;
  refused(
      [](Theirs& t) {
        t.desc.extra_columns = &column;
        t.desc.num_extra_columns = 1;
        t.configs[0].extra = t.configs[1].extra = &one;
      },
      {"extra_columns", "residency", "leave it out"});
  ramp_kernel* out = nullptr;
  Theirs t;
  expect_error(ramp_block_kernel_create(nullptr, block.weights->get(), &t.desc, &out),
               RAMP_ERROR_INVALID_ARGUMENT, {"context"});
  expect_error(ramp_block_kernel_create(block.context.get(), nullptr, &t.desc, &out),
               RAMP_ERROR_INVALID_ARGUMENT, {"weights"});

  ASSERT_EQ(t.create(block), RAMP_OK);
  expect_error(ramp_kernel_launch(t.kernel, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT, {"ramp_block_call"});
  Call call(block);
  call.call.args = nullptr;
  expect_error(ramp_kernel_launch(t.kernel, 0, &call.call), RAMP_ERROR_INVALID_ARGUMENT,
               {"ramp_expert_block_args"});
  // Weights of another shape: the numbers of the table mean nothing for them.
  const Block wide(RAMP_FORMAT_F32, 8);
  call.call.args = &call.args;
  call.args.weights = wide.weights->get();
  expect_error(ramp_kernel_launch(t.kernel, 0, &call.call), RAMP_ERROR_INVALID_ARGUMENT,
               {"weights", "E = 8", "E = 4"});
  ramp_profile_options options = ramp_profile_options_init();
  expect_error(ramp_kernel_profile(t.kernel, &options), RAMP_ERROR_INVALID_ARGUMENT, {"prepare"});
}

TEST(BlockKernel, FromCpp) {
  Block block;
  Call call(block);
  std::vector<std::pair<int32_t, const void*>> seen;
  bool throws = false;
  ramp::Kernel kernel(block.context, *block.weights,
                      {.name = "theirs",
                       .configs = {{.name = "theirs", .tile_m = 1, .tile_n = 64}},
                       .default_config = own_configs(block),
                       .top_k = kK,
                       .launch = [&](int32_t config, void* c) {
                         if (throws) throw std::runtime_error("mine");
                         seen.emplace_back(config, c);
                         return 0;
                       }});
  const int32_t own = own_configs(block);
  const std::vector<int32_t> h = {4, 4, 0, 0};
  EXPECT_EQ(kernel.dispatch(h, &call.call), own);  // the declared default
  kernel.launch(1, &call.call);
  EXPECT_EQ(call.y[0], 13.5F);
  kernel.profile(
      {.max_tokens = 4, .repeats = 2, .prepare = [&](const ramp_workload&) { return &call.call; }});
  for (const auto& [config, c] : seen) {
    EXPECT_EQ(config, 0);
    EXPECT_EQ(c, &call.call);
  }
  EXPECT_GT(seen.size(), 5U);
  kernel.fit();
  (void)kernel.dispatch(h, &call.call);
  throws = true;
  EXPECT_THROW(kernel.launch(own, &call.call), std::runtime_error);
  EXPECT_THROW(kernel.profile({.max_tokens = 4}), ramp::Error);  // without prepare
  call.args.determinism = 77;
  EXPECT_THROW(kernel.launch(0, &call.call), ramp::Error);
}

}  // namespace
}  // namespace ramp::core
