// `ramp workload`: generate, describe and save routing; statistics of a trace.
#include "routing/workload.hpp"

#include <fmt/format.h>

#include <memory>
#include <numeric>
#include <vector>

#include "base/error.hpp"
#include "base/npy.hpp"
#include "base/tensor.hpp"
#include "cli/command.hpp"
#include "cli/machine.hpp"
#include "cli/options.hpp"
#include "cli/tensors.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::cli {
namespace {

struct WorkloadOptions {
  std::string routing = "uniform", model, save, save_weights;
  int64_t experts = 0, top_k = 0, tokens = 0, seed = 0;
  bool histogram = false;
};

std::vector<int32_t> histogram_of(const ramp_tensor& ids, int64_t experts) {
  std::vector<int32_t> counts(static_cast<size_t>(experts));
  core::histogram(ids, {}, counts);
  return counts;
}

Json to_json(const core::StepStats& s, int64_t tokens) {
  return {{"tokens", tokens},
          {"rows", s.histogram.rows},
          {"active", s.histogram.active},
          {"max_load", s.histogram.max_load},
          {"max_over_mean", s.histogram.max_over_mean},
          {"normalised_entropy", s.histogram.normalised_entropy},
          {"masked", s.masked},
          {"out_of_range", s.out_of_range}};
}

// A row of bars, one per expert in falling order of load, at most 64 wide.
std::string bars(std::vector<int32_t> histogram) {
  static const std::vector<std::string> kBars = {"·", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::sort(histogram.begin(), histogram.end(), std::greater<>());
  const int32_t top = std::max<int32_t>(1, histogram.empty() ? 1 : histogram.front());
  const size_t width = std::min<size_t>(64, histogram.size());
  std::string out;
  for (size_t i = 0; i < width; ++i) {
    // Each column stands for histogram.size() / width experts: their largest load.
    const int32_t c = histogram[i * histogram.size() / width];
    out += kBars[static_cast<size_t>((int64_t{c} * 8 + top - 1) / top)];
  }
  return out;
}

std::vector<std::string> cells(const std::string& name, const core::StepStats& s, int64_t tokens) {
  return {name,
          std::to_string(tokens),
          std::to_string(s.histogram.rows),
          fmt::format("{}/{}", s.histogram.active, s.histogram.experts),
          std::to_string(s.histogram.max_load),
          number(s.histogram.max_over_mean),
          fmt::format("{:.4f}", s.histogram.normalised_entropy)};
}
Table stats_table() {
  return Table({{"step", Table::Align::kLeft},
                {"tokens"},
                {"rows"},
                {"active"},
                {"max load"},
                {"max/mean"},
                {"entropy"}});
}

// E and k: from --model, or --experts and --top-k; a trace needs only E.
core::ModelShape shape_of(const WorkloadOptions& o, bool trace) {
  core::ModelShape shape;
  if (!o.model.empty()) shape = model_from("--model", o.model);
  if (o.experts > 0) shape.experts = o.experts;
  if (o.top_k > 0) shape.top_k = o.top_k;
  if (shape.experts == 0 && !trace)
    core::fail_argument("--model", "nothing", "a model, or --experts with --top-k",
                        "for example: ramp workload zipf:1.2 --model olmoe --tokens 64");
  if (shape.top_k == 0 && !trace)
    core::fail_argument("--top-k", "nothing", "experts per token, with --experts");
  return shape;
}

int64_t largest_id(const ramp_tensor& ids) {
  int64_t top = -1;
  const int64_t count = core::numel(ids);
  for (int64_t i = 0; i < count; ++i)
    top = std::max(top, ids.dtype == RAMP_I64 ? static_cast<const int64_t*>(ids.data)[i]
                                              : int64_t{static_cast<const int32_t*>(ids.data)[i]});
  return top;
}

// Ids of two or three dimensions; unsigned ones, which traces of few experts are stored as, are widened.
HostTensor read_trace(const std::string& path) {
  core::NpyArray array = core::read_npy(path);
  HostTensor t;
  t.view = array.view();
  const bool bytes = array.dtype == RAMP_U8;
  const bool words = array.descr == "<u2";
  if ((!bytes && !words && array.dtype != RAMP_I32 && array.dtype != RAMP_I64) || t.view.ndim < 2 ||
      t.view.ndim > 3)
    core::fail_argument(path, core::shape_text(t.view), "integer ids [tokens, k] or [steps, tokens, k]",
                        "save int32, int64, uint8 or uint16 ids with numpy.save", RAMP_ERROR_BAD_FILE);
  t.data = std::move(array.data);
  if (!bytes && !words) return t;
  const int64_t count = core::numel(t.view);
  core::AlignedBuffer wide(static_cast<uint64_t>(count) * sizeof(int32_t));
  for (int64_t i = 0; i < count; ++i)
    wide.as<int32_t>()[i] = bytes ? t.data.as<uint8_t>()[i] : t.data.as<uint16_t>()[i];
  t.data = std::move(wide);
  t.view.data = t.data.data();
  t.view.dtype = RAMP_I32;
  return t;
}

int describe_trace(Io& io, const WorkloadOptions& o, const std::string& path) {
  const HostTensor file = read_trace(path);
  const ramp_tensor& all = file.view;
  int64_t experts = shape_of(o, true).experts;
  const bool guessed = experts == 0;
  constexpr int64_t kMostExperts = 1 << 20;
  if (guessed) experts = std::max<int64_t>(1, largest_id(all) + 1);
  if (experts > kMostExperts)
    core::fail_argument(path, fmt::format("an id of {}", experts - 1),
                        fmt::format("ids below {}", kMostExperts),
                        "give --experts or --model, so that other ids count as out of range");
  if (guessed)
    io.note(fmt::format("experts not given: {} taken, the largest id plus one; give --experts or --model",
                        experts));

  const core::TraceStats trace = core::describe_trace(all, experts);
  const auto steps = static_cast<int64_t>(trace.steps.size());
  const int64_t width = core::dtype_bytes(static_cast<ramp_dtype>(all.dtype));
  const auto rows = [&](int64_t first, int64_t count) {  // of steps [first, first + count), as one batch
    const auto* data = static_cast<const std::byte*>(all.data) + first * trace.tokens * trace.top_k * width;
    return core::make_tensor(data, static_cast<ramp_dtype>(all.dtype), {count * trace.tokens, trace.top_k});
  };
  Json per_step = Json::array();
  Table table = stats_table();
  constexpr int64_t kShown = 40;
  for (int64_t s = 0; s < steps; ++s) {
    const core::StepStats& stats = trace.steps[static_cast<size_t>(s)];
    per_step.push_back(to_json(stats, trace.tokens));
    if (o.histogram) per_step.back()["histogram"] = histogram_of(rows(s, 1), experts);
    if (s < kShown) table.add(cells(std::to_string(s), stats, trace.tokens));
  }
  table.add(cells("all", trace.total, steps * trace.tokens));
  const std::vector<int32_t> histogram = histogram_of(rows(0, steps), experts);
  io.print(fmt::format("{}: {} step{} of {} tokens, k = {}, E = {}\n", path, steps, steps == 1 ? "" : "s",
                       trace.tokens, trace.top_k, experts));
  io.print(table.text());
  if (steps > kShown) io.print(fmt::format("({} more steps: --json lists all)\n", steps - kShown));
  io.print(fmt::format(
      "over the steps, mean (max): {} ({}) active, max/mean {} ({}), entropy {:.4f} ({:.4f})\n",
      number(trace.active.mean), count_text(trace.active.max), number(trace.max_over_mean.mean),
      number(trace.max_over_mean.max), trace.normalised_entropy.mean, trace.normalised_entropy.max));
  if (trace.total.masked + trace.total.out_of_range > 0)
    io.print(
        fmt::format("{} slots masked (-1), {} out of range\n", trace.total.masked, trace.total.out_of_range));
  io.print(fmt::format("load by expert, falling: {}\n", bars(histogram)));
  Json aggregate = to_json(trace.total, steps * trace.tokens);
  aggregate["histogram"] = histogram;
  const auto mean_max = [](const core::MeanMax& m) { return Json{{"mean", m.mean}, {"max", m.max}}; };
  io.emit({{"source", path},
           {"experts", experts},
           {"top_k", trace.top_k},
           {"steps", per_step},
           {"aggregate", aggregate},
           {"over_steps",
            {{"active", mean_max(trace.active)},
             {"max_over_mean", mean_max(trace.max_over_mean)},
             {"normalised_entropy", mean_max(trace.normalised_entropy)}}}});
  return kOk;
}

int generate(Io& io, const WorkloadOptions& o, const core::WorkloadSpec& spec) {
  const core::ModelShape shape = shape_of(o, false);
  if (o.tokens == 0) core::fail_argument("--tokens", "nothing", "a whole number >= 1");
  check_memory("--tokens", fmt::format("ids and weights of {} tokens", o.tokens),
               8.0 * static_cast<double>(o.tokens) * static_cast<double>(shape.top_k));
  core::Routing routing =
      core::make_routing(spec, shape.experts, shape.top_k, o.tokens, static_cast<uint64_t>(o.seed));
  const ramp_tensor ids = core::make_tensor(routing.ids.data(), RAMP_I32, {routing.tokens, routing.top_k});
  const ramp_tensor weights =
      core::make_tensor(routing.weights.data(), RAMP_F32, {routing.tokens, routing.top_k});
  const core::StepStats stats = core::describe_trace(ids, shape.experts).total;
  const std::vector<int32_t> histogram = histogram_of(ids, shape.experts);
  Json saved = Json::array();
  if (!o.save.empty()) {
    core::write_npy(o.save, ids);
    saved.push_back(o.save);
  }
  if (!o.save_weights.empty()) {
    core::write_npy(o.save_weights, weights);
    saved.push_back(o.save_weights);
  }
  Table table = stats_table();
  table.add(cells("0", stats, routing.tokens));
  io.print(fmt::format("{}: E = {}, k = {}, seed {}\n", core::workload_name(spec), shape.experts, shape.top_k,
                       o.seed));
  io.print(table.text());
  io.print(fmt::format("load by expert, falling: {}\n", bars(histogram)));
  for (const Json& path : saved) io.print(fmt::format("wrote {}\n", path.get<std::string>()));
  Json aggregate = to_json(stats, routing.tokens);
  aggregate["histogram"] = histogram;
  Json document = {{"source", core::workload_name(spec)},
                   {"experts", shape.experts},
                   {"top_k", shape.top_k},
                   {"seed", o.seed},
                   {"steps", Json::array({to_json(stats, routing.tokens)})},
                   {"aggregate", aggregate},
                   {"saved", saved}};
  io.emit(std::move(document));
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<WorkloadOptions>();
  app.add_option(
         "routing", o->routing,
         "balanced, uniform, zipf:S, dirichlet:A, ddist:X, single, or a trace: a .npy file of integer ids "
         "[tokens, k] or [steps, tokens, k]")
      ->type_name("ROUTING")
      ->required();
  add_text(app, "--model", o->model, "MODEL", "takes E and k from a known model or E,k,H,I");
  add_integer(app, "--experts", o->experts, {1, 1 << 20}, "E", "number of experts, instead of the model's");
  add_integer(app, "--top-k", o->top_k, {1, 1 << 20}, "K", "experts per token, instead of the model's");
  add_integer(app, "--tokens", o->tokens, {1, int64_t{1} << 31}, "T", "tokens to generate");
  add_integer(app, "--seed", o->seed, {0}, "N", "which draw; of a trace with steps, which step");
  add_switch(app, "--histogram", o->histogram, "in JSON, also the load of every expert in every step");
  add_text(app, "--save", o->save, "FILE", "write the ids as int32 [T, k] .npy")->group("Output");
  add_text(app, "--save-weights", o->save_weights, "FILE", "write the router weights as float32 [T, k] .npy")
      ->group("Output");
  examples(
      app,
      {{"ramp workload zipf:1.2 --model olmoe --tokens 512", "how skewed Zipf popularity of 1.2 is"},
       {"ramp workload ddist:0.9 --experts 32 --top-k 4 --tokens 64 --save ids.npy --save-weights w.npy",
        "generate routing and keep it for 'ramp run --ids ids.npy --topk-weights w.npy'"},
       {"ramp workload trace.npy --model qwen3-30b --json", "statistics of a recorded trace, step by step"}});
  return [o](Io& io) {
    const core::WorkloadSpec spec = workload_from("ROUTING", o->routing);
    // A trace without --tokens and --save is described as it is; with them, its first tokens are cut out.
    if (spec.kind == core::WorkloadKind::kTrace && o->tokens == 0) {
      if (!o->save.empty() || !o->save_weights.empty())
        core::fail_argument("--save", "a trace without --tokens",
                            "--tokens, --model or --experts and --top-k",
                            "say how many tokens of the trace to save");
      return describe_trace(io, *o, spec.path);
    }
    return generate(io, *o, spec);
  };
}
const Register kRegister{
    {"workload", "generate, describe and save routing; statistics of a trace", 40, setup}};

}  // namespace
}  // namespace ramp::cli
