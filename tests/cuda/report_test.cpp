// docs/kernel-report.md is what the compiler says today, and no kernel spills but those listed here.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "base/error.hpp"
#include "cuda/compiled.hpp"
#include "cuda/support.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

// Kernels that may spill, and why that is right: "program/kernel/arch". None does.
const std::map<std::string, std::string> kMaySpill;

std::vector<cuda::ReportRow> all_rows() {
  std::vector<cuda::ReportRow> rows;
  for (const ShippedProgram& shipped : all_programs())
    for (const auto& [program, arch] : shipped.variants)
      for (cuda::ReportRow& r : cuda::report_rows(program, arch, compiled(program, arch)))
        rows.push_back(std::move(r));
  return rows;
}

TEST(KernelReport, PageIsUpToDate) {
  if (std::getenv("RAMP_TEST_REDUCED") != nullptr)  // NOLINT(concurrency-mt-unsafe)
    GTEST_SKIP() << "RAMP_TEST_REDUCED: compiles everything; the unreduced ./test runs it";
  const std::string page = read_file(RAMP_SOURCE_DIR "/docs/kernel-report.md");
  const std::string version = cuda::nvrtc().version();
  const std::string made_with = "as NVRTC ";
  const size_t at = page.find(made_with);
  ASSERT_NE(at, std::string::npos);
  const std::string theirs =
      page.substr(at + made_with.size(), page.find(' ', at + made_with.size()) - at - made_with.size());
  if (theirs != version)
    GTEST_SKIP() << "docs/kernel-report.md was made with NVRTC " << theirs << ", here is " << version
                 << ": register counts differ from version to version";
  EXPECT_EQ(cuda::report_markdown(all_rows(), version), page)
      << "out of date: regenerate it with  build/bin/ramp cache warm --report docs/kernel-report.md";
}

TEST(KernelReport, NoSpillsButThoseWithAReason) {
  if (std::getenv("RAMP_TEST_REDUCED") != nullptr)  // NOLINT(concurrency-mt-unsafe)
    GTEST_SKIP() << "RAMP_TEST_REDUCED: compiles everything; the unreduced ./test runs it";
  for (const cuda::ReportRow& r : all_rows()) {
    const std::string name = r.program + "/" + r.resources.entry + "/" + r.arch;
    const bool spills = r.resources.spill_stores > 0 || r.resources.spill_loads > 0;
    if (kMaySpill.contains(name))
      EXPECT_TRUE(spills) << name << " no longer spills: take it off the list";
    else
      EXPECT_FALSE(spills) << name << ": " << r.resources.spill_stores << " bytes of stores, "
                           << r.resources.spill_loads << " of loads";
    EXPECT_GT(r.resources.registers, 0) << name;
    EXPECT_LE(r.resources.registers, 255) << name;
    EXPECT_LE(r.resources.static_shared, 48 << 10) << name;
  }
}

// What the compiler's log looks like, with what the shipped kernels need not have.
TEST(KernelReport, ReadsTheLog) {
  const cuda::Cubin cubin = cuda::compile_source(
      "log",
      "extern \"C\" __global__ void shared(float* p, int n) { __shared__ float s[100]; s[threadIdx.x] = p[0];"
      "  __syncthreads(); p[threadIdx.x] = s[n]; }\n"
      "extern \"C\" __global__ void stack(float* p, int n) { float a[64]; for (int i = 0; i < 64; ++i) a[i] "
      "= p[i * n];"
      "  for (int i = 0; i < 64; ++i) p[i] = a[(i * n) & 63]; }\n"
      "extern \"C\" __global__ void __launch_bounds__(1024, 2) spills(float* p) { float a[96];\n"
      "#pragma unroll\n"
      "  for (int i = 0; i < 96; ++i) a[i] = p[i * 1024 + threadIdx.x];\n"
      "  __syncthreads();\n"
      "#pragma unroll\n"
      "  for (int i = 0; i < 96; ++i) p[i * 1024 + 1023 - threadIdx.x] = a[i] * a[95 - i]; }\n",
      {}, {"-std=c++17", "--gpu-architecture=sm_80", "--ptxas-options=-v"});
  const std::vector<cuda::KernelResources> list = cuda::parse_resources(cubin.log);
  ASSERT_EQ(list.size(), 3U) << cubin.log;
  for (const cuda::KernelResources& r : list) {
    EXPECT_GT(r.registers, 0) << r.entry;
    EXPECT_EQ(r.static_shared, r.entry == "shared" ? 400 : 0) << r.entry;
    EXPECT_EQ(r.spill_stores > 0, r.entry == "spills") << r.entry << "\n" << cubin.log;
    EXPECT_EQ(r.spill_loads > 0, r.entry == "spills") << r.entry;
    EXPECT_EQ(r.stack == 256, r.entry == "stack") << r.entry;
  }
}

TEST(KernelReport, UnknownLogsAreAnError) {
  EXPECT_TRUE(cuda::parse_resources("").empty());
  EXPECT_THROW(cuda::parse_resources("ptxas info : Compiling entry function 'f' for 'sm_80'\n"), core::Error);
  EXPECT_THROW(cuda::report_rows(cuda::copy_programs(80).front(), "sm_80", {}), core::Error);
}

}  // namespace
}  // namespace ramp::cuda_test
