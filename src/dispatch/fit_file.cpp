// Fit files: writing, reading, and fitting whole datasets.
#include "dispatch/fit_file.hpp"

#include <fmt/format.h>

#include <new>

#include "base/error.hpp"
#include "base/file.hpp"

namespace ramp::core {
namespace {

constexpr size_t kMaxFitBytes = size_t{64} << 20;  // 16 models x 268 configs take about 2 MB
constexpr size_t kMaxModels = 4096;
constexpr std::string_view kMend = "profile the kernel on this machine, then: ramp fit --data DIR -o FILE";

// A model's own reader knows its keys but not the file: put both into the message.
std::shared_ptr<const Predictor> read_predictor(const JsonView& v, std::string_view cost_model) {
  try {
    return find_cost_model(cost_model).from_json(v.raw());
  } catch (const Error& e) {
    v.bad(e.what(), fmt::format("a fit of cost model '{}'", cost_model));
  } catch (const nlohmann::json::exception& e) {
    v.bad(printable(e.what(), 160), fmt::format("a fit of cost model '{}'", cost_model));
  } catch (const std::bad_alloc&) {
    throw;
  }
}

}  // namespace

const FittedModel& Fit::find(std::string_view model) const {
  std::string known;
  for (const FittedModel& m : models) {
    if (m.predictor->model().name == model) return m;
    known += (known.empty() ? "" : ", ") + m.predictor->model().name;
  }
  fail_argument("model", fmt::format("'{}'", model), "one of the fit: " + known,
                "fit it: ramp fit --data DIR -o FILE");
}

Fit fit_dataset(const Dataset& d, std::string_view cost_model, const HardwareConstants& hw, Metadata metadata,
                std::vector<ModelFitReport>* reports) {
  const CostModel& model = find_cost_model(cost_model);
  Fit fit;
  fit.metadata = std::move(metadata);
  for (size_t m = 0; m < d.models.size(); ++m) {
    const auto index = static_cast<int32_t>(m);
    const std::vector<size_t> points = select_points(d, index, true);
    ModelFitReport r{d.models[m].name, {}};
    FittedModel fitted;
    fitted.predictor = model.fit(d, index, points, hw, r.report);
    if (!points.empty()) fitted.guard = Guard(d, index, points);
    fit.models.push_back(std::move(fitted));
    if (reports != nullptr) reports->push_back(std::move(r));
  }
  return fit;
}

std::string fit_text(const Fit& fit) {
  nlohmann::json models = nlohmann::json::array();
  for (const FittedModel& m : fit.models) {
    models.push_back({{"name", m.predictor->model().name},
                      {"cost_model", m.predictor->cost_model()},
                      {"predictor", m.predictor->to_json()},
                      {"guard", m.guard.to_json()}});
  }
  const nlohmann::json root = {{"schema", kFitSchema},
                               {"version", kFitVersion},
                               {"metadata", metadata_to_json(fit.metadata)},
                               {"models", models}};
  return json_text_of(root, 1);
}

void write_fit(const std::string& path, const Fit& fit) {
  write_text(path, fit_text(fit));
}

LoadedFit parse_fit(std::string_view text, const std::string& name, const Metadata& here) {
  const nlohmann::json root = parse_json_file(text, name, kMaxFitBytes);
  const JsonOrigin origin{name, "write it again: ramp fit --data DIR -o FILE"};
  const JsonView v(root, origin);
  LoadedFit loaded;
  loaded.compatibility = check_schema(v, kFitSchema, kFitVersion, name, kMend);
  if (!loaded.compatibility.usable) return loaded;
  loaded.fit.metadata = metadata_from_json(v.at("metadata"));
  loaded.compatibility = compare_metadata(loaded.fit.metadata, here, name, kMend);
  const JsonView models = v.at("models");
  for (size_t i = 0, n = models.size("models", 1, kMaxModels); i < n; ++i) {
    const JsonView entry = models.item(i);
    FittedModel m;
    m.predictor = read_predictor(entry.at("predictor"), entry.at("cost_model").text());
    const std::string model = entry.at("name").text();
    if (model != m.predictor->model().name) {
      entry.at("name").bad(fmt::format("the predictor's model '{}'", printable(m.predictor->model().name)));
    }
    for (const FittedModel& other : loaded.fit.models) {
      if (other.predictor->model().name == model) entry.at("name").bad("a model that no earlier entry has");
    }
    m.guard = Guard::from_json(entry.at("guard"), m.predictor->configs().size(), m.predictor->model().top_k);
    loaded.fit.models.push_back(std::move(m));
  }
  return loaded;
}

LoadedFit read_fit(const std::string& path, const Metadata& here) {
  return parse_fit(read_bounded(path, kMaxFitBytes), path, here);
}

}  // namespace ramp::core
