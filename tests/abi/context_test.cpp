// Contexts: options, environment, executor, log, facts and config names.
#include <atomic>
#include <cstdlib>
#include <thread>

#include "abi/support.hpp"

namespace abi_test {
namespace {

ramp_status create(const ramp_context_options& options, Context* out = nullptr) {
  ramp_context* context = nullptr;
  const ramp_status status = ramp_context_create(&options, &context);
  EXPECT_EQ(context != nullptr, status == RAMP_OK);
  Context owner(context);
  if (out != nullptr) *out = std::move(owner);
  return status;
}

ramp_context_info info_of(const Context& context) {
  ramp_context_info info = ramp_context_info_init();
  EXPECT_EQ(ramp_context_get_info(context.get(), &info), RAMP_OK) << ramp_last_error();
  return info;
}

// Sets a variable for one scope. The tests of this program that read the environment run on one thread.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old, had_ = true;
    setenv(name, value, 1);
  }
  ~Variable() { had_ ? setenv(name_, old_.c_str(), 1) : unsetenv(name_); }
  Variable(const Variable&) = delete;

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

struct BadOption {
  const char* name;
  std::function<void(ramp_context_options&)> spoil;
  ramp_status status;
  std::vector<std::string> message;
};

const ramp_executor kNoWorkers{0, [](void*, int64_t, ramp_task_fn, void*) {}, nullptr};
const ramp_executor kNoFunction{1, nullptr, nullptr};

std::vector<BadOption> bad_options() {
  constexpr ramp_status kInvalid = RAMP_ERROR_INVALID_ARGUMENT;
  return {
      {"DeviceType", [](auto& o) { o.device.type = 7; }, kInvalid, {"options.device.type", "7"}},
      {"DeviceTypeNegative", [](auto& o) { o.device.type = -1; }, kInvalid, {"options.device.type"}},
      {"CpuIndex", [](auto& o) { o.device.index = 1; }, kInvalid, {"options.device.index", "1"}},
      {"CudaIndex",
       [](auto& o) {
         o.device = {RAMP_DEVICE_CUDA, -1};
       },
       kInvalid,
       {"options.device.index", "-1"}},
      {"Backend", [](auto& o) { o.backend = 99; }, kInvalid, {"options.backend", "99"}},
      {"BackendNegative", [](auto& o) { o.backend = -1; }, kInvalid, {"options.backend"}},
      {"CudaBackendOnCpu",
       [](auto& o) { o.backend = RAMP_BACKEND_CUDA; },
       kInvalid,
       {"options.backend", "CPU device"}},
      {"CpuBackendOnCuda",
       [](auto& o) {
         o.backend = RAMP_BACKEND_CPU;
         o.device.type = RAMP_DEVICE_CUDA;
       },
       kInvalid,
       {"options.backend", "CUDA device"}},
      // This version has no CUDA backend; the message says so in one line.
      {"CudaDevice", [](auto& o) { o.device.type = RAMP_DEVICE_CUDA; }, RAMP_ERROR_UNSUPPORTED, {"CUDA"}},
      {"ThreadsNegative", [](auto& o) { o.num_threads = -2; }, kInvalid, {"options.num_threads", "-2"}},
      {"ThreadsAbsurd", [](auto& o) { o.num_threads = 1 << 30; }, kInvalid, {"options.num_threads"}},
      {"ExecutorWithoutWorkers",
       [](auto& o) { o.executor = &kNoWorkers; },
       kInvalid,
       {"options.executor.num_workers"}},
      {"ExecutorWithoutFunction",
       [](auto& o) { o.executor = &kNoFunction; },
       kInvalid,
       {"options.executor.parallel_for"}},
  };
}

class BadOptions : public testing::TestWithParam<size_t> {};

TEST_P(BadOptions, AreRefused) {
  const BadOption bad = bad_options()[GetParam()];
  ramp_context_options options = ramp_context_options_init();
  bad.spoil(options);
  expect_error(create(options), bad.status, bad.message);
}

INSTANTIATE_TEST_SUITE_P(All, BadOptions, testing::Range(size_t{0}, bad_options().size()),
                         [](const auto& info) { return std::string(bad_options()[info.param].name); });

TEST(ContextTest, UnknownIsaIsRefused) {
  ramp_context_options options = ramp_context_options_init();
  options.backend = RAMP_BACKEND_CPU;
  options.isa = "z80";
  const ramp_status status = create(options);
  EXPECT_TRUE(status == RAMP_ERROR_INVALID_ARGUMENT || status == RAMP_ERROR_UNSUPPORTED) << status;
  EXPECT_NE(std::string(ramp_last_error()).find("z80"), std::string::npos) << ramp_last_error();
}

TEST(ContextTest, DefaultsRunOnTheCpu) {
  ramp_context* raw = nullptr;
  ASSERT_EQ(ramp_context_create(nullptr, &raw), RAMP_OK) << ramp_last_error();
  const Context context(raw);
  const ramp_context_info info = info_of(context);
  EXPECT_EQ(info.backend, RAMP_BACKEND_CPU);
  EXPECT_EQ(info.device.type, RAMP_DEVICE_CPU);
  EXPECT_STREQ(info.backend_name, "cpu");
  EXPECT_GE(info.num_workers, 1);
  EXPECT_STRNE(info.isa, "");
  EXPECT_STRNE(info.device_name, "");
}

TEST(ContextTest, ReferenceBackend) {
  const ramp_context_info info = info_of(make_context(RAMP_BACKEND_REFERENCE));
  EXPECT_EQ(info.backend, RAMP_BACKEND_REFERENCE);
}

TEST(ContextTest, NumberOfThreads) {
  EXPECT_EQ(info_of(make_context(RAMP_BACKEND_CPU, 3)).num_workers, 3);
  const Variable variable("RAMP_NUM_THREADS", "2");
  EXPECT_EQ(info_of(make_context(RAMP_BACKEND_CPU, 0)).num_workers, 2);
  EXPECT_EQ(info_of(make_context(RAMP_BACKEND_CPU, 3)).num_workers, 3);  // the option wins
}

TEST(ContextTest, MalformedEnvironmentNamesTheVariable) {
  for (const char* bad : {"two", "0", "-1", "2x", "99999999999999999999", " 2"}) {
    const Variable variable("RAMP_NUM_THREADS", bad);
    expect_error(create(ramp_context_options_init()), RAMP_ERROR_INVALID_ARGUMENT, {"RAMP_NUM_THREADS"});
  }
}

TEST(ContextTest, IsaFromTheEnvironment) {
  const std::string isa = info_of(make_context(RAMP_BACKEND_CPU)).isa;
  {
    const Variable variable("RAMP_CPU_ISA", isa.c_str());
    EXPECT_EQ(info_of(make_context(RAMP_BACKEND_CPU)).isa, isa);
  }
  const Variable variable("RAMP_CPU_ISA", "z80");
  ramp_context_options options = ramp_context_options_init();
  options.backend = RAMP_BACKEND_CPU;
  EXPECT_NE(create(options), RAMP_OK);
  options.isa = isa.c_str();  // the option wins
  EXPECT_EQ(create(options), RAMP_OK) << ramp_last_error();
}

struct LogLines {
  std::vector<std::pair<ramp_log_level, std::string>> lines;
};

TEST(ContextTest, LogLinesGoToTheSink) {
  LogLines log;
  ramp_context_options options = ramp_context_options_init();
  options.log_user = &log;
  options.log = [](void* user, ramp_log_level level, const char* message) {
    static_cast<LogLines*>(user)->lines.emplace_back(level, message);
  };
  Context context;
  ASSERT_EQ(create(options, &context), RAMP_OK);
  ASSERT_FALSE(log.lines.empty());
  bool found = false;
  for (const auto& [level, line] : log.lines) {
    EXPECT_GE(level, RAMP_LOG_ERROR);
    EXPECT_LE(level, RAMP_LOG_DEBUG);
    found = found || line.find("backend cpu") != std::string::npos;
  }
  EXPECT_TRUE(found);
}

// The caller's executor: here every task on the calling thread, counted.
struct Counter {
  std::atomic<int64_t> tasks{0};
  std::atomic<int64_t> calls{0};
};
void run_inline(void* user, int64_t tasks, ramp_task_fn fn, void* arg) {
  auto* counter = static_cast<Counter*>(user);
  counter->calls += 1;
  counter->tasks += tasks;
  for (int64_t i = 0; i < tasks; ++i) fn(arg, i, static_cast<int32_t>(i % 3));
}

TEST(ContextTest, ExecutorOfTheCallersDoesTheWorkAndIsCopied) {
  Counter counter;
  Context context;
  {
    const ramp_executor executor{3, run_inline, &counter};
    ramp_context_options options = ramp_context_options_init();
    options.backend = RAMP_BACKEND_CPU;
    options.executor = &executor;
    ASSERT_EQ(create(options, &context), RAMP_OK) << ramp_last_error();
  }
  EXPECT_EQ(info_of(context).num_workers, 3);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 4, 64, 64, 1, true);
  const Weights weights = make_weights(context, m.desc());
  Call c(m, weights.get(), 9, 2, 3, true);
  ASSERT_EQ(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
  EXPECT_GT(counter.calls.load(), 0);
  EXPECT_GT(counter.tasks.load(), 0);
  expect_equal(c.y, exact_combined(m, c));
}

TEST(ContextTest, ConfigNames) {
  const Context context = make_context(RAMP_BACKEND_CPU);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 4, 64, 64, 1, true);
  const Weights weights = make_weights(context, m.desc());
  std::vector<std::string> names;
  std::vector<const char*> pointers;
  while (const char* name =
             ramp_config_name(context.get(), weights.get(), static_cast<int32_t>(names.size()))) {
    names.emplace_back(name);
    pointers.push_back(name);
  }
  ASSERT_FALSE(names.empty());
  for (size_t i = 0; i < names.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(names[i], names[j]);
  }
  // Other shapes get their own table; the old names stay where they are.
  for (int64_t e = 5; e < 40; ++e) {
    const Weights other =
        make_weights(context, Model(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, e, 32, 32, 1, true).desc());
    ramp_config_name(context.get(), other.get(), 0);
  }
  for (size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(pointers[i], ramp_config_name(context.get(), weights.get(), static_cast<int32_t>(i)));
    EXPECT_EQ(names[i], pointers[i]);
  }
  EXPECT_EQ(ramp_config_name(context.get(), weights.get(), -1), nullptr);
  expect_error(RAMP_ERROR_INVALID_ARGUMENT, RAMP_ERROR_INVALID_ARGUMENT, {"index: got -1"});
}

// Every config that the backend lists runs when forced, and gives the same exact result.
TEST(ContextTest, EveryConfigCanBeForced) {
  const Context context = make_context(RAMP_BACKEND_CPU);
  const Model m(RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 4, 64, 64, 1, true);
  const Weights weights = make_weights(context, m.desc(), true);
  Call c(m, weights.get(), 13, 2, 3, true);
  const std::vector<double> want = exact_combined(m, c);
  int32_t count = 0;
  while (const char* name = ramp_config_name(context.get(), weights.get(), count)) {
    SCOPED_TRACE(name);
    c.args.config = ++count;
    c.y = Array(RAMP_F32, {13, 64});
    c.args.y = c.y.view();
    ASSERT_EQ(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_OK) << ramp_last_error();
    expect_equal(c.y, want);
  }
  for (const int32_t bad : {-1, count + 1, INT32_MAX}) {
    c.args.config = bad;
    expect_error(ramp_expert_block(context.get(), &c.args, nullptr, 0, nullptr), RAMP_ERROR_INVALID_ARGUMENT,
                 {"config: got " + std::to_string(bad), "to " + std::to_string(count), "ramp_config_name"});
  }
}

}  // namespace
}  // namespace abi_test
