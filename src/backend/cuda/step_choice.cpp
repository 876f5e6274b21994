// Expected loss of sets of kernels, over routings that can occur.
#include "backend/cuda/step_choice.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cost/step.hpp"
#include "geometry/hardware.hpp"

namespace ramp::core::cuda {
namespace {

constexpr double kExponents[] = {0, 0.4, 0.8, 1.2, 1.6};
// What a candidate that gets nothing adds to a step: two empty launches, the decision, and that GEMM 2 cannot
// begin beside GEMM 1 (H200, OLMoE: 5 to 8; docs/kernel-log.md).
constexpr float kIdleUs = 7;
// Less than this is noise of the fit: no reason for another candidate.
constexpr double kWorthwhile = 0.005;
// Of a decided tile's number the device keeps 30 bits (kernels/prologue/decide.cuh).
constexpr int64_t kMostSlots = int64_t{1} << 30;

// Rows per expert whose popularity follows Zipf's law: an expert is among the k of a token with probability
// 1 - exp(-s p), where s makes these add up to k. What is left of a row is rounded by turns.
std::vector<int32_t> zipf_histogram(int64_t experts, double top_k, double tokens, double exponent) {
  std::vector<double> p(static_cast<size_t>(experts));
  for (size_t e = 0; e < p.size(); ++e) p[e] = std::pow(static_cast<double>(e + 1), -exponent);
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= sum;
  const auto taken = [&](double s) {
    double total = 0;
    for (const double v : p) total += 1 - std::exp(-s * v);
    return total;
  };
  double s = top_k;
  while (taken(s) < top_k && s < 1e12) s *= 2;
  for (double low = 0; s - low > 1e-3 * s;) {
    const double middle = (low + s) / 2;
    (taken(middle) < top_k ? low : s) = middle;
  }
  std::vector<int32_t> histogram;
  double carry = 0.5;
  for (const double v : p) {
    carry += tokens * (1 - std::exp(-s * v));
    const double rows = std::floor(carry);
    carry -= rows;
    histogram.push_back(static_cast<int32_t>(std::min(rows, tokens)));
  }
  return histogram;
}

// Terms of the stream and prefill kernels where no fit is, for the predictions of traces: one set of
// constants for all shapes, per MB (1e6 bytes) of an expert's weights and per step of depth, fitted by least
// squares of relative error (rms 3 to 5%) to the profiles of twelve models (H200, whole block, uniform and
// zipf 1.2, T = 1 ... 512, prefill to 8192): bench/step_terms.py prints this table.
struct KernelTerms {
  int32_t tile_m, tile_n, stages;
  double residency, overlap, base, wave1, wave2, active, tile, row;
};
constexpr double kIoPerMb = 0.9;  // us per 1e6 elements of rows of H: what surrounds the GEMMs
constexpr KernelTerms kTerms[] = {{128, 256, 4, 1, 0.00, 15.5, 0.2949, 0.2053, 0.0626, 0.0902, 0.00051},
                                  {32, 128, 3, 3, 0.50, 9.0, 0.1954, 0.1202, 0.1549, 0.0643, 0.00252},
                                  {16, 128, 6, 2, 0.75, 8.2, 0.1368, 0.1270, 0.5302, 0.0511, 0.00071},
                                  {8, 128, 6, 2, 0.50, 7.6, 0.1415, 0.1335, 0.1528, 0.0000, 0.00899},
                                  {8, 64, 6, 3, 0.50, 8.3, 0.1301, 0.0200, 0.1520, 0.0000, 0.01005}};

bool constants(const KernelConfig& config, const ExpertWeights& w, StepTerms& out) {
  for (const KernelTerms& t : kTerms) {
    if (t.tile_m != config.tile_m || t.tile_n != config.tile_n || t.stages != config.stages) continue;
    const double mb = 3e-6 * static_cast<double>(w.hidden) * static_cast<double>(w.intermediate);
    out.base = t.base;
    out.wave[0] = t.wave1 * static_cast<double>(w.hidden) / 128;
    out.wave[1] = t.wave2 * static_cast<double>(w.intermediate) / 128;
    out.active = t.active * mb;
    out.tile = t.tile * mb;
    out.row = t.row * mb + kIoPerMb * 1e-6 * static_cast<double>(w.hidden);
    out.overlap = t.overlap;
    out.places = t.residency * h200().sm_count;
    out.measured = true;
    return true;
  }
  return false;
}

std::vector<StepCandidate> all_candidates() {
  std::vector<StepCandidate> all;
  for (size_t v = 0; v < stream_variants().size(); ++v) all.push_back({false, v});
  all.push_back({true, 0});
  return all;
}

// Candidates with what they cost. step: their costs can be evaluated on the device.
struct Costs {
  std::vector<StepCandidate> candidates;
  std::vector<CandidateCost> costs;
  std::vector<std::vector<float>> us;  // [histogram][candidate]
  bool step = false;
};

// sums: configs that add rows up in any order may be taken.
Costs costs_of_fit(const FitList::Entry& entry, std::span<const std::vector<int32_t>> histograms, bool sums) {
  Costs out;
  const Predictor& predictor = entry.dispatcher.predictor();
  const auto* const step = dynamic_cast<const StepPredictor*>(&predictor);
  out.step = step != nullptr;
  std::vector<size_t> columns;
  const std::vector<StepCandidate> shipped = all_candidates();
  for (size_t i = 0; i < entry.configs.size(); ++i) {
    if (step != nullptr && !step->terms(i).measured) continue;
    const KernelConfig& config = entry.configs[i];
    if (config.sums && !sums) continue;
    const auto at = std::find_if(shipped.begin(), shipped.end(),
                                 [&](const StepCandidate& c) { return c.config() == config; });
    out.candidates.push_back(
        at != shipped.end() ? *at : StepCandidate{prefill_variant(config).has_value(), 0, config});
    out.costs.push_back(step != nullptr ? step->cost(i) : CandidateCost{});  // no places: not known
    columns.push_back(i);
  }
  std::vector<float> times(entry.configs.size());
  for (const std::vector<int32_t>& h : histograms) {
    entry.dispatcher.predict(h, times);
    std::vector<float>& row = out.us.emplace_back();
    for (const size_t c : columns) row.push_back(times[c]);
  }
  return out;
}

Costs costs_of_constants(const ExpertWeights& w, std::span<const std::vector<int32_t>> histograms) {
  Costs out;
  out.step = true;
  const ModelShape shape{"", w.experts, 1, w.hidden, w.intermediate};
  for (const StepCandidate& c : all_candidates()) {
    StepTerms terms;
    if (!constants(c.config(), w, terms)) continue;
    out.candidates.push_back(c);
    out.costs.push_back(make_cost(terms, c.config(), shape));
  }
  for (const std::vector<int32_t>& h : histograms) {
    std::vector<float>& row = out.us.emplace_back();
    for (size_t c = 0; c < out.costs.size(); ++c) {
      const auto tile_m = static_cast<uint32_t>(out.candidates[c].tile_m());
      row.push_back(static_cast<float>(step_ns(out.costs[c], tile_m, h)) / 1000);
    }
  }
  return out;
}

// Calls of about as many tokens share a set: four per octave.
int64_t token_class(int64_t tokens) {
  constexpr int64_t kExact = 8;
  if (tokens <= kExact) return tokens;
  int64_t octave = 0;
  while (tokens >> (octave + 1) != 0) ++octave;
  const int64_t quarter = int64_t{1} << (octave - 2);
  return tokens / quarter * quarter;
}

StepSet make_set(const Costs& costs, std::span<const size_t> chosen) {
  StepSet set;
  set.whole = true;
  for (size_t i = 0; i < chosen.size(); ++i) {
    set.candidates.push_back(costs.candidates[chosen[i]]);
    set.decide.cost[i] = costs.costs[chosen[i]];
    set.decide.plan[i].tile_m = static_cast<unsigned>(set.candidates[i].tile_m());
    for (size_t a = 0; a + 1 < kMostCandidates; ++a) set.decide.option[i].above[a] = a < i ? 0 : kNeverAbove;
  }
  set.decide.candidates = set.decide.options = static_cast<unsigned>(chosen.size());
  for (size_t c = 0; costs.step && c < costs.candidates.size(); ++c) {
    if (costs.candidates[c].other) continue;
    set.known.push_back(costs.candidates[c]);
    set.known_costs.push_back(costs.costs[c]);
  }
  return set;
}

}  // namespace

std::vector<std::vector<int32_t>> likely_histograms(int64_t experts, int64_t top_k, int64_t tokens,
                                                    bool batched) {
  std::vector<std::vector<int32_t>> all;
  if (!batched) {
    for (const double z : kExponents)
      all.push_back(zipf_histogram(experts, static_cast<double>(std::min(top_k, experts)),
                                   static_cast<double>(tokens), z));
    return all;
  }
  // From a row per expert to full ones, by factors of four.
  constexpr double kFill = 4;
  for (double mean = static_cast<double>(tokens); mean >= 1; mean /= kFill) {
    for (const double z : {0.0, 1.2}) {
      all.push_back(zipf_histogram(experts, 1, mean * static_cast<double>(experts), z));
      for (int32_t& rows : all.back()) rows = std::min(rows, static_cast<int32_t>(tokens));
    }
  }
  return all;
}

std::vector<size_t> least_loss(std::span<const std::vector<float>> us, const std::vector<bool>& several) {
  if (us.empty() || us.front().empty()) return {};
  const size_t n = us.front().size();
  std::vector<float> best;
  for (const std::vector<float>& row : us) best.push_back(*std::min_element(row.begin(), row.end()));
  const auto loss = [&](std::span<const size_t> set) {
    double sum = 0;
    for (size_t h = 0; h < us.size(); ++h) {
      float least = std::numeric_limits<float>::infinity();
      for (const size_t c : set) least = std::min(least, us[h][c]);
      sum += (least + kIdleUs * static_cast<float>(set.size() - 1)) / std::max(best[h], 1e-3F) - 1;
    }
    return sum / static_cast<double>(us.size());
  };
  std::vector<size_t> chosen;
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](std::vector<size_t> set) {
    const double l = loss(set);
    const double worthwhile = set.size() > std::max<size_t>(1, chosen.size()) ? kWorthwhile : 0;
    if (l >= least - worthwhile) return;
    least = l;
    chosen = std::move(set);
  };
  for (size_t a = 0; a < n; ++a) consider({a});
  std::vector<size_t> together;
  for (size_t c = 0; c < n; ++c)
    if (several[c]) together.push_back(c);
  for (size_t a = 0; a < together.size(); ++a)
    for (size_t b = a + 1; b < together.size(); ++b) consider({together[a], together[b]});
  for (size_t a = 0; a < together.size(); ++a)
    for (size_t b = a + 1; b < together.size(); ++b)
      for (size_t c = b + 1; c < together.size(); ++c) consider({together[a], together[b], together[c]});
  std::vector<size_t> wins(n, 0);
  for (const std::vector<float>& row : us)
    ++wins[*std::min_element(chosen.begin(), chosen.end(),
                             [&](size_t a, size_t b) { return row[a] < row[b]; })];
  std::stable_sort(chosen.begin(), chosen.end(), [&](size_t a, size_t b) { return wins[a] > wins[b]; });
  return chosen;
}

const StepSet* StepChoice::find(const FitList& fits, const ExpertWeights& w, int64_t tokens, int64_t top_k,
                                bool batched, bool sums, int64_t slots) {
  const FitList::Entry* const entry =
      fits.find({w.experts, w.hidden, w.intermediate, w.format, w.activation}, batched ? 0 : top_k);
  if (entry == nullptr || tokens <= 0) return nullptr;
  const int64_t at = token_class(tokens);
  // The rows that there may be, which for a shard are more than those to expect.
  const int64_t most = std::max(slots, at * top_k * (batched ? w.experts : 1));
  const bool countable = most <= kMostSlots;
  const Key key{entry, w.experts, w.hidden, w.intermediate, at, top_k, batched, false, sums, countable};
  if (const Node* const node = known(key)) return node->set.get();
  const auto histograms = likely_histograms(w.experts, top_k, at, batched);
  const Costs costs = costs_of_fit(*entry, histograms, sums);
  // Several: where the device can decide among them.
  const bool decides = costs.step && w.format == RAMP_FORMAT_FP8_BLOCK && countable;
  std::vector<bool> several;
  for (const StepCandidate& c : costs.candidates) several.push_back(!c.other && decides);
  const std::vector<size_t> chosen = least_loss(costs.us, several);
  std::unique_ptr<StepSet> set;
  if (!chosen.empty()) set = std::make_unique<StepSet>(make_set(costs, chosen));
  return keep(key, std::move(set));
}

// Node by node: a long list of them is no reason for deep recursion.
StepChoice::~StepChoice() {
  while (owner_ != nullptr) owner_ = std::move(owner_->next);
}

const StepChoice::Node* StepChoice::known(const Key& key) const noexcept {
  const Node* node = head_.load(std::memory_order_acquire);
  while (node != nullptr && node->key != key) node = node->next.get();
  return node;
}

const StepSet* StepChoice::keep(const Key& key, std::unique_ptr<StepSet> set) {
  const std::lock_guard lock(writers_);
  if (const Node* const node = known(key)) return node->set.get();  // another thread was first
  owner_ = std::make_unique<Node>(Node{key, std::move(set), std::move(owner_)});
  head_.store(owner_.get(), std::memory_order_release);
  return owner_->set.get();
}

const StepSet& StepChoice::one(const FitList& fits, const ExpertWeights& w, int64_t top_k,
                               const StepCandidate& candidate) {
  const FitList::Entry* const entry =
      fits.find({w.experts, w.hidden, w.intermediate, w.format, w.activation}, top_k);
  const Key key{entry, w.experts,         w.hidden, w.intermediate, static_cast<int64_t>(candidate.variant),
                top_k, candidate.prefill, true,     false,          true};
  if (const Node* const node = known(key)) return *node->set;
  Costs costs = entry != nullptr ? costs_of_fit(*entry, {}, false) : costs_of_constants(w, {});
  const auto at = std::find(costs.candidates.begin(), costs.candidates.end(), candidate);
  const size_t number[] = {static_cast<size_t>(at - costs.candidates.begin())};
  if (at == costs.candidates.end()) {
    costs.candidates.push_back(candidate);
    costs.costs.emplace_back();
  }
  return *keep(key, std::make_unique<StepSet>(make_set(costs, number)));
}

size_t decided(const StepSet& set, std::span<const int32_t> histogram) {
  unsigned ns = 0;
  return decide_on_host(set.decide, histogram.data(), histogram.size(), ns);
}

}  // namespace ramp::core::cuda
