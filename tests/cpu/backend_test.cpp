// The CPU backend as a whole: choice of ISA level, no allocation while it runs, concurrent calls, a caller's
// executor, the factory, and the router.
#include <gtest/gtest.h>

#include <cmath>
#include <thread>
#include <vector>

#include "backend/cpu/cpu_backend.hpp"
#include "backend/cpu/thread_pool.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "cpu/allocations.hpp"
#include "numerics/cpu_support.hpp"
#include "routing/router.hpp"

namespace ramp::core::test {
namespace {

std::string error_of(const BackendOptions& options, ramp_backend kind, ramp_status status) {
  try {
    make_backend(kind, options);
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), status) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(CpuFactory, AutoIsTheCpuBackendOnCpuDevices) {
  BackendOptions options;
  options.num_threads = 2;
  const auto backend = make_backend(RAMP_BACKEND_AUTO, options);
  EXPECT_EQ(backend->info().kind, RAMP_BACKEND_CPU);
  EXPECT_EQ(backend->info().name, "cpu");
  EXPECT_EQ(backend->info().workers, 2);
  EXPECT_EQ(backend->info().isa, isa_levels().back());
  EXPECT_FALSE(backend->info().device_name.empty());
  EXPECT_EQ(make_backend(RAMP_BACKEND_REFERENCE, options)->info().kind, RAMP_BACKEND_REFERENCE);
}

TEST(CpuFactory, UsesEveryAvailableCoreByDefault) {
  EXPECT_EQ(make_backend(RAMP_BACKEND_CPU, {})->info().workers, available_cores());
}

TEST(CpuFactory, RefusesWhatThereIsNot) {
  BackendOptions options;
  EXPECT_NE(error_of(options, RAMP_BACKEND_CUDA, RAMP_ERROR_UNSUPPORTED).find("CUDA"), std::string::npos);
  options.device.type = RAMP_DEVICE_CUDA;
  error_of(options, RAMP_BACKEND_AUTO, RAMP_ERROR_UNSUPPORTED);
  error_of(options, RAMP_BACKEND_CPU, RAMP_ERROR_UNSUPPORTED);
  options = {};
  error_of(options, static_cast<ramp_backend>(17), RAMP_ERROR_INVALID_ARGUMENT);
  options.device.type = 9;
  error_of(options, RAMP_BACKEND_AUTO, RAMP_ERROR_INVALID_ARGUMENT);
  options = {};
  options.device.index = 1;
  error_of(options, RAMP_BACKEND_AUTO, RAMP_ERROR_INVALID_ARGUMENT);
  options = {};
  options.num_threads = -2;
  EXPECT_NE(error_of(options, RAMP_BACKEND_CPU, RAMP_ERROR_INVALID_ARGUMENT).find("num_threads"),
            std::string::npos);
}

TEST(CpuIsa, ForcedByNameOrRefusedWithTheList) {
  for (const std::string& isa : isa_levels()) {
    BackendOptions options;
    options.num_threads = 1;
    options.isa = isa;
    EXPECT_EQ(make_backend(RAMP_BACKEND_CPU, options)->info().isa, isa);
  }
  BackendOptions options;
  options.isa = "mmx";
  const std::string text = error_of(options, RAMP_BACKEND_CPU, RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_NE(text.find("'mmx'"), std::string::npos) << text;
  EXPECT_NE(text.find("baseline"), std::string::npos) << text;
  for (const char* known : {"avx2", "avx512"}) {
    if (std::find(isa_levels().begin(), isa_levels().end(), known) != isa_levels().end()) continue;
    options.isa = known;
    error_of(options, RAMP_BACKEND_CPU, RAMP_ERROR_UNSUPPORTED);
  }
}

// ---------------------------------------------------------------- allocation

class CpuAllocations : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, CpuAllocations,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                         RAMP_FORMAT_F32, RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL),
                         [](const auto& p) { return std::string(format_name(p.param)); });

TEST(Allocations, AreCounted) {
  if (!allocations_counted()) GTEST_SKIP() << "not under sanitizers";
  const AllocationCount count;
  const std::vector<int> v(100);
  EXPECT_GE(count.so_far(), 1) << v.size();
}

TEST_P(CpuAllocations, NoneWhileTheBlockRuns) {
  if (!allocations_counted()) GTEST_SKIP() << "not under sanitizers";
  Backend& backend = cpu_backend();
  CaseSpec spec;
  spec.format = GetParam();
  spec.tokens = 33;
  spec.hidden = 256;
  spec.ids = Ids::kMasked;
  for (const ramp_output output : {RAMP_OUTPUT_COMBINED, RAMP_OUTPUT_PER_SLOT}) {
    for (const bool on_input : {false, true}) {
      spec.output = output;
      spec.router_weight_on_input = on_input;
      BlockCase c(spec);
      for (const Hold hold : {Hold::kPackedCopy, Hold::kBorrow}) {
        const auto w = make_held(c, hold, backend);
        const GuardedWorkspace workspace(backend.block_workspace(*w, spec.tokens, spec.top_k));
        BlockCall call = c.call(*w);
        call.workspace = workspace.data();
        call.workspace_bytes = workspace.bytes();
        backend.expert_block(call);  // warm-up
        const AllocationCount count;
        for (const ramp_determinism d : {RAMP_REPEATABLE, RAMP_BATCH_INVARIANT, RAMP_FAST}) {
          call.determinism = d;
          backend.expert_block(call);
        }
        EXPECT_EQ(count.so_far(), 0);
      }
    }
  }
  BatchedCase b(spec);
  const auto w = make_held(b, Hold::kPackedCopy, backend);
  const GuardedWorkspace workspace(backend.batched_workspace(*w, spec.tokens));
  BatchedCall call = b.call(*w);
  call.workspace = workspace.data();
  call.workspace_bytes = workspace.bytes();
  backend.expert_block_batched(call);
  const AllocationCount count;
  backend.expert_block_batched(call);
  EXPECT_EQ(count.so_far(), 0);
}

// ---------------------------------------------------------------- concurrency

TEST(CpuConcurrency, CallsOnOneBackendDoNotDisturbEachOther) {
  Backend& backend = cpu_backend("", 3);
  CaseSpec spec;
  spec.tokens = 21;
  spec.hidden = 160;
  BlockCase c(spec);
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  c.run(backend, *w);
  const std::vector<uint8_t> expected = c.y_bits();
  constexpr int kCallers = 4;
  std::vector<int> mismatches(kCallers, 0);
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      OwnedTensor y(spec.y_dtype, {spec.tokens, spec.hidden});
      const GuardedWorkspace workspace(backend.block_workspace(*w, spec.tokens, spec.top_k));
      BlockCall call = c.call(*w);
      call.counters = nullptr;
      call.y = y.view;
      call.workspace = workspace.data();
      call.workspace_bytes = workspace.bytes();
      for (int run = 0; run < 25; ++run) {
        y.poison();
        backend.expert_block(call);
        if (bytes_of(y.view) != expected) ++mismatches[static_cast<size_t>(i)];
      }
    });
  }
  for (std::thread& t : callers) t.join();
  for (const int m : mismatches) EXPECT_EQ(m, 0);
}

TEST(CpuConcurrency, TheCallersExecutorRunsTheBlock) {
  // Our own pool behind the C struct: what an application's executor looks like.
  ThreadPool pool(3);
  const ramp_executor executor = {3,
                                  [](void* user, int64_t tasks, ramp_task_fn fn, void* arg) {
                                    static_cast<ThreadPool*>(user)->parallel_for(tasks, fn, arg);
                                  },
                                  &pool};
  BackendOptions options;
  options.executor = &executor;
  const auto backend = make_backend(RAMP_BACKEND_CPU, options);
  EXPECT_EQ(backend->info().workers, 3);
  for (const auto format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16}) {
    CaseSpec spec;
    spec.format = format;
    spec.tokens = 40;
    BlockCase c(spec);
    const auto w = make_held(c, Hold::kPackedInPlace, *backend);
    c.run(*backend, *w);
    const CheckResult result = c.check(check_options());
    EXPECT_TRUE(result.ok()) << result.text();
  }
}

// ---------------------------------------------------------------- router

struct RouteCase {
  ramp_dtype logits, x, weight;  // logits NONE: computed from x and weight
  int64_t tokens, experts;
  int32_t top_k;
  bool i64;
  int64_t capacity;
  int32_t shared;
};
class CpuRoute : public testing::TestWithParam<RouteCase> {};
INSTANTIATE_TEST_SUITE_P(
    Cases, CpuRoute,
    testing::Values(RouteCase{RAMP_F32, {}, {}, 37, 64, 8, false, 0, 0},
                    RouteCase{RAMP_BF16, {}, {}, 5, 8, 2, true, 0, 1},
                    RouteCase{RAMP_F16, {}, {}, 130, 60, 4, false, 9, 0},
                    RouteCase{RAMP_DTYPE_NONE, RAMP_F32, RAMP_F32, 1, 64, 8, false, 0, 0},
                    RouteCase{RAMP_DTYPE_NONE, RAMP_BF16, RAMP_BF16, 33, 64, 8, true, 0, 2},
                    RouteCase{RAMP_DTYPE_NONE, RAMP_BF16, RAMP_F32, 7, 13, 3, false, 0, 0},
                    RouteCase{RAMP_DTYPE_NONE, RAMP_F16, RAMP_F16, 66, 512, 10, false, 4, 0},
                    RouteCase{RAMP_DTYPE_NONE, RAMP_F32, RAMP_BF16, 0, 16, 2, false, 0, 0}));

TEST_P(CpuRoute, MatchesTheOracle) {
  const RouteCase& p = GetParam();
  constexpr int64_t kHidden = 96;
  for (const std::string& isa : isa_levels()) {
    Backend& backend = cpu_backend(isa, 3);
    ramp_router_config config = ramp_router_config_init();
    config.scoring = p.experts % 2 == 0 ? RAMP_SCORING_SOFTMAX : RAMP_SCORING_SIGMOID;
    config.renormalize = 1;
    config.top_k = p.top_k;
    config.capacity = p.capacity;
    config.num_shared_experts = p.shared;
    RouteCall call;
    call.router = check_router(config, p.experts);
    const int64_t slots = router_slots(call.router);
    const auto random = [](OwnedTensor& t, uint64_t seed) {
      for (int64_t r = 0; r < t.view.shape[0]; ++r) {
        for (int64_t c = 0; c < t.view.shape[1]; ++c) {
          t.set(r, c, static_cast<float>(random_normal(seed, static_cast<uint64_t>(r * 10000 + c))));
        }
      }
    };
    const bool given = p.logits != RAMP_DTYPE_NONE;
    OwnedTensor logits;
    OwnedTensor x;
    OwnedTensor weight;
    if (given) {
      logits = OwnedTensor(p.logits, {p.tokens, p.experts}, 5);
      random(logits, 3);
      call.logits = logits.view;
    } else {
      x = OwnedTensor(p.x, {p.tokens, kHidden}, 8);
      weight = OwnedTensor(p.weight, {p.experts, kHidden}, 16);
      random(x, 4);
      random(weight, 5);
      call.x = x.view;
      call.router_weight = weight.view;
    }
    OwnedTensor ids(p.i64 ? RAMP_I64 : RAMP_I32, {p.tokens, slots}, 3);
    OwnedTensor weights(RAMP_F32, {p.tokens, slots}, 3);
    call.ids = ids.view;
    call.weights = weights.view;
    const GuardedWorkspace workspace(backend.route_workspace(call.router, p.experts, p.tokens));
    call.workspace = workspace.data();
    call.workspace_bytes = workspace.bytes();
    backend.route(call);
    EXPECT_TRUE(workspace.guard_intact() && ids.gaps_intact() && weights.gaps_intact());
    if (allocations_counted()) {
      const AllocationCount count;
      backend.route(call);
      EXPECT_EQ(count.so_far(), 0);
    }
    const auto id_of = [&](int64_t t, int64_t j) {
      const int64_t at = t * ids.view.stride[0] + j;
      return p.i64 ? static_cast<const int64_t*>(ids.view.data)[at]
                   : static_cast<const int32_t*>(ids.view.data)[at];
    };
    std::vector<int64_t> kept(static_cast<size_t>(p.experts), 0);
    for (int64_t t = 0; t < p.tokens; ++t) {
      std::vector<double> exact(static_cast<size_t>(p.experts));
      double magnitude = 1.0;
      for (int64_t e = 0; e < p.experts; ++e) {
        double sum = 0;
        double terms = 0;
        for (int64_t h = 0; h < kHidden && !given; ++h) {
          sum += double{x.get(t, h)} * weight.get(e, h);
          terms += std::fabs(double{x.get(t, h)} * weight.get(e, h));
        }
        exact[static_cast<size_t>(e)] = given ? logits.get(t, e) : sum;
        magnitude = std::max(magnitude, terms);
      }
      std::vector<int64_t> expected(static_cast<size_t>(slots));
      std::vector<double> expected_weights(static_cast<size_t>(slots));
      double gap = 0;
      route_token_f64(call.router, exact, expected, expected_weights, &gap);
      // fp32 dot products may swap experts closer than their rounding errors; such tokens are not judged.
      const double error = given ? 0.0 : (kHidden + 1) * 0x1p-24 * magnitude;
      bool close = !given && gap <= 2 * error;
      for (size_t a = 0; a + 1 < static_cast<size_t>(p.top_k); ++a) {
        const double la = exact[static_cast<size_t>(expected[a])];
        const double lb = exact[static_cast<size_t>(expected[a + 1])];
        if (!given && std::fabs(la - lb) <= 2 * error) close = true;
      }
      if (close) continue;
      for (int64_t j = 0; j < slots; ++j) {
        int64_t id = expected[static_cast<size_t>(j)];
        double w = expected_weights[static_cast<size_t>(j)];
        if (p.capacity > 0 && id < p.experts && ++kept[static_cast<size_t>(id)] > p.capacity) {
          id = -1;
          w = 0;
        }
        EXPECT_EQ(id_of(t, j), id) << t << " " << j;
        // fp32 softmax or sigmoid: one rounding per addition of the normalisation and a few per value; a
        // logit that is off by `error` moves a weight (<= 1) by at most twice that.
        const double bound = static_cast<double>(p.experts + 16) * 0x1p-24 + 2 * error;
        EXPECT_NEAR(weights.get(t, j), w, bound) << t << " " << j;
      }
    }
  }
}

TEST(CpuRouteErrors, WorkspaceTooSmall) {
  Backend& backend = cpu_backend();
  ramp_router_config config = ramp_router_config_init();
  config.top_k = 2;
  RouteCall call;
  call.router = check_router(config, 8);
  OwnedTensor logits(RAMP_F32, {3, 8});
  OwnedTensor ids(RAMP_I32, {3, 2});
  OwnedTensor weights(RAMP_F32, {3, 2});
  call.logits = logits.view;
  call.ids = ids.view;
  call.weights = weights.view;
  try {
    backend.route(call);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_WORKSPACE_TOO_SMALL);
  }
}

}  // namespace
}  // namespace ramp::core::test
