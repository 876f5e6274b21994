// Device memory on whatever driver the process has: the stand-in (cuda_fake_test) or a GPU (cuda_gpu_test).
#include <gtest/gtest.h>

#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "base/rng.hpp"
#include "cuda/needs_gpu.hpp"
#include "cuda/strided.hpp"

namespace ramp::cuda_test {
namespace {
namespace cuda = core::cuda;

// Every shape, with the kernel and without it, against the copy element by element; nothing beside the view
// is written.
class DeviceCopy : public testing::TestWithParam<StridedCase> {};
TEST_P(DeviceCopy, EqualsElementByElement) {
  RAMP_NEEDS_GPU();
  const auto gpu = cuda::Gpu::open(0);
  const auto kernels = std::make_shared<cuda::KernelLibrary>(gpu, "", core::LogSink{});
  const StridedCase& c = GetParam();
  for (const bool with_kernels : {false, true}) {
    const auto device = cuda::make_device_memory(gpu, with_kernels ? kernels : nullptr);
    for (const ramp_dtype dtype : {RAMP_E4M3, RAMP_BF16, RAMP_F32}) {
      constexpr size_t kBytes = 20000;
      std::vector<uint8_t> source(kBytes), wanted(kBytes, 0xee), got(kBytes);
      for (size_t i = 0; i < kBytes; ++i) source[i] = static_cast<uint8_t>(core::random_u64(3, i));
      const auto from = device->allocate(kBytes);
      const auto to = device->allocate(kBytes);
      const size_t at = 64;
      ASSERT_LE(at + span_of(tensor_of(nullptr, dtype, c.shape, c.from)), kBytes);
      ASSERT_LE(at + span_of(tensor_of(nullptr, dtype, c.shape, c.to)), kBytes);
      device->upload(from.get(), source.data(), kBytes, nullptr);
      device->upload(to.get(), wanted.data(), kBytes, nullptr);
      copy_elements(tensor_of(source.data() + at, dtype, c.shape, c.from),
                    tensor_of(wanted.data() + at, dtype, c.shape, c.to));
      device->copy(tensor_of(static_cast<char*>(from.get()) + at, dtype, c.shape, c.from),
                   tensor_of(static_cast<char*>(to.get()) + at, dtype, c.shape, c.to), nullptr);
      device->download(got.data(), to.get(), kBytes, nullptr);
      EXPECT_EQ(got, wanted) << c.name << (with_kernels ? " with kernels" : "");
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, DeviceCopy, testing::ValuesIn(strided_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(DeviceMemory, FillAndBytesUpAndDown) {
  RAMP_NEEDS_GPU();
  const auto device = cuda::make_device_memory(cuda::Gpu::open(0));
  constexpr size_t kBytes = (size_t{16} << 20) + 3;
  const auto memory = device->allocate(kBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % 256, 0U);
  std::vector<uint8_t> in(kBytes), out(kBytes);
  for (size_t i = 0; i < kBytes; ++i) in[i] = static_cast<uint8_t>(core::random_u64(5, i));
  device->upload(memory.get(), in.data(), kBytes, nullptr);
  device->fill(memory.get(), 0x5a, 1001, nullptr);
  device->download(out.data(), memory.get(), kBytes, nullptr);
  std::fill_n(in.begin(), 1001, uint8_t{0x5a});
  EXPECT_EQ(in, out);
}

}  // namespace
}  // namespace ramp::cuda_test
