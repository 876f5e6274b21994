// The embedded files are the files, and every shipped program compiles for every architecture that it is for.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <set>

#include "base/error.hpp"
#include "cuda/compiled.hpp"
#include "cuda/support.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

TEST(CudaPrograms, EmbeddedFilesAreTheFiles) {
  std::set<std::string> names;
  for (const cuda::EmbeddedFile& f : cuda::embedded_files()) {
    const std::string name(f.name);
    EXPECT_TRUE(names.insert(name).second) << name;
    const std::string root = name.starts_with("routing/") ? "/src/" : "/kernels/";
    const std::string text = read_file(RAMP_SOURCE_DIR + root + name);
    EXPECT_EQ(f.text, text) << name;
    EXPECT_FALSE(text.empty()) << name;
  }
  EXPECT_TRUE(names.contains("routing/score_math.hpp"));
  for (const auto& e : std::filesystem::recursive_directory_iterator(RAMP_SOURCE_DIR "/kernels")) {
    if (e.path().extension() != ".cu" && e.path().extension() != ".cuh") continue;
    EXPECT_TRUE(names.contains(std::filesystem::relative(e.path(), RAMP_SOURCE_DIR "/kernels").string()))
        << e.path();
  }
}

TEST(CudaPrograms, FilesOfAProgramAreItsIncludes) {
  const cuda::KernelProgram copy = cuda::copy_programs(80).front();
  std::vector<std::string> names;
  for (const cuda::EmbeddedFile& f : cuda::files_of(copy)) names.emplace_back(f.name);
  EXPECT_EQ(names, (std::vector<std::string>{"copy.cu", "common/types.cuh"}));
  cuda::KernelProgram missing = copy;
  missing.source = "nowhere.cu";
  EXPECT_THROW(cuda::files_of(missing), core::Error);
}

TEST(CudaPrograms, NamesTellProgramsApart) {
  for (const int arch : {80, 89, 90}) {
    std::set<std::string> names;
    for (const cuda::KernelProgram& p : cuda::shipped_programs(arch)) {
      EXPECT_TRUE(names.insert(p.name).second) << p.name;
      EXPECT_EQ(p.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"), std::string::npos)
          << p.name;
      EXPECT_FALSE(p.entries.empty()) << p.name;
      EXPECT_TRUE(cuda::compiles_for(p, arch)) << p.name;
    }
    EXPECT_TRUE(names.contains("copy"));
  }
}

TEST(CudaPrograms, ArchNames) {
  EXPECT_EQ(cuda::arch_number("sm_80"), 80);
  EXPECT_EQ(cuda::arch_number("sm_90a"), 90);
  EXPECT_EQ(cuda::arch_number("sm_120f"), 120);
  for (const char* const bad :
       {"", "sm_", "90", "sm_90b", "sm_9", "sm_90aa", "compute_90", "sm_-80", "sm_80 "})
    EXPECT_THROW(cuda::arch_number(bad), core::Error) << bad;
  EXPECT_EQ((cuda::GpuFacts{.major = 9, .minor = 0}).arch(), "sm_90a");
  EXPECT_EQ((cuda::GpuFacts{.major = 8, .minor = 9}).arch(), "sm_89");
  EXPECT_EQ((cuda::GpuFacts{.major = 12, .minor = 0}).arch(), "sm_120a");
}

TEST(CudaPrograms, WrongArchitectureIsUnsupported) {
  cuda::KernelProgram p = cuda::copy_programs(80).front();
  for (const char* const arch : {"sm_20", "sm_999"}) {
    try {
      cuda::compile_program(p, arch);
      FAIL() << arch;
    } catch (const core::Error& e) {
      EXPECT_EQ(e.status(), RAMP_ERROR_UNSUPPORTED);
    }
  }
  p.min_arch = 90;
  EXPECT_THROW(cuda::compile_program(p, "sm_89"), core::Error);
  EXPECT_THROW(cuda::compile_program(p, "sm_90"), core::Error) << "only the architecture-specific target";
  EXPECT_NO_THROW(cuda::compile_program(p, "sm_90a"));
}

TEST(CudaPrograms, CompilationErrorHoldsTheLog) {
  try {
    cuda::compile_source("broken", "extern \"C\" __global__ void f() { nonsense; }", {},
                         {"-std=c++17", "--gpu-architecture=sm_80"});
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_INTERNAL);
    const std::string text = e.what();
    EXPECT_NE(text.find("kernel broken"), std::string::npos) << text;
    EXPECT_NE(text.find("nonsense"), std::string::npos) << text;
    EXPECT_NE(text.find("--gpu-architecture=sm_80"), std::string::npos) << text;
  }
}

// The host's exp and sigmoid compile as device code as they stand.
TEST(CudaPrograms, DeviceTwinsCompile) {
  const cuda::Cubin cubin =
      cuda::compile_source("twin",
                           "#include \"routing/score_math.hpp\"\n"
                           "extern \"C\" __global__ void f(float* p) { p[threadIdx.x] = "
                           "ramp::core::sigmoid_f32(p[threadIdx.x]); }",
                           cuda::embedded_files(), {"-std=c++17", "--gpu-architecture=sm_80", "-fmad=false"});
  EXPECT_FALSE(cubin.bytes.empty());
}

class CudaProgram : public testing::TestWithParam<ShippedProgram> {};

TEST_P(CudaProgram, CompilesWithoutWarnings) {
  // Under sanitizers in continuous integration: the compiler is not what they watch, so one program in ten.
  if (std::getenv("RAMP_TEST_REDUCED") != nullptr &&
      std::hash<std::string>{}(GetParam().name) % 10 != 0)  // NOLINT(concurrency-mt-unsafe)
    GTEST_SKIP() << "RAMP_TEST_REDUCED: one program in ten";
  for (const auto& [program, arch] : GetParam().variants) {
    const cuda::Cubin& cubin = compiled(program, arch);
    EXPECT_TRUE(cubin.bytes.starts_with("\177ELF")) << arch;
    EXPECT_GT(cubin.seconds, 0) << arch;
    EXPECT_EQ(cubin.log.find("warning"), std::string::npos) << arch << "\n" << cubin.log;
    std::set<std::string> entries;
    for (const cuda::KernelResources& r : cuda::parse_resources(cubin.log)) entries.insert(r.entry);
    EXPECT_EQ(entries, std::set<std::string>(program.entries.begin(), program.entries.end())) << arch;
  }
}
INSTANTIATE_TEST_SUITE_P(Shipped, CudaProgram, testing::ValuesIn(all_programs()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ramp::cuda_test
