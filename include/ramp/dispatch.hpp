// The dispatcher for C++20: RAII, exceptions and callables over the C ABI of dispatch.h. Header only.
//
//   ramp::Kernel kernel({.name = "mine", .configs = {{.name = "m16", .tile_m = 16, .tile_n = 128}, ...},
//                        .num_experts = E, .top_k = k, .hidden = H, .intermediate = I,
//                        .launch = [&](int32_t config, void* call) { ...; return 0; }});
//   kernel.profile({.prepare = [&](const ramp_workload& w) { ...; return &my_arguments; }});
//   kernel.fit();
//   kernel.dispatch(histogram, &my_arguments);   // every step
//
// ramp::Kernel(context, weights, {...}) registers a kernel of yours beside ramp's own configs of the expert
// block (ramp_block_kernel_create); `call` is then a ramp_block_call*.
//
// Everything else (concurrency, files, what is copied) is as in dispatch.h. Callables may throw: the
// exception comes out of the call that ran them; while profiling, a launch or measure that throws counts as a
// config that failed, unless it throws through prepare.
#ifndef RAMP_DISPATCH_HPP_
#define RAMP_DISPATCH_HPP_

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "ramp/dispatch.h"
#include "ramp/ramp.hpp"

namespace ramp {

// See ramp_kernel_config.
struct KernelConfig {
  std::string name;
  int32_t tile_m = 0, tile_n = 0;
  int32_t tile_k = 0, warps_n = 0, stages = 0, threads = 0, split_k = 0, group_m = 0;
  std::vector<double> extra{};  // as many as KernelDesc::extra_columns
};

// See ramp_kernel_desc.
struct KernelDesc {
  std::string name;
  std::vector<KernelConfig> configs;
  std::vector<std::string> extra_columns{};
  int32_t default_config = -1;  // from 0; -1: none
  std::string model_name{};
  int64_t num_experts = 0, top_k = 0, hidden = 0, intermediate = 0;
  std::function<int(int32_t config, void* call)> launch{};
  const ramp_machine* machine = nullptr;
  ramp_log_fn log = nullptr;
  void* log_user = nullptr;
};

// A workload point that owns its histogram.
struct Workload {
  std::string name;
  int64_t tokens = 0;
  std::vector<int32_t> histogram;
};

// See ramp_profile_options.
struct ProfileOptions {
  std::vector<Workload> workloads{};  // empty: the default points
  int64_t max_tokens = 0;
  uint64_t seed = 0;
  int32_t warmup = 0, repeats = 0;
  double hopeless_ratio = 0;
  bool keep_hopeless = false, resume = false;
  std::function<void*(const ramp_workload&)> prepare{};
  std::function<double(int32_t config, void* call)> measure{};  // microseconds
  std::function<void()> synchronize{};
};

// A registered kernel (move-only).
class Kernel {
 public:
  explicit Kernel(KernelDesc desc) : launch_(std::make_unique<Launch>(std::move(desc.launch))) {
    create(desc, [](const ramp_kernel_desc& d, ramp_kernel** out) { return ramp_kernel_create(&d, out); });
  }
  // ramp's own configs for these weights, then desc's; the context must outlive the kernel. Of desc only
  // name, configs, top_k and launch must be set; its launch counts configs from 0 among its own.
  Kernel(Context& context, const Weights& weights, KernelDesc desc)
      : launch_(std::make_unique<Launch>(std::move(desc.launch))), block_(true) {
    create(desc, [&](const ramp_kernel_desc& d, ramp_kernel** out) {
      return ramp_block_kernel_create(context.get(), weights.get(), &d, out);
    });
  }

  // ---- every step; const, any number of threads
  [[nodiscard]] int32_t choose(std::span<const int32_t> histogram) const {
    int32_t config = 0;
    check(ramp_kernel_choose(get(), histogram.data(), static_cast<int64_t>(histogram.size()), &config));
    return config;
  }
  // Chooses and launches; returns the config.
  int32_t dispatch(std::span<const int32_t> histogram, void* call) const {
    Call c = wrapped(call);
    int32_t config = 0;
    const ramp_status status =
        ramp_kernel_dispatch(get(), histogram.data(), static_cast<int64_t>(histogram.size()), &c, &config);
    if (c.error) std::rethrow_exception(c.error);
    check(status);
    return config;
  }
  // Runs that config without choosing.
  void launch(int32_t config, void* call) const {
    Call c = wrapped(call);
    const ramp_status status = ramp_kernel_launch(get(), config, &c);
    if (c.error) std::rethrow_exception(c.error);
    check(status);
  }
  // Predicted microseconds per config.
  [[nodiscard]] std::vector<float> predict(std::span<const int32_t> histogram) const {
    std::vector<float> us(static_cast<size_t>(info().num_configs));
    check(ramp_kernel_predict(get(), histogram.data(), static_cast<int64_t>(histogram.size()), us.data(),
                              static_cast<int32_t>(us.size())));
    return us;
  }

  // ---- writers
  void profile(const ProfileOptions& options) {
    std::vector<ramp_workload> workloads;
    for (const Workload& w : options.workloads) {
      ramp_workload c = ramp_workload_init();
      c.name = w.name.empty() ? nullptr : w.name.c_str();
      c.tokens = w.tokens;
      if (static_cast<int64_t>(w.histogram.size()) != info().num_experts)
        throw Error(RAMP_ERROR_INVALID_ARGUMENT,
                    "workload '" + w.name + "': got " + std::to_string(w.histogram.size()) +
                        " counts, expected one per expert: " + std::to_string(info().num_experts));
      c.histogram = w.histogram.data();
      workloads.push_back(c);
    }
    Run run{*this, options, {}, nullptr};
    ramp_profile_options o = ramp_profile_options_init();
    o.workloads = workloads.data();
    o.num_workloads = static_cast<int64_t>(workloads.size());
    o.max_tokens = options.max_tokens;
    o.seed = options.seed;
    o.warmup = options.warmup;
    o.repeats = options.repeats;
    o.hopeless_ratio = options.hopeless_ratio;
    o.keep_hopeless = options.keep_hopeless ? 1 : 0;
    o.resume = options.resume ? 1 : 0;
    if (options.prepare || !block_) o.prepare = &Kernel::run_prepare;
    if (options.measure) o.measure = &Kernel::run_measure;
    if (options.synchronize) o.synchronize = &Kernel::run_synchronize;
    o.user = &run;
    const ramp_status status = ramp_kernel_profile(get(), &o);
    if (run.error) std::rethrow_exception(run.error);
    check(status);
  }
  void fit(const char* cost_model = nullptr) { check(ramp_kernel_fit(get(), cost_model)); }
  void save_profile(const std::string& path) const { check(ramp_kernel_save_profile(get(), path.c_str())); }
  void save_fit(const std::string& path) const { check(ramp_kernel_save_fit(get(), path.c_str())); }
  // False: the file belongs to another machine, kernel or library series; warnings() says which.
  bool load_profile(const std::string& path) {
    int32_t used = 0;
    check(ramp_kernel_load_profile(get(), path.c_str(), &used));
    return used != 0;
  }
  bool load_fit(const std::string& path) {
    int32_t used = 0;
    check(ramp_kernel_load_fit(get(), path.c_str(), &used));
    return used != 0;
  }

  // ---- getters
  [[nodiscard]] ramp_kernel_info info() const {
    ramp_kernel_info value = ramp_kernel_info_init();
    check(ramp_kernel_get_info(get(), &value));
    return value;
  }
  [[nodiscard]] const char* config_name(int32_t index) const noexcept {
    return ramp_kernel_config_name(get(), index);
  }
  [[nodiscard]] std::vector<std::string> warnings() const {
    std::vector<std::string> lines;
    for (int32_t i = 0; const char* line = ramp_kernel_warning(get(), i); ++i) lines.emplace_back(line);
    return lines;
  }
  [[nodiscard]] ramp_kernel* get() const noexcept { return handle_.get(); }

 private:
  using Launch = std::function<int(int32_t, void*)>;
  template <typename Make>
  void create(const KernelDesc& desc, const Make& make) {
    std::vector<ramp_kernel_config> configs;
    for (const KernelConfig& c : desc.configs) {
      if (c.extra.size() != desc.extra_columns.size())
        throw Error(
            RAMP_ERROR_INVALID_ARGUMENT,
            "config '" + c.name + "': got " + std::to_string(c.extra.size()) +
                " extra values, expected one per extra column: " + std::to_string(desc.extra_columns.size()));
      ramp_kernel_config k = ramp_kernel_config_init();
      k.name = c.name.c_str();
      k.tile_m = c.tile_m;
      k.tile_n = c.tile_n;
      k.tile_k = c.tile_k;
      k.warps_n = c.warps_n;
      k.stages = c.stages;
      k.threads = c.threads;
      k.split_k = c.split_k;
      k.group_m = c.group_m;
      k.extra = c.extra.data();
      configs.push_back(k);
    }
    std::vector<const char*> columns;
    for (const std::string& c : desc.extra_columns) columns.push_back(c.c_str());
    ramp_kernel_desc d = ramp_kernel_desc_init();
    d.name = desc.name.c_str();
    d.configs = configs.data();
    d.num_configs = static_cast<int32_t>(configs.size());
    d.extra_columns = columns.data();
    d.num_extra_columns = static_cast<int32_t>(columns.size());
    d.default_config = desc.default_config + 1;
    d.model_name = desc.model_name.empty() ? nullptr : desc.model_name.c_str();
    d.num_experts = desc.num_experts;
    d.top_k = desc.top_k;
    d.hidden = desc.hidden;
    d.intermediate = desc.intermediate;
    if (*launch_) {
      d.launch = &Kernel::run_launch;
      d.user = launch_.get();
    }
    d.machine = desc.machine;
    d.log = desc.log;
    d.log_user = desc.log_user;
    ramp_kernel* handle = nullptr;
    check(make(d, &handle));
    handle_.reset(handle);
  }
  // What the C callbacks get as `call`: the caller's pointer, and where an exception waits. `block` stands
  // first, for ramp's own configs read it there.
  struct Call {
    ramp_block_call block;
    void* call;
    std::exception_ptr error;
  };
  static_assert(std::is_standard_layout_v<Call>);
  [[nodiscard]] Call wrapped(void* call) const {
    return {block_ && call != nullptr ? *static_cast<const ramp_block_call*>(call) : ramp_block_call_init(),
            call, nullptr};
  }
  struct Run {
    const Kernel& kernel;
    const ProfileOptions& options;
    Call call;
    std::exception_ptr error;
  };
  static int run_launch(void* user, int32_t config, void* call) noexcept {
    auto& c = *static_cast<Call*>(call);
    try {
      return (*static_cast<const Launch*>(user))(config, c.call);
    } catch (...) {
      c.error = std::current_exception();
      return -1;
    }
  }
  static int run_prepare(void* user, const ramp_workload* point, void** call) noexcept {
    auto& r = *static_cast<Run*>(user);
    try {
      if (r.options.prepare) {
        r.call = r.kernel.wrapped(r.options.prepare(*point));
      } else {
        r.call = {ramp_block_call_init(), const_cast<ramp_workload*>(point), nullptr};
      }
      *call = &r.call;
      return 0;
    } catch (...) {
      r.error = std::current_exception();
      return -1;
    }
  }
  static int run_measure(void* user, int32_t config, void* call, double* us) noexcept {
    auto& r = *static_cast<Run*>(user);
    try {
      *us = r.options.measure(config, static_cast<Call*>(call)->call);
      return 0;
    } catch (...) {
      return -1;
    }
  }
  static int run_synchronize(void* user) noexcept {
    try {
      static_cast<Run*>(user)->options.synchronize();
      return 0;
    } catch (...) {
      return -1;
    }
  }

  std::unique_ptr<Launch> launch_;  // address known to the handle
  bool block_ = false;
  std::unique_ptr<ramp_kernel, detail::Deleter<ramp_kernel_destroy>> handle_;
};

}  // namespace ramp

#endif  // RAMP_DISPATCH_HPP_
