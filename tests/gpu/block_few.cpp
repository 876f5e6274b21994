// The few-token block (packed fp8_block, T*k <= 128, no forced config): every T*k, ids of all kinds, runs of
// steps that divide items among several blocks and ones that end inside them, the models' own H and I; the
// same bits again and again, in graphs that are replayed with other ids, and in layers that overlap.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "base/tensor.hpp"
#include "cli/gpu.hpp"
#include "gpu/runs.hpp"

namespace ramp::core::test {
namespace {

CaseSpec few_spec(int64_t experts, int64_t top_k, int64_t tokens, int64_t hidden, int64_t intermediate,
                  Ids ids = Ids::kDistinct) {
  CaseSpec s = block_spec(RAMP_FORMAT_FP8_BLOCK, experts, top_k, tokens, hidden, intermediate);
  s.ids = ids;
  return s;
}

// A context that runs them wherever they can run, also where they are not the fastest.
ramp_context* few_gpu() {
  return gpu("sm90_few");
}

void expect_right(BlockCase& c) {
  check_some(c, 200'000'000);
}

// Once, and `again` times more for the same bits.
void run_case(const CaseSpec& s, int again) {
  SCOPED_TRACE(case_name(s));
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(few_gpu(), c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, few_gpu());
  block.run(w.handle.get());
  expect_right(c);
  const std::vector<uint8_t> first = c.y_bits();
  for (int i = 0; i < again; ++i) {
    block.run(w.handle.get(), nullptr, i % 2 == 1);
    ASSERT_EQ(c.y_bits(), first) << "repetition " << i;
  }
}

class GpuFew : public Sm90<> {};

constexpr Ids kKinds[] = {Ids::kDistinct, Ids::kSkewed,    Ids::kSingle,    Ids::kDuplicates,
                          Ids::kMasked,   Ids::kAllMasked, Ids::kOutOfRange};

TEST_F(GpuFew, EveryKindOfIds) {
  for (const int64_t tokens : {1, 3, 8, 9, 16}) {
    for (const Ids ids : kKinds) run_case(few_spec(16, 8, tokens, 512, 384, ids), 3);
  }
}

// Every T and many k, both tile widths, up to 128 slots and beyond; k above what the combine kernel takes at
// once.
TEST_F(GpuFew, EveryNumberOfSlots) {
  for (int64_t tokens = 1; tokens <= 17; ++tokens)
    for (const int64_t k : {1, 2, 3, 5, 8, 9, 17, 32})
      if (tokens * k <= 144)
        run_case(few_spec(40, k, tokens, 256, 128, k % 2 == 1 ? Ids::kSkewed : Ids::kMasked), 1);
  run_case(few_spec(200, 128, 1, 256, 128), 2);
  run_case(few_spec(3, 64, 2, 256, 256, Ids::kDuplicates), 2);  // experts with several tiles
  run_case(few_spec(2, 8, 16, 384, 256, Ids::kDuplicates), 2);
  run_case(few_spec(1000, 8, 16, 128, 128), 2);
}

// Few items and many steps, so that items are divided among many blocks; many short ones, so that blocks have
// several.
TEST_F(GpuFew, EveryDivision) {
  for (const int64_t tokens : {1, 7, 16}) {
    run_case(few_spec(1, 1, tokens, 128, 128, Ids::kSingle), 3);
    run_case(few_spec(1, 1, tokens, 7168, 128, Ids::kSingle), 3);
    run_case(few_spec(1, 1, tokens, 128, 7168, Ids::kSingle), 3);
    run_case(few_spec(3, 2, tokens, 1152, 1920), 3);
    run_case(few_spec(64, 8, tokens, 1152, 384), 3);
    run_case(few_spec(64, 4, tokens, 640, 1408, Ids::kSkewed), 3);
  }
}

TEST_F(GpuFew, ModelsShapes) {
  for (const int64_t tokens : {1, 8}) {
    run_case(few_spec(16, 8, tokens, 2048, 1024), 5);  // OLMoE
    run_case(few_spec(16, 8, tokens, 2048, 768), 5);   // Qwen3-30B
    run_case(few_spec(2, 2, tokens, 4096, 14336), 2);  // Mixtral-8x7B
    run_case(few_spec(8, 4, tokens, 7168, 2048), 2);   // DeepSeek-V3
  }
}

TEST_F(GpuFew, Options) {
  for (const int64_t tokens : {1, 5, 13}) {
    for (int variant = 0; variant < 12; ++variant) {
      CaseSpec s = few_spec(8, 3, tokens, 384, 256, Ids::kMasked);
      s.activation = static_cast<ramp_activation>(variant % 3);
      s.x_dtype = variant % 4 == 0   ? RAMP_BF16
                  : variant % 4 == 1 ? RAMP_F16
                  : variant % 4 == 2 ? RAMP_F32
                                     : RAMP_E4M3;
      s.y_dtype = variant % 3 == 0 ? RAMP_BF16 : variant % 3 == 1 ? RAMP_F16 : RAMP_F32;
      s.shared_dtype = variant % 5 == 0 || variant == 11 ? RAMP_DTYPE_NONE
                       : variant % 5 == 1                ? RAMP_BF16
                       : variant % 5 == 2                ? RAMP_F32
                                                         : RAMP_F16;
      s.router_weight_on_input = variant >= 6;
      s.output = variant == 11 ? RAMP_OUTPUT_PER_SLOT : RAMP_OUTPUT_COMBINED;
      s.determinism = variant == 9 ? RAMP_FAST : variant == 10 ? RAMP_BATCH_INVARIANT : RAMP_REPEATABLE;
      s.expert_map = variant % 4 >= 2;
      s.int64_ids = variant % 2 == 1;
      s.strided = variant % 7 == 3;
      s.counters = variant != 4;
      run_case(s, 1);
    }
  }
}

TEST_F(GpuFew, NaNAndInfinityStayWithTheirToken) {
  CaseSpec s = few_spec(4, 2, 16, 384, 256);
  s.y_dtype = RAMP_F32;
  BlockCase clean(s);
  const GpuWeights w = make_gpu_weights(few_gpu(), clean.synthetic, RAMP_COPY, true);
  GpuBlock before(clean, few_gpu());
  before.run(w.handle.get());
  BlockCase odd(s);
  odd.x.set(3, 130, std::numeric_limits<float>::quiet_NaN());
  odd.x.set(5, 0, std::numeric_limits<float>::infinity());
  odd.x.set(7, 1, std::numeric_limits<float>::quiet_NaN());
  for (int64_t j = 0; j < s.top_k; ++j) {
    odd.topk_weights.set(7, j, 0.0F);
    static_cast<int32_t*>(odd.ids.view.data)[9 * s.top_k + j] = -1;
  }
  odd.x.set(9, 1, std::numeric_limits<float>::quiet_NaN());
  odd.expected_masked = s.top_k;
  GpuBlock block(odd, few_gpu());
  block.run(w.handle.get());
  expect_right(odd);
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t h = 0; h < s.hidden; ++h) {
      const float got = odd.y.get(t, h);
      if (t == 3 || t == 5 || t == 7) {
        ASSERT_TRUE(std::isnan(got)) << t << ", " << h << ": " << got;
      } else if (t == 9) {
        ASSERT_EQ(got, 0.0F) << h;
      } else {
        ASSERT_TRUE(std::isfinite(got)) << t << ", " << h << ": " << got;
      }
    }
  }
}

// One graph, replayed with ids, weights and x of other cases in its buffers; every result that of a call by
// itself.
TEST_F(GpuFew, GraphsFollowTheirInputs) {
  for (const int64_t tokens : {1, 8, 12}) {
    SCOPED_TRACE(tokens);
    BlockCase c(few_spec(32, 8, tokens, 768, 640));
    const GpuWeights w = make_gpu_weights(few_gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, few_gpu());
    const DeviceBuffer scratch = block.workspace(w.handle.get());
    block.begin();
    const ramp_expert_block_args a = block.args(w.handle.get());
    require(ramp_expert_block(few_gpu(), &a, scratch.data(), scratch.bytes(), nullptr));
    block.finish();
    expect_right(c);
    cli::Graph graph(few_gpu(), [&](void* stream) {
      require(ramp_expert_block(few_gpu(), &a, scratch.data(), scratch.bytes(), stream));
    });
    for (int i = 0; i < 3; ++i) {
      for (const Ids ids : kKinds) {
        CaseSpec s = c.spec;
        s.ids = ids;
        s.seed = static_cast<uint64_t>(100 + i);
        BlockCase other(s);
        std::memcpy(c.ids.memory.data(), other.ids.memory.data(), other.ids.memory.size());
        std::memcpy(c.x.memory.data(), other.x.memory.data(), other.x.memory.size());
        std::memcpy(c.topk_weights.memory.data(), other.topk_weights.memory.data(),
                    other.topk_weights.memory.size());
        c.expected_masked = other.expected_masked;
        c.expected_out_of_range = other.expected_out_of_range;
        block.upload();
        scratch.poison();
        block.begin();
        graph.replay();
        block.finish();
        expect_right(c);
        const std::vector<uint8_t> replayed = c.y_bits();
        scratch.poison();
        block.begin();
        require(ramp_expert_block(few_gpu(), &a, scratch.data(), scratch.bytes(), nullptr));
        block.finish();
        EXPECT_EQ(c.y_bits(), replayed) << ids_name(ids);
      }
    }
    EXPECT_TRUE(scratch.guard_intact());
  }
}

// Layers that each read what the one before wrote, all in one workspace: whatever launches overlap, the bits
// are those of layers that wait for each other.
TEST_F(GpuFew, LayersInOneWorkspace) {
  for (const int64_t tokens : {1, 2, 8, 16}) {
    SCOPED_TRACE(tokens);
    expect_layers_agree(few_gpu(), few_spec(16, 8, tokens, 1024, 640), 300);
  }
}

// Two streams at a time: each launch needs every SM for its barriers, so that halves of two must never wait
// for each other's SMs.
TEST_F(GpuFew, StreamsSideBySide) {
  using namespace cuda;  // NOLINT(google-build-using-namespace): the driver's calls
  const std::shared_ptr<const Gpu> device = Gpu::open(0);
  const ScopedContext scope(*device);
  for (const int64_t tokens : {1, 8}) {
    SCOPED_TRACE(tokens);
    struct Side {
      std::unique_ptr<BlockCase> c;
      GpuWeights w;
      std::unique_ptr<GpuBlock> block;
      DeviceBuffer scratch;
      CUstream stream = nullptr;
      std::vector<uint8_t> expected;
    };
    Side sides[3];
    for (int i = 0; i < 3; ++i) {
      Side& side = sides[i];
      CaseSpec s = few_spec(16, 4, tokens, 1024, 640);
      s.seed = 60 + static_cast<uint64_t>(i);
      s.counters = false;
      side.c = std::make_unique<BlockCase>(s);
      side.w = make_gpu_weights(few_gpu(), side.c->synthetic, RAMP_COPY, true);
      side.block = std::make_unique<GpuBlock>(*side.c, few_gpu());
      side.scratch = side.block->workspace(side.w.handle.get());
      side.block->run(side.w.handle.get());
      side.expected = side.c->y_bits();
      RAMP_CU(cuStreamCreate, &side.stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
    }
    for (int round = 0; round < 20; ++round) {
      for (Side& side : sides) side.block->begin();
      for (int i = 0; i < 10; ++i) {
        for (Side& side : sides) {
          const ramp_expert_block_args a = side.block->args(side.w.handle.get());
          require(ramp_expert_block(few_gpu(), &a, side.scratch.data(), side.scratch.bytes(), side.stream));
        }
      }
      for (Side& side : sides) {
        side.block->finish();
        ASSERT_EQ(side.c->y_bits(), side.expected) << round;
      }
    }
    for (Side& side : sides) RAMP_CU(cuStreamDestroy, side.stream);
  }
}

}  // namespace
}  // namespace ramp::core::test
