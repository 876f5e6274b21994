// Element offsets beyond 2^31: weights, x and y with strides so large that 32-bit arithmetic would wrap, over
// sparse memory (pages that nobody touches cost nothing). Also the errors of the CPU backend's entry points.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <functional>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "numerics/cpu_support.hpp"

namespace ramp::core::test {
namespace {

// Address space without memory behind it until it is written.
class SparseMemory {
 public:
  explicit SparseMemory(size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                   0)) {}
  ~SparseMemory() {
    if (ok()) munmap(data_, bytes_);
  }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  [[nodiscard]] bool ok() const { return data_ != MAP_FAILED; }
  [[nodiscard]] void* data() const { return data_; }

 private:
  size_t bytes_;
  void* data_;
};

constexpr int64_t kFar = (int64_t{1} << 31) + 4096 + 64;  // elements

// The same values at far strides give the same bits as in place.
class CpuFarOffsets : public testing::TestWithParam<ramp_format> {};
INSTANTIATE_TEST_SUITE_P(Formats, CpuFarOffsets,
                         testing::Values(RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_FP8_CHANNEL),
                         [](const auto& p) { return std::string(format_name(p.param)); });

TEST_P(CpuFarOffsets, WeightsXAndY) {
  CaseSpec spec;
  spec.format = GetParam();
  spec.tokens = 3;
  spec.experts = 3;
  spec.top_k = 2;
  spec.hidden = 96;
  spec.intermediate = 64;
  spec.ids = Ids::kDistinct;
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  const auto near = make_held(c, Hold::kPackedCopy, backend);
  c.run(backend, *near);
  const std::vector<uint8_t> expected = c.y_bits();

  const int64_t width = dtype_bytes(weight_dtype(spec.format));
  const SparseMemory far13(static_cast<size_t>(3 * kFar * width));
  const SparseMemory far2(static_cast<size_t>(3 * kFar * width));
  const SparseMemory far_x(static_cast<size_t>(3 * kFar * 2));
  const SparseMemory far_y(static_cast<size_t>(3 * kFar * 2));
  if (!far13.ok() || !far2.ok() || !far_x.ok() || !far_y.ok())
    GTEST_SKIP() << "no address space for this here";
  ramp_weights_desc desc = c.synthetic.desc;
  const auto spread = [](ramp_tensor& t, void* to) {
    const ramp_tensor from = with_strides(t);
    t = from;
    t.data = to;
    t.stride[0] = kFar;
    copy_elements(from, t);
  };
  spread(desc.w13, far13.data());
  spread(desc.w2, far2.data());
  desc.ownership = RAMP_BORROW;

  const GuardedWorkspace workspace(backend.block_workspace(*near, spec.tokens, spec.top_k));
  for (const bool pack : {false, true}) {
    const auto w = make_expert_weights(desc, {});
    if (pack) backend.pack(*w, nullptr);
    BlockCall call = c.call(*w);
    ramp_tensor x = call.x;
    spread(x, far_x.data());
    call.x = x;
    call.y.data = far_y.data();
    call.y.stride[0] = kFar;
    call.workspace = workspace.data();
    call.workspace_bytes = workspace.bytes();
    backend.expert_block(call);
    EXPECT_EQ(bytes_of(call.y), expected) << (pack ? "packed" : "read in place");
  }
}

// ---------------------------------------------------------------- errors and edges

std::string error_of(const std::function<void()>& body, ramp_status status) {
  try {
    body();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), status) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(CpuErrors, WorkspaceTooSmallNamesTheSizeAndWritesNothing) {
  Backend& backend = cpu_backend();
  BlockCase c(CaseSpec{});
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  const uint64_t needed = backend.block_workspace(*w, c.spec.tokens, c.spec.top_k);
  const GuardedWorkspace workspace(needed);
  BlockCall call = c.call(*w);
  call.workspace = workspace.data();
  call.workspace_bytes = needed - 1;
  const std::string text = error_of([&] { backend.expert_block(call); }, RAMP_ERROR_WORKSPACE_TOO_SMALL);
  EXPECT_NE(text.find(std::to_string(needed)), std::string::npos) << text;
  for (const uint8_t b : c.y_bits()) ASSERT_EQ(b, kPoison);
  call.workspace = nullptr;
  error_of([&] { backend.expert_block(call); }, RAMP_ERROR_WORKSPACE_TOO_SMALL);
}

TEST(CpuErrors, IllegalConfigsAreRefusedWithTheReason) {
  Backend& backend = cpu_backend();
  BlockCase c(CaseSpec{});
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  const GuardedWorkspace workspace(backend.block_workspace(*w, c.spec.tokens, c.spec.top_k));
  BlockCall call = c.call(*w);
  call.workspace = workspace.data();
  call.workspace_bytes = workspace.bytes();
  KernelConfig config;
  config.tile_m = 8;
  config.tile_n = 48;
  call.config = &config;
  EXPECT_NE(error_of([&] { backend.expert_block(call); }, RAMP_ERROR_INVALID_ARGUMENT).find("tile_n 48"),
            std::string::npos);
}

struct ForeignPacked final : PackedWeights {
  [[nodiscard]] int64_t bytes() const noexcept override { return 0; }
};
TEST(CpuErrors, WeightsPackedBySomethingElseAreRefused) {
  Backend& backend = cpu_backend();
  BlockCase c(CaseSpec{});
  const auto w = make_held(c, Hold::kCopy, backend);
  w->packed = std::make_unique<ForeignPacked>();
  BlockCall call = c.call(*w);
  error_of([&] { backend.expert_block(call); }, RAMP_ERROR_INVALID_ARGUMENT);
  error_of([&] { backend.pack(*w, nullptr); }, RAMP_ERROR_INVALID_ARGUMENT);
}

TEST(CpuEdges, NoTokensTouchNothing) {
  CaseSpec spec;
  spec.tokens = 0;
  Backend& backend = cpu_backend();
  BlockCase c(spec);
  const auto w = make_held(c, Hold::kPackedCopy, backend);
  BlockCall call = c.call(*w);
  call.y.data = call.x.data = call.ids.data = nullptr;
  backend.expert_block(call);  // no workspace either
}

TEST(CpuEdges, WorkspaceGrowsWithTokensAndCoversEverySmallerCall) {
  Backend& backend = cpu_backend();
  for (const auto format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16, RAMP_FORMAT_FP8_CHANNEL}) {
    CaseSpec spec;
    spec.format = format;
    spec.hidden = 2048;
    spec.intermediate = 1024;
    spec.experts = 1;
    spec.top_k = 1;
    BlockCase c(spec);
    const auto w = make_held(c, Hold::kBorrow, backend);
    uint64_t last = 0;
    for (int64_t t = 1; t < 70000; t = t + 1 + t / 7) {
      const uint64_t bytes = backend.block_workspace(*w, t, 8);
      EXPECT_GE(bytes, last) << t;
      EXPECT_EQ(bytes % 256, 0U);
      last = bytes;
    }
    // No [T*k, H] copy of x hides in there: per slot, the intermediate (up to 4 bytes) and the sorted index;
    // per token, e4m3 codes; and blocks of columns of at least 256.
    const int64_t t = 65536;
    const double per_slot =
        static_cast<double>(backend.block_workspace(*w, t, 8)) / static_cast<double>(t * 8);
    EXPECT_LT(per_slot, 4.0 * 1024 + 2 * 256 * 4 + 2048 / 8 + 64);
  }
}

}  // namespace
}  // namespace ramp::core::test
