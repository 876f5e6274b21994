// `ramp info`: this build, this machine, and what it measures.
#include <fmt/format.h>

#include <memory>

#include "backend/cpu/isa.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "cli/command.hpp"
#include "cli/machine.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "cli/runtime.hpp"
#ifdef RAMP_HAS_CUDA
#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/nvrtc.hpp"
#endif

namespace ramp::cli {
namespace {

struct InfoOptions {
  bool no_measure = false;
};

struct Variable {
  const char* name;
  const char* meaning;
};
constexpr Variable kVariables[] = {
    {"RAMP_NUM_THREADS", "workers of the CPU backend, where --threads is not given"},
    {"RAMP_CPU_ISA", "ISA level of the CPU backend, where --isa is not given"},
    {"RAMP_TRACE", "a file for what the GPU decides, call by call (docs/dispatch.md)"},
    {"RAMP_TRACE_TIMES", "1: that file also tells how long calls outside of graphs took"},
    {"RAMP_CACHE_DIR", "where compiled kernels are kept"},
    {"XDG_CACHE_HOME", "its ramp/ directory serves where RAMP_CACHE_DIR is not set"},
    {"HOME", "its .cache/ramp/ directory serves where neither is set"},
    {"TMPDIR", "where 'ramp demo' makes its temporary directory"}};

// Each backend with the reason why it cannot be had, or its facts.
Json backends() {
  Json list = Json::array();
  for (const auto& [kind, name] :
       {std::pair(RAMP_BACKEND_CPU, "cpu"), std::pair(RAMP_BACKEND_REFERENCE, "reference"),
        std::pair(RAMP_BACKEND_CUDA, "cuda")}) {
    BackendChoice choice;
    choice.backend = name;
    Json entry = {{"name", name}};
    try {
      Io quiet;
      quiet.quiet = true;
      const ContextPtr context = make_context(choice, quiet);
      const ContextFacts facts = facts_of(context.get());
      entry["available"] = true;
      entry["workers"] = facts.workers;
      entry["isa"] = facts.isa;
      entry["device"] = facts.device;
    } catch (const core::Error& e) {
      // A wrong environment variable is the user's to mend, not a missing backend.
      if (e.status() == RAMP_ERROR_INVALID_ARGUMENT) throw;
      entry["available"] = false;
      entry["reason"] = e.what();
    }
    list.push_back(std::move(entry));
  }
  return list;
}

// GPUs, driver, compiler and the compiled kernels on disk; "reason" where there is no GPU to use.
Json gpu_facts() {
  Json j = {{"devices", Json::array()}, {"reason", Json()}};
#ifdef RAMP_HAS_CUDA
  std::string why;
  if (const core::cuda::Driver* const driver = core::cuda::find_driver(&why)) {
    j["driver"] = {{"cuda_version", core::cuda::version_text(driver->version)}, {"library", driver->library}};
    int count = 0;
    RAMP_CU(cuDeviceGetCount, &count);
    for (int i = 0; i < count; ++i) {
      const core::cuda::GpuFacts f = core::cuda::gpu_facts(i);
      j["devices"].push_back({{"ordinal", i},
                              {"name", f.name},
                              {"arch", f.arch()},
                              {"sms", f.sm_count},
                              {"memory_bytes", f.memory_bytes},
                              {"l2_bytes", f.l2_bytes},
                              {"shared_per_block_bytes", f.shared_per_block},
                              {"clock_mhz", f.clock_khz / 1000.0},
                              {"memory_clock_mhz", f.memory_clock_khz / 1000.0}});
    }
  } else {
    j["reason"] = why;
  }
  if (const core::cuda::Nvrtc* const nvrtc = core::cuda::find_nvrtc(&why))
    j["nvrtc"] = {{"version", nvrtc->version()}, {"library", nvrtc->library}, {"reason", Json()}};
  else
    j["nvrtc"] = {{"version", Json()}, {"library", Json()}, {"reason", why}};
  const std::string directory = core::cache_directory({});
  Json cache = {{"directory", directory.empty() ? Json() : Json(directory + "/cubin")}, {"reason", Json()}};
  try {
    uint64_t bytes = 0;
    const auto entries = core::cuda::list_cache(directory);
    for (const core::cuda::CacheEntry& e : entries) bytes += e.bytes;
    cache["entries"] = entries.size();
    cache["bytes"] = bytes;
  } catch (const core::Error& e) {
    cache["reason"] = e.what();
  }
  j["cache"] = std::move(cache);
#else
  j["reason"] = RAMP_BUILD_CUDA;
#endif
  return j;
}

Json figure(const Peak& p) {
  return p.missing.empty() ? Json(p.gflops) : Json();
}

Json measurements(const Io& io) {
  const int threads = core::available_cores();
  Progress progress(io, "measuring this machine");
  const Bandwidth b = measure_read_bandwidth(threads, 0.8, [&](double f) { progress.update(0.6 * f); });
  Json j = {{"read_gbps", b.gbps},      {"read_gbps_median", b.median_gbps},
            {"read_reader", b.reader},  {"read_buffer_bytes", b.buffer_bytes},
            {"read_passes", b.passes},  {"read_beyond_cache", b.beyond_cache},
            {"cpu_share", b.cpu_share}, {"threads", threads}};
  // Several rounds of each in turn, so that a moment in which something else runs does not meet one peak
  // alone.
  constexpr int kRounds = 3;
  const std::pair<const char*, Peak (*)(int, double)> peaks[] = {
      {"fp32", measure_fp32_peak}, {"bf16_dot", measure_bf16_dot_peak}, {"bf16_amx", measure_bf16_amx_peak}};
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& [name, measure] : peaks) {
      const std::string key = name;
      const auto best = [&](const std::string& field, const Peak& p) {
        if (!j.contains(field) || (p.missing.empty() && j[field].get<double>() < p.gflops))
          j[field] = figure(p);
      };
      const Peak all = measure(threads, 0.06);
      best(key + "_gflops", all);
      best(key + "_gflops_one_core", measure(1, 0.04));
      j[key + "_kind"] = all.kind;
      j[key + "_missing"] = all.missing.empty() ? Json() : Json(all.missing);
    }
    progress.update(0.6 + 0.4 * (round + 1) / kRounds);
  }
  return j;
}

std::string caches_text(const Json& list) {
  std::vector<std::string> parts;
  for (const Json& c : list)
    parts.push_back(fmt::format("L{}{} {} (shared by {})", c["level"].get<int>(),
                                c["type"] == "data"          ? "d"
                                : c["type"] == "instruction" ? "i"
                                                             : "",
                                cache_text(c["bytes"].get<int64_t>()), c["shared_by"].get<int>()));
  return parts.empty() ? "unknown" : join(parts, ", ");
}

std::string words(const Json& list) {
  std::vector<std::string> parts;
  for (const Json& item : list) parts.push_back(item.get<std::string>());
  return parts.empty() ? "none" : join(parts, " ");
}

template <typename Line>
void print_gpu(const Line& line, const Json& g) {
  const auto text = [](const Json& value) { return value.get<std::string>(); };
  if (!g["reason"].is_null()) line("gpu", "none: " + text(g["reason"]));
  for (const Json& d : g["devices"])
    line(&d == &g["devices"].front() ? "gpu" : "",
         fmt::format("{}: {}, {}, {} SMs, {} memory, {} L2, {:.0f} MHz, memory {:.0f} MHz",
                     d["ordinal"].get<int>(), text(d["name"]), text(d["arch"]), d["sms"].get<int>(),
                     cache_text(d["memory_bytes"].get<int64_t>()), cache_text(d["l2_bytes"].get<int64_t>()),
                     d["clock_mhz"].get<double>(), d["memory_clock_mhz"].get<double>()));
  if (g.contains("driver"))
    line("gpu driver",
         fmt::format("CUDA {}, {}", text(g["driver"]["cuda_version"]), text(g["driver"]["library"])));
  if (g.contains("nvrtc"))
    line("nvrtc", g["nvrtc"]["reason"].is_null()
                      ? fmt::format("{}, {}", text(g["nvrtc"]["version"]), text(g["nvrtc"]["library"]))
                      : "none: " + text(g["nvrtc"]["reason"]));
  if (!g.contains("cache")) return;
  const Json& c = g["cache"];
  line("kernel cache",
       c["directory"].is_null() ? "none: RAMP_CACHE_DIR, XDG_CACHE_HOME and HOME are not set"
       : c["reason"].is_null()
           ? fmt::format("{}: {} compiled kernel{}, {}", text(c["directory"]), c["entries"].get<int>(),
                         c["entries"] == 1 ? "" : "s", bytes_text(c["bytes"].get<double>()))
           : text(c["reason"]));
}

void print(Io& io, const Json& j) {
  const auto line = [&](const char* name, const std::string& value) {
    io.print(fmt::format("{:<13}{}\n", name, value));
  };
  const auto text = [](const Json& value) { return value.get<std::string>(); };
  const Json& build = j["build"];
  line("version", text(j["version"]));
  line("build", fmt::format("{}, {}{}", text(build["compiler"]), text(build["type"]),
                            build["sanitize"] == "" ? "" : ", sanitizers " + text(build["sanitize"])));
  line("flags", text(build["flags"]));
  line("cuda", text(build["cuda"]));
  const Json& cpu = j["cpu"];
  line("cpu", fmt::format("{}, {} core{} available", text(cpu["model"]), cpu["cores"].get<int>(),
                          cpu["cores"] == 1 ? "" : "s"));
  line("caches", caches_text(cpu["caches"]));
  line("memory", bytes_text(cpu["memory_available_bytes"].get<double>()) + " available");
  line("extensions", words(cpu["extensions"]));
  line("isa levels", fmt::format("{} (in use: {})", words(cpu["isa_levels"]), text(cpu["isa_in_use"])));
  for (const Json& b : j["backends"])
    line(&b == &j["backends"].front() ? "backends" : "",
         b["available"] == true
             ? fmt::format("{}: {} worker{}{}", text(b["name"]), b["workers"].get<int>(),
                           b["workers"] == 1 ? "" : "s", b["isa"] == "" ? "" : ", " + text(b["isa"]))
             : fmt::format("{}: not available ({})", text(b["name"]), text(b["reason"])));
  print_gpu(line, j["gpu"]);
  if (j.contains("measured")) {
    const Json& m = j["measured"];
    line("read",
         fmt::format("{} GB/s measured: best of {} passes over {} by {} threads, {} (median {}){}",
                     number(m["read_gbps"]), m["read_passes"].get<int>(),
                     cache_text(m["read_buffer_bytes"].get<int64_t>()), m["threads"].get<int>(),
                     text(m["read_reader"]), number(m["read_gbps_median"]),
                     m["read_beyond_cache"] == true ? "" : "; the buffer is not twice the last-level cache"));
    for (const auto& [name, key] :
         {std::pair("fp32 peak", std::string("fp32")), std::pair("bf16 dot", std::string("bf16_dot")),
          std::pair("bf16 amx", std::string("bf16_amx"))})
      line(name, m[key + "_gflops"].is_null()
                     ? fmt::format("not available: {}", text(m[key + "_missing"]))
                     : fmt::format("{} GFLOP/s measured: {}, {} threads ({} on one core)",
                                   number(m[key + "_gflops"]), text(m[key + "_kind"]),
                                   m["threads"].get<int>(), number(m[key + "_gflops_one_core"])));
    if (m["cpu_share"].get<double>() < 0.9)
      line("", fmt::format("the threads that measured had {:.0f}% of their cores: other programs run, and "
                           "these figures are too low",
                           100 * m["cpu_share"].get<double>()));
  }
  for (const Json& v : j["environment"])
    line(&v == &j["environment"].front() ? "environment" : "",
         fmt::format("{} {}: {}", text(v["name"]),
                     v["value"].is_null() ? "(not set)" : "= " + text(v["value"]), text(v["meaning"])));
}

int info(Io& io, const InfoOptions& o) {
  Json j;
  j["version"] = ramp_version();
  j["build"] = {{"compiler", RAMP_BUILD_COMPILER},
                {"type", RAMP_BUILD_TYPE},
                {"flags", RAMP_BUILD_FLAGS},
                {"sanitize", RAMP_BUILD_SANITIZE},
                {"cuda", RAMP_BUILD_CUDA}};
  Json cache_list = Json::array();
  for (const Cache& c : caches())
    cache_list.push_back(
        {{"level", c.level}, {"type", c.type}, {"bytes", c.bytes}, {"shared_by", c.shared_by}});
  Json levels = Json::array();
  for (const core::CpuKernels* level : core::available_isa_levels()) levels.push_back(level->isa);
  j["backends"] = backends();
  j["cpu"] = {{"model", core::cpu_model_name()},
              {"cores", core::available_cores()},
              {"caches", cache_list},
              {"memory_available_bytes", available_memory()},
              {"extensions", vector_extensions()},
              {"isa_levels", levels},
              {"isa_in_use", j["backends"][0].value("isa", "none")}};
  j["gpu"] = gpu_facts();
  if (!o.no_measure) j["measured"] = measurements(io);
  j["environment"] = Json::array();
  for (const Variable& v : kVariables) {
    const auto value = core::env(v.name);
    j["environment"].push_back(
        {{"name", v.name}, {"value", value ? Json(*value) : Json()}, {"meaning", v.meaning}});
  }
  print(io, j);
  io.emit(std::move(j));
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<InfoOptions>();
  add_switch(app, "--no-measure", o->no_measure, "leave out the measurements (about three seconds)");
  examples(app, {{"ramp info", "the whole page, measured read bandwidth, fp32 and bf16 peaks included"},
                 {"ramp info --json --no-measure", "facts only, for a script"}});
  return [o](Io& io) { return info(io, *o); };
}
const Register kRegister{
    {"info", "this build and this machine: backends, ISA levels, measured bandwidth and peak", 10, setup}};

}  // namespace
}  // namespace ramp::cli
