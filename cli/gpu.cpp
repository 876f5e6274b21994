// See gpu.hpp. Works in the context that the backend works in.
#include "cli/gpu.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <map>

#include "abi/handles.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/launch.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "params/fill.hpp"

namespace ramp::cli {
namespace {

using core::cuda::Gpu;
using core::cuda::ScopedContext;

std::shared_ptr<const Gpu> gpu_of(const ramp_context& context) {
  if (context.device.type != RAMP_DEVICE_CUDA)
    core::fail_argument("backend", context.backend->info().name, "cuda", "choose it with --backend cuda",
                        RAMP_ERROR_UNSUPPORTED);
  return Gpu::open(context.device.index);
}

const core::cuda::KernelProgram& fill_program() {
  static const core::cuda::KernelProgram program{
      "bench_fill", "bench/fill.cu", {}, {"fill_1", "fill_2", "fill_4"}, 80};
  return program;
}

class Filler {
 public:
  explicit Filler(ramp_context& context)
      : context_(context),
        memory_(*context.backend->memory()),
        gpu_(gpu_of(context)),
        library_(gpu_, context.cache_dir, context.log) {}

  std::shared_ptr<void> matrix(const core::SyntheticMatrix& m, ramp_tensor& view) {
    const int64_t width = core::dtype_bytes(m.dtype);
    std::shared_ptr<void> out = memory_.allocate(static_cast<uint64_t>(core::numel(view) * width));
    const std::shared_ptr<void> codes = memory_.allocate(m.codes.size());
    memory_.upload(codes.get(), m.codes.data(), m.codes.size(), nullptr);
    core::cuda::FillParams p{};
    p.out = out.get();
    p.codes = codes.get();
    p.seed = m.seed;
    p.rows = m.experts * m.rows;
    p.cols = m.cols;
    const ScopedContext scope(*gpu_);
    // Blocks stride over rows: 16 for each SM hide the latency of the stores.
    const uint64_t blocks = std::min<uint64_t>(static_cast<uint64_t>(p.rows),
                                               16ULL * static_cast<uint64_t>(gpu_->facts().sm_count));
    core::cuda::launch(library_.get(fill_program(), fmt::format("fill_{}", width)), {blocks, 1, 256, 0},
                       nullptr, p);
    memory_.synchronize(nullptr);  // `codes` goes
    place(view, out);
    return out;
  }
  std::shared_ptr<void> values(ramp_tensor& view) {
    if (!core::present(view)) return nullptr;
    const auto bytes = static_cast<uint64_t>(core::numel(view)) * sizeof(float);
    std::shared_ptr<void> out = memory_.allocate(bytes);
    memory_.upload(out.get(), view.data, bytes, nullptr);
    memory_.synchronize(nullptr);
    place(view, out);
    return out;
  }

 private:
  void place(ramp_tensor& view, const std::shared_ptr<void>& data) const {
    view.data = data.get();
    view.device = context_.device;
  }
  ramp_context& context_;
  const core::DeviceMemory& memory_;
  std::shared_ptr<const Gpu> gpu_;
  core::cuda::KernelLibrary library_;
};

}  // namespace

bool gpu_plausible() {
  std::error_code ignored;
  return core::cuda::find_driver(nullptr) != nullptr || std::filesystem::exists("/dev/nvidiactl", ignored);
}

DeviceWeights fill_on_device(ramp_context* context, const core::SyntheticRecipe& recipe) {
  Filler filler(core::context_of(context));
  DeviceWeights w;
  w.desc = recipe.desc;
  w.desc.ownership = RAMP_IN_PLACE;
  w.memory.push_back(filler.matrix(recipe.w13, w.desc.w13));
  w.memory.push_back(filler.matrix(recipe.w2, w.desc.w2));
  for (ramp_tensor* const t :
       {&w.desc.w13_scale, &w.desc.w2_scale, &w.desc.w13_input_scale, &w.desc.w2_input_scale})
    w.memory.push_back(filler.values(*t));
  return w;
}

namespace {

CUgraphExec captured(CUstream stream, const std::function<void(void*)>& enqueue) {
  CUgraph graph = nullptr;
  // Thread-local: whatever must not happen during a capture (an allocation, say) fails here and shows.
  RAMP_CU(cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  try {
    enqueue(stream);
  } catch (...) {
    core::cuda::driver().cuStreamEndCapture(stream, &graph);
    if (graph != nullptr) core::cuda::driver().cuGraphDestroy(graph);
    throw;
  }
  RAMP_CU(cuStreamEndCapture, stream, &graph);
  CUgraphExec exec = nullptr;
  const CUresult made = core::cuda::driver().cuGraphInstantiateWithFlags(&exec, graph, 0);
  core::cuda::driver().cuGraphDestroy(graph);
  core::cuda::check_result(made, "cuGraphInstantiateWithFlags", "&exec, graph, 0");
  return exec;
}

double elapsed_us(CUevent from, CUevent to) {
  float ms = 0;
  RAMP_CU(cuEventElapsedTime, &ms, from, to);
  return 1e3 * static_cast<double>(ms);
}

}  // namespace

struct Graph::State {
  std::shared_ptr<const Gpu> gpu;
  CUstream stream = nullptr;
  CUgraphExec exec = nullptr;
  std::vector<CUevent> events;

  ~State() {
    try {
      const ScopedContext scope(*gpu);
      const core::cuda::Driver& d = core::cuda::driver();
      for (CUevent e : events) d.cuEventDestroy(e);
      if (exec != nullptr) d.cuGraphExecDestroy(exec);
      if (stream != nullptr) {
        d.cuStreamSynchronize(stream);
        d.cuStreamDestroy(stream);
      }
    } catch (const std::exception&) {
      // The driver has shut down, and all of it with the driver.
    }
  }
};

Graph::Graph(ramp_context* context, const std::function<void(void*)>& enqueue)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.gpu = gpu_of(core::context_of(context));
  const ScopedContext scope(*s.gpu);
  RAMP_CU(cuStreamCreate, &s.stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
  enqueue(s.stream);
  RAMP_CU(cuStreamSynchronize, s.stream);
  s.exec = captured(s.stream, enqueue);
}

Graph::~Graph() = default;

void Graph::replay() {
  const ScopedContext scope(*state_->gpu);
  RAMP_CU(cuGraphLaunch, state_->exec, state_->stream);
  RAMP_CU(cuStreamSynchronize, state_->stream);
}

std::vector<double> Graph::time(int64_t replays) {
  State& s = *state_;
  const ScopedContext scope(*s.gpu);
  while (static_cast<int64_t>(s.events.size()) < replays + 1) {
    CUevent e = nullptr;
    RAMP_CU(cuEventCreate, &e, static_cast<unsigned>(CU_EVENT_DEFAULT));
    s.events.push_back(e);
  }
  // One replay ahead of the first event: from then on the GPU has work whenever the next launch arrives.
  RAMP_CU(cuGraphLaunch, s.exec, s.stream);
  RAMP_CU(cuEventRecord, s.events[0], s.stream);
  for (int64_t i = 0; i < replays; ++i) {
    RAMP_CU(cuGraphLaunch, s.exec, s.stream);
    RAMP_CU(cuEventRecord, s.events[static_cast<size_t>(i) + 1], s.stream);
  }
  RAMP_CU(cuStreamSynchronize, s.stream);
  std::vector<double> us;
  us.reserve(static_cast<size_t>(replays));
  for (size_t i = 0; i < static_cast<size_t>(replays); ++i)
    us.push_back(elapsed_us(s.events[i], s.events[i + 1]));
  return us;
}

struct GraphRounds::State {
  std::shared_ptr<const Gpu> gpu;
  CUstream stream = nullptr;
  std::map<size_t, CUgraphExec> graphs;
  std::vector<CUevent> events;

  void clear() {
    for (const auto& [key, exec] : graphs) core::cuda::driver().cuGraphExecDestroy(exec);
    graphs.clear();
  }
  ~State() {
    try {
      const ScopedContext scope(*gpu);
      const core::cuda::Driver& d = core::cuda::driver();
      if (stream != nullptr) d.cuStreamSynchronize(stream);
      clear();
      for (CUevent e : events) d.cuEventDestroy(e);
      if (stream != nullptr) d.cuStreamDestroy(stream);
    } catch (const std::exception&) {
      // The driver has shut down, and all of it with the driver.
    }
  }
};

GraphRounds::GraphRounds(ramp_context* context) : state_(std::make_unique<State>()) {
  state_->gpu = gpu_of(core::context_of(context));
  const ScopedContext scope(*state_->gpu);
  RAMP_CU(cuStreamCreate, &state_->stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
}

GraphRounds::~GraphRounds() = default;

bool GraphRounds::has(size_t key) const {
  return state_->graphs.contains(key);
}

void GraphRounds::capture(size_t key, const std::function<void(void*)>& enqueue, bool first) {
  State& s = *state_;
  const ScopedContext scope(*s.gpu);
  if (first) {
    enqueue(s.stream);
    RAMP_CU(cuStreamSynchronize, s.stream);
  }
  CUgraphExec const exec = captured(s.stream, enqueue);
  const auto [at, fresh] = s.graphs.try_emplace(key, exec);
  if (fresh) return;
  core::cuda::driver().cuGraphExecDestroy(at->second);
  at->second = exec;
}

void GraphRounds::clear() {
  const ScopedContext scope(*state_->gpu);
  state_->clear();
}

std::vector<double> GraphRounds::time(std::span<const size_t> keys) {
  State& s = *state_;
  std::vector<double> us;
  if (keys.empty()) return us;
  const ScopedContext scope(*s.gpu);
  while (s.events.size() < keys.size() + 1) {
    CUevent e = nullptr;
    RAMP_CU(cuEventCreate, &e, static_cast<unsigned>(CU_EVENT_DEFAULT));
    s.events.push_back(e);
  }
  // One replay ahead of the first event: from then on the GPU has work whenever the next launch arrives.
  RAMP_CU(cuGraphLaunch, s.graphs.at(keys.front()), s.stream);
  RAMP_CU(cuEventRecord, s.events[0], s.stream);
  for (size_t i = 0; i < keys.size(); ++i) {
    RAMP_CU(cuGraphLaunch, s.graphs.at(keys[i]), s.stream);
    RAMP_CU(cuEventRecord, s.events[i + 1], s.stream);
  }
  RAMP_CU(cuStreamSynchronize, s.stream);
  us.reserve(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) us.push_back(elapsed_us(s.events[i], s.events[i + 1]));
  return us;
}

}  // namespace ramp::cli
