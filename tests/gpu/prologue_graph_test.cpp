// A captured prologue stays right when its inputs change between replays, and keeps nothing from one replay
// to the next: the workspace is poisoned in between.
#include <fmt/format.h>

#include "backend/cuda/driver.hpp"
#include "gpu/prologue_support.hpp"
#include "routing/router.hpp"
#include "routing/sorted_rows.hpp"

namespace ramp::gpu_test {
namespace {

class Graph {
 public:
  template <typename F>
  explicit Graph(F&& record) {
    const ScopedContext scope(*Device::get().gpu);
    RAMP_CU(cuStreamCreate, &stream_, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
    RAMP_CU(cuStreamBeginCapture, stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    record(stream_);
    CUgraph graph = nullptr;
    RAMP_CU(cuStreamEndCapture, stream_, &graph);
    RAMP_CU(cuGraphInstantiateWithFlags, &exec_, graph, 0ULL);
    RAMP_CU(cuGraphDestroy, graph);
  }
  ~Graph() {
    const ScopedContext scope(*Device::get().gpu);
    driver().cuGraphExecDestroy(exec_);
    driver().cuStreamDestroy(stream_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay() const {
    const ScopedContext scope(*Device::get().gpu);
    RAMP_CU(cuGraphLaunch, exec_, stream_);
    RAMP_CU(cuStreamSynchronize, stream_);
  }

 private:
  CUstream stream_ = nullptr;
  CUgraphExec exec_ = nullptr;
};

void expect_index(const Workspace& ws, const std::vector<int32_t>& ids, int64_t tokens, int64_t top_k,
                  int64_t experts) {
  std::vector<int32_t> offsets(static_cast<size_t>(experts + 1));
  std::vector<int32_t> slots(ids.size(), -1);
  std::vector<int32_t> positions(ids.size());
  SortedRows sorted{offsets, slots, positions};
  sort_rows(make_tensor(ids.data(), RAMP_I32, {tokens, top_k}), {}, experts, sorted);
  std::fill(slots.begin() + offsets.back(), slots.end(), -1);
  EXPECT_EQ(ws.parts[0].get<int32_t>(), offsets);
  EXPECT_EQ(ws.parts[1].get<int32_t>(), slots);
  EXPECT_EQ(ws.parts[2].get<int32_t>(), positions);
  ws.expect_guards();
}

TEST(Graph, ReplaysWithOtherIds) {
  const int64_t experts = 64;
  const int64_t top_k = 8;
  const int64_t hidden = 256;
  Device& d = Device::get();
  for (const int64_t tokens : {1, 64, 1024, 4096}) {
    SCOPED_TRACE(fmt::format("T {}", tokens));
    const ExpertWeights w = make_weights(RAMP_FORMAT_FP8_BLOCK, experts, hidden);
    d.prologue.prepare(w, RAMP_BF16);
    std::vector<int32_t> ids(static_cast<size_t>(tokens * top_k), 0);
    const Buffer device_ids = Buffer::of(ids);
    const Buffer x(static_cast<uint64_t>(tokens * hidden * 2));
    const Workspace ws(w, tokens * top_k, 64);
    BlockCall call;
    call.weights = &w;
    call.tokens = tokens;
    call.top_k = top_k;
    call.x = device_tensor(x.data(), RAMP_BF16, {tokens, hidden});
    call.ids = device_tensor(device_ids.data(), RAMP_I32, {tokens, top_k});
    d.memory->synchronize(nullptr);
    const Graph graph([&](CUstream stream) { d.prologue.block(call, ws.view, stream); });
    for (uint64_t step = 0; step < 5; ++step) {
      for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(random_u64(step, i) % (step % 2 == 0 ? 70 : 3)) - 1;
      d.memory->upload(device_ids.data(), ids.data(), ids.size() * 4, nullptr);
      for (const Buffer& b : ws.parts) b.poison();
      d.memory->synchronize(nullptr);
      graph.replay();
      expect_index(ws, ids, tokens, top_k, experts);
    }
  }
}

TEST(Graph, ReplaysRouting) {
  const int64_t experts = 128;
  const int64_t hidden = 256;
  Device& d = Device::get();
  ramp_router_config router = ramp_router_config_init();
  router.top_k = 8;
  router.renormalize = 1;
  router = check_router(router, experts);
  for (const int64_t tokens : {1, 64, 1024, 2048}) {
    SCOPED_TRACE(fmt::format("T {}", tokens));
    const ExpertWeights w = make_weights(RAMP_FORMAT_FP8_BLOCK, experts, hidden);
    d.prologue.prepare(w, RAMP_BF16);
    d.prologue.prepare_route(router, experts, RAMP_F32);
    std::vector<float> logits(static_cast<size_t>(tokens * experts));
    const Buffer device_logits = Buffer::of(logits);
    const Buffer ids(static_cast<uint64_t>(tokens * 8 * 4));
    const Buffer weights(static_cast<uint64_t>(tokens * 8 * 4));
    const Buffer x(static_cast<uint64_t>(tokens * hidden * 2));
    const Workspace ws(w, tokens * 8, 64);
    RouteCall route;
    route.router = router;
    route.logits = device_tensor(device_logits.data(), RAMP_F32, {tokens, experts});
    route.ids = device_tensor(ids.data(), RAMP_I32, {tokens, 8});
    route.weights = device_tensor(weights.data(), RAMP_F32, {tokens, 8});
    BlockCall call;
    call.weights = &w;
    call.tokens = tokens;
    call.top_k = 8;
    call.x = device_tensor(x.data(), RAMP_BF16, {tokens, hidden});
    call.ids = route.ids;
    d.memory->synchronize(nullptr);
    const Graph graph([&](CUstream stream) { d.prologue.routed_block(route, call, ws.view, stream); });
    for (uint64_t step = 0; step < 4; ++step) {
      for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(random_normal(step, i));
      d.memory->upload(device_logits.data(), logits.data(), logits.size() * 4, nullptr);
      for (const Buffer& b : ws.parts) b.poison();
      d.memory->synchronize(nullptr);
      graph.replay();
      std::vector<int32_t> want(static_cast<size_t>(tokens * 8));
      std::vector<float> want_weights(want.size());
      std::vector<unsigned char> scratch(static_cast<size_t>(route_scratch_bytes(router, experts)));
      route_tokens(router, make_tensor(logits.data(), RAMP_F32, {tokens, experts}),
                   make_tensor(want.data(), RAMP_I32, {tokens, 8}),
                   make_tensor(want_weights.data(), RAMP_F32, {tokens, 8}), 0, tokens, scratch.data());
      EXPECT_EQ(ids.get<int32_t>(), want);
      EXPECT_EQ(weights.get<float>(), want_weights);
      expect_index(ws, want, tokens, 8, experts);
    }
  }
}

}  // namespace
}  // namespace ramp::gpu_test
