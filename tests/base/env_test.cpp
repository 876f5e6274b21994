// The environment, the machine's facts, and the order in which the cache directory is searched.
#include "base/env.hpp"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <optional>

#include "base/log.hpp"
#include "base/rng.hpp"

namespace ramp::core {
namespace {

// Sets (or, with nullptr, removes) a variable for the scope.
class ScopedEnv {
 public:
  ScopedEnv(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    if (value != nullptr) {
      ::setenv(name, value, 1);
    } else {
      ::unsetenv(name);
    }
  }
  ~ScopedEnv() {
    if (old_) {
      ::setenv(name_, old_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  ScopedEnv(const ScopedEnv&) = delete;
  ScopedEnv& operator=(const ScopedEnv&) = delete;

 private:
  const char* name_;
  std::optional<std::string> old_;
};

TEST(Env, UnsetAndEmptyAreTheSame) {
  const ScopedEnv a("RAMP_TEST_VARIABLE", nullptr);
  EXPECT_EQ(env("RAMP_TEST_VARIABLE"), std::nullopt);
  const ScopedEnv b("RAMP_TEST_VARIABLE", "");
  EXPECT_EQ(env("RAMP_TEST_VARIABLE"), std::nullopt);
  const ScopedEnv c("RAMP_TEST_VARIABLE", "x y");
  EXPECT_EQ(env("RAMP_TEST_VARIABLE"), "x y");
}

TEST(Env, CacheDirectoryOrder) {
  const ScopedEnv ramp("RAMP_CACHE_DIR", "/r");
  const ScopedEnv xdg("XDG_CACHE_HOME", "/x");
  const ScopedEnv home("HOME", "/h");
  EXPECT_EQ(cache_directory("/given"), "/given");
  EXPECT_EQ(cache_directory(""), "/r");
  const ScopedEnv no_ramp("RAMP_CACHE_DIR", nullptr);
  EXPECT_EQ(cache_directory(""), "/x/ramp");
  const ScopedEnv relative("XDG_CACHE_HOME", "relative/path");  // invalid by the XDG specification
  EXPECT_EQ(cache_directory(""), "/h/.cache/ramp");
  const ScopedEnv no_home("HOME", nullptr);
  EXPECT_EQ(cache_directory(""), "");
}

TEST(Env, CoresFollowTheAffinityMask) {
  cpu_set_t original;
  ASSERT_EQ(sched_getaffinity(0, sizeof original, &original), 0);
  EXPECT_EQ(available_cores(), CPU_COUNT(&original));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &original)) {
      CPU_SET(cpu, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(available_cores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof original, &original), 0);
}

TEST(Env, CpuModelIsOneLine) {
  const std::string name = cpu_model_name();
  EXPECT_FALSE(name.empty());
  EXPECT_EQ(name.find('\n'), std::string::npos);
  EXPECT_NE(name.front(), ' ');
}

TEST(Log, GoesToTheSinkOrNowhere) {
  LogSink{}(RAMP_LOG_ERROR, "nobody hears this");
  std::string heard;
  const LogSink sink{[](void* user, ramp_log_level level, const char* message) {
                       *static_cast<std::string*>(user) = std::to_string(level) + message;
                     },
                     &heard};
  sink(RAMP_LOG_WARNING, "m");
  EXPECT_EQ(heard, "1m");
}

// Values are part of what a seed means: files and tests depend on them.
TEST(Rng, PureFunctionOfSeedAndIndex) {
  EXPECT_EQ(mix64(0), 0xe220a8397b1dcdafULL);  // SplitMix64's first output for seed 0
  EXPECT_EQ(random_u64(1, 2), mix64(mix64(1) ^ (2 * 0xd1342543de82ef95ULL)));
  Rng a(5);
  Rng b(5);
  double sum = 0;
  double squares = 0;
  constexpr int kCount = 20000;
  for (int i = 0; i < kCount; ++i) {
    const double n = a.normal();
    ASSERT_EQ(n, b.normal());
    sum += n;
    squares += n * n;
    const double u = random_unit(3, static_cast<uint64_t>(i));
    ASSERT_GT(u, 0.0);
    ASSERT_LT(u, 1.0);
    ASSERT_LT(a.below(7), 7U);
    b.below(7);
  }
  // Five standard errors of the mean and of the variance (2/n).
  EXPECT_LT(std::fabs(sum / kCount), 5.0 / std::sqrt(kCount));
  EXPECT_LT(std::fabs(squares / kCount - 1.0), 5.0 * std::sqrt(2.0 / kCount));
}

}  // namespace
}  // namespace ramp::core
