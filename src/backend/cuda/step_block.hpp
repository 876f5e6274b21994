// The expert block of a step whose experts are divided among several kernels (sm_90a, fp8_block, packed
// weights): a prologue that decides on the device, from this step's histogram (kernels/params/decide.hpp),
// which candidate gets which experts, then both GEMMs of every candidate, then combine. A candidate that is
// given no expert costs an empty launch per GEMM. All candidates give the same bits.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "backend/cuda/gemm_pair.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "backend/cuda/stream_block.hpp"

namespace ramp::core::cuda {

// A kernel that may be given experts.
struct StepCandidate {
  bool prefill = false;
  size_t variant = 0;  // of stream_variants()
  // A config of the space that does not ship: it runs alone only.
  std::optional<KernelConfig> other = std::nullopt;
  [[nodiscard]] int32_t tile_m() const noexcept;
  [[nodiscard]] KernelConfig config() const noexcept;
  friend bool operator==(const StepCandidate&, const StepCandidate&) = default;
};

// What a call is captured with: up to kMostCandidates candidates and how to decide among them. Pointers and
// tile heights of `decide` are filled in by the call.
struct StepSet {
  std::vector<StepCandidate> candidates;
  // Every option gives all experts to one candidate: h is laid out in the same memory for all.
  bool whole = false;
  DecideParams decide{};
  // What shipped kernels cost for these weights, candidates or not, where it is known: for traces.
  std::vector<StepCandidate> known;
  std::vector<CandidateCost> known_costs;
};

// What runs without a fit: the blocks' own rules.
StepCandidate default_candidate(const BlockCall& call);
StepCandidate default_candidate(const BatchedCall& call);

class StepTrace;  // step_trace.hpp

class StepBlock {
 public:
  StepBlock(Prologue& prologue, Combine& combine, StreamBlock& stream, PrefillBlock& prefill)
      : prologue_(prologue), combine_(combine), stream_(stream), prefill_(prefill) {}
  // Enough for any number of tokens up to this and any set; whole: any such set.
  [[nodiscard]] static uint64_t workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k,
                                          bool whole);
  // Both StreamBlock and PrefillBlock have been prepared for these weights and this x.
  // trace: records every run there; nullptr: nowhere.
  void block(const BlockCall& call, const RouteCall* routing, const StepSet& set, StepTrace* trace = nullptr);
  void batched(const BatchedCall& call, const StepSet& set, StepTrace* trace = nullptr);

 private:
  struct Parts;
  static uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t top_k,
                        std::span<const StepCandidate> candidates, bool whole, void* base, Parts& parts);
  void run(const StepSet& set, Parts& parts, const GemmInput& x, const ramp_tensor& router_weights) const;

  Prologue& prologue_;
  Combine& combine_;
  StreamBlock& stream_;
  PrefillBlock& prefill_;
};

// The set of the family sm90_split: experts go to three kernels by fixed numbers of rows.
const StepSet& fixed_split();

}  // namespace ramp::core::cuda
