// Draws of ids and weights; see workload_draw.hpp. Popularity laws use the Gumbel top-k trick: the k largest
// of log p_e + G_e, with independent standard Gumbel G_e, are a sample without replacement in proportion to
// p.
#include "routing/workload_draw.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/rng.hpp"
#include "routing/stable_math.hpp"

namespace ramp::core {
namespace {

// Independent streams of one seed.
enum class Stream : uint64_t { kShuffle = 1, kPopularity, kTokens, kWeights, kHot };
uint64_t stream(uint64_t seed, Stream s) noexcept {
  return random_u64(seed, static_cast<uint64_t>(s));
}

// 0..n-1 in random order (Fisher-Yates).
std::vector<int32_t> permutation(int64_t n, uint64_t seed) {
  std::vector<int32_t> p(static_cast<size_t>(n));
  std::iota(p.begin(), p.end(), 0);
  Rng rng(seed);
  for (size_t i = p.size(); i > 1; --i) std::swap(p[i - 1], p[std::min<size_t>(rng.below(i), i - 1)]);
  return p;
}

// Uniform samples of k distinct experts, by Floyd's algorithm, in the (uniform) order of a shuffle.
// `stamp[e]` tells in which token e was taken last, so that nothing has to be cleared.
class UniformSampler {
 public:
  UniformSampler(int64_t experts, int64_t top_k, uint64_t seed)
      : experts_(experts), top_k_(top_k), seed_(seed), stamp_(static_cast<size_t>(experts), -1) {}

  void draw(int64_t t, int32_t* out) {
    const uint64_t first = static_cast<uint64_t>(t) * static_cast<uint64_t>(2 * top_k_);
    const auto below = [&](int64_t i, int64_t n) {
      const double u = random_unit(seed_, first + static_cast<uint64_t>(i));
      return std::min(static_cast<int64_t>(u * static_cast<double>(n)), n - 1);
    };
    for (int64_t j = 0; j < top_k_; ++j) {
      const int64_t last = experts_ - top_k_ + j;
      int64_t e = below(j, last + 1);
      if (stamp_[static_cast<size_t>(e)] == t) e = last;
      stamp_[static_cast<size_t>(e)] = t;
      out[j] = static_cast<int32_t>(e);
    }
    for (int64_t j = top_k_ - 1; j > 0; --j) std::swap(out[j], out[below(top_k_ + j, j + 1)]);
  }

 private:
  int64_t experts_, top_k_;
  uint64_t seed_;
  std::vector<int64_t> stamp_;
};

// A standard normal pair's first member by Marsaglia's polar method (no trigonometry, so stable_log is
// enough).
double polar_normal(Rng& rng) {
  for (;;) {
    const double u = 2.0 * rng.unit() - 1.0;
    const double v = 2.0 * rng.unit() - 1.0;
    const double s = u * u + v * v;
    if (s < 1.0 && s > 1e-300) return u * std::sqrt(-2.0 * stable_log(s) / s);
  }
}

// The logarithm of a Gamma(a, 1) draw: Marsaglia and Tsang (2000) for shape >= 1; smaller shapes by
// Gamma(a) = Gamma(a+1) * U^(1/a), in logarithms because U^(1/a) underflows for small a.
double log_gamma_draw(double a, Rng& rng) {
  const double shape = a < 1.0 ? a + 1.0 : a;
  const double d = shape - 1.0 / 3.0;
  const double c = 1.0 / std::sqrt(9.0 * d);
  for (;;) {
    const double x = polar_normal(rng);
    const double w = 1.0 + c * x;
    if (w <= 0.0) continue;
    const double v = w * w * w;
    const double log_v = 3.0 * stable_log(w);
    if (stable_log(rng.unit()) < 0.5 * x * x + d - d * v + d * log_v) {
      const double log_g = stable_log(d) + log_v;
      return a < 1.0 ? log_g + stable_log(rng.unit()) / a : log_g;
    }
  }
}

std::vector<double> log_popularity(const WorkloadSpec& spec, int64_t experts, uint64_t seed) {
  std::vector<double> log_p(static_cast<size_t>(experts));
  if (spec.kind == WorkloadKind::kZipf) {
    const std::vector<int32_t> rank = permutation(experts, stream(seed, Stream::kShuffle));
    for (size_t e = 0; e < log_p.size(); ++e) log_p[e] = -spec.parameter * stable_log(rank[e] + 1.0);
  } else {
    Rng rng(stream(seed, Stream::kPopularity));
    for (double& p : log_p) p = log_gamma_draw(spec.parameter, rng);
  }
  return log_p;
}

// Keeps the k best keys of one token. Most experts are turned away before any logarithm: with K the k-th best
// key so far, log p + G > K means -log(u) < e^(log p - K), and -log(u) >= 1 - u. The margin covers libm's
// exp, so that its last bit decides nothing.
class GumbelSampler {
 public:
  GumbelSampler(const std::vector<double>& log_p, int64_t top_k, uint64_t seed)
      : log_p_(log_p), p_(log_p.size()), best_(static_cast<size_t>(top_k)), seed_(seed) {
    top_ = *std::max_element(log_p.begin(), log_p.end());
    for (size_t e = 0; e < p_.size(); ++e) p_[e] = std::exp(log_p[e] - top_) * 1.000001;
  }

  void draw(int64_t t, int32_t* out) {
    const uint64_t first = static_cast<uint64_t>(t) * p_.size();
    size_t size = 0;
    double limit = kInfinity;  // e^(top - K): no expert may beat it with 1 - u above p * limit
    for (size_t e = 0; e < p_.size(); ++e) {
      const double u = random_unit(seed_, first + e);
      if (1.0 - u > p_[e] * limit) continue;  // false for 0 * infinity
      const Key key{log_p_[e] - stable_log(-stable_log(u)), static_cast<int32_t>(e)};
      if (size == best_.size()) {
        if (!better(key, best_.front())) continue;
        std::pop_heap(best_.begin(), best_.end(), better);
        best_.back() = key;
      } else {
        best_[size++] = key;
        if (size < best_.size()) continue;
        std::make_heap(best_.begin(), best_.end(), better);
        limit = std::exp(top_ - best_.front().value);
        continue;
      }
      std::push_heap(best_.begin(), best_.end(), better);
      limit = std::exp(top_ - best_.front().value);
    }
    std::sort(best_.begin(), best_.end(), better);
    for (size_t j = 0; j < best_.size(); ++j) out[j] = best_[j].expert;
  }

 private:
  struct Key {
    double value;
    int32_t expert;
  };
  // Of equal values the lower expert; with this order the heap's front is the worst.
  static bool better(const Key& a, const Key& b) {
    return a.value != b.value ? a.value > b.value : a.expert < b.expert;
  }
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  const std::vector<double>& log_p_;
  std::vector<double> p_;  // relative to the most popular, with the margin
  std::vector<Key> best_;
  uint64_t seed_;
  double top_ = 0;
};

void draw_ddist(double fraction, uint64_t seed, Routing& routing) {
  const int64_t k = routing.top_k;
  const std::vector<int32_t> hot = permutation(routing.experts, stream(seed, Stream::kHot));
  const std::vector<int32_t> order = permutation(routing.tokens, stream(seed, Stream::kShuffle));
  const auto hot_tokens =
      static_cast<int64_t>(std::floor(fraction * static_cast<double>(routing.tokens) + 0.5));
  UniformSampler sampler(routing.experts, k, stream(seed, Stream::kTokens));
  for (int64_t t = 0; t < routing.tokens; ++t) {
    int32_t* const out = routing.ids.data() + t * k;
    if (order[static_cast<size_t>(t)] < hot_tokens) {
      std::copy_n(hot.begin(), k, out);
    } else {
      sampler.draw(t, out);
    }
  }
}

}  // namespace

void draw_ids(const WorkloadSpec& spec, uint64_t seed, Routing& routing) {
  const int64_t k = routing.top_k;
  const auto rows = static_cast<int64_t>(routing.ids.size());
  switch (spec.kind) {
    case WorkloadKind::kBalanced: {
      // Consecutive slots take consecutive experts of a shuffled circle: any k <= E in a row are distinct,
      // and after rows slots every expert was taken floor or ceil of rows/E times.
      const std::vector<int32_t> circle = permutation(routing.experts, stream(seed, Stream::kShuffle));
      for (int64_t i = 0; i < rows; ++i)
        routing.ids[static_cast<size_t>(i)] = circle[static_cast<size_t>(i % routing.experts)];
      return;
    }
    case WorkloadKind::kUniform: {
      UniformSampler sampler(routing.experts, k, stream(seed, Stream::kTokens));
      for (int64_t t = 0; t < routing.tokens; ++t) sampler.draw(t, routing.ids.data() + t * k);
      return;
    }
    case WorkloadKind::kZipf:
    case WorkloadKind::kDirichlet: {
      const std::vector<double> log_p = log_popularity(spec, routing.experts, seed);
      GumbelSampler sampler(log_p, k, stream(seed, Stream::kTokens));
      for (int64_t t = 0; t < routing.tokens; ++t) sampler.draw(t, routing.ids.data() + t * k);
      return;
    }
    case WorkloadKind::kDdist:
      draw_ddist(spec.parameter, seed, routing);
      return;
    case WorkloadKind::kSingle:
      for (int64_t i = 0; i < rows; ++i) routing.ids[static_cast<size_t>(i)] = static_cast<int32_t>(i % k);
      return;
    case WorkloadKind::kTrace:
      return;
  }
}

void draw_weights(uint64_t seed, Routing& routing) {
  const auto k = static_cast<size_t>(routing.top_k);
  const uint64_t s = stream(seed, Stream::kWeights);
  std::vector<double> w(k);
  for (int64_t t = 0; t < routing.tokens; ++t) {
    // 1/16 + u^2: the largest of a token is up to 17 times its smallest, as after a softmax.
    double sum = 0.0;
    for (size_t j = 0; j < k; ++j) {
      const double u = random_unit(s, static_cast<uint64_t>(t) * k + j);
      w[j] = 0.0625 + u * u;
      sum += w[j];
    }
    std::sort(w.begin(), w.end(), [](double a, double b) { return a > b; });
    float* const out = routing.weights.data() + static_cast<size_t>(t) * k;
    for (size_t j = 0; j < k; ++j) out[j] = static_cast<float>(w[j] / sum);
  }
}

}  // namespace ramp::core
