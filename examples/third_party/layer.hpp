// What the examples of third-party kernels share: a small layer with made-up weights, steps with skewed
// routing, and the check of a step's result against fp64 with a bound that follows from the roundings.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

struct Shape {
  int64_t experts, top_k, hidden, intermediate;
};

// silu(gate) * up, then down: w13 [E, 2I, H] (gate rows first), w2 [E, H, I].
struct Layer {
  Shape shape;
  std::vector<float> w13, w2;

  explicit Layer(const Shape& s) : shape(s) {
    uint64_t state = 7;
    // -64/64 to 63/64: seven bits and a sign, which bf16 holds.
    const auto fill = [&](std::vector<float>& v, int64_t n) {
      v.resize(static_cast<size_t>(n));
      for (float& x : v) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        x = static_cast<float>(static_cast<int>(state >> 57) - 64) / 64;
      }
    };
    fill(w13, s.experts * 2 * s.intermediate * s.hidden);
    fill(w2, s.experts * s.hidden * s.intermediate);
  }
};

// One step: T tokens, each with k distinct experts, drawn by a Zipf law of that exponent (0: all alike).
struct Step {
  int64_t tokens = 0;
  std::vector<int32_t> ids, histogram;
  std::vector<float> weights, x, y;

  Step(const Shape& s, int64_t t, double zipf, uint32_t seed) : tokens(t) {
    std::mt19937 random(seed);
    std::vector<double> share(static_cast<size_t>(s.experts));
    for (size_t e = 0; e < share.size(); ++e) share[e] = std::pow(static_cast<double>(e + 1), -zipf);
    for (int64_t i = 0; i < t; ++i) {
      std::vector<double> left = share;
      for (int64_t j = 0; j < s.top_k; ++j) {
        std::discrete_distribution<int32_t> draw(left.begin(), left.end());
        ids.push_back(draw(random));
        left[static_cast<size_t>(ids.back())] = 0;
      }
    }
    finish(s, random);
  }
  // Ids that give this histogram: rows of an expert go to the tokens in turn, so that none has one twice
  // (which no expert with more than T rows could have avoided).
  Step(const Shape& s, int64_t t, const int32_t* counts) : tokens(t) {
    std::mt19937 random(11);
    ids.assign(static_cast<size_t>(t * s.top_k), -1);  // fewer rows than T * k: the rest is masked
    int64_t row = 0;
    for (int64_t e = 0; e < s.experts; ++e)
      for (int32_t c = 0; c < counts[e]; ++c, ++row)
        ids[static_cast<size_t>(row % t * s.top_k + row / t)] = static_cast<int32_t>(e);
    finish(s, random);
  }

 private:
  void finish(const Shape& s, std::mt19937& random) {
    histogram.assign(static_cast<size_t>(s.experts), 0);
    for (const int32_t id : ids)
      if (id >= 0) ++histogram[static_cast<size_t>(id)];
    weights.assign(ids.size(), 1.0F / static_cast<float>(s.top_k));
    x.resize(static_cast<size_t>(tokens * s.hidden));
    for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 129) - 64) / 64;
    y.assign(x.size(), 0.0F);
  }
};

inline double silu(double v) {
  return v / (1 + std::exp(-v));
}

// Up to `most` tokens of the step, spread over it: the largest error over its bound; above 1 is wrong.
// unit: half the spacing at 1 of the type that intermediate values, rows of experts and y are rounded to,
// once each (2^-24 for f32, 2^-8 for bf16); x and weights are exact. Sums of n products are taken to be off
// by n * 2^-23 of the sum of their absolute values, whatever their order in fp32; silu' lies in (-0.1, 1.1).
inline double worst_error(const Layer& layer, const Step& step, double unit, int64_t most = 16) {
  const auto& [E, k, H, I] = layer.shape;
  const double sum_unit = std::ldexp(1.0, -23);
  double worst = 0;
  std::vector<double> middle(static_cast<size_t>(I)), error(static_cast<size_t>(I));
  std::vector<double> y(static_cast<size_t>(H)), bound(static_cast<size_t>(H));
  const int64_t stride = std::max<int64_t>(1, step.tokens / most);
  for (int64_t t = 0; t < step.tokens; t += stride) {
    std::fill(y.begin(), y.end(), 0.0);
    std::fill(bound.begin(), bound.end(), 0.0);
    const float* x = &step.x[static_cast<size_t>(t * H)];
    for (int64_t j = 0; j < k; ++j) {
      const int64_t e = step.ids[static_cast<size_t>(t * k + j)];
      if (e < 0) continue;
      for (int64_t i = 0; i < I; ++i) {
        double v[2] = {}, size[2] = {};
        for (int half = 0; half < 2; ++half) {
          const float* w = &layer.w13[static_cast<size_t>(((e * 2 + half) * I + i) * H)];
          for (int64_t h = 0; h < H; ++h) {
            v[half] += double{w[h]} * x[h];
            size[half] += std::abs(double{w[h]} * x[h]);
          }
        }
        const double off = static_cast<double>(H) * sum_unit;
        const auto at = static_cast<size_t>(i);
        middle[at] = silu(v[0]) * v[1];
        error[at] =
            off * (1.1 * size[0] * (std::abs(v[1]) + off * size[1]) + std::abs(silu(v[0])) * size[1]) +
            (unit + 4 * sum_unit) * std::abs(middle[at]);
      }
      const double weight = step.weights[static_cast<size_t>(t * k + j)];
      for (int64_t h = 0; h < H; ++h) {
        double sum = 0, size = 0, carried = 0;
        const float* w = &layer.w2[static_cast<size_t>((e * H + h) * I)];
        for (int64_t i = 0; i < I; ++i) {
          const auto at = static_cast<size_t>(i);
          sum += w[i] * middle[at];
          size += std::abs(w[i] * middle[at]);
          carried += std::abs(double{w[i]}) * error[at];
        }
        const auto at = static_cast<size_t>(h);
        y[at] += weight * sum;
        const double row = carried + static_cast<double>(I + k) * sum_unit * (size + carried);
        bound[at] += weight * (row + unit * (std::abs(sum) + row));
      }
    }
    for (int64_t h = 0; h < H; ++h) {
      const auto at = static_cast<size_t>(h);
      const double allowed = bound[at] + unit * (std::abs(y[at]) + bound[at]);
      const double off = std::abs(double{step.y[static_cast<size_t>(t * H + h)]} - y[at]);
      if (std::isnan(off)) return HUGE_VAL;
      if (off > 0) worst = std::max(worst, off / allowed);
    }
  }
  return worst;
}
