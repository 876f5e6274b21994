// The C ABI of the dispatcher: every wrong description and call, kernels that fail, structs of other headers.
#include <array>
#include <cstring>

#include "foreign.hpp"

namespace ramp::core {
namespace {

TEST(Registration, EveryBadDescription) {
  const auto refused = [](const std::function<void(Foreign&)>& change,
                          std::initializer_list<const char*> parts) {
    Foreign f;
    change(f);
    ramp_kernel* k = reinterpret_cast<ramp_kernel*>(&f);
    expect_status(ramp_kernel_create(&f.desc, &k), RAMP_ERROR_INVALID_ARGUMENT, parts);
    EXPECT_EQ(k, reinterpret_cast<ramp_kernel*>(&f)) << "an output was written on an error";
  };
  refused([](Foreign& f) { f.desc.struct_size = 0; }, {"struct_size"});
  refused([](Foreign& f) { f.desc.name = nullptr; }, {"name", "NULL"});
  refused([](Foreign& f) { f.desc.name = ""; }, {"name"});
  refused([](Foreign& f) { f.desc.name = "two\nlines"; }, {"name"});
  refused([](Foreign& f) { f.desc.configs = nullptr; }, {"configs", "NULL"});
  refused([](Foreign& f) { f.desc.num_configs = 0; }, {"configs"});
  refused([](Foreign& f) { f.desc.num_configs = -3; }, {"configs", "-3"});
  refused([](Foreign& f) { f.configs[0].struct_size = 8; }, {"ramp_kernel_config.struct_size"});
  refused([](Foreign& f) { f.configs[2].struct_size += 8; }, {"configs[2].struct_size"});
  refused([](Foreign& f) { f.configs[3].name = nullptr; }, {"configs[3].name"});
  refused([](Foreign& f) { f.configs[3].name = "m4"; }, {"configs[3].name", "'m4'"});
  refused([](Foreign& f) { f.configs[1].tile_m = 0; }, {"configs[1].tile_m"});
  refused([](Foreign& f) { f.configs[1].tile_n = -128; }, {"configs[1].tile_n", "-128"});
  refused([](Foreign& f) { f.configs[1].tile_k = -1; }, {"configs[1].tile_k"});
  refused([](Foreign& f) { f.configs[1].split_k = -1; }, {"configs[1].split_k"});
  refused([](Foreign& f) { f.configs[1].stages = 1 << 30; }, {"configs[1].stages"});
  refused([](Foreign& f) { f.configs[1].warps_n = -1; }, {"configs[1].warps_n"});
  refused([](Foreign& f) { f.configs[1].threads = -1; }, {"configs[1].threads"});
  refused([](Foreign& f) { f.configs[1].group_m = -1; }, {"configs[1].group_m"});
  refused([](Foreign& f) { f.configs[1].extra = nullptr; }, {"configs[1].extra"});
  refused([](Foreign& f) { f.extras[1][0] = std::nan(""); }, {"configs[1].extra[0]"});
  refused([](Foreign& f) { f.desc.extra_columns = nullptr; }, {"extra_columns"});
  refused([](Foreign& f) { f.desc.num_extra_columns = -1; }, {"num_extra_columns"});
  refused([](Foreign& f) { f.column = nullptr; }, {"extra_columns[0]"});
  refused([](Foreign& f) { f.column = "tile_m"; }, {"extra_columns[0]", "tile_m"});
  refused([](Foreign& f) { f.desc.default_config = kConfigs + 1; }, {"default_config"});
  refused([](Foreign& f) { f.desc.default_config = -1; }, {"default_config"});
  refused([](Foreign& f) { f.desc.reserved = 1; }, {"reserved"});
  refused([](Foreign& f) { f.desc.num_experts = 0; }, {"num_experts"});
  refused([](Foreign& f) { f.desc.top_k = 9; }, {"top_k"});
  refused([](Foreign& f) { f.desc.hidden = -1; }, {"hidden"});
  refused([](Foreign& f) { f.desc.intermediate = int64_t{1} << 40; }, {"intermediate"});
  refused([](Foreign& f) { f.machine.struct_size = 1; }, {"ramp_machine.struct_size"});
  refused([](Foreign& f) { f.machine.sm_count = 0; }, {"sm_count"});
  refused([](Foreign& f) { f.machine.sm_count = -1; }, {"sm_count"});
  refused([](Foreign& f) { f.machine.hardware = "abacus"; }, {"hardware", "abacus"});
  refused([](Foreign& f) { f.machine.dram_gbps = std::nan(""); }, {"machine"});
  Foreign f;
  EXPECT_EQ(ramp_kernel_create(nullptr, nullptr), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(ramp_kernel_create(&f.desc, nullptr), RAMP_ERROR_INVALID_ARGUMENT);
  ramp_kernel_destroy(nullptr);
  ramp_profiler_destroy(nullptr);
}

TEST(Registration, EveryBadCall) {
  Foreign f;
  const Handle k(f.create());
  int32_t config = 77;
  std::array<float, kConfigs> us{};
  expect_status(ramp_kernel_choose(nullptr, kHot.data(), 8, &config), RAMP_ERROR_INVALID_ARGUMENT,
                {"kernel"});
  expect_status(ramp_kernel_choose(reinterpret_cast<ramp_kernel*>(us.data()), kHot.data(), 8, &config),
                RAMP_ERROR_INVALID_ARGUMENT, {"kernel"});
  expect_status(ramp_kernel_choose(k, nullptr, 8, &config), RAMP_ERROR_INVALID_ARGUMENT,
                {"histogram", "NULL"});
  expect_status(ramp_kernel_choose(k, kHot.data(), 7, &config), RAMP_ERROR_INVALID_ARGUMENT,
                {"num_experts", "7"});
  expect_status(ramp_kernel_choose(k, kHot.data(), 8, nullptr), RAMP_ERROR_INVALID_ARGUMENT, {"config"});
  const std::vector<int32_t> negative = {1, 2, 3, -1, 0, 0, 0, 0};
  expect_status(ramp_kernel_choose(k, negative.data(), 8, &config), RAMP_ERROR_INVALID_ARGUMENT,
                {"negative"});
  expect_status(ramp_kernel_dispatch(k, negative.data(), 8, nullptr, &config), RAMP_ERROR_INVALID_ARGUMENT,
                {"negative"});
  EXPECT_EQ(config, 77);
  EXPECT_EQ(f.launches, 0);
  expect_status(ramp_kernel_predict(k, kHot.data(), 8, us.data(), 5), RAMP_ERROR_INVALID_ARGUMENT,
                {"num_configs"});
  expect_status(ramp_kernel_predict(k, kHot.data(), 8, nullptr, 6), RAMP_ERROR_INVALID_ARGUMENT, {"us"});
  const std::vector<int32_t> empty(8);
  EXPECT_EQ(ramp_kernel_choose(k, empty.data(), 8, &config), RAMP_OK);

  const auto refused = [&](const std::function<void(Foreign&)>& change,
                           std::initializer_list<const char*> parts) {
    Foreign g;
    change(g);
    expect_status(ramp_kernel_profile(k, &g.options), RAMP_ERROR_INVALID_ARGUMENT, parts);
    EXPECT_EQ(g.measurements, 0);
  };
  refused([](Foreign& g) { g.options.struct_size = 3; }, {"struct_size"});
  refused([](Foreign& g) { g.options.num_workloads = -1; }, {"num_workloads"});
  refused([](Foreign& g) { g.options.workloads = nullptr; }, {"workloads"});
  refused([](Foreign& g) { g.workloads[2].histogram = nullptr; }, {"workloads[2].histogram"});
  refused([](Foreign& g) { g.workloads[2].tokens = 0; }, {"tokens"});
  refused([](Foreign& g) { g.workloads[2].name = "even1"; }, {"even1", "twice"});
  refused([](Foreign& g) { g.options.warmup = -2; }, {"warmup"});
  refused([](Foreign& g) { g.options.repeats = -1; }, {"repeats"});
  refused([](Foreign& g) { g.options.hopeless_ratio = 0.5; }, {"hopeless_ratio"});
  refused([](Foreign& g) { g.options.num_workloads = 0, g.options.max_tokens = -1; }, {"max_tokens"});
  f.desc.launch = nullptr;
  const Handle mute(f.create());
  f.options.measure = nullptr;
  expect_status(ramp_kernel_profile(mute, &f.options), RAMP_ERROR_INVALID_ARGUMENT, {"launch", "measure"});
}

TEST(Registration, OlderAndNewerStructs) {
  Foreign f;
  // An older config struct: no `extra`; elements closer together.
  f.desc.num_extra_columns = 0;
  constexpr size_t kOld = offsetof(ramp_kernel_config, extra);
  std::vector<std::byte> old(kOld * kConfigs), newer((sizeof(ramp_kernel_config) + 16) * kConfigs);
  for (size_t c = 0; c < kConfigs; ++c) {
    ramp_kernel_config x = f.configs[c];
    x.struct_size = kOld;
    std::memcpy(old.data() + c * kOld, &x, kOld);
    x = f.configs[c];
    x.struct_size = sizeof(ramp_kernel_config) + 16;
    std::memcpy(newer.data() + c * x.struct_size, &x, sizeof x);
  }
  for (const auto* bytes : {&old, &newer}) {
    f.desc.configs = reinterpret_cast<const ramp_kernel_config*>(bytes->data());
    const Handle k(f.create());
    ASSERT_NE(k.kernel, nullptr);
    EXPECT_STREQ(ramp_kernel_config_name(k, 5), "m128");
  }
  newer.back() = std::byte{1};
  ramp_kernel* k = nullptr;
  f.desc.configs = reinterpret_cast<const ramp_kernel_config*>(newer.data());
  EXPECT_EQ(ramp_kernel_create(&f.desc, &k), RAMP_ERROR_UNSUPPORTED);
}

TEST(Registration, LaunchErrorsComeBack) {
  Foreign f;
  f.desc.default_config = 2;
  const Handle k(f.create());
  f.broken_config = 1;
  int32_t config = -1;
  expect_status(ramp_kernel_dispatch(k, kHot.data(), 8, nullptr, &config), RAMP_ERROR_DEVICE,
                {"'foreign'", "'m8'", "700"});
  EXPECT_EQ(config, 1);
  EXPECT_EQ(ramp_kernel_choose(k, kHot.data(), 8, &config), RAMP_OK);
  f.desc.launch = nullptr;
  const Handle mute(f.create());
  EXPECT_EQ(ramp_kernel_choose(mute, kHot.data(), 8, &config), RAMP_OK);
  expect_status(ramp_kernel_dispatch(mute, kHot.data(), 8, nullptr, nullptr), RAMP_ERROR_INVALID_ARGUMENT,
                {"launch"});
}

TEST(Registration, ProfilingFailures) {
  Foreign f;
  const Handle k(f.create());
  f.broken_config = 2;
  ASSERT_EQ(ramp_kernel_profile(k, &f.options), RAMP_OK);
  ASSERT_NE(ramp_kernel_warning(k, 0), nullptr);
  expect_has(ramp_kernel_warning(k, 0), {"'m16'", "measure returned 700", "will not be chosen"});
  EXPECT_EQ(ramp_kernel_warning(k, 1), nullptr);
  ASSERT_EQ(f.log.size(), 1U);
  EXPECT_EQ(f.log[0], ramp_kernel_warning(k, 0));
  ASSERT_EQ(ramp_kernel_fit(k, nullptr), RAMP_OK) << ramp_last_error();
  std::array<float, kConfigs> us{};
  ASSERT_EQ(ramp_kernel_predict(k, kHot.data(), 8, us.data(), kConfigs), RAMP_OK);
  EXPECT_TRUE(std::isinf(us[2]));

  // Through launch and the library's clock, with a launch that fails and one that does not.
  Foreign g;
  const Handle timed(g.create());
  g.broken_config = 0;
  g.options.measure = nullptr;
  g.options.repeats = 2;
  g.options.warmup = -1;
  g.options.keep_hopeless = 1;
  int syncs = 0;
  g.options.user = &syncs;
  g.options.synchronize = [](void* user) {
    ++*static_cast<int*>(user);
    const timespec nap = {0, 2000};
    return nanosleep(&nap, nullptr);
  };
  ASSERT_EQ(ramp_kernel_profile(timed, &g.options), RAMP_OK) << ramp_last_error();
  EXPECT_EQ(g.launches, 1 + 10 * (kConfigs - 1) * 2);
  EXPECT_EQ(syncs, 10 * (kConfigs - 1) * 2);
  expect_has(ramp_kernel_warning(timed, 0), {"'m4'", "launch returned 700"});

  // prepare ends the profile; what was measured stays and resume goes on from there.
  Foreign h;
  const Handle cut(h.create());
  static int prepared;
  prepared = 0;
  h.options.prepare = [](void*, const ramp_workload* point, void** call) {
    *call = const_cast<ramp_workload*>(point);
    return ++prepared == 4 ? 9 : 0;
  };
  expect_status(ramp_kernel_profile(cut, &h.options), RAMP_ERROR_DEVICE, {"prepare", "9"});
  const int before = h.measurements;
  h.options.resume = 1;
  ASSERT_EQ(ramp_kernel_profile(cut, &h.options), RAMP_OK);
  Foreign whole;
  const Handle once(whole.create());
  ASSERT_EQ(ramp_kernel_profile(once, &whole.options), RAMP_OK);
  EXPECT_EQ(h.measurements, whole.measurements);
  EXPECT_LT(before, h.measurements);
}

}  // namespace
}  // namespace ramp::core
