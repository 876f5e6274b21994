// See support.hpp.
#include "gpu/support.hpp"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "abi/handles.hpp"
#include "backend/cpu/thread_pool.hpp"
#include "base/env.hpp"
#include "base/tensor.hpp"

namespace ramp::core::test {

void require(ramp_status status) {
  if (status != RAMP_OK) throw std::runtime_error(ramp_last_error());
}

ContextPtr make_gpu_context(const std::string& isa, const std::string& cache_dir, LogSink log) {
  ramp_context_options options = ramp_context_options_init();
  options.device = gpu_device();
  options.isa = isa.empty() ? nullptr : isa.c_str();
  options.cache_dir = cache_dir.empty() ? nullptr : cache_dir.c_str();
  options.log = log.fn;
  options.log_user = log.user;
  ramp_context* context = nullptr;
  require(ramp_context_create(&options, &context));
  return ContextPtr(context);
}

namespace {

// Contexts that tests share. They go before main ends: at static destruction the driver may be gone, and a
// leak checker would find what they held.
std::map<std::string, ContextPtr>& kept_contexts() {
  static std::map<std::string, ContextPtr> contexts;
  return contexts;
}
class ReleaseContexts : public testing::Environment {
 public:
  void TearDown() override { kept_contexts().clear(); }
};
const testing::Environment* const kReleaseContexts = testing::AddGlobalTestEnvironment(new ReleaseContexts);

// For check_options(): the tests run one block at a time and check it next.
BlockArithmetic g_arithmetic;

}  // namespace

void note_arithmetic(ramp_context* context, const ramp_weights* w) {
  g_arithmetic = context_of(context).backend->arithmetic(*weights_of(w).weights);
}

ramp_context* gpu(const std::string& isa) {
  ContextPtr& context = kept_contexts()[isa];
  if (context == nullptr) context = make_gpu_context(isa);
  return context.get();
}

ramp_context* cpu() {
  static const ContextPtr context = [] {
    ramp_context* c = nullptr;
    require(ramp_context_create(nullptr, &c));
    return ContextPtr(c);
  }();
  return context.get();
}

const DeviceMemory& memory(ramp_context* context) {
  return *context_of(context).backend->memory();
}

ramp_device gpu_device() {
  return {RAMP_DEVICE_CUDA, 0};
}

bool poisoning() {
  static const bool on = !env("RAMP_GPU_NO_POISON").has_value();
  return on;
}

// ---------------------------------------------------------------- memory

DeviceBuffer::DeviceBuffer(ramp_context* context, uint64_t bytes)
    : memory_(&memory(context)), own_(memory_->allocate(bytes + kGuard)), bytes_(bytes) {
  memory_->fill(static_cast<std::byte*>(own_.get()) + bytes_, kPoison, kGuard, nullptr);
  poison();
}

void DeviceBuffer::poison() const {
  if (poisoning() && bytes_ > 0) memory_->fill(own_.get(), kPoison, bytes_, nullptr);
  if (memory_ != nullptr) memory_->synchronize(nullptr);
}

void DeviceBuffer::upload(const void* host) const {
  memory_->upload(own_.get(), host, bytes_, nullptr);
  memory_->synchronize(nullptr);
}

void DeviceBuffer::download(void* host) const {
  memory_->download(host, own_.get(), bytes_, nullptr);
}

bool DeviceBuffer::guard_intact() const {
  if (memory_ == nullptr) return true;
  std::vector<uint8_t> guard(kGuard);
  memory_->download(guard.data(), static_cast<std::byte*>(own_.get()) + bytes_, kGuard, nullptr);
  return std::all_of(guard.begin(), guard.end(), [](uint8_t b) { return b == kPoison; });
}

OnDevice::OnDevice(ramp_context* context, void* host, uint64_t bytes, const ramp_tensor& view)
    : host_(host), view_(view) {
  if (view.ndim == 0) return;
  buffer_ = DeviceBuffer(context, bytes);
  const auto offset = static_cast<std::byte*>(view.data) - static_cast<std::byte*>(host);
  view_.data = buffer_.data() == nullptr ? nullptr : static_cast<std::byte*>(buffer_.data()) + offset;
  view_.device = gpu_device();
  upload();
}

OnDevice::OnDevice(ramp_context* context, OwnedTensor& host)
    : OnDevice(context, host.memory.data(), host.memory.size(), host.view) {}

void OnDevice::upload() const {
  if (buffer_.bytes() > 0) buffer_.upload(host_);
}
void OnDevice::download() const {
  if (buffer_.bytes() > 0) buffer_.download(host_);
}
void OnDevice::poison() const {
  buffer_.poison();
}

// ---------------------------------------------------------------- weights

GpuWeights upload_weights_of(ramp_context* context, const SyntheticWeights& host) {
  GpuWeights w;
  w.desc = host.desc;
  for (ramp_tensor* const t : {&w.desc.w13, &w.desc.w2, &w.desc.w13_scale, &w.desc.w2_scale,
                               &w.desc.w13_input_scale, &w.desc.w2_input_scale}) {
    if (!present(*t)) continue;
    const auto bytes = static_cast<uint64_t>(numel(*t) * dtype_bytes(static_cast<ramp_dtype>(t->dtype)));
    w.memory.push_back(memory(context).allocate(bytes));
    memory(context).upload(w.memory.back().get(), t->data, bytes, nullptr);
    t->data = w.memory.back().get();
    t->device = gpu_device();
  }
  memory(context).synchronize(nullptr);
  return w;
}

GpuWeights make_gpu_weights(ramp_context* context, const SyntheticWeights& host, ramp_ownership ownership,
                            bool pack) {
  GpuWeights w = upload_weights_of(context, host);
  w.desc.ownership = ownership;
  ramp_weights* handle = nullptr;
  require(ramp_weights_create(context, &w.desc, nullptr, &handle));
  w.handle.reset(handle);
  // The library has its own copy: what it must not read any more is gone.
  if (ownership == RAMP_COPY) w.memory.clear();
  if (pack) {
    require(ramp_weights_pack(context, handle, nullptr));
    memory(context).synchronize(nullptr);
  }
  note_arithmetic(context, handle);
  return w;
}

// ---------------------------------------------------------------- the block

GpuBlock::GpuBlock(BlockCase& c, ramp_context* context)
    : x(context, c.x),
      x_scale(context, c.x_scale),
      ids(context, c.ids),
      topk_weights(context, c.topk_weights),
      shared_addend(context, c.shared_addend),
      y(context, c.y),
      counters(context, c.counters, sizeof c.counters, make_tensor(c.counters, RAMP_I64, {2})),
      case_(c),
      context_(context) {
  if (!c.map.empty())
    map = OnDevice(context, c.map.data(), c.map.size() * sizeof(int32_t),
                   make_tensor(c.map.data(), RAMP_I32, {static_cast<int64_t>(c.map.size())}));
}

ramp_expert_block_args GpuBlock::args(const ramp_weights* w) const {
  note_arithmetic(context_, w);
  ramp_expert_block_args a = ramp_expert_block_args_init();
  a.weights = w;
  a.determinism = case_.spec.determinism;
  a.output = case_.spec.output;
  a.router_weight_on_input = case_.spec.router_weight_on_input ? 1 : 0;
  a.x = x.view();
  a.x_scale = x_scale.view();
  a.topk_ids = ids.view();
  a.topk_weights = topk_weights.view();
  a.expert_map = map.view();
  a.shared_addend = shared_addend.view();
  a.y = y.view();
  if (case_.spec.counters) a.counters = counters.view();
  return a;
}

DeviceBuffer GpuBlock::workspace(const ramp_weights* w) const {
  uint64_t bytes = 0;
  require(ramp_expert_block_workspace(context_, w, case_.spec.tokens, case_.spec.top_k, &bytes));
  return {context_, bytes};
}

void GpuBlock::upload() const {
  for (const OnDevice* t : {&x, &x_scale, &ids, &topk_weights, &shared_addend, &map}) t->upload();
}

void GpuBlock::begin() const {
  case_.y.poison();
  if (poisoning()) y.upload();
  case_.counters[0] = 1000;  // counters are added to, never set
  case_.counters[1] = 2000;
  counters.upload();
}

void GpuBlock::finish() {
  memory(context_).synchronize_all();
  y.download();
  counters.download();
  case_.counters[0] -= 1000;
  case_.counters[1] -= 2000;
  EXPECT_TRUE(y.guard_intact()) << "wrote behind y";
  if (poisoning()) {
    EXPECT_TRUE(case_.y.gaps_intact()) << "wrote between the rows of y";
  }
  EXPECT_EQ(case_.counters[0], case_.spec.counters ? case_.expected_masked : 0) << "masked slots";
  EXPECT_EQ(case_.counters[1], case_.spec.counters ? case_.expected_out_of_range : 0) << "ids out of range";
}

void GpuBlock::run(const ramp_weights* w, void* stream, bool own) {
  begin();
  const ramp_expert_block_args a = args(w);
  if (own) {
    require(ramp_expert_block(context_, &a, nullptr, 0, stream));
    finish();
    return;
  }
  const DeviceBuffer scratch = workspace(w);
  require(ramp_expert_block(context_, &a, scratch.data(), scratch.bytes(), stream));
  finish();
  EXPECT_TRUE(scratch.guard_intact()) << "wrote behind the workspace";
}

GpuBatched::GpuBatched(BatchedCase& c, ramp_context* context)
    : x(context, c.x),
      x_scale(context, c.x_scale),
      counts(context, c.counts),
      row_weights(context, c.row_weights),
      y(context, c.y),
      case_(c),
      context_(context) {}

void GpuBatched::run(const ramp_weights* w, int32_t config) {
  note_arithmetic(context_, w);
  case_.y.poison();
  y.upload();
  uint64_t bytes = 0;
  require(ramp_expert_block_batched_workspace(context_, w, case_.spec.tokens, &bytes));
  const DeviceBuffer scratch(context_, bytes);
  ramp_batched_args a = ramp_batched_args_init();
  a.weights = w;
  a.config = config;
  a.determinism = case_.spec.determinism;
  a.router_weight_on_input = case_.spec.router_weight_on_input ? 1 : 0;
  a.x = x.view();
  a.x_scale = x_scale.view();
  a.counts = counts.view();
  a.row_weights = row_weights.view();
  a.y = y.view();
  require(ramp_expert_block_batched(context_, &a, scratch.data(), scratch.bytes(), nullptr));
  memory(context_).synchronize_all();
  y.download();
  EXPECT_TRUE(scratch.guard_intact()) << "wrote behind the workspace";
  EXPECT_TRUE(y.guard_intact()) << "wrote behind y";
  EXPECT_TRUE(case_.y.gaps_intact()) << "wrote between the rows of y";
  EXPECT_TRUE(case_.unused_rows_intact()) << "wrote rows beyond the counts";
}

// ---------------------------------------------------------------- checking

std::vector<int64_t> spread_tokens(int64_t tokens, int64_t count) {
  std::vector<int64_t> list;
  const int64_t n = std::min(count, tokens);
  for (int64_t i = 0; i < n; ++i) list.push_back(n == 1 ? 0 : i * (tokens - 1) / (n - 1));
  return list;
}

ParallelFor all_cores() {
  static ThreadPool pool(available_cores());
  return [](int64_t tasks, const std::function<void(int64_t)>& task) {
    pool.run(tasks, [&](int64_t i, int32_t) { task(i); });
  };
}

CheckOptions check_options() {
  CheckOptions options;
  options.parallel = all_cores();
  options.slot_rows = g_arithmetic.slot_rows;
  options.tensor_unit = g_arithmetic.tensor_unit;
  return options;
}

bool is_fp8(ramp_format format) {
  return weight_dtype(format) == RAMP_E4M3;
}

}  // namespace ramp::core::test
