// `ramp bench`: the expert block measured over models, formats, token counts, routing and configs.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/command.hpp"
#include "cli/layer_bench.hpp"
#include "cli/machine.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"

namespace ramp::cli {
namespace {

struct BenchOptions {
  std::vector<std::string> models = {"olmoe"}, routing = {"uniform"}, formats = {"fp8_block"},
                           configs = {"auto"};
  std::string tokens = "1,8,64", activation = "silu_and_mul", determinism = "repeatable";
  std::string protocol = "auto", peers;
  BackendChoice backend;
  int64_t layers = 0, repeats = 0, seed = 0;
  double seconds = 1.0, read_gbps = 0;
  bool check = false, no_check = false;
};

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
void plan_layers(Case& c, const BenchOptions& o, ramp_activation activation, const Io& io) {
  const int64_t bytes = layer_bytes(c, activation);
  const int64_t token_bytes =
      std::max<int64_t>(1, c.model.top_k * core::expert_bytes(c.model, c.format, activation));
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

std::vector<std::string> expand_configs(const BenchOptions& o, ramp_context* context,
                                        const ramp_weights* weights) {
  std::vector<std::string> list;
  for (const std::string& text : o.configs) {
    for (const std::string& name : split(text, ',')) {
      if (name != "all") {
        list.push_back(name);
        continue;
      }
      const std::vector<std::string> all = config_names(context, weights);
      list.insert(list.end(), all.begin(), all.end());
    }
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
  const BenchOptions& o;
  ramp_activation activation;
  std::vector<ramp_determinism> modes;
  std::vector<core::WorkloadSpec> routing;
  std::vector<int64_t> tokens;
  ContextPtr context;
  ContextFacts facts;
  double read_gbps = 0;
  int64_t llc = 0;

  [[nodiscard]] std::vector<Row> measure_case(const Case& c) const {
    std::vector<Row> rows;
    std::vector<RunnableLayer> layers;
    for (int64_t l = 0; l < c.layers; ++l) layers.push_back(source(c, l).runnable(context.get(), true, io));
    const RandomSource first = source(c, 0);
    const std::vector<std::string> configs = expand_configs(o, context.get(), layers.front().handle.get());
    const std::string fit = fit_of(context.get(), values_of(layers.front().handle.get()), c.model.top_k);
    Progress progress(io, fmt::format("measuring {} in {}", c.model.name, core::format_name(c.format)));
    const double budget = o.no_check ? 0 : o.check ? kFullBudget : kQuickBudget;
    const double total = static_cast<double>(modes.size() * tokens.size() * routing.size() * configs.size());
    std::atomic<double> done{0};
    const Ticker ticker(progress, [&] { return done.load(); });
    for (const ramp_determinism mode : modes) {
      BlockBench bench(context.get(), layers, first, mode, static_cast<uint64_t>(o.seed));
      for (const int64_t t : tokens) {
        for (const core::WorkloadSpec& spec : routing) {
          for (const std::string& config : configs) {
            done = static_cast<double>(rows.size()) / total;
            progress.update(done, fmt::format("T = {}, {}, {}", t, core::workload_name(spec), config));
            const auto moved = [&](double f) { done = (static_cast<double>(rows.size()) + f) / total; };
            rows.push_back({bench.measure(spec, t, config, {o.seconds, o.repeats}, budget, moved),
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
    return {c.model, c.format, activation,
            static_cast<uint64_t>(o.seed) + 1000 + static_cast<uint64_t>(layer)};
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
            {"activation", core::activation_name(activation)},
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

ramp_format format_from(const std::string& name) {
  const std::vector<std::string> names = format_names();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    core::fail_argument("--format", fmt::format("'{}'", name),
                        fmt::format("one of {}{}", join(names, ", "), did_you_mean(name, names)));
  }
  return core::parse_format(name);
}

std::vector<ramp_determinism> modes_from(const std::string& list) {
  std::vector<ramp_determinism> modes;
  for (const std::string& name : split(list, ',')) modes.push_back(parse_determinism(name));
  return modes;
}

// Whether the layers of a point run as one CUDA graph.
bool check_protocol(const std::string& protocol, const std::string& backend) {
  const bool gpu = backend == "cuda";
  if (protocol != "auto" && (protocol == "layers") != gpu)
    core::fail_argument("--protocol", fmt::format("{} on the {} backend", protocol, backend),
                        gpu ? "layers" : "passes", "leave it out: auto takes the one that the backend has",
                        RAMP_ERROR_UNSUPPORTED);
  return gpu;
}

int layers_on_gpu(Io& io, const BenchOptions& o, const Bench& b, const std::vector<Case>& cases) {
  LayerBenchOptions l;
  l.cases.reserve(cases.size());
  for (const Case& c : cases) l.cases.emplace_back(c.model, c.format);
  l.tokens = b.tokens;
  l.routing = b.routing;
  for (const std::string& list : o.configs)
    for (const std::string& name : split(list, ',')) l.configs.push_back(name);
  l.modes = b.modes;
  l.activation = b.activation;
  l.layers = o.layers;
  l.replays = o.repeats;
  l.read_gbps = o.read_gbps;
  l.check_budget = o.no_check ? 0 : o.check ? kFullBudget : kQuickBudget;
  l.seed = static_cast<uint64_t>(o.seed);
  l.peers = o.peers;
  return bench_layers(io, b.context.get(), l);
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
                       backend_of(b.context.get()).fits() == nullptr
                           ? ""
                           : "; no fit for these weights here ('ramp profile' makes one)");
  return fmt::format("config auto: chosen by {}{}\n", join(files, ", "),
                     without ? "; the analytic default where no fit is for the weights" : "");
}

int bench(Io& io, const BenchOptions& o) {
  if (o.check && o.no_check) core::fail_argument("--check", "it together with --no-check", "one of the two");
  Bench b{io,
          o,
          core::parse_activation(o.activation),
          modes_from(o.determinism),
          workloads_from(o.routing),
          integers_from("--tokens", o.tokens, {1, int64_t{1} << 30}),
          nullptr,
          {},
          0,
          last_level_cache_bytes()};
  std::vector<Case> cases;
  for (const core::ModelShape& model : models_from("--model", o.models))
    for (const std::string& list : o.formats)
      for (const std::string& format : split(list, ',')) cases.push_back({model, format_from(format)});
  b.context = make_context(o.backend, io);
  b.facts = facts_of(b.context.get());
  if (check_protocol(o.protocol, b.facts.backend)) return layers_on_gpu(io, o, b, cases);
  for (Case& c : cases) plan_layers(c, o, b.activation, io);

  b.read_gbps = o.read_gbps;
  if (b.read_gbps == 0) {
    Progress progress(io, "measuring read bandwidth");
    b.read_gbps = measure_read_bandwidth(b.facts.workers, 0.4, [&](double f) { progress.update(f); }).gbps;
  }
  Json list = Json::array();
  Table table({{"model", Table::Align::kLeft},
               {"format", Table::Align::kLeft},
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
    if (!o.no_check) b.check_case(c, rows);
    for (const Row& row : rows) {
      list.push_back(b.to_json(c, row));
      table.add(cells(b, c, row));
      failed += row.checked && !row.check.ok() ? 1 : 0;
      cached = cached || !b.beyond_cache(c, row.m);
    }
  }
  io.print(fmt::format("{}, {}; {}\n", backend_text(b.facts), b.facts.device, o.determinism));
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

Body setup(CLI::App& app) {
  auto o = std::make_shared<BenchOptions>();
  constexpr const char* kPoints = "Points";
  add_list(app, "--model", o->models, "MODEL[,MODEL..]", "known models or E,k,H,I; may be repeated")
      ->group(kPoints);
  add_list(app, "--format", o->formats, "NAME[,NAME..]", "weight formats: " + join(format_names(), ", "))
      ->group(kPoints);
  add_text(app, "--tokens", o->tokens, "T[,T..]", "token counts")->group(kPoints);
  add_list(app, "--routing", o->routing, "ROUTING[;ROUTING..]",
           "as 'ramp workload' takes it; may be repeated")
      ->group(kPoints);
  add_list(app, "--config", o->configs, "NAME[,NAME..]",
           "auto: the dispatcher chooses; all: every legal config; or names that 'ramp configs' lists")
      ->group(kPoints);
  add_choice(app, "--activation", o->activation, activation_names(), "activation")->group(kPoints);
  add_integer(app, "--seed", o->seed, {0}, "N", "of weights, activations and routing")->group(kPoints);
  constexpr const char* kProtocol = "Protocol";
  add_choice(app, "--protocol", o->protocol, {"auto", "passes", "layers"},
             "passes: the layers one after the other, timed by the host's clock (CPU); layers: the layers as "
             "one CUDA graph, replayed 20 times (GPU); auto: the backend's own")
      ->group(kProtocol);
  add_text(app, "--peers", o->peers, "FILE",
           "figures to compare GPU measurements with (default: those of bench/data/peers_h200.json)")
      ->group(kProtocol);
  add_integer(
      app, "--layers", o->layers, {1, 1000}, "L",
      "layers with distinct weights and routing, fewer where memory does not allow (default: 2 to 5, so that "
      "weights come from memory, not from the cache)")
      ->group(kProtocol);
  add_real(app, "--seconds", o->seconds, 0, 3600, "S",
           "time per point, at least three passes (a graph: 20 replays, fewer where they take over 10 s)")
      ->group(kProtocol);
  add_integer(app, "--repeats", o->repeats, {1, 1000000}, "N", "exactly N passes or replays instead")
      ->group(kProtocol);
  CLI::Option* bandwidth =
      app.add_option("--read-gbps", o->read_gbps,
                     "take this read bandwidth for floor_us instead of measuring it (about a second)");
  bandwidth->type_name("X")->group(kProtocol)->check(CLI::Validator(
      [](std::string& text) {
        const double value = std::strtod(text.c_str(), nullptr);
        return value > 0 && value < 1e9
                   ? std::string()
                   : fmt::format("got '{}', expected a bandwidth in GB/s above 0", core::printable(text));
      },
      ""));
  add_switch(app, "--check", o->check, "check more rows of layer 0 against fp64 (about ten times the work)")
      ->group(kProtocol);
  add_switch(app, "--no-check", o->no_check, "check none: rel_error is null")->group(kProtocol);
  add_backend_options(app, o->backend);
  add_text(app, "--determinism", o->determinism, "NAME[,NAME..]",
           "modes to measure: " + join(determinism_names(), ", "))
      ->group("Running");
  examples(app, {{"ramp bench --model qwen3-30b --tokens 1,8,64 --routing 'uniform;zipf:1.2' --format bf16",
                  "decode steps under even and skewed routing"},
                 {"ramp bench --backend cpu --model olmoe,64,8,1024,512 --tokens 32 --json > bench.json",
                  "two shapes; the JSON array has one object per point"},
                 {"ramp bench --backend cuda --model olmoe,qwen3-30b,mixtral-8x7b,dsv3 --routing "
                  "'uniform;zipf:1.2' --tokens 1,8,32,128,512,2048,8192 --determinism repeatable,fast",
                  "the whole block beside its floor and the best open kernels"},
                 {"ramp bench --model olmoe --tokens 64 --config all --seconds 0.2",
                  "every legal config, to see what the dispatcher's choice is worth"}});
  return [o](Io& io) { return bench(io, *o); };
}
const Register kRegister{
    {"bench", "measure the expert block: time, bandwidth, floor and error per point", 30, setup}};

}  // namespace
}  // namespace ramp::cli
