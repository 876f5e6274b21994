// Which kernels a call is captured with: one, where that is enough, or up to three among which the device
// decides (step_block.hpp). The host knows shapes, not the histogram, so it takes the set whose expected loss
// over routings that can occur is least, the price of empty launches included.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "backend/cuda/step_block.hpp"
#include "dispatch/block_fit.hpp"

namespace ramp::core::cuda {

// Histograms that a step of `tokens` tokens may have: Zipf's law with several exponents, experts in order of
// popularity. Batched: `tokens` rows per expert at most, and filled to several degrees.
std::vector<std::vector<int32_t>> likely_histograms(int64_t experts, int64_t top_k, int64_t tokens,
                                                    bool batched);

// Times of candidates (columns) for histograms (rows), in us, and the set of least expected loss: indices of
// columns, the one that wins most often first. several: of a column, whether it may be one of several.
std::vector<size_t> least_loss(std::span<const std::vector<float>> us, const std::vector<bool>& several);

class StepChoice {
 public:
  // The set for calls of this shape, of a fit for the weights; tokens: as many as bring these experts their
  // rows (expected_rows.hpp). nullptr: there is none, and the blocks' own rules hold. Of formats other than
  // fp8_block one candidate, of which config() alone counts. sums: the call may add rows up in any order
  // (prefill_sums.hpp), without which configs that do are none to choose. slots: T * k of the call where that
  // is more than tokens * top_k. Sets are kept as long as this lives.
  const StepSet* find(const FitList& fits, const ExpertWeights& w, int64_t tokens, int64_t top_k,
                      bool batched, bool sums = false, int64_t slots = 0);
  ~StepChoice();
  // A set of this candidate alone, with its costs where they are known: for traces.
  const StepSet& one(const FitList& fits, const ExpertWeights& w, int64_t top_k,
                     const StepCandidate& candidate);

 private:
  // Of which fit (nullptr: none), shape, tokens or candidate, k; batched; of one(); sums; rows that the
  // device can count.
  using Key = std::tuple<const void*, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, bool, bool>;
  // Sets are never changed or freed while this lives: those that look one up neither wait nor allocate.
  struct Node {
    Key key;
    std::unique_ptr<StepSet> set;  // may be nullptr
    std::unique_ptr<Node> next;
  };
  [[nodiscard]] const Node* known(const Key& key) const noexcept;
  const StepSet* keep(const Key& key, std::unique_ptr<StepSet> set);
  std::mutex writers_;
  std::unique_ptr<Node> owner_;
  std::atomic<const Node*> head_{nullptr};
};

// The candidate that a set takes for a whole histogram, as the device decides (StepSet::whole: option i is
// candidate i).
size_t decided(const StepSet& set, std::span<const int32_t> histogram);

}  // namespace ramp::core::cuda
