// No allocation in the hot path after warm-up: every allocation of the process, on any thread, is counted, by
// taking malloc's place or, under a sanitizer that has done so already, through its hook.
#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "abi/support.hpp"

namespace {
std::atomic<bool> g_counting{false};
std::atomic<int64_t> g_allocations{0};
void note() {
  if (g_counting.load(std::memory_order_relaxed)) g_allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// As in the sanitizers' allocator_interface.h, which not every compiler package brings.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, size_t),
                                                         void (*free_hook)(const volatile void*));
namespace {
const int g_hooks = __sanitizer_install_malloc_and_free_hooks([](const volatile void*, size_t) { note(); },
                                                              [](const volatile void*) {});
}  // namespace
#else
extern "C" {
// glibc's own entry points behind the public names.
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

void* malloc(size_t n) {
  note();
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
  note();
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
  note();
  return __libc_realloc(p, n);
}
void* memalign(size_t alignment, size_t n) {
  note();
  return __libc_memalign(alignment, n);
}
void* aligned_alloc(size_t alignment, size_t n) {
  note();
  return __libc_memalign(alignment, n);
}
int posix_memalign(void** out, size_t alignment, size_t n) {
  note();
  *out = __libc_memalign(alignment, n);
  return *out != nullptr ? 0 : ENOMEM;
}
void free(void* p) {
  __libc_free(p);
}
}
#endif

namespace abi_test {
namespace {

class Count {
 public:
  Count() {
    g_allocations = 0;
    g_counting = true;
  }
  ~Count() { g_counting = false; }
  static int64_t so_far() { return g_allocations.load(); }
};

TEST(Allocation, TheCounterCounts) {
  const Count count;
  const std::string s(100, 'x');
  EXPECT_EQ(Count::so_far(), 1);
  // Inside the library too: an error message is built on the heap.
  EXPECT_NE(ramp_context_create(nullptr, nullptr), RAMP_OK);
  EXPECT_GT(Count::so_far(), 1);
}

class HotPath : public testing::TestWithParam<std::tuple<int32_t, bool>> {
 protected:
  static constexpr int64_t kT = 24, kE = 6, kH = 160, kI = 96, kK = 2;
  Context context = make_context(RAMP_BACKEND_CPU, 3);
  Model model{std::get<0>(GetParam()), RAMP_ACTIVATION_SILU_AND_MUL, kE, kH, kI, 3};
  Weights weights = make_weights(context, model.desc(), true);
  bool own = std::get<1>(GetParam());

  // Warms up with `first`, then counts over several `again`.
  template <typename First, typename Again>
  void expect_none(First first, Again again) {
    ASSERT_EQ(first(), RAMP_OK) << ramp_last_error();
    ramp_status status = RAMP_OK;
    int64_t count = 0;
    {
      const Count counting;
      for (int i = 0; i < 5 && status == RAMP_OK; ++i) status = again(i);
      count = Count::so_far();
    }
    EXPECT_EQ(status, RAMP_OK) << ramp_last_error();
    EXPECT_EQ(count, 0);
  }
};

TEST_P(HotPath, ExpertBlock) {
  uint64_t bytes = 0;
  ASSERT_EQ(ramp_expert_block_workspace(context.get(), weights.get(), kT, kK, &bytes), RAMP_OK);
  const Scratch scratch(bytes);
  for (const int32_t output : {RAMP_OUTPUT_COMBINED, RAMP_OUTPUT_PER_SLOT}) {
    for (int32_t determinism = RAMP_REPEATABLE; determinism <= RAMP_FAST; ++determinism) {
      for (const int32_t config : {0, 1, 2}) {
        Call c(model, weights.get(), kT, kK, 5);
        if (output == RAMP_OUTPUT_PER_SLOT) c.per_slot();
        c.args.determinism = determinism;
        c.args.config = config;
        const auto run = [&] {
          return ramp_expert_block(context.get(), &c.args, own ? scratch.data() : nullptr, own ? bytes : 0,
                                   nullptr);
        };
        // Fewer tokens and another histogram after the warm-up: still nothing.
        expect_none(run, [&](int i) {
          for (ramp_tensor* t : {&c.args.x, &c.args.topk_ids, &c.args.topk_weights, &c.args.y})
            t->shape[0] = kT - 4 * i;
          c.ids.set_int(i, -1);
          c.ids.set_int(i + 6, i);
          return run();
        });
      }
    }
  }
}

TEST_P(HotPath, RouteAndForward) {
  Call c(model, weights.get(), kT, kK, 5);
  Array logits(RAMP_F32, {kT, kE});
  Array gate(RAMP_BF16, {kE, kH});
  for (int64_t i = 0; i < logits.size(); ++i)
    logits.set(i, static_cast<float>(normal(3, static_cast<uint64_t>(i))));
  for (int64_t i = 0; i < gate.size(); ++i)
    gate.set(i, static_cast<float>(normal(4, static_cast<uint64_t>(i))));
  uint64_t bytes = 0;
  ASSERT_EQ(ramp_moe_forward_workspace(context.get(), weights.get(), kT, kK, kE, &bytes), RAMP_OK);
  const Scratch scratch(bytes);
  for (const bool computed : {false, true}) {
    for (const int64_t capacity : {0, 5}) {
      ramp_moe_forward_args a = ramp_moe_forward_args_init();
      a.weights = weights.get();
      a.router.top_k = kK;
      a.router.capacity = capacity;
      a.router.num_groups = 3;
      a.router.topk_groups = 2;
      a.x = c.x.view();
      (computed ? a.router_weight : a.router_logits) = computed ? gate.view() : logits.view();
      a.y = c.y.view();
      const auto run = [&] {
        return ramp_moe_forward(context.get(), &a, own ? scratch.data() : nullptr, own ? bytes : 0, nullptr);
      };
      expect_none(run, [&](int) { return run(); });
    }
  }
  const ramp_tensor l = logits.view();
  const ramp_tensor i = c.ids.view();
  const ramp_tensor w = c.weights.view();
  ramp_router_config r = ramp_router_config_init();
  r.top_k = kK;
  const auto route = [&] { return ramp_route(context.get(), &r, &l, &i, &w, nullptr); };
  expect_none(route, [&](int) { return route(); });
}

TEST_P(HotPath, Batched) {
  Array x(RAMP_BF16, {kE, 8, kH});
  Array y(RAMP_BF16, {kE, 8, kH});
  Array counts(RAMP_I32, {kE});
  for (int64_t i = 0; i < x.size(); ++i) x.set(i, 0.5F);
  for (int64_t e = 0; e < kE; ++e) counts.set_int(e, e + 1);
  uint64_t bytes = 0;
  ASSERT_EQ(ramp_expert_block_batched_workspace(context.get(), weights.get(), 8, &bytes), RAMP_OK);
  const Scratch scratch(bytes);
  ramp_batched_args a = ramp_batched_args_init();
  a.weights = weights.get();
  a.x = x.view();
  a.y = y.view();
  a.counts = counts.view();
  const auto run = [&] {
    return ramp_expert_block_batched(context.get(), &a, own ? scratch.data() : nullptr, own ? bytes : 0,
                                     nullptr);
  };
  expect_none(run, [&](int i) {
    counts.set_int(i, 8 - i);
    return run();
  });
}

INSTANTIATE_TEST_SUITE_P(Formats, HotPath,
                         testing::Combine(testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,
                                                          RAMP_FORMAT_F16, RAMP_FORMAT_F32,
                                                          RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL),
                                          testing::Bool()),
                         [](const auto& info) {
                           return std::string(format_name(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) ? "_own_workspace" : "_context_workspace");
                         });

}  // namespace
}  // namespace abi_test
