// The model registry and the names of formats: parsing, printing, refusing.
#include "geometry/model.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"

namespace ramp::core {
namespace {

TEST(Model, EveryKnownNameParsesToItself) {
  EXPECT_EQ(known_models().size(), 16U);
  for (const ModelShape& m : known_models()) {
    const ModelShape p = parse_model(m.name);
    EXPECT_EQ(p.experts, m.experts);
    EXPECT_EQ(p.intermediate, m.intermediate);
    EXPECT_LE(m.top_k, m.experts);
    EXPECT_EQ(m.hidden % 32, 0);
    EXPECT_EQ(m.intermediate % 32, 0);
  }
}

TEST(Model, FourNumbers) {
  const ModelShape m = parse_model("64,4,3584,2560");
  EXPECT_EQ(m.experts, 64);
  EXPECT_EQ(m.top_k, 4);
  EXPECT_EQ(m.hidden, 3584);
  EXPECT_EQ(m.intermediate, 2560);
}

class BadModel : public testing::TestWithParam<const char*> {};
TEST_P(BadModel, IsRefusedWithTheKnownNames) {
  try {
    (void)parse_model(GetParam());
    FAIL() << "accepted " << GetParam();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_INVALID_ARGUMENT);
    EXPECT_NE(std::string(e.what()).find("E,k,H,I"), std::string::npos) << e.what();
  }
}
INSTANTIATE_TEST_SUITE_P(Texts, BadModel,
                         testing::Values("", "olmo", "1,2,3", "8,2,64,64,1", "8,2,64,", ",8,2,64,64",
                                         "8,2,64,x", "-8,2,64,64", "0,1,64,64", "8,9,64,64",
                                         "99999999999,2,64,64", "8 ,2,64,64"));

TEST(Model, FormatsAndActivationsRoundTrip) {
  for (const int f : {1, 2, 3, 4, 5, 6}) EXPECT_EQ(parse_format(format_name(f)), f);
  for (const int a : {0, 1, 2, 3}) EXPECT_EQ(parse_activation(activation_name(a)), a);
  EXPECT_THROW((void)parse_format("int3"), Error);
  EXPECT_THROW((void)parse_activation("swish"), Error);
}

// Bytes per expert against sums written out by hand.
TEST(Model, ExpertBytes) {
  const ModelShape m{"x", 8, 2, 256, 384};
  const int64_t values = 2 * 384 * 256 + 256 * 384;
  EXPECT_EQ(expert_bytes(m, RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL), 2 * values);
  EXPECT_EQ(expert_bytes(m, RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL),
            values + 4 * (2 * 3 * 2 + 2 * 3));
  EXPECT_EQ(expert_bytes(m, RAMP_FORMAT_FP8_CHANNEL, RAMP_ACTIVATION_SILU_AND_MUL), values + 4 * (768 + 256));
  EXPECT_EQ(expert_bytes(m, RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2), 4 * (2 * 384 * 256));
  // DESIGN §5: eight active OLMoE experts at 4.53 TB/s take 11.1 us.
  const int64_t olmoe =
      expert_bytes(parse_model("olmoe"), RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL);
  EXPECT_NEAR(8.0 * static_cast<double>(olmoe) / 4.53e6, 11.1, 0.05);
}

}  // namespace
}  // namespace ramp::core
