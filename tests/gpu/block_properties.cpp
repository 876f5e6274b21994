// Properties that hold bit for bit on the GPU: repetition, neighbours and their order leave no trace; NaN and
// infinity stay with their token and expert; a captured graph follows its inputs.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/support.hpp"

namespace ramp::core::test {
namespace {

// tiles: what the stream kernels take, where the GPU has them; else odd sizes.
struct BitsCase {
  ramp_format format;
  bool tiles = false;
};
std::vector<BitsCase> bits_cases() {
  std::vector<BitsCase> list;
  for (const ramp_format f : kAllFormats) {
    list.push_back({f, false});
    if (f != RAMP_FORMAT_F32) list.push_back({f, true});
  }
  return list;
}

CaseSpec base_spec(const BitsCase& c) {
  CaseSpec s;
  s.format = c.format;
  s.activation = static_cast<ramp_activation>(static_cast<int>(c.format) % (c.tiles ? 3 : 4));
  s.tokens = 70;  // more rows than a tile holds, for the popular experts
  s.experts = 8;
  s.top_k = 3;
  s.hidden = c.tiles ? 640 : 576;        // no multiple of 128
  s.intermediate = c.tiles ? 384 : 288;  // two scale groups and a short one
  s.y_dtype = RAMP_F32;
  s.ids = Ids::kSkewed;
  s.seed = 11;
  return s;
}

// y bits of token t, when y is [T, H] f32 without gaps.
std::vector<uint8_t> token_bits(const std::vector<uint8_t>& y, int64_t hidden, int64_t t) {
  const auto row = static_cast<std::ptrdiff_t>(hidden * 4);
  return {y.begin() + t * row, y.begin() + (t + 1) * row};
}

void expect_right(BlockCase& c) {
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

class GpuBits : public testing::TestWithParam<BitsCase> {};
INSTANTIATE_TEST_SUITE_P(Formats, GpuBits, testing::ValuesIn(bits_cases()), [](const auto& p) {
  return std::string(format_name(p.param.format)) + (p.param.tiles ? "_tiles" : "");
});

TEST_P(GpuBits, RepeatThemselves) {
  for (const ramp_determinism mode : {RAMP_REPEATABLE, RAMP_BATCH_INVARIANT}) {
    CaseSpec spec = base_spec(GetParam());
    spec.determinism = mode;
    BlockCase c(spec);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    block.run(w.handle.get());
    const std::vector<uint8_t> expected = c.y_bits();
    expect_right(c);
    for (int i = 0; i < 5; ++i) {
      block.run(w.handle.get(), nullptr, i % 2 == 1);
      EXPECT_EQ(c.y_bits(), expected) << "run " << i;
    }
  }
}

TEST_P(GpuBits, FollowTheTokensWhenTheirOrderChanges) {
  const CaseSpec spec = base_spec(GetParam());
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock(c, gpu()).run(w.handle.get());
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
  GpuBlock(permuted, gpu()).run(w.handle.get());
  const std::vector<uint8_t> bits = permuted.y_bits();
  for (int64_t t = 0; t < spec.tokens; ++t)
    EXPECT_EQ(token_bits(bits, spec.hidden, t), token_bits(expected, spec.hidden, source(t))) << t;
}

TEST_P(GpuBits, DoNotDependOnNeighbours) {
  CaseSpec spec = base_spec(GetParam());
  spec.determinism = RAMP_BATCH_INVARIANT;
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  block.run(w.handle.get());
  const std::vector<uint8_t> expected = c.y_bits();
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  block.begin();
  for (int64_t t = 0; t < spec.tokens; t += 3) {
    ramp_expert_block_args a = block.args(w.handle.get());
    a.counters = {};
    for (ramp_tensor* const part : {&a.x, &a.topk_ids, &a.topk_weights, &a.y}) {
      *part = with_strides(*part);
      part->data = static_cast<std::byte*>(part->data) +
                   t * part->stride[0] * dtype_bytes(static_cast<ramp_dtype>(part->dtype));
      part->shape[0] = 1;
    }
    require(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), nullptr));
  }
  memory(gpu()).synchronize_all();
  block.y.download();
  const std::vector<uint8_t> bits = c.y_bits();
  for (int64_t t = 0; t < spec.tokens; t += 3)
    EXPECT_EQ(token_bits(bits, spec.hidden, t), token_bits(expected, spec.hidden, t)) << t << " alone";
}

TEST_P(GpuBits, FastModeKeepsTheBounds) {
  CaseSpec spec = base_spec(GetParam());
  spec.determinism = RAMP_FAST;
  spec.shared_dtype = RAMP_BF16;
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  for (int i = 0; i < 3; ++i) {
    block.run(w.handle.get());
    expect_right(c);
  }
}

// Combined output is the sum of the per-slot rows: for k = 1 exactly, else within the roundings of the sum
// and of the rows (both fp32): (k + 1) units of the sum of magnitudes.
TEST_P(GpuBits, CombineThePerSlotRows) {
  for (const int64_t k : {1, 3}) {
    CaseSpec spec = base_spec(GetParam());
    spec.top_k = k;
    BlockCase combined(spec);
    spec.output = RAMP_OUTPUT_PER_SLOT;
    BlockCase slots(spec);
    const GpuWeights w = make_gpu_weights(gpu(), combined.synthetic, RAMP_COPY, true);
    GpuBlock(combined, gpu()).run(w.handle.get());
    GpuBlock(slots, gpu()).run(w.handle.get());
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
TEST_P(GpuBits, NaNWeightsStayWithTheirExpert) {
  CaseSpec spec = base_spec(GetParam());
  spec.activation = RAMP_ACTIVATION_SILU_AND_MUL;
  BlockCase c(spec);
  {
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock(c, gpu()).run(w.handle.get());
  }
  const std::vector<uint8_t> expected = c.y_bits();
  const int64_t expert = 1;
  const int64_t at = expert * spec.hidden * spec.intermediate + 5 * spec.intermediate + 77;  // w2, row 5
  store_f32(c.synthetic.w2.data(), weight_dtype(spec.format), at, std::numeric_limits<float>::quiet_NaN());
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock(c, gpu()).run(w.handle.get());
  expect_right(c);
  const std::vector<uint8_t> bits = c.y_bits();
  for (int64_t t = 0; t < spec.tokens; ++t) {
    bool uses = false;
    for (int64_t j = 0; j < spec.top_k; ++j)
      uses = uses || static_cast<const int32_t*>(c.ids.view.data)[t * spec.top_k + j] == expert;
    EXPECT_EQ(std::isnan(c.y.get(t, 5)), uses) << t;
    EXPECT_FALSE(std::isnan(c.y.get(t, 6))) << t;
    if (!uses) {
      EXPECT_EQ(token_bits(bits, spec.hidden, t), token_bits(expected, spec.hidden, t)) << t;
    }
  }
}

TEST_P(GpuBits, NaNAndInfinityInXStayWithTheirToken) {
  const CaseSpec spec = base_spec(GetParam());
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock(c, gpu()).run(w.handle.get());
  const std::vector<uint8_t> expected = c.y_bits();
  c.x.set(4, 9, std::numeric_limits<float>::quiet_NaN());
  c.x.set(6, 0, std::numeric_limits<float>::infinity());
  GpuBlock(c, gpu()).run(w.handle.get());
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

// ---------------------------------------------------------------- graphs

// Another case's inputs, on this one's weights.
void take_inputs(BlockCase& to, const BlockCase& from) {
  for (const auto& [a, b] :
       {std::pair(&to.x, &from.x), std::pair(&to.ids, &from.ids),
        std::pair(&to.topk_weights, &from.topk_weights), std::pair(&to.shared_addend, &from.shared_addend)})
    if (a->memory.size() > 0) std::memcpy(a->memory.data(), b->memory.data(), a->memory.size());
  to.expected_masked = from.expected_masked;
  to.expected_out_of_range = from.expected_out_of_range;
}

// Tokens from `first` on do not count: what a padded batch in a graph of fixed size looks like.
void mask_from(BlockCase& c, int64_t first) {
  for (int64_t t = first; t < c.spec.tokens; ++t)
    for (int64_t j = 0; j < c.spec.top_k; ++j)
      static_cast<int32_t*>(c.ids.view.data)[t * c.spec.top_k + j] = -1;
  c.expected_masked = (c.spec.tokens - first) * c.spec.top_k;
}

TEST_P(GpuBits, GraphsFollowTheirInputs) {
  for (const ramp_determinism mode : {RAMP_REPEATABLE, RAMP_FAST}) {
    for (const int64_t tokens : {3, 70, 1500}) {  // a row index in one launch, and in several
      CaseSpec spec = base_spec(GetParam());
      spec.determinism = mode;
      spec.tokens = tokens;
      spec.experts = 16;
      spec.top_k = 8;
      spec.hidden = GetParam().tiles ? 256 : 160;
      spec.intermediate = GetParam().tiles ? 128 : 96;
      spec.ids = Ids::kDistinct;
      SCOPED_TRACE(case_name(spec));
      BlockCase c(spec);
      const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
      GpuBlock block(c, gpu());
      const DeviceBuffer scratch = block.workspace(w.handle.get());
      const ramp_expert_block_args a = block.args(w.handle.get());
      cli::Graph graph(gpu(), [&](void* stream) {
        require(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), stream));
      });
      for (int i = 0; i < 4; ++i) {
        SCOPED_TRACE(i);
        if (i > 0) {
          CaseSpec other = spec;
          other.seed = 100 + static_cast<uint64_t>(i);
          other.ids = i == 1 ? Ids::kSingle : i == 2 ? Ids::kSkewed : Ids::kDistinct;
          take_inputs(c, BlockCase(other));
          if (i == 3) mask_from(c, tokens / 2);
          block.upload();
        }
        scratch.poison();
        block.begin();
        graph.replay();
        block.finish();
        CheckOptions options = check_options();
        const std::vector<int64_t> sample = spread_tokens(tokens, 40);
        options.tokens = sample;
        const CheckResult result = c.check(options);
        EXPECT_TRUE(result.ok()) << result.text();
        EXPECT_TRUE(scratch.guard_intact());
      }
    }
  }
}

TEST(GpuGraph, AllMaskedGivesZeros) {
  CaseSpec spec = base_spec({RAMP_FORMAT_BF16, true});
  spec.ids = Ids::kDistinct;
  BlockCase c(spec);
  const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, gpu());
  const DeviceBuffer scratch = block.workspace(w.handle.get());
  const ramp_expert_block_args a = block.args(w.handle.get());
  cli::Graph graph(gpu(), [&](void* stream) {
    require(ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), stream));
  });
  mask_from(c, 0);
  block.upload();
  block.begin();
  graph.replay();
  block.finish();
  const std::vector<uint8_t> bits = c.y_bits();
  EXPECT_TRUE(std::all_of(bits.begin(), bits.end(), [](uint8_t b) { return b == 0; }));
}

}  // namespace
}  // namespace ramp::core::test
