// The dispatcher's C ABI: registration, choosing, launching, fits and files. Profiling is in
// dispatch_profile.cpp, ramp's own configs beside somebody's in dispatch_block.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "abi/dispatch_handles.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "dispatch/config_columns.hpp"

namespace ramp::core {

void log_warnings(const ramp_kernel& k) {
  for (const std::string& w : k.kernel->warnings()) k.log(RAMP_LOG_WARNING, w);
}

namespace {

std::string text_or(const char* text, std::string fallback) {
  return text != nullptr ? std::string(text) : std::move(fallback);
}

const char* check_path(const char* path) {
  if (path == nullptr || *path == '\0')
    fail_argument("path", path == nullptr ? "NULL" : "an empty string", "a file name");
  return path;
}

// The size of the caller's elements, whatever their age.
uint64_t element_bytes(const void* array) noexcept {
  uint64_t stride = 0;
  std::memcpy(&stride, array, sizeof stride);
  return stride;
}

}  // namespace

ConfigTable read_configs(const ramp_kernel_desc& desc) {
  constexpr int32_t kMost = 1 << 16;
  if (desc.configs == nullptr || desc.num_configs < 1 || desc.num_configs > kMost) {
    fail_argument("configs", desc.configs == nullptr ? "NULL" : fmt::format("{} configs", desc.num_configs),
                  fmt::format("an array of 1 to {} configs", kMost));
  }
  if (desc.num_extra_columns < 0 || desc.num_extra_columns > 256)
    fail_argument("num_extra_columns", fmt::format("{}", desc.num_extra_columns), "0 to 256");
  if (desc.num_extra_columns > 0 && desc.extra_columns == nullptr)
    fail_argument("extra_columns", "NULL", "an array of num_extra_columns names");
  ConfigTable t;
  for (int32_t x = 0; x < desc.num_extra_columns; ++x) {
    if (desc.extra_columns[x] == nullptr)
      fail_argument(fmt::format("extra_columns[{}]", x), "NULL", "a name");
    t.extra_columns.emplace_back(desc.extra_columns[x]);
  }
  std::array<bool, kConfigColumns.size()> set{};  // per column: some config sets it
  const uint64_t stride = element_bytes(desc.configs);
  (void)read_element(desc.configs, 0, "ramp_kernel_config");  // refuses an absurd stride
  for (int32_t i = 0; i < desc.num_configs; ++i) {
    const auto* raw = reinterpret_cast<const std::byte*>(desc.configs) + static_cast<uint64_t>(i) * stride;
    if (element_bytes(raw) != stride)
      fail_argument(fmt::format("configs[{}].struct_size", i), fmt::format("{}", element_bytes(raw)),
                    fmt::format("the first element's {}", stride));
    const auto c = read_element(desc.configs, static_cast<size_t>(i), "ramp_kernel_config");
    if (c.name == nullptr) fail_argument(fmt::format("configs[{}].name", i), "NULL", "a name");
    t.names.emplace_back(c.name);
    const std::array<int32_t, kConfigColumns.size()> given = {c.tile_m, c.tile_n,  c.tile_k,  c.warps_n,
                                                              c.stages, c.threads, c.split_k, c.group_m};
    for (size_t column = 0; column < given.size(); ++column) set[column] = set[column] || given[column] != 0;
    KernelConfig k;
    k.tile_m = c.tile_m;
    k.tile_n = c.tile_n;
    k.tile_k = c.tile_k == 0 ? 128 : c.tile_k;
    k.warps_n = c.warps_n;
    k.stages = c.stages == 0 ? 1 : c.stages;
    k.threads = c.threads;
    k.split_k = c.split_k == 0 ? 1 : c.split_k;
    k.group_m = c.group_m;
    if (k.group_m > 0) k.order = TaskOrder::kGrouped;
    t.configs.push_back(k);
    if (desc.num_extra_columns > 0 && c.extra == nullptr)
      fail_argument(fmt::format("configs[{}].extra", i), "NULL",
                    fmt::format("{} numbers", desc.num_extra_columns));
    for (int32_t x = 0; x < desc.num_extra_columns; ++x) t.extra.push_back(c.extra[x]);
  }
  // A column that nobody sets is one that the kernel does not have.
  t.known_columns = {"tile_m", "tile_n"};
  for (size_t i = 2; i < kConfigColumns.size(); ++i) {
    if (set[i]) t.known_columns.emplace_back(kConfigColumns[i].name);
  }
  return t;
}

void read_machine(const ramp_machine* user, KernelDescription& k) {
  k.hardware.name = "cpu";
  if (user == nullptr) {
    k.hardware.sm_count = available_cores();
    k.machine.device = cpu_model_name();
  } else {
    const auto m = read_sized(user, "ramp_machine");
    if (m.hardware != nullptr) k.hardware = find_hardware(m.hardware);
    if (m.sm_count != 0) k.hardware.sm_count = m.sm_count;
    if (!(m.dram_gbps >= 0) || !(m.sm_clock_mhz >= 0) || !(m.memory_clock_mhz >= 0) ||
        std::isinf(m.dram_gbps + m.sm_clock_mhz + m.memory_clock_mhz)) {
      fail_argument("machine",
                    fmt::format("dram_gbps {}, sm_clock_mhz {}, memory_clock_mhz {}", m.dram_gbps,
                                m.sm_clock_mhz, m.memory_clock_mhz),
                    "finite numbers >= 0 (0 = not known)");
    }
    if (m.dram_gbps > 0) k.hardware.dram_gbps = m.dram_gbps;
    k.machine.device = text_or(m.device_name, {});
    k.machine.driver = text_or(m.driver, {});
    k.machine.cuda = text_or(m.cuda, {});
    k.machine.sm_clock_mhz = m.sm_clock_mhz;
    k.machine.memory_clock_mhz = m.memory_clock_mhz;
  }
  k.machine.sm_count = k.hardware.sm_count;
}

namespace {

KernelDescription read_description(const ramp_kernel_desc& desc) {
  KernelDescription k;
  if (desc.name == nullptr) fail_argument("name", "NULL", "the kernel's name");
  k.name = desc.name;
  k.configs = read_configs(desc);
  k.model.experts = desc.num_experts;
  k.model.top_k = desc.top_k;
  k.model.hidden = desc.hidden;
  k.model.intermediate = desc.intermediate;
  k.model.name = text_or(desc.model_name, fmt::format("{},{},{},{}", desc.num_experts, desc.top_k,
                                                      desc.hidden, desc.intermediate));
  if (desc.default_config < 0 || desc.default_config > desc.num_configs)
    fail_argument("default_config", fmt::format("{}", desc.default_config),
                  fmt::format("0 (none) or 1 to {} (config number + 1)", desc.num_configs));
  k.default_config = desc.default_config - 1;
  if (desc.reserved != 0) fail_argument("reserved", fmt::format("{}", desc.reserved), "0");
  read_machine(desc.machine, k);
  return k;
}

std::span<const int32_t> check_histogram(const ramp_kernel& k, const int32_t* histogram,
                                         int64_t num_experts) {
  const int64_t experts = k.kernel->description().model.experts;
  if (histogram == nullptr) fail_argument("histogram", "NULL", "a count per expert");
  if (num_experts != experts)
    fail_argument("num_experts", fmt::format("{}", num_experts), fmt::format("the kernel's {}", experts));
  const std::span<const int32_t> h(histogram, static_cast<size_t>(experts));
  int32_t signs = 0;  // one pass without branches
  for (const int32_t c : h) signs |= c;
  if (signs < 0) fail_argument("histogram", "a negative count", "counts >= 0");
  return h;
}

void check_launches(const ramp_kernel& k) {
  if (!launches(k))
    fail_argument("kernel", "one registered without a launch callback", "one with launch set",
                  "set ramp_kernel_desc.launch, or use ramp_kernel_choose");
}

void launch_or_fail(const ramp_kernel& k, int32_t config, void* call) {
  const int code = launch_config(k, config, call);
  if (code == 0) return;
  const KernelDescription& d = k.kernel->description();
  fail(RAMP_ERROR_DEVICE, fmt::format("kernel '{}': launch of config '{}' returned {}, expected 0", d.name,
                                      d.configs.names[static_cast<size_t>(config)], code));
}

}  // namespace
}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): the border file of the C ABI

ramp_status ramp_kernel_create(const ramp_kernel_desc* desc, ramp_kernel** out) {
  return border([&] {
    check_out(out, "out");
    const auto d = read_sized(desc, "ramp_kernel_desc");
    auto handle = std::make_unique<ramp_kernel>();
    handle->kernel = std::make_unique<RegisteredKernel>(read_description(d));
    handle->launch = d.launch;
    handle->user = d.user;
    handle->log = {d.log, d.log_user};
    *out = handle.release();
  });
}

void ramp_kernel_destroy(ramp_kernel* kernel) {
  if (kernel != nullptr) destroy_dispatch_handle(kernel);
}

ramp_status ramp_kernel_get_info(const ramp_kernel* kernel, ramp_kernel_info* out) {
  return border([&] {
    const RegisteredKernel& k = *kernel_of(kernel).kernel;
    ramp_kernel_info info = ramp_kernel_info_init();
    info.num_configs = static_cast<int32_t>(k.description().configs.size());
    info.default_config = k.description().default_config + 1;
    info.fitted = k.fitted() ? 1 : 0;
    info.num_experts = k.description().model.experts;
    if (const Dataset* d = k.profile()) {
      info.profile_points = static_cast<int64_t>(d->points.size());
      info.profile_timings =
          std::count_if(d->us.begin(), d->us.end(), [](double us) { return !std::isnan(us); });
    }
    info.cost_model = k.dispatcher().predictor().cost_model().data();  // of a string literal
    write_sized(out, info, "ramp_kernel_info");
  });
}

const char* ramp_kernel_config_name(const ramp_kernel* kernel, int32_t index) {
  const char* name = nullptr;
  (void)border([&] {
    const std::vector<std::string>& names = kernel_of(kernel).kernel->description().configs.names;
    if (index >= 0 && static_cast<size_t>(index) < names.size())
      name = names[static_cast<size_t>(index)].c_str();
  });
  return name;
}

const char* ramp_kernel_warning(const ramp_kernel* kernel, int32_t index) {
  const char* line = nullptr;
  (void)border([&] {
    const std::vector<std::string>& warnings = kernel_of(kernel).kernel->warnings();
    if (index >= 0 && static_cast<size_t>(index) < warnings.size())
      line = warnings[static_cast<size_t>(index)].c_str();
  });
  return line;
}

ramp_status ramp_kernel_choose(const ramp_kernel* kernel, const int32_t* histogram, int64_t num_experts,
                               int32_t* config) {
  return border([&] {
    const ramp_kernel& k = kernel_of(kernel);
    check_out(config, "config");
    const auto h = check_histogram(k, histogram, num_experts);
    *config = static_cast<int32_t>(k.kernel->dispatcher().choose(h));
  });
}

ramp_status ramp_kernel_dispatch(const ramp_kernel* kernel, const int32_t* histogram, int64_t num_experts,
                                 void* call, int32_t* config) {
  return border([&] {
    const ramp_kernel& k = kernel_of(kernel);
    const auto h = check_histogram(k, histogram, num_experts);
    check_launches(k);
    const auto chosen = static_cast<int32_t>(k.kernel->dispatcher().choose(h));
    if (config != nullptr) *config = chosen;
    launch_or_fail(k, chosen, call);
  });
}

ramp_status ramp_kernel_launch(const ramp_kernel* kernel, int32_t config, void* call) {
  return border([&] {
    const ramp_kernel& k = kernel_of(kernel);
    const auto configs = static_cast<int32_t>(k.kernel->dispatcher().configs());
    if (config < 0 || config >= configs)
      fail_argument("config", fmt::format("{}", config), fmt::format("0 to {}", configs - 1));
    check_launches(k);
    launch_or_fail(k, config, call);
  });
}

ramp_status ramp_kernel_predict(const ramp_kernel* kernel, const int32_t* histogram, int64_t num_experts,
                                float* us, int32_t num_configs) {
  return border([&] {
    const ramp_kernel& k = kernel_of(kernel);
    check_out(us, "us");
    const auto h = check_histogram(k, histogram, num_experts);
    const size_t configs = k.kernel->dispatcher().configs();
    if (num_configs < 0 || static_cast<size_t>(num_configs) != configs)
      fail_argument("num_configs", fmt::format("{}", num_configs), fmt::format("the kernel's {}", configs));
    k.kernel->dispatcher().predict(h, {us, configs});
  });
}

ramp_status ramp_kernel_fit(ramp_kernel* kernel, const char* cost_model) {
  return border([&] {
    ramp_kernel& k = kernel_of(kernel);
    k.kernel->fit(cost_model != nullptr ? std::string_view(cost_model) : kDefaultCostModel);
    log_warnings(k);
  });
}

ramp_status ramp_kernel_save_profile(const ramp_kernel* kernel, const char* path) {
  return border([&] { kernel_of(kernel).kernel->save_profile(check_path(path)); });
}

ramp_status ramp_kernel_save_fit(const ramp_kernel* kernel, const char* path) {
  return border([&] { kernel_of(kernel).kernel->save_fit(check_path(path)); });
}

ramp_status ramp_kernel_load_profile(ramp_kernel* kernel, const char* path, int32_t* used) {
  return border([&] {
    ramp_kernel& k = kernel_of(kernel);
    const bool taken = k.kernel->load_profile(check_path(path));
    if (used != nullptr) *used = taken ? 1 : 0;
    log_warnings(k);
  });
}

ramp_status ramp_kernel_load_fit(ramp_kernel* kernel, const char* path, int32_t* used) {
  return border([&] {
    ramp_kernel& k = kernel_of(kernel);
    const bool taken = k.kernel->load_fit(check_path(path));
    if (used != nullptr) *used = taken ? 1 : 0;
    log_warnings(k);
  });
}
