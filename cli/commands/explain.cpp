// `ramp explain`: why the dispatcher picks what it picks for one step, in numbers and in pictures.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "base/error.hpp"
#include "base/npy.hpp"
#include "base/tensor.hpp"
#include "cli/command.hpp"
#include "cli/evaluation.hpp"
#include "cli/explanation.hpp"
#include "cli/options.hpp"
#include "cli/plot/figure.hpp"
#include "cli/plot/plot.hpp"
#include "cli/trace_file.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::cli {
namespace {

struct ExplainOptions {
  DataOptions data;
  std::string fit, cost_model{core::kDefaultCostModel}, model, point;
  std::string histogram, ids, routing = "uniform", format = "fp8_block";
  int64_t tokens = 0, seed = 0, top = 12;
  std::string plot, config, trace;
  std::vector<std::string> panels;
};

std::vector<int32_t> parse_histogram(const std::string& text) {
  std::vector<int32_t> h;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    if (*at == ' ' || *at == ',') {
      ++at;
      continue;
    }
    int32_t count = 0;
    const auto [next, ec] = std::from_chars(at, end, count);
    if (ec != std::errc() || count < 0 || (next != end && *next != ' ' && *next != ','))
      core::fail_argument("--histogram",
                          fmt::format("'{}'", core::printable({at, static_cast<size_t>(end - at)}, 20)),
                          "counts >= 0 separated by spaces, one per expert");
    h.push_back(count);
    at = next;
  }
  return h;
}

std::vector<int32_t> histogram_of_ids(const std::string& path, int64_t experts) {
  const core::NpyArray file = core::read_npy(path);
  const ramp_tensor ids = file.view();
  if ((ids.dtype != RAMP_I32 && ids.dtype != RAMP_I64) || ids.ndim != 2)
    core::fail_argument(path, core::shape_text(ids), "int32 or int64 ids [tokens, k]",
                        "cut one step out of a trace: ramp workload TRACE --tokens T --save FILE",
                        RAMP_ERROR_BAD_FILE);
  std::vector<int32_t> h(static_cast<size_t>(experts));
  core::histogram(ids, {}, h);
  return h;
}

Step make_step(const ExplainOptions& o, const Source& source) {
  const core::ModelShape& m = source.model();
  Step step;
  if (!o.point.empty()) {
    const std::vector<core::WorkPoint>& points = source.data->points;
    const auto at = std::find_if(points.begin(), points.end(),
                                 [&](const core::WorkPoint& p) { return p.name == o.point; });
    step.point = static_cast<size_t>(at - points.begin());
    step.histogram = at->histogram;
    step.name = fmt::format("{} ({})", at->name, at->train ? "a training point" : "a test point");
  } else if (!o.histogram.empty()) {
    step.histogram = parse_histogram(o.histogram);
    step.name = "histogram";
  } else if (!o.ids.empty()) {
    step.histogram = histogram_of_ids(o.ids, m.experts);
    step.name = o.ids;
  } else {
    const core::WorkloadSpec spec = workload_from("--routing", o.routing);
    const int64_t tokens = o.tokens == 0 ? 64 : o.tokens;
    const core::Routing routing =
        core::make_routing(spec, m.experts, m.top_k, tokens, static_cast<uint64_t>(o.seed));
    step.histogram.assign(static_cast<size_t>(m.experts), 0);
    for (const int32_t id : routing.ids) ++step.histogram[static_cast<size_t>(id)];
    step.name = fmt::format("{}, {} tokens, seed {}", core::workload_name(spec), tokens, o.seed);
  }
  return step;
}

Source load(Io& io, const ExplainOptions& o) {
  std::optional<core::Dataset> data;
  if (!o.data.directory.empty()) data = read_data(o.data);
  const core::HardwareConstants hw = hardware_of(o.data);
  core::Fit fit;
  if (!o.fit.empty()) {
    core::LoadedFit loaded = core::read_fit(o.fit, {});  // explaining needs no device
    for (const std::string& w : loaded.compatibility.warnings) io.note(w);
    if (loaded.fit.models.empty())
      core::fail_argument(o.fit, "no fit that this library reads", "a fit file",
                          "write it again: ramp fit --data DIR -o FILE", RAMP_ERROR_BAD_FILE);
    fit = std::move(loaded.fit);
  } else if (data) {
    fit = core::fit_dataset(*data, o.cost_model, hw, metadata_of(o.data, ""));
  } else {
    core::fail_argument(
        "ramp explain", "neither --fit nor --data", "one of them",
        "for example: ramp explain --data tests/data/alpha_moe_h200 --model olmoe --tokens 64");
  }
  return make_source(fit, std::move(data), o.model, o.point, hw);
}

int explain_trace(Io& io, const ExplainOptions& o) {
  const Trace trace = read_trace(o.trace);
  std::optional<core::Fit> fit;
  if (!o.fit.empty()) {
    core::LoadedFit loaded = core::read_fit(o.fit, {});
    for (const std::string& w : loaded.compatibility.warnings) io.note(w);
    fit = std::move(loaded.fit);
  }
  const TraceSummary summary = summarize(trace, fit ? &*fit : nullptr);
  io.print(trace_text(summary));
  io.emit(trace_json(summary));
  return kOk;
}

int explain_command(Io& io, const ExplainOptions& o) {
  if (!o.trace.empty()) return explain_trace(io, o);
  const Source source = load(io, o);
  for (const std::string& n : source.notes) io.note(n);
  const Explanation e = explain(source, make_step(o, source), core::parse_format(o.format));
  io.print(explanation_text(source, e, static_cast<size_t>(o.top)));
  Json document = explanation_json(source, e);
  if (!o.plot.empty()) {
    const plot::Figure figure = plot::make_figure(source, e, o.config, o.panels);
    for (const std::string& n : figure.notes) io.note(n);
    plot::draw(figure, o.plot);
    io.print(fmt::format("drawn: {} ({})\n", o.plot, join(figure.panel_ids(), ", ")));
    document["plot"] = {{"file", o.plot}, {"panels", figure.panel_ids()}};
  }
  io.emit(std::move(document));
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<ExplainOptions>();
  add_data_options(app, o->data);
  app.get_option("--data")->required(false);
  std::vector<std::string> models;
  for (const std::string_view n : core::cost_model_names()) models.emplace_back(n);
  CLI::Option* const fit =
      add_text(app, "--fit", o->fit, "FILE", "explain this fit; without it --data is fitted on the spot");
  add_choice(app, "--cost-model", o->cost_model, models, "what to fit on --data")->excludes(fit);
  add_text(app, "--model", o->model, "MODEL",
           "which fitted layer shape, by name or E,k,H,I (default: the only one)");
  CLI::Option* const point = add_text(app, "--point", o->point, "NAME", "the step is this point of --data");
  CLI::Option* const histogram =
      add_text(app, "--histogram", o->histogram, "\"C C ...\"", "the step's rows per expert")
          ->excludes(point);
  CLI::Option* const ids = add_text(app, "--ids", o->ids, "FILE", "the step's ids [tokens, k] (.npy)")
                               ->excludes(point)
                               ->excludes(histogram);
  CLI::Option* const routing = add_text(app, "--routing", o->routing, "ROUTING",
                                        "generate the step: balanced, uniform, zipf:S, dirichlet:A, ...");
  routing->excludes(point)->excludes(histogram)->excludes(ids);
  add_integer(app, "--tokens", o->tokens, {1, 1 << 20}, "T", "tokens to generate (64 when not given)")
      ->excludes(point)
      ->excludes(histogram)
      ->excludes(ids);
  CLI::Option* const trace = add_text(
      app, "--trace", o->trace, "FILE",
      "what a program's calls chose (docs/dispatch.md, Traces), by shape and number of tokens; with --fit "
      "also what the fit says of it");
  for (const char* const other :
       {"--data", "--point", "--histogram", "--ids", "--routing", "--tokens", "--model"})
    trace->excludes(app.get_option(other));
  add_integer(app, "--seed", o->seed, {0}, "N", "which draw");
  add_choice(app, "--format", o->format, format_names(),
             "weight format, for the bytes of the active experts");
  add_integer(app, "--top", o->top, {1, 1 << 20}, "N", "candidates to print");
  CLI::Option* const draw =
      add_text(app, "--plot", o->plot, "FILE", "draw the model behind the choice: .svg, .png or .html");
  draw->group("Plot");
  add_list(app, "--panel", o->panels, "PANEL", "only these: " + join(plot::panel_names(), ", "))
      ->needs(draw)
      ->group("Plot");
  add_text(app, "--config", o->config, "CONFIG", "whose waves the staircase shows (default: the choice)")
      ->needs(draw)
      ->group("Plot");
  examples(app,
           {{"ramp explain --data tests/data/alpha_moe_h200 --model olmoe --routing zipf:1.2 --tokens 64",
             "fit measured data and explain one generated step"},
            {"ramp explain --data tests/data/alpha_moe_h200 --point olmoe_t64_z1.2 --plot why.svg",
             "a measured point, with measured times beside the predictions, drawn"},
            {"ramp explain --fit mine.json --histogram \"3 0 1 12\" --json", "an existing fit, for programs"},
            {"ramp explain --trace steps.jsonl --fit mine.json",
             "what was chosen in a program's steps, and what it lost"}});
  return [o](Io& io) { return explain_command(io, *o); };
}
const Register kRegister{
    {"explain", "why the dispatcher chooses a config for a step, with plots", 64, setup}};

}  // namespace
}  // namespace ramp::cli
