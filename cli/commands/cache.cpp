// `ramp cache`: the compiled kernels on disk: what is there, removing it, and compiling all of it ahead of
// time (which needs NVRTC, but no GPU).
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "base/env.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "cli/command.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "cli/runtime.hpp"
#ifdef RAMP_HAS_CUDA
#include "backend/cuda/config_space.hpp"
#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/kernel_report.hpp"
#include "backend/cuda/nvrtc.hpp"
#endif

namespace ramp::cli {
namespace {

struct CacheOptions {
  std::string action, directory, arch, report, space;
};

#ifdef RAMP_HAS_CUDA
namespace cuda = core::cuda;

std::string directory_of(const CacheOptions& o) {
  std::string directory = core::cache_directory(o.directory);
  if (directory.empty())
    core::fail_argument("cache directory", "none of RAMP_CACHE_DIR, XDG_CACHE_HOME and HOME",
                        "a place for compiled kernels", "set one of them, or give --cache-dir");
  return directory;
}

std::string age_text(double seconds) {
  if (seconds < 3600) return duration_text(seconds);
  if (seconds < 48 * 3600.0) return fmt::format("{:.0f} h", seconds / 3600);
  return fmt::format("{:.0f} days", seconds / 86400);
}

// Whether the key is the one that this library and this NVRTC would look for; false for programs it has not.
bool is_current(const cuda::CacheEntry& entry, const std::string& compiler) {
  int number = 0;
  try {
    number = cuda::arch_number(entry.arch);
  } catch (const core::Error&) {
    return false;  // the name of an architecture that there is not
  }
  for (const cuda::KernelProgram& p : cuda::shipped_programs(number))
    if (p.name == entry.program) return cuda::cubin_key(p, entry.arch, compiler) == entry.key;
  return false;
}

int list(Io& io, const CacheOptions& o) {
  const std::string directory = directory_of(o);
  const cuda::Nvrtc* const compiler = cuda::find_nvrtc(nullptr);
  Table table({{"program", Table::Align::kLeft},
               {"arch", Table::Align::kLeft},
               {"bytes"},
               {"age"},
               {"state", Table::Align::kLeft}});
  Json entries = Json::array();
  uint64_t bytes = 0;
  for (const cuda::CacheEntry& e : cuda::list_cache(directory)) {
    const bool valid = e.damage.empty();
    Json current;  // null: without NVRTC there is no version to compare with
    if (compiler != nullptr) current = valid && is_current(e, compiler->version());
    table.add({e.program, e.arch, std::to_string(e.bytes), age_text(e.age_seconds),
               !valid             ? "damaged: " + e.damage
               : current == false ? "valid, of another ramp or NVRTC"
                                  : "valid"});
    entries.push_back({{"file", e.file},
                       {"program", e.program},
                       {"arch", e.arch},
                       {"bytes", e.bytes},
                       {"age_s", e.age_seconds},
                       {"valid", valid},
                       {"damage", valid ? Json() : Json(e.damage)},
                       {"current", current}});
    bytes += e.bytes;
  }
  io.print(fmt::format("{}/cubin: {} compiled kernel{}, {}\n", directory, entries.size(),
                       entries.size() == 1 ? "" : "s", bytes_text(static_cast<double>(bytes))));
  if (!table.empty()) io.print(table.text());
  io.emit({{"action", "list"}, {"directory", directory + "/cubin"}, {"bytes", bytes}, {"entries", entries}});
  return kOk;
}

int clear(Io& io, const CacheOptions& o) {
  const std::string directory = directory_of(o);
  const cuda::ClearedCache cleared = cuda::clear_cache(directory);
  io.print(fmt::format("{}/cubin: removed {} file{}, {}{}\n", directory, cleared.files,
                       cleared.files == 1 ? "" : "s", bytes_text(static_cast<double>(cleared.bytes)),
                       cleared.others == 0 ? ""
                                           : fmt::format("; left {} that {} not ours", cleared.others,
                                                         cleared.others == 1 ? "is" : "are")));
  io.emit({{"action", "clear"},
           {"directory", directory + "/cubin"},
           {"files", cleared.files},
           {"bytes", cleared.bytes},
           {"others", cleared.others}});
  return kOk;
}

std::vector<std::string> archs_of(const CacheOptions& o) {
  std::vector<std::string> archs;
  if (!o.arch.empty()) {
    for (const std::string& arch : split(o.arch, ',')) {
      try {
        cuda::arch_number(arch);
      } catch (const core::Error& e) {
        throw core::Error(e.status(), "--" + std::string(e.what()));
      }
      if (std::find(archs.begin(), archs.end(), arch) == archs.end()) archs.push_back(arch);
    }
    return archs;
  }
  if (!o.report.empty()) return cuda::report_archs();
  std::string why;
  if (cuda::find_driver(&why) == nullptr)
    core::fail_argument("--arch", "nothing, and there is no GPU to ask", "the architectures to compile for",
                        "for example --arch sm_90a; " + why);
  return {cuda::gpu_facts(0).arch()};
}

// What `ramp profile` may bring in beyond what ships, for sm_90: shapes with every group size.
std::vector<cuda::KernelProgram> space_programs(const CacheOptions& o) {
  std::vector<cuda::KernelProgram> programs;
  if (o.space.empty()) return programs;
  const core::ModelShape any = core::parse_model("mixtral-8x22b");
  for (const std::string& name : split(o.space, ',')) {
    const ramp_format format = core::parse_format(name);
    constexpr ramp_activation kSilu = RAMP_ACTIVATION_SILU_AND_MUL;
    const auto legal = cuda::config_space(any, format, kSilu, false).legal;
    for (const core::KernelConfig& c : legal)
      for (cuda::KernelProgram& p : cuda::config_programs(c, format, kSilu)) programs.push_back(std::move(p));
  }
  const std::vector<cuda::KernelProgram> shipped = cuda::shipped_programs(90);
  std::erase_if(programs, [&](const cuda::KernelProgram& p) {
    return std::any_of(shipped.begin(), shipped.end(),
                       [&](const cuda::KernelProgram& s) { return s.name == p.name; });
  });
  return programs;
}

struct Job {
  cuda::KernelProgram program;
  std::string arch;
  size_t bytes = 0;
  double seconds = 0;  // 0: from the cache
  std::string failure;
};

void log_line(void*, ramp_log_level level, const char* message) {
  if (level <= RAMP_LOG_WARNING) say(fmt::format("warning: {}", message));
}

int warm(Io& io, const CacheOptions& o) {
  const std::string directory = directory_of(o);
  const cuda::Nvrtc& compiler = cuda::nvrtc();
  std::vector<Job> jobs;
  for (const std::string& arch : archs_of(o))
    for (cuda::KernelProgram& p : cuda::shipped_programs(cuda::arch_number(arch)))
      if (p.min_arch != 90 || arch == "sm_90a") jobs.push_back({std::move(p), arch, 0, 0, {}});
  for (cuda::KernelProgram& p : space_programs(o)) jobs.push_back({std::move(p), "sm_90a", 0, 0, {}});
  cuda::CubinCache cache(directory, {io.quiet ? nullptr : log_line, nullptr});
  std::vector<cuda::ReportRow> rows;
  std::mutex mutex;
  {
    Progress progress(io, "compiling kernels");
    std::atomic<size_t> done{0};
    parallel_for(static_cast<int64_t>(jobs.size()), [&](int64_t i) {
      Job& job = jobs[static_cast<size_t>(i)];
      try {
        cuda::Cubin cubin;
        if (o.report.empty()) {
          cubin = cuda::find_or_compile(cache, job.program, job.arch);
        } else {  // a cubin of the cache has no log
          cubin = cuda::compile_program(job.program, job.arch);
          const cuda::CubinKey key = cuda::cubin_key(job.program, job.arch, compiler.version());
          static_cast<void>(cache.publish(job.program.name, job.arch, key, cubin.bytes));
          std::vector<cuda::ReportRow> own = cuda::report_rows(job.program, job.arch, cubin);
          const std::lock_guard lock(mutex);
          rows.insert(rows.end(), own.begin(), own.end());
        }
        job.bytes = cubin.bytes.size();
        job.seconds = cubin.seconds;
      } catch (const core::Error& e) {
        job.failure = e.what();
      }
      progress.update(static_cast<double>(++done) / static_cast<double>(jobs.size()),
                      job.program.name + " " + job.arch);
    });
  }
  Table table({{"program", Table::Align::kLeft}, {"arch", Table::Align::kLeft}, {"bytes"}, {"s"}});
  Json list = Json::array();
  size_t compiled = 0;
  size_t failed = 0;
  for (const Job& job : jobs) {
    if (!job.failure.empty()) {
      ++failed;
      say(job.failure);
    } else {
      compiled += job.seconds > 0 ? 1 : 0;
      table.add({job.program.name, job.arch, std::to_string(job.bytes),
                 job.seconds > 0 ? fmt::format("{:.2f}", job.seconds) : "cached"});
    }
    list.push_back({{"program", job.program.name},
                    {"arch", job.arch},
                    {"bytes", job.bytes},
                    {"compile_s", job.seconds},
                    {"cached", job.failure.empty() && job.seconds == 0},
                    {"error", job.failure.empty() ? Json() : Json(job.failure)}});
  }
  if (!o.report.empty() && failed == 0)
    core::write_text(o.report, cuda::report_markdown(std::move(rows), compiler.version()));
  io.print(fmt::format("{}/cubin: {} kernel program{} by NVRTC {} ({}): {} compiled, {} cached, {} failed\n",
                       directory, jobs.size(), jobs.size() == 1 ? "" : "s", compiler.version(),
                       compiler.library, compiled, jobs.size() - compiled - failed, failed));
  if (!table.empty()) io.print(table.text());
  io.emit({{"action", "warm"},
           {"directory", directory + "/cubin"},
           {"nvrtc", compiler.version()},
           {"nvrtc_library", compiler.library},
           {"programs", list}});
  return failed == 0 ? kOk : kFailed;
}

int cache(Io& io, const CacheOptions& o) {
  for (const auto& [name, value] :
       {std::pair("--arch", &o.arch), std::pair("--report", &o.report), std::pair("--space", &o.space)})
    if (o.action != "warm" && !value->empty())
      core::fail_argument(name, "it with '" + o.action + "'", "it with 'warm' alone");
  return o.action == "list" ? list(io, o) : o.action == "clear" ? clear(io, o) : warm(io, o);
}
#else
int cache(Io& /*io*/, const CacheOptions& /*o*/) {
  core::fail(
      RAMP_ERROR_UNSUPPORTED,
      "kernel cache: got a build without the CUDA backend, expected one with it; build ramp where the CUDA "
      "toolkit is installed");
}
#endif

Body setup(CLI::App& app) {
  auto o = std::make_shared<CacheOptions>();
  const std::vector<std::string> actions = {"list", "clear", "warm"};
  app.add_option("action", o->action,
                 "list: what is there; clear: remove it, and nothing else; warm: compile every kernel of the "
                 "library now, so that no first call has to")
      ->type_name("ACTION")
      ->required()
      ->check(CLI::Validator(
          [actions](std::string& text) {
            if (std::find(actions.begin(), actions.end(), text) != actions.end()) return std::string();
            return fmt::format("got '{}', expected one of {}{}", core::printable(text), join(actions, ", "),
                               did_you_mean(text, actions));
          },
          ""));
  add_text(app, "--cache-dir", o->directory, "DIR",
           "the cache directory (default: RAMP_CACHE_DIR, XDG_CACHE_HOME/ramp or ~/.cache/ramp)");
  add_text(app, "--arch", o->arch, "LIST",
           "architectures that warm compiles for, such as sm_80,sm_90a (default: that of the first GPU)");
  add_text(app, "--space", o->space, "FORMAT[,FORMAT..]",
           "warm also compiles, for sm_90a, every config that 'ramp profile' may time in these formats ("
           "some 270 programs each)");
  add_text(
      app, "--report", o->report, "FILE",
      "warm also writes a table of registers, shared memory and spills (Markdown); compiles everything, for "
      "sm_80, sm_89 and sm_90a where --arch is not given")
      ->group("Output");
  examples(app,
           {{"ramp cache list", "compiled kernels with their size and age, and whether they can be used"},
            {"ramp cache warm --arch sm_90a --cache-dir /opt/ramp-cache",
             "fill a cache for an H100 or H200 on a machine without one"},
            {"ramp cache clear", "remove all compiled kernels"}});
  return [o](Io& io) { return cache(io, *o); };
}
const Register kRegister{{"cache", "compiled GPU kernels on disk: list, clear, compile ahead", 90, setup}};

}  // namespace
}  // namespace ramp::cli
