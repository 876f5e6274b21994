// `ramp fit`: measured timings in, fit file out.
#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "base/error.hpp"
#include "base/file.hpp"
#include "cli/command.hpp"
#include "cli/evaluation.hpp"
#include "cli/judgement.hpp"
#include "cli/options.hpp"
#include "cli/profile_report.hpp"
#include "dispatch/block_fit.hpp"
#include "dispatch/profile_file.hpp"

namespace ramp::cli {
namespace {

struct FitOptions {
  DataOptions data;
  std::string cost_model{core::kDefaultCostModel}, out, kernel, profile, report;
};

struct Measured {
  core::Dataset data;
  core::Metadata metadata;
  core::HardwareConstants hardware;
};

// A profile of the expert block is fitted as `ramp profile` does: halves merged, a GPU's contenders alone.
Measured read_profile_file(Io& io, const FitOptions& o) {
  core::LoadedProfile loaded = core::read_profile(o.profile, {});
  for (const std::string& w : loaded.compatibility.warnings) io.note(w);
  if (loaded.profile.data.points.empty())
    core::fail_argument(o.profile, "no profile that this library reads", "a profile file",
                        "write it again: ramp profile", RAMP_ERROR_BAD_FILE);
  Measured m{merge_halves(std::move(loaded.profile.data)), loaded.profile.metadata, {}};
  const std::optional<core::BlockKernel> kernel = core::parse_block_kernel(m.metadata.kernel);
  if (kernel) core::restore_configs(m.data.configs, o.profile);
  if (kernel && kernel->backend == "cuda") {
    m.data = contenders(std::move(m.data), 0);
    m.hardware = core::h200();
    if (m.metadata.sm_count > 0) m.hardware.sm_count = m.metadata.sm_count;
  } else {
    m.hardware = core::cpu_hardware(std::max(m.metadata.sm_count, 1));
  }
  return m;
}

Measured read_measured(Io& io, const FitOptions& o) {
  if (!o.profile.empty()) return read_profile_file(io, o);
  if (o.data.directory.empty())
    core::fail_argument("ramp fit", "neither --data nor --profile", "one of them",
                        "for example: ramp fit --data profiles/mine -o mine.json");
  return {read_data(o.data), metadata_of(o.data, o.kernel), hardware_of(o.data)};
}

int fit(Io& io, const FitOptions& o) {
  const Measured measured = read_measured(io, o);
  const core::Dataset& d = measured.data;
  const auto start = std::chrono::steady_clock::now();
  std::vector<core::ModelFitReport> reports;
  const core::Fit fit = core::fit_dataset(d, o.cost_model, measured.hardware, measured.metadata, &reports);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  core::write_fit(o.out, fit);
  if (!o.report.empty()) {
    const std::optional<core::BlockKernel> kernel = core::parse_block_kernel(measured.metadata.kernel);
    core::write_text(o.report, profile_html({&d,
                                             &fit,
                                             kernel ? core::format_name(kernel->format) : "any format",
                                             {},
                                             {{"fitting", seconds}},
                                             {}}));
  }

  Table table({{"model", Table::Align::kLeft}, {"train points"}, {"configs"}, {"coefficients"}});
  Json models = Json::object();
  for (size_t m = 0; m < fit.models.size(); ++m) {
    const core::Predictor& p = *fit.models[m].predictor;
    const core::FitReport& r = reports[m].report;
    table.add({p.model().name, std::to_string(r.n_train), std::to_string(p.configs().size()),
               std::to_string(p.coefficients())});
    models[p.model().name] = {{"n_train", r.n_train},
                              {"configs", p.configs().size()},
                              {"coefficients", p.coefficients()},
                              {"warnings", r.warnings}};
    for (const std::string& w : r.warnings) io.note(fmt::format("{}: {}", p.model().name, w));
  }
  io.print(table.text());
  io.print(fmt::format("cost model {} fitted in {:.2f} s, written to {}\n", o.cost_model, seconds, o.out));
  io.emit({{"cost_model", o.cost_model},
           {"data", o.profile.empty() ? o.data.directory : o.profile},
           {"out", o.out},
           {"seconds", seconds},
           {"models", models}});
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<FitOptions>();
  add_data_options(app, o->data);
  app.get_option("--data")->required(false);
  CLI::Option* const profile =
      add_text(app, "--profile", o->profile, "FILE",
               "a profile file of 'ramp profile' instead of --data: fits it again, without timing anything");
  profile->excludes(app.get_option("--data"));
  add_text(app, "--report", o->report, "FILE", "also an HTML page with plots, of --profile")->needs(profile);
  std::vector<std::string> names;
  for (const std::string_view n : core::cost_model_names()) names.emplace_back(n);
  add_choice(app, "--cost-model", o->cost_model, names, "what to fit; only rows with split=train are read");
  add_text(app, "-o,--out", o->out, "FILE", "fit file to write (JSON)")->required();
  add_text(app, "--kernel", o->kernel, "NAME", "whose configs these are (default: the directory's name)");
  examples(app,
           {{"ramp fit --data profiles/mine -o mine.json", "fit every model of the directory"},
            {"ramp fit --profile olmoe.profile.json -o olmoe.fit.json --report olmoe.html",
             "a profile again, with plots"},
            {"ramp fit --data profiles/mine -o r4.json --cost-model ramp4", "the published model instead"}});
  return [o](Io& io) { return fit(io, *o); };
}
const Register kRegister{{"fit", "fit a cost model on measured timings", 60, setup}};

}  // namespace
}  // namespace ramp::cli
