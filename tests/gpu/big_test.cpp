// Real sizes on the GPU: every model's own H and I, a whole DeepSeek-V3 layer at T = 8192 (offsets beyond 32
// bits), OLMoE at T = 8192 in every format; and what many calls leave behind.
//
// Weights are generated on the device (the same bits as on the host). Results: all rows of the fp32 kernels
// against the fp64 kernels on the device, and a few tokens against the fp64 checker on the host, which makes
// the experts of those tokens itself.
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/support.hpp"
#include "routing/workload.hpp"

namespace ramp::core::test {
namespace {

struct BigSpec {
  ModelShape model;
  ramp_format format = RAMP_FORMAT_FP8_BLOCK;
  int64_t tokens = 32;
  std::string routing = "zipf:1.2";
  uint64_t seed = 1;
};

// A layer of real size: weights on the device, inputs on both sides.
class BigLayer {
 public:
  explicit BigLayer(const BigSpec& spec)
      : spec_(spec),
        recipe_(make_synthetic_recipe(spec.model, spec.format, RAMP_ACTIVATION_SILU_AND_MUL,
                                      {spec.seed, true, all_cores()})),
        storage_(cli::fill_on_device(gpu(), recipe_)),
        x_(RAMP_BF16, {spec.tokens, spec.model.hidden}),
        ids_(RAMP_I32, {spec.tokens, spec.model.top_k}),
        weights_(RAMP_F32, {spec.tokens, spec.model.top_k}) {
    storage_.desc.ownership = RAMP_BORROW;  // the handles below share it
    fill_activations(x_.view.data, RAMP_BF16, spec.tokens, spec.model.hidden, spec.seed, all_cores());
    const Routing r = make_routing(parse_workload(spec.routing), spec.model.experts, spec.model.top_k,
                                   spec.tokens, spec.seed);
    std::copy(r.ids.begin(), r.ids.end(), static_cast<int32_t*>(ids_.view.data));
    std::copy(r.weights.begin(), r.weights.end(), static_cast<float*>(weights_.view.data));
  }

  // y [T, H] of a kernel family.
  [[nodiscard]] OwnedTensor run(const std::string& isa, ramp_dtype y_dtype, ramp_determinism mode) {
    ramp_context* const context = gpu(isa);
    ramp_weights* handle = nullptr;
    require(ramp_weights_create(context, &storage_.desc, nullptr, &handle));
    const WeightsPtr w(handle);
    note_arithmetic(context, handle);
    OwnedTensor y(y_dtype, {spec_.tokens, spec_.model.hidden});
    const OnDevice dx(context, x_);
    const OnDevice di(context, ids_);
    const OnDevice dw(context, weights_);
    const OnDevice dy(context, y);
    uint64_t bytes = 0;
    require(ramp_expert_block_workspace(context, handle, spec_.tokens, spec_.model.top_k, &bytes));
    const DeviceBuffer scratch(context, bytes);
    ramp_expert_block_args a = ramp_expert_block_args_init();
    a.weights = handle;
    a.determinism = mode;
    a.x = dx.view();
    a.topk_ids = di.view();
    a.topk_weights = dw.view();
    a.y = dy.view();
    require(ramp_expert_block(context, &a, scratch.data(), scratch.bytes(), nullptr));
    memory(context).synchronize_all();
    dy.download();
    EXPECT_TRUE(dy.guard_intact());
    EXPECT_TRUE(scratch.guard_intact());
    return y;
  }

  // These tokens of y against fp64 on the host.
  void expect_right(const OwnedTensor& y, const std::vector<int64_t>& tokens) {
    const int64_t k = spec_.model.top_k;
    std::vector<int64_t> experts;
    std::map<int32_t, int32_t> place;
    OwnedTensor ids(RAMP_I32, {spec_.tokens, k});  // only the rows of `tokens` are read
    const auto* const from = static_cast<const int32_t*>(ids_.view.data);
    for (const int64_t t : tokens) {
      for (int64_t j = 0; j < k; ++j) {
        const auto [at, fresh] = place.emplace(from[t * k + j], static_cast<int32_t>(experts.size()));
        if (fresh) experts.push_back(from[t * k + j]);
        static_cast<int32_t*>(ids.view.data)[t * k + j] = at->second;
      }
    }
    const SyntheticWeights values = make_synthetic_experts(recipe_, experts, all_cores());
    const std::unique_ptr<ExpertWeights> w = make_expert_weights(values.desc, {});
    BlockCall call;
    call.weights = w.get();
    call.tokens = spec_.tokens;
    call.top_k = k;
    call.x = with_strides(x_.view);
    call.ids = with_strides(ids.view);
    call.topk_weights = with_strides(weights_.view);
    call.y = with_strides(y.view);
    CheckOptions options = check_options();
    options.tokens = tokens;
    const CheckResult result = check_block(call, options);
    EXPECT_TRUE(result.ok()) << result.text();
  }

 private:
  BigSpec spec_;
  SyntheticRecipe recipe_;
  cli::DeviceWeights storage_;
  OwnedTensor x_, ids_, weights_;
};

// How far a row of fp32 sums may be from the same row in fp64, relative to its norm. A sum of n terms is off
// by 6 * 2^-24 * sqrt(n) of its spread (numerics.md 3.1, six standard deviations), h = act(gate) * up by
// three times that. The requantised h then differs in the elements that lie that near to a rounding
// boundary: boundaries are at least 2^-(m+1) apart (relative), so at most a share 2 * delta * 2^(m+1) of the
// elements, each by at most 2^-m of itself. The worst of all rows counts: lambda = share * I flips are
// expected in a row, lambda + 6 sqrt(lambda) + 6 allowed (six standard deviations of a Poisson law, and its
// tail for small lambda), of elements whose mean fourth power is 9 times that of the mean square (a product
// of two normal numbers), hence the 3. f32 has no such step.
double row_bound(ramp_format format, const ModelShape& m) {
  const double sum1 = 6 * 0x1p-24 * std::sqrt(static_cast<double>(m.hidden));
  const double sum2 = 6 * 0x1p-24 * std::sqrt(static_cast<double>(m.intermediate));
  const double delta = 3 * sum1;
  if (format == RAMP_FORMAT_F32) return delta + sum2 + 0x1p-20;
  const int mantissa = is_fp8(format) ? 3 : format == RAMP_FORMAT_BF16 ? 7 : 10;
  const double share = std::min(1.0, 2 * delta * std::exp2(mantissa + 1));
  const auto elements = static_cast<double>(m.intermediate);
  const double lambda = share * elements;
  const double flips = std::min(elements, lambda + 6 * std::sqrt(lambda) + 6);
  return delta + sum2 + 3 * std::sqrt(flips / elements) * std::exp2(-mantissa) + 0x1p-20;
}

// Largest ||a - b|| / ||b|| over the rows; infinity where a row is not finite.
double worst_row(const OwnedTensor& a, const OwnedTensor& b, int64_t* row) {
  const int64_t rows = a.view.shape[0];
  const int64_t columns = a.view.shape[1];
  std::vector<double> worst(static_cast<size_t>(rows));
  all_cores()(rows, [&](int64_t r) {
    const auto* const p = static_cast<const float*>(a.view.data) + r * columns;
    const auto* const q = static_cast<const float*>(b.view.data) + r * columns;
    double difference = 0;
    double norm = 0;
    for (int64_t c = 0; c < columns; ++c) {
      const double d = static_cast<double>(p[c]) - static_cast<double>(q[c]);
      difference += d * d;
      norm += static_cast<double>(q[c]) * static_cast<double>(q[c]);
    }
    const double ratio = std::sqrt(difference / norm);
    worst[static_cast<size_t>(r)] = std::isfinite(ratio) ? ratio : INFINITY;
  });
  const auto at = std::max_element(worst.begin(), worst.end());
  *row = at - worst.begin();
  return *at;
}

void compare_families(const BigSpec& spec, const std::vector<ramp_determinism>& modes) {
  BigLayer layer(spec);
  const OwnedTensor exact = layer.run("plain_f64", RAMP_F32, RAMP_REPEATABLE);
  const double bound = row_bound(spec.format, spec.model);
  for (const ramp_determinism mode : modes) {
    for (const std::string isa : {"plain", ""}) {
      SCOPED_TRACE(testing::Message() << "kernels '" << isa << "', mode " << mode);
      const OwnedTensor y = layer.run(isa, RAMP_F32, mode);
      int64_t row = 0;
      const double worst = worst_row(y, exact, &row);
      // Tensor-core kernels leave expert rows as bf16 (but for fp16): at most half a spacing, 2^-9, per
      // element of rows that add up like independent ones; twice that is allowed.
      const bool bf16_rows = isa.empty() && spec.format != RAMP_FORMAT_F32 && spec.format != RAMP_FORMAT_F16;
      EXPECT_LE(worst, bound + (bf16_rows ? 0x1p-8 : 0.0)) << "row " << row;
      layer.expect_right(y, spread_tokens(spec.tokens, 2));
    }
  }
  layer.expect_right(exact, spread_tokens(spec.tokens, 1));
}

TEST(GpuBig, DeepSeekV3InFp8At8192) {
  compare_families({parse_model("dsv3"), RAMP_FORMAT_FP8_BLOCK, 8192, "uniform"},
                   {RAMP_REPEATABLE, RAMP_FAST});
}
TEST(GpuBig, DeepSeekV3InBf16At8192) {
  compare_families({parse_model("dsv3"), RAMP_FORMAT_BF16, 8192, "zipf:1.2"}, {RAMP_REPEATABLE});
}

class GpuOlmoe : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuOlmoe, testing::ValuesIn(kAllFormats),
                         [](const auto& p) { return std::string(format_name(p.param)); });
TEST_P(GpuOlmoe, At8192) {
  compare_families({parse_model("olmoe"), GetParam(), 8192, "zipf:1.2"}, {RAMP_REPEATABLE, RAMP_FAST});
}

class GpuModels : public testing::TestWithParam<ModelShape> {};
INSTANTIATE_TEST_SUITE_P(Known, GpuModels, testing::ValuesIn(known_models().begin(), known_models().end()),
                         [](const auto& p) {
                           std::string name = p.param.name;
                           for (char& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
                           return name;
                         });
TEST_P(GpuModels, RealSizesAgreeWithTheReference) {
  for (const ramp_format format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16}) {
    for (const int64_t tokens : {1, 70}) {
      SCOPED_TRACE(testing::Message() << format_name(format) << ", T = " << tokens);
      BigLayer layer({GetParam(), format, tokens});
      layer.expect_right(layer.run("", RAMP_BF16, RAMP_REPEATABLE), spread_tokens(tokens, 2));
    }
  }
}

// ---------------------------------------------------------------- what is left behind

// Resident memory of this process, bytes.
int64_t resident() {
  malloc_trim(0);
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0;
  int64_t in_memory = 0;
  file >> pages >> in_memory;
  return in_memory * 4096;
}

TEST(GpuLeaks, TenThousandCallsLeaveNothing) {
  CaseSpec s;
  s.tokens = 4;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  ramp_expert_block_args a = block.args(w.handle.get());
  a.counters = {};
  const auto calls = [&](int count) {
    for (int i = 0; i < count; ++i) {
      void* const workspace = i % 2 == 0 ? scratch.data() : nullptr;
      require(ramp_expert_block(gpu(), &a, workspace, i % 2 == 0 ? scratch.bytes() : 0, nullptr));
    }
    memory(gpu()).synchronize_all();
  };
  calls(500);
  const uint64_t device_before = memory(gpu()).free_bytes();
  const int64_t host_before = resident();
  calls(10000);
  EXPECT_EQ(memory(gpu()).free_bytes(), device_before);
  // 10,000 calls that each lost 16 bytes (the least that an allocator gives) would be 160 KB; pages that the
  // driver takes meanwhile are allowed for up to 128 KB.
  EXPECT_LE(resident() - host_before, 128 << 10);
}

TEST(GpuLeaks, ContextsAndWeightsComeAndGo) {
  CaseSpec s;
  s.tokens = 4;
  BlockCase c(s);
  const ContextPtr keep = make_gpu_context();  // so that the device's primary context stays
  const auto rounds = [&](int count) {
    for (int i = 0; i < count; ++i) {
      const ContextPtr context = make_gpu_context();
      const GpuWeights w = make_gpu_weights(context.get(), c.synthetic, RAMP_COPY, true);
      GpuBlock block(c, context.get());
      block.run(w.handle.get(), nullptr, true);
    }
  };
  rounds(5);
  const uint64_t device_before = memory(keep.get()).free_bytes();
  const int64_t host_before = resident();
  rounds(50);
  EXPECT_EQ(memory(keep.get()).free_bytes(), device_before);
  // A round loads some 500 KB of cubins; 50 rounds that kept one kernel's 20 KB each would be 1 MB. What the
  // driver's own pools may grow by: 8 MB.
  EXPECT_LE(resident() - host_before, 8 << 20);
}

}  // namespace
}  // namespace ramp::core::test
