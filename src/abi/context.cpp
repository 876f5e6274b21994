// Contexts: options, environment, the backend behind them, and their tables of configs.
#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <utility>

#include "abi/handles.hpp"
#include "abi/validate.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "dispatch/block_fit.hpp"

namespace ramp::core {
namespace {

// More workers than any machine has cores; above it the number is a mistake.
constexpr int32_t kMaxThreads = 4096;

ramp_device check_device(ramp_device device) {
  if (device.type != RAMP_DEVICE_CPU && device.type != RAMP_DEVICE_CUDA) {
    fail_argument("options.device.type", std::to_string(device.type),
                  "RAMP_DEVICE_CPU (0) or RAMP_DEVICE_CUDA (1)");
  }
  if (device.index < 0 || (device.type == RAMP_DEVICE_CPU && device.index != 0)) {
    fail_argument("options.device.index", std::to_string(device.index),
                  device.type == RAMP_DEVICE_CPU ? "0 on the CPU" : "a device number >= 0");
  }
  return device;
}

ramp_backend check_backend(int32_t backend, ramp_device device) {
  if (backend < RAMP_BACKEND_AUTO || backend > RAMP_BACKEND_CUDA) {
    fail_argument("options.backend", std::to_string(backend),
                  "RAMP_BACKEND_AUTO (0), _REFERENCE (1), _CPU (2) or _CUDA (3)");
  }
  const bool wants_cuda = backend == RAMP_BACKEND_CUDA;
  const bool on_cuda = device.type == RAMP_DEVICE_CUDA;
  if (backend != RAMP_BACKEND_AUTO && wants_cuda != on_cuda) {
    fail_argument("options.backend",
                  wants_cuda ? "RAMP_BACKEND_CUDA with a CPU device" : "a host backend with a CUDA device",
                  "a backend of options.device", "use RAMP_BACKEND_AUTO or change the device");
  }
  return static_cast<ramp_backend>(backend);
}

int32_t check_threads(const ramp_context_options& options) {
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    fail_argument("options.num_threads", std::to_string(options.num_threads),
                  fmt::format("0 (one per available core) to {}", kMaxThreads));
  }
  if (options.num_threads != 0 || options.executor != nullptr) return options.num_threads;
  const auto text = env("RAMP_NUM_THREADS");
  if (!text) return 0;
  int32_t threads = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), threads);
  if (error != std::errc() || end != text->data() + text->size() || threads < 1 || threads > kMaxThreads) {
    fail_argument("RAMP_NUM_THREADS", fmt::format("'{}'", printable(*text)),
                  fmt::format("a whole number from 1 to {}", kMaxThreads), "correct or unset the variable");
  }
  return threads;
}

ramp_executor check_executor(const ramp_executor& executor) {
  if (executor.num_workers < 1) {
    fail_argument("options.executor.num_workers", std::to_string(executor.num_workers), "a number >= 1");
  }
  if (executor.parallel_for == nullptr) fail_argument("options.executor.parallel_for", "NULL", "a function");
  return executor;
}

std::unique_ptr<ramp_context> create_context(const ramp_context_options* user) {
  const ramp_context_options options =
      user != nullptr ? read_sized(user, "ramp_context_options") : ramp_context_options_init();
  auto context = std::make_unique<ramp_context>();
  context->device = check_device(options.device);
  const ramp_backend kind = check_backend(options.backend, options.device);
  context->log = {options.log, options.log_user};
  BackendOptions backend;
  backend.device = context->device;
  backend.num_threads = check_threads(options);
  if (options.executor != nullptr) {
    context->executor = check_executor(*options.executor);
    backend.executor = &context->executor;
  }
  const bool on_cpu = context->device.type == RAMP_DEVICE_CPU;
  backend.isa = options.isa != nullptr ? std::string(options.isa)
                : on_cpu               ? env("RAMP_CPU_ISA").value_or("")
                                       : "";
  backend.cache_dir = cache_directory(options.cache_dir != nullptr ? options.cache_dir : "");
  context->cache_dir = backend.cache_dir;
  backend.log = context->log;
  context->backend = make_backend(kind, backend);
  const BackendInfo& info = context->backend->info();
  if (context->log.fn != nullptr) {
    context->log(RAMP_LOG_INFO,
                 fmt::format("ramp {}: backend {}{}{}, {} workers, {}", RAMP_VERSION_STRING, info.name,
                             info.isa.empty() ? "" : " ", info.isa, info.workers, info.device_name));
  }
  return context;
}

int32_t load_fit(ramp_context& context, const char* path) {
  FitList* const fits = context.backend->fits();
  if (fits == nullptr) {
    fail_argument("context", fmt::format("the {} backend", context.backend->info().name),
                  "a backend that chooses between configs", "load fits into a cpu context",
                  RAMP_ERROR_UNSUPPORTED);
  }
  const std::string place = path != nullptr ? std::string(path) : fit_directory(context.cache_dir);
  if (path != nullptr && place.empty()) fail_argument("path", "''", "a fit file or a directory of them");
  const BackendInfo& info = context.backend->info();
  const BlockMachine here{info.name, info.isa, info.device_name, info.workers};
  const ConfigCheck legal = [&](const KernelConfig& c, const ModelShape& model, ramp_format format,
                                ramp_activation activation) {
    return context.backend->runs(c, model, format, activation);
  };
  BlockFitReport report;
  std::error_code unreadable;  // then it is no directory, and reading it as a file reports why
  if (path == nullptr || std::filesystem::is_directory(place, unreadable)) {
    if (!place.empty()) report = load_block_fits(place, here, legal, *fits);
  } else {
    report = load_block_fit(place, here, legal, *fits);
  }
  if (context.log.fn != nullptr) {
    for (const std::string& w : report.warnings) context.log(RAMP_LOG_WARNING, w);
    if (report.used > 0)
      context.log(RAMP_LOG_INFO,
                  fmt::format("{}: choosing by the fits of {} layer shapes", place, report.used));
  }
  return report.used;
}

}  // namespace

const ShapeConfigs& shape_configs(ramp_context& context, const ExpertWeights& weights) {
  const std::lock_guard lock(context.configs_mutex);
  for (const ShapeConfigs& t : context.configs) {
    if (t.experts == weights.experts && t.hidden == weights.hidden &&
        t.intermediate == weights.intermediate && t.format == weights.format &&
        t.activation == weights.activation && t.whole == context.whole_space)
      return t;
  }
  ShapeConfigs table{weights.experts,
                     weights.hidden,
                     weights.intermediate,
                     weights.format,
                     weights.activation,
                     context.whole_space,
                     {},
                     {}};
  ModelShape shape;
  shape.experts = weights.experts;
  shape.top_k = 1;  // not known to the weights; configs do not depend on it
  shape.hidden = weights.hidden;
  shape.intermediate = weights.intermediate;
  const Backend& backend = *context.backend;
  table.configs = (context.whole_space ? backend.space(shape, weights.format, weights.activation, false)
                                       : backend.configs(shape, weights.format, weights.activation, false))
                      .legal;
  table.names.reserve(table.configs.size());
  for (const KernelConfig& c : table.configs) table.names.push_back(config_name(c));
  return context.configs.emplace_back(std::move(table));
}

const KernelConfig* find_config(ramp_context& context, const ExpertWeights& weights, int32_t config) {
  if (config == 0) return nullptr;
  const ShapeConfigs& table = shape_configs(context, weights);
  if (config < 0 || static_cast<size_t>(config) > table.configs.size()) {
    fail_argument("config", std::to_string(config),
                  fmt::format("0 (the dispatcher chooses) to {}", table.configs.size()),
                  fmt::format("ramp_config_name lists the {} configs of the {} backend for these weights",
                              table.configs.size(), context.backend->info().name));
  }
  return &table.configs[static_cast<size_t>(config) - 1];
}

}  // namespace ramp::core

using namespace ramp::core;  // NOLINT(google-build-using-namespace): this file implements the C ABI with it

extern "C" {

ramp_status ramp_context_create(const ramp_context_options* options, ramp_context** out) {
  return border([&] {
    check_out(out, "out");
    *out = create_context(options).release();
  });
}

void ramp_context_destroy(ramp_context* context) {
  if (context == nullptr) return;
  // A foreign pointer is left alone: the last error tells, nothing is freed.
  border([&] { destroy_handle(&context_of(context)); });
}

ramp_status ramp_context_get_info(const ramp_context* context, ramp_context_info* out) {
  return border([&] {
    const ramp_context& c = context_of(context);
    const BackendInfo& info = c.backend->info();
    ramp_context_info value = ramp_context_info_init();
    value.backend = info.kind;
    value.num_workers = info.workers;
    value.device = c.device;
    value.backend_name = info.name.c_str();
    value.isa = info.isa.c_str();
    value.device_name = info.device_name.c_str();
    write_sized(out, value, "ramp_context_info");
  });
}

ramp_status ramp_context_load_fit(ramp_context* context, const char* path, int32_t* used) {
  return border([&] {
    const int32_t taken = load_fit(context_of(context), path);
    if (used != nullptr) *used = taken;
  });
}

ramp_status ramp_context_trace(ramp_context* context, uint64_t records) {
  return border([&] { context_of(context).backend->begin_trace(records); });
}

ramp_status ramp_context_time_trace(ramp_context* context, int32_t on) {
  return border([&] {
    ramp_context& c = context_of(context);
    if (on != 0 && on != 1) fail_argument("on", std::to_string(on), "0 or 1");
    c.backend->time_trace(on != 0);
  });
}

ramp_status ramp_context_get_counters(ramp_context* context, ramp_context_counters* out) {
  return border([&] {
    ramp_context& c = context_of(context);
    const TraceCounters n = c.backend->counters();
    ramp_context_counters value = ramp_context_counters_init();
    value.records = n.records;
    value.lost = n.lost;
    value.active = n.active;
    value.imbalance_sum = n.imbalance_sum;
    value.imbalance_max = n.imbalance_max;
    value.changed = n.changed;
    value.compared = n.compared;
    value.chosen_us = n.chosen_us;
    value.default_us = n.default_us;
    value.default_regret_sum = n.default_regret_sum;
    value.default_regret_max = n.default_regret_max;
    value.measured = n.measured;
    value.measured_us = n.measured_us;
    value.judged = n.judged;
    value.error_sum = n.error_sum;
    write_sized(out, value, "ramp_context_counters");
  });
}

ramp_status ramp_context_read_trace(ramp_context* context, ramp_trace_fn take, void* user) {
  return border([&] {
    ramp_context& c = context_of(context);
    if (take == nullptr) fail_argument("take", "NULL", "a function");
    c.backend->read_trace([&](const TraceRecord& r) {
      std::vector<std::string> names;
      std::vector<const char*> configs;
      for (const KernelConfig& config : r.configs) names.push_back(config_name(config));
      for (const std::string& name : names) configs.push_back(name.c_str());
      ramp_trace_record out = ramp_trace_record_init();
      out.number = r.number;
      out.call = r.call;
      out.num_experts = r.shape->experts;
      out.top_k = r.shape->top_k;
      out.hidden = r.shape->hidden;
      out.intermediate = r.shape->intermediate;
      out.tokens = r.tokens;
      out.format = r.format;
      out.batched = r.batched ? 1 : 0;
      out.num_configs = static_cast<int32_t>(configs.size());
      out.chosen = static_cast<int32_t>(r.chosen);
      out.configs = configs.data();
      out.histogram = r.histogram.data();
      out.predicted_us = r.predicted_us;
      out.measured_us = r.measured_us;
      out.configs_us = r.configs_us.data();
      const std::string fallback = r.fallback != nullptr ? config_name(*r.fallback) : std::string();
      out.default_config = r.fallback != nullptr ? fallback.c_str() : nullptr;
      out.default_us = r.fallback_us;
      take(&out, user);
    });
  });
}

const char* ramp_config_name(ramp_context* context, const ramp_weights* weights, int32_t index) {
  const char* name = nullptr;
  border([&] {
    ramp_context& c = context_of(context);
    const ramp_weights& w = weights_of(weights);
    if (index < 0) fail_argument("index", std::to_string(index), "a number >= 0");
    const ShapeConfigs& table = shape_configs(c, *w.weights);
    if (static_cast<size_t>(index) < table.names.size())
      name = table.names[static_cast<size_t>(index)].c_str();
  });
  return name;
}

}  // extern "C"
