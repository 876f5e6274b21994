// A valid expert block call that a test spoils in one place, and what must then happen: the right status, a
// message that names the argument, and not a byte written to y, counters or workspace.
#pragma once

#include "abi/support.hpp"

namespace abi_test {

inline constexpr int64_t kT = 4;
inline constexpr int64_t kK = 2;
inline constexpr int64_t kE = 3;
inline constexpr int64_t kH = 64;
inline constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;

// A valid call on bf16 or fp8 weights, to be spoiled.
struct BlockWorld {
  Context context = make_context(RAMP_BACKEND_CPU);
  Model model;
  Weights weights;
  Call call;
  Array x_scale, addend{RAMP_BF16, {kT, kH}}, map{RAMP_I32, {kE}};
  Array counters{RAMP_I64, {2}};
  uint64_t needed = 0;
  Scratch scratch{16 << 20};
  void* workspace = scratch.data();
  uint64_t workspace_bytes = scratch.bytes();
  void* stream = nullptr;

  explicit BlockWorld(int32_t format, int32_t x_dtype = RAMP_BF16)
      : model(format, RAMP_ACTIVATION_SILU_AND_MUL, kE, kH, 96, 1),
        weights(make_weights(context, model.desc(RAMP_BORROW))),
        call(model, weights.get(), kT, kK, 7, false, x_dtype),
        x_scale(RAMP_F32, {kT, 1}) {
    for (int64_t i = 0; i < addend.size(); ++i) addend.set(i, 1.0F);
    for (int64_t i = 0; i < kE; ++i) map.set_int(i, i);
    for (int64_t i = 0; i < kT; ++i) x_scale.set(i, 1.0F);
    call.args.counters = counters.view();
    if (x_dtype == RAMP_E4M3 && format != RAMP_FORMAT_FP8_TENSOR) call.args.x_scale = x_scale.view();
    EXPECT_EQ(ramp_expert_block_workspace(context.get(), weights.get(), kT, kK, &needed), RAMP_OK);
    EXPECT_LE(needed, scratch.bytes());
  }
  ramp_expert_block_args& args() { return call.args; }
  ramp_status run() {
    return ramp_expert_block(context.get(), &call.args, workspace, workspace_bytes, stream);
  }
};

struct BadCall {
  const char* name;
  int32_t format;
  int32_t x_dtype;
  std::function<void(BlockWorld&)> spoil;
  ramp_status status;
  std::vector<std::string> message;
};

void expect_refused(const BadCall& bad);

// The names of test cases, for INSTANTIATE_TEST_SUITE_P.
template <typename Case>
auto case_names(std::vector<Case> (*cases)()) {
  return [cases](const auto& info) { return std::string(cases()[info.param].name); };
}

}  // namespace abi_test
