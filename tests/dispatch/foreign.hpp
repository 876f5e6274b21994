// Somebody else's kernel for the tests of its registration: a table of configs, a toy machine and a synthetic
// law of time on a clock of its own.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "ramp/dispatch.hpp"
#include "support.hpp"

namespace ramp::core {

inline constexpr int32_t kConfigs = 6;

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

inline void expect_status(ramp_status got, ramp_status expected, std::initializer_list<const char*> parts) {
  EXPECT_EQ(got, expected) << ramp_last_error();
  expect_has(ramp_last_error(), parts);
}

inline const std::vector<int32_t> kHot = {200, 100, 100, 112, 0, 0, 0, 0};
inline const std::vector<int32_t> kCold = {1, 1, 0, 0, 0, 0, 0, 0};

}  // namespace ramp::core
