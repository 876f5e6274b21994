// `ramp profile`: times the backend's configs over token counts and skew, fits the cost model, and puts both
// files where contexts find them.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>

#include "abi/handles.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "cli/block_profile.hpp"
#include "cli/command.hpp"
#include "cli/graph_profile.hpp"
#include "cli/judgement.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "dispatch/block_fit.hpp"
#include "dispatch/profile_file.hpp"
#include "geometry/hardware.hpp"

namespace ramp::cli {
namespace {

struct ProfileOptions {
  std::vector<std::string> models, routing, formats = {"fp8_block"};
  std::string tokens, activation = "silu_and_mul", out, clock = "wall", space = "whole";
  std::string cost_model{core::kDefaultCostModel};
  BackendChoice backend{"cpu"};
  int64_t layers = 0, seed = 0, repeats = 9;
  double budget = 120, quantile = 0.5;
  bool fresh = false;
  // Judging.
  bool judge = false;
  std::string judge_tokens, csv;
  std::vector<std::string> judge_routing;
  int64_t judge_draws = 1;
  double judge_budget = 120;
};

// Where the options leave them open. A GPU's points are closer: a hundred configs take turns there, and what
// is best changes from one power of two to the next.
struct Points {
  const char *tokens, *routing, *judge_tokens, *judge_routing;
};
constexpr Points kCpuPoints = {"1,4,16,64,256,1024", "uniform;zipf:1.2", "2,8,32,128,400,700",
                               "uniform;zipf:0.8;zipf:1.6"};
constexpr Points kGpuPoints = {"1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192",
                               "uniform;zipf:0.8;zipf:1.6", "3,12,48,96,200,700,1500,3000,6000",
                               "zipf:0.4;zipf:0.9;zipf:1.6"};

struct Files {
  std::string profile, fit;
};

// One shape in one format.
struct Case {
  core::ModelShape model;
  ramp_format format;
  Files files;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    core::fail_argument(path, error.message(), "a directory that can be made and written to",
                        "choose another with -o", RAMP_ERROR_IO);
}

// Where the files go: -o FILE.json (one case), -o DIR, or the place where contexts look for fits.
void place_files(std::vector<Case>& cases, const ProfileOptions& o, const core::BlockMachine& machine,
                 ramp_activation activation) {
  if (o.out.ends_with(".json")) {
    if (cases.size() != 1)
      core::fail_argument("-o", fmt::format("one file for {} profiles", cases.size()),
                          "a directory where there are several models or formats");
    std::string stem = o.out.substr(0, o.out.size() - 5);
    if (stem.ends_with(".fit")) stem.resize(stem.size() - 4);
    cases.front().files = {stem + ".profile.json", o.out};
    return;
  }
  const std::string directory = o.out.empty() ? core::fit_directory(core::cache_directory("")) : o.out;
  if (directory.empty())
    core::fail_argument("-o", "nothing, and no cache directory", "a file or directory to write to",
                        "set HOME or RAMP_CACHE_DIR, or give -o");
  make_directory(directory);
  for (Case& c : cases) {
    const std::string stem = directory + "/" + core::block_file_stem(machine, c.model, c.format, activation);
    c.files = {stem + ".profile.json", stem + ".fit.json"};
  }
}

class ProfileRun {
 public:
  ProfileRun(Io& io, const ProfileOptions& o, ramp_context* context, core::BlockMachine machine)
      : io_(io),
        o_(o),
        context_(context),
        machine_(std::move(machine)),
        activation_(core::parse_activation(o.activation)),
        gpu_(machine_.backend == "cuda"),
        defaults_(gpu_ ? kGpuPoints : kCpuPoints) {}

  Json run(const Case& c) {
    const Clock::time_point begin = Clock::now();
    const core::ConfigList list = configs_of(c);
    const double compile_seconds = compile(c, list);
    const Clock::time_point weights_begin = Clock::now();
    const LayerPlan plan = plan_of(c);
    std::vector<RunnableLayer> layers;
    for (int64_t l = 0; l < plan.layers; ++l) {
      const RandomSource source(c.model, c.format, activation_,
                                static_cast<uint64_t>(o_.seed) + 1000 + static_cast<uint64_t>(l));
      layers.push_back(source.runnable(context_, true, io_));
    }
    const core::ConfigTable configs = table_of(c, list.legal);
    const std::vector<TimedPoint> points =
        make_points(c.model, tokens_of("--tokens", o_.tokens, defaults_.tokens),
                    routing_of(o_.routing, defaults_.routing), true, static_cast<uint64_t>(o_.seed));
    const std::vector<TimedPoint> unseen = judge_points(c);
    const std::unique_ptr<TickSource> timer = make_timer(c, layers, points, unseen);
    const double weights_seconds = seconds_since(weights_begin);
    core::Metadata metadata = core::block_metadata(machine_, c.format, activation_);
    if (gpu_) describe_gpu(context_, metadata);
    metadata.source =
        fmt::format("ramp profile, {} layers, {}", plan.layers, bytes_text(static_cast<double>(plan.bytes)));
    const std::optional<core::Dataset> previous = resume(c, metadata);

    const Clock::time_point start = Clock::now();
    core::ProfilerOptions options =
        profiler_options(o_.budget, static_cast<int32_t>(o_.repeats), plan.layers);
    options.skip_after = gpu_ ? 0 : 4;  // a GPU's best at T = 1 are hopeless at 8192, and the other way round
    core::Profiler profiler(configs, c.model, work_of(points), options, previous ? &*previous : nullptr);
    time(c, "profiling", profiler, *timer, points, numbers_of(list.legal.size()),
         [&] { core::write_profile(c.files.profile, metadata, profiler.data()); });
    const double profile_seconds = seconds_since(start);
    for (const std::string& n : profiler.notes()) io_.note(n);
    core::write_profile(c.files.profile, metadata, profiler.data());

    const Clock::time_point fit_begin = Clock::now();
    const core::Dataset train = merge_halves(profiler.data());
    std::vector<core::ModelFitReport> reports;
    const core::Fit fit = core::fit_dataset(train, o_.cost_model, hardware(), metadata, &reports);
    core::write_fit(c.files.fit, fit);
    const double fit_seconds = seconds_since(fit_begin);
    const double total_seconds = seconds_since(begin);

    const core::Profiler::Progress p = profiler.progress();
    size_t measured = 0;
    for (const double us : train.us) measured += std::isnan(us) ? 0 : 1;
    io_.print(fmt::format(
        "{} in {}: {} configs at {} points, {} of {} timings in {:.1f} s (kernels {:.1f} s, weights "
        "{:.1f} s, timing {:.1f} s, fit {:.1f} s), noise {:.1f}%\n"
        "  profile {}\n  fit     {}\n",
        c.model.name, core::format_name(c.format), configs.size(), points.size(), measured, train.us.size(),
        total_seconds, compile_seconds, weights_seconds, profile_seconds, fit_seconds,
        100 * fit.models.front().guard.noise_margin(), c.files.profile, c.files.fit));
    Json j = {{"model", c.model.name},
              {"experts", c.model.experts},
              {"top_k", c.model.top_k},
              {"hidden", c.model.hidden},
              {"intermediate", c.model.intermediate},
              {"format", core::format_name(c.format)},
              {"activation", core::activation_name(activation_)},
              {"backend", machine_.backend},
              {"isa", machine_.isa},
              {"device", machine_.device},
              {"threads", machine_.workers},
              {"configs", configs.size()},
              {"points", points.size()},
              {"timings", measured},
              {"runs", p.runs},
              {"resumed", previous.has_value()},
              {"dropped", p.dropped},
              {"failed", p.failed},
              {"layers", plan.layers},
              {"weight_bytes", plan.bytes},
              {"weights_beyond_cache", plan.beyond_cache},
              {"compile_seconds", compile_seconds},
              {"weights_seconds", weights_seconds},
              {"fit_seconds", fit_seconds},
              {"seconds", total_seconds},
              {"profile_seconds", profile_seconds},
              {"noise_margin", fit.models.front().guard.noise_margin()},
              {"cost_model", o_.cost_model},
              {"warnings", reports.front().report.warnings},
              {"profile", c.files.profile},
              {"fit", c.files.fit}};
    for (const std::string& w : reports.front().report.warnings)
      io_.note(fmt::format("{}: {}", c.model.name, w));
    if (o_.judge || !o_.csv.empty())
      j["judged"] = judge_case(c, *timer, unseen, profiler.data(), fit, plan.layers);
    return j;
  }

 private:
  [[nodiscard]] core::HardwareConstants hardware() const {
    if (!gpu_) return core::cpu_hardware(machine_.workers);
    core::HardwareConstants hw = core::h200();  // of an unknown GPU: where the fit starts
    hw.sm_count = machine_.workers;
    return hw;
  }

  [[nodiscard]] core::ConfigList configs_of(const Case& c) const {
    core::context_of(context_).whole_space = o_.space == "whole";
    const core::Backend& backend = backend_of(context_);
    core::ConfigList list = o_.space == "whole" ? backend.space(c.model, c.format, activation_, false)
                                                : backend.configs(c.model, c.format, activation_, false);
    if (list.legal.size() < 2)
      core::fail_argument(fmt::format("--format {}", core::format_name(c.format)),
                          fmt::format("{} configs for {}", list.legal.size(), c.model.name),
                          "at least two to choose between", "ramp configs -v says why",
                          RAMP_ERROR_UNSUPPORTED);
    return list;
  }

  // Seconds that it took.
  double compile(const Case& c, const core::ConfigList& list) const {
    const Clock::time_point start = Clock::now();
    if (!gpu_) return 0;
    Progress progress(io_, fmt::format("compiling the kernels of {} configs", list.legal.size()));
    compile_configs(context_, list.legal, c.format, activation_,
                    [&](double fraction) { progress.update(fraction); });
    return seconds_since(start);
  }

  [[nodiscard]] LayerPlan plan_of(const Case& c) const {
    if (!gpu_) return plan_layers(c.model, c.format, activation_, o_.layers);
    const int64_t layers = plan_gpu_layers(context_, c.model, c.format, activation_, o_.layers);
    return {layers, layers * c.model.experts * core::expert_bytes(c.model, c.format, activation_), true};
  }

  [[nodiscard]] core::ConfigTable table_of(const Case& c,
                                           const std::vector<core::KernelConfig>& configs) const {
    return gpu_ ? core::block_configs(configs, residency_of(configs, c.format))
                : core::block_configs(configs);
  }

  static std::vector<int64_t> tokens_of(const char* option, const std::string& text, const char* otherwise) {
    return integers_from(option, text.empty() ? otherwise : text, {1, 1 << 20});
  }
  static std::vector<core::WorkloadSpec> routing_of(const std::vector<std::string>& texts,
                                                    const char* otherwise) {
    return workloads_from(texts.empty() ? std::vector<std::string>{otherwise} : texts);
  }

  // None unless they are asked for.
  [[nodiscard]] std::vector<TimedPoint> judge_points(const Case& c) const {
    std::vector<TimedPoint> points;
    if (!o_.judge && o_.csv.empty()) return points;
    for (int64_t draw = 0; draw < o_.judge_draws; ++draw) {
      constexpr uint64_t kFirst = 1'000'000;  // seeds that no profiled point has
      for (TimedPoint& p :
           make_points(c.model, tokens_of("--judge-tokens", o_.judge_tokens, defaults_.judge_tokens),
                       routing_of(o_.judge_routing, defaults_.judge_routing), false,
                       static_cast<uint64_t>(o_.seed) + kFirst * static_cast<uint64_t>(draw + 1))) {
        if (draw > 0) p.work.name += fmt::format("_draw{}", draw + 1);
        points.push_back(std::move(p));
      }
    }
    return points;
  }

  [[nodiscard]] std::unique_ptr<TickSource> make_timer(const Case& c,
                                                       const std::vector<RunnableLayer>& layers,
                                                       const std::vector<TimedPoint>& points,
                                                       const std::vector<TimedPoint>& unseen) const {
    const auto seed = static_cast<uint64_t>(o_.seed);
    if (gpu_) {
      int64_t most = 1;
      for (const auto* const list : {&points, &unseen})
        for (const TimedPoint& p : *list) most = std::max(most, p.work.tokens);
      return std::make_unique<GraphTimer>(context_, layers, c.model, c.format, RAMP_REPEATABLE, seed, most);
    }
    auto timer = std::make_unique<BlockTimer>(context_, layers, c.model, c.format, RAMP_REPEATABLE, seed);
    if (o_.clock == "cpu") timer->use_cpu_time(machine_.workers);
    return timer;
  }

  // layers: that one tick runs, so that a budget of seconds is one of ticks.
  [[nodiscard]] core::ProfilerOptions profiler_options(double seconds, int32_t repeats,
                                                       int64_t layers) const {
    core::ProfilerOptions options;
    options.warmup = 1;
    options.repeats = repeats;
    options.quantile = o_.quantile;
    options.halves = true;
    options.budget_us = seconds * 1e6;
    if (gpu_) {
      options.budget_us /= static_cast<double>(layers);
      options.judge_after = 1;  // one replay tells who is out of the question
      options.hopeless_ratio = 1.5;
      options.narrow_ratio = 1.15;
      options.narrow_after = 2;
      return options;
    }
    options.settled_us = 5000;
    options.narrow_ratio = 1.25;
    options.narrow_after = 4;
    return options;
  }

  static std::vector<core::WorkPoint> work_of(const std::vector<TimedPoint>& points) {
    std::vector<core::WorkPoint> work;
    work.reserve(points.size());
    for (const TimedPoint& p : points) work.push_back(p.work);
    return work;
  }

  // Config numbers as the ABI counts them: the context lists them in the backend's order.
  static std::vector<int32_t> numbers_of(size_t count) {
    std::vector<int32_t> numbers(count);
    for (size_t i = 0; i < count; ++i) numbers[i] = static_cast<int32_t>(i) + 1;
    return numbers;
  }

  void time(const Case& c, const std::string& what, core::Profiler& profiler, TickSource& timer,
            const std::vector<TimedPoint>& points, const std::vector<int32_t>& numbers,
            const std::function<void()>& save) const {
    Progress progress(io_, fmt::format("{} {} in {}", what, c.model.name, core::format_name(c.format)));
    run_profiler(profiler, timer, points, numbers, save, [&] {
      const auto task = profiler.next();
      const core::Profiler::Progress p = profiler.progress();
      progress.update(p.fraction, fmt::format("point {} of {}: {}", p.points_done + 1, p.points,
                                              task ? points[task->point].work.name : std::string()));
    });
  }

  // What an earlier run measured, when it was this machine, kernel and shape.
  std::optional<core::Dataset> resume(const Case& c, const core::Metadata& here) const {
    if (o_.fresh || !std::filesystem::exists(c.files.profile)) return std::nullopt;
    core::LoadedProfile loaded = core::read_profile(c.files.profile, here);
    for (const std::string& w : loaded.compatibility.warnings) io_.note(w);
    if (!loaded.compatibility.usable || loaded.profile.data.points.empty()) return std::nullopt;
    core::restore_configs(loaded.profile.data.configs, c.files.profile);
    io_.note(fmt::format("{}: going on from there (--fresh starts over)", c.files.profile));
    return std::move(loaded.profile.data);
  }

  Json judge_case(const Case& c, TickSource& timer, const std::vector<TimedPoint>& points,
                  const core::Dataset& profiled, const core::Fit& fit, int64_t layers) const {
    // Beside them what the context runs on its own (number 0; it has no fit loaded): the analytic default,
    // which need not be one of the list.
    core::ConfigTable table = profiled.configs;
    std::vector<int32_t> numbers = numbers_of(table.size());
    numbers.push_back(0);
    table.names.emplace_back("default");
    table.configs.push_back(table.configs.front());
    table.extra.resize(table.size() * table.extra_columns.size());

    core::ProfilerOptions options =
        profiler_options(o_.judge_budget, static_cast<int32_t>(o_.repeats), layers);
    options.repeats = std::max(options.repeats, 4);
    options.skip_after = 0;
    options.narrow_ratio = 1.15;
    if (!gpu_) options.judge_after = 2;
    options.everybody = true;
    const Clock::time_point start = Clock::now();
    core::Profiler profiler(std::move(table), c.model, work_of(points), options);
    time(c, "judging", profiler, timer, points, numbers, {});
    const core::Dispatcher dispatcher(fit.models.front());
    const Judgement j = judge(merge_halves(profiled), profiler.data(), dispatcher);
    if (!o_.csv.empty()) {
      const std::string directory =
          o_.csv + "/" + core::block_file_stem(machine_, c.model, c.format, activation_);
      make_directory(directory);
      core::write_dataset(directory, join_datasets(profiled, profiler.data()));
      io_.note(
          fmt::format("to judge cost models: ramp evaluate --data {} --hardware {} --sm-count {} "
                      "--allow-missing",
                      directory, gpu_ ? "h200" : "cpu", machine_.workers));
    }
    io_.print(judgement_text(j));
    Json result = judgement_json(j);
    result["seconds"] = seconds_since(start);
    return result;
  }

  Io& io_;
  const ProfileOptions& o_;
  ramp_context* context_;
  core::BlockMachine machine_;
  ramp_activation activation_;
  bool gpu_;
  Points defaults_;
};

int profile(Io& io, const ProfileOptions& o) {
  const InterruptGuard guard;
  BackendChoice choice = o.backend;
  choice.fit = "none";
  const ContextPtr context = make_context(choice, io);
  const ContextFacts facts = facts_of(context.get());
  if (facts.backend != "cuda" && backend_of(context.get()).fits() == nullptr)
    core::fail_argument("--backend", facts.backend, "a backend that chooses between configs",
                        "use cpu or cuda", RAMP_ERROR_UNSUPPORTED);
  const core::BlockMachine machine{facts.backend, facts.isa, facts.device, facts.workers};
  std::vector<Case> cases;
  for (const core::ModelShape& model : models_from("--model", o.models))
    for (const std::string& list : o.formats)
      for (const std::string& format : split(list, ','))
        cases.push_back({model, core::parse_format(format), {}});
  place_files(cases, o, machine, core::parse_activation(o.activation));
  ProfileRun run(io, o, context.get(), machine);
  Json list = Json::array();
  try {
    for (const Case& c : cases) list.push_back(run.run(c));
  } catch (const Interrupted&) {
    io.note("what was measured is kept: the same command goes on from there");
    throw;
  }
  io.emit(std::move(list));
  return kOk;
}

std::string both(const char* cpu, const char* gpu) {
  return fmt::format("{}; on a GPU {}", cpu, gpu);
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<ProfileOptions>();
  constexpr const char* kPoints = "Points";
  add_list(app, "--model", o->models, "MODEL[,MODEL..]", "known models or E,k,H,I; may be repeated")
      ->required()
      ->group(kPoints);
  add_list(app, "--format", o->formats, "NAME[,NAME..]", "weight formats: " + join(format_names(), ", "))
      ->group(kPoints);
  add_text(app, "--tokens", o->tokens, "T[,T..]",
           "token counts (default: " + both(kCpuPoints.tokens, kGpuPoints.tokens) + ")")
      ->group(kPoints);
  add_list(app, "--routing", o->routing, "ROUTING[;ROUTING..]",
           "as 'ramp workload' takes it (default: " + both(kCpuPoints.routing, kGpuPoints.routing) + ")")
      ->group(kPoints);
  add_choice(app, "--space", o->space, {"whole", "shipped"},
             "which configs: all that could be compiled, or those that are (a GPU has more than it ships)")
      ->group(kPoints);
  add_choice(app, "--activation", o->activation, activation_names(), "activation")->group(kPoints);
  add_integer(app, "--seed", o->seed, {0}, "N", "of weights, activations and routing")->group(kPoints);
  constexpr const char* kProtocol = "Protocol";
  add_real(app, "--budget", o->budget, 0, 86400, "S",
           "seconds of timing per model and format; weights and fitting come on top; 0 = no limit")
      ->group(kProtocol);
  add_integer(app, "--repeats", o->repeats, {2, 1000}, "N", "samples per config and point, at most")
      ->group(kProtocol);
  add_real(app, "--quantile", o->quantile, 0, 1, "Q",
           "which sample counts: 0.5 = the median; 0 = the fastest, where others use the machine meanwhile")
      ->group(kProtocol);
  add_choice(app, "--clock", o->clock, {"wall", "cpu"},
             "what ticks: wall time, or CPU time over workers where other programs take the cores away")
      ->group(kProtocol);
  add_integer(
      app, "--layers", o->layers, {1, 1000}, "L",
      "layers of weights to rotate over (default: twice the last-level cache; on a GPU as 'ramp bench')")
      ->group(kProtocol);
  std::vector<std::string> names;
  for (const std::string_view n : core::cost_model_names()) names.emplace_back(n);
  add_choice(app, "--cost-model", o->cost_model, names, "what to fit")->group(kProtocol);
  add_text(app, "-o,--out", o->out, "PATH",
           "fit file (FILE.json; the profile goes beside it) or directory (default: where contexts look for "
           "fits: fits in RAMP_CACHE_DIR, XDG_CACHE_HOME/ramp or ~/.cache/ramp)")
      ->group(kProtocol);
  add_switch(app, "--fresh", o->fresh, "measure everything again instead of going on from the profile file")
      ->group(kProtocol);
  constexpr const char* kJudge = "Judging";
  add_switch(app, "--judge", o->judge,
             "time every config at unseen points as well, and print the regret of the fit's choices")
      ->group(kJudge);
  add_text(app, "--judge-tokens", o->judge_tokens, "T[,T..]",
           "token counts of the unseen points (default: " +
               both(kCpuPoints.judge_tokens, kGpuPoints.judge_tokens) + ")")
      ->group(kJudge);
  add_list(app, "--judge-routing", o->judge_routing, "ROUTING[;ROUTING..]",
           "their routing (default: " + both(kCpuPoints.judge_routing, kGpuPoints.judge_routing) + ")")
      ->group(kJudge);
  add_integer(app, "--judge-draws", o->judge_draws, {1, 100}, "N", "each with so many draws")->group(kJudge);
  add_real(app, "--judge-budget", o->judge_budget, 0, 86400, "S",
           "seconds of timing for them; every config is timed at least twice everywhere, whatever it takes")
      ->group(kJudge);
  add_text(app, "--csv", o->csv, "DIR",
           "judge, and write all timings as a dataset for 'ramp evaluate' into a directory in DIR")
      ->group(kJudge);
  add_backend_options(app, o->backend, false);
  examples(app, {{"ramp profile --model olmoe --format bf16",
                  "two minutes; 'ramp bench --model olmoe --format bf16' then chooses by it"},
                 {"ramp profile --model qwen3-30b --format bf16,fp8_block --budget 60 -o fits",
                  "two formats in a directory of your own, for --fit fits"},
                 {"ramp profile --model 32,4,1024,512 --format bf16 --judge --judge-budget 300 -o f.json",
                  "is it worth it? regret against exhaustive timing at 18 unseen points"}});
  return [o](Io& io) { return profile(io, *o); };
}
const Register kRegister{
    {"profile", "time this machine's configs for a model, and fit the dispatcher to it", 55, setup}};

}  // namespace
}  // namespace ramp::cli
