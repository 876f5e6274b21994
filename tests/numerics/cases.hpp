// Random calls for the numerics tests: a spec (shapes, format, options, kind of routing) becomes owned
// buffers and a BlockCall or BatchedCall. Everything that a backend writes is poisoned first (0xff bytes: NaN
// in every float type, -1 in integers): y, the gaps between its rows, the workspace and a guard behind it.
//
//   BlockCase c({.tokens = 5, .format = RAMP_FORMAT_BF16});
//   auto weights = c.make_weights(RAMP_COPY);      // for the backend, may be packed
//   backend.pack(*weights, nullptr);
//   c.run(backend, *weights);                      // EXPECTs guards, gaps and counters
//   EXPECT_TRUE(c.check().ok()) << c.check().text();
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "backend/reference/check.hpp"
#include "base/aligned_buffer.hpp"
#include "weights/expert_weights.hpp"
#include "weights/synthetic.hpp"

namespace ramp::core::test {

// How ids are drawn (k per token).
enum class Ids : int32_t {
  kDistinct,    // k distinct experts, uniform
  kSkewed,      // k distinct experts, popularity 1/rank^1.2: hot and empty experts
  kSingle,      // every token takes experts 0..k-1
  kDuplicates,  // drawn with replacement: an expert may come twice for a token
  kMasked,      // distinct, but about a third of the slots is -1
  kAllMasked,   // all -1
  kOutOfRange,  // distinct, with some -1, some -2, E, INT32_MIN/MAX (and 2^40 for i64)
};
const char* ids_name(Ids ids);

struct CaseSpec {
  int64_t tokens = 7, experts = 8, top_k = 2, hidden = 128, intermediate = 96;
  ramp_format format = RAMP_FORMAT_FP8_BLOCK;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  ramp_dtype x_dtype = RAMP_BF16;  // bf16, f16, f32; e4m3: quantised as the format defines, with scales
  ramp_dtype y_dtype = RAMP_BF16;
  ramp_dtype shared_dtype = RAMP_DTYPE_NONE;  // none: no shared addend
  ramp_output output = RAMP_OUTPUT_COMBINED;
  ramp_determinism determinism = RAMP_REPEATABLE;
  Ids ids = Ids::kDistinct;
  bool router_weight_on_input = false;
  bool expert_map = false;  // 2E global experts, every other one local, in shuffled order
  bool int64_ids = false;
  bool strided = false;  // gaps behind the rows of x, x_scale, ids, weights, addend and y
  bool counters = true;
  bool split_tensor_scale = true;  // fp8_tensor: w13_scale [E,2] rather than [E]
  uint64_t seed = 1;
};
// Letters, digits and underscores: a gtest parameter name that tells the whole spec.
std::string case_name(const CaseSpec& spec);
inline std::ostream& operator<<(std::ostream& out, const CaseSpec& s) {
  return out << case_name(s);
}

inline constexpr uint8_t kPoison = 0xff;
// Every innermost row of a view, in order: its first byte and its length in bytes.
void for_rows(const ramp_tensor& t, const std::function<void(uint8_t* row, int64_t bytes)>& visit);
// All elements of a view as bytes, gaps left out.
std::vector<uint8_t> bytes_of(const ramp_tensor& t);

// A tensor with its memory, filled with 0xff. gap > 0: that many elements of padding behind each row.
struct OwnedTensor {
  OwnedTensor() = default;
  OwnedTensor(ramp_dtype dtype, std::initializer_list<int64_t> shape, int64_t gap = 0);
  AlignedBuffer memory;
  ramp_tensor view{};
  void poison() noexcept;
  // True when every byte outside the view's elements is still 0xff.
  [[nodiscard]] bool gaps_intact() const;
  [[nodiscard]] float get(int64_t row, int64_t col) const;  // of a 2-d view
  void set(int64_t row, int64_t col, float value);
};

// Scratch of exactly `bytes` bytes, 256-byte aligned, poisoned, with a guard behind it.
class GuardedWorkspace {
 public:
  explicit GuardedWorkspace(uint64_t bytes);
  [[nodiscard]] void* data() const noexcept { return bytes_ == 0 ? nullptr : data_; }
  [[nodiscard]] uint64_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] bool guard_intact() const noexcept;

 private:
  AlignedBuffer memory_;
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

class BlockCase {
 public:
  explicit BlockCase(const CaseSpec& spec);
  // A fresh handle on this case's values; RAMP_IN_PLACE handles get buffers of their own (kept here).
  std::unique_ptr<ExpertWeights> make_weights(ramp_ownership ownership);
  // The call for these weights, y and workspace not yet set up: for tests that want to run it themselves.
  [[nodiscard]] BlockCall call(const ExpertWeights& w);
  // Poisons y, gives the backend a workspace of exactly the size that it asks for, runs, and EXPECTs that the
  // guard behind it, the gaps of y and the counters are right.
  void run(Backend& backend, const ExpertWeights& w, const KernelConfig* config = nullptr);
  // Checks y of the last run against the fp64 reference (on the case's own unpacked weights).
  [[nodiscard]] CheckResult check(CheckOptions options = {});
  // y of the last run as raw bytes without gaps, to compare bits.
  [[nodiscard]] std::vector<uint8_t> y_bits() const;
  // Local histogram c_e.
  [[nodiscard]] std::vector<int32_t> histogram() const;

  const CaseSpec spec;
  SyntheticWeights synthetic;              // owns the values; a test may change them before make_weights
  std::unique_ptr<ExpertWeights> weights;  // RAMP_BORROW on them, never packed
  OwnedTensor x, x_scale, ids, topk_weights, shared_addend, y;
  std::vector<int32_t> map;      // expert_map, empty: none
  int64_t counters[2] = {0, 0};  // as the backend left them
  int64_t expected_masked = 0, expected_out_of_range = 0;

 private:
  std::vector<std::unique_ptr<SyntheticWeights>> in_place_;
};

// The batched entry; spec.tokens is max_tokens. top_k, ids, output and expert_map do not apply. Counts:
// expert 0 gets a full slab, expert 1 none, expert 2 more than max_tokens (clamped), expert 3 a negative
// count (clamped), the others random.
class BatchedCase {
 public:
  explicit BatchedCase(const CaseSpec& spec, bool with_row_weights = true);
  std::unique_ptr<ExpertWeights> make_weights(ramp_ownership ownership);
  [[nodiscard]] BatchedCall call(const ExpertWeights& w);
  void run(Backend& backend, const ExpertWeights& w, const KernelConfig* config = nullptr);
  [[nodiscard]] CheckResult check(CheckOptions options = {});
  [[nodiscard]] bool unused_rows_intact() const;  // rows beyond the counts still hold the poison
  [[nodiscard]] std::vector<uint8_t> y_bits() const;

  const CaseSpec spec;
  SyntheticWeights synthetic;
  std::unique_ptr<ExpertWeights> weights;
  OwnedTensor x, x_scale, counts, row_weights, y;

 private:
  std::vector<std::unique_ptr<SyntheticWeights>> in_place_;
};

// The synthetic values again in buffers of their own (ownership as asked).
SyntheticWeights clone(const SyntheticWeights& source, ramp_ownership ownership);

// Rows of level numbers such that every pair of levels of every two factors occurs in some row (greedy,
// deterministic): what tests use where the full product would take hours.
std::vector<std::vector<int32_t>> pairwise(const std::vector<int32_t>& levels, uint64_t seed = 1);

}  // namespace ramp::core::test
