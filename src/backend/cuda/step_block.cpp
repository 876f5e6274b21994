// Host side of the block that divides a step: workspace and launches.
#include "backend/cuda/step_block.hpp"

#include <algorithm>
#include <array>

#include "backend/cuda/expected_rows.hpp"
#include "backend/cuda/step_trace.hpp"
#include "backend/cuda/workspace.hpp"
#include "base/tensor.hpp"
#include "params/prefill.hpp"
#include "params/prologue.hpp"

namespace ramp::core::cuda {

int32_t StepCandidate::tile_m() const noexcept {
  if (other) return other->tile_m;
  return prefill ? kPrefillRows : stream_variants()[variant].width;
}
KernelConfig StepCandidate::config() const noexcept {
  if (other) return *other;
  return prefill ? prefill_config() : stream_variants()[variant].config();
}

StepCandidate default_candidate(const BlockCall& call) {
  const ExpertWeights& w = *call.weights;
  const int64_t tokens = expected_tokens(call);
  const int64_t top_k = expected_top_k(call);
  if (PrefillBlock::takes(nullptr, w, tokens, top_k)) return {true, 0};
  return {false, StreamBlock::number(nullptr, w, tokens, top_k).value_or(0)};
}
StepCandidate default_candidate(const BatchedCall& call) {
  const ExpertWeights& w = *call.weights;
  if (PrefillBlock::takes_batched(nullptr, call.max_tokens)) return {true, 0};
  return {false, StreamBlock::number(nullptr, w, w.experts * call.max_tokens, 1).value_or(0)};
}

struct StepBlock::Parts {
  PrologueWorkspace prologue;
  std::array<GemmPair, kMostCandidates> pairs;
  DecideParams decide{};
};

uint64_t StepBlock::carve(const ExpertWeights& w, int64_t tokens, int64_t top_k,
                          std::span<const StepCandidate> candidates, bool whole, void* base, Parts& parts) {
  const int64_t slots = tokens * top_k;
  WorkspaceLayout layout(base,
                         carve_prologue(w, tokens, top_k, candidates.front().tile_m(), base, parts.prologue));
  uint64_t end = layout.used();
  for (size_t c = 0; c < candidates.size(); ++c) {
    GemmPair& pair = parts.pairs[c];
    const int32_t tile_m = candidates[c].tile_m();
    pair.weights = &w;
    pair.index = parts.prologue.index;
    pair.beside = c + 1 != candidates.size();
    pair.index.tile_m = tile_m;
    if (c != 0) {
      pair.index.tiles = layout.take<Tile>(static_cast<uint64_t>(max_tiles(slots, w.experts, tile_m)));
      pair.index.num_tiles = layout.take<int32_t>(kTileCounters);
    }
    parts.decide.plan[c] = {base == nullptr ? nullptr : &pair.index.tiles->expert, pair.index.num_tiles,
                            static_cast<unsigned>(tile_m)};
  }
  auto* const rows = layout.take<uint16_t>(static_cast<uint64_t>(slots) * static_cast<uint64_t>(w.hidden));
  const uint64_t h = layout.used();
  for (size_t c = 0; c < candidates.size(); ++c) {
    WorkspaceLayout here(base, whole ? h : std::max(h, end));
    if (candidates[c].prefill)
      PrefillBlock::carve_h(w, slots, here, parts.pairs[c]);
    else
      StreamBlock::carve_h(w, slots, candidates[c].tile_m(), here, parts.pairs[c]);
    end = std::max(end, here.used());
    parts.pairs[c].rows = rows;
  }
  return end;
}

uint64_t StepBlock::workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k, bool whole) {
  // The smallest tiles need most; with the prefill kernel, whose x may be in rows of its own, and without it,
  // where a third plan of small tiles needs more than its one of large ones.
  static_assert(kMostCandidates == 3);
  const std::array<StepCandidate, kMostCandidates> wide = {{{false, 0}, {false, 0}, {true, 0}}};
  const std::array<StepCandidate, kMostCandidates> narrow = {{{false, 0}, {false, 0}, {false, 0}}};
  Parts parts;
  return std::max(carve(weights, tokens, top_k, wide, whole, nullptr, parts),
                  carve(weights, tokens, top_k, narrow, whole, nullptr, parts));
}

void StepBlock::run(const StepSet& set, Parts& parts, const GemmInput& x,
                    const ramp_tensor& router_weights) const {
  // Candidate 0 last: where one gets everything, it is the likeliest, and the last in line waits least.
  for (size_t c = set.candidates.size(); c-- > 0;) {
    if (set.candidates[c].prefill)
      prefill_.gemm1(parts.pairs[c], x);
    else
      stream_.gemm1(set.candidates[c].variant, parts.pairs[c], x);
  }
  for (size_t c = set.candidates.size(); c-- > 0;) {
    if (set.candidates[c].prefill)
      prefill_.gemm2(parts.pairs[c], router_weights);
    else
      stream_.gemm2(set.candidates[c].variant, parts.pairs[c], router_weights);
  }
}

void StepBlock::block(const BlockCall& call, const RouteCall* routing, const StepSet& set, StepTrace* trace) {
  Parts parts;
  parts.decide = set.decide;
  check_workspace(
      call.workspace, call.workspace_bytes,
      carve(*call.weights, call.tokens, call.top_k, set.candidates, set.whole, call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  StepTrace::Timing timing;
  if (trace != nullptr)
    timing = trace->begin_call({call.weights, call.tokens, call.top_k, false, default_candidate(call)}, set,
                               stream, parts.decide);
  for (GemmPair& pair : parts.pairs) {
    pair.top_k = call.top_k;
    pair.stream = stream;
  }
  parts.prologue.decide = &parts.decide;
  const GemmInput x = routing != nullptr ? prologue_.routed_block(*routing, call, parts.prologue, stream)
                                         : prologue_.block(call, parts.prologue, stream);
  const ramp_tensor none{};
  run(set, parts, x, call.router_weight_on_input ? none : call.topk_weights);
  combine_.block(call, parts.pairs[0].rows, RAMP_BF16, parts.prologue.index, stream);
  if (trace != nullptr) trace->end_call(timing);
}

void StepBlock::batched(const BatchedCall& call, const StepSet& set, StepTrace* trace) {
  Parts parts;
  parts.decide = set.decide;
  check_workspace(call.workspace, call.workspace_bytes,
                  carve(*call.weights, call.weights->experts * call.max_tokens, 1, set.candidates, set.whole,
                        call.workspace, parts));
  auto* const stream = static_cast<CUstream>(call.stream);
  StepTrace::Timing timing;
  if (trace != nullptr)
    timing = trace->begin_call({call.weights, call.max_tokens, 1, true, default_candidate(call)}, set, stream,
                               parts.decide);
  for (GemmPair& pair : parts.pairs) {
    pair.top_k = call.max_tokens;
    pair.stream = stream;
  }
  parts.prologue.decide = &parts.decide;
  GemmInput x = prologue_.batched(call, parts.prologue, stream);
  x.per_slot = x.scales_per_slot = true;
  const ramp_tensor none{};
  run(set, parts, x, call.router_weight_on_input ? none : call.row_weights);
  combine_.batched(call, parts.pairs[0].rows, RAMP_BF16, parts.prologue.index, stream);
  if (trace != nullptr) trace->end_call(timing);
}

const StepSet& fixed_split() {
  static const StepSet set = [] {
    constexpr unsigned kNarrow = 16, kWide = 64;  // rows
    StepSet s;
    s.candidates = {{false, 2}, {false, 3}, {true, 0}};  // widths of 16 and 32, prefill
    s.decide.candidates = 3;
    s.decide.options = 1;
    s.decide.option[0] = {{kNarrow, kWide}};
    for (CandidateCost& c : s.decide.cost) c.places[0] = c.places[1] = 1;
    return s;
  }();
  return set;
}

}  // namespace ramp::core::cuda
