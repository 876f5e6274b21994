// Configs, weights, ticks, fit, judge, report: in that order.
#include "cli/profile_run.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>

#include "abi/handles.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "cli/block_profile.hpp"
#include "cli/graph_profile.hpp"
#include "cli/judgement.hpp"
#include "cli/options.hpp"
#include "cli/profile_report.hpp"
#include "cli/profile_sampling.hpp"
#include "cli/progress.hpp"
#include "dispatch/block_fit.hpp"
#include "dispatch/profile_file.hpp"
#include "geometry/hardware.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class ProfileRun {
 public:
  ProfileRun(Io& io, const ProfileOptions& o, ramp_context* context, core::BlockMachine machine)
      : io_(io),
        o_(o),
        context_(context),
        machine_(std::move(machine)),
        activation_(core::parse_activation(o.activation)),
        determinism_(parse_determinism(o.determinism)),
        gpu_(machine_.backend == "cuda"),
        defaults_(gpu_ ? kGpuPoints : kCpuPoints) {
    if (gpu_ && o_.clock == "cpu")
      core::fail_argument("--clock", "cpu", "wall on a GPU, where events between CUDA graphs tick",
                          "leave --clock out");
  }

  Json run(const ProfileCase& c) {
    const Clock::time_point begin = Clock::now();
    const core::ConfigList list = configs_of(c);
    const double compile_seconds = compile(c, list);
    const Clock::time_point weights_begin = Clock::now();
    const std::vector<TimedPoint> points =
        make_points(c.model, tokens_of("--tokens", o_.tokens, defaults_.tokens),
                    routing_of(o_.routing, defaults_.routing), true, static_cast<uint64_t>(o_.seed));
    const std::vector<TimedPoint> unseen = judge_points(c);
    const LayerPlan plan = plan_of(c, points, unseen);
    if (!plan.beyond_cache && gpu_)
      io_.note(
          fmt::format("{}: the weights of a replay may stay in the L2 cache, which no model's layers do; "
                      "more --layers mend it",
                      c.model.name));
    core::Metadata metadata = core::block_metadata(machine_, c.format, activation_);
    if (gpu_) describe_gpu(context_, metadata);
    metadata.source =
        fmt::format("ramp profile, {} layers, {}", plan.layers, bytes_text(static_cast<double>(plan.bytes)));
    metadata.protocol =
        protocol_text(plan.layers, o_.clock, o_.quantile, o_.determinism) + (gpu_ ? kRelated : "");
    metadata.budget_seconds = o_.budget >= 0 ? o_.budget : defaults_.budget;
    bool reopen = false;
    const std::optional<core::Dataset> previous = resume(c, metadata, reopen);
    std::vector<RunnableLayer> layers;
    for (int64_t l = 0; l < plan.layers; ++l) {
      const RandomSource source(c.model, c.format, activation_,
                                static_cast<uint64_t>(o_.seed) + 1000 + static_cast<uint64_t>(l));
      layers.push_back(source.runnable(context_, true, io_));
    }
    const core::ConfigTable configs = table_of(c, list.legal);
    const std::unique_ptr<TickSource> timer = make_timer(c, layers, points, unseen);
    auto* const graphs = dynamic_cast<GraphTimer*>(timer.get());
    const double weights_seconds = seconds_since(weights_begin);

    const Clock::time_point start = Clock::now();
    core::ProfilerOptions options =
        profile_sampling(metadata.budget_seconds, o_.repeats, o_.quantile, points, graphs);
    options.reopen = reopen;
    if (gpu_) options.always = static_candidates(c);
    core::Profiler profiler(configs, c.model, work_of(points), options, previous ? &*previous : nullptr);
    time(c, "profiling", profiler, *timer, points, numbers_of(list.legal.size()),
         [&] { core::write_profile(c.files.profile, metadata, profiler.data()); });
    const double profile_seconds = seconds_since(start);
    for (const std::string& n : profiler.notes()) io_.note(n);
    core::write_profile(c.files.profile, metadata, profiler.data());

    const Clock::time_point fit_begin = Clock::now();
    const core::Dataset train =
        gpu_ ? contenders(merge_halves(profiler.data()), shipped_count(c)) : merge_halves(profiler.data());
    std::vector<core::ModelFitReport> reports;
    const core::Fit fit = core::fit_dataset(train, o_.cost_model, hardware(), metadata, &reports);
    core::write_fit(c.files.fit, fit);
    const double fit_seconds = seconds_since(fit_begin);
    const double total_seconds = seconds_since(begin);

    const core::Profiler::Progress p = profiler.progress();
    size_t measured = 0;
    for (const double us : profiler.data().us) measured += std::isnan(us) ? 0 : 1;
    io_.print(fmt::format(
        "{} in {}: {} configs at {} points, {} of {} timings in {:.1f} s (kernels {:.1f} s, weights "
        "{:.1f} s, timing {:.1f} s{}, fit {:.1f} s), noise {:.1f}%\n"
        "  profile {}\n  fit     {}\n",
        c.model.name, core::format_name(c.format), configs.size(), points.size(), measured,
        profiler.data().us.size(), total_seconds, compile_seconds, weights_seconds, profile_seconds,
        graphs != nullptr ? spent_text(graphs->spent()) : std::string(), fit_seconds,
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
    if (graphs != nullptr) j["timing_seconds"] = spent_json(graphs->spent());
    for (const std::string& w : reports.front().report.warnings)
      io_.note(fmt::format("{}: {}", c.model.name, w));
    std::optional<Judgement> judged;
    if (!unseen.empty()) {
      const Clock::time_point judge_begin = Clock::now();
      const GraphTimer::Spent before = graphs != nullptr ? graphs->spent() : GraphTimer::Spent{};
      judged = judge_case(c, *timer, unseen, profiler.data(), fit);
      j["judged"] = judgement_json(*judged);
      j["judged"]["seconds"] = seconds_since(judge_begin);
      if (graphs != nullptr) j["judged"]["timing_seconds"] = spent_json(graphs->spent(), before);
    }
    if (o_.report) {
      core::write_text(c.files.report, profile_html({&train,
                                                     &fit,
                                                     core::format_name(c.format),
                                                     defaults_at(c, layers.front(), train),
                                                     {{"compiling kernels", compile_seconds},
                                                      {"making weights", weights_seconds},
                                                      {"timing", profile_seconds},
                                                      {"fitting", fit_seconds}},
                                                     judged}));
      j["report"] = c.files.report;
      io_.print(fmt::format("  report  {}\n", c.files.report));
    }
    return j;
  }

 private:
  // What runs at each point without a fit, by number of the table; its size where that is none of it.
  [[nodiscard]] std::vector<size_t> defaults_at(const ProfileCase& c, const RunnableLayer& layer,
                                                const core::Dataset& d) const {
    std::vector<size_t> list;
    for (const core::WorkPoint& p : d.points) {
      const std::string name = core::config_name(backend_of(context_).choose(
          values_of(layer.handle.get()), p.histogram, determinism_, c.model.top_k));
      const auto at = std::find(d.configs.names.begin(), d.configs.names.end(), name);
      list.push_back(static_cast<size_t>(at - d.configs.names.begin()));
    }
    return list;
  }

  [[nodiscard]] core::HardwareConstants hardware() const {
    if (!gpu_) return core::cpu_hardware(machine_.workers);
    core::HardwareConstants hw = core::h200();  // of an unknown GPU: where the fit starts
    hw.sm_count = machine_.workers;
    return hw;
  }

  [[nodiscard]] size_t shipped_count(const ProfileCase& c) const {
    return backend_of(context_).configs(c.model, c.format, activation_, false).legal.size();
  }
  // What one config for everything could be: of those that ship the two with the largest tiles, which come
  // last. Measured everywhere, though they lose at most points. (All that ship took half of a budget at T =
  // 8192.)
  [[nodiscard]] std::vector<size_t> static_candidates(const ProfileCase& c) const {
    const size_t shipped = shipped_count(c);
    return shipped < 2 ? std::vector<size_t>{0} : std::vector<size_t>{shipped - 1, shipped - 2};
  }

  [[nodiscard]] core::ConfigList configs_of(const ProfileCase& c) const {
    core::context_of(context_).whole_space = o_.space == "whole";
    const core::Backend& backend = backend_of(context_);
    core::ConfigList list = o_.space == "whole" ? backend.space(c.model, c.format, activation_, false)
                                                : backend.configs(c.model, c.format, activation_, false);
    // What adds in any order runs as the same config without sums in other modes. These are the last of the
    // list, so that the others' numbers stay what they are.
    if (determinism_ != RAMP_FAST)
      std::erase_if(list.legal, [](const core::KernelConfig& config) { return config.sums; });
    if (list.legal.size() < 2)
      core::fail_argument(fmt::format("--format {}", core::format_name(c.format)),
                          fmt::format("{} configs for {}", list.legal.size(), c.model.name),
                          "at least two to choose between", "ramp configs -v says why",
                          RAMP_ERROR_UNSUPPORTED);
    return list;
  }

  // Seconds that it took.
  double compile(const ProfileCase& c, const core::ConfigList& list) const {
    const Clock::time_point start = Clock::now();
    if (!gpu_) return 0;
    Progress progress(io_, fmt::format("compiling the kernels of {} configs", list.legal.size()));
    compile_configs(context_, list.legal, c.format, activation_,
                    [&](double fraction) { progress.update(fraction); });
    return seconds_since(start);
  }

  [[nodiscard]] LayerPlan plan_of(const ProfileCase& c, const std::vector<TimedPoint>& points,
                                  const std::vector<TimedPoint>& unseen) const {
    if (!gpu_) return plan_layers(c.model, c.format, activation_, o_.layers);
    int64_t least = c.model.experts;
    for (const auto* const list : {&points, &unseen})
      for (const TimedPoint& p : *list) least = std::min(least, core::describe(p.work.histogram).active);
    return plan_gpu_layers(context_, c.model, c.format, activation_, least, o_.layers);
  }

  [[nodiscard]] core::ConfigTable table_of(const ProfileCase& c,
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
  [[nodiscard]] std::vector<TimedPoint> judge_points(const ProfileCase& c) const {
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

  [[nodiscard]] std::unique_ptr<TickSource> make_timer(const ProfileCase& c,
                                                       const std::vector<RunnableLayer>& layers,
                                                       const std::vector<TimedPoint>& points,
                                                       const std::vector<TimedPoint>& unseen) const {
    const auto seed = static_cast<uint64_t>(o_.seed);
    if (gpu_) {
      int64_t most = 1;
      for (const auto* const list : {&points, &unseen})
        for (const TimedPoint& p : *list) most = std::max(most, p.work.tokens);
      return std::make_unique<GraphTimer>(context_, layers, c.model, c.format, determinism_, seed, most);
    }
    auto timer = std::make_unique<BlockTimer>(context_, layers, c.model, c.format, determinism_, seed);
    if (o_.clock == "cpu") timer->use_cpu_time(machine_.workers);
    return timer;
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

  void time(const ProfileCase& c, const std::string& what, core::Profiler& profiler, TickSource& timer,
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

  // What an earlier run measured, when it was this machine, kernel and shape, in the same way. reopen: with
  // another budget.
  std::optional<core::Dataset> resume(const ProfileCase& c, const core::Metadata& here, bool& reopen) const {
    if (o_.fresh || !std::filesystem::exists(c.files.profile)) return std::nullopt;
    core::LoadedProfile loaded = core::read_profile(c.files.profile, here);
    for (const std::string& w : loaded.compatibility.warnings) io_.note(w);
    if (!loaded.compatibility.usable || loaded.profile.data.points.empty()) return std::nullopt;
    check_protocol(loaded.profile.metadata, here, c.files.profile);
    reopen = loaded.profile.metadata.budget_seconds != here.budget_seconds;
    core::restore_configs(loaded.profile.data.configs, c.files.profile);
    io_.note(fmt::format("{}: going on from there (--fresh starts over)", c.files.profile));
    return std::move(loaded.profile.data);
  }

  // None where the fit that has just been written is not taken.
  [[nodiscard]] ContextPtr live_context(const ProfileCase& c) const {
    BackendChoice choice = o_.backend;
    choice.backend = machine_.backend;
    choice.isa = machine_.isa;
    choice.fit = c.files.fit;
    ContextPtr live = make_context(choice, io_);
    if (backend_of(live.get()).fits() == nullptr) return nullptr;
    return live;
  }

  Judgement judge_case(const ProfileCase& c, TickSource& timer, const std::vector<TimedPoint>& points,
                       const core::Dataset& profiled, const core::Fit& fit) const {
    const core::Dispatcher dispatcher(fit.models.front());
    auto* const graphs = dynamic_cast<GraphTimer*>(&timer);
    // Beside them what the context runs on its own (number 0; it has no fit loaded): the analytic default,
    // which need not be one of the list.
    core::ConfigTable table = profiled.configs;
    std::vector<int32_t> numbers = numbers_of(table.size());  // before the fit left any out
    numbers.push_back(0);
    table.names.emplace_back("default");
    table.configs.push_back(table.configs.front());
    // And what a context with this fit runs on its own, its decision on the device included.
    ContextPtr live;
    if (graphs != nullptr) live = live_context(c);
    if (live) {
      numbers.push_back(GraphTimer::kLive);
      table.names.emplace_back("live");
      table.configs.push_back(table.configs.front());
      graphs->live_with(live.get());
    }
    // Its graphs go before its kernels do, also where ^C ends this.
    const std::unique_ptr<GraphTimer, void (*)(GraphTimer*)> detach(
        graphs, [](GraphTimer* timer_of_graphs) { timer_of_graphs->live_with(nullptr); });
    table.extra.resize(table.size() * table.extra_columns.size());

    core::ProfilerOptions options = judge_sampling(o_.judge_budget >= 0 ? o_.judge_budget : defaults_.budget,
                                                   o_.repeats, o_.quantile, points, graphs);
    if (gpu_) {
      options.always = static_candidates(c);
      for (size_t i = profiled.configs.size(); i < table.size(); ++i) options.always.push_back(i);
      for (const TimedPoint& p : points) {  // what is judged
        const std::string& name = dispatcher.predictor().configs().names[dispatcher.choose(p.work.histogram)];
        const auto at = std::find(table.names.begin(), table.names.end(), name);
        options.always.push_back(static_cast<size_t>(at - table.names.begin()));
      }
    }
    core::Profiler profiler(std::move(table), c.model, work_of(points), options);
    time(c, "judging", profiler, timer, points, numbers, {});
    Judgement j = judge(merge_halves(profiled), profiler.data(), dispatcher);
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
    return j;
  }

  Io& io_;
  const ProfileOptions& o_;
  ramp_context* context_;
  core::BlockMachine machine_;
  ramp_activation activation_;
  ramp_determinism determinism_;
  bool gpu_;
  Points defaults_;
};

}  // namespace

void make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    core::fail_argument(path, error.message(), "a directory that can be made and written to",
                        "choose another with -o", RAMP_ERROR_IO);
}

Json profile_case(Io& io, const ProfileOptions& options, ramp_context* context,
                  const core::BlockMachine& machine, const ProfileCase& c) {
  return ProfileRun(io, options, context, machine).run(c);
}

}  // namespace ramp::cli
