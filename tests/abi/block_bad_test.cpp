// Every wrong argument of ramp_expert_block is refused; see bad_block.hpp. Overlaps and workspaces are in
// memory_test.cpp.
#include "abi/bad_block.hpp"

namespace abi_test {

void expect_refused(const BadCall& bad) {
  BlockWorld w(bad.format, bad.x_dtype);
  if (std::string(bad.name) != "XFp8ForBf16Weights") {
    const auto poison = w.call.y.bytes;
    ASSERT_EQ(w.run(), RAMP_OK) << "the call is not valid to begin with: " << ramp_last_error();
    w.call.y.bytes = poison;
    w.counters = Array(RAMP_I64, {2});
    w.args().counters = w.counters.view();
    std::memset(w.scratch.data(), 0xff, w.scratch.bytes());
  }
  bad.spoil(w);
  const auto y = w.call.y.bytes;
  const auto x = w.call.x.bytes;
  const auto w2 = w.model.w2.bytes;
  expect_error(w.run(), bad.status, bad.message);
  EXPECT_EQ(w.call.y.bytes, y);
  EXPECT_EQ(w.call.x.bytes, x);
  EXPECT_EQ(w.model.w2.bytes, w2);
  EXPECT_EQ(w.counters.get_int(0), -1);
  EXPECT_EQ(w.counters.get_int(1), -1);
  const auto* scratch = static_cast<const std::byte*>(w.scratch.data());
  for (uint64_t i = 0; i < w.scratch.bytes(); ++i)
    ASSERT_EQ(scratch[i], std::byte{0xff}) << "workspace byte " << i;
}

namespace {

std::vector<BadCall> bad_calls() {
  constexpr int32_t kB = RAMP_FORMAT_BF16;
  constexpr int32_t kBlock = RAMP_FORMAT_FP8_BLOCK;
  constexpr int32_t kX = RAMP_BF16;
  return {
      {"Determinism",
       kB,
       kX,
       [](BlockWorld& w) { w.args().determinism = 3; },
       kInvalid,
       {"determinism: got 3", "RAMP_FAST"}},
      {"DeterminismNegative",
       kB,
       kX,
       [](BlockWorld& w) { w.args().determinism = -1; },
       kInvalid,
       {"determinism"}},
      {"Output",
       kB,
       kX,
       [](BlockWorld& w) { w.args().output = 2; },
       kInvalid,
       {"output: got 2", "RAMP_OUTPUT_PER_SLOT"}},
      {"WeightOnInput",
       kB,
       kX,
       [](BlockWorld& w) { w.args().router_weight_on_input = 2; },
       kInvalid,
       {"router_weight_on_input: got 2", "0 or 1"}},
      {"Config",
       kB,
       kX,
       [](BlockWorld& w) { w.args().config = 1 << 20; },
       kInvalid,
       {"config: got 1048576", "ramp_config_name"}},
      {"Stream", kB, kX, [](BlockWorld& w) { w.stream = &w; }, kInvalid, {"stream", "NULL on the CPU"}},
      // x
      {"XMissing", kB, kX, [](BlockWorld& w) { w.args().x = ramp_tensor{}; }, kInvalid, {"x: got no tensor"}},
      {"XNull", kB, kX, [](BlockWorld& w) { w.args().x.data = nullptr; }, kInvalid, {"x: got", "NULL"}},
      {"XHidden",
       kB,
       kX,
       [](BlockWorld& w) { w.args().x.shape[1] = 32; },
       kInvalid,
       {"x: got bf16 [4, 32]", "64"}},
      {"XOneDim", kB, kX, [](BlockWorld& w) { w.args().x.ndim = 1; }, kInvalid, {"x: got bf16 [4]"}},
      {"XInteger",
       kB,
       kX,
       [](BlockWorld& w) { w.args().x.dtype = RAMP_I32; },
       kInvalid,
       {"x: got i32", "bf16"}},
      {"XDouble", kB, kX, [](BlockWorld& w) { w.args().x.dtype = RAMP_F64; }, kInvalid, {"x: got f64"}},
      {"XFp8ForBf16Weights", kB, RAMP_E4M3, [](BlockWorld&) {}, kInvalid, {"x: got e4m3", "bf16"}},
      {"XColumnMajor",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().x.stride[0] = 1;
         w.args().x.stride[1] = kT;
       },
       kInvalid,
       {"x: got strides", "last stride of 1"}},
      {"XNegativeStride",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().x.stride[0] = -kH;
         w.args().x.stride[1] = 1;
       },
       kInvalid,
       {"x: got strides"}},
      {"XUnaligned",
       kB,
       kX,
       [](BlockWorld& w) { w.args().x.data = static_cast<std::byte*>(w.args().x.data) + 1; },
       kInvalid,
       {"x: got", "multiple of the element size"}},
      {"XNegativeTokens",
       kB,
       kX,
       [](BlockWorld& w) { w.args().x.shape[0] = -1; },
       kInvalid,
       {"x: got bf16 [-1, 64]"}},
      {"XOnGpu",
       kB,
       kX,
       [](BlockWorld& w) { w.args().x.device.type = RAMP_DEVICE_CUDA; },
       kInvalid,
       {"x: got a tensor on cuda:0", "cpu"}},
      {"XOnOtherCpu",
       kB,
       kX,
       [](BlockWorld& w) { w.args().x.device.index = 1; },
       kInvalid,
       {"x: got a tensor on"}},
      // x_scale
      {"ScaleForBf16X",
       kBlock,
       kX,
       [](BlockWorld& w) { w.args().x_scale = w.x_scale.view(); },
       kInvalid,
       {"x_scale", "no tensor", "bf16"}},
      {"ScaleMissing",
       kBlock,
       RAMP_E4M3,
       [](BlockWorld& w) { w.args().x_scale = ramp_tensor{}; },
       kInvalid,
       {"x_scale: got no tensor", "f32 [4, 1]"}},
      {"ScaleColumns",
       kBlock,
       RAMP_E4M3,
       [](BlockWorld& w) { w.args().x_scale.shape[1] = 2; },
       kInvalid,
       {"x_scale", "[4, 2]", "[4, 1]"}},
      {"ScaleRows",
       kBlock,
       RAMP_E4M3,
       [](BlockWorld& w) { w.args().x_scale.shape[0] = 5; },
       kInvalid,
       {"x_scale", "[5, 1]"}},
      {"ScaleDtype",
       kBlock,
       RAMP_E4M3,
       [](BlockWorld& w) { w.args().x_scale.dtype = RAMP_BF16; },
       kInvalid,
       {"x_scale", "bf16"}},
      {"ScaleForChannel",
       RAMP_FORMAT_FP8_CHANNEL,
       RAMP_E4M3,
       [](BlockWorld& w) { w.args().x_scale.shape[1] = 2; },
       kInvalid,
       {"x_scale", "[4, 1]"}},
      {"ScaleForTensor",
       RAMP_FORMAT_FP8_TENSOR,
       RAMP_E4M3,
       [](BlockWorld& w) { w.args().x_scale = w.x_scale.view(); },
       kInvalid,
       {"x_scale", "static scale"}},
      // ids and weights
      {"IdsMissing",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_ids = ramp_tensor{}; },
       kInvalid,
       {"topk_ids: got no tensor"}},
      {"IdsNull",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_ids.data = nullptr; },
       kInvalid,
       {"topk_ids", "NULL"}},
      {"IdsFloat",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_ids.dtype = RAMP_F32; },
       kInvalid,
       {"topk_ids: got f32", "i32 or i64"}},
      {"IdsRows",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_ids.shape[0] = 3; },
       kInvalid,
       {"topk_ids: got i32 [3, 2]", "[4, any]"}},
      {"IdsOneDim", kB, kX, [](BlockWorld& w) { w.args().topk_ids.ndim = 1; }, kInvalid, {"topk_ids"}},
      {"IdsNoSlots", kB, kX, [](BlockWorld& w) { w.args().topk_ids.shape[1] = 0; }, kInvalid, {"k: got 0"}},
      {"IdsOnGpu",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_ids.device.type = RAMP_DEVICE_CUDA; },
       kInvalid,
       {"topk_ids", "cuda:0"}},
      {"IdsUnaligned",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_ids.data = static_cast<std::byte*>(w.args().topk_ids.data) + 2; },
       kInvalid,
       {"topk_ids"}},
      {"WeightsShape",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_weights.shape[1] = 3; },
       kInvalid,
       {"topk_weights", "[4, 3]", "[4, 2]"}},
      {"WeightsDtype",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_weights.dtype = RAMP_BF16; },
       kInvalid,
       {"topk_weights: got bf16"}},
      {"WeightsMissing",
       kB,
       kX,
       [](BlockWorld& w) { w.args().topk_weights = ramp_tensor{}; },
       kInvalid,
       {"topk_weights: got no tensor"}},
      // T * k and extents (broadcast views: no memory behind them)
      {"TooManyRows",
       kB,
       kX,
       [](BlockWorld& w) {
         const int64_t huge = int64_t{1} << 30;
         w.args().x.shape[0] = w.args().topk_ids.shape[0] = w.args().topk_weights.shape[0] = huge;
         for (ramp_tensor* t : {&w.args().x, &w.args().topk_ids, &w.args().topk_weights}) t->stride[1] = 1;
       },
       kInvalid,
       {"T * k: got 1073741824 * 2", "2147483647"}},
      {"ShapeOverflow",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().x.shape[0] = INT64_MAX;
         w.args().x.stride[0] = kH;
         w.args().x.stride[1] = 1;
       },
       kInvalid,
       {"x: got"}},
      // optional inputs
      {"MapDtype",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().expert_map = w.map.view();
         w.args().expert_map.dtype = RAMP_I64;
       },
       kInvalid,
       {"expert_map: got i64"}},
      // no entries: neither a map nor none
      {"MapEmpty",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().expert_map = w.map.view();
         w.args().expert_map.shape[0] = 0;
       },
       kInvalid,
       {"expert_map: got i32 [0]", "an entry per global id"}},
      {"MapEmptyAndNull",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().expert_map = w.map.view();
         w.args().expert_map.shape[0] = 0;
         w.args().expert_map.data = nullptr;
       },
       kInvalid,
       {"expert_map: got i32 [0]"}},
      {"MapTwoDims",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().expert_map = view(w.map.bytes.data(), RAMP_I32, {1, kE});
       },
       kInvalid,
       {"expert_map"}},
      {"MapStrided",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().expert_map = w.map.view();
         w.args().expert_map.shape[0] = 2;
         w.args().expert_map.stride[0] = 2;
       },
       kInvalid,
       {"expert_map: got strides"}},
      {"AddendShape",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().shared_addend = w.addend.view();
         w.args().shared_addend.shape[0] = 3;
       },
       kInvalid,
       {"shared_addend", "[3, 64]"}},
      {"AddendDtype",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().shared_addend = w.addend.view();
         w.args().shared_addend.dtype = RAMP_E4M3;
       },
       kInvalid,
       {"shared_addend: got e4m3"}},
      {"AddendPerSlot",
       kB,
       kX,
       [](BlockWorld& w) {
         w.call.per_slot();
         w.args().shared_addend = w.addend.view();
       },
       kInvalid,
       {"shared_addend", "RAMP_OUTPUT_PER_SLOT"}},
      {"CountersDtype",
       kB,
       kX,
       [](BlockWorld& w) { w.args().counters.dtype = RAMP_I32; },
       kInvalid,
       {"counters: got i32"}},
      {"CountersLength",
       kB,
       kX,
       [](BlockWorld& w) { w.args().counters.shape[0] = 1; },
       kInvalid,
       {"counters: got i64 [1]"}},
      // y
      {"YMissing", kB, kX, [](BlockWorld& w) { w.args().y = ramp_tensor{}; }, kInvalid, {"y: got no tensor"}},
      {"YShape", kB, kX, [](BlockWorld& w) { w.args().y.shape[0] = 3; }, kInvalid, {"y: got f32 [3, 64]"}},
      {"YPerSlotShape",
       kB,
       kX,
       [](BlockWorld& w) { w.args().output = RAMP_OUTPUT_PER_SLOT; },
       kInvalid,
       {"y: got f32 [4, 64]", "[4, 2, 64]"}},
      {"YDtype", kB, kX, [](BlockWorld& w) { w.args().y.dtype = RAMP_E4M3; }, kInvalid, {"y: got e4m3"}},
      {"YBroadcast", kB, kX, [](BlockWorld& w) { w.args().y.stride[1] = 1; }, kInvalid, {"y", "own memory"}},
      {"YRowsOverlap",
       kB,
       kX,
       [](BlockWorld& w) {
         w.args().y.stride[0] = kH - 1;
         w.args().y.stride[1] = 1;
       },
       kInvalid,
       {"y", "own memory"}},
      {"YOnGpu",
       kB,
       kX,
       [](BlockWorld& w) { w.args().y.device.type = RAMP_DEVICE_CUDA; },
       kInvalid,
       {"y: got a tensor on cuda:0"}},
  };
}

class BadBlock : public testing::TestWithParam<size_t> {};

TEST_P(BadBlock, IsRefusedAndWritesNothing) {
  expect_refused(bad_calls()[GetParam()]);
}

INSTANTIATE_TEST_SUITE_P(All, BadBlock, testing::Range(size_t{0}, bad_calls().size()), case_names(bad_calls));

}  // namespace
}  // namespace abi_test
