// Config names are short, unique and parse back to the same config.
#include "geometry/config.hpp"

#include <gtest/gtest.h>

#include <set>

#include "base/error.hpp"

namespace ramp::core {
namespace {

TEST(Config, NamesRoundTripAndAreUnique) {
  std::set<std::string> names;
  int count = 0;
  for (const int m : {1, 8, 128})
    for (const int n : {64, 256})
      for (const int k : {32, 128})
        for (const int s : {1, 4})
          for (const int w : {0, 4})
            for (const int t : {0, 384})
              for (const int sk : {1, 8})
                for (const int o : {0, 1, 2, 3}) {
                  const int b = t == 0 ? 0 : s;
                  KernelConfig c{
                      m, n, k, w, s, t, sk, o == 2 ? 8 : 0, static_cast<TaskOrder>(o), b, t != 0 && k == 32};
                  EXPECT_EQ(parse_config(config_name(c)), c) << config_name(c);
                  names.insert(config_name(c));
                  ++count;
                }
  EXPECT_EQ(names.size(), static_cast<size_t>(count));
}

class BadConfig : public testing::TestWithParam<const char*> {};
TEST_P(BadConfig, IsRefused) {
  EXPECT_THROW((void)parse_config(GetParam()), Error) << GetParam();
}
INSTANTIATE_TEST_SUITE_P(Texts, BadConfig,
                         testing::Values("", "m8", "n64", "m8_n", "m8_n64_", "m8_n64_q3", "m0_n64",
                                         "m8_n64_k-1", "m8__n64", "8_64", "m8_n64_s99999999999"));

}  // namespace
}  // namespace ramp::core
