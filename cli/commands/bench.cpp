// `ramp bench`: the expert block measured over models, formats, token counts, routing and configs. Its
// options, and which protocol measures: pass_bench.hpp on a CPU, layer_bench.hpp on a GPU.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/command.hpp"
#include "cli/layer_bench.hpp"
#include "cli/options.hpp"
#include "cli/pass_bench.hpp"

namespace ramp::cli {
namespace {

struct BenchOptions {
  std::vector<std::string> models = {"olmoe"}, routing = {"uniform"}, formats = {"fp8_block"},
                           configs = {"auto"};
  std::string tokens = "1,8,64", activation = "silu_and_mul", determinism = "repeatable";
  std::string protocol = "auto", peers;
  BackendChoice backend;
  int64_t layers = 0, repeats = 0, seed = 0;
  double seconds = 1.0, read_gbps = 0, pause = -1;
  bool check = false, no_check = false;
};

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
bool check_protocol(const std::string& protocol, const std::string& peers, double pause,
                    const std::string& backend) {
  const bool gpu = backend == "cuda";
  if (!gpu && !peers.empty())
    core::fail_argument("--peers", fmt::format("'{}' on the {} backend", core::printable(peers), backend),
                        "it with GPU measurements", "leave it out, or say --backend cuda");
  if (!gpu && pause >= 0)
    core::fail_argument("--pause", fmt::format("{:g} on the {} backend", pause, backend),
                        "it with GPU measurements", "leave it out, or say --backend cuda");
  if (protocol != "auto" && (protocol == "layers") != gpu)
    core::fail_argument("--protocol", fmt::format("{} on the {} backend", protocol, backend),
                        gpu ? "layers" : "passes", "leave it out: auto takes the one that the backend has",
                        RAMP_ERROR_UNSUPPORTED);
  return gpu;
}

// What both protocols ask for.
template <typename Options>
Options points_of(const BenchOptions& o) {
  Options p;
  p.modes = modes_from(o.determinism);
  p.routing = workloads_from(o.routing);
  p.tokens = integers_from("--tokens", o.tokens, {1, int64_t{1} << 30});
  p.activation = core::parse_activation(o.activation);
  for (const core::ModelShape& model : models_from("--model", o.models))
    for (const std::string& list : o.formats)
      for (const std::string& format : split(list, ',')) p.cases.emplace_back(model, format_from(format));
  for (const std::string& list : o.configs)
    for (const std::string& name : split(list, ',')) p.configs.push_back(name);
  p.layers = o.layers;
  p.read_gbps = o.read_gbps;
  p.check_budget = o.no_check ? 0 : o.check ? kFullBudget : kQuickBudget;
  p.seed = static_cast<uint64_t>(o.seed);
  return p;
}

int bench(Io& io, const BenchOptions& o) {
  if (o.check && o.no_check) core::fail_argument("--check", "it together with --no-check", "one of the two");
  // Before the context, which may take seconds: arguments that are wrong fail at once.
  auto passes = points_of<PassBenchOptions>(o);
  const ContextPtr context = make_context(o.backend, io);
  if (check_protocol(o.protocol, o.peers, o.pause, facts_of(context.get()).backend)) {
    auto layers = points_of<LayerBenchOptions>(o);
    layers.replays = o.repeats;
    layers.peers = o.peers;
    if (o.pause >= 0) layers.pause = o.pause;
    return bench_layers(io, context.get(), layers);
  }
  passes.repeats = o.repeats;
  passes.seconds = o.seconds;
  return bench_passes(io, context.get(), passes);
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
  add_real(app, "--pause", o->pause, 0, 3600, "S",
           fmt::format("a GPU's rest before a point that takes it to its power limit, and after one, so that "
                       "rows do not depend on those before (default: {:g})",
                       LayerBenchOptions::kPause))
      ->group(kProtocol);
  add_integer(app, "--repeats", o->repeats, {1, 1000000}, "N", "exactly N passes or replays instead")
      ->group(kProtocol);
  CLI::Option* bandwidth =
      app.add_option("--read-gbps", o->read_gbps,
                     "take this read bandwidth for floor_us instead of measuring it (about a second)");
  bandwidth->type_name("X")->group(kProtocol)->check(CLI::Validator(
      [](std::string& text) {
        double value = 0;
        const char* const end = text.data() + text.size();
        const auto [at, error] = std::from_chars(text.data(), end, value);
        return error == std::errc() && at == end && value > 0 && value < 1e9
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
