// `ramp regions`: where layers sit between fixed cost and tile work, and what the published thresholds
// predict.
#include "regions/regions.hpp"

#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "cli/command.hpp"
#include "cli/options.hpp"
#include "geometry/hardware.hpp"

namespace ramp::cli {
namespace {

struct RegionsOptions {
  std::vector<std::string> models;
  std::string tokens = "1", hardware = "h200";
  int64_t tile_m = 8, ttn = 256;
};

// Up to one decimal, none where it is whole.
std::string short_number(double v) {
  return v == std::round(v) ? fmt::format("{:.0f}", v) : fmt::format("{:.1f}", v);
}

int regions(Io& io, const RegionsOptions& o) {
  const core::HardwareConstants& hw = core::find_hardware(o.hardware);
  std::vector<core::ModelShape> models;
  if (o.models.empty()) {
    const auto known = core::known_models();
    models.assign(known.begin(), known.end());
  } else {
    models = models_from("--model", o.models);
  }
  const std::vector<int64_t> tokens = integers_from("--tokens", o.tokens, {1, int64_t{1} << 31});
  const auto ttn = static_cast<int32_t>(o.ttn);
  const core::RegionThresholds t = core::region_thresholds(hw, ttn);
  io.print(fmt::format(
      "{}: rho critical {:.1f}, GROUP_M above lambda*kappa {:.0f}, split-K from kappa {:.0f} below "
      "omega {}, ttn=512 above omega {}; ttn {}, tile_m {}, routing as even as k distinct experts "
      "allow\n\n",
      hw.name, t.rho_critical, t.group_m_lambda_kappa, t.split_k_kappa, t.split_k_omega, t.wide_tile_omega,
      o.ttn, o.tile_m));
  Table table({{"model", Table::Align::kLeft},
               {"T"},
               {"E"},
               {"N1"},
               {"H"},
               {"rho"},
               {"lambda"},
               {"kappa"},
               {"omega"},
               {"region", Table::Align::kLeft},
               {"predicted modes", Table::Align::kLeft}});
  Json list = Json::array();
  for (const core::ModelShape& m : models) {
    const int64_t n1 = core::w13_rows(m.intermediate, RAMP_ACTIVATION_SILU_AND_MUL);
    for (const int64_t count : tokens) {
      const int64_t grid =
          core::even_grid(m.experts, m.top_k, count, n1, static_cast<int32_t>(o.tile_m), ttn);
      const core::RegionPoint p = core::region_of(m.name, m.experts, n1, m.hidden, grid, hw, ttn);
      table.add({m.name, std::to_string(count), std::to_string(m.experts), std::to_string(n1),
                 std::to_string(m.hidden), short_number(p.rho), std::to_string(p.lambda),
                 short_number(p.kappa), fmt::format("{:.2f}", p.omega), core::region_name(p),
                 core::predicted_modes(p)});
      list.push_back({{"model", m.name},
                      {"tokens", count},
                      {"experts", m.experts},
                      {"top_k", m.top_k},
                      {"n1", n1},
                      {"hidden", m.hidden},
                      {"ttn", p.ttn},
                      {"tile_k", p.tile_k},
                      {"tile_m", o.tile_m},
                      {"rho", p.rho},
                      {"lambda", p.lambda},
                      {"kappa", p.kappa},
                      {"omega", p.omega},
                      {"grid", p.grid},
                      {"regime", std::string(1, p.regime)},
                      {"region", core::region_name(p)},
                      {"group_m", p.group_m},
                      {"split_k", p.split_k},
                      {"wide_tile", p.wide_tile},
                      {"modes", core::predicted_modes(p)}});
    }
  }
  io.print(table.text());
  io.emit({{"hardware", hw.name},
           {"thresholds",
            {{"rho_critical", t.rho_critical},
             {"group_m_lambda_kappa", t.group_m_lambda_kappa},
             {"split_k_kappa", t.split_k_kappa},
             {"split_k_omega", t.split_k_omega},
             {"wide_tile_omega", t.wide_tile_omega},
             {"omega_full", t.omega_full},
             {"omega_many", t.omega_many}}},
           {"regions", list}});
  return kOk;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<RegionsOptions>();
  add_list(app, "--model", o->models, "MODEL", "a known model or E,k,H,I (default: all known models)");
  add_text(app, "--tokens", o->tokens, "T,T,...", "tokens per step");
  add_integer(app, "--tile-m", o->tile_m, {1, 1 << 16}, "M", "token rows per tile");
  add_integer(app, "--ttn", o->ttn, {1, 1 << 16}, "N", "weight rows per tile (bn * wn)");
  std::vector<std::string> machines;
  for (const core::HardwareConstants& h : core::known_hardware()) machines.push_back(h.name);
  add_choice(app, "--hardware", o->hardware, machines, "the machine whose thresholds apply");
  examples(app, {{"ramp regions", "all known models at one token"},
                 {"ramp regions --model olmoe --tokens 1,64,4096", "one model as the batch grows"}});
  return [o](Io& io) { return regions(io, *o); };
}
const Register kRegister{{"regions", "performance regions of models and the modes they predict", 56, setup}};

}  // namespace
}  // namespace ramp::cli
