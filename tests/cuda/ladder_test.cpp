// examples/ladder without a GPU: every rung compiles and keeps its registers, the program says in one line
// what is missing, and its check calls planted faults wrong.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "backend/backend.hpp"
#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "cuda/support.hpp"
#include "ladder/check.hpp"
#include "weights/quantize.hpp"

namespace ramp::cuda_test {
namespace {

TEST(Ladder, EveryRungCompilesWithoutSpills) {
  if (std::getenv("RAMP_TEST_REDUCED") != nullptr)  // NOLINT(concurrency-mt-unsafe)
    GTEST_SKIP() << "RAMP_TEST_REDUCED: the compiler is not what sanitizers watch";
  int code = -1;
  const std::string text = output_of("CUDA_CACHE_DISABLE=1 '" RAMP_LADDER "' --compile-only 2>&1", &code);
  EXPECT_EQ(code, 0) << text;  // 1 with spills, 2 with warnings or errors
  for (const char* const rung :
       {"floor, 4 blocks", "1 reference", "2 wgmma", "3 ring", "4 swap-AB", "5 width per expert",
        "up to 8, no split", "6 cluster split, 2", "6 cluster split, 4"})
    EXPECT_NE(text.find(rung), std::string::npos) << rung << "\n" << text;
  EXPECT_EQ(text.find("cached"), std::string::npos) << text;
}

TEST(Ladder, OneLineWithoutGpu) {
  const Scratch scratch;
  write_file(scratch.path("libcuda.so.1"), "no library");
  int code = -1;
  const std::string text =
      output_of("LD_LIBRARY_PATH='" + scratch.directory() + "' '" RAMP_LADDER "' 2>&1", &code);
  EXPECT_EQ(code, 2);
  EXPECT_TRUE(text.starts_with("ladder: CUDA driver: got no libcuda.so.1 (")) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
}

TEST(Ladder, BadOptions) {
  for (const auto& [options, line] :
       {std::pair{"--tokens 0", "ladder: --tokens: got '0', expected an integer from 1 to 8192"},
        {"--tokens 1,", "ladder: --tokens: got '', expected an integer from 1 to 8192"},
        {"--model", "ladder: --model: got nothing behind it, expected a value"},
        {"--rungs 3", "ladder: ladder: got '--rungs', expected one of its options; see --help"},
        {"--compile-only --kernels /nowhere", "ladder: /nowhere/params.hpp"}}) {
    int code = -1;
    const std::string text = output_of(std::string("'" RAMP_LADDER "' ") + options + " 2>&1", &code);
    EXPECT_EQ(code, 2) << options;
    EXPECT_TRUE(text.starts_with(line)) << text;
  }
}

// One row of GEMM1 with random codes, and h as plain fp32 sums give it.
struct Row {
  static constexpr int64_t kHidden = 512, kIntermediate = 256;
  std::vector<uint8_t> x, w;
  std::vector<float> x_scale, w_scale;
  std::vector<ladder::Sample> samples;

  Row()
      : x(kHidden),
        w(2 * kIntermediate * kHidden),
        x_scale(kHidden / 128),
        w_scale(2 * kIntermediate / 128 * 4) {
    core::Rng random(7);
    for (uint8_t& v : x) v = core::f32_to_e4m3(static_cast<float>(100 * random.normal()));
    for (uint8_t& v : w) v = core::f32_to_e4m3(static_cast<float>(100 * random.normal()));
    for (float& v : x_scale) v = static_cast<float>(0.005 + 0.01 * random.unit());
    for (float& v : w_scale) v = static_cast<float>(0.0003 + 0.0006 * random.unit());
    ladder::add_samples({0, x.data(), x_scale.data(), w.data(), w_scale.data(), kHidden, kIntermediate}, 0, 1,
                        samples);
  }
  [[nodiscard]] float dot(int64_t row, int64_t depth = kHidden) const {
    float sum = 0;
    for (int64_t k = 0; k < depth; ++k)
      sum += core::e4m3_to_f32(x[static_cast<size_t>(k)]) * x_scale[static_cast<size_t>(k / 128)] *
             (core::e4m3_to_f32(w[static_cast<size_t>(row * kHidden + k)]) *
              w_scale[static_cast<size_t>(row / 128 * 4 + k / 128)]);
    return sum;
  }
  using Pair = std::pair<float, float>;
  [[nodiscard]] ladder::Verdict judged(const std::function<Pair(int64_t)>& gate_up,
                                       int64_t poisoned = 0) const {
    std::vector<uint16_t> h(kIntermediate);
    for (int64_t c = 0; c < kIntermediate; ++c) {
      const auto [g, u] = gate_up(c);
      h[static_cast<size_t>(c)] = core::f32_to_bf16(g / (1.0F + std::exp(-g)) * u);
    }
    for (int64_t c = 0; c < poisoned; ++c) h[static_cast<size_t>(c)] = 0xffff;
    return ladder::judge(samples, h, kHidden, kIntermediate, core::kFp8TensorUnit);
  }
};

TEST(Ladder, CheckAcceptsFp32AndCallsFaultsWrong) {
  const Row r;
  const auto at = [&](int64_t c) { return Row::Pair{r.dot(c), r.dot(Row::kIntermediate + c)}; };
  const ladder::Verdict right = r.judged(at);
  EXPECT_TRUE(right.ok()) << right.ratio;
  EXPECT_LT(right.relative_error, 0x1p-8);
  const auto wrong = [&](const char* what, const std::function<Row::Pair(int64_t)>& f) {
    EXPECT_FALSE(r.judged(f).ok()) << what;
  };
  wrong("gate and up swapped", [&](int64_t c) { return Row::Pair{at(c).second, at(c).first}; });
  wrong("columns exchanged", [&](int64_t c) { return at(c ^ 1); });
  wrong("last 32 of the depth dropped", [&](int64_t c) {
    return Row::Pair{r.dot(c, Row::kHidden - 32), r.dot(Row::kIntermediate + c, Row::kHidden - 32)};
  });
  wrong("up off by 5% in one column", [&](int64_t c) {
    return Row::Pair{at(c).first, at(c).second * (c == 77 ? 1.05F : 1.0F)};
  });
  wrong("a NaN", [&](int64_t c) { return Row::Pair{at(c).first, c == 5 ? NAN : at(c).second}; });
  EXPECT_EQ(r.judged(at, 3).unwritten, 3);
  EXPECT_FALSE(r.judged(at, 3).ok());
}

}  // namespace
}  // namespace ramp::cuda_test
