// `ramp profile`: times the backend's configs over token counts and skew, fits the cost model, and puts both
// files where contexts find them.
#include <fmt/format.h>

#include <memory>

#include "base/env.hpp"
#include "base/error.hpp"
#include "cli/command.hpp"
#include "cli/kernel_profile.hpp"
#include "cli/options.hpp"
#include "cli/profile_run.hpp"
#include "cli/progress.hpp"

namespace ramp::cli {
namespace {

// Where the files go: -o FILE.json (one case), -o DIR, or the place where contexts look for fits.
void place_files(std::vector<ProfileCase>& cases, const ProfileOptions& o, const core::BlockMachine& machine,
                 ramp_activation activation) {
  if (o.out.ends_with(".json")) {
    if (cases.size() != 1)
      core::fail_argument("-o", fmt::format("one file for {} profiles", cases.size()),
                          "a directory where there are several models or formats");
    std::string stem = o.out.substr(0, o.out.size() - 5);
    if (stem.ends_with(".fit")) stem.resize(stem.size() - 4);
    cases.front().files = {stem + ".profile.json", o.out, stem + ".html"};
    return;
  }
  const std::string directory = o.out.empty() ? core::fit_directory(core::cache_directory("")) : o.out;
  if (directory.empty())
    core::fail_argument("-o", "nothing, and no cache directory", "a file or directory to write to",
                        "set HOME or RAMP_CACHE_DIR, or give -o");
  make_directory(directory);
  for (ProfileCase& c : cases) {
    const std::string stem = directory + "/" + core::block_file_stem(machine, c.model, c.format, activation);
    c.files = {stem + ".profile.json", stem + ".fit.json", stem + ".html"};
  }
}

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
  std::vector<ProfileCase> cases;
  for (const core::ModelShape& model : models_from("--model", o.models))
    for (const std::string& list : o.formats)
      for (const std::string& format : split(list, ','))
        cases.push_back({model, core::parse_format(format), {}});
  place_files(cases, o, machine, core::parse_activation(o.activation));
  Json list = Json::array();
  try {
    for (const ProfileCase& c : cases)
      list.push_back(o.kernel_library.empty() ? profile_case(io, o, context.get(), machine, c)
                                              : profile_kernel_case(io, o, context.get(), c));
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
  add_choice(app, "--determinism", o->determinism, determinism_names(),
             "mode of the timed calls; fast times configs as well that add up in any order (_sum)")
      ->group(kPoints);
  add_integer(app, "--seed", o->seed, {0}, "N", "of weights, activations and routing")->group(kPoints);
  constexpr const char* kProtocol = "Protocol";
  add_real(
      app, "--budget", o->budget, 0, 86400, "S",
      fmt::format(
          "seconds of timing per model and format; kernels, weights, graphs and fitting come on top; 0 = no "
          "limit (default: {:g}; on a GPU {:g})",
          kCpuPoints.budget, kGpuPoints.budget))
      ->group(kProtocol);
  add_integer(
      app, "--repeats", o->repeats, {2, 1000}, "N",
      "samples per config and point, at most; judging takes at least 4 where the choice is close, on a GPU "
      "20")
      ->group(kProtocol);
  add_real(app, "--quantile", o->quantile, 0, 1, "Q",
           "which sample counts: 0.5 = the median; 0 = the fastest, where others use the machine meanwhile")
      ->group(kProtocol);
  add_choice(
      app, "--clock", o->clock, {"wall", "cpu"},
      "what ticks: wall time, or CPU time over workers where other programs take the cores away (not on "
      "a GPU)")
      ->group(kProtocol);
  add_integer(
      app, "--layers", o->layers, {1, 1000}, "L",
      "layers of weights to rotate over (default: twice the last-level cache; on a GPU as 'ramp bench', more "
      "where they would stay in the L2 cache)")
      ->group(kProtocol);
  std::vector<std::string> names;
  for (const std::string_view n : core::cost_model_names()) names.emplace_back(n);
  add_choice(app, "--cost-model", o->cost_model, names, "what to fit")->group(kProtocol);
  add_text(app, "-o,--out", o->out, "PATH",
           "fit file (FILE.json; the profile goes beside it) or directory (default: where contexts look for "
           "fits: fits in RAMP_CACHE_DIR, XDG_CACHE_HOME/ramp or ~/.cache/ramp)")
      ->group(kProtocol);
  add_switch(app, "--report", o->report,
             "also an HTML page with plots beside the fit: best configs, regret, predictions, time spent")
      ->group(kProtocol);
  add_switch(
      app, "--fresh", o->fresh,
      "measure everything again instead of going on from the profile file, which must have been taken with "
      "the same --layers, --clock, --quantile and --determinism")
      ->group(kProtocol);
  add_text(
      app, "--kernel-library", o->kernel_library, "FILE",
      "time the configs of a shared library's kernel beside ramp's own, check its results, and fit both as "
      "one table (docs/third-party.md)")
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
  add_real(
      app, "--judge-budget", o->judge_budget, 0, 86400, "S",
      "seconds of timing for them (default: as --budget); on a CPU every config is timed at least twice "
      "everywhere, on a GPU three times, whatever it takes, but for those that are hopeless at a point or "
      "next door, once or not at all")
      ->group(kJudge);
  add_text(app, "--csv", o->csv, "DIR",
           "judge, and write all timings as a dataset for 'ramp evaluate' into a directory in DIR")
      ->group(kJudge);
  add_backend_options(app, o->backend, false);
  examples(app, {{"ramp profile --backend cuda --model olmoe --report",
                  "a minute on a GPU: a hundred and more configs in CUDA graphs, and a page with plots"},
                 {"ramp profile --model olmoe --format bf16",
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
