// Laying a fit out in lanes, and the scalar part of a decision: counting, waves, coordinates, choosing.
#include "cost/decide.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace ramp::core {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kRowBlock = 16;      // count_tiles takes multiples of it
constexpr size_t kCountBlock = 1024;  // experts at a time: bounds the scratch
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr size_t round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

// Parameters far outside of any hardware would overflow the float arithmetic.
float to_float(double v) {
  return static_cast<float>(std::clamp(v, -1e15, 1e15));
}

std::array<float, 4> float_coordinates(const Work& w, const WaveHyper& h) noexcept {
  const auto log = [](double v) { return static_cast<double>(portable_log(static_cast<float>(v))); };
  return {static_cast<float>(log(w.tiles) / h.scale_waves),
          static_cast<float>(log(w.first_read) / h.scale_active),
          static_cast<float>(w.padding / h.scale_padding), static_cast<float>(log(w.fullest) / h.scale_tail)};
}

}  // namespace

std::span<const DecideKernels* const> decide_kernels() noexcept {
  static const DecideKernels* const all[] = {
    &kDecideScalar,
    &kDecideBaseline,
#if defined(RAMP_DECIDE_AVX2)
    &kDecideAvx2
#endif
  };
#if defined(RAMP_DECIDE_AVX2)
  static const size_t usable = __builtin_cpu_supports("avx2") != 0 ? 3 : 2;
#else
  static const size_t usable = 2;
#endif
  return {all, usable};
}

float portable_log(float x) noexcept {
  // x = 2^e * m with m in [1/sqrt2, sqrt2); log m = 2*atanh((m-1)/(m+1)), series to the ninth power.
  uint32_t bits = std::bit_cast<uint32_t>(x);
  constexpr uint32_t kRootHalf = 0x3f3504f3;
  const uint32_t shifted = bits - kRootHalf;
  const auto exponent = static_cast<int32_t>(shifted) >> 23;
  bits -= static_cast<uint32_t>(exponent) << 23;
  const float m = std::bit_cast<float>(bits);
  const float s = (m - 1.0F) / (m + 1.0F);
  const float z = s * s;
  const float series = z * (1.0F / 3 + z * (1.0F / 5 + z * (1.0F / 7 + z * (1.0F / 9))));
  const float log_m = 2.0F * s + 2.0F * s * series;
  return static_cast<float>(exponent) * 0.693147182F + log_m;
}

TileCounter::TileCounter(std::vector<int32_t> tile_m) : tile_m_(std::move(tile_m)) {
  for (const int32_t m : tile_m_) inverse_.push_back(1.0F / static_cast<float>(m));
}

size_t TileCounter::scratch_bytes() const noexcept {
  return kCountBlock * sizeof(float) + round_up(tile_m_.size() * sizeof(int32_t), kAlign);
}

HistogramFacts TileCounter::count(std::span<const int32_t> histogram, const DecideKernels& k,
                                  std::span<int64_t> m_tiles, std::byte* scratch) const noexcept {
  auto* rows = reinterpret_cast<float*>(scratch);
  auto* counts = reinterpret_cast<int32_t*>(scratch + kCountBlock * sizeof(float));
  HistogramFacts total;
  std::fill_n(m_tiles.begin(), tile_m_.size(), int64_t{0});
  for (size_t begin = 0; begin < histogram.size(); begin += kCountBlock) {
    const auto block = histogram.subspan(begin, std::min(kCountBlock, histogram.size() - begin));
    const size_t n = block.size();
    int32_t active = 0;
    int32_t most = 0;
    int64_t sum = 0;
    for (size_t e = 0; e < n; ++e) {
      const int32_t c = std::max(block[e], 0);
      active += c > 0 ? 1 : 0;
      most = std::max(most, c);
      sum += c;
      // ceil(c/m) = floor((c-1)/m) + 1 for c > 0; one half keeps the rounded quotient off whole numbers.
      rows[e] = static_cast<float>(std::max(c, 1) - 1) + 0.5F;
    }
    total.rows += sum;
    total.active += active;
    total.max_load = std::max<int64_t>(total.max_load, most);
    // (c - 1/2)/m is at least 1/(2m) from a whole number; two roundings move it by less than that while
    // c < 2^22. The sums fit 32 bits while all rows together do.
    constexpr int32_t kExactCount = 1 << 22;
    if (most < kExactCount && sum < std::numeric_limits<int32_t>::max()) {
      const size_t padded = round_up(n, kRowBlock);
      for (size_t e = n; e < padded; ++e) rows[e] = 0.0F;
      k.count_tiles(rows, padded, inverse_.data(), tile_m_.size(), counts);
      for (size_t t = 0; t < tile_m_.size(); ++t) m_tiles[t] += counts[t] + active;
    } else {
      for (size_t t = 0; t < tile_m_.size(); ++t) {
        const int64_t m = tile_m_[t];
        for (const int32_t c : block) m_tiles[t] += (static_cast<int64_t>(std::max(c, 0)) + m - 1) / m;
      }
    }
  }
  return total;
}

DecisionTable::DecisionTable(const WaveFit& fit, const ConfigTable& configs, const ModelShape& model)
    : counter_(fit.tile_m),
      hyper_(fit.hyper),
      constants_{static_cast<float>(fit.hyper.additive_share),
                 static_cast<float>(std::min(fit.hyper.residual_limit, 2.0))},
      sm_count_(fit.sm_count),
      experts_(static_cast<size_t>(model.experts)),
      configs_(configs.size()),
      points_(fit.points.size()),
      points_padded_(round_up(fit.points.size(), kLaneBlock)) {
  // Sort configs by class, then residency, then index.
  std::vector<size_t> order(configs_);
  std::iota(order.begin(), order.end(), size_t{0});
  const auto key = [&](size_t c) {
    const WorkClass w = work_class_of(configs.configs[c], model);
    return std::tuple(w.tile_m, w.blocks_per_tile, fit.configs[c].residency, c);
  };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(a) < key(b); });

  config_lane_.resize(configs_);
  config_class_.resize(configs_);
  double run_residency = 0;
  for (const size_t c : order) {
    const WorkClass w = work_class_of(configs.configs[c], model);
    const double residency = fit.configs[c].residency;
    const bool new_class = classes_.empty() || !(classes_.back().work == w);
    if (new_class || residency != run_residency) {
      lane_config_.resize(round_up(lane_config_.size(), kLaneBlock), -1);
      run_residency = residency;
      const auto begin = static_cast<int32_t>(lane_config_.size());
      runs_.push_back({begin, begin, static_cast<int64_t>(residency)});
    }
    if (new_class) {
      Class k;
      k.work = w;
      k.tile = static_cast<size_t>(std::lower_bound(fit.tile_m.begin(), fit.tile_m.end(), w.tile_m) -
                                   fit.tile_m.begin());
      k.train_at = classes_.size() * 4 * points_padded_;
      k.first_run = runs_.size() - 1;
      classes_.push_back(k);
    }
    config_lane_[c] = static_cast<int32_t>(lane_config_.size());
    config_class_[c] = classes_.size() - 1;
    lane_config_.push_back(static_cast<int32_t>(c));
    runs_.back().lane_end = static_cast<int32_t>(round_up(lane_config_.size(), kLaneBlock));
    classes_.back().last_run = runs_.size();
  }
  lane_config_.resize(round_up(lane_config_.size(), kLaneBlock), -1);
  lanes_ = lane_config_.size();

  constexpr size_t kArrays = 10;
  parameters_.assign(lanes_ * (kArrays + points_), 0.0F);
  const auto array = [&](size_t i) { return parameters_.data() + i * lanes_; };
  float* const alpha = array(kArrays);
  for (size_t lane = 0; lane < lanes_; ++lane) {
    const int32_t c = lane_config_[lane];
    // Padding lanes compute something harmless and are blocked.
    WaveConfigParameters p;
    p.value.fill(1.0);
    if (c >= 0) p = fit.configs[static_cast<size_t>(c)];
    array(0)[lane] = to_float(p.value[kLatency]);
    array(1)[lane] = to_float(p.value[kFillSlope]) * (c >= 0 ? 1.0F : 0.0F);
    array(2)[lane] = to_float(p.value[kRow]);
    array(3)[lane] = to_float(p.value[kSharing]);
    array(4)[lane] = to_float(1 + p.value[kSharing] * (p.residency - 1));
    array(5)[lane] = to_float(p.value[kFirstRead]);
    array(6)[lane] = to_float(p.value[kReread]);
    array(7)[lane] = to_float(p.value[kOutput]);
    array(8)[lane] = to_float(p.value[kLaunch]);
    array(9)[lane] = c >= 0 && fit.measured[static_cast<size_t>(c)] != 0 ? 0.0F : kInfinity;
  }
  for (const Run& run : runs_) {
    const auto begin = static_cast<size_t>(run.lane_begin);
    const auto width = static_cast<size_t>(run.lane_end - run.lane_begin);
    for (size_t i = 0; i < width; ++i) {
      const int32_t c = lane_config_[begin + i];
      if (c < 0 || fit.alpha.empty()) continue;
      for (size_t p = 0; p < points_; ++p) {
        alpha[begin * points_ + p * width + i] = to_float(fit.alpha[static_cast<size_t>(c) * points_ + p]);
      }
    }
  }
  view_ = {array(0), array(1), array(2), array(3), array(4), array(5),
           array(6), array(7), array(8), array(9), alpha};

  constexpr float kFar = 1e6F;  // padding points resemble nothing
  train_.assign(classes_.size() * 4 * points_padded_, kFar);
  for (const Class& k : classes_) {
    for (size_t p = 0; p < points_; ++p) {
      const auto x = float_coordinates(
          make_work(fit.points[p].facts, fit.points[p].m_tiles[k.tile], k.work, sm_count_), hyper_);
      for (size_t i = 0; i < x.size(); ++i) train_[k.train_at + i * points_padded_ + p] = x[i];
    }
  }
  for (const WaveFit::Point& p : fit.points) best_at_.push_back(p.best);
}

struct DecisionTable::Scratch {
  int64_t* m_tiles;
  float* similarity;  // [class][points_padded]
  float* us;          // [lane]
  std::byte* counter;
};

size_t DecisionTable::scratch_bytes() const noexcept {
  return round_up(counter_.tile_m().size() * sizeof(int64_t), kAlign) +
         round_up(classes_.size() * points_padded_ * sizeof(float), kAlign) +
         round_up(lanes_ * sizeof(float), kAlign) + counter_.scratch_bytes();
}

DecisionTable::Scratch DecisionTable::carve(std::span<std::byte> scratch) const noexcept {
  std::byte* at = scratch.data();
  const auto take = [&at](size_t bytes) {
    std::byte* const p = at;
    at += round_up(bytes, kAlign);
    return p;
  };
  Scratch s;
  s.m_tiles = reinterpret_cast<int64_t*>(take(counter_.tile_m().size() * sizeof(int64_t)));
  s.similarity = reinterpret_cast<float*>(take(classes_.size() * points_padded_ * sizeof(float)));
  s.us = reinterpret_cast<float*>(take(lanes_ * sizeof(float)));
  s.counter = at;
  return s;
}

void DecisionTable::evaluate(std::span<const int32_t> histogram, const Scratch& s,
                             const DecideKernels& k) const noexcept {
  const std::span<const int32_t> counts = histogram.first(std::min(histogram.size(), experts_));
  const HistogramFacts facts =
      counter_.count(counts, k, std::span(s.m_tiles, counter_.tile_m().size()), s.counter);
  for (size_t g = 0; g < classes_.size(); ++g) {
    const Class& group = classes_[g];
    const int64_t m_tiles = s.m_tiles[group.tile];
    const Work w = make_work(facts, m_tiles, group.work, sm_count_);
    float* const near = s.similarity + g * points_padded_;
    if (points_ > 0) {
      const auto x = float_coordinates(w, hyper_);
      k.similarity(x.data(), train_.data() + group.train_at, points_padded_, near);
    }
    RunInput r;
    r.tiles = static_cast<float>(w.tiles);
    r.first_read = static_cast<float>(w.first_read);
    r.output = static_cast<float>(w.output);
    r.fill = static_cast<float>(w.fill);
    r.tail = static_cast<float>(hyper_.tail_rows * (w.fullest - w.fill));
    r.padding_centred = static_cast<float>(w.padding - 0.5);
    const int64_t grid = m_tiles * group.work.blocks_per_tile;
    for (size_t i = group.first_run; i < group.last_run; ++i) {
      const Run& run = runs_[i];
      const int64_t slots = run.residency * sm_count_;
      const int64_t full = grid / slots;
      const int64_t rest = grid - full * slots;
      r.lane_begin = run.lane_begin;
      r.lane_end = run.lane_end;
      r.full_waves = static_cast<float>(full);
      const int64_t last = (rest + sm_count_ - 1) / sm_count_;
      r.last_wave = static_cast<float>(last);
      k.evaluate(view_, constants_, r, near, points_, s.us);
    }
  }
}

void DecisionTable::predict(std::span<const int32_t> histogram, std::span<float> us,
                            std::span<std::byte> scratch, const DecideKernels& k) const noexcept {
  const Scratch s = carve(scratch);
  evaluate(histogram, s, k);
  for (size_t c = 0; c < std::min(us.size(), configs_); ++c) {
    us[c] = s.us[static_cast<size_t>(config_lane_[c])];
  }
}

size_t DecisionTable::choose(std::span<const int32_t> histogram, std::span<std::byte> scratch,
                             const DecideKernels& k) const noexcept {
  const Scratch s = carve(scratch);
  evaluate(histogram, s, k);
  std::array<float, kLaneBlock> least;
  least.fill(kInfinity);
  for (size_t lane = 0; lane < lanes_; lane += kLaneBlock) {
    for (size_t j = 0; j < kLaneBlock; ++j) least[j] = std::min(least[j], s.us[lane + j]);
  }
  const float best_us = *std::min_element(least.begin(), least.end());
  size_t best = configs_;
  for (size_t lane = 0; lane < lanes_; ++lane) {
    if (s.us[lane] != best_us || lane_config_[lane] < 0) continue;
    best = std::min(best, static_cast<size_t>(lane_config_[lane]));
  }
  if (best == configs_) return 0;
  // Measured guard: the config measured fastest at the most similar training point stays, unless the winner
  // is predicted to beat it by more than the noise of a timing.
  if (points_ == 0 || hyper_.guard < 0) return best;
  const float* const near = s.similarity + config_class_[best] * points_padded_;
  size_t nearest = 0;
  for (size_t p = 1; p < points_; ++p) {
    if (near[p] > near[nearest]) nearest = p;
  }
  const size_t proven = best_at_[nearest];
  const float proven_us = s.us[static_cast<size_t>(config_lane_[proven])];
  return proven_us * static_cast<float>(1 - hyper_.guard) <= best_us ? proven : best;
}

}  // namespace ramp::core
