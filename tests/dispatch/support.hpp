// Shared by the dispatch tests: a toy predictor whose numbers are chosen by the test, a synthetic kernel
// whose timings follow a known law, and temporary directories.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/rng.hpp"
#include "cost/cost_model.hpp"
#include "cost/dataset.hpp"
#include "geometry/grid.hpp"

size_t count_allocations();  // allocations.cpp

namespace ramp::core {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ramp_dispatch_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = pattern;
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }
  [[nodiscard]] std::string path() const { return path_.string(); }
  [[nodiscard]] size_t entries() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

// Runs f, expects Error with this status, returns its message.
template <typename F>
std::string error_of(F&& f, ramp_status status) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), status) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}
inline void expect_has(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << "\nin: " << text;
}

inline ConfigTable toy_configs(size_t n) {
  ConfigTable t;
  t.known_columns = {"tile_m", "tile_n", "stages"};
  t.extra_columns = {"flavour"};
  for (size_t c = 0; c < n; ++c) {
    KernelConfig k;
    k.tile_m = 8 << (c % 4);
    k.tile_n = 128 << (c / 4 % 2);
    k.stages = 1 + static_cast<int32_t>(c);
    t.names.push_back(fmt::format("c{}", c));
    t.configs.push_back(k);
    t.extra.push_back(0.1 * static_cast<double>(c));
  }
  return t;
}

inline ModelShape toy_model(int64_t experts = 8, int64_t top_k = 2) {
  return {"toy", experts, top_k, 256, 128};
}

// Predicts fixed times, whatever the histogram; chooses the smallest.
class ToyPredictor final : public Predictor {
 public:
  ToyPredictor(std::vector<float> us, ModelShape model = toy_model())
      : us_(std::move(us)), model_(std::move(model)), configs_(toy_configs(us_.size())) {}
  [[nodiscard]] std::string_view cost_model() const noexcept override { return "toy"; }
  [[nodiscard]] const ModelShape& model() const noexcept override { return model_; }
  [[nodiscard]] const ConfigTable& configs() const noexcept override { return configs_; }
  [[nodiscard]] size_t coefficients() const noexcept override { return us_.size(); }
  [[nodiscard]] size_t scratch_bytes() const noexcept override { return scratch; }
  void predict(std::span<const int32_t>, std::span<float> us, std::span<std::byte>) const noexcept override {
    std::copy(us_.begin(), us_.end(), us.begin());
  }
  [[nodiscard]] size_t choose(std::span<const int32_t>, std::span<std::byte>) const noexcept override {
    return static_cast<size_t>(std::min_element(us_.begin(), us_.end()) - us_.begin());
  }
  [[nodiscard]] std::vector<CostTerm> explain(std::span<const int32_t>, size_t) const override { return {}; }
  [[nodiscard]] nlohmann::json to_json() const override { return {{"us", us_}}; }
  size_t scratch = 0;

 private:
  std::vector<float> us_;
  ModelShape model_;
  ConfigTable configs_;
};

// The law of the synthetic kernel: fixed cost, waves on 4 workers, and a price per tile that grows with its
// size. Small tiles win with few rows per expert, large ones with many.
inline double synthetic_us(const KernelConfig& c, std::span<const int32_t> histogram) {
  const TokenTiling t = tile_tokens(histogram, c.tile_m);
  const double tiles = static_cast<double>(t.m_tiles) * 2;
  return 3.0 + std::ceil(tiles / 4) * (2.0 + 0.12 * c.tile_m) + 0.05 * c.stages;
}

inline WorkPoint point(std::string name, int64_t tokens, std::vector<int32_t> histogram, double zipf = NAN) {
  WorkPoint p;
  p.name = std::move(name);
  p.tokens = tokens;
  p.histogram = std::move(histogram);
  p.zipf = zipf;
  p.train = true;
  return p;
}

// Token counts 1..256, balanced and hot, for toy_model().
inline std::vector<WorkPoint> toy_points() {
  std::vector<WorkPoint> points;
  for (const int32_t t : {1, 4, 16, 64, 256}) {
    std::vector<int32_t> even(8), hot(8);
    for (int32_t i = 0; i < 2 * t; ++i) ++even[static_cast<size_t>(i % 8)];
    hot[0] = t;
    for (int32_t i = 0; i < t; ++i) ++hot[static_cast<size_t>(1 + (i * i) % 3)];
    points.push_back(point(fmt::format("even{}", t), t, even, 0.0));
    points.push_back(point(fmt::format("hot{}", t), t, hot, 1.2));
  }
  return points;
}

// A dataset over toy_configs(n) and toy_points() with the synthetic law's timings.
inline Dataset synthetic_dataset(size_t configs = 8) {
  Dataset d;
  d.source = "synthetic";
  d.configs = toy_configs(configs);
  d.models = {toy_model()};
  d.points = toy_points();
  for (const WorkPoint& p : d.points) {
    for (const KernelConfig& c : d.configs.configs) d.us.push_back(synthetic_us(c, p.histogram));
  }
  d.us_repeat.assign(d.us.size(), std::nan(""));
  return d;
}

}  // namespace ramp::core
