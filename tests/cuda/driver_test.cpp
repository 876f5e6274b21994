// The one clear line of every way in which there can be no driver; processes of their own, since a process
// opens its driver once.
#include "backend/cuda/driver.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "cuda/support.hpp"

namespace ramp::cuda_test {
namespace {

std::string driver_line(const std::string& directory, const std::string& mode) {
  int code = 0;
  const std::string text = output_of(
      "LD_LIBRARY_PATH='" + directory + "' RAMP_FAKE_DRIVER='" + mode + "' '" RAMP_CUDA_HELPER "' driver",
      &code);
  EXPECT_EQ(code, 0) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  return text;
}

TEST(CudaDriver, MissingLibrary) {
  // A file that is no library: what the loader says of it, and no search elsewhere.
  const Scratch scratch;
  write_file(scratch.path("libcuda.so.1"), "no library");
  const std::string line = driver_line(scratch.directory(), "");
  EXPECT_TRUE(line.starts_with("CUDA driver: got no libcuda.so.1 (")) << line;
  EXPECT_NE(line.find("expected an NVIDIA driver of CUDA 12.0 or newer; install one or use backend cpu"),
            std::string::npos)
      << line;
}

TEST(CudaDriver, TooOld) {
  EXPECT_EQ(
      driver_line(RAMP_FAKE_DRIVER_DIR, "old"),
      "CUDA driver: got version 11.8, expected 12.0 or newer; update the NVIDIA driver or use backend cpu\n");
}

TEST(CudaDriver, NoGpu) {
  EXPECT_EQ(driver_line(RAMP_FAKE_DRIVER_DIR, "no-device"),
            "CUDA driver: got no GPU (driver 12.0), expected at least one; check 'nvidia-smi' and "
            "CUDA_VISIBLE_DEVICES or use backend cpu\n");
}

TEST(CudaDriver, InitFails) {
  const std::string line = driver_line(RAMP_FAKE_DRIVER_DIR, "no-init");
  EXPECT_TRUE(line.starts_with("CUDA driver: got CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803) from cuInit"))
      << line;
}

// The stand-in has the symbols of CUDA 12.0: the headers of 13 ask for a newer cuEventElapsedTime.
TEST(CudaDriver, SymbolsOfTheOldestDriverSuffice) {
  EXPECT_EQ(driver_line(RAMP_FAKE_DRIVER_DIR, ""), "driver 12.0\n");
}

// A library with a version and nothing else is no driver.
TEST(CudaDriver, IncompleteLibrary) {
  const Scratch scratch;
  write_file(scratch.path("v.c"), "int cuDriverGetVersion(int* v) { *v = 13000; return 0; }");
  int code = 0;
  output_of("cc -shared -fPIC -o '" + scratch.path("libcuda.so.1") + "' '" + scratch.path("v.c") + "'",
            &code);
  if (code != 0) GTEST_SKIP() << "no C compiler 'cc' to make an incomplete libcuda with";
  const std::string line = driver_line(scratch.directory(), "");
  EXPECT_NE(line.find("libcuda.so.1 without cuInit, expected a complete driver"), std::string::npos) << line;
}

// In this process there is a driver or a reason, and every way of asking says the same.
TEST(CudaDriver, AsksAgree) {
  std::string why;
  const core::cuda::Driver* const d = core::cuda::find_driver(&why);
  if (d != nullptr) {
    EXPECT_EQ(d, &core::cuda::driver());
    EXPECT_GE(d->version, 12000);
    return;
  }
  EXPECT_TRUE(why.starts_with("CUDA driver: got ")) << why;
  try {
    core::cuda::driver();
    FAIL() << "no driver, no error";
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_UNSUPPORTED);
    EXPECT_EQ(e.what(), why);
  }
}

TEST(CudaDriver, ErrorHoldsCallAndArguments) {
  int value = 0;
  const auto failing = [](int*, unsigned long long, long long, CUstream, CUdevice_attribute) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  };
  try {
    core::cuda::call("cuSomething", +failing, &value, 12ULL, -3LL, CUstream{},
                     CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_OUT_OF_MEMORY);
    const std::string text = e.what();
    EXPECT_TRUE(text.starts_with("cuSomething(0x")) << text;
    EXPECT_NE(text.find(", 12, -3, NULL, 16): got "), std::string::npos) << text;
  }
  EXPECT_NO_THROW(core::cuda::check_result(CUDA_SUCCESS, "x", ""));
  try {
    core::cuda::check_result(CUDA_ERROR_LAUNCH_FAILED, "cuLaunchKernel", "f");
    FAIL();
  } catch (const core::Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_DEVICE);
    EXPECT_NE(std::string(e.what()).find("(719"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace ramp::cuda_test
