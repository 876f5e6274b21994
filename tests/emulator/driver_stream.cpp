// libcuda of the emulated GPU: streams, events, and graphs that are recorded and replayed. What is not
// recorded is done at once, in the order of the calls.
#include <cuda.h>

#include <atomic>
#include <chrono>
#include <set>

#include "emulator/driver_state.hpp"

// cuda.h renames it to its second version; both are here.
#undef cuEventElapsedTime

using namespace emu;  // NOLINT(google-build-using-namespace)

namespace emu {
namespace {
std::atomic<int> g_captures{0};
}
}  // namespace emu

struct CUgraph_st {
  std::vector<Operation> operations;
};
struct CUgraphExec_st {
  std::vector<Operation> operations;
};
// A capture under way: streams that wait for an event of it belong to it too.
struct EmulatedCapture {
  std::shared_ptr<CUgraph_st> graph = std::make_shared<CUgraph_st>();
  CUstream origin = nullptr;
  std::set<CUstream> streams;
  bool invalid = false;
};
struct CUstream_st {
  std::shared_ptr<EmulatedCapture> capture;
};
struct CUevent_st {
  std::shared_ptr<EmulatedCapture> capture;
  std::shared_ptr<std::chrono::steady_clock::time_point> when =
      std::make_shared<std::chrono::steady_clock::time_point>();
};

namespace emu {

bool any_capture() {
  return g_captures > 0;
}
CUresult enqueue(CUstream stream, Operation operation) {
  const auto handle = reinterpret_cast<uintptr_t>(stream);
  if (handle > 2 && stream->capture != nullptr) {
    if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    stream->capture->graph->operations.push_back(std::move(operation));
    return CUDA_SUCCESS;
  }
  if (handle <= 2 && any_capture()) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  const CUresult r = operation();
  if (r == CUDA_ERROR_LAUNCH_FAILED) {
    lose_context();
    return CUDA_SUCCESS;  // a fault shows in the calls that follow
  }
  return r;
}
namespace {
EmulatedCapture* capture_of(CUstream s) {
  return reinterpret_cast<uintptr_t>(s) > 2 ? s->capture.get() : nullptr;
}
}  // namespace

}  // namespace emu

extern "C" {

CUresult cuStreamCreate(CUstream* stream, unsigned) {
  if (ready() != CUDA_SUCCESS) return ready();
  *stream = new CUstream_st;
  return CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) {
  delete stream;
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
  if (capture_of(stream) != nullptr) {
    stream->capture->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  const CUresult r = unless_capturing();
  return r == CUDA_SUCCESS ? check_guards() : r;
}
CUresult cuStreamQuery(CUstream stream) {
  if (capture_of(stream) != nullptr) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return ready();
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  const EmulatedCapture* const c = capture_of(stream);
  *status = c == nullptr ? CU_STREAM_CAPTURE_STATUS_NONE
            : c->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                         : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  if (ready() != CUDA_SUCCESS) return ready();
  if (reinterpret_cast<uintptr_t>(stream) <= 2) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture != nullptr) return CUDA_ERROR_INVALID_VALUE;
  stream->capture = std::make_shared<EmulatedCapture>();
  stream->capture->origin = stream;
  stream->capture->streams.insert(stream);
  ++g_captures;
  return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  *graph = nullptr;
  const auto capture = reinterpret_cast<uintptr_t>(stream) > 2 ? stream->capture : nullptr;
  if (capture == nullptr || capture->origin != stream) return CUDA_ERROR_INVALID_VALUE;
  for (CUstream s : capture->streams) s->capture = nullptr;
  --g_captures;
  if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *graph = new CUgraph_st(*capture->graph);
  return CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long) {
  if (ready() != CUDA_SUCCESS) return ready();
  *exec = new CUgraphExec_st{graph->operations};
  return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  if (ready() != CUDA_SUCCESS) return ready();
  for (const Operation& o : exec->operations)
    if (const CUresult r = enqueue(stream, o); r != CUDA_SUCCESS) return r;
  return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) {
  delete graph;
  return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec exec) {
  delete exec;
  return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned) {
  if (ready() != CUDA_SUCCESS) return ready();
  *event = new CUevent_st;
  return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) {
  delete event;
  return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
  if (ready() != CUDA_SUCCESS) return ready();
  event->capture = capture_of(stream) != nullptr ? stream->capture : nullptr;
  return enqueue(stream, [when = event->when] {
    *when = std::chrono::steady_clock::now();
    return CUDA_SUCCESS;
  });
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  if (ready() != CUDA_SUCCESS) return ready();
  if (event->capture != nullptr && reinterpret_cast<uintptr_t>(stream) > 2 && stream->capture == nullptr) {
    stream->capture = event->capture;
    stream->capture->streams.insert(stream);
  }
  return CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent) {
  return unless_capturing();
}
CUresult cuEventQuery(CUevent) {
  return ready();
}
CUresult cuEventElapsedTime(float* ms, CUevent from, CUevent to) {
  *ms = std::chrono::duration<float, std::milli>(*to->when - *from->when).count();
  return ready();
}
CUresult cuEventElapsedTime_v2(float* ms, CUevent from, CUevent to) {
  return cuEventElapsedTime(ms, from, to);
}

}  // extern "C"
