// See pass_bench.hpp. Weights are packed for the runs and made once more as plain values for the check, so
// that memory need not hold both.
#include "cli/pass_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/command.hpp"
#include "cli/machine.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"

namespace ramp::cli {
namespace {

// One model in one format: everything that shares weights.
struct Case {
  core::ModelShape model;
  ramp_format format;
  int64_t layers = 1;
};

// A share of the free memory that weights may take; the rest is for activations, workspace and the system.
constexpr double kMemoryShare = 0.7;

int64_t layer_bytes(const Case& c, ramp_activation activation) {
  return c.model.experts * core::expert_bytes(c.model, c.format, activation);
}

// Layers: as asked for, else enough that one token's experts in all layers are twice the last-level cache, 2
// to 5; in both cases no more than memory holds.
void plan_layers(Case& c, const PassBenchOptions& o, const Io& io) {
  const int64_t bytes = layer_bytes(c, o.activation);
  const int64_t token_bytes =
      std::max<int64_t>(1, c.model.top_k * core::expert_bytes(c.model, c.format, o.activation));
  const int64_t wanted =
      o.layers > 0
          ? o.layers
          : std::clamp<int64_t>((2 * last_level_cache_bytes() + token_bytes - 1) / token_bytes, 2, 5);
  const int64_t memory = available_memory();
  const auto fits =
      memory == 0
          ? wanted
          : static_cast<int64_t>(kMemoryShare * static_cast<double>(memory) / static_cast<double>(bytes));
  if (fits < 1)
    core::fail_argument(fmt::format("--model {}", c.model.name),
                        fmt::format("{} of weights in {} for one layer",
                                    bytes_text(static_cast<double>(bytes)), core::format_name(c.format)),
                        fmt::format("at most {:.0f}% of the {} of free memory", 100 * kMemoryShare,
                                    bytes_text(static_cast<double>(memory))),
                        "take a smaller model or format", RAMP_ERROR_OUT_OF_MEMORY);
  c.layers = std::min(wanted, fits);
  if (c.layers < wanted)
    io.note(fmt::format("{} in {}: {} layer{} instead of {}, limited by {:.0f}% of the free memory ({})",
                        c.model.name, core::format_name(c.format), c.layers, c.layers == 1 ? "" : "s", wanted,
                        100 * kMemoryShare, bytes_text(static_cast<double>(memory))));
}

std::vector<std::string> expand_configs(const PassBenchOptions& o, ramp_context* context,
                                        const ramp_weights* weights) {
  std::vector<std::string> list;
  for (const std::string& name : o.configs) {
    if (name != "all") {
      list.push_back(name);
      continue;
    }
    const std::vector<std::string> all = config_names(context, weights);
    list.insert(list.end(), all.begin(), all.end());
  }
  return list;
}

struct Row {
  Measurement m;
  ramp_determinism mode = RAMP_REPEATABLE;
  std::string requested, fit;  // fit: the file that "auto" went by, "" = none
  core::CheckResult check;
  bool checked = false;
};

struct Bench {
  Io& io;
  const PassBenchOptions& o;
  ramp_context* context;
  ContextFacts facts;
  double read_gbps = 0;
  int64_t llc = 0;

  [[nodiscard]] std::vector<Row> measure_case(const Case& c) const {
    std::vector<Row> rows;
    std::vector<RunnableLayer> layers;
    for (int64_t l = 0; l < c.layers; ++l) layers.push_back(source(c, l).runnable(context, true, io));
    const RandomSource first = source(c, 0);
    const std::vector<std::string> configs = expand_configs(o, context, layers.front().handle.get());
    const std::string fit = fit_of(context, values_of(layers.front().handle.get()), c.model.top_k);
    Progress progress(io, fmt::format("measuring {} in {}", c.model.name, core::format_name(c.format)));
    const double total =
        static_cast<double>(o.modes.size() * o.tokens.size() * o.routing.size() * configs.size());
    std::atomic<double> done{0};
    const Ticker ticker(progress, [&] { return done.load(); });
    for (const ramp_determinism mode : o.modes) {
      BlockBench bench(context, layers, first, mode, o.seed);
      for (const int64_t t : o.tokens) {
        for (const core::WorkloadSpec& spec : o.routing) {
          for (const std::string& config : configs) {
            done = static_cast<double>(rows.size()) / total;
            progress.update(done, fmt::format("T = {}, {}, {}", t, core::workload_name(spec), config));
            const auto moved = [&](double f) { done = (static_cast<double>(rows.size()) + f) / total; };
            rows.push_back({bench.measure(spec, t, config, {o.seconds, o.repeats}, o.check_budget, moved),
                            mode,
                            config,
                            config == "auto" ? fit : std::string(),
                            {},
                            false});
          }
        }
      }
    }
    return rows;
  }

  // After the packed weights are gone: layer 0 once more, as plain values.
  void check_case(const Case& c, std::vector<Row>& rows) const {
    const std::unique_ptr<LayerValues> values = source(c, 0).values(io);
    Progress progress(io, "checking against fp64");
    for (size_t i = 0; i < rows.size(); ++i) {
      progress.update(static_cast<double>(i) / static_cast<double>(rows.size()));
      rows[i].check =
          check_sample(rows[i].m.sample, *values->weights,
                       [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); });
      rows[i].checked = true;
      rows[i].m.sample = {};
    }
  }

  [[nodiscard]] RandomSource source(const Case& c, int64_t layer) const {
    return {c.model, c.format, o.activation, o.seed + 1000 + static_cast<uint64_t>(layer)};
  }

  [[nodiscard]] double floor_us(const Measurement& m) const { return m.weight_bytes / read_gbps / 1e3; }

  [[nodiscard]] Json to_json(const Case& c, const Row& row) const {
    const Measurement& m = row.m;
    return {{"model", c.model.name},
            {"experts", c.model.experts},
            {"top_k", c.model.top_k},
            {"hidden", c.model.hidden},
            {"intermediate", c.model.intermediate},
            {"format", core::format_name(c.format)},
            {"activation", core::activation_name(o.activation)},
            {"backend", facts.backend},
            {"device", facts.device},
            {"isa", facts.isa},
            {"threads", facts.workers},
            {"determinism", determinism_name(row.mode)},
            {"tokens", m.tokens},
            {"routing", m.routing},
            {"active", m.active},
            {"max_load", m.max_load},
            {"max_over_mean", m.max_over_mean},
            {"imbalance", m.imbalance},
            {"normalised_entropy", m.entropy},
            {"config", m.config},
            {"config_requested", row.requested},
            {"fit", row.fit.empty() ? Json() : Json(row.fit)},
            {"us", m.us.median},
            {"p10_us", m.us.p10},
            {"p90_us", m.us.p90},
            {"gbps", m.gbps()},
            {"tflops", m.tflops()},
            {"rel_error", row.checked ? Json(row.check.relative_error) : Json()},
            {"bound_ratio", row.checked ? Json(bound_ratio(row.check)) : Json()},
            {"checked_rows", row.check.rows},
            {"floor_us", floor_us(m)},
            {"read_gbps", read_gbps},
            {"layers", c.layers},
            {"passes", m.passes},
            {"weights_beyond_cache", beyond_cache(c, m)},
            {"protocol",
             fmt::format("median of {} passes over {} layer{} with distinct weights and routing, after one "
                         "warm-up pass; time per layer, whole block",
                         m.passes, c.layers, c.layers == 1 ? "" : "s")}};
  }
  // Whether the active experts of one pass are more than the last-level cache holds.
  [[nodiscard]] bool beyond_cache(const Case& c, const Measurement& m) const {
    return llc > 0 && m.weight_bytes * static_cast<double>(c.layers) > static_cast<double>(llc);
  }
};

std::vector<std::string> cells(const Bench& b, const Case& c, const Row& r) {
  const Measurement& m = r.m;
  const double floor = b.floor_us(m);
  return {c.model.name,
          core::format_name(c.format),
          determinism_name(r.mode),
          std::to_string(m.tokens),
          m.routing,
          count_text(m.active),
          count_text(m.max_load),
          m.config,
          number(m.us.median),
          number(m.us.p10),
          number(m.us.p90),
          number(m.gbps()),
          number(1e3 * m.tflops()),
          number(floor),
          number(m.us.median / floor),
          r.checked ? fmt::format("{:.1e}", r.check.relative_error) : "-",
          !r.checked     ? "-"
          : r.check.ok() ? "ok"
                         : "FAILED"};
}

// What "auto" went by, in one line.
std::string fit_line(const Bench& b, const Json& points) {
  std::vector<std::string> files;
  bool without = false;
  for (const Json& p : points) {
    if (p["config_requested"] != "auto") continue;
    if (p["fit"].is_null()) {
      without = true;
    } else if (const auto file = p["fit"].get<std::string>();
               std::find(files.begin(), files.end(), file) == files.end()) {
      files.push_back(file);
    }
  }
  if (files.empty() && !without) return {};
  if (files.empty())
    return fmt::format("config auto: the analytic default{}\n",
                       backend_of(b.context).fits() == nullptr
                           ? ""
                           : "; no fit for these weights here ('ramp profile' makes one)");
  return fmt::format("config auto: chosen by {}{}\n", join(files, ", "),
                     without ? "; the analytic default where no fit is for the weights" : "");
}

}  // namespace

int bench_passes(Io& io, ramp_context* context, const PassBenchOptions& o) {
  Bench b{io, o, context, facts_of(context), o.read_gbps, last_level_cache_bytes()};
  std::vector<Case> cases;
  cases.reserve(o.cases.size());
  for (const auto& [model, format] : o.cases) cases.push_back({model, format});
  for (Case& c : cases) plan_layers(c, o, io);
  if (b.read_gbps == 0) {
    Progress progress(io, "measuring read bandwidth");
    b.read_gbps = measure_read_bandwidth(b.facts.workers, 0.4, [&](double f) { progress.update(f); }).gbps;
  }
  Json list = Json::array();
  Table table({{"model", Table::Align::kLeft},
               {"format", Table::Align::kLeft},
               {"mode", Table::Align::kLeft},
               {"tokens"},
               {"routing", Table::Align::kLeft},
               {"active"},
               {"max load"},
               {"config", Table::Align::kLeft},
               {"us"},
               {"p10"},
               {"p90"},
               {"GB/s"},
               {"GFLOP/s"},
               {"floor us"},
               {"x floor"},
               {"rel error"},
               {"check"}});
  int failed = 0;
  bool cached = false;
  for (const Case& c : cases) {
    std::vector<Row> rows = b.measure_case(c);
    if (o.check_budget > 0) b.check_case(c, rows);
    for (const Row& row : rows) {
      list.push_back(b.to_json(c, row));
      table.add(cells(b, c, row));
      failed += row.checked && !row.check.ok() ? 1 : 0;
      cached = cached || !b.beyond_cache(c, row.m);
    }
  }
  io.print(fmt::format("{}, {}\n", backend_text(b.facts), b.facts.device));
  io.print(table.text());
  io.print(fit_line(b, list));
  io.print(fmt::format("us: median per layer, whole block. floor: active weight bytes / {} GB/s {}.\n",
                       number(b.read_gbps), o.read_gbps == 0 ? "measured read bandwidth" : "as given"));
  if (cached)
    io.note("the active weights of some points fit the last-level cache: those may run below the floor");
  if (failed > 0)
    say(fmt::format("check: got {} of {} points beyond their error bound, expected none", failed,
                    list.size()));
  io.emit(std::move(list));
  return failed > 0 ? kFailed : kOk;
}

}  // namespace ramp::cli
