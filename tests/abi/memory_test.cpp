// Memory of the expert block: outputs and workspaces that overlap something, workspaces that are too small or
// misaligned, and the workspace queries.
#include <cstring>

#include "abi/bad_block.hpp"

namespace abi_test {
namespace {

// Weights whose tensor `member` lies at `at`, in memory of the test's own. An output or workspace put over a
// tensor in memory of the allocator's could also reach whatever lies behind it, and a message names only the
// first overlap.
void borrow_from(BlockWorld& w, ramp_tensor ramp_weights_desc::*member, const Array& data, void* at) {
  ramp_weights_desc desc = w.model.desc(RAMP_BORROW);
  std::memcpy(at, data.bytes.data(), data.bytes.size());
  (desc.*member).data = at;
  w.weights = make_weights(w.context, desc);
  w.args().weights = w.weights.get();
}

std::vector<BadCall> bad_memory() {
  constexpr int32_t kB = RAMP_FORMAT_BF16;
  constexpr int32_t kBlock = RAMP_FORMAT_FP8_BLOCK;
  constexpr int32_t kX = RAMP_BF16;
  static Scratch own(16 << 20);  // as long as the workspace of a BlockWorld
  return {
      // aliasing
      {"YIsX", kB, RAMP_F32, [](BlockWorld& w) { w.args().y = w.args().x; }, kInvalid, {"y", "overlap x"}},
      {"YTouchesX",
       kB,
       RAMP_F32,
       [](BlockWorld& w) { w.args().x.data = static_cast<std::byte*>(w.args().y.data) + 4 * kH * 3; },
       kInvalid,
       {"y", "overlap x"}},
      {"YIsAddend",
       kB,
       kX,
       [](BlockWorld& w) { w.args().shared_addend = w.args().y; },
       kInvalid,
       {"y", "overlap shared_addend"}},
      {"YOverIds",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_ids.data = w.args().y.data; },
       kInvalid,
       {"y", "overlap topk_ids"}},
      {"YOverWeights",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_weights.data = w.args().y.data; },
       kInvalid,
       {"y", "overlap topk_weights"}},
      {"YOverMap",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().expert_map = w.map.view();
         w.args().expert_map.data = w.args().y.data;
       },
       kInvalid,
       {"y", "overlap expert_map"}},
      {"YOverExperts",
       kB,
       kX,
       [](BlockWorld& w) { w.args().y.data = w.model.w2.bytes.data(); },
       kInvalid,
       {"y", "overlap weights.w2"}},
      {"YOverScales",
       kBlock,
       kX,
       [](BlockWorld& w) {
         borrow_from(w, &ramp_weights_desc::w13_scale, w.model.w13_scale, own.data());
         w.args().y.data = own.data();
       },
       kInvalid,
       {"y", "overlap weights.w13_scale"}},
      {"YOverCounters",
       kB,
       kX,
       [](BlockWorld& w) { w.args().counters.data = w.args().y.data; },
       kInvalid,
       {"counters", "overlap y"}},
      {"YInWorkspace",
       kB,
       kX,
       [](BlockWorld& w) { w.args().y.data = static_cast<std::byte*>(w.workspace) + 512; },
       kInvalid,
       {"workspace", "overlap y"}},
      {"XInWorkspace",
       kB,
       kX,
       [](BlockWorld& w) { w.args().x.data = static_cast<std::byte*>(w.workspace) + 512; },
       kInvalid,
       {"workspace", "overlap x"}},
      {"WorkspaceOverExperts",
       kB,
       kX,
       [](BlockWorld& w) {
         borrow_from(w, &ramp_weights_desc::w13, w.model.w13, own.data());
         w.workspace = own.data();
       },
       kInvalid,
       {"workspace", "overlap weights.w13"}},
      // workspace
      {"WorkspaceSmall",
       kB,
       kX,
       [](BlockWorld& w) { w.workspace_bytes = w.needed - 1; },
       RAMP_ERROR_WORKSPACE_TOO_SMALL,
       {"workspace_bytes", "at least", "ramp_expert_block_workspace"}},
      {"WorkspaceEmpty",
       kB,
       kX,
       [](BlockWorld& w) { w.workspace_bytes = 0; },
       RAMP_ERROR_WORKSPACE_TOO_SMALL,
       {"workspace_bytes: got 0"}},
      {"WorkspaceMisaligned",
       kB,
       kX,
       [](BlockWorld& w) {
         w.workspace = static_cast<std::byte*>(w.workspace) + 64;
         w.workspace_bytes -= 64;
       },
       kInvalid,
       {"workspace", "multiple of 256"}},
      {"WorkspaceNullWithBytes",
       kB,
       kX,
       [](BlockWorld& w) { w.workspace = nullptr; },
       kInvalid,
       {"workspace", "NULL"}},
  };
}

class BadMemory : public testing::TestWithParam<size_t> {};

TEST_P(BadMemory, IsRefusedAndWritesNothing) {
  expect_refused(bad_memory()[GetParam()]);
}

INSTANTIATE_TEST_SUITE_P(All, BadMemory, testing::Range(size_t{0}, bad_memory().size()),
                         case_names(bad_memory));

// Views in the gaps between y's rows are no overlap; ones that run into the next row are, whatever their own
// strides say.
TEST(Interleaved, GapsBetweenRowsAreFreeToUse) {
  BlockWorld w(RAMP_FORMAT_BF16);
  constexpr int64_t kPitch = kH + 16;
  Array sheet(RAMP_F32, {kT, kPitch});
  w.args().y = sheet.view();
  w.args().y.shape[1] = kH;
  w.args().y.stride[0] = kPitch;
  w.args().y.stride[1] = 1;
  const auto map_at = [&](int64_t column) {
    auto* at = reinterpret_cast<int32_t*>(sheet.bytes.data()) + column;
    for (int32_t e = 0; e < kE; ++e) at[e] = e;
    w.args().expert_map = view(at, RAMP_I32, {kE});
  };
  for (const int64_t free : {kH, kPitch - kE, kPitch + kH + 1}) {
    map_at(free);
    EXPECT_EQ(w.run(), RAMP_OK) << free << ": " << ramp_last_error();
  }
  for (const int64_t taken : {int64_t{0}, kH - 1, kPitch - kE + 1, kPitch - 1, kPitch + 5}) {
    map_at(taken);
    expect_error(w.run(), kInvalid, {"y", "overlap expert_map"});
  }
  // One token: rows have no pitch, yet the gap behind the only row is free.
  for (ramp_tensor* t : {&w.args().x, &w.args().y, &w.args().topk_ids, &w.args().topk_weights})
    t->shape[0] = 1;
  map_at(kH);
  EXPECT_EQ(w.run(), RAMP_OK) << ramp_last_error();
  map_at(kH - 1);
  expect_error(w.run(), kInvalid, {"y", "overlap expert_map"});
}

TEST(BlockWorkspace, QueryRefusesImpossibleSizes) {
  BlockWorld w(RAMP_FORMAT_BF16);
  uint64_t bytes = 77;
  const auto ask = [&](int64_t tokens, int64_t k) {
    return ramp_expert_block_workspace(w.context.get(), w.weights.get(), tokens, k, &bytes);
  };
  expect_error(ask(-1, 2), kInvalid, {"max_tokens: got -1"});
  expect_error(ask(4, 0), kInvalid, {"top_k: got 0"});
  expect_error(ask(4, -1), kInvalid, {"top_k"});
  expect_error(ask(INT64_MAX, 2), kInvalid, {"max_tokens * top_k"});
  expect_error(ask(int64_t{1} << 31, 1), kInvalid, {"2147483647"});
  EXPECT_EQ(bytes, 77U);
  EXPECT_EQ(ask(0, 2), RAMP_OK);
  EXPECT_EQ(bytes, 0U);
  uint64_t previous = 0;
  for (const int64_t t : {1, 2, 3, 7, 8, 64, 1000}) {
    ASSERT_EQ(ask(t, 2), RAMP_OK);
    EXPECT_GE(bytes, previous) << t;  // enough for any T <= max_tokens
    previous = bytes;
  }
}

}  // namespace
}  // namespace abi_test
