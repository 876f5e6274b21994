// The whole space of the sm_90 kernels' configs: what ships comes first, every legal config is one variant
// and keeps to the SM's limits, every rejected one says why, and programs tell them apart. One config of each
// kernel that does not ship compiles.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "backend/cuda/config_space.hpp"
#include "backend/cuda/flat_block.hpp"
#include "backend/cuda/flat_prefill_block.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/stream_block.hpp"
#include "regions/regions.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;
using core::ConfigList;
using core::KernelConfig;
using core::ModelShape;

constexpr ramp_activation kSilu = RAMP_ACTIVATION_SILU_AND_MUL;

ConfigList space_of(const char* model, ramp_format format = RAMP_FORMAT_FP8_BLOCK) {
  return cuda::config_space(core::parse_model(model), format, kSilu, true);
}

// The bar: what the published method searches.
constexpr size_t kLeast = 134;

TEST(ConfigSpace, IsLargeAndBeginsWithWhatShips) {
  for (const char* const model : {"olmoe", "qwen3-30b", "mixtral-8x7b", "dsv3", "dsv3-tp8"}) {
    const ConfigList list = space_of(model);
    EXPECT_GE(list.legal.size(), kLeast) << model;
    EXPECT_FALSE(list.rejected.empty());
    size_t at = 0;
    for (const cuda::StreamVariant& v : cuda::stream_variants()) EXPECT_EQ(list.legal[at++], v.config());
    EXPECT_EQ(list.legal[at], cuda::prefill_config());
  }
  for (const ramp_format format : {RAMP_FORMAT_BF16, RAMP_FORMAT_F16, RAMP_FORMAT_FP8_TENSOR}) {
    EXPECT_GE(space_of("olmoe", format).legal.size(), kLeast) << static_cast<int>(format);
  }
  EXPECT_TRUE(space_of("8,2,96,64").legal.empty());
}

TEST(ConfigSpace, GroupsAreSearchedWhereTheRegionsAskForThem) {
  const auto groups = [](const char* model) {
    std::set<int32_t> found;
    for (const KernelConfig& c : space_of(model).legal)
      if (cuda::prefill_variant(c)) found.insert(c.group_m);
    return found;
  };
  EXPECT_EQ(groups("olmoe"), (std::set<int32_t>{0, 2, 8, 64}));
  EXPECT_EQ(groups("mixtral-8x22b"), (std::set<int32_t>{0, 2, 4, 8, 32, 64}));
}

TEST(ConfigSpace, EveryLegalConfigIsOneVariantWithinTheLimits) {
  for (const ramp_format format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_FP8_CHANNEL}) {
    std::set<std::string> names;
    std::map<std::string, std::vector<std::string>>
        programs;  // a name is one program, which configs may share
    for (const KernelConfig& c : space_of("mixtral-8x7b", format).legal) {
      const std::string name = core::config_name(c);
      EXPECT_TRUE(names.insert(name).second) << name;
      EXPECT_EQ(core::parse_config(name), c) << name;
      const int32_t blocks = cuda::config_residency(c, format);
      EXPECT_GE(blocks, 1) << name;
      EXPECT_LE(blocks * c.threads, 2048) << name;
      if (const auto stream = cuda::stream_variant(c); stream && format == RAMP_FORMAT_FP8_BLOCK) {
        for (const int gemm : {1, 2}) {
          const auto resident = static_cast<uint32_t>(stream->blocks_of(gemm));
          EXPECT_LE(resident * (stream->shared_bytes(gemm) + 1024), 228U << 10) << name << ", GEMM " << gemm;
          EXPECT_LE(stream->shared_bytes(gemm), 227U << 10) << name;
        }
      } else if (const auto flat = cuda::flat_variant(c, format); flat && format != RAMP_FORMAT_FP8_BLOCK) {
        EXPECT_LE(static_cast<uint32_t>(flat->blocks) * (flat->shared_bytes() + 1024), 228U << 10) << name;
      } else if (const auto prefill = cuda::prefill_variant(c)) {
        EXPECT_LE(prefill->shared_bytes(), 227U << 10) << name;
      } else {
        EXPECT_TRUE(cuda::is_flat_prefill(c, format)) << name;
      }
      const auto list = cuda::config_programs(c, format, kSilu);
      ASSERT_GE(list.size(), 2U) << name;
      for (const cuda::KernelProgram& p : list) {
        // A name is one program, though configs may share it.
        const auto [at, fresh] = programs.emplace(p.name, p.options);
        EXPECT_EQ(at->second, p.options) << p.name;
      }
    }
  }
}

// A name that ships must not mean something else in the space.
TEST(ConfigSpace, ProgramsOfWhatShipsAreTheShippedOnes) {
  std::set<std::string> shipped;
  for (const cuda::KernelProgram& p : cuda::shipped_programs(90))
    shipped.insert(p.name + core::cuda::compile_options(p, "sm_90a").back());
  for (const cuda::StreamVariant& v : cuda::stream_variants())
    for (const cuda::KernelProgram& p : cuda::config_programs(v.config(), RAMP_FORMAT_FP8_BLOCK, kSilu))
      EXPECT_TRUE(shipped.contains(p.name + core::cuda::compile_options(p, "sm_90a").back())) << p.name;
  for (const cuda::FlatVariant& v : cuda::flat_variants(RAMP_FORMAT_BF16, 2048, 1024))
    for (const cuda::KernelProgram& p :
         cuda::config_programs(v.config(RAMP_FORMAT_BF16), RAMP_FORMAT_BF16, kSilu))
      EXPECT_TRUE(shipped.contains(p.name + core::cuda::compile_options(p, "sm_90a").back())) << p.name;
}

TEST(ConfigSpace, RejectedOnesSayWhy) {
  const ConfigList list = space_of("olmoe");
  std::set<std::string> kinds;
  for (const core::RejectedConfig& r : list.rejected) {
    EXPECT_FALSE(r.reason.empty());
    kinds.insert(r.reason.find("registers") != std::string::npos ? "registers" : "shared memory");
    EXPECT_EQ(std::count(list.legal.begin(), list.legal.end(), r.config), 0) << core::config_name(r.config);
  }
  EXPECT_EQ(kinds.size(), 2U);
  KernelConfig c = cuda::stream_variants()[0].config();
  c.tile_m = 12;
  EXPECT_FALSE(cuda::stream_variant(c));
  c.tile_m = 8;
  c.stages = 14;
  EXPECT_FALSE(cuda::stream_variant(c));
  c.stages = 6;
  c.split_k = 2;
  EXPECT_FALSE(cuda::stream_variant(c));
  EXPECT_TRUE(cuda::config_programs(c, RAMP_FORMAT_FP8_BLOCK, kSilu).empty());
  EXPECT_EQ(cuda::config_residency(c, RAMP_FORMAT_FP8_BLOCK), 1);
}

// Not timed yet: fast mode's sums are there for who asks, and nobody else runs them.
TEST(ConfigSpace, SumsAreOfferedAndNotShipped) {
  for (const ramp_format format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_F16,
                                   RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL}) {
    const bool flat = core::cuda::flat_format(format);
    KernelConfig c = flat ? cuda::flat_prefill_config(format) : cuda::prefill_config();
    EXPECT_FALSE(c.sums);
    const std::vector<cuda::KernelProgram> rows = cuda::config_programs(c, format, kSilu);
    c.sums = true;
    EXPECT_TRUE(core::config_name(c).ends_with("_sum"));
    const ConfigList list = space_of("olmoe", format);
    EXPECT_EQ(std::count(list.legal.begin(), list.legal.end(), c), 1) << static_cast<int>(format);
    EXPECT_TRUE(std::is_partitioned(list.legal.begin(), list.legal.end(),
                                    [](const KernelConfig& k) { return !k.sums; }));
    const std::vector<cuda::KernelProgram> sums = cuda::config_programs(c, format, kSilu);
    ASSERT_EQ(sums.size(), rows.size() + 1) << "zeros";
    // GEMM 2 alone is another one.
    size_t others = 0;
    for (const cuda::KernelProgram& p : sums)
      others += std::none_of(rows.begin(), rows.end(), [&](const auto& r) { return r.name == p.name; });
    EXPECT_EQ(others, 2U);
  }
}

TEST(ConfigSpace, BlocksAreNamedWhereFewerThanFit) {
  const cuda::StreamVariant most{24, 5, 2};
  EXPECT_EQ(core::config_name(most.config()), "m24_n128_k128_s5_t320");
  const cuda::StreamVariant fewer{24, 5, 1};
  EXPECT_EQ(core::config_name(fewer.config()), "m24_n128_k128_s5_t320_b1");
  EXPECT_EQ(cuda::stream_variant(fewer.config()), fewer);
  EXPECT_EQ(cuda::stream_variant(most.config()), most);
}

TEST(ConfigSpace, WhatDoesNotShipCompiles) {
  std::string why;
  if (cuda::find_nvrtc(&why) == nullptr) GTEST_SKIP() << why;
  const auto compiles = [](const KernelConfig& c, ramp_format format) {
    for (const cuda::KernelProgram& p : cuda::config_programs(c, format, kSilu)) {
      const cuda::Cubin cubin = cuda::compile_program(p, "sm_90a");
      EXPECT_FALSE(cubin.bytes.empty()) << p.name;
      EXPECT_NE(cubin.log.find("0 bytes spill stores"), std::string::npos) << p.name << "\n" << cubin.log;
    }
  };
  compiles((cuda::StreamVariant{24, 3, 3}).config(), RAMP_FORMAT_FP8_BLOCK);
  compiles((cuda::StreamVariant{16, 3, 4}).config(), RAMP_FORMAT_FP8_BLOCK);
  compiles((cuda::PrefillVariant{3, 1}).config(), RAMP_FORMAT_FP8_BLOCK);
  compiles((cuda::PrefillVariant{3, 1, true}).config(), RAMP_FORMAT_FP8_BLOCK);
  compiles((cuda::PrefillVariant{4, 8, false, true}).config(), RAMP_FORMAT_FP8_BLOCK);
  compiles((cuda::PrefillVariant{4, 8, false, false, true}).config(), RAMP_FORMAT_FP8_BLOCK);
  compiles((cuda::PrefillVariant{4, 8, false, true, true}).config(), RAMP_FORMAT_FP8_BLOCK);
  compiles((cuda::FlatVariant{48, 128, 4, 2}).config(RAMP_FORMAT_BF16), RAMP_FORMAT_BF16);
}

}  // namespace
}  // namespace ramp::cuda_test
