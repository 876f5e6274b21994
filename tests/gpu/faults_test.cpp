// What goes wrong on a GPU machine, and how fast things are when it does not: memory runs out, cache files
// are damaged or cannot be written, two processes fill one cache, a kernel faults; the first call with and
// without a cache, and the host's time per call. What must not happen in this process (a dead CUDA context,
// first calls) happens in children: this program again, with the filter of a disabled test.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/programs.hpp"
#include "backend/cuda/strided_copy.hpp"
#include "base/env.hpp"
#include "gpu/support.hpp"

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX has it in no header

namespace ramp::core::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kDirectory = "RAMP_TEST_CACHE";  // the children's cache
constexpr const char* kWarm = "RAMP_TEST_WARM";        // whether it is full already
constexpr const char* kLimit = "RAMP_TEST_LIMIT_S";    // their time limit

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (fs::temp_directory_path() / "ramp-gpu-XXXXXX").string();
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Log {
  std::mutex mutex;  // kernels are compiled, and log, on several threads
  std::vector<std::string> warnings;
  int compiled = 0;
  LogSink sink() {
    return {[](void* user, ramp_log_level level, const char* message) {
              auto& log = *static_cast<Log*>(user);
              const std::lock_guard lock(log.mutex);
              if (level <= RAMP_LOG_WARNING) log.warnings.emplace_back(message);
              if (std::string_view(message).starts_with("compiled kernel")) ++log.compiled;
            },
            this};
  }
};

void run_block(ramp_context* context, uint64_t seed = 1) {
  CaseSpec s;
  s.seed = seed;
  s.tokens = 20;
  BlockCase c(s);
  const GpuWeights w = make_gpu_weights(context, c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, context);
  block.run(w.handle.get(), nullptr, true);
  const CheckResult result = c.check(check_options());
  EXPECT_TRUE(result.ok()) << result.text();
}

std::vector<fs::path> cubins(const std::string& cache) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(cache, ignored))
    if (entry.path().extension() == ".cubin") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// This program with one disabled test, in an environment with these variables added. Returns its process id.
pid_t start_child(const std::string& test,
                  const std::vector<std::pair<std::string, std::string>>& variables) {
  std::vector<std::string> arguments = {"/proc/self/exe", "--gtest_also_run_disabled_tests",
                                        "--gtest_brief=1", "--gtest_filter=" + test};
  std::vector<std::string> strings;
  for (char** v = environ; *v != nullptr; ++v) strings.emplace_back(*v);
  for (const auto& [name, value] : variables) strings.push_back(name + "=" + value);
  std::vector<char*> argv;
  std::vector<char*> envp;
  for (std::string& a : arguments) argv.push_back(a.data());
  for (std::string& s : strings) envp.push_back(s.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  pid_t child = -1;
  if (posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv.data(), envp.data()) != 0) return -1;
  return child;
}

int wait_for(pid_t child) {
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// ---------------------------------------------------------------- memory

TEST(GpuFaults, OutOfMemoryIsAnErrorAndPasses) {
  ramp_context* const context = gpu();
  run_block(context);
  BlockCase c(CaseSpec{.tokens = 4096, .hidden = 512, .intermediate = 512});
  const GpuWeights w = make_gpu_weights(context, c.synthetic, RAMP_COPY, true);
  GpuBlock block(c, context);
  GpuWeights source = upload_weights_of(context, c.synthetic);
  source.desc.ownership = RAMP_COPY;
  const ContextPtr fresh = make_gpu_context();  // whose workspace has not grown yet
  {
    std::vector<std::shared_ptr<void>> hoard;
    for (uint64_t piece = uint64_t{32} << 30; piece >= uint64_t{1} << 20;) {
      try {
        hoard.push_back(memory(context).allocate(piece));
      } catch (const Error& e) {
        EXPECT_EQ(e.status(), RAMP_ERROR_OUT_OF_MEMORY) << e.what();
        piece /= 2;
      }
    }
    const ramp_expert_block_args a = block.args(w.handle.get());
    EXPECT_EQ(ramp_expert_block(fresh.get(), &a, nullptr, 0, nullptr), RAMP_ERROR_OUT_OF_MEMORY);
    EXPECT_NE(std::string(ramp_last_error()).find("bytes"), std::string::npos) << ramp_last_error();
    ramp_weights* handle = nullptr;
    EXPECT_EQ(ramp_weights_create(context, &source.desc, nullptr, &handle), RAMP_ERROR_OUT_OF_MEMORY);
    EXPECT_EQ(handle, nullptr);
  }
  block.begin();
  const ramp_expert_block_args a = block.args(w.handle.get());
  require(ramp_expert_block(fresh.get(), &a, nullptr, 0, nullptr));
  block.finish();
  CheckOptions options = check_options();
  const std::vector<int64_t> sample = spread_tokens(4096, 8);
  options.tokens = sample;
  const CheckResult result = c.check(options);
  EXPECT_TRUE(result.ok()) << result.text();
}

// ---------------------------------------------------------------- the cache

TEST(GpuCache, DamagedEntriesAreCompiledAgain) {
  const TemporaryDirectory cache;
  {
    Log log;
    const ContextPtr context = make_gpu_context("", cache.path(), log.sink());
    run_block(context.get());
    EXPECT_GT(log.compiled, 0);
  }
  const std::vector<fs::path> files = cubins(cache.path());
  ASSERT_GT(files.size(), 0U);
  for (size_t i = 0; i < files.size(); ++i) {
    const uint64_t size = fs::file_size(files[i]);
    if (i % 3 == 0) {  // a bit turned in the middle
      std::fstream f(files[i], std::ios::in | std::ios::out | std::ios::binary);
      f.seekg(static_cast<std::streamoff>(size / 2));
      const int byte = f.get();
      f.seekp(static_cast<std::streamoff>(size / 2));
      f.put(static_cast<char>(byte ^ 0x10));
    } else if (i % 3 == 1) {  // torn
      fs::resize_file(files[i], size / 2);
    } else {  // another file altogether
      std::ofstream(files[i], std::ios::binary | std::ios::trunc) << "not a cubin";
    }
  }
  {
    Log log;
    const ContextPtr context = make_gpu_context("", cache.path(), log.sink());
    run_block(context.get());
    EXPECT_GE(log.warnings.size(), 1U);
    EXPECT_GT(log.compiled, 0);
  }
  Log log;
  const ContextPtr context = make_gpu_context("", cache.path(), log.sink());
  run_block(context.get());
  EXPECT_EQ(log.compiled, 0) << "the cache was not mended";
  EXPECT_TRUE(log.warnings.empty()) << log.warnings.front();
}

TEST(GpuCache, AFileInItsPlaceIsOneWarning) {
  const TemporaryDirectory place;
  const std::string file = place.path() + "/cache";
  std::ofstream(file) << "a file";
  Log log;
  const ContextPtr context = make_gpu_context("", file, log.sink());
  run_block(context.get());
  EXPECT_EQ(log.warnings.size(), 1U);
  EXPECT_TRUE(fs::is_regular_file(file));
}

// As a user who may read the cache and not write it, which root always may.
TEST(GpuChild, DISABLED_ReadsItsCacheOnly) {
  constexpr unsigned kNobody = 65534;
  if (geteuid() == 0) {
    ASSERT_EQ(setgid(kNobody), 0);
    ASSERT_EQ(setuid(kNobody), 0);
  }
  Log log;
  const ContextPtr context = make_gpu_context("", env(kDirectory).value_or(""), log.sink());
  run_block(context.get());
  const bool warm = env(kWarm).value_or("") == "1";
  EXPECT_EQ(log.compiled == 0, warm);
  EXPECT_EQ(log.warnings.size(), warm ? 0U : 1U) << (log.warnings.empty() ? "" : log.warnings.front());
}

void set_permissions(const std::string& directory, fs::perms directories, fs::perms files) {
  fs::permissions(directory, directories);
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    fs::permissions(entry.path(), entry.is_directory() ? directories : files);
}

TEST(GpuCache, AReadOnlyDirectoryIsReadAndElseOneWarning) {
  const TemporaryDirectory cache;
  const auto child = [&](const char* warm) {
    return wait_for(
        start_child("GpuChild.DISABLED_ReadsItsCacheOnly", {{kDirectory, cache.path()}, {kWarm, warm}}));
  };
  const auto everyone_reads = fs::perms(0555);
  set_permissions(cache.path(), everyone_reads, fs::perms(0444));
  EXPECT_EQ(child("0"), 0) << "empty";
  set_permissions(cache.path(), fs::perms(0755), fs::perms(0644));
  run_block(make_gpu_context("", cache.path()).get());
  set_permissions(cache.path(), everyone_reads, fs::perms(0444));
  EXPECT_EQ(child("1"), 0) << "full";
  set_permissions(cache.path(), fs::perms(0755), fs::perms(0644));
}

TEST(GpuChild, DISABLED_RunsABlock) {
  const ContextPtr context = make_gpu_context("", env(kDirectory).value_or(""));
  run_block(context.get(), 1 + static_cast<uint64_t>(getpid()) % 7);
}

TEST(GpuCache, TwoProcessesFillItTogether) {
  const TemporaryDirectory cache;
  const pid_t a = start_child("GpuChild.DISABLED_RunsABlock", {{kDirectory, cache.path()}});
  const pid_t b = start_child("GpuChild.DISABLED_RunsABlock", {{kDirectory, cache.path()}});
  EXPECT_EQ(wait_for(a), 0);
  EXPECT_EQ(wait_for(b), 0);
  Log log;
  const ContextPtr context = make_gpu_context("", cache.path(), log.sink());
  run_block(context.get());
  EXPECT_EQ(log.compiled, 0);
  EXPECT_TRUE(log.warnings.empty()) << log.warnings.front();
  for (const auto& entry : fs::recursive_directory_iterator(cache.path()))
    EXPECT_TRUE(entry.is_directory() || entry.path().extension() == ".cubin") << entry.path();
}

// ---------------------------------------------------------------- a context in error

// ids that no memory holds: the kernel that reads them faults, which ends the CUDA context for good.
TEST(GpuChild, DISABLED_FaultsInAKernel) {
  const ContextPtr context = make_gpu_context();
  BlockCase c(CaseSpec{});
  const GpuWeights w = make_gpu_weights(context.get(), c.synthetic, RAMP_COPY, true);
  GpuWeights source = upload_weights_of(context.get(), c.synthetic);
  source.desc.ownership = RAMP_COPY;
  GpuBlock block(c, context.get());
  block.run(w.handle.get());
  ramp_expert_block_args a = block.args(w.handle.get());
  a.topk_ids.data = reinterpret_cast<void*>(uintptr_t{1} << 44);
  const ramp_status first = ramp_expert_block(context.get(), &a, nullptr, 0, nullptr);
  if (first == RAMP_OK) {
    EXPECT_THROW(memory(context.get()).synchronize(nullptr), Error);
  } else {
    EXPECT_EQ(first, RAMP_ERROR_DEVICE) << ramp_last_error();
  }
  a = block.args(w.handle.get());
  EXPECT_EQ(ramp_expert_block(context.get(), &a, nullptr, 0, nullptr), RAMP_ERROR_DEVICE);
  EXPECT_NE(std::string(ramp_last_error()).find("CUDA_ERROR"), std::string::npos) << ramp_last_error();
  ramp_weights* handle = nullptr;
  EXPECT_EQ(ramp_weights_create(context.get(), &source.desc, nullptr, &handle), RAMP_ERROR_DEVICE);
  EXPECT_EQ(handle, nullptr);
}

TEST(GpuFaults, AFaultInAKernelIsAnErrorOfTheNextCall) {
  EXPECT_EQ(wait_for(start_child("GpuChild.DISABLED_FaultsInAKernel", {})), 0);
}

// ---------------------------------------------------------------- whose CUDA context (capture_test.cpp)

TEST(GpuContexts, ThePrimaryOneStaysWithItsHandles) {
  EXPECT_EQ(wait_for(start_child("GpuChild.DISABLED_KeepsThePrimaryContext", {})), 0);
}
TEST(GpuContexts, OneOfTheCallersIsUsed) {
  EXPECT_EQ(wait_for(start_child("GpuChild.DISABLED_RunsInAContextOfTheCallers", {})), 0);
}

// ---------------------------------------------------------------- time

// From after the context's creation to the first result, weights on the device already.
TEST(GpuChild, DISABLED_TimesTheFirstCall) {
  const ContextPtr context = make_gpu_context("", env(kDirectory).value_or(""));
  CaseSpec s;
  s.format = RAMP_FORMAT_FP8_BLOCK;  // packed: the stream kernels, most of all programs
  s.tokens = 32;
  s.experts = 64;
  s.top_k = 8;
  s.hidden = 256;
  s.intermediate = 128;
  BlockCase c(s);
  GpuWeights w = upload_weights_of(context.get(), c.synthetic);
  GpuBlock block(c, context.get());
  block.begin();
  const Clock::time_point start = Clock::now();
  w.desc.ownership = RAMP_IN_PLACE;
  ramp_weights* handle = nullptr;
  require(ramp_weights_create(context.get(), &w.desc, nullptr, &handle));
  w.handle.reset(handle);
  require(ramp_weights_pack(context.get(), handle, nullptr));
  const ramp_expert_block_args a = block.args(handle);
  require(ramp_expert_block(context.get(), &a, nullptr, 0, nullptr));
  memory(context.get()).synchronize(nullptr);
  const double seconds = seconds_since(start);
  block.finish();
  const double limit = std::strtod(env(kLimit).value_or("0").c_str(), nullptr);
  std::printf("first call: %.3f s (limit %.1f s)\n", seconds, limit);
  std::fflush(stdout);
  EXPECT_LE(seconds, limit);
}

TEST(GpuTime, FirstCallWithoutAndWithACache) {
  const TemporaryDirectory cache;
  EXPECT_EQ(wait_for(start_child("GpuChild.DISABLED_TimesTheFirstCall",
                                 {{kDirectory, cache.path()}, {kLimit, "3"}})),
            0)
      << "empty cache";
  EXPECT_EQ(wait_for(start_child("GpuChild.DISABLED_TimesTheFirstCall",
                                 {{kDirectory, cache.path()}, {kLimit, "0.3"}})),
            0)
      << "warm cache";
}

// What the driver alone takes for a launch like a stream GEMM's: some 150 bytes of parameters, one attribute.
// The copy kernel with nothing to copy.
double host_time_of_a_launch(CUstream stream) {
  const std::shared_ptr<const cuda::Gpu> device = cuda::Gpu::open(0);
  cuda::KernelLibrary library(device, "", core::LogSink{});
  CUfunction const f = library.get(cuda::copy_programs(90).front(), "copy_4");
  const cuda::CopyParameters nothing{};
  std::vector<double> us;
  for (int i = 0; i < 2000; ++i) {
    const Clock::time_point start = Clock::now();
    cuda::launch_dependent(true, f, {1, 1, 256, 0}, stream, nothing);
    us.push_back(1e6 * seconds_since(start));
    if (i % 64 == 63) RAMP_CU(cuStreamSynchronize, stream);
  }
  std::nth_element(us.begin(), us.begin() + 1000, us.end());
  return us[1000];
}

// The host's part of a call on a caller's workspace: validation, launches. The queue never fills up: every 16
// calls the stream is waited for.
TEST(GpuTime, HostTimeOfACall) {
  for (const int64_t tokens : {1, 64}) {
    CaseSpec s;
    s.tokens = tokens;
    s.experts = 64;
    s.top_k = 8;
    s.hidden = 256;
    s.intermediate = 128;
    BlockCase c(s);
    const GpuWeights w = make_gpu_weights(gpu(), c.synthetic, RAMP_COPY, true);
    GpuBlock block(c, gpu());
    const DeviceBuffer scratch = block.workspace(w.handle.get());
    const ramp_expert_block_args a = block.args(w.handle.get());
    const std::shared_ptr<const cuda::Gpu> device = cuda::Gpu::open(0);
    const cuda::ScopedContext scope(*device);
    CUstream own = nullptr;
    RAMP_CU(cuStreamCreate, &own, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
    // The caller's stream is what an engine uses and what counts; the legacy default stream is told beside
    // it.
    double driver_us = 0;
    for (CUstream stream : {static_cast<CUstream>(nullptr), own}) {
      std::vector<double> us;
      for (int i = 0; i < 2000; ++i) {
        const Clock::time_point start = Clock::now();
        const ramp_status status = ramp_expert_block(gpu(), &a, scratch.data(), scratch.bytes(), stream);
        us.push_back(1e6 * seconds_since(start));
        require(status);
        if (i % 16 == 15) memory(gpu()).synchronize(stream);
      }
      std::nth_element(us.begin(), us.begin() + 1000, us.end());
      if (stream == own) driver_us = host_time_of_a_launch(stream);
      std::printf("host time of a call, T = %d, %s stream: median %.1f us", static_cast<int>(tokens),
                  stream == nullptr ? "default" : "own", us[1000]);
      if (stream == own) std::printf("; one bare launch: %.1f us", driver_us);
      std::printf("\n");
      if (stream == own) {
        EXPECT_LE(us[1000], 15.0) << "T = " << tokens;
      }
    }
    std::fflush(stdout);
    RAMP_CU(cuStreamDestroy, own);
  }
}

}  // namespace
}  // namespace ramp::core::test
