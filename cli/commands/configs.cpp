// `ramp configs`: the legal configs of a model on a backend, and why the others are not.
#include <fmt/format.h>

#include <map>
#include <memory>

#include "base/error.hpp"
#include "cli/command.hpp"
#include "cli/options.hpp"
#include "cli/runtime.hpp"
#include "geometry/config.hpp"

namespace ramp::cli {
namespace {

struct ConfigsOptions {
  std::string model, format = "fp8_block", activation = "silu_and_mul";
  BackendChoice backend;
  bool verbose = false, space = false;
};

Json to_json(const core::KernelConfig& c) {
  return {{"name", core::config_name(c)},
          {"tile_m", c.tile_m},
          {"tile_n", c.tile_n},
          {"tile_k", c.tile_k},
          {"stages", c.stages},
          {"split_k", c.split_k},
          {"group_m", c.group_m},
          {"warps_n", c.warps_n},
          {"blocks", c.blocks},
          {"order", core::order_name(c.order)},
          {"sums", c.sums}};
}

int configs(Io& io, const ConfigsOptions& o) {
  const core::ModelShape model = model_from("--model", o.model);
  for (const int64_t size : {model.hidden, model.intermediate}) {
    if (size % 32 != 0) {
      core::fail_argument("--model", fmt::format("H = {}, I = {}", model.hidden, model.intermediate),
                          "H and I that are multiples of 32", "no config of any backend runs this shape");
    }
  }
  const ramp_format format = core::parse_format(o.format);
  const ramp_activation activation = core::parse_activation(o.activation);
  const ContextPtr context = make_context(o.backend, io);
  const ContextFacts facts = facts_of(context.get());
  const core::Backend& backend = backend_of(context.get());
  const size_t shipped = backend.configs(model, format, activation, false).legal.size();
  const core::ConfigList list = o.space ? backend.space(model, format, activation, true)
                                        : backend.configs(model, format, activation, true);

  io.print(fmt::format("{} ({} experts, k = {}, H = {}, I = {}) in {} on {}{}: {} legal, {} rejected{}\n",
                       model.name, model.experts, model.top_k, model.hidden, model.intermediate,
                       core::format_name(format), facts.backend, facts.isa.empty() ? "" : " " + facts.isa,
                       list.legal.size(), list.rejected.size(),
                       o.space ? fmt::format("; the first {} ship", shipped) : std::string()));
  Table table({{"config", Table::Align::kLeft},
               {"tile m"},
               {"tile n"},
               {"tile k"},
               {"stages"},
               {"split k"},
               {"order", Table::Align::kLeft}});
  Json legal = Json::array();
  for (const core::KernelConfig& c : list.legal) {
    legal.push_back(to_json(c));
    table.add({core::config_name(c), std::to_string(c.tile_m), std::to_string(c.tile_n),
               std::to_string(c.tile_k), std::to_string(c.stages), std::to_string(c.split_k),
               core::order_name(c.order)});
  }
  if (!table.empty()) io.print(table.text());
  Json rejected = Json::array();
  Table reasons({{"rejected", Table::Align::kLeft}, {"reason", Table::Align::kLeft}});
  for (const core::RejectedConfig& r : list.rejected) {
    Json entry = to_json(r.config);
    entry["reason"] = r.reason;
    rejected.push_back(std::move(entry));
    reasons.add({core::config_name(r.config), r.reason});
  }
  if (!reasons.empty() && o.verbose) io.print("\n" + reasons.text());
  if (!reasons.empty() && !o.verbose) io.print("-v prints the reason of each rejection\n");
  io.emit({{"model", model.name},
           {"experts", model.experts},
           {"top_k", model.top_k},
           {"hidden", model.hidden},
           {"intermediate", model.intermediate},
           {"format", core::format_name(format)},
           {"activation", core::activation_name(activation)},
           {"backend", facts.backend},
           {"isa", facts.isa},
           {"shipped", shipped},
           {"legal", legal},
           {"rejected", rejected}});
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<ConfigsOptions>();
  add_text(app, "--model", o->model, "MODEL", "a known model or E,k,H,I")->required();
  add_choice(app, "--format", o->format, format_names(), "weight format");
  add_choice(app, "--activation", o->activation, activation_names(), "activation");
  add_switch(app, "-v,--verbose", o->verbose, "the reason of each rejection (JSON always has them)");
  add_switch(app, "--space", o->space,
             "everything that could be compiled and run, not only what ships: what 'ramp profile' searches");
  add_backend_options(app, o->backend, false);
  examples(app, {{"ramp configs --model olmoe --format fp8_block", "what the dispatcher can choose from"},
                 {"ramp configs --model 8,2,96,64 --format bf16 -v",
                  "why the other candidates are not legal here"},
                 {"ramp configs --backend cuda --model olmoe --space -v",
                  "the whole space of a GPU's kernels, with the reason of each rejection"}});
  return [o](Io& io) { return configs(io, *o); };
}
const Register kRegister{
    {"configs", "legal configs of a model on a backend, and why others are rejected", 50, setup}};

}  // namespace
}  // namespace ramp::cli
