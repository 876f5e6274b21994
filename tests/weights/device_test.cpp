// Weights of a device that the host cannot read: creation, update of scales, upload. The "device" here is
// memory that is mapped without any access except inside DeviceMemory's own calls, so a stray dereference
// ends the test program.
#include <sys/mman.h>

#include <cstring>
#include <map>

#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "weights/support.hpp"

namespace ramp::core::test {
namespace {

constexpr ramp_device kGpu{RAMP_DEVICE_CUDA, 0};

class FakeDevice final : public DeviceMemory {
 public:
  [[nodiscard]] std::shared_ptr<void> allocate(uint64_t bytes) const override {
    void* const p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(p, MAP_FAILED);
    sizes_[p] = bytes;
    ++live;
    return {p, [this, bytes](void* q) {
              --live;
              sizes_.erase(q);
              munmap(q, bytes);
            }};
  }
  void upload(void* device, const void* host, uint64_t bytes, void* /*stream*/) const override {
    const Open open(*this);
    std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, uint64_t bytes, void* /*stream*/) const override {
    const Open open(*this);
    std::memcpy(host, device, bytes);
  }
  void copy(const ramp_tensor& from, const ramp_tensor& to, void* /*stream*/) const override {
    const Open open(*this);
    copy_elements(from, to);
  }
  void fill(void* device, uint8_t value, uint64_t bytes, void* /*stream*/) const override {
    const Open open(*this);
    std::memset(device, value, bytes);
  }
  void synchronize(void* /*stream*/) const override {}
  void synchronize_all() const override {}
  [[nodiscard]] uint64_t free_bytes() const override { return 0; }

  mutable int live = 0;

 private:
  struct Open {
    explicit Open(const FakeDevice& d) : device(d) { protect(PROT_READ | PROT_WRITE); }
    ~Open() { protect(PROT_NONE); }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
    void protect(int access) const {
      for (const auto& [p, bytes] : device.sizes_) ASSERT_EQ(mprotect(p, bytes, access), 0);
    }
    const FakeDevice& device;
  };
  mutable std::map<void*, uint64_t> sizes_;
};

// The same descriptor with its tensors on the device.
struct OnDevice {
  OnDevice(const FakeDevice& device, const ramp_weights_desc& host) : desc(host) {
    for (ramp_tensor* const t : {&desc.w13, &desc.w2, &desc.w13_scale, &desc.w2_scale, &desc.w13_input_scale,
                                 &desc.w2_input_scale}) {
      if (!present(*t)) continue;
      const auto bytes = static_cast<uint64_t>(numel(*t) * dtype_bytes(static_cast<ramp_dtype>(t->dtype)));
      owners.push_back(device.allocate(bytes));
      device.upload(owners.back().get(), t->data, bytes, nullptr);
      t->data = owners.back().get();
      t->device = kGpu;
    }
  }
  ramp_weights_desc desc;
  std::vector<std::shared_ptr<void>> owners;
};

std::vector<std::byte> bytes_of(const FakeDevice& device, const ramp_tensor& t) {
  std::vector<std::byte> bytes(static_cast<size_t>(numel(t) * dtype_bytes(static_cast<ramp_dtype>(t.dtype))));
  if (!bytes.empty() && present(t)) device.download(bytes.data(), t.data, bytes.size(), nullptr);
  return bytes;
}
std::vector<std::byte> host_bytes_of(const ramp_tensor& t) {
  std::vector<std::byte> bytes(static_cast<size_t>(numel(t) * dtype_bytes(static_cast<ramp_dtype>(t.dtype))));
  if (present(t)) std::memcpy(bytes.data(), t.data, bytes.size());
  return bytes;
}

void expect_same(const FakeDevice& device, const ExpertWeights& w, const ramp_weights_desc& host) {
  EXPECT_EQ(bytes_of(device, w.w13), host_bytes_of(host.w13));
  EXPECT_EQ(bytes_of(device, w.w2), host_bytes_of(host.w2));
  if (present(host.w13_scale)) {
    EXPECT_EQ(bytes_of(device, w.w13_scale), host_bytes_of(host.w13_scale));
    EXPECT_EQ(bytes_of(device, w.w2_scale), host_bytes_of(host.w2_scale));
  }
}

class DeviceWeights : public testing::TestWithParam<ramp_format> {};

TEST_P(DeviceWeights, CopyOwnsItsMemoryThere) {
  const FakeDevice device;
  const SyntheticWeights s = values(GetParam());
  std::unique_ptr<ExpertWeights> w;
  {
    OnDevice source(device, s.desc);
    source.desc.ownership = RAMP_COPY;
    w = make_expert_weights(source.desc, kGpu, {&device, nullptr});
    for (const auto& owner : source.owners)
      device.fill(owner.get(), 0xff, 1, nullptr);  // the caller's: free to change
  }
  expect_same(device, *w, s.desc);
  EXPECT_EQ(w->device.type, RAMP_DEVICE_CUDA);
  if (GetParam() == RAMP_FORMAT_FP8_TENSOR) {
    EXPECT_EQ(w->w13_input_scale, s.w13_input_scale[0]);
    EXPECT_EQ(w->w2_input_scale, s.w2_input_scale[0]);
  }
  w.reset();
  EXPECT_EQ(device.live, 0);
}

TEST_P(DeviceWeights, BorrowRefersToTheCallersMemory) {
  const FakeDevice device;
  const SyntheticWeights s = values(GetParam());
  OnDevice source(device, s.desc);
  source.desc.ownership = RAMP_BORROW;
  const int before = device.live;
  const auto w = make_expert_weights(source.desc, kGpu, {&device, nullptr});
  EXPECT_EQ(device.live, before);
  EXPECT_EQ(w->w13.data, source.desc.w13.data);
  EXPECT_EQ(w->w2_scale.data, source.desc.w2_scale.data);
}

TEST_P(DeviceWeights, UploadTakesAnyHostView) {
  const FakeDevice device;
  const SyntheticWeights s = values(GetParam());
  const auto host = make_expert_weights(s.desc, {});
  // w2 once more with a gap behind every row.
  const int64_t width = dtype_bytes(weight_dtype(GetParam()));
  const int64_t pitch = s.desc.intermediate + 32;
  std::vector<std::byte> wide(static_cast<size_t>(3 * s.desc.hidden * pitch * width), std::byte{0xee});
  ramp_tensor view = with_strides(s.desc.w2);
  view.data = wide.data();
  view.stride[0] = s.desc.hidden * pitch;
  view.stride[1] = pitch;
  copy_elements(with_strides(s.desc.w2), view);
  host->w2 = view;
  auto w = upload_weights(*host, kGpu, {&device, nullptr});
  expect_same(device, *w, s.desc);
  EXPECT_EQ(w->ownership, RAMP_COPY);
  EXPECT_EQ(w->w13_input_scale, host->w13_input_scale);
  EXPECT_TRUE(is_contiguous(w->w2));
  w.reset();
  EXPECT_EQ(device.live, 0);
}

TEST_P(DeviceWeights, HostTensorsAreRefused) {
  const FakeDevice device;
  const SyntheticWeights s = values(GetParam());
  expect_parts(message_of([&] {
                 make_expert_weights(s.desc, kGpu, {&device, nullptr});
               }),
               {"desc.w13", "cpu", "cuda:0"});
}

INSTANTIATE_TEST_SUITE_P(All, DeviceWeights, testing::ValuesIn(kFormats),
                         [](const auto& i) { return std::string(format_name(i.param)); });

TEST(DeviceWeightsScale, BadInputScaleIsSeenThroughTheDevice) {
  const FakeDevice device;
  const SyntheticWeights s = values(RAMP_FORMAT_FP8_TENSOR);
  OnDevice source(device, s.desc);
  const float bad = -1.0F;
  device.upload(source.desc.w2_input_scale.data, &bad, sizeof bad, nullptr);
  expect_parts(message_of([&] {
                 make_expert_weights(source.desc, kGpu, {&device, nullptr});
               }),
               {"desc.w2_input_scale", "got -1", "a finite scale > 0"});
}

}  // namespace
}  // namespace ramp::core::test
