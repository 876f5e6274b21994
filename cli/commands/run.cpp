// `ramp run`: one expert block on real or made-up inputs, from weights to y.npy.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <span>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/npy.hpp"
#include "cli/command.hpp"
#include "cli/device_tensor.hpp"
#include "cli/layer_source.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "cli/run_inputs.hpp"
#include "cli/verify.hpp"
#include "geometry/config.hpp"
#include "routing/workload.hpp"

namespace ramp::cli {
namespace {

struct RunOptions {
  std::string checkpoint, model, format = "fp8_block", activation = "silu_and_mul";
  int64_t layer = -1, first_expert = 0, num_experts = 0;
  InputFlags inputs;
  BackendChoice backend;
  std::string determinism = "repeatable", config = "auto";
  bool weight_on_input = false, per_slot = false, no_pack = false, check = false, check_all = false;
  std::string output, output_dtype, save_ids, save_weights;
};

std::unique_ptr<LayerSource> make_source(const RunOptions& o) {
  if (o.checkpoint.empty() == o.model.empty())
    core::fail_argument("--checkpoint, --model", o.model.empty() ? "neither" : "both", "exactly one of them",
                        "--checkpoint DIR for real weights, --model NAME for random ones");
  if (!o.checkpoint.empty())
    return std::make_unique<CheckpointSource>(o.checkpoint, o.layer, o.first_expert, o.num_experts);
  return std::make_unique<RandomSource>(model_from("--model", o.model), core::parse_format(o.format),
                                        core::parse_activation(o.activation),
                                        static_cast<uint64_t>(o.inputs.seed));
}

struct BlockOutputs {
  HostTensor y, counters;
  std::string config, fit;  // the one that ran; the file by which it was chosen, "" = none
  core::BlockArithmetic arithmetic;
};

HostTensor make_y(const RunOptions& o, const RunInputs& in, int64_t hidden) {
  ramp_dtype dtype = in.x.view.dtype == RAMP_E4M3 ? RAMP_BF16 : static_cast<ramp_dtype>(in.x.view.dtype);
  if (!o.output_dtype.empty()) dtype = core::parse_dtype(o.output_dtype);
  return o.per_slot ? make_host_tensor(dtype, {in.tokens, in.slots, hidden})
                    : make_host_tensor(dtype, {in.tokens, hidden});
}

// The inputs where the context can read them, and the outputs where it can write.
struct DeviceCall {
  DeviceCall(ramp_context* context, const RunInputs& in, const BlockOutputs& out)
      : x(Mirror::uploaded(context, in.x.view)),
        x_scale(Mirror::uploaded(context, in.x_scale.view)),
        ids(Mirror::uploaded(context, in.ids.view)),
        topk_weights(Mirror::uploaded(context, in.topk_weights.view)),
        logits(Mirror::uploaded(context, in.logits.view)),
        router_weight(Mirror::uploaded(context, in.router_weight)),
        expert_map(Mirror::uploaded(context, in.expert_map.view)),
        shared_addend(Mirror::uploaded(context, in.shared_addend.view)),
        selection_bias(Mirror::uploaded(context, in.router.selection_bias)),
        y(context, out.y.view),
        counters(context, out.counters.view),
        router(in.router) {
    router.selection_bias = selection_bias.view();
  }
  Mirror x, x_scale, ids, topk_weights, logits, router_weight, expert_map, shared_addend, selection_bias;
  Mirror y, counters;
  ramp_router_config router;
};

// Router and block in one call; the routing comes back in d.ids and in d.topk_weights.
void run_forward(ramp_context* context, const ramp_weights* weights, const RunOptions& o, const DeviceCall& d,
                 const ramp_tensor& y, int32_t config) {
  ramp_moe_forward_args args = ramp_moe_forward_args_init();
  args.weights = weights;
  args.determinism = parse_determinism(o.determinism);
  args.router_weight_on_input = o.weight_on_input ? 1 : 0;
  args.config = config;
  args.router = d.router;
  args.x = d.x.view();
  args.router_logits = d.logits.view();
  args.router_weight = d.router_weight.view();
  args.expert_map = d.expert_map.view();
  args.shared_addend = d.shared_addend.view();
  args.y = y;
  args.counters = d.counters.view();
  args.topk_ids_out = d.ids.view();
  args.topk_weights_out = d.topk_weights.view();
  check(ramp_moe_forward(context, &args, nullptr, 0, nullptr));
}

void run_block(ramp_context* context, const ramp_weights* weights, const RunOptions& o, const DeviceCall& d,
               int32_t config) {
  ramp_expert_block_args args = ramp_expert_block_args_init();
  args.weights = weights;
  args.determinism = parse_determinism(o.determinism);
  args.output = o.per_slot ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
  args.router_weight_on_input = o.weight_on_input ? 1 : 0;
  args.config = config;
  args.x = d.x.view();
  args.x_scale = d.x_scale.view();
  args.topk_ids = d.ids.view();
  args.topk_weights = d.topk_weights.view();
  args.expert_map = d.expert_map.view();
  args.shared_addend = d.shared_addend.view();
  args.y = d.y.view();
  args.counters = d.counters.view();
  check(ramp_expert_block(context, &args, nullptr, 0, nullptr));
}

BlockOutputs execute(ramp_context* context, const RunOptions& o, const LayerSource& source, RunInputs& in,
                     const Io& io) {
  const RunnableLayer layer = source.runnable(context, !o.no_pack, io);
  BlockOutputs out;
  const int32_t config = config_number(context, layer.handle.get(), o.config);
  out.y = make_y(o, in, source.shape().hidden);
  out.counters = make_host_tensor(RAMP_I64, {2});
  const DeviceCall call(context, in, out);
  Progress progress(io, "running the expert block");
  const Ticker ticker(progress);
  // Per-slot output is the block's alone: the router's call then only gives ids and weights.
  const bool forward_gives_y = in.routed && !o.per_slot;
  if (in.routed) {
    HostTensor unused;
    if (!forward_gives_y) unused = make_host_tensor(RAMP_F32, {in.tokens, source.shape().hidden});
    const Mirror unused_y(context, unused.view);
    call.counters.fill(0);
    run_forward(context, layer.handle.get(), o, call, forward_gives_y ? call.y.view() : unused_y.view(),
                config);
    call.ids.download();
    call.topk_weights.download();
  }
  if (!forward_gives_y) {
    call.counters.fill(0);
    run_block(context, layer.handle.get(), o, call, config);
  }
  call.y.download();
  call.counters.download();
  out.config = o.config;
  out.arithmetic = backend_of(context).arithmetic(values_of(layer.handle.get()));
  if (config == 0) {
    const std::vector<int32_t> histogram = local_histogram(in, source.shape().experts);
    out.config = core::config_name(backend_of(context).choose(
        values_of(layer.handle.get()), histogram, parse_determinism(o.determinism), in.ids.view.shape[1]));
    out.fit = fit_of(context, values_of(layer.handle.get()), in.ids.view.shape[1]);
  }
  return out;
}

core::CheckResult verify(const RunOptions& o, const LayerSource& source, const RunInputs& in,
                         const ramp_tensor& y, const core::BlockArithmetic& arithmetic,
                         const std::vector<int64_t>& tokens, const Io& io) {
  const std::unique_ptr<LayerValues> values = source.values(io);
  core::BlockCall call;
  call.weights = values->weights.get();
  call.determinism = parse_determinism(o.determinism);
  call.output = o.per_slot ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
  call.router_weight_on_input = o.weight_on_input;
  call.tokens = in.tokens;
  call.top_k = in.slots;
  call.x = in.x.view;
  call.x_scale = in.x_scale.view;
  call.ids = in.ids.view;
  call.topk_weights = in.topk_weights.view;
  call.shared_addend = in.shared_addend.view;
  call.y = y;
  if (in.expert_map.present())
    call.expert_map = {in.expert_map.data.as<int32_t>(), static_cast<size_t>(in.expert_map.view.shape[0])};
  core::CheckOptions options;
  options.tokens = tokens;
  options.slot_rows = arithmetic.slot_rows;
  options.tensor_unit = arithmetic.tensor_unit;
  Progress progress(io, "checking against fp64");
  options.parallel = progress_for(progress);
  return core::check_block(call, options);
}

// Fails before the work where its result could not be written after it. Devices and pipes are left alone:
// opening one may block, and closing it again ends its reader.
void check_place(const std::string& path) {
  std::error_code ignored;  // then the writer says what is wrong
  if (path.empty() || std::filesystem::is_other(path, ignored)) return;
  const core::AtomicFile probe(path);
}

int run(Io& io, const RunOptions& o) {
  for (const std::string* path : {&o.output, &o.save_ids, &o.save_weights}) check_place(*path);
  const std::unique_ptr<LayerSource> source = make_source(o);
  const auto* checkpoint = dynamic_cast<const CheckpointSource*>(source.get());
  RunInputs in = make_inputs(o.inputs, *source, checkpoint, io);
  if (o.per_slot && in.shared_addend.present())
    core::fail_argument("--shared-addend", "it with --per-slot", "combined output",
                        "a shared addend belongs to the sum over slots");
  const ContextPtr context = make_context(o.backend, io);
  const ContextFacts facts = facts_of(context.get());
  BlockOutputs out = execute(context.get(), o, *source, in, io);

  const std::vector<int32_t> histogram = local_histogram(in, source->shape().experts);
  const core::HistogramStats stats = core::describe(histogram);
  const core::ModelShape& shape = source->shape();
  const auto* counters = out.counters.data.as<int64_t>();
  Json j = {{"source", source->describe()},
            {"experts", shape.experts},
            {"top_k", in.slots},
            {"hidden", shape.hidden},
            {"intermediate", shape.intermediate},
            {"format", core::format_name(source->format())},
            {"activation", core::activation_name(source->activation())},
            {"backend", facts.backend},
            {"isa", facts.isa},
            {"device", facts.device},
            {"threads", facts.workers},
            {"determinism", o.determinism},
            {"config", out.config},
            {"fit", out.fit.empty() ? Json() : Json(out.fit)},
            {"tokens", in.tokens},
            {"routing", in.routing},
            {"router", in.routed ? to_json(in.router) : Json()},
            {"active", stats.active},
            {"max_load", stats.max_load},
            {"max_over_mean", stats.max_over_mean},
            {"normalised_entropy", stats.normalised_entropy},
            {"masked", counters[0]},
            {"out_of_range", counters[1]}};
  io.print(fmt::format("{} experts, k = {}, H = {}, I = {}, {}, {} on {}\n", shape.experts, in.slots,
                       shape.hidden, shape.intermediate, core::format_name(source->format()),
                       core::activation_name(source->activation()), backend_text(facts)));
  io.print(fmt::format("{} tokens, routing {}: {} active experts, max/mean {}, config {}{}\n", in.tokens,
                       in.routing, stats.active, number(stats.max_over_mean), out.config,
                       out.fit.empty() ? "" : ", chosen by " + out.fit));
  if (counters[0] + counters[1] > 0)
    io.print(fmt::format("{} slots masked, {} ids out of range: they contribute nothing\n", counters[0],
                         counters[1]));

  j["output"] = nullptr;
  InterruptGuard guard;  // ^C while files are written is heeded after them: no temporary file stays behind
  if (!o.output.empty()) {
    core::write_npy(o.output, out.y.view);
    j["output"] = {
        {"path", o.output}, {"dtype", core::dtype_name(out.y.view.dtype)}, {"shape", Json::array()}};
    for (int32_t d = 0; d < out.y.view.ndim; ++d) j["output"]["shape"].push_back(out.y.view.shape[d]);
    io.print(fmt::format("wrote {}: {}\n", o.output, core::shape_text(out.y.view)));
  }
  for (const auto& [path, tensor] :
       {std::pair(&o.save_ids, &in.ids), std::pair(&o.save_weights, &in.topk_weights)}) {
    if (path->empty()) continue;
    core::write_npy(*path, tensor->view);
    io.print(fmt::format("wrote {}: {}\n", *path, core::shape_text(tensor->view)));
  }

  InterruptGuard::check();

  int code = kOk;
  j["check"] = nullptr;
  if (o.check || o.check_all) {
    const double budget = o.check_all ? 1e300 : kFullBudget;
    const std::vector<int64_t> tokens =
        sample_tokens(in.tokens, in.slots, shape, source->activation(), budget);
    const core::CheckResult result = verify(o, *source, in, out.y.view, out.arithmetic, tokens, io);
    j["check"] = to_json(result);
    io.print(
        fmt::format("check against fp64, {} of {} tokens: {}\n", tokens.size(), in.tokens, result.text()));
    code = result.ok() ? kOk : kFailed;
    if (in.routed) {
      const RouterCheck routing = check_router_choice(in.router, in.logits.view, in.x.view, in.router_weight,
                                                      in.ids.view, in.topk_weights.view, tokens);
      j["router_check"] = to_json(routing);
      io.print(routing.tokens == 0
                   ? "routing not checked: a capacity drops slots\n"
                   : fmt::format("routing against fp64, {} tokens: {} wrong, {} near ties, weights "
                                 "within {}\n",
                                 routing.tokens, routing.wrong, routing.near_ties,
                                 number(routing.weight_error)));
      if (!routing.ok()) code = kFailed;
    }
    if (code != kOk)
      say("check: got a result beyond its error bound, expected it within; see the 'check' line or key");
  }
  io.emit(std::move(j));
  return code;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<RunOptions>();
  constexpr const char* kWeights = "Weights";
  add_text(
      app, "--checkpoint", o->checkpoint, "PATH",
      "Hugging Face directory, or one .safetensors file (Mixtral, OLMoE, Qwen2/3-MoE, DeepSeek-V2/V3 names)")
      ->group(kWeights);
  add_integer(app, "--layer", o->layer, {0, 100000}, "N", "layer (default: the first one with experts)")
      ->group(kWeights)
      ->needs("--checkpoint");
  add_integer(app, "--first-expert", o->first_expert, {0}, "N",
              "load a part of the layer's experts: the first")
      ->group(kWeights)
      ->needs("--checkpoint");
  add_integer(app, "--num-experts", o->num_experts, {1}, "N", "... and how many (default: all that follow)")
      ->group(kWeights)
      ->needs("--checkpoint");
  add_text(app, "--model", o->model, "MODEL", "random weights of a known model or E,k,H,I")
      ->group(kWeights)
      ->excludes("--checkpoint");
  add_choice(app, "--format", o->format, format_names(), "format of random weights")
      ->group(kWeights)
      ->excludes("--checkpoint");
  add_choice(app, "--activation", o->activation, activation_names(), "activation with random weights")
      ->group(kWeights)
      ->excludes("--checkpoint");
  add_switch(app, "--no-pack", o->no_pack, "run from the checkpoint's layout, without packing")
      ->group(kWeights);
  add_input_options(app, o->inputs);
  add_backend_options(app, o->backend);
  add_determinism_option(app, o->determinism);
  add_text(app, "--config", o->config, "NAME",
           "a config that 'ramp configs' lists, or auto: the dispatcher chooses")
      ->group("Running");
  add_switch(app, "--weight-on-input", o->weight_on_input, "the router weight multiplies x, not the output")
      ->group("Running");
  constexpr const char* kOutput = "Output";
  add_text(app, "-o,--output", o->output, "FILE", "write y as .npy, [T, H]; it appears whole or not at all")
      ->group(kOutput);
  add_choice(app, "--output-dtype", o->output_dtype, {"bf16", "f16", "f32"},
             "dtype of y (default: that of x)")
      ->group(kOutput);
  add_switch(app, "--per-slot", o->per_slot, "one row per (token, slot) instead of their sum: [T, k, H]")
      ->group(kOutput);
  add_text(app, "--save-ids", o->save_ids, "FILE", "write the ids that were used")->group(kOutput);
  add_text(app, "--save-weights", o->save_weights, "FILE", "write the router weights that were used")
      ->group(kOutput);
  add_switch(
      app, "--check", o->check,
      "check against the fp64 reference within derived bounds (a sample of the tokens where all would take "
      "long); exit code 1 on failure")
      ->group(kOutput);
  add_switch(app, "--check-all", o->check_all, "the same for every token")->group(kOutput);
  examples(app, {{"ramp run --checkpoint DIR --layer 0 --tokens 32 --check --output y.npy",
                  "a layer of a checkpoint on generated inputs, checked"},
                 {"ramp run --checkpoint DIR --x x.npy --logits logits.npy -o y.npy",
                  "your activations and router logits, with the router of config.json"},
                 {"ramp run --checkpoint DIR --first-expert 32 --num-experts 32 --x x.npy --ids ids.npy "
                  "--topk-weights w.npy --per-slot -o y.npy",
                  "the second half of 64 experts, as one rank of expert parallelism runs it"},
                 {"ramp run --model olmoe --format bf16 --tokens 16 --routing zipf:1.2 --check --json",
                  "random weights, skewed routing, the verdict as JSON"}});
  return [o](Io& io) { return run(io, *o); };
}
const Register kRegister{
    {"run", "run one expert block: checkpoint or random weights, .npy in, y.npy out", 20, setup}};

}  // namespace
}  // namespace ramp::cli
