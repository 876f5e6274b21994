// The C ABI of the dispatcher: registering a kernel, profiling it under a fake clock, files, choices,
// launches.
#include <array>
#include <cstring>
#include <thread>

#include "base/file.hpp"
#include "foreign.hpp"

namespace ramp::core {
namespace {

TEST(Registration, ProfileFitDispatch) {
  Foreign f;
  const Handle k(f.create());
  ramp_kernel_info info = ramp_kernel_info_init();
  ASSERT_EQ(ramp_kernel_get_info(k, &info), RAMP_OK);
  EXPECT_EQ(info.num_configs, kConfigs);
  EXPECT_EQ(info.fitted, 0);
  EXPECT_EQ(info.num_experts, 8);
  EXPECT_EQ(info.profile_points, 0);
  EXPECT_STREQ(info.cost_model, "analytic");
  EXPECT_STREQ(ramp_kernel_config_name(k, 2), "m16");
  EXPECT_EQ(ramp_kernel_config_name(k, kConfigs), nullptr);
  EXPECT_EQ(ramp_kernel_config_name(k, -1), nullptr);

  ASSERT_EQ(ramp_kernel_profile(k, &f.options), RAMP_OK) << ramp_last_error();
  ASSERT_EQ(ramp_kernel_fit(k, nullptr), RAMP_OK) << ramp_last_error();
  ASSERT_EQ(ramp_kernel_get_info(k, &info), RAMP_OK);
  EXPECT_EQ(info.fitted, 1);
  EXPECT_EQ(info.profile_points, 10);
  EXPECT_GE(info.profile_timings, 30);
  EXPECT_STREQ(info.cost_model, "wave");

  // At the profile's own points the choice is within the noise margin and the fit's error of the best one; in
  // any case it must beat the worst static choice clearly. Bars are the measured data's business.
  for (const WorkPoint& p : f.points) {
    int32_t config = -1;
    int call = 0;
    ASSERT_EQ(ramp_kernel_dispatch(k, p.histogram.data(), 8, &call, &config), RAMP_OK);
    EXPECT_EQ(f.last_config, config);
    EXPECT_EQ(f.last_call, &call);
    double best = HUGE_VAL;
    for (int32_t c = 0; c < kConfigs; ++c) best = std::min(best, f.time(c, p.histogram));
    EXPECT_LE(f.time(config, p.histogram), 1.12 * best) << p.name;
    int32_t chosen = -1;
    ASSERT_EQ(ramp_kernel_choose(k, p.histogram.data(), 8, &chosen), RAMP_OK);
    EXPECT_EQ(chosen, config);
  }
  EXPECT_EQ(f.launches, 10);
  std::array<float, kConfigs> us{};
  ASSERT_EQ(ramp_kernel_predict(k, kHot.data(), 8, us.data(), kConfigs), RAMP_OK);
  for (const float v : us) EXPECT_GT(v, 0);
}

TEST(Registration, ADeclaredDefaultIsKeptUntilAFitSpeaks) {
  Foreign f;
  f.desc.default_config = 4;  // config 3
  const Handle k(f.create());
  int32_t config = -1;
  for (const auto& h : {kHot, kCold}) {
    ASSERT_EQ(ramp_kernel_choose(k, h.data(), 8, &config), RAMP_OK);
    EXPECT_EQ(config, 3);
  }
  ASSERT_EQ(ramp_kernel_profile(k, &f.options), RAMP_OK);
  ASSERT_EQ(ramp_kernel_choose(k, kCold.data(), 8, &config), RAMP_OK);
  EXPECT_EQ(config, 3);  // a profile alone changes nothing
  ASSERT_EQ(ramp_kernel_fit(k, nullptr), RAMP_OK);
  ASSERT_EQ(ramp_kernel_choose(k, kCold.data(), 8, &config), RAMP_OK);
  EXPECT_NE(config, 3);
  EXPECT_LT(f.time(config, kCold), f.time(3, kCold));
  ramp_kernel_info info = ramp_kernel_info_init();
  ASSERT_EQ(ramp_kernel_get_info(k, &info), RAMP_OK);
  EXPECT_EQ(info.default_config, 4);
}

TEST(Registration, FilesRoundTripAndForeignOnesAreNotUsed) {
  Foreign f;
  const Handle k(f.create());
  TempDir dir;
  const std::string profile = dir.file("p.json"), fit = dir.file("f.json");
  expect_status(ramp_kernel_save_profile(k, profile.c_str()), RAMP_ERROR_INVALID_ARGUMENT,
                {"profile", "none"});
  expect_status(ramp_kernel_save_fit(k, fit.c_str()), RAMP_ERROR_INVALID_ARGUMENT, {"fit", "none"});
  expect_status(ramp_kernel_fit(k, nullptr), RAMP_ERROR_INVALID_ARGUMENT, {"profile", "none"});
  ASSERT_EQ(ramp_kernel_profile(k, &f.options), RAMP_OK);
  expect_status(ramp_kernel_fit(k, "magic"), RAMP_ERROR_INVALID_ARGUMENT, {"'magic'", "wave"});
  ASSERT_EQ(ramp_kernel_fit(k, nullptr), RAMP_OK);
  ASSERT_EQ(ramp_kernel_save_profile(k, profile.c_str()), RAMP_OK);
  ASSERT_EQ(ramp_kernel_save_fit(k, fit.c_str()), RAMP_OK);

  Foreign g;
  const Handle other(g.create());
  int32_t used = -1;
  ASSERT_EQ(ramp_kernel_load_fit(other, fit.c_str(), &used), RAMP_OK);
  EXPECT_EQ(used, 1);
  EXPECT_EQ(ramp_kernel_warning(other, 0), nullptr);
  ASSERT_EQ(ramp_kernel_load_profile(other, profile.c_str(), &used), RAMP_OK);
  EXPECT_EQ(used, 1);
  for (const WorkPoint& p : f.points) {
    int32_t a = -1, b = -2;
    ASSERT_EQ(ramp_kernel_choose(k, p.histogram.data(), 8, &a), RAMP_OK);
    ASSERT_EQ(ramp_kernel_choose(other, p.histogram.data(), 8, &b), RAMP_OK);
    EXPECT_EQ(a, b);
  }
  // What was loaded and fitted again is what was fitted before.
  ASSERT_EQ(ramp_kernel_fit(other, nullptr), RAMP_OK);
  const std::string again = dir.file("again.json");
  ASSERT_EQ(ramp_kernel_save_fit(other, again.c_str()), RAMP_OK);
  EXPECT_EQ(read_text(again), read_text(fit));

  const auto refused = [&](const std::function<void(Foreign&)>& change, const char* what) {
    Foreign x;
    change(x);
    const Handle kernel(x.create());
    for (const bool is_fit : {true, false}) {
      int32_t taken = -1;
      ASSERT_EQ(is_fit ? ramp_kernel_load_fit(kernel, fit.c_str(), &taken)
                       : ramp_kernel_load_profile(kernel, profile.c_str(), &taken),
                RAMP_OK)
          << ramp_last_error();
      EXPECT_EQ(taken, 0) << what;
      ASSERT_NE(ramp_kernel_warning(kernel, 0), nullptr) << what;
      expect_has(ramp_kernel_warning(kernel, 0), {is_fit ? "f.json" : "p.json", what, "not used", "to mend"});
      ramp_kernel_info info = ramp_kernel_info_init();
      ASSERT_EQ(ramp_kernel_get_info(kernel, &info), RAMP_OK);
      EXPECT_EQ(info.fitted, 0);
      EXPECT_EQ(info.profile_points, 0);
      EXPECT_STREQ(info.cost_model, "analytic");
    }
  };
  refused([](Foreign& x) { x.machine.device_name = "another machine"; }, "another machine");
  refused([](Foreign& x) { x.machine.sm_count = 5; }, "SM count");
  refused([](Foreign& x) { x.desc.name = "stranger"; }, "stranger");
  refused([](Foreign& x) { x.desc.hidden = 512; }, "shape");
  refused([](Foreign& x) { x.desc.num_configs = 5; }, "6 configs");
  refused([](Foreign& x) { x.configs[1].tile_m = 9; }, "config 1");
  refused([](Foreign& x) { x.configs[1].name = "renamed"; }, "renamed");
  refused([](Foreign& x) { x.extras[3][0] = 17; }, "flavour");

  expect_status(ramp_kernel_load_fit(other, dir.file("none").c_str(), &used), RAMP_ERROR_IO, {"none"});
  expect_status(ramp_kernel_load_fit(other, profile.c_str(), nullptr), RAMP_ERROR_BAD_FILE, {"schema"});
  expect_status(ramp_kernel_load_profile(other, fit.c_str(), nullptr), RAMP_ERROR_BAD_FILE, {"schema"});
  expect_status(ramp_kernel_load_fit(other, nullptr, nullptr), RAMP_ERROR_INVALID_ARGUMENT, {"path"});
  expect_status(ramp_kernel_save_fit(other, ""), RAMP_ERROR_INVALID_ARGUMENT, {"path"});
  expect_status(ramp_kernel_save_fit(other, (dir.path() + "/no/such/f.json").c_str()), RAMP_ERROR_IO,
                {"f.json"});
}

TEST(Registration, TheStateMachineByHand) {
  Foreign f;
  const Handle k(f.create());
  ramp_profiler* p = nullptr;
  ASSERT_EQ(ramp_profiler_create(k, &f.options, &p), RAMP_OK);
  expect_status(ramp_profiler_finish(p, k), RAMP_ERROR_INVALID_ARGUMENT, {"no complete point"});
  ramp_profile_task task = ramp_profile_task_init();
  size_t runs = 0;
  for (;; ++runs) {
    ASSERT_EQ(ramp_profiler_next(p, &task), RAMP_OK);
    if (task.done != 0) break;
    ASSERT_EQ(task.name, f.points[static_cast<size_t>(task.workload)].name);
    ASSERT_EQ(std::memcmp(task.histogram, f.workloads[static_cast<size_t>(task.workload)].histogram, 32), 0);
    if (task.config == 5) {
      ASSERT_EQ(ramp_profiler_report_failure(p, "out of registers\n"), RAMP_OK);
    } else {
      ASSERT_EQ(ramp_profiler_report(p, f.time(task.config, {task.histogram, 8})), RAMP_OK);
    }
  }
  EXPECT_EQ(task.points_done, 10);
  EXPECT_EQ(task.config, 0);
  EXPECT_GT(runs, 100U);
  EXPECT_EQ(ramp_profiler_report(p, 1.0), RAMP_ERROR_INVALID_ARGUMENT);
  ASSERT_EQ(ramp_profiler_finish(p, k), RAMP_OK);
  expect_has(ramp_kernel_warning(k, 0), {"'m128'", "out of registers?"});
  ASSERT_EQ(ramp_kernel_fit(k, nullptr), RAMP_OK) << ramp_last_error();
  f.names[0] = "stranger";
  f.configs[0].name = f.names[0].c_str();
  const Handle other(f.create());
  expect_status(ramp_profiler_finish(p, other), RAMP_ERROR_INVALID_ARGUMENT, {"profiler was made for"});
  ramp_profiler_destroy(p);
}

TEST(Registration, DefaultWorkloads) {
  Foreign f;
  const Handle k(f.create());
  f.options.num_workloads = 0;
  f.options.max_tokens = 100;
  ASSERT_EQ(ramp_kernel_profile(k, &f.options), RAMP_OK) << ramp_last_error();
  ramp_kernel_info info = ramp_kernel_info_init();
  ASSERT_EQ(ramp_kernel_get_info(k, &info), RAMP_OK);
  EXPECT_EQ(info.profile_points, 12);
  ASSERT_EQ(ramp_kernel_fit(k, nullptr), RAMP_OK) << ramp_last_error();
}

TEST(Registration, ChooseAndDispatchNeitherAllocateNorRace) {
  Foreign f;
  static std::atomic<int> launched;
  launched = 0;
  f.desc.launch = [](void*, int32_t, void*) {
    ++launched;
    return 0;
  };
  const Handle k(f.create());
  ASSERT_EQ(ramp_kernel_profile(k, &f.options), RAMP_OK);
  ASSERT_EQ(ramp_kernel_fit(k, nullptr), RAMP_OK);
  std::vector<int32_t> expected;
  for (const WorkPoint& p : f.points) {
    expected.push_back(-1);
    ASSERT_EQ(ramp_kernel_choose(k, p.histogram.data(), 8, &expected.back()), RAMP_OK);
  }
  const auto work = [&] {
    int wrong = 0;
    for (int round = 0; round < 50; ++round) {
      for (size_t i = 0; i < f.points.size(); ++i) {
        int32_t config = -1;
        wrong += ramp_kernel_dispatch(k, f.points[i].histogram.data(), 8, nullptr, &config) != RAMP_OK;
        wrong += config != expected[i];
      }
    }
    return wrong;
  };
  const size_t before = count_allocations();
  const int wrong = work();
  EXPECT_EQ(count_allocations(), before);
  EXPECT_EQ(wrong, 0);
  std::vector<std::thread> threads;
  std::array<int, 4> errors{};
  for (int& e : errors) threads.emplace_back([&] { e = work(); });
  for (std::thread& t : threads) t.join();
  for (const int e : errors) EXPECT_EQ(e, 0);
  EXPECT_EQ(launched, 5 * 50 * 10);
}

}  // namespace
}  // namespace ramp::core
