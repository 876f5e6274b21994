// The wave and analytic models against an independent implementation, their decision path against itself on
// every instruction set, and what is promised about any input: finite, non-negative, monotone where proven.
#include "cost/wave.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.hpp"
#include "cost/csv.hpp"
#include "geometry/grid.hpp"
#include "support.hpp"

size_t count_allocations();  // allocations.cpp

namespace ramp::core {
namespace {

const WavePredictor& wave(int32_t model) {
  return dynamic_cast<const WavePredictor&>(fitted("wave", model));
}

std::string reference(const char* file) {
  return std::string(RAMP_SOURCE_DIR "/tests/cost/reference/") + file;
}

std::map<std::string, size_t> point_index() {
  std::map<std::string, size_t> m;
  for (size_t i = 0; i < measured().points.size(); ++i) m[measured().points[i].name] = i;
  return m;
}
std::map<std::string, size_t> config_index() {
  std::map<std::string, size_t> m;
  for (size_t i = 0; i < measured().configs.size(); ++i) m[measured().configs.names[i]] = i;
  return m;
}

// Tolerance. Physics: per lane about 30 rounded float operations on positive terms (subtractions only in
// padding and fill, which are computed in double), so 32 units in the last place. Residual: weights |alpha|
// sum to at most S (computed below), similarities in [0,1] carry about 16 roundings, hence 16*eps*S in log
// units. Fit: both implementations stop after the same iterations; their linear solvers differ by rounding,
// damped by the priors (measured: 1e-12).
TEST(Wave, AgreesWithTheIndependentImplementation) {
  const auto points = point_index();
  const auto configs = config_index();
  CsvReader csv(reference("predictions.csv"));
  size_t rows = 0;
  constexpr double kEps = std::numeric_limits<float>::epsilon();
  for (auto row = csv.next(); !row.empty(); row = csv.next(), ++rows) {
    const size_t p = points.at(std::string(row[0]));
    const size_t c = configs.at(std::string(row[1]));
    const WorkPoint& point = measured().points[p];
    const WavePredictor& w = wave(point.model);
    double weights = 0;
    const size_t n = w.fit().points.size();
    for (size_t i = 0; i < n; ++i) weights += std::abs(w.fit().alpha[c * n + i]);
    const double expected = csv.number(row, 2);
    EXPECT_NEAR(predict(w, point.histogram)[c], expected, expected * kEps * (32 + 16 * weights))
        << row[0] << " " << row[1];
    const double analytic = csv.number(row, 3);
    EXPECT_NEAR(predict(fitted("analytic", point.model), point.histogram)[c], analytic, analytic * kEps * 32)
        << row[0] << " " << row[1];
  }
  EXPECT_EQ(rows, 169U * 8U);
}

TEST(Wave, ChoosesWhatTheIndependentImplementationChooses) {
  const auto points = point_index();
  const auto configs = config_index();
  CsvReader csv(reference("choices.csv"));
  size_t rows = 0;
  for (auto row = csv.next(); !row.empty(); row = csv.next(), ++rows) {
    const WorkPoint& point = measured().points[points.at(std::string(row[0]))];
    EXPECT_EQ(choose(fitted("wave", point.model), point.histogram), configs.at(std::string(row[1])))
        << row[0];
    // analytic has exact ties (and float near-ties): the choice must cost the same.
    const std::vector<float> us = predict(fitted("analytic", point.model), point.histogram);
    const size_t chosen = choose(fitted("analytic", point.model), point.histogram);
    const float theirs = us[configs.at(std::string(row[2]))];
    EXPECT_NEAR(us[chosen], theirs, theirs * 64 * std::numeric_limits<float>::epsilon()) << row[0];
  }
  EXPECT_EQ(rows, 169U);
}

// Histograms that no profile holds.
std::vector<std::vector<int32_t>> odd_histograms(size_t experts) {
  std::vector<std::vector<int32_t>> all(6, std::vector<int32_t>(experts, 0));
  all[1][0] = 1;
  all[2].assign(experts, 1 << 20);
  all[3].assign(experts, std::numeric_limits<int32_t>::max());
  all[4][experts - 1] = std::numeric_limits<int32_t>::max();
  all[5].assign(experts, (1 << 22) - 1);
  std::mt19937 rng(7);
  for (int i = 0; i < 200; ++i) {
    std::vector<int32_t> h(experts);
    const int magnitude = static_cast<int>(rng() % 24);
    for (int32_t& c : h) c = rng() % 3 == 0 ? 0 : static_cast<int32_t>(rng() % (1U << magnitude));
    all.push_back(std::move(h));
  }
  return all;
}

TEST(Decide, AllInstructionSetsGiveTheSameBits) {
  const auto kernels = decide_kernels();
  ASSERT_GE(kernels.size(), 2U);
  for (int32_t m = 0; m < 4; ++m) {
    const WavePredictor& w = wave(m);
    Scratch s(w);
    std::vector<std::vector<int32_t>> all = odd_histograms(static_cast<size_t>(w.model().experts));
    for (const WorkPoint& p : measured().points) {
      if (p.model == m) all.push_back(p.histogram);
    }
    for (const auto& h : all) {
      std::vector<float> expected(w.configs().size());
      w.table().predict(h, expected, s.get(), *kernels[0]);
      const size_t chosen = w.table().choose(h, s.get(), *kernels[0]);
      for (const DecideKernels* k : kernels.subspan(1)) {
        std::vector<float> us(expected.size());
        w.table().predict(h, us, s.get(), *k);
        ASSERT_EQ(std::memcmp(us.data(), expected.data(), us.size() * sizeof(float)), 0) << k->name;
        ASSERT_EQ(w.table().choose(h, s.get(), *k), chosen) << k->name;
      }
    }
  }
}

TEST(Decide, CountsAreExact) {
  std::vector<int32_t> tile_m = {1, 2, 3, 7, 8, 24, 80, 127, 128, 255, 4096, 1 << 24};
  const TileCounter counter(tile_m);
  std::mt19937 rng(3);
  std::vector<std::vector<int32_t>> all = odd_histograms(64);
  for (const size_t experts : {1, 15, 16, 17, 1023, 1024, 1025, 5000}) {
    for (auto& h : odd_histograms(experts)) all.push_back(std::move(h));
  }
  all.push_back({});
  all.push_back({-5, 3});
  // All counts around multiples of all tiles, up to the float path's limit.
  std::vector<int32_t> near;
  for (const int32_t m : tile_m) {
    for (const int64_t k : {1, 2, 1000, 52428, 524287}) {
      for (const int64_t d : {-1, 0, 1}) {
        if (m * k + d < (1 << 22)) near.push_back(static_cast<int32_t>(m * k + d));
      }
    }
  }
  all.push_back(near);
  for (const auto& h : all) {
    std::vector<std::byte> scratch(counter.scratch_bytes() + 64);
    auto* const at =
        reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63});
    for (const DecideKernels* k : decide_kernels()) {
      std::vector<int64_t> tiles(tile_m.size(), -1);
      const HistogramFacts f = counter.count(h, *k, tiles, at);
      for (size_t t = 0; t < tile_m.size(); ++t) {
        const TokenTiling expected = tile_tokens(h, tile_m[t]);
        ASSERT_EQ(tiles[t], expected.m_tiles) << k->name << " " << tile_m[t];
        ASSERT_EQ(f.rows, expected.rows);
        ASSERT_EQ(f.active, expected.active);
        ASSERT_EQ(f.max_load, expected.max_load);
      }
    }
  }
}

TEST(Decide, LogarithmIsAccurate) {
  for (int i = -120; i <= 120; ++i) {
    for (const float m : {1.0F, 1.1F, 1.3F, 1.41421F, 1.41422F, 1.7F, 1.99999F}) {
      const float x = std::ldexp(m, i);
      const double exact = std::log(static_cast<double>(x));
      EXPECT_NEAR(portable_log(x), exact, 2e-7 * std::max(1.0, std::abs(exact))) << x;
    }
  }
}

TEST(Decide, AllocatesNothing) {
  for (const char* name : {"wave", "ramp4", "analytic"}) {
    const Predictor& p = fitted(name, 2);
    Scratch s(p);
    const std::span<std::byte> scratch = s.get();
    std::vector<float> us(p.configs().size());
    const std::vector<int32_t>& h = measured().points.front().histogram;
    std::vector<int32_t> histogram(static_cast<size_t>(p.model().experts), 3);
    std::copy(h.begin(), h.begin() + static_cast<std::ptrdiff_t>(std::min(h.size(), histogram.size())),
              histogram.begin());
    (void)p.choose(histogram, scratch);
    const size_t before = count_allocations();
    size_t sum = 0;
    for (int i = 0; i < 100; ++i) {
      histogram[static_cast<size_t>(i) % histogram.size()] = i;
      sum += p.choose(histogram, scratch);
      p.predict(histogram, us, scratch);
    }
    EXPECT_EQ(count_allocations(), before) << name << " " << sum;
  }
}

// choose == lowest index of the smallest prediction, then the guard.
TEST(Wave, ChoiceIsTheSmallestPredictionUnderTheGuard) {
  for (int32_t m = 0; m < 4; ++m) {
    const WavePredictor& w = wave(m);
    const WaveFit& f = w.fit();
    std::vector<std::vector<int32_t>> all = odd_histograms(static_cast<size_t>(w.model().experts));
    for (const WorkPoint& p : measured().points) {
      if (p.model == m) all.push_back(p.histogram);
    }
    size_t guarded = 0;
    for (const auto& h : all) {
      const std::vector<float> us = predict(w, h);
      const auto best = static_cast<size_t>(std::min_element(us.begin(), us.end()) - us.begin());
      const WorkClass k = work_class_of(w.configs().configs[best], w.model());
      const auto tile = static_cast<size_t>(std::lower_bound(f.tile_m.begin(), f.tile_m.end(), k.tile_m) -
                                            f.tile_m.begin());
      const WorkCoordinates x = coordinates(
          make_work(histogram_facts(h), tile_tokens(h, k.tile_m).m_tiles, k, f.sm_count), f.hyper);
      std::vector<double> near;
      for (const WaveFit::Point& p : f.points) {
        near.push_back(
            similarity(x, coordinates(make_work(p.facts, p.m_tiles[tile], k, f.sm_count), f.hyper)));
      }
      const auto top = std::max_element(near.begin(), near.end());
      // Two training points equally near within float rounding may be taken either way.
      bool tied = false;
      for (auto n = near.begin(); n != near.end(); ++n) tied |= n != top && *n > *top * (1 - 1e-5);
      if (tied) continue;
      const size_t proven = f.points[static_cast<size_t>(top - near.begin())].best;
      const bool keep = us[proven] * static_cast<float>(1 - f.hyper.guard) <= us[best];
      guarded += keep && proven != best ? 1 : 0;
      EXPECT_EQ(choose(w, h), keep ? proven : best);
    }
    EXPECT_GT(guarded, 0U) << "the guard never spoke: the test shows nothing";
  }
}

TEST(Wave, AlwaysFiniteAndNonNegative) {
  for (const char* name : {"wave", "ramp4", "analytic"}) {
    for (int32_t m = 0; m < 4; ++m) {
      const Predictor& p = fitted(name, m);
      for (const auto& h : odd_histograms(static_cast<size_t>(p.model().experts))) {
        for (const float us : predict(p, h)) {
          ASSERT_TRUE(std::isfinite(us)) << name;
          ASSERT_GE(us, 0.0F) << name;
        }
        ASSERT_LT(choose(p, h), p.configs().size());
      }
    }
  }
}

// What is proven: at fixed fill, padding and fullest tile, the physics never falls as tiles, first reads or
// output rows rise (each term is a non-negative combination of steps and lines; the norm is monotone).
TEST(Wave, PhysicsIsMonotoneInWork) {
  for (int32_t m = 0; m < 4; ++m) {
    const WaveFit& f = wave(m).fit();
    for (size_t c = 0; c < f.configs.size(); c += 5) {
      Work w;
      w.fill = 5;
      w.fullest = 8;
      w.padding = 0.4;
      double before = 0;
      for (int g = 1; g < 2000; ++g) {
        w.tiles = g / 132.0;
        w.first_read = std::min(w.tiles, 3.0);
        w.output = w.tiles * w.fill;
        const double us = physics_us(f.configs[c], w, f.hyper);
        ASSERT_GE(us, before * (1 - 1e-12)) << "config " << c << " grid " << g;
        before = us;
      }
    }
  }
}

// The residual is clipped to +-0.25 in log units and fades with distance, so far beyond the profile the
// prediction is the physics, and time grows without bound with work.
TEST(Wave, ExtrapolatesByPhysics) {
  for (int32_t m = 0; m < 4; ++m) {
    const WavePredictor& w = wave(m);
    std::vector<int32_t> h(static_cast<size_t>(w.model().experts), 1 << 16);
    const std::vector<float> once = predict(w, h);
    for (int32_t& c : h) c *= 8;
    const std::vector<float> eight = predict(w, h);
    for (size_t c = 0; c < once.size(); ++c) {
      EXPECT_GT(eight[c], once[c] * 7);
      EXPECT_LT(eight[c], once[c] * 9);
      const std::vector<CostTerm> terms = w.explain(h, c);
      double physics = 0;
      for (size_t t = 0; t + 1 < terms.size(); ++t) physics += terms[t].us;
      EXPECT_NEAR(terms.back().us, 0, 0.05 * physics) << "residual far from the profile";
    }
  }
}

TEST(Wave, ExplanationAddsUpToThePrediction) {
  for (const char* name : {"wave", "ramp4", "analytic"}) {
    for (const size_t p : {size_t{3}, size_t{50}, size_t{120}, size_t{165}}) {
      const WorkPoint& point = measured().points[p];
      const Predictor& model = fitted(name, point.model);
      const std::vector<float> us = predict(model, point.histogram);
      for (size_t c = 0; c < us.size(); c += 11) {
        double sum = 0;
        for (const CostTerm& t : model.explain(point.histogram, c)) sum += t.us;
        EXPECT_NEAR(sum, us[c], 1e-4 * us[c]) << name << " " << point.name;
      }
    }
  }
}

TEST(Wave, JsonRoundTripIsBitwise) {
  for (const char* name : {"wave", "ramp4", "analytic"}) {
    for (int32_t m = 0; m < 4; ++m) {
      const Predictor& p = fitted(name, m);
      const std::string text = p.to_json().dump();
      const std::unique_ptr<Predictor> back = find_cost_model(name).from_json(nlohmann::json::parse(text));
      EXPECT_EQ(back->to_json().dump(), text);
      EXPECT_EQ(back->coefficients(), p.coefficients());
      for (const WorkPoint& point : measured().points) {
        if (point.model != m) continue;
        const std::vector<float> a = predict(p, point.histogram);
        const std::vector<float> b = predict(*back, point.histogram);
        ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
        ASSERT_EQ(choose(p, point.histogram), choose(*back, point.histogram));
      }
    }
  }
}

// Every single change of a fit's JSON is either refused with the key's name or still a working predictor.
TEST(Wave, BrokenJsonIsRefusedOrHarmless) {
  for (const char* name : {"wave", "ramp4", "analytic"}) {
    const nlohmann::json good = fitted(name, 3).to_json();
    const CostModel& model = find_cost_model(name);
    std::vector<int32_t> h(8, 5);
    size_t refused = 0;
    const nlohmann::json flat = good.flatten();
    size_t i = 0;
    for (const auto& [pointer, value] : flat.items()) {
      if (++i % 37 != 0 && pointer.find("/parameters/") == 0) continue;  // thinned: 1200 alike numbers
      if (++i % 31 != 0 && pointer.find("/residual_weights/") == 0) continue;
      for (const nlohmann::json& bad :
           {nlohmann::json(nullptr), nlohmann::json("x"), nlohmann::json(-1e40), nlohmann::json(-1),
            nlohmann::json(1e40), nlohmann::json::array(), nlohmann::json(1.5)}) {
        nlohmann::json j = good;
        j[nlohmann::json::json_pointer(pointer)] = bad;
        try {
          const std::unique_ptr<Predictor> p = model.from_json(j);
          for (const float us : predict(*p, std::span(h).first(std::min<size_t>(8, p->model().experts)))) {
            ASSERT_FALSE(std::isnan(us)) << pointer << " " << bad;
          }
        } catch (const Error& e) {
          ++refused;
          EXPECT_EQ(e.status(), RAMP_ERROR_BAD_FILE) << pointer;
        }
      }
    }
    for (const auto& [key, value] : good.items()) {
      nlohmann::json j = good;
      j.erase(key);
      EXPECT_THROW((void)model.from_json(j), Error) << key;
    }
    EXPECT_GT(refused, 100U);
  }
}

}  // namespace
}  // namespace ramp::core
