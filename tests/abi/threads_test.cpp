// Concurrency as the header promises it; run under ThreadSanitizer (label "threads"). Models are exact, so
// every thread knows its result to the last bit.
#include <atomic>
#include <thread>

#include "abi/support.hpp"

namespace abi_test {
namespace {

// Repetitions per thread: enough for calls to overlap, few enough for the sanitizer's factor of ten.
constexpr int kRounds = 12;

template <typename Body>
void on_threads(int count, Body body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& t : threads) t.join();
}

class Threads : public testing::TestWithParam<ramp_backend> {
 protected:
  Context context = make_context(GetParam(), 2);
  Model model{RAMP_FORMAT_BF16, RAMP_ACTIVATION_RELU2, 5, 64, 96, 3, true};
  Weights weights = make_weights(context, model.desc(), true);
};

TEST_P(Threads, OneContextOwnWorkspaces) {
  uint64_t bytes = 0;
  ASSERT_EQ(ramp_expert_block_workspace(context.get(), weights.get(), 32, 2, &bytes), RAMP_OK);
  on_threads(3, [&](int id) {
    const Scratch scratch(bytes);
    for (int round = 0; round < kRounds; ++round) {
      Call c(model, weights.get(), 1 + (7 * round + id) % 32, 2, static_cast<uint64_t>(100 * id + round),
             true);
      ASSERT_EQ(ramp_expert_block(context.get(), &c.args, scratch.data(), bytes, nullptr), RAMP_OK)
          << ramp_last_error();
      expect_equal(c.y, exact_combined(model, c));
    }
  });
}

TEST_P(Threads, OneContextItsOwnWorkspaceIsSerialised) {
  on_threads(3, [&](int id) {
    for (int round = 0; round < kRounds;
         ++round) {  // growing and shrinking: the workspace is replaced meanwhile
      Call c(model, weights.get(), 1 + (11 * round + 5 * id) % 40, 2, static_cast<uint64_t>(100 * id + round),
             true);
      ASSERT_EQ(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
      expect_equal(c.y, exact_combined(model, c));
    }
  });
}

TEST_P(Threads, MixedCallsOnOneContext) {
  std::atomic<int> names{0};
  on_threads(4, [&](int id) {
    for (int round = 0; round < kRounds; ++round) {
      if (id == 0) {  // creating, packing and destroying other weights
        const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 2 + round % 3, 32, 32, 9, true);
        const Weights w = make_weights(context, m.desc(), true);
        Call c(m, w.get(), 3, 1, 4, true);
        ASSERT_EQ(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_OK)
            << ramp_last_error();
        expect_equal(c.y, exact_combined(m, c));
      } else if (id == 1) {  // routing
        Array logits(RAMP_F32, {9, 5});
        for (int64_t i = 0; i < logits.size(); ++i) logits.set(i, static_cast<float>((i * 7) % 5));
        Array ids(RAMP_I32, {9, 1});
        Array w(RAMP_F32, {9, 1});
        const ramp_tensor l = logits.view();
        const ramp_tensor i = ids.view();
        const ramp_tensor p = w.view();
        ramp_router_config r = ramp_router_config_init();
        r.top_k = 1;
        ASSERT_EQ(ramp_route(context.get(), &r, &l, &i, &p, nullptr), RAMP_OK) << ramp_last_error();
        for (int64_t t = 0; t < 9; ++t) {
          for (int64_t e = 0; e < 5; ++e)
            ASSERT_LE(logits.get(t * 5 + e), logits.get(t * 5 + ids.get_int(t)));
        }
      } else if (id == 2) {  // queries
        for (int32_t n = 0; ramp_config_name(context.get(), weights.get(), n) != nullptr; ++n) names += 1;
        uint64_t bytes = 0;
        ASSERT_EQ(ramp_expert_block_workspace(context.get(), weights.get(), round, 2, &bytes), RAMP_OK);
        ramp_context_info info = ramp_context_info_init();
        ASSERT_EQ(ramp_context_get_info(context.get(), &info), RAMP_OK);
      } else {
        Call c(model, weights.get(), 8, 2, static_cast<uint64_t>(round), true);
        c.args.config = 1;
        ASSERT_EQ(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_OK)
            << ramp_last_error();
        expect_equal(c.y, exact_combined(model, c));
      }
    }
  });
  EXPECT_GT(names.load(), 0);
}

TEST_P(Threads, DifferentContextsShareWeights) {
  on_threads(3, [&](int id) {
    const Context own = make_context(GetParam(), 2);
    for (int round = 0; round < kRounds / 2; ++round) {
      Call c(model, weights.get(), 10, 2, static_cast<uint64_t>(id), true);
      ASSERT_EQ(ramp_expert_block(own.get(), &c.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
      expect_equal(c.y, exact_combined(model, c));
    }
  });
}

TEST_P(Threads, ErrorsStayWithTheirThread) {
  on_threads(3, [&](int id) {
    for (int round = 0; round < kRounds; ++round) {
      Call c(model, weights.get(), 4, 2, 1, true);
      c.args.config = 1000000 + id;
      ASSERT_EQ(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT);
      ASSERT_NE(std::string(ramp_last_error()).find(std::to_string(1000000 + id)), std::string::npos)
          << ramp_last_error();
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, Threads, testing::Values(RAMP_BACKEND_REFERENCE, RAMP_BACKEND_CPU),
                         [](const auto& info) { return std::string(backend_name(info.param)); });

}  // namespace
}  // namespace abi_test
