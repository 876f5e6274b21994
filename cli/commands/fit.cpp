// `ramp fit`: measured timings in, fit file out.
#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "cli/command.hpp"
#include "cli/evaluation.hpp"
#include "cli/options.hpp"

namespace ramp::cli {
namespace {

struct FitOptions {
  DataOptions data;
  std::string cost_model{core::kDefaultCostModel}, out, kernel;
};

int fit(Io& io, const FitOptions& o) {
  const core::Dataset d = read_data(o.data);
  const auto start = std::chrono::steady_clock::now();
  std::vector<core::ModelFitReport> reports;
  const core::Fit fit =
      core::fit_dataset(d, o.cost_model, hardware_of(o.data), metadata_of(o.data, o.kernel), &reports);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  core::write_fit(o.out, fit);

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
           {"data", o.data.directory},
           {"out", o.out},
           {"seconds", seconds},
           {"models", models}});
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<FitOptions>();
  add_data_options(app, o->data);
  std::vector<std::string> names;
  for (const std::string_view n : core::cost_model_names()) names.emplace_back(n);
  add_choice(app, "--cost-model", o->cost_model, names, "what to fit; only rows with split=train are read");
  add_text(app, "-o,--out", o->out, "FILE", "fit file to write (JSON)")->required();
  add_text(app, "--kernel", o->kernel, "NAME", "whose configs these are (default: the directory's name)");
  examples(app,
           {{"ramp fit --data profiles/mine -o mine.json", "fit every model of the directory"},
            {"ramp fit --data profiles/mine -o r4.json --cost-model ramp4", "the published model instead"}});
  return [o](Io& io) { return fit(io, *o); };
}
const Register kRegister{{"fit", "fit a cost model on measured timings", 60, setup}};

}  // namespace
}  // namespace ramp::cli
