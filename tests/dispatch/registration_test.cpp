// The C ABI of the dispatcher and its C++ wrapper: registering somebody else's kernel with every wrong input,
// profiling it under a fake clock, files, choices, launches and their errors.
#include <fmt/format.h>

#include <array>
#include <cstring>
#include <thread>

#include "base/file.hpp"
#include "ramp/dispatch.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

constexpr int32_t kConfigs = 6;

// A foreign kernel of six configs whose time follows the synthetic law on a clock of its own.
struct Foreign {
  Foreign() {
    for (int32_t c = 0; c < kConfigs; ++c) {
      names.push_back(fmt::format("m{}", 4 << c));
      extras.push_back({static_cast<double>(c)});
    }
    for (size_t c = 0; c < kConfigs; ++c) {
      configs.push_back(ramp_kernel_config_init());
      configs[c].name = names[c].c_str();
      configs[c].tile_m = 4 << c;
      configs[c].tile_n = 128;
      configs[c].extra = extras[c].data();
    }
    desc = ramp_kernel_desc_init();
    desc.name = "foreign";
    desc.configs = configs.data();
    desc.num_configs = kConfigs;
    desc.extra_columns = &column;
    desc.num_extra_columns = 1;
    desc.num_experts = 8;
    desc.top_k = 2;
    desc.hidden = 256;
    desc.intermediate = 128;
    desc.launch = [](void* user, int32_t config, void* call) {
      auto& self = *static_cast<Foreign*>(user);
      ++self.launches;
      self.last_config = config;
      self.last_call = call;
      return config == self.broken_config ? self.code : 0;
    };
    desc.user = this;
    desc.log = [](void* user, ramp_log_level, const char* line) {
      static_cast<Foreign*>(user)->log.emplace_back(line);
    };
    desc.log_user = this;
    machine = ramp_machine_init();
    machine.device_name = "toy machine";
    machine.sm_count = 4;
    desc.machine = &machine;

    options = ramp_profile_options_init();
    for (const WorkPoint& p : toy_points()) {
      points.push_back(p);
      workloads.push_back(ramp_workload_init());
    }
    for (size_t i = 0; i < points.size(); ++i) {
      workloads[i].name = points[i].name.c_str();
      workloads[i].tokens = points[i].tokens;
      workloads[i].histogram = points[i].histogram.data();
    }
    options.workloads = workloads.data();
    options.num_workloads = static_cast<int64_t>(workloads.size());
    options.measure = [](void* user, int32_t config, void* call, double* us) {
      auto& self = *static_cast<Foreign*>(user);
      ++self.measurements;
      const auto& w = *static_cast<const ramp_workload*>(call);
      *us = self.time(config, {w.histogram, 8});
      return config == self.broken_config ? self.code : 0;
    };
    options.user = this;
  }
  [[nodiscard]] double time(int32_t config, std::span<const int32_t> h) const {
    KernelConfig k;
    k.tile_m = configs[static_cast<size_t>(config)].tile_m;
    return synthetic_us(k, h);
  }
  ramp_kernel* create() {
    ramp_kernel* k = nullptr;
    EXPECT_EQ(ramp_kernel_create(&desc, &k), RAMP_OK) << ramp_last_error();
    return k;
  }

  std::vector<std::string> names;
  std::vector<std::vector<double>> extras;
  std::vector<ramp_kernel_config> configs;
  const char* column = "flavour";
  ramp_machine machine;
  ramp_kernel_desc desc;
  std::vector<WorkPoint> points;
  std::vector<ramp_workload> workloads;
  ramp_profile_options options;
  std::vector<std::string> log;
  int launches = 0, measurements = 0, code = 700;
  int32_t broken_config = -1, last_config = -1;
  void* last_call = nullptr;
};

struct Handle {
  explicit Handle(ramp_kernel* k) : kernel(k) {}
  ~Handle() { ramp_kernel_destroy(kernel); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator ramp_kernel*() const { return kernel; }  // NOLINT(google-explicit-constructor)
  ramp_kernel* kernel;
};

void expect_status(ramp_status got, ramp_status expected, std::initializer_list<const char*> parts) {
  EXPECT_EQ(got, expected) << ramp_last_error();
  expect_has(ramp_last_error(), parts);
}

const std::vector<int32_t> kHot = {200, 100, 100, 112, 0, 0, 0, 0};
const std::vector<int32_t> kCold = {1, 1, 0, 0, 0, 0, 0, 0};

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

TEST(CppWrapper, ProfilesFitsDispatchesAndCarriesExceptions) {
  const auto points = toy_points();
  ramp::KernelDesc desc{.name = "toy",
                        .configs = {},
                        .extra_columns = {"x"},
                        .num_experts = 8,
                        .top_k = 2,
                        .hidden = 256,
                        .intermediate = 128};
  for (const int32_t m : {8, 16, 32, 64})
    desc.configs.push_back({.name = fmt::format("m{}", m), .tile_m = m, .tile_n = 128, .extra = {1.0}});
  bool explode = false;
  desc.launch = [&](int32_t config, void* call) {
    if (explode) throw std::runtime_error("boom");
    *static_cast<int32_t*>(call) = config;
    return 0;
  };
  auto bad = desc;
  bad.configs[0].extra.clear();
  EXPECT_THROW(ramp::Kernel{bad}, ramp::Error);
  ramp::Kernel kernel(desc);
  std::vector<ramp::Workload> workloads;
  for (const WorkPoint& p : points) workloads.push_back({p.name, p.tokens, p.histogram});
  const std::vector<int32_t>* now = nullptr;
  kernel.profile({.workloads = workloads,
                  .prepare =
                      [&](const ramp_workload& w) {
                        for (const WorkPoint& p : points)
                          if (p.name == w.name) now = &p.histogram;
                        return const_cast<std::vector<int32_t>*>(now);
                      },
                  .measure =
                      [&](int32_t config, void* call) {
                        EXPECT_EQ(call, now);
                        if (config == 3) throw std::runtime_error("does not run");
                        KernelConfig k;
                        k.tile_m = 8 << config;
                        return synthetic_us(k, *now);
                      }});
  ASSERT_EQ(kernel.warnings().size(), 1U);
  expect_has(kernel.warnings()[0], {"'m64'", "measure"});
  kernel.fit();
  int32_t ran = -1;
  const int32_t chosen = kernel.dispatch(points[0].histogram, &ran);
  EXPECT_EQ(ran, chosen);
  EXPECT_EQ(chosen, kernel.choose(points[0].histogram));
  EXPECT_TRUE(std::isinf(kernel.predict(points[0].histogram)[3]));
  EXPECT_STREQ(kernel.config_name(1), "m16");
  TempDir dir;
  kernel.save_fit(dir.file("f.json"));
  kernel.save_profile(dir.file("p.json"));
  ramp::Kernel copy(desc);
  EXPECT_TRUE(copy.load_fit(dir.file("f.json")));
  EXPECT_TRUE(copy.load_profile(dir.file("p.json")));
  EXPECT_EQ(copy.choose(points[4].histogram), kernel.choose(points[4].histogram));
  EXPECT_THROW(copy.load_fit(dir.file("p.json")), ramp::Error);

  explode = true;
  EXPECT_THROW(kernel.dispatch(points[0].histogram, &ran), std::runtime_error);
  EXPECT_THROW(
      kernel.profile({.workloads = workloads,
                      .prepare = [](const ramp_workload&) -> void* { throw std::logic_error("no inputs"); }}),
      std::logic_error);
  EXPECT_THROW(kernel.profile({.workloads = {{"x", 1, {1}}}}), ramp::Error);
  EXPECT_EQ(kernel.info().fitted, 1);
}

}  // namespace
}  // namespace ramp::core
