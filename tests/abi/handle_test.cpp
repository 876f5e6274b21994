// Opaque handles: every function refuses NULL, a handle of another kind and memory that is no handle, with a
// message and without a crash; destroying NULL is fine.
#include "abi/support.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ABI_TEST_SANITIZED 1
#endif

namespace abi_test {
namespace {

struct Handles {
  ramp_context* context;
  ramp_weights* weights;
  ramp_checkpoint* checkpoint;
};

// Each entry makes one call with the handles given.
struct HandleCase {
  const char* name;
  bool takes_context, takes_weights, takes_checkpoint;
  std::function<ramp_status(const Handles&)> call;
};

uint64_t g_bytes;

std::vector<HandleCase> handle_cases() {
  return {
      {"ramp_context_get_info", true, false, false,
       [](const Handles& h) {
         ramp_context_info info = ramp_context_info_init();
         return ramp_context_get_info(h.context, &info);
       }},
      {"ramp_weights_create", true, false, false,
       [](const Handles& h) {
         const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 32, 32, 1, true);
         const ramp_weights_desc d = m.desc();
         ramp_weights* out = nullptr;
         const ramp_status s = ramp_weights_create(h.context, &d, nullptr, &out);
         ramp_weights_destroy(out);
         return s;
       }},
      {"ramp_weights_pack", true, true, false,
       [](const Handles& h) { return ramp_weights_pack(h.context, h.weights, nullptr); }},
      {"ramp_weights_update", true, true, false,
       [](const Handles& h) {
         const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 32, 32, 1, true);
         const ramp_weights_desc d = m.desc();
         return ramp_weights_update(h.context, h.weights, 0, &d, nullptr);
       }},
      {"ramp_weights_unpack", true, true, false,
       [](const Handles& h) { return ramp_weights_unpack(h.context, h.weights, nullptr, nullptr, nullptr); }},
      {"ramp_weights_get_info", false, true, false,
       [](const Handles& h) {
         ramp_weights_info info = ramp_weights_info_init();
         return ramp_weights_get_info(h.weights, &info);
       }},
      {"ramp_expert_block_workspace", true, true, false,
       [](const Handles& h) { return ramp_expert_block_workspace(h.context, h.weights, 4, 2, &g_bytes); }},
      {"ramp_expert_block", true, true, false,
       [](const Handles& h) {
         const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 32, 32, 1, true);
         const Call c(m, h.weights, 2, 1, 3, true);
         return ramp_expert_block(h.context, &c.args, nullptr, 0, nullptr);
       }},
      {"ramp_expert_block_batched_workspace", true, true, false,
       [](const Handles& h) {
         return ramp_expert_block_batched_workspace(h.context, h.weights, 4, &g_bytes);
       }},
      {"ramp_expert_block_batched", true, true, false,
       [](const Handles& h) {
         Array x(RAMP_F32, {2, 0, 32});
         Array counts(RAMP_I32, {2});
         ramp_batched_args a = ramp_batched_args_init();
         a.weights = h.weights;
         a.x = a.y = x.view();
         a.counts = counts.view();
         return ramp_expert_block_batched(h.context, &a, nullptr, 0, nullptr);
       }},
      {"ramp_route", true, false, false,
       [](const Handles& h) {
         Array logits(RAMP_F32, {0, 4});
         Array ids(RAMP_I32, {0, 1});
         Array weights(RAMP_F32, {0, 1});
         const ramp_tensor l = logits.view();
         const ramp_tensor i = ids.view();
         const ramp_tensor w = weights.view();
         ramp_router_config r = ramp_router_config_init();
         r.top_k = 1;
         return ramp_route(h.context, &r, &l, &i, &w, nullptr);
       }},
      {"ramp_moe_forward_workspace", true, true, false,
       [](const Handles& h) { return ramp_moe_forward_workspace(h.context, h.weights, 4, 1, 2, &g_bytes); }},
      {"ramp_moe_forward", true, true, false,
       [](const Handles& h) {
         Array x(RAMP_F32, {0, 32});
         Array logits(RAMP_F32, {0, 2});
         ramp_moe_forward_args a = ramp_moe_forward_args_init();
         a.weights = h.weights;
         a.router.top_k = 1;
         a.x = a.y = x.view();
         a.router_logits = logits.view();
         return ramp_moe_forward(h.context, &a, nullptr, 0, nullptr);
       }},
      {"ramp_config_name", true, true, false,
       [](const Handles& h) {
         return ramp_config_name(h.context, h.weights, 1 << 20) == nullptr && h.context != nullptr &&
                        h.weights != nullptr && std::strcmp(ramp_last_error(), "before") == 0
                    ? RAMP_OK
                    : RAMP_ERROR_INVALID_ARGUMENT;
       }},
      {"ramp_checkpoint_layer_info", false, false, true,
       [](const Handles& h) {
         ramp_layer_info info = ramp_layer_info_init();
         return ramp_checkpoint_layer_info(h.checkpoint, 0, &info);
       }},
      {"ramp_checkpoint_load_weights", true, false, true,
       [](const Handles& h) {
         ramp_weights* out = nullptr;
         return ramp_checkpoint_load_weights(h.context, h.checkpoint, 0, 0, 0, nullptr, &out);
       }},
  };
}

class HandleTest : public testing::TestWithParam<size_t> {
 protected:
  HandleCase param = handle_cases()[GetParam()];
  Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  Weights weights =
      make_weights(context, Model(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 32, 32, 1, true).desc());
  Handles good() const { return {context.get(), weights.get(), nullptr}; }
};

TEST_P(HandleTest, RefusesNull) {
  Handles h = good();
  if (param.takes_context) {
    h.context = nullptr;
    expect_error(param.call(h), RAMP_ERROR_INVALID_ARGUMENT, {"context: got NULL", "ramp_context_create"});
    h = good();
  }
  if (param.takes_weights) {
    h.weights = nullptr;
    expect_error(param.call(h), RAMP_ERROR_INVALID_ARGUMENT, {"weights: got NULL", "ramp_weights_create"});
    h = good();
  }
  if (param.takes_checkpoint)
    expect_error(param.call(h), RAMP_ERROR_INVALID_ARGUMENT,
                 {"checkpoint: got NULL", "ramp_checkpoint_open"});
}

TEST_P(HandleTest, RefusesForeignPointers) {
  alignas(64) static std::byte zeros[256] = {};
  Handles h = good();
  if (param.takes_context) {
    for (void* foreign : {static_cast<void*>(zeros), static_cast<void*>(weights.get())}) {
      h.context = static_cast<ramp_context*>(foreign);
      expect_error(param.call(h), RAMP_ERROR_INVALID_ARGUMENT, {"context", "no such handle"});
    }
    h = good();
  }
  if (param.takes_weights) {
    for (void* foreign : {static_cast<void*>(zeros + 1), static_cast<void*>(context.get())}) {
      h.weights = static_cast<ramp_weights*>(foreign);
      expect_error(param.call(h), RAMP_ERROR_INVALID_ARGUMENT, {"weights", "no such handle"});
    }
    h = good();
  }
  if (param.takes_checkpoint) {
    h.checkpoint = reinterpret_cast<ramp_checkpoint*>(context.get());
    expect_error(param.call(h), RAMP_ERROR_INVALID_ARGUMENT, {"checkpoint", "no such handle"});
  }
}

INSTANTIATE_TEST_SUITE_P(All, HandleTest, testing::Range(size_t{0}, handle_cases().size()),
                         [](const auto& info) { return std::string(handle_cases()[info.param].name); });

TEST(Handle, DestroyingNullOrForeignPointersIsHarmless) {
  ramp_context_destroy(nullptr);
  ramp_weights_destroy(nullptr);
  ramp_checkpoint_close(nullptr);
  const Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  ramp_weights_destroy(reinterpret_cast<ramp_weights*>(context.get()));
  ramp_checkpoint_close(reinterpret_cast<ramp_checkpoint*>(context.get()));
  ramp_context_info info = ramp_context_info_init();
  EXPECT_EQ(ramp_context_get_info(context.get(), &info), RAMP_OK);  // still alive
}

#ifndef ABI_TEST_SANITIZED
// Best effort only, and undefined by the letter: the memory may be reused. A sanitizer reports the read.
TEST(Handle, DestroyedHandlesAreRecognisedWhileTheirMemoryIsNotReused) {
  Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  ramp_context* dangling = context.get();
  context.reset();
  ramp_context_info info = ramp_context_info_init();
  expect_error(ramp_context_get_info(dangling, &info), RAMP_ERROR_INVALID_ARGUMENT, {"already destroyed"});
}
#endif

TEST(Handle, OutPointersMustNotBeNull) {
  const Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 32, 32, 1, true);
  const ramp_weights_desc d = m.desc();
  expect_error(ramp_weights_create(context.get(), &d, nullptr, nullptr), RAMP_ERROR_INVALID_ARGUMENT,
               {"out: got NULL"});
  const Weights weights = make_weights(context, d);
  expect_error(ramp_expert_block_workspace(context.get(), weights.get(), 1, 1, nullptr),
               RAMP_ERROR_INVALID_ARGUMENT, {"bytes: got NULL"});
  expect_error(ramp_expert_block_batched_workspace(context.get(), weights.get(), 1, nullptr),
               RAMP_ERROR_INVALID_ARGUMENT, {"bytes: got NULL"});
  expect_error(ramp_moe_forward_workspace(context.get(), weights.get(), 1, 1, 2, nullptr),
               RAMP_ERROR_INVALID_ARGUMENT, {"bytes: got NULL"});
  expect_error(ramp_checkpoint_open("x", nullptr), RAMP_ERROR_INVALID_ARGUMENT, {"out: got NULL"});
}

TEST(Handle, WeightsOutliveTheirContext) {
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2, 32, 32, 1, true);
  for (const ramp_backend backend : {RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU}) {
    Context first = make_context(backend);
    const Weights weights = make_weights(first, m.desc(), true);
    first.reset();
    const Context second = make_context(backend);
    Call c(m, weights.get(), 3, 2, 7, true);
    ASSERT_EQ(ramp_expert_block(second.get(), &c.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
    expect_equal(c.y, exact_combined(m, c));
  }
}

}  // namespace
}  // namespace abi_test
