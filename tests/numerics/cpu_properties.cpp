// Properties that hold exactly, bit for bit: the schedule, the tiles, the packing, the neighbours and their
// order leave no trace in a token's result.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "numerics/cpu_support.hpp"

namespace ramp::core::test {
namespace {

constexpr std::array kFormats = {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16,       RAMP_FORMAT_F16,
                                 RAMP_FORMAT_F32,       RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};

CaseSpec base_spec(ramp_format format) {
  CaseSpec s;
  s.format = format;
  s.activation = static_cast<ramp_activation>(static_cast<int>(format) % 4);
  s.tokens = 37;
  s.experts = 8;
  s.top_k = 3;
  s.hidden = 576;        // no multiple of the depth steps
  s.intermediate = 288;  // two scale groups and a short one
  s.y_dtype = RAMP_F32;
  s.ids = Ids::kSkewed;
  s.seed = 11;
  return s;
}

class CpuBits : public testing::TestWithParam<ramp_format> {
 protected:
  // y bits of token t, when y is [T, H] f32 without gaps.
  static std::vector<uint8_t> token_bits(const std::vector<uint8_t>& y, int64_t hidden, int64_t t) {
    const auto row = static_cast<std::ptrdiff_t>(hidden * 4);
    return {y.begin() + t * row, y.begin() + (t + 1) * row};
  }
};
INSTANTIATE_TEST_SUITE_P(Formats, CpuBits, testing::ValuesIn(kFormats),
                         [](const auto& p) { return std::string(format_name(p.param)); });

// Runs the tasks of a loop in a random order, on the calling thread, under changing worker indices.
struct ShufflingExecutor {
  uint64_t seed = 1;
  ramp_executor get(int32_t workers) {
    return {workers,
            [](void* user, int64_t tasks, ramp_task_fn fn, void* arg) {
              auto& self = *static_cast<ShufflingExecutor*>(user);
              std::vector<int64_t> order(static_cast<size_t>(tasks));
              std::iota(order.begin(), order.end(), int64_t{0});
              Rng rng(self.seed++);
              for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
              for (const int64_t t : order) fn(arg, t, static_cast<int32_t>(rng.below(4)));
            },
            this};
  }
};

TEST_P(CpuBits, DoNotDependOnThreadsOrSchedule) {
  for (const ramp_output output : {RAMP_OUTPUT_COMBINED, RAMP_OUTPUT_PER_SLOT}) {
    CaseSpec spec = base_spec(GetParam());
    spec.output = output;
    BlockCase c(spec);
    const auto w = make_held(c, Hold::kPackedCopy, cpu_backend());
    c.run(cpu_backend(), *w);
    const KernelConfig config =
        cpu_backend().choose(*w, c.histogram(), RAMP_REPEATABLE);  // the default depends on the workers
    c.run(cpu_backend(), *w, &config);
    const std::vector<uint8_t> expected = c.y_bits();
    for (const int32_t threads : {1, 3, 5, 16}) {
      for (int repeat = 0; repeat < 3; ++repeat) {
        c.run(cpu_backend("", threads), *w, &config);
        EXPECT_EQ(c.y_bits(), expected) << threads << " threads";
      }
    }
    ShufflingExecutor shuffling;
    const ramp_executor executor = shuffling.get(4);
    BackendOptions options;
    options.executor = &executor;
    const auto backend = make_backend(RAMP_BACKEND_CPU, options);
    for (int repeat = 0; repeat < 3; ++repeat) {
      c.run(*backend, *w, &config);
      EXPECT_EQ(c.y_bits(), expected) << "shuffled";
    }
  }
}

TEST_P(CpuBits, DoNotDependOnTilesOrPackingExceptForSplits) {
  const CaseSpec spec = base_spec(GetParam());
  BlockCase c(spec);
  Backend& backend = cpu_backend();
  const ConfigList configs = backend.configs({"", spec.experts, spec.top_k, spec.hidden, spec.intermediate},
                                             spec.format, spec.activation, false);
  std::vector<uint8_t> expected;
  int splits = 0;
  for (const Hold hold : {Hold::kPackedCopy, Hold::kPackedInPlace, Hold::kPackedBorrow, Hold::kBorrow}) {
    const auto w = make_held(c, hold, backend);
    for (size_t i = 0; i < configs.legal.size(); ++i) {
      // All configs on the packed copy (a fifth of them in sanitized builds); an eighth of them on the
      // others.
      if (hold != Hold::kPackedCopy && (i + static_cast<size_t>(hold)) % 8 != 0) continue;
      if (hold == Hold::kPackedCopy && kSanitized && i % 5 != 0) continue;
      const KernelConfig& config = configs.legal[i];
      c.run(backend, *w, &config);
      if (config.split_k > 1) {
        ++splits;
        const std::vector<uint8_t> bits = c.y_bits();
        c.run(cpu_backend("", 5), *w, &config);
        EXPECT_EQ(c.y_bits(), bits) << config_name(config);
        if (splits % 6 == 1) {
          CheckOptions options = check_options();
          const std::vector<int64_t> tokens = sample_tokens(c, 3);
          options.tokens = tokens;
          const CheckResult result = c.check(options);
          EXPECT_TRUE(result.ok()) << config_name(config) << ": " << result.text();
        }
        continue;
      }
      if (expected.empty()) {
        expected = c.y_bits();
        const CheckResult result = c.check(check_options());
        EXPECT_TRUE(result.ok()) << result.text();
      }
      EXPECT_EQ(c.y_bits(), expected) << config_name(config) << " " << hold_name(hold);
    }
  }
  EXPECT_GT(splits, 0);
}

// Loops and how many tasks they have, as the executor sees them; runs them in order.
struct CountingExecutor {
  std::vector<int64_t> loops;
  ramp_executor get() {
    return {2,
            [](void* user, int64_t tasks, ramp_task_fn fn, void* arg) {
              static_cast<CountingExecutor*>(user)->loops.push_back(tasks);
              for (int64_t t = 0; t < tasks; ++t) fn(arg, t, 0);
            },
            this};
  }
};

TEST(CpuConfigs, GiveTheTilesThatTheySay) {
  CaseSpec spec = base_spec(RAMP_FORMAT_BF16);
  spec.activation = RAMP_ACTIVATION_SILU_AND_MUL;
  spec.tokens = 20;
  spec.experts = spec.top_k = 2;  // 20 rows for each of two experts
  CountingExecutor counting;
  const ramp_executor executor = counting.get();
  BackendOptions options;
  options.executor = &executor;
  const auto backend = make_backend(RAMP_BACKEND_CPU, options);
  BlockCase c(spec);
  const auto w = make_held(c, Hold::kPackedCopy, *backend);
  for (const char* name :
       {"m8_n64_k128", "m4_n64_k128", "m8_n32_k128", "m8_n64_k128_sk4", "m16_n128_k512_row"}) {
    const KernelConfig config = parse_config(name);
    counting.loops.clear();
    c.run(*backend, *w, &config);
    const auto slices = [&](int64_t rows) { return (rows + config.tile_n - 1) / config.tile_n; };
    const int64_t m_tiles = 2 * ((20 + config.tile_m - 1) / config.tile_m);
    ASSERT_GE(counting.loops.size(), 3U) << name;
    EXPECT_EQ(counting.loops[0], m_tiles * slices(2 * spec.intermediate) * config.split_k) << name;
    // GEMM2: as many slices, of whole panels.
    const int64_t panels = spec.hidden / 32;
    const int64_t per_slice = (panels + slices(2 * spec.intermediate) - 1) / slices(2 * spec.intermediate);
    EXPECT_EQ(counting.loops[config.split_k > 1 ? 2 : 1], m_tiles * ((panels + per_slice - 1) / per_slice))
        << name;
  }
}

TEST_P(CpuBits, IgnoreSplitsInBatchInvariantMode) {
  CaseSpec spec = base_spec(GetParam());
  spec.tokens = 2;
  spec.determinism = RAMP_BATCH_INVARIANT;
  Backend& backend = cpu_backend();
  const KernelConfig plain = parse_config("m4_n64_k128");
  const KernelConfig split = parse_config("m4_n64_k128_sk4");
  BlockCase invariant(spec);
  const auto w = make_held(invariant, Hold::kPackedCopy, backend);
  invariant.run(backend, *w, &plain);
  const std::vector<uint8_t> expected = invariant.y_bits();
  invariant.run(backend, *w, &split);
  EXPECT_EQ(invariant.y_bits(), expected);
  // Wide intermediates show the other order of summation; narrow ones may round it away.
  if (GetParam() != RAMP_FORMAT_F32) return;
  spec.determinism = RAMP_REPEATABLE;
  BlockCase repeatable(spec);
  const auto w2 = make_held(repeatable, Hold::kPackedCopy, backend);
  repeatable.run(backend, *w2, &split);
  EXPECT_NE(repeatable.y_bits(), expected);
}

// The ISA levels with fused multiply-add do the same operations lane by lane.
TEST_P(CpuBits, AgreeBetweenIsaLevelsWithFma) {
  if (isa_levels().size() < 3) GTEST_SKIP() << "this machine has fewer than two levels with fma";
  BlockCase c(base_spec(GetParam()));
  const auto w = make_held(c, Hold::kPackedCopy, cpu_backend());
  c.run(cpu_backend("avx512"), *w);
  const std::vector<uint8_t> expected = c.y_bits();
  c.run(cpu_backend("avx2"), *w);
  EXPECT_EQ(c.y_bits(), expected);
}

// 1..129 rows of one expert, alone or with others: row t never changes. (Batch-invariant mode; the chosen
// config changes on the way.)
TEST_P(CpuBits, DoNotDependOnTheNumberOfRows) {
  CaseSpec spec = base_spec(GetParam());
  spec.experts = 1;
  spec.top_k = 1;
  spec.tokens = 129;
  spec.hidden = 160;
  spec.intermediate = 96;
  spec.determinism = RAMP_BATCH_INVARIANT;
  for (const std::string& isa : isa_levels()) {
    Backend& backend = cpu_backend(isa);
    BlockCase c(spec);
    const auto w = make_held(c, Hold::kPackedCopy, backend);
    c.run(backend, *w);
    const std::vector<uint8_t> expected = c.y_bits();
    const CheckResult result = c.check(check_options());
    EXPECT_TRUE(result.ok()) << result.text();
    const GuardedWorkspace workspace(backend.block_workspace(*w, spec.tokens, 1));
    for (int64_t rows = 1; rows < spec.tokens; ++rows) {
      c.y.poison();
      BlockCall call = c.call(*w);
      call.tokens = call.x.shape[0] = call.ids.shape[0] = call.topk_weights.shape[0] = call.y.shape[0] = rows;
      call.workspace = workspace.data();
      call.workspace_bytes = workspace.bytes();
      backend.expert_block(call);
      const std::vector<uint8_t> bits = bytes_of(call.y);
      ASSERT_TRUE(std::equal(bits.begin(), bits.end(), expected.begin())) << rows << " rows, " << isa;
    }
  }
}

TEST_P(CpuBits, DoNotDependOnNeighbours) {
  CaseSpec spec = base_spec(GetParam());
  spec.tokens = 70;
  spec.determinism = RAMP_BATCH_INVARIANT;
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  c.run(backend, *w);
  const std::vector<uint8_t> expected = c.y_bits();
  const GuardedWorkspace workspace(backend.block_workspace(*w, 1, spec.top_k));
  for (int64_t t = 0; t < spec.tokens; t += 3) {
    BlockCall call = c.call(*w);
    for (ramp_tensor* part : {&call.x, &call.ids, &call.topk_weights, &call.y}) {
      part->data = static_cast<std::byte*>(part->data) +
                   t * part->stride[0] * dtype_bytes(static_cast<ramp_dtype>(part->dtype));
      part->shape[0] = 1;
    }
    call.tokens = 1;
    call.workspace = workspace.data();
    call.workspace_bytes = workspace.bytes();
    backend.expert_block(call);
    EXPECT_EQ(bytes_of(call.y), token_bits(expected, spec.hidden, t)) << "token " << t << " alone";
  }
}

TEST_P(CpuBits, FollowTheTokensWhenTheirOrderChanges) {
  const CaseSpec spec = base_spec(GetParam());
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  c.run(backend, *w);
  const std::vector<uint8_t> expected = c.y_bits();
  BlockCase permuted(spec);
  const auto source = [&](int64_t t) { return (t * 11 + 5) % spec.tokens; };
  for (int64_t t = 0; t < spec.tokens; ++t) {
    for (int64_t h = 0; h < spec.hidden; ++h) permuted.x.set(t, h, c.x.get(source(t), h));
    for (int64_t j = 0; j < spec.top_k; ++j) {
      permuted.topk_weights.set(t, j, c.topk_weights.get(source(t), j));
      static_cast<int32_t*>(permuted.ids.view.data)[t * spec.top_k + j] =
          static_cast<const int32_t*>(c.ids.view.data)[source(t) * spec.top_k + j];
    }
  }
  permuted.run(backend, *w);
  const std::vector<uint8_t> bits = permuted.y_bits();
  for (int64_t t = 0; t < spec.tokens; ++t) {
    EXPECT_EQ(token_bits(bits, spec.hidden, t), token_bits(expected, spec.hidden, source(t))) << t;
  }
}

// Combined output is the sum of the per-slot rows: for k = 1 exactly, else within the roundings of the sum
// and of the rows (both fp32): (k + 1) units of the sum of magnitudes.
TEST_P(CpuBits, CombineThePerSlotRows) {
  for (const int64_t k : {1, 3}) {
    CaseSpec spec = base_spec(GetParam());
    spec.top_k = k;
    Backend& backend = cpu_backend();
    BlockCase combined(spec);
    spec.output = RAMP_OUTPUT_PER_SLOT;
    BlockCase slots(spec);
    const auto w = make_held(combined, Hold::kPackedCopy, backend);
    combined.run(backend, *w);
    slots.run(backend, *w);
    const auto* rows = static_cast<const float*>(slots.y.view.data);
    for (int64_t t = 0; t < spec.tokens; ++t) {
      for (int64_t h = 0; h < spec.hidden; ++h) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t j = 0; j < k; ++j) {
          const double v = rows[(t * k + j) * spec.hidden + h];
          sum += v;
          magnitude += std::fabs(v);
        }
        const double bound = k == 1 ? 0.0 : static_cast<double>(k + 1) * 0x1p-24 * magnitude;
        ASSERT_NEAR(combined.y.get(t, h), sum, bound) << t << " " << h;
      }
    }
  }
}

// One NaN weight: exactly the tokens of that expert see NaN, the others keep their bits.
TEST_P(CpuBits, NaNWeightsPropagateAndStayWithTheirExpert) {
  CaseSpec spec = base_spec(GetParam());
  spec.activation = RAMP_ACTIVATION_SILU_AND_MUL;
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  {
    const auto w = make_held(c, Hold::kPackedCopy, backend);
    c.run(backend, *w);
  }
  const std::vector<uint8_t> expected = c.y_bits();
  const int64_t expert = 1;
  const int64_t at = expert * spec.hidden * spec.intermediate + 5 * spec.intermediate + 77;  // w2, row 5
  store_f32(c.synthetic.w2.data(), weight_dtype(spec.format), at, std::numeric_limits<float>::quiet_NaN());
  for (const Hold hold : {Hold::kPackedCopy, Hold::kBorrow}) {
    const auto w = make_held(c, hold, backend);
    c.run(backend, *w);
    const CheckResult result = c.check(check_options());
    EXPECT_TRUE(result.ok()) << result.text();
    int64_t affected = 0;
    for (int64_t t = 0; t < spec.tokens; ++t) {
      bool uses = false;
      for (int64_t j = 0; j < spec.top_k; ++j) {
        uses = uses || static_cast<const int32_t*>(c.ids.view.data)[t * spec.top_k + j] == expert;
      }
      affected += uses ? 1 : 0;
      EXPECT_EQ(std::isnan(c.y.get(t, 5)), uses) << t;
      EXPECT_FALSE(std::isnan(c.y.get(t, 6))) << t;
      if (!uses) {
        EXPECT_EQ(token_bits(c.y_bits(), spec.hidden, t), token_bits(expected, spec.hidden, t));
      }
    }
    EXPECT_GT(affected, 0);
    EXPECT_LT(affected, spec.tokens);
  }
}

TEST_P(CpuBits, NaNAndInfinityInXStayWithTheirToken) {
  CaseSpec spec = base_spec(GetParam());
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  c.run(backend, *w);
  const std::vector<uint8_t> expected = c.y_bits();
  c.x.set(4, 9, std::numeric_limits<float>::quiet_NaN());
  c.x.set(6, 0, std::numeric_limits<float>::infinity());
  c.run(backend, *w);
  const std::vector<uint8_t> bits = c.y_bits();
  for (int64_t t = 0; t < spec.tokens; ++t) {
    if (t == 4) {
      EXPECT_TRUE(std::isnan(c.y.get(t, 0)));
    } else if (t != 6) {
      EXPECT_EQ(token_bits(bits, spec.hidden, t), token_bits(expected, spec.hidden, t)) << t;
    }
  }
  CheckOptions options = check_options();
  const std::vector<int64_t> tokens = {3, 4, 5, 7};
  options.tokens = tokens;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

// With fewer active experts there are fewer weights to read: eight tokens that share 8 experts of 64 must be
// clearly faster than eight that spread over all 64. Best of several runs, and a wide margin (the ratio of
// bytes is 8; measured ratios on an idle machine are 3 to 6).
TEST(CpuLatency, FallsWhenFewerExpertsAreActive) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "timing means nothing under a sanitizer";
#endif
  CaseSpec spec;
  spec.tokens = 8;
  spec.experts = 64;
  spec.top_k = 8;
  spec.hidden = 1024;
  spec.intermediate = 512;
  spec.format = RAMP_FORMAT_BF16;
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  const GuardedWorkspace workspace(backend.block_workspace(*w, spec.tokens, spec.top_k));
  BlockCall call = c.call(*w);
  call.workspace = workspace.data();
  call.workspace_bytes = workspace.bytes();
  auto* ids = static_cast<int32_t*>(c.ids.view.data);
  const auto best = [&](bool spread) {
    for (int32_t i = 0; i < 64; ++i) ids[i] = spread ? i : i % 8;
    double us = 1e30;
    for (int run = 0; run < 15; ++run) {
      const auto start = std::chrono::steady_clock::now();
      backend.expert_block(call);
      us = std::min(
          us, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    return us;
  };
  double ratio = 0;
  for (int attempt = 0; attempt < 3 && ratio < 1.3; ++attempt) {
    const double many = best(true);
    const double few = best(false);
    ratio = std::max(ratio, many / few);
  }
  RecordProperty("ratio_permille", static_cast<int>(ratio * 1000));
  EXPECT_GE(ratio, 1.3);
}

}  // namespace
}  // namespace ramp::core::test
