// The batched entry: wrong arguments are refused, and what it computes is what the plain block computes slab
// by slab.
#include <algorithm>

#include "abi/bad_block.hpp"

namespace abi_test {
namespace {

struct BatchedWorld {
  Context context = make_context(RAMP_BACKEND_CPU);
  Model model{RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, kE, kH, 96, 1};
  Weights weights = make_weights(context, model.desc());
  Array x{RAMP_BF16, {kE, kT, kH}}, y{RAMP_F32, {kE, kT, kH}}, counts{RAMP_I32, {kE}};
  Array row_weights{RAMP_F32, {kE, kT}}, x_scale{RAMP_F32, {kE, kT, 1}};
  ramp_batched_args args = ramp_batched_args_init();
  Scratch scratch{16 << 20};
  void* workspace = scratch.data();
  uint64_t workspace_bytes = scratch.bytes();
  uint64_t needed = 0;
  void* stream = nullptr;

  BatchedWorld() {
    for (int64_t i = 0; i < x.size(); ++i) x.set(i, 0.5F);
    for (int64_t i = 0; i < kE; ++i) counts.set_int(i, i + 1);
    for (int64_t i = 0; i < row_weights.size(); ++i) row_weights.set(i, 1.0F);
    args.weights = weights.get();
    args.x = x.view();
    args.y = y.view();
    args.counts = counts.view();
    args.row_weights = row_weights.view();
    EXPECT_EQ(ramp_expert_block_batched_workspace(context.get(), weights.get(), kT, &needed), RAMP_OK);
  }
  ramp_status run() {
    return ramp_expert_block_batched(context.get(), &args, workspace, workspace_bytes, stream);
  }
};

struct BadBatchedCall {
  const char* name;
  std::function<void(BatchedWorld&)> spoil;
  ramp_status status;
  std::vector<std::string> message;
};

std::vector<BadBatchedCall> bad_batched() {
  using W = BatchedWorld;
  return {
      {"Determinism", [](W& w) { w.args.determinism = 9; }, kInvalid, {"determinism: got 9"}},
      {"WeightOnInput",
       [](W& w) { w.args.router_weight_on_input = -1; },
       kInvalid,
       {"router_weight_on_input"}},
      {"WeightOnInputWithoutWeights",
       [](W& w) {
         w.args.router_weight_on_input = 1;
         w.args.row_weights = ramp_tensor{};
       },
       kInvalid,
       {"row_weights: got no tensor"}},
      {"Config", [](W& w) { w.args.config = -1; }, kInvalid, {"config: got -1"}},
      {"Reserved", [](W& w) { w.args.reserved = 1; }, RAMP_ERROR_UNSUPPORTED, {"reserved"}},
      {"Stream", [](W& w) { w.stream = &w; }, kInvalid, {"stream"}},
      {"XExperts", [](W& w) { w.args.x.shape[0] = 2; }, kInvalid, {"x: got bf16 [2, 4, 64]"}},
      {"XTwoDims", [](W& w) { w.args.x.ndim = 2; }, kInvalid, {"x: got bf16 [3, 4]"}},
      {"XScale", [](W& w) { w.args.x_scale = w.x_scale.view(); }, kInvalid, {"x_scale"}},
      {"XFp8WithoutScale", [](W& w) { w.args.x.dtype = RAMP_E4M3; }, kInvalid, {"x_scale", "[3, 4, 1]"}},
      {"CountsShape", [](W& w) { w.args.counts.shape[0] = 2; }, kInvalid, {"counts: got i32 [2]"}},
      {"CountsDtype", [](W& w) { w.args.counts.dtype = RAMP_F32; }, kInvalid, {"counts: got f32"}},
      {"CountsMissing", [](W& w) { w.args.counts = ramp_tensor{}; }, kInvalid, {"counts: got no tensor"}},
      {"RowWeightsShape", [](W& w) { w.args.row_weights.shape[1] = 5; }, kInvalid, {"row_weights", "[3, 5]"}},
      {"YShape", [](W& w) { w.args.y.shape[1] = 3; }, kInvalid, {"y: got f32 [3, 3, 64]"}},
      {"YBroadcast",
       [](W& w) {
         w.args.y.stride[1] = kH;
         w.args.y.stride[2] = 1;
       },
       kInvalid,
       {"y", "own memory"}},
      {"YOverX",
       [](W& w) {
         w.args.y.data = w.args.x.data;
         w.args.y.dtype = RAMP_BF16;
       },
       kInvalid,
       {"y", "overlap x"}},
      {"YOverCounts", [](W& w) { w.args.counts.data = w.args.y.data; }, kInvalid, {"y", "overlap counts"}},
      {"TooManyRows",
       [](W& w) {
         w.args.x.shape[1] = int64_t{1} << 30;
         w.args.x.stride[2] = 1;
       },
       kInvalid,
       {"max_tokens * E"}},
      {"WorkspaceSmall",
       [](W& w) { w.workspace_bytes = w.needed - 1; },
       RAMP_ERROR_WORKSPACE_TOO_SMALL,
       {"ramp_expert_block_batched_workspace"}},
      {"WorkspaceMisaligned",
       [](W& w) {
         w.workspace = static_cast<std::byte*>(w.workspace) + 128;
         w.workspace_bytes -= 128;
       },
       kInvalid,
       {"workspace", "256"}},
  };
}

class BadBatched : public testing::TestWithParam<size_t> {};

TEST_P(BadBatched, IsRefusedAndWritesNothing) {
  const BadBatchedCall bad = bad_batched()[GetParam()];
  BatchedWorld w;
  ASSERT_EQ(w.run(), RAMP_OK) << ramp_last_error();
  w.y = Array(RAMP_F32, {kE, kT, kH});
  w.args.y = w.y.view();
  bad.spoil(w);
  const auto y = w.y.bytes;
  const auto x = w.x.bytes;
  expect_error(w.run(), bad.status, bad.message);
  EXPECT_EQ(w.y.bytes, y);
  EXPECT_EQ(w.x.bytes, x);
}

INSTANTIATE_TEST_SUITE_P(All, BadBatched, testing::Range(size_t{0}, bad_batched().size()),
                         case_names(bad_batched));

// ---------------------------------------------------------------- what it does

class Batched : public testing::TestWithParam<std::tuple<ramp_backend, int32_t>> {
 protected:
  static constexpr int64_t kRows = 9, kExperts = 4, kWidth = 96;
  Context context = make_context(std::get<0>(GetParam()));
  Model model{std::get<1>(GetParam()), RAMP_ACTIVATION_RELU2, kExperts, kWidth, 64, 3, true};
  Weights weights = make_weights(context, model.desc(), true);
  Array x{RAMP_BF16, {kExperts, kRows, kWidth}}, y{RAMP_F32, {kExperts, kRows, kWidth}};
  Array row_weights{RAMP_F32, {kExperts, kRows}};
  ramp_batched_args args = ramp_batched_args_init();

  // Valid rows get values; rows beyond keep NaN, so that reading them would show.
  void fill(const Array& counts) {
    for (int64_t e = 0; e < kExperts; ++e) {
      const int64_t n = std::clamp<int64_t>(counts.get_int(e), 0, kRows);
      for (int64_t r = 0; r < n; ++r) {
        const int64_t row = e * kRows + r;
        for (int64_t h = 0; h < kWidth; ++h)
          x.set(row * kWidth + h,
                static_cast<float>(std::floor(unit(8, static_cast<uint64_t>(row * kWidth + h)) * 3) - 1));
        row_weights.set(row, 0.25F * static_cast<float>(1 + row % 4));
      }
    }
    args.weights = weights.get();
    args.x = x.view();
    args.y = y.view();
    args.counts = counts.view();
  }
  // Against one call of the plain block per slab.
  void expect_slabs(const Array& counts, bool weighted, bool on_input) {
    for (int64_t e = 0; e < kExperts; ++e) {
      const int64_t n = std::clamp<int64_t>(counts.get_int(e), 0, kRows);
      Call c(model, weights.get(), n, 1, 1, true);
      for (int64_t r = 0; r < n; ++r) {
        c.ids.set_int(r, e);
        c.weights.set(r, weighted ? row_weights.get(e * kRows + r) : 1.0F);
        for (int64_t h = 0; h < kWidth; ++h) c.x.set(r * kWidth + h, x.get((e * kRows + r) * kWidth + h));
      }
      c.args.router_weight_on_input = on_input ? 1 : 0;
      const std::vector<double> want = exact_combined(model, c);
      for (int64_t i = 0; i < n * kWidth; ++i)
        ASSERT_EQ(y.get(e * kRows * kWidth + i), want[static_cast<size_t>(i)]) << "expert " << e;
      for (int64_t i = n * kWidth; i < kRows * kWidth; ++i)
        ASSERT_TRUE(std::isnan(y.get(e * kRows * kWidth + i))) << "written beyond counts, expert " << e;
    }
  }
};

TEST_P(Batched, ExactAndNothingBeyondTheCounts) {
  for (const int32_t dtype : {RAMP_I32, RAMP_I64}) {
    Array counts(dtype, {kExperts});
    const int64_t values[kExperts] = {3, 0, 9, 1};
    for (int64_t e = 0; e < kExperts; ++e) counts.set_int(e, values[e]);
    fill(counts);
    for (const bool weighted : {false, true}) {
      for (const bool on_input : {false, true}) {
        if (on_input && !weighted) continue;
        y = Array(RAMP_F32, {kExperts, kRows, kWidth});
        args.y = y.view();
        args.row_weights = weighted ? row_weights.view() : ramp_tensor{};
        args.router_weight_on_input = on_input ? 1 : 0;
        ASSERT_EQ(ramp_expert_block_batched(context.get(), &args, nullptr, 0, nullptr), RAMP_OK)
            << ramp_last_error();
        expect_slabs(counts, weighted, on_input);
      }
    }
  }
}

TEST_P(Batched, CountsAreClamped) {
  Array counts(RAMP_I64, {kExperts});
  const int64_t values[kExperts] = {-5, 1000, INT64_MIN, (int64_t{1} << 32) + 2};
  for (int64_t e = 0; e < kExperts; ++e) counts.set_int(e, values[e]);
  fill(counts);
  ASSERT_EQ(ramp_expert_block_batched(context.get(), &args, nullptr, 0, nullptr), RAMP_OK)
      << ramp_last_error();
  expect_slabs(counts, false, false);
}

TEST_P(Batched, NoRows) {
  Array counts(RAMP_I32, {kExperts});
  for (int64_t e = 0; e < kExperts; ++e) counts.set_int(e, 0);
  fill(counts);
  ASSERT_EQ(ramp_expert_block_batched(context.get(), &args, nullptr, 0, nullptr), RAMP_OK)
      << ramp_last_error();
  expect_slabs(counts, false, false);
  args.x.shape[1] = args.y.shape[1] = 0;
  args.x.data = args.y.data = nullptr;
  EXPECT_EQ(ramp_expert_block_batched(context.get(), &args, nullptr, 0, nullptr), RAMP_OK)
      << ramp_last_error();
}

TEST_P(Batched, OwnWorkspaceOfExactlyTheSizeAskedFor) {
  Array counts(RAMP_I32, {kExperts});
  for (int64_t e = 0; e < kExperts; ++e) counts.set_int(e, kRows);
  fill(counts);
  uint64_t bytes = 0;
  ASSERT_EQ(ramp_expert_block_batched_workspace(context.get(), weights.get(), kRows, &bytes), RAMP_OK);
  const Scratch scratch(bytes + 1024);
  auto* guard = static_cast<std::byte*>(scratch.data()) + bytes;
  std::memset(guard, 0x5a, 1024);
  ASSERT_EQ(ramp_expert_block_batched(context.get(), &args, scratch.data(), bytes, nullptr), RAMP_OK)
      << ramp_last_error();
  for (int i = 0; i < 1024; ++i) ASSERT_EQ(guard[i], std::byte{0x5a});
  expect_slabs(counts, false, false);
}

INSTANTIATE_TEST_SUITE_P(Exact, Batched,
                         testing::Combine(testing::Values(RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU),
                                          testing::Values(RAMP_FORMAT_F32, RAMP_FORMAT_BF16,
                                                          RAMP_FORMAT_FP8_TENSOR)),
                         [](const auto& info) {
                           return std::string(backend_name(std::get<0>(info.param))) + "_" +
                                  format_name(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace abi_test
