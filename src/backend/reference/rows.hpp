// What the reference backend and the checker share: which row of x goes to which expert, the quantisation
// points (docs/numerics.md) as functions on one row, and dequantised weight rows. F is double for the
// yardstick and float for the fp32 mode; with double every dequantised value below is exact.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.hpp"

namespace ramp::core::reference {

// Checkpoint-layout views of the values, wherever the handle keeps them (the reference backend's packing
// moves them). Throws UNSUPPORTED for weights that another backend packed.
struct WeightViews {
  const ExpertWeights* w = nullptr;
  ramp_tensor w13{}, w2{};
};
WeightViews weight_views(const ExpertWeights& w);

// What pack() of the reference backend makes: the checkpoint layout under another name.
struct ReferencePacked final : PackedWeights {
  ramp_tensor w13{}, w2{};
  AlignedBuffer own_w13, own_w2;
  [[nodiscard]] int64_t bytes() const noexcept override;
};

// One (token, slot) that a local expert works on.
struct Source {
  int64_t x = 0;               // element offset of its row in x
  int64_t x_scale = 0;         // element offset of its row in x_scale
  float input_weight = 1.0F;   // multiplies x (router weight on input), else 1
  bool weighted = false;       // whether it does: 1.0 and "not at all" are the same, NaN is not
  float output_weight = 1.0F;  // multiplies the result
  int64_t token = 0, slot = 0;
  int64_t out = 0;  // row of the caller's result that this belongs to
};

// Where an id leads: a local expert, -1 (masked) or -2 (out of range).
int64_t local_expert_of(int64_t id, std::span<const int32_t> map, int64_t num_local) noexcept;
int64_t id_at(const ramp_tensor& ids, int64_t row, int64_t col) noexcept;  // i32 or i64 [T,k]

// The sources of these tokens, one list per local expert, in (token, slot) order. Source::out is n * k + slot
// for the n-th token of the list. masked, out_of_range: added to, where not null.
std::vector<std::vector<Source>> sources_of(const BlockCall& call, std::span<const int64_t> tokens,
                                            int64_t* masked, int64_t* out_of_range);
// Batched: the valid rows among these flat rows e * max_tokens + r; Source::out is the index in the list.
std::vector<std::vector<Source>> sources_of(const BatchedCall& call, std::span<const int64_t> rows);

// 0 .. n-1, or the given list when it is not empty.
std::vector<int64_t> list_or_all(std::span<const int64_t> list, int64_t n);
// Rows of x and y as a batched call has them: max_tokens times the number of experts.
int64_t flat_rows(const BatchedCall& call) noexcept;

// GEMM1's input for one source: x, times the router weight where it is on the input, quantised as the format
// says, and dequantised into a[H]. ideal: neither quantised nor rounded.
template <typename F>
void load_input(const ExpertWeights& w, const ramp_tensor& x, const ramp_tensor& x_scale, const Source& s,
                bool ideal, F* a);

// GEMM2's input: h[I] rounded to fp32, quantised as the format says, and dequantised in place.
template <typename F>
void requantize(const ExpertWeights& w, F* h);

// One dequantised row of w13 (H values) or w2 (I values).
template <typename F>
void weight_row13(const WeightViews& v, int64_t expert, int64_t row, F* out);
template <typename F>
void weight_row2(const WeightViews& v, int64_t expert, int64_t row, F* out);

}  // namespace ramp::core::reference
