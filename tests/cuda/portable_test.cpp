// The portable GEMMs compile, without spills, for the architectures that the kernel report does not list.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "backend/cuda/kernel_report.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "backend/cuda/portable_block.hpp"
#include "base/error.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

// fp16 is bf16's twin, and fp8_tensor and fp8_channel differ from fp8_block in the scales alone.
bool is_sampled(const std::string& name) {
  return name.starts_with("portable_fp8_block") || name.starts_with("portable_bf16");
}

TEST(PortablePrograms, CompileForEveryArchitecture) {
  struct Job {
    cuda::KernelProgram program;
    std::string arch, fault;
  };
  std::vector<Job> jobs;
  const std::vector<int>& known = cuda::nvrtc().archs;
  for (const std::string arch : {"sm_86", "sm_100", "sm_120"}) {
    const int number = cuda::arch_number(arch);
    if (std::find(known.begin(), known.end(), number) == known.end()) continue;  // an older NVRTC
    for (cuda::KernelProgram& p : cuda::portable_programs(number))
      if (is_sampled(p.name)) jobs.push_back({std::move(p), arch, ""});
  }
  ASSERT_FALSE(jobs.empty());
  const bool reduced = std::getenv("RAMP_TEST_REDUCED") != nullptr;  // NOLINT(concurrency-mt-unsafe)
  const size_t step = reduced ? 10 : 1;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = step * next++; i < jobs.size(); i = step * next++) {
      Job& job = jobs[i];
      try {
        const cuda::Cubin cubin = cuda::compile_program(job.program, job.arch);
        for (const cuda::ReportRow& r : cuda::report_rows(job.program, job.arch, cubin))
          if (r.resources.spill_stores > 0 || r.resources.spill_loads > 0) job.fault = "spills";
      } catch (const core::Error& e) {
        job.fault = e.what();
      }
    }
  };
  std::vector<std::thread> threads(std::max(1U, std::thread::hardware_concurrency() / 2));
  for (std::thread& t : threads) t = std::thread(work);
  for (std::thread& t : threads) t.join();
  for (const Job& job : jobs) EXPECT_EQ(job.fault, "") << job.program.name << " for " << job.arch;
}

}  // namespace
}  // namespace ramp::cuda_test
