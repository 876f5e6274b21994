// The library, the layers, the check, the loop, the table.
#include "cli/kernel_profile.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>

#include "abi/dispatch_handles.hpp"
#include "abi/handles.hpp"
#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/block_profile.hpp"
#include "cli/graph_profile.hpp"
#include "cli/options.hpp"
#include "cli/profile_protocol.hpp"
#include "cli/profile_sampling.hpp"
#include "cli/progress.hpp"
#include "cli/verify.hpp"
#include "dispatch/profile_file.hpp"
#include "ramp/version.h"

namespace ramp::cli {
namespace {

struct DestroyKernel {
  void operator()(ramp_kernel* k) const noexcept { ramp_kernel_destroy(k); }
};

// Stays open until the process ends: tables, strings and code of it are in use.
ramp_kernel_library_fn open_library(const std::string& file) {
  // A name without a slash would be looked for where the system's libraries are.
  const std::string path = file.find('/') == std::string::npos ? "./" + file : file;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    core::fail_argument("--kernel-library", core::printable(dlerror(), 200), "a shared library that opens",
                        "see docs/third-party.md", RAMP_ERROR_IO);
  void* const entry = dlsym(library, "ramp_kernel_library");
  if (entry == nullptr)
    core::fail_argument("--kernel-library", fmt::format("no function ramp_kernel_library in {}", file),
                        "a library that exports one (ramp/dispatch.h)", "declare it extern \"C\" and visible",
                        RAMP_ERROR_BAD_FILE);
  return reinterpret_cast<ramp_kernel_library_fn>(entry);
}

// A kernel's name as part of a file's.
std::string file_part(std::string_view name) {
  std::string s;
  for (const char c : name) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    s += plain ? c : '_';
  }
  return s;
}

class KernelProfile {
 public:
  KernelProfile(Io& io, const ProfileOptions& o, ramp_context* context, const ProfileCase& c)
      : io_(io),
        o_(o),
        context_(context),
        case_(c),
        activation_(core::parse_activation(o.activation)),
        gpu_(backend_of(context).memory() != nullptr),
        defaults_(gpu_ ? kGpuPoints : kCpuPoints) {}

  Json run() {
    const std::vector<TimedPoint> points = make_points(
        case_.model,
        integers_from("--tokens", o_.tokens.empty() ? defaults_.tokens : o_.tokens, {1, 1 << 20}),
        workloads_from(o_.routing.empty() ? std::vector<std::string>{defaults_.routing} : o_.routing), true,
        static_cast<uint64_t>(o_.seed));
    for (const TimedPoint& p : points) most_tokens_ = std::max(most_tokens_, p.work.tokens);
    make_layers(points);
    register_kernel();
    const std::vector<TimedPoint> checked =
        make_points(case_.model, {1, std::min<int64_t>(33, most_tokens_)}, workloads_from({"zipf:1.2"}),
                    false, static_cast<uint64_t>(o_.seed) + 77);
    for (int32_t c = own_; c < configs_; ++c)
      for (const TimedPoint& p : checked) check_config(c, p);
    time(points);
    check(ramp_kernel_fit(kernel_.get(), o_.cost_model.c_str()));
    check(ramp_kernel_save_fit(kernel_.get(), fit_file_.c_str()));
    for (int32_t i = 0; const char* line = ramp_kernel_warning(kernel_.get(), i); ++i) io_.note(line);
    return report();
  }

 private:
  void make_layers(const std::vector<TimedPoint>& points) {
    int64_t least = case_.model.experts;
    for (const TimedPoint& p : points) least = std::min(least, core::describe(p.work.histogram).active);
    const LayerPlan plan =
        gpu_ ? plan_gpu_layers(context_, case_.model, case_.format, activation_, least, o_.layers)
             : plan_layers(case_.model, case_.format, activation_, o_.layers);
    const int64_t count = plan.layers;
    for (int64_t l = 0; l < count; ++l) {
      core::SyntheticWeightsOptions options;
      options.seed = seed_of_layer(l);
      options.parallel = [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); };
      RunnableLayer layer;
      if (gpu_) {
        layer.device_storage = fill_on_device(
            context_, core::make_synthetic_recipe(case_.model, case_.format, activation_, options));
      } else {
        layer.storage = core::make_synthetic_weights(case_.model, case_.format, activation_, options);
        layer.storage.desc.ownership = RAMP_IN_PLACE;
      }
      const ramp_weights_desc& desc = gpu_ ? layer.device_storage.desc : layer.storage.desc;
      ramp_weights* handle = nullptr;
      check(ramp_weights_create(context_, &desc, nullptr, &handle));
      layer.handle.reset(handle);
      layers_.push_back(std::move(layer));
    }
  }

  // The library sees the values before they are packed in their place.
  void register_kernel() {
    const ramp_kernel_library_fn entry = open_library(o_.kernel_library);
    std::vector<const ramp_weights*> handles;
    std::vector<const ramp_weights_desc*> values;
    for (const RunnableLayer& l : layers_) {
      handles.push_back(l.handle.get());
      values.push_back(gpu_ ? &l.device_storage.desc : &l.storage.desc);
    }
    ramp_kernel_library_request request;
    request.struct_size = sizeof request;
    request.device = core::context_of(context_).device;
    request.format = case_.format;
    request.activation = activation_;
    request.num_experts = case_.model.experts;
    request.top_k = case_.model.top_k;
    request.hidden = case_.model.hidden;
    request.intermediate = case_.model.intermediate;
    request.max_tokens = std::max<int64_t>(most_tokens_, 33);
    request.num_layers = static_cast<int64_t>(layers_.size());
    request.weights = handles.data();
    request.values = values.data();
    ramp_kernel_desc desc = ramp_kernel_desc_init();
    const int code = entry(&request, &desc);
    if (code != 0)
      core::fail_argument("--kernel-library",
                          fmt::format("ramp_kernel_library of {} returned {}", o_.kernel_library, code),
                          fmt::format("0: a kernel for {} in {} on the {} backend", case_.model.name,
                                      core::format_name(case_.format), facts_of(context_).backend),
                          "choose another --model, --format or --backend", RAMP_ERROR_UNSUPPORTED);
    if (desc.num_configs < 1)
      core::fail_argument(
          "--kernel-library",
          fmt::format("{} configs from ramp_kernel_library of {}", desc.num_configs, o_.kernel_library),
          "at least 1 to time beside ramp's",
          "set configs and num_configs of the ramp_kernel_desc, or return other than 0", RAMP_ERROR_BAD_FILE);
    for (const RunnableLayer& l : layers_) check(ramp_weights_pack(context_, l.handle.get(), nullptr));
    desc.top_k = case_.model.top_k;
    desc.model_name = case_.model.name.c_str();
    name_ = desc.name != nullptr ? desc.name : "";
    ramp_kernel* kernel = nullptr;
    check(ramp_block_kernel_create(context_, layers_.front().handle.get(), &desc, &kernel));
    kernel_.reset(kernel);
    ramp_kernel_info info = ramp_kernel_info_init();
    check(ramp_kernel_get_info(kernel, &info));
    configs_ = info.num_configs;
    own_ = configs_ - desc.num_configs;
    std::string stem = case_.files.fit;
    for (const char* ending : {".json", ".fit"})
      if (stem.ends_with(ending)) stem.resize(stem.size() - std::string_view(ending).size());
    stem += "_" + file_part(name_);
    profile_file_ = stem + ".kernel-profile.json";
    fit_file_ = stem + ".kernel-fit.json";
  }

  // A few tokens of the point against fp64, on the host's own copy of the experts that they go to.
  void check_config(int32_t config, const TimedPoint& point) {
    const core::ModelShape& m = case_.model;
    const int64_t tokens = point.work.tokens, k = m.top_k;
    const ramp_dtype dtype = natural_dtype(case_.format);
    HostTensor x = make_host_tensor(dtype, {tokens, m.hidden}),
               y = make_host_tensor(dtype, {tokens, m.hidden}), ids = make_host_tensor(RAMP_I32, {tokens, k}),
               weights = make_host_tensor(RAMP_F32, {tokens, k});
    core::fill_activations(x.view.data, dtype, tokens, m.hidden, static_cast<uint64_t>(o_.seed));
    std::copy(point.routing.ids.begin(), point.routing.ids.end(), ids.data.as<int32_t>());
    std::copy(point.routing.weights.begin(), point.routing.weights.end(), weights.data.as<float>());
    const Mirror device_x = Mirror::uploaded(context_, x.view),
                 device_ids = Mirror::uploaded(context_, ids.view),
                 device_weights = Mirror::uploaded(context_, weights.view);
    const Mirror device_y(context_, y.view);
    device_y.fill(0xff);  // NaN
    ramp_expert_block_args args = ramp_expert_block_args_init();
    args.weights = layers_.front().handle.get();
    args.x = device_x.view();
    args.topk_ids = device_ids.view();
    args.topk_weights = device_weights.view();
    args.y = device_y.view();
    ramp_block_call call = ramp_block_call_init();
    call.args = &args;
    check(ramp_kernel_launch(kernel_.get(), config, &call));
    device_y.download();

    const std::vector<int64_t> sample = sample_tokens(tokens, k, m, activation_, kQuickBudget);
    const auto count = static_cast<int64_t>(sample.size());
    const size_t row = static_cast<size_t>(m.hidden * core::dtype_bytes(dtype));
    CheckSample s{make_host_tensor(dtype, {count, m.hidden}),
                  make_host_tensor(RAMP_I32, {count, k}),
                  make_host_tensor(RAMP_F32, {count, k}),
                  make_host_tensor(dtype, {count, m.hidden}),
                  RAMP_REPEATABLE,
                  backend_of(context_).arithmetic(values_of(layers_.front().handle.get()))};
    std::vector<int64_t> experts;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = sample[static_cast<size_t>(i)];
      std::copy_n(x.data.as<std::byte>() + static_cast<size_t>(t) * row, row,
                  s.x.data.as<std::byte>() + static_cast<size_t>(i) * row);
      std::copy_n(y.data.as<std::byte>() + static_cast<size_t>(t) * row, row,
                  s.y.data.as<std::byte>() + static_cast<size_t>(i) * row);
      for (int64_t j = 0; j < k; ++j) {
        const int64_t id = ids.data.as<int32_t>()[t * k + j];
        auto at = std::find(experts.begin(), experts.end(), id);
        if (at == experts.end()) at = experts.insert(at, id);
        s.ids.data.as<int32_t>()[i * k + j] = static_cast<int32_t>(at - experts.begin());
        s.weights.data.as<float>()[i * k + j] = weights.data.as<float>()[t * k + j];
      }
    }
    const auto parallel = [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); };
    const RandomSource source(m, case_.format, activation_, seed_of_layer(0));
    const core::SyntheticWeights values = core::make_synthetic_experts(source.recipe(), experts, parallel);
    const core::CheckResult r = check_sample(s, *core::make_expert_weights(values.desc, {}), parallel);
    worst_ = std::max(worst_, bound_ratio(r));
    if (!r.ok())
      core::fail_argument(fmt::format("--kernel-library: config '{}'", name_of(config)),
                          fmt::format("a result {} times its error bound away from fp64 ({} tokens, {})",
                                      number(bound_ratio(r)), tokens, core::format_name(case_.format)),
                          "at most 1", "correct the kernel: only right ones are worth timing");
  }

  void time(const std::vector<TimedPoint>& points) {
    std::unique_ptr<TickSource> timer;
    core::ProfilerOptions options;
    const auto seed = static_cast<uint64_t>(o_.seed);
    if (gpu_) {
      auto graphs = std::make_unique<GraphTimer>(context_, layers_, case_.model, case_.format,
                                                 RAMP_REPEATABLE, seed, most_tokens_);
      watch_clock(options, points, *graphs);
      timer = std::move(graphs);
    } else {
      timer =
          std::make_unique<BlockTimer>(context_, layers_, case_.model, case_.format, RAMP_REPEATABLE, seed);
    }
    timer->launch_with(
        [&](int32_t number, ramp_block_call& call) {
          check(ramp_kernel_launch(kernel_.get(), number, &call));
        },
        [&](int32_t number) { return name_of(number); });
    core::RegisteredKernel& kernel = *core::kernel_of(kernel_.get()).kernel;
    const core::KernelDescription& d = kernel.description();
    core::Metadata metadata = d.machine;
    metadata.library_version = RAMP_VERSION_STRING;
    metadata.kernel = d.name;
    metadata.date_utc = core::utc_now();
    metadata.source = fmt::format("ramp profile --kernel-library, {} layers", layers_.size());
    metadata.protocol =
        protocol_text(static_cast<int64_t>(layers_.size()), o_.clock, o_.quantile) + (gpu_ ? kRelated : "");
    metadata.budget_seconds = o_.budget >= 0 ? o_.budget : defaults_.budget;
    const bool resumed = resume(metadata, options.reopen);
    options.warmup = 1;
    options.repeats = static_cast<int32_t>(o_.repeats);
    options.quantile = o_.quantile;
    options.hopeless_ratio = 1.5;
    options.skip_after = 0;
    options.budget_us = 1e6 * metadata.budget_seconds;
    options.settled_us = gpu_ ? 0 : 5000;
    options.narrow_ratio = gpu_ ? 1.15 : 1.25;
    options.narrow_after = gpu_ ? 2 : 4;
    // Somebody wants to know about these: timed everywhere, however slow.
    for (int32_t c = own_; c < configs_; ++c) options.always.push_back(static_cast<size_t>(c));
    std::vector<core::WorkPoint> work;
    for (const TimedPoint& p : points) work.push_back(p.work);
    core::Profiler profiler(d.configs, d.model, work, options, resumed ? kernel.profile() : nullptr);
    std::vector<int32_t> numbers(static_cast<size_t>(configs_));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int32_t>(i);
    const auto save = [&] { core::write_profile(profile_file_, metadata, profiler.data()); };
    {
      Progress progress(io_, fmt::format("profiling {} and ramp's configs", name_));
      run_profiler(profiler, *timer, points, numbers, save,
                   [&] { progress.update(profiler.progress().fraction); });
    }
    save();
    kernel.set_profile(profiler.data(), profiler.notes());
    for (const std::string& n : profiler.notes()) io_.note(n);
  }

  // Whether the kernel has a profile to go on from now: of this machine and table, taken as `here` says.
  bool resume(const core::Metadata& here, bool& reopen) {
    if (o_.fresh || !std::filesystem::exists(profile_file_)) return false;
    int32_t used = 0;
    check(ramp_kernel_load_profile(kernel_.get(), profile_file_.c_str(), &used));
    for (int32_t i = 0; const char* line = ramp_kernel_warning(kernel_.get(), i); ++i) io_.note(line);
    if (used == 0) return false;
    core::Metadata theirs = core::read_profile(profile_file_, here).profile.metadata;
    if (theirs.protocol.empty()) theirs.protocol = "a protocol that it does not name";
    check_protocol(theirs, here, profile_file_);
    reopen = theirs.budget_seconds != here.budget_seconds;
    io_.note(fmt::format("{}: going on from there (--fresh starts over)", profile_file_));
    return true;
  }

  // Who won where, and what the fit makes of it.
  Json report() {
    const core::RegisteredKernel& kernel = *core::kernel_of(kernel_.get()).kernel;
    const core::Dataset& d = *kernel.profile();
    const auto best = [&](size_t point, int32_t from, int32_t to) {
      int32_t at = from;
      for (int32_t c = from; c < to; ++c) {
        const double us = d.time(point, static_cast<size_t>(c));
        const double least = d.time(point, static_cast<size_t>(at));
        if (us < least || std::isnan(least)) at = c;
      }
      return at;
    };
    int won = 0, chosen_theirs = 0, judged = 0;
    double loss = 0;
    Json rows = Json::array();
    io_.print(fmt::format("{:24} {:>10}  {:24} {:>10}  {:24}  {}\n", "point", "ramp us", "its config",
                          name_.substr(0, 7) + " us", "its config", "chosen"));
    for (size_t p = 0; p < d.points.size(); ++p) {
      const bool none = own_ == 0;
      const int32_t ours = best(p, 0, none ? configs_ : own_), theirs = best(p, own_, configs_);
      const double own_us =
                       none ? std::numeric_limits<double>::quiet_NaN() : d.time(p, static_cast<size_t>(ours)),
                   their_us = d.time(p, static_cast<size_t>(theirs));
      int32_t chosen = 0;
      check(ramp_kernel_choose(kernel_.get(), d.points[p].histogram.data(), case_.model.experts, &chosen));
      const double chosen_us = d.time(p, static_cast<size_t>(chosen));
      won += their_us < own_us || (std::isnan(own_us) && !std::isnan(their_us)) ? 1 : 0;
      chosen_theirs += chosen >= own_ ? 1 : 0;
      if (!std::isnan(chosen_us)) {
        loss += chosen_us / std::fmin(own_us, their_us) - 1;
        ++judged;
      }
      io_.print(fmt::format("{:24} {:>10}  {:24} {:>10}  {:24}  {}\n", d.points[p].name, number(own_us),
                            none ? "" : name_of(ours), number(their_us), name_of(theirs), name_of(chosen)));
      rows.push_back({{"point", d.points[p].name},
                      {"tokens", d.points[p].tokens},
                      {"ramp_us", none || std::isnan(own_us) ? Json() : Json(own_us)},
                      {"ramp_config", none ? "" : name_of(ours)},
                      {"library_us", std::isnan(their_us) ? Json() : Json(their_us)},
                      {"library_config", name_of(theirs)},
                      {"chosen", name_of(chosen)}});
    }
    const double mean = judged == 0 ? 0 : loss / judged;
    io_.print(fmt::format(
        "{} in {}: {} configs that ramp ships, not checked here; {} of {}, all right (at most {} of their "
        "error bound); {} is faster at {} of {} points, the fit chooses it at {}; mean loss of its choices "
        "there {:.1f}%\n  profile {}\n  fit     {}\n",
        case_.model.name, core::format_name(case_.format), own_, configs_ - own_, name_, number(worst_),
        name_, won, d.points.size(), chosen_theirs, 100 * mean, profile_file_, fit_file_));
    return {{"model", case_.model.name},
            {"format", core::format_name(case_.format)},
            {"kernel", name_},
            {"ramp_configs", own_},
            {"library_configs", configs_ - own_},
            {"points", rows},
            {"bound_ratio", worst_},
            {"library_wins", won},
            {"library_chosen", chosen_theirs},
            {"mean_regret", mean},
            {"profile", profile_file_},
            {"fit", fit_file_}};
  }

  [[nodiscard]] uint64_t seed_of_layer(int64_t layer) const {
    return static_cast<uint64_t>(o_.seed + 1000 + layer);
  }
  [[nodiscard]] std::string name_of(int32_t config) const {
    return ramp_kernel_config_name(kernel_.get(), config);
  }

  Io& io_;
  const ProfileOptions& o_;
  ramp_context* context_;
  const ProfileCase& case_;
  ramp_activation activation_;
  bool gpu_;
  Points defaults_;
  int64_t most_tokens_ = 1;
  std::vector<RunnableLayer> layers_;
  std::unique_ptr<ramp_kernel, DestroyKernel> kernel_;
  int32_t configs_ = 0, own_ = 0;
  double worst_ = 0;
  std::string name_, profile_file_, fit_file_;
};

}  // namespace

Json profile_kernel_case(Io& io, const ProfileOptions& options, ramp_context* context, const ProfileCase& c) {
  if (options.judge || !options.csv.empty() || options.report)
    core::fail_argument("--kernel-library", "--judge, --csv or --report beside it", "neither of them",
                        "the table that it prints says who won where");
  if (options.determinism != "repeatable")
    core::fail_argument("--determinism", fmt::format("{} beside --kernel-library", options.determinism),
                        "repeatable", "leave --determinism out: a library's launch knows no modes");
  if (options.clock != "wall")
    core::fail_argument(
        "--clock", fmt::format("{} beside --kernel-library", options.clock), "wall",
        "leave --clock out: CPU time is shared over ramp's workers, which a library need not use");
  return KernelProfile(io, options, context, c).run();
}

}  // namespace ramp::cli
